"""The runner: drives one run to its end, in the plugin's process.

Plugin code may raise anything, exit, fork, start threads, or never come back. What becomes of its run is decided here,
once, as an `Outcome`; and whatever happens, nothing is written for a run that somebody else has taken over.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

from holdfast.disk import Disk
from holdfast.engine.holding import Hold, Timing
from holdfast.engine.migrating import migrate
from holdfast.errors import ConflictError, FencedError, HoldfastError, InvalidError, PluginError
from holdfast.items import PersistentState, PluginRun, own_types_of
from holdfast.plugins import Cancelled, GiveUp, PluginBase, Released, RetryLater, StatefulPlugin
from holdfast.plugins.base import arguments_from
from holdfast.pod import Pod
from holdfast.runs import Outcome, Status, status_of
from holdfast.store import SetProgress, Store, UpdateItem

if TYPE_CHECKING:  # as in `Runner._prepare`
    from holdfast.engine.saving import Saving

_log: Final = logging.getLogger(__name__)

_REPORT_EVERY_S: Final = 1.0
_MAX_ERROR: Final = 2000
"""Characters of a failure's reason that are kept on the run; the traceback is in its log."""
_RETRY_LATER: Final = 75
"""What the process of a run ends with that is to be tried again, as others know it (``EX_TEMPFAIL`` of sysexits.h)."""
_RETRY_AFTER_S: Final = 60.0
"""When it is launched again if its plugin does not say: at once, it would ask for what is away without end."""

WORKING: Final = frozenset({Status.STARTED, Status.AUTHENTICATED, Status.DAEMON})

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Runner:
    """Drives one run.

    Args:
        open_store: Opens the Pod; called once for the plugin and once for the renewals.
        locks: A folder on this machine for lock files.
        snapshots: A folder for snapshots, where each plugin state has one of its own; None: no plugin can have any.
        holder: As `Hold` says.
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
        snapshots: Path | None = None,
        holder: str | None = None,
        owns_process: bool = False,
        on_progress: Callable[[int, int | None], None] | None = None,
        timing: Timing | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._open_store = open_store
        self._locks = locks
        self._snapshots = snapshots
        self._holder = holder
        self._owns_process = owns_process
        self._on_progress = on_progress
        self._timing = timing or Timing()
        self._disk = disk or Disk()
        self._stop_with: BaseException | None = None
        self._signal: int | None = None
        self._reported_at = 0.0
        self._progress: tuple[int, int | None] | None = None
        self._client: Pod | None = None
        self._store: Store | None = None
        self._saving: Saving | None = None
        self._run = ""
        self._pid = os.getpid()
        self._thread_id = 0
        self._is_over = threading.Event()
        self._is_interrupted = False
        self._interrupting = threading.Lock()
        self._is_saving = False
        self._interrupt: KeyboardInterrupt | None = None

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
        if self._run:
            raise InvalidError(f"this runner has driven run {self._run!r}: make another one for each run", run=run.id)
        arguments = arguments_from(cls, config)
        self._run, self._pid, self._thread_id = run.id, os.getpid(), threading.get_ident()
        hold = Hold(
            self._open_store,
            state=state.id,
            run=run.id,
            locks=self._locks,
            on_lost=self._on_lost,
            holder=self._holder,
            timing=self._timing,
            disk=self._disk,
        )
        self._store = store = self._open_store()
        try:
            hold.claim(store, status_of(run.status))
            _log.info("run.started", extra={"run": self._run, "state": state.id})
            self._listen()
            outcome = self._carry_on(cls, run, state, arguments, _LentPod(store, fence=hold.fence))
            outcome = self._finish(hold, store, outcome)
            if self._interrupt is not None:
                raise self._interrupt
            return outcome
        finally:
            self._is_over.set()
            hold.close()
            store.close()

    # -- what a plugin may ask ----------------------------------------------------------------------------------------

    def safe_point(self) -> None:
        """Raise what the run is to stop with, if it is to stop; never what an `except Exception` shrugs off."""
        # Snapshots are taken in the run's own thread: what others do meanwhile is for the plugin to order.
        if threading.get_ident() == self._thread_id and os.getpid() == self._pid:
            if self._saving is not None and self._stop_with is None:
                self._saving.at_safe_point()
            elif isinstance(self._stop_with, Released):
                self._save_on_the_way_out()
        if isinstance(self._stop_with, Exception):
            raise Cancelled(str(self._stop_with)) from self._stop_with
        if self._stop_with is not None:
            raise self._stop_with

    def report(self, done: int, total: int | None) -> None:
        """Show progress, and store it once a second."""
        if self._on_progress is not None:
            self._on_progress(done, total)
        self._progress = (done, total)
        now, fraction = time.monotonic(), self._fraction()
        if fraction is not None and self._client is not None and now - self._reported_at >= _REPORT_EVERY_S:
            self._reported_at = now
            self._client.add(SetProgress(self._run, fraction))

    def _fraction(self) -> float | None:
        done, total = self._progress or (0, None)
        return min(1.0, done / total) if total is not None and total > 0 else None

    # -- driving ------------------------------------------------------------------------------------------------------

    def _carry_on(
        self, cls: type[PluginBase], run: PluginRun, state: PersistentState, arguments: dict[str, Any], client: Pod
    ) -> Outcome:
        """Run the plugin's code. Whatever it raises ends here: it is not ours, and may be anything."""
        self._client = client
        try:
            try:
                self._call(cls, run, state, arguments, client)
            finally:
                self._leave()
        except BaseException as exc:  # noqa: BLE001 -- the runner's boundary
            self._leave()  # again: it may have been interrupted
            return self._ended_by(exc)
        return Outcome(status=Status.DONE, exit_code=0)

    def _call(
        self, cls: type[PluginBase], run: PluginRun, state: PersistentState, arguments: dict[str, Any], client: Pod
    ) -> None:
        plugin = self._prepare(cls, run, state, arguments, client)
        try:
            self.safe_point()
            try:
                found = plugin.run()
                if inspect.isawaitable(found):
                    import asyncio  # 50 ms of start-up, for those whose run is async

                    asyncio.run(_wait_for(found))
                else:
                    _check_was_run(found, f"{cls.__name__}.run")
            except BaseException as exc:
                if os.getpid() == self._pid and _is_retried(exc):
                    self._save_on_the_way_out()
                elif not _is_exit(exc):
                    raise
                else:
                    self._save()
                raise
            self._save()
        finally:
            saving, self._saving = self._saving, None
            if saving is not None and os.getpid() == self._pid:
                saving.close()

    def _save(self) -> None:
        if self._saving is not None and os.getpid() == self._pid:  # a forked child's memory is not the run's
            self._saving.save()

    def _save_on_the_way_out(self) -> None:
        """Take a last snapshot, if it can be taken; meanwhile the plugin is not the one that takes its time."""
        if self._saving is not None:
            self._is_saving = True
            try:
                self._saving.save_if_it_can_be()
            finally:
                self._is_saving = False

    def _prepare(
        self, cls: type[PluginBase], run: PluginRun, state: PersistentState, arguments: dict[str, Any], client: Pod
    ) -> PluginBase:
        """Return the plugin, set up, with its variables and what it registered as they were."""
        if not issubclass(cls, StatefulPlugin):
            plugin = cls(pluginRun=run, client=client, **arguments)
            self._declare(plugin, client, state)
            return plugin
        while True:
            plugin = cls(pluginRun=run, pluginState=state, client=client, **arguments)
            plugin.driven_by(self)
            self._declare(plugin, client, state)
            folder = None if self._snapshots is None else self._snapshots / str(state.id)
            migrate(plugin, client, str(state.id), folder)
            _check_was_run(plugin.setup(), f"{cls.__name__}.setup")
            if not plugin.snapshots.registered:
                plugin.snapshots.close()
                return plugin
            if folder is None:
                raise InvalidError(
                    f"{cls.__name__} registers what snapshots hold, and its runner has no folder for them"
                )
            from holdfast.engine.saving import Saving  # start-up time: most plugins have no snapshots

            saving = Saving(plugin, state=str(state.id), folder=folder, client=client, disk=self._disk)
            try:
                if saving.restore():
                    plugin.snapshots.close()
                    self._saving, saving = saving, None
                    return plugin
            finally:
                if saving is not None:
                    saving.close()

    def _declare(self, plugin: PluginBase, client: Pod, state: PersistentState) -> None:
        """Let the plugin declare its item types. What nobody has declared before becomes its plugin state's own.

        So its runs have a right to them when they are launched, with a token; under one that is done where types are
        declared.
        """
        assert self._store is not None  # noqa: S101 -- it is open as long as the plugin runs
        before = set(self._store.schema())
        plugin.add_to_schema()
        new = set(self._store.schema()) - before
        if new and self._holder is None:
            id_ = str(state.id)
            row = self._store.find_items([id_])[id_]
            own = json.dumps(sorted(own_types_of(row.properties) | new))
            client.add(UpdateItem(id_, {"ownTypes": own}, row.version))

    def _leave(self) -> None:
        """Note that the plugin's code is behind us: from here on nothing may interrupt this thread."""
        if os.getpid() != self._pid:
            os._exit(0)  # a child that the plugin forked and that came back up to here: it is not the run
        with self._interrupting:
            self._is_over.set()
            if self._is_interrupted:  # Withdraw what is on its way. Not always: with none, Python 3.11 hangs if traced.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), None)

    def _ended_by(self, exc: BaseException) -> Outcome:
        """Say what becomes of a run whose plugin raised ``exc``, which may be a group, as of a `TaskGroup`."""
        parts = _parts(exc)
        signals = [each for each in parts if isinstance(each, (Cancelled, Released))]
        if self._stop_with is not None or signals:  # what a plugin raises on its way out is not why it ended
            if len(signals) < len(parts):
                _log.warning("run.failed_on_its_way_out", extra={"run": self._run}, exc_info=exc)
            return self._stopped(self._stop_with or signals[0])
        if _is_retried(exc):
            delays = [each for each in parts if isinstance(each, RetryLater)]
            last = max(delays, key=lambda each: each.after_s or 0)
            why, after_s = storable(last.reason), last.after_s
            return Outcome(status=Status.READY, error=why, exit_code=_RETRY_LATER, retry_after_s=after_s)
        if _is_exit(exc):
            return Outcome(status=Status.DONE, exit_code=0)
        if isinstance(exc, KeyboardInterrupt) and not self._owns_process:  # it is meant for the application
            self._interrupt = exc
            return Outcome(status=Status.READY, exit_code=128 + signal.SIGINT)
        _log.error("run.failed", extra={"run": self._run}, exc_info=exc)
        # A fenced run ends so as well, as it seems; its end is then refused, and it is left alone.
        why = next((each for each in parts if isinstance(each, GiveUp)), parts[0] if len(parts) == 1 else exc)
        reason = _text(why) if isinstance(why, GiveUp) else f"{type(why).__name__}: {_text(why)}"
        if why is exc and len(parts) > 1:
            reason += "".join(f"; {type(each).__name__}: {_text(each)}" for each in parts)
        is_of_a_kind = isinstance(why, HoldfastError) and type(why) is not HoldfastError
        code = why.exit_code if isinstance(why, HoldfastError) and is_of_a_kind else PluginError.exit_code
        return Outcome(status=Status.ERROR, error=storable(reason), exit_code=code)

    def _stopped(self, why: BaseException) -> Outcome:
        if isinstance(why, Released):
            return Outcome(status=Status.READY, exit_code=128 + (self._signal or signal.SIGTERM))
        if isinstance(why, Cancelled):
            return Outcome(status=Status.ABORTED, error=storable(_text(why)), exit_code=FencedError.exit_code)
        return Outcome(status=None, error=_text(why), exit_code=FencedError.exit_code)

    def _finish(self, hold: Hold, store: Store, outcome: Outcome) -> Outcome:
        if outcome.status is None:
            _log.warning("run.left", extra={"run": self._run, "reason": outcome.error})
            return outcome
        try:
            if outcome.status is Status.READY and self._status(store) not in WORKING:  # the plugin's own move stands
                outcome = replace(self._settled(hold, store), exit_code=outcome.exit_code)
            else:
                after_s = _RETRY_AFTER_S if outcome.retry_after_s is None else outcome.retry_after_s
                retry_after_s = after_s if outcome.exit_code == _RETRY_LATER else None
                progress = self._fraction()
                hold.finish(store, outcome.status, outcome.error, progress=progress, retry_after_s=retry_after_s)
        except FencedError as exc:
            return self._finish(hold, store, Outcome(status=None, error=str(exc), exit_code=exc.exit_code))
        except ConflictError:
            outcome = self._settled(hold, store)
        _log.info("run.ended", extra={"run": self._run, "status": str(outcome.status)})
        return outcome

    def _status(self, store: Store) -> Status:
        return status_of(store.find_items([self._run])[self._run].properties.get("status"))

    def _settled(self, hold: Hold, store: Store) -> Outcome:
        """Leave the run where its plugin has put it itself, as `StatefulPlugin.failed` does, and let go of it."""
        row = store.find_items([self._run])[self._run]
        status, error = status_of(row.properties.get("status")), row.properties.get("error")
        hold.finish(store, status)
        code = {Status.ERROR: PluginError.exit_code, Status.ABORTED: FencedError.exit_code}.get(status, 0)
        return Outcome(status=status, error=error if isinstance(error, str) else None, exit_code=code)

    # -- being stopped ------------------------------------------------------------------------------------------------

    def _on_lost(self, why: str) -> None:
        """In the renewing thread: the run must stop."""
        if why == "cancelled":
            self._stop_with = Cancelled("aborted")
        else:
            text = (
                "another run, or its owner, took the plugin state" if why == "fenced" else "its lease was not renewed"
            )
            self._stop_with = FencedError(f"run {self._run!r} must stop: {text}", run=self._run)
        _log.warning("run.stopping", extra={"run": self._run, "reason": why})
        if self._owns_process:
            threading.Thread(target=self._insist, name="insisting", daemon=True).start()

    def _insist(self) -> None:
        """Interrupt a plugin that comes to no safe point; end the process if even that does not help."""
        if self._is_over.wait(self._timing.grace_s):
            return
        while self._is_saving and isinstance(self._stop_with, Released):  # whoever cannot wait sends a second signal
            if self._is_over.wait(self._timing.look_s):
                return
        _log.warning("run.interrupted", extra={"run": self._run})
        if self._thread_id == threading.main_thread().ident and callable(signal.getsignal(signal.SIGTERM)):
            # A signal ends a blocking call as well, and waits for a commit.
            signal.pthread_kill(self._thread_id, signal.SIGTERM)
            if self._is_over.wait(self._timing.grace_s / 2):
                return
        with self._interrupting:
            if self._is_over.is_set():
                return
            self._is_interrupted = True
            cancelled = ctypes.py_object(Cancelled)  # `_stop_with` says why
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), cancelled)
        if self._is_over.wait(self._timing.grace_s / 2):
            return
        _log.error("run.killed", extra={"run": self._run})
        logging.shutdown()
        # Nothing more is written: an aborted run is ended by its owner, a fenced one is somebody else's, and the
        # lease of a released one lapses.
        os._exit(FencedError.exit_code if self._signal is None else 128 + self._signal)

    def _listen(self) -> None:
        """Let SIGTERM and SIGINT release the run, if the process is there for it alone.

        It stays so until the process ends: a signal that is repeated must not kill it while it says what it has saved.
        """
        if self._owns_process and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._pid:  # a child that the plugin forked: it is nobody's run, and has Python's handlers
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
            signal.raise_signal(number)
            return
        if self._is_over.is_set():
            return
        if self._stop_with is None:
            self._signal = number
            self._stop_with = Released(signal.Signals(number).name)
            threading.Thread(target=self._insist, name="insisting", daemon=True).start()
        else:  # the second signal: at once, wherever the plugin is, and as what no `except Exception` shrugs off
            why = self._stop_with
            raise Cancelled(str(why)) if isinstance(why, Exception) else why


class _LentPod(Pod):
    """The client of a plugin: the store below it is the runner's, which needs it after the plugin."""

    def close(self) -> None:
        """Do nothing: the runner closes it."""


async def _wait_for(found: Awaitable[object]) -> None:
    await found


def _check_was_run(found: object, what: str) -> None:
    """Refuse what a method returned if that has still to be iterated or awaited: its code has not run."""
    if inspect.isgenerator(found) or inspect.isasyncgen(found) or inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()
        message = f"the code of {what} did not run, it returned a {type(found).__name__!r}: it cannot yield"
        raise InvalidError(message + ("" if what.endswith(".run") else ", nor be async"))


def _parts(exc: BaseException) -> list[BaseException]:
    """Return the exceptions of a group, and of the groups in it; one that is no group by itself."""
    found: list[BaseException] = []
    left = [exc]
    while left:
        each = left.pop()
        if isinstance(each, BaseExceptionGroup):
            left.extend(reversed(cast("BaseExceptionGroup[BaseException]", each).exceptions))
        else:
            found.append(each)
    return found


def _is_retried(exc: BaseException) -> bool:
    return all(isinstance(each, RetryLater) for each in _parts(exc))


def _is_exit(exc: BaseException) -> bool:
    """Say whether this is `sys.exit()` of one that is content."""
    return isinstance(exc, SystemExit) and (exc.code is None or (isinstance(exc.code, int) and exc.code == 0))


def _text(exc: BaseException) -> str:
    """Return what an exception of a plugin says, if it can say anything."""
    try:
        return str(exc)
    except BaseException as broken:  # noqa: BLE001 -- it is the plugin's code that answers
        return f"(its text cannot be had: {type(broken).__name__})"


def storable(text: str) -> str | None:
    """Return ``text`` as what a property can hold; None if it is empty."""
    return text[:_MAX_ERROR].replace("\0", "").encode(errors="replace").decode() or None
