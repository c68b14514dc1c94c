"""What stands in for the outside world in a test: a clock that only the test moves, and a Pod without a disk.

`MemoryStore` means by every batch and every search what a real store means; the contract suite holds it to that.
`JsonStore` puts the wire between a caller and any store, without a server. Neither survives its process.
"""

# ruff: noqa: D102 -- what a method of a store promises is said at `Store`

from __future__ import annotations

import json
import operator
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from holdfast.errors import HoldfastError, UnavailableError
from holdfast.items import BUILT_IN, Item, Schema, definition_of
from holdfast.runs import Clock, Lease, SystemClock
from holdfast.store import (
    KEY_KEPT_MS,
    MAX_LOG_BYTES,
    Batch,
    Changes,
    Comparison,
    Condition,
    Direction,
    EdgeKey,
    EdgeRow,
    Found,
    ItemRow,
    LogEnd,
    LogKey,
    LogPart,
    Query,
    Question,
    Result,
    Rows,
    Store,
    VariableKey,
    evaluate,
    exists_already,
    first_parts,
    guards,
    needs,
    refuse_secrets,
)
from holdfast.store.wire import METHODS, Method
from holdfast.values import Value


class Dog(Item):
    """An item type to try things with."""

    name: str | None = None
    age: int | None = None


class FakeClock:
    """A clock that stands still until it is told to advance.

    >>> clock = FakeClock(5_000)
    >>> clock.advance(250)
    >>> clock.now_ms()
    5250
    """

    def __init__(self, now_ms: int = 1_000_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Return milliseconds since 1970."""
        return self._now_ms

    def advance(self, ms: int) -> None:
        """Let ``ms`` milliseconds pass."""
        self._now_ms += ms


_COMPARE: Final[Mapping[Comparison, Callable[[Any, Any], bool]]] = MappingProxyType(
    {Comparison.EQUAL: operator.eq, Comparison.AT_LEAST: operator.ge, Comparison.LESS: operator.lt}
)


class MemoryStore(Store):
    """A whole Pod in dictionaries: a `Store` for tests, gone with its process.

    Args:
        clock: What its dates and leases are measured on; None: the machine's clock.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._is_open = True
        self._schema = Schema(definition_of(cls) for cls in BUILT_IN)
        self._items: dict[str, ItemRow] = {}
        self._sequence: dict[str, int] = {}
        self._edges: dict[EdgeKey, None] = {}
        self._variables: dict[VariableKey, Value] = {}
        self._leases: dict[str, Lease] = {}
        self._snapshots: dict[str, str] = {}
        self._questions: dict[str, Question] = {}
        self._logs: dict[str, list[LogPart]] = {}
        self._log_ends: dict[LogKey, LogEnd] = {}
        self._log_parts = 0
        self._applied: dict[str, tuple[bytes, tuple[Result, ...], int]] = {}

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        with self._opened():
            now_ms = self.now_ms()
            self._applied = {key: each for key, each in self._applied.items() if now_ms - each[2] < KEY_KEPT_MS}
            if batch.key in self._applied:
                applied, results, _ = self._applied[batch.key]
                batch.check_repeats(applied)
                return results
            results, changes = evaluate(batch, self._rows(batch), now_ms=now_ms)
            for row in changes.created:
                if row.id in self._items:
                    raise exists_already(row.id)
            if batch.key is not None:
                self._applied[batch.key] = (batch.digest(), results, now_ms)
            self._write(changes)
            return results

    def _rows(self, batch: Batch) -> Rows:
        needed = needs(batch)
        questions = {
            question.id: question
            for question in self._questions.values()
            if question.id in needed.questions or (question.state, question.key) in needed.question_keys
        }
        rows = Rows(
            schema=self._schema,
            items={id_: self._items[id_] for id_ in needed.items if id_ in self._items},
            variables={key: self._variables[key] for key in needed.variables if key in self._variables},
            questions=questions,
            log_ends={log: self._log_ends[log] for log in needed.log_ends if log in self._log_ends},
        )
        states, runs = guards(rows)
        for state, lease in self._leases.items():
            if state in needed.lease_states | states or lease.run in runs:
                rows.leases[state] = lease
        return rows

    def _write(self, changes: Changes) -> None:
        if changes.schema is not None:
            self._schema = changes.schema
        for row in changes.created:
            self._sequence[row.id] = len(self._sequence) + 1
            self._items[row.id] = row
        self._items.update(changes.updated)
        for edge, shall_exist in changes.edges.items():
            if shall_exist:
                self._edges.setdefault(edge)
            else:
                self._edges.pop(edge, None)
        self._leases.update(changes.leases)
        _put(self._variables, changes.variables)
        _put(self._snapshots, changes.snapshots)
        _put(self._questions, changes.questions)
        before_ms = changes.logs_before_ms
        self._log_ends = {log: end for log, end in self._log_ends.items() if end.at_ms >= before_ms}
        self._log_ends |= changes.log_ends
        for run, log in self._logs.items():
            self._logs[run] = [part for part in log if part.at_ms >= before_ms]
        for part in changes.log_parts:
            self._log_parts += 1
            log = self._logs.setdefault(part.run, [])
            log.append(replace(part, number=self._log_parts))
            while sum(each.size_bytes for each in log) > MAX_LOG_BYTES:
                del log[0]

    def schema(self) -> Schema:
        with self._opened():
            return self._schema

    def find_items(self, ids: Sequence[str]) -> Mapping[str, ItemRow]:
        with self._opened():
            return {id_: _copy(self._items[id_]) for id_ in ids if id_ in self._items}

    def search(self, query: Query) -> list[Found]:
        with self._opened():
            refuse_secrets(query, self._schema)
            ids = self._items.keys() if query.ids is None else self._items.keys() & query.ids
            matching = [row for row in map(self._items.__getitem__, ids) if _matches(row, query)]
            placed = sorted(((self._position(row), row) for row in matching), reverse=query.is_descending)
            if query.after is not None:
                is_later = operator.lt if query.is_descending else operator.gt
                placed = [(position, row) for position, row in placed if is_later(position, query.after)]
            end = None if query.limit is None else query.offset + query.limit
            placed = placed[query.offset : end]
            found_ids = {row.id for _, row in placed}
            outgoing = self._edges_of(found_ids, Direction.OUTGOING) if query.outgoing else {}
            incoming = self._edges_of(found_ids, Direction.INCOMING) if query.incoming else {}
            edges = {id_: (*outgoing.get(id_, ()), *incoming.get(id_, ())) for id_ in found_ids}
            return [Found(item=_copy(row), position=position, edges=edges[row.id]) for position, row in placed]

    def _position(self, row: ItemRow) -> tuple[int, int]:
        return (row.server_modified_ms, self._sequence[row.id])

    def list_edges(
        self, ids: Sequence[str], direction: Direction, *, with_deleted: bool = False
    ) -> Mapping[str, list[EdgeRow]]:
        with self._opened():
            return self._edges_of(set(ids), direction, with_deleted=with_deleted)

    def _edges_of(self, ids: set[str], direction: Direction, *, with_deleted: bool = False) -> dict[str, list[EdgeRow]]:
        found: dict[str, list[EdgeRow]] = {}
        for edge in self._edges:
            asked, other = edge.source, edge.target
            if direction is Direction.INCOMING:
                asked, other = other, asked
            is_shown = with_deleted or not (self._items[asked].is_deleted or self._items[other].is_deleted)
            if asked in ids and is_shown:
                row = EdgeRow(name=edge.name, item=_copy(self._items[other]), direction=direction)
                found.setdefault(asked, []).append(row)
        return found

    def list_variables(self, state: str, namespace: str = "") -> Mapping[str, Value]:
        with self._opened():
            keys = sorted(key for key in self._variables if key[:2] == (state, namespace))
            return {key.name: self._variables[key] for key in keys}

    def find_lease(self, state: str) -> Lease | None:
        with self._opened():
            return self._leases.get(state)

    def find_snapshot(self, state: str) -> str | None:
        with self._opened():
            return self._snapshots.get(state)

    def list_questions(self, state: str) -> list[Question]:
        with self._opened():
            return [question for question in self._questions.values() if question.state == state]

    def list_log(self, run: str, after: int = 0) -> list[LogPart]:
        with self._opened():
            return first_parts(part for part in self._logs.get(run, ()) if part.number > after)

    def find_log_end(self, run: str, source: str) -> str:
        with self._opened():
            return self._log_ends[LogKey(run, source)].end if (run, source) in self._log_ends else ""

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def close(self) -> None:
        with self._lock:
            self._is_open = False

    @contextmanager
    def _opened(self) -> Generator[None]:
        with self._lock:
            if not self._is_open:
                raise UnavailableError("this store is closed: open another one")
            yield


def _put(rows: dict[Any, Any], changed: Mapping[Any, Any]) -> None:
    for key, value in changed.items():
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value


def _copy(row: ItemRow) -> ItemRow:
    return row._replace(properties=dict(row.properties))  # what a caller does to it is not done to the Pod


def _matches(row: ItemRow, query: Query) -> bool:
    return (
        (query.type is None or row.type == query.type)
        and (query.is_deleted is None or row.is_deleted is query.is_deleted)
        and all(_holds(row, condition) for condition in query.conditions)
    )


def _holds(row: ItemRow, condition: Condition) -> bool:
    system = {
        "id": row.id,
        "dateCreated": row.created_ms,
        "dateModified": row.modified_ms,
        "dateServerModified": row.server_modified_ms,
        "deleted": row.is_deleted,
    }
    name, wanted = condition.property, condition.value
    there = system[name] if name in system else row.properties.get(name)
    if there is None or wanted is None:
        return there is wanted
    return _sort_of(there) is _sort_of(wanted) and _COMPARE[condition.comparison](there, wanted)


def _sort_of(value: Value) -> type:
    return float if type(value) is int else type(value)  # 1 and 1.0 compare; 1 and True, and 1 and "1", do not


class JsonStore(Store):
    """Any store, seen through JSON: what is asked of it and what it answers travels as it would over a network.

    What a JSON form loses or changes is thus found by the contract suite, before there is a server.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        for method in METHODS.values():
            setattr(self, method.name, _carried(method, getattr(store, method.name)))

    def close(self) -> None:
        self._store.close()


def _carried(method: Method, ask: Callable[..., Any]) -> Callable[..., Any]:
    def carried(*args: Any, **named: Any) -> Any:
        asked = method.load_arguments(method.dump_arguments(*args, **named))
        try:
            answer = ask(**asked)
        except HoldfastError as exc:
            json.dumps(exc.facts, allow_nan=False)  # a fact that cannot travel is a mistake in who raised it
            raise
        return method.load_answer(method.dump_answer(answer))

    return carried
