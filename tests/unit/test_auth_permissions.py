"""A plugin with a token is the attacker: it reaches `Permitted` and nothing else, and gets what is its own."""

import inspect
import json
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import holdfast.store.operations as op
from holdfast.auth import Permitted, Rights, Token
from holdfast.auth.permissions import RULES
from holdfast.errors import ConflictError, DeniedError, FencedError, HoldfastError, InvalidError, NotFoundError
from holdfast.items import PropertyDefinition, TypeDefinition
from holdfast.runs import Fence, Lease, Status
from holdfast.sql import SqliteStore
from holdfast.store import Batch, Condition, Direction, Found, ItemRow, Operation, Query, Result, Store, Written
from holdfast.store.query import Comparison
from holdfast.testing import FakeClock, JsonStore, MemoryStore
from holdfast.values import Kind

PAGE = Path(__file__).resolve().parents[2] / "docs" / "permissions.md"
T0 = 1_000_000
MARK = "kept-from-plugins"
"""In all that the plugin of these tests must not learn."""

_TEXT, _SECRET = PropertyDefinition(Kind.TEXT), PropertyDefinition(Kind.TEXT, is_secret=True)
BOOK = TypeDefinition("Book", {"title": _TEXT, "price": _SECRET}, {"author": ("Person",), "any": ("Item",)})
SHELF = TypeDefinition("Shelf", {"name": _TEXT}, {"holds": ("Book",), "any": ("Item",)})
DIARY = TypeDefinition("Diary", {"text": _TEXT, "pin": _SECRET}, {"about": ("Item",)})
NOTE = TypeDefinition("Note", {"text": _TEXT, "pin": _SECRET}, {"to": ("Note",), "any": ("Item",)})

TOKEN = Token(
    owner="0a" * 32,
    state="mine",
    run="r1",
    epoch=1,
    holder="h1",
    rights=Rights(reads=frozenset({"Book"}), writes=frozenset({"Shelf"})),
    expires_ms=2**53,
)
"""Of run r1 on plugin state "mine", which may read books and write shelves, and has brought notes."""

WORLD: list[Operation] = [
    op.DeclareTypes((BOOK, SHELF, DIARY)),
    op.CreateItem("mine", "PersistentState", {"pluginId": "m:Mine"}),
    op.CreateItem("other", "PersistentState", {"pluginId": "m:Other", "lastState": MARK}),
    op.CreateItem("r1", "PluginRun", {"config": "{}", "reads": '["Book"]', "writes": '["Shelf"]'}),
    op.CreateItem("r2", "PluginRun", {"config": MARK}),
    op.CreateEdge("r1", "pluginState", "mine"),
    op.CreateEdge("r2", "pluginState", "other"),
    op.CreateItem("a1", "Account", {"handle": "ada", "secret": "of my own"}),
    op.CreateItem("a2", "Account", {"handle": MARK, "secret": MARK}),
    op.CreateEdge("r1", "account", "a1"),
    op.CreateEdge("r2", "account", "a2"),
    op.CreateItem("v1", "CVUStoredDefinition", {"name": "my view"}),
    op.CreateItem("v2", "CVUStoredDefinition", {"name": MARK}),
    op.CreateEdge("mine", "view", "v1"),
    op.CreateItem("g1", "Plugin", {"config": MARK}),
    op.CreateEdge("r1", "plugin", "g1"),
    op.CreateItem("p1", "Person", {"firstName": MARK}),
    op.CreateItem("b1", "Book", {"title": "Emma", "price": MARK}),
    op.CreateItem("s1", "Shelf", {"name": MARK}),
    op.CreateItem("d1", "Diary", {"text": MARK, "pin": MARK}),
    op.CreateItem("d2", "Diary", {"text": MARK, "deleted": True}),
    op.CreateEdge("b1", "author", "p1"),
    op.CreateEdge("d1", "about", "b1"),
    op.CreateEdge("s1", "holds", "b1"),
    op.SetVariable("mine", "n", 1),
    op.SetVariable("other", "n", MARK),
    op.PointSnapshot("mine", "snap-1"),
    op.PointSnapshot("other", MARK),
    op.AskQuestion("q1", "mine", "r1", "k", "{}"),
    op.AskQuestion("q2", "other", "r2", "k", MARK),
    *(op.AppendLog(run, "l1", "", "9", MARK) for run in ("r1", "r2")),
    op.ClaimLease("mine", "r1", "h1", 60_000),
    op.MoveRun("r1", Status.STARTED),
]
MINE: list[Operation] = [
    op.DeclareTypes((NOTE,)),
    op.CreateItem("n1", "Note", {"text": "mine", "pin": "1234"}),
    op.CreateEdge("n1", "any", "b1"),
]
IDS = ["mine", "other", "r1", "r2", "a1", "a2", "v1", "v2", "g1", "p1", "b1", "s1", "d1", "d2", "n1", "absent"]


class Kept(MemoryStore):
    """A store that does something once between two of its calls, as another process would."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.meanwhile: Callable[[], object] | None = None

    def find_items(self, ids: Any) -> Mapping[str, ItemRow]:
        """Return items; then it happens."""
        found = super().find_items(ids)
        happening, self.meanwhile = self.meanwhile, None
        if happening is not None:
            happening()
        return found


@pytest.fixture
def clock() -> FakeClock:
    """The clock of the Pod."""
    return FakeClock(T0)


@pytest.fixture
def pod(clock: FakeClock) -> Kept:
    """Return the Pod with all that is in it, and two runs at work."""
    return filled(Kept(clock=clock))


def filled(pod: Any) -> Any:
    """Fill a Pod: what the owner has, what the other run has, and what the run of the token has brought."""
    for operations in (WORLD, [op.ClaimLease("other", "r2", "h2", 60_000)]):
        apply(pod, *operations)
    apply(Permitted(pod, TOKEN), *MINE)
    return pod


@pytest.fixture
def plugin(pod: Kept) -> Permitted:
    """Return what the plugin reaches."""
    return Permitted(pod, TOKEN)


def apply(store: Store, *operations: Operation, **how: Any) -> tuple[Result, ...]:
    """Apply operations in one batch."""
    return store.apply(Batch(operations, **how))


def everything(pod: Store) -> Any:
    """Return all that is in a Pod, to be compared."""
    states = ("mine", "other")
    return (
        pod.schema(),
        sorted(pod.search(Query(is_deleted=None, outgoing=True)), key=lambda each: each.item.id),
        [(pod.list_variables(each), pod.list_variables(each, "holdfast")) for each in states],
        [(pod.find_lease(each), pod.find_snapshot(each), pod.list_questions(each)) for each in states],
        [(pod.list_log(each), pod.find_log_end(each, "l1")) for each in ("r1", "r2")],
    )


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the facts of what was logged as denied; whatever else was logged, no value is in it."""
    assert MARK not in caplog.text
    names = ("owner", "state", "run", "operation", "type")
    return [
        {name: getattr(record, name) for name in names}
        for record in caplog.records
        if record.getMessage() == "access.denied"
    ]


# -- writing ----------------------------------------------------------------------------------------------------------

DENIED: list[tuple[Operation, str | None]] = [
    # Items of types that it has no right to write, read or not.
    (op.CreateItem("x", "Person"), "Person"),
    (op.CreateItem("x", "Diary"), "Diary"),
    (op.CreateItem("x", "Book"), "Book"),
    (op.CreateItem("x", "Nothing"), "Nothing"),
    (op.CreateItem("x", "no\ntype"), r"'no\ntype'"),
    (op.UpdateItem("b1", {"title": "x"}), "Book"),
    (op.UpdateItem("d1", {"text": "x"}), "Diary"),
    (op.UpdateItem("d2", {"deleted": False}), "Diary"),
    (op.UpdateItem("d1", {}), "Diary"),
    (op.UpdateItem("d1", {"text": "x"}, 7), "Diary"),
    (op.DeleteItem("b1"), "Book"),
    (op.DeleteItem("d1"), "Diary"),
    (op.DeleteItem("d2"), "Diary"),
    # Runs and plugin states, its own and others', accounts and views.
    (op.CreateItem("x", "PluginRun", {"reads": '["Diary"]'}), "PluginRun"),
    (op.CreateItem("x", "PersistentState", {"ownTypes": '["Diary"]'}), "PersistentState"),
    (op.CreateItem("x", "Account"), "Account"),
    (op.CreateItem("x", "CVUStoredDefinition"), "CVUStoredDefinition"),
    *((op.UpdateItem("r1", {name: "[]"}), "PluginRun") for name in ("reads", "writes", "config", "containerImage")),
    *((op.UpdateItem("r1", {name: "x"}), "PluginRun") for name in ("pluginModule", "pluginName", "settings", "state")),
    (op.UpdateItem("r1", {"status": "done", "reads": '["Diary"]'}), "PluginRun"),
    (op.UpdateItem("r1", {"reads": None}), "PluginRun"),
    (op.UpdateItem("r1", {"deleted": True}), "PluginRun"),
    (op.UpdateItem("mine", {"ownTypes": '["Diary"]'}), "PersistentState"),
    (op.UpdateItem("mine", {"name": "x"}), "PersistentState"),
    (op.UpdateItem("mine", {"pluginId": "m:Other"}), "PersistentState"),
    (op.UpdateItem("mine", {"deleted": True}), "PersistentState"),
    (op.DeleteItem("r1"), "PluginRun"),
    (op.DeleteItem("mine"), "PersistentState"),
    (op.UpdateItem("r2", {"status": "done"}), "PluginRun"),
    (op.UpdateItem("other", {"lastState": "x"}), "PersistentState"),
    (op.DeleteItem("r2"), "PluginRun"),
    (op.DeleteItem("other"), "PersistentState"),
    (op.UpdateItem("a1", {"secret": "x"}), "Account"),
    (op.UpdateItem("a2", {"secret": "x"}), "Account"),
    (op.UpdateItem("v1", {"name": "x"}), "CVUStoredDefinition"),
    # Edges from what it may not write, and to what it may not read.
    (op.CreateEdge("b1", "any", "n1"), "Book"),
    (op.CreateEdge("d1", "about", "n1"), "Diary"),
    (op.DeleteEdge("b1", "author", "p1"), "Book"),
    (op.DeleteEdge("d1", "about", "b1"), "Diary"),
    (op.CreateEdge("n1", "any", "p1"), "Person"),
    (op.CreateEdge("n1", "any", "d1"), "Diary"),
    (op.CreateEdge("n1", "any", "d2"), "Diary"),
    (op.CreateEdge("n1", "any", "a2"), "Account"),
    (op.CreateEdge("n1", "any", "r2"), "PluginRun"),
    (op.CreateEdge("n1", "any", "other"), "PersistentState"),
    (op.CreateEdge("s1", "any", "v2"), "CVUStoredDefinition"),
    (op.CreateEdge("r1", "account", "a2"), "Account"),
    (op.CreateEdge("mine", "account", "a2"), "Account"),
    (op.CreateEdge("r1", "view", "v2"), "CVUStoredDefinition"),
    (op.CreateEdge("r1", "pluginState", "mine"), "PluginRun"),
    (op.CreateEdge("r1", "pluginState", "other"), "PluginRun"),
    (op.DeleteEdge("r1", "pluginState", "mine"), "PluginRun"),
    (op.CreateEdge("r2", "view", "v1"), "PluginRun"),
    (op.DeleteEdge("r2", "account", "a2"), "PluginRun"),
    (op.CreateEdge("other", "view", "v1"), "PersistentState"),
    # The schema of others.
    (op.DeclareTypes((DIARY,)), "Diary"),
    (op.DeclareTypes((TypeDefinition("Diary", {"mine": _TEXT}),)), "Diary"),
    (op.DeclareTypes((TypeDefinition("Diary", {"text": PropertyDefinition(Kind.INTEGER)}),)), "Diary"),
    (op.DeclareTypes((TypeDefinition("Book", {"mine": _TEXT}),)), "Book"),
    (op.DeclareTypes((TypeDefinition("Book", {"title": _SECRET}),)), "Book"),
    (op.DeclareTypes((TypeDefinition("Account", {"mine": _TEXT}),)), "Account"),
    (op.DeclareTypes((TypeDefinition("PluginRun", edges={"account": ("Item",)}),)), "PluginRun"),
    (op.DeclareTypes((TypeDefinition("PluginRun", edges={"view": ("Diary",)}),)), "PluginRun"),
    (op.DeclareTypes((TypeDefinition("PersistentState", {"mine": _TEXT}),)), "PersistentState"),
    (op.DeclareTypes((TypeDefinition("Shelf", {"name": _SECRET}),)), "Shelf"),
    (op.DeclareTypes((TypeDefinition("Shelf", {"name": PropertyDefinition(Kind.TEXT, is_indexed=True)}),)), "Shelf"),
    # What is of another plugin state or run, and what is the owner's or the user's.
    (op.SetVariable("other", "n", 1), None),
    (op.SetVariable("nowhere", "n", 1), None),
    (op.IncrementVariable("other", "n"), None),
    (op.DeleteVariable("other", "n"), None),
    (op.PointSnapshot("other", None), None),
    (op.SetProgress("r2", 0.5), None),
    (op.SetProgress("n1", 0.5), None),
    (op.MoveRun("r2", Status.DONE), None),
    (op.AskQuestion("x", "other", "r1", "x", "{}"), None),
    (op.AskQuestion("x", "mine", "r2", "x", "{}"), None),
    (op.AnswerQuestion("q1", "1"), None),
    (op.AnswerQuestion("q2", "1"), None),
    (op.DeleteQuestion("q2"), None),
    (op.ClaimLease("other", "r1", "h1", 60_000), None),
    (op.ClaimLease("mine", "r2", "h1", 60_000), None),
    (op.ClaimLease("mine", "r1", "h2", 60_000), None),
    (op.ClaimLease("mine", "r1", "h2", 60_000, "h1"), None),
    (op.RenewLease(Fence(state="other", epoch=1, holder="h2"), 60_000), None),
    (op.RenewLease(Fence(state="mine", epoch=2, holder="h1"), 60_000), None),
    (op.ReleaseLease(Fence(state="other", epoch=1, holder="h2")), None),
    (op.EndLease("mine"), None),
    (op.EndLease("other"), None),
    (op.CancelLease("mine"), None),
    (op.CancelLease("other", 1), None),
    (op.AppendLog("r1", "l1", "9", "10", "x"), None),
    (op.AppendLog("r2", "l1", "9", "10", "x"), None),
    (op.ExpireLogs(T0), None),
]
"""Each with the type that is logged."""


@pytest.mark.parametrize("operation, type_", DENIED, ids=repr)
def test_what_is_not_its_own_and_in_no_right_is_denied(
    operation: Operation, type_: str | None, pod: Kept, plugin: Permitted, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else is in the batch; nothing changes, it is logged once, and the error does not tell what is there."""
    before = everything(pod)
    allowed = op.SetVariable("mine", "n", 2)
    for batch in ((operation,), (allowed, operation, allowed)):
        caplog.clear()
        with pytest.raises(DeniedError) as caught:
            apply(plugin, *batch)
        assert caught.value.facts["operation"] == len(batch) // 2
        if isinstance(operation, op.DeleteQuestion):  # whose it is the store sees, and refuses in its own words
            assert "'other'" not in f"{caught.value}{caught.value.facts}"
        else:
            assert str(caught.value).startswith("run 'r1' may not ")
        known = {"CreateItem", "DeclareTypes"}  # there it is the plugin that names the type
        if type(operation).__name__ not in known and type_ is not None and "r1" not in repr(operation):
            assert type_ not in str(caught.value)
        assert everything(pod) == before
        name = next(name for name, kind in op.OPERATIONS.items() if kind is type(operation))
        told = {"owner": TOKEN.owner, "state": "mine", "run": "r1", "operation": name, "type": type_}
        assert logged(caplog) == [told]


ALLOWED: list[tuple[list[Operation], Result | str]] = [
    ([op.CreateItem("x", "Note", {"text": "x"})], Written("x", 1, T0)),
    ([op.CreateItem("x", "Shelf")], Written("x", 1, T0)),
    ([op.UpdateItem("n1", {"text": "x", "pin": None, "deleted": True}, 1)], Written("n1", 2, T0)),
    ([op.UpdateItem("s1", {"name": "x"})], Written("s1", 2, T0)),
    ([op.DeleteItem("n1")], Written("n1", 2, T0)),
    ([op.DeleteItem("s1")], Written("s1", 2, T0)),
    ([op.DeleteItem("absent")], Written("absent", 0, T0)),
    ([op.CreateItem("x", "Note"), op.UpdateItem("x", {"text": "x"})], Written("x", 2, T0)),
    ([op.DeleteItem("x"), op.CreateItem("x", "Note")], Written("x", 1, T0)),
    ([op.CreateItem("x", "Note"), op.CreateEdge("n1", "to", "x")], None),
    ([op.CreateEdge("n1", "any", "b1")], None),
    ([op.CreateEdge("n1", "any", "s1")], None),
    ([op.CreateEdge("n1", "any", "a1")], None),
    ([op.CreateEdge("n1", "any", "r1")], None),
    ([op.CreateEdge("n1", "any", "mine")], None),
    ([op.CreateEdge("s1", "holds", "b1")], None),
    ([op.DeleteEdge("s1", "holds", "b1")], None),
    ([op.DeleteEdge("n1", "any", "b1")], None),
    ([op.DeleteEdge("n1", "any", "p1")], None),
    ([op.DeleteEdge("absent", "any", "p1")], None),
    ([op.CreateEdge("r1", "view", "v1")], None),
    ([op.CreateEdge("r1", "account", "a1")], None),
    ([op.CreateEdge("mine", "account", "a1")], None),
    ([op.DeleteEdge("mine", "view", "v1")], None),
    ([op.UpdateItem("r1", {"status": "daemon", "error": "x", "progress": 0.5, "authUrl": "x"})], Written("r1", 3, T0)),
    ([op.UpdateItem("r1", {"retryAt": T0})], Written("r1", 3, T0)),
    ([op.UpdateItem("mine", {"lastState": "x"})], Written("mine", 3, T0)),
    ([op.DeclareTypes((NOTE,))], None),
    ([op.DeclareTypes((TypeDefinition("Note", {"more": _SECRET}, {"about": ("Diary",)}),))], None),
    ([op.DeclareTypes((TypeDefinition("Note", {"text": _SECRET}),))], None),
    ([op.DeclareTypes((TypeDefinition("Shelf", {"more": _TEXT}, {"holds": ("Note",)}),))], None),
    ([op.DeclareTypes((BOOK, SHELF))], None),
    ([op.DeclareTypes((TypeDefinition("PluginRun", {"config": _TEXT}),))], None),
    ([op.SetVariable("mine", "n", 2, "", op.Expected(1))], None),
    ([op.SetVariable("mine", "snapshots", "[]", "holdfast")], None),
    ([op.IncrementVariable("mine", "n")], 2),
    ([op.DeleteVariable("mine", "n")], None),
    ([op.SetProgress("r1", 0.5)], Written("r1", 3, T0)),
    ([op.MoveRun("r1", Status.ERROR, "x")], Written("r1", 3, T0)),
    ([op.PointSnapshot("mine", None)], None),
    ([op.AskQuestion("x", "mine", "r1", "x", "{}")], "Question"),
    ([op.DeleteQuestion("q1")], None),
    ([op.DeleteQuestion("absent")], None),
    ([op.ClaimLease("mine", "r1", "h1", 90_000)], "Lease"),
    ([op.RenewLease(TOKEN.fence, 90_000)], "Lease"),
    ([op.ReleaseLease(TOKEN.fence)], "Lease"),
]
"""Each with the result of its last operation, or the type of that."""


@pytest.mark.parametrize("operations, result", ALLOWED, ids=repr)
@pytest.mark.parametrize("fence", [None, TOKEN.fence], ids=["", "fenced"])
def test_what_is_its_own_or_in_its_rights_is_done(
    operations: list[Operation],
    result: Result | str,
    fence: Fence | None,
    plugin: Permitted,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the results that the store gives, also where another operation stood in its place."""
    results = apply(plugin, *operations, fence=fence)

    assert len(results) == len(operations)
    assert type(results[-1]).__name__ == result if isinstance(result, str) else results[-1] == result
    assert logged(caplog) == []


def test_only_what_needs_no_right_is_done_without_a_look_at_the_items(pod: Kept, plugin: Permitted) -> None:
    """One look for a batch, however long it is, and none for a renewal or a variable."""
    looks: list[int] = []
    find_items = pod.find_items
    pod.find_items = lambda ids: looks.append(len(ids)) or find_items(ids)  # pyright: ignore[reportAttributeAccessIssue]
    apply(plugin, op.RenewLease(TOKEN.fence, 60_000))
    apply(plugin, op.SetVariable("mine", "n", 1), op.MoveRun("r1", Status.STARTED), op.PointSnapshot("mine", "x"))
    assert looks == []
    apply(plugin, *(op.CreateItem(f"x{number}", "Note") for number in range(100)), op.DeleteItem("n1"))
    assert looks == [3]


@pytest.mark.parametrize(
    "fence",
    [
        Fence(state="other", epoch=1, holder="h2"),
        Fence(state="mine", epoch=2, holder="h1"),
        Fence(state="mine", epoch=1, holder="h2"),
    ],
)
def test_another_fence_than_the_tokens_is_denied(fence: Fence, pod: Kept, plugin: Permitted) -> None:
    """Be it a true one of another run."""
    before = everything(pod)
    for operation in (op.SetVariable(fence.state, "n", 2), op.RenewLease(fence, 60_000)):
        with pytest.raises(DeniedError, match="another fence than its token"):
            apply(plugin, operation, fence=fence)
    assert everything(pod) == before


def test_what_does_not_exist_is_not_found(plugin: Permitted) -> None:
    """As everywhere; an error says which end of an edge it is."""
    for operation, message in [
        (op.UpdateItem("absent", {}), "^there is no item 'absent' to update$"),
        (op.CreateEdge("absent", "any", "b1"), "^the source 'absent' of edge 'any' does not exist$"),
        (op.CreateEdge("n1", "any", "absent"), "^the target 'absent' of edge 'any' does not exist$"),
    ]:
        with pytest.raises(NotFoundError, match=message) as caught:
            apply(plugin, op.SetVariable("mine", "n", 2), operation)
        assert caught.value.facts["operation"] == 1


def test_a_right_to_runs_is_one_to_read_them(pod: Kept) -> None:
    """Who could write all of them could give any plugin any right."""
    types = frozenset({"PluginRun", "PersistentState", "Schedule"})
    plugin = Permitted(pod, replace(TOKEN, rights=Rights(reads=types, writes=types)))
    assert plugin.find_items(["r2", "other"]).keys() == {"r2", "other"}
    for operation in (
        op.CreateItem("x", "PluginRun"),
        op.CreateItem("x", "Schedule", {"pluginModule": "m", "writes": '["Book"]', "interval": 1}),
        op.UpdateItem("r2", {"config": "x"}),
        op.UpdateItem("r1", {"reads": "[]"}),
        op.DeclareTypes((TypeDefinition("PluginRun", {"mine": _TEXT}),)),
        op.CreateEdge("r2", "view", "v1"),
    ):
        with pytest.raises(DeniedError):
            apply(plugin, operation)


def test_an_account_of_its_own_is_one_that_it_made_with_the_edge(pod: Kept) -> None:
    """Who may read and write all accounts gets no secrets of others by taking one for its own."""
    types = frozenset({"Account"})
    plugin = Permitted(pod, replace(TOKEN, rights=Rights(reads=types, writes=types)))
    for source in ("r1", "mine"):
        with pytest.raises(DeniedError, match=r"^run 'r1' may not take account 'a2' for its own: only its owner may"):
            apply(plugin, op.CreateEdge(source, "account", "a2"))
    apply(plugin, op.CreateItem("x", "Account", {"secret": "s"}), op.CreateEdge("r1", "account", "x"))
    found = plugin.find_items(["a1", "a2", "x"])
    assert {id_: row.properties.get("secret") for id_, row in found.items()} == {
        "a1": "of my own",
        "a2": None,
        "x": "s",
    }


def test_a_view_of_its_own_is_one_that_it_made_with_the_edge_or_may_read(pod: Kept) -> None:
    """To write all views is no right to read one by taking it for its own."""
    types = frozenset({"CVUStoredDefinition"})
    plugin = Permitted(pod, replace(TOKEN, rights=Rights(writes=types)))
    apply(plugin, op.CreateItem("w", "CVUStoredDefinition"))
    for source in ("r1", "mine"):
        for view in ("v2", "w"):
            with pytest.raises(DeniedError, match=f"^run 'r1' may not take view '{view}' for its own: only its owner"):
                apply(plugin, op.CreateEdge(source, "view", view))
    apply(plugin, op.CreateItem("x", "CVUStoredDefinition"), op.CreateEdge("r1", "view", "x"))
    apply(plugin, op.CreateEdge("r1", "view", "v1"), op.CreateEdge("mine", "view", "x"))
    assert plugin.find_items(["v1", "x"]).keys() == {"v1", "x"}
    apply(Permitted(pod, replace(TOKEN, rights=Rights(reads=types))), op.CreateEdge("r1", "view", "v2"))


# -- types of its own -------------------------------------------------------------------------------------------------

NEW = TypeDefinition("New", {"text": _TEXT})


def own_types(pod: Store) -> Any:
    """Return what stands at the plugin state."""
    return json.loads(str(pod.find_items(["mine"])["mine"].properties["ownTypes"]))


def test_a_type_that_the_pod_does_not_know_becomes_its_own(pod: Kept, plugin: Permitted) -> None:
    """From the operation on, in one batch with what is made of it, and for later runs of the plugin state."""
    assert own_types(pod) == ["Note"]
    results = apply(
        plugin,
        op.UpdateItem("mine", {"lastState": "x"}),
        op.DeclareTypes((NEW, NOTE, TypeDefinition("Newer"))),
        op.DeclareTypes((TypeDefinition("New", {"more": _TEXT}),)),
        op.CreateItem("x", "New", {"more": "x"}),
    )
    assert results == (Written("mine", 3, T0), None, None, Written("x", 1, T0))
    assert own_types(pod) == ["New", "Newer", "Note"]

    apply(pod, op.EndLease("mine"), op.ClaimLease("mine", "r1", "h9", 60_000))
    later = Permitted(pod, replace(TOKEN, epoch=3, holder="h9", rights=Rights()))
    apply(later, op.UpdateItem("x", {"text": "x"}))
    assert [each.item.id for each in later.search(Query(type="New"))] == ["x"]


def test_a_type_is_its_own_only_if_the_batch_was_applied(pod: Kept, plugin: Permitted) -> None:
    """Before the operation it is none, and a batch that is refused brings none."""
    for operations in (
        (op.CreateItem("x", "New"), op.DeclareTypes((NEW,))),
        (op.DeclareTypes((NEW,)), op.CreateItem("d1", "New")),
        (op.DeclareTypes((NEW,)), op.DeleteItem("d1")),
    ):
        with pytest.raises(HoldfastError):
            apply(plugin, *operations)
        assert own_types(pod) == ["Note"]
        assert "New" not in pod.schema()


def test_a_type_of_one_plugin_state_is_not_anothers(pod: Kept, plugin: Permitted) -> None:
    """The other one is not told what it holds; the right to it is for the owner to give."""
    token = Token(owner=TOKEN.owner, state="other", run="r2", epoch=1, holder="h2", rights=Rights(), expires_ms=2**53)
    other = Permitted(pod, token)
    assert "Note" not in other.schema()
    for operation in (op.DeclareTypes((NOTE,)), op.CreateItem("x", "Note"), op.DeleteItem("n1")):
        with pytest.raises(DeniedError):
            apply(other, operation)
    with pytest.raises(DeniedError):
        other.search(Query(type="Note"))
    granted = Permitted(pod, replace(token, rights=Rights(reads=frozenset({"Note"}))))
    assert [each.item.properties for each in granted.search(Query(type="Note"))] == [{"text": "mine"}]


@pytest.mark.parametrize("text", ["", "Diary", "null", '{"Diary": 1}', "[[]]", "[1]", "[" * 10**5])
def test_own_types_that_cannot_be_read_are_none(text: str, pod: Kept, plugin: Permitted) -> None:
    """What the owner may have written there by hand opens nothing."""
    apply(pod, op.UpdateItem("mine", {"ownTypes": text}), fence=TOKEN.fence)
    for type_ in ("Note", "Diary"):
        with pytest.raises(DeniedError):
            plugin.search(Query(type=type_))


def test_a_type_that_another_declares_meanwhile_is_not_its_own(
    pod: Kept, plugin: Permitted, caplog: pytest.LogCaptureFixture
) -> None:
    """Between the look and the write: else it would read whatever the other one keeps there."""
    pod.meanwhile = lambda: apply(pod, op.DeclareTypes((NEW,)), op.CreateItem("x", "New", {"text": MARK}))
    with pytest.raises(DeniedError, match=r"^run 'r1' may not declare type 'New': the Pod has one, which is neither"):
        apply(plugin, op.DeclareTypes((NEW,)))
    assert own_types(pod) == ["Note"]
    assert len(logged(caplog)) == 1


def test_types_that_two_threads_of_a_run_declare_at_once_are_all_its_own(pod: Kept, plugin: Permitted) -> None:
    """The same one or different ones: none is forgotten, and nobody is refused."""
    for meanwhile in ((NEW,), (TypeDefinition("Newer"),)):
        pod.meanwhile = lambda types=meanwhile: apply(plugin, op.DeclareTypes(types))
        apply(plugin, op.DeclareTypes((TypeDefinition("New" if meanwhile[0] is NEW else "Newest"),)))
    assert own_types(pod) == ["New", "Newer", "Newest", "Note"]


# -- between the look and the write -----------------------------------------------------------------------------------


def test_what_comes_into_being_meanwhile_is_not_touched(pod: Kept, plugin: Permitted) -> None:
    """It was not there when it was looked; whose it would be nobody had asked."""

    def created() -> None:
        apply(pod, op.CreateItem("late", "Diary", {"text": MARK}), op.CreateEdge("late", "about", "b1"))

    def gone() -> None:
        for table in (pod._items, pod._sequence):
            table.pop("late")
        pod._edges = {edge: None for edge in pod._edges if edge.source != "late"}

    for operation in (
        op.UpdateItem("late", {"text": "x"}),
        op.DeleteItem("late"),
        op.DeleteEdge("late", "about", "b1"),
        op.CreateEdge("late", "about", "b1"),
        op.CreateEdge("n1", "any", "late"),
        op.CreateItem("late", "Note"),
    ):
        pod.meanwhile = created
        with suppress(NotFoundError, ConflictError):
            apply(plugin, operation)
        [found] = pod.search(Query(ids=("late",), outgoing=True, incoming=True))
        assert (found.item.version, found.item.properties) == (1, {"text": MARK})
        assert [(edge.name, edge.item.id) for edge in found.edges] == [("about", "b1")]
        gone()
    pod.meanwhile = created
    assert plugin.search(Query(ids=("late",))) == []
    gone()
    pod.meanwhile = created
    assert plugin.list_edges(["late", "n1"], Direction.OUTGOING).keys() == {"n1"}


READS: dict[str, Callable[[Store], Any]] = {
    "schema": lambda store: store.schema(),
    "find_items": lambda store: store.find_items(["r1", "b1", "n1", "a1"]),
    "search": lambda store: store.search(Query(ids=("b1", "n1"), outgoing=True)),
    "search by type": lambda store: store.search(Query(type="Account")),
    "list_edges": lambda store: store.list_edges(["n1", "b1"], Direction.INCOMING),
    "list_variables": lambda store: store.list_variables("mine"),
    "find_lease": lambda store: store.find_lease("mine"),
    "find_snapshot": lambda store: store.find_snapshot("mine"),
    "list_questions": lambda store: store.list_questions("mine"),
}
"""Each read that may be."""


class Losing:
    """A store of which a plugin state is lost after so many calls."""

    def __init__(self, pod: Kept, calls: int) -> None:
        self.pod, self.calls, self.called = pod, calls, list[str]()

    def __getattr__(self, name: str) -> Any:
        """Return a method that answers, and then it is lost."""

        def method(*args: Any, **named: Any) -> Any:
            answer = getattr(self.pod, name)(*args, **named)
            self.called.append(name)
            if len(self.called) == self.calls:
                apply(self.pod, op.EndLease("mine"))
            return answer

        return method


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_read_during_which_the_plugin_state_is_lost_is_not_answered(
    read: Callable[[Store], Any], clock: FakeClock
) -> None:
    """After whichever of its looks that was: what it saw may be what the next run has written."""
    whole = Losing(filled(Kept(clock=clock)), 0)
    read(Permitted(whole, TOKEN))  # pyright: ignore[reportArgumentType]
    assert whole.called[-1] == "find_lease"
    for calls in range(1, len(whole.called)):
        losing = Losing(filled(Kept(clock=clock)), calls)
        with pytest.raises(FencedError):
            read(Permitted(losing, TOKEN))  # pyright: ignore[reportArgumentType]


WRITES: list[list[Operation]] = [
    [op.CreateItem("x", "Note")],
    [op.UpdateItem("absent", {})],
    [op.UpdateItem("d1", {})],
    [op.DeclareTypes((NEW,))],
    [op.CreateEdge("r1", "account", "a2")],
    [op.SetVariable("mine", "n", 2)],
    [op.SetVariable("other", "n", 2)],
    [op.ClaimLease("mine", "r1", "h1", 60_000)],
    [op.RenewLease(TOKEN.fence, 60_000)],
    [op.MoveRun("r1", Status.DONE)],
    [op.AnswerQuestion("q1", "1")],
    [],
]


@pytest.mark.parametrize(
    "lost",
    [
        [op.EndLease("mine")],
        [op.EndLease("mine"), op.ClaimLease("mine", "r2", "h9", 60_000)],
        [op.EndLease("mine"), op.ClaimLease("mine", "r1", "h1", 60_000)],
    ],
    ids=["taken", "claimed", "claimed with the same holder"],
)
def test_a_token_whose_claim_is_over_is_refused_everything(
    lost: list[Operation], pod: Kept, plugin: Permitted, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is answered, written, or told by another error; each time is logged. The clock goes on."""
    apply(pod, *lost)
    before = everything(pod)
    for read in READS.values():
        with pytest.raises(FencedError):
            read(plugin)
    for operations in WRITES:
        with pytest.raises(FencedError):
            apply(plugin, *operations)
    assert everything(pod) == before
    assert len(logged(caplog)) == len(READS) + len(WRITES)
    assert plugin.now_ms() == T0


def test_a_token_that_was_given_back_is_refused_everything_but_to_give_it_back_again(
    pod: Kept, plugin: Permitted
) -> None:
    """As when the answer to that was lost."""
    end = (op.MoveRun("r1", Status.DONE), op.ReleaseLease(TOKEN.fence))
    assert apply(plugin, *end, key="k") == apply(plugin, *end, key="k")
    for read in READS.values():
        with pytest.raises(FencedError):
            read(plugin)
    with pytest.raises(FencedError):
        apply(plugin, op.SetVariable("mine", "n", 2))


def test_a_claim_that_lapsed_and_that_nobody_took_is_good(clock: FakeClock, plugin: Permitted) -> None:
    """As without a token; it is renewed by claiming it with the holder of the token."""
    clock.advance(90_000)
    apply(plugin, op.SetVariable("mine", "n", 2))
    lease = Lease(state="mine", epoch=1, holder="h1", run="r1", expires_ms=T0 + 150_000)
    results = apply(plugin, op.ClaimLease("mine", "r1", "h1", 60_000), op.MoveRun("r1", Status.STARTED))
    assert results == (lease, Written("r1", 3, T0 + 90_000))
    assert plugin.find_lease("mine") == lease


@pytest.mark.parametrize("status", [Status.DONE, Status.ERROR, Status.ABORTED])
def test_a_run_that_has_ended_keeps_its_own_things_until_it_gives_them_back(
    status: Status, pod: Kept, plugin: Permitted
) -> None:
    """Its runner takes a last snapshot; items, types and accounts are no business of its any more."""
    apply(plugin, op.MoveRun("r1", status))

    apply(plugin, op.SetVariable("mine", "n", 2), op.PointSnapshot("mine", "last"), op.RenewLease(TOKEN.fence, 60_000))
    assert plugin.find_items(["r1", "mine"]).keys() == {"r1", "mine"}
    assert plugin.list_edges(["r1"], Direction.OUTGOING)["r1"][0].item.id == "mine"
    assert [each.item.id for each in plugin.search(Query(type="PluginRun"))] == ["r1"]
    assert plugin.search(Query(type="Account")) == []
    assert (plugin.find_snapshot("mine"), plugin.list_variables("mine")) == ("last", {"n": 2})
    for call in (
        lambda: plugin.find_items(["n1"]),
        lambda: plugin.find_items(["a1"]),
        lambda: plugin.search(Query(type="Note")),
        lambda: plugin.search(Query(ids=("b1",))),
        lambda: apply(plugin, op.CreateItem("x", "Note")),
        lambda: apply(plugin, op.UpdateItem("n1", {})),
        lambda: apply(plugin, op.DeleteItem("s1")),
        lambda: apply(plugin, op.CreateEdge("n1", "any", "r1")),
        lambda: apply(plugin, op.DeclareTypes((NEW,))),
        lambda: apply(plugin, op.DeclareTypes((NOTE,))),
    ):
        with pytest.raises(DeniedError, match=r"^run 'r1' may not .*: it has ended$"):
            call()
    assert "Note" not in plugin.schema()
    apply(plugin, op.MoveRun("r1", status), op.ReleaseLease(TOKEN.fence))


def test_a_run_or_plugin_state_that_is_gone_has_no_rights(clock: FakeClock) -> None:
    """A store may be asked with a token of what it does not have."""
    run, state = op.CreateItem("r1", "PluginRun"), op.CreateItem("mine", "PersistentState")
    deleted = {"deleted": True}
    for there in (
        [],
        [run],
        [state],
        [replace(run, properties=deleted), state],
        [run, replace(state, properties=deleted)],
    ):
        pod = Kept(clock=clock)
        apply(pod, op.ClaimLease("mine", "r1", "h1", 60_000), *there)
        plugin = Permitted(pod, TOKEN)
        for operation in (op.CreateItem("x", "Shelf"), op.DeclareTypes((NEW,))):
            with pytest.raises(DeniedError, match="it has ended"):
                apply(plugin, operation)
        apply(plugin, op.SetVariable("mine", "n", 1))


# -- reading ----------------------------------------------------------------------------------------------------------


def ids_of(found: list[Found]) -> list[str]:
    """Return the ids of what was found."""
    return sorted(each.item.id for each in found)


@pytest.mark.parametrize("id_", ["other", "r2", "a2", "v2", "g1", "p1", "s1", "d1", "d2"])
def test_an_item_that_it_may_not_read_is_denied_by_id(
    id_: str, pod: Kept, plugin: Permitted, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else is asked, and whether or not it would match; the log tells its type, the error does not."""
    type_ = pod.find_items([id_])[id_].type
    no_match = (Condition("title", Comparison.EQUAL, "nothing is called so"),)
    calls: dict[str, Callable[[], object]] = {
        "find_items": lambda: plugin.find_items(["n1", id_]),
        "search": lambda: plugin.search(Query(ids=("n1", id_))),
        "list_edges": lambda: plugin.list_edges([id_, "n1"], Direction.INCOMING),
    }
    calls_of = [*calls.items(), ("search", lambda: plugin.search(Query(ids=(id_,), conditions=no_match, limit=0)))]
    for name, call in calls_of:
        caplog.clear()
        with pytest.raises(DeniedError) as caught:
            call()
        message = f"run 'r1' may not read item {id_!r}: it is not its own, and of no type in its 'reads'"
        assert (str(caught.value), caught.value.facts) == (message, {"run": "r1"})
        told = {"owner": TOKEN.owner, "state": "mine", "run": "r1", "operation": name, "type": type_}
        assert logged(caplog) == [told]


@pytest.mark.parametrize("type_", ["Person", "Shelf", "Diary", "Photo", "Nothing", "no type", ""])
def test_a_search_for_a_type_that_it_may_not_read_is_denied(type_: str, plugin: Permitted) -> None:
    """Whether there is such a type, and whether items of it were asked for by id, or none."""
    for query in (Query(type=type_), Query(type=type_, ids=()), Query(type=type_, ids=("n1",), limit=0)):
        with pytest.raises(DeniedError, match="the type is neither its own nor in its 'reads'"):
            plugin.search(query)


def test_a_search_needs_a_type_or_ids(plugin: Permitted) -> None:
    """Else it would go through everything."""
    for query in (Query(), Query(is_deleted=None, limit=1), Query(conditions=())):
        with pytest.raises(DeniedError, match=r"its search needs a type, or ids$"):
            plugin.search(query)
    assert plugin.search(Query(ids=())) == []


def test_what_it_may_read_is_found(pod: Kept, plugin: Permitted) -> None:
    """By id and by type, as without a token; what is absent is left out."""
    ids = ["mine", "r1", "a1", "v1", "b1", "n1"]
    found = plugin.find_items([*ids, "absent"])
    assert list(found) == ids
    assert ids_of(plugin.search(Query(ids=(*ids, "absent")))) == sorted(ids)
    assert ids_of(plugin.search(Query(type="Book"))) == ["b1"]
    assert ids_of(plugin.search(Query(type="Note", ids=("n1", "d1", "b1")))) == ["n1"]
    [alone] = plugin.search(Query(type="Note"))
    assert replace(alone, edges=()) == pod.search(Query(type="Note"))[0]


@pytest.mark.parametrize(
    "type_, own", [("PluginRun", "r1"), ("PersistentState", "mine"), ("Account", "a1"), ("CVUStoredDefinition", "v1")]
)
def test_a_search_for_runs_plugin_states_accounts_and_views_finds_its_own(
    type_: str, own: str, plugin: Permitted
) -> None:
    """So that a plugin which looks for its view, or its account, needs no right."""
    assert ids_of(plugin.search(Query(type=type_))) == [own]
    assert ids_of(plugin.search(Query(type=type_, ids=(own, "r2", "a2", "v2", "other", "n1")))) == [own]
    marked = (Condition("handle", Comparison.EQUAL, MARK),)
    assert plugin.search(Query(type=type_, ids=("r2", "a2", "v2", "other"))) == []
    assert plugin.search(Query(type=type_, conditions=marked if type_ == "Account" else (), is_deleted=True)) == []


def test_an_edge_to_what_it_may_not_read_is_left_out(plugin: Permitted) -> None:
    """At either end, in a search as in a list; an item without another edge is left out of the list."""
    [book] = plugin.search(Query(type="Book", outgoing=True, incoming=True))
    assert [(edge.name, edge.item.id, edge.direction) for edge in book.edges] == [("any", "n1", Direction.INCOMING)]
    assert plugin.list_edges(["b1", "absent"], Direction.OUTGOING) == {}
    assert plugin.list_edges(["b1"], Direction.INCOMING, with_deleted=True).keys() == {"b1"}
    edges = plugin.list_edges(["r1", "mine"], Direction.OUTGOING)
    assert {id_: [edge.item.id for edge in each] for id_, each in edges.items()} == {
        "r1": ["mine", "a1"],
        "mine": ["v1"],
    }


def test_secrets_are_shown_of_its_own_account_and_types_alone(pod: Kept, plugin: Permitted) -> None:
    """In every answer; of other types the property is not there, as if it were empty, unless it has the right."""
    right = Permitted(pod, replace(TOKEN, rights=replace(TOKEN.rights, secrets=True)))
    for store, price in ((plugin, None), (right, MARK)):
        rows = store.find_items(["b1", "a1", "n1"])
        rows_of_edges = [edge.item for edge in store.list_edges(["n1"], Direction.OUTGOING)["n1"]]
        found = store.search(Query(ids=("n1",), outgoing=True))
        assert [row.properties.get("price") for row in (*rows_of_edges, found[0].edges[0].item)] == [price, price]
        assert rows["b1"].properties == ({"title": "Emma"} if price is None else {"title": "Emma", "price": price})
        assert (rows["a1"].properties["secret"], rows["n1"].properties["pin"]) == ("of my own", "1234")
        for type_, name in (("Book", "price"), ("Account", "secret"), ("Note", "pin")):
            with pytest.raises(DeniedError, match="it is secret"):
                store.search(Query(type=type_, conditions=(Condition(name, Comparison.EQUAL, MARK),)))


def test_what_becomes_secret_while_it_is_read_is_not_shown(pod: Kept, plugin: Permitted) -> None:
    """The schema is read after the rows."""
    pod.meanwhile = lambda: apply(pod, op.DeclareTypes((TypeDefinition("Book", {"title": _SECRET}),)))
    assert plugin.find_items(["b1"])["b1"].properties == {}


def test_an_account_that_its_owner_took_away_is_not_its_own(pod: Kept, plugin: Permitted) -> None:
    """Nor can it take it back."""
    apply(pod, op.DeleteEdge("r1", "account", "a1"))
    for call in (lambda: plugin.find_items(["a1"]), lambda: apply(plugin, op.CreateEdge("r1", "account", "a1"))):
        with pytest.raises(DeniedError):
            call()


def test_the_schema_is_that_of_built_in_types_its_own_and_its_rights(pod: Kept, plugin: Permitted) -> None:
    """What other plugins keep is not told."""
    assert pod.schema().keys() - plugin.schema().keys() == {"Diary"}
    assert {name: plugin.schema()[name] for name in plugin.schema()} == {
        name: pod.schema()[name] for name in plugin.schema()
    }


def test_another_plugin_state_is_not_read(plugin: Permitted, caplog: pytest.LogCaptureFixture) -> None:
    """Neither its variables, lease, snapshot nor questions; whether there is one or not."""
    for state in ("other", "nowhere", ""):
        for name in ("list_variables", "find_lease", "find_snapshot", "list_questions"):
            caplog.clear()
            with pytest.raises(
                DeniedError, match=f"^run 'r1' may not read from plugin state '{state}': it holds 'mine'$"
            ):
                getattr(plugin, name)(state)
            assert [each["operation"] for each in logged(caplog)] == [name]
    assert plugin.list_variables("mine", "holdfast") == {}
    assert [each.id for each in plugin.list_questions("mine")] == ["q1"]


def test_no_log_is_read(pod: Kept, plugin: Permitted, caplog: pytest.LogCaptureFixture) -> None:
    """Nor that of its own run: what stands in it is for its owner, as is whether there is one."""
    calls = (("list_log",), ("list_log", 5), ("find_log_end", "l1"))
    for name, *more in calls:
        for run in ("r1", "r2", "absent"):
            caplog.clear()
            with pytest.raises(DeniedError, match=r"^run 'r1' may not read logs: that is for their owner$"):
                getattr(plugin, name)(run, *more)
            assert [each["operation"] for each in logged(caplog)] == [name]
    apply(pod, op.EndLease("mine"))
    for name, *more in calls:
        with pytest.raises(FencedError):
            getattr(plugin, name)("r1", *more)


# -- anything at all --------------------------------------------------------------------------------------------------

_ids = st.sampled_from(IDS)
_types = st.sampled_from([None, "Book", "Shelf", "Diary", "Note", "Person", "Account", "PluginRun", "PersistentState",
                          "CVUStoredDefinition", "Nothing"])  # fmt: skip
_properties = st.sampled_from(
    ["title", "text", "pin", "price", "secret", "handle", "config", "name", "firstName", "id"]
)
_values = st.sampled_from([None, MARK, "Emma", "mine", "x"])
_queries = st.builds(
    Query,
    type=_types,
    conditions=st.lists(st.builds(Condition, _properties, st.just(Comparison.EQUAL), _values), max_size=2).map(tuple),
    ids=st.none() | st.lists(_ids, max_size=4).map(tuple),
    is_deleted=st.sampled_from([None, False, True]),
    is_descending=st.booleans(),
    limit=st.sampled_from([None, 0, 1, 3]),
    offset=st.sampled_from([0, 1]),
    after=st.none() | st.tuples(st.just(T0), st.integers(0, 15)),
    outgoing=st.booleans(),
    incoming=st.booleans(),
)
_states = st.sampled_from(["mine", "other", "nowhere"])
_reads = st.one_of(
    st.tuples(st.just("search"), _queries),
    st.tuples(st.just("find_items"), st.lists(_ids, max_size=4)),
    st.tuples(st.just("list_edges"), st.lists(_ids, max_size=4), st.sampled_from(Direction)),
    st.tuples(st.just("list_variables"), _states, st.sampled_from(["", "holdfast"])),
    *(st.tuples(st.just(name), _states) for name in ("find_lease", "find_snapshot", "list_questions")),
    st.tuples(st.just("list_log"), _ids),
    st.tuples(st.just("find_log_end"), _ids, st.just("l1")),
)
OWN = {"r1", "mine", "a1", "v1", "b1", "n1"}


@hypothesis.given(st.lists(_reads, min_size=5, max_size=20))
def test_no_read_tells_what_is_kept_from_it(asked: list[tuple[Any, ...]]) -> None:
    """Nor does it matter for any answer what that holds."""
    answers: list[list[str]] = []
    for kept in (MARK, "something else"):
        pod = Kept(clock=FakeClock(T0))
        filled(pod)
        for id_, row in pod._items.items():
            pod._items[id_] = row._replace(
                properties={name: kept if each == MARK else each for name, each in row.properties.items()}
            )
        plugin = Permitted(pod, TOKEN)
        told: list[str] = []
        for name, *arguments in asked:
            try:
                answer = getattr(plugin, name)(*arguments)
            except HoldfastError as exc:
                told.append(f"{type(exc).__name__}: {exc} {exc.facts}")
            else:
                told.append(repr(answer))
                if name == "search":
                    assert {row.item.id for found in answer for row in (found, *found.edges)} <= OWN
        assert kept not in "".join(told)
        answers.append(told)
    assert answers[0] == answers[1]


_news = st.sampled_from(["x", "y", "d1", "mine"])
_kinds = _types.filter(bool)
_contents = st.dictionaries(st.sampled_from(["text", "name", "title", "reads", "ownTypes", "status", "secret", "pin"]),
                            st.sampled_from(["x", '["Diary"]', "done"]), max_size=2)  # fmt: skip
_edges = st.sampled_from(["account", "view", "pluginState", "any", "holds", "about", "to", "author"])
_definitions = st.builds(
    TypeDefinition,
    _kinds | st.just("New"),
    st.dictionaries(st.sampled_from(["text", "title", "more"]), st.sampled_from([_TEXT, _SECRET]), max_size=2),
    st.dictionaries(st.sampled_from(["account", "view", "link"]), st.just(("Item",)), max_size=1),
)
_both = _ids | _news
_operations = st.one_of(
    st.builds(op.DeclareTypes, st.lists(_definitions, max_size=2).map(tuple)),
    st.builds(op.CreateItem, _news, _kinds | st.just("New"), _contents),
    st.builds(op.UpdateItem, _both, _contents),
    st.builds(op.DeleteItem, _both),
    st.builds(op.CreateEdge, _both, _edges, _both),
    st.builds(op.DeleteEdge, _both, _edges, _both),
    st.builds(op.SetVariable, _states, st.just("n"), st.just("x")),
    st.builds(op.IncrementVariable, _states, st.just("m")),
    st.builds(op.DeleteVariable, _states, st.just("n")),
    st.builds(op.PointSnapshot, _states, st.just("x")),
    st.builds(op.SetProgress, _ids, st.just(0.5)),
    st.builds(op.MoveRun, _ids, st.sampled_from(Status)),
    st.builds(op.AskQuestion, st.sampled_from(["q1", "q2", "q3"]), _states, _ids, st.just("k"), st.just("{}")),
    st.builds(op.AnswerQuestion, st.sampled_from(["q1", "q2"]), st.just("1")),
    st.builds(op.DeleteQuestion, st.sampled_from(["q1", "q2"])),
    st.builds(op.ClaimLease, _states, st.sampled_from(["r1", "r2"]), st.sampled_from(["h1", "h2"]), st.just(60_000)),
    st.builds(op.EndLease, _states),
    st.builds(op.CancelLease, _states),
    st.builds(op.AppendLog, _ids, st.just("l1"), st.sampled_from(["", "9"]), st.just("10"), st.just("x")),
    st.builds(op.ExpireLogs, st.just(T0 + 1)),
)


@hypothesis.given(st.lists(st.lists(_operations, min_size=1, max_size=4), max_size=10))
def test_no_write_changes_what_is_not_its_own(batches: list[list[Operation]]) -> None:
    """Whatever it was told: items, edges, schema and plugin states of others, its rights, and what leads to secrets."""
    pod = filled(Kept(clock=FakeClock(T0)))
    plugin = Permitted(pod, TOKEN)
    before = untouchable(pod)
    for operations in batches:
        with suppress(HoldfastError):
            apply(plugin, *operations)
    assert untouchable(pod) == before
    new = {"Note", "New"} | ({"Nothing"} & pod.schema().keys())
    assert set(own_types(pod)) <= new
    assert {each.type for each in pod._items.values() if each.id in ("x", "y")} <= new | {"Shelf"}


def untouchable(pod: Kept) -> Any:
    """Return what no plugin with this token may change."""
    theirs = {id_ for id_, row in pod._items.items() if row.type not in ("Note", "New", "Nothing", "Shelf")}
    owners: dict[str, set[str]] = {
        "r1": {"status", "error", "progress", "authUrl", "retryAt"},
        "mine": {"lastState", "ownTypes"},
    }
    rows: list[Any] = []
    for id_ in sorted(theirs):
        row = pod._items[id_]
        if id_ in owners:
            row = row._replace(version=0, modified_ms=0, properties={
                name: each for name, each in row.properties.items() if name not in owners[id_]
            })  # fmt: skip
        rows.append(row)
    changeable = {("r1", "view"), ("mine", "view"), ("r1", "account"), ("mine", "account")}
    edges = [edge for edge in pod._edges if edge.source in theirs and edge[:2] not in changeable]
    accounts = {edge.target for edge in pod._edges if edge.source in owners and edge.name == "account"}
    views = {edge.target for edge in pod._edges if edge.source in owners and edge.name == "view"}
    names = ("Account", "Book", "Diary", "Person", "PersistentState", "PluginRun", "CVUStoredDefinition")
    schema = [pod.schema()[name] for name in names]
    secret = [found.is_secret for name in ("Shelf",) for found in [pod.schema()[name].properties["name"]]]
    other = (pod.list_variables("other"), pod.find_snapshot("other"), pod.find_lease("other"))
    questions = (pod.list_questions("other"), [each.answer for each in pod.list_questions("mine")][:0])
    return (
        rows,
        edges,
        accounts - {"a1"},
        views - {"v1"},
        schema,
        secret,
        other,
        questions,
        pod.list_variables("nowhere"),
        [pod.list_log(run) for run in ("r1", "r2")],
    )


# -- batches that come again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operations",
    [
        [op.IncrementVariable("mine", "n")],
        [op.DeclareTypes((NEW,)), op.CreateItem("x", "New")],
        [op.DeleteItem("absent"), op.DeleteEdge("absent", "any", "n1"), op.CreateItem("absent", "Note")],
        [op.ClaimLease("mine", "r1", "h1", 60_000), op.MoveRun("r1", Status.STARTED)],
        [op.DeclareTypes((TypeDefinition("Shelf", {"more": _TEXT}),)), op.UpdateItem("s1", {"more": "x"})],
        [op.CreateItem("x", "Note"), op.MoveRun("r1", Status.DONE)],
        [op.CreateItem("x", "Note"), op.MoveRun("r1", Status.DONE), op.ReleaseLease(TOKEN.fence)],
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_fenced", [False, True])
def test_a_batch_that_comes_again_is_answered_as_the_first_time(
    operations: list[Operation], is_fenced: bool, pod: Kept, plugin: Permitted
) -> None:
    """Also if by now other operations would stand in its place, or its run has ended with it; and it is done once."""
    fence = TOKEN.fence if is_fenced else None
    answer = apply(plugin, *operations, key="k")
    after = everything(pod)
    assert apply(plugin, *operations, key="k", fence=fence) == answer
    assert everything(pod) == after


def test_what_was_refused_is_refused_again_under_its_key(pod: Kept, plugin: Permitted) -> None:
    """And what was applied under the key is no answer to another batch."""
    before = everything(pod)
    for _ in range(2):
        with pytest.raises(DeniedError, match="'Person'"):
            apply(plugin, op.CreateItem("x", "Person"), key="k")
    assert everything(pod) == before
    apply(plugin, op.CreateItem("x", "Note"), op.MoveRun("r1", Status.DONE), key="k")
    with pytest.raises(DeniedError, match="it has ended"):
        apply(plugin, op.CreateItem("y", "Note"), key="k")
    with pytest.raises(DeniedError, match="it has ended"):
        apply(plugin, op.CreateItem("x", "Note"), op.MoveRun("r1", Status.DONE), key="k2")


def test_a_key_is_the_plugins_own(pod: Kept, plugin: Permitted) -> None:
    """It neither takes one that its owner uses, nor is it answered what another was."""
    apply(plugin, op.SetVariable("mine", "n", 2), key="k")
    apply(pod, op.CreateItem("x", "Diary"), key="k")
    token = replace(TOKEN, state="other", run="r2", holder="h2")
    assert apply(Permitted(pod, token), op.IncrementVariable("other", "m"), key="k") == (1,)
    with pytest.raises(ConflictError, match="another batch was applied"):
        apply(plugin, op.SetVariable("mine", "n", 3), key="k")
    apply(pod, op.EndLease("mine"), op.ClaimLease("mine", "r1", "h9", 60_000))
    apply(Permitted(pod, replace(TOKEN, epoch=3, holder="h9")), op.SetVariable("mine", "n", 3), key="k")


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conquer:
    """An operation of a later version."""

    state: str = "mine"


def test_an_operation_without_a_rule_is_denied(plugin: Permitted, caplog: pytest.LogCaptureFixture) -> None:
    """Be it a variant of one that has a rule."""

    class SetMore(op.SetVariable):
        pass

    for operation in (Conquer(), SetMore("mine", "n", 1)):
        caplog.clear()
        with pytest.raises(DeniedError):
            apply(plugin, operation)  # pyright: ignore[reportArgumentType]
        assert [each["operation"] for each in logged(caplog)] == [type(operation).__name__]


def test_every_operation_and_every_method_has_a_rule_that_the_page_tells() -> None:
    """An operation or a method that is added is denied, and missed here, until somebody has thought about it."""
    methods = {name: each for name, each in vars(Store).items() if inspect.isfunction(each) and name[0] != "_"}
    assert methods.keys() - vars(Permitted).keys() == set()
    assert RULES.keys() == set(op.OPERATIONS.values())
    for name, table in (
        ("Operations", {name: RULES[kind].__doc__ for name, kind in op.OPERATIONS.items()}),
        ("Methods", {name: vars(Permitted)[name].__doc__ for name in methods}),
    ):
        part = PAGE.read_text(encoding="utf-8").partition(f"### {name}\n")[2].partition("\n##")[0]
        told = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", part, re.MULTILINE))
        assert told == {name: str(text).partition("\n")[0] for name, text in table.items()}


# -- over other stores ------------------------------------------------------------------------------------------------


def test_it_is_the_same_over_a_file_and_a_wire(tmp_path: Path, clock: FakeClock) -> None:
    """Every operation and read above, over SQLite, and asked and answered as JSON."""
    with SqliteStore(tmp_path / "pod.db", bytes(32), clock=clock) as file:
        pod = filled(file)
        plugin = JsonStore(Permitted(file, TOKEN))
        before = everything(pod)
        for operation, _ in DENIED:
            with pytest.raises(DeniedError):
                apply(plugin, operation)
        assert everything(pod) == before
        told = Permitted(filled(Kept(clock=clock)), TOKEN)
        for read in READS.values():
            assert read(plugin) == read(told)
        with pytest.raises((InvalidError, NotFoundError)):
            apply(Permitted(file, TOKEN), op.UpdateItem("\ud800", {}))
        apply(plugin, op.DeclareTypes((NEW,)), op.CreateItem("x", "New"), op.DeleteItem("absent"), key="k")
        with pytest.raises(ConflictError, match="type 'New' is declared in this Pod already"):
            apply(pod, op.DeclareTypes((NEW,), ("New",)))
        plugin.close()
        with pytest.raises(HoldfastError):
            file.now_ms() and file.schema()


def test_threads_that_write_and_declare_at_once_lose_nothing(pod: Kept, plugin: Permitted) -> None:
    """Eight of them, each with a type and a counter."""
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            apply(plugin, op.DeclareTypes((TypeDefinition(f"Type{number % 4}"),)))
            apply(plugin, op.CreateItem(f"x{number}", f"Type{number % 4}"), op.IncrementVariable("mine", "n"))
        except BaseException as exc:  # noqa: BLE001 -- it is told below
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert own_types(pod) == ["Note", "Type0", "Type1", "Type2", "Type3"]
    assert pod.list_variables("mine") == {"n": 9}
