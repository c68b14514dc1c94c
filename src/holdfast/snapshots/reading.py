"""Snapshots as they are read: whole or refused, and not removed under their reader.

Chunks are hashed as they come, and the very bytes that were hashed are handed out. What objects wrote themselves is
hashed before, and they read it again. Who reads shares a lock that stands beside the snapshot, in ``.locks``, so that
the snapshot itself is never written to.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, cast

from blake3 import blake3

from holdfast.disk import Blocks, BusyError, Disk, MissingError, StrPath, translate
from holdfast.errors import DamagedError, DeniedError, InvalidError, UnavailableError
from holdfast.snapshots.manifest import CHUNK_BYTES, DIGEST_BYTES, MANIFEST, PACKS, Manifest, Pack, Run, read_manifest

LOCKS: Final = ".locks"
"""The folder beside snapshots that holds ``<name>.lock`` for each that was ever read."""

WAIT_S: Final = 30.0
"""How long a reader waits for somebody who is about to remove the snapshot."""

Progress = Callable[[int, int], object]
"""Called with how many bytes were read, and how many there are."""

_AHEAD: Final = 3
_PIECE_BYTES: Final = 128 * CHUNK_BYTES
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, which the mmap module does not name


@dataclass(frozen=True, slots=True)
class Fault:
    """Something of a snapshot that is not what was written: which entry, and what is wrong with it."""

    entry: str
    reason: str

    def __str__(self) -> str:
        return f"{self.entry!r} {self.reason}"


def damaged(path: Path, fault: Fault) -> DamagedError:
    """Return the error that a snapshot is not as it was written."""
    message = f"the snapshot {str(path)!r} is damaged: {fault}; use another snapshot"
    return DamagedError(message, path=str(path), entry=fault.entry)


def lock_path(path: StrPath) -> Path:
    """Return the file that readers of a snapshot share a lock on, and that whoever removes it locks alone."""
    place = Path(path).absolute()
    return place.parent / LOCKS / f"{place.name}.lock"


@contextmanager
def reading(path: StrPath, *, disk: Disk | None = None) -> Generator[None]:
    """In the block no cleanup removes the snapshot at ``path``; there may be many such blocks at once.

    Where this user may not make a lock, or the file system is read-only or has none, there is none.

    Raises:
        NotFoundError: Nothing is there (FileNotFoundError as well).
        UnavailableError: Somebody is removing it, and has been for half a minute.
    """
    place, disk = Path(path), disk or Disk()
    with ExitStack() as stack:
        _get_status(place)
        try:
            disk.put_folder(lock_path(place).parent)
            stack.enter_context(disk.lock(lock_path(place), shared=True, wait_s=WAIT_S))
        except (DeniedError, UnavailableError) as exc:
            if isinstance(exc, BusyError):
                raise
        _get_status(place)  # it may have gone while this waited
        yield


def is_being_read(path: StrPath, *, disk: Disk | None = None) -> bool:
    """Say whether somebody is in a `reading` block, or removes it, at this moment."""
    disk = disk or Disk()
    if not os.path.lexists(lock_path(path)):
        return False
    try:
        disk.lock(lock_path(path)).release()
    except BusyError:
        return True
    return False


def verify(path: StrPath, *, on_progress: Progress | None = None, disk: Disk | None = None) -> list[Fault]:
    """Read all of a snapshot and return what is not as it was written; nothing: it is whole.

    Files that are missing, changed, or in a folder of an object without having been saved with it are faults; so are
    links, wherever they lead. Entries beside the objects whose name begins with a dot are not looked at, nor are those
    in ``.snap`` that are no packs.

    Raises:
        NotFoundError: There is no such snapshot, or it has no manifest (FileNotFoundError as well).
        InvalidError: A newer release wrote it; or it is no folder.
        UnavailableError: It cannot be read now.
    """
    place, disk = Path(path), disk or Disk()
    with reading(place, disk=disk):
        try:
            manifest = read_manifest(place, disk=disk)
        except DamagedError as exc:
            return [Fault(MANIFEST, exc.message)]
        total = sum(pack.size for pack in manifest.packs) + sum(file.size for file in manifest.files)
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            if on_progress is not None:
                on_progress(done, total)

        faults = list(iter_file_faults(place, manifest, disk=disk, advance=advance))
        for pack in manifest.packs:
            faults += _iter_pack_faults(place, pack, disk=disk, advance=advance)
        return faults


def iter_file_faults(
    place: Path, manifest: Manifest, *, disk: Disk, advance: Callable[[int], object] = int
) -> Iterator[Fault]:
    """Yield what is wrong with the files and folders that objects wrote; what is in packs is not looked at."""
    expected = {"": {entry for stored in manifest.objects.values() for entry in stored.entries}}
    for path in (*manifest.folders, *(file.path for file in manifest.files)):
        above, slash, name = path.rpartition("/")
        if slash:
            expected.setdefault(above, set()).add(name)
    for folder in ("", *manifest.folders, *([PACKS] if manifest.packs else [])):
        names: list[str] = []
        with _faulty() as found:
            names = _list(place / folder)
        if found:
            yield Fault(folder, "is missing, or no folder")
        for name in names if folder != PACKS else ():
            if name not in expected.get(folder, set()) and (folder or not name.startswith(".")):
                yield Fault(f"{folder}/{name}".lstrip("/"), "was not saved with the snapshot")
    scratch = memoryview(mmap.mmap(-1, _PIECE_BYTES))
    for file in manifest.files:
        with _faulty() as found:
            with disk.open_blocks(place / file.path) as blocks:
                size, digest = hash_file(blocks, scratch)
            if size != file.size:
                found.append(f"has {size} bytes, and not {file.size}")
            elif digest != file.digest:
                found.append("does not hold what was written")
        advance(file.size)
        yield from (Fault(file.path, reason) for reason in found)


def hash_file(blocks: Blocks, scratch: memoryview) -> tuple[int, str]:
    """Return how many bytes an open file has, and their BLAKE3; ``scratch`` is overwritten."""
    hasher, at = blake3(), 0
    while found := blocks.read(scratch, at):
        hasher.update(scratch[:found])
        at += found
    return at, hasher.hexdigest()


class Chunks(NamedTuple):
    """What the leaves of an object are made of: the bytes of all chunks, and the BLAKE3 of each."""

    data: memoryview
    digests: list[bytes]


def read_chunks(place: Path, manifest: Manifest, *, disk: Disk) -> dict[str, Chunks]:
    """Return the chunks of all trees, read once and as they were written. Their memory is the caller's to change.

    Raises:
        DamagedError: One is not what was written; or it is missing.
    """
    with ExitStack() as stack:
        packs: list[tuple[Blocks, memoryview]] = []
        for pack in manifest.packs:
            with _damaged_at(place, pack.path):
                blocks = stack.enter_context(disk.open_blocks(place / pack.path))
                packs.append((blocks, _read_table(blocks, pack)))
        found: dict[str, Chunks] = {}
        for name, stored in manifest.objects.items():
            data, digests = _allocate(stored.chunk_count * CHUNK_BYTES), list[bytes]()
            pieces = _read_ahead(_cut(stored.chunks, data), [blocks for blocks, _ in packs])
            while True:
                with _damaged_at(place, PACKS):
                    piece = next(pieces, None)
                if piece is None:
                    break
                with _damaged_at(place, manifest.packs[piece.pack].path):
                    digests += _checked(piece, packs[piece.pack][1])
            found[name] = Chunks(data, digests)
        return found


class _Piece(NamedTuple):
    """Slots that are read at once."""

    pack: int
    slot: int
    into: memoryview


def _cut(runs: Iterable[Run], data: memoryview) -> Iterator[_Piece]:
    at = 0
    for pack, slot, length in runs:
        end = at + length * CHUNK_BYTES
        for start in range(at, end, _PIECE_BYTES):
            size = min(_PIECE_BYTES, end - start)
            populate(data, start, size)  # now, while others are being read
            yield _Piece(pack, slot + (start - at) // CHUNK_BYTES, data[start : start + size])
        at = end


def _read_ahead(pieces: Iterable[_Piece], packs: list[Blocks]) -> Iterator[_Piece]:
    """Yield pieces once they are read; the next `_AHEAD` are being read meanwhile."""

    def read(piece: _Piece) -> _Piece:
        size = packs[piece.pack].read(piece.into, piece.slot * CHUNK_BYTES)
        if size != len(piece.into):
            piece.into[size:] = bytes(len(piece.into) - size)  # cut off since its size was looked at
        return piece

    coming: deque[Future[_Piece]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for piece in pieces:
            coming.append(pool.submit(read, piece))
            if len(coming) > _AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _checked(piece: _Piece, table: memoryview) -> list[bytes]:
    """Return the BLAKE3 of each slot that was read.

    Raises:
        ValueError: One is not what ``table`` says.
    """
    digests: list[bytes] = []
    for number in range(len(piece.into) // CHUNK_BYTES):
        digest = blake3(piece.into[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]).digest()
        slot = piece.slot + number
        if digest != bytes(table[slot * DIGEST_BYTES : (slot + 1) * DIGEST_BYTES]):
            raise ValueError(f"does not hold in slot {slot} what was written")
        digests.append(digest)
    return digests


def _read_table(blocks: Blocks, pack: Pack) -> memoryview:
    """Return the BLAKE3 of all slots of a pack, one after the other."""
    size = os.fstat(blocks.fd).st_size
    if size != pack.size:
        raise ValueError(f"has {size} bytes, and not {pack.size}")
    table, size = _allocate(pack.size - pack.digests_at), pack.slots * DIGEST_BYTES
    is_whole = blocks.read(table, pack.digests_at) == len(table) and not any(table[size:])
    if not is_whole or blake3(table[:size]).hexdigest() != pack.digest:
        raise ValueError("does not end with the hashes that were written")
    return table


def _iter_pack_faults(place: Path, pack: Pack, *, disk: Disk, advance: Callable[[int], object]) -> Iterator[Fault]:
    with _faulty() as found, disk.open_blocks(place / pack.path) as blocks:
        table = _read_table(blocks, pack)
        advance(len(table))
        size = min(_PIECE_BYTES, pack.digests_at)
        scratch = _allocate(size * (_AHEAD + 1))
        populate(scratch, 0, len(scratch))
        pieces = (
            _Piece(0, slot, scratch[number % (_AHEAD + 1) * size :][: min(size, (pack.slots - slot) * CHUNK_BYTES)])
            for number, slot in enumerate(range(0, pack.slots, _PIECE_BYTES // CHUNK_BYTES))
        )
        for piece in _read_ahead(pieces, [blocks]):
            _checked(piece, table)
            advance(len(piece.into))
    yield from (Fault(pack.path, reason) for reason in found)


@contextmanager
def _faulty() -> Generator[list[str]]:
    """Yield a list for reasons, and add what the block ends with, if that says that something is not as written."""
    found: list[str] = []
    try:
        yield found
    except MissingError:
        found.append("is missing")
    except InvalidError:
        found.append("is no plain file")
    except UnavailableError as exc:
        if exc.facts.get("errno") != "EIO":
            raise
        found.append("cannot be read: the disk failed")
    except ValueError as exc:
        found.append(str(exc))


@contextmanager
def _damaged_at(place: Path, entry: str) -> Generator[None]:
    with _faulty() as found:
        yield
    if found:
        raise damaged(place, Fault(entry, found[0]))


def _allocate(size: int) -> memoryview:
    """Return zeroed memory that begins a page; `populate` it before much is written to it."""
    if not size:
        return memoryview(b"")
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as exc:
        raise UnavailableError(
            f"there is no memory for the {size} bytes of a snapshot: make room and try again"
        ) from exc
    with suppress(OSError, AttributeError):  # a kernel without, or another system: only slower
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def populate(view: memoryview, start: int, size: int) -> None:
    """Have the system find the pages of some memory now: that is faster than one by one when they are written to."""
    with suppress(OSError, AttributeError):  # an older kernel, another system, or no memory of the system's
        cast("mmap.mmap", view.obj).madvise(_POPULATE_WRITE, start, size)


def _get_status(place: Path) -> os.stat_result:
    try:
        return place.lstat()
    except (OSError, ValueError) as exc:
        raise translate(exc, place, "read") from exc


def _list(place: Path) -> list[str]:
    """Return the names in a folder; a link to one is none."""
    try:
        if not stat.S_ISDIR(place.lstat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "no folder")
        return sorted(entry.name for entry in place.iterdir())
    except OSError as exc:
        raise translate(exc, place, "list") from exc
