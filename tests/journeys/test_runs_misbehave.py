"""Plugins that do what no plugin should: each ends with the right code and status, and leaves nothing running.

Each is run by ``holdfast run`` in a process of its own, whose standard error never holds a traceback of Holdfast.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import PluginRun, PodClient

PLUGINS = """
import os, resource, subprocess, sys, threading, time

from holdfast import Person, PluginBase, PluginConfig, RetryLater, GiveUp, StatefulPlugin


class Fine(StatefulPlugin):
    def run(self):
        self.state.n = self.state.get("n", 0) + 1
        print("worked", self.state.n)


class Raises(StatefulPlugin):
    def run(self):
        self.state.n = 1
        raise ValueError("of its own")


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


class RaisesWhatCannotBeSaid(StatefulPlugin):
    def run(self):
        raise Silent


class RaisesWhatNoPropertyHolds(StatefulPlugin):
    def run(self):
        raise ValueError("a\\0b\\ud800" + "x" * 5000)


class Base(BaseException):
    pass


class RaisesBase(StatefulPlugin):
    def run(self):
        raise Base("out of order")


class Recurses(StatefulPlugin):
    def run(self):
        self.run()


class Exits(StatefulPlugin):
    def run(self):
        sys.exit(3)


class ExitsWell(StatefulPlugin):
    def run(self):
        sys.exit()


class GivesUp(StatefulPlugin):
    def run(self):
        raise GiveUp("the account is closed")


class Later(StatefulPlugin):
    def run(self):
        raise RetryLater("the service is away", after=90)


class Forks(StatefulPlugin):
    def run(self):
        self.state.n = 1
        if os.fork() == 0:
            return
        os.wait()
        self.state.n = 2
        print("parent")


class ForksAndRaises(StatefulPlugin):
    def run(self):
        if os.fork() == 0:
            raise ValueError("in the child")
        os.wait()
        print("parent")


class LeavesThreads(StatefulPlugin):
    def run(self):
        threading.Thread(target=threading.Event().wait).start()
        print("threads")


class ThreadThatWritesLate(StatefulPlugin):
    def run(self):
        threading.Thread(target=self.write_on).start()
        print("done")

    def write_on(self):
        while True:
            try:
                self.state.late = 1
            except Exception:
                pass


class Swallows(StatefulPlugin):
    def run(self):
        try:
            raise ValueError
        except Exception:
            pass
        print("swallowed")


class ClosesStreams(StatefulPlugin):
    def run(self):
        sys.stdin.close()
        sys.stdout.close()
        sys.stderr.close()


class ClosesDescriptors(StatefulPlugin):
    def run(self):
        self.state.n = 1
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        self.state.n = 2


class ClosesStreamsAndRaises(StatefulPlugin):
    def run(self):
        sys.stdout.close()
        sys.stderr.close()
        raise ValueError("unheard")


class ReplacesStreams(StatefulPlugin):
    def run(self):
        sys.stdout = sys.stderr = None


class ClosesClient(StatefulPlugin):
    def run(self):
        self.state.n = 1
        self.client.close()
        self.client.create(Person(displayName="after"))


class MovesItself(StatefulPlugin):
    def run(self):
        self.failed("by its own word")


class AsksByHand(StatefulPlugin):
    def run(self):
        self.action_required()


class LeavesTransaction(StatefulPlugin):
    def run(self):
        block = self.transaction()
        block.__enter__()
        self.state.n = 1


class HangsAtExit(StatefulPlugin):
    def run(self):
        import atexit
        atexit.register(threading.Event().wait)


class Coroutine(StatefulPlugin):
    async def run(self):
        print("async")


class NoRun(StatefulPlugin):
    pass


class NoPlugin:
    pass


class TakesNothing(StatefulPlugin):
    def __init__(self):
        pass


class Configured(StatefulPlugin):
    class Config(PluginConfig):
        size: int

    def run(self):
        print("size", self.config.size)


class Annotated(PluginBase):
    def __init__(self, n: "NotThere" = 1, **kwargs):
        super().__init__(**kwargs)

    def run(self):
        print("annotated")


class Prints(PluginBase):
    def run(self):
        line = "x" * 1023 + "\\n"
        for _ in range(64 * 1024):
            sys.stdout.write(line)


class Dies(StatefulPlugin):
    def run(self):
        self.state.n = self.state.get("n", 0) + 1
        if self.state.n == 1:
            os._exit(9)
        print("again", self.state.n)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the plugins."""
    (tmp_path / "bad.py").write_text(PLUGINS, encoding="utf-8")
    return tmp_path


def holdfast(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``holdfast WORDS``; no reader of what it prints is left waiting by anything that it leaves running."""
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
    """Return the runs of the Pod."""
    with PodClient() as client:
        return [run for run in client.search({"type": "PluginRun"}) if isinstance(run, PluginRun)]


@pytest.mark.parametrize(
    "name, end, error",
    [
        ("Fine", (0, "done", "worked 1\n"), None),
        ("Raises", (7, "error", ""), "ValueError: of its own"),
        ("RaisesWhatCannotBeSaid", (7, "error", ""), "Silent: (its text cannot be had: RuntimeError)"),
        ("RaisesWhatNoPropertyHolds", (7, "error", ""), "ValueError: ab?" + "x" * 1984),
        ("RaisesBase", (7, "error", ""), "Base: out of order"),
        ("Recurses", (7, "error", ""), "RecursionError: maximum recursion depth exceeded"),
        ("Exits", (7, "error", ""), "SystemExit: 3"),
        ("ExitsWell", (0, "done", ""), None),
        ("GivesUp", (7, "error", ""), "the account is closed"),
        ("Later", (75, "ready", ""), "the service is away"),
        ("Forks", (0, "done", "parent\n"), None),
        ("ForksAndRaises", (0, "done", "parent\n"), None),
        ("LeavesThreads", (0, "done", "threads\n"), None),
        ("ThreadThatWritesLate", (0, "done", "done\n"), None),
        ("Swallows", (0, "done", "swallowed\n"), None),
        ("ClosesStreams", (0, "done", ""), None),
        ("ClosesDescriptors", (0, "done", ""), None),
        ("ClosesStreamsAndRaises", (7, "error", ""), "ValueError: unheard"),
        ("ReplacesStreams", (0, "done", ""), None),
        ("ClosesClient", (0, "done", ""), None),
        ("MovesItself", (7, "error", ""), "by its own word"),
        ("AsksByHand", (0, "userActionNeeded", ""), None),
        ("LeavesTransaction", (0, "done", ""), None),
        ("Coroutine", (0, "done", "async\n"), None),
        ("NoRun", (7, "error", ""), "NotImplementedError: NoRun has no run()"),
        (
            "TakesNothing",
            (7, "error", ""),
            "TypeError: TakesNothing.__init__() got an unexpected keyword argument 'pluginRun'",
        ),
        ("Annotated", (0, "done", "annotated\n"), None),
    ],
)
def test_the_run_ends_as_it_must(
    name: str, end: tuple[int, str, str], error: str | None, folder: Path, home: Path
) -> None:
    """Exit code, status, reason and output, and no line of Holdfast's own code in front of the user."""
    ran = holdfast(folder, "run", f"bad.py:{name}")
    code, status, out = end

    assert (ran.returncode, ran.stdout) == (code, out), ran.stderr
    assert "Traceback" not in ran.stderr
    [run] = runs()
    assert run.status == status
    assert (run.error or "")[: len(error or "")] == (error or "")
    assert (run.error is None) == (error is None)


def test_the_traceback_is_in_the_log_and_the_reason_before_the_user(folder: Path, home: Path) -> None:
    """A plugin that raises: one line says why and where the log is; what it saved is saved."""
    ran = holdfast(folder, "run", "bad:Raises")
    [run] = runs()
    log = home / "runs" / f"{run.id}.log"

    assert ran.stderr == f"Error: run {run.id} is error: ValueError: of its own\nIts log is {str(log)!r}.\n"
    assert log.stat().st_mode & 0o777 == 0o600
    text = log.read_text(encoding="utf-8")
    assert 'raise ValueError("of its own")' in text
    assert "Traceback (most recent call last):" in text
    shown = holdfast(folder, "runs", "logs", str(run.id))
    assert shown.stdout == text
    assert holdfast(folder, "state", "get", "bad:Raises", "n").stdout == "1\n"


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["bad.py:Absent"], 4, "module 'bad' has no class 'Absent'"),
        (["absent.py:Fine"], 4, "there is no file 'absent.py'"),
        (["absent:Fine"], 4, "there is no module 'absent'"),
        (["absent.deep:Fine"], 4, "there is no module 'absent.deep'"),
        (["broken.py:Fine"], 7, "module 'broken' cannot be imported: SyntaxError"),
        (["leaves.py:Fine"], 7, "module 'leaves' cannot be imported: SystemExit"),
        (["needs.py:Fine"], 7, "No module named 'not_installed_here'"),
        (["email.py:Fine"], 2, "'email' is a module elsewhere already"),
        (["bad:NoPlugin"], 2, "'bad:NoPlugin' is no plugin"),
        (["bad"], 2, "MODULE:CLASS, FILE.py:CLASS or metadata.json is expected"),
        (["bad:Configured"], 2, "Configured needs a setting 'size'"),
        (["bad:Configured", "--config", '{"size": "large"}'], 2, "setting 'size' of Configured cannot be of type str"),
        (["bad:Configured", "--config", '{"siez": 1}'], 2, "Configured has no setting 'siez'; it has size"),
        (["bad:Fine", "--config", "{broken"], 2, "the configuration cannot be read as JSON"),
        (["bad:Fine", "--config", "list.json"], 2, "must be an object such as {}, not list"),
        (["bad:Fine", "--state", ""], 2, "a plugin state cannot be called ''"),
        (["list.json"], 2, "the metadata 'list.json' must be an object"),
        (["nameless.json"], 2, "needs a text 'pluginName', not None"),
        (["wrong.json"], 2, "PluginRun.interval"),
        (["binary.json"], 2, "the metadata 'binary.json' cannot be read as JSON"),
    ],
)
def test_what_cannot_be_run_is_refused_and_leaves_no_run(
    words: list[str], code: int, said: str, folder: Path, home: Path
) -> None:
    """The reason in one line; nothing in the Pod."""
    (folder / "broken.py").write_text("def", encoding="utf-8")
    (folder / "leaves.py").write_text("raise SystemExit(0)", encoding="utf-8")
    (folder / "needs.py").write_text("import not_installed_here", encoding="utf-8")
    (folder / "email.py").write_text(PLUGINS, encoding="utf-8")
    (folder / "list.json").write_text("[1]", encoding="utf-8")
    (folder / "nameless.json").write_text('{"pluginModule": "bad"}', encoding="utf-8")
    wrong = {"pluginModule": "bad", "pluginName": "Fine", "interval": "often"}
    (folder / "wrong.json").write_text(json.dumps(wrong), encoding="utf-8")
    (folder / "binary.json").write_bytes(b"\xff\x00")

    ran = holdfast(folder, "run", *words)

    assert (ran.returncode, ran.stdout) == (code, ""), ran.stderr
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1 or ran.stderr.startswith("Usage:")
    assert not (home / "keys.json").exists() or runs() == []


def test_unknown_metadata_is_warned_of_and_left_out(folder: Path, home: Path) -> None:
    """A key that no run has is named on standard error; an account becomes one, linked to the run."""
    known = {"pluginModule": "bad", "pluginName": "Fine", "account": {"service": "mail"}, "colour": "red"}
    (folder / "metadata.json").write_text(json.dumps(known), encoding="utf-8")

    ran = holdfast(folder, "run", "metadata.json")

    assert (ran.returncode, ran.stdout) == (0, "worked 1\n")
    assert "metadata.unknown" in ran.stderr
    assert "'colour'" in ran.stderr
    with PodClient() as client:
        run = client.get(str(runs()[0].id))
        assert isinstance(run, PluginRun)
        assert [account.service for account in run.account] == ["mail"]


def test_a_process_that_is_ended_by_its_plugin_is_carried_on_at_once(folder: Path, home: Path) -> None:
    """os._exit: nobody could say how the run ended, so it has not; the next call goes on with what was saved."""
    first = holdfast(folder, "run", "bad:Dies")
    [run] = runs()
    assert (first.returncode, run.status) == (9, "started")

    second = holdfast(folder, "run", "bad:Dies")

    assert (second.returncode, second.stdout) == (0, "again 2\n")
    assert [(each.id, each.status) for each in runs()] == [(run.id, "done")]


def test_a_block_that_was_left_open_is_not_written(folder: Path, home: Path) -> None:
    """What was never committed is not there."""
    assert holdfast(folder, "run", "bad:LeavesTransaction").returncode == 0
    assert holdfast(folder, "state", "get", "bad:LeavesTransaction", "n").returncode == 4


def test_output_is_passed_on_however_much_it_is(folder: Path, home: Path) -> None:
    """64 MiB through a pipe: each byte arrives, and nothing else."""
    ran = holdfast(folder, "run", "bad:Prints")

    assert ran.returncode == 0
    assert len(ran.stdout) == 64 * 2**20
    assert set(ran.stdout) == {"x", "\n"}


def test_what_hangs_at_exit_is_left_after_a_while(folder: Path, home: Path) -> None:
    """The process ends with the code of the run, which was saved before."""
    ran = holdfast(folder, "run", "bad:HangsAtExit")

    assert ran.returncode == 0
    assert [run.status for run in runs()] == ["done"]


def test_a_command_that_its_reader_leaves_says_nothing(folder: Path, home: Path) -> None:
    """As in ``holdfast run … | head -c 1``: the plugin meets the closed pipe as any program does, and has failed."""
    command = [Path(sys.executable).with_name("holdfast"), "run", "bad:Prints"]
    env = {**os.environ, "HOLDFAST_HOME": str(home)}
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read().decode()

    assert "Traceback" not in err
    assert process.returncode in (7, 141)
    assert [run.status for run in runs()] == ["error"]
