"""The supervisor of one Pod: it lets runs be carried on elsewhere, and lets nothing be left of those that are over.

It sees the Pod, and launchers; who opens those is told by `Outside`. What it goes by is stored in the Pod: the lease
that it claims for a run, before it launches anything, is its note that it wants to; everything else follows from that.

The failure argument. *The process dies on any line*: before the claim nothing happened. After it, the next look finds a
lease of a launch that nobody has, and launches it again under the same name, which starts it once. *Two look at once*:
each change has the version of the run, or a claim, as its condition, so that one of them makes it; what is stopped
twice is stopped once. *A launcher does not answer, fails or lies*: the lease decides what becomes of a run, and what a
launcher says becomes words, at most. A launch that was made although an error was told is found by its name; one that
is not the holder's is ended. *A run is renewed in the moment in which it is given up*: its owner's write is refused
then. *The plugin is hostile*: it writes its own things only, through its token; what it logs is text, and
bounded; what it leaves running is ended with it by the launcher. *The disk is full*: nothing is claimed, so nothing is
launched; what runs cannot renew its lease and stops; it is given up when there is room again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from holdfast.engine.claiming import Sealing, claim_for, token_for
from holdfast.engine.finding import list_unfinished
from holdfast.engine.owning import check_state, find_state
from holdfast.engine.runner import WORKING, storable
from holdfast.engine.schedules import run_schedules, schedule_from
from holdfast.errors import ConflictError, HoldfastError, InvalidError, NotFoundError, UnavailableError
from holdfast.plugins.stateful import ONCE
from holdfast.pod import Pod
from holdfast.runs import Launched, Launcher, LaunchSpec, Lease, Logs, Phase, Status, status_of
from holdfast.store import (
    AppendLog,
    Batch,
    EndLease,
    ExpireLogs,
    ItemRow,
    MoveRun,
    Query,
    RenewLease,
    Store,
    UpdateItem,
)
from holdfast.values import Value

_log: Final = logging.getLogger(__name__)

LAUNCH: Final = "launch-"
"""What the holder of a lease begins with that a supervisor has claimed."""

UNLAUNCHED: Final = (None, "", "none")
"""As ``containerImage`` of a run: nobody launches it."""

MAX_DEATHS: Final = 3
"""How often a run may die without having come any further, before it is given up."""

_WAITING: Final = frozenset({Status.IDLE, Status.INITIALIZED, Status.READY})
_SHIP_MS: Final = 2_000
_AGAIN_MS: Final = 5_000
"""After so long something is tried again that a launcher did not do, or that nobody had a place for."""
_EXPIRE_MS: Final = 3_600_000
_DAY_MS: Final = 24 * 3_600_000
_KEPT_PARTS: Final = 17
"""How many parts, of about 1 MiB each, a log has that is kept as long as it may be."""
_MAX_PARTS: Final = 4096
"""How many parts of a log are read at once: one that is written without end keeps nothing else waiting."""
_BACKOFF_MS: Final = 5_000
_MAX_BACKOFF_MS: Final = 300_000
_LAST_LINES: Final = 20
_MAX_ERROR: Final = 2_000
_MAX_LINE: Final = 500


class Outside(Protocol):
    """Where runs are launched: what is outside of the Pod, as who has opened it tells."""

    def listed(self) -> tuple[Sequence[tuple[Launcher, Launched]], bool]:
        """Return what is launched, by which launcher, and whether all of them have answered.

        As of some moment since the look began, or before.
        """
        ...

    def launcher_for(self, image: str) -> Launcher:
        """Return what launches runs with this ``containerImage``.

        Raises:
            NotFoundError: Nothing here does.
        """
        ...

    def spec(self, run: ItemRow, lease: Lease, token: str) -> LaunchSpec:
        """Return what a launcher is told of a run."""
        ...

    def free(self, live: int) -> int:
        """Return how many runs may be launched besides ``live`` ones of this Pod."""
        ...

    def open(self) -> AbstractContextManager[Store]:
        """Yield the Pod, for another thread."""
        ...

    def submit(self, work: Callable[[], None], *, is_launch: bool) -> None:
        """Do ``work``, which raises nothing, in another thread; a launch may take as long as it likes."""
        ...

    def wake(self) -> None:
        """Let there be another look soon."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a look has found.

    Attributes:
        next_ms: When to look again, if nobody writes before; None: never.
        live: How many launched runs hold a lease, and how many are being launched that do not any more.
        begun: How many runs it has begun.
        is_waiting: There are runs that nobody had a place for.
    """

    next_ms: int | None
    live: int
    begun: int = 0
    is_waiting: bool = False


@dataclass(frozen=True, slots=True)
class _Run:
    row: ItemRow
    state: str | None
    lease: Lease | None

    @property
    def status(self) -> Status:
        return status_of(self.row.properties.get("status"))

    @property
    def image(self) -> str | None:
        """Return what is to be launched; None: nothing."""
        found = self.row.properties.get("containerImage")
        return None if found in UNLAUNCHED or not isinstance(found, str) else found

    @property
    def own_lease(self) -> Lease | None:
        """Return the lease that the run has not given back, lapsed or not."""
        lease = self.lease
        return lease if lease is not None and lease.holder and lease.run == self.row.id else None

    @property
    def retry_ms(self) -> int:
        found = self.row.properties.get("retryAt")
        return found if isinstance(found, int) else 0


_Key = tuple[str, int]
"""The plugin state and the epoch that a launch was made for."""


class Supervisor:
    """Looks after the runs of one Pod. One thread at a time looks; what takes long is done beside.

    Args:
        owner: Whose Pod.
        outside: Where runs are launched.
        sealing: Makes tokens.
        now_ms: The clock that tokens are measured on.
        lease_ms: How long a claim lasts without renewal.
        log_kept_ms: How long what runs have written is kept.
        grace_s: How long a run that is to stop may take.
        chance: A number from 0 to 1, another one with each call.
    """

    def __init__(
        self,
        owner: str,
        outside: Outside,
        *,
        sealing: Sealing,
        now_ms: Callable[[], int],
        lease_ms: int = 60_000,
        log_kept_ms: int = 30 * 24 * 3_600_000,
        grace_s: float = 10.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._owner = owner
        self._outside = outside
        self._sealing = sealing
        self._now_ms = now_ms
        self._lease_ms = lease_ms
        self._log_kept_ms = log_kept_ms
        self._grace_s = grace_s
        self._chance = chance
        self._lock = threading.Lock()
        self._busy: set[tuple[object, ...]] = set()
        self._launched: set[_Key] = set()
        self._expired_ms: int | None = None

    def look(self, store: Store) -> Look:
        """Look once: begin what is due, let go of what is lost, end what is left over.

        Raises:
            UnavailableError, DamagedError: The Pod cannot be read or written now. What was begun is found again.
        """
        now_ms = store.now_ms()
        times = [self._expire(store, now_ms), run_schedules(store, now_ms)]
        # In this order: what is launched has been claimed before, so its lease is seen if it is held.
        listed, is_complete = self._listed()
        looked = (_look_at(store, run.id or "") for run in list_unfinished(Pod(store)))
        runs = [each for each in looked if each is not None]
        times.append(None if is_complete else now_ms + _AGAIN_MS)
        current = {_key(lease) for run in runs if (lease := _launch_of(run)) is not None}
        with self._lock:
            self._launched &= current
        for key, (launcher, launch) in listed.items():
            times.append(now_ms + (_SHIP_MS if key in current else _AGAIN_MS))
            work = self._ship if key in current else self._clean
            self._do(("launch", launch.name), partial(work, launcher, launch))
        with self._lock:
            begun = {key[1:] for key in self._busy if key[0] == "begin"}
        # An image is fetched to its end, whatever becomes of the run, and what is left over is ended first: until then
        # each has its place.
        live, waiting = len((begun | listed.keys()) - current), list[_Run]()
        for run in runs:
            lease, own = run.lease, run.own_lease
            if own is not None and own.is_held(now_ms):
                times.append(own.expires_ms)
                if own.holder.startswith(LAUNCH):
                    live += 1
                    times.append(self._attend(store, run, own, listed, now_ms))
            elif lease is not None and lease.is_held(now_ms):  # by another run
                times.append(lease.expires_ms if run.image is not None else None)
            elif run.image is None and not (own is not None and own.holder.startswith(LAUNCH)):
                continue  # it is carried on by hand
            elif run.status is Status.USER_ACTION_NEEDED:
                if own is not None and own.holder.startswith(LAUNCH):  # who asked has died: nothing of it is needed
                    times.append(now_ms + _AGAIN_MS)
                    self._do(("lost", run.row.id), partial(self._let_go, run))
            elif run.status in WORKING or (own is not None and run.status in _WAITING):
                times.append(now_ms + _AGAIN_MS)
                self._do(("lost", run.row.id), partial(self._give_up, run, listed))
            elif run.status in _WAITING:
                waiting.append(run)
        ready = [run for run in waiting if run.retry_ms <= now_ms]
        times += [run.retry_ms for run in waiting if run.retry_ms > now_ms]
        free = self._outside.free(live) if ready else 0
        count = 0
        for run in sorted(ready, key=lambda each: each.row.created_ms):
            if count >= free:
                times.append(now_ms + _AGAIN_MS)
                break
            count += self._begin(store, run)
        if count:
            times.append(now_ms + self._lease_ms // 4)
        next_ms = min((each for each in times if each is not None), default=None)
        return Look(next_ms=next_ms, live=live + count, begun=count, is_waiting=len(ready) > count >= free)

    # -- what a look decides ------------------------------------------------------------------------------------------

    def _listed(self) -> tuple[dict[_Key, tuple[Launcher, Launched]], bool]:
        """Return what is launched for this Pod, and whether every launcher has answered."""
        listed, is_complete = self._outside.listed()
        mine = ((launcher, each) for launcher, each in listed if each.owner == self._owner)
        return {(each.state, each.epoch): (launcher, each) for launcher, each in mine}, is_complete

    def _attend(
        self,
        store: Store,
        run: _Run,
        lease: Lease,
        listed: Mapping[_Key, tuple[Launcher, Launched]],
        now_ms: int,
    ) -> int | None:
        """Keep the lease of a run that is being launched; see that one is launched which was only claimed."""
        key = _key(lease)
        with self._lock:
            is_launching, is_launched = ("begin", *key) in self._busy, key in self._launched
        if is_launching:
            if lease.expires_ms - now_ms <= self._lease_ms * 3 // 4:
                with suppress(ConflictError):
                    store.apply(Batch((RenewLease(lease.fence, self._lease_ms),)))
            return now_ms + self._lease_ms // 4
        if is_launched or run.status not in _WAITING:
            return None
        there = listed.get(key)
        self._do(("begin", *key), partial(self._launch_again, run, lease, there))
        return now_ms + _AGAIN_MS

    def _begin(self, store: Store, run: _Run) -> bool:
        """Claim the plugin state of a run and launch it; False: it could not be claimed, or never can be launched."""
        try:
            check_state(store, run.row.id)
        except ConflictError as exc:  # it was deleted: only the user can mend that
            self._refuse(store, run.row.id, exc)
            return False
        try:
            launcher = self._outside.launcher_for(run.image or "")
            lease, token = claim_for(
                store,
                run.row.id,
                f"{LAUNCH}{secrets.token_hex(16)}",
                owner=self._owner,
                lease_ms=self._lease_ms,
                now_ms=self._now_ms(),
                sealing=self._sealing,
                is_new=True,
            )
            _bring_schedule(store, run.row)
            spec = self._outside.spec(run.row, lease, token)
        except ConflictError as exc:
            _log.info("run.not_claimed", extra={"run": run.row.id, "reason": str(exc)})
            return False
        except (InvalidError, NotFoundError) as exc:
            self._refuse(store, run.row.id, exc)
            return False
        _log.info("run.launching", extra={"run": run.row.id, "launch": spec.name})
        self._do(("begin", *_key(lease)), partial(self._launch, launcher, spec, lease))
        return True

    def _expire(self, store: Store, now_ms: int) -> int | None:
        """Let go of what was logged long ago; return when to do so again if nothing else happens."""
        if self._expired_ms is None or now_ms - self._expired_ms >= _EXPIRE_MS:
            store.apply(Batch((ExpireLogs(now_ms - self._log_kept_ms),)))
            self._expired_ms = now_ms
        has_runs = store.search(Query(type="PluginRun", limit=1))
        return now_ms + _DAY_MS if has_runs else None

    # -- what is done beside ------------------------------------------------------------------------------------------

    def _do(self, key: tuple[object, ...], work: Callable[[], bool]) -> None:
        """Do ``work`` in another thread, unless that is being done; it says whether there is more to do now."""
        with self._lock:
            if key in self._busy:
                return
            self._busy.add(key)

        def done() -> None:
            is_more = False
            try:
                is_more = work()
            except HoldfastError as exc:
                _log.warning("supervision.failed", extra={"what": key, "reason": str(exc)})
            except Exception:  # noqa: BLE001 -- the supervisor's boundary: a launcher may be anybody's code
                _log.exception("supervision.failed", extra={"what": key})
            finally:
                with self._lock:
                    self._busy.discard(key)
            if is_more:
                self._outside.wake()

        try:
            self._outside.submit(done, is_launch=key[0] == "begin")
        except BaseException:
            with self._lock:
                self._busy.discard(key)
            raise

    def _launch(self, launcher: Launcher, spec: LaunchSpec, lease: Lease) -> bool:
        """Launch what was claimed for."""
        try:
            launcher.launch(spec)
        except UnavailableError as exc:  # it may have been done all the same: it is asked for again
            _log.warning("run.not_launched", extra={"run": spec.run, "launch": spec.name, "reason": str(exc)})
            self._renew(lease)
            return False
        except (InvalidError, NotFoundError) as exc:
            with self._outside.open() as store:
                self._refuse(store, spec.run, exc, lease)
            return True
        with self._lock:
            self._launched.add(_key(lease))
        return not self._renew(lease)  # if it was taken from it meanwhile, it is left over

    def _renew(self, lease: Lease) -> bool:
        """Let what is launched have all of a lease to begin, or to be launched; say whether it has the lease still."""
        with self._outside.open() as store:
            try:
                store.apply(Batch((RenewLease(lease.fence, self._lease_ms),)))
            except ConflictError:
                return False
        return True

    def _launch_again(self, run: _Run, lease: Lease, there: tuple[Launcher, Launched] | None) -> bool:
        """Launch what was claimed for by a supervisor that may have died before it was launched, or while it was."""
        launcher = self._outside.launcher_for(run.image or "") if there is None else there[0]
        if there is not None and launcher.probe(there[1].name).phase in {Phase.RUNNING, Phase.UNKNOWN}:
            return False
        with self._outside.open() as store:
            _bring_schedule(store, run.row)
        token = token_for(run.row, lease, owner=self._owner, now_ms=self._now_ms(), sealing=self._sealing)
        return self._launch(launcher, self._outside.spec(run.row, lease, token), lease)

    def _refuse(self, store: Store, run: str, why: HoldfastError, lease: Lease | None = None) -> None:
        """End a run as error that cannot be launched, unless it works: whoever said so did not know."""
        row = store.find_items([run]).get(run)
        if row is None or status_of(row.properties.get("status")) not in _WAITING:
            return
        text = storable(f"{type(why).__name__}: {why}")
        _log.warning("run.refused", extra={"run": run, "reason": text})
        take = () if lease is None else (EndLease(lease.state, lease.epoch),)
        operations = (
            *take,
            UpdateItem(run, {}, expected_version=row.version),
            MoveRun(run, Status.ERROR, text),
        )
        with suppress(ConflictError):
            store.apply(Batch(operations))

    def _give_up(self, run: _Run, listed: Mapping[_Key, tuple[Launcher, Launched]]) -> bool:
        """Make a run that nobody renews ready again, after a while; or an error, if it dies again and again."""
        row, lease = run.row, run.own_lease
        there = None if lease is None else listed.get(_key(lease))
        reason = ""
        if there is not None:
            launcher, launch = there
            try:
                reason = launcher.probe(launch.name).reason
                self._ship(launcher, launch)
            except Exception as exc:  # noqa: BLE001 -- anybody's code; and what it says changes no run
                _log.warning("launch.not_explained", extra={"launch": launch.name, "reason": str(exc)})
        with self._outside.open() as store:
            now_ms, mark = store.now_ms(), _how_far(store, run)
            # What never was there has not died.
            is_death = there is not None or run.status in WORKING
            count = _deaths(row, mark) if is_death else 0
            backoff_ms = min(_MAX_BACKOFF_MS, _BACKOFF_MS << min(max(count - 1, 0), 16))
            retry_ms = now_ms + round(self._chance() * backoff_ms)
            noted: dict[str, Value | None] = {"retryAt": retry_ms}
            if is_death:
                noted |= {"deaths": count, "deathMark": mark}
            move = MoveRun(row.id, Status.READY)
            if count >= MAX_DEATHS and run.status is not Status.DAEMON:
                move = MoveRun(row.id, Status.ERROR, self._obituary(store, row.id, count, reason))
                noted["deaths"] = None
            # Refused if the run was renewed meanwhile; if not, its lease ends with it.
            noting = UpdateItem(row.id, noted, expected_version=row.version)
            try:
                store.apply(Batch((noting, move)))
            except ConflictError as exc:
                _log.info("run.not_lost", extra={"run": row.id, "reason": str(exc)})
            else:
                _log.warning("run.lost", extra={"run": row.id, "deaths": count, "status": str(move.status)})
        return True

    def _let_go(self, run: _Run) -> bool:
        """End a lease that lapsed of a run that waits for its user."""
        with self._outside.open() as store, suppress(ConflictError):  # it was renewed, or written, meanwhile
            store.apply(Batch((UpdateItem(run.row.id, {}, run.row.version),)))
        return True

    def _obituary(self, store: Store, run: str, deaths: int, reason: str) -> str | None:
        """Return what the user is told of a run that is given up."""
        last = deque[str](maxlen=_LAST_LINES)
        after = 0
        while parts := store.list_log(run, after):
            after = parts[-1].number
            last.extend(line[-_MAX_LINE:] for line in "".join(part.text for part in parts).splitlines())
        why = f": {reason}" if reason else ""
        text = f"it died {deaths} times and came no further in between{why}"
        while last and len(text) + sum(len(line) + 1 for line in last) > _MAX_ERROR:
            last.popleft()
        return storable("\n".join([text, *last]))

    def _ship(self, launcher: Launcher, launch: Launched) -> bool:
        """Bring what a launch has written since into the log of its run; say whether there is more of it.

        Of more than a log keeps, only the last is brought.
        """
        with self._outside.open() as store:
            row = store.find_items([launch.run]).get(launch.run)
            if row is None or row.is_deleted:
                return False
            at = after = store.find_log_end(launch.run, launch.name)
            kept = deque[Logs](maxlen=_KEPT_PARTS)
            is_all = False
            for _ in range(_MAX_PARTS):
                found = launcher.logs(launch.name, at)
                if is_all := not found.data:
                    break
                kept.append(found)
                at = found.after
            for part in kept:
                text = part.data.decode(errors="replace").replace("\0", "\ufffd")
                try:
                    store.apply(Batch((AppendLog(launch.run, launch.name, after, part.after, text),)))
                except ConflictError:  # another is doing it
                    return False
                after = part.after
        return not is_all

    def _clean(self, launcher: Launcher, launch: Launched) -> bool:
        """End what is left of a launch whose run is over, or has another."""
        launcher.stop(launch.name, self._grace_s)
        with self._outside.open() as store:
            lease = store.find_lease(launch.state)
            if lease is not None and lease.holder and (lease.epoch, lease.run) == (launch.epoch, launch.run):
                with suppress(ConflictError):  # the run has ended, and did not give it back
                    store.apply(Batch((EndLease(launch.state, launch.epoch),)))
        try:
            while self._ship(launcher, launch):  # it writes no more
                pass
        except UnavailableError:
            raise
        except HoldfastError as exc:  # it has put something else there, perhaps: that cannot be had later either
            _log.warning("log.not_kept", extra={"launch": launch.name, "reason": str(exc)})
        launcher.delete(launch.name)
        _log.info("launch.cleaned", extra={"launch": launch.name, "run": launch.run})
        return True


def _look_at(store: Store, run: str) -> _Run | None:
    """Return a run as it is; None: it was deleted meanwhile."""
    row, state = store.find_items([run]).get(run), find_state(store, run)
    if row is None or row.is_deleted:
        return None
    return _Run(row, None if state is None else state.id, None if state is None else store.find_lease(state.id))


def _bring_schedule(store: Store, run: ItemRow) -> None:
    """Let a run that has an interval or cron itself have its schedule; nothing happens if that was there."""
    if operations := schedule_from(store, run):
        with suppress(ConflictError):  # somebody else is doing it
            store.apply(Batch(operations))


def _launch_of(run: _Run) -> Lease | None:
    """Return the lease of a run if it was claimed by a supervisor."""
    own = run.own_lease
    return own if own is not None and own.holder.startswith(LAUNCH) else None


def _key(lease: Lease) -> _Key:
    return lease.state, lease.epoch


def _deaths(row: ItemRow, mark: str) -> int:
    """Return how often a run has died by now without having come any further."""
    before = row.properties.get("deaths")
    return before + 1 if isinstance(before, int) and row.properties.get("deathMark") == mark else 1


def _how_far(store: Store, run: _Run) -> str:
    """Return what is another text when a run has come further: its progress, its variables, or its snapshot."""
    told: list[object] = [run.row.properties.get("progress")]
    if run.state is not None:
        told.append(store.find_snapshot(run.state))
        told += [sorted(store.list_variables(run.state, each).items()) for each in ("", ONCE)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
