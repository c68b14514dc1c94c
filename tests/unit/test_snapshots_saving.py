"""Saving and loading the state of many objects: what is promised, and what is refused."""

import logging
import os
import shutil
import stat
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.disk import Disk
from holdfast.errors import ConflictError, DamagedError, InvalidError, NotFoundError, UnavailableError
from holdfast.snapshots import capture, packs
from holdfast.snapshots.manifest import read_manifest
from holdfast.snapshots.reading import is_being_read, reading, verify
from holdfast.snapshots.removal import is_valid
from holdfast.snapshots.saving import PersistentStateMixin, StateStore, load_pickle, save_pickle
from holdfast.snapshots.tree import encode

CHUNK = 65_536


class Held:
    """An object of the new protocol that holds one tree."""

    def __init__(self, tree: Any = None) -> None:
        self.tree = tree

    def get_state(self) -> Any:
        """Return it."""
        return self.tree

    def set_state(self, tree: Any) -> None:
        """Take it."""
        self.tree = tree


class Written(PersistentStateMixin):
    """An object of the old protocol that writes some files."""

    def __init__(self, **files: bytes) -> None:
        self.files = files

    def save_state(self, path: Path) -> None:
        """Write a folder."""
        (path / "empty").mkdir(parents=True)
        for name, data in self.files.items():
            (path / name).write_bytes(data)

    def load_state(self, path: Path) -> None:
        """Read it."""
        self.files = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def store_of(folder: Path, **objects: object) -> StateStore:
    """Return a store with some objects."""
    store = StateStore(folder)
    for name, state in objects.items():
        store.register(name, state)
    return store


def names(folder: Path) -> list[str]:
    """Return what can be seen in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks")


# -- a snapshot --


def test_both_protocols_in_one_snapshot(tmp_path: Path) -> None:
    """Each object has its entry; all comes back; everything verifies, and the time of the folder is the manifest's."""
    tree, written = Held({"w": np.arange(100_000), "n": 1}), Written(a=b"1", b=b"")
    with store_of(tmp_path, tree=tree, old=written) as store:
        path = store.save_state(metrics={"loss": 0.5, "step": 3}, attached={"variables": {"head": "x"}})
        tree.tree, written.files = None, {}
        store.load_state(path)
    assert tree.tree["n"] == 1
    assert (tree.tree["w"] == np.arange(100_000)).all()
    assert written.files == {"a": b"1", "b": b""}
    assert names(path) == [".snap", "old", "tree"]
    assert verify(path) == []
    manifest = read_manifest(path)
    assert dict(manifest.metrics) == {"loss": 0.5, "step": 3}
    assert dict(manifest.attached) == {"variables": {"head": "x"}}
    assert path.stat().st_mtime_ns == manifest.created_at_ns
    assert manifest.folders == ("old", "old/empty")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_the_name_is_of_the_moment_of_the_capture(tmp_path: Path) -> None:
    """In local time; two snapshots of one instant are a nanosecond apart."""
    store = StateStore(tmp_path, "%Y-%m-%d %H.%M.%S", clock=lambda: 1_700_000_000_123_456_789)
    store.register("a", Held(1))
    path = store.save_state()
    assert path.name == time.strftime("%Y-%m-%d %H.%M.%S", time.localtime(1_700_000_000))
    store.state_name_format = "second"
    created = [read_manifest(each).created_at_ns for each in (path, store.save_state())]
    assert created == [1_700_000_000_123_456_789, 1_700_000_000_123_456_790]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc", "a\0b", "x" * 201, 1])
def test_a_name_that_is_none_of_a_file_is_refused(tmp_path: Path, name: Any) -> None:
    """Or that could lead elsewhere, or is reserved."""
    with pytest.raises(InvalidError, match="an object cannot be called"):
        StateStore(tmp_path).register(name, Held())


@pytest.mark.parametrize("name", ["", "..", ".hidden", "%Y/%m", "/etc", "x" * 201])
def test_a_format_that_names_no_folder_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    """When it is used; nothing is left of the save."""
    with pytest.raises(InvalidError, match="a snapshot cannot be called"):
        StateStore(tmp_path, name).save_state()
    assert list(tmp_path.iterdir()) == []


def test_an_object_of_neither_protocol_is_refused(tmp_path: Path) -> None:
    """When it is registered, not when it is saved."""
    with pytest.raises(InvalidError, match="get_state and set_state are expected, or save_state and load_state"):
        StateStore(tmp_path).register("a", object())


def test_metrics_and_attachments_are_json(tmp_path: Path) -> None:
    """What would come back as something else is refused, and nothing is left of the save."""
    store = store_of(tmp_path, a=Held(1))
    for metrics in ({"a": float("nan")}, {"a": "1"}, {"a": True}, {1: 1.0}):
        with pytest.raises(InvalidError, match="finite numbers by name"):
            store.save_state(metrics=metrics)  # pyright: ignore[reportArgumentType]
    for attached in ({"a": (1, 2)}, {"a": object()}, {1: 2}, {"a": float("inf")}):
        with pytest.raises(InvalidError, match="JSON by name"):
            store.save_state(attached=attached)  # pyright: ignore[reportArgumentType]
    assert names(tmp_path) == []


class Wild(PersistentStateMixin):
    """An object that writes whatever it is told to."""

    def __init__(self, write: Any) -> None:
        self.write = write

    def save_state(self, path: Path) -> None:
        """Do so."""
        self.write(path)

    def load_state(self, path: Path) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: path.symlink_to("/etc/passwd"), "no plain file or folder"),
        (os.mkfifo, "no plain file or folder"),
        (lambda path: (path.mkdir(), (path / "link").symlink_to("..")), "no plain file or folder"),
        (lambda path: path.with_name("first").write_bytes(b"mine"), "which is another object's"),
        (lambda path: path.with_name("tree").write_bytes(b"mine"), "which is another object's"),
        (lambda path: path.with_name(".snap").mkdir(), "which begins with a dot"),
    ],
    ids=["link", "pipe", "link inside", "other file", "other tree", "reserved"],
)
def test_an_object_that_writes_what_is_not_its_own_is_refused(tmp_path: Path, write: Any, message: str) -> None:
    """And nothing is left of the save."""
    first = Wild(lambda path: path.write_bytes(b"first"))
    store = store_of(tmp_path, tree=Held(1), first=first, second=Wild(write))
    with pytest.raises(InvalidError, match=message):
        store.save_state()
    assert names(tmp_path) == []


def test_an_object_may_write_several_files_beside_each_other(tmp_path: Path) -> None:
    """With suffixes; an object that writes nothing has nothing, and all of it comes back."""
    both = Wild(lambda path: (path.with_suffix(".a").write_bytes(b"1"), path.with_suffix(".b").write_bytes(b"2")))
    path = store_of(tmp_path, both=both, none=Wild(lambda path: None)).save_state()
    assert verify(path) == []
    manifest = read_manifest(path)
    assert {name: each.entries for name, each in manifest.objects.items()} == {"both": ("both.a", "both.b"), "none": ()}


def test_a_name_that_is_taken_meanwhile_is_not_taken_over(tmp_path: Path) -> None:
    """Of two that want one name at once the later one fails, and what is there stays, even if that is empty."""
    store = StateStore(tmp_path / "states", "same")
    store.register("a", Wild(lambda path: (tmp_path / "states" / "same").mkdir()))
    with pytest.raises(FileExistsError, match="same"):
        store.save_state()
    assert names(tmp_path / "states") == ["same"]
    assert names(tmp_path / "states" / "same") == []


def test_an_object_that_raises_leaves_nothing_and_the_next_save_is_whole(tmp_path: Path) -> None:
    """Its own exception arrives."""
    tree = Held({"a": np.zeros(100_000)})

    def fail(path: Path) -> None:
        raise ZeroDivisionError

    wild = Wild(fail)
    store = store_of(tmp_path, tree=tree, wild=wild)
    with pytest.raises(ZeroDivisionError):
        store.save_state()
    assert names(tmp_path) == []
    wild.write = lambda path: None
    tree.tree["a"] += 1
    path = store.save_state()
    tree.tree = None
    store.load_state(path)
    assert tree.tree["a"].sum() == 100_000


# -- loading --


def test_pickles_are_saved_and_loaded(tmp_path: Path) -> None:
    """For the old protocol."""
    save_pickle({"a": {1, 2}}, tmp_path / "it")
    assert load_pickle(tmp_path / "it") == {"a": {1, 2}}


def test_a_snapshot_that_lacks_a_registered_object_is_not_loaded_in_part(tmp_path: Path) -> None:
    """Nothing is applied; objects that are not registered do not matter."""
    path = store_of(tmp_path, a=Held(1), b=Held(2)).save_state()
    held, other = Held(), Held("untouched")
    with pytest.raises(NotFoundError, match=r"has no object 'c'; it has \['a', 'b'\]"):
        store_of(tmp_path, a=other, c=Held()).load_state(path)
    assert other.tree == "untouched"
    store_of(tmp_path, b=held).load_state(path)
    assert held.tree == 2


def test_all_is_verified_before_the_first_object_gets_its_state(tmp_path: Path) -> None:
    """Damage in the last one keeps the first one as it was."""
    path = store_of(tmp_path, a=Held(1), b=Written(x=b"data")).save_state()
    (path / "b" / "x").write_bytes(b"daTa")
    first = Held("untouched")
    with pytest.raises(DamagedError, match="'b/x' does not hold what was written") as caught:
        store_of(tmp_path, a=first, b=Written()).load_state(path)
    assert caught.value.facts == {"path": str(path), "entry": "b/x"}
    assert first.tree == "untouched"


def test_an_object_that_fails_to_load_says_which_have_been(tmp_path: Path) -> None:
    """In a note on its own exception."""

    class Failing(Held):
        def set_state(self, tree: Any) -> None:
            raise ZeroDivisionError

    path = store_of(tmp_path, a=Held(1), b=Held(2), c=Held(3)).save_state()
    with pytest.raises(ZeroDivisionError) as caught:
        store_of(tmp_path, a=Held(), b=Failing(), c=Held()).load_state(path)
    assert caught.value.__notes__ == [f"while 'b' was loaded from {str(path)!r}; loaded before it: 'a'"]


class Versioned(Held):
    """An object whose state had another form once."""

    state_version = 3

    def migrate_state(self, tree: Any, from_version: int) -> Any:
        """Say where it came from."""
        return [tree, from_version]


def test_older_versions_are_migrated_and_newer_ones_refused(tmp_path: Path) -> None:
    """By name; without a `migrate_state` an older one is refused too."""
    path = store_of(tmp_path, a=Held("one")).save_state()
    new = Versioned()
    with store_of(tmp_path, a=new) as store:
        store.load_state(path)
        assert new.tree == ["one", 1]
        path = store.save_state()
    old = Held("untouched")
    with pytest.raises(InvalidError, match="saved in version 3, and what is registered is version 1: update it"):
        store_of(tmp_path, a=old).load_state(path)
    old.state_version = 4  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InvalidError, match="version 4 without migrate_state"):
        store_of(tmp_path, a=old).load_state(path)
    assert old.tree == "untouched"


def test_an_object_that_changed_its_protocol_is_refused_by_name(tmp_path: Path) -> None:
    """The other protocol would not know what to do with it."""
    path = store_of(tmp_path, a=Held(1), b=Written()).save_state()
    with pytest.raises(InvalidError, match="object 'a' was saved by get_state and set_state"):
        store_of(tmp_path, a=Written()).load_state(path)
    with pytest.raises(InvalidError, match="object 'b' was saved by save_state and load_state"):
        store_of(tmp_path, b=Held()).load_state(path)


def test_a_migration_that_fails_is_no_damage_and_comes_before_any_object_is_touched(tmp_path: Path) -> None:
    """Whatever it raises: the snapshot stays the latest."""

    class Failing(Versioned):
        def migrate_state(self, tree: Any, from_version: int) -> Any:
            raise DamagedError("as if")

    path = store_of(tmp_path, a=Held(1), b=Held(2)).save_state()
    first = Held("untouched")
    with pytest.raises(DamagedError, match="as if"):
        store_of(tmp_path, a=first, b=Failing()).load_state(path)
    with pytest.raises(DamagedError, match="as if"):
        store_of(tmp_path, a=first, b=Failing()).load_latest()
    assert first.tree == "untouched"
    assert verify(path) == []


@pytest.mark.parametrize("version", [-1, 2**63, True, "1"])
def test_a_version_that_no_snapshot_can_have_is_refused(tmp_path: Path, version: Any) -> None:
    """By name, and when it is saved."""
    held = Held(1)
    held.state_version = version  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InvalidError, match="the state_version of 'a' cannot be"):
        store_of(tmp_path, a=held).save_state()


def test_folders_that_are_too_deep_are_refused(tmp_path: Path) -> None:
    """Those that could not be loaded."""

    def dig(levels: int) -> Any:
        return lambda path: os.makedirs(path / "/".join("d" * levels))

    wild = Wild(dig(99))
    store = store_of(tmp_path, o=wild)
    assert verify(store.save_state()) == []
    wild.write = dig(100)
    with pytest.raises(InvalidError, match=r"'o/d/.* is no place for an object's files: .*at most 100 parts"):
        store.save_state()


def test_a_directory_without_a_manifest_is_loaded_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As older stores left them."""
    (tmp_path / "old.state" / "a").mkdir(parents=True)
    (tmp_path / "old.state" / "a" / "x").write_bytes(b"1")
    written = Written()
    with caplog.at_level(logging.WARNING):
        store_of(tmp_path, a=written).load_state(tmp_path / "old.state")
    assert written.files == {"x": b"1"}
    assert [record.message for record in caplog.records] == ["snapshot.not_verified"]


def test_the_latest_that_is_whole_is_loaded_and_damaged_ones_are_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are kept under another name, and said; by the manifest's time, not by the name or the order of writing."""
    held = Held()
    store = StateStore(tmp_path)
    store.register("a", held)
    assert store.load_latest() is None
    for number, name in enumerate(["z", "y", "x"]):
        held.tree, store.state_name_format = number, name
        store.save_state()
    (tmp_path / "x" / "a").write_bytes(b"7")
    shutil.copytree(tmp_path / "y", tmp_path / "copied", copy_function=shutil.copy)
    os.utime(tmp_path / "z")
    (tmp_path / "no snapshot").mkdir()
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert store.load_latest() == tmp_path / "y"
    assert held.tree == 1
    assert [record.message for record in caplog.records] == ["snapshot.set_aside"]
    assert [name[:7] for name in names(tmp_path)] == [".bad-x-", "copied", "file", "no snap", "y", "z"]
    assert names(tmp_path / names(tmp_path)[0]) == [".snap", "a"]


def test_a_newer_format_is_refused_by_name_and_not_set_aside(tmp_path: Path) -> None:
    """Going back to an older snapshot in silence would lose what the newer one has."""
    from blake3 import blake3

    store = store_of(tmp_path, a=Held(1))
    place = store.save_state() / ".snap" / "manifest.json"
    rest = place.read_bytes().split(b"\n", 1)[1].replace(b'"format": 1', b'"format": 2')
    place.write_bytes(b'{"blake3": "%s",\n' % blake3(rest).hexdigest().encode() + rest)
    with pytest.raises(InvalidError, match="format 2, and this release reads formats up to 1: update Holdfast"):
        store.load_latest()
    assert len(names(tmp_path)) == 1


def test_nobody_removes_what_is_being_read(tmp_path: Path) -> None:
    """Readers share a lock beside the snapshot; nothing is written in it."""
    path = store_of(tmp_path, a=Held(1)).save_state()
    assert not is_being_read(path)
    with reading(path), reading(path):
        assert is_being_read(path)
    assert not is_being_read(path)
    assert verify(path) == []
    with pytest.raises(FileNotFoundError), reading(tmp_path / "nothing"):
        pass


# -- only what changed --


def packs_of(path: Path) -> dict[str, int]:
    """Return the inode of each pack of a snapshot."""
    return {pack.name: pack.stat().st_ino for pack in sorted((path / ".snap" / "packs").iterdir())}


def test_what_did_not_change_is_shared_by_hard_links(tmp_path: Path) -> None:
    """Packs, skeletons, and files that objects write anew each time; what changed is new, in a pack of its own."""
    tree, written = Held({"w": np.zeros(40 * CHUNK, "u1")}), Written(same=b"s" * 9, other=b"1")
    store = store_of(tmp_path, tree=tree, old=written)
    first = store.save_state()
    tree.tree["w"][5 * CHUNK] = 1
    written.files["other"] = b"2"
    second = store.save_state()
    assert (first / "tree").stat().st_ino == (second / "tree").stat().st_ino
    assert (first / "old" / "same").stat().st_ino == (second / "old" / "same").stat().st_ino
    assert (first / "old" / "other").stat().st_ino != (second / "old" / "other").stat().st_ino
    (shared,) = packs_of(first).items()
    assert shared in packs_of(second).items()
    assert sorted(pack.slots for pack in read_manifest(second).packs) == [1, 40]
    shutil.rmtree(first)
    assert verify(second) == []


def test_what_was_loaded_is_shared_by_the_next_save(tmp_path: Path) -> None:
    """Also in another process: a resumed run does not write everything again."""
    tree = Held({"w": np.arange(100_000), "x": np.zeros(CHUNK, "u1")})
    first = store_of(tmp_path, tree=tree).save_state()
    tree.tree = None
    store = store_of(tmp_path, tree=tree)
    assert store.load_latest() == first
    tree.tree["x"][0] = 1
    second = store.save_state()
    assert packs_of(first).items() <= packs_of(second).items()
    assert sorted(pack.slots for pack in read_manifest(second).packs) == [1, 14]


def test_a_pack_that_changed_or_went_is_written_again(tmp_path: Path) -> None:
    """The next snapshot is whole, whatever happened to the one before."""
    tree = Held({"w": np.arange(100_000)})
    store = store_of(tmp_path, tree=tree)
    first = store.save_state()
    (pack,) = (first / ".snap" / "packs").iterdir()
    with pack.open("r+b") as file:
        file.write(b"x")
    second = store.save_state()
    assert [fault.entry for fault in verify(first)] == [str(pack.relative_to(first))]
    assert verify(second) == []
    shutil.rmtree(second)
    assert verify(store.save_state()) == []


def test_packs_stay_few_and_at_least_half_needed(tmp_path: Path) -> None:
    """However long the chain; disk use is bounded by what is saved."""
    random, tree = Random(1), Held({"w": np.zeros(64 * CHUNK, "u1")})
    store = store_of(tmp_path, tree=tree)
    for _ in range(60):
        tree.tree["w"][random.randrange(64) * CHUNK] += 1
        path = store.save_state()
        packs_now = read_manifest(path).packs
        assert len(packs_now) <= 24
        assert sum(pack.slots for pack in packs_now) <= 2 * 64 + 2
        for old in tmp_path.glob("*.state"):
            if old != path:
                shutil.rmtree(old)
    assert verify(path) == []


def test_a_pack_of_which_most_is_not_needed_is_not_shared(tmp_path: Path) -> None:
    """What is needed of it is written again with what changed."""
    tree, store = Held({"w": np.zeros(10 * CHUNK, "u1")}), StateStore(tmp_path)
    store.register("tree", tree)
    found: list[list[int]] = []
    for changed in (range(10), range(6), range(5, 6)):
        for chunk in changed:
            tree.tree["w"][chunk * CHUNK] += 1
        path = store.save_state()
        found.append(sorted(pack.slots for pack in read_manifest(path).packs))
    assert found == [[10], [6, 10], [5, 6]]
    assert verify(path) == []


arrays_of_chunks = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 255)), min_size=1, max_size=4
)


@settings(max_examples=15)
@given(st.lists(st.tuples(arrays_of_chunks, st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_each_of_a_chain_restores_bit_for_bit_whatever_else_is_removed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[list[tuple[str, int, int]], bool, bool]]
) -> None:
    """Arrays change, grow and come and go; some snapshots are removed, and some stores begin anew by loading."""
    folder = tmp_path_factory.mktemp("chain")
    held, expected = Held({}), dict[Path, dict[str, bytes]]()
    store = store_of(folder, tree=held)
    for changes, is_removed, is_loaded in steps:
        for name, at, value in changes:
            found = held.tree.get(name)
            if found is None or at == 5:
                held.tree[name] = np.full(value * 1000, value, "u1")
            elif len(found):
                found[(at * CHUNK) % len(found)] = value
        path = store.save_state()
        expected[path] = {name: data.tobytes() for name, data in held.tree.items()}
        if is_removed:
            gone = next(iter(expected))
            shutil.rmtree(gone)
            del expected[gone]
        if is_loaded and expected:
            held.tree = None
            store = store_of(folder, tree=held)
            assert store.load_latest() == list(expected)[-1]
    store.close()
    for path, tree in expected.items():
        assert verify(path) == []
        store_of(folder, tree=held).load_state(path)
        assert {name: data.tobytes() for name, data in held.tree.items()} == tree


# -- in the background --


@pytest.fixture(params=["thread", "worker"])
def store(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateStore]:
    """Return a store that writes packs in a thread, or all of them in a worker process."""
    if request.param == "worker":
        monkeypatch.setattr("holdfast.snapshots.saving.WORKER_BYTES", 1)
    with StateStore(tmp_path) as found:
        yield found


def test_what_is_saved_is_of_one_moment_while_the_state_changes(store: StateStore) -> None:
    """All of it: what changes after the capture is in the next snapshot."""
    tree = Held({"a": np.zeros(60 * CHUNK, "u1"), "b": np.zeros(60 * CHUNK, "u1")})
    store.register("tree", tree)
    saves = []
    for number in range(1, 6):
        tree.tree["a"][:] = tree.tree["b"][:] = number
        saves.append(store.save_state_async())
        tree.tree["a"][:] = 255
    paths = [save.result() for save in saves]
    for number, path in enumerate(paths, 1):
        assert verify(path) == []
        store.load_state(path)
        assert (np.unique(tree.tree["a"]).tolist(), np.unique(tree.tree["b"]).tolist()) == ([number], [number])


def test_a_save_says_how_far_it_is(store: StateStore) -> None:
    """It is done when the snapshot is there, and keeps its result."""
    store.register("tree", Held({"a": np.zeros(CHUNK, "u1")}))
    save = store.save_state_async()
    path = save.result()
    assert (save.done(), save.progress(), save.exception(), save.result(0)) == (True, 1.0, None, path)
    assert save.stall_s > 0


class Failing(Disk):
    """Fails its next flush if told to, and says which files were flushed."""

    def __init__(self) -> None:
        self.is_failing = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def _flush(self, fd: int) -> None:
        self.may_go_on.wait()
        if self.is_failing:
            self.is_failing = False
            raise OSError(5, "as if")
        super()._flush(fd)


def test_an_error_in_the_background_surfaces_at_the_handle_and_at_the_next_save(tmp_path: Path) -> None:
    """So it is seen even if nobody asks the handle. After that, saving goes on."""
    disk = Failing()
    store = StateStore(tmp_path, disk=disk)
    store.register("tree", Held({"a": np.zeros(CHUNK, "u1")}))
    first = store.save_state()
    disk.is_failing = True
    save = store.save_state_async()
    with pytest.raises(UnavailableError, match="the disk failed"):
        save.result()
    with pytest.raises(UnavailableError, match="the disk failed"):
        store.save_state()
    second = store.save_state()
    assert names(tmp_path) == [first.name, second.name]
    disk.is_failing = True
    store.save_state_async()
    with pytest.raises(UnavailableError, match="the disk failed"):
        store.close()
    with pytest.raises(ConflictError, match="is closed"):
        store.save_state()


def test_one_save_is_in_flight_and_its_waiting_can_be_bounded(tmp_path: Path) -> None:
    """The next one waits for it."""
    disk = Failing()
    store = StateStore(tmp_path, disk=disk)
    store.register("a", Held(1))
    store.save_state()
    disk.may_go_on.clear()
    save = store.save_state_async()
    with pytest.raises(TimeoutError, match="not written after 0 s"):
        save.result(0)
    assert (save.done(), save.progress()) == (False, 0.0)
    other = threading.Thread(target=store.save_state)
    other.start()
    assert len(names(tmp_path)) == 2  # the first one, and what is being built
    disk.may_go_on.set()
    other.join()
    assert save.done()
    assert len(names(tmp_path)) == 3


def test_the_barrier_is_held_while_the_state_is_captured_and_not_while_it_is_written(tmp_path: Path) -> None:
    """Whatever it is; it is entered once for each save."""
    seen: list[str] = []
    lock = threading.Lock()

    @contextmanager
    def barrier() -> Iterator[None]:
        with lock:
            yield

    class Looking(Held):
        def get_state(self) -> Any:
            seen.append(f"captured {lock.locked()}")
            return 1

    class Noting(Disk):
        def _rename_new(self, source: Path, target: Path) -> None:
            seen.append(f"renamed {lock.locked()}")
            super()._rename_new(source, target)

    class Again:
        def __enter__(self) -> None:
            self.inner = barrier()
            self.inner.__enter__()

        def __exit__(self, *rest: object) -> None:
            self.inner.__exit__(None, None, None)

    store = StateStore(tmp_path, barrier=Again(), disk=Noting())
    store.register("a", Looking())
    store.save_state()
    assert seen == ["captured True", "renamed False"]


def test_a_worker_that_died_fails_one_save_and_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so; nothing of that save can be seen."""
    monkeypatch.setattr("holdfast.snapshots.saving.WORKER_BYTES", 1)
    tree = Held({"a": np.zeros(4 * CHUNK, "u1")})
    with store_of(tmp_path, tree=tree) as store:
        first = store.save_state()
        worker = store._worker  # pyright: ignore[reportPrivateUsage]
        assert worker is not None
        os.kill(worker.pid, 9)
        tree.tree["a"][:] = 1
        with pytest.raises(UnavailableError, match=f"{worker.pid}, died; save again"):
            store.save_state()
        assert names(tmp_path) == [first.name]
        assert verify(store.save_state()) == []


def test_a_worker_says_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a thread would: it names the file, which only this process knows by name."""
    monkeypatch.setattr("holdfast.snapshots.saving.WORKER_BYTES", 1)

    class Closed(Disk):
        def open_blocks(self, path: Any, **options: Any) -> Any:
            blocks = super().open_blocks(path, **options)
            if options.get("create"):
                os.dup2(os.open(path, os.O_RDONLY), blocks.fd)  # writing to it fails
            return blocks

    store = StateStore(tmp_path, disk=Closed())
    store.register("tree", Held({"a": np.zeros(4 * CHUNK, "u1")}))
    with store, pytest.raises(UnavailableError, match=rf"could not write '{tmp_path}/.*/packs/.*EBADF") as caught:
        store.save_state()
    assert caught.value.facts["errno"] == "EBADF"
    assert names(tmp_path) == []


@pytest.mark.parametrize("size, is_read", [(2**20, False), (2**19, True)])
def test_a_cleanup_does_not_read_what_this_process_has_just_saved(tmp_path: Path, size: int, is_read: bool) -> None:
    """If it is a mebibyte or more: so damage that left size and time of a file as they were is not seen there."""
    path = store_of(tmp_path, tree=Held({"a": np.ones(size, "u1")})).save_state()
    (pack,) = (path / ".snap" / "packs").iterdir()
    status = pack.stat()
    with pack.open("r+b") as file:
        file.write(b"\2")
    os.utime(pack, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert is_valid(path) is not is_read
    assert len(verify(path)) == 1


def test_a_forked_child_saves_on_its_own(tmp_path: Path) -> None:
    """It has memory of its own: what the parent saves next is the parent's, also what it had captured before."""
    tree = Held({"a": np.ones(40 * CHUNK, "u1")})
    store = store_of(tmp_path, tree=tree)
    first = store.save_state()
    child = os.fork()
    if not child:
        tree.tree["a"][:] = 2
        store.state_name_format = "of the child"
        path = store.save_state()
        os._exit(0 if verify(path) == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    shutil.rmtree(first)  # so that all of it is written from memory
    tree.tree["a"][5] = 3
    store.load_state(store.save_state())
    assert np.unique(tree.tree["a"]).tolist() == [1, 3]
    store.load_state(tmp_path / "of the child")
    assert np.unique(tree.tree["a"]).tolist() == [2]


def test_staging_is_told_from_state_by_content_alone(tmp_path: Path) -> None:
    """An array that is replaced by another one of the same form, or changed and changed back, is saved as it is."""
    tree = Held({"a": np.zeros(40 * CHUNK, "u1")})
    store = store_of(tmp_path, tree=tree)
    first = store.save_state()
    tree.tree = {"a": np.zeros(40 * CHUNK, "u1")}
    second = store.save_state()
    tree.tree["a"][20 * CHUNK + 7] = 9
    third = store.save_state()
    tree.tree["a"][20 * CHUNK + 7] = 0
    fourth = store.save_state()
    assert packs_of(first) == packs_of(second)
    assert len(packs_of(third)) == 2
    assert verify(fourth) == []
    store.load_state(fourth)
    assert not tree.tree["a"].any()
    store.load_state(third)
    assert np.flatnonzero(tree.tree["a"]).tolist() == [20 * CHUNK + 7]


def test_what_changes_while_it_is_copied_is_seen_by_the_next_save() -> None:
    """By native code, that is, after the block was looked at: what counts is what was copied."""

    class Racing(capture.Tagger):
        is_on = False

        def tag(self, data: memoryview) -> bytes:
            found = super().tag(data)
            if self.is_on and data.obj is state:
                state[0] = 3
            return found

    staging, racing = capture.Staging(), Racing()
    staging.tagger = racing
    state = bytearray(capture.BLOCK_BYTES)

    def captured() -> int:
        staging.capture({"a": encode(state, name="a")})
        for _ in staging.copy_left():
            pass
        (span,) = staging.spans.values()
        for start, size in span.untagged.items():
            span.tags[start] = racing.tag(staging.memory[start : start + size])
        span.untagged.clear()
        return staging.memory[0]

    found = [captured()]
    state[0], racing.is_on = 1, True
    found.append(captured())
    state[0], racing.is_on = 1, False  # as it was when it was looked at
    found.append(captured())
    assert found == [0, 3, 1]


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_while_room_is_made_leaves_no_two_objects_in_one_place(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is captured next is what it was."""
    staging, calls, fitted = capture.Staging(), [0], capture._fitted  # pyright: ignore[reportPrivateUsage]

    def interrupted(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        return fitted(*given)

    def captured(**sizes: int) -> dict[str, bytes]:
        staging.capture({name: encode(name.encode() * size, name=name) for name, size in sizes.items()})
        for _ in staging.copy_left():
            pass
        first = {name: staging.spans[name].first * CHUNK for name in sizes}
        return {name: bytes(staging.memory[first[name] : first[name] + size]) for name, size in sizes.items()}

    captured(a=2 * CHUNK, b=2 * CHUNK)
    monkeypatch.setattr(capture, "_fitted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        captured(a=4 * CHUNK, b=2 * CHUNK)
    assert captured(a=4 * CHUNK, b=2 * CHUNK) == {"a": b"a" * 4 * CHUNK, "b": b"b" * 2 * CHUNK}


def test_what_a_leaf_leaves_over_holds_nothing_of_an_earlier_state(tmp_path: Path) -> None:
    """A shorter array in the place of a longer one: the rest of its chunk is zeros, in memory and on the disk."""
    tree = Held({"a": np.full(CHUNK + 5000, 7, "u1")})
    store = store_of(tmp_path, tree=tree)
    store.save_state()
    tree.tree = {"a": np.full(CHUNK + 1, 8, "u1")}
    path = store.save_state()
    data = b"".join(pack.read_bytes() for pack in (path / ".snap" / "packs").iterdir())
    assert data[: 2 * CHUNK] == b"\x08" * (CHUNK + 1) + b"\0" * (CHUNK - 1)


def test_a_pack_is_written_in_runs_of_what_changed(tmp_path: Path) -> None:
    """Chunks that are far apart in memory follow each other in the file."""
    memory = memoryview(bytearray(os.urandom(8 * CHUNK)))
    work = packs.Work(chunks=[1, 2, 5, 7], known=[], blocks=[], key=bytes(16))
    with Disk().open_blocks(tmp_path / "pack", create=True) as blocks:
        done = packs.write_pack(memory, work, blocks, lambda size: None)
    assert done.slots == [0, 1, 2, 3]
    expected = b"".join(memory[chunk * CHUNK : (chunk + 1) * CHUNK] for chunk in (1, 2, 5, 7))
    assert (tmp_path / "pack").read_bytes()[: 4 * CHUNK] == expected
    assert (tmp_path / "pack").stat().st_size == 4 * CHUNK + 4096


def test_what_is_there_is_written_while_the_rest_is_copied(tmp_path: Path) -> None:
    """By a worker, and no further than that: what comes later is written as it will be."""
    pack, half = tmp_path / "pack", 200
    staging = capture.Staging()
    tree = encode({"a": np.full(2 * half * CHUNK, 1, "u1")}, name="a")
    staging.capture({"a": tree})
    work = packs.Work(
        chunks=list(range(2 * half)), known=[], blocks=[(0, 8 * CHUNK), (390 * CHUNK, 8 * CHUNK)], key=bytes(16)
    )

    def copied() -> Iterator[int]:
        staging.memory[: half * CHUNK] = bytes([1]) * half * CHUNK
        yield half * CHUNK
        while pack.stat().st_size < 128 * CHUNK:
            pass
        staging.memory[half * CHUNK :] = bytes([2]) * (len(staging.memory) - half * CHUNK)

    worker = packs.Worker()
    with Disk().open_blocks(pack, create=True) as blocks:
        done = worker.write_pack(staging, work, blocks, int, copied())
    worker.close()
    assert pack.read_bytes()[: 2 * half * CHUNK] == bytes([1]) * half * CHUNK + bytes([2]) * half * CHUNK
    digests = [blake3(bytes([content]) * CHUNK).digest() for content in (1, 2)]
    assert done.digests == [digests[0]] * half + [digests[1]] * half
    tagger = capture.Tagger(bytes(16))
    assert done.tags == [tagger.tag(memoryview(bytes([content]) * 8 * CHUNK)) for content in (1, 2)]


def test_a_large_leaf_is_copied_in_pieces_and_the_last_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as much as all before it."""
    staging = capture.Staging()
    data = os.urandom(2 * CHUNK)
    staging.capture({"a": encode([data * 6, data * 10], name="a")})
    monkeypatch.setattr(capture, "_FIRST_BYTES", 4 * CHUNK)
    told = [(end, bytes(staging.memory[:end])) for end in staging.copy_left()]
    assert told == [(size * CHUNK, (data * 16)[: size * CHUNK]) for size in (4, 8, 16)]
    assert staging.memory[: 32 * CHUNK] == data * 16


def test_a_worker_that_was_left_in_the_middle_has_ended(tmp_path: Path) -> None:
    """By Ctrl-C, say: it would answer the next question with this one's answer."""
    staging, worker = capture.Staging(), packs.Worker()
    staging.capture({"a": encode(bytes(400 * CHUNK), name="a")})
    work = packs.Work(chunks=list(range(400)), known=[], blocks=[], key=bytes(16))

    def interrupt(size: int) -> None:
        raise KeyboardInterrupt

    with Disk().open_blocks(tmp_path / "pack", create=True) as blocks, pytest.raises(KeyboardInterrupt):
        worker.write_pack(staging, work, blocks, interrupt, staging.copy_left())
    assert not worker.close.alive
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


class Once:
    """A barrier that cannot be left without being interrupted, once it is told."""

    is_on = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *rest: object) -> None:
        if self.is_on:
            self.is_on = False
            raise KeyboardInterrupt


def test_a_save_that_is_interrupted_while_a_worker_writes_harms_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there, and the next ones hold what they should."""
    monkeypatch.setattr("holdfast.snapshots.saving.WORKER_BYTES", 1)
    monkeypatch.setattr(capture, "_FIRST_BYTES", CHUNK)
    tree, barrier = Held({"a": np.zeros(128 * CHUNK, "u1")}), Once()
    with StateStore(tmp_path, barrier=barrier) as store:
        store.register("tree", tree)
        store.save_state()
        tree.tree["a"][:] = 1
        barrier.is_on = True
        with pytest.raises(KeyboardInterrupt):
            store.save_state()
        assert len(names(tmp_path)) == 1
        for content in (2, 3):
            tree.tree["a"][:] = content
            path = store.save_state()
            assert verify(path) == []
            store.load_state(path)
            assert np.unique(tree.tree["a"]).tolist() == [content]


def test_nobodys_memory_is_held_on_to_while_it_is_written(tmp_path: Path) -> None:
    """So an array may grow as soon as it is copied; and after a save that failed."""
    disk, grown = Failing(), array("d", [1.0]) * 20_000
    tree = Held({"a": grown})
    with StateStore(tmp_path, disk=disk) as store:
        store.register("tree", tree)
        store.save_state()
        disk.may_go_on.clear()
        save = store.save_state_async()
        try:
            grown.append(2.0)
            assert not save.done()
        finally:
            disk.may_go_on.set()
        store.load_state(save.result())
        assert len(tree.tree["a"]) == 20_000
        tree.tree = {"a": grown}
        store.register("wild", Wild(lambda path: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            store.save_state()
        grown.append(3.0)


def test_an_interrupt_while_the_background_begins_leaves_nothing_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is written all the same, and the next save comes after it."""
    store = store_of(tmp_path, a=Held(1))

    def start(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            store.save_state_async()
    store.save_state()
    assert [verify(tmp_path / name) for name in names(tmp_path)] == [[], []]


def is_in(thread: threading.Thread, function: str) -> bool:
    """Say whether a thread is in a function."""
    frame = sys._current_frames().get(thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
    return frame is not None and frame.f_code.co_name == function


def test_whoever_waits_while_the_store_is_closed_saves_no_more(tmp_path: Path) -> None:
    """It was closed before the turn came."""
    disk, seen, errors = Failing(), list[bool](), list[str]()

    class Looking(Held):
        def get_state(self) -> Any:
            seen.append(store._is_closed)  # pyright: ignore[reportPrivateUsage]
            return 1

    store = StateStore(tmp_path, disk=disk)
    store.register("a", Looking())

    def save() -> None:
        try:
            store.save_state()
        except ConflictError as exc:
            errors.append(exc.message)

    disk.may_go_on.clear()
    threads = [threading.Thread(target=target, daemon=True) for target in (save, store.close, save)]
    for thread, function in zip(threads, ("wait", "_in_turn", "_in_turn"), strict=True):
        thread.start()
        while not is_in(thread, function):
            pass
    disk.may_go_on.set()
    for thread in threads:
        thread.join()
    assert True not in seen
    assert [verify(tmp_path / name) for name in names(tmp_path)] == [[]] * len(seen)
    assert len(seen) + len(errors) == 2


def test_an_interrupt_at_any_call_leaves_a_store_that_others_can_use(tmp_path: Path) -> None:
    """Whichever thread comes next: what was saved by then is whole, and the next save succeeds."""
    store, paths = store_of(tmp_path, a=Held({"a": np.zeros(CHUNK, "u1")})), list[Path]()

    def is_interrupted(at: int) -> bool:
        count = 0

        def look(frame: FrameType, event: str, argument: object) -> None:
            nonlocal count
            if event in {"call", "c_return"} and frame.f_code.co_filename == StateStore.save_state.__code__.co_filename:
                count += 1
                if count == at:
                    sys.setprofile(None)
                    raise KeyboardInterrupt

        sys.setprofile(look)
        try:
            store.save_state_async().result()
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    at = 0
    while is_interrupted(at := at + 1):
        other = threading.Thread(target=lambda: paths.append(store.save_state()), daemon=True)
        other.start()
        other.join(20)
        assert not other.is_alive(), at
    assert len(paths) == at - 1 > 30
    assert all(verify(path) == [] for path in tmp_path.glob("*.state"))
    store.close()


def test_the_barrier_is_held_until_all_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is written meanwhile; and left if that fails."""
    monkeypatch.setattr("holdfast.snapshots.saving.WORKER_BYTES", 1)
    monkeypatch.setattr(capture, "_FIRST_BYTES", CHUNK)
    seen: list[tuple[bool, bool]] = []
    lock = threading.Lock()

    class Looking(Disk):
        fails = False

        def open_blocks(self, path: Any, **options: Any) -> Any:
            seen.append((lock.locked(), not store._staging.left))  # pyright: ignore[reportPrivateUsage]
            if self.fails:
                raise UnavailableError("as if")
            return super().open_blocks(path, **options)

        def _rename_new(self, source: Path, target: Path) -> None:
            seen.append((lock.locked(), not store._staging.left))  # pyright: ignore[reportPrivateUsage]
            super()._rename_new(source, target)

    tree = Held({"a": np.ones(128 * CHUNK, "u1")})
    disk = Looking()
    with StateStore(tmp_path, barrier=lock, disk=disk) as store:
        store.register("tree", tree)
        store.save_state()
        tree.tree["a"][:] = 2
        disk.fails = True
        with pytest.raises(UnavailableError, match="as if"):
            store.save_state()
        assert not lock.locked()
        disk.fails = False
        store.load_state(store.save_state())
        assert np.unique(tree.tree["a"]).tolist() == [2]
    assert seen[:3] == [(True, False), (False, True), (True, False)]
