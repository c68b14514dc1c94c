"""The code in the page on loading plugins does what the text beside it says."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "loading.md"
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_application_of_the_page_prints_what_its_comments_say(tmp_path: Path) -> None:
    """Each block is the file that its first line names; those after the application are for its second start."""
    [greeting, (application, code), poller] = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    (tmp_path / "plugins").mkdir()
    (tmp_path / application).write_text(code, encoding="utf-8")

    printed: list[str] = []
    for name, text in (greeting, poller):
        (tmp_path / name).write_text(text, encoding="utf-8")
        ran = subprocess.run(
            [sys.executable, "-W", "error", application], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        printed.append(ran.stdout)

    assert printed[0].splitlines() == re.findall(r"print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert "'poller': ('unknown', True)" in printed[1]
