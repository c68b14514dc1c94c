"""Runs at their edges: logs that nobody can read, processes that come at once, what a dead one left, odd metadata."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import Account, PersistentState, PluginRun, PodClient
from holdfast.cli import invocation
from holdfast.cli.run import command
from holdfast.context import Settings, carry_out, open_store
from holdfast.engine import abort, begin_run, get_state, list_unfinished
from holdfast.errors import ConflictError, InvalidError, PluginError
from holdfast.plugins import StatefulPlugin, source_of
from holdfast.pod import Pod
from holdfast.runs import Status
from holdfast.testing import MemoryStore

PLUGINS = '''
import logging, os, signal, sys, threading

from pydantic import field_validator

from holdfast import PluginConfig, RetryLater, StatefulPlugin

log = logging.getLogger("mine")


class Unshown:
    def __repr__(self):
        raise ValueError("not shown")

    def __eq__(self, other):
        raise ValueError("not compared")

    __hash__ = None


class Stream:
    def write(self, text):
        raise ZeroDivisionError

    flush = write


class Logs(StatefulPlugin):
    """Logs what cannot be logged, in the way that it is told, and counts."""

    class Config(PluginConfig):
        how: str = ""

    def run(self):
        match self.config.how:
            case "arguments":
                log.warning("%d items", "three")
            case "fact":
                log.warning("a fact", extra={"fact": Unshown()})
            case "closed":
                sys.stderr.close()
            case "replaced":
                sys.stderr = Stream()
            case "thread":
                thread = threading.Thread(target=log.warning, args=("named",), kwargs={"extra": {"run": Unshown()}})
                thread.start()
                thread.join()
        for _ in range(100):
            log.warning("said %s", "x" * 1000)
        self.state.n = self.state.get("n", 0) + 1


class Raises(StatefulPlugin):
    def run(self):
        log.warning("said")
        raise ValueError("of its own")


class Steps(StatefulPlugin):
    def run(self):
        for _ in self.track(range(3)):
            pass


class Dies(StatefulPlugin):
    def run(self):
        self.state.n = self.state.get("n", 0) + 1
        if self.state.n == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        print("n", self.state.n)


class Holds(StatefulPlugin):
    def run(self):
        print("holds", flush=True)
        sys.stdin.readline()


class Later(StatefulPlugin):
    def run(self):
        raise RetryLater("the service is away", after=90)


class LogsMuch(StatefulPlugin):
    def run(self):
        for line in range(130):
            logging.getLogger("holdfast.much").info("%04d %s", line, "x" * 2**20)


class Meets(StatefulPlugin):
    """Its form is looked at once more just before its run is claimed: a moment in which others come in."""

    class Config(PluginConfig):
        word: str = "here"

        @field_validator("word")
        @classmethod
        def met(cls, word):
            for others in meetings[:1]:
                others()
            return word

    def run(self):
        self.state.n = self.state.get("n", 0) + 1


meetings = []
'''


@pytest.fixture
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the plugins; none of it stays imported."""
    (tmp_path / "edges.py").write_text(PLUGINS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("edges", None)


def holdfast(*words: str, name: str = "holdfast", **how: Any) -> subprocess.CompletedProcess[str]:
    """Run ``holdfast WORDS`` to its end."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **how}
    script = Path(sys.executable).with_name(name)
    return subprocess.run([script, *words], text=True, check=False, timeout=60, **how)


def runs(*, deleted: bool | None = False) -> list[PluginRun]:
    """Return the runs of the Pod, oldest write first; with None those that were deleted as well."""
    with PodClient() as client:
        found = client.search({"type": "PluginRun", "deleted": deleted})
        return [run for run in found if isinstance(run, PluginRun)]


# -- logging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["arguments", "fact", "closed", "replaced"])
def test_what_cannot_be_logged_does_not_end_a_run(how: str, folder: Path) -> None:
    """Neither arguments that do not fit, nor facts that raise, nor a standard error that the plugin broke."""
    ran = holdfast("run", "edges.py:Logs", "--config", json.dumps({"how": how}))

    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert "Traceback" not in ran.stderr
    [run] = runs()
    log = (folder / "home" / "runs" / f"{run.id}.log").read_text(encoding="utf-8")
    assert (run.status, log.count("WARNING mine: said x")) == ("done", 100)
    said = {"arguments": "'%d items' with ('three',) cannot be formatted: TypeError", "fact": "a fact fact=<Unshown>"}
    assert said.get(how, "") in log
    assert said.get(how, "") in ran.stderr
    assert holdfast("state", "get", "edges:Logs", "n").stdout == "1\n"


@pytest.mark.parametrize(
    "plugin, code, status, how",
    [("Logs", 0, "done", "2>&-"), ("Logs", 0, "done", "2>/dev/full"), ("Raises", 7, "error", "2>&4")],
)
def test_an_exit_code_is_the_run_s_whatever_standard_error_is(
    plugin: str, code: int, status: str, how: str, folder: Path
) -> None:
    """Closed, full, or without a reader: what is said there goes nowhere, and that is all."""
    if how == "2>/dev/full" and not Path("/dev/full").exists():
        pytest.skip("only Linux has a device that is always full")
    reader, writer = os.pipe()
    os.close(reader)
    script = Path(sys.executable).with_name("holdfast")
    line = f'exec 4>&{writer}; exec "{script}" run edges.py:{plugin} {how}'
    ran = subprocess.run(["bash", "-c", line], pass_fds=[writer], check=False, timeout=60)
    os.close(writer)

    assert (ran.returncode, [run.status for run in runs()]) == (code, [status])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_refusal_that_cannot_be_said_has_its_exit_code(folder: Path) -> None:
    """Its kind is not lost with its words."""
    with open("/dev/full", "w") as full:
        assert holdfast("run", "absent.py:Logs", stderr=full).returncode == 4


def test_a_fact_that_cannot_be_compared_is_let_through(folder: Path) -> None:
    """In an application's own process, where logs are told apart by the run that they name."""
    outcome = carry_out(Settings.read(), source_of("edges.py:Logs"), config={"how": "thread"})

    assert (outcome.status, outcome.error) == (Status.DONE, None)
    log = (folder / "home" / "runs" / f"{outcome.run}.log").read_text(encoding="utf-8")
    assert log.count("said x") == 100
    assert "named" not in log


def test_a_refused_call_leaves_logging_as_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one whose plugin could not even be named."""
    before = [*logging.getLogger().handlers]

    assert invocation.run(command, "holdfast run", ["absent.py:Logs"]) == 4

    assert logging.getLogger().handlers == before
    assert capsys.readouterr().err == "Error: there is no file 'absent.py'\n"


def test_a_log_that_became_too_long_is_shown_from_its_older_half(folder: Path) -> None:
    """130 MiB in two files of at most 64: what is left of them comes in order, and ends with the last line."""
    assert holdfast("run", "edges.py:LogsMuch").returncode == 0
    [run] = runs()
    newer = folder / "home" / "runs" / f"{run.id}.log"
    older = newer.with_name(f"{newer.name}.1")
    assert older.stat().st_size <= 64 * 2**20

    shown = holdfast("runs", "logs", str(run.id)).stdout.splitlines()

    numbers = [int(line.split(" holdfast.much: ")[1][:4]) for line in shown if " holdfast.much: " in line]
    assert numbers == [*range(numbers[0], 130)]
    assert 64 <= len(numbers) < 128
    assert "run.ended" in shown[-1]
    last = holdfast("runs", "logs", str(run.id), "--lines", str(len(shown) - 1)).stdout.splitlines()
    assert last == shown[1:]
    newer.unlink()  # as when the process died between the two names
    assert holdfast("runs", "logs", str(run.id), "--lines", "1").stdout.split(" holdfast.much: ")[1][:4].isdigit()


# -- what is handed in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ, said",
    [
        ({"POD_OWNER": "00" * 32, "POD_AUTH_JSON": "["}, "POD_AUTH_JSON must hold a JSON object"),
        ({"POD_TARGET_ITEM": '{"id": '}, "POD_TARGET_ITEM must hold a JSON object"),
    ],
)
def test_json_that_is_nested_too_deeply_is_refused(environ: dict[str, str], said: str, folder: Path) -> None:
    """One line, and no traceback; and what it held is not repeated."""
    deep = {name: text + "[" * 60_000 if text[0] in "[{" else text for name, text in environ.items()}
    words = ["--plugin_run_id", "r1"] if "POD_OWNER" in environ else []

    ran = holdfast(*words, name="run_plugin", env={**os.environ, **deep})

    assert (ran.returncode, ran.stderr) == (2, f"Error: {said}\n")


def test_a_variable_of_many_brackets_is_text(folder: Path) -> None:
    """However deeply they would nest."""
    brackets = "[" * 60_000
    assert holdfast("state", "set", "edges:Logs", "v", brackets).returncode == 0
    assert holdfast("state", "get", "edges:Logs", "v").stdout == f"{brackets}\n"


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("status", "aborted", "a run begins as idle, initialized, ready"),
        ("status", "done", "a run begins as idle, initialized, ready"),
        ("status", "started", "a run begins as idle, initialized, ready"),
        ("status", "Idle", "a run begins as idle, initialized, ready"),
        ("progress", 7, "it lies between 0 and 1"),
        ("progress", -1, "it lies between 0 and 1"),
    ],
)
def test_metadata_that_no_run_begins_with_is_refused(name: str, value: Any, expected: str, folder: Path) -> None:
    """The message names the property, before anything is written."""
    document = {"pluginModule": "edges", "pluginName": "Logs", name: value}
    (folder / "metadata.json").write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(InvalidError) as refused:
        source_of("metadata.json")

    assert name in str(refused.value)
    assert expected in str(refused.value)


def test_metadata_may_say_how_a_run_begins(folder: Path) -> None:
    """A status from which it can be started, and how far it is."""
    document = {"pluginModule": "edges", "pluginName": "Logs", "status": "ready", "progress": 1}
    (folder / "metadata.json").write_text(json.dumps(document), encoding="utf-8")
    assert holdfast("run", "metadata.json").returncode == 0
    assert [(run.status, run.progress) for run in runs()] == [("done", 1.0)]


@pytest.mark.parametrize(
    "code, said",
    [
        ("def __str__(self): raise ValueError", "E: (its text cannot be had: ValueError)"),
        ("def __str__(self): raise SystemExit(0)", "E: (its text cannot be had: SystemExit)"),
        ("def __str__(self): return 'one\\ntwo\\n'", "E: one two"),
    ],
)
def test_an_import_error_is_one_line_whatever_its_text_does(code: str, said: str, folder: Path) -> None:
    """The text is the plugin's code as well."""
    (folder / "unsaid.py").write_text(f"class E(Exception):\n    {code}\nraise E\n", encoding="utf-8")

    with pytest.raises(PluginError) as refused:
        source_of("unsaid.py:Logs").load()

    assert str(refused.value) == f"module 'unsaid' cannot be imported: {said}"


# -- others at the same time ------------------------------------------------------------------------------------------


def meet(*others: Callable[[], object]) -> None:
    """Have these come in, one at each look, just before a run of ``Meets`` is claimed."""
    import edges  # pyright: ignore[reportMissingImports] -- the test has written it

    left = [*others]
    edges.meetings[:] = [lambda: left.pop(0)() if left else None]


def prepared() -> str:
    """Return the id of a run of ``Meets`` that has not been started."""
    source_of("edges.py:Meets").load()
    with PodClient() as client:
        run = begin_run(client, get_state(client, "edges:Meets"), {"pluginModule": "edges", "pluginName": "Meets"})
    assert run.id is not None
    return run.id


def carry(**how: Any) -> Any:
    """Carry a run of ``Meets`` on in this process."""
    return carry_out(Settings.read(), source_of("edges.py:Meets"), config={"word": "there"}, **how)


def another() -> None:
    """Carry the run on to its end, as another process would."""
    assert holdfast("run", "edges.py:Meets").returncode == 0


def abort_all() -> None:
    """Abort what has not ended."""
    settings = Settings.read()
    with open_store(settings) as store:
        for run in list_unfinished(Pod(store)):
            abort(store, str(run.id), locks=settings.locks_path, wait_s=0)


def test_a_run_that_another_ended_just_before_is_followed_by_a_new_one(folder: Path) -> None:
    """Found, but done when it was to be claimed: the second call does what it would have done a moment later."""
    first = prepared()
    meet(another)

    outcome = carry()

    assert (outcome.status, outcome.run == first) == (Status.DONE, False)
    assert [run.status for run in runs(deleted=None)] == ["done", "done"]
    assert holdfast("state", "get", "edges:Meets", "n").stdout == "2\n"


def test_a_run_that_was_deleted_just_before_is_followed_by_a_new_one(folder: Path) -> None:
    """Its own call was refused and took it back."""
    first = prepared()

    def delete() -> None:
        with PodClient() as client:
            client.delete_items([first])

    meet(delete)
    outcome = carry()
    assert (outcome.status, outcome.run == first) == (Status.DONE, False)


def test_a_run_that_is_named_is_not_replaced_by_another(folder: Path) -> None:
    """It has ended when it was to be claimed: a conflict, and no new run."""
    first = prepared()
    meet(lambda: None, another)

    with pytest.raises(ConflictError, match=f"run '{first}' is done and cannot become started"):
        carry(run_id=first)

    assert [run.id for run in runs(deleted=None)] == [first]


def test_a_call_does_not_look_again_for_ever(folder: Path) -> None:
    """Whatever it finds or begins is aborted at once: it gives up."""
    prepared()
    meet(*[abort_all] * 100)

    with pytest.raises(ConflictError, match="is aborted and cannot become started"):
        carry()

    assert 2 <= len(runs(deleted=None)) <= 10


def test_a_new_run_that_is_refused_was_not_begun(folder: Path) -> None:
    """Not even a deleted one is left; and the run that holds the plugin state is shown to whoever asks for another."""
    assert holdfast("run", "edges.py:Holds").returncode == 0
    [before] = [run.id for run in runs()]
    script = Path(sys.executable).with_name("holdfast")
    words = [script, "run", "edges.py:Holds"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"holds\n"
        holder = runs()[-1].id

        refused = holdfast("run", "edges.py:Holds", "--new")
        shown = json.loads(holdfast("runs", "show", str(before), "--json").stdout)

        first.communicate(b"\n", timeout=60)
    assert (refused.returncode, f"is held by run {holder!r}" in refused.stderr) == (5, True)
    assert {run.id for run in runs(deleted=None)} == {before, holder}
    assert (shown["status"], shown["holder"]) == ("done", holder)
    assert 0 < shown["lease_left_s"] <= 60
    shown = json.loads(holdfast("runs", "show", str(holder), "--json").stdout)
    assert (shown["status"], shown["holder"], shown["lease_left_s"]) == ("done", None, None)


def test_variables_of_a_killed_run_can_be_changed_at_once(folder: Path) -> None:
    """Its free lock proves it dead; the change ends its right to write, and the next call carries the run on."""
    assert holdfast("run", "edges.py:Dies").returncode == -9
    [run] = runs()

    changed = holdfast("state", "set", "edges:Dies", "n", "41")

    assert (changed.returncode, changed.stderr) == (0, "")
    assert json.loads(holdfast("runs", "show", str(run.id), "--json").stdout)["holder"] is None
    assert holdfast("run", "edges.py:Dies").stdout == "n 42\n"
    assert [(each.id, each.status) for each in runs()] == [(run.id, "done")]


def test_a_program_is_told_when_to_try_again(folder: Path) -> None:
    """As a person is; null where nothing was said of it."""
    answers = [json.loads(holdfast("run", f"edges.py:{name}", "--json").stderr) for name in ("Later", "Steps")]
    assert [(each["exit_code"], each["retry_after_s"]) for each in answers] == [(75, 90.0), (0, None)]


# -- once, and accounts -----------------------------------------------------------------------------------------------


@pytest.fixture
def plugin() -> StatefulPlugin:
    """A plugin whose run leads to a plugin state, on a Pod in memory."""
    pod = Pod(MemoryStore())
    run = begin_run(pod, PersistentState(id="s1"), {"pluginModule": "m", "pluginName": "P"})
    return StatefulPlugin(run.id, client=pod)


def in_thread(function: Callable[[], object]) -> bool:
    """Call ``function`` in a thread of its own, and say whether it came to its end."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_once_waits_for_its_own_key_only(plugin: StatefulPlugin) -> None:
    """What it calls may wait for a thread that calls once with another key, and call it with the same key itself."""
    found: list[object] = []

    def work() -> int:
        assert in_thread(lambda: found.append(plugin.once("b", lambda: 2)))
        found.append(plugin.once("a", lambda: 3))
        return 1

    assert in_thread(lambda: found.append(plugin.once("a", work)))
    assert found == [2, 3, 1]
    assert [plugin.once(key, lambda: 4) for key in "ab"] == [1, 2]


def test_two_threads_that_ask_for_one_key_call_once(plugin: StatefulPlugin) -> None:
    """The second waits for the result of the first."""
    called: list[str] = []
    is_inside, is_second = threading.Event(), threading.Event()

    def first() -> str:
        is_inside.set()
        assert not is_second.wait(0.2)  # as long as another would need that did not wait
        called.append("first")
        return "first"

    def second() -> str:
        is_second.set()
        return "second"

    def ask() -> None:
        is_inside.wait(10)
        called.append(plugin.once("a", second))

    other = threading.Thread(target=ask)
    other.start()
    assert plugin.once("a", first) == "first"
    other.join(10)
    assert called == ["first", "first"]


def test_the_account_of_the_plugin_state_is_that_of_a_run_without_one(plugin: StatefulPlugin) -> None:
    """The run's own comes first."""
    assert plugin.get_account() is None
    for owner, service in (("s1", "state"), (plugin.runId, "run")):
        found = plugin.client.get(str(owner))
        assert isinstance(found, PersistentState | PluginRun)
        found.account.append(plugin.client.create(Account(service=service)))
        plugin.client.update_item(found)
        account = plugin.get_account()
        assert account is not None
        assert account.service == service
