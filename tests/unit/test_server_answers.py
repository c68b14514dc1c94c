"""What a server answers to what cannot be done: every problem has one form, and tells nothing of what is inside."""

import gzip
import json
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.auth import Rights, Token, seal
from holdfast.errors import DeniedError, InvalidError
from holdfast.runs import Status
from holdfast.server.limits import Limits, check_weight
from holdfast.server.pods import Bytes, OpenPod
from holdfast.store import (
    Batch,
    ClaimLease,
    CreateEdge,
    CreateItem,
    EndLease,
    MoveRun,
    Query,
    ReleaseLease,
    SetVariable,
    UpdateItem,
)
from holdfast.testing import FakeClock, MemoryStore
from tests.components.servers import OWNER, STRANGER, Answer, Served, serving

APPLY = "/api/{owner}/store/apply"
SEARCH = "/api/{owner}/store/search"
EMPTY = b'{"operations": []}'
FILE = "/api/{owner}/files/" + "0" * 64
POD_KEY = bytes(range(32))
NOW_MS = 1_000_000_000_000


class Broken(MemoryStore):
    """A store with a defect."""

    def now_ms(self) -> int:
        """Fail, and say what nobody should hear."""
        if self.is_broken:
            raise RuntimeError("s3cret")
        return super().now_ms()

    is_broken = False


@dataclass
class FakePod:
    """The owner's Pod, in memory."""

    store: Broken
    owner: str = OWNER.owner_key
    files: Bytes = None  # pyright: ignore[reportAssignmentType] -- no test here has one

    @property
    def renewals(self) -> Broken:
        """The same."""
        return self.store

    def is_opened_by(self, database_key: str) -> bool:
        """Say whether it is the owner's key."""
        return database_key == OWNER.database_key

    def admit(self, database_key: str) -> None:
        """Admit nobody else."""
        raise self.denied()

    def denied(self) -> Exception:
        """Return what a stranger is told."""
        return DeniedError("no Pod opens with that")

    def close(self) -> None:
        """Keep it."""


class FakeOpener:
    """Opens one Pod."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW_MS)
        self.pod = FakePod(Broken(clock=self.clock))
        self.pod_key = POD_KEY

    def now_ms(self) -> int:
        """Return milliseconds since 1970."""
        return self.clock.now_ms()

    def open(self, owner: str, database_key: str | None) -> OpenPod:
        """Open it for its owner."""
        if owner != OWNER.owner_key or database_key not in (None, OWNER.database_key):
            raise self.pod.denied()
        return self.pod

    def create(self, owner: str, database_key: str) -> None:
        """Say that it is there."""


OPENER = FakeOpener()
LIMITS = Limits(body_bytes=100_000, denials_per_min=1_000_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a server whose one Pod is in memory."""
    with serving(tmp_path_factory.mktemp("home"), opener=OPENER, limits=LIMITS) as served:
        yield served


@pytest.fixture(autouse=True)
def pod() -> Broken:
    """Return the store of the Pod, empty."""
    OPENER.pod.store = Broken(clock=OPENER.clock)
    return OPENER.pod.store


def check_problem(answer: Answer, status: int, title: str, kind: str, detail: str, **facts: object) -> None:
    """Accept a problem document that says exactly this."""
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.document
    assert detail in document["detail"], document
    expected = {"type": "about:blank", "title": title, "status": status, "kind": kind, "facts": facts}
    assert {**document, "detail": None} == {**expected, "detail": None}
    assert answer.status == status


def batch(*operations: Any, fence: Any = None, key: str | None = None) -> bytes:
    """Return the JSON form of a batch."""
    return Batch(operations, fence, key).to_json()


# -- who calls --------------------------------------------------------------------------------------------------------

DENIED = "no Pod opens with that"
SHUT = "it is not of this Pod, or it was altered"


def token(*, pod_key: bytes = POD_KEY, **changes: Any) -> str:
    """Return a token of the owner's Pod that is good, but for changes."""
    values: dict[str, Any] = {"owner": OWNER.owner_key, "state": "s", "run": "r", "epoch": 1, "holder": "h"}
    return seal(Token(**{**values, "rights": Rights(), "expires_ms": NOW_MS + 1_000, **changes}), pod_key)


@pytest.mark.parametrize(
    "key, detail, facts",
    [
        (None, "the header 'Authorization: Bearer' with a database key or a token is expected", {}),
        ("", "the header 'Authorization: Bearer'", {}),
        ("x", DENIED, {}),
        (STRANGER.database_key, DENIED, {}),
        ("\xe9", DENIED, {}),
        ("hft1.", SHUT, {}),
        ("hft1.AAAA", SHUT, {}),
        (token(pod_key=bytes(32)), SHUT, {}),
        (token(owner=STRANGER.owner_key), "the token is another owner's", {"run": "r"}),
        (token(expires_ms=NOW_MS), "has expired: start the run again", {"run": "r"}),
    ],
)
@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", APPLY),
        ("POST", SEARCH),
        ("POST", "/api/{owner}/claims"),
        ("PUT", FILE),
        ("GET", FILE),
        ("DELETE", FILE),
        ("GET", "/api/{owner}/events"),
    ],
)
def test_who_presents_what_opens_nothing_is_told_so_and_no_more(  # noqa: PLR0917 -- each is a parameter
    served: Served, key: str | None, detail: str, facts: dict[str, object], method: str, path: str
) -> None:
    """It is 401 with a challenge, wherever it is presented, and what was presented is not repeated."""
    answer = served.ask(method, path, b"{}", key=key)
    check_problem(answer, 401, "Unauthorized", "DeniedError", detail, **facts)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not key or len(key) < 8 or key.encode() not in answer.body


def test_an_owner_that_is_not_here_is_told_what_a_wrong_key_is(served: Served) -> None:
    """Nobody learns who has a Pod on a server."""
    answer = served.ask("POST", f"/api/{STRANGER.owner_key}/store/now", key=STRANGER.database_key)
    check_problem(answer, 401, "Unauthorized", "DeniedError", DENIED)


def test_a_key_may_be_written_in_capitals_and_the_scheme_in_any_case(served: Served) -> None:
    """Hexadecimal digits are the same in both, and so are schemes (RFC 9110, 11.1)."""
    answer = served.ask(
        "POST", f"/api/{OWNER.owner_key.upper()}/store/now", key=None, Authorization="bearer " + "b" * 64
    )
    assert (answer.status, answer.document) == (200, NOW_MS)


def test_a_token_has_no_more_than_its_rights(served: Served, pod: Broken, caplog: pytest.LogCaptureFixture) -> None:
    """What they do not cover is 403, and after its run ended, or lost the plugin state, so is everything."""
    setup = (
        CreateItem("r", "PluginRun", {"status": "ready"}),
        CreateItem("s", "PersistentState"),
        CreateEdge("r", "pluginState", "s"),
        ClaimLease("s", "r", "h", 60_000),
    )
    pod.apply(Batch(setup))
    mine, others = batch(SetVariable("s", "n", 1)), batch(SetVariable("other", "n", 1))
    assert served.ask("POST", APPLY, mine, key=token()).document == [None]
    answer = served.ask("POST", APPLY, others, key=token())
    check_problem(answer, 403, "Forbidden", "DeniedError", "plugin state 'other'", **answer.document["facts"])
    for method, path in (("POST", "/api/{owner}/claims"), ("GET", "/api/{owner}/events")):
        answer = served.ask(method, path, b'{"run": "r"}', key=token())
        check_problem(
            answer, 403, "Forbidden", "DeniedError", "is for the owner: a token gives no right to it", run="r"
        )
    for method in ("PUT", "GET", "DELETE"):
        assert served.ask(method, FILE, b"", key=token()).status == 403
    fence = pod.find_lease("s")
    assert fence is not None
    pod.apply(Batch((MoveRun("r", Status.STARTED), ReleaseLease(fence.fence)), fence.fence))
    answer = served.ask("POST", APPLY, mine, key=token())
    check_problem(answer, 409, "Conflict", "FencedError", "plugin state 's' was taken", **answer.document["facts"])
    assert "access.denied" in caplog.text
    assert token()[:20] not in caplog.text


UPLOAD = "/v4/{owner}/upload_file/TOKEN/" + "0" * 64
FOREIGN = token(owner=STRANGER.owner_key)


@pytest.mark.parametrize(
    "method, path, presented, facts",
    [
        ("POST", "/api/{owner}/claims", token(), ("to claim a plugin state for a run", "r", None)),
        ("GET", "/api/{owner}/events", token(), ("to follow what changes in a Pod", "r", None)),
        ("PUT", FILE, token(), ("write", "r", "File")),
        ("DELETE", FILE, token(), ("write", "r", "File")),
        ("POST", UPLOAD, token(), ("write", "r", "File")),
        ("POST", SEARCH, FOREIGN, ("sign in", "r", None)),
        ("POST", UPLOAD, FOREIGN, ("sign in", "r", None)),
        ("POST", SEARCH, token()[:-3] + "abc", ("sign in", None, None)),
        ("POST", SEARCH, token(expires_ms=NOW_MS), ("sign in", None, None)),
        ("POST", SEARCH, STRANGER.database_key, ("sign in", None, None)),
        ("POST", f"/api/{STRANGER.database_key}/store/search", STRANGER.owner_key, ("sign in", None, None)),
    ],
)
def test_each_denial_is_in_the_log_and_no_token_and_no_key(  # noqa: PLR0917 -- each is a parameter
    served: Served,
    pod: Broken,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    presented: str,
    facts: tuple[str, str | None, str | None],
) -> None:
    """Once, with what is known of who asked; what a stranger calls an owner may be a key that stands in its place."""
    pod.apply(
        Batch((CreateItem("r", "PluginRun"), CreateItem("s", "PersistentState"), ClaimLease("s", "r", "h", 1_000)))
    )
    answer = served.ask(method, path.replace("TOKEN", presented), b"{}", key=presented)
    assert answer.status in {401, 403}
    found = [each.__dict__ for each in caplog.records if each.message == "access.denied"]
    assert [(each["operation"], each["run"], each["type"]) for each in found] == [facts]
    assert found[0]["owner"] == ((STRANGER if presented == FOREIGN else OWNER).owner_key if facts[1] else None)
    for each in caplog.records:
        text = f"{each.getMessage()} {each.__dict__}"
        assert presented[:40] not in text
        assert STRANGER.database_key not in text


def test_a_run_that_loses_its_plugin_state_while_a_deletion_waits_lets_no_file_go(served: Served, pod: Broken) -> None:
    """What gives the right to it is looked at in the moment in which it goes."""
    pod.apply(
        Batch((CreateItem("r", "PluginRun"), CreateItem("s", "PersistentState"), ClaimLease("s", "r", "h", 1_000)))
    )
    gone: list[str] = []

    class Files:
        def delete(self, sha256: str, *, is_needed: Callable[[], bool]) -> None:
            pod.apply(Batch((EndLease("s"),)))
            if not is_needed():
                gone.append(sha256)

    OPENER.pod.files = Files()  # pyright: ignore[reportAttributeAccessIssue] -- the rest is not asked for
    presented = token(rights=Rights(writes=frozenset({"File"})))
    try:
        answer = served.ask("DELETE", FILE, key=presented)
    finally:
        OPENER.pod.files = None  # pyright: ignore[reportAttributeAccessIssue]
    check_problem(answer, 409, "Conflict", "FencedError", "plugin state 's' was taken", **answer.document["facts"])
    assert gone == []


def test_a_run_whose_token_would_be_too_long_claims_nothing(served: Served, pod: Broken) -> None:
    """Its plugin state is free for another."""
    reads = json.dumps([f"Type{number}" for number in range(2_000)])
    pod.apply(Batch((CreateItem("r", "PluginRun", {"pluginModule": "m", "pluginName": "P", "reads": reads}),)))
    answer = served.ask("POST", "/api/{owner}/claims", b'{"run": "r"}')
    check_problem(answer, 422, "Unprocessable Entity", "InvalidError", "cannot be given a token for 2000 item types")
    states = [each.item.id for each in pod.search(Query(type="PersistentState"))]
    assert [pod.find_lease(state) for state in states] in ([], [None])


def test_another_run_is_not_given_the_lease_of_who_has_the_same_holder(served: Served, pod: Broken) -> None:
    """It is told whose it is."""
    for run in ("r1", "r2"):
        pod.apply(Batch((CreateItem(run, "PluginRun", {"pluginModule": "m", "pluginName": "P"}),)))
    first = served.ask("POST", "/api/{owner}/claims", b'{"run": "r1", "holder": "h"}')
    answer = served.ask("POST", "/api/{owner}/claims", b'{"run": "r2", "holder": "h"}')
    facts = {"state": first.document["lease"]["state"], "run": "r1"}
    check_problem(answer, 409, "Conflict", "ConflictError", "is held by run 'r1'", **facts)


def test_a_claim_gives_a_token_for_the_run(served: Served, pod: Broken) -> None:
    """With the rights of the run, until another has the plugin state; the same holder may ask again."""
    pod.apply(Batch((CreateItem("run1", "PluginRun", {"pluginModule": "m", "pluginName": "P", "reads": '["File"]'}),)))
    answer = served.ask("POST", "/api/{owner}/claims", b'{"run": "run1", "holder": "me"}')
    assert answer.status == 201
    lease, sealed = answer.document["lease"], answer.document["token"]
    assert (lease["epoch"], lease["holder"], lease["run"]) == (1, "me", "run1")
    assert (
        served.ask(
            "POST", "/api/{owner}/store/lease", json.dumps({"state": lease["state"]}).encode(), key=sealed
        ).status
        == 200
    )
    again = served.ask("POST", "/api/{owner}/claims", b'{"run": "run1", "holder": "me"}')
    assert again.document["lease"] == lease
    answer = served.ask("POST", "/api/{owner}/claims", b'{"run": "run1"}')
    check_problem(answer, 409, "Conflict", "ConflictError", "is held by run 'run1'", **answer.document["facts"])


@pytest.mark.parametrize("how, lasts_ms", [({}, 60_000), ({"lease_s": 7.5}, 7_500)])
def test_a_claim_lasts_a_minute_or_as_long_as_the_server_was_told(
    how: dict[str, float], lasts_ms: int, pod: Broken, tmp_path: Path
) -> None:
    """Without a renewal; the run then says itself how long its own last."""
    pod.apply(Batch((CreateItem("run1", "PluginRun", {"pluginModule": "m", "pluginName": "P"}),)))
    with serving(tmp_path, opener=OPENER, **how) as told:
        answer = told.ask("POST", "/api/{owner}/claims", b'{"run": "run1"}')
    assert answer.document["lease"]["expires_ms"] == NOW_MS + lasts_ms


@pytest.mark.parametrize(
    "text, status, detail",
    [
        (b"{", 422, "a claim must be JSON"),
        (b"[]", 422, "a claim must be an object"),
        (b'{"run": 1}', 422, "both are text"),
        (b'{"run": "a", "x": 1}', 422, "a claim must be an object"),
        (b'{"run": "absent"}', 404, "there is no item 'absent'"),
        (b'{"run": "a\\u0000"}', 404, "there is no item"),
    ],
)
def test_a_claim_that_cannot_be_says_why(served: Served, text: bytes, status: int, detail: str) -> None:
    """Nothing is claimed then."""
    answer = served.ask("POST", "/api/{owner}/claims", text)
    assert (answer.status, detail in answer.document["detail"]) == (status, True), answer


# -- what is asked ----------------------------------------------------------------------------------------------------


def test_each_kind_of_refusal_of_a_store_has_its_status(served: Served, pod: Broken) -> None:
    """The kind is the error that a client raises again, with its facts."""
    pod.apply(Batch((CreateItem("a", "Person"),)))
    answer = served.ask("POST", APPLY, batch(CreateItem("a", "Person")))
    check_problem(answer, 409, "Conflict", "ConflictError", "'a' exists already", **answer.document["facts"])
    answer = served.ask("POST", APPLY, batch(UpdateItem("absent", {})))
    check_problem(answer, 404, "Not Found", "NotFoundError", "'absent'", **answer.document["facts"])
    answer = served.ask("POST", APPLY, batch(CreateItem("b", "Nothing")))
    check_problem(answer, 422, "Unprocessable Entity", "InvalidError", "'Nothing'", **answer.document["facts"])
    pod.close()
    answer = served.ask("POST", APPLY, EMPTY)
    check_problem(answer, 503, "Service Unavailable", "UnavailableError", "this store is closed")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", [APPLY, SEARCH])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'{"operations": 1}',
        b'{"operations": ' + b"[" * 40_000,
        b'{"query": ' + b"[" * 40_000,
        b'{"operations": [' + b'{"op":' * 10_000,
        b'{"query": {"limit": NaN}}',
        b'{"query": {"limit": ' + b"9" * 50_000 + b"}}",
        b'{"operations": [{"op": "set_variable", "state": "s", "name": "n", "value": 1e999}]}',
        b'{"operations": [{"op": "explode"}]}',
    ],
)
def test_what_is_no_batch_and_no_question_is_refused_however_strange_it_is(
    served: Served, path: str, body: bytes
) -> None:
    """Deep, long and wrong JSON is answered like any value that cannot be."""
    answer = served.ask("POST", path, body)
    facts = answer.document["facts"]
    check_problem(answer, 422, "Unprocessable Entity", "InvalidError", "", **facts)
    assert len(answer.body) < 2_000


def test_json_that_takes_much_more_memory_than_its_text_is_refused_before_it_is_read() -> None:
    """A body of the allowed size would else be read into forty times as much; a comma in a text takes nothing."""
    assert check_weight(b'[{"a":1},{"a":1},[]]', 1_600) == 1_600
    with pytest.raises(InvalidError, match="takes 1,600 bytes when it is read: at most 1,599 are allowed"):
        check_weight(b'[{"a":1},{"a":1},[]]', 1_599)
    assert check_weight(rb'{"a": ",,[{\\\",,"}', 300) == 300


@pytest.mark.timeout(60)
@pytest.mark.parametrize("end", [b"", b"\\"])
def test_a_string_without_an_end_is_looked_at_once(end: bytes) -> None:
    """And not again from each quotation mark in it, which would take minutes."""
    body = b"[" * 20_000 + b'"' + (b'\\"' + b"," * 900) * 40_000 + end
    with pytest.raises(InvalidError, match="takes 6,000,000 bytes"):
        check_weight(body, 1_000_000)


def test_what_an_owner_sends_may_be_made_into_half_of_the_memory(tmp_path: Path) -> None:
    """However short it is; it would else be read, and then refused."""
    with serving(tmp_path, opener=OPENER, limits=Limits(body_bytes=100_000, memory_bytes=1)) as small:
        answer = small.ask("POST", APPLY, b'{"operations": [' + b",".join([b"{}"] * 600) + b"]}")
    facts = {"bytes": 300_400, "max_bytes": 198_183}
    check_problem(answer, 422, "Unprocessable Entity", "InvalidError", "takes 300,400 bytes", **facts)


@pytest.mark.parametrize(
    "host, origin, status",
    [
        ("localhost", None, 200),
        ("LOCALHOST:3030", None, 200),
        ("127.9.9.9:1", None, 200),
        ("[::1]:3030", None, 200),
        ("pod.localhost", None, 200),
        ("pod.example:443", None, 200),
        ("evil.example", None, 421),
        ("localhost.evil.example", None, 421),
        ("10.0.0.1", None, 421),
        ("[::1", None, 421),
        ("evil.example", "http://evil.example", 421),
        ("localhost:3030", "http://localhost:3030", 200),
        ("localhost:3030", "https://pod.example", 200),
        ("localhost:3030", "http://localhost:8080", 403),
        ("localhost:3030", "https://evil.example", 403),
        ("localhost:3030", "null", 403),
    ],
)
@pytest.mark.parametrize("method, path", [("GET", "/healthz"), ("POST", "/v4/account"), ("POST", SEARCH)])
def test_a_page_of_another_site_may_not_call(  # noqa: PLR0917 -- each is a parameter
    named: Served, host: str, origin: str | None, status: int, method: str, path: str
) -> None:
    """Nor one whose name is made to lead to this machine; its own pages may, and those it was told of."""
    bodies = {
        "/v4/account": b'{"ownerKey": "%b", "databaseKey": "%b"}' % (b"a" * 64, b"b" * 64),
        SEARCH: b'{"query": {"type": "Person"}}',
    }
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    answer = named.ask(method, path, bodies.get(path), **headers)
    assert answer.status == status


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a server that has another name as well."""
    with serving(tmp_path_factory.mktemp("home"), opener=OPENER, hosts=["Pod.example"]) as served:
        yield served


def test_who_has_said_all_and_listens_is_answered(served: Served) -> None:
    """As a program does that closes its half of the connection after its request."""
    body = b'{"query": {"type": "Person"}}'
    path = SEARCH.replace("{owner}", OWNER.owner_key)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OWNER.database_key}\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as opened:
        opened.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        opened.shutdown(socket.SHUT_WR)
        found = b""
        while part := opened.recv(65_536):
            found += part
    assert found.startswith(b"HTTP/1.1 200 ")
    assert found.endswith(b"\r\n\r\n[]")


def test_what_is_no_request_is_a_problem_too(served: Served) -> None:
    """It has no address, so it is answered as those under /api are."""
    found = served.raw(b"GET / HTTP/9.9 and more\r\n\r\n")
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n")
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "what came is no request of HTTP, or its head is too long",
        "kind": "InvalidError",
        "facts": {},
    }


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_large_is_told_the_limit(served: Served, is_chunked: bool) -> None:
    """Whether it says how long it is or not, also to who sends all before it reads."""
    path, length = f"/api/{OWNER.owner_key}/store/apply", 10_000_000
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OWNER.database_key}\r\n"
    if is_chunked:
        parts = [f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), *[b"10000\r\n" + b" " * 65_536 + b"\r\n"] * 152]
    else:
        parts = [f"{head}Content-Length: {length}\r\n\r\n".encode(), b" " * length]
    found = served.raw(*parts)
    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in found
    document = json.loads(found.rpartition(b"\r\n\r\n")[2])
    assert (document["detail"], document["facts"]) == (
        "the body is too large: at most 100,000 bytes are allowed here",
        {"max_bytes": 100_000},
    )


def test_a_body_that_is_compressed_is_refused(served: Served) -> None:
    """A small one can become larger than the memory there is."""
    answer = served.ask("POST", APPLY, gzip.compress(EMPTY), Content_Encoding="gzip")
    check_problem(answer, 415, "Unsupported Media Type", "InvalidError", "cannot be encoded as 'gzip'", encoding="gzip")


@pytest.mark.parametrize(
    "method, path, status, title, kind, detail, facts",
    [
        ("GET", "/nothing", 404, "Not Found", "NotFoundError", "there is nothing at this address", {}),
        ("POST", "/api/{owner}/store/close", 404, "Not Found", "NotFoundError", "nothing at this address", {}),
        ("PUT", "/api/{owner}/", 404, "Not Found", "NotFoundError", "nothing at this address", {}),
        ("GET", APPLY, 405, "Method Not Allowed", "InvalidError", "takes another method: POST", {}),
        (
            "POST",
            "/api/x/store/apply",
            422,
            "Unprocessable Entity",
            "InvalidError",
            "path.owner is wrong",
            {"field": "path.owner"},
        ),
        (
            "GET",
            "/api/{owner}/files/x",
            422,
            "Unprocessable Entity",
            "InvalidError",
            "path.sha256 is wrong",
            {"field": "path.sha256"},
        ),
    ],
)
def test_an_address_that_is_none_is_a_problem_too(  # noqa: PLR0917 -- each is a parameter
    served: Served, method: str, path: str, status: int, title: str, kind: str, detail: str, facts: dict[str, object]
) -> None:
    """It has the form that all others have."""
    check_problem(served.ask(method, path), status, title, kind, detail, **facts)


def test_elsewhere_a_problem_is_a_sentence(served: Served) -> None:
    """The clients of the older API show what stands in the body."""
    answer = served.ask("POST", "/v4/{owner}/nothing")
    assert (answer.status, answer.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert answer.body == b"there is nothing at this address"


def test_a_defect_is_answered_with_an_id_under_which_the_log_has_the_rest(
    served: Served, pod: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    """What went wrong inside is told to nobody who calls."""
    pod.is_broken = True
    answer = served.ask("POST", APPLY, EMPTY)
    id_ = answer.document["facts"]["id"]
    check_problem(
        answer, 500, "Internal Server Error", "HoldfastError", f"its log has the reason under '{id_}'", id=id_
    )
    assert b"s3cret" not in answer.body
    record = next(each for each in caplog.records if each.message == "request.failed")
    assert (record.__dict__["id"], str(record.exc_info and record.exc_info[1])) == (id_, "s3cret")


def test_the_log_names_routes_and_never_what_stands_in_their_place(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys and tokens are in headers and, in the older API, in addresses: neither is written anywhere."""
    caplog.set_level(logging.DEBUG)
    served.ask("POST", SEARCH, b'{"query": {"type": "Person"}}')
    served.ask("POST", f"/v4/{{owner}}/upload_file/{OWNER.database_key}/{'0' * 64}", b"x")
    served.ask("GET", f"/{OWNER.database_key}")
    served.ask("POST", APPLY, EMPTY, key=STRANGER.database_key)
    served.ask("GET", "/healthz")  # what was answered before is in the log by now
    said = [(each.__dict__["status"], each.__dict__["route"]) for each in caplog.records if "status" in each.__dict__]
    assert set(said) >= {
        (200, "/api/{owner}/store/search"),
        (404, "/v4/{owner}/upload_file/{database_key}/{sha256}"),
        (404, "other"),
        (401, "/api/{owner}/store/apply"),
    }
    for each in caplog.records:
        text = f"{each.getMessage()} {each.__dict__}"
        assert OWNER.database_key not in text
        assert STRANGER.database_key not in text
