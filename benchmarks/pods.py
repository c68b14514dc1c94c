"""What a Pod adds to SQLite: writes and reads through a client, beside bare statements on a file of the same make.

The bare side gets a Pod's own file (same tables, indexes, cipher), a connection that the store made (same pragmas) and
the rows that Holdfast itself wrote. So nothing differs but what lies between a program's items and SQL.
"""

from __future__ import annotations

import gc
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, cast

import apsw

from benchmarks.measure import Cost, Row, compare, cost
from holdfast import Field, Item, PersistentState, PodClient
from holdfast.sql import SqliteStore
from holdfast.store import MAX_OPERATIONS, SetVariable

BULK: Final = 100_000
COMMITS: Final = 100
READS: Final = 500
COMMON_NAME: Final = "Rex"
"""The name of a thousand dogs; any other name is the name of one."""

Statement = tuple[str, list[tuple[Any, ...]]]
"""What `executemany` takes."""

WRITTEN: Final = (("item", "seq"), ("indexed", "item"))
"""The tables that hold a dog, each with the column that tells which one, in the order in which they are written."""

BY_ID: Final = "SELECT * FROM item WHERE id = ? AND deleted = 0"
BY_NAME: Final = (
    "SELECT item.* FROM indexed CROSS JOIN item ON item.seq = indexed.item "
    "WHERE field = ? AND value = ? ORDER BY indexed.server_modified, indexed.item LIMIT 20"
)


class Dog(Item):
    """Five properties, one of them indexed."""

    name: str | None = Field(index=True)
    note: str | None = None
    age: int | None = None
    weight: float | None = None
    tame: bool | None = None


def new_dogs(start: int, stop: int, *, common_every: int = 100) -> list[Dog]:
    """Return dogs that are in no Pod yet; one in ``common_every`` has the common name."""
    return [
        Dog(
            f"n{number:07d}" if number % common_every else COMMON_NAME,
            secrets.token_hex(30),
            number % 1000,
            number / 7,
            number % 2 == 0,
        )
        for number in range(start, stop)
    ]


@dataclass(frozen=True, kw_only=True)
class Kennel:
    """A Pod with many dogs, and what to ask it for."""

    client: PodClient
    items: int
    ids: Sequence[str]
    rare_names: Sequence[str]

    def get(self) -> None:
        """Get dogs by their ids, which lie everywhere in the Pod."""
        for id_ in self.ids:
            self.client.get(id_)

    def search_rare(self) -> None:
        """Find dogs by the name that only one of them has."""
        for name in self.rare_names:
            self.client.search({"type": "Dog", "name": name})

    def search_common(self) -> None:
        """Find the first 20 of the thousand dogs with the common name."""
        for _ in range(READS):
            self.client.search({"type": "Dog", "name": COMMON_NAME, "_limit": 20})


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how much to measure.

    Args:
        folder: Holds the Pods of this run; the caller removes it.
        items: How many dogs the large Pod has; the small one has 100,000.
        rounds: How often everything is measured.
    """

    folder: Path
    items: int
    rounds: int

    def rows(self) -> Iterator[Row]:
        """Measure one row after the other."""
        yield self.bulk()
        yield from self.commits()
        with self.kennel(BULK) as small:
            yield from self.reads(small)
            if self.items > BULK:
                with self.kennel(self.items) as large:
                    yield from self.reads(large)
                    yield from self.growth(small, large)
            yield from self.reads_beside_writes(small)  # last: it leaves more dogs than the small Pod should have

    @contextmanager
    def pod(self) -> Generator[PodClient]:
        """Make a Pod that knows what a Dog is, and remove it."""
        home = self.folder / secrets.token_hex(8)
        with PodClient(home=home) as client:
            client.add_to_schema(Dog)
            yield client
        shutil.rmtree(home)

    @contextmanager
    def kennel(self, items: int) -> Generator[Kennel]:
        """Make a Pod with so many dogs, and remove it."""
        with self.pod() as client:
            for start in range(0, items, BULK):
                client.bulk_action(create_items=new_dogs(start, start + BULK, common_every=items // 1000))
            step = items // READS
            with bare(client) as db:
                ids = [id_ for (id_,) in db.execute("SELECT id FROM item WHERE seq % ? = 1", (step,))]
            # One past a number that is divisible is none that has the common name.
            names = [f"n{number:07d}" for number in range(1, items, step)]
            yield Kennel(client=client, items=items, ids=ids, rare_names=names)

    def compare(
        self,
        work: str,
        limit: str,
        measure: Callable[[], Cost],
        measure_limit: Callable[[], Cost],
        *,
        goal: float | None = None,
    ) -> Row:
        """Measure as many rounds as everything else."""
        return compare(work, limit, rounds=self.rounds, measure=measure, measure_limit=measure_limit, goal=goal)

    # -- writes --

    def bulk(self) -> Row:
        """Create 100,000 items in one call."""
        with self.pod() as client:
            client.bulk_action(create_items=new_dogs(0, BULK))
            parts = [rows_of(client, first, first + MAX_OPERATIONS) for first in range(1, BULK, MAX_OPERATIONS)]

        def measure() -> Cost:
            dogs = new_dogs(0, BULK)
            gc.collect()
            with self.pod() as client:
                return cost(lambda: client.bulk_action(create_items=dogs))

        def measure_limit() -> Cost:
            with self.pod() as client, bare(client) as db:
                return cost(lambda: [commit(db, part) for part in parts])

        return self.compare("bulk create of 100,000 items", "executemany", measure, measure_limit, goal=2.5)

    def commits(self) -> Iterator[Row]:
        """Create one item durably, alone and together with a variable."""
        with self.pod() as source:
            total = COMMITS * (self.rounds + 1)
            source.bulk_action(create_items=new_dogs(0, total))
            rows = [rows_of(source, seq, seq + 1) for seq in range(1, total + 1)]
        with self.pod() as client, self.pod() as other, bare(other) as db:
            yield self._commits("one durable create", "one commit", client.create, db, rows)
        with self.pod() as client, self.pod() as other, bare(other) as db:
            state = client.create(PersistentState(name="default")).id or ""
            variable = ("INSERT OR REPLACE INTO variable VALUES (?, ?, ?, ?)", [(state, "", "cursor", "7")])

            def create_and_set(dog: Dog) -> None:
                with client.transaction():
                    client.create(dog)
                    client.add(SetVariable(state, "cursor", 7))

            both = [[*row, variable] for row in rows]
            yield self._commits("one transaction: an item and a variable", "one commit", create_and_set, db, both)

    def _commits(
        self, work: str, limit: str, write: Callable[[Dog], object], db: apsw.Connection, rows: list[list[Statement]]
    ) -> Row:
        unused = iter(rows)

        def measure() -> Cost:
            dogs = new_dogs(0, COMMITS)
            return cost(lambda: [write(dog) for dog in dogs])

        def measure_limit() -> Cost:
            return cost(lambda: [commit(db, next(unused)) for _ in range(COMMITS)])

        return self.compare(work, limit, measure, measure_limit, goal=2.0)

    # -- reads --

    def reads(self, kennel: Kennel) -> Iterator[Row]:
        """Get by id and find by name, beside a SELECT that is written by hand."""
        with bare(kennel.client) as db:
            field = db.execute("SELECT number FROM field WHERE type = 'Dog' AND property = 'name'").get
            for work, ask, select, bindings in (
                ("get", kennel.get, BY_ID, [(id_,) for id_ in kennel.ids]),
                ("search, 1 hit", kennel.search_rare, BY_NAME, [(field, name) for name in kennel.rare_names]),
                ("search, 20 of 1,000 hits", kennel.search_common, BY_NAME, [(field, COMMON_NAME)] * READS),
            ):

                def ask_bare(select: str = select, bindings: Sequence[Any] = bindings) -> None:
                    for each in bindings:
                        db.execute(select, each).fetchall()

                yield self.compare(
                    f"{work}, among {kennel.items:,}", "SELECT", partial(cost, ask), partial(cost, ask_bare)
                )

    def growth(self, small: Kennel, large: Kennel) -> Iterator[Row]:
        """Read the same from a Pod with more in it: a scan would take as much longer as there is more."""
        for work, ask in (
            ("get", Kennel.get),
            ("search, 1 hit", Kennel.search_rare),
            ("search, 20 of 1,000 hits", Kennel.search_common),
        ):
            yield self.compare(
                f"{work}, among {large.items:,}",
                f"among {small.items:,}",
                partial(cost, partial(ask, large)),
                partial(cost, partial(ask, small)),
            )

    def reads_beside_writes(self, kennel: Kennel) -> Iterator[Row]:
        """Get by id while a batch of 50,000 operations is written, and while nothing is."""
        home = kennel.client.settings.home
        for where, executor in (
            ("another process", ProcessPoolExecutor(1, mp_context=get_context("spawn"))),
            ("another thread", ThreadPoolExecutor(1)),
        ):
            with executor:

                def measure(executor: Executor = executor) -> Cost:
                    executor.submit(prepare_batch, home).result()
                    writing = executor.submit(write_batch)
                    gets = 0

                    def get_until_written() -> None:
                        nonlocal gets
                        while not writing.done():
                            kennel.client.get(kennel.ids[gets % READS])
                            gets += 1

                    taken = cost(get_until_written)
                    writing.result()
                    return Cost(taken.wall_s / gets, taken.cpu_s / gets)

                def measure_limit() -> Cost:
                    taken = cost(kennel.get)
                    return Cost(taken.wall_s / READS, taken.cpu_s / READS)

                yield self.compare(f"get while {where} writes 50,000 items", "get while idle", measure, measure_limit)


# -- the bare side --


@contextmanager
def bare(client: PodClient) -> Generator[apsw.Connection]:
    """Open a connection to a Pod's file that is set up as the store's own."""
    db = cast("SqliteStore", client._store)._connect(65_536)
    try:
        yield db
    finally:
        db.close()


def rows_of(client: PodClient, first: int, end: int) -> list[Statement]:
    """Return the statements that write the dogs numbered ``first`` up to ``end``, as Holdfast wrote them."""
    found: list[Statement] = []
    with bare(client) as db:
        for table, number in WRITTEN:
            select = f"SELECT * FROM {table} WHERE {number} >= ? AND {number} < ? ORDER BY {number}"
            rows = [tuple(row) for row in db.execute(select, (first, end))]
            found.append((f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows))
    return found


def commit(db: apsw.Connection, statements: list[Statement]) -> None:
    """Write rows in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    for sql, rows in statements:
        db.executemany(sql, rows)
    db.execute("COMMIT")


# -- beside reads --

_prepared: list[tuple[PodClient, list[Dog]]] = []


def prepare_batch(home: Path) -> None:
    """Get ready to write, here: in this process and thread."""
    _prepared.append((PodClient(home=home), new_dogs(0, MAX_OPERATIONS)))


def write_batch() -> None:
    """Write 50,000 items in one batch."""
    client, dogs = _prepared.pop()
    with client:
        client.bulk_action(create_items=dogs)
