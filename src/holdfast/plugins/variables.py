"""A plugin's variables in the Pod: what `self.state` is made of."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from holdfast.pod import Pod
from holdfast.store import DeleteVariable, SetVariable
from holdfast.values import Value


class PodVariables:
    """The namespaces of one plugin state, as `holdfast.state.Variables`.

    Each variable is written by itself, at once and durably; inside a transaction of the client with that, and then
    nobody else sees it before the block is committed. What was read is remembered: while a run holds the plugin state
    nobody else can change it.

    Args:
        client: What reaches the Pod, with the run's fence.
        state: The id of the plugin state.
    """

    def __init__(self, client: Pod, state: str) -> None:
        self._client = client
        self._state = state
        self._views: dict[str, dict[str, Value]] = {}
        self._ages: dict[str, int] = {}
        """How often each namespace was written or forgotten: what was read before is not what is there now."""
        self._changing = threading.Lock()
        self._pending: WeakKeyDictionary[object, dict[str, dict[str, Value | None]]] = WeakKeyDictionary()
        """What each open block has written, by block: threads and tasks may each have one open at the same time."""

    def read(self, namespace: str) -> Mapping[str, Value]:
        """Return the variables, with what the open block of this thread or task has written to them."""
        while (view := self._views.get(namespace)) is None:
            age = self._ages.get(namespace, 0)
            found = dict(self._client.variables(self._state, namespace))
            with self._changing:
                if self._ages.get(namespace, 0) == age:  # else another thread wrote while this one read: read again
                    self._views[namespace] = found
        block = self._client.block
        pending = {} if block is None else self._pending.get(block, {}).get(namespace, {})
        if not pending:
            return view
        merged = {**view, **pending}
        return {name: value for name, value in merged.items() if value is not None}

    def find(self, namespace: str, name: str) -> Value | None:
        """Return one variable; None if it is absent."""
        return self.read(namespace).get(name)

    def put(self, namespace: str, name: str, value: Value) -> None:
        """Give one variable a value, as `write` does."""
        self.write(namespace, {name: value})

    def write(self, namespace: str, changes: Mapping[str, Value | None]) -> None:
        """Change some variables: with the open block, else at once and together."""
        if self._client.block is None:
            with self._client.transaction():
                self._collect(namespace, changes)
        else:
            self._collect(namespace, changes)

    def load(self, namespace: str) -> None:
        """Forget what was read."""
        with self._changing:
            self._ages[namespace] = self._ages.get(namespace, 0) + 1
            self._views.pop(namespace, None)

    def store(self, namespace: str) -> None:
        """Do nothing: what is written is durable."""

    def _collect(self, namespace: str, changes: Mapping[str, Value | None]) -> None:
        pending = self._pending.setdefault(self._client.block, {}).setdefault(namespace, {})
        for name, value in changes.items():
            if value is None:
                operation = DeleteVariable(self._state, name, namespace)
            else:
                operation = SetVariable(self._state, name, value, namespace)
            self._client.add(operation, lambda _, name=name, value=value: self._settle(namespace, name, value))
            pending[name] = value

    def _settle(self, namespace: str, name: str, value: Value | None) -> None:
        with self._changing:
            self._ages[namespace] = self._ages.get(namespace, 0) + 1
            view = self._views.get(namespace, {})
            if value is None:
                view.pop(name, None)
            else:
                view[name] = value
