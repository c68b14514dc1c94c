"""docs/cli.md shows the help of every command as it is."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from holdfast.cli import command, run_plugin, simulate, store_keys
from holdfast.cli.invocation import run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
PROGRAMS = {
    "holdfast": command,
    "run_plugin": run_plugin.command,
    "simulate_run_plugin_from_frontend": simulate.command,
    "store_keys": store_keys.command,
}
HELP = dict(re.findall(rf"(?ms)^```console\n\$ ((?:{'|'.join(PROGRAMS)})\b[^\n]*) --help\n(.*?)^```$", PAGE))


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
    assert sorted(HELP) == sorted([*commands("holdfast", command), *PROGRAMS])


@pytest.mark.parametrize("name", HELP)
def test_the_help_on_the_page_is_what_the_command_prints(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    program, *words = name.split()

    assert run(PROGRAMS[program], program, [*words, "--help"]) == 0
    assert capsys.readouterr().out == HELP[name]


def test_the_page_says_what_each_exit_code_means() -> None:
    """Every code that a command can end with is in the table."""
    codes = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)

    assert codes == ["0", "1", "2", "3", "4", "5", "6", "7", "75", "130", "141", "143"]
