"""What a plugin is told is saved is what it reads, whichever thread asks, and what it did once it did once."""

import math
import threading
from collections.abc import Mapping
from contextlib import suppress

import pytest

from holdfast.errors import DamagedError, InvalidError
from holdfast.items import CVUStoredDefinition, PersistentState, PluginRun
from holdfast.plugins import PodVariables, StatefulPlugin
from holdfast.pod import Pod
from holdfast.testing import MemoryStore
from holdfast.values import Value


class Slow(MemoryStore):
    """A store whose answer to one read of variables is late."""

    def __init__(self) -> None:
        super().__init__()
        self.has_read = threading.Event()
        self.may_answer = threading.Event()

    def list_variables(self, state: str, namespace: str = "") -> Mapping[str, Value]:
        """Answer what was there before others wrote."""
        found = dict(super().list_variables(state, namespace))
        if not self.has_read.is_set():
            self.has_read.set()
            assert self.may_answer.wait(10)
        return found


def test_a_late_answer_does_not_hide_what_was_written_meanwhile() -> None:
    """A read that began before a write and ends after it reads again."""
    store = Slow()
    variables = PodVariables(Pod(store), "s")
    reader = threading.Thread(target=variables.read, args=("",))
    reader.start()
    assert store.has_read.wait(10)
    variables.put("", "n", 2)
    store.may_answer.set()
    reader.join(10)
    assert variables.find("", "n") == 2


@pytest.fixture
def plugin() -> StatefulPlugin:
    """Return a plugin with a run on a plugin state, in memory."""
    client = Pod(MemoryStore())
    state = client.create(PersistentState("p", name="default"))
    run = client.create(PluginRun(pluginModule="m", pluginName="p", pluginState=[state]))
    return StatefulPlugin(pluginRun=run, client=client)


def test_once_is_once_inside_a_transaction_too(plugin: StatefulPlugin) -> None:
    """The open block knows what it has done; a discarded one has done nothing that is remembered."""
    calls: list[int] = []
    with plugin.transaction():
        assert [plugin.once("k", lambda: calls.append(1) or len(calls)) for _ in range(3)] == [1, 1, 1]
    assert plugin.once("k", lambda: 5) == 1


def test_once_is_once_for_all_threads(plugin: StatefulPlugin) -> None:
    """They wait for the first."""
    calls: list[int] = []
    together = threading.Barrier(3)

    def call() -> None:
        together.wait(10)
        plugin.once("k", lambda: calls.append(1))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert calls == [1]


@pytest.mark.parametrize("key", ["", "k" * 1025, "a\0b", "\ud800"])
def test_once_does_nothing_under_a_key_that_cannot_be_kept(key: str, plugin: StatefulPlugin) -> None:
    """It is refused before the work is done."""
    calls: list[int] = []
    with pytest.raises(InvalidError):
        plugin.once(key, lambda: calls.append(1))
    assert calls == []


@pytest.mark.parametrize("result", [object(), b"\xff", "\ud800"])
def test_once_says_that_a_result_cannot_be_kept(result: object, plugin: StatefulPlugin) -> None:
    """Nothing is stored, so the work is done again."""
    with pytest.raises(
        InvalidError, match=r"^the result of once\('k'\) cannot be kept, and its work will be done again"
    ):
        plugin.once("k", lambda: result)
    assert plugin.once("k", lambda: 2) == 2


def test_once_returns_what_json_makes_of_a_result_the_first_time_too(plugin: StatefulPlugin) -> None:
    """So that a run that resumes sees what the first one saw."""
    for _ in range(2):
        assert plugin.once("k", lambda: {1: (2.5, None, "ü")}) == {"1": [2.5, None, "ü"]}
    assert all(math.isnan(plugin.once("nan", lambda: math.nan)) for _ in range(2))


@pytest.mark.parametrize("kept", ["no json", 7, True])
def test_once_does_not_take_for_a_result_what_is_none(kept: str | int, plugin: StatefulPlugin) -> None:
    """The owner may have written there; the work is not done twice for that."""
    PodVariables(plugin.client, plugin._state_id()).put("once", "k", kept)
    with pytest.raises(DamagedError, match=r"^what is kept for once\('k'\) is no result: delete the variable"):
        plugin.once("k", lambda: 5)


def test_a_view_is_set_inside_a_transaction_too(plugin: StatefulPlugin) -> None:
    """With the block, or not at all; of two the last one stays."""
    for name in ("one", "two", "three"):
        plugin.client.create(CVUStoredDefinition(name=name))
    plugin.set_run_view("one")
    with suppress(KeyError), plugin.transaction():
        plugin.set_run_view("two")
        raise KeyError
    before = plugin.get_run_view()
    with plugin.transaction():
        plugin.set_run_view("two")
        plugin.set_run_view("three")
    after = plugin.get_run_view()
    assert before is not None
    assert after is not None
    assert (before.name, after.name) == ("one", "three")
