"""Door: HTTP out. The Pod of one owner on a server, as a store and as what keeps the bytes of files.

Hides requests, retries, and how errors come back as what they were. It knows of no key but the one that it presents.

The failure argument. *The server is killed, or the connection breaks, before or after a commit*: the batch has a key,
and asking again does it once. *The server is away*: it is asked again with growing, random pauses, for `PATIENCE_S`.
*This process forks*: the child opens connections of its own. *This process dies*: nobody waits for the answer, and the
batch is there whole or not.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic_core import from_json

import holdfast.errors
from holdfast.errors import (
    ConflictError,
    DeniedError,
    HoldfastError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from holdfast.interrupts import is_interrupted, uninterrupted
from holdfast.items import Schema
from holdfast.runs import Lease
from holdfast.store import (
    Batch,
    Direction,
    EdgeRow,
    Found,
    ItemRow,
    Query,
    Question,
    RenewLease,
    Result,
    Store,
)
from holdfast.store.wire import METHODS
from holdfast.values import Value, shown

if TYPE_CHECKING:
    import httpx

_log: Final = logging.getLogger(__name__)

PATIENCE_S: Final = 30.0
"""For how long a request is tried again, unless it is told otherwise."""
_FIRST_PATIENCE_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 2.0
_PART_BYTES: Final = 2**20
_IDLE: Final = 8
"""Connections that are kept for the next request."""
_AGAIN: Final = frozenset({429, 502, 503, 504})
"""Answers after which the same request may be answered otherwise."""

_KINDS: Final[Mapping[str, type[HoldfastError]]] = {
    name: kind
    for name, kind in vars(holdfast.errors).items()
    if isinstance(kind, type) and issubclass(kind, HoldfastError)
}
_BY_STATUS: Final[Mapping[int, type[HoldfastError]]] = {
    401: DeniedError,
    403: DeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: InvalidError,
    422: InvalidError,
}
"""What an answer without a problem document means; any other one: UnavailableError."""


class Connection:
    """What presents one key to one server; for any number of threads, and over a fork.

    Args:
        url: Where the server is, as in ``https://pod.example``.
        owner_key: Whose Pod.
        database_key: The owner's secret.
        token: That of a run, instead.
        timeout_s: How long the server may be silent.
        patience_s: For how long a request is tried again.
        wait: How to pause; and ``monotonic``: seconds that never go back.

    Raises:
        InvalidError: It is no such URL; or not one of key and token is given.
    """

    def __init__(
        self,
        url: str,
        owner_key: str,
        *,
        database_key: str | None = None,
        token: str | None = None,
        timeout_s: float = 30.0,
        patience_s: float = PATIENCE_S,
        wait: Callable[[float], object] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        import httpx  # start-up: 100 ms, for those whose Pod is elsewhere

        if (database_key is None) == (token is None):
            raise InvalidError("a Pod on a server is opened by a database key or by a token: one of them is expected")
        try:
            found = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as exc:
            raise InvalidError(f"{shown(url)} is no address of a server: {exc}", url=shown(url)) from exc
        if found.scheme not in ("http", "https") or not found.host or found.userinfo or found.query or found.fragment:
            # It is not shown: what stands before an @ may be secret.
            raise InvalidError("the address of a server is http:// or https:// with its name, and no more than a path")
        self.url = str(found).rstrip("/")
        self._address = f"{self.url}/api/{owner_key}"
        self._presented = database_key or token or ""
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._wait, self._monotonic = wait, monotonic
        self._is_closed = False
        self._lock = threading.Lock()
        self._transport: tuple[int, httpx.HTTPTransport] | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.url!r}>"

    def _request(self, method: str, path: str, content: bytes | Iterator[bytes] | None) -> httpx.Response:
        """Return the answer of a server, its body still to be read.

        Not by httpx's client, which tells each address to the log, and asks proxies for what is on this machine.
        """
        import httpx  # as above

        headers = {"Authorization": f"Bearer {self._presented}", "Accept-Encoding": "identity"}
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)
        request = httpx.Request(
            method, self._address + path, headers=headers, content=content, extensions={"timeout": timeout}
        )
        return self._opened().handle_request(request)

    def _opened(self) -> httpx.HTTPTransport:
        """Return the connections of this process: a parent's must be neither used nor closed."""
        if self._is_closed:
            raise UnavailableError(f"the Pod at {self.url!r} was closed", url=self.url)
        import httpx  # as above

        pid = os.getpid()
        if self._transport is None or self._transport[0] != pid:
            if self._transport is not None:  # a child: another thread of the parent may have had the lock
                _inherited.append(self._transport)
                self._transport, self._lock = None, threading.Lock()
            with self._lock:
                if self._transport is None:
                    limits = httpx.Limits(max_connections=None, max_keepalive_connections=_IDLE)
                    # Certificates are read for TLS alone, for that takes a while.
                    verify = self.url.startswith("https:")
                    self._transport = (pid, httpx.HTTPTransport(verify=verify, limits=limits))
        return self._transport[1]

    def close(self) -> None:
        """Close its connections; twice is harmless."""
        self._is_closed = True
        transport, self._transport = self._transport, None
        if transport is not None and transport[0] == os.getpid():
            transport[1].close()

    def send(self, method: str, path: str, content: bytes | None = None, *, patience_s: float | None = None) -> bytes:
        """Ask, if need be again and again, and return the answer.

        Raises:
            HoldfastError: What the server says; or UnavailableError, if it did not answer for as long as was waited.
        """
        until = self._monotonic() + (self._patience_s if patience_s is None else patience_s)
        pause_s = _FIRST_PAUSE_S
        while True:
            error, after_s = self._try(method, path, content)
            if not isinstance(error, HoldfastError):
                return error
            left_s = until - self._monotonic()
            if after_s is None or left_s <= 0 or is_interrupted():
                raise error
            _log.info("pod.asked_again", extra={"url": self.url, "reason": error.message})
            self._wait(min(max(after_s, random.uniform(0, pause_s)), left_s))  # noqa: S311 -- it is no secret
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _try(self, method: str, path: str, content: bytes | None) -> tuple[bytes | HoldfastError, float | None]:
        """Return the answer, or an error and after how many seconds to ask again at the earliest; None: not at all."""
        import httpx  # as above

        try:
            with uninterrupted(), closing(self._request(method, path, content)) as response:
                text = response.read()
        except httpx.HTTPError as exc:
            # Another server than the one that is meant does not become it.
            is_another = isinstance(exc.__cause__ and exc.__cause__.__cause__, ssl.SSLCertVerificationError)
            return self._unreachable(exc), None if is_another else 0.0
        return (text, None) if response.is_success else self._error(response, text)

    def _unreachable(self, exc: Exception) -> UnavailableError:
        why = str(exc) or type(exc).__name__
        error = UnavailableError(f"the Pod at {self.url!r} cannot be reached: {why}", url=self.url)
        error.__cause__ = exc
        return error

    def _error(self, response: httpx.Response, content: bytes) -> tuple[HoldfastError, float | None]:
        status = response.status_code
        try:
            found: Any = from_json(content)
            kind, detail, facts = _KINDS[found["kind"]], found["detail"], dict(found["facts"])
            error = kind(detail)
            error.facts = facts
        except (ValueError, KeyError, TypeError):
            kind = _BY_STATUS.get(status, UnavailableError)
            message = (
                f"what answers at {self.url!r} is not a Pod, or is in front of it: {status} {response.reason_phrase}"
            )
            error = kind(message, url=self.url, status=status)
        may_be_asked_again = status in _AGAIN and type(error) is UnavailableError
        after = response.headers.get("Retry-After", "")
        return error, (float(after) if after.isdecimal() else 0.0) if may_be_asked_again else None

    def stream_out(self, path: str, parts: Iterator[bytes]) -> bytes:
        """Send parts once: they cannot be had again.

        Raises:
            HoldfastError: As `send`.
        """
        import httpx  # as above

        try:
            with closing(self._request("PUT", path, parts)) as response:
                text = response.read()
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc
        if response.is_success:
            return text
        raise self._error(response, text)[0]

    def stream_in(self, path: str) -> tuple[int, Generator[bytes]]:
        """Return how many bytes come, and a generator of them.

        Raises:
            HoldfastError: As `send`; the generator raises UnavailableError if they do not come to their end.
        """
        import httpx  # as above

        try:
            response = self._request("GET", path, None)
            if not response.is_success:
                with closing(response):
                    raise self._error(response, response.read())[0]
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc

        def parts() -> Generator[bytes]:
            with closing(response):
                try:
                    yield from response.iter_bytes(_PART_BYTES)
                except httpx.HTTPError as exc:
                    raise self._unreachable(exc) from exc

        return int(response.headers["Content-Length"]), parts()


_inherited: Final[list[object]] = []
"""Connections that a child must not close: closing says good-bye to the server on behalf of the parent."""


class RemoteStore(Store):
    """A `holdfast.store.Store` on a server.

    A batch without a key is given one, so that it may be asked for again; a renewal needs none.

    Args:
        connection: What reaches the server; closed with this.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _ask(self, name: str, *args: Any, **named: Any) -> Any:
        method = METHODS[name]
        text = method.dump_arguments(*args, **named)
        return method.load_answer(self._connection.send("POST", f"/store/{method.word}", text))

    def apply(self, batch: Batch) -> tuple[Result, ...]:  # noqa: D102 -- what a method of a store promises is said at `Store`
        if batch.key is None and [*map(type, batch.operations)] != [RenewLease]:
            batch = replace(batch, key=secrets.token_urlsafe(24))
        return self._ask("apply", batch)

    def schema(self) -> Schema:  # noqa: D102
        return self._ask("schema")

    def find_items(self, ids: Sequence[str]) -> Mapping[str, ItemRow]:  # noqa: D102
        return self._ask("find_items", ids)

    def search(self, query: Query) -> list[Found]:  # noqa: D102
        return self._ask("search", query)

    def list_edges(  # noqa: D102
        self, ids: Sequence[str], direction: Direction, *, with_deleted: bool = False
    ) -> Mapping[str, list[EdgeRow]]:
        return self._ask("list_edges", ids, direction, with_deleted=with_deleted)

    def list_variables(self, state: str, namespace: str = "") -> Mapping[str, Value]:  # noqa: D102
        return self._ask("list_variables", state, namespace)

    def find_lease(self, state: str) -> Lease | None:  # noqa: D102
        return self._ask("find_lease", state)

    def find_snapshot(self, state: str) -> str | None:  # noqa: D102
        return self._ask("find_snapshot", state)

    def list_questions(self, state: str) -> list[Question]:  # noqa: D102
        return self._ask("list_questions", state)

    def now_ms(self) -> int:  # noqa: D102
        return self._ask("now_ms")

    def close(self) -> None:  # noqa: D102
        self._connection.close()


class RemoteFiles:
    """What keeps the bytes of files (see `holdfast.pod.files.Files`) on a server.

    Args:
        connection: What reaches the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, sha256: str, chunks: Iterator[bytes]) -> int:  # noqa: D102 -- as `Files`, like all below
        return cast("int", from_json(self._connection.stream_out(f"/files/{sha256}", chunks))["size"])

    def open(self, sha256: str) -> tuple[int, Generator[bytes]]:  # noqa: D102
        return self._connection.stream_in(f"/files/{sha256}")

    def exists(self, sha256: str) -> bool:  # noqa: D102
        try:
            self._connection.send("HEAD", f"/files/{sha256}")
        except NotFoundError:
            return False
        return True

    def delete(self, sha256: str, *, is_needed: Callable[[], bool]) -> None:  # noqa: D102
        del is_needed  # the server looks itself, at the moment at which it matters
        self._connection.send("DELETE", f"/files/{sha256}")


def make_pod(connection: Connection) -> None:
    """Make the owner's Pod on the server; nothing happens if it is there and the key opens it.

    Whoever begins with this hears soon that the address is wrong.
    """
    connection.send("PUT", "", patience_s=_FIRST_PATIENCE_S)
