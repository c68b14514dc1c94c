"""``holdfast keys``: which keys are here, by their ids; no secret is ever printed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.drawing import draw
from holdfast.cli.invocation import Call, with_common_options

# Everything else is imported where it is needed: it brings the database and pydantic, and help needs neither.
if TYPE_CHECKING:
    from holdfast.context import Settings


@click.group()
@with_common_options
def command() -> None:
    """Show which keys are here, and replace them."""


@command.command()
@with_common_options
@click.pass_obj
def show(call: Call) -> None:
    """Show the key files with their ids and modes, and no secret.

    A file that cannot be used is an error; "holdfast doctor" looks at all of them in any case.
    """
    settings = call.settings()
    found = list(_list(settings))
    if call.is_json:
        call.answer({"home": str(settings.home), "keys": found}, "")
    elif found:
        columns = ["what", "key_id", "mode", "owner", "path"]
        draw(columns, [[[each.get(column, "") for column in columns] for each in found]])
    else:
        click.echo(f"There are no keys in {str(settings.home)!r} yet: store_keys or the first PodClient() makes them.")


@command.command()
@with_common_options
@click.pass_obj
def rotate(call: Call) -> None:
    """Replace the secret that opens the Pod; its file is not written, and may be in use.

    The old keys are kept beside the new ones, for backups that were made before. Killed, run it again.
    """
    from holdfast import keys
    from holdfast.context import get_pod

    home = call.settings().home
    path, _ = get_pod(call.settings())
    kept = home / f"keys.{keys.read_identity(home).key_id}.json"
    identity = keys.rotate(home, path.with_suffix(".json"))
    file = home / keys.IDENTITY_FILE
    call.answer(
        {"owner": identity.owner_key, "key_id": identity.key_id, "path": str(file), "kept": str(kept)},
        f"The key is {identity.key_id} now: back up {str(file)!r}. The old keys are kept as {kept.name!r}.",
    )


def _list(settings: Settings) -> Iterator[dict[str, str]]:
    from holdfast import keys
    from holdfast.context import pod_key_id

    path = settings.home / keys.IDENTITY_FILE
    if path.exists():
        identity = keys.read_identity(settings.home)
        yield {"what": "identity", "key_id": identity.key_id, "owner": identity.owner_key, **_file(path)}
        path = settings.pod_path(identity.owner_key).with_suffix(".json")
        if path.exists():
            yield {"what": "envelope", "key_id": keys.read_envelope(path).key_id, **_file(path)}
    for path in sorted(settings.home.glob("keys.*.json")):
        yield {"what": "kept identity", "key_id": path.suffixes[0][1:], **_file(path)}
    path = settings.home / keys.POD_KEY_FILE
    variables = {keys.POD_KEY_VARIABLE, keys.POD_KEY_FILE_VARIABLE} & settings.environ.keys()
    if variables or path.exists():
        place = {"path": min(variables)} if variables else _file(path)
        yield {"what": "Pod key", "key_id": pod_key_id(settings), **place}


def _file(path: Path) -> dict[str, str]:
    return {"mode": f"{stat.S_IMODE(path.stat().st_mode):04o}", "path": str(path)}
