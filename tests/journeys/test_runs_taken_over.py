"""Runs that are stopped in their sleep, and plugin states that are deleted or never made: with real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import PluginRun, PodClient
from holdfast.context import Settings, carry_out
from holdfast.errors import ConflictError, NotFoundError

PLUGINS = '''
import sys

from holdfast import FencedError, PluginConfig, StatefulPlugin

class Steps(StatefulPlugin):
    """Counts to ten; before the step that it is told of it says so and waits."""

    class Config(PluginConfig):
        stop_at: int = -1

    def run(self):
        for step in range(self.state.get("head", 0), 10):
            if step == self.config.stop_at:
                print("at", step, flush=True)
                sys.stdin.readline()
            try:
                self.state.head = step + 1
            except FencedError as exc:
                print("refused:", exc.facts["state"], flush=True)
                raise
        print("head", self.state.head)
'''

SHORT = """
import sys
from holdfast.context import Settings, carry_out
from holdfast.engine import Timing
from holdfast.plugins import source_of

timing = Timing(lease_s=0.3, renew_s=0.1, fence_after_s=20, look_s=0.05)
sys.exit(carry_out(Settings.read(), source_of("plugs:Steps"), config={"stop_at": 4}, timing=timing).exit_code)
"""
"""``holdfast run``, with a short lease."""


@pytest.fixture
def folder(tmp_path: Path, home: Path) -> Path:
    """A folder with the plugin; the home lies in it."""
    (tmp_path / "plugs.py").write_text(PLUGINS, encoding="utf-8")
    return tmp_path


def words_of(*words: str) -> list[str]:
    """Return the command line of ``holdfast WORDS``."""
    return [str(Path(sys.executable).with_name("holdfast")), *words]


def holdfast(folder: Path, *words: str, program: str = "holdfast") -> subprocess.CompletedProcess[str]:
    """Run ``holdfast WORDS`` to its end."""
    return subprocess.run(
        [Path(sys.executable).with_name(program), *words],
        cwd=folder,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start a process that is told over its standard input when to go on; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def at_step_4(process: subprocess.Popen[str]) -> str:
    """Wait until a run stands before its fifth step, and return the run's id."""
    assert process.stdout is not None
    assert process.stdout.readline() == "at 4\n"
    return str(next(run.id for run in runs() if run.status == "started"))


def runs() -> list[PluginRun]:
    """Return the runs of the Pod, oldest write first."""
    with PodClient() as client:
        return [run for run in client.search({"type": "PluginRun"}) if isinstance(run, PluginRun)]


def variables() -> list[dict[str, Any]]:
    """Return the variables of each plugin state that is there."""
    with PodClient() as client:
        return [dict(client.variables(str(each.id))) for each in client.search({"type": "PersistentState"})]


STOP_AT_4 = ("run", "plugs:Steps", "--config", '{"stop_at": 4}')
GO_ON = ("run", "plugs:Steps", "--config", "{}")


@pytest.mark.parametrize("is_retried", [False, True])
def test_a_sleeper_that_was_aborted_is_in_nobodys_way_and_changes_nothing(
    is_retried: bool, folder: Path, start: Start
) -> None:
    """SIGSTOP, ``runs abort --now``, another run, or the very same one, to its end, SIGCONT: its write is refused."""
    sleeper = start(*words_of(*STOP_AT_4))
    run = at_step_4(sleeper)
    sleeper.send_signal(signal.SIGSTOP)

    refused = holdfast(folder, *GO_ON)
    assert refused.returncode == 5
    assert f"is held by run {run!r} for another " in refused.stderr
    assert f"(process {sleeper.pid} on this machine)" in refused.stderr
    assert holdfast(folder, "runs", "abort", run, "--now").returncode == 0
    if is_retried:
        assert holdfast(folder, "runs", "retry", run).returncode == 0

    second = holdfast(folder, *GO_ON)
    assert (second.returncode, second.stdout) == (0, "head 10\n"), second.stderr
    before = [(each.id, each.status, each.error, each.dateServerModified) for each in runs()]
    assert [each[1] for each in before] == (["done"] if is_retried else ["aborted", "done"])

    sleeper.send_signal(signal.SIGCONT)
    out, err = sleeper.communicate("\n", timeout=60)
    assert sleeper.returncode == 5, err
    assert out.startswith("refused: ")
    assert "Traceback" not in err
    assert [(each.id, each.status, each.error, each.dateServerModified) for each in runs()] == before
    assert variables() == [{"head": 10}]


def test_a_sleeper_whose_lease_lapsed_is_taken_over_on_its_own_machine(folder: Path, start: Start) -> None:
    """Nobody aborts it, and its process has the file lock: the next call carries its run on when the lease is over."""
    sleeper = start(sys.executable, "-c", SHORT)
    run = at_step_4(sleeper)
    sleeper.send_signal(signal.SIGSTOP)
    second = holdfast(folder, *GO_ON)
    while second.returncode == 5:  # until the lease lapses
        second = holdfast(folder, *GO_ON)
    assert (second.returncode, second.stdout) == (0, "head 10\n"), second.stderr

    sleeper.send_signal(signal.SIGCONT)
    out, err = sleeper.communicate("\n", timeout=60)
    assert (sleeper.returncode, out.startswith("refused: ")) == (5, True), err
    assert [(each.id, each.status) for each in runs()] == [(run, "done")]
    assert variables() == [{"head": 10}]


def test_what_takes_over_from_a_sleeper_is_not_proven_dead_by_its_end(folder: Path, start: Start) -> None:
    """It works without the file lock: when the sleeper is gone and the lock is free, a third call is refused still."""
    sleeper = start(*words_of(*STOP_AT_4))
    first = at_step_4(sleeper)
    sleeper.send_signal(signal.SIGSTOP)
    assert holdfast(folder, "runs", "abort", first, "--now").returncode == 0
    second = start(*words_of(*STOP_AT_4))
    run = at_step_4(second)
    sleeper.kill()
    sleeper.communicate()

    refused = holdfast(folder, *GO_ON)
    assert (refused.returncode, f"is held by run {run!r}" in refused.stderr) == (5, True), refused.stderr
    assert second.communicate("\n", timeout=60)[0] == "head 10\n"
    assert second.returncode == 0


def test_a_deleted_plugin_state_begins_anew_and_its_runs_are_over(folder: Path, start: Start) -> None:
    """Not while a run holds it. Then the next call finds no variables and no run, and the old run cannot go on."""
    worker = start(*words_of(*STOP_AT_4))
    old = at_step_4(worker)
    with PodClient() as client:
        [state] = client.search({"type": "PersistentState"})
        for held in (state, old):
            with pytest.raises(ConflictError, match=f"is held by run {old!r}"):
                client.delete_items([held])
        worker.kill()
        worker.wait()
        assert holdfast(folder, "state", "set", "plugs:Steps", "head", "5", "--force").returncode == 0
        client.delete_items([state])

    assert holdfast(folder, "state", "get", "plugs:Steps", "head").returncode == 4
    again = holdfast(folder, "--plugin_run_id", old, program="run_plugin")
    assert (again.returncode, "its plugin state was deleted; begin a new run" in again.stderr) == (5, True)
    assert holdfast(folder, "runs", "abort", old).returncode == 0
    assert holdfast(folder, "runs", "retry", old).returncode == 5

    assert holdfast(folder, *GO_ON).stdout == "head 10\n"
    assert sorted(str(each.status) for each in runs()) == ["aborted", "done"]
    assert variables() == [{"head": 10}]


@pytest.mark.parametrize(
    "words, said",
    [
        (("run", "plugs:Steps", "--config", '{"stop": 4}'), "Steps has no setting 'stop'"),
        (("run", "status.json"), "a run begins as "),
        (("run", "config.json"), "Steps has no setting 'stop'"),
        (("state", "set", "plugs:Steps", "", "1"), "'' cannot name a variable: 1 to 1024 characters are allowed"),
        (("state", "set", "plugs:Steps", "x" * 1025, "1"), "cannot name a variable: 1 to 1024 characters are allowed"),
    ],
)
def test_what_is_refused_leaves_no_plugin_state(words: tuple[str, ...], said: str, folder: Path) -> None:
    """Neither a run nor variables that were not written have made one."""
    metadata = {"pluginModule": "plugs", "pluginName": "Steps"}
    (folder / "status.json").write_text(json.dumps({**metadata, "status": "done"}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({**metadata, "config": {"stop": 4}}), encoding="utf-8")

    refused = holdfast(folder, *words)

    assert (refused.returncode in (2, 5), refused.stdout) == (True, "")
    assert said in refused.stderr
    with PodClient() as client:
        assert client.search({"deleted": None}) == []


@pytest.mark.parametrize(
    "program, words",
    [
        ("holdfast", ("run", "plugs:Steps")),
        ("holdfast", ("run", "plugs.py:Steps")),
        ("holdfast", ("--home", "elsewhere", "runs", "list")),
        ("run_plugin", ("--plugin_run_id", "r")),
        ("run_plugin", ("--metadata", "metadata.json")),
    ],
)
def test_a_current_folder_that_was_removed_is_said_to_be_gone(
    program: str, words: tuple[str, ...], folder: Path
) -> None:
    """One sentence and the exit code of what is not there."""
    gone = folder / "gone"
    gone.mkdir()
    script = f"import os, shutil, sys; shutil.rmtree({str(gone)!r}); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", script, str(Path(sys.executable).with_name(program)), *words]
    ended = subprocess.run(command, cwd=gone, capture_output=True, text=True, check=False, timeout=60)
    assert not gone.exists()
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr == "Error: the current folder is gone: change to one that is there\n"


def test_a_run_by_its_id_needs_a_current_folder_to_look_for_its_module(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a program too, what is missing is the folder, and nothing was written."""
    with PodClient() as client:
        client.create(PluginRun(id="r", pluginModule="plugs", pluginName="Steps"))
    gone = folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotFoundError, match="the current folder is gone: change to one that is there"):
        carry_out(Settings.read(), None, run_id="r")
    assert ([each.status for each in runs()], variables()) == (["idle"], [])


def test_many_calls_at_once_begin_one_run(folder: Path, start: Start) -> None:
    """On a fresh machine: one works, the others are refused by name or find the end; one plugin state, nothing lost."""
    calls = [start(*words_of(*GO_ON)) for _ in range(4)]
    said = [call.communicate(timeout=60) for call in calls]
    codes = [call.returncode for call in calls]
    assert set(codes) <= {0, 5}, said
    assert all("head 10" in out for (out, _), code in zip(said, codes, strict=True) if code == 0)
    refused = [err for (_, err), code in zip(said, codes, strict=True) if code == 5]
    assert all("is held by run" in err or "is done and cannot" in err for err in refused), refused
    assert [each.status for each in runs()] == ["done"] * codes.count(0)
    assert variables() == [{"head": 10}]
