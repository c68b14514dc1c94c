"""``holdfast runs``: see what runs, stop it, start it again."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from holdfast.cli.drawing import draw, escaped
from holdfast.cli.invocation import Call, with_common_options
from holdfast.errors import NotFoundError

# As in `items`: help needs neither the database nor pydantic, so each command imports them itself.
if TYPE_CHECKING:
    from holdfast.sql import SqliteStore
    from holdfast.store import Store

_COLUMNS = ["id", "plugin", "state", "status", "progress", "written", "error"]


@click.group()
@with_common_options
def command() -> None:
    """See what runs, stop it, start it again."""


@command.command("list")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option("--unfinished", "is_unfinished", is_flag=True, help="Only those that have not ended.")
@with_common_options
@click.pass_obj
def list_(call: Call, limit: int, *, is_unfinished: bool) -> None:
    """List runs, the one that was written last first."""
    from holdfast.engine import list_unfinished
    from holdfast.pod import Pod

    with _open(call) as store:
        client = Pod(store)
        all_: dict[str, Any] = {"type": "PluginRun", "_sortOrder": "Desc", "_limit": limit}
        listed = list_unfinished(client)[:limit] if is_unfinished else client.search(all_)
        found = [_describe(store, each.id or "") for each in listed]
    if call.is_json:
        call.answer({"runs": found}, "")
    else:
        draw(_COLUMNS, [[["" if each[name] is None else str(each[name]) for name in _COLUMNS] for each in found]])


@command.command()
@click.argument("run")
@with_common_options
@click.pass_obj
def show(call: Call, run: str) -> None:
    """Show one run: where it is, who has its plugin state, where its log is."""
    from holdfast.engine import find_state

    with _open(call) as store:
        found = _describe(store, run)
        state, now_ms = find_state(store, run), store.now_ms()
        lease = None if state is None else store.find_lease(state.id)
    if lease is None or not lease.is_held(now_ms):
        found |= {"holder": None, "lease_left_s": None}
    else:
        found |= {"holder": lease.run, "lease_left_s": (lease.expires_ms - now_ms) // 1000}
    found["log"] = str(call.settings().run_log_path(run))
    if call.is_json:
        call.answer(found, "")
    else:
        draw(["what", "value"], [[[name, "" if value is None else str(value)] for name, value in found.items()]])


@command.command()
@click.argument("run")
@click.option("--lines", type=click.IntRange(1), help="Only the last so many.")
@with_common_options
@click.pass_obj
def logs(call: Call, run: str, lines: int | None) -> None:
    """Print what a run has logged, in all its attempts."""
    with _open(call) as store:
        _describe(store, run)  # the name of a file is made of nothing but what the Pod knows
    path = call.settings().run_log_path(run)
    with ExitStack() as stack:
        files: list[TextIO] = []
        for each in (Path(f"{path}.1"), path):  # what had become too long, first
            with suppress(FileNotFoundError):
                files.append(stack.enter_context(each.open(encoding="utf-8", errors="replace")))
        if not files:
            raise NotFoundError(f"run {run!r} has logged nothing: there is no {str(path)!r}", path=str(path))
        all_ = chain.from_iterable(files)
        said = (line.rstrip("\n") for line in (all_ if lines is None else deque(all_, lines)))
        if call.is_json:
            call.answer({"log": str(path), "lines": list(said)}, "")
            return
        for line in said:
            click.echo(escaped(line))


@command.command()
@click.argument("run")
@click.option("--now", "is_now", is_flag=True, help="Do not ask it first: take the plugin state from it.")
@click.option("--wait", "wait_s", type=click.FloatRange(0), default=30.0, help="How many seconds it has to stop.")
@with_common_options
@click.pass_obj
def abort(call: Call, run: str, *, wait_s: float, is_now: bool) -> None:
    """Abort a run: ask it to stop; if it does not in time, stop it from writing anything more."""
    from holdfast import engine

    with _open(call) as store:
        is_forced = engine.abort(store, run, locks=call.settings().locks_path, wait_s=0 if is_now else wait_s)
        found = _describe(store, run)
    how = ": it was not asked, or did not answer, and can write no more" if is_forced else ""
    call.answer(found | {"is_forced": is_forced}, f"Run {run} is {found['status']}{how}.")


@command.command()
@click.argument("run")
@with_common_options
@click.pass_obj
def retry(call: Call, run: str) -> None:
    """Make a run that ended as error or aborted ready, to be carried on from what it had saved."""
    from holdfast import engine

    with _open(call) as store:
        engine.retry(store, run)
        found = _describe(store, run)
    call.answer(found, f'Run {run} is ready; the next "holdfast run" of its plugin state carries it on.')


def _open(call: Call) -> SqliteStore:
    from holdfast.context import open_store

    return open_store(call.settings())


def _describe(store: Store, run: str) -> dict[str, Any]:
    """Return a run as it is shown to people and programs alike; NotFoundError if there is none."""
    from holdfast.engine import find_state, get_run_row
    from holdfast.runs import status_of
    from holdfast.values import from_ms

    row, state = get_run_row(store, run), find_state(store, run)
    has = row.properties.get
    return {
        "id": row.id,
        "plugin": f"{has('pluginModule')}:{has('pluginName')}",
        "state": None if state is None else state.properties.get("name"),
        "status": str(status_of(has("status"))),
        "progress": has("progress"),
        "written": from_ms(row.server_modified_ms).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "error": has("error"),
    }
