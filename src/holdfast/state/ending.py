"""How a process ends while something is still to be saved: in its normal course, by SIGTERM, and in a forked child."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final, Protocol
from weakref import WeakSet

from holdfast.errors import HoldfastError

log = logging.getLogger(__name__)


class Saver(Protocol):
    """Something that keeps changes in memory for a while."""

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
    """How far the main thread is from a place where the process may end; signals are handled by that thread alone."""

    def __init__(self) -> None:
        self.depth = 0
        self.is_asked = False
        self.is_over = False


ending: Final = _Ending()


@contextmanager
def uninterrupted() -> Generator[None]:
    """Let SIGTERM wait until the block is done: what saves then must not meet a save that is half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending.depth += 1
    try:
        yield
    finally:
        ending.depth -= 1
        if ending.is_asked and not ending.depth:
            _die()


def _on_sigterm(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    ending.is_asked = True
    if not ending.depth:
        _die()


def _die() -> None:
    _save_at_exit()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _save_at_exit() -> None:
    ending.is_over = True  # for those that are made from here on
    for saver in [*unsaved, *alive]:
        try:
            saver.end()
        except HoldfastError as exc:
            log.error("variables.lost: %s", exc, extra={"reason": exc.message, "facts": exc.facts})  # noqa: TRY400


def _after_fork() -> None:
    unsaved.clear()
    ending.depth = 0
    for saver in list(alive):
        saver.begin()


atexit.register(_save_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def catch_sigterm() -> None:
    """Save before SIGTERM ends the process, unless the application handles it: then it ends by itself, and we save."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)
