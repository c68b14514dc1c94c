"""How a process ends while something is still to be saved: in its normal course, by SIGTERM, and as a child."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from types import FrameType
from typing import Final, Protocol
from weakref import WeakSet

from holdfast.errors import HoldfastError
from holdfast.interrupts import handler_of

log = logging.getLogger(__name__)


class Saver(Protocol):
    """Something that keeps changes in memory for a while."""

    def leave(self) -> None:
        """Let go of what the others may need, in the middle of whatever this thread does."""
        ...

    def end(self) -> None:
        """Save, and keep nothing in memory from here on."""
        ...

    def begin(self) -> None:
        """Begin as a process that has changed nothing."""
        ...


alive: Final[WeakSet[Saver]] = WeakSet()
"""Those that a forked child must let begin anew."""

unsaved: Final[set[Saver]] = set()
"""Those with changes: nobody else may know them any more."""


class _Ending:
    """What this process has come to."""

    def __init__(self) -> None:
        self.is_over = False
        self.is_told = False
        """Whether multiprocessing tells us of the end of this child, which is not Python's own."""


ending: Final = _Ending()


def is_awaited() -> bool:
    """See to it that what is unsaved is saved when the process ends; return whether it is, also if SIGTERM ends it.

    SIGTERM is caught unless somebody else does: then the application ends in its own way, and we save at its end. Only
    the main thread can catch it, so in another one the answer may be no.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not ending.is_told and sys.modules["multiprocessing.process"].parent_process() is not None:
        # Its children end by os._exit and not by atexit, and it forgets at their start whom it should tell. So: now,
        # and after all others, which may still set variables.
        util.Finalize(None, _save_at_exit, exitpriority=-1_000)
        ending.is_told = True
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        try:
            signal.signal(signal.SIGTERM, _on_sigterm)
        except ValueError:  # not the main thread
            return False
    return True


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    del frame
    if handler_of(number) is not _on_sigterm:  # somebody took over and only calls us: the end is theirs, if it is one
        return
    _save_at_exit()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _save_at_exit() -> None:
    ending.is_over = True  # for those that are made from here on
    savers = {*unsaved, *alive}
    for saver in savers:
        saver.leave()
    for saver in savers:
        try:
            saver.end()
        except HoldfastError as exc:
            log.error("variables.lost: %s", exc, extra={"reason": exc.message, "facts": exc.facts})  # noqa: TRY400


def _after_fork() -> None:
    unsaved.clear()
    ending.is_told = False
    for saver in list(alive):
        saver.begin()


atexit.register(_save_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
