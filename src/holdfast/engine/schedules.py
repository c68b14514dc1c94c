"""Schedules: at which instants runs begin by themselves, and beginning each of these runs once.

Hides how an instant is claimed, and what cron and daylight saving make of a day; it starts no process, and waits for
nothing: it says when to be asked again.

The failure argument. *It dies on any line*: an instant is claimed and its run created in one batch, so both are there
or the next look does both. *Two look at once*, on two machines even: the batch stands on the version of the schedule
that was read, and the id of the run follows from schedule and instant, so the second one is refused, and looks again.
*An edit comes between read and write*: likewise; the next look goes by what was edited. *The clock goes back*: what was
claimed stays claimed, and nothing happens until that time has come again. *It jumps ahead, or all was down for a year*:
`MAX_DUE` runs begin at most, and what is due is found without going through that year. *Daylight saving*: see
`instants`. *Somebody writes nonsense, or thousands of schedules*: what cannot be read, or cannot begin its run, is said
and passed by; a look claims `MAX_CLAIMS` instants at most, and the next one begins with what has waited longest.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from itertools import count, islice
from typing import Any, Final, NamedTuple, cast
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from holdfast.engine.finding import is_new, list_unfinished
from holdfast.errors import ConflictError, InvalidError, NotFoundError
from holdfast.items import Account, PersistentState, Schedule, properties_of
from holdfast.pod import Pod
from holdfast.store import Batch, CreateEdge, CreateItem, Direction, Found, ItemRow, Operation, Query, Store, UpdateItem
from holdfast.values import MAX_MS, Value, from_ms, shown, to_ms

_log: Final = logging.getLogger(__name__)

MAX_DUE: Final = 100
"""How many missed instants are caught up at most, and how many unfinished runs may queue on one plugin state."""
MAX_CLAIMS: Final = 100
"""How many instants one look claims at most; at a thousand schedules it would else keep a Pod busy for seconds."""
MAX_TEXT: Final = 100
"""How many characters a cron expression and a time zone may have: a megabyte of them takes seconds to read."""
CATCH_UP_MS: Final = 10 * 366 * 86_400_000
"""What was missed longer ago is not made up for: going through all of history takes seconds."""
LATE_MS: Final = 60_000
"""After so long an instant was missed; before, whoever looks was only busy."""

OVERLAPS: Final = ("skip", "queue")
CATCH_UPS: Final = ("latest", "all", "none")

_TEMPLATE: Final = ("pluginModule", "pluginName", "containerImage", "config", "reads", "writes")
"""What a run has from its schedule."""
_RULE: Final = ("interval", "cron", "timezone")
_EDGES: Final = ("pluginState", "account")


def instants(schedule: Mapping[str, Value], after_ms: int, until_ms: int) -> Iterator[int]:
    """Yield the instants of a schedule later than one moment and not later than another: ms since 1970, ascending.

    Those of an interval are whole intervals after ``dateCreated``, which itself is none. Those of ``cron`` are, in its
    time zone, what Debian's cron makes of them: a job at a time that daylight saving leaves out runs once, when the
    clocks have been put forward, and one at a time that comes twice runs the first time only; one with ``*`` as its
    minute or hour goes by the time that passes instead.

    Args:
        schedule: Its properties as they travel, ``dateCreated`` among them.
        after_ms: Milliseconds since 1970.
        until_ms: As well.

    Raises:
        InvalidError: It has no interval and no cron, or both; or one that cannot be read, or an unknown time zone; or
            one of more than `MAX_TEXT` characters.

    >>> list(instants({"interval": 60, "dateCreated": 5_000}, 65_000, 200_000))
    [125000, 185000]
    """
    interval, cron = schedule.get("interval"), schedule.get("cron")
    if (interval is None) == (cron is None):
        raise InvalidError("a schedule has an 'interval' in seconds or a 'cron' expression: one of the two")
    if cron is not None:
        return _cron_instants(_text(schedule, "cron"), _zone(schedule), after_ms, until_ms)
    if not isinstance(interval, int) or interval < 1:
        message = f"the interval of a schedule cannot be {shown(interval)}: it is a whole number of seconds, 1 at least"
        raise InvalidError(message, interval=shown(interval))
    anchor, step = cast("int", schedule["dateCreated"]), interval * 1000
    return iter(range(anchor + max(1, (after_ms - anchor) // step + 1) * step, until_ms + 1, step))


def _text(schedule: Mapping[str, Value], name: str, default: str = "") -> str:
    found = str(schedule.get(name, default))
    if len(found) > MAX_TEXT:
        message = f"{name!r} of a schedule cannot be {shown(found)}: it has {MAX_TEXT} characters at most"
        raise InvalidError(message, property=name)
    return found


def _zone(schedule: Mapping[str, Value]) -> ZoneInfo:
    name = _text(schedule, "timezone", "UTC")
    try:
        return ZoneInfo(name)
    except (LookupError, OSError, ValueError) as exc:  # no zone, a folder of zones, no name of one
        message = f"there is no time zone {shown(name)}: a name such as 'Europe/Amsterdam' is expected"
        raise InvalidError(message, timezone=shown(name)) from exc


def _cron_instants(cron: str, zone: ZoneInfo, after_ms: int, until_ms: int) -> Iterator[int]:
    try:
        found = CronSim(cron, from_ms(after_ms).astimezone(zone))
    except OverflowError:  # in that zone it is a year before the first, or after the last
        return iter(())
    except CronSimError as exc:
        message = f"{shown(cron)} is no cron expression: {exc}; five fields such as '30 4 * * mon-fri' are expected"
        raise InvalidError(message, cron=shown(cron)) from exc

    def each() -> Iterator[int]:
        last = after_ms
        while True:
            try:
                at_ms = to_ms(next(found), "an instant")
            except (StopIteration, OverflowError):  # it never comes, or not before the year 10000
                return
            if at_ms > until_ms:
                return
            if at_ms > last:  # who begins within an hour that comes twice is offered the first one again
                last = at_ms
                yield at_ms

    return each()


class Plan(NamedTuple):
    """What is to be done about a schedule.

    Attributes:
        runs: The instants that are to have a run, oldest first; at most `MAX_DUE`.
        upto_ms: Everything up to this instant is claimed, with a run or without; None: nothing is due.
        is_cut: There were more instants to catch up than `MAX_DUE`; the older ones have no run.
        next_ms: The first instant that is not due yet; None: there is none.
    """

    runs: tuple[int, ...]
    upto_ms: int | None
    is_cut: bool
    next_ms: int | None


def plan(schedule: Mapping[str, Value], now_ms: int) -> Plan:
    """Return what is due of a schedule, and when there will be more; ``scheduledTo`` says what was claimed before.

    Nothing at or before that is due again, whatever was edited. Of what was missed in the last `CATCH_UP_MS`
    ``catchUp`` has the last one run ("latest"), or each ("all"), or what is not later than `LATE_MS` ("none").

    Raises:
        InvalidError: The schedule cannot be read; the message says why.

    >>> plan({"interval": 60, "dateCreated": 0}, 200_000)
    Plan(runs=(180000,), upto_ms=180000, is_cut=False, next_ms=240000)
    """
    catch_up = _one_of(schedule, "catchUp", CATCH_UPS)
    _one_of(schedule, "overlap", OVERLAPS)
    claimed_ms = schedule.get("scheduledTo", schedule["dateCreated"])
    if not isinstance(claimed_ms, int):
        message = f"'scheduledTo' of a schedule cannot be {shown(claimed_ms)}: it is a point in time"
        raise InvalidError(message, property="scheduledTo")
    after_ms = max(claimed_ms, now_ms - CATCH_UP_MS)
    first_ms = _next(schedule, after_ms)
    if first_ms is None or first_ms > now_ms:
        return Plan((), None, is_cut=False, next_ms=first_ms)
    due = _last(schedule, after_ms, now_ms, MAX_DUE + 1 if catch_up == "all" else 1)
    next_ms = _next(schedule, now_ms)
    if catch_up == "none" and now_ms - due[-1] > LATE_MS:
        return Plan((), due[-1], is_cut=False, next_ms=next_ms)
    return Plan(tuple(due[-MAX_DUE:]), due[-1], is_cut=len(due) > MAX_DUE, next_ms=next_ms)


def _next(schedule: Mapping[str, Value], after_ms: int) -> int | None:
    if schedule.get("cron") is None or schedule.get("interval") is not None:
        return next(instants(schedule, after_ms, MAX_MS), None)
    return _next_of_cron(_text(schedule, "cron"), _text(schedule, "timezone", "UTC"), after_ms)


@lru_cache(maxsize=4096)
def _next_of_cron(cron: str, timezone: str, after_ms: int) -> int | None:
    """Kept from look to look: that an expression never comes is known only after fifty years have been gone through."""
    return next(instants({"cron": cron, "timezone": timezone}, after_ms, MAX_MS), None)


def _one_of(schedule: Mapping[str, Value], name: str, words: tuple[str, ...]) -> str:
    found = schedule.get(name, words[0])
    if found not in words:
        message = f"{name!r} of a schedule cannot be {shown(found)}: it is one of {', '.join(map(repr, words))}"
        raise InvalidError(message, property=name)
    return str(found)


def _last(schedule: Mapping[str, Value], after_ms: int, until_ms: int, most: int) -> list[int]:
    """Return the last instants of a time, at most so many, and never go through many more.

    Twice as long a time is looked at each time, until it holds enough; one that holds more than twice as many, as when
    seconds of one day in four years are asked for, is cut in half.
    """
    low = high = until_ms
    found: list[int] = []
    while len(found) < most and low > after_ms:
        high, low = low, max(after_ms, until_ms - 2 * max(until_ms - low, 1000))
        found = list(islice(instants(schedule, low, until_ms), 2 * most))
    while len(found) == 2 * most:  # perhaps there are more; not within a second, so this comes to an end
        middle = (low + high) // 2
        there = list(islice(instants(schedule, middle, until_ms), 2 * most))
        if len(there) < most:
            high = middle
        else:
            low, found = middle, there
    return found[-most:]


def run_schedules(store: Store, now_ms: int) -> int | None:
    """Begin the runs that are due in one Pod, and return when to look again: ms since 1970, None: no schedule waits.

    Where a run on the plugin state has not ended, the instant is claimed and has no run, unless ``overlap`` is "queue";
    then it has none as soon as `MAX_DUE` of them have not. The run is created idle, and is started by whoever launches
    runs. A schedule that is paused or deleted, or whose plugin state is, does nothing. One that cannot be read, or
    whose run cannot be created, begins none and is in no other's way. Of all that is to be said there is one line in
    the log for each kind: ``count`` of them, and the first ``schedule``.

    Where somebody else came in between, now is when to look again; and where more than `MAX_CLAIMS` instants are due.
    What was claimed last comes last, so that all have their turn.

    Args:
        store: The Pod.
        now_ms: Milliseconds since 1970; as all who look go by it, the clock of the store.
    """
    look = _Look(store, now_ms)
    times: list[int | None] = []
    try:
        for each in store.search(Query(type="Schedule", outgoing=True)):  # what was written longest ago comes first
            if look.left <= 0:
                return now_ms
            times.append(look.do(each))
    finally:
        look.log()
    return min((each for each in times if each is not None), default=None)


class _Look:
    """One look at the schedules of a Pod.

    Attributes:
        left: How many instants it may claim yet.
    """

    def __init__(self, store: Store, now_ms: int) -> None:
        self._store = store
        self._now_ms = now_ms
        self._unfinished: Counter[str] | None = None  # asked for when something is due
        self._said: dict[str, tuple[int, dict[str, Any]]] = {}
        self.left = MAX_CLAIMS

    def unfinished(self) -> Counter[str]:
        """Return how many runs on each plugin state have not ended."""
        if self._unfinished is None:
            runs = list_unfinished(Pod(self._store))
            self._unfinished = Counter(str(state.id) for run in runs for state in run.pluginState)
        return self._unfinished

    def log(self) -> None:
        """Write what is to be said of this look."""
        for event, (level, facts) in self._said.items():
            _log.log(level, event, extra=facts)

    def _say(self, event: str, row: ItemRow, *, level: int = logging.INFO, **facts: Any) -> None:
        _, first = self._said.setdefault(event, (level, {"schedule": row.id, **facts, "count": 0}))
        first["count"] += 1

    def _refuse(self, row: ItemRow, exc: InvalidError) -> None:
        self._say("schedule.refused", row, level=logging.WARNING, reason=exc.message)

    def do(self, found: Found) -> int | None:
        """Do what is due of one schedule, and return when there is more."""
        row = found.item
        state = next((edge.item.id for edge in found.edges if edge.name == "pluginState"), None)
        if state is None or row.properties.get("isPaused"):
            return None
        try:
            due = plan({**row.properties, "dateCreated": row.created_ms}, self._now_ms)
        except InvalidError as exc:
            self._refuse(row, exc)
            return None
        if due.upto_ms is None:
            return due.next_ms
        if due.is_cut:
            self._say("instants.left_out", row, level=logging.WARNING, caught_up=MAX_DUE)
        room, unfinished = MAX_DUE if row.properties.get("overlap") == "queue" else 1, self.unfinished()
        begun = due.runs[: max(0, room - unfinished[state])]
        if begun != due.runs:
            self._say("instants.skipped", row, unfinished=unfinished[state])
        # One that was claimed before scheduledTo was put back has its run, deleted perhaps.
        there = self._store.find_items([_id_of(row.id, each) for each in begun])
        version = row.version
        claims = list(dict.fromkeys((*begun, due.upto_ms)))
        is_all = len(claims) <= self.left
        try:
            for instant in claims[: self.left]:
                self.left -= 1
                is_run = instant in begun and _id_of(row.id, instant) not in there
                try:
                    self._claim(found, instant, version, is_run=is_run)
                except InvalidError as exc:  # an edge of it leads where none of a run may
                    self._refuse(row, exc)
                    is_run = False
                    self._claim(found, instant, version, is_run=False)
                version += 1
                unfinished[state] += is_run
        except (ConflictError, NotFoundError) as exc:
            self._say("schedule.changed", row, reason=exc.message)
            return self._now_ms
        return due.next_ms if is_all else self._now_ms

    def _claim(self, found: Found, instant_ms: int, version: int, *, is_run: bool) -> None:
        """Claim an instant, with its run or without, onto a version of the schedule."""
        row = found.item
        operations: list[Operation] = [UpdateItem(row.id, {"scheduledTo": instant_ms}, version)]
        if is_run:
            id_ = _id_of(row.id, instant_ms)
            template = {name: row.properties[name] for name in _TEMPLATE if name in row.properties}
            operations += CreateItem(id_, "PluginRun", template), *_edges(id_, found.edges)
        self._store.apply(Batch(tuple(operations)))


def schedule_from(store: Store, run: ItemRow) -> tuple[Operation, ...]:
    """Return what creates the schedule that a run brings, with the run as its first instant; () if it brings none.

    A run brings one if it has an ``interval`` or ``cron`` itself, once: not again if that was deleted. Of two who apply
    this at once one is refused, a ConflictError.

    Args:
        store: The Pod.
        run: The run, whose edges are there already.
    """
    id_ = _id_of(run.id, "schedule")
    if not (run.properties.get("interval") or run.properties.get("cron")) or store.find_items([id_]):
        return ()
    values = {name: value for name in (*_TEMPLATE, *_RULE) if (value := run.properties.get(name))}
    edges = store.list_edges([run.id], Direction.OUTGOING).get(run.id, [])
    return CreateItem(id_, "Schedule", {**values, "dateCreated": run.created_ms}), *_edges(id_, edges)


def _edges(source: str, edges: Iterable[Any]) -> list[Operation]:
    return [CreateEdge(source, edge.name, edge.item.id) for edge in edges if edge.name in _EDGES]


def _id_of(whose: str, what: object) -> str:
    """Return the id of what there is once: who makes it a second time meets the first."""
    return hashlib.blake2b(f"{whose}\0{what}".encode(), digest_size=16).hexdigest()


def list_schedules(client: Pod) -> list[Schedule]:
    """Return the schedules of a Pod with their plugin states, the oldest first."""
    found = cast("list[Schedule]", client.search({"type": "Schedule", "[[edges]]": True}))
    return sorted(found, key=lambda each: cast("datetime", each.dateCreated))


def put_schedule(
    store: Store, state: PersistentState, values: Mapping[str, Any], account: Mapping[str, Any] | None = None
) -> Schedule:
    """Let a plugin state have a schedule with these values, and no others; it is created, or the one it has changed.

    With another rule it begins anew from now on: nothing that lies behind is caught up by it. Else what was claimed
    stays as it is. One that was paused goes on.

    Args:
        store: The Pod.
        state: What its runs work on; one that is new is created with it.
        values: Of the properties of a Schedule those that say what, when and how.
        account: The properties of the Account that the runs have; a schedule that is there keeps its own.

    Raises:
        InvalidError: It cannot be read, or never comes. Nothing was written.
        ConflictError: The plugin state has several, or somebody else creates one now.
    """
    client, now = Pod(store), from_ms(store.now_ms())
    found = [each for each in list_schedules(client) if any(its.id == state.id for its in each.pluginState)]
    if len(found) > 1:
        message = f"plugin state {state.name!r} has {len(found)} schedules: end them, and begin one"
        raise ConflictError(message, state=state.id)
    schedule = found[0] if found else Schedule(id=_free_id(client, state), pluginState=[state])
    before = properties_of(schedule)
    for name in (*_TEMPLATE, *_RULE, "overlap", "catchUp", "isPaused"):
        setattr(schedule, name, values.get(name))
    after = properties_of(schedule)
    if found and (before.get("isPaused") or any(before.get(name) != after.get(name) for name in _RULE)):
        schedule.scheduledTo = max(now, schedule.scheduledTo or now)
    if plan({"dateCreated": to_ms(now, "now"), **after}, to_ms(now, "now")).next_ms is None:
        raise InvalidError(f"a schedule at {schedule.cron or schedule.interval!r} never comes: say another")
    with client.transaction():
        if is_new(state):
            client.create(state)
        if found:
            client.update_item(schedule)
        else:
            if account is not None:
                schedule.account.append(client.create(Account(**account)))
            client.create(schedule)
    return schedule


def _free_id(client: Pod, state: PersistentState) -> str:
    """Return an id that follows from the plugin state, so that of two who come at once one is refused."""
    ids = (_id_of(state.id or "", f"schedule {deleted}") for deleted in count())
    return next(id_ for id_ in ids if not client.search({"ids": [id_], "deleted": None}))
