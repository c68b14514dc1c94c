"""Searches along edges as Memri's clients write them: what is answered, and that no text asks for more than it may."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import DeniedError, InvalidError
from holdfast.items import TypeDefinition
from holdfast.server import memri_graphql
from holdfast.server.memri_forms import schema_of_clients
from holdfast.server.memri_graphql import MAX_TEXT, answer
from holdfast.store import Batch, CreateEdge, CreateItem, DeclareTypes, DeleteItem, Operation, Store
from holdfast.testing import FakeClock, MemoryStore

NOW = 1_000_000_000_000
ALWAYS = {"dateCreated": NOW, "dateModified": NOW, "dateServerModified": NOW, "deleted": False}


@pytest.fixture
def store() -> Store:
    """Ada has three accounts, two of them with messages."""
    store = MemoryStore(clock=FakeClock(NOW))
    operations: list[Operation] = [CreateItem("ada", "Person", {"firstName": "Ada"})]
    for id_, service in {"a1": "whatsapp", "a2": "instagram", "a3": "gmail"}.items():
        operations += [
            CreateItem(id_, "Account", {"service": service, "handle": id_, "secret": "s3cret"}),
            CreateEdge("ada", "account", id_),
        ]
    for number in range(4):
        id_ = f"m{number}"
        operations += [
            CreateItem(id_, "Message", {"subject": f"s{number}", "dateSent": number}),
            CreateEdge(id_, "sender", "a1" if number < 3 else "a2"),
        ]
    store.apply(Batch(tuple(operations)))
    return store


def ask(store: Store, text: str) -> Any:
    """Return what is answered."""
    return answer(store, schema_of_clients(store.schema()), text)


def refused(store: Store, text: str) -> str:
    """Return why it is refused."""
    with pytest.raises(InvalidError) as caught:
        ask(store, text)
    return str(caught.value)


def test_an_item_has_what_every_item_has_and_what_is_asked(store: Store) -> None:
    """What it does not have is None, an edge is a list; edges are followed either way."""
    assert ask(
        store, 'query Mine { Message(filter: {subject: {eq: "s3"}}) { subject content sender { handle } } }'
    ) == [
        {
            "id": "m3",
            "type": "Message",
            **ALWAYS,
            "subject": "s3",
            "content": None,
            "sender": [{"id": "a2", "type": "Account", **ALWAYS, "handle": "a2"}],
        }
    ]
    (ada,) = ask(store, "{ Person { account { handle ~sender { subject } } } }")
    assert {each["handle"]: [mail["subject"] for mail in each["~sender"]] for each in ada["account"]} == {
        "a1": ["s0", "s1", "s2"],
        "a2": ["s3"],
        "a3": [],
    }
    assert [each["id"] for each in ask(store, "{ Person{id} # then\n Account{type, deleted} }")] == [
        "ada",
        "a1",
        "a2",
        "a3",
    ]


@pytest.mark.parametrize(
    "text, ids",
    [
        ("{ Message { id } }", ["m0", "m1", "m2", "m3"]),
        ("{ Message (filter: {dateSent: {gte: 1, lt: 3}}) { id } }", ["m1", "m2"]),
        ('{ Message (filter: {dateSent: {gte: 1} subject: {eq: "s\\u0033"}}) { id } }', ["m3"]),
        ("{ Message (filter: {content: {eq: null}}, limit: 2, offset: 1) { id } }", ["m1", "m2"]),
        ("{ Message (limit: 0) { id } }", []),
        ("{ EmailMessage { id } }", []),
        ("{ CategoricalPrediction { value } }", []),
    ],
)
def test_items_are_compared_and_counted_as_in_a_search(store: Store, text: str, ids: list[str]) -> None:
    """In its order."""
    assert [each["id"] for each in ask(store, text)] == ids


@pytest.mark.parametrize(
    "arguments, ids",
    [
        ("", ["a1", "a2", "a3"]),
        ('(filter: {service: {eq: "gmail"}})', ["a3"]),
        ('(filter: {service: {gte: "h"}})', ["a1", "a2"]),
        ("(limit: 1)", ["a1"]),
        ("(offset: 1, limit: 5)", ["a2", "a3"]),
        ("(offset: 1, limit: 1)", ["a2"]),
        ('(filter: {service: {gte: "h"}}, offset: 1)', ["a2"]),
    ],
)
def test_the_items_at_the_other_end_are_compared_and_counted_of_each_item(
    store: Store, arguments: str, ids: list[str]
) -> None:
    """An item whose edges all lead elsewhere stays, with none."""
    (ada,) = ask(store, f"{{ Person {{ account {arguments} {{ id }} }} }}")
    assert [each["id"] for each in ada["account"]] == ids


def test_an_edge_may_lead_to_items_of_any_type(store: Store) -> None:
    """Each has of what is asked what its type has; the others are not compared."""
    declared = DeclareTypes((TypeDefinition("Note", edges={"about": ("Item",)}),))
    edges = [CreateEdge("n", "about", each) for each in ("ada", "a1")]
    store.apply(Batch((declared, CreateItem("n", "Note", {}), *edges)))
    (note,) = ask(store, "{ Note { about { firstName handle } } }")
    assert [(each["firstName"], each["handle"]) for each in note["about"]] == [("Ada", None), (None, "a1")]
    (note,) = ask(store, '{ Note { about (filter: {firstName: {eq: "Ada"}}) { id } } }')
    assert [each["id"] for each in note["about"]] == ["ada"]
    assert [each["id"] for each in ask(store, "{ Person { ~about { id } } }")[0]["~about"]] == ["n"]


def test_an_edge_to_a_deleted_item_or_to_a_plugin_state_is_not_answered(store: Store) -> None:
    """Memri's clients have no class for a plugin state."""
    store.apply(
        Batch(
            (
                DeleteItem("a2"),
                CreateItem("run", "PluginRun", {}),
                CreateItem("state", "PersistentState", {"name": "default"}),
                CreateEdge("run", "pluginState", "state"),
            )
        )
    )
    assert [each["id"] for each in ask(store, "{Person{account{id}}}")[0]["account"]] == ["a1", "a3"]
    assert ask(store, "{PluginRun{pluginState{id}}}")[0]["pluginState"] == []


def test_a_secret_is_answered_and_not_compared(store: Store) -> None:
    """As in any search."""
    assert ask(store, "{ Account (limit: 1) { secret } }")[0]["secret"] == "s3cret"
    for text in (
        '{ Account (filter: {secret: {eq: "x"}}) { id } }',
        '{ Person { account (filter: {secret: {gte: "x"}}) { id } } }',
    ):
        with pytest.raises(DeniedError, match="'secret' cannot be searched for"):
            ask(store, text)


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "a query needs '{' where it has the end, after 0 characters"),
        ("{ Message { id }", "a query needs a name or '}' where it has the end, after 16 characters"),
        ("{ Message { id } } {", "a query needs the end where it has '{', after 19 characters"),
        ("{ Message { a: id } }", "a query needs a name or '}' where it has ':', after 13 characters"),
        (
            "{ Message { ...more } }",
            "a query needs a name, a value or one of { } ( ) : ~ where it has '.', after 12 ch",
        ),
        ("{ Message @skip { id } }", "where it has '@'"),
        ("mutation { Message { id } }", "a query needs '{' where it has 'mutation'"),
        ("{ Message { } }", "asks for nothing"),
        ("{ }", "asks for nothing"),
        ("{ count total }", "type 'count' is not declared"),
        ("{ Nothing { id } }", "type 'Nothing' is not declared"),
        ("{ Message }", "'Message' must be a type, and say in braces"),
        ("{ ~Message { id } }", "'~Message' must be a type"),
        ("{ Message { sender } }", "'sender' is an edge: say in braces"),
        ("{ Message { subject { id } } }", "'subject' is a property, and takes neither braces nor arguments"),
        ("{ Message { subject (limit: 1) } }", "'subject' is a property"),
        ("{ Message { ~subject } }", "'~subject' is no property and no edge of Message"),
        ("{ Message { sender { nothing } } }", "'nothing' is no property and no edge of Account"),
        ("{ Message { id sender { id } id } }", "'id' is asked for twice"),
        ("{ Message (first: 1) { id } }", "argument 'first' of Message is not there"),
        ("{ Message (limit: 1, limit: 2) { id } }", "argument 'limit' of Message is not there"),
        ("{ Message (limit: -1) { id } }", "limit cannot be -1"),
        ("{ Message (limit: true) { id } }", "limit cannot be True"),
        ("{ Message (limit: 1e2) { id } }", "limit cannot be 100.0"),
        ("{ Message (limit: $n) { id } }", "where it has '$'"),
        (f"{{ Message (limit: {'9' * 5_000}) {{ id }} }}", "a query needs a value"),
        ('{ Message (filter: {subject: {like: "s"}}) { id } }', "subject cannot be compared by 'like': eq, gte, lt"),
        ("{ Message (filter: {subject: {eq: 1}}) { id } }", "'subject' in a search"),
        ("{ Message (filter: {subject: {eq: [1]}}) { id } }", "where it has '['"),
        (r'{ Message (filter: {subject: {eq: "\x"}}) { id } }', "a query needs a value"),
        ('{ Message (filter: {nothing: {eq: "s"}}) { id } }', "Message cannot be compared by 'nothing'"),
        ("{ Message { sender (filter: {service: {eq: 1}}) { id } } }", "'service' in a search"),
        ('{ Message { sender (filter: {subject: {eq: "s"}}) { id } } }', "sender cannot be compared by 'subject'"),
    ],
)
def test_what_is_none_is_refused_with_where_and_why(store: Store, text: str, why: str) -> None:
    """Whether or not there are items that it would be asked of."""
    assert why in refused(store, text)
    assert why in refused(MemoryStore(clock=FakeClock(NOW)), text)


def test_a_text_is_bounded_in_length_and_depth(store: Store) -> None:
    """Before anything is read for it."""
    assert "too long" in refused(store, " " * MAX_TEXT + "{}")
    nested = "account { owner {" * 4
    assert ask(store, f"{{ Person {{ {nested} id {'}' * 8} }} }}")
    assert refused(store, f"{{ Person {{ {nested} account {{ id }} {'}' * 8} }} }}") == (
        "a query cannot be deeper than 10 braces"
    )
    assert "deeper" in refused(store, "{ a" * (MAX_TEXT // 3))


def test_an_answer_is_bounded_however_short_its_text(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that lead to each other would stand in it more often with each depth; they are counted before that."""
    owner = TypeDefinition("Account", edges={"owner": ("Person",)})
    edges = [CreateEdge(f"a{number}", "owner", "ada") for number in (1, 2, 3)]
    store.apply(Batch((DeclareTypes((owner,)), *edges)))
    around = "{ Person { account { owner { account { owner { account { id } } } } } } }"
    monkeypatch.setattr(memri_graphql, "MAX_VALUES", 103)
    assert "more than 103 values" in refused(store, around)
    monkeypatch.setattr(memri_graphql, "MAX_VALUES", 104)  # twice 1 + 3 + 3 + 9 + 9 + 27 items
    assert len(ask(store, around)[0]["account"][2]["owner"][0]["account"][2]["owner"][0]["account"]) == 3
    assert "more than 104 values" in refused(store, around[:-1] + "Account { id } }")
    monkeypatch.setattr(memri_graphql, "MAX_VALUES", 7)
    assert len(ask(store, "{ Message (limit: 3) { id } }")) == 3
    assert "more than 7 values" in refused(store, "{ Message { id } }")
    monkeypatch.setattr(memri_graphql, "MAX_VALUES", 4)  # the item, its name and three edges are looked at for this
    assert "more than 4 values" in refused(store, "{ Person { account (limit: 0) { id } } }")


_words = st.sampled_from(
    [
        *"{}():~,#.$",
        "query",
        "Message",
        "Account",
        "sender",
        "subject",
        "filter",
        "limit",
        "eq",
        "gte",
        "1",
        '"s"',
        "null",
    ]
)


@given(text=st.lists(_words | st.text(max_size=3), max_size=25).map(" ".join))
def test_whatever_a_text_is_it_is_answered_or_refused(text: str) -> None:
    """Never by another error."""
    with suppress(InvalidError, DeniedError):
        assert ask(MemoryStore(clock=FakeClock(NOW)), "{ Message { " + text) == []
