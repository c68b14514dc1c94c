"""The calls of the system that change or show what is on the disk, each on its own."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from holdfast.disk.faults import error
from holdfast.disk.forks import at_once

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
FOLDER: Final = os.O_RDONLY | DIRECTORY | _NO_FOLLOW
# A pipe with nobody at its other end would else make the opening wait for ever; plain files do not mind.
PLAIN: Final = _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
NO_FOLDER_FLUSH: Final = frozenset({errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOTSUP})


class Calls:
    """What a `Disk` does to the world, one call each: a subclass may record them, fail them, or give another clock."""

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
                if exc.errno not in NO_FOLDER_FLUSH:
                    raise
            else:
                return
        os.fsync(fd)

    def _at_once(self, calls: Sequence[Callable[[], object]]) -> None:
        """Make some calls at the same time; when all have ended raise what one of them raised, if any did."""
        at_once(calls)

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
        raise error(errno.ENOSYS) from exc
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
