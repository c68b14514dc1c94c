"""What is in memory of one namespace: what was read, what was set on top, and what of that is to be stored."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from holdfast.state.namespaces import Changes, Known
from holdfast.values import Value


class Kept(Known):
    """One namespace in memory, for all threads.

    A value is set without a lock, by `JsonFiles.put`: first in ``values``, then in ``changed``; then it looks whether
    ``age`` is what it was. All that is done here under the lock ends the age first. So a change was either complete by
    then, or whoever makes it notices, and makes it again by `change`. No more is asked of Python than that each of
    these steps is one. A signal handler passes the lock of its own thread, so what is done here also looks whether one
    came in between, and begins again then.
    """

    __slots__ = ("_changing", "_is_hidden", "_latest", "age", "changed", "is_loaded", "values")

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Value] = {}
        """What was read, with what was set on top; never the same dictionary once `take` has come."""
        self.changed: dict[str, Value | None] = {}
        """What is to be stored: for each name what was set last, by which later ones are told apart."""
        self.is_loaded = False
        self._is_hidden = False
        self._latest: object = None
        """What came last: another object after each change, and each time that ``values`` is another."""
        self.begin()

    def begin(self) -> None:
        """Begin as in a process that has changed nothing."""
        self._changing = threading.RLock()
        self.changed.clear()
        self.age: object = None
        """None: whoever sets something asks first where it belongs, and sees to it that it is saved."""
        self.show(is_hidden=False)

    def change(self, changes: Changes) -> None:
        """Set or, with None, delete variables: all of them at once."""
        with self._changing:
            values: object = None
            while values is not self.values:
                values = self.values
                values.update(changed({}, changes))
                for name in changes:
                    if changes[name] is None:
                        values.pop(name, None)
                self.changed.update(changes)
                self._latest = changes
            self.age = None if self._is_hidden else object()

    def taken(self) -> tuple[Changes, Changes]:
        """Return what is to be stored now, and the marks of it, for `take`; what is set from here on comes after it."""
        with self._changing:
            self.age = None
            marks = dict(self.changed)
            return {name: self.values.get(name) for name in marks}, marks

    def take(self, content: Mapping[str, Value], *, marks: Changes | None = None, over: object = None) -> bool:
        """Put what is stored in the place of what is in memory; what is still to be stored stays on top.

        Returns whether it did.

        Args:
            content: What was read or stored.
            marks: What is stored now.
            over: The ``values`` that it may replace, None: any; others may be newer.
        """
        with self._changing:
            self.age = None
            for name, value in (marks or {}).items():
                if name in self.changed and self.changed[name] is value:
                    del self.changed[name]
            while True:
                self.age = None  # a change that came in began another
                if over is not None and over is not self.values:
                    return False
                latest = self._latest
                values = changed(content, {name: self.values.get(name) for name in list(self.changed)})
                if latest is self._latest:
                    self.values = self._latest = values
                    break
            self.is_loaded = True
            if not self._is_hidden:
                self.shown = self.values
            return True

    def show(self, *, is_hidden: bool) -> None:
        """Hide from a transaction what it is not to see, or show it again."""
        with self._changing:
            self._is_hidden = is_hidden
            self.age, self.shown = None, {} if is_hidden else self.values


def changed(content: Mapping[str, Value], changes: Changes) -> dict[str, Value]:
    """Return a copy of variables with changes; what is new comes last."""
    values = dict(content)
    for name, value in changes.items():
        if value is None:
            values.pop(name, None)
        else:
            values[name] = value
    return values
