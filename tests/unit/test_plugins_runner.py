"""What becomes of a run, decided without a process of its own, on a Pod in memory."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast import Cancelled, ConflictError, InvalidError, PluginRun, Released, RetryLater
from holdfast.engine import Runner, Timing, abort, begin_run, edit, find_lease, find_unfinished, get_state, retry
from holdfast.plugins import StatefulPlugin
from holdfast.pod import Pod
from holdfast.runs import Outcome, Status
from holdfast.store import Batch, EndLease, Store
from holdfast.testing import MemoryStore


class Kept(MemoryStore):
    """A Pod that outlives the clients that close it."""

    def close(self) -> None:
        """Stay."""


@pytest.fixture
def store() -> Kept:
    """A Pod in memory."""
    return Kept()


def drive(store: Store, folder: Path, work: Callable[[Any], object], **how: Any) -> tuple[Outcome, str]:
    """Drive a new run of a plugin that does ``work``; return its outcome and status."""

    class Works(StatefulPlugin):
        def run(self) -> None:
            work(self)

    client = Pod(store)
    state = get_state(client, "m:Works")
    run = begin_run(client, state, {"pluginModule": "m", "pluginName": "Works"})
    outcome = Runner(lambda: store, locks=folder / "locks", **how).drive(Works, run, state, {})
    after = client.get(str(run.id))
    assert isinstance(after, PluginRun)
    return outcome, str(after.status)


def failing(exc: BaseException) -> Callable[[Any], object]:
    """Return work that raises ``exc``."""

    def work(plugin: Any) -> None:
        raise exc

    return work


@pytest.mark.parametrize(
    "work, outcome",
    [
        (lambda plugin: None, Outcome(status=Status.DONE, exit_code=0)),
        (failing(KeyError("x")), Outcome(status=Status.ERROR, error="KeyError: 'x'", exit_code=7)),
        (failing(InvalidError("x")), Outcome(status=Status.ERROR, error="InvalidError: x", exit_code=2)),
        (failing(Cancelled("by hand")), Outcome(status=Status.ABORTED, error="by hand", exit_code=5)),
        (failing(Released()), Outcome(status=Status.READY, exit_code=143)),
        (failing(RetryLater("x", after=5)), Outcome(status=Status.READY, error="x", exit_code=75, retry_after_s=5)),
        (failing(SystemExit(0)), Outcome(status=Status.DONE, exit_code=0)),
        (failing(GeneratorExit()), Outcome(status=Status.ERROR, error="GeneratorExit: ", exit_code=7)),
    ],
)
def test_what_a_plugin_raises_decides(
    work: Callable[[Any], object], outcome: Outcome, store: Kept, tmp_path: Path
) -> None:
    """One table; the run has the status of its outcome, and the plugin state is free again."""
    found, status = drive(store, tmp_path, work)

    assert found == outcome
    assert status == str(outcome.status)
    [state] = [each.item.id for each in store.search(_states())]
    lease = store.find_lease(state)
    assert lease is not None
    assert lease.holder == ""


def _states() -> Any:
    from holdfast.store import Query

    return Query(type="PersistentState")


def test_a_run_that_was_fenced_is_left_alone(store: Kept, tmp_path: Path) -> None:
    """Its next write raises, and its end is not written."""

    def work(plugin: Any) -> None:
        store.apply(Batch((EndLease(plugin.pluginState.id),)))
        plugin.state.late = 1

    outcome, status = drive(store, tmp_path, work)

    assert (outcome.status, outcome.exit_code, status) == (None, 5, "started")


def test_a_run_that_is_fenced_without_writing_is_left_alone_too(store: Kept, tmp_path: Path) -> None:
    """It returned as if it were done; nobody is told so."""
    outcome, status = drive(store, tmp_path, lambda plugin: store.apply(Batch((EndLease(plugin.pluginState.id),))))

    assert (outcome.status, outcome.exit_code, status) == (None, 5, "started")


def test_a_plugin_learns_of_an_abort_between_two_renewals(store: Kept, tmp_path: Path) -> None:
    """The lease is looked at far more often than it is renewed."""
    aborted = threading.Event()

    def work(plugin: Any) -> None:
        locks = tmp_path / "locks"
        thread = threading.Thread(target=lambda: (abort(store, plugin.runId, locks=locks, wait_s=30), aborted.set()))
        thread.start()
        while True:
            plugin.safe_point()

    outcome, status = drive(store, tmp_path, work, timing=Timing(renew_s=1000, look_s=0.01))

    assert (outcome.status, outcome.exit_code, status) == (Status.ABORTED, 5, "aborted")
    assert aborted.wait(30)


def test_a_run_that_its_owner_aborted_meanwhile_is_not_begun(store: Kept, tmp_path: Path) -> None:
    """It was read as started, and aborted before it was claimed: the claim is refused whole."""
    client = Pod(store)
    state = get_state(client, "m:P")
    run = begin_run(client, state, {"status": "started"})
    abort(store, str(run.id), locks=tmp_path / "locks", wait_s=0)

    with pytest.raises(ConflictError, match="is aborted and cannot become started"):
        Runner(lambda: store, locks=tmp_path / "locks").drive(StatefulPlugin, run, state, {})

    assert find_lease(store, str(run.id)) is None
    assert find_unfinished(client, state) is None
    retry(store, str(run.id))
    assert find_unfinished(client, state) is not None


def test_progress_is_told_and_stored(store: Kept, tmp_path: Path) -> None:
    """Each step to whoever looks on; the last one with the end of the run."""
    told: list[tuple[int, int | None]] = []

    def work(plugin: Any) -> None:
        for step in plugin.track("abcd"):
            if step == "c":
                raise KeyError

    drive(store, tmp_path, work, on_progress=lambda done, total: told.append((done, total)))

    assert told == [(1, 4), (2, 4)]
    [run] = Pod(store).search({"type": "PluginRun"})
    assert isinstance(run, PluginRun)
    assert run.progress == 0.5


def test_the_owner_edits_several_plugin_states_or_none(store: Kept, tmp_path: Path) -> None:
    """One is held: nothing is written to the other either, unless it is forced."""
    other = str(get_state(Pod(store), "m:Other").id)
    tried: list[str] = []

    def work(plugin: Any) -> None:
        changes = {other: {"": {"n": 1}}, plugin.pluginState.id: {"": {"n": 1}}}
        with pytest.raises(ConflictError, match="is held by run"):
            edit(store, changes)
        assert dict(store.list_variables(other)) == {}
        edit(store, changes, is_forced=True)
        tried.append(plugin.pluginState.id)

    outcome, _ = drive(store, tmp_path, work)

    assert outcome.exit_code == 5
    assert [dict(store.list_variables(state)) for state in (other, *tried)] == [{"n": 1}, {"n": 1}]
