"""What a program is told when it hands a Pod what no Pod can hold: the value by name, and nothing is half written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

from holdfast.context import PodClient
from holdfast.errors import ConflictError, DeniedError, HoldfastError, InvalidError, NotFoundError
from holdfast.items import Edge, Item, Person, PluginRun
from holdfast.store import IncrementVariable, Query, SetVariable
from holdfast.testing import Dog


class Kennel(Item):
    """An item type with an edge."""

    name: Optional[str] = None
    dogs: list[Dog] = []


class Undeclared(Item):
    """An item type that nobody declares."""

    name: Optional[str] = None


def everything(pod: PodClient) -> object:
    """Return all that a Pod holds, dates and versions included."""
    store = pod._store
    found = store.search(Query(is_deleted=None, outgoing=True))
    items = [(each.item, [(edge.name, edge.item.id) for edge in each.edges]) for each in found]
    return items, dict(store.list_variables("s1")), dict(store.schema())


@pytest.fixture
def pod(home: Path) -> Any:
    """Return the client of a Pod with a dog, a kennel and a run."""
    with PodClient() as pod:
        pod.add_to_schema(Dog, Kennel)
        pod.bulk_action(create_items=[Dog("Bob", 10, id="bob"), Kennel("K9", id="k9"), PluginRun(id="run1")])
        yield pod


def other_dog() -> type[Item]:
    """Return another class of the same name, whose name is a number."""

    class Dog(Item):
        name: Optional[int] = None

    return Dog


REFUSED: dict[str, tuple[Callable[[PodClient], object], type[HoldfastError], int, str]] = {
    "a type that was not declared": (lambda pod: pod.create(Undeclared("x")), InvalidError, 2, "'Undeclared'"),
    "a conflicting definition": (
        lambda pod: pod.add_to_schema(other_dog()),
        ConflictError,
        5,
        "Dog.*name",
    ),
    "an id that is taken": (lambda pod: pod.create(Dog("Eve", id="bob")), ConflictError, 5, "'bob'"),
    "an id that cannot be": (lambda pod: pod.create(Dog("Eve", id="a b")), InvalidError, 2, "'a b'"),
    "an edge to an item that is not there": (
        lambda pod: pod.create_edge(Edge("k9", "nobody", "dogs")),
        NotFoundError,
        4,
        "'nobody'",
    ),
    "an edge that its type has not": (
        lambda pod: pod.create_edge(Edge("bob", "k9", "dogs")),
        InvalidError,
        2,
        "dogs",
    ),
    "an edge to a wrong type": (lambda pod: pod.create_edge(Edge("k9", "k9", "dogs")), InvalidError, 2, "Kennel"),
    "an item that is not there": (lambda pod: pod.update_item(Dog("x", id="nobody")), NotFoundError, 4, "'nobody'"),
    "a version that is not there": (
        lambda pod: pod.update_item(Dog("x", id="bob"), expected_version=7),
        ConflictError,
        5,
        "7",
    ),
    "a number that is none": (
        lambda pod: pod.add(IncrementVariable("s1", "n", float("nan"))),
        InvalidError,
        2,
        "nan",
    ),
    "an infinite number": (lambda pod: pod.add(SetVariable("s1", "n", float("inf"))), InvalidError, 2, "inf"),
    "a number beyond 64 bits": (
        lambda pod: pod.create(Dog("x", 2**63)),
        InvalidError,
        2,
        "9223372036854775808",
    ),
    "a number beyond 64 bits in a variable": (
        lambda pod: pod.add(SetVariable("s1", "n", 2**63)),
        InvalidError,
        2,
        "9223372036854775808",
    ),
    "half a character": (lambda pod: pod.create(Dog("a\ud800b")), InvalidError, 2, r"ud800"),
    "a NUL": (lambda pod: pod.create(Dog("a\0b")), InvalidError, 2, r"x00"),
    "a value of another kind": (lambda pod: pod.create(Dog(name=["x"])), InvalidError, 2, "name"),  # type: ignore[arg-type]
    "a field that is none": (lambda pod: pod.search({"type": "Dog", "nmae": "x"}), InvalidError, 2, "'nmae'"),
    "a type that is none": (lambda pod: pod.search({"type": "Cat"}), InvalidError, 2, "'Cat'"),
    "an illegal move": (
        lambda pod: pod.update_item(PluginRun(id="run1", status="done")),
        ConflictError,
        5,
        "run 'run1' is idle and cannot become done",
    ),
    "a batch of 70 MiB": (
        lambda pod: pod.create(Dog("x" * (70 * 2**20))),
        InvalidError,
        2,
        r"70\.0 MiB.* 64 MiB",
    ),
    "too many operations for a block": (
        lambda pod: pod.delete_items([f"n{number}" for number in range(50_001)]),
        InvalidError,
        2,
        r"50,00\d operations.* at most 50,000",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_pod_can_hold_is_refused_by_name_and_nothing_is_written(pod: PodClient, what: str) -> None:
    """Alone, and in a block with writes that are good: the error, its kind and exit code, and the same content."""
    do, kind, exit_code, text = REFUSED[what]
    before = everything(pod)
    with pytest.raises(kind, match=text) as caught:
        do(pod)
    assert type(caught.value) is kind
    assert caught.value.exit_code == exit_code
    assert everything(pod) == before

    def together() -> None:
        with pod.transaction():
            pod.create(Person(firstName="Ada", id="ada"))
            pod.add(SetVariable("s1", "good", 1))
            do(pod)

    with pytest.raises(kind, match=text):
        together()
    assert everything(pod) == before


def test_one_bad_item_among_many_leaves_none_of_them(pod: PodClient) -> None:
    """The items know it too: given again without the bad one, all are created."""
    before = everything(pod)
    dogs = [Dog("Rex"), Dog("Ace"), Dog("Eve", id="bob"), Dog("Max")]
    with pytest.raises(ConflictError, match="'bob'"):
        pod.bulk_action(create_items=dogs)
    assert everything(pod) == before
    assert [dog.id for dog in dogs] == [None, None, "bob", None]
    pod.bulk_action(create_items=[dog for dog in dogs if dog.name != "Eve"])
    assert sorted(str(dog.name) for dog in pod.search({"type": "Dog"})) == ["Ace", "Bob", "Max", "Rex"]  # type: ignore[attr-defined]


def test_another_owners_keys_are_denied_and_change_nothing(pod: PodClient, home: Path) -> None:
    """A key that is none is invalid; one that is another's opens no Pod that is there."""
    owner = next((home / "pods").glob("*.db")).stem
    pod.close()
    with pytest.raises(DeniedError, match="does not open"):
        PodClient(owner_key=owner, database_key="0" * 64)
    with pytest.raises(InvalidError, match="must come together"):
        PodClient(owner_key=owner)
    with pytest.raises(InvalidError):
        PodClient(owner_key=owner, database_key="xyz")
    with PodClient() as again:
        assert again.exists("bob")
