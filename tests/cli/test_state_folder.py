"""``holdfast state`` does with a folder what `holdfast.state.State` does with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.cli.invocation import run
from holdfast.cli.state import command
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
    assert call(capsys, "set", "ui", "x", "NaN", "--dir", folder)[0] == 2
    assert call(capsys, "set", "", "x", "1", "--dir", folder)[0] == 2


def test_delete_takes_variables_or_the_namespace(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not there is passed over."""
    assert call(capsys, "delete", "ui", "theme", "absent", "--dir", folder)[0] == 0
    assert dict(State(folder).ui) == {"size": 12}
    assert call(capsys, "delete", "ui", "--dir", folder)[0] == 0
    assert list(State(folder)) == ["tool"]


def test_an_export_is_imported_elsewhere(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All namespaces together; what was there and is not in it stays."""
    code, exported, _ = call(capsys, "export", "--dir", folder)
    assert (code, json.loads(exported)) == (0, {"tool": {"done": True}, "ui": {"theme": "dark", "size": 12}})
    (tmp_path / "export.json").write_text(exported)
    State(tmp_path / "other", save_delay=0).ui |= {"size": 1, "font": "serif"}
    assert call(capsys, "import", tmp_path / "export.json", "--dir", tmp_path / "other")[0] == 0
    assert dict(State(tmp_path / "other").ui) == {"size": 12, "font": "serif", "theme": "dark"}
    assert State(tmp_path / "other").tool.done is True


@pytest.mark.parametrize("text", ["{", "[]", '{"ui": 1}', '{"ui": {"x": []}}', '{"ui": {"y": 1}, "tool": {"x": null}}'])
def test_an_import_that_cannot_be_taken_whole_changes_nothing(
    folder: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with the exit code for a value that must be corrected."""
    (tmp_path / "export.json").write_text(text)
    assert call(capsys, "import", tmp_path / "export.json", "--dir", folder)[0] == 2
    assert dict(State(folder).ui) == {"theme": "dark", "size": 12}


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


def test_watch_prints_what_programs_store(folder: Path) -> None:
    """A line for each variable, until Ctrl-C."""
    program = "import sys; from holdfast.cli.state import command; from holdfast.cli.invocation import run; "
    program += "print('ready', flush=True); sys.exit(run(command, 'state', sys.argv[1:]))"
    watching = subprocess.Popen(
        [sys.executable, "-c", program, "watch", "ui", "--dir", str(folder)], stdout=subprocess.PIPE, text=True
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
