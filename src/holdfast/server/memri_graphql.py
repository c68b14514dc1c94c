"""Searches along edges, as Memri's clients write them: ``query { Message { subject sender { handle } } }``.

Hides the language and how much one text may ask for. It looks like GraphQL, of which it is a small part, and is not:
``~owner`` stands for the edges that lead to an item, which no reader of GraphQL takes. There are no variables,
fragments, aliases and directives; clients put values in the text themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from holdfast.errors import InvalidError
from holdfast.items import ANY_TYPE, SYSTEM_PROPERTIES, Schema
from holdfast.server.memri_forms import ItemForm, is_told, item_form
from holdfast.store import Direction, ItemRow, Store, query_from
from holdfast.values import shown

MAX_TEXT: Final = 20_000
"""Characters of a text."""
MAX_DEPTH: Final = 10
"""How far braces may be within each other."""
MAX_VALUES: Final = 500_000
"""Of one answer: items, properties and edges, each as often as it stands there; and what may be looked at for it."""

_COMPARISONS: Final = {"eq": "==", "gte": ">=", "lt": "<"}
_ALWAYS: Final = frozenset({*SYSTEM_PROPERTIES, "type"})
_TOKEN: Final = re.compile(
    r"""
    (?P<space> [\s,\ufeff]+ | \#[^\n\r]* )
    | (?P<name> [A-Za-z_][A-Za-z0-9_]* )
    | (?P<value> -?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)? | "(?:[^"\\\n\r]|\\[^\n\r])*" )
    | (?P<mark> [{}():~] )
    """,
    re.VERBOSE,
)


# -- what is asked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One name within braces: a type, a property, or an edge with what is asked of the items at its other end.

    Attributes:
        filter: Fields of a search that must hold: ``{"age>=": 3}``.
        limit: How many items at most, of each item that is asked; None: all.
        fields: What is asked of each; of a property nothing can be.
    """

    name: str
    is_incoming: bool = False
    filter: Mapping[str, Any] = field(default_factory=dict[str, Any])
    limit: int | None = None
    offset: int = 0
    fields: tuple[Asked, ...] = ()

    @property
    def key(self) -> str:
        """What it is called in the text and in the answer."""
        return f"~{self.name}" if self.is_incoming else self.name

    @property
    def direction(self) -> Direction:
        """Of the edge, if it is one."""
        return Direction.INCOMING if self.is_incoming else Direction.OUTGOING


def parse(text: str) -> tuple[Asked, ...]:
    """Return what stands within the outermost braces, in order; whether there is such a thing is not judged here.

    Raises:
        InvalidError: The text is too long or too deep, or not of this language; the message says from where on.

    >>> parse('{ Person (filter: {age: {gte: 3}}, limit: 2) { ~owner { id } } }')[0].filter
    {'age>=': 3}
    """
    if len(text) > MAX_TEXT:
        message = f"a query of {len(text)} characters is too long: at most {MAX_TEXT} are read"
        raise InvalidError(message, characters=len(text))
    return _Parser(text).document()


class _Parser:
    """Reads a text from its begin; the token that comes next is looked at, and taken if it is the right one."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = self._end = 0
        self._kind = self._next = ""
        self._move()

    def document(self) -> tuple[Asked, ...]:
        if self._next == "query":
            self._move()
            if self._kind == "name":  # a query may have a name, which says nothing
                self._move()
        fields = self._fields(1)
        if self._kind:
            raise self._wrong("the end")
        return fields

    def _fields(self, depth: int) -> tuple[Asked, ...]:
        if depth > MAX_DEPTH:
            raise InvalidError(f"a query cannot be deeper than {MAX_DEPTH} braces", depth=depth)
        self._take("{")
        found: dict[str, Asked] = {}
        while not self._skip("}"):
            is_incoming = self._skip("~")
            asked = Asked(name=self._name("a name or '}'"), is_incoming=is_incoming)
            if self._skip("("):
                asked = self._with_arguments(asked)
            if self._next == "{":
                asked = replace(asked, fields=self._fields(depth + 1))
            if found.setdefault(asked.key, asked) is not asked:
                message = f"{shown(asked.key)} is asked for twice: name it once, with all that is asked of it"
                raise InvalidError(message, field=asked.key)
        if not found:
            raise InvalidError("a query asks for nothing between two braces: name something")
        return tuple(found.values())

    def _with_arguments(self, asked: Asked) -> Asked:
        found: dict[str, Any] = {}
        while not self._skip(")"):
            name = self._name("an argument or ')'")
            if name not in ("filter", "limit", "offset") or name in found:
                message = f"argument {shown(name)} of {asked.key} is not there: filter, limit and offset are, each once"
                raise InvalidError(message, argument=name)
            self._take(":")
            found[name] = self._filter() if name == "filter" else self._count(name)
        return replace(asked, **found)

    def _filter(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._take("{")
        while not self._skip("}"):
            name = self._name("a property or '}'")
            self._take(":")
            self._take("{")
            while not self._skip("}"):
                word = self._name("a comparison or '}'")
                if word not in _COMPARISONS:
                    message = f"{name} cannot be compared by {shown(word)}: {', '.join(_COMPARISONS)} are there"
                    raise InvalidError(message, comparison=word)
                self._take(":")
                found[name + _COMPARISONS[word]] = self._value()
        return found

    def _count(self, name: str) -> int:
        value = self._value()
        if type(value) is not int or not 0 <= value < 2**63:
            raise InvalidError(f"{name} cannot be {shown(value)}: it is a whole number from 0 on", argument=name)
        return value

    def _value(self) -> Any:
        if self._kind == "value" or self._next in ("true", "false", "null"):
            try:
                value = json.loads(self._next)
            except ValueError:  # a number of thousands of digits, an escape that is none
                raise self._wrong("a value") from None
            self._move()
            return value
        raise self._wrong("a value")

    def _name(self, expected: str) -> str:
        if self._kind != "name":
            raise self._wrong(expected)
        name = self._next
        self._move()
        return name

    def _take(self, mark: str) -> None:
        if not self._skip(mark):
            raise self._wrong(repr(mark))

    def _skip(self, mark: str) -> bool:
        is_there = self._next == mark
        if is_there:
            self._move()
        return is_there

    def _move(self) -> None:
        self._kind = "space"
        while self._kind == "space":
            self._at = self._end
            found = _TOKEN.match(self._text, self._at)
            self._kind = "" if found is None else str(found.lastgroup)
            self._next = "" if found is None else found[0]
            self._end += len(self._next)
        if not self._kind and self._at < len(self._text):
            raise self._wrong("a name, a value or one of { } ( ) : ~")

    def _wrong(self, expected: str) -> InvalidError:
        there = shown(self._next or self._text[self._at : self._at + 1]) if self._at < len(self._text) else "the end"
        message = f"a query needs {expected} where it has {there}, after {self._at} characters"
        return InvalidError(message, characters=self._at)


# -- what is answered -------------------------------------------------------------------------------------------------


def answer(store: Store, schema: Schema, text: str) -> list[ItemForm]:
    """Return the items that ``text`` asks for, of one type after the other, each type in the order of a search.

    An item has what every item has and what was asked of it: ``{"id": …, "type": "Message", …, "subject": "Hello",
    "sender": [{…}]}``. A property that it does not have is None, an edge is a list in the order of creation, empty if
    it leads nowhere. The items, and the edges of each depth, are each as of a moment of their own.

    Raises:
        InvalidError: The text is none (see `parse`), asks for what no type in ``schema`` has, or for too much.
        DeniedError: It compares a secret, or the caller may not read the type.
    """
    asked = parse(text)
    for root in asked:
        schema.type(root.name)
        if root.is_incoming or not root.fields:
            message = f"{shown(root.key)} must be a type, and say in braces what is asked of its items"
            raise InvalidError(message, type=root.key)
        _check_all(root, frozenset({root.name}), schema)
    reader = _Reader(store, schema)
    return [form for root in asked for form in reader.items(root)]


def _check_all(asked: Asked, types: frozenset[str], schema: Schema) -> None:
    """Accept what is asked of the items of ``types``, if one of them has each of it."""
    if asked.filter:
        fitting = [type_ for type_ in types if _has_compared(asked, type_, schema)]
        for type_ in fitting:
            query_from({"type": type_, **asked.filter}, schema)
        if not fitting:
            names = ", ".join(sorted(_compared(asked)))
            raise InvalidError(f"{asked.key} cannot be compared by {shown(names)}: no such item has that", names=names)
    for each in asked.fields:
        targets = _targets(each, types, schema)
        is_property = not each.is_incoming and (
            each.name in _ALWAYS or any(each.name in schema[type_].properties for type_ in types & schema.keys())
        )
        if not targets and not is_property:
            whose = ", ".join(sorted(types)) if len(types) <= 3 else f"{len(types)} types"
            raise InvalidError(f"{each.key!r} is no property and no edge of {whose}", field=each.key)
        if each.fields and targets:
            _check_all(each, targets, schema)
        elif not is_property:
            raise InvalidError(f"{each.key!r} is an edge: say in braces what is asked of its items", field=each.key)
        elif each.fields or each.filter or each.limit is not None or each.offset:
            message = f"{each.key!r} is a property, and takes neither braces nor arguments"
            raise InvalidError(message, field=each.key)


def _targets(asked: Asked, types: frozenset[str], schema: Schema) -> frozenset[str]:
    """Return the types of the items at the other end of an edge; none, if there is no such edge."""
    if asked.is_incoming:
        ends = {*types, ANY_TYPE}
        return frozenset(name for name, each in schema.items() if not ends.isdisjoint(each.edges.get(asked.name, ())))
    found = {target for type_ in types & schema.keys() for target in schema[type_].edges.get(asked.name, ())}
    return frozenset(schema if ANY_TYPE in found else found)


def _compared(asked: Asked) -> set[str]:
    return {name.rstrip("<>=") for name in asked.filter}


def _has_compared(asked: Asked, type_: str, schema: Schema) -> bool:
    return type_ in schema and _compared(asked) <= {*SYSTEM_PROPERTIES, *schema[type_].properties}


class _Reader:
    """Reads what one text asks for.

    An item that many lead to is read once, and stands in the answer in each place: so what is looked at does not grow
    with the depth as the answer may, and how large that would be is known before it is written out.
    """

    def __init__(self, store: Store, schema: Schema) -> None:
        self._store = store
        self._schema = schema
        self._looked_at = self._answered = 0

    def items(self, root: Asked) -> list[ItemForm]:
        """Return the items of one type."""
        limit = MAX_VALUES // (1 + len(root.fields)) + 1
        fields = {"type": root.name, "_limit": min(limit, limit if root.limit is None else root.limit)}
        query = query_from({**fields, "_offset": root.offset, **root.filter}, self._schema)
        forms, sizes = self._forms([found.item for found in self._store.search(query)], root.fields)
        self._answered += sum(sizes.values())
        _check_count(self._answered)
        return list(forms.values())

    def _forms(self, rows: Iterable[ItemRow], fields: Sequence[Asked]) -> tuple[dict[str, ItemForm], dict[str, int]]:
        """Return the forms of items by their ids, and of how many values each consists."""
        there = {row.id: row for row in rows}
        sizes = dict.fromkeys(there, 1 + len(fields))
        self._look(sum(sizes.values()))
        names = [each.name for each in fields if not each.fields and each.name not in _ALWAYS]
        forms = {id_: item_form(row, {name: row.properties.get(name) for name in names}) for id_, row in there.items()}
        edges = {each.direction: self._edges(there.keys(), each.direction) for each in fields if each.fields}
        for each in fields:
            if not each.fields:
                continue
            linked = {id_: edges[each.direction].get((id_, each.name), []) for id_ in there}
            kept = self._kept(each, {row.id: row for found in linked.values() for row in found})
            chosen = {id_: _cut([row.id for row in found if row.id in kept], each) for id_, found in linked.items()}
            below, counts = self._forms([kept[id_] for ids in chosen.values() for id_ in ids], each.fields)
            for id_, ids in chosen.items():
                forms[id_][each.key] = [below[target] for target in ids]
                sizes[id_] += sum(counts[target] for target in ids)
        return forms, sizes

    def _edges(self, ids: Collection[str], direction: Direction) -> dict[tuple[str, str], list[ItemRow]]:
        found: dict[tuple[str, str], list[ItemRow]] = {}
        for id_, edges in self._store.list_edges(list(ids), direction).items():
            self._look(len(edges))
            for edge in filter(is_told, edges):
                found.setdefault((id_, edge.name), []).append(edge.item)
        return found

    def _kept(self, asked: Asked, rows: Mapping[str, ItemRow]) -> Mapping[str, ItemRow]:
        """Return those items that the filter takes: the store compares, as in any search."""
        if not asked.filter:
            return rows
        kept: dict[str, ItemRow] = {}
        for type_ in {row.type for row in rows.values()}:
            if _has_compared(asked, type_, self._schema):
                ids = [id_ for id_, row in rows.items() if row.type == type_]
                query = query_from({"type": type_, "ids": ids, **asked.filter}, self._schema)
                kept |= {found.item.id: found.item for found in self._store.search(query)}
        return kept

    def _look(self, count: int) -> None:
        self._looked_at += count
        _check_count(self._looked_at)


def _cut(ids: list[str], asked: Asked) -> list[str]:
    return ids[asked.offset : None if asked.limit is None else asked.offset + asked.limit]


def _check_count(count: int) -> None:
    if count > MAX_VALUES:
        message = f"a query cannot ask for more than {MAX_VALUES} values: ask for less, with filter or limit"
        raise InvalidError(message, values=MAX_VALUES)
