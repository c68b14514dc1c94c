"""docs/cli.md shows the help of every command as it is."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from holdfast.cli import command, run_plugin, store_keys
from holdfast.cli.invocation import run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
HELP = dict(re.findall(r"(?ms)^```console\n\$ ((?:holdfast|run_plugin|store_keys)\b[^\n]*) --help\n(.*?)^```$", PAGE))


def commands(name: str, found: click.Command) -> Iterator[str]:
    """Yield the commands that do something, as they are called."""
    if isinstance(found, click.Group):
        context = click.Context(found)
        for each in found.list_commands(context):
            below = found.get_command(context, each)
            assert below is not None
            yield from commands(f"{name} {each}", below)
    else:
        yield name


def test_the_page_shows_every_command() -> None:
    """None that there is not, none left out."""
    assert sorted(HELP) == sorted(["holdfast", *commands("holdfast", command), "run_plugin", "store_keys"])


@pytest.mark.parametrize("name", HELP)
def test_the_help_on_the_page_is_what_the_command_prints(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    program, *words = name.split()
    programs = {"holdfast": command, "run_plugin": run_plugin.command, "store_keys": store_keys.command}

    assert run(programs[program], program, [*words, "--help"]) == 0
    assert capsys.readouterr().out == HELP[name]


def test_the_page_says_what_each_exit_code_means() -> None:
    """Every code that a command can end with is in the table."""
    codes = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)

    assert codes == ["0", "1", "2", "3", "4", "5", "6", "7", "75", "130", "141", "143"]
