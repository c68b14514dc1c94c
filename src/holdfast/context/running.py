"""Carrying runs out in this process, each over a store of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.context.addresses import Address
from holdfast.context.settings import Settings
from holdfast.engine import (
    DEFAULT_STATE,
    Runner,
    Timing,
    carry_on,
    check_state,
    config_of,
    continue_run,
    get_unfinished,
    logging_to,
    refuse_claimed,
)
from holdfast.errors import InvalidError, NotFoundError, PluginError
from holdfast.items import PersistentState, PluginRun
from holdfast.keys import Identity
from holdfast.plugins import PluginBase, Source, arguments_from
from holdfast.pod import Pod
from holdfast.runs import Outcome
from holdfast.store import Store


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
    """Carry a run on to its end in this process: the unfinished one of a plugin state, else a new one, as `carry_on`.

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
        timing: As `Runner` says; None: that of the lease in the settings.

    Raises:
        NotFoundError, InvalidError, PluginError: There is no such run or plugin, its configuration is wrong, or its
            module raises. Nothing was written.
        ConflictError: Another run holds the plugin state, or this one is carried out elsewhere or has ended.
    """
    open_store = _opening(settings, identity, address)
    store = open_store()

    def drive(cls: type[PluginBase], run: PluginRun, plugin_state: PersistentState, used: Mapping[str, Any]) -> Outcome:
        id_ = run.id or ""
        runner = Runner(
            open_store,
            holder=_holder(store, plugin_state) if is_claimed(address) else None,
            locks=settings.locks_path,
            snapshots=settings.snapshots_path,
            owns_process=owns_process,
            on_progress=on_progress,
            timing=timing or Timing.of(settings.lease_s),
        )
        path = None if is_claimed(address) else settings.run_log_path(id_)
        with logging_to(path, id_, owns_process=owns_process):
            return runner.drive(cls, run, plugin_state, used)

    with Pod(store) as client:
        if run_id is None:
            if source is None:
                raise InvalidError("neither a run nor a plugin was named: one of them is expected")
            locks = settings.locks_path
            return carry_on(store, source, drive, locks=locks, config=config, state=state, is_new=is_new)
        try:
            run = get_unfinished(client, run_id)
            if not run.pluginState:
                check_state(store, run_id)
            from holdfast.plugins.named import find_named  # start-up: a plugin that was named is loaded by now

            folder = _current_folder() if source is None else source.folder
            module, name = run.pluginModule or "", run.pluginName or ""
            found = find_named(f"{module}:{name}", settings.plugins_dir)
            cls = (found or Source(module=module, name=name, folder=folder)).load()
            used = config_of(run.config, f"run {run_id!r}", instead=config)
            arguments_from(cls, used)
            # What it leads to is known: to look again would be a request.
            run, plugin_state = (run, run.pluginState[0]) if run.pluginState else continue_run(client, run_id)
            return replace(drive(cls, run, plugin_state, used), run=run_id)
        except (NotFoundError, InvalidError, PluginError) as exc:
            if is_claimed(address):  # it would be launched again, in vain
                refuse_claimed(store, run_id, exc)
            raise


def is_claimed(address: Address | None) -> bool:
    """Say whether this process is there for a run that was claimed for it: it has been given a token."""
    return address is not None and address.token is not None


def _opening(settings: Settings, identity: Identity | None, address: Address | None) -> Callable[[], Store]:
    """Return what opens the Pod, as often as it is called."""
    if address is None:
        from holdfast.context.pods import unlock  # start-up: for those whose Pod is here, who need the database
        from holdfast.sql import SqliteStore

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


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as exc:
        raise NotFoundError("the current folder is gone: change to one that is there") from exc
