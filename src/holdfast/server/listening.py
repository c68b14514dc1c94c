"""Where requests come in: sockets, TLS, and heads of requests that come too slowly.

Hides uvicorn. It reads a head for as long as the client likes, so the time for that is taken here.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any, Final, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from holdfast.errors import InvalidError, UnavailableError
from holdfast.server.app import Application
from holdfast.server.guarding import ABORT
from holdfast.server.limits import Limits

_LATE: Final = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    b"content-length: 39\r\n\r\nthe head of the request came too slowly"
)
_BACKLOG: Final = 512
_MAX_HEAD_BYTES: Final = 32 * 2**10
_GRACE_S: Final = 5


class _Protocol(H11Protocol):
    """HTTP/1.1 whose clients have a limited time for the head of a request."""

    header_s = Limits().header_s
    _late: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.access_log = (
            False  # it has addresses as they are, and keys stand in some; the setting of that name is late
        )

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
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

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.transport.write(_LATE)
            self.transport.close()


class Server(uvicorn.Server):
    """Answers requests until a signal comes, or `end` is called.

    Args:
        app: What answers.
        limits: How long clients may take.
        certificate: The files of a certificate and its key, for TLS; None: none.

    Raises:
        InvalidError: The certificate and its key cannot be used.
    """

    def __init__(self, app: Application, limits: Limits, *, certificate: tuple[Path, Path] | None = None) -> None:
        protocol = type("Protocol", (_Protocol,), {"header_s": limits.header_s})
        tls: dict[str, Any] = {}
        if certificate is not None:
            tls = {"ssl_certfile": str(certificate[0]), "ssl_keyfile": str(certificate[1])}
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
            timeout_graceful_shutdown=_GRACE_S,
            **tls,
        )
        try:
            config.load()
        except (OSError, ValueError) as exc:
            raise InvalidError(f"the certificate cannot be used: {exc}") from exc
        super().__init__(config)
        self._holdfast = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was asked, and end; who follows events is told so first."""
        self._holdfast.end()
        await super().shutdown(sockets)

    def end(self) -> None:
        """End, from any thread."""
        self.should_exit = True


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
