"""What an application holds, and the only place that opens doors: where things are, and the client of a Pod.

Hides where a Pod lies, which keys open it and what is made on first use. Nothing here is global: two contexts in one
process may have two homes.
"""

from __future__ import annotations

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
