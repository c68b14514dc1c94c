"""Trials: a plugin carried out in this process on a Pod in memory, and killed wherever that can happen to it.

Hides how a death is played: from the write on at which it falls, nothing that the run does reaches the Pod. It comes
as an exception, so that `finally` and `with` blocks are left, which those of a process that is killed are not.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast

from holdfast.engine import DEFAULT_STATE, Runner, carry_on
from holdfast.items import PersistentState, PluginRun
from holdfast.plugins import PluginBase, Source, source_of
from holdfast.pod import Pod
from holdfast.runs import Outcome, Status
from holdfast.store import Batch, Result, Store
from holdfast.testing.fakes import FakeClock, MemoryStore

_MAX_ATTEMPTS: Final = 100
"""How often a run that was killed may ask to be run again before it counts as one that never ends."""


class Killed(SystemExit):
    """This process is dead. A SystemExit, because that ends an event loop at once, whichever task meets it."""

    def __init__(self) -> None:
        super().__init__(137)  # not 0: the runner would take that for a plugin that is content


class _Life:
    """A store as one process sees it, which may be killed at one of its writes.

    Args:
        store: What outlives it.
        at: The number of the write at which it dies; None: it lives on.
        is_after: Whether that write is still applied.
    """

    def __init__(self, store: Store, at: int | None = None, *, is_after: bool = False) -> None:
        self._store, self._at, self._is_after = store, at, is_after
        self._writes = count(1)
        self._writing = threading.Lock()
        self.is_over = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Apply a batch as `Store` says, or raise Killed."""
        with self._writing:
            if not self.is_over:
                if next(self._writes) != self._at:
                    return self._store.apply(batch)
                self.is_over = True
                if self._is_after:
                    self._store.apply(batch)
            raise Killed

    def close(self) -> None:
        """Do nothing: whoever comes next finds the store open."""


class Trial:
    """A Pod in memory, a clock, and the means to carry plugins out on them.

    Args:
        folder: For lock files and snapshots.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.clock = FakeClock()
        self._store = MemoryStore(clock=self.clock)
        self.pod = Pod(self._store)

    def run_plugin(
        self,
        plugin: type[PluginBase] | str,
        *,
        config: Mapping[str, Any] | None = None,
        state: str = DEFAULT_STATE,
        is_new: bool = False,
    ) -> Outcome:
        """Carry a run on to its end as ``holdfast run`` does: the unfinished one of the plugin state, else a new one.

        What the plugin raises is the ``error`` of the outcome, and its traceback is logged.

        Args:
            plugin: The class; or ``MODULE:CLASS``, ``FILE.py:CLASS`` or the path of a metadata file.
            config: Its configuration, as JSON holds it; None: that of the run or the metadata.
            state: The name of the plugin state.
            is_new: Begin a run even if there is an unfinished one.

        Raises:
            InvalidError: The configuration is not what the plugin takes, or no JSON; no run was begun.
            NotFoundError, PluginError: There is no such plugin, or its module raises.
        """
        return _carry_out(_Life(self._store), plugin, self._folder, config, state, is_new=is_new)

    def kill_at_every_write(
        self,
        plugin: type[PluginBase] | str,
        *,
        check: Callable[[Pod], object],
        config: Mapping[str, Any] | None = None,
        prepare: Callable[[Pod], object] | None = None,
    ) -> int:
        """Kill a run before and after each of its writes, carry it on to its end, and return how often that was.

        Each time it is a new run on a new Pod, and this trial's clock, which goes on by what a plugin asks to wait.
        The last run of either kind is killed no more and checked as well, so that a run that is never killed counts.

        Args:
            plugin: As `run_plugin` takes it.
            check: Called with the Pod whenever a run is done; raises, as with ``assert``, if something is wrong there.
                A note of the exception says at which write the run was killed.
            config: As `run_plugin` takes it.
            prepare: Called with the Pod before the run.

        Raises:
            AssertionError: A run ended as something else than done, or asked to be run again without an end.
        """
        with _threads_dying():
            return sum(self._kill_each(plugin, check, config, prepare, is_after=is_after) for is_after in (False, True))

    def _kill_each(
        self,
        plugin: type[PluginBase] | str,
        check: Callable[[Pod], object],
        config: Mapping[str, Any] | None,
        prepare: Callable[[Pod], object] | None,
        *,
        is_after: bool,
    ) -> int:
        for at in count(1):
            store = MemoryStore(clock=self.clock)
            life = _Life(store, at, is_after=is_after)
            try:
                with TemporaryDirectory(dir=self._folder) as folder:
                    if prepare is not None:
                        prepare(Pod(store))
                    with _in_silence(), suppress(Killed):
                        _carry_out(life, plugin, Path(folder), config)
                    self._bring_to_its_end(store, plugin, Path(folder), config)
                check(Pod(store))
            except BaseException as exc:
                if life.is_over:
                    exc.add_note(f"This run was killed {'after' if is_after else 'before'} its write {at}.")
                raise
            if not life.is_over:
                return at - 1
        raise AssertionError  # numbers do not end

    def _bring_to_its_end(
        self, store: Store, plugin: type[PluginBase] | str, folder: Path, config: Mapping[str, Any] | None
    ) -> None:
        outcome: Outcome | None = None
        for _ in range(_MAX_ATTEMPTS):
            if Pod(store).search({"type": "PluginRun", "status": str(Status.DONE), "_limit": 1}):
                return
            outcome = _carry_out(_Life(store), plugin, folder, config)
            if outcome.status not in (Status.DONE, Status.READY):
                break
            self.clock.advance(round((outcome.retry_after_s or 0) * 1000))
        raise AssertionError(f"the run did not come to its end, it is {outcome}")


@contextmanager
def _threads_dying() -> Generator[None]:
    """Let threads of a plugin end without a word when they meet the death of its run."""
    before = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs, /) -> None:
        if args.exc_type is not Killed:
            before(args)

    threading.excepthook = excepthook
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def _in_silence() -> Generator[None]:
    """Let nothing be logged: how a run dies is no news, and there are many."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _carry_out(
    life: _Life,
    plugin: type[PluginBase] | str,
    folder: Path,
    config: Mapping[str, Any] | None,
    state: str = DEFAULT_STATE,
    *,
    is_new: bool = False,
) -> Outcome:
    store = cast("Store", life)

    def drive(cls: type[PluginBase], run: PluginRun, state: PersistentState, config: Mapping[str, Any]) -> Outcome:
        runner = Runner(lambda: store, locks=folder / "locks", snapshots=folder / "snapshots")
        return runner.drive(cls, run, state, config)

    source = source_of(plugin) if isinstance(plugin, str) else Source.of(plugin)
    return carry_on(store, source, drive, locks=folder / "locks", config=config, state=state, is_new=is_new)
