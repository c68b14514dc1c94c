"""Stateful plugins that carry on from where they were.

Every name here is loaded when it is first used, so `import holdfast` alone costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

# The one table of public names. __init__.pyi tells type checkers the same; a test holds the two equal. Modules of the
# package never import from here: they would import everything above them.
_PUBLIC: Final = {
    "Account": "items",
    "BestStatesKeeper": "snapshots.keepers",
    "CVUStoredDefinition": "items",
    "Cancelled": "plugins",
    "CategoricalLabel": "items",
    "ConflictError": "errors",
    "Context": "context",
    "DamagedError": "errors",
    "Dataset": "items",
    "DatasetEntry": "items",
    "DeniedError": "errors",
    "Edge": "items",
    "EmailMessage": "items",
    "EverySteps": "snapshots.conditions",
    "FencedError": "errors",
    "Field": "items",
    "File": "items",
    "GiveUp": "plugins",
    "HoldfastError": "errors",
    "InvalidError": "errors",
    "Item": "items",
    "LatestStatesKeeper": "snapshots.keepers",
    "Message": "items",
    "NotFoundError": "errors",
    "OnSignal": "snapshots.conditions",
    "PeriodicSaveCondition": "snapshots.conditions",
    "PersistentState": "items",
    "PersistentStateMixin": "snapshots.saving",
    "Person": "items",
    "Photo": "items",
    "PinnedStatesKeeper": "snapshots.keepers",
    "Plugin": "items",
    "PluginBase": "plugins",
    "PluginConfig": "plugins",
    "PluginError": "errors",
    "PluginLoader": "plugins.loader",
    "PluginRun": "items",
    "PodClient": "context",
    "RUN_ABORTED": "runs",
    "RUN_AUTHENTICATED": "runs",
    "RUN_DAEMON": "runs",
    "RUN_DONE": "runs",
    "RUN_ERROR": "runs",
    "RUN_IDLE": "runs",
    "RUN_INITIALIZED": "runs",
    "RUN_READY": "runs",
    "RUN_STARTED": "runs",
    "RUN_USER_ACTION_NEEDED": "runs",
    "Released": "plugins",
    "RetryLater": "plugins",
    "Save": "snapshots.saving",
    "SaveCondition": "snapshots.conditions",
    "Schedule": "items",
    "Secret": "items",
    "Settings": "context",
    "SnapshotConfig": "plugins",
    "SpacedStatesKeeper": "snapshots.keepers",
    "State": "state",
    "StateError": "state",
    "StateNamespace": "state",
    "StateStore": "snapshots.saving",
    "StatefulPlugin": "plugins",
    "StatesKeeper": "snapshots.keepers",
    "Status": "runs",
    "UnavailableError": "errors",
    "current": "plugins.current",
    "is_pinned": "snapshots.removal",
    "load_pickle": "snapshots.saving",
    "pin": "snapshots.removal",
    "register_base_schemas": "plugins",
    "save_pickle": "snapshots.saving",
    "unpin": "snapshots.removal",
    "verify": "snapshots.reading",
    "version_of": "items",
}
"""The module of this package in which each public name is defined."""

__all__ = list(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll] -- checkers read __init__.pyi


def __getattr__(name: str) -> object:
    """Load the public name ``name`` and keep it, so that it is loaded once."""
    if name == "__version__":
        # Here, because reading the metadata of what is installed costs more than all else in this file.
        from importlib.metadata import version

        value: object = version("holdfast")
    elif name in _PUBLIC:
        value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    else:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not, and those that every module has."""
    return sorted({*globals(), *_PUBLIC, "__version__"})
