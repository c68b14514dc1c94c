"""``simulate_run_plugin_from_frontend``: what it asks a server for, and how it ends with what becomes of that."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.cli import simulate
from holdfast.cli.invocation import run
from holdfast.items import PersistentState, PluginRun
from holdfast.pod import Pod
from holdfast.runs import Status
from holdfast.store import AppendLog, Batch, MoveRun
from holdfast.testing.launching import wait_until
from tests.cli.conftest import Answer, Call
from tests.components.servers import OWNER, Served, serving

NAME = "simulate_run_plugin_from_frontend"
METADATA = {"pluginModule": "not_here", "pluginName": "P"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server that launches nothing."""
    with serving(tmp_path / "served") as served:
        yield served


@pytest.fixture
def metadata(tmp_path: Path) -> Callable[..., Path]:
    """Write metadata of a plugin that is not installed here."""

    def metadata(**more: object) -> Path:
        path = tmp_path / "plugin.json"
        path.write_text(json.dumps({**METADATA, **more}))
        return path

    return metadata


@pytest.fixture
def ask(served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the command in this process, as its entry point does, with server and keys in the environment."""
    monkeypatch.setenv("POD_FULL_ADDRESS", served.url)
    monkeypatch.setenv("POD_OWNER", OWNER.owner_key)
    monkeypatch.setenv("POD_AUTH_JSON", json.dumps({"type": "ClientAuth", "databaseKey": OWNER.database_key}))

    def ask(*words: object) -> Answer:
        capsys.readouterr()
        code = run(simulate.command, NAME, [str(word) for word in words])
        return Answer(code, *capsys.readouterr())

    return ask


def created(served: Served) -> list[PluginRun]:
    """Return the runs of the owner on the server."""
    with closing(served.store()) as store:
        found = Pod(store).search({"type": "PluginRun", "[[edges]]": True})
    return [each for each in found if isinstance(each, PluginRun)]


def test_a_run_is_created_with_what_its_metadata_say(
    served: Served, ask: Call, metadata: Callable[..., Path], tmp_path: Path
) -> None:
    """Its account and its plugin state come with it, and the plugin itself need not be here; the answer is its id."""
    (tmp_path / "config.json").write_text('{"n": 2}')
    path = metadata(account={"service": "mail"}, config={"n": 1}, reads=["Dog"])

    first = ask("--metadata", path, "--container", "mine:1", "--state", "work")
    second = ask("--metadata", path, "--config_file", tmp_path / "config.json", "--json")

    assert (first.code, first.err, second.code, second.err) == (0, "", 0, "")
    runs = {str(each.id): each for each in created(served)}
    assert len(runs) == 2
    one, other = runs[first.out.removesuffix("\n")], runs[second.document["run"]]
    assert (one.pluginModule, one.pluginName, one.status, one.reads) == ("not_here", "P", "idle", '["Dog"]')
    assert (one.containerImage, one.config, one.pluginState[0].name) == ("mine:1", '{"n": 1}', "work")
    assert (other.containerImage, other.config, other.pluginState[0].name) == ("holdfast", '{"n": 2}', "default")
    assert [each.service for each in (*one.account, *other.account)] == ["mail", "mail"]
    assert isinstance(one.pluginState[0], PersistentState)
    assert one.pluginState[0].pluginId == "not_here:P"


@pytest.mark.parametrize("given, image", [("theirs", "theirs"), ("none", "holdfast"), ("", "holdfast")])
def test_it_is_launched_from_the_image_of_its_metadata(
    given: str, image: str, served: Served, ask: Call, metadata: Callable[..., Path]
) -> None:
    """Unless that says that it is carried on by hand, which is not what was asked for."""
    assert ask("--metadata", metadata(containerImage=given)).code == 0

    assert [each.containerImage for each in created(served)] == [image]


def test_the_keys_of_this_home_are_taken_where_none_are_named(
    served: Served, home: Path, metadata: Callable[..., Path], shell: Call
) -> None:
    """They are made, as by any first call; those that are passed count before."""
    words = [NAME, "--metadata", metadata(), "--pod_full_address", served.url]

    assert shell(*words).code == 0
    assert (home / "keys.json").exists()
    assert created(served) == []
    assert shell(*words, "--owner_key", OWNER.owner_key, "--database_key", OWNER.database_key).code == 0
    assert len(created(served)) == 1


@pytest.mark.parametrize(
    "words, end",
    [
        ([], (2, "--metadata")),
        (["--metadata", "absent.json"], (4, "there is no file 'absent.json'")),
        (["--metadata", "{nameless}"], (2, "needs a text 'pluginModule'")),
        (["--metadata", "{}", "--container", "none"], (2, "image 'none' is never launched")),
        (["--metadata", "{}", "--config_file", "absent.json"], (2, "'absent.json'")),
        (["--metadata", "{}", "--pod_full_address", "http://127.0.0.1:1"], (6, '"holdfast serve" starts a server')),
        (["--metadata", "{}", "--pod_full_address", "pod"], (2, "is http:// or https://")),
        (["--metadata", "{}", "--owner_key", "a" * 64, "--database_key", "x y"], (2, "cannot be sent")),
    ],
)
def test_what_cannot_be_asked_for_is_said(
    words: list[str], end: tuple[int, str], served: Served, ask: Call, metadata: Callable[..., Path]
) -> None:
    """The exit code names the kind, and no run is made."""
    modules = {"{}": "m", "{nameless}": None}

    answer = ask(*(metadata(pluginModule=modules[word]) if word in modules else word for word in words))

    assert (answer.code, answer.out) == (end[0], "")
    assert end[1] in answer.err
    assert created(served) == []


def awaited(served: Served, metadata: Path, *words: str) -> subprocess.Popen[str]:
    """Begin to wait for a run."""
    auth = {"POD_AUTH_JSON": json.dumps({"type": "ClientAuth", "databaseKey": OWNER.database_key})}
    return subprocess.Popen(
        [Path(sys.executable).with_name(NAME), "--metadata", metadata, "--wait", *words],
        env={**os.environ, **auth, "POD_OWNER": OWNER.owner_key, "POD_FULL_ADDRESS": served.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_is_waited_for_is_followed_to_its_end(served: Served, metadata: Callable[..., Path]) -> None:
    """Its id, then its log, escaped; what becomes of it is said beside; the exit code is that of its error's kind."""
    with closing(served.store()) as store, awaited(served, metadata()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        id_ = process.stdout.readline().strip()
        assert process.stderr.readline() == f"Run {id_} is idle.\n"
        store.apply(Batch((MoveRun(id_, Status.STARTED), AppendLog(id_, "hf-1", "", "1", "hello\n\x1b[2J"))))
        assert process.stderr.readline() == f"Run {id_} is started.\n"
        assert process.stdout.readline() == "hello\n"
        store.apply(Batch((MoveRun(id_, Status.ERROR, "NotFoundError: there is no dog\x1b"),)))
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (4, "\\x1b[2J\n")
    assert err == f"Run {id_} is error.\nError: NotFoundError: there is no dog\\x1b\n"


def test_a_program_that_waits_gets_one_answer(served: Served, metadata: Callable[..., Path]) -> None:
    """Without the log."""
    with closing(served.store()) as store, awaited(served, metadata(), "--json") as process:
        wait_until(lambda: created(served) != [])
        [run] = created(served)
        id_ = str(run.id)
        store.apply(Batch((AppendLog(id_, "hf-1", "", "1", "hello\n"), MoveRun(id_, Status.ABORTED))))
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (5, "")
    assert json.loads(out) == {"run": id_, "status": "aborted", "error": None, "exit_code": 5}


@pytest.mark.parametrize(
    "status, error, code",
    [
        ("done", "", 0),
        ("aborted", "aborted", 5),
        ("error", "ValueError: no", 7),
        ("error", "it died 3 times and came no further in between", 7),
        ("error", "InvalidError: no", 2),
        ("error", "DeniedError: no", 3),
        ("error", "ConflictError: no", 5),
        ("error", "UnavailableError: no", 6),
        ("error", "HoldfastError: no", 7),
        ("error", "annotations: what the module of errors holds besides", 7),
    ],
)
def test_the_exit_code_is_that_of_a_run_by_hand(status: str, error: str, code: int) -> None:
    """What a run was ended by stands before its message."""
    assert simulate._exit_code(status, error) == code
