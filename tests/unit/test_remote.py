"""What a client of a server does when that is away, slow, strange or wrong."""

import http.client
import logging
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Self

import pytest

import holdfast.errors
from holdfast.auth import Rights, Token, seal
from holdfast.errors import (
    ConflictError,
    DamagedError,
    DeniedError,
    FencedError,
    HoldfastError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from holdfast.pod import Pod
from holdfast.remote import Connection, RemoteFiles, RemoteStore, make_pod
from holdfast.runs import Fence, Status
from holdfast.server.limits import Limits
from holdfast.store import (
    Batch,
    ClaimLease,
    CreateEdge,
    CreateItem,
    DeleteItem,
    EndLease,
    IncrementVariable,
    MoveRun,
    RenewLease,
)
from tests.components.servers import OWNER, Served, serving


class Scripted:
    """A server that says one thing after the other, each on a connection of its own, and notes what it was asked."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []
        self.opened = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.opened.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        for answer in self.answers:
            connection, _ = self.opened.accept()
            with connection:
                text = b""
                while b"\r\n\r\n" not in text:
                    text += connection.recv(65_536)
                head, _, body = text.partition(b"\r\n\r\n")
                length = next(
                    (int(line[16:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: ")), 0
                )
                is_chunked = b"chunked" in head
                while len(body) < length or (is_chunked and not body.endswith(b"0\r\n\r\n")):
                    body += connection.recv(65_536)
                self.asked.append(head + b"\r\n\r\n" + body)
                if answer is not None:
                    connection.sendall(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.thread.join()
        self.opened.close()


def said(status: str, body: str = "", *headers: str) -> bytes:
    """Return an answer."""
    return "\r\n".join(
        [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", body]
    ).encode()


def problem(kind: str, detail: str = "no", facts: str = "{}") -> str:
    """Return a problem document."""
    return f'{{"kind": "{kind}", "detail": "{detail}", "facts": {facts}}}'


class Waits(list[float]):
    """How long was waited; the time passes as it is said."""

    now = 0.0

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        """Return seconds."""
        return self.now


@pytest.fixture
def waits() -> Waits:
    """Return how long is waited."""
    return Waits()


def connect(url: str, waits: Waits, **how: float) -> Connection:
    """Return a connection whose waits take no time."""
    return Connection(
        url, OWNER.owner_key, database_key=OWNER.database_key, wait=waits.wait, monotonic=waits.monotonic, **how
    )


@pytest.mark.parametrize(
    "lost",
    [
        None,
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[",
        b"garbage\r\n\r\n",
        said("502 Bad Gateway", "<html>"),
        said("503 Service Unavailable", problem("UnavailableError")),
        said("504 Gateway Timeout"),
        said("429 Too Many Requests", problem("UnavailableError"), "Retry-After: 0"),
    ],
)
def test_what_may_have_been_lost_is_asked_again_under_the_same_key(lost: bytes | None, waits: Waits) -> None:
    """So that it is done once, whatever became of the answer."""
    with Scripted(lost, said("200 OK", "[1]")) as server, closing(connect(server.url, waits)) as connection:
        assert RemoteStore(connection).apply(Batch((IncrementVariable("s", "n"),))) == (1,)
        first, second = (asked.partition(b"\r\n\r\n")[2] for asked in server.asked)
    assert first == second
    assert Batch.from_json(first).key is not None
    assert len(waits) == 1


def test_a_key_that_was_given_is_kept_and_a_renewal_needs_none(waits: Waits) -> None:
    """It may be repeated as it is; a row for each would be kept for a day."""
    fence = Fence(state="s", epoch=1, holder="h")
    with Scripted(*[said("200 OK", "[null]")] * 2) as server, closing(connect(server.url, waits)) as connection:
        store = RemoteStore(connection)
        store.apply(Batch((RenewLease(fence, 1),)))
        store.apply(Batch((), None, "mine"))
        keys = [Batch.from_json(asked.partition(b"\r\n\r\n")[2]).key for asked in server.asked]
    assert keys == [None, "mine"]


def test_a_server_that_says_when_to_come_again_is_obeyed(waits: Waits) -> None:
    """At the earliest then."""
    busy = said("503 Service Unavailable", problem("UnavailableError"), "Retry-After: 7")
    with Scripted(busy, said("200 OK", "5")) as server, closing(connect(server.url, waits)) as connection:
        assert RemoteStore(connection).now_ms() == 5
    assert waits == [7]


def test_a_server_that_is_away_is_asked_with_growing_pauses_for_as_long_as_was_said(waits: Waits) -> None:
    """The error names it, and its cause is what the library said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with (
        closing(connect(url, waits)) as connection,
        pytest.raises(UnavailableError, match="cannot be reached") as failed,
    ):
        RemoteStore(connection).now_ms()
    assert failed.value.facts == {"url": url}
    assert failed.value.__cause__ is not None
    assert sum(waits) == pytest.approx(30)
    assert max(waits) <= 2
    assert all(each <= 0.1 * 2**number + 1e-9 for number, each in enumerate(waits[:5]))


@pytest.mark.parametrize(
    "answer, kind, message, facts",
    [
        (said("403 Forbidden", problem("DeniedError", facts='{"run": "r"}')), DeniedError, "no", {"run": "r"}),
        (said("409 Conflict", problem("FencedError")), FencedError, "no", {}),
        (said("503 Unavailable", problem("DamagedError")), DamagedError, "no", {}),
        (
            said("413 Too Large", problem("InvalidError", facts='{"max_bytes": 5}')),
            InvalidError,
            "no",
            {"max_bytes": 5},
        ),
        (said("500 Defect", problem("HoldfastError")), HoldfastError, "no", {}),
        (said("404 Not Found", "<html>"), NotFoundError, "is not a Pod, or is in front of it: 404", None),
        (said("302 Found", "", "Location: http://elsewhere"), UnavailableError, "is not a Pod, .* 302", None),
        (said("418 Teapot", problem("KeyboardInterrupt")), UnavailableError, "is not a Pod, .* 418", None),
        (said("409 Conflict", '{"kind": 1}'), ConflictError, "is not a Pod", None),
        (said("404 Not Found", problem("NotFoundError").replace('"no"', "5")), NotFoundError, "is not a Pod", None),
        (said("200 OK", "[]"), InvalidError, "the answer of now_ms is wrong", None),
        (said("200 OK", "5", "Content-Type: text/html"), UnavailableError, "is not a Pod, .* 200", None),
        (said("200 OK", "5" * 1_001), UnavailableError, "too long: at most 1,000 bytes", None),
        (said("500 Defect", "5" * 2**20 + "5"), UnavailableError, "too long: at most 1,048,576 bytes", None),
    ],
)
def test_an_error_comes_back_as_what_it_was_and_is_not_asked_for_again(
    answer: bytes, kind: type[HoldfastError], message: str, facts: object, waits: Waits
) -> None:
    """Kind, sentence and facts; what is no problem document means what its status does, and none is read for ever."""
    with Scripted(answer) as server, closing(connect(server.url, waits, max_answer_bytes=1_000)) as connection:
        with pytest.raises(kind, match=message) as failed:
            RemoteStore(connection).now_ms()
        assert type(failed.value) is kind
        assert facts is None or failed.value.facts == facts
    assert waits == []


def test_every_kind_of_error_crosses_the_wire() -> None:
    """One that is added is known to clients as well."""
    kinds = {
        name
        for name, each in vars(holdfast.errors).items()
        if isinstance(each, type) and issubclass(each, HoldfastError)
    }
    assert set(holdfast.remote._KINDS) == kinds


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pod.example",
        "ftp://pod.example",
        "http://",
        "http://me:s3cret@pod.example",
        "http://a?b",
        "http://a#b",
        "http://a\n",
        None,
    ],
)
def test_an_address_that_is_none_is_refused_and_a_secret_in_it_not_repeated(url: str) -> None:
    """Before anything is sent anywhere."""
    with pytest.raises(InvalidError) as refused:
        Connection(url, OWNER.owner_key, database_key=OWNER.database_key)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("how", [{}, {"database_key": "b" * 64, "token": "hft1.x"}])
def test_a_pod_is_opened_by_a_key_or_by_a_token(how: dict[str, str]) -> None:
    """Not by none, and not by both."""
    with pytest.raises(InvalidError, match="by a database key or by a token"):
        Connection("http://a", OWNER.owner_key, **how)


@pytest.mark.parametrize("owner_key", ["", "a" * 63, "a" * 64 + "\n", "../" + "a" * 61])
def test_an_owner_that_is_none_is_refused(owner_key: str) -> None:
    """Before it becomes part of an address."""
    with pytest.raises(InvalidError, match="is no owner's key"):
        Connection("http://a", owner_key, token="hft1.x")


@pytest.mark.parametrize("secret", ["", " ", "hft1.s3\ncret", "hft1.s3 cret", "hft1.s3\x00cret", "hft1.s3cr\xe9t"])
@pytest.mark.parametrize("name", ["database_key", "token"])
def test_what_cannot_be_presented_is_refused_and_not_shown(
    secret: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What sends it would show it in an error, and this in the log."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InvalidError, match="the database key or token cannot be sent") as refused:
        Connection("http://a", OWNER.owner_key, **{name: secret})
    assert "s3" not in "".join(traceback.format_exception(refused.value)).replace(repr(secret), "")
    assert "s3" not in caplog.text


def test_the_line_end_of_a_file_is_no_part_of_what_is_presented(waits: Waits) -> None:
    """Whoever reads a token from a file need not think of it."""
    with Scripted(said("200 OK", "5")) as server:
        with closing(Connection(server.url, OWNER.owner_key, token="hft1.x\r\n")) as connection:
            assert RemoteStore(connection).now_ms() == 5
        assert b"Authorization: Bearer hft1.x\r\n" in server.asked[0]


PORTAL = said("200 OK", "<html>", "Content-Type: text/html")


@pytest.mark.parametrize(
    "call, answer",
    [
        ("exists", PORTAL),
        ("exists", said("200 OK")),
        ("open", PORTAL),
        ("open", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("put", PORTAL),
        *[("put", said("201 Created", text)) for text in ("", "<", "[]", "5", "{}", '{"size": "5"}', '{"size": true}')],
        ("delete", PORTAL),
        ("make", PORTAL),
    ],
)
def test_what_answers_and_is_no_pod_is_found_out(call: str, answer: bytes, waits: Waits) -> None:
    """As the page with which a network asks who comes: it says yes to everything."""
    with Scripted(answer) as server, closing(connect(server.url, waits)) as connection:
        files, sha256 = RemoteFiles(connection), "0" * 64
        calls: dict[str, Callable[[], object]] = {
            "exists": lambda: files.exists(sha256),
            "open": lambda: files.open(sha256),
            "put": lambda: files.put(sha256, iter([b"x"])),
            "delete": lambda: files.delete(sha256, is_needed=lambda: False),
            "make": lambda: make_pod(connection),
        }
        with pytest.raises(UnavailableError, match="is not a Pod"):
            calls[call]()
    assert waits == []


@pytest.mark.parametrize("call", ["now_ms", "open"])
def test_an_answer_that_trickles_is_given_up(call: str) -> None:
    """Each of its bytes comes in time, and it would not end; here each is waited for a minute."""
    minutes = count(step=60)
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n5"
    with Scripted(cut) as server:
        connection = Connection(server.url, OWNER.owner_key, token="hft1.x", monotonic=lambda: next(minutes))
        files, store = RemoteFiles(connection), RemoteStore(connection)
        ask = store.now_ms if call == "now_ms" else lambda: next(files.open("0" * 64)[1])
        with closing(connection), pytest.raises(UnavailableError, match="answers too slowly: 1 bytes came in 60 s"):
            ask()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Return a server."""
    with serving(tmp_path) as served:
        yield served


def test_a_closed_store_is_closed_and_closing_twice_is_harmless(served: Served) -> None:
    """It does not open a connection anew."""
    store = served.store()
    store.close()
    store.close()
    with pytest.raises(UnavailableError, match="was closed"):
        store.now_ms()


def test_a_forked_child_has_connections_of_its_own(served: Served) -> None:
    """And the parent's go on: the two would else read each other's answers."""
    store = served.store()
    store.apply(Batch((IncrementVariable("s", "n"),)))
    children: list[int] = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for _ in range(20):
                    store.apply(Batch((IncrementVariable("s", "n"),)))
                status = 0
            finally:
                os._exit(status)  # nothing of the test's own process may end twice
        children.append(pid)
    for _ in range(20):
        store.apply(Batch((IncrementVariable("s", "n"),)))
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert store.list_variables("s") == {"n": 81}


def test_files_go_there_and_come_back(served: Served) -> None:
    """In parts, so that one need not fit into memory; what is cut off on its way is an error."""
    files = RemoteFiles(served.connect())
    pod = Pod(served.store(), files=files)
    data = os.urandom(3_000_001)
    item = pod.upload_file(data, filename="a")
    assert item.sha256 is not None
    assert pod.get_file(item) == data
    assert files.open(item.sha256)[0] == len(data)
    files.delete(item.sha256, is_needed=lambda: False)
    assert files.exists(item.sha256)  # the server sees that it is needed
    pod.delete_file(item)
    assert not files.exists(item.sha256)
    with pytest.raises(NotFoundError, match="are not there"):
        files.open(item.sha256)
    with pytest.raises(NotFoundError, match="no File item describes the bytes"):
        files.put(item.sha256, iter([data]))


def test_a_run_that_may_write_files_brings_them_reads_them_and_lets_them_go(served: Served) -> None:
    """Its bytes go with the item: that this is gone by then is no reason to keep them."""
    setup = (
        CreateItem("r", "PluginRun", {"pluginName": "P"}),
        CreateItem("s", "PersistentState", {"name": "default"}),
        CreateEdge("r", "pluginState", "s"),
        ClaimLease("s", "r", "h", 60_000),
    )
    store = served.store()
    store.apply(Batch(setup))
    rights, expires_ms = Rights(reads=frozenset({"File"}), writes=frozenset({"File"})), store.now_ms() + 60_000
    run = Token(owner=OWNER.owner_key, state="s", run="r", epoch=1, holder="h", rights=rights, expires_ms=expires_ms)
    token = seal(run, served.pods.opener.pod_key)
    pod = Pod(served.store(token=token), files=served.files(token=token))
    item = pod.upload_file(b"hello", filename="a")
    assert item.sha256 is not None
    assert pod.get_file(item) == b"hello"
    pod.delete_file(item)
    assert not served.files().exists(item.sha256)


def test_a_run_that_has_ended_or_lost_its_plugin_state_lets_no_file_go(served: Served) -> None:
    """Also bytes that no item describes any more: their owner may bring that back."""
    setup = (
        CreateItem("r", "PluginRun", {"pluginName": "P", "status": "ready"}),
        CreateItem("s", "PersistentState", {"name": "default"}),
        CreateEdge("r", "pluginState", "s"),
        ClaimLease("s", "r", "h", 60_000),
    )
    store, files = served.store(), served.files()
    store.apply(Batch(setup))
    rights, expires_ms = Rights(writes=frozenset({"File"})), store.now_ms() + 60_000
    run = Token(owner=OWNER.owner_key, state="s", run="r", epoch=1, holder="h", rights=rights, expires_ms=expires_ms)
    theirs = served.files(token=seal(run, served.pods.opener.pod_key))
    item = Pod(store, files=files).upload_file(b"hello")
    assert item.id is not None
    assert item.sha256 is not None
    store.apply(Batch((DeleteItem(item.id),)))
    store.apply(Batch((MoveRun("r", Status.STARTED), MoveRun("r", Status.DONE)), run.fence))
    with pytest.raises(DeniedError, match="run 'r' may not write 'File': it has ended"):
        theirs.delete(item.sha256, is_needed=lambda: False)
    store.apply(Batch((EndLease("s"),)))
    for call in (
        lambda: theirs.delete(str(item.sha256), is_needed=lambda: False),
        lambda: theirs.put(str(item.sha256), iter([b"hello"])),
    ):
        with pytest.raises(FencedError):
            call()
    assert files.exists(item.sha256)


@pytest.mark.parametrize("is_known", [False, True])
def test_an_upload_takes_the_place_of_damaged_bytes(served: Served, is_known: bool) -> None:
    """Whether somebody has read them by then or not; of whole ones it does not."""
    files = served.files()
    pod = Pod(served.store(), files=files)
    data = os.urandom(3_000_000)
    item = pod.upload_file(data)
    assert item.sha256 is not None
    (path,) = (served.settings.home / "files").glob("*/??/*")
    with path.open("r+b") as file:
        last = file.seek(-1, os.SEEK_END)
        (byte,) = file.read()
        file.seek(last)
        file.write(bytes([byte ^ 1]))
    if is_known:
        with pytest.raises(HoldfastError):
            pod.get_file(item)
        assert not files.exists(item.sha256)
        pod.upload_file(data)
    else:
        assert files.put(item.sha256, iter([data])) == len(data)
    assert pod.get_file(item) == data
    with pytest.raises(ConflictError, match="are there already"):
        files.put(item.sha256, iter([data]))


@pytest.mark.parametrize("is_cut", [False, True])
def test_of_damaged_bytes_whoever_asks_is_told(served: Served, is_cut: bool) -> None:
    """Of a file that fits into one part: of a longer one the connection is cut where the damage is found."""
    pod = Pod(served.store(), files=served.files())
    item = pod.upload_file(os.urandom(2_000))
    (path,) = (served.settings.home / "files").glob("*/??/*")
    if is_cut:
        os.truncate(path, 10)
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    answer = served.ask("GET", f"/api/{{owner}}/files/{item.sha256}")
    words = (
        f"the file on this server with the bytes of '{item.sha256}' is damaged: restore a backup, or upload them again"
    )
    assert (answer.status, answer.document["detail"]) == (503, words)


def test_files_that_come_by_both_doors_are_counted_together(tmp_path: Path) -> None:
    """The limit is the server's."""
    with serving(tmp_path, limits=Limits(uploads=1)) as served:
        hashes = "0" * 64, "1" * 64
        served.store().apply(Batch(tuple(CreateItem(each[:1], "File", {"sha256": each}) for each in hashes)))
        with closing(http.client.HTTPConnection("127.0.0.1", served.port)) as slow:
            slow.putrequest("PUT", f"/api/{OWNER.owner_key}/files/{hashes[0]}")
            slow.putheader("Authorization", f"Bearer {OWNER.database_key}")
            slow.putheader("Content-Length", "5")
            slow.endheaders(b"h")
            other = f"/v4/{{owner}}/upload_file/{OWNER.database_key}/{hashes[1]}"
            while not [*tmp_path.glob("files/*/.tmp-*/part")]:  # then it has its place
                assert served.ask("GET", "/healthz").status == 200
            assert served.ask("POST", other, b"x", key=None).status == 503


def test_a_file_that_is_cut_off_on_its_way_is_an_error(waits: Waits) -> None:
    """It is not taken for a shorter one."""
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
    with Scripted(cut) as server, closing(connect(server.url, waits)) as connection:
        size, parts = RemoteFiles(connection).open("0" * 64)
        assert size == 10
        with pytest.raises(UnavailableError, match="cannot be reached"):
            b"".join(parts)


def test_what_reaches_a_pod_brings_no_command_line() -> None:
    """A launched run begins sooner without; who wants that of httpx still gets it."""
    code = (
        "import sys; from holdfast.remote import Connection; Connection('http://127.0.0.1:1', 'a' * 64, token='t'); "
        "assert 'rich' not in sys.modules; import httpx._main; assert httpx._main.main"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
