"""A launcher of processes on this machine, which outlive who launched them.

Hides how they are found again: by a folder for each, made before it is started (`records`), and a lock in it that is
held while anything of it runs, by a small program beside it (`parent`). What it cannot do is protect the user: a plugin
may read what this user may read, and end what this user may end, that program and this one included.

A number in a note is no reason to end a process, for a plugin can write one, and the system gives it to others: what
is signalled is asked what it is. *The program beside it is killed*: what is left is found by a variable that it has
inherited, or by the log that it writes to; who takes care to have neither is not found.

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
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from holdfast.disk import BusyError, Disk, MissingError, StrPath
from holdfast.errors import HoldfastError, InvalidError, NotFoundError, UnavailableError
from holdfast.launchers import ENDED, LAUNCHING, OUTPUT, RUNNING, STARTED, WORK
from holdfast.launchers.records import UNUSABLE, Records, environment_of, probe_of
from holdfast.runs import Launched, LaunchSpec, Logs, Phase, Probe
from holdfast.values import shown

RUN_PLUGIN: Final = (sys.executable, "-c", "from holdfast.cli.run_plugin import main; main()", "--read_args_from_env")
"""``run_plugin``, as this interpreter has it."""

PASSED: Final = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")
"""What a launched process has of the environment of who launched it."""

_PARENT: Final = "holdfast.launchers.parent"
_PARENT_PASSED: Final = ("LD_LIBRARY_PATH", "PYTHONHOME")
"""What it takes to run this interpreter, which some have in places of its own."""

_MARK: Final = "HOLDFAST_LAUNCH"
"""The variable by which all that a launched process began is known, unless it takes care not to be: its folder."""

_KILL_S: Final = 5.0
_LAUNCH_S: Final = 10.0
"""Longer than it takes to launch a process."""
_LOG_BYTES: Final = 2**20
_LOG_DIGITS: Final = 18
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
        self._parent: Sequence[str] = (sys.executable, "-S", "-P", "-m", _PARENT)

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
                    env={
                        **{name: os.environ[name] for name in _PARENT_PASSED if name in os.environ},
                        "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
                    },
                    start_new_session=True,
                ) as parent,
            ):
                answer = _answer(parent)
                if "ready" in answer:
                    answer = _answer(parent, json.dumps(job).encode() + b"\n")
                if "started" not in answer and parent.stdout is not None:
                    parent.stdout.read()  # to its end, which is that of the program: nothing looks as if it ran
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
            is_started, ended = False, {}
        except HoldfastError as exc:
            return Probe(Phase.UNKNOWN, str(exc))
        if not ended:  # nobody saw to it that nothing is left
            try:
                if any(True for _ in _each(folder, _is_of)):
                    return Probe(Phase.RUNNING)
            except OSError as exc:
                return Probe(Phase.UNKNOWN, f"processes cannot be looked at: {exc}")
        return probe_of(ended) if is_started or ended else Probe(Phase.GONE)

    def stop(self, name: str, grace_s: float) -> None:
        """As `Launcher` says."""
        folder = self._records.path(name)
        try:
            self._records.wait_for_launch(name, wait_s=_LAUNCH_S)
        except BusyError as exc:  # by what runs itself, perhaps, which shall not be in its own way
            self._end(folder, grace_s)
            with suppress(*UNUSABLE):
                if not (folder / STARTED).exists() and self._records.is_locked(folder / LAUNCHING):
                    message = f"{name!r} cannot be stopped while it is launched or deleted: stop it later"
                    raise UnavailableError(message, name=name) from exc
        else:
            self._end(folder, grace_s)

    def _end(self, folder: Path, grace_s: float) -> None:
        """Let nothing of a launch run; what has lost its folder is not asked first."""
        try:
            for patience_s, number in ((0, signal.SIGTERM), (grace_s, signal.SIGUSR1), (_KILL_S, signal.SIGKILL)):
                if self._is_free(folder, patience_s):
                    break
                self._signal(folder, number)
            _kill(folder)
        except HoldfastError:  # some of ours are an OSError as well
            raise
        except OSError as exc:
            raise UnavailableError(f"{folder.name!r} cannot be stopped: {exc}", name=folder.name) from exc
        if not self._is_free(folder, _KILL_S):
            raise _unkillable(folder.name)

    def _is_free(self, folder: Path, wait_s: float) -> bool:
        """Say whether nothing looks after a launch any more, some seconds later at the latest."""
        try:
            with suppress(*UNUSABLE):
                self._records.disk.lock(folder / RUNNING, shared=True, wait_s=wait_s).release()
        except BusyError:
            return False
        return True

    def _signal(self, folder: Path, number: int) -> None:
        """Send a signal to what looks after the process; where nobody can be asked what he is, to who is noted."""
        if sys.platform == "linux":
            for handle in _each(folder, _looks_after):
                _send(handle, number)
            return
        parent = self._records.read(folder / STARTED).get("parent")
        if isinstance(parent, int) and parent > 1:
            _send(parent, number)

    def delete(self, name: str) -> None:
        """As `Launcher` says."""
        self.stop(name, 0)
        with self._records.deleting(name):  # it may have been launched since
            self._end(self._records.path(name), 0)

    def logs(self, name: str, after: str = "") -> Logs:
        """As `Launcher` says; no part ends within a character of UTF-8, unless that is all there is."""
        path = self._records.path(name) / OUTPUT
        if after and not (after.isascii() and after.isdecimal() and len(after) <= _LOG_DIGITS):
            message = f"the log of {name!r} has nothing after {shown(after)}: what its last part said is expected"
            raise InvalidError(message, name=name)
        at = int(after or "0")
        try:
            with self._records.disk.open_blocks(path, is_cached=True) as blocks:
                buffer = bytearray(_LOG_BYTES)
                found = blocks.read(memoryview(buffer), at)
        except MissingError:
            return Logs(b"", after)
        found -= _incomplete(buffer[:found])
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
    where = "" if not where or where.endswith(command[0]) else f" ({where!r})"
    message = f"{command[0]!r} cannot be started: {failed['reason']}{where}"
    if failed["errno"] in _LATER:
        return UnavailableError(message, name=name)
    kind = NotFoundError if failed["errno"] == errno.ENOENT else InvalidError
    return kind(message, name=name)


def _unkillable(name: str) -> UnavailableError:
    return UnavailableError(f"{name!r} cannot be killed and runs on: look at its processes", name=name)


def _incomplete(data: bytes | bytearray) -> int:
    """Return how many bytes at the end begin a character that is not all there; 0 if there is nothing before them."""
    for size in range(1, min(4, len(data))):
        first = data[-size]
        if first & 0xC0 != 0x80:  # of a character, whose length it says
            length = sum(first >= least for least in (0xC0, 0xE0, 0xF0)) + 1 if first < 0xF8 else 1
            return size if size < length else 0
    return 0


def _each(folder: Path, belongs: Callable[[Path, Path], bool]) -> Generator[int]:
    """Yield a handle of each process that belongs to a launch; none where processes cannot be asked what they are.

    As long as it is open, it stands for that process and for no later one of its number.
    """
    if sys.platform != "linux":
        return
    for place in Path("/proc").glob("[0-9]*"):
        if not belongs(place, folder):
            continue
        try:
            fd = os.pidfd_open(int(place.name))
        except ProcessLookupError:
            continue
        try:
            if belongs(place, folder):  # still: the number may have become another's
                yield fd
        finally:
            os.close(fd)


def _is_of(place: Path, folder: Path) -> bool:
    """Whether a process is of a launch: it looks after it, has its mark, or writes to its log."""
    mark, log = os.fsencode(f"{_MARK}={folder}"), str(folder / OUTPUT)
    with suppress(OSError):  # it has ended, or is another user's; as below
        if mark in (place / "environ").read_bytes().split(b"\0"):
            return True
    for number in ("1", "2"):
        with suppress(OSError):
            if str((place / "fd" / number).readlink()).removesuffix(" (deleted)") == log:
                return True
    return _looks_after(place, folder)


def _looks_after(place: Path, folder: Path) -> bool:
    with suppress(OSError):
        return (place / "cmdline").read_bytes().split(b"\0")[-3:-1] == [_PARENT.encode(), os.fsencode(folder)]
    return False


def _send(handle: int, number: int) -> None:
    with suppress(ProcessLookupError):
        if sys.platform == "linux":
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(handle, number)


def _kill(folder: Path) -> None:
    """Kill what is left of a launch, and return when none of it is."""
    until = time.monotonic() + _KILL_S
    is_clean = False
    while not is_clean:
        is_clean = True
        for handle in _each(folder, _is_of):
            is_clean = False
            _send(handle, signal.SIGKILL)
            ended = select.poll()
            ended.register(handle, select.POLLIN)
            if not ended.poll(max(0.0, until - time.monotonic()) * 1000):
                raise _unkillable(folder.name)
