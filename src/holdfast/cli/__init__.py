"""Door: the terminal. The commands, each loaded when it is called, so that help and completion are there at once."""

from __future__ import annotations

from importlib import import_module
from typing import Final, NoReturn

import click

from holdfast.cli.invocation import end, run, with_common_options

COMMANDS: Final = {
    "doctor": "Look for what is wrong, and say what to do.",
    "items": "Search and show what is in the Pod.",
    "keys": "Show which keys are here, and replace them.",
    "plugins": "See which plugins there are and whether they work; begin one, remove one.",
    "pod": "Back up the Pod, and restore it.",
    "run": "Run a plugin from where it was.",
    "runs": "See what runs, stop it, start it again.",
    "serve": "Serve the Pods of this home over HTTP.",
    "snapshots": "See what is saved in a folder, prove it, and make room.",
    "state": "Look at variables, and change them.",
}
"""The module of each command, with the first line of its help; said here, so that no module is loaded for it."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's interface, as below
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return import_module(f"{__name__}.{cmd_name}").command if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Commands)
@click.version_option(package_name="holdfast", message="%(prog)s %(version)s")
@with_common_options
def command() -> None:
    """Run plugins, and look after the Pod that they keep their data in."""


def main() -> NoReturn:
    """Run ``holdfast`` with the arguments of this process, and end it."""
    end(run(command, "holdfast"))
