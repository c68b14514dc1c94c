"""A search as SQL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from holdfast.items import SYSTEM_PROPERTIES, Schema
from holdfast.sql.rows import ITEM, Known, expression, to_text
from holdfast.store import Comparison, Condition, Query
from holdfast.values import Kind, type_name

_OPERATORS: Final = {Comparison.EQUAL: "=", Comparison.AT_LEAST: ">=", Comparison.LESS: "<"}


def compile_query(query: Query, known: Known) -> tuple[str, tuple[Any, ...]]:
    """Return the statement, which selects seq and the columns `ITEM`, and its values.

    Where every type that can hold what is asked for has an index of one of the properties, the index decides what is
    read, one arm for each type, and the database merges the arms in order. Else each item of those types is looked at.
    """
    types = _types_with(query, known.schema)
    found = _indexed_condition(query, types, known)
    order = "DESC" if query.is_descending else "ASC"
    limit, limits = "LIMIT ? OFFSET ?", (-1 if query.limit is None else query.limit, query.offset)
    if query.limit is None and not query.offset:
        limit, limits = "", ()  # where one item is asked for, a limit takes longer than the search
    if found is None:
        where, bound = _conditions(query, types, query.conditions)
        by = f"item.server_modified {order}, item.seq {order}"
        return f"SELECT item.seq, {ITEM} FROM item {where} ORDER BY {by} {limit}", (*bound, *limits)
    condition, numbers = found
    arm = f"SELECT item, server_modified FROM indexed WHERE field = ? AND value {_OPERATORS[condition.comparison]} ?"
    values: list[Any] = []
    for number in numbers:
        values.extend((number, condition.value))
        if query.after is not None:
            values.extend(query.after)
    if query.after is not None:
        arm += f" AND (server_modified, item) {'<' if query.is_descending else '>'} (?, ?)"
    hits = " UNION ALL ".join([arm] * len(numbers))
    rest = tuple(each for each in query.conditions if each is not condition)
    is_all = not rest and query.ids is None  # then the limit holds for the hits already, and only those are looked up
    if is_all:
        hits += f" ORDER BY server_modified {order}, item {order} {limit}"
        values.extend(limits)
    where, more = _conditions(replace(query, after=None), None, rest)
    return (
        f"SELECT item.seq, {ITEM} FROM ({hits}) AS hit CROSS JOIN item ON item.seq = hit.item {where} "
        f"ORDER BY hit.server_modified {order}, hit.item {order}" + ("" if is_all else f" {limit}"),
        (*values, *more, *(() if is_all else limits)),
    )


def _indexed_condition(query: Query, types: list[str] | None, known: Known) -> tuple[Condition, list[int]] | None:
    """Return a condition that an index of every one of ``types`` serves, an equality rather than a range."""
    if not types or query.is_deleted is not False:  # the index holds what is not deleted
        return None
    for condition in sorted(query.conditions, key=lambda each: each.comparison is not Comparison.EQUAL):
        if condition.value is None:
            continue
        numbers = [known.fields.get(type_, {}).get(condition.property) for type_ in types]
        if None not in numbers:
            return condition, [number for number in numbers if number is not None]
    return None


def _conditions(query: Query, types: list[str] | None, conditions: tuple[Condition, ...]) -> tuple[str, list[Any]]:
    terms: list[str] = []
    values: list[Any] = []
    if types is not None:
        # Also where all types will do: the database then reads each type in order, and stops at the limit.
        terms.append(f"item.type IN ({', '.join('?' * len(types))})" if len(types) != 1 else "item.type = ?")
        values.extend(types)
    for condition in conditions:
        if type_name.fullmatch(condition.property) is None:
            continue  # no type can have such a property, so it is absent, as `_types_with` left only that to ask for
        left = expression(condition.property)
        terms.append(f"{left} IS NULL" if condition.value is None else f"{left} {_OPERATORS[condition.comparison]} ?")
        if condition.value is not None:
            values.append(condition.value)
    if query.ids is not None and len(query.ids) == 1:  # no sub-select, no sort: a sixth of the time of a list of one
        terms.append("item.id = ?")
        values.extend(query.ids)
    elif query.ids is not None:
        terms.append("item.id IN (SELECT value FROM json_each(?))")
        values.append(to_text(query.ids))
    if query.is_deleted is not None:
        terms.append("item.deleted = ?")
        values.append(query.is_deleted)
    if query.after is not None:
        terms.append(f"(item.server_modified, item.seq) {'<' if query.is_descending else '>'} (?, ?)")
        values.extend(query.after)
    return f"WHERE {' AND '.join(terms)}" if terms else "", values


def _types_with(query: Query, schema: Schema) -> list[str] | None:
    """Return the types that can hold all that is asked for; None where that is no restriction and no help.

    A value is compared with values of its own nature only: SQLite would put every text after every number.
    """
    names = [query.type] if query.type is not None else list(schema)
    asked = [each for each in query.conditions if each.value is not None]
    if query.type is None and query.ids is not None and not asked:
        return None
    return [name for name in names if all(_can_hold(schema, name, each) for each in asked)]


def _can_hold(schema: Schema, type_: str, condition: Condition) -> bool:
    found = SYSTEM_PROPERTIES.get(condition.property)
    if found is None and type_ in schema:
        found = schema[type_].properties.get(condition.property)
    return (
        found is not None
        and isinstance(condition.value, bool) == (found.kind is Kind.BOOL)
        and (isinstance(condition.value, str) == (found.kind is Kind.TEXT))
    )
