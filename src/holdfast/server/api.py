"""The addresses under ``/api``: the store, claims and events of one owner's Pod; its files are next door.

The failure argument. *An answer is lost, or the server is killed between a commit and its answer*: the batch has a key,
and is answered again when it comes again. *Many write at once*: one flush serves all that wait, and a renewal does not
wait among them (see `holdfast.server.signing_in`). *A client sends slowly, or takes slowly*: no thread waits for it; a
file is written as it comes, and one that does not come to its end leaves nothing. *A body is a bomb*: who calls is
known before it is read, it is of a bounded size, and so is what is made of it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi import APIRouter, Path, Request
from pydantic_core import from_json, to_json
from starlette.responses import Response

from holdfast.auth import seal
from holdfast.engine.claiming import claim_for
from holdfast.errors import InvalidError
from holdfast.server.description import CLAIM, EVENTS, HEALTH, MAKE, STORE
from holdfast.server.events import Events
from holdfast.server.limits import Intake
from holdfast.server.signing_in import Entrance, Session, bearer
from holdfast.server.streaming import Held
from holdfast.store.wire import MAX_ASKED_BYTES, METHODS, Method

_MAX_CLAIM_BYTES: Final = 2**16
_JSON: Final = "application/json"
_UNSTORED: Final = {"Cache-Control": "no-store"}

Owner = Path(pattern="^[0-9A-Fa-f]{64}$", description="The owner's name, 64 hexadecimal digits.")


def api_router(entrance: Entrance, intake: Intake, events: Events, *, lease_s: float = 60.0) -> APIRouter:
    """Return the routes.

    Args:
        entrance: Where callers say who they are.
        intake: What reads bodies.
        events: What followers are told.
        lease_s: How many seconds a claim lasts without renewal.
    """
    router = APIRouter()

    def signed_in(request: Request, owner: str) -> AbstractAsyncContextManager[Session]:
        return entrance.session(request, owner.lower(), bearer(request))

    def add_method(method: Method) -> None:
        async def call(request: Request, owner: str = Owner) -> Response:
            async with signed_in(request, owner) as session:
                max_bytes = intake.limits.body_bytes if method.name == "apply" else MAX_ASKED_BYTES
                asked_bytes = min(max_bytes, intake.limits.body_bytes)
                async with intake.body(request, owner=session.owner, max_bytes=asked_bytes) as text:
                    answer = await session.answer(method, text or b"{}")
                if method.name == "apply":
                    events.wake(session.owner)
                return Response(answer, media_type=_JSON)

        path = f"/api/{{owner}}/store/{method.word}"
        router.add_api_route(path, call, methods=["POST"], operation_id=method.name, **STORE[method.name])

    for each in METHODS.values():
        add_method(each)

    @router.put("/api/{owner}", operation_id="create", **MAKE)
    async def create(request: Request, owner: str = Owner) -> Response:
        await entrance.create(request, owner.lower(), bearer(request))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @router.post("/api/{owner}/claims", operation_id="claim", **CLAIM)
    async def claim(request: Request, owner: str = Owner) -> Response:
        async with signed_in(request, owner) as session:
            session.require_owner("to claim a plugin state for a run")
            async with intake.body(request, owner=session.owner, max_bytes=_MAX_CLAIM_BYTES) as text:
                run, holder = _run_of(text)
            opener = entrance.pods.opener
            sealing = partial(seal, pod_key=opener.pod_key)
            claiming = partial(claim_for, owner=session.owner, lease_ms=round(lease_s * 1000), sealing=sealing)
            work = partial(claiming, session.pod.store, run, holder, now_ms=opener.now_ms())
            lease, token = await session.write(work)
            events.wake(session.owner)
            document = {"lease": lease, "token": token}
            return Response(to_json(document), HTTPStatus.CREATED, media_type=_JSON)

    @router.get("/api/{owner}/events", operation_id="follow", **EVENTS)
    async def follow(request: Request, owner: str = Owner) -> Response:
        async with signed_in(request, owner) as session:
            session.require_owner("to follow what changes in a Pod")
            presented = bearer(request)
            stream = events.follow(session, request.headers.get("last-event-id"))
            first = await anext(stream)  # what is refused is refused before the answer begins

        async def parts() -> AsyncGenerator[bytes]:
            async with aclosing(stream):
                yield first
                async for event in stream:
                    if not session.pod.is_opened_by(presented):
                        return  # the key was replaced: whoever has the new one comes again
                    yield event

        return Held(parts(), AsyncExitStack(), media_type="text/event-stream", headers=_UNSTORED)

    @router.get("/healthz", operation_id="health", **HEALTH)
    async def health() -> Response:
        return Response(b'{"status":"ok"}', media_type=_JSON)

    return router


def _run_of(text: bytes) -> tuple[str, str]:
    """Return which run is to be claimed for, and the holder: given, so that it may be asked again, or a new one."""
    try:
        found: Any = from_json(text, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidError(f"a claim must be JSON: {exc}") from exc
    claim = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    run, holder = claim.get("run"), claim.get("holder", f"claim-{secrets.token_hex(16)}")
    if claim.keys() - {"run", "holder"} or not isinstance(run, str) or not isinstance(holder, str):
        raise InvalidError("a claim must be an object with the id of a 'run', and may have a 'holder': both are text")
    return run, holder
