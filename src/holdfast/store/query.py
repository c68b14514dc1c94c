"""What can be asked of a Pod: a frozen description of a search, read from the fields of the Pod's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, cast

from holdfast.errors import DeniedError, InvalidError
from holdfast.items import Schema
from holdfast.store.evaluation import ItemRow
from holdfast.values import Kind, Value, fit, item_id, shown, to_ms


class Comparison(StrEnum):
    """How a property is compared; as a suffix of its name, ``age>=``. No suffix means equality."""

    EQUAL = "=="
    AT_LEAST = ">="
    LESS = "<"


class Direction(StrEnum):
    """Which edges of an item: those that begin at it, or those that lead to it."""

    OUTGOING = "Outgoing"
    INCOMING = "Incoming"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on a property; value None: the property is absent."""

    property: str
    comparison: Comparison
    value: Value | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which items, in which order, how many.

    The order is by (dateServerModified, sequence number of creation), ascending unless ``is_descending``.

    Args:
        type: Only items of exactly this type; None: of any.
        conditions: All must hold.
        ids: Only these, if not None.
        is_deleted: False: none that are deleted; True: only those; None: both.
        limit: At most so many; None: all.
        offset: Leave out so many first.
        after: Only items that come later in the order than this position, as `Found.position` gives it: unlike an
            offset it neither skips nor repeats an item when others are written meanwhile.
        outgoing: Answer each item's outgoing edges with it.
        incoming: Answer each item's incoming edges with it.

    Raises:
        InvalidError: The limit or the offset is no whole number from 0 on, or there is no such position.
    """

    type: str | None = None
    conditions: tuple[Condition, ...] = ()
    ids: tuple[str, ...] | None = None
    is_deleted: bool | None = False
    is_descending: bool = False
    limit: int | None = None
    offset: int = 0
    after: tuple[int, int] | None = None
    outgoing: bool = False
    incoming: bool = False

    def __post_init__(self) -> None:
        for name, number in (("limit", self.limit), ("offset", self.offset)):
            if number is not None:
                _count(name, number)
        for number in self.after or ():
            fit(Kind.INTEGER, number, "the position in a search")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRow:
    """One edge as stored, seen from the item that was asked about; ``item`` is at its other end."""

    name: str
    item: ItemRow
    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One item of an answer, with its place in the order and those edges that were asked for (not to deleted items)."""

    item: ItemRow
    position: tuple[int, int]
    edges: tuple[EdgeRow, ...] = ()


_ORDERS: Final = {"Asc": False, "Desc": True}
_EDGES: Final = "[[edges]]"


def refuse_secrets(query: Query, schema: Schema) -> None:
    """Accept a query that compares no secret property.

    Every store asks this, for who searches may have learnt of a secret late, or not at all.

    Raises:
        DeniedError: One of its conditions is on a property that is secret in a type that is searched.
    """
    searched = schema.values() if query.type is None else filter(None, (schema.get(query.type),))
    names = {condition.property for condition in query.conditions}
    for definition in searched:
        for name in names & definition.properties.keys():
            if definition.properties[name].is_secret:
                raise _secret(name)


def _secret(name: str) -> DeniedError:
    return DeniedError(f"property {name!r} cannot be searched for: it is secret", property=name)


def query_from(fields: Mapping[str, Any], schema: Schema) -> Query:
    """Read the fields of a search, as in ``{"type": "Dog", "age>=": 3, "_limit": 10, "_sortOrder": "Desc"}``.

    A field that is no property is one of ``type``, ``ids`` (a list), ``_limit``, ``_offset``, ``_sortOrder`` ("Asc",
    "Desc"), ``[[edges]]`` and ``~[[edges]]`` (an empty object). ``deleted`` None means: deleted or not. A date is
    milliseconds since 1970, or a datetime with a time zone, which counts as it would be kept: rounded down to those.

    Raises:
        InvalidError: A field, its comparison or its value is none that there is; the message names it.
        DeniedError: The property is secret.
    """
    named: dict[str, Any] = {}
    conditions: list[Condition] = []
    type_ = fields.get("type")
    if type_ is not None:
        if not isinstance(type_, str):
            raise _wrong("type", type_, "the name of a type")
        schema.type(type_)
    for key, value in fields.items():
        if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- callers may be untyped
            raise InvalidError(f"{shown(key)} is no field of a search: a field is named by text", field=shown(key))
        match key:
            case "type":
                named["type"] = value
            case "ids":
                named["ids"] = _ids(value)
            case "_limit":
                named["limit"] = None if value is None else _count(key, value)
            case "_offset":
                named["offset"] = _count(key, value)
            case "_sortOrder":
                if not isinstance(value, str) or value not in _ORDERS:
                    raise _wrong(key, value, "'Asc' or 'Desc'")
                named["is_descending"] = _ORDERS[value]
            case "deleted":
                if value is not None and not isinstance(value, bool):
                    raise _wrong(key, value, "true, false or null")
                named["is_deleted"] = value
            case "[[edges]]" | "~[[edges]]":
                if value not in ({}, True):
                    raise _wrong(key, value, "an empty object")
                named["outgoing" if key == _EDGES else "incoming"] = True
            case _:
                conditions.append(_condition(key, value, type_, schema))
    return Query(conditions=tuple(conditions), **named)


def _condition(key: str, value: Any, type_: str | None, schema: Schema) -> Condition:
    comparison = next((each for each in Comparison if key.endswith(each)), Comparison.EQUAL)
    name = key.removesuffix(comparison)
    declared = [schema.property(type_, name)] if type_ is not None else _declared_anywhere(name, schema)
    if any(found.is_secret for found in declared):
        raise _secret(name)
    if value is None:
        if comparison is not Comparison.EQUAL:
            raise _wrong(key, value, "a value to compare with")
        return Condition(name, comparison, None)
    error: InvalidError | None = None
    for kind in sorted({found.kind for found in declared}):
        try:
            what = f"{name!r} in a search"
            is_date = kind is Kind.DATETIME and isinstance(value, datetime)
            return Condition(name, comparison, fit(kind, to_ms(value, what) if is_date else value, what))
        except InvalidError as exc:
            error = exc
    raise cast("InvalidError", error)


def _declared_anywhere(name: str, schema: Schema) -> list[Any]:
    found = [each.properties[name] for each in schema.values() if name in each.properties]
    if name in ("id", "dateCreated", "dateModified", "dateServerModified"):
        return [schema.property(next(iter(schema)), name)]
    if not found:
        message = f"no type in this Pod has a property {shown(name)}, and it is no field of a search"
        raise InvalidError(message, property=shown(name))
    return found


def _ids(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(each, str) and item_id.fullmatch(each) for each in cast("list[Any]", value)
    ):
        raise _wrong("ids", value, "a list of ids")
    return tuple(cast("list[str]", value))


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise _wrong(key, value, "a whole number from 0 on")
    return value


def _wrong(key: str, value: Any, expected: str) -> InvalidError:
    return InvalidError(f"{key!r} of a search cannot be {shown(value)}: it must be {expected}", field=key)
