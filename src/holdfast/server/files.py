"""The bytes of files over HTTP, for both APIs: taken as they come, given as they are taken.

Hides who may do what with them. No thread waits for a client: one works only while there is something to write or to
read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import Final, cast

import anyio
from fastapi import APIRouter, Path, Request
from pydantic_core import to_json
from starlette.responses import Response

from holdfast.errors import DamagedError, NotFoundError
from holdfast.server.api import Owner
from holdfast.server.description import FILE, UPLOAD
from holdfast.server.limits import Intake
from holdfast.server.pods import Upload
from holdfast.server.signing_in import Entrance, Session, bearer
from holdfast.server.streaming import Held
from holdfast.store import Comparison, Condition, Query, Store

_PART_BYTES: Final = 2**20
MEDIA: Final = "application/octet-stream"

Sha256 = Path(pattern="^[0-9a-f]{64}$", description="The SHA-256 of the bytes, 64 hexadecimal digits.")


def files_router(entrance: Entrance, intake: Intake) -> APIRouter:
    """Return the routes, see `holdfast.server.api.api_router`."""
    router = APIRouter()

    @asynccontextmanager
    async def reading(request: Request, owner: str, sha256: str) -> AsyncGenerator[Session]:
        async with entrance.session(request, owner.lower(), bearer(request)) as session:
            await check_reader(session, sha256)
            yield session

    @router.get("/api/{owner}/files/{sha256}", operation_id="get_file", **FILE["get"])
    async def get_file(request: Request, owner: str = Owner, sha256: str = Sha256) -> Response:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(reading(request, owner, sha256))
            size, parts = await session.file(session.pod.files.open, sha256)
            headers = {"Content-Length": str(size)}
            return Held(await begun(session, parts), stack.pop_all(), media_type=MEDIA, headers=headers)
        raise AssertionError  # an exit stack swallows nothing here

    @router.head("/api/{owner}/files/{sha256}", operation_id="find_file", **FILE["head"])
    async def find_file(request: Request, owner: str = Owner, sha256: str = Sha256) -> Response:
        async with reading(request, owner, sha256) as session:
            if not await session.file(session.pod.files.exists, sha256):
                raise NotFoundError(f"the bytes of file {sha256!r} are not there", sha256=sha256)
            return Response(media_type=MEDIA)  # so that no other page that is found is taken for it

    @router.put("/api/{owner}/files/{sha256}", operation_id="put_file", **UPLOAD)
    async def put_file(request: Request, owner: str = Owner, sha256: str = Sha256) -> Response:
        async with entrance.session(request, owner.lower(), bearer(request)) as session:
            size = await keep(session, intake, request, sha256)
            return Response(to_json({"size": size}), HTTPStatus.CREATED, media_type="application/json")

    @router.delete("/api/{owner}/files/{sha256}", operation_id="delete_file", **FILE["delete"])
    async def delete_file(request: Request, owner: str = Owner, sha256: str = Sha256) -> Response:
        async with entrance.session(request, owner.lower(), bearer(request)) as session:
            await session.read(session.check_write, "File")

            def is_needed() -> bool:
                session.check_write("File")  # again: the deletion may have waited
                return is_described(session.pod.store, sha256)

            await session.file(partial(session.pod.files.delete, sha256, is_needed=is_needed))
            return Response(status_code=HTTPStatus.NO_CONTENT)

    return router


def is_described(store: Store, sha256: str) -> bool:
    """Say whether a File item describes these bytes."""
    condition = Condition("sha256", Comparison.EQUAL, sha256)
    return bool(store.search(Query(type="File", conditions=(condition,), limit=1)))


async def check_reader(session: Session, sha256: str) -> None:
    """Accept the owner, and a run that finds a File item that describes these bytes.

    Raises:
        NotFoundError: There is none.
        DeniedError: It may read no File items; or holds its plugin state no more.
    """
    if session.token is not None and not await session.read(is_described, session.store, sha256):
        raise NotFoundError(f"there is no file {sha256!r}", sha256=sha256)


async def keep(session: Session, intake: Intake, request: Request, sha256: str) -> int:
    """Keep the bytes that a request brings, and return how many they are.

    What gives the right to it is looked at before they come and when they have come: meanwhile a run may have lost it.
    What is there already is read first: if that is damaged, they take its place.

    Raises:
        Refused: There is no room for it now, or they are too many, or too slow.
        ConflictError, InvalidError: As `Bytes.writing` and `Upload` say.
        NotFoundError: No File item describes them; or a run, which may write such, finds none.
        DeniedError: A run may not write such, or holds its plugin state no more.
    """

    def check() -> None:
        session.check_write("File")
        if not is_described(session.store, sha256):
            raise NotFoundError(f"no File item describes the bytes {sha256!r}: create it before them", sha256=sha256)

    await session.read(check)
    intake.uploads.take(1, session.owner)
    try:
        with suppress(NotFoundError, DamagedError):
            async for _ in given(session, (await session.file(session.pod.files.open, sha256))[1]):
                pass
        async with _writing(session, sha256) as upload:
            await _take(session, upload, intake.parts(request, max_bytes=intake.limits.file_bytes))
            await session.read(check)
            return await session.file(upload.commit)
    finally:
        intake.uploads.give(1, session.owner)


async def _take(session: Session, upload: Upload, parts: AsyncIterator[bytes]) -> None:
    waiting = bytearray()
    async for part in parts:
        waiting += part
        if len(waiting) >= _PART_BYTES:
            await session.file(upload.write, bytes(waiting))
            waiting.clear()
    await session.file(upload.write, bytes(waiting))


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


async def begun(session: Session, parts: Iterator[bytes]) -> AsyncGenerator[bytes]:
    """Return what `given` does when its first part has been read: what is damaged there is said, not sent."""
    rest = given(session, parts)
    first = await anext(rest, b"")

    async def each() -> AsyncGenerator[bytes]:
        async with aclosing(rest):
            yield first
            async for part in rest:
                yield part

    return each()


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
