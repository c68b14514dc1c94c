"""How items and edges could lie in SQLite, and what each way costs beside the others.

``python -m benchmarks.layouts [--items N] [--rounds N]`` prints the ratios that docs/adr/0002-items-in-sql.md decides
from. Every candidate holds the same items in an encrypted file of its own and must give the same answers before it is
timed. A figure is the median over rounds of a ratio taken inside one round, by wall clock and, in brackets, by
processor time; no figure is a time, because times are the machine's and ratios are the layout's.

The module measures SQL alone: no typed items, no schema checks, no permissions.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import secrets
import statistics
import struct
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import apsw
from pydantic_core import to_json
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

type_names: Final = ("Dog", "Cat", "Hen", "Cow", "Pig")
common_name: Final = "Rex"
"""The name of one item in twenty; every other name is shared by about a hundred items of all types together."""

chunk_size: Final = 50_000
first_ms: Final = 1_700_000_000_000
default_cache_kib: Final = 65_536

Value = str | int | float | bool
Properties = dict[str, Value]
Binding = str | int | float | bytes
Rows = list[tuple[Binding, ...]]
Found = list[tuple[str, Properties]]
MakeId = Callable[[random.Random, int], str]


class Record(NamedTuple):
    """One item as it arrives at the store."""

    seq: int
    id: str
    type: str
    created: int
    server_modified: int
    properties: Properties


@dataclass(frozen=True, kw_only=True)
class Query:
    """Items of ``types`` whose ``property`` compares to ``value``, in the order of results, at most ``limit``."""

    property: str
    comparison: str = "="
    value: Value
    limit: int
    types: tuple[str, ...] = ("Dog",)


# Data


def records(start: int, stop: int, *, names: int, make_id: MakeId) -> list[Record]:
    """Return the items numbered ``start`` up to ``stop``; the same numbers give the same items."""
    source = random.Random(start)
    made: list[Record] = []
    for seq in range(start, stop):
        name = common_name if source.random() < 0.05 else f"n{source.randrange(names):07d}"
        properties: Properties = {
            "name": name,
            "note": f"{source.getrandbits(240):060x}",
            "age": source.randrange(1000),
            "weight": source.uniform(0, 100),
            "tame": source.random() < 0.5,
        }
        # A thousand items share a moment, as items created by one transaction do.
        made.append(
            Record(seq, make_id(source, seq), source.choice(type_names), first_ms, first_ms + seq // 1000, properties)
        )
    return made


def random_id(source: random.Random, _seq: int) -> str:
    """Return 32 hexadecimal digits without any order, like a version 4 UUID."""
    return f"{source.getrandbits(128):032x}"


def ordered_id(source: random.Random, seq: int) -> str:
    """Return 32 hexadecimal digits that begin with the time, like a version 7 UUID (RFC 9562)."""
    return f"{(first_ms + seq // 50) << 80 | source.getrandbits(80):032x}"


# Layouts

head_columns: Final = (
    "seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, version INTEGER NOT NULL, "
    "created INTEGER NOT NULL, modified INTEGER NOT NULL, server_modified INTEGER NOT NULL, deleted INTEGER NOT NULL"
)
by_type: Final = "CREATE INDEX by_type ON item (type, server_modified)"
order: Final = "ORDER BY item.server_modified, item.seq LIMIT ?"
edit_head: Final = "version = version + 1, modified = ?, server_modified = ? WHERE id = ?"


def head(record: Record) -> tuple[Binding, ...]:
    """Return what every layout keeps in columns of their own."""
    return (record.seq, record.id, record.type, 1, record.created, record.created, record.server_modified, 0)


def one_row(db: apsw.Connection, sql: str, bindings: tuple[Binding, ...]) -> Sequence[Any]:
    """Return the one row that ``sql`` finds."""
    for row in db.execute(sql, bindings):
        return row
    raise LookupError(f"{sql!r} found nothing for {bindings!r}")


class Layout(ABC):
    """One way to lay items in tables, with the best statements that it allows."""

    label: str
    schema: tuple[str, ...]

    @abstractmethod
    def encode(self, items: Sequence[Record]) -> list[tuple[str, Rows]]:
        """Return the statements that insert ``items``, each with its rows."""

    @abstractmethod
    def get(self, db: apsw.Connection, item_id: str) -> Properties:
        """Return the properties of one item that exists."""

    @abstractmethod
    def statement(self, query: Query) -> tuple[str, tuple[Binding, ...]]:
        """Return the statement that finds the items, with its bindings."""

    @abstractmethod
    def search(self, db: apsw.Connection, query: Query) -> Found:
        """Return id and properties of the items found, in the order of results."""

    @abstractmethod
    def update(self, db: apsw.Connection, item_id: str, key: str, value: Value, now_ms: int) -> None:
        """Change one property of one item that exists."""

    @abstractmethod
    def add_index(self, db: apsw.Connection, key: str) -> None:
        """Make ``key`` of Dog a property that is found without a scan; rows exist already."""


class Columns(Layout):
    """A column per property: what SQL does best, and what a schema that is data cannot have. The reference."""

    def __init__(self, label: str = "columns", *, is_bare: bool = False) -> None:
        self.label = label
        declared = "name TEXT, note TEXT, age INTEGER, weight REAL, tame INTEGER"
        if is_bare:
            plain = head_columns.replace(" PRIMARY KEY", "").replace(" UNIQUE", "")
            self.schema = (f"CREATE TABLE item ({plain}, {declared})",)
        else:
            indexes = (self._index(f"by_{owner}_name", owner, "name") for owner in type_names)
            self.schema = (f"CREATE TABLE item ({head_columns}, {declared})", by_type, *indexes)

    @override
    def encode(self, items: Sequence[Record]) -> list[tuple[str, Rows]]:
        rows: Rows = [(*head(record), *record.properties.values()) for record in items]
        return [("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)]

    @override
    def get(self, db: apsw.Connection, item_id: str) -> Properties:
        sql = "SELECT name, note, age, weight, tame FROM item WHERE id = ?"
        return self._properties(one_row(db, sql, (item_id,)))

    @override
    def statement(self, query: Query) -> tuple[str, tuple[Binding, ...]]:
        return union(
            "SELECT id, name, note, age, weight, tame, server_modified, seq FROM item {indexed_by} "
            f"WHERE type = '{{owner}}' AND {query.property} {query.comparison} ?1 AND deleted = 0",
            query,
        )

    @override
    def search(self, db: apsw.Connection, query: Query) -> Found:
        return [(item_id, self._properties(row)) for item_id, *row, _, _ in db.execute(*self.statement(query))]

    @override
    def update(self, db: apsw.Connection, item_id: str, key: str, value: Value, now_ms: int) -> None:
        db.execute(f"UPDATE item SET {key} = ?, {edit_head}", (value, now_ms, now_ms, item_id))

    @override
    def add_index(self, db: apsw.Connection, key: str) -> None:
        db.execute(self._index("added", "Dog", key))

    def _index(self, label: str, owner: str, key: str) -> str:
        return f"CREATE INDEX {label} ON item ({key}, server_modified) WHERE type = '{owner}' AND deleted = 0"

    def _properties(self, row: Sequence[Any]) -> Properties:
        name, note, age, weight, tame = row
        return {"name": name, "note": note, "age": age, "weight": weight, "tame": bool(tame)}


def union(one_type: str, query: Query) -> tuple[str, tuple[Binding, ...]]:
    """Return ``one_type`` for each type of ``query``, merged in the order of results.

    A partial index serves only what its own condition follows from, hence one part per type, with the type as a
    literal. Without INDEXED BY and statistics SQLite reads a whole type in order rather than sort a range.
    """
    by_name = "INDEXED BY by_{owner}_name" if query.property == "name" else ""
    parts = [one_type.replace("{indexed_by}", by_name).replace("{owner}", owner) for owner in query.types]
    return f"{' UNION ALL '.join(parts)} ORDER BY server_modified, seq LIMIT ?2", (query.value, query.limit)


class Document(Layout):
    """One table; the properties are one JSON document, with a partial expression index per type and property.

    Args:
        label: The column of the report.
        binary: Keep the document in SQLite's binary form, not as text.
        keys: The properties that every type here declares indexed.
        others: How many more properties are declared indexed, of types that these items do not have.
        id_type: The column type of ids; "BLOB" keeps 16 bytes in place of 32 digits.
    """

    def __init__(
        self,
        label: str,
        *,
        binary: bool = False,
        keys: Sequence[str] = ("name",),
        others: int = 0,
        id_type: str = "TEXT",
    ) -> None:
        self.label = label
        self.id_type = id_type
        self.place = "jsonb(?)" if binary else "?"
        self.read = "json(properties)" if binary else "properties"
        self.edit = "jsonb_set" if binary else "json_set"
        columns = head_columns.replace("id TEXT", f"id {id_type}")
        self.schema = (f"CREATE TABLE item ({columns}, properties {'BLOB' if binary else 'TEXT'} NOT NULL)", by_type)
        self.schema += tuple(self._index(f"by_{owner}_{key}", owner, key) for key in keys for owner in type_names)
        self.schema += tuple(self._index(f"other_{number}", f"Other{number}", "name") for number in range(others))

    @override
    def encode(self, items: Sequence[Record]) -> list[tuple[str, Rows]]:
        # Four times as fast as the standard library's encoder, and installed with pydantic anyway.
        rows: Rows = [(*head(record), to_json(record.properties).decode()) for record in items]
        if self.id_type == "BLOB":
            rows = [(seq, bytes.fromhex(str(item_id)), *rest) for seq, item_id, *rest in rows]
        return [(f"INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?, ?, {self.place})", rows)]

    @override
    def get(self, db: apsw.Connection, item_id: str) -> Properties:
        key = bytes.fromhex(item_id) if self.id_type == "BLOB" else item_id
        (text,) = one_row(db, f"SELECT {self.read} FROM item WHERE id = ?", (key,))
        return json.loads(text)

    @override
    def statement(self, query: Query) -> tuple[str, tuple[Binding, ...]]:
        value = f"json_extract(properties, '$.{query.property}')"
        return union(
            f"SELECT id, {self.read}, server_modified, seq FROM item {{indexed_by}} "
            f"WHERE type = '{{owner}}' AND {value} {query.comparison} ?1 AND deleted = 0",
            query,
        )

    @override
    def search(self, db: apsw.Connection, query: Query) -> Found:
        return [(item_id, json.loads(text)) for item_id, text, _, _ in db.execute(*self.statement(query))]

    @override
    def update(self, db: apsw.Connection, item_id: str, key: str, value: Value, now_ms: int) -> None:
        db.execute(
            f"UPDATE item SET properties = {self.edit}(properties, '$.{key}', ?), {edit_head}",
            (value, now_ms, now_ms, item_id),
        )

    @override
    def add_index(self, db: apsw.Connection, key: str) -> None:
        db.execute(self._index("added", "Dog", key))

    def _index(self, label: str, owner: str, key: str) -> str:
        value = f"json_extract(properties, '$.{key}')"
        return f"CREATE INDEX {label} ON item ({value}, server_modified) WHERE type = '{owner}' AND deleted = 0"


class Wide(Document):
    """A JSON document, with one expression index per property name, whatever the type."""

    def __init__(self, label: str = "wide", *, keys: Sequence[str] = ("name",), others: int = 0) -> None:
        super().__init__(label, keys=())
        self.schema += tuple(self._shared_index(f"by_{key}", key) for key in keys)
        self.schema += tuple(self._shared_index(f"other_{number}", f"other{number}") for number in range(others))

    @override
    def statement(self, query: Query) -> tuple[str, tuple[Binding, ...]]:
        value = f"json_extract(properties, '$.{query.property}')"
        types = " OR ".join(f"type = '{owner}'" for owner in query.types)
        return (
            (
                "SELECT id, properties, server_modified, seq FROM item "
                f"{'INDEXED BY by_name' if query.property == 'name' else ''} "
                f"WHERE ({types}) AND {value} {query.comparison} ? AND deleted = 0 {order}"
            ),
            (query.value, query.limit),
        )

    @override
    def add_index(self, db: apsw.Connection, key: str) -> None:
        db.execute(self._shared_index("added", key))

    def _shared_index(self, label: str, key: str) -> str:
        value = f"json_extract(properties, '$.{key}')"
        return (
            f"CREATE INDEX {label} ON item ({value}, type, server_modified) WHERE {value} IS NOT NULL AND deleted = 0"
        )


class Side(Document):
    """A JSON document, and a narrow table with a copy of each value that is declared indexed, kept by the caller.

    Which properties are indexed is a row in ``field``: no index is made or dropped when the schema of items grows.
    """

    put: Final = "INSERT INTO indexed VALUES (?, ?, ?, ?)"
    drop: Final = "DELETE FROM indexed WHERE field = ? AND value = ? AND server_modified = ? AND item = ?"

    def __init__(self, label: str = "side", *, keys: Sequence[str] = ("name",), others: int = 0) -> None:
        super().__init__(label, keys=())
        self.keys = tuple(keys)
        declared = [(owner, key) for owner in type_names for key in keys]
        declared += [(f"Other{number}", "name") for number in range(others)]
        self.fields = {field: number for number, field in enumerate(declared)}
        self.schema += (
            "CREATE TABLE field (number INTEGER PRIMARY KEY, type TEXT, property TEXT, UNIQUE (type, property))",
            (
                "CREATE TABLE indexed (field INTEGER, value, server_modified INTEGER, item INTEGER, "
                "PRIMARY KEY (field, value, server_modified, item)) WITHOUT ROWID"
            ),
            *(
                f"INSERT INTO field VALUES ({number}, '{owner}', '{key}')"
                for (owner, key), number in self.fields.items()
            ),
        )

    @override
    def encode(self, items: Sequence[Record]) -> list[tuple[str, Rows]]:
        rows: Rows = [
            (self.fields[record.type, key], record.properties[key], record.server_modified, record.seq)
            for record in items
            for key in self.keys
        ]
        return [*super().encode(items), (self.put, rows)]

    @override
    def statement(self, query: Query) -> tuple[str, tuple[Binding, ...]]:
        if (query.types[0], query.property) not in self.fields:
            return super().statement(query)
        # The narrow rows are sorted and cut before any item is read; CROSS JOIN is SQLite's way to fix that order.
        # One part per type comes sorted out of the table; a merge of sorted parts stops at the limit.
        parts = [
            "SELECT item, server_modified FROM indexed "
            f"WHERE field = {self.fields[owner, query.property]} AND value {query.comparison} ?1"
            for owner in query.types
        ]
        return (
            (
                "SELECT item.id, item.properties, item.server_modified, item.seq "
                f"FROM ({' UNION ALL '.join(parts)} ORDER BY server_modified, item LIMIT ?2) AS hit "
                "CROSS JOIN item ON item.seq = hit.item ORDER BY hit.server_modified, hit.item"
            ),
            (query.value, query.limit),
        )

    @override
    def update(self, db: apsw.Connection, item_id: str, key: str, value: Value, now_ms: int) -> None:
        sql = "SELECT seq, type, server_modified, properties FROM item WHERE id = ?"
        seq, owner, before_ms, text = one_row(db, sql, (item_id,))
        before = json.loads(text)
        after = {**before, key: value}
        # The moment is part of the order, so the copies move with every update, whichever property was meant.
        for each in self.keys:
            db.execute(self.drop, (self.fields[owner, each], before[each], before_ms, seq))
            db.execute(self.put, (self.fields[owner, each], after[each], now_ms, seq))
        super().update(db, item_id, key, value, now_ms)

    @override
    def add_index(self, db: apsw.Connection, key: str) -> None:
        db.execute(f"INSERT INTO field VALUES (99, 'Dog', '{key}')")
        db.execute(
            f"INSERT INTO indexed SELECT 99, json_extract(properties, '$.{key}'), server_modified, seq FROM item "
            f"WHERE type = 'Dog' AND deleted = 0 AND json_extract(properties, '$.{key}') IS NOT NULL "
            # In the order of the table that it goes to, pages are filled one after the other.
            "ORDER BY 2, 3, 4"
        )


class Triggered(Side):
    """The side table, kept by triggers that read ``field``: it cannot be forgotten, and costs a look-up per item."""

    copies: Final = (
        "SELECT number, json_extract({item}.properties, '$.' || property), {item}.server_modified, {item}.seq "
        "FROM field WHERE type = {item}.type AND json_extract({item}.properties, '$.' || property) IS NOT NULL"
    )

    def __init__(self, label: str = "trigger") -> None:
        super().__init__(label)
        put = f"INSERT INTO indexed {self.copies.format(item='new')} AND new.deleted = 0;"
        gone = f"{self.copies.format(item='old')} AND old.deleted = 0"
        drop = f"DELETE FROM indexed WHERE (field, value, server_modified, item) IN ({gone});"
        # One trigger for both: SQLite promises no order between two on the same event.
        self.schema += (
            f"CREATE TRIGGER item_created AFTER INSERT ON item BEGIN {put} END",
            f"CREATE TRIGGER item_changed AFTER UPDATE ON item BEGIN {drop} {put} END",
        )

    @override
    def encode(self, items: Sequence[Record]) -> list[tuple[str, Rows]]:
        return Document.encode(self, items)

    @override
    def update(self, db: apsw.Connection, item_id: str, key: str, value: Value, now_ms: int) -> None:
        Document.update(self, db, item_id, key, value, now_ms)


class Split(Layout):
    """A row per property, in a table per kind of value; every property is indexed."""

    label = "split"
    tables: Final = {"name": "strings", "note": "strings", "age": "integers", "tame": "integers", "weight": "reals"}
    schema = (
        f"CREATE TABLE item ({head_columns})",
        by_type,
        *(
            statement
            for table in ("strings", "integers", "reals")
            for statement in (
                f"CREATE TABLE {table} (item INTEGER, name TEXT, value, PRIMARY KEY (item, name)) WITHOUT ROWID",
                f"CREATE INDEX {table}_by_value ON {table} (name, value)",
            )
        ),
    )

    @override
    def encode(self, items: Sequence[Record]) -> list[tuple[str, Rows]]:
        rows: dict[str, Rows] = {"strings": [], "integers": [], "reals": []}
        for record in items:
            for key, value in record.properties.items():
                rows[self.tables[key]].append((record.seq, key, value))
        return [
            ("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [head(record) for record in items]),
            *((f"INSERT INTO {table} VALUES (?, ?, ?)", values) for table, values in rows.items()),
        ]

    @override
    def get(self, db: apsw.Connection, item_id: str) -> Properties:
        (seq,) = one_row(db, "SELECT seq FROM item WHERE id = ?", (item_id,))
        return self._properties(db, [seq])[seq]

    @override
    def statement(self, query: Query) -> tuple[str, tuple[Binding, ...]]:
        table = self.tables[query.property]
        types = " OR ".join(f"item.type = '{owner}'" for owner in query.types)
        return (
            (
                f"SELECT item.seq, item.id FROM {table} AS held CROSS JOIN item ON item.seq = held.item "
                f"WHERE held.name = '{query.property}' AND held.value {query.comparison} ? "
                f"AND ({types}) AND item.deleted = 0 {order}"
            ),
            (query.value, query.limit),
        )

    @override
    def search(self, db: apsw.Connection, query: Query) -> Found:
        ids: dict[int, str] = dict(tuple(row) for row in db.execute(*self.statement(query)))
        properties = self._properties(db, list(ids))
        return [(item_id, properties[seq]) for seq, item_id in ids.items()]

    @override
    def update(self, db: apsw.Connection, item_id: str, key: str, value: Value, now_ms: int) -> None:
        db.execute(
            f"UPDATE {self.tables[key]} SET value = ? WHERE item = (SELECT seq FROM item WHERE id = ?) AND name = ?",
            (value, item_id, key),
        )
        db.execute(f"UPDATE item SET {edit_head}", (now_ms, now_ms, item_id))

    @override
    def add_index(self, db: apsw.Connection, key: str) -> None:
        """Do nothing: every property is indexed already."""

    def _properties(self, db: apsw.Connection, items: list[int]) -> dict[int, Properties]:
        found: dict[int, Properties] = {seq: {} for seq in items}
        listed = json.dumps(items)
        for table in ("strings", "integers", "reals"):
            for seq, key, value in db.execute(
                f"SELECT item, name, value FROM {table} WHERE item IN (SELECT value FROM json_each(?))", (listed,)
            ):
                found[seq][key] = bool(value) if key == "tame" else value
        return found


# Measuring


class Cost(NamedTuple):
    """What some work took."""

    wall_s: float
    cpu_s: float

    def plus(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


def cost(work: Callable[[], object]) -> Cost:
    """Do ``work`` once and return what it took."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall_s, time.process_time() - cpu_s)


class Report:
    """The costs of each work, by candidate and round."""

    def __init__(self) -> None:
        self._costs: dict[str, dict[str, list[Cost]]] = {}

    def add(self, work: str, candidate: str, taken: Cost) -> None:
        """Note what ``work`` took ``candidate`` in the next round."""
        self._costs.setdefault(work, {}).setdefault(candidate, []).append(taken)

    def table(self, title: str, reference: str, candidates: Sequence[str]) -> str:
        """Return a Markdown table: for each work and candidate, the median ratio to ``reference``."""
        lines = [f"| {title}, × {reference} | {' | '.join(candidates)} |", "| --- |" + " --- |" * len(candidates)]
        for work, costs in self._costs.items():
            cells = [self._ratio(costs.get(candidate, []), costs[reference]) for candidate in candidates]
            lines.append(f"| {work} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _ratio(self, costs: list[Cost], references: list[Cost]) -> str:
        if not costs:
            return "–"
        wall = statistics.median(one.wall_s / other.wall_s for one, other in zip(costs, references, strict=True))
        cpu = statistics.median(one.cpu_s / other.cpu_s for one, other in zip(costs, references, strict=True))
        return f"{wall:.2f} ({cpu:.2f})"


Thing = TypeVar("Thing")


def rotated(things: Sequence[Thing], by: int) -> list[Thing]:
    """Return ``things`` beginning with another one, so that none always pays for what came before it."""
    by %= len(things)
    return [*things[by:], *things[:by]]


def in_transaction(db: apsw.Connection, work: Callable[[], object]) -> None:
    """Do ``work`` and commit it durably."""
    db.execute("BEGIN IMMEDIATE")
    work()
    db.execute("COMMIT")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how much to measure.

    Args:
        folder: Holds the files of this run; the caller removes it.
        items: How many items each candidate holds.
        rounds: How often everything is measured.
    """

    folder: Path
    items: int
    rounds: int

    @property
    def names(self) -> int:
        """How many different names the items bear."""
        return max(self.items // 100, 10)

    def open(self, *, cache_kib: int = default_cache_kib) -> apsw.Connection:
        """Make an encrypted file that is durable at every commit, and open it."""
        db = apsw.Connection(str(self.folder / f"{secrets.token_hex(8)}.db"))
        db.pragma("cipher", "chacha20")
        db.pragma("key", f"raw:{secrets.token_hex(32)}")
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", "full")
        db.pragma("cache_size", -cache_kib)
        return db

    def discard(self, db: apsw.Connection) -> None:
        """Close ``db`` and remove its file; closing removes the write-ahead log."""
        path = Path(db.filename)
        db.close()
        path.unlink()

    def build(
        self, layout: Layout, *, make_id: MakeId = random_id, cache_kib: int = default_cache_kib
    ) -> tuple[apsw.Connection, Cost, Cost]:
        """Create all items in one transaction; return the database, the cost of encoding and that of SQL."""
        db = self.open(cache_kib=cache_kib)
        for statement in layout.schema:
            db.execute(statement)
        encoding = Cost(0, 0)
        inserting = cost(lambda: db.execute("BEGIN IMMEDIATE"))
        # A chunk at a time: a million items need not fit in memory.
        for start in range(0, self.items, chunk_size):
            chunk = records(start, min(start + chunk_size, self.items), names=self.names, make_id=make_id)
            encoded: list[tuple[str, Rows]] = []
            encoding = encoding.plus(cost(lambda: encoded.extend(layout.encode(chunk))))  # noqa: B023 - called at once
            for sql, rows in encoded:
                inserting = inserting.plus(cost(lambda: db.executemany(sql, rows)))  # noqa: B023 - called at once
        inserting = inserting.plus(cost(lambda: db.execute("COMMIT")))
        db.pragma("wal_checkpoint", "truncate")
        return db, encoding, inserting


# What is measured


def searches(names: int) -> dict[str, tuple[Query, int]]:
    """Return each search by its line in the report, and how often one measurement repeats it."""
    rare = Query(property="name", value="n0000007", limit=20)
    common = Query(property="name", value=common_name, limit=20)
    few = Query(property="name", comparison=">=", value=f"n{names - 5:07d}", limit=20)
    half = Query(property="name", comparison=">=", value=f"n{names // 2:07d}", limit=20)
    return {
        "equal, some 20 hits": (rare, 300),
        "equal, 1 in 20 hits, first 20": (common, 300),
        "equal, 1 in 20 hits, first 1,000": (replace(common, limit=1000), 5),
        "at least, some 100 hits, first 20": (few, 100),
        "at least, half of all, first 20": (half, 3),
        "equal, not indexed": (Query(property="age", value=7, limit=1000), 3),
        "equal, five types, some 100 hits, first 20": (replace(rare, types=type_names), 100),
        "equal, five types, 1 in 20 hits, first 20": (replace(common, types=type_names), 100),
    }


def measure_layouts(bench: Bench) -> str:
    """Return the tables of the layouts, then the plans by which they search."""
    bare = Columns("bare", is_bare=True)
    layouts: list[Layout] = [
        Columns(),
        Document("text"),
        Document("jsonb", binary=True),
        Wide(),
        Side(),
        Triggered(),
        Split(),
    ]
    labels = [layout.label for layout in layouts]
    asked = searches(bench.names)
    creating, working = Report(), Report()
    sizes: dict[str, int] = {}
    plans: list[str] = []
    for number in range(bench.rounds):
        built: dict[str, apsw.Connection] = {}
        for layout in rotated([bare, *layouts], number):
            db, encoding, inserting = bench.build(layout)
            built[layout.label] = db
            sizes[layout.label] = int(db.pragma("page_count")) * int(db.pragma("page_size"))
            creating.add("bulk create, SQL alone", layout.label, inserting)
            creating.add("bulk create, with encoding", layout.label, encoding.plus(inserting))
        for layout in rotated([bare, *layouts], number):
            creating.add("100 creates, a commit each", layout.label, create_each(layout, built[layout.label], bench))
        compare_answers(layouts, built, asked)
        for layout in rotated(layouts, number):
            for work, taken in search_costs(layout, built[layout.label], asked):
                working.add(work, layout.label, taken)
        for layout in rotated(layouts, number):
            for work, taken in change_costs(layout, built[layout.label], bench):
                working.add(work, layout.label, taken)
        compare_answers(layouts, built, asked)
        plans = [
            f"plan of {layout.label}, {work}: {plan(built[layout.label], *layout.statement(query))}"
            for layout in layouts
            if layout.label in ("text", "side")
            for work, (query, _) in asked.items()
        ]
        for db in built.values():
            bench.discard(db)
    size_line = " | ".join(f"{sizes[label] / sizes['bare']:.2f}" for label in labels)
    return "\n\n".join(
        (
            f"{creating.table('creating', 'bare', labels)}\n| size of the file | {size_line} |",
            working.table("reading and changing", "columns", labels),
            "\n".join(plans),
        )
    )


def create_each(layout: Layout, db: apsw.Connection, bench: Bench) -> Cost:
    """Create items with a commit each, as a plugin that saves as it goes does; return what that took."""
    more = records(bench.items, bench.items + 100, names=bench.names, make_id=random_id)
    encoded = [layout.encode([record]) for record in more]

    def create(statements: list[tuple[str, Rows]]) -> None:
        for sql, rows in statements:
            db.executemany(sql, rows)

    return cost(lambda: [in_transaction(db, partial(create, one)) for one in encoded])


def search_costs(
    layout: Layout, db: apsw.Connection, asked: dict[str, tuple[Query, int]]
) -> Iterator[tuple[str, Cost]]:
    """Yield what each way to read takes."""
    chosen: list[str] = [item_id for (item_id,) in db.execute("SELECT id FROM item WHERE seq % 97 = 0 LIMIT 1000")]
    random.Random(0).shuffle(chosen)
    yield "get by id", cost(lambda: [layout.get(db, item_id) for item_id in chosen])
    for work, (query, times) in asked.items():
        layout.search(db, query)
        yield work, cost(lambda: [layout.search(db, query) for _ in range(times)])  # noqa: B023 - called at once


def change_costs(layout: Layout, db: apsw.Connection, bench: Bench) -> Iterator[tuple[str, Cost]]:
    """Yield what each way to change takes."""
    chosen: list[str] = [item_id for (item_id,) in db.execute("SELECT id FROM item WHERE seq % 89 = 0 LIMIT 1000")]
    random.Random(0).shuffle(chosen)
    now_ms = first_ms + bench.items

    def change(key: str, value: Value) -> None:
        for item_id in chosen:
            layout.update(db, item_id, key, value, now_ms)

    yield "update of the indexed property", cost(lambda: in_transaction(db, lambda: change("name", common_name)))
    yield "update of another property", cost(lambda: in_transaction(db, lambda: change("age", 7)))
    if not isinstance(layout, Split):
        yield "make another property indexed", cost(lambda: in_transaction(db, lambda: layout.add_index(db, "weight")))


def compare_answers(
    layouts: Sequence[Layout], built: dict[str, apsw.Connection], asked: dict[str, tuple[Query, int]]
) -> None:
    """Raise AssertionError unless all layouts give the same answers: a wrong one could win."""
    first = layouts[0]
    for work, (query, _) in asked.items():
        expected = first.search(built[first.label], query)
        assert expected, f"{work!r} finds nothing, so it measures nothing"
        for layout in layouts[1:]:
            found = layout.search(built[layout.label], query)
            assert found == expected, f"{layout.label!r} and {first.label!r} answer {work!r} differently"


def plan(db: apsw.Connection, sql: str, bindings: tuple[Binding, ...]) -> str:
    """Return the steps of SQLite's plan, in one line."""
    return "; ".join(str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", bindings))


def measure_declarations(bench: Bench) -> str:
    """Return what the creation of these items costs when more properties are declared indexed."""
    report = Report()
    bare = Columns("bare", is_bare=True)
    every = ("name", "note", "age", "weight", "tame")
    declared: dict[str, tuple[tuple[str, ...], int]] = {
        "none": ((), 0),
        "1 of the item's": (every[:1], 0),
        "5 of the item's": (every, 0),
        "1, and 20 of other types": (every[:1], 20),
        "1, and 50 of other types": (every[:1], 50),
    }
    labels: dict[str, Callable[..., Layout]] = {"text": partial(Document, "text"), "wide": Wide, "side": Side}
    for number in range(bench.rounds):
        db, _, bare_cost = bench.build(bare)
        bench.discard(db)
        for title, (keys, others) in rotated(list(declared.items()), number):
            report.add(title, "bare", bare_cost)
            for label, make in labels.items():
                db, _, taken = bench.build(make(keys=keys, others=others))
                bench.discard(db)
                report.add(title, label, taken)
    return report.table("bulk create, SQL alone, with indexed properties", "bare", list(labels))


def measure_ids(bench: Bench) -> str:
    """Return what the form of ids and the size of the page cache cost the creation of items."""
    report = Report()
    forms: dict[str, tuple[Layout, MakeId]] = {
        "random text": (Document("random text", keys=()), random_id),
        "ordered text": (Document("ordered text", keys=()), ordered_id),
        "random bytes": (Document("random bytes", keys=(), id_type="BLOB"), random_id),
    }
    reference = "random text in a large cache"
    for number in range(bench.rounds):
        costs: dict[tuple[int, str], Cost] = {}
        for label, (layout, make_id) in rotated(list(forms.items()), number):
            for cache_kib in (default_cache_kib, 2_048):
                db, _, costs[cache_kib, label] = bench.build(layout, make_id=make_id, cache_kib=cache_kib)
                bench.discard(db)
        for (cache_kib, label), taken in costs.items():
            report.add(f"bulk create, cache of {cache_kib // 1024} MiB", label, taken)
        for cache_kib in (default_cache_kib, 2_048):
            work = f"bulk create, cache of {cache_kib // 1024} MiB"
            report.add(work, reference, costs[default_cache_kib, "random text"])
    return report.table("ids", reference, list(forms))


def measure_edges(bench: Bench) -> str:
    """Return what two ways to lay edges cost: twice as many edges as items, between random items."""
    incoming = "CREATE INDEX incoming ON edge (target, name, source)"
    layouts = {
        "rowid": (
            (
                "CREATE TABLE edge (seq INTEGER PRIMARY KEY, source INTEGER, name TEXT, target INTEGER, "
                "UNIQUE (source, name, target))"
            ),
            incoming,
        ),
        "keyed": (
            (
                "CREATE TABLE edge (seq INTEGER, source INTEGER, name TEXT, target INTEGER, "
                "PRIMARY KEY (source, name, target)) WITHOUT ROWID"
            ),
            incoming,
        ),
    }
    source = random.Random(0)
    edges = list(
        {
            (source.randrange(bench.items), source.choice(("owner", "friend", "photo")), source.randrange(bench.items))
            for _ in range(2 * bench.items)
        }
    )
    numbered: Rows = [(seq, *edge) for seq, edge in enumerate(edges)]
    in_order: Rows = [(seq, *edge) for seq, edge in enumerate(sorted(edges))]
    outgoing_sql = "SELECT name, target, seq FROM edge WHERE source = ? ORDER BY seq"
    incoming_sql = "SELECT source, seq FROM edge WHERE target = ? AND name = ? ORDER BY seq"
    report = Report()
    sizes: dict[str, int] = {}
    for number in range(bench.rounds):
        for label, schema in rotated(list(layouts.items()), number):
            for title, rows in (("by source", in_order), ("in random order", numbered)):
                db = bench.open()
                for statement in schema:
                    db.execute(statement)
                create = "INSERT INTO edge VALUES (?, ?, ?, ?)"
                taken = cost(lambda: in_transaction(db, lambda: db.executemany(create, rows)))  # noqa: B023 - at once
                report.add(f"bulk create, {title}", label, taken)
                if rows is numbered:
                    chosen = [(row[1],) for row in numbered[:5000]]
                    taken = cost(lambda: [db.execute(outgoing_sql, row).fetchall() for row in chosen])  # noqa: B023
                    report.add("edges of an item, in order", label, taken)
                    aimed = [(row[3], row[2]) for row in numbered[:5000]]
                    taken = cost(lambda: [db.execute(incoming_sql, row).fetchall() for row in aimed])  # noqa: B023
                    report.add("edges to an item, by name", label, taken)
                    db.pragma("wal_checkpoint", "truncate")
                    sizes[label] = int(db.pragma("page_count"))
                bench.discard(db)
    table = report.table("edges", "rowid", list(layouts))
    return f"{table}\n| size of the file | 1.00 | {sizes['keyed'] / sizes['rowid']:.2f} |"


def measure_reals() -> str:
    """Return how many finite floats of 100,000 with random bits come out of a JSON document as another float."""
    db = apsw.Connection(":memory:")
    source = random.Random(0)
    changed = asked = 0
    while asked < 100_000:
        (real,) = struct.unpack("<d", source.randbytes(8))
        if math.isfinite(real):
            text = to_json({"weight": real}).decode()
            sql = "SELECT json_extract(?1, '$.weight'), json_extract(?1, '$.weight') = ?2"
            read, is_equal = one_row(db, sql, (text, real))
            changed += read != real or not is_equal
            asked += 1
    return f"floats changed by json_extract: {changed} of {asked}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layouts", description=__doc__)
    parser.add_argument("--items", type=int, default=100_000, help="how many items each candidate holds")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    arguments = parser.parse_args()
    if arguments.items < 10_000:
        parser.error(f"--items is {arguments.items}: with fewer than 10000, some searches find nothing")
    # The lists of rows are large and without cycles; a collection in the middle of one candidate would be its loss.
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="layouts-") as folder:
        bench = Bench(folder=Path(folder), items=arguments.items, rounds=arguments.rounds)
        print(f"SQLite {apsw.sqlite_lib_version()}, {bench.items} items, {bench.rounds} rounds: wall (processor)\n")
        for measure in (measure_layouts, measure_declarations, measure_ids, measure_edges):
            print(measure(bench), end="\n\n", flush=True)
        print(measure_reals())


if __name__ == "__main__":
    main()
