"""``store_keys``: make, bring and take away the keys of an owner; keys in use are never replaced."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

import click

from holdfast.cli.invocation import Call, run, with_common_options
from holdfast.errors import DamagedError, InvalidError

_MAX_BYTES: Final = 65536
"""Read of what is to be keys, which are not 400."""


@click.command()
@click.option("--owner-key", "--owner_key", metavar="HEX", help="The owner's name; comes with --database-key.")
@click.option("--database-key", "--database_key", metavar="HEX", help="The owner's secret; others can see it in ps.")
@click.option("--from-file", type=click.File("rb"), help="Bring the keys in this copy of keys.json; - reads stdin.")
@click.option("--export", metavar="FILE", help="Write the keys to a new file that you alone can read; - prints them.")
@with_common_options
@click.pass_obj
def command(
    call: Call, owner_key: str | None, database_key: str | None, from_file: BinaryIO | None, export: str | None
) -> None:
    """Make the owner's keys, if there are none, and say where they are.

    With keys given, store those. Keys that a Pod here needs are not replaced; unused ones are, and are kept.
    """
    from holdfast import keys  # start-up: help needs neither
    from holdfast.disk import Disk

    if (owner_key is None) != (database_key is None):
        raise click.UsageError("--owner-key and --database-key must come together; --from-file brings both")
    if from_file is not None and owner_key is not None:
        raise click.UsageError("keys come with --from-file or as two options, not both")
    if export == "":  # an unset variable of a script: no copy would be made, and nobody would notice
        raise click.UsageError("--export is empty: a file is expected, or - to print the keys")
    settings = call.settings()

    def is_in_use(identity: keys.Identity) -> bool:
        path = settings.pod_path(identity.owner_key)
        # What was replaced, or is being restored, needs its keys as well; a lock and a mark stay when a Pod is moved.
        return any(each.suffix not in {".lock", ".made"} for each in path.parent.glob(f"{path.stem}.*"))

    if from_file is not None:
        try:
            given = keys.Identity.from_json(from_file.read(_MAX_BYTES), what=f"key file {from_file.name!r}")
        except DamagedError as exc:  # nothing that is kept here is damaged: what was given is wrong
            reason = exc.facts["reason"]
            message = f"{from_file.name!r} holds no keys: {reason}; a file that store_keys --export wrote is expected"
            raise InvalidError(message, path=from_file.name, reason=reason) from exc
        keys.store_identity(settings.home, given, is_in_use=is_in_use)
    elif owner_key is not None and database_key is not None:
        keys.store_identity(settings.home, keys.Identity(owner_key, database_key), is_in_use=is_in_use)
    identity = keys.read_identity(settings.home) if export else keys.load_or_create_identity(settings.home)
    if export == "-":
        click.echo(identity.to_json().decode(), nl=False)
        return
    path = settings.home / keys.IDENTITY_FILE
    text = f"The keys of owner {identity.owner_key} are in {str(path)!r} (key {identity.key_id})."
    if export:
        Disk().create(Path(export).absolute(), identity.to_json(), mode=0o600)
        text += f" A copy is in {export!r}: keep it in another place than the backups of the Pod."
    facts = {"owner": identity.owner_key, "key_id": identity.key_id, "path": str(path), "exported": export}
    call.answer(facts, text)


def main() -> NoReturn:
    """Run ``store_keys`` with the arguments of this process, and end it."""
    sys.exit(run(command, "store_keys"))
