"""The snapshots of one run: restored before it works, taken on its way, pointed to when they are durable.

The failure argument. *The process dies before a snapshot has its name*: nothing is to be seen, and what was begun is
swept. *Between name and pointer*: nobody points to the directory, so nobody restores it, and the next run deletes it.
*Between pointer and mark*: the pointer says enough, and the next run adds the mark. *Another run has taken over*: the
pointer is moved by a fenced write, so a snapshot that is completed too late is never pointed to, hence never marked,
and never restored. *The snapshot that is pointed to is damaged*: the newest one of those that were pointed to before
takes its place, and its variables theirs, in one fenced write.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from holdfast.disk import Disk, ExistsError, MissingError
from holdfast.engine.migrating import OURS, put_variables, put_version
from holdfast.errors import DamagedError, FencedError, HoldfastError, NotFoundError, PluginError
from holdfast.plugins import StatefulPlugin
from holdfast.pod import Pod
from holdfast.snapshots.manifest import read_manifest
from holdfast.snapshots.reading import verify
from holdfast.snapshots.removal import Candidate, Decision, find_candidates, remove
from holdfast.snapshots.saving import Save, StateStore
from holdfast.store import PointSnapshot, SetVariable
from holdfast.values import Value

_log: Final = logging.getLogger(__name__)

_MARK: Final = Path(".snap", "pointed")
"""In a snapshot that a plugin state has pointed to: the others are garbage."""

_EARLIER: Final = "snapshots"
_MAX_EARLIER: Final = 20

_TRIES: Final = 3
"""On the way out: the first may tell what went wrong with the snapshot before, and the second tell it again."""


class Saving:
    """Saves and restores what a plugin registered in its `setup`.

    Args:
        plugin: Whose objects.
        state: The id of its plugin state.
        folder: Where the snapshots of this plugin state lie.
        client: What reaches the Pod, with the run's fence.
        disk: Where ``folder`` lies.
    """

    def __init__(
        self, plugin: StatefulPlugin, *, state: str, folder: Path, client: Pod, disk: Disk | None = None
    ) -> None:
        self._state = state
        self._folder = folder
        self._client = client
        self._disk = disk or Disk()
        self._version = plugin.state_version
        self._disk.put_folder(folder)
        self._store = StateStore(folder, disk=self._disk)
        self._registered = dict(plugin.snapshots.registered)
        for name, each in self._registered.items():
            self._store.register(name, each)
        # Conditions count and remember: one that stands on the class is everybody's.
        self._condition = copy.deepcopy(plugin.snapshot_condition())
        self._condition.reset()
        self._keeper = plugin.snapshot_keeper(folder)
        self._keeper.protected = self._protected
        self._keeper.disk = self._disk
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._is_wanted = False
        self._began_at_ns = time.time_ns()

    def restore(self) -> bool:
        """Load the snapshot that the plugin state points to, if it points to one.

        Returns:
            False if that one is damaged: then the plugin state is now as it was with an earlier one, its variables
            included, and the plugin has to be set up anew.

        Raises:
            DamagedError: There is no earlier one that is whole.
            NotFoundError: It does not hold what is registered, though it is of this ``state_version``.
            Exception: What an object of the plugin raised.
        """
        pointed = self._client.find_snapshot(self._state)
        self._forget_unpointed(pointed)
        if pointed is None:
            return True
        path = self._folder / pointed
        try:
            self._load(path)
        except (DamagedError, FileNotFoundError) as exc:
            if not _is_damaged(path, self._disk):  # then it is an object of the plugin that says so, of something else
                raise
            self._fall_back(path, exc)
            return False
        _mark(path, self._disk)  # whoever pointed to it may have died before
        _log.info("snapshot.restored", extra={"state": self._state, "snapshot": pointed})
        return True

    def _load(self, path: Path) -> None:
        """Load a snapshot; what it does not hold stays as it was set up, if it is of an older version."""
        manifest = read_manifest(path, disk=self._disk)
        missing = [name for name in self._registered if name not in manifest.objects]
        if not missing:
            self._store.load_state(path)
            return
        facts = {"state": self._state, "snapshot": path.name, "missing": missing}
        if cast("int", manifest.attached["state_version"]) >= self._version:
            message = (
                f"snapshot {path.name!r} does not hold {', '.join(map(repr, missing))}: give the class a greater "
                "state_version if that is new"
            )
            raise NotFoundError(message, **facts)
        _log.warning("snapshot.lacks", extra=facts)
        with StateStore(self._folder, disk=self._disk) as store:
            for name, each in self._registered.items():
                if name not in missing:
                    store.register(name, each)
            store.load_state(path)

    def at_safe_point(self) -> None:
        """Take a snapshot if the condition says so; it is written, and pointed to, in the background.

        Inside a transaction none is taken: what it has written so far may still be discarded.

        Raises:
            HoldfastError: The last snapshot could not be saved.
        """
        if self._condition():
            self._is_wanted = True
        if self._client.block is not None:
            return
        if self._thread is not None and not self._thread.is_alive():
            self._settle()
        if self._is_wanted and self._thread is None:
            self._is_wanted = False
            self._begin()

    def save(self) -> None:
        """Take a snapshot now, and return when the plugin state points to it."""
        self._settle()
        self._begin()
        self._settle()

    def save_if_it_can_be(self) -> None:
        """Take a snapshot, as `save` does; but on the way out it is not worth an error, and no open block is in it."""
        if self._client.block is not None:
            return
        for _ in range(_TRIES):
            try:
                self.save()
            except Exception as exc:  # noqa: BLE001 -- what a plugin's objects raise as well
                self._say_lost(exc)
            else:
                return

    def close(self) -> None:
        """Wait until the snapshot that is being saved is pointed to: it is good, however the run ended."""
        for each in (self._settle, self._store.close):
            try:
                each()
            except Exception as exc:  # noqa: BLE001 -- as above
                self._say_lost(exc)

    def _say_lost(self, exc: Exception) -> None:
        reason = f"{type(exc).__name__}: {exc}"
        _log.warning("snapshot.lost", extra={"state": self._state, "reason": reason})

    def _begin(self) -> None:
        try:
            save = self._store.save_state_async(attached=self._attached())
        except SystemExit as exc:
            raise PluginError("an object ended the program instead of returning its state") from exc
        self._thread = threading.Thread(target=self._complete, args=(save,), name="snapshot", daemon=True)
        self._thread.start()

    def _settle(self) -> None:
        """Wait for the snapshot that is being saved, if there is one."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
            error, self._error = self._error, None
            if error is not None:
                raise error

    def _complete(self, save: Save) -> None:
        """In the background: wait until the snapshot is durable, point to it, and let the keeper look."""
        try:
            path = save.result()
            earlier = [name for name in self._earlier() if name != path.name]
            with self._client.transaction():
                self._client.add(PointSnapshot(self._state, path.name))
                self._put_earlier([path.name, *earlier])
            _mark(path, self._disk)
        except FencedError as exc:  # the runner learns it by itself, and says it better
            self._say_lost(exc)
            return
        except Exception as exc:  # noqa: BLE001 -- a thread has nobody to raise to: the next safe point does
            self._error = exc
            return
        facts = {"state": self._state, "snapshot": path.name}
        _log.info("snapshot.taken", extra={**facts, "stall_s": round(save.stall_s, 6)})
        try:
            self._keeper.append(path)
            self._keeper.cleanup()
        except Exception as exc:  # noqa: BLE001 -- nothing was lost: what is there too long goes another time
            _log.warning("snapshot.not_cleaned", extra={**facts, "reason": f"{type(exc).__name__}: {exc}"})

    def _earlier(self) -> list[str]:
        """Return which snapshots the plugin state pointed to, the last one first: the Pod knows, and no clock."""
        text = self._client.variables(self._state, OURS).get(_EARLIER)
        found = cast("list[str]", json.loads(text)) if isinstance(text, str) else []
        # A plugin may write there: none leads out of the folder.
        return [name for name in found if Path(name).name == name and name not in {"", ".."}]

    def _put_earlier(self, names: list[str]) -> None:
        self._client.add(SetVariable(self._state, _EARLIER, json.dumps(names[:_MAX_EARLIER]), OURS))

    def _attached(self) -> dict[str, Any]:
        return {"state_version": self._version, "variables": dict(self._client.variables(self._state))}

    def _protected(self) -> tuple[str, ...]:
        pointed = self._client.find_snapshot(self._state)
        return () if pointed is None else (pointed,)

    def _forget_unpointed(self, pointed: str | None) -> None:
        """Delete what nobody ever pointed to: snapshots of processes that died, or lost the plugin state, too early.

        What is younger than this run is left alone: if this process slept, it is that of whoever has taken over.
        """
        for each in find_candidates(self._folder):
            if each.path.name != pointed and not _is_marked(each) and each.created_at_ns < self._began_at_ns:
                remove(Decision(each.path, True, "nobody has ever pointed to it", each.seen), disk=self._disk)
                _log.info("snapshot.forgotten", extra={"state": self._state, "snapshot": each.path.name})

    def _fall_back(self, damaged: Path, reason: Exception) -> None:
        earlier = self._earlier()
        if damaged.name in earlier:
            earlier = earlier[earlier.index(damaged.name) + 1 :]
        for at, name in enumerate(earlier):
            path = self._folder / name
            if _is_damaged(path, self._disk):
                continue
            attached = read_manifest(path, disk=self._disk).attached
            with self._client.transaction():
                put_variables(self._client, self._state, cast("Mapping[str, Value]", attached["variables"]))
                put_version(self._client, self._state, cast("int", attached["state_version"]))
                self._client.add(PointSnapshot(self._state, path.name))
                self._put_earlier(earlier[at:])
            _log.warning(
                "snapshot.fell_back",
                extra={"state": self._state, "snapshot": path.name, "damaged": damaged.name, "reason": str(reason)},
            )
            with suppress(MissingError, ExistsError):
                self._disk.rename(damaged, damaged.with_name(f".bad-{damaged.name}"))
            return
        message = (
            f"snapshot {str(damaged)!r} cannot be restored, and there is no earlier one that is whole: bring it back "
            f"from a backup, or begin anew with another plugin state ({reason})"
        )
        raise DamagedError(message, path=str(damaged)) from reason


def _mark(path: Path, disk: Disk) -> None:
    with suppress(ExistsError):
        disk.create(path / _MARK, b"")


def _is_marked(candidate: Candidate) -> bool:
    return (candidate.path / _MARK).exists()


def _is_damaged(path: Path, disk: Disk) -> bool:
    try:
        return bool(verify(path, disk=disk))
    except HoldfastError:  # a manifest that cannot be read, or gone meanwhile
        return True
