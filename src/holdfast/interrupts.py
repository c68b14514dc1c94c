"""Signals that wait until what was begun is done, so that Ctrl-C never falls between a commit and the news of it.

Python runs signal handlers between any two instructions of the main thread, and most handlers raise. Inside
`uninterrupted` those of SIGINT and SIGTERM are noted instead and run when the block ends. What waits inside for
somebody else asks `is_interrupted` and gives up early.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)


class _Uninterrupted:
    """A context manager, reentrant; does nothing in other threads than the main one, where no handler runs."""

    def __init__(self) -> None:
        self.depth = 0
        self.owner = 0
        """The thread whose block it is, or was."""
        self.pending: list[tuple[int, FrameType | None]] = []
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if not self.depth:
            self.pending.clear()  # a handler that raised while the last block ended has said it all
            self.owner = threading.get_ident()
            for number in _NUMBERS:
                handler = signal.getsignal(number)
                if callable(handler) and handler != self.note:
                    self.handlers[number] = handler
                    signal.signal(number, self.note)
        # Last: until here `note` passes signals on, and one that raises leaves a block that was never entered.
        self.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A thread that forks in its block, which did nothing, is the main one of the child: there is no depth to leave.
        if threading.current_thread() is not threading.main_thread() or not self.depth:
            return
        self.depth -= 1
        if self.depth:
            return
        # From here on `note` passes signals on, so a handler that raises in the middle of this leaves nothing behind.
        self.put_back()
        pending, self.pending = self.pending, []
        for number, frame in pending:
            self.handlers[number](number, frame)

    def put_back(self) -> None:
        """Let the handlers stand for themselves again."""
        for number, handler in self.handlers.items():
            if signal.getsignal(number) == self.note:
                signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Stand in for the handlers."""
        if self.depth:
            self.pending.append((number, frame))
        else:
            self.handlers[number](number, frame)


_state: Final = _Uninterrupted()


def uninterrupted() -> _Uninterrupted:
    """Return the context manager in whose block no signal handler runs; at its end those run that should have."""
    return _state


def is_interrupted() -> bool:
    """Say whether a signal waits for this thread's block to end: what can be given up should be."""
    return bool(_state.pending) and threading.current_thread() is threading.main_thread()


def handler_of(number: int) -> Any:
    """Return what `signal.getsignal` would without a block: the handler that waits, and not what stands in for it."""
    handler = signal.getsignal(number)
    return _state.handlers[number] if handler == _state.note else handler


def deliver() -> None:
    """Inside a block, at a place where it may be left: run the handlers of the signals that wait."""
    if threading.current_thread() is threading.main_thread():
        while _state.pending:
            number, frame = _state.pending.pop(0)
            _state.handlers[number](number, frame)


def _begin_anew() -> None:
    _state.pending.clear()  # the parent's
    if _state.owner != threading.get_ident():  # and so is the block: the thread that would leave it is not here
        _state.depth = 0
        _state.put_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
