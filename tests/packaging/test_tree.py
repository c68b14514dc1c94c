"""The checks of the repository's own files find what they are for."""

from pathlib import Path

import pytest

from tools import check_tree, tables

INDEX = "py" + "pi." + "org"  # in pieces, or this file would be complained of


@pytest.mark.parametrize(
    "line",
    [
        f"see https://{INDEX}/project/holdfast",
        "pip install --" + "index-url somewhere holdfast",
        "https://mirror.example/" + "simple/holdfast/",
        '"resolved": "' + "https://registry.example/x.tgz",
        "cd /" + "root/holdfast",
        "open('/" + "home/ada/notes.txt')",
        f"PYTHONPATH={check_tree.ROOT}/src",
    ],
)
def test_a_line_that_names_an_index_or_a_machine_is_complained_of(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The complaint says which file and line."""
    page = tmp_path / "page.md"
    page.write_text(f"fine\n{line}\n", encoding="utf-8")
    monkeypatch.setattr(check_tree, "ROOT", tmp_path)

    [complaint] = check_tree.complaints(page)

    assert complaint.startswith("page.md:2: names a ")


@pytest.mark.parametrize(
    "line",
    [
        "https://www.apache.org/licenses/",
        "pip install holdfast",
        "~/work/notes",
        "tests/root/data",
        "/usr/bin/env bash",
    ],
)
def test_an_ordinary_line_is_not_complained_of(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses and paths that are the same everywhere are fine."""
    page = tmp_path / "page.md"
    page.write_text(f"{line}\n", encoding="utf-8")
    monkeypatch.setattr(check_tree, "ROOT", tmp_path)

    assert check_tree.complaints(page) == []


def test_a_table_that_the_code_has_left_behind_is_written_anew() -> None:
    """What stands between the marks is replaced, what stands around them is not, and twice changes nothing."""
    page = "Before.\n\n<!-- generated: errors -->\n| stale |\n<!-- end -->\n\nAfter.\n"

    new = tables.rendered(page)

    assert new.startswith("Before.\n\n<!-- generated: errors -->\n\n| error | is also | what it says |")
    assert new.endswith("|\n\n<!-- end -->\n\nAfter.\n")
    assert "| &nbsp;&nbsp;`NotFoundError` | `LookupError` |" in new
    assert "stale" not in new
    assert tables.rendered(new) == new
