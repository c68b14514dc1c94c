"""Supervision of a home's Pods: whom it keeps waiting, what it notices, and what it tells a launched run.

In this process, over real Pods and launchers that launch nothing. Where the clock stands still, nothing happens but
what is written; what never happens is for the timeout of the test to say.
"""

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from holdfast import PersistentState, PluginRun, PodClient
from holdfast.auth import unseal
from holdfast.context import Settings, supervising
from holdfast.context.serving import LocalPods
from holdfast.context.supervising import Launching, Supervision
from holdfast.errors import NotFoundError, UnavailableError
from holdfast.items import Schedule
from holdfast.keys import Identity, store_identity
from holdfast.pod import Pod
from holdfast.runs import Clock, Launched, LaunchSpec, Limits, Status, SystemClock
from holdfast.server.pods import OpenPod, OpenPods, Use
from holdfast.sql import Agenda
from holdfast.store import Batch, CreateEdge, EndLease, ItemRow, MoveRun, Store
from holdfast.testing.fakes import FakeClock
from holdfast.testing.launching import FakeLauncher, wait_until
from tests.components.servers import OWNER, STRANGER

NEVER_MS = 10**15
"""Later than anything is due."""


class Hanging(FakeLauncher):
    """Keeps waiting who launches for some owners, or asks what it has launched, until the end of the test."""

    def __init__(self, of: FakeLauncher | None = None) -> None:
        super().__init__(of)
        self.held: set[str] = set()
        """Owners; and "list"."""
        self.begun: list[LaunchSpec] = []
        """What it was told to launch, in order."""
        self.go = threading.Event()

    def launch(self, spec: LaunchSpec) -> str:
        """As it does, in the end."""
        self.begun.append(spec)
        if spec.owner in self.held:
            self.go.wait()
        return super().launch(spec)

    def list(self) -> list[Launched]:
        """As it does, in the end."""
        found = list(super().list())
        if "list" in self.held:
            self.go.wait()
        return found


class Opener(LocalPods):
    """Opens Pods, but not each."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self.odd: dict[str, str] = {}
        """What raises in which owner's Pod, when the owner does not call: "opening" or "reading"."""

    def open(self, owner: str, database_key: str | None) -> OpenPod:
        """As it does, or as nobody expects."""
        if database_key is None and self.odd.get(owner) == "opening":
            raise OverflowError(owner)
        pod = super().open(owner, database_key)
        if database_key is None and self.odd.get(owner) == "reading":
            pod.store.search = _overflow  # type: ignore[method-assign]
        return pod


def _overflow(query: object) -> Any:
    raise OverflowError(query)


class Pods(OpenPods):
    """Counts who was opened."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.used = Counter[str]()

    def open(self, owner: str, database_key: str | None) -> Use:
        """As it does."""
        self.used[owner] += 1
        return super().open(owner, database_key)


class Server:
    """What a server of a home has without HTTP; it supervises from `start` on."""

    def __init__(
        self,
        home: Path,
        *,
        launching: Launching,
        launchers: Mapping[str, Hanging],
        clock: Clock,
        is_attended: bool,
        **settings: Any,
    ) -> None:
        self.settings = Settings(home=home, **settings)
        self.clock: Any = clock
        self.opener = Opener(self.settings, clock=clock, is_attended=is_attended)
        self.pods = Pods(self.opener)
        self.launchers = launchers
        self.launcher = next(iter(launchers.values()))
        self.supervision = Supervision(self.settings, self.pods, pod="p", launching=launching, launchers=launchers)
        self.opener.stirring = self.supervision.stirring
        self.agenda = Agenda(self.settings.keyring_path)
        self._uses: dict[Identity, Use] = {}
        self._is_closed = False

    def start(self) -> None:
        """Begin to supervise."""
        self.supervision.start("http://127.0.0.1:1")

    def store(self, who: Identity = OWNER) -> Store:
        """Return the store of an owner, whose Pod is made if there is none, and stays open."""
        if who not in self._uses:
            self.opener.create(who.owner_key, who.database_key)
            self._uses[who] = self.pods.open(who.owner_key, who.database_key)
        return self._uses[who].pod.store

    def run(self, who: Identity = OWNER, image: str = "bot") -> str:
        """Create a run on a plugin state of its own, in one write."""
        client = Pod(self.store(who))
        made = PluginRun(pluginModule="my_bot", pluginName="Bot", containerImage=image)
        with client.transaction():
            made.pluginState.append(client.create(PersistentState(pluginId="my_bot:Bot")))
            client.create(made)
        return str(made.id)

    def row(self, run: str, who: Identity = OWNER) -> ItemRow:
        """Return a run."""
        return self.store(who).find_items([run])[run]

    def abort(self, spec: LaunchSpec, who: Identity = OWNER) -> None:
        """End a run that may be working."""
        self.store(who).apply(Batch((EndLease(spec.state), MoveRun(spec.run, Status.ABORTED))))

    def begun(self) -> list[str]:
        """Return which runs were begun, in order; one that was launched twice is there twice."""
        return [spec.run for launcher in self.launchers.values() for spec in launcher.begun]

    def launched(self, run: str) -> LaunchSpec:
        """Wait until a run is launched, and return what its launcher was told."""
        found = dict[str, LaunchSpec]()

        def is_launched() -> bool:
            for launcher in self.launchers.values():
                found.update({spec.run: spec for spec in list(launcher.launched.values())})
            return run in found

        wait_until(is_launched)
        return found[run]

    def look(self, *who: Identity) -> None:
        """Wait until these have been looked at, from the beginning to the end."""
        for _ in range(2):  # the first one may have been going on, and has ended when the second one asks
            before = self.launcher.calls.count(("list", ""))
            for each in who:
                self.supervision.wake(each.owner_key)
            wait_until(lambda before=before: self.launcher.calls.count(("list", "")) > before)  # type: ignore[misc]

    def is_due(self, within_ms: int, who: Identity = OWNER) -> bool:
        """Say whether an owner is to be looked at within a time from now."""
        return who.owner_key in self.agenda.list_due(self.clock.now_ms() + within_ms)

    def close(self) -> None:
        """End as a server does; nothing happens a second time."""
        if not self._is_closed:
            self._is_closed = True
            for launcher in self.launchers.values():
                launcher.go.set()
            self.supervision.close()
            for use in self._uses.values():
                use.end()
            self.pods.close()


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """What makes a server of the test's home, which is the owner's; nothing is launched by it but containers."""
    home = tmp_path / "home"
    home.mkdir()
    store_identity(home, OWNER, is_in_use=lambda _: False)
    with ExitStack() as stack:

        def make(
            *,
            launching: Launching = Launching(kind="docker"),  # noqa: B008 -- frozen
            launchers: Mapping[str, Hanging] | None = None,
            clock: Clock | None = None,
            is_attended: bool = False,
            **settings: Any,
        ) -> Server:
            made = Server(
                home,
                launching=launching,
                launchers=launchers or {"docker": Hanging()},
                clock=clock or FakeClock(),
                is_attended=is_attended,
                **settings,
            )
            stack.callback(made.close)
            return made

        yield make


# -- nobody keeps others waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["opening", "reading"])
def test_whatever_one_pod_raises_others_are_looked_at_and_it_is_put_off(serve: Serve, what: str) -> None:
    """For a minute; its owner's next call brings it back."""
    server = serve()
    server.opener.create(OWNER.owner_key, OWNER.database_key)
    server.opener.odd[OWNER.owner_key] = what
    server.opener.create(STRANGER.owner_key, STRANGER.database_key)
    server.start()
    wait_until(lambda: not server.is_due(59_999))
    assert server.is_due(60_000)
    server.launched(server.run(STRANGER))
    server.opener.odd.clear()
    server.clock.advance(60_000)
    wait_until(lambda: not server.is_due(0))


def test_a_pod_that_is_damaged_is_tried_again_and_keeps_nobody_waiting(serve: Serve) -> None:
    """When it was brought back its runs are begun."""
    before = serve()
    run = before.run()
    before.close()
    path = before.settings.pod_path(OWNER.owner_key)
    whole = path.read_bytes()
    path.write_bytes(b"damaged" * 1000)
    server = serve()
    server.start()
    server.launched(server.run(STRANGER))
    wait_until(lambda: not server.is_due(59_999))
    path.write_bytes(whole)
    assert run not in server.begun()
    server.clock.advance(60_000)
    server.launched(run)


def test_launches_that_take_for_ever_keep_their_places_and_no_other_owner_waiting(serve: Serve) -> None:
    """Also when their runs are aborted; another's are begun, their logs come, and what is over is cleaned up."""
    server = serve(max_runs_per_owner=2)
    server.launcher.held.add(OWNER.owner_key)
    runs = [server.run() for _ in range(4)]
    server.start()
    wait_until(lambda: len(server.launcher.begun) == 2)
    for spec in list(server.launcher.begun):
        server.abort(spec)
    run = server.run(STRANGER)
    spec = server.launched(run)
    server.launcher.write(spec.name, b"more\n")
    server.look(OWNER, STRANGER)
    wait_until(lambda: _log_of(server.store(STRANGER), run) == "begun\nmore\n")
    server.abort(spec, STRANGER)
    wait_until(lambda: spec.name not in server.launcher.launched)
    server.look(OWNER, STRANGER)
    assert len([each for each in server.begun() if each in runs]) == 2
    server.launcher.go.set()
    for each in set(runs) - set(server.begun()):
        server.launched(each)


def _log_of(store: Store, run: str) -> str:
    return "".join(part.text for part in store.list_log(run))


def test_who_keeps_runs_waiting_lets_another_owner_go_first(serve: Serve) -> None:
    """There is one place: what another owner has comes after one more of theirs at most."""
    server = serve(max_runs=1)
    for _ in range(6):
        server.run()
    server.start()
    order: list[str] = []

    def next_one() -> LaunchSpec:
        wait_until(lambda: len(server.launcher.begun) > len(order))
        spec = server.launched(server.launcher.begun[len(order)].run)
        order.append(spec.owner)
        return spec

    first = next_one()
    server.run(STRANGER)
    server.look(STRANGER)
    server.abort(first)
    second = next_one()
    if second.owner == OWNER.owner_key:
        server.abort(second)
        next_one()
    assert order[-1] == STRANGER.owner_key
    assert len(server.launcher.launched) <= 2


def test_who_has_as_many_as_it_may_have_is_in_nobodys_way(serve: Serve) -> None:
    """Its own runs wait, and no place for them is kept free."""
    server = serve(max_runs=2, max_runs_per_owner=1)
    server.run()
    server.run()
    server.start()
    wait_until(lambda: len(server.launcher.begun) == 1)
    server.look(OWNER)
    first = server.run(STRANGER)
    server.abort(server.launched(first), STRANGER)
    second = server.run(STRANGER)
    assert server.launched(second).owner == STRANGER.owner_key
    assert len({spec.owner for spec in server.launcher.begun}) == 2


# -- launchers that do not answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["hangs", "raises", "is away"])
def test_a_launcher_that_does_not_say_what_it_has_launched_stops_no_other(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Runs are begun, and those of others are cleaned up; nor does starting or closing wait for it."""
    monkeypatch.setattr(supervising, "_CLOSE_S", 0.1)
    silent, other = Hanging(), Hanging()
    if fault == "hangs":
        silent.held.add("list")
    else:
        silent.fail("list", RuntimeError(fault) if fault == "raises" else UnavailableError(fault))  # type: ignore[arg-type]
    launching = Launching(kind="docker", scripts={"script": Path("script")})
    server = serve(launching=launching, launchers={"docker": silent, "script": other})
    server.start()
    spec = server.launched(server.run(image="script"))
    server.launched(server.run(STRANGER))
    server.abort(spec)
    wait_until(lambda: not other.launched)
    server.supervision.close()


def test_closing_waits_for_no_launch_and_begins_none(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that hang are left to the next server."""
    monkeypatch.setattr(supervising, "_CLOSE_S", 0.1)
    server = serve()
    server.launcher.held.add(OWNER.owner_key)
    server.start()
    server.run()
    wait_until(lambda: len(server.launcher.begun) == 1)
    server.supervision.close()
    late = server.run()
    assert late not in server.begun()
    after = serve(launchers={"docker": Hanging(of=server.launcher)}, clock=server.clock)
    after.start()
    after.launched(late)


@pytest.mark.parametrize("answer_s", [60, 0], ids=["in time", "late"])
def test_what_is_left_of_a_launch_is_found_without_the_agenda(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, answer_s: float
) -> None:
    """Its owner is looked at because of it when the launcher first answers, however late that is."""
    monkeypatch.setattr(supervising, "_ANSWER_S", answer_s)
    before = serve()
    before.store()
    before.start()
    wait_until(lambda: not before.is_due(NEVER_MS))
    before.close()
    left = LaunchSpec(owner=OWNER.owner_key, plugin="p", state="s", run="r", epoch=1, address="", auth="")
    server = serve()
    server.launcher.launch(left)
    server.start()
    wait_until(lambda: not server.launcher.launched)


def test_an_agenda_that_cannot_be_read_now_is_asked_now_and_then_and_nobody_is_forgotten(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Who was woken meanwhile is looked at when it can."""
    server = serve()
    server.store()
    server.start()
    wait_until(lambda: not server.is_due(NEVER_MS))
    path = server.settings.keyring_path
    path.rename(path.with_suffix(".away"))
    path.mkdir()
    caplog.clear()
    used = server.pods.used[OWNER.owner_key]
    server.supervision.wake(OWNER.owner_key)

    def failed() -> list[logging.LogRecord]:
        return [each for each in caplog.records if each.getMessage() == "supervision.failed"]

    wait_until(lambda: len(failed()) >= 2)
    first, second = failed()[:2]
    assert second.relativeCreated - first.relativeCreated > 500  # a lower bound: no machine is too slow for it
    path.rmdir()
    path.with_suffix(".away").rename(path)
    wait_until(lambda: server.pods.used[OWNER.owner_key] > used)


# -- what is noticed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls, rule", [(PluginRun, {}), (Schedule, {"interval": 1})], ids=["run", "schedule"])
def test_what_another_process_writes_to_the_file_of_a_pod_is_noticed(
    serve: Serve, cls: type[PluginRun | Schedule], rule: dict[str, int]
) -> None:
    """By nothing but its client."""
    server = serve(clock=SystemClock())
    with PodClient(settings=server.settings) as client:
        state = client.create(PersistentState(pluginId="my_bot:Bot"))
        server.start()
        wait_until(lambda: not server.is_due(NEVER_MS))
        client.create(cls(pluginModule="my_bot", pluginName="Bot", containerImage="bot", pluginState=[state], **rule))
        wait_until(lambda: bool(server.launcher.launched))
    assert [spec.state for spec in server.launcher.begun] == [state.id]


def test_a_schedule_that_is_given_its_plugin_state_later_is_noticed(serve: Serve) -> None:
    """It waits for its first instant from then on."""
    server = serve()
    client = Pod(server.store())
    state = client.create(PersistentState(pluginId="my_bot:Bot"))
    schedule = client.create(Schedule(pluginModule="my_bot", pluginName="Bot", containerImage="bot", interval=3_600))
    server.start()
    wait_until(lambda: not server.is_due(NEVER_MS))
    server.store().apply(Batch((CreateEdge(str(schedule.id), "pluginState", str(state.id)),)))
    wait_until(lambda: server.is_due(3_600_000))
    server.clock.advance(3_600_000)
    wait_until(lambda: bool(server.launcher.launched))
    assert [spec.state for spec in server.launcher.begun] == [state.id]


def test_what_was_written_before_a_server_died_is_begun_by_the_next(serve: Serve) -> None:
    """Nobody calls, and the one that answered had not looked at it yet."""
    before = serve()
    before.store()
    before.start()
    wait_until(lambda: not before.is_due(NEVER_MS))
    before.supervision.close()
    run = before.run()
    before.close()
    server = serve()
    server.start()
    server.launched(run)


def test_a_pod_whose_key_is_nowhere_is_looked_at_when_its_owner_has_called(serve: Serve) -> None:
    """With ``--no-keyring``, after a restart: not before."""
    before = serve(is_attended=True)
    run = before.run()
    before.close()
    server = serve(is_attended=True)
    server.start()
    wait_until(lambda: not server.is_due(0))
    assert server.begun() == []
    server.store()
    server.launched(run)


def test_two_servers_of_a_home_begin_each_run_once(serve: Serve) -> None:
    """Whoever is first."""
    one = serve(max_runs_per_owner=6)
    two = serve(launchers={"docker": Hanging(of=one.launcher)}, clock=one.clock, max_runs_per_owner=6)
    one.start()
    two.start()
    runs = [server.run(who) for _ in range(2) for server in (one, two) for who in (OWNER, STRANGER)]
    for run in runs:
        one.launched(run)
    for server in (one, two):
        server.look(OWNER, STRANGER)
    launched = one.launcher.launched.values()
    assert sorted(spec.run for spec in launched) == sorted(runs)
    for spec in launched:
        lease = one.store(OWNER if spec.owner == OWNER.owner_key else STRANGER).find_lease(spec.state)
        assert lease is not None
        assert (lease.run, lease.epoch, lease.is_held(one.clock.now_ms())) == (spec.run, 1, True)


def test_no_pod_is_opened_while_nothing_is_due(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the agenda is asked; it says when there is something."""

    class Asked(FakeClock):
        times = 0

        def now_ms(self) -> int:
            self.times += 1
            return super().now_ms()

    monkeypatch.setattr(supervising, "_POLL_S", 0.02)
    server = serve(clock=Asked())
    later = server.clock.now_ms() + 3_600_000
    client = Pod(server.store())
    run = PluginRun(pluginModule="my_bot", pluginName="Bot", containerImage="bot", retryAt=_instant(later))
    client.create(run)
    server.start()
    wait_until(lambda: not server.is_due(3_599_999) and server.is_due(3_600_000))
    used, asked = server.pods.used.copy(), server.clock.times
    wait_until(lambda: server.clock.times > asked + 20)
    assert server.pods.used == used
    server.clock.advance(3_600_000)
    server.launched(str(run.id))


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


# -- who launches what, and what a run is told ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "launching, who, image, expected",
    [
        (Launching(), OWNER, "bot", "process"),
        (Launching(), STRANGER, "bot", "of this machine for the owner whose keys lie there"),
        (Launching(is_for_all=True), STRANGER, "bot", "process"),
        (Launching(scripts={"a": Path("a")}), OWNER, "a", "script"),
        (Launching(scripts={"a": Path("a")}), STRANGER, "a", "of this machine for the owner whose keys lie there"),
        (Launching(scripts={"a": Path("a")}), OWNER, "b", "process"),
        (Launching(kind="docker"), STRANGER, "bot", "docker"),
        (Launching(kind="docker", scripts={"a": Path("a")}), OWNER, "a", "script"),
        (Launching(kind="none"), OWNER, "bot", "image 'bot' is not launched here"),
        (Launching(kind="none", scripts={"a": Path("a")}), OWNER, "a", "script"),
    ],
)  # fmt: skip
def test_a_run_goes_to_the_launcher_that_the_operator_has_chosen_for_its_owner_and_image(
    serve: Serve, launching: Launching, who: Identity, image: str, expected: str
) -> None:
    """What nobody launches for this owner is refused, and never launched by another."""
    launchers = {kind: Hanging() for kind in ("process", "script", "docker")}
    supervision = serve(launching=launching, launchers=launchers).supervision
    if expected in launchers:
        assert supervision.launcher_for(who.owner_key, image) is launchers[expected]
    else:
        with pytest.raises(NotFoundError, match=expected):
            supervision.launcher_for(who.owner_key, image)


def test_a_run_that_nothing_here_launches_ends_with_that_reason(serve: Serve) -> None:
    """It does not wait for ever."""
    server = serve(launching=Launching(kind="none"), launchers={"process": Hanging()})
    run = server.run()
    server.start()
    wait_until(lambda: server.row(run).properties["status"] == "error")
    message = "NotFoundError: image 'bot' is not launched here: the server was started without a launcher for it"
    assert server.row(run).properties["error"] == message
    assert server.begun() == []


@pytest.mark.parametrize("kind", ["process", "docker"])
def test_a_run_is_told_where_its_pod_is_what_opens_it_and_what_it_may_use(
    serve: Serve, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A process finds the home as well; the token is in nothing that is logged or shown."""
    caplog.set_level(logging.DEBUG)
    limits = Limits(memory_bytes=2**30)
    address = None if kind == "process" else "https://pod.example"
    launching = Launching(kind=kind, limits=limits, address=address)
    server = serve(launching=launching, launchers={kind: Hanging()}, lease_s=4.5)
    run = server.run()
    server.start()
    spec = server.launched(run)
    home = {"HOLDFAST_HOME": str(server.settings.home)} if kind == "process" else {}
    assert spec.environment == {"HOLDFAST_LEASE_S": "4.5", "PYTHONUNBUFFERED": "1", **home}
    assert spec.address == ("http://127.0.0.1:1" if kind == "process" else "https://pod.example")
    assert spec.snapshots == server.settings.home / "snapshots" / spec.state
    assert (spec.owner, spec.plugin, spec.run, spec.epoch) == (OWNER.owner_key, "my_bot:Bot", run, 1)
    assert (spec.image, spec.limits) == ("bot", limits)
    told = json.loads(spec.auth)
    token = told["data"].pop("token")
    assert told == {"type": "PluginAuth", "data": {}}
    opened = unseal(token, pod_key=server.opener.pod_key, now_ms=server.clock.now_ms())
    assert (opened.owner, opened.state, opened.run, opened.epoch) == (OWNER.owner_key, spec.state, run, 1)
    server.look(OWNER)
    assert token not in repr(spec)
    assert [each.getMessage() for each in caplog.records].count("run.launching") == 1
    assert all(token not in repr(vars(each)) for each in caplog.records)
