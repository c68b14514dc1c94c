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
import re
import secrets
import ssl
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

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
    LogPart,
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
_BYTES_PER_S: Final = 1_024
"""What an answer must come with on average, after as long as a server may be silent."""
_MAX_ANSWER_BYTES: Final = 512 * 2**20
_MAX_PROBLEM_BYTES: Final = 2**20
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

_owner_key: Final = re.compile(r"[0-9A-Fa-f]{64}")
_presentable: Final = re.compile(r"[!-~]{1,65536}")

_JSON: Final = "application/json"
_RAW: Final = "application/octet-stream"
_MADE_OF: Final = {"POST": (_JSON, ""), "PUT": (_JSON, ""), "GET": (_RAW, ""), "HEAD": (_RAW,), "DELETE": ("",)}
"""Of which media types an answer is that says yes; other pages, as that of a network's sign-in, are none."""


class Connection:
    """What presents one key to one server; for any number of threads, and over a fork.

    Args:
        url: Where the server is, as in ``https://pod.example``.
        owner_key: Whose Pod.
        database_key: The owner's secret; white space after it, as a file may have it, does not count.
        token: That of a run, instead.
        timeout_s: How long the server may be silent; after that, the body of an answer must go on coming.
        patience_s: For how long a request is tried again.
        max_answer_bytes: How much of an answer is read; the bytes of files are read by whoever asks for them.
        wait: How to pause; and ``monotonic``: seconds that never go back.

    Raises:
        InvalidError: It is no such URL, or no owner's key; or not one of key and token is given; or it has characters
            that no key has. It is not shown.
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
        max_answer_bytes: int = _MAX_ANSWER_BYTES,
        wait: Callable[[float], object] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        _load_httpx()
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
        if _owner_key.fullmatch(owner_key) is None:
            raise InvalidError(f"{shown(owner_key)} is no owner's key: 64 hexadecimal digits are expected")
        presented = (database_key or token or "").rstrip()
        if _presentable.fullmatch(presented) is None:  # what sends it would refuse it, and show it
            message = "the database key or token cannot be sent: it is empty, or has spaces or what is not ASCII in it"
            raise InvalidError(message)
        self.url = str(found).rstrip("/")
        self._address = f"{self.url}/api/{owner_key}"
        self._presented = presented
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._max_answer_bytes = max_answer_bytes
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
                text = self._read(response)
        except HoldfastError as exc:
            return exc, None
        except httpx.HTTPError as exc:
            # Another server than the one that is meant does not become it.
            is_another = isinstance(exc.__cause__ and exc.__cause__.__cause__, ssl.SSLCertVerificationError)
            return self._unreachable(exc), None if is_another else 0.0
        return (text, None) if self._is_yes(method, response) else self._error(response, text)

    def _read(self, response: httpx.Response) -> bytes:
        """Return the body of an answer.

        Raises:
            UnavailableError: It is longer than any that is expected, or comes so slowly that it may never end.
        """
        found = bytearray()
        max_bytes = self._max_answer_bytes if response.is_success else _MAX_PROBLEM_BYTES
        for part in self._parts(response):
            found += part
            if len(found) > max_bytes:
                message = f"the answer of the Pod at {self.url!r} is too long: at most {max_bytes:,} bytes are read"
                raise UnavailableError(message, url=self.url, max_bytes=max_bytes)
        return bytes(found)

    def _parts(self, response: httpx.Response) -> Generator[bytes]:
        """Yield a body as it comes, and count how long it is waited for, not what is done with it meanwhile."""
        waited_s, size = 0.0, 0
        parts = response.iter_raw()  # as it is: nothing was asked for that unfolds into more than was sent
        while True:
            began = self._monotonic()
            part = next(parts, None)
            if part is None:
                return
            waited_s, size = waited_s + self._monotonic() - began, size + len(part)
            if waited_s > self._timeout_s + size / _BYTES_PER_S:
                message = f"the Pod at {self.url!r} answers too slowly: {size:,} bytes came in {waited_s:.0f} s"
                raise UnavailableError(message, url=self.url)
            yield part

    def _is_yes(self, method: str, response: httpx.Response) -> bool:
        """Say whether a Pod answers that it is done; many a page that says so comes from something else."""
        media = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return response.is_success and media in _MADE_OF[method]

    def _unreachable(self, exc: Exception) -> UnavailableError:
        why = str(exc) or type(exc).__name__
        error = UnavailableError(f"the Pod at {self.url!r} cannot be reached: {why}", url=self.url)
        error.__cause__ = exc
        return error

    def _error(self, response: httpx.Response, content: bytes) -> tuple[HoldfastError, float | None]:
        status = response.status_code
        try:
            if response.is_success:
                raise ValueError  # noqa: TRY301 -- whatever it says, it is not what a Pod says
            found: Any = from_json(content)
            kind, detail, facts = _KINDS[found["kind"]], found["detail"], dict(found["facts"])
            if not isinstance(detail, str):
                raise TypeError  # noqa: TRY301 -- as any other form than that of a problem
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
                text = self._read(response)
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc
        if self._is_yes("PUT", response):
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
            length = response.headers.get("Content-Length", "")
            if not self._is_yes("GET", response) or not length.isdecimal():
                with closing(response):
                    text = b"" if response.is_success else self._read(response)
                    raise self._error(response, text)[0]
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc

        def parts() -> Generator[bytes]:
            with closing(response):
                try:
                    yield from self._parts(response)
                except httpx.HTTPError as exc:
                    raise self._unreachable(exc) from exc

        return int(length), parts()


def _load_httpx() -> None:
    """Import it without its command line, which draws: that would be a third of the time, with what it draws with."""
    if "httpx" not in sys.modules:
        sys.modules["httpx._main"] = None  # pyright: ignore[reportArgumentType] -- as import documents it
        try:
            import_module("httpx")
        finally:
            sys.modules.pop("httpx._main", None)


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

    def list_log(self, run: str, after: int = 0) -> list[LogPart]:  # noqa: D102
        return self._ask("list_log", run, after)

    def find_log_end(self, run: str, source: str) -> str:  # noqa: D102
        return self._ask("find_log_end", run, source)

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
        text = self._connection.stream_out(f"/files/{sha256}", chunks)
        try:
            size = from_json(text)["size"]
        except (ValueError, KeyError, TypeError):
            size = None
        if type(size) is not int:
            url = self._connection.url
            raise UnavailableError(
                f"what answers at {url!r} is not a Pod: it took a file, and not as one does", url=url
            )
        return size

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
