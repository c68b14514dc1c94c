"""A plugin with nothing but its token, at every address: what is not its own stays as it is, and unread."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from holdfast.remote import make_pod
from holdfast.runs import Status
from holdfast.store import (
    AppendLog,
    AskQuestion,
    Batch,
    ClaimLease,
    CreateEdge,
    CreateItem,
    Direction,
    MoveRun,
    PointSnapshot,
    Query,
    ReleaseLease,
    SetVariable,
    Store,
)
from tests.components.servers import OWNER, STRANGER, Served, serving

MARK = "kept-from-plugins"
"""In all that the plugin must not learn."""

DATA = MARK.encode()
SHA256 = hashlib.sha256(DATA).hexdigest()
STATES, IDS = ("mine", "other"), ("mine", "other", "r1", "r2", "a2", "p1", "f1")
FREE = {"/healthz", "/version"}
"""What needs no right, and tells nothing of a Pod."""

NEW = {"/v4/account", "/api/{owner}"}
"""Where an owner comes with keys of its own: a token is none."""


@dataclass
class World:
    """A server with two owners, and the token of a run of the first."""

    served: Served
    pod: Store
    strangers: Store
    token: str

    def seen(self) -> Any:
        """Return all that is in both Pods, but for when."""
        return [
            (
                {id_: (row.type, row.properties, row.is_deleted) for id_, row in store.find_items(IDS).items()},
                sorted(found.item.id for found in store.search(Query())),
                {
                    id_: [(edge.name, edge.item.id) for edge in edges]
                    for id_, edges in store.list_edges(IDS, Direction.OUTGOING).items()
                },
                [store.list_variables(state) for state in STATES],
                [store.find_snapshot(state) for state in STATES],
                [store.list_questions(state) for state in STATES],
                [part.text for part in store.list_log("r2")],
                [(lease.epoch, lease.holder) for state in STATES if (lease := store.find_lease(state))],
                sorted(store.schema()),
            )
            for store in (self.pod, self.strangers)
        ]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return it, with a run at work whose rights are none but its own, and one of another plugin."""
    with serving(tmp_path / "home") as served:
        for identity in (OWNER, STRANGER):
            make_pod(served.connect(identity))
        pod, strangers = served.store(OWNER), served.store(STRANGER)
        theirs = (
            CreateItem("p1", "Person", {"firstName": MARK}),
            CreateItem("f1", "File", {"sha256": SHA256, "filename": MARK}),
            CreateItem("other", "PersistentState", {"pluginId": "m:Other", "name": "default"}),
            CreateItem("r2", "PluginRun", {"config": MARK, "status": "ready"}),
            CreateItem("a2", "Account", {"handle": MARK, "secret": MARK}),
            CreateEdge("r2", "pluginState", "other"),
            CreateEdge("r2", "account", "a2"),
            SetVariable("other", "cursor", MARK),
            PointSnapshot("other", MARK),
            AppendLog("r2", "l1", "", "9", MARK),
            ClaimLease("other", "r2", "h2", 600_000),
            AskQuestion("q2", "other", "r2", "k", json.dumps(MARK)),
        )
        strangers.apply(Batch(theirs))
        mine = (
            CreateItem("mine", "PersistentState", {"pluginId": "m:Mine", "name": "default"}),
            CreateItem("r1", "PluginRun", {"pluginModule": "m", "pluginName": "Mine", "status": "ready"}),
            CreateEdge("r1", "pluginState", "mine"),
        )
        pod.apply(Batch((*theirs, *mine)))
        assert served.ask("PUT", f"/api/{{owner}}/files/{SHA256}", DATA).status == 201
        claimed = served.ask("POST", "/api/{owner}/claims", b'{"run": "r1", "holder": "h1"}')
        assert claimed.status == 201
        yield World(served, pod, strangers, claimed.document["token"])


def attempts(world: World) -> Iterator[tuple[str, str, bytes, bool]]:
    """Yield what to try at each address of the description: method, path, body, and whether it is Memri's API.

    An address that is not known here is an error: whoever adds one says what is to be tried at it.
    """
    fence = {"state": "mine", "epoch": 1, "holder": "h1"}
    others = {"state": "other", "epoch": 1, "holder": "h2"}
    operations = [
        {"op": "create_item", "id": "x", "type": "Person", "properties": {}},
        {"op": "update_item", "id": "p1", "properties": {"firstName": "x"}},
        {"op": "update_item", "id": "r1", "properties": {"reads": '["Person"]', "writes": '["Person"]'}},
        {"op": "update_item", "id": "mine", "properties": {"ownTypes": '["Person"]'}},
        {"op": "update_item", "id": "r2", "properties": {"status": "aborted"}},
        {"op": "delete_item", "id": "other"},
        {"op": "create_edge", "source": "r1", "name": "account", "target": "a2"},
        {"op": "delete_edge", "source": "r2", "name": "account", "target": "a2"},
        {"op": "set_variable", "state": "other", "name": "cursor", "value": 0},
        {"op": "increment_variable", "state": "other", "name": "n"},
        {"op": "delete_variable", "state": "other", "name": "cursor"},
        {"op": "set_progress", "run": "r2", "progress": 0.5},
        {"op": "move_run", "run": "r2", "status": "started"},
        {"op": "point_snapshot", "state": "other", "snapshot": "x"},
        {"op": "ask_question", "id": "q3", "state": "other", "run": "r2", "key": "k2", "form": "{}"},
        {"op": "answer_question", "id": "q2", "answer": "1"},
        {"op": "delete_question", "id": "q2"},
        {"op": "claim_lease", "state": "other", "run": "r1", "holder": "h1", "duration_ms": 1000},
        {"op": "renew_lease", "fence": others, "duration_ms": 1000},
        {"op": "release_lease", "fence": others},
        {"op": "end_lease", "state": "other"},
        {"op": "cancel_lease", "state": "other"},
        {"op": "append_log", "run": "r2", "source": "l1", "start": "9", "end": "10", "text": "x"},
        {"op": "expire_logs", "before_ms": 2**53},
    ]
    asked: dict[str, list[Any]] = {
        "apply": [{"operations": [one], "fence": f} for one in operations for f in (None, fence, others)],
        "schema": [],  # types are no secret
        "now": [],  # nor is the time
        "items": [{"ids": [id_]} for id_ in ("p1", "f1", "other", "r2", "a2")],
        "search": [{"query": {"type": "Person"}}, {"query": {}}, {"query": {"ids": ["p1", "a2"]}}],
        "edges": [{"ids": ["r2", "other"], "direction": "Outgoing"}, {"ids": ["a2"], "direction": "Incoming"}],
        **{name: [{"state": "other"}] for name in ("variables", "lease", "snapshot", "questions")},
        "log": [{"run": "r2"}, {"run": "r1"}],
        "log-end": [{"run": "r2", "source": "l1"}],
    }
    edge = {"_source": "r1", "_target": "a2", "_name": "account"}
    memri: dict[str, list[Any]] = {
        "get_item": ["p1", "r2", "a2"],
        "create_item": [{"type": "Person", "id": "x"}, {"type": "PluginRun", "id": "x"}],
        "update_item": [{"id": "p1", "firstName": "x"}, {"id": "r1", "reads": '["Person"]'}],
        "delete_item": ["p1", "other"],
        "get_edges": [{"item": "r2", "direction": "Outgoing", "expandItems": True}],
        "create_edge": [edge],
        "delete_edge_by_source_target": [{"_source": "r2", "_target": "a2", "_name": "account"}],
        "search": [{"type": "Person"}, {}, {"ids": ["p1"]}, {"type": "Account", "[[edges]]": {}}],
        "graphql": [
            "{ Person { firstName } }",
            "{ Account { handle secret } }",
            "{ PluginRun { config account { handle secret } pluginState { ~pluginState { config } } } }",
        ],
        "bulk": [
            {"createItems": [{"type": "Person", "id": "x"}]},
            {"deleteItems": ["p1"], "search": [{"type": "Person"}]},
            {"createEdges": [edge]},
        ],
        "plugin/status": [{"plugins": ["r2"]}],
        "get_file": [{"sha256": SHA256}],
        "delete_file": [{"id": "f1"}],
        "schema": [
            {
                "nodes": {"Person": {"properties": {"mine": "Text"}}},
                "edges": {},
                "meta": {"name": "x", "url": "x", "version": "1"},
            }
        ],
    }
    auth = {"type": "PluginAuth", "data": {"token": world.token}}
    document = world.served.ask("GET", "/api/openapi.json").document
    for path, method in ((path, method) for path, methods in document["paths"].items() for method in methods):
        at = path.replace("{sha256}", SHA256).replace("{database_key}", world.token)
        at = at.replace("{auth}", quote(json.dumps(auth)))
        name = path.partition("{owner}/")[2]
        if path in FREE:
            continue
        if path.startswith("/v") and name.startswith("upload_file"):
            yield method, at, DATA, False
        elif path == "/v4/account":
            body = {"ownerKey": OWNER.owner_key, "databaseKey": world.token}
            yield method, at, json.dumps(body).encode(), False
        elif path.startswith("/v"):
            for payload in memri[name]:
                yield method, at, json.dumps({"auth": auth, "payload": payload}).encode(), True
        elif name.startswith("store/"):
            for each in asked[name.removeprefix("store/")]:
                yield method, at, json.dumps(each).encode(), False
        elif name.startswith("files/"):
            yield method, at, DATA if method == "put" else b"", False
        elif name == "claims":
            for run in ("r1", "r2"):
                yield method, at, json.dumps({"run": run, "holder": "h1"}).encode(), False
        else:
            assert (path, method) in {("/api/{owner}", "put"), ("/api/{owner}/events", "get")}, (path, method)
            yield method, at, b"", False


def test_at_no_address_a_token_reads_or_changes_what_is_not_its_own(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither at its owner's nor at another's, while its run is at work and when it has ended; the log has the denials.

    Its own it may read and write until then, and not after.
    """
    caplog.set_level(logging.INFO)
    before = world.seen()
    own = Batch((SetVariable("mine", "n", 1),)).to_json()
    assert world.served.ask("POST", "/api/{owner}/store/apply", own, key=world.token).status == 200
    before[0][3][0]["n"] = 1
    tried = list(attempts(world))
    assert len(tried) > 100
    for has_ended in (False, True):
        if has_ended:
            lease = world.pod.find_lease("mine")
            assert lease is not None
            world.pod.apply(Batch((MoveRun("r1", Status.STARTED), MoveRun("r1", Status.DONE)), lease.fence))
            world.pod.apply(Batch((ReleaseLease(lease.fence),), lease.fence))
            before = world.seen()
            for method, body in (("apply", own), ("variables", b'{"state": "mine"}'), ("items", b'{"ids": ["mine"]}')):
                answer = world.served.ask("POST", f"/api/{{owner}}/store/{method}", body, key=world.token)
                assert answer.status in {401, 403, 409}, (method, answer)
        for owner in (OWNER.owner_key, STRANGER.owner_key):
            for method, path, body, _ in tried:
                denials = caplog.text.count("access.denied")
                answer = world.served.ask(
                    method.upper(), path.replace("{owner}", owner), body, key=world.token, Content_Type="text/plain"
                )
                what = (has_ended, owner == OWNER.owner_key, method, path[:60], body[-150:], answer)
                assert answer.status < 500, what
                assert DATA not in answer.body, what
                if path in NEW:
                    assert answer.status in {401, 403, 422}, what
                    continue
                if answer.status in {401, 403}:
                    assert caplog.text.count("access.denied") > denials, what
                if owner == STRANGER.owner_key:
                    assert answer.status in {401, 403, 429}, what
            assert world.seen() == before
    assert world.token[:60] not in caplog.text
