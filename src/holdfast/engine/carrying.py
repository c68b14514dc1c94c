"""Carrying a run on: the unfinished one of a plugin state, else a new one, each with the configuration that it has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from holdfast.engine.finding import DEFAULT_STATE, FINISHED, begin_run, find_unfinished, plan_state
from holdfast.engine.owning import check_free
from holdfast.errors import HoldfastError, InvalidError, NotFoundError
from holdfast.items import PersistentState, PluginRun
from holdfast.plugins import PluginBase, Source, arguments_from
from holdfast.pod import Pod
from holdfast.runs import Outcome, Status
from holdfast.store import Store
from holdfast.values import shown

Drive = Callable[[type[PluginBase], PluginRun, PersistentState, Mapping[str, Any]], Outcome]
"""What drives a run with a configuration, as `Runner.drive` does."""

_MAX_LOOKS: Final = 10
"""How often another process may end the run that was found, before it could be claimed."""


def carry_on(
    store: Store,
    source: Source,
    drive: Drive,
    *,
    locks: Path,
    config: Mapping[str, Any] | None = None,
    state: str = DEFAULT_STATE,
    is_new: bool = False,
) -> Outcome:
    """Drive the unfinished run of a plugin state, else a new one, to its end.

    None is begun while another run holds the plugin state; one that is begun and cannot be started all the same, since
    another came first, is deleted again. If the run that was found ends before it is claimed, there is another look.

    Args:
        store: The Pod, which stays open.
        source: The plugin.
        drive: What drives a run; called again for another look.
        locks: The folder with the lock files of this machine.
        config: Used instead of the configuration that the run or the metadata has; a new run keeps it.
        state: The name of the plugin state.
        is_new: Begin a run even if there is an unfinished one.

    Raises:
        NotFoundError, InvalidError, PluginError: There is no such plugin, its configuration is wrong, or its module
            raises. Nothing was written.
        ConflictError: Another run holds the plugin state.
    """
    client, cls = Pod(store), source.load()
    source = source.known(cls)
    used = config_of(source.properties.get("config"), "the metadata", instead=config)
    for looks_left in reversed(range(_MAX_LOOKS)):
        plugin_state = plan_state(client, source.plugin_id, state)
        found = None if is_new else find_unfinished(client, plugin_state)
        is_fresh = found is None
        if found is None:
            arguments_from(cls, used)
            check_free(store, plugin_state.id or "", locks=locks)
            properties = {**source.properties, "config": json.dumps(used)}
            if "containerImage" in properties:  # else a server would launch what is carried on here
                properties["containerImage"] = "none"
            found = begin_run(client, plugin_state, properties, source.account)
        try:
            run = cast("PluginRun", client.get(found.id or ""))
            if plugin_state.dateServerModified is None:  # another process has made it meanwhile
                plugin_state = run.pluginState[0]
            kept = config_of(run.config, f"run {run.id!r}", instead=config)
            return replace(drive(cls, run, plugin_state, kept), run=run.id or "")
        except HoldfastError as exc:
            now = client.find(found.id or "", expanded=False)
            if is_fresh and isinstance(now, PluginRun) and now.status == found.status:
                client.delete_items([found, *found.account])
            if not looks_left or not _came_late(exc, found.id):
                raise
    raise AssertionError  # the last look returns or raises


def _came_late(exc: HoldfastError, run: str | None) -> bool:
    """Say whether a run that was found could not be claimed because it has ended, or was deleted, meanwhile."""
    facts = exc.facts
    has_ended = facts.get("wanted") == Status.STARTED and facts.get("status") in FINISHED
    return has_ended or (isinstance(exc, NotFoundError) and facts.get("id") == run)


def config_of(text: object, what: str, *, instead: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a configuration that is kept as JSON text, an empty one if there is none; or what is used ``instead``.

    It is what JSON gives back, for a tuple a list, so that the first attempt has the same as all others.

    Raises:
        InvalidError: The text is no JSON; or it is no object, or one with what JSON cannot hold.
    """
    try:
        found: object = instead if instead is not None else json.loads(text) if isinstance(text, str) and text else {}
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"the configuration of {what} is no JSON: {exc}") from exc
    if not isinstance(found, Mapping):
        raise InvalidError(f"the configuration of {what} cannot be {shown(found)}: an object is expected")
    return {name: _as_json(name, value) for name, value in cast("Mapping[str, Any]", found).items()}


def _as_json(name: str, value: object) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        # Not the value: it may be a password.
        message = f"setting {shown(name)} must be what JSON can hold, such as str(path) for a path: {exc}"
        raise InvalidError(message, setting=shown(name)) from exc
