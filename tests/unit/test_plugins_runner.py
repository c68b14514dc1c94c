"""What becomes of a run, decided without a process of its own, on a Pod in memory."""

import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast import (
    Cancelled,
    ConflictError,
    FencedError,
    GiveUp,
    HoldfastError,
    InvalidError,
    PluginRun,
    Released,
    RetryLater,
)
from holdfast.engine import Runner, Timing, abort, begin_run, edit, find_lease, find_unfinished, get_state, retry
from holdfast.plugins import StatefulPlugin
from holdfast.pod import Pod
from holdfast.runs import Outcome, Status
from holdfast.store import Batch, EndLease, MoveRun, Query, ReleaseLease, Result, Store, UpdateItem
from holdfast.testing import FakeClock, MemoryStore

T0 = 1_000_000_000_000


class Kept(MemoryStore):
    """A Pod that outlives the clients that close it, at a standing clock, and notes what is written."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock(T0))
        self.batches: list[Batch] = []

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Note it, and apply it."""
        results = super().apply(batch)
        self.batches.append(batch)
        return results

    def close(self) -> None:
        """Stay."""


@pytest.fixture
def store() -> Kept:
    """A Pod in memory."""
    return Kept()


def drive(
    store: Store, folder: Path, work: Callable[[Any], object], setup: Callable[[], object] | None = None, **how: Any
) -> tuple[Outcome, str]:
    """Drive a new run of a plugin that does ``work``; return its outcome and status."""

    class Works(StatefulPlugin):
        def setup(self) -> Any:
            return None if setup is None else setup()

        def run(self) -> object:
            return work(self)

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
        (failing(RetryLater(OSError("away"))), Outcome(status=Status.READY, error="away", exit_code=75)),
        (failing(RetryLater(60)), Outcome(status=Status.READY, error="60", exit_code=75)),
        (failing(HoldfastError("x")), Outcome(status=Status.ERROR, error="HoldfastError: x", exit_code=7)),
        (lambda plugin: list(plugin.track([1], total=-3)), Outcome(status=Status.DONE, exit_code=0)),
        (failing(SystemExit(0)), Outcome(status=Status.DONE, exit_code=0)),
        (failing(GeneratorExit()), Outcome(status=Status.ERROR, error="GeneratorExit: ", exit_code=7)),
        (failing(FencedError("x")), Outcome(status=Status.ERROR, error="FencedError: x", exit_code=5)),
        # What a TaskGroup makes of them.
        (
            failing(ExceptionGroup("of two", [RetryLater("x", after=5), RetryLater("y", after=9), RetryLater("z")])),
            Outcome(status=Status.READY, error="y", exit_code=75, retry_after_s=9),
        ),
        (
            failing(ExceptionGroup("of two", [RetryLater("x"), ExceptionGroup("inner", [GiveUp("closed")])])),
            Outcome(status=Status.ERROR, error="closed", exit_code=7),
        ),
        (
            failing(ExceptionGroup("of one", [InvalidError("x")])),
            Outcome(status=Status.ERROR, error="InvalidError: x", exit_code=2),
        ),
        (
            failing(ExceptionGroup("of two", [RetryLater("x"), KeyError("y")])),
            Outcome(
                status=Status.ERROR,
                error="ExceptionGroup: of two (2 sub-exceptions); RetryLater: x; KeyError: 'y'",
                exit_code=7,
            ),
        ),
        (
            failing(BaseExceptionGroup("of two", [ValueError("x"), Cancelled("by hand")])),
            Outcome(status=Status.ABORTED, error="by hand", exit_code=5),
        ),
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
    return Query(type="PersistentState")


@pytest.mark.parametrize(
    "exc, retry_ms",
    [
        (RetryLater("x", after=90), T0 + 90_000),
        (RetryLater("x", after=timedelta(days=1)), T0 + 86_400_000),
        (RetryLater("x", after=0.0005), T0),
        (RetryLater("x"), T0 + 60_000),
        (ExceptionGroup("of two", [RetryLater("x", after=5), RetryLater("y", after=9)]), T0 + 9_000),
        (Released(), None),
        (GiveUp("x"), None),
    ],
)
def test_when_a_run_may_be_launched_again_is_written_with_its_end(
    exc: BaseException, retry_ms: int | None, store: Kept, tmp_path: Path
) -> None:
    """On the database's clock, in one batch: nobody sees it ready before. Whoever does not say when, in a minute."""
    drive(store, tmp_path, failing(exc))

    [run] = [each.item for each in store.search(Query(type="PluginRun"))]
    assert run.properties.get("retryAt") == retry_ms
    last = [type(each) for each in store.batches[-1].operations]
    assert last == [*([] if retry_ms is None else [UpdateItem]), MoveRun, ReleaseLease]


def test_a_run_that_waits_for_its_user_is_not_launched_again_by_itself(store: Kept, tmp_path: Path) -> None:
    """Its own move stands; when it goes on is not for a clock to say."""

    def work(plugin: Any) -> None:
        plugin.action_required()
        raise RetryLater("later", after=90)

    _, status = drive(store, tmp_path, work)
    [run] = [each.item for each in store.search(Query(type="PluginRun"))]
    assert (status, run.properties.get("retryAt")) == ("userActionNeeded", None)


def test_a_run_may_be_carried_on_by_hand_before_the_time(store: Kept, tmp_path: Path) -> None:
    """Who asks for it has a reason; what was noted is left, and is past when it is done."""
    client, work = Pod(store), iter([failing(RetryLater("x", after=90)), lambda plugin: None])

    class Works(StatefulPlugin):
        def run(self) -> object:
            return next(work)(self)

    state = get_state(client, "m:Works")
    run = begin_run(client, state, {"pluginModule": "m", "pluginName": "Works"})
    for expected in ("ready", "done"):
        found = client.get(str(run.id))
        assert isinstance(found, PluginRun)
        Runner(lambda: store, locks=tmp_path / "locks").drive(Works, found, state, {})
        after = store.find_items([str(run.id)])[str(run.id)].properties
        assert (after["status"], after["retryAt"]) == (expected, T0 + 90_000)


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


def test_code_that_shrugs_off_errors_stops_at_a_safe_point_of_a_fenced_run(store: Kept, tmp_path: Path) -> None:
    """There the news is no Exception, and the run is left to whoever has taken it."""
    steps: list[str] = []

    def work(plugin: Any) -> None:
        store.apply(Batch((EndLease(plugin.pluginState.id),)))
        while True:
            try:
                plugin.safe_point()
            except Exception:  # noqa: BLE001 -- what this is about
                steps.append("shrugged off")
                return

    outcome, status = drive(store, tmp_path, work, timing=Timing(look_s=0.01))

    assert (outcome.status, outcome.exit_code, status, steps) == (None, 5, "started", [])


def test_what_a_plugin_asked_of_its_user_is_not_forgotten_when_it_is_stopped(store: Kept, tmp_path: Path) -> None:
    """Its own move stands; the exit code says why the process ended."""

    def work(plugin: Any) -> None:
        plugin.action_required()
        raise Released

    outcome, status = drive(store, tmp_path, work)
    assert (outcome.exit_code, status) == (143, "userActionNeeded")


def test_ctrl_c_in_an_application_reaches_it(store: Kept, tmp_path: Path) -> None:
    """The run can be carried on, and whoever pressed it is heard."""
    with pytest.raises(KeyboardInterrupt):
        drive(store, tmp_path, failing(KeyboardInterrupt()))
    [run] = [each.item for each in store.search(Query(type="PluginRun"))]
    assert run.properties["status"] == "ready"


def test_a_group_may_be_as_deep_as_it_likes(store: Kept, tmp_path: Path) -> None:
    """It is a plugin's, and may be anything."""
    exc: Exception = GiveUp("enough")
    for _ in range(3000):
        exc = ExceptionGroup("deeper", [exc])
    _, status = drive(store, tmp_path, failing(exc))
    assert status == "error"


def test_a_runner_drives_one_run(store: Kept, tmp_path: Path) -> None:
    """What it has been told of the first would stop the second."""
    client = Pod(store)
    state = get_state(client, "m:Works")
    runs = [begin_run(client, state, {"pluginModule": "m", "pluginName": "Works"}) for _ in range(2)]

    class Works(StatefulPlugin):
        def run(self) -> None:
            """Do nothing."""

    runner = Runner(lambda: store, locks=tmp_path / "locks")
    runner.drive(Works, runs[0], state, {})
    with pytest.raises(InvalidError, match="make another one for each run"):
        runner.drive(Works, runs[1], state, {})


class Cell:
    """Something that can be awaited and is no coroutine."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def __await__(self) -> Generator[None]:
        self.done.append("awaited")
        yield


def test_whatever_can_be_awaited_is_awaited(store: Kept, tmp_path: Path) -> None:
    """Not coroutines alone."""
    done: list[str] = []

    outcome, _ = drive(store, tmp_path, lambda plugin: Cell(done))

    assert (outcome.exit_code, done) == (0, ["awaited"])


async def _coroutine() -> None:
    """Do nothing."""


async def _stream() -> AsyncGenerator[int]:
    yield 1


@pytest.mark.parametrize(
    "how, error",
    [
        (
            {"work": lambda plugin: (each for each in ())},
            "Works.run did not run, it returned a 'generator': it cannot yield",
        ),
        ({"work": lambda plugin: _stream()}, "Works.run did not run, it returned a 'async_generator': it cannot yield"),
        ({"setup": _coroutine}, "Works.setup did not run, it returned a 'coroutine': it cannot yield, nor be async"),
    ],
)
def test_code_that_did_not_run_is_not_called_done(how: dict[str, Any], error: str, store: Kept, tmp_path: Path) -> None:
    """A method with a ``yield`` has done nothing when it returns."""
    outcome, status = drive(store, tmp_path, how.pop("work", lambda plugin: None), **how)

    assert (status, outcome.exit_code) == ("error", 2)
    assert outcome.error == f"InvalidError: the code of {error}"


def test_a_run_ends_while_its_thread_is_traced(tmp_path: Path) -> None:
    """As under a debugger, or when coverage is measured: what could have interrupted it is withdrawn without harm."""
    code = """
import sys
from pathlib import Path
from holdfast import StatefulPlugin
from holdfast.engine import Runner, begin_run, get_state
from holdfast.pod import Pod
from holdfast.testing import MemoryStore

class Works(StatefulPlugin):
    def run(self):
        pass

def trace(*args):
    return trace

store = MemoryStore()
client = Pod(store)
state = get_state(client, "m:Works")
run = begin_run(client, state, {"pluginModule": "m", "pluginName": "Works"})
runner = Runner(lambda: store, locks=Path(sys.argv[1]) / "locks")
sys.settrace(trace)
print(runner.drive(Works, run, state, {}).exit_code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


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
