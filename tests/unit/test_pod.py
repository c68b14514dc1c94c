"""Typed operations on a store: what is written, what comes back, and what an item knows afterwards."""

import asyncio
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import ConflictError, DeniedError, FencedError, InvalidError, NotFoundError, UnavailableError
from holdfast.items import Account, Edge, Item, PersistentState, Person, Secret
from holdfast.plugins import PodVariables
from holdfast.pod import Pod
from holdfast.runs import Fence
from holdfast.store import (
    Batch,
    ClaimLease,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    DeleteEdge,
    DeleteItem,
    IncrementVariable,
    Query,
    Result,
    SetVariable,
    UpdateItem,
)
from holdfast.testing import FakeClock, JsonStore, MemoryStore


class Dog(Item):
    """What the programs in these tests keep."""

    name: Optional[str] = None
    age: int | None = None
    owner: list[Person] = []
    friend: list["Dog"] = []


# What the classes above and the built-in ones are called where a test declares another one of the same name.
make_dog, make_person, make_account = Dog, Person, Account


class Vip(Person):
    """A person of another type."""

    title: str | None = None


class Note(Item):
    """Something with a secret, about anything."""

    text: str | None = None
    code: Secret[str] | None = None
    about: list[Item] = []


class Observed(MemoryStore):
    """A store in memory that keeps the batches it applied, and can be told to fail."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.batches: list[Batch] = []
        self.fail: Callable[[int], None] = lambda number: None
        """Called with the number of the batch, from 1 on, before it is applied."""
        self.loses_replies = False

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Apply it, unless it is to fail."""
        self.fail(len(self.batches) + 1)
        results = super().apply(batch)
        self.batches.append(batch)
        if self.loses_replies:
            raise UnavailableError("no reply")
        return results

    @property
    def last(self) -> list[Any]:
        """The operations of the last batch."""
        return list(self.batches[-1].operations)


def failing_at(number: int) -> Callable[[int], None]:
    """Return what makes the batch with this number fail."""

    def fail(at: int) -> None:
        if at == number:
            raise UnavailableError("the disk is full")

    return fail


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still in November 2023."""
    return FakeClock(1_700_000_000_000)


@pytest.fixture
def store(clock: FakeClock) -> Observed:
    """An empty store."""
    return Observed(clock)


@pytest.fixture(params=["as it is", "through JSON"])
def pod(request: pytest.FixtureRequest, store: Observed) -> Pod:
    """A Pod that knows the types above, and has written nothing else."""
    pod = Pod(store if request.param == "as it is" else JsonStore(store))
    pod.add_to_schema(Dog, Vip, Note)
    store.batches.clear()
    return pod


def at(ms: int) -> datetime:
    """Return milliseconds since 1970 as items hold them."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def changed(pod: Pod, item: Item, **values: object) -> None:
    """Let another client change an item."""
    other = pod.get(item.id or "")
    for name, value in values.items():
        setattr(other, name, value)
    pod.update_item(other)


# -- the schema -------------------------------------------------------------------------------------------------------


def test_a_declared_type_brings_the_types_that_its_edges_lead_to(store: Observed) -> None:
    """One call declares them all, near and far, in one batch; built-in ones are there already."""

    class Kennel(Item):
        dogs: list[Dog] = []

    Pod(store).add_to_schema(Kennel)

    [declaration] = store.last
    assert [definition.name for definition in declaration.types] == ["Kennel", "Dog"]
    assert store.schema()["Kennel"].edges == {"dogs": ("Dog",)}


def test_declaring_what_the_pod_knows_writes_nothing(pod: Pod, store: Observed) -> None:
    """Every start of a program may declare its types again; another client's declaration counts."""
    pod.add_to_schema(Dog, Note)
    Pod(store).add_to_schema(Dog)

    assert store.batches == []


def test_what_a_type_gained_is_added_to_the_schema(pod: Pod, store: Observed) -> None:
    """The properties that were there stay."""

    class Dog(Item):
        weight: float | None = None

    pod.add_to_schema(Dog)

    assert sorted(store.schema()["Dog"].properties) == ["age", "name", "weight"]


def test_a_conflicting_declaration_names_both_kinds_and_adds_nothing(pod: Pod, store: Observed) -> None:
    """Nothing of the call is written, not even the types that do not conflict, and no class is exchanged."""

    class Cat(Item):
        name: str | None = None

    class Dog(Item):
        age: str | None = None

    with pytest.raises(ConflictError, match=r"Dog\.age is Integer in this Pod and cannot become Text"):
        pod.add_to_schema(Cat, Dog)

    assert store.batches == []
    assert "Cat" not in store.schema()
    rex = pod.create(make_dog("Rex", 3))
    assert type(pod.get(rex.id)) is make_dog


def test_an_item_may_be_given_in_place_of_its_class(store: Observed) -> None:
    """Older plugins declare a type by an example of it."""
    Pod(store).add_to_schema(Dog("Rex"))

    assert "Dog" in store.schema()


@pytest.mark.parametrize("given", [int, "Dog", None, Item, [Dog]])
def test_what_is_no_item_type_cannot_be_declared(pod: Pod, given: Any) -> None:
    """Item itself, of which all are, is none either."""
    with pytest.raises(InvalidError, match="cannot be added to the schema: it must be a subclass of Item"):
        pod.add_to_schema(given)


def test_items_are_read_as_the_class_that_was_declared_last(pod: Pod) -> None:
    """A class given by the program counts before a built-in one of that name, wherever the type is met."""

    class Person(Item):
        firstName: str | None = None
        nickname: str | None = None

    ada = pod.create(make_person(firstName="Ada"))
    pod.add_to_schema(Person)

    assert type(pod.get(ada.id)) is Person


def test_a_class_that_is_only_led_to_does_not_take_the_place_of_a_declared_one(pod: Pod) -> None:
    """It takes the place of a built-in one, though."""

    class Account(Item):
        handle: str | None = None

    class Site(Item):
        admin: list[Account] = []

    class Shop(Item):
        admin: list[make_account] = []

    root = pod.create(make_account(handle="root"))
    pod.add_to_schema(Site)
    assert type(pod.get(root.id or "")) is Account
    pod.add_to_schema(Shop)
    assert type(pod.get(root.id or "")) is Account
    pod.add_to_schema(make_account)
    assert type(pod.get(root.id or "")) is make_account


def test_a_declared_class_keeps_its_place_when_another_of_its_name_is_led_to(pod: Pod) -> None:
    """What the program said about the type itself counts."""

    class Dog(Item):
        name: str | None = None

    class Kennel(Item):
        dogs: list[Dog] = []

    rex = pod.create(make_dog("Rex"))
    pod.add_to_schema(Kennel)

    assert type(pod.get(rex.id or "")) is make_dog


# -- create -----------------------------------------------------------------------------------------------------------


def test_a_created_item_has_an_id_and_the_dates_of_the_pod(pod: Pod) -> None:
    """The returned item is the one that was given."""
    rex = Dog("Rex", 3)

    assert pod.create(rex) is rex

    assert re.fullmatch("[0-9a-f]{32}", rex.id or "")
    assert rex.dateCreated == rex.dateModified == rex.dateServerModified == at(1_700_000_000_000)
    found = pod.get(rex.id or "")
    assert found == Dog("Rex", 3, id=rex.id)
    assert found.dateCreated == at(1_700_000_000_000)


def test_an_id_and_dates_that_the_program_gave_are_kept(pod: Pod) -> None:
    """Only the store's own date is the store's."""
    rex = pod.create(Dog("Rex", id="rex", dateCreated=at(5_000), dateModified=at(6_000)))

    found = pod.get("rex")
    for item in (rex, found):
        assert (item.dateCreated, item.dateModified) == (at(5_000), at(6_000))
        assert item.dateServerModified == at(1_700_000_000_000)


def test_an_item_is_created_with_the_edges_of_its_lists_in_one_batch(pod: Pod, store: Observed) -> None:
    """Item and edges are there together or not at all."""
    ada = pod.create(Person(firstName="Ada"))

    rex = pod.create(Dog("Rex", owner=[ada]))

    assert store.last == [
        CreateItem(rex.id or "", "Dog", {"name": "Rex"}),
        CreateEdge(rex.id or "", "owner", ada.id or ""),
    ]
    assert pod.get(rex.id or "").owner == [ada]


def test_a_list_may_lead_to_the_item_itself(pod: Pod) -> None:
    """It has its id by the time the edge is written."""
    rex = Dog("Rex")
    rex.friend.append(rex)

    pod.create(rex)

    found = pod.get(rex.id or "")
    assert found.friend[0] is found


def test_an_item_in_a_list_must_have_been_created_first(pod: Pod, store: Observed) -> None:
    """The message says what to do, nothing is written, and the item is as it was."""
    rex = Dog("Rex", owner=[Person(firstName="Ada")])

    with pytest.raises(InvalidError, match=r"what Dog.owner leads to, Person\(firstName='Ada'\), has no id: create it"):
        pod.create(rex)

    assert store.batches == []
    assert rex.id is None


@pytest.mark.parametrize("make", [lambda pod, rex: None, lambda pod, rex: pod.get(rex.id)])
def test_an_item_cannot_be_created_twice(pod: Pod, make: Callable[..., Any]) -> None:
    """Neither one that was written nor one that was read."""
    rex = pod.create(Dog("Rex"))

    with pytest.raises(ConflictError, match="written or read before; update_item writes its changes"):
        pod.create(make(pod, rex) or rex)


def test_an_item_that_could_not_be_created_is_as_it_was(pod: Pod, store: Observed) -> None:
    """It has no id, and the same call can be made again."""
    rex = Dog("Rex")
    store.fail = failing_at(1)
    with pytest.raises(UnavailableError, match="the disk is full"):
        pod.create(rex)
    assert (rex.id, rex.dateCreated, rex.dateServerModified) == (None, None, None)

    store.fail = lambda number: None
    pod.create(rex)

    assert pod.get(rex.id or "") == rex


def test_a_second_attempt_under_the_same_id_finds_out_that_the_first_arrived(pod: Pod, store: Observed) -> None:
    """Where a reply is lost, an id of the program's own makes creation safe to repeat."""
    rex = Dog("Rex", id="rex")
    store.loses_replies = True
    with pytest.raises(UnavailableError, match="no reply"):
        pod.create(rex)

    store.loses_replies = False
    with pytest.raises(ConflictError, match="item 'rex' exists already"):
        pod.create(rex)
    assert pod.get("rex").name == "Rex"


def test_an_undeclared_type_cannot_be_created_and_the_error_says_what_to_call(store: Observed) -> None:
    """The schema is the Pod's: a class alone declares nothing."""
    rex = Dog("Rex")

    with pytest.raises(InvalidError, match="type 'Dog' is not declared in this Pod: call add_to_schema first"):
        Pod(store).create(rex)

    assert rex.id is None


@pytest.mark.parametrize("given", [None, "rex", {"name": "Rex"}, Dog])
def test_only_items_can_be_created(pod: Pod, given: Any) -> None:
    """Anything else is refused by name."""
    with pytest.raises(InvalidError, match="cannot be written: a list is expected, each of it Item"):
        pod.create(given)


def test_a_list_with_something_else_in_it_is_refused_when_it_is_written(pod: Pod, store: Observed) -> None:
    """Lists can be changed behind the back of their class; what is in them is looked at before anything is written."""
    rex = Dog("Rex")
    rex.owner.append("Ada")

    with pytest.raises(InvalidError, match=r"Dog\.owner cannot hold 'Ada': it is a list of Person"):
        pod.create(rex)

    assert (rex.id, store.batches) == (None, [])


# -- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", ["absent", "", "not an id", "\0", "\ud800", "x" * 65])
def test_an_absent_item_is_an_error_for_get_and_none_for_find(pod: Pod, id_: str) -> None:
    """So is one under an id that no item can have."""
    with pytest.raises(NotFoundError, match="it was never created, or it was deleted"):
        pod.get(id_)
    assert pod.find(id_) is None
    assert pod.exists(id_) is False


def test_a_deleted_item_is_absent(pod: Pod) -> None:
    """For all three reads."""
    rex = pod.create(Dog("Rex"))
    assert pod.exists(rex.id or "") is True

    pod.delete_items([rex])

    with pytest.raises(NotFoundError):
        pod.get(rex.id or "")
    assert pod.find(rex.id or "") is None
    assert pod.exists(rex.id or "") is False


@pytest.mark.parametrize("id_", [None, 7, b"rex"])
def test_an_id_is_text(pod: Pod, id_: Any) -> None:
    """The id of an item that was never created is None: asking for it is a mistake, not an absent item."""
    with pytest.raises(InvalidError, match=r"the id of an item cannot be .*: it must be text"):
        pod.get(id_)


def test_get_loads_one_level_of_lists(pod: Pod) -> None:
    """What the item leads to is there, what that leads to is not; and with expanded=False nothing is."""
    ada = pod.create(Person(firstName="Ada"))
    tom = pod.create(Dog("Tom", owner=[ada]))
    rex = pod.create(Dog("Rex", friend=[tom]))

    found = pod.get(rex.id or "")

    assert found.friend == [tom]
    assert found.friend[0].owner == []
    assert pod.get(rex.id or "", expanded=False).friend == []


@pytest.mark.parametrize("expanded", [True, False])
def test_edges_that_were_not_loaded_are_not_removed(pod: Pod, expanded: bool) -> None:
    """An update of an item whose lists are empty because nobody loaded them leaves its edges alone."""
    ada = pod.create(Person(firstName="Ada"))
    tom = pod.create(Dog("Tom", owner=[ada]))
    rex = pod.create(Dog("Rex", friend=[tom]))

    found = pod.get(rex.id or "", expanded=expanded)
    lone = found.friend[0] if expanded else pod.get(tom.id or "", expanded=False)
    lone.age = 5
    pod.update_item(lone)

    assert pod.get(tom.id or "").owner == [ada]


def test_a_list_holds_only_what_its_class_declares(pod: Pod, store: Observed) -> None:
    """Edges to items of other types, which another program declared, are in the Pod, in get_edges, and stay there."""

    class Dog(Item):
        owner: list[Account] = []

    Pod(store).add_to_schema(Dog)
    firm = pod.create(Account(handle="firm"))
    ada = pod.create(Person(firstName="Ada"))
    rex = pod.create(make_dog("Rex", owner=[ada]))
    pod.create_edge(Edge(rex, firm, "owner"))
    assert rex.owner == [ada]

    found = pod.get(rex.id or "")
    assert found.owner == [ada]
    found.owner.clear()
    pod.update_item(found)
    assert [edge.target for edge in pod.get_edges(found)] == [firm]


def test_a_list_of_a_class_that_was_replaced_holds_items_of_its_own_class(pod: Pod) -> None:
    """Two classes declare one type: each list keeps the one that it was declared with."""

    class Person(Item):
        firstName: str | None = None

    ada = pod.create(make_person(firstName="Ada"))
    rex = pod.create(Dog("Rex", owner=[ada]))
    pod.add_to_schema(Person)

    assert type(pod.get(ada.id or "")) is Person
    assert type(pod.get(rex.id or "").owner[0]) is make_person


def test_items_of_a_type_that_nobody_here_declared_can_be_read_and_changed(pod: Pod, store: Observed) -> None:
    """A class is made for the type, once; it is made again when the type has gained something that an item has."""
    rex = pod.create(make_dog("Rex", 3, friend=[pod.create(make_dog("Tom"))]))
    other = Pod(store)

    found: Any = other.get(rex.id or "")
    assert (type(found).__name__, found.name, found.age, found.friend[0].name) == ("Dog", "Rex", 3, "Tom")
    assert type(found.friend[0]) is type(found)
    found.age = 4
    other.update_item(found)
    assert pod.get(rex.id or "").age == 4

    class Dog(Item):
        weight: float | None = None
        enemy: list[Person] = []

    pod.add_to_schema(Dog)
    assert type(other.get(rex.id or "")) is type(found)
    pod.create(Dog(1.5, id="max"))
    newer: Any = other.get("max")
    assert newer.weight == 1.5
    assert newer.enemy == []
    assert type(newer) is not type(found)


def test_one_item_occurs_once_in_an_answer(pod: Pod) -> None:
    """However many edges lead to it, it is one object; a change to it is seen wherever it is."""
    ada = pod.create(Person(firstName="Ada"))
    rex = pod.create(Dog("Rex", owner=[ada]))
    tom = pod.create(Dog("Tom", owner=[ada], friend=[rex]))

    first, second = pod.search({"type": "Dog", "[[edges]]": {}})

    assert (first, second) == (rex, tom)
    assert first.owner[0] is second.owner[0]
    assert second.friend[0] is first


def test_search_returns_typed_items_in_the_order_of_their_last_write(pod: Pod, clock: FakeClock) -> None:
    """Lists are loaded on request only."""
    ada = pod.create(Person(firstName="Ada"))
    rex = pod.create(Dog("Rex", 3, owner=[ada]))
    clock.advance(1)
    tom = pod.create(Dog("Tom", 5))
    pod.create(Dog("Max", 1))
    clock.advance(1)
    changed(pod, rex, name="Rex II")

    found = pod.search({"type": "Dog", "age>=": 3})

    assert [(type(dog), dog.name, dog.owner) for dog in found] == [(Dog, "Tom", []), (Dog, "Rex II", [])]
    assert pod.search({"type": "Dog", "age>=": 3, "_sortOrder": "Desc", "_limit": 1, "[[edges]]": {}})[0].owner == [ada]
    assert pod.search({"ids": [tom.id, ada.id], "~[[edges]]": {}}) == [ada, tom]


def test_search_knows_what_another_client_declared_since(store: Observed) -> None:
    """The schema at hand is read again before a type or property is called unknown."""
    pod, other = Pod(store), Pod(store)
    with pytest.raises(InvalidError, match="type 'Dog' is not declared"):
        pod.search({"type": "Dog"})

    other.add_to_schema(Dog)
    other.create(Dog("Rex", 3))

    assert [dog.name for dog in pod.search({"type": "Dog", "age": 3})] == ["Rex"]


@pytest.mark.parametrize("fields", ["Dog", ["type"], None, {"type": "Dog", "color": "red"}, {"type": 3}])
def test_a_search_that_makes_no_sense_is_refused(pod: Pod, fields: Any) -> None:
    """Before the store is asked."""
    with pytest.raises(InvalidError):
        pod.search(fields)
    with pytest.raises(InvalidError):
        pod.search_paginate(fields)


def test_secrets_are_not_searched_for(pod: Pod) -> None:
    """They are read back, though."""
    note = pod.create(Note("door", "1234"))

    with pytest.raises(DeniedError, match="it is secret"):
        pod.search({"type": "Note", "code": "1234"})
    assert pod.get(note.id or "").code == "1234"


def test_pages_hold_each_item_once_and_in_order(pod: Pod) -> None:
    """The last page may be shorter, none is empty; _limit and _offset count the whole, not the page."""
    pod.bulk_action(create_items=[Dog(f"{number}", number) for number in range(7)])

    def pages(limit: int, **fields: Any) -> list[list[int]]:
        return [[dog.age for dog in page] for page in pod.search_paginate({"type": "Dog", **fields}, limit)]

    assert pages(3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert pages(7) == [[0, 1, 2, 3, 4, 5, 6]]
    assert pages(3, _offset=2, _limit=4) == [[2, 3, 4], [5]]
    assert pages(4, _sortOrder="Desc") == [[6, 5, 4, 3], [2, 1, 0]]
    assert pages(3, name="none") == []


def test_a_loop_over_pages_may_write_what_it_reads(pod: Pod, clock: FakeClock) -> None:
    """Each item comes once, although writing it moves it to the end; what others wrote meanwhile is not missed."""
    dogs = [Dog(f"{number}", 0, id=f"d{number}") for number in range(7)]
    pod.bulk_action(create_items=dogs)

    seen: list[str] = []
    for page in pod.search_paginate({"type": "Dog"}, limit=2):
        clock.advance(1)
        if not seen:
            changed(pod, dogs[5], name="five")
        for dog in page:
            seen.append(dog.name)
            dog.age += 1
            pod.update_item(dog)

    assert seen == ["0", "1", "2", "3", "4", "6", "five"]
    assert [dog.age for dog in pod.search({"type": "Dog"})] == [1] * 7


def test_items_that_are_met_again_do_not_count(pod: Pod, clock: FakeClock) -> None:
    """The limit is one of different items, even when all were written between two pages."""
    pod.bulk_action(create_items=[Dog(f"{number}", 0, id=f"d{number}") for number in range(4)])
    pages = pod.search_paginate({"type": "Dog", "_limit": 3}, limit=2)
    first = next(pages)
    for number in range(4):
        clock.advance(1)
        changed(pod, Dog(id=f"d{number}"), age=1)

    rest = [dog for page in pages for dog in page]

    assert [dog.name for dog in (*first, *rest)] == ["0", "1", "2"]


def test_a_page_has_at_least_one_item(pod: Pod) -> None:
    """Said at once, not when the first page is read."""
    with pytest.raises(InvalidError, match="a page cannot have 0 items: it has a whole number of them, 1 at least"):
        pod.search_paginate({"type": "Dog"}, limit=0)


# -- update -----------------------------------------------------------------------------------------------------------


def test_only_the_difference_is_written(pod: Pod, store: Observed) -> None:
    """Two clients that change different properties of one item are both heard."""
    rex = pod.create(Dog("Rex", 3, owner=[pod.create(Person(firstName="Ada"))]))
    mine, theirs = pod.get(rex.id or ""), pod.get(rex.id or "")
    mine.age, theirs.name = 4, "Rex II"

    pod.update_item(mine)
    pod.update_item(theirs)

    assert store.last == [UpdateItem(rex.id or "", {"name": "Rex II"})]
    assert pod.get(rex.id or "") == Dog("Rex II", 4, id=rex.id)


def test_an_unchanged_item_is_not_written(pod: Pod, store: Observed) -> None:
    """Neither one that was created nor one that was read, nor one that was changed and changed back."""
    rex = pod.create(Dog("Rex", 3, owner=[pod.create(Person(firstName="Ada"))]))
    found = pod.get(rex.id or "")
    found.age, found.age = 4, 3
    store.batches.clear()

    for item in (rex, found, found.owner[0]):
        pod.update_item(item)
    pod.update_item(rex, expected_version=7)

    assert store.batches == []


def test_a_property_is_erased_by_none(pod: Pod) -> None:
    """It is absent afterwards, for searches too."""
    rex = pod.create(Dog("Rex", 3))
    rex.age = None

    pod.update_item(rex)

    assert pod.search({"type": "Dog", "age": None}) == [Dog("Rex", id=rex.id)]


def test_what_is_put_into_or_taken_out_of_a_list_is_an_edge(pod: Pod, store: Observed) -> None:
    """In one batch with the properties, and nothing twice."""
    ada, bob = pod.create(Person(firstName="Ada")), pod.create(Person(firstName="Bob"))
    rex = pod.create(Dog("Rex", owner=[ada]))
    rex.owner.remove(ada)
    rex.owner.append(bob)
    rex.age = 1

    pod.update_item(rex)
    written = store.last
    pod.update_item(rex)

    assert written == [
        UpdateItem(rex.id or "", {"age": 1}),
        CreateEdge(rex.id or "", "owner", bob.id or ""),
        DeleteEdge(rex.id or "", "owner", ada.id or ""),
    ]
    assert store.last is not written
    assert store.last == written
    assert pod.get(rex.id or "").owner == [bob]


def test_the_dates_of_a_write_are_on_the_item_and_in_the_pod(pod: Pod, clock: FakeClock) -> None:
    """Unless the program has set the date of modification itself."""
    rex = pod.create(Dog("Rex"))
    clock.advance(1_000)
    rex.age = 3
    pod.update_item(rex)
    assert (rex.dateCreated, rex.dateModified) == (at(1_700_000_000_000), at(1_700_000_001_000))

    clock.advance(1_000)
    rex.dateModified = at(7_000)
    pod.update_item(rex)

    found = pod.get(rex.id or "")
    for item in (rex, found):
        assert (item.dateModified, item.dateServerModified) == (at(7_000), at(1_700_000_002_000))


def test_an_item_made_by_hand_is_written_onto_the_one_with_its_id(pod: Pod) -> None:
    """What it has is set, what it does not have stays, and what is in its lists is added."""
    ada, bob = pod.create(Person(firstName="Ada")), pod.create(Person(firstName="Bob"))
    pod.create(Dog("Rex", 3, id="rex", owner=[ada]))

    pod.update_item(Dog(age=4, id="rex", owner=[bob]))

    assert pod.get("rex") == Dog("Rex", 4, id="rex")
    assert pod.get("rex").owner == [ada, bob]


def test_an_item_made_by_hand_must_have_the_id_of_one_in_the_pod(pod: Pod) -> None:
    """Even if it has nothing to say."""
    with pytest.raises(NotFoundError, match="there is no item 'rex' to update"):
        pod.update_item(Dog(id="rex"))
    with pytest.raises(InvalidError, match=r"an item to update, Dog\(name='Rex'\), has no id: create it first"):
        pod.update_item(Dog("Rex"))


def test_another_version_than_the_expected_one_is_a_conflict(pod: Pod) -> None:
    """Lists count as part of it; the refused item keeps its difference."""
    ada = pod.create(Person(firstName="Ada"))
    rex = pod.create(Dog("Rex"))
    changed(pod, rex, age=4)
    rex.owner.append(ada)

    with pytest.raises(ConflictError, match="is at version 2, not 1: read it again"):
        pod.update_item(rex, expected_version=1)
    assert pod.get(rex.id or "").owner == []

    pod.update_item(rex, expected_version=2)
    assert pod.get(rex.id or "").owner == [ada]


def test_an_update_that_failed_is_still_to_be_written(pod: Pod, store: Observed) -> None:
    """Properties and lists alike."""
    ada = pod.create(Person(firstName="Ada"))
    rex = pod.create(Dog("Rex"))
    rex.age = 3
    rex.owner.append(ada)
    store.fail = failing_at(3)
    with pytest.raises(UnavailableError):
        pod.update_item(rex)

    store.fail = lambda number: None
    pod.update_item(rex)

    assert pod.get(rex.id or "") == Dog("Rex", 3, id=rex.id)
    assert pod.get(rex.id or "").owner == [ada]


def test_a_copy_of_an_item_does_not_learn_what_became_of_the_item(pod: Pod) -> None:
    """It is where it was copied: an edge that the item gained later is not one that the copy has lost."""
    ada = pod.create(Person(firstName="Ada"))
    rex = pod.create(Dog("Rex"))
    copy = rex.model_copy(deep=True)
    rex.owner.append(ada)
    pod.update_item(rex)

    copy.age = 3
    pod.update_item(copy)

    assert pod.get(rex.id or "").owner == [ada]


# -- delete -----------------------------------------------------------------------------------------------------------


def test_deleting_marks_items_given_as_items_or_ids(pod: Pod) -> None:
    """The items know it; absent and deleted ones are passed over."""
    rex, tom = pod.create(Dog("Rex")), pod.create(Dog("Tom"))

    pod.delete_items([rex, tom.id or "", "absent", rex])
    pod.delete_items([rex])

    ghost = Dog(id="absent")
    pod.delete_items([ghost])

    assert (rex.deleted, ghost.deleted) == (True, False)
    assert pod.search({"type": "Dog"}) == []
    assert pod.search({"type": "Dog", "deleted": True}) == [rex, Dog("Tom", id=tom.id, deleted=True)]


def test_a_deleted_item_comes_back_with_its_edges(pod: Pod) -> None:
    """Deletion is a mark, and can be taken off."""
    ada = pod.create(Person(firstName="Ada"))
    rex = pod.create(Dog("Rex", owner=[ada]))
    pod.delete_items([ada])
    assert pod.get(rex.id or "").owner == []

    ada.deleted = False
    pod.update_item(ada)

    assert pod.get(rex.id or "").owner == [Person(firstName="Ada", id=ada.id)]


def test_the_version_after_a_deletion_is_known(pod: Pod, clock: FakeClock) -> None:
    """A deletion that changed something moves the dates, one that did not does not."""
    rex = pod.create(Dog("Rex"))
    clock.advance(5)
    pod.delete_items([rex])
    clock.advance(5)
    pod.delete_items([rex])

    [found] = pod.search({"type": "Dog", "deleted": True})
    assert rex.dateModified == found.dateModified == at(1_700_000_000_005)
    rex.age = 3
    pod.update_item(rex, expected_version=2)


@pytest.mark.parametrize("given", ["rex", Dog("Rex", id="rex"), [7], [None], [Dog]])
def test_what_is_deleted_is_a_list_of_items_and_ids(pod: Pod, given: Any) -> None:
    """One id is text, and would be taken for a list of letters."""
    pod.create(Dog("Rex", id="rex"))

    with pytest.raises(InvalidError, match="a list is expected, each of it Item or str"):
        pod.delete_items(given)

    assert pod.exists("rex")


def test_an_item_that_was_never_created_cannot_be_deleted(pod: Pod, store: Observed) -> None:
    """And no other item of the call is."""
    rex = pod.create(Dog("Rex"))

    with pytest.raises(InvalidError, match=r"an item to delete, .* has no id"):
        pod.delete_items([rex, Dog("Tom")])

    assert pod.exists(rex.id or "")


# -- edges ------------------------------------------------------------------------------------------------------------


def test_an_edge_can_be_given_as_items_or_ids(pod: Pod) -> None:
    """Creating it again, and deleting an absent one, is nothing."""
    ada, bob = pod.create(Person(firstName="Ada")), pod.create(Person(firstName="Bob"))
    rex = pod.create(Dog("Rex"))

    pod.create_edge(Edge(rex, ada, "owner"))
    pod.create_edges([Edge(rex.id or "", bob.id or "", "owner"), Edge(rex.id or "", ada, "owner")])
    assert pod.get(rex.id or "").owner == [ada, bob]

    pod.delete_edges([Edge(rex.id or "", ada, "owner"), Edge(rex.id or "", rex.id or "", "friend")])
    assert pod.get(rex.id or "").owner == [bob]


def test_a_loaded_list_follows_the_edges_that_are_given_one_by_one(pod: Pod, store: Observed) -> None:
    """The list is what the Pod holds, so a later update of the item finds nothing to write."""
    ada, bob = pod.create(Person(firstName="Ada")), pod.create(Person(firstName="Bob"))
    rex = pod.create(Dog("Rex", owner=[bob]))

    pod.create_edges([Edge(rex, ada, "owner"), Edge(rex, bob, "owner"), Edge(rex, ada, "owner")])
    assert rex.owner == [bob, ada]
    pod.delete_edges([Edge(rex, bob.id or "", "owner")])
    assert rex.owner == [ada]

    store.batches.clear()
    pod.update_item(rex)
    assert store.batches == []


def test_a_list_is_not_falsified_by_edges_that_it_cannot_show(pod: Pod) -> None:
    """A list that is not loaded stays empty, a target given as an id is not in it; no later update removes either."""
    ada, bob = pod.create(Person(firstName="Ada")), pod.create(Person(firstName="Bob"))
    rex = pod.create(Dog("Rex", owner=[ada]))
    bare = pod.get(rex.id or "", expanded=False)

    pod.create_edges([Edge(bare, bob, "owner"), Edge(rex, bob.id or "", "owner")])

    assert (bare.owner, rex.owner) == ([], [ada])
    for item in (bare, rex):
        item.age = 1
        pod.update_item(item)
    assert pod.get(rex.id or "").owner == [ada, bob]


def test_an_edge_that_was_put_into_a_list_and_given_as_well_is_one_edge(pod: Pod) -> None:
    """It can be taken out of the list again."""
    ada = pod.create(Person(firstName="Ada"))
    rex = pod.create(Dog("Rex"))
    rex.owner.append(ada)
    pod.create_edge(Edge(rex, ada, "owner"))
    assert rex.owner == [ada]

    rex.owner.clear()
    pod.update_item(rex)

    assert pod.get(rex.id or "").owner == []


def test_edges_that_the_store_refuses_leave_lists_alone(pod: Pod) -> None:
    """All of them or none."""
    ada = pod.create(Person(firstName="Ada"))
    rex = pod.create(Dog("Rex"))

    with pytest.raises(NotFoundError, match="the target 'absent' of edge 'owner' does not exist"):
        pod.create_edges([Edge(rex, ada, "owner"), Edge(rex, "absent", "owner")])

    assert (rex.owner, pod.get(rex.id or "").owner) == ([], [])


def test_an_edge_needs_ends_with_ids_and_a_name_that_the_type_has(pod: Pod) -> None:
    """The message names what is wrong."""
    rex, ada = pod.create(Dog("Rex")), pod.create(Person(firstName="Ada"))

    with pytest.raises(InvalidError, match=r"the source of an edge, Dog\(name='Tom'\), has no id"):
        pod.create_edge(Edge(Dog("Tom"), ada, "owner"))
    with pytest.raises(InvalidError, match="Dog has no edge 'enemy'; it has friend, owner"):
        pod.create_edge(Edge(rex, ada, "enemy"))
    with pytest.raises(InvalidError, match="cannot lead to a Person"):
        pod.create_edge(Edge(rex, ada, "friend"))
    with pytest.raises(InvalidError, match="a list is expected, each of it Edge"):
        pod.create_edges([(rex, ada, "owner")])


def test_edges_are_listed_from_either_end(pod: Pod) -> None:
    """The end that was asked about is what was given; the other one is a typed item. Oldest first."""
    ada = pod.create(Person(firstName="Ada"))
    rex, tom = pod.create(Dog("Rex", owner=[ada])), pod.create(Dog("Tom", owner=[ada]))
    pod.create_edge(Edge(rex, tom, "friend"))

    assert pod.get_edges(rex) == [Edge(rex, ada, "owner"), Edge(rex, tom, "friend")]
    incoming = pod.get_edges(ada.id or "", "Incoming")
    assert incoming == [Edge(rex, ada.id or "", "owner"), Edge(tom, ada.id or "", "owner")]
    assert type(incoming[0].source) is Dog

    pod.delete_items([tom])
    assert pod.get_edges(rex) == [Edge(rex, ada, "owner")]
    assert pod.get_edges(ada) == []


def test_edges_of_an_absent_item_are_an_error(pod: Pod) -> None:
    """No edges and no item are told apart; so is a direction that there is not."""
    rex = pod.create(Dog("Rex"))

    for id_ in ("absent", "no id"):
        with pytest.raises(NotFoundError):
            pod.get_edges(id_)
    with pytest.raises(InvalidError, match="has no id"):
        pod.get_edges(Dog("Tom"))
    with pytest.raises(InvalidError, match="cannot be 'Both': it is one of Outgoing, Incoming"):
        pod.get_edges(rex, "Both")


def test_an_edge_may_lead_to_a_subclass_of_what_its_class_declares(pod: Pod, store: Observed) -> None:
    """The schema is widened in the same batch, once."""
    vip = pod.create(Vip(firstName="Eve", title="Dr"))
    tom = Dog("Tom")

    rex = pod.create(Dog("Rex", owner=[vip]))
    assert [type(operation) for operation in store.last] == [CreateItem, DeclareTypes, CreateEdge]
    assert store.schema()["Dog"].edges["owner"] == ("Person", "Vip")
    pod.bulk_action(create_items=[tom], create_edges=[Edge(tom, vip, "owner")])
    assert [type(operation) for operation in store.last] == [CreateItem, CreateEdge]

    for dog in (rex, tom):
        assert pod.get(dog.id or "").owner == [vip]
        assert type(pod.get(dog.id or "").owner[0]) is Vip


def test_many_edges_to_a_subclass_widen_the_schema_once(pod: Pod, store: Observed) -> None:
    """Not once for each."""
    vips = [Vip(firstName=f"{number}") for number in range(5)]
    rex = Dog("Rex")

    pod.bulk_action(create_items=[rex, *vips], create_edges=[Edge(rex, vip, "owner") for vip in vips])

    assert [type(operation) for operation in store.last].count(DeclareTypes) == 1
    assert pod.get(rex.id or "").owner == vips


def test_a_widening_that_was_given_up_is_made_again(pod: Pod) -> None:
    """It belonged to a call that failed, and another one in the block needs it."""
    vip, rex = pod.create(Vip(firstName="Eve")), pod.create(Dog("Rex"))
    with pod.transaction():
        with pytest.raises(InvalidError, match="has no id"):
            pod.create_edges([Edge(rex, vip, "owner"), Edge(rex, Person(), "owner")])
        pod.create_edge(Edge(rex, vip, "owner"))

    assert pod.get(rex.id or "").owner == [vip]


def test_an_edge_to_anything_needs_no_widening(pod: Pod, store: Observed) -> None:
    """A list of Item leads anywhere."""
    rex = pod.create(Dog("Rex"))

    note = pod.create(Note("bites", about=[rex]))

    assert [type(operation) for operation in store.last] == [CreateItem, CreateEdge]
    assert pod.get(note.id or "").about == [rex]


# -- bulk -------------------------------------------------------------------------------------------------------------


def test_bulk_writes_items_then_edges_then_deletions_in_one_batch(pod: Pod, store: Observed) -> None:
    """Items of one call may have each other in their lists, in circles too."""
    rex, tom, max_ = Dog("Rex"), Dog("Tom"), pod.create(Dog("Max"))
    rex.friend.append(tom)
    tom.friend.append(rex)
    old = pod.create(Dog("Old", friend=[max_]))
    max_.age = 9
    store.batches.clear()
    told: list[tuple[int, int]] = []

    pod.bulk_action(
        [rex, tom],
        [max_],
        [old],
        [Edge(max_, rex, "friend")],
        [Edge(old, max_, "friend")],
        on_progress=lambda *progress: told.append(progress),
    )

    assert store.batches == [
        Batch(
            (
                CreateItem(rex.id or "", "Dog", {"name": "Rex"}),
                CreateItem(tom.id or "", "Dog", {"name": "Tom"}),
                UpdateItem(max_.id or "", {"age": 9}),
                CreateEdge(rex.id or "", "friend", tom.id or ""),
                CreateEdge(tom.id or "", "friend", rex.id or ""),
                CreateEdge(max_.id or "", "friend", rex.id or ""),
                DeleteEdge(old.id or "", "friend", max_.id or ""),
                DeleteItem(old.id or ""),
            )
        )
    ]
    assert told == [(8, 8)]
    assert (max_.friend, old.friend, old.deleted) == ([rex], [], True)


def test_a_refused_bulk_leaves_all_items_as_they_were(pod: Pod, store: Observed) -> None:
    """What can be checked without the store is checked before anything is written."""
    rex, tom, max_ = Dog("Rex"), Dog("Tom", owner=[Person()]), pod.create(Dog("Max"))
    max_.age = 9
    store.batches.clear()

    with pytest.raises(InvalidError, match="has no id"):
        pod.bulk_action(create_items=[rex, tom], update_items=[max_])

    assert (rex.id, tom.id, store.batches) == (None, None, [])
    pod.update_item(max_)
    assert pod.get(max_.id or "").age == 9


def test_an_item_cannot_be_created_twice_by_one_bulk(pod: Pod, store: Observed) -> None:
    """It would be two items, or one error, depending on the store."""
    rex = Dog("Rex")

    with pytest.raises(ConflictError, match="written or read before"):
        pod.bulk_action(create_items=[rex, rex])

    assert (rex.id, store.batches) == (None, [])


def test_what_is_too_much_for_one_batch_is_written_in_parts(pod: Pod, store: Observed) -> None:
    """In full parts; the number of operations committed, and of all, is told after each."""
    told: list[tuple[int, int]] = []

    pod.bulk_action(
        delete_items=[f"d{number}" for number in range(120_000)], on_progress=lambda *each: told.append(each)
    )

    assert [len(batch.operations) for batch in store.batches] == [50_000, 50_000, 20_000]
    assert told == [(50_000, 120_000), (100_000, 120_000), (120_000, 120_000)]


def test_what_is_too_large_for_one_batch_is_written_in_parts(store: Observed) -> None:
    """In their order, none too large."""
    pod = Pod(store)
    pod.add_to_schema(Dog)
    store.batches.clear()
    name = "x" * (30 * 2**20)

    pod.bulk_action(create_items=[Dog(name, number) for number in range(5)])

    ages = [[operation.properties["age"] for operation in batch.operations] for batch in store.batches]
    assert [age for part in ages for age in part] == [0, 1, 2, 3, 4]
    assert max(len(part) for part in ages) == 2


def test_an_operation_that_is_larger_than_a_batch_is_refused_before_anything_is_written(store: Observed) -> None:
    """Wherever it stands among the others."""
    pod = Pod(store)
    pod.add_to_schema(Dog)
    store.batches.clear()
    rex, big = Dog("x" * (40 * 2**20)), Dog("x" * (65 * 2**20))

    with pytest.raises(InvalidError, match="MiB is too large: at most 64 MiB can be applied together"):
        pod.bulk_action(create_items=[rex, big])

    assert (store.batches, rex.id, big.id) == ([], None, None)


@pytest.fixture
def stopped(store: Observed) -> tuple[Pod, list[Dog], UnavailableError]:
    """A bulk of 50,010 dogs, each a friend of the one before, of which the second of three parts failed."""
    pod = Pod(store)
    pod.add_to_schema(Dog)
    store.batches.clear()
    dogs = [Dog(None, number) for number in range(50_010)]
    for one, other in pairwise(dogs):
        other.friend.append(one)
    store.fail = failing_at(2)
    with pytest.raises(UnavailableError) as caught:
        pod.bulk_action(create_items=dogs)
    store.fail = lambda number: None
    return pod, dogs, caught.value


def test_a_bulk_that_stopped_says_how_much_is_committed(stopped: tuple[Pod, list[Dog], UnavailableError]) -> None:
    """In the facts for programs, and in a note for people."""
    _, _, error = stopped

    assert error.facts["committed"] == {
        "create_items": 50_000,
        "update_items": 0,
        "delete_items": 0,
        "create_edges": 0,
        "delete_edges": 0,
    }
    assert error.__notes__ == [
        "committed before this: 50,000 create_items, 0 update_items, 0 delete_items, 0 create_edges, 0 delete_edges"
    ]


def test_items_of_committed_parts_know_it_and_the_others_are_as_they_were(
    stopped: tuple[Pod, list[Dog], UnavailableError], store: Observed
) -> None:
    """So the rest, edges included, can be given again."""
    pod, dogs, _ = stopped
    assert (dogs[49_999].dateCreated, dogs[50_000].dateCreated) == (at(1_700_000_000_000), None)
    assert (dogs[49_999].id is None, dogs[50_000].id is None) == (False, True)

    pod.bulk_action(create_items=dogs[50_000:], update_items=dogs[:50_000])

    assert [len(batch.operations) for batch in store.batches] == [50_000, 50_000, 19]
    assert len(pod.search({"type": "Dog"})) == 50_010
    for number in (1, 49_999, 50_000, 50_009):
        assert pod.get(dogs[number].id or "").friend == [dogs[number - 1]]
    store.batches.clear()
    pod.bulk_action(update_items=dogs)
    assert store.batches == []


def test_edges_of_one_item_that_were_cut_in_two_are_written_again(store: Observed) -> None:
    """What is committed of them is written twice, which is harmless; what is not, is not forgotten."""
    pod = Pod(store)
    pod.add_to_schema(Dog)
    rex = Dog("Rex", friend=[Dog(id=f"d{number}") for number in range(26_000)])
    store.batches.clear()
    store.fail = failing_at(2)
    with pytest.raises(UnavailableError) as caught:
        pod.bulk_action(create_items=[rex, *rex.friend])
    assert caught.value.facts["committed"]["create_edges"] == 23_999
    assert rex.dateCreated == at(1_700_000_000_000)

    store.fail = lambda number: None
    pod.update_item(rex)

    assert len(store.last) == 26_000
    assert len(pod.get(rex.id or "").friend) == 26_000


def test_the_number_of_a_refused_operation_counts_from_the_beginning_of_the_bulk(pod: Pod) -> None:
    """Not from the beginning of its part."""
    rex = pod.create(Dog("Rex"))
    there, absent = Edge(rex.id or "", rex.id or "", "friend"), Edge(rex.id or "", "absent", "friend")

    with pytest.raises(NotFoundError, match="the target 'absent' of edge 'friend' does not exist") as caught:
        pod.bulk_action(create_edges=[*[there] * 50_007, absent])

    assert caught.value.facts["operation"] == 50_007
    assert caught.value.facts["committed"]["create_edges"] == 50_000


def test_a_program_that_stops_a_bulk_between_two_parts_keeps_the_first(pod: Pod, store: Observed) -> None:
    """What on_progress raises comes out as it is, with the note."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        pod.bulk_action(delete_items=["x"] * 60_000, on_progress=stop)

    assert len(store.batches) == 1
    assert caught.value.__notes__[0].startswith("committed before this: 0 create_items, 0 update_items, 50,000 del")


def test_an_empty_bulk_is_nothing(pod: Pod, store: Observed) -> None:
    """No batch, no progress."""
    pod.bulk_action(on_progress=lambda done, total: pytest.fail("called"))

    assert store.batches == []


def test_single_calls_are_all_or_nothing_and_say_so_when_there_is_too_much(pod: Pod, store: Observed) -> None:
    """Only a bulk is cut."""
    with pytest.raises(InvalidError, match="a batch of 50,001 operations is too long"):
        pod.delete_items([f"d{number}" for number in range(50_001)])

    assert store.batches == []


# -- transactions -----------------------------------------------------------------------------------------------------


def test_a_block_is_one_batch(pod: Pod, store: Observed) -> None:
    """Items have their ids at once and their dates after it; reads inside see what is committed."""
    ada = Person(firstName="Ada")
    with pod.transaction():
        pod.create(ada)
        rex = pod.create(Dog("Rex", owner=[ada]))
        assert ada.id is not None
        assert pod.exists(ada.id) is False
        assert ada.dateCreated is None
        pod.bulk_action(create_items=[Dog("Tom")], on_progress=lambda done, total: pytest.fail("called"))
        assert store.batches == []

    assert [type(operation) for operation in store.last] == [CreateItem, CreateItem, CreateEdge, CreateItem]
    assert len(store.batches) == 1
    assert ada.dateCreated == rex.dateServerModified == at(1_700_000_000_000)
    assert pod.get(rex.id or "").owner == [ada]


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_an_exception_discards_the_block(pod: Pod, store: Observed, raised: type[BaseException]) -> None:
    """Items are as they were, and the same can be written again."""
    ada, max_ = Person(firstName="Ada"), pod.create(Dog("Max"))
    rex = Dog("Rex", id="rex")
    max_.owner.append(ada)
    store.batches.clear()

    with pytest.raises(raised), pod.transaction():  # noqa: PT012 -- the block is what raises
        pod.create(ada)
        ada.lastName = "L"
        pod.update_item(ada)
        pod.create(rex)
        max_.age = 5
        pod.update_item(max_)
        pod.create_edge(Edge(rex, ada, "owner"))
        pod.delete_items([max_])
        raise raised

    assert (store.batches, ada.id, rex.id, rex.owner, max_.deleted) == ([], None, "rex", [], False)
    with pod.transaction():
        pod.create(ada)
        pod.create(rex)
        pod.update_item(max_)
    assert pod.get(max_.id or "") == Dog("Max", 5, id=max_.id)
    assert pod.get(max_.id or "").owner == [ada]


def test_a_block_that_the_store_refuses_is_discarded(pod: Pod) -> None:
    """The with statement raises why; a new block can be opened."""
    rex = Dog("Rex")
    with pytest.raises(NotFoundError, match="there is no item 'absent' to update"), pod.transaction():  # noqa: PT012
        pod.create(rex)
        pod.update_item(Dog("Tom", id="absent"))
    assert rex.id is None

    with pod.transaction():
        pod.create(rex)
    assert pod.exists(rex.id or "")


def test_blocks_do_not_nest(pod: Pod) -> None:
    """The inner one is refused; what the outer one does with the error is its own matter."""
    with pod.transaction():
        pod.create(Dog("Rex"))
        with pytest.raises(InvalidError, match="transactions do not nest"), pod.transaction():
            pytest.fail("entered")

    assert [dog.name for dog in pod.search({"type": "Dog"})] == ["Rex"]


def test_a_block_belongs_to_the_task_that_opened_it(pod: Pod) -> None:
    """What other tasks write meanwhile is committed at once, be they started before the block or in it."""

    async def create(name: str, *, after: asyncio.Event, done: asyncio.Event) -> None:
        await after.wait()
        pod.create(Dog(name))
        done.set()

    async def run() -> None:
        opened, done, done_inside = asyncio.Event(), asyncio.Event(), asyncio.Event()
        before = asyncio.create_task(create("before", after=opened, done=done))
        with pytest.raises(ZeroDivisionError), pod.transaction():  # noqa: PT012 -- the block is what raises
            pod.create(Dog("mine"))
            inside = asyncio.create_task(create("inside", after=opened, done=done_inside))
            opened.set()
            await done.wait()
            await done_inside.wait()
            await asyncio.to_thread(pod.create, Dog("in a thread"))
            assert pod.block is not None
            assert await asyncio.to_thread(lambda: pod.block) is None
            raise ZeroDivisionError
        await before
        await inside

    asyncio.run(run())
    assert sorted(dog.name for dog in pod.search({"type": "Dog"})) == ["before", "in a thread", "inside"]  # type: ignore[attr-defined]


def test_two_tasks_may_each_have_a_block_open(pod: Pod, store: Observed) -> None:
    """Each is a batch of its own and one that is given up takes nothing of the other's; they do not nest either."""

    async def run() -> None:
        both = asyncio.Barrier(2)

        async def keep() -> None:
            with pod.transaction():
                await both.wait()
                pod.create(Dog("kept"))
                await both.wait()
                with pytest.raises(InvalidError, match="open in this task already"), pod.transaction():
                    pytest.fail("entered")

        async def give_up() -> None:
            with pytest.raises(ZeroDivisionError), pod.transaction():  # noqa: PT012 -- the block is what raises
                await both.wait()
                pod.create(Dog("given up"))
                await both.wait()
                raise ZeroDivisionError

        await asyncio.gather(keep(), give_up())

    asyncio.run(run())
    assert [dog.name for dog in pod.search({"type": "Dog"})] == ["kept"]  # type: ignore[attr-defined]
    assert len(store.batches) == 1


def test_a_coroutine_that_is_awaited_inside_a_block_writes_into_it(pod: Pod, store: Observed) -> None:
    """It is the same task; what it did is there with the rest."""

    async def create(name: str) -> None:
        await asyncio.sleep(0)
        pod.create(Dog(name))

    async def run() -> None:
        with pod.transaction():
            await create("Rex")
            await create("Tom")
            assert store.batches == []

    asyncio.run(run())
    assert [len(batch.operations) for batch in store.batches] == [2]


def test_variables_written_in_two_open_blocks_are_seen_by_their_own_block_only(pod: Pod) -> None:
    """Each block reads what it wrote itself, however the two take turns; the Pod holds what was committed."""
    variables = PodVariables(pod, pod.create(PersistentState(name="default")).id or "")
    seen: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}

    async def run() -> None:
        both = asyncio.Barrier(2)

        async def write(name: str) -> None:
            with pod.transaction():
                for number in (1, 2):
                    variables.put("", f"{name}{number}", number)
                    await both.wait()
                    seen[name].append(dict(variables.read("")))
                await both.wait()  # before either is committed

        await asyncio.gather(write("a"), write("b"))

    asyncio.run(run())
    assert seen == {"a": [{"a1": 1}, {"a1": 1, "a2": 2}], "b": [{"b1": 1}, {"b1": 1, "b2": 2}]}
    assert variables.read("") == {"a1": 1, "a2": 2, "b1": 1, "b2": 2}
    variables.load("")
    assert variables.read("") == {"a1": 1, "a2": 2, "b1": 1, "b2": 2}


def test_classes_that_a_block_declares_are_used_when_it_is_committed(pod: Pod) -> None:
    """A block that is given up declares nothing, and nothing is read as its classes."""

    class Bird(Item):
        name: str | None = None

    first_bird = Bird

    class Bird(Item):  # type: ignore[no-redef]
        name: str | None = None
        wings: int | None = None

    pod.add_to_schema(first_bird)
    bird = pod.create(first_bird(name="Tweety"))
    with pytest.raises(ZeroDivisionError), pod.transaction():  # noqa: PT012 -- the block is what raises
        pod.add_to_schema(Bird)
        raise ZeroDivisionError
    assert type(pod.get(bird.id or "")) is first_bird

    with pod.transaction():
        pod.add_to_schema(Bird)
    assert type(pod.get(bird.id or "")) is Bird


def test_a_call_that_fails_inside_a_block_is_not_in_it(pod: Pod) -> None:
    """A program that catches the error commits the rest, and nothing else."""
    rex, tom = Dog("Rex"), Dog("Tom", owner=[Person()])
    with pod.transaction():
        pod.create(rex)
        with pytest.raises(InvalidError, match="has no id"):
            pod.create(tom)
        assert tom.id is None

    assert pod.search({"type": "Dog"}) == [rex]


def test_an_empty_block_writes_nothing(pod: Pod, store: Observed) -> None:
    """There is nothing to write."""
    with pod.transaction():
        pod.update_item(Dog("Rex", id="rex")) if pod.exists("rex") else None

    assert store.batches == []


def test_a_second_write_in_a_block_begins_where_the_first_one_ended(pod: Pod, store: Observed) -> None:
    """Each writes its own difference; after the block there is none left."""
    ada, bob = pod.create(Person(firstName="Ada")), pod.create(Person(firstName="Bob"))
    rex = Dog("Rex", owner=[ada])
    with pod.transaction():
        pod.create(rex)
        rex.age = 3
        rex.owner[:] = [bob]
        pod.update_item(rex)
        pod.update_item(rex)
        rex.name = "Rex II"

    assert store.last[2:] == [
        UpdateItem(rex.id or "", {"age": 3}),
        CreateEdge(rex.id or "", "owner", bob.id or ""),
        DeleteEdge(rex.id or "", "owner", ada.id or ""),
    ]
    assert pod.get(rex.id or "").owner == [bob]
    pod.update_item(rex, expected_version=2)
    assert store.last == [UpdateItem(rex.id or "", {"name": "Rex II"}, 2)]


def test_a_date_that_is_assigned_inside_a_block_is_not_overwritten(pod: Pod) -> None:
    """It is written with the next update, as any other difference."""
    rex = Dog("Rex")
    with pod.transaction():
        pod.create(rex)
        rex.dateCreated = at(5_000)
    assert rex.dateCreated == at(5_000)

    pod.update_item(rex)

    assert pod.get(rex.id or "").dateCreated == at(5_000)


def test_a_date_that_is_erased_inside_a_block_is_not_made_up(pod: Pod) -> None:
    """The Pod holds the one that was given, so the item cannot show another."""
    rex = Dog("Rex", dateCreated=at(5_000))
    with pod.transaction():
        pod.create(rex)
        rex.dateCreated = None

    assert (rex.dateCreated, pod.get(rex.id or "").dateCreated) == (None, at(5_000))


def test_a_write_that_does_not_fit_into_the_block_any_more_is_refused_at_once(pod: Pod, store: Observed) -> None:
    """It is not in the block, those before it are."""
    rex = Dog("Rex")
    with pod.transaction():
        pod.delete_items(["x"] * 30_000)
        with pytest.raises(
            InvalidError, match=r"a transaction cannot hold 60,000 operations of 6.5 MiB: at most 50,000"
        ):
            pod.bulk_action(delete_items=["x"] * 30_000)
        with pytest.raises(InvalidError, match=r"cannot hold 30,001 operations of 68.2 MiB: at most 50,000 of 64 MiB"):
            pod.create(Dog("x" * (65 * 2**20)))
        pod.create(rex)

    assert [len(batch.operations) for batch in store.batches] == [30_001]
    assert pod.exists(rex.id or "")


def test_other_threads_write_their_own_batches_meanwhile(pod: Pod, store: Observed) -> None:
    """A block belongs to the thread that opened it, and a thread may have its own."""
    others: list[bool] = []

    def write() -> None:
        pod.create(Dog("theirs", id="t1"))
        others.append(pod.exists("t1"))
        with pod.transaction():
            pod.create(Dog("theirs too", id="t2"))
        others.append(pod.exists("t2"))

    with pod.transaction():
        pod.create(Dog("mine", id="m1"))
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert others == [True, True]
        assert pod.exists("m1") is False

    assert [[operation.id for operation in batch.operations] for batch in store.batches] == [["t1"], ["t2"], ["m1"]]


def test_any_operation_can_join_a_block_and_learn_its_result(pod: Pod, store: Observed) -> None:
    """Outside a block it is a batch of its own; nobody is told of what was not committed."""
    told: list[Result] = []
    pod.add(IncrementVariable("s1", "count", 2), told.append)
    assert told == [2]

    with pod.transaction():
        pod.create(Dog("Rex"))
        pod.add(IncrementVariable("s1", "count", 3), told.append)
        pod.add(SetVariable("s1", "head", "c1"))
        assert told == [2]
    assert told == [2, 5]
    assert len(store.last) == 3

    with pytest.raises(ZeroDivisionError), pod.transaction():  # noqa: PT012 -- the block is what raises
        pod.add(IncrementVariable("s1", "count"), told.append)
        raise ZeroDivisionError
    assert told == [2, 5]
    assert dict(store.list_variables("s1")) == {"count": 5, "head": "c1"}


def test_every_batch_carries_the_fence(store: Observed) -> None:
    """What a run writes is refused once another holds its plugin state, and nothing of it is written."""
    owner = Pod(store)
    owner.add_to_schema(Dog)
    owner.add(ClaimLease("s1", "r1", "h1", 60_000))
    pod = Pod(store, fence=Fence(state="s1", epoch=1, holder="h1"))
    rex = pod.create(Dog("Rex"))
    with pod.transaction():
        pod.add(SetVariable("s1", "head", "c1"))
    owner.add(ClaimLease("s1", "r2", "h2", 60_000, dead_holder="h1"))

    rex.age = 3
    late = Dog("late")
    for write in (
        lambda: pod.update_item(rex),
        lambda: pod.create(late),
        lambda: pod.delete_items([rex]),
        lambda: pod.bulk_action(create_items=[late]),
    ):
        with pytest.raises(FencedError):
            write()

    assert late.id is None
    assert owner.search({"type": "Dog"}) == [Dog("Rex", id=rex.id)]


def test_a_pod_closes_its_store(store: Observed) -> None:
    """At the end of a with statement, and again without harm."""
    with Pod(store) as pod:
        pod.close()

    with pytest.raises(UnavailableError):
        store.search(Query())


def test_threads_may_share_a_pod(pod: Pod) -> None:
    """Each with items of its own: every write arrives, and unknown types get one class."""
    dogs = [[Dog(f"{thread}-{number}", number) for number in range(25)] for thread in range(4)]

    def work(mine: list[Dog]) -> None:
        for dog in mine:
            pod.create(dog)
            dog.age = 100
            pod.update_item(dog)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in dogs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(dog.name for dog in pod.search({"type": "Dog", "age": 100})) == sorted(
        f"{thread}-{number}" for thread in range(4) for number in range(25)
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda pod: pod.search({5: 1}), "5 is no field of a search"),
        (lambda pod: pod.search_paginate({}, limit="a"), "a page cannot have 'a' items: it has a whole number of them"),
        (lambda pod: pod.search_paginate({}, limit=True), "a page cannot have True items"),
        (lambda pod: pod.search_paginate({}, limit=1.5), "a page cannot have 1.5 items"),
        (lambda pod: pod.bulk_action(create_items=None), "None cannot be written: a list is expected, each of it Item"),
        (lambda pod: pod.bulk_action(create_edges=5), "5 cannot be written: a list is expected, each of it Edge"),
        (lambda pod: pod.delete_items(None), "None cannot be written: a list is expected, each of it Item or str"),
        (lambda pod: pod.create(Person.model_construct(firstName=5)), "firstName"),
        (lambda pod: pod.create(Person.model_construct(firstName=[10**5000])), "firstName"),
        (lambda pod: pod.create(Person.model_construct(id=5)), "has the id 5: an id is text"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(pod: Pod, call: Callable[[Any], Any], words: str) -> None:
    """Whatever is given, the error is one of ours and names it."""
    with pytest.raises(InvalidError, match=re.escape(words)):
        call(pod)


def test_an_item_that_is_constructed_unchecked_can_be_written(pod: Pod) -> None:
    """The store checks what its constructor did not."""
    ada = pod.create(Person.model_construct(firstName="Ada"))
    assert pod.get(ada.id or "") == ada


def test_a_date_that_was_read_can_be_searched_for(pod: Pod) -> None:
    """Exactly, from it on, and before it; the dates of the store as well."""
    ada = pod.create(Person(firstName="Ada", birthDate=datetime(1815, 12, 10, 1, 2, 3, 4567, tzinfo=UTC)))

    assert pod.search({"type": "Person", "birthDate": ada.birthDate}) == [ada]
    assert pod.search({"birthDate>=": ada.birthDate, "dateCreated": ada.dateCreated}) == [ada]
    assert pod.search({"birthDate<": ada.birthDate}) == []


# -- journeys ---------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("name"), st.sampled_from([None, "Rex", "Tom"])),
        st.tuples(st.just("put"), st.integers(0, 3)),
        st.tuples(st.just("take"), st.integers(0, 3)),
        st.tuples(st.just("edge"), st.integers(0, 3)),
        st.tuples(st.just("unedge"), st.integers(0, 3)),
        st.tuples(
            st.just("write"), st.sampled_from(["at once", "in a block", "twice in a block", "in vain", "refused"])
        ),
        st.tuples(st.just("read"), st.booleans()),
    ),
    max_size=25,
)


def written(pod: Pod, rex: Any, how: str, person: Person) -> bool:
    """Write a dog in one of several ways, and say whether it was written."""
    before = pod.get(rex.id)
    match how:
        case "at once":
            pod.update_item(rex)
        case "in a block":
            with pod.transaction():
                pod.update_item(rex)
        case "twice in a block":
            with pod.transaction():
                pod.update_item(rex)
                rex.owner.append(person)
                pod.update_item(rex)
        case "in vain":
            with pytest.raises(ZeroDivisionError), pod.transaction():  # noqa: PT012 -- the block is what raises
                pod.update_item(rex)
                raise ZeroDivisionError
        case _:
            with pytest.raises(NotFoundError), pod.transaction():  # noqa: PT012 -- the block is what raises
                pod.update_item(rex)
                pod.update_item(Dog(id="absent"))
    if how in ("in vain", "refused"):
        assert (pod.get(rex.id), pod.get(rex.id).owner) == (before, before.owner)
        return False
    return True


@given(STEPS)
@settings(max_examples=150)
def test_after_a_write_the_pod_holds_what_the_item_holds(steps: list[tuple[str, Any]]) -> None:
    """Whatever was changed, written, given up or read before: properties, edges, and nothing left to write."""
    store = Observed(FakeClock())
    pod = Pod(store)
    pod.add_to_schema(Dog)
    people = [pod.create(Person(firstName=f"{number}")) for number in range(4)]
    rex: Any = pod.create(Dog())
    unseen: set[str] = set()  # edges that exist, and that a list which is not loaded does not show

    for verb, what in steps:
        match verb:
            case "name":
                rex.name = what
            case "put":
                rex.owner.append(people[what])
            case "take":
                rex.owner[:] = [person for person in rex.owner if person.id != people[what].id]
            case "edge":
                pod.create_edge(Edge(rex, people[what], "owner"))
                if people[what].id not in [person.id for person in rex.owner]:
                    unseen.add(people[what].id or "")
            case "unedge":
                pod.delete_edges([Edge(rex, people[what], "owner")])
                unseen.discard(people[what].id or "")
            case "read":
                rex = pod.get(rex.id, expanded=what)
                unseen = set() if what else {edge.target.id for edge in pod.get_edges(rex)}
            case _ if written(pod, rex, what, people[0]):
                after: Any = pod.get(rex.id)
                assert after == rex
                assert {person.id for person in after.owner} - unseen == {person.id for person in rex.owner} - unseen
                store.batches.clear()
                pod.update_item(rex)
                assert store.batches == []
