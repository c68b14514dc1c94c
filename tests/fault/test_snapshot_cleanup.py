"""What is left when a cleanup, or the copy of a snapshot, is killed: whole ones, and nothing that looks like one."""

import os
import shutil
import sys
from pathlib import Path

from blake3 import blake3

from holdfast.disk import Disk
from holdfast.snapshots.keepers import LatestStatesKeeper
from holdfast.snapshots.manifest import File, Manifest, Stored
from holdfast.snapshots.reading import verify
from tests.components.strace import MARKERS, Call, sweep

CLEANING = (
    MARKERS
    + """
import ctypes, shutil, sys
from holdfast.snapshots.keepers import LatestStatesKeeper

keeper = LatestStatesKeeper(sys.argv[1], 1)
begin()
keeper.cleanup()
end()
"""
)


def make(folder: Path, name: str, at_ns: int) -> None:
    """Put a snapshot of a file in a folder there."""
    (folder / name / "model").mkdir(parents=True)
    (folder / name / ".snap").mkdir()
    (folder / name / "model" / "weights").write_bytes(b"weights")
    manifest = Manifest(
        id=f"{at_ns:032x}",
        created_at_ns=at_ns,
        objects={"model": Stored(entries=("model",))},
        folders=("model",),
        files=(File("model/weights", 7, blake3(b"weights").hexdigest()),),
    )
    (folder / name / ".snap" / "manifest.json").write_bytes(manifest.to_bytes())
    os.utime(folder / name, ns=(at_ns, at_ns))


def test_killed_at_any_call_a_cleanup_leaves_whole_snapshots_and_the_next_one_ends_it(
    tmp_path: Path, is_full: bool
) -> None:
    """What it had begun to remove has a temporary name, which a sweep takes; the newest is there throughout."""
    folder, seen = tmp_path / "states", set[int]()

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for at_ns, name in enumerate(("a.state", "b.state", "c.state")):
            make(folder, name, at_ns)

    def check(call: Call) -> None:
        left = sorted(path for path in folder.iterdir() if path.suffix == ".state")
        assert [verify(path) for path in left] == [[]] * len(left), call
        assert left[-1].name == "c.state", call
        seen.add(len(left))
        Disk().sweep(folder)
        LatestStatesKeeper(folder, 1).cleanup()
        assert sorted(os.listdir(folder)) == [".locks", "c.state"], call

    sweep(
        [sys.executable, "-c", CLEANING, str(folder)],
        env=dict(os.environ),
        prepare=prepare,
        check=check,
        sample=None if is_full else 16,
    )
    assert seen == {1, 2, 3}


COPYING = (
    MARKERS
    + """
import ctypes, shutil, sys
from holdfast.snapshots.copying import copy

begin()
copy(sys.argv[1], sys.argv[2])
end()
"""
)


def test_killed_at_any_call_a_copy_is_whole_or_not_there(tmp_path: Path, is_full: bool) -> None:
    """The original is what it was, and what was begun goes with a sweep."""
    seen = set[bool]()
    states, out = tmp_path / "states", tmp_path / "out"

    def prepare() -> None:
        for folder in (states, out):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        make(states, "a.state", 7)

    def check(call: Call) -> None:
        assert verify(states / "a.state") == [], call
        Disk().sweep(out)
        left = {path.name for path in out.iterdir()} - {".locks"}
        assert left <= {"copy"}, call
        seen.add(bool(left))
        if left:
            assert verify(out / "copy") == [], call
            assert (out / "copy").stat().st_mtime_ns == 7, call

    sweep(
        [sys.executable, "-c", COPYING, str(states / "a.state"), str(out / "copy")],
        env=dict(os.environ),
        prepare=prepare,
        check=check,
        sample=None if is_full else 12,
    )
    assert seen == {False, True}
