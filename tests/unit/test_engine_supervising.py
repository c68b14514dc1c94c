"""The supervisor of one Pod, over a launcher that launches nothing, fails and lies: what becomes of each run."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from holdfast import PersistentState, PluginRun
from holdfast.auth import Token
from holdfast.engine.supervising import LAUNCH, Look, Supervisor
from holdfast.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from holdfast.pod import Pod
from holdfast.runs import Launched, Launcher, LaunchSpec, Lease, Logs, Phase, Probe, Status
from holdfast.store import (
    AppendLog,
    Batch,
    ClaimLease,
    DeleteItem,
    EndLease,
    ItemRow,
    MoveRun,
    ReleaseLease,
    RenewLease,
    SetProgress,
    SetVariable,
    Store,
    UpdateItem,
)
from holdfast.testing.fakes import FakeClock, MemoryStore
from holdfast.testing.launching import FakeLauncher

OWNER = "0" * 64
LEASE_MS = 60_000
DAY_MS = 24 * 3_600_000


class Places:
    """One launcher, and threads that are done when the test says so."""

    def __init__(self, store: Store, launcher: Launcher) -> None:
        self.store, self.launcher = store, launcher
        self.slots = 100
        self.woken = 0
        self.waiting: list[Callable[[], None]] = []
        self.command: tuple[str, ...] = ("waits",)

    def listed(self) -> tuple[list[tuple[Launcher, Launched]], bool]:
        """Return what the one there is has launched, if it says."""
        try:
            return [(self.launcher, each) for each in self.launcher.list()], True
        except UnavailableError:
            return [], False

    def launcher_for(self, image: str) -> Launcher:
        """Return the one there is, but for what is called nothing."""
        if image == "nothing":
            raise NotFoundError("image 'nothing' is not launched here")
        return self.launcher

    def spec(self, run: ItemRow, lease: Lease, token: str) -> LaunchSpec:
        """Return a spec that has the token itself."""
        return LaunchSpec(
            owner=OWNER,
            plugin="my_bot:Bot",
            state=lease.state,
            run=run.id,
            epoch=lease.epoch,
            address="http://127.0.0.1:1",
            auth=token,
            image=str(run.properties["containerImage"]),
            command=self.command,
        )

    def free(self, live: int) -> int:
        """Return what the slots leave."""
        return self.slots - live

    @contextmanager
    def open(self) -> Generator[Store]:
        """Yield the one Pod."""
        yield self.store

    def submit(self, work: Callable[[], None], *, is_launch: bool) -> None:
        """Keep it for `Scene.work`."""
        self.waiting.append(work)

    def wake(self) -> None:
        """Count it: a test looks when it wants to."""
        self.woken += 1


class Scene:
    """A Pod, a launcher, a supervisor and a clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.client = Pod(self.store)
        self.launcher = FakeLauncher()
        self.places = Places(self.store, self.launcher)
        self.supervisor = self.another()

    def another(self) -> Supervisor:
        """Return a supervisor that knows nothing yet, as after a restart, or on another server."""
        return Supervisor(
            OWNER, self.places, sealing=lambda token: f"{token.run}/{token.epoch}", now_ms=self.clock.now_ms,
            lease_ms=LEASE_MS, chance=lambda: 0.5,
        )  # fmt: skip

    def run(self, id_: str = "r1", state: str = "s1", **properties: Any) -> str:
        """Create a run on a plugin state."""
        if not self.client.find(state):
            self.client.create(PersistentState(id=state, pluginId="my_bot:Bot", name=state))
        found = self.client.get(state)
        values = {"pluginModule": "my_bot", "pluginName": "Bot", "containerImage": "bot", **properties}
        self.client.create(PluginRun(id=id_, pluginState=[found], **values))
        return id_

    def work(self) -> None:
        """Do what waits for a thread."""
        while self.places.waiting:
            self.places.waiting.pop(0)()

    def look(self, supervisor: Supervisor | None = None) -> Look:
        """Look, and do what that began."""
        found = (supervisor or self.supervisor).look(self.store)
        self.work()
        return found

    def settle(self) -> Look:
        """Look as often as something comes of it."""
        for _ in range(5):
            found = self.look()
        return found

    def lease(self, state: str = "s1") -> Lease:
        """Return the lease of a plugin state."""
        found = self.store.find_lease(state)
        assert found is not None
        return found

    def begin(self, run: str = "r1", state: str = "s1") -> Lease:
        """Do what a launched process does first: claim again, and be started."""
        lease = self.lease(state)
        self.store.apply(Batch((ClaimLease(state, run, lease.holder, LEASE_MS), MoveRun(run, Status.STARTED))))
        return self.lease(state)

    def end(self, lease: Lease, status: Status = Status.DONE, run: str = "r1") -> None:
        """Do what it does last."""
        self.store.apply(Batch((MoveRun(run, status), ReleaseLease(lease.fence)), lease.fence))

    def status(self, run: str = "r1") -> str:
        """Return the status of a run."""
        return str(self.row(run).properties["status"])

    def row(self, run: str = "r1") -> ItemRow:
        """Return a run."""
        return self.store.find_items([run])[run]

    def launched(self) -> list[tuple[str, int]]:
        """Return what is launched now: the runs and their epochs."""
        return sorted((each.run, each.epoch) for each in self.launcher.list())


@pytest.fixture
def scene() -> Scene:
    """Return a scene with nothing in it."""
    return Scene()


def test_a_run_is_claimed_and_launched_with_a_token_of_its_own(scene: Scene) -> None:
    """The lease comes first: it is the note that the run is to be launched."""
    scene.run()
    assert scene.supervisor.look(scene.store) == Look(next_ms=scene.clock.now_ms() + 15_000, live=1, begun=1)
    lease = scene.lease()
    assert (lease.run, lease.epoch, lease.holder.startswith(LAUNCH)) == ("r1", 1, True)
    assert lease.is_held(scene.clock.now_ms())
    assert scene.launched() == []
    scene.work()
    assert scene.launched() == [("r1", 1)]
    (spec,) = scene.launcher.launched.values()
    assert (spec.auth, spec.image) == ("r1/1", "bot")
    assert scene.status() == "idle"


@pytest.mark.parametrize("image", [None, "", "none"])
def test_a_run_without_an_image_is_nobodys_but_its_users(scene: Scene, image: str | None) -> None:
    """It is carried on by hand."""
    scene.run(containerImage=image)
    assert scene.settle() == Look(next_ms=scene.clock.now_ms() + DAY_MS, live=0)
    assert scene.store.find_lease("s1") is None


def test_a_run_without_a_plugin_state_gets_its_plugins_default_one(scene: Scene) -> None:
    """As one that is begun by hand."""
    scene.client.create(PluginRun(id="r1", pluginModule="my_bot", pluginName="Bot", containerImage="bot"))
    scene.settle()
    (state,) = scene.client.search({"type": "PersistentState"})
    assert (state.pluginId, state.name) == ("my_bot:Bot", "default")  # type: ignore[attr-defined]
    assert scene.launched() == [("r1", 1)]


def test_what_ends_is_cleaned_up_and_its_log_is_kept(scene: Scene) -> None:
    """Nothing of a finished run is left with the launcher; what it wrote is in the Pod."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    scene.end(lease)
    assert scene.settle() == Look(next_ms=scene.clock.now_ms() + DAY_MS, live=0)
    assert scene.launched() == []
    assert [part.text for part in scene.store.list_log("r1")] == ["begun\n"]
    assert scene.status() == "done"


def test_what_a_run_writes_is_read_while_it_goes_on(scene: Scene) -> None:
    """Each byte once, whatever it is."""
    scene.run()
    scene.settle()
    scene.begin()
    (name,) = scene.launcher.launched
    for text in (b"half of \xc3", b"\xa9 and \0 \xff\n", b"more\n"):
        scene.launcher.write(name, text)
        scene.settle()
    text = "".join(part.text for part in scene.store.list_log("r1"))
    assert text == "begun\nhalf of \ufffd\ufffd and \ufffd \ufffd\nmore\n"
    assert scene.look().next_ms == scene.clock.now_ms() + 2_000


def test_what_was_claimed_by_one_who_died_is_launched_by_the_next(scene: Scene) -> None:
    """It died between the claim and the launch; the name is the same."""
    scene.run()
    scene.supervisor.look(scene.store)
    scene.places.waiting.clear()  # it dies
    scene.look(scene.another())
    assert scene.launched() == [("r1", 1)]


def test_what_was_launched_by_one_who_died_is_found_by_the_next(scene: Scene) -> None:
    """It died between the launch and hearing of it: nothing is launched twice."""
    scene.run()
    scene.look()
    before = scene.lease()
    for _ in range(3):
        scene.look(scene.another())
    assert scene.launcher.calls.count(("launch", next(iter(scene.launcher.launched)))) == 1
    assert (scene.lease().epoch, scene.lease().holder) == (before.epoch, before.holder)


def test_two_that_look_at_once_launch_a_run_once(scene: Scene) -> None:
    """The claim of one is refused."""
    scene.run()
    other = scene.another()
    scene.supervisor.look(scene.store)
    other.look(scene.store)
    scene.work()
    assert scene.launched() == [("r1", 1)]


def test_the_lease_lasts_while_a_launch_takes_its_time(scene: Scene) -> None:
    """An image is fetched, for ten minutes; then the process has all of a lease to begin."""
    scene.run()
    scene.supervisor.look(scene.store)
    for _ in range(40):
        scene.clock.advance(15_000)
        assert scene.supervisor.look(scene.store).live == 1
    assert len(scene.places.waiting) == 1
    scene.work()
    assert scene.lease().expires_ms == scene.clock.now_ms() + LEASE_MS
    assert scene.launched() == [("r1", 1)]


def test_a_run_that_is_not_renewed_is_given_up_and_launched_again(scene: Scene) -> None:
    """Not before its lease has lapsed; then after a while, under a new epoch; what was there is ended first."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    scene.launcher.end(next(iter(scene.launcher.launched)), Probe(Phase.FAILED, "it was ended by signal 9"))
    scene.clock.advance(LEASE_MS - 1)
    scene.settle()
    assert (scene.status(), scene.lease()) == ("started", lease)
    scene.clock.advance(1)
    scene.settle()
    assert scene.status() == "ready"
    assert scene.row().properties["retryAt"] == scene.clock.now_ms() + 2_500
    assert scene.launched() == []
    assert scene.look().next_ms == scene.clock.now_ms() + 2_500
    scene.clock.advance(2_500)
    scene.settle()
    ((run, epoch),) = scene.launched()
    assert (run, epoch > lease.epoch, scene.lease().epoch == epoch) == ("r1", True, True)


def test_who_was_given_up_can_write_nothing_more(scene: Scene) -> None:
    """It was stopped past its lease, and goes on."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    scene.clock.advance(LEASE_MS)
    scene.settle()
    with pytest.raises(ConflictError):
        scene.store.apply(Batch((SetVariable("s1", "a", 1),), lease.fence))


def test_a_run_that_renews_in_the_last_moment_is_not_given_up(scene: Scene) -> None:
    """What gives it up is refused."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    scene.clock.advance(LEASE_MS)
    scene.supervisor.look(scene.store)
    scene.store.apply(Batch((RenewLease(lease.fence, LEASE_MS),)))
    scene.work()
    assert (scene.status(), scene.lease().fence) == ("started", lease.fence)


def die(scene: Scene, *, before: Callable[[Lease], None] = lambda _: None) -> None:
    """Let the launched run begin and die, and be given up."""
    scene.settle()
    lease = scene.begin()
    before(lease)
    scene.launcher.end(next(iter(scene.launcher.launched)), Probe(Phase.FAILED, "it was ended by signal 11"))
    scene.clock.advance(LEASE_MS)
    scene.settle()
    scene.clock.advance(300_000)


def test_a_run_that_dies_three_times_and_comes_no_further_is_an_error(scene: Scene) -> None:
    """With how it ended, and its last lines."""
    scene.run()
    for _ in range(2):
        die(scene)
        assert scene.status() == "ready"
    die(scene)
    assert scene.status() == "error"
    assert scene.row().properties["error"] == (
        "it died 3 times and came no further in between: it was ended by signal 11\nbegun\nbegun\nbegun"
    )
    assert scene.settle() == Look(next_ms=scene.clock.now_ms() + DAY_MS, live=0)
    assert scene.launched() == []


def test_a_run_that_comes_further_each_time_may_die_as_often_as_it_does(scene: Scene) -> None:
    """Its variables, its progress, or its snapshot: whatever it saves."""
    scene.run()
    for number in range(6):
        die(scene, before=lambda lease, n=number: scene.store.apply(Batch((SetVariable("s1", "n", n),), lease.fence)))
        die(scene, before=lambda lease, n=number: scene.store.apply(Batch((SetProgress("r1", n / 10),), lease.fence)))
        assert scene.status() == "ready"


def test_a_daemon_is_begun_again_however_often_it_dies(scene: Scene) -> None:
    """It has no end; it waits a little longer each time."""
    scene.run()
    waits: list[int] = []
    for _ in range(5):
        died_at = scene.clock.now_ms()
        die(scene, before=lambda lease: scene.store.apply(Batch((MoveRun("r1", Status.DAEMON),), lease.fence)))
        assert scene.status() == "ready"
        retry = scene.row().properties["retryAt"]
        assert isinstance(retry, int)
        waits.append(retry - died_at - LEASE_MS)
    assert waits == [2_500, 5_000, 10_000, 20_000, 40_000]


def test_a_missing_image_is_an_error_with_that_reason(scene: Scene) -> None:
    """And the plugin state is free again."""
    scene.places.command = ("missing",)
    scene.run()
    assert scene.settle() == Look(next_ms=scene.clock.now_ms() + DAY_MS, live=0)
    assert (scene.status(), scene.row().properties["error"]) == ("error", "NotFoundError: image 'missing' is not here")
    assert not scene.lease().is_held(scene.clock.now_ms())


def test_an_image_that_nothing_launches_here_is_an_error(scene: Scene) -> None:
    """Nothing is claimed for it."""
    scene.run(containerImage="nothing")
    scene.settle()
    assert (scene.status(), scene.row().properties["error"]) == (
        "error",
        "NotFoundError: image 'nothing' is not launched here",
    )
    assert scene.store.find_lease("s1") is None


def test_rights_that_cannot_be_read_are_an_error(scene: Scene) -> None:
    """No token can be made."""
    scene.run(writes="everything")
    scene.supervisor = Supervisor(OWNER, scene.places, sealing=_sealed, now_ms=scene.clock.now_ms)
    scene.settle()
    assert scene.status() == "error"
    assert scene.launched() == []


def _sealed(token: Token) -> str:
    return token.run


@pytest.mark.parametrize("is_done", [False, True])
def test_a_launcher_that_is_not_there_is_asked_again(scene: Scene, *, is_done: bool) -> None:
    """For the same launch: it may have been made. Nothing becomes of the run meanwhile."""
    scene.run()
    scene.launcher.fail("launch", UnavailableError("it does not answer"), is_done=is_done)
    scene.look()
    assert scene.status() == "idle"
    scene.settle()
    assert scene.launched() == [("r1", 1)]
    assert scene.lease().epoch == 1


def test_a_launcher_that_never_answers_ends_no_run(scene: Scene) -> None:
    """A launch that was never made is no death of the plugin."""
    scene.run()
    for _ in range(50):
        scene.launcher.fail("launch", UnavailableError("it does not answer"))
        scene.look()
        scene.clock.advance(20_000)
    assert (scene.status(), scene.lease().epoch) == ("idle", 1)
    for _ in range(20):
        scene.look()
        scene.clock.advance(10_000)
        if scene.launched():
            break
    assert len(scene.launched()) == 1


@pytest.mark.parametrize("lie", [*Phase])
@pytest.mark.parametrize("status", [Status.STARTED, Status.DAEMON, Status.AUTHENTICATED])
def test_a_launcher_that_lies_changes_nothing(scene: Scene, lie: Phase, status: Status) -> None:
    """The lease decides: neither the run, nor its lease, nor what is launched is another one."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    if status is not Status.STARTED:
        scene.store.apply(Batch((MoveRun("r1", status),), lease.fence))
    before = scene.row()
    (name,) = scene.launcher.launched
    scene.launcher.lie(name, Probe(lie, "a lie"))
    for supervisor in (scene.supervisor, scene.another()):
        for method in ("launch", "probe", "stop", "logs", "list", "delete"):
            scene.launcher.fail(method, UnavailableError("it does not answer"))
        for _ in range(10):
            scene.look(supervisor)
            scene.clock.advance(4_000)
            lease = replace(lease, expires_ms=scene.clock.now_ms() + LEASE_MS)
            scene.store.apply(Batch((RenewLease(lease.fence, LEASE_MS),)))
    assert scene.row() == before
    assert scene.lease() == lease
    assert scene.launched() == [("r1", 1)]


def test_a_launcher_that_says_there_is_no_image_of_what_works_is_not_believed(scene: Scene) -> None:
    """It was launched, and is started by the time that the launcher says that it cannot be."""
    scene.run()
    scene.supervisor.look(scene.store)
    scene.begin()
    scene.launcher.fail("launch", NotFoundError("image 'bot' is not here"), is_done=True)
    scene.settle()
    assert scene.status() == "started"
    assert scene.lease().is_held(scene.clock.now_ms())


def test_a_run_that_was_aborted_has_nothing_left(scene: Scene) -> None:
    """Also if it never listened."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    scene.store.apply(Batch((EndLease("s1", lease.epoch), MoveRun("r1", Status.ABORTED))))
    scene.settle()
    assert scene.launched() == []
    assert [method for method, _ in scene.launcher.calls].count("stop") == 1


def test_a_run_that_says_it_is_done_and_goes_on_is_ended(scene: Scene) -> None:
    """It has the lease still; it loses it."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    scene.store.apply(Batch((MoveRun("r1", Status.DONE),), lease.fence))
    scene.settle()
    assert scene.launched() == []
    assert not scene.lease().is_held(scene.clock.now_ms())


def test_what_cannot_be_ended_now_is_ended_later(scene: Scene) -> None:
    """At each of the steps; nothing of the log is lost or there twice."""
    scene.run()
    scene.settle()
    scene.end(scene.begin())
    for method in ("list", "stop", "logs", "delete"):
        for is_done in (False, True):
            scene.launcher.fail(method, UnavailableError("it does not answer"), is_done=is_done)
    for _ in range(12):
        look = scene.look()
        assert look.next_ms == scene.clock.now_ms() + 5_000 or not scene.launched()
    assert scene.launched() == []
    assert [part.text for part in scene.store.list_log("r1")] == ["begun\n"]


def test_no_more_runs_are_launched_than_there_are_places(scene: Scene) -> None:
    """The one that waits for longest comes first, when another gives its lease back."""
    scene.places.slots = 2
    for number in range(4):
        scene.run(f"r{number}", f"s{number}")
        scene.clock.advance(1)
    assert scene.settle().live == 2
    assert scene.launched() == [("r0", 1), ("r1", 1)]
    lease = scene.begin("r1", "s1")
    scene.end(lease, run="r1")
    scene.settle()
    assert scene.launched() == [("r0", 1), ("r2", 1)]


def test_what_is_launched_in_vain_has_its_place_until_it_is_over(scene: Scene) -> None:
    """Its run was aborted while an image is fetched: who does so again and again takes no more places."""
    scene.places.slots = 1
    scene.run()
    scene.supervisor.look(scene.store)
    scene.store.apply(Batch((EndLease("s1"), MoveRun("r1", Status.ABORTED))))
    scene.run("r2", "s2")
    assert scene.supervisor.look(scene.store) == Look(
        next_ms=scene.clock.now_ms() + 5_000, live=1, begun=0, is_waiting=True
    )
    scene.settle()
    assert scene.launched() == [("r2", 1)]


def test_what_is_left_over_has_its_place_until_it_is_ended(scene: Scene) -> None:
    """Who aborts run after run that do not end has no more of them than others."""
    scene.places.slots = 1
    scene.run()
    scene.settle()
    scene.begin()
    scene.store.apply(Batch((EndLease("s1"), MoveRun("r1", Status.ABORTED))))
    scene.run("r2", "s2")
    scene.supervisor.look(scene.store)
    assert len(scene.places.waiting) == 1
    look = scene.supervisor.look(scene.store)
    assert (look.live, look.is_waiting, scene.launched()) == (1, True, [("r1", 1)])
    scene.settle()
    assert scene.launched() == [("r2", 1)]


def test_what_was_aborted_while_it_was_launched_is_ended_at_once(scene: Scene) -> None:
    """Who launched it asks for another look."""
    scene.run()
    scene.supervisor.look(scene.store)
    scene.store.apply(Batch((EndLease("s1"), MoveRun("r1", Status.ABORTED))))
    scene.work()
    assert scene.places.woken == 1
    scene.settle()
    assert scene.launched() == []


def test_a_run_whose_plugin_state_was_deleted_is_an_error(scene: Scene) -> None:
    """Only its user can mend that; it does not wait without a word."""
    scene.run()
    scene.store.apply(Batch((DeleteItem("s1"),)))
    scene.settle()
    assert scene.status() == "error"
    assert scene.row().properties["error"] == (
        "ConflictError: run 'r1' cannot be carried on: its plugin state was deleted; begin a new run"
    )


def test_of_a_flood_of_output_the_last_is_kept(scene: Scene) -> None:
    """Without writing the rest to the Pod first."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    scene.end(lease)
    applied: list[Batch] = []
    scene.launcher.logs = partial(_pages, 100)  # type: ignore[method-assign]
    apply = scene.store.apply
    scene.store.apply = lambda batch: (applied.append(batch), apply(batch))[1]  # type: ignore[method-assign]
    scene.settle()
    appended = [each for batch in applied for each in batch.operations if isinstance(each, AppendLog)]
    assert (appended[0].start, appended[0].end, appended[-1].end, len(appended)) == ("6", "84", "100", 17)
    assert scene.launched() == []


def _pages(count: int, name: str, after: str = "") -> Logs:
    """Return a page of a log with so many; the first has been read."""
    del name
    at = int(after or "6")
    return Logs(b"x" * 2**20, str(at + 1 if at > 6 else 7)) if at < count else Logs(b"", after)


def test_the_last_words_of_a_run_are_told_though_its_last_line_is_long(scene: Scene) -> None:
    """Of a long line the end."""
    scene.run()
    for _ in range(3):
        scene.settle()
        scene.launcher.write(next(iter(scene.launcher.launched)), b"why\n" + b"x" * 5_000 + b"end\n")
        die(scene)
    error = str(scene.row().properties["error"])
    assert "\nwhy\n" in error
    assert error.endswith("xend")
    assert len(error) <= 2_000


def test_a_log_that_cannot_be_read_keeps_nothing_running(scene: Scene) -> None:
    """A plugin may have put anything in its place."""
    scene.run()
    scene.settle()
    scene.end(scene.begin())
    for _ in range(20):
        scene.launcher.fail("logs", InvalidError("output.log is no file"))
    scene.settle()
    assert scene.launched() == []


@pytest.mark.parametrize("method", ["probe", "logs"])
@pytest.mark.parametrize("error", [UnavailableError("it does not answer"), RuntimeError("a defect")])
def test_what_a_launcher_raises_keeps_no_lost_run(scene: Scene, method: str, error: Any) -> None:
    """The lease decides."""
    scene.run()
    scene.settle()
    scene.begin()
    scene.clock.advance(LEASE_MS)
    for _ in range(20):
        scene.launcher.fail(method, error)
    scene.settle()
    assert scene.status() == "ready"


def test_a_run_that_asked_its_user_and_died_has_nothing_left(scene: Scene) -> None:
    """It waits for its user all the same, and has not died for want of progress."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    scene.store.apply(Batch((MoveRun("r1", Status.USER_ACTION_NEEDED),), lease.fence))
    scene.settle()
    assert scene.launched() == [("r1", 1)]
    scene.clock.advance(LEASE_MS)
    scene.settle()
    assert (scene.status(), scene.launched()) == ("userActionNeeded", [])
    assert scene.row().properties.get("deaths") is None
    assert not scene.lease().holder


def test_the_run_that_was_created_first_comes_first(scene: Scene) -> None:
    """Also if it was written since."""
    scene.places.slots = 1
    scene.run("r0", "s0")
    scene.clock.advance(1)
    scene.run("r1", "s1")
    scene.clock.advance(1)
    scene.store.apply(Batch((UpdateItem("r0", {"config": "{}"}),)))
    scene.settle()
    assert scene.launched() == [("r0", 1)]


def test_a_second_run_waits_for_the_plugin_state(scene: Scene) -> None:
    """One at a time; it comes when the first is done."""
    scene.run("r1")
    scene.run("r2")
    scene.settle()
    first = scene.lease().run
    second = {"r1": "r2", "r2": "r1"}[first]
    assert [run for run, _ in scene.launched()] == [first]
    scene.end(scene.begin(first), run=first)
    scene.settle()
    assert [run for run, _ in scene.launched()] == [second]


def test_a_run_that_asked_to_be_tried_later_is(scene: Scene) -> None:
    """Not before the instant that it named."""
    at_ms = scene.clock.now_ms() + 3_600_000
    run = scene.run()
    scene.store.apply(Batch((UpdateItem(run, {"retryAt": at_ms}),)))
    assert scene.settle() == Look(next_ms=at_ms, live=0)
    scene.clock.advance(3_600_000)
    scene.settle()
    assert scene.launched() == [("r1", 1)]


def test_a_run_that_waits_for_its_user_is_left_alone(scene: Scene) -> None:
    """Its process has ended, and is cleaned up; it is not launched before it is ready."""
    scene.run()
    scene.settle()
    lease = scene.begin()
    scene.store.apply(Batch((MoveRun("r1", Status.USER_ACTION_NEEDED), ReleaseLease(lease.fence)), lease.fence))
    scene.clock.advance(10 * LEASE_MS)
    assert scene.settle() == Look(next_ms=scene.clock.now_ms() + DAY_MS, live=0)
    assert (scene.status(), scene.launched()) == ("userActionNeeded", [])


def test_launches_of_others_are_not_touched(scene: Scene) -> None:
    """Another owner's, on the same launcher."""
    scene.launcher.launch(replace(_any_spec(), owner="1" * 64))
    scene.settle()
    assert scene.launched() == [("r9", 1)]


def test_a_launch_of_nothing_is_ended(scene: Scene) -> None:
    """Its run and plugin state are not in the Pod, deleted perhaps."""
    scene.launcher.launch(_any_spec())
    scene.settle()
    assert scene.launched() == []


def _any_spec() -> LaunchSpec:
    return LaunchSpec(owner=OWNER, plugin="p", state="s9", run="r9", epoch=1, address="", auth="")


def test_an_interval_on_a_run_brings_a_schedule(scene: Scene) -> None:
    """Once; the run is its first instant."""
    scene.run(interval=3_600)
    scene.settle()
    (schedule,) = scene.client.search({"type": "Schedule"})
    assert schedule.interval == 3_600  # type: ignore[attr-defined]
    scene.end(scene.begin())
    scene.clock.advance(3_600_000)
    scene.settle()
    ((run, _),) = scene.launched()
    assert run != "r1"


def test_what_was_logged_long_ago_goes(scene: Scene) -> None:
    """After as many days as the settings say."""
    scene.run()
    scene.settle()
    scene.end(scene.begin())
    scene.settle()
    scene.clock.advance(30 * 24 * 3_600_000 - 1)
    scene.settle()
    assert scene.store.list_log("r1")
    scene.clock.advance(3_600_001)
    scene.settle()
    assert not scene.store.list_log("r1")
