"""How much a client may ask for, in bytes, in requests and in time; and the reading of what it sends within that.

Hides rates, the memory that bodies take together, and clients that are slow. Each refusal says what the limit is.

Who calls is known before a body is read, but under ``/v4`` and ``/v5``, where the body itself says so. There it is
looked for in the first bytes; whoever is not known by them has to do with a share of the memory, and with less time,
and goes first where places are short. Of what there is, nobody is given more than is then left for others.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
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
_PART_BYTES: Final = 300
_NEXT_BYTES: Final = 200
"""What a list or an object of JSON takes when it is read, and each comma: the most that was measured of objects with
one member, with nine, and with a million that are each called otherwise. Two bytes are enough to send one."""
_QUOTES: Final = 100_000
"""Up to so many strings are taken out before commas are counted, in some 0.1 s at most."""
_STRANGERS: Final = "strangers"
PLACE: Final = "holdfast.place"
"""Where in the scope of a request its `Place` is."""

_strings: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server allows.

    Of what is marked with (*), one owner is given no more than is then left for others: alone, that is half of it.

    Attributes:
        body_bytes: Of one body that is JSON: a batch of 64 MiB and its form.
        file_bytes: Of one file.
        memory_bytes: Of all bodies that are in memory at once, and of what they are made into (*); at least four times
            ``body_bytes``.
        strangers_bytes: Besides, of those of which nobody knows yet whose they are.
        strangers_made_bytes: Of what such a body is made into, to find out who sends it.
        requests: How many are answered at once (*); those whose caller nobody knows yet count as one owner's, of whom
            the one that is sent for longest ends for the next one.
        uploads: How many files are taken at once (*).
        followers: How many follow events at once (*).
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
        reopen_s: Seconds after which a Pod is opened again for its followers that was closed as others needed room.
        grace_s: Seconds that what was asked is waited for when the server ends.
    """

    body_bytes: int = 96 * 2**20
    file_bytes: int = 16 * 2**30
    memory_bytes: int = 512 * 2**20
    strangers_bytes: int = 128 * 2**20
    strangers_made_bytes: int = 4 * 2**20
    requests: int = 1_000
    uploads: int = 128
    followers: int = 256
    requests_per_s: float = 2_000
    denials_per_min: float = 20
    connections: int = 2_000
    header_s: float = 10
    idle_s: float = 30
    bytes_per_s: float = 1_024
    body_s: float = 900
    strangers_s: float = 120
    reopen_s: float = 30
    grace_s: float = 5


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
            headers = {"Retry-After": str(math.ceil(wait_s))}
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, UnavailableError(message, **facts), headers)


class Places:
    """At most so many at once; who finds no place is told so, and does not wait.

    Places that are taken for an owner are never more than those that are left: many who each take what they can still
    leave one for who comes new.
    """

    def __init__(self, count: int, what: str) -> None:
        self._free, self._count, self._what = count, count, what
        self._taken: Counter[str] = Counter()

    @property
    def is_short(self) -> bool:
        """Whether at most half are left."""
        return self._free * 2 <= self._count

    def take(self, count: int = 1, owner: str = "") -> None:
        """Take places; without an owner as many as there are.

        Raises:
            Refused: There are too few left.
        """
        if count + self._taken[owner] > self._free:
            message = f"the server has no room for this now: at most {self._count:,} {self._what} at once"
            message += ", and for one owner no more than are left; try again" if owner else "; try again"
            headers = {"Retry-After": str(RETRY_S)}
            error = UnavailableError(message, limit=self._count)
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, error, headers)
        self._free -= count
        if owner:
            self._taken[owner] += count

    def give(self, count: int = 1, owner: str = "") -> None:
        """Give them back."""
        self._free += count
        if owner:
            self._taken[owner] -= count
            if not self._taken[owner]:
                del self._taken[owner]


class Place:
    """The place of one request, nobody's until it is known who calls; for the task that answers.

    Raises:
        Refused: There is none.
    """

    def __init__(self, places: Places) -> None:
        places.take()
        self._places, self._owner = places, ""
        self._task = asyncio.current_task()

    def pass_to(self, owner: str) -> None:
        """Count as an owner's from now on; "": as nobody's.

        Raises:
            Refused: The owner has too many. It is nobody's then.
        """
        self.give()
        try:
            self._places.take(1, owner)
        except Refused:
            self._places.take()
            owner = ""
            raise
        finally:
            self._owner = owner

    def end(self) -> None:
        """End the request: it is told to come again."""
        self.pass_to("")
        if self._task is not None:
            self._task.cancel()

    def give(self) -> None:
        """Give it back."""
        self._places.give(1, self._owner)


class Intake:
    """Reads bodies, within the limits."""

    def __init__(self, limits: Limits, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.uploads = Places(limits.uploads, "files are taken")
        memory_bytes = max(limits.memory_bytes, 4 * limits.body_bytes)
        self._max_made_bytes = memory_bytes // 2  # no owner is given more
        self._memory = Places(memory_bytes, "bytes of requests are read")
        self._strangers = Places(limits.strangers_bytes, "bytes of requests are read for who is not known")
        self._reading: dict[Place, None] = {}
        """Of those who are not known, and send; who does so for longest is the first."""
        self._monotonic = monotonic

    @asynccontextmanager
    async def body(
        self,
        request: Request,
        *,
        owner: str,
        max_bytes: int | None = None,
        is_known: Callable[[bytes], bool] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Yield the whole body, which is JSON; what it takes of the memory is given back with the block.

        Args:
            request: Whose.
            owner: Of the Pod that it is for.
            max_bytes: How long it may be.
            is_known: Says by the first bytes, some 64 KiB, whether somebody sends it who may; asked once, if there are
                more. None: it is known, and there is `room` for it.

        Raises:
            Refused: It is too large, too slow, compressed, or there is no room for it now.
            InvalidError: As `room`.
            ClientDisconnect: The client has gone.
        """
        taken = 0
        parts = bytearray()
        memory: Places | None = None
        began, max_s = self._monotonic(), self.limits.body_s
        place: Place = request.scope[PLACE]
        if is_known is not None:
            self._seat(place)
        try:
            async for part in self.parts(request, max_bytes=max_bytes or self.limits.body_bytes, max_s=max_s):
                parts += part
                if len(parts) > _FREE_BYTES:
                    if memory is None:
                        may = is_known is None or is_known(bytes(parts[:_FREE_BYTES]))
                        memory = self._memory if may else self._strangers
                        owner = owner if may else ""
                    memory.take(len(parts) - taken, owner)
                    taken = len(parts)
                if memory is self._strangers and self._monotonic() > began + self.limits.strangers_s:
                    raise self._too_slow(self.limits.strangers_s)
            self._reading.pop(place, None)
            if is_known is not None:
                yield bytes(parts)
            else:
                with self.room(parts, owner):
                    yield bytes(parts)
        finally:
            self._reading.pop(place, None)
            if memory is not None:
                memory.give(taken, owner)

    @contextmanager
    def room(self, text: bytes | bytearray, owner: str) -> Generator[None]:
        """Have the memory for what a body is made into.

        Raises:
            Refused: There is not enough now.
            InvalidError: There never is.
        """
        size = check_weight(text, self._max_made_bytes - len(text))
        size = 0 if size <= _FREE_BYTES else size
        self._memory.take(size, owner)
        try:
            yield
        finally:
            self._memory.give(size, owner)

    def _seat(self, place: Place) -> None:
        """Have a place for who is not known; the one goes for it who has sent for longest, and not come to the end."""
        try:
            place.pass_to(_STRANGERS)
        except Refused:
            slowest = next(iter(self._reading), None)
            if slowest is None:
                raise
            del self._reading[slowest]
            slowest.end()
            place.pass_to(_STRANGERS)
        self._reading[place] = None

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


def check_weight(text: bytes | bytearray, max_bytes: int, advice: str = "send it in parts") -> int:
    """Return how much memory JSON takes when it is read, besides its text.

    Raises:
        InvalidError: More than it may: it has more lists, objects and members than any batch has.
    """
    size = _weight(text)
    if size > max_bytes and text.count(b'"') <= _QUOTES:  # a comma in a text weighs nothing
        size = _weight(_strings.sub(b"", text))
    if size > max_bytes:
        message = (
            f"the JSON of the body takes {size:,} bytes when it is read: at most {max(0, max_bytes):,} are allowed"
        )
        raise InvalidError(f"{message}, for lists, objects and members; {advice}", bytes=size, max_bytes=max_bytes)
    return size


def _weight(text: bytes | bytearray) -> int:
    return (text.count(b"[") + text.count(b"{")) * _PART_BYTES + text.count(b",") * _NEXT_BYTES
