"""What is left of a save when the process is killed at any of its system calls, or after it has captured."""

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.snapshots.reading import verify
from tests.components.strace import MARKERS, Call, sweep

PYTHON = [sys.executable, "-c"]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(str(Path(__file__, "../../..", part).resolve()) for part in ("src", ""))}

OBJECTS = '''
from pathlib import Path
from holdfast.disk import Disk
from holdfast.snapshots.saving import PersistentStateMixin, StateStore

class Tree:
    """Twelve chunks, of which a save changes one, and a small value."""
    def __init__(self):
        self.data, self.step = bytearray(12 * 65_536), 0
    def move(self):
        self.step += 1
        self.data[5 * 65_536] = self.step
    def get_state(self):
        return {"step": self.step, "data": self.data}
    def set_state(self, tree):
        self.step, self.data = tree["step"], tree["data"]

class Files(PersistentStateMixin):
    """A folder with a file that changes and one that does not."""
    step = 0
    def move(self):
        self.step += 1
    def save_state(self, path):
        path.mkdir()
        (path / "step").write_text(str(self.step))
        (path / "same").write_text("the same")
    def load_state(self, path):
        assert (path / "same").read_text() == "the same"
        self.step = int((path / "step").read_text())

class InOrder(Disk):
    """Flushes one after the other: calls are counted by thread. What is there after a kill is the same."""
    def _at_once(self, calls):
        for call in calls:
            call()

def store_of(folder, kind):
    objects = {"tree": Tree(), "files": Files()}
    store = StateStore(folder, "%Y%m%d%H%M%S%f.state", disk=InOrder())
    for name in objects if kind == "both" else [kind]:
        store.register(name, objects[name])
    return store, [objects[name] for name in (objects if kind == "both" else [kind])]
'''
names: dict[str, Any] = {}
exec(OBJECTS, names)

SAVING = (
    MARKERS
    + OBJECTS
    + """
import queue, socket, sys, threading
import holdfast.snapshots.saving as saving
folder, kind, how = sys.argv[1:]
store, objects = store_of(folder, kind)
handed = queue.SimpleQueue()

class Handed(threading.Thread):
    '''What is to be done in the background is done by the main thread: its calls are counted.'''
    def start(self):
        handed.put(self) if self.name.startswith("save ") else super().start()

def move():
    for each in objects:
        each.move()

if how not in ("first", "new"):
    store.load_latest()
if how in ("worker", "background"):  # so that no other thread or process has made as many calls of any name
    if how == "worker":
        saving.WORKER_BYTES = 1
        one, other = socket.socketpair()
        for _ in range(50):
            one.send(b"x"), other.recv(1), socket.send_fds(one, [b"x"], [])
            socket.recv_fds(other, 1, 0)
    for _ in range(3):
        move()
        store.save_state()
move()
if how == "background":
    threading.Thread, saves = Handed, []
    saver = threading.Thread(target=lambda: saves.append(store.save_state_async()))
    saver.start()
    background = handed.get()
    saver.join()
    begin()
    background.run()
    end()
    saves[0].result()
elif how == "captured":
    class Standing(Disk):
        def write(self, files, **options):
            print("captured", flush=True)
            sys.stdin.readline()
            super().write(files, **options)
    store._disk = Standing()
    store.save_state_async().result()
else:
    begin()
    path = store.save_state()
    end()
"""
)


def make_first(folder: Path, kind: str) -> None:
    """Put a folder with one snapshot, of step 1, there."""
    shutil.rmtree(folder, ignore_errors=True)
    store, objects = names["store_of"](folder, kind)
    for each in objects:
        each.move()
    store.save_state()


def steps_of(folder: Path, kind: str) -> list[int]:
    """Load every snapshot that can be seen, newest last, and return their steps; all objects of one have the same."""
    found: list[int] = []
    for path in sorted(folder.glob("[!.]*")):
        assert verify(path) == []
        store, objects = names["store_of"](folder, kind)
        store.load_state(path)
        (step,) = {each.step for each in objects}
        assert all(bytes(each.data[5 * 65_536 :][:1]) == bytes([step]) for each in objects if hasattr(each, "data"))
        found.append(step)
    return found


@pytest.mark.timeout(7200)  # for --full; a sample takes seconds
@pytest.mark.parametrize(
    "kind, how, sample",
    [
        ("both", "next", 12),
        ("tree", "first", 5),
        ("files", "next", 5),
        ("both", "new", 5),
        ("both", "background", 5),
        ("tree", "worker", 5),
    ],
)
def test_killed_at_any_call_of_a_save_all_that_is_seen_is_whole(
    tmp_path: Path, kind: str, how: str, sample: int, is_full: bool
) -> None:
    """Old snapshots as they were, and the new one or none; what was being built goes with the next store's first save.

    Also where even the folder is new, in the thread that writes in the background, and while a worker does.
    """
    template, folder, seen = tmp_path / "template", tmp_path / "some" / "states", set[int]()
    is_first = how in {"first", "new"}
    if not is_first:
        make_first(template, kind)
    old = [] if is_first else [1] if how == "next" else [1, 2, 3, 4]

    def prepare() -> None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        if how != "new":
            folder.mkdir(parents=True)
        if not is_first:
            subprocess.run(["cp", "-a", f"{template}/.", str(folder)], check=True)

    def check(call: Call) -> None:
        steps = steps_of(folder, kind)
        assert steps in ([*old], [*old, len(old) + 1]), call
        seen.add(len(steps))
        store, objects = names["store_of"](folder, kind)
        assert store.load_latest() == max(folder.glob("*.state"), default=None), call
        for each in objects:
            each.step = 9
            if hasattr(each, "data"):
                each.data[5 * 65_536] = 9
        store.save_state()
        assert steps_of(folder, kind) == [*steps, 9], call
        assert sorted(path.name for path in folder.glob(".*")) in ([".locks"], []), call

    sweep(
        [*PYTHON, SAVING, str(folder), kind, how],
        env=ENVIRONMENT,
        prepare=prepare,
        check=check,
        sample=None if is_full else sample,
    )
    assert seen == {len(old), len(old) + 1}


def test_killed_after_the_capture_nothing_is_seen_and_the_next_save_removes_the_rest(tmp_path: Path) -> None:
    """The process that had the state is gone, and with it the save in the background."""
    make_first(tmp_path / "states", "both")
    process = subprocess.Popen(
        [*PYTHON, SAVING, str(tmp_path / "states"), "both", "captured"],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"captured\n"
        assert len(list((tmp_path / "states").glob(".tmp-*"))) == 1
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert steps_of(tmp_path / "states", "both") == [1]
    store, _ = names["store_of"](tmp_path / "states", "both")
    store.load_latest()
    store.save_state()
    assert list((tmp_path / "states").glob(".tmp-*")) == []
    assert steps_of(tmp_path / "states", "both") == [1, 1]


WORKING = """
import sys, os
import holdfast.snapshots.saving as saving
saving.WORKER_BYTES = 1
class Tree:
    def get_state(self):
        return {"data": bytearray(64 * 65_536)}
    def set_state(self, tree):
        pass
store = saving.StateStore(sys.argv[1])
store.register("tree", Tree())
store.save_state()
worker = store._worker.pid
child = os.fork() if "forked" in sys.argv else None
if child != 0:
    print(worker, flush=True)
    if "closed" in sys.argv:
        store.close()
        print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", [["killed"], ["killed", "forked"], ["closed", "forked"]], ids=" ".join)
def test_the_worker_ends_with_the_process_or_the_store_that_started_it(tmp_path: Path, how: list[str]) -> None:
    """However that ends, and also if a child that was forked from it lives on with all that was open."""
    process = subprocess.Popen(
        [*PYTHON, WORKING, str(tmp_path), *how], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        worker = os.pidfd_open(int(process.stdout.readline()))
        if "killed" in how:
            process.kill()
        else:
            assert process.stdout.readline() == b"closed\n"
        # It is nobody's child by now; its descriptor becomes readable when it has ended.
        assert select.select([worker], [], [], 60)[0] == [worker]
        os.close(worker)


WRITING = (
    OBJECTS
    + """
import os, signal, sys
import holdfast.snapshots.saving as saving
saving.WORKER_BYTES = 1
store, (tree,) = store_of(sys.argv[1], "tree")
tree.move()
store.save_state()
os.kill(store._worker.pid, signal.SIGSTOP)
print(store._worker.pid, flush=True)
tree.move()
store.save_state()
"""
)


def test_killed_while_its_worker_writes_nothing_is_seen_and_the_next_save_removes_the_rest(tmp_path: Path) -> None:
    """Also if the worker goes on when it is dead: it knows no name to write to, and ends."""
    process = subprocess.Popen([*PYTHON, WRITING, str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        worker = os.pidfd_open(pid)
        while not list(tmp_path.glob(".tmp-*/.snap/packs/*")):
            assert process.poll() is None
        process.kill()
    os.kill(pid, signal.SIGCONT)
    assert select.select([worker], [], [], 60)[0] == [worker]
    os.close(worker)
    assert steps_of(tmp_path, "tree") == [1]
    store, (tree,) = names["store_of"](tmp_path, "tree")
    store.load_latest()
    tree.move()
    store.save_state()
    assert list(tmp_path.glob(".tmp-*")) == []
    assert steps_of(tmp_path, "tree") == [1, 2]


@pytest.mark.parametrize("size", [1, 12 * 2**20], ids=["small", "written beside the hashing"])
def test_what_is_in_flight_is_finished_when_the_program_ends(tmp_path: Path, size: int) -> None:
    """Also if nobody waits for it, and nobody closes the store."""
    program = (
        "import os, sys; from holdfast.snapshots.saving import StateStore\n"
        f"class Tree: get_state = lambda self: {{'data': os.urandom({size})}}; set_state = print\n"
        "store = StateStore(sys.argv[1]); store.register('tree', Tree()); store.save_state_async()"
    )
    done = subprocess.run(
        [*PYTHON, program, str(tmp_path)], env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = tmp_path.iterdir()
    assert verify(path) == []
