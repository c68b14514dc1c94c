"""Typed operations on a Store: items go in, items come out, and each item knows what became of it.

Hides how rows turn into items of the classes that a program declared, and how large writes are cut into parts. How
items turn into operations is `holdfast.pod.draft`'s. What a store is made of, and what may be written, neither knows.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self, TypeVar

from holdfast.errors import InvalidError, NotFoundError, UnavailableError
from holdfast.interrupts import deliver, uninterrupted
from holdfast.items import (
    ANY_TYPE,
    BUILT_IN,
    Edge,
    File,
    Item,
    ItemT,
    Schema,
    TypeDefinition,
    class_of,
    definition_of,
    edge_targets,
    load_edges,
    restore_item,
)
from holdfast.pod import files
from holdfast.pod.draft import Draft, id_of, say_where
from holdfast.pod.files import Files
from holdfast.runs import Fence
from holdfast.store import (
    CreateEdge,
    DeclareTypes,
    DeleteEdge,
    Direction,
    EdgeRow,
    Found,
    ItemRow,
    Operation,
    Query,
    Result,
    Store,
    query_from,
)
from holdfast.values import Value, item_id, shown

__all__ = ["Files", "Pod"]

T = TypeVar("T")
_Progress = Callable[[int, int], None] | None
_Made = dict[tuple[str, type[Item]], Item]
"""The items of one answer, by id and class: an item that occurs twice in it is one object."""


class _Blocks(threading.local):
    """The open transactions of each thread, by the task that opened them; None is the thread outside of any task.

    No context variable: a task inherits those of the one that starts it, and must not inherit its block.
    """

    def __init__(self) -> None:
        self.by_task: dict[object, Draft] = {}


class Pod:
    """Items and edges in a store, as Python objects.

    Several threads may use one Pod at once, but not one item. Every write is one batch: when the call returns it
    survives the death of this process and the loss of power, and when it raises nothing was written and its items are
    as they were, without an id if they had none. Three exceptions: `bulk_action` outside a transaction writes in parts;
    a KeyboardInterrupt that comes while a batch is committed is raised after that, and the items know it is there;
    and after UnavailableError (a lost reply is one) the batch is there whole or not at all. To repeat a `create`
    safely, give the item its id beforehand: a second attempt is then a ConflictError, not a second item.

    Only differences are written, so of two clients that change different properties of an item both are heard, and of
    two that change the same one the later; `update_item` with an expected version refuses instead.

    Args:
        store: What to read from and write to. It is closed with this Pod.
        fence: The right of the run that writes, carried by every batch; None for the owner.
        files: What keeps the bytes of files; None: nothing does.
    """

    def __init__(self, store: Store, *, fence: Fence | None = None, files: Files | None = None) -> None:
        self._store = store
        self._fence = fence
        self._files = files
        self._blocks = _Blocks()
        self._lock = threading.Lock()
        self._schema: Schema | None = None
        """As last read: good enough to make sense of what is read, and never believed for a write."""
        self._classes: dict[str, type[Item]] = {cls.__name__: cls for cls in BUILT_IN}
        self._made: dict[str, tuple[TypeDefinition, type[Item]]] = {}
        """Classes for types that nobody here has declared, each with the definition that it was made from."""

    def add_to_schema(self, *classes: type[Item] | Item) -> None:
        """Declare item types in the Pod, and read items of these types as these classes from now on.

        The types that their edges lead to are declared with them. What the Pod knows is not written again, so every
        start of a program may call this; what is new is added. An item stands for its class. Inside a transaction
        what is new is declared, and the classes are used, from the end of the block on.

        Raises:
            ConflictError: The Pod holds another definition; the message names both. Nothing was added.
            InvalidError: One is no item type, or its fields are none that a store holds.
        """
        given = [each if isinstance(each, type) else type(each) for each in classes]
        for cls in given:
            if not issubclass(cls, Item) or cls is Item:  # pyright: ignore[reportUnnecessaryIsInstance] -- untyped callers
                message = f"{shown(cls)} cannot be added to the schema: it must be a subclass of Item"
                raise InvalidError(message, value=shown(cls))
        reached = dict.fromkeys(given)
        ahead = list(given)
        while ahead:
            led_to = [cls for cls in edge_targets(ahead.pop()).values() if cls is not Item and cls not in reached]
            reached.update(dict.fromkeys(led_to))
            ahead += led_to
        schema = self._read_schema()
        new = tuple(each for each in map(definition_of, reached) if schema.joined((each,)) is not schema)
        # A class that is merely led to takes no other's place but a built-in one's.
        used = [cls for cls in reached if cls in given or self._classes.get(cls.__name__, cls) in (cls, *BUILT_IN)]
        by_name = {cls.__name__: cls for cls in used}
        if new:  # what a block declares and then gives up is nothing to read by
            self.add(DeclareTypes(new), lambda _: self._classes.update(by_name))
        else:
            self._classes.update(by_name)

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
        if type(limit) is not int or limit < 1:
            message = f"a page cannot have {shown(limit)} items: it has a whole number of them, 1 at least"
            raise InvalidError(message, limit=shown(limit))
        return self._pages(self._query(fields), limit)

    def get_edges(self, item: Item | str, direction: Direction | str = Direction.OUTGOING) -> list[Edge]:
        """Return the edges that begin at an item, or with ``"Incoming"`` those that lead to it, oldest first.

        The end that was asked about is what was given, an item or an id; the other one is an item. Edges to or from
        deleted items are left out.

        Raises:
            NotFoundError: There is no such item.
            InvalidError: The item has no id, or the direction is neither "Outgoing" nor "Incoming".
        """
        id_ = id_of(item, "the item whose edges are asked for")
        if direction not in (*Direction,):
            message = f"the direction of edges cannot be {shown(direction)}: it is one of {', '.join(Direction)}"
            raise InvalidError(message, direction=shown(direction))
        rows = self._store.list_edges([id_], Direction(direction)).get(id_, ()) if item_id.fullmatch(id_) else ()
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
        with self._drafting() as draft:
            for each in _listed([item], Item):
                draft.create_item(each)
                draft.link_item(each)
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
        with self._drafting() as draft:
            for each in _listed([item], Item):
                draft.update_item(each, expected_version)
                draft.link_item(each)

    def delete_items(self, items: Iterable[Item | str]) -> None:
        """Mark items as deleted, all of them or none; those that are absent or deleted already are passed over.

        Items or their ids may be given. An item's `deleted` says so afterwards. Its edges are not answered any more;
        setting `deleted` to False and `update_item` bring both back.

        Raises:
            InvalidError: An item has no id: it was never created; or there are too many for one batch.
        """
        with self._drafting() as draft:
            for item in _listed(items, Item, str):
                draft.delete_item(item)

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
        with self._drafting() as draft:
            for edge in _listed(edges, Edge):
                draft.put_edge(CreateEdge, edge)

    def delete_edges(self, edges: Iterable[Edge]) -> None:
        """Remove edges, all of them or none; one that is absent is passed over.

        If the source is an item, the target is not in its list afterwards.

        Raises:
            InvalidError: An end has no id, or there are too many for one batch.
        """
        with self._drafting() as draft:
            for edge in _listed(edges, Edge):
                draft.put_edge(DeleteEdge, edge)

    def bulk_action(
        self,
        create_items: Iterable[Item] = (),
        update_items: Iterable[Item] = (),
        delete_items: Iterable[Item | str] = (),
        create_edges: Iterable[Edge] = (),
        delete_edges: Iterable[Edge] = (),
        *,
        on_progress: _Progress = None,
    ) -> None:
        """Write much at once: new items, then changes, then edges (of the items' lists and given ones), then deletions.

        Items of one call may have each other in their lists, in circles too. Inside a transaction all of it joins the
        block. Outside, what does not fit into one batch (`MAX_OPERATIONS`, `MAX_BYTES`) is committed in parts, in this
        order; what can be checked without the store is checked before the first. After each part ``on_progress`` is
        called with the number of operations committed, and of all; what it raises stops the rest.

        When a part fails, or the process dies, the parts before it stay and those after it were not begun.
        ``error.facts["committed"]`` then says how much is there, as in ``{"create_items": 50000, "update_items": 0,
        "delete_items": 0, "create_edges": 0, "delete_edges": 0}``, where the edges of lists count as well. Items of
        committed parts know it, the others are as they were, so the rest may be given again. (After UnavailableError
        the part that failed may be there as well; see `Pod`.)

        Raises:
            InvalidError, ConflictError, NotFoundError: See the single operations. An operation that is larger than a
                batch may be is an InvalidError, and nothing was written.
        """
        new, changed, gone = _listed(create_items, Item), _listed(update_items, Item), _listed(delete_items, Item, str)
        linked, unlinked = _listed(create_edges, Edge), _listed(delete_edges, Edge)
        with self._drafting(in_parts=True, on_progress=on_progress) as draft, _no_garbage_collection():
            for item in new:
                draft.create_item(item)
            for item in changed:
                draft.update_item(item)
            for item in (*new, *changed):
                draft.link_item(item)
            for edge in linked:
                draft.put_edge(CreateEdge, edge)
            for edge in unlinked:
                draft.put_edge(DeleteEdge, edge)
            for each in gone:
                draft.delete_item(each)

    def add(self, operation: Operation, on_result: Callable[[Result], None] | None = None) -> None:
        """Write any operation: with the block inside a transaction, else at once.

        ``on_result`` is called with its result when the batch is committed, in the order of its operations, and not if
        it is not committed. What it raises reaches the caller, and undoes nothing.
        """
        with self._drafting() as draft:
            draft.add(operation, on_result)

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Collect what is written through this Pod from here on, and write it as one batch at the end of the block.

        Reads inside the block see what is committed, not what the block will write. An item that is created in it has
        its id at once, and its dates after the block. An exception discards the block: nothing is written, and the
        items are as they were, ids and differences included (what the program assigned stays assigned). So does a
        refusal by the store, which the ``with`` statement raises.

        The block belongs to the thread that opened it, and within asyncio to the task. Writes by others meanwhile are
        batches of their own, also by a thread or task that is started inside the block: it may outlive it.

        Raises:
            InvalidError: This thread or task has a block open already: they do not nest. From a write inside the
                block: it does not fit into one batch any more; it is not in the block, those before it are.
        """
        blocks, task = self._blocks.by_task, _current_task()
        if task in blocks:
            where = "thread" if task is None else "task"
            raise InvalidError(f"a transaction is open in this {where} already, and transactions do not nest")
        draft = blocks[task] = Draft(self._widening)
        try:
            try:
                yield
            finally:
                del blocks[task]  # of the one that opened it, whoever ends it: another task may close a generator
            self._commit(draft)
        except BaseException:
            draft.undo()  # nothing any more if it was committed
            raise

    @property
    def block(self) -> object | None:
        """The open transaction of this thread or task, to tell one from another; None outside of any."""
        return self._block()

    def variables(self, state: str, namespace: str = "") -> Mapping[str, Value]:
        """Return what is committed of one namespace of a plugin state, by name."""
        return self._store.list_variables(state, namespace)

    def find_snapshot(self, state: str) -> str | None:
        """Return the name of the snapshot that a plugin state resumes from; None if there is none."""
        return self._store.find_snapshot(state)

    # -- files --------------------------------------------------------------------------------------------------------

    def upload_file(self, source: bytes | str | os.PathLike[str], *, filename: str | None = None) -> File:
        """Keep bytes, or a file of this machine, and return the File item that describes them.

        If the Pod has a File item with this SHA-256, that one is returned and stays as it is. Else one is created
        first, with ``sha256``, ``size`` and ``filename`` (None: the name of the file), and then the bytes are kept: a
        process that dies between leaves an item without bytes, and uploading again brings them.

        Raises:
            NotFoundError: There is no such file on this machine.
            InvalidError: It cannot be read, or was changed while it was; or a transaction is open here, which could
                not take the bytes back.
            UnavailableError: This Pod keeps no files, or has no room for this one.
        """
        return files.upload(self, self._kept_files(), source, filename)

    def get_file(self, file: File | str) -> bytes:
        """Return the bytes of a file, of a File item or by SHA-256.

        Raises:
            NotFoundError: They were not uploaded, or not to their end.
            DamagedError: They are not what was uploaded.
            InvalidError: It is no SHA-256, or the item has none.
            UnavailableError: This Pod keeps no files.
        """
        return b"".join(self.iter_file(file))

    def iter_file(self, file: File | str) -> Iterator[bytes]:
        """Yield the bytes of a file in parts, for one that need not fit into memory; else as `get_file`.

        Each part is known to be right when it comes; that a later one is damaged is only known then.
        """
        return files.iterate(self._kept_files(), file)

    def delete_file(self, file: File | str) -> None:
        """Delete a File item, given as such or by its id, and its bytes, unless another item has the same ones.

        Raises:
            NotFoundError: There is no such item.
            InvalidError: It is no File, or a transaction is open here.
            UnavailableError: This Pod keeps no files.
        """
        files.delete(self, self._kept_files(), file)

    def _kept_files(self) -> Files:
        if self._files is None:
            raise UnavailableError("this Pod keeps no files: it was opened without a place for them")
        if self._block() is not None:
            raise InvalidError("files cannot be read or written inside a transaction: do it before or after")
        return self._files

    def close(self) -> None:
        """Close the store; twice is harmless."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- from rows to items -------------------------------------------------------------------------------------------

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

    def _class_for(self, row: ItemRow, edges: Iterable[EdgeRow] = ()) -> type[Item]:
        if row.type in self._classes:
            return self._classes[row.type]
        with self._lock:
            known, cls = self._made.get(row.type, (None, Item))
            names = {*row.properties, *(edge.name for edge in edges)}
            if known is None or not names <= {*known.properties, *known.edges}:
                definition = self._read_schema().type(row.type)
                cls = class_of(definition)
                self._made[row.type] = (definition, cls)
            return cls

    def _read_schema(self) -> Schema:
        self._schema = schema = self._store.schema()
        return schema

    # -- from drafts to batches ---------------------------------------------------------------------------------------

    def _block(self) -> Draft | None:
        return self._blocks.by_task.get(_current_task())

    @contextmanager
    def _drafting(self, *, in_parts: bool = False, on_progress: _Progress = None) -> Generator[Draft]:
        """Give one call where to put its operations: into the open block, or into a draft that is committed after."""
        block = self._block()
        draft = block or Draft(self._widening)
        mark = draft.mark()
        try:
            yield draft
            if block:
                draft.check_fits(mark)
            else:
                self._commit(draft, in_parts=in_parts, on_progress=on_progress)
        except BaseException:
            draft.undo(mark)  # nothing any more if it was committed, in whole or in part
            raise

    def _commit(self, draft: Draft, *, in_parts: bool = False, on_progress: _Progress = None) -> None:
        """Commit a draft and forget its operations. Ctrl-C waits for the end of a part: then items know it is there."""
        with uninterrupted():
            total, committed = len(draft.operations), 0
            try:
                for batch in draft.batches(self._fence, in_parts=in_parts):
                    deliver()  # between parts: whoever wants to stop need not wait for the last
                    with _no_garbage_collection():
                        results = self._store.apply(batch)
                        start, committed = committed, committed + len(results)
                        draft.settle(start, results)
                    if on_progress is not None:
                        on_progress(committed, total)
            except BaseException as exc:
                draft.undo((committed, 0))
                if in_parts:
                    say_where(exc, draft.operations)
                raise
            finally:
                draft.settle_lists()
                draft.forget()

    def _widening(self, source: Item, name: str, target: Item) -> DeclareTypes | None:
        """Let an edge lead to a subclass of what its class declares: the schema knows types, not who inherits whom."""
        type_, target_type = type(source).__name__, type(target).__name__
        leads_to: Sequence[str] = ()
        for schema in (self._schema, None):
            definition = (schema or self._read_schema()).get(type_)
            leads_to = () if definition is None else definition.edges.get(name, ())
            if target_type in leads_to or ANY_TYPE in leads_to:
                return None
        # Only what is declared is widened. An edge that the Pod does not know is the store's to refuse, by name.
        if not leads_to or not isinstance(target, edge_targets(type(source)).get(name, ())):
            return None
        return DeclareTypes((TypeDefinition(type_, edges={name: (target_type,)}),))


def _current_task() -> object:
    loaded = sys.modules.get("asyncio")  # not imported for its own sake: 50 ms of start-up, and most have no tasks
    try:
        return None if loaded is None else loaded.current_task()
    except (RuntimeError, AttributeError):  # no event loop runs in this thread, or it is just being imported
        return None


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


def _listed(values: Iterable[T], *kinds: type[Any]) -> list[T]:
    """Return what one call is about; text and items can be iterated over as well, and are never meant so."""
    given: Any = values  # callers may be untyped
    is_one = isinstance(given, str | Item | Edge) or not isinstance(given, Iterable)
    listed: list[T] = [] if is_one else list(values)
    for value in [values] if is_one else listed:
        if is_one or not isinstance(value, kinds):
            words = " or ".join(kind.__name__ for kind in kinds)
            message = f"{shown(value)} cannot be written: a list is expected, each of it {words}"
            raise InvalidError(message, value=shown(value))
    return listed
