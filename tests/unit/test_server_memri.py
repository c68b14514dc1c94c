"""Memri's wire API: what each name takes and answers, what it refuses, and that nothing is refused in silence."""

import asyncio
import hashlib
import json
import logging
import re
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException

from holdfast.auth import Rights, Token, seal
from holdfast.blobs import DiskBlobs
from holdfast.errors import DeniedError, HoldfastError, InvalidError
from holdfast.items import PropertyDefinition, TypeDefinition
from holdfast.runs import Fence
from holdfast.server.guarding import Guard
from holdfast.server.limits import Intake, Limits
from holdfast.server.memri import CALLS, memri_router
from holdfast.server.memri_forms import Auth, read
from holdfast.server.pods import Opener, OpenPod, OpenPods
from holdfast.server.problems import Refused, problem_of
from holdfast.server.signing_in import Entrance
from holdfast.store import (
    Batch,
    ClaimLease,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    DeleteItem,
    Operation,
    Query,
    ReleaseLease,
    Store,
)
from holdfast.testing import FakeClock, MemoryStore
from holdfast.values import Kind

OWNER, KEY, OTHER_KEY = "a" * 64, "b" * 64, "c" * 64
POD_KEY = bytes(range(32))
NOW = 1_000_000_000_000
HELLO = b"hello"
SHA = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
DOG = {
    "nodes": {
        "Dog": {
            "properties": {
                "name": "Text",
                "age": "Integer",
                "weight": "Real",
                "bites": "Bool",
                "dateOfBirth": "DateTime",
            }
        }
    },
    "edges": {"friend": [{"source": "Dog", "target": "Dog"}], "owner": [{"source": "Dog", "target": "Person"}]},
    "meta": {"name": "dogs", "url": "dogs.example", "version": "1"},
}


@dataclass
class Pod:
    """One owner's Pod in memory."""

    owner: str
    key: str
    store: Store
    files: DiskBlobs

    @property
    def renewals(self) -> Store:
        """Nothing else is written in these tests."""
        return self.store

    def is_opened_by(self, database_key: str) -> bool:
        """There is one key."""
        return database_key == self.key

    def admit(self, database_key: str) -> None:
        """And it stays."""
        raise DeniedError("no")

    def close(self) -> None:
        """It is in memory."""


class Pods(Opener):
    """Makes and opens Pods in memory."""

    pod_key = POD_KEY

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(NOW)
        self.made: dict[str, Pod] = {}
        self._folder = folder

    def now_ms(self) -> int:
        """What all of it is measured on."""
        return self.clock.now_ms()

    def open(self, owner: str, database_key: str | None) -> OpenPod:
        """Also for a token."""
        pod = self.made.get(owner)
        if pod is None or database_key not in (None, pod.key):
            raise DeniedError("what was presented opens nothing")
        return pod

    def create(self, owner: str, database_key: str) -> None:
        """Nothing happens if it is there."""
        pod = self.made.setdefault(
            owner, Pod(owner, database_key, MemoryStore(clock=self.clock), DiskBlobs(self._folder, POD_KEY))
        )
        if database_key != pod.key:
            raise DeniedError("another key opens it")


class Http:
    """Sends requests to an application in this process."""

    def __init__(self, app: Any) -> None:
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://pod")

    def post(self, path: str, **how: Any) -> httpx.Response:
        """Send one and return the answer."""
        return self._runner.run(self._client.post(path, **how))

    def get(self, path: str) -> httpx.Response:
        """Send one and return the answer."""
        return self._runner.run(self._client.get(path))

    def close(self) -> None:
        """End the event loop."""
        self._runner.run(self._client.aclose())
        self._runner.close()


@dataclass
class Api:
    """A client that sends what Memri's clients send."""

    http: Http
    pods: Pods
    auth: dict[str, Any] = field(default_factory=lambda: {"type": "ClientAuth", "databaseKey": KEY})
    woken: list[str] = field(default_factory=list)

    def send(self, name: str, payload: Any, *, key: str | None = None, auth: Any = None) -> httpx.Response:
        """Call a name; the answer is JSON if it succeeded, and text if not."""
        path = name if name.startswith("/") else f"/v4/{OWNER}/{name}"
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = self.http.post(path, json={"auth": auth or self.auth, "payload": payload}, headers=headers)
        kind = answer.headers["content-type"]
        if answer.status_code == 200:
            assert kind in ("application/json", "application/octet-stream")
        else:
            assert kind == "text/plain; charset=utf-8"
            assert answer.text
        return answer

    def __call__(self, name: str, payload: Any, **how: Any) -> Any:
        """Call a name that succeeds."""
        answer = self.send(name, payload, **how)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, name: str, payload: Any, **how: Any) -> tuple[int, str]:
        """Call a name that is refused; return status and text."""
        answer = self.send(name, payload, **how)
        assert answer.status_code >= 400
        return answer.status_code, answer.text

    def upload(self, sha256: str, data: bytes, *, key: str = KEY) -> tuple[int, str]:
        """Send the bytes of a file."""
        answer = self.http.post(f"/v4/{OWNER}/upload_file/{key}/{sha256}", content=data)
        return answer.status_code, answer.text

    @property
    def pod(self) -> Pod:
        """What lies behind."""
        return self.pods.made[OWNER]

    def write(self, *operations: Operation) -> None:
        """Write past the API."""
        self.pod.store.apply(Batch(operations))


class Server:
    """What answers, in this process; each test has Pods of its own in it."""

    def __init__(self, limits: Limits) -> None:
        self.woken: list[str] = []
        self._entrance = Entrance(OpenPods(Pods(Path())), limits)

        async def answer(request: Request, exc: Exception) -> Any:
            return problem_of(exc).response(request.url.path)

        app = FastAPI(
            version="1.2.3",
            exception_handlers=dict.fromkeys((HoldfastError, Refused, HTTPException, RequestValidationError), answer),
        )
        app.include_router(memri_router(self._entrance, Intake(limits), self.woken.append))
        self.http = Http(Guard(app, limits))

    def api(self, folder: Path) -> Api:
        """Return the API of one Pod in memory, with its files in a folder."""
        pods = Pods(folder)
        self._entrance.pods = OpenPods(pods)
        self.woken.clear()
        api = Api(self.http, pods, woken=self.woken)
        assert self.http.post("/v4/account", json={"ownerKey": OWNER, "databaseKey": KEY}).status_code == 200
        return api


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server for all of these tests."""
    found = Server(Limits(denials_per_min=10_000))
    with closing(found.http):
        yield found


@pytest.fixture
def api(server: Server, tmp_path: Path) -> Api:
    """A server with one Pod, in memory."""
    return server.api(tmp_path)


# -- who calls --------------------------------------------------------------------------------------------------------


def test_the_version_is_told_to_anybody(api: Api) -> None:
    """As clients ask for it before they have keys."""
    assert api.http.get("/version").json() == {"cargo": "1.2.3", "server": "holdfast"}


def test_making_an_account_twice_is_harmless_and_with_another_key_refused(api: Api) -> None:
    """What is there stays, and stays the owner's."""
    id_ = api("create_item", {"type": "Person"})
    again = api.http.post("/v4/account", json={"ownerKey": OWNER.upper(), "databaseKey": KEY})
    other = api.http.post("/v4/account", json={"ownerKey": OWNER, "databaseKey": OTHER_KEY})
    assert (again.status_code, other.status_code, len(api.pods.made)) == (200, 401, 1)
    assert other.headers["content-type"] == "text/plain; charset=utf-8"
    assert [item["id"] for item in api("get_item", id_)] == [id_]


@pytest.mark.parametrize(
    "auth",
    [
        {"type": "ClientAuth", "databaseKey": OTHER_KEY},
        {"type": "ClientAuth", "databaseKey": ""},
        {"type": "PluginAuth", "data": {"token": "hft1.forged"}},
    ],
)
def test_what_opens_nothing_is_401_for_every_name(api: Api, auth: Any) -> None:
    """Another key, none, or no token."""
    for call in CALLS:
        path = call.path.replace("{owner}", OWNER)
        payload = {} if call.payload is not str else "x"
        payload = {"item": "x"} if path.endswith("get_edges") else payload
        payload = {"plugins": []} if path.endswith("status") else payload
        payload = {"_source": "x", "_target": "y", "_name": "z"} if "edge_by" in path or "te_edge" in path else payload
        assert api.refused(path, payload, auth=auth)[0] == 401, path
    assert api.refused("get_file", {"sha256": SHA}, auth=auth)[0] == 401
    assert api.refused("delete_file", {"id": "x"}, auth=auth)[0] == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1",
        b"[]",
        b'{"payload": "x"}',
        b'{"auth": {"type": "ClientAuth", "databaseKey": "' + b"d" * 64 + b'", "more": 1}, "payload": "x"}',
        b'{"auth": {"type": "OtherAuth", "databaseKey": "' + b"d" * 64 + b'"}, "payload": "x"}',
        b'{"auth": {"type": "PluginAuth", "data": "' + b"d" * 64 + b'"}, "payload": "x"}',
        b'{"auth": {"type": "ClientAuth", "databaseKey": "' + b"b" * 64 + b'"}, "payload": 1}',
        b'{"auth": {"type": "ClientAuth", "databaseKey": "' + b"d" * 64 + b'"}, "payload": ' + b"[" * 10_000,
    ],
)
def test_a_body_of_another_shape_is_422_and_no_key_in_it_is_repeated(api: Api, body: bytes) -> None:
    """Not even one that stands in the wrong place."""
    answer = api.http.post(f"/v4/{OWNER}/get_item", content=body)
    assert answer.status_code == 422
    assert answer.text.startswith("the body is wrong")
    assert "ddd" not in answer.text
    assert "bbb" not in answer.text


def test_no_key_is_in_an_errors_history() -> None:
    """Where a log would show it."""
    with pytest.raises(InvalidError) as caught:
        read(TypeAdapter(Auth), json.dumps({"type": "d" * 9}), "what says who calls")
    assert "d" * 9 not in "".join(traceback.format_exception(caught.value))


def test_a_body_that_is_too_large_is_413_and_the_text_names_the_limit(tmp_path: Path) -> None:
    """Before any of it is looked at."""
    server = Server(Limits(body_bytes=1_000))
    with closing(server.http):
        status, text = server.api(tmp_path).refused("create_item", {"type": "Person", "firstName": "x" * 1_000})
    assert status == 413
    assert "1,000 bytes" in text


def test_a_name_that_there_is_not_is_404_as_text(api: Api) -> None:
    """Memri's Pods have more, which is nothing that a Pod is for."""
    assert api.refused("send_email", {})[0] == 404


# -- items ------------------------------------------------------------------------------------------------------------


def test_an_item_is_answered_with_all_that_every_item_has_and_dates_in_milliseconds(api: Api) -> None:
    """What is null is not there; who follows is woken."""
    id_ = api("create_item", {"type": "Person", "firstName": "Ada", "birthDate": 10, "lastName": None})
    assert re.fullmatch("[0-9a-f]{32}", id_)
    assert api("get_item", id_) == [
        {
            "id": id_,
            "type": "Person",
            "dateCreated": NOW,
            "dateModified": NOW,
            "dateServerModified": NOW,
            "deleted": False,
            "firstName": "Ada",
            "birthDate": 10,
        }
    ]
    assert api.woken == [OWNER]


def test_a_client_gives_an_item_its_id_and_dates_and_the_pod_keeps_its_own(api: Api) -> None:
    """An item is sent back as it was read."""
    item = {
        "type": "Person",
        "id": "ada",
        "dateCreated": 1,
        "dateModified": 2,
        "dateServerModified": 3,
        "deleted": None,
    }
    assert api("create_item", item) == "ada"
    found = api("get_item", "ada")[0]
    assert (found["dateCreated"], found["dateModified"], found["dateServerModified"]) == (1, 2, NOW)


@pytest.mark.parametrize("id_", ["nobody", "", "no id", "\0", "x" * 100_000])
def test_an_item_that_is_not_there_is_an_empty_list(api: Api, id_: str) -> None:
    """Also under what no item can be called."""
    assert api("get_item", id_) == []


def test_a_deleted_item_is_left_out_unless_it_is_asked_for(api: Api) -> None:
    """Deleting it again, or what never was, is silent; its id stays taken."""
    api("create_item", {"type": "Person", "id": "gone"})
    api("create_item", {"type": "Person", "id": "here"})
    assert [api("delete_item", id_) for id_ in ("gone", "gone", "never")] == [{}, {}, {}]
    assert api("get_item", "gone") == []
    found = {
        deleted: [item["id"] for item in api("search", {"type": "Person", **more})]
        for deleted, more in {"no": {}, "yes": {"deleted": True}, "both": {"deleted": None}}.items()
    }
    assert found == {"no": ["here"], "yes": ["gone"], "both": ["gone", "here"]}
    assert api.refused("create_item", {"type": "Person", "id": "gone"})[0] == 409
    api("update_item", {"id": "gone", "deleted": False})
    assert len(api("get_item", "gone")) == 1


def test_an_update_changes_what_it_names_and_null_erases(api: Api) -> None:
    """A whole item may be sent back."""
    id_ = api("create_item", {"type": "Person", "firstName": "Ada", "lastName": "L", "email": "a@b"})
    before = api("get_item", id_)[0]
    api.pods.clock.advance(5)
    sent_back = {**before, "firstName": "Bea", "lastName": None}
    assert api("update_item", sent_back) == {}
    assert api("get_item", id_) == [
        {**{k: v for k, v in before.items() if k != "lastName"}, "firstName": "Bea", "dateServerModified": NOW + 5}
    ]


@pytest.mark.parametrize(
    "name, payload, status, text",
    [
        ("create_item", {"type": "Person", "nickname": "x"}, 422, "Person has no property 'nickname'"),
        ("create_item", {"type": "Person", "firstName": 1}, 422, "Person.firstName cannot be 1: it is declared Text"),
        ("create_item", {"type": "Person", "birthDate": "2020-01-01"}, 422, "it is declared DateTime"),
        ("create_item", {"type": "Person", "birthDate": 1.5}, 422, "it is declared DateTime"),
        ("create_item", {"type": "Person", "firstName": ["x"]}, 422, "it is declared Text"),
        ("create_item", {"type": "Photo", "width": 2**63}, 422, "64 bits"),
        ("create_item", {"type": "Photo", "width": True}, 422, "it is declared Integer"),
        ("create_item", {"type": "Cat"}, 422, "type 'Cat' is not declared"),
        ("create_item", {"firstName": "x"}, 422, "a new item needs a 'type'"),
        ("create_item", {"type": 1}, 422, "a new item needs a 'type'"),
        ("create_item", {"type": "Person", "id": 1}, 422, "the 'id' of an item cannot be 1"),
        ("create_item", {"type": "Person", "id": "a b"}, 422, "'a b' cannot be the id"),
        ("create_item", {"type": "Person", "id": "p"}, 409, "'p'"),
        ("create_item", [], 422, "payload"),
        ("update_item", {"id": "p", "nickname": "x"}, 422, "Person has no property 'nickname'"),
        ("update_item", {"id": "p", "type": "Photo"}, 422, "item 'p' is a Person and cannot become 'Photo'"),
        ("update_item", {"id": "nobody"}, 404, "there is no item 'nobody'"),
        ("update_item", {"firstName": "x"}, 422, "an item to update needs an 'id'"),
        ("update_item", {"id": "r", "status": "done"}, 409, "'r'"),
        ("get_item", 1, 422, "payload"),
        ("get_edges", {"item": "nobody"}, 404, "there is no item 'nobody'"),
        ("get_edges", {"item": "p", "direction": "Sideways"}, 422, "payload.direction"),
        ("create_edge", {"_source": "p", "_target": "nobody", "_name": "account"}, 404, "'nobody'"),
        ("create_edge", {"_source": "p", "_target": "r", "_name": "account"}, 422, "cannot lead to a PluginRun"),
        ("create_edge", {"_source": "p", "_target": "r", "_name": "boss"}, 422, "Person has no edge 'boss'"),
        ("create_edge", {"_source": "p", "_target": "r"}, 422, "payload._name"),
        ("search", {"type": "Cat"}, 422, "type 'Cat' is not declared"),
        ("search", {"type": "Person", "nickname": 1}, 422, "'nickname'"),
        ("search", {"nickname": 1}, 422, "'nickname'"),
        ("search", {"type": "Person", "firstName": 1}, 422, "'firstName'"),
        ("search", {"type": "Person", "_limit": -1}, 422, "'_limit'"),
        ("search", {"type": "Person", "_sortOrder": "Up"}, 422, "'_sortOrder'"),
        ("search", {"type": "Account", "secret": "x"}, 403, "it is secret"),
        ("search", {"id": 1}, 422, "'id'"),
        ("bulk", {"createItem": []}, 422, "payload.createItem"),
        ("bulk", {"createItems": [{"type": "Person"}, 1]}, 422, "payload.createItems.1"),
        ("delete_file", {"id": "p"}, 422, "item 'p' is no File"),
        ("delete_file", {"id": "nobody"}, 404, "there is no item 'nobody'"),
        ("get_file", {"sha256": SHA}, 404, "are not there"),
        ("get_file", {"sha256": "x"}, 422, "'x' names no file"),
        ("plugin/status", {"plugins": "p"}, 422, "payload.plugins"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_text_that_says_what(
    api: Api, name: str, payload: Any, status: int, text: str
) -> None:
    """With the status of its kind of error."""
    api.write(CreateItem("p", "Person", {}), CreateItem("r", "PluginRun", {}))
    answered = api.refused(name, payload)
    assert answered[0] == status
    assert text in answered[1]


def test_an_owner_that_is_none_is_422_as_text(api: Api) -> None:
    """An owner's name has 64 hexadecimal digits."""
    assert api.refused("/v4/me/get_item", "x")[0] == 422


# -- edges and searches -----------------------------------------------------------------------------------------------


def test_edges_are_answered_from_both_ends_in_the_order_of_their_creation(api: Api) -> None:
    """Twice is once; those to deleted items are left out; what is not expanded is its id."""
    for type_, id_ in (("Person", "p"), ("Account", "a"), ("Account", "b")):
        api("create_item", {"type": type_, "id": id_})
    for target in ("b", "a", "a"):
        assert api("create_edge", {"_source": "p", "_target": target, "_name": "account"}) == {}
    out = {"item": "p", "direction": "Outgoing", "expandItems": True}
    assert api("get_edges", out) == [
        {"name": "account", "item": api("get_item", "b")[0]},
        {"name": "account", "item": api("get_item", "a")[0]},
    ]
    assert api("get_edges", {"item": "p", "expandItems": False}) == [
        {"name": "account", "item": "b"},
        {"name": "account", "item": "a"},
    ]
    assert api("get_edges", {"item": "a", "direction": "Incoming"}) == [
        {"name": "account", "item": api("get_item", "p")[0]}
    ]
    api("delete_item", "b")
    assert [edge["item"]["id"] for edge in api("get_edges", out)] == ["a"]
    gone = {"_source": "p", "_target": "a", "_name": "account"}
    assert [api("delete_edge_by_source_target", gone) for _ in range(2)] == [{}, {}]
    assert api("get_edges", out) == []
    api("create_edge", gone)
    api("delete_item", "p")
    assert api.refused("get_edges", out)[0] == 404


def test_a_search_compares_orders_and_counts(api: Api) -> None:
    """By the date of the last write, oldest first."""
    api("/v5/" + OWNER + "/schema", DOG)
    for age in range(5):
        api("create_item", {"type": "Dog", "id": f"d{age}", "age": age, "name": "x", "weight": 1})
    api("create_item", {"type": "Person", "id": "p"})
    asked: list[tuple[dict[str, Any], list[str]]] = [
        ({"type": "Dog"}, ["d0", "d1", "d2", "d3", "d4"]),
        ({"type": "Dog", "age": 3}, ["d3"]),
        ({"type": "Dog", "age==": 3}, ["d3"]),
        ({"type": "Dog", "age>=": 3}, ["d3", "d4"]),
        ({"type": "Dog", "age>=": 1, "age<": 3}, ["d1", "d2"]),
        ({"type": "Dog", "_limit": 2, "_offset": 1}, ["d1", "d2"]),
        ({"type": "Dog", "_limit": 1, "_sortOrder": "Desc"}, ["d4"]),
        ({"type": "Dog", "_limit": 1, "_sortOrder": "Asc"}, ["d0"]),
        ({"age": 2}, ["d2"]),
        ({"id": "d2"}, ["d2"]),
        ({"id": "nobody"}, []),
        ({"id": "no id"}, []),
        ({"ids": ["d1", "p"]}, ["d1", "p"]),
        ({"type": "Dog", "weight": 1.0}, ["d0", "d1", "d2", "d3", "d4"]),
        ({"dateServerModified>=": NOW + 1}, []),
    ]
    for fields, ids in asked:
        assert [item["id"] for item in api("search", fields)] == ids, fields
    assert "[[edges]]" not in api("search", {"id": "d1"})[0]


def test_a_search_answers_each_items_edges_of_the_directions_that_it_names(api: Api) -> None:
    """Both, one or none."""
    api("/v5/" + OWNER + "/schema", DOG)
    for id_ in ("d1", "d2"):
        api("create_item", {"type": "Dog", "id": id_})
    api("create_edge", {"_source": "d1", "_target": "d2", "_name": "friend"})
    first, second = api("search", {"type": "Dog", "[[edges]]": {}, "~[[edges]]": {}})
    plain = {id_: api("get_item", id_)[0] for id_ in ("d1", "d2")}
    assert first == {**plain["d1"], "[[edges]]": [{"_edge": "friend", "_item": plain["d2"]}], "~[[edges]]": []}
    assert second == {**plain["d2"], "[[edges]]": [], "~[[edges]]": [{"_edge": "friend", "_item": plain["d1"]}]}
    assert api("search", {"id": "d2", "~[[edges]]": {}}) == [
        {**plain["d2"], "~[[edges]]": [{"_edge": "friend", "_item": plain["d1"]}]}
    ]


def test_a_search_along_edges_is_answered_as_data_and_one_that_is_none_is_400_as_text(api: Api) -> None:
    """Also of a type that nobody has written yet; what is no text is 422."""
    api("create_item", {"type": "Message", "id": "m", "subject": "Hello"})
    found = api("graphql", "query { Message { subject sender { handle } } }")
    assert found.keys() == {"data"}
    assert [(each["id"], each["subject"], each["sender"]) for each in found["data"]] == [("m", "Hello", [])]
    assert api("graphql", "{CategoricalPrediction{value}}") == {"data": []}
    assert api.refused("graphql", "{ Message { nothing } }") == (400, "'nothing' is no property and no edge of Message")
    assert api.refused("graphql", {"query": "{ Message { id } }"})[0] == 422


def test_the_edge_from_a_run_to_its_plugin_state_is_not_answered(api: Api) -> None:
    """Memri's clients fail on an item of a type that they do not know; asked for by its id, it is there."""
    begin_run(api)
    assert api("get_edges", {"item": "run"}) == []
    assert api("search", {"id": "run", "[[edges]]": {}})[0]["[[edges]]"] == []
    assert [edge["name"] for edge in api("get_edges", {"item": "state", "direction": "Incoming"})] == ["pluginState"]
    assert len(api("get_item", "state")) == 1


# -- bulk -------------------------------------------------------------------------------------------------------------


def test_a_bulk_writes_all_and_its_searches_see_it(api: Api) -> None:
    """New items may be linked in it; what is given without id is answered with the one that it got."""
    api("create_item", {"type": "Person", "id": "old", "firstName": "Old"})
    api("create_item", {"type": "Person", "id": "gone"})
    answer = api(
        "bulk",
        {
            "createItems": [{"type": "Person", "id": "new"}, {"type": "Account", "id": "acc"}, {"type": "Account"}],
            "updateItems": [{"id": "old", "firstName": "New"}],
            "createEdges": [{"_source": "new", "_target": "acc", "_name": "account"}],
            "deleteItems": ["gone", "never"],
            "search": [{"id": "new", "[[edges]]": {}}, {"id": "gone"}, {"type": "Person", "firstName": "New"}],
        },
    )
    assert answer["createItems"][:2] == ["new", "acc"]
    assert re.fullmatch("[0-9a-f]{32}", answer["createItems"][2])
    assert [[item["id"] for item in found] for found in answer["search"]] == [["new"], [], ["old"]]
    assert answer["search"][0][0]["[[edges]]"][0]["_item"]["id"] == "acc"


@pytest.mark.parametrize("payload", [{}, {"createItems": None, "search": None}, {"search": [], "deleteItems": []}])
def test_a_bulk_of_nothing_answers_nothing(api: Api, payload: Any) -> None:
    """What is left out may be null as well."""
    assert api("bulk", payload) == {"createItems": [], "search": []}


@pytest.mark.parametrize(
    "bad",
    [
        {"createItems": [{"type": "Person", "id": "n2", "nickname": "x"}]},
        {"createItems": [{"type": "Person", "id": "n1"}]},
        {"updateItems": [{"id": "nobody"}]},
        {"createEdges": [{"_source": "n1", "_target": "nobody", "_name": "account"}]},
        {"search": [{"type": "Cat"}]},
    ],
)
def test_a_bulk_that_is_refused_in_one_place_writes_nothing(api: Api, bad: dict[str, Any]) -> None:
    """Whichever place it is, also a search, which would come last."""
    api("create_item", {"type": "Person", "id": "old", "firstName": "Old"})
    good = {"createItems": [{"type": "Person", "id": "n1"}], "updateItems": [{"id": "old", "firstName": "New"}]}
    both = {name: [*good.get(name, ()), *bad.get(name, ())] for name in (*good, *bad)}
    status, _ = api.refused("bulk", {**both, "deleteItems": ["old"]})
    assert status in (404, 409, 422)
    assert api("get_item", "n1") == []
    assert api("get_item", "old")[0]["firstName"] == "Old"


# -- what is written undeclared ---------------------------------------------------------------------------------------


def test_what_memris_clients_write_undeclared_is_declared_when_it_is_first_written(api: Api) -> None:
    """Properties and edges beyond the built-in ones, with their kinds; and searched for, it is not there before."""
    assert api("search", {"type": "EmailMessage", "title": "x"}) == []
    assert api("search", {"type": "CategoricalPrediction"}) == []
    assert "title" not in api.pod.store.schema()["EmailMessage"].properties
    api(
        "bulk",
        {
            "createItems": [
                {"type": "EmailMessage", "id": "m", "title": "x", "datePublished": 5},
                {"type": "CategoricalPrediction", "id": "c", "score": 1},
                {"type": "Account", "id": "a"},
                {"type": "Person", "id": "p"},
            ],
            "createEdges": [
                {"_source": "a", "_target": "p", "_name": "owner"},
                {"_source": "m", "_target": "c", "_name": "label"},
            ],
        },
    )
    api("update_item", {"id": "p", "role": "boss"})
    api("create_edge", {"_source": "p", "_target": "p", "_name": "me"})
    schema = api.pod.store.schema()
    assert schema.property("EmailMessage", "datePublished").kind is Kind.DATETIME
    assert schema["Account"].edges["owner"] == ("Person",)
    assert [item["id"] for item in api("search", {"type": "EmailMessage", "title": "x"})] == ["m"]
    assert [edge["name"] for edge in api("get_edges", {"item": "p"})] == ["me"]
    assert api.refused("create_item", {"type": "Person", "role": 1})[0] == 422
    assert "title" not in schema["Message"].properties  # of this type nobody has written one


def test_a_type_of_memris_is_declared_even_if_nothing_of_it_is_written(api: Api) -> None:
    """An item may be empty."""
    assert api("get_item", api("create_item", {"type": "CategoricalPrediction"}))[0]["type"] == "CategoricalPrediction"


def test_what_a_pod_has_declared_otherwise_counts(api: Api) -> None:
    """Its own kind is written and searched for, also beside what is Memri's."""
    api.write(DeclareTypes((TypeDefinition("Message", {"title": PropertyDefinition(Kind.INTEGER)}),)))
    api("create_item", {"type": "Message", "id": "m", "title": 7, "abstract": "x"})
    assert [item["id"] for item in api("search", {"type": "Message", "title": 7, "keyword": None})] == ["m"]
    assert api.refused("create_item", {"type": "Message", "title": "seven"})[0] == 422


# -- repeated calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, payload",
    [
        ("create_item", {"type": "Person", "firstName": "Ada"}),
        ("create_item", {"type": "Message", "title": "declared with the first"}),
        ("bulk", {"createItems": [{"type": "Person"}, {"type": "Message", "title": "x"}, {"type": "Person"}]}),
    ],
)
def test_a_call_that_is_repeated_under_its_key_is_answered_again_and_happens_once(
    api: Api, name: str, payload: Any
) -> None:
    """Ids that the server gave included; the key is for no other call."""
    first, again = (api(name, payload, key="k1") for _ in range(2))
    assert first == again
    assert len(api.pod.store.search(Query())) == (3 if name == "bulk" else 1)
    other = {"type": "Person", "firstName": "Bea"}
    assert api.refused("create_item", other, key="k1")[0] == 409
    assert api("create_item", other, key="k2") != first
    assert api.refused("create_item", other, key="no key")[0] == 422


def test_what_a_call_declares_is_declared_with_what_it_writes_or_not_at_all(api: Api) -> None:
    """And under a key it is the same call when its types are there."""
    label = {"type": "CategoricalLabel", "allowSharing": True}
    before = api.pod.store.schema()
    bad = {"createItems": [label], "updateItems": [{"id": "nobody", "keyword": "x"}]}
    assert api.refused("bulk", bad)[0] == 404
    assert api.pod.store.schema() is before
    first = api("bulk", {"createItems": [label]}, key="k")
    assert "CategoricalLabel" in api.pod.store.schema()
    assert api("bulk", {"createItems": [label]}, key="k") == first


def test_a_schema_that_is_repeated_under_its_key_is_the_same_if_more_is_secret_since(api: Api) -> None:
    """And so is one that came when it was."""
    for key in ("before", "since"):
        for _ in range(2):
            assert api(f"/v5/{OWNER}/schema", DOG, key=key) == {}
            secret = TypeDefinition("Dog", {"name": PropertyDefinition(Kind.TEXT, is_secret=True)})
            api.write(DeclareTypes((secret,)))
    assert api.pod.store.schema()["Dog"].properties["name"].is_secret


def test_an_id_that_a_key_makes_is_its_callers_alone(api: Api) -> None:
    """Else whoever knows or guesses the key of another's call could take the id, and so prevent the call."""
    person = {"type": "Person"}
    run = auth_of(begin_run(api, Rights(reads=frozenset({"Person"}), writes=frozenset({"Person"}))))
    ids = [api("create_item", person, key="k", auth=auth) for auth in (None, run, None, run)]
    assert ids[:2] == ids[2:]
    guessed = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in ("k 0", "k0", "k")]
    assert len({*ids, *guessed}) == 5


def test_a_file_is_deleted_under_a_key_as_often_as_it_is_asked(api: Api) -> None:
    """A process that died between item and bytes left the bytes to the second call."""
    api("create_item", {"type": "File", "id": "f", "sha256": SHA})
    assert api.upload(SHA, HELLO) == (200, "{}")
    api("delete_item", "f")
    assert api.pod.files.exists(SHA)
    assert [api("delete_file", {"id": "f"}, key="k") for _ in range(2)] == [{}, {}]
    assert not api.pod.files.exists(SHA)


# -- the schema -------------------------------------------------------------------------------------------------------


def schema_of(api: Api, payload: Any) -> httpx.Response:
    """Declare types."""
    return api.send(f"/v5/{OWNER}/schema", payload)


def test_a_schema_is_declared_added_to_and_declared_again(api: Api) -> None:
    """Properties that every item has are passed over, and so is the root of all types."""
    assert schema_of(api, DOG).json() == {}
    assert schema_of(api, DOG).json() == {}
    more = {
        "nodes": {
            "Dog": {"properties": {"id": "Text", "dateCreated": "DateTime", "deleted": "Bool", "breed": "Text"}},
            "Item": {"properties": {"externalId": "Text"}},
        },
        "edges": {"toy": [{"source": "Dog", "target": "Photo"}, {"source": "Dog", "target": "File"}]},
    }
    assert schema_of(api, more).status_code == 200
    dog = api.pod.store.schema()["Dog"]
    assert {name: each.kind.value for name, each in dog.properties.items()} == {
        "name": "Text",
        "age": "Integer",
        "weight": "Real",
        "bites": "Bool",
        "dateOfBirth": "DateTime",
        "breed": "Text",
    }
    assert dog.edges == {"friend": ("Dog",), "owner": ("Person",), "toy": ("File", "Photo")}


@pytest.mark.parametrize(
    "payload, status, text",
    [
        ({"nodes": {"Person": {"properties": {"firstName": "Integer"}}}}, 409, "is Text in this Pod and cannot become"),
        ({"nodes": {"Person": {"properties": {"account": "Text"}}}}, 409, "an edge to Account"),
        ({"nodes": {"A": {"properties": {"x": "Blob"}}}}, 422, "payload.nodes.A.properties.x"),
        ({"nodes": {"A": {"properties": {"id": "Integer"}}}}, 422, "every item has it, and it is Text"),
        ({"nodes": {"no name": {"properties": {}}}}, 422, "'no name' cannot name an item type"),
        ({"nodes": {"A": {"properties": {"x y": "Text"}}}}, 422, "'x y' cannot name a property"),
        ({"edges": {"x": [{"source": "A"}]}}, 422, "payload.edges.x.0.target"),
        (
            {"nodes": {"A": {"properties": {"x": "Text"}}}, "edges": {"x": [{"source": "A", "target": "A"}]}},
            422,
            "both",
        ),
    ],
)
def test_a_schema_that_conflicts_or_is_none_is_refused_and_nothing_of_it_declared(
    api: Api, payload: dict[str, Any], status: int, text: str
) -> None:
    """The text names both sides, or the place."""
    nodes = {"Brand": {"properties": {"name": "Text"}}, **payload.get("nodes", {})}
    answer = schema_of(api, {**payload, "nodes": nodes})
    assert (answer.status_code, text in answer.text) == (status, True), answer.text
    assert "Brand" not in api.pod.store.schema()


def test_what_is_secret_in_a_pod_stays_so_when_a_client_declares_it(api: Api) -> None:
    """The wire has no word for it; its owner reads it, and nobody searches for it."""
    assert schema_of(api, {"nodes": {"Account": {"properties": {"secret": "Text"}}}}).status_code == 200
    assert api.pod.store.schema().property("Account", "secret").is_secret
    id_ = api("create_item", {"type": "Account", "secret": "s"})
    assert api("get_item", id_)[0]["secret"] == "s"


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_taken_when_an_item_describes_it_and_given_back(api: Api) -> None:
    """Once; not other bytes under its name; and deleting it takes item and bytes."""
    assert api.upload(SHA, HELLO)[0] == 404
    api("create_item", {"type": "File", "id": "f", "sha256": SHA})
    assert api.upload(SHA, b"other")[0] == 422
    assert api.upload(SHA, HELLO, key=OTHER_KEY)[0] == 401
    assert api.refused("get_file", {"sha256": SHA})[0] == 404
    assert api.upload(SHA, HELLO) == (200, "{}")
    assert api.upload(SHA, HELLO)[0] == 409
    assert api.upload(SHA.upper(), HELLO)[0] == 422
    assert api.send("get_file", {"sha256": SHA}).content == HELLO
    assert api("delete_file", {"id": "f"}) == {}
    assert api.refused("get_file", {"sha256": SHA})[0] == 404
    assert api("get_item", "f") == []
    assert api.refused("delete_file", {"id": "f"})[0] == 404


def test_a_large_file_comes_back_as_it_was_sent(api: Api) -> None:
    """In many parts."""
    data = bytes(range(256)) * 20_000
    sha256 = hashlib.sha256(data).hexdigest()
    api("create_item", {"type": "File", "sha256": sha256})
    assert api.upload(sha256, data)[0] == 200
    assert api.send("get_file", {"sha256": sha256}).content == data


def test_bytes_stay_as_long_as_another_item_describes_them(api: Api) -> None:
    """They are kept once for both."""
    for id_ in ("f1", "f2"):
        api("create_item", {"type": "File", "id": id_, "sha256": SHA})
    api.upload(SHA, HELLO)
    api("delete_file", {"id": "f1"})
    assert api.send("get_file", {"sha256": SHA}).content == HELLO
    api("delete_file", {"id": "f2"})
    assert not api.pod.files.exists(SHA)


def test_no_key_that_stands_in_an_address_is_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """Neither of an upload that is taken nor of one that is refused."""
    caplog.set_level(logging.DEBUG, logger="holdfast")
    api("create_item", {"type": "File", "sha256": SHA})
    api.upload(SHA, HELLO)
    api.upload(SHA, HELLO, key=OTHER_KEY)
    auth = json.dumps({"type": "ClientAuth", "databaseKey": KEY})
    api.http.post(f"/v4/{OWNER}/upload_file_b/{auth}/{SHA}", content=HELLO)
    logged = [record.__dict__ for record in caplog.records]
    assert [each["route"] for each in logged if each["msg"] == "request.answered"][1:] == [
        "/v4/{owner}/upload_file/{database_key}/{sha256}",
        "/v4/{owner}/upload_file/{database_key}/{sha256}",
        "/v4/{owner}/upload_file_b/{auth:path}/{sha256}",
    ]
    assert not [each for each in logged if KEY in str(each) or OTHER_KEY in str(each)]


# -- runs -------------------------------------------------------------------------------------------------------------


def begin_run(api: Api, rights: Rights | None = None) -> Token:
    """Create a run that holds a plugin state, and return its token."""
    api.write(
        CreateItem("run", "PluginRun", {"pluginName": "P"}),
        CreateItem("state", "PersistentState", {"name": "default"}),
        CreateEdge("run", "pluginState", "state"),
        ClaimLease("state", "run", "holder", 60_000),
    )
    return Token(
        owner=OWNER,
        state="state",
        run="run",
        epoch=1,
        holder="holder",
        rights=rights or Rights(),
        expires_ms=NOW + 3_600_000,
    )


def auth_of(token: Token) -> dict[str, Any]:
    """Return how a run says who it is."""
    return {"type": "PluginAuth", "data": {"token": seal(token, POD_KEY)}}


def test_a_run_has_what_its_token_gives_a_right_to(api: Api) -> None:
    """Its own run, and its types; not what is the owner's, nor after it has ended."""
    api("create_item", {"type": "Person", "id": "p"})
    auth = auth_of(begin_run(api, Rights(reads=frozenset({"Message"}), writes=frozenset({"Message"}))))
    assert api("get_item", "run", auth=auth)[0]["pluginName"] == "P"
    api("update_item", {"id": "run", "status": "started"}, auth=auth)
    api("bulk", {"createItems": [{"type": "Message", "id": "m", "title": "x"}]}, auth=auth)
    assert [found[0]["id"] for found in api("bulk", {"search": [{"id": "m"}]}, auth=auth)["search"]] == ["m"]
    assert api.refused("get_item", "p", auth=auth)[0] == 403
    assert api.refused("search", {"type": "Person"}, auth=auth)[0] == 403
    assert api.refused("graphql", "{ Person { id } }", auth=auth)[0] == 403
    assert [each["id"] for each in api("graphql", "{ Message { sender { id } } }", auth=auth)["data"]] == ["m"]
    assert api.refused("create_item", {"type": "Person"}, auth=auth)[0] == 403
    assert api.refused("create_item", {"type": "PluginRun", "containerImage": "x"}, auth=auth)[0] == 403
    assert api.refused("update_item", {"id": "run", "config": "{}"}, auth=auth)[0] == 403
    api("update_item", {"id": "run", "status": "done"}, auth=auth)
    assert api.refused("get_item", "m", auth=auth)[0] == 403


def test_a_run_has_the_files_that_it_may_read_and_uploads_if_it_may_write_them(api: Api) -> None:
    """Uploading, reading and deleting, with more and more rights."""
    api("create_item", {"type": "File", "id": "f", "sha256": SHA})
    none = begin_run(api)
    reads, writes = frozenset({"File"}), frozenset({"File"})

    def try_all(rights: Rights) -> list[int]:
        auth = auth_of(replace(none, rights=rights))
        upload = api.http.post(f"/v4/{OWNER}/upload_file_b/{json.dumps(auth)}/{SHA}", content=HELLO)
        given = api.send("get_file", {"sha256": SHA}, auth=auth)
        gone = api.send("delete_file", {"id": "f"}, auth=auth)
        return [upload.status_code, given.status_code, gone.status_code]

    assert try_all(Rights()) == [403, 403, 403]
    assert try_all(Rights(reads=reads)) == [403, 404, 403]
    assert try_all(Rights(reads=reads, writes=writes)) == [200, 200, 200]
    assert not api.pod.files.exists(SHA)


@pytest.mark.parametrize(
    "meanwhile, status",
    [(ReleaseLease(Fence(state="state", epoch=1, holder="holder")), 409), (DeleteItem("f"), 404)],
)
def test_what_gives_the_right_to_upload_must_still_be_there_at_the_end(
    api: Api, meanwhile: Operation, status: int
) -> None:
    """An upload may last for hours: a run that has given its plugin state back meanwhile leaves nothing of it."""
    api("create_item", {"type": "File", "id": "f", "sha256": SHA})
    auth = auth_of(begin_run(api, Rights(reads=frozenset({"File"}), writes=frozenset({"File"}))))

    async def parts() -> AsyncIterator[bytes]:
        yield HELLO[:2]
        api.write(meanwhile)
        yield HELLO[2:]

    answer = api.http.post(f"/v4/{OWNER}/upload_file_b/{json.dumps(auth)}/{SHA}", content=parts())
    assert (answer.status_code, api.pod.files.exists(SHA)) == (status, False)


@pytest.mark.parametrize(
    "auth, status",
    [
        ({"type": "ClientAuth", "databaseKey": KEY}, 200),
        ({"type": "ClientAuth", "databaseKey": OTHER_KEY}, 401),
        ({"type": "ClientAuth"}, 422),
        ({"type": "PluginAuth", "data": {"token": "hft1.a/b"}}, 401),
    ],
)
def test_an_upload_may_say_as_json_who_calls(api: Api, auth: Any, status: int) -> None:
    """In the address, where nothing is repeated either."""
    api("create_item", {"type": "File", "sha256": SHA})
    answer = api.http.post(f"/v4/{OWNER}/upload_file_b/{json.dumps(auth)}/{SHA}", content=HELLO)
    assert answer.status_code == status
    assert KEY not in answer.text


def test_a_run_that_nobody_holds_is_unreachable_and_one_that_is_held_tells_its_status(api: Api) -> None:
    """So is what is no run; and who holds it no longer than its lease."""
    begin_run(api)
    queued = (CreateItem("idle", "PluginRun", {}), CreateEdge("idle", "pluginState", "state"))
    api.write(*queued, CreateItem("p", "Person", {}))
    asked = {"plugins": ["run", "idle", "p", "nobody", "no id"]}
    others = {id_: {"status": "unreachable"} for id_ in ("idle", "p", "nobody", "no id")}
    assert api("plugin/status", asked) == {"plugins": {"run": {"status": "idle"}, **others}}
    assert api.refused("plugin/status", {"plugins": ["run"] * 1_001})[0] == 422
    api.pods.clock.advance(60_001)
    assert api("plugin/status", asked) == {"plugins": {"run": {"status": "unreachable"}, **others}}


def test_a_status_that_there_is_not_is_idle_on_a_new_run(api: Api) -> None:
    """As Memri's clients begin one."""
    id_ = api("create_item", {"type": "PluginRun", "status": "not started"})
    assert api("get_item", id_)[0]["status"] == "idle"


# -- what it says of itself -------------------------------------------------------------------------------------------


def test_openapi_describes_every_name_whole(api: Api) -> None:
    """With what it takes and answers, every refusal as text, and no reference that leads nowhere."""
    document = api.http.get("/openapi.json").json()
    assert "$ref" not in json.dumps({path: each for path, each in document["paths"].items() if "post" in each})
    for path, methods in document["paths"].items():
        for what in methods.values() if path != "/version" else ():
            assert {"401", "403", "404", "409", "413", "422", "429", "500", "503"} <= what["responses"].keys(), path
            assert what["responses"]["422"]["content"] == {"text/plain": {"schema": {"type": "string"}}}
            assert "requestBody" in what, path


def test_the_page_names_what_there_is() -> None:
    """Nothing more, nothing less."""
    page = (Path(__file__).parents[2] / "docs" / "memri-api.md").read_text()
    told = set(re.findall(r"^\| `(?:GET )?(/[^`]+)` \|", page, re.MULTILINE))
    others = ("account", "{owner}/get_file", "{owner}/delete_file")
    uploads = ("upload_file/{databaseKey}/{sha256}", "upload_file_b/{auth}/{sha256}")
    assert told == {
        "/version",
        *(call.path for call in CALLS),
        *(f"/v4/{each}" for each in others),
        *(f"/v4/{{owner}}/{each}" for each in uploads),
    }


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_WORDS = """
    type id ids firstName birthDate deleted status title _limit _offset _sortOrder [[edges]] _source _target _name
    item direction createItems updateItems search nodes properties edges plugins
"""
_names = st.sampled_from(_WORDS.split())
_values = st.sampled_from(["Person", "PluginRun", "p", "account", "Text", "Desc", "Outgoing"]) | _scalars
_payloads = st.recursive(
    _values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names | st.text(), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([call.path for call in CALLS]), payload=_payloads)
def test_whatever_is_sent_is_answered_or_refused_with_a_text(api: Api, name: str, payload: Any) -> None:
    """Never by a defect of the server."""
    text = json.dumps({"auth": api.auth, "payload": payload})
    answer = api.http.post(name.replace("{owner}", OWNER), content=text)
    assert answer.status_code in (200, 400, 403, 404, 409, 422), answer.text
    expected = "application/json" if answer.status_code == 200 else "text/plain; charset=utf-8"
    assert answer.headers["content-type"] == expected
