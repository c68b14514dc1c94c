"""``holdfast state`` does with a folder what `holdfast.state.State` does with it."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast.cli.invocation import run
from holdfast.cli.state import command
from holdfast.disk import Disk
from holdfast.state import State


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two namespaces."""
    state = State(tmp_path / "state", save_delay=0)
    state.ui |= {"theme": "dark", "size": 12}
    state.tool |= {"done": True}
    return tmp_path / "state"


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run ``state WORDS`` and return how it ended and what it printed."""
    capsys.readouterr()
    code = run(command, "state", [str(word) for word in words])
    return (code, *capsys.readouterr())


def test_list_shows_all_variables_a_line_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cells between tabs, for other programs of a shell."""
    assert call(capsys, "list", "--dir", folder) == (
        0,
        "namespace\tvariable\tvalue\ntool\tdone\ttrue\nui\ttheme\tdark\nui\tsize\t12\n",
        "",
    )


def test_get_prints_the_value_alone_and_fails_without(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code says that there is none."""
    assert call(capsys, "get", "ui", "theme", "--dir", folder) == (0, "dark\n", "")
    code, out, err = call(capsys, "get", "ui", "absent", "--dir", folder)
    assert (code, out) == (4, "")
    assert "there is no variable 'absent' in namespace 'ui'" in err


@pytest.mark.parametrize(
    "words, value",
    [
        (["7"], 7),
        (["1.0"], 1.0),
        (["true"], True),
        (["yes"], "yes"),
        (["[1]"], "[1]"),
        (["7", "--text"], "7"),
        (["null"], "null"),
        (["NaN"], "NaN"),
        (["Infinity"], "Infinity"),
        (["[" * 100_000], "[" * 100_000),
    ],
)
def test_set_takes_a_word_for_what_it_looks_like(
    folder: Path, words: list[str], value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers and booleans, unless it is said to be text."""
    assert call(capsys, "set", "ui", "x", *words, "--dir", folder)[0] == 0
    assert repr(State(folder).ui.x) == repr(value)


def test_set_refuses_what_no_variable_can_hold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit code for a value that must be corrected."""
    assert call(capsys, "set", "ui", "x", "1e400", "--dir", folder)[0] == 2
    assert call(capsys, "set", "ui", "x", "9" * 5_000, "--dir", folder)[0] == 2
    assert call(capsys, "set", "", "x", "1", "--dir", folder)[0] == 2


def test_delete_takes_variables_or_the_namespace(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not there is passed over."""
    assert call(capsys, "delete", "ui", "theme", "absent", "--dir", folder)[0] == 0
    assert dict(State(folder).ui) == {"size": 12}
    assert call(capsys, "delete", "ui", "--dir", folder)[0] == 0
    assert list(State(folder)) == ["tool"]
    code, deleted, _ = call(capsys, "delete", "ui", "--dir", folder.parent / "typo", "--json")
    assert (code, json.loads(deleted)["deleted"]) == (0, [])
    assert os.listdir(folder.parent) == ["state"]


def test_an_export_is_imported_elsewhere(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All namespaces together; what was there and is not in it stays."""
    code, exported, _ = call(capsys, "export", "--dir", folder)
    assert (code, json.loads(exported)) == (0, {"tool": {"done": True}, "ui": {"theme": "dark", "size": 12}})
    (tmp_path / "export.json").write_text(exported)
    State(tmp_path / "other", save_delay=0).ui |= {"size": 1, "font": "serif"}
    assert call(capsys, "import", tmp_path / "export.json", "--dir", tmp_path / "other")[0] == 0
    assert dict(State(tmp_path / "other").ui) == {"size": 12, "font": "serif", "theme": "dark"}
    assert State(tmp_path / "other").tool.done is True


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"ui": []}',
        '{"ui": [["y", 1]]}',
        '{"ui": 1}',
        '{"ui": {"x": []}}',
        '{"ui": {"y": 1}, "tool": {"x": null}}',
    ],
)
def test_an_import_that_cannot_be_taken_whole_changes_nothing(
    folder: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with the exit code for a value that must be corrected."""
    (tmp_path / "export.json").write_text(text)
    assert call(capsys, "import", tmp_path / "export.json", "--dir", folder)[0] == 2
    assert dict(State(folder).ui) == {"theme": "dark", "size": 12}


def test_an_import_of_a_standard_input_that_is_closed_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a program without one finds it; another file is read all the same."""
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = call(capsys, "import", "-", "--dir", folder)
    assert (code, "standard input is closed" in err) == (2, True)


def test_with_json_each_answer_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs."""
    assert json.loads(call(capsys, "list", "ui", "--dir", folder, "--json")[1]) == {"ui": {"theme": "dark", "size": 12}}
    assert json.loads(call(capsys, "get", "ui", "size", "--dir", folder, "--json")[1]) == {
        "namespace": "ui",
        "name": "size",
        "value": 12,
    }
    code, _, err = call(capsys, "list", "absent", "--dir", folder, "--json")
    assert (code, json.loads(err)["error"]["kind"]) == (4, "NotFoundError")


def test_an_export_is_of_one_moment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A transaction that comes in between has to wait, so it is in the export with all of its namespaces or none."""
    is_waiting_or_done = threading.Event()

    class Telling(Disk):
        def _try_lock(self, fd: int, *, shared: bool) -> bool:
            is_free = super()._try_lock(fd, shared=shared)
            if not is_free:
                is_waiting_or_done.set()
            return is_free

    def change() -> None:
        state = State(folder, save_delay=0, disk=Telling())
        with state.transaction():
            state.tool.done = state.ui.done = False
        is_waiting_or_done.set()

    def read(disk: Disk, path: Path) -> bytes:
        found = read_as_ever(disk, path)
        if Path(path).name == "tool.json" and not thread.ident:
            thread.start()
            assert is_waiting_or_done.wait(60)
        return found

    thread, read_as_ever = threading.Thread(target=change), Disk.read
    monkeypatch.setattr(Disk, "read", read)
    code, exported, _ = call(capsys, "export", "--dir", folder)
    thread.join()
    assert (code, json.loads(exported)) == (0, {"tool": {"done": True}, "ui": {"theme": "dark", "size": 12}})
    assert State(folder).ui.done is False


def test_an_export_makes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a folder that is not there."""
    absent = folder.parent / "absent"
    assert call(capsys, "export", "--dir", absent) == (0, "{}\n", "")
    assert not absent.exists()


def test_a_namespace_whose_file_holds_nothing_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no reason not to list the others; asked for by name, it is not there."""
    (folder / "empty.json").write_text("{}")
    code, listed, _ = call(capsys, "list", "--dir", folder, "--json")
    assert (code, sorted(json.loads(listed))) == (0, ["tool", "ui"])
    assert call(capsys, "list", "empty", "--dir", folder)[0] == 4


@pytest.mark.parametrize(
    "text, code, message",
    [
        ('{"x": [1]}', 2, "holds no variables, because of 'x': Value of type list is not supported; correct the file"),
        ('{"x"', 6, "is damaged, and no good generation before it is kept: correct it, or delete it"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_left_alone(
    folder: Path, text: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By each command; namespaces beside it are read when they are named."""
    (folder / "bad.json").write_text(text)
    for words in (
        ["list"],
        ["get", "bad", "x"],
        ["set", "bad", "y", 1],
        ["delete", "bad"],
        ["export"],
        ["watch", "bad"],
    ):
        found, out, err = call(capsys, *words, "--dir", folder)
        assert (found, out) == (code, "")
        assert f"bad.json' {message}" in err
    assert (folder / "bad.json").read_text() == text
    assert call(capsys, "get", "ui", "size", "--dir", folder) == (0, "12\n", "")


def test_a_folder_that_cannot_be_one_is_an_error_and_no_traceback(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file, one below a file, an unset variable of a script, and whatever is relative to a folder that is gone."""
    assert "--dir is empty: a folder is expected" in call(capsys, "list", "--dir", "")[2]
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for place in (tmp_path / "file", tmp_path / "file" / "state", "state"):
        code, out, err = call(capsys, "list", "--dir", place)
        assert (code, out) == (2, "")
        assert "Error: " in err
    assert "'state' leads nowhere: the current folder is gone; name an absolute path" in err
    assert call(capsys, "get", "ui", "size", "--dir", folder) == (0, "12\n", "")


WATCHING = """
import sys
from holdfast.cli.invocation import run
from holdfast.cli.state import command
print("ready", flush=True)
sys.exit(run(command, "state", sys.argv[1:]))
"""


def test_a_watch_whose_reader_has_gone_ends(folder: Path) -> None:
    """At the next change, as other programs in a pipe do, and says nothing."""
    words = [sys.executable, "-c", WATCHING, "watch", "ui", "--dir", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "ready\n"
        watching.stdout.close()
        state = State(folder, save_delay=0)
        while watching.poll() is None:
            state.incr("ui", "n")
        assert watching.stderr is not None
        assert (watching.returncode, watching.stderr.read()) == (141, "")


def test_watch_prints_what_programs_store(folder: Path) -> None:
    """A line for each variable, until Ctrl-C."""
    watching = subprocess.Popen(
        [sys.executable, "-c", WATCHING, "watch", "ui", "--dir", str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() == "ready\n"
    state, lines = State(folder, save_delay=0), os.fdopen(os.dup(watching.stdout.fileno()))
    # It may take a moment to look for the first time: what is set before that is nothing new to it.
    os.set_blocking(lines.fileno(), False)
    number, seen = 0, ""
    while "\n" not in seen:
        number += 1
        state.ui.number = number
        try:
            seen += os.read(lines.fileno(), 1_000).decode()
        except BlockingIOError:
            continue
    watching.send_signal(2)
    assert watching.wait(60) == 130
    lines.close()
    watching.stdout.close()
    assert seen.splitlines()[0].startswith("number\t")
