"""Runs that a server launches as processes, looks after and cleans up: killed, stopped, restarted, and never twice.

Whatever happens, nothing of a launch is left when its run is over: `supervised` says so at the end of each test.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from holdfast import PluginRun, PodClient
from holdfast.errors import UnavailableError
from holdfast.remote import RemoteStore
from tests.components.servers import OWNER, Process
from tests.components.supervised import Supervised, supervised, wait_until

SOON = 30
"""A lease, in seconds, that no restart of a server outlasts."""


@contextmanager
def killing(*processes: subprocess.Popen[Any]) -> Iterator[None]:
    """Let none of them outlive the block."""
    try:
        yield
    finally:
        for each in processes:
            each.kill()
            each.wait()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """A server that launches what is created, with no other run than that of the test."""
    with supervised(tmp_path_factory.mktemp("here") / "home", lease_s=SOON) as here:
        yield here


is_here = pytest.mark.xdist_group("supervised-here")


@is_here
def test_a_run_that_is_created_over_the_api_is_begun_and_its_log_is_read_while_it_goes_on(here: Supervised) -> None:
    """Nobody but the server does anything; variables, items and the whole log are in the Pod when it is done."""
    with PodClient(url=here.server.url, owner_key=OWNER.owner_key, database_key=OWNER.database_key) as client:
        config = json.dumps({"hold_at": 2, "last": 4})
        made = PluginRun(
            pluginModule="bots", pluginName="Steps", containerImage="bot", config=config, writes='["Step"]'
        )
        run = str(client.create(made).id)
        here.wait_for_note(run, "holds")
        command = here.words("runs", "logs", run, "--follow")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as logs, killing(logs):
            assert logs.stdout is not None
            steps = (line for line in logs.stdout if line.startswith("step "))
            assert [next(steps), next(steps)] == ["step 0\n", "step 1\n"]
            assert here.row(run).properties["status"] == "started"
            here.go(run)
            assert [next(steps), next(steps)] == ["step 2\n", "step 3\n"]
        here.wait(run, "done")
        wait_until(lambda: not here.left(run))
        assert [line for line in here.log(run).splitlines() if "step" in line] == [f"step {n}" for n in range(4)]
        assert here.steps(run) == [0, 1, 2, 3]
        (state,) = [edge.target for edge in client.get_edges(run) if edge.name == "pluginState"]
        assert dict(client.variables(str(state.id))) == {"head": 4, "seen": "0 1 2 3"}


# -- runs that die, and runs that do not stop -------------------------------------------------------------------------


AWAY = """#!/bin/sh
env -u HOLDFAST_LAUNCH > {folder}/part-$$
mv {folder}/part-$$ {folder}/asked-$$
exec sleep 3600
"""
"""Begins nothing itself: somebody else does so whom the launcher cannot reach, as on a machine that it has lost."""

RUN_PLUGIN = [sys.executable, "-c", "from holdfast.cli.run_plugin import main; main()", "--read_args_from_env"]


@dataclass(frozen=True)
class Scene:
    """A server with runs that are in trouble, all at once: it takes its time until that is noticed."""

    here: Supervised
    runs: dict[str, str]
    aborts: dict[str, Future[subprocess.CompletedProcess[str]]]
    elsewhere: list[subprocess.Popen[bytes]]

    def begin_elsewhere(self, is_over: Event) -> None:
        """Begin the run of each launch that is `AWAY` where no launcher can reach it, until it is over."""
        seen = set[Path]()
        while not is_over.wait(0.02):
            for asked in set(self.here.home.parent.glob("asked-*")) - seen:
                seen.add(asked)
                environ = dict(line.split("=", 1) for line in asked.read_text().splitlines())
                self.elsewhere.append(subprocess.Popen(RUN_PLUGIN, env=environ))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Runs that are killed, kill themselves, sleep, or are aborted and do not care; they go on while one is looked at.

    They begin one after the other: if they began together, a slow machine would take longer than a lease.
    """
    home = tmp_path_factory.mktemp("scene") / "home"
    script = home.with_name("away")
    script.write_text(AWAY.format(folder=home.parent))
    script.chmod(0o700)
    with supervised(home, "--script", f"away={script}", lease_s=4) as here, ThreadPoolExecutor(3) as pool:
        scene, is_over = Scene(here, {}, {}, []), Event()
        pool.submit(scene.begin_elsewhere, is_over)
        try:
            for name, words in {"Busy": (), "Deaf": ("--wait", "1")}.items():
                run = scene.runs[name] = here.begin(name)
                here.wait_for_note(run, "holds")
                scene.aborts[name] = pool.submit(here.holdfast, "runs", "abort", run, "--json", *words)
            for name in ("Poison", "Further", "Later", "Daemon"):
                scene.runs[name] = here.begin(name)
                here.wait_for_note(scene.runs[name], "began")
            here.wait(scene.runs["Daemon"], "daemon")
            os.kill(here.notes(scene.runs["Daemon"], "began")[0], signal.SIGKILL)
            killed = scene.runs["Steps"] = here.begin("Steps", hold_at=4)
            os.kill(here.wait_for_note(killed, "holds"), signal.SIGKILL)
            asleep = scene.runs["Sleeper"] = here.begin("Steps", image="away", hold_at=4)
            os.kill(here.wait_for_note(asleep, "holds"), signal.SIGSTOP)
            yield scene
            here.end()
        finally:
            is_over.set()
            with killing(*scene.elsewhere):
                pass


in_scene = pytest.mark.xdist_group("supervised-scene")


@in_scene
def test_a_run_that_is_killed_is_taken_over_and_each_of_its_steps_is_done_once(scene: Scene) -> None:
    """After its lease; it carries on from its variables and its snapshot."""
    here, run = scene.here, scene.runs["Steps"]
    here.wait_for_note(run, "holds", 2)
    assert here.steps(run) == [0, 1, 2, 3]
    here.go(run)
    here.wait(run, "done")
    assert here.steps(run) == [0, 1, 2, 3, 4, 5]
    assert here.variables(run) == {"head": 6, "seen": "0 1 2 3 4 5"}
    wait_until(lambda: not here.left(run))
    assert [line for line in here.log(run).splitlines() if "step " in line] == [f"step {n}" for n in range(6)]


@in_scene
def test_a_daemon_that_is_killed_is_begun_again_and_ends_when_it_is_aborted(scene: Scene) -> None:
    """It has no other end."""
    here, run = scene.here, scene.runs["Daemon"]
    here.wait_for_note(run, "began", 2)
    here.wait(run, "daemon")
    answer = here.holdfast("runs", "abort", run)
    assert (answer.returncode, answer.stderr, here.row(run).properties["status"]) == (0, "", "aborted")
    before = here.noted()
    wait_until(lambda: not here.left(run))
    assert here.noted().removeprefix(before).count(f"{run} began") == 0


@in_scene
def test_what_dies_at_once_three_times_is_an_error_with_its_last_words(scene: Scene) -> None:
    """And is not begun a fourth time."""
    here, run = scene.here, scene.runs["Poison"]
    first, *_, last = str(here.wait(run, "error").properties["error"]).splitlines()
    assert first == (
        "it died 3 times and came no further in between: it was ended by signal 9: by hand, or by the system for want "
        "of memory"
    )
    assert last == "the last words"
    wait_until(lambda: not here.left(run))
    assert len(here.notes(run, "began")) <= 3


@in_scene
def test_what_comes_further_each_time_may_die_more_often(scene: Scene) -> None:
    """Three times without being given up."""
    here, run = scene.here, scene.runs["Further"]
    here.wait(run, "done")
    wait_until(lambda: not here.left(run))
    assert (len(here.notes(run, "began")), here.variables(run)) == (4, {"n": 4})


@in_scene
@pytest.mark.parametrize("name, is_forced", [("Busy", False), ("Deaf", True)])
def test_what_does_not_stop_by_itself_is_ended(name: str, is_forced: bool, scene: Scene) -> None:
    """A loop that never comes to a safe point is interrupted; one that hears nothing at all is killed."""
    here, run = scene.here, scene.runs[name]
    answer = json.loads(scene.aborts[name].result().stdout)
    assert (answer["status"], answer["is_forced"]) == ("aborted", is_forced)
    wait_until(lambda: not here.left(run))
    assert (here.row(run).properties["status"], len(here.notes(run, "began"))) == ("aborted", 1)


@in_scene
def test_who_sleeps_past_its_lease_where_nobody_can_end_it_writes_nothing_when_it_wakes(scene: Scene) -> None:
    """Another has taken over, and is at work; the sleeper is refused, whatever the launcher knows of it."""
    here, run = scene.here, scene.runs["Sleeper"]
    second = here.wait_for_note(run, "holds", 2)
    sleeper = next(each for each in scene.elsewhere if each.pid == here.notes(run, "holds")[0])
    here.go(sleeper.pid)
    sleeper.send_signal(signal.SIGCONT)
    assert here.wait_for_note(run, "refused") == sleeper.pid
    assert sleeper.wait() == 5
    assert (here.row(run).properties["status"], here.steps(run)) == ("started", [0, 1, 2, 3])
    here.go(second)
    assert (here.wait(run, "done").id, here.steps(run)) == (run, [0, 1, 2, 3, 4, 5])
    assert here.variables(run)["seen"] == "0 1 2 3 4 5"
    wait_until(lambda: not here.left(run))


@in_scene
def test_a_run_that_is_to_be_tried_later_is_not_before_its_time(scene: Scene) -> None:
    """By nobody but the server."""
    here, run = scene.here, scene.runs["Later"]
    retry_ms = int(str(here.wait(run, "done").properties["retryAt"]))
    times = here.variables(run)
    assert int(str(times["first_ms"])) + 8_000 <= retry_ms <= int(str(times["second_ms"]))
    wait_until(lambda: not here.left(run))


# -- servers that die -------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
from holdfast.context import supervising

when, died = sys.argv.pop(1), Path(sys.argv.pop(1))

class Dying(supervising.ProcessLauncher):
    def launch(self, spec):
        if when == "after":
            super().launch(spec)
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().launch(spec)

supervising.ProcessLauncher = Dying
from holdfast.cli import main
main()
"""
"""A server that kills itself, once: between the claim and the launch, or when it has launched, and noted nothing."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_that_dies_on_its_way_launches_a_run_once(when: str, tmp_path: Path) -> None:
    """The next one finds the claim, and what was launched for it, if anything was."""
    program = [sys.executable, "-c", DYING, when, str(tmp_path / "died"), "serve", "--json"]
    with supervised(tmp_path / "home", program=program, lease_s=SOON) as here:
        run = here.begin("Steps", hold_at=4)
        here.server.wait()
        if when == "before":
            assert not (here.home / "launches").exists()
        else:
            assert len(list((here.home / "launches" / "process").iterdir())) == 1
        here.server.start()
        here.wait_for_note(run, "holds")
        here.go(run)
        here.wait(run, "done")
        wait_until(lambda: not here.left(run))
        assert len(here.notes(run, "began")) == 1
        assert (here.steps(run), here.launches(run)) == ([0, 1, 2, 3, 4, 5], ["1"])


def test_restarted_under_launched_runs_they_carry_on_and_without_kept_keys_when_their_owner_has_called(
    tmp_path: Path,
) -> None:
    """However the server ends; nothing is launched again, and what waits to be launched waits for its owner as well."""
    with supervised(tmp_path / "home", lease_s=SOON) as here:
        runs = [here.begin("Ticks") for _ in range(2)]
        pids = [here.wait_for_note(run, "began") for run in runs]
        here.wait_for_steps(runs)
        here.server.end(signal.SIGTERM)
        here.server.start()
        here.wait_for_steps(runs)
        token = json.loads(next(here.home.glob("launches/process/*/auth.json")).read_text())["data"]["token"]
        here.server.end(signal.SIGKILL)
        with PodClient(home=here.home) as client:
            made = PluginRun(pluginModule="bots", pluginName="Further", containerImage="bot")
            third = str(client.create(made).id)
        here.server.words = ["--no-keyring"]
        here.server.start()
        with pytest.raises(UnavailableError, match="its owner has to call first"):
            RemoteStore(here.server.connect(token=token, patience_s=0)).now_ms()
        assert here.notes(third, "began") == []
        here.wait_for_steps(runs)  # who calls here is the owner
        here.wait_for_note(third, "began")
        assert here.holdfast("runs", "abort", third, "--now").returncode == 0
        for run in runs:
            here.go(run)
        for run, pid in zip(runs, pids, strict=True):
            here.wait(run, "done")
            assert here.notes(run, "began") == here.notes(run, "ended") == [pid]
            assert here.steps(run) == list(range(int(str(here.variables(run)["head"]))))


def test_two_servers_of_one_home_launch_each_run_once(tmp_path: Path) -> None:
    """And bring each line of its log to the Pod once."""
    with supervised(tmp_path / "home", lease_s=SOON) as here, Process(here.home) as other:
        both = (here, Supervised(here.home, other))  # each of them looks when something was written through it
        runs = [each.begin("Steps", last=3) for _ in range(2) for each in both]
        for run in runs:
            here.wait(run, "done")
            assert len(here.notes(run, "began")) == 1
            assert here.steps(run) == [0, 1, 2]
        wait_until(lambda: not here.left())
        for run in runs:
            assert [line for line in here.log(run).splitlines() if "step" in line] == ["step 0", "step 1", "step 2"]
            assert here.launches(run) == ["1"]


# -- runs that cannot begin, or not now -------------------------------------------------------------------------------


def test_what_cannot_begin_is_an_error_at_once_with_the_reason(tmp_path: Path) -> None:
    """No other attempt would mend it."""
    script = tmp_path / "run"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{RUN_PLUGIN[2]}" --read_args_from_env\n')
    script.chmod(0o700)
    words = ("--launcher", "none", "--script", f"run={script}", "--script", f"gone={tmp_path / 'gone'}")
    with supervised(tmp_path / "home", *words, lease_s=SOON) as here:
        (here.plugins / "broken.py").write_text("raise RuntimeError('on a bad day')")
        expected = {
            here.begin("Steps", "run", module="nowhere"): "nowhere",
            here.begin("Steps", "run", module="broken"): "on a bad day",
            here.begin("Nobody", "run"): "Nobody",
            here.begin("Steps", "run", hold_at="never"): "hold_at",
            here.begin("Steps", "other"): "image 'other' is not launched here",
            here.begin("Steps", "gone"): "No such file or directory",
        }
        for run, reason in expected.items():
            assert reason in str(here.wait(run, "error").properties["error"])
            assert (here.notes(run, "began"), here.row(run).properties.get("deaths")) == ([], None)


@is_here
def test_a_run_that_failed_is_carried_on_when_it_is_retried(here: Supervised) -> None:
    """At once: who retries it wakes the server."""
    run = here.begin("Fails")
    assert here.wait(run, "error").properties["error"] == "ValueError: out of order"
    wait_until(lambda: not here.left())
    assert here.holdfast("runs", "retry", run).returncode == 0
    here.wait_for_note(run, "began", 2)  # nobody but the agenda has told the server
    here.wait(run, "done")
    wait_until(lambda: not here.left(run))


@is_here
def test_a_run_that_was_begun_by_hand_is_carried_on_by_the_server(here: Supervised) -> None:
    """Killed or aborted: with its variables and its snapshot, and the rights that it was begun with."""
    plugin = {"pluginModule": "bots", "pluginName": "Steps", "config": '{"hold_at": 4}', "writes": '["Step"]'}
    (here.plugins / "steps.json").write_text(json.dumps(plugin))
    words, before = ("run", str(here.plugins / "steps.json"), "--state"), len(here.noted())
    by_hand = [subprocess.Popen(here.words(*words, each)) for each in ("one", "two")]
    with killing(*by_hand):
        wait_until(lambda: here.noted()[before:].count(" holds ") == 2)
        runs = [line.split()[0] for line in here.noted()[before:].splitlines() if " holds " in line]
        assert here.holdfast("runs", "abort", runs[0], "--now").returncode == 0
    for run in runs:
        assert here.holdfast("runs", "retry", run, "--image", "bot").returncode == 0
    for run in runs:
        here.wait_for_note(run, "holds", 2)
        here.go(run)
        here.wait(run, "done")
        assert (here.steps(run), here.variables(run)["seen"]) == ([0, 1, 2, 3, 4, 5], "0 1 2 3 4 5")
    wait_until(lambda: not any(here.left(run) for run in runs))
    assert [len(here.launches(run)) for run in runs] == [1, 1]


def test_no_more_runs_work_at_once_than_the_settings_allow(tmp_path: Path) -> None:
    """The next begins when one has ended."""
    with supervised(tmp_path / "home", max_runs=1, lease_s=SOON) as here:
        runs = [here.begin("Steps", last=2) for _ in range(3)]
        for run in runs:
            here.wait(run, "done")
        noted = [line.split()[:2] for line in here.noted().splitlines()]
        assert [word for _, word in noted] == ["began", "ended"] * 3
        assert sorted(run for run, _ in noted[::2]) == sorted(runs)
