"""Which writes to a Pod a supervisor has to look at: those that may let a run begin, or end."""

from __future__ import annotations

from typing import Final

from holdfast.store import (
    AnswerQuestion,
    CreateEdge,
    CreateItem,
    DeleteEdge,
    DeleteItem,
    EndLease,
    MoveRun,
    Operation,
    ReleaseLease,
    UpdateItem,
)

_TYPES: Final = frozenset({"PluginRun", "Schedule"})
_PROPERTIES: Final = frozenset({"deleted", "status", "containerImage", "retryAt"}) | {
    *("interval", "cron", "timezone", "isPaused", "scheduledTo", "overlap", "catchUp")
}
"""Of runs and of schedules; which item is updated, an operation does not say."""


def is_stirring(operation: Operation) -> bool:
    """Say whether a run may have to be launched, or ended, because this was written to its Pod."""
    match operation:
        case CreateItem():
            return operation.type in _TYPES
        case UpdateItem():
            return not _PROPERTIES.isdisjoint(operation.properties)
        case CreateEdge() | DeleteEdge():
            return operation.name == "pluginState"
        case _:
            return isinstance(operation, (AnswerQuestion, DeleteItem, EndLease, MoveRun, ReleaseLease))
