"""What changes in a Pod, told to whoever follows: runs and questions, as server-sent events (WHATWG HTML, 9.2).

Hides the one task for each owner with followers that looks what is new. A follower holds no thread, and keeps no Pod
open; one that does not read is left behind, and may come again with the last id that it saw. An event may be told
twice. None is left out of runs, and none of questions as long as their run has not ended, or the question is asked or
answered while somebody follows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Final

from pydantic_core import to_json

from holdfast.engine import FINISHED
from holdfast.errors import HoldfastError, InvalidError, UnavailableError
from holdfast.runs import Status
from holdfast.server.limits import Limits, Places
from holdfast.server.pods import OpenPods
from holdfast.server.signing_in import Session, Threads
from holdfast.store import Comparison, Condition, Found, Query, Question, Store
from holdfast.values import MAX_INTEGER, shown

_log: Final = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often what other processes wrote is looked for; what came through this server is looked for at once."""
_BEAT_S: Final = 15.0
_MAX_WAITING: Final = 1_000
"""Events that a follower has not taken."""
_BEAT: Final = b": here\n\n"


@dataclass
class _Watch:
    """The followers of one owner."""

    followers: set[asyncio.Queue[bytes | None]] = field(default_factory=set[asyncio.Queue[bytes | None]])
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    has_ended: bool = False
    count: int = 0
    """Of those who follow, or are about to."""
    task: asyncio.Task[None] | None = None


class Events:
    """The events of all Pods.

    Args:
        pods: The Pods.
        threads: Where a Pod is read.
        limits: How many follow at once, and how often a Pod is opened again that was closed meanwhile. Who calls for it
            opens it sooner: until then only another process can have written to it.
    """

    def __init__(self, pods: OpenPods, threads: Threads, limits: Limits) -> None:
        self._pods, self._threads, self._reopen_s = pods, threads, limits.reopen_s
        self._places = Places(limits.followers, "followers are told of events")
        self._watches: dict[str, _Watch] = {}
        self._is_closed = False

    def wake(self, owner: str) -> None:
        """Look now: something was written."""
        watch = self._watches.get(owner)
        if watch is not None:
            watch.changed.set()

    def close(self) -> None:
        """Tell all followers that there is no more."""
        self._is_closed = True
        for watch in self._watches.values():
            for queue in watch.followers:
                _offer(queue, None)

    async def follow(self, session: Session, last_id: str | None) -> AsyncGenerator[bytes]:
        """Yield what to send to a follower, without end.

        Args:
            session: The owner's; it may end when the first part has come.
            last_id: The id of the last event that the follower saw; None: what is new from now on.

        Raises:
            Refused: There are too many followers.
            InvalidError: ``last_id`` is none.
            UnavailableError: What is new cannot be looked for.
        """
        since = None if last_id is None else _since(last_id)
        self._places.take(1, session.owner)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_WAITING)
        watch = self._watches.get(session.owner)
        if watch is None or watch.has_ended:
            watch = self._watches[session.owner] = _Watch()
        watch.count += 1
        try:
            if watch.task is None:
                watch.task = asyncio.create_task(self._look(session.owner, watch, Changes(session.pod.store)))
            await watch.has_begun.wait()
            if watch.has_ended:
                raise UnavailableError(f"events of the Pod of owner {session.owner!r} cannot be read now: try again")
            watch.followers.add(queue)
            yield _BEAT
            if since is not None:
                missed = Changes(session.pod.store, since)
                ask = partial(self._ask, session.owner, missed, missed.new, can_open=True)
                for event in await self._threads.run(self._threads.reading, ask) or ():
                    yield event
            while not self._is_closed:
                try:
                    event = await asyncio.wait_for(queue.get(), _BEAT_S)
                except TimeoutError:
                    event = _BEAT
                if event is None:
                    return
                yield event
        finally:
            self._places.give(1, session.owner)
            watch.followers.discard(queue)
            watch.count -= 1
            if not watch.count and watch.task is not None:
                watch.task.cancel()
                if self._watches.get(session.owner) is watch:
                    del self._watches[session.owner]

    def _ask(
        self, owner: str, changes: Changes, ask: Callable[[], list[bytes]], *, can_open: bool
    ) -> list[bytes] | None:
        """Return what is new; None: the Pod is not open, and not to be opened for this."""
        use = self._pods.find(owner, None)
        if use is None and can_open:
            use = self._pods.open(owner, None)
        if use is None:
            return None
        with use:
            changes.store = use.pod.store
            return ask()

    async def _look(self, owner: str, watch: _Watch, changes: Changes) -> None:
        """Tell the followers of one owner what is new; should this end, they end too, and may come again."""
        ask = changes.begin
        monotonic = asyncio.get_running_loop().time
        until = monotonic()
        try:
            while True:
                can_open = monotonic() >= until
                try:
                    asked = partial(self._ask, owner, changes, ask, can_open=can_open)
                    found = await self._threads.run(self._threads.reading, asked)
                except HoldfastError as exc:  # it may be busy: what was missed is found the next time
                    _log.warning("events.not_read", extra={"reason": str(exc)})
                    found = None
                if found is not None:
                    ask = changes.new
                    watch.has_begun.set()
                    for event in found:
                        for queue in watch.followers:
                            _offer(queue, event)
                if can_open or found is not None:
                    until = monotonic() + self._reopen_s
                with suppress(TimeoutError):
                    await asyncio.wait_for(watch.changed.wait(), LOOK_S)
                watch.changed.clear()
        finally:
            watch.has_ended = True
            watch.has_begun.set()
            for queue in watch.followers:
                _offer(queue, None)


def _offer(queue: asyncio.Queue[bytes | None], event: bytes | None) -> None:
    """Put an event into a queue; whoever has let it become full is left behind, and hears so at its end."""
    if event is None or queue.qsize() >= _MAX_WAITING - 1:
        while not queue.empty():
            queue.get_nowait()
        event = None
    queue.put_nowait(event)


class Changes:
    """What is new in one Pod since it was last asked; for one thread at a time.

    Args:
        store: The Pod; as ``store`` it may be given anew each time, for it may have been closed and opened.
        since_ms: Tell from then on, milliseconds since 1970.
    """

    def __init__(self, store: Store, since_ms: int = 0) -> None:
        self.store = store
        self._at_ms = since_ms
        self._seen: dict[str, int] = {}
        """The runs that were written at that time, with their versions: there may be more of the same millisecond."""
        self._running: dict[str, set[str]] = {}
        """The plugin states of the runs that have not ended: a question is no write to its run."""
        self._asked: dict[str, dict[str, Question]] = {}
        """By plugin state, all questions of those, and of others where one is not answered."""
        self._has_begun = False

    def begin(self) -> list[bytes]:
        """Tell from now on; of what was before, return nothing."""
        newest = self.store.search(replace(_RUNS, is_descending=True, limit=1))
        self._at_ms = newest[0].position[0] if newest else 0
        self.new()
        return []

    def new(self) -> list[bytes]:
        """Return what is new, as events."""
        if not self._has_begun:
            for status in _RUNNING:
                condition = Condition("status", Comparison.EQUAL, status)
                self._note(self.store.search(replace(_RUNS, conditions=(condition,))))
            self._has_begun = True
        found = self.store.search(replace(_RUNS, after=(self._at_ms - 1, MAX_INTEGER)))
        runs = [each for each in found if self._seen.get(each.item.id) != each.item.version]
        if found:
            self._at_ms = found[-1].position[0]
            self._seen = {each.item.id: each.item.version for each in found if each.position[0] == self._at_ms}
        events = [_event("run", self._at_ms, _run(each)) for each in runs]
        self._note(runs)
        questions = self._look_at({*_states(runs), *self._asked, *chain.from_iterable(self._running.values())})
        return events + [_event("question", self._at_ms, _question(each)) for each in questions]

    def _look_at(self, states: Iterable[str]) -> list[Question]:
        """Return the questions that are new, or were answered, since they were last looked at."""
        changed: list[Question] = []
        running = {*chain.from_iterable(self._running.values())}
        for state in states:
            known = self._asked.pop(state, {})
            questions = {each.id: each for each in self.store.list_questions(state)}
            changed += [each for id_, each in questions.items() if known.get(id_) != each]
            if any(each.answer is None for each in questions.values()) or state in running:
                self._asked[state] = questions
        return changed

    def _note(self, runs: Iterable[Found]) -> None:
        for each in runs:
            if each.item.properties.get("status") in _RUNNING and not each.item.is_deleted:
                self._running[each.item.id] = _states([each])
            else:
                self._running.pop(each.item.id, None)


_RUNS: Final = Query(type="PluginRun", is_deleted=None, outgoing=True)
_RUNNING: Final = (None, *(str(status) for status in Status if status not in FINISHED))


def _states(runs: Iterable[Found]) -> set[str]:
    return {edge.item.id for run in runs for edge in run.edges if edge.name == "pluginState"}


def _run(found: Found) -> dict[str, object]:
    row = found.item
    shown_of = ("status", "progress", "error", "pluginModule", "pluginName")
    states = sorted(_states([found]))
    return {
        "id": row.id,
        "version": row.version,
        "deleted": row.is_deleted,
        **{name: row.properties.get(name) for name in shown_of},
        "pluginState": states[0] if states else None,
    }


def _question(question: Question) -> dict[str, object]:
    facts = {name: getattr(question, name) for name in ("id", "state", "run", "key", "view", "deadline_ms")}
    return {**facts, "is_answered": question.answer is not None}


def _event(name: str, at_ms: int, document: Mapping[str, object]) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (at_ms, name.encode(), to_json(document))


def _since(last_id: str) -> int:
    if not (last_id.isascii() and last_id.isdecimal() and len(last_id) < 19):
        raise InvalidError(
            f"{shown(last_id)} is the id of no event: whole milliseconds are expected", id=shown(last_id)
        )
    return int(last_id)
