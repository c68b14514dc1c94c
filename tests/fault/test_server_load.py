"""A server whose clients are many, slow, gone or hostile: whoever behaves is served as before."""

import asyncio
import hashlib
import json
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.context import Settings
from holdfast.context.serving import LocalPods
from holdfast.items import File, PluginRun
from holdfast.keys import Identity
from holdfast.pod import Pod
from holdfast.runs import Lease, Status
from holdfast.server.app import Application
from holdfast.server.limits import Limits, Places
from holdfast.server.listening import Server, _max_connections
from holdfast.server.pods import OpenPods
from holdfast.server.problems import Refused
from holdfast.store import Batch, ClaimLease, CreateItem, MoveRun, RenewLease
from tests.components.servers import OWNER, STRANGER, Process, Served, make_certificate, serving

UPLOADS = FOLLOWERS = 40
WRITERS = 8
FILE_BYTES = 300_000


def head(method: str, path: str, **headers: str) -> bytes:
    """Return the head of a request of the owner."""
    given = {"Host": "localhost", "Authorization": f"Bearer {OWNER.database_key}", **headers}
    lines = [f"{method} /api/{OWNER.owner_key}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def content(number: int) -> bytes:
    """Return the bytes of a file."""
    return bytes([number]) * FILE_BYTES


async def upload_slowly(port: int, number: int, is_over: Callable[[], bool]) -> int:
    """Upload a file in small parts until ``is_over``, and then the rest; return the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = content(number)
    sha256 = hashlib.sha256(data).hexdigest()
    writer.write(head("PUT", f"/files/{sha256}", **{"Content-Length": str(len(data))}))
    at = 0
    while not is_over() and at < len(data) - 2_000:
        writer.write(data[at : at + 2_000])
        await writer.drain()
        at += 2_000
        await asyncio.sleep(0.02)
    writer.write(data[at:])
    await writer.drain()
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


async def follow(port: int, is_over: Callable[[], bool]) -> list[str]:
    """Follow events until ``is_over``; return the statuses of runs that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("GET", "/events"))
    found: list[str] = []
    while not (is_over() and found and found[-1] == "done"):
        line = await reader.readline()
        if line.startswith(b"data: "):
            found.append(str(json.loads(line[6:]).get("status")))
    writer.close()
    return found


@contextmanager
def besieged(port: int) -> Generator[Callable[[], list[object]]]:
    """Upload slowly and follow events for the block; yield what ends it and returns what came of each."""
    is_over = threading.Event()

    async def all_of_it() -> list[object]:
        uploads = [upload_slowly(port, number, is_over.is_set) for number in range(UPLOADS)]
        followers = [follow(port, is_over.is_set) for _ in range(FOLLOWERS)]
        return list(await asyncio.gather(*uploads, *followers))

    with ThreadPoolExecutor(1) as pool:
        siege = pool.submit(asyncio.run, all_of_it())

        def end() -> list[object]:
            is_over.set()
            return siege.result()

        try:
            yield end
        finally:
            is_over.set()


def test_with_40_uploads_40_followers_and_8_writers_each_renewal_is_prompt_and_no_lease_is_lost(
    tmp_path: Path,
) -> None:
    """Renewals wait neither for a thread nor behind what is written: at most forty times as long as without company."""
    with Process(tmp_path / "home") as server:
        stores = [server.store() for _ in range(WRITERS + 1)]
        store = stores[-1]
        pod = Pod(store)
        for number in range(UPLOADS):
            data = content(number)
            pod.create(File(sha256=hashlib.sha256(data).hexdigest(), size=len(data)))
        claim = ClaimLease("s", "r", "h", 60_000)
        lease = store.apply(Batch((CreateItem("r", "PluginRun", {"status": "ready"}), claim)))[-1]
        assert isinstance(lease, Lease)

        def renewals(count: int) -> list[float]:
            took: list[float] = []
            for _ in range(count):
                began = time.monotonic()
                renewed = store.apply(Batch((RenewLease(lease.fence, 60_000),)))[0]
                took.append(time.monotonic() - began)
                assert isinstance(renewed, Lease)
                assert renewed.fence == lease.fence
            return sorted(took)

        quiet = renewals(20)
        written = [0] * WRITERS
        is_over = threading.Event()

        def write(number: int) -> None:
            while not is_over.is_set():
                ids = [f"w{number}-{written[number]}-{each}" for each in range(200)]
                stores[number].apply(Batch(tuple(CreateItem(id_, "Person", {"firstName": "x"}) for id_ in ids)))
                written[number] += 1

        with besieged(server.port) as end, ThreadPoolExecutor(WRITERS) as pool:
            writing = [pool.submit(write, number) for number in range(WRITERS)]
            while min(written) < 2:
                threading.Event().wait(0.01)
            loud = renewals(20)
            is_over.set()
            for each in writing:
                each.result()
            store.apply(Batch((MoveRun("r", Status.STARTED), MoveRun("r", Status.DONE)), lease.fence))
            came = end()
        assert came[:UPLOADS] == [201] * UPLOADS
        assert all(isinstance(each, list) and each[-1] == "done" for each in came[UPLOADS:])
        usual = quiet[len(quiet) // 2]
        assert loud[len(loud) // 2] <= 150 * usual, (quiet, loud)
        assert loud[-1] <= 400 * usual, (quiet, loud)


# -- clients that are slow, gone or too many --------------------------------------------------------------------------

HASTE = Limits(
    header_s=0.3,
    idle_s=0.5,
    bytes_per_s=1_000,
    requests=12,
    uploads=4,
    followers=4,
    requests_per_s=40,
    denials_per_min=3,
)


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Served]:
    """Return a server that allows little."""
    with serving(tmp_path / "home", limits=HASTE) as served:
        served.store()
        yield served


def connected(served: Served) -> socket.socket:
    """Return a connection to a server."""
    return socket.create_connection(("127.0.0.1", served.port))


def answer_to(opened: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection."""
    found = b""
    with suppress(ConnectionResetError):
        while part := opened.recv(65_536):
            found += part
    return found


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_a_head_that_does_not_come_to_its_end_is_not_waited_for(hasty: Served, before: bytes, sent: bytes) -> None:
    """Neither on a new connection nor on one that was used."""
    with connected(hasty) as opened:
        opened.sendall(before)
        while before and not before.endswith(b"}"):
            before = opened.recv(1_000)
        opened.sendall(sent)
        found = answer_to(opened)
        assert found.startswith(b"HTTP/1.1 408 ") if sent or not before else not found


def test_a_head_that_trickles_gains_no_time_by_it(hasty: Served) -> None:
    """The time is for all of it, and not from one letter to the next."""
    with connected(hasty) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nx: ")
        opened.settimeout(0.02)
        found, began = b"", time.monotonic()
        while not found:
            assert time.monotonic() < began + 20
            with suppress(OSError):
                opened.sendall(b"a")
            with suppress(TimeoutError):
                found = opened.recv(1_000)
        assert found.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", ["/store/apply", f"/files/{hashlib.sha256(content(1)).hexdigest()}"])
@pytest.mark.parametrize("is_trickling", [False, True])
def test_a_body_that_comes_too_slowly_is_not_waited_for(hasty: Served, path: str, is_trickling: bool) -> None:
    """Nor is one that never pauses long, and would take days; what there is of a file is not kept."""
    Pod(hasty.store()).create(File(sha256=hashlib.sha256(content(1)).hexdigest()))
    with connected(hasty) as opened:
        opened.sendall(head("POST" if "store" in path else "PUT", path, **{"Content-Length": str(FILE_BYTES)}))
        opened.settimeout(0.1 if is_trickling else None)
        found, began = b"", time.monotonic()
        while not found:
            assert time.monotonic() < began + 20
            with suppress(OSError):
                opened.sendall(b"a")
            with suppress(TimeoutError):
                found = opened.recv(4_000)
        assert found.startswith(b"HTTP/1.1 408 ")
    folder = hasty.settings.home / "files" / OWNER.owner_key
    assert not folder.exists() or not [*folder.glob(".*")]


def test_an_upload_whose_client_has_gone_leaves_nothing(hasty: Served) -> None:
    """The next one finds room, and no part of it."""
    data = content(2)
    sha256 = hashlib.sha256(data).hexdigest()
    Pod(hasty.store()).create(File(sha256=sha256))
    folder = hasty.settings.home / "files" / OWNER.owner_key
    for _ in range(3):  # more than there are places
        with connected(hasty) as opened:
            opened.sendall(head("PUT", f"/files/{sha256}", **{"Content-Length": str(len(data))}) + data[:100])
            while not folder.exists() or not [*folder.glob(".*")]:
                time.sleep(0.01)
        while [*folder.glob(".*")]:
            time.sleep(0.01)
    assert hasty.ask("GET", f"/api/{{owner}}/files/{sha256}").status == 404
    assert hasty.ask("PUT", f"/api/{{owner}}/files/{sha256}", data).status == 201
    assert hasty.ask("GET", f"/api/{{owner}}/files/{sha256}").body == data
    answer = hasty.ask("PUT", f"/api/{{owner}}/files/{sha256}", data)
    assert (answer.status, answer.document["kind"]) == (409, "ConflictError")


def test_of_too_many_at_once_the_last_is_told_to_come_again(hasty: Served) -> None:
    """Uploads, followers and requests have so many places, and each that ends makes room."""
    for number in range(5):
        Pod(hasty.store()).create(File(sha256=hashlib.sha256(content(number)).hexdigest()))
    with ExitStack() as ending:
        opened = [ending.enter_context(connected(hasty)) for _ in range(5)]
        for number, each in enumerate(opened):
            path = f"/files/{hashlib.sha256(content(number)).hexdigest()}"
            each.sendall(head("PUT", path, **{"Content-Length": str(FILE_BYTES)}) + b"x")
        first = next(each for each in opened if _is_answered(each, opened))
        found = answer_to(first)
        assert found.startswith(b"HTTP/1.1 503 ")
        assert b"at most 4 files are taken at once" in found
        assert b"retry-after: 1" in found
    with ExitStack() as ending:
        opened = [ending.enter_context(connected(hasty)) for _ in range(2)]
        for each in opened:
            each.sendall(head("GET", "/events"))
            assert each.recv(1_000).startswith(b"HTTP/1.1 200 ")
        answer = hasty.ask("GET", "/api/{owner}/events")
        assert (answer.status, answer.document["facts"]) == (503, {"limit": 4})


def _is_answered(one: socket.socket, among: list[socket.socket]) -> bool:
    readable, _, _ = select.select(among, [], [], 20)
    return one in readable


def test_an_owner_who_asks_without_end_is_slowed_down(hasty: Served) -> None:
    """After a burst of twice as many as in a second; the answer says how long to wait, and the client does."""
    answers = [hasty.ask("POST", "/api/{owner}/store/now") for _ in range(120)]
    refused = [each for each in answers if each.status != 200]
    assert refused
    assert {each.status for each in refused} == {429}
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].document["kind"] == "UnavailableError"
    store = hasty.store()
    for _ in range(100):
        store.now_ms()  # its client waits as it is told


def test_who_guesses_keys_is_refused_unseen_and_keeps_nobody_else_out(hasty: Served) -> None:
    """Also from the same address, where a proxy may stand: whose Pod is open comes in."""
    assert hasty.ask("POST", "/api/{owner}/store/now").status == 200
    statuses = [hasty.ask("POST", "/api/{owner}/store/now", key=f"{number:064}").status for number in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert hasty.ask("POST", "/api/{owner}/store/now").status == 200


@pytest.mark.parametrize(
    "method, path, identity, is_run, status",
    [
        ("POST", "/store/now", OWNER, False, 200),
        ("POST", "/store/now", OWNER, True, 200),
        ("PUT", "", OWNER, False, 204),
        ("PUT", "", STRANGER, False, 204),
    ],
)
def test_what_opens_a_pod_does_so_however_much_was_guessed_from_the_same_address(  # noqa: PLR0917 -- each is one
    tmp_path: Path, method: str, path: str, identity: Identity, is_run: bool, status: int
) -> None:
    """Also if the Pod is not open, or not there yet."""
    with serving(tmp_path / "home") as first:
        run = Pod(first.store()).create(PluginRun(pluginModule="m", pluginName="P"))
        claim = first.ask("POST", "/api/{owner}/claims", json.dumps({"run": run.id}).encode())
    with serving(tmp_path / "home", limits=HASTE) as served:
        guesses = [served.ask("POST", "/api/{owner}/store/now", key=f"{number:064}") for number in range(5)]
        assert guesses[-1].status == 429
        key = claim.document["token"] if is_run else identity.database_key
        assert served.ask(method, f"/api/{identity.owner_key}{path}", key=key).status == status
        assert served.ask("POST", "/api/{owner}/store/now", key=f"{6:064}").status == 429


def older(owner: str, database_key: str, size_bytes: int) -> tuple[bytes, bytes]:
    """Return head and body of a request of the older API, whose caller stands in the body."""
    auth = {"type": "ClientAuth", "databaseKey": database_key}
    body = json.dumps({"auth": auth, "payload": "x" * size_bytes}).encode()
    return (
        f"POST /v4/{owner}/get_item HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode(),
        body,
    )


def test_strangers_who_hold_bodies_have_no_memory_that_others_need(tmp_path: Path) -> None:
    """In the older API who calls stands in the body: it is looked for in its first bytes."""
    limits = Limits(body_bytes=400_000, memory_bytes=10_000_000, strangers_bytes=500_000)
    with serving(tmp_path / "home", limits=limits) as served, connected(served) as one, connected(served) as other:
        served.store().now_ms()
        for key, opened in (("f" * 64, one), ("hft1.AAAA", other)):
            before, body = older(OWNER.owner_key, key, 300_000)
            opened.sendall(before + body[:-10])
        refused, _, _ = select.select([one, other], [], [], 20)
        assert answer_to(refused[0]).startswith(b"HTTP/1.1 503 ")
        one_, two = older(OWNER.owner_key, OWNER.database_key, 300_000)
        with connected(served) as mine:
            mine.sendall(one_ + two)
            assert mine.recv(4_000).startswith(b"HTTP/1.1 200 ")
        assert (
            served.ask("POST", "/api/{owner}/store/items", json.dumps({"ids": ["x"] * 20_000}).encode()).status == 200
        )


def test_of_strangers_whose_bodies_do_not_end_the_slowest_make_room(tmp_path: Path) -> None:
    """Who presents a key is answered, in the head or in the body; and a stranger who ends before they are too many."""
    with serving(tmp_path / "home", limits=Limits(requests=8)) as served, ExitStack() as ending:
        served.store().now_ms()
        before, body = older(OWNER.owner_key, STRANGER.database_key, 1_000)
        crowd = [ending.enter_context(connected(served)) for _ in range(12)]
        for each in crowd:
            each.sendall(before + body[:-1])
        assert crowd[0].recv(4_000).startswith(b"HTTP/1.1 503 ")
        head_, mine = older(OWNER.owner_key, OWNER.database_key, 1_000)
        for _ in range(20):
            assert served.ask("POST", "/api/{owner}/store/now").status == 200
            with connected(served) as opened:
                opened.sendall(head_ + mine)
                assert opened.recv(4_000).startswith(b"HTTP/1.1 200 ")
        for each in crowd[1:]:
            with suppress(OSError):  # it was told to come again
                each.sendall(body[-1:])
        assert {each.recv(4_000)[9:12] for each in crowd[1:]} == {b"503", b"401"}


@pytest.mark.parametrize("is_stranger", [False, True])
def test_a_body_must_be_whole_in_some_time(tmp_path: Path, is_stranger: bool) -> None:
    """However steadily it comes; whoever is not known has less."""
    limits = Limits(body_s=60 if is_stranger else 1, strangers_s=1)
    with serving(tmp_path / "home", limits=limits) as served, connected(served) as opened:
        served.store()
        if is_stranger:
            before, body = older(OWNER.owner_key, STRANGER.database_key, 10_000_000)
            opened.sendall(before + body[:100_000])
        else:
            opened.sendall(head("POST", "/store/apply", **{"Content-Length": "10000000"}) + b" " * 100_000)
        opened.settimeout(0.05)
        found, began = b"", time.monotonic()
        while not found:
            assert time.monotonic() < began + 20
            with suppress(OSError):
                opened.sendall(b" " * 100)
            with suppress(TimeoutError):
                found = opened.recv(4_000)
        opened.settimeout(20)
        assert (found + answer_to(opened)).startswith(b"HTTP/1.1 408 ")


def test_the_keys_of_a_new_pod_are_no_long_body(hasty: Served) -> None:
    """There is nothing to know whoever asks by."""
    assert hasty.ask("POST", "/v4/account", b" " * 65_537, key=None).status == 413


def test_those_who_ask_nothing_make_room_for_who_comes(tmp_path: Path) -> None:
    """Whether they have asked before or not, and the ones first that do so for longest; who is answered stays."""
    with serving(tmp_path / "home", limits=Limits(connections=10)) as served, ExitStack() as ending:
        served.store().close()
        following = ending.enter_context(connected(served))
        following.sendall(head("GET", "/events"))
        assert following.recv(4_000).startswith(b"HTTP/1.1 200 ")
        idle = [ending.enter_context(connected(served)) for _ in range(30)]
        for each in idle[-9:]:
            with suppress(OSError):
                each.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                each.recv(4_000)
        for _ in range(12):
            assert served.ask("POST", "/api/{owner}/store/now").status == 200
        assert answer_to(idle[0]) == b""
        served.store().apply(Batch((CreateItem("r", "PluginRun"),)))
        heard = b""
        while b"event: run" not in heard:
            part = following.recv(4_000)
            assert part
            heard += part


def test_with_a_certificate_those_who_never_shake_hands_make_room_and_have_as_little_time(tmp_path: Path) -> None:
    """They are connections as any other is: the first to come go for others, and all when their time is over."""
    certificate = make_certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=certificate[0])
    for limits in (Limits(connections=10), Limits(header_s=0.5)):
        with (
            serving(tmp_path / "home", limits=limits, certificate=certificate) as served,
            ExitStack() as ending,
        ):
            idle = [ending.enter_context(connected(served)) for _ in range(30)]
            for _ in range(12):
                with trusting.wrap_socket(connected(served), server_hostname="127.0.0.1") as opened:
                    opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    assert answer_to(opened).startswith(b"HTTP/1.1 200 ")
            for each in idle[:20]:
                each.settimeout(limits.header_s / 2 if limits.header_s > 1 else 20)
                assert answer_to(each) == b""
    with (
        serving(tmp_path / "home", limits=limits, certificate=certificate) as served,
        trusting.wrap_socket(connected(served), server_hostname="127.0.0.1") as opened,
    ):
        opened.sendall(b"GET /healthz HT")
        assert answer_to(opened).startswith(b"HTTP/1.1 408 ")


def test_of_places_nobody_has_more_than_are_left() -> None:
    """Alone that is half; together with others each has less, and who comes new finds one."""
    places = Places(100, "things are done")
    for number, owner in enumerate(["a", "b", "c"]):
        taken = 0
        with suppress(Refused):
            while True:
                places.take(1, owner)
                taken += 1
        assert taken == [50, 25, 13][number]
    places.take(1, "d")
    places.give(50, "a")
    places.take(14, "b")
    with pytest.raises(Refused, match="at most 100 things are done at once, and for one owner no more than are left"):
        places.take(40, "b")
    places.take(47)
    with pytest.raises(Refused, match="at most 100 things are done at once; try again"):
        places.take()


def test_an_owner_whose_bodies_do_not_end_keeps_no_other_out(tmp_path: Path) -> None:
    """Nor those who ask whether the server is there; who has taken half is told so, and others find places."""
    with serving(tmp_path / "home", limits=Limits(requests=8)) as served, ExitStack() as ending:
        served.store().now_ms()
        other = served.store(STRANGER)
        crowd = [ending.enter_context(connected(served)) for _ in range(20)]
        for each in crowd:
            each.sendall(head("POST", "/store/apply", **{"Content-Length": "100000"}) + b" ")
        waiting = [*crowd]
        while len(waiting) > 4:
            for each in select.select(waiting, [], [], 20)[0]:
                assert each.recv(4_000).startswith(b"HTTP/1.1 503 ")
                waiting.remove(each)
        for _ in range(20):
            assert other.apply(Batch((CreateItem("p", "Person"),), key="k"))[0] is not None
            assert served.ask("GET", "/healthz").status == 200
        assert served.ask("POST", "/api/{owner}/store/now").status == 503


def test_what_a_stranger_sends_is_not_made_into_anything(tmp_path: Path) -> None:
    """Before it is known who calls; who says so first may send as much as others, and who says so last little."""
    auth = '"auth": {"type": "ClientAuth", "databaseKey": "%s"}'
    items = json.dumps([{"type": "Person", "firstName": "x"}] * 1_000)
    bodies = [
        f'{{{auth % key}, "payload": {{"createItems": {items}}}}}'
        if is_first
        else f'{{"payload": {{"createItems": {items}}}, {auth % key}}}'
        for is_first in (True, False)
        for key in (STRANGER.database_key, OWNER.database_key)
    ]
    with serving(tmp_path / "home") as first:
        first.store().now_ms()
    with serving(tmp_path / "home", limits=Limits(strangers_made_bytes=100_000)) as served:
        path = "/v4/{owner}/bulk"
        answers = [served.ask("POST", path, body.encode(), key=None) for body in bodies]
        assert [each.status for each in answers] == [401, 200, 422, 422]
        assert b"send 'auth' first" in answers[3].body


def test_followers_keep_no_pod_open(tmp_path: Path) -> None:
    """One whose Pod was closed for another is told of what came meanwhile, by another process too."""
    with (
        serving(tmp_path / "home", limits=Limits(reopen_s=0.2), max_open=1) as served,
        connected(served) as following,
    ):
        store = served.store()
        store.apply(Batch((CreateItem("r0", "PluginRun"),)))
        following.sendall(head("GET", "/events"))
        heard = b""
        while b": here" not in heard:
            heard += following.recv(4_000)
        for number in range(1, 4):
            assert served.ask("PUT", f"/api/{STRANGER.owner_key}", key=STRANGER.database_key).status == 204
            assert served.store(STRANGER).now_ms() > 0
            with closing(LocalPods(served.settings).open(OWNER.owner_key, OWNER.database_key)) as elsewhere:
                elsewhere.store.apply(Batch((CreateItem(f"r{number}", "PluginRun"),)))
            while f'"id":"r{number}"'.encode() not in heard:
                part = following.recv(4_000)
                assert part
                heard += part


def test_what_a_server_that_ends_cannot_wait_for_is_told_to_come_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a problem, and not as a defect; nothing is left of a file."""
    with ExitStack() as ending:
        with serving(tmp_path / "home", limits=Limits(grace_s=0.2)) as served:
            data = content(1)
            sha256 = hashlib.sha256(data).hexdigest()
            Pod(served.store()).create(File(sha256=sha256))
            opened = [ending.enter_context(connected(served)) for _ in range(2)]
            opened[0].sendall(head("POST", "/store/apply", **{"Content-Length": "10000"}) + b" ")
            opened[1].sendall(head("PUT", f"/files/{sha256}", **{"Content-Length": str(len(data))}) + data[:100])
            folder = served.settings.home / "files" / OWNER.owner_key
            while not folder.exists() or not [*folder.glob(".*")]:
                time.sleep(0.01)
        for each in opened:
            found = answer_to(each)
            assert found.startswith(b"HTTP/1.1 503 ")
            assert json.loads(found.partition(b"\r\n\r\n")[2])["kind"] == "UnavailableError"
    assert not [*folder.glob(".*")]
    assert not [each for each in caplog.records if each.exc_info]


def test_a_process_has_the_files_that_it_may_and_as_many_connections_as_are_left() -> None:
    """Where the system gives few, some are left for Pods."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= before[1] < 3_000:
        pytest.skip(f"at most {before[1]} files may be open here")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1_000, before[1]))
        assert _max_connections(500) == 500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 2_548
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_where_the_system_has_no_connection_to_give_the_log_says_so_in_a_line_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of each that came."""
    server = Server(Application(OpenPods(LocalPods(Settings(home=tmp_path))), Limits(), version="0"), Limits())
    loop = asyncio.new_event_loop()
    with closing(loop):
        for _ in range(1_000):
            server._say(loop, {"message": "m", "exception": OSError(24, "Too many"), "socket": None})
    records = [each for each in caplog.records if each.message == "connection.refused"]
    assert 1 <= len(records) < 10
    assert records[0].__dict__["reason"] == "[Errno 24] Too many"


def hear(opened: socket.socket) -> bytes:
    """Return what comes up to the event of the last run."""
    seen = bytearray()
    while b'"id":"r99"' not in seen[-200_000:]:
        part = opened.recv(100_000)
        assert part, "it was not told of all"
        seen += part
    return bytes(seen)


def test_a_follower_that_does_not_read_is_left_behind_and_comes_again_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Others are told all the same; what it missed is told to it with the id of the last event that it saw."""
    caplog.set_level(logging.INFO, "holdfast.server")
    with serving(tmp_path / "home", limits=replace(HASTE, requests_per_s=10_000)) as served:
        store = served.store()
        runs = [f"r{number}" for number in range(100)]
        with connected(served) as deaf, connected(served) as other, ThreadPoolExecutor(1) as pool:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            for each in (deaf, other):
                each.sendall(head("GET", "/events"))
            while b": here" not in other.recv(4_096):
                pass
            heard = pool.submit(hear, other)
            error = "x" * 100_000
            for run in runs:
                store.apply(Batch((CreateItem(run, "PluginRun", {"error": error}),)))
            seen = heard.result()
            last_id = int(seen.rpartition(b"id: ")[2].split(b"\n")[0])
            while not any(each.__dict__.get("route") == "/api/{owner}/events" for each in caplog.records):
                time.sleep(0.01)
            assert len(answer_to(deaf)) < 100_000 * 100  # it ends before it was told of all
        with connected(served) as again:
            again.sendall(head("GET", "/events", **{"Last-Event-ID": "0"}))
            seen = hear(again)
            ids = {run for run in runs if f'"id":"{run}"'.encode() in seen}
        assert (ids, last_id > 0) == (set(runs), True)
