"""Variables in files, beside what they cannot beat: an attribute, a flush, and the reading of one file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Row, compare, cost, counted
from holdfast.disk import Disk
from holdfast.state import State

ACCESSES: Final = 200_000
SETS: Final = 200
NAMESPACES: Final = 10_000
OPENINGS: Final = 200


class Backed:
    """The least that an object can be whose attributes are the values of a dictionary."""

    def __init__(self) -> None:
        object.__setattr__(self, "_values", {})

    def __getattr__(self, name: str) -> Any:
        return self._values.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._values[name] = value


class Simple:
    """A namespace that is saved at the end or not at all: methods for getting and setting, attributes on top."""

    def __init__(self) -> None:
        self._variables: dict[str, Any] = {}
        self._is_altered = False

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value."""
        return self._variables.get(name, default)

    def set(self, name: str, value: Any) -> None:
        """Change a value, if it can be stored."""
        if not isinstance(value, str | int | float | bool):
            raise TypeError(name)
        self._is_altered = self._is_altered or self._variables.get(name) != value
        self._variables[name] = value

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)


class CountingDisk(Disk):
    """Counts its flushes."""

    def __init__(self) -> None:
        self.flushes = 0

    def _flush(self, fd: int) -> None:
        self.flushes += 1
        super()._flush(fd)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how much to measure; see `benchmarks.pods.Bench`."""

    folder: Path
    rounds: int

    def rows(self) -> Iterator[Row]:
        """Measure one row after the other."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            place = Path(name)
            namespace = State(place, save_delay=None).memory
            for others, goal in ((Backed(), 3), (Simple(), 1)):
                limit = {Backed: "an attribute backed by a dictionary", Simple: "a namespace in its simplest form"}
                for work, loop in (("get a variable", get), ("set a variable in memory", put)):
                    yield self.compare(work, limit[type(others)], partial(loop, namespace), partial(loop, others), goal)
            disk = CountingDisk()
            state = State(place, save_delay=0, disk=disk)
            state.durable.x = -1
            before = disk.flushes
            set_durably(state)
            yield counted("flushes per durable set of a variable", "one", (disk.flushes - before) / SETS, goal=3)
            flush = partial(write_and_flush, place / "flushed")
            yield self.compare("set a variable durably", "append and flush", partial(set_durably, state), flush, None)
            fill(place)
            yield self.compare(
                f"open one of {NAMESPACES:,} namespaces",
                "read and parse its file",
                partial(open_one, place),
                partial(read_one, place),
                None,
            )

    def compare(
        self,
        work: str,
        limit: str,
        measured: Callable[[], object],
        limit_measured: Callable[[], object],
        goal: float | None,
    ) -> Row:
        """Measure in turns."""
        return compare(
            work,
            limit,
            rounds=self.rounds,
            measure=partial(cost, measured),
            measure_limit=partial(cost, limit_measured),
            goal=goal,
        )


def get(of: Any) -> None:
    """Get an attribute many times."""
    of.x = 1
    for _ in range(ACCESSES):
        of.x  # noqa: B018 -- to look it up is the work


def put(of: Any) -> None:
    """Set an attribute many times, to another value each time."""
    for number in range(ACCESSES):
        of.x = number


def set_durably(state: State) -> None:
    """Set a variable many times, each durable before the next."""
    for number in range(SETS):
        state.durable.x = number


def write_and_flush(path: Path) -> None:
    """Append to one open file as often, and flush it each time."""
    with path.open("wb", buffering=0) as file:
        for number in range(SETS):
            file.write(b"%d\n" % number)
            os.fsync(file.fileno())


def fill(folder: Path) -> None:
    """Make many namespaces, as another program would have left them."""
    for number in range(NAMESPACES):
        (folder / f"n{number}.json").write_text('{\n    "x": 1\n}')


def open_one(folder: Path) -> None:
    """Get a variable of a namespace that nobody has read yet."""
    for number in range(OPENINGS):
        assert State(folder, save_delay=0).get(f"n{number}").x == 1


def read_one(folder: Path) -> None:
    """Do without anything what must be done for that."""
    for number in range(OPENINGS):
        assert json.loads((folder / f"n{number}.json").read_bytes())["x"] == 1
