"""Seed 000, stateful plugins: its example, with the import lines changed and nothing else."""

from pathlib import Path
from typing import Any

import pytest

EXAMPLE = """
from holdfast import RUN_STARTED, CVUStoredDefinition, PluginRun, PodClient, StatefulPlugin, register_base_schemas


class MyStatefulPlugin(StatefulPlugin):

    def __init__(self, runId=None, **kwargs):
        super().__init__(runId=runId, **kwargs)

    def run(self):
        print("Running plugin")
        pass

    def add_to_schema(self):
        print("Adding schema")
        pass


# prepare
client = PodClient()
register_base_schemas(client)

# create a run
run = PluginRun(containerImage="stateful_plugin", pluginModule="StatefulPlugin", pluginName="stateful_plugin")
client.create(run)

# test the run states
stateful = MyStatefulPlugin(runId=run.id)
stateful.started(client)
assert stateful._get_run_state(client) == RUN_STARTED

# test run views
view = CVUStoredDefinition(name="test-view")
client.create(view)
assert stateful._set_run_view(client, "non-existent-view") == False
assert stateful._set_run_view(client, "test-view") == True
assert stateful._get_run_view(client, run).name == 'test-view'
"""


@pytest.fixture
def names(home: Path) -> Any:
    """Return what the example has made."""
    found: dict[str, Any] = {}
    exec(EXAMPLE, found)
    yield found
    found["client"].close()


def test_the_example_holds_on_a_fresh_machine(names: dict[str, Any], home: Path) -> None:
    """Each of its assertions, on a Pod that its second line has made."""
    assert home.is_dir()
    assert names["stateful"]._get_run_state(names["client"]) == "started"


def test_a_view_is_replaced_and_not_added_to(names: dict[str, Any]) -> None:
    """A run has one view: the one that was set last."""
    client, stateful, run = names["client"], names["stateful"], names["run"]
    client.create(names["CVUStoredDefinition"](name="second-view"))

    assert stateful._set_run_view(client, "second-view") is True
    assert stateful._get_run_view(client, run).name == "second-view"
    assert [edge.name for edge in client.get_edges(run)] == ["view"]


def test_persistent_state_has_the_properties_of_the_seed(home: Path) -> None:
    """`pluginId`, `lastState`, `account` and `view`, as the signature in the seed says."""
    from holdfast import Account, CVUStoredDefinition, PersistentState

    account, view = Account(service="mail"), CVUStoredDefinition(name="v")
    state = PersistentState(pluginId="p", lastState="started", account=[account], view=[view])

    assert (state.pluginId, state.lastState, state.account, state.view) == ("p", "started", [account], [view])
