"""Memri's wire API: ``/v4/{owner}/NAME``, ``/v5/{owner}/schema`` and ``/version``, answered from an owner's Pod.

Hides who calls (it stands in the body, and for files in the address), in which thread each call is answered, and what
a call does to the store. Every write is one batch. A call with the header ``Idempotency-Key`` may be repeated when its
answer was lost: the batch has that key. What is refused is answered as text, by `holdfast.server.problems`.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from http import HTTPStatus
from typing import Any, Final, TypeVar, cast

from fastapi import APIRouter, Path, Request
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json
from starlette.responses import Response

from holdfast.errors import ConflictError, InvalidError, NotFoundError
from holdfast.items import Schema
from holdfast.runs import status_of
from holdfast.server.api import Owner
from holdfast.server.files import MEDIA, Sha256, begun, check_reader, is_described, keep
from holdfast.server.limits import Intake, check_weight
from holdfast.server.memri_forms import (
    AccountForm,
    Auth,
    Body,
    BulkForm,
    Caller,
    ClientAuth,
    Draft,
    EdgeForm,
    EdgesForm,
    HashForm,
    IdForm,
    ItemForm,
    PluginAuth,
    PluginsForm,
    SchemaForm,
    definitions_of,
    definitions_used,
    edge_form,
    found_form,
    is_told,
    item_form,
    read,
    read_query,
    schema_of_clients,
)
from holdfast.server.memri_graphql import answer
from holdfast.server.problems import PROBLEM_TYPE, Refused
from holdfast.server.signing_in import READ_HERE_BYTES, Entrance, Session
from holdfast.server.streaming import Held
from holdfast.store import (
    Batch,
    DeclareTypes,
    DeleteItem,
    Direction,
    ItemRow,
    Store,
)
from holdfast.values import item_id, shown

P = TypeVar("P")

_JSON: Final = "application/json"
_AUTH_BYTES: Final = 16 * 2**10
"""Of a body: within the first ones who calls is looked for before the rest is read."""

UNREACHABLE: Final = "unreachable"


@dataclass(frozen=True)
class _Caller:
    """Who asks for what a call does.

    Attributes:
        seed: What new ids are made of, if there is a ``key``: this caller's alone, so that nobody else can know which
            ids a key will make.
    """

    owner: str
    store: Store
    key: str | None
    seed: bytes | None = field(repr=False)


# -- what the calls do ------------------------------------------------------------------------------------------------


def _get_item(caller: _Caller, payload: str) -> list[ItemForm]:
    return [item_form(row) for row in _rows(caller.store, [payload]).values() if not row.is_deleted]


def _create_item(caller: _Caller, payload: ItemForm) -> str:
    draft = Draft(caller.seed)
    id_ = draft.create(payload)
    _commit(caller, draft)
    return id_


def _update_item(caller: _Caller, payload: ItemForm) -> dict[str, Any]:
    draft = Draft()
    draft.update(payload)
    return _commit(caller, draft)


def _delete_item(caller: _Caller, payload: str) -> dict[str, Any]:
    draft = Draft()
    draft.delete(payload)
    return _commit(caller, draft)


def _create_edge(caller: _Caller, payload: EdgeForm) -> dict[str, Any]:
    draft = Draft()
    draft.link(payload)
    return _commit(caller, draft)


def _delete_edge(caller: _Caller, payload: EdgeForm) -> dict[str, Any]:
    draft = Draft()
    draft.unlink(payload)
    return _commit(caller, draft)


def _bulk(caller: _Caller, payload: BulkForm) -> dict[str, Any]:
    draft = Draft(caller.seed)
    created = [draft.create(form) for form in payload.createItems or ()]
    for form in payload.updateItems or ():
        draft.update(form)
    for edge in payload.createEdges or ():
        draft.link(edge)
    for id_ in payload.deleteItems or ():
        draft.delete(id_)
    schema = caller.store.schema() if payload.search else Schema()
    for fields in payload.search or ():
        read_query(fields, schema)  # what cannot be searched for is said before anything is written
    _commit(caller, draft)
    return {
        "createItems": created,
        "search": [_found(caller.store, fields, schema) for fields in payload.search or ()],
    }


def _search(caller: _Caller, payload: ItemForm) -> list[ItemForm]:
    return _found(caller.store, payload, caller.store.schema())


def _graphql(caller: _Caller, payload: str) -> dict[str, list[ItemForm]]:
    try:
        return {"data": answer(caller.store, schema_of_clients(caller.store.schema()), payload)}
    except InvalidError as exc:  # Memri's clients look for this status
        raise Refused(HTTPStatus.BAD_REQUEST, exc) from exc


def _get_edges(caller: _Caller, payload: EdgesForm) -> list[dict[str, Any]]:
    id_ = payload.item
    edges = caller.store.list_edges([id_], payload.direction).get(id_, []) if item_id.fullmatch(id_) else []
    if not edges and not _get_item(caller, id_):
        raise NotFoundError(f"there is no item {shown(id_)}: it was never created, or it was deleted", id=shown(id_))
    return [edge_form(edge, is_expanded=payload.expandItems) for edge in edges if is_told(edge)]


def _declare(caller: _Caller, payload: SchemaForm) -> dict[str, Any]:
    # As it was sent at first: what becomes secret after that must not make another batch of one that is repeated.
    definitions = definitions_of(payload, Schema())
    try:
        caller.store.apply(Batch((DeclareTypes(definitions),), key=caller.key))
    except ConflictError:
        adapted = definitions_of(payload, caller.store.schema())
        if adapted == definitions:
            raise
        caller.store.apply(Batch((DeclareTypes(adapted),), key=caller.key))
    return {}


def _plugin_status(caller: _Caller, payload: PluginsForm) -> dict[str, Any]:
    rows = _rows(caller.store, payload.plugins)
    runs = [id_ for id_, row in rows.items() if row.type == "PluginRun" and not row.is_deleted]
    edges = caller.store.list_edges(runs, Direction.OUTGOING)
    statuses = dict.fromkeys(payload.plugins, UNREACHABLE)
    now_ms = caller.store.now_ms()
    for id_ in runs:
        states = [edge.item.id for edge in edges.get(id_, ()) if edge.name == "pluginState"]
        leases = [caller.store.find_lease(state) for state in states]
        if any(lease is not None and lease.run == id_ and lease.is_held(now_ms) for lease in leases):
            statuses[id_] = str(status_of(rows[id_].properties.get("status")))
    return {"plugins": {id_: {"status": status} for id_, status in statuses.items()}}


def _rows(store: Store, ids: Sequence[str]) -> Mapping[str, ItemRow]:
    return store.find_items([id_ for id_ in dict.fromkeys(ids) if item_id.fullmatch(id_)])


def _found(store: Store, fields: ItemForm, schema: Schema) -> list[ItemForm]:
    query = read_query(fields, schema)
    return [found_form(each, query) for each in store.search(query)]


def _commit(caller: _Caller, draft: Draft) -> dict[str, Any]:
    """Write a draft as one batch, with what it takes for granted of Memri's types declared in it."""
    if not draft.operations:
        return {}
    types = {row.id: row.type for row in _rows(caller.store, draft.unknown).values()} if draft.unknown else {}
    draft.check_told(types)
    uses = draft.uses(types)
    used = definitions_used(uses, caller.store.schema()) if uses else ()
    declared = (DeclareTypes(used),) if used else ()
    caller.store.apply(Batch((*declared, *draft.operations), key=caller.key))
    return {}


@dataclass(frozen=True)
class _Call:
    """One name of the API, what it is sent, what it does, and the shape of what it answers."""

    path: str
    payload: Any
    work: Callable[[_Caller, Any], Any]
    answer: Any
    writes: bool
    summary: str


CALLS: Final = (
    _Call("/v4/{owner}/get_item", str, _get_item, list[ItemForm], False, "The item with an id; none: []."),
    _Call("/v4/{owner}/create_item", ItemForm, _create_item, str, True, "Write a new item; the answer is its id."),
    _Call("/v4/{owner}/update_item", ItemForm, _update_item, dict[str, Any], True, "Change an item; null erases."),
    _Call("/v4/{owner}/delete_item", str, _delete_item, dict[str, Any], True, "Mark the item with an id as deleted."),
    _Call("/v4/{owner}/get_edges", EdgesForm, _get_edges, list[ItemForm], False, "The edges of an item."),
    _Call("/v4/{owner}/create_edge", EdgeForm, _create_edge, dict[str, Any], True, "Link two items."),
    _Call("/v4/{owner}/delete_edge_by_source_target", EdgeForm, _delete_edge, dict[str, Any], True, "Remove an edge."),
    _Call("/v4/{owner}/search", ItemForm, _search, list[ItemForm], False, "The items that have these properties."),
    _Call("/v4/{owner}/graphql", str, _graphql, dict[str, list[ItemForm]], False, "Search along edges."),
    _Call("/v4/{owner}/bulk", BulkForm, _bulk, dict[str, Any], True, "Much at once, all of it or nothing."),
    _Call("/v4/{owner}/plugin/status", PluginsForm, _plugin_status, dict[str, Any], False, "How runs are."),
    _Call("/v5/{owner}/schema", SchemaForm, _declare, dict[str, Any], True, "Declare item types."),
)


# -- how they are asked for -------------------------------------------------------------------------------------------

_Key = Path(description="The owner's database key, 64 hexadecimal digits.")
_Path = Path(description="What stands as `auth` in other calls, as JSON.")

_BYTES: Final = {MEDIA: {"schema": {"type": "string", "format": "binary"}}}


def memri_router(
    entrance: Entrance,
    intake: Intake,
    wake: Callable[[str], None],
) -> APIRouter:
    """Return the routes.

    Args:
        entrance: Where callers say who they are.
        intake: What reads bodies.
        wake: Called with the owner after a write.
    """
    router = APIRouter()
    routes = _Routes(entrance, intake, wake)
    for call in CALLS:
        told = _described(call.summary, _body_of(call.payload), call.answer)
        router.add_api_route(call.path, routes.answering(call), methods=["POST"], **told)
    account = _described("Make an owner's Pod; twice is harmless.", AccountForm, dict[str, Any])
    router.add_api_route("/v4/account", routes.account, methods=["POST"], **account)
    read_file = _described("The bytes of a file.", Body[HashForm], _BYTES)
    router.add_api_route("/v4/{owner}/get_file", routes.get_file, methods=["POST"], **read_file)
    delete_file = _described("Delete a File item and its bytes.", Body[IdForm], dict[str, Any])
    router.add_api_route("/v4/{owner}/delete_file", routes.delete_file, methods=["POST"], **delete_file)
    upload = _described("Keep the bytes of a file that a File item describes.", None, dict[str, Any], body=_BYTES)
    router.add_api_route(
        "/v4/{owner}/upload_file/{database_key}/{sha256}", routes.upload_file, methods=["POST"], **upload
    )
    router.add_api_route(
        "/v4/{owner}/upload_file_b/{auth:path}/{sha256}", routes.upload_file_b, methods=["POST"], **upload
    )
    busy: dict[int | str, dict[str, Any]] = {
        503: {"description": "It cannot be done now; later it may.", "content": {PROBLEM_TYPE: {}}}
    }
    router.add_api_route("/version", routes.about, methods=["GET"], summary="Which version answers.", responses=busy)
    return router


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _body_of(payload: Any) -> Any:
    return cast("Any", Body)[payload]


class _Routes:
    """The addresses; see `memri_router`."""

    def __init__(self, entrance: Entrance, intake: Intake, wake: Callable[[str], None]) -> None:
        self._entrance = entrance
        self._intake = intake
        self._wake = wake

    def answering(self, call: _Call) -> Callable[..., Awaitable[Response]]:
        """Return what answers one name of the API."""
        payload: TypeAdapter[Body[Any]] = _adapter(_body_of(call.payload))

        async def answer(request: Request, owner: str = Owner) -> Response:
            async with self._signed_in(request, owner, payload) as (session, asked):
                key = request.headers.get("idempotency-key")
                seed = None if key is None else self._seed(session, key)
                caller = _Caller(session.owner, session.store, key, seed)
                work = session.write if call.writes else session.read
                text = await work(lambda: to_json(call.work(caller, asked)))
                if call.writes:
                    self._wake(session.owner)
                return Response(text, media_type=_JSON)

        return answer

    def _seed(self, session: Session, key: str) -> bytes:
        token = session.token
        caller = [session.owner] if token is None else [token.owner, token.state, token.epoch]
        text = json.dumps(["holdfast memri ids 1", *caller, key])
        return hmac.digest(self._entrance.pods.opener.pod_key, text.encode(), "sha256")

    async def account(self, request: Request) -> Response:
        nobody = partial(self._knows, "")  # is known who has no Pod yet
        async with self._intake.body(request, owner="", is_known=nobody, max_bytes=READ_HERE_BYTES) as text:
            form = await self._form(_adapter(AccountForm), text)
            await self._entrance.create(request, form.ownerKey.lower(), form.databaseKey)
        return Response(b"{}", media_type=_JSON)

    async def get_file(self, request: Request, owner: str = Owner) -> Response:
        async with AsyncExitStack() as stack:
            session, asked = await stack.enter_async_context(self._signed_in(request, owner, _adapter(Body[HashForm])))
            await check_reader(session, asked.sha256)
            size, parts = await session.file(session.pod.files.open, asked.sha256)
            headers = {"Content-Length": str(size)}
            return Held(await begun(session, parts), stack.pop_all(), media_type=MEDIA, headers=headers)
        raise AssertionError  # an exit stack swallows nothing here

    async def delete_file(self, request: Request, owner: str = Owner) -> Response:
        async with self._signed_in(request, owner, _adapter(Body[IdForm])) as (session, asked):
            key = request.headers.get("idempotency-key")
            sha256 = await session.write(_delete_file_item, session.store, asked.id, key)
            if sha256 is not None:
                # Looked for in all of the Pod: an item that a run may not read needs the bytes as well.
                is_needed = partial(is_described, session.pod.store, sha256)
                await session.file(partial(session.pod.files.delete, sha256, is_needed=is_needed))
            self._wake(session.owner)
            return Response(b"{}", media_type=_JSON)

    async def upload_file(
        self, request: Request, owner: str = Owner, database_key: str = _Key, sha256: str = Sha256
    ) -> Response:
        return await self._upload(request, owner, database_key, sha256)

    async def upload_file_b(
        self, request: Request, owner: str = Owner, auth: str = _Path, sha256: str = Sha256
    ) -> Response:
        presented: str = read(_adapter(Auth), auth, "what says who calls").presented
        return await self._upload(request, owner, presented, sha256)

    async def about(self, request: Request) -> dict[str, str]:
        return {"cargo": request.app.version, "server": "holdfast"}

    async def _upload(self, request: Request, owner: str, presented: str, sha256: str) -> Response:
        async with self._entrance.session(request, owner.lower(), presented) as session:
            await keep(session, self._intake, request, sha256)
            return Response(b"{}", media_type=_JSON)

    @asynccontextmanager
    async def _signed_in(
        self, request: Request, owner: str, adapter: TypeAdapter[Body[P]]
    ) -> AsyncGenerator[tuple[Session, P]]:
        owner = owner.lower()
        async with self._intake.body(request, owner=owner, is_known=partial(self._knows, owner)) as text:
            # Who calls is found out before anything is made of the rest, for that may take much memory.
            auth = _auth_at_begin(text) if len(text) > _AUTH_BYTES else None
            if auth is None:
                check_weight(text, self._intake.limits.strangers_made_bytes, "send 'auth' first, before the rest")
                auth = (await self._form(_adapter(Caller), text)).auth
            async with self._entrance.session(request, owner, auth.presented) as session:
                with self._intake.room(text, owner):
                    yield session, (await self._form(adapter, text)).payload

    async def _form(self, adapter: TypeAdapter[P], text: bytes) -> P:
        """Return what a body says."""
        if len(text) <= READ_HERE_BYTES:
            return read(adapter, text, "the body")
        threads = self._entrance.threads
        return await threads.run(threads.parsing, read, adapter, text, "the body")

    def _knows(self, owner: str, begin: bytes) -> bool:
        """Say whether somebody who may sends a body that begins like this."""
        auth = _auth_at_begin(begin)
        return auth is not None and self._entrance.knows(owner, auth.presented)


def _auth_at_begin(text: bytes) -> ClientAuth | PluginAuth | None:
    """Return who sends a body by its first bytes, where most clients say so."""
    try:
        found: Any = from_json(text[:_AUTH_BYTES], allow_partial=True)
        return _adapter(Auth).validate_python(found["auth"])
    except (ValueError, TypeError, KeyError):
        return None


def _delete_file_item(store: Store, id_: str, key: str | None) -> str | None:
    """Delete a File item, and return the hash of its bytes; a call that is repeated under its key finds it deleted."""
    row = _rows(store, [id_]).get(id_)
    if row is None or (row.is_deleted and key is None):
        raise NotFoundError(f"there is no item {shown(id_)}: it was never created, or it was deleted", id=shown(id_))
    if row.type != "File":
        raise InvalidError(f"item {id_!r} is no File, but a {row.type}: delete it with delete_item", id=id_)
    store.apply(Batch((DeleteItem(id_),), key=key))
    return cast("str | None", row.properties.get("sha256"))


# -- what OpenAPI says ------------------------------------------------------------------------------------------------

_REFUSALS: Final = {
    400: "The request was not understood.",
    401: "What was presented opens nothing here.",
    403: "A page of another site calls, or the rights presented do not suffice.",
    404: "What was named does not exist.",
    408: "The body came too slowly.",
    409: "Somebody else's write stands in the way, or the bytes are there already; nothing was changed.",
    413: "The body is too large; the text names the limit.",
    415: "The body is compressed.",
    421: "The server does not answer to this name.",
    422: "A value cannot be accepted; the same request will fail again.",
    429: "There were too many requests, or sign-ins that failed.",
    500: "A defect of the server.",
    503: "It cannot be done now; later it may.",
}


def _described(summary: str, payload: Any, answer: Any, *, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what FastAPI is told of a route: it reads no body itself, for it would read one of any size."""
    content = answer if answer is _BYTES else {_JSON: {"schema": _inlined(answer)}}
    if payload is not None:
        body = {_JSON: {"schema": _inlined(payload)}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "summary": summary,
        "response_model": None,
        "responses": {
            200: {"description": "Done.", "content": content},
            **{status: {"description": why, "content": text} for status, why in _REFUSALS.items()},
        },
        "openapi_extra": {} if body is None else {"requestBody": {"required": True, "content": body}},
    }


@cache
def _schema_of(kind: Any) -> dict[str, Any]:
    return _adapter(kind).json_schema()


def _inlined(kind: Any) -> dict[str, Any]:
    """Return a schema without references: those of a part lead nowhere in the whole document."""
    definitions = _schema_of(kind).get("$defs", {})

    def resolved(part: Any) -> Any:
        if isinstance(part, list):
            return [resolved(each) for each in cast("list[Any]", part)]
        if not isinstance(part, dict):
            return part
        members = cast("dict[str, Any]", part)
        if "$ref" in members:
            return resolved(definitions[members["$ref"].rpartition("/")[2]])
        return {name: resolved(each) for name, each in members.items() if name not in ("$defs", "discriminator")}

    return resolved(_schema_of(kind))
