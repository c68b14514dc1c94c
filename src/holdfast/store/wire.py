"""The JSON forms of what is asked of a Pod and of what it answers: one table, for whoever puts a wire between them.

A client dumps arguments and loads answers, a server loads arguments and dumps answers. What reaches either is foreign:
it has the form that is expected, or is refused with the place where it has not. Addresses, headers and the form of
errors are for who speaks the protocol.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from holdfast.errors import InvalidError
from holdfast.items import Schema, TypeDefinition
from holdfast.store import Batch, Query, Result, Store
from holdfast.values import check, shown

MAX_ASKED_BYTES: Final = 8 * 2**20
"""Of the arguments of a read, as JSON: more than 50,000 ids. A batch has limits of its own."""


@dataclass(frozen=True, slots=True)
class Method:
    """How one method of `Store` travels: ``name`` is what it is called, ``word`` stands for it in an address."""

    name: str
    word: str

    def dump_arguments(self, *args: Any, **named: Any) -> bytes:
        """Return the JSON form of a call: ``{"state": "s1", "namespace": ""}``, or that of the batch itself.

        Raises:
            InvalidError: An argument is not of its type, or holds what JSON cannot.
            TypeError: There are too many arguments, or too few.
        """
        kind = _arguments_of(self.name)
        asked = kind(*args, **named)
        if self.name == "apply":
            return asked.batch.to_json()
        _check_conditions(asked)
        try:
            return _adapter(kind).dump_json(asked, warnings="error")
        except PydanticSerializationError as exc:
            message = f"what {self.name} is asked holds what JSON cannot: {' '.join(str(exc).split())}"
            raise InvalidError(message) from exc

    def load_arguments(self, text: bytes | str) -> dict[str, Any]:
        """Return the arguments of a call by name; what has a default may be left out.

        Raises:
            InvalidError: ``text`` is larger than it may be, no JSON, or not the form of these arguments.
        """
        if self.name == "apply":
            return {"batch": Batch.from_json(text)}
        what = f"what {self.name} is asked"
        if len(text) > MAX_ASKED_BYTES:
            message = f"{what} is too large: it has {len(text):,} bytes as JSON, and at most {MAX_ASKED_BYTES:,} can be"
            raise InvalidError(message, bytes=len(text), max_bytes=MAX_ASKED_BYTES)
        # A condition that this version does not know cannot be left out: the answer would be another one.
        asked = _load(_arguments_of(self.name), text, what, extra="forbid")
        _check_conditions(asked)
        return {each.name: getattr(asked, each.name) for each in fields(asked)}

    def dump_answer(self, answer: Any) -> bytes:
        """Return the JSON form of what the method returned."""
        plain = list(answer.values()) if self.name == "schema" else answer
        return _adapter(_answer_of(self.name)).dump_json(plain)

    def load_answer(self, text: bytes | str) -> Any:
        """Return what the method returned; members that only a later version knows are left out.

        Raises:
            InvalidError: ``text`` is no JSON, or not the form of this answer. What it holds may be secret and is not
                repeated.
        """
        found = _load(_answer_of(self.name), text, f"the answer of {self.name}", extra="ignore")
        return Schema(found) if self.name == "schema" else found


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        name: Method(name, word)
        for name, word in {
            "apply": "apply",
            "schema": "schema",
            "find_items": "items",
            "search": "search",
            "list_edges": "edges",
            "list_variables": "variables",
            "find_lease": "lease",
            "find_snapshot": "snapshot",
            "list_questions": "questions",
            "list_log": "log",
            "find_log_end": "log-end",
            "now_ms": "now",
        }.items()
    }
)
"""Every method of `Store` by its name, but ``close``, which is for who opened the connection."""


def dump_results(results: tuple[Result, ...]) -> bytes:
    """Return the JSON form of what a batch was answered: ``[["a", 1, 1700000000000], null, 2.5]``."""
    return METHODS["apply"].dump_answer(results)


def load_results(text: bytes | str) -> tuple[Result, ...]:
    """Return what a batch was answered.

    Raises:
        InvalidError: ``text`` is not the JSON form of that.
    """
    return METHODS["apply"].load_answer(text)


@cache
def _arguments_of(name: str) -> type[Any]:
    """Return a class with a field for each argument, so that Python itself says which call is none."""
    takes = get_type_hints(getattr(Store, name))
    return make_dataclass(
        name,
        [
            (each.name, takes[each.name], field(kw_only=each.kind is each.KEYWORD_ONLY, **_default(each.default)))
            for each in inspect.signature(getattr(Store, name)).parameters.values()
            if each.name in takes
        ],
        frozen=True,
    )


def _default(value: Any) -> dict[str, Any]:
    return {} if value is inspect.Parameter.empty else {"default": value}


@cache
def _answer_of(name: str) -> Any:
    return list[TypeDefinition] if name == "schema" else get_type_hints(getattr(Store, name))["return"]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check_conditions(asked: Any) -> None:
    """Accept the values that a search compares with: JSON turns bytes into text, and Python's reads a NaN."""
    query = getattr(asked, "query", None)
    for condition in query.conditions if isinstance(query, Query) else ():
        if condition.value is not None:
            check(condition.value, f"{condition.property!r} in a search")


def _load(kind: Any, text: bytes | str, what: str, *, extra: Literal["ignore", "forbid"]) -> Any:
    try:
        return _adapter(kind).validate_json(text, strict=True, extra=extra)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        given = shown(first["input"]) if extra == "forbid" and where else type(first["input"]).__name__
        message = (
            f"{what} has a wrong {where!r}, {given}: {first['msg']}" if where else f"{what} is wrong: {first['msg']}"
        )
        raise InvalidError(message, field=where) from exc
