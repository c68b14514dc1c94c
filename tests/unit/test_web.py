"""Each request of a web application is one cycle: it finds its own session and what plugins set, wherever it goes."""

import asyncio
import gc
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import ContextVar, copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest

from holdfast.context import Context
from holdfast.plugins.current import current
from holdfast.web import ASGIMiddleware, WSGIMiddleware

GREETS = "from holdfast import current\ndef setup():\n    current.settings.greeting = 'Hello'\n"
COUNTS = """
from holdfast import current
def setup():
    current.session["visits"] = current.session.get("visits", 0) + 1
"""
SPEAKS = "from holdfast import current\ndef setup():\n    current.settings.language.set('fr')\n"
WAITS = """
from holdfast import current
def setup():
    if not current.settings.done:
        current.settings.begun.set()
        assert current.settings.gate.wait(60)
        current.settings.done.append(True)
"""

Write = Callable[..., None]


@pytest.fixture
def write(home: Path) -> Write:
    """Return what writes plugins."""
    folder = home / "plugins"
    folder.mkdir(parents=True)

    def write(**plugins: str) -> None:
        for name, code in plugins.items():
            (folder / f"{name}.py").write_text(code)

    return write


@pytest.fixture
def context(home: Path) -> Iterator[Context]:
    """An application whose settings are an object of this test."""
    with closing(Context(home, deployment_settings=SimpleNamespace())) as made:
        yield made


def session_here() -> Any:
    """Return what `current` has as the session, or None."""
    return getattr(current, "session", None)


# -- WSGI -------------------------------------------------------------------------------------------------------------


def call(app: Any, **environ: Any) -> Any:
    """Call a WSGI application as a server does, and return what is to be iterated."""
    setup_testing_defaults(environ)
    return app(environ, lambda *_: None)


def answer(app: Any, **environ: Any) -> list[bytes]:
    """Return what a WSGI application answers, closed as a server does it."""
    body = call(app, **environ)
    try:
        return list(body)
    finally:
        if hasattr(body, "close"):
            body.close()


def session_of(given: Any) -> Any:
    """Return the session of a request of these tests, from its environ or its scope."""
    return given.get("session")


def test_a_controller_finds_what_its_plugins_set(write: Write, home: Path) -> None:
    """Settings, session, state and log, and each setup() was called before it, once."""
    write(greets=GREETS, counts=COUNTS)
    log, session = logging.getLogger("app"), {"user": "ada"}
    found: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        found.append((current.settings.greeting, current.session, current.state, current.log))
        return [b"done"]

    with closing(Context(home, log=log)) as context:
        middleware = WSGIMiddleware(app, context, session=session_of)
        assert answer(middleware, session=session) == [b"done"]
        assert found == [("Hello", {"user": "ada", "visits": 1}, context.state, log)]
        assert found[0][1] is session


def test_two_bodies_in_one_thread_keep_their_sessions(write: Write, context: Context) -> None:
    """Each step and the close() see the session of their own request, in whichever thread, and nobody else does."""
    write(greets=GREETS)
    seen: list[str] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        try:
            while True:
                yield current.session.encode()
        finally:
            seen.append(f"{current.session} closed")

    middleware = WSGIMiddleware(app, context, session=session_of)
    ada, eve = call(middleware, session="ada"), call(middleware, session="eve")
    a, e = iter(ada), iter(eve)
    with ThreadPoolExecutor(1) as other:
        steps = [next(a), next(e), other.submit(next, a).result(), next(e), next(a)]
        assert steps == [b"ada", b"eve", b"ada", b"eve", b"ada"]
        ada.close()
        other.submit(eve.close).result()
        assert other.submit(session_here).result() is None
    assert seen == ["ada closed", "eve closed"]
    assert session_here() is None


def test_a_body_that_is_never_closed_leaves_nothing(write: Write, context: Context) -> None:
    """Nor do the context variables that a plugin sets; those of the application stay what they are without us."""
    write(speaks=SPEAKS)
    context.deployment_settings.language = language = ContextVar("language", default="en")
    steps_done = ContextVar("steps_done", default=0)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        while True:
            steps_done.set(steps_done.get() + 1)
            yield f"{current.session} {language.get()} {steps_done.get()}".encode()

    def serve() -> None:
        middleware = WSGIMiddleware(app, context, session=session_of)
        for said in ([b"ada fr 1", b"ada fr 2"], [b"ada fr 3", b"ada fr 4"]):
            steps = iter(call(middleware, session="ada"))
            assert [next(steps), next(steps)] == said
            del steps
            gc.collect()
            assert (session_here(), language.get()) == (None, "en")

    copy_context().run(serve)


def test_a_body_keeps_from_step_to_step_what_it_provides_itself(context: Context) -> None:
    """A block of `current.using` in a generator lasts as long as the generator says, and others see nothing of it."""

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([current.session.encode()])

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        with current.using(session=current.session.upper()):
            yield current.session.encode()
            yield current.session.encode()
        yield current.session.encode()

    middleware = WSGIMiddleware(app, context, session=session_of)
    ada, eve = (iter(call(middleware, session=name)) for name in ("ada", "eve"))
    steps = [next(each) for _ in range(3) for each in (ada, eve)]
    assert steps == [b"ADA", b"EVE", b"ADA", b"EVE", b"ada", b"eve"]
    assert answer(WSGIMiddleware(lambda *_: Body(), context, session=session_of), session="ada") == [b"ada"]
    assert session_here() is None


def test_flask_streams_with_its_own_context_also_for_a_test_that_keeps_it(write: Write, context: Context) -> None:
    """Its test client goes into the request's context from outside, while the body is still in it."""
    write(greets=GREETS)
    app = flask.Flask(__name__)
    app.secret_key = "secret"
    app.wsgi_app = WSGIMiddleware(app.wsgi_app, context)  # type: ignore[method-assign]

    @app.get("/")
    def show() -> flask.Response:
        flask.session["user"] = "ada"
        words = (f"{current.settings.greeting} {flask.session['user']} " for _ in range(3))
        return flask.Response(flask.stream_with_context(words))

    with app.test_client() as client:
        for _ in range(2):
            assert client.get("/").text == "Hello ada Hello ada Hello ada "
            assert flask.session["user"] == "ada"
    assert not hasattr(current, "settings")


@pytest.mark.parametrize("where", ["session", "call", "step", "close"])
def test_what_the_application_raises_goes_through_unchanged(where: str, write: Write, context: Context) -> None:
    """Wherever it is raised; if `session` raises, no plugin is set up."""
    write(counts=COUNTS)
    error, session = LookupError("mine"), dict[str, int]()

    def fail_in(here: str) -> None:
        if where == here:
            raise error

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"one"
            fail_in("step")

        def close(self) -> None:
            fail_in("close")

    def app(environ: Any, start_response: Any) -> Body:
        fail_in("call")
        return Body()

    def find_session(environ: Any) -> object:
        fail_in("session")
        return session

    with pytest.raises(LookupError) as raised:
        answer(WSGIMiddleware(app, context, session=find_session))
    assert raised.value is error
    assert session == ({} if where == "session" else {"visits": 1})
    assert session_here() is None


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_or_a_tuple_reaches_the_server_as_it_is(kind: Any, context: Context) -> None:
    """Servers tell the client the length of a body that has one part."""
    body = kind([b"whole"])
    assert call(WSGIMiddleware(lambda *_: body, context)) is body


def test_a_file_reaches_the_server_as_it_is(context: Context, tmp_path: Path) -> None:
    """A server that offers ``wsgi.file_wrapper`` gets its own object back, to let the kernel send the file."""
    path = tmp_path / "file"
    path.write_bytes(b"content")

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        return FileWrapper(path.open("rb"))

    middleware = WSGIMiddleware(app, context)
    with closing(call(middleware, **{"wsgi.file_wrapper": FileWrapper})) as body:
        assert isinstance(body, FileWrapper)
    assert answer(middleware) == [b"content"]  # a server without it iterates


def test_it_keeps_to_the_protocol_on_both_of_its_sides(write: Write, context: Context) -> None:
    """What `wsgiref.validate` checks of a server and of an application, ``write`` and a body that is empty included."""
    write(greets=GREETS)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])(b"written ")
        return iter([current.settings.greeting.encode()] if environ["PATH_INFO"] == "/" else [])

    written: list[bytes] = []

    def start(*_: Any) -> Any:
        return written.append

    checked = validator(WSGIMiddleware(validator(app), context))
    for path in ("/", "/empty"):
        environ: dict[str, Any] = {"PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": ""}
        setup_testing_defaults(environ)
        body = checked(environ, start)
        written += list(body)
        body.close()
    assert written == [b"written ", b"Hello", b"written "]


@pytest.mark.parametrize(
    "ends", ["raise SystemExit", "from werkzeug.utils import redirect; raise Moved(redirect('/'))"]
)
def test_a_plugin_that_redirects_or_exits_is_deactivated_and_the_request_answered(
    ends: str, write: Write, context: Context
) -> None:
    """The redirect is the plugin's failure, and reaches no client; the others are set up."""
    moved = "from werkzeug.exceptions import HTTPException\nclass Moved(HTTPException):\n"
    moved += "    def __init__(self, to): super().__init__(response=to)\n"
    write(redirects=f"{moved}def setup():\n    {ends}\n", greets=GREETS)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        return [current.settings.greeting.encode()]

    assert answer(WSGIMiddleware(app, context)) == [b"Hello"]
    assert context.plugins.registry == {"redirects": ("unknown", False), "greets": ("unknown", True)}


def test_32_requests_in_threads_each_see_their_own_session(write: Write, context: Context) -> None:
    """All of them are in the controller at the same moment, and again in the middle of their bodies."""
    write(counts=COUNTS)
    here = threading.Barrier(32, timeout=60)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        here.wait()
        yield current.session["user"].encode()
        here.wait()
        yield str(current.session["visits"]).encode()

    middleware = WSGIMiddleware(app, context, session=session_of)
    with ThreadPoolExecutor(32) as pool:
        jobs = [pool.submit(answer, middleware, session={"user": str(n)}) for n in range(32)]
        assert [job.result() for job in jobs] == [[str(n).encode(), b"1"] for n in range(32)]


def test_a_registry_in_a_session_that_comes_back_from_json_is_the_same(write: Write, home: Path) -> None:
    """Its pairs are lists then; a None that was put there reloads the plugin for the next request."""
    write(greets=GREETS + "__version__ = '1'\n")
    kept, asks = "{}", False

    def app(environ: Any, start_response: Any) -> list[bytes]:
        if asks:
            current.session["plugins"]["greets"] = None
        return [json.dumps(current.session).encode()]

    with closing(Context(home, registry=lambda: current.session.setdefault("plugins", {}))) as context:
        middleware = WSGIMiddleware(app, context, session=session_of)
        for _ in range(2):
            [told] = answer(middleware, session=json.loads(kept))
            kept = told.decode()
            assert kept == '{"plugins": {"greets": ["1", true]}}'
        write(greets=GREETS + "__version__ = '2'\n")
        asks = True
        [told] = answer(middleware, session=json.loads(kept))
        assert told == b'{"plugins": {"greets": null}}'
        asks = False
        assert answer(middleware, session=json.loads(told)) == [b'{"plugins": {"greets": ["2", true]}}']


def test_a_reload_while_requests_run_counts_from_the_next_request_on(write: Write, context: Context) -> None:
    """One that is in the middle of its body goes on undisturbed, and none in 200 beside 20 reloads fails."""
    write(greets=GREETS)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        if environ["PATH_INFO"] == "/reload":
            assert context.plugins.load("greets", force=True)
        greeting = current.settings.greeting.encode()
        yield greeting
        yield greeting

    middleware = WSGIMiddleware(app, context)
    body = call(middleware)
    steps = iter(body)
    assert next(steps) == b"Hello"
    write(greets=GREETS.replace("Hello", "Hi"))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(answer, middleware, PATH_INFO="/" if n % 10 else "/reload") for n in range(200)]
        assert {tuple(job.result()) for job in jobs} <= {(b"Hello", b"Hello"), (b"Hi", b"Hi")}
    assert next(steps) == b"Hello"
    body.close()
    assert answer(middleware) == [b"Hi", b"Hi"]
    assert context.plugins.registry == {"greets": ("unknown", True)}


# -- ASGI -------------------------------------------------------------------------------------------------------------


async def no_message() -> Any:
    """Receive nothing."""
    raise AssertionError


def request(app: Any, session: Any = None, *, type_: str = "http", send: Any = None) -> Any:
    """Return what calls an ASGI application as a server does."""
    return app({"type": type_, "session": session}, no_message, send)


@pytest.mark.parametrize("type_", ["http", "websocket"])
def test_an_asgi_application_finds_it_in_its_task_and_in_all_that_it_starts(
    type_: str, write: Write, context: Context
) -> None:
    """It is called in the server's own task; child tasks, threads and streams see the same, and afterwards nobody."""
    write(greets=GREETS, counts=COUNTS)
    sent: list[Any] = []

    async def stream() -> AsyncIterator[Any]:
        yield current.session["user"]
        await asyncio.sleep(0)
        yield current.session["visits"]

    async def see() -> Any:
        return current.session["user"]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.extend([asyncio.current_task(), current.settings.greeting, current.state])
        sent.extend([await asyncio.create_task(see()), await asyncio.to_thread(lambda: current.session["user"])])
        sent.extend([each async for each in stream()])
        await send("end")

    async def serve() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        await request(ASGIMiddleware(app, context, session=session_of), {"user": "ada"}, type_=type_, send=send)
        assert sent == [asyncio.current_task(), "Hello", context.state, "ada", "ada", "ada", 1, "end"]
        assert session_here() is None

    asyncio.run(serve())


@pytest.mark.parametrize("type_", ["lifespan", "other"])
def test_what_is_no_request_passes_without_a_cycle(type_: str, write: Write, context: Context) -> None:
    """The application gets the server's own objects; no plugin is called, and no session asked for."""
    write(counts=COUNTS)
    got: list[Any] = []

    async def app(*given: Any) -> None:
        got.extend([*given, hasattr(current, "settings")])

    scope = {"type": type_}
    asyncio.run(ASGIMiddleware(app, context, session=lambda _: 1 / 0)(scope, no_message, no_message))
    assert got == [scope, no_message, no_message, False]
    assert got[0] is scope
    assert context.plugins.registry == {}


def test_32_requests_on_a_loop_each_see_their_own_session(write: Write, context: Context) -> None:
    """All of them are in the controller at the same moment; 200 more in line wait their turn to be set up."""
    write(counts=COUNTS)
    waiting: list[asyncio.Future[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waiting.append(asyncio.get_running_loop().create_future())
        if len(waiting) == 32:
            for each in waiting:
                each.set_result(None)
        if len(waiting) <= 32:
            await waiting[-1]
        assert current.session is scope["session"]

    async def serve() -> list[Any]:
        middleware = ASGIMiddleware(app, context, session=session_of)
        sessions = [{"user": n} for n in range(232)]
        await asyncio.gather(*(request(middleware, session) for session in sessions))
        return sessions

    assert asyncio.run(serve()) == [{"user": n, "visits": 1} for n in range(232)]


def test_a_plugin_that_hangs_while_it_loads_holds_no_event_loop(write: Write, context: Context) -> None:
    """Whatever else is on the loop goes on; the request is answered when the plugin is done."""
    write(waits=WAITS)
    settings = context.deployment_settings
    settings.begun, settings.gate, settings.done = threading.Event(), threading.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        settings.done.append(current.session)

    async def serve() -> None:
        task = asyncio.create_task(request(ASGIMiddleware(app, context, session=session_of), "ada"))
        assert await asyncio.to_thread(settings.begun.wait, 60)
        assert (task.done(), settings.done) == (False, [])
        settings.gate.set()
        await task
        assert settings.done == [True, "ada"]

    asyncio.run(serve())


def test_a_request_that_is_cancelled_while_plugins_load_does_not_reach_the_application(
    write: Write, context: Context
) -> None:
    """The plugin is set up all the same, and serves the next request; of 40 that wait, 32 have a thread."""
    write(waits=WAITS)
    settings = context.deployment_settings
    settings.begun, settings.gate, settings.done = threading.Event(), threading.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        settings.done.append(current.session)

    async def serve() -> None:
        middleware = ASGIMiddleware(app, context, session=session_of)
        before = {*threading.enumerate()}
        tasks = [asyncio.create_task(request(middleware, n)) for n in range(40)]
        assert await asyncio.to_thread(settings.begun.wait, 60)
        names = [each.name for each in {*threading.enumerate()} - before]
        assert sum(name.startswith("holdfast: cycles") for name in names) == 32
        for task in tasks:
            task.cancel()
        assert {type(each) for each in await asyncio.gather(*tasks, return_exceptions=True)} == {asyncio.CancelledError}
        settings.gate.set()
        await request(middleware, "next")
        assert settings.done == [True, "next"]

    asyncio.run(serve())


def test_what_an_asgi_application_raises_goes_through_unchanged(write: Write, context: Context) -> None:
    """So does what `session` raises; and a cancellation reaches the application itself, which may shield from it."""
    write(greets=GREETS)
    error, told, waiting = LookupError("mine"), list[str](), asyncio.Event()

    async def fails(*_: Any) -> None:
        raise error

    def failing(_: Any) -> object:
        raise error

    async def waits(*_: Any) -> None:
        try:
            waiting.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            told.append(f"cancelled in a cycle: {hasattr(current, 'settings')}")
            await asyncio.sleep(0)
            told.append("cleared up")
            raise

    async def serve() -> None:
        for middleware in (ASGIMiddleware(fails, context), ASGIMiddleware(fails, context, session=failing)):
            with pytest.raises(LookupError) as raised:
                await request(middleware)
            assert raised.value is error
            assert not hasattr(current, "settings")
        task = asyncio.create_task(request(ASGIMiddleware(waits, context)))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(serve())
    assert told == ["cancelled in a cycle: True", "cleared up"]


def test_a_request_whose_session_raises_stopiteration_is_answered(context: Context) -> None:
    """With what Python makes of it in every coroutine; as it is, it would reach nobody."""
    error = StopIteration("mine")

    def failing(_: Any) -> object:
        raise error

    with pytest.raises(RuntimeError) as raised:
        asyncio.run(request(ASGIMiddleware(lambda *_: None, context, session=failing)))
    assert raised.value.__cause__ is error


def test_setup_and_the_application_share_context_variables_as_if_in_one_task(write: Write, context: Context) -> None:
    """setup() sees those of the task, the application what setup() sets, and those around it what that sets."""
    write(
        speaks="from holdfast import current\ndef setup():\n    current.settings.set(current.settings.get().upper())\n"
    )
    language = ContextVar("language", default="en")
    context.deployment_settings = SimpleNamespace(get=language.get, set=language.set)
    heard = ContextVar("heard", default="")

    async def app(*_: Any) -> None:
        heard.set(language.get())

    async def serve() -> tuple[str, str]:
        language.set("fr")
        heard.set("nothing")
        await request(ASGIMiddleware(app, context))
        return heard.get(), language.get()

    assert asyncio.run(serve()) == ("FR", "fr")


def test_the_threads_end_with_the_middleware(write: Write, context: Context) -> None:
    """An application that is made anew for each of a thousand tests leaves none of them behind."""
    write(greets=GREETS)
    before = {*threading.enumerate()}

    async def app(*_: Any) -> None:
        pass

    async def serve() -> None:
        middleware = ASGIMiddleware(app, context)
        await asyncio.gather(*(request(middleware) for _ in range(5)))

    asyncio.run(serve())
    gc.collect()
    deadline = time.monotonic() + 60
    for thread in {*threading.enumerate()} - before:
        thread.join(deadline - time.monotonic())
    assert {*threading.enumerate()} <= before


def test_a_process_that_was_forked_has_threads_of_its_own(write: Write, home: Path) -> None:
    """A server may serve a request, to warm up, and then fork its workers."""
    write(greets=GREETS)
    program = """
import asyncio, os, sys
from holdfast.context import Context
from holdfast.plugins.current import current
from holdfast.web import ASGIMiddleware

async def app(*_):
    print(current.settings.greeting, flush=True)

middleware = ASGIMiddleware(app, Context(sys.argv[1]))
asyncio.run(middleware({"type": "http"}, None, None))
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
asyncio.run(middleware({"type": "http"}, None, None))
"""
    command = [sys.executable, "-c", program, str(home)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Hello\n" * 3, "")


def test_a_plugin_that_hangs_keeps_no_process_from_ending(write: Write, home: Path) -> None:
    """When the server gives the request up, the process ends, well; the death of the plugin's thread is counted."""
    write(hangs="import sys, threading\ndef setup():\n    print('hangs', flush=True)\n    threading.Event().wait()\n")
    program = """
import asyncio, sys
from holdfast.context import Context
from holdfast.web import ASGIMiddleware

async def serve():
    context = Context(sys.argv[1])
    task = asyncio.create_task(ASGIMiddleware(None, context)({"type": "http"}, None, None))
    await asyncio.to_thread(sys.stdin.readline)
    task.cancel()

asyncio.run(serve())
"""
    command = [sys.executable, "-W", "error", "-c", program, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        try:
            process.communicate("\n", timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert (home / ".suspects").read_text() == ">hangs\n"
