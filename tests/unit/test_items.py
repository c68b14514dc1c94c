"""Items as classes and as data: construction, what changed, equality, copies, schema."""

import copy
import pickle
import traceback
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from holdfast.errors import ConflictError, InvalidError
from holdfast.items import (
    BUILT_IN,
    Account,
    Edge,
    EmailMessage,
    Field,
    Item,
    Person,
    PropertyDefinition,
    Schema,
    Secret,
    TypeDefinition,
    changes_of,
    class_of,
    definition_of,
    edge_changes_of,
    edge_targets,
    load_edges,
    new_id,
    properties_of,
    restore_item,
    settle_saved,
)
from holdfast.values import Kind


class Dog(Item):
    """One property of each kind, one of each sort of edge."""

    name: Optional[str] = None
    age: int | None = None
    weight: float | None = None
    good: bool | None = None
    born: datetime | None = None
    tag: str | None = Field(index=True, kw_only=True, description="on the collar")
    pin: Secret[str] | None = None
    owner: list[Person] = []
    friend: list["Dog"] = []
    seen: list[Item] = []


class Puppy(Dog):
    """A type that adds to another."""

    toy: str | None = None


class Base(Item, kw_only=True):
    """A type that is meant to be subclassed."""

    label: str | None = None


class Leaf(Base):
    """One that does so."""

    size: int | None = None


class Edgeless(Item):
    """A type without a field of its own."""


SYSTEM = "id, dateCreated, dateModified, dateServerModified"


class Rule(Item):
    """Properties that always have a value."""

    text: str
    weight: int = 3


def saved(item: Item, id_: str = "x") -> Item:
    """Return ``item`` as if it had been written."""
    item.id = id_
    settle_saved(item, version=1)
    return item


# -- construction --


def test_own_fields_are_given_by_position_in_declared_order() -> None:
    """Inherited ones, and those that say so, by keyword only; edges count as fields."""
    dog = Dog("Bob", 10, 2.5, True)
    assert (dog.name, dog.age, dog.weight, dog.good) == ("Bob", 10, 2.5, True)
    assert (Puppy("ball", name="Rex").toy, Leaf(1, label="x").size) == ("ball", 1)
    ada = Person(firstName="Ada")
    assert Dog("Bob", 10, None, None, None, None, [ada]).owner == [ada]
    assert Dog().friend == []


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Puppy("ball", "Rex"), "Puppy takes at most 1 values by position (toy), not 2"),
        (lambda: Base("x"), "Base takes at most 0 values by position (), not 1"),
        (lambda: Dog("Bob", name="Rex"), "Dog.name is given twice, by position and by name"),
        (lambda: Edgeless(colour="red"), f"Edgeless has no field 'colour'; it has {SYSTEM}, deleted"),
        (Rule, "Rule.text is missing"),
        (lambda: Rule(None), "Rule.text cannot be None: it should be a valid string"),
        (lambda: Dog(1), "Dog.name cannot be 1: it should be a valid string"),
        (lambda: Dog(age="10"), "Dog.age cannot be '10': it should be a valid integer"),
        (lambda: Dog(age=True), "Dog.age cannot be True: it should be a valid integer"),
        (lambda: Dog(age=2**63), "Dog.age cannot be 9223372036854775808: an integer must fit in 64 bits"),
        (lambda: Dog(weight=float("nan")), "Dog.weight cannot be nan: it should be a finite number"),
        (lambda: Dog(good=1), "Dog.good cannot be 1: it should be a valid boolean"),
        (lambda: Dog("a\0b"), r"Dog.name cannot be 'a\x00b': text must not hold NUL"),
        (lambda: Dog("\ud800"), r"Dog.name cannot be '\ud800': text must not hold a lone surrogate (at character 0)"),
        (lambda: Dog(pin="a\0b"), "Dog.pin cannot be '…': text must not hold NUL"),
        (lambda: Dog(pin=1234), "Dog.pin cannot be '…': it should be a valid string"),
        (lambda: Dog(born="2020-01-01"), "Dog.born cannot be '2020-01-01': it should be a valid datetime"),
        (lambda: Dog(id="a/b"), "Dog.id cannot be 'a/b': 1 to 64 letters, digits, '-' and '_' are allowed"),
    ],
)
def test_what_an_item_cannot_be_made_of_is_named(make: Any, message: str) -> None:
    """The message has the type, the field and the value; a secret is not shown."""
    with pytest.raises(InvalidError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "name, value",
    [("name", 1), ("name", "\0"), ("age", 2**63), ("weight", float("inf")), ("owner", [1]), ("colour", "red"),
     ("born", datetime(2020, 1, 1)), ("id", "a/b"), ("pin", 5)],  # noqa: DTZ001 -- a missing zone is the case
)  # fmt: skip
def test_an_assignment_is_checked_like_a_construction(name: str, value: object) -> None:
    """A refused one leaves the item as it was."""
    dog = Dog("Bob", 10, id="d")
    with pytest.raises(InvalidError, match=rf"^Dog(\.| has no field '){name}"):
        setattr(dog, name, value)
    assert repr(dog) == "Dog(id='d', name='Bob', age=10)"


def test_dates_are_kept_in_utc_to_the_millisecond() -> None:
    """What the Pod holds is what the item shows, before it was written as after it."""
    east = timezone(timedelta(hours=2))
    dog = Dog(born=datetime(2020, 1, 1, 1, 0, 0, 123_999, tzinfo=east))
    assert dog.born == datetime(2019, 12, 31, 23, 0, 0, 123_000, tzinfo=UTC)
    dog.born = datetime(2020, 1, 1, 2, tzinfo=east)
    assert repr(dog.born) == "datetime.datetime(2020, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)"
    with pytest.raises(InvalidError, match=r"^Dog.born cannot be .* time zone"):
        Dog(born=datetime(2020, 1, 1))  # noqa: DTZ001 -- a missing zone is the case


def test_none_instead_of_a_list_of_items_means_no_edges() -> None:
    """As older plugins give it; a list that is given is the item's own."""
    assert Dog(owner=None).owner == []
    first, second = Dog(), Dog()
    first.owner.append(Person())
    assert second.owner == []


# -- equality, repr, copies --


def test_equal_items_have_equal_type_id_and_properties() -> None:
    """Edges and the store's dates do not count; the type does."""
    assert Dog("Bob", owner=[Person()], dateModified=datetime(2020, 1, 1, tzinfo=UTC)) == Dog("Bob")
    assert Dog("Bob") != Dog("Rex")
    assert Dog("Bob", id="a") != Dog("Bob", id="b")
    assert Dog("Bob", deleted=True) != Dog("Bob")
    assert Dog("Bob") != Puppy(name="Bob")
    assert Dog("Bob") != "Bob"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Dog("Bob"))


def test_the_repr_shows_properties_and_no_secret() -> None:
    """Nor edges, which may go in circles; str and format say the same."""
    dog = Dog("Bob", pin="1234", deleted=True, dateCreated=datetime(2020, 1, 1, tzinfo=UTC))
    dog.friend.append(dog)
    assert repr(dog) == str(dog) == f"{dog}" == "Dog(name='Bob', pin='…', deleted=True)"
    assert dog.pin == "1234"


@pytest.mark.parametrize("use", [lambda value: Account(secret=value), lambda value: setattr(Account(), "code", value)])
def test_a_refused_secret_is_in_no_traceback(use: Any) -> None:
    """Not even in the error that was the cause."""
    with pytest.raises(InvalidError, match=r"^Account\.(secret|code) cannot be '…'") as caught:
        use(bytes([104, 117, 110, 116, 101, 114]))
    assert "hunter" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item)), Item.model_copy]
)
def test_a_copy_knows_what_was_last_written(duplicate: Any) -> None:
    """What is changed in a copy is a change of the copy, and is none of the original."""
    dog = saved(Dog("Bob", 10), "d")
    dog.age = 11
    other = duplicate(dog)
    other.name = "Rex"
    assert other == Dog("Rex", 11, id="d")
    assert changes_of(other) == {"name": "Rex", "age": 11}
    assert changes_of(dog) == {"age": 11}


def test_circles_can_be_copied_and_pickled() -> None:
    """An item that leads to itself does so in the copy."""
    dog = Dog("Bob")
    dog.friend.append(dog)
    for other in (copy.deepcopy(dog), pickle.loads(pickle.dumps(dog))):
        assert other.friend[0] is other is not dog


# -- what changed --


def test_a_new_item_is_all_change() -> None:
    """None is not written; nor is the id, nor the date that is the store's."""
    dog = Dog(
        "Bob", born=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), dateServerModified=datetime(2020, 1, 1, tzinfo=UTC)
    )
    assert changes_of(dog) == properties_of(dog) == {"name": "Bob", "born": 1000}


def test_changes_are_the_difference_to_what_was_last_written() -> None:
    """Back to what it was is no change; None erases; undeleting says so."""
    dog = saved(Dog("Bob", 10, deleted=True))
    assert changes_of(dog) == {}
    dog.name = "Rex"
    dog.name = "Bob"
    dog.age = None
    dog.good = False
    dog.deleted = False
    assert changes_of(dog) == {"age": None, "good": False, "deleted": False}
    settle_saved(dog, version=2)
    assert changes_of(dog) == {}


def test_true_and_one_and_one_point_zero_are_different_values() -> None:
    """Python calls them equal; a property of one kind can hold but one of them."""
    dog = restore_item(Dog, "d", {"age": 1, "weight": 1.0, "good": True}, version=1)
    assert changes_of(dog) == {}
    dog.weight = 1
    assert repr(properties_of(dog)["weight"]) == "1.0"
    assert changes_of(dog) == {}


def test_edges_are_compared_with_those_that_were_loaded() -> None:
    """Appending and removing count, also by assigning another list; the same twice is one edge."""
    ada, bob = Person(id="a"), Person()
    dog = Dog(owner=[ada, bob, bob])
    assert edge_changes_of(dog) == ([("owner", ada), ("owner", bob)], [])
    bob.id = "b"
    saved(dog)
    assert edge_changes_of(dog) == ([], [])
    dog.owner.remove(ada)
    dog.friend.append(dog)
    assert edge_changes_of(dog) == ([("friend", dog)], [("owner", "a")])
    dog.owner = []
    assert edge_changes_of(dog) == ([("friend", dog)], [("owner", "a"), ("owner", "b")])


def test_edges_that_were_not_loaded_are_not_removed() -> None:
    """An item read without its edges may be given new ones; the others stay."""
    dog = restore_item(Dog, "d", {}, version=1)
    assert edge_changes_of(dog) == ([], [])
    ada = Person(id="a")
    dog.owner.append(ada)
    assert edge_changes_of(dog) == ([("owner", ada)], [])
    settle_saved(dog, version=2)
    dog.owner.clear()
    assert edge_changes_of(dog) == ([], [("owner", "a")])


def test_loaded_edges_are_known_and_a_copy_made_before_does_not_know_them() -> None:
    """What is loaded into one item is not missing from another."""
    dog = restore_item(Dog, "d", {}, version=1)
    before = copy.copy(dog)
    load_edges(dog, {"owner": [Person(id="a"), Person(id="b")]})
    assert edge_changes_of(dog) == edge_changes_of(before) == ([], [])
    del dog.owner[0]
    assert edge_changes_of(dog) == ([], [("owner", "a")])


def test_an_edge_leads_to_an_item_of_the_declared_type() -> None:
    """A subclass is one; a list of Item holds any; what was appended unseen is found when it is written."""
    dog = Dog(friend=[Puppy()], seen=[Person(), Dog()])
    assert len(edge_changes_of(dog)[0]) == 3
    dog.owner.append("Ada")
    with pytest.raises(InvalidError, match=r"^Dog.owner cannot hold 'Ada': it is a list of Person$"):
        edge_changes_of(dog)


def test_reading_fills_in_defaults_and_that_is_no_change() -> None:
    """A stored item may be older than the class; what the class does not know stays out of sight."""
    rule = restore_item(Rule, "r", {"text": "x", "colour": "red"}, version=7)
    assert repr(rule) == "Rule(id='r', text='x', weight=3)"
    assert changes_of(rule) == {}
    rule.weight = 4
    assert changes_of(rule) == {"weight": 4}


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
DATES = st.datetimes(timezones=st.just(UTC))


@given(
    st.builds(
        Dog,
        name=st.none() | TEXTS,
        age=st.none() | st.integers(-(2**63), 2**63 - 1),
        weight=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        good=st.none() | st.booleans(),
        born=st.none() | DATES,
        pin=st.none() | TEXTS,
        dateCreated=st.none() | DATES,
        deleted=st.booleans(),
    )
)
def test_an_item_is_read_as_it_was_written(dog: Dog) -> None:
    """Whatever its properties hold: equal, and unchanged."""
    read = restore_item(Dog, "d", properties_of(dog), version=1)
    dog.id = "d"
    assert read == dog
    assert read.dateCreated == dog.dateCreated
    assert repr(properties_of(read)) == repr(properties_of(dog))
    assert changes_of(read) == {}


# -- schema --


DOG = TypeDefinition(
    "Dog",
    {
        "name": PropertyDefinition(Kind.TEXT),
        "age": PropertyDefinition(Kind.INTEGER),
        "weight": PropertyDefinition(Kind.REAL),
        "good": PropertyDefinition(Kind.BOOL),
        "born": PropertyDefinition(Kind.DATETIME),
        "tag": PropertyDefinition(Kind.TEXT, is_indexed=True),
        "pin": PropertyDefinition(Kind.TEXT, is_secret=True),
    },
    {"owner": ("Person",), "friend": ("Dog",), "seen": ("Item",)},
)


def test_the_class_is_the_whole_declaration() -> None:
    """Scalars are properties, lists of items are edges, inherited ones included."""
    assert definition_of(Dog) == DOG
    assert definition_of(Puppy).properties == {**DOG.properties, "toy": PropertyDefinition(Kind.TEXT)}
    assert definition_of(Puppy).edges == DOG.edges
    assert edge_targets(Dog) == {"owner": Person, "friend": Dog, "seen": Item}
    assert definition_of(Rule).properties == {
        "text": PropertyDefinition(Kind.TEXT), "weight": PropertyDefinition(Kind.INTEGER),
    }  # fmt: skip


@pytest.mark.parametrize(
    "annotation, default, words",
    [
        (dict, None, "Bad.x is declared <class 'dict'>: a field of an item is text, "),
        (list[str], [], "a list of items"),
        (str | int, "", r"Bad.x is declared str \| int"),
        (bytes | None, None, "Bad.x is declared"),
        (Person | None, None, "Bad.x is declared"),
        (Secret[str] | None, Field(index=True), "property Bad.x cannot be indexed: it is secret"),
    ],
)
def test_a_field_of_another_sort_is_refused_by_name(annotation: Any, default: Any, words: str) -> None:
    """The message says what can be declared instead."""
    bad: Any = type(Item)("Bad", (Item,), {"__annotations__": {"x": annotation}, "x": default, "__module__": __name__})
    with pytest.raises(InvalidError, match=words):
        definition_of(bad)


@pytest.mark.parametrize("name", ["type", "a" * 65, "größe"])
def test_a_field_with_a_name_that_cannot_travel_is_refused(name: str) -> None:
    """The message has the name and the rule."""
    bad: Any = type(Item)("Bad", (Item,), {"__annotations__": {name: str | None}, name: None, "__module__": __name__})
    with pytest.raises(InvalidError, match=f"'{name}' cannot name a property or edge of Bad"):
        definition_of(bad)


def test_a_type_declared_elsewhere_gets_a_class() -> None:
    """It has the same properties; its edges lead anywhere; its secrets are secret."""
    cls: Any = class_of(DOG)
    dog = cls("Bob", 3, pin="1234", owner=[Person()])
    assert repr(dog) == "Dog(name='Bob', age=3, pin='…')"
    assert definition_of(cls).properties == DOG.properties
    assert definition_of(cls).edges == {"owner": ("Item",), "friend": ("Item",), "seen": ("Item",)}


def schema(**kinds: str) -> TypeDefinition:
    """Return a type T with properties of these kinds."""
    return TypeDefinition("T", {name: PropertyDefinition(Kind(kind)) for name, kind in kinds.items()})


def test_joining_adds_and_keeps() -> None:
    """Equal definitions are the same schema; an index or a secret, once asked for, stays; targets add up."""
    first = Schema([schema(a="Text", b="Integer")])
    assert first.joined([schema(b="Integer")]) is first
    both = first.joined([schema(c="Real"), TypeDefinition("U")])
    assert dict(both) == {"T": schema(a="Text", b="Integer", c="Real"), "U": TypeDefinition("U")}
    assert dict(first) == {"T": schema(a="Text", b="Integer")}
    marked = TypeDefinition("T", {"a": PropertyDefinition(Kind.TEXT, is_indexed=True)}, {"e": ("U",)})
    joined = first.joined([marked]).joined([schema(a="Text"), TypeDefinition("T", {}, {"e": ("A",)})])
    assert joined["T"].properties["a"] == PropertyDefinition(Kind.TEXT, is_indexed=True)
    assert joined["T"].edges == {"e": ("A", "U")}


@pytest.mark.parametrize(
    "other, error, words",
    [
        (schema(a="Integer"), ConflictError, "property T.a is Text in this Pod and cannot become Integer"),
        (schema(e="Text"), ConflictError, "property T.e is an edge to U, V in this Pod and cannot become Text"),
        (TypeDefinition("T", {}, {"a": ("U",)}), ConflictError, "edge T.a is a property of kind Text in this Pod"),
        (TypeDefinition("T", {}, {"f": ()}), InvalidError, r"edge T.f cannot lead to \(\)"),
        (TypeDefinition("T", {}, {"f": ("no type",)}), InvalidError, "edge T.f cannot lead to"),
        (TypeDefinition("T", {"x": PropertyDefinition(Kind.TEXT)}, {"x": ("U",)}), InvalidError, "both a property and"),
        (TypeDefinition("Item"), InvalidError, "'Item' cannot name an item type"),
        (TypeDefinition("a b"), InvalidError, "'a b' cannot name an item type"),
        (schema(deleted="Bool"), InvalidError, "'deleted' cannot name a property or edge of T"),
        (TypeDefinition("T", {"a": PropertyDefinition(Kind.TEXT, is_indexed=True, is_secret=True)}), InvalidError,
         "T.a cannot be indexed: it is secret"),
    ],
)  # fmt: skip
def test_what_disagrees_or_is_malformed_is_named(other: TypeDefinition, error: type[Exception], words: str) -> None:
    """A conflict names both sides; neither schema is changed."""
    first = Schema([TypeDefinition("T", {"a": PropertyDefinition(Kind.TEXT)}, {"e": ("U", "V")})])
    with pytest.raises(error, match=words):
        first.joined([TypeDefinition("New"), other])
    assert list(first) == ["T"]


def test_a_schema_says_what_it_has() -> None:
    """Asking for a type or a property that is not there says how to declare it, or what there is."""
    known = Schema([schema(b="Text", a="Text")])
    assert known.property("T", "dateCreated") == PropertyDefinition(Kind.DATETIME)
    with pytest.raises(InvalidError, match=r"^type 'U' is not declared in this Pod: call add_to_schema first$"):
        known.type("U")
    with pytest.raises(InvalidError, match=r"^T has no property 'c'; it has a, b$"):
        known.property("T", "c")


def test_the_built_in_types_are_well_formed() -> None:
    """Each can be declared, and their edges lead to types that are built in as well."""
    known = Schema([definition_of(cls) for cls in BUILT_IN])
    assert known.joined(known.values()) is known
    targets = {target for each in known.values() for targets in each.edges.values() for target in targets}
    assert targets - known.keys() == {"Item"}
    assert {name for name, found in known["Account"].properties.items() if found.is_secret} == {
        "secret", "accessToken", "refreshToken", "code",
    }  # fmt: skip
    assert EmailMessage(subject="x", starred=True).subject == "x"


def test_new_ids_differ_and_lie_together() -> None:
    """32 hexadecimal digits; those made later sort later, to the millisecond."""
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(id_) == 32 and int(id_, 16) >= 0 for id_ in ids)
    assert [id_[:12] for id_ in ids] == sorted(id_[:12] for id_ in ids)


def test_an_edge_is_a_value() -> None:
    """Its ends are items or ids."""
    assert Edge("a", "b", "knows") == Edge("a", "b", "knows") != Edge("b", "a", "knows")


@pytest.mark.parametrize("name", [name for name in dir(BaseModel) if not name.startswith("_")])
@pytest.mark.parametrize("is_edge", [False, True])
def test_a_name_that_items_have_already_is_refused_or_does_no_harm(name: str, is_edge: bool) -> None:
    """What was declared can be read, silently; what no class could have as a field cannot be declared."""
    properties = {} if is_edge else {name: PropertyDefinition(Kind.TEXT)}
    definition = TypeDefinition("Thing", properties, {name: ("Item",)} if is_edge else {})
    if name.startswith("model_"):
        with pytest.raises(InvalidError, match=f"'{name}' cannot name a property or edge of Thing: .* 'model_'"):
            definition.checked()
        return

    made = class_of(definition.checked())
    item = restore_item(made, "a", {} if is_edge else {name: "x"}, version=1)
    assert definition_of(made) == definition
    assert copy.deepcopy(item) == item
    assert vars(made(**{name: [] if is_edge else "x"}))[name] == ([] if is_edge else "x")
    assert repr(item) == ("Thing(id='a')" if is_edge else f"Thing(id='a', {name}='x')")
    assert changes_of(item) == {}


def test_a_dump_leaves_secrets_out() -> None:
    """Also those of items in lists; an item that is made from a dump has nothing to say about them."""
    dog = Dog("Rex", pin="1234", friend=[Dog("Tom", pin="5678")])

    dump = dog.model_dump(exclude_none=True)
    assert dump == {
        "deleted": False, "name": "Rex", "owner": [], "seen": [],
        "friend": [{"deleted": False, "name": "Tom", "owner": [], "friend": [], "seen": []}],
    }  # fmt: skip
    assert "1234" not in dog.model_dump_json()
    assert "5678" not in dog.model_dump_json(serialize_as_any=True)
    assert Dog(**dog.model_dump(exclude={"friend"})).pin is None
    assert copy.deepcopy(dog).pin == pickle.loads(pickle.dumps(dog)).pin == "1234"


def test_a_field_cannot_be_deleted() -> None:
    """The message says how it is erased; the item is as it was."""
    dog = Dog("Rex")
    for name in ("name", "owner", "id"):
        with pytest.raises(InvalidError, match=rf"Dog\.{name} cannot be deleted: assign None, or empty the list"):
            delattr(dog, name)
    assert repr(dog) == "Dog(name='Rex')"
    with pytest.raises(AttributeError):
        del dog.nothing  # type: ignore[attr-defined]


def test_an_item_that_is_constructed_unchecked_is_an_item() -> None:
    """Fields that were not given are empty; it was never written."""

    class Must(Item):
        name: str

    item = Must.model_construct()
    assert (item.name, item.id, item.deleted, repr(item)) == (None, None, False, "Must()")
    assert changes_of(Dog.model_construct(name="Rex")) == {"name": "Rex"}
    assert copy.copy(item) == item


@pytest.mark.parametrize(
    "before, after, changed",
    [
        (0.0, -0.0, True),
        (-0.0, 0.0, True),
        (-0.0, -0.0, False),
        (1.5, 1.5, False),
        (None, 0.0, True),
        (0.0, None, True),
    ],
)
def test_the_sign_of_nothing_is_a_difference(before: float | None, after: float | None, changed: bool) -> None:
    """A store keeps it, so a change of it is written."""
    dog = restore_item(Dog, "a", {} if before is None else {"weight": before}, version=1)
    dog.weight = after
    assert [*changes_of(dog)] == (["weight"] if changed else [])


def test_a_value_that_cannot_be_shown_is_refused_like_any_other() -> None:
    """The error is about the value, not about its repr."""
    with pytest.raises(InvalidError, match=r"Dog\.age cannot be \[an integer of 16610 bits\]: it should be"):
        Dog(age=[10**5000])  # type: ignore[arg-type]


def test_a_secret_stays_one_for_a_class_that_does_not_know() -> None:
    """Else its reader would print it; the class is to say so too."""
    secret = TypeDefinition("Dog", {"chip": PropertyDefinition(Kind.TEXT, is_secret=True)})
    with pytest.raises(ConflictError, match=r"Dog\.chip is secret in this Pod"):
        secret.joined(TypeDefinition("Dog", {"chip": PropertyDefinition(Kind.TEXT)}))


def test_the_id_of_a_saved_item_cannot_change() -> None:
    """Its next update would be written onto another item."""
    dog = restore_item(Dog, "a", {"name": "Bob"}, version=1)
    dog.id = "a"
    with pytest.raises(InvalidError, match="cannot become 'b'"):
        dog.id = "b"
