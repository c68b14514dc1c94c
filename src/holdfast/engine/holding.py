"""Holding a plugin state: the claim, its renewal from a thread of its own, and the notice that it was lost.

The failure argument. *The process dies*: its file lock is free at once and its lease lapses; on this machine the next
claim goes through because the lock proves the holder dead, elsewhere after the lease. *The process is stopped past its
lease and wakes up*: the next claim took another epoch, so its late write is refused where it is applied; the next claim
goes through although the sleeper still has the file lock, and does without. *The Pod does not answer*, or keeps a
renewal waiting: no renewal for `Timing.fence_after_s` makes this side stop before anybody else may start. *The clock
jumps*: leases are measured on the database's clock, patience here on a monotonic one.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from holdfast.disk import BusyError, Disk, ExistsError, Lock
from holdfast.errors import ConflictError, FencedError, HoldfastError
from holdfast.runs import Fence, Lease, Status, path_to_started
from holdfast.store import (
    Batch,
    ClaimLease,
    MoveRun,
    Operation,
    ReleaseLease,
    RenewLease,
    SetProgress,
    Store,
    UpdateItem,
)

_log: Final = logging.getLogger(__name__)

_LOCK_WAIT_S: Final = 0.1
"""Longer than somebody has the file lock who only looks whether it is free."""
_UNLOCKED: Final = "unlocked"
"""What a holder without a file lock begins with; no place is called so, and so no free lock proves it dead."""


class Patience(Protocol):
    """How time passes for who waits; handed in, so that tests let it pass."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait for ``event``, at most so many seconds, and say whether it is set."""
        ...


class RealPatience:
    """Time as it passes."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait for ``event``, at most so many seconds, and say whether it is set."""
        return event.wait(timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long what lasts, in seconds."""

    lease_s: float = 60.0
    renew_s: float = 15.0
    fence_after_s: float = 45.0
    """Without a renewal for so long, the plugin is stopped: well before anybody else may start it."""
    look_s: float = 1.0
    """How often the lease is read, so that an abort need not wait for the next renewal."""
    grace_s: float = 10.0
    """How long a plugin that was asked to stop may take to come to a safe point."""

    @classmethod
    def of(cls, lease_s: float) -> Timing:
        """Return the timing of a lease: renewed four times within it, and given up when a quarter of it is left.

        >>> Timing.of(60) == Timing()
        True
        """
        renew_s = lease_s / 4
        return cls(lease_s=lease_s, renew_s=renew_s, fence_after_s=3 * renew_s, look_s=min(1.0, renew_s))


class Hold:
    """The right to one plugin state, from claim to release.

    Args:
        open_store: Opens the Pod once more: renewals have a connection of their own.
        state: The id of the plugin state.
        run: The id of the run.
        locks: A folder on this machine for lock files; it is made if there is none.
        holder: Who has claimed the plugin state for this run already, as its token says; None: nobody. It is for one
            process: two that claim with one holder are one to the Pod.
        on_lost: Called from a thread of the hold's own when the run must stop: with "cancelled" at most once, and
            with "fenced" or "unreachable" once at most, after which there is no more.
        timing: How long what lasts.
        disk: Where ``locks`` lies.
        patience: How time passes.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        *,
        state: str,
        run: str,
        locks: Path,
        on_lost: Callable[[str], None],
        holder: str | None = None,
        timing: Timing | None = None,
        disk: Disk | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._open_store = open_store
        self._state = state
        self._run = run
        self._locks = locks
        self._on_lost = on_lost
        self._holder = holder
        self._timing = timing or Timing()
        self._disk = disk or Disk()
        self._patience = patience or RealPatience()
        self._lock: Lock | None = None
        self._lease: Lease | None = None
        self._renewed_at = 0.0
        self._stop = threading.Event()
        self._telling = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def fence(self) -> Fence:
        """What every write of the run must carry."""
        assert self._lease is not None, "claim first"  # noqa: S101
        return self._lease.fence

    def claim(self, store: Store, status: Status) -> None:
        """Take the plugin state and move the run to started, as one event; then keep it.

        Raises:
            ConflictError: Another run has it, or this one runs already; the message names it. Nothing was written.
        """
        if not self._locks.is_dir():
            self._disk.put_folder(self._locks)
        place = place_of(self._locks, self._disk)
        with suppress(BusyError):
            self._lock = self._disk.lock(self._locks / f"{self._state}.lock", wait_s=_LOCK_WAIT_S)
        try:
            claim = self._claim_from(place, store)
            # The last move is written in any case: a run that its owner has aborted since it was read is not begun.
            path = path_to_started(self._run, status) or (Status.STARTED,)
            moves = (MoveRun(self._run, to) for to in path)
            self._renewed_at = self._patience.monotonic()
            lease = store.apply(Batch((claim, *moves)))[0]
        except BaseException:
            self.close()
            raise
        assert isinstance(lease, Lease)  # noqa: S101 -- what a claim answers
        self._lease = lease
        for target, what in ((self._renew, "lease"), (self._watch, "patience")):
            thread = threading.Thread(target=target, name=f"{what} of {self._run}", daemon=True)
            self._threads.append(thread)
            thread.start()
        _log.info("lease.claimed", extra={"run": self._run, "state": self._state, "epoch": lease.epoch})

    def _claim_from(self, place: str, store: Store) -> ClaimLease:
        duration_ms = round(self._timing.lease_s * 1000)
        if self._holder is not None:
            return ClaimLease(self._state, self._run, self._holder, duration_ms)
        there, dead, here = store.find_lease(self._state), "", _UNLOCKED
        is_from_here = there is not None and there.holder.startswith(f"{place}-")
        if self._lock is not None:
            here = f"{place}-{os.getpid()}"
            if there is not None and is_from_here:
                dead = there.holder  # for we have the file lock that it would have
        elif there is not None and is_from_here and there.is_held(now_ms := store.now_ms()):
            error, pid = there.held_by_other(now_ms), there.holder.split("-")[1]
            raise ConflictError(f"{error.message} (process {pid} on this machine)", **error.facts, pid=int(pid))
        holder = f"{here}-{secrets.token_hex(12)}"
        return ClaimLease(self._state, self._run, holder, duration_ms, dead)

    def finish(
        self,
        store: Store,
        status: Status,
        error: str | None = None,
        *,
        progress: float | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Move the run to its end, with how far it came if that is known, and give the plugin state back, as one event.

        With ``retry_after_s``, of the database's seconds from now, it is noted on the run, as ``retryAt``, before when
        nobody is to launch it; without, what was noted stays.

        Raises:
            FencedError: Another run has taken over; nothing was written.
        """
        self._stop_renewing()
        known: list[Operation] = [] if progress is None else [SetProgress(self._run, progress)]
        if retry_after_s is not None:
            known.append(UpdateItem(self._run, {"retryAt": store.now_ms() + round(retry_after_s * 1000)}))
        store.apply(Batch((*known, MoveRun(self._run, status, error), ReleaseLease(self.fence)), self.fence))

    def close(self) -> None:
        """Renew no more, and free the file lock; the lease, if it was not released, lapses."""
        self._stop_renewing()
        if self._lock is not None:
            self._lock.release()

    def _stop_renewing(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _renew(self) -> None:
        renewal = Batch((RenewLease(self.fence, round(self._timing.lease_s * 1000)),))
        store: Store | None = None
        is_cancelled = False
        try:
            while not self._patience.wait(self._stop, min(self._timing.look_s, self._timing.renew_s)):
                now = self._patience.monotonic()
                is_due = now - self._renewed_at >= self._timing.renew_s
                try:
                    if store is None:
                        store = self._open_store()
                    lease = store.apply(renewal)[0] if is_due else store.find_lease(self._state)
                    if isinstance(lease, Lease):
                        lease.check(self.fence)
                except FencedError:
                    self._tell("fenced")
                    return
                except HoldfastError as exc:
                    _log.warning("lease.not_renewed", extra={"run": self._run, "reason": str(exc)})
                else:
                    if is_due:
                        self._renewed_at = now  # from before it was asked for: never later than on the database's clock
                    if isinstance(lease, Lease) and lease.is_cancelled and not is_cancelled:
                        is_cancelled = True
                        self._tell("cancelled")
        finally:
            if store is not None:
                store.close()

    def _watch(self) -> None:
        """Give up in time. In a thread of its own: a renewal may be kept waiting for longer than there is."""
        left_s = self._timing.fence_after_s
        while not self._patience.wait(self._stop, left_s):
            left_s = self._renewed_at + self._timing.fence_after_s - self._patience.monotonic()
            if left_s <= 0:
                self._tell("unreachable")
                return

    def _tell(self, why: str) -> None:
        with self._telling:
            if not self._stop.is_set():
                self._on_lost(why)
            if why != "cancelled":
                self._stop.set()  # nothing is renewed any more


def place_of(locks: Path, disk: Disk) -> str:
    """Return an id of a folder of locks, made on first use: holders that begin with it hold their file locks there."""
    path = locks / "place"
    with suppress(ExistsError):
        disk.create(path, secrets.token_hex(8).encode())
    return disk.read(path).decode()
