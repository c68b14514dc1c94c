"""Which run, on which plugin state: found or begun."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from holdfast.errors import ConflictError, InvalidError, NotFoundError
from holdfast.items import Account, Item, PersistentState, PluginRun
from holdfast.pod import Pod
from holdfast.runs import Status, status_of
from holdfast.store import Direction
from holdfast.values import shown

FINISHED = frozenset({Status.DONE, Status.ERROR, Status.ABORTED})
DEFAULT_STATE = "default"


def get_state(client: Pod, plugin_id: str, name: str = DEFAULT_STATE) -> PersistentState:
    """Return the plugin state of a plugin with this name; it is made if there is none.

    Its id follows from the two, so that two processes that come at once make one.
    """
    id_ = state_id(plugin_id, name)
    found = client.find(id_)
    if found is None:
        try:
            found = client.create(PersistentState(pluginId=plugin_id, name=name, id=id_))
        except ConflictError:
            found = client.get(id_)
    if not isinstance(found, PersistentState):
        raise ConflictError(f"item {id_!r} is a {type(found).__name__} and no plugin state", id=id_)
    return found


def state_id(plugin_id: str, name: str) -> str:
    """Return the id of the plugin state of a plugin with this name, be it there or not.

    Raises:
        InvalidError: No plugin state can have this name.
    """
    if not name or len(name) > 200 or not name.isprintable():
        message = f"a plugin state cannot be called {shown(name)}: 1 to 200 printable characters are allowed"
        raise InvalidError(message, state=shown(name))
    return hashlib.blake2b(f"{plugin_id}\0{name}".encode(), digest_size=16).hexdigest()


def find_unfinished(client: Pod, state: PersistentState) -> PluginRun | None:
    """Return the newest run of a plugin state that has not ended; None if there is none."""
    runs = [
        edge.source
        for edge in client.get_edges(_id(state), Direction.INCOMING)
        if edge.name == "pluginState" and isinstance(edge.source, PluginRun)
    ]
    unfinished = [run for run in runs if status_of(run.status) not in FINISHED]
    return unfinished[-1] if unfinished else None


def begin_run(
    client: Pod, state: PersistentState, properties: Mapping[str, Any], account: Mapping[str, Any] | None = None
) -> PluginRun:
    """Create a run on a plugin state, and with it its account, if it is to have one.

    Args:
        client: What reaches the Pod.
        state: What it works on.
        properties: Of the PluginRun, as in a plugin's metadata.
        account: The properties of its Account.
    """
    values: dict[str, Any] = {"status": str(Status.IDLE), **properties, "pluginState": [state]}
    run = PluginRun(**values)
    with client.transaction():
        if account is not None:
            run.account.append(client.create(Account(**account)))
        return client.create(run)


def continue_run(client: Pod, run_id: str) -> tuple[PluginRun, PersistentState]:
    """Return a run and the plugin state that it works on; a run that leads to none gets its plugin's default one.

    Raises:
        NotFoundError: There is no such run.
        ConflictError: It has ended.
    """
    run: Item = client.get(run_id)
    if not isinstance(run, PluginRun):
        raise NotFoundError(f"item {run_id!r} is a {type(run).__name__} and no run", id=run_id)
    status = status_of(run.status)
    if status in FINISHED:
        hint = "" if status is Status.DONE else f"; holdfast runs retry {run_id} makes it ready again"
        raise ConflictError(f"run {run_id!r} is {status}{hint}", run=run_id, status=str(status))
    if run.pluginState:
        return run, run.pluginState[0]
    state = get_state(client, f"{run.pluginModule}:{run.pluginName}")
    run.pluginState.append(state)
    client.update_item(run)
    return run, state


def _id(item: Item) -> str:
    if item.id is None:
        raise InvalidError(f"{item!r} is not in the Pod yet")
    return item.id
