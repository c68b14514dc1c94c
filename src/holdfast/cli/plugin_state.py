"""The variables of plugin states, for ``holdfast state``: what is there, as if each plugin were a namespace."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from holdfast.context import PodClient, Settings, open_store
from holdfast.engine import edit, is_new, plan_state
from holdfast.errors import ConflictError, InvalidError
from holdfast.items import PersistentState
from holdfast.plugins import source_of
from holdfast.plugins.stateful import ONCE
from holdfast.pod import Pod
from holdfast.state import StateNamespace
from holdfast.store import Store
from holdfast.values import Value


class PluginStates:
    """The plugin states of one name, as `holdfast.state.State` has namespaces in a folder; each under its plugin.

    Results of `StatefulPlugin.once` are those of "PLUGIN/once". A plugin that has not run yet can be given variables.

    Args:
        settings: Where the Pod lies.
        name: Of the plugin states.
        is_forced: Take each that is written to from the run that holds it; else such a write is a ConflictError.
    """

    def __init__(self, settings: Settings, name: str, *, is_forced: bool) -> None:
        self._settings = settings
        self._name = name
        self._is_forced = is_forced
        self._block: dict[str, dict[str, Value | None]] | None = None

    def get(self, plugin: str) -> StateNamespace:
        """Return the variables of a plugin."""
        return StateNamespace(self, plugin)

    def __iter__(self) -> Iterator[str]:
        with open_store(self._settings) as store, Pod(store) as client:
            wanted: Mapping[str, Any] = {"type": "PersistentState", "name": self._name}
            states = [each for each in client.search(wanted) if isinstance(each, PersistentState) and each.pluginId]
            for state in states:
                for namespace in ("", ONCE):
                    if client.variables(state.id or "", namespace):
                        yield "/".join(filter(None, (state.pluginId, namespace)))

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Write what the block changes at its end, in all plugin states or in none."""
        self._block = {}
        try:
            yield
            changes = self._block
        finally:
            self._block = None
        self._write(changes)

    def watch(self, *_: object) -> NoReturn:
        """Refuse: only what runs changes the variables of a plugin."""
        raise InvalidError(
            'only a folder can be watched: --dir is expected; "holdfast runs show" says how far a run is'
        )

    def read(self, namespace: str) -> Mapping[str, Value]:
        """Return the variables of a plugin."""
        with open_store(self._settings) as store:
            plugin, part = self._split(store, namespace)
            return store.list_variables(plan_state(Pod(store), plugin, self._name).id or "", part)

    def find(self, namespace: str, name: str) -> Value | None:
        """Return one variable; None if it is absent."""
        return self.read(namespace).get(name)

    def put(self, namespace: str, name: str, value: Value) -> None:
        """Give one variable a value, as `write` does."""
        self.write(namespace, {name: value})

    def write(self, namespace: str, changes: Mapping[str, Value | None]) -> None:
        """Change variables of a plugin: with the open block, else at once and together."""
        if self._block is None:
            self._write({namespace: changes})
        else:
            self._block.setdefault(namespace, {}).update(changes)

    def _write(self, changes: Mapping[str, Mapping[str, Value | None]]) -> None:
        with PodClient(settings=self._settings), open_store(self._settings) as store:
            wanted: dict[str, dict[str, Mapping[str, Value | None]]] = {}
            for namespace, values in changes.items():
                plugin, part = self._split(store, namespace)
                wanted.setdefault(plugin, {})[part] = values
            client = Pod(store)
            while True:
                states = {plugin: plan_state(client, plugin, self._name) for plugin in wanted}
                new = [state for state in states.values() if is_new(state)]
                try:
                    edit(
                        store,
                        {state.id or "": wanted[plugin] for plugin, state in states.items()},
                        new=new,
                        is_forced=self._is_forced,
                        locks=self._settings.locks_path,
                    )
                except ConflictError:
                    if not any(client.exists(state.id or "") for state in new):
                        raise
                else:  # else another process has made one of them meanwhile
                    return

    def load(self, namespace: str) -> None:
        """Do nothing: each read sees what is stored."""

    def store(self, namespace: str) -> None:
        """Do nothing: what is written is durable."""

    def _split(self, store: Store, namespace: str) -> tuple[str, str]:
        """Return the id of a plugin, and the namespace in its state; the module alone names one that has run."""
        plugin = namespace.removesuffix(f"/{ONCE}")
        part = "" if plugin == namespace else ONCE
        if ":" not in plugin:
            states = Pod(store).search({"type": "PersistentState", "name": self._name})
            known = {str(vars(state)["pluginId"]) for state in states}
            if len(found := [each for each in known if each.startswith(f"{plugin}:")]) == 1:
                return found[0], part
        return source_of(plugin).plugin_id, part
