"""``holdfast items``: look into a Pod. Secrets stay hidden, and nothing is made where nothing is."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.cli.drawing import draw, is_terminal
from holdfast.cli.invocation import Call, to_json, with_common_options
from holdfast.errors import NotFoundError

# Everything below is imported where it is needed: it brings the database and pydantic, and help needs neither.
if TYPE_CHECKING:
    from holdfast.items import Schema
    from holdfast.store import Found, Query, Store
    from holdfast.values import Kind, Value

_condition: Final = re.compile(r"([A-Za-z_]\w*)(>=|==|=|<)(.*)", re.DOTALL)
_PAGE: Final = 1000
_SCREENFUL: Final = 100


@click.group()
@with_common_options
def command() -> None:
    """Search and show what is in the Pod."""


@command.command()
@click.argument("words", nargs=-1, metavar="[TYPE] [FIELD=VALUE]...")
@click.option(
    "--limit", type=click.IntRange(0), help=f"At most so many; if not said {_SCREENFUL} on a terminal, else all."
)
@click.option("--offset", type=click.IntRange(0), default=0, help="Leave out so many first.")
@click.option("--desc", "is_descending", is_flag=True, help="Begin with what was written last.")
@click.option("--deleted", "is_deleted", is_flag=True, help="Only items that were deleted.")
@click.option("--edges", "has_edges", is_flag=True, help="With the edges that begin at each item.")
@with_common_options
@click.pass_obj
def search(call: Call, words: tuple[str, ...], limit: int | None, **flags: Any) -> None:
    """Search for items that have all of these fields.

    A field is compared with =, >= or <. A date is written as 2026-01-31T12:00Z or in milliseconds since 1970. Put a
    comparison in quotes, or the shell takes it for itself: 'age>=3'.
    """
    from holdfast.context import open_store
    from holdfast.store import query_from

    is_cut = limit is None and not call.is_json and is_terminal(sys.stdout)
    with open_store(call.settings()) as store:
        schema = store.schema()
        query = replace(
            query_from(_conditions(words, schema), schema),
            limit=_SCREENFUL if is_cut else limit,
            offset=flags["offset"],
            is_descending=flags["is_descending"],
            outgoing=flags["has_edges"],
        )
        pages = _pages(store, replace(query, is_deleted=True) if flags["is_deleted"] else query, schema)
        if call.is_json:
            _stream(pages)
            return
        names = list(schema.type(query.type).properties) if query.type else ["type", "[properties]"]
        columns = ["id", *names, "dateServerModified", *(["[edges]"] if query.outgoing else [])]
        draw(columns, ([_row(each, columns) for each in page] for page in pages))
    if is_cut:
        click.echo(f"At most {_SCREENFUL} are shown; --limit says how many you want.", err=True)


@command.command()
@click.argument("id_", metavar="ID")
@click.option("--deleted", "is_deleted", is_flag=True, help="Show it even if it was deleted.")
@with_common_options
@click.pass_obj
def show(call: Call, id_: str, *, is_deleted: bool) -> None:
    """Show one item with the edges that begin at it and those that lead to it."""
    from holdfast.context import open_store
    from holdfast.store import Query
    from holdfast.values import item_id, shown

    query = Query(ids=(id_,), is_deleted=None if is_deleted else False, outgoing=True, incoming=True)
    with open_store(call.settings()) as store:
        [found] = _pages(store, query, store.schema()) if item_id.fullmatch(id_) else [[]]
    if not found:
        raise NotFoundError(f"there is no item {shown(id_)}: it was never created, or it was deleted", id=shown(id_))
    [document] = found
    if call.is_json:
        call.answer(document, "")
        return
    properties, edges = document.pop("properties"), document.pop("edges")
    rows = [[name, _text(value)] for name, value in (*document.items(), *properties.items())]
    arrows = {"Outgoing": "->", "Incoming": "<-"}
    rows += [[f"{arrows[edge['direction']]} {edge['name']}", f"{edge['type']} {edge['id']}"] for edge in edges]
    draw(["field", "value"], [rows])


def _conditions(words: tuple[str, ...], schema: Schema) -> dict[str, Any]:
    """Return the fields of a search as `query_from` reads them."""
    fields: dict[str, Any] = {}
    for at, word in enumerate(words):
        match = _condition.fullmatch(word)
        if match is None and at > 0:
            raise click.UsageError(f"{word!r} is no condition: FIELD=VALUE, FIELD>=VALUE or FIELD<VALUE is expected")
        name, comparison, text = match.groups() if match else ("type", "=", word)
        key = name if comparison in ("=", "==") else name + comparison
        if key in fields:
            raise click.UsageError(f"{key!r} is given twice: all conditions must hold, and no field has two values")
        fields[key] = _typed(text, name, fields.get("type"), schema)
    return fields


def _typed(text: str, name: str, type_: str | None, schema: Schema) -> object:
    """Return what a word means for a property; the word itself, if nothing: the search then says what is expected."""
    from holdfast.items import SYSTEM_PROPERTIES

    types = [schema.type(type_)] if type_ else schema.values()
    found = {each.kind for at in types if (each := at.properties.get(name) or SYSTEM_PROPERTIES.get(name))}
    for kind, read in _READERS.items():
        try:
            if kind in found:
                return read(text)
        except (ValueError, KeyError):
            continue
    return text


def _read_date(text: str) -> int:
    from datetime import UTC, datetime

    from holdfast.values import to_ms

    if text.removeprefix("-").isdigit():
        return int(text)
    instant = datetime.fromisoformat(text)
    return to_ms(instant if instant.tzinfo else instant.replace(tzinfo=UTC), "a date")


_READERS: Final[dict[str, Any]] = {
    "Bool": {"true": True, "false": False}.__getitem__,
    "Integer": int,
    "DateTime": _read_date,
    "Real": float,
}
"""How a word becomes a value of each kind but text. Where types differ, the first that can read it does."""


def _pages(store: Store, query: Query, schema: Schema) -> Iterator[list[dict[str, Any]]]:
    """Yield what a search finds as documents, never many at once; at least one list, which may be empty."""
    left = sys.maxsize if query.limit is None else query.limit
    while True:
        found = store.search(replace(query, limit=min(_PAGE, left)))
        yield [_document(each, schema) for each in found]
        left -= len(found)
        if len(found) < _PAGE or not left:
            return
        query = replace(query, after=found[-1].position, offset=0)


def _stream(pages: Iterable[list[dict[str, Any]]]) -> None:
    """Print ``{"items": […]}``, a line for each item, without holding all of them."""
    click.echo('{"items": [', nl=False)
    separator = "\n"
    for page in pages:
        if page:
            click.echo(separator + ",\n".join(map(to_json, page)), nl=False)
            separator = ",\n"
    click.echo("\n]}")


def _document(found: Found, schema: Schema) -> dict[str, Any]:
    """Return an item as it is shown to people and programs alike: dates as text, secrets hidden."""
    from holdfast.values import Kind

    item = found.item
    edges = [{"direction": e.direction, "name": e.name, "type": e.item.type, "id": e.item.id} for e in found.edges]
    declared = schema.type(item.type).properties
    return {
        "id": item.id,
        "type": item.type,
        "version": item.version,
        "dateCreated": _shown(Kind.DATETIME, item.created_ms),
        "dateModified": _shown(Kind.DATETIME, item.modified_ms),
        "dateServerModified": _shown(Kind.DATETIME, item.server_modified_ms),
        "deleted": item.is_deleted,
        "properties": {
            name: "…" if declared[name].is_secret else _shown(declared[name].kind, value)
            for name, value in item.properties.items()
        },
        "edges": edges,
    }


def _shown(kind: Kind, value: Value) -> Value:
    from holdfast.values import from_ms

    if kind != "DateTime" or not isinstance(value, int):
        return value
    return from_ms(value).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _row(document: dict[str, Any], columns: list[str]) -> list[str]:
    properties = {name: _text(value) for name, value in document["properties"].items()}
    cells = {name: document[name] for name in ("id", "type", "dateServerModified")} | properties
    cells["[properties]"] = " ".join(f"{name}={text}" for name, text in properties.items())
    cells["[edges]"] = " ".join(f"{edge['name']}:{edge['id']}" for edge in document["edges"])
    return [cells.get(column, "") for column in columns]


def _text(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
