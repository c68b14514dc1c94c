"""The application: the Pods of one server behind HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from holdfast.errors import HoldfastError
from holdfast.server.api import api_router
from holdfast.server.description import described
from holdfast.server.events import Events
from holdfast.server.files import files_router
from holdfast.server.guarding import Guard
from holdfast.server.limits import Intake, Limits
from holdfast.server.memri import memri_router
from holdfast.server.pods import OpenPods
from holdfast.server.problems import Refused, problem_of
from holdfast.server.signing_in import Entrance


class Application(Guard):
    """An ASGI application that answers for Pods.

    Args:
        pods: The Pods; closed when the server ends.
        limits: How much clients may ask for.
        version: What it says of itself.
        lease_s: How many seconds a claim lasts without renewal.
        hosts: The names by which it is called, besides those of this machine alone.
    """

    def __init__(
        self, pods: OpenPods, limits: Limits, *, version: str, lease_s: float = 60.0, hosts: Collection[str] = ()
    ) -> None:
        entrance = Entrance(pods, limits)
        self._events = Events(pods, entrance.threads, limits)

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
            try:
                yield
            finally:
                self.end()
                await to_thread.run_sync(pods.close)

        self.inner = FastAPI(
            title="Holdfast",
            version=version,
            openapi_url="/api/openapi.json",
            docs_url=None,  # these pages come from elsewhere
            redoc_url=None,
            redirect_slashes=False,
            lifespan=lifespan,
            exception_handlers=dict.fromkeys(
                (HoldfastError, Refused, HTTPException, RequestValidationError, Exception), _answer
            ),
            telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        )
        intake = Intake(limits)
        self.inner.include_router(api_router(entrance, intake, self._events, lease_s=lease_s))
        self.inner.include_router(files_router(entrance, intake))
        self.inner.include_router(memri_router(entrance, intake, self._events.wake))
        describe: Callable[[], dict[str, Any]] = self.inner.openapi
        self.inner.openapi = lambda: described(describe())
        super().__init__(self.inner, limits, hosts)

    def end(self) -> None:
        """Let followers go, who would else be waited for."""
        self._events.close()


async def _answer(request: Request, exc: Exception) -> Response:
    return problem_of(exc).response(request.url.path)
