"""A copy of a snapshot shares nothing with it, and is there only if it verifies."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.disk import ExistsError
from holdfast.errors import DamagedError, NotFoundError
from holdfast.snapshots.copying import copy
from holdfast.snapshots.reading import is_being_read, verify
from holdfast.snapshots.removal import is_pinned, pin
from holdfast.snapshots.saving import StateStore


class Weights:
    """As much as three chunks."""

    def __init__(self) -> None:
        self.values = array("q", range(20_000))

    def get_state(self) -> array[int]:
        """The array alone."""
        return self.values

    def set_state(self, tree: array[int]) -> None:
        """Take it back."""
        self.values = tree


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A snapshot of weights."""
    with StateStore(tmp_path / "states", clock=lambda: 10**18) as store:
        store.register("weights", Weights())
        return store.save_state(metrics={"loss": 0.5})


def test_a_copy_is_the_same_snapshot_and_shares_no_file(saved: Path, tmp_path: Path) -> None:
    """With its metrics and its time, without what was marked on the original."""
    pin(saved)
    manifest = copy(saved, tmp_path / "copy")

    assert sorted(os.listdir(tmp_path)) == ["copy", "states"]
    assert manifest.metrics == {"loss": 0.5}
    assert verify(tmp_path / "copy") == []
    assert not is_pinned(tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mtime_ns == 10**18
    files = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert [path.stat().st_nlink for path in files] == [1] * len(files) == [1, 1, 1]


def test_what_is_copied_is_being_read_and_how_far_it_is_is_told(saved: Path, tmp_path: Path) -> None:
    """No cleanup removes it meanwhile; the last report is that all was copied and verified."""
    told: list[tuple[int, int]] = []
    are_read: list[bool] = []

    def report(done: int, total: int) -> None:
        told.append((done, total))
        are_read.append(is_being_read(saved))

    copy(saved, tmp_path / "copy", on_progress=report)

    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 2 * 20_000 * 8
    assert len({total for _, total in told}) == 1
    assert all(are_read)
    assert not is_being_read(saved)


def test_a_name_that_is_taken_is_refused_before_anything_is_copied(saved: Path, tmp_path: Path) -> None:
    """Be it a link to nowhere."""
    (tmp_path / "copy").symlink_to("nowhere")

    def fail(done: int, total: int) -> None:
        raise AssertionError("it was copied")

    with pytest.raises(ExistsError, match="a name that is free is expected"):
        copy(saved, tmp_path / "copy", on_progress=fail)
    assert (tmp_path / "copy").is_symlink()


def damage_pack(path: Path) -> None:
    """Change a byte of an array."""
    [pack] = (path / ".snap" / "packs").iterdir()
    with pack.open("r+b") as file:
        file.write(b"x")


def remove_entry(path: Path) -> None:
    """Remove what an object has."""
    (path / "weights").unlink()


def remove_manifest(path: Path) -> None:
    """Remove what says what is in there."""
    (path / ".snap" / "manifest.json").unlink()


def remove_all(path: Path) -> None:
    """Move the snapshot elsewhere."""
    path.rename(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    "change, error",
    [
        (damage_pack, DamagedError),
        (remove_entry, NotFoundError),
        (remove_manifest, NotFoundError),
        (remove_all, NotFoundError),
    ],
)
def test_what_is_not_whole_is_not_copied(
    saved: Path, tmp_path: Path, change: Callable[[Path], None], error: type[Exception]
) -> None:
    """Nothing is left of the attempt."""
    change(saved)

    with pytest.raises(error):
        copy(saved, tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["states"]


def test_without_a_folder_for_it_nothing_is_copied(saved: Path, tmp_path: Path) -> None:
    """It is not made: it may be a misspelling, or a disk that is not mounted."""
    with pytest.raises(NotFoundError):
        copy(saved, tmp_path / "absent" / "copy")
    assert sorted(os.listdir(tmp_path)) == ["states"]
