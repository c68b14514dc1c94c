"""``holdfast run``: carry a plugin on in this process. Standard output is the plugin's, standard error ours."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from holdfast.cli.drawing import escaped, progress
from holdfast.cli.invocation import Call, lent_streams, say, to_json, with_common_options
from holdfast.errors import InvalidError

if TYPE_CHECKING:
    from holdfast.keys import Identity

_SAID_IN_WORDS = ("holdfast.engine.runner", "holdfast.engine.holding")


@click.command()
@click.argument("plugin")
@click.option("--config", metavar="FILE|JSON", help="Its configuration: a file, or an object such as '{\"a\": 1}'.")
@click.option("--state", default="default", metavar="NAME", help="The plugin state to work on, if not the default one.")
@click.option("--new", "is_new", is_flag=True, help="Begin a new run, even if there is an unfinished one.")
@with_common_options
@click.pass_context
def command(ctx: click.Context, plugin: str, config: str | None, *, state: str, is_new: bool) -> None:
    """Run a plugin from where it was.

    PLUGIN is the NAME of one in the plugins' folder or of an installed one, MODULE:CLASS, FILE.py:CLASS or a file of
    metadata that ends in .json. An unfinished run of the plugin
    state is carried on, else a new one begins. Standard output is the plugin's; with --json the answer is the last
    line of standard error.
    """
    given = None if config is None else read_config(config)
    carry(ctx, plugin, config=given, state=state, is_new=is_new)


def carry(
    ctx: click.Context, plugin: str | None, *, folder: Path | None = None, identity: Identity | None = None, **how: Any
) -> None:
    """Carry a run on, say on standard error what became of it, and end with its exit code.

    Args:
        ctx: The call.
        plugin: As `command` takes it; None: ``how`` names a run.
        folder: Where the module of a named run is looked for.
        identity: The owner; None: the one of the home.
        **how: What else `holdfast.context.carry_out` is told.
    """
    from holdfast.context import carry_out  # start-up: it brings the database and pydantic
    from holdfast.context.running import is_claimed
    from holdfast.engine import FactsFormatter
    from holdfast.plugins import Source, source_of
    from holdfast.plugins.named import find_named

    class Messages(logging.Handler):
        """Shows what is logged; failures and ends are said in words below."""

        def emit(self, record: logging.LogRecord) -> None:
            is_news = record.levelno >= logging.WARNING and record.name not in _SAID_IN_WORDS
            if is_news or not record.name.startswith("holdfast."):
                with suppress(Exception):  # the plugin may have closed the stream, or put anything in its place
                    click.echo("\n".join(map(escaped, self.format(record).splitlines())), err=True)

    call: Call = ctx.obj
    messages = Messages()
    messages.setFormatter(FactsFormatter("%(levelname)s %(name)s: %(message)s"))
    settings, pid = call.settings(), os.getpid()
    if not is_claimed(how.get("address")):  # else all of it is on standard error
        logging.getLogger().addHandler(messages)
    try:
        if plugin is None:
            source = Source(module="", name="", folder=folder or Path.cwd())
        else:
            source = find_named(plugin, settings.plugins_dir) or source_of(plugin)
        with lent_streams(), progress("Running", is_quiet=call.is_json, unit="steps") as report:

            def show(done: int, total: int | None) -> None:
                if report is not None:
                    with suppress(Exception):  # as above
                        report(done, total)

            outcome = carry_out(settings, source, identity=identity, on_progress=show, owns_process=True, **how)
    finally:
        logging.getLogger().removeHandler(messages)
        if os.getpid() != pid:
            os._exit(0)  # a child that the plugin forked while it was imported
    is_failure = outcome.exit_code in (*range(1, 8),)
    status = "was taken over" if outcome.status is None else f"is {outcome.status}"
    text = f"{'Error: run' if is_failure else 'Run'} {outcome.run} {status}"
    text += "" if outcome.error is None else f": {escaped(outcome.error)}"
    text += "" if outcome.retry_after_s is None else f"\nTry again in {outcome.retry_after_s:.0f} s."
    if is_failure and not is_claimed(how.get("address")):
        text += f"\nIts log is {str(settings.run_log_path(outcome.run))!r}."
    names = ("run", "status", "error", "exit_code", "retry_after_s")
    say(to_json({name: getattr(outcome, name) for name in names}) if call.is_json else text)
    ctx.exit(outcome.exit_code)


def read_config(text: str) -> dict[str, Any]:
    """Return a configuration: text that begins with a brace is one, any other names a file.

    Raises:
        InvalidError: It is no JSON object, or the file cannot be read.
    """
    what = "the configuration" if text.lstrip().startswith("{") else f"the configuration in {text!r}"
    try:
        found: Any = json.loads(text if text.lstrip().startswith("{") else Path(text).read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise InvalidError(f"{what} cannot be read as JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise InvalidError(f"{what} must be an object such as {{}}, not {type(found).__name__}")
    return cast("dict[str, Any]", found)
