"""What authors of plugins get for their tests: a Pod, a clock, a runner, and a death at every write."""

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

from holdfast import (
    ConflictError,
    EverySteps,
    GiveUp,
    InvalidError,
    Item,
    PluginBase,
    PluginConfig,
    RetryLater,
    StatefulPlugin,
)
from holdfast.pod import Pod
from holdfast.runs import Outcome
from holdfast.testing import FakeClock
from holdfast.testing.trials import Trial

Run = Callable[..., Outcome]
Kill = Callable[..., int]


class Step(Item):
    """One step that was taken."""

    number: Optional[int] = None


class Steps(StatefulPlugin):
    """Takes steps, each one transaction of an item and a variable."""

    schema_classes = [Step]

    class Config(PluginConfig):
        """How many."""

        to: int = 3

    def run(self) -> None:
        """Take those that are left."""
        for number in self.track(range(self.state.get("taken", 0) + 1, self.config.to + 1)):
            with self.transaction():
                self.client.create(Step(number))
                self.state.taken = number


class Careless(Steps):
    """The same without transactions: killed between two writes, it takes a step twice."""

    def run(self) -> None:
        """Take those that seem to be left."""
        for number in range(self.state.get("taken", 0) + 1, self.config.to + 1):
            self.client.create(Step(number))
            self.state.taken = number


def numbers(pod: Pod) -> list[int]:
    """Return which steps the Pod holds, each as often as it does."""
    return sorted(step.number for step in pod.search({"type": "Step"}))  # pyright: ignore[reportAttributeAccessIssue]


def check_three(pod: Pod) -> None:
    """See that there are three steps."""
    assert numbers(pod) == [1, 2, 3]


def test_a_plugin_runs_on_the_pod_of_the_test(run_plugin: Run, pod: Pod, clock: FakeClock) -> None:
    """Its run is dated by the clock of the test."""
    clock.advance(1_000)

    outcome = run_plugin(Steps, config={"to": 2})

    assert (outcome.status, outcome.error, outcome.exit_code) == ("done", None, 0)
    assert numbers(pod) == [1, 2]
    [run] = pod.search({"type": "PluginRun"})
    assert run.id == outcome.run
    assert run.dateServerModified is not None
    assert round(run.dateServerModified.timestamp() * 1000) == 1_000_000_001_000


def test_a_second_call_works_on_the_same_plugin_state_or_on_the_one_that_is_named(run_plugin: Run, pod: Pod) -> None:
    """The variables are there; those of another plugin state are not."""
    run_plugin(Steps, config={"to": 2})
    run_plugin(Steps, config={"to": 3})
    run_plugin(Steps, config={"to": 1}, state="other")

    assert numbers(pod) == [1, 1, 2, 3]


def test_an_unfinished_run_is_carried_on_with_its_configuration(run_plugin: Run, pod: Pod) -> None:
    """As on the command line: with ``is_new`` another one begins."""

    class Patient(StatefulPlugin):
        class Config(PluginConfig):
            word: str

        def run(self) -> None:
            self.state.attempts = self.state.get("attempts", 0) + 1
            if self.state.attempts == 1:
                raise RetryLater("wait", after=7)
            self.client.create(Step(self.state.attempts if self.config.word == "first" else -1))

    pod.add_to_schema(Step)
    first = run_plugin(Patient, config={"word": "first"})
    second = run_plugin(Patient)
    third = run_plugin(Patient, config={"word": "other"}, is_new=True)

    assert (first.status, first.retry_after_s, first.exit_code) == ("ready", 7, 75)
    assert second.run == first.run != third.run
    assert numbers(pod) == [-1, 2]


def test_what_a_plugin_raises_is_the_outcome_and_its_traceback_is_logged(
    run_plugin: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """No exception of the plugin comes out of the call."""

    class Broken(PluginBase):
        def run(self) -> None:
            raise KeyError("x")

    outcome = run_plugin(Broken)

    assert (outcome.status, outcome.error, outcome.exit_code) == ("error", "KeyError: 'x'", 7)
    assert 'raise KeyError("x")' in caplog.text


def test_a_plugin_can_be_named_as_on_the_command_line(run_plugin: Run, pod: Pod, tmp_path: Path) -> None:
    """A file and a class; or metadata, whose configuration holds."""
    (tmp_path / "trial_named.py").write_text(
        "from holdfast import Person, StatefulPlugin\n"
        "class Adds(StatefulPlugin):\n"
        "    def __init__(self, *args, name='Ada', **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        self.name = name\n"
        "    def run(self):\n"
        "        self.client.create(Person(displayName=self.name))\n"
    )
    (tmp_path / "trial_named.json").write_text(
        '{"pluginModule": "trial_named", "pluginName": "Adds", "config": {"name": "Bob"}}'
    )

    assert run_plugin(f"{tmp_path}/trial_named.py:Adds").status == "done"
    assert run_plugin(f"{tmp_path}/trial_named.json").status == "done"
    assert [person.displayName for person in pod.search({"type": "Person"})] == ["Ada", "Bob"]  # pyright: ignore[reportAttributeAccessIssue]
    assert {state.pluginId for state in pod.search({"type": "PersistentState"})} == {"trial_named:Adds"}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("config", [{"to": Path("x")}, {"to": "many"}, {"two": 1}])
def test_a_configuration_that_no_run_can_be_begun_with_is_refused(
    run_plugin: Run, pod: Pod, config: dict[str, Any]
) -> None:
    """What is no JSON, what does not fit, what is unknown: nothing was begun."""
    with pytest.raises(InvalidError):
        run_plugin(Steps, config=config)
    assert pod.search({"type": "PluginRun"}) == []


def test_a_run_that_finds_its_plugin_state_held_is_refused_before_it_is_begun(run_plugin: Run, pod: Pod) -> None:
    """As an application refuses it: nothing is left of it."""
    refused: list[str] = []

    class Nested(StatefulPlugin):
        def run(self) -> None:
            with pytest.raises(ConflictError) as caught:
                run_plugin(Nested, is_new=True)
            refused.append(str(caught.value))

    outcome = run_plugin(Nested)

    assert (outcome.status, len(refused)) == ("done", 1)
    assert f"is held by run '{outcome.run}'" in refused[0]
    assert len(pod.search({"type": "PluginRun", "deleted": None})) == 1


def test_a_plugin_that_carries_on_passes_a_death_at_every_write(kill_at_every_write: Kill) -> None:
    """Made, claimed, declared, three steps, ended: before and after each of them, and nothing is there twice."""
    assert kill_at_every_write(Steps, check=check_three) >= 2 * (2 + 3 + 1)


def test_a_plugin_that_does_a_step_twice_is_found_out_with_the_write_at_which_it_was_killed(
    kill_at_every_write: Kill,
) -> None:
    """What an author sees is his own assertion, and where to look: begun, claimed, declared, a step, and not noted."""
    with pytest.raises(AssertionError, match=r"\[1, 1, 2, 3\]") as caught:
        kill_at_every_write(Careless, check=check_three)

    assert caught.value.__notes__ == ["This run was killed before its write 6."]


def test_a_run_that_is_killed_writes_nothing_more_whatever_its_plugin_catches(kill_at_every_write: Kill) -> None:
    """Not in `finally`, not after `except BaseException`, not in a thread that is left behind."""

    class Stubborn(Steps):
        def run(self) -> None:
            thread = threading.Thread(target=self._write, args=("thread",))
            try:
                try:
                    self._write("first")
                except BaseException:
                    self._write("caught")
                    raise
                finally:
                    self._write("left")
            finally:
                thread.start()
                thread.join()

        def _write(self, name: str) -> None:
            self.state[name] = True

    def check(pod: Pod) -> None:
        [state] = pod.search({"type": "PersistentState"})
        assert dict(pod.variables(str(state.id))) == {"first": True, "left": True, "thread": True}

    assert kill_at_every_write(Stubborn, check=check) >= 2 * (2 + 3 + 1)


def test_snapshots_are_restored_after_a_death(kill_at_every_write: Kill) -> None:
    """What is registered goes on from the last snapshot that the plugin state points to."""

    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def get_state(self) -> dict[str, int]:
            return {"count": self.count}

        def set_state(self, tree: dict[str, int]) -> None:
            self.count = tree["count"]

    class Counts(StatefulPlugin):
        condition = EverySteps(1)

        def setup(self) -> None:
            self.counter = Counter()
            self.snapshots.register("counter", self.counter)

        def run(self) -> None:
            for _ in self.track(range(self.counter.count, 3)):
                self.counter.count += 1
            self.state.count = self.counter.count

    def check(pod: Pod) -> None:
        [state] = pod.search({"type": "PersistentState"})
        assert pod.variables(str(state.id))["count"] == 3

    assert kill_at_every_write(Counts, check=check) > 0


def test_an_async_plugin_and_one_that_asks_to_wait_are_brought_to_their_end(
    kill_at_every_write: Kill, clock: FakeClock
) -> None:
    """The clock goes on by what was asked for; nobody waits."""

    class Waits(Steps):
        async def run(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            if "asked" not in self.state:
                self.state.asked = True
                raise RetryLater("later", after=3600)
            super().run()

    before = clock.now_ms()

    kill_at_every_write(Waits, check=check_three)

    assert clock.now_ms() - before >= 3_600_000


@pytest.mark.parametrize("raised", [GiveUp("no"), RetryLater("for ever")])
def test_a_run_that_does_not_come_to_its_end_is_an_assertion(kill_at_every_write: Kill, raised: Exception) -> None:
    """One that fails, and one that asks to be run again and again."""

    class Endless(StatefulPlugin):
        def run(self) -> None:
            raise raised

    with pytest.raises(AssertionError, match="did not come to its end"):
        kill_at_every_write(Endless, check=check_three)


def test_each_run_that_is_killed_begins_with_what_was_prepared_for_it(kill_at_every_write: Kill) -> None:
    """And with nothing else."""

    class Doubles(Steps):
        def run(self) -> None:
            with self.transaction():
                if not self.state.done:
                    [step] = self.client.search({"type": "Step"})
                    self.client.create(Step(step.number * 2))  # pyright: ignore[reportAttributeAccessIssue]
                self.state.done = True

    def prepare(pod: Pod) -> None:
        pod.add_to_schema(Step)
        pod.create(Step(21))

    def check(pod: Pod) -> None:
        assert numbers(pod) == [21, 42]

    assert kill_at_every_write(Doubles, prepare=prepare, check=check) > 0


def test_deaths_are_not_logged_and_what_was_switched_off_before_stays_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A test that fails shows what failed, not a hundred tracebacks of deaths."""
    before = logging.root.manager.disable

    Trial(tmp_path).kill_at_every_write(Steps, check=check_three)

    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert logging.root.manager.disable == before


AUTHORS = """
import sys

def test_that_needs_nothing():
    assert "pydantic" not in sys.modules

def test_with_fixtures(run_plugin, pod, clock, kill_at_every_write):
    assert "pydantic" in sys.modules
    assert pod.search({}) == []
"""

OWN = """
import pytest

@pytest.fixture
def clock():
    return "mine"

def test_with_a_clock_of_its_own(clock, pod, run_plugin):
    assert clock == "mine"
    assert pod.search({}) == []
"""


def test_a_project_that_uses_no_fixture_loads_nothing_and_its_own_fixtures_win(tmp_path: Path) -> None:
    """With warnings as errors, in a project of its own; the plugin is found by its entry point."""
    (tmp_path / "test_authors.py").write_text(AUTHORS)
    (tmp_path / "test_own.py").write_text(OWN)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:randomly", "-p", "no:xdist"]
    # Whatever else is installed here is not to be judged.
    ran = subprocess.run(
        [*command, "--rootdir", tmp_path, tmp_path / "test_authors.py", tmp_path / "test_own.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout


def test_the_tests_on_the_page_for_authors_pass_and_find_what_the_page_says_they_find(tmp_path: Path) -> None:
    """As written they pass; without the transaction a word is there twice, as the page says."""
    page = Path(__file__).resolve().parents[2] / "docs" / "writing-plugins.md"
    for name, code in re.findall(r"(?ms)^```python\n# (\w+\.py)\n(.*?)^```$", page.read_text(encoding="utf-8")):
        (tmp_path / name).write_text(code)
    plugin = tmp_path / "my_notes.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:xdist", "-p", "no:cacheprovider"]

    whole = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    plugin.write_text(plugin.read_text().replace("with self.transaction()", "if True"))
    without = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "2 passed" in whole.stdout, whole.stdout
    assert "1 failed, 1 passed" in without.stdout
    assert "AssertionError: assert ['a', 'a', 'b', 'c'] == ['a', 'b', 'c']" in without.stdout
    assert "This run was killed before its write " in without.stdout
