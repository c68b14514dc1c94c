"""What is left of variables when programs that set them are killed, the power goes, or the disk fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from holdfast.disk import Disk
from holdfast.errors import HoldfastError, UnavailableError
from holdfast.state import State
from tests.components.mounts import read_only, tmpfs
from tests.components.strace import MARKERS, Call, sweep

PYTHON = [sys.executable, "-S", "-c"]
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__, "../../../src").resolve())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where variables are kept; it does not exist yet."""
    return tmp_path / "state"


def run(program: str, *arguments: object, expected: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    done = subprocess.run(
        [*PYTHON, program, *map(str, arguments)], env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert done.returncode == expected, done.stderr
    return done


# -- killed at each system call --

SAVING = (
    MARKERS
    + """
import ctypes, sys
from holdfast.state import State

what, folder = sys.argv[1:]
state = State(folder, save_delay=0)
begin()
if what == "set":
    state.a |= {"x": "new", "y": "new"}
elif what == "transaction":
    with state.transaction():
        state.a |= {"x": "new", "y": "new"}
        state.b |= {"x": "new", "y": "new"}
elif what == "mend":
    state.a.load()
elif what == "delete":
    state.delete("a")
end()
"""
)


def prepare(folder: Path, what: str) -> None:
    """Put back what a program may have changed."""
    shutil.rmtree(folder, ignore_errors=True)
    state = State(folder, save_delay=0)
    for generation in ("older", "old"):
        with state.transaction():
            state.a |= {"x": generation, "y": generation}
            state.b |= {"x": generation, "y": generation}
    if what == "mend":
        (folder / "a.json").write_bytes(b'{"x"')


OUTCOMES = {
    "set": {("new", "old"), ("old", "old")},
    "transaction": {("new", "new"), ("old", "old")},
    "mend": {("older", "old")},
    "delete": {(None, "old"), ("old", "old")},
}


@pytest.mark.parametrize("what, sample", [("set", 40), ("transaction", 40), ("mend", 15), ("delete", 15)])
def test_killed_at_any_call_variables_are_old_or_new_together(
    folder: Path, what: str, sample: int, is_full: bool
) -> None:
    """For whoever reads next, without a write, and for whoever writes next; in all namespaces of a transaction."""
    seen: set[tuple[object, object]] = set()

    def check(call: Call) -> None:
        reader = State(folder)
        found = [dict(reader.a), dict(reader.b)]
        assert all(each.get("x") == each.get("y") for each in found), call
        outcome = (found[0].get("x"), found[1].get("x"))
        seen.add(outcome)
        assert outcome in OUTCOMES[what], call
        writer = State(folder, save_delay=0)
        writer.other.z = 1
        assert [dict(writer.a), dict(writer.b)] == found, call
        left = {name for name in os.listdir(folder) if name.startswith((".tmp-", ".transaction"))}
        assert left == set(), call

    sweep(
        [*PYTHON, SAVING, what, str(folder)],
        env=ENVIRONMENT,
        prepare=lambda: prepare(folder, what),
        check=check,
        sample=None if is_full else sample,
    )
    assert seen == OUTCOMES[what]


# -- the power goes --


class Recording(Disk):
    """Remembers what a power cut would leave: names as of the last flush of the folder, whole files if flushed.

    A name that was not flushed may be there or not; a file that was not flushed is taken for empty.
    """

    def __init__(self) -> None:
        self.effects: list[tuple[str, ...]] = []
        self.contents: dict[int, bytes] = {}

    def _flush(self, fd: int) -> None:
        found = os.fstat(fd)
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            self.effects.append(("flush folder",))
        else:
            with open(f"/proc/self/fd/{fd}", "rb") as file:
                self.contents[found.st_ino] = file.read()
        super()._flush(fd)

    def _inode(self, path: Path) -> str:
        return str(os.lstat(path).st_ino)

    def _link(self, source: Path, target: Path) -> None:
        self.effects.append(("name", target.name, self._inode(source)))
        super()._link(source, target)

    def _rename(self, source: Path, target: Path) -> None:
        self.effects.append(("rename", source.name, target.name, self._inode(source)))
        super()._rename(source, target)

    def _unlink(self, path: Path) -> None:
        self.effects.append(("unlink", path.name))
        super()._unlink(path)


def names_after(effects: list[tuple[str, ...]], before: dict[str, str]) -> dict[str, str]:
    """Return which file each name stands for after some changes of a folder."""
    names = dict(before)
    for effect in effects:
        match effect:
            case ("name", name, inode):
                names[name] = inode
            case ("rename", source, name, inode):
                names.pop(source, None)
                names[name] = inode
            case ("unlink", name):
                names.pop(name, None)
            case _:
                pass
    return names


def change(state: State, what: str) -> None:
    """Do what `SAVING` does, which prints nothing."""
    if what == "transaction":
        with state.transaction():
            state.a |= {"x": "new", "y": "new"}
            state.b |= {"x": "new", "y": "new"}
    elif what == "set":
        state.a |= {"x": "new", "y": "new"}
    elif what == "mend":
        state.a.load()
    else:
        state.delete("a")


@pytest.mark.parametrize("what", ["set", "transaction", "mend", "delete"])
def test_after_a_power_cut_at_any_moment_variables_are_old_or_new_together(
    folder: Path, tmp_path: Path, what: str
) -> None:
    """Whatever part of the changes of names since the last flush had reached the disk, in their order."""
    prepare(folder, what)
    before = {name: str(os.lstat(folder / name).st_ino) for name in os.listdir(folder)}
    contents = {int(inode): (folder / name).read_bytes() for name, inode in before.items()}
    disk = Recording()
    state = State(folder, save_delay=0, disk=disk)
    keep = [os.open(folder / name, os.O_RDONLY) for name in before]  # so that no inode number is used twice
    change(state, what)
    for fd in keep:
        os.close(fd)
    contents |= disk.contents
    seen: set[tuple[object, object]] = set()
    for cut in range(len(disk.effects) + 1):
        place = tmp_path / f"cut{cut}"
        place.mkdir()
        for name, inode in names_after(disk.effects[:cut], before).items():
            (place / name).write_bytes(contents.get(int(inode), b""))
        after = State(place)
        assert (after.a.x, after.b.x) == (after.a.y, after.b.y)
        seen.add((after.a.x, after.b.x))
    assert seen == OUTCOMES[what]
    assert disk.effects[-1] == ("flush folder",)


# -- the disk fails --


class Failing(Disk):
    """Fails one call, or all from one on, of those that change something."""

    def __init__(self, errno: int, first: int, last: int) -> None:
        self.errno, self.first, self.last, self.number = errno, first, last, 0

    def _step(self) -> None:
        self.number += 1
        if self.first <= self.number <= self.last:
            raise OSError(self.errno, os.strerror(self.errno))

    def _write(self, fd: int, data: memoryview) -> int:
        self._step()
        return super()._write(fd, data)

    def _flush(self, fd: int) -> None:
        self._step()
        super()._flush(fd)

    def _link(self, source: Path, target: Path) -> None:
        self._step()
        super()._link(source, target)

    def _rename(self, source: Path, target: Path) -> None:
        self._step()
        super()._rename(source, target)


@pytest.mark.parametrize("errno", [5, 28, 18])
@pytest.mark.parametrize("is_lasting", [False, True])
@pytest.mark.parametrize("first", range(1, 19))
def test_a_fault_at_any_call_of_a_transaction_leaves_old_or_new(
    folder: Path, errno: int, first: int, is_lasting: bool
) -> None:
    """An error means old, success means new; EIO, ENOSPC and EXDEV, once or from then on."""
    prepare(folder, "transaction")
    state = State(folder, save_delay=0, disk=Failing(errno, first, 1_000 if is_lasting else first))
    try:
        with state.transaction():
            state.a |= {"x": "new", "y": "new"}
            state.b |= {"x": "new", "y": "new"}
    except HoldfastError:
        expected = "old"
    else:
        expected = "new"
    for reader in (state, State(folder)):
        for namespace in (reader.a, reader.b):
            assert dict(namespace) == {"x": expected, "y": expected}
    writer = State(folder, save_delay=0)
    writer.a.z = 1
    assert (writer.a.x, writer.b.y) == (expected, expected)
    assert not (folder / ".transaction.json").exists()


@pytest.mark.parametrize("first", range(1, 7))
def test_a_set_that_failed_is_not_believed_to_be_stored(folder: Path, first: int) -> None:
    """Also where the file has its new name and the folder could not be flushed: the next try writes again."""
    prepare(folder, "set")
    disk = Failing(5, first, first)
    state = State(folder, save_delay=0, disk=disk)
    with pytest.raises(HoldfastError):
        state.a.x = "new"
    number = disk.number
    state.a.x = "new"
    assert disk.number - number == 6
    assert State(folder).a.x == "new"


def test_a_full_disk_keeps_what_is_pending_and_what_was_stored(folder: Path) -> None:
    """It is stored once there is room."""
    with tmpfs(folder, size_bytes=65_536):
        state = State(folder, save_delay=None)
        state.a.x = "old"
        state.save_all()
        (folder / "ballast").write_bytes(b"0" * 50_000)
        state.a.x = "new" * 5_000
        with pytest.raises(UnavailableError, match="the disk is full"):
            state.save_all()
        assert State(folder).a.x == "old"
        assert state.a.x == "new" * 5_000
        (folder / "ballast").unlink()
        state.save_all()
        assert State(folder).a.x == "new" * 5_000


def test_a_read_only_folder_is_read(folder: Path) -> None:
    """Writing is unavailable, and says why."""
    with tmpfs(folder, size_bytes=65_536):
        State(folder, save_delay=0).a.x = 1
        with read_only(folder):
            state = State(folder, save_delay=0)
            assert state.a.x == 1
            assert list(state) == ["a"]
            with pytest.raises(UnavailableError, match="the file system is read-only"):
                state.a.x = 2
            assert state.a.x == 1


# -- several processes --

COUNTING = """
import sys
from holdfast.state import State
what, folder, me = sys.argv[1:]
state = State(folder, save_delay=0)
for number in range(100):
    if what == "incr":
        state.incr("tool", "n")
    else:
        setattr(state.tool, f"v{me}_{number}", number)
"""


def run_four(what: str, folder: Path) -> None:
    """Run four programs at once, to their end."""
    running = [
        subprocess.Popen([*PYTHON, COUNTING, what, str(folder), str(me)], env=ENVIRONMENT, stderr=subprocess.PIPE)
        for me in range(4)
    ]
    for each in running:
        _, errors = each.communicate(timeout=100)
        assert (each.returncode, errors) == (0, b"")


def test_four_processes_that_count_to_a_hundred_make_four_hundred(folder: Path) -> None:
    """None is lost."""
    run_four("incr", folder)
    assert dict(State(folder).tool) == {"n": 400}


def test_four_processes_that_set_a_hundred_variables_each_leave_all(folder: Path) -> None:
    """Though each rewrites the whole file."""
    run_four("set", folder)
    assert dict(State(folder).tool) == {f"v{me}_{number}": number for me in range(4) for number in range(100)}


ADDING = """
import sys
from holdfast.state import State
state = State(sys.argv[1], save_delay=0.001)
other = State(sys.argv[1], save_delay=0)
for number in range(100):
    other.incr("tool", "n")
    setattr(state.tool, f"v{sys.argv[2]}_{number}", number)
"""


def test_programs_that_save_behind_and_add_at_once_lose_nothing(folder: Path) -> None:
    """Killed by nobody: what one has pending is merged with what all have stored, at its end at the latest."""
    running = [subprocess.Popen([*PYTHON, ADDING, str(folder), str(me)], env=ENVIRONMENT) for me in range(2)]
    assert [each.wait(100) for each in running] == [0, 0]
    expected = {f"v{me}_{number}": number for me in range(2) for number in range(100)}
    assert dict(State(folder).tool) == {"n": 200, **expected}


READING = """
import sys
from holdfast.state import State
state = State(sys.argv[1], save_delay=None)
count = 0
print("ready", flush=True)
while not state.control.stop:
    state.pair.load()
    assert state.pair.x == state.pair.y, dict(state.pair)
    state.control.load()
    count += 1
print(count)
"""


def test_no_reader_sees_half_of_what_a_writer_wrote(folder: Path, is_full: bool) -> None:
    """Three readers and a writer; nobody takes a file that is being replaced for a damaged one."""
    state = State(folder, save_delay=0)
    state.pair |= {"x": 0, "y": 0}
    readers = [
        subprocess.Popen(
            [*PYTHON, READING, str(folder)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for each in readers:
        assert each.stdout is not None
        assert each.stdout.readline() == b"ready\n"
    until, number = time.monotonic() + (10 if is_full else 3), 0
    while time.monotonic() < until:
        number += 1
        state.pair |= {"x": number, "y": number}
    state.control.stop = True
    for each in readers:
        counted, errors = each.communicate(timeout=60)
        assert (each.returncode, errors) == (0, b"")
        assert int(counted) > 0


# -- how a process ends --

ENDING = """
import os, signal, sys, threading, time
from holdfast.state import State
how, folder = sys.argv[1:]
state = State(folder, save_delay=None)
state.tool.x = 1
if how == "exception":
    raise RuntimeError("as if")
if how == "exit":
    sys.exit(3)
if how == "terminated":
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
if how == "terminated in a transaction":
    with state.transaction():
        state.tool.y = 2
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
if how == "terminated in a transaction beside another":
    other = State(folder, save_delay=None)
    other.more.y = 2
    with state.transaction():
        state.tool.y = 2
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
if how == "terminated after asyncio":
    import asyncio
    async def handle():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)  # this makes it the default again
    asyncio.run(handle())
    other = State(folder, save_delay=None)
    other.tool.x = 1
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
if how == "terminated while it saves":
    from holdfast.disk import Disk
    class Terminating(Disk):
        def _rename(self, source, target):
            os.kill(os.getpid(), signal.SIGTERM)
            super()._rename(source, target)
    other = State(folder, save_delay=None, disk=Terminating())
    other.tool.y = 2
    other.save_all()
    time.sleep(60)
if how == "late":
    import atexit
    def set_late():
        State(folder).tool.y = 2
    # What is registered first comes last, and the package's own was registered with its import.
    import holdfast.state.ending as ending
    atexit.unregister(ending._save_at_exit)
    atexit.register(set_late)
    atexit.register(ending._save_at_exit)
"""


@pytest.mark.parametrize(
    "how, code, variables",
    [
        ("exception", 1, {"x": 1}),
        ("exit", 3, {"x": 1}),
        ("end", 0, {"x": 1}),
        ("late", 0, {"x": 1, "y": 2}),
        ("terminated", -signal.SIGTERM, {"x": 1}),
        ("terminated in a transaction", -signal.SIGTERM, {"x": 1}),
        ("terminated in a transaction beside another", -signal.SIGTERM, {"x": 1}),
        ("terminated after asyncio", -signal.SIGTERM, {"x": 1}),
        ("terminated while it saves", -signal.SIGTERM, {"x": 1, "y": 2}),
    ],
)
def test_what_is_pending_is_stored_however_a_process_ends(
    folder: Path, how: str, code: int, variables: dict[str, object]
) -> None:
    """By exception, by `sys.exit`, at its end, and by SIGTERM, which still ends it as it would have."""
    run(ENDING, how, folder, expected=code)
    assert dict(State(folder).tool) == variables
    assert State(folder).more.y == (2 if how.endswith("another") else None)


THREADED = """
import os, signal, sys, threading, time
def work():
    from holdfast.state import State
    state = State(sys.argv[1], save_delay=float(sys.argv[2]) if sys.argv[2] != "None" else None)
    state.tool.x = 1
    state.tool |= {"y": 2, "z": 3}
    del state.tool.z
thread = threading.Thread(target=work)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.parametrize("save_delay", [1.0, None])
def test_a_program_that_uses_variables_in_a_thread_alone_loses_nothing_by_sigterm(
    folder: Path, save_delay: float | None
) -> None:
    """Nobody can catch it there, so nothing waits."""
    run(THREADED, folder, save_delay, expected=-signal.SIGTERM)
    assert dict(State(folder).tool) == {"x": 1, "y": 2}


def test_a_thread_need_not_wait_for_the_disk_where_the_main_thread_has_a_state(folder: Path) -> None:
    """As here: SIGTERM is caught, so what the thread sets may wait."""
    state = State(folder, save_delay=600)
    thread = threading.Thread(target=lambda: setattr(State(folder, save_delay=600).tool, "x", 1))
    thread.start()
    thread.join()
    assert not folder.exists()
    assert state.tool.x is None


TERMINATED = """
import signal, sys
from holdfast.disk import Disk
from holdfast.state import State, files
from holdfast.state.ending import ending
files.WAIT_S = 1
class Held(Disk):
    has_come = False
    def _try_lock(self, fd, *, shared):
        if not shared and not self.has_come:
            self.has_come = True
            signal.raise_signal(signal.SIGTERM)
        return (shared or ending.is_over) and super()._try_lock(fd, shared=shared)
state = State(sys.argv[1], disk=Held())
state.tool.x = 1
state.incr("tool", "n")
"""


def test_sigterm_ends_the_waiting_for_another_process(folder: Path) -> None:
    """And the process, which saves first: as soon as the other lets it."""
    run(TERMINATED, folder, expected=-signal.SIGTERM)
    assert dict(State(folder).tool) == {"x": 1}


class Acquiring:
    """A lock of threads; Ctrl-C comes when it has been taken."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def acquire(self, timeout: float) -> bool:
        """Take it."""
        self.lock.acquire(timeout=timeout)
        signal.raise_signal(signal.SIGINT)
        return True

    def release(self) -> None:
        """Give it back."""
        self.lock.release()


class Locking(Disk):
    """Ctrl-C comes when the folder has been locked."""

    def _try_lock(self, fd: int, *, shared: bool) -> bool:
        if not shared:
            signal.raise_signal(signal.SIGINT)
        return super()._try_lock(fd, shared=shared)


@pytest.mark.parametrize("what", ["thread", "process"])
def test_ctrl_c_at_the_moment_a_folder_is_taken_leaves_it_to_the_others(
    folder: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever catches it lives on, and every thread and process can write."""
    monkeypatch.setattr("holdfast.state.files.WAIT_S", 0.5)
    state = State(folder, save_delay=0, disk=Locking() if what == "process" else Disk())
    writing = state.__files__._writing
    if what == "thread":
        state.__files__._writing = Acquiring()  # type: ignore[assignment]
        writing = state.__files__._writing.lock
    with pytest.raises(KeyboardInterrupt), state.transaction():
        pass
    State(folder, save_delay=0).tool.x = 1
    is_free: list[bool] = []
    thread = threading.Thread(target=lambda: is_free.append(writing.acquire(timeout=0)))
    thread.start()
    thread.join()
    assert is_free == [True]


WAITING = """
import fcntl, os, signal, sys, threading
from holdfast.state import State, files
files.WAIT_S = 3_600
os.mkdir(sys.argv[1])
file = open(sys.argv[1] + "/.lock", "w")
fcntl.flock(file, fcntl.LOCK_EX)
state = State(sys.argv[1], save_delay=0)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    state.tool.x = 1
except KeyboardInterrupt:
    print("stopped")
file.close()
state.tool.y = 2
"""


def test_ctrl_c_ends_the_waiting_for_another_process(folder: Path) -> None:
    """However long that would be; and what comes then finds nothing half done."""
    assert run(WAITING, folder).stdout == "stopped\n"
    assert dict(State(folder).tool) == {"y": 2}


HANDLING = """
import os, signal, sys
from holdfast.state import State
def handle(number, frame):
    sys.exit(5)
signal.signal(signal.SIGTERM, handle)
state = State(sys.argv[1], save_delay=None)
state.tool.x = 1
assert signal.getsignal(signal.SIGTERM) is handle
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_handler_of_the_applications_own_is_left_alone(folder: Path) -> None:
    """It ends the process in its way, and what is pending is stored."""
    run(HANDLING, folder, expected=5)
    assert State(folder).tool.x == 1


KILLED = """
import os, sys, time
from holdfast.state import State
state = State(sys.argv[1], save_delay=0.05)
state.tool.early = 1
while not os.path.exists(sys.argv[1] + "/tool.json"):
    time.sleep(0.001)
state.save_all()
other = State(sys.argv[1], save_delay=600)
other.tool.late = 1
os._exit(9)
"""


def test_a_process_that_just_stops_loses_no_more_than_the_delay(folder: Path) -> None:
    """``os._exit`` and SIGKILL run nothing: what was set longer ago is there, the rest is not."""
    run(KILLED, folder, expected=9)
    assert dict(State(folder).tool) == {"early": 1}


FORKING = """
import os, sys
from holdfast.state import State
state = State(sys.argv[1], save_delay=None)
state.tool.x
state.tool.x = "parent's"
child = os.fork()
if not child:
    assert state.tool.x == "parent's"
    state.tool.y = "child's"
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
print(sorted(State(sys.argv[1]).tool))
state.tool.x = "parent's, later"
state.save_all()
"""


def test_a_child_forked_while_variables_are_pending_leaves_them_to_its_parent(folder: Path) -> None:
    """It stores what it set itself, and never an old value over a newer one."""
    assert run(FORKING, folder).stdout == "['y']\n"
    assert dict(State(folder).tool) == {"y": "child's", "x": "parent's, later"}


MULTIPROCESSING = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from holdfast.state import State

def work(folder):
    state = State(folder, save_delay=None)
    state.tool.child = 1

def inherit():
    state.tool.grandchild = 1

def work_and_fork(folder):
    global state
    state = State(folder, save_delay=None)
    state.tool.child = 1
    grandchild = multiprocessing.get_context("fork").Process(target=inherit)
    grandchild.start()
    grandchild.join()
    sys.exit(3)

if __name__ == "__main__":
    method, folder = sys.argv[1:]
    context = multiprocessing.get_context(method)
    state = State(folder, save_delay=None)
    state.tool.parent = 1
    child = context.Process(target=work_and_fork, args=(folder,))
    child.start()
    child.join()
    assert child.exitcode == 3
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        list(pool.map(work, [folder + "/pool"]))
    print(sorted(State(folder).tool), sorted(State(folder + "/pool").tool))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_saves_at_its_end(folder: Path, tmp_path: Path, method: str) -> None:
    """However it was started and by whom, in a pool as well, though it does not end as Python does."""
    (tmp_path / "program.py").write_text(MULTIPROCESSING)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), method, str(folder)],
        env=ENVIRONMENT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['child', 'grandchild'] ['child']\n"
    assert dict(State(folder).tool) == {"child": 1, "grandchild": 1, "parent": 1}


FORKING_IN_A_TRANSACTION = """
import os, sys
from holdfast.errors import ConflictError
from holdfast.state import State
state = State(sys.argv[1], save_delay=0)
child = None
try:
    with state.transaction():
        state.a.x, state.b.x = 1, 1
        child = os.fork()
except ConflictError as exc:
    print(exc, flush=True)
    os._exit(0 if child == 0 else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_forked_in_a_transaction_cannot_end_it(folder: Path) -> None:
    """The parent does."""
    assert run(FORKING_IN_A_TRANSACTION, folder).stdout.startswith("a transaction cannot end in a forked child")
    state = State(folder)
    assert (state.a.x, state.b.x) == (1, 1)


def test_a_transaction_of_another_process_is_waited_for(folder: Path) -> None:
    """A set comes before it or after it."""
    state, other = State(folder, save_delay=0), State(folder, save_delay=0)
    with state.transaction():
        state.a.x = 1
        thread = threading.Thread(target=lambda: setattr(other.a, "x", 2))
        thread.start()
        assert State(folder).a.x is None
    thread.join()
    assert json.loads((folder / "a.json").read_text()) == {"x": 2}
