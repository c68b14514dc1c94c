"""The code in README and tutorial does what the text beside it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)


COMMAND = re.compile(r"^\$ (holdfast run \S+)\n(.+)$", re.MULTILINE)


def test_the_first_plugin_of_the_readme_counts_its_runs(home: Path) -> None:
    """Each command of the first screen prints what stands below it."""
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    [code] = BLOCK.findall(first_screen)
    (home.parent / "counter.py").write_text(code, encoding="utf-8")
    commands = COMMAND.findall(first_screen)

    for command, printed in commands:
        ran = subprocess.run(
            [Path(sys.executable).with_name("holdfast"), *command.split()[1:]],
            env={**os.environ, "HOLDFAST_HOME": str(home)},
            cwd=home.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stdout) == (0, f"{printed}\n"), ran.stderr

    assert [printed for _, printed in commands] == ["run 1", "run 2"]


@pytest.mark.parametrize("page", ["docs/tutorial.md"])
def test_the_code_of_a_page_runs_on_a_fresh_machine_and_prints_what_its_comments_say(page: str, home: Path) -> None:
    """The blocks of a page, run in one go, end well; each print prints what stands in the comment behind it."""
    code = "\n".join(BLOCK.findall((ROOT / page).read_text(encoding="utf-8")))
    expected = PRINTED.findall(code)
    program = home.with_name("page.py")
    program.write_text(code, encoding="utf-8")

    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env={**os.environ, "HOLDFAST_HOME": str(home)},
        cwd=home.parent,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert expected, "a page without a single result shows nothing"
    assert ran.stdout.splitlines() == expected
