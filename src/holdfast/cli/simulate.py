"""``simulate_run_plugin_from_frontend``: let a server launch a plugin, as an application would, and watch the run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from holdfast import errors
from holdfast.cli.drawing import escaped
from holdfast.cli.invocation import Call, end, run, say, with_common_options
from holdfast.cli.run import read_config
from holdfast.errors import FencedError, HoldfastError, InvalidError, PluginError, UnavailableError

if TYPE_CHECKING:
    from holdfast.remote import RemoteStore
    from holdfast.store import ItemRow, Store

_URL: Final = "http://127.0.0.1:3030"
_IMAGE: Final = "holdfast"


@click.command()
@click.option("--metadata", metavar="FILE", required=True, help="The plugin, and what its run is to have: JSON.")
@click.option("--config_file", metavar="FILE", help="Its configuration, instead of that in the metadata.")
@click.option("--container", metavar="IMAGE", help='What is launched, if not what the metadata say, or "holdfast".')
@click.option("--state", default="default", metavar="NAME", help="The plugin state to work on, if not the default one.")
@click.option("--owner_key", metavar="HEX", help="Whose Pod, if not this home's.  [POD_OWNER]")
@click.option("--database_key", metavar="HEX", help="What opens it.  [POD_AUTH_JSON, POD_AUTH_FILE]")
@click.option("--pod_full_address", metavar="URL", help=f"The server.  [POD_FULL_ADDRESS; default: {_URL}]")
@click.option("--wait", "is_awaited", is_flag=True, help="Follow the run until it has ended, and end as it has.")
@with_common_options
@click.pass_obj
def command(
    call: Call,
    metadata: str,
    config_file: str | None,
    container: str | None,
    state: str,
    *,
    is_awaited: bool,
    **given: str | None,
) -> None:
    """Create a run on a server, which launches it, and print the run's id.

    The plugin is not loaded here: it may be in an image only. With --wait the log of the run follows on standard
    output, and standard error says what becomes of it; the exit code is the one that "holdfast run" has, and with
    --json the answer comes at the end, without the log.
    """
    from holdfast.engine import begin_run, config_of, plan_state  # start-up: help needs no Pod, nor what is in it
    from holdfast.engine.supervising import UNLAUNCHED
    from holdfast.plugins.source import read_metadata
    from holdfast.pod import Pod

    if container in UNLAUNCHED[1:]:
        raise InvalidError(f"image {container!r} is never launched: name another, or leave --container out")
    config = None if config_file is None else read_config(config_file)
    source = read_metadata(Path(metadata))
    used = config_of(source.properties.get("config"), "the metadata", instead=config)
    images = (container, source.properties.get("containerImage"), _IMAGE)
    image = next(each for each in images if each not in UNLAUNCHED)
    properties = {**source.properties, "config": json.dumps(used), "containerImage": image}
    store = _connect(call, **given)
    with Pod(store) as client:
        begun = begin_run(client, plan_state(client, source.plugin_id, state), properties, source.account).id or ""
        if not is_awaited:
            call.answer({"run": begun}, begun)
            return
        if not call.is_json:
            click.echo(begun)
        row = _follow(store, begun, is_quiet=call.is_json)
    status, error = row.properties.get("status"), row.properties.get("error")
    code = _exit_code(str(status), str(error or ""))
    if call.is_json:
        call.answer({"run": begun, "status": status, "error": error, "exit_code": code}, "")
    elif error is not None:
        say(f"Error: {escaped(str(error))}")
    click.get_current_context().exit(code)


def _connect(call: Call, **given: str | None) -> RemoteStore:
    """Return the owner's Pod on the server, which is made if there is none."""
    from holdfast.context.addresses import URL_VARIABLE, Address
    from holdfast.keys import load_or_create_identity
    from holdfast.remote import RemoteStore, make_pod

    url = given["pod_full_address"] or os.environ.get(URL_VARIABLE) or _URL
    keys = {name: given[name] for name in ("owner_key", "database_key")}
    home = call.settings().home
    address = Address.find(os.environ, url=url, **keys, identity=lambda: load_or_create_identity(home))
    assert address is not None  # noqa: S101 -- for the checker: a server was named
    store = RemoteStore(connection := address.connect())
    try:
        if address.token is None:
            make_pod(connection)
    except BaseException as exc:
        store.close()
        if isinstance(exc, UnavailableError):
            message = f'{exc.message}; "holdfast serve" starts a server, --pod_full_address names another'
            raise UnavailableError(message, **exc.facts) from exc
        raise
    return store


def _follow(store: Store, run: str, *, is_quiet: bool) -> ItemRow:
    """Show what a run logs and becomes until it has ended, unless ``is_quiet``; return how it has."""
    from holdfast.cli.logs import LOOK_S, RunLog
    from holdfast.engine import FINISHED, get_run_row
    from holdfast.runs import status_of

    last: Any = None

    def has_ended() -> bool:
        nonlocal last
        status = status_of(get_run_row(store, run).properties.get("status"))
        if status is not last and not is_quiet:
            say(f"Run {run} is {status}.")
        last = status
        return status in FINISHED

    if is_quiet:
        while not has_ended():
            time.sleep(LOOK_S)
        return get_run_row(store, run)
    with RunLog(store, run, None) as log:
        for line in log.follow(has_ended):
            click.echo(escaped(line))
    return get_run_row(store, run)


def _exit_code(status: str, error: str) -> int:
    """Return what ``holdfast run`` ends with where this becomes of a run, whose error begins with what was raised."""
    if status != "error":
        return FencedError.exit_code if status == "aborted" else 0
    kind = vars(errors).get(error.partition(":")[0])
    if isinstance(kind, type) and issubclass(kind, HoldfastError) and kind is not HoldfastError:
        return kind.exit_code
    return PluginError.exit_code


def main() -> NoReturn:
    """Run ``simulate_run_plugin_from_frontend`` with the arguments of this process, and end it."""
    end(run(command, "simulate_run_plugin_from_frontend"))
