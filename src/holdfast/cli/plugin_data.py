"""What plugins have kept, for ``holdfast plugins remove``: found by the module of the plugin, and erased."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, TypeVar

from holdfast.context import Settings
from holdfast.disk import Disk
from holdfast.engine.migrating import OURS
from holdfast.engine.owning import check_free
from holdfast.errors import InvalidError
from holdfast.items import Item, PersistentState, PluginRun
from holdfast.plugins.loading.finding import GROUP
from holdfast.plugins.stateful import ONCE
from holdfast.pod import Pod
from holdfast.store import DeleteVariable, EndLease, PointSnapshot, Store

T = TypeVar("T", bound=Item)

_MAX_VERSIONS: Final = 1_000
"""How many versions of variables are looked for."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one plugin has kept.

    Attributes:
        states: Its plugin states, those included that were deleted before: of them files may be left.
        runs: Its runs, likewise.
        variables: State, namespace and name of each variable.
        paths: Folders with snapshots, and the logs of runs.
    """

    states: list[PersistentState] = field(default_factory=list[PersistentState])
    runs: list[PluginRun] = field(default_factory=list[PluginRun])
    variables: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    paths: list[Path] = field(default_factory=list[Path])

    @property
    def is_nothing(self) -> bool:
        """Whether all of it was erased before, if there was any."""
        return not self.variables and not self.paths and all(each.deleted for each in (*self.states, *self.runs))

    def document(self) -> dict[str, Any]:
        """Return it as it is shown to people and programs alike."""
        return {
            "states": [f"{state.pluginId} {state.name}" for state in self.states if not state.deleted],
            "runs": len([run for run in self.runs if not run.deleted]),
            "variables": len(self.variables),
            "paths": [str(path) for path in self.paths],
        }


def check_not_installed(module: str) -> None:
    """Accept a module whose data can be erased: no plugin of it, or of a module in it, is installed.

    One that is may be known by the name of any package around it, and nothing tells what it has kept from the rest.

    Raises:
        InvalidError: There is one; the message names it.
    """
    for entry in entry_points(group=GROUP):
        if _is_in(entry.module, module, is_package=True):
            message = f"plugin {entry.name!r} of the module {entry.module!r} is installed: uninstall it first"
            raise InvalidError(message, plugin=entry.name, module=entry.module)


def find_kept(store: Store, settings: Settings, module: str, *, is_package: bool) -> Kept:
    """Return what the plugins of a module have kept; those of the modules in it too, if it is or was a package."""
    client = Pod(store)
    states = [each for each in _all(client, PersistentState) if _is_in(each.pluginId, module, is_package=is_package)]
    runs = [each for each in _all(client, PluginRun) if _is_in(each.pluginModule, module, is_package=is_package)]
    paths = [settings.snapshots_path / str(state.id) for state in states]
    for run in runs:
        log = settings.run_log_path(str(run.id))
        paths += [log, Path(f"{log}.1")]
    variables: list[tuple[str, str, str]] = []
    for state in states:
        id_ = str(state.id)
        version = client.variables(id_, OURS).get("state_version")
        older = range(1, min(version, _MAX_VERSIONS) if isinstance(version, int) else 1)
        for namespace in ("", ONCE, OURS, *(f"before-v{each}" for each in older)):
            variables += [(id_, namespace, name) for name in client.variables(id_, namespace)]
    return Kept(states, runs, variables, [path for path in paths if path.exists()])


def check_free_to_remove(store: Store, settings: Settings, kept: Kept) -> None:
    """Accept a plugin that no run works for.

    Raises:
        ConflictError: A run holds one of its plugin states; the message names the run.
    """
    for state in kept.states:
        check_free(store, str(state.id), locks=settings.locks_path)


def erase(store: Store, settings: Settings, kept: Kept) -> None:
    """Erase what a plugin has kept: in the Pod in one transaction, then its files; killed in between, do it again.

    Plugin states and runs stay in the Pod, marked as deleted; nothing leads to them any more.

    Raises:
        ConflictError: A run holds one of the plugin states. Nothing was erased.
    """
    check_free_to_remove(store, settings, kept)
    client = Pod(store)
    with client.transaction():
        for state in (str(state.id) for state in kept.states):
            lease = store.find_lease(state)
            if lease is not None and lease.holder:  # of one that is dead, as `check_free` has seen
                client.add(EndLease(state, lease.epoch))
            client.add(PointSnapshot(state, None))
        for state, namespace, name in kept.variables:
            client.add(DeleteVariable(state, name, namespace))
        client.delete_items([each for each in (*kept.runs, *kept.states) if not each.deleted])
    for path in kept.paths:
        Disk().delete(path)


def _all(client: Pod, kind: type[T]) -> list[T]:
    found = client.search({"type": kind.__name__, "deleted": None})
    return [each for each in found if isinstance(each, kind)]


def _is_in(plugin: str | None, module: str, *, is_package: bool) -> bool:
    """Say whether a plugin's id, or its module, is that of this module or, in a package, of one in it."""
    found = (plugin or "").partition(":")[0]
    return found == module or (is_package and found.startswith(f"{module}."))
