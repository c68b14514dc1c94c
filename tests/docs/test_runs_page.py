"""The pages on runs and plugins say what the code does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from holdfast import PodClient
from holdfast.runs import MOVES, Status

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROW = re.compile(r"^\| (\w+) \| ([\w, ]+) \|$", re.MULTILINE)


def test_the_table_of_statuses_is_the_table_of_moves() -> None:
    """Each status with each that it can become, none left out."""
    page = (DOCS / "runs.md").read_text(encoding="utf-8")
    rows = ROW.findall(page.partition("## Statuses")[2].partition("\n## ")[0])[1:]

    told = {status: set() if text == "nothing" else set(text.split(", ")) for status, text in rows}

    assert told == {str(status): {str(to) for to in moves} for status, moves in MOVES.items()}
    assert len(rows) == len(Status) == 10


def test_the_code_of_the_page_on_plugins_runs(home: Path) -> None:
    """The blocks, run in one go, end well; each print prints what stands in the comment behind it."""
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    program = home.with_name("my_plugin.py")
    program.write_text(code, encoding="utf-8")

    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env={**os.environ, "HOLDFAST_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)$", code, re.MULTILINE) == ["['Alice']"]


def test_the_learner_of_the_page_goes_on_from_its_last_snapshot(home: Path) -> None:
    """The second run finds nothing left to learn."""
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    home.with_name("my_plugin.py").write_text("\n".join(blocks[:-1]), encoding="utf-8")
    models: list[str] = []
    for _ in range(2):
        ran = subprocess.run(
            [Path(sys.executable).with_name("holdfast"), "run", "my_plugin.py:Learn"],
            cwd=home.parent,
            env={**os.environ, "HOLDFAST_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        with PodClient(home=home) as client:
            [state] = client.search({"type": "PersistentState"})
            pointed = client.find_snapshot(str(state.id))
        models.append((home / "snapshots" / str(state.id) / str(pointed) / "model").read_text(encoding="utf-8"))
    assert models[0] == models[1]
    assert '"steps":3000' in models[1]


def test_the_counter_of_the_page_counts_each_file_once(home: Path) -> None:
    """Run twice, with a file more the second time."""
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    home.with_name("my_plugin.py").write_text("\n".join(blocks[:-1]), encoding="utf-8")
    texts = home.with_name("texts")
    texts.mkdir()
    for name, text in {"a.txt": "1\n2\n", "b.txt": "3\n"}.items():
        (texts / name).write_text(text, encoding="utf-8")
        ran = subprocess.run(
            [
                Path(sys.executable).with_name("holdfast"),
                "run",
                "my_plugin.py:CountLines",
                "--config",
                json.dumps({"folder": str(texts)}),
            ],
            cwd=home.parent,
            env={**os.environ, "HOLDFAST_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    shown = subprocess.run(
        [Path(sys.executable).with_name("holdfast"), "state", "get", "my_plugin:CountLines", "lines"],
        env={**os.environ, "HOLDFAST_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert shown.stdout == "3\n"
