"""When a snapshot is due."""

import itertools
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import InvalidError
from holdfast.snapshots.conditions import EverySteps, OnSignal, PeriodicSaveCondition


class Clock:
    """Seconds, as the test says."""

    now = 0.0

    def __call__(self) -> float:
        """Return them."""
        return self.now


def test_every_steps_is_due_at_each_of_them() -> None:
    """The third, the sixth, and so on."""
    condition = EverySteps(3)
    assert [condition() for _ in range(7)] == [False, False, True, False, False, True, False]


def test_a_periodic_condition_counts_from_when_it_was_due() -> None:
    """One that comes late is not made up for; an interval of 0 is always over, an infinite one never."""
    clock = Clock()
    condition, always, never = (PeriodicSaveCondition(interval, clock=clock) for interval in (10, 0, math.inf))
    found: list[tuple[bool, bool, bool]] = []
    for clock.now in (0.0, 9.0, 35.0, 36.0, 45.0):
        found.append((condition(), always(), never()))
    assert found == [(is_due, True, False) for is_due in (False, False, True, False, True)]


def test_either_of_two_and_both_begin_anew() -> None:
    """A save serves both: after one that was due by steps, the time begins anew as well."""
    clock = Clock()
    condition = EverySteps(3) | PeriodicSaveCondition(10, clock=clock)
    found: list[bool] = []
    for clock.now in (0.0, 1.0, 9.0, 12.0, 19.0, 20.0, 31.0):
        found.append(condition())
    assert found == [False, False, True, False, True, False, True]


def test_both_of_two() -> None:
    """Neither is forgotten while it waits for the other."""
    clock = Clock()
    condition = EverySteps(3) & PeriodicSaveCondition(10, clock=clock)
    found: list[bool] = []
    for clock.now in (11.0, 11.0, 11.0, 12.0, 13.0, 14.0, 22.0, 23.0):
        found.append(condition())
    assert found == [False, False, True, False, False, False, True, False]


@pytest.fixture
def _sigusr1() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("_sigusr1")
def test_a_signal_makes_it_due_once_and_does_not_end_the_process() -> None:
    """Until it is closed; a handler that was there before is still called."""
    seen: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    condition = OnSignal(signal.SIGUSR1)
    either = condition | EverySteps(100)
    assert not either()
    signal.raise_signal(signal.SIGUSR1)
    assert [either(), either()] == [True, False]
    condition.close()
    signal.raise_signal(signal.SIGUSR1)
    assert not either()
    assert seen == [signal.SIGUSR1] * 2


@pytest.mark.usefixtures("_sigusr1")
def test_of_several_signals_all_are_taken_or_none() -> None:
    """What was there before is there again."""
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(InvalidError):
        OnSignal(signal.SIGUSR1, signal.SIGKILL)
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.usefixtures("_sigusr1")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_closed_in_any_order_several_leave_what_was_before(order: tuple[int, ...]) -> None:
    """As long as one is open the signal ends nobody, and each that is open is due."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    conditions = [OnSignal(signal.SIGUSR1) for _ in order]
    for number, closed in enumerate(order):
        signal.raise_signal(signal.SIGUSR1)
        assert all(conditions[each]() for each in order[number:])
        conditions[closed].close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@pytest.mark.usefixtures("_sigusr1")
def test_closing_leaves_a_handler_of_somebody_else_alone() -> None:
    """One that came later."""
    condition = OnSignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    condition.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_sigterm_is_the_signal_unless_others_are_given() -> None:
    """It is what a process is asked to end with."""
    before = signal.getsignal(signal.SIGTERM)
    condition = OnSignal()
    try:
        signal.raise_signal(signal.SIGTERM)
        assert condition()
    finally:
        condition.close()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PeriodicSaveCondition(-1), "every -1 s: 0 or more is expected"),
        (lambda: PeriodicSaveCondition(math.nan), "every nan s: 0 or more is expected"),
        (lambda: EverySteps(0), "every 0 steps: a count of 1 or more is expected"),
        (lambda: EverySteps(1.5), "every 1.5 steps"),  # pyright: ignore[reportArgumentType]
        (lambda: OnSignal(signal.SIGKILL), "cannot wait for .*SIGKILL.*: the number of a signal that programs may"),
        (lambda: OnSignal(9999), "cannot wait for 9999"),
        (lambda: OnSignal("TERM"), "cannot wait for 'TERM'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_is_no_interval_and_no_signal_is_refused(make: Callable[[], object], message: str) -> None:
    """When it is made."""
    with pytest.raises(InvalidError, match=message):
        make()


def test_signals_are_taken_in_the_main_thread_only() -> None:
    """Anywhere else it says so."""
    found: list[Any] = []

    def make() -> None:
        with pytest.raises(InvalidError, match="in the main thread only") as caught:
            OnSignal()
        found.append(caught)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert len(found) == 1


def test_variables_in_files_leave_it_to_the_condition_to_go_on(tmp_path: Path) -> None:
    """They do not end the process that has decided to save first, and are saved when it ends."""
    code = """
import signal, sys
from holdfast import OnSignal, State
state = State(sys.argv[1], save_delay=None)
state.ns.a = 1
condition = OnSignal()
signal.raise_signal(signal.SIGTERM)
print(condition(), condition())
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True False\n", "")
    assert '"a": 1' in (tmp_path / "ns.json").read_text(encoding="utf-8")
