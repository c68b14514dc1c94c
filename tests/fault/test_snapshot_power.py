"""What is left of snapshots when the power goes: the old ones, and the new one whole or not at all."""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from holdfast.disk import Disk
from holdfast.snapshots.reading import verify
from holdfast.snapshots.saving import PersistentStateMixin, StateStore

CHUNK = 65_536


class Recording(Disk):
    """Notes after each call that changes something what is there, and what of it would outlive a power cut.

    A file that was flushed holds what it held then. Which names a folder has is known as of its last flush; of what
    changed since, nobody knows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contents: dict[int, bytes] = {}
        self.flushed: dict[int, dict[str, int]] = {}
        self.cuts: list[tuple[dict[int, dict[str, int]], dict[int, dict[str, int]], dict[int, bytes]]] = []
        self.kept: dict[int, int] = {}
        self.random = Random(0)

    def note(self) -> None:
        """Note what is there now. All of it is kept open, so that no number stands for two files."""
        now: dict[int, dict[str, int]] = {}
        for folder in (self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())):
            now[folder.stat().st_ino] = {entry.name: entry.inode() for entry in os.scandir(folder)}
            for entry in os.scandir(folder):
                if entry.inode() not in self.kept:
                    self.kept[entry.inode()] = os.open(entry.path, os.O_PATH)
        self.cuts.append((now, dict(self.flushed), dict(self.contents)))

    def close(self) -> None:
        """Keep nothing open any more."""
        for fd in self.kept.values():
            os.close(fd)

    def _at_once(self, calls: Sequence[Callable[[], object]]) -> None:
        """One after the other: the power may go between any two of them, in whichever order."""
        for call in self.random.sample(calls, len(calls)):
            call()

    def _flush(self, fd: int) -> None:
        super()._flush(fd)
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            self.flushed[found.st_ino] = {entry.name: entry.inode() for entry in os.scandir(f"/proc/self/fd/{fd}")}
        else:
            self.contents[found.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()
        self.note()

    def _link(self, source: Path, target: Path) -> None:
        super()._link(source, target)
        self.note()

    def _rename(self, source: Path, target: Path) -> None:
        super()._rename(source, target)
        self.note()

    def _rename_new(self, source: Path, target: Path) -> None:
        super()._rename_new(source, target)
        self.note()

    def _mkdir(self, path: Path, mode: int) -> None:
        super()._mkdir(path, mode)
        self.note()

    def _unlink(self, path: Path) -> None:
        super()._unlink(path)
        self.note()

    def _remove_tree(self, path: Path) -> None:
        super()._remove_tree(path)
        self.note()


def build(place: Path, inode: int, cut: Any, random: Random) -> None:
    """Put into a folder what may be there after a power cut."""
    now, flushed, contents = cut
    before, after = flushed.get(inode, {}), now.get(inode, {})
    names = {name: number for name, number in before.items() if after.get(name) == number or random.random() < 0.5}
    names |= {name: number for name, number in after.items() if before.get(name) != number and random.random() < 0.5}
    for name, number in names.items():
        if number in now or number in flushed:
            (place / name).mkdir()
            build(place / name, number, cut, random)
        else:
            data = contents.get(number, b"")
            (place / name).write_bytes(data)


class Tree:
    """Three chunks."""

    def __init__(self) -> None:
        self.data = bytearray(3 * CHUNK)

    def get_state(self) -> Any:
        """Return them."""
        return {"data": self.data}

    def set_state(self, tree: Any) -> None:
        """Take them."""
        self.data = tree["data"]


class Files(PersistentStateMixin):
    """A folder in a folder, with two files."""

    step = 0

    def save_state(self, path: Path) -> None:
        """Write them."""
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "step").write_text(str(self.step))
        (path / "inner" / "same").write_text("the same")

    def load_state(self, path: Path) -> None:
        """Read them."""
        assert (path / "inner" / "same").read_text() == "the same"
        self.step = int((path / "inner" / "step").read_text())


def store_of(folder: Path, disk: Disk | None = None) -> tuple[StateStore, Tree, Files]:
    """Return a store with both."""
    store, tree, files = StateStore(folder, disk=disk), Tree(), Files()
    store.register("tree", tree)
    store.register("files", files)
    return store, tree, files


@pytest.mark.parametrize("has_worker", [False, True], ids=["alone", "worker"])
def test_after_a_power_cut_at_any_moment_all_that_is_seen_is_whole_and_what_was_returned_is_there(
    tmp_path: Path, has_worker: bool, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three saves: one of everything, one of what changed, and one that is as the one before."""
    if has_worker:
        monkeypatch.setattr("holdfast.snapshots.saving.WORKER_BYTES", 1)
    folder = tmp_path / "states"
    folder.mkdir()
    disk = Recording(folder)
    disk.note()
    store, tree, files = store_of(folder, disk)
    promised: dict[int, str] = {}
    for step in (1, 2, 2):
        files.step = step
        tree.data[CHUNK] = step
        promised[len(disk.cuts)] = store.save_state().name
    store.close()
    steps = dict(zip(promised.values(), (1, 2, 2), strict=True))
    seen: set[int] = set()
    for number, cut in enumerate(disk.cuts, 1):
        for seed in range(20 if is_full else 1):
            place = tmp_path / f"{number}-{seed}"
            place.mkdir()
            build(place, folder.stat().st_ino, cut, Random(1000 * number + seed))
            visible = sorted(path for path in place.iterdir() if not path.name.startswith("."))
            for path in visible:
                assert verify(path) == [], (number, seed)
                new, tree, files = store_of(place)
                new.load_state(path)
                assert (files.step, tree.data[CHUNK]) == (steps[path.name], steps[path.name])
            names = [path.name for path in visible]
            assert names == sorted(steps)[: len(names)]
            assert len(names) >= sum(at <= number for at in promised)
            seen.add(len(names))
    disk.close()
    assert seen == {0, 1, 2, 3}


def test_the_model_loses_what_was_not_flushed(tmp_path: Path) -> None:
    """A file is empty, a name may be missing: a save that flushed less would not pass."""
    folder = tmp_path / "it"
    folder.mkdir()
    disk = Recording(folder)
    (folder / "a").write_bytes(b"1")
    disk.note()
    disk.sync_file(folder / "a")
    disk.sync_folder(folder)
    found: list[set[tuple[str, bytes]]] = []
    for number, cut in enumerate(disk.cuts):
        found.append(set())
        for seed in range(20):
            place = tmp_path / f"{number}-{seed}"
            place.mkdir()
            build(place, folder.stat().st_ino, cut, Random(seed))
            found[-1] |= {(path.name, path.read_bytes()) for path in place.iterdir()} or {("", b"")}
    disk.close()
    assert found == [{("", b""), ("a", b"")}, {("", b""), ("a", b"1")}, {("a", b"1")}]


@pytest.mark.parametrize("left_out", ["file", "folder", "pack", "pack of a worker"])
def test_a_save_that_flushed_less_would_be_found(
    tmp_path: Path, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first test shows, it shows because everything is flushed."""
    if left_out == "pack of a worker":
        monkeypatch.setattr("holdfast.snapshots.saving.WORKER_BYTES", 1)

    class Careless(Recording):
        def _flush(self, fd: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
            is_pack = os.fstat(fd).st_size > CHUNK
            if {"fold": is_folder, "file": not is_folder and not is_pack, "pack": is_pack}[left_out[:4]]:
                self.note()
            else:
                super()._flush(fd)

    folder = tmp_path / "states"
    folder.mkdir()
    disk = Careless(folder)
    store, _, _ = store_of(folder, disk)
    with store:
        store.save_state()
    faults = 0
    for seed in range(40):
        place = tmp_path / str(seed)
        place.mkdir()
        build(place, folder.stat().st_ino, disk.cuts[-1], Random(seed))
        visible = [path for path in place.iterdir() if not path.name.startswith(".")]
        faults += not visible or not (visible[0] / ".snap/manifest.json").exists() or verify(visible[0]) != []
    disk.close()
    assert faults > 0
