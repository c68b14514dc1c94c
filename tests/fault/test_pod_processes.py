"""Many processes and threads with one Pod open: killed, forked, closed, and stopped in the middle of a batch."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast.disk import BusyError, Disk
from holdfast.errors import UnavailableError
from holdfast.sql import SqliteStore
from holdfast.store import MAX_OPERATIONS, Batch, CreateItem, Query, SetVariable
from holdfast.testing import FakeClock
from tests.components.pods import ENVIRONMENT, KEY, PYTHON, make_pod, open_store

WRITERS = 8
ROUNDS = 20
"""One process is killed and replaced in each, and each is a second of load."""


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """Return the folder of a Pod."""
    make_pod(tmp_path / "pod" / "pod.db")
    return tmp_path / "pod"


def start(word: str, folder: Path, *name: str) -> subprocess.Popen[str]:
    """Start a program of `tests.components.pods`."""
    return subprocess.Popen(
        [*PYTHON, word, str(folder), *name], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(program: str, folder: Path) -> list[object]:
    """Run Python code with a Pod, and return the JSON lines that it prints."""
    done = subprocess.run(
        [*PYTHON[:-1], PRELUDE + program, str(folder)], env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


PRELUDE = """
import json, os, sys, threading
from pathlib import Path
from holdfast.disk import Disk
from holdfast.errors import HoldfastError
from holdfast.sql import SqliteStore
from holdfast.store import Batch, SetVariable
from holdfast.testing import FakeClock
from tests.components.pods import KEY, open_store

folder = Path(sys.argv[1])

def put(store, name):
    store.apply(Batch((SetVariable("s2", name, True),)))

def say(value):
    os.write(1, (json.dumps(value) + "\\n").encode())

def child_of(work):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid

def ended(pid):
    return os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.timeout(300)
def test_of_processes_that_write_at_once_and_are_killed_no_acknowledged_write_is_lost(pod: Path) -> None:
    """Eight writers, readers, one that forks while its threads work, and a kill -9 each second: no error, none lost.

    Each write counts itself in the Pod, so that one that came twice, or not whole, would show.
    """
    readers = [start("read", pod) for _ in range(2)]
    others = [*readers, start("fork", pod, "forking")]
    writers = [start("write", pod, f"w{number}") for number in range(WRITERS)]
    killed = 0
    pause = threading.Event()
    for round_ in range(ROUNDS):
        pause.wait(1)
        victim = writers.pop(0)
        assert victim.poll() is None, victim.communicate()
        victim.kill()
        victim.communicate()
        killed += 1
        writers.append(start("write", pod, f"r{round_}"))
    (pod / "stop").touch()
    for program in (*writers, *others):
        assert program.communicate(timeout=60) == ("", ""), program.args
        assert program.returncode == 0, program.args

    said = [id_ for path in pod.glob("*.ids") for id_ in path.read_text().splitlines()]
    assert len(set(said)) == len(said)
    names = {id_.rpartition("-")[0] for id_ in said}
    assert {"forking-thread1", "forking-thread2", "forking-child0", "forking-child1", "forking-child2"} <= names
    with open_store(pod) as store:
        there = {found.item.id for found in store.search(Query(type="Dog"))}
        assert set(said) <= there
        assert len(there) - len(said) <= killed
        assert store.list_variables("s2") == {"count": len(there), "twice": 2 * len(there)}


def test_a_child_keeps_the_log_that_its_parent_leaves(pod: Path) -> None:
    """The parent closes the Pod, the child goes on writing, and all of it is there afterwards."""
    program = """
store = open_store(folder)
put(store, "parent")
store.list_variables("s2")
ready, go = os.pipe(), os.pipe()
def work():
    put(store, "child1")
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    put(store, "child2")
pid = child_of(work)
os.read(ready[0], 1)
store.close()
os.write(go[1], b"x")
say(ended(pid))
"""
    assert run(program, pod) == [True]
    with open_store(pod) as store:
        assert store.list_variables("s2") == {"parent": True, "child1": True, "child2": True}


@pytest.mark.parametrize("ending", ["store.close()", "os._exit(0)", "del globals()['store']"])
def test_a_child_that_ends_takes_no_lock_of_its_parent_along(pod: Path, ending: str) -> None:
    """Threads of the parent read all the time; nobody else can have the file alone, before and after."""
    program = f"""
store = open_store(folder)
put(store, "parent")
stop = threading.Event()
def reading():
    while not stop.is_set():
        store.list_variables("s2")
threads = [threading.Thread(target=reading) for _ in range(3)]
for thread in threads:
    thread.start()
def work():
    put(store, "child")
    {ending}
pids = [child_of(work) for _ in range(3)]
say([ended(pid) for pid in pids])
def alone():
    try:
        Disk().lock(folder / "pod.lock").release()
    except HoldfastError as exc:
        say(type(exc).__name__)
ended(child_of(alone))
stop.set()
for thread in threads:
    thread.join()
number = str((folder / "pod.db").stat().st_ino)
held = [line.split() for line in open("/proc/locks")]
say([fields[1:4] for fields in held if fields[4] == str(os.getpid()) and fields[5].endswith(":" + number)])
put(store, "again")
store.close()
"""
    assert run(program, pod) == [[True] * 3, "BusyError", [["POSIX", "ADVISORY", "READ"]]]
    with open_store(pod) as store:
        assert store.list_variables("s2") == {"parent": True, "child": True, "again": True}


def test_a_child_forked_by_a_thread_inside_the_pod_is_refused_the_pod_and_the_parent_is_not(pod: Path) -> None:
    """Here by the clock that a batch asks; the child could not know which of SQLite's books are true."""
    program = """
class Forking(FakeClock):
    def now_ms(self):
        global pid
        if pid is None:
            pid = child_of(work)
        return 1_000_000_000_000
pid = 0
def work():
    for use in (lambda: put(store, "child"), lambda: store.list_variables("s2"), lambda: open_store(folder)):
        try:
            use()
        except HoldfastError as exc:
            say([type(exc).__name__, "it was forked while a thread was in the middle of using a Pod" in str(exc)])
    os._exit(0)
store = SqliteStore(folder / "pod.db", KEY, clock=Forking())
put(store, "before")
pid = None
put(store, "parent")
say(ended(pid))
put(store, "after")
store.close()
"""
    assert run(program, pod) == [["UnavailableError", True]] * 3 + [True]
    with open_store(pod) as store:
        assert store.list_variables("s2") == {"before": True, "parent": True, "after": True}


def test_a_child_may_close_at_once_and_open_the_pod_anew(pod: Path) -> None:
    """Also one that inherited it closed."""
    program = """
store = open_store(folder)
def work():
    store.close()
    with open_store(folder) as own:
        put(own, "child")
say(ended(child_of(work)))
put(store, "parent")
store.close()
def late():
    try:
        store.list_variables("s2")
    except HoldfastError as exc:
        say(str(exc).endswith("was closed"))
ended(child_of(late))
"""
    assert run(program, pod) == [True, True]
    with open_store(pod) as store:
        assert store.list_variables("s2") == {"child": True, "parent": True}


def test_of_two_stores_of_one_process_closing_one_leaves_the_other_its_locks(pod: Path) -> None:
    """SQLite's locks belong to the process; nobody else gets the file alone, and nothing is lost."""
    first, second = open_store(pod), open_store(pod)
    try:
        first.apply(Batch((SetVariable("s2", "first", True),)))
        first.close()
        with pytest.raises(BusyError):
            Disk().lock(pod / "pod.lock")
        number = (pod / "pod.db").stat().st_ino
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        ours = [fields for fields in held if fields[4] == str(os.getpid()) and fields[5].endswith(f":{number}")]
        assert [fields[1:4] for fields in ours] == [["POSIX", "ADVISORY", "READ"]]
        other = "with open_store(folder) as store: put(store, 'other')"
        assert run(other, pod) == []
        second.apply(Batch((SetVariable("s2", "second", True),)))
        assert second.list_variables("s2") == {"first": True, "other": True, "second": True}
    finally:
        first.close()
        second.close()
    assert not (pod / "pod.db-wal").exists()


def test_reads_do_not_wait_for_a_batch_of_50_000_operations_and_see_none_of_it(pod: Path) -> None:
    """The batch is held in its middle until all reads, of this process and another, have been answered."""
    middle, go = threading.Event(), threading.Event()
    written = 0

    def hold(*_: object) -> None:
        nonlocal written
        written += 1
        if written == MAX_OPERATIONS // 2:
            middle.set()
            assert go.wait(60)

    with SqliteStore(pod / "pod.db", KEY, clock=FakeClock()) as store:
        writer = store._writer
        assert writer is not None
        writer.set_update_hook(hold)
        batch = Batch(tuple(CreateItem(f"i{number}", "Dog") for number in range(MAX_OPERATIONS)))
        writing = threading.Thread(target=store.apply, args=(batch,))
        writing.start()
        try:
            assert middle.wait(60)
            assert store.search(Query(type="Dog")) == []
            assert store.list_variables("s1") == {"keep": "me"}
            assert "Dog" in store.schema()
            assert store.find_items(["i0", "run1"]).keys() == {"run1"}
            say = (
                "with open_store(folder) as store: say(store.list_variables('s1')); say(len(store.find_items(['i0'])))"
            )
            assert run(say, pod) == [{"keep": "me"}, 0]
            assert writing.is_alive()
        finally:
            go.set()
            writing.join()
        assert len(store.search(Query(type="Dog"))) == 50_000


def test_a_writer_that_is_stopped_keeps_no_reader_waiting(pod: Path) -> None:
    """A process that stands still in the middle of its batch: reads answer, and its batch is whole once it goes on."""
    program = """
class Standing(FakeClock):
    def now_ms(self):
        if is_armed:
            say("inside")
            sys.stdin.readline()
        return 1_000_000_000_000
is_armed = False
with SqliteStore(folder / "pod.db", KEY, clock=Standing()) as store:
    is_armed = True
    put(store, "late")
"""
    writer = subprocess.Popen(
        [sys.executable, "-S", "-c", PRELUDE + program, str(pod)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    with writer, open_store(pod) as store:
        assert writer.stdout.readline() == '"inside"\n'
        assert store.list_variables("s2") == {}
        assert writer.poll() is None
        writer.communicate("\n")
        assert store.list_variables("s2") == {"late": True}
    assert writer.returncode == 0


class Reading(threading.Thread):
    """A thread that stands still in the middle of a read of a store until `go` is set."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__()
        self.store, self.inside, self.go = store, threading.Event(), threading.Event()
        self.found: object = None
        self.start()
        assert self.inside.wait(60)

    def run(self) -> None:
        """Read how many items there are."""
        with self.store._reading() as db:
            self.inside.set()
            assert self.go.wait(60)
            self.found = db.execute("SELECT count(*) FROM item").get


def test_closing_waits_for_a_read_of_another_thread_and_keeps_the_lock_for_it(pod: Path) -> None:
    """Else a restore could move the file under the read. New reads and writes are refused meanwhile."""
    store = open_store(pod)
    reading = Reading(store)
    closing = threading.Thread(target=store.close)
    closing.start()
    pause = threading.Event()
    while not store._is_closed:
        pause.wait(0.001)
    try:
        with pytest.raises(BusyError):
            Disk().lock(pod / "pod.lock")
        for use in (lambda: store.list_variables("s1"), lambda: store.apply(Batch((SetVariable("s2", "a", 1),)))):
            with pytest.raises(UnavailableError, match="was closed"):
                use()
        assert closing.is_alive()
    finally:
        reading.go.set()
        reading.join()
        closing.join()
    assert reading.found == 1
    Disk().lock(pod / "pod.lock").release()


def test_a_read_that_closing_does_not_wait_for_frees_the_lock_at_its_end(
    pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing is bounded; the file stays shut to those who want it alone for as long as it is read."""
    store = open_store(pod)
    monkeypatch.setattr("holdfast.sql.sqlite.WAIT_S", 0.01)
    reading = Reading(store)
    try:
        store.close()
        with pytest.raises(BusyError):
            Disk().lock(pod / "pod.lock")
    finally:
        reading.go.set()
        reading.join()
    assert reading.found == 1
    Disk().lock(pod / "pod.lock").release()


def test_a_reader_keeps_less_in_memory_than_the_writer(pod: Path) -> None:
    """There is one writer and there may be many readers; in KiB, negative as SQLite has it."""
    with open_store(pod) as store:
        assert store._writer is not None
        assert store._writer.pragma("cache_size") == -65_536
        with store._reading() as reader:
            assert reader.pragma("cache_size") == -8_192
