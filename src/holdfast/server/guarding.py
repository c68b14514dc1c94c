"""What stands around the whole application: every request is answered, in time, once, and is said in the log.

Hides clients that take no answer or send on after it, pages of other sites, requests that the server ends, and what the
application lets through. The log has addresses as the API describes them, ``/api/{owner}/files/{sha256}``: what stands
in their place may be a key.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Collection
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast.errors import DeniedError, UnavailableError
from holdfast.server.limits import PLACE, Limits, Place, Places
from holdfast.server.problems import RETRY_S, Refused, problem_of
from holdfast.values import shown

_log: Final = logging.getLogger(__name__)

ABORT: Final = "holdfast.abort"
"""Where in the scope of a request the function is that drops its connection at once, if there is one."""
ENDLESS: Final = "holdfast.endless"
"""In the scope of a request whose answer has no length that was told."""
_DRAIN_S: Final = 2.0
_DRAIN_BYTES: Final = 256 * 2**20


class Guard:
    """An ASGI application around another one.

    Args:
        app: The application.
        limits: How many requests there may be, and how long a client may take.
        hosts: The names that this server has besides those of the machine itself.
    """

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._limits = limits
        self._hosts = frozenset(map(str.lower, hosts))
        self._places = Places(limits.requests, "requests are answered")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever is none passes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits, self._places)
        try:
            self._check_site(scope)
            place = scope[PLACE] = Place(self._places)
        except Refused as exc:
            await exchange.fail(exc)
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass  # there is nobody to answer
        except asyncio.CancelledError:  # the server goes down, or somebody else has its place
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 -- a server answers in one
            task.uncancel()
            await exchange.fail(_ended())
        except Exception as exc:  # noqa: BLE001 -- the server's problem mapper
            await exchange.fail(exc)
        finally:
            place.give()
            exchange.say()

    def _check_site(self, scope: Scope) -> None:
        """Accept who is no page of another site: a browser lets each of those call this machine, and unasked.

        Raises:
            Refused: It is one; or it calls this machine by a name that may be another's (DNS rebinding).
        """
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        server = scope.get("server")
        is_local = server is not None and _is_here(server[0])
        if host and is_local and not (_is_here(_name_of(host)) or _name_of(host) in self._hosts):
            message = f"this server does not answer to the name {shown(_name_of(host))}: it can be told to"
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, DeniedError(message))
        site = None if origin is None else origin.partition("://")[2]
        is_one = [name for name, _ in scope["headers"]].count(b"origin") < 2
        if site is not None and not (is_one and (site == host or _name_of(site) in self._hosts)):
            _log.warning("access.denied", extra={"operation": "call from a web page", "origin": shown(origin)})
            message = f"pages of {shown(origin)} may not call this server: its own may, and those it is told of"
            raise Refused(HTTPStatus.FORBIDDEN, DeniedError(message))


def _name_of(host: str) -> str:
    """Return the name or the address without the port; "": it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_here(name: str) -> bool:
    """Say whether no other machine has this name or address."""
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _ended() -> Refused:
    error = UnavailableError("the server could not go on with this request: try again")
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, error, {"Retry-After": str(RETRY_S)})


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits, places: Places) -> None:
        self._scope, self._receive, self._send, self._limits, self._places = scope, receive, send, limits, places
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
            names = {name.lower() for name, _ in message.get("headers", ())}
            self._scope[ENDLESS] = b"content-length" not in names
            if not self._is_read:
                await self._drain()
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        elif message["type"] == "http.response.body":
            self._is_whole = not message.get("more_body")
        try:
            async with asyncio.timeout(self._limits.idle_s):
                await self._send(message)
        except TimeoutError:
            await self._drop()
            raise ClientDisconnect from None

    async def _drop(self) -> None:
        self._scope.get(ABORT, _nothing)()
        await asyncio.sleep(0)  # whatever holds the connection hears of it

    async def _drain(self) -> None:
        """Let a client send on for a little, if there is room: many read no answer before they have sent all."""
        left = 0 if self._places.is_short else _DRAIN_BYTES
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
            await self._drop()

    def say(self) -> None:
        """Log it."""
        route = getattr(self._scope.get("route"), "path", "other")
        facts = {"method": self._scope["method"], "route": route, "status": self._status}
        _log.info("request.answered", extra={**facts, "ms": round((time.monotonic() - self._began) * 1000, 1)})


def _nothing() -> None:
    pass
