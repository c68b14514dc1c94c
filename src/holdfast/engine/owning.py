"""What the owner of a run does to it from outside: abort it, make it ready again, change its variables.

A run that works is asked first; what cannot wait takes the plugin state away from it, in the same batch as the change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast.disk import BusyError, Disk
from holdfast.engine.finding import FINISHED
from holdfast.engine.holding import place_of
from holdfast.engine.runner import WORKING, storable
from holdfast.errors import ConflictError, HoldfastError, NotFoundError
from holdfast.items import PersistentState, properties_of
from holdfast.runs import Lease, Status, status_of
from holdfast.store import (
    Batch,
    CancelLease,
    CreateItem,
    DeleteVariable,
    Direction,
    EndLease,
    ItemRow,
    MoveRun,
    Operation,
    ReleaseLease,
    SetVariable,
    Store,
    UpdateItem,
)
from holdfast.values import Value, shown

_LOOK_EVERY_S: Final = 0.1


def get_run_row(store: Store, run: str) -> ItemRow:
    """Return a run as it is stored.

    Raises:
        NotFoundError: There is none, or it is something else.
    """
    row = store.find_items([run]).get(run)
    if row is None or row.is_deleted or row.type != "PluginRun":
        what = "" if row is None or row.is_deleted else f": that item is a {row.type}"
        raise NotFoundError(f"there is no run {shown(run)}{what}", id=shown(run))
    return row


def find_state(store: Store, run: str) -> ItemRow | None:
    """Return the plugin state that a run works on; None if it has not been given one yet."""
    edges = store.list_edges([run], Direction.OUTGOING).get(run, [])
    return next((edge.item for edge in edges if edge.name == "pluginState"), None)


def find_lease(store: Store, run: str) -> Lease | None:
    """Return the lease that a run holds now; None if it holds none."""
    lease = _last_lease(store, run)
    return lease if lease is not None and lease.is_held(store.now_ms()) else None


def _last_lease(store: Store, run: str) -> Lease | None:
    """Return the lease that a run has not given back, lapsed or not: until it is claimed it may be renewed."""
    state = find_state(store, run)
    lease = None if state is None else store.find_lease(state.id)
    return lease if lease is not None and lease.holder and lease.run == run else None


def check_state(store: Store, run: str) -> None:
    """Accept a run whose plugin state is there, or that has not been given one yet.

    Raises:
        ConflictError: It was deleted; what has its name now is another one.
    """
    edges = store.list_edges([run], Direction.OUTGOING, with_deleted=True).get(run, [])
    if find_state(store, run) is None and any(edge.name == "pluginState" for edge in edges):
        message = f"run {run!r} cannot be carried on: its plugin state was deleted; begin a new run"
        raise ConflictError(message, run=run)


def check_free(store: Store, state: str, *, locks: Path) -> None:
    """Accept a plugin state that nobody holds, or whose holder is proven dead by its free lock.

    Raises:
        ConflictError: A run holds it; the message names the run.
    """
    lease = store.find_lease(state)
    now_ms = store.now_ms()
    if lease is not None and lease.is_held(now_ms) and not _is_dead(lease, locks):
        raise lease.held_by_other(now_ms)


def abort(
    store: Store,
    run: str,
    *,
    locks: Path,
    wait_s: float,
    wait: Callable[[float], object] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> bool:
    """Abort a run, and say whether it had to be done without it.

    If it works, it is asked to stop, and has ``wait_s`` seconds to come to a safe point; then its plugin state is
    taken from it, so that it can write no more. A run whose process is proven dead, by its free lock, is not waited
    for. One that is aborted already stays as it is.

    Raises:
        NotFoundError: There is no such run.
        ConflictError: It has ended.
    """
    status = _status(store, run)
    if status in FINISHED and status is not Status.ABORTED:
        raise ConflictError(f"run {run!r} is {status} and cannot be aborted", run=run, status=str(status))
    until, asked = monotonic() + wait_s, 0
    while status not in FINISHED:  # else it came to its end meanwhile, aborted or done
        lease = _last_lease(store, run)
        is_held = lease is not None and lease.is_held(store.now_ms())
        if lease is not None and is_held and monotonic() < until and not _is_dead(lease, locks):
            if lease.epoch != asked:
                asked = lease.epoch
                with suppress(ConflictError):  # it is not this run's any more
                    store.apply(Batch((CancelLease(lease.state, lease.epoch),)))
            wait(_LOOK_EVERY_S)
        else:
            take = () if lease is None else (EndLease(lease.state, lease.epoch),)
            try:
                store.apply(Batch((*take, MoveRun(run, Status.ABORTED))))
            except ConflictError:
                if (_status(store, run), _last_lease(store, run)) == (status, lease):
                    raise
            else:
                return lease is not None
        status = _status(store, run)
    return False


def retry(store: Store, run: str, *, image: str | None = None, locks: Path | None = None) -> None:
    """Make a run that ended as error or aborted ready again, or one that is lost; it carries on from what it had saved.

    Lost is one that works, as it says, and has no lease any more, or one whose holder is proven dead by its free lock.
    How often it has died, and until when it was to wait, is forgotten.

    Args:
        store: The Pod.
        run: The id of the run.
        image: What it is launched from from now on, its ``containerImage``; None: that stays as it is.
        locks: The folder with the lock files of this machine; None: nobody is proven dead.

    Raises:
        NotFoundError: There is no such run.
        ConflictError: It did not end so and is not lost, it was renewed or claimed meanwhile, or its plugin state was
            deleted. Nothing was written.
    """
    status, lease = _status(store, run), _last_lease(store, run)
    is_dead = lease is not None and locks is not None and _is_dead(lease, locks)
    is_held = lease is not None and lease.is_held(store.now_ms()) and not is_dead
    if status not in (Status.ERROR, Status.ABORTED) and (status not in WORKING or is_held):
        message = f"run {run!r} is {status}: only one that is error or aborted, or that is lost, can be retried"
        raise ConflictError(message, run=run, status=str(status))
    check_state(store, run)
    values: dict[str, Value | None] = {"retryAt": None, "deaths": None, "deathMark": None}
    if image is not None:
        values["containerImage"] = image
    take = () if lease is None or not is_dead else (EndLease(lease.state, lease.epoch),)
    # Where nothing is taken: an owner's write ends a lease that lapsed, and is refused if it was renewed meanwhile.
    store.apply(Batch((*take, UpdateItem(run, values), MoveRun(run, Status.READY))))


def refuse_claimed(store: Store, run: str, why: HoldfastError) -> None:
    """End a run as error that was claimed for this process, and that cannot begin here; silent if it is not its own.

    For what no other attempt would mend: there is no such plugin, its module raises, its configuration is wrong.
    """
    with suppress(HoldfastError):
        state = find_state(store, run)
        lease = None if state is None else store.find_lease(state.id)
        if lease is not None and lease.run == run:
            text = storable(f"{type(why).__name__}: {why}")
            store.apply(Batch((MoveRun(run, Status.ERROR, text), ReleaseLease(lease.fence)), lease.fence))


def edit(
    store: Store,
    changes: Mapping[str, Mapping[str, Mapping[str, Value | None]]],
    *,
    new: Iterable[PersistentState] = (),
    is_forced: bool = False,
    locks: Path | None = None,
) -> None:
    """Change variables of plugin states, all of them or none.

    What a run held whose process is proven dead, by its free lock, is taken from it.

    Args:
        store: The Pod.
        changes: For each plugin state, by its id, and each namespace new values by name; None: it goes.
        new: Those of the plugin states that are still to be created.
        is_forced: Take the plugin states from the runs that hold them.
        locks: The folder with the lock files of this machine; None: nobody is proven dead.

    Raises:
        ConflictError: A run holds one of them, and ``is_forced`` is not said; the message names the run. Or a new one
            is there already, or one that was a dead run's was claimed meanwhile.
    """
    operations: list[Operation] = [CreateItem(state.id or "", "PersistentState", properties_of(state)) for state in new]
    for state, namespaces in changes.items():
        lease = None if is_forced or locks is None else store.find_lease(state)
        if is_forced:
            operations.append(EndLease(state))
        elif lease is not None and locks is not None and _is_dead(lease, locks):
            operations.append(EndLease(state, lease.epoch))
        for namespace, values in namespaces.items():
            for name, value in values.items():
                if value is None:
                    operations.append(DeleteVariable(state, name, namespace))
                else:
                    operations.append(SetVariable(state, name, value, namespace))
    store.apply(Batch(tuple(operations)))


def _status(store: Store, run: str) -> Status:
    return status_of(get_run_row(store, run).properties.get("status"))


def _is_dead(lease: Lease, locks: Path) -> bool:
    """Say whether the holder worked on this machine and its process is gone."""
    disk = Disk()
    if not locks.is_dir() or not lease.holder.startswith(f"{place_of(locks, disk)}-"):
        return False
    try:
        disk.lock(locks / f"{lease.state}.lock").release()
    except BusyError:
        return False
    return True
