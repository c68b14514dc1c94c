"""A value is set without a lock: whatever another thread does between two of the steps, it is set and will be saved."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.disk import Disk
from holdfast.state import State

STEPS = ["before the value", "after the value", "before the mark", "after the mark"]


class Interrupted(dict[str, Any]):
    """Does something else, once, before or after an item is set, as if by another thread."""

    def __init__(self, content: dict[str, Any], when: str, what: Callable[[], object]) -> None:
        super().__init__(content)
        self.when: str | None = when
        self.what = what

    def __setitem__(self, name: str, value: object) -> None:
        when, self.when = self.when, None
        if when == "before":
            self.what()
        super().__setitem__(name, value)
        if when == "after":
            self.what()


def transact(state: State) -> None:
    """Change the namespace in a transaction."""
    with state.transaction():
        state.tool.other = 3


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_loaded", [True, False])
@pytest.mark.parametrize(
    "what, stored, found",
    [
        pytest.param(lambda state: state.save_all(), {1, 5}, {5}, id="save"),
        pytest.param(lambda state: state.tool.load(), {1}, {5}, id="load"),
        pytest.param(transact, {1, 5}, {5}, id="transaction"),
        pytest.param(lambda state: state.incr("tool", "other", 3), {1, 5}, {5}, id="incr"),
        pytest.param(lambda state: state.tool.__ior__({"other": 3}), {1}, {5}, id="update"),
        pytest.param(lambda state: state.delete("tool"), {None}, {5}, id="delete"),
        pytest.param(lambda state: state.tool.set("x", 7), {1}, {5, 7}, id="set"),
    ],
)
def test_what_another_thread_does_meanwhile_neither_undoes_nor_forgets_it(
    tmp_path: Path,
    *,
    step: str,
    is_loaded: bool,
    what: Callable[[State], object],
    stored: set[int | None],
    found: set[int],
) -> None:
    """The value is read, saved, and read elsewhere, and so is one that is set later; of two at once either may win."""
    state = State(tmp_path, save_delay=None)
    State(tmp_path, save_delay=0).tool.x = 1
    if is_loaded:
        state.tool.load()
    state.tool.y = 2  # from here on there is something to be saved, and setting is quick

    def act() -> None:
        what(state)
        assert State(tmp_path).tool.x in stored

    kept = state.__files__.known("tool")
    when, _, where = step.split()
    if where == "value":
        kept.values = kept.shown = Interrupted(kept.values, when, act)
    else:
        kept.changed = Interrupted(kept.changed, when, act)
    state.tool.x = 5
    value = state.tool.x
    assert value in found
    assert value == state.tool.get("x") == dict(state.tool)["x"]
    state.save_all()
    assert State(tmp_path).tool.x == value
    state.tool.x = 6
    state.save_all()
    assert State(tmp_path).tool.x == 6


def test_what_is_set_while_a_save_is_on_its_way_is_saved_by_the_next_one(tmp_path: Path) -> None:
    """Which comes by itself."""
    is_stored = threading.Event()

    class Meanwhile(Disk):
        tries = 0

        def _rename(self, source: Path, target: Path) -> None:
            super()._rename(source, target)
            self.tries += 1
            if self.tries == 1:
                state.tool.x = 2
            elif State(tmp_path).tool.x == 2:
                is_stored.set()

    state = State(tmp_path, save_delay=0.01, disk=Meanwhile())
    state.tool.x = 1
    assert is_stored.wait(60)


def test_what_is_set_while_memory_is_replaced_waits_for_the_end_of_that(tmp_path: Path) -> None:
    """Else it would go into what is thrown away."""
    state = State(tmp_path, save_delay=None)
    state.tool.x = 1
    kept = state.__files__.known("tool")
    is_waiting_or_done = threading.Event()

    class Telling:
        def __enter__(self) -> None:
            if threading.current_thread() is thread:
                is_waiting_or_done.set()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    def write() -> None:
        state.tool.x = 2
        is_waiting_or_done.set()

    class Content(dict[str, Any]):
        def keys(self) -> Any:
            thread.start()
            assert is_waiting_or_done.wait(60)
            return super().keys()

        def __iter__(self) -> Iterator[str]:
            return iter(self.keys())

    lock, kept._changing = kept._changing, Telling()  # type: ignore[assignment]
    thread = threading.Thread(target=write)
    kept.take(Content())
    thread.join()
    assert state.tool.x == 2
    state.save_all()
    assert State(tmp_path).tool.x == 2


@pytest.mark.parametrize("what", ["set", "load"])
def test_what_a_signal_handler_does_while_memory_changes_is_neither_undone_nor_forgotten(
    tmp_path: Path, what: str
) -> None:
    """It passes the lock of its own thread; what is set and not stored stays, and what is read is the newest."""

    class Content(dict[str, Any]):
        is_first = True

        def __iter__(self) -> Iterator[str]:
            if self.is_first:
                self.is_first = False
                handle()
            return super().__iter__()

        def keys(self) -> Any:
            return list(self)

        def items(self) -> Any:
            return [(name, self[name]) for name in self]

    def handle() -> None:
        if what == "set":
            state.tool.x = 2
        else:
            state.tool.load()

    state = State(tmp_path, save_delay=None)
    state.tool.y = 1
    kept = state.__files__.known("tool")
    if what == "set":
        kept.take(Content(z=3))
        assert dict(state.tool) == {"z": 3, "y": 1, "x": 2}
    else:
        kept.change(Content(x=2))
        assert dict(state.tool) == {"y": 1, "x": 2}
    state.save_all()
    assert dict(State(tmp_path).tool) == {"y": 1, "x": 2}


def test_what_a_signal_handler_stores_while_memory_is_replaced_is_newer_than_what_was_read(tmp_path: Path) -> None:
    """So that is not taken: it is to be read again."""

    class Content(dict[str, Any]):
        def keys(self) -> Any:
            state.incr("tool", "x")
            return super().keys()

        def __iter__(self) -> Iterator[str]:
            return iter(self.keys())

    State(tmp_path, save_delay=0).tool.x = 1
    state = State(tmp_path, save_delay=None)
    assert state.tool.x == 1
    kept = state.__files__.known("tool")
    assert kept.take(Content(x=1), over=kept.values) is False
    assert state.tool.x == State(tmp_path).tool.x >= 2
