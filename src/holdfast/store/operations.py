"""What can be written to a Pod: a frozen list of operations with preconditions, and its JSON form.

A batch says what is to happen; `evaluation` decides whether it may. Both forms of a batch, this one and its JSON, mean
exactly the same, so a store far away applies what a store in this process would have applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from hashlib import sha256
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from holdfast.errors import ConflictError, InvalidError
from holdfast.items import TypeDefinition
from holdfast.runs import Fence, Status
from holdfast.values import Value, check, item_id, shown

MAX_OPERATIONS: Final = 50_000
MAX_BYTES: Final = 64 * 2**20
"""Of all names and values in a batch, text as UTF-8."""

KEY_KEPT_MS: Final = 24 * 3600 * 1000
"""How long a store remembers the key of a batch, on its own clock: whoever repeats one has given up long before."""

SWEPT_KEYS: Final = 8
"""How many keys that were kept for longer go, at most, with each batch that has one: more than come, and few."""

MAX_LOG_BYTES: Final = 16 * 2**20
"""Of the log of a run: what is older goes when more comes."""

MAX_LOG_PART_BYTES: Final = 4 * 2**20
"""Of one part of a log: 1 MiB of what is no text, and so becomes three times as much, is one."""


@dataclass(frozen=True, slots=True)
class DeclareTypes:
    """Add type definitions to the schema. An equal definition is a no-op, a conflicting one a ConflictError.

    ``new`` names those that must not be declared yet: ConflictError if one is, be its definition equal or not.
    """

    types: tuple[TypeDefinition, ...]
    new: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateItem:
    """Create one item. ConflictError if ``id`` exists, even deleted; InvalidError if its schema says no."""

    id: str
    type: str
    properties: Mapping[str, Value] = field(default_factory=dict[str, Value])


@dataclass(frozen=True, slots=True)
class UpdateItem:
    """Set properties of one item; None erases one. The others stay.

    NotFoundError if there is no such item; ConflictError if ``expected_version`` is given and another has been
    written since. Setting ``status`` of a PluginRun is a move of that run, with a move's rules.
    """

    id: str
    properties: Mapping[str, Value | None]
    expected_version: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteItem:
    """Mark one item as deleted; nothing happens if it is absent or deleted already.

    ConflictError if it is a run or a plugin state that a run holds, whoever asks; a lease that lapsed ends with it.
    """

    id: str


@dataclass(frozen=True, slots=True)
class CreateEdge:
    """Link two items; nothing happens if that edge exists. NotFoundError if one of the items does not.

    An edge belongs to the item that it begins at: a run is denied those of other runs and plugin states.
    ``pluginState`` of a run is its owner's to change, while nobody holds that run (ConflictError); a run that begins
    another one does so on its own plugin state, or on one that is created with it.
    """

    source: str
    name: str
    target: str


@dataclass(frozen=True, slots=True)
class DeleteEdge:
    """Remove one link; nothing happens if it is absent. Whose it is, and who is refused: as for `CreateEdge`."""

    source: str
    name: str
    target: str


@dataclass(frozen=True, slots=True)
class Expected:
    """A precondition on a variable: it has this value, type included; None: it is absent."""

    value: Value | None


@dataclass(frozen=True, slots=True)
class SetVariable:
    """Set one variable of a plugin state. ConflictError if ``expected`` is given and is not what is there."""

    state: str
    name: str
    value: Value
    namespace: str = ""
    expected: Expected | None = None


@dataclass(frozen=True, slots=True)
class IncrementVariable:
    """Add to one variable; an absent one counts as 0. The result is the new value.

    InvalidError if it holds text or a boolean, or if the sum is beyond 64 bits or not finite.
    """

    state: str
    name: str
    by: int | float = 1
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class DeleteVariable:
    """Remove one variable; nothing happens if it is absent, unless ``expected`` says otherwise."""

    state: str
    name: str
    namespace: str = ""
    expected: Expected | None = None


@dataclass(frozen=True, slots=True)
class SetProgress:
    """Say how far a run is, from 0 to 1; None: unknown."""

    run: str
    progress: float | None


@dataclass(frozen=True, slots=True)
class MoveRun:
    """Move a run to another status, with the reason if that is an error; ConflictError if the move is not legal."""

    run: str
    status: Status
    error: str | None = None


@dataclass(frozen=True, slots=True)
class PointSnapshot:
    """Say which snapshot a plugin state resumes from: the name of its directory; None: from none.

    InvalidError for what leads elsewhere, such as ``../other``.
    """

    state: str
    snapshot: str | None


@dataclass(frozen=True, slots=True)
class AskQuestion:
    """Store a question of a run to its user; the result is the `Question` as stored.

    A plugin state has one question under a ``key``: asking it again answers the one that is there. ``form``,
    ``default`` are JSON texts; ``deadline_ms`` is in milliseconds since 1970.
    """

    id: str
    state: str
    run: str
    key: str
    form: str
    view: str | None = None
    deadline_ms: int | None = None
    default: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerQuestion:
    """Store the user's answer, a JSON text. The first writer wins.

    The same answer again is a no-op, another one a ConflictError; NotFoundError if there is no such question.
    """

    id: str
    answer: str


@dataclass(frozen=True, slots=True)
class DeleteQuestion:
    """Forget a question, so that its key can be asked anew; nothing happens if it is absent."""

    id: str


@dataclass(frozen=True, slots=True)
class ClaimLease:
    """Claim a plugin state for a run; the result is the `Lease`.

    ConflictError names the run that has it; NotFoundError if run or plugin state were deleted.
    """

    state: str
    run: str
    holder: str
    duration_ms: int
    dead_holder: str = ""


@dataclass(frozen=True, slots=True)
class RenewLease:
    """Make the lease last again; the result is the `Lease`, with any request to stop. FencedError if superseded."""

    fence: Fence
    duration_ms: int


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Give the lease back; FencedError if superseded."""

    fence: Fence


@dataclass(frozen=True, slots=True)
class EndLease:
    """Take the lease away from whoever holds it: the owner's right. Its writes are refused from now on.

    ConflictError if ``epoch`` is given and another claim was made since.
    """

    state: str
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class CancelLease:
    """Ask the holder of a plugin state to stop; it learns so with its next renewal.

    ConflictError if ``epoch`` is given and another claim was made since.
    """

    state: str
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class AppendLog:
    """Keep a part of what ``source``, a launch of a run, wrote: from ``start`` to ``end``, in the source's own words.

    ``start`` is the ``end`` of its part before, "" for its first, else ConflictError: so nothing is kept twice, and
    nothing in between is left out. The same ``start`` and ``end`` as its last part is a no-op. InvalidError if ``text``
    has more than `MAX_LOG_PART_BYTES`; NotFoundError if there is no such run. For the owner alone (DeniedError), also
    while the run is held. Of a run's log the last `MAX_LOG_BYTES` are kept, of all its sources together.

    The failure argument. *Who ships a log dies before it has deleted the launch*: the next one asks
    `Store.find_log_end` and goes on from there, for that is known also when the part itself is gone. *Two ship at
    once*: one is first; the other's part is the same, or is refused, and it asks anew.
    """

    run: str
    source: str
    start: str
    end: str
    text: str


@dataclass(frozen=True, slots=True)
class ExpireLogs:
    """Forget what of any log was written before an instant, in milliseconds since 1970; a later one than now means now.

    Where a source ends is forgotten too when all of it was written before. For the owner alone (DeniedError).
    """

    before_ms: int


Operation = (
    DeclareTypes
    | CreateItem
    | UpdateItem
    | DeleteItem
    | CreateEdge
    | DeleteEdge
    | SetVariable
    | IncrementVariable
    | DeleteVariable
    | SetProgress
    | MoveRun
    | PointSnapshot
    | AskQuestion
    | AnswerQuestion
    | DeleteQuestion
    | ClaimLease
    | RenewLease
    | ReleaseLease
    | EndLease
    | CancelLease
    | AppendLog
    | ExpireLogs
)

_SEPARATOR = "_"


def _wire_name(kind: type) -> str:
    return "".join(_SEPARATOR + letter.lower() if letter.isupper() else letter for letter in kind.__name__).lstrip("_")


OPERATIONS: Final[Mapping[str, type[Operation]]] = {
    _wire_name(kind): kind for kind in cast("tuple[type[Operation], ...]", Operation.__args__)
}
"""Every operation by its name in the JSON form: ``create_item`` and so on."""

_NAMES: Final = {kind: name for name, kind in OPERATIONS.items()}


@dataclass(frozen=True, slots=True)
class Batch:
    """All of these operations, in this order, or none of them.

    Args:
        operations: At most `MAX_OPERATIONS`, of at most `MAX_BYTES` altogether.
        fence: The right of the run that writes; None for its owner, who is refused what a run holds.
        key: What makes it safe to repeat when an answer was lost: 1 to 64 letters, digits, ``-`` and ``_``, random.
            A store that applied a batch under this key answers it again, for a day, and applies it no second time.

    Raises:
        InvalidError: It is too long or too large, or its key is none.
    """

    operations: tuple[Operation, ...]
    fence: Fence | None = None
    key: str | None = None
    _digest: bytes = field(default=b"", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.key is not None and not (isinstance(self.key, str) and item_id.fullmatch(self.key)):  # pyright: ignore[reportUnnecessaryIsInstance] -- callers may be untyped
            message = f"{shown(self.key)} cannot be the key of a batch: 1 to 64 letters, digits, '-' and '_' can"
            raise InvalidError(message, key=shown(self.key))
        if len(self.operations) > MAX_OPERATIONS:
            message = f"a batch of {len(self.operations):,} operations is too long: at most {MAX_OPERATIONS:,} can be"
            raise InvalidError(
                message + " applied together", operations=len(self.operations), max_operations=MAX_OPERATIONS
            )
        size = sum(map(size_bytes, self.operations))
        if size > MAX_BYTES:
            largest, at = max((size_bytes(operation), at) for at, operation in enumerate(self.operations))
            name = _NAMES[type(self.operations[at])]
            message = (
                f"a batch of {size / 2**20:.1f} MiB is too large: at most {MAX_BYTES // 2**20} MiB can be applied "
                f"together (the largest of its operations is number {at}, {name}, with {largest / 2**20:.1f} MiB)"
            )
            raise InvalidError(message, bytes=size, max_bytes=MAX_BYTES, operation=at)

    def to_json(self) -> bytes:
        """Return the JSON form.

        ``{"operations": [{"op": "set_variable", "state": "s1", "name": "cursor", "value": 7, "namespace": "",
        "expected": null}], "fence": {"state": "s1", "epoch": 3, "holder": "h1"}, "key": null}``

        Raises:
            InvalidError: An operation holds what no store can hold, and JSON neither.
        """
        return b'%b,"key":%b}' % (self._content(), to_json(self.key))

    def _content(self) -> bytes:
        fence = b"null" if self.fence is None else _dump(_plain(self.fence), "the fence of a batch")
        operations = b",".join(_write(at, operation) for at, operation in enumerate(self.operations))
        return b'{"operations":[%b],"fence":%b' % (operations, fence)

    def digest(self) -> bytes:
        """Return what tells this batch from others with the same key: the SHA-256 of its JSON form without the key.

        It is found out once: for a large batch that takes a while, which nobody should spend inside a transaction.

        Raises:
            InvalidError: It has no JSON form.
        """
        if not self._digest:
            object.__setattr__(self, "_digest", sha256(self._content() + b"}").digest())
        return self._digest

    def rewritten(self, operations: tuple[Operation, ...]) -> Batch:
        """Return a batch that does ``operations`` instead, and whose key takes it for this one.

        For who stands before a store and puts others in the place of what was asked: when a batch is repeated, these
        may differ from the first time.
        """
        changed = replace(self, operations=operations)
        if self.key is not None:
            object.__setattr__(changed, "_digest", self.digest())
        return changed

    def check_repeats(self, digest: bytes) -> None:
        """Accept that the batch with this ``digest`` was applied under the key of this one: it is the same.

        Raises:
            ConflictError: It is another.
        """
        if digest != self.digest():
            message = f"another batch was applied under the key {self.key!r}: give each batch a key of its own"
            raise ConflictError(message, key=self.key)

    @classmethod
    def from_json(cls, text: bytes | str) -> Batch:
        """Return the batch whose JSON form is ``text``; what may be left out is what has a default.

        Raises:
            InvalidError: It is no JSON, or not the form of a batch; the message says which operation is wrong and how.
        """
        try:
            document = from_json(text, allow_inf_nan=False)
        except ValueError as exc:
            message = f"a batch must be JSON: {exc}"
            raise InvalidError(message) from exc
        if not isinstance(document, dict):
            message = f"a batch must be an object with 'operations', not {shown(document)}"
            raise InvalidError(message)
        found = cast("dict[str, Any]", document)
        if not isinstance(found.get("operations"), list) or not found.keys() <= {"operations", "fence", "key"}:
            message = "a batch must have a list 'operations', may have a 'fence' and a 'key', and nothing else"
            raise InvalidError(message)
        if len(found["operations"]) > MAX_OPERATIONS:  # before the work of reading each
            return cls((DeleteItem("x"),) * len(found["operations"]))
        operations = tuple(_read(at, operation) for at, operation in enumerate(found["operations"]))
        fence = None if found.get("fence") is None else _build(Fence, found["fence"], "the fence of a batch")
        return cls(operations, fence, found.get("key"))


def size_bytes(operation: Operation) -> int:
    """Return how much of `MAX_BYTES` an operation takes: all its texts as UTF-8, names included, and 16 a value."""
    if isinstance(operation, CreateItem | UpdateItem):
        total = 96
        for name, value in operation.properties.items():
            total += 16 + len(name)
            if type(value) is str:
                total += _text_bytes(value)
        return total
    if isinstance(operation, DeclareTypes):
        return sum(
            96 + _text_bytes(name) + sum(map(_text_bytes, leads_to))
            for each in operation.types
            for name, leads_to in (*((name, ()) for name in each.properties), *each.edges.items(), (each.name, ()))
        ) + sum(16 + _text_bytes(name) for name in operation.new)
    total = 96
    for each in fields(operation):
        value = getattr(operation, each.name)
        value = value.value if isinstance(value, Expected) else value
        total += 16 + (_text_bytes(value) if isinstance(value, str) else 0)
    return total


def _text_bytes(text: str) -> int:
    # Text that is not ASCII is rare; text that cannot be encoded is refused later, by name.
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _plain(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value)}


def _write(at: int, operation: Operation) -> bytes:
    name = _NAMES[type(operation)]
    document = _plain(operation)
    properties = cast("Mapping[str, Any]", document.get("properties") or {})
    plain: dict[str, Any] = {key: value for key, value in document.items() if isinstance(value, str | int | float)}
    if isinstance(expected := document.get("expected"), Expected):
        plain["expected"] = expected.value
    for key, value in (*plain.items(), *properties.items()):
        if value is not None:  # JSON would turn bytes into text, and has no form for NaN
            check(value, f"{key!r} of operation {at}, {name},")
    return _dump({"op": name, **document}, f"operation {at}, {name},")


def _dump(document: dict[str, Any], what: str) -> bytes:
    try:
        return to_json(document)
    except PydanticSerializationError as exc:
        message = f"{what} holds what JSON cannot: {exc}"
        raise InvalidError(message) from exc


def _read(at: int, document: Any) -> Operation:
    what = f"operation {at}"
    if not isinstance(document, dict):
        message = f"{what} must be an object with an 'op', not {shown(document)}"
        raise InvalidError(message, operation=at)
    values = cast("dict[str, Any]", document)
    name = values.get("op")
    kind = OPERATIONS.get(name) if isinstance(name, str) else None
    if kind is None:
        message = f"{what} cannot be {shown(name)}: an 'op' is one of {', '.join(OPERATIONS)}"
        raise InvalidError(message, operation=at)
    return _build(kind, {key: value for key, value in values.items() if key != "op"}, f"{what}, {name},")


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _build(kind: type[Any], document: Any, what: str) -> Any:
    try:
        return _adapter(kind).validate_json(to_json(document), strict=True, extra="forbid")
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        # What properties hold may be secret, and which are is for the schema to say.
        given = type(first["input"]).__name__ if where.startswith("properties.") else shown(first["input"])
        message = f"{what} has a wrong {where!r}, {given}: {first['msg']}"
        raise InvalidError(message, field=where) from exc
