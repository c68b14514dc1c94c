"""Items, edges and their schema: what a Pod holds, as Python classes and as data.

Hides how a class declaration becomes a type definition, how an item knows what changed since it was last read or
written, and how its values travel. It does not know where items are kept. Property names are the wire names of the
Pod's API: camelCase, on purpose.
"""

# An item keeps its `Origin` for the functions of this module, under a name that no property can have.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
import os
import time
import types
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Self,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
)

import pydantic
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from pydantic._internal._model_construction import ModelMetaclass  # the only way to add to pydantic's metaclass
from pydantic.fields import FieldInfo

from holdfast.errors import ConflictError, InvalidError
from holdfast.values import Kind, Value, from_ms, item_id, refusal, shown, to_ms, type_name

T = TypeVar("T")
ItemT = TypeVar("ItemT", bound="Item")


@dataclass(frozen=True, slots=True)
class _Indexed:
    """Marks a field whose values are found without a scan."""


@dataclass(frozen=True, slots=True)
class _Secret:
    """Marks a field whose values are shown to nobody but a run with the right."""


Secret = Annotated[T, _Secret()]
"""``Secret[str]``: a property that is kept out of reprs, logs, views and exports, and cannot be searched for."""


def Field(default: Any = None, *, index: bool = False, kw_only: bool = False, description: str | None = None) -> Any:
    """Say more about a field of an item than its type does.

    Args:
        default: The value of an item that is made without one.
        index: Find items by this property without a scan, among a million as among ten. Costs space and a little
            time on each write.
        kw_only: Not accepted by position.
        description: One sentence for forms and docs.

    >>> class Book(Item):
    ...     isbn: str | None = Field(index=True)
    >>> definition_of(Book).properties["isbn"].is_indexed
    True
    """
    info = cast("FieldInfo", pydantic.Field(default=default, kw_only=kw_only, description=description))
    if index:
        info.metadata.append(_Indexed())
    return info


# -- schema as data ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PropertyDefinition:
    """What one property of one type holds."""

    kind: Kind
    is_indexed: bool = False
    is_secret: bool = False


@dataclass(frozen=True, slots=True)
class TypeDefinition:
    """One item type: its properties and its edges.

    ``edges`` maps the name of an edge to the types that it may lead to, sorted; ``"Item"`` stands for any.
    """

    name: str
    properties: Mapping[str, PropertyDefinition] = field(default_factory=dict[str, PropertyDefinition])
    edges: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def checked(self) -> Self:
        """Return this definition.

        Raises:
            InvalidError: A name is not a letter followed by at most 63 letters, digits and underscores, is one that
                every item has, or begins with ``model_`` as methods of items do; an edge leads nowhere; a secret is
                to be indexed.
        """
        if type_name.fullmatch(self.name) is None or self.name == ANY_TYPE:
            message = f"{shown(self.name)} cannot name an item type: {_NAME_RULE}"
            raise InvalidError(message, type=shown(self.name))
        for name in (*self.properties, *self.edges):
            # No class can have a field `model_config`, say: a type with one could be declared, and never be read.
            is_taken = name in SYSTEM_PROPERTIES or name == "type" or name.startswith("model_")
            if type_name.fullmatch(name) is None or is_taken:
                rule = f"{_NAME_RULE}, and not begin with 'model_'"
                message = f"{shown(name)} cannot name a property or edge of {self.name}: {rule}"
                raise InvalidError(message, type=self.name, property=shown(name))
            if name in self.properties and name in self.edges:
                message = f"{self.name}.{name} cannot be both a property and an edge"
                raise InvalidError(message, type=self.name, property=name)
        for name, targets in self.edges.items():
            if not targets or any(type_name.fullmatch(target) is None for target in targets):
                message = f"edge {self.name}.{name} cannot lead to {shown(targets)}: it needs one type name or more"
                raise InvalidError(message, type=self.name, edge=name)
        for name, definition in self.properties.items():
            if definition.is_secret and definition.is_indexed:
                message = f"property {self.name}.{name} cannot be indexed: it is secret, and secrets are not searched"
                raise InvalidError(message, type=self.name, property=name)
        return self

    def joined(self, other: TypeDefinition) -> TypeDefinition:
        """Return this definition and what ``other`` adds to it; itself, if that is nothing.

        Raises:
            ConflictError: The two disagree about what a property holds, or whether a name is a property or an edge.
        """
        properties = dict(self.properties)
        for name, new in other.properties.items():
            old = properties.get(name)
            if name in self.edges or (old is not None and old.kind is not new.kind):
                there = f"an edge to {', '.join(self.edges[name])}" if old is None else str(old.kind)
                message = f"property {self.name}.{name} is {there} in this Pod and cannot become {new.kind}"
                raise ConflictError(message, type=self.name, property=name, declared=there, wanted=str(new.kind))
            if old is not None and old.is_secret and not new.is_secret:  # else its reader would print it
                message = f"property {self.name}.{name} is secret in this Pod: declare it Secret[…] here as well"
                raise ConflictError(message, type=self.name, property=name)
            if old is not None:  # an index or a secret, once asked for by one plugin, is not undone by another
                new = PropertyDefinition(new.kind, old.is_indexed or new.is_indexed, old.is_secret or new.is_secret)  # noqa: PLW2901
            properties[name] = new
        edges = dict(self.edges)
        for name, targets in other.edges.items():
            if name in self.properties:
                message = f"edge {self.name}.{name} is a property of kind {properties[name].kind} in this Pod"
                raise ConflictError(message, type=self.name, edge=name, declared=str(properties[name].kind))
            edges[name] = tuple(sorted({*edges.get(name, ()), *targets}))
        if properties == self.properties and edges == self.edges:
            return self
        return TypeDefinition(self.name, properties, edges).checked()


class Schema(Mapping[str, TypeDefinition]):
    """Every type that a Pod knows, by name. A value: `joined` returns another one."""

    __slots__ = ("_types",)

    def __init__(self, definitions: Iterable[TypeDefinition] = ()) -> None:
        self._types = {definition.name: definition for definition in definitions}

    def __getitem__(self, name: str) -> TypeDefinition:
        return self._types[name]

    def __iter__(self) -> Any:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

    def joined(self, definitions: Iterable[TypeDefinition]) -> Schema:
        """Return this schema with ``definitions`` added; itself, if they add nothing.

        Raises:
            ConflictError: A definition disagrees with the one that is here; the message names both.
            InvalidError: A definition is malformed.
        """
        joined = dict(self._types)
        for definition in definitions:
            old = joined.get(definition.name)
            joined[definition.name] = definition.checked() if old is None else old.joined(definition)
        if all(joined[name] is self._types.get(name) for name in joined):
            return self
        return Schema(joined.values())

    def property(self, type_: str, name: str) -> PropertyDefinition:
        """Return what ``type_`` holds under ``name``, the properties of every item included.

        Raises:
            InvalidError: The type is not declared, or has no such property; the message lists what there is.
        """
        definition = self.type(type_)
        found = definition.properties.get(name) or SYSTEM_PROPERTIES.get(name)
        if found is None:
            message = f"{type_} has no property {shown(name)}; it has {', '.join(sorted(definition.properties))}"
            raise InvalidError(message, type=type_, property=shown(name))
        return found

    def type(self, name: str) -> TypeDefinition:
        """Return the definition of type ``name``.

        Raises:
            InvalidError: It is not declared.
        """
        found = self._types.get(name)
        if found is None:
            message = f"type {shown(name)} is not declared in this Pod: call add_to_schema first"
            raise InvalidError(message, type=shown(name))
        return found


ANY_TYPE: Final = "Item"
"""As the target of an edge: an item of any type."""

SYSTEM_PROPERTIES: Final[Mapping[str, PropertyDefinition]] = types.MappingProxyType(
    {
        "id": PropertyDefinition(Kind.TEXT),
        "dateCreated": PropertyDefinition(Kind.DATETIME),
        "dateModified": PropertyDefinition(Kind.DATETIME),
        "dateServerModified": PropertyDefinition(Kind.DATETIME),
        "deleted": PropertyDefinition(Kind.BOOL),
    }
)
"""What every item has, whatever its type."""

_NAME_RULE: Final = (
    "it must be a letter followed by at most 63 letters, digits and underscores, and none of "
    + ", ".join((*SYSTEM_PROPERTIES, "type", ANY_TYPE))
)


# -- items ------------------------------------------------------------------------------------------------------------


class Origin:
    """What an item was when it was last read or written: the ground of `changes_of`.

    ``edges`` holds the ids that each *loaded* list of edges had; a list that was not loaded is absent.
    """

    __slots__ = ("edges", "properties", "version")

    def __init__(self, properties: dict[str, Value], edges: dict[str, tuple[str, ...]], version: int) -> None:
        self.properties = properties
        self.edges = edges
        self.version = version


@dataclass_transform()  # no field_specifiers: a checker would take Field(index=True), without a default, as required
class ItemMeta(ModelMetaclass):
    """pydantic's metaclass, with constructors that accept a class's own fields by position."""

    __by_position__: tuple[str, ...]
    __plan__: _Plan | None
    """Made on first use: at the time of the class statement the names in its annotations may lie ahead."""

    def __new__(  # noqa: D102, PYI034 -- a metaclass has no Self
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, kw_only: bool = False, **kwargs: Any
    ) -> ItemMeta:
        cls = cast("ItemMeta", super().__new__(mcs, name, bases, namespace, **kwargs))
        inherited = {field for base in bases for field in getattr(base, "__pydantic_fields__", ())}
        fields = cast("dict[str, FieldInfo]", vars(cls)["__pydantic_fields__"])
        by_position = () if kw_only else (field for field, info in fields.items() if not info.kw_only)
        cls.__by_position__ = tuple(field for field in by_position if field not in inherited)
        cls.__plan__ = None
        return cls


class Item(BaseModel, metaclass=ItemMeta, kw_only=True):
    """A typed record in a Pod. Subclass it to declare a type; the class is the whole declaration.

    Optional scalars are properties (text, integer, float, bool, datetime); lists of items are edges. A class's own
    fields may be given by position, in declared order; inherited ones by keyword only. ``class Base(Item,
    kw_only=True)`` takes none by position: for types meant to be subclassed, so that type checkers agree.

    Two items are equal when type, id, `deleted` and declared properties are; edges and the store's dates do not
    count. The repr shows properties only, and never a secret. Datetimes must have a time zone; they are kept in UTC
    to the millisecond.

    Raises:
        InvalidError: A field is unknown, given twice, of the wrong type, or one that no store can hold; the same on
            assignment. The message names type, field and value.

    >>> class Dog(Item):
    ...     name: str | None = None
    ...     age: int | None = None
    >>> Dog("Bob", 10)
    Dog(name='Bob', age=10)
    >>> Dog("Bob", age=2**63)
    Traceback (most recent call last):
    holdfast.errors.InvalidError: Dog.age cannot be 9223372036854775808: an integer must fit in 64 bits
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        validate_assignment=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=False,
        defer_build=True,  # most processes use few of the built-in types, and building all takes 35 ms
        hide_input_in_errors=True,  # pydantic's error is the cause of ours, and a traceback must not show a secret
    )
    __slots__ = ("__weakref__", "_origin")
    id: str | None = None
    dateCreated: datetime | None = None
    dateModified: datetime | None = None
    dateServerModified: datetime | None = None
    deleted: bool = False

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        if args:
            _name_arguments(cls, args, kwargs)
        for name in _plan(cls).edges:
            if kwargs.get(name, self) is None:  # None where a list is expected means no edges, as it always did
                del kwargs[name]
        try:
            self.__pydantic_validator__.validate_python(kwargs, self_instance=self)
        except pydantic.ValidationError as exc:
            raise _refused(cls, exc) from exc
        object.__setattr__(self, "_origin", None)
        _settle(self)

    if not TYPE_CHECKING:  # else a checker would believe that any name can be assigned

        def __setattr__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                object.__setattr__(self, name, value)
                return
            if name in _plan(type(self)).properties:
                value = _settled(type(self), name, value)
            elif name == "id":
                _check_id(type(self), value)
                if self._origin is not None and value != self.id:
                    message = f"the id of {self!r} cannot become {shown(value)}: the Pod has it under its id"
                    raise InvalidError(message, id=self.id)
            try:
                super().__setattr__(name, value)
            except pydantic.ValidationError as exc:
                raise _refused(type(self), exc) from exc

        def __delattr__(self, name: str) -> None:
            if name in type(self).__pydantic_fields__:
                message = f"{type(self).__name__}.{name} cannot be deleted: assign None, or empty the list"
                raise InvalidError(message, type=type(self).__name__, property=name)
            super().__delattr__(name)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        mine, others = self.__dict__, other.__dict__
        return all(mine[name] == others[name] for name in _plan(type(self)).compared)

    __hash__ = None  # it can change, so it is no key

    def __repr_args__(self) -> Any:
        plan = _plan(type(self))
        values = self.__dict__
        for name in plan.compared:
            if values[name] is not None and (name != "deleted" or values[name]):
                yield name, (_Redacted() if name in plan.secrets else values[name])

    __str__ = BaseModel.__repr__

    @model_serializer(mode="wrap")
    def _without_secrets(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out, not redacted: an item that is made from a dump must not write a placeholder over the secret.
        secrets = _plan(type(self)).secrets
        return {name: value for name, value in dump(self).items() if name not in secrets}

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
        """Make an item without checking its values; the store checks them when it is written."""
        item = super().model_construct(_fields_set, **values)
        vars(item).update({name: None for name in cls.__pydantic_fields__ if name not in vars(item)})
        return _with_origin(item, None)

    def __copy__(self) -> Self:
        return _with_origin(super().__copy__(), self._origin)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return _with_origin(super().__deepcopy__(memo), self._origin)

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), "_origin": self._origin}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        object.__setattr__(self, "_origin", state.pop("_origin"))
        super().__setstate__(state)


class _Redacted:
    def __repr__(self) -> str:
        return "'…'"


def _with_origin(item: ItemT, origin: Origin | None) -> ItemT:
    object.__setattr__(item, "_origin", origin)
    return item


# -- from a class to its definition -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the machinery needs to know of one class, worked out once."""

    definition: TypeDefinition
    properties: dict[str, Kind]
    """All properties that travel, `id` apart."""
    edges: dict[str, type[Item]]
    secrets: frozenset[str]
    compared: tuple[str, ...]
    dates: tuple[str, ...]
    defaults: dict[str, Any]
    """What every field holds in an item that was read and has no value for it."""
    presumed: dict[str, Value]
    """Those of them that are not None, as they travel."""


_KINDS: Final[Mapping[type, Kind]] = {
    str: Kind.TEXT,
    bool: Kind.BOOL,
    int: Kind.INTEGER,
    float: Kind.REAL,
    datetime: Kind.DATETIME,
}


def _plan(cls: type[Item]) -> _Plan:
    plan = cls.__plan__
    return plan if plan is not None else _make_plan(cls)


def _make_plan(cls: type[Item]) -> _Plan:
    if not cls.__pydantic_fields_complete__:
        cls.model_rebuild()
    properties: dict[str, PropertyDefinition] = {}
    edges: dict[str, type[Item]] = {}
    defaults: dict[str, Any] = {}
    for name, info in cls.__pydantic_fields__.items():
        marks: list[Any] = list(info.metadata)
        scalar, target, is_optional = _read_annotation(info.annotation, marks)
        if target is not None:
            edges[name] = target
            continue
        if scalar is None:
            message = (
                f"{cls.__name__}.{name} is declared {shown(info.annotation)}: a field of an item is text, integer, "
                "float, bool or datetime (or None), or a list of items"
            )
            raise InvalidError(message, type=cls.__name__, property=name)
        is_indexed = any(isinstance(mark, _Indexed) for mark in marks)
        is_secret = any(isinstance(mark, _Secret) for mark in marks)
        properties[name] = PropertyDefinition(_KINDS[scalar], is_indexed, is_secret)
        default = info.get_default(call_default_factory=False)
        defaults[name] = None if is_optional or info.is_required() else default
    own = {name: definition for name, definition in properties.items() if name not in SYSTEM_PROPERTIES}
    definition = TypeDefinition(cls.__name__, own, {name: (target.__name__,) for name, target in edges.items()})
    plan = _Plan(
        definition if cls is Item else definition.checked(),
        {name: found.kind for name, found in properties.items() if name not in ("id", "dateServerModified")},
        edges,
        frozenset(name for name, found in own.items() if found.is_secret),
        ("id", *own, "deleted"),
        tuple(name for name, found in properties.items() if found.kind is Kind.DATETIME),
        defaults,
        {
            name: to_ms(defaults[name], name) if found.kind is Kind.DATETIME else defaults[name]
            for name, found in own.items()
            if defaults[name] is not None
        },
    )
    cls.__plan__ = plan
    return plan


def _read_annotation(annotation: Any, marks: list[Any]) -> tuple[type | None, type[Item] | None, bool]:
    """Return (scalar, target of an edge, may it be None); marks found on the way are appended to ``marks``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *found = get_args(annotation)
        marks.extend(found)
        return _read_annotation(inner, marks)
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) != 1:
            return None, None, False
        scalar, _, _ = _read_annotation(members[0], marks)
        return scalar, None, True
    if origin is list:
        (member,) = get_args(annotation)
        is_item = isinstance(member, type) and issubclass(member, Item)
        return None, cast("type[Item]", member) if is_item else None, False
    return (annotation, None, False) if annotation in _KINDS else (None, None, False)


def definition_of(cls: type[Item]) -> TypeDefinition:
    """Return what class ``cls`` declares, inherited properties and edges included.

    Raises:
        InvalidError: A field is neither a scalar that a store holds nor a list of items, or is badly named.
    """
    return _plan(cls).definition


def edge_targets(cls: type[Item]) -> Mapping[str, type[Item]]:
    """Return the edges of ``cls``, each with the class that its list holds."""
    return _plan(cls).edges


def class_of(definition: TypeDefinition) -> type[Item]:
    """Make a class for a type that was declared elsewhere, so that its items can be read; its edges lead anywhere."""
    annotations: dict[str, Any] = {}
    namespace: dict[str, Any] = {"__annotations__": annotations, "__module__": __name__}
    python = {kind: type_ for type_, kind in _KINDS.items()}
    for name, found in definition.properties.items():
        scalar: Any = python[found.kind]
        annotations[name] = (Secret[scalar] if found.is_secret else scalar) | None
        namespace[name] = Field(index=found.is_indexed)
    for name in definition.edges:
        annotations[name] = list[Item]
        namespace[name] = []
    with warnings.catch_warnings():
        # A property may be called `copy` or `json`: that it hides a method of pydantic is not the reader's to mend.
        warnings.filterwarnings("ignore", "Field name .* shadows an attribute in parent", UserWarning)
        return cast("type[Item]", types.new_class(definition.name, (Item,), {}, lambda body: body.update(namespace)))


# -- what changed ------------------------------------------------------------------------------------------------------


def new_id() -> str:
    """Return an unused id: 32 hexadecimal digits that begin with the time, so that new ids lie together in an index.

    Layout after UUID version 7 (RFC 9562): 48 bits of milliseconds, then 80 random bits.
    """
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def properties_of(item: Item) -> dict[str, Value]:
    """Return what ``item`` holds as it travels: no None, dates as milliseconds; `id` and the store's date left out."""
    values = item.__dict__
    plan = _plan(type(item))
    found: dict[str, Value] = {name: value for name in plan.properties if (value := values[name]) is not None}
    for name in plan.dates:
        if name in found:
            found[name] = to_ms(values[name], name)
    if not found["deleted"]:
        del found["deleted"]
    return found


def changes_of(item: Item) -> dict[str, Value | None]:
    """Return the properties that differ from what was last read or written; None for one that was erased."""
    now = properties_of(item)
    if item._origin is None:
        return dict(now)
    before = item._origin.properties
    changed: dict[str, Value | None] = {
        name: value for name, value in now.items() if not _is_same(before.get(name), value)
    }
    for name in before:
        if name not in now:
            changed[name] = False if name == "deleted" else None
    return changed


def _is_same(old: Value | None, new: Value) -> bool:
    """Say whether no store could tell the two apart: 1 is not True, 0.0 is not -0.0."""
    if old is new:
        return True
    return old == new and type(old) is type(new) and (new != 0 or str(old) == str(new))


def edge_changes_of(item: Item) -> tuple[list[tuple[str, Item]], list[tuple[str, str]]]:
    """Return the edges that were added, as (name, target item), and those that were removed, as (name, target id).

    An edge that was never loaded into its list is not one that was removed from it.

    Raises:
        InvalidError: A list holds something that is not an item of the declared type.
    """
    added: list[tuple[str, Item]] = []
    removed: list[tuple[str, str]] = []
    before = {} if item._origin is None else item._origin.edges
    for name, target in _plan(type(item)).edges.items():
        members: list[Any] = item.__dict__[name]
        known = before.get(name, ())
        if not members and not known:
            continue
        seen: set[int | str] = set()
        for member in members:
            if not isinstance(member, target):
                message = f"{type(item).__name__}.{name} cannot hold {shown(member)}: it is a list of {target.__name__}"
                raise InvalidError(message, type=type(item).__name__, edge=name)
            key = member.id or id(member)
            if key not in seen and key not in known:
                added.append((name, member))
            seen.add(key)
        removed.extend((name, gone) for gone in known if gone not in seen)
    return added, removed


def version_of(item: Item) -> int | None:
    """Return the version of ``item`` when it was last read or written, for ``expected_version``; None if never."""
    origin = cast("Origin | None", item._origin)
    return None if origin is None else origin.version


def settle_saved(item: Item, *, version: int) -> None:
    """Note that ``item`` is in the Pod as it is now."""
    edges = {
        name: tuple(dict.fromkeys(cast("str", member.id) for member in item.__dict__[name]))
        for name in _plan(type(item)).edges
        if item.__dict__[name] or (item._origin is None or name in item._origin.edges)
    }
    item._origin = Origin(properties_of(item), edges, version)


_instant = lru_cache(maxsize=64)(from_ms)  # what was written together has the same date


def restore_item(cls: type[ItemT], id_: str, properties: Mapping[str, Value], *, version: int) -> ItemT:
    """Build an item from what a store holds, without validating it again; none of its edges are loaded.

    Properties that ``cls`` does not know stay in the Pod untouched: only differences are ever written.
    """
    plan = _plan(cls)
    values = dict(plan.defaults)
    values["id"] = id_
    for name, value in properties.items():
        if name in values:
            values[name] = value
    for name in plan.dates:
        if values[name] is not None:
            values[name] = _instant(values[name])
    for name in plan.edges:
        values[name] = []
    item = cls.__new__(cls)
    object.__setattr__(item, "__dict__", values)
    object.__setattr__(item, "__pydantic_fields_set__", set())
    object.__setattr__(item, "__pydantic_extra__", None)
    object.__setattr__(item, "__pydantic_private__", None)
    known = {name: properties[name] for name in plan.properties if name in properties}
    if plan.presumed:  # a default that was filled in here is not a change that somebody made
        known = {**plan.presumed, **known}
    object.__setattr__(item, "_origin", Origin(known, {}, version))
    return item


def load_edges(item: Item, edges: Mapping[str, list[Item]]) -> None:
    """Fill the lists of ``item`` with what the Pod holds, every edge that its class declares being loaded now."""
    assert item._origin is not None, "only an item that was read has edges to load"  # noqa: S101
    known: dict[str, tuple[str, ...]] = {}
    for name in _plan(type(item)).edges:
        members = edges.get(name, [])
        vars(item)[name] = members
        known[name] = tuple(cast("str", member.id) for member in members)
    # Another origin: a copy of the item has this one too, and its lists were not loaded.
    item._origin = Origin(item._origin.properties, known, item._origin.version)


# -- checking ----------------------------------------------------------------------------------------------------------


def _name_arguments(cls: type[Item], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names = cls.__by_position__
    if len(args) > len(names):
        message = f"{cls.__name__} takes at most {len(names)} values by position ({', '.join(names)}), not {len(args)}"
        raise InvalidError(message, type=cls.__name__)
    for name, value in zip(names, args, strict=False):
        if name in kwargs:
            message = f"{cls.__name__}.{name} is given twice, by position and by name"
            raise InvalidError(message, type=cls.__name__, property=name)
        kwargs[name] = value


def _settle(item: Item) -> None:
    """Refuse what no store can hold (pydantic checks types, not this), and bring dates to UTC milliseconds."""
    cls = type(item)
    values = vars(item)
    for name in _plan(cls).properties:
        value = values[name]
        if value is not None and value is not False:
            settled = _settled(cls, name, value)
            if settled is not value:
                values[name] = settled
    _check_id(cls, values["id"])


def _check_id(cls: type[Item], id_: Any) -> None:
    if isinstance(id_, str) and item_id.fullmatch(id_) is None:
        message = f"{cls.__name__}.id cannot be {shown(id_)}: 1 to 64 letters, digits, '-' and '_' are allowed"
        raise InvalidError(message, type=cls.__name__, property="id", value=shown(id_))


def _settled(cls: type[Item], name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return from_ms(to_ms(value, f"{cls.__name__}.{name}"))
    if isinstance(value, str | int | float) and (reason := refusal(value)) is not None:
        shown_value = "'…'" if name in _plan(cls).secrets else shown(value)
        message = f"{cls.__name__}.{name} cannot be {shown_value}: {reason}"
        raise InvalidError(message, type=cls.__name__, property=name, value=shown_value)
    return value


def _refused(cls: type[Item], exc: pydantic.ValidationError) -> InvalidError:
    first = exc.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "no_such_attribute"):
        message = f"{cls.__name__} has no field {name!r}; {_fields_of(cls)}"
    elif first["type"] == "missing":
        message = f"{cls.__name__}.{name} is missing"
    else:
        shown_value = "'…'" if name in _plan(cls).secrets else shown(first["input"])
        reason = first["msg"].removeprefix("Input ")
        message = f"{cls.__name__}.{name} cannot be {shown_value}: it {reason}"
    return InvalidError(message, type=cls.__name__, property=name)


def _fields_of(cls: type[Item]) -> str:
    return f"it has {', '.join(name for name in cls.__pydantic_fields__)}"


@dataclass(frozen=True, slots=True)
class Edge:
    """A named, directed link between two items, given as items or as their ids.

    >>> Edge("a", "b", "knows").name
    'knows'
    """

    source: Item | str
    target: Item | str
    name: str


# -- the built-in types ------------------------------------------------------------------------------------------------


class CVUStoredDefinition(Item):
    """A view: a stored definition of what to show the user."""

    name: str | None = Field(index=True)
    definition: str | None = None
    domain: str | None = None
    itemType: str | None = None
    queryStr: str | None = None
    renderer: str | None = None
    selector: str | None = None
    definitionType: str | None = None
    externalId: str | None = None


class File(Item):
    """The description of stored bytes; `sha256` (64 hexadecimal digits) names them."""

    sha256: str | None = Field(index=True)
    filename: str | None = None
    mimeType: str | None = None
    size: int | None = None
    externalId: str | None = None
    starred: bool | None = None


class Photo(Item):
    """A picture; its bytes are a File."""

    caption: str | None = None
    width: int | None = None
    height: int | None = None
    channels: int | None = None
    encoding: str | None = None
    file: list[File] = []
    thumbnail: list[File] = []


class Account(Item):
    """The credentials of one outside service. What opens the service is secret."""

    service: str | None = None
    identifier: str | None = Field(index=True)
    handle: str | None = None
    displayName: str | None = None
    itemType: str | None = None
    secret: Secret[str] | None = None
    accessToken: Secret[str] | None = None
    refreshToken: Secret[str] | None = None
    code: Secret[str] | None = None
    avatarUrl: str | None = None
    errorMessage: str | None = None
    externalId: str | None = None
    isMe: bool | None = None
    profilePicture: list[Photo] = []


class Person(Item):
    """Somebody."""

    firstName: str | None = None
    lastName: str | None = None
    displayName: str | None = None
    email: str | None = Field(index=True)
    phone: str | None = None
    gender: str | None = None
    birthDate: datetime | None = None
    externalId: str | None = None
    starred: bool | None = None
    account: list[Account] = []
    profilePicture: list[Photo] = []
    relationship: list[Person] = []


class Message(Item, kw_only=True):
    """One message of any service."""

    subject: str | None = None
    content: str | None = None
    service: str | None = None
    externalId: str | None = Field(index=True)
    dateSent: datetime | None = None
    dateReceived: datetime | None = None
    isMock: bool | None = None
    sender: list[Account] = []
    receiver: list[Account] = []
    photo: list[Photo] = []
    file: list[File] = []


class EmailMessage(Message, kw_only=True):
    """A message sent as mail."""

    starred: bool | None = None
    cc: list[Account] = []
    bcc: list[Account] = []
    replyTo: list[Account] = []


class CategoricalLabel(Item):
    """One label that a person or a model gave."""

    labelValue: str | None = None
    externalId: str | None = None


class DatasetEntry(Item):
    """One row of a dataset: an item and its labels."""

    data: list[Item] = []
    annotation: list[CategoricalLabel] = []


class Dataset(Item):
    """A named collection of entries."""

    name: str | None = Field(index=True)
    queryStr: str | None = None
    externalId: str | None = None
    entry: list[DatasetEntry] = []


class Plugin(Item):
    """A plugin that somebody installed."""

    pluginName: str | None = Field(index=True)
    pluginModule: str | None = None
    pluginType: str | None = None
    pluginDescription: str | None = None
    name: str | None = None
    containerImage: str | None = None
    config: str | None = None
    icon: str | None = None


class PersistentState(Item):
    """What outlives the runs of one plugin for one purpose: a plugin state, found by plugin and `name`.

    ``ownTypes`` is kept by the Pod: the item types that its runs have brought, as a JSON list.
    """

    pluginId: str | None = Field(index=True)
    lastState: str | None = None
    account: list[Account] = []
    view: list[CVUStoredDefinition] = []
    name: str | None = None
    ownTypes: str | None = None


def own_types_of(state: Mapping[str, Value]) -> frozenset[str]:
    """Return the item types that the runs of a plugin state have brought, by its properties; none if that is no list.

    >>> sorted(own_types_of({"ownTypes": '["Diary", "Page"]'}))
    ['Diary', 'Page']
    """
    try:
        found: object = json.loads(str(state.get("ownTypes", "[]")))
    except (ValueError, RecursionError):
        found = None
    return frozenset(map(str, cast("list[Any]", found))) if isinstance(found, list) else frozenset()


class PluginRun(Item):
    """One attempt to carry a plugin to its end on one plugin state.

    ``reads`` and ``writes`` are what its owner grants it, in a Pod that it reaches with a token: each a JSON list of
    item types. One with ``interval`` or ``cron`` brings a `Schedule` with it when it is launched.

    ``retryAt`` is when it may be launched again; ``deaths`` counts how often it was lost without progress since
    ``deathMark``, which tells one progress from another.
    """

    containerImage: str | None = None
    pluginModule: str | None = Field(index=True)
    pluginName: str | None = Field(index=True)
    status: str | None = Field(index=True)
    error: str | None = None
    progress: float | None = None
    config: str | None = None
    settings: str | None = None
    state: str | None = None
    targetItemId: str | None = None
    authUrl: str | None = None
    interval: int | None = None
    plugin: list[Plugin] = []
    pluginState: list[PersistentState] = []
    account: list[Account] = []
    view: list[CVUStoredDefinition] = []
    reads: str | None = None
    writes: str | None = None
    cron: str | None = None
    timezone: str | None = None
    retryAt: datetime | None = None
    deaths: int | None = None
    deathMark: str | None = None


class Schedule(Item):
    """When runs of a plugin are begun by themselves, and what each of them is made of.

    ``interval`` (seconds, counted from ``dateCreated``) or ``cron`` (in ``timezone``, default "UTC") says when;
    ``overlap`` ("skip" or "queue") what happens while a run has not ended, ``catchUp`` ("latest", "all" or "none") what
    happens to instants that nobody was there for. ``scheduledTo`` is the last instant that was claimed.
    """

    pluginModule: str | None = None
    pluginName: str | None = None
    containerImage: str | None = None
    config: str | None = None
    reads: str | None = None
    writes: str | None = None
    interval: int | None = None
    cron: str | None = None
    timezone: str | None = None
    overlap: str | None = None
    catchUp: str | None = None
    scheduledTo: datetime | None = None
    isPaused: bool | None = None
    pluginState: list[PersistentState] = []
    account: list[Account] = []


BUILT_IN: Final[tuple[type[Item], ...]] = (
    Account,
    CategoricalLabel,
    CVUStoredDefinition,
    Dataset,
    DatasetEntry,
    EmailMessage,
    File,
    Message,
    Person,
    PersistentState,
    Photo,
    Plugin,
    PluginRun,
    Schedule,
)
"""The types that every Pod knows without being told."""
