"""What only whole processes show: how long they take to start, and how often they make the disk flush."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.measure import Row, compare, cost, counted
from holdfast import Person, PodClient

STARTS: Final = 5
"""How many processes one measurement starts: a single start is too short to be measured well."""

CREATES: Final = 100

OPEN_AND_GET: Final = "import sys, holdfast; holdfast.PodClient().get(sys.argv[1])"
# By name: pydantic loads its parts when they are asked for.
IMPORTS: Final = "import apsw, cryptography.hazmat.primitives.ciphers; from pydantic import BaseModel, TypeAdapter"
CREATE: Final = """
import sys, holdfast
client = holdfast.PodClient()
for _ in range(int(sys.argv[1])):
    client.create(holdfast.Person())
"""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how much to measure; see `benchmarks.pods.Bench`."""

    folder: Path
    rounds: int

    def rows(self) -> Iterator[Row]:
        """Measure one row after the other."""
        nothing = (sys.executable, "-c", "pass")
        yield self.compare(
            "holdfast --help", "python -c pass", (sys.executable, "-m", "holdfast", "--help"), nothing, goal=8
        )
        with tempfile.TemporaryDirectory(dir=self.folder) as home:
            with PodClient(home=home) as client:
                id_ = client.create(Person()).id or ""
            opening = (sys.executable, "-c", OPEN_AND_GET, id_)
            yield self.compare(
                "a process that opens a Pod and gets an item",
                "one that imports what that needs",
                opening,
                (sys.executable, "-c", IMPORTS),
                home=home,
            )
            if shutil.which("strace"):
                per_create = (self.flushes(home, CREATES + 1) - self.flushes(home, 1)) / CREATES
                yield counted("flushes per durable create", "one", per_create, goal=1)

    def compare(
        self,
        work: str,
        limit: str,
        argv: Sequence[str],
        limit_argv: Sequence[str],
        *,
        home: str = "",
        goal: float | None = None,
    ) -> Row:
        """Start programs in turns."""
        return compare(
            work,
            limit,
            rounds=self.rounds,
            measure=partial(cost, partial(start, argv, home)),
            measure_limit=partial(cost, partial(start, limit_argv, home)),
            goal=goal,
        )

    def flushes(self, home: str, creates: int) -> int:
        """Return how often a process that creates so many items makes the disk flush."""
        log = self.folder / "strace"
        argv = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(log), sys.executable]
        subprocess.run([*argv, "-c", CREATE, str(creates)], check=True, env=environment(home))
        return len(log.read_text().splitlines())


def start(argv: Sequence[str], home: str) -> None:
    """Run a program to its end, a few times."""
    for _ in range(STARTS):
        subprocess.run(argv, check=True, env=environment(home), stdout=subprocess.DEVNULL)


def environment(home: str) -> dict[str, str]:
    """Return what a program is to see around it."""
    # As installed: with compiled modules beside the sources, which a first start may have to write.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "HOLDFAST_HOME": home}
