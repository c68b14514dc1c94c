"""Web middleware: each request of a WSGI or ASGI application is one cycle, with its plugins set up before it.

Hides how `current` follows a request to wherever it is handled: into a body that the server iterates later, into tasks
and streams, and out of the thread where plugins were set up. Knows no framework and reads nothing of a request; what
a session is, the application says.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, MutableMapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from queue import SimpleQueue
from typing import Any, Final, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from holdfast.context import Context

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAX_THREADS: Final = 32
"""How many requests of an ASGI application may be in the code of plugins at once; the others wait, and block nobody."""

_END: Final = cast("bytes", object())


class WSGIMiddleware:
    """Sets plugins up before each request of a WSGI application, which finds in `current` what they found.

    All that the application does for one request sees the same `current`, whichever thread does it: the call, each
    step of what it returns, and the ``close()`` of that. So it is with what a plugin's setup() puts into other context
    variables. In between, and if a body is never closed, nobody sees anything of it. A list, a tuple and a
    ``wsgi.file_wrapper`` are handed to the server as they are.

    What the application, ``session`` or `Context.cycle` raises goes to the server unchanged.

    Args:
        app: The application.
        context: Whose plugins, settings, variables and log these are.
        session: Returns the session of the request with this environ; called once, before plugins are set up. None,
            given or returned: `current` has no session.
    """

    def __init__(
        self, app: WSGIApplication, context: Context, *, session: Callable[[WSGIEnvironment], object] | None = None
    ) -> None:
        self._app, self._context, self._session = app, context, session

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Handle one request."""
        cycle = copy_context().run(_begin, self._context, self._session, environ)
        with cycle.entered():
            body = self._app(environ, start_response)
        wrapper = environ.get("wsgi.file_wrapper")
        # They run no code of the application, and servers look for them: to say how long the body is, and for sendfile.
        if type(body) in (list, tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper)):
            return body
        return _Body(body, cycle)


class _Body:
    """What an application has returned; it is iterated and closed in the application's cycle."""

    def __init__(self, body: Iterable[bytes], cycle: _Cycle) -> None:
        self._body, self._cycle = body, cycle

    def __iter__(self) -> Iterator[bytes]:
        with self._cycle.entered():
            steps = iter(self._body)

        def step() -> bytes:
            with self._cycle.entered():
                return next(steps, _END)

        return iter(step, _END)

    def close(self) -> None:
        close: Callable[[], object] | None = getattr(self._body, "close", None)
        if close is not None:
            with self._cycle.entered():
                close()


class ASGIMiddleware:
    """Sets plugins up before each request and each WebSocket of an ASGI application, on asyncio.

    Plugins are set up in a thread, so that the event loop goes on while one loads, or hangs; nor does such a thread
    keep the process from ending. The application is then called in the task that the server made, and `current` is in
    it until the application returns, as in the tasks and threads that it starts: streams and background tasks see it.
    So it is with what a plugin's setup() puts into other context variables. Whatever is neither ``http`` nor
    ``websocket``, such as ``lifespan``, passes without a cycle.

    What the application, ``session`` or `Context.cycle` raises goes to the server unchanged, but for StopIteration,
    which no coroutine can raise: that becomes a RuntimeError. A request that is cancelled while plugins are set up does
    not reach the application; they are set up nevertheless.

    Args:
        app: The application.
        context: Whose plugins, settings, variables and log these are.
        session: Returns the session of the request with this scope; called once, in the thread, before plugins are
            set up. None, given or returned: `current` has no session.
    """

    def __init__(
        self, app: ASGIApplication, context: Context, *, session: Callable[[Scope], object] | None = None
    ) -> None:
        self._app, self._context, self._session = app, context, session
        self._threads = _Threads()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, one WebSocket, or something else."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        here = copy_context()
        cycle = await self._threads.run(lambda: here.run(_begin, self._context, self._session, scope))
        # In the server's own task: in another one, a cancellation from outside would not respect what shields itself.
        with cycle.entered():
            await self._app(scope, receive, send)


class _Cycle:
    """What the cycle of one request has put into context variables, to be there wherever the request is handled.

    The cycle itself is over by then: whoever forgets to close a body keeps nothing open. Contexts are not swapped as a
    whole: frameworks, and what is around the middleware, have variables of their own that are none of its business.
    """

    def __init__(self, values: dict[ContextVar[Any], Any]) -> None:
        self._values = values

    @contextmanager
    def entered(self) -> Generator[None]:
        """Set the variables for the block; what becomes of them in there is remembered for the next one."""
        tokens = [(variable, variable.set(value)) for variable, value in self._values.items()]
        try:
            yield
        finally:
            for variable, token in tokens:
                self._values[variable] = variable.get()
                variable.reset(token)


def _begin(context: Context, session: Callable[[Any], object] | None, request: object) -> _Cycle:
    """Set the plugins up; to be called in a copy of the context."""
    before = copy_context()
    with context.cycle(session=None if session is None else session(request)):
        after = copy_context()
    return _Cycle({each: value for each, value in after.items() if each not in before or before[each] is not value})


_Outcome = _Cycle | BaseException
"""What a call has returned or raised. A future of asyncio takes no StopIteration, and nobody would be told."""
_Calls = SimpleQueue[tuple[Future[_Outcome], Callable[[], _Cycle]] | None]


class _Threads:
    """A few threads for code that may hang: unlike those of an executor, they keep no process from ending."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._calls: _Calls = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0
        weakref.finalize(self, self._calls.put, None)

    async def run(self, call: Callable[[], _Cycle]) -> _Cycle:
        """Return what ``call`` returns, or raise what it raises."""
        if self._pid != os.getpid():
            self._begin()  # the threads are those of the process that this one was forked from
        future: Future[_Outcome] = Future()
        self._calls.put((future, call))
        if not self._idle.acquire(blocking=False) and self._count < _MAX_THREADS:
            self._count += 1
            name = f"holdfast: cycles {self._count}"
            threading.Thread(target=_work, args=(self._calls, self._idle), name=name, daemon=True).start()
        outcome = await asyncio.wrap_future(future)
        if not isinstance(outcome, BaseException):
            return outcome
        try:
            raise outcome
        finally:
            del outcome, future  # else the traceback, which leads here, would keep itself and the request


def _work(calls: _Calls, idle: threading.Semaphore) -> None:
    """Do one call after the other, until there is a None."""
    while (given := calls.get()) is not None:
        future, call = given
        if future.set_running_or_notify_cancel():  # else the request was cancelled before its turn
            try:
                future.set_result(call())
            except BaseException as exc:  # noqa: BLE001 -- it is raised where the outcome is awaited
                future.set_result(exc)
        del given, future, call  # what belongs to a request does not wait for the next one
        idle.release()
    calls.put(None)  # for the next thread
