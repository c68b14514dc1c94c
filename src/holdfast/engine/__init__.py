"""What drives runs: the runner, in the plugin's process. It sees protocols only; who opens doors is told elsewhere."""

from __future__ import annotations

from holdfast.engine.finding import begin_run, continue_run, find_unfinished, get_state
from holdfast.engine.holding import Hold, Timing
from holdfast.engine.runner import Runner

__all__ = ["Hold", "Runner", "Timing", "begin_run", "continue_run", "find_unfinished", "get_state"]
