"""Whether a batch may happen, and what it changes: a function of the batch, the rows it names and the time.

Every store works the same way: it asks `needs` which rows a batch speaks of, reads them inside its transaction, asks
`evaluate` for the outcome, writes that, commits. So preconditions mean the same in every database, and in none.

Nothing here is written until the whole batch is accepted: an error leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, NoReturn, cast

from holdfast.errors import ConflictError, DeniedError, HoldfastError, InvalidError, NotFoundError
from holdfast.items import ANY_TYPE, SYSTEM_PROPERTIES, PropertyDefinition, Schema
from holdfast.runs import Fence, Lease, Status, move, status_of
from holdfast.store.operations import (
    MAX_LOG_PART_BYTES,
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
    EndLease,
    Expected,
    ExpireLogs,
    IncrementVariable,
    MoveRun,
    Operation,
    PointSnapshot,
    ReleaseLease,
    RenewLease,
    SetProgress,
    SetVariable,
    UpdateItem,
)
from holdfast.values import Kind, Value, check, fit, is_plain, item_id, shown

MAX_NAME: Final = 1024
"""Characters in the name of a variable, a namespace, a snapshot or the key of a question."""

MAX_LEASE_MS: Final = 24 * 3600 * 1000

_MAX_READ_BYTES: Final = 2**20
"""Of a log at once."""

_RUN: Final = "PluginRun"
_STATE: Final = "PersistentState"
_GUARDED: Final = frozenset({_RUN, _STATE})
_WORKS_ON: Final = "pluginState"
"""The edge from a run to the plugin state that it works on."""


class ItemRow(NamedTuple):
    """One item as stored; dates in milliseconds since 1970."""

    id: str
    type: str
    version: int
    created_ms: int
    modified_ms: int
    server_modified_ms: int
    is_deleted: bool
    properties: Mapping[str, Value]


class VariableKey(NamedTuple):
    """Which variable."""

    state: str
    namespace: str
    name: str


class EdgeKey(NamedTuple):
    """Which edge."""

    source: str
    name: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something a run asks its user; ``form``, ``default`` and ``answer`` are JSON texts."""

    id: str
    state: str
    run: str
    key: str
    form: str
    view: str | None
    deadline_ms: int | None
    default: str | None
    asked_ms: int
    answer: str | None = None
    answered_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPart:
    """A part of the log of a run: what ``source`` wrote up to ``end``.

    ``number`` is larger than those of all parts that the Pod kept before, of any run, gone ones included.
    """

    number: int
    run: str
    source: str
    end: str
    at_ms: int
    text: str

    @property
    def size_bytes(self) -> int:
        """How much of a limit it takes: its text as UTF-8, and something for the rest."""
        return 256 + len(self.text.encode())


class LogKey(NamedTuple):
    """Which source of the log of which run."""

    run: str
    source: str


class LogEnd(NamedTuple):
    """From where to where the last part of a source reaches, and when it was kept."""

    start: str
    end: str
    at_ms: int


class Written(NamedTuple):
    """What became of an item: its version, and when, in milliseconds since 1970. Version 0: there was none."""

    id: str
    version: int
    at_ms: int


Result = Written | Lease | Question | int | float | None
"""What one operation answers: `Written` for items and runs, `Lease`, `Question`, the sum of an increment, or None."""


@dataclass(slots=True)
class Needs:
    """Which rows a batch speaks of. What it creates itself is not among them."""

    items: set[str] = field(default_factory=set[str])
    variables: set[VariableKey] = field(default_factory=set[VariableKey])
    lease_states: set[str] = field(default_factory=set[str])
    questions: set[str] = field(default_factory=set[str])
    question_keys: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    log_ends: set[LogKey] = field(default_factory=set[LogKey])


@dataclass(slots=True)
class Rows:
    """The rows that `needs` named, as far as they exist, and the schema. `evaluate` works on it as on a scratch pad."""

    schema: Schema
    items: dict[str, ItemRow] = field(default_factory=dict[str, ItemRow])
    variables: dict[VariableKey, Value] = field(default_factory=dict[VariableKey, Value])
    leases: dict[str, Lease] = field(default_factory=dict[str, Lease])
    questions: dict[str, Question] = field(default_factory=dict[str, Question])
    log_ends: dict[LogKey, LogEnd] = field(default_factory=dict[LogKey, LogEnd])


@dataclass(slots=True)
class Changes:
    """What to write, each row once, in its final form. None stands for a row that goes."""

    schema: Schema | None = None
    created: list[ItemRow] = field(default_factory=list[ItemRow])
    """In order; whether their ids are free was not among the batch's needs: a store refuses one that is taken."""
    updated: dict[str, ItemRow] = field(default_factory=dict[str, ItemRow])
    edges: dict[EdgeKey, bool] = field(default_factory=dict[EdgeKey, bool])
    """True: it shall exist; False: it shall not."""
    variables: dict[VariableKey, Value | None] = field(default_factory=dict[VariableKey, Value | None])
    leases: dict[str, Lease] = field(default_factory=dict[str, Lease])
    snapshots: dict[str, str | None] = field(default_factory=dict[str, str | None])
    questions: dict[str, Question | None] = field(default_factory=dict[str, Question | None])
    logs_before_ms: int = 0
    """Before what is appended: all parts and ends go that were kept before this."""
    log_parts: list[LogPart] = field(default_factory=list[LogPart])
    """To append, in order; the store numbers them, and lets those go that are too old then."""
    log_ends: dict[LogKey, LogEnd] = field(default_factory=dict[LogKey, LogEnd])


def needs(batch: Batch) -> Needs:
    """Return the rows to read before `evaluate`; when they are read, `guards` says which leases are needed besides."""
    found = Needs()
    created: set[str] = set()
    for operation in batch.operations:
        match operation:
            case CreateItem():
                if operation.id not in found.items:  # what was spoken of before may exist, and decides what happens
                    created.add(operation.id)
            case UpdateItem() | DeleteItem():
                found.items.add(operation.id)
            case CreateEdge() | DeleteEdge():
                found.items.update((operation.source, operation.target))
            case SetProgress() | MoveRun():
                found.items.add(operation.run)
            case AppendLog():
                found.items.add(operation.run)
                found.log_ends.add(LogKey(operation.run, operation.source))
            case _:
                _add_needs_of_state(found, operation)
    found.items -= created
    if batch.fence is not None:
        found.lease_states.add(batch.fence.state)
    return found


def _add_needs_of_state(found: Needs, operation: Operation) -> None:
    """Add what is needed by an operation on what is not an item."""
    match operation:
        case SetVariable() | IncrementVariable() | DeleteVariable():
            found.variables.add(VariableKey(operation.state, operation.namespace, operation.name))
            found.lease_states.add(operation.state)
        case ClaimLease():
            found.items.update((operation.state, operation.run))
            found.lease_states.add(operation.state)
        case PointSnapshot() | EndLease() | CancelLease():
            found.lease_states.add(operation.state)
        case RenewLease() | ReleaseLease():
            found.lease_states.add(operation.fence.state)
        case AskQuestion():
            found.question_keys.add((operation.state, operation.key))
            found.questions.add(operation.id)
            found.lease_states.add(operation.state)
        case AnswerQuestion() | DeleteQuestion():
            found.questions.add(operation.id)
        case _:
            pass  # types are read in any case, and what is too old is not


def guards(rows: Rows) -> tuple[set[str], set[str]]:
    """Return the plugin states, and the runs, whose leases decide about the items and questions that were read."""
    states = {question.state for question in rows.questions.values()}
    states.update(row.id for row in rows.items.values() if row.type == _STATE)
    return states, {row.id for row in rows.items.values() if row.type == _RUN}


def evaluate(batch: Batch, rows: Rows, *, now_ms: int) -> tuple[tuple[Result, ...], Changes]:
    """Return the result of each operation, in order, and what is to be written.

    Args:
        batch: What is to happen.
        rows: What `needs` asked for; consumed.
        now_ms: The database's clock, milliseconds since 1970.

    Raises:
        FencedError: The batch's fence is not that of the last claim.
        InvalidError, NotFoundError, ConflictError, DeniedError: An operation may not happen; ``facts["operation"]``
            is its number.
    """
    evaluation = _Evaluation(rows, batch.fence, now_ms)
    evaluation.check_fence()
    results: list[Result] = []
    handlers = _HANDLERS
    for operation in batch.operations:
        try:
            results.append(handlers[type(operation)](evaluation, operation))
        except HoldfastError as exc:
            exc.facts.setdefault("operation", len(results))
            raise
    return tuple(results), evaluation.changes


class _Evaluation:
    """One batch being evaluated: the rows as they are after the operations so far, and what changed."""

    def __init__(self, rows: Rows, fence: Fence | None, now_ms: int) -> None:
        self.rows = rows
        self.fence = fence
        self.now_ms = now_ms
        self.changes = Changes()
        self.created: dict[str, int] = {}
        # A lease that lapsed names its run still; the one that the same run holds now counts, and comes last.
        leases = sorted(rows.leases.values(), key=lambda lease: lease.is_held(now_ms))
        self.runs = {lease.run: lease.state for lease in leases if lease.run}

    # -- rights --

    def check_fence(self) -> None:
        if self.fence is not None:
            self.lease(self.fence.state).check(self.fence)

    def lease(self, state: str) -> Lease:
        return self.rows.leases.get(state) or Lease(state=state)

    def put_lease(self, lease: Lease) -> Lease:
        if lease == self.lease(lease.state):
            return lease
        self.rows.leases[lease.state] = self.changes.leases[lease.state] = lease
        if lease.run:
            self.runs[lease.run] = lease.state
        return lease

    def check_state(self, state: str) -> None:
        """Refuse a write to a plugin state by anybody but the run that holds it, or its owner while nobody does.

        A lease that lapsed ends with the owner's write: its run may only sleep, and does not know what was written.
        """
        if self.fence is not None:
            if state != self.fence.state:
                message = f"a run that holds plugin state {self.fence.state!r} cannot write to {shown(state)}"
                raise DeniedError(message, state=shown(state), held=self.fence.state)
            return
        _check_name(state, "the id of a plugin state")
        lease = self.lease(state)
        if lease.is_held(self.now_ms):
            raise lease.held_by_other(self.now_ms)
        if lease.holder:
            self.put_lease(lease.ended())

    def check_run(self, run: str) -> None:
        """Refuse a write to a run by anybody but itself, or its owner while it holds nothing."""
        if self.fence is not None:
            if self.lease(self.fence.state).run != run:
                message = f"a run that holds plugin state {self.fence.state!r} cannot write to run {shown(run)}"
                raise DeniedError(message, run=shown(run), held=self.fence.state)
            return
        lease = self.lease(self.runs.get(run, ""))
        if lease.run == run and lease.is_held(self.now_ms):
            raise lease.held_by_other(self.now_ms)
        if lease.run == run and lease.holder:  # as above
            self.put_lease(lease.ended())

    def check_item(self, row: ItemRow) -> None:
        """Refuse a write to the item of a run or of a plugin state as a write to that would be refused."""
        if row.type == _RUN:
            self.check_run(row.id)
        elif row.type == _STATE:
            self.check_state(row.id)

    def check_edge(self, edge: CreateEdge | DeleteEdge, source: ItemRow) -> None:
        """Refuse to a run the edges of other runs and plugin states; and to all, what a run that is held works on.

        What begins at an item belongs to it, what leads to it does not. What the batch has created is nobody's yet, but
        a run begins another one only on its own plugin state, or on one as new: else that one would write for it.
        """
        is_work = edge.name == _WORKS_ON  # only runs have such an edge
        if self.fence is None:
            if is_work:
                self.check_run(source.id)
        elif source.id not in self.created:
            self.check_item(source)
            if is_work:
                message = f"run {source.id!r} cannot change which plugin state it works on: only its owner can"
                raise DeniedError(message, run=source.id, held=self.fence.state)
        elif is_work and edge.target != self.fence.state and edge.target not in self.created:
            message = f"a run that holds plugin state {self.fence.state!r} cannot begin one on {shown(edge.target)}"
            raise DeniedError(message, run=source.id, state=shown(edge.target), held=self.fence.state)

    def check_deletion(self, row: ItemRow) -> None:
        """Refuse to delete what a run holds, also to that run; who held it and sleeps has no way back."""
        state = self.runs.get(row.id, "") if row.type == _RUN else row.id if row.type == _STATE else ""
        lease = self.lease(state)
        if not lease.holder or (row.type == _RUN and lease.run != row.id):
            return
        if self.fence is not None or lease.is_held(self.now_ms):
            raise lease.held_by_other(self.now_ms)
        self.put_lease(lease.ended())

    # -- items --

    def item(self, id_: str) -> ItemRow | None:
        at = self.created.get(id_)
        return self.rows.items.get(id_) if at is None else self.changes.created[at]

    def put_item(self, row: ItemRow) -> Written:
        at = self.created.get(row.id)
        if at is None:
            self.rows.items[row.id] = self.changes.updated[row.id] = row
        else:
            self.changes.created[at] = row
        return Written(row.id, row.version, row.server_modified_ms)

    def create_item(self, operation: CreateItem) -> Written:
        id_, type_, given = operation.id, operation.type, operation.properties
        declared = self.rows.schema.type(type_).properties
        if item_id.fullmatch(id_) is None:
            message = f"{shown(id_)} cannot be the id of an item: 1 to 64 letters, digits, '-' and '_' are allowed"
            raise InvalidError(message, id=shown(id_))
        if id_ in self.created or id_ in self.rows.items:
            raise exists_already(id_)
        now = created = modified = self.now_ms
        is_deleted = False
        properties: dict[str, Value] = {}
        for name, value in given.items():
            kind = declared.get(name)
            if kind is not None:
                if not is_plain(kind.kind, value):  # the common case is decided without building a message
                    value = _fitted(kind, value, f"{type_}.{name}")  # noqa: PLW2901
                properties[name] = value
            elif name == "dateCreated":
                created = _date(name, value)
            elif name == "dateModified":
                modified = _date(name, value)
            elif name == "deleted":
                is_deleted = _flag(name, value)
            else:
                self.refuse_property(type_, name)
        if type_ == _RUN:
            properties["status"] = str(move(id_, Status.IDLE, status_of(properties.get("status"))))
        self.created[id_] = len(self.changes.created)
        self.changes.created.append(ItemRow(id_, type_, 1, created, modified, now, is_deleted, properties))
        return Written(id_, 1, now)

    def update_item(self, operation: UpdateItem) -> Written:
        row = self.item(operation.id)
        if row is None:
            raise NotFoundError(f"there is no item {shown(operation.id)} to update", id=shown(operation.id))
        if operation.expected_version is not None and operation.expected_version != row.version:
            message = f"item {row.id!r} is at version {row.version}, not {operation.expected_version}: read it again"
            raise ConflictError(message, id=row.id, version=row.version, expected_version=operation.expected_version)
        self.check_item(row)
        declared = self.rows.schema.type(row.type).properties
        properties = dict(row.properties)
        created, modified, is_deleted = row.created_ms, self.now_ms, row.is_deleted
        for name, value in operation.properties.items():
            kind = declared.get(name)
            if kind is not None:
                if row.type == _RUN and name == "status":
                    properties = _moved(row.id, properties, value)
                elif value is None:
                    properties.pop(name, None)
                else:
                    properties[name] = _fitted(kind, value, f"{row.type}.{name}")
            elif name == "dateCreated":
                created = _date(name, value)
            elif name == "dateModified":
                modified = _date(name, value)
            elif name == "deleted":
                is_deleted = _flag(name, value)
            else:
                self.refuse_property(row.type, name)
        if is_deleted and not row.is_deleted:
            self.check_deletion(row)
        return self.put_item(
            ItemRow(row.id, row.type, row.version + 1, created, modified, self.now_ms, is_deleted, properties)
        )

    def refuse_property(self, type_: str, name: str) -> NoReturn:
        if name in SYSTEM_PROPERTIES:
            message = f"{name} of an item cannot be written: the Pod keeps it"
            raise InvalidError(message, property=name)
        self.rows.schema.property(type_, name)
        raise AssertionError(name)  # `property` has raised: only what it does not know comes here

    def delete_item(self, operation: DeleteItem) -> Written:
        row = self.item(operation.id)
        if row is None or row.is_deleted:
            return Written(operation.id, 0 if row is None else row.version, self.now_ms)
        self.check_item(row)
        self.check_deletion(row)
        return self.put_item(
            row._replace(
                version=row.version + 1, modified_ms=self.now_ms, server_modified_ms=self.now_ms, is_deleted=True
            )
        )

    def create_edge(self, operation: CreateEdge) -> None:
        ends: list[ItemRow] = []
        for end, id_ in (("source", operation.source), ("target", operation.target)):
            row = self.item(id_)
            if row is None or row.is_deleted:
                message = f"the {end} {shown(id_)} of edge {shown(operation.name)} does not exist"
                raise NotFoundError(message, id=shown(id_), edge=shown(operation.name))
            ends.append(row)
        source, target = ends
        if source.type in _GUARDED:  # asked here: most edges begin elsewhere, and a call for each is felt
            self.check_edge(operation, source)
        allowed = self.rows.schema.type(source.type).edges.get(operation.name)
        if allowed is None:
            known = ", ".join(sorted(self.rows.schema.type(source.type).edges)) or "none"
            message = f"{source.type} has no edge {shown(operation.name)}; it has {known}"
            raise InvalidError(message, type=source.type, edge=shown(operation.name))
        if target.type not in allowed and ANY_TYPE not in allowed:
            message = f"edge {source.type}.{operation.name} cannot lead to a {target.type}: declared is {allowed}"
            raise InvalidError(message, type=source.type, edge=operation.name, target=target.type)
        self.changes.edges[EdgeKey(operation.source, operation.name, operation.target)] = True

    def delete_edge(self, operation: DeleteEdge) -> None:
        source = self.item(operation.source)
        if source is not None and source.type in _GUARDED:
            self.check_edge(operation, source)
        self.changes.edges[EdgeKey(operation.source, operation.name, operation.target)] = False

    def declare_types(self, operation: DeclareTypes) -> None:
        for name in operation.new:
            if name in self.rows.schema:
                raise ConflictError(f"type {shown(name)} is declared in this Pod already", type=shown(name))
        joined = self.rows.schema.joined(operation.types)
        if joined is not self.rows.schema:
            self.rows.schema = self.changes.schema = joined

    # -- runs --

    def run(self, id_: str) -> ItemRow:
        row = self.run_of_anybody(id_)
        self.check_run(id_)
        return row

    def run_of_anybody(self, id_: str) -> ItemRow:
        row = self.item(id_)
        if row is None or row.type != _RUN:
            message = f"there is no run {shown(id_)}" + ("" if row is None else f": that item is a {row.type}")
            raise NotFoundError(message, id=shown(id_))
        return row

    def set_progress(self, operation: SetProgress) -> Written:
        progress = operation.progress
        if progress is not None and not 0 <= progress <= 1:
            message = f"the progress of a run cannot be {shown(progress)}: it lies between 0 and 1"
            raise InvalidError(message, run=operation.run, value=shown(progress))
        row = self.run(operation.run)
        return self.put_item(_with(row, {"progress": None if progress is None else float(progress)}, self.now_ms))

    def move_run(self, operation: MoveRun) -> Written:
        row = self.run(operation.run)
        properties: dict[str, Value | None] = {**_moved(row.id, row.properties, operation.status)}
        if operation.error is not None:
            check(operation.error, f"the error of run {row.id!r}")
            properties["error"] = operation.error
        return self.put_item(_with(row, {"error": None, **properties}, self.now_ms))

    # -- logs --

    def append_log(self, operation: AppendLog) -> None:
        self.check_owns_logs()
        _check_name(operation.source, "the source of a log")
        _check_name(operation.start, "where a part of a log begins", least=0)
        _check_name(operation.end, "where a part of a log ends")
        check(operation.text, "a part of a log")
        key = LogKey(operation.run, operation.source)
        part = LogPart(number=0, run=key.run, source=key.source, end=operation.end, at_ms=self.now_ms,
                       text=operation.text)  # fmt: skip
        if part.size_bytes > MAX_LOG_PART_BYTES:
            message = f"a part of a log with {part.size_bytes:,} bytes is too large: append it in several"
            raise InvalidError(message, bytes=part.size_bytes, max_bytes=MAX_LOG_PART_BYTES)
        if operation.end == operation.start:
            raise InvalidError(f"a part of a log cannot end where it begins, at {operation.end!r}", end=operation.end)
        self.run_of_anybody(key.run)
        last = self.rows.log_ends.get(key, LogEnd("", "", 0))
        if last[:2] == (operation.start, operation.end):
            return
        if operation.start != last.end:
            message = (
                f"the log of run {key.run!r} has {key.source!r} up to {last.end!r}, and the part begins at "
                f"{operation.start!r}: go on from its end"
            )
            raise ConflictError(message, run=key.run, source=key.source, end=last.end)
        self.changes.log_parts.append(part)
        end = LogEnd(operation.start, operation.end, self.now_ms)
        self.rows.log_ends[key] = self.changes.log_ends[key] = end

    def expire_logs(self, operation: ExpireLogs) -> None:
        self.check_owns_logs()
        # Not later: what the batch itself appends stays, wherever in it that is.
        before_ms = min(cast("int", fit(Kind.DATETIME, operation.before_ms, "before when logs expire")), self.now_ms)
        self.changes.logs_before_ms = max(self.changes.logs_before_ms, before_ms)
        self.rows.log_ends = {key: end for key, end in self.rows.log_ends.items() if end.at_ms >= before_ms}

    def check_owns_logs(self) -> None:
        if self.fence is not None:
            message = f"a run that holds plugin state {self.fence.state!r} cannot write to logs: only their owner can"
            raise DeniedError(message, held=self.fence.state)

    # -- plugin states --

    def set_variable(self, operation: SetVariable) -> None:
        key = self.variable(operation.state, operation.namespace, operation.name, operation.expected)
        check(operation.value, f"variable {shown(operation.name)}")
        self.rows.variables[key] = self.changes.variables[key] = operation.value

    def increment_variable(self, operation: IncrementVariable) -> int | float:
        key = self.variable(operation.state, operation.namespace, operation.name, None)
        old = self.rows.variables.get(key, 0)
        check(operation.by, f"the increment of variable {shown(operation.name)}")
        for number, what in ((old, f"variable {shown(operation.name)} holds {shown(old)} and"),
                             (operation.by, f"the increment {shown(operation.by)}")):  # fmt: skip
            if isinstance(number, str | bool):
                message = f"{what} cannot be added to: it is no number"
                raise InvalidError(message, variable=shown(operation.name))
        total = cast("int | float", old) + operation.by
        check(total, f"variable {shown(operation.name)}")
        self.rows.variables[key] = self.changes.variables[key] = total
        return total

    def delete_variable(self, operation: DeleteVariable) -> None:
        key = self.variable(operation.state, operation.namespace, operation.name, operation.expected)
        self.rows.variables.pop(key, None)
        self.changes.variables[key] = None

    def variable(self, state: str, namespace: str, name: str, expected: Expected | None) -> VariableKey:
        self.check_state(state)
        _check_name(namespace, "a namespace", least=0)
        _check_name(name, "a variable")
        key = VariableKey(state, namespace, name)
        if expected is not None:
            if expected.value is not None:
                check(expected.value, f"what is expected of variable {shown(name)}")
            there = self.rows.variables.get(key)
            if type(there) is not type(expected.value) or there != expected.value:
                is_there = "is absent" if there is None else f"is {shown(there)}"
                wanted = "absent" if expected.value is None else shown(expected.value)
                message = f"variable {shown(name)} {is_there}, not {wanted} as expected"
                raise ConflictError(message, state=state, variable=shown(name))
        return key

    def point_snapshot(self, operation: PointSnapshot) -> None:
        self.check_state(operation.state)
        if operation.snapshot is not None:
            _check_name(operation.snapshot, "a snapshot")
            if operation.snapshot in {".", ".."} or "/" in operation.snapshot:  # it is looked for in a folder
                message = f"a snapshot cannot be called {shown(operation.snapshot)}: the name of a folder is expected"
                raise InvalidError(message, snapshot=shown(operation.snapshot))
        self.changes.snapshots[operation.state] = operation.snapshot

    def ask_question(self, operation: AskQuestion) -> Question:
        self.check_state(operation.state)
        _check_name(operation.id, "a question")
        _check_name(operation.key, "the key of a question")
        _check_name(operation.run, "a run")
        if self.fence is not None:
            self.check_run(operation.run)
        if operation.deadline_ms is not None:
            fit(Kind.DATETIME, operation.deadline_ms, f"the deadline of question {operation.key!r}")
        for text, what in ((operation.form, "form"), (operation.default, "default"), (operation.view, "view")):
            if text is not None:
                check(text, f"the {what} of question {operation.key!r}")
        for question in self.rows.questions.values():
            if (question.state, question.key) == (operation.state, operation.key):
                return question
        if operation.id in self.rows.questions:
            raise ConflictError(f"question {operation.id!r} exists already", id=operation.id)
        return self.put_question(
            Question(
                id=operation.id,
                state=operation.state,
                run=operation.run,
                key=operation.key,
                form=operation.form,
                view=operation.view,
                deadline_ms=operation.deadline_ms,
                default=operation.default,
                asked_ms=self.now_ms,
            )
        )

    def answer_question(self, operation: AnswerQuestion) -> Question:
        if self.fence is not None:
            message = f"a run cannot answer question {shown(operation.id)}: only the user can"
            raise DeniedError(message, id=shown(operation.id))
        question = self.rows.questions.get(operation.id)
        if question is None:
            raise NotFoundError(f"there is no question {shown(operation.id)}", id=shown(operation.id))
        check(operation.answer, f"the answer to question {question.key!r}")
        if question.answer is None:
            return self.put_question(replace(question, answer=operation.answer, answered_ms=self.now_ms))
        if question.answer != operation.answer:
            message = f"question {question.key!r} was answered already, and the first answer counts"
            raise ConflictError(message, id=question.id, answered_ms=question.answered_ms)
        return question

    def put_question(self, question: Question) -> Question:
        self.rows.questions[question.id] = self.changes.questions[question.id] = question
        return question

    def delete_question(self, operation: DeleteQuestion) -> None:
        question = self.rows.questions.pop(operation.id, None)
        if question is not None:
            if self.fence is not None and question.state != self.fence.state:  # which that is, no run is told
                message = f"a run that holds plugin state {self.fence.state!r} cannot delete a question of another"
                raise DeniedError(message, id=question.id, held=self.fence.state)
            self.check_state(question.state)
            self.changes.questions[question.id] = None

    # -- leases --

    def claim_lease(self, operation: ClaimLease) -> Lease:
        _check_name(operation.state, "the id of a plugin state")
        _check_name(operation.run, "the id of a run")
        _check_duration(operation.duration_ms)
        if item_id.fullmatch(operation.holder) is None:
            message = f"{shown(operation.holder)} cannot be a holder: 1 to 64 letters, digits, '-' and '_' are allowed"
            raise InvalidError(message, holder=shown(operation.holder))
        if self.fence is not None:
            message = f"a run that holds plugin state {self.fence.state!r} cannot claim {operation.state!r}"
            raise DeniedError(message, state=operation.state, held=self.fence.state)
        for id_, what in ((operation.state, "plugin state"), (operation.run, "run")):
            row = self.item(id_)
            if row is not None and row.is_deleted:
                raise NotFoundError(f"there is no {what} {id_!r} any more: it was deleted", id=id_)
        lease = self.lease(operation.state).claimed(
            run=operation.run,
            holder=operation.holder,
            now_ms=self.now_ms,
            duration_ms=operation.duration_ms,
            dead_holder=operation.dead_holder,
        )
        self.fence = lease.fence  # what follows in the batch is the holder's: claim and first move are one event
        return self.put_lease(lease)

    def renew_lease(self, operation: RenewLease) -> Lease:
        _check_duration(operation.duration_ms)
        lease = self.lease(operation.fence.state)
        return self.put_lease(lease.renewed(operation.fence, now_ms=self.now_ms, duration_ms=operation.duration_ms))

    def release_lease(self, operation: ReleaseLease) -> Lease:
        return self.put_lease(self.lease(operation.fence.state).released(operation.fence))

    def end_lease(self, operation: EndLease) -> Lease:
        return self.put_lease(self.owned(operation).ended())

    def cancel_lease(self, operation: CancelLease) -> Lease:
        return self.put_lease(self.owned(operation).cancelled())

    def owned(self, operation: EndLease | CancelLease) -> Lease:
        """Return the lease that the owner means."""
        state = operation.state
        if self.fence is not None:
            message = f"a run cannot take plugin state {shown(state)} from its holder: only the owner can"
            raise DeniedError(message, state=shown(state))
        _check_name(state, "the id of a plugin state")
        lease = self.lease(state)
        if operation.epoch not in (None, lease.epoch):
            message = f"plugin state {state!r} has changed hands: its epoch is {lease.epoch}, not {operation.epoch!r}"
            raise ConflictError(message, state=state, epoch=lease.epoch, run=lease.run)
        return lease


_HANDLERS: Final[Mapping[type, Callable[[_Evaluation, Any], Result]]] = {
    DeclareTypes: _Evaluation.declare_types,
    CreateItem: _Evaluation.create_item,
    UpdateItem: _Evaluation.update_item,
    DeleteItem: _Evaluation.delete_item,
    CreateEdge: _Evaluation.create_edge,
    DeleteEdge: _Evaluation.delete_edge,
    SetVariable: _Evaluation.set_variable,
    IncrementVariable: _Evaluation.increment_variable,
    DeleteVariable: _Evaluation.delete_variable,
    SetProgress: _Evaluation.set_progress,
    MoveRun: _Evaluation.move_run,
    PointSnapshot: _Evaluation.point_snapshot,
    AskQuestion: _Evaluation.ask_question,
    AnswerQuestion: _Evaluation.answer_question,
    DeleteQuestion: _Evaluation.delete_question,
    ClaimLease: _Evaluation.claim_lease,
    RenewLease: _Evaluation.renew_lease,
    ReleaseLease: _Evaluation.release_lease,
    EndLease: _Evaluation.end_lease,
    CancelLease: _Evaluation.cancel_lease,
    AppendLog: _Evaluation.append_log,
    ExpireLogs: _Evaluation.expire_logs,
}


def first_parts(parts: Iterable[LogPart]) -> list[LogPart]:
    """Return the first of the parts of a log, as many as are read at once; no more are taken than one after them."""
    found: list[LogPart] = []
    left = _MAX_READ_BYTES
    for part in parts:
        left -= part.size_bytes
        if found and left < 0:
            break
        found.append(part)
    return found


def exists_already(id_: str) -> ConflictError:
    """Return the error for creating an item under an id that is taken."""
    return ConflictError(f"item {id_!r} exists already", id=id_)


def _with(row: ItemRow, properties: Mapping[str, Value | None], now_ms: int) -> ItemRow:
    merged = {**row.properties, **properties}
    kept = {name: value for name, value in merged.items() if value is not None}
    return row._replace(version=row.version + 1, modified_ms=now_ms, server_modified_ms=now_ms, properties=kept)


def _moved(run: str, properties: Mapping[str, Value], to: object) -> dict[str, Value]:
    """Return the properties of a run after a move; why it failed is forgotten when it goes on, or is done."""
    before = status_of(properties.get("status"))
    status = move(run, before, to)
    is_over = status is not before and status in (Status.READY, Status.STARTED, Status.DONE)
    kept = {name: value for name, value in properties.items() if not (is_over and name == "error")}
    return {**kept, "status": str(status)}


def _fitted(found: PropertyDefinition, value: object, what: str) -> Value:
    """Return `fit`'s answer, or its refusal without the value where that is secret."""
    try:
        return fit(found.kind, value, what)
    except InvalidError as exc:
        if not found.is_secret:
            raise
        kind = type(value).__name__
        message = (
            f"{what} cannot hold that value of type {kind}: it is declared {found.kind}, and what no store can hold"
        )
        raise InvalidError(message + " is refused", declared=str(found.kind)) from exc.__cause__


def _date(name: str, value: object) -> int:
    return cast("int", fit(SYSTEM_PROPERTIES[name].kind, value, name))


def _flag(name: str, value: object) -> bool:
    return cast("bool", fit(SYSTEM_PROPERTIES[name].kind, value, name))


def _check_name(text: str, what: str, *, least: int = 1) -> None:
    check(text, what)
    if not least <= len(text) <= MAX_NAME:
        message = f"{shown(text)} cannot name {what}: {least} to {MAX_NAME} characters are allowed"
        raise InvalidError(message, name=shown(text))


def _check_duration(duration_ms: int) -> None:
    if not 0 < duration_ms <= MAX_LEASE_MS:
        message = f"a lease of {shown(duration_ms)} ms cannot be claimed: at most {MAX_LEASE_MS} ms are allowed"
        raise InvalidError(message, duration_ms=shown(duration_ms))
