"""What some work costs beside what it cannot beat, and how a table says so.

A work and its limit are measured in turns, so that whatever else the machine does meets both; the figure is the median
of the ratios. It hides how costs are taken and shown, and knows nothing of what is measured.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """What some work took: seconds by the wall clock, and of the processor."""

    wall_s: float
    cpu_s: float


class Ratio(NamedTuple):
    """How many times its limit some work costs; ``low`` and ``high`` enclose the middle half of all rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        work: What was measured.
        limit: What it cannot beat.
        wall: The ratio by the wall clock; or a plain number, counted.
        cpu: The ratio by the processor's time, of all threads and child processes; None where nothing was timed.
        goal: What ``wall`` may be at most; None: it is shown for its own sake.
    """

    work: str
    limit: str
    wall: Ratio
    cpu: Ratio | None = None
    goal: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the median is within the goal; None without one."""
        return None if self.goal is None else self.wall.median <= self.goal

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        wall, cpu = self.wall._asdict(), self.cpu and self.cpu._asdict()
        return {**asdict(self), "wall": wall, "cpu": cpu, "met": self.is_met}


def cost(work: Callable[[], object]) -> Cost:
    """Do ``work`` once and return what it took, its child processes included once they have ended."""
    cpu_s, wall_s = _cpu_s(), time.perf_counter()
    work()
    return Cost(time.perf_counter() - wall_s, _cpu_s() - cpu_s)


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def compare(
    work: str,
    limit: str,
    *,
    rounds: int,
    measure: Callable[[], Cost],
    measure_limit: Callable[[], Cost],
    goal: float | None = None,
) -> Row:
    """Measure a work and its limit in turns and return the row.

    One more round goes first and is not counted: it warms caches. Who begins alternates, so that neither always pays
    for what the other left behind.
    """
    pairs: list[tuple[Cost, Cost]] = []
    for number in range(rounds + 1):
        if number % 2:
            limit_cost, work_cost = measure_limit(), measure()
        else:
            work_cost, limit_cost = measure(), measure_limit()
        pairs.append((work_cost, limit_cost))
    wall = ratio([one.wall_s / other.wall_s for one, other in pairs[1:]])
    cpu = ratio([one.cpu_s / other.cpu_s for one, other in pairs[1:]])
    return Row(work=work, limit=limit, wall=wall, cpu=cpu, goal=goal)


def ratio(values: Sequence[float]) -> Ratio:
    """Return the median of ``values`` with the quartiles around it."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(median, low, high)


def counted(work: str, limit: str, number: float, *, goal: float | None = None) -> Row:
    """Return the row of something that was counted and has no noise."""
    return Row(work=work, limit=limit, wall=Ratio(number, number, number), goal=goal)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table whose columns line up."""
    head = ("work", "limit", "wall ×", "middle half", "cpu ×", "goal", "")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(padded)


def _cells(row: Row) -> tuple[str, ...]:
    verdict = {None: "", True: "met", False: "missed"}[row.is_met]
    spread = "counted" if row.wall.low == row.wall.high else f"{row.wall.low:.2f} – {row.wall.high:.2f}"
    cpu = "" if row.cpu is None else f"{row.cpu.median:.2f}"
    goal = "" if row.goal is None else f"≤ {row.goal:g}"
    return (row.work, row.limit, f"{row.wall.median:.2f}", spread, cpu, goal, verdict)
