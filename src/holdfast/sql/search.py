"""A search as SQL."""

from __future__ import annotations

from typing import Any, Final

from holdfast.items import ANY_TYPE, SYSTEM_PROPERTIES, Schema
from holdfast.sql.rows import COLUMNS, ITEM, expression
from holdfast.store import Comparison, Condition, Query
from holdfast.values import Kind

_OPERATORS: Final = {Comparison.EQUAL: "=", Comparison.AT_LEAST: ">=", Comparison.LESS: "<"}


def compile_query(query: Query, schema: Schema) -> tuple[str, tuple[Any, ...]]:
    """Return the statement, which selects seq and the columns `ITEM`, and its values.

    An index of a property covers one type. So a search without a type asks for each type that has the properties,
    and the database joins what their indexes find.
    """
    conditions: list[str] = []
    values: list[Any] = []
    types = _types_with(query, schema)
    if types is not None:
        alternatives: list[str] = []
        for type_ in types:
            terms, found = _terms(query.conditions)
            alternatives.append(" AND ".join([f"type = '{type_}'", *terms]))  # a literal: partial indexes need one
            values.extend(found)
        conditions.append("(" + " OR ".join(alternatives) + ")" if alternatives else "0")
    else:
        terms, found = _terms(query.conditions)
        conditions.extend(terms)
        values.extend(found)
    if query.ids is not None:
        conditions.append(f"item.id IN ({', '.join('?' * len(query.ids))})" if len(query.ids) < _MANY else _MANY_IDS)
        values.extend(query.ids if len(query.ids) < _MANY else [_json_list(query.ids)])
    if query.is_deleted is not None:
        conditions.append("deleted = ?")
        values.append(query.is_deleted)
    if query.after is not None:
        conditions.append(f"(server_modified, seq) {'<' if query.is_descending else '>'} (?, ?)")
        values.extend(query.after)
    order = "DESC" if query.is_descending else "ASC"
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    values.extend((-1 if query.limit is None else query.limit, query.offset))
    return (
        f"SELECT seq, {ITEM} FROM item {where} ORDER BY server_modified {order}, seq {order} LIMIT ? OFFSET ?",
        tuple(values),
    )


_MANY: Final = 100
_MANY_IDS: Final = "item.id IN (SELECT value FROM json_each(?))"


def _json_list(ids: tuple[str, ...]) -> str:
    return '["' + '","'.join(ids) + '"]'  # ids were checked to be letters, digits, '-' and '_'


def _types_with(query: Query, schema: Schema) -> list[str] | None:
    """Return the types that can hold all that is asked for; None if that is any type.

    A value is compared with values of its own nature only: SQLite would put every text after every number.
    """
    names = [query.type] if query.type is not None else list(schema)
    asked = [each for each in query.conditions if each.value is not None]
    if query.type is None and all(each.property in COLUMNS for each in asked):
        names = [ANY_TYPE]
    fitting = [name for name in names if all(_can_hold(schema, name, each) for each in asked)]
    return None if fitting == [ANY_TYPE] else fitting


def _can_hold(schema: Schema, type_: str, condition: Condition) -> bool:
    found = SYSTEM_PROPERTIES.get(condition.property)
    if found is None and type_ in schema:
        found = schema[type_].properties.get(condition.property)
    return (
        found is not None
        and isinstance(condition.value, bool) == (found.kind is Kind.BOOL)
        and (isinstance(condition.value, str) == (found.kind is Kind.TEXT))
    )


def _terms(conditions: tuple[Condition, ...]) -> tuple[list[str], list[Any]]:
    terms: list[str] = []
    values: list[Any] = []
    for condition in conditions:
        left = expression(condition.property)
        if condition.value is None:
            terms.append(f"{left} IS NULL")
        elif isinstance(condition.value, float):
            # Both sides through the same parser: SQLite's reading of a decimal is not always the nearest double.
            terms.append(f"{left} {_OPERATORS[condition.comparison]} json_extract(?, '$')")
            values.append(repr(condition.value))
        else:
            terms.append(f"{left} {_OPERATORS[condition.comparison]} ?")
            values.append(condition.value)
    return terms, values
