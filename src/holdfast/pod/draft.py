"""A batch in the making: how items turn into operations, and what items learn when these are committed or given up.

An item is noted as written when its operation is collected, so that a second write of the same batch begins where the
first one ends; version and dates follow with the result. What is given up is noted back. Nothing here knows a store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from holdfast.errors import ConflictError, HoldfastError, InvalidError
from holdfast.items import Edge, Item, Origin, changes_of, edge_changes_of, edge_targets, new_id, properties_of
from holdfast.runs import Fence
from holdfast.store import (
    MAX_BYTES,
    MAX_OPERATIONS,
    Batch,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    DeleteEdge,
    DeleteItem,
    Operation,
    Result,
    UpdateItem,
    Written,
    size_bytes,
)
from holdfast.values import Value, from_ms, shown

_Effect = tuple[Callable[[Any, Any, Any], None] | None, Callable[[Any, Any], None] | None, Any, Any]
"""``settle(item, memory, result)`` for when the operation is committed, ``undo(item, memory)`` for when it is given up,
item, memory. A tuple, because a hundred thousand of them are made at once."""

_Memory = tuple[str | None, Origin | None, tuple[tuple[str, object], ...]]
"""Id and origin of an item before a write, and the dates that the Pod sets with it, as the item held them before."""

_NEW: Final[_Memory] = (None, None, (("dateCreated", None), ("dateModified", None)))

_instant = lru_cache(maxsize=64)(from_ms)  # all items of one batch have the same date


class Draft:
    """Operations that were collected for one batch, or for several, and are not committed yet.

    Args:
        widening: Asked with source item, name and target item before an edge is created; returns the definition that
            the Pod needs to allow it, or None.
    """

    def __init__(self, widening: Callable[[Item, str, Item], DeclareTypes | None]) -> None:
        self.operations: list[Operation] = []
        self._effects: list[_Effect | None] = []
        self._size_bytes = 0
        self._widening = widening
        self._widened: set[tuple[str, str, str]] = set()
        self._lists: dict[tuple[int, str], tuple[Item, list[tuple[Item | str, bool]]]] = {}
        """Lists of items whose edges were given one by one; of these the committed ones, and if they were created."""

    # -- collecting ---------------------------------------------------------------------------------------------------

    def add(self, operation: Operation, on_result: Callable[[Result], None] | None = None) -> None:
        """Collect any operation; ``on_result`` is called with its result once it is committed."""
        self._add(operation, on_result and (lambda call, _, result: call(result), None, on_result, None))

    def _add(self, operation: Operation, effect: _Effect | None) -> None:
        self.operations.append(operation)
        self._effects.append(effect)

    def create_item(self, item: Item) -> None:
        """Collect a new item without the edges of its lists; see `link_item`."""
        if _origin_of(item) is not None:
            message = f"{shown(item)} cannot be created: it was written or read before; update_item writes its changes"
            raise ConflictError(message, id=item.id)
        values = vars(item)
        given: str | None = values["id"]
        id_ = new_id() if given is None else id_of(item, "a new item")
        properties = properties_of(item)
        memory = _NEW if given is None else (given, None, _NEW[2])
        # First how to undo, then what is to be undone: this may be interrupted anywhere.
        self._add(CreateItem(id_, type(item).__name__, properties), (_settle, _undo, item, memory))
        values["id"] = id_
        targets = edge_targets(type(item))
        _put_origin(item, Origin(properties, dict.fromkeys(targets, ()) if targets else {}, 0))

    def update_item(self, item: Item, expected_version: int | None = None) -> None:
        """Collect what changed in an item, without the edges of its lists; see `link_item`."""
        id_ = id_of(item, "an item to update")
        origin = _origin_of(item)
        changes = changes_of(item)
        # An item made by hand is written even if it has nothing to say: the store knows whether it exists.
        if not changes and origin is not None and (expected_version is None or not any(edge_changes_of(item))):
            return
        dates = () if "dateModified" in changes else (("dateModified", item.dateModified),)
        self._add(UpdateItem(id_, changes, expected_version), (_settle, _undo, item, (id_, origin, dates)))
        edges, version = ({}, 0) if origin is None else (origin.edges, origin.version)
        _put_origin(item, Origin(properties_of(item), edges, version))

    def link_item(self, item: Item) -> None:
        """Collect what changed in an item's lists; after all items of the same batch, so that each has an id."""
        origin = _origin_of(item)
        if origin is None or not edge_targets(type(item)):
            return
        added, removed = edge_changes_of(item)
        if not (added or removed):
            return
        id_ = id_of(item, "the source of an edge")
        known = {name: dict.fromkeys(ids) for name, ids in origin.edges.items()}
        operations: list[Operation] = []
        for name, target in added:
            target_id = id_of(target, f"what {type(item).__name__}.{name} leads to")
            self._widen(item, name, target)
            operations.append(CreateEdge(id_, name, target_id))
            known.setdefault(name, {})[target_id] = None
        for name, target_id in removed:
            operations.append(DeleteEdge(id_, name, target_id))
            del known[name][target_id]
        # The last one stands for all of them: if a part ends before it, all are still to be written, which is harmless.
        for operation in operations:
            self._add(operation, (None, _undo_edges, item, origin.edges) if operation is operations[-1] else None)
        edges = {name: tuple(ids) for name, ids in known.items()}
        _put_origin(item, Origin(origin.properties, edges, origin.version))

    def delete_item(self, item: Item | str) -> None:
        """Collect the deletion of one item."""
        effect = (_settle_deleted, None, item, None) if isinstance(item, Item) else None
        self._add(DeleteItem(id_of(item, "an item to delete")), effect)

    def put_edge(self, kind: type[CreateEdge | DeleteEdge], edge: Edge) -> None:
        """Collect the creation or deletion of one edge that stands in no list, or perhaps in a list that is unaware."""
        source, target, name = edge.source, edge.target, edge.name
        operation = kind(id_of(source, "the source of an edge"), name, id_of(target, "the target of an edge"))
        if isinstance(source, str):
            self._add(operation, None)
            return
        if kind is CreateEdge and isinstance(target, Item):
            self._widen(source, name, target)
        # All edges of one list are settled together: one after the other, each would search the whole list.
        _, done = self._lists.setdefault((id(source), name), (source, []))
        self._add(operation, (lambda done, edge, _: done.append(edge), None, done, (target, kind is CreateEdge)))

    def _widen(self, source: Item, name: str, target: Item) -> None:
        key = (type(source).__name__, name, type(target).__name__)
        if key not in self._widened:
            self._widened.add(key)
            declaration = self._widening(source, name, target)
            if declaration is not None:
                self._add(declaration, None)

    # -- committing, giving up ----------------------------------------------------------------------------------------

    def mark(self) -> tuple[int, int]:
        """Return where this ends now, for `check_fits` and `undo`."""
        return len(self.operations), self._size_bytes

    def check_fits(self, mark: tuple[int, int]) -> None:
        """Accept what this grew by since ``mark``; InvalidError if all of it is no single batch any more."""
        self._size_bytes += sum(map(size_bytes, self.operations[mark[0] :]))
        length, size = self.mark()
        if length > MAX_OPERATIONS or size > MAX_BYTES:
            message = (
                f"a transaction cannot hold {length:,} operations of {size / 2**20:.1f} MiB: at most "
                f"{MAX_OPERATIONS:,} of {MAX_BYTES // 2**20} MiB can be written together"
            )
            raise InvalidError(message, operations=length, max_operations=MAX_OPERATIONS, max_bytes=MAX_BYTES)

    def batches(self, fence: Fence | None, *, in_parts: bool) -> list[Batch]:
        """Return all operations in their order: in one batch, or in as many as their size makes necessary."""
        return _batches(tuple(self.operations), fence, in_parts=in_parts) if self.operations else []

    def settle(self, start: int, results: Sequence[Result]) -> None:
        """Tell items what became of the operations from ``start`` on, which are committed."""
        for effect, result in zip(self._effects[start:], results, strict=False):
            if effect is not None and effect[0] is not None:
                effect[0](effect[2], effect[3], result)

    def settle_lists(self) -> None:
        """Tell lists of the edges that were given one by one, when no more will be committed."""
        for (_, name), (item, done) in self._lists.items():
            _settle_list(item, name, done)

    def forget(self) -> None:
        """Keep nothing of what was committed or given up: there is nothing left to undo."""
        self.operations.clear()
        self._effects.clear()
        self._lists.clear()

    def undo(self, mark: tuple[int, int] = (0, 0)) -> None:
        """Give up what was collected since ``mark``, the latest first."""
        at, self._size_bytes = mark
        for effect in reversed(self._effects[at:]):
            if effect is not None and effect[1] is not None:
                effect[1](effect[2], effect[3])
        del self.operations[at:], self._effects[at:]
        self._widened.clear()


def _batches(operations: tuple[Operation, ...], fence: Fence | None, *, in_parts: bool) -> list[Batch]:
    try:
        return [Batch(operations, fence)]
    except InvalidError:
        if not in_parts or len(operations) == 1:
            raise
    # Not halves where the number is the reason: parts of full length are fewer.
    cut = MAX_OPERATIONS if len(operations) > MAX_OPERATIONS else len(operations) // 2
    parts = (operations[:cut], operations[cut:])
    return [batch for part in parts for batch in _batches(part, fence, in_parts=True)]


def say_where(exc: BaseException, committed: Sequence[Operation]) -> None:
    """Add to an error how much of a bulk action is committed."""
    found = Counter(type(operation).__name__ for operation in committed)
    counts = {f"{verb.lower()}_items": found[f"{verb}Item"] for verb in ("Create", "Update", "Delete")}
    counts |= {f"{verb.lower()}_edges": found[f"{verb}Edge"] for verb in ("Create", "Delete")}
    if isinstance(exc, HoldfastError):
        at = exc.facts.get("operation")
        if isinstance(at, int):  # the store counts within a part
            exc.facts["operation"] = len(committed) + at
        exc.facts["committed"] = counts
    exc.add_note("committed before this: " + ", ".join(f"{count:,} {word}" for word, count in counts.items()))


# -- what an item knows -----------------------------------------------------------------------------------------------


def _origin_of(item: Item) -> Origin | None:
    return item._origin  # pyright: ignore[reportPrivateUsage] -- the other half of what `items` keeps there


def _put_origin(item: Item, origin: Origin | None) -> None:
    object.__setattr__(item, "_origin", origin)  # a new one each time: a copy of the item keeps the old one


def id_of(item: Item | str, what: str) -> str:
    """Return the id of ``item``, or itself if it is one; InvalidError, which begins with ``what``, if it has none."""
    id_: Any = item if isinstance(item, str) else getattr(item, "id", None)
    if id_ is None:
        message = f"{what}, {shown(item)}, has no id: create it first, or in the same bulk_action"
        raise InvalidError(message, value=shown(item))
    if not isinstance(id_, str):  # of an item that was constructed unchecked
        raise InvalidError(f"{what}, {shown(item)}, has the id {shown(id_)}: an id is text", value=shown(item))
    return id_


def _settle(item: Item, memory: _Memory, result: Written) -> None:
    origin = _origin_of(item)
    if origin is None:
        return
    values = vars(item)
    properties = dict(origin.properties)
    instant = values["dateServerModified"] = _instant(result.at_ms)
    for name, before in memory[2]:
        # A date that the program has assigned meanwhile is its own.
        if values[name] is before and (before is not None or name not in properties):
            values[name] = instant
            properties[name] = result.at_ms
    _put_origin(item, Origin(properties, origin.edges, result.version))


def _undo(item: Item, memory: _Memory) -> None:
    vars(item)["id"] = memory[0]
    _put_origin(item, memory[1])


def _undo_edges(item: Item, edges: dict[str, tuple[str, ...]]) -> None:
    origin = _origin_of(item)
    if origin is not None:  # its properties may be committed by now
        _put_origin(item, Origin(origin.properties, edges, origin.version))


def _settle_deleted(item: Item, _: None, result: Written) -> None:
    origin = _origin_of(item)
    if result.version:  # else there was no such item
        vars(item)["deleted"] = True
    if result.version and origin is not None:
        properties: dict[str, Value] = {**origin.properties, "deleted": True}
        _put_origin(item, Origin(properties, origin.edges, origin.version))
        if result.version != origin.version:
            _settle(item, (None, None, (("dateModified", item.dateModified),)), result)


def _settle_list(item: Item, name: str, done: Sequence[tuple[Item | str, bool]]) -> None:
    declared = edge_targets(type(item)).get(name)
    origin = _origin_of(item)
    if not done or declared is None or origin is None:
        return
    known = dict.fromkeys(origin.edges.get(name, ()))
    members: list[Any] = vars(item)[name]
    before = {member.id: member for member in members if isinstance(member, Item)}
    listed = dict(before)
    for target, is_created in done:
        id_ = id_of(target, "the target of an edge")
        known.pop(id_, None)
        if not is_created:
            listed.pop(id_, None)
        elif name in origin.edges and isinstance(target, declared):  # else it is not loaded, or cannot hold the target
            listed.setdefault(id_, before.get(id_, target))
        if is_created and id_ in listed:
            known[id_] = None
    kept = [member for member in members if not isinstance(member, Item) or member.id in listed]
    members[:] = [*kept, *(member for id_, member in listed.items() if id_ not in before)]
    _put_origin(item, Origin(origin.properties, {**origin.edges, name: tuple(known)}, origin.version))
