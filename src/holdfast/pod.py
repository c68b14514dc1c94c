"""Typed operations on a Store: items go in, items come out, and each item knows what became of it.

Hides how items turn into operations of a batch, how large writes are cut into parts, and what a program's items learn
when a batch is committed or given up. What a store is made of, and which writes it allows, it does not know.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, Self

from holdfast.errors import ConflictError, HoldfastError, InvalidError, NotFoundError
from holdfast.items import (
    ANY_TYPE,
    BUILT_IN,
    Edge,
    Item,
    ItemT,
    Origin,
    Schema,
    TypeDefinition,
    changes_of,
    class_of,
    definition_of,
    edge_changes_of,
    edge_targets,
    load_edges,
    new_id,
    properties_of,
    restore_item,
)
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
    Direction,
    EdgeRow,
    Found,
    ItemRow,
    Operation,
    Query,
    Result,
    Store,
    UpdateItem,
    query_from,
    size_bytes,
)
from holdfast.values import Value, from_ms, item_id, shown

_Effect = tuple[Callable[[Any, Any, Any], None] | None, Callable[[Any, Any], None] | None, Any, Any]
"""What one operation means for an item: ``settle(item, memory, result)`` once it is committed, ``undo(item, memory)``
if it is given up; item; memory. Tuples, because a hundred thousand of them are made at once."""

_Dates = tuple[tuple[str, object], ...]
"""The dates of an item that the Pod sets with a write, each with what the item held before."""

_Memory = tuple[str | None, Origin | None, _Dates]
"""An item's id and origin before a write, and its dates: what `_settle` and `_undo` need."""

_NEW: Final[_Memory] = (None, None, (("dateCreated", None), ("dateModified", None)))

_Made = dict[tuple[str, type[Item]], Item]
"""The items of one answer, by id and class: an item that occurs twice in it is one object."""

_instant = lru_cache(maxsize=64)(from_ms)  # all items of one batch have the same date


class Pod:
    """Items and edges in a store, as Python objects.

    Several threads may use one Pod at once, but not one item. Every write is one batch: when the call returns it
    survives the death of this process and the loss of power, and when it raises nothing was written and its items are
    as they were, without an id if they had none. Two exceptions: `bulk_action` outside a transaction writes in parts;
    and after UnavailableError (a lost reply is one) the batch is there whole or not at all. To repeat a `create`
    safely, give the item its id beforehand: a second attempt is then a ConflictError, not a second item.

    Only differences are written, so of two clients that change different properties of an item both are heard, and of
    two that change the same one the later; `update_item` with an expected version refuses instead.

    Args:
        store: What to read from and write to. It is closed with this Pod.
        fence: The right of the run that writes, carried by every batch; None for the owner.
    """

    def __init__(self, store: Store, *, fence: Fence | None = None) -> None:
        self._store = store
        self._fence = fence
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._schema: Schema | None = None
        self._classes: dict[str, type[Item]] = {cls.__name__: cls for cls in BUILT_IN}
        self._made: dict[str, tuple[TypeDefinition, type[Item]]] = {}
        self._allowed: set[tuple[str, str, str]] = set()

    def add_to_schema(self, *classes: type[Item] | Item) -> None:
        """Declare item types in the Pod, and read items of these types as these classes from now on.

        The types that their edges lead to are declared with them. What the Pod knows is not written again, so every
        start of a program may call this; what is new is added. An item stands for its class.

        Raises:
            ConflictError: The Pod holds another definition; the message names both. Nothing was added.
            InvalidError: One is no item type, or its fields are none that a store holds.
        """
        given = [each if isinstance(each, type) else type(each) for each in classes]
        for cls in given:
            if not issubclass(cls, Item) or cls is Item:  # pyright: ignore[reportUnnecessaryIsInstance] -- untyped callers
                raise InvalidError(f"{cls.__name__} cannot be added to the schema: it must be a subclass of Item")
        reached = dict.fromkeys(given)
        ahead = list(given)
        while ahead:
            led_to = [cls for cls in edge_targets(ahead.pop()).values() if cls is not Item and cls not in reached]
            reached.update(dict.fromkeys(led_to))
            ahead += led_to
        schema = self._read_schema()
        new = tuple(each for each in map(definition_of, reached) if schema.joined((each,)) is not schema)
        if new:
            self.add(DeclareTypes(new))
        for cls in reached:
            # A class that is merely led to takes no other's place but a built-in one's.
            if cls in given or self._classes.get(cls.__name__, cls) in (cls, *BUILT_IN):
                self._classes[cls.__name__] = cls

    # -- reads --------------------------------------------------------------------------------------------------------

    def get(self, id: str, *, expanded: bool = True) -> Item:  # noqa: A002 -- the name that clients know
        """Return the item with this id.

        Args:
            id: The item's id.
            expanded: Load its lists with the items that its edges lead to (whose own lists stay empty, not loaded).
                A list holds only what its class declares; `get_edges` lists edges to items of other types as well.

        Raises:
            NotFoundError: It was never created, or it was deleted.
            InvalidError: The id is no text.
        """
        item = self.find(id, expanded=expanded)
        if item is None:
            raise NotFoundError(f"there is no item {shown(id)}: it was never created, or it was deleted", id=shown(id))
        return item

    def find(self, id: str, *, expanded: bool = True) -> Item | None:  # noqa: A002 -- as above
        """Return the item with this id as `get` does; None if it was never created, or was deleted."""
        if not isinstance(id, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- an unsaved item's id is None
            raise InvalidError(f"the id of an item cannot be {shown(id)}: it must be text", id=shown(id))
        if item_id.fullmatch(id) is None:  # no item can have it, and not every database can be asked for it
            return None
        # One search, not the item and then its edges: both are of one moment.
        found = self._store.search(Query(ids=(id,), outgoing=expanded))
        return self._restored(found, with_edges=expanded)[0] if found else None

    def exists(self, id: str) -> bool:  # noqa: A002 -- as above
        """Say whether there is an item with this id that was not deleted."""
        return self.find(id, expanded=False) is not None

    def search(self, fields: Mapping[str, Any]) -> list[Item]:
        """Return the items that have all of these fields, ordered by the date of their last write, oldest first.

        ``{"type": "Dog", "age>=": 3, "_limit": 10, "_sortOrder": "Desc", "[[edges]]": {}}``: properties by name (equal)
        or with ``>=``, ``<`` or ``==`` behind it, where None finds items without it; ``type``, ``ids``, ``deleted``,
        ``_limit``, ``_offset``, ``_sortOrder``. ``[[edges]]`` loads the lists as `get` does. ``~[[edges]]`` is accepted
        and changes nothing: an item has no place for the edges that lead to it (see `get_edges`).

        Raises:
            InvalidError: A field, its comparison or its value is none that there is; the message names it.
            DeniedError: The property is secret.
        """
        query = self._query(fields)
        return self._restored(self._store.search(query), with_edges=query.outgoing)

    def search_paginate(self, fields: Mapping[str, Any], limit: int = 50) -> Iterator[list[Item]]:
        """Yield what `search` returns in lists of at most ``limit`` items, none empty, reading as it goes.

        No item comes twice, even one that the loop itself writes. Items that others write meanwhile may be among them;
        in descending order such an item may be missed, for it moves to the front. ``_limit`` counts all pages.

        Raises:
            InvalidError, DeniedError: As `search`; at once, not with the first list.
        """
        if isinstance(limit, bool) or limit < 1:
            raise InvalidError(f"a page cannot have {shown(limit)} items: at least 1 is needed", limit=shown(limit))
        return self._pages(self._query(fields), limit)

    def get_edges(self, item: Item | str, direction: Direction | str = Direction.OUTGOING) -> list[Edge]:
        """Return the edges that begin at an item, or with ``"Incoming"`` those that lead to it, oldest first.

        The end that was asked about is what was given, an item or an id; the other one is an item. Edges to or from
        deleted items are left out.

        Raises:
            NotFoundError: There is no such item.
            InvalidError: The item has no id, or the direction is neither "Outgoing" nor "Incoming".
        """
        id_ = _id_of(item, "the item whose edges are asked for")
        if direction not in (*Direction,):
            message = f"the direction of edges cannot be {shown(direction)}: it is one of {', '.join(Direction)}"
            raise InvalidError(message, direction=shown(direction))
        rows = self._store.list_edges([id_], Direction(direction)).get(id_) or []
        if not rows:
            self.get(id_, expanded=False)  # it has no edges, or it is not there
        made: _Made = {}
        edges = [Edge(item, self._item(row.item, self._class_for(row.item), made), row.name) for row in rows]
        return edges if direction == Direction.OUTGOING else [Edge(each.target, item, each.name) for each in edges]

    # -- writes -------------------------------------------------------------------------------------------------------

    def create(self, item: ItemT) -> ItemT:
        """Write a new item with the edges of its lists, and return it with its id and dates.

        An item without an id is given one. The items in its lists must be in the Pod already, or be written with it
        by `bulk_action`.

        Raises:
            ConflictError: It was written or read before (`update_item` writes changes), or its id is taken, be it by
                a deleted item.
            InvalidError: Its type is not declared as it is; or an item in a list has no id or is of the wrong type.
            NotFoundError: An item in a list is not in the Pod.
        """
        with self._collecting() as work:
            self._create(work, item)
            self._link(work, item)
        return item

    def update_item(self, item: Item, *, expected_version: int | None = None) -> None:
        """Write what changed in an item and in its lists since it was last read or written; nothing if nothing did.

        An item that was made by hand under the id of one in the Pod is written onto that one: every property that it
        has is set, every item in its lists is linked, and what it does not have stays.

        Args:
            item: What to write.
            expected_version: Write only onto this version of the item; its lists count as part of it.

        Raises:
            NotFoundError: There is no item with this id, or an item in a list is not in the Pod.
            ConflictError: Another version is there; or a run may not move to this status, or is held by another.
            InvalidError: It has no id: it was never created. Else see `create`.
        """
        with self._collecting() as work:
            self._update(work, item, expected_version)
            self._link(work, item)

    def delete_items(self, items: Iterable[Item | str]) -> None:
        """Mark items as deleted, all of them or none; those that are absent or deleted already are passed over.

        Items or their ids may be given. An item's `deleted` says so afterwards. Its edges are not answered any more;
        setting `deleted` to False and `update_item` bring both back.

        Raises:
            InvalidError: An item has no id: it was never created; or there are too many for one batch.
        """
        with self._collecting() as work:
            self._delete(work, items)

    def create_edge(self, edge: Edge) -> None:
        """Write one edge, as `create_edges` does."""
        self.create_edges([edge])

    def create_edges(self, edges: Iterable[Edge]) -> None:
        """Write edges, all of them or none; one that exists already stays as it is.

        If the source is an item whose list for that edge is loaded, and the target an item, it is in the list
        afterwards.

        Raises:
            NotFoundError: An end is not in the Pod.
            InvalidError: An end has no id, the source's type has no such edge, it cannot lead to the target's type, or
                there are too many for one batch.
        """
        with self._collecting() as work:
            for edge in _several(edges, Edge):
                self._put_edge(work, edge, CreateEdge)

    def delete_edges(self, edges: Iterable[Edge]) -> None:
        """Remove edges, all of them or none; one that is absent is passed over.

        If the source is an item, the target is not in its list afterwards.

        Raises:
            InvalidError: An end has no id, or there are too many for one batch.
        """
        with self._collecting() as work:
            for edge in _several(edges, Edge):
                self._put_edge(work, edge, DeleteEdge)

    def bulk_action(
        self,
        create_items: Iterable[Item] = (),
        update_items: Iterable[Item] = (),
        delete_items: Iterable[Item | str] = (),
        create_edges: Iterable[Edge] = (),
        delete_edges: Iterable[Edge] = (),
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write much at once: new items, then changes, then edges (of the items' lists and given ones), then deletions.

        Items of one call may have each other in their lists, in circles too. Inside a transaction all of it joins the
        block. Outside, what does not fit into one batch (`MAX_OPERATIONS`, `MAX_BYTES`) is committed in parts, in this
        order; what can be checked without the store is checked before the first.

        When a part fails, or the process dies, the parts before it stay and those after it were not begun.
        ``error.facts["committed"]`` then says how much is there, as in ``{"create_items": 50000, "update_items": 0,
        "delete_items": 0, "create_edges": 0, "delete_edges": 0}``, where the edges of lists count as well. Items of
        committed parts know it, the others are as they were, so the rest may be given again. (After UnavailableError
        the part that failed may be there as well; see `Pod`.)

        Args:
            create_items: See `create`.
            update_items: See `update_item`.
            delete_items: See `delete_items`.
            create_edges: See `create_edges`.
            delete_edges: See `delete_edges`.
            on_progress: Called after each part with the number of operations committed, and of all; not inside a
                transaction, where nothing is committed yet. What it raises stops the rest.

        Raises:
            InvalidError, ConflictError, NotFoundError: See the single operations. An operation that is larger than a
                batch may be is an InvalidError, and nothing was written.
        """
        new, changed = _several(create_items, Item), _several(update_items, Item)
        with self._collecting(in_parts=True, on_progress=on_progress) as work, _no_garbage_collection():
            for item in new:
                self._create(work, item)
            for item in changed:
                self._update(work, item, None)
            for item in (*new, *changed):
                self._link(work, item)
            for edge in _several(create_edges, Edge):
                self._put_edge(work, edge, CreateEdge)
            for edge in _several(delete_edges, Edge):
                self._put_edge(work, edge, DeleteEdge)
            self._delete(work, delete_items)

    def add(self, operation: Operation, on_result: Callable[[Result], None] | None = None) -> None:
        """Write any operation: with the block inside a transaction, else at once.

        ``on_result`` is called with its result when the batch is committed, in the order of its operations, and not if
        it is not committed. What it raises reaches the caller, and undoes nothing.
        """
        with self._collecting() as work:
            work.add(operation, on_result and (lambda _, on_result, result: on_result(result), None, None, on_result))

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Collect what this thread writes through this Pod, and write it as one batch at the end of the block.

        Reads inside the block see what is committed, not what the block will write. An item that is created in it has
        its id at once, and its dates after the block. An exception discards the block: nothing is written, and the
        items are as they were, ids and differences included (what the program assigned stays assigned). A batch that
        the store refuses is discarded as well, and the ``with`` statement raises why.

        The block belongs to the thread that opened it: writes by other threads are batches of their own meanwhile.

        Raises:
            InvalidError: A block is open in this thread already: they do not nest. Inside the block: this write does
                not fit into one batch any more; it is not in the block, those before it are.
        """
        if self._block() is not None:
            raise InvalidError("a transaction is open in this thread already, and transactions do not nest")
        work = self._thread.work = _Work()
        try:
            yield
        except BaseException:
            work.undo()
            raise
        finally:
            self._thread.work = None
        self._commit(work)

    def close(self) -> None:
        """Close the store; twice is harmless."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- reading: from rows to items ----------------------------------------------------------------------------------

    def _query(self, fields: Mapping[str, Any]) -> Query:
        if not isinstance(fields, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] -- callers may be untyped
            raise InvalidError(f"a search cannot be {shown(fields)}: it must be a dict of fields", fields=shown(fields))
        try:
            query = query_from(fields, self._schema or self._read_schema())
        except InvalidError:  # the type or property may be younger than the schema at hand
            query = query_from(fields, self._read_schema())
        return replace(query, incoming=False)

    def _pages(self, query: Query, limit: int) -> Iterator[list[Item]]:
        left = query.limit
        seen: set[int] = set()
        while left is None or left > 0:
            size = limit if left is None else min(limit, left)
            found = self._store.search(replace(query, limit=size))
            # An item that is written meanwhile moves to the end of the order and is met again: a loop that updates
            # what it reads would never end.
            new = [each for each in found if each.position[1] not in seen]
            seen.update(each.position[1] for each in new)
            if new:
                yield self._restored(new, with_edges=query.outgoing)
            if len(found) < size:
                return
            left = None if left is None else left - len(new)
            query = replace(query, after=found[-1].position, offset=0)

    def _restored(self, found: Sequence[Found], *, with_edges: bool) -> list[Item]:
        made: _Made = {}
        items = [self._item(each.item, self._class_for(each.item, each.edges), made) for each in found]
        for item, each in zip(items, found, strict=True) if with_edges else ():
            lists: dict[str, list[Item]] = {}
            targets = edge_targets(type(item))
            for row in each.edges:
                cls, declared = self._class_for(row.item), targets.get(row.name)
                if declared is None or not issubclass(cls, declared):
                    if declared is None or declared.__name__ != row.item.type:
                        continue  # the list keeps the word of its class; what is not loaded is not removed either
                    cls = declared  # two classes declare one type: here the list's own counts
                lists.setdefault(row.name, []).append(self._item(row.item, cls, made))
            load_edges(item, lists)
        return items

    def _item(self, row: ItemRow, cls: type[Item], made: _Made) -> Item:
        item = made.get((row.id, cls))
        if item is None:
            dates = {"dateCreated": row.created_ms, "dateModified": row.modified_ms}
            properties: dict[str, Value] = {**row.properties, **dates, "dateServerModified": row.server_modified_ms}
            if row.is_deleted:
                properties["deleted"] = True
            item = made[row.id, cls] = restore_item(cls, row.id, properties, version=row.version)
        return item

    def _class_for(self, row: ItemRow, edges: Sequence[EdgeRow] = ()) -> type[Item]:
        if row.type in self._classes:
            return self._classes[row.type]
        with self._lock:
            known, cls = self._made.get(row.type, (TypeDefinition(row.type), None))
            named = {*row.properties, *(edge.name for edge in edges)}
            if cls is None or not named <= {*known.properties, *known.edges}:
                definition = self._read_schema().type(row.type)
                if cls is None or definition != known:
                    cls = class_of(definition)
                    self._made[row.type] = (definition, cls)
            return cls

    def _read_schema(self) -> Schema:
        self._schema = schema = self._store.schema()
        return schema

    # -- writing: from items to operations ----------------------------------------------------------------------------

    def _create(self, work: _Work, item: Item) -> None:
        values = vars(item)
        given = values["id"]
        if _origin_of(item) is not None:
            message = f"{shown(item)} cannot be created: it was written or read before; update_item writes its changes"
            raise ConflictError(message, id=given)
        id_ = given or new_id()
        properties = properties_of(item)
        # First how to undo, then what is to be undone: this may be interrupted anywhere.
        memory = _NEW if given is None else (given, None, _NEW[2])
        work.add(CreateItem(id_, type(item).__name__, properties), (_settle, _undo, item, memory))
        values["id"] = id_
        targets = edge_targets(type(item))
        _put_origin(item, Origin(properties, dict.fromkeys(targets, ()) if targets else {}, 0))

    def _update(self, work: _Work, item: Item, expected_version: int | None) -> None:
        id_ = _id_of(item, "an item to update")
        origin = _origin_of(item)
        changes = changes_of(item)
        # An item made by hand is written even if it has nothing to say: the store knows whether it exists.
        if not changes and origin is not None and (expected_version is None or not any(edge_changes_of(item))):
            return
        dates = () if "dateModified" in changes else (("dateModified", item.dateModified),)
        work.add(UpdateItem(id_, changes, expected_version), (_settle, _undo, item, (id_, origin, dates)))
        edges, version = ({}, 0) if origin is None else (origin.edges, origin.version)
        _put_origin(item, Origin(properties_of(item), edges, version))

    def _delete(self, work: _Work, items: Iterable[Item | str]) -> None:
        for item in _several(items, (Item, str)):
            effect = (_settle_deleted, None, item, None) if isinstance(item, Item) else None
            work.add(DeleteItem(_id_of(item, "an item to delete")), effect)

    def _link(self, work: _Work, item: Item) -> None:
        """Write the differences of an item's lists; after all items of the call, so that each has its id."""
        origin = _origin_of(item)
        if origin is None or not edge_targets(type(item)):
            return
        added, removed = edge_changes_of(item)
        if not (added or removed):
            return
        id_ = _id_of(item, "the source of an edge")
        known = {name: dict.fromkeys(ids) for name, ids in origin.edges.items()}
        operations: list[Operation] = []
        for name, target in added:
            target_id = _id_of(target, f"what {type(item).__name__}.{name} leads to")
            self._allow(work, item, name, target)
            operations.append(CreateEdge(id_, name, target_id))
            known.setdefault(name, {})[target_id] = None
        for name, target_id in removed:
            operations.append(DeleteEdge(id_, name, target_id))
            del known[name][target_id]
        # The last one stands for all of them: if a part ends before it, all are still to be written, which is harmless.
        for operation in operations:
            work.add(operation, (None, _undo_edges, item, origin.edges) if operation is operations[-1] else None)
        edges = {name: tuple(ids) for name, ids in known.items()}
        _put_origin(item, Origin(origin.properties, edges, origin.version))

    def _put_edge(self, work: _Work, edge: Edge, kind: type[CreateEdge | DeleteEdge]) -> None:
        source, target, name = edge.source, edge.target, edge.name
        operation = kind(_id_of(source, "the source of an edge"), name, _id_of(target, "the target of an edge"))
        if isinstance(source, str):
            return work.add(operation, None)
        if kind is CreateEdge and isinstance(target, Item):
            self._allow(work, source, name, target)
        # All edges of one list are settled together: one after the other, each would search the whole list.
        _, done = work.lists.setdefault((id(source), name), (source, []))
        return work.add(operation, (_settle_edge, None, done, (target, kind is CreateEdge)))

    def _allow(self, work: _Work, item: Item, name: str, target: Item) -> None:
        """Let an edge lead to a subclass of what its class declares: the schema knows types, not who inherits whom."""
        key = (type(item).__name__, name, type(target).__name__)
        if key in self._allowed or key in work.asked:
            return
        work.asked.add(key)
        leads_to: tuple[str, ...] = ()
        for schema in (self._schema, None):
            definition = (schema or self._read_schema()).get(key[0])
            leads_to = () if definition is None else definition.edges.get(name, ())
            if key[2] in leads_to or ANY_TYPE in leads_to:
                self._allowed.add(key)
                return
        # Only what is declared is widened. An edge that the Pod does not know is the store's to refuse, by name.
        if leads_to and isinstance(target, edge_targets(type(item)).get(name, ())):
            work.add(DeclareTypes((TypeDefinition(key[0], edges={name: (key[2],)}),)), None)

    # -- writing: from operations to batches --------------------------------------------------------------------------

    def _block(self) -> _Work | None:
        return getattr(self._thread, "work", None)

    @contextmanager
    def _collecting(
        self, *, in_parts: bool = False, on_progress: Callable[[int, int], None] | None = None
    ) -> Generator[_Work]:
        """Give one call where to put its operations: into the open block, or into work that is committed after it."""
        block = self._block()
        work = block or _Work()
        mark = len(work.operations), work.size_bytes
        try:
            yield work
            if block:
                work.check_fits(mark[0])
        except BaseException:
            work.undo(*mark)
            raise
        if not block:
            self._commit(work, in_parts=in_parts, on_progress=on_progress)

    def _commit(
        self, work: _Work, *, in_parts: bool = False, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        operations = work.operations
        committed = 0
        try:
            for batch in _batches(tuple(operations), self._fence, in_parts=in_parts) if operations else ():
                results = self._store.apply(batch)
                start, committed = committed, committed + len(results)
                with _no_garbage_collection():
                    for effect, result in zip(work.effects[start:committed], results, strict=True):
                        if effect is not None and effect[0] is not None:
                            effect[0](effect[2], effect[3], result)
                if on_progress is not None:
                    on_progress(committed, len(operations))
        except BaseException as exc:
            work.undo(committed)
            if in_parts:
                _say_where(exc, operations)
            raise
        finally:
            for (_, name), (item, done) in work.lists.items():
                _settle_list(item, name, done)


class _Work:
    """Operations that were collected and are not committed yet, and what they mean for items."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.effects: list[_Effect | None] = []
        self.lists: dict[tuple[int, str], tuple[Item, list[tuple[Item | str, bool]]]] = {}
        """Lists of items whose edges are given one by one: those that are committed, and whether they were created."""
        self.asked: set[tuple[str, str, str]] = set()
        self.size_bytes = 0

    def add(self, operation: Operation, effect: _Effect | None) -> None:
        self.operations.append(operation)
        self.effects.append(effect)

    def check_fits(self, start: int) -> None:
        """Accept what a block grew by since ``start``; InvalidError if it is no batch any more."""
        self.size_bytes += sum(map(size_bytes, self.operations[start:]))
        if len(self.operations) > MAX_OPERATIONS or self.size_bytes > MAX_BYTES:
            message = (
                f"a transaction cannot hold {len(self.operations):,} operations of {self.size_bytes / 2**20:.1f} MiB: "
                f"at most {MAX_OPERATIONS:,} of {MAX_BYTES // 2**20} MiB can be written together"
            )
            facts = {"operations": len(self.operations), "bytes": self.size_bytes}
            raise InvalidError(message, **facts, max_operations=MAX_OPERATIONS, max_bytes=MAX_BYTES)

    def undo(self, start: int = 0, size: int = 0) -> None:
        """Give up what was collected from ``start`` on, the latest first."""
        for effect in reversed(self.effects[start:]):
            if effect is not None and effect[1] is not None:
                effect[1](effect[2], effect[3])
        del self.operations[start:], self.effects[start:]
        self.asked.clear()
        self.size_bytes = size


def _batches(operations: tuple[Operation, ...], fence: Fence | None, *, in_parts: bool) -> list[Batch]:
    """Return the batches that hold ``operations`` in their order: one, or as many as their size makes necessary."""
    if in_parts and len(operations) > MAX_OPERATIONS:
        cuts = range(0, len(operations), MAX_OPERATIONS)
        parts = [_batches(operations[at : at + MAX_OPERATIONS], fence, in_parts=True) for at in cuts]
        return [batch for part in parts for batch in part]
    try:
        return [Batch(operations, fence)]
    except InvalidError:
        if not in_parts or len(operations) == 1:
            raise
        middle = len(operations) // 2
        return [
            *_batches(operations[:middle], fence, in_parts=True),
            *_batches(operations[middle:], fence, in_parts=True),
        ]


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    """Make no full collections while many objects are made that all stay: each would walk every item there is."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# -- what an item in the program's hands learns -----------------------------------------------------------------------


def _origin_of(item: Item) -> Origin | None:
    return item._origin  # pyright: ignore[reportPrivateUsage] -- only this module knows what was written


def _put_origin(item: Item, origin: Origin | None) -> None:
    object.__setattr__(item, "_origin", origin)  # a new one each time: a copy of the item keeps the old one


def _settle(item: Item, memory: _Memory, result: Any) -> None:
    """Note a committed write; a date that the program has assigned meanwhile is its own."""
    origin = _origin_of(item)
    if origin is None:
        return
    values = vars(item)
    properties = dict(origin.properties)
    instant = values["dateServerModified"] = _instant(result.at_ms)
    for name, before in memory[2]:
        if values[name] is before and (before is not None or name not in properties):
            values[name] = instant
            properties[name] = result.at_ms
    _put_origin(item, Origin(properties, origin.edges, result.version))


def _undo(item: Item, memory: _Memory) -> None:
    vars(item)["id"] = memory[0]
    _put_origin(item, memory[1])


def _settle_deleted(item: Item, _: None, result: Any) -> None:
    if result.version:  # else there was no such item
        vars(item)["deleted"] = True
        origin = _origin_of(item)
        if origin is not None:
            _put_origin(item, Origin({**origin.properties, "deleted": True}, origin.edges, origin.version))
            if result.version != origin.version:
                _settle(item, (None, None, (("dateModified", item.dateModified),)), result)


def _undo_edges(item: Item, edges: dict[str, tuple[str, ...]]) -> None:
    origin = _origin_of(item)
    if origin is not None:  # its properties may be in the Pod by now
        _put_origin(item, Origin(origin.properties, edges, origin.version))


def _settle_edge(done: list[tuple[Item | str, bool]], edge: tuple[Item | str, bool], _: None) -> None:
    done.append(edge)


def _settle_list(item: Item, name: str, done: Sequence[tuple[Item | str, bool]]) -> None:
    """Note edges that were given one by one, and committed, in the list that holds their targets."""
    declared = edge_targets(type(item)).get(name)
    origin = _origin_of(item)
    if not done or declared is None or origin is None:
        return
    known = dict.fromkeys(origin.edges.get(name, ()))
    members: list[Any] = vars(item)[name]
    listed = {member.id: member for member in members if isinstance(member, Item)}
    before = dict(listed)
    for target, is_created in done:
        id_ = _id_of(target, "the target of an edge")
        known.pop(id_, None)
        if not is_created:
            listed.pop(id_, None)
            continue
        if name in origin.edges and isinstance(target, declared):  # else the list is not loaded, or cannot hold it
            listed.setdefault(id_, before.get(id_, target))
        if id_ in listed:
            known[id_] = None
    kept = [member for member in members if not isinstance(member, Item) or member.id in listed]
    members[:] = [*kept, *(member for id_, member in listed.items() if id_ not in before)]
    _put_origin(item, Origin(origin.properties, {**origin.edges, name: tuple(known)}, origin.version))


# -- checking ---------------------------------------------------------------------------------------------------------


def _id_of(item: Item | str, what: str) -> str:
    id_ = item if isinstance(item, str) else getattr(item, "id", None)
    if id_ is None:
        message = f"{what}, {shown(item)}, has no id: create it first, or in the same bulk_action"
        raise InvalidError(message, value=shown(item))
    return id_


def _several(values: Iterable[Any], kinds: type[Any] | tuple[type[Any], ...]) -> list[Any]:
    """Return what one call is about; text and items can be iterated over as well, and are never meant so."""
    is_one = isinstance(values, str | Item | Edge)
    listed = [values] if is_one else list(values)
    for value in listed:
        if is_one or not isinstance(value, kinds):
            expected = "edges" if kinds is Edge else "items" if kinds is Item else "items or ids"
            message = f"{shown(value)} cannot be written: a list of {expected} is expected"
            raise InvalidError(message, value=shown(value))
    return listed


def _say_where(exc: BaseException, committed: Sequence[Operation]) -> None:
    """Add to an error how much of a bulk action stays."""
    found = Counter(type(operation).__name__ for operation in committed)
    names = ("CreateItem", "UpdateItem", "DeleteItem", "CreateEdge", "DeleteEdge")
    counts = {f"{name[:6].lower()}_{name[6:].lower()}s": found[name] for name in names}
    if isinstance(exc, HoldfastError):
        at = exc.facts.get("operation")
        if isinstance(at, int):  # the store counts within a part
            exc.facts["operation"] = len(committed) + at
        exc.facts["committed"] = counts
    if committed:
        exc.add_note("committed before this: " + ", ".join(f"{counts[word]:,} {word}" for word in counts))
