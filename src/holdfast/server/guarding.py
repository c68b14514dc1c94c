"""What stands around the whole application: every request is answered, in time, once, and is said in the log.

Hides clients that take no answer or send on after it, and what the application lets through. The log has addresses as
the API describes them, ``/api/{owner}/files/{sha256}``: what stands in their place may be a key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast.server.limits import Limits, Places
from holdfast.server.problems import Refused, problem_of

_log: Final = logging.getLogger(__name__)

ABORT: Final = "holdfast.abort"
"""Where in the scope of a request the function is that drops its connection at once, if there is one."""
_DRAIN_S: Final = 2.0
_DRAIN_BYTES: Final = 256 * 2**20


class Guard:
    """An ASGI application around another one.

    Args:
        app: The application.
        limits: How many requests there may be, and how long a client may take.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._places = Places(limits.requests, "requests are answered")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever is none passes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        try:
            self._places.take()
        except Refused as exc:
            await exchange.fail(exc)
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass  # there is nobody to answer
        except Exception as exc:  # noqa: BLE001 -- the server's problem mapper
            await exchange.fail(exc)
        finally:
            self._places.give()
            exchange.say()


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self._scope, self._receive, self._send, self._limits = scope, receive, send, limits
        self._began = time.monotonic()
        self._status: int | None = None
        names = {name for name, value in scope["headers"] if value != b"0"}
        self._is_read = not names & {b"content-length", b"transfer-encoding"}
        self._is_whole = False

    async def receive(self) -> Message:
        """Return what comes next."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        """Send the next part of the answer; a client that does not take it in time has gone."""
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            if not self._is_read:
                await self._drain()
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        elif message["type"] == "http.response.body":
            self._is_whole = not message.get("more_body")
        try:
            async with asyncio.timeout(self._limits.idle_s):
                await self._send(message)
        except TimeoutError:
            self._scope.get(ABORT, _nothing)()
            await asyncio.sleep(0)  # whatever holds the connection hears of it
            raise ClientDisconnect from None

    async def _drain(self) -> None:
        """Let a client send on for a little: many read no answer before they have sent all."""
        left = _DRAIN_BYTES
        try:
            async with asyncio.timeout(_DRAIN_S):
                while not self._is_read and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass

    async def fail(self, exc: Exception) -> None:
        """Answer that it failed; if the answer had begun, it was answered or ends in its middle."""
        problem = None if self._is_whole else problem_of(exc)  # what raises after the answer has said why
        if self._status is None and problem is not None:
            await problem.response(self._scope["path"])(self._scope, self.receive, self.send)
        elif problem is not None:
            raise exc

    def say(self) -> None:
        """Log it."""
        route = getattr(self._scope.get("route"), "path", "other")
        facts = {"method": self._scope["method"], "route": route, "status": self._status}
        _log.info("request.answered", extra={**facts, "ms": round((time.monotonic() - self._began) * 1000, 1)})


def _nothing() -> None:
    pass
