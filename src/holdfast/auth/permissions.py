"""What a run with a token may do: a store around a store, which answers nothing and writes nothing else.

Hides how rights are looked up, and how little is told of what they do not cover. What no rule here allows is denied: an
operation that is added to the store later, until it has a rule. What no run may do to another, however it reached the
Pod, the store itself refuses. How much a run writes or reads is not limited here.

The hostile argument. *Between check and write*: the type of an item never changes and no id is used twice, so what was
found stays true; what was not there may come, and so an operation on it is refused, or replaced by none. That a type is
new is a precondition of the batch. *The plugin state is lost meanwhile*: a write carries the token's fence; a read is
checked when its answer is there, and as no epoch comes back, the token was good all the time before. *Rights are not
written*: neither those of a run nor the types of a plugin state, and no run or plugin state is made with a token.
*Nothing is learnt from errors* but whether an id or the name of a type is taken, which creating one says anyway.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from holdfast.auth.tokens import Token
from holdfast.errors import ConflictError, DeniedError, FencedError, HoldfastError, NotFoundError
from holdfast.items import BUILT_IN, Schema, TypeDefinition, own_types_of
from holdfast.runs import Lease, Status, status_of
from holdfast.store import (
    AnswerQuestion,
    AppendLog,
    AskQuestion,
    Batch,
    CancelLease,
    ClaimLease,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    DeleteEdge,
    DeleteItem,
    DeleteQuestion,
    DeleteVariable,
    Direction,
    EdgeRow,
    EndLease,
    ExpireLogs,
    Found,
    IncrementVariable,
    ItemRow,
    LogPart,
    MoveRun,
    Operation,
    PointSnapshot,
    Query,
    Question,
    ReleaseLease,
    RenewLease,
    Result,
    SetProgress,
    SetVariable,
    Store,
    UpdateItem,
    Written,
    needs,
)
from holdfast.store.operations import OPERATIONS
from holdfast.values import Value, shown, type_name

_log: Final = logging.getLogger(__name__)

_GUARDED: Final = frozenset({"PluginRun", "PersistentState", "Schedule"})
"""Never written by type: who could write all of them could give any plugin any right."""

_OWN_EDGES: Final = ("account", "view")
"""Of a run and of its plugin state: what these lead to is theirs to read."""

_OF_RUN: Final = frozenset({"status", "error", "progress", "authUrl", "retryAt"})
_OF_STATE: Final = frozenset({"lastState"})
"""What a run writes of its own two items; the rest says what is run, how, and with which rights: its owner's matter."""

_BUILT_IN: Final = frozenset(cls.__name__ for cls in BUILT_IN)
_NARROWED: Final = _GUARDED | {"Account", "CVUStoredDefinition"}
"""Types of which a search without the right finds those that are the run's own."""

_ENDED: Final = frozenset({Status.DONE, Status.ERROR, Status.ABORTED})
_NOTHING: Final = DeclareTypes(())
_TRIES: Final = 5
"""How often a batch is looked at anew when somebody else has declared types since it was looked which there are."""


class _Refusal(Exception):  # noqa: N818 -- nobody but this module ever sees one
    """What the rules refuse, before it is logged and told: the log may name a type that the plugin must not know."""

    def __init__(self, what: str, why: str, type_: str | None = None) -> None:
        super().__init__(what, why)
        self.what, self.why, self.type = what, why, type_
        self.facts: dict[str, object] = {}


class Permitted(Store):
    """A store for one token: what the token gives a right to, and DeniedError for everything else.

    Each denial is logged once, as ``access.denied`` with owner, state, run, operation and type. When the run has given
    its plugin state back, or lost it, everything is a FencedError. When it has ended and not given it back yet, as for
    the last snapshot, its own things are left to it, and nothing else.

    Args:
        store: Where everything is; closed with this.
        token: Whose rights.
        log: Where to say what was denied.
    """

    def __init__(self, store: Store, token: Token, *, log: logging.Logger = _log) -> None:
        self._store = store
        self._token = token
        self._log = log

    # -- writes -------------------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """What each operation allows, with the token's fence; all of it, or nothing."""
        with self._telling("apply", batch.operations):
            asked = self._asked(batch)
            for tries_left in reversed(range(_TRIES)):
                try:
                    operations = _Writing(self._store, self._token, asked).operations()
                except (HoldfastError, _Refusal):
                    if (answer := self._find_answer(asked)) is not None:
                        return answer
                    self._check_lease()  # who has lost it learns nothing, not even what there is
                    raise
                try:
                    results = self._store.apply(
                        asked if operations == asked.operations else asked.rewritten(operations)
                    )
                except ConflictError as exc:
                    if not tries_left or not _is_race(exc, asked.operations):
                        raise
                else:
                    return tuple(map(self._answer, asked.operations, results))
        raise AssertionError  # the last try returns or raises

    def _asked(self, batch: Batch) -> Batch:
        token, key = self._token, batch.key
        if batch.fence not in (None, token.fence):
            raise _Refusal("write", "the batch has another fence than its token")
        if key is not None:  # else a plugin could take a key that its owner, or another plugin, is about to use
            key = hashlib.sha256(json.dumps([token.state, token.epoch, key]).encode()).hexdigest()
        return batch if (batch.fence, batch.key) == (token.fence, key) else replace(batch, fence=token.fence, key=key)

    def _find_answer(self, asked: Batch) -> tuple[Result, ...] | None:
        """Return what a batch that may not be was answered when it was applied: its run may have ended with it."""
        if asked.key is None:
            return None
        # The store looks for the key first; if it has none, this is what it refuses a run whatever there is.
        with suppress(DeniedError, ConflictError):
            results = self._store.apply(asked.rewritten((AnswerQuestion(asked.key, ""),)))
            return tuple(map(self._answer, asked.operations, results))
        return None

    def _answer(self, operation: Operation, result: Result) -> Result:
        if isinstance(operation, DeleteItem) and result is None:  # another stood in its place: there was no such item
            return Written(operation.id, 0, self._store.now_ms())
        return result

    def check_write(self, type_: str) -> None:
        """Accept that items of a type are written: for what belongs to items and is written past the store.

        Raises:
            DeniedError, FencedError: As creating such an item would be refused.
        """
        with self._reading("write"):
            scope = _Scope(self._store, self._token)
            if type_ not in scope.writes:
                raise _Refusal(f"write {type_!r}", scope.why("its owner has not put that into its 'writes'"), type_)

    # -- reads --------------------------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        """The built-in types, its own, and those in `reads` and `writes`."""
        with self._reading("schema"):
            return _Scope(self._store, self._token).schema

    def find_items(self, ids: Sequence[str]) -> Mapping[str, ItemRow]:
        """Items of its own types and of those in `reads`; its own run, plugin state, accounts and views."""
        with self._reading("find_items"):
            scope = self._readable(ids)
            return {id_: scope.shown(scope.rows[id_]) for id_ in ids if id_ in scope.rows}

    def search(self, query: Query) -> list[Found]:
        """As `find_items`, by a type or by ids; of a built-in type that it may not read, those that are its own."""
        with self._reading("search"):
            return self._search(query)

    def _search(self, query: Query) -> list[Found]:
        # By ids: before anything is compared, or what is denied would tell what the items hold.
        scope = self._readable(query.ids or () if query.type is None else ())
        if query.type is None and query.ids is None:
            raise _Refusal("search for items of any type", "its search needs a type, or ids")
        if query.type is not None and query.type not in scope.reads:
            if query.type not in _NARROWED:
                why = scope.why("the type is neither its own nor in its 'reads'")
                raise _Refusal(f"search for items of type {shown(query.type)}", why, query.type)
            own = (self._token.run, self._token.state, *scope.accounts, *scope.views)
            query = replace(query, ids=tuple(id_ for id_ in own if query.ids is None or id_ in query.ids))
        return [
            replace(each, item=scope.shown(each.item), edges=tuple(scope.edges(each.edges)))
            for each in self._store.search(query)
            if scope.can_read(each.item)  # one with such an id may have come meanwhile
        ]

    def list_edges(
        self, ids: Sequence[str], direction: Direction, *, with_deleted: bool = False
    ) -> Mapping[str, list[EdgeRow]]:
        """As `find_items`, at both ends; an edge whose other end it may not read is left out."""
        with self._reading("list_edges"):
            scope = self._readable(ids)
            there = [id_ for id_ in ids if id_ in scope.rows]
            found = self._store.list_edges(there, direction, with_deleted=with_deleted)
            readable = {id_: list(scope.edges(edges)) for id_, edges in found.items()}
            return {id_: edges for id_, edges in readable.items() if edges}

    def list_variables(self, state: str, namespace: str = "") -> Mapping[str, Value]:
        """Those of its own plugin state, in every namespace."""
        with self._reading("list_variables", state):
            return self._store.list_variables(state, namespace)

    def find_lease(self, state: str) -> Lease | None:
        """Its own."""
        with self._reading("find_lease", state):
            return self._store.find_lease(state)

    def find_snapshot(self, state: str) -> str | None:
        """That of its own plugin state."""
        with self._reading("find_snapshot", state):
            return self._store.find_snapshot(state)

    def list_questions(self, state: str) -> list[Question]:
        """Those of its own plugin state, with their answers."""
        with self._reading("list_questions", state):
            return self._store.list_questions(state)

    def list_log(self, run: str, after: int = 0) -> list[LogPart]:  # noqa: ARG002 -- whatever is asked
        """Never."""
        with self._reading("list_log"):
            raise _Refusal("read logs", "that is for their owner")

    def find_log_end(self, run: str, source: str) -> str:  # noqa: ARG002 -- as above
        """Never."""
        with self._reading("find_log_end"):
            raise _Refusal("read logs", "that is for their owner")

    def now_ms(self) -> int:
        """Always."""
        return self._store.now_ms()

    def close(self) -> None:
        """Always."""
        self._store.close()

    # -- looking, and telling -----------------------------------------------------------------------------------------

    def _readable(self, ids: Sequence[str]) -> _Scope:
        """Return what the token reaches, if each of these items that exists is within."""
        scope = _Scope(self._store, self._token, ids)
        for id_ in ids:
            row = scope.rows.get(id_)
            if row is not None and not scope.can_read(row):
                why = scope.why("it is not its own, and of no type in its 'reads'")
                raise _Refusal(f"read item {shown(id_)}", why, row.type)
        return scope

    @contextmanager
    def _reading(self, method: str, state: str | None = None) -> Generator[None]:
        with self._telling(method):
            try:
                if state not in (None, self._token.state):
                    raise _Refusal(f"read from plugin state {shown(state)}", f"it holds {self._token.state!r}")
                yield
            finally:
                self._check_lease()

    def _check_lease(self) -> None:
        state = self._token.state
        (self._store.find_lease(state) or Lease(state=state)).check(self._token.fence)

    @contextmanager
    def _telling(self, method: str, operations: Sequence[Operation] = ()) -> Generator[None]:
        """Log what is denied, once, and raise it as what it is outside."""
        try:
            yield
        except (_Refusal, DeniedError, FencedError) as exc:
            at, token = exc.facts.get("operation"), self._token
            name = _name(operations[at]) if isinstance(at, int) and at < len(operations) else method
            type_ = exc.type if isinstance(exc, _Refusal) else None
            if type_ is not None and type_name.fullmatch(type_) is None:
                type_ = shown(type_)  # it is what the plugin says
            facts = {"owner": token.owner, "state": token.state, "run": token.run, "operation": name, "type": type_}
            self._log.warning("access.denied", extra=facts)
            if isinstance(exc, _Refusal):
                message = f"run {token.run!r} may not {exc.what}: {exc.why}"
                raise DeniedError(message, run=token.run, **exc.facts) from None
            raise


def _is_race(exc: ConflictError, operations: Sequence[Operation]) -> bool:
    """Say whether it was types that somebody else declared meanwhile, another thread of the run perhaps."""
    at = exc.facts.get("operation")
    return isinstance(at, int) and (at >= len(operations) or isinstance(operations[at], DeclareTypes))


def _name(operation: Operation) -> str:
    return _NAMES.get(type(operation), type(operation).__name__)


_NAMES: Final = {kind: name for name, kind in OPERATIONS.items()}


# -- what a token reaches ---------------------------------------------------------------------------------------------


class _Scope:
    """What a token reaches at one moment: the rows of some items, and the types that it may read and write."""

    def __init__(self, store: Store, token: Token, ids: Iterable[str] = (), *, is_declaring: bool = False) -> None:
        self._store = store
        self._token = token
        if is_declaring:  # Before the rows: a type that is there by then and its own is its own in these, too.
            _ = self.whole_schema
        self.rows = store.find_items([*ids, token.run, token.state])
        run, state = self.rows.get(token.run), self.rows.get(token.state)
        self.has_ended = (
            run is None
            or state is None
            or run.is_deleted
            or state.is_deleted
            or status_of(run.properties.get("status")) in _ENDED
        )
        self.own = self.reads = self.writes = frozenset[str]()
        if state is not None and not self.has_ended:
            self.own = own_types_of(state.properties)
            self.reads = token.rights.reads | self.own
            self.writes = (token.rights.writes | self.own) - _GUARDED

    def why(self, reason: str) -> str:
        """Return why something is refused: for ``reason``, unless everything is."""
        return "it has ended" if self.has_ended else reason

    @property
    def accounts(self) -> frozenset[str]:
        """The run's own."""
        return self._linked["account"]

    @property
    def views(self) -> frozenset[str]:
        """The run's own."""
        return self._linked["view"]

    @cached_property
    def _linked(self) -> Mapping[str, frozenset[str]]:
        token = self._token
        ids = () if self.has_ended else (token.run, token.state)
        edges = [edge for each in self._store.list_edges(ids, Direction.OUTGOING).values() for edge in each]
        return {name: frozenset(edge.item.id for edge in edges if edge.name == name) for name in _OWN_EDGES}

    def can_read(self, row: ItemRow) -> bool:
        """Say whether an item may be read, its secrets apart."""
        is_own = row.type in self.reads or row.id in (self._token.run, self._token.state)
        return is_own or row.id in self.accounts or row.id in self.views

    def shown(self, row: ItemRow) -> ItemRow:
        """Return a row without what is secret in it, unless that is the run's own or it has the right."""
        secrets = self._secrets.get(row.type)
        if not secrets or self._token.rights.secrets or row.type in self.own or row.id in self.accounts:
            return row
        return row._replace(properties={name: each for name, each in row.properties.items() if name not in secrets})

    def edges(self, rows: Iterable[EdgeRow]) -> Generator[EdgeRow]:
        """Yield those of these edges whose other end may be read."""
        for row in rows:
            if self.can_read(row.item):
                yield replace(row, item=self.shown(row.item))

    @cached_property
    def _secrets(self) -> Mapping[str, frozenset[str]]:
        # First asked for when the rows are read: what becomes secret meanwhile is left out, and nothing ceases to be.
        return {
            name: frozenset(each for each, found in definition.properties.items() if found.is_secret)
            for name, definition in self.whole_schema.items()
        }

    @cached_property
    def whole_schema(self) -> Schema:
        """That of the Pod."""
        return self._store.schema()

    @cached_property
    def schema(self) -> Schema:
        """What the run knows of it: not what other plugins keep."""
        known = _BUILT_IN | self.reads | self.writes
        return Schema(each for name, each in self.whole_schema.items() if name in known)


# -- what it may write ------------------------------------------------------------------------------------------------


class _Writing:
    """One batch that is looked through, operation by operation, in the order in which they would happen."""

    def __init__(self, store: Store, token: Token, batch: Batch) -> None:
        self._store = store
        self._token = token
        self._batch = batch
        # If one of these ids is taken, the whole batch is refused: then it does not matter what was believed of it.
        self._created: dict[str, str] = {}
        self._declared: dict[str, None] = {}
        self._updates_of_state = 0

    def operations(self) -> tuple[Operation, ...]:
        """Return what may be applied: one operation for each that was asked for, perhaps another one, and what follows.

        Raises:
            _Refusal: One of them may not.
            NotFoundError, ConflictError, InvalidError: As the store would, where it must not be asked.
        """
        found: list[Operation] = []
        for operation in self._batch.operations:
            rule = RULES.get(type(operation), _Writing.never)
            try:
                found.append(rule(self, operation))
            except (HoldfastError, _Refusal) as exc:
                exc.facts.setdefault("operation", len(found))
                raise
        if self._declared:
            # Onto this very version: of two threads that bring types at once neither forgets the other's.
            version = self.scope.rows[self._token.state].version + self._updates_of_state
            own = json.dumps(sorted(self.scope.own | self._declared.keys()))
            found.append(UpdateItem(self._token.state, {"ownTypes": own}, version))
        return tuple(found)

    @cached_property
    def scope(self) -> _Scope:
        """What the token reaches; not read for what needs no right, as a renewal."""
        is_declaring = any(isinstance(each, DeclareTypes) for each in self._batch.operations)
        return _Scope(self._store, self._token, needs(self._batch).items, is_declaring=is_declaring)

    # -- the rules: the first lines stand in docs/permissions.md ------------------------------------------------------

    def declare_types(self, operation: DeclareTypes) -> Operation:
        """What the Pod does not know becomes its own; its own types and those in `writes` get properties and edges."""
        new = dict.fromkeys(operation.new)
        for definition in operation.types:
            name = definition.name
            if name in self._declared:
                continue
            known = self.scope.whole_schema.get(name)
            if known is not None:
                self._check_change(known, definition)
            elif self.scope.has_ended:
                raise _Refusal(f"declare type {shown(name)}", "it has ended", name)
            else:
                new[name] = self._declared[name] = None
        return replace(operation, new=tuple(new))

    def _check_change(self, known: TypeDefinition, definition: TypeDefinition) -> None:
        name = known.name
        if name not in self.scope.schema:
            why = self.scope.why("the Pod has one, which is neither its own nor in its 'reads' or 'writes'")
            raise _Refusal(f"declare type {name!r}", why, name)
        joined = known.joined(definition)
        if joined is known or name in self.scope.own:
            return
        if name not in self.scope.writes:
            why = self.scope.why("it is neither its own nor in its 'writes'")
            raise _Refusal(f"change type {name!r}", why, name)
        changed = [each for each, there in known.properties.items() if joined.properties[each] != there]
        if changed:
            why = "it would be so for all who use the type, and that is not its own"
            raise _Refusal(f"make property {changed[0]!r} of {name!r} secret, or indexed", why, name)

    def create_item(self, operation: CreateItem) -> Operation:
        """Of its own types and those in `writes`; never a run, a plugin state or a schedule."""
        if not self._can_write(operation.type):
            why = self.scope.why("the type is neither its own nor in its 'writes'")
            raise _Refusal(f"create items of type {shown(operation.type)}", why, operation.type)
        self._created[operation.id] = operation.type
        return operation

    def update_item(self, operation: UpdateItem) -> Operation:
        """As `create_item`; its run: `status`, `error`, `progress`, `authUrl`, `retryAt`; plugin state: `lastState`."""
        id_ = operation.id
        type_ = self._type_of(id_)
        if type_ is None:
            raise NotFoundError(f"there is no item {shown(id_)} to update", id=shown(id_))
        may = {self._token.run: _OF_RUN, self._token.state: _OF_STATE}.get(id_)
        if may is None:
            self._check_item("write", id_, type_)
        elif others := operation.properties.keys() - may:
            raise _Refusal(f"write {shown(min(others))} of item {id_!r}", "only its owner may", type_)
        self._updates_of_state += id_ == self._token.state
        return operation

    def delete_item(self, operation: DeleteItem) -> Operation:
        """As `create_item`."""
        type_ = self._type_of(operation.id)
        if type_ is None:
            return _NOTHING
        self._check_item("delete", operation.id, type_)
        return operation

    def create_edge(self, operation: CreateEdge) -> Operation:
        """From what it may write to what it may read or write; its run and plugin state: a new `account` or `view`."""
        source, target = (self._type_of_end(operation, end) for end in ("source", "target"))
        self._check_source(operation, source)
        row = self.scope.rows.get(operation.target)
        is_readable = row is not None and self.scope.can_read(row)
        if not (is_readable or self._can_write(target)):
            why = self.scope.why("it is not its own, and of no type in its 'reads' or 'writes'")
            raise _Refusal(f"link to item {shown(operation.target)}", why, target)
        if operation.source in (self._token.run, self._token.state) and operation.target not in self._created:
            # What it leads to is shown, an account with its secrets: not whatever the plugin knows the id of.
            is_shown = operation.target in self.scope.accounts if operation.name == "account" else is_readable
            if not is_shown:
                why = f"only its owner may, unless the {operation.name} is created with the edge"
                raise _Refusal(f"take {operation.name} {shown(operation.target)} for its own", why, target)
        return operation

    def delete_edge(self, operation: DeleteEdge) -> Operation:
        """From what it may write; its run and plugin state: `view`, `account`."""
        source = self._type_of(operation.source)
        if source is None:
            return _NOTHING
        self._check_source(operation, source)
        return operation

    def of_state(
        self, operation: SetVariable | IncrementVariable | DeleteVariable | PointSnapshot | AskQuestion
    ) -> Operation:
        """Of its own plugin state."""
        if operation.state != self._token.state:
            why = f"it holds {self._token.state!r}"
            raise _Refusal(f"write to plugin state {shown(operation.state)}", why)
        return operation

    def of_run(self, operation: SetProgress | MoveRun | AskQuestion) -> Operation:
        """Of its own run."""
        if operation.run != self._token.run:
            raise _Refusal(f"write to run {shown(operation.run)}", "it is another one")
        return operation

    def ask_question(self, operation: AskQuestion) -> Operation:
        """Of its own run, on its own plugin state."""
        self.of_run(operation)
        return self.of_state(operation)

    def delete_question(self, operation: DeleteQuestion) -> Operation:
        """Of its own plugin state."""
        return operation  # whose it is the store sees in the same transaction, and refuses another's

    def claim_lease(self, operation: ClaimLease) -> Operation:
        """What the token is for, which was claimed with it: that is a renewal."""
        token = self._token
        if (operation.state, operation.run, operation.holder) != (token.state, token.run, token.holder):
            raise _Refusal(f"claim plugin state {shown(operation.state)}", "its token is for another claim")
        return RenewLease(token.fence, operation.duration_ms)

    def of_lease(self, operation: RenewLease | ReleaseLease) -> Operation:
        """Its own."""
        if operation.fence != self._token.fence:
            what = f"renew or release a lease of plugin state {shown(operation.fence.state)}"
            raise _Refusal(what, "its token is for another one")
        return operation

    def never(self, operation: Operation) -> Operation:
        """Never."""
        raise _Refusal(f"{_name(operation)}", "that is for its owner")

    # -- what the rules ask -------------------------------------------------------------------------------------------

    def _type_of(self, id_: str) -> str | None:
        """Return the type of an item, created by the batch perhaps; None if there is none."""
        created = self._created.get(id_)
        if created is not None:
            return created
        row = self.scope.rows.get(id_)
        return None if row is None else row.type

    def _type_of_end(self, edge: CreateEdge, end: str) -> str:
        id_: str = getattr(edge, end)
        type_ = self._type_of(id_)
        if type_ is None:
            message = f"the {end} {shown(id_)} of edge {shown(edge.name)} does not exist"
            raise NotFoundError(message, id=shown(id_), edge=shown(edge.name))
        return type_

    def _can_write(self, type_: str) -> bool:
        return type_ in self.scope.writes or type_ in self._declared

    def _check_item(self, verb: str, id_: str, type_: str) -> None:
        """Refuse to write an item; its type is not told."""
        if not self._can_write(type_):
            why = self.scope.why("it is of no type that is its own or in its 'writes'")
            raise _Refusal(f"{verb} item {shown(id_)}", why, type_)

    def _check_source(self, edge: CreateEdge | DeleteEdge, type_: str) -> None:
        if edge.source not in (self._token.run, self._token.state):
            self._check_item("link", edge.source, type_)
        elif edge.name not in _OWN_EDGES:
            raise _Refusal(f"change edge {shown(edge.name)} of item {edge.source!r}", "only its owner may", type_)


RULES: Final[Mapping[type, Callable[[_Writing, Any], Operation]]] = MappingProxyType(
    {
        DeclareTypes: _Writing.declare_types,
        CreateItem: _Writing.create_item,
        UpdateItem: _Writing.update_item,
        DeleteItem: _Writing.delete_item,
        CreateEdge: _Writing.create_edge,
        DeleteEdge: _Writing.delete_edge,
        SetVariable: _Writing.of_state,
        IncrementVariable: _Writing.of_state,
        DeleteVariable: _Writing.of_state,
        SetProgress: _Writing.of_run,
        MoveRun: _Writing.of_run,
        PointSnapshot: _Writing.of_state,
        AskQuestion: _Writing.ask_question,
        AnswerQuestion: _Writing.never,
        DeleteQuestion: _Writing.delete_question,
        ClaimLease: _Writing.claim_lease,
        RenewLease: _Writing.of_lease,
        ReleaseLease: _Writing.of_lease,
        EndLease: _Writing.never,
        CancelLease: _Writing.never,
        AppendLog: _Writing.never,
        ExpireLogs: _Writing.never,
    }
)
"""What a token allows of each operation; what is not here, it does not."""
