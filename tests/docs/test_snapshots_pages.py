"""The code in the pages on snapshots does what the text beside it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)


@pytest.mark.parametrize("page, prints", [("snapshots.md", 7), ("coming-from-pamiq-core.md", 3)])
def test_the_code_of_the_page_prints_what_its_comments_say(page: str, prints: int, tmp_path: Path) -> None:
    """The blocks, run in one go in an empty folder, end well; each print prints the comment behind it."""
    code = "\n".join(BLOCK.findall((DOCS / page).read_text(encoding="utf-8")))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(PRINTED.findall(code)) == prints
    assert ran.stdout.splitlines() == PRINTED.findall(code)
