"""What a store says, and does all the same, when something around it is not as it should be."""

import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.disk import Disk
from holdfast.errors import ConflictError, DamagedError, InvalidError, UnavailableError
from holdfast.snapshots.keepers import LatestStatesKeeper
from holdfast.snapshots.reading import reading, verify
from holdfast.snapshots.saving import PersistentStateMixin, StateStore
from tests.components.mounts import read_only, tmpfs

CHUNK = 65_536
SECOND = 10**9


class Tree:
    """A step, and some chunks."""

    def __init__(self, step: int = 0, chunks: int = 3) -> None:
        self.step, self.data = step, bytearray(chunks * CHUNK)

    def get_state(self) -> Any:
        """Return both."""
        return {"step": self.step, "data": self.data}

    def set_state(self, tree: Any) -> None:
        """Take both."""
        self.step, self.data = tree["step"], tree["data"]


def store_of(folder: Path, *, step: int = 0, **options: Any) -> tuple[StateStore, Tree]:
    """Return a store with one object."""
    store, tree = StateStore(folder, **options), Tree(step)
    store.register("tree", tree)
    return store, tree


def damage(path: Path) -> None:
    """Replace the skeleton: it may be shared."""
    (path / "tree").unlink()
    (path / "tree").write_bytes(b"{}")


# -- several objects --


def test_the_first_save_of_several_objects_with_arrays_succeeds(tmp_path: Path) -> None:
    """As does each later one."""
    store = StateStore(tmp_path)
    for name in "abc":
        store.register(name, Tree())
    assert [verify(store.save_state()) for _ in range(2)] == [[], []]


def test_an_object_whose_arrays_are_gone_since_it_was_loaded_is_saved(tmp_path: Path) -> None:
    """Nothing of what was stored of it is needed any more."""
    store, tree = store_of(tmp_path, step=1)
    store.save_state()
    store, tree = store_of(tmp_path)
    store.load_latest()
    tree.data = bytearray()
    path = store.save_state()
    assert verify(path) == []
    store.load_state(path)
    assert (tree.step, tree.data) == (1, b"")


# -- loading the latest --


def test_a_damaged_snapshot_that_somebody_reads_is_left_where_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before is loaded, and what is damaged is said."""
    store, tree = store_of(tmp_path, step=1)
    before = store.save_state()
    tree.step = 2
    damaged = store.save_state()
    damage(damaged)
    with reading(damaged), caplog.at_level(logging.WARNING):
        assert store.load_latest() == before
    assert [record.message for record in caplog.records] == ["snapshot.damaged"]
    assert caplog.records[0].__dict__["path"] == str(damaged)
    assert "'tree' has 2 bytes" in caplog.records[0].__dict__["reason"]
    assert damaged.exists()


def test_a_damaged_snapshot_is_set_aside_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The facts are the record's, not the message's."""
    store, _ = store_of(tmp_path)
    damaged = store.save_state()
    damage(damaged)
    with caplog.at_level(logging.WARNING):
        assert store.load_latest() is None
    (record,) = caplog.records
    assert record.message == "snapshot.set_aside"
    assert record.__dict__["path"] == str(damaged)
    assert (tmp_path / record.__dict__["aside"] / "tree").read_bytes() == b"{}"


def test_where_nothing_can_be_set_aside_the_one_before_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a file system that is read-only, say."""
    with tmpfs(tmp_path / "small", size_bytes=64 * CHUNK) as folder:
        store, tree = store_of(folder, step=1)
        before = store.save_state()
        tree.step = 2
        damage(store.save_state())
        store.close()
        with read_only(folder), caplog.at_level(logging.WARNING):
            store, tree = store_of(folder)
            assert store.load_latest() == before
            store.close()
    assert tree.step == 1
    assert [record.message for record in caplog.records] == ["snapshot.damaged"]


class Vanishing(Disk):
    """Somebody removes a snapshot when it is looked into."""

    gone = Path()

    def read(self, path: Any) -> bytes:
        """Find it there, and gone the next time."""
        found = super().read(path)
        if Path(path).is_relative_to(self.gone):
            shutil.rmtree(self.gone)
        return found


def test_a_snapshot_that_is_removed_meanwhile_is_not_the_latest(tmp_path: Path) -> None:
    """The one before is."""
    disk = Vanishing()
    store, _ = store_of(tmp_path, disk=disk)
    before = store.save_state()
    disk.gone = store.save_state()
    assert store.load_latest() == before


class Picky(Tree):
    """Takes nothing back."""

    def set_state(self, tree: Any) -> None:
        """Say that something of its own is damaged."""
        raise DamagedError("the vocabulary is damaged")


def test_what_an_object_says_of_itself_is_no_damage_of_the_snapshot(tmp_path: Path) -> None:
    """It is the caller's to see, and the snapshot stays."""
    path = store_of(tmp_path)[0].save_state()
    store = StateStore(tmp_path)
    store.register("tree", Picky())
    with pytest.raises(DamagedError, match="the vocabulary is damaged"):
        store.load_latest()
    assert verify(path) == []


def called_deep(function: Callable[[], object]) -> None:
    """Call a function from deeper and deeper, until there is no room."""
    function()
    called_deep(function)


def test_where_python_has_no_room_left_no_snapshot_is_set_aside(tmp_path: Path) -> None:
    """Who is called too deep learns that."""
    nested: Any = 1
    for _ in range(190):
        nested = (nested,)
    tree = Tree()
    tree.step = nested
    store = StateStore(tmp_path)
    store.register("tree", tree)
    path = store.save_state()
    with pytest.raises(RecursionError):
        called_deep(store.load_latest)
    assert verify(path) == []
    assert store.load_latest() == path


def test_a_tree_is_not_loaded_from_a_directory_without_a_manifest(tmp_path: Path) -> None:
    """No older program has saved one: this is said before any object is touched."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "linked").touch()
    store, linking = StateStore(tmp_path), Linking(tmp_path / "own")
    store.register("linked", linking)
    store.register("tree", Tree())
    with pytest.raises(InvalidError, match="has no manifest, so there is no state for set_state of 'tree'"):
        store.load_state(tmp_path / "x")
    assert not linking.is_loaded


# -- errors in the background --


class FailingOnce(Disk):
    """Fails one flush when it is told to."""

    is_failing = False

    def _flush(self, fd: int) -> None:
        if self.is_failing:
            self.is_failing = False
            raise OSError(5, "as if")
        super()._flush(fd)


def test_an_error_in_the_background_is_told_twice_though_something_is_loaded_in_between(tmp_path: Path) -> None:
    """At the handle and at the next save: loading neither raises it nor uses it up."""
    disk = FailingOnce()
    store, _ = store_of(tmp_path, disk=disk)
    path = store.save_state()
    disk.is_failing = True
    save = store.save_state_async()
    store.load_state(path)
    assert store.load_latest() == path
    with pytest.raises(UnavailableError, match="the disk failed"):
        save.result()
    with pytest.raises(UnavailableError, match="the disk failed"):
        store.save_state()
    assert verify(store.save_state()) == []


# -- what there is none of --


def test_where_no_worker_can_be_started_this_process_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And says so."""
    monkeypatch.setattr("holdfast.snapshots.saving.WORKER_BYTES", 1)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    store, tree = store_of(tmp_path / "states")
    with caplog.at_level(logging.WARNING):
        assert verify(store.save_state()) == []
        gc.collect()  # what others have left may else go meanwhile
        before = len(os.listdir("/proc/self/fd"))
        tree.data[0] = 1
        assert verify(store.save_state()) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert [record.message for record in caplog.records] == ["snapshot.no_worker"] * 2
    assert "no python" in caplog.records[0].__dict__["reason"]
    store.close()


WITHOUT_MEMORY = """
import resource, sys
from holdfast.snapshots.saving import StateStore
class Tree:
    data = bytearray(2 * 65_536)
    def get_state(self):
        return {"data": self.data}
    def set_state(self, tree):
        self.data = tree["data"]
tree, store = Tree(), StateStore(sys.argv[1])
store.register("tree", tree)
store.save_state()
tree.data = bytearray(400 * 2**20)
_, hard = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, hard))
for _ in range(2):
    try:
        store.save_state()
    except Exception as exc:
        print(type(exc).__name__, "memory" in str(exc))
tree.data = bytearray(b"x" * 3 * 65_536)
path = store.save_state()
tree.data = None
store.load_state(path)
print(tree.data == b"x" * 3 * 65_536)
"""


def test_without_memory_for_a_copy_a_save_says_so_and_the_next_smaller_one_succeeds(tmp_path: Path) -> None:
    """However often it failed."""
    env = {"PYTHONPATH": str(Path(__file__, "../../../src").resolve())}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY, str(tmp_path)], env=env, check=False, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["UnavailableError True"] * 2 + ["True"], done.stderr


LIMITED = """
import resource, sys
from pathlib import Path
from holdfast.snapshots.saving import PersistentStateMixin, StateStore
class Folders(PersistentStateMixin):
    def save_state(self, path):
        for number in range(300):
            (path / str(number)).mkdir(parents=True)
            (path / str(number) / "file").touch()
    def load_state(self, path):
        pass
class Tree:
    def get_state(self):
        return 1
    def set_state(self, tree):
        pass
store = StateStore(sys.argv[1])
store.register("folders", Folders())
for number in range(300):
    store.register(str(number), Tree())
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
store.load_state(store.save_state())
"""


def test_folders_and_objects_may_be_more_than_files_can_be_open(tmp_path: Path) -> None:
    """They are flushed some at a time."""
    env = {"PYTHONPATH": str(Path(__file__, "../../../src").resolve())}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], env=env, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- clocks --


class Clock:
    """Nanoseconds since 1970, as the test says."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        """Return them."""
        return self.now


@pytest.mark.parametrize("is_new", [False, True], ids=["the same store", "a new one"])
def test_after_a_clock_was_set_back_what_is_saved_is_the_latest(tmp_path: Path, is_new: bool) -> None:
    """Each save has a name and a time after that of all before; so the keeper of the latest leaves it alone."""
    clock = Clock(1_700_000_000 * SECOND)
    store, tree = store_of(tmp_path, clock=clock)
    for _ in range(2):
        store.save_state()
        clock.now += SECOND
    clock.now -= 3600 * SECOND
    if is_new:
        store.close()
        store, tree = store_of(tmp_path, clock=clock)
    keeper = LatestStatesKeeper(tmp_path, 2)
    for step in range(3):
        tree.step = step
        path = store.save_state()
        keeper.append(path)
        assert path not in keeper.cleanup()
        assert store.load_latest() == path == max(tmp_path.glob("*.state"))
        clock.now += SECOND


def test_after_a_snapshot_from_the_future_saving_goes_on(tmp_path: Path) -> None:
    """Another clock was wrong."""
    future = store_of(tmp_path, clock=Clock(4_000_000_000 * SECOND))[0].save_state()
    store, _ = store_of(tmp_path)
    assert store.load_latest() == future
    paths = [store.save_state() for _ in range(3)]
    assert paths == sorted(paths)
    assert store.load_latest() == paths[-1]


def test_a_name_that_the_clock_itself_chose_twice_is_an_error(tmp_path: Path) -> None:
    """As where the format has too few digits."""
    store, _ = store_of(tmp_path, clock=Clock(1_700_000_000 * SECOND), state_name_format="%Y")
    store.save_state()
    with pytest.raises(FileExistsError):
        store.save_state()


# -- an object that links --


class Linking(PersistentStateMixin):
    """Keeps its file elsewhere, and gives it another name in each snapshot."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def save_state(self, path: Path) -> None:
        """Link it."""
        os.link(self.file, path)

    is_loaded = False

    def load_state(self, path: Path) -> None:
        """Leave it."""
        self.is_loaded = True


def test_an_object_may_link_its_own_file_into_each_snapshot(tmp_path: Path) -> None:
    """It is shared anyway; nothing else is left in the snapshot."""
    (tmp_path / "own").write_bytes(b"1")
    store = StateStore(tmp_path / "states")
    store.register("linked", Linking(tmp_path / "own"))
    for _ in range(3):
        path = store.save_state()
        assert verify(path) == []
        assert sorted(os.listdir(path)) == [".snap", "linked"]


# -- one at a time --


class Nesting(Disk):
    """Calls something in the middle of a save, as a signal handler may be."""

    handler: Callable[[], object] | None = None

    def _write_at(self, fd: int, parts: list[memoryview], at: int) -> int:
        handler, self.handler = self.handler, None
        if handler is not None:
            handler()
        return super()._write_at(fd, parts, at)


def test_a_save_within_a_save_is_refused_and_the_outer_one_is_whole(tmp_path: Path) -> None:
    """Both would write to one memory."""
    disk = Nesting()
    store, tree = store_of(tmp_path, disk=disk)

    def nested() -> None:
        tree.data[0] = 2
        with pytest.raises(ConflictError, match="OnSignal"):
            store.save_state()

    disk.handler = nested
    tree.data[0] = 1
    path = store.save_state()
    assert verify(path) == []
    store.load_state(path)
    assert tree.data[0] == 1
