"""A home with a server that launches runs as containers, of an image that is built as the project's Dockerfile says."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import find_state
from holdfast.errors import ConflictError
from holdfast.keys import Identity
from holdfast.remote import Connection, RemoteStore, make_pod
from holdfast.store import Batch, Direction, Store, UpdateItem
from holdfast.testing.launching import wait_until
from tests.components.docker import Engine
from tests.components.servers import SERVE
from tests.components.supervised import PLUGINS, Supervised, supervised

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "bots"
"""What the image with the plugins is called."""

MEMORY_MIB = 160
"""What each container may use: twice what it needs, but for those that need more."""

SECRET = "kept-from-containers"
"""In the environment of the server."""

_BESIDE = "HERE = Path(__file__).parent"
_MOUNTED = 'HERE = next(Path(os.environ["HOLDFAST_HOME"], "snapshots").iterdir())'
"""Where plugins note in a container, and wait to be let go: beside their snapshots, where the test is as well."""

_MORE = '''

class Greedy(Noting):
    """Needs more memory than there is."""

    times = 1000

    def run(self):
        if self.state.get("n", 0) < self.times:
            self.come_further()
            print("the last words", flush=True)
            bytearray(b"x") * 2**30

    def come_further(self):
        pass


class Learns(Greedy):
    """So often, and has come further each time."""

    times = 3

    def come_further(self):
        self.state.n = self.state.get("n", 0) + 1
'''


def build_images(folder: Path, engine: Engine, **modules: str) -> None:
    """Build the project's image as its Dockerfile says, and one with plugins on it.

    Args:
        folder: An empty one.
        engine: Where.
        modules: The plugins, besides ``bots``.
    """
    wheels, plugins = folder / "build" / "wheels", folder / "plugins"
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, folder)
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-build-isolation", "--wheel-dir", str(wheels)]
    pins = ["--constraint", str(ROOT / "requirements" / "dev.txt")]
    subprocess.run([*pip, *pins, str(ROOT)], check=True, capture_output=True)
    plugins.mkdir()
    assert _BESIDE in PLUGINS
    for name, text in {"bots": PLUGINS.replace(_BESIDE, _MOUNTED) + _MORE, **modules}.items():
        (plugins / f"{name}.py").write_text(text)
    (plugins / "Dockerfile").write_text("FROM holdfast\nCOPY *.py /plugins/\n")
    with engine.client() as client:
        for place, tag in ((folder, "holdfast"), (plugins, IMAGE)):
            given: dict[str, Any] = {"path": str(place), "tag": tag, "buildargs": {"PYTHON": Engine.image}}
            output = [*client.build(**given, network_mode="none", rm=True, decode=True)]
            assert not any("error" in each for each in output), output


@dataclass
class Contained(Supervised):
    """A server whose runs are containers."""

    engine: Engine = field(kw_only=True)

    def containers(self, run: str = "") -> list[str]:
        """Return the containers of a run, ended ones too; "": all that launch runs."""
        label = f"holdfast.run={run}" if run else "holdfast.pod"
        with self.engine.client() as client:
            return [each["Names"][0].strip("/") for each in client.containers(all=True, filters={"label": label})]

    def left(self, run: str = "") -> dict[str, object]:
        """As in `Supervised`, and containers."""
        containers = self.containers(run)
        return super().left(run) | ({"containers": containers} if containers else {})

    def begin(self, plugin: str, image: str = IMAGE, *, module: str = "bots", **config: int | str) -> str:
        """As in `Supervised`."""
        return super().begin(plugin, image, module=module, **config)

    def store_of(self, who: Identity) -> Store:
        """Return the store of another owner, whose Pod is made if there is none."""
        connection = Connection(self.server.url, who.owner_key, database_key=who.database_key)
        self.server.opened.append(connection)
        make_pod(connection)
        return RemoteStore(connection)

    def state(self, run: str) -> str:
        """Return the plugin state of a run."""
        found = find_state(self.store(), run)
        assert found is not None
        return found.id

    def snapshots(self, run: str) -> Path:
        """Return the folder with the snapshots of a run."""
        return self.home / "snapshots" / self.state(run)

    def seen(self, *ids: str) -> Any:
        """Return all that is in the Pod of these items, runs and plugin states."""
        store = self.store()
        leases = [store.find_lease(id_) for id_ in ids]
        return {
            "items": dict(store.find_items(ids)),
            "edges": store.list_edges(ids, Direction.OUTGOING, with_deleted=True),
            "variables": [store.list_variables(id_, each) for id_ in ids for each in ("", "once", "holdfast")],
            "pointers": [store.find_snapshot(id_) for id_ in ids],
            "questions": [store.list_questions(id_) for id_ in ids],
            "leases": [None if lease is None else (lease.epoch, lease.holder, lease.is_cancelled) for lease in leases],
            "logs": [part.text for id_ in ids for part in store.list_log(id_)],
        }

    def noted(self) -> str:
        """As in `Supervised`, of those outside of containers and of those in them."""
        return self.noted_outside() + "".join(path.read_text() for path in self.home.glob("snapshots/*/notes"))

    def noted_outside(self) -> str:
        """Return what was noted outside of containers."""
        return super().noted()

    def go(self, who: str | int) -> None:
        """Let a run go on that holds, wherever it is."""
        super().go(who)
        (self.snapshots(str(who)) / f"go-{who}").touch()

    def wait_impatiently(self, run: str, *statuses: str) -> str:
        """Wait until a run has one of these statuses, and not for any pause before it is launched again.

        Returns:
            Its error, "" if it has none.
        """
        while (row := self.row(run)).properties["status"] not in statuses:
            if row.properties.get("retryAt") is not None:
                with suppress(ConflictError):
                    self.store().apply(Batch((UpdateItem(run, {"retryAt": None}),)))
            wait_until(lambda: self.row(run).version != row.version)
        return str(row.properties.get("error") or "")


@contextmanager
def contained(
    home: Path, engine: Engine, *words: str, program: Sequence[str] = SERVE, **settings: float
) -> Iterator[Contained]:
    """Serve a new home, as `supervised`; when the block is over, no container must be left either."""
    words = ("--launcher", "docker", "--run-memory", str(MEMORY_MIB), *words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.url)
        patch.setenv("A_SECRET", SECRET)
        with supervised(home, *words, program=program, **settings) as server:
            here = Contained(server.home, server.server, engine=engine)
            try:
                yield here
                wait_until(lambda: not here.left())
            finally:
                with engine.client() as client:
                    for name in here.containers():
                        client.remove_container(name, force=True)
