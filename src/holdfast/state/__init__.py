"""Variables: named values in namespaces that outlive the process, kept in one JSON file per namespace.

Knows no plugin and no Pod: what a namespace needs of the place for its variables is `Variables`, and a plugin's own
variables are the same `StateNamespace` over another place. How files stay whole is in `holdfast.state.files`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, cast

from holdfast.disk import Disk, StrPath
from holdfast.errors import HoldfastError, InvalidError
from holdfast.state.ending import is_awaited
from holdfast.state.files import JsonFiles
from holdfast.state.names import path_of
from holdfast.state.namespaces import AbsentError, Changes, StateError, StateNamespace, Variables, checked
from holdfast.values import Value, shown

__all__ = ["AbsentError", "Changes", "State", "StateError", "StateNamespace", "Variables", "Watch"]

log = logging.getLogger(__name__)


class State:
    """Variables that outlive the process, in one JSON file per namespace: ``state.ui.theme = "dark"``.

    ``state.ns`` and ``state.get("ns")`` are the same `StateNamespace`; one without variables has no file. Several
    processes may use one folder: each changes only the variables that it sets, and sees what others stored after
    `StateNamespace.load`, or when it stores something itself. Threads may share one object. A forked child sees the
    values of its parent, and leaves it to the parent to store them. If SIGTERM would end the process, it saves first;
    a handler of the application's own is left alone. Only the main thread can see to that: in a program that makes its
    first State in another one, changes are stored as if ``save_delay`` were 0. Iteration yields the names of the
    namespaces.

    Args:
        location: The folder; it is made with the first write. ``~`` is the user's home.
        save_delay: For how many seconds at most a change may be in memory only: 1 by default; 0: it is durable when
            the assignment returns; None: it is stored at the end of the process and by `save_all`.
        disk: What the folder lies on.

    Raises:
        InvalidError: ``save_delay`` is no number of seconds, or ``location`` is empty or relative to nothing.
    """

    __slots__ = ("__files__", "__namespaces__", "__weakref__")
    __files__: JsonFiles
    __namespaces__: dict[str, StateNamespace]

    def __init__(self, location: StrPath, *, save_delay: float | None = 1.0, disk: Disk | None = None) -> None:
        if save_delay is not None and not _is_time(save_delay):
            raise InvalidError(f"save_delay cannot be {shown(save_delay)}: seconds, 0 or more, or None are expected")
        object.__setattr__(self, "__files__", JsonFiles(location, save_delay=save_delay, disk=disk or Disk()))
        object.__setattr__(self, "__namespaces__", {})
        if save_delay != 0:
            is_awaited()  # now: here is the main thread, perhaps, and where the first change is made is not

    def get(self, namespace: str) -> StateNamespace:
        """Return the namespace of this name; reads nothing yet.

        Raises:
            StateError: No namespace can have this name: it is empty, too long, or no text.
        """
        found = self.__namespaces__.get(namespace) if type(namespace) is str else None
        if found is None:
            path_of(self.__files__.folder, namespace)
            new = StateNamespace(self.__files__, namespace, self.__files__.known(namespace))
            found = self.__namespaces__.setdefault(namespace, new)
        return found

    def save_all(self) -> None:
        """Return when all changes are durable; nothing happens inside a transaction.

        Raises:
            UnavailableError: The disk is full, failing or read-only, or another process holds the folder.
            StateError: A file holds what no variable can; correct it.

        One error is raised when all that can be stored is. The rest is kept, and tried again.
        """
        self.__files__.save()

    def incr(self, namespace: str, name: str, by: float = 1) -> int | float:
        """Add to a variable and return the sum, which is durable; an absent one counts as 0.

        None is lost, however many processes and threads add at once.

        Raises:
            StateError: The variable or ``by`` is no number, or the sum is none that a variable can hold.
        """
        added = checked(name, by)
        with self.__files__.joined() as block:
            is_added, total = False, added
            while not is_added:  # else a signal handler has written meanwhile
                found = block.read(namespace)
                old = found.get(name, 0)
                for number in (old, added):
                    if not isinstance(number, int | float) or isinstance(number, bool):
                        raise StateError(
                            f"variable {shown(name)} cannot be {shown(old)} + {shown(by)}: numbers are expected"
                        )
                total = checked(name, cast("int | float", old) + cast("int | float", added))
                is_added = block.write(namespace, {name: total}, over=found)
        return cast("int | float", total)

    def compare_and_set(self, namespace: str, name: str, old: Value | None, new: Value | None) -> bool:
        """Give a variable the value ``new`` if it has the value ``old``, durably; return whether it had.

        None stands for an absent variable, in either place. ``1``, ``1.0`` and ``True`` are three values.
        """
        value = None if new is None else checked(name, new)
        expected = None if old is None else checked(name, old)
        with self.__files__.joined() as block:
            while True:  # as above
                found = block.read(namespace)
                # Their texts differ exactly if they do: 0.0 and -0.0 as well.
                if repr(found.get(name)) != repr(expected):
                    return False
                if block.write(namespace, {name: value}, over=found):
                    return True

    def delete(self, namespace: str) -> None:
        """Let a namespace have no variables and no files any more, durably; nothing happens if it is so.

        Damaged files that were set aside stay.
        """
        with self.__files__.joined() as block:
            block.write(namespace, dict.fromkeys(block.read(namespace)))

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Make what the block writes, in as many namespaces as it likes, one event: durable at its end, or never.

        It sees what is stored when it first looks, and its own changes. Others can write only before or after it, so
        keep it short: they wait for at most `WAIT_S` seconds. It belongs to its thread. An exception discards it.

        Raises:
            ConflictError: The thread is in a transaction already; or a child was forked in it, and ends it.
            UnavailableError: The reasons of `save_all`. If the disk failed in the last step, all of it may be stored
                nevertheless; never a part.
        """
        with self.__files__.transaction():
            yield

    def watch(
        self, namespace: str, callback: Callable[[dict[str, Value | None]], object], *, interval_s: float = 0.2
    ) -> Watch:
        """Call ``callback`` with the changes each time the stored variables change, by whomever; until `Watch.close`.

        The changes are new values by name, None for a variable that is gone. The callback runs in a thread of the
        watch; this object has been loaded by then. Changes that follow each other within ``interval_s`` seconds may
        arrive as one, or not at all if the last undoes the first. What the callback sets is a change like others. An
        exception of it ends the watch, and goes where those of threads go. While the variables cannot be read, a
        warning in the log says so, once for each reason.

        Raises:
            InvalidError: ``interval_s`` is no number of seconds above 0, or no namespace can have this name.
            DamagedError: There is nothing to compare with.
        """
        if not _is_time(interval_s) or not interval_s:
            raise InvalidError(f"interval_s cannot be {shown(interval_s)}: seconds, more than 0, are expected")
        path_of(self.__files__.folder, namespace)
        return Watch(self.__files__, namespace, callback, interval_s=interval_s)

    def __getattr__(self, name: str) -> StateNamespace:
        if name[:2] == "__" and name[-2:] == "__":
            raise AttributeError(f"State has no attribute {name!r}; a namespace of this name is state.get({name!r})")
        return self.get(name)

    def __setattr__(self, name: str, value: object) -> None:
        # ``state.ns |= {…}`` ends by putting the namespace where it is.
        if not isinstance(value, StateNamespace) or self.get(name) is not value:
            raise StateError(
                f"namespace {name!r} cannot be assigned to: set a variable in it, as in state.{name}.x = 1"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self.__files__.list_namespaces())

    def __repr__(self) -> str:
        return f"<State {str(self.__files__.folder)!r}>"


class Watch:
    """Looks at one namespace until it is closed, from `State.watch`; a context manager that closes it."""

    def __init__(
        self,
        files: JsonFiles,
        namespace: str,
        callback: Callable[[dict[str, Value | None]], object],
        *,
        interval_s: float,
    ) -> None:
        self._files = files
        self._namespace = namespace
        self._callback = callback
        self._interval_s = interval_s
        self._closed = threading.Event()
        self._known = files.stored(namespace)
        self._thread = threading.Thread(target=self._look, name=f"watch {namespace}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Return when the callback is called no more; nothing happens the second time."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _look(self) -> None:
        said = ""
        while not self._closed.wait(self._interval_s):
            try:
                changes = self._changes()
            except HoldfastError as exc:
                if exc.message != said:
                    facts = {"namespace": self._namespace, "reason": exc.message}
                    log.warning("variables.not_read: %s", exc, extra=facts)
                said = exc.message
                continue
            said = ""
            if changes:
                self._callback(changes)

    def _changes(self) -> dict[str, Value | None]:
        now = self._files.stored(self._namespace)
        changes: dict[str, Value | None] = {
            name: value for name, value in now.items() if repr(self._known.get(name)) != repr(value)
        }
        changes |= dict.fromkeys(self._known.keys() - now.keys())
        if changes:
            self._files.load(self._namespace)
            self._known = now
        return changes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_time(seconds: object) -> bool:
    """Say whether Python can wait for so long."""
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= threading.TIMEOUT_MAX
