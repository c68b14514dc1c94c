"""Launched processes and containers: what they find, what they cannot do, and that nothing is ever left of them."""

import gc
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.disk import Disk, Lock
from holdfast.errors import HoldfastError, InvalidError, NotFoundError, UnavailableError
from holdfast.items import PluginRun
from holdfast.launchers import docker, process
from holdfast.launchers.docker import DockerLauncher
from holdfast.launchers.process import ProcessLauncher
from holdfast.pod import Pod
from holdfast.runs import LaunchSpec, Limits, Logs, Phase, Probe
from holdfast.testing.launching import PROGRAMS, make_spec, wait_until
from tests.components.docker import Engine, engine_of, missing_image
from tests.components.mounts import tmpfs
from tests.components.servers import OWNER, Served, serving

ROOT = Path(__file__).resolve().parents[2]


def containers(test: Any) -> Any:
    """Mark a test that needs the engine, which is one for all such tests; its packages may have to be fetched."""
    for mark in (pytest.mark.timeout(600), pytest.mark.xdist_group("containers"), pytest.mark.component("engine")):
        test = mark(test)
    return test


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[ProcessLauncher]:
    """A launcher of processes; what is left of them is ended with the test."""
    launcher = ProcessLauncher(tmp_path / "launched")
    yield launcher
    for each in launcher.list():
        launcher.delete(each.name)


def python(program: str, *arguments: str, **more: Any) -> LaunchSpec:
    """Return a spec of a Python program as a process."""
    return replace(make_spec(command=[sys.executable, "-c", program, *arguments]), **more)


def marked(launcher: ProcessLauncher, name: str) -> list[int]:
    """Return the processes that have a launch in their environment."""
    found: list[int] = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"HOLDFAST_LAUNCH={launcher._records.path(name)}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def said(launcher: ProcessLauncher | DockerLauncher, spec: LaunchSpec) -> Any:
    """Launch a program, and return the JSON that it wrote when it has ended."""
    name = launcher.launch(spec)
    wait_until(lambda: launcher.probe(name).phase is not Phase.RUNNING)
    text = launcher.logs(name).data.decode()
    assert launcher.probe(name) == Probe(Phase.GONE), text
    return json.loads(text)


def parent_of(launcher: ProcessLauncher, name: str) -> int:
    """Return the process that looks after a launch."""
    return int(json.loads((launcher._records.path(name) / "started.json").read_text())["parent"])


# -- what a process finds ---------------------------------------------------------------------------------------------

SHOW = """
import json, os, resource, signal, stat, sys
auth = os.environ.get("POD_AUTH_FILE", "")
print(json.dumps({
    "environ": dict(os.environ), "cwd": os.listdir(), "session": os.getsid(0) == os.getpid(), "nice": os.nice(0),
    "files": sorted(map(int, os.listdir("/proc/self/fd")))[:-1], "stdin": sys.stdin.read(),
    "mode": auth and oct(os.stat(auth).st_mode), "auth": auth and open(auth).read(),
    "blocked": [*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))],
    "ignored": [int(each) for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN],
    "limits": [resource.getrlimit(getattr(resource, "RLIMIT_" + each))[0] for each in ("AS", "NPROC", "FSIZE")],
}))
"""


def test_a_process_finds_its_run_in_its_environment_and_nothing_that_was_not_listed(
    launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What opens the Pod is in a file that only it can read; no descriptor, signal or terminal is left to it."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret of the server")
    monkeypatch.setenv("LANG", "C.UTF-8")
    for name in ("HOME", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "TMPDIR", "TZ", "USER"):
        monkeypatch.delenv(name, raising=False)
    spec = python(SHOW, environment={"EXTRA": "1", "POD_OWNER": "not this one"})
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        found = said(launcher, spec)
    finally:
        signal.signal(signal.SIGHUP, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    auth = launcher._records.path(spec.name) / "auth.json"
    assert found == {
        "environ": {
            "EXTRA": "1",
            "HOLDFAST_LAUNCH": str(launcher._records.path(spec.name)),
            "LANG": "C.UTF-8",
            "PATH": os.environ["PATH"],
            "POD_AUTH_FILE": str(auth),
            "POD_FULL_ADDRESS": "http://127.0.0.1:1",
            "POD_OWNER": "o" * 64,
            "POD_PLUGINRUN_ID": "r1",
            "POD_TARGET_ITEM": '{"id": "r1"}',
        },
        "auth": '{"type": "PluginAuth", "data": {"token": "hft1.secret"}}',
        "blocked": [],
        "cwd": [],
        "files": [0, 1, 2],
        "ignored": [signal.SIGPIPE, signal.SIGXFSZ],  # by Python, at its start
        "limits": [-1, found["limits"][1], -1],
        "mode": "0o100400",
        "nice": os.nice(0),
        "session": True,
        "stdin": "",
    }
    assert "hft1.secret" not in repr(spec)


def test_what_opens_the_pod_may_be_in_the_environment(tmp_path: Path) -> None:
    """For programs that look there; then no file has it."""
    launcher = ProcessLauncher(tmp_path / "launched", passed=(), is_auth_in_file=False, cwd=tmp_path)
    spec = python(SHOW)
    found = said(launcher, spec)
    assert found["environ"]["POD_AUTH_JSON"] == spec.auth
    assert "POD_AUTH_FILE" not in found["environ"]
    assert "PATH" not in found["environ"]
    assert found["cwd"] == ["launched"]
    files = [each for each in tmp_path.rglob("*") if each.is_file() and each.name != "output.log"]  # it is shown there
    assert not [each for each in files if b"hft1.secret" in each.read_bytes()]


def test_an_interpreter_in_a_place_of_its_own_finds_its_libraries(
    tmp_path: Path, launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launched one, and that of the program beside it, which has nothing else of this process's environment."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    name = launcher.launch(python(PROGRAMS["waits"]))
    beside = Path(f"/proc/{parent_of(launcher, name)}/environ").read_bytes().split(b"\0")
    assert [each.partition(b"=")[0] for each in beside] == [b"LD_LIBRARY_PATH", b"PYTHONPATH", b""]
    (main,) = marked(launcher, name)
    assert f"LD_LIBRARY_PATH={tmp_path}".encode() in Path(f"/proc/{main}/environ").read_bytes().split(b"\0")


@pytest.mark.parametrize(
    "limit, value",
    [
        *(("memory_bytes", each) for each in (0, -1, 2**70)),
        *(("processes", each) for each in (0, -1)),
        *(("cpus", each) for each in (0, -1, 1e-12, float("inf"), float("nan"))),
        *(("file_bytes", each) for each in (0, -1)),
        *(("nice", each) for each in (-1, 20, 2**40)),
    ],
)
def test_a_limit_that_would_be_none_is_refused(limit: str, value: float) -> None:
    """Engines and systems would take most of these for "as much as there is"."""
    with pytest.raises(InvalidError, match=f"{limit} cannot be limited to "):
        Limits(**{limit: value})  # type: ignore[arg-type]


def test_a_process_has_its_limits(launcher: ProcessLauncher) -> None:
    """Of memory, of processes, of a file; and it stands back for others as far as it was told."""
    limits = Limits(memory_bytes=2**32, processes=500, file_bytes=4096, nice=5)
    found = said(launcher, python(SHOW, limits=limits))
    assert found["limits"] == [2**32, 500, 4096]
    assert found["nice"] == min(19, os.nice(0) + 5)

    spec = replace(python("x = b'a' * 2**32", limits=limits), epoch=2)
    name = launcher.launch(spec)
    wait_until(lambda: launcher.probe(name).phase is not Phase.RUNNING)
    assert b"MemoryError" in launcher.logs(name).data


@pytest.mark.parametrize(
    "command, limits, kind, message",
    [
        (["no-such-program"], Limits(), NotFoundError, "'no-such-program' cannot be started: No such file"),
        (["/dev/null"], Limits(), InvalidError, "'/dev/null' cannot be started: Permission denied"),
        (["echo", "x" * 3_000_000], Limits(), InvalidError, "'echo' cannot be started: Argument list too long$"),
    ],
)
def test_what_cannot_be_started_is_an_error_that_says_why(
    launcher: ProcessLauncher, command: list[str], limits: Limits, kind: type[HoldfastError], message: str
) -> None:
    """Nothing runs then, and `probe` says the same."""
    spec = make_spec(command=command)
    with pytest.raises(kind, match=message) as caught:
        launcher.launch(replace(spec, limits=limits))
    assert launcher.probe(spec.name) == Probe(Phase.FAILED, str(caught.value))
    assert marked(launcher, spec.name) == []


def test_what_is_said_of_what_cannot_be_started_ends_where_it_ends() -> None:
    """Not every reason has a file that it is about."""
    answer = {"failed": {"errno": None, "reason": "not allowed to raise maximum limit", "where": None}}
    error = process._failure("hf-1", ["echo"], answer)
    assert str(error) == "'echo' cannot be started: not allowed to raise maximum limit"


@pytest.mark.parametrize("character", ["é", "€", "😀"])
def test_no_part_of_a_log_ends_within_a_character(launcher: ProcessLauncher, character: str) -> None:
    """Neither where a mebibyte is full nor where the process has come to; unless there is nothing else."""
    name = launcher.launch(python(PROGRAMS["ends"]))
    wait_until(lambda: launcher.probe(name).phase is not Phase.RUNNING)
    log, data = launcher._records.path(name) / "output.log", character.encode()
    for size in range(1, len(data)):
        log.write_bytes(b"ab" + data[:size])
        first = launcher.logs(name)
        assert first == Logs(b"ab", "2")
        assert launcher.logs(name, first.after) == Logs(data[:size], str(2 + size))
        log.write_bytes(b"ab" + data + b"c")
        assert launcher.logs(name, first.after) == Logs(data + b"c", str(3 + len(data)))
        log.write_bytes(b"x" * (2**20 - size) + data)
        assert launcher.logs(name) == Logs(b"x" * (2**20 - size), str(2**20 - size))
    log.write_bytes(b"ab\xa9\xff")  # no text at all
    assert launcher.logs(name) == Logs(b"ab\xa9\xff", "4")


def test_a_log_is_read_in_parts(launcher: ProcessLauncher) -> None:
    """Of a mebibyte at most, whatever bytes it has."""
    name = launcher.launch(python("import os\nfor _ in range(5): os.write(2, bytes(range(256)) * 2048)"))
    wait_until(lambda: launcher.probe(name).phase is not Phase.RUNNING)
    parts = [launcher.logs(name)]
    while parts[-1].data:
        parts.append(launcher.logs(name, parts[-1].after))
    assert [len(each.data) for each in parts] == [2**20, 2**20, 2**19, 0]
    assert b"".join(each.data for each in parts) == bytes(range(256)) * 10240


# -- nothing is left --------------------------------------------------------------------------------------------------

BREEDS = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready, told = os.pipe()
if os.fork() == 0:  # goes away from its parent, its session and its files
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        subprocess.Popen(["sleep", "1000"], start_new_session=True, env={} if sys.argv[1] == "bare" else None)
        os.write(told, b"1")
        os.closerange(0, 64)
        while True:
            signal.pause()
    os._exit(0)
os.wait()
os.read(ready, 1)
print("begun", flush=True)
while sys.argv[1] != "ends":
    signal.pause()
"""


@pytest.mark.parametrize("how", ["ends", "stops", "bare"])
def test_nothing_is_left_of_what_a_process_began(launcher: ProcessLauncher, how: str) -> None:
    """Neither when it ends nor when it is stopped: what went into a session of its own, or has no environment, too."""
    name = launcher.launch(python(BREEDS, how))
    wait_until(lambda: b"begun" in launcher.logs(name).data)
    below = descendants(parent_of(launcher, name)) if how != "ends" else []
    if how != "ends":
        assert len(below) == 3
        launcher.stop(name, 0.05)
    wait_until(lambda: launcher.probe(name).phase is not Phase.RUNNING)
    assert [each for each in below if Path(f"/proc/{each}").exists()] == []
    assert marked(launcher, name) == []


def descendants(pid: int) -> list[int]:
    """Return all processes below one."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def is_alive(pid: int) -> bool:
    """Return whether a process runs: one that has ended may be waited for still."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", ["waits", "bare"])
def test_when_what_looks_after_a_process_is_killed_the_process_dies_and_what_it_began_is_found(
    tmp_path: Path, launcher: ProcessLauncher, how: str
) -> None:
    """By the system for want of memory, say: `probe` sees it run, and `stop` leaves nothing, by whatever path.

    What has no environment is found by the log that it writes to.
    """
    name = launcher.launch(python(BREEDS, how))
    wait_until(lambda: b"begun" in launcher.logs(name).data)
    [main, *began] = sorted(descendants(parent_of(launcher, name)), key=lambda each: os.getsid(each) != each)
    os.kill(parent_of(launcher, name), signal.SIGKILL)
    wait_until(lambda: not is_alive(main))
    assert [is_alive(each) for each in began] == [True, True]
    assert launcher.probe(name) == Probe(Phase.RUNNING)
    (tmp_path / "link").symlink_to(tmp_path / "launched")
    ProcessLauncher(tmp_path / "link").stop(name, 60)
    assert [is_alive(each) for each in began] == [False, False]
    assert launcher.probe(name) == Probe(
        Phase.FAILED, "it ended without a word: it was killed, or the machine was restarted"
    )
    assert launcher.launch(python(BREEDS, how)) == name
    assert launcher.probe(name).phase is Phase.FAILED


def test_what_has_lost_its_folder_is_found_and_ended(launcher: ProcessLauncher) -> None:
    """Somebody took it away by hand: `probe` sees it run, and it goes when it is deleted."""
    name = launcher.launch(python(PROGRAMS["waits"]))
    beside, (main,) = parent_of(launcher, name), marked(launcher, name)
    shutil.rmtree(launcher._records.path(name))
    assert launcher.probe(name) == Probe(Phase.RUNNING)
    launcher.delete(name)
    assert (is_alive(beside), is_alive(main)) == (False, False)
    assert launcher.probe(name) == Probe(Phase.GONE)


def test_what_is_launched_while_it_is_deleted_goes_too(tmp_path: Path, launcher: ProcessLauncher) -> None:
    """Between the end of the process and that of its folder; nothing runs that nobody knows."""
    spec = python(PROGRAMS["waits"])

    class Slow(ProcessLauncher):
        def stop(self, name: str, grace_s: float) -> None:
            super().stop(name, grace_s)
            launcher.launch(spec)

    Slow(tmp_path / "launched").delete(spec.name)
    assert marked(launcher, spec.name) == []
    assert launcher.list() == []


def test_what_is_being_launched_cannot_be_said_to_be_stopped(
    launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor can it be deleted: it may be started in the next moment."""
    monkeypatch.setattr(process, "_LAUNCH_S", 0.05)
    spec = python(PROGRAMS["waits"])
    with launcher._records.launching(spec):
        for call in (lambda: launcher.stop(spec.name, 0), lambda: launcher.delete(spec.name)):
            with pytest.raises(UnavailableError, match="while it is launched or deleted"):
                call()
        assert launcher.probe(spec.name) == Probe(Phase.RUNNING)
    assert launcher.launch(spec) == spec.name


def test_what_is_just_ending_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks after a process may take a while to note how it ended; if he never lets go, that is an error."""

    class Waiting(Disk):
        held: ClassVar[list[Lock]] = []

        def _wait(self, seconds: float) -> None:
            super()._wait(seconds)
            while self.held:
                self.held.pop().release()

    launcher = ProcessLauncher(tmp_path, disk=Waiting())
    name = launcher.launch(python(PROGRAMS["ends"]))
    wait_until(lambda: launcher.probe(name).phase is Phase.GONE)
    running = tmp_path / name / "running"
    with monkeypatch.context() as patch, Disk().lock(running):
        patch.setattr(process, "_KILL_S", 0.05)
        with pytest.raises(UnavailableError, match="cannot be killed and runs on"):
            launcher.stop(name, 0)
    Waiting.held.append(Disk().lock(running))
    launcher.stop(name, 0)
    assert Waiting.held == []
    launcher.delete(name)


HOSTILE = """
import fcntl, os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lock = open(os.path.dirname(os.environ["POD_AUTH_FILE"]) + "/launching", "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("begun", flush=True)
while True:
    os.kill(os.getppid(), signal.SIGSTOP)
"""


def test_a_process_that_lets_nobody_hear_is_stopped(launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps what looks after it asleep, and looks as if it were launched still; of two who stop it both return."""
    monkeypatch.setattr(process, "_KILL_S", 0.3)
    monkeypatch.setattr(process, "_LAUNCH_S", 0.3)
    name = launcher.launch(python(HOSTILE))
    wait_until(lambda: b"begun" in launcher.logs(name).data)
    assert launcher.probe(name) == Probe(Phase.RUNNING)
    with ThreadPoolExecutor(2) as pool:
        for stopping in [pool.submit(launcher.stop, name, 0.05) for _ in range(2)]:
            stopping.result()
    assert launcher.probe(name).phase is Phase.FAILED
    assert marked(launcher, name) == []


def test_a_process_that_has_the_number_of_one_that_ended_is_let_be(launcher: ProcessLauncher) -> None:
    """A number says nothing: what was launched has a lock as long as it runs."""
    name = launcher.launch(python(PROGRAMS["ends"]))
    wait_until(lambda: launcher.probe(name).phase is not Phase.RUNNING)
    with subprocess.Popen(["sleep", "1000"]) as innocent:
        try:
            started = launcher._records.path(name) / "started.json"
            started.write_text(json.dumps({"parent": innocent.pid}), encoding="utf-8")
            assert launcher.probe(name) == Probe(Phase.GONE)
            launcher.stop(name, 0)
            launcher.delete(name)
            assert innocent.poll() is None
        finally:
            innocent.kill()


@pytest.mark.parametrize("note", ['{{"parent": {pid}}}', '{{"parent": -1}}', "{{"])
def test_a_process_that_changes_its_note_is_stopped_and_nobody_else(launcher: ProcessLauncher, note: str) -> None:
    """What is written there is not believed: it is asked to end all the same, and a stranger is let be."""
    program = """
import os, signal, sys
open(os.path.dirname(os.environ["POD_AUTH_FILE"]) + "/started.json", "w").write(sys.argv[1])
print("begun", flush=True)
signal.pause()
"""
    with subprocess.Popen(["sleep", "1000"]) as innocent:
        try:
            name = launcher.launch(python(program, note.format(pid=innocent.pid)))
            wait_until(lambda: b"begun" in launcher.logs(name).data)
            launcher.stop(name, 60)
            assert innocent.poll() is None
        finally:
            innocent.kill()
    assert "signal 15" in launcher.probe(name).reason


def test_a_process_outlives_who_launched_it(tmp_path: Path) -> None:
    """Killed with all its threads: the next one finds it, reads on, and stops it."""
    program = f"""
import os, signal, sys
from holdfast.launchers.process import ProcessLauncher
from holdfast.testing.launching import PROGRAMS, make_spec
ProcessLauncher({str(tmp_path)!r}).launch(make_spec(command=[sys.executable, "-c", PROGRAMS["waits"]]))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    launcher, name = ProcessLauncher(tmp_path), make_spec().name
    assert [each.name for each in launcher.list()] == [name]
    assert launcher.probe(name) == Probe(Phase.RUNNING)
    wait_until(lambda: launcher.logs(name).data == b"begun\n")
    launcher.delete(name)
    assert (marked(launcher, name), launcher.list()) == ([], [])


def test_who_comes_too_late_to_start_a_process_starts_nothing(launcher: ProcessLauncher) -> None:
    """Another has started it meanwhile, whether it runs or has ended: that is the answer, before anything is asked."""
    for epoch, does in enumerate(("waits", "ends"), 1):
        name = launcher.launch(python(PROGRAMS[does], epoch=epoch))
        wait_until(lambda: b"begun" in launcher.logs(name).data)  # noqa: B023 -- called at once
        wait_until(lambda: does == "waits" or launcher.probe(name).phase is Phase.GONE)  # noqa: B023
        folder = launcher._records.path(name)
        late = [sys.executable, "-m", "holdfast.launchers.parent", str(folder)]
        assert subprocess.run(late, input=b"{}\n", capture_output=True, check=True).stdout == b'{"started": true}\n'
        assert launcher.logs(name).data.count(b"begun") == 1


# -- dying and full disks ---------------------------------------------------------------------------------------------

DIE = """
import os, signal, sys

def die_at(number, *modules):
    "Let this process die before it executes the line of that number in some modules; 0: count them."
    seen = 0

    def line(frame, event, arg):
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    files = {module.__file__ for module in modules}
    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename in files else None)
    return lambda: seen
"""

LAUNCH = (
    DIE
    + """
from holdfast.launchers import process, records
from holdfast.testing.launching import PROGRAMS, make_spec
number, folder = sys.argv[1:]
spec = make_spec(command=[sys.executable, "-c", PROGRAMS["waits"]])
launcher = process.ProcessLauncher(folder)
seen = die_at(int(number), process, records)
launcher.launch(spec)
sys.settrace(None)
print(seen())
"""
)


def lines(program: str, *arguments: str) -> int:
    """Return how many lines a program executes that is to die at one of them."""
    done = subprocess.run([sys.executable, "-c", program, "0", *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


def spread(count: int, sample: int | None) -> list[int]:
    """Return numbers from 1 to ``count``: all, or so many, with the first and the last."""
    if sample is None or sample >= count:
        return list(range(1, count + 1))
    return sorted({1 + round(step * (count - 1) / (sample - 1)) for step in range(sample)})


def check_once(launcher: ProcessLauncher | DockerLauncher, spec: LaunchSpec) -> None:
    """Launch what may have been launched, by somebody who died of it: it runs, it was begun once, and it goes."""
    assert launcher.launch(spec) == spec.name
    wait_until(lambda: b"begun\n" in launcher.logs(spec.name).data)
    assert launcher.logs(spec.name).data == b"begun\n"
    assert launcher.probe(spec.name) == Probe(Phase.RUNNING)
    assert [each.name for each in launcher.list()] == [spec.name]
    launcher.delete(spec.name)
    assert launcher.list() == []
    assert launcher.probe(spec.name) == Probe(Phase.GONE)


@pytest.mark.timeout(900)  # for --full
def test_who_launches_a_process_may_die_on_any_line(tmp_path: Path, is_full: bool) -> None:
    """The next one finds it running or launches it: it is begun once, and nothing is left of what was half done."""
    spec, launcher = python(PROGRAMS["waits"]), ProcessLauncher(tmp_path)
    count = lines(LAUNCH, str(tmp_path))
    launcher.delete(spec.name)
    died = 0
    for number in spread(count, None if is_full else 10):
        done = subprocess.run([sys.executable, "-c", LAUNCH, str(number), str(tmp_path)], check=False)
        died += done.returncode == -signal.SIGKILL
        assert launcher.probe(spec.name) in (Probe(Phase.GONE), Probe(Phase.RUNNING))
        check_once(launcher, spec)
        assert marked(launcher, spec.name) == []
        assert list(tmp_path.iterdir()) == []
    assert died > (count * 0.9 if is_full else 8)


PARENT = (
    DIE
    + """
from pathlib import Path
from holdfast.launchers import parent
number, folder = sys.argv[1:]
die_at(int(number), parent)
parent.main(Path(folder))
"""
)


@pytest.mark.timeout(900)  # for --full
def test_what_looks_after_a_process_may_die_on_any_line(tmp_path: Path, is_full: bool) -> None:
    """The process does not outlive it, is begun at most once, and may be launched if it was never begun."""
    spec, launcher = python(PROGRAMS["waits"]), ProcessLauncher(tmp_path)
    ways = set[bool]()
    for number in range(1, 90) if is_full else range(1, 90, 8):
        dying = ProcessLauncher(tmp_path)
        dying._parent = (sys.executable, "-c", PARENT, str(number))
        with suppress(UnavailableError):
            dying.launch(spec)
        if launcher.probe(spec.name) == Probe(Phase.RUNNING):
            with suppress(ProcessLookupError, FileNotFoundError):
                os.kill(parent_of(launcher, spec.name), signal.SIGTERM)  # it lived until now: let it go on to its end
        wait_until(lambda: launcher.probe(spec.name) != Probe(Phase.RUNNING))
        wait_until(lambda: marked(launcher, spec.name) == [])
        began = launcher.logs(spec.name).data.count(b"begun")
        was_started = (launcher._records.path(spec.name) / "started.json").exists()
        launcher.launch(spec)
        if was_started:
            assert launcher.probe(spec.name).phase is Phase.FAILED
        else:
            assert began == 0
            wait_until(lambda: b"begun" in launcher.logs(spec.name).data)
        assert launcher.logs(spec.name).data.count(b"begun") <= 1
        ways.add(was_started)
        launcher.delete(spec.name)
        assert (marked(launcher, spec.name), list(tmp_path.iterdir())) == ([], [])
    assert ways == {True, False}


def test_on_a_full_disk_nothing_is_launched_or_all_of_it(tmp_path: Path) -> None:
    """However little room there is: an error that says so and no process, or a process that is known."""
    spec, outcomes = python(PROGRAMS["waits"]), list[bool]()
    for pages in range(1, 14):
        with tmpfs(tmp_path / str(pages), size_bytes=4096 * pages) as folder:
            launcher = ProcessLauncher(folder / "launched")
            try:
                launcher.launch(spec)
            except UnavailableError:
                assert launcher.probe(spec.name) == Probe(Phase.GONE)
                assert marked(launcher, spec.name) == []
                outcomes.append(False)
            else:
                assert launcher.probe(spec.name) == Probe(Phase.RUNNING)
                outcomes.append(True)
            launcher.delete(spec.name)
            assert (launcher.list(), marked(launcher, spec.name)) == ([], [])
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_on_a_disk_that_becomes_full_it_is_only_not_known_how_a_process_ended(tmp_path: Path) -> None:
    """That it has ended is."""
    with tmpfs(tmp_path / "disk", size_bytes=2**20) as folder:
        launcher = ProcessLauncher(folder / "launched")
        name = launcher.launch(python(PROGRAMS["waits"]))
        with suppress(OSError), (folder / "rest").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        launcher.stop(name, 60)
        assert launcher.probe(name) == Probe(
            Phase.FAILED, "it ended without a word: it was killed, or the machine was restarted"
        )
        launcher.delete(name)
        assert launcher.list() == []


@pytest.mark.parametrize("note", ["{", "[]", "pipe", '{"epoch": "' + "9" * 5000 + '"}', '{"epoch": "²"}', "9" * 5000])
def test_a_damaged_note_hides_no_launch(launcher: ProcessLauncher, note: str) -> None:
    """It is listed, for nobody, beside the others, and goes when it is deleted."""
    name = launcher.launch(python(PROGRAMS["waits"]))
    other = launcher.launch(python(PROGRAMS["waits"], epoch=2))
    path = launcher._records.path(name) / "launch.json"
    if note == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_text(note, encoding="utf-8")
    assert [(each.name, each.run, each.epoch) for each in launcher.list()] == [(name, "", 0), (other, "r1", 2)]
    launcher.delete(name)
    assert [each.name for each in launcher.list()] == [other]
    assert marked(launcher, name) == []


def test_a_folder_that_is_shut_hides_and_keeps_nothing(tmp_path: Path, launcher: ProcessLauncher) -> None:
    """As by the process itself: others are listed beside it, and it is ended, and goes."""
    name = launcher.launch(python(PROGRAMS["waits"]))
    other = launcher.launch(python(PROGRAMS["waits"], epoch=2))
    shut = tmp_path.resolve() / "launched" / name

    class Shut(Disk):
        def _open(self, path: Path, flags: int, mode: int = 0o600) -> int:
            if path.parent == shut:
                raise PermissionError(13, "Permission denied", str(path))
            return super()._open(path, flags, mode)

    outside = ProcessLauncher(tmp_path / "launched", disk=Shut())
    assert [(each.name, each.run) for each in outside.list()] == [(name, ""), (other, "r1")]
    assert outside.probe(name).phase is Phase.UNKNOWN
    outside.delete(name)
    assert [each.name for each in outside.list()] == [other]
    assert marked(launcher, name) == []


def test_what_is_deleted_while_it_is_listed_is_not_listed(tmp_path: Path, launcher: ProcessLauncher) -> None:
    """And is not one for nobody."""
    launcher.launch(python(PROGRAMS["ends"]))

    class Deleting(Disk):
        def read(self, path: Any) -> bytes:
            shutil.rmtree(Path(path).parent)
            return super().read(path)

    assert ProcessLauncher(tmp_path / "launched", disk=Deleting()).list() == []


# -- real runs --------------------------------------------------------------------------------------------------------

PLUGIN = """
from holdfast import StatefulPlugin

class Weights:
    def __init__(self):
        self.value = 0

    def get_state(self):
        return {"value": self.value}

    def set_state(self, tree):
        self.value = tree["value"]

class Counter(StatefulPlugin):
    def setup(self):
        self.weights = Weights()
        self.snapshots.register("weights", self.weights)

    def run(self):
        self.weights.value += 1
        self.state.count = (self.state.count or 0) + 1
        assert self.weights.value == self.state.count
        print("counted", self.state.count)
"""


def claimed(served: Served, home: Path, **more: Any) -> LaunchSpec:
    """Begin a run of the plugin at a Pod, claim its plugin state, and return what a launcher is told of it."""
    with Pod(served.store()) as client:
        run = client.create(PluginRun(pluginModule="counter", pluginName="Counter"))
    claim = json.loads(served.connect().send("POST", "/claims", json.dumps({"run": run.id}).encode()))
    state = claim["lease"]["state"]
    return LaunchSpec(
        owner=OWNER.owner_key,
        plugin="counter:Counter",
        state=state,
        run=str(run.id),
        epoch=claim["lease"]["epoch"],
        address=served.url,
        auth=json.dumps({"type": "PluginAuth", "data": {"token": claim["token"]}}),
        environment={"HOLDFAST_HOME": str(home)},
        snapshots=home / "snapshots" / state,
        **more,
    )


def carried_out(served: Served, launcher: ProcessLauncher | DockerLauncher, spec: LaunchSpec) -> tuple[str, Any]:
    """Launch a run, and return its status and the variable of its plugin when it has ended."""
    name = launcher.launch(spec)
    wait_until(lambda: launcher.probe(name).phase is not Phase.RUNNING)
    text = launcher.logs(name).data.decode()
    assert launcher.probe(name) == Probe(Phase.GONE), text
    store = served.store()
    count = store.list_variables(spec.state)["count"]
    assert f"counted {count}\n" in text
    return str(store.find_items([spec.run])[spec.run].properties["status"]), count


def test_a_launched_process_carries_its_run_out(tmp_path: Path, launcher: ProcessLauncher) -> None:
    """With the token that it was given alone; the next run goes on from there."""
    home = tmp_path / "runs"
    (tmp_path / "counter.py").write_text(PLUGIN, encoding="utf-8")
    launcher = ProcessLauncher(tmp_path / "launched", cwd=tmp_path)
    with serving(tmp_path / "home") as served:
        for count in (1, 2):
            assert carried_out(served, launcher, claimed(served, home)) == ("done", count)


# -- containers -------------------------------------------------------------------------------------------------------


class Answering(BaseHTTPRequestHandler):
    """One connection to an engine that has one container, which is not called as it was asked for."""

    protocol_version = "HTTP/1.1"
    server: "Pretending"

    def setup(self) -> None:
        """Be counted."""
        super().setup()
        with self.server.changed:
            self.server.connections += 1
            told = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.server.processes.add(struct.unpack("3i", told)[0])
            self.server.changed.notify_all()

    def do_GET(self) -> None:
        """Answer when as many have come as are waited for."""
        with self.server.changed:
            self.server.changed.wait_for(lambda: self.server.connections >= self.server.awaited)
        found = {"Name": "/other", "Config": {"Labels": {"holdfast.pod": "p"}}, "State": {"Status": "running"}}
        body = json.dumps({"ApiVersion": "1.41"} if self.path == "/version" else found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Pretending(ThreadingMixIn, UnixStreamServer):
    """What answers as an engine does."""

    daemon_threads = True
    block_on_close = False
    connections = awaited = 0

    def __init__(self, path: Path) -> None:
        self.changed = threading.Condition()
        self.processes = set[int]()  # that have connected
        super().__init__(str(path), Answering)


@pytest.fixture
def pretending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretending]:
    """An engine that is none, at ``unix://engine`` of the folder that this is in."""
    monkeypatch.chdir(tmp_path)
    with Pretending(Path("engine")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_container_is_not_found_by_its_id(tmp_path: Path, pretending: Pretending) -> None:
    """An engine takes the beginning of an id for a name, and one that begins with a letter can be that of a launch."""
    with closing(DockerLauncher(tmp_path / "launched", pod="p", url=f"unix://{tmp_path}/engine")) as launcher:
        assert launcher.probe("f8cc14c329cb") == Probe(Phase.GONE)
        launcher.delete("f8cc14c329cb")
    assert pretending.connections > 0


FORKS = """
import os, sys
from holdfast.launchers.docker import DockerLauncher
launcher = DockerLauncher("launched", pod="p", url=sys.argv[1])
print(launcher.probe("f0").phase, flush=True)
if os.fork() == 0:
    print(launcher.probe("f0").phase, flush=True)
    os._exit(0)
os.wait()
print(launcher.probe("f0").phase, flush=True)
launcher.close()
"""


def test_a_forked_process_has_connections_of_its_own(tmp_path: Path, pretending: Pretending) -> None:
    """Or one would have the answers to the other's questions."""
    url = f"unix://{tmp_path}/engine"
    done = subprocess.run([sys.executable, "-c", FORKS, url], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "gone\ngone\ngone\n"
    assert len(pretending.processes) == 2


def test_one_to_whom_an_engine_does_not_answer_keeps_nobody_waiting(tmp_path: Path, pretending: Pretending) -> None:
    """All ask it at the same time; what the first of them opened is kept."""
    pretending.awaited = 4
    with closing(DockerLauncher(tmp_path / "launched", pod="p", url=f"unix://{tmp_path}/engine")) as launcher:
        with ThreadPoolExecutor(4) as pool:
            probes = [pool.submit(launcher.probe, "f0") for _ in range(4)]
            assert [each.result() for each in probes] == [Probe(Phase.GONE)] * 4
        assert len(launcher._opened) == 1


@pytest.mark.parametrize("url", ["http://[bad", "tcp://127.0.0.1:notaport"])
def test_where_no_engine_can_be_is_said(tmp_path: Path, url: str) -> None:
    """It is no use to ask again."""
    launcher = DockerLauncher(tmp_path / "launched", pod="p", url=url)
    with pytest.raises(InvalidError, match="is not where an engine can be"):
        launcher.list()
    assert launcher.probe("f0").phase is Phase.UNKNOWN


Entries = list[tuple[int, str, bytes]]


@st.composite
def logs(draw: st.DrawFn) -> Entries:
    """Return entries of two outputs whose times need not grow: a clock may be put back. Long lines have parts."""
    lines = {output: draw(st.lists(st.integers(1, 4), max_size=6)) for output in (1, 2)}
    left = {
        output: [each for each, parts in enumerate(counts) for _ in range(parts)] for output, counts in lines.items()
    }
    found: Entries = []
    while any(left.values()):
        output = draw(st.sampled_from([each for each in left if left[each]]))
        number = left[output].pop(0)
        found.append((output, f"2026-01-0{9 - number}T00:00:0{output}Z", b"%d;" % len(found)))
    return found


@given(entries=logs(), kept=st.integers(0, 30), size=st.integers(1, 12), tail=st.integers(1, 4))
@settings(max_examples=200)
def test_a_log_of_an_engine_is_read_on_wherever_its_last_entry_is(
    entries: Entries, kept: int, size: int, tail: int
) -> None:
    """Each entry comes once and in order while more are written, however little is looked at, or comes, at once."""
    looked: list[int] = []

    def engine(_: object, __: str, wanted: int | None) -> Generator[tuple[int, str, bytes]]:
        looked.append(0)
        for each in there if wanted is None else there[-wanted:]:
            looked[-1] += 1
            yield each

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker, "_entries", engine)
        patch.setattr(docker, "_TAILS", (tail, 4 * tail, None))
        patch.setattr(docker, "_LOG_BYTES", size)
        found, after = b"", ""
        for count in sorted({min(kept, len(entries)), len(entries)}):
            there = entries[:count]
            while (part := logged(after)).data:
                found, after = found + part.data, part.after
                assert len(found) <= sum(len(text) for _, _, text in there)
        assert found == b"".join(text for _, _, text in entries)
        looked.clear()
        assert logged(after).data == b""
        if len({time for _, time, _ in entries[-tail:]}) > 1:
            assert sum(looked) <= 5 * tail or len(entries) <= 4 * tail


def logged(after: str) -> Logs:
    """Return what a launcher reads from the log of the engine that is pretended."""
    launcher = DockerLauncher("launched", pod="p")
    launcher._opened[os.getpid()] = Present()
    return launcher.logs("f0", after)


class Present:
    """What speaks to an engine that has each container."""

    def inspect_container(self, name: str) -> dict[str, Any]:
        """Return one."""
        return {"Name": f"/{name}", "Config": {"Labels": {"holdfast.pod": "p"}}, "State": {"Status": "running"}}


@pytest.fixture
def engine(pytestconfig: pytest.Config) -> Engine:
    """The container engine of the tests."""
    return engine_of(pytestconfig)


@pytest.fixture
def docking(tmp_path: Path, engine: Engine) -> Iterator[DockerLauncher]:
    """A launcher of containers; what is left of them is deleted with the test."""
    with closing(DockerLauncher(tmp_path / "launched", pod=tmp_path.name, url=engine.url)) as launcher:
        yield launcher
        for each in launcher.list():
            launcher.delete(each.name)


def contained(program: str, *arguments: str, **more: Any) -> LaunchSpec:
    """Return a spec of a Python program in a container."""
    return replace(make_spec(image=Engine.image, command=["python3", "-c", program, *arguments]), **more)


INSIDE = """
import json, os
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
def write(path):
    try:
        with open(path, "w") as file: file.write("x")
    except OSError as exc: return exc.strerror
    return "written"
def limit(name):
    return open("/sys/fs/cgroup/" + name).read().strip() if os.path.exists("/sys/fs/cgroup/" + name) else None
print(json.dumps({
    "environ": {each: os.environ[each] for each in os.environ if each.upper().startswith(("POD", "HO", "HTTP"))},
    "caps": status["CapEff"] + status["CapPrm"] + status["CapBnd"], "gains": status["NoNewPrivs"],
    "user": [os.getuid(), os.getgid()], "first": open("/proc/1/comm").read().strip(),
    "auth": open(os.environ["POD_AUTH_FILE"]).read(), "secret": os.environ.get("SECRET"),
    "shared": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "writes": {path: write(path) for path in ("/x", "/usr/x", "/tmp/x", os.environ["POD_AUTH_FILE"],
        "/run/holdfast/x", "/run/holdfast/snapshots/s1/x")},
    "memory": limit("memory/memory.limit_in_bytes") or limit("memory.max"),
    "processes": limit("pids/pids.max") or limit("pids.max"),
}))
"""


@containers
def test_a_container_can_write_its_snapshots_and_nothing_else(
    tmp_path: Path, docking: DockerLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no capabilities and gains none, is who launched it, and has limits and a process to look after it."""
    monkeypatch.setenv("SECRET", "of the server")
    (tmp_path / "config.json").write_text('{"proxies": {"default": {"httpProxy": "http://me:secret@127.0.0.1:9"}}}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    spec = contained(INSIDE, snapshots=tmp_path / "s1", limits=Limits(memory_bytes=2**26, processes=20, cpus=0.5))
    found = said(docking, spec)
    found["environ"].pop("HOSTNAME", None)
    assert found == {
        "environ": {
            "HOLDFAST_HOME": "/run/holdfast",
            "HOME": "/run/holdfast",
            "POD_AUTH_FILE": "/run/secrets/holdfast.json",
            "POD_FULL_ADDRESS": "http://127.0.0.1:1",
            "POD_OWNER": "o" * 64,
            "POD_PLUGINRUN_ID": "r1",
            "POD_TARGET_ITEM": '{"id": "r1"}',
        },
        "auth": '{"type": "PluginAuth", "data": {"token": "hft1.secret"}}',
        "caps": "0" * 48,
        "first": "docker-init",
        "gains": "1",
        "memory": str(2**26),
        "processes": "20",
        "secret": None,
        "shared": 2**26,
        "user": [os.getuid(), os.getgid()],
        "writes": {
            "/x": "Read-only file system",
            "/usr/x": "Read-only file system",
            "/run/secrets/holdfast.json": "Read-only file system",
            "/run/holdfast/x": "written",
            "/run/holdfast/snapshots/s1/x": "written",
            "/tmp/x": "written",
        },
    }
    assert (tmp_path / "s1" / "x").read_text() == "x"
    auth = tmp_path / "launched" / spec.name / "auth.json"
    assert oct(auth.stat().st_mode) == "0o100400"


@containers
def test_an_image_with_volumes_is_refused(docking: DockerLauncher, engine: Engine) -> None:
    """What it writes there would be on the machine's disk, as much as it likes."""
    text = f"FROM {Engine.image}\nVOLUME /data\nVOLUME /tmp\n".encode()
    file = tarfile.TarInfo("Dockerfile")
    file.size = len(text)
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        archive.addfile(file, io.BytesIO(text))
    with engine.client() as client:
        list(client.build(fileobj=io.BytesIO(context.getvalue()), custom_context=True, tag="voluminous", rm=True))
        spec = contained(PROGRAMS["waits"], image="voluminous")
        with pytest.raises(InvalidError, match=r"image 'voluminous' has volumes \(/data\)") as caught:
            docking.launch(spec)
        assert docking.probe(spec.name) == Probe(Phase.FAILED, str(caught.value))
        assert client.containers(all=True) == []
        assert client.volumes()["Volumes"] in ([], None)


@containers
def test_a_program_that_is_not_in_the_image_is_said_to_be_missing(docking: DockerLauncher) -> None:
    """It is looked for in the container, when that is started."""
    name = docking.launch(replace(contained(""), command=("/missing",)))
    wait_until(lambda: docking.probe(name).phase is not Phase.RUNNING)
    assert docking.probe(name) == Probe(
        Phase.FAILED, "it ended with exit code 127: its program is not in the image, perhaps"
    )


@containers
def test_who_deletes_what_others_delete_or_launch_hears_of_no_error(docking: DockerLauncher, engine: Engine) -> None:
    """All delete it and it is gone; what loses its container before it is started gets another."""
    spec = contained(PROGRAMS["waits"])
    for _ in range(5):
        docking.launch(spec)
        with ThreadPoolExecutor(8) as pool:
            for each in [pool.submit(docking.delete, spec.name) for _ in range(8)]:
                each.result()
        assert docking.probe(spec.name) == Probe(Phase.GONE)
    speaks = docking._opened[os.getpid()]
    start, lost = speaks.start, list[str]()

    def lose(name: str) -> None:
        if not lost:
            lost.append(name)
            speaks.remove_container(name)
        start(name)

    speaks.start = lose
    assert docking.launch(spec) == spec.name
    assert lost == [spec.name]
    assert docking.probe(spec.name) == Probe(Phase.RUNNING)


@containers
def test_a_container_that_reaches_its_limit_of_memory_has_failed_and_says_so(docking: DockerLauncher) -> None:
    """And not only that it was killed."""
    name = docking.launch(contained("x = b'a' * 2**28", limits=Limits(memory_bytes=2**25)))
    wait_until(lambda: docking.probe(name).phase is not Phase.RUNNING)
    assert docking.probe(name) == Probe(Phase.FAILED, "it was killed: it needed more than its 33554432 bytes of memory")


@containers
def test_an_image_is_taken_from_here_or_fetched_or_missed_by_its_name(
    tmp_path: Path, docking: DockerLauncher, engine: Engine
) -> None:
    """That a registry has none is known for sure; that one does not answer is not the end."""
    name = make_spec().name
    absent, unreachable = missing_image(), "127.0.0.1:9/missing:1"
    with closing(DockerLauncher(tmp_path / "2", pod="2", url=engine.url, is_pulled=False)) as offline:
        for launcher, image, kind, message in (
            (docking, absent, NotFoundError, f"image '{absent}' is not here, and cannot be fetched: "),
            (docking, unreachable, UnavailableError, f"image '{unreachable}' is not here, and cannot be fetched: "),
            (offline, absent, NotFoundError, f"image '{absent}' is not here: build it, or fetch it"),
            (docking, "No Name", InvalidError, "image 'No Name' cannot be used: "),
            (docking, "", InvalidError, "a container has an image"),
        ):
            with pytest.raises(kind, match=message) as caught:
                launcher.launch(make_spec(image=image))
            is_sure = kind is not UnavailableError
            assert launcher.probe(name) == (Probe(Phase.FAILED, str(caught.value)) if is_sure else Probe(Phase.GONE))
            launcher.delete(name)
        assert said(offline, contained("print(1)")) == 1
        offline.delete(name)


@containers
def test_what_the_engine_does_not_start_has_failed_and_may_be_launched_again(
    tmp_path: Path, docking: DockerLauncher, engine: Engine
) -> None:
    """With the reason; what was half made is made anew."""
    spec = contained(PROGRAMS["waits"])
    folder = tmp_path / "launched"
    with closing(DockerLauncher(folder, pod=tmp_path.name, url=engine.url, network="none-such")) as launcher:
        for _ in range(2):
            with pytest.raises(NotFoundError, match="network none-such not found") as caught:
                launcher.launch(spec)
            assert launcher.probe(spec.name) == Probe(Phase.FAILED, str(caught.value))
    docking.launch(spec)
    with engine.client() as client:
        client.remove_container(spec.name, force=True)
    assert docking.probe(spec.name) == Probe(Phase.GONE)
    check_once(docking, spec)


def test_without_dockers_package_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where containers are asked for, and nowhere before; what became of one is not known."""
    monkeypatch.setitem(sys.modules, "docker", None)
    launcher = DockerLauncher(tmp_path, pod="p")
    with pytest.raises(UnavailableError, match=r"install holdfast\[docker\]"):
        launcher.launch(contained("", image="x"))
    assert launcher.probe(make_spec().name).phase is Phase.UNKNOWN


@containers
def test_a_paused_container_runs_and_can_be_stopped(docking: DockerLauncher, engine: Engine) -> None:
    """It is asked to end like any other."""
    name = docking.launch(contained(PROGRAMS["waits"]))
    with engine.client() as client:
        client.pause(name)
    assert docking.probe(name) == Probe(Phase.RUNNING)
    docking.stop(name, 60)
    assert docking.probe(name) == Probe(Phase.FAILED, "it was ended by signal 15: by hand, or by a fault of its own")


@containers
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_while_the_engine_is_away_nothing_is_known_and_afterwards_all_is(
    docking: DockerLauncher, engine: Engine
) -> None:
    """`probe` guesses nothing, nothing else pretends to be done, and the same launcher goes on."""
    name, spec = docking.launch(contained(PROGRAMS["waits"])), contained(PROGRAMS["waits"], epoch=2)
    engine.stop()
    try:
        assert docking.probe(name).phase is Phase.UNKNOWN
        assert f"{name!r} cannot be looked for" in docking.probe(name).reason
        calls: list[Callable[[], object]] = [
            lambda: docking.launch(spec),
            lambda: docking.stop(name, 0),
            lambda: docking.delete(name),
            lambda: docking.logs(name),
            docking.list,
        ]
        for call in calls:
            with pytest.raises(UnavailableError):
                call()
    finally:
        engine.start()
    gc.collect()  # Docker's package leaves sockets open where nobody answers: here they are expected
    assert docking.probe(name).phase is Phase.FAILED
    assert docking.probe(spec.name) == Probe(Phase.GONE)
    assert docking.launch(spec) == spec.name
    assert {each.name for each in docking.list()} == {name, spec.name}
    assert docking.launch(contained(PROGRAMS["waits"])) == name
    assert docking.probe(name).phase is Phase.FAILED


@containers
def test_the_containers_of_others_are_let_be(tmp_path: Path, docking: DockerLauncher, engine: Engine) -> None:
    """Those of another Pod, and what nobody launched, even if it has the name, or the label."""
    spec = contained(PROGRAMS["waits"])
    with closing(DockerLauncher(tmp_path / "2", pod="another", url=engine.url)) as other, engine.client() as client:
        client.create_container(engine.image, ["true"], name="By_Hand", labels={"holdfast.pod": tmp_path.name})
        other.launch(spec)
        try:
            assert docking.list() == []
            assert docking.probe(spec.name) == Probe(Phase.GONE)
            assert docking.logs(spec.name).data == b""
            with pytest.raises(UnavailableError, match="another has the name"):
                docking.launch(spec)
            docking.stop(spec.name, 0)
            docking.delete(spec.name)
            assert other.probe(spec.name) == Probe(Phase.RUNNING)
        finally:
            other.delete(spec.name)
            client.remove_container("By_Hand")


@containers
def test_what_a_container_writes_is_read_in_order_and_once(docking: DockerLauncher) -> None:
    """Long lines, and both of its outputs, each in its own order, while it writes; after so much at once the rest."""
    long = b"".join(b"%06d" % number for number in range(200_000))
    program = """
import os, time
left = b"".join(b"%06d" % number for number in range(200_000))
while left:
    left = left[os.write(1, left):]
for number in range(100):
    os.write(1, b"%d|" % number)
    os.write(2, b"<%d>" % number)
    time.sleep(0.002)
"""
    name, after, found = docking.launch(contained(program)), "", b""
    is_over = False
    while not is_over:
        is_over = docking.probe(name).phase is not Phase.RUNNING
        while (part := docking.logs(name, after)).data:
            assert len(part.data) < 2**20 + 2**15
            found, after = found + part.data, part.after
    assert [int(each) for each in re.findall(rb"<(\d+)>", found)] == list(range(100))
    assert re.sub(rb"<\d+>", b"", found) == long + b"".join(b"%d|" % number for number in range(100))
    assert docking.logs(name, after) == Logs(b"", after)


WRITES = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for count in map(int, sys.argv[1:]):
    for number in range(count):
        print("%06d" % number)
    print("written", flush=True)
    signal.sigwait([signal.SIGUSR1])
"""


@containers
def test_what_a_container_writes_when_its_clock_was_put_back_is_read(docking: DockerLauncher, engine: Engine) -> None:
    """As if the first entries had been written an hour later than they were."""
    name = docking.launch(contained(WRITES, "1", "1"))
    wait_until(lambda: b"written" in docking.logs(name).data)
    with engine.client() as client:
        (log,) = engine.folder.glob(f"data-root/containers/{client.inspect_container(name)['Id']}/*-json.log")
        with log.open("r+", encoding="utf-8") as file:  # which the engine has open
            text = file.read()
            file.seek(0)
            file.write(re.sub(r'"time":"\d{4}', '"time":"2099', text))
        part = docking.logs(name)
        assert part.data == b"000000\nwritten\n"
        client.kill(name, "SIGUSR1")
    wait_until(lambda: docking.logs(name).data.count(b"written") == 2)
    assert docking.logs(name, part.after).data == b"000000\nwritten\n"


@containers
def test_when_the_engine_has_let_go_of_what_was_read_last_all_that_it_has_comes(
    docking: DockerLauncher, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written between is lost, and nothing else."""
    monkeypatch.setitem(docker._LOGGING["Config"], "max-size", "20k")
    name = docking.launch(contained(WRITES, "10", "3000"))
    wait_until(lambda: b"written" in docking.logs(name).data)
    part = docking.logs(name)
    assert part.data.count(b"\n") == 11
    with engine.client() as client:
        client.kill(name, "SIGUSR1")
    wait_until(lambda: b"002999\nwritten\n" in docking.logs(name).data)
    rest = docking.logs(name, part.after).data
    assert rest == docking.logs(name).data
    lines = rest.splitlines()
    first = int(lines[0])
    assert first > 1000
    assert lines == [b"%06d" % number for number in range(first, 3000)] + [b"written"]


CONTAIN = (
    DIE
    + """
from holdfast.launchers import docker, records
from holdfast.testing.launching import PROGRAMS, make_spec
number, folder, pod, url, image = sys.argv[1:]
spec = make_spec(image=image, command=["python3", "-c", PROGRAMS["waits"]])
launcher = docker.DockerLauncher(folder, pod=pod, url=url)
seen = die_at(int(number), docker, records)
launcher.launch(spec)
sys.settrace(None)
launcher.close()
print(seen())
"""
)


@containers
@pytest.mark.timeout(900)  # for --full
def test_who_launches_a_container_may_die_on_any_line(
    tmp_path: Path, docking: DockerLauncher, engine: Engine, is_full: bool
) -> None:
    """The next one finds it running or launches it: it is begun once, and nothing is left of what was half done."""
    spec = contained(PROGRAMS["waits"])
    arguments = (str(tmp_path / "launched"), tmp_path.name, engine.url, engine.image)
    count = lines(CONTAIN, *arguments)
    docking.delete(spec.name)
    for number in spread(count, None if is_full else 5):
        subprocess.run([sys.executable, "-c", CONTAIN, str(number), *arguments], check=False)
        assert docking.probe(spec.name) in (Probe(Phase.GONE), Probe(Phase.RUNNING))
        check_once(docking, spec)
    with engine.client() as client:
        assert client.containers(all=True) == []


@containers
def test_a_run_goes_on_as_a_container_of_the_projects_own_image(
    tmp_path: Path, docking: DockerLauncher, engine: Engine, is_full: bool
) -> None:
    """Built from wheels without a network; it finds the variables and the snapshot that a process left."""
    if not is_full:
        pytest.skip("the image is built for the runs that a server launches; once more with --full")
    home, image = tmp_path / "runs", build_image(tmp_path / "build", engine)
    (tmp_path / "counter.py").write_text(PLUGIN, encoding="utf-8")
    beside = ProcessLauncher(tmp_path / "processes", cwd=tmp_path)
    with serving(tmp_path / "home") as served:
        assert carried_out(served, beside, claimed(served, home)) == ("done", 1)
        limits = Limits(memory_bytes=2**28, processes=64, cpus=1)
        spec = claimed(served, home, image=image, limits=limits)
        assert carried_out(served, docking, spec) == ("done", 2)
        assert carried_out(served, beside, claimed(served, home)) == ("done", 3)


def build_image(folder: Path, engine: Engine) -> str:
    """Build the project's image as its Dockerfile says, and one with the plugin on it; return what that is called."""
    shutil.copytree(ROOT, folder, ignore=lambda _, names: {*names} - {"Dockerfile", ".dockerignore"})
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-build-isolation", "--constraint"]
    wheels = [str(ROOT / "requirements" / "dev.txt"), "--wheel-dir", str(folder / "build" / "wheels"), str(ROOT)]
    subprocess.run([*pip, *wheels], check=True, capture_output=True)
    (folder / "with-plugin").mkdir()
    (folder / "with-plugin" / "counter.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "with-plugin" / "Dockerfile").write_text("FROM holdfast\nCOPY counter.py /plugins/\n", encoding="utf-8")
    with engine.client() as client:
        for place, tag in ((folder, "holdfast"), (folder / "with-plugin", "counter")):
            arguments = {"PYTHON": Engine.image}
            output = [
                *client.build(path=str(place), tag=tag, buildargs=arguments, network_mode="none", rm=True, decode=True)
            ]
            assert not any("error" in each for each in output), output
    return "counter"
