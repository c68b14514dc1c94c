"""A stateful plugin runs, is killed, stopped, aborted or overtaken, and carries on from where it was."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import PluginRun, PodClient

PLUGINS = '''
import os, select, sys, time

from holdfast import Person, PluginConfig, StatefulPlugin

def told(word):
    """Say where we are, and wait to be told to go on."""
    print(word, flush=True)
    return sys.stdin.readline().strip()

class Steps(StatefulPlugin):
    """Takes ten steps, each one transaction of an item and a variable; stops before the step that it is told of."""

    class Config(PluginConfig):
        stop_at: int = -1
        to: int = 10

    def run(self):
        for step in self.track(range(self.state.get("head", 0), self.config.to)):
            if step == self.config.stop_at:
                told(f"at {step}")
            with self.transaction():
                self.client.create(Person(displayName=str(step)))
                self.state.head = step + 1
        print("head", self.state.head)

class Busy(StatefulPlugin):
    def run(self):
        self.state.begun = True
        print("busy", flush=True)
        while True:
            try:
                pass
            except Exception:
                pass

class Blocked(StatefulPlugin):
    def run(self):
        print("blocked", flush=True)
        select.select([], [], [])

class Stubborn(StatefulPlugin):
    def run(self):
        print("stubborn", flush=True)
        while True:
            try:
                time.sleep(0.001)
                self.safe_point()
            except BaseException:
                pass

class Patient(StatefulPlugin):
    def run(self):
        print("patient", flush=True)
        while True:
            self.safe_point()
            time.sleep(0.001)
'''

SHORT = """
import sys
from pathlib import Path
from holdfast.context import Settings, carry_out
from holdfast.engine import Timing
from holdfast.plugins import source_of

timing = Timing(lease_s=30, renew_s=1, fence_after_s=20, look_s=0.05, grace_s=0.3)
outcome = carry_out(Settings.read(), source_of(sys.argv[1]), owns_process=True, timing=timing)
print(outcome.status, outcome.error)
sys.exit(outcome.exit_code)
"""
"""``holdfast run``, with less patience."""


class Running:
    """A process that runs a plugin, told over its standard input when to go on."""

    def __init__(self, folder: Path, words: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, "HOLDFAST_HOME": str(folder / "home"), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        """Return the next line of its standard output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self, word: str = "") -> tuple[int, str, str]:
        """Tell it to go on, and return its exit code and what else it printed."""
        out, err = self.process.communicate(f"{word}\n", timeout=60)
        return self.process.returncode, out, err


Start = Callable[..., Running]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the plugins."""
    (tmp_path / "plugs.py").write_text(PLUGINS, encoding="utf-8")
    return tmp_path


@pytest.fixture
def start(folder: Path, home: Path) -> Iterator[Start]:
    """Start ``holdfast WORDS``, or with ``impatient`` set the same with short patience; all are ended with the test."""
    started: list[Running] = []

    def start(*words: str, program: str | None = None, **env: str) -> Running:
        script = Path(sys.executable).with_name("holdfast")
        command = [str(script)] if program is None else [sys.executable, "-c", program]
        started.append(Running(folder, [*command, *words], env))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


def holdfast(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``holdfast WORDS`` to its end."""
    return subprocess.run(
        [Path(sys.executable).with_name("holdfast"), *words],
        cwd=folder,
        env={**os.environ, "HOLDFAST_HOME": str(folder / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def runs() -> list[PluginRun]:
    """Return the runs of the Pod, oldest write first."""
    with PodClient() as client:
        return [run for run in client.search({"type": "PluginRun"}) if isinstance(run, PluginRun)]


def people() -> list[str]:
    """Return what the steps have made, in order."""
    with PodClient() as client:
        found: list[Any] = client.search({"type": "Person"})
    return [person.displayName for person in found]


STEPS = [str(step) for step in range(10)]


def test_a_killed_run_is_carried_on_by_the_next_call(folder: Path, start: Start) -> None:
    """SIGKILL in the middle: no step twice, none left out, the same run, and no waiting for its lease."""
    first = start("run", "plugs.py:Steps", "--config", '{"stop_at": 4}')
    assert first.said() == "at 4"
    first.process.kill()
    first.process.wait()
    [run] = runs()
    assert (run.status, people()) == ("started", STEPS[:4])

    second = holdfast(folder, "run", "plugs.py:Steps", "--config", "{}")

    assert (second.returncode, second.stdout) == (0, "head 10\n"), second.stderr
    assert people() == STEPS
    assert [(each.id, each.status, each.progress) for each in runs()] == [(run.id, "done", 1.0)]


def test_a_run_that_is_done_is_followed_by_a_new_one_on_the_same_state(folder: Path, start: Start) -> None:
    """The second call begins a second run, and finds what the first one saved."""
    assert holdfast(folder, "run", "plugs:Steps").returncode == 0
    second = holdfast(folder, "run", "plugs:Steps", "--config", '{"to": 12}')

    assert second.stdout == "head 12\n"
    assert [run.status for run in runs()] == ["done", "done"]
    assert people() == [*STEPS, "10", "11"]


def test_new_leaves_the_unfinished_run_alone(folder: Path, start: Start) -> None:
    """--new begins another run on the plugin state, which the dead one does not hold."""
    first = start("run", "plugs:Steps", "--config", '{"stop_at": 4}')
    first.said()
    first.process.kill()
    first.process.wait()

    assert holdfast(folder, "run", "plugs:Steps", "--new").stdout == "head 10\n"
    assert sorted(str(run.status) for run in runs()) == ["done", "started"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_step_end_and_the_next_call_go_on(
    number: signal.Signals, code: int, folder: Path, start: Start
) -> None:
    """The step is saved, the run is ready, the exit code names the signal."""
    first = start("run", "plugs:Steps", "--config", '{"stop_at": 4}')
    first.said()
    first.process.send_signal(number)

    ended, out, err = first.end()

    assert (ended, out) == (code, ""), err
    assert "Traceback" not in err
    [run] = runs()
    assert (run.status, people()) == ("ready", STEPS[:5])
    assert holdfast(folder, "run", "plugs:Steps", "--config", "{}").stdout == "head 10\n"
    assert people() == STEPS


@pytest.mark.parametrize("name", ["Busy", "Blocked"])
def test_a_plugin_without_a_safe_point_is_interrupted_by_a_second_signal(name: str, start: Start) -> None:
    """At once, wherever it is; what it had saved stays."""
    running = start("run", f"plugs:{name}")
    assert running.said() == name.lower()
    running.process.send_signal(signal.SIGTERM)
    code = None
    while code is None:  # the first may not have been taken yet when the second comes
        running.process.send_signal(signal.SIGTERM)
        try:
            code = running.process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue

    assert code == 143
    assert [run.status for run in runs()] == ["ready"]


@pytest.mark.parametrize("name", ["Busy", "Blocked"])
def test_a_plugin_without_a_safe_point_is_interrupted_after_a_while(name: str, start: Start) -> None:
    """One signal is enough in the end."""
    running = start(f"plugs:{name}", program=SHORT)
    running.said()
    running.process.send_signal(signal.SIGTERM)

    code, out, err = running.end()

    assert (code, out) == (143, "ready None\n"), err


def test_a_plugin_that_shrugs_off_everything_ends_with_its_process(start: Start, folder: Path) -> None:
    """It stops at nothing, so the process is ended; the run is not, and can be carried on at once."""
    running = start("plugs:Stubborn", program=SHORT)
    running.said()
    running.process.send_signal(signal.SIGTERM)

    assert running.end()[0] == 143
    assert [run.status for run in runs()] == ["started"]
    assert start("run", "plugs:Stubborn").said() == "stubborn"


@pytest.mark.parametrize("name", ["Patient", "Busy", "Blocked", "Stubborn"])
def test_an_abort_stops_any_plugin(name: str, folder: Path, start: Start) -> None:
    """Asked, interrupted, or ended with its process: the run is aborted, and its process is gone."""
    running = start(f"plugs:{name}", program=SHORT)
    assert running.said() == name.lower()
    [run] = runs()

    aborted = holdfast(folder, "runs", "abort", str(run.id))

    assert aborted.returncode == 0, aborted.stderr
    assert aborted.stdout.startswith(f"Run {run.id} is aborted")
    assert running.end()[0] == 5
    assert [each.status for each in runs()] == ["aborted"]


def test_an_abort_that_does_not_wait_fences_the_run(folder: Path, start: Start) -> None:
    """--now: from that moment nothing that the plugin writes is accepted; it is told, and leaves."""
    running = start("run", "plugs:Steps", "--config", '{"stop_at": 4}')
    running.said()
    [run] = runs()

    aborted = holdfast(folder, "runs", "abort", str(run.id), "--now")
    assert aborted.returncode == 0, aborted.stderr
    code, out, err = running.end()

    assert (code, out) == (5, "")
    assert "was taken over" in err
    assert "Traceback" not in err
    assert people() == STEPS[:4]
    assert [each.status for each in runs()] == ["aborted"]


def test_an_aborted_run_can_be_retried_and_carries_on(folder: Path, start: Start) -> None:
    """From what it had saved; while it is aborted, the next call begins another run instead."""
    running = start("run", "plugs:Steps", "--config", '{"stop_at": 4}')
    running.said()
    [run] = runs()
    running.process.kill()
    running.process.wait()
    assert holdfast(folder, "runs", "abort", str(run.id)).returncode == 0  # proven dead: nobody is waited for
    assert holdfast(folder, "runs", "abort", str(run.id)).returncode == 0

    assert holdfast(folder, "runs", "retry", str(run.id)).returncode == 0
    second = holdfast(folder, "run", "plugs:Steps", "--config", "{}")

    assert second.stdout == "head 10\n"
    assert [(each.id, each.status) for each in runs()] == [(run.id, "done")]
    retried = holdfast(folder, "runs", "retry", str(run.id))
    assert (retried.returncode, "is done" in retried.stderr) == (5, True)
    assert holdfast(folder, "runs", "abort", str(run.id)).returncode == 5
    assert holdfast(folder, "runs", "abort", "absent").returncode == 4


def test_a_second_run_on_one_plugin_state_is_refused_and_names_the_first(folder: Path, start: Start) -> None:
    """Nothing of it stays in the Pod; the first one goes on as if nothing had been."""
    first = start("run", "plugs:Steps", "--config", '{"stop_at": 4}')
    first.said()
    [run] = runs()

    for words in (["--new"], []):  # another run, and the very same one
        second = holdfast(folder, "run", "plugs:Steps", "--config", "{}", *words)
        assert (second.returncode, second.stdout) == (5, "")
        assert f"is held by run {run.id!r}" in second.stderr
        assert [(each.id, each.status) for each in runs()] == [(run.id, "started")]

    assert first.end()[:2] == (0, "head 10\n")
    assert people() == STEPS


def test_two_plugin_states_are_worked_on_at_once_and_do_not_see_each_other(folder: Path, start: Start) -> None:
    """Each has variables of its own."""
    one = start("run", "plugs:Steps", "--config", '{"stop_at": 4}')
    one.said()
    two = start("run", "plugs:Steps", "--state", "work", "--config", '{"stop_at": 2, "to": 3}')
    assert two.said() == "at 2"

    assert holdfast(folder, "state", "get", "plugs:Steps", "head").stdout == "4\n"
    assert holdfast(folder, "state", "get", "plugs", "head").stdout == "4\n"
    assert holdfast(folder, "state", "get", "plug", "head").returncode == 2
    assert holdfast(folder, "state", "get", "plugs:Steps", "head", "--state", "work").stdout == "2\n"
    assert two.end()[:2] == (0, "head 3\n")
    assert one.end()[:2] == (0, "head 10\n")


OTHER_MACHINE = """
import sys
from pathlib import Path
from holdfast.context import Settings, unlock
from holdfast.engine import Runner, Timing, continue_run, find_unfinished, get_state
from holdfast.errors import ConflictError
from holdfast.pod import Pod
from holdfast.plugins import source_of
from holdfast.sql import SqliteStore

_, plugin, machine, config, lease_s = sys.argv
place = unlock(Settings.read())
source = source_of(plugin)
timing = Timing(lease_s=float(lease_s), renew_s=float(lease_s) / 4, look_s=0.05, grace_s=0.3)
with Pod(SqliteStore(*place)) as client:
    run = find_unfinished(client, get_state(client, source.plugin_id))
    run, state = continue_run(client, run.id)
runner = Runner(lambda: SqliteStore(*place), locks=Path(machine), owns_process=True, timing=timing)
try:
    outcome = runner.drive(source.load(), run, state, eval(config))
except ConflictError as exc:
    sys.exit(exc.exit_code)
print(outcome.status, outcome.error)
sys.exit(outcome.exit_code)
"""
"""Carries on the unfinished run of a plugin, with the lock files of another machine."""


def test_a_runner_that_slept_past_its_lease_changes_nothing_when_it_wakes(folder: Path, start: Start) -> None:
    """SIGSTOP, another takes over and ends the run, SIGCONT: the late write is refused, and the plugin is told."""
    with PodClient() as client:
        from holdfast.engine import begin_run, get_state

        begin_run(client, get_state(client, "plugs:Steps"), {"pluginModule": "plugs", "pluginName": "Steps"})
    first = start("plugs:Steps", "machine-1", '{"stop_at": 4}', "0.4", program=OTHER_MACHINE)
    assert first.said() == "at 4"
    first.process.send_signal(signal.SIGSTOP)
    code = 5
    while code == 5:  # as long as the lease of the sleeper lasts, it is refused
        second = start("plugs:Steps", "machine-2", "{}", "60", program=OTHER_MACHINE)
        code, out, err = second.end()
    assert (code, out) == (0, "head 10\ndone None\n"), err

    first.process.send_signal(signal.SIGCONT)
    code, out, err = first.end()

    assert code == 5, err
    assert out.startswith("None ")
    assert people() == STEPS
    assert [run.status for run in runs()] == ["done"]


def test_the_owner_edits_variables_while_no_run_has_them(folder: Path, start: Start) -> None:
    """Else a conflict that names the run, or --force, which ends its right to write."""
    running = start("run", "plugs:Steps", "--config", '{"stop_at": 4}')
    running.said()
    [run] = runs()

    refused = holdfast(folder, "state", "set", "plugs:Steps", "head", "8")
    assert (refused.returncode, f"is held by run {run.id!r}" in refused.stderr) == (5, True)
    assert holdfast(folder, "state", "set", "plugs:Steps", "head", "8", "--force").returncode == 0
    assert running.end()[0] == 5

    assert holdfast(folder, "state", "get", "plugs:Steps", "head").stdout == "8\n"
    second = holdfast(folder, "run", "plugs:Steps", "--config", "{}")
    assert (second.returncode, second.stdout) == (0, "head 10\n"), second.stderr
    assert people() == [*STEPS[:4], "8", "9"]


def test_variables_are_exported_and_imported(folder: Path, home: Path) -> None:
    """One JSON document for all plugins; a plugin that has never run can be given some."""
    document = '{"plugs:Steps": {"head": 8}, "plugs:Steps/once": {"greeting": "\\"sent\\""}}'
    (folder / "state.json").write_text(document, encoding="utf-8")
    with PodClient():
        pass

    assert holdfast(folder, "state", "import", "state.json").returncode == 0

    assert holdfast(folder, "state", "list").stdout == (
        'namespace\tvariable\tvalue\nplugs:Steps\thead\t8\nplugs:Steps/once\tgreeting\t"sent"\n'
    )
    assert holdfast(folder, "state", "export", "plugs:Steps").stdout == (
        '{\n    "plugs:Steps": {\n        "head": 8\n    }\n}\n'
    )
    assert holdfast(folder, "state", "delete", "plugs:Steps").returncode == 0
    assert holdfast(folder, "state", "list", "plugs:Steps").returncode == 4
    assert holdfast(folder, "run", "plugs:Steps", "--config", '{"to": 1}').stdout == "head 1\n"


def test_runs_are_listed_and_shown(folder: Path, start: Start) -> None:
    """What has been is a line each; one that works says so, and where its log is."""
    assert holdfast(folder, "runs", "list").returncode == 4  # nothing is made where nothing is
    assert holdfast(folder, "run", "plugs:Steps").returncode == 0
    running = start("run", "plugs:Patient")
    running.said()
    ids = {str(run.pluginName): str(run.id) for run in runs()}

    listed = [line.split("\t")[:5] for line in holdfast(folder, "runs", "list").stdout.splitlines()]
    assert listed == [
        ["id", "plugin", "state", "status", "progress"],
        [ids["Patient"], "plugs:Patient", "default", "started", ""],
        [ids["Steps"], "plugs:Steps", "default", "done", "1.0"],
    ]
    unfinished = holdfast(folder, "runs", "list", "--unfinished").stdout.splitlines()
    assert [line.partition("\t")[0] for line in unfinished] == ["id", ids["Patient"]]
    shown = dict(line.split("\t") for line in holdfast(folder, "runs", "show", ids["Patient"]).stdout.splitlines())
    assert shown["status"] == "started"
    assert 0 < int(shown["lease_left_s"]) <= 60
    assert Path(shown["log"]) == folder / "home" / "runs" / f"{ids['Patient']}.log"
    assert holdfast(folder, "runs", "logs", "../keys").returncode == 4
    last = holdfast(folder, "runs", "logs", ids["Steps"], "--lines", "1").stdout
    assert "run.ended" in last
    assert last.count("\n") == 1
