"""What is noted on disk of each launch, before it is made: a folder with its name, and a lock for who is about it.

::

    NAME/launch.json    what it was made for: {"owner": …, "state": …, "run": …, "epoch": …}
    NAME/launching      the lock of who launches or deletes it
    NAME/auth.json      what opens the Pod for it, mode 0400
    NAME/started.json   that a process was started, and which one looks after it: {"parent": 4711}
    NAME/running        the lock of that one
    NAME/ended.json     how it ended, {"code": 0} or {"signal": 9}; or why it could not be started, {"failed": "…"}
    NAME/output.log     what it wrote
    NAME/work           where it begins, if nobody said

A folder comes and goes in one step, so that it is there with its first note or not at all. A process can change what
is in its own; what is damaged there is taken for missing, and is of no consequence to other launches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final, cast

from holdfast.disk import BusyError, Disk, ExistsError, MissingError, StrPath
from holdfast.errors import DeniedError, HoldfastError, InvalidError, UnavailableError
from holdfast.launchers import AUTH, ENDED, LAUNCH, LAUNCHING
from holdfast.runs import Launched, LaunchSpec, Phase, Probe, check_launch_name, check_launch_spec, launch_name

_WAIT_S: Final = 30.0
_ATTEMPTS: Final = 16
_EPOCH_DIGITS: Final = 19  # of 63 bits

UNUSABLE: Final = (MissingError, DeniedError, InvalidError)
"""What the disk says of a folder that is gone, or that who was launched has shut or damaged."""


class Records:
    """The notes of all launches in a folder, which is made with the first; for any number of threads and processes."""

    def __init__(self, folder: StrPath, disk: Disk | None = None) -> None:
        self.folder = Path(os.path.realpath(folder))  # what is launched is known by it, however it is spelled
        self.disk = disk or Disk()

    def path(self, name: str) -> Path:
        """Return the folder of a launch, which need not be there.

        Raises:
            InvalidError: Nothing can be called so.
        """
        return self.folder / check_launch_name(name)

    @contextmanager
    def launching(self, spec: LaunchSpec) -> Generator[Path]:
        """Note a launch, if it is not noted, and yield its folder; nobody else launches or deletes it in the block.

        What the block raises because there is no such thing to launch, or it cannot be launched so, is noted too.
        """
        path = self.path(spec.name)
        for _ in range(_ATTEMPTS):
            with suppress(MissingError):  # it is deleted at the same time
                if not path.is_dir():
                    self._note(path, spec)
                lock = self.disk.lock(path / LAUNCHING, wait_s=_WAIT_S)
                break
        else:
            raise UnavailableError(f"launch {spec.name!r} is deleted again and again: launch it later", name=spec.name)
        with lock:
            try:
                check_launch_spec(spec)
                yield path
            except HoldfastError as exc:
                if not isinstance(exc, UnavailableError):
                    self.disk.replace(path / ENDED, json.dumps({"failed": str(exc)}).encode())
                raise

    def _note(self, path: Path, spec: LaunchSpec) -> None:
        facts = json.dumps({"owner": spec.owner, "state": spec.state, "run": spec.run, "epoch": spec.epoch})
        self.disk.put_folder(self.folder)
        with self.disk.temporary_folder(self.folder) as place:
            self.disk.write({place / LAUNCH: facts.encode()}, folders=[place])
            with suppress(ExistsError):  # another was faster
                self.disk.rename(place, path)

    def wait_for_launch(self, name: str, *, wait_s: float = _WAIT_S) -> None:
        """Return when nobody is about to launch or delete this, or there is no such launch.

        Raises:
            BusyError: Somebody still is after so many seconds; an image is fetched, perhaps.
        """
        path = self.path(name)
        with suppress(*UNUSABLE):
            self.disk.lock(path / LAUNCHING, shared=True, wait_s=wait_s).release()

    @contextmanager
    def deleting(self, name: str) -> Generator[None]:
        """Let nothing be left of the notes of a launch after the block, in which nobody else launches or deletes it.

        Nothing happens if there are none. What the block raises keeps them.
        """
        path = self.path(name)
        lock: AbstractContextManager[object] = nullcontext()
        is_there = True
        try:
            lock = self.disk.lock(path / LAUNCHING, wait_s=_WAIT_S)
        except MissingError:
            is_there = False
        except (DeniedError, InvalidError):  # then nobody can launch it either
            pass
        with lock:
            yield
            if is_there:
                self.disk.delete(path)

    def put_auth(self, path: Path, spec: LaunchSpec) -> str:
        """Put what opens the Pod for a launch into a file that only this user may read, and return where that is."""
        self.disk.replace(path / AUTH, spec.auth.encode(), mode=0o400)
        return str(path / AUTH)

    def is_locked(self, path: Path) -> bool:
        """Say whether somebody has a lock for himself.

        Raises:
            MissingError: There is no folder for it.
        """
        try:
            self.disk.lock(path, shared=True).release()
        except BusyError:
            return True
        return False

    def read(self, path: Path) -> dict[str, Any]:
        """Return the JSON object in a file; an empty one if it is not there, or something else."""
        try:
            found: object = json.loads(self.disk.read(path))
        except (MissingError, ValueError, RecursionError):
            found = None
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}

    def list(self) -> Sequence[Launched]:
        """Return all launches that are noted, by name; one whose note is damaged, or shut, is one for nobody."""
        try:
            self.disk.sweep(self.folder)
        except MissingError:
            return []
        names = sorted(
            each.name for each in self.folder.iterdir() if launch_name.fullmatch(each.name) and each.is_dir()
        )
        found = {name: self._facts(name) for name in names}
        # What has no facts may have been deleted since it was found.
        return [launched(name, facts) for name, facts in found.items() if facts or (self.folder / name).is_dir()]

    def _facts(self, name: str) -> dict[str, Any]:
        try:
            return self.read(self.folder / name / LAUNCH)
        except (DeniedError, InvalidError):
            return {}


def launched(name: str, facts: Mapping[str, object]) -> Launched:
    """Return a launch by what was noted of it; where something is missing, it is for nobody."""
    owner, state, run, epoch = (str(facts.get(each, "")) for each in ("owner", "state", "run", "epoch"))
    is_epoch = epoch.isdecimal() and len(epoch) <= _EPOCH_DIGITS
    return Launched(name=name, owner=owner, state=state, run=run, epoch=int(epoch) if is_epoch else 0)


def environment_of(spec: LaunchSpec, passed: Sequence[str], auth: str | None) -> dict[str, str]:
    """Return all that a launched run finds in its environment.

    Args:
        spec: The run.
        passed: The names of what it has of this process's own environment, as far as it is there.
        auth: The file with what opens the Pod, as the run sees it; None: it has that in the environment itself.
    """
    return {
        **{name: os.environ[name] for name in passed if name in os.environ},
        **spec.environment,
        "POD_FULL_ADDRESS": spec.address,
        "POD_OWNER": spec.owner,
        "POD_PLUGINRUN_ID": spec.run,
        "POD_TARGET_ITEM": json.dumps({"id": spec.run}),
        **({"POD_AUTH_JSON": spec.auth} if auth is None else {"POD_AUTH_FILE": auth}),
    }


def probe_of(ended: Mapping[str, object]) -> Probe:
    """Return what became of a launch that ended so; what is not sure did not end well."""
    match ended:
        case {"failed": str() as reason}:
            return Probe(Phase.FAILED, reason)
        case {"code": 0}:
            return Probe(Phase.GONE)
        case {"code": int() as code}:
            return Probe(Phase.FAILED, f"it ended with exit code {code}")
        case {"signal": int() as number}:
            by = "by hand, or by the system for want of memory" if number == 9 else "by hand, or by a fault of its own"
            return Probe(Phase.FAILED, f"it was ended by signal {number}: {by}")
        case _:
            return Probe(Phase.FAILED, "it ended without a word: it was killed, or the machine was restarted")
