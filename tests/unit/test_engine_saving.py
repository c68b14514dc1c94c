"""Snapshots of runs: restored is what was pointed to, with the variables that belong to it, or the run says so."""

import copy
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from holdfast import (
    Cancelled,
    DamagedError,
    EverySteps,
    LatestStatesKeeper,
    OnSignal,
    PersistentStateMixin,
    PluginRun,
    Released,
    RetryLater,
    SnapshotConfig,
    StateStore,
)
from holdfast.engine import Runner, begin_run, get_state
from holdfast.plugins import StatefulPlugin
from holdfast.pod import Pod
from holdfast.runs import Outcome
from holdfast.snapshots.keepers import StatesKeeper
from holdfast.snapshots.removal import is_pinned
from holdfast.store import Batch, EndLease, PointSnapshot, SetVariable
from holdfast.testing import MemoryStore
from holdfast.values import Value


class Kept(MemoryStore):
    """A Pod that outlives the clients that close it."""

    def close(self) -> None:
        """Stay."""


class Counter:
    """Counts; of the protocol with trees."""

    def __init__(self) -> None:
        self.n = 0

    def get_state(self) -> dict[str, int]:
        """Return what a snapshot holds."""
        return {"n": self.n}

    def set_state(self, tree: dict[str, int]) -> None:
        """Be as the snapshot was."""
        self.n = tree["n"]


class Written(PersistentStateMixin):
    """Writes its own file."""

    text = ""

    def save_state(self, path: Path) -> None:
        """Write it."""
        path.write_text(self.text)

    def load_state(self, path: Path) -> None:
        """Read it."""
        self.text = path.read_text()


class Counts(StatefulPlugin):
    """Has a counter, and does what a test says."""

    condition = EverySteps(1_000)
    work: ClassVar[Callable[[Any], object]]

    def setup(self) -> None:
        """Register the counter."""
        self.counter = Counter()
        self.snapshots.register("counter", self.counter)

    def run(self) -> Any:
        """Do what the test says."""
        return type(self).work(self)


class Home:
    """A Pod in memory, and a folder for snapshots."""

    def __init__(self, folder: Path) -> None:
        self.store = Kept()
        self.client = Pod(self.store)
        self.folder = folder
        self.state = get_state(self.client, "m:Counts")
        self.snapshots = folder / "snapshots" / str(self.state.id)

    def run(
        self,
        work: Callable[[Any], object] = lambda plugin: None,
        cls: type[StatefulPlugin] = Counts,
        *,
        config: Mapping[str, Any] | None = None,
        has_folder: bool = True,
        **attributes: Any,
    ) -> Outcome:
        """Carry a new run on."""
        plugin = type(cls.__name__, (cls,), {"work": staticmethod(work), **attributes})
        run = begin_run(self.client, self.state, {"pluginModule": "m", "pluginName": "Counts"})
        again = self.client.get(str(run.id))
        assert isinstance(again, PluginRun)
        runner = Runner(
            lambda: self.store,
            locks=self.folder / "locks",
            snapshots=self.folder / "snapshots" if has_folder else None,
        )
        return runner.drive(plugin, again, self.state, config or {})

    def names(self) -> list[str]:
        """Return the snapshots, the oldest first."""
        return sorted(path.name for path in self.snapshots.glob("[!.]*"))

    @property
    def pointed(self) -> str:
        """The name of the snapshot that the plugin state points to."""
        return self.client.find_snapshot(str(self.state.id)) or ""

    def variables(self, namespace: str = "") -> dict[str, Value]:
        """Return what is stored."""
        return dict(self.client.variables(str(self.state.id), namespace))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home without any run."""
    return Home(tmp_path)


def count_to(n: int) -> Callable[[Any], object]:
    """Return work that counts up to ``n``, from wherever the counter is, and says so in a variable."""

    def work(plugin: Any) -> None:
        plugin.counter.n = n
        plugin.state.n = n

    return work


def seen(home: Home) -> tuple[int, dict[str, Value]]:
    """Return what the next run finds in its counter, and which variables."""
    found: list[int] = []
    assert home.run(lambda plugin: found.append(plugin.counter.n)).exit_code == 0
    return found[0], home.variables()


def test_what_is_registered_is_there_in_the_next_run(home: Home) -> None:
    """The run ends with a snapshot, and the plugin state points to it."""

    class Both(Counts):
        def setup(self) -> None:
            super().setup()
            self.written = Written()
            self.snapshots.register("written", self.written)

    def first(plugin: Any) -> None:
        plugin.counter.n, plugin.written.text = 3, "three"

    found: list[object] = []
    home.run(first, Both)
    home.run(lambda plugin: found.extend([plugin.counter.n, plugin.written.text]), Both)

    assert found == [3, "three"]
    assert home.pointed == home.names()[-1]


def test_a_snapshot_is_taken_at_safe_points_when_the_condition_says_so(home: Home) -> None:
    """Not inside a transaction, which may still be discarded: then at the next safe point after it."""

    def work(plugin: Any) -> None:
        for plugin.counter.n in range(4):
            with plugin.transaction():
                plugin.safe_point()
        assert home.names() == []
        plugin.safe_point()
        raise ValueError

    assert home.run(work, condition=EverySteps(2)).exit_code == 7
    assert seen(home)[0] == 3


@pytest.mark.parametrize("config, taken", [({}, 0), ({"snapshot_interval_s": 1e-9}, 1)])
def test_a_setting_says_how_often(config: dict[str, float], taken: int, home: Home) -> None:
    """It wins over the class's condition."""

    def work(plugin: Any) -> None:
        plugin.safe_point()
        raise ValueError

    home.run(work, config=config, Config=SnapshotConfig)
    assert (len(home.names()), home.pointed != "") == (taken, taken == 1)


@pytest.mark.parametrize(
    "exc, is_saved",
    [
        (RetryLater("later"), True),
        (ExceptionGroup("of a TaskGroup", [RetryLater("later")]), True),
        (SystemExit(), True),
        (SystemExit(3), False),
        (ValueError(), False),
        (Cancelled("by hand"), False),
    ],
)
def test_how_a_run_ends_says_whether_there_is_a_last_snapshot(exc: BaseException, is_saved: bool, home: Home) -> None:
    """A plugin that failed, or was stopped anywhere, may be in the middle of something."""

    def work(plugin: Any) -> None:
        plugin.counter.n = 1
        raise exc

    home.run(work)
    assert (home.pointed != "") is is_saved
    assert len(home.names()) == is_saved


def test_a_released_run_takes_a_snapshot_at_its_safe_point(home: Home) -> None:
    """As after SIGTERM; another process goes on from there."""

    def work(plugin: Any) -> None:
        plugin.counter.n = 5
        plugin._runner._stop_with = Released("SIGTERM")
        plugin.safe_point()

    assert home.run(work).exit_code == 143
    assert seen(home)[0] == 5


def test_a_snapshot_that_nobody_pointed_to_is_never_restored(home: Home) -> None:
    """Its process died between name and pointer; the next run deletes it."""
    home.run(count_to(1))
    with StateStore(home.snapshots) as store:
        newer = Counter()
        newer.n = 2
        store.register("counter", newer)
        lost = store.save_state()

    assert seen(home)[0] == 1
    assert not lost.exists()


def test_a_snapshot_between_pointer_and_mark_is_restored_and_can_be_fallen_back_to(home: Home) -> None:
    """The pointer alone says that it counts; the next run notes it."""
    home.run(count_to(1))
    (home.snapshots / home.pointed / ".snap" / "pointed").unlink()
    assert seen(home)[0] == 1
    _damage(home.snapshots / home.pointed)
    assert seen(home)[0] == 1


def test_a_run_that_lost_its_plugin_state_completes_a_snapshot_for_nobody(home: Home) -> None:
    """The pointer is moved by a fenced write; later snapshots of others fall back past it."""
    home.run(count_to(1))

    def fenced(plugin: Any) -> None:
        home.store.apply(Batch((EndLease(str(home.state.id)),)))
        plugin.counter.n = 2

    before = home.pointed
    assert home.run(fenced).exit_code == 5
    late = [name for name in home.names() if name != before]
    assert (home.pointed, len(late)) == (before, 1)

    home.run(count_to(3))
    _damage(home.snapshots / home.pointed)

    assert seen(home)[0] == 1
    assert late[0] not in home.names()


def _damage(snapshot: Path) -> None:
    data = bytearray((snapshot / "counter").read_bytes())
    data[-3] ^= 1
    (snapshot / "counter").unlink()  # equal ones share a file, and its damage
    (snapshot / "counter").write_bytes(data)


def test_a_damaged_snapshot_gives_way_to_an_earlier_one_and_its_variables(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    """Both go back together, the plugin is set up with them, and the run says so."""
    home.run(count_to(1))
    home.run(count_to(2))
    home.run(lambda plugin: setattr(plugin.state, "later", True))
    earlier, damaged = home.names()[-2:]
    _damage(home.snapshots / damaged)
    set_up: list[object] = []

    class Notes(Counts):
        def setup(self) -> None:
            set_up.append(self.state.later)
            super().setup()

    found: list[object] = []
    with caplog.at_level(logging.WARNING):
        home.run(lambda plugin: found.extend([plugin.counter.n, plugin.state.n, plugin.state.later]), Notes)

    assert found == [2, 2, None]
    assert set_up == [True, None]
    assert "snapshot.fell_back" in [record.message for record in caplog.records]
    assert [path.name for path in home.snapshots.glob(".bad-*")] == [f".bad-{damaged}"]
    assert damaged not in home.names()
    assert earlier in home.names()


def test_what_a_restored_pod_never_pointed_to_is_not_fallen_back_to(home: Home) -> None:
    """A backup of the Pod was restored: snapshots of the time after it are there, and belong to other items."""
    state = str(home.state.id)
    for n in (1, 2):
        home.run(count_to(n))
    backup = {name: home.variables(name) for name in ("", "holdfast")}
    pointed = home.pointed
    for n in (3, 4):
        home.run(count_to(n), max_snapshots=2)
    restored = [SetVariable(state, name, value, space) for space in backup for name, value in backup[space].items()]
    home.store.apply(Batch((PointSnapshot(state, pointed), *restored)))
    assert pointed not in home.names()

    outcome = home.run(count_to(9))

    assert outcome.exit_code == 6
    assert home.variables() == {"n": 2}


@pytest.mark.parametrize("what", ["counter", ".snap/manifest.json"])
def test_a_snapshot_without_one_of_its_files_is_not_loaded(what: str, home: Home) -> None:
    """Without its manifest nothing can be verified."""
    for n in (1, 2):
        home.run(count_to(n))
    (home.snapshots / home.pointed / what).unlink()
    assert seen(home) == (1, {"n": 1})


@pytest.mark.parametrize("error", [FileNotFoundError("vocabulary.txt"), DamagedError("of another thing")])
def test_what_an_object_raises_while_it_is_restored_damages_no_snapshot(error: Exception, home: Home) -> None:
    """The run ends with that; the next one restores the same snapshot."""
    for n in (1, 2):
        home.run(count_to(n))
    names = home.names()

    def set_state(self: Any, tree: object) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counter, "set_state", set_state)
        assert type(error).__name__ in (home.run().error or "")
    assert home.names() == names
    assert seen(home) == (2, {"n": 2})


def test_once_keeps_its_results_when_variables_go_back(home: Home) -> None:
    """What was done was done."""
    for n in (1, 2):
        home.run(lambda plugin, n=n: (count_to(n)(plugin), plugin.once(f"effect {n}", lambda: n)))
    _damage(home.snapshots / home.pointed)
    results: list[int] = []
    home.run(lambda plugin: results.append(plugin.once("effect 2", lambda: 99)))
    assert (results, home.variables()) == ([2], {"n": 1})


def test_a_forked_child_takes_no_snapshot(home: Home) -> None:
    """Neither at a safe point nor when it returns from ``run``."""

    def work(plugin: Any) -> None:
        plugin.counter.n = 1
        if (child := os.fork()) == 0:
            plugin.counter.n = -1
            plugin.safe_point()
        else:
            os.waitpid(child, 0)
            plugin.counter.n = 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12: this process has threads
        assert home.run(work, condition=EverySteps(1)).exit_code == 0
    assert seen(home)[0] == 2


def test_a_keeper_that_fails_fails_no_run(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """The snapshot is there; what is there too long goes another time."""

    class Fails(LatestStatesKeeper):
        def cleanup(self) -> list[Path]:
            raise ZeroDivisionError

    with caplog.at_level(logging.WARNING):
        outcome = home.run(count_to(3), snapshot_keeper=lambda plugin, folder: Fails(folder, 1))
    assert outcome.exit_code == 0
    assert "snapshot.not_cleaned" in [record.message for record in caplog.records]
    assert seen(home)[0] == 3


def test_a_snapshot_that_cannot_be_taken_is_not_why_a_run_is_retried(home: Home) -> None:
    """On the way out it is a warning; at the end of a run it is an error, also if the object exits."""

    class Broken(Counter):
        def get_state(self) -> dict[str, int]:
            raise SystemExit

    def setup(plugin: Any) -> None:
        plugin.snapshots.register("broken", Broken())

    def later(plugin: Any) -> None:
        raise RetryLater("later")

    assert home.run(later, setup=setup).exit_code == 75
    assert home.run(setup=setup).error == "PluginError: an object ended the program instead of returning its state"


def test_each_run_has_a_condition_of_its_own(home: Home) -> None:
    """It counts from the run's beginning, and one for signals is not copied."""
    condition = EverySteps(3)

    def work(plugin: Any) -> None:
        plugin.safe_point()
        raise ValueError

    for _ in range(3):
        home.run(work, condition=condition)
    assert home.names() == []
    signals = OnSignal(signal.SIGUSR1)
    try:
        signal.raise_signal(signal.SIGUSR1)
        home.run(work, condition=signals | EverySteps(10))
    finally:
        signals.close()
    assert copy.deepcopy(signals) is signals


def test_a_new_object_needs_a_new_version(home: Home) -> None:
    """Else a name that was changed by mistake would begin anew unseen."""

    def setup(plugin: Any) -> None:
        Counts.setup(plugin)
        plugin.other = Counter()
        plugin.snapshots.register("other", plugin.other)

    home.run(count_to(3))
    refused = home.run(setup=setup)
    assert "does not hold 'other': give the class a greater state_version if that is new" in (refused.error or "")
    found: list[int] = []

    def work(plugin: Any) -> None:
        found.extend([plugin.counter.n, plugin.other.n])

    how: dict[str, Any] = {"setup": setup, "state_version": 2, "migrate_state": lambda plugin, variables, version: None}
    assert home.run(work, **how).exit_code == 0
    assert home.run(work, **how).exit_code == 0
    assert found == [3, 0, 3, 0]


def test_nothing_is_registered_after_setup(home: Home) -> None:
    """It could not be restored."""
    outcome = home.run(lambda plugin: plugin.snapshots.register("late", Counter()))
    assert outcome.error == "ConflictError: 'late' cannot be registered any more: do that in setup()"


def test_snapshots_are_taken_in_the_thread_of_the_run(home: Home) -> None:
    """A safe point of another one may stop it, and saves nothing that the run changes at that moment."""

    def work(plugin: Any) -> None:
        thread = threading.Thread(target=plugin.safe_point)
        thread.start()
        thread.join()
        raise ValueError

    home.run(work, condition=EverySteps(1), setup=Counts.setup)
    assert len(home.names()) == 1


def test_without_a_whole_snapshot_nothing_is_begun_anew(home: Home) -> None:
    """The run ends with the reason, and what is there stays for whoever looks into it."""
    home.run(count_to(1))
    _damage(home.snapshots / home.pointed)

    outcome = home.run(count_to(9))

    assert outcome.exit_code == 6
    assert "cannot be restored, and there is no earlier one that is whole" in (outcome.error or "")
    assert (home.names(), home.variables()) == ([home.pointed], {"n": 1})


def test_the_snapshot_that_is_pointed_to_stays_whatever_the_keeper_says(home: Home) -> None:
    """A keeper that keeps none has nobody resume from nothing."""

    def keep_none(plugin: Any, folder: Path) -> StatesKeeper:
        return LatestStatesKeeper(folder, 0)

    for n in (1, 2, 3):
        home.run(count_to(n), snapshot_keeper=keep_none)
    assert home.names() == [home.pointed]
    assert seen(home)[0] == 3


def test_as_many_snapshots_are_kept_as_the_class_or_a_setting_says(home: Home) -> None:
    """Three, if neither says anything."""
    for n in range(5):
        home.run(count_to(n))
    assert len(home.names()) == 3
    home.run(max_snapshots=2)
    assert len(home.names()) == 2
    home.run(config={"max_snapshots": 4}, Config=SnapshotConfig)
    assert len(home.names()) == 3


@pytest.mark.parametrize(
    "name, registered, error",
    [
        ("../x", Counter(), "InvalidError: "),
        ("x", 5, "InvalidError: 5 cannot be registered as 'x'"),
    ],
)
def test_what_no_snapshot_can_hold_ends_the_run_by_name(name: str, registered: object, error: str, home: Home) -> None:
    """Before it has done anything."""
    outcome = home.run(
        lambda plugin: pytest.fail("it ran"), setup=lambda plugin: plugin.snapshots.register(name, registered)
    )
    assert (outcome.error or "").startswith(error)


def test_a_name_is_registered_once(home: Home) -> None:
    """As in a store of snapshots."""

    def twice(plugin: Any) -> None:
        for _ in range(2):
            plugin.snapshots.register("x", Counter())

    assert home.run(setup=twice).error == "KeyError: \"'x' is registered already\""


def test_a_runner_without_a_folder_refuses_a_plugin_with_snapshots(home: Home) -> None:
    """It does not pretend to have saved anything."""
    assert "its runner has no folder" in (home.run(has_folder=False).error or "")


# -- versions ---------------------------------------------------------------------------------------------------------


def test_variables_of_an_older_version_are_migrated_once_and_kept(home: Home) -> None:
    """With what belongs to them, in one transaction; the snapshot of before is pinned."""
    home.run(count_to(2))
    before = home.pointed
    calls: list[tuple[dict[str, Value], int]] = []

    def migrate(plugin: Any, variables: dict[str, Value], from_version: int) -> dict[str, Value]:
        calls.append((dict(variables), from_version))
        return {"doubled": 2 * int(variables["n"])}

    for _ in range(2):
        assert home.run(state_version=3, migrate_state=migrate).exit_code == 0

    assert calls == [({"n": 2}, 1)]
    assert (home.variables(), home.variables("before-v1")) == ({"doubled": 4}, {"n": 2})
    assert is_pinned(home.snapshots / before)


def test_what_a_migration_read_is_not_what_the_run_reads(home: Home) -> None:
    """The variables are read anew."""
    home.run(count_to(2))
    found: list[object] = []

    def migrate(plugin: Any, variables: dict[str, Value], from_version: int) -> dict[str, Value]:
        return {"doubled": 2 * plugin.state.n}

    home.run(
        lambda plugin: found.extend([plugin.state.n, plugin.state.doubled]), state_version=2, migrate_state=migrate
    )
    assert found == [None, 4]


def test_a_migration_that_fails_changes_nothing(home: Home) -> None:
    """Not even what it has written to the Pod."""
    home.run(count_to(2))

    def migrate(plugin: Any, variables: dict[str, Value], from_version: int) -> None:
        variables.clear()
        plugin.state.half = True
        raise LookupError("not today")

    assert home.run(state_version=2, migrate_state=migrate).error == "LookupError: not today"
    assert (home.variables(), home.variables("before-v1")) == ({"n": 2}, {})
    assert seen(home) == (2, {"n": 2})


def test_variables_that_cannot_be_migrated_are_not_touched(home: Home) -> None:
    """Neither forgotten nor taken for what they are not."""
    home.run(count_to(2))
    outcome = home.run(count_to(9), state_version=2)
    assert outcome.error == (
        "NotImplementedError: the variables are of version 1, and Counts works with 2: "
        "implement migrate_state(variables, from_version)"
    )
    assert home.variables() == {"n": 2}


def test_older_code_does_not_work_on_newer_variables(home: Home) -> None:
    """A new plugin state is of the version of the class that began it."""
    assert home.run(count_to(2), state_version=3).exit_code == 0
    outcome = home.run(count_to(9), state_version=2)
    assert (outcome.exit_code, home.variables()) == (5, {"n": 2})
    assert "is of version 3, and this Counts knows 2: run it with the newer code" in (outcome.error or "")


def test_an_earlier_snapshot_of_an_older_version_is_migrated_when_it_is_fallen_back_to(home: Home) -> None:
    """The variables that come back with it are those of its version."""

    def migrate(plugin: Any, variables: dict[str, Value], from_version: int) -> dict[str, Value]:
        return {"doubled": 2 * int(variables["n"])}

    home.run(count_to(1))
    home.run(state_version=2, migrate_state=migrate)
    assert home.variables() == {"doubled": 2}
    home.store.apply(Batch((SetVariable(str(home.state.id), "doubled", 99),)))
    _damage(home.snapshots / home.pointed)

    assert home.run(state_version=2, migrate_state=migrate).exit_code == 0
    assert home.variables() == {"doubled": 2}


def test_a_pointer_to_a_snapshot_that_is_gone_falls_back_too(home: Home) -> None:
    """As to a damaged one."""
    home.run(count_to(1))
    home.store.apply(Batch((PointSnapshot(str(home.state.id), "gone.state"),)))
    assert seen(home)[0] == 1
