"""Claiming a plugin state for a run that is carried on elsewhere: the lease, and the token that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast.auth import Token, rights_of
from holdfast.engine.finding import FINISHED, continue_run
from holdfast.engine.owning import check_state, get_run_row
from holdfast.errors import ConflictError
from holdfast.pod import Pod
from holdfast.runs import Lease, status_of
from holdfast.store import Batch, ClaimLease, ItemRow, Store, UpdateItem
from holdfast.values import MAX_INTEGER

TOKEN_MS: Final = 30 * 24 * 3_600_000
"""How long a token is good at most: a run that lasts longer is given another one with its next claim."""

Sealing = Callable[[Token], str]


def claim_for(
    store: Store,
    run: str,
    holder: str,
    *,
    owner: str,
    lease_ms: int,
    now_ms: int,
    sealing: Sealing,
    is_new: bool = False,
) -> tuple[Lease, str]:
    """Claim the plugin state of a run, and return the lease and the token of who is to carry the run on.

    Args:
        store: The owner's Pod.
        run: The id of the run; one that has no plugin state yet gets its plugin's default one.
        holder: Who has it then. The same one again is answered the same lease, renewed.
        owner: Whose Pod.
        lease_ms: How long the claim lasts without renewal.
        now_ms: The clock that tokens are measured on.
        sealing: Makes the token's text.
        is_new: Claim only if nobody has it, and nobody writes to the run meanwhile: no claim that is asked for again.

    Raises:
        NotFoundError: There is no such run.
        ConflictError: It has ended, its plugin state was deleted, or another run holds that; the message names it. Or
            somebody wrote to a new one.
        InvalidError: The rights that its owner has given it cannot be read. Nothing was claimed.
    """
    check_state(store, run)
    _, state = continue_run(Pod(store), run)
    row = get_run_row(store, run)
    if is_new and status_of(row.properties.get("status")) in FINISHED:
        raise ConflictError(f"run {run!r} has ended meanwhile", run=run)
    there = Lease(state=str(state.id), epoch=MAX_INTEGER, holder=holder[:64], run=run)  # longer ones are refused below
    token_for(row, there, owner=owner, now_ms=now_ms, sealing=sealing)
    # That was before the claim: one without a token would keep others out for nothing.
    claim = ClaimLease(there.state, run, holder, lease_ms)
    guard = (UpdateItem(run, {}, row.version),) if is_new else ()
    lease = store.apply(Batch((*guard, claim)))[-1]
    assert isinstance(lease, Lease)  # noqa: S101 -- what a claim answers
    if lease.run != run:
        message = f"plugin state {lease.state!r} is held by run {lease.run!r} with the same holder: claim with another"
        raise ConflictError(message, state=lease.state, run=lease.run)
    return lease, token_for(row, lease, owner=owner, now_ms=now_ms, sealing=sealing)


def token_for(run: ItemRow, lease: Lease, *, owner: str, now_ms: int, sealing: Sealing) -> str:
    """Return the token of who holds ``lease`` for ``run``: another one with each call, good for the same.

    Raises:
        InvalidError: The rights that its owner has given the run cannot be read, or are too many.
    """
    return sealing(
        Token(
            owner=owner,
            state=lease.state,
            run=run.id,
            epoch=lease.epoch,
            holder=lease.holder,
            rights=rights_of(run.properties),
            expires_ms=now_ms + TOKEN_MS,
        )
    )
