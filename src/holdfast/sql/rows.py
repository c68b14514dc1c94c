"""The rows of a Pod in SQL: what a batch needs is read, what it changes is written, inside the caller's transaction."""

# apsw's stubs speak of a Buffer that Python 3.11 does not know.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import apsw
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from holdfast.items import BUILT_IN, Schema, TypeDefinition, definition_of
from holdfast.runs import Lease
from holdfast.store import (
    KEY_KEPT_MS,
    MAX_LOG_BYTES,
    SWEPT_KEYS,
    Batch,
    Changes,
    Direction,
    EdgeKey,
    EdgeRow,
    ItemRow,
    LogEnd,
    LogPart,
    Needs,
    Question,
    Result,
    Rows,
    VariableKey,
    exists_already,
    first_parts,
    guards,
)
from holdfast.store.wire import dump_results, load_results
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


@dataclass(frozen=True, slots=True)
class Known:
    """The schema as of one version of it, and which properties have an index: their numbers, by type and name."""

    version: int
    schema: Schema
    fields: Mapping[str, Mapping[str, int]]


def schema_version(db: apsw.Connection) -> int:
    """Return a number that grows with each change of the schema."""
    return cast("int", db.execute("SELECT value FROM meta WHERE name = 'schema_version'").get)


def read_known(db: apsw.Connection) -> Known:
    """Return the built-in types, those declared in this Pod, and what is indexed."""
    stored = [_definition.validate_json(text) for (text,) in db.execute("SELECT definition FROM type_definition")]
    fields: dict[str, dict[str, int]] = {}
    for number, type_, property_ in db.execute("SELECT number, type, property FROM field ORDER BY number"):
        fields.setdefault(type_, {})[property_] = number
    return Known(schema_version(db), BUILT_IN_SCHEMA.joined(stored), fields)


def write_schema(db: apsw.Connection, schema: Schema) -> None:
    """Store what ``schema`` has beyond the built-in types, and index what it says is indexed."""
    stored = [
        (name, _definition.dump_json(definition).decode())
        for name, definition in schema.items()
        if definition is not BUILT_IN_SCHEMA.get(name)
    ]
    db.executemany("INSERT OR REPLACE INTO type_definition VALUES (?, ?)", stored)
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'schema_version'")
    index_properties(db, schema)


def index_properties(db: apsw.Connection, schema: Schema) -> None:
    """Begin to index each property that ``schema`` wants indexed and that is not yet, with the items that are there."""
    there = {(type_, name) for type_, name in db.execute("SELECT type, property FROM field")}
    for type_, definition in schema.items():
        for name, found in definition.properties.items():
            if found.is_indexed and (type_, name) not in there:
                db.execute("INSERT INTO field (type, property) VALUES (?, ?)", (type_, name))
                db.execute(
                    f"INSERT INTO indexed SELECT ?, {expression(name)} AS value, server_modified, seq FROM item "
                    "WHERE type = ? AND deleted = 0 AND value IS NOT NULL ORDER BY value, server_modified, seq",
                    (db.last_insert_rowid(), type_),
                )


COLUMNS: Final[Mapping[str, str]] = {
    "id": "item.id",
    "dateCreated": "item.created",
    "dateModified": "item.modified",
    "dateServerModified": "item.server_modified",
    "deleted": "item.deleted",
}


def expression(property_: str) -> str:
    """Return the SQL of a property; its name was checked to be an identifier, there is nothing to escape."""
    return COLUMNS.get(property_) or f"json_extract(item.properties, '$.{property_}')"


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a batch speaks of, as it was before it."""

    rows: Rows
    known: Known
    items: Mapping[str, ItemRow]
    questions: Mapping[str, Question]
    sequence: dict[str, int]
    """The sequence number of each item, by id."""


def load(db: apsw.Connection, needed: Needs, known: Known) -> Loaded:
    """Return the rows that a batch speaks of."""
    rows = Rows(known.schema)
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
    for log in needed.log_ends:
        for end in db.execute("SELECT start, until, at FROM log_end WHERE run = ? AND source = ?", log):
            rows.log_ends[log] = LogEnd(*end)
    states, runs = guards(rows)
    for column, keys in (("state", needed.lease_states | states), ("run", runs)):
        for row in _by_keys(db, f"SELECT {_LEASE} FROM lease WHERE {column}", keys):
            rows.leases[row[0]] = _lease(row)
    return Loaded(rows, known, dict(rows.items), dict(rows.questions), sequence)


def _by_keys(db: apsw.Connection, select: str, keys: Collection[str]) -> Iterable[tuple[Any, ...]]:
    if not keys:
        return ()
    if len(keys) == 1:
        return db.execute(f"{select} = ?", tuple(keys))
    return db.execute(f"{select} IN (SELECT value FROM json_each(?))", (to_text(list(keys)),))


def find_items(db: apsw.Connection, ids: Collection[str]) -> dict[str, ItemRow]:
    """Return the items with these ids."""
    return {row[0]: item_from(row) for row in _by_keys(db, f"SELECT {ITEM} FROM item WHERE id", ids)}


def list_edges(
    db: apsw.Connection, ids: Collection[str], direction: Direction, *, with_deleted: bool = False
) -> dict[str, list[EdgeRow]]:
    """Return the edges of each item in the order of creation; none from or to what is deleted unless wanted."""
    near, far = ("source", "target") if direction is Direction.OUTGOING else ("target", "source")
    not_deleted = "" if with_deleted else "AND near.deleted = 0 AND item.deleted = 0"
    # CROSS JOIN keeps the order of the tables: the asked-for items are few, whatever the planner believes.
    rows = db.execute(
        f"""
        SELECT near.id, edge.name, {ITEM}
        FROM json_each(?) AS wanted
        CROSS JOIN item AS near ON near.id = wanted.value
        CROSS JOIN edge ON edge.{near} = near.seq
        CROSS JOIN item ON item.seq = edge.{far} {not_deleted}
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
    sql = f"SELECT {_QUESTION} FROM question WHERE state = ? ORDER BY seq"
    return [_question(row) for row in db.execute(sql, (state,))]


def list_log(db: apsw.Connection, run: str, after: int) -> list[LogPart]:
    """Return the parts of a run's log after a number, as many as are read at once."""
    sql = "SELECT number, source, until, at, text FROM log_part WHERE run = ? AND number > ? ORDER BY number"
    return first_parts(
        LogPart(number=number, run=run, source=source, end=end, at_ms=at, text=text)
        for number, source, end, at, text in db.execute(sql, (run, after))
    )


def find_log_end(db: apsw.Connection, run: str, source: str) -> str:
    """Return where the last part of a source ends."""
    return cast("str", db.execute("SELECT until FROM log_end WHERE run = ? AND source = ?", (run, source)).get or "")


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


def find_answer(db: apsw.Connection, batch: Batch, now_ms: int) -> tuple[Result, ...] | None:
    """Return what a batch was answered if it was applied under its key within `KEY_KEPT_MS`.

    Raises:
        ConflictError: That was another batch.
    """
    sql = "SELECT digest, results FROM applied WHERE key = ? AND at > ?"
    for digest, results in db.execute(sql, (batch.key, now_ms - KEY_KEPT_MS)):
        batch.check_repeats(digest)
        return load_results(results)
    return None


# -- writing ----------------------------------------------------------------------------------------------------------


def write_answer(db: apsw.Connection, batch: Batch, results: tuple[Result, ...], now_ms: int) -> None:
    """Keep what a batch was answered under its key, and forget some that were kept long enough."""
    sql = "DELETE FROM applied WHERE key IN (SELECT key FROM applied WHERE at <= ? ORDER BY at LIMIT ?)"
    db.execute(sql, (now_ms - KEY_KEPT_MS, SWEPT_KEYS))
    values = (batch.key, batch.digest(), dump_results(results).decode(), now_ms)
    db.execute("INSERT OR REPLACE INTO applied VALUES (?, ?, ?, ?)", values)


def write(db: apsw.Connection, changes: Changes, loaded: Loaded) -> Known:
    """Write what a batch changes, and return what is known of the schema after it.

    Args:
        db: A connection inside a transaction; it must be rolled back if this raises.
        changes: From `evaluate`.
        loaded: What `load` found; the sequence numbers of created items are added.

    Raises:
        ConflictError: A created item's id is taken.
    """
    known = loaded.known
    if changes.schema is not None:
        write_schema(db, changes.schema)
        known = read_known(db)
    fields = known.fields
    if changes.created:
        _create_items(db, changes.created, loaded.sequence, fields)
    if changes.updated:
        _update_items(db, changes.updated, loaded, fields)
    if changes.edges:
        _write_edges(db, changes.edges, loaded.sequence)
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
    if changes.questions:
        _write_questions(db, changes.questions, loaded.questions)
    if changes.logs_before_ms:
        for table in ("log_part", "log_end"):
            db.execute(f"DELETE FROM {table} WHERE at < ?", (changes.logs_before_ms,))
    for part in changes.log_parts:
        _append_log(db, part)
    for log, end in changes.log_ends.items():
        db.execute("INSERT OR REPLACE INTO log_end VALUES (?, ?, ?, ?, ?)", (*log, *end))
    return known


_Fields = Mapping[str, Mapping[str, int]]
_Entry = tuple[int, Value, int, int]


def _entries(row: ItemRow, seq: int, fields: _Fields) -> list[_Entry]:
    """Return the rows of ``indexed`` that an item has."""
    if row.is_deleted:
        return []
    properties = row.properties
    return [
        (number, properties[name], row.server_modified_ms, seq)
        for name, number in fields.get(row.type, {}).items()
        if name in properties
    ]


def _write_entries(db: apsw.Connection, entries: Iterable[_Entry]) -> None:
    db.executemany("INSERT INTO indexed VALUES (?, ?, ?, ?)", entries)


def _create_items(db: apsw.Connection, created: list[ItemRow], sequence: dict[str, int], fields: _Fields) -> None:
    first = cast("int", db.execute("SELECT coalesce(max(seq), 0) + 1 FROM item").get)
    try:
        db.executemany(
            "INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((seq, *row[:7], to_json(row[7]).decode()) for seq, row in enumerate(created, first)),
        )
    except apsw.ConstraintError as exc:
        taken = db.execute(
            "SELECT id FROM item WHERE seq < ? AND id IN (SELECT value FROM json_each(?)) LIMIT 1",
            (first, to_text([row.id for row in created])),
        ).get
        raise exists_already(str(taken)) from exc
    sequence.update((row.id, seq) for seq, row in enumerate(created, first))
    _write_entries(
        db,
        (entry for seq, row in enumerate(created, first) if row.type in fields for entry in _entries(row, seq, fields)),
    )


def _update_items(db: apsw.Connection, updated: Mapping[str, ItemRow], loaded: Loaded, fields: _Fields) -> None:
    sequence = loaded.sequence
    db.executemany(
        "UPDATE item SET version = ?, created = ?, modified = ?, server_modified = ?, deleted = ?, properties = ? "
        "WHERE seq = ?",
        ((*row[2:7], to_text(row.properties), sequence[id_]) for id_, row in updated.items()),
    )
    db.executemany(
        "DELETE FROM indexed WHERE field = ? AND value = ? AND server_modified = ? AND item = ?",
        (entry for id_ in updated for entry in _entries(loaded.items[id_], sequence[id_], fields)),
    )
    _write_entries(db, (entry for id_, row in updated.items() for entry in _entries(row, sequence[id_], fields)))


def _write_edges(db: apsw.Connection, edges: Mapping[EdgeKey, bool], sequence: Mapping[str, int]) -> None:
    def rows(*, shall_exist: bool) -> list[tuple[int, str, int]]:
        return [
            (sequence[edge.source], edge.name, sequence[edge.target])
            for edge, exists in edges.items()
            if exists is shall_exist and edge.source in sequence and edge.target in sequence
        ]

    if gone := rows(shall_exist=False):
        db.executemany("DELETE FROM edge WHERE source = ? AND name = ? AND target = ?", gone)
    if new := rows(shall_exist=True):
        last = cast("int", db.execute("SELECT value FROM meta WHERE name = 'edges'").get)
        db.executemany(
            "INSERT OR IGNORE INTO edge VALUES (?, ?, ?, ?)", ((*row, seq) for seq, row in enumerate(new, last + 1))
        )
        db.execute("UPDATE meta SET value = ? WHERE name = 'edges'", (last + len(new),))


def _write_variable(db: apsw.Connection, key: VariableKey, value: Value | None) -> None:
    if value is None:
        db.execute("DELETE FROM variable WHERE state = ? AND namespace = ? AND name = ?", key)
    else:
        db.execute("INSERT OR REPLACE INTO variable VALUES (?, ?, ?, ?)", (*key, to_text(value)))


def _append_log(db: apsw.Connection, part: LogPart) -> None:
    """Add a part, and let those go that are too old then; what stays of the run's log is not looked at."""
    last = db.execute("SELECT total FROM log_part WHERE run = ? ORDER BY number DESC LIMIT 1", (part.run,)).get
    total = (cast("int | None", last) or 0) + part.size_bytes
    db.execute(
        "INSERT INTO log_part (run, source, until, at, size, total, text) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (part.run, part.source, part.end, part.at_ms, part.size_bytes, total, part.text),
    )
    db.execute(
        "DELETE FROM log_part WHERE run = ?1 AND number < "
        "(SELECT number FROM log_part WHERE run = ?1 AND total - size >= ?2 ORDER BY number LIMIT 1)",
        (part.run, total - MAX_LOG_BYTES),
    )


def _write_questions(
    db: apsw.Connection, questions: Mapping[str, Question | None], before: Mapping[str, Question]
) -> None:
    """Answer those that were there, and put the others in the place of what had their id."""
    answered = {
        id_: question
        for id_, question in questions.items()
        if question is not None
        and id_ in before
        and question == replace(before[id_], answer=question.answer, answered_ms=question.answered_ms)
    }
    for id_, question in answered.items():
        db.execute(
            "UPDATE question SET answer = ?, answered = ? WHERE id = ?", (question.answer, question.answered_ms, id_)
        )
    rest = {id_: question for id_, question in questions.items() if id_ not in answered}
    db.executemany("DELETE FROM question WHERE id = ?", ((id_,) for id_ in rest))  # first: a key may have moved
    for question in filter(None, rest.values()):
        db.execute(
            f"INSERT INTO question ({_QUESTION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
