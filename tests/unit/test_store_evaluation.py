"""Whether a batch may happen, and what is to be read and written for it."""

import math
from typing import Any

import pytest

from holdfast.errors import ConflictError, DeniedError, HoldfastError, InvalidError, NotFoundError
from holdfast.items import BUILT_IN, Schema, definition_of
from holdfast.runs import Fence, Lease, Status
from holdfast.store import (
    AnswerQuestion,
    AppendLog,
    AskQuestion,
    Batch,
    CancelLease,
    Changes,
    ClaimLease,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    DeleteEdge,
    DeleteItem,
    DeleteQuestion,
    DeleteVariable,
    EdgeKey,
    EndLease,
    Expected,
    ExpireLogs,
    IncrementVariable,
    ItemRow,
    LogEnd,
    LogKey,
    LogPart,
    MoveRun,
    Needs,
    Operation,
    PointSnapshot,
    Question,
    ReleaseLease,
    RenewLease,
    Result,
    Rows,
    SetProgress,
    SetVariable,
    UpdateItem,
    VariableKey,
    Written,
    evaluate,
    needs,
)
from holdfast.values import Value

SCHEMA = Schema(definition_of(cls) for cls in BUILT_IN)
NOW = 1_000
FENCE = Fence(state="s", epoch=1, holder="h")
HELD = Lease(state="s", epoch=1, holder="h", run="r", expires_ms=NOW + 50)


def row(id_: str, type_: str = "Person", **properties: Value) -> ItemRow:
    """Return an item as stored at time 1."""
    return ItemRow(id_, type_, 1, 1, 1, 1, is_deleted=False, properties=properties)


def rows(*items: ItemRow, lease: Lease | None = None, questions: tuple[Question, ...] = (), **variables: Value) -> Rows:
    """Return what a store would have read; variables are those of plugin state "s"."""
    return Rows(
        schema=SCHEMA,
        items={item.id: item for item in items},
        variables={VariableKey("s", "", name): value for name, value in variables.items()},
        leases={} if lease is None else {lease.state: lease},
        questions={question.id: question for question in questions},
    )


def apply(there: Rows, *operations: Operation, fence: Fence | None = None) -> tuple[tuple[Result, ...], Changes]:
    """Evaluate a batch at the time NOW."""
    return evaluate(Batch(operations, fence), there, now_ms=NOW)


@pytest.mark.parametrize(
    "operation, needed",
    [
        (DeclareTypes(()), Needs()),
        (CreateItem("i", "Person"), Needs()),
        (UpdateItem("i", {"firstName": "x"}), Needs(items={"i"})),
        (UpdateItem("i", {"status": "x"}), Needs(items={"i"})),
        (DeleteItem("i"), Needs(items={"i"})),
        (CreateEdge("i", "e", "j"), Needs(items={"i", "j"})),
        (DeleteEdge("i", "e", "j"), Needs(items={"i", "j"})),
        (SetProgress("i", 0), Needs(items={"i"})),
        (MoveRun("i", Status.DONE), Needs(items={"i"})),
        (SetVariable("s", "n", 1, "ns"), Needs(variables={VariableKey("s", "ns", "n")}, lease_states={"s"})),
        (IncrementVariable("s", "n"), Needs(variables={VariableKey("s", "", "n")}, lease_states={"s"})),
        (DeleteVariable("s", "n"), Needs(variables={VariableKey("s", "", "n")}, lease_states={"s"})),
        (PointSnapshot("s", "x"), Needs(lease_states={"s"})),
        (AskQuestion("q", "s", "r", "k", ""), Needs(lease_states={"s"}, questions={"q"}, question_keys={("s", "k")})),
        (AnswerQuestion("q", ""), Needs(questions={"q"})),
        (DeleteQuestion("q"), Needs(questions={"q"})),
        (ClaimLease("s", "r", "h", 1), Needs(items={"s", "r"}, lease_states={"s"})),
        (RenewLease(FENCE, 1), Needs(lease_states={"s"})),
        (ReleaseLease(FENCE), Needs(lease_states={"s"})),
        (EndLease("s"), Needs(lease_states={"s"})),
        (CancelLease("s"), Needs(lease_states={"s"})),
        (AppendLog("r", "l", "", "9", "x"), Needs(items={"r"}, log_ends={LogKey("r", "l")})),
        (ExpireLogs(5), Needs()),
    ],
)
def test_a_batch_needs_the_rows_that_it_speaks_of(operation: Operation, needed: Needs) -> None:
    """No more than that, and the lease of every plugin state and run that it writes to."""
    assert needs(Batch((operation,))) == needed


def test_what_a_batch_creates_it_does_not_need() -> None:
    """Unless it spoke of it before; a fence needs its lease."""
    batch = Batch((CreateItem("i", "Person"), UpdateItem("i", {}), DeleteItem("j"), CreateItem("j", "Person")), FENCE)
    assert needs(batch) == Needs(items={"j"}, lease_states={"s"})


def test_each_row_is_written_once_in_its_final_form() -> None:
    """However often a batch touches it; what is created is told apart from what is changed."""
    results, changes = apply(
        rows(row("a", firstName="x"), row("b"), n=1),
        UpdateItem("a", {"lastName": "y"}),
        UpdateItem("a", {"firstName": None}),
        CreateItem("c", "Person", {"email": "z"}),
        UpdateItem("c", {"email": "zz"}),
        CreateEdge("a", "relationship", "c"),
        DeleteEdge("a", "relationship", "b"),
        IncrementVariable("s", "n"),
        IncrementVariable("s", "n"),
        SetVariable("s", "m", ""),
        DeleteVariable("s", "m"),
    )
    assert results == (
        Written("a", 2, NOW), Written("a", 3, NOW), Written("c", 1, NOW), Written("c", 2, NOW), None, None, 2, 3, None,
        None,
    )  # fmt: skip
    assert changes == Changes(
        created=[ItemRow("c", "Person", 2, NOW, NOW, NOW, is_deleted=False, properties={"email": "zz"})],
        updated={"a": ItemRow("a", "Person", 3, 1, NOW, NOW, is_deleted=False, properties={"lastName": "y"})},
        edges={EdgeKey("a", "relationship", "c"): True, EdgeKey("a", "relationship", "b"): False},
        variables={VariableKey("s", "", "n"): 3, VariableKey("s", "", "m"): None},
    )


def test_what_is_appended_to_a_log_is_written_in_order_and_what_ends_where_once() -> None:
    """Whatever of it expires in the same batch, nothing of what that appends does."""
    there = rows(row("r", "PluginRun"))
    there.log_ends = {LogKey("r", "old"): LogEnd("", "1", 7), LogKey("r", "l"): LogEnd("", "1", 8)}
    _, changes = apply(
        there,
        AppendLog("r", "l", "1", "2", "a"),
        ExpireLogs(8),
        AppendLog("r", "old", "", "1", "b"),
        AppendLog("r", "l", "2", "3", "c"),
        ExpireLogs(-5),
    )
    parts = [("l", "2", "a"), ("old", "1", "b"), ("l", "3", "c")]
    assert changes == Changes(
        logs_before_ms=8,
        log_parts=[LogPart(number=0, run="r", source=source, end=end, at_ms=NOW, text=text)
                   for source, end, text in parts],
        log_ends={LogKey("r", "l"): LogEnd("2", "3", NOW), LogKey("r", "old"): LogEnd("", "1", NOW)},
    )  # fmt: skip
    assert apply(rows(), ExpireLogs(NOW + 1))[1] == Changes(logs_before_ms=NOW)


@pytest.mark.parametrize(
    "operation",
    [
        DeleteItem("absent"),
        DeclareTypes((definition_of(BUILT_IN[0]),)),
        DeleteQuestion("absent"),
        CancelLease("new"),
        EndLease("new"),
    ],
)
def test_what_changes_nothing_writes_nothing(operation: Operation) -> None:
    """No row is made for what was never there."""
    assert apply(rows(), operation)[1] == Changes()


def test_the_error_says_which_operation_it_was() -> None:
    """By its number in the batch, for programs."""
    with pytest.raises(NotFoundError) as caught:
        apply(rows(row("a")), DeleteItem("a"), UpdateItem("a", {}), UpdateItem("b", {}))
    assert caught.value.facts == {"id": "'b'", "operation": 2}


@pytest.mark.parametrize(
    "operation, words",
    [
        (CreateItem("", "Person"), "'' cannot be the id"),
        (CreateItem("x" * 65, "Person"), "cannot be the id"),
        (CreateItem("\ud800", "Person"), "cannot be the id"),
        (CreateItem("i", "Person", {"id": "j"}), "id of an item cannot be written: the Pod keeps it"),
        (CreateItem("i", "Person", {"dateServerModified": 1}), "dateServerModified of an item cannot be written"),
        (CreateItem("i", "Person", {"dateCreated": 1.5}), "dateCreated cannot be 1.5"),
        (CreateItem("i", "Person", {"deleted": 1}), "deleted cannot be 1"),
        (CreateItem("i", "Person", {"firstName": None}), "Person.firstName cannot be None"),
        (UpdateItem("a", {"firstName": b"x"}), "Person.firstName cannot be b'x'"),
        (UpdateItem("a", {"deleted": None}), "deleted cannot be None"),
        (UpdateItem("a", {"dateModified": 2**63}), "9223372036854775808"),
        (UpdateItem("run", {"status": None}), "run 'run' cannot become None"),
        (SetVariable("s", "x" * 1025, 1), "cannot name a variable: 1 to 1024 characters are allowed"),
        (SetVariable("s", "", 1), "'' cannot name a variable: 1 to 1024 characters are allowed"),
        (SetVariable("s", "n", 1, "x" * 1025), "cannot name a namespace: 0 to 1024 characters are allowed"),
        (SetVariable("s", "n", 1, "\0"), "a namespace cannot be .*NUL"),
        (SetVariable("\ud800", "n", 1), "the id of a plugin state cannot be .*surrogate"),
        (SetVariable("s", "n", {}), r"variable 'n' cannot be \{\}"),
        (SetVariable("s", "n", 1, expected=Expected(math.nan)), "what is expected of variable 'n' cannot be nan"),
        (IncrementVariable("s", "n", True), "the increment True cannot be added to"),
        (IncrementVariable("s", "n", "1"), "the increment '1' cannot be added to"),
        (IncrementVariable("s", "n", None), "the increment of variable 'n' cannot be None"),
        (IncrementVariable("s", "n", 10**400), "the increment of variable 'n' cannot be an integer of 1329 bits"),
        (IncrementVariable("s", "n", 1.7976931348623157e308), "variable 'n' cannot be inf"),
        (SetProgress("run", -0.01), "the progress of a run cannot be -0.01"),
        (SetProgress("run", math.nan), "the progress of a run cannot be nan"),
        (MoveRun("run", "up"), "run 'run' cannot become 'up'"),
        (MoveRun("run", Status.ERROR, "\0"), "the error of run 'run' cannot be"),
        (PointSnapshot("s", "\0"), "a snapshot cannot be"),
        *((PointSnapshot("s", name), "the name of a folder is expected") for name in ("..", ".", "../t/x", "a/b")),
        (PointSnapshot("", "x"), "'' cannot name the id of a plugin state"),
        (AskQuestion("", "s", "r", "k", "{}"), "'' cannot name a question"),
        (AskQuestion("q", "s", "r", "", "{}"), "'' cannot name the key of a question"),
        (AskQuestion("q", "s", "\ud800", "k", "{}"), "a run cannot be"),
        (AskQuestion("q", "s", "r", "k", "\0"), "the form of question 'k' cannot be"),
        (AskQuestion("q", "s", "r", "k", "{}", default="\0"), "the default of question 'k' cannot be"),
        (AskQuestion("q", "s", "r", "k", "{}", view="\0"), "the view of question 'k' cannot be"),
        (AskQuestion("q", "s", "r", "k", "{}", deadline_ms=2**63), "the deadline of question 'k'"),
        (AnswerQuestion("asked", "\0"), "the answer to question 'k' cannot be"),
        (ClaimLease("", "r", "h", 1), "'' cannot name the id of a plugin state"),
        (ClaimLease("s", "", "h", 1), "'' cannot name the id of a run"),
        (ClaimLease("s", "r", "", 1), "'' cannot be a holder"),
        (ClaimLease("s", "r", "h", 0), "a lease of 0 ms cannot be claimed"),
        (ClaimLease("s", "r", "h", 86_400_001), "a lease of 86400001 ms cannot be claimed"),
        (EndLease("\0"), "the id of a plugin state cannot be"),
    ],
)
def test_a_value_that_no_store_can_hold_is_refused_by_name(operation: Operation, words: str) -> None:
    """Also when the operation was built by hand, and wherever in it the value is."""
    asked = Question(id="asked", state="s", run="r", key="k", form="{}", view=None, deadline_ms=None, default=None,
                     asked_ms=1)  # fmt: skip
    there = rows(row("a"), row("run", "PluginRun"), questions=(asked,), n=1.7976931348623157e308)
    with pytest.raises(InvalidError, match=words):
        apply(there, operation)


@pytest.mark.parametrize(
    "status, stored", [("nonsense", "idle"), ("", "idle"), ("ready", "ready"), ("started", "started")]
)
def test_a_new_run_is_idle_or_has_moved_from_there(status: str, stored: str) -> None:
    """An unknown status, and none, are idle; one that idle cannot become is refused."""
    _, changes = apply(rows(), CreateItem("r", "PluginRun", {"status": status}), CreateItem("q", "PluginRun"))
    assert [dict(each.properties) for each in changes.created] == [{"status": stored}, {"status": "idle"}]
    assert type(changes.created[0].properties["status"]) is str
    with pytest.raises(ConflictError, match="run 'r' is idle and cannot become done"):
        apply(rows(), CreateItem("r", "PluginRun", {"status": "done"}))


@pytest.mark.parametrize(
    "before, moves, after",
    [
        ({"status": "started"}, [(Status.ERROR, "why")], {"status": "error", "error": "why"}),
        ({"status": "error", "error": "why"}, [(Status.ERROR, None)], {"status": "error", "error": "why"}),
        ({"status": "error", "error": "why"}, [(Status.READY, None)], {"status": "ready"}),
        ({"status": "started", "error": "old"}, [(Status.DONE, None)], {"status": "done"}),
        ({"status": "started", "error": "old"}, [(Status.ABORTED, None)], {"status": "aborted", "error": "old"}),
        ({}, [(Status.STARTED, None), (Status.DAEMON, None)], {"status": "daemon"}),
    ],
)
def test_the_reason_of_an_error_stays_until_the_run_goes_on(before: Any, moves: Any, after: Any) -> None:
    """It is there as long as somebody may want to read it."""
    _, changes = apply(rows(row("r", "PluginRun", **before)), *(MoveRun("r", *each) for each in moves))
    assert changes.updated["r"].properties == after


def test_what_a_run_holds_nobody_else_writes() -> None:
    """Neither the owner nor another run; the owner may again when the lease has lapsed."""
    run = row("r", "PluginRun", status="started")
    for operation in (SetVariable("s", "n", 1), MoveRun("r", Status.DONE), UpdateItem("r", {"status": "done"})):
        with pytest.raises(ConflictError, match="held by run 'r'"):
            apply(rows(run, lease=HELD), operation)
        assert apply(rows(run, lease=HELD), operation, fence=FENCE)[0] != ()
        lapsed = Lease(state="s", epoch=1, holder="h", run="r", expires_ms=NOW)
        assert apply(rows(run, lease=lapsed), operation)[0] != ()
    other = Lease(state="t", epoch=1, holder="g", run="q", expires_ms=NOW + 50)
    there = rows(run, lease=HELD)
    there.leases["t"] = other
    with pytest.raises(DeniedError, match="a run that holds plugin state 't' cannot write to run 'r'"):
        apply(there, MoveRun("r", Status.DONE), fence=other.fence)


@pytest.mark.parametrize("kind", [CreateEdge, DeleteEdge])
@pytest.mark.parametrize(
    "edge, fence, error",
    [
        (("q", "pluginState", "s"), FENCE, "a run that holds plugin state 's' cannot write to run 'q'"),
        (("q", "account", "a"), FENCE, "a run that holds plugin state 's' cannot write to run 'q'"),
        (("t", "account", "a"), FENCE, "a run that holds plugin state 's' cannot write to 't'"),
        (("r", "pluginState", "t"), FENCE, "run 'r' cannot change which plugin state it works on: only its owner can"),
        (("new", "pluginState", "t"), FENCE, "a run that holds plugin state 's' cannot begin one on 't'"),
        (("r", "pluginState", "t"), None, "plugin state 's' is held by run 'r' for another 1 s"),
        (("new", "pluginState", "s"), FENCE, None),
        (("r", "account", "a"), FENCE, None),
        (("s", "account", "a"), FENCE, None),
        (("r", "account", "a"), None, None),
        (("q", "pluginState", "s"), None, None),
        (("new", "pluginState", "t"), None, None),
        (("deleted", "pluginState", "s"), FENCE, "cannot write to run 'deleted'|'deleted' .* does not exist"),
    ],
)
def test_an_edge_belongs_to_the_item_that_it_begins_at(
    kind: type[CreateEdge | DeleteEdge], edge: tuple[str, str, str], fence: Fence | None, error: str | None
) -> None:
    """So a run changes only its own edges, and what a run that is held works on stays what it is."""
    runs = (row("r", "PluginRun"), row("q", "PluginRun"), row("deleted", "PluginRun")._replace(is_deleted=True))
    there = rows(*runs, *(row(id_, "PersistentState") for id_ in "st"), row("a", "Account"), lease=HELD)
    operations = (CreateItem("new", "PluginRun"), kind(*edge))
    if error is None:
        assert apply(there, *operations, fence=fence)[1].edges == {EdgeKey(*edge): kind is CreateEdge}
    else:
        with pytest.raises((ConflictError, DeniedError, NotFoundError), match=error):
            apply(there, *operations, fence=fence)


def test_a_run_is_protected_by_the_lease_that_it_holds_now() -> None:
    """An older lease of the same run, that lapsed, does not stand for it."""
    there = rows(row("r", "PluginRun", status="started"), lease=HELD)
    there.leases["t"] = Lease(state="t", epoch=1, holder="g", run="r", expires_ms=NOW - 1)
    with pytest.raises(ConflictError, match="plugin state 's' is held by run 'r'"):
        apply(there, MoveRun("r", Status.DONE))


def test_what_follows_a_claim_in_its_batch_is_the_holders() -> None:
    """Claim and first move are one event; the rest of the Pod's states are no longer the batch's to write."""
    run = row("r", "PluginRun", status="ready")
    results, changes = apply(
        rows(run), ClaimLease("s", "r", "h", 50), MoveRun("r", Status.STARTED), SetVariable("s", "n", 1)
    )
    assert results == (HELD, Written("r", 2, NOW), None)
    assert changes.leases == {"s": HELD}
    with pytest.raises(DeniedError, match="a run that holds plugin state 's' cannot write to 't'"):
        apply(rows(run), ClaimLease("s", "r", "h", 50), SetVariable("t", "n", 1))


@pytest.mark.parametrize(
    "operations, error",
    [
        ((UpdateItem("a", {}), CreateItem("a", "Person")), ConflictError),
        ((DeleteItem("a"), CreateItem("a", "Person")), ConflictError),
        ((CreateItem("b", "Person"), CreateItem("b", "Person")), ConflictError),
        ((UpdateItem("b", {}), CreateItem("b", "Person")), NotFoundError),
        ((DeleteItem("a"), CreateEdge("a", "relationship", "a")), NotFoundError),
        ((CreateItem("b", "Person"), DeleteItem("b"), CreateEdge("a", "relationship", "b")), NotFoundError),
    ],
)
def test_operations_meet_what_those_before_them_left(
    operations: tuple[Operation, ...], error: type[HoldfastError]
) -> None:
    """An id is taken by what was deleted; an item must be there before it is changed or linked."""
    with pytest.raises(error):
        apply(rows(row("a")), *operations)
