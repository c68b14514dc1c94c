"""What an application holds, and the only place that opens doors: where things are, and the client of a Pod.

Hides where a Pod lies, which keys open it and what is made on first use. Nothing here is global: two contexts in one
process may have two homes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # start-up: a run whose Pod is elsewhere needs no database
    from holdfast.context.application import Context
    from holdfast.context.pods import (
        PodClient,
        back_up_pod,
        examine_pod,
        get_pod,
        inspect_backup,
        open_store,
        pod_key_id,
        restore_pod,
        unlock,
        was_made,
    )
    from holdfast.context.running import carry_out
    from holdfast.context.settings import Settings

__all__ = [
    "Context",
    "PodClient",
    "Settings",
    "back_up_pod",
    "carry_out",
    "examine_pod",
    "get_pod",
    "inspect_backup",
    "open_store",
    "pod_key_id",
    "restore_pod",
    "unlock",
    "was_made",
]

_MODULES: Final = {"Context": "application", "Settings": "settings", "carry_out": "running"}


def __getattr__(name: str) -> object:
    """Load a name when it is first used, and keep it."""
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name)
    value: object = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'pods')}"), name)
    globals()[name] = value
    return value
