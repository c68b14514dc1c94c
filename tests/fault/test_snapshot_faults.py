"""What a save does when the disk fails or is full, and what reading does with damage and with lies."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from holdfast.disk import Disk, StrPath, translate
from holdfast.engine import Runner, begin_run, get_state
from holdfast.errors import DamagedError, HoldfastError, InvalidError, UnavailableError
from holdfast.plugins import StatefulPlugin
from holdfast.pod import Pod
from holdfast.snapshots.keepers import SpacedStatesKeeper
from holdfast.snapshots.manifest import MANIFEST, File, Manifest, Stored, read_manifest
from holdfast.snapshots.reading import verify
from holdfast.snapshots.saving import PersistentStateMixin, StateStore, load_pickle, save_pickle
from holdfast.testing import MemoryStore
from tests.components.mounts import tmpfs

CHUNK = 65_536


class Tree:
    """Three chunks and a small value."""

    def __init__(self, step: int = 0) -> None:
        self.step, self.data = step, bytearray(3 * CHUNK)

    def get_state(self) -> Any:
        """Return both."""
        return {"step": self.step, "data": self.data}

    def set_state(self, tree: Any) -> None:
        """Take both."""
        self.step, self.data = tree["step"], tree["data"]


class Files(PersistentStateMixin):
    """A folder with a file that changes and one that does not."""

    step = 0

    def save_state(self, path: Path) -> None:
        """Write both."""
        path.mkdir()
        save_pickle(self.step, path / "step")
        save_pickle("same", path / "same")

    def load_state(self, path: Path) -> None:
        """Read one."""
        self.step = load_pickle(path / "step")


def store_of(folder: Path, disk: Disk | None = None) -> tuple[StateStore, Tree, Files]:
    """Return a store with one object of each kind."""
    store, tree, files = StateStore(folder, disk=disk), Tree(), Files()
    store.register("tree", tree)
    store.register("files", files)
    return store, tree, files


def seen(folder: Path) -> list[str]:
    """Return the names of all snapshots, and of what was left of one."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks")


# -- the disk fails while saving --


LAST = 19
"""How many calls a save makes that `Faulty` knows."""


class Faulty(Disk):
    """Fails one of the calls that change something, or all from one on; and notes what is flushed after a failure."""

    def __init__(self, code: int, first: int, last: int) -> None:
        self.code, self.first, self.last, self.number = code, first, last, 0
        self.failed: dict[tuple[int, int], int] = {}

    def _step(self, call: str) -> None:
        self.number += 1
        if self.first <= self.number <= self.last:
            raise OSError(self.code, os.strerror(self.code), call)

    def _at_once(self, calls: Sequence[Callable[[], object]]) -> None:
        """One after the other, so that the calls have numbers."""
        for call in calls:
            call()

    def _flush(self, fd: int) -> None:
        status = os.fstat(fd)
        file = (status.st_dev, status.st_ino)
        assert file not in self.failed, "a file was flushed again after a flush of it had failed"
        try:
            self._step("flush")
        except OSError:
            if not os.path.samestat(status, os.stat(self.parent)):  # the one folder that outlives the save
                # Held, so that no other file gets its number: what failed once is known through all later saves.
                self.failed[file] = os.open(f"/proc/self/fd/{fd}", os.O_PATH)
            raise
        super()._flush(fd)

    def _write(self, fd: int, data: memoryview) -> int:
        self._step("write")
        return super()._write(fd, data)

    def _write_at(self, fd: int, parts: list[memoryview], at: int) -> int:
        self._step("write")
        return super()._write_at(fd, parts, at)

    def _mkdir(self, path: Path, mode: int) -> None:
        self._step("mkdir")
        super()._mkdir(path, mode)

    def _rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        super()._rename(source, target)

    def _rename_new(self, source: Path, target: Path) -> None:
        self._step("rename")
        super()._rename_new(source, target)

    parent = Path()


def attempt(store: StateStore) -> HoldfastError | None:
    """Save, and return what the disk had against it."""
    try:
        store.save_state()
    except UnavailableError as exc:
        return exc
    return None


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("is_lasting", [False, True], ids=["once", "from then on"])
def test_a_fault_at_any_call_of_a_save_leaves_the_old_snapshots_and_no_half_one(
    tmp_path: Path, code: int, is_lasting: bool, is_full: bool
) -> None:
    """An error, or success and the new one; no file is flushed again once that failed. The next save is whole."""
    outcomes: dict[int, bool] = {}
    is_each = is_full or (code == errno.EIO and not is_lasting)
    for first in range(1, LAST + 3) if is_each else (2, 9, LAST, LAST + 1):
        folder = tmp_path / str(first)
        disk = Faulty(code, 0, 0)
        disk.parent = folder
        store, tree, files = store_of(folder, disk)
        old = store.save_state()
        tree.step = files.step = 1
        tree.data[CHUNK] = 1
        disk.number, disk.first, disk.last = 0, first, 1000 if is_lasting else first
        error = attempt(store)
        outcomes[first] = error is None
        new = [path for path in folder.glob("*.state") if path != old]
        if error is None:
            assert len(new) == 1
        else:
            assert error.facts["errno"] == errno.errorcode[code]
            assert new == [] or first == LAST  # only the flush of the name itself comes after it
        disk.first = disk.last = 0
        last = store.save_state()
        for fd in disk.failed.values():
            os.close(fd)
        assert all(verify(path) == [] for path in folder.glob("*.state"))
        assert not list(folder.glob(".tmp-*"))
        store, tree, files = store_of(folder)
        store.load_state(last)
        assert (tree.step, tree.data[CHUNK], files.step) == (1, 1, 1)
    assert outcomes == {first: first > LAST for first in outcomes}


class Changing(Disk):
    """Lets a file change between two looks at it."""

    def read(self, path: StrPath) -> bytes:
        """Give what it holds by then."""
        return b"{}" if Path(path).name == "tree" else super().read(path)


def test_a_skeleton_that_changes_after_it_was_verified_is_refused(tmp_path: Path) -> None:
    """It is read a second time: what counts is what is handed out."""
    path = store_of(tmp_path)[0].save_state()
    store, tree, _ = store_of(tmp_path, Changing())
    with pytest.raises(DamagedError, match="'tree' changed while it was read"):
        store.load_state(path)
    assert tree.data == bytes(3 * CHUNK)


@pytest.mark.parametrize("entry", ["tree", "files/same"])
@pytest.mark.parametrize(
    "harm",
    [lambda file, data: file.write_bytes(data[::-1]), lambda file, data: cut(file, len(data) - 1)],
    ids=["time", "size"],
)
def test_a_file_whose_size_or_time_changed_is_not_shared(
    tmp_path: Path, entry: str, harm: Callable[[Path, bytes], object]
) -> None:
    """Then the old snapshot is damaged, and the new one whole: what it holds is written again."""
    store, _, _ = store_of(tmp_path)
    old = store.save_state()
    harm(old / entry, (old / entry).read_bytes())
    new = store.save_state()
    assert [fault.entry for fault in verify(old)] == [entry]
    assert verify(new) == []
    assert (old / entry).stat().st_ino != (new / entry).stat().st_ino


def cut(file: Path, size: int) -> None:
    """Let a file be shorter, and its time what it was."""
    found = file.stat()
    os.truncate(file, size)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


class NoLinks(Disk):
    """Links nothing, for one reason."""

    def __init__(self, code: int) -> None:
        self.code = code

    def _link(self, source: Path, target: Path) -> None:
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize(
    "code",
    [errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EACCES, errno.ENOENT],
    ids=errno.errorcode.get,
)
def test_where_nothing_can_be_linked_it_is_written_again(tmp_path: Path, code: int) -> None:
    """The file system has no links or no more of them, the folder went elsewhere, somebody removed the old one."""
    store, tree, _ = store_of(tmp_path, NoLinks(code))
    store.save_state()
    tree.data[0] = 1
    path = store.save_state()
    assert verify(path) == []
    assert all(file.stat().st_nlink == 1 for file in path.rglob("*") if file.is_file())
    store.load_state(path)
    assert tree.data == b"\1" + bytes(3 * CHUNK - 1)


class Cached(Disk):
    """Refuses to go around the cache when a file is read or written, as some file systems do."""

    refused = 0

    def _write_at(self, fd: int, parts: list[memoryview], at: int) -> int:
        self._refuse(fd)
        return super()._write_at(fd, parts, at)

    def _read_at(self, fd: int, parts: list[memoryview], at: int) -> int:
        self._refuse(fd)
        return super()._read_at(fd, parts, at)

    def _refuse(self, fd: int) -> None:
        import fcntl

        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            self.refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_where_the_cache_cannot_be_gone_around_it_is_used(tmp_path: Path) -> None:
    """For writing and for reading."""
    disk = Cached()
    store, tree, _ = store_of(tmp_path, disk)
    tree.data[5] = 5
    path = store.save_state()
    tree.data = bytearray()
    store.load_state(path)
    assert tree.data[5] == 5
    assert disk.refused == 5  # the pack when it is written, and each of four files when it is read


class Short(Disk):
    """Writes and reads less than it is asked to."""

    def _write_at(self, fd: int, parts: list[memoryview], at: int) -> int:
        return super()._write_at(fd, [parts[0][:4096]], at)

    def _read_at(self, fd: int, parts: list[memoryview], at: int) -> int:
        return super()._read_at(fd, [parts[0][:4096]], at)


def test_what_is_written_and_read_in_small_parts_is_whole(tmp_path: Path) -> None:
    """A system may do less than it was asked to."""
    store, tree, _ = store_of(tmp_path, Short())
    tree.data[:] = os.urandom(3 * CHUNK)
    data = bytes(tree.data)
    path = store.save_state()
    tree.data = bytearray()
    store.load_state(path)
    assert tree.data == data
    assert verify(path) == []


def test_a_full_disk_keeps_the_old_snapshots_and_the_next_save_succeeds_when_there_is_room(tmp_path: Path) -> None:
    """A real one: what was being built is gone, so that its room can be used."""
    with tmpfs(tmp_path / "small", size_bytes=12 * CHUNK) as folder:
        store, tree, _ = store_of(folder)
        old = store.save_state()
        (folder / "ballast").write_bytes(bytes(6 * CHUNK))
        tree.data[:] = b"\1" * (3 * CHUNK)
        with pytest.raises(UnavailableError, match=r"the disk is full; make room and try again \(\d+ bytes are free\)"):
            store.save_state()
        assert seen(folder) == [old.name, "ballast"]
        (folder / "ballast").unlink()
        new = store.save_state()
        assert (verify(old), verify(new)) == ([], [])


FILLING = """
import sys
from holdfast.snapshots.saving import StateStore
class Tree:
    def get_state(self):
        return {"data": bytearray(3 * 65_536)}
    def set_state(self, tree):
        pass
store = StateStore(sys.argv[1], "new")
store.register("tree", Tree())
try:
    store.save_state()
except Exception as exc:
    print(type(exc).__name__, exc.facts["errno"])
"""


@pytest.mark.parametrize(
    "fault, expected",
    [
        ("pwritev,pwritev2:error=ENOSPC:when=1", "UnavailableError ENOSPC"),
        ("fsync:error=EIO:when=2", "UnavailableError EIO"),
        ("renameat2:error=EIO:when=1", "UnavailableError EIO"),
        ("mkdir:error=EDQUOT:when=3", "UnavailableError EDQUOT"),
        ("renameat2:error=EINVAL:when=1", ""),
        ("fallocate,fadvise64:error=ENOSYS", ""),
    ],
)
def test_a_fault_of_the_system_itself_is_said_and_leaves_nothing(tmp_path: Path, fault: str, expected: str) -> None:
    """Injected below Python; what can be done without is done without."""
    from tests.components.strace import fail

    env = {"PYTHONPATH": str(Path(__file__, "../../../src").resolve())}
    done = fail([sys.executable, "-c", FILLING, str(tmp_path)], fault, env=env)
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr
    assert seen(tmp_path) == ([] if expected else ["new"])


# -- damage --


SAVED = b"\x09" + (bytes(range(256)) * (3 * 256))[1:]
"""What `make` has saved last."""


def make(folder: Path) -> Path:
    """Return a small snapshot that has a bit of everything."""
    store, tree, _ = store_of(folder)
    tree.data[:] = bytes(range(256)) * (3 * 256)
    store.save_state()
    tree.data[0] = 9
    return store.save_state(metrics={"loss": 0.5})


@pytest.mark.timeout(3600)  # for --full; a sample takes seconds
def test_a_bit_flipped_anywhere_is_found(tmp_path: Path, is_full: bool) -> None:
    """In the manifest, in what objects wrote, in packs: in what is needed of them and in what is not.

    Loading refuses it, and no object gets anything; or gives what was saved, where nothing of this snapshot changed.
    """
    path = make(tmp_path)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) == 6
    (spare,) = (path / pack.path for pack in read_manifest(path).packs if pack.slots == 3)  # its first is not needed
    flips = 0
    for file in files:
        data = file.read_bytes()
        step = (1 if is_full else 11) if len(data) < 4096 else (61 if is_full else 4999)  # a chunk has one hash
        for at in range(0, len(data), step):
            with file.open("r+b") as opened:
                opened.seek(at)
                opened.write(bytes([data[at] ^ 1 << at % 8]))
            faults = verify(path)
            assert [fault.entry for fault in faults] == [str(file.relative_to(path))], at
            store, tree, _ = store_of(tmp_path)
            if file == spare and at < CHUNK:
                store.load_state(path)
                assert tree.data == SAVED
            else:
                with pytest.raises(DamagedError):
                    store.load_state(path)
                assert tree.data == bytes(3 * CHUNK)
            with file.open("r+b") as opened:
                opened.seek(at)
                opened.write(data[at : at + 1])
            flips += 1
    assert flips > 130
    assert verify(path) == []


@pytest.mark.parametrize(
    "harm, fault",
    [
        (lambda path: (path / "tree").unlink(), "'tree' is missing"),
        (lambda path: (path / "files" / "same").unlink(), "'files/same' is missing"),
        (lambda path: shutil.rmtree(path / "files"), "'files' is missing, or no folder"),
        (lambda path: (path / "files" / "more").touch(), "'files/more' was not saved with the snapshot"),
        (lambda path: (path / "more").touch(), "'more' was not saved with the snapshot"),
        (lambda path: os.truncate(path / "tree", 3), "'tree' has 3 bytes, and not 55"),
        (lambda path: link(path / "tree"), "'tree' is no plain file"),
        (lambda path: link(path / "files"), "'files' is missing, or no folder"),
        (lambda path: shutil.rmtree(path / ".snap" / "packs"), "is missing"),
        (lambda path: os.truncate(next((path / ".snap" / "packs").iterdir()), 4096), "has 4096 bytes, and not"),
        (lambda path: replace(path / "files", touch), "'files' is missing, or no folder"),
        (lambda path: link(path / ".snap"), "it is no plain file in a folder of the snapshot"),
        (lambda path: link(path / ".snap" / "packs"), "'.snap/packs' is missing, or no folder"),
        (lambda path: link(path / MANIFEST), "it is no plain file in a folder of the snapshot"),
        (lambda path: replace(path / MANIFEST, Path.mkdir), "it is no plain file in a folder of the snapshot"),
        (lambda path: replace(path / MANIFEST, os.mkfifo), "it is no plain file in a folder of the snapshot"),
        (lambda path: (path / MANIFEST).write_bytes(b""), "it does not begin with its hash"),
        (lambda path: os.truncate(path / MANIFEST, 100), "its bytes do not have the hash that it begins with"),
    ],
)
def test_what_is_missing_or_was_not_there_is_found_and_nothing_of_it_loaded(
    tmp_path: Path, harm: Callable[[Path], object], fault: str
) -> None:
    """Each fault says which entry and what; loading refuses it for the same reason. The latest is the one before."""
    before = store_of(tmp_path / "states")[0].save_state()
    path = make(tmp_path / "states")
    _, shared, _ = sorted((tmp_path / "states").glob("*.state"))
    shutil.rmtree(shared)
    harm(path)
    assert fault in " ".join(map(str, verify(path)))
    store, tree, _ = store_of(tmp_path / "states")
    with pytest.raises(DamagedError, match="use another snapshot"):
        store.load_state(path)
    assert tree.data == bytes(3 * CHUNK)
    assert store.load_latest() == before


class Nested(PersistentStateMixin):
    """A folder in a folder."""

    def save_state(self, path: Path) -> None:
        """Write it."""
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_text("1")

    def load_state(self, path: Path) -> None:
        """Read it."""
        assert (path / "inner" / "file").read_text() == "1"


def test_a_folder_that_became_a_file_is_a_fault_with_all_that_was_in_it(tmp_path: Path) -> None:
    """Of the folders and files below, each."""
    store = StateStore(tmp_path)
    store.register("outer", Nested())
    before, path = store.save_state(), store.save_state()
    shutil.rmtree(path / "outer")
    (path / "outer").touch()
    assert list(map(str, verify(path))) == [
        "'outer' is missing, or no folder",
        "'outer/inner' is missing, or no folder",
        "'outer/inner/file' is no plain file",
    ]
    assert store.load_latest() == before


def link(path: Path) -> None:
    """Put a link in the place of a file or folder, to what it was."""
    elsewhere = path.parents[len(path.parts) - path.parts.index("states") - 1] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def touch(path: Path) -> None:
    """Make an empty file."""
    path.touch()


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else in the place of a file or folder."""
    path.rename(path.parents[len(path.parts) - path.parts.index("states") - 1] / "elsewhere")
    make(path)


def test_what_users_and_systems_leave_there_is_no_damage(tmp_path: Path) -> None:
    """Names that begin with a dot beside the objects, and marks in ``.snap``."""
    path = make(tmp_path)
    (path / ".DS_Store").touch()
    (path / ".snap" / "pin").touch()
    assert verify(path) == []


# -- lies --


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a snapshot, and give it the hash that it should have."""
    document = json.loads((path / MANIFEST).read_bytes())
    del document["blake3"]
    change(document)
    rest = json.dumps(document)[1:].encode()
    (path / MANIFEST).write_bytes(b'{"blake3": "%s",\n' % blake3(rest).hexdigest().encode() + rest)


def entry(path: str) -> Callable[[dict[str, Any]], object]:
    """Return what makes a manifest name a file elsewhere."""

    def change(document: dict[str, Any]) -> None:
        document["files"][0][0] = path
        document["objects"]["files"]["entries"] = [path]

    return change


HUGE = 2**62


@pytest.mark.parametrize(
    "change",
    [
        *(
            entry(path)
            for path in ("../x", "/etc/passwd", "a/../../x", "", ".", "a//b", ".snap/x", "a\0b", "x/" * 200 + "y")
        ),
        lambda document: document["files"].append(["nobody's", 1, "0" * 64]),
        lambda document: document["files"].append(document["files"][0]),
        lambda document: document["files"][0].append(1),
        lambda document: document["files"][0].__setitem__(1, -1),
        lambda document: document["files"][0].__setitem__(1, True),
        lambda document: document["files"][0].__setitem__(2, "../../x"),
        lambda document: document["packs"][0].__setitem__(0, "../" * 10 + "xx"),
        lambda document: document["packs"][0].__setitem__(1, 0),
        lambda document: document["packs"][0].__setitem__(1, 2**25),
        lambda document: document["objects"]["tree"].__setitem__("chunks", [[0, 0, HUGE]]),
        lambda document: document["objects"]["tree"].__setitem__("chunks", [[9, 0, 1]]),
        lambda document: document["objects"]["tree"].__setitem__("chunks", [[0, 0, 1]] * 2),
        lambda document: document["objects"]["tree"].__setitem__("chunks", [[0, 0, 2], [0, 1, 1]]),
        lambda document: document["objects"]["tree"].__setitem__("chunks", [[0, 0, 0]]),
        lambda document: document["objects"]["tree"].__setitem__("entries", []),
        lambda document: document["objects"].__setitem__("..", document["objects"].pop("tree")),
        lambda document: document.__setitem__("objects", []),
        lambda document: document.__setitem__("metrics", {"a": "b"}),
        lambda document: document.__setitem__("metrics", {"a": 10**400}),
        lambda document: document.__setitem__("metrics", {"\ud800": 1}),
        lambda document: document["objects"].__setitem__("\ud800", {"version": None, "entries": [], "chunks": []}),
        lambda document: (
            document["folders"].append("\ud800"),
            document["objects"]["files"]["entries"].append("\ud800"),
        ),
        lambda document: document.__setitem__("format", None),
        lambda document: document.__setitem__("format", -1),
        lambda document: document.__setitem__("created_at_ns", 1e300),
        lambda document: document.__setitem__("created_at_ns", 2**63 - 1),
        lambda document: document.pop("packs"),
    ],
)
def test_a_manifest_that_lies_is_refused_before_anything_it_names_is_touched(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Though its hash is right: paths out of the folder, chunks that are nowhere or used twice, counts."""
    path = make(tmp_path)
    before = min(tmp_path.glob("*.state"))
    rewritten(path, change)
    with pytest.raises(DamagedError, match=r"the manifest .* is damaged"):
        read_manifest(path)
    assert [fault.entry for fault in verify(path)] == [MANIFEST]
    assert SpacedStatesKeeper(tmp_path, hourly=1).cleanup() == []
    assert store_of(tmp_path)[0].load_latest() == before


@pytest.mark.parametrize(
    "rest",
    [
        b'"format": 1, "format": 1}',
        b'"format": ' + b"9" * 5000 + b"}",
        b'"format": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'"format": 1, "x": NaN}',
        b'"format": 1, "x": "\xff"}',
        b'"format": 1} {}',
        b"",
    ],
    ids=["twice", "large", "deep", "no number", "no text", "two", "empty"],
)
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, rest: bytes) -> None:
    """Whatever a parser makes of it."""
    path = make(tmp_path)
    (path / MANIFEST).write_bytes(b'{"blake3": "%s",\n' % blake3(rest).hexdigest().encode() + rest)
    with pytest.raises(DamagedError, match=r"the manifest .* is damaged"):
        read_manifest(path)


class Unreadable(Disk):
    """Cannot read what has this name."""

    name = "manifest.json"

    def read(self, path: StrPath) -> bytes:
        """Fail as a disk does."""
        if Path(path).name == self.name:
            raise translate(OSError(errno.EIO, ""), path, "read")
        return super().read(path)


def test_a_manifest_that_the_disk_fails_to_read_is_damaged(tmp_path: Path) -> None:
    """As any other file is: the one before is there still."""
    path = make(tmp_path)
    (fault,) = verify(path, disk=Unreadable())
    assert "the disk failed to read it" in fault.reason


def deep(levels: int) -> Any:
    """Return lists in each other."""
    found: Any = "]["
    for _ in range(levels):
        found = [found]
    return found


def called_deep(function: Callable[[], object]) -> None:
    """Call a function from deeper and deeper, until there is no room."""
    function()
    called_deep(function)


def test_where_python_has_no_room_left_a_manifest_is_not_called_damaged(tmp_path: Path) -> None:
    """Who is called too deep learns that; a manifest that is too deep by itself is one of the lies."""
    store, _, _ = store_of(tmp_path)
    path = store.save_state(attached={"x": deep(198)})
    with pytest.raises(RecursionError):
        called_deep(lambda: read_manifest(path))
    assert read_manifest(path).attached == {"x": deep(198)}
    with pytest.raises(InvalidError, match="what is attached is more than 200 levels deep"):
        store.save_state(attached={"x": deep(199)})


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"created_at_ns": 2**63 - 1}, "a count from 0 to 7258118400000000000"),
        (
            {"objects": {"a": Stored(version=2**63, entries=("a",))}, "files": (File("a", 1, "0" * 64),)},
            "a count from 0",
        ),
        ({"folders": tuple("/".join("a" * depth) for depth in range(1, 102))}, "at most 100 parts"),
        ({"metrics": {"a": 10**400}}, "a finite number"),
        ({"metrics": {"\ud800": 1}}, "surrogates not allowed"),
        ({"attached": {"a": "x" * 2**25}}, "a manifest of 3355.... bytes is too large: .*; at most 33554432 bytes"),
    ],
    ids=["time", "version", "depth", "metric", "name", "size"],
)
def test_what_no_reader_would_accept_is_not_written(wrong: dict[str, Any], message: str) -> None:
    """So a save fails, and not the load of what was saved without complaint."""
    fine: dict[str, Any] = {"id": "0" * 32, "created_at_ns": 0}
    assert Manifest(**fine).to_bytes()
    with pytest.raises(InvalidError, match=message):
        Manifest(**fine | wrong).to_bytes()


LOADING = """
import resource, sys
from pathlib import Path
from holdfast.snapshots.reading import verify
from holdfast.snapshots.saving import StateStore
class Tree:
    def get_state(self):
        pass
    def set_state(self, tree):
        print("applied")
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
path = Path(sys.argv[1])
print(len(verify(path)))
store = StateStore(path.parent)
store.register("tree", Tree())
try:
    store.load_state(path)
except Exception as exc:
    print(type(exc).__name__)
"""


def lie_sparsely(path: Path) -> None:
    """Say that there are four million chunks, of zeros, and have a file that is as long."""
    slots = 2**22

    def change(document: dict[str, Any]) -> None:
        document["packs"][0][1:] = [slots, blake3(bytes(slots * 32)).hexdigest()]
        document["objects"]["tree"]["chunks"] = [[0, 0, slots]]

    rewritten(path, change)
    pack = read_manifest(path).packs[0]
    (path / pack.path).unlink()
    (path / pack.path).touch()
    os.truncate(path / pack.path, pack.size)


def lie_at_length(path: Path) -> None:
    """Have a manifest of more than 32 MiB."""
    with (path / MANIFEST).open("ab") as file:
        file.write(b" " * (32 * 2**20))


def lie_large(path: Path) -> None:
    """Say that a file has more bytes than any disk."""
    rewritten(path, lambda document: document["files"][0].__setitem__(1, HUGE))


def lie_in_skeleton(path: Path) -> None:
    """Have an array that is larger than memory, in a skeleton that is what was saved."""
    shape = [2**40, 2**20]
    skeleton = json.dumps({"x": {"$ndarray": {"dtype": "|u1", "shape": shape, "at": 0, "size": 2**60}}}).encode()
    (path / "tree").write_bytes(skeleton)

    def change(document: dict[str, Any]) -> None:
        (row,) = (row for row in document["files"] if row[0] == "tree")
        row[1:] = [len(skeleton), blake3(skeleton).hexdigest()]

    rewritten(path, change)


@pytest.mark.parametrize("lie", [lie_sparsely, lie_at_length, lie_large, lie_in_skeleton])
def test_a_lie_costs_neither_memory_nor_time_without_bound(tmp_path: Path, lie: Callable[[Path], None]) -> None:
    """A process with 1 GiB and 20 seconds finds each of them, and applies nothing."""
    path = make(tmp_path)
    lie(path)
    env = {"PYTHONPATH": str(Path(__file__, "../../../src").resolve())}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(path)], env=env, check=False, capture_output=True, text=True
    )
    faults = "0" if lie is lie_in_skeleton else "1"
    error = "UnavailableError" if lie is lie_sparsely else "DamagedError"  # there is no memory for so much
    assert (done.stdout.split(), done.returncode) == ([faults, error], 0), done.stderr


# -- in a run --


class Naming(Disk):
    """Notes what is given its name, and what is taken away."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.deleted: list[str] = []

    def _rename_new(self, source: Path, target: Path) -> None:
        super()._rename_new(source, target)
        self.named.append(target.suffix)

    def delete(self, path: StrPath) -> None:
        """Note it."""
        super().delete(path)
        self.deleted.append(Path(path).suffix)


class Kept(MemoryStore):
    """A Pod that outlives the clients that close it."""

    def close(self) -> None:
        """Stay."""


class Keeping(StatefulPlugin):
    """Has something to save, and keeps one snapshot."""

    max_snapshots = 1

    def setup(self) -> None:
        """Register it."""
        self.snapshots.register("tree", Tree())

    def run(self) -> None:
        """Do nothing."""


def test_a_run_saves_and_removes_snapshots_on_the_disk_that_its_runner_was_given(tmp_path: Path) -> None:
    """So what is shown of a disk that fails holds for runs."""
    disk, store = Naming(), Kept()
    client = Pod(store)
    state = get_state(client, "m:Keeping")
    for _ in range(3):
        run = begin_run(client, state, {"pluginModule": "m", "pluginName": "Keeping"})
        runner = Runner(lambda: store, locks=tmp_path / "locks", snapshots=tmp_path / "snapshots", disk=disk)
        assert runner.drive(Keeping, run, state, {}).exit_code == 0
    assert disk.named == [".state"] * 3
    assert disk.deleted.count(".state") == 2
