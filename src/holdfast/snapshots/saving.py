"""Saving the state of many objects at once, and bringing it back.

What an object must offer is one of two protocols. `PersistentStateMixin` writes its own files. The other, preferred,
needs no base class: ``get_state()`` returns a tree (see `holdfast.snapshots.tree`), ``set_state(tree)`` takes it back,
``state_version`` (an integer, 1 if absent) says how it is meant, and ``migrate_state(tree, from_version)`` turns an
older one into a tree of this version.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from blake3 import blake3

from holdfast.disk import Disk, ExistsError, MissingError, StrPath, translate
from holdfast.errors import ConflictError, DamagedError, HoldfastError, InvalidError, NotFoundError, UnavailableError
from holdfast.snapshots.capture import Staging
from holdfast.snapshots.commit import Base, Captured, Commit, Job, base_of, places_of
from holdfast.snapshots.manifest import CHUNK_BYTES, File, Manifest, check_entry, is_snapshot, read_manifest
from holdfast.snapshots.packs import WORKER_BYTES, Done, Work, Worker, write_pack
from holdfast.snapshots.reading import Fault, damaged, iter_file_faults, lock_path, read_chunks, reading
from holdfast.snapshots.removal import find_candidates, remember_valid
from holdfast.snapshots.tree import decode, encode
from holdfast.values import shown

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

MAX_NAME_BYTES: Final = 200
"""Of an object's or a snapshot's name; what is added to it must still fit into the 255 of most file systems."""

REMEMBERED_BYTES: Final = 2**20
"""From how much a cleanup does not read what this process has just saved; less is read faster than remembered."""


class PersistentStateMixin(ABC):
    """An object that writes its own state; see `StateStore`."""

    @abstractmethod
    def save_state(self, path: Path) -> None:
        """Write the state to ``path``: a new file, a new folder, or files whose names begin so (``path`` + ".pt").

        Nothing is there yet but what other objects have written. Whatever plain files and folders are there afterwards
        are the object's; links, pipes and devices are refused. Not durable: the store sees to that.
        """

    @abstractmethod
    def load_state(self, path: Path) -> None:
        """Take the state back from what `save_state` wrote to a path of the same name; do not change it."""


def save_pickle(value: object, path: StrPath) -> None:
    """Write any object to a new file, for `PersistentStateMixin.save_state`."""
    Path(path).write_bytes(pickle.dumps(value, protocol=5))


def load_pickle(path: StrPath) -> Any:
    """Return what `save_pickle` wrote. It runs whatever code the file names: only for files of your own."""
    return pickle.loads(Path(path).read_bytes())  # noqa: S301 – that is what it is for


class NotDoneError(UnavailableError, TimeoutError):
    """The snapshot is still being written; it goes on."""


class Save:
    """A snapshot that is being written, from `StateStore.save_state_async`.

    Attributes:
        stall_s: How many seconds the caller was kept: what came before the state was copied, and that.
    """

    stall_s: float = 0.0

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._is_done = threading.Event()
        self._path: Path | None = None
        self._error: BaseException | None = None
        self._through = 0
        self._total = 1
        self._begun = threading.Lock()

    def done(self) -> bool:
        """Return whether it is there, or has failed."""
        return self._is_done.is_set()

    def progress(self) -> float:
        """Return how much of it is written, from 0.0 to 1.0; 1.0 exactly if it is done."""
        return 1.0 if self.done() else min(0.99, self._through / self._total)

    def result(self, timeout: float | None = None) -> Path:
        """Return its directory once it is durable, waiting at most ``timeout`` seconds; None: for ever.

        Raises:
            NotDoneError: It takes longer (TimeoutError as well).
            HoldfastError: It failed; see `StateStore.save_state`. Each call raises it.
            ConflictError: This is a forked child; the parent writes it.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return cast("Path", self._path)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what it failed with, None if it did not; waits as `result` does, and raises as that if it must."""
        if self._pid != os.getpid() and not self.done():
            raise ConflictError(f"this snapshot is written by process {self._pid}, which this one was forked from")
        if not self._is_done.wait(timeout):
            raise NotDoneError(f"the snapshot is not written after {timeout} s; wait longer")
        return self._error


class _Running(Save):
    """The side of a `Save` that writes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._total = max(1, size)

    def run(self, work: Callable[[], Path]) -> None:
        """Do it, unless that has been begun already."""
        if not self._begun.acquire(blocking=False):
            return
        try:
            self._path = work()
        except BaseException as exc:  # noqa: BLE001 – whoever asks for the result gets it
            self._error = exc
        finally:
            self._is_done.set()

    def advance(self, size: int) -> None:
        self._through += size


class StateStore:
    """Saves and loads the state of many objects together: each snapshot has all of them, as of one moment.

    A snapshot is there whole or not at all, whatever happens, and is durable when its path is returned. Several
    threads may share one store; they take turns. What is called while the same thread saves, loads or closes already,
    as by a signal handler, or by an object that is being saved, raises ConflictError and does nothing. A child that
    was forked starts anew, with the same objects. One that is not closed is closed when it is forgotten, or the
    process ends.

    Each snapshot is later than all that are in the folder when the store saves there first, or that it has saved or
    loaded, even if the clock was set back: by a nanosecond in its manifest, and by a microsecond in its name if that
    is taken.

    Args:
        states_dir: The folder for snapshots; it is made with the first one.
        state_name_format: Their names, as for ``datetime.strftime``, in local time.
        barrier: Entered while the state is captured, and left before it is written: a lock that whoever changes state
            takes as well, or any context manager that can be entered again and again.
        disk: What the folder lies on.
        clock: Returns nanoseconds since 1970.
    """

    def __init__(
        self,
        states_dir: StrPath,
        state_name_format: str = "%Y-%m-%d_%H-%M-%S,%f.state",
        *,
        barrier: AbstractContextManager[Any] | None = None,
        disk: Disk | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.states_dir = Path(states_dir)
        self.state_name_format = state_name_format
        self._barrier = barrier or nullcontext()
        self._disk = disk or Disk()
        self._clock = clock
        self._objects: dict[str, Any] = {}
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        """Begin as a process that has saved and loaded nothing, as a forked child does."""
        self._pid = os.getpid()
        self._turn = threading.RLock()
        self._is_in_turn = False
        self._staging = Staging()
        self._worker: Worker | None = None
        self._base = Base()
        self._created_at_ns = 0
        self._is_swept = False
        self._in_flight: Save | None = None

    def register(self, name: str, state: object) -> None:
        """Save and load ``state`` under ``name`` from now on, the name of its entry in each snapshot.

        Raises:
            KeyError: The name is used (ConflictError as well).
            InvalidError: It is no name of a file, begins with a dot, or has more than 200 bytes; or ``state`` follows
                neither protocol.
        """
        _check_name(name, "an object")
        if name in self._objects:
            raise UsedNameError(f"{name!r} is registered already: give each object a name of its own")
        if not _is_tree(state) and not _writes_itself(state):
            expected = "get_state and set_state are expected, or save_state and load_state"
            raise InvalidError(f"{shown(state)} cannot be registered as {name!r}: {expected}")
        self._objects[name] = state

    def save_state(
        self, *, metrics: Mapping[str, float] | None = None, attached: Mapping[str, Any] | None = None
    ) -> Path:
        """Save all registered objects and return the new snapshot, durable.

        Args:
            metrics: Finite numbers to find it by.
            attached: JSON to keep with it.

        Raises:
            FileExistsError: Something has the snapshot's name (ConflictError as well).
            ConflictError: The store is closed, or this thread is using it already.
            InvalidError: A state, a metric or an attachment cannot be stored; the message says which, and where.
            UnavailableError: The disk is full, or fails; or there is no memory for a copy of the state.
            Exception: What an object raised. In each case nothing can be seen of the snapshot, but for one: if the
                flush of its name failed, it is there, whole, and may not outlive a power cut.
        """
        return self._in_turn(partial(self._save, metrics or {}, attached or {}, is_async=False)).result()

    def save_state_async(
        self, *, metrics: Mapping[str, float] | None = None, attached: Mapping[str, Any] | None = None
    ) -> Save:
        """Copy the state of all registered objects, and return; the snapshot is written in the background.

        One at a time: this waits for the one before. If that failed, its error is raised here, once, and nothing is
        saved; so it cannot stay unseen even if nobody asks its `Save`.

        Raises:
            Exception: As `save_state`, for what can be known by now.
        """
        return self._in_turn(partial(self._save, metrics or {}, attached or {}, is_async=True))

    def load_state(self, path: StrPath) -> None:
        """Give all registered objects their state back. All of the snapshot is verified before the first gets its own.

        A directory without a manifest, as older stores left them, cannot be verified: that is logged as a warning.

        Raises:
            FileNotFoundError: There is no such directory (NotFoundError as well).
            NotFoundError: It does not hold an object that is registered.
            DamagedError: It is not as it was written.
            InvalidError: A newer release, or a newer version of an object, wrote it; or it has no manifest, and what
                is registered takes a tree.
            RecursionError: This was called so deep that Python has no room left to read the tree.
            Exception: What an object raised; a note on it says which objects have their state by then.
        """
        self._in_turn(partial(self._load, Path(path)))

    def load_latest(self) -> Path | None:
        """Load the newest snapshot that is whole, and return it; None if there is none.

        Those that are damaged are renamed to ``.bad-<name>-<time>``, and that is logged as a warning. Where they
        cannot be, as on a file system that is read-only, they are passed over, which is logged as well.

        Raises:
            Exception: As `load_state`, except that a damaged snapshot is no error. What an object raises is one.
        """
        return self._in_turn(self._load_latest)

    def close(self) -> None:
        """Wait for the snapshot in flight, and give back memory and worker; nothing happens the second time.

        Raises:
            HoldfastError: The last snapshot of `save_state_async` failed, and no save has raised that since.
        """
        if not self._is_closed:
            self._in_turn(self._end)

    def _end(self) -> None:
        self._is_closed = True
        if self._worker is not None:
            self._worker.close()
        self._staging = Staging()
        self._raise_last()

    def _in_turn(self, act: Callable[[], _Result]) -> _Result:
        """Return what ``act`` returns, called while this thread has the store and nothing is in flight."""
        if self._pid != os.getpid():
            self._begin()
        with self._turn:
            if self._is_in_turn:
                raise ConflictError(
                    f"this thread is saving or loading already, with the store of {str(self.states_dir)!r}: do not do "
                    "so in a signal handler, where OnSignal says that it is time, nor in an object that is being saved"
                )
            try:
                self._is_in_turn = True
                if self._is_closed:
                    raise ConflictError(f"the store of {str(self.states_dir)!r} is closed: make another one")
                if self._in_flight is not None:
                    self._in_flight.exception()
                return act()
            finally:
                self._is_in_turn = False

    def _raise_last(self) -> None:
        """Raise what the last save in the background failed with, once."""
        before, self._in_flight = self._in_flight, None
        error = None if before is None else before.exception()
        if error is not None:
            raise error

    # -- saving --

    def _save(self, metrics: Mapping[str, float], attached: Mapping[str, Any], *, is_async: bool) -> Save:
        began_at = time.perf_counter()
        self._raise_last()
        with ExitStack() as stack, ExitStack() as barrier:
            disk = self._disk
            disk.put_folder(self.states_dir)
            if not self._is_swept:
                disk.sweep(self.states_dir)
                newest = find_candidates(self.states_dir)[:1]
                self._created_at_ns = max([self._created_at_ns, *(each.created_at_ns for each in newest)])
                self._is_swept = True
            folder = stack.enter_context(disk.temporary_folder(self.states_dir))
            barrier.enter_context(self._barrier)
            created_at_ns, target = self._choose_name()
            barrier.callback(self._staging.left.clear)  # so that nobody's memory is held on to, whatever happens
            objects, size = self._capture(folder)
            copied = self._copy_left(barrier)
            # Whoever waits anyway has what is copied written meanwhile. What an object wrote itself is of this moment.
            if is_async or self._staging.left_bytes < WORKER_BYTES or any(each.entries for each in objects.values()):
                deque(copied, 0)
            self._created_at_ns = created_at_ns
            job = Job(
                folder=folder,
                target=target,
                created_at_ns=created_at_ns,
                objects=objects,
                metrics=dict(metrics),
                attached=dict(attached),
            )
            save = _Running(size)
            commit = Commit(
                job,
                disk=disk,
                staging=self._staging,
                base=self._base,
                write_pack=partial(self._write_pack, copied),
                advance=save.advance,
            )
            leaving = stack.pop_all()

            def work() -> Path:
                with leaving:
                    self._base = commit.run()
                if self._base.size_bytes >= REMEMBERED_BYTES:
                    remember_valid(target)
                return target

            if is_async:
                save.stall_s = time.perf_counter() - began_at
                self._begin_writing(save, work, target.name)
            else:
                save.run(work)
                save.stall_s = time.perf_counter() - began_at
        return save

    def _begin_writing(self, save: _Running, work: Callable[[], Path], name: str) -> None:
        self._in_flight = save
        try:
            threading.Thread(target=save.run, args=(work,), name=f"save {name}").start()
        except BaseException as exc:
            save.run(work)  # unless it has been begun: whoever saves next waits for it
            if not isinstance(exc, RuntimeError):  # Python is ending and starts no more threads
                raise

    def _choose_name(self) -> tuple[int, Path]:
        """Return when the snapshot is made, which is later than the one before, and what it is called for that."""
        now = self._clock()
        created_at_ns = max(now, self._created_at_ns + 1)
        target = self._target(created_at_ns)
        while created_at_ns != now and os.path.lexists(target):
            created_at_ns = (created_at_ns // 1000 + 1) * 1000
            before, target = target, self._target(created_at_ns)
            if target == before:  # a format without so many digits
                break
        if os.path.lexists(target):
            raise ExistsError(f"{str(target)!r} is there already: choose a state_name_format that tells them apart")
        return created_at_ns, target

    def _target(self, created_at_ns: int) -> Path:
        at = datetime.fromtimestamp(created_at_ns // 1000 / 1e6)  # noqa: DTZ006 – names are for people, in their time
        name = at.strftime(self.state_name_format)
        _check_name(name, "a snapshot")
        return self.states_dir / name

    def _capture(self, folder: Path) -> tuple[dict[str, Captured], int]:
        """Return what was captured, and how many bytes of it are in staging."""
        trees = {name: encode(state.get_state(), name=name) for name, state in self._objects.items() if _is_tree(state)}
        objects = {
            name: Captured(skeleton=tree.skeleton, version=_version_of(name, self._objects[name]))
            for name, tree in trees.items()
        }
        self._staging.capture(trees)
        writers = {name: state for name, state in self._objects.items() if name not in objects}
        seen = _entries(folder) if writers else {}
        for name, state in writers.items():
            state.save_state(folder / name)
            now = _entries(folder)
            changed = [entry for entry, status in now.items() if seen.get(entry) != status]
            _check_entries(name, changed, taken=[*seen, *trees])
            objects[name] = Captured(entries=tuple(sorted(changed)))
            seen = now
        return {name: objects[name] for name in self._objects}, sum(tree.size for tree in trees.values())

    def _copy_left(self, barrier: ExitStack) -> Iterator[int]:
        yield from self._staging.copy_left()
        barrier.close()

    def _write_pack(self, copied: Iterator[int], work: Work, path: Path, advance: Callable[[int], object]) -> Done:
        with self._disk.open_blocks(path, create=True) as blocks:
            worker = self._find_worker() if len(work.chunks) * CHUNK_BYTES >= WORKER_BYTES else None
            if worker is None:
                deque(copied, 0)
                done = write_pack(self._staging.memory, work, blocks, advance)
            else:
                done = worker.write_pack(self._staging, work, blocks, advance, copied)
            blocks.flush()
            return done

    def _find_worker(self) -> Worker | None:
        if self._worker is not None and not self._worker.close.alive:
            self._worker = None
        if self._worker is None and Worker.is_possible(self._staging):
            try:
                self._worker = Worker()
            except OSError as exc:
                log.warning("snapshot.no_worker", extra={"reason": str(exc)})
        return self._worker

    # -- loading --

    def _load(self, path: Path) -> None:
        with reading(path, disk=self._disk):
            if is_snapshot(path):
                self._apply(path, self._read(path))
                return
            for name, state in self._objects.items():
                if _is_tree(state):
                    message = f"{str(path)!r} has no manifest, so there is no state for set_state of {name!r} in it"
                    raise InvalidError(f"{message}: load a snapshot that has one", path=str(path), object=name)
            log.warning("snapshot.not_verified", extra={"path": str(path), "reason": "it has no manifest"})
            self._apply(path, {})

    def _load_latest(self) -> Path | None:
        try:
            candidates = find_candidates(self.states_dir)
        except MissingError:
            return None
        for path in (candidate.path for candidate in candidates):
            with ExitStack() as stack:
                try:
                    stack.enter_context(reading(path, disk=self._disk))
                    trees = self._read(path)
                except MissingError:
                    continue  # removed meanwhile
                except DamagedError as exc:
                    problem = exc
                else:
                    self._apply(path, trees)
                    return path
            self._set_aside(path, problem)
        return None

    def _read(self, path: Path) -> dict[str, tuple[Any, int]]:
        """Return each tree of a snapshot, and its version, once all of it is verified."""
        disk = self._disk
        manifest = read_manifest(path, disk=disk)
        for name, state in self._objects.items():
            _check_loadable(path, manifest, name, state)
        for fault in iter_file_faults(path, manifest, disk=disk):
            raise damaged(path, fault)
        found = read_chunks(path, manifest, disk=disk)
        trees = {
            name: (self._decode(path, manifest, name, found[name].data), version)
            for name in self._objects
            if (version := manifest.objects[name].version) is not None
        }
        self._staging.believe(places_of(manifest, {name: each.digests for name, each in found.items()}))
        self._base = base_of(path, path, manifest)
        self._created_at_ns = max(self._created_at_ns, manifest.created_at_ns)
        return trees

    def _decode(self, path: Path, manifest: Manifest, name: str, chunks: memoryview) -> Any:
        (entry,) = manifest.objects[name].entries
        skeleton = self._disk.read(path / entry)
        if File(entry, len(skeleton), blake3(skeleton).hexdigest()) not in manifest.files:
            raise damaged(path, Fault(entry, "changed while it was read"))
        try:
            return decode(skeleton, chunks)
        except ValueError as exc:
            raise damaged(path, Fault(entry, f"is not the skeleton of a tree: {exc}")) from exc

    def _apply(self, path: Path, trees: Mapping[str, tuple[Any, int]]) -> None:
        current: dict[str, Any] = {}
        for name, (tree, version) in trees.items():
            state = self._objects[name]
            current[name] = tree if version == _version_of(name, state) else state.migrate_state(tree, version)
        applied: list[str] = []
        for name, state in self._objects.items():
            try:
                if name in current:
                    state.set_state(current[name])
                else:
                    state.load_state(path / name)
            except Exception as exc:
                have = ", ".join(map(repr, applied)) or "none"
                exc.add_note(f"while {name!r} was loaded from {str(path)!r}; loaded before it: {have}")
                raise
            applied.append(name)

    def _set_aside(self, path: Path, reason: DamagedError) -> None:
        aside = f".bad-{path.name}-{datetime.now().strftime('%Y%m%dT%H%M%S%f')}"  # noqa: DTZ005 – as in other names
        facts = {"path": str(path), "reason": reason.message}
        try:
            with self._disk.lock(lock_path(path)):
                self._disk.rename(path, path.with_name(aside))
        except HoldfastError:  # somebody reads it, the file system is read-only; or it was removed meanwhile
            if os.path.lexists(path):
                log.warning("snapshot.damaged", extra=facts)
        else:
            log.warning("snapshot.set_aside", extra={**facts, "aside": aside})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class UsedNameError(ConflictError, KeyError):
    """An object is registered under this name already."""


def _is_tree(state: object) -> bool:
    return callable(getattr(state, "get_state", None)) and callable(getattr(state, "set_state", None))


def _writes_itself(state: object) -> bool:
    return callable(getattr(state, "save_state", None)) and callable(getattr(state, "load_state", None))


def _version_of(name: str, state: object) -> int:
    version = getattr(state, "state_version", 1)
    if type(version) is not int or not 0 <= version < 2**63:
        raise InvalidError(
            f"the state_version of {name!r} cannot be {shown(version)}: an integer from 0 to 2**63 - 1 is expected"
        )
    return version


def _check_name(name: object, what: str) -> None:
    try:
        known = check_entry(name)
        is_good = not known.startswith(".") and len(os.fsencode(known)) <= MAX_NAME_BYTES
    except ValueError:
        is_good = False
    if not is_good:
        expected = f"the name of a file of at most {MAX_NAME_BYTES} bytes that begins with no dot is expected"
        raise InvalidError(f"{what} cannot be called {shown(name)}: {expected}")


def _entries(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return what is in a folder, and what changes if somebody writes it anew."""
    try:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    except OSError as exc:
        raise translate(exc, folder, "list") from exc
    return {name: (status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found.items()}


def _check_entries(name: str, entries: list[str], *, taken: list[str]) -> None:
    for entry in entries:
        if entry in taken or entry.startswith("."):
            owner = "is another object's" if entry in taken else "begins with a dot"
            raise InvalidError(
                f"object {name!r} has written {entry!r}, which {owner}: {name!r} is its own", object=name
            )


def _check_loadable(path: Path, manifest: Manifest, name: str, state: object) -> None:
    stored = manifest.objects.get(name)
    if stored is None:
        raise NotFoundError(f"the snapshot {str(path)!r} has no object {name!r}; it has {sorted(manifest.objects)}")
    if not (_is_tree(state) if stored.is_tree else _writes_itself(state)):
        needed = "get_state and set_state" if stored.is_tree else "save_state and load_state"
        raise InvalidError(f"object {name!r} was saved by {needed}, and what is registered has not both", object=name)
    if stored.version is None:
        return
    version = _version_of(name, state)
    if stored.version > version:
        raise InvalidError(
            f"object {name!r} was saved in version {stored.version}, and what is registered is version {version}: "
            "update it",
            object=name,
        )
    if stored.version < version and not callable(getattr(state, "migrate_state", None)):
        raise InvalidError(
            f"object {name!r} was saved in version {stored.version}, and what is registered is version {version} "
            "without migrate_state: add it",
            object=name,
        )
