"""How a plugin is constructed and configured, without a process of its own."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast import Account, GiveUp, InvalidError, NotFoundError, PersistentState, PluginBase, PluginConfig, PluginRun
from holdfast.plugins import RetryLater, StatefulPlugin, arguments_from
from holdfast.pod import Pod
from holdfast.testing import MemoryStore


class Plain(PluginBase):
    """A plugin with arguments of its own."""

    def __init__(self, folder: Path, since: date = date(2020, 1, 1), *, size: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder, self.since, self.size = folder, since, size


class Formed(StatefulPlugin):
    """A plugin with a form."""

    class Config(PluginConfig):
        """Its form."""

        size: int
        name: str = "default"


def test_a_configuration_is_fitted_to_the_annotations() -> None:
    """Text becomes a path, a date, a number, as the constructor says."""
    found = arguments_from(Plain, {"folder": "a/b", "since": "2024-02-29", "size": "7"})

    assert found == {"folder": Path("a/b"), "since": date(2024, 2, 29), "size": 7}


@pytest.mark.parametrize(
    "cls, config, message",
    [
        (Plain, {}, "Plain needs a setting 'folder'"),
        (Plain, {"folder": "a", "sise": 1}, "Plain has no setting 'sise'; it has folder, since, size"),
        (Plain, {"folder": "a", "size": "big"}, "setting 'size' of Plain cannot be of type str: "),
        (Plain, {"folder": "a", "pluginRun": 1}, "Plain has no setting 'pluginRun'; "),
        (Formed, {"size": 1, "nmae": 1}, "Formed has no setting 'nmae'; it has size, name"),
        (Formed, {"size": "big"}, "setting 'size' of Formed cannot be of type str: "),
        (Formed, {}, "Formed needs a setting 'size'"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(cls: type[PluginBase], config: dict[str, Any], message: str) -> None:
    """Unknown, missing, or of the wrong kind; and nobody may set what the runner gives."""
    with pytest.raises(InvalidError) as raised:
        arguments_from(cls, config)

    assert str(raised.value).startswith(message)


def test_left_over_keywords_are_an_error() -> None:
    """A misspelt keyword is not ignored, with a form and without."""
    with pytest.raises(InvalidError, match="Plain has no setting 'sise'; it has folder, since, size"):
        Plain(Path("a"), sise=1, pluginRun=PluginRun())
    with pytest.raises(InvalidError, match="Formed has no setting 'sise'"):
        Formed(sise=1, size=1, pluginRun=PluginRun())


def test_a_form_becomes_the_frozen_config() -> None:
    """`self.config`, with its defaults."""
    plugin = Formed(pluginRun=PluginRun(), size=7)

    assert plugin.config == Formed.Config(size=7, name="default")


def test_a_run_may_be_named_or_given_but_not_two_of_them() -> None:
    """`runId` and `pluginRun` must agree; either silences the warning."""
    run = PluginRun(id="r1")

    assert StatefulPlugin(runId="r1", pluginRun=run).runId == "r1"
    assert StatefulPlugin(runId="r1").runId == "r1"
    assert StatefulPlugin("r1", PersistentState(id="s1")).runId == "r1"
    with pytest.raises(InvalidError, match="runId 'r2' and pluginRun 'r1' name two different runs"):
        StatefulPlugin(runId="r2", pluginRun=run)
    with pytest.warns(RuntimeWarning, match="StatefulPlugin was made without a run"):
        StatefulPlugin()


def test_a_plugin_without_a_run_method_says_so() -> None:
    """Every subclass has its own."""
    with pytest.raises(NotImplementedError, match="PluginBase has no run"):
        PluginBase(pluginRun=PluginRun()).run()


@pytest.mark.parametrize("after, seconds", [(None, None), (0, 0), (2.5, 2.5), (timedelta(minutes=1), 60.0)])
def test_retry_later_says_when(after: Any, seconds: float | None) -> None:
    """In seconds, or as a timedelta."""
    signal = RetryLater("away", after=after)

    assert (signal.after_s, signal.reason) == (seconds, "away")


@pytest.mark.parametrize("after", [-1, float("nan"), timedelta(days=367)])
def test_retry_later_refuses_what_is_no_wait(after: Any) -> None:
    """The error is the author's, not a wait for ever."""
    with pytest.raises(InvalidError, match="cannot be retried after"):
        RetryLater(after=after)


def test_signals_of_an_author_are_exceptions_like_any_other() -> None:
    """They can be caught and chained."""
    assert issubclass(GiveUp, Exception)
    assert issubclass(RetryLater, Exception)


class Once(StatefulPlugin):
    """A plugin that does something once."""


@pytest.fixture
def pod() -> Pod:
    """A Pod with a run on a plugin state, and an account."""
    pod = Pod(MemoryStore())
    state, account = PersistentState(id="s1"), Account(service="mail", id="a1")
    pod.bulk_action([state, account, PluginRun(id="r1", pluginState=[state], account=[account])])
    return pod


def test_once_calls_its_function_once_in_the_life_of_the_plugin_state(pod: Pod) -> None:
    """The result is remembered, whichever run asks, and is what JSON makes of it."""
    calls: list[int] = []

    def effect() -> dict[str, Any]:
        calls.append(1)
        return {"n": 1, "list": [1, None]}

    first = Once("r1", client=pod).once("k", effect)
    again = Once("r1", client=pod).once("k", effect)

    assert first == again == {"n": 1, "list": [1, None]}
    assert calls == [1]


def test_a_stateful_plugin_finds_the_plugin_state_of_its_run(pod: Pod) -> None:
    """By the run's edge; variables that were written are there for the next one."""
    Once("r1", client=pod).state.cursor = 7

    assert Once("r1", client=pod).state.cursor == 7
    assert dict(pod.variables("s1")) == {"cursor": 7}


def test_a_transaction_is_all_or_nothing(pod: Pod) -> None:
    """Items and variables of a block that raises are not there; inside it the plugin sees its own variables."""
    plugin = Once("r1", client=pod)
    plugin.state.cursor = 1

    def fail() -> None:
        with plugin.transaction():
            plugin.state.cursor = 2
            plugin.client.create(Account(service="other"))
            assert plugin.state.cursor == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert plugin.state.cursor == 1
    assert len(pod.search({"type": "Account"})) == 1


def test_account_and_views_are_those_of_the_run(pod: Pod) -> None:
    """None until there is one; an unknown view is an error, but for the call of the seed."""
    plugin = Once("r1", client=pod)
    account = plugin.get_account()

    assert account is not None
    assert account.service == "mail"
    assert plugin.get_run_view() is None
    with pytest.raises(NotFoundError, match="there is no view 'absent'"):
        plugin.set_run_view("absent")


def test_track_yields_each_step_without_a_runner(pod: Pod) -> None:
    """In a test or a notebook nothing drives it, and nothing stops it."""
    assert list(Once("r1", client=pod).track(iter("abc"))) == ["a", "b", "c"]
