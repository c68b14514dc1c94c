"""The runner: drives one run to its end, in the plugin's process.

Plugin code may raise anything, exit, fork, start threads, or never come back. What becomes of its run is decided here,
once, as an `Outcome`; and whatever happens, nothing is written for a run that somebody else has taken over.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

from holdfast.disk import Disk
from holdfast.engine.holding import Hold, Timing
from holdfast.errors import FencedError, HoldfastError, InvalidError, PluginError
from holdfast.items import PersistentState, PluginRun
from holdfast.plugins import Cancelled, GiveUp, PluginBase, Released, RetryLater, StatefulPlugin
from holdfast.plugins.base import arguments_from
from holdfast.pod import Pod
from holdfast.runs import Outcome, Status, status_of
from holdfast.store import SetProgress, Store

_log: Final = logging.getLogger(__name__)

_REPORT_EVERY_S: Final = 1.0
_MAX_ERROR: Final = 2000
"""Characters of a failure's reason that are kept on the run; the traceback is in its log."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Runner:
    """Drives one run.

    Args:
        open_store: Opens the Pod; called once for the plugin and once for the renewals.
        locks: A folder on this machine for lock files.
        owns_process: The process is there for this run alone: signals release it, a plugin that does not come to a
            safe point is interrupted, and one that does not even then ends with the process. Else it is only asked.
        on_progress: Told how many steps of how many (None: unknown) are done.
        timing: How long what lasts.
        disk: Where ``locks`` lies.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        *,
        locks: Path,
        owns_process: bool = False,
        on_progress: Callable[[int, int | None], None] | None = None,
        timing: Timing | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._open_store = open_store
        self._locks = locks
        self._owns_process = owns_process
        self._on_progress = on_progress
        self._timing = timing or Timing()
        self._disk = disk or Disk()
        self._stop_with: BaseException | None = None
        self._signal: int | None = None
        self._reported_at = 0.0
        self._progress: tuple[int, int | None] | None = None
        self._client: Pod | None = None
        self._run = ""
        self._is_over = threading.Event()

    def drive(
        self, cls: type[PluginBase], run: PluginRun, state: PersistentState, config: Mapping[str, Any]
    ) -> Outcome:
        """Claim the plugin state, carry the run on, and say what became of it.

        Raises:
            ConflictError: Another run holds the plugin state, or this run is carried out elsewhere; nothing was
                written.
            InvalidError: The configuration is not what the plugin takes; nothing was written.
            UnavailableError: The Pod cannot be reached.
        """
        if run.id is None or state.id is None:
            raise InvalidError("a run and its plugin state must be in the Pod before it can be carried out")
        arguments = arguments_from(cls, config)
        self._run = run.id
        hold = Hold(
            self._open_store,
            state=state.id,
            run=run.id,
            locks=self._locks,
            on_lost=self._on_lost,
            timing=self._timing,
            disk=self._disk,
        )
        store = self._open_store()
        pid = os.getpid()
        try:
            hold.claim(store, status_of(run.status))
            with Pod(store, fence=hold.fence) as client, self._listening():
                outcome = self._carry_on(cls, run, state, arguments, client)
                if os.getpid() != pid:
                    os._exit(0)  # a child that the plugin forked and that came back up to here: it is not the run
                self._is_over.set()
                return self._finish(hold, store, outcome)
        finally:
            if os.getpid() == pid:
                self._is_over.set()
                hold.close()
                store.close()

    # -- what a plugin may ask ----------------------------------------------------------------------------------------

    def safe_point(self) -> None:
        """Raise what the run is to stop with, if it is to stop."""
        if self._stop_with is not None:
            raise self._stop_with

    def report(self, done: int, total: int | None) -> None:
        """Show progress, and store it once a second."""
        if self._on_progress is not None:
            self._on_progress(done, total)
        self._progress = (done, total)
        now = time.monotonic()
        if total and self._client is not None and now - self._reported_at >= _REPORT_EVERY_S:
            self._reported_at = now
            self._client.add(SetProgress(self._run, min(1.0, done / total)))

    # -- driving ------------------------------------------------------------------------------------------------------

    def _carry_on(
        self, cls: type[PluginBase], run: PluginRun, state: PersistentState, arguments: dict[str, Any], client: Pod
    ) -> Outcome:
        """Run the plugin's code. Whatever it raises ends here: it is not ours, and may be anything."""
        self._client = client
        try:
            if issubclass(cls, StatefulPlugin):
                arguments["pluginState"] = state
            plugin = cls(pluginRun=run, client=client, **arguments)
            if isinstance(plugin, StatefulPlugin):
                plugin.driven_by(self)
            plugin.add_to_schema()
            if isinstance(plugin, StatefulPlugin):
                plugin.setup()
            self.safe_point()
            found = plugin.run()
            if inspect.iscoroutine(found):
                asyncio.run(found)
        except (Cancelled, Released, FencedError) as exc:
            return self._stopped(self._stop_with or exc)
        except RetryLater as exc:
            return Outcome(status=Status.READY, error=exc.reason or None, exit_code=75, retry_after_s=exc.after_s)
        except (SystemExit, KeyboardInterrupt, Exception) as exc:  # noqa: BLE001 -- the runner's boundary
            return self._failed(exc)
        return Outcome(status=Status.DONE, exit_code=0)

    def _stopped(self, why: BaseException) -> Outcome:
        if isinstance(why, Released):
            return Outcome(status=Status.READY, exit_code=128 + (self._signal or signal.SIGTERM))
        if isinstance(why, Cancelled):
            return Outcome(status=Status.ABORTED, error=str(why) or None, exit_code=0)
        return Outcome(status=None, error=str(why), exit_code=FencedError.exit_code)

    def _failed(self, exc: BaseException) -> Outcome:
        if self._stop_with is not None:
            return self._stopped(self._stop_with)  # what a plugin raises on its way out is not why it ended
        if isinstance(exc, SystemExit) and exc.code in (None, 0):
            return Outcome(status=Status.DONE, exit_code=0)
        reason = str(exc) if isinstance(exc, GiveUp) else f"{type(exc).__name__}: {exc}"
        _log.error("run.failed", extra={"run": self._run}, exc_info=exc)
        code = exc.exit_code if isinstance(exc, HoldfastError) else PluginError.exit_code
        clean = reason[:_MAX_ERROR].replace("\0", "").encode(errors="replace").decode()
        return Outcome(status=Status.ERROR, error=clean, exit_code=code)

    def _finish(self, hold: Hold, store: Store, outcome: Outcome) -> Outcome:
        if outcome.status is None:
            return outcome
        try:
            hold.finish(store, outcome.status, outcome.error)
        except FencedError as exc:
            return Outcome(status=None, error=str(exc), exit_code=exc.exit_code)
        _log.info("run.ended", extra={"run": self._run, "status": str(outcome.status)})
        return outcome

    # -- being stopped ------------------------------------------------------------------------------------------------

    def _on_lost(self, why: str) -> None:
        """In the renewing thread: the run must stop."""
        if why == "cancelled":
            self._stop_with = Cancelled("aborted")
        else:
            text = "another run has taken over" if why == "fenced" else "its lease could not be renewed"
            self._stop_with = FencedError(f"run {self._run!r} must stop: {text}", run=self._run)
        _log.warning("run.stopping", extra={"run": self._run, "reason": why})
        if self._owns_process:
            threading.Thread(target=self._insist, name="insisting", daemon=True).start()

    def _insist(self) -> None:
        """Interrupt a plugin that comes to no safe point; end the process if even that does not help."""
        if self._is_over.wait(self._timing.grace_s):
            return
        main = ctypes.c_ulong(threading.main_thread().ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(Cancelled))  # `_stop_with` says why
        if self._is_over.wait(self._timing.grace_s):
            return
        _log.error("run.killed", extra={"run": self._run})
        logging.shutdown()
        # Nothing more is written: an aborted run was ended by its owner, a fenced one is somebody else's, and the
        # lease of a released one lapses.
        os._exit(FencedError.exit_code)

    @contextmanager
    def _listening(self) -> Generator[None]:
        """Let SIGTERM and SIGINT release the run, if the process is there for it alone."""
        if not self._owns_process or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, cast("Any", handler))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signal = number
        if self._stop_with is None:
            self._stop_with = Released(signal.Signals(number).name)
            threading.Thread(target=self._insist, name="insisting", daemon=True).start()
        else:
            raise self._stop_with  # the second signal: at once, wherever the plugin is
