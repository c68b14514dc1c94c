"""Carrying runs out in this process, each over a store of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from holdfast.context.addresses import Address
from holdfast.context.pods import unlock
from holdfast.context.settings import Settings
from holdfast.engine import (
    DEFAULT_STATE,
    FINISHED,
    Runner,
    Timing,
    begin_run,
    check_state,
    continue_run,
    find_unfinished,
    get_unfinished,
    logging_to,
    plan_state,
)
from holdfast.engine.owning import check_free
from holdfast.errors import HoldfastError, InvalidError, NotFoundError
from holdfast.items import PersistentState, PluginRun
from holdfast.keys import Identity
from holdfast.plugins import PluginBase, Source, arguments_from
from holdfast.pod import Pod
from holdfast.runs import Outcome, Status
from holdfast.sql import SqliteStore
from holdfast.store import Store
from holdfast.values import shown

_MAX_LOOKS: Final = 10
"""How often another process may end the run that was found, before it could be claimed."""


def carry_out(
    settings: Settings,
    source: Source | None,
    *,
    config: Mapping[str, Any] | None = None,
    state: str = DEFAULT_STATE,
    is_new: bool = False,
    run_id: str | None = None,
    identity: Identity | None = None,
    address: Address | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
    owns_process: bool = False,
    timing: Timing | None = None,
) -> Outcome:
    """Carry a run on to its end in this process: the unfinished one of a plugin state, else a new one.

    None is begun while another run holds the plugin state; one that is begun and cannot be started all the same, since
    another came first, is deleted again. If the run that was found ends before it is claimed, there is another look.

    Args:
        settings: Where the Pod lies.
        source: The plugin; with ``run_id`` only where its module is looked for.
        config: Used instead of the configuration that the run or the metadata has; a new run keeps it.
        state: The name of the plugin state.
        is_new: Begin a run even if there is an unfinished one.
        run_id: Carry on this run.
        identity: The owner; None: the one in ``keys.json``.
        address: Where the Pod is, if not in the home; locks, logs and snapshots are there nevertheless. A run with a
            token has been claimed for: ``run_id`` names it.
        on_progress: As `Runner` says.
        owns_process: As `Runner` says.
        timing: As `Runner` says.

    Raises:
        NotFoundError, InvalidError, PluginError: There is no such run or plugin, its configuration is wrong, or its
            module raises. Nothing was written.
        ConflictError: Another run holds the plugin state, or this one is carried out elsewhere or has ended.
    """
    open_store = _opening(settings, identity, address)
    store = open_store()

    def drive(cls: type[PluginBase], run: PluginRun, plugin_state: PersistentState) -> Outcome:
        id_ = run.id or ""
        runner = Runner(
            open_store,
            holder=None if address is None or address.token is None else _holder(store, plugin_state),
            locks=settings.locks_path,
            snapshots=settings.snapshots_path,
            owns_process=owns_process,
            on_progress=on_progress,
            timing=timing,
        )
        used = _config_of(run.config, f"run {id_!r}") if config is None else config
        with logging_to(settings.run_log_path(id_), id_, owns_process=owns_process):
            return replace(runner.drive(cls, run, plugin_state, used), run=id_)

    with Pod(store) as client:
        if run_id is not None:
            check_state(store, run_id)
            run = get_unfinished(client, run_id)
            from holdfast.plugins.named import find_named  # start-up: a plugin that was named is loaded by now

            folder = _current_folder() if source is None else source.folder
            module, name = run.pluginModule or "", run.pluginName or ""
            found = find_named(f"{module}:{name}", settings.plugins_dir)
            cls = (found or Source(module=module, name=name, folder=folder)).load()
            arguments_from(cls, _config_of(run.config, f"run {run_id!r}") if config is None else config)
            return drive(cls, *continue_run(client, run_id))
        if source is None:
            raise InvalidError("neither a run nor a plugin was named: one of them is expected")
        cls = source.load()
        text = source.properties.get("config")
        config_of_new = _config_of(text, "the metadata") if config is None else config
        for looks_left in reversed(range(_MAX_LOOKS)):
            plugin_state = plan_state(client, source.plugin_id, state)
            found = None if is_new else find_unfinished(client, plugin_state)
            is_fresh = found is None
            if found is None:
                arguments_from(cls, config_of_new)
                check_free(store, plugin_state.id or "", locks=settings.locks_path)
                properties = {**source.properties, "config": json.dumps(config_of_new)}
                found = begin_run(client, plugin_state, properties, source.account)
            try:
                run = cast("PluginRun", client.get(found.id or ""))
                if plugin_state.dateServerModified is None:  # another process has made it meanwhile
                    plugin_state = run.pluginState[0]
                return drive(cls, run, plugin_state)
            except HoldfastError as exc:
                now = client.find(found.id or "", expanded=False)
                if is_fresh and isinstance(now, PluginRun) and now.status == found.status:
                    client.delete_items([found, *found.account])
                if not looks_left or not _came_late(exc, found.id):
                    raise
    raise AssertionError  # the last look returns or raises


def _opening(settings: Settings, identity: Identity | None, address: Address | None) -> Callable[[], Store]:
    """Return what opens the Pod, as often as it is called."""
    if address is None:
        path, key = unlock(settings, identity)
        return lambda: SqliteStore(path, key)
    from holdfast.remote import RemoteStore, make_pod  # start-up: for those whose Pod is elsewhere

    if address.token is None:
        with closing(address.connect()) as connection:
            make_pod(connection)
    return lambda: RemoteStore(address.connect())


def _holder(store: Store, state: PersistentState) -> str:
    """Return for whom the plugin state was claimed, which a token shows to who presents it."""
    lease = store.find_lease(state.id or "")
    return "" if lease is None else lease.holder


def _came_late(exc: HoldfastError, run: str | None) -> bool:
    """Say whether a run that was found could not be claimed because it has ended, or was deleted, meanwhile."""
    facts = exc.facts
    has_ended = facts.get("wanted") == Status.STARTED and facts.get("status") in FINISHED
    return has_ended or (isinstance(exc, NotFoundError) and facts.get("id") == run)


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as exc:
        raise NotFoundError("the current folder is gone: change to one that is there") from exc


def _config_of(text: object, what: str) -> dict[str, Any]:
    """Return a configuration that is kept as JSON text; an empty one if there is none."""
    try:
        found: object = json.loads(text) if isinstance(text, str) and text else {}
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"the configuration of {what} is no JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise InvalidError(f"the configuration of {what} cannot be {shown(found)}: an object is expected")
    return cast("dict[str, Any]", found)
