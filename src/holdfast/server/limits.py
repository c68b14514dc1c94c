"""How much a client may ask for, in bytes, in requests and in time; and the reading of what it sends within that.

Hides rates, the memory that bodies take together, and clients that are slow. Each refusal says what the limit is.

Who calls is known before a body is read, but under ``/v4`` and ``/v5``, where the body itself says so. There it is
looked for in the first bytes; whoever is not known by them has to do with a share of the memory, and with less time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.requests import ClientDisconnect, Request

from holdfast.errors import InvalidError, UnavailableError
from holdfast.server.problems import RETRY_S, Refused

_FREE_BYTES: Final = 64 * 2**10
"""A body up to this length counts for nothing: so much each connection may have in memory anyway."""
_MAX_KEYS: Final = 10_000
"""How many owners or addresses a rate is remembered for; the ones that were silent for longest are forgotten."""
_BRACKETS: Final = 4_000_000
"""Of lists and objects in a body: each takes some 80 bytes when it is read, and two when it is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server allows.

    Attributes:
        body_bytes: Of one body that is JSON: a batch of 64 MiB and its form.
        file_bytes: Of one file.
        memory_bytes: Of all bodies that are in memory at once.
        strangers_bytes: Besides, of those of which nobody knows yet whose they are.
        requests: How many are answered at once; half of them may be of those of whom nobody knows yet who they are.
        uploads: How many files are taken at once.
        followers: How many follow events at once.
        requests_per_s: Of one owner; twice as many may come at once.
        denials_per_min: Of one address: sign-ins that failed, before the next that fail are told to wait. One that
            does not fail is let in.
        connections: How many are open at once, as far as the system lets the process have them; for another one, the
            one is closed that has asked nothing for longest.
        header_s: Seconds for the head of a request to come.
        idle_s: Seconds for the next part of a body to come, or for a client to take one of an answer.
        bytes_per_s: What a body must come with on average, after the first ``idle_s``.
        body_s: Seconds for the whole of a body that is JSON.
        strangers_s: The same, if nobody knows yet whose it is.
    """

    body_bytes: int = 96 * 2**20
    file_bytes: int = 16 * 2**30
    memory_bytes: int = 512 * 2**20
    strangers_bytes: int = 128 * 2**20
    requests: int = 1_000
    uploads: int = 64
    followers: int = 256
    requests_per_s: float = 2_000
    denials_per_min: float = 20
    connections: int = 2_000
    header_s: float = 10
    idle_s: float = 30
    bytes_per_s: float = 1_024
    body_s: float = 900
    strangers_s: float = 120


class Rate:
    """So many per second for each key, on average; a token bucket.

    Args:
        per_s: How many a second.
        burst: How many at once.
        monotonic: Seconds that never go back.
    """

    def __init__(self, per_s: float, burst: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._monotonic = per_s, burst, monotonic
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: str) -> float:
        """Return after how many seconds there may be another one; 0: now."""
        return max(0.0, (1 - self._now(key)) / self._per_s)

    def take(self, key: str) -> None:
        """Count one."""
        self._left[key] = (self._now(key) - 1, self._monotonic())
        self._left.move_to_end(key)
        if len(self._left) > _MAX_KEYS:
            self._left.popitem(last=False)

    def _now(self, key: str) -> float:
        left, at = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._monotonic() - at) * self._per_s)

    def check(self, key: str, what: str) -> None:
        """Accept one more.

        Raises:
            Refused: There were too many.
        """
        wait_s = self.wait_s(key)
        if wait_s > 0:
            message = f"there are too many {what}: {self._per_s * 60:.0f} a minute are allowed; wait {wait_s:.1f} s"
            facts = {"per_min": self._per_s * 60, "wait_s": wait_s}
            headers = {"Retry-After": str(max(1, round(wait_s)))}
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, UnavailableError(message, **facts), headers)


class Places:
    """At most so many at once; who finds no place is told so, and does not wait."""

    def __init__(self, count: int, what: str) -> None:
        self._free, self._count, self._what = count, count, what

    def take(self, count: int = 1) -> None:
        """Take places.

        Raises:
            Refused: There are too few left.
        """
        if count > self._free:
            message = f"the server has no room for this now: at most {self._count:,} {self._what} at once; try again"
            headers = {"Retry-After": str(RETRY_S)}
            error = UnavailableError(message, limit=self._count)
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, error, headers)
        self._free -= count

    def give(self, count: int = 1) -> None:
        """Give them back."""
        self._free += count


class Intake:
    """Reads bodies, within the limits."""

    def __init__(self, limits: Limits, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.uploads = Places(limits.uploads, "files are taken")
        self._memory = Places(limits.memory_bytes, "bytes of requests are read")
        self._strangers = Places(limits.strangers_bytes, "bytes of requests are read for who is not known")
        self._places = Places(max(1, limits.requests // 2), "requests are read of those who are not known")
        self._monotonic = monotonic

    @asynccontextmanager
    async def body(
        self,
        request: Request,
        *,
        max_bytes: int | None = None,
        is_known: Callable[[bytes], bool] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Yield the whole body, which is JSON; what it takes of the memory is given back with the block.

        Args:
            request: Whose.
            max_bytes: How long it may be.
            is_known: Says by the first bytes, some 64 KiB, whether somebody sends it who may; asked once, if there are
                more. None: it is known.

        Raises:
            Refused: It is too large, too slow, compressed, or there is no room for it now.
            ClientDisconnect: The client has gone.
        """
        taken = 0
        parts = bytearray()
        memory: Places | None = None
        began, max_s = self._monotonic(), self.limits.body_s
        strangers = 0 if is_known is None else 1
        self._places.take(strangers)
        try:
            async for part in self.parts(request, max_bytes=max_bytes or self.limits.body_bytes, max_s=max_s):
                parts += part
                if len(parts) > _FREE_BYTES:
                    if memory is None:
                        may = is_known is None or is_known(bytes(parts[:_FREE_BYTES]))
                        memory = self._memory if may else self._strangers
                    memory.take(len(parts) - taken)
                    taken = len(parts)
                if memory is self._strangers and self._monotonic() > began + self.limits.strangers_s:
                    raise self._too_slow(self.limits.strangers_s)
            self._places.give(strangers)
            strangers = 0
            check_brackets(parts)
            yield bytes(parts)
        finally:
            self._places.give(strangers)
            if memory is not None:
                memory.give(taken)

    async def parts(self, request: Request, *, max_bytes: int, max_s: float = math.inf) -> AsyncIterator[bytes]:
        """Yield the body in the parts in which it comes.

        Raises:
            Refused, ClientDisconnect: As `body` says.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            error = InvalidError(f"a body cannot be encoded as {encoding!r}: send it as it is", encoding=encoding)
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, {"Accept-Encoding": "identity"})
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > max_bytes:
            raise _too_large(max_bytes)
        began, size = self._monotonic(), 0
        while True:
            limits = self.limits
            left_s = began + min(limits.idle_s + size / limits.bytes_per_s, max_s) - self._monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(left_s, limits.idle_s))):
                    message = await request.receive()
            except TimeoutError:
                raise self._too_slow(max_s) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            if size > max_bytes:
                raise _too_large(max_bytes)
            if part:
                yield part
            if not message.get("more_body", False):
                return

    def _too_slow(self, max_s: float) -> Refused:
        limits = self.limits
        facts = {"bytes_per_s": limits.bytes_per_s, "idle_s": limits.idle_s}
        text = f"the body came too slowly: {limits.bytes_per_s:.0f} bytes a second are expected, and a pause of at most"
        text += f" {limits.idle_s:.0f} s"
        if max_s < math.inf:
            text += f"; and all of it in {max_s:.0f} s"
            facts["max_s"] = max_s
        return Refused(HTTPStatus.REQUEST_TIMEOUT, UnavailableError(text, **facts))


def _too_large(max_bytes: int) -> Refused:
    message = f"the body is too large: at most {max_bytes:,} bytes are allowed here"
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, InvalidError(message, max_bytes=max_bytes))


def check_brackets(text: bytes | bytearray) -> None:
    """Accept JSON that does not take much more memory than its text.

    Raises:
        InvalidError: It has more brackets and braces than any batch has.
    """
    found = text.count(b"[") + text.count(b"{")
    if found > _BRACKETS:
        message = f"the JSON of the body has {found:,} brackets: at most {_BRACKETS:,} are allowed"
        raise InvalidError(message, brackets=found, max_brackets=_BRACKETS)
