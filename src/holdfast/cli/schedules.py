"""``holdfast runs schedule``: let runs of a plugin begin by themselves."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.drawing import draw
from holdfast.cli.invocation import Call, lent_streams, with_common_options
from holdfast.cli.run import read_config
from holdfast.errors import InvalidError, NotFoundError

# As in `items`: help needs neither the database nor pydantic, so each command imports them itself.
if TYPE_CHECKING:
    from holdfast.items import Schedule
    from holdfast.store import Store

_COLUMNS = ["plugin", "state", "when", "overlap", "catch_up", "last", "next", "error"]
_IMAGE = "holdfast"
"""The image of runs for which none is named: it may stand for a process as well; one without any is not started."""


@click.command("schedule")
@click.argument("plugin", required=False)
@click.option("--state", metavar="NAME", help='The plugin state to work on, if not "default".')
@click.option("--every", type=int, metavar="SECONDS", help="Begin a run each time so many seconds have passed.")
@click.option("--cron", metavar="EXPR", help="Begin a run whenever this says, such as '30 4 * * mon-fri'.")
@click.option("--timezone", metavar="TZ", help="Whose time --cron means, such as Europe/Amsterdam; else UTC.")
@click.option("--overlap", metavar="skip|queue", help='If a run has not ended: begin none ("skip"), or another one.')
@click.option("--catch-up", metavar="latest|all|none", help='Which missed runs are made up for; else "latest".')
@click.option("--config", metavar="FILE|JSON", help="The configuration of its runs: a file, or an object.")
@click.option(
    "--image", metavar="IMAGE", help='What its runs are launched from, if not what the metadata say, or "holdfast".'
)
@click.option("--off", "is_off", is_flag=True, help="End the schedule; runs that have begun go on.")
@click.option("--list", "is_list", is_flag=True, help="List the schedules, those of all plugins if none is named.")
@with_common_options
@click.pass_obj
def command(call: Call, plugin: str | None, state: str | None, *, is_off: bool, is_list: bool, **how: Any) -> None:
    """Let runs of a plugin begin by themselves.

    PLUGIN is what "holdfast run" takes; a server with a launcher starts the runs, and must find it as installed, or in
    the plugins' folder. A plugin state has one schedule: said again, it is replaced. Without --every and --cron the
    metadata say when.
    """
    from holdfast.context import open_store

    if is_off + is_list + any(value is not None for value in how.values()) > 1:
        raise InvalidError("a schedule is set, ended (--off) or listed (--list): one of the three")
    if plugin is None and not is_list:
        raise InvalidError("no plugin was named: say whose runs are meant, or --list")
    if not (is_list or is_off):
        _put(call, plugin or "", state or "default", **how)
        return
    with open_store(call.settings()) as store:
        if is_list:
            _list(call, store, plugin, state)
        else:
            _end(call, store, plugin or "", state or "default")


def _put(
    call: Call,
    plugin: str,
    state: str,
    *,
    every: int | None,
    config: str | None,
    image: str | None,
    catch_up: str | None,
    **how: str | None,
) -> None:
    from holdfast.context import PodClient, open_store
    from holdfast.engine import config_of, plan_state
    from holdfast.engine.schedules import put_schedule
    from holdfast.items import PluginRun, Schedule, definition_of
    from holdfast.plugins import arguments_from, source_of
    from holdfast.plugins.named import find_named
    from holdfast.pod import Pod

    given, settings = None if config is None else read_config(config), call.settings()
    with lent_streams():
        source = find_named(plugin, settings.plugins_dir) or source_of(plugin)
        cls = source.load() if image is None else None  # what an image holds need not be here
        source = source if cls is None else source.known(cls)
        used = config_of(source.properties.get("config"), "the metadata", instead=given)
        if cls is not None:
            arguments_from(cls, used)
    known = definition_of(Schedule).properties.keys() & definition_of(PluginRun).properties.keys()
    values = {name: value for name, value in source.properties.items() if name in known}
    if every is not None or how["cron"] is not None:
        values |= {"interval": every, "cron": None, "timezone": None}
    values |= {name: value for name, value in how.items() if value is not None}
    values |= {"config": json.dumps(used), "catchUp": catch_up}
    values["containerImage"] = image or values.get("containerImage") or _IMAGE
    with PodClient(settings=settings), open_store(settings) as store:  # the first makes a Pod where there is none
        schedule = put_schedule(store, plan_state(Pod(store), source.plugin_id, state), values, source.account)
        found = _describe(schedule, store.now_ms())
    call.answer(found, f"Runs of {found['plugin']} begin {found['when']}, the next one at {found['next']}.")


def _end(call: Call, store: Store, plugin: str, state: str) -> None:
    from holdfast.pod import Pod

    found = _find(store, plugin, state)
    if not found:
        message = f"plugin {plugin!r} has no schedule on plugin state {state!r}: --list shows which there are"
        raise NotFoundError(message, plugin=plugin, state=state)
    Pod(store).delete_items(found)
    ended = [_describe(each, store.now_ms()) for each in found]
    call.answer({"ended": ended}, f"Runs of {plugin} begin by themselves no more.")


def _list(call: Call, store: Store, plugin: str | None, state: str | None) -> None:
    found = [_describe(each, store.now_ms()) for each in _find(store, plugin, state)]
    if call.is_json:
        call.answer({"schedules": found}, "")
    else:
        draw(_COLUMNS, [[[each[name] or "" for name in _COLUMNS] for each in found]])


def _find(store: Store, plugin: str | None, state: str | None) -> list[Schedule]:
    """Return the schedules of a plugin, whose code may be gone, on a plugin state; None: of any."""
    from holdfast.engine.schedules import list_schedules
    from holdfast.plugins import source_of
    from holdfast.pod import Pod

    if plugin is not None and (".py:" in plugin or plugin.endswith(".json")):
        plugin = source_of(plugin).plugin_id
    return [
        each
        for each in list_schedules(Pod(store))
        if plugin in (None, each.pluginModule, f"{each.pluginModule}:{each.pluginName}")
        and (state is None or any(its.name == state for its in each.pluginState))
    ]


def _describe(schedule: Schedule, now_ms: int) -> dict[str, Any]:
    from holdfast.engine.schedules import plan
    from holdfast.items import properties_of
    from holdfast.values import from_ms

    error, next_ms = None, None
    try:
        if not schedule.isPaused:
            next_ms = plan(properties_of(schedule), now_ms).next_ms
    except InvalidError as exc:
        error = exc.message
    rule = f"every {schedule.interval} s"
    if schedule.cron is not None:
        rule = f"at {schedule.cron} ({schedule.timezone or 'UTC'})"
    return {
        "id": schedule.id,
        "plugin": f"{schedule.pluginModule}:{schedule.pluginName}",
        "state": next((each.name for each in schedule.pluginState), None),
        "when": "paused" if schedule.isPaused else rule,
        "overlap": schedule.overlap or "skip",
        "catch_up": schedule.catchUp or "latest",
        "last": _shown(schedule.scheduledTo),
        "next": _shown(None if next_ms is None else from_ms(next_ms)),
        "error": error,
    }


def _shown(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat(timespec="seconds").replace("+00:00", "Z")
