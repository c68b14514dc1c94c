"""A home with a server that launches runs as processes, its plugins, and whatever is left of launches in it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.engine import abort, find_state, list_unfinished
from holdfast.items import PersistentState, PluginRun
from holdfast.keys import store_identity
from holdfast.pod import Pod
from holdfast.sql import Agenda
from holdfast.store import ItemRow, Query, Store
from tests.components.servers import OWNER, SERVE, Process

PLUGINS = '''
import os, signal, time
from pathlib import Path

from holdfast import EverySteps, FencedError, Item, PluginConfig, RetryLater, StatefulPlugin

HERE = Path(__file__).parent


class Step(Item):
    run_id: str | None = None
    n: int | None = None


def note(*words):
    """Say it to the test, past the Pod."""
    with (HERE / "notes").open("a") as file:
        file.write(" ".join(map(str, words)) + "\\n")


def is_let_go(*names):
    return any((HERE / f"go-{each}").exists() for each in names)


class Noting(StatefulPlugin):
    """Notes each process that begins it."""

    class Config(PluginConfig):
        hold_at: int = -1
        last: int = 6

    def setup(self):
        note(self.runId, "began", os.getpid())


class Seen:
    def __init__(self):
        self.steps, self.saved = [], 0

    def add(self, step):
        self.steps, self.saved = [*self.steps, step], 0

    def get_state(self):
        self.saved += 1
        return {"steps": self.steps}

    def set_state(self, tree):
        self.steps = list(tree["steps"])


class Steps(Noting):
    """Each step is one event, and is followed by a snapshot; before one of them it waits until it is let go."""

    schema_classes = [Step]
    condition = EverySteps(1)

    def setup(self):
        super().setup()
        self.seen = Seen()
        self.snapshots.register("seen", self.seen)

    def run(self):
        for step in range(self.state.get("head", 0), self.config.last):
            if step == self.config.hold_at:
                self.hold()
            try:
                with self.transaction():
                    self.client.create(Step(run_id=self.runId, n=step))
                    self.state.head = step + 1
            except FencedError:
                note(self.runId, "refused", os.getpid())
                raise
            self.seen.add(step)
            print("step", step, flush=True)
            self.safe_point()
        self.state.seen = " ".join(map(str, self.seen.steps))
        note(self.runId, "ended", os.getpid())

    def hold(self):
        while self.seen.saved < 2:  # the second is begun when there is a pointer to the first
            self.safe_point()
            time.sleep(0.01)
        note(self.runId, "holds", os.getpid())
        while not is_let_go(self.runId, os.getpid()):
            time.sleep(0.02)


class Ticks(Noting):
    """Makes steps until it is let go."""

    schema_classes = [Step]

    def run(self):
        while not is_let_go(self.runId):
            with self.transaction():
                self.client.create(Step(run_id=self.runId, n=self.state.get("head", 0)))
                self.state.head = self.state.get("head", 0) + 1
            time.sleep(0.05)
        note(self.runId, "ended", os.getpid())


class Daemon(Noting):
    def run(self):
        self.daemon()
        while True:
            time.sleep(0.05)
            self.safe_point()


class Poison(Noting):
    def run(self):
        print("the last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


class Further(Noting):
    """Dies three times, and has come further each time."""

    def run(self):
        self.state.n = self.state.get("n", 0) + 1
        if self.state.n < 4:
            os._exit(1)


class Busy(Noting):
    def run(self):
        note(self.runId, "holds", os.getpid())
        while True:
            pass


class Deaf(Noting):
    """Hears no signal, and shrugs off whatever is raised in it."""

    def run(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os._exit = print
        note(self.runId, "holds", os.getpid())
        while True:
            try:
                time.sleep(1000)
            except BaseException:
                pass


class Later(Noting):
    """Asks to be tried later, the first time."""

    def run(self):
        if self.state.first_ms is None:
            self.state.first_ms = time.time_ns() // 10**6
            raise RetryLater("it is away", after=8)
        self.state.second_ms = time.time_ns() // 10**6


class Fails(Noting):
    """Once."""

    def run(self):
        if self.state.is_tried is None:
            self.state.is_tried = True
            raise ValueError("out of order")
'''

_END_S = 60.0
"""Longer than a server takes to end what hears no signal."""


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return when something is so; it is asked seldom enough for asking to be no work."""
    while not is_so():
        threading.Event().wait(0.05)


@dataclass
class Supervised:
    """A server in a home of its own, which is the owner's."""

    home: Path
    server: Process
    _store: Store | None = None

    @property
    def plugins(self) -> Path:
        """Where its plugins are."""
        return self.home / "plugins"

    def store(self) -> Store:
        """Return the owner's store, over HTTP; the same one, also after a restart."""
        if self._store is None:
            self._store = self.server.store()
        return self._store

    def begin(self, plugin: str, image: str = "bot", *, module: str = "bots", **config: int | str) -> str:
        """Create a run on a plugin state of its own, and return its id."""
        client = Pod(self.store())
        state = client.create(PersistentState(pluginId=f"{module}:{plugin}", name=os.urandom(8).hex()))
        run = PluginRun(
            pluginModule=module,
            pluginName=plugin,
            containerImage=image,
            config=json.dumps(config),
            reads='["Step"]',
            writes='["Step"]',
            pluginState=[state],
        )
        return client.create(run).id or ""

    def row(self, run: str) -> ItemRow:
        """Return a run."""
        return self.store().find_items([run])[run]

    def wait(self, run: str, *statuses: str) -> ItemRow:
        """Wait until a run has one of these statuses, and return it."""
        wait_until(lambda: self.row(run).properties["status"] in statuses)
        return self.row(run)

    def variables(self, run: str) -> dict[str, object]:
        """Return the variables of the plugin state of a run."""
        state = find_state(self.store(), run)
        return {} if state is None else dict(self.store().list_variables(state.id))

    def launches(self, run: str) -> list[str]:
        """Return which launches have written to the log of a run, by the epochs in their names."""
        return list(dict.fromkeys(part.source.rpartition("-")[2] for part in self.store().list_log(run)))

    def noted(self) -> str:
        """Return what plugins have noted: a run, a word and a process on each line."""
        try:
            return (self.plugins / "notes").read_text()
        except FileNotFoundError:
            return ""

    def notes(self, run: str, word: str) -> list[int]:
        """Return the processes of a run that have noted a word, in their order."""
        lines = [line.split() for line in self.noted().splitlines()]
        return [int(pid) for who, what, pid in lines if (who, what) == (run, word)]

    def wait_for_note(self, run: str, word: str, count: int = 1) -> int:
        """Wait until a word was noted so often, and return the process that did so last."""
        wait_until(lambda: len(self.notes(run, word)) >= count)
        return self.notes(run, word)[-1]

    def go(self, who: str | int) -> None:
        """Let a run go on that holds, or one process of it."""
        (self.plugins / f"go-{who}").touch()

    def steps(self, run: str) -> list[object]:
        """Return the steps that a run has made, in the order in which they came into the Pod."""
        found = [each.item.properties for each in self.store().search(Query(type="Step"))]
        return [each["n"] for each in found if each["run_id"] == run]

    def wait_for_steps(self, runs: Sequence[str]) -> None:
        """Wait until each run has made some more."""
        before = [len(self.steps(run)) for run in runs]
        wait_until(lambda: all(len(self.steps(run)) > old for run, old in zip(runs, before, strict=True)))

    def log(self, run: str) -> str:
        """Return what is in the Pod of what a run has written."""
        return "".join(part.text for part in self.store().list_log(run))

    def words(self, *words: str) -> list[str]:
        """Return the command line of ``holdfast WORDS`` in this home."""
        return [sys.executable, "-m", "holdfast", *words, "--home", str(self.home)]

    def holdfast(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``holdfast WORDS`` to its end."""
        command = self.words(*words)
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def end(self) -> None:
        """Abort what has not ended, as after a test that has failed, and fail if anything of launches is left then."""
        for run in list_unfinished(Pod(self.store())):
            abort(self.store(), run.id or "", locks=self.home / "locks", wait_s=0)
        until = time.monotonic() + _END_S
        wait_until(lambda: not self.left() or time.monotonic() > until)
        assert self.left() == {}

    def left(self, run: str = "") -> dict[str, object]:
        """Return all that there is of launches: folders, processes by their marks, and how many count as at work.

        Args:
            run: Of this run alone; "": of all.
        """
        folders = (self.home / "launches").glob("*/*")
        found = {
            "folders": [each.name for each in folders if not run or run in _read(each / "launch.json").decode()],
            "processes": _marked(self.home, run),
            "live": 0 if run else Agenda(self.home / "pod.db").live_of_others(""),
        }
        return {name: value for name, value in found.items() if value}


@contextmanager
def supervised(home: Path, *words: str, program: Sequence[str] = SERVE, **settings: float) -> Iterator[Supervised]:
    """Serve a new home, whose settings these are; when the block is over, nothing of launches may be left in it.

    Args:
        home: Where.
        words: What is said to ``holdfast serve`` besides.
        program: What is started instead.
        settings: What ``holdfast.toml`` holds; a lease is 3 seconds by default.
    """
    (home / "plugins").mkdir(parents=True)
    (home / "plugins" / "bots.py").write_text(PLUGINS)
    given = {"lease_s": 3, "max_runs_per_owner": 100, "max_runs": 100} | settings
    (home / "holdfast.toml").write_text("".join(f"{name} = {value}\n" for name, value in given.items()))
    store_identity(home, OWNER, is_in_use=lambda _: False)
    found = Supervised(home, Process(home, words=words, program=program))
    try:
        with found.server:
            yield found
            found.end()
    except BaseException:
        sys.stderr.write(f"{found.left()}\n{found.server.said()}")
        raise
    finally:
        for pid in _marked(home):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _marked(home: Path, run: str = "") -> list[int]:
    found: list[int] = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        said = _read(environ)
        if f"HOLDFAST_LAUNCH={home}/launches/".encode() in said and f"POD_PLUGINRUN_ID={run}".encode() in said:
            found.append(int(environ.parent.name))
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""
