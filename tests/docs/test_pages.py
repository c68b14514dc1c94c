"""The documentation can be built, and tells of everything that is public."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_builds_without_a_warning_and_lists_every_public_name(tmp_path: Path) -> None:
    """Sphinx has nothing to complain of, and the reference has an entry for each public name."""
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            "-d",
            "cache",
            ROOT / "docs",
            "html",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    reference = (tmp_path / "html" / "reference.html").read_text(encoding="utf-8")
    missing = [name for name in holdfast.__all__ if f'id="holdfast.{name}"' not in reference]
    assert missing == []


@pytest.mark.parametrize("page", ["CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"])
def test_a_page_outside_docs_links_only_to_files_that_exist(page: str) -> None:
    """Sphinx looks after the links in docs; those of the pages beside it lead somewhere as well."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))

    assert [link for link in links if not (ROOT / link).exists()] == []
