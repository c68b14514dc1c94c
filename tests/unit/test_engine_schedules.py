"""Schedules: which instants there are, which are due, and that each of them has one run, whoever looks and dies."""

import threading
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import PersistentState
from holdfast.engine import find_state, get_state, plan_state
from holdfast.engine.schedules import (
    MAX_CLAIMS,
    MAX_DUE,
    instants,
    list_schedules,
    plan,
    put_schedule,
    run_schedules,
    schedule_from,
)
from holdfast.errors import ConflictError, InvalidError, UnavailableError
from holdfast.items import TypeDefinition
from holdfast.pod import Pod
from holdfast.runs import Status
from holdfast.sql import SqliteStore
from holdfast.store import (
    Batch,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    DeleteItem,
    Direction,
    ItemRow,
    MoveRun,
    Operation,
    Query,
    Result,
    Store,
    UpdateItem,
)
from holdfast.testing import FakeClock, MemoryStore
from holdfast.values import MAX_INTEGER, MAX_MS, MIN_INTEGER, MIN_MS

T0 = 1_000_000_000_000
MINUTE = 60_000
YEAR = 365 * 24 * 60 * MINUTE
NEVER = "0 0 */31 * 1#2"
"""The first of a month, if that is its second Monday."""
EVERY_MINUTE = {"interval": 60, "pluginModule": "m", "pluginName": "P"}


def ms(text: str) -> int:
    """Return an ISO date and time in UTC as milliseconds."""
    return round(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)


def shown(instants_ms: Iterator[int]) -> list[str]:
    """Return instants as they are read."""
    return [datetime.fromtimestamp(each / 1000, tz=datetime.fromisoformat("2000-01-01T00:00Z").tzinfo).strftime(
        "%m-%d %H:%M"
    ) for each in instants_ms]  # fmt: skip


def cron(expression: str, timezone: str = "UTC", **more: Any) -> dict[str, Any]:
    """Return a schedule."""
    return {"cron": expression, "timezone": timezone, "dateCreated": 0, **more}


# -- which instants there are -----------------------------------------------------------------------------------------


def test_the_instants_of_an_interval_are_counted_from_when_the_schedule_was_made() -> None:
    """Not from when somebody looks, and the making of it is none; both ends of a time are as said."""
    schedule = {"interval": 10, "dateCreated": 1_234}
    assert list(instants(schedule, 0, 31_234)) == [11_234, 21_234, 31_234]
    assert list(instants(schedule, 11_234, 31_233)) == [21_234]
    assert list(instants(schedule, 31_234, 31_234)) == []


@pytest.mark.parametrize(
    "timezone,expression,after,until,expected",
    [
        ("Europe/Amsterdam", "30 2 * * *", "2025-03-28T12:00", "2025-03-31T12:00",
         ["03-29 01:30", "03-30 01:00", "03-31 00:30"]),
        ("Europe/Amsterdam", "0,15,30 2,3 * * *", "2025-03-29T12:00", "2025-03-30T12:00",
         ["03-30 01:00", "03-30 01:15", "03-30 01:30"]),
        ("Europe/Amsterdam", "30 2 * * *", "2025-10-24T12:00", "2025-10-27T12:00",
         ["10-25 00:30", "10-26 00:30", "10-27 01:30"]),
        ("America/New_York", "30 2 * * *", "2025-03-07T12:00", "2025-03-10T12:00",
         ["03-08 07:30", "03-09 07:00", "03-10 06:30"]),
        ("America/New_York", "30 1 * * *", "2025-10-31T12:00", "2025-11-03T12:00",
         ["11-01 05:30", "11-02 05:30", "11-03 06:30"]),
    ],
    ids=["skipped", "skipped and there", "repeated", "skipped west", "repeated west"],
)  # fmt: skip
def test_a_job_at_a_time_that_is_left_out_or_comes_twice_has_one_instant_that_day(
    timezone: str, expression: str, after: str, until: str, expected: list[str]
) -> None:
    """As Debian's cron has it: as soon as the clocks have been put forward, or the first time."""
    assert shown(instants(cron(expression, timezone), ms(after), ms(until))) == expected


def test_who_looks_within_the_hour_that_comes_twice_is_not_told_of_the_first_one_again() -> None:
    """01:15 UTC is 02:15 for the second time in Amsterdam that day; the job of 02:30 was at 00:30 UTC."""
    schedule = cron("30 2 * * *", "Europe/Amsterdam")
    assert shown(instants(schedule, ms("2025-10-26T01:15"), ms("2025-10-27T12:00"))) == ["10-27 01:30"]


def test_a_job_of_every_hour_goes_by_the_time_that_passes() -> None:
    """Two hours are 02:00 in Amsterdam when the clocks are put back, and an hour lies before each of them."""
    schedule = cron("0 * * * *", "Europe/Amsterdam")
    assert shown(instants(schedule, ms("2025-10-25T23:30"), ms("2025-10-26T02:30"))) == [
        "10-26 00:00", "10-26 01:00", "10-26 02:00",
    ]  # fmt: skip


CRONS = ["30 2 * * *", "0,20 1-3 * * 0", "*/7 * * * *", "0 0 1 * *", "15 */2 * * *", NEVER, "59 23 31 12 *"]
ZONES = ["UTC", "Europe/Amsterdam", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Pacific/Apia"]
MOMENTS = st.one_of(
    st.integers(ms("2024-01-01T00:00"), ms("2027-01-01T00:00")),
    st.integers(ms("2025-10-26T00:00"), ms("2025-10-26T03:00")),
    st.integers(ms("2025-03-30T00:00"), ms("2025-03-30T03:00")),
)


@given(
    st.one_of(
        st.builds(cron, st.sampled_from(CRONS), st.sampled_from(ZONES)),
        st.builds(lambda seconds: {"interval": seconds, "dateCreated": T0}, st.integers(3600, 10**7)),
    ),
    MOMENTS,
    MOMENTS,
)
def test_wherever_one_looks_from_there_are_the_same_instants(schedule: dict[str, Any], first: int, second: int) -> None:
    """A time that is cut in two has the instants of both parts: none is lost at the cut, none is there twice."""
    start, cut = sorted((first, second))
    end = start + 40 * 24 * 60 * MINUTE
    cut = min(cut, end)
    whole = list(instants(schedule, start, end))
    assert whole == [*instants(schedule, start, cut), *instants(schedule, cut, end)]
    assert all(before < after for before, after in pairwise([start, *whole]))


@pytest.mark.parametrize(
    "schedule,words",
    [
        ({}, "a schedule has an 'interval' in seconds or a 'cron' expression: one of the two"),
        ({"interval": 5, "cron": "* * * * *"}, "one of the two"),
        ({"interval": 0}, "the interval of a schedule cannot be 0: it is a whole number of seconds, 1 at least"),
        ({"cron": ""}, "'' is no cron expression: Wrong number of fields; five fields such as"),
        ({"cron": "61 * * * *"}, "'61 [*] [*] [*] [*]' is no cron expression: Bad minute"),
        ({"cron": "9" * 92 + " * * * *"}, "is no cron expression: Bad minute"),
        ({"cron": "9" * 93 + " * * * *"}, "'cron' of a schedule cannot be '999.*: it has 100 characters at most"),
        ({"cron": "* * * * *", "timezone": "M" * 101}, "'timezone' of a schedule cannot be .*: it has 100 characters"),
        ({"interval": 5, "scheduledTo": "soon"}, "'scheduledTo' of a schedule cannot be 'soon': it is a point in time"),
        ({"cron": "0 0 31 2 *"}, "is no cron expression: Bad day-of-month"),
        ({"cron": "* * * * *", "timezone": "Mars"}, "there is no time zone 'Mars': a name such as 'Europe/Amsterdam'"),
        ({"cron": "* * * * *", "timezone": "Europe"}, "there is no time zone 'Europe'"),
        ({"cron": "* * * * *", "timezone": "../../etc/passwd"}, "there is no time zone"),
        ({"cron": "* * * * *", "timezone": ""}, "there is no time zone ''"),
        ({"interval": 5, "overlap": "kill"}, "'overlap' of a schedule cannot be 'kill': it is one of 'skip', 'queue'"),
        (
            {"interval": 5, "catchUp": "some"},
            "'catchUp' of a schedule cannot be 'some': it is one of 'latest', 'all', ",
        ),
    ],
)
def test_a_schedule_that_cannot_be_read_is_refused(schedule: dict[str, Any], words: str) -> None:
    """The message names what is wrong."""
    with pytest.raises(InvalidError, match=words):
        plan({"dateCreated": 0, **schedule}, 1_000)


ENDS = st.sampled_from([MIN_MS, MAX_MS]) | st.integers(MIN_MS, MAX_MS) | st.integers(MAX_MS - 2 * YEAR, MAX_MS)
ODD = st.one_of(
    st.text(max_size=120),
    st.lists(st.text("0123456789*/-,#LWmon", min_size=1, max_size=8), min_size=5, max_size=6).map(" ".join),
    st.integers(MIN_INTEGER, MAX_INTEGER),
    st.floats(allow_nan=False),
    st.booleans(),
)
FIELDS = ("* */5 0", "* 0,23 2", "* */28 29 L LW", "* 2 12 */5", "* 0 5L mon#5")
SCHEDULES = st.one_of(
    st.fixed_dictionaries(
        {
            "cron": st.tuples(*(st.sampled_from(each.split()) for each in FIELDS)).map(" ".join),
            "timezone": st.sampled_from([*ZONES, "Etc/GMT+12", "Etc/GMT-14"]),
            "catchUp": st.sampled_from(["latest", "all", "none"]),
        },
        optional={"scheduledTo": ENDS},
    ),
    st.fixed_dictionaries({"interval": st.integers(1, MAX_INTEGER)}, optional={"scheduledTo": ENDS}),
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("interval", "cron", "timezone", "catchUp", "overlap", "scheduledTo"), ODD)
    ),
)


@settings(max_examples=300)
@given(SCHEDULES, ENDS, ENDS)
def test_whatever_a_schedule_holds_it_can_be_read_or_is_refused(values: dict[str, Any], created: int, now: int) -> None:
    """From the year 1 to the year 9999 and in every time zone, also where local time lies outside of these."""
    schedule = {**values, "dateCreated": created}
    try:
        found = plan(schedule, now)
        there = list(islice(instants(schedule, created, MAX_MS), 3))
    except InvalidError:
        return
    assert list(found.runs) == sorted(set(found.runs))[-MAX_DUE:]
    assert all(each <= now for each in (*found.runs, found.upto_ms or now))
    assert found.next_ms is None or now < found.next_ms <= MAX_MS or found.upto_ms is None
    assert all(created < each <= MAX_MS for each in there)


@pytest.mark.parametrize("timezone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_where_the_calendar_ends_there_are_no_instants(timezone: str) -> None:
    """Neither after what was claimed up to there, nor beyond; at its beginning all was missed."""
    for expression in ("0 0 * * *", "0 0 1 1 *", "0 0 29 2 *"):
        assert plan(cron(expression, timezone, scheduledTo=MAX_MS), T0) == ((), None, False, None)
        assert plan(cron(expression, timezone, scheduledTo=MIN_MS), T0).next_ms is not None
        assert len(plan(cron(expression, timezone, scheduledTo=MIN_MS), T0).runs) == 1
    assert plan(cron("0 0 1 1 *", timezone, scheduledTo=MAX_MS - 100 * 24 * 60 * MINUTE), T0).next_ms is None


def test_time_zones_are_there_where_the_system_has_none() -> None:
    """They come with what Holdfast needs."""
    zoneinfo.ZoneInfo.clear_cache()
    try:
        zoneinfo.reset_tzpath(to=[])
        assert shown(instants(cron("0 12 * * *", "Asia/Tokyo"), 0, 24 * 60 * MINUTE)) == ["01-01 03:00"]
    finally:
        zoneinfo.reset_tzpath()


# -- what is due ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "catch_up,late_ms,runs",
    [
        ("latest", 0, (300_000,)),
        ("latest", 59_999, (300_000,)),
        ("all", 0, (60_000, 120_000, 180_000, 240_000, 300_000)),
        ("none", 0, (300_000,)),
        ("none", 59_999, (300_000,)),
    ],
)
def test_of_what_was_missed_as_much_is_made_up_for_as_the_schedule_says(
    catch_up: str, late_ms: int, runs: tuple[int, ...]
) -> None:
    """All of it counts as claimed."""
    found = plan({"interval": 60, "dateCreated": 0, "catchUp": catch_up}, 300_000 + late_ms)
    assert found == (runs, 300_000, False, 360_000)


def test_without_catching_up_what_is_more_than_a_minute_late_has_no_run() -> None:
    """To the millisecond; it counts as claimed all the same, so that it has none later either."""
    schedule = {"interval": 3_600, "dateCreated": 0, "catchUp": "none"}
    assert plan(schedule, 3_660_000) == ((3_600_000,), 3_600_000, False, 7_200_000)
    assert plan(schedule, 3_660_001) == ((), 3_600_000, False, 7_200_000)


@pytest.mark.parametrize("rule", [{"interval": 1}, {"cron": "* * * * * *"}], ids=["interval", "cron"])
@pytest.mark.parametrize("catch_up", ["latest", "all", "none"])
def test_a_year_without_anybody_is_no_work(rule: dict[str, Any], catch_up: str) -> None:
    """Of thirty million instants a hundred are made up for, and it is said; no second is looked at but those."""
    found = plan({**rule, "dateCreated": T0, "catchUp": catch_up}, T0 + YEAR)
    expected = {"latest": 1, "all": 100, "none": 1}[catch_up]
    assert found.runs == tuple(range(T0 + YEAR - (expected - 1) * 1_000, T0 + YEAR + 1, 1_000))
    assert found[1:] == (T0 + YEAR, catch_up == "all", T0 + YEAR + 1_000)


def test_many_instants_in_one_hour_of_a_year_are_no_work() -> None:
    """The last of its 3,600 seconds."""
    found = plan({**cron("* * 3 1 1 *"), "scheduledTo": T0, "catchUp": "all"}, ms("2026-06-01T00:00"))
    end = ms("2026-01-01T04:00")
    assert found.runs == tuple(range(end - 100_000, end, 1_000))
    assert (found.is_cut, found.next_ms) == (True, ms("2027-01-01T03:00"))


def test_what_was_missed_more_than_ten_years_ago_is_not_made_up_for() -> None:
    """Nor does anybody go through two thousand years for it."""
    schedule = cron("0 0 1 1 *", scheduledTo=MIN_MS, catchUp="all")
    begun = plan(schedule, ms("2026-06-01T00:00")).runs
    assert begun == tuple(ms(f"{year}-01-01T00:00") for year in range(2017, 2027))


@given(st.integers(1, 50), st.integers(0, 10_000), st.integers(0, 10_000), st.sampled_from(["latest", "all"]))
def test_what_is_due_is_the_end_of_what_there_is(seconds: int, claimed: int, later: int, catch_up: str) -> None:
    """Found by bisection, it is what going through all of it finds."""
    now_ms = claimed + later * 7
    schedule = {"interval": seconds, "dateCreated": 0, "scheduledTo": claimed, "catchUp": catch_up}
    there = [each for each in range(0, now_ms + 1, seconds * 1000) if each > claimed]
    assert plan(schedule, now_ms).runs == tuple(there[-100:] if catch_up == "all" else there[-1:])


def test_what_was_claimed_is_never_due_again() -> None:
    """Whatever the rule becomes, and wherever the clock goes."""
    assert plan(cron("* * * * *", scheduledTo=600_000), 600_000) == ((), None, False, 660_000)
    assert plan({"interval": 7, "dateCreated": 0, "scheduledTo": 600_000}, 300_000) == ((), None, False, 602_000)
    assert plan(cron(NEVER, scheduledTo=600_000), YEAR) == ((), None, False, None)


# -- runs that begin --------------------------------------------------------------------------------------------------


class Seat:
    """A store as one process has it: before each call others may come in, or the process dies."""

    def __init__(self, store: Store, before: Callable[[str], object] = lambda _: None) -> None:
        self.store = store
        self.before = before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)

        def call(*args: Any, **named: Any) -> Any:
            self.before(name)
            return found(*args, **named)

        return call


@pytest.fixture
def clock() -> FakeClock:
    """The clock of the Pod."""
    return FakeClock(T0)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    """A Pod with a plugin state "s1" and an account."""
    store = SqliteStore(tmp_path / "pod.db", bytes(32), clock=clock) if request.param == "sqlite" else MemoryStore(clock=clock)  # fmt: skip  # noqa: E501
    do(store, CreateItem("s1", "PersistentState"), CreateItem("a1", "Account"))
    yield store
    store.close()


def do(store: Store, *operations: Operation) -> tuple[Result, ...]:
    """Apply a batch."""
    return store.apply(Batch(operations))


def make(store: Store, id_: str = "x", state: str = "s1", **values: Any) -> None:
    """Create a schedule, every minute if nothing else is said."""
    rule = EVERY_MINUTE if "cron" not in values else {}
    do(store, CreateItem(id_, "Schedule", {**rule, **values}), CreateEdge(id_, "pluginState", state))


def runs(store: Store) -> list[ItemRow]:
    """Return all runs, deleted ones as well."""
    return [each.item for each in store.search(Query(type="PluginRun", is_deleted=None))]


def claimed(store: Store, id_: str = "x") -> Any:
    """Return the last instant that was claimed, as milliseconds after `T0`."""
    found = store.find_items([id_])[id_].properties.get("scheduledTo")
    return None if found is None else int(found) - T0


def end_runs(store: Store) -> None:
    """Let every run come to its end."""
    for each in store.search(Query(type="PluginRun")):
        if each.item.properties["status"] == "idle":
            do(store, MoveRun(each.item.id, Status.STARTED), MoveRun(each.item.id, Status.DONE))


def look(store: Store, clock: FakeClock, ms: int = 0) -> int | None:
    """Let time pass, look, and return how long until the next look."""
    clock.advance(ms)
    found = run_schedules(store, clock.now_ms())
    return None if found is None else found - clock.now_ms()


def test_a_run_begins_when_it_is_due_and_has_what_the_schedule_says(store: Store, clock: FakeClock) -> None:
    """It is idle, on the plugin state, with the accounts; nothing begins before, and nothing twice."""
    template = {"containerImage": "i", "config": "{}", "reads": '["Person"]', "writes": "[]"}
    make(store, **template)
    do(store, CreateEdge("x", "account", "a1"))

    assert look(store, clock) == MINUTE
    assert look(store, clock, MINUTE - 1) == 1
    assert runs(store) == []
    assert look(store, clock, 1) == MINUTE
    [run] = runs(store)
    assert look(store, clock, 1) == MINUTE - 1
    assert [run] == runs(store)

    assert run.properties == {**template, "pluginModule": "m", "pluginName": "P", "status": "idle"}
    edges = [(edge.name, edge.item.id) for edge in store.list_edges([run.id], Direction.OUTGOING)[run.id]]
    assert edges == [("pluginState", "s1"), ("account", "a1")]
    assert claimed(store) == MINUTE


def test_without_schedules_there_is_nothing_to_look_for(store: Store, clock: FakeClock) -> None:
    """Nor with one that never comes."""
    assert look(store, clock) is None
    make(store, cron=NEVER)
    assert look(store, clock, YEAR) is None
    assert runs(store) == []


def test_the_next_look_is_that_of_the_schedule_that_comes_first(store: Store, clock: FakeClock) -> None:
    """And each has its own runs."""
    do(store, CreateItem("s2", "PersistentState"))
    make(store, "x", interval=60)
    make(store, "y", "s2", interval=45)
    assert look(store, clock) == 45_000
    assert look(store, clock, 45_000) == 15_000
    assert look(store, clock, 15_000) == 30_000
    assert [find_state(store, run.id).id for run in runs(store)] == ["s2", "s1"]  # type: ignore[union-attr]


def test_while_a_run_has_not_ended_the_instant_passes_without_one(store: Store, clock: FakeClock) -> None:
    """Whoever began that run, and whatever it waits for; when it has ended the next instant has one, not that one."""
    make(store)
    do(store, CreateItem("by-hand", "PluginRun"))
    do(store, CreateEdge("by-hand", "pluginState", "s1"), MoveRun("by-hand", Status.INITIALIZED))
    do(store, MoveRun("by-hand", Status.USER_ACTION_NEEDED))

    look(store, clock, MINUTE)
    assert [run.id for run in runs(store)] == ["by-hand"]
    assert claimed(store) == MINUTE
    do(store, MoveRun("by-hand", Status.ABORTED))
    look(store, clock, 1)
    assert [run.id for run in runs(store)] == ["by-hand"]
    look(store, clock, MINUTE)
    assert len(runs(store)) == 2


def test_of_two_schedules_on_one_plugin_state_one_begins_a_run(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if both are due in the same moment; what is skipped is logged."""
    caplog.set_level("INFO")
    make(store, "x")
    make(store, "y")
    look(store, clock, MINUTE)
    assert len(runs(store)) == 1
    [said] = [each for each in caplog.records if each.message == "instants.skipped"]
    assert (vars(said)["schedule"], vars(said)["unfinished"]) == ("y", 1)


def test_a_run_on_another_plugin_state_is_in_no_ones_way(store: Store, clock: FakeClock) -> None:
    """Not even one of the same plugin."""
    do(store, CreateItem("s2", "PersistentState"))
    make(store, "x")
    make(store, "y", "s2")
    look(store, clock, MINUTE)
    assert len(runs(store)) == 2


def test_runs_queue_if_the_schedule_says_so_but_not_without_end(store: Store, clock: FakeClock) -> None:
    """A hundred wait at most: where nobody starts them the Pod is not filled with them."""
    make(store, overlap="queue")
    for _ in range(102):
        look(store, clock, MINUTE)
    assert len(runs(store)) == 100
    end_runs(store)
    assert claimed(store) == 102 * MINUTE
    look(store, clock, MINUTE)
    assert len(runs(store)) == 101


@pytest.mark.parametrize("overlap,expected", [("skip", 1), ("queue", 100)])
def test_all_that_was_missed_is_made_up_for_and_it_is_said_what_is_left_out(
    overlap: str, expected: int, store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With "skip" one run stands in the way of all others."""
    make(store, catchUp="all", overlap=overlap)
    assert look(store, clock, 150 * MINUTE) == MINUTE
    assert len(runs(store)) == expected
    assert claimed(store) == 150 * MINUTE
    [said] = [each for each in caplog.records if each.message == "instants.left_out"]
    assert vars(said)["schedule"] == "x"


def test_a_clock_that_goes_back_begins_nothing_again(store: Store, clock: FakeClock) -> None:
    """The next run begins when the time after the last one has come again."""
    make(store)
    look(store, clock, 10 * MINUTE)
    end_runs(store)
    assert look(store, clock, -5 * MINUTE) == 6 * MINUTE
    assert look(store, clock, 5 * MINUTE) == MINUTE
    assert len(runs(store)) == 1


def test_a_clock_that_jumps_ahead_begins_one_run(store: Store, clock: FakeClock) -> None:
    """And when it is right again, none until then; a schedule that is ended and begun anew goes on at once."""
    make(store)
    assert look(store, clock, YEAR) == MINUTE
    end_runs(store)
    assert look(store, clock, -YEAR) == YEAR + MINUTE
    do(store, DeleteItem("x"))
    make(store, "y")
    assert look(store, clock, MINUTE) == MINUTE
    assert len(runs(store)) == 2


def test_an_edit_of_the_interval_keeps_the_anchor_and_what_was_claimed(store: Store, clock: FakeClock) -> None:
    """A minute becomes two: the instants are the even ones since the schedule was made."""
    make(store)
    look(store, clock, 3 * MINUTE)
    end_runs(store)
    clock.advance(10_000)
    do(store, UpdateItem("x", {"interval": 120}))
    assert look(store, clock) == 50_000
    assert look(store, clock, 50_000) == 2 * MINUTE
    assert claimed(store) == 4 * MINUTE


def test_an_instant_has_no_second_run_even_if_what_was_claimed_is_put_back(store: Store, clock: FakeClock) -> None:
    """By whoever may write the schedule; the first run may have been deleted since."""
    make(store, overlap="queue")
    look(store, clock, MINUTE)
    do(store, DeleteItem(runs(store)[0].id), UpdateItem("x", {"scheduledTo": None}))
    assert look(store, clock) == MINUTE
    assert claimed(store) == MINUTE
    assert len(runs(store)) == 1


@pytest.mark.parametrize(
    "end",
    [[DeleteItem("x")], [DeleteItem("s1")], [UpdateItem("x", {"isPaused": True})]],
    ids=["schedule deleted", "plugin state deleted", "paused"],
)
def test_a_schedule_that_was_ended_does_nothing(store: Store, clock: FakeClock, end: list[Operation]) -> None:
    """Nor is it looked for again."""
    make(store)
    do(store, *end)
    assert look(store, clock, MINUTE) is None
    assert runs(store) == []


def test_one_that_was_paused_makes_up_for_that_time_as_for_any_other(store: Store, clock: FakeClock) -> None:
    """A pause is a time without anybody."""
    make(store, isPaused=True)
    look(store, clock, 5 * MINUTE)
    do(store, UpdateItem("x", {"isPaused": False}))
    look(store, clock, 1)
    assert len(runs(store)) == 1


def test_a_schedule_that_cannot_be_read_is_logged_and_in_no_others_way(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Once with each look."""
    make(store, "bad", cron="every day")
    make(store)
    assert look(store, clock, MINUTE) == MINUTE
    assert len(runs(store)) == 1
    [said] = [each for each in caplog.records if each.message == "schedule.refused"]
    assert vars(said)["schedule"] == "bad"
    assert "'every day' is no cron expression" in vars(said)["reason"]


def test_of_many_that_cannot_be_read_the_log_has_one_line(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With each look: how many, and the first; likewise of what was skipped."""
    caplog.set_level("INFO")
    for each in range(3):
        make(store, f"bad{each}", cron="every day")
        make(store, f"x{each}")
    look(store, clock, MINUTE)
    said = {each.message: (vars(each)["schedule"], vars(each)["count"]) for each in caplog.records}
    assert said == {"schedule.refused": ("bad0", 3), "instants.skipped": ("x1", 2)}
    assert len(caplog.records) == 2


def test_a_schedule_whose_run_cannot_be_created_is_logged_and_in_no_others_way(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A Pod may declare that its edges lead elsewhere; the instant is claimed, so that it comes last with the next."""
    do(
        store,
        DeclareTypes(
            (TypeDefinition("Schedule", edges={"pluginState": ("Account",), "account": ("PersistentState",)}),)
        ),
        CreateItem("s2", "PersistentState"),
    )
    make(store, "odd", "a1")
    make(store, "too", "s2")
    do(store, CreateEdge("too", "account", "s2"))
    make(store, "x", "s2")
    assert look(store, clock, MINUTE) == MINUTE
    assert [find_state(store, run.id).id for run in runs(store)] == ["s2"]  # type: ignore[union-attr]
    assert [claimed(store, each) for each in ("odd", "too", "x")] == [MINUTE, MINUTE, MINUTE]
    [said] = [each for each in caplog.records if each.message == "schedule.refused"]
    assert (vars(said)["schedule"], vars(said)["count"]) == ("odd", 2)
    assert "cannot lead to a Account" in vars(said)["reason"]


def test_a_schedule_has_its_runs_from_when_it_has_a_plugin_state(store: Store, clock: FakeClock) -> None:
    """Also if that comes with a second call."""
    do(store, CreateItem("x", "Schedule", EVERY_MINUTE))
    assert look(store, clock, 30_000) is None
    do(store, CreateEdge("x", "pluginState", "s1"))
    assert look(store, clock) == 30_000
    look(store, clock, 30_000)
    assert len(runs(store)) == 1


# -- many of them -----------------------------------------------------------------------------------------------------


def test_a_look_claims_so_much_and_no_more_and_the_next_one_goes_on(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """At once; and each tells of its own."""
    caplog.set_level("INFO")
    for each in range(MAX_CLAIMS + 1):
        make(store, f"x{each}")
    assert look(store, clock, MINUTE) == 0
    assert [claimed(store, f"x{each}") for each in (0, 99, 100)] == [MINUTE, MINUTE, None]
    assert look(store, clock) == MINUTE
    assert [claimed(store, f"x{each}") for each in (0, 99, 100)] == [MINUTE, MINUTE, MINUTE]
    assert [(each.message, vars(each)["count"]) for each in caplog.records] == [
        ("instants.skipped", 99),
        ("instants.skipped", 1),
    ]


def test_what_one_look_leaves_of_many_missed_instants_the_next_one_makes_up_for(store: Store, clock: FakeClock) -> None:
    """None is lost at the cut, and none has two runs."""
    do(store, CreateItem("s2", "PersistentState"))
    for each, state in (("x", "s1"), ("y", "s2")):
        make(store, each, state, catchUp="all", overlap="queue")
    assert look(store, clock, 70 * MINUTE) == 0
    assert [claimed(store, each) for each in ("x", "y")] == [70 * MINUTE, 30 * MINUTE]
    assert look(store, clock) == MINUTE
    assert [claimed(store, each) for each in ("x", "y")] == [70 * MINUTE, 70 * MINUTE]
    assert len(runs(store)) == 140


def test_those_that_are_always_due_keep_no_other_waiting(store: Store, clock: FakeClock) -> None:
    """What was claimed last comes last."""
    for each in range(MAX_CLAIMS):
        make(store, f"often{each}", interval=1)
    make(store)
    look(store, clock, MINUTE)
    assert claimed(store) is None
    look(store, clock, 1_000)
    assert claimed(store) == MINUTE


def test_a_look_at_which_nothing_is_due_asks_the_pod_for_one_thing(store: Store, clock: FakeClock) -> None:
    """However many schedules there are."""
    asked: list[str] = []
    for each in range(5):
        make(store, f"x{each}")
    assert look(Seat(store, asked.append), clock, 1) == MINUTE - 1  # type: ignore[arg-type]
    assert asked == ["search"]


# -- somebody else comes in between ------------------------------------------------------------------------------------


def before_write(store: Store, happens: Callable[[], object]) -> Any:
    """Return a store in which this happens, once, just before something is written."""
    left = [happens]

    def before(method: str) -> None:
        if method == "apply" and left:
            left.pop()()

    return Seat(store, before)


def test_of_two_that_look_at_once_one_begins_the_run(store: Store, clock: FakeClock) -> None:
    """The other is refused, and looks again."""
    make(store)
    clock.advance(MINUTE)
    late = before_write(store, lambda: run_schedules(store, clock.now_ms()))
    assert look(late, clock) == 0
    assert len(runs(store)) == 1
    assert look(late, clock) == MINUTE
    assert len(runs(store)) == 1


@pytest.mark.parametrize(
    "edit,expected",
    [
        ([UpdateItem("x", {"config": "{}"})], [{"config": "{}"}]),
        ([UpdateItem("x", {"interval": 3600})], []),
        ([UpdateItem("x", {"isPaused": True})], []),
        ([DeleteItem("x")], []),
        ([DeleteItem("s1")], []),
        ([DeleteItem("a1")], [{}]),
    ],
    ids=["template", "rule", "pause", "schedule deleted", "plugin state deleted", "account deleted"],
)
def test_an_edit_between_read_and_write_counts(
    store: Store, clock: FakeClock, edit: list[Operation], expected: list[dict[str, Any]]
) -> None:
    """Nothing is begun by what was read before."""
    make(store)
    do(store, CreateEdge("x", "account", "a1"))
    clock.advance(MINUTE)
    assert look(before_write(store, lambda: do(store, *edit)), clock) == 0
    assert runs(store) == []
    look(store, clock)
    begun = [run.properties for run in runs(store)]
    assert begun == [{**each, "pluginModule": "m", "pluginName": "P", "status": "idle"} for each in expected]


def test_who_comes_back_after_a_restart_goes_on(tmp_path: Path, clock: FakeClock) -> None:
    """All that is known of a schedule is in the Pod."""
    for looked in range(3):
        store = SqliteStore(tmp_path / "pod.db", bytes(32), clock=clock)
        if not looked:
            do(store, CreateItem("s1", "PersistentState"))
            make(store, overlap="queue", catchUp="all")
        look(store, clock, 2 * MINUTE)
        assert (len(runs(store)), claimed(store)) == (2 * looked + 2, (2 * looked + 2) * MINUTE)
        store.close()


class Died(Exception):
    """The process of a supervisor has died."""


class Process:
    """A supervisor that takes a step, one call of the store, when it is told to; it looks over and over."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self._store, self._clock = store, clock
        self._may_go, self._has_gone = threading.Semaphore(0), threading.Semaphore(0)
        self._order = ""
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def step(self, order: str = "go") -> None:
        """Do one call; or die before it is done, or after, and start again."""
        self._order = order
        self._may_go.release()
        assert self._has_gone.acquire(timeout=20)

    def join(self) -> None:
        """End it where it is."""
        self.step("end")
        self._thread.join(20)
        assert not self._thread.is_alive()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any) -> Any:
            self._may_go.acquire()
            order = self._order
            try:
                if order in ("die before", "end"):
                    raise Died
                found = method(*args)
                if order == "die after":
                    raise Died
                return found
            finally:
                self._has_gone.release()

        return call

    def _live(self) -> None:
        while True:
            try:
                run_schedules(self, self._clock.now_ms())  # type: ignore[arg-type]
            except Died:
                if self._order == "end":
                    return


STEPS = st.one_of(
    st.tuples(st.integers(0, 1), st.sampled_from(["go", "go", "go", "go", "die before", "die after"])),
    st.tuples(st.just(-1), st.integers(1, 150).map(lambda seconds: seconds * 1_000)),
)


@settings(max_examples=60)
@given(st.lists(STEPS, min_size=10, max_size=60), st.sampled_from(["all", "latest"]))
def test_each_instant_has_one_run_however_two_supervisors_come_between_each_other_and_die(
    steps: list[tuple[int, Any]], catch_up: str
) -> None:
    """With "all" every instant has its run, in order; with "latest" none has two, and the last one has one."""
    clock = FakeClock(T0)
    store = MemoryStore(clock=clock)
    do(store, CreateItem("s1", "PersistentState"))
    make(store, overlap="queue", catchUp=catch_up)
    processes = [Process(store, clock) for _ in range(2)]
    for who, what in steps:
        if who < 0:
            clock.advance(what)
        else:
            processes[who].step(what)
    for each in processes:
        each.join()
    look(store, clock)

    passed = (clock.now_ms() - T0) // MINUTE
    begun = runs(store)
    if catch_up == "all":
        assert len(begun) == min(passed, MAX_DUE)
    else:
        assert (len(begun) > 0, len(begun) <= passed) == (passed > 0, True)
    assert claimed(store) == (passed * MINUTE if passed else None)


def test_a_pod_that_cannot_be_reached_is_no_matter_of_schedules(store: Store, clock: FakeClock) -> None:
    """Whoever looks hears of it, and nothing was begun."""

    def fail() -> None:
        raise UnavailableError("the Pod is away")

    make(store)
    with pytest.raises(UnavailableError):
        look(before_write(store, fail), clock, MINUTE)
    assert (runs(store), claimed(store)) == ([], None)


# -- schedules that are set -------------------------------------------------------------------------------------------


def test_a_run_with_an_interval_brings_a_schedule_once(store: Store, clock: FakeClock) -> None:
    """Counted from that run, which is its first instant; not again with its next launch, nor after it was deleted."""
    own = {"interval": 60, "pluginModule": "m", "pluginName": "P", "containerImage": "i", "config": "{}", "reads": "[]"}
    do(store, CreateItem("r1", "PluginRun", {**own, "timezone": "UTC", "progress": 0.5}))
    do(store, CreateEdge("r1", "pluginState", "s1"), CreateEdge("r1", "account", "a1"))
    clock.advance(10_000)
    run = store.find_items(["r1"])["r1"]

    do(store, *schedule_from(store, run))
    assert schedule_from(store, run) == ()
    [schedule] = list_schedules(Pod(store))
    assert [schedule.pluginState[0].id, schedule.account[0].id] == ["s1", "a1"]
    values = store.find_items([str(schedule.id)])[str(schedule.id)].properties
    assert values == {**own, "timezone": "UTC"}

    do(store, MoveRun("r1", Status.STARTED), MoveRun("r1", Status.DONE))
    assert look(store, clock) == 50_000
    look(store, clock, 50_000)
    [_, begun] = runs(store)
    assert schedule_from(store, begun) == ()
    Pod(store).delete_items([schedule])
    assert schedule_from(store, run) == ()


def test_a_run_with_a_cron_expression_brings_a_schedule(store: Store, clock: FakeClock) -> None:
    """An interval of 0, or an empty text, is none."""
    own = {"cron": "0 * * * *", "interval": 0, "timezone": ""}
    do(store, CreateItem("r1", "PluginRun", own), CreateEdge("r1", "pluginState", "s1"))
    do(store, CreateItem("r2", "PluginRun", {"cron": "", "interval": 0}))
    assert schedule_from(store, store.find_items(["r2"])["r2"]) == ()
    do(store, *schedule_from(store, store.find_items(["r1"])["r1"]))
    assert [(each.cron, each.interval, each.timezone) for each in list_schedules(Pod(store))] == [
        ("0 * * * *", None, None)
    ]


def test_of_two_that_launch_a_run_at_once_one_brings_its_schedule(store: Store) -> None:
    """The other one's batch is refused."""
    do(store, CreateItem("r1", "PluginRun", {"interval": 60}), CreateEdge("r1", "pluginState", "s1"))
    run = store.find_items(["r1"])["r1"]
    first, second = schedule_from(store, run), schedule_from(store, run)
    do(store, *first)
    with pytest.raises(ConflictError):
        do(store, *second)


def state_of(store: Store, name: str = "default") -> PersistentState:
    """Return the plugin state of a plugin, new if there is none."""
    return plan_state(Pod(store), "m:P", name)


def test_a_plugin_state_has_one_schedule_and_what_is_said_last_counts(store: Store, clock: FakeClock) -> None:
    """Its template is replaced whole; with the same rule nothing that is due is lost."""
    first = put_schedule(store, state_of(store), {**EVERY_MINUTE, "config": "{}"}, {"service": "s"})
    clock.advance(MINUTE)
    second = put_schedule(store, state_of(store), {**EVERY_MINUTE, "reads": "[]"}, {"service": "t"})
    other = put_schedule(store, state_of(store, "other"), EVERY_MINUTE)

    assert (second.id, second.config, second.reads) == (first.id, None, "[]")
    assert [each.service for each in second.account] == ["s"]
    assert look(store, clock, 1) == MINUTE - 1
    assert len(runs(store)) == 1
    assert [each.id for each in list_schedules(Pod(store))] == [first.id, other.id]


@pytest.mark.parametrize("rule", [{"interval": 30}, {"interval": None, "cron": "* * * * *"}], ids=["interval", "cron"])
def test_with_another_rule_a_schedule_begins_anew_from_now_on(
    store: Store, clock: FakeClock, rule: dict[str, Any]
) -> None:
    """What the new rule would have had before was not missed."""
    put_schedule(store, state_of(store), {**EVERY_MINUTE, "interval": 3600})
    clock.advance(10 * MINUTE)
    put_schedule(store, state_of(store), {**EVERY_MINUTE, **rule})
    look(store, clock)
    assert runs(store) == []
    look(store, clock, MINUTE)
    assert len(runs(store)) == 1


def test_with_another_rule_what_was_claimed_stays_claimed(store: Store, clock: FakeClock) -> None:
    """Also where the clock has gone back since."""
    schedule = put_schedule(store, state_of(store), EVERY_MINUTE)
    look(store, clock, 10 * MINUTE)
    clock.advance(-5 * MINUTE)
    put_schedule(store, state_of(store), {**EVERY_MINUTE, "interval": 30})
    assert claimed(store, str(schedule.id)) == 10 * MINUTE


def test_a_schedule_that_is_paused_goes_on_when_it_is_set(store: Store, clock: FakeClock) -> None:
    """From now on."""
    schedule = put_schedule(store, state_of(store), EVERY_MINUTE)
    do(store, UpdateItem(str(schedule.id), {"isPaused": True}))
    clock.advance(10 * MINUTE)
    put_schedule(store, state_of(store), EVERY_MINUTE)
    assert look(store, clock) == MINUTE
    assert runs(store) == []


def test_one_that_was_ended_and_is_set_again_is_a_new_one(store: Store, clock: FakeClock) -> None:
    """Its instants are counted anew, and the id tells who comes at the same moment."""
    first = put_schedule(store, state_of(store), EVERY_MINUTE)
    Pod(store).delete_items([first])
    clock.advance(5_000)
    late = before_write(store, lambda: put_schedule(store, state_of(store), EVERY_MINUTE))
    with pytest.raises(ConflictError, match="exists already"):
        put_schedule(late, state_of(store), EVERY_MINUTE)
    [second] = list_schedules(Pod(store))
    assert second.id != first.id
    assert look(store, clock) == MINUTE


@pytest.mark.parametrize(
    "rule,words",
    [
        ({"interval": 0}, "the interval of a schedule cannot be 0"),
        ({"cron": NEVER}, "a schedule at .* never comes: say another"),
        ({"interval": 2**62}, f"{2**62} never comes"),
        ({"interval": 5, "timezone": "Mars", "cron": None, "overlap": "never"}, "'overlap' of a schedule cannot be"),
    ],
)
def test_what_cannot_be_read_or_never_comes_is_not_set(store: Store, rule: dict[str, Any], words: str) -> None:
    """Nothing is written, not even the plugin state and the account."""
    with pytest.raises(InvalidError, match=words):
        put_schedule(store, state_of(store), rule, {"service": "s"})
    assert list_schedules(Pod(store)) == []
    assert [len(store.search(Query(type=each))) for each in ("Account", "PersistentState")] == [1, 1]


def test_which_of_several_schedules_is_meant_is_not_guessed(store: Store) -> None:
    """Others may have made more than one by hand."""
    for id_ in ("x", "y"):
        make(store, id_, str(get_state(Pod(store), "m:P").id))
    with pytest.raises(ConflictError, match="plugin state 'default' has 2 schedules: end them, and begin one"):
        put_schedule(store, state_of(store), EVERY_MINUTE)
