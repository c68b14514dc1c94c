"""What followers are told, and that they are told all of it."""

import asyncio
import json

import pytest

from holdfast.errors import UnavailableError
from holdfast.runs import Status
from holdfast.server.events import Changes, Events
from holdfast.server.limits import Limits
from holdfast.server.pods import Use
from holdfast.server.signing_in import Session, Threads
from holdfast.store import AnswerQuestion, AskQuestion, Batch, CreateEdge, CreateItem, Found, MoveRun, Query
from holdfast.testing import FakeClock, MemoryStore

CLOCK = FakeClock(1_000)


def store_with_runs() -> MemoryStore:
    """Return a store with two runs of a plugin state each."""
    store = MemoryStore(clock=CLOCK)
    for run, state in (("r1", "s1"), ("r2", "s2")):
        items = (CreateItem(run, "PluginRun", {"status": "ready"}), CreateItem(state, "PersistentState"))
        store.apply(Batch((*items, CreateEdge(run, "pluginState", state), MoveRun(run, Status.STARTED))))
    return store


def ask(store: MemoryStore, id_: str) -> None:
    """Ask a question of the first run, and write nothing else."""
    store.apply(Batch((AskQuestion(id_, "s1", "r1", f"key of {id_}", "{}"),)))
    CLOCK.advance(1)


def told(events: list[bytes]) -> list[tuple[str, object]]:
    """Return ids, and of questions whether they are answered."""
    found = [json.loads(each.partition(b"data: ")[2]) for each in events]
    return [(each["id"], each.get("is_answered")) for each in found]


def test_a_question_is_told_when_it_is_asked_and_when_it_is_answered_if_its_run_is_not_written() -> None:
    """Each once; and what was there before is not."""
    store = store_with_runs()
    changes = Changes(store)
    assert changes.begin() == []
    ask(store, "q")
    assert told(changes.new()) == [("q", False)]
    assert changes.new() == []
    later = Changes(store)
    assert later.begin() == []
    store.apply(Batch((AnswerQuestion("q", "2"),)))
    assert told(changes.new()) == told(later.new()) == [("q", True)]
    assert changes.new() == []


def test_who_comes_again_is_told_of_the_questions_that_were_answered_meanwhile() -> None:
    """Also if the last that it was told of was another run."""
    store = store_with_runs()
    ask(store, "q")
    CLOCK.advance(10)
    store.apply(Batch((MoveRun("r2", Status.DAEMON),)))
    last_ms = store.find_items(["r2"])["r2"].modified_ms
    store.apply(Batch((AnswerQuestion("q", "2"),)))
    assert ("q", True) in told(Changes(store, last_ms).new())


class Broken(MemoryStore):
    """A store with a defect, for a while."""

    is_broken = True

    def search(self, query: Query) -> list[Found]:
        """Fail as nobody foresees."""
        if self.is_broken:
            raise RuntimeError("a defect")
        return super().search(query)


def test_who_cannot_be_told_is_not_let_follow() -> None:
    """Neither who comes first nor who comes later; when it can be read again, it is."""
    store = Broken()

    pod = type("Pod", (), {"store": store})()
    pods = type("Pods", (), {"find": lambda _self, _owner, _key: Use(pod, lambda: None)})()

    async def follow(events: Events) -> bytes:
        stream = events.follow(Session("o", None, pod, store, threads, store), None)
        try:
            return await anext(stream)
        finally:
            await stream.aclose()

    async def come() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        events = Events(pods, threads, Limits())
        for answer in await asyncio.gather(follow(events), follow(events), return_exceptions=True):
            assert isinstance(answer, UnavailableError), answer
        store.is_broken = False
        assert await asyncio.wait_for(follow(events), 20) == b": here\n\n"

    threads = Threads()
    asyncio.run(come())


@pytest.fixture(autouse=True)
def clock() -> None:
    """Let time go on from one test to the next."""
    CLOCK.advance(1_000)
