"""The door to the file system: how bytes become durable, and who may touch a file now.

Hides temporary files, flushes and their order, links, locks, the mount table, what differs between systems, and
`OSError`. Knows nothing of what the files hold, and keeps nothing between two calls but threads that wait for flushes.

The failure argument, once for all of `Disk`; each method adds what is its own:

- *The process dies on any line.* What it writes has a temporary name until the bytes are flushed; one system call (link
  or rename) then gives it the real name. Before that call the old state is there, after it the new one. What may stay
  behind is temporary, and `Disk.sweep` knows that its owner is dead, because the lock on it is free.
- *The power goes.* The file is flushed before it is named, and its folder before the call returns: what was named is
  whole, and what returned is there.
- *Two do it at once.* Temporary names are random and created exclusively; link and rename are atomic. `Disk.create` and
  `Disk.rename` have one winner; of two `Disk.replace` the later one stays, whole. Who reads, changes and replaces needs
  `Disk.lock` around the three.
- *The disk is full, or fails.* Until then only the temporary file was touched; it is removed and the error raised. A
  failed flush is never tried again on the same file: the system may have dropped the pages and would report success.
- *A hostile plugin was here first.* No call follows a symbolic link in the last part of a path, waits on a pipe, or
  takes anything but a plain file for one. The folders above are the caller's choice and are followed.

On Windows folders can be neither flushed nor locked, every lock is exclusive, and `Disk.sweep` removes nothing.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from holdfast.errors import (
    ConflictError,
    DeniedError,
    HoldfastError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from holdfast.interrupts import uninterrupted

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

StrPath = str | os.PathLike[str]

temporary_pattern: Final = re.compile(r"\.tmp-[0-9a-f]{16}")
"""Names of what is not finished: 64 random bits, so that a name is never used twice."""

# fmt: off
NETWORK_FILESYSTEMS: Final = frozenset((
    # Files of a server, or of a disk that several machines write.
    "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
    "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "webdav",
    # The same through FUSE. macOS has one name for all of FUSE, and what people mount there is mostly remote.
    "fuse.beegfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.curlftpfs", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs",
    "fuse.goofys", "fuse.juicefs", "fuse.moosefs", "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.s3ql",
    "fuse.seaweedfs", "fuse.smbnetfs", "fuse.sshfs", "macfuse", "osxfuse",
    # Folders that a virtual machine shares with its host (9p does that as well). No network is in between, but a
    # second kernel is, and neither locks nor shared memory reach it: to a database that is the same danger.
    "drvfs", "fakeowner", "fuse.grpcfuse", "fuse.osxfs", "fuse.vmhgfs-fuse", "prl_fs", "vboxsf", "virtiofs", "vmhgfs",
))
# fmt: on
"""File system types whose files another kernel may hold open at the same time."""

_ATTEMPTS: Final = 16
_CHUNK_BYTES: Final = 65536
_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_HELPERS: Final = 3
_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.05
_MAX_PARTS: Final = 512  # of memory, in one write; systems allow 1024
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
# A pipe with nobody at its other end would else make the opening wait for ever; plain files do not mind.
_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)
_FOLDER: Final = os.O_RDONLY | _DIRECTORY | _NO_FOLLOW
_PLAIN: Final = _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_NO_RENAME_NEW: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_NO_FOLDER_FLUSH: Final = frozenset({errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOTSUP})


class ExistsError(ConflictError, FileExistsError):
    """The name is taken; what has it was not touched."""


class MissingError(NotFoundError, FileNotFoundError):
    """No file or folder has this name."""


class BusyError(UnavailableError):
    """Somebody else held the lock for as long as was waited."""


_REASONS: Final[dict[str, tuple[type[HoldfastError], str]]] = {
    "EACCES": (DeniedError, "this user may not; give it the right, or use another"),
    "EBUSY": (UnavailableError, "it is in use, or something is mounted on it"),
    "EDQUOT": (UnavailableError, "the user's share of the disk is used up; make room and try again"),
    "EEXIST": (ExistsError, "the name is taken; use another, or delete what has it"),
    "EINVAL": (InvalidError, "the system refuses the name, or the place is inside what is to go there"),
    "EIO": (UnavailableError, "the disk failed; look at it before trying again"),
    "EISDIR": (InvalidError, "it is a folder; a plain file is expected"),
    "ELOOP": (InvalidError, "it is a symbolic link; a plain file or folder is expected"),
    "EMLINK": (InvalidError, "the file has as many names as the file system allows"),
    "ENAMETOOLONG": (InvalidError, "the name is too long; most file systems allow 255 bytes"),
    "ENOENT": (MissingError, "there is no such file or folder"),
    "ENOSPC": (UnavailableError, "the disk is full; make room and try again"),
    "ENOTDIR": (InvalidError, "a part of the path is no folder"),
    "ENOTEMPTY": (ExistsError, "the name is taken by a folder that is not empty"),
    "ENOTSUP": (UnavailableError, "this file system cannot do that; choose a folder on another"),
    "EOPNOTSUPP": (UnavailableError, "this file system cannot do that; choose a folder on another"),
    "ENXIO": (InvalidError, "it is a pipe, a socket or a device; a plain file is expected"),
    "EPERM": (DeniedError, "the system forbids it to this user, or to everybody"),
    "EROFS": (UnavailableError, "the file system is read-only; mount it for writing, or choose a folder on another"),
    "EXDEV": (InvalidError, "both places must be on one file system"),
}
"""What an error of the system means to the caller. EROFS is no question of rights: no other user could write either."""


def translate(exc: OSError | ValueError, path: StrPath, doing: str) -> HoldfastError:
    """Return what ``exc``, raised by the system while ``doing`` something to ``path``, is to a caller of Holdfast.

    ``doing`` is a bare verb (``"read"``). The facts are ``path``, ``errno`` (its name, ``"ENOSPC"``; absent for a
    ValueError, which Python raises for a path that no system can have) and, for a full disk, ``free_bytes`` if it can
    be told. An errno that is not in the table is an UnavailableError with the system's own words. Raise it
    ``from exc``.

    >>> translate(OSError(errno.EXDEV, "…"), "/a/b", "rename")
    InvalidError("could not rename '/a/b': both places must be on one file system")
    """
    shown = os.fspath(path)
    if isinstance(exc, HoldfastError):
        return exc
    if isinstance(exc, ValueError):
        return InvalidError(f"could not {doing} {shown!r}: {exc}; a path holds text without NUL", path=shown)
    name = errno.errorcode.get(exc.errno or 0, "unknown")
    kind, why = _REASONS.get(name, (UnavailableError, f"{exc.strerror or exc} ({name})"))
    facts: dict[str, object] = {"path": shown, "errno": name}
    if name in {"ENOSPC", "EDQUOT"}:
        with suppress(OSError, ValueError):
            facts["free_bytes"] = _free_bytes(path)
            why = f"{why} ({facts['free_bytes']} bytes are free)"
    return kind(f"could not {doing} {shown!r}: {why}", **facts)


@contextmanager
def _translated(path: StrPath, doing: str) -> Generator[None]:
    try:
        yield
    except HoldfastError:  # some of ours are an OSError or a ValueError as well
        raise
    except (OSError, ValueError) as exc:
        raise translate(exc, path, doing) from exc


class Mount(NamedTuple):
    """One line of the mount table."""

    id: int
    parent: int
    point: str
    kind: str


def parse_mounts(table: str) -> list[Mount]:
    r"""Return the mounts of ``table``, the text of ``/proc/<pid>/mountinfo`` (man 5 proc), in its order.

    Lines that are none are left out. Blanks and backslashes stand there as three octal digits.

    >>> parse_mounts(r"36 25 8:1 /sub /mnt/my\040disk rw shared:1 - ext4 /dev/sda1 rw")
    [Mount(id=36, parent=25, point='/mnt/my disk', kind='ext4')]
    """
    mounts: list[Mount] = []
    for line in table.split("\n"):
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and len(fields) >= 6 and fields[0].isdecimal() and fields[1].isdecimal():
            mounts.append(Mount(int(fields[0]), int(fields[1]), _unescape(fields[4]), _unescape(after.split(" ")[0])))
    return mounts


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def find_mount(mounts: list[Mount], path: str) -> Mount | None:
    """Return the mount that ``path`` (absolute, without links) lies on, None if the table does not reach it.

    It is found as the kernel finds it, from the root down: the longest mount point alone would name a mount that a
    later one, made over a folder above it, hides.
    """
    left = [mount for mount in mounts if (path + "/").startswith(mount.point.rstrip("/") + "/")]
    ids = {mount.id for mount in mounts}
    here = None
    reachable = [mount for mount in left if mount.parent not in ids or mount.parent == mount.id]
    while reachable:
        # The nearest one hides the others; of several on one folder, the last.
        here = min(reversed(reachable), key=lambda mount: len(mount.point))
        left.remove(here)
        reachable = [mount for mount in left if mount.parent == here.id]
    return here


_held: Final[set[int]] = set()
"""Descriptors that carry a lock. A forked child has them too and must let go, or the lock outlives its owner."""

# Held while a descriptor is opened and noted, and across a fork, so that no fork falls between the two. Reentrant,
# because a signal handler may fork while its own thread is in there.
_forking: Final = threading.RLock()


def _release_in_child() -> None:
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()
    _helpers.cache_clear()  # a fork takes no threads along
    _forking.release()


if sys.platform != "win32":
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_release_in_child)


_Calls = SimpleQueue[tuple[Callable[[], object], "SimpleQueue[Exception | None]"]]


@cache
def _helpers() -> _Calls:
    """Return where some threads, which last as long as the process, take what they are to call.

    A flush mostly waits, and those that wait together cost a disk little more than one.
    """
    calls: _Calls = SimpleQueue()

    def help_out() -> None:
        while True:
            _make(*calls.get())

    for _ in range(_HELPERS):
        threading.Thread(target=help_out, name="holdfast: flush", daemon=True).start()
    return calls


def _make(call: Callable[[], object], errors: SimpleQueue[Exception | None]) -> None:
    try:
        call()
    except Exception as exc:  # noqa: BLE001 – whoever waits for it raises it
        errors.put(exc)
    else:
        errors.put(None)


class Lock:
    """A held lock on a file or folder, from `Disk.lock`; a context manager that releases it.

    It belongs to this object: two of one process exclude each other like two processes. It ends with `release`, with
    the process however that dies, and never because a child does something: exec closes the descriptor, a fork made
    by Python closes it in the child, where `is_held` is then false and `release` does nothing. Only a fork made by C
    code behind Python's back leaves the child a share in it; `release` frees the lock even then, a killed parent not.

    It is advisory and lies on the file that has the name, so lock files of their own are locked, not data that
    `Disk.replace` gives a new file each time.

    It is flock(2), because that belongs to the open file. The locks of fcntl(2) belong to the process: two objects of
    one process would not see each other, and closing any other descriptor of the file would drop the lock. Open file
    description locks would do, but macOS has none that are documented.
    """

    def __init__(self, path: Path, fd: int, *, shared: bool, take: Callable[[bool, float | None], bool]) -> None:
        self.path = path
        self.is_shared = shared
        self._fd: int | None = fd
        self._pid = os.getpid()
        self._take = take

    @property
    def is_held(self) -> bool:
        """Whether this process holds it: it was not released, and this is no forked child."""
        return self._fd is not None and self._pid == os.getpid()

    def downgrade(self) -> None:
        """Share an exclusive lock, without a moment in which it is free.

        Linux and macOS do so on local disks, though flock(2) does not promise it. Where somebody else came in between
        nevertheless, nothing is held any more. Nothing happens to a shared lock.

        Raises:
            ConflictError: It was lost in between, or is not held.
        """
        self._check_held("shared")
        if not self.is_shared:
            if not self._convert(shared=True, wait_s=0):
                raise ConflictError(
                    f"the lock on {str(self.path)!r} was taken by another while it was being shared; lock it again",
                    path=str(self.path),
                )
            self.is_shared = True

    def upgrade(self, *, wait_s: float | None = 0) -> None:
        """Make a shared lock exclusive, waiting at most ``wait_s`` seconds (None: for ever) for the others to leave.

        The shared lock is given up first; else two that upgrade at once would wait for each other. So somebody else
        may have written in between: read again what was read. Nothing happens to an exclusive lock.

        Raises:
            BusyError: Others kept theirs. Nothing is held any more.
            ConflictError: It is not held.
        """
        self._check_held("made exclusive")
        if self.is_shared:
            if not self._convert(shared=False, wait_s=wait_s):
                raise _busy(self.path, wait_s)
            self.is_shared = False

    def release(self) -> None:
        """Let others have it. Nothing happens the second time, or in a forked child."""
        fd, self._fd = self._fd, None
        if fd is not None and self._pid == os.getpid():
            _drop(fd)

    def _check_held(self, doing: str) -> None:
        if not self.is_held:
            raise ConflictError(
                f"the lock on {str(self.path)!r} cannot be {doing}: it was released, or belongs to process {self._pid}",
                path=str(self.path),
            )

    def _convert(self, *, shared: bool, wait_s: float | None) -> bool:
        taken = False
        try:
            with _translated(self.path, "lock"):
                taken = self._take(shared, wait_s)
        finally:
            if not taken:
                self.release()
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if self.is_held:
            text = f"the lock on {str(self.path)!r} was dropped, not released"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
            self.release()

    def __repr__(self) -> str:
        how = "released" if not self.is_held else "shared" if self.is_shared else "exclusive"
        return f"<Lock on {str(self.path)!r}, {how}>"


_Transfer = Callable[[int, list[memoryview], int], int]


class Blocks:
    """An open plain file, from `Disk.open_blocks`, read and written at any place; a context manager.

    Unless it was opened ``is_cached``, it goes around the system's cache where system and file system can, for what is
    whole blocks (4096 bytes, in the file and in memory): a gigabyte then pushes nothing out of the cache and is not
    copied on its way. What is not whole blocks goes through the cache.
    """

    def __init__(self, path: Path, fd: int, *, read: _Transfer, write: _Transfer, flush: Callable[[int], None]) -> None:
        self.path = path
        self.fd = fd
        self._read = read
        self._write = write
        self._flush = flush

    def write(self, parts: Sequence[memoryview], at: int) -> None:
        """Write parts of memory one after the other, from byte ``at`` on; not durable before `flush`."""
        with _translated(self.path, "write"):
            left = list(parts)
            while left:
                written = self._transfer(self._write, left[:_MAX_PARTS], at)
                at += written
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]

    def read(self, into: memoryview, at: int) -> int:
        """Fill ``into`` from byte ``at`` on; return how many bytes there were, fewer only if the file ends."""
        with _translated(self.path, "read"):
            done = 0
            while done < len(into):
                found = self._transfer(self._read, [into[done:]], at + done)
                if not found:
                    break
                done += found
            return done

    def flush(self) -> None:
        """Make durable what it holds, as `Disk.sync_file` does."""
        with _translated(self.path, "flush"):
            self._flush(self.fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def _transfer(self, call: _Transfer, parts: list[memoryview], at: int) -> int:
        try:
            return call(self.fd, parts, at)
        except OSError as exc:
            if exc.errno != errno.EINVAL or not self.go_direct(is_on=False):
                raise
            return call(self.fd, parts, at)

    def go_direct(self, *, is_on: bool) -> bool:
        """Go around the cache from now on, if that can be, or no more; return whether that is a change."""
        if not _DIRECT or sys.platform == "win32":
            return False
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        wanted = flags | _DIRECT if is_on else flags & ~_DIRECT
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, wanted)
        except OSError:
            return False
        return wanted != flags

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Disk:
    """Durable files, folders and locks. Without state of its own: hand one instance to all who need it.

    What it does to the world goes through the methods that begin with an underscore and are listed first, one system
    call each. A subclass may record them, fail them, or give another clock.

    Besides what each method says, all raise MissingError if what is named, or the folder for it, is not there;
    DeniedError if this user may not; UnavailableError if the disk is full, failing, read-only, or cannot do it;
    InvalidError if no path can be like this. Nothing was changed then, unless the method says more.
    """

    def _open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags, mode)  # Python opens everything so that exec closes it

    def _read(self, fd: int, size: int) -> bytes:
        return os.read(fd, size)

    def _write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def _read_at(self, fd: int, parts: list[memoryview], at: int) -> int:
        return os.preadv(fd, parts, at)

    def _write_at(self, fd: int, parts: list[memoryview], at: int) -> int:
        return os.pwritev(fd, parts, at)

    def _flush(self, fd: int) -> None:
        if sys.platform == "darwin":
            # fsync of macOS ends at the cache of the drive. Network volumes do not know the one that goes on.
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            except OSError as exc:
                if exc.errno not in _NO_FOLDER_FLUSH:
                    raise
            else:
                return
        os.fsync(fd)

    def _at_once(self, calls: Sequence[Callable[[], object]]) -> None:
        """Make some calls at the same time; when all have ended raise what one of them raised, if any did."""
        errors: SimpleQueue[Exception | None] = SimpleQueue()
        own = calls
        with _forking, suppress(RuntimeError):  # there are no more threads: then one after the other
            others = _helpers()
            for call in calls[1:]:
                others.put((call, errors))
            own = calls[:1]
        for call in own:
            _make(call, errors)
        for error in [errors.get() for _ in calls]:
            if error is not None:
                raise error

    def _link(self, source: Path, target: Path) -> None:
        if sys.platform == "win32":
            os.link(source, target)
        else:
            os.link(source, target, follow_symlinks=False)

    def _rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def _rename_new(self, source: Path, target: Path) -> None:
        _rename_new(source, target)

    def _unlink(self, path: Path) -> None:
        os.unlink(path)

    def _mkdir(self, path: Path, mode: int) -> None:
        os.mkdir(path, mode)

    def _rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def _remove_tree(self, path: Path) -> None:
        import shutil  # here for start-up: it brings every compression module along

        shutil.rmtree(path, ignore_errors=True)  # follows no link; what stays has a temporary name and is swept

    def _try_lock(self, fd: int, *, shared: bool) -> bool:
        try:
            if sys.platform == "win32":
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the latter is Windows
            return False
        return True

    def _now(self) -> float:
        return time.time()

    def _monotonic(self) -> float:
        return time.monotonic()

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def read(self, path: StrPath) -> bytes:
        """Return all that the plain file at ``path`` holds; while it is being replaced, all of the old or the new.

        Raises:
            MissingError: There is none (FileNotFoundError as well).
            InvalidError: It is a link, folder, pipe or device. A link is refused, because a plugin could have put it
                there to be shown what it may not read itself.
        """
        path = Path(path)
        with _translated(path, "read"):
            fd = self._open(path, os.O_RDONLY | _PLAIN)
            try:
                size = _check_plain(os.fstat(fd)).st_size
                chunks: list[bytes] = []
                while chunk := self._read(fd, max(size, _CHUNK_BYTES)):
                    chunks.append(chunk)
                return b"".join(chunks)
            finally:
                os.close(fd)

    def create(self, path: StrPath, data: bytes | bytearray | memoryview, *, mode: int = 0o600) -> None:
        """Put a new file with ``data`` at ``path``; once this returns it is durable. At any time it is absent or whole.

        Its permissions are ``mode``, whatever the umask. Of several that create one name at once, one succeeds. Two
        flushes: file and folder. If the flush of the folder fails, the file is there, but may not outlive a power cut.

        Raises:
            ExistsError: Something has the name, be it a link to nowhere (ConflictError, and FileExistsError as well).
        """
        path = Path(path)
        with _translated(path, "create"), self._flushed_after(path.parent):
            if _find(path) is not None:  # so that a full disk is not blamed where the name is taken
                raise _error(errno.EEXIST)
            with self._temporary_file(path.parent, data, mode=mode, like=None) as temporary:
                try:
                    self._link(temporary, path)
                except OSError as exc:
                    if exc.errno not in _NO_LINKS:
                        raise
                    self._move(temporary, path)

    def replace(
        self,
        path: StrPath,
        data: bytes | bytearray | memoryview,
        *,
        mode: int | None = None,
        keep_previous: StrPath | None = None,
    ) -> None:
        """Put a file with ``data`` at ``path`` in place of what is there, if anything; once this returns it is durable.

        At any time, and after any failure, ``path`` is all of the old or all of the new. Whoever has the old one open
        keeps it. Two flushes: file and folder. If the flush of the folder fails, the new content is in place, but
        after a power cut it may be the old one.

        Without ``mode`` the new file has the permissions and owner of the old one (0600 and this user, if there was
        none), as far as this user may give it away; with ``mode``, exactly that and this user, which is what a secret
        needs. Access lists and extended attributes are not carried over.

        ``keep_previous`` is a name in the same folder that then stands for the old file: a hard link, or a copy where
        there are none (two more flushes). It is made before the new one takes its place and replaces what had the
        name; if it cannot be made, nothing changes. After a kill it may be the same file as ``path``.

        Raises:
            InvalidError: ``path`` is a link, a folder, or anything but a plain file. A link is refused and not
                resolved: a plugin could have put it there to have another file overwritten. Or ``keep_previous`` is
                in another folder.
        """
        path = Path(path)
        previous = None if keep_previous is None else Path(keep_previous)
        if previous is not None and (previous.parent != path.parent or previous == path):
            raise InvalidError(
                f"the old {str(path)!r} cannot be kept as {str(previous)!r}: another name in its folder is expected",
                path=str(path),
            )
        with _translated(path, "replace"), self._flushed_after(path.parent):
            # A link that appears after this look is replaced itself: rename does not follow it.
            old = _find(path)
            if old is not None:
                _check_plain(old)
            with self._temporary_file(path.parent, data, mode=mode, like=old) as temporary:
                if previous is not None and old is not None:
                    self._keep(path, previous)
                self._rename(temporary, path)

    def rename(self, source: StrPath, target: StrPath) -> None:
        """Give the file or folder ``source`` the name ``target`` if that is free; once this returns it is durable.

        Flushes the names only, not what the file or folder holds: use `sync_file` before. At any time it has one of
        the names, never none; after a kill a file may have both where renameat2(2) is missing (NFS). There a folder's
        target may be seen as an empty folder for a moment, or after a kill.

        Raises:
            ExistsError: ``target`` is taken. Neither was touched.
            MissingError: There is no ``source``, or no folder to put it in.
            InvalidError: They are on two file systems, or ``target`` is inside ``source``.
        """
        source, target = Path(source), Path(target)
        with _translated(source, "rename"):
            os.lstat(source)  # blames the source; what fails from here on is the target's matter
        with _translated(target, "rename to"), ExitStack() as folders:
            # Left in reverse: the new name is durable before the old one is durably gone.
            if source.parent != target.parent:
                folders.enter_context(self._flushed_after(source.parent))
            folders.enter_context(self._flushed_after(target.parent))
            self._move(source, target)

    def delete(self, path: StrPath) -> None:
        """Let the file or folder at ``path`` be gone, durably; nothing happens if it is.

        A folder goes in one step, by a temporary name: at no time it is there in part. What of it cannot be removed,
        or is left by a kill, is for `sweep`. Of a link only the link goes.
        """
        path = Path(path)
        with _translated(path, "delete"):
            found = _find(path)
            leftover = _temporary_name(path.parent)
            if found is None:
                return
            with suppress(FileNotFoundError), self._flushed_after(path.parent):  # somebody else may be faster
                if stat.S_ISDIR(found.st_mode):
                    self._rename(path, leftover)
                else:
                    self._unlink(path)
            if stat.S_ISDIR(found.st_mode):
                self._remove_tree(leftover)

    def put_folder(self, path: StrPath, *, mode: int = 0o700) -> None:
        """Let there be a folder at ``path``, and all those above it; those that this makes are durable.

        They get ``mode`` less the umask. Two that make one at once both succeed. One that is there stays as it is.

        Raises:
            InvalidError: Something else than a folder has one of the names.
        """
        path = Path(path)
        with _translated(path, "make"):
            if os.path.isdir(path):
                return
            if path.parent != path:
                self.put_folder(path.parent, mode=mode)
            with self._flushed_after(path.parent):
                try:
                    self._mkdir(path, mode)
                except FileExistsError:
                    if not os.path.isdir(path):
                        raise _error(errno.ENOTDIR) from None

    @contextmanager
    def temporary_folder(self, parent: StrPath) -> Generator[Path]:
        """Yield a new empty folder in ``parent`` for something to be built in; give it its name with `rename`.

        If it is still there at the end of the block, it goes. No `sweep` takes it as long as the block lasts, in any
        process; after a kill the next one does.
        """
        parent, owner = Path(parent), os.getpid()
        with _translated(parent, "make a folder in"):
            folder, fd = self._create_temporary(parent, is_folder=True)
        try:
            yield folder
        finally:
            if os.getpid() == owner:  # a forked child leaves by here too
                if os.path.lexists(folder):
                    self._remove_tree(folder)
                _drop(fd)

    def write(
        self, files: Mapping[Path, bytes], *, folders: Iterable[Path] = (), stamps: Mapping[Path, int] | None = None
    ) -> None:
        """Put new files into folders that are being built, and flush them, and the ``folders``.

        All is written before the first flush, and flushed at the same time, so that the system may make it durable
        together. Not for a place that others see: there files may be half there. Their permissions are 0600.
        ``stamps`` are the times of the last change that folders get, in nanoseconds since 1970.

        Raises:
            ExistsError: Something has one of the names.
        """
        with ExitStack() as stack:
            opened: dict[Path, int] = {}
            for path, data in files.items():
                with _translated(path, "write"):
                    fd = opened[path] = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN)
                    stack.callback(os.close, fd)
                    view = memoryview(data)
                    while view:
                        view = view[self._write(fd, view) :]
                    with suppress(OSError, AttributeError):  # begins to write back, where that can be asked for
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for path, time_ns in (stamps or {}).items():
                with _translated(path, "stamp"):
                    os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
            for path in folders if sys.platform != "win32" else ():
                with _translated(path, "flush"):
                    fd = opened[path] = self._open(path, os.O_RDONLY | _DIRECTORY)
                    stack.callback(os.close, fd)
            # Without leaving early: what was begun goes on, and its descriptor may be another file's by then.
            with uninterrupted():
                self._at_once([partial(self._flush_one, path, fd) for path, fd in opened.items()])

    def _flush_one(self, path: Path, fd: int) -> None:
        with _translated(path, "flush"):
            (self._flush_folder if stat.S_ISDIR(os.fstat(fd).st_mode) else self._flush)(fd)

    def make_folder(self, path: StrPath) -> None:
        """Make a new folder in one that is being built; neither is flushed.

        Raises:
            ExistsError: Something has the name.
        """
        with _translated(path, "make"):
            self._mkdir(Path(path), 0o700)

    def open_blocks(
        self, path: StrPath, *, create: bool = False, is_cached: bool = False, fd: int | None = None
    ) -> Blocks:
        """Open a plain file to read it, or a new one of mode 0600 to write it, as `Blocks`.

        A descriptor that is open already may be given as ``fd``; it belongs to what is returned then.

        Raises:
            ExistsError: It shall be new, and something has the name.
            InvalidError: It is no plain file.
        """
        path = Path(path)
        with _translated(path, "open"):
            if fd is None:
                fd = self._open(path, (os.O_RDWR | os.O_CREAT | os.O_EXCL if create else os.O_RDONLY) | _PLAIN)
            try:
                _check_plain(os.fstat(fd))
            except OSError:
                os.close(fd)
                raise
        blocks = Blocks(path, fd, read=self._read_at, write=self._write_at, flush=self._flush)
        if not is_cached:
            blocks.go_direct(is_on=True)
        return blocks

    def link(self, source: StrPath, target: StrPath) -> bool:
        """Let ``target`` be the file ``source`` too, instead of what it is; return whether that could be done.

        It cannot if there is no ``source`` (any more), it has as many names as the file system allows, lies on
        another one, or is not this user's to link; then ``target`` is as it was. Not durable; for a folder that is
        being built.
        """
        target = Path(target)
        spare = _temporary_name(target.parent)
        with _translated(target, "link"):
            try:
                self._link(Path(source), spare)
            except OSError as exc:
                if exc.errno not in _NO_LINKS | {errno.ENOENT, errno.EXDEV, errno.EACCES}:
                    raise
                return False
            self._rename(spare, target)
            return True

    def sweep(self, folder: StrPath) -> list[Path]:
        """Remove from ``folder`` the temporary files and folders whose owner is dead; return them, sorted.

        An owner holds a lock as long as it lives. Where there are no locks nobody can be shown to be dead and all
        stays, as does what this user may not remove and what only looks like ours (links; another pattern of name).
        """
        folder = Path(folder)
        with _translated(folder, "sweep"):
            names = sorted(name for name in os.listdir(folder) if temporary_pattern.fullmatch(name))
        return [folder / name for name in names if self._sweep_one(folder / name)]

    def quarantine(self, path: StrPath, *, label: str = "corrupt") -> Path:
        """Set the file or folder aside as ``<name>.<label>-<UTC time>`` beside it, durably; return its new path.

        Never takes the place of anything: a second one in the same second gets ``-2`` at its end. The time is written
        ``20250131T235959Z``. Of two at once one finds nothing any more.
        """
        path = Path(path)
        aside = f"{path.name}.{label}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(self._now()))}"
        number = 1
        while True:
            target = path.parent / (aside if number == 1 else f"{aside}-{number}")
            try:
                self.rename(path, target)
            except ExistsError:
                number += 1
            else:
                return target

    def sync_file(self, path: StrPath, *, fd: int | None = None) -> None:
        """Make durable what the file at ``path`` holds. After an error write all of it again, to another file.

        Give the descriptor that wrote it as ``fd`` if it is still open: an error of the disk that came after the
        write is then sure to be reported here.

        Raises:
            InvalidError: It is not a plain file.
        """
        path = Path(path)
        with _translated(path, "flush"):
            if fd is not None:
                self._flush(fd)
                return
            # Windows flushes only what is open for writing.
            opened = self._open(path, (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY) | _PLAIN)
            try:
                _check_plain(os.fstat(opened))
                self._flush(opened)
            finally:
                os.close(opened)

    def sync_folder(self, path: StrPath) -> None:
        """Make durable which names the folder at ``path`` holds; not what is in those files."""
        with _translated(path, "flush"), self._flushed_after(Path(path)):
            pass

    def lock(self, path: StrPath, *, shared: bool = False, wait_s: float | None = 0) -> Lock:
        """Return the `Lock` on the file or folder at ``path``, made as an empty file if there is none.

        Any number may hold it shared, or one exclusively. With ``wait_s`` it waits that many seconds, with None for
        ever, looking again after at most 0.05 seconds each time; whoever comes first is not sure to be first.

        The file stays when the lock is released: deleting it would leave two that hold "the" lock, on two files. If
        somebody does delete it, whoever comes next locks the new one.

        Raises:
            BusyError: Somebody else holds it, in this process or another.
            InvalidError: It is a link, a pipe or a device.
        """
        path = Path(path)
        deadline = None if wait_s is None else self._monotonic() + wait_s
        with _translated(path, "lock"):
            fd = self._open_locked(path, shared=shared, deadline=deadline)
        if fd is None:
            raise _busy(path, wait_s)

        def take(shared: bool, wait_s: float | None) -> bool:  # noqa: FBT001 – what Lock asks for, not an interface
            if sys.platform == "win32":
                return True  # shared is exclusive there
            if shared:
                return self._try_lock(fd, shared=True)
            _unlock(fd)  # Linux would lose it by the first try, macOS keep it through the last
            deadline = None if wait_s is None else self._monotonic() + wait_s
            return self._take(fd, shared=False, deadline=deadline) and _is_at(fd, path)

        return Lock(path, fd, shared=shared, take=take)

    def free_bytes(self, path: StrPath) -> int:
        """Return how many bytes this user may still write where ``path`` is, or will be: it need not exist yet."""
        with _translated(path, "measure"):
            return _free_bytes(path)

    def filesystem(self, path: StrPath) -> str:
        """Return the type of the file system where ``path`` is, or will be (``"ext4"``, ``"nfs4"``, ``"fuse.sshfs"``).

        Links are followed. A bind mount has the type of what is bound; an overlay is ``"overlay"``, whatever is
        below. Empty where it cannot be told.
        """
        with _translated(path, "look up the file system of"):
            place = _existing(path)
            if sys.platform == "darwin":
                return _statfs_type(place)
            try:
                table = Path("/proc/self/mountinfo").read_bytes()
            except OSError:
                return ""
            mount = find_mount(parse_mounts(os.fsdecode(table)), place)
            return "" if mount is None else mount.kind

    def is_network(self, path: StrPath) -> bool:
        """Return whether another machine, or the host of this virtual one, may have the files at ``path`` open.

        Decided by `NETWORK_FILESYSTEMS`; what is not in it, and what cannot be told, is taken for local.
        """
        return self.filesystem(path) in NETWORK_FILESYSTEMS

    @contextmanager
    def _flushed_after(self, folder: Path) -> Generator[None]:
        """Flush ``folder`` after the block, if that succeeds; opened before, so that a missing one fails at once."""
        if sys.platform == "win32":
            yield
            return
        fd = self._open(folder, os.O_RDONLY | _DIRECTORY)
        try:
            yield
            self._flush_folder(fd)
        finally:
            os.close(fd)

    def _flush_folder(self, fd: int) -> None:
        try:
            self._flush(fd)
        except OSError as exc:
            # Some file systems (of FUSE, old SMB) have no flush for folders: it does not get more durable there.
            if exc.errno not in _NO_FOLDER_FLUSH:
                raise

    @contextmanager
    def _temporary_file(
        self, folder: Path, data: bytes | bytearray | memoryview, *, mode: int | None, like: os.stat_result | None
    ) -> Generator[Path]:
        """Yield the name of a flushed file with ``data``; at the end that name is gone."""
        path, fd = self._create_temporary(folder)
        is_open = True
        try:
            view = memoryview(data).cast("B")
            while view:
                view = view[self._write(fd, view) :]
            _set_permissions(fd, mode, like)
            self._flush(fd)
            if sys.platform == "win32":  # which renames nothing that is open
                is_open = False
                _drop(fd)
            yield path
        finally:
            # Also after a rename, when the name is free and stays so: one call more, and one path less.
            with suppress(OSError):
                self._unlink(path)
            if is_open:
                _drop(fd)

    def _create_temporary(self, folder: Path, *, is_folder: bool = False) -> tuple[Path, int]:
        """Make an empty file or folder that no sweep takes while its descriptor is open, and return both."""
        for _ in range(_ATTEMPTS):
            path = _temporary_name(folder)
            if is_folder:
                self._mkdir(path, 0o700)
            # A sweep may lock it, and remove it, before the claim. Then it is made again.
            try:
                fd = self._open_held(path, _FOLDER if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL | _PLAIN)
            except FileNotFoundError:
                if not is_folder:
                    raise
                continue
            is_ours = False
            try:
                is_ours = self._claim(fd) and _is_at(fd, path)
            finally:
                if not is_ours:
                    with suppress(OSError):
                        (self._rmdir if is_folder else self._unlink)(path)
                    _drop(fd)
            if is_ours:
                return path, fd
        raise _error(errno.EAGAIN)

    def _claim(self, fd: int) -> bool:
        try:
            return self._try_lock(fd, shared=True)  # enough to stop a sweep, and works on what is open for reading
        except OSError as exc:
            # No locks here: then no sweep can lock it either, and it is as safe as if it were locked.
            if exc.errno in {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}:
                return True
            raise

    def _keep(self, path: Path, previous: Path) -> None:
        for _ in range(_ATTEMPTS):
            spare = _temporary_name(path.parent)
            try:
                self._link(path, spare)
            except FileNotFoundError:
                return  # deleted since; there is nothing to keep
            except OSError as exc:
                if exc.errno not in _NO_LINKS:
                    raise
                self.replace(previous, self.read(path))
                return
            try:
                self._rename(spare, previous)
            except FileNotFoundError:
                continue  # a sweep found its lock free: it is a second name of a file that nobody locks
            finally:
                # rename(2) does nothing if both are names of one file already, as after a kill between here and there.
                with suppress(OSError):
                    self._unlink(spare)
            return
        raise _error(errno.EAGAIN)

    def _move(self, source: Path, target: Path) -> None:
        try:
            self._rename_new(source, target)
        except OSError as exc:
            if exc.errno not in _NO_RENAME_NEW:
                raise
            if stat.S_ISDIR(os.lstat(source).st_mode):
                # Making the folder claims the name; rename(2) then takes the place of that one only if it is empty.
                self._mkdir(target, 0o700)
                try:
                    self._rename(source, target)
                except BaseException:
                    with suppress(OSError):
                        self._rmdir(target)
                    raise
            else:
                try:
                    self._link(source, target)
                except OSError as exc:
                    if exc.errno in _NO_LINKS:
                        raise _error(errno.ENOTSUP) from exc
                    raise
                self._unlink(source)

    def _sweep_one(self, path: Path) -> bool:
        if sys.platform == "win32":
            return False  # what is open there cannot be removed, and what is closed cannot be locked
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                fd = self._open_held(path, _FOLDER)
            elif stat.S_ISREG(mode):
                # NFS locks exclusively only what is open for writing.
                fd = self._open_held(path, (os.O_RDWR if mode & stat.S_IWUSR else os.O_RDONLY) | _PLAIN)
            else:
                return False
            try:
                # Unlinked under the lock: an owner that comes just now finds it locked, or finds it gone.
                if not self._try_lock(fd, shared=False) or not _is_at(fd, path):
                    return False
                if stat.S_ISDIR(mode):
                    self._remove_tree(path)
                else:
                    self._unlink(path)
                return not os.path.lexists(path)
            finally:
                _drop(fd)
        except OSError:
            return False  # somebody else was faster, or it cannot be shown to be dead, or this user may not

    def _open_held(self, path: Path, flags: int) -> int:
        with _forking:
            fd = self._open(path, flags)
            _held.add(fd)
        return fd

    def _open_locked(self, path: Path, *, shared: bool, deadline: float | None) -> int | None:
        while True:
            fd = self._open_lock(path, shared=shared)
            is_taken = is_ours = False
            try:
                _check_plain(os.fstat(fd), or_folder=True)
                is_taken = self._take(fd, shared=shared, deadline=deadline)
                is_ours = is_taken and _is_at(fd, path)
            finally:
                if not is_ours:
                    _drop(fd)
            if is_ours:
                return fd
            if not is_taken:
                return None

    def _open_lock(self, path: Path, *, shared: bool) -> int:
        try:
            return self._open_held(path, os.O_RDWR | os.O_CREAT | _PLAIN)
        except IsADirectoryError:
            return self._open_held(path, _FOLDER)
        except OSError as exc:
            if not shared or exc.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise
            return self._open_held(path, os.O_RDONLY | _PLAIN)  # sharing needs no right to write

    def _take(self, fd: int, *, shared: bool, deadline: float | None) -> bool:
        pause = _FIRST_PAUSE_S
        while not self._try_lock(fd, shared=shared):
            left = _LONGEST_PAUSE_S if deadline is None else deadline - self._monotonic()
            if left <= 0:
                return False
            # Not flock's own waiting: only a signal could end that, and signals are the application's.
            self._wait(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return True


def _busy(path: Path, wait_s: float | None) -> BusyError:
    return BusyError(
        f"could not lock {str(path)!r}: another holds it, and kept it for {wait_s} s; try again, or wait longer",
        path=str(path),
        waited_s=wait_s,
    )


def _unlock(fd: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _drop(fd: int) -> None:
    with _forking:
        _held.discard(fd)
        # Closing frees the lock only if nobody else has the open file; a child of a fork made by C code may.
        with suppress(OSError):
            _unlock(fd)
        with suppress(OSError):  # someone else in this process has closed it
            os.close(fd)


def _temporary_name(folder: Path) -> Path:
    return folder / f".tmp-{os.urandom(8).hex()}"


def _is_at(fd: int, path: Path) -> bool:
    """Whether the open file still has this name: else a lock on it is one that nobody else will meet."""
    if sys.platform == "win32":
        return True  # what is open keeps its name there
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _find(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _check_plain(found: os.stat_result, *, or_folder: bool = False) -> os.stat_result:
    if stat.S_ISLNK(found.st_mode):
        raise _error(errno.ELOOP)
    if stat.S_ISDIR(found.st_mode) and not or_folder:
        raise _error(errno.EISDIR)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise _error(errno.ENXIO)
    return found


def _set_permissions(fd: int, mode: int | None, like: os.stat_result | None) -> None:
    if sys.platform == "win32":
        return
    now = os.fstat(fd)
    if mode is None:
        mode = 0o600 if like is None else like.st_mode & 0o777
        if like is not None and (now.st_uid, now.st_gid) != (like.st_uid, like.st_gid):
            try:
                os.fchown(fd, like.st_uid, like.st_gid)
            except OSError:
                mode &= 0o700  # the old permissions were given to another group; they are not this one's
    if stat.S_IMODE(now.st_mode) != mode:
        os.fchmod(fd, mode)


def _rename_new(source: Path, target: Path) -> None:
    """Rename in one step if ``target`` is free; ENOSYS, EINVAL or ENOTSUP where system or file system cannot."""
    if sys.platform == "win32":
        os.rename(source, target)
        return
    # The C library would take such a name for shorter than it is.
    old, new = os.fsencode(source), os.fsencode(target)
    if b"\0" in old + new:
        raise ValueError("embedded null byte")
    try:
        import ctypes  # here for start-up: a quarter of what all of Python needs to start
    except ImportError as exc:  # a Python that was built without
        raise _error(errno.ENOSYS) from exc
    library = _c_library()
    code = errno.ENOSYS
    if sys.platform == "darwin":
        if library.renamex_np(old, new, 0x4) == 0:  # RENAME_EXCL
            return
        code = ctypes.get_errno()
    elif hasattr(library, "renameat2"):
        if library.renameat2(-100, old, -100, new, 0x1) == 0:  # AT_FDCWD twice, RENAME_NOREPLACE
            return
        code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), str(source), None, str(target))


@cache
def _c_library() -> Any:
    import ctypes  # here for start-up

    return ctypes.CDLL(None, use_errno=True)


def _existing(path: StrPath) -> str:
    """Return the real path of ``path``, or of the nearest folder above it that is there."""
    place = os.path.realpath(path)
    while not os.path.lexists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    return place


def _free_bytes(path: StrPath) -> int:
    place = _existing(path)
    if sys.platform == "win32":
        import shutil  # here for start-up: it brings every compression module along

        return shutil.disk_usage(place).free
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def _statfs_type(path: str) -> str:
    """Return f_fstypename of macOS's statfs(2): 16 bytes, 72 from the start of its struct."""
    import ctypes  # here for start-up

    library = ctypes.CDLL(None, use_errno=True)
    # On Intel the plain name is that of an older struct.
    statfs = getattr(library, "statfs$INODE64", None) or library.statfs
    buffer = ctypes.create_string_buffer(4096)
    if statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return buffer.raw[72:88].split(b"\0", 1)[0].decode("ascii", "replace")
