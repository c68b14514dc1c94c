"""What HTTP adds: requests of several clients to a server in a process of its own, and a run through it.

Rates and times are this machine's, clients included, which are threads of one process; the line of flushes is counted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Cost, Ratio, Row, compare, cost, counted
from benchmarks.pods import Dog, new_dogs
from holdfast.context import PodClient, Settings, carry_out
from holdfast.context.addresses import Address
from holdfast.keys import Identity
from holdfast.plugins import Source, StatefulPlugin

CLIENTS: Final = (1, 8, 32)
REQUESTS: Final = 640
"""Of each kind, whoever sends them; a tenth as many in bulk."""
DOGS: Final = 2_000
BULK: Final = 200
COMMITS: Final = 100
FLUSH_MS: Final = 5
STRACE: Final = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=fsync,fdatasync")
"""Stops the server at its flushes alone: at each system call, it would be another server."""


class Counts(StatefulPlugin):
    """Makes commits."""

    def run(self) -> None:
        """Make as many as are measured."""
        for number in range(COMMITS):
            with self.transaction():
                self.state.n = number


@contextmanager
def serving(home: Path, *before: str) -> Generator[str]:
    """Serve a home in a process of its own; yield the address."""
    command = [*before, sys.executable, "-m", "holdfast", "serve", "--json", "--home", str(home), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            said += server.stdout.readline()
        found = json.loads(said)
        try:
            yield found["url"]
        finally:
            os.kill(found["pid"], signal.SIGTERM)  # not what runs it: strace would leave it behind


def create(client: PodClient, number: int) -> None:
    """Create one item."""
    client.create(new_dogs(number, number + 1)[0])


def each_of(clients: Sequence[PodClient], requests: int, work: Callable[[PodClient, int], object]) -> list[float]:
    """Let the clients share so many requests, at the same time; return the seconds that each took."""

    def ask(number: int) -> list[float]:
        took: list[float] = []
        for each in range(number, requests, len(clients)):
            began = time.perf_counter()
            work(clients[number], each)
            took.append(time.perf_counter() - began)
        return took

    with ThreadPoolExecutor(len(clients)) as pool:
        return [each for some in pool.map(ask, range(len(clients))) for each in some]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The rows of serving.

    Args:
        folder: Where to write.
        rounds: How often the run is taken.
    """

    folder: Path
    rounds: int

    def rows(self) -> Iterator[Row]:
        """Measure, and yield one row after the other."""
        yield from self._requests()
        if shutil.which("strace") is not None:
            yield self._flushes(8)
            yield self._flushes(32, goal=0.25)
            yield self._slow_flushes()
        yield self._run()

    @contextmanager
    def _clients(self, name: str, count: int, *before: str) -> Generator[list[PodClient]]:
        identity = Identity.new()
        keys: Any = {"owner_key": identity.owner_key, "database_key": identity.database_key}
        with serving(self.folder / name, *before) as url:
            clients = [PodClient(url=url, **keys, home=self.folder / name) for _ in range(count)]
            clients[0].add_to_schema(Dog)
            for client in clients:
                client.add_to_schema(Dog)
            try:
                yield clients
            finally:
                for client in clients:
                    client.close()

    def _requests(self) -> Iterator[Row]:
        with self._clients("serving", max(CLIENTS)) as clients:
            dogs = new_dogs(0, DOGS)
            clients[0].bulk_action(create_items=dogs)
            ids = [str(dog.id) for dog in dogs]
            kinds: dict[str, tuple[int, Callable[[PodClient, int], object]]] = {
                "get": (REQUESTS, lambda client, number: client.get(ids[number])),
                "search (20 of 2,000)": (REQUESTS, lambda client, _: client.search({"name": "Rex", "_limit": 20})),
                "create": (REQUESTS, create),
                f"bulk of {BULK}": (
                    REQUESTS // 10,
                    lambda client, number: client.bulk_action(create_items=new_dogs(number, number + BULK)),
                ),
            }
            for name, (requests, work) in kinds.items():
                for count in CLIENTS:
                    each_of(clients[:count], count, work)  # a first request opens the connection
                    began = time.perf_counter()
                    took = sorted(each_of(clients[:count], requests, work))
                    rate = requests / (time.perf_counter() - began)
                    said = f"{name} over HTTP, {count} client{'s' if count > 1 else ''}"
                    yield counted(f"{said}, a second", "–", round(rate, 1))
                    p50, p99 = (round(1000 * took[int(part * (len(took) - 1))], 2) for part in (0.5, 0.99))
                    yield Row(work=f"{said}, ms", limit="p50 – p99", wall=Ratio(p50, p50, p99))

    def _create(self, name: str, count: int, requests: int, *before: str) -> float:
        """Return the seconds for one of so many creates."""
        with self._clients(name, count, *before) as clients:
            began = time.perf_counter()
            each_of(clients, requests, create)
            return (time.perf_counter() - began) / requests

    def _flushes(self, count: int, goal: float | None = None) -> Row:
        log = self.folder / f"flushes-{count}"
        with self._clients(f"flushing-{count}", count, *STRACE, "-o", str(log)) as clients:
            before = log.read_text().count("sync(")
            each_of(clients, REQUESTS, create)
            flushes = (log.read_text().count("sync(") - before) / REQUESTS
        work = f"{count} clients creating over HTTP"
        return counted(work, "flushes per acknowledged write", round(flushes, 3), goal=goal)

    def _slow_flushes(self) -> Row:
        delay = f"inject=fdatasync:delay_enter={FLUSH_MS * 1000}"
        strace = (*STRACE, "-e", delay, "-o", os.devnull)
        ratios = [
            self._create(f"slow-{number}", 32, REQUESTS, *strace) / self._create(f"one-{number}", 1, 100, *strace)
            for number in range(3)
        ]
        work = f"32 clients creating over HTTP, a flush of {FLUSH_MS} ms"
        median = statistics.median(ratios)
        return Row(work=work, limit="one commit each", wall=Ratio(median, min(ratios), max(ratios)), goal=1 / 3)

    def _run(self) -> Row:
        identity = Identity.new()
        source = Source(module=Counts.__module__, name=Counts.__name__, folder=Path.cwd())
        here, there = Settings(home=self.folder / "run"), Settings(home=self.folder / "run-served")

        def run(settings: Settings, address: Address | None) -> Cost:
            work = partial(carry_out, settings, source, is_new=True, identity=identity, address=address)
            return cost(work)

        with serving(there.home) as url:
            address = Address(url=url, owner_key=identity.owner_key, database_key=identity.database_key)
            return compare(
                f"run of {COMMITS} commits over HTTP",
                "the same run, embedded",
                rounds=self.rounds,
                measure=lambda: run(there, address),
                measure_limit=lambda: run(here, None),
            )
