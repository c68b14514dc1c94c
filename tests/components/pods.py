"""A Pod in processes of their own that are killed, failed or raced: ``python -c RUN WORD FOLDER``.

Each word makes the same system calls each time it is run: ids, dates and keys are written out. What it acknowledges it
appends to the file ``acknowledged``, after the call that promised it has returned.
"""

import json
import os
import shutil
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.resources.abc import Traversable
from pathlib import Path

from holdfast.context import PodClient, Settings
from holdfast.errors import HoldfastError
from holdfast.items import Person, PropertyDefinition, TypeDefinition
from holdfast.keys import Envelope, Identity
from holdfast.runs import Fence, Status
from holdfast.sql import SqliteStore, back_up, restore
from holdfast.store import (
    Batch,
    ClaimLease,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    IncrementVariable,
    MoveRun,
    PointSnapshot,
    Query,
    RenewLease,
    SetVariable,
    Store,
)
from holdfast.testing import FakeClock
from holdfast.values import Kind
from tests.components.strace import BEGIN, END

PYTHON = [sys.executable, "-S", "-c", "from tests.components.pods import main; main()"]
"""-S: without the site's own start it makes fewer calls, and they are the same each time."""

_ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "src"), sysconfig.get_path("purelib")])}

KEY = bytes(range(32))
OWNER = Identity("a" * 64, "b" * 64)
DOG = TypeDefinition("Dog", {"name": PropertyDefinition(Kind.TEXT)}, {"friend": ("Dog",)})

SETUP = Batch(
    (
        DeclareTypes((DOG,)),
        CreateItem("run1", "PluginRun", {"pluginName": "kill"}),
        ClaimLease("s1", "run1", "holder1", 3_600_000),
        SetVariable("s1", "keep", "me"),
    )
)
FENCE = Fence(state="s1", epoch=1, holder="holder1")
FIRST = Batch((CreateItem("first", "Dog", {"name": "first"}), SetVariable("s1", "head", 1)), FENCE)
SECOND = Batch(
    (
        CreateItem("d1", "Dog", {"name": "Bob"}),
        CreateItem("d2", "Dog", {"name": "Rex"}),
        CreateEdge("d1", "friend", "d2"),
        SetVariable("s1", "head", 7),
        PointSnapshot("s1", "snapshot-7"),
        MoveRun("run1", Status.STARTED),
        RenewLease(FENCE, 7_200_000),
    ),
    FENCE,
)
LARGE = Batch(tuple(CreateItem(f"n{number}", "Dog", {"name": "x" * 2_000}) for number in range(2_200)))
"""More than the 1,000 pages of log at which SQLite copies the log into the file."""


def open_store(folder: Path, *, steps: dict[int, Traversable] | None = None) -> SqliteStore:
    """Open the Pod in ``folder``, or make it."""
    return SqliteStore(folder / "pod.db", KEY, clock=FakeClock(), steps=steps)


def make_pod(path: Path, *batches: Batch, key: bytes = KEY, is_left_open: bool = False) -> None:
    """Make a Pod of `OWNER` in file ``path`` that holds `SETUP` and ``batches``.

    Args:
        path: The file; its folder is made if needed.
        batches: What it holds besides.
        key: Its data key.
        is_left_open: Leave it as a process does that dies: with a log.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_bytes(Envelope.seal(key, OWNER).to_json())
    with SqliteStore(path, key, clock=FakeClock()) as store:
        for batch in (SETUP, *batches):
            store.apply(batch)
        if is_left_open:
            shutil.copytree(path.parent, path.parent.with_name(".left"))
    if is_left_open:
        shutil.rmtree(path.parent)
        path.parent.with_name(".left").rename(path.parent)


def owners_pod(folder: Path) -> Path:
    """Return where `OWNER`'s Pod is if the home is in ``folder``."""
    return Settings(home=folder / "home").pod_path(OWNER.owner_key)


def content(store: Store) -> dict[str, object]:
    """Return all that a Pod holds, in words that can be compared."""
    found = store.search(Query(is_deleted=None, outgoing=True))
    lease = store.find_lease("s1")
    return {
        "items": {each.item.id: dict(each.item.properties) for each in found},
        "versions": {each.item.id: each.item.version for each in found},
        "edges": [(each.item.id, edge.name, edge.item.id) for each in found for edge in each.edges],
        "variables": dict(store.list_variables("s1")),
        "lease": None if lease is None else (lease.epoch, lease.holder, lease.run, lease.expires_ms),
        "snapshot": store.find_snapshot("s1"),
        "questions": [question.key for question in store.list_questions("s1")],
        "types": sorted(store.schema()),
    }


def acknowledged(folder: Path) -> list[str]:
    """Return what a program said was saved."""
    try:
        return (folder / "acknowledged").read_text().split()
    except FileNotFoundError:
        return []


def _look(path: str) -> None:
    with suppress(FileNotFoundError):
        os.stat(path)


def _acknowledge(folder: Path, word: str) -> None:
    fd = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{word}\n".encode())
    os.close(fd)


def _apply(folder: Path, batch: Batch) -> None:
    with open_store(folder) as store:
        store.apply(FIRST)
        _acknowledge(folder, "first")
        _look(BEGIN)
        store.apply(batch)
        _acknowledge(folder, "second")
        _look(END)


def _apply_again(folder: Path) -> None:
    """Apply a batch that may fail, say how, and apply it again in the same process."""
    with open_store(folder) as store:
        store.apply(FIRST)
        _look(BEGIN)
        try:
            store.apply(SECOND)
        except HoldfastError as exc:
            between = store.list_variables("s1")["head"]
            _say(exc, between=between)
            if between == 1:
                store.apply(SECOND)
        _acknowledge(folder, "second")
        _look(END)


def _create(folder: Path) -> None:
    _look(BEGIN)
    with PodClient(home=folder / "home") as pod:
        _acknowledge(folder, "open")
        pod.create(Person(firstName="Ada", id="ada"))
        _acknowledge(folder, "ada")
    _look(END)


def _back_up(folder: Path) -> None:
    _look(BEGIN)
    back_up(folder / "pod.db", KEY, folder / "backup")
    _acknowledge(folder, "backup")
    _look(END)


def _restore(folder: Path) -> None:
    _look(BEGIN)
    restore(folder / "backup", OWNER, owners_pod(folder))
    _acknowledge(folder, "restored")
    _look(END)


def _migrate(folder: Path) -> None:
    steps: dict[int, Traversable] = {int(path.name[:4]): path for path in sorted((folder / "steps").iterdir())}
    _look(BEGIN)
    open_store(folder, steps=steps).close()
    _look(END)


def _write_until_stopped(folder: Path, name: str) -> None:
    with SqliteStore(folder / "pod.db", KEY) as store:
        _write_pairs(store, folder, name)


def _write_pairs(store: Store, folder: Path, name: str) -> None:
    """Create items and count them until the file ``stop`` is there; note each batch after it was acknowledged."""
    fd = os.open(folder / f"{name}.ids", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
    number = 0
    while not (folder / "stop").exists():
        id_ = f"{name}-{number}"
        store.apply(
            Batch((CreateItem(id_, "Dog"), IncrementVariable("s2", "count"), IncrementVariable("s2", "twice", 2)))
        )
        os.write(fd, f"{id_}\n".encode())
        number += 1
    os.close(fd)


def _read_until_stopped(folder: Path, store: Store | None = None) -> None:
    """Read until the file ``stop`` is there; fail if a read shows half a batch, or less than an earlier one."""
    store = store or SqliteStore(folder / "pod.db", KEY)
    last = 0
    while not (folder / "stop").exists():
        found = store.list_variables("s2")
        count = found.get("count", 0)
        assert isinstance(count, int), found
        assert found.get("twice", 0) == 2 * count, found
        assert count >= last, (last, found)
        last = count


def _fork_while_threads_work(folder: Path, name: str) -> None:
    """Write and read in threads, fork in their middle, and let the children write too, until ``stop`` is there."""
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as exc:
                failures.append(exc)
                raise

        return run

    with SqliteStore(folder / "pod.db", KEY) as store:
        works: list[Callable[[], None]] = [
            lambda: _write_pairs(store, folder, f"{name}-thread1"),
            lambda: _write_pairs(store, folder, f"{name}-thread2"),
            lambda: _read_until_stopped(folder, store),
        ]
        threads = [threading.Thread(target=guarded(work)) for work in works]
        for thread in threads:
            thread.start()
        while not all((folder / f"{name}-thread{number}.ids").exists() for number in (1, 2)):
            store.list_variables("s2")
        children: list[int] = []
        for number in range(3):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    _write_pairs(store, folder, f"{name}-child{number}")
                    store.close()
                    status = 0
                finally:
                    if status:
                        traceback.print_exc()
                    os._exit(status)  # nothing of the test's own process may end twice
            children.append(pid)
        for thread in threads:
            thread.join()
        failed = [pid for pid in children if os.waitpid(pid, 0)[1] != 0]
    assert not failures, failures
    assert not failed, failed


_WORDS: dict[str, Callable[[Path], None]] = {
    "apply": lambda folder: _apply(folder, SECOND),
    "apply_again": _apply_again,
    "checkpoint": lambda folder: _apply(folder, LARGE),
    "create": _create,
    "back_up": _back_up,
    "restore": _restore,
    "migrate": _migrate,
}


def _say(exc: HoldfastError, **more: object) -> None:
    print(json.dumps({"kind": type(exc).__name__, "text": str(exc), **exc.facts, **more}), flush=True)  # noqa: T201 -- this is a program


def main() -> None:
    """Do what the arguments say; print an error as JSON."""
    word, folder, *name = sys.argv[1:]
    try:
        match word:
            case "write":
                _write_until_stopped(Path(folder), *name)
            case "read":
                _read_until_stopped(Path(folder))
            case "fork":
                _fork_while_threads_work(Path(folder), *name)
            case _:
                _WORDS[word](Path(folder))
    except HoldfastError as exc:
        _say(exc)
        sys.exit(exc.exit_code)
