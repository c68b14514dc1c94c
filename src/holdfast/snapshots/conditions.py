"""When it is time to save: after some seconds, some steps, or a signal; and any two of these together.

A condition is called once in each turn of the application's loop and says whether to save now. Then it begins anew, as
do both parts of a combined one, whichever it was: a save serves them all.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from holdfast.errors import InvalidError
from holdfast.values import shown


class SaveCondition(ABC):
    """Says when to save. ``a | b`` is due when either is, ``a & b`` when both are."""

    def __call__(self) -> bool:
        """Count one step and return whether to save now; if so, begin anew."""
        self.count()
        is_due = self.is_due()
        if is_due:
            self.reset()
        return is_due

    def count(self) -> None:  # noqa: B027 – most have no steps to count
        """Note that one step was made."""

    @abstractmethod
    def is_due(self) -> bool:
        """Return whether to save now, and change nothing."""

    @abstractmethod
    def reset(self) -> None:
        """Begin anew: a snapshot is about to be saved."""

    def __or__(self, other: SaveCondition) -> SaveCondition:
        return _Both(self, other, any)

    def __and__(self, other: SaveCondition) -> SaveCondition:
        return _Both(self, other, all)


class _Both(SaveCondition):
    def __init__(self, one: SaveCondition, other: SaveCondition, combine: Callable[[Iterable[bool]], bool]) -> None:
        self._parts = (one, other)
        self._combine = combine

    def count(self) -> None:
        for part in self._parts:
            part.count()

    def is_due(self) -> bool:
        return self._combine(part.is_due() for part in self._parts)

    def reset(self) -> None:
        for part in self._parts:
            part.reset()


class PeriodicSaveCondition(SaveCondition):
    """Due once ``interval`` seconds have passed since it was made, or was due last; on a clock that is never set.

    Args:
        interval: Seconds; 0: always due.
        clock: Returns seconds; of two readings only the difference counts.
    """

    def __init__(self, interval: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not interval >= 0:
            raise InvalidError(f"a snapshot cannot be saved every {shown(interval)} s: 0 or more is expected")
        self._interval = interval
        self._clock = clock
        self._began_at = clock()

    def is_due(self) -> bool:
        """See `SaveCondition.is_due`."""
        return self._clock() - self._began_at >= self._interval

    def reset(self) -> None:
        """See `SaveCondition.reset`."""
        self._began_at = self._clock()


class EverySteps(SaveCondition):
    """Due at every ``steps``-th call."""

    def __init__(self, steps: int) -> None:
        if isinstance(steps, float) or not 1 <= steps < math.inf:
            raise InvalidError(
                f"a snapshot cannot be saved every {shown(steps)} steps: a count of 1 or more is expected"
            )
        self._steps = steps
        self._count = 0

    def count(self) -> None:
        """See `SaveCondition.count`."""
        self._count += 1

    def is_due(self) -> bool:
        """See `SaveCondition.is_due`."""
        return self._count >= self._steps

    def reset(self) -> None:
        """See `SaveCondition.reset`."""
        self._count = 0


class OnSignal(SaveCondition):
    """Due once after each signal that came: SIGTERM, unless others are given.

    From when it is made until `close`, such a signal no longer ends the process: the application saves, and then ends
    itself, or not. A handler that was there before is called first. Several may wait for one signal, and be closed in
    any order.

    Raises:
        InvalidError: It is made outside the main thread, where Python takes no handlers; or a number is that of no
            signal, or of one that no program can handle (SIGKILL, SIGSTOP). Then no handler was changed.
    """

    def __init__(self, *numbers: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise InvalidError("OnSignal cannot be made here: Python takes signal handlers in the main thread only")
        self._is_due = self._is_closed = False
        self._before: dict[int, Any] = {}
        for number in numbers or (signal.SIGTERM,):
            try:
                before = signal.signal(number, self._note)
            except (OSError, ValueError, TypeError) as exc:
                self.close()
                raise InvalidError(
                    f"OnSignal cannot wait for {shown(number)}: the number of a signal that programs may handle is "
                    "expected"
                ) from exc
            self._before.setdefault(number, before)

    def is_due(self) -> bool:
        """See `SaveCondition.is_due`."""
        return self._is_due

    def reset(self) -> None:
        """See `SaveCondition.reset`."""
        self._is_due = False

    def __deepcopy__(self, memo: object) -> OnSignal:
        """Return this one: the signals come to it."""
        return self

    def close(self) -> None:
        """Let the signals do what they did before; one whose handler is another's by now is left to it."""
        self._is_closed = True
        for number, before in self._before.items():
            while isinstance(owner := getattr(before, "__self__", None), OnSignal) and owner._is_closed:
                before = owner._before[number]  # noqa: PLW2901 – that one could not be taken out when it was closed
            if signal.getsignal(number) == self._note:
                signal.signal(number, before or signal.SIG_DFL)  # none: it was set by C code, and is out of reach

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_due = True
        before = self._before.get(number)  # it comes while this is being made
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
