"""The rows of a Pod in SQL: what a batch needs is read, what it changes is written, inside the caller's transaction."""

# pyright: reportUnknownMemberType=false -- apsw's stubs speak of a Buffer that Python 3.11 does not know

from __future__ import annotations

import zlib
from collections.abc import Collection, Generator, Iterable, Mapping
from typing import Any, Final, cast

import apsw
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from holdfast.items import BUILT_IN, Schema, TypeDefinition, definition_of
from holdfast.runs import Lease
from holdfast.store import Changes, Direction, EdgeRow, ItemRow, Needs, Question, Rows, VariableKey, exists_already
from holdfast.values import Value

BUILT_IN_SCHEMA: Final = Schema(definition_of(cls) for cls in BUILT_IN)

ITEM: Final = ", ".join(
    f"item.{name}"
    for name in ("id", "type", "version", "created", "modified", "server_modified", "deleted", "properties")
)
_LEASE: Final = "state, epoch, holder, run, expires, cancelled"
_QUESTION: Final = "id, state, run, key, form, view, deadline, fallback, asked, answer, answered"
_definition: Final = TypeAdapter(TypeDefinition)


def item_from(row: tuple[Any, ...]) -> ItemRow:
    """Return the item in the columns `ITEM`."""
    id_, type_, version, created, modified, server_modified, is_deleted, properties = row
    return ItemRow(id_, type_, version, created, modified, server_modified, is_deleted != 0, from_json(properties))


def to_text(value: object) -> str:
    """Return the JSON form of a value, or of an object of values, that has been checked."""
    return to_json(value).decode()


# -- schema -----------------------------------------------------------------------------------------------------------


def schema_version(db: apsw.Connection) -> int:
    """Return a number that grows with each change of the schema."""
    return cast("int", db.execute("SELECT value FROM meta WHERE name = 'schema_version'").get)


def read_schema(db: apsw.Connection) -> Schema:
    """Return the built-in types and those declared in this Pod."""
    stored = [_definition.validate_json(text) for (text,) in db.execute("SELECT definition FROM type_definition")]
    return BUILT_IN_SCHEMA.joined(stored)


def write_schema(db: apsw.Connection, schema: Schema) -> None:
    """Store what ``schema`` has beyond the built-in types, and index what it says is indexed."""
    stored = [
        (name, _definition.dump_json(definition).decode())
        for name, definition in schema.items()
        if definition is not BUILT_IN_SCHEMA.get(name)
    ]
    db.executemany("INSERT OR REPLACE INTO type_definition VALUES (?, ?)", stored)
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'schema_version'")
    make_indexes(db, schema)


def make_indexes(db: apsw.Connection, schema: Schema) -> None:
    """Make each property index that ``schema`` wants and that is not there yet."""
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    for type_, definition in schema.items():
        for name, found in definition.properties.items():
            index = index_name(type_, name)
            if found.is_indexed and index not in there:
                # Names were checked to be identifiers when they were declared: there is nothing to escape.
                db.execute(
                    f'CREATE INDEX "{index}" ON item ({expression(name)}, server_modified) '
                    f"WHERE type = '{type_}'"
                )


def index_name(type_: str, property_: str) -> str:
    """Return the name of a property's index; the number tells apart what differs in case only, as SQL does not."""
    name = f"{type_}.{property_}"
    return f"{name} {zlib.crc32(name.encode()):08x}"


COLUMNS: Final[Mapping[str, str]] = {
    "id": "item.id",
    "dateCreated": "item.created",
    "dateModified": "item.modified",
    "dateServerModified": "item.server_modified",
    "deleted": "item.deleted",
}


def expression(property_: str) -> str:
    """Return the SQL of a property: its column, or just the expression that its index is made of."""
    return COLUMNS.get(property_) or f"json_extract(properties, '$.{property_}')"


# -- reading ----------------------------------------------------------------------------------------------------------


def load(db: apsw.Connection, needed: Needs, schema: Schema) -> tuple[Rows, dict[str, int]]:
    """Return the rows that a batch speaks of, and the sequence number of each of its items."""
    rows = Rows(schema)
    sequence: dict[str, int] = {}
    for seq, *columns in _by_keys(db, f"SELECT seq, {ITEM} FROM item WHERE id", needed.items):
        row = item_from(tuple(columns))
        rows.items[row.id] = row
        sequence[row.id] = seq
    if needed.variables:
        sql = "SELECT value FROM variable WHERE state = ? AND namespace = ? AND name = ?"
        for key in needed.variables:
            text = db.execute(sql, key).get
            if text is not None:
                rows.variables[key] = from_json(cast("str", text))
    for question in _questions(db, "id", needed.questions):
        rows.questions[question.id] = question
    for state, key in needed.question_keys:
        for row in db.execute(f"SELECT {_QUESTION} FROM question WHERE state = ? AND key = ?", (state, key)):
            rows.questions[row[0]] = _question(row)
    # Who deletes a question names only the question; what counts is who holds its plugin state.
    states = needed.lease_states | {question.state for question in rows.questions.values()}
    for column, keys in (("state", states), ("run", needed.lease_runs)):
        for row in _by_keys(db, f"SELECT {_LEASE} FROM lease WHERE {column}", keys):
            rows.leases[row[0]] = _lease(row)
    return rows, sequence


def _by_keys(db: apsw.Connection, select: str, keys: Collection[str]) -> Iterable[tuple[Any, ...]]:
    if not keys:
        return ()
    if len(keys) == 1:
        return db.execute(f"{select} = ?", tuple(keys))
    return db.execute(f"{select} IN (SELECT value FROM json_each(?))", (to_text(list(keys)),))


def find_items(db: apsw.Connection, ids: Collection[str]) -> dict[str, ItemRow]:
    """Return the items with these ids."""
    return {row[0]: item_from(row) for row in _by_keys(db, f"SELECT {ITEM} FROM item WHERE id", ids)}


def list_edges(db: apsw.Connection, ids: Collection[str], direction: Direction) -> dict[str, list[EdgeRow]]:
    """Return the edges of each item in the order of creation; none from or to what is deleted."""
    near, far = ("source", "target") if direction is Direction.OUTGOING else ("target", "source")
    # CROSS JOIN keeps the order of the tables: the asked-for items are few, whatever the planner believes.
    rows = db.execute(
        f"""
        SELECT near.id, edge.name, {ITEM}
        FROM json_each(?) AS wanted
        CROSS JOIN item AS near ON near.id = wanted.value AND near.deleted = 0
        CROSS JOIN edge ON edge.{near} = near.seq
        CROSS JOIN item ON item.seq = edge.{far} AND item.deleted = 0
        ORDER BY edge.seq
        """,
        (to_text(list(dict.fromkeys(ids))),),
    )
    found: dict[str, list[EdgeRow]] = {}
    for id_, name, *columns in rows:
        edge = EdgeRow(name=name, item=item_from(tuple(columns)), direction=direction)
        found.setdefault(id_, []).append(edge)
    return found


def list_variables(db: apsw.Connection, state: str, namespace: str) -> dict[str, Value]:
    """Return one namespace, in the order of the names."""
    sql = "SELECT name, value FROM variable WHERE state = ? AND namespace = ? ORDER BY name"
    return {name: from_json(value) for name, value in db.execute(sql, (state, namespace))}


def find_lease(db: apsw.Connection, state: str) -> Lease | None:
    """Return the lease of a plugin state as last written."""
    row = db.execute(f"SELECT {_LEASE} FROM lease WHERE state = ?", (state,)).fetchone()
    return None if row is None else _lease(row)


def find_snapshot(db: apsw.Connection, state: str) -> str | None:
    """Return the snapshot that a plugin state points to."""
    return cast("str | None", db.execute("SELECT snapshot FROM snapshot_pointer WHERE state = ?", (state,)).get)


def list_questions(db: apsw.Connection, state: str) -> list[Question]:
    """Return the questions of a plugin state, in the order of asking."""
    return [_question(row) for row in db.execute(f"SELECT {_QUESTION} FROM question WHERE state = ? ORDER BY seq", (state,))]  # fmt: skip


def _questions(db: apsw.Connection, column: str, keys: Collection[str]) -> Generator[Question]:
    for row in _by_keys(db, f"SELECT {_QUESTION} FROM question WHERE {column}", keys):
        yield _question(row)


def _lease(row: tuple[Any, ...]) -> Lease:
    state, epoch, holder, run, expires, is_cancelled = row
    return Lease(state=state, epoch=epoch, holder=holder, run=run, expires_ms=expires, is_cancelled=is_cancelled != 0)


def _question(row: tuple[Any, ...]) -> Question:
    id_, state, run, key, form, view, deadline, default, asked, answer, answered = row
    return Question(
        id=id_,
        state=state,
        run=run,
        key=key,
        form=form,
        view=view,
        deadline_ms=deadline,
        default=default,
        asked_ms=asked,
        answer=answer,
        answered_ms=answered,
    )


# -- writing ----------------------------------------------------------------------------------------------------------


def write(db: apsw.Connection, changes: Changes, sequence: dict[str, int]) -> None:
    """Write what a batch changes.

    Args:
        db: A connection inside a transaction; it must be rolled back if this raises.
        changes: From `evaluate`.
        sequence: The sequence numbers that `load` found; those of created items are added.

    Raises:
        ConflictError: A created item's id is taken.
    """
    if changes.schema is not None:
        write_schema(db, changes.schema)
    if changes.created:
        _create_items(db, changes.created, sequence)
    if changes.updated:
        db.executemany(
            "UPDATE item SET version = ?, created = ?, modified = ?, server_modified = ?, deleted = ?, properties = ? "
            "WHERE seq = ?",
            ((*row[2:7], to_text(row.properties), sequence[row.id]) for row in changes.updated.values()),
        )
    for statement, shall_exist in (
        ("DELETE FROM edge WHERE source = ? AND name = ? AND target = ?", False),
        ("INSERT OR IGNORE INTO edge (source, name, target) VALUES (?, ?, ?)", True),
    ):
        edges = [
            (sequence[edge.source], edge.name, sequence[edge.target])
            for edge, exists in changes.edges.items()
            if exists is shall_exist and edge.source in sequence and edge.target in sequence
        ]
        if edges:
            db.executemany(statement, edges)
    for key, value in changes.variables.items():
        _write_variable(db, key, value)
    for lease in changes.leases.values():
        db.execute(
            f"INSERT OR REPLACE INTO lease ({_LEASE}) VALUES (?, ?, ?, ?, ?, ?)",
            (lease.state, lease.epoch, lease.holder, lease.run, lease.expires_ms, lease.is_cancelled),
        )
    for state, snapshot in changes.snapshots.items():
        if snapshot is None:
            db.execute("DELETE FROM snapshot_pointer WHERE state = ?", (state,))
        else:
            db.execute("INSERT OR REPLACE INTO snapshot_pointer VALUES (?, ?)", (state, snapshot))
    for id_, question in changes.questions.items():
        _write_question(db, id_, question)


def _create_items(db: apsw.Connection, created: list[ItemRow], sequence: dict[str, int]) -> None:
    first = cast("int", db.execute("SELECT coalesce(max(seq), 0) + 1 FROM item").get)
    encode = to_json
    try:
        db.executemany(
            "INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((seq, *row[:7], encode(row[7]).decode()) for seq, row in enumerate(created, first)),
        )
    except apsw.ConstraintError as exc:
        taken = db.execute(
            "SELECT id FROM item WHERE seq < ? AND id IN (SELECT value FROM json_each(?)) LIMIT 1",
            (first, to_text([row.id for row in created])),
        ).get
        raise exists_already(str(taken)) from exc
    for seq, row in enumerate(created, first):
        sequence[row.id] = seq


def _write_variable(db: apsw.Connection, key: VariableKey, value: Value | None) -> None:
    if value is None:
        db.execute("DELETE FROM variable WHERE state = ? AND namespace = ? AND name = ?", key)
    else:
        db.execute("INSERT OR REPLACE INTO variable VALUES (?, ?, ?, ?)", (*key, to_text(value)))


def _write_question(db: apsw.Connection, id_: str, question: Question | None) -> None:
    if question is None:
        db.execute("DELETE FROM question WHERE id = ?", (id_,))
        return
    db.execute(
        f"INSERT INTO question ({_QUESTION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET answer = excluded.answer, answered = excluded.answered",
        (
            question.id,
            question.state,
            question.run,
            question.key,
            question.form,
            question.view,
            question.deadline_ms,
            question.default,
            question.asked_ms,
            question.answer,
            question.answered_ms,
        ),
    )
