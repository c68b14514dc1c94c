"""A server that is killed, or restarted, under its clients: what they were told is there, and is there once."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from holdfast.errors import UnavailableError
from holdfast.items import PluginRun
from holdfast.pod import Pod
from holdfast.remote import RemoteStore
from holdfast.store import Batch, CreateItem, IncrementVariable, Query
from tests.components.servers import OWNER, Process
from tests.components.strace import require_strace

pytestmark = pytest.mark.timeout(900)  # for --full; what is sampled takes seconds

COUNTED = Batch((IncrementVariable("s", "n"), CreateItem("ada", "Person", {"firstName": "Ada"})), None, "counted")

DYING = """
import os, signal, sys
from pathlib import Path
from holdfast.context import serving

died = Path(sys.argv.pop(1))

class Dying(serving._Writing):
    def apply(self, batch):
        answer = super().apply(batch)
        self.die([batch])
        return answer

    def apply_all(self, batches):
        answers = super().apply_all(batches)
        self.die(batches)
        return answers

    def die(self, batches):
        if any(batch.key == "counted" for batch in batches) and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

serving._Writing = Dying
from holdfast.cli import main
main()
"""
"""A server that kills itself when it has committed the batch, before anybody is answered; once."""


def counted(store: RemoteStore) -> tuple[object, list[str]]:
    """Return what `COUNTED` has changed."""
    return store.list_variables("s").get("n"), [each.item.id for each in store.search(Query(type="Person"))]


def test_killed_between_commit_and_answer_a_batch_that_comes_again_is_answered_as_it_would_have_been(
    tmp_path: Path,
) -> None:
    """The client does not know that it was done, and asks the next server."""
    program = [sys.executable, "-c", DYING, str(tmp_path / "died"), "serve", "--json"]
    with Process(tmp_path / "home", program=program) as server, ThreadPoolExecutor(1) as pool:
        store = server.store()
        applied = pool.submit(store.apply, COUNTED)
        server.wait()
        assert (tmp_path / "died").exists()
        server.start()
        answer = applied.result()
        assert (answer[0], counted(store)) == (1, (1, ["ada"]))
        assert store.apply(COUNTED) == answer


def test_killed_at_any_write_of_a_request_its_batch_is_done_once(tmp_path: Path, is_full: bool) -> None:
    """Before the commit, in it, and after it: whole or not at all, and once when it comes again."""
    require_strace()
    seen = set[str]()
    for name, numbers in (("pwrite64", (2,)), ("fdatasync", (1,))):
        for number in range(1, 1_000) if is_full else numbers:
            home = tmp_path / f"{name}-{number}"
            with Process(home) as maker:
                maker.store().close()
                maker.end(15)
            kill = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={name}"]
            kill += ["-e", f"inject={name}:signal=SIGKILL:when={number}"]
            with Process(home, before=kill) as server, ThreadPoolExecutor(1) as pool:
                store = RemoteStore(server.connect())
                applied = pool.submit(store.apply, COUNTED)
                while not applied.done() and server.is_running:
                    threading.Event().wait(0.01)
                if server.is_running:  # it makes fewer of them
                    break
                server.before = ()
                server.start()
                answer = applied.result()
                assert (answer[0], counted(store)) == (1, (1, ["ada"])), (name, number)
                seen.add(name)
    assert seen == {"pwrite64", "fdatasync"}


def test_killed_again_and_again_eight_clients_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    """Each of them counts as often as it was told."""
    with Process(tmp_path / "home") as server:
        stores = [server.store() for _ in range(8)]
        done = [0] * 8
        is_over = threading.Event()

        def count(number: int) -> None:
            while not is_over.is_set():
                stores[number].apply(Batch((IncrementVariable("s", f"n{number}"),)))
                done[number] += 1

        with ThreadPoolExecutor(8) as pool:
            counting = [pool.submit(count, number) for number in range(8)]
            for _ in range(3):
                before = min(done)
                while min(done) < before + 5:
                    threading.Event().wait(0.01)
                server.end()
                server.start()
            before = min(done)
            while min(done) < before + 5:
                threading.Event().wait(0.01)
            is_over.set()
            for each in counting:
                each.result()
        assert stores[0].list_variables("s") == {f"n{number}": done[number] for number in range(8)}


COUNTER = """
import time
from holdfast import Item, StatefulPlugin

class Tick(Item):
    n: int | None = None

class Counter(StatefulPlugin):
    schema_classes = [Tick]

    def run(self):
        from pathlib import Path
        stop = Path(__file__).with_name("stop")
        while not stop.exists():
            with self.transaction():
                self.client.create(Tick(n=self.state.n or 0))
                self.state.n = (self.state.n or 0) + 1
            self.safe_point()
            time.sleep(0.05)
"""


def start_plugins(server: Process, folder: Path, count: int) -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """Begin runs of a plugin, each with a token and in a process of its own; yield plugin state, token and process."""
    folder.mkdir()
    store = server.store()
    for number in range(count):
        (folder / f"counter{number}.py").write_text(COUNTER.replace("Tick", f"Tick{number}"))
        run = Pod(store).create(PluginRun(pluginModule=f"counter{number}", pluginName="Counter"))
        claim = json.loads(server.connect().send("POST", "/claims", json.dumps({"run": run.id}).encode()))
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path, sysconfig.get_path("purelib")]),
            "HOLDFAST_HOME": str(folder / f"home{number}"),
            "POD_FULL_ADDRESS": server.url,
            "POD_OWNER": OWNER.owner_key,
            "POD_PLUGINRUN_ID": str(run.id),
            "POD_AUTH_JSON": json.dumps({"type": "PluginAuth", "data": {"token": claim["token"]}}),
        }
        program = [sys.executable, "-c", "from holdfast.cli.run_plugin import main; main()", "--read_args_from_env"]
        log = (folder / f"log{number}").open("wb")
        with log:
            yield claim["lease"]["state"], claim["token"], subprocess.Popen(program, env=environ, stderr=log)


def wait_for_progress(store: RemoteStore, states: Sequence[str]) -> None:
    """Wait until each plugin has made some."""
    before = [store.list_variables(state).get("n", 0) for state in states]
    while any(store.list_variables(state).get("n", 0) == old for state, old in zip(states, before, strict=True)):
        threading.Event().wait(0.05)


def test_restarted_under_five_running_plugins_they_carry_on_and_without_kept_keys_when_their_owner_has_called(
    tmp_path: Path,
) -> None:
    """Nothing is lost, nothing is done twice, and no run notices more than that it had to wait."""
    folder = tmp_path / "plugins"
    with Process(tmp_path / "home") as server, ExitStack() as ending:
        runs = list(start_plugins(server, folder, 5))
        for _, _, process in runs:
            ending.callback(process.wait)
            ending.callback(process.kill)
        states = [state for state, _, _ in runs]
        wait_for_progress(server.store(), states)
        server.end()
        server.start()  # the key is kept: their tokens are enough
        for state, token, _ in runs:
            assert RemoteStore(server.connect(token=token)).find_lease(state) is not None
        wait_for_progress(server.store(), states)
        server.end()
        server.words = ["--no-keyring"]
        server.start()
        with pytest.raises(UnavailableError, match="its owner has to call first"):
            RemoteStore(server.connect(token=runs[0][1], patience_s=0)).now_ms()
        wait_for_progress(server.store(), states)  # who calls here is the owner
        (folder / "stop").touch()
        for number, (state, _, process) in enumerate(runs):
            assert process.wait() == 0, (folder / f"log{number}").read_text()
            found = server.store().search(Query(type=f"Tick{number}"))
            ticks = sorted(int(str(each.item.properties["n"])) for each in found)
            assert ticks == list(range(int(str(server.store().list_variables(state)["n"]))))


@pytest.mark.parametrize("delay", [(), ("-e", "inject=fdatasync:delay_exit=5000")], ids=["bare", "a flush of 5 ms"])
def test_32_clients_share_flushes(tmp_path: Path, delay: Sequence[str]) -> None:
    """At most one for four acknowledged writes, counted by the kernel, however quick or slow the disk is."""
    require_strace()
    log = tmp_path / "log"
    count = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=fsync,fdatasync", *delay, "-o", str(log)]
    with Process(tmp_path / "home", before=count) as server:
        stores = [server.store() for _ in range(32)]
        before = len(log.read_text().splitlines())

        def create(number: int) -> None:
            for each in range(20):
                stores[number].apply(Batch((CreateItem(f"p{number}-{each}", "Person"),)))

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(create, range(32)))
        said = "\n".join(log.read_text().splitlines()[before:])
        flushes = re.findall(r"^\d+ +(?:fsync|fdatasync)\(", said, re.MULTILINE)
        assert len(stores[0].search(Query(type="Person"))) == 640
    assert 10 <= len(flushes) <= 160, len(flushes)
