"""Where requests come in: sockets, TLS, heads of requests that come too slowly, and clients that ask nothing.

Hides uvicorn. It reads a head for as long as the client likes, so the time for that is taken here. It also accepts
whoever comes; here those who ask nothing make room for those who come, so that a crowd of them keeps nobody out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import ssl
import struct
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Final, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from holdfast.errors import HoldfastError, InvalidError, UnavailableError
from holdfast.server.app import Application
from holdfast.server.guarding import ABORT, ENDLESS
from holdfast.server.limits import Limits
from holdfast.server.problems import PROBLEM_TYPE, Refused, problem_of

TERMINATED: Final = 143
"""How a shell names the end by SIGTERM."""
_BACKLOG: Final = 512
_MAX_HEAD_BYTES: Final = 32 * 2**10
_LAST_S: Final = 3
"""For those who are told to come again when the server ends, and for what they leave to clean up."""
_FILES: Final = 2_048
"""What the process may open besides connections: Pods, files, and what was accepted and is not counted yet."""

_log: Final = logging.getLogger(__name__)


def _refusal(status: HTTPStatus, error: HoldfastError) -> bytes:
    """Return an answer to what is no request."""
    document = problem_of(Refused(status, error)).document()
    head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: {PROBLEM_TYPE}\r\nconnection: close\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n%b" % (len(document), document)


_LATE: Final = _refusal(HTTPStatus.REQUEST_TIMEOUT, UnavailableError("the head of the request came too slowly"))
_STRANGE: Final = _refusal(
    HTTPStatus.BAD_REQUEST, InvalidError("what came is no request of HTTP, or its head is too long")
)


class _Protocol(H11Protocol):
    """HTTP/1.1 whose clients have a limited time for the head of a request, and make room while they send none.

    With TLS its handshake is a part of that time: who never shakes hands is a client who asks nothing.
    """

    tls: ClassVar[ssl.SSLContext | None] = None
    header_s: ClassVar = Limits().header_s
    max_connections: ClassVar = Limits().connections
    waiting: ClassVar[dict[_Protocol, None]]
    """The connections of one server that ask nothing now; who does so for longest is the first."""
    _late: asyncio.TimerHandle | None = None
    _early: bytearray | None = None
    """With TLS, before it is known here that hands are shaken: what came after that."""
    _handshake: asyncio.Task[None] | None = None

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.access_log = (
            False  # it has addresses as they are, and keys stand in some; the setting of that name is late
        )

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            idle = next(iter(self.waiting), self)
            idle._stop_waiting()
            idle._abort()
        self._expect_head()
        if self.tls is not None:
            self._early = bytearray()
            self._handshake = self.loop.create_task(self._shake_hands(transport, self.tls))

    async def _shake_hands(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        encrypted = None
        with suppress(OSError):  # it has gone, or speaks something else
            encrypted = await self.loop.start_tls(
                transport, self, tls, server_side=True, ssl_handshake_timeout=self.header_s
            )
        if encrypted is None or transport.is_closing():  # of a connection that is lost meanwhile nobody else may hear
            self.connection_lost(None)
            return
        early, self._early = bytes(self._early or b""), None
        super().connection_made(encrypted)
        if early:  # nothing would mean the end of all that comes
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        if self._early is not None:
            self._early += data
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._late is None and data:
            self._expect_head()

    def handle_events(self) -> None:
        super().handle_events()
        # For who answers, and finds that the client does not read: closing would wait until it has read the rest.
        if self.scope is not None:  # pyright: ignore[reportUnnecessaryComparison] -- it is, before the first request
            cast("dict[str, Any]", self.scope)[ABORT] = self._abort

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] -- as asyncio has it
        """Keep the connection until who has said all is answered; who follows without end and says no more has gone."""
        cycle: Any = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete or cycle.scope.get(ENDLESS):
            return False
        if self.tls is not None:  # it has no half that is closed
            return False
        cycle.keep_alive = False
        return True

    def send_400_response(self, msg: str) -> None:
        del msg  # what is said is a problem document
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_STRANGE)
        self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.waiting[self] = None

    def _abort(self) -> None:
        opened: socket.socket | None = self.transport.get_extra_info("socket")
        if opened is not None:  # what the system still has for the client goes with it
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(self.header_s, self._end)
        self.waiting[self] = None

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self.waiting.pop(self, None)

    def _end(self) -> None:
        is_idle = not self.transport.is_closing() and self.conn.their_state is h11.IDLE
        if is_idle and self._early is None:  # a handshake ends by itself
            self.transport.write(_LATE)
            self.transport.close()


class Server(uvicorn.Server):
    """Answers requests until a signal comes, or `end` is called.

    What was asked is waited for, for as long as the limits say. Then `serve` raises what the signal means:
    KeyboardInterrupt, or SystemExit with `TERMINATED`.

    Args:
        app: What answers.
        limits: How long clients may take.
        certificate: The files of a certificate and its key, for TLS; None: none.

    Raises:
        InvalidError: The certificate and its key cannot be used.
    """

    def __init__(self, app: Application, limits: Limits, *, certificate: tuple[Path, Path] | None = None) -> None:
        tls = None if certificate is None else _tls(*certificate)
        protocol = type("Protocol", (_Protocol,), {"header_s": limits.header_s, "waiting": {}, "tls": tls})
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,  # it would have keys that stand in addresses
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            timeout_keep_alive=max(1, round(limits.header_s)),
            timeout_graceful_shutdown=math.ceil(limits.grace_s) + _LAST_S,
        )
        super().__init__(config)
        self._holdfast, self._protocol, self._limits = app, protocol, limits
        self._is_said_at = -math.inf
        self._is_terminated = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer."""
        await super().serve(sockets)
        if self._is_terminated:
            raise SystemExit(TERMINATED)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, by a signal; SIGTERM is not sent again as others are, for it would end this process on the spot."""
        if sig == signal.SIGTERM:
            self.should_exit = self._is_terminated = True
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        self._protocol.max_connections = _max_connections(self._limits.connections)
        asyncio.get_running_loop().set_exception_handler(self._say)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was asked, and end; who follows events is told so first."""
        self._holdfast.end()
        cutting = asyncio.get_running_loop().call_later(self._limits.grace_s, self._cut)
        await super().shutdown(sockets)
        cutting.cancel()

    def _cut(self) -> None:
        for task in [*self.server_state.tasks]:
            task.cancel()  # it says so to its client

    def end(self) -> None:
        """End, from any thread."""
        self.should_exit = True

    def _say(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what went wrong outside of any request."""
        if not (isinstance(context.get("exception"), OSError) and "socket" in context):
            loop.default_exception_handler(context)
        elif loop.time() > self._is_said_at + 1:  # it comes for each connection that the system has no file for
            self._is_said_at = loop.time()
            _log.warning("connection.refused", extra={"reason": str(context["exception"])})


def _tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as exc:
        raise InvalidError(f"the certificate cannot be used: {exc}") from exc
    return context


def _max_connections(wanted: int) -> int:
    """Let this process open as many files as it wants and may, and return how many of them may be connections."""
    try:
        import resource  # not everywhere
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + _FILES
    if soft != resource.RLIM_INFINITY and soft < most:
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, max(soft - _FILES, soft // 4))


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0: one that is free.

    Raises:
        UnavailableError: The address is taken, or none of this machine.
        InvalidError: It is no address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, OverflowError, UnicodeError) as exc:
        raise InvalidError(f"{host!r}, port {port}, is no address of this machine: {exc}", host=host) from exc
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as exc:
        opened.close()
        message = f"nothing can listen on {host!r}, port {port}: {exc.strerror}"
        raise UnavailableError(message, host=host, port=port) from exc
    return opened
