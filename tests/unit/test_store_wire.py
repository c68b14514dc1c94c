"""What is asked of a Pod and what it answers, as JSON."""

import json
import math
from typing import Any

import pytest

from holdfast.errors import InvalidError
from holdfast.items import PropertyDefinition, Schema, TypeDefinition
from holdfast.runs import Lease
from holdfast.store import (
    Batch,
    Comparison,
    Condition,
    DeleteItem,
    Direction,
    EdgeRow,
    Found,
    ItemRow,
    LogPart,
    Query,
    Question,
    Store,
    Written,
)
from holdfast.store.wire import METHODS, dump_results, load_results
from holdfast.values import Kind

ROW = ItemRow("a", "Dog", 2, 3, 4, 5, False, {"name": "Bob", "age": 1, "weight": 1.0, "tame": True})
ROW_JSON = '["a","Dog",2,3,4,5,false,{"name":"Bob","age":1,"weight":1.0,"tame":true}]'
LEASE = Lease(state="s", epoch=1, holder="h", run="r", expires_ms=5)
LEASE_JSON = '{"state":"s","epoch":1,"holder":"h","run":"r","expires_ms":5,"is_cancelled":false}'
QUESTION = Question(
    id="q", state="s", run="r", key="k", form="{}", view=None, deadline_ms=None, default=None, asked_ms=5
)
QUESTION_JSON = (
    '{"id":"q","state":"s","run":"r","key":"k","form":"{}","view":null,"deadline_ms":null,"default":null,"asked_ms":5,'
    '"answer":null,"answered_ms":null}'
)
EDGE = EdgeRow(name="friend", item=ROW, direction=Direction.INCOMING)
EDGE_JSON = f'{{"name":"friend","item":{ROW_JSON},"direction":"Incoming"}}'
QUERY = Query(type="Dog", conditions=(Condition("age", Comparison.AT_LEAST, 1.0),), after=(5, 7), limit=3)

CALLS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "apply": [
        (
            {"batch": Batch((DeleteItem("a"),), None, "k")},
            '{"operations":[{"op":"delete_item","id":"a"}],"fence":null,"key":"k"}',
        )
    ],
    "schema": [({}, "{}")],
    "find_items": [({"ids": ["a", "é"]}, '{"ids":["a","é"]}')],
    "search": [
        (
            {"query": QUERY},
            (
                '{"query":{"type":"Dog","conditions":[{"property":"age","comparison":">=","value":1.0}],"ids":null,'
                '"is_deleted":false,"is_descending":false,"limit":3,"offset":0,"after":[5,7],"outgoing":false,'
                '"incoming":false}}'
            ),
        )
    ],
    "list_edges": [
        (
            {"ids": ["a"], "direction": Direction.OUTGOING, "with_deleted": True},
            '{"ids":["a"],"direction":"Outgoing","with_deleted":true}',
        )
    ],
    "list_variables": [({"state": "s", "namespace": "n"}, '{"state":"s","namespace":"n"}')],
    "find_lease": [({"state": "s"}, '{"state":"s"}')],
    "find_snapshot": [({"state": "s"}, '{"state":"s"}')],
    "list_questions": [({"state": "s"}, '{"state":"s"}')],
    "list_log": [({"run": "r", "after": 7}, '{"run":"r","after":7}')],
    "find_log_end": [({"run": "r", "source": "l"}, '{"run":"r","source":"l"}')],
    "now_ms": [({}, "{}")],
}
ANSWERS: dict[str, list[tuple[Any, str]]] = {
    "apply": [
        ((), "[]"),
        (
            (Written("a", 1, 5), 1, 0.5, 2.0, None, LEASE, QUESTION),
            f'[["a",1,5],1,0.5,2.0,null,{LEASE_JSON},{QUESTION_JSON}]',
        ),
    ],
    "schema": [
        (
            Schema(
                [TypeDefinition("Dog", {"age": PropertyDefinition(Kind.INTEGER, is_indexed=True)}, {"e": ("Dog",)})]
            ),
            (
                '[{"name":"Dog","properties":{"age":{"kind":"Integer","is_indexed":true,"is_secret":false}},'
                '"edges":{"e":["Dog"]}}]'
            ),
        )
    ],
    "find_items": [({}, "{}"), ({"a": ROW}, f'{{"a":{ROW_JSON}}}')],
    "search": [
        (
            [Found(item=ROW, position=(5, 7), edges=(EDGE,))],
            f'[{{"item":{ROW_JSON},"position":[5,7],"edges":[{EDGE_JSON}]}}]',
        )
    ],
    "list_edges": [({"a": [EDGE]}, f'{{"a":[{EDGE_JSON}]}}')],
    "list_variables": [({"a": 1, "b": 1.0, "c": True, "d": ""}, '{"a":1,"b":1.0,"c":true,"d":""}')],
    "find_lease": [(None, "null"), (LEASE, LEASE_JSON)],
    "find_snapshot": [(None, "null"), ("x", '"x"')],
    "list_questions": [([QUESTION], f"[{QUESTION_JSON}]")],
    "list_log": [
        (
            [LogPart(number=7, run="r", source="l", end="9", at_ms=5, text="x\n")],
            '[{"number":7,"run":"r","source":"l","end":"9","at_ms":5,"text":"x\\n"}]',
        )
    ],
    "find_log_end": [("", '""'), ("9", '"9"')],
    "now_ms": [(5, "5")],
}


def test_every_method_of_a_store_travels() -> None:
    """But closing it; and the words that stand for them in addresses are part of a protocol."""
    assert {*METHODS} == {name for name in vars(Store) if not name.startswith("_")} - {"close"}
    assert [method.word for method in METHODS.values()] == [
        "apply", "schema", "items", "search", "edges", "variables", "lease", "snapshot", "questions", "log",
        "log-end", "now",
    ]  # fmt: skip
    assert [method.name for method in METHODS.values()] == [*METHODS] == [*CALLS] == [*ANSWERS]


@pytest.mark.parametrize("name", CALLS)
def test_what_is_asked_has_this_form(name: str) -> None:
    """Whatever way the arguments are given; both sides mean the same by it."""
    for arguments, text in CALLS[name]:
        method = METHODS[name]
        assert method.dump_arguments(**arguments).decode() == text
        assert repr(method.load_arguments(text)) == repr(arguments)
        if name != "list_edges":
            assert method.dump_arguments(*arguments.values()).decode() == text


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_answered_has_this_form(name: str) -> None:
    """And keeps its types: 1, 1.0 and true stay three values."""
    for answer, text in ANSWERS[name]:
        assert METHODS[name].dump_answer(answer).decode() == text
        loaded = METHODS[name].load_answer(text)
        assert type(loaded) is type(answer)
        assert repr(dict(loaded) if name == "schema" else loaded) == repr(dict(answer) if name == "schema" else answer)


def test_results_have_the_form_of_their_answer() -> None:
    """It is what a store keeps of a batch that has a key."""
    assert dump_results((Written("a", 1, 5), 2.0)) == b'[["a",1,5],2.0]'
    assert repr(load_results('[["a",1,5],2.0]')) == repr((Written("a", 1, 5), 2.0))


def test_what_has_a_default_may_be_left_out() -> None:
    """As in a call."""
    assert METHODS["list_variables"].load_arguments('{"state":"s"}') == {"state": "s", "namespace": ""}
    assert METHODS["list_edges"].load_arguments('{"ids":[],"direction":"Outgoing"}') == {
        "ids": [],
        "direction": Direction.OUTGOING,
        "with_deleted": False,
    }
    assert METHODS["search"].load_arguments('{"query":{}}') == {"query": Query()}
    assert METHODS["list_log"].load_arguments('{"run":"r"}') == {"run": "r", "after": 0}


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("find_items", b"", "what find_items is asked is wrong: Invalid JSON"),
        ("find_items", b"\xff", "what find_items is asked is wrong: Invalid JSON"),
        ("find_items", b"[" * 100_000, "what find_items is asked is wrong: Invalid JSON: recursion limit"),
        ("find_items", b"null", "what find_items is asked is wrong: Input should be an object"),
        ("find_items", b"{}", "what find_items is asked has a wrong 'ids'"),
        ("find_items", b'{"ids":"ab"}', "what find_items is asked has a wrong 'ids', 'ab'"),
        ("find_items", b'{"ids":["a",1]}', r"what find_items is asked has a wrong 'ids\.1', 1"),
        ("find_items", b'{"ids":["\\ud800"]}', "what find_items is asked is wrong: Invalid JSON"),
        ("find_items", b'{"ids":[],"more":1}', "what find_items is asked has a wrong 'more', 1"),
        ("list_edges", b'{"ids":[],"direction":"Up"}', "what list_edges is asked has a wrong 'direction', 'Up'"),
        ("list_edges", b'{"ids":[],"direction":"Outgoing","with_deleted":1}', "a wrong 'with_deleted', 1"),
        ("search", b'{"query":{"limit":"3"}}', r"what search is asked has a wrong 'query\.limit', '3'"),
        ("search", b'{"query":{"order":"name"}}', r"what search is asked has a wrong 'query\.order', 'name'"),
        ("search", b'{"query":{"after":[1]}}', r"what search is asked has a wrong 'query\.after\.1'"),
        (
            "search",
            b'{"query":{"conditions":[{"property":"a","comparison":"==","value":NaN}]}}',
            "'a' in a search cannot be nan",
        ),
        ("schema", b'{"at":1}', "what schema is asked has a wrong 'at', 1"),
        ("apply", b'{"operations":[1]}', "operation 0 must be an object"),
    ],
)
def test_what_is_no_question_is_refused(name: str, text: bytes, words: str) -> None:
    """By what is wrong with it and where: a condition that is not understood is not left out."""
    with pytest.raises(InvalidError, match=words):
        METHODS[name].load_arguments(text)


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("find_items", [["\ud800"]], "what find_items is asked holds what JSON cannot"),
        ("find_items", [[1]], "what find_items is asked holds what JSON cannot"),
        ("search", [Query(type=3)], "what search is asked holds what JSON cannot"),  # pyright: ignore[reportArgumentType]
        ("search", [Query(conditions=(Condition("a", Comparison.EQUAL, math.nan),))], "'a' in a search cannot be nan"),
        ("search", [Query(conditions=(Condition("a", Comparison.EQUAL, b"x"),))], "'a' in a search cannot be b'x'"),  # pyright: ignore[reportArgumentType]
        ("apply", [Batch((DeleteItem("\ud800"),))], "'id' of operation 0, delete_item, cannot be"),
    ],
)
def test_what_json_cannot_hold_is_not_asked(name: str, arguments: list[Any], words: str) -> None:
    """Nothing becomes null or text on its way out."""
    with pytest.raises(InvalidError, match=words):
        METHODS[name].dump_arguments(*arguments)


def test_a_call_that_is_none_is_a_type_error() -> None:
    """As without a wire."""
    for name, arguments in (
        ("search", []),
        ("apply", []),
        ("now_ms", [1]),
        ("list_edges", [[], Direction.OUTGOING, True]),
    ):
        with pytest.raises(TypeError):
            METHODS[name].dump_arguments(*arguments)


def test_a_question_of_more_than_8_mib_is_not_read() -> None:
    """The most that may be asked, 50,000 ids of the longest kind, is half of that."""
    ids = json.dumps({"ids": ["a" * 64] * 50_000})
    assert len(ids) < 4 * 2**20
    assert len(METHODS["find_items"].load_arguments(ids)["ids"]) == 50_000
    with pytest.raises(InvalidError, match=r"it has 8,388,609 bytes as JSON, and at most 8,388,608 can be") as caught:
        METHODS["find_items"].load_arguments(b" " * (8 * 2**20 + 1))
    assert caught.value.facts == {"bytes": 8_388_609, "max_bytes": 8_388_608}


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("find_lease", b"<html>", "the answer of find_lease is wrong: Invalid JSON"),
        ("find_lease", b'{"state":"s","epoch":"hush"}', "the answer of find_lease has a wrong 'epoch', str:"),
        ("list_variables", b'{"a":["hush"]}', r"the answer of list_variables has a wrong 'a\.str', list:"),
        ("find_items", b'{"a":["a"]}', r"the answer of find_items has a wrong 'a\.1', list"),
        ("schema", b"{}", "the answer of schema is wrong"),
        ("now_ms", b"5.5", "the answer of now_ms is wrong"),
    ],
)
def test_what_is_no_answer_is_refused_and_not_repeated(name: str, text: bytes, words: str) -> None:
    """By where it is wrong; what it holds may be a secret."""
    with pytest.raises(InvalidError, match=words) as caught:
        METHODS[name].load_answer(text)
    assert "hush" not in str(caught.value)


def test_an_answer_may_say_more_than_this_version_knows() -> None:
    """A later Pod is understood by an earlier client."""
    assert METHODS["find_lease"].load_answer(LEASE_JSON[:-1] + ',"mood":"good"}') == LEASE
