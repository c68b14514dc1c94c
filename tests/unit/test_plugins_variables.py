"""What a plugin is told is saved is what it reads, whichever thread asks, and what it did once it did once."""

import threading
from collections.abc import Mapping

import pytest

from holdfast.items import PersistentState, PluginRun
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
