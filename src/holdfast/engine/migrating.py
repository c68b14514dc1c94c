"""Bringing the variables of a plugin state to the version that the plugin's code works with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from holdfast.errors import ConflictError
from holdfast.plugins import StatefulPlugin
from holdfast.pod import Pod
from holdfast.store import DeleteVariable, SetVariable
from holdfast.values import Value

_log: Final = logging.getLogger(__name__)

OURS: Final = "holdfast"
"""The namespace of a plugin state that is Holdfast's own: which version its variables are of."""

_VERSION: Final = "state_version"


def migrate(plugin: StatefulPlugin, client: Pod, state: str, folder: Path | None) -> None:
    """Bring the variables of a plugin state to the version that a plugin's class works with, in one transaction.

    What they were is kept in a namespace of its own, ``before-v1``, and the snapshot that they belong to is pinned.

    Raises:
        ConflictError: They are of a newer version than the class knows.
        NotImplementedError: They are older, and the class cannot migrate them.
    """
    wanted = plugin.state_version
    variables, snapshot = dict(client.variables(state)), client.find_snapshot(state)
    known = client.variables(state, OURS).get(_VERSION)
    is_new = known is None and not variables and snapshot is None
    found = wanted if is_new else int(known or 1)
    if found > wanted:
        message = (
            f"plugin state {state!r} is of version {found}, and this {type(plugin).__name__} knows {wanted}: "
            "run it with the newer code"
        )
        raise ConflictError(message, state=state, version=found)
    if found == wanted:
        if is_new and wanted != 1:
            put_version(client, state, wanted)
        return
    if snapshot is not None and folder is not None and (folder / snapshot).is_dir():
        from holdfast.snapshots.removal import pin  # start-up time: most plugins have no snapshots

        pin(folder / snapshot)
    with client.transaction():
        migrated = dict(variables)
        changed = plugin.migrate_state(migrated, found)
        put_variables(client, state, variables, f"before-v{found}")
        put_variables(client, state, migrated if changed is None else changed)
        put_version(client, state, wanted)
    plugin.state.load()  # what it read meanwhile is not what is there
    _log.info("state.migrated", extra={"state": state, "from_version": found, "version": wanted})


def put_variables(client: Pod, state: str, variables: Mapping[str, Value], namespace: str = "") -> None:
    """Give a namespace these variables and no others, with the open block."""
    for name in client.variables(state, namespace):
        if name not in variables:
            client.add(DeleteVariable(state, name, namespace))
    for name, value in variables.items():
        client.add(SetVariable(state, name, value, namespace))


def put_version(client: Pod, state: str, version: int) -> None:
    """Note which version the variables are of."""
    client.add(SetVariable(state, _VERSION, version, OURS))
