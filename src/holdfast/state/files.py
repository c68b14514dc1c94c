"""Variables in a folder: one JSON file per namespace, a lock, and at times a journal.

Hides when files are read and written, how the changes of several processes are merged, how several files change
together, and how a damaged one is mended.

The failure argument of the files, beside that of `holdfast.disk`:

- *The process dies on any line.* A file changes by one rename, so it is old or new. Several change together through a
  journal, `JOURNAL`, that holds all they shall hold: the rename that gives it its name is the moment of the commit.
  Before it no file was touched. After it, whoever takes the lock next does what is left, which can be done twice, and
  whoever reads takes what stands in the journal for what is in the file.
- *The power goes.* The journal is durable before the first file changes, the last file before the journal goes.
- *Two do it at once.* Whoever writes holds the folder's lock, reads again and changes only the variables that it was
  told to change. Readers need no lock: a file has one of its states, and which names it has they decide by one read.
- *The disk is full, or fails.* Before the commit nothing changed, and the changes are still pending. After it the
  journal is the truth until the files can be written; until then every other write fails with the disk's error.
- *A file is damaged*: it is no JSON, as after a torn write. It is kept aside, and the generation before it takes its
  place, in one rename. What is JSON and not of variables is no damage: somebody wrote it, so it is refused and kept.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, cast

from holdfast.disk import BusyError, Disk, Lock, MissingError, StrPath, translate
from holdfast.errors import ConflictError, DamagedError, HoldfastError, InvalidError
from holdfast.interrupts import deliver, uninterrupted
from holdfast.state.ending import alive, ending, is_awaited, unsaved
from holdfast.state.memory import Kept, changed
from holdfast.state.names import aside_of, check_case, file_of, namespace_of, previous_of
from holdfast.state.namespaces import Changes, StateError, checked
from holdfast.values import Value, shown

log = logging.getLogger(__name__)

LOCK: Final = ".lock"
"""The file in the folder that whoever writes holds locked."""

JOURNAL: Final = ".transaction.json"
"""What several files shall hold from one moment on: ``{"<namespace>": {"<variable>": value}}``."""

WAIT_S: Final = 30.0
"""How long a write waits for another process, or for a transaction of another thread, to be through."""

_TURN_S: Final = 0.5
"""How long a signal may have to wait meanwhile."""

_SETTLE_S: Final = 0.05
_SETTLE_TRIES: Final = 40


class JsonFiles:
    """Variables in a folder, ``<namespace>.json`` for each namespace; what `State` is made of.

    Nothing is read before it is asked for, and a file is written only if what it holds changes. See `State`.
    """

    def __init__(self, location: StrPath, *, save_delay: float | None, disk: Disk) -> None:
        try:
            self.folder = Path(location).expanduser().absolute()
        except (OSError, RuntimeError) as exc:
            why = "the current folder is gone" if isinstance(exc, OSError) else "nobody knows whose home that is"
            raise InvalidError(f"{os.fspath(location)!r} leads nowhere: {why}; name an absolute path") from exc
        if not os.fspath(location):  # an unset variable, most likely, and not the current folder
            raise InvalidError("location is empty: a folder is expected")
        self.save_delay = save_delay
        self.disk = disk
        self._kept: dict[str, Kept] = {}
        self._unsure: set[str] = set()
        self._is_immediate = save_delay == 0 or ending.is_over
        self._is_swept = False
        self._complaint = ""
        self.begin()
        alive.add(self)

    def begin(self) -> None:
        """Begin as a process that holds nothing and has written nothing, as a forked child does."""
        for kept in self._kept.values():
            kept.begin()  # the parent stores it; the child would do so again, and perhaps much later
        self._block: Block | None = None
        self._is_hidden = False
        self._is_armed = False
        self._held: Lock | None = None
        self._writing = threading.RLock()  # held for as long as the folder is locked
        self._making = threading.RLock()

    # -- what Variables asks for --

    def find(self, namespace: str, name: str) -> Value | None:
        """See `Variables.find`."""
        if self._block is not None and self.is_in_block():
            return self._block.read(namespace).get(name)
        value = self.known(namespace).values.get(name)
        return self.read(namespace).get(name) if value is None else value

    def read(self, namespace: str) -> Mapping[str, Value]:
        """See `Variables.read`."""
        if self._block is not None and self.is_in_block():
            return self._block.read(namespace)
        kept = self.known(namespace)
        if not kept.is_loaded:
            self.load(namespace)
        return kept.values

    def put(self, namespace: str, name: str, value: Value) -> None:
        """See `Variables.put`."""
        kept = self._kept[namespace]
        age = kept.age
        if age is not None:
            kept.values[name] = kept.changed[name] = value  # in this order: a mark without its value is a deletion
            if kept.age is age:
                return
        self.write(namespace, {name: value})

    def write(self, namespace: str, changes: Changes) -> None:
        """See `Variables.write`."""
        if self._is_immediate or self.is_in_block():
            with self.joined() as block:
                block.write(namespace, changes)
            return
        self.known(namespace).change(changes)
        if not self._is_armed:
            self._arm(namespace)

    def load(self, namespace: str) -> None:
        """See `Variables.load`."""
        if not self.is_in_block():
            kept, is_taken = self.known(namespace), False
            while not is_taken:  # else another thread has stored meanwhile what this may not have read
                before = kept.values
                is_taken = kept.take(self.stored(namespace), over=before)

    def store(self, namespace: str) -> None:
        """See `Variables.store`."""
        self.save(namespace)

    # -- what State asks for --

    def known(self, namespace: str) -> Kept:
        """Return what is in memory of a namespace."""
        kept = self._kept.get(namespace)
        if kept is None:
            with self._making:
                kept = self._kept.setdefault(namespace, Kept())
                kept.show(is_hidden=self._is_hidden)
        return kept

    def is_in_block(self) -> bool:
        """Say whether this thread is in a block: in a transaction, or in a signal handler that came into a write."""
        return self._block is not None and self._block.thread == threading.get_ident()

    def save(self, *namespaces: str) -> None:
        """Return when all changes of some namespaces, or of all, are durable; nothing happens in a transaction."""
        if self.save_delay is None:
            self._is_armed = False  # first, as in `_save_behind`
        wanted = [name for name in namespaces or list(self._kept) if self.known(name).changed]
        if not wanted or self.is_in_block():
            return
        failed: list[HoldfastError] = []
        with uninterrupted(), self._locked():
            for namespace in wanted:
                block = Block(self)
                try:
                    with self._in(block):
                        block.read(namespace)
                except HoldfastError as exc:  # the others have a right to be stored all the same
                    failed.append(exc)
                    for name, part in block.parts.items():
                        if part.changes:  # of a signal handler: they are kept like the rest
                            self.known(name).change(part.changes)
        if failed:
            raise failed[0]
        self._complaint = ""
        self._rest()

    def leave(self) -> None:
        """Let go of the folder if this thread is in a transaction: one that a signal ends has not happened."""
        if self.is_in_block():
            self._block = None
            self._show(is_hidden=False)
            self._release()

    def end(self) -> None:
        """Save, and from here on store each change at once: nobody will come after it."""
        self._is_immediate = True
        self._show()
        self.save()

    @contextmanager
    def joined(self) -> Generator[Block]:
        """Yield the block that this thread is in; or one of its own, committed at the end if no exception ends it."""
        if self._block is not None and self.is_in_block():
            yield self._block
            return
        # What saves in a signal handler could wait for ever for a folder that its own thread holds.
        with uninterrupted(), self._locked():
            block = Block(self)
            with self._in(block):
                yield block

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Let the caller's code run in a block of this thread.

        Raises:
            ConflictError: It is in a transaction already.
        """
        if self._block is None or not self.is_in_block():
            block = Block(self)
            with self._locked(), self._in(block), self._lent(block):
                yield
        elif self._block.is_callers:
            raise ConflictError("a transaction cannot begin in another one of the same thread: end that first")
        else:
            with self._lent(self._block):  # to a signal handler, which came into a write: it is a part of that
                yield

    @contextmanager
    def _lent(self, block: Block) -> Generator[None]:
        """Let the caller's code write in a block; an exception undoes what it wrote."""
        before = dict(block.parts)
        self._show(is_hidden=True)  # what is at hand is not what this thread is to see
        block.is_callers = True
        try:
            yield
        except BaseException:
            for namespace in block.parts.keys() - before.keys():
                del block.parts[namespace]
            block.parts.update(before)
            raise
        finally:
            block.is_callers = False
            self._show(is_hidden=False)

    @contextmanager
    def _in(self, block: Block) -> Generator[None]:
        """Let this thread, which holds the folder, be in a block; commit it unless an exception ends it."""
        self._block = block
        try:
            yield
            if self._block is not block:
                raise ConflictError("a transaction cannot end in a forked child: the process that began it decides")
            self._commit(block)
        finally:
            if self._block is block:
                self._block = None
            for namespace in block.parts:
                self.known(namespace).show(is_hidden=self._is_hidden)

    def _show(self, *, is_hidden: bool | None = None) -> None:
        """Hide what is in memory, or show it again, or with None leave that as it is: each change is looked at then."""
        with self._making:
            if is_hidden is not None:
                self._is_hidden = is_hidden
            block = self._block
            for namespace, kept in list(self._kept.items()):
                kept.show(is_hidden=self._is_hidden or (block is not None and namespace in block.parts))

    def list_namespaces(self) -> list[str]:
        """Return the names of all namespaces that have variables, sorted."""
        try:
            entries = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            entries = []
        except (OSError, ValueError) as exc:
            raise translate(exc, self.folder, "list") from exc
        found = {name: True for entry in entries if (name := namespace_of(entry)) is not None}
        found |= {name: bool(content) for name, content in self._journal().items()}
        touched = [name for name, kept in list(self._kept.items()) if kept.changed]
        if self._block is not None and self.is_in_block():
            touched += self._block.parts
        found |= {name: bool(self.read(name)) for name in touched}
        return sorted(name for name, is_there in found.items() if is_there)

    def stored(self, namespace: str) -> dict[str, Value]:
        """Return what is stored of a namespace now."""
        journal = self._journal()
        path = file_of(self.folder, namespace)
        found = journal[namespace] if namespace in journal else self._find(path)
        if found is None:
            with uninterrupted(), self._locked():
                found = self._mend(path)
        return found

    # -- when --

    def _arm(self, namespace: str) -> None:
        """See to it that what was changed, there and elsewhere, will be stored."""
        self._is_armed = True
        unsaved.add(self)
        if not is_awaited():  # nobody could save it if SIGTERM came: then it does not wait
            self._disarm()
            self.save(namespace)
        elif self.save_delay is not None and not self._start(self.save_delay):
            self.save()

    def _start(self, delay_s: float) -> bool:
        """Save after a while; return whether this will be so, else what is set next tries again."""
        timer = threading.Timer(delay_s, self._save_behind)
        timer.daemon = True  # the end of the process does not wait for it: it saves on its own
        try:
            timer.start()
        except RuntimeError:  # there are too many threads, or Python is ending and starts no more
            self._disarm()
            return False
        return True

    def _disarm(self) -> None:
        self._is_armed = False
        self._show()

    def _save_behind(self) -> None:
        self._is_armed = False  # first: what is written while this saves is for another one
        try:
            self.save()
        except HoldfastError as exc:
            # Nobody is there who could be told, and the next try may succeed: it is kept, and tried again.
            if exc.message != self._complaint:
                log.error("variables.not_saved: %s", exc, extra={"folder": str(self.folder), "reason": exc.message})  # noqa: TRY400
            self._complaint = exc.message
            if not self._is_armed:
                self._is_armed = True
                self._start(self.save_delay or 0)

    def _rest(self) -> None:
        """Be forgotten by the process if nothing is left to be saved."""
        if not self._is_armed and not any(kept.changed for kept in list(self._kept.values())):
            unsaved.discard(self)
            if self._is_armed:  # meanwhile
                unsaved.add(self)

    # -- the files themselves --

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Hold the folder against all others, threads and processes; what a dead one left is mended first."""
        writing = self._writing  # the same at both ends, also if a child is forked in between
        # Noted while it is taken: a signal handler that raises as soon as it may is to leave nothing locked.
        with ExitStack() as taken:
            _wait_for(
                lambda: writing.acquire(timeout=_TURN_S) and taken.callback(writing.release),
                f"a transaction of another thread holds {str(self.folder)!r}",
            )
            if not self._held:
                self.disk.put_folder(self.folder)
                _wait_for(
                    lambda: self._hold() and taken.callback(self._release),
                    f"another process holds {str(self.folder)!r}",
                )
            try:
                yield
            finally:
                with uninterrupted():  # what comes before this meets the end of the stack
                    taken.close()

    def _hold(self) -> bool:
        try:
            self._held = self.disk.lock(self.folder / LOCK, wait_s=_TURN_S)
        except BusyError:
            return False
        try:
            self._recover()
        except BaseException:
            self._release()
            raise
        return True

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _recover(self) -> None:
        if not self._is_swept:
            self.disk.sweep(self.folder)
            self._is_swept = True
        journal = self._journal()
        if journal:
            self._apply(journal)

    def _journal(self) -> dict[str, dict[str, Value]]:
        path = self.folder / JOURNAL
        try:
            data = self.disk.read(path)
        except MissingError:
            return {}
        try:
            found = _parse(data)
            return {namespace: _checked(content) for namespace, content in _named(found).items()}
        except ValueError as exc:
            message = (
                f"{str(path)!r} is damaged: what it says was committed; delete it to go on with what the files hold"
            )
            raise DamagedError(message, path=str(path)) from exc

    def _apply(self, contents: Mapping[str, dict[str, Value]]) -> None:
        for namespace, content in contents.items():
            path = file_of(self.folder, namespace)
            found = self._find(path)
            if found is None:  # damaged: it is not to become the generation before
                aside = aside_of(path)
                self.disk.rename(path, aside)
                _say_restored(path, aside, self.folder / JOURNAL)
            if found != content or not content:
                self._replace(path, content)
        self.disk.delete(self.folder / JOURNAL)

    def _find(self, path: Path) -> dict[str, Value] | None:
        """Return what a file holds, nothing if there is none; None if it is damaged."""
        try:
            data = self.disk.read(path)
        except MissingError:
            return {}
        check_case(path)
        try:
            return _checked(_parse(data))
        except StateError as exc:
            message = f"{str(path)!r} holds no variables, because {exc.message}; correct the file: it was left as it is"
            raise StateError(message, path=str(path), **exc.facts) from exc
        except ValueError:
            return None

    def _mend(self, path: Path) -> dict[str, Value]:
        """Put the last good generation in the place of a damaged file, which is kept; return what it holds."""
        data = None
        for _ in range(_SETTLE_TRIES):
            content = self._find(path)
            if content is not None:
                return content
            before, data = data, self.disk.read(path)
            if data == before:
                break
            time.sleep(_SETTLE_S)  # an editor that writes in place may be in the middle of it
        previous, content = previous_of(path), None
        with suppress(StateError):  # what cannot be read cannot be restored
            content = self._find(previous) if os.path.lexists(previous) else None
        if content is None:
            raise DamagedError(
                f"{str(path)!r} is damaged, and no good generation before it is kept: correct it, or delete it",
                path=str(path),
            )
        aside = aside_of(path)
        # In one step, not aside first: a process killed in between would leave no file, and that means no variables.
        self.disk.replace(path, _encode(content), keep_previous=aside)
        _say_restored(path, aside, previous)
        return content

    def _replace(self, path: Path, content: Mapping[str, Value]) -> None:
        previous = previous_of(path)
        if not content or not os.path.lexists(path):
            self.disk.delete(previous)  # first: it must not be restored to a file that came after it
        if content:
            self.disk.replace(path, _encode(content), keep_previous=previous)
        else:
            self.disk.delete(path)

    def _commit(self, block: Block) -> None:
        """Store what a block changed, and what was pending of the namespaces that it touched: all or nothing."""
        with uninterrupted():  # what saves in a signal handler must not meet a save that is half done
            version = -1
            # Another handler, or a ``__del__``, may write while this stores what there was: then again. No handler runs
            # between a look at the version that finds nothing new and the end of the block.
            while version != block.version:
                version = block.version
                self._store(dict(block.parts))
            self._block = None

    def _store(self, parts: Mapping[str, Part]) -> None:
        wanted: dict[str, dict[str, Value]] = {}
        contents: dict[str, dict[str, Value]] = {}
        for namespace, part in parts.items():
            old = self.stored(namespace)
            new = contents[namespace] = changed(old, {**part.pending, **(part.changes or {})})
            is_left = not new and part.changes is not None and self._has_files(namespace)
            if _encode(new) != _encode(old) or namespace in self._unsure or is_left:
                wanted[namespace] = new
        # Until it has succeeded, what is in the file may not be what is on the disk; then it is written again.
        self._unsure.update(wanted)
        if len(wanted) == 1:
            ((namespace, content),) = wanted.items()
            self._replace(file_of(self.folder, namespace), content)
        elif wanted:
            self._commit_together(wanted)
        elif any(part.changes is not None or part.pending for part in parts.values()):
            self.disk.sync_folder(self.folder)  # another may have been killed between its rename and its flush
        self._unsure.difference_update(wanted)
        for namespace, content in contents.items():
            self.known(namespace).take(content, marks=parts[namespace].marks)

    def _has_files(self, namespace: str) -> bool:
        path = file_of(self.folder, namespace)
        return os.path.lexists(path) or os.path.lexists(previous_of(path))

    def _commit_together(self, wanted: Mapping[str, dict[str, Value]]) -> None:
        journal = self.folder / JOURNAL
        try:
            self.disk.replace(journal, _encode(wanted))
        except HoldfastError:
            # It may have its name and not be durable. If this fails too, the outcome is open: the disk fails twice.
            with suppress(HoldfastError):
                self.disk.delete(journal)
            raise
        try:
            self._apply(wanted)
        except HoldfastError as exc:
            # It is committed: readers take it from the journal, and whoever writes next does the rest.
            log.warning("variables.left_in_journal: %s", exc, extra={"path": str(journal), "reason": exc.message})


class Part(NamedTuple):
    """What a block knows of one namespace."""

    pending: Changes
    """What was to be stored of it when the block first looked at it; what comes later comes after it."""
    marks: Changes
    """What tells that apart from what comes later; see `Kept.take`."""
    view: dict[str, Value]
    """The variables as the block sees them."""
    changes: dict[str, Value | None] | None = None
    """What the block itself changed; None: it only looked."""


class Block:
    """What one transaction sees and changes. The folder is locked for as long as it lasts.

    A signal handler may come into it, and writes in it then: each part changes in one step.
    """

    def __init__(self, files: JsonFiles) -> None:
        self.thread = threading.get_ident()
        self.is_callers = False
        """Whether it is the application's code that is in it."""
        self.parts: dict[str, Part] = {}
        self.version = 0
        """Another one after each write."""
        self._files = files

    def read(self, namespace: str) -> dict[str, Value]:
        """Return the variables as this block sees them; the same object until somebody writes."""
        part = self.parts.get(namespace)
        if part is None:
            content, kept = self._files.stored(namespace), self._files.known(namespace)
            kept.show(is_hidden=True)  # a signal handler that came in reads here what it wrote
            pending, marks = kept.taken()
            part = self.parts.setdefault(namespace, Part(pending, marks, changed(content, pending)))
        return part.view

    def write(self, namespace: str, changes: Changes, *, over: object = None) -> bool:
        """Change variables as this block sees them; return whether it did.

        Args:
            namespace: Which.
            changes: Their new values.
            over: What `read` returned, if the changes were made of it: nothing is written over anything newer.
        """
        while True:
            self.read(namespace)
            part = self.parts[namespace]
            if over is not None and over is not part.view:
                return False
            new = part._replace(view=changed(part.view, changes), changes={**(part.changes or {}), **changes})
            if self.parts[namespace] is part:
                self.parts[namespace] = new
                break
        self.version += 1
        return True


def _wait_for(take: Callable[[], object], who: str) -> None:
    """Return when ``take`` has succeeded: what it takes is then noted, for a signal handler that saves.

    Raises:
        BusyError: It did not for `WAIT_S`.
    """
    for _ in range(round(WAIT_S / _TURN_S)):
        with uninterrupted():
            if take():
                return
        deliver()
    raise BusyError(f"{who}, and did so for {WAIT_S} s; try again")


def _say_restored(path: Path, aside: Path, restored: Path) -> None:
    facts = {"path": str(path), "aside": str(aside), "restored": str(restored)}
    message = "variables.restored: %(path)s was damaged and is now %(aside)s; %(restored)s took its place"
    log.warning(message, facts, extra=facts)


def _encode(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=4, ensure_ascii=False).encode()


def _parse(data: bytes) -> object:
    """Return what ``data`` is the JSON of, in any of Unicode's encodings: editors choose.

    Raises:
        ValueError: It is no JSON; no part of what `_encode` returns is but the whole.
        StateError: It is nested too deeply to be read.
    """
    try:
        return json.loads(data, parse_int=_integer)
    except RecursionError:
        raise StateError("it is too deeply nested") from None


def _integer(digits: str) -> int:
    # Python refuses long ones, or takes minutes; one as long as that says the same: it does not fit.
    return int(digits) if len(digits) <= 640 else 10 ** min(len(digits), 5_000)


def _checked(found: object) -> dict[str, Value]:
    """Return the variables that were read.

    Raises:
        StateError: No variables can be like that.
    """
    for name, value in _named(found).items():
        try:
            checked(name, value)
        except StateError as exc:
            raise StateError(f"of {shown(name)}: {exc.message}", variable=shown(name)) from exc
    return cast("dict[str, Value]", found)


def _named(found: object) -> dict[str, object]:
    if not isinstance(found, dict):
        raise StateError(f'{shown(found)} is no object such as {{"name": value}}')
    return cast("dict[str, object]", found)
