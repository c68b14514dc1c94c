"""Locks on files and folders, and how they are taken."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from holdfast.disk.calls import FOLDER, PLAIN, Calls
from holdfast.disk.faults import BusyError, StrPath, check_plain, translated
from holdfast.disk.forks import drop, forking, hold, unlock
from holdfast.errors import ConflictError

_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.05


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

    _fd: int | None = None

    def __init__(self, path: Path, fd: int, *, shared: bool, share: Callable[[], bool]) -> None:
        self.path = path
        self.is_shared = shared
        self._share = share
        self._pid = os.getpid()
        self._fd = fd

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
        if not self.is_held:
            raise ConflictError(
                f"the lock on {str(self.path)!r} cannot be shared: it was released, or belongs to process {self._pid}",
                path=str(self.path),
            )
        if self.is_shared:
            return
        try:
            with translated(self.path, "lock"):
                self.is_shared = sys.platform == "win32" or self._share()  # shared is exclusive there
        finally:
            if not self.is_shared:
                self.release()
        if not self.is_shared:
            raise ConflictError(
                f"the lock on {str(self.path)!r} was taken by another while it was being shared; lock it again",
                path=str(self.path),
            )

    def release(self) -> None:
        """Let others have it. Nothing happens the second time, or in a forked child."""
        with forking:
            fd = self._fd
            if fd is not None and self.is_held:
                unlock(fd)  # first: whatever interrupts the rest leaves no lock behind, and closes nothing twice
                self._fd = None
                drop(fd)

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


class Locks(Calls):
    """The part of a `Disk` that locks."""

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
        with translated(path, "lock"):
            lock = self._find_locked(path, shared=shared, deadline=deadline)
        if lock is None:
            kept = f"another holds it, and kept it for {wait_s} s; try again, or wait longer"
            raise BusyError(f"could not lock {str(path)!r}: {kept}", path=str(path), waited_s=wait_s)
        return lock

    def _claim(self, fd: int) -> bool:
        try:
            return self._try_lock(fd, shared=True)  # enough to stop a sweep, and works on what is open for reading
        except OSError as exc:
            # No locks here: then no sweep can lock it either, and it is as safe as if it were locked.
            if exc.errno in {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}:
                return True
            raise

    def _open_held(self, path: Path, flags: int) -> int:
        return hold(partial(self._open, path, flags))

    def _find_locked(self, path: Path, *, shared: bool, deadline: float | None) -> Lock | None:
        while True:
            fd = self._open_lock(path, shared=shared)
            # Made before the lock is taken: whatever interrupts this from then on, the object goes, and frees it.
            lock = Lock(path, fd, shared=shared, share=partial(self._try_lock, fd, shared=True))
            is_taken = is_ours = False
            try:
                check_plain(os.fstat(fd), or_folder=True)
                is_taken = self._take(fd, shared=shared, deadline=deadline)
                is_ours = is_taken and is_at(fd, path)
            finally:
                if not is_ours:
                    lock.release()
            if is_ours:
                return lock
            if not is_taken:
                return None

    def _open_lock(self, path: Path, *, shared: bool) -> int:
        try:
            return self._open_held(path, os.O_RDWR | os.O_CREAT | PLAIN)
        except IsADirectoryError:
            return self._open_held(path, FOLDER)
        except OSError as exc:
            if not shared or exc.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise
            return self._open_held(path, os.O_RDONLY | PLAIN)  # sharing needs no right to write

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


def is_at(fd: int, path: Path) -> bool:
    """Whether the open file still has this name: else a lock on it is one that nobody else will meet."""
    if sys.platform == "win32":
        return True  # what is open keeps its name there
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
