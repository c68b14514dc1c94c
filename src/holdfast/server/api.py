"""The addresses under ``/api``: the store, claims and events of one owner's Pod; its files are next door.

The failure argument. *An answer is lost, or the server is killed between a commit and its answer*: the batch has a key,
and is answered again when it comes again. *Many write at once*: one flush serves all that wait, and a renewal does not
wait among them (see `holdfast.server.signing_in`). *A client sends slowly, or takes slowly*: no thread waits for it; a
file is written as it comes, and one that does not come to its end leaves nothing. *A body is a bomb*: who calls is
known before it is read, it is of a bounded size, and so is what is made of it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi import APIRouter, Path, Request
from pydantic_core import from_json, to_json
from starlette.responses import Response

from holdfast.auth import Token, rights_of, seal
from holdfast.engine import check_state, continue_run
from holdfast.errors import ConflictError, InvalidError
from holdfast.pod import Pod
from holdfast.runs import Lease
from holdfast.server.description import CLAIM, EVENTS, HEALTH, MAKE, STORE
from holdfast.server.events import Events
from holdfast.server.limits import Intake
from holdfast.server.signing_in import Entrance, Session, bearer
from holdfast.server.streaming import Held
from holdfast.store import Batch, ClaimLease
from holdfast.store.wire import MAX_ASKED_BYTES, METHODS, Method
from holdfast.values import MAX_INTEGER

_LEASE_MS: Final = 60_000
_TOKEN_MS: Final = 30 * 24 * 3_600_000
"""How long a token is good at most: a run that lasts longer is given another one with its next claim."""
_MAX_CLAIM_BYTES: Final = 2**16
_JSON: Final = "application/json"
_UNSTORED: Final = {"Cache-Control": "no-store"}

Owner = Path(pattern="^[0-9A-Fa-f]{64}$", description="The owner's name, 64 hexadecimal digits.")


def api_router(entrance: Entrance, intake: Intake, events: Events) -> APIRouter:
    """Return the routes.

    Args:
        entrance: Where callers say who they are.
        intake: What reads bodies.
        events: What followers are told.
    """
    router = APIRouter()

    def signed_in(request: Request, owner: str) -> AbstractAsyncContextManager[Session]:
        return entrance.session(request, owner.lower(), bearer(request))

    def add_method(method: Method) -> None:
        async def call(request: Request, owner: str = Owner) -> Response:
            async with signed_in(request, owner) as session:
                max_bytes = intake.limits.body_bytes if method.name == "apply" else MAX_ASKED_BYTES
                async with intake.body(request, max_bytes=min(max_bytes, intake.limits.body_bytes)) as text:
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
            async with intake.body(request, max_bytes=_MAX_CLAIM_BYTES) as text:
                run, holder = _run_of(text)
            opener = entrance.pods.opener
            sealing = partial(seal, pod_key=opener.pod_key)
            lease, token = await session.write(_claim, session, run, holder, opener.now_ms(), sealing)
            events.wake(session.owner)
            document = {"lease": lease, "token": token}
            return Response(to_json(document), HTTPStatus.CREATED, media_type=_JSON)

    @router.get("/api/{owner}/events", operation_id="follow", **EVENTS)
    async def follow(request: Request, owner: str = Owner) -> Response:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(signed_in(request, owner))
            session.require_owner("to follow what changes in a Pod")
            stream = events.follow(session, request.headers.get("last-event-id"))
            first = await anext(stream)  # what is refused is refused before the answer begins

            async def parts() -> AsyncGenerator[bytes]:
                async with aclosing(stream):
                    yield first
                    async for event in stream:
                        yield event

            return Held(parts(), stack.pop_all(), media_type="text/event-stream", headers=_UNSTORED)
        raise AssertionError  # an exit stack swallows nothing here

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


def _claim(session: Session, run: str, holder: str, now_ms: int, sealing: Callable[[Token], str]) -> tuple[Lease, str]:
    store = session.pod.store
    check_state(store, run)
    _, state = continue_run(Pod(store), run)
    rights = rights_of(store.find_items([run])[run].properties)
    token = Token(
        owner=session.owner,
        state=str(state.id),
        run=run,
        epoch=MAX_INTEGER,
        holder=holder[:64],  # longer ones are refused below
        rights=rights,
        expires_ms=now_ms + _TOKEN_MS,
    )
    sealing(token)  # before the claim: one without a token would keep others out for nothing
    lease = store.apply(Batch((ClaimLease(token.state, run, holder, _LEASE_MS),)))[0]
    assert isinstance(lease, Lease)  # noqa: S101 -- what a claim answers
    if lease.run != run:
        message = f"plugin state {lease.state!r} is held by run {lease.run!r} with the same holder: claim with another"
        raise ConflictError(message, state=lease.state, run=lease.run)
    return lease, sealing(replace(token, epoch=lease.epoch))
