"""The parent of one launched process: starts it, ends all that it began, and notes how it ended.

A program of its own, ``python -m holdfast.launchers.parent FOLDER``: a process must have somebody who waits for it, and
for what it leaves behind, also when the one who launched it is gone. It is told what to start by one line of JSON on
its standard input, and answers likewise. SIGTERM makes it ask its process to end, SIGUSR1 kill it.

The failure argument. Whether the process runs is known by the lock that this one holds, so no number of a process is
ever taken for another's. *Who launches dies* before the whole line is written: nothing is started, nor will be; after
it: all goes on. *This one is killed*: the system kills the launched process with it, and what that began is found by
its environment, or its output, when the launch is stopped. *The disk is full*: how it ended is not noted; all else is
as ever.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from holdfast.disk import BusyError, Disk, Lock
from holdfast.errors import HoldfastError, UnavailableError
from holdfast.launchers import ENDED, RUNNING, STARTED

_PDEATHSIG: Final = 1
_CHILD_SUBREAPER: Final = 36  # both from linux/prctl.h
_SIGNALS: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1)
_LIMITS: Final = {
    "memory_bytes": resource.RLIMIT_AS,
    "processes": resource.RLIMIT_NPROC,
    "file_bytes": resource.RLIMIT_FSIZE,
}
_LOOK_S: Final = 0.05
_LOOKS: Final = 200


def main(folder: Path) -> None:
    """Start what standard input says, and return when nothing of it is left."""
    if os.fork():
        os._exit(0)  # from here on it is nobody's child, and nobody's to wait for
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for each in _SIGNALS:
        signal.signal(each, _awaited)
    disk = Disk()
    try:
        lock = _lock(disk, folder)
        if lock is None:
            _answer(started=True)
            return
        with lock:
            _answer(ready=True)
            line = sys.stdin.buffer.readline()
            if line.endswith(b"\n"):
                _carry_out(disk, folder, json.loads(line))
    except HoldfastError as exc:
        _answer(unavailable=str(exc))


def _awaited(number: int, frame: object) -> None:
    """Do nothing: it is blocked, and waited for. Without this it may be ignored, and not even waited for."""


def _lock(disk: Disk, folder: Path) -> Lock | None:
    """Return the lock; None: another has started the process, though who asked for it did not live to hear of it."""
    for _ in range(_LOOKS):
        with suppress(BusyError):
            lock = disk.lock(folder / RUNNING, wait_s=_LOOK_S)
            if not (folder / STARTED).exists():
                return lock
            lock.release()
        if (folder / STARTED).exists():
            return None
    raise UnavailableError(f"{str(folder / RUNNING)!r} is locked, and nothing was started: look who has it")


def _carry_out(disk: Disk, folder: Path, job: dict[str, Any]) -> None:
    disk.delete(folder / ENDED)
    disk.replace(folder / STARTED, json.dumps({"parent": os.getpid()}).encode())
    child, failed = _start(job)
    if failed is not None:
        _end(child)
        disk.delete(folder / STARTED)
        _answer(failed=failed)
        return
    _answer(started=True)
    _let_go()
    code = os.waitstatus_to_exitcode(_attend(child))
    _end(child)
    disk.replace(folder / ENDED, json.dumps({"code": code} if code >= 0 else {"signal": -code}).encode())


def _answer(**words: object) -> None:
    with suppress(OSError):  # whoever asked is dead
        os.write(1, json.dumps(words).encode() + b"\n")


def _let_go() -> None:
    """Hold nothing that is anybody else's."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _start(job: dict[str, Any]) -> tuple[int, dict[str, object] | None]:
    """Start a process in a session of its own; return its number, and why that failed, if it did."""
    _prctl(_CHILD_SUBREAPER, 1)  # what the process leaves behind becomes this one's
    reading, writing = os.pipe()
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError as exc:
        return 0, _told(exc)
    if child == 0:
        _become(job, parent, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 -- a descriptor
        failed = pipe.read()
    return child, json.loads(failed) if failed else None


def _told(exc: Exception) -> dict[str, object]:
    if isinstance(exc, OSError):
        return {"errno": exc.errno, "reason": exc.strerror, "where": exc.filename and os.fsdecode(exc.filename)}
    return {"errno": None, "reason": str(exc), "where": None}


def _become(job: dict[str, Any], parent: int, writing: int) -> NoReturn:
    """Be the process that was asked for, from the fork on; what goes wrong is written to a pipe that exec closes."""
    try:
        os.setsid()
        _prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.chdir(job["cwd"])
        limits = job["limits"]
        os.nice(limits["nice"])
        for name, number in _LIMITS.items():
            if limits[name] is not None:
                resource.setrlimit(number, (limits[name], limits[name]))
        for each in signal.valid_signals():  # Python ignores two, who launched this may have more, and exec keeps that
            if signal.getsignal(each) is signal.SIG_IGN:
                signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(job["command"][0], job["command"], job["environment"])  # noqa: S606 -- without a shell, on purpose
    except Exception as exc:  # noqa: BLE001 -- whatever it is, nobody hears of it but through here
        os.write(writing, json.dumps(_told(exc)).encode())
    finally:
        os._exit(127)


def _attend(child: int) -> int:
    """Do what signals say until the process has ended, and return the status that it ended with."""
    while True:
        got = signal.sigwait(_SIGNALS)
        if got == signal.SIGTERM:
            os.killpg(child, signal.SIGTERM)
        elif got == signal.SIGUSR1:
            os.killpg(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    return ended[1]


def _end(child: int) -> None:
    """Kill what the process has left behind, and return when all of it is gone.

    Only children of this one are killed: until they are waited for, their numbers are no others'. Where theirs become
    its own in turn, that goes on to the last; elsewhere what is in the process's own group must do.
    """
    while True:
        if sys.platform != "linux":
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
        for each in _children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def _children() -> list[int]:
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            # The name of the program, in parentheses, may be anything; then come its state and its parent.
            if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
