"""Runs that a server launches as containers of the project's own image: moved, killed, paused, hostile, and cleaned up.

Whatever happens, no container and no folder of a launch is left when its run is over: each test says so at its end.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast import PluginRun, PodClient
from holdfast.context import Settings, open_store
from holdfast.engine import find_state, list_unfinished
from holdfast.errors import ConflictError
from holdfast.pod import Pod
from holdfast.remote import RemoteFiles
from holdfast.runs import Status
from holdfast.store import (
    AppendLog,
    AskQuestion,
    Batch,
    ClaimLease,
    CreateEdge,
    CreateItem,
    EndLease,
    MoveRun,
    Query,
    UpdateItem,
)
from holdfast.testing.launching import wait_until
from tests.components.contained import IMAGE, MEMORY_MIB, SECRET, Contained, build_images, contained
from tests.components.docker import Engine, engine_of, missing_image
from tests.components.servers import OWNER, STRANGER

pytestmark = [
    pytest.mark.component("container engine"),
    pytest.mark.xdist_group("containers"),
    pytest.mark.timeout(600),  # packages may have to be fetched
]

LEASE_S = 6
"""Three times as long as a container takes to begin where two processors have other work as well."""

SOON = 30
"""A lease, in seconds, that no restart of a server outlasts."""


@pytest.fixture(scope="module")
def engine(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The container engine of the tests, with the images."""
    found = engine_of(pytestconfig)
    build_images(tmp_path_factory.mktemp("images"), found, hostile=HOSTILE)
    return found


# -- servers and engines that go away ---------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
from holdfast.context import supervising

died = Path(sys.argv.pop(1))

class Dying(supervising.DockerLauncher):
    def launch(self, spec):
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().launch(spec)

supervising.DockerLauncher = Dying
from holdfast.cli import main
main()
"""
"""A server that kills itself, once, when it has claimed a plugin state and is about to launch the container."""


def test_a_server_that_dies_between_claim_and_launch_launches_a_container_once(engine: Engine, tmp_path: Path) -> None:
    """The next one finds the claim."""
    program = [sys.executable, "-c", DYING, str(tmp_path / "died"), "serve", "--json"]
    with contained(tmp_path / "home", engine, program=program, lease_s=SOON) as here:
        run = here.begin("Steps", last=2)
        here.server.wait()
        assert here.containers() == []
        here.server.start()
        here.wait(run, "done")
        wait_until(lambda: not here.left())
        assert (here.steps(run), len(here.notes(run, "began")), here.launches(run)) == ([0, 1], 1, ["1"])


def test_a_container_that_sleeps_past_its_lease_writes_nothing_when_it_wakes(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could end it, for the server was away, and then the engine for the server; its owner has claimed."""
    with contained(tmp_path / "home", engine, lease_s=LEASE_S) as here, engine.client() as client:
        run = here.begin("Steps", hold_at=4)
        here.wait_for_note(run, "holds")
        [name] = here.containers(run)
        client.pause(name)
        here.server.end(signal.SIGTERM)
        with closing(open_store(Settings(home=here.home))) as store:
            claim = Batch((ClaimLease(find_state(store, run).id, run, "owner", 600_000),))  # type: ignore[union-attr]
            lease = None
            while lease is None:
                with suppress(ConflictError):
                    [lease] = store.apply(claim)
        with monkeypatch.context() as patch:
            patch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody")
            here.server.start()
        before = here.seen(run, here.state(run))
        here.go(run)
        client.unpause(name)
        here.wait_for_note(run, "refused")
        assert client.wait(name)["StatusCode"] == 5
        assert here.seen(run, here.state(run)) == before
        assert here.steps(run) == [0, 1, 2, 3]
        here.server.end(signal.SIGTERM)
        here.server.start()
        wait_until(lambda: not here.left(run))
        here.store().apply(Batch((EndLease(here.state(run)),)))
        assert here.wait_impatiently(run, "done", "error") == ""
        assert (here.steps(run), here.variables(run)["seen"]) == ([0, 1, 2, 3, 4, 5], "0 1 2 3 4 5")


def test_while_the_engine_is_away_nothing_becomes_of_runs_and_afterwards_they_go_on(
    engine: Engine, tmp_path: Path
) -> None:
    """Killed, it leaves its containers at work, and ends them when it is back: as lost as any that is killed."""
    with contained(tmp_path / "home", engine, lease_s=LEASE_S) as here:
        works = here.begin("Ticks")
        here.wait_for_note(works, "began")
        here.wait_for_steps([works])
        before = here.row(works)
        os.kill(int((engine.folder / "pidfile").read_text()), signal.SIGKILL)
        engine.stop()
        try:
            waits = here.begin("Steps", last=2)
            tried, lapsed_ms = "run.not_launched", here.store().now_ms() + LEASE_S * 1000
            wait_until(lambda: here.server.said().count(tried) > 1 and here.store().now_ms() > lapsed_ms)
            here.wait_for_steps([works])
            after = here.row(works)
            assert (after.properties, after.version) == (before.properties, before.version)
            assert str(here.row(waits).properties["status"]) in {"idle", "ready"}
            assert (here.notes(waits, "began"), len(here.notes(works, "began"))) == ([], 1)
        finally:
            engine.start()
        assert here.wait_impatiently(waits, "done", "error") == ""
        here.wait_for_note(works, "began", 2)
        here.go(works)
        assert here.wait_impatiently(works, "done", "error") == ""
        assert here.steps(works) == list(range(int(str(here.variables(works)["head"]))))
        assert len(here.notes(works, "began")) == 2


# -- a hostile plugin -------------------------------------------------------------------------------------------------

HOSTILE = """
import ctypes, glob, http.client, json, os, socket, stat
from pathlib import Path

from holdfast import PluginConfig, StatefulPlugin

TOKEN = json.loads(Path(os.environ["POD_AUTH_FILE"]).read_text())["data"]["token"]
OWN = next(Path(os.environ["HOLDFAST_HOME"], "snapshots").iterdir())
LIBC = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(LIBC, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def connect(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.connect(path)


def read(path):
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def files(is_one):
    for folder, folders, names in os.walk("/"):
        folders[:] = [each for each in folders if os.path.join(folder, each) not in {"/proc", "/sys"}]
        yield from (path for name in names if is_one(path := os.path.join(folder, name)))


def tried(code):
    try:
        return eval(code)
    except OSError as exc:
        return exc.strerror


def asked(method, path, body):
    connection = http.client.HTTPConnection(os.environ["POD_FULL_ADDRESS"].removeprefix("http://"))
    connection.request(method, path, body.replace("TOKEN", TOKEN), {"Authorization": f"Bearer {TOKEN}"})
    answer = connection.getresponse()
    if "event-stream" in answer.headers.get("Content-Type", ""):
        return [answer.status, "a stream"]
    return [answer.status, answer.read().decode(errors="replace")]


class Hostile(StatefulPlugin):
    class Config(PluginConfig):
        asks: str
        tries: str

    def run(self):
        self.state.own = "written"
        print("asked", json.dumps({name: asked(*ask) for name, ask in json.loads(self.config.asks).items()}))
        print("tried", json.dumps({name: tried(code) for name, code in json.loads(self.config.tries).items()}))
"""
"""A plugin that asks the server what it is told to, and evaluates what it is told to, and says what became of it."""

MARK = "kept-from-plugins"
"""In all that the plugin must not learn."""

READ_ONLY, DENIED, ABSENT = "Read-only file system", "Operation not permitted", "No such file or directory"


def tries(here: Contained, state: str) -> dict[str, tuple[str, object]]:
    """Return what to evaluate in a container, by its name, and what must come of it."""
    folder = here.home / "snapshots" / state
    theirs = f"{folder}/{here.store().find_snapshot(state)}/.snap"
    written = ("/x", "/plugins/x.py", "/usr/local/x", "/etc/passwd", "/run/secrets/holdfast.json")
    settings = ("/proc/sys/kernel/core_pattern", "/sys/x")
    sockets = (here.engine.url.removeprefix("unix://"), "/run/docker.sock", "/var/run/docker.sock")
    return {
        **{f"write {path}": (f"open({path!r}, 'w')", READ_ONLY) for path in (*written, *settings)},
        **{f"connect to {path}": (f"connect({path!r})", ABSENT) for path in sockets},
        "find a socket": ("[*files(lambda path: stat.S_ISSOCK(os.lstat(path).st_mode))]", []),
        "find a disk": ("[*files(lambda path: stat.S_ISBLK(os.lstat(path).st_mode))]", []),
        "find an engine's socket": (
            "[each for each in read('/proc/net/unix').decode().split() if each[0] == '@' and 'container' in each]",
            [],
        ),
        "find another token": (
            "[*files(lambda path: path.endswith('.json') and path[:5] != '/usr/' and b'hft1.' in read(path))]",
            ["/run/secrets/holdfast.json"],
        ),
        "see other processes": ("[*filter(lambda path: b'serve' in read(path), glob.glob('/proc/*/cmdline'))]", []),
        "read the server's environment": (
            f"[path for path in glob.glob('/proc/*/environ') if {SECRET.encode()!r} in read(path)]",
            [],
        ),
        "read the owner's keys": (f"open({str(here.home / 'keys.json')!r})", ABSENT),
        "see other snapshots": ("len(os.listdir(OWN.parent))", 1),
        "go up to other snapshots": (f"os.listdir(OWN / '../{folder.name}')", ABSENT),
        "follow a link to other snapshots": (
            f"os.symlink({str(folder)!r}, OWN / 'l') or os.listdir(OWN / 'l')",
            ABSENT,
        ),
        "link a file from elsewhere": (
            "os.link('/run/secrets/holdfast.json', OWN / 'hard')",
            "Invalid cross-device link",
        ),
        "make a disk": ("os.mknod(OWN / 'disk', stat.S_IFBLK | 0o600, os.makedev(8, 0))", DENIED),
        "give a file away": ("(OWN / 'own').touch() or os.chown(OWN / 'own', 1, 1)", DENIED),
        "be another user": ("os.setuid(1)", DENIED),
        "change the root": ("os.chroot(OWN)", DENIED),
        "mount": ("call('mount', b'none', b'/tmp', b'tmpfs', 0, None)", DENIED),
        "make the root writable": ("call('mount', None, b'/', None, 0x20 | 0x1000, None)", DENIED),
        "have a namespace": ("call('unshare', 0x10000000)", DENIED),
        "hear the network": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", DENIED),
        "send raw packets": ("socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)", DENIED),
        "have capabilities": ("read('/proc/self/status').decode().split('CapBnd:')[1].split()[0]", "0" * 16),
        "gain them": ("read('/proc/self/status').decode().split('NoNewPrivs:')[1].split()[0]", "1"),
        "set a trap": (f"(OWN / 'trap').mkdir() or os.symlink({theirs!r}, OWN / 'trap/.snap')", None),
        "set another": ("os.mkfifo(OWN / 'fifo')", None),
    }


def asks(here: Contained, state: str, own: tuple[str, str], sha256: str) -> dict[str, tuple[str, str, str]]:
    """Return what to ask the server for, by its name: a method, an address, and a body."""
    run, mine = own
    lease = here.store().find_lease(state)
    assert lease is not None
    theirs = {"state": state, "epoch": lease.epoch, "holder": lease.holder}
    writes = [
        {"op": "create_item", "id": "x", "type": "Person", "properties": {}},
        {"op": "create_item", "id": "x", "type": "PluginRun", "properties": {"pluginModule": "os"}},
        {"op": "update_item", "id": "p1", "properties": {"firstName": "x"}},
        {"op": "update_item", "id": run, "properties": {"reads": '["Person"]'}},
        {"op": "update_item", "id": run, "properties": {"containerImage": "none"}},
        {"op": "update_item", "id": mine, "properties": {"ownTypes": '["Person"]'}},
        {"op": "delete_item", "id": "p1"},
        {"op": "delete_item", "id": "r2"},
        {"op": "create_edge", "source": run, "name": "account", "target": "a1"},
        {"op": "create_edge", "source": run, "name": "pluginState", "target": state},
        {"op": "set_variable", "state": state, "name": "head", "value": 0},
        {"op": "increment_variable", "state": state, "name": "head"},
        {"op": "delete_variable", "state": state, "name": "head"},
        {"op": "set_progress", "run": "r2", "progress": 0.5},
        {"op": "move_run", "run": "r2", "status": "aborted"},
        {"op": "point_snapshot", "state": state, "snapshot": "x"},
        {"op": "ask_question", "id": "q2", "state": state, "run": "r2", "key": "k2", "form": "{}"},
        {"op": "answer_question", "id": "q1", "answer": "1"},
        {"op": "delete_question", "id": "q1"},
        {"op": "claim_lease", "state": state, "run": run, "holder": lease.holder, "duration_ms": 1000},
        {"op": "renew_lease", "fence": theirs, "duration_ms": 1},
        {"op": "release_lease", "fence": theirs},
        {"op": "end_lease", "state": state},
        {"op": "cancel_lease", "state": state},
        {"op": "append_log", "run": run, "source": "l", "start": "", "end": "1", "text": "x"},
        {"op": "expire_logs", "before_ms": 2**53},
    ]
    reads: list[tuple[str, dict[str, object]]] = [
        *(("items", {"ids": [each]}) for each in ("p1", "a1", "f1", "r2", state)),
        *(("search", {"query": each}) for each in ({"type": "Person"}, {}, {"ids": ["p1"]}, {"type": "Step"})),
        *((each, {"state": state}) for each in ("variables", "lease", "snapshot", "questions")),
        ("edges", {"ids": ["r2"], "direction": "Outgoing"}),
        *(("log", {"run": each}) for each in ("r2", run)),
        ("log-end", {"run": "r2", "source": "l"}),
    ]
    found: dict[str, tuple[str, str, str]] = {}
    auth = {"type": "PluginAuth", "data": {"token": "TOKEN"}}
    for who in (OWNER.owner_key, STRANGER.owner_key):
        at = f"/api/{who}"
        tried = [
            *(("POST", f"{at}/store/apply", {"operations": [each], "key": str(n)}) for n, each in enumerate(writes)),
            ("POST", f"{at}/store/apply", {"operations": [writes[2]], "fence": theirs}),
            *(("POST", f"{at}/store/{word}", body) for word, body in reads),
            *(("POST", f"{at}/claims", {"run": each}) for each in ("r2", run)),
            *((method, f"{at}/files/{sha256}", None) for method in ("GET", "HEAD", "DELETE")),
            ("GET", f"{at}/events", None),
            ("PUT", at, None),
            ("POST", f"/v4/{who}/search", {"auth": auth, "payload": {"type": "Person"}}),
        ]
        for method, path, body in tried:
            text = "" if body is None else json.dumps(body)
            found[f"{method} {path} {text}"] = (method, path, text)
    return found


def also(name: str) -> set[int]:
    """Return what else an attempt may be answered: it was one too many on a stranger's Pod, or a token is no key."""
    return {422} if name.startswith("PUT /api/") else {429} if STRANGER.owner_key in name else set()


# -- one server -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A server with runs that are in trouble, all at once: it takes its time until that is noticed."""

    here: Contained
    runs: dict[str, str]
    first: dict[str, str]
    """The containers that were killed or paused."""

    abort: Future[subprocess.CompletedProcess[str]]


@pytest.fixture(scope="class")
def scene(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Runs whose containers are killed, paused, or too small, and one that is aborted and does not care.

    They begin one after the other: if they began together, a slow machine would take longer than a lease.
    """
    with (
        contained(tmp_path_factory.mktemp("scene") / "home", engine, lease_s=LEASE_S) as here,
        ThreadPoolExecutor(1) as pool,
    ):
        runs, first = dict[str, str](), dict[str, str]()
        for name, plugin in (
            ("busy", "Busy"),
            ("killed", "Steps"),
            ("paused", "Steps"),
            ("learns", "Learns"),
            ("greedy", "Greedy"),
        ):
            run = runs[name] = here.begin(plugin, hold_at=4)
            here.wait_for_note(run, "holds" if plugin in {"Busy", "Steps"} else "began")
            if name == "busy":
                abort = pool.submit(here.holdfast, "runs", "abort", run, "--json")
            if plugin == "Steps":
                [first[name]] = here.containers(run)
                with engine.client() as client:
                    (client.kill if name == "killed" else client.pause)(first[name])
        yield Scene(here, runs, first, abort)
        for row in list_unfinished(Pod(here.store())):
            here.holdfast("runs", "abort", str(row.id), "--now")


class TestOneServer:
    """What a server launches at the same time."""

    def test_a_run_that_is_created_over_the_api_is_a_container_until_it_is_done(self, scene: Scene) -> None:
        """Variables, items and log are in the Pod then, its snapshots in the home, and nothing else is left."""
        here = scene.here
        keys = {"owner_key": OWNER.owner_key, "database_key": OWNER.database_key}
        with PodClient(url=here.server.url, **keys) as client:
            made = PluginRun(pluginModule="bots", pluginName="Steps", containerImage=IMAGE, config='{"last": 3}')
            made.reads = made.writes = '["Step"]'
            run = str(client.create(made).id)
        here.wait(run, "done")
        wait_until(lambda: not here.left(run))
        assert here.variables(run) == {"head": 3, "seen": "0 1 2"}
        assert here.steps(run) == [0, 1, 2]
        assert [line for line in here.log(run).splitlines() if "step " in line] == ["step 0", "step 1", "step 2"]
        verified = here.holdfast("snapshots", "verify", str(here.snapshots(run)), "--json")
        assert verified.returncode == 0, verified.stderr
        pointed = here.store().find_snapshot(here.state(run))
        assert pointed in [each["name"] for each in json.loads(verified.stdout)["snapshots"]]

    @pytest.mark.parametrize("how", ["killed", "paused"])
    def test_a_container_that_is_killed_or_paused_is_taken_over_and_each_step_is_done_once(
        self, how: str, scene: Scene
    ) -> None:
        """After its lease; the next carries on from its variables and its snapshot, and the first is gone for good."""
        here, run = scene.here, scene.runs[how]
        here.wait_for_note(run, "holds", 2)
        wait_until(lambda: scene.first[how] not in here.containers(run))
        assert (len(here.containers(run)), here.steps(run)) == (1, [0, 1, 2, 3])
        here.go(run)
        here.wait(run, "done")
        assert (here.steps(run), here.variables(run)) == ([0, 1, 2, 3, 4, 5], {"head": 6, "seen": "0 1 2 3 4 5"})
        wait_until(lambda: not here.left(run))
        assert [line for line in here.log(run).splitlines() if "step " in line] == [f"step {n}" for n in range(6)]
        assert len(here.launches(run)) == 2

    def test_what_needs_more_memory_three_times_is_an_error_that_says_so(self, scene: Scene) -> None:
        """With how much it could have, and its last words."""
        here, run = scene.here, scene.runs["greedy"]
        first, *_, last = here.wait_impatiently(run, "error").splitlines()
        assert first == (
            "it died 3 times and came no further in between: it was killed: it needed more than its "
            f"{MEMORY_MIB * 2**20} bytes of memory"
        )
        assert last == "the last words"
        wait_until(lambda: not here.left(run))
        assert len(here.notes(run, "began")) == 3

    def test_what_needs_more_memory_and_comes_further_each_time_goes_on(self, scene: Scene) -> None:
        """However often."""
        here, run = scene.here, scene.runs["learns"]
        assert here.wait_impatiently(run, "done", "error") == ""
        wait_until(lambda: not here.left(run))
        assert (len(here.notes(run, "began")), here.variables(run)) == (4, {"n": 3})

    def test_a_container_with_a_busy_loop_is_aborted(self, scene: Scene) -> None:
        """It is interrupted, for it never comes to a safe point."""
        here, run = scene.here, scene.runs["busy"]
        answer = json.loads(scene.abort.result().stdout)
        assert (answer["status"], answer["is_forced"]) == ("aborted", False)
        wait_until(lambda: not here.left(run))
        assert (here.row(run).properties["status"], len(here.notes(run, "began"))) == ("aborted", 1)

    def test_a_daemon_in_a_container_goes_on_until_it_is_aborted(self, scene: Scene) -> None:
        """Then nothing is left of it, and it is not begun again."""
        here = scene.here
        run = here.begin("Daemon")
        here.wait(run, "daemon")
        assert here.holdfast("runs", "abort", run).returncode == 0
        wait_until(lambda: not here.left(run))
        assert (here.row(run).properties["status"], len(here.notes(run, "began"))) == ("aborted", 1)

    def test_a_run_whose_image_is_missing_is_an_error_with_that_reason(self, scene: Scene) -> None:
        """And nothing was ever there."""
        here, image = scene.here, missing_image()
        run = here.begin("Steps", image)
        error = str(here.wait(run, "error").properties["error"])
        assert error.startswith(f"NotFoundError: image '{image}' is not here, and cannot be fetched: ")
        wait_until(lambda: not here.left(run))
        assert here.row(run).properties.get("deaths") is None

    @pytest.mark.parametrize("how", ["killed", "aborted"])
    def test_a_run_moves_into_a_container_and_out_again(self, how: str, scene: Scene) -> None:
        """Begun by hand, carried on by the server, ended by hand: with its variables and its snapshot each time."""
        here = scene.here
        folder = here.home / "plugins"
        plugin = {"pluginModule": "bots", "pluginName": "Steps", "config": '{"hold_at": 4}', "containerImage": IMAGE}
        (folder / "steps.json").write_text(json.dumps(plugin | {"reads": '["Step"]', "writes": '["Step"]'}))
        words = ["run", str(folder / "steps.json"), "--state", how]
        command = [sys.executable, "-m", "holdfast", *words, "--home", str(here.home)]
        before = here.noted_outside()
        with subprocess.Popen(command) as by_hand:
            try:
                wait_until(lambda: " holds " in here.noted_outside().removeprefix(before))
                run = here.noted_outside().removeprefix(before).split()[0]
                assert here.containers(run) == []
                if how == "aborted":
                    assert here.holdfast("runs", "abort", run, "--now").returncode == 0
            finally:
                by_hand.kill()
        assert here.holdfast("runs", "retry", run, "--image", IMAGE).returncode == 0
        here.wait_for_note(run, "holds", 2)
        assert len(here.containers(run)) == 1
        assert (here.steps(run), here.variables(run)) == ([0, 1, 2, 3], {"head": 4})
        assert here.holdfast("runs", "abort", run, "--now").returncode == 0
        wait_until(lambda: not here.left(run))
        assert here.holdfast("runs", "retry", run, "--image", "none").returncode == 0
        here.go(run)
        assert here.holdfast(*words).returncode == 0
        assert here.row(run).properties["status"] == "done"
        assert (here.steps(run), here.variables(run)["seen"]) == ([0, 1, 2, 3, 4, 5], "0 1 2 3 4 5")
        assert len(here.launches(run)) == 1

    def test_a_hostile_plugin_in_a_container_reads_and_writes_nothing_but_its_own(self, scene: Scene) -> None:
        """With the token that it has, and whatever it does to its container; what others have stays as it was."""
        here = scene.here
        data, asked, tried = MARK.encode(), dict[str, list[Any]](), dict[str, object]()
        sha256 = hashlib.sha256(data).hexdigest()
        run, worked = here.begin("Hostile", "none", module="hostile"), here.begin("Steps", last=2)
        here.wait(worked, "done")
        wait_until(lambda: not here.left(worked))
        state, mine = here.state(worked), here.state(run)
        strangers = here.store_of(STRANGER)
        items = (
            CreateItem("p1", "Person", {"firstName": MARK}),
            CreateItem("a1", "Account", {"handle": MARK, "secret": MARK}),
            CreateItem("f1", "File", {"sha256": sha256, "filename": MARK}),
        )
        strangers.apply(Batch(items))
        works = (
            CreateItem("r2", "PluginRun", {"config": MARK, "status": "ready"}),
            CreateEdge("r2", "pluginState", state),
            CreateEdge("r2", "account", "a1"),
            AppendLog("r2", "l", "", "9", MARK),
            AskQuestion("q1", state, "r2", "k", json.dumps(MARK)),
            ClaimLease(state, "r2", "h2", 3_600_000),
        )
        here.store().apply(Batch((*items, *works)))
        RemoteFiles(here.server.connect()).put(sha256, iter([data]))
        asking, trying = asks(here, state, (run, mine), sha256), tries(here, state)
        told = {"asks": json.dumps(asking), "tries": json.dumps({name: code for name, (code, _) in trying.items()})}
        others = ("p1", "a1", "f1", "r2", worked, state)

        def seen() -> object:
            files = [path for path in here.snapshots(worked).rglob("*") if path.is_file()]
            snapshots = {path: path.read_bytes() for path in files}
            return here.seen(*others), strangers.search(Query(is_deleted=None)), snapshots

        before = seen()
        granted = {"reads": None, "writes": None}
        here.store().apply(Batch((UpdateItem(run, {"config": json.dumps(told), "containerImage": IMAGE} | granted),)))
        here.wait(run, "done", "error")
        wait_until(lambda: not here.left(run))
        for line in here.log(run).splitlines():
            if line.startswith(("asked ", "tried ")):
                (asked if line[0] == "a" else tried).update(json.loads(line.partition(" ")[2]))
        assert tried == {name: expected for name, (_, expected) in trying.items()}
        refused = {401, 403}
        assert {name: each for name, (each, _) in asked.items() if each not in refused | also(name)} == {}
        assert (len(asked), MARK in json.dumps(asked)) == (len(asking), False)
        for words in (["list"], ["verify"], ["du"], ["prune", "--latest", "1", "--yes"]):
            assert here.holdfast("snapshots", *words[:1], str(here.snapshots(run)), *words[1:]).returncode == 0
        assert seen() == before
        assert here.variables(run) == {"own": "written"}
        here.store().apply(Batch((EndLease(state), MoveRun("r2", Status.ABORTED))))
