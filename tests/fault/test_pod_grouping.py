"""Writes in groups when the process is killed, forked or interrupted, or the disk is full; and how often they flush."""

import json
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.errors import UnavailableError
from holdfast.items import PropertyDefinition, TypeDefinition
from holdfast.sql.grouping import GroupedStore
from holdfast.store import Batch, CreateItem, DeclareTypes, Query, SetVariable, Written
from holdfast.values import Kind
from tests.components.mounts import tmpfs
from tests.components.pods import ENVIRONMENT, PYTHON, make_pod, open_store
from tests.components.strace import require_strace

WRITERS = 8
T0 = 1_000_000_000_000
"""What the clock of these Pods says."""

PRELUDE = """
import json, os, signal, sys, threading
from pathlib import Path
from holdfast.sql import SqliteStore
from holdfast.sql.grouping import GroupedStore
from holdfast.store import Batch, CreateItem, IncrementVariable, SetVariable
from holdfast.testing import FakeClock
from tests.components.pods import KEY, open_store

folder = Path(sys.argv[1])

def counted(id_):
    return Batch((CreateItem(id_, "Dog"), IncrementVariable("s2", "count")), None, id_)

def say(value):
    os.write(1, (json.dumps(value) + "\\n").encode())

def in_threads(count, work):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads
"""


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """Return the folder of a Pod."""
    make_pod(tmp_path / "pod" / "pod.db")
    return tmp_path / "pod"


def program(text: str, folder: Path) -> list[str]:
    """Return how to run Python code with a Pod."""
    return [*PYTHON[:-1], PRELUDE + text, str(folder)]


def run(text: str, folder: Path) -> list[object]:
    """Run Python code with a Pod, and return the JSON lines that it prints."""
    done = subprocess.run(program(text, folder), env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


WRITE = """
store = GroupedStore(open_store(folder))
def write(number):
    with open(folder / f"{number}.ids", "ab", buffering=0) as said:
        for each in range(int(sys.argv[2])):
            store.apply(counted(f"w{number}-{each}"))
            said.write(f"w{number}-{each}\\n".encode())
for thread in in_threads(8, write):
    thread.join()
store.close()
"""


def test_eight_writers_share_their_flushes(pod: Path, tmp_path: Path) -> None:
    """At most one for two acknowledged writes, counted by the kernel, opening and closing included."""
    require_strace()
    log = tmp_path / "log"
    count = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync,sync_file_range", "-o", str(log)]
    subprocess.run([*count, *program(WRITE, pod), "200"], env=ENVIRONMENT, check=True)
    flushes = re.findall(r"^\d+ +(?:fsync|fdatasync|sync_file_range)\(", log.read_text(), re.MULTILINE)
    assert 20 <= len(flushes) <= 800, len(flushes)
    with open_store(pod) as store:
        assert store.list_variables("s2") == {"count": 1_600}


@pytest.mark.timeout(600)
def test_killed_while_writers_are_answered_every_acknowledged_write_is_there(pod: Path, is_full: bool) -> None:
    """What was not acknowledged is there whole or not, and is done once when it comes again under its key."""
    pause = threading.Event()
    for round_ in range(1, 31 if is_full else 4):
        folder = pod.with_name(f"killed-{round_}")
        make_pod(folder / "pod.db")

        def said(folder: Path = folder) -> list[str]:
            return [id_ for path in folder.glob("*.ids") for id_ in path.read_text().split("\n")[:-1]]

        writers = subprocess.Popen([*program(WRITE, folder), "1000000"], env=ENVIRONMENT)
        with writers:
            while len(said()) < 61 * round_:
                assert writers.poll() is None
                pause.wait(0.001)
            writers.kill()
        promised = said()
        with open_store(folder) as store:
            there = {found.item.id for found in store.search(Query(type="Dog"))}
            assert set(promised) <= there
            assert len(there) - len(promised) <= WRITERS
            assert store.list_variables("s2") == {"count": len(there)}
        again = "store = open_store(folder)\nfor id_ in json.loads(sys.stdin.read()): store.apply(counted(id_))"
        next_ids = [f"w{number}-{sum(id_.startswith(f'w{number}-') for id_ in promised)}" for number in range(WRITERS)]
        asked = json.dumps([*promised, *next_ids])
        subprocess.run(program(again, folder), env=ENVIRONMENT, check=True, input=asked, text=True)
        with open_store(folder) as store:
            assert {found.item.id for found in store.search(Query(type="Dog"))} == {*promised, *next_ids}
            assert store.list_variables("s2") == {"count": len(promised) + WRITERS}


# -- a full disk ------------------------------------------------------------------------------------------------------


def type_of(name: str) -> DeclareTypes:
    """Return the declaration of a type."""
    return DeclareTypes((TypeDefinition(name, {"name": PropertyDefinition(Kind.TEXT)}),))


def test_a_disk_that_is_full_at_the_commit_leaves_nothing_of_any_batch(tmp_path: Path) -> None:
    """Nor a type, not even in this process; nor a key. All are done when there is room."""
    with tmpfs(tmp_path / "disk", size_bytes=4 * 2**20) as folder:
        make_pod(folder / "pod.db")
        with open_store(folder) as store:
            store.apply(Batch((SetVariable("s2", "before", value=True),)))
            with pytest.raises(OSError, match="No space left"):  # but all that there was is taken
                (folder / "ballast").write_bytes(bytes(4 * 2**20))
            batches = [
                Batch((type_of("Cat"), CreateItem("c", "Cat")), None, "k1"),
                Batch((CreateItem("c2", "Cat"),), None, "k2"),
                Batch((CreateItem("d", "Dog", {"name": "x" * 20_000}),), None, "k3"),
            ]
            with pytest.raises(UnavailableError, match="cannot grow: the disk is full"):
                store.apply_all(batches)
            assert store.find_items(["c", "c2", "d"]) == {}
            (folder / "ballast").unlink()
            with open_store(folder) as other:
                other.apply(Batch((type_of("Cow"),)))
            assert {"Cat", "Cow"} & store.schema().keys() == {"Cow"}
            assert store.apply_all(batches) == [
                (None, Written("c", 1, T0)),
                (Written("c2", 1, T0),),
                (Written("d", 1, T0),),
            ]


def test_nobody_is_told_of_a_success_that_a_full_disk_prevented(tmp_path: Path) -> None:
    """All writers hear of it; what each was told is so, and what failed is done later, under its key."""
    with tmpfs(tmp_path / "disk", size_bytes=4 * 2**20) as folder:
        make_pod(folder / "pod.db")
        (folder / "ballast").write_bytes(bytes(2**20))
        store = GroupedStore(open_store(folder))
        told: set[str] = set()
        failed: list[tuple[Batch, str]] = []

        def write(number: int) -> None:
            for each in range(1_000):
                ids = [f"w{number}-{each}-{end}" for end in "ab"]
                batch = Batch(tuple(CreateItem(id_, "Dog", {"name": "x" * 5_000}) for id_ in ids), None, ids[0])
                try:
                    store.apply(batch)
                except UnavailableError as exc:
                    failed.append((batch, str(exc)))
                    return
                told.update(ids)

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(write, range(WRITERS)))
        assert ["the disk is full" in text for _, text in failed] == [True] * WRITERS
        assert {found.item.id for found in store.search(Query(type="Dog"))} == told
        assert len(told) > 20
        (folder / "ballast").unlink()
        for batch, _ in failed:
            assert store.apply(batch) == store.apply(batch)
        assert len(store.search(Query(type="Dog"))) == len(told) + 2 * WRITERS
        store.close()


# -- forked and interrupted -------------------------------------------------------------------------------------------


def test_a_child_writes_by_itself_and_nothing_of_what_its_parent_has_waiting(pod: Path) -> None:
    """The fork falls into a write of the parent that others wait behind; each is done once, by who was asked."""
    text = """
class Gated(SqliteStore):
    def apply(self, batch):
        inside.set()
        gate.wait()
        return super().apply(batch)
    def apply_all(self, batches):
        inside.set()
        gate.wait()
        return super().apply_all(batches)
inside, gate = threading.Event(), threading.Event()
store = GroupedStore(Gated(folder / "pod.db", KEY, clock=FakeClock()))
threads = in_threads(3, lambda number: store.apply(counted(f"parent-{number}")))
inside.wait()
while len(store._queue) < 3:
    threading.Event().wait(0.001)
pid = os.fork()
if not pid:
    gate = threading.Event()
    gate.set()
    store.apply(counted("child"))
    say(sorted(found for found in store.find_items(["child", "parent-0", "parent-1", "parent-2"])))
    store.close()
    os._exit(0)
say(os.waitpid(pid, 0)[1])
gate.set()
for thread in threads:
    thread.join()
say(len(store.find_items(["child", "parent-0", "parent-1", "parent-2"])))
say(store.list_variables("s2"))
store.close()
"""
    assert run(text, pod) == [["child"], 0, 4, {"count": 4}]


def test_a_storm_of_interrupts_leaves_each_batch_whole_or_not_done(pod: Path) -> None:
    """Whatever instruction a signal meets: other threads are not kept waiting, and the next write works."""
    text = """
signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
store = GroupedStore(open_store(folder))
stop, others = threading.Event(), [0, 0]
def write(number):
    while not stop.is_set():
        store.apply(counted(f"w{number}-{others[number]}"))
        others[number] += 1
threads = in_threads(2, write)
told, interrupts = 0, 0
for number in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001 * (number % 40 + 1))
        store.apply(counted(f"main-{number}"))
        told += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.getitimer(signal.ITIMER_REAL)  # what was under way arrives before this returns
    except KeyboardInterrupt:
        interrupts += 1
stop.set()
for thread in threads:
    thread.join()
there = len(store.find_items([f"main-{number}" for number in range(300)]))
say([interrupts > 0, there >= told, store.list_variables("s2")["count"] - sum(others) - there])
store.apply(counted("last"))
store.close()
"""
    assert run(text, pod) == [[True, True, 0]]
