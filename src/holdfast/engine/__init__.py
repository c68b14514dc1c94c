"""What drives runs: the runner, in the plugin's process. It sees protocols only; who opens doors is told elsewhere."""

from __future__ import annotations

from holdfast.engine.carrying import carry_on, config_of
from holdfast.engine.finding import (
    DEFAULT_STATE,
    FINISHED,
    begin_run,
    continue_run,
    find_unfinished,
    get_state,
    get_unfinished,
    is_new,
    list_unfinished,
    plan_state,
)
from holdfast.engine.holding import Hold, Timing
from holdfast.engine.logs import FactsFormatter, logging_to
from holdfast.engine.owning import abort, check_state, edit, find_lease, find_state, get_run_row, refuse_claimed, retry
from holdfast.engine.runner import Runner

__all__ = [
    "DEFAULT_STATE",
    "FINISHED",
    "FactsFormatter",
    "Hold",
    "Runner",
    "Timing",
    "abort",
    "begin_run",
    "carry_on",
    "check_state",
    "config_of",
    "continue_run",
    "edit",
    "find_lease",
    "find_state",
    "find_unfinished",
    "get_run_row",
    "get_state",
    "get_unfinished",
    "is_new",
    "list_unfinished",
    "logging_to",
    "plan_state",
    "refuse_claimed",
    "retry",
]
