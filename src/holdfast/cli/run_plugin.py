"""``run_plugin``: carry a run on as whatever launched this process says, by arguments or in the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from holdfast.cli.invocation import end, run, with_common_options
from holdfast.cli.run import carry, read_config
from holdfast.errors import InvalidError

if TYPE_CHECKING:
    from holdfast.keys import Identity


@click.command()
@click.option("--metadata", metavar="FILE", help="The plugin, and what its runs are to have: a JSON object.")
@click.option("--config_file", metavar="FILE", help="Its configuration; that of the run is then ignored.")
@click.option("--plugin_run_id", metavar="ID", help="Carry on this run.  [POD_PLUGINRUN_ID, POD_TARGET_ITEM]")
@click.option("--owner_key", metavar="HEX", help="Whose Pod, if not this home's.  [POD_OWNER]")
@click.option("--database_key", metavar="HEX", help="What opens it.  [POD_AUTH_JSON, POD_AUTH_FILE]")
@click.option("--pod_full_address", metavar="URL", help="Where the Pod is, if not here.  [POD_FULL_ADDRESS]")
@click.option("--plugin_path", metavar="DIR", help="Where the module of a run that is named is looked for.")
@click.option("--read_args_from_env", is_flag=True, help="Fail unless the environment names a run.")
@with_common_options
@click.pass_context
def command(
    ctx: click.Context, metadata: str | None, config_file: str | None, plugin_path: str | None, **given: Any
) -> None:
    """Run a plugin: a run that is named, or the one of its metadata.

    What is not passed is taken from the environment, from the variables in brackets. Without --plugin_path the module
    of a named run is looked for beside the metadata, else here. Everything else is as "holdfast run" says.
    """
    from holdfast.context.addresses import Address  # start-up: it brings pydantic
    from holdfast.keys import load_or_create_identity

    environ = os.environ
    keys = {name: given[name] for name in ("owner_key", "database_key")}
    settings = ctx.obj.settings()
    address = Address.find(
        environ, url=given["pod_full_address"], **keys, identity=lambda: load_or_create_identity(settings.home)
    )
    run_id = given["plugin_run_id"]
    if run_id is None and (metadata is None or given["read_args_from_env"]):
        run_id = environ.get("POD_PLUGINRUN_ID") or _run_in(environ)
        if run_id is None:
            raise click.UsageError("no run is named: --metadata, --plugin_run_id or POD_PLUGINRUN_ID is expected")
    if run_id is None and plugin_path is not None:
        raise click.UsageError("--plugin_path is for a run that is named: a plugin is beside its --metadata")
    folder = plugin_path or (None if metadata is None else Path(metadata).parent)
    carry(
        ctx,
        metadata if run_id is None else None,
        folder=None if folder is None else Path(folder).absolute(),
        address=address,
        identity=_identity(**keys, environ=environ) if address is None else None,
        config=None if config_file is None else read_config(config_file),
        run_id=run_id,
    )


def _run_in(environ: Mapping[str, str]) -> str | None:
    text = environ.get("POD_TARGET_ITEM", "")
    found: object = _json("POD_TARGET_ITEM", text).get("id") if text.startswith("{") else text
    return found if isinstance(found, str) and found else None


def _identity(owner_key: str | None, database_key: str | None, environ: Mapping[str, str]) -> Identity | None:
    from holdfast.context.addresses import read_auth  # as above
    from holdfast.keys import Identity  # start-up: help needs no cryptography

    owner_key = owner_key or environ.get("POD_OWNER")
    if database_key is None:
        database_key, token = read_auth(environ)
        if token is not None:
            raise InvalidError("a token opens a Pod on a server: say where that is, with POD_FULL_ADDRESS")
    if owner_key is None and database_key is None:
        return None
    if owner_key is None or database_key is None:
        raise InvalidError(
            "an owner's key and a database key must come together: one names the Pod, the other opens it"
        )
    return Identity(owner_key, database_key)


def _json(name: str, text: str) -> dict[str, Any]:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidError(f"{name} must hold a JSON object")  # and not its text: it may hold a key
    return cast("dict[str, Any]", found)


def main() -> NoReturn:
    """Run ``run_plugin`` with the arguments of this process, and end it."""
    end(run(command, "run_plugin"))
