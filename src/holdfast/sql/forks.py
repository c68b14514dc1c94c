"""Forks and SQLite: a fork waits until no thread is inside SQLite, so that its child can close what it inherited.

SQLite notes for each process which of its connections hold which locks. A forked child inherits the notes, but not the
locks: what it opens then takes no locks, for they seem to be held, and another process may remove the log under its
writes. So a child first closes every inherited connection, which strikes them from the notes. That is harmless only
between two transactions, and possible only while no other thread holds one of SQLite's mutexes.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Final

from holdfast.errors import UnavailableError

WAIT_S: Final = 30.0
"""How long a fork waits for the other threads; a write may wait just as long for other processes."""


class _Gate:
    """Counts the threads inside SQLite and lets none enter while one forks; a context manager for each stay inside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads: dict[int, int] = {}
        self._forking = 0
        self._is_quiet = False
        self._is_unusable = False

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            # A thread that is inside already is waited for: it must not wait in its turn.
            while self._forking and me not in self._threads:
                self._changed.wait()
            self._threads[me] = self._threads.get(me, 0) + 1

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        me = threading.get_ident()
        with self._changed:
            self._threads[me] -= 1
            if not self._threads[me]:
                del self._threads[me]
                self._changed.notify_all()

    def check_usable(self, path: str) -> None:
        """Refuse SQLite in a child that could not get rid of what it inherited.

        Raises:
            UnavailableError: This is such a child.
        """
        if self._is_unusable:
            message = (
                f"the Pod {path!r} cannot be opened in this process: it was forked while a thread was in the middle "
                "of using a Pod; fork between two calls, or start a new process instead"
            )
            raise UnavailableError(message, path=path)

    def close(self) -> None:
        """Before a fork: wait until no other thread is inside, and let none in."""
        self._changed.acquire()  # until `open`: no other thread may hold it in the child
        self._forking += 1
        # A thread that forks while it is inside itself would wait for ever.
        is_inside = threading.get_ident() in self._threads
        self._is_quiet = not is_inside and self._changed.wait_for(lambda: not self._threads, WAIT_S)

    def open(self) -> None:
        """After a fork, in the parent."""
        self._forking -= 1
        self._changed.notify_all()
        self._changed.release()

    def open_in_child(self) -> bool:
        """After a fork, in the child; return whether inherited connections can be closed."""
        is_quiet, was_unusable = self._is_quiet, self._is_unusable
        self.__init__()  # the threads are gone, and what they held with them
        self._is_unusable = was_unusable or not is_quiet
        return is_quiet


inside_sqlite: Final = _Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=inside_sqlite.close, after_in_parent=inside_sqlite.open)
