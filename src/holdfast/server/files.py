"""The bytes of files over HTTP: taken as they come, given as they are taken.

No thread waits for a client: one works only while there is something to write or to read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Final, cast

import anyio
from fastapi import APIRouter, Path, Request
from pydantic_core import to_json
from starlette.responses import Response

from holdfast.errors import DeniedError, NotFoundError
from holdfast.server.api import Owner
from holdfast.server.description import FILE, UPLOAD
from holdfast.server.limits import Intake, Places
from holdfast.server.pods import Upload
from holdfast.server.signing_in import Entrance, Session, bearer
from holdfast.server.streaming import Held
from holdfast.store import Comparison, Condition, Query, Store

_PART_BYTES: Final = 2**20

Sha256 = Path(pattern="^[0-9a-f]{64}$", description="The SHA-256 of the bytes, 64 hexadecimal digits.")


def files_router(entrance: Entrance, intake: Intake) -> APIRouter:
    """Return the routes, see `holdfast.server.api.api_router`."""
    router = APIRouter()
    uploads = Places(intake.limits.uploads, "files are taken")

    @asynccontextmanager
    async def _file_session(
        request: Request, owner: str, sha256: str, *, writes: bool = False
    ) -> AsyncGenerator[Session]:
        """Yield the session of a caller who may do that; a token is asked for a File item that it may read."""
        async with entrance.session(request, owner.lower(), bearer(request)) as session:
            token = session.token
            if token is not None:
                if writes and "File" not in token.rights.writes:
                    raise DeniedError(
                        f"run {token.run!r} may not write files: its owner has not put 'File' into its 'writes'"
                    )
                if not await session.read(is_described, session.store, sha256):
                    raise NotFoundError(f"there is no file {sha256!r}", sha256=sha256)
            yield session

    @router.get("/api/{owner}/files/{sha256}", operation_id="get_file", **FILE["get"])
    async def get_file(request: Request, owner: str = Owner, sha256: str = Sha256) -> Response:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(_file_session(request, owner, sha256))
            size, parts = await session.file(session.pod.files.open, sha256)
            headers = {"Content-Length": str(size)}
            media = "application/octet-stream"
            return Held(given(session, parts), stack.pop_all(), media_type=media, headers=headers)
        raise AssertionError  # an exit stack swallows nothing here

    @router.head("/api/{owner}/files/{sha256}", operation_id="find_file", **FILE["head"])
    async def find_file(request: Request, owner: str = Owner, sha256: str = Sha256) -> Response:
        async with _file_session(request, owner, sha256) as session:
            is_there = await session.file(session.pod.files.exists, sha256)
            return Response(status_code=HTTPStatus.OK if is_there else HTTPStatus.NOT_FOUND)

    @router.put("/api/{owner}/files/{sha256}", operation_id="put_file", **UPLOAD)
    async def put_file(request: Request, owner: str = Owner, sha256: str = Sha256) -> Response:
        async with _file_session(request, owner, sha256, writes=True) as session:
            if not await session.read(is_described, session.pod.store, sha256):
                message = f"no File item describes the bytes {sha256!r}: create it before them"
                raise NotFoundError(message, sha256=sha256)
            uploads.take()
            try:
                size = await take(session, intake.parts(request, max_bytes=intake.limits.file_bytes), sha256)
            finally:
                uploads.give()
            return Response(to_json({"size": size}), HTTPStatus.CREATED, media_type="application/json")

    @router.delete("/api/{owner}/files/{sha256}", operation_id="delete_file", **FILE["delete"])
    async def delete_file(request: Request, owner: str = Owner, sha256: str = Sha256) -> Response:
        async with _file_session(request, owner, sha256, writes=True) as session:
            is_needed = partial(is_described, session.pod.store, sha256)
            await session.file(partial(session.pod.files.delete, sha256, is_needed=is_needed))
            return Response(status_code=HTTPStatus.NO_CONTENT)

    return router


def is_described(store: Store, sha256: str) -> bool:
    """Say whether a File item describes these bytes."""
    condition = Condition("sha256", Comparison.EQUAL, sha256)
    return bool(store.search(Query(type="File", conditions=(condition,), limit=1)))


async def take(session: Session, parts: AsyncIterator[bytes], sha256: str) -> int:
    """Keep what comes, and return its size in bytes; a thread works only while there is something to write."""
    async with _writing(session, sha256) as upload:
        waiting = bytearray()
        async for part in parts:
            waiting += part
            if len(waiting) >= _PART_BYTES:
                await session.file(upload.write, bytes(waiting))
                waiting.clear()
        await session.file(upload.write, bytes(waiting))
        return await session.file(upload.commit)


@asynccontextmanager
async def _writing(session: Session, sha256: str) -> AsyncGenerator[Upload]:
    manager = session.pod.files.writing(sha256)
    upload = await session.file(manager.__enter__)
    error: BaseException | None = None
    try:
        yield upload
    except BaseException as exc:
        error = exc
        raise
    finally:
        with anyio.CancelScope(shield=True):  # who has gone leaves nothing behind
            await session.file(manager.__exit__, None if error is None else type(error), error, None)


async def given(session: Session, parts: Iterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the bytes of a file that was opened."""
    try:
        while part := await session.file(_gather, parts):
            yield part
    finally:
        with anyio.CancelScope(shield=True):
            await session.file(cast("Generator[bytes]", parts).close)


def _gather(parts: Iterator[bytes]) -> bytes:
    """Return the next parts together: few turns in a thread, and little memory."""
    found = bytearray()
    for part in parts:
        found += part
        if len(found) >= _PART_BYTES:
            break
    return bytes(found)
