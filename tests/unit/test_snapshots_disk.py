"""What the door to the file system offers to whoever builds a folder, or moves much data."""

import errno
import os
import signal
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from holdfast.disk import Disk, ExistsError
from holdfast.errors import HoldfastError, InvalidError, NotFoundError
from tests.components.mounts import tmpfs


class Noting(Disk):
    """Notes which files are written and flushed, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def _write(self, fd: int, data: memoryview) -> int:
        self.calls.append(f"write {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        return super()._write(fd, data[:3])

    def _flush(self, fd: int) -> None:
        self.calls.append(f"flush {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        super()._flush(fd)


def test_all_is_written_and_stamped_before_the_first_flush(tmp_path: Path) -> None:
    """However little the system writes at once; nobody else may read the files; folders only if that is asked for."""
    disk = Noting()
    (tmp_path / "in").mkdir()
    disk.write(
        {tmp_path / "a": b"12345", tmp_path / "in" / "b": b""},
        folders=[tmp_path / "in"],
        stamps={tmp_path / "in": 1_700_000_000_123_456_789},
    )
    assert disk.calls[:2] == ["write a", "write a"]
    assert sorted(disk.calls[2:]) == ["flush a", "flush b", "flush in"]
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "in" / "b").read_bytes()) == (b"12345", b"")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "in").stat().st_mtime_ns == 1_700_000_000_123_456_789


class Meeting(Disk):
    """Flushes nothing before it is asked to flush four at the same time."""

    def __init__(self) -> None:
        self.all_there = threading.Barrier(4, timeout=20)

    def _flush(self, fd: int) -> None:
        self.all_there.wait()


def test_four_are_flushed_at_the_same_time_also_in_a_forked_child(tmp_path: Path) -> None:
    """The system may then make them durable together. A child has none of the threads of its parent."""
    files = {tmp_path / name: b"" for name in "abcd"}
    Meeting().write(files)
    child = os.fork()
    if not child:
        signal.alarm(20)
        for path in files:
            path.unlink()
        Meeting().write(files)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_where_no_thread_can_be_started_one_is_flushed_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when Python is ending, or the user has as many as may be."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    child = os.fork()
    if not child:  # it has no threads yet
        signal.alarm(20)
        monkeypatch.setattr(threading.Thread, "start", start)
        disk = Noting()
        disk.write({tmp_path / "a": b"", tmp_path / "b": b""})
        os._exit(0 if disk.calls == ["flush a", "flush b"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_when_one_flush_fails_all_have_ended_before_that_is_said(tmp_path: Path) -> None:
    """So nothing goes on behind the back of whoever cleans up, and no file is flushed a second time."""
    flushed: list[int] = []
    has_failed = threading.Event()

    class Failing(Disk):
        def _flush(self, fd: int) -> None:
            size = os.fstat(fd).st_size
            if size == 0:
                has_failed.set()
                flushed.append(size)
                raise OSError(errno.EIO, "as if")
            has_failed.wait()
            super()._flush(fd)
            flushed.append(size)

    with pytest.raises(HoldfastError, match="0': the disk failed"):
        Failing().write({tmp_path / str(size): bytes(1000 * size) for size in range(8)})
    assert sorted(flushed) == [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_folder_that_cannot_be_flushed_is_none_that_could_be_more_durable(tmp_path: Path, is_folder: bool) -> None:
    """Some file systems refuse that, for folders alone; a file must be flushed."""

    class Refusing(Disk):
        def _flush(self, fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode) is is_folder:
                raise OSError(errno.EINVAL, "as if")

    with nullcontext() if is_folder else pytest.raises(InvalidError, match=r"could not flush '.*/a'"):
        Refusing().write({tmp_path / "a": b""}, folders=[tmp_path])


def test_as_many_are_written_as_there_are_with_few_of_them_open(tmp_path: Path) -> None:
    """Some after the others, each of them flushed; folders come last, and have the times that they are given."""
    are_open, flushed = list[int](), list[bool]()

    def count_open() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(os.path.realpath(link).startswith(str(tmp_path)) for link in links)

    class Counting(Disk):
        def _at_once(self, calls: Sequence[Callable[[], object]]) -> None:
            are_open.append(count_open())
            super()._at_once(calls)

        def _flush(self, fd: int) -> None:
            flushed.append(stat.S_ISDIR(os.fstat(fd).st_mode))
            super()._flush(fd)

    folders = [tmp_path / f"folder {number}" for number in range(100)]
    for folder in folders:
        folder.mkdir()
    Counting().write(
        {folder / "file": folder.name.encode() for folder in folders},
        folders=folders,
        stamps={folders[0]: 10**18, folders[-1]: 2 * 10**18},
    )
    assert sorted(flushed) == [False] * 100 + [True] * 100
    assert are_open == [64, 64, 64, 8]
    assert [folder.name.encode() for folder in folders] == [(folder / "file").read_bytes() for folder in folders]
    assert [folders[at].stat().st_mtime_ns for at in (0, -1)] == [10**18, 2 * 10**18]
    assert count_open() == 0


def test_what_is_there_is_not_written_to(tmp_path: Path) -> None:
    """Be it a link to nowhere; nor is a folder made where something is."""
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("there", "link"):
        with pytest.raises(ExistsError, match="the name is taken"):
            Disk().write({tmp_path / name: b"new"})
        with pytest.raises(ExistsError, match="the name is taken"):
            Disk().open_blocks(tmp_path / name, create=True)
        with pytest.raises(ExistsError, match="the name is taken"):
            Disk().make_folder(tmp_path / name)
    assert (tmp_path / "there").read_bytes() == b"old"
    assert not (tmp_path / "nowhere").exists()


def test_a_link_takes_the_place_of_what_is_there_in_one_step(tmp_path: Path) -> None:
    """Or leaves it, and says so, where there can be none."""
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    assert Disk().link(tmp_path / "a", tmp_path / "b")
    assert Disk().link(tmp_path / "a", tmp_path / "c")
    assert [(tmp_path / name).stat().st_ino for name in "bc"] == [(tmp_path / "a").stat().st_ino] * 2
    assert not Disk().link(tmp_path / "nothing", tmp_path / "c")
    (tmp_path / "folder").mkdir()
    assert not Disk().link(tmp_path / "folder", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "folder"]


def test_a_link_to_what_is_the_same_file_already_leaves_no_other_name(tmp_path: Path) -> None:
    """As where whoever wrote it linked it there."""
    (tmp_path / "a").write_bytes(b"a")
    os.link(tmp_path / "a", tmp_path / "b")
    assert Disk().link(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_whose_name_could_not_be_flushed_is_made_anew(tmp_path: Path) -> None:
    """Found there, it would be taken for durable."""
    flushed: list[str] = []

    class FailingOnce(Disk):
        def _flush(self, fd: int) -> None:
            flushed.append(os.readlink(f"/proc/self/fd/{fd}"))
            if len(flushed) == 2:
                raise OSError(errno.EIO, "as if")

    disk = FailingOnce()
    with pytest.raises(HoldfastError, match="a/b': the disk failed"):
        disk.put_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a" / "b").exists()
    disk.put_folder(tmp_path / "a" / "b")
    assert flushed == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a")]


def test_a_link_across_file_systems_is_none(tmp_path: Path) -> None:
    """It says so, as for each reason that a copy does not have."""
    (tmp_path / "a").touch()
    with tmpfs(tmp_path / "other", size_bytes=65_536) as other:
        assert not Disk().link(tmp_path / "a", other / "a")


@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_blocks_are_read_as_they_were_written(tmp_path: Path, is_cached: bool, where: str) -> None:
    """In whole blocks or not, around the cache or through it, more parts than a system takes at once."""
    data = os.urandom(700 * 4096 + 5)
    parts = [memoryview(data)[start : start + 4096] for start in range(0, len(data), 4096)]
    (tmp_path / "place").mkdir()
    with (
        tmpfs(tmp_path / "place", size_bytes=2**23) if where == "memory" else Disk().temporary_folder(tmp_path) as place
    ):
        with Disk().open_blocks(place / "it", create=True, is_cached=is_cached) as blocks:
            blocks.write(parts, 8192)
            blocks.flush()
        assert (place / "it").read_bytes() == bytes(8192) + data
        with Disk().open_blocks(place / "it", is_cached=is_cached) as blocks:
            found = bytearray(len(data) + 4096)
            assert blocks.read(memoryview(found), 8192) == len(data)
            assert found == data + bytes(4096)
            assert blocks.read(memoryview(found), len(data) + 8192) == 0


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    """No links, folders, pipes; what is missing is said to be."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(InvalidError, match="a plain file"):
            Disk().open_blocks(tmp_path / name)
    with pytest.raises(NotFoundError):
        Disk().open_blocks(tmp_path / "nothing")


def test_errors_of_reading_and_writing_are_translated(tmp_path: Path) -> None:
    """The file is named."""

    class Failing(Disk):
        def _read_at(self, fd: int, parts: list[memoryview], at: int) -> int:
            raise OSError(errno.EIO, "as if")

        _write_at = _read_at

    with Failing().open_blocks(tmp_path / "it", create=True) as blocks:
        for call in (lambda: blocks.write([memoryview(b"x")], 0), lambda: blocks.read(memoryview(bytearray(1)), 0)):
            with pytest.raises(HoldfastError, match="it': the disk failed"):
                call()
