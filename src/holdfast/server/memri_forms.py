"""What Memri's clients write and read: payloads become operations of a store, items become JSON.

Hides the shapes of that API, and which part of Memri's data model a Pod has beyond its built-in types: what clients
write without ever declaring it is declared when it is first written. Nothing here does I/O.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from holdfast.errors import InvalidError
from holdfast.items import ANY_TYPE, BUILT_IN, SYSTEM_PROPERTIES, PropertyDefinition, Schema, TypeDefinition, new_id
from holdfast.store import (
    CreateEdge,
    CreateItem,
    DeleteEdge,
    DeleteItem,
    Direction,
    EdgeRow,
    Found,
    ItemRow,
    Operation,
    Query,
    UpdateItem,
    query_from,
)
from holdfast.values import Kind, Value, item_id, shown

P = TypeVar("P")

OUTGOING: Final = "[[edges]]"
INCOMING: Final = "~[[edges]]"


# -- payloads ---------------------------------------------------------------------------------------------------------


class Form(BaseModel):
    """The shape of something that is sent; what it does not name is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class ClientAuth(Form):
    """The owner calls."""

    type: Literal["ClientAuth"]
    databaseKey: str = Field(description="64 hexadecimal digits.")  # noqa: N815 -- the wire's name, as all below

    @property
    def presented(self) -> str:
        """What says who calls."""
        return self.databaseKey


class TokenForm(Form):
    """What a run was given as ``data``."""

    token: str


class PluginAuth(Form):
    """A run calls."""

    type: Literal["PluginAuth"]
    data: TokenForm

    @property
    def presented(self) -> str:
        """What says who calls."""
        return self.data.token


Auth = Annotated[ClientAuth | PluginAuth, Field(discriminator="type")]


class Caller(Form):
    """Of what a call has, who calls."""

    model_config = ConfigDict(extra="ignore")

    auth: Auth


class Body(Form, Generic[P]):
    """What every call has."""

    auth: Auth
    payload: P


ItemForm = dict[str, Any]
"""``{"type": "Person", "firstName": "Ada"}``: properties by name."""


class AccountForm(Form):
    """Whose Pod to make."""

    ownerKey: str = Field(description="64 hexadecimal digits: the owner's name, and no secret.")  # noqa: N815
    databaseKey: str = Field(description="64 hexadecimal digits, secret.")  # noqa: N815


class EdgesForm(Form):
    """Whose edges to answer."""

    item: str
    direction: Direction = Direction.OUTGOING
    expandItems: bool = True  # noqa: N815


class EdgeForm(Form):
    """One edge."""

    source: str = Field(alias="_source")
    target: str = Field(alias="_target")
    name: str = Field(alias="_name")


class BulkForm(Form):
    """Much at once: all of the writes happen, or none; then the searches are answered."""

    createItems: list[ItemForm] | None = None  # noqa: N815
    updateItems: list[ItemForm] | None = None  # noqa: N815
    deleteItems: list[str] | None = None  # noqa: N815
    createEdges: list[EdgeForm] | None = None  # noqa: N815
    search: list[ItemForm] | None = None


class HashForm(Form):
    """Which bytes."""

    sha256: str


class IdForm(Form):
    """Which item."""

    id: str


class PluginsForm(Form):
    """Which runs."""

    plugins: list[str] = Field(max_length=1_000)


class NodeForm(Form):
    """The properties of one type."""

    properties: dict[str, Kind] = {}


class LinkForm(Form):
    """From which type an edge leads to which."""

    source: str
    target: str


class MetaForm(Form):
    """Who brings the types; read, and not kept."""

    name: str = ""
    url: str = ""
    version: str = ""


class SchemaForm(Form):
    """Types to declare."""

    nodes: dict[str, NodeForm] = {}
    edges: dict[str, list[LinkForm]] = {}
    meta: MetaForm = MetaForm()


def read(adapter: TypeAdapter[P], text: bytes | str, what: str) -> P:
    """Return what ``text`` says in the shape of ``adapter``.

    Raises:
        InvalidError: It is no JSON, or has another shape; what it holds is not repeated, as it may be a key.
    """
    try:
        return adapter.validate_json(text)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        is_echo = first["type"] == "union_tag_invalid"  # the one message that repeats what was sent
        why = "its 'type' is none that there is" if is_echo else first["msg"]
        message = f"{what} is wrong{f' at {shown(where)}' if where else ''}: {why}"
        raise InvalidError(message, field=shown(where)) from None  # pydantic's error holds the input


# -- items as they travel ---------------------------------------------------------------------------------------------


def item_form(row: ItemRow, properties: Mapping[str, Value | None] | None = None) -> ItemForm:
    """Return an item as JSON, with all of its properties or just ``properties``; dates in milliseconds since 1970."""
    return {
        "id": row.id,
        "type": row.type,
        "dateCreated": row.created_ms,
        "dateModified": row.modified_ms,
        "dateServerModified": row.server_modified_ms,
        "deleted": row.is_deleted,
        **(row.properties if properties is None else properties),
    }


def is_told(edge: EdgeRow) -> bool:
    """Say whether an edge is answered: that from a run to its plugin state is not, which Memri's clients do not know.

    They fail on an item of a type that they have no class for, and so could read no run that Holdfast has begun.
    """
    return edge.name != "pluginState" or edge.item.type != "PersistentState"


def found_form(found: Found, query: Query) -> ItemForm:
    """Return one item of an answer, with those edges that the query asks for: ``{"_edge": "owner", "_item": {…}}``."""
    form = item_form(found.item)
    asked = {
        OUTGOING: (query.outgoing, Direction.OUTGOING),
        INCOMING: (query.incoming, Direction.INCOMING),
    }
    for name, (is_asked, direction) in asked.items():
        if is_asked:
            form[name] = [
                {"_edge": edge.name, "_item": item_form(edge.item)}
                for edge in found.edges
                if edge.direction is direction and is_told(edge)
            ]
    return form


def edge_form(edge: EdgeRow, *, is_expanded: bool) -> dict[str, Any]:
    """Return one edge: its name, and the item at its other end, or only that one's id."""
    return {"name": edge.name, "item": item_form(edge.item) if is_expanded else edge.item.id}


# -- from payloads to operations --------------------------------------------------------------------------------------


class Draft:
    """The operations of one payload, in the order in which they happen.

    Args:
        seed: What a payload that may be repeated is known by: under the same one it makes items with the same ids.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        self.operations: list[Operation] = []
        self.created: dict[str, str] = {}
        """The types of the items that it creates, by id."""
        self.told: dict[str, str] = {}
        """The types that items to update are said to have, by id."""
        self._seed = seed
        self._uses: list[tuple[str, Iterable[str]]] = []
        """Items by id, each with properties or edges that may have to be declared first."""

    def create(self, form: ItemForm) -> str:
        """Add a new item, and return its id; one without id is given one."""
        type_, id_ = form.get("type"), form.get("id")
        if not isinstance(type_, str):
            raise InvalidError(f"a new item needs a 'type' that is text, not {shown(type_)}", type=shown(type_))
        if id_ is None:
            id_ = self._new_id()
        if not isinstance(id_, str):
            raise InvalidError(f"the 'id' of an item cannot be {shown(id_)}: it is text", id=shown(id_))
        properties = {name: value for name, value in _properties(form).items() if value is not None}
        self.operations.append(CreateItem(id_, type_, properties))
        self.created[id_] = type_
        self._use(id_, properties)
        return id_

    def update(self, form: ItemForm) -> None:
        """Add changes to an item; null erases."""
        id_, type_ = form.get("id"), form.get("type")
        if not isinstance(id_, str):
            raise InvalidError(f"an item to update needs an 'id' that is text, not {shown(id_)}", id=shown(id_))
        if type_ is not None:
            self.told[id_] = type_
        properties = _properties(form)
        self.operations.append(UpdateItem(id_, properties))
        self._use(id_, properties)

    def delete(self, id_: str) -> None:
        """Add the deletion of an item."""
        self.operations.append(DeleteItem(id_))

    def link(self, form: EdgeForm) -> None:
        """Add a new edge."""
        self.operations.append(CreateEdge(form.source, form.name, form.target))
        self._use(form.source, (form.name,))

    def unlink(self, form: EdgeForm) -> None:
        """Add the removal of an edge."""
        self.operations.append(DeleteEdge(form.source, form.name, form.target))

    @property
    def unknown(self) -> list[str]:
        """The ids of items whose types have to be looked up for `check_told` and `uses`."""
        return [id_ for id_ in dict.fromkeys((*self.told, *(id_ for id_, _ in self._uses))) if id_ not in self.created]

    def check_told(self, types: Mapping[str, str]) -> None:
        """Accept that items have the types that they are said to have; those that do not exist are not judged.

        Raises:
            InvalidError: One has not: the type of an item never changes.
        """
        for id_, told in self.told.items():
            there = types.get(id_, self.created.get(id_, told))
            if there != told:
                message = f"item {id_!r} is a {there} and cannot become {shown(told)}: leave 'type' out"
                raise InvalidError(message, id=id_, type=shown(told))

    def uses(self, types: Mapping[str, str]) -> dict[str, set[str]]:
        """Return by type the properties and edges that are written, as far as they may have to be declared first."""
        found: dict[str, set[str]] = {}
        for id_, names in self._uses:
            type_ = self.created.get(id_) or types.get(id_, "")
            if type_ in MORE:
                found.setdefault(type_, set()).update(names)
        return found

    def _new_id(self) -> str:
        if self._seed is None:
            return new_id()
        return hmac.digest(self._seed, str(len(self.operations)).encode(), "sha256").hex()[:32]

    def _use(self, id_: str, names: Iterable[str]) -> None:
        if self.created.get(id_) in _NEW_TYPES or not _MORE_NAMES.isdisjoint(names):
            self._uses.append((id_, names))


def _properties(form: ItemForm) -> dict[str, Value | None]:
    # Clients send back whole items as they have read them: the date that the Pod keeps is not theirs to write.
    return {name: value for name, value in form.items() if name not in ("id", "type", "dateServerModified")}


# -- the schema -------------------------------------------------------------------------------------------------------


def definitions_of(form: SchemaForm, schema: Schema) -> tuple[TypeDefinition, ...]:
    """Return the types that a schema declares; what is secret in this Pod stays so: the wire has no word for it.

    Raises:
        InvalidError: A property that every item has is said to be of another kind.
    """
    edges: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, links in form.edges.items():
        for link in links:
            there = edges.setdefault(link.source, {})
            there[name] = tuple(sorted({*there.get(name, ()), link.target}))
    found: list[TypeDefinition] = []
    for type_ in dict.fromkeys((*form.nodes, *edges)):
        if type_ == ANY_TYPE:  # clients declare the root of their classes as well; no item is of that type
            continue
        node = form.nodes.get(type_, NodeForm())
        known = (schema.get(type_) or TypeDefinition(type_)).properties
        properties: dict[str, PropertyDefinition] = {}
        for name, kind in node.properties.items():
            system = SYSTEM_PROPERTIES.get(name)
            if system is None:
                is_secret = name in known and known[name].is_secret
                properties[name] = PropertyDefinition(kind, is_secret=is_secret)
            elif system.kind is not kind:
                message = f"property {name} of {type_} cannot be {kind}: every item has it, and it is {system.kind}"
                raise InvalidError(message, type=type_, property=name)
        found.append(TypeDefinition(type_, properties, edges.get(type_, {})))
    return tuple(found)


def _more(type_: str, words: str) -> TypeDefinition:
    properties: dict[str, PropertyDefinition] = {}
    edges: dict[str, tuple[str, ...]] = {}
    for word in words.split():
        name, _, target = word.partition(">")
        if target:
            edges[name] = (target,)
        else:
            name, _, kind = word.partition(":")
            properties[name] = PropertyDefinition(Kind(kind or "Text"))
    return TypeDefinition(type_, properties, edges)


_MESSAGE: Final = (
    "abstract datePublished:DateTime itemType keyword sourceProject textContent title transcript "
    "label>CategoricalPrediction writtenBy>Person message>"
)

MORE: Final[Mapping[str, TypeDefinition]] = MappingProxyType(
    {
        type_: _more(type_, words)
        for type_, words in {
            "Account": "authEmail owner>Person trust>Account following>Account follower>Account",
            "CategoricalLabel": "allowSharing:Bool isSubmitted:Bool",
            "CategoricalPrediction": "externalId source value score:Real",
            "DatasetEntry": "externalId skippedByLabeller:Bool",
            "EmailMessage": _MESSAGE + "EmailMessage",
            "File": "keystr nonce",
            "Message": _MESSAGE + "Message",
            "Person": "addressBookId deathDate:DateTime role sexualOrientation me>Person mergedFrom>Person",
            "Photo": "externalId name exifData mode ocrText label>CategoricalPrediction",
            "Plugin": "externalId bundleImage configJson dataType gitProjectId:Integer run>PluginRun",
            "PluginRun": "externalId containerId webserverPort:Integer",
        }.items()
    }
)
"""What Memri's clients write undeclared, beyond the built-in types of a Pod: text, unless another kind is said."""

_NEW_TYPES: Final = MORE.keys() - {cls.__name__ for cls in BUILT_IN}
_MORE_NAMES: Final = frozenset(
    name for definition in MORE.values() for name in (*definition.properties, *definition.edges)
)


def definitions_used(uses: Mapping[str, set[str]], schema: Schema) -> tuple[TypeDefinition, ...]:
    """Return what has to be declared before it can be written; what a Pod has declared otherwise is not among it.

    What it has declared in the same way is: a batch that is repeated must not depend on whether its types are there.
    """
    found: list[TypeDefinition] = []
    for type_, names in uses.items():
        known, more = schema.get(type_) or TypeDefinition(type_), MORE[type_]
        properties = {
            name: each
            for name, each in more.properties.items()
            if name in names and name not in known.edges and _is_as(known.properties.get(name), each)
        }
        edges = {
            name: targets
            for name, targets in more.edges.items()
            if name in names and name not in known.properties and {*targets} <= {*known.edges.get(name, targets)}
        }
        if properties or edges or type_ in _NEW_TYPES:
            found.append(TypeDefinition(type_, properties, edges))
    return tuple(found)


def _is_as(known: PropertyDefinition | None, more: PropertyDefinition) -> bool:
    return known is None or (known.kind is more.kind and not known.is_secret)


# -- searches ---------------------------------------------------------------------------------------------------------


def read_query(fields: ItemForm, schema: Schema) -> Query:
    """Read the fields of a search, as `query_from`; one ``id`` is as ``ids`` with that one.

    Raises:
        InvalidError, DeniedError: As `query_from`.
    """
    id_ = fields.get("id")
    if isinstance(id_, str) and "ids" not in fields:
        rest = {name: value for name, value in fields.items() if name != "id"}
        fields = {**rest, "ids": [id_] if item_id.fullmatch(id_) else []}  # no item has an id that is none
    try:
        return query_from(fields, schema)
    except InvalidError:  # it may be of what nobody has written yet
        return query_from(fields, schema_of_clients(schema))


def schema_of_clients(schema: Schema) -> Schema:
    """Return what can be searched for: what is declared, and what Memri's clients may write undeclared."""
    every = {type_: {*more.properties, *more.edges} for type_, more in MORE.items()}
    return schema.joined(definitions_used(every, schema))
