"""Which run is carried on, and what its owner does to it: on a Pod in memory, with others coming in between."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast import PersistentState, PluginRun
from holdfast.disk import Disk
from holdfast.engine import (
    abort,
    begin_run,
    check_state,
    continue_run,
    edit,
    find_unfinished,
    get_state,
    is_new,
    list_unfinished,
    plan_state,
    retry,
)
from holdfast.engine.holding import place_of
from holdfast.errors import ConflictError, FencedError, InvalidError
from holdfast.pod import Pod
from holdfast.runs import Fence, Status
from holdfast.sql import SqliteStore
from holdfast.store import (
    Batch,
    CancelLease,
    ClaimLease,
    CreateEdge,
    CreateItem,
    EndLease,
    MoveRun,
    Operation,
    PointSnapshot,
    Query,
    ReleaseLease,
    RenewLease,
    Result,
    SetVariable,
    UpdateItem,
)
from holdfast.testing import FakeClock, MemoryStore

T0 = 1_000_000


class Busy(MemoryStore):
    """A Pod in memory in which others do something just before a batch of ours."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.before: list[tuple[type, Callable[[], object]]] = []
        self.rows = 0

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Let the next one in, if it waits for one of these operations."""
        if self.before and any(isinstance(each, self.before[0][0]) for each in batch.operations):
            self.before.pop(0)[1]()
        return super().apply(batch)

    def search(self, query: Query) -> Any:
        """Search, and count what is read."""
        found = super().search(query)
        self.rows += sum(1 + len(each.edges) for each in found)
        return found

    def do(self, *operations: Operation, fence: Fence | None = None) -> None:
        """Apply a batch of somebody else's."""
        super().apply(Batch(operations, fence))


@pytest.fixture
def clock() -> FakeClock:
    """The clock of the Pod."""
    return FakeClock(T0)


@pytest.fixture
def store(clock: FakeClock) -> Busy:
    """A Pod with a run "r1" that holds plugin state "s1", and another run."""
    store = Busy(clock)
    store.do(
        *(CreateItem(state, "PersistentState", {"name": state}) for state in ("s1", "s2")),
        *(CreateItem(run, "PluginRun") for run in ("r1", "r2")),
        *(CreateEdge(run, "pluginState", "s1") for run in ("r1", "r2")),
    )
    claim(store, "r1", "h1")
    return store


def claim(store: Busy, run: str, holder: str, *moves: Status) -> Fence:
    """Claim the plugin state as a runner does."""
    before = store.find_lease("s1")
    epoch = 1 if before is None else before.epoch + 1
    store.do(
        *([] if before is None or not before.holder else [EndLease("s1")]),
        ClaimLease("s1", run, holder, 60_000),
        *(MoveRun(run, move) for move in (*moves, Status.STARTED)),
    )
    return Fence(state="s1", epoch=epoch, holder=holder)


def status(store: Busy, run: str) -> str:
    """Return where a run is."""
    return str(store.find_items([run])[run].properties["status"])


def stop(store: Busy, folder: Path, run: str = "r1", *, wait_s: float = 0) -> bool:
    """Abort a run; each look a tenth of a second later lets the Pod's clock go on as well."""
    waited = [0.0]

    def wait(seconds: float) -> None:
        waited[0] += seconds
        assert waited[0] <= wait_s + 0.2

    return abort(store, run, locks=folder / "locks", wait_s=wait_s, wait=wait, monotonic=lambda: waited[0])


def test_an_abort_takes_the_lease_that_it_saw(store: Busy, tmp_path: Path) -> None:
    """The run ends and another takes the plugin state just before: that one is left alone."""

    def other() -> None:
        store.do(MoveRun("r1", Status.DONE), ReleaseLease(HELD), fence=HELD)
        store.do(ClaimLease("s1", "r2", "h2", 60_000), MoveRun("r2", Status.STARTED))

    store.before = [(EndLease, other)]

    assert not stop(store, tmp_path)

    lease = store.find_lease("s1")
    assert lease is not None
    assert (lease.run, lease.holder, status(store, "r1"), status(store, "r2")) == ("r2", "h2", "done", "started")


HELD = Fence(state="s1", epoch=1, holder="h1")


def test_an_abort_of_a_run_that_lost_its_plugin_state_leaves_the_new_holder_alone(
    store: Busy, clock: FakeClock, tmp_path: Path
) -> None:
    """Its lease lapsed and was claimed by another: the run is aborted, and nothing is taken."""

    def other() -> None:
        clock.advance(60_000)
        store.do(ClaimLease("s1", "r2", "h2", 60_000), MoveRun("r2", Status.STARTED))

    store.before = [(EndLease, other)]

    assert not stop(store, tmp_path)

    lease = store.find_lease("s1")
    assert lease is not None
    assert (lease.run, status(store, "r1"), status(store, "r2")) == ("r2", "aborted", "started")


def test_an_abort_of_a_run_that_is_claimed_meanwhile_takes_it_from_the_claimer(store: Busy, tmp_path: Path) -> None:
    """It was free when it was looked at: what has begun since is stopped as well."""
    store.do(MoveRun("r1", Status.READY), ReleaseLease(HELD), fence=HELD)
    store.before = [(MoveRun, lambda: store.do(ClaimLease("s1", "r1", "h2", 60_000), MoveRun("r1", Status.STARTED)))]

    assert stop(store, tmp_path)

    assert status(store, "r1") == "aborted"
    with pytest.raises(FencedError):
        store.do(SetVariable("s1", "late", 1), fence=Fence(state="s1", epoch=2, holder="h2"))


def test_a_request_to_stop_is_for_the_run_that_was_meant(store: Busy, tmp_path: Path) -> None:
    """It has ended when the request comes: the next one on the plugin state is not asked to stop."""

    def other() -> None:
        store.do(MoveRun("r1", Status.DONE), ReleaseLease(HELD), fence=HELD)
        store.do(ClaimLease("s1", "r2", "h2", 60_000), MoveRun("r2", Status.STARTED))

    store.before = [(CancelLease, other)]

    assert not stop(store, tmp_path, wait_s=5)

    lease = store.find_lease("s1")
    assert lease is not None
    assert (lease.is_cancelled, status(store, "r1")) == (False, "done")


def test_a_run_that_is_claimed_anew_while_it_is_waited_for_is_asked_again(store: Busy, tmp_path: Path) -> None:
    """The request of the first claim is not the second one's."""
    asked: list[bool] = []

    def again() -> None:
        asked.append(True)
        claim(store, "r1", "h2", Status.READY)

    store.before = [(CancelLease, again), (CancelLease, lambda: asked.append(True))]

    assert stop(store, tmp_path, wait_s=1)

    assert (asked, status(store, "r1")) == ([True, True], "aborted")


def test_a_sleeper_whose_lease_lapsed_cannot_come_back_after_an_abort(
    store: Busy, clock: FakeClock, tmp_path: Path
) -> None:
    """Nobody claimed it, so it could be renewed: an abort ends that right as well, and waits for nobody."""
    clock.advance(60_000)
    assert stop(store, tmp_path, wait_s=30)
    with pytest.raises(FencedError):
        store.do(SetVariable("s1", "late", 1), fence=HELD)
    assert status(store, "r1") == "aborted"


def test_what_cannot_be_aborted_is_refused_and_not_tried_for_ever(store: Busy, tmp_path: Path) -> None:
    """The run holds a plugin state that it does not lead to: the refusal names it."""
    store.do(EndLease("s1"), ClaimLease("s2", "r2", "h2", 60_000), MoveRun("r2", Status.STARTED))
    with pytest.raises(ConflictError, match="plugin state 's2' is held by run 'r2'"):
        stop(store, tmp_path, "r2", wait_s=1)


# -- made ready again --------------------------------------------------------------------------------------------------


def properties(store: Busy, run: str) -> dict[str, Any]:
    """Return what a run has."""
    return dict(store.find_items([run])[run].properties)


def test_a_retry_forgets_the_deaths_and_says_what_the_run_is_launched_from(store: Busy) -> None:
    """With the move, in one batch; without an image that stays as it is."""
    store.do(EndLease("s1"), UpdateItem("r1", {"retryAt": T0, "deaths": 2, "deathMark": "x", "containerImage": "a"}))
    store.do(MoveRun("r1", Status.ERROR, "it died"))
    retry(store, "r1")
    assert properties(store, "r1") == {"status": "ready", "containerImage": "a"}
    store.do(MoveRun("r1", Status.ABORTED))
    retry(store, "r1", image="none")
    assert properties(store, "r1") == {"status": "ready", "containerImage": "none"}


@pytest.mark.parametrize("way", [[], [Status.AUTHENTICATED], [Status.DAEMON]])
def test_a_run_that_is_lost_can_be_retried(way: list[Status], store: Busy, clock: FakeClock) -> None:
    """Its lease has lapsed: who held it wakes up too late. As long as it is held the run works."""
    store.do(*(MoveRun("r1", each) for each in way), fence=HELD)
    clock.advance(59_999)
    with pytest.raises(ConflictError, match=r"only one that is error or aborted, or that is lost, can be retried"):
        retry(store, "r1")
    clock.advance(1)
    retry(store, "r1")
    assert status(store, "r1") == "ready"
    with pytest.raises(FencedError):
        store.do(RenewLease(HELD, 60_000))


def test_a_run_without_a_lease_that_says_it_works_is_lost(store: Busy) -> None:
    """Nobody can carry it on who had it before; whoever holds its plugin state now is left alone."""
    store.do(MoveRun("r2", Status.STARTED))
    retry(store, "r2")
    lease = store.find_lease("s1")
    assert lease is not None
    assert (status(store, "r2"), lease.run, lease.epoch) == ("ready", "r1", 1)


def test_a_run_that_is_renewed_while_it_is_retried_works_on(store: Busy, clock: FakeClock) -> None:
    """Nothing is written, its image included."""
    clock.advance(60_000)
    store.before = [(MoveRun, lambda: store.do(RenewLease(HELD, 60_000)))]
    with pytest.raises(ConflictError, match="plugin state 's1' is held by run 'r1' for another 60 s"):
        retry(store, "r1", image="holdfast")
    assert properties(store, "r1") == {"status": "started"}
    store.do(SetVariable("s1", "n", 1), fence=HELD)


def test_a_run_whose_process_is_proven_dead_is_retried_at_once(store: Busy, tmp_path: Path) -> None:
    """By its free lock on this machine; and not if it is claimed anew in the same moment."""
    locks = tmp_path / "locks"
    locks.mkdir()
    holder = f"{place_of(locks, Disk())}-1-x"
    claim(store, "r1", holder)
    with Disk().lock(locks / "s1.lock"), pytest.raises(ConflictError, match="is started: only one"):
        retry(store, "r1", locks=locks)
    store.before = [(MoveRun, lambda: claim(store, "r1", "h3"))]
    with pytest.raises(ConflictError, match="has changed hands"):
        retry(store, "r1", locks=locks)
    claim(store, "r1", holder)
    lease = store.find_lease("s1")
    assert lease is not None
    retry(store, "r1", locks=locks)
    assert status(store, "r1") == "ready"
    with pytest.raises(FencedError):
        store.do(SetVariable("s1", "late", 1), fence=lease.fence)


@pytest.mark.parametrize("way", ["", "ready", "ready userActionNeeded", "started done"])
def test_what_waits_or_is_done_is_not_retried(way: str, store: Busy) -> None:
    """The refusal says where it is."""
    store.do(*(MoveRun("r2", Status(each)) for each in way.split()))
    before = properties(store, "r2")
    with pytest.raises(ConflictError, match=f"run 'r2' is {before['status']}: only one"):
        retry(store, "r2", image="holdfast")
    assert properties(store, "r2") == before


# -- which run is carried on -------------------------------------------------------------------------------------------


@pytest.fixture
def client() -> Pod:
    """The client of a Pod in memory."""
    return Pod(MemoryStore(clock=FakeClock(T0)))


RUN = {"pluginModule": "m", "pluginName": "P"}


WAYS = {
    "idle": "",
    "initialized": "initialized",
    "ready": "ready",
    "started": "started",
    "authenticated": "started authenticated",
    "userActionNeeded": "ready userActionNeeded",
    "daemon": "started daemon",
    "done": "started done",
    "error": "error",
    "aborted": "aborted",
}
"""How a run comes to each status."""


def test_every_run_that_has_not_ended_is_found(client: Pod) -> None:
    """Whichever status it has."""
    assert list(WAYS) == [*Status]
    for at, moves in WAYS.items():
        client.create(PluginRun(id=at, **RUN))
        for move in moves.split():
            client.add(MoveRun(at, Status(move)))
    unfinished = {"idle", "initialized", "ready", "started", "authenticated", "userActionNeeded", "daemon"}
    assert {run.id for run in list_unfinished(client)} == unfinished
    assert {run.status for run in list_unfinished(client)} == unfinished


def test_the_run_that_was_written_last_is_carried_on(store: Busy, clock: FakeClock) -> None:
    """One that was retried comes before one that was left behind; others' runs are not looked at."""
    client = Pod(store)
    [s1, s2] = [client.get(each) for each in ("s1", "s2")]
    assert isinstance(s1, PersistentState)
    assert isinstance(s2, PersistentState)
    clock.advance(1)
    store.do(MoveRun("r2", Status.READY))
    found = find_unfinished(client, s1)
    assert found is not None
    assert found.id == "r2"
    clock.advance(1)
    store.do(MoveRun("r1", Status.AUTHENTICATED), fence=HELD)
    found = find_unfinished(client, s1)
    assert found is not None
    assert found.id == "r1"
    assert find_unfinished(client, s2) is None


def test_a_long_history_is_not_read(store: Busy) -> None:
    """With 10,000 runs that have ended, in each way, as many rows are read as with three."""
    client = Pod(store)
    state = client.get("s1")
    assert isinstance(state, PersistentState)
    ended = [(Status.ERROR,), (Status.ABORTED,), (Status.STARTED, Status.DONE)]
    store.do(EndLease("s1"))

    def end_runs(first: int, last: int) -> int:
        for number in range(first, last):
            run = f"run{number}"
            store.do(
                CreateItem(run, "PluginRun"),
                CreateEdge(run, "pluginState", "s1"),
                *(MoveRun(run, move) for move in ended[number % 3]),
            )
        store.rows = 0
        found = find_unfinished(client, state)
        assert found is not None
        return store.rows

    few = end_runs(0, 3)
    assert end_runs(3, 10_000) == few <= 8


def test_unfinished_runs_are_found_by_the_index_of_their_status(tmp_path: Path) -> None:
    """SQLite says so itself: no items of runs are looked at but those that are found."""
    with SqliteStore(tmp_path / "pod.db", bytes(32)) as store:
        client = Pod(store)
        list_unfinished(client)
        reader = store._readers[-1]
        asked: list[tuple[str, Any]] = []
        reader.exec_trace = lambda _, sql, values: asked.append((sql, values)) or True
        list_unfinished(client)
        reader.exec_trace = None
        searches = [each for each in asked if each[0].startswith("SELECT item.seq")]
        plans = [[str(row[3]) for row in reader.execute(f"EXPLAIN QUERY PLAN {sql}", by)] for sql, by in searches]
    by_value = ["(field=? AND value=?)", "(field=? AND value=?)", "(field=? AND value>?)"]
    for plan, value in zip(plans, by_value, strict=True):
        assert f"SEARCH indexed USING PRIMARY KEY {value}" in plan, plan
        assert [step for step in plan if "item" in step.split()] == ["SEARCH item USING INTEGER PRIMARY KEY (rowid=?)"]


def test_a_deleted_plugin_state_can_be_made_anew_and_has_nothing_of_the_old_one(clock: FakeClock) -> None:
    """Again and again: no variables, no snapshot, no runs, no accounts; each brought back is what it was."""
    store = MemoryStore(clock=clock)
    client, ids = Pod(store), list[str]()
    for _ in range(3):
        state = get_state(client, "m:P")
        assert state.id is not None
        assert (dict(store.list_variables(state.id)), store.find_snapshot(state.id)) == ({}, None)
        assert find_unfinished(client, state) is None
        assert client.get_edges(state) == []
        run = begin_run(client, state, RUN, {"service": "mail"})
        state.account.append(run.account[0])
        client.update_item(state)
        store.apply(Batch((SetVariable(state.id, "n", 1), PointSnapshot(state.id, "x"))))
        assert get_state(client, "m:P") == state
        client.delete_items([state])
        ids.append(state.id)
    assert len(set(ids)) == 3
    assert get_state(client, "m:P").id not in ids


def test_a_run_whose_plugin_state_was_deleted_is_not_carried_on(clock: FakeClock, tmp_path: Path) -> None:
    """Not on the new one of that name, nor on the default one; its owner can end it, and not make it ready again."""
    store = MemoryStore(clock=clock)
    client = Pod(store)
    state = get_state(client, "m:P", "work")
    run = str(begin_run(client, state, RUN).id)
    check_state(store, run)
    client.delete_items([state])
    get_state(client, "m:P", "work")
    for _ in range(2):
        with pytest.raises(ConflictError, match=f"run {run!r} cannot be carried on: its plugin state was deleted"):
            check_state(store, run)
        abort(store, run, locks=tmp_path, wait_s=0)
        with pytest.raises(ConflictError, match="its plugin state was deleted; begin a new run"):
            retry(store, run)
    store.apply(Batch((MoveRun(str(client.create(PluginRun(id="free", **RUN)).id), Status.READY),)))
    check_state(store, "free")
    assert continue_run(client, "free")[1].name == "default"


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb"])
def test_a_plugin_state_has_a_name(client: Pod, name: str) -> None:
    """The refusal says what is allowed, and nothing is made."""
    with pytest.raises(InvalidError, match=r"cannot be called .*: 1 to 200 printable characters are allowed"):
        get_state(client, "m:P", name)
    assert client.search({"type": "PersistentState"}) == []


def test_a_plugin_state_is_made_with_its_first_run_or_not_at_all(store: Busy) -> None:
    """A run that is refused leaves no plugin state; one that another process has just made is used."""
    client = Pod(store)
    with pytest.raises(ConflictError, match="is idle and cannot become done"):
        begin_run(client, plan_state(client, "m:P"), {**RUN, "status": "done"}, {"service": "mail"})
    assert is_new(plan_state(client, "m:P"))
    assert client.search({"type": "Account"}) == []

    planned = plan_state(client, "m:P")
    store.before = [(CreateItem, lambda: store.do(CreateItem(str(planned.id), "PersistentState", {"name": "default"})))]
    run = begin_run(client, planned, RUN, {"service": "mail"})
    found = client.get(str(run.id))
    assert isinstance(found, PluginRun)
    assert ([each.id for each in found.pluginState], len(found.account)) == ([planned.id], 1)
    assert len(client.search({"type": "Account"})) == 1


def test_two_that_make_a_plugin_state_at_once_make_one(store: Busy) -> None:
    """The second one takes what is there; if that was deleted at once, it makes the next."""
    client = Pod(store)
    first = plan_state(client, "m:P")
    make = CreateItem(str(first.id), "PersistentState", {"name": "default"})
    store.before = [(CreateItem, lambda: store.do(make))]
    assert get_state(client, "m:P").id == first.id
    client.delete_items([str(first.id)])
    second = plan_state(client, "m:P")
    gone = CreateItem(str(second.id), "PersistentState", {"deleted": True})
    store.before = [(CreateItem, lambda: store.do(gone))]
    assert get_state(client, "m:P").id not in {first.id, second.id}


def test_a_refused_edit_makes_no_plugin_state(store: Busy) -> None:
    """Its name and its first variables are one event."""
    client = Pod(store)
    new = plan_state(client, "m:P")
    with pytest.raises(InvalidError, match="'' cannot name a variable"):
        edit(store, {str(new.id): {"": {"n": 1, "": 2}}}, new=[new])
    assert is_new(plan_state(client, "m:P"))
    edit(store, {str(new.id): {"": {"n": 1}}}, new=[new])
    assert plan_state(client, "m:P").pluginId == "m:P"
    assert dict(store.list_variables(str(new.id))) == {"n": 1}
