"""The code in the page on items does what the text beside it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "items.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)


def test_the_code_of_the_page_runs_on_a_fresh_machine_and_prints_what_its_comments_say(home: Path) -> None:
    """The blocks, run in one go, end well; each print prints what stands in the comment behind it."""
    code = "\n".join(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
    program = home.with_name("page.py")
    program.write_text(code, encoding="utf-8")

    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env={**os.environ, "HOLDFAST_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(PRINTED.findall(code)) == 19
    assert ran.stdout.splitlines() == PRINTED.findall(code)
