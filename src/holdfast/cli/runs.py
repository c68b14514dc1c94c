"""``holdfast runs``: see what runs, stop it, start it again."""

from __future__ import annotations

import json
from collections import deque
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import click

from holdfast.cli.drawing import draw, escaped
from holdfast.cli.invocation import Call, with_common_options
from holdfast.cli.schedules import command as schedule
from holdfast.errors import NotFoundError

# As in `items`: help needs neither the database nor pydantic, so each command imports them itself.
if TYPE_CHECKING:
    from holdfast.runs import Status
    from holdfast.sql import SqliteStore
    from holdfast.store import Store

_COLUMNS = ["id", "plugin", "state", "status", "progress", "written", "error"]


@click.group()
@with_common_options
def command() -> None:
    """See what runs, stop it, start it again."""


command.add_command(schedule)


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
    from holdfast.engine import find_state, get_run_row

    with _open(call) as store:
        found = _describe(store, run)
        has = get_run_row(store, run).properties.get
        state, now_ms = find_state(store, run), store.now_ms()
        lease = None if state is None else store.find_lease(state.id)
    if lease is None or not lease.is_held(now_ms):
        found |= {"holder": None, "lease_left_s": None}
    else:
        found |= {"holder": lease.run, "lease_left_s": (lease.expires_ms - now_ms) // 1000}
    retry_ms = cast("int | None", has("retryAt"))
    found |= {"image": has("containerImage"), "deaths": has("deaths")}
    found["retry_at"] = None if retry_ms is None else _instant(retry_ms)
    found["log"] = str(call.settings().run_log_path(run))
    if call.is_json:
        call.answer(found, "")
    else:
        draw(["what", "value"], [[[name, "" if value is None else str(value)] for name, value in found.items()]])


@command.command()
@click.argument("run")
@click.option("--lines", type=click.IntRange(1), help="Only the last so many.")
@click.option("--follow", "-f", "is_followed", is_flag=True, help="Go on with what comes, until the run has ended.")
@with_common_options
@click.pass_obj
def logs(call: Call, run: str, lines: int | None, *, is_followed: bool) -> None:
    """Print what a run has logged, in all its attempts.

    First what is in this home, of attempts that were begun here, then what a server has launched and brought to the
    Pod. With --follow that is a moment after the run has ended, when the server has cleaned up after it; --json is then
    an object for each line.
    """
    from holdfast.cli.logs import RunLog
    from holdfast.engine import FINISHED

    path = call.settings().run_log_path(run)
    with ExitStack() as stack:
        store = stack.enter_context(_open(call))
        _describe(store, run)  # the name of a file is made of nothing but what the Pod knows
        log = stack.enter_context(RunLog(store, run, path))
        there = log.look() if is_followed else chain(log.look(), log.end())
        if lines is not None:
            there = iter(deque(there, lines))
        if is_followed:
            for line in chain(there, log.follow(lambda: _status(store, run) in FINISHED)):
                click.echo(json.dumps({"line": line}) if call.is_json else escaped(line))
            return
        first = next(there, None)
        if first is None:
            message = f"run {run!r} has logged nothing: there is no {str(path)!r}, and nothing in the Pod"
            raise NotFoundError(message, path=str(path))
        said = chain([first], there)
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
@click.option(
    "--image", metavar="IMAGE", help='What a server launches it from, from now on; "none": it is carried on by hand.'
)
@with_common_options
@click.pass_obj
def retry(call: Call, run: str, image: str | None) -> None:
    """Make a run ready, to be carried on from what it had saved: one that ended as error or aborted, or that is lost.

    Lost is one that nobody works on, though it says so.
    """
    from holdfast import engine
    from holdfast.engine.supervising import UNLAUNCHED

    with _open(call) as store:
        engine.retry(store, run, image=image, locks=call.settings().locks_path)
        found = _describe(store, run)
        is_launched = engine.get_run_row(store, run).properties.get("containerImage") not in UNLAUNCHED
    how = "the server launches it" if is_launched else 'the next "holdfast run" of its plugin state carries it on'
    call.answer(found, f"Run {run} is ready; {how}.")


def _open(call: Call) -> SqliteStore:
    from holdfast.context import open_store

    return open_store(call.settings())


def _status(store: Store, run: str) -> Status:
    from holdfast.engine import get_run_row
    from holdfast.runs import status_of

    return status_of(get_run_row(store, run).properties.get("status"))


def _instant(ms: int) -> str:
    from holdfast.values import from_ms

    return from_ms(ms).isoformat(timespec="seconds").replace("+00:00", "Z")


def _describe(store: Store, run: str) -> dict[str, Any]:
    """Return a run as it is shown to people and programs alike; NotFoundError if there is none."""
    from holdfast.engine import find_state, get_run_row
    from holdfast.runs import status_of

    row, state = get_run_row(store, run), find_state(store, run)
    has = row.properties.get
    return {
        "id": row.id,
        "plugin": f"{has('pluginModule')}:{has('pluginName')}",
        "state": None if state is None else state.properties.get("name"),
        "status": str(status_of(has("status"))),
        "progress": has("progress"),
        "written": _instant(row.server_modified_ms),
        "error": has("error"),
    }
