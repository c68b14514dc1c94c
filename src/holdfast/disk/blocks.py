"""Large files, read and written at any place and around the system's cache."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from holdfast.disk.faults import translated

if sys.platform != "win32":
    import fcntl

_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_MAX_PARTS: Final = 512  # of memory, in one write; systems allow 1024

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
        with translated(self.path, "write"):
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
        with translated(self.path, "read"):
            done = 0
            while done < len(into):
                found = self._transfer(self._read, [into[done:]], at + done)
                if not found:
                    break
                done += found
            return done

    def flush(self) -> None:
        """Make durable what it holds, as `Disk.sync_file` does."""
        with translated(self.path, "flush"):
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
