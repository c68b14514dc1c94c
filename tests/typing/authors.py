# pyright: strict, reportUnnecessaryTypeIgnoreComment=error
"""What an author's editor says about item types, checked by `make lint`.

Each ``pyright: ignore`` is an error that the editor must show: were it not shown, the comment itself would be one.
Nothing here is run, beyond being imported.
"""

from datetime import datetime
from typing import Optional, assert_type

from holdfast import Edge, Field, HoldfastError, Item, NotFoundError, Person, PluginRun, Secret


class Dog(Item):
    """The type of the tutorial."""

    name: Optional[str] = None
    age: Optional[int] = None
    owner: list[Person] = []


class Animal(Item, kw_only=True):
    """A type that is meant to be subclassed: it takes nothing by position, so a subclass begins with its own fields."""

    name: Optional[str] = None


class Puppy(Animal):
    """A subtype with properties of its own."""

    born: datetime | None = None
    chip: Secret[str] | None = None
    litter: str | None = Field(index=True)


def construction() -> None:
    """Own fields go by position in the order in which they are declared, or by name; inherited ones by name."""
    assert_type(Dog("Bob", 10), Dog)
    Dog()
    Dog("Bob")
    Dog(name="Bob", age=10, owner=[Person(firstName="Ada")])
    Dog("Bob", id="an-id-of-my-own")
    Puppy(datetime.fromisoformat("2024-02-29T00:00:00+00:00"), "0042", name="Rex")

    Dog(10, "Bob")  # pyright: ignore[reportArgumentType]
    Dog("Bob", "ten")  # pyright: ignore[reportArgumentType]
    Dog("Bob", age="ten")  # pyright: ignore[reportArgumentType]
    Dog("Bob", 10, [], "more")  # pyright: ignore[reportCallIssue]
    Dog(nmae="Bob")  # pyright: ignore[reportCallIssue]
    Dog("Bob", owner=Person())  # pyright: ignore[reportArgumentType]
    Puppy("Rex")  # pyright: ignore[reportArgumentType]


def properties(dog: Dog, puppy: Puppy) -> None:
    """A property has its declared type, whether it is read or written."""
    assert_type(dog.name, str | None)
    assert_type(dog.age, int | None)
    assert_type(puppy.chip, str | None)
    assert_type(puppy.litter, str | None)
    dog.age = 11
    dog.age = None

    dog.age = "eleven"  # pyright: ignore[reportAttributeAccessIssue]
    dog.colour = "brown"  # pyright: ignore[reportAttributeAccessIssue]
    dog.name.upper()  # pyright: ignore[reportOptionalMemberAccess]


def edges(dog: Dog, person: Person) -> None:
    """An edge is a list of items of the type that it leads to."""
    dog.owner.append(person)
    assert_type(dog.owner[0], Person)
    Edge(dog, person, "owner")
    Edge("one-id", "another", "owner")

    dog.owner.append(dog)  # pyright: ignore[reportArgumentType]
    dog.owner.append("Ada")  # pyright: ignore[reportArgumentType]
    Edge(dog, person)  # pyright: ignore[reportCallIssue]
    Edge(dog, 7, "owner")  # pyright: ignore[reportArgumentType]


def built_in_types() -> None:
    """Built-in types are declared like an author's own."""
    run = PluginRun(containerImage="none", pluginModule="my.module", pluginName="Mine")
    assert_type(run.status, str | None)

    PluginRun(plugin_module="my.module")  # pyright: ignore[reportCallIssue]


def errors(error: HoldfastError) -> None:
    """Errors are told apart by class, and carry facts for programs."""
    assert_type(error.facts, dict[str, object])
    if isinstance(error, NotFoundError):
        assert_type(error.http_status, int)
