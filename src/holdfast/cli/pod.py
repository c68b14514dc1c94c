"""``holdfast pod``: back up and restore, with a question before anything is put in the place of a Pod."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.drawing import is_terminal, progress
from holdfast.cli.invocation import Call, with_common_options

if TYPE_CHECKING:
    from holdfast.sql import Backup

_FOLDER = click.Path(path_type=Path)


@click.group()
@with_common_options
def command() -> None:
    """Back up the Pod, and restore it."""


@command.command()
@click.argument("target", type=_FOLDER)
@with_common_options
@click.pass_obj
def backup(call: Call, target: Path) -> None:
    """Copy the Pod as it is at one moment into the new folder TARGET.

    Programs may go on writing to it meanwhile. The copy is encrypted and opens with the owner's keys, which are not
    in it. Stopped or killed, there is no folder, and never half of one.
    """
    from holdfast.context import back_up_pod  # start-up: it brings the database and pydantic

    with progress("Backing up", is_quiet=call.is_json) as report:
        found = back_up_pod(call.settings(), target, on_progress=report)
    call.answer(_document(found), f"Backed up {_said(found)}.")


@command.command()
@click.argument("backup", type=_FOLDER)
@click.option("--dry-run", is_flag=True, help="Check the backup, say what would happen, and change nothing.")
@click.option("--yes", "is_agreed", is_flag=True, help="Do not ask.")
@with_common_options
@click.pass_obj
def restore(call: Call, backup: Path, *, dry_run: bool, is_agreed: bool) -> None:
    """Put the backup in the folder BACKUP in the place of the Pod.

    The Pod that is there is set aside, not deleted; nothing may have it open. Keys from before a rotation are found
    if they are still kept. Killed, the restore is finished by whatever opens the Pod next, or has not happened.
    """
    from holdfast.context import inspect_backup, restore_pod  # start-up: it brings the database and pydantic

    if not (dry_run or is_agreed or (is_terminal(sys.stdin) and not call.is_json)):
        raise click.UsageError("nobody can be asked here: --yes restores, --dry-run says what that would do")
    settings = call.settings()
    found = inspect_backup(settings, backup)
    path = settings.pod_path(found.owner)
    is_there = path.exists()
    said = f"the Pod {str(path)!r} {'would be set aside' if is_there else 'does not exist yet'}"
    if dry_run:
        facts = {"replaces": str(path) if is_there else None, "is_changed": False}
        call.answer(_document(found) | facts, f"The backup holds {_said(found)}; {said}. Nothing was changed.")
        return
    if not is_agreed:
        click.echo(f"The backup holds {_said(found)}; {said}.", err=True)
        click.confirm("Restore it?", abort=True, err=True)
    with progress("Restoring", is_quiet=call.is_json) as report:
        aside = restore_pod(settings, backup, on_progress=report)
    kept = f" What was there is kept in {str(aside)!r}." if aside else ""
    facts = {"replaced": str(aside) if aside else None, "is_changed": True}
    call.answer(_document(found) | facts, f"Restored {_said(found)}.{kept}")


def _document(found: Backup) -> dict[str, object]:
    return {**asdict(found), "path": str(found.path)}


def _said(found: Backup) -> str:
    return f"{found.items:,} items, {found.size_bytes:,} bytes, in {str(found.path)!r}"
