"""A batch as a value and as JSON."""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidError
from holdfast.items import PropertyDefinition, TypeDefinition
from holdfast.runs import Fence, Status
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
    size_bytes,
)
from holdfast.store.operations import OPERATIONS
from holdfast.values import Kind

FENCE = Fence(state="s", epoch=3, holder="h")
EACH: dict[str, Operation] = {
    "declare_types": DeclareTypes(
        (TypeDefinition("T", {"a": PropertyDefinition(Kind.REAL, is_indexed=True)}, {"e": ("T", "U")}),), ("T",)
    ),
    "create_item": CreateItem("i", "T", {"a": 1.0, "b": 1, "c": True, "d": ""}),
    "update_item": UpdateItem("i", {"a": None, "b": "é"}, 7),
    "delete_item": DeleteItem("i"),
    "create_edge": CreateEdge("i", "e", "j"),
    "delete_edge": DeleteEdge("i", "e", "j"),
    "set_variable": SetVariable("s", "n", 1.0, "ns", Expected(None)),
    "increment_variable": IncrementVariable("s", "n", 0.5, "ns"),
    "delete_variable": DeleteVariable("s", "n", "ns", Expected(True)),
    "set_progress": SetProgress("r", None),
    "move_run": MoveRun("r", Status.ERROR, "why"),
    "point_snapshot": PointSnapshot("s", None),
    "ask_question": AskQuestion("q", "s", "r", "k", "{}", "v", 5, "1"),
    "answer_question": AnswerQuestion("q", "1"),
    "delete_question": DeleteQuestion("q"),
    "claim_lease": ClaimLease("s", "r", "h", 5, "g"),
    "renew_lease": RenewLease(FENCE, 5),
    "release_lease": ReleaseLease(FENCE),
    "end_lease": EndLease("s"),
    "cancel_lease": CancelLease("s"),
    "append_log": AppendLog("r", "l", "", "9", "x\n"),
    "expire_logs": ExpireLogs(5),
}


def test_every_operation_has_a_name_in_the_json_form() -> None:
    """They are part of a format that other versions read: a renamed class must not rename one."""
    assert {name: type(operation) for name, operation in EACH.items()} == dict(OPERATIONS)


@pytest.mark.parametrize("name", EACH)
def test_an_operation_means_the_same_in_both_forms(name: str) -> None:
    """Values keep their types: 1, 1.0 and True stay three values."""
    batch = Batch((EACH[name],), FENCE, "k")
    text = batch.to_json()
    assert json.loads(text)["operations"][0]["op"] == name
    assert repr(Batch.from_json(text)) == repr(batch)
    assert repr(Batch.from_json(text.decode())) == repr(batch)


def test_the_json_form_is_the_documented_one() -> None:
    """Byte for byte what the docstring shows."""
    batch = Batch((SetVariable("s1", "cursor", 7),), Fence(state="s1", epoch=3, holder="h1"))
    assert batch.to_json() == (
        b'{"operations":[{"op":"set_variable","state":"s1","name":"cursor","value":7,"namespace":"","expected":null}],'
        b'"fence":{"state":"s1","epoch":3,"holder":"h1"},"key":null}'
    )
    assert Batch((), key="k-1_Z").to_json() == b'{"operations":[],"fence":null,"key":"k-1_Z"}'


@pytest.mark.parametrize("key", ["", "a" * 65, "a/b", "a\n", "é", 1, b"a"])
def test_a_key_has_1_to_64_letters_digits_and_dashes(key: Any) -> None:
    """It travels in headers and lies in an index; the longest one is accepted."""
    with pytest.raises(InvalidError, match="cannot be the key of a batch"):
        Batch((), key=key)
    assert Batch((), key="a" * 64).key == "a" * 64


def test_the_digest_is_that_of_the_json_form_without_the_key() -> None:
    """Stores keep it: another version, and another store, must find the same one."""
    batch = Batch((SetVariable("s1", "cursor", 7),), Fence(state="s1", epoch=3, holder="h1"), "k")
    written = (
        b'{"operations":[{"op":"set_variable","state":"s1","name":"cursor","value":7,"namespace":"","expected":null}],'
        b'"fence":{"state":"s1","epoch":3,"holder":"h1"}}'
    )
    assert batch.digest() == hashlib.sha256(written).digest()


def test_what_has_a_default_may_be_left_out() -> None:
    """And an integer is a float where one is meant."""
    text = (
        '{"operations": [{"op": "increment_variable", "state": "s", "name": "n"}, {"op": "set_progress", "run": "r", '
    )
    assert Batch.from_json(text + '"progress": 1}]}') == Batch((IncrementVariable("s", "n", 1), SetProgress("r", 1.0)))
    assert Batch.from_json('{"operations": []}') == Batch(())


VALUES = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
)


@given(VALUES, st.none() | VALUES, st.dictionaries(st.text("ab", max_size=2), st.none() | VALUES))
def test_every_value_survives_the_json_form(value: Any, expected: Any, properties: Any) -> None:
    """To the last bit and with its type."""
    batch = Batch((SetVariable("s", "n", value, expected=Expected(expected)), UpdateItem("i", properties)))
    assert repr(Batch.from_json(batch.to_json())) == repr(batch)


@pytest.mark.parametrize(
    "operation, words",
    [
        (SetVariable("s", "n", math.nan), "'value' of operation 1, set_variable, cannot be nan"),
        (SetVariable("s", "\ud800", 1), "'name' of operation 1, set_variable, cannot be .*surrogate"),
        (SetVariable("s", "n", 2**63), "'value' of operation 1, set_variable, cannot be 9223372036854775808"),
        (SetVariable("s", "n", 1, expected=Expected(math.inf)), "'expected' of operation 1, .* cannot be inf"),
        (CreateItem("i", "T", {"a": "\0"}), "'a' of operation 1, create_item, cannot be .*NUL"),
        (CreateItem("i", "T", {"a": b"x"}), "'a' of operation 1, create_item, cannot be b'x': it is bytes"),
        (CreateItem("i", "T", {"\ud800": 1}), "operation 1, create_item, holds what JSON cannot"),
        (DeclareTypes((TypeDefinition("\ud800"),)), "operation 1, declare_types, holds what JSON cannot"),
        (RenewLease(Fence(state="s", epoch=1, holder="\ud800"), 1), "operation 1, renew_lease, holds what JSON"),
        (SetVariable("s", "n", object()), "operation 1, set_variable, holds what JSON cannot"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(operation: Any, words: str) -> None:
    """Nothing becomes null, text or a crash on its way out; the message says which operation it was."""
    with pytest.raises(InvalidError, match=words):
        Batch((DeleteItem("i"), operation)).to_json()


def test_a_fence_that_json_cannot_hold_is_refused() -> None:
    """As an operation is."""
    with pytest.raises(InvalidError, match="the fence of a batch holds what JSON cannot"):
        Batch((), Fence(state="\ud800", epoch=1, holder="h")).to_json()


@pytest.mark.parametrize(
    "text, words",
    [
        (b"", "a batch must be JSON"),
        (b"{", "a batch must be JSON"),
        (b"\xff", "a batch must be JSON"),
        (b'{"operations": [NaN]}', "a batch must be JSON"),
        (b'"\\ud800"', "a batch must be JSON"),
        (b"[]", r"a batch must be an object with 'operations', not \[\]"),
        (b"{}", "a batch must have a list 'operations'"),
        (b'{"operations": {}}', "a batch must have a list 'operations'"),
        (b'{"operations": [], "more": 1}', "a 'fence' and a 'key', and nothing else"),
        (b'{"operations": [1]}', "operation 0 must be an object with an 'op', not 1"),
        (b'{"operations": [{}]}', "operation 0 cannot be None: an 'op' is one of declare_types, create_item"),
        (b'{"operations": [{"op": "drop"}]}', "operation 0 cannot be 'drop'"),
        (b'{"operations": [{"op": []}]}', r"operation 0 cannot be \[\]"),
        (b'{"operations": [{"op": "end_lease", "state": 1}]}', "operation 0, end_lease, has a wrong 'state', 1"),
        (b'{"operations": [{"op": "end_lease"}]}', "operation 0, end_lease, has a wrong 'state'"),
        (b'{"operations": [{"op": "end_lease", "state": "s", "x": 1}]}', "operation 0, end_lease, has a wrong 'x', 1"),
        (b'{"operations": [{"op": "set_variable", "state": "s", "name": "n", "value": null}]}', "has a wrong 'value"),
        (b'{"operations": [{"op": "set_variable", "state": "s", "name": "n", "value": [1]}]}', r"has a wrong .*\[1\]"),
        (b'{"operations": [{"op": "move_run", "run": "r", "status": "up"}]}', "operation 0, move_run, .* 'up'"),
        (b'{"operations": [], "fence": {"state": "s"}}', "the fence of a batch has a wrong 'epoch'"),
        (b'{"operations": [], "fence": "s"}', "the fence of a batch has a wrong"),
        (b'{"operations": [], "key": 1}', "1 cannot be the key of a batch"),
        (b'{"operations": [], "key": ""}', "'' cannot be the key of a batch: 1 to 64 letters, digits, '-' and '_' can"),
    ],
)
def test_what_is_no_batch_is_refused(text: bytes, words: str) -> None:
    """Whatever a client sends, the answer is what is wrong with it and where."""
    with pytest.raises(InvalidError, match=words):
        Batch.from_json(text)


@pytest.mark.parametrize(
    "operation, size",
    [
        (DeclareTypes((), ("xyz", "é")), 19 + 18),
        (DeleteItem("i"), 96 + 17),
        (CreateEdge("i", "e", "j"), 96 + 17 + 17 + 17),
        (CreateItem("i", "T", {"a": "xyz", "b": 1, "c": "é"}), 96 + 20 + 17 + 19),
        (UpdateItem("i", {"a": None, "b": "\ud800"}), 96 + 17 + 18),
        (SetVariable("s", "n", "xy"), 96 + 17 + 17 + 18 + 16 + 16),
        (SetVariable("s", "n", 1, expected=Expected("xy")), 96 + 17 + 17 + 16 + 16 + 18),
        (AnswerQuestion("q", "é"), 96 + 17 + 18),
    ],
)
def test_the_size_of_an_operation_counts_text_as_utf_8(operation: Operation, size: int) -> None:
    """And 16 for every value besides, so that no batch is free."""
    assert size_bytes(operation) == size


def set_variable(size: int) -> SetVariable:
    """Return an operation of this size."""
    return SetVariable("s", "n", "x" * (size - 178))


@pytest.mark.parametrize("form", [lambda batch: batch, lambda batch: Batch.from_json(batch.to_json())])
def test_50_000_operations_and_64_mib_are_the_most(form: Callable[[Batch], Batch]) -> None:
    """Both limits are inclusive, and hold for a batch that came as JSON."""
    assert len(form(Batch((DeleteItem("i"),) * 50_000)).operations) == 50_000
    half = 32 * 1024 * 1024
    assert len(form(Batch((set_variable(half), set_variable(half)))).operations) == 2


def test_what_is_too_much_is_refused_with_its_size() -> None:
    """The facts say how much it was and how much may be, the message which operation is the largest."""
    with pytest.raises(InvalidError, match="a batch of 50,001 operations is too long: at most 50,000 can be") as caught:
        Batch((DeleteItem("i"),) * 50_001)
    assert caught.value.facts == {"operations": 50_001, "max_operations": 50_000}
    with pytest.raises(InvalidError, match="50,001"):
        Batch.from_json(b'{"operations":[' + b",".join([b"1"] * 50_001) + b"]}")
    mib = 1024 * 1024
    with pytest.raises(InvalidError, match=r"number 1, set_variable, with 63\.0 MiB") as caught:
        Batch((set_variable(mib), set_variable(63 * mib), DeleteItem("i")))
    assert caught.value.facts == {"bytes": 64 * mib + 96 + 17, "max_bytes": 64 * mib, "operation": 1}
