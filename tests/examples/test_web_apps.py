"""The examples for web applications do what they say, behind real servers that are processes of their own."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVERS = {
    "waitress": ("flask_app", "waitress --listen=127.0.0.1:0 --threads=8 {}:app"),
    "werkzeug": ("flask_app", "flask --app {} run --port 0"),
    "uvicorn": ("fastapi_app", "uvicorn --port 0 {}:app"),
}
"""Which example each server is tested with, and how it is started on a port that is free."""

every_example = pytest.mark.parametrize("server", ["waitress", "uvicorn"])


class Served:
    """An application in a folder of its own, with a server that can be stopped and started again."""

    def __init__(self, server: str, folder: Path, app: str) -> None:
        self.folder, self.home = folder, folder / "home"
        self._argv = SERVERS[server][1].format(app).split()
        self.start()

    def start(self) -> None:
        """Start the server, and find out on which port it listens."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self._argv],
            cwd=self.folder,
            env={**os.environ, "HOLDFAST_HOME": str(self.home), "SECRET_KEY": "secret", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.log: list[str] = []
        for line in self.process.stdout:
            self.log.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            pytest.fail(f"the server did not start: {''.join(self.log)}")
        self.port = int(found[1])
        self._reader = threading.Thread(target=self.log.extend, args=(self.process.stdout,))
        self._reader.start()

    def stop(self) -> str:
        """Ask the server to end, and return what it has logged."""
        self.process.terminate()
        self.process.wait(60)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return "".join(self.log)

    def client(self) -> httpx.Client:
        """Return a browser, with cookies of its own."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=60)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Return what serves an example, or the code that is given, until the end of the test."""
    served: list[Served] = []

    def serve(server: str, code: str | None = None) -> Served:
        app = SERVERS[server][0]
        if code is None:
            shutil.copytree(EXAMPLES / app, tmp_path / app, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            (tmp_path / app).mkdir()
            (tmp_path / app / f"{app}.py").write_text(code)
        served.append(Served(server, tmp_path / app, app))
        return served[-1]

    yield serve
    for each in served:
        if each.process.poll() is None:
            each.stop()


@pytest.mark.parametrize("server", SERVERS)
def test_each_client_has_its_session_and_all_share_the_variables(server: str, serve: Callable[..., Served]) -> None:
    """Plugins count in both, before the page is made; after SIGTERM and a new start, both go on."""
    served = serve(server)
    extra = {"filters": ["loud"]} if server == "uvicorn" else {"notice": "Closed on Sunday"}
    with served.client() as ada, served.client() as eve:
        assert ada.get("/").json() == {**extra, "your visits": 1, "all visits": 1}
        assert ada.get("/").json() == {**extra, "your visits": 2, "all visits": 2}
        assert eve.get("/").json() == {**extra, "your visits": 1, "all visits": 3}
        assert ada.get("/export").text == "visit 1\nvisit 2\nvisit 3\n"
        assert "Traceback" not in served.stop()
        assert json.loads((served.home / "state" / "visits.json").read_text()) == {"total": 4}

        served.start()
        with served.client() as again:
            again.cookies = ada.cookies
            assert again.get("/").json() == {**extra, "your visits": 4, "all visits": 5}


@every_example
def test_a_plugin_is_reloaded_by_a_none_in_the_session(server: str, serve: Callable[..., Served]) -> None:
    """The registry comes back from the session as lists. New code that redirects leaves the old in service."""
    served = serve(server)
    name, before, after = (
        ("loud", "text.upper()", "text + '!'") if server == "uvicorn" else ("notice", "Sunday", "Monday")
    )
    plugin = served.folder / "plugins" / f"{name}.py"
    old = plugin.read_text()
    new = old.replace(before, after).replace("1.0", "2.0")
    redirects = "from werkzeug.exceptions import HTTPException\nfrom werkzeug.utils import redirect\n"
    redirects += "def setup(): raise HTTPException(response=redirect('/'))\n"
    if server == "uvicorn":
        redirects = (
            "from fastapi import HTTPException\ndef setup(): raise HTTPException(307, headers={'Location': '/'})\n"
        )
    with served.client() as client:
        assert client.get("/plugins").json() == {name: ["1.0", True], "visits": ["unknown", True]}
        for code in (new, redirects):
            plugin.write_text(code)
            assert client.get("/plugins").json()[name] == ["2.0" if code is redirects else "1.0", True]
            assert client.post(f"/plugins/{name}/reload").status_code == 202
            assert client.get("/plugins").json() == {name: ["2.0", True], "visits": ["unknown", True]}
            assert client.get("/").status_code == 200
        if server != "uvicorn":
            assert client.get("/").json()["notice"] == "Closed on Monday"
    assert "plugin 'notice' failed: HTTPException" in served.stop() or server == "uvicorn"


@every_example
def test_8_clients_at_once_each_have_their_own_session(server: str, serve: Callable[..., Served]) -> None:
    """Each counts its own visits, in the page and in the stream, while others count theirs."""
    served = serve(server)

    def visit(times: int) -> list[int]:
        with served.client() as client:
            seen = [client.get("/").json()["your visits"] for _ in range(times)]
            return [*seen, len(client.get("/export").text.splitlines())]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(visit, range(1, 9))) == [list(range(1, n + 2)) for n in range(1, 9)]


ENDLESS_WSGI = """
import threading
from holdfast import Context, current
from holdfast.web import WSGIMiddleware

seen, closed = [], threading.Event()

def endless():
    try:
        while True:
            yield b"x" * 65536
    finally:
        seen.append(current.session)
        closed.set()

def answer(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/endless":
        return endless()
    closed.wait(60)
    return [f"{seen} {current.session}".encode()]

app = WSGIMiddleware(answer, Context(), session=lambda environ: environ["PATH_INFO"])
"""
ENDLESS_ASGI = """
import asyncio
from starlette.responses import PlainTextResponse, StreamingResponse
from holdfast import Context, current
from holdfast.web import ASGIMiddleware

seen, closed = [], asyncio.Event()

async def endless():
    try:
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)  # nobody would be told that the client is gone
    finally:
        seen.append(current.session)
        closed.set()

async def answer(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/endless":
        await StreamingResponse(endless())(scope, receive, send)
    else:
        await asyncio.wait_for(closed.wait(), 60)
        await PlainTextResponse(f"{seen} {current.session}")(scope, receive, send)

app = ASGIMiddleware(answer, Context(), session=lambda scope: scope["path"])
"""


@pytest.mark.parametrize("server,code", [("waitress", ENDLESS_WSGI), ("uvicorn", ENDLESS_ASGI)])
def test_when_a_client_leaves_its_stream_ends_in_its_own_cycle(
    server: str, code: str, serve: Callable[..., Served]
) -> None:
    """What the stream clears up sees the session of the client that is gone; others are served."""
    served = serve(server, code)
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as leaving:
        leaving.sendall(b"GET /endless HTTP/1.1\r\nHost: here\r\n\r\n")
        assert leaving.recv(9) == b"HTTP/1.1 "
    with served.client() as client:
        assert client.get("/seen").text == "['/endless'] /seen"


def test_a_websocket_sees_session_and_filters_and_background_work_ends_before_the_server(
    serve: Callable[..., Served],
) -> None:
    """Whoever gave a name in a request is known on the connection, and counted when the answer was sent."""
    served = serve("uvicorn")
    with served.client() as client:
        assert client.post("/name/ada").status_code == 200
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
    url = f"ws://127.0.0.1:{served.port}/filter/loud"
    received: list[Any] = []
    for headers in (cookie, {}):
        with connect(url, additional_headers=headers, proxy=None) as connection:
            for text in ("hello", "bye"):
                connection.send(text)
                received.append(connection.recv(60))
    assert received == ["ada: HELLO", "ada: BYE", "somebody: HELLO", "somebody: BYE"]
    assert "Traceback" not in served.stop()
    assert json.loads((served.home / "state" / "names.json").read_text()) == {"ada": 1}
