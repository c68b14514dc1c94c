"""Files on disk: whole or not at all, encrypted, and never handed out when they are not what was kept."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.blobs import CHUNK_BYTES, DiskBlobs
from holdfast.disk import Disk
from holdfast.errors import ConflictError, DamagedError, DeniedError, InvalidError, NotFoundError, UnavailableError

KEY = bytes(range(32))
HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@pytest.fixture
def blobs(tmp_path: Path) -> DiskBlobs:
    """An empty folder of files."""
    return DiskBlobs(tmp_path / "files", KEY)


def keep(blobs: DiskBlobs, data: bytes, *, part: int = 70_000) -> str:
    """Put ``data`` in parts, and return its hash."""
    sha256 = hashlib.sha256(data).hexdigest()
    assert blobs.put(sha256, (data[at : at + part] for at in range(0, len(data), part))) == len(data)
    return sha256


def read(blobs: DiskBlobs, sha256: str) -> bytes:
    """Return a file, whose size must be what was announced."""
    size, parts = blobs.open(sha256)
    data = b"".join(parts)
    assert len(data) == size
    return data


def files_of(blobs: DiskBlobs) -> list[Path]:
    """Return all that lies on the disk."""
    return sorted(path for path in blobs.folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 4 * 2**20, 4 * 2**20 + 1, 9 * 2**20 + 7]
)
@pytest.mark.parametrize("part", [70_000, 2**24])
def test_what_was_put_is_what_is_read_whatever_its_size(blobs: DiskBlobs, size: int, part: int) -> None:
    """Also at the edges of chunks, and of what is gathered before it is written."""
    data = os.urandom(size)
    assert read(blobs, keep(blobs, data, part=part)) == data


def test_nothing_on_disk_shows_the_content_or_its_hash(blobs: DiskBlobs) -> None:
    """Neither a name nor a byte; and only this user may read it."""
    assert keep(blobs, b"hello") == HELLO
    (path,) = files_of(blobs)
    assert HELLO not in str(path)
    assert b"hello" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert blobs.folder.stat().st_mode & 0o777 == 0o700


def test_the_same_file_twice_is_refused_and_stays_as_it_was(blobs: DiskBlobs) -> None:
    """To the byte, though each writing draws another salt."""
    keep(blobs, b"hello")
    before = files_of(blobs)[0].read_bytes()
    with pytest.raises(ConflictError, match="are there already"):
        blobs.put(HELLO, [b"hello"])
    assert files_of(blobs)[0].read_bytes() == before


def test_bytes_with_another_hash_are_refused_and_leave_nothing(blobs: DiskBlobs) -> None:
    """No file, and nothing temporary."""
    with pytest.raises(InvalidError, match="these 5 bytes are not file '2cf24d"):
        blobs.put(HELLO, [b"hallo"])
    assert not blobs.exists(HELLO)
    assert files_of(blobs) == []
    assert not list(blobs.folder.glob(".tmp-*"))


def test_a_source_that_fails_half_way_leaves_nothing(blobs: DiskBlobs) -> None:
    """What the source raises goes through."""

    def source() -> Iterator[bytes]:
        yield b"hel"
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        blobs.put(HELLO, source())
    assert files_of(blobs) == []


@pytest.mark.parametrize("name", ["", "ab", HELLO.upper(), HELLO + "0", "../" + HELLO[3:], HELLO[:-1] + "\n", None, 7])
def test_what_is_no_hash_names_no_file(blobs: DiskBlobs, name: object) -> None:
    """Nor is a folder made for it."""
    with pytest.raises(InvalidError, match="names no file"):
        blobs.put(name, [b"hello"])  # type: ignore[arg-type]
    assert not blobs.folder.exists()


def test_an_absent_file_is_said_to_be_absent_and_deleting_it_does_nothing(blobs: DiskBlobs) -> None:
    """The message says what to do."""
    with pytest.raises(NotFoundError, match="upload them"):
        blobs.open(HELLO)
    assert not blobs.exists(HELLO)
    blobs.delete(HELLO)


def test_a_deleted_file_is_gone_but_who_reads_it_reads_on(blobs: DiskBlobs) -> None:
    """Its name goes; the bytes go with the last reader."""
    data = os.urandom(9 * 2**20)
    sha256 = keep(blobs, data)
    _, parts = blobs.open(sha256)
    first = next(parts)
    blobs.delete(sha256)
    assert not blobs.exists(sha256)
    assert first + b"".join(parts) == data


def test_any_byte_that_was_changed_is_found_before_it_is_handed_out(blobs: DiskBlobs) -> None:
    """What was handed out until then is the beginning of what was kept."""
    data = os.urandom(2 * CHUNK_BYTES + 10)
    sha256 = keep(blobs, data)
    (path,) = files_of(blobs)
    right = path.read_bytes()
    for at in (*range(40), *range(40, len(right), 4_001), len(right) - 1):
        path.write_bytes(right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :])
        got = b""
        with pytest.raises(DamagedError, match="restore a backup"):  # noqa: PT012 -- opening may find it, or reading
            for part in blobs.open(sha256)[1]:
                got += part
        assert data.startswith(got)


@pytest.mark.parametrize("at", [0, 30, 100_000])
def test_what_was_found_damaged_can_be_put_again(blobs: DiskBlobs, at: int) -> None:
    """It is not said to be there any more, and is read as far as it can be until it is put; then nothing is left."""
    data = os.urandom(150_000)
    sha256 = keep(blobs, data)
    (path,) = files_of(blobs)
    right = path.read_bytes()
    path.write_bytes(right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :])
    for _ in range(2):
        with pytest.raises(DamagedError, match="restore a backup, or upload them again"):
            read(blobs, sha256)
        assert not blobs.exists(sha256)
    (aside,) = set(files_of(blobs)) - {blobs.folder / "files.lock"}
    aside.write_bytes(right)
    assert read(blobs, sha256) == data  # it was the disk that erred
    keep(blobs, data)
    assert (read(blobs, sha256), blobs.exists(sha256)) == (data, True)
    assert set(files_of(blobs)) == {path, blobs.folder / "files.lock"}


def test_what_was_found_damaged_is_deleted_as_what_is_whole(blobs: DiskBlobs) -> None:
    """Not a byte stays."""
    sha256 = keep(blobs, b"hello")
    (path,) = files_of(blobs)
    os.truncate(path, 10)
    with pytest.raises(DamagedError):
        blobs.open(sha256)
    blobs.delete(sha256)
    assert files_of(blobs) == [blobs.folder / "files.lock"]
    with pytest.raises(NotFoundError):
        blobs.open(sha256)


def test_who_finds_a_file_damaged_that_was_replaced_meanwhile_does_no_harm_to_the_new_one(blobs: DiskBlobs) -> None:
    """It reads the old one, which had the name."""
    data = os.urandom(9 * 2**20)
    sha256 = keep(blobs, data)
    (path,) = files_of(blobs)
    _, parts = blobs.open(sha256)
    next(parts)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DamagedError):
        read(blobs, sha256)
    keep(blobs, data)
    with pytest.raises(DamagedError):
        b"".join(parts)
    assert (blobs.exists(sha256), read(blobs, sha256)) == (True, data)


def test_what_is_found_damaged_where_nothing_can_be_written_stays_where_it_is(tmp_path: Path) -> None:
    """And is said to be damaged all the same."""

    class ReadOnly(Disk):
        def _move(self, source: Path, target: Path) -> None:
            raise OSError(30, os.strerror(30))

    keep(DiskBlobs(tmp_path, KEY), b"hello")
    blobs = DiskBlobs(tmp_path, KEY, disk=ReadOnly())
    (path,) = files_of(blobs)
    os.truncate(path, 10)
    for _ in range(2):
        with pytest.raises(DamagedError):
            blobs.open(HELLO)
    assert path.exists()


@pytest.mark.parametrize("keep_chunks", [0, 1, 2])
def test_chunks_that_are_cut_off_are_missed(blobs: DiskBlobs, keep_chunks: int) -> None:
    """Whole chunks, so that each that stays is right by itself."""
    sha256 = keep(blobs, os.urandom(3 * CHUNK_BYTES))
    (path,) = files_of(blobs)
    os.truncate(path, 20 + keep_chunks * (CHUNK_BYTES + 16))
    with pytest.raises(DamagedError):
        read(blobs, sha256)


def test_chunks_that_changed_places_and_files_that_changed_names_are_found(blobs: DiskBlobs) -> None:
    """Each is sealed for its place and its name."""
    one, two = keep(blobs, os.urandom(3 * CHUNK_BYTES)), keep(blobs, os.urandom(3 * CHUNK_BYTES))
    first, second = files_of(blobs)
    was = first.read_bytes()
    size = CHUNK_BYTES + 16
    first.write_bytes(was[:20] + was[20 + size : 20 + 2 * size] + was[20 : 20 + size] + was[20 + 2 * size :])
    second.write_bytes(was)
    for sha256 in (one, two):
        with pytest.raises(DamagedError):
            read(blobs, sha256)


def test_another_pods_key_finds_nothing_there(blobs: DiskBlobs) -> None:
    """Names are keyed as well."""
    keep(blobs, b"hello")
    other = DiskBlobs(blobs.folder, bytes(32))
    assert not other.exists(HELLO)


def test_of_many_who_put_one_file_at_once_one_succeeds(blobs: DiskBlobs) -> None:
    """The others are told that it is there."""
    data = os.urandom(3 * 2**20)
    sha256 = hashlib.sha256(data).hexdigest()
    ready, outcomes = threading.Barrier(8), []

    def put() -> None:
        ready.wait()
        try:
            outcomes.append(blobs.put(sha256, [data]))
        except ConflictError:
            outcomes.append(None)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [len(data), *[None] * 7]
    assert read(blobs, sha256) == data
    assert len(files_of(blobs)) == 1


def test_what_a_dead_writer_left_goes_with_the_next_file_and_that_of_a_living_one_stays(blobs: DiskBlobs) -> None:
    """The lock of the dead is free."""
    with blobs.writing(HELLO) as living:
        living.write(b"hel")
        dead = blobs.folder / ".tmp-0123456789abcdef"
        dead.mkdir()
        (dead / "part").write_bytes(b"x")
        keep(blobs, b"other")
        assert not dead.exists()
        living.write(b"lo")
        assert living.commit() == 5
    assert read(blobs, HELLO) == b"hello"


class FailingDisk(Disk):
    """A disk on which one kind of call fails."""

    def __init__(self, call: str, code: int) -> None:
        self.call, self.code = call, code
        self.flushed: list[int] = []

    def _write_at(self, fd: int, parts: list[memoryview], at: int) -> int:
        if self.call == "write" and at > 1_000_000:
            raise OSError(self.code, os.strerror(self.code))
        return super()._write_at(fd, parts, at)

    def _flush(self, fd: int) -> None:
        if self.call == "flush" and not os.path.isdir(f"/proc/self/fd/{fd}"):
            self.flushed.append(fd)
            raise OSError(self.code, os.strerror(self.code))
        super()._flush(fd)


@pytest.mark.parametrize("call, code", [("write", 28), ("write", 5), ("flush", 5)])
def test_a_disk_that_is_full_or_fails_keeps_nothing(tmp_path: Path, call: str, code: int) -> None:
    """And a failed flush is not tried again on the file."""
    blobs = DiskBlobs(tmp_path / "files", KEY, disk=(disk := FailingDisk(call, code)))
    data = os.urandom(6 * 2**20)
    with pytest.raises(UnavailableError):
        keep(blobs, data)
    assert files_of(blobs) == []
    assert len(disk.flushed) == (call == "flush")  # a failed flush is not tried again


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_said_to_be_denied(blobs: DiskBlobs) -> None:
    """By the kind of error that says who may."""
    keep(blobs, b"hello")
    os.chmod(files_of(blobs)[0], 0)
    with pytest.raises(DeniedError):
        blobs.open(HELLO)
