"""A launcher of processes on this machine, which outlive who launched them.

Hides how they are found again: by a folder for each, made before it is started (`records`), and a lock in it that is
held while anything of it runs, by a small program beside it (`parent`). What it cannot do is protect the user: a plugin
may read what this user may read, and end what this user may end.

The failure argument. *The process dies on any line of `launch`*: before the folder is there nothing happened; then
nothing runs until the other program has its whole line, and who asks again starts it or finds it started. *Two launch
at once*: one of them at a time, and the second finds it started. *The disk is full*: then the folder or a note in it
cannot be made, and nothing is started. *The machine is restarted*: the notes are there and the locks are free.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from holdfast.disk import BusyError, Disk, MissingError, StrPath
from holdfast.errors import HoldfastError, InvalidError, NotFoundError, UnavailableError
from holdfast.launchers import ENDED, LAUNCHING, OUTPUT, RUNNING, STARTED, WORK
from holdfast.launchers.records import Records, environment_of, probe_of
from holdfast.runs import Launched, LaunchSpec, Logs, Phase, Probe
from holdfast.values import shown

RUN_PLUGIN: Final = (sys.executable, "-c", "from holdfast.cli.run_plugin import main; main()", "--read_args_from_env")
"""``run_plugin``, as this interpreter has it."""

PASSED: Final = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")
"""What a launched process has of the environment of who launched it."""

_MARK: Final = "HOLDFAST_LAUNCH"
"""The variable by which all that a launched process began is known, unless it takes care not to be: its folder."""

_KILL_S: Final = 5.0
_LAUNCH_S: Final = 10.0
"""Longer than it takes to launch a process."""
_LOG_BYTES: Final = 2**20
_LATER: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO})


class ProcessLauncher:
    """A `Launcher` of processes: each in a session of its own, with an environment of its own, under limits.

    When a process has ended, all that it began is killed, on Linux also what went away from it into a session of its
    own. Elsewhere that is left, and limits are those of the system (setrlimit(2)).

    Args:
        folder: Where it keeps what it knows; made with the first launch. Each that is there has a folder in it.
        command: What is started where a `LaunchSpec` does not say.
        passed: The names of what a process gets of this process's environment.
        is_auth_in_file: Whether it finds what opens the Pod in a file; else in its environment.
        cwd: The folder that it begins in; None: an empty one of its own.
        disk: The file system.
    """

    def __init__(
        self,
        folder: StrPath,
        *,
        command: Sequence[str] = RUN_PLUGIN,
        passed: Sequence[str] = PASSED,
        is_auth_in_file: bool = True,
        cwd: StrPath | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._records = Records(folder, disk)
        self._own_command = tuple(command)
        self._passed = tuple(passed)
        self._is_auth_in_file = is_auth_in_file
        self._cwd = None if cwd is None else Path(cwd).absolute()
        self._parent: Sequence[str] = (sys.executable, "-S", "-P", "-m", "holdfast.launchers.parent")

    def command(self, spec: LaunchSpec) -> Sequence[str]:
        """Return what is started for a run.

        Raises:
            NotFoundError: There is no such thing.
        """
        return spec.command or self._own_command

    def launch(self, spec: LaunchSpec) -> str:
        """As `Launcher` says."""
        with self._records.launching(spec) as folder:
            if not (folder / STARTED).exists():
                self._start(spec, folder, list(self.command(spec)))
        return spec.name

    def _start(self, spec: LaunchSpec, folder: Path, command: list[str]) -> None:
        auth = self._records.put_auth(folder, spec) if self._is_auth_in_file else None
        if self._cwd is None:
            self._records.disk.put_folder(folder / WORK)
        job = {
            "command": command,
            "environment": {**environment_of(spec, self._passed, auth), _MARK: str(folder)},
            "cwd": str(self._cwd or folder / WORK),
            "limits": asdict(spec.limits),
        }
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        try:
            with (
                open(folder / OUTPUT, "ab", opener=lambda path, _: os.open(path, flags, 0o600)) as output,
                subprocess.Popen(  # noqa: S603 -- our own program
                    [*self._parent, str(folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    cwd=folder,
                    env={"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
                    start_new_session=True,
                ) as parent,
            ):
                answer = _answer(parent)
                if "ready" in answer:
                    answer = _answer(parent, json.dumps(job).encode() + b"\n")
        except OSError as exc:
            raise UnavailableError(f"{spec.name!r} cannot be launched now: {exc}", name=spec.name) from exc
        if "started" not in answer:
            raise _failure(spec.name, command, answer)

    def probe(self, name: str) -> Probe:
        """As `Launcher` says."""
        folder = self._records.path(name)
        try:
            # In this order: who has started and is not running any more has ended.
            is_launching = self._records.is_locked(folder / LAUNCHING)
            is_started = (folder / STARTED).exists()
            if self._records.is_locked(folder / RUNNING) or (is_launching and not is_started):
                return Probe(Phase.RUNNING)
            ended = self._records.read(folder / ENDED)
        except MissingError:
            return Probe(Phase.GONE)
        except HoldfastError as exc:
            return Probe(Phase.UNKNOWN, str(exc))
        return probe_of(ended) if is_started or ended else Probe(Phase.GONE)

    def stop(self, name: str, grace_s: float) -> None:
        """As `Launcher` says."""
        folder = self._records.path(name)
        try:
            with suppress(BusyError):  # that is what runs itself, then, and shall not be in its own way
                self._records.wait_for_launch(name, wait_s=_LAUNCH_S)
            for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGUSR1, _KILL_S), (signal.SIGKILL, _KILL_S)):
                self._signal(folder, number)
                with suppress(BusyError):
                    self._records.disk.lock(folder / RUNNING, shared=True, wait_s=patience_s).release()
                    break
            _kill_marked(folder)
            if self._records.is_locked(folder / RUNNING):
                raise _unkillable(name)
        except MissingError:
            return

    def _signal(self, folder: Path, number: int) -> None:
        """Send a signal to what looks after the process, and to no other that has its number: it has the lock."""
        parent = self._records.read(folder / STARTED).get("parent")
        if not isinstance(parent, int) or parent <= 1:
            return
        try:
            with suppress(ProcessLookupError), _handle(parent) as handle:
                if self._records.is_locked(folder / RUNNING):
                    _send(handle, number)
        except OSError as exc:
            raise UnavailableError(f"{folder.name!r} cannot be stopped: {exc}", name=folder.name) from exc

    def delete(self, name: str) -> None:
        """As `Launcher` says."""
        self.stop(name, 0)
        self._records.delete(name)

    def logs(self, name: str, after: str = "") -> Logs:
        """As `Launcher` says."""
        path = self._records.path(name) / OUTPUT
        if not (after.isascii() and after.isdecimal()) and after:
            message = f"the log of {name!r} has nothing after {shown(after)}: what its last part said is expected"
            raise InvalidError(message, name=name)
        at = int(after or "0")
        try:
            with self._records.disk.open_blocks(path, is_cached=True) as blocks:
                buffer = bytearray(_LOG_BYTES)
                found = blocks.read(memoryview(buffer), at)
        except MissingError:
            return Logs(b"", after)
        return Logs(bytes(buffer[:found]), str(at + found))

    def list(self) -> Sequence[Launched]:
        """As `Launcher` says."""
        return self._records.list()


def _answer(parent: subprocess.Popen[bytes], line: bytes = b"") -> dict[str, Any]:
    """Return what the program answers to a line, or says first; nothing if it has ended."""
    assert parent.stdin is not None  # noqa: S101 -- for the checker
    assert parent.stdout is not None  # noqa: S101
    with suppress(BrokenPipeError):
        parent.stdin.write(line)
        parent.stdin.flush()
    return json.loads(parent.stdout.readline() or b"{}")


def _failure(name: str, command: Sequence[str], answer: Mapping[str, Any]) -> HoldfastError:
    failed = answer.get("failed")
    if failed is None:
        reason = answer.get("unavailable", "what was to look after it has ended; its log says why")
        return UnavailableError(f"{name!r} cannot be launched now: {reason}", name=name)
    where = failed["where"] or ""
    where = "" if where.endswith(command[0]) else f" ({where!r})"
    message = f"{command[0]!r} cannot be started: {failed['reason']}{where}"
    if failed["errno"] in _LATER:
        return UnavailableError(message, name=name)
    kind = NotFoundError if failed["errno"] == errno.ENOENT else InvalidError
    return kind(message, name=name)


def _unkillable(name: str) -> UnavailableError:
    return UnavailableError(f"{name!r} was killed and runs on: look at its processes", name=name)


@contextmanager
def _handle(pid: int) -> Generator[int]:
    """Yield what stands for a process and for no later one of its number; where there is none such, the number."""
    if sys.platform != "linux":
        yield pid
        return
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _send(handle: int, number: int) -> None:
    if sys.platform == "linux":
        signal.pidfd_send_signal(handle, number)
    else:
        os.kill(handle, number)


def _kill_marked(folder: Path) -> None:
    """Kill what a launch began and nobody looks after any more; where processes can be asked for their environment."""
    mark = f"{_MARK}={folder}".encode()
    is_clean = sys.platform != "linux"
    while not is_clean:
        is_clean = True
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError), _handle(int(environ.parent.name)) as handle:  # it has ended, or is another user's
                if mark in environ.read_bytes().split(b"\0"):
                    is_clean = False
                    _send(handle, signal.SIGKILL)
                    if not select.select([handle], [], [], _KILL_S)[0]:
                        raise _unkillable(folder.name)
