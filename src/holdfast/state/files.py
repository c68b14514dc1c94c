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
- *A file is damaged.* It is kept aside, and the generation before it takes its place, in one rename.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

from holdfast.disk import BusyError, Disk, MissingError, StrPath, translate
from holdfast.errors import ConflictError, DamagedError, HoldfastError
from holdfast.state.ending import alive, ending, uninterrupted, unsaved
from holdfast.state.names import aside_of, check_case, namespace_of, path_of, previous_of
from holdfast.state.namespaces import Changes, StateError, checked
from holdfast.values import Value, shown

log = logging.getLogger(__name__)

LOCK: Final = ".lock"
"""The file in the folder that whoever writes holds locked."""

JOURNAL: Final = ".transaction.json"
"""What several files shall hold from one moment on: ``{"<namespace>": {"<variable>": value}}``."""

WAIT_S: Final = 30.0
"""How long a write waits for another process, or for a transaction of another thread, to be through."""

_SETTLE_S: Final = 0.05
_SETTLE_TRIES: Final = 40


class JsonFiles:
    """Variables in a folder, ``<namespace>.json`` for each namespace; what `State` is made of.

    Nothing is read before it is asked for, and a file is written only if what it holds changes. See `State`.
    """

    def __init__(self, location: StrPath, *, save_delay: float | None, disk: Disk) -> None:
        self.folder = Path(location).expanduser().absolute()
        self.save_delay = save_delay
        self.disk = disk
        self._contents: dict[str, dict[str, Value]] = _Loading(self.stored)
        # By namespace and name what is to be stored, in a tuple of its own for each write: "still the one that was
        # stored" is then a question of identity. No lock: each change of a dictionary is one step, a write is one
        # change, and none of them is ever replaced by another one.
        self.pending: dict[str, dict[str, tuple[Value | None]]] = defaultdict(dict)
        self._unsure: set[str] = set()
        self._is_immediate = save_delay == 0 or ending.is_over
        self._is_swept = False
        self.begin()
        alive.add(self)

    def begin(self) -> None:
        """Begin as a process that holds nothing and has written nothing, as a forked child does."""
        for namespace, pending in self.pending.items():
            if namespace in self._contents:
                self._contents[namespace] = _merged(self._contents[namespace], pending)
        self.pending = defaultdict(dict)  # the parent stores it; the child would do so again, and perhaps much later
        self._block: Block | None = None
        self._is_quick = not self._is_immediate
        self._is_armed = False
        self._depth = 0
        self._writing = threading.RLock()  # held for as long as the folder is locked

    # -- what Variables asks for --

    def find(self, namespace: str, name: str) -> Value | None:
        """See `Variables.find`."""
        if self._block is not None and self.is_in_block():
            return self._block.read(namespace).get(name)
        pending = self.pending[namespace]
        if name in pending and (entry := pending.get(name)) is not None:  # first: a save moves it from here to there
            return entry[0]
        return self._contents[namespace].get(name)

    def read(self, namespace: str) -> Mapping[str, Value]:
        """See `Variables.read`."""
        if self._block is not None and self.is_in_block():
            return self._block.read(namespace)
        pending = dict(self.pending[namespace])  # first, as in `find`
        content = self._contents[namespace]
        return _merged(content, pending) if pending else content

    def put(self, namespace: str, name: str, value: Value) -> None:
        """See `Variables.put`."""
        if self._is_quick:
            self.pending[namespace][name] = (value,)
            if not self._is_armed:
                self._arm()
        else:
            self.write(namespace, {name: value})

    def write(self, namespace: str, changes: Changes) -> None:
        """See `Variables.write`."""
        path_of(self.folder, namespace)
        if self._is_immediate or self.is_in_block():
            with self.joined() as block:
                block.write(namespace, changes)
            return
        self.pending[namespace].update({name: (value,) for name, value in changes.items()})
        if not self._is_armed:
            self._arm()

    def load(self, namespace: str) -> None:
        """See `Variables.load`."""
        if not self.is_in_block():
            self._contents[namespace] = self.stored(namespace)

    def store(self, namespace: str) -> None:
        """See `Variables.store`."""
        self.save(namespace)

    # -- what State asks for --

    def is_in_block(self) -> bool:
        """Say whether this thread is in a transaction."""
        return self._block is not None and self._block.thread == threading.get_ident()

    def save(self, *namespaces: str) -> None:
        """Return when all changes of some namespaces, or of all, are durable; nothing happens in a transaction."""
        wanted = [name for name in namespaces or list(self.pending) if self.pending.get(name)]
        if not wanted or self.is_in_block():
            return
        with uninterrupted(), self._locked():
            for namespace in wanted:
                block = Block(self)
                block.read(namespace)
                self._commit(block)

    def end(self) -> None:
        """Save, and from here on store each change at once: nobody will come after it."""
        self._is_immediate, self._is_quick = True, False
        if self.is_in_block():
            self._block = None  # a transaction that a signal ends has not happened
        self.save()

    @contextmanager
    def joined(self) -> Generator[Block]:
        """Yield the block that this thread is in; or one of its own, committed at the end if no exception ends it."""
        if self._block is not None and self.is_in_block():
            yield self._block
            return
        block = Block(self)
        with ExitStack() as stack:
            with uninterrupted():
                stack.enter_context(self._locked())
                self._block, self._is_quick = block, False
            try:
                yield block
            finally:
                self._block, self._is_quick = None, not self._is_immediate
            if block.process != os.getpid():
                raise ConflictError("a transaction cannot end in a forked child: the process that began it decides")
            with uninterrupted():
                self._commit(block)

    def list_namespaces(self) -> list[str]:
        """Return the names of all namespaces that have variables, sorted."""
        try:
            entries = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            entries = []
        except OSError as exc:
            raise translate(exc, self.folder, "list") from exc
        found = {name: True for entry in entries if (name := namespace_of(entry)) is not None}
        found |= {name: bool(content) for name, content in self._journal().items()}
        found |= {name: bool(self.read(name)) for name, pending in list(self.pending.items()) if pending}
        return sorted(name for name, is_there in found.items() if is_there)

    def stored(self, namespace: str) -> dict[str, Value]:
        """Return what is stored of a namespace now."""
        journal = self._journal()
        path = path_of(self.folder, namespace)
        found = journal[namespace] if namespace in journal else self._find(path)
        if found is None:
            with uninterrupted(), self._locked():
                found = self._mend(path)
        return found

    # -- when --

    def _arm(self) -> None:
        """See to it that what is pending will be stored."""
        self._is_armed = True
        unsaved.add(self)
        if self.save_delay is None:
            return
        timer = threading.Timer(self.save_delay, self._save_behind)
        timer.daemon = True  # the end of the process does not wait for it: it saves on its own
        try:
            timer.start()
        except RuntimeError:  # Python is ending and starts no more threads
            self.save()

    def _save_behind(self) -> None:
        self._is_armed = False  # first: what is written while this saves is for another one
        try:
            self.save()
        except HoldfastError as exc:
            # Nobody is there who could be told, and the next try may succeed: it is kept, and tried again.
            log.error("variables.not_saved: %s", exc, extra={"folder": str(self.folder), "reason": exc.message})  # noqa: TRY400
            self._arm()
        else:
            if not self._is_armed:
                unsaved.discard(self)

    # -- the files themselves --

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Hold the folder against all others, threads and processes; what a dead one left is mended first."""
        writing = self._writing  # the same at both ends, also if a child is forked in between
        if not writing.acquire(timeout=WAIT_S):
            raise BusyError(f"a transaction of another thread holds {str(self.folder)!r}, and did so for {WAIT_S} s")
        try:
            if self._depth:
                yield
                return
            self.disk.put_folder(self.folder)
            with self.disk.lock(self.folder / LOCK, wait_s=WAIT_S):
                self._depth = 1
                try:
                    self._recover()
                    yield
                finally:
                    self._depth = 0
        finally:
            writing.release()

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
        found = _parse(data)
        if found is None or not all(isinstance(each, dict) for each in found.values()):
            raise DamagedError(
                f"{str(path)!r} is damaged: what it says was committed; delete it to go on with what the files hold",
                path=str(path),
            )
        return found

    def _apply(self, contents: Mapping[str, dict[str, Value]]) -> None:
        for namespace, content in contents.items():
            path = path_of(self.folder, namespace)
            if self._find(path) != content or not content:
                self._replace(path, content)
        self.disk.delete(self.folder / JOURNAL)

    def _find(self, path: Path) -> dict[str, Value] | None:
        """Return what a file holds, nothing if there is none; None if it is damaged."""
        try:
            data = self.disk.read(path)
        except MissingError:
            return {}
        check_case(path)
        content = _parse(data)
        for name, value in (content or {}).items():
            try:
                checked(name, value)
            except StateError as exc:
                message = f"{str(path)!r} holds what no variable can hold: {exc.message}; correct the file"
                raise StateError(message, path=str(path), variable=shown(name)) from exc
        return content

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
        previous = previous_of(path)
        content = self._find(previous) if os.path.lexists(previous) else None
        if content is None:
            raise DamagedError(
                f"{str(path)!r} is damaged, and no good generation before it is kept: correct it, or delete it",
                path=str(path),
            )
        aside = aside_of(path)
        # In one step, not aside first: a process killed in between would leave no file, and that means no variables.
        self.disk.replace(path, _encode(content), keep_previous=aside)
        facts = {"path": str(path), "aside": str(aside), "restored": str(previous)}
        log.warning(
            "variables.restored: %(path)s was damaged and is now %(aside)s; %(restored)s took its place",
            facts,
            extra=facts,
        )
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
        wanted: dict[str, dict[str, Value]] = {}
        contents: dict[str, dict[str, Value]] = {}
        for namespace, pending in block.pending.items():
            old = self.stored(namespace)
            new = contents[namespace] = _merged(_merged(old, pending), block.changes.get(namespace, {}))
            if _encode(new) != _encode(old) or namespace in self._unsure:
                wanted[namespace] = new
        # Until it has succeeded, what is in the file may not be what is on the disk; then it is written again.
        self._unsure.update(wanted)
        if len(wanted) == 1:
            ((namespace, content),) = wanted.items()
            self._replace(path_of(self.folder, namespace), content)
        elif wanted:
            self._commit_together(wanted)
        elif block.changes or any(block.pending.values()):
            self.disk.sync_folder(self.folder)  # another may have been killed between its rename and its flush
        self._unsure.difference_update(wanted)
        for namespace, content in contents.items():
            self._contents[namespace] = content
            pending = self.pending[namespace]
            for name, entry in block.pending[namespace].items():
                if pending.get(name) is entry and (found := pending.pop(name)) is not entry:
                    pending.setdefault(name, found)  # another thread was faster

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


class _Loading(dict[str, dict[str, Value]]):
    """What is stored, by namespace, as it was when somebody first asked."""

    def __init__(self, load: Callable[[str], dict[str, Value]]) -> None:
        super().__init__()
        self._load = load

    def __missing__(self, namespace: str) -> dict[str, Value]:
        content = self[namespace] = self._load(namespace)
        return content


class Block:
    """What one transaction sees and changes. The folder is locked for as long as it lasts."""

    def __init__(self, files: JsonFiles) -> None:
        self.process = os.getpid()
        self.thread = threading.get_ident()
        self.changes: dict[str, dict[str, tuple[Value | None]]] = {}
        self.pending: dict[str, dict[str, tuple[Value | None]]] = {}
        """What was to be stored of a namespace when the block first looked at it; what comes later comes after it."""
        self._views: dict[str, dict[str, Value]] = {}
        self._files = files

    def read(self, namespace: str) -> dict[str, Value]:
        """Return the variables as this block sees them."""
        view = self._views.get(namespace)
        if view is None:
            content = self._files.stored(namespace)
            self.pending[namespace] = dict(self._files.pending[namespace])
            view = self._views[namespace] = _merged(content, self.pending[namespace])
        return view

    def write(self, namespace: str, changes: Changes) -> None:
        """Change variables as this block sees them."""
        entries = {name: (value,) for name, value in changes.items()}
        self._views[namespace] = _merged(self.read(namespace), entries)
        self.changes.setdefault(namespace, {}).update(entries)


def _merged(content: Mapping[str, Value], entries: Mapping[str, tuple[Value | None]]) -> dict[str, Value]:
    merged = dict(content)
    for name, (value,) in entries.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged


def _encode(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=4, ensure_ascii=False).encode()


def _parse(data: bytes) -> dict[str, Any] | None:
    """Return the object that ``data`` is the text of; None if it is not."""
    try:
        found: object = json.loads(data.decode("utf-8-sig"))  # some editors put a mark before the text
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None
