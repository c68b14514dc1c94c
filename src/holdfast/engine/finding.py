"""Which run, on which plugin state: found or begun."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from itertools import count
from typing import Any

from holdfast.errors import ConflictError, InvalidError, NotFoundError
from holdfast.items import Account, Item, PersistentState, PluginRun
from holdfast.pod import Pod
from holdfast.runs import Status, status_of
from holdfast.values import shown

FINISHED = frozenset({Status.DONE, Status.ERROR, Status.ABORTED})
UNFINISHED: tuple[Mapping[str, Any], ...] = (
    {"status": str(Status.DAEMON)},
    {"status": str(Status.AUTHENTICATED)},
    {"status>=": str(Status.IDLE)},  # by code point: idle, initialized, ready, started, userActionNeeded
)
"""Searches that together find every run that has not ended. The index of the status serves each: however many runs have
ended, none of those is read."""
DEFAULT_STATE = "default"


def get_state(client: Pod, plugin_id: str, name: str = DEFAULT_STATE) -> PersistentState:
    """Return the plugin state of a plugin with this name; it is made if there is none."""
    while True:
        state = plan_state(client, plugin_id, name)
        if not is_new(state):
            return state
        with suppress(ConflictError):  # another process has made it meanwhile
            return client.create(state)


def plan_state(client: Pod, plugin_id: str, name: str = DEFAULT_STATE) -> PersistentState:
    """Return the plugin state of a plugin with this name; if there is none, a new one that is still to be created.

    Its id follows from the two, so that two processes that come at once make one. Where that was deleted, the next id
    is taken: variables, snapshot, accounts and runs of the deleted one stay with it, and are not the new one's.

    Raises:
        InvalidError: No plugin state can have this name.
    """
    if not name or len(name) > 200 or not name.isprintable():
        message = f"a plugin state cannot be called {shown(name)}: 1 to 200 printable characters are allowed"
        raise InvalidError(message, state=shown(name))
    for deleted in count():
        text = f"{plugin_id}\0{name}" + (f"\0{deleted}" if deleted else "")
        id_ = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        found = client.search({"ids": [id_], "deleted": None, "[[edges]]": True})
        if not found:
            return PersistentState(pluginId=plugin_id, name=name, id=id_)
        if not isinstance(found[0], PersistentState):
            raise ConflictError(f"item {id_!r} is a {type(found[0]).__name__} and no plugin state", id=id_)
        if not found[0].deleted:
            return found[0]
    raise AssertionError  # `count` does not end


def is_new(state: PersistentState) -> bool:
    """Say whether a plugin state is still to be created."""
    return state.dateServerModified is None


def list_unfinished(client: Pod) -> list[PluginRun]:
    """Return every run that has not ended, the one that was written last first."""
    runs: list[PluginRun] = []
    for fields in UNFINISHED:
        found = client.search({"type": "PluginRun", **fields, "[[edges]]": True, "_sortOrder": "Desc"})
        runs.extend(run for run in found if isinstance(run, PluginRun))
    return sorted({run.id: run for run in runs}.values(), key=_written_at, reverse=True)


def _written_at(run: PluginRun) -> datetime:
    assert run.dateServerModified is not None  # noqa: S101 -- the Pod dates what it holds
    return run.dateServerModified


def find_unfinished(client: Pod, state: PersistentState) -> PluginRun | None:
    """Return the run of a plugin state that has not ended and was written last; None if there is none.

    So one that was made ready again comes before one that was left behind.
    """
    runs = list_unfinished(client)
    return next((run for run in runs if any(each.id == state.id for each in run.pluginState)), None)


def begin_run(
    client: Pod, state: PersistentState, properties: Mapping[str, Any], account: Mapping[str, Any] | None = None
) -> PluginRun:
    """Create a run on a plugin state, and with it its account, if it is to have one; all of it or nothing.

    Args:
        client: What reaches the Pod.
        state: What it works on; one that is new is created with it.
        properties: Of the PluginRun, as in a plugin's metadata.
        account: The properties of its Account.
    """
    while True:
        values: dict[str, Any] = {"status": str(Status.IDLE), **properties, "pluginState": [state]}
        run = PluginRun(**values)
        try:
            with client.transaction():
                if is_new(state):
                    client.create(state)
                if account is not None:
                    run.account.append(client.create(Account(**account)))
                client.create(run)
        except ConflictError:
            made = client.find(_id(state)) if is_new(state) else None
            if not isinstance(made, PersistentState):
                raise
            state = made  # by another process, meanwhile
        else:
            return run


def continue_run(client: Pod, run_id: str) -> tuple[PluginRun, PersistentState]:
    """Return a run and the plugin state that it works on; a run that leads to none gets its plugin's default one.

    Raises:
        NotFoundError, ConflictError: As `get_unfinished` says.
    """
    run = get_unfinished(client, run_id)
    if run.pluginState:
        return run, run.pluginState[0]
    state = get_state(client, f"{run.pluginModule}:{run.pluginName}")
    run.pluginState.append(state)
    client.update_item(run)
    return run, state


def get_unfinished(client: Pod, run_id: str) -> PluginRun:
    """Return a run that can be carried on.

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
    return run


def _id(item: Item) -> str:
    if item.id is None:
        raise InvalidError(f"{item!r} is not in the Pod yet")
    return item.id
