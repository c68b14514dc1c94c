"""The statuses of a run, the moves between them, and the right to write."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import runs
from holdfast.errors import ConflictError, FencedError, InvalidError
from holdfast.runs import MOVES, Fence, Lease, Status, SystemClock, move, status_of

TABLE = {
    "idle": "initialized ready started error aborted",
    "initialized": "ready started userActionNeeded error aborted",
    "ready": "started userActionNeeded error aborted",
    "started": "authenticated userActionNeeded daemon ready done error aborted",
    "authenticated": "started userActionNeeded daemon ready done error aborted",
    "userActionNeeded": "ready error aborted",
    "daemon": "userActionNeeded ready done error aborted",
    "error": "ready",
    "aborted": "ready",
    "done": "",
}
"""The design's table of moves, written out once more."""


def test_the_moves_are_those_of_the_design() -> None:
    """Status by status, word by word."""
    assert {str(status): set(map(str, moves)) for status, moves in MOVES.items()} == {
        status: set(moves.split()) for status, moves in TABLE.items()
    }


def test_the_constants_are_the_words_of_the_pods_api() -> None:
    """``RUN_STARTED == "started"``, and so on for each of the ten."""
    constants = {name: str(value) for name, value in vars(runs).items() if name.startswith("RUN_")}
    assert constants == {
        "RUN_IDLE": "idle",
        "RUN_INITIALIZED": "initialized",
        "RUN_READY": "ready",
        "RUN_STARTED": "started",
        "RUN_AUTHENTICATED": "authenticated",
        "RUN_USER_ACTION_NEEDED": "userActionNeeded",
        "RUN_DAEMON": "daemon",
        "RUN_DONE": "done",
        "RUN_ERROR": "error",
        "RUN_ABORTED": "aborted",
    }
    assert runs.RUN_STARTED == "started"


@pytest.mark.parametrize("status", TABLE)
@pytest.mark.parametrize("to", TABLE)
def test_a_move_is_legal_exactly_if_the_table_says_so(status: str, to: str) -> None:
    """Repeating a status is always allowed; an illegal move names the run, both statuses and what is allowed."""
    if to == status or to in TABLE[status].split():
        assert move("r1", Status(status), to) is Status(to)
        return
    with pytest.raises(ConflictError) as caught:
        move("r1", Status(status), to)
    allowed = ", ".join(sorted(TABLE[status].split())) or "nothing else"
    assert str(caught.value) == f"run 'r1' is {status} and cannot become {to}; it can become {allowed}"
    assert caught.value.facts == {"run": "r1", "status": status, "wanted": to}


@pytest.mark.parametrize("to", ["running", "", "Started", None, 1])
def test_what_is_no_status_is_refused(to: object) -> None:
    """The message names the value and every status that there is."""
    with pytest.raises(InvalidError, match=f"cannot become {to!r}: a status is one of idle, .*, aborted"):
        move("r1", Status.IDLE, to)


@pytest.mark.parametrize("text", [None, "", "running", 1])
def test_an_unknown_or_missing_status_is_idle(text: object) -> None:
    """What older clients left out or made up."""
    assert status_of(text) is Status.IDLE
    assert status_of("done") is Status.DONE


FREE = Lease(state="s")
HELD = Lease(state="s", epoch=1, holder="h1", run="r1", expires_ms=1_100)


def test_a_free_plugin_state_can_be_claimed() -> None:
    """The first epoch is 1; the lease lasts as long as was asked."""
    assert FREE.claimed(run="r1", holder="h1", now_ms=1_000, duration_ms=100) == HELD
    assert not FREE.is_held(0)
    assert HELD.fence == Fence(state="s", epoch=1, holder="h1")


@pytest.mark.parametrize("now_ms, is_held", [(1_000, True), (1_099, True), (1_100, False)])
def test_a_lease_is_held_until_it_expires(now_ms: int, is_held: bool) -> None:
    """At the very millisecond it is no longer."""
    assert HELD.is_held(now_ms) is is_held


def test_a_held_plugin_state_cannot_be_claimed_by_another() -> None:
    """The refusal names the plugin state, the run that holds it, and for how long."""
    with pytest.raises(ConflictError) as caught:
        HELD.claimed(run="r2", holder="h2", now_ms=1_000, duration_ms=100)
    assert str(caught.value) == "plugin state 's' is held by run 'r1' for another 1 s"
    assert caught.value.facts == {"state": "s", "run": "r1", "expires_ms": 1_100}


def test_an_expired_lease_and_a_dead_holders_can_be_claimed() -> None:
    """The epoch grows, and a wish to cancel the former holder is not the new one's."""
    cancelled = replace(HELD, is_cancelled=True)
    second = Lease(state="s", epoch=2, holder="h2", run="r2", expires_ms=1_200)
    assert cancelled.claimed(run="r2", holder="h2", now_ms=1_100, duration_ms=100) == second
    soon = replace(second, expires_ms=1_101)
    assert cancelled.claimed(run="r2", holder="h2", now_ms=1_001, duration_ms=100, dead_holder="h1") == soon
    with pytest.raises(ConflictError):
        HELD.claimed(run="r2", holder="h2", now_ms=1_001, duration_ms=100, dead_holder="h0")


def test_a_repeated_claim_renews() -> None:
    """The reply to a claim may be lost: claiming again with the same holder changes nothing but the time."""
    assert HELD.claimed(run="r1", holder="h1", now_ms=1_050, duration_ms=100) == replace(HELD, expires_ms=1_150)


def test_a_lease_that_lapsed_unclaimed_can_be_renewed() -> None:
    """Nobody came in between, so nothing was lost; a wish to cancel stays."""
    cancelled = replace(HELD, is_cancelled=True)
    assert cancelled.renewed(HELD.fence, now_ms=9_000, duration_ms=100) == replace(cancelled, expires_ms=9_100)


def test_released_and_ended_leases_are_held_by_nobody() -> None:
    """A release keeps the epoch, an end raises it; without a holder there is nothing to end or to cancel."""
    assert HELD.released(HELD.fence) == Lease(state="s", epoch=1)
    assert HELD.ended() == Lease(state="s", epoch=2)
    assert HELD.cancelled() == replace(HELD, is_cancelled=True)
    for free in (FREE, HELD.ended(), HELD.released(HELD.fence)):
        assert free.ended() == free.cancelled() == free


def test_a_release_may_be_repeated_and_nothing_else_after_it() -> None:
    """Its reply may have been lost; but the right is gone."""
    free = HELD.released(HELD.fence)
    assert free.released(HELD.fence) == free
    for use in (lambda: free.check(HELD.fence), lambda: free.renewed(HELD.fence, now_ms=0, duration_ms=1)):
        with pytest.raises(FencedError, match=r"was taken from it \(epoch 1, not 1\)"):
            use()


@pytest.mark.parametrize(
    "lease, words",
    [
        (Lease(state="s", epoch=2, holder="h2", run="r2"), r"was taken over by run 'r2' \(epoch 2, not 1\)"),
        (Lease(state="s", epoch=1, holder="h2", run="r2"), r"was taken over by run 'r2' \(epoch 1, not 1\)"),
        (HELD.ended(), r"was taken from it \(epoch 2, not 1\)"),
        (FREE, r"was taken from it \(epoch 0, not 1\)"),
    ],
)
def test_a_superseded_right_is_fenced(lease: Lease, words: str) -> None:
    """Epoch and holder must both be those of the last claim, for every use of the right."""
    for use in (
        lambda: lease.check(HELD.fence),
        lambda: lease.renewed(HELD.fence, now_ms=0, duration_ms=1),
        lambda: lease.released(HELD.fence),
    ):
        with pytest.raises(FencedError, match=words):
            use()


@pytest.mark.parametrize("lease", [FREE, HELD.ended(), HELD.released(HELD.fence)])
def test_a_right_without_a_holder_is_none(lease: Lease) -> None:
    """Knowing the epoch of a free plugin state is not holding it."""
    with pytest.raises(FencedError):
        lease.check(lease.fence)


@given(st.lists(st.tuples(st.sampled_from(["claim", "release", "end", "cancel"]), st.sampled_from("gh")), max_size=12))
def test_an_epoch_never_shrinks_and_names_one_holder(steps: list[tuple[str, str]]) -> None:
    """Whatever happens to a lease, in whatever order, one epoch is one holder's."""
    lease, holders = FREE, dict[int, str]()
    for at, (step, holder) in enumerate(steps):
        before = lease.epoch
        if step == "claim":
            lease = lease.claimed(run="r", holder=holder, now_ms=at * 10, duration_ms=5)
        elif step == "release" and lease.holder:
            lease = lease.released(lease.fence)
        elif step == "end":
            lease = lease.ended()
        elif step == "cancel":
            lease = lease.cancelled()
        assert lease.epoch >= before
        if lease.holder:
            assert holders.setdefault(lease.epoch, lease.holder) == lease.holder


def test_the_machines_clock_counts_milliseconds() -> None:
    """It goes on, and reads as a date of now."""
    clock = SystemClock()
    first = clock.now_ms()
    assert isinstance(first, int)
    assert first <= clock.now_ms()
