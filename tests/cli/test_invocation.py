"""How a call begins and ends: what help loads, exit codes, errors, Ctrl-C and closed pipes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from holdfast import PodClient, errors
from holdfast.cli import COMMANDS
from holdfast.cli.invocation import run
from holdfast.errors import DeniedError
from tests.cli.conftest import Answer, Call

HEAVY = {"apsw", "asyncio", "cryptography", "httpx", "platformdirs", "pydantic", "rich", "structlog"}
"""What ``holdfast --help`` must not bring along."""


def test_help_and_completion_load_nothing_heavy() -> None:
    """Neither the commands' own modules' needs nor their help need the database, the models or the drawing."""
    program = (
        "import sys\n"
        "from holdfast.cli import COMMANDS, command, run, store_keys\n"
        "for words in (['--help'], *([name, '--help'] for name in COMMANDS)):\n"
        "    assert run(command, 'holdfast', words) == 0\n"
        "assert run(store_keys.command, 'store_keys', ['--help']) == 0\n"
        f"print(sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr)\n"
    ).replace("command, run, store_keys", "command, run\nfrom holdfast.cli import store_keys")

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "[]\n")


def test_help_of_the_whole_loads_no_command(shell: Call) -> None:
    """The table of commands says what they are, so that a hundred commands cost no more than one."""
    program = "import sys; from holdfast.cli import command, run; run(command, 'holdfast', ['--help']); "
    program += "print([name for name in sys.modules if name.startswith('holdfast.cli.')], file=sys.stderr)"

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert ran.stderr == "['holdfast.cli.invocation']\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_of_each_command_what_its_own_help_says_first(name: str) -> None:
    """The one line of the table is the first line of the command's help."""
    command: click.Command = import_module(f"holdfast.cli.{name}").command

    assert COMMANDS[name] == (command.help or "").partition("\n")[0]


def test_version_names_the_program_and_its_version(shell: Call) -> None:
    """``holdfast --version`` and ``python -m holdfast --version`` answer alike."""
    assert shell("holdfast", "--version") == Answer(0, "holdfast 0.1.0\n", "")
    assert shell("python", "-m", "holdfast", "--version") == Answer(0, "holdfast 0.1.0\n", "")


@pytest.mark.parametrize(
    "kind,code",
    [
        (errors.InvalidError, 2),
        (errors.DeniedError, 3),
        (errors.NotFoundError, 4),
        (errors.ConflictError, 5),
        (errors.FencedError, 5),
        (errors.UnavailableError, 6),
        (errors.DamagedError, 6),
        (errors.PluginError, 7),
    ],
)
def test_an_error_is_one_line_and_its_kind_is_the_exit_code(
    kind: type[errors.HoldfastError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback; nothing on standard output; with --json one object that holds kind, message and facts."""

    @click.command()
    @click.option("--json", is_flag=True)
    def failing(**_: object) -> None:
        raise kind("the dog 'Bob' bit", dog="Bob")

    assert run(failing, "failing", []) == code
    assert capsys.readouterr() == ("", "Error: the dog 'Bob' bit\n")
    assert run(failing, "failing", ["--json"]) == code
    out, err = capsys.readouterr()
    error = {"kind": kind.__name__, "message": "the dog 'Bob' bit", "facts": {"dog": "Bob"}}
    assert (out, json.loads(err)) == ("", {"error": error})


def test_an_error_of_the_inside_is_named_by_its_public_kind(call: Call, dogs: Path, tmp_path: Path) -> None:
    """Whoever reads the JSON needs to know six kinds and none of the modules below."""
    answer = call("pod", "backup", tmp_path, "--json")

    assert answer.code == 5
    assert answer.error["kind"] == "ConflictError"
    assert answer.error["facts"] == {"path": str(tmp_path)}


def test_a_defect_keeps_its_traceback() -> None:
    """An exception that is no error of Holdfast is not dressed up as one."""

    @click.command()
    def failing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(failing, "failing", [])


def test_a_line_that_cannot_be_understood_ends_with_2(call: Call) -> None:
    """For people with the usage, for programs as an InvalidError."""
    answer = call("items", "search", "--bogus")
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("Usage: holdfast items search [OPTIONS]")
    assert call("items", "search", "--bogus", "--json").error["kind"] == "InvalidError"
    assert call("bogus").code == 2
    assert call("items").code == 2


@pytest.mark.parametrize("words", [("--home", "{}", "keys", "show"), ("keys", "show", "--home", "{}")])
def test_home_and_json_may_stand_behind_any_word(words: tuple[str, ...], call: Call, tmp_path: Path) -> None:
    """They mean the same in front of a command and behind it, and count before the environment."""
    other = tmp_path / "other"

    answer = call("--json", *(word.format(other) for word in words))

    assert answer.document == {"home": str(other), "keys": []}


def test_a_home_that_each_program_would_find_elsewhere_is_refused(shell: Call) -> None:
    """A relative path in the environment ends with 2."""
    answer = shell("holdfast", "keys", "show", env={"HOLDFAST_HOME": "relative"})

    assert answer.code == 2
    assert answer.err == "Error: HOLDFAST_HOME cannot be 'relative': it must be an absolute path\n"


@pytest.mark.parametrize("words", [["--help"], ["items", "search"]])
def test_a_closed_pipe_ends_quietly_with_141(words: list[str], dogs: Path) -> None:
    """As under a shell that runs ``holdfast … | head``: no traceback, and nothing on standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    program = Path(sys.executable).with_name("holdfast")

    ran = subprocess.run([program, *words], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (ran.returncode, ran.stderr) == (141, b"")


def test_a_closed_standard_output_is_no_error(dogs: Path) -> None:
    """As under ``holdfast … >&-``, where there is nobody to answer."""
    program = Path(sys.executable).with_name("holdfast")

    ran = subprocess.run(["sh", "-c", f"{program} items search >&-"], stderr=subprocess.PIPE, check=False)

    assert (ran.returncode, ran.stderr) == (0, b"")


def test_text_that_the_terminal_cannot_show_is_escaped(shell: Call, dogs: Path) -> None:
    """A hidden value is printed as an escape where the encoding has none, instead of ending the command."""
    answer = shell("holdfast", "items", "search", "Dog", "name=Bob", env={"PYTHONIOENCODING": "latin-1"})

    assert answer.code == 0
    assert "\\u2026" in answer.out


@pytest.mark.parametrize(
    "words,expected",
    [("holdfast i", "plain,items\n"), ("holdfast pod ", "plain,backup\nplain,restore\n"), ("store_keys --fr", None)],
)
def test_the_shell_can_complete_words(words: str, expected: str | None, shell: Call) -> None:
    """Commands and options are completed by what click gives to bash, zsh and fish."""
    program, *rest = words.split(" ")
    env = {f"_{program.upper()}_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(rest))}

    answer = shell(program, env=env)

    assert answer == Answer(0, expected or "plain,--from-file\n", "")


@pytest.mark.parametrize("words", [["--home", "", "doctor"], ["doctor", "--home="], ["keys", "show", "--home", ""]])
def test_an_empty_home_is_refused(words: list[str], call: Call, home: Path) -> None:
    """A script's variable that is not set must not lead to another home."""
    answer = call(*words)

    assert answer.code == 2
    assert "it is empty" in answer.err
    assert not home.exists()


@pytest.mark.parametrize(
    "named,words,said",
    [
        ("~nosuchuser/x", ["doctor"], "'~nosuchuser/x'"),
        ("~nosuchuser/x", ["keys", "show"], "'~nosuchuser/x'"),
        ("/" + "x" * 300, ["keys", "show"], "the name is too long"),
        ("/" + "x" * 300, ["items", "search"], "the name is too long"),
    ],
)
def test_a_home_that_cannot_be_is_wrong_input(
    named: str, words: list[str], said: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2, and one line that names it."""
    monkeypatch.setenv("HOLDFAST_HOME", named)

    answer = call(*words)

    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("Error: ")
    assert said in answer.err


@pytest.mark.parametrize("words", [["items", "search"], ["keys", "rotate"], ["pod", "backup", "copy"]])
def test_a_home_that_is_a_file_is_wrong_input(words: list[str], call: Call, home: Path) -> None:
    """2, and the file stays as it is."""
    home.write_text("a file")

    answer = call(*words)

    assert answer.code == 2
    assert "a part of the path is no folder" in answer.err
    assert home.read_text() == "a file"


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Path]:
    """A home in a folder that the user of this process may not enter."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield closed / "home"
    os.seteuid(before)
    closed.chmod(0o700)


@pytest.mark.parametrize(
    "words,code",
    [(["keys", "show"], 3), (["items", "search"], 3), (["pod", "backup", "copy"], 3), (["doctor"], 6)],
)
def test_a_home_of_somebody_else_is_denied(words: list[str], code: int, call: Call, stranger: Path) -> None:
    """One line that names what may not be entered; the doctor finds it and goes on."""
    answer = call("--home", stranger, *words)

    assert answer.code == code
    assert "this user may not" in answer.out + answer.err


def test_a_client_of_a_home_of_somebody_else_is_denied(stranger: Path) -> None:
    """The error is ours, and Python's PermissionError as well."""
    with pytest.raises(DeniedError, match="this user may not"):
        PodClient(home=stranger)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("words", [["holdfast", "doctor", "--json"], ["holdfast", "--help"], ["store_keys"]])
def test_an_answer_that_cannot_be_written_ends_with_6(words: list[str], home: Path) -> None:
    """One line on standard error, no traceback."""
    program = Path(sys.executable).with_name(words[0])
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [program, *words[1:]],
            env={**os.environ, "HOLDFAST_HOME": str(home)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert ran.returncode == 6
    assert "the answer could not be written to standard output: No space left on device" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
