"""Group commit: what threads want written at the same time becomes durable together, with one flush for all.

Hides a queue and the one thread that writes from it. The thread takes what has come while it wrote what came before, so
groups grow with the load. Where a flush is quick, that alone would be few: once three or more have come together, later
groups wait a moment for as many as lately, but one. Who writes alone waits for nobody, nor do two, nor does a renewal
of a lease. When many have gone, who is left alone waits in vain once, and a few who are left for eight groups at most.

The failure argument. *The process dies*: nobody was answered before the commit, however long that waited for company.
*The disk fails*: all of that group are told so, none that it is there. *A batch is refused, or meets a defect*: its
neighbours are written without it. *The thread dies*: those who wait are told, and the next write starts another. *It is
closed*: nobody waits for company any more. *A forked child* has the store, but neither the thread nor the queue, which
are its parent's.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections import deque
from itertools import islice
from typing import Final

from holdfast.errors import HoldfastError, UnavailableError
from holdfast.interrupts import is_interrupted, uninterrupted
from holdfast.sql.sqlite import SqliteStore
from holdfast.store import MAX_BYTES, Batch, RenewLease, Result, Store, size_bytes
from holdfast.store.wire import METHODS

MAX_BATCHES: Final = 256
MAX_GROUP_OPERATIONS: Final = 20_000
"""Of all batches of a group, unless it is one alone: so that those who write past the queue need not wait for long."""

_PATIENCE_S: Final = 0.005
"""How long a group waits for company: a few requests over HTTP come in that time, and nobody notices it."""
_LATELY: Final = 8
"""How many groups back are looked at: few come together by chance now and then, though many write."""
_MAX_COMPANY: Final = 16
"""More need not come: a sixteenth of a flush is little."""
_LOOK_S: Final = 0.1
"""How often who waits looks whether a signal asks it to stop."""

_open_stores: weakref.WeakSet[GroupedStore] = weakref.WeakSet()


class _Waiting:
    """A batch, and a thread that waits for what becomes of it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.operations = len(batch.operations)
        self.is_urgent = any(type(each) is RenewLease for each in batch.operations)
        self.size_bytes = sum(map(size_bytes, batch.operations))
        self.is_under_way = self.is_told = False
        self.answer: tuple[Result, ...] | BaseException = ()
        # A bare lock: who waits may be interrupted at any instruction, and must not leave one locked that others need.
        self.gate = threading.Lock()
        self.gate.acquire()

    def tell(self, answer: tuple[Result, ...] | BaseException) -> None:
        """Let the thread go on with this answer; the first one counts."""
        if not self.is_told:
            self.answer, self.is_told = answer, True
            self.gate.release()


class GroupedStore(Store):
    """A `SqliteStore` whose writes of several threads are committed in groups; all else it does itself.

    Args:
        store: Where everything is; closed with this one.
        patience_s: How long a group waits at most for those who may be on their way.
    """

    def __init__(self, store: SqliteStore, *, patience_s: float = _PATIENCE_S) -> None:
        self._store = store
        self._patience_s = patience_s
        self._is_closed = False
        self._begin()
        for name in METHODS.keys() - {"apply"}:
            setattr(self, name, getattr(store, name))
        _open_stores.add(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._writer: threading.Thread | None = None
        self._lately: deque[int] = deque(maxlen=_LATELY)
        """How many batches each of the last groups had, since one waited and nobody came."""

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Apply ``batch`` as `Store.apply` says, perhaps together with those of other threads.

        Ctrl-C while it waits leaves it whole or not done at all, as the death of the process does.

        Raises:
            UnavailableError: Besides, if the store is closed, or no thread can be had.
        """
        if batch.key is not None:
            batch.digest()  # now, and not in the thread that everybody waits for
        waiting = _Waiting(batch)
        try:
            with uninterrupted(), self._changed:
                self._check_open()
                self._queue.append(waiting)
                if len(self._queue) == 1 or self._is_enough():  # else the thread would only find that it has to wait on
                    self._changed.notify()
            self._wait(waiting)
        except BaseException:
            self._withdraw(waiting)
            raise
        if isinstance(waiting.answer, BaseException):
            raise waiting.answer
        return waiting.answer

    def _check_open(self) -> None:
        """Refuse if it is closed; and see that there is a thread that writes."""
        if self._is_closed:
            raise self._unavailable("was closed")
        if self._writer is None:
            writer = threading.Thread(target=self._write, name="holdfast-writer", daemon=True)
            try:
                writer.start()
            except RuntimeError as exc:
                raise self._unavailable(f"cannot be written to: {exc}") from exc
            self._writer = writer

    def _wait(self, waiting: _Waiting) -> None:
        while not waiting.gate.acquire(timeout=_LOOK_S):
            if is_interrupted() and self._withdraw(waiting):
                raise self._unavailable("was not written to: a signal came before")

    def _withdraw(self, waiting: _Waiting) -> bool:
        """Take a batch back, unless it is being written."""
        with uninterrupted(), self._changed:
            can_be = not waiting.is_under_way and waiting in self._queue
            if can_be:
                self._queue.remove(waiting)
            return can_be

    def _unavailable(self, why: str, what: str = "the Pod") -> UnavailableError:
        path = str(self._store.path)
        return UnavailableError(f"{what} {path!r} {why}", path=path)

    # -- the thread that writes ---------------------------------------------------------------------------------------

    def _write(self) -> None:
        try:
            while self._write_group():
                pass
        finally:
            with self._changed:
                self._writer = None
                for waiting in self._queue:
                    waiting.tell(self._unavailable("has ended; try again", "the thread that writes to the Pod"))
                self._queue.clear()

    def _write_group(self) -> bool:
        """Write the next group; return False if there will be none."""
        group = self._next_group()
        if not group:
            return False
        for waiting, answer in zip(group, self._answers([each.batch for each in group]), strict=True):
            waiting.tell(answer)
        with self._changed:
            for _ in group:
                self._queue.popleft()
        return True

    def _next_group(self) -> list[_Waiting]:
        """Wait for batches and return the first of the queue, where they stay until they are answered.

        There are none when the store was closed and all have been.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                if not self._changed.wait_for(self._is_enough, self._patience_s) and len(self._queue) < 2:
                    self._lately.clear()
                if self._queue or self._is_closed:  # all may have been taken back
                    break
            count = operations = size = 0
            for waiting in islice(self._queue, MAX_BATCHES):
                operations += waiting.operations
                size += waiting.size_bytes
                if count and (operations > MAX_GROUP_OPERATIONS or size > MAX_BYTES):
                    break
                waiting.is_under_way = True
                count += 1
            self._lately.append(count)
            return list(islice(self._queue, count))

    def _is_enough(self) -> bool:
        """Whether as many have come as may be expected, or somebody cannot wait."""
        company = min(_MAX_COMPANY, max(self._lately, default=1) - 1)
        return len(self._queue) >= company or self._is_closed or any(waiting.is_urgent for waiting in self._queue)

    def _answers(self, batches: list[Batch]) -> list[tuple[Result, ...] | BaseException]:
        try:
            if len(batches) == 1:
                return [self._store.apply(batches[0])]
            return [*self._store.apply_all(batches)]
        except BaseException as exc:  # noqa: BLE001 -- whatever it is, those who wait must hear of it
            if len(batches) == 1:
                return [exc]
            if isinstance(exc, UnavailableError):
                return [_copy(exc) for _ in batches]
        # A defect that one of them meets, and nothing was written: the others do not meet it by themselves.
        return [answer for batch in batches for answer in self._answers([batch])]

    def close(self) -> None:
        """Refuse new writes, carry out those that wait, and close the store; twice is harmless."""
        with uninterrupted(), self._changed:
            self._is_closed = True
            self._changed.notify_all()
            writer = self._writer
        if writer is not None:
            writer.join()
        self._store.close()


def _copy(exc: HoldfastError) -> HoldfastError:
    """Return an error for one of several threads: each adds its own place to the one that it raises."""
    copied = copy.copy(exc)
    copied.__cause__ = exc
    return copied


def _begin_all_anew() -> None:
    for store in list(_open_stores):
        store._begin()  # pyright: ignore[reportPrivateUsage] -- this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all_anew)
