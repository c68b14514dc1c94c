"""Holding a plugin state: what happens at which second, in time that passes only when the test says so."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.disk import Disk
from holdfast.engine import Hold, Timing
from holdfast.errors import ConflictError, FencedError, NotFoundError, UnavailableError
from holdfast.runs import Status
from holdfast.store import (
    Batch,
    CancelLease,
    ClaimLease,
    CreateItem,
    EndLease,
    MoveRun,
    RenewLease,
    Result,
    SetVariable,
)
from holdfast.testing import FakeClock, MemoryStore

T0 = 1_000_000


class Time:
    """Time for the threads of a hold: it passes while all of them wait, up to where the test lets it.

    Whoever is due first is woken first, so everything happens at its second.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.until = 0.0
        self.due: dict[threading.Thread, float] = {}
        self.changed = threading.Condition()

    def monotonic(self) -> float:
        """Return how many seconds have passed."""
        return self.now

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until ``event`` is set or so many seconds have passed."""
        me = threading.current_thread()
        with self.changed:
            self.due[me] = self.now + timeout_s
            while not event.is_set():
                if self._all_wait() and self.due[me] == min(self.due.values()) <= self.until:
                    self.now = self.due.pop(me)
                    return False
                self.changed.wait(0.01)  # neither events nor the ends of threads can say so here
            del self.due[me]
            return True

    def _all_wait(self) -> bool:
        return all(each in self.due for each in threading.enumerate() if each.name.endswith((" of r1", " of r2")))

    def pass_until(self, second: float) -> None:
        """Let time pass, and return when nothing more is to happen until then."""
        with self.changed:
            self.until = second
            self.changed.notify_all()
            while not self._all_wait() or any(due <= second for due in self.due.values()):
                self.changed.wait(0.001)
            self.now = second


class Pod(MemoryStore):
    """A Pod in memory that notes renewals, and may be out of reach."""

    def __init__(self, clock: FakeClock, time: Time) -> None:
        super().__init__(clock=clock)
        self.time = time
        self.renewed_at: list[float] = []
        self.is_away = False
        self.answers = threading.Event()
        self.answers.set()

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Apply the batch, perhaps after a while."""
        if any(isinstance(each, RenewLease) for each in batch.operations):
            if not self.answers.is_set():
                self.time.wait(self.answers, 300)
            self._check_there()
            self.renewed_at.append(self.time.now)
        return super().apply(batch)

    def find_lease(self, state: str) -> Any:
        """Return the lease."""
        self._check_there()
        return super().find_lease(state)

    def _check_there(self) -> None:
        if self.is_away:
            raise UnavailableError("the Pod is away")

    def close(self) -> None:
        """Stay."""


@pytest.fixture
def clock() -> FakeClock:
    """The clock of the database, which knows nothing of `Time`."""
    return FakeClock(T0)


@pytest.fixture
def time() -> Time:
    """The time of this process."""
    return Time()


@pytest.fixture
def pod(clock: FakeClock, time: Time) -> Pod:
    """A Pod with two runs."""
    pod = Pod(clock, time)
    pod.apply(Batch((CreateItem("r1", "PluginRun"), CreateItem("r2", "PluginRun"))))
    return pod


@pytest.fixture
def lost() -> list[str]:
    """What a hold has told."""
    return []


Claim = Callable[..., Hold]


@pytest.fixture
def hold(pod: Pod, time: Time, lost: list[str], tmp_path: Path) -> Iterator[Claim]:
    """Claim plugin state "s" for a run, on a machine; each hold is closed with the test."""
    holds: list[Hold] = []

    def claim(run: str = "r1", machine: str = "here", **how: Any) -> Hold:
        locks = tmp_path / machine
        hold = Hold(lambda: pod, state="s", run=run, locks=locks, on_lost=lost.append, patience=time, **how)
        hold.claim(pod, Status.IDLE)
        holds.append(hold)
        return hold

    yield claim
    pod.answers.set()
    for each in holds:
        each.close()


def expiry(pod: Pod) -> int | None:
    """Return for how many milliseconds after the beginning the plugin state is held."""
    lease = MemoryStore.find_lease(pod, "s")
    return None if lease is None or not lease.holder else lease.expires_ms - T0


def test_a_claim_lasts_60_seconds_and_is_renewed_every_15(
    hold: Claim, pod: Pod, time: Time, clock: FakeClock, lost: list[str]
) -> None:
    """The claim and the run's move to started are one event; a renewal lasts 60 seconds in its turn."""
    hold()
    assert (expiry(pod), pod.find_items(["r1"])["r1"].properties) == (60_000, {"status": "started"})
    clock.advance(15_000)
    time.pass_until(14.5)
    assert (pod.renewed_at, expiry(pod)) == ([], 60_000)
    time.pass_until(61)
    assert (pod.renewed_at, expiry(pod), lost) == ([15, 30, 45, 60], 75_000, [])


@pytest.mark.parametrize(
    "lease_s, timing",
    [
        (60, Timing(lease_s=60, renew_s=15, fence_after_s=45, look_s=1, grace_s=10)),
        (3, Timing(lease_s=3, renew_s=0.75, fence_after_s=2.25, look_s=0.75, grace_s=10)),
        (3_600, Timing(lease_s=3_600, renew_s=900, fence_after_s=2_700, look_s=1, grace_s=10)),
    ],
)
def test_a_lease_decides_when_it_is_renewed_and_given_up(lease_s: float, timing: Timing) -> None:
    """Four times within it, and when a quarter is left; how long a plugin may take to stop does not depend on it."""
    assert Timing.of(lease_s) == timing


def test_a_short_lease_is_renewed_and_given_up_within_it(
    hold: Claim, pod: Pod, time: Time, clock: FakeClock, lost: list[str]
) -> None:
    """Nobody else may start the run before it was told to stop."""
    hold(timing=Timing.of(4))
    assert expiry(pod) == 4_000
    clock.advance(1_000)
    time.pass_until(1)
    assert (pod.renewed_at, expiry(pod)) == ([1], 5_000)
    pod.is_away = True
    time.pass_until(3.9)
    assert lost == []
    time.pass_until(4)
    assert lost == ["unreachable"]


def test_nothing_is_renewed_after_the_end(hold: Claim, pod: Pod, time: Time) -> None:
    """The last write gives the plugin state back with the last move, and the file lock is free."""
    held = hold()
    held.finish(pod, Status.DONE, progress=1.0)
    assert (expiry(pod), pod.find_items(["r1"])["r1"].properties) == (None, {"status": "done", "progress": 1.0})
    held.close()
    time.pass_until(100)
    assert pod.renewed_at == []


def test_without_a_renewal_for_45_seconds_the_run_must_stop(hold: Claim, pod: Pod, time: Time, lost: list[str]) -> None:
    """Counted from the last one that succeeded, to the second; nothing is renewed after that."""
    hold()
    time.pass_until(20)
    pod.is_away = True
    time.pass_until(59.5)
    assert lost == []
    time.pass_until(60)
    assert lost == ["unreachable"]
    pod.is_away = False
    time.pass_until(200)
    assert (pod.renewed_at, lost) == ([15], ["unreachable"])


def test_a_renewal_that_is_kept_waiting_does_not_keep_the_run_working(
    hold: Claim, pod: Pod, time: Time, lost: list[str]
) -> None:
    """A Pod that answers neither yes nor no for longer than the lease: the run stops at 45 seconds all the same."""
    hold()
    pod.answers.clear()
    time.pass_until(44.5)
    assert lost == []
    time.pass_until(45)
    assert lost == ["unreachable"]


def test_a_renewal_in_the_last_second_counts(hold: Claim, pod: Pod, time: Time, lost: list[str]) -> None:
    """Each second it is tried again; patience then ends 45 seconds after the one that succeeded."""
    hold()
    pod.is_away = True
    time.pass_until(43.5)
    pod.is_away = False
    time.pass_until(44)
    pod.is_away = True
    time.pass_until(88.9)
    assert (pod.renewed_at, lost) == ([44], [])
    time.pass_until(89)
    assert lost == ["unreachable"]


def test_a_lease_that_lapsed_unclaimed_is_renewed(
    hold: Claim, pod: Pod, time: Time, clock: FakeClock, lost: list[str]
) -> None:
    """The database's clock jumps ahead by an hour: nobody came in between, so nothing is lost."""
    held = hold()
    clock.advance(3_600_000)
    time.pass_until(15)
    assert (expiry(pod), lost) == (3_660_000, [])
    pod.apply(Batch((SetVariable("s", "n", 1),), held.fence))
    with pytest.raises(ConflictError, match="is held by run 'r1' for another 60 s"):
        pod.apply(Batch((SetVariable("s", "owner", 2),)))


def test_a_lease_that_lapsed_and_was_claimed_is_lost(
    hold: Claim, pod: Pod, time: Time, clock: FakeClock, lost: list[str]
) -> None:
    """The database's clock jumps ahead, and another run takes over: this one learns so within a second."""
    held = hold()
    clock.advance(60_000)
    pod.apply(Batch((ClaimLease("s", "r2", "h2", 60_000),)))
    time.pass_until(0.9)
    assert lost == []
    time.pass_until(1)
    assert (lost, pod.renewed_at) == (["fenced"], [])
    with pytest.raises(FencedError, match="taken over by run 'r2'"):
        held.finish(pod, Status.DONE)
    assert expiry(pod) == 120_000


def test_a_clock_that_is_set_back_loses_nothing(
    hold: Claim, pod: Pod, time: Time, clock: FakeClock, lost: list[str]
) -> None:
    """The database's clock goes back by an hour: the plugin state is held no shorter, and a renewal sets it right."""
    hold()
    clock.advance(-3_600_000)
    with pytest.raises(ConflictError, match="is held by run 'r1'"):
        pod.apply(Batch((ClaimLease("s", "r2", "h2", 60_000),)))
    time.pass_until(50)
    assert (expiry(pod), lost) == (-3_600_000 + 60_000, [])


def test_patience_is_measured_here_and_not_by_the_database(
    hold: Claim, pod: Pod, time: Time, clock: FakeClock, lost: list[str]
) -> None:
    """Its clock stands still, or runs: 45 seconds are 45 seconds of this process."""
    hold()
    pod.is_away = True
    clock.advance(50_000)
    time.pass_until(44)
    assert lost == []
    time.pass_until(45)
    assert lost == ["unreachable"]


def test_a_cancel_is_told_once_within_a_second(hold: Claim, pod: Pod, time: Time, lost: list[str]) -> None:
    """The plugin state is still held, for the run is to come to a safe point and end; it is renewed until then."""
    hold()
    pod.apply(Batch((CancelLease("s", 1),)))
    time.pass_until(1)
    assert lost == ["cancelled"]
    time.pass_until(16)
    assert (lost, pod.renewed_at) == (["cancelled"], [15])


def test_a_cancel_comes_with_the_renewal(hold: Claim, pod: Pod, time: Time, lost: list[str]) -> None:
    """Where only renewals reach the Pod, their reply says so."""
    hold(timing=Timing(renew_s=15, look_s=15))
    pod.apply(Batch((CancelLease("s"),)))
    time.pass_until(14)
    assert lost == []
    time.pass_until(15)
    assert (lost, pod.renewed_at) == (["cancelled"], [15])


def test_a_free_file_lock_proves_the_holder_dead(
    hold: Claim, pod: Pod, time: Time, tmp_path: Path, clock: FakeClock
) -> None:
    """On this machine the next claim goes through at once; on another one it is refused until the lease lapses."""
    dead = hold()
    dead.close()  # what the end of its process does: the lock is free, the lease is not given back
    with pytest.raises(ConflictError, match=r"is held by run 'r1' for another 60 s$"):
        hold("r2", machine="elsewhere")
    again = hold("r2")
    assert again.fence.epoch == 2
    with pytest.raises(FencedError):
        dead.finish(pod, Status.DONE)


def test_a_held_file_lock_names_run_and_process(hold: Claim, pod: Pod, tmp_path: Path) -> None:
    """Who is refused learns which run it is, and on this machine which process."""
    hold()
    with pytest.raises(ConflictError) as caught:
        hold("r2")
    assert str(caught.value) == (
        f"plugin state 's' is held by run 'r1' for another 60 s (process {os.getpid()} on this machine)"
    )
    assert caught.value.facts == {"state": "s", "run": "r1", "expires_ms": T0 + 60_000, "pid": os.getpid()}
    assert pod.find_items(["r2"])["r2"].properties == {"status": "idle"}


@pytest.mark.parametrize("how", ["lapsed", "ended"])
def test_a_sleeper_with_the_file_lock_is_in_nobodys_way(
    how: str, hold: Claim, pod: Pod, clock: FakeClock, tmp_path: Path
) -> None:
    """Its lease is over, its lock is not: the next claim does without, and then a free lock proves nothing of it."""
    sleeper = hold()
    if how == "ended":
        pod.apply(Batch((EndLease("s", 1), MoveRun("r1", Status.ABORTED))))
    else:
        clock.advance(60_000)
    second = hold("r2")
    place = (tmp_path / "here" / "place").read_text()
    assert (second.fence.epoch, second.fence.holder.startswith(place)) == (2 if how == "lapsed" else 3, False)
    sleeper.close()
    with Disk().lock(tmp_path / "here" / "s.lock"):
        pass
    with pytest.raises(ConflictError, match=r"is held by run 'r2' for another 60 s$"):
        hold("r1")
    pod.apply(Batch((SetVariable("s", "n", 2),), second.fence))


def test_a_look_at_the_lock_does_not_turn_a_claim_away(hold: Claim, pod: Pod, tmp_path: Path) -> None:
    """Somebody who only looks whether a holder is dead has the lock for a moment: the claim waits for that moment."""
    hold().close()
    lock = Disk().lock(tmp_path / "here" / "s.lock")
    looking = threading.Timer(0.01, lock.release)
    looking.start()
    assert hold("r2").fence.holder.startswith((tmp_path / "here" / "place").read_text())
    looking.join()


def test_a_claim_that_is_refused_leaves_nothing(hold: Claim, pod: Pod, tmp_path: Path) -> None:
    """Neither a lease nor a file lock."""
    pod.apply(Batch((MoveRun("r1", Status.ABORTED),)))
    with pytest.raises(ConflictError, match="run 'r1' is aborted and cannot become started"):
        hold()
    with pytest.raises(NotFoundError, match="there is no run 'absent'"):
        hold("absent")
    assert pod.find_lease("s") is None
    with Disk().lock(tmp_path / "here" / "s.lock"):
        pass
