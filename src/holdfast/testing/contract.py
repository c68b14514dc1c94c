"""What every store must do, as tests: each sentence of `Store` and of the operations is one here.

A store is held to it by a subclass of `StoreContract` that overrides the fixture ``store``; `machine` adds what no list
of examples covers. Whether a batch outlives its process is for each store to show by itself.
"""

# ruff: noqa: FBT001, S101 -- these are tests

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import hypothesis
import pytest
from hypothesis import strategies as st

import holdfast.store.operations as op
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
    KEY_KEPT_MS,
    MAX_LOG_BYTES,
    MAX_LOG_PART_BYTES,
    Batch,
    Comparison,
    Condition,
    Direction,
    LogPart,
    Operation,
    Query,
    Question,
    Result,
    Store,
    Written,
)
from holdfast.testing.fakes import FakeClock
from holdfast.values import MAX_INTEGER, MIN_INTEGER, Kind, Value

T0: Final = 1_000_000
"""When each test begins, on the store's clock."""

_OUT, _IN = Direction.OUTGOING, Direction.INCOMING


def _type(
    name: str, indexed: str = "", edges: Mapping[str, tuple[str, ...]] = MappingProxyType({}), /, **kinds: str
) -> TypeDefinition:
    properties = {each: PropertyDefinition(Kind(kind), each == indexed) for each, kind in kinds.items()}
    return TypeDefinition(name, properties, dict(edges))


_PROPERTIES: Final = {"text": "Text", "integer": "Integer", "real": "Real", "flag": "Bool", "instant": "DateTime"}
THING: Final = _type("Thing", "indexed", {"friend": ("Thing",), "any": ("Item",)}, **_PROPERTIES, indexed="Integer")
OTHER: Final = _type("Other", text="Text", integer="Real", real="Text", flag="Integer", indexed="Integer")

HELD: Final = Fence(state="held", epoch=1, holder="h1")
_BEGINNING: Final[list[Operation]] = [
    op.DeclareTypes((THING,)),
    *(op.CreateItem(id_, "Thing") for id_ in ("t1", "t2", "gone")),
    op.DeleteItem("gone"),
    op.CreateEdge("t1", "friend", "t2"),
    *(op.CreateItem(id_, "PluginRun", {"status": "started"}) for id_ in ("r1", "r2", "over")),
    op.MoveRun("over", Status.DONE),
    *(op.SetVariable("s", repr(value), value) for value in ("a", True, 1, 1.0, MAX_INTEGER)),
    op.AskQuestion("q1", "s", "r2", "k", "{}"),
    op.AnswerQuestion("q1", "1"),
    op.AskQuestion("q2", "held", "r1", "k", "{}"),
    *(op.CreateItem(id_, "PersistentState") for id_ in ("held", "s")),
    *(op.CreateEdge(run, "pluginState", id_) for run, id_ in (("r1", "held"), ("r2", "s"))),
    op.AppendLog("r1", "l1", "", "9", "begun\n"),
    op.ClaimLease("held", "r1", "h1", 60_000),
]
_REFUSED: Final[list[tuple[type[HoldfastError], str, Operation]]] = [
    (ConflictError, "Thing.text is Text .* become Integer", op.DeclareTypes((_type("Thing", text="Integer"),))),
    (InvalidError, "'no name' cannot name", op.DeclareTypes((_type("no name"),))),
    (ConflictError, "type 'Thing' is declared", op.DeclareTypes((THING,), ("Thing",))),
    (ConflictError, "'t1' exists already", op.CreateItem("t1", "Thing")),
    (ConflictError, "'gone' exists already", op.CreateItem("gone", "Thing")),
    (InvalidError, "'Nothing' is not declared", op.CreateItem("x", "Nothing")),
    (InvalidError, "'a/b' cannot be the id", op.CreateItem("a/b", "Thing")),
    (InvalidError, "no property 'colour'", op.CreateItem("x", "Thing", {"colour": "red"})),
    (InvalidError, "integer.* cannot be True", op.CreateItem("x", "Thing", {"integer": True})),
    (InvalidError, "integer.* 9223372036854775808", op.CreateItem("x", "Thing", {"integer": 2**63})),
    (InvalidError, "real.* nan", op.CreateItem("x", "Thing", {"real": math.nan})),
    (InvalidError, r"text.* 'a\\x00'", op.CreateItem("x", "Thing", {"text": "a\0"})),
    (InvalidError, "text.* .*ud800", op.CreateItem("x", "Thing", {"text": "\ud800"})),
    (InvalidError, "1152921504606846976 is not a date", op.CreateItem("x", "Thing", {"instant": 2**60})),
    (NotFoundError, "'absent'", op.UpdateItem("absent", {})),
    (ConflictError, "version 1, not 2", op.UpdateItem("t1", {"text": "a"}, 2)),
    (InvalidError, "cannot be 1: it is declared Text", op.UpdateItem("t1", {"text": 1})),
    (ConflictError, "is done and cannot become started", op.UpdateItem("over", {"status": "started"})),
    (ConflictError, "held by run 'r1'", op.UpdateItem("r1", {"status": "done"})),
    (ConflictError, "held by run 'r1'", op.DeleteItem("r1")),
    (NotFoundError, "source 'absent'", op.CreateEdge("absent", "friend", "t1")),
    (NotFoundError, "target 'gone'", op.CreateEdge("t1", "friend", "gone")),
    (InvalidError, "cannot lead to a PluginRun", op.CreateEdge("t1", "friend", "r1")),
    (InvalidError, "no edge 'enemy'", op.CreateEdge("t1", "enemy", "t2")),
    (ConflictError, "held by run 'r1'", op.CreateEdge("r1", "pluginState", "s")),
    (ConflictError, "held by run 'r1'", op.DeleteEdge("r1", "pluginState", "held")),
    (ConflictError, "is 1, not True", op.SetVariable("s", "1", 2, expected=op.Expected(True))),
    (ConflictError, "is 1, not 1.0", op.SetVariable("s", "1", 2, expected=op.Expected(1.0))),
    (ConflictError, "is True, not 1 ", op.SetVariable("s", "True", 2, expected=op.Expected(1))),
    (ConflictError, "is 1, not absent", op.SetVariable("s", "1", 2, expected=op.Expected(None))),
    (ConflictError, "is absent, not 0", op.SetVariable("s", "new", 2, expected=op.Expected(0))),
    (InvalidError, "nan", op.SetVariable("s", "new", 2, expected=op.Expected(math.nan))),
    (InvalidError, "inf", op.SetVariable("s", "new", math.inf)),
    (InvalidError, "-9223372036854775809", op.SetVariable("s", "new", -(2**63) - 1)),
    (InvalidError, "udfff", op.SetVariable("s", "new", "\udfff")),
    (InvalidError, r"\[1\]", op.SetVariable("s", "new", [1])),  # pyright: ignore[reportArgumentType]
    (InvalidError, r"a\\x00b", op.SetVariable("s", "a\0b", 1)),
    (InvalidError, "'' cannot name a variable: 1 to 1024 char", op.SetVariable("s", "", 1)),
    (InvalidError, "'' cannot name a variable: 1 to 1024 char", op.IncrementVariable("s", "")),
    (InvalidError, "'' cannot name a variable: 1 to 1024 char", op.DeleteVariable("s", "")),
    (InvalidError, "cannot name a namespace: 0 to 1024 char", op.SetVariable("s", "a", 1, "x" * 1025)),
    (InvalidError, "ud801", op.SetVariable("s", "\ud801", 1)),
    (ConflictError, "held by run 'r1'", op.SetVariable("held", "x", 1)),
    (InvalidError, "holds 'a'", op.IncrementVariable("s", "'a'")),
    (InvalidError, "holds True", op.IncrementVariable("s", "True")),
    (InvalidError, "9223372036854775808", op.IncrementVariable("s", "9223372036854775807")),
    (InvalidError, "inf", op.IncrementVariable("s", "1.0", math.inf)),
    (ConflictError, "is 1, not 2", op.DeleteVariable("s", "1", expected=op.Expected(2))),
    (NotFoundError, "no run 't1': that item is a Thing", op.SetProgress("t1", 0.5)),
    (InvalidError, "1.01", op.SetProgress("r2", 1.01)),
    (ConflictError, "held by run 'r1'", op.SetProgress("r1", 0.5)),
    (ConflictError, "is done and cannot become started", op.MoveRun("over", Status.STARTED)),
    (ConflictError, "held by run 'r1'", op.MoveRun("r1", Status.DONE)),
    (ConflictError, "held by run 'r1'", op.PointSnapshot("held", "x")),
    (ConflictError, "'q1' exists already", op.AskQuestion("q1", "s", "r2", "another", "{}")),
    (InvalidError, "9223372036854775808", op.AskQuestion("q", "s", "r2", "l", "{}", deadline_ms=2**63)),
    (ConflictError, "the first answer counts", op.AnswerQuestion("q1", "2")),
    (NotFoundError, "'absent'", op.AnswerQuestion("absent", "2")),
    (ConflictError, "held by run 'r1'", op.DeleteQuestion("q2")),
    (ConflictError, "held by run 'r1'", op.ClaimLease("held", "r2", "h2", 1_000)),
    (NotFoundError, "no plugin state 'gone' any more", op.ClaimLease("gone", "r2", "h2", 1_000)),
    (NotFoundError, "no run 'gone' any more", op.ClaimLease("s", "gone", "h2", 1_000)),
    (ConflictError, "'held' has changed hands: its epoch is 1, not 0", op.EndLease("held", 0)),
    (ConflictError, "'held' has changed hands: its epoch is 1, not 2", op.CancelLease("held", 2)),
    (FencedError, "run 'r1'", op.RenewLease(Fence(state="held", epoch=1, holder="h0"), 1_000)),
    (FencedError, "run 'r1'", op.ReleaseLease(Fence(state="held", epoch=0, holder="h1"))),
    (NotFoundError, "there is no run 'absent'", op.AppendLog("absent", "l1", "", "9", "x")),
    (NotFoundError, "no run 't1': that item is a Thing", op.AppendLog("t1", "l1", "", "9", "x")),
    (ConflictError, "has 'l1' up to '9', and the part begins at ''", op.AppendLog("r1", "l1", "", "10", "x")),
    (ConflictError, "has 'l1' up to '9', and the part begins at '8'", op.AppendLog("r1", "l1", "8", "9", "x")),
    (ConflictError, "has 'l2' up to '', and the part begins at '9'", op.AppendLog("r1", "l2", "9", "10", "x")),
    (InvalidError, "cannot end where it begins, at '9'", op.AppendLog("r1", "l1", "9", "9", "x")),
    (InvalidError, "'' cannot name where a part of a log ends", op.AppendLog("r1", "l1", "9", "", "x")),
    (InvalidError, "'' cannot name the source of a log", op.AppendLog("r1", "", "", "9", "x")),
    (InvalidError, "ud801", op.AppendLog("r1", "\ud801", "", "9", "x")),
    (InvalidError, r"cannot be 'a\\x00'", op.AppendLog("r1", "l1", "9", "10", "a\0")),
    (InvalidError, "9223372036854775808", op.ExpireLogs(2**63)),
]
"""Operations that are refused after `_BEGINNING`: with which error, and what its message says."""

_DENIED_TO_A_RUN: Final[list[Operation]] = [
    op.SetVariable("s", "new", 1),
    op.PointSnapshot("s", "x"),
    op.DeleteQuestion("q1"),
    op.SetProgress("r2", 0.5),
    op.UpdateItem("r2", {"status": "done"}),
    op.CreateEdge("r2", "pluginState", "held"),
    op.DeleteEdge("r2", "pluginState", "s"),
    op.CreateEdge("r2", "view", "c1"),
    op.DeleteEdge("r2", "view", "c1"),
    op.CreateEdge("s", "view", "c1"),
    op.DeleteEdge("s", "view", "c1"),
    op.CreateEdge("r1", "pluginState", "s"),
    op.DeleteEdge("r1", "pluginState", "held"),
    op.CreateEdge("new", "pluginState", "s"),
    op.ClaimLease("s", "r1", "h2", 1_000),
    op.EndLease("held"),
    op.CancelLease("held"),
    op.AppendLog("r1", "l1", "9", "10", "x"),
    op.ExpireLogs(T0 + 1),
]

_SHELF: Final[list[tuple[str, str, dict[str, Value]]]] = [
    ("a", "Thing", {"text": "a", "integer": 1, "real": 0.5, "flag": True, "instant": 5, "indexed": 7}),
    ("b", "Thing", {"text": "B", "integer": -1, "real": 2.0, "flag": False, "indexed": 7}),
    ("c", "Thing", {"text": "\uffff", "integer": 2, "instant": -5}),
    ("d", "Thing", {"text": "\U0001f600", "indexed": 8}),
    ("e", "Other", {"text": "", "integer": 1.5, "real": "2", "flag": 1, "indexed": 7}),
    ("f", "Other", {}),
]
"""Items in the order of creation, 10 ms apart. Afterwards "a" is updated and "f" deleted."""


def where(property_: str, comparison: str, value: Value | None) -> tuple[Condition, ...]:
    """Return one condition, as a query takes them."""
    return (Condition(property_, Comparison(comparison), value),)


_SEARCHES: Final[list[tuple[str, dict[str, Any]]]] = [
    ("bcdea", {}),
    ("bcda", {"type": "Thing"}),
    ("aedcb", {"is_descending": True}),
    ("f", {"is_deleted": True}),
    ("bcdeaf", {"is_deleted": None}),
    ("", {"limit": 0}),
    ("de", {"offset": 2, "limit": 2}),
    ("ed", {"offset": 1, "limit": 2, "is_descending": True}),
    ("", {"offset": 9}),
    ("ca", {"ids": ("a", "c", "c", "f", "absent")}),
    ("", {"ids": ()}),
    ("", {"ids": ("a' OR '1'='1", 'a","b') * 60}),
    ("", {"type": "Thing' OR '1'='1"}),
    ("bcdea", {"conditions": where("it's absent", "==", None)}),
    ("a", {"conditions": where("text", "==", "a")}),
    ("e", {"conditions": where("text", "==", "")}),
    ("cd", {"conditions": where("text", ">=", "\uffff")}),  # by code point: UTF-16 would put d before c
    ("be", {"conditions": where("text", "<", "a")}),
    ("cea", {"conditions": where("integer", ">=", 1)}),
    ("a", {"conditions": where("integer", "==", 1.0)}),
    ("ba", {"conditions": where("real", ">=", 0)}),  # and not the text of "e"
    ("a", {"conditions": where("flag", "==", True)}),  # and not the 1 of "e"
    ("cd", {"conditions": where("flag", "==", None)}),
    ("c", {"conditions": where("instant", "<", 0)}),
    ("bea", {"conditions": where("indexed", "==", 7)}),
    ("a", {"type": "Thing", "conditions": where("indexed", "==", 7), "offset": 1}),
    ("d", {"type": "Thing", "conditions": where("indexed", ">=", 8)}),
    ("a", {"conditions": where("indexed", "==", 7) + where("flag", ">=", False) + where("integer", ">=", 0)}),
    ("de", {"conditions": where("dateCreated", ">=", T0 + 30) + where("id", "<", "f")}),
    ("bc", {"conditions": where("dateServerModified", "<", T0 + 30)}),
]


def apply(store: Store, *operations: Operation, fence: Fence | None = None) -> tuple[Result, ...]:
    """Apply one batch."""
    return store.apply(Batch(operations, fence))


def _everything(store: Store) -> object:
    found = store.search(Query(is_deleted=None, outgoing=True, incoming=True))
    reads = (store.list_variables, store.find_lease, store.find_snapshot, store.list_questions)
    logs = [(store.list_log(run), store.find_log_end(run, "l1")) for run in ("r1", "r2")]
    return dict(store.schema()), found, logs, [read(state) for read in reads for state in ("s", "held", "new")]


def _read_log(store: Store, run: str) -> list[list[LogPart]]:
    read: list[list[LogPart]] = []
    while found := store.list_log(run, read[-1][-1].number if read else 0):
        read.append(found)
    return read


def found_ids(store: Store, **query: Any) -> str:
    """Return the ids that a search finds, each of one letter, as one text."""
    return "".join(found.item.id for found in store.search(Query(**query)))


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
        apply(store, *_BEGINNING)
        return store

    @pytest.mark.parametrize("error, words, operation", _REFUSED)
    def test_what_is_refused_changes_nothing(
        self, pod: Store, error: type[HoldfastError], words: str, operation: Operation
    ) -> None:
        """One refused operation undoes those before it; the error says what is wrong, and with which value."""
        before = _everything(pod)
        with pytest.raises(error, match=words) as caught:
            apply(
                pod,
                op.DeclareTypes((_type("New"),)),
                op.CreateItem("new", "New"),
                op.UpdateItem("t2", {"text": "changed"}),
                op.DeleteEdge("t1", "friend", "t2"),
                op.CreateEdge("t2", "any", "t2"),
                op.SetVariable("new", "a", 1),
                op.PointSnapshot("new", "x"),
                op.AskQuestion("new", "new", "r2", "k", "{}"),
                op.AppendLog("r2", "l1", "", "1", "x"),
                op.ExpireLogs(T0),
                operation,
            )
        assert type(caught.value) is error
        assert _everything(pod) == before

    @pytest.mark.parametrize("operation", _DENIED_TO_A_RUN)
    def test_a_run_writes_to_no_other_run_and_no_other_plugin_state(self, pod: Store, operation: Operation) -> None:
        """What a run does not hold, it is denied, edges included, and by a run that it begins as well.

        Ending and cancelling leases are the owner's, and so is it to say which plugin state a run works on.
        """
        before = _everything(pod)
        with pytest.raises(DeniedError, match="run"):
            apply(
                pod,
                op.SetVariable("held", "x", 1),
                *(op.CreateItem(*each) for each in (("new", "PluginRun"), ("c1", "CVUStoredDefinition"))),
                operation,
                fence=HELD,
            )
        assert _everything(pod) == before

    def test_a_run_links_its_own_and_what_it_makes(self, pod: Store) -> None:
        """And links anything to others; a run that it begins works on its own plugin state, or on one as new.

        Its owner links a run that is held too, but not to another plugin state.
        """
        apply(pod, op.CreateItem("c1", "CVUStoredDefinition"))
        apply(
            pod,
            op.CreateItem("new", "PersistentState"),
            op.CreateEdge("new", "view", "c1"),
            *(op.CreateItem(id_, "PluginRun") for id_ in ("r3", "r4")),
            op.CreateEdge("r3", "pluginState", "held"),
            op.CreateEdge("r4", "pluginState", "new"),
            *(op.CreateEdge(id_, "view", "c1") for id_ in ("held", "r1", "r3")),
            op.DeleteEdge("held", "view", "c1"),
            *(op.CreateEdge("t1", "any", id_) for id_ in ("r2", "s")),
            fence=HELD,
        )
        apply(pod, op.DeleteEdge("r1", "view", "c1"), op.CreateEdge("held", "view", "c1"))
        with pytest.raises(DeniedError, match="cannot write to run 'r3'"):
            apply(pod, op.DeleteEdge("r3", "pluginState", "held"), fence=HELD)
        edges = pod.list_edges(["held", "new", "r1", "r3", "r4", "t1"], _OUT)
        assert {id_: [row.item.id for row in rows] for id_, rows in edges.items()} == {
            "held": ["c1"], "new": ["c1"], "r1": ["held"], "r3": ["held", "c1"], "r4": ["new"], "t1": ["t2", "r2", "s"],
        }  # fmt: skip

    def test_operations_see_the_effects_of_those_before_them(self, store: Store) -> None:
        """What a batch makes can be used in it, a lease included; there is one result for each, in order."""
        lease = Lease(state="s", epoch=1, holder="h", run="r", expires_ms=T0 + 500)
        made: list[tuple[Operation, Result]] = [
            (op.DeclareTypes((THING,)), None),
            (op.CreateItem("a", "Thing", {"integer": 1}), Written("a", 1, T0)),
            (op.UpdateItem("a", {"real": 1}), Written("a", 2, T0)),
            (op.CreateEdge("a", "friend", "a"), None),
            (op.IncrementVariable("s", "n"), 1),
            (op.IncrementVariable("s", "n", 0.5), 1.5),
            (op.DeleteVariable("s", "n"), None),
            (op.IncrementVariable("s", "n", -2), -2),
            (op.SetVariable("s", "n", True, expected=op.Expected(-2)), None),
            (op.CreateItem("r", "PluginRun"), Written("r", 1, T0)),
            (op.ClaimLease("s", "r", "h", 500), lease),
            (op.MoveRun("r", Status.STARTED), Written("r", 2, T0)),
            (op.SetProgress("r", 0.25), Written("r", 3, T0)),
            (op.PointSnapshot("s", "x"), None),
            (op.RenewLease(lease.fence, 500), lease),
            (op.DeleteItem("a"), Written("a", 3, T0)),
        ]
        assert apply(store, *(operation for operation, _ in made)) == tuple(result for _, result in made)
        assert store.find_items(["r"])["r"].properties == {"status": "started", "progress": 0.25}
        assert (store.list_variables("s"), store.find_snapshot("s"), store.find_lease("s")) == ({"n": True}, "x", lease)

    def test_50_000_operations_are_accepted_and_one_more_is_not(self, store: Store) -> None:
        """A batch has at most 50,000 operations; as many rows can be asked for by their ids."""
        ids = [f"i{number}" for number in range(16_000)]
        apply(
            store,
            *(op.CreateItem(id_, "Person", {"firstName": id_}) for id_ in ids),
            *(op.CreateEdge(id_, "relationship", "i0") for id_ in ids),
            *(op.SetVariable("s", id_, 1) for id_ in ids),
            *(op.DeleteItem(f"x{number}") for number in range(2_000)),
        )
        apply(store, *(op.UpdateItem(id_, {"email": "y"}, 1) for id_ in ids), *(op.DeleteItem("x" + i) for i in ids))
        assert len(store.find_items(ids * 3)) == len(store.list_edges(ids * 3, _OUT)) == 16_000
        assert len(store.search(Query(ids=tuple(ids * 3), outgoing=True))) == len(store.list_variables("s")) == 16_000
        with pytest.raises(InvalidError, match="50,001"):
            apply(store, *[op.DeleteVariable("s", "i0")] * 50_001)

    def test_64_mib_are_accepted_and_one_byte_more_is_not(self, store: Store) -> None:
        """What a batch may hold, a store can hold; the refusal of a larger one names its largest operation."""
        text = "x" * (64 * 2**20 - op.size_bytes(op.SetVariable("s", "n", "")))
        apply(store, op.SetVariable("s", "n", text))
        assert store.list_variables("s") == {"n": text}
        with pytest.raises(InvalidError, match=r"MiB is too large.*number 0, set_variable"):
            apply(store, op.SetVariable("s", "n", text + "x"))

    def test_versions_count_and_dates_are_the_stores(self, store: Store, clock: FakeClock) -> None:
        """Each write is a version; the clock dates it; clients may date creation and change; None erases a property."""
        apply(store, op.CreateItem("a", "Person", {"firstName": "x", "dateCreated": -1, "dateModified": 2}))
        assert store.find_items(["a"]) == {"a": ("a", "Person", 1, -1, 2, T0, False, {"firstName": "x"})}
        clock.advance(5)
        changes: dict[str, Value | None] = {"firstName": None, "email": None, "lastName": "y"}
        assert apply(store, op.UpdateItem("a", changes, 1)) == (Written("a", 2, T0 + 5),)
        assert store.find_items(["a"]) == {"a": ("a", "Person", 2, -1, T0 + 5, T0 + 5, False, {"lastName": "y"})}
        assert store.now_ms() == T0 + 5

    def test_a_question_may_be_forgotten_and_asked_anew_in_one_batch(self, store: Store) -> None:
        """Also under the same id with another key, and under the same key with another id."""
        apply(store, op.AskQuestion("a", "s", "r", "k", "1"), op.AskQuestion("b", "s", "r", "l", "2"))
        apply(
            store,
            op.DeleteQuestion("a"),
            op.DeleteQuestion("b"),
            op.AskQuestion("a", "s", "r", "l", "3"),
            op.AskQuestion("c", "s", "r", "k", "4"),
        )
        assert {(each.id, each.key, each.form) for each in store.list_questions("s")} == {
            ("a", "l", "3"),
            ("c", "k", "4"),
        }
        apply(store, op.AnswerQuestion("a", "5"))
        assert [each.answer for each in store.list_questions("s") if each.id == "a"] == ["5"]

    def test_items_of_runs_and_states_are_guarded_as_these_themselves(self, store: Store) -> None:
        """A run that is held is not updated or deleted by its owner, nor by another run; nor is its plugin state."""
        held, other = (
            apply(
                store,
                op.CreateItem("s1", "PersistentState"),
                op.CreateItem("r1", "PluginRun"),
                op.CreateItem("r2", "PluginRun"),
                op.ClaimLease("s1", "r1", "h1", 10_000),
            )[3],
            apply(store, op.ClaimLease("s2", "r2", "h2", 10_000))[0],
        )
        assert isinstance(held, Lease)
        assert isinstance(other, Lease)
        for item in ("r1", "s1"):
            for operation in (op.UpdateItem(item, {}), op.DeleteItem(item)):
                with pytest.raises(ConflictError, match="held by run 'r1'"):
                    apply(store, operation)
                with pytest.raises(DeniedError, match="cannot write to"):
                    apply(store, operation, fence=other.fence)
            apply(store, op.UpdateItem(item, {}), fence=held.fence)
        for operation in (op.ClaimLease("s1", "r2", "h3", 1, "h1"), op.AnswerQuestion("q", "1")):
            with pytest.raises(DeniedError):
                apply(store, operation, fence=held.fence)

    @pytest.mark.parametrize("item", ["s1", "r1"])
    def test_what_a_run_holds_is_not_deleted(self, store: Store, clock: FakeClock, item: str) -> None:
        """Neither the run nor its plugin state, whoever asks and however; a lease that lapsed ends with them."""
        items = (op.CreateItem("s1", "PersistentState"), op.CreateItem("r1", "PluginRun"))
        lease = apply(store, *items, op.ClaimLease("s1", "r1", "h1", 10_000))[2]
        assert isinstance(lease, Lease)
        deletions = (op.DeleteItem(item), op.UpdateItem(item, {"deleted": True}))
        for operation in deletions:
            for fence in (None, lease.fence):
                with pytest.raises(ConflictError, match="plugin state 's1' is held by run 'r1'"):
                    apply(store, operation, fence=fence)
        clock.advance(10_000)
        for operation in deletions:
            with pytest.raises(ConflictError, match="held by run 'r1'"):  # it could be renewed still
                apply(store, operation, fence=lease.fence)
        apply(store, deletions[0])
        with pytest.raises(FencedError, match="was taken from it"):
            apply(store, op.RenewLease(lease.fence, 10_000), fence=lease.fence)
        with pytest.raises(NotFoundError, match=f"{item!r} any more: it was deleted"):
            apply(store, op.ClaimLease("s1", "r1", "h2", 10_000))
        apply(store, op.UpdateItem(item, {"deleted": False}), op.ClaimLease("s1", "r1", "h2", 10_000))
        apply(store, op.EndLease("s1", 3), *deletions)
        assert store.find_items([item])[item].is_deleted

    def test_no_query_compares_a_secret(self, store: Store) -> None:
        """Whoever made the query: the store refuses it, for one type and for all."""
        for type_ in ("Account", None):
            with pytest.raises(DeniedError, match="'secret' cannot be searched for"):
                store.search(Query(type=type_, conditions=where("secret", "==", "x")))

    def test_deletion_is_a_mark(self, store: Store, clock: FakeClock) -> None:
        """A deleted item and its edges are left out until it is undeleted; deleting what is gone does nothing."""
        apply(store, *(op.CreateItem(id_, "Person") for id_ in "ab"), op.CreateEdge("a", "relationship", "b"))
        clock.advance(5)
        gone = Written("b", 2, T0 + 5)
        assert apply(store, *map(op.DeleteItem, "bbc")) == (gone, gone, Written("c", 0, T0 + 5))
        assert {id_: row.is_deleted for id_, row in store.find_items(["a", "b", "c"]).items()} == {
            "a": False,
            "b": True,
        }
        assert (store.list_edges(["a", "b"], _OUT), store.list_edges(["a", "b"], _IN)) == ({}, {})
        assert [found.edges for found in store.search(Query(outgoing=True))] == [()]
        for id_, other, direction in (("a", "b", _OUT), ("b", "a", _IN)):
            (edge,) = store.list_edges([id_, "c"], direction, with_deleted=True)[id_]
            assert (edge.name, edge.item) == ("relationship", store.find_items([other])[other])
        apply(store, op.UpdateItem("b", {"deleted": False}))
        assert [len(found.edges) for found in store.search(Query(outgoing=True))] == [1, 0]

    def test_edges_come_in_the_order_of_creation(self, store: Store) -> None:
        """Both ends know an edge; creating it twice or deleting an absent one does nothing."""
        apply(store, *(op.CreateItem(id_, "Person") for id_ in "abc"), op.CreateItem("p", "Photo"))
        edges = [op.CreateEdge("a", "relationship", id_) for id_ in "cab"]
        apply(store, *edges, op.CreateEdge("a", "profilePicture", "p"), op.CreateEdge("c", "relationship", "b"))
        apply(store, edges[0], op.DeleteEdge("b", "relationship", "a"), op.DeleteEdge("x", "y", "z"))

        def listed(direction: Direction) -> dict[str, str]:
            edges = store.list_edges(["a", "b", "p", "x"], direction)
            return {id_: " ".join(row.name[0] + row.item.id for row in rows) for id_, rows in edges.items()}

        assert listed(_OUT) == {"a": "rc ra rb pp"}
        assert listed(_IN) == {"a": "ra", "b": "ra rc", "p": "pa"}
        assert store.list_edges(["p"], _IN)["p"][0].item == store.find_items(["a"])["a"]
        (found,) = store.search(Query(ids=("c",), outgoing=True, incoming=True))
        assert [(row.direction, row.item.id) for row in found.edges] == [(_OUT, "b"), (_IN, "a")]
        apply(store, op.DeleteEdge("a", "relationship", "c"))
        apply(store, edges[0])
        assert listed(_OUT) == {"a": "ra rb pp rc"}

    def test_the_schema_grows_and_an_equal_definition_changes_nothing(self, store: Store) -> None:
        """Built-in types are there; names may be words of any language; what is indexed later finds earlier items."""
        assert {"PluginRun", "PersistentState", "Account", "Person", "File"} <= store.schema().keys()
        words = {"order": "Integer", "Order": "Integer", "rowid": "Integer", "select": "Integer"}
        small, upper = _type("table", **words), _type("Table", "Order", **words)
        large = _type("table", "order", {"index": ("Table", "table")}, **words, values="Text")
        apply(store, op.DeclareTypes((small, upper)))
        apply(store, op.CreateItem("a", "table", {"order": 1}), op.CreateItem("b", "Table", {"order": 1, "Order": 2}))
        assert apply(store, op.DeclareTypes((large,)), op.DeclareTypes((large, small))) == (None, None)
        assert (store.schema()["table"], store.schema()["Table"]) == (large, upper)
        apply(store, op.UpdateItem("a", {"values": "x"}), op.CreateEdge("a", "index", "b"))
        assert found_ids(store, type="table", conditions=where("order", "==", 1)) == "a"
        assert found_ids(store, conditions=where("Order", "==", 2)) == "b"

    @hypothesis.settings(
        deadline=None,  # a store may flush
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
        """Text, 64-bit integer, boolean and float come back with their type, a float with every bit, and are found."""
        values: dict[str, Value] = {"text": text, "integer": integer, "real": real, "flag": flag, "indexed": integer}
        apply(pod, op.UpdateItem("t1", values), *(op.SetVariable("new", name, values[name]) for name in values))
        for read in (pod.find_items(["t1"])["t1"].properties, pod.list_variables("new")):
            assert {name: repr(value) for name, value in read.items()} == {name: repr(values[name]) for name in values}
            assert struct.pack("d", read["real"]) == struct.pack("d", real)
        assert found_ids(pod, conditions=sum((where(name, "==", values[name]) for name in values), ())) == "t1"

    @pytest.mark.parametrize("expected, query", _SEARCHES)
    def test_a_search_finds_what_it_describes_in_order(
        self, store: Store, clock: FakeClock, expected: str, query: dict[str, Any]
    ) -> None:
        """The order is (dateServerModified, creation); a condition compares only with values of its own nature."""
        apply(store, op.DeclareTypes((THING, OTHER)))
        for operation in (*(op.CreateItem(*each) for each in _SHELF), op.UpdateItem("a", {}), op.DeleteItem("f")):
            apply(store, operation)
            clock.advance(10)
        assert found_ids(store, **query) == expected

    @pytest.mark.parametrize("is_descending", [False, True])
    def test_pages_neither_skip_nor_repeat(self, store: Store, clock: FakeClock, is_descending: bool) -> None:
        """Paging by position gives every item once that nobody wrote meanwhile, also among those of one moment."""
        apply(store, *(op.CreateItem(id_, "Person") for id_ in "hgfedcba"))
        seen, position = "", None
        while page := store.search(Query(limit=2, after=position, is_descending=is_descending)):
            seen += "".join(each.item.id for each in page)
            position = page[-1].position
            clock.advance(1)
            if len(seen) == 2:  # one is written that was seen, one that was not, and one is new
                apply(store, op.UpdateItem(seen[0], {}), op.UpdateItem("e", {}), op.CreateItem("z", "Person"))
        assert seen == ("abcdfgh" if is_descending else "hgfdcbahez")

    def test_variables_are_listed_by_name_within_one_namespace(self, store: Store) -> None:
        """A namespace of one plugin state has its own variables, ordered by code point; what is not empty is a name."""
        names = [" ", "B", "a", "a b", "\u00e9", "\uffff", "\U0001f600"]
        apply(store, *(op.SetVariable("s", name, name) for name in reversed(names)), op.DeleteVariable("s", "none"))
        apply(store, op.SetVariable("s", "a", 1, "other"), op.SetVariable("S", "a", 2))
        assert list(store.list_variables("s").items()) == [(name, name) for name in names]
        assert (store.list_variables("s", "other"), store.list_variables("S")) == ({"a": 1}, {"a": 2})
        apply(store, op.DeleteVariable("s", "a", "other", op.Expected(1)))
        assert (store.list_variables("s", "other"), len(store.list_variables("s"))) == ({}, 7)

    def test_a_plugin_state_points_to_one_snapshot(self, store: Store) -> None:
        """The last one said; None: none."""
        apply(store, *(op.PointSnapshot(*each) for each in (("s", "one"), ("s", "two"), ("t", "three"))))
        assert (store.find_snapshot("s"), store.find_snapshot("absent")) == ("two", None)
        apply(store, op.PointSnapshot("s", None))
        assert (store.find_snapshot("s"), store.find_snapshot("t")) == (None, "three")

    def test_a_question_is_asked_once_and_the_first_answer_stays(self, store: Store, clock: FakeClock) -> None:
        """Asking or answering the same again changes nothing; a forgotten question can be asked anew."""
        asked = Question(
            id="z", state="s", run="r", key="k", form="{}", view="v", deadline_ms=T0 + 9, default="1", asked_ms=T0
        )
        apply(store, op.AskQuestion("z", "s", "r", "k", "{}", "v", T0 + 9, "1"), op.AskQuestion("a", "s", "r", "l", ""))
        clock.advance(1)
        answered = replace(asked, answer="2", answered_ms=T0 + 1)
        ask_anew = op.AskQuestion("b", "s", "r", "k", "[]")
        assert apply(store, ask_anew) == (asked,)
        assert apply(store, op.AnswerQuestion("z", "2")) == (answered,)
        clock.advance(1)
        assert apply(store, op.AnswerQuestion("z", "2"), op.DeleteQuestion("absent")) == (answered, None)
        assert [(question.id, question.answer) for question in store.list_questions("s")] == [("z", "2"), ("a", None)]
        apply(store, op.DeleteQuestion("z"), ask_anew)
        assert [(question.id, question.form) for question in store.list_questions("s")] == [("a", ""), ("b", "[]")]

    def test_a_log_is_read_in_the_order_in_which_it_was_kept(self, pod: Store, clock: FakeClock) -> None:
        """From after any part of it, whichever launch wrote it; also of a run that is held, whose lease stays."""
        before = pod.find_lease("held")
        apply(pod, op.AppendLog("r1", "l2", "", "a", ""), op.AppendLog("r2", "l2", "", "a", "another run's"))
        clock.advance(60_000)
        apply(pod, op.AppendLog("r1", "l1", "9", "10", "x"), op.AppendLog("r1", "l1", "10", "11", "\u00e9"))
        log = pod.list_log("r1")
        assert [(part.source, part.end, part.at_ms, part.text) for part in log] == [
            ("l1", "9", T0, "begun\n"), ("l2", "a", T0, ""), ("l1", "10", T0 + 60_000, "x"),
            ("l1", "11", T0 + 60_000, "\u00e9"),
        ]  # fmt: skip
        (other,) = pod.list_log("r2")
        assert (other.run, other.source, other.text) == ("r2", "l2", "another run's")
        assert log[0].number < log[1].number < other.number < log[2].number < log[3].number
        assert pod.list_log("r1", log[1].number) == pod.list_log("r1", other.number) == log[2:]
        assert (pod.list_log("r1", log[3].number), pod.list_log("absent"), pod.list_log("l1")) == ([], [], [])
        assert [pod.find_log_end(run, "l1") for run in ("r1", "r2", "absent")] == ["11", "", ""]
        assert pod.find_lease("held") == before

    def test_a_part_of_a_log_that_comes_again_is_kept_once(self, pod: Store) -> None:
        """Also at once with the part before it; what two ship that know nothing of each other fits together."""
        apply(pod, op.DeleteItem("r2"), *[op.AppendLog("r2", "l", "", "1", "a")] * 2)
        assert apply(pod, op.AppendLog("r2", "l", "", "1", "another"), op.AppendLog("r2", "l", "1", "2", "b")) == (
            None,
            None,
        )

        def ship(_: int) -> None:
            while (end := int(pod.find_log_end("r2", "l"))) < 20:
                try:
                    apply(pod, op.AppendLog("r2", "l", str(end), str(end + 1), f"{end} "))
                except ConflictError as exc:
                    assert int(str(exc.facts["end"])) > end  # noqa: PT017 -- most are not refused

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(ship, range(3)))
        assert "".join(part.text for part in pod.list_log("r2")) == "ab2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 "

    def test_a_log_is_read_a_mebibyte_at_once(self, pod: Store) -> None:
        """Or one part that is larger, as the largest is; a larger one is refused."""
        part, largest = "\u00e9" * 2**18, "x" * (MAX_LOG_PART_BYTES - 256)
        texts = ["begun\n", part[:-300], part[:-300], part, largest, "y"]
        apply(pod, *(op.AppendLog("r1", "l1", str(at), str(at + 1), text) for at, text in enumerate(texts[1:], 9)))
        read = [[part.text for part in parts] for parts in _read_log(pod, "r1")]
        assert read == [texts[:3], texts[3:4], texts[4:5], texts[5:]]
        with pytest.raises(InvalidError, match="4,194,305 bytes is too large"):
            apply(pod, op.AppendLog("r1", "l2", "", "1", largest + "x"))

    def test_of_a_log_the_last_16_mib_are_kept(self, pod: Store) -> None:
        """Of all its sources together, and of each run; how far a source was kept is known still."""
        text = "x" * (MAX_LOG_BYTES // 4 - 256)
        apply(pod, op.AppendLog("r2", "l1", "", "1", "of another run"))
        apply(pod, *(op.AppendLog("r1", "l2", str(at or ""), str(at + 1), text) for at in range(4)))
        assert [part.end for part in pod.list_log("r1")] == ["1"]
        assert pod.find_log_end("r1", "l1") == "9"
        apply(pod, op.AppendLog("r1", "l1", "", "9", "again"), op.AppendLog("r1", "l1", "9", "10", "y"))
        assert [part.end for parts in _read_log(pod, "r1") for part in parts] == ["2", "3", "4", "10"]
        assert [part.text for part in pod.list_log("r2")] == ["of another run"]

    def test_logs_expire_and_their_numbers_do_not_come_back(self, pod: Store, clock: FakeClock) -> None:
        """What was kept before goes, of every run; and where a source ends, if none of it was kept later."""
        apply(pod, op.AppendLog("r1", "l2", "", "1", "a"), op.AppendLog("r2", "l1", "", "1", "b"))
        clock.advance(10)
        apply(pod, op.AppendLog("r1", "l2", "1", "2", "c"), op.ExpireLogs(T0))
        assert [part.text for part in pod.list_log("r1")] == ["begun\n", "a", "c"]
        ahead = (op.AppendLog("r2", "l1", "", "1", "d"), op.ExpireLogs(T0), op.ExpireLogs(T0 + 11))
        apply(pod, op.ExpireLogs(T0 + 1), *ahead)
        assert [part.text for part in pod.list_log("r1")] == ["c"]
        ends = [pod.find_log_end(*each) for each in (("r1", "l1"), ("r1", "l2"), ("r2", "l1"))]
        assert (ends, [part.text for part in pod.list_log("r2")]) == (["", "2", "1"], ["d"])
        last = pod.list_log("r2")[-1].number
        clock.advance(10)
        apply(pod, op.ExpireLogs(T0 + 11))
        apply(pod, op.AppendLog("r2", "l1", "", "1", "e"))
        assert (pod.list_log("r1"), [part.text for part in pod.list_log("r2", last)]) == ([], ["e"])

    def test_a_status_moves_and_keeps_its_reason(self, store: Store) -> None:
        """An update of the status is a move too; an unknown or no one of a new run is idle; repeating is allowed."""
        apply(store, op.CreateItem("r", "PluginRun", {"status": "?"}), op.CreateItem("q", "PluginRun"))
        assert [store.find_items(["q", "r"])[id_].properties for id_ in "qr"] == [{"status": "idle"}] * 2
        apply(store, op.UpdateItem("r", {"status": "started"}))
        assert store.find_items(["r"])["r"].properties == {"status": "started"}
        apply(store, op.MoveRun("r", Status.ERROR, "no luck"), op.MoveRun("r", Status.ERROR), op.SetProgress("r", 1))
        assert store.find_items(["r"])["r"].properties == {"status": "error", "error": "no luck", "progress": 1.0}
        apply(store, op.MoveRun("r", Status.READY), op.SetProgress("r", None))
        assert store.find_items(["r"])["r"].properties == {"status": "ready"}

    def test_a_superseded_run_changes_nothing(self, pod: Store, clock: FakeClock) -> None:
        """After another claim, whatever the former holder writes is fenced; so is a right that nobody was given."""
        clock.advance(60_000)
        apply(pod, op.ClaimLease("held", "r2", "h2", 1_000))
        before = _everything(pod)
        for fence in (HELD, Fence(state="held", epoch=2, holder="h1"), Fence(state="new", epoch=0, holder="")):
            for operation in (op.SetVariable("held", "x", 1), op.CreateItem("x", "Person"), op.ReleaseLease(fence)):
                with pytest.raises(FencedError):
                    apply(pod, operation, fence=fence)
        assert _everything(pod) == before

    def test_a_lease_is_claimed_and_renewed_and_lapses(self, store: Store, clock: FakeClock) -> None:
        """A repeated claim renews; what lapsed may be renewed until it is claimed; a dead holder is no obstacle."""
        lease = Lease(state="s", epoch=1, holder="h1", run="r1", expires_ms=T0 + 100)
        assert store.find_lease("s") is None
        assert apply(store, op.ClaimLease("s", "r1", "h1", 100)) == (lease,)
        clock.advance(50)
        assert apply(store, op.ClaimLease("s", "r1", "h1", 100)) == (replace(lease, expires_ms=T0 + 150),)
        clock.advance(100)
        assert apply(store, op.RenewLease(lease.fence, 100), fence=lease.fence) == (
            replace(lease, expires_ms=T0 + 250),
        )
        clock.advance(100)
        second = Lease(state="s", epoch=2, holder="h2", run="r2", expires_ms=T0 + 350)
        assert apply(store, op.ClaimLease("s", "r2", "h2", 100)) == (second,)
        third = Lease(state="s", epoch=3, holder="h3", run="r1", expires_ms=T0 + 350)
        assert apply(store, op.ClaimLease("s", "r1", "h3", 100, dead_holder="h2")) == (third,)
        assert store.find_lease("s") == third

    @pytest.mark.parametrize(
        "write",
        [op.SetVariable("held", "n", 9), op.MoveRun("r1", Status.READY), op.DeleteEdge("r1", "pluginState", "held")],
        ids=repr,
    )
    def test_what_the_owner_writes_after_a_lease_lapsed_ends_it(
        self, pod: Store, clock: FakeClock, write: op.Operation
    ) -> None:
        """Its run may only sleep; when it wakes it does not know what was written, so it is refused."""
        clock.advance(60_000)
        apply(pod, write)
        assert pod.find_lease("held") == Lease(state="held", epoch=2)
        with pytest.raises(FencedError):
            apply(pod, op.RenewLease(HELD, 60_000), fence=HELD)

    def test_a_lease_is_given_back_ended_or_cancelled(self, pod: Store) -> None:
        """After release and end nobody holds it and the former holder is fenced; a cancel is told with the renewal."""
        apply(pod, op.CancelLease("held", 1), op.CancelLease("new"), op.EndLease("new"), op.EndLease("new", 0))
        assert pod.find_lease("new") is None
        cancelled = Lease(state="held", epoch=1, holder="h1", run="r1", expires_ms=T0 + 60_000, is_cancelled=True)
        assert apply(pod, op.RenewLease(HELD, 60_000), fence=HELD) == (cancelled,)
        apply(pod, op.MoveRun("r1", Status.READY), op.ReleaseLease(HELD), fence=HELD)
        assert pod.find_lease("held") == Lease(state="held", epoch=1)
        apply(pod, op.SetVariable("held", "x", 1), op.ClaimLease("held", "r2", "h2", 1_000))
        apply(pod, op.EndLease("held"), op.SetVariable("held", "x", 2), op.MoveRun("r2", Status.ABORTED))
        with pytest.raises(FencedError, match="was taken from it"):
            apply(pod, op.SetVariable("held", "x", 3), fence=Fence(state="held", epoch=2, holder="h2"))
        assert pod.list_variables("held") == {"x": 2}

    def test_a_batch_that_comes_again_under_its_key_is_answered_again(self, pod: Store, clock: FakeClock) -> None:
        """With each result as it was, also after the run was superseded, and nothing is done twice."""
        lease = Lease(state="held", epoch=1, holder="h1", run="r1", expires_ms=T0 + 60_000)
        question = Question(id="q3", state="held", run="r1", key="l", form="{}", view=None, deadline_ms=None,
                            default=None, asked_ms=T0)  # fmt: skip
        answers: list[tuple[Operation, Result]] = [
            (op.CreateItem("new", "Thing"), Written("new", 1, T0)),
            (op.IncrementVariable("held", "n"), 1),
            (op.IncrementVariable("held", "m", 0.5), 0.5),
            (op.SetVariable("held", "x", 1), None),
            (op.AskQuestion("q3", "held", "r1", "l", "{}"), question),
            (op.RenewLease(HELD, 60_000), lease),
        ]
        batch = Batch(tuple(operation for operation, _ in answers), HELD, "k-_1" * 16)
        assert pod.apply(batch) == tuple(result for _, result in answers)
        clock.advance(60_000)
        apply(pod, op.DeleteItem("new"), op.ClaimLease("held", "r2", "h2", 1_000), op.DeleteQuestion("q3"))
        before = _everything(pod)
        clock.advance(KEY_KEPT_MS - 60_001)
        assert repr(pod.apply(batch)) == repr(tuple(result for _, result in answers))
        assert _everything(pod) == before

    def test_a_key_is_for_one_batch(self, pod: Store) -> None:
        """Other operations, or the same with another fence, are refused under it, and nothing is changed."""
        batch = Batch((op.IncrementVariable("held", "n"),), HELD, "k")
        pod.apply(batch)
        before = _everything(pod)
        for other in (
            replace(batch, operations=batch.operations * 2),
            replace(batch, operations=(op.IncrementVariable("held", "n", 2),)),
            replace(batch, fence=replace(HELD, epoch=2)),
            replace(batch, fence=None),
        ):
            with pytest.raises(ConflictError, match="another batch was applied under the key 'k'") as caught:
                pod.apply(other)
            assert type(caught.value) is ConflictError
        assert _everything(pod) == before
        assert pod.apply(replace(batch, key="l")) == (2,)

    def test_a_batch_that_was_refused_leaves_no_key(self, store: Store) -> None:
        """It may come again when what it needs is there, and so may another one under its key."""
        batch = Batch((op.IncrementVariable("s", "n"), op.UpdateItem("a", {})), None, "k")
        for _ in range(2):
            with pytest.raises(NotFoundError):
                store.apply(batch)
        apply(store, op.CreateItem("a", "Person"))
        assert store.apply(batch) == store.apply(batch) == (1, Written("a", 2, T0))
        with pytest.raises(NotFoundError):
            store.apply(Batch((op.UpdateItem("b", {}),), None, "l"))
        assert store.apply(Batch((op.IncrementVariable("s", "n"),), None, "l")) == (2,)

    def test_a_key_is_forgotten_after_a_day(self, store: Store, clock: FakeClock) -> None:
        """A day after it was written, not after it was last asked for; then it is free for any batch."""
        batch = Batch((op.IncrementVariable("s", "n"),), None, "k")
        for wait_ms, answer in ((0, 1), (KEY_KEPT_MS - 1, 1), (1, 2), (KEY_KEPT_MS - 1, 2)):
            clock.advance(wait_ms)
            assert store.apply(batch) == (answer,)
        clock.advance(1)
        assert store.apply(replace(batch, operations=batch.operations * 2)) == (3, 4)

    def test_a_batch_that_comes_several_times_at_once_is_applied_once(self, store: Store) -> None:
        """Whoever comes second is answered what the first was."""
        batches = [Batch((op.IncrementVariable("s", "n"),), None, f"k{number // 4}") for number in range(40)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(store.apply, batches))
        assert [answers[at : at + 4] for at in range(0, 40, 4)] == [[answers[at]] * 4 for at in range(0, 40, 4)]
        assert sorted(answers[::4]) == [(number,) for number in range(1, 11)]
        assert store.list_variables("s") == {"n": 10}

    def test_writers_at_once_lose_nothing_and_readers_see_whole_batches(self, store: Store) -> None:
        """Batches of several threads happen one after the other; no read sees half of one."""

        def write(number: int) -> None:
            for at in range(25):
                pair = [op.CreateItem(f"{end}{number}-{at}", "Person") for end in "ab"]
                apply(store, op.IncrementVariable("s", "n"), *pair, op.IncrementVariable("s", "m"))

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, number) for number in range(4)]
            while not all(writer.done() for writer in writers):
                assert len(found_ids(store, type="Person").split("-")) % 2 == 1
                variables = store.list_variables("s")
                assert variables.get("n") == variables.get("m")
        assert [writer.result() for writer in writers] == [None] * 4
        assert store.list_variables("s") == {"m": 100, "n": 100}
        assert len(store.search(Query())) == 200

    def test_closing_twice_is_harmless_and_final(self, pod: Store) -> None:
        """A closed store answers nothing more, and says so."""
        pod.close()
        pod.close()
        for use in (lambda: apply(pod, op.SetVariable("s", "x", 1)), pod.schema, lambda: pod.search(Query())):
            with pytest.raises(UnavailableError, match="closed"):
                use()
