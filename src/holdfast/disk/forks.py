"""What belongs to this process alone: descriptors that carry locks, and threads that wait for flushes.

A forked child lets go of the first, and starts its own of the second.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_HELPERS: Final = 3

_held: Final[set[int]] = set()
"""Descriptors that carry a lock. A forked child has them too and must let go, or the lock outlives its owner."""

# Held while a descriptor is opened and noted, and across a fork, so that no fork falls between the two. Reentrant,
# because a signal handler may fork while its own thread is in there.
forking: Final = threading.RLock()


def _release_in_child() -> None:
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()
    _helpers.cache_clear()  # a fork takes no threads along
    forking.release()


if sys.platform != "win32":
    os.register_at_fork(before=forking.acquire, after_in_parent=forking.release, after_in_child=_release_in_child)


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


def at_once(calls: Sequence[Callable[[], object]]) -> None:
    """Make some calls at the same time; when all have ended raise what one of them raised, if any did."""
    errors: SimpleQueue[Exception | None] = SimpleQueue()
    own = calls
    with forking, suppress(RuntimeError):  # there are no more threads: then one after the other
        others = _helpers()
        for call in calls[1:]:
            others.put((call, errors))
        own = calls[:1]
    for call in own:
        _make(call, errors)
    for error in [errors.get() for _ in calls]:
        if error is not None:
            raise error


def hold(open_file: Callable[[], int]) -> int:
    """Return the descriptor that ``open_file`` returns, and that `drop` closes: it is going to carry a lock."""
    with forking:
        fd = open_file()
        _held.add(fd)
    return fd


def drop(fd: int) -> None:
    """Close a descriptor from `hold`, and free its lock; nothing happens the second time."""
    with forking:
        if fd not in _held:
            return
        unlock(fd)
        _held.discard(fd)
        with suppress(OSError):  # someone else in this process has closed it
            os.close(fd)


def unlock(fd: int) -> None:
    """Free the lock of a descriptor: closing does that only if nobody else has the open file, as a forked child may."""
    with suppress(OSError):
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)
