"""``holdfast items``: what it finds, how it shows that, and what it never shows."""

from pathlib import Path

import pytest

from holdfast import Account, Person, PodClient
from holdfast.cli.drawing import escaped
from tests.cli.conftest import Call


def ids(call: Call, *words: str) -> list[str]:
    """Return the ids of what a search finds, in its order."""
    answer = call("items", "search", *words, "--json")
    assert answer.code == 0, answer.err
    return [item["id"] for item in answer.document["items"]]


def test_a_search_in_a_pipe_is_a_line_for_each_item_with_the_columns_of_the_type_first(call: Call, dogs: Path) -> None:
    """Tabs between cells, empty cells where an item has nothing, dates as text, the secret as an ellipsis."""
    answer = call("items", "search", "Dog")

    assert answer.code == 0
    assert [row[:-1] for row in answer.rows] == [
        ["id", "name", "age", "weight", "good", "born", "chip"],
        ["bob", "Bob", "10", "7.5", "true", "2020-01-02T00:00:00.000Z", "…"],
        ["rex", "Rex", "3", "", "", "", ""],
    ]
    assert answer.rows[0][-1] == "dateServerModified"


def test_a_search_without_a_type_shows_types_and_properties(call: Call, dogs: Path) -> None:
    """What items of all types have in common are columns, the rest is one cell."""
    answer = call("items", "search", "--edges")

    assert [[*row[:3], row[-1]] for row in answer.rows] == [
        ["id", "type", "[properties]", "[edges]"],
        ["ada", "Person", "firstName=Ada", ""],
        ["bob", "Dog", "name=Bob age=10 weight=7.5 good=true born=2020-01-02T00:00:00.000Z chip=…", "owner:ada"],
        ["rex", "Dog", "name=Rex age=3", ""],
    ]


@pytest.mark.parametrize(
    "words,found",
    [
        (["name=Bob"], ["bob"]),
        (["Dog", "name==Rex"], ["rex"]),
        (["type=Dog", "age=3"], ["rex"]),
        (["Dog", "age>=3"], ["bob", "rex"]),
        (["Dog", "age>=3", "age<10"], ["rex"]),
        (["Dog", "weight=7.5"], ["bob"]),
        (["Dog", "weight>=7"], ["bob"]),
        (["Dog", "good=true"], ["bob"]),
        (["Dog", "good=false"], []),
        (["Dog", "born=2020-01-02"], ["bob"]),
        (["Dog", "born=2020-01-02T01:00+01:00"], ["bob"]),
        (["Dog", "born=1577923200000"], ["bob"]),
        (["Dog", "born<2020-01-02"], []),
        (["firstName=Ada"], ["ada"]),
        (["id=rex"], ["rex"]),
        (["name=10"], []),
        (["Dog", "--desc"], ["rex", "bob"]),
        (["Dog", "--limit", "1"], ["bob"]),
        (["Dog", "--limit", "1", "--offset", "1"], ["rex"]),
        (["Dog", "--limit", "0"], []),
        (["--deleted"], ["old"]),
        (["deleted=true"], ["old"]),
    ],
)
def test_words_become_values_of_the_kind_that_the_pod_declares(
    words: list[str], found: list[str], call: Call, dogs: Path
) -> None:
    """Numbers, truths and dates are compared as such, and each option is heard."""
    with PodClient() as client:
        client.create(Person(id="old"))
        client.delete_items(["old"])

    assert ids(call, *words) == found


@pytest.mark.parametrize(
    "words,code,said",
    [
        (["Dog", "agee=3"], 2, "Dog has no property 'agee'"),
        (["Dog", "age=ten"], 2, "'age' in a search cannot be 'ten': it is declared Integer"),
        (["Dog", "born=soon"], 2, "it is declared DateTime"),
        (["Dog", "weight=nan"], 2, "a float must be finite"),
        (["Cat"], 2, "type 'Cat' is not declared"),
        (["Dog", "Cat"], 2, "'Cat' is no condition"),
        (["Dog", "age=3", "age==4"], 2, "'age' is given twice"),
        (["Dog", "chip=s3cret"], 3, "it is secret"),
    ],
)
def test_a_search_that_cannot_be_is_refused_with_the_reason(
    words: list[str], code: int, said: str, call: Call, dogs: Path
) -> None:
    """A typing mistake is an error, never an empty answer."""
    answer = call("items", "search", *words)

    assert answer.code == code
    assert answer.out == ""
    assert said in answer.err
    assert "s3cret" not in answer.err


def test_a_search_reads_page_after_page_and_misses_and_repeats_nothing(
    call: Call, dogs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is more than one page comes whole, in order, in JSON and in lines, up to the limit."""
    monkeypatch.setattr("holdfast.cli.items._PAGE", 2)
    with PodClient() as client:
        client.bulk_action(create_items=[Person(id=f"p{number}") for number in range(7)])

    assert ids(call, "Person") == ["ada", "p0", "p1", "p2", "p3", "p4", "p5", "p6"]
    assert ids(call, "Person", "--desc", "--limit", "5", "--offset", "1") == ["p5", "p4", "p3", "p2", "p1"]
    assert [row[0] for row in call("items", "search", "Person", "--limit", "4").rows] == ["id", "ada", "p0", "p1", "p2"]


def test_show_says_all_of_an_item_and_its_edges_both_ways(call: Call, dogs: Path) -> None:
    """For people as pairs of field and value, for programs as one document."""
    rows = dict(call("items", "show", "bob").rows)
    assert rows["name"] == "Bob"
    assert rows["chip"] == "…"
    assert rows["-> owner"] == "Person ada"
    assert dict(call("items", "show", "ada").rows)["<- owner"] == "Dog bob"
    document = call("items", "show", "bob", "--json").document
    assert {name: document[name] for name in ("id", "type", "version", "deleted")} == {
        "id": "bob",
        "type": "Dog",
        "version": 1,
        "deleted": False,
    }
    assert document["properties"] == {
        "name": "Bob",
        "age": 10,
        "weight": 7.5,
        "good": True,
        "born": "2020-01-02T00:00:00.000Z",
        "chip": "…",
    }
    assert document["edges"] == [{"direction": "Outgoing", "name": "owner", "type": "Person", "id": "ada"}]


@pytest.mark.parametrize("id_", ["nobody", "no id at all", "old"])
def test_show_ends_with_4_for_what_is_not_there(id_: str, call: Call, dogs: Path) -> None:
    """Never created, impossible, or deleted; a deleted one is shown if that is what was asked for."""
    with PodClient() as client:
        client.create(Person(id="old"))
        client.delete_items(["old"])

    assert call("items", "show", id_).code == 4
    assert call("items", "show", "old", "--deleted", "--json").document["deleted"] is True


def test_a_secret_of_a_built_in_type_is_nowhere_in_any_answer(call: Call, home: Path) -> None:
    """Tokens stay hidden in tables, lines and JSON."""
    with PodClient() as client:
        client.create(Account(service="mail", accessToken="t0ken", id="account"))

    for words in (["search"], ["search", "Account"], ["show", "account"]):
        for form in ([], ["--json"]):
            answer = call("items", *words, *form)
            assert answer.code == 0
            assert "mail" in answer.out
            assert "t0ken" not in answer.out


def test_what_an_item_holds_cannot_command_a_terminal_or_break_a_line(call: Call, home: Path) -> None:
    """Control characters are written as escapes."""
    with PodClient() as client:
        client.create(Person(displayName="a\tb\nc\x1b[2Jd\\e\u202ef", id="evil"))

    [_, row] = call("items", "search").rows
    assert row[2] == "displayName=a\\tb\\nc\\x1b[2Jd\\\\e\\u202ef"
    assert escaped("Zoë and 北京") == "Zoë and 北京"


def test_looking_into_a_pod_makes_none(call: Call, home: Path) -> None:
    """On a fresh machine a search ends with 4, and the machine stays fresh."""
    for words in (["items", "search"], ["items", "show", "x"], ["pod", "backup", home / "b"], ["keys", "rotate"]):
        assert call(*words).code == 4
    assert not home.exists()
