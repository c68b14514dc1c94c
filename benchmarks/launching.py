"""What launching adds: from the creation of a run on a server until it has started, and to the start of a program.

Beside it stands the bare start of the same thing: an interpreter that imports what the process of a run has imported,
the script by itself, a container that is made and started by the engine's own package. Also what it costs to look after
runs: one look at a Pod, and a server that has nothing to do.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Final

from benchmarks.measure import Cost, Ratio, Row, compare, cost, counted, ratio
from benchmarks.processes import environment
from benchmarks.runs import Timed
from benchmarks.serving import serving
from holdfast import PersistentState, PluginRun, PodClient
from holdfast.context import Settings, carry_out, unlock
from holdfast.engine.supervising import LAUNCH, Supervisor
from holdfast.keys import Identity
from holdfast.launchers.docker import DockerLauncher
from holdfast.launchers.script import ScriptLauncher
from holdfast.plugins import Source
from holdfast.pod import Pod
from holdfast.runs import Phase, Status
from holdfast.sql import SqliteStore
from holdfast.store import Batch, ClaimLease, MoveRun
from holdfast.testing.launching import make_spec
from tests.components.docker import Engine

LAUNCHES: Final = 2
"""How many runs one round launches."""
REST_S: Final = 1.5
"""After so long a server has looked at what came of the last run, and cleaned up after it."""
LOOKED_S: Final = 0.05
"""After so long it has looked at what was written, and lets a while pass before the next look."""
LOOKS: Final = 20
UNFINISHED: Final = (0, 10, 100)
PODS: Final = 20
IDLE_S: Final = 10

PLUGIN: Final = """
import json, socket, sys
from holdfast.plugins import StatefulPlugin

class Waits(StatefulPlugin):
    def __init__(self, port, **kwargs):
        super().__init__(**kwargs)
        self.port = port

    def run(self):
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(json.dumps(list(sys.modules)).encode() + b"\\n")
            connection.recv(1)
"""

# As a run does, without the command line of httpx.
IMPORT: Final = """
import importlib, json, sys
sys.modules["httpx._main"] = None
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
"""

SLEEP: Final = "/bin/sleep"
IMAGE: Final = "holdfast-bench:1"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The rows of launching.

    Args:
        folder: Where to write.
        rounds: How often each ratio is taken.
    """

    folder: Path
    rounds: int

    def rows(self) -> Iterator[Row]:
        """Measure, and yield one row after the other."""
        yield self._here()
        yield from self._process()
        yield self._script()
        yield from self._docker()
        yield from self._looks()
        if shutil.which("strace") is not None:
            yield from self._idle()

    def _here(self) -> Row:
        """From the call that makes a run and carries it on in this process up to the plugin's first line."""
        settings = Settings(home=self.folder / "here")
        source = Source(module=Timed.__module__, name=Timed.__name__, folder=Path.cwd())

        def start() -> Cost:
            began = Cost(time.perf_counter(), time.process_time())
            carry_out(settings, source, is_new=True)
            return Cost(Timed.started_at.wall_s - began.wall_s, Timed.started_at.cpu_s - began.cpu_s)

        Timed.work = staticmethod(lambda _: None)
        start()
        costs = [start() for _ in range(self.rounds * LAUNCHES)]
        return Row(
            work="run, call to started, in process, the Pod opened",
            limit="1 ms",
            wall=ratio([1000 * each.wall_s for each in costs]),
            cpu=ratio([1000 * each.cpu_s for each in costs]),
        )

    def _process(self) -> Iterator[Row]:
        home = self.folder / "launched"
        (home / "plugins").mkdir(parents=True)
        (home / "plugins" / "waits.py").write_text(PLUGIN)
        PodClient(home=home).close()  # a server launches processes for the owner whose keys lie in the home
        with (
            closing(socket.create_server(("127.0.0.1", 0))) as listening,
            serving(home) as url,
            PodClient(url=url, home=home) as client,
        ):
            listening.settimeout(60)
            names = launched(client, listening)[1]
            kinds: dict[str, Callable[[], float]] = {
                "run": lambda: launched(client, listening)[0],
                "import": lambda: seconds(IMPORT, json.dumps(names)),
                "nothing": lambda: seconds("pass"),
                "busy": lambda: launched(client, listening, is_at_rest=False)[0],
            }
            took: dict[str, list[float]] = {kind: [] for kind in kinds}
            for number in range(self.rounds * LAUNCHES):
                for kind in [*kinds][:: 1 if number % 2 else -1]:
                    took[kind].append(kinds[kind]())

        def times(kind: str) -> Ratio:
            return ratio([one / other for one, other in zip(took["run"], took[kind], strict=True)])

        def more(one: str, other: str) -> Ratio:
            return ratio([1000 * (each - beside) for each, beside in zip(took[one], took[other], strict=True)])

        work, limit = "run, create to started, launched as a process", "import of what it imports"
        yield Row(work=work, limit=limit, wall=times("import"))
        yield Row(work=work, limit="python -c pass", wall=times("nothing"))
        yield Row(work=work, limit="1 ms more than the import", wall=more("run", "import"), goal=60)
        yield Row(
            work=f"the same, {1000 * LOOKED_S:.0f} ms after another run was created",
            limit="1 ms more than at rest",
            wall=more("busy", "run"),
        )

    def _script(self) -> Row:
        """From the call of a launcher until a script is at work, less what it takes to start the script by itself."""
        script, pipe = self.folder / "script", self.folder / "pipe"
        script.write_text('#!/bin/sh\necho started >"$1"\n')
        script.chmod(0o700)
        os.mkfifo(pipe)
        launcher = ScriptLauncher(self.folder / "scripts", {"nothing": script})

        def launch(number: int) -> float:
            spec = make_spec(epoch=number + 1, image="nothing", command=[str(pipe)])
            took = cost(lambda: (launcher.launch(spec), pipe.read_bytes())).wall_s
            launcher.delete(spec.name)
            return took

        def start() -> float:
            began = time.perf_counter()
            with subprocess.Popen([script, pipe]):
                pipe.read_bytes()
                return time.perf_counter() - began

        more = [1000 * (launch(number) - start()) for number in range(self.rounds * LAUNCHES)]
        return Row(work="launch of a script", limit="1 ms more than its start", wall=ratio(more))

    def _docker(self) -> Iterator[Row]:
        work, limit = "launch of a container", "made and started through the SDK"
        if os.geteuid() or shutil.which("dockerd") is None:
            yield counted(f"{work}: not measured, for that takes root and dockerd", limit, 0)
            return
        with (
            own_engine() as engine,
            engine.client() as client,
            closing(DockerLauncher(self.folder / "docker", pod="bench", url=engine.url)) as launcher,
        ):
            specs = (make_spec(epoch=number, image=IMAGE) for number in itertools.count(1))
            spec = next(specs)
            launcher.launch(spec)
            made = client.inspect_container(spec.name)
            same = {**made["Config"], "HostConfig": made["HostConfig"]}

            def launch() -> Cost:
                spec = next(specs)
                took = cost(lambda: launcher.launch(spec))
                if launcher.probe(spec.name).phase is not Phase.RUNNING:
                    raise RuntimeError("the container that was to be measured does not run")
                launcher.delete(spec.name)
                return took

            def start() -> Cost:
                took = cost(lambda: client.start(client.create_container_from_config(same, "bare")))
                client.remove_container("bare", force=True)
                return took

            yield compare(work, limit, rounds=self.rounds, measure=launch, measure_limit=start)
            launcher.delete(spec.name)

    def _looks(self) -> Iterator[Row]:
        with SqliteStore(*unlock(Settings(home=self.folder / "looked-at"))) as store, Pod(store) as client:
            supervisor = Supervisor(
                "o" * 64, SimpleNamespace(launchers=tuple, free=int), sealing=repr, now_ms=store.now_ms
            )
            there = 0
            for count in UNFINISHED:
                for number in range(there, count):
                    state = client.create(PersistentState(pluginId="my_bot:Bot", name=str(number)))
                    run = client.create(PluginRun(containerImage="bot", pluginState=[state]))
                    claim = ClaimLease(str(state.id), str(run.id), f"{LAUNCH}{number}", 3_600_000)
                    store.apply(Batch((claim, MoveRun(str(run.id), Status.STARTED))))
                there = count
                took = [1000 * cost(lambda: supervisor.look(store)).wall_s for _ in range(LOOKS)]
                yield Row(work=f"look at a Pod with {count} runs that work", limit="1 ms", wall=ratio(took))

    def _idle(self) -> Iterator[Row]:
        home, log = self.folder / "idle", self.folder / "idle-strace"
        for _ in range(PODS):
            identity = Identity.new()
            PodClient(home=home, owner_key=identity.owner_key, database_key=identity.database_key).close()
        trace = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=openat", "-o", str(log))
        with serving(home, *trace):
            time.sleep(4 * REST_S)  # each is looked at once, for it is new
            before = log.read_text()
            ticks = ticks_of(before.split()[0])
            time.sleep(IDLE_S)
            ticks = ticks_of(before.split()[0]) - ticks
            opened = log.read_text()[len(before) :].count("/pods/")
        if "/pods/" not in before:
            raise RuntimeError("the Pods were not even opened once: nothing was counted")
        work = f"server with {PODS} Pods that has nothing to do"
        yield counted(work, "Pods opened a minute", opened * 60 / IDLE_S, goal=0)
        used = 1000 * ticks / os.sysconf("SC_CLK_TCK") / IDLE_S
        yield counted(work, "1 ms of a processor in a second", round(used, 2))


def launched(client: PodClient, listening: socket.socket, *, is_at_rest: bool = True) -> tuple[float, list[str]]:
    """Let a run be launched; return the seconds until it has started, as the Pod says, and what it has imported."""
    settings = {"port": listening.getsockname()[1]}
    run = PluginRun(pluginModule="waits", pluginName="Waits", containerImage="any", config=json.dumps(settings))
    time.sleep(REST_S)
    if not is_at_rest:
        client.create(PluginRun(containerImage="none"))
        time.sleep(LOOKED_S)
    began = time.time()  # the Pod's clock is that of this machine
    client.create(run)
    connection, _ = listening.accept()
    with connection, connection.makefile() as said:
        names: list[str] = json.loads(said.readline())
        found = client.get(str(run.id))
    if found.status != Status.STARTED or found.dateServerModified is None:
        raise RuntimeError(f"the run that was to be measured is {found.status}")
    while client.get(str(run.id)).status != Status.DONE:
        time.sleep(0.05)
    ours = ("holdfast", "waits", "__main__")
    return found.dateServerModified.timestamp() - began, [name for name in names if not name.startswith(ours)]


def seconds(*program: str) -> float:
    """Return how long a program of Python takes, from its start to its end."""
    argv = [sys.executable, "-c", *program]
    return cost(lambda: subprocess.run(argv, check=True, env=environment(""))).wall_s


@contextmanager
def own_engine() -> Generator[Engine]:
    """Start a container engine that has `IMAGE`, in which nothing is done."""
    engine = Engine()
    try:
        engine.start()
        if engine.lacks:
            raise RuntimeError(engine.lacks)
        with engine.client() as client:
            client.import_image_from_data(sleeper(), *IMAGE.split(":"), changes=[f'CMD ["{SLEEP}", "1000"]'])
        yield engine
    finally:
        engine.remove()


def sleeper() -> bytes:
    """Return an archive with one program and what it is linked with."""
    listed = subprocess.run(["ldd", SLEEP], capture_output=True, text=True, check=True).stdout
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", dereference=True) as archive:
        for each in (SLEEP, *re.findall(r"(/\S+) \(0x", listed)):
            archive.add(Path(each).resolve(), each.lstrip("/"))
    return data.getvalue()


def ticks_of(pid: str) -> int:
    """Return the processor's time that a process has used."""
    return sum(map(int, Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[11:13]))
