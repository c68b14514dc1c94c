"""Who calls: the owner, with the database key, or a run, with its token; and what each of them then has.

Hides how keys and tokens are told apart and checked, and in which threads what is asked is done: renewals, reads,
writes and files have threads of their own, so that no kind keeps another waiting.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from holdfast.auth import Permitted, Token, unseal
from holdfast.auth.tokens import PREFIX
from holdfast.errors import DeniedError
from holdfast.server.limits import PLACE, Limits, Place, Rate
from holdfast.server.pods import OpenPod, OpenPods, Use
from holdfast.server.problems import Refused
from holdfast.store import RenewLease, Store
from holdfast.store.wire import Method

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)

_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
_DENIALS: Final = "sign-ins that failed"
READ_HERE_BYTES: Final = 64 * 2**10
"""A body up to this length is understood in less time than it takes to find a thread for it."""
_QUICK: Final = frozenset({"find_lease", "now_ms"})
"""Reads that a run depends on to keep its plugin state."""


@dataclass(frozen=True)
class Threads:
    """How many threads do what at once; who finds none free waits without one."""

    renewing: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 16))
    parsing: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 2))
    reading: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 16))
    writing: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 64))
    filing: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 8))
    opening: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 4))
    doubting: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 1))
    """For the keys that come from where many were wrong."""

    async def run(self, limiter: CapacityLimiter, work: Callable[..., T], *args: Any) -> T:
        """Do ``work`` in one of these threads."""
        return await to_thread.run_sync(work, *args, limiter=limiter)


@dataclass(frozen=True)
class Session:
    """A request whose caller is known.

    Attributes:
        owner: Whose Pod.
        token: Of the run that calls; None: the owner does.
        pod: The Pod; for what a token gives no right to, such as files, ask first.
        store: What the caller may have of it.
        threads: Where to work: no method of a store may be called in the server's own thread.
    """

    owner: str
    token: Token | None
    pod: OpenPod
    store: Store
    threads: Threads
    _renewals: Store = field(repr=False)

    def require_owner(self, what: str) -> None:
        """Accept the owner.

        Raises:
            DeniedError: A run calls.
        """
        if self.token is not None:
            exc = DeniedError(f"{what} is for the owner: a token gives no right to it", run=self.token.run)
            raise _said(exc, what, self.token)

    def check_write(self, type_: str) -> None:
        """Accept the owner, and a run that may write items of this type now; for a thread.

        Raises:
            DeniedError, FencedError: As `Permitted.check_write` says.
        """
        if isinstance(self.store, Permitted):
            self.store.check_write(type_)

    async def answer(self, method: Method, text: bytes) -> bytes:
        """Return the JSON form of what a method of the store answers to these arguments, in their JSON form."""
        # Not where reads are done: those that take long must not keep writes and renewals from being understood.
        if len(text) <= READ_HERE_BYTES:
            arguments = method.load_arguments(text)
        else:
            arguments = await self.threads.run(self.threads.parsing, method.load_arguments, text)
        store, limiter = self.store, self.threads.reading
        if method.name == "apply":
            is_renewal = [*map(type, arguments["batch"].operations)] == [RenewLease]
            store = self._renewals if is_renewal else self.store
            limiter = self.threads.renewing if is_renewal else self.threads.writing
        elif method.name in _QUICK:
            limiter = self.threads.renewing

        def work() -> bytes:
            return method.dump_answer(getattr(store, method.name)(**arguments))

        return await self.threads.run(limiter, work)

    async def read(self, work: Callable[..., T], *args: Any) -> T:
        """Do what only reads."""
        return await self.threads.run(self.threads.reading, work, *args)

    async def write(self, work: Callable[..., T], *args: Any) -> T:
        """Do what writes, or does both."""
        return await self.threads.run(self.threads.writing, work, *args)

    async def file(self, work: Callable[..., T], *args: Any) -> T:
        """Do what moves the bytes of files."""
        return await self.threads.run(self.threads.filing, work, *args)


class Entrance:
    """Where callers say who they are.

    Args:
        pods: The Pods.
        limits: How much is allowed.
        threads: Where work is done.
    """

    def __init__(self, pods: OpenPods, limits: Limits, threads: Threads | None = None) -> None:
        self.pods = pods
        self.threads = threads or Threads()
        self._requests = Rate(limits.requests_per_s, 2 * limits.requests_per_s)
        self._denials = Rate(limits.denials_per_min / 60, limits.denials_per_min)

    @asynccontextmanager
    async def session(self, request: Request, owner: str, presented: str) -> AsyncGenerator[Session]:
        """Yield the session of a caller who presents a database key, 64 hexadecimal digits, or a token.

        Raises:
            Refused: What is presented opens nothing here: 401, or 429 if much of what came from there did not. Or the
                owner asks for too much (429).
            UnavailableError: The Pod cannot be opened now, or not before its owner has called.
        """
        token, use = await self._admitted(address_of(request), owner, presented)
        with use:
            self._requests.check(owner, "requests")
            self._requests.take(owner)
            place: Place = request.scope[PLACE]
            place.pass_to(owner)
            pod = use.pod
            stores = (pod.store, pod.renewals)
            if token is not None:
                stores = (Permitted(pod.store, token), Permitted(pod.renewals, token))
            yield Session(owner, token, pod, stores[0], self.threads, stores[1])

    async def create(self, request: Request, owner: str, database_key: str) -> None:
        """Make the Pod of an owner; nothing happens if it is there and this key opens it.

        Raises:
            Refused, InvalidError, UnavailableError: As `session` and `Opener.create` say.
        """
        await self._trying(address_of(request), partial(self.pods.create, owner, database_key))

    def knows(self, owner: str, presented: str) -> bool:
        """Say whether a session would be had for this, as far as that can be said at once: False as well if not."""
        opener = self.pods.opener
        if presented.startswith(PREFIX):
            try:
                return unseal(presented, opener.pod_key, opener.now_ms()).owner == owner
            except DeniedError:
                return False
        use = self.pods.find(owner, presented)
        if use is not None:
            use.end()
        return use is not None

    async def _admitted(self, address: str, owner: str, presented: str) -> tuple[Token | None, Use]:
        opener = self.pods.opener
        if presented.startswith(PREFIX):
            try:
                token = unseal(presented, opener.pod_key, opener.now_ms())
            except DeniedError as exc:
                raise self._denied(address, exc) from exc
            if token.owner != owner:
                raise self._denied(address, DeniedError("the token is another owner's", run=token.run), token)
            use = self.pods.find(owner, None)
            return token, use or await self.threads.run(self.threads.opening, self.pods.open, owner, None)
        use = self.pods.find(owner, presented)
        return None, use or await self._trying(address, partial(self.pods.open, owner, presented))

    async def _trying(self, address: str, work: Callable[[], T]) -> T:
        # Looked at in any case: who shares an address with somebody that guesses is not kept out. But guesses share
        # one thread among them, so that they keep nobody waiting who comes from elsewhere, or has a token.
        is_doubted = self._denials.wait_s(address) > 0
        try:
            return await self.threads.run(self.threads.doubting if is_doubted else self.threads.opening, work)
        except DeniedError as exc:
            raise self._denied(address, exc) from exc

    def _denied(self, address: str, exc: DeniedError, token: Token | None = None) -> Refused:
        _said(exc, "sign in", token, address=address)
        self._denials.check(address, _DENIALS)
        self._denials.take(address)
        return Refused(HTTPStatus.UNAUTHORIZED, exc, _CHALLENGE)


def bearer(request: Request) -> str:
    """Return what the caller presents in the header ``Authorization: Bearer …``.

    Raises:
        Refused: There is none.
    """
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        message = "who calls is not said: the header 'Authorization: Bearer' with a database key or a token is expected"
        raise Refused(HTTPStatus.UNAUTHORIZED, DeniedError(message), _CHALLENGE)
    return presented.strip()


def address_of(request: Request) -> str:
    """Return where a request comes from; that of a proxy, if there is one between."""
    return "" if request.client is None else request.client.host


def _said(exc: DeniedError, operation: str, token: Token | None, type_: str | None = None, **facts: str) -> DeniedError:
    """Log a denial as `Permitted` does, which hears of none of these; what a stranger calls an owner may be a key."""
    names = ("owner", "state", "run")
    who = {name: None if token is None else getattr(token, name) for name in names}
    _log.warning("access.denied", extra={**who, "operation": operation, "type": type_, **facts})
    return exc
