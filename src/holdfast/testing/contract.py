"""What every store must do, as tests: each sentence of `Store` and of the operations is a test here.

A store is held to it by a subclass of `StoreContract` that overrides the fixture ``store``, and by the ``TestCase`` of
a subclass of `StoreMachine` that overrides ``open_store``. Whether a batch outlives its process is for each store to
show by itself.
"""

# ruff: noqa: S101 -- these are tests

from __future__ import annotations

import copy
import math
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast.errors import (
    ConflictError,
    DeniedError,
    FencedError,
    HoldfastError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from holdfast.items import PropertyDefinition, TypeDefinition
from holdfast.runs import Fence, Lease, Status
from holdfast.store import (
    MAX_BYTES,
    AnswerQuestion,
    AskQuestion,
    Batch,
    CancelLease,
    ClaimLease,
    Comparison,
    Condition,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    DeleteEdge,
    DeleteItem,
    DeleteQuestion,
    DeleteVariable,
    Direction,
    EndLease,
    Expected,
    IncrementVariable,
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
    size_bytes,
)
from holdfast.testing.fakes import FakeClock
from holdfast.values import MAX_INTEGER, MIN_INTEGER, Kind, Value

T0: Final = 1_000_000
"""When each test begins, on the store's clock."""

_KINDS: Final = {
    "text": Kind.TEXT,
    "integer": Kind.INTEGER,
    "real": Kind.REAL,
    "flag": Kind.BOOL,
    "instant": Kind.DATETIME,
}
THING: Final = TypeDefinition(
    "Thing",
    {**{name: PropertyDefinition(kind) for name, kind in _KINDS.items()},
     "indexed": PropertyDefinition(Kind.INTEGER, is_indexed=True)},
    {"friend": ("Thing",), "any": ("Item",)},
)  # fmt: skip

HELD: Final = Fence(state="held", epoch=1, holder="h1")
_BEGINNING: Final = (
    DeclareTypes((THING,)),
    *(CreateItem(id_, "Thing") for id_ in ("t1", "t2", "gone")),
    DeleteItem("gone"),
    CreateEdge("t1", "friend", "t2"),
    *(CreateItem(id_, "PluginRun", {"status": "started"}) for id_ in ("r1", "r2", "over")),
    MoveRun("over", Status.DONE),
    *(SetVariable("s", name, value) for name, value in
      {"text": "a", "flag": True, "one": 1, "real": 1.0, "big": MAX_INTEGER}.items()),
    PointSnapshot("s", "first"),
    AskQuestion("q1", "s", "r2", "k", "{}"),
    AnswerQuestion("q1", "1"),
    AskQuestion("q2", "held", "r1", "k", "{}"),
    ClaimLease("held", "r1", "h1", 60_000),
)  # fmt: skip


def _apply(store: Store, *operations: Operation, fence: Fence | None = None) -> tuple[Result, ...]:
    return store.apply(Batch(operations, fence))


def _everything(store: Store) -> object:
    found = store.search(Query(is_deleted=None, outgoing=True, incoming=True))
    states = [
        (store.list_variables(state), store.find_lease(state), store.find_snapshot(state), store.list_questions(state))
        for state in ("s", "held", "new")
    ]
    return dict(store.schema()), found, states


def _conflicting(name: str, kind: Kind) -> DeclareTypes:
    return DeclareTypes((TypeDefinition("Thing", {name: PropertyDefinition(kind)}),))


_REFUSED: Final[list[tuple[Operation, type[HoldfastError], str]]] = [
    (_conflicting("text", Kind.INTEGER), ConflictError, "Thing.text is Text .* cannot become Integer"),
    (_conflicting("friend", Kind.TEXT), ConflictError, "Thing.friend is an edge to Thing"),
    (_conflicting("dateCreated", Kind.TEXT), InvalidError, "'dateCreated' cannot name"),
    (DeclareTypes((TypeDefinition("no name"),)), InvalidError, "'no name' cannot name"),
    (CreateItem("t1", "Thing"), ConflictError, "'t1' exists already"),
    (CreateItem("gone", "Thing"), ConflictError, "'gone' exists already"),
    (CreateItem("x", "Nothing"), InvalidError, "'Nothing' is not declared"),
    (CreateItem("a/b", "Thing"), InvalidError, "'a/b' cannot be the id"),
    (CreateItem("x", "Thing", {"colour": "red"}), InvalidError, "no property 'colour'"),
    (CreateItem("x", "Thing", {"dateServerModified": 1}), InvalidError, "the Pod keeps it"),
    (CreateItem("x", "Thing", {"integer": True}), InvalidError, "cannot be True"),
    (CreateItem("x", "Thing", {"integer": 2**63}), InvalidError, "9223372036854775808"),
    (CreateItem("x", "Thing", {"real": math.nan}), InvalidError, "nan"),
    (CreateItem("x", "Thing", {"text": "a\0"}), InvalidError, r"a\\x00"),
    (CreateItem("x", "Thing", {"text": "\ud800"}), InvalidError, "ud800"),
    (CreateItem("x", "Thing", {"instant": 2**60}), InvalidError, "1152921504606846976 is not a date"),
    (UpdateItem("absent", {}), NotFoundError, "'absent'"),
    (UpdateItem("t1", {"text": "a"}, 2), ConflictError, "version 1, not 2"),
    (UpdateItem("t1", {"text": 1}), InvalidError, "cannot be 1: it is declared Text"),
    (UpdateItem("t1", {"real": math.inf}), InvalidError, "inf"),
    (UpdateItem("over", {"status": "started"}), ConflictError, "'over' is done and cannot become started"),
    (UpdateItem("r2", {"status": "running"}), InvalidError, "'running'"),
    (UpdateItem("r1", {"status": "done"}), ConflictError, "held by run 'r1'"),
    (CreateEdge("absent", "friend", "t1"), NotFoundError, "source 'absent'"),
    (CreateEdge("t1", "friend", "absent"), NotFoundError, "target 'absent'"),
    (CreateEdge("t1", "friend", "gone"), NotFoundError, "target 'gone'"),
    (CreateEdge("t1", "friend", "r1"), InvalidError, "cannot lead to a PluginRun"),
    (CreateEdge("t1", "enemy", "t2"), InvalidError, "no edge 'enemy'"),
    (SetVariable("s", "one", 2, expected=Expected(True)), ConflictError, "is 1, not True"),
    (SetVariable("s", "one", 2, expected=Expected(1.0)), ConflictError, "is 1, not 1.0"),
    (SetVariable("s", "real", 2, expected=Expected(1)), ConflictError, "is 1.0, not 1 "),
    (SetVariable("s", "one", 2, expected=Expected(None)), ConflictError, "is 1, not absent"),
    (SetVariable("s", "new", 2, expected=Expected(0)), ConflictError, "is absent, not 0"),
    (SetVariable("s", "new", math.nan), InvalidError, "nan"),
    (SetVariable("s", "new", -(2**63) - 1), InvalidError, "-9223372036854775809"),
    (SetVariable("s", "new", "\udfff"), InvalidError, "udfff"),
    (SetVariable("s", "new", [1]), InvalidError, r"\[1\]"),  # pyright: ignore[reportArgumentType]
    (SetVariable("s", "new", None), InvalidError, "None"),  # pyright: ignore[reportArgumentType]
    (SetVariable("s", "a\0b", 1), InvalidError, r"a\\x00b"),
    (SetVariable("", "new", 1), InvalidError, "''"),
    (SetVariable("held", "x", 1), ConflictError, "held by run 'r1'"),
    (IncrementVariable("s", "text"), InvalidError, "holds 'a'"),
    (IncrementVariable("s", "flag"), InvalidError, "holds True"),
    (IncrementVariable("s", "big"), InvalidError, "9223372036854775808"),
    (IncrementVariable("s", "real", math.inf), InvalidError, "inf"),
    (IncrementVariable("s", "real", 10**400), InvalidError, "1329 bits"),
    (IncrementVariable("held", "x"), ConflictError, "held by run 'r1'"),
    (DeleteVariable("s", "one", expected=Expected(2)), ConflictError, "is 1, not 2"),
    (DeleteVariable("held", "x"), ConflictError, "held by run 'r1'"),
    (SetProgress("absent", 0.5), NotFoundError, "no run 'absent'"),
    (SetProgress("t1", 0.5), NotFoundError, "is a Thing"),
    (SetProgress("r2", 1.01), InvalidError, "1.01"),
    (SetProgress("r1", 0.5), ConflictError, "held by run 'r1'"),
    (MoveRun("over", Status.STARTED), ConflictError, "'over' is done and cannot become started"),
    (MoveRun("r1", Status.DONE), ConflictError, "held by run 'r1'"),
    (PointSnapshot("held", "x"), ConflictError, "held by run 'r1'"),
    (PointSnapshot("s", ""), InvalidError, "''"),
    (AskQuestion("q1", "s", "r2", "another", "{}"), ConflictError, "'q1' exists already"),
    (AskQuestion("q3", "s", "r2", "another", "{}", deadline_ms=2**63), InvalidError, "9223372036854775808"),
    (AskQuestion("q3", "held", "r1", "another", "{}"), ConflictError, "held by run 'r1'"),
    (AnswerQuestion("q1", "2"), ConflictError, "the first answer counts"),
    (AnswerQuestion("absent", "2"), NotFoundError, "'absent'"),
    (DeleteQuestion("q2"), ConflictError, "held by run 'r1'"),
    (ClaimLease("held", "r2", "h2", 1_000), ConflictError, "held by run 'r1'"),
    (ClaimLease("s", "r2", "h2", 0), InvalidError, "a lease of 0 ms"),
    (RenewLease(Fence(state="held", epoch=1, holder="h0"), 1_000), FencedError, "run 'r1'"),
    (ReleaseLease(Fence(state="held", epoch=0, holder="h1")), FencedError, "run 'r1'"),
]
"""Operations that are refused after `_BEGINNING`, the kind of error, and what its message must say."""

_REFUSED_TO_A_RUN: Final[list[Operation]] = [
    SetVariable("s", "new", 1),
    PointSnapshot("s", "x"),
    AskQuestion("q3", "s", "r1", "another", "{}"),
    DeleteQuestion("q1"),
    SetProgress("r2", 0.5),
    MoveRun("r2", Status.DONE),
    UpdateItem("r2", {"status": "done"}),
    ClaimLease("s", "r1", "h2", 1_000),
    EndLease("held"),
    CancelLease("held"),
]

_OTHER: Final = TypeDefinition(
    "Other",
    {"text": PropertyDefinition(Kind.TEXT), "integer": PropertyDefinition(Kind.REAL),
     "real": PropertyDefinition(Kind.TEXT), "flag": PropertyDefinition(Kind.INTEGER),
     "indexed": PropertyDefinition(Kind.INTEGER)},
)  # fmt: skip
_SHELF: Final[list[tuple[str, str, dict[str, Value]]]] = [
    ("a", "Thing", {"text": "a", "integer": 1, "real": 0.5, "flag": True, "instant": 5, "indexed": 7}),
    ("b", "Thing", {"text": "B", "integer": -1, "real": 2.0, "flag": False, "indexed": 7}),
    ("c", "Thing", {"text": "\uffff", "integer": 2, "instant": -5}),
    ("d", "Thing", {"text": "\U0001f600", "indexed": 8}),
    ("e", "Other", {"text": "", "integer": 1.5, "real": "2", "flag": 1, "indexed": 7}),
    ("f", "Other", {}),
]
"""Items in the order of creation, 10 ms apart. Afterwards "a" is updated and "f" deleted."""


def _where(property_: str, comparison: str, value: Value | None) -> tuple[Condition, ...]:
    return (Condition(property_, Comparison(comparison), value),)


_SEARCHES: Final[list[tuple[str, dict[str, Any]]]] = [
    ("bcdea", {}),
    ("bcda", {"type": "Thing"}),
    ("", {"type": "Nothing"}),
    ("aedcb", {"is_descending": True}),
    ("f", {"is_deleted": True}),
    ("bcdeaf", {"is_deleted": None}),
    ("bc", {"limit": 2}),
    ("", {"limit": 0}),
    ("de", {"offset": 2, "limit": 2}),
    ("", {"offset": 9}),
    ("ed", {"offset": 1, "limit": 2, "is_descending": True}),
    ("ca", {"ids": ("a", "c", "c", "f", "absent")}),
    ("", {"ids": ()}),
    ("a", {"conditions": _where("text", "==", "a")}),
    ("", {"conditions": _where("text", "==", "A")}),
    ("e", {"conditions": _where("text", "==", "")}),
    ("cd", {"conditions": _where("text", ">=", "\uffff")}),  # by code point: UTF-16 would put d before c
    ("be", {"conditions": _where("text", "<", "a")}),
    ("cea", {"conditions": _where("integer", ">=", 1)}),
    ("a", {"conditions": _where("integer", "==", 1.0)}),
    ("b", {"conditions": _where("integer", "<", 0)}),
    ("b", {"conditions": _where("real", "==", 2)}),
    ("ba", {"conditions": _where("real", ">=", 0)}),  # and not the text of "e"
    ("a", {"conditions": _where("flag", "==", True)}),
    ("b", {"conditions": _where("flag", "==", False)}),
    ("cd", {"conditions": _where("flag", "==", None)}),
    ("c", {"conditions": _where("instant", "<", 0)}),
    ("bea", {"conditions": _where("indexed", "==", 7)}),
    ("ba", {"type": "Thing", "conditions": _where("indexed", "==", 7)}),
    ("ea", {"conditions": _where("indexed", "==", 7), "offset": 1, "limit": 2}),
    ("d", {"type": "Thing", "conditions": _where("indexed", ">=", 8)}),
    ("a", {"conditions": _where("indexed", "==", 7) + _where("integer", ">=", 1) + _where("flag", "==", True)}),
    ("d", {"conditions": _where("id", "==", "d")}),
    ("de", {"conditions": _where("dateCreated", ">=", T0 + 30) + _where("id", "<", "f")}),
    ("bc", {"conditions": _where("dateServerModified", "<", T0 + 30)}),
]


class StoreContract:
    """The tests that every store passes."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        """The clock that the store under test is to use."""
        return FakeClock(T0)

    @pytest.fixture
    def store(self, clock: FakeClock) -> Store:
        """Open the store under test, empty."""
        raise NotImplementedError

    @pytest.fixture
    def pod(self, store: Store) -> Store:
        """Fill the store with what `_BEGINNING` says."""
        _apply(store, *_BEGINNING)
        return store

    @pytest.fixture
    def shelf(self, store: Store, clock: FakeClock) -> Store:
        """Fill the store with what `_SHELF` says."""
        _apply(store, DeclareTypes((THING, _OTHER)))
        for id_, type_, properties in _SHELF:
            _apply(store, CreateItem(id_, type_, properties))
            clock.advance(10)
        _apply(store, UpdateItem("a", {}))
        clock.advance(10)
        _apply(store, DeleteItem("f"))
        return store

    # -- one batch --

    @pytest.mark.parametrize("operation, error, words", _REFUSED)
    def test_what_is_refused_changes_nothing(
        self, pod: Store, operation: Operation, error: type[HoldfastError], words: str
    ) -> None:
        """One refused operation undoes those before it; the error says what is wrong, of which value, and where."""
        before = _everything(pod)
        with pytest.raises(error, match=words) as caught:
            _apply(
                pod,
                DeclareTypes((TypeDefinition("New"),)),
                CreateItem("new", "New"),
                UpdateItem("t2", {"text": "changed"}),
                DeleteEdge("t1", "friend", "t2"),
                CreateEdge("t2", "any", "t2"),
                SetVariable("new", "a", 1),
                PointSnapshot("new", "x"),
                AskQuestion("new", "new", "r2", "k", "{}"),
                operation,
            )
        assert type(caught.value) is error
        assert _everything(pod) == before

    @pytest.mark.parametrize("operation", _REFUSED_TO_A_RUN, ids=lambda each: type(each).__name__)
    def test_a_run_writes_to_no_other_run_and_plugin_state(self, pod: Store, operation: Operation) -> None:
        """What a run does not hold, it is denied; ending and cancelling leases are the owner's."""
        before = _everything(pod)
        with pytest.raises(DeniedError, match="run"):
            _apply(pod, SetVariable("held", "x", 1), operation, fence=HELD)
        assert _everything(pod) == before

    def test_operations_see_the_effects_of_those_before_them(self, store: Store) -> None:
        """A type, an item, an edge, a variable, a question and a lease can be used in the batch that makes them."""
        lease = Lease(state="s", epoch=1, holder="h", run="r", expires_ms=T0 + 500)
        question = Question(id="q", state="s", run="r", key="k", form="{}", view=None, deadline_ms=None, default=None,
                            asked_ms=T0, answer="1", answered_ms=T0)  # fmt: skip
        assert _apply(
            store,
            DeclareTypes((THING,)),
            CreateItem("a", "Thing", {"integer": 1}),
            UpdateItem("a", {"real": 1}),
            CreateEdge("a", "friend", "a"),
            IncrementVariable("s", "n"),
            IncrementVariable("s", "n", 0.5),
            DeleteVariable("s", "n"),
            IncrementVariable("s", "n", -2),
            SetVariable("s", "n", True, expected=Expected(-2)),
            CreateItem("r", "PluginRun"),
            ClaimLease("s", "r", "h", 500),
            MoveRun("r", Status.STARTED),
            SetProgress("r", 0.25),
            AskQuestion("q", "s", "r", "k", "{}"),
            AnswerQuestion("q", "1"),
            RenewLease(lease.fence, 500),
            DeleteItem("a"),
        ) == (
            None,
            Written("a", 1, T0),
            Written("a", 2, T0),
            *(None, 1, 1.5, None, -2, None),
            Written("r", 1, T0),
            lease,
            Written("r", 2, T0),
            Written("r", 3, T0),
            Question(id="q", state="s", run="r", key="k", form="{}", view=None, deadline_ms=None, default=None,
                     asked_ms=T0),
            question,
            lease,
            Written("a", 3, T0),
        )  # fmt: skip
        assert store.find_items(["r"])["r"].properties == {"status": "started", "progress": 0.25}
        assert store.list_questions("s") == [question]
        assert (store.list_variables("s"), store.find_lease("s")) == ({"n": True}, lease)

    def test_an_empty_batch_does_nothing(self, pod: Store) -> None:
        """No operations, no results, no change."""
        before = _everything(pod)
        assert _apply(pod) == ()
        assert _everything(pod) == before

    def test_50_000_operations_are_accepted_and_one_more_is_not(self, store: Store) -> None:
        """A batch has at most 50,000 operations; rows that many batches would speak of are no obstacle."""
        ids = [f"i{number}" for number in range(16_000)]
        _apply(
            store,
            *(CreateItem(id_, "Person", {"firstName": id_}) for id_ in ids),
            *(CreateEdge(id_, "relationship", "i0") for id_ in ids),
            *(SetVariable("s", id_, 1) for id_ in ids),
            *(DeleteItem(f"x{number}") for number in range(2_000)),
        )
        assert len(store.list_edges(["i0"], Direction.INCOMING)["i0"]) == 16_000
        _apply(store, *(UpdateItem(id_, {"firstName": "y"}, 1) for id_ in ids), *(DeleteItem(f"x{at}") for at in ids))
        assert len(store.find_items(ids)) == len(store.list_edges(ids, Direction.OUTGOING)) == 16_000
        assert len(store.search(Query(ids=tuple(ids), outgoing=True))) == len(store.list_variables("s")) == 16_000
        with pytest.raises(InvalidError, match="50,001"):
            _apply(store, *[DeleteVariable("s", "i0")] * 50_001)
        assert len(store.list_variables("s")) == 16_000

    def test_64_mib_are_accepted_and_one_byte_more_is_not(self, store: Store) -> None:
        """What a batch may hold, a store can hold; a larger one is refused and names its largest operation."""
        text = "x" * (MAX_BYTES - size_bytes(SetVariable("s", "n", "")))
        _apply(store, SetVariable("s", "n", text))
        assert store.list_variables("s")["n"] == text
        with pytest.raises(InvalidError, match=r"64\.0 MiB is too large.*number 0, set_variable"):
            _apply(store, SetVariable("s", "m", text + "x"))
        assert list(store.list_variables("s")) == ["n"]

    # -- items and their types --

    def test_versions_count_and_dates_are_the_stores(self, store: Store, clock: FakeClock) -> None:
        """Each write is a version; the store's clock dates it; a client may date creation and change itself."""
        _apply(store, CreateItem("a", "Person", {"firstName": "x", "dateCreated": -1, "dateModified": 2}))
        assert store.find_items(["a"])["a"] == ("a", "Person", 1, -1, 2, T0, False, {"firstName": "x"})
        clock.advance(5)
        assert _apply(store, UpdateItem("a", {"lastName": "y"}, 1)) == (Written("a", 2, T0 + 5),)
        assert store.find_items(["a"])["a"][2:6] == (2, -1, T0 + 5, T0 + 5)
        assert store.find_items(["a"])["a"].properties == {"firstName": "x", "lastName": "y"}
        assert store.now_ms() == T0 + 5

    def test_none_erases_a_property_and_the_others_stay(self, store: Store) -> None:
        """An update says what changes; erasing what is absent is no error."""
        _apply(store, CreateItem("a", "Person", {"firstName": "x", "lastName": "y"}))
        _apply(store, UpdateItem("a", {"firstName": None, "email": None}))
        assert store.find_items(["a"])["a"].properties == {"lastName": "y"}

    def test_deletion_is_a_mark(self, store: Store, clock: FakeClock) -> None:
        """A deleted item is left out and can be had on request; deleting twice or what is absent does nothing."""
        _apply(store, CreateItem("a", "Person"), CreateItem("b", "Person"), CreateEdge("a", "relationship", "b"))
        clock.advance(5)
        assert _apply(store, DeleteItem("b"), DeleteItem("b"), DeleteItem("c")) == (
            Written("b", 2, T0 + 5), Written("b", 2, T0 + 5), Written("c", 0, T0 + 5),
        )  # fmt: skip
        assert list(store.find_items(["a", "b", "c"])) == ["a", "b"]
        assert store.find_items(["b"])["b"].is_deleted
        assert store.list_edges(["a", "b"], Direction.OUTGOING) == {}
        assert store.list_edges(["a", "b"], Direction.INCOMING) == {}
        _apply(store, UpdateItem("b", {"deleted": False}))
        assert [each.item.id for each in store.search(Query(outgoing=True))] == ["a", "b"]
        assert store.list_edges(["b"], Direction.INCOMING)["b"][0].item.id == "a"

    def test_edges_come_in_the_order_of_creation(self, store: Store) -> None:
        """Both ends know an edge; creating it twice or deleting an absent one does nothing."""
        _apply(store, *(CreateItem(id_, "Person") for id_ in "abc"), CreateItem("p", "Photo"))
        edges = [CreateEdge("a", "relationship", id_) for id_ in "cab"]
        _apply(store, *edges, CreateEdge("a", "profilePicture", "p"), CreateEdge("c", "relationship", "b"))
        _apply(store, edges[0], DeleteEdge("b", "relationship", "a"), DeleteEdge("x", "y", "z"))
        outgoing = store.list_edges(["a", "b", "x"], Direction.OUTGOING)
        assert {id_: [(row.name, row.item.id) for row in rows] for id_, rows in outgoing.items()} == {
            "a": [("relationship", "c"), ("relationship", "a"), ("relationship", "b"), ("profilePicture", "p")]
        }
        incoming = store.list_edges(["a", "b", "p"], Direction.INCOMING)
        assert {id_: [row.item.id for row in rows] for id_, rows in incoming.items()} == {
            "a": ["a"], "b": ["a", "c"], "p": ["a"],
        }  # fmt: skip
        assert incoming["p"][0].item == store.find_items(["a"])["a"]
        (found,) = store.search(Query(ids=("a",), outgoing=True, incoming=True))
        assert [(row.direction, row.item.id) for row in found.edges if row.name == "relationship"] == [
            *[(Direction.OUTGOING, id_) for id_ in "cab"], (Direction.INCOMING, "a"),
        ]  # fmt: skip
        _apply(store, DeleteEdge("a", "relationship", "c"))
        _apply(store, edges[0])
        names = [row.item.id for row in store.list_edges(["a"], Direction.OUTGOING)["a"]]
        assert names == ["a", "b", "p", "c"]

    def test_the_schema_grows_and_an_equal_definition_changes_nothing(self, store: Store) -> None:
        """Built-in types are there; additions are there for old items too; names may be words of any language."""
        assert {"PluginRun", "PersistentState", "Account", "Person", "File"} <= store.schema().keys()
        odd = {
            name: PropertyDefinition(Kind.INTEGER, is_indexed=True) for name in ("order", "Order", "rowid", "select")
        }
        small, large = TypeDefinition("table"), TypeDefinition("table", odd, {"index": ("Table", "table")})
        _apply(store, DeclareTypes((small, TypeDefinition("Table", odd))))
        _apply(store, CreateItem("a", "table"), CreateItem("b", "Table", {"order": 1, "Order": 2}))
        assert _apply(store, DeclareTypes((large,)), DeclareTypes((large, small))) == (None, None)
        assert (store.schema()["table"], len(store.schema()["Table"].edges)) == (large, 0)
        _apply(store, UpdateItem("a", {"rowid": 3}), CreateEdge("a", "index", "b"))
        assert store.find_items(["a"])["a"].properties == {"rowid": 3}
        assert [each.item.id for each in store.search(Query(type="Table", conditions=_where("Order", "==", 2)))] == [
            "b"
        ]

    def test_a_property_indexed_later_finds_earlier_items(self, store: Store) -> None:
        """Asking for an index on what is declared already is an addition, and loses nothing."""
        _apply(store, DeclareTypes((THING,)), CreateItem("a", "Thing", {"integer": 1}))
        more = {"integer": PropertyDefinition(Kind.INTEGER, is_indexed=True)}
        _apply(store, CreateItem("b", "Thing", {"integer": 1}), DeclareTypes((TypeDefinition("Thing", more),)))
        assert store.schema()["Thing"].properties["integer"].is_indexed
        found = store.search(Query(type="Thing", conditions=_where("integer", "==", 1)))
        assert [each.item.id for each in found] == ["a", "b"]

    @hypothesis.settings(
        deadline=None,  # a store may flush
        max_examples=50,
        suppress_health_check=[
            hypothesis.HealthCheck.function_scoped_fixture,  # every example writes the same rows anew
            hypothesis.HealthCheck.differing_executors,  # the suite is there to be inherited
        ],
    )
    @hypothesis.given(
        text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
        integer=st.integers(MIN_INTEGER, MAX_INTEGER) | st.sampled_from([MIN_INTEGER, MAX_INTEGER, 2**53 + 1]),
        real=st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([-0.0, 5e-324, 1e23, 0.1]),
        flag=st.booleans(),
    )
    def test_values_are_read_back_as_they_were(
        self, pod: Store, text: str, integer: int, real: float, flag: bool
    ) -> None:
        """Every text, 64-bit integer, boolean and float comes back with its type, and a float with every bit."""
        values: dict[str, Value] = {"text": text, "integer": integer, "real": real, "flag": flag, "indexed": integer}
        _apply(pod, UpdateItem("t1", values), *(SetVariable("new", name, value) for name, value in values.items()))
        for read in (pod.find_items(["t1"])["t1"].properties, pod.list_variables("new")):
            assert {name: (type(value), value) for name, value in read.items()} == {
                name: (type(value), value) for name, value in values.items()
            }
            assert struct.pack("d", read["real"]) == struct.pack("d", real)
        conditions = tuple(Condition(name, Comparison.EQUAL, value) for name, value in values.items())
        assert [each.item.id for each in pod.search(Query(conditions=conditions))] == ["t1"]

    # -- searches --

    @pytest.mark.parametrize("expected, query", _SEARCHES)
    def test_a_search_finds_what_it_describes_in_order(
        self, shelf: Store, expected: str, query: dict[str, Any]
    ) -> None:
        """The order is (dateServerModified, creation); a condition compares only with values of its own nature."""
        assert "".join(each.item.id for each in shelf.search(Query(**query))) == expected

    @pytest.mark.parametrize("is_descending", [False, True])
    def test_pages_neither_skip_nor_repeat(self, store: Store, clock: FakeClock, is_descending: bool) -> None:
        """Paging by position gives every item once that nobody wrote meanwhile, also among those of one moment."""
        _apply(store, *(CreateItem(id_, "Person") for id_ in "hgfedcba"))
        seen, position = "", None
        while page := store.search(Query(type="Person", limit=2, after=position, is_descending=is_descending)):
            seen += "".join(each.item.id for each in page)
            position = page[-1].position
            clock.advance(1)
            if len(seen) == 2:  # written: one that was seen and one that was not; made: a new one
                _apply(store, UpdateItem(seen[0], {}), UpdateItem("e", {}), CreateItem("new", "Person"))
        assert seen == ("abcdfgh" if is_descending else "hgfdcbahenew")

    def test_rows_are_the_callers_own(self, pod: Store) -> None:
        """What a caller does to an answer, or later to what it wrote, does not reach the Pod."""
        properties: dict[str, Any] = {"text": "x"}
        _apply(pod, CreateItem("x", "Thing", properties))
        for row in (pod.find_items(["x"])["x"], pod.search(Query(ids=("x",)))[0].item):
            if isinstance(row.properties, dict):
                row.properties["text"] = "y"
            properties["text"] = "z"
            assert pod.find_items(["x"])["x"].properties == {"text": "x"}

    # -- plugin states --

    def test_variables_are_listed_by_name_within_one_namespace(self, store: Store) -> None:
        """A namespace of one plugin state has its own variables, ordered by code point; any text is a name."""
        names = ["", "B", "a", "a b", "\u00e9", "\uffff", "\U0001f600"]
        _apply(store, *(SetVariable("s", name, name) for name in reversed(names)))
        _apply(store, SetVariable("s", "a", 1, "other"), SetVariable("S", "a", 2), DeleteVariable("s", "absent"))
        assert list(store.list_variables("s").items()) == [(name, name) for name in names]
        assert (store.list_variables("s", "other"), store.list_variables("S")) == ({"a": 1}, {"a": 2})
        _apply(store, DeleteVariable("s", "a", "other", Expected(1)), SetVariable("S", "a", 3, "", Expected(2)))
        assert (store.list_variables("s", "other"), store.list_variables("S")) == ({}, {"a": 3})

    def test_a_plugin_state_points_to_one_snapshot(self, store: Store) -> None:
        """The last one said; None: none."""
        _apply(store, PointSnapshot("s", "one"), PointSnapshot("s", "two"), PointSnapshot("t", "three"))
        assert (store.find_snapshot("s"), store.find_snapshot("absent")) == ("two", None)
        _apply(store, PointSnapshot("s", None))
        assert (store.find_snapshot("s"), store.find_snapshot("t")) == (None, "three")

    def test_a_question_is_asked_once_and_the_first_answer_stays(self, store: Store, clock: FakeClock) -> None:
        """Asking again returns the one that is there; answering the same again is a no-op; order is that of asking."""
        _apply(store, AskQuestion("z", "s", "r", "k", "{}", "v", T0 + 9, "1"), AskQuestion("a", "s", "r", "l", "[]"))
        clock.advance(1)
        first = Question(id="z", state="s", run="r", key="k", form="{}", view="v", deadline_ms=T0 + 9, default="1",
                         asked_ms=T0)  # fmt: skip
        answered = Question(id="z", state="s", run="r", key="k", form="{}", view="v", deadline_ms=T0 + 9, default="1",
                            asked_ms=T0, answer="2", answered_ms=T0 + 1)  # fmt: skip
        assert _apply(store, AskQuestion("b", "s", "r", "k", "other"), AnswerQuestion("z", "2")) == (first, answered)
        clock.advance(1)
        assert _apply(store, AnswerQuestion("z", "2"), DeleteQuestion("absent")) == (answered, None)
        assert [question.id for question in store.list_questions("s")] == ["z", "a"]
        _apply(store, DeleteQuestion("z"), AskQuestion("b", "s", "r", "k", "{}"))
        assert [question.id for question in store.list_questions("s")] == ["a", "b"]
        assert store.list_questions("t") == []

    # -- runs and leases --

    def test_a_status_moves_and_keeps_its_reason(self, store: Store) -> None:
        """A move by an update is the same move; an unknown status of a new run is idle; repeating one is allowed."""
        _apply(store, CreateItem("r", "PluginRun", {"status": "nonsense"}), UpdateItem("r", {"status": "started"}))
        assert store.find_items(["r"])["r"].properties == {"status": "started"}
        _apply(store, MoveRun("r", Status.ERROR, "no luck"), MoveRun("r", Status.ERROR), SetProgress("r", 1))
        assert store.find_items(["r"])["r"].properties == {"status": "error", "error": "no luck", "progress": 1.0}
        _apply(store, MoveRun("r", Status.READY), SetProgress("r", None))
        assert store.find_items(["r"])["r"].properties == {"status": "ready"}

    def test_a_superseded_run_changes_nothing(self, pod: Store, clock: FakeClock) -> None:
        """After another claim every write of the former holder is fenced, whichever it is; so is a made-up right."""
        clock.advance(60_000)
        _apply(pod, ClaimLease("held", "r2", "h2", 1_000))
        before = _everything(pod)
        for fence in (HELD, Fence(state="held", epoch=2, holder="h1"), Fence(state="new", epoch=0, holder="")):
            for operation in (SetVariable("held", "x", 1), CreateItem("x", "Person"), RenewLease(fence, 1_000)):
                with pytest.raises(FencedError):
                    _apply(pod, operation, fence=fence)
        with pytest.raises(ConflictError, match="held by run 'r2'"):
            _apply(pod, ClaimLease("held", "r1", "h3", 1_000))
        assert _everything(pod) == before

    def test_a_lease_is_claimed_renewed_and_lapses(self, store: Store, clock: FakeClock) -> None:
        """A repeated claim renews; what expired may be renewed until somebody claims it; the epoch only grows."""
        first = Lease(state="s", epoch=1, holder="h1", run="r1", expires_ms=T0 + 100)
        assert store.find_lease("s") is None
        assert _apply(store, ClaimLease("s", "r1", "h1", 100)) == (first,)
        clock.advance(50)
        again = Lease(state="s", epoch=1, holder="h1", run="r1", expires_ms=T0 + 150)
        assert _apply(store, ClaimLease("s", "r1", "h1", 100)) == (again,)
        clock.advance(100)
        late = Lease(state="s", epoch=1, holder="h1", run="r1", expires_ms=T0 + 250)
        assert _apply(store, RenewLease(first.fence, 100), SetVariable("s", "x", 1), fence=first.fence) == (late, None)
        clock.advance(100)
        second = Lease(state="s", epoch=2, holder="h2", run="r2", expires_ms=T0 + 350)
        assert _apply(store, SetVariable("s", "y", 1), ClaimLease("s", "r2", "h2", 100)) == (None, second)
        assert store.find_lease("s") == second
        third = Lease(state="s", epoch=3, holder="h3", run="r1", expires_ms=T0 + 350)
        assert _apply(store, ClaimLease("s", "r1", "h3", 100, dead_holder="h2")) == (third,)

    def test_a_lease_is_given_back_ended_or_cancelled(self, pod: Store) -> None:
        """After release and after its end nobody holds it, and the former holder is fenced; a cancel is a request."""
        _apply(pod, CancelLease("held"), CancelLease("new"), EndLease("new"))
        assert pod.find_lease("new") is None
        (renewed,) = _apply(pod, RenewLease(HELD, 60_000), fence=HELD)
        assert renewed == Lease(state="held", epoch=1, holder="h1", run="r1", expires_ms=T0 + 60_000, is_cancelled=True)
        _apply(pod, MoveRun("r1", Status.READY), ReleaseLease(HELD), fence=HELD)
        assert pod.find_lease("held") == Lease(state="held", epoch=1)
        _apply(pod, SetVariable("held", "x", 1), ClaimLease("held", "r2", "h2", 1_000), SetVariable("held", "x", 2))
        _apply(pod, EndLease("held"), SetVariable("held", "x", 3, "", Expected(2)), MoveRun("r2", Status.ABORTED))
        with pytest.raises(FencedError, match="was taken from it"):
            _apply(pod, SetVariable("held", "x", 4), fence=Fence(state="held", epoch=2, holder="h2"))
        assert pod.list_variables("held") == {"x": 3}

    # -- many at once, and the end --

    def test_writers_at_once_lose_nothing_and_readers_see_whole_batches(self, store: Store) -> None:
        """Batches of several threads happen one after the other; a search never sees half of one."""
        errors: list[BaseException] = []

        def guarded(work: Callable[[int], None]) -> Callable[[int], None]:
            def run(number: int) -> None:
                try:
                    work(number)
                except BaseException as exc:  # noqa: BLE001 -- a thread's failure is the test's
                    errors.append(exc)

            return run

        def write(number: int) -> None:
            for at in range(25):
                pair = [CreateItem(f"{end}{number}-{at}", "Person") for end in "ab"]
                _apply(store, IncrementVariable("s", "n"), *pair, IncrementVariable("s", "m", 2))

        def read(_: int) -> None:
            while store.list_variables("s").get("n", 0) != 100:
                assert len(store.search(Query(type="Person"))) % 2 == 0
                variables = store.list_variables("s")
                assert variables.get("m", 0) == 2 * int(variables.get("n", 0))

        threads = [threading.Thread(target=guarded(write), args=(number,)) for number in range(4)]
        reader = threading.Thread(target=guarded(read), args=(0,), daemon=True)
        for thread in (*threads, reader):
            thread.start()
        for thread in threads:
            thread.join()
        if not errors:
            reader.join()
        assert errors == []
        assert store.list_variables("s") == {"m": 200, "n": 100}
        assert len(store.search(Query())) == 200

    def test_closing_twice_is_harmless_and_final(self, pod: Store) -> None:
        """A closed store answers nothing more, and says so."""
        pod.close()
        pod.close()
        for use in (lambda: _apply(pod, SetVariable("s", "x", 1)), pod.schema, lambda: pod.search(Query())):
            with pytest.raises(UnavailableError, match="closed"):
                use()


# -- any history -------------------------------------------------------------------------------------------------------

_ids, _states, _holders, _names = (st.sampled_from(each) for each in ("abc", "st", "gh", "xy"))
_numbers: st.SearchStrategy[int | float] = st.sampled_from([0, 1, 1.0, -0.5, MAX_INTEGER])
_values: st.SearchStrategy[Value] = st.sampled_from(["", "\u00e9", True]) | _numbers
_expected = st.none() | st.builds(Expected, st.none() | _values)
_properties: st.SearchStrategy[dict[str, Value]] = st.fixed_dictionaries(
    {}, optional={"text": st.sampled_from(["", "x"]), "indexed": st.integers(0, 1), "deleted": st.booleans()}
)
_fences = st.builds(Fence, state=_states, epoch=st.integers(1, 3), holder=_holders)
_operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(CreateItem, _ids, st.just("Thing"), _properties),
    st.builds(UpdateItem, _ids, _properties, st.sampled_from([None, None, 1, 2])),
    st.builds(DeleteItem, _ids),
    st.builds(CreateEdge, _ids, st.just("friend"), _ids),
    st.builds(DeleteEdge, _ids, st.just("friend"), _ids),
    st.builds(SetVariable, _states, _names, _values, expected=_expected),
    st.builds(IncrementVariable, _states, _names, _numbers),
    st.builds(DeleteVariable, _states, _names, expected=_expected),
    st.builds(ClaimLease, _states, st.just("r"), _holders, st.integers(5, 15)),
    st.builds(RenewLease, _fences, st.integers(5, 15)),
    st.builds(EndLease, _states),
)


class _Model:
    """What a Pod must hold, said a second time and as plainly as possible."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.edges: set[tuple[str, str]] = set()
        self.variables: dict[tuple[str, str], Value] = {}
        self.leases: dict[str, Lease] = {}

    def apply(self, operations: list[Operation], fence: Fence | None, now_ms: int) -> list[Result]:
        if fence is not None:
            self.check(fence)
        results: list[Result] = []
        for operation in operations:
            if isinstance(operation, ClaimLease | RenewLease | EndLease):
                results.append(self.lease(operation, fence, now_ms))
                fence = results[-1].fence if isinstance(operation, ClaimLease) else fence  # pyright: ignore
            elif isinstance(operation, SetVariable | IncrementVariable | DeleteVariable):
                lease = self.leases.get(operation.state, Lease(state=operation.state))
                if fence is not None and fence.state != operation.state:
                    raise DeniedError("another's")
                if fence is None and lease.holder and now_ms < lease.expires_ms:
                    raise ConflictError("held")
                results.append(self.variable(operation))
            else:
                results.append(self.item(operation, now_ms))
        return results

    def check(self, fence: Fence) -> None:
        lease = self.leases.get(fence.state)
        if lease is None or (lease.epoch, lease.holder) != (fence.epoch, fence.holder):
            raise FencedError("superseded")

    def lease(self, operation: ClaimLease | RenewLease | EndLease, fence: Fence | None, now_ms: int) -> Lease:
        state = operation.fence.state if isinstance(operation, RenewLease) else operation.state
        lease = self.leases.get(state, Lease(state=state))
        epoch, holder, expires_ms = lease.epoch, lease.holder, lease.expires_ms
        match operation:
            case EndLease():
                if fence is not None:
                    raise DeniedError("the owner's")
                epoch, holder, expires_ms = (epoch + 1, "", 0) if holder else (epoch, "", expires_ms)
            case RenewLease():
                self.check(operation.fence)
                expires_ms = now_ms + operation.duration_ms
            case ClaimLease():
                if fence is not None and fence.state != state:
                    raise DeniedError("another's")
                if holder not in ("", operation.holder) and now_ms < expires_ms:
                    raise ConflictError("held")
                epoch, holder = epoch + (holder != operation.holder), operation.holder
                expires_ms = now_ms + operation.duration_ms
        run = "r" if holder else ""
        self.leases[state] = Lease(state=state, epoch=epoch, holder=holder, run=run, expires_ms=expires_ms)
        return self.leases[state]

    def variable(self, operation: SetVariable | IncrementVariable | DeleteVariable) -> Result:
        key = (operation.state, operation.name)
        there = self.variables.get(key)
        if isinstance(operation, IncrementVariable):
            if isinstance(there, str | bool):
                raise InvalidError("no number")
            total = (there or 0) + operation.by
            if isinstance(total, int) and total > MAX_INTEGER:
                raise InvalidError("beyond 64 bits")
            self.variables[key] = total
            return total
        if operation.expected is not None and repr(there) != repr(operation.expected.value):
            raise ConflictError("not as expected")
        if isinstance(operation, SetVariable):
            self.variables[key] = operation.value
        else:
            self.variables.pop(key, None)
        return None

    def item(self, operation: Operation, now_ms: int) -> Result:
        match operation:
            case CreateEdge(source, _, target):
                if any(self.items.get(end, {"deleted": True})["deleted"] for end in (source, target)):
                    raise NotFoundError("an end is absent")
                self.edges.add((source, target))
                return None
            case DeleteEdge(source, _, target):
                self.edges.discard((source, target))
                return None
            case CreateItem(id_, _, changed):
                if id_ in self.items:
                    raise ConflictError("taken")
                self.items[id_] = {"version": 0, "deleted": False}
            case UpdateItem(id_, changed, expected):
                if id_ not in self.items:
                    raise NotFoundError("absent")
                if expected not in (None, self.items[id_]["version"]):
                    raise ConflictError("another version")
            case DeleteItem(id_):
                if self.items.get(id_, {"deleted": True})["deleted"]:
                    return Written(id_, self.items.get(id_, {"version": 0})["version"], now_ms)
                changed = {"deleted": True}
            case _:
                raise AssertionError(operation)
        item = self.items[id_]
        item.update(changed, version=item["version"] + 1, written_ms=now_ms)
        return Written(id_, item["version"], now_ms)


class StoreMachine(RuleBasedStateMachine):
    """Whatever is done to a store, in whatever order: it answers as a simple model does, and holds the same."""

    def open_store(self, clock: FakeClock) -> Store:
        """Open the store under test, empty; it is closed at the end."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(T0)
        self.store = self.open_store(self.clock)
        self.model = _Model()
        _apply(self.store, DeclareTypes((THING,)))

    @rule(ms=st.integers(1, 20))
    def time_passes(self, ms: int) -> None:
        """Leases may expire."""
        self.clock.advance(ms)

    @rule(operations=st.lists(_operations, min_size=1, max_size=4), held=st.none() | _states)
    def apply(self, operations: list[Operation], held: str | None) -> None:
        """Apply one batch, some with the right of who holds a plugin state."""
        fence = None if held is None else self.model.leases.get(held, Lease(state=held)).fence
        model, results, error = copy.deepcopy(self.model), None, None
        try:
            results = model.apply(operations, fence, self.clock.now_ms())
            self.model = model
        except HoldfastError as exc:
            error = type(exc)
        try:
            assert repr([*_apply(self.store, *operations, fence=fence)]) == repr(results)
        except HoldfastError as exc:
            assert type(exc) is error

    @invariant()
    def they_hold_the_same(self) -> None:
        """Every way of reading gives what the model holds."""
        model, store = self.model, self.store
        items = {id_: row for id_, row in store.find_items("a b c".split()).items()}
        assert {
            id_: {
                "version": row.version,
                "deleted": row.is_deleted,
                "written_ms": row.server_modified_ms,
                **row.properties,
            }
            for id_, row in items.items()
        } == model.items
        order = sorted(model.items, key=lambda id_: model.items[id_]["written_ms"])  # stable: created in this order
        there = [id_ for id_ in order if not model.items[id_]["deleted"]]
        assert [found.item for found in store.search(Query(is_deleted=None))] == [items[id_] for id_ in order]
        assert [found.item.id for found in store.search(Query(type="Thing", is_descending=True))] == there[::-1]
        ones = [id_ for id_ in there if model.items[id_].get("indexed") == 1]
        indexed = Query(type="Thing", conditions=_where("indexed", "==", 1))
        assert [found.item.id for found in store.search(indexed)] == ones
        edges = {edge for edge in model.edges if set(edge) <= set(there)}
        for direction, at in ((Direction.OUTGOING, 0), (Direction.INCOMING, 1)):
            rows = store.list_edges("a b c".split(), direction)
            found = sorted((id_, row.item.id) for id_, listed in rows.items() for row in listed)
            assert found == sorted((edge[at], edge[1 - at]) for edge in edges)
        for state in "st":
            assert store.find_lease(state) == model.leases.get(state)
            expected = {name: value for (of, name), value in sorted(model.variables.items()) if of == state}
            assert repr(dict(store.list_variables(state))) == repr(expected)

    def teardown(self) -> None:
        """Close the store."""
        self.store.close()
