"""What a run adds: from its creation until the plugin works, in this process and in one of its own, and to a commit.

Times are told where nothing can stand beside them; they are this machine's. The bare side of a commit is that of
`benchmarks.pods`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Cost, Row, compare, cost, ratio
from benchmarks.pods import COMMITS, Dog, Statement, bare, commit, new_dogs, rows_of
from benchmarks.processes import IMPORTS, environment
from holdfast import PersistentState, PodClient
from holdfast.context import Settings, unlock
from holdfast.engine import Runner, begin_run, get_state
from holdfast.plugins import StatefulPlugin
from holdfast.runs import Status
from holdfast.sql import SqliteStore

STARTS: Final = 10
"""How many runs one measurement in this process starts, and how many processes the other."""

PLUGIN: Final = """
import os
from holdfast.plugins import StatefulPlugin

class Nothing(StatefulPlugin):
    def run(self):
        os.write(1, b"started")
"""

BEGIN_AND_DRIVE: Final = """
from holdfast.context import Settings, carry_out
from holdfast.plugins import source_of
import sys
carry_out(Settings.read(), source_of(sys.argv[1]), is_new=True)
"""

# A run is logged, and its configuration is JSON; pydantic loads half of itself with the first model.
IMPORT: Final = f"""
{IMPORTS}
import json, logging, os
class Model(BaseModel):
    x: int
os.write(1, b"started")
"""


class Timed(StatefulPlugin):
    """Says when it began to work, or does what it was given to do."""

    started_at = Cost(0, 0)
    work: Callable[[Timed], object] = staticmethod(lambda _: None)

    def run(self) -> None:
        """Note the time, then work."""
        type(self).started_at = Cost(time.perf_counter(), time.process_time())
        type(self).work(self)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how much to measure; see `benchmarks.pods.Bench`."""

    folder: Path
    rounds: int

    def rows(self) -> Iterator[Row]:
        """Measure one row after the other."""
        with tempfile.TemporaryDirectory(dir=self.folder) as home, PodClient(home=home) as client:
            runs = Runs(Path(home), client)
            yield self.started_here(runs)
            yield self.started_there(runs)
            yield self.transaction(runs)

    def started_here(self, runs: Runs) -> Row:
        """Create a run and carry it on in this process, up to where the plugin's own code begins."""
        runs.start()
        costs = [runs.start() for _ in range(self.rounds * STARTS)]
        return Row(
            work="run, create to started, in process",
            limit="1 ms",
            wall=ratio([1000 * each.wall_s for each in costs]),
            cpu=ratio([1000 * each.cpu_s for each in costs]),
            goal=5,
        )

    def started_there(self, runs: Runs) -> Row:
        """Start a process that creates a run, up to where the plugin's own code begins, less what imports take."""
        module = runs.home / "nothing.py"
        module.write_text(PLUGIN)
        begins = [sys.executable, "-c", BEGIN_AND_DRIVE, f"{module}:Nothing"]
        imports = [sys.executable, "-c", IMPORT]
        wait_for_start(begins, runs.home)
        more = [
            1000 * (wait_for_start(begins, runs.home) - wait_for_start(imports, runs.home))
            for _ in range(self.rounds * STARTS)
        ]
        return Row(
            work="run, create to started, as a process",
            limit="1 ms more than its imports",
            wall=ratio(more),
            goal=60,
        )

    def transaction(self, runs: Runs) -> Row:
        """Write one item and one variable in one transaction of a run, beside the same rows in one bare commit."""
        total = COMMITS * (self.rounds + 1)
        with tempfile.TemporaryDirectory(dir=self.folder) as home, PodClient(home=home) as other:
            other.add_to_schema(Dog)
            other.bulk_action(create_items=new_dogs(0, total))
            state = other.create(PersistentState(name="default")).id or ""
            variable: Statement = ("INSERT OR REPLACE INTO variable VALUES (?, ?, ?, ?)", [(state, "", "cursor", "7")])
            rows = [[*rows_of(other, seq, seq + 1), variable] for seq in range(1, total + 1)]
            with bare(other) as db:
                for table, column in (("indexed", "item"), ("item", "seq")):
                    db.execute(f"DELETE FROM {table} WHERE {column} <= ?", (total,))
                unused = iter(rows)
                found: list[Row] = []

                def measure(plugin: Timed) -> Cost:
                    dogs = new_dogs(0, COMMITS)

                    def write(dog: Dog) -> None:
                        with plugin.transaction():
                            plugin.client.create(dog)
                            plugin.state.cursor = 7

                    return cost(lambda: [write(dog) for dog in dogs])

                def measure_limit() -> Cost:
                    return cost(lambda: [commit(db, next(unused)) for _ in range(COMMITS)])

                def work(plugin: Timed) -> None:
                    plugin.client.add_to_schema(Dog)
                    found.append(
                        compare(
                            "one transaction of a run: an item and a variable",
                            "one commit",
                            rounds=self.rounds,
                            measure=lambda: measure(plugin),
                            measure_limit=measure_limit,
                            goal=2.2,
                        )
                    )

                runs.start(work)
        return found[0]


class Runs:
    """Begins runs of `Timed` on one plugin state and drives them, in this process."""

    def __init__(self, home: Path, client: PodClient) -> None:
        self.home = home
        self._client = client
        self._path, self._key = unlock(Settings.read(home=home))
        self._state = get_state(client, "benchmarks.runs:Timed")

    def start(self, work: Callable[[Timed], object] = lambda _: None) -> Cost:
        """Return what it took from here to the first line of the plugin."""
        Timed.work = staticmethod(work)
        began = Cost(time.perf_counter(), time.process_time())
        run = begin_run(self._client, self._state, {"config": json.dumps({})})
        runner = Runner(lambda: SqliteStore(self._path, self._key), locks=self.home / "locks")
        outcome = runner.drive(Timed, run, self._state, {})
        if outcome.status is not Status.DONE:
            raise RuntimeError(f"the run that was to be measured is {outcome}")
        return Cost(Timed.started_at.wall_s - began.wall_s, Timed.started_at.cpu_s - began.cpu_s)


def wait_for_start(argv: list[str], home: Path) -> float:
    """Start a program, and return the seconds until it says that it has started; it has ended then too."""
    began = time.perf_counter()
    with subprocess.Popen(argv, env=environment(str(home)), stdout=subprocess.PIPE) as process:
        said: Any = os.read(process.stdout.fileno(), 7) if process.stdout else b""
        took = time.perf_counter() - began
        process.communicate()
    if said != b"started" or process.returncode:
        raise RuntimeError(f"the program that was to be measured ended with {process.returncode} and said {said!r}")
    return took
