"""``holdfast snapshots``: what is saved in a folder: see it, prove it, make room, copy it out."""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.drawing import draw, escaped, is_terminal, progress
from holdfast.cli.invocation import Call, with_common_options
from holdfast.errors import DamagedError, HoldfastError, InvalidError, NotFoundError, UnavailableError

# Start-up: help and completion need neither the disk nor BLAKE3, so each command imports them itself.
if TYPE_CHECKING:
    from holdfast.snapshots.keepers import StatesKeeper
    from holdfast.snapshots.removal import Candidate

_FOLDER = click.Path(path_type=Path)
_COUNT = click.IntRange(0)


@click.group()
@with_common_options
def command() -> None:
    """See what is saved in a folder, prove it, and make room.

    FOLDER holds the snapshots; a NAME is that of one directory in it.
    """


@command.command("list")
@click.argument("folder", type=_FOLDER)
@with_common_options
@click.pass_obj
def list_(call: Call, folder: Path) -> None:
    """List the snapshots in FOLDER, the newest first.

    A problem is one of the manifest; the rest is not read here: "verify" does that.
    """
    from holdfast.snapshots.removal import is_pinned

    found: list[dict[str, Any]] = []
    for each in _find(folder):
        usage = _measure(each.path)
        found.append(
            {
                "name": each.path.name,
                "created": each.created_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "size_bytes": usage.size_bytes,
                "shared_bytes": usage.disk_bytes - usage.freed_bytes,
                "metrics": dict(each.metrics),
                "is_pinned": is_pinned(each.path),
                "problem": each.problem if each.has_manifest else "it has no manifest",
            }
        )
    if call.is_json:
        call.answer({"folder": str(folder), "snapshots": found}, "")
        return
    rows = [
        [
            each["name"],
            each["created"],
            _number(each["size_bytes"]),
            _number(each["shared_bytes"]),
            ", ".join(f"{name} {value:g}" for name, value in each["metrics"].items()),
            "yes" if each["is_pinned"] else "",
            each["problem"] or "",
        ]
        for each in found
    ]
    draw(["name", "created", "bytes", "shared", "metrics", "pinned", "problem"], [rows])


@command.command()
@click.argument("folder", type=_FOLDER)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@with_common_options
@click.pass_context
def verify(ctx: click.Context, folder: Path, names: tuple[str, ...]) -> None:
    """Compare each byte with what was saved.

    All snapshots in FOLDER are read, or those that are named. Ends with 6 if one is damaged.
    """
    from holdfast.snapshots.reading import verify

    call: Call = ctx.obj
    found: list[dict[str, Any]] = []
    for path in _named(folder, names) if names else [each.path for each in _find(folder) if each.has_manifest]:
        with progress(f"Reading {escaped(path.name)}", is_quiet=call.is_json, unit="bytes") as report:
            try:
                faults = [{"entry": each.entry, "reason": each.reason} for each in verify(path, on_progress=report)]
            except HoldfastError as exc:  # the others are verified all the same
                faults = [{"entry": "", "reason": exc.message}]
        found.append({"name": path.name, "is_valid": not faults, "faults": faults})
    is_valid = all(each["is_valid"] for each in found)
    if call.is_json:
        call.answer({"folder": str(folder), "is_valid": is_valid, "snapshots": found}, "")
    else:
        rows = [
            [each["name"], "damaged" if each["faults"] else "valid", fault["entry"], fault["reason"]]
            for each in found
            for fault in each["faults"] or [{"entry": "", "reason": ""}]
        ]
        draw(["name", "is", "entry", "reason"], [rows])
    if not is_valid:
        ctx.exit(DamagedError.exit_code)


@command.command()
@click.argument("folder", type=_FOLDER)
@with_common_options
@click.pass_obj
def du(call: Call, folder: Path) -> None:
    """Show what each directory in FOLDER takes on the disk.

    Files that are shared by hard links are counted once; "frees" is what would be free without a directory. What is
    unfinished (.tmp-) or set aside (.bad-) is shown as well.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    paths = [path for path in paths if path.name != ".locks"]
    rows = [(path.name, _measure(path)) for path in paths]
    total = _measure(*paths)
    if call.is_json:
        found = [{"name": name, **usage.document()} for name, usage in rows]
        call.answer({"folder": str(folder), "directories": found, "total": total.document()}, "")
        return
    cells = [[name, *map(_number, usage.document().values())] for name, usage in [*rows, ("all", total)]]
    draw(["name", "bytes", "on disk", "shared", "frees"], [cells])


@command.command()
@click.argument("folder", type=_FOLDER)
@click.option("--latest", type=_COUNT, metavar="N", help="Keep the N newest.")
@click.option("--hourly", type=_COUNT, default=0, metavar="N", help="Keep one of each of the last N hours.")
@click.option("--daily", type=_COUNT, default=0, metavar="N", help="Keep one of each of the last N days.")
@click.option("--weekly", type=_COUNT, default=0, metavar="N", help="Keep one of each of the last N weeks.")
@click.option("--monthly", type=_COUNT, default=0, metavar="N", help="Keep one of each of the last N months.")
@click.option(
    "--best",
    type=(click.Choice(["min", "max"]), str, _COUNT),
    multiple=True,
    metavar="min|max METRIC N",
    help="Keep the N with the lowest or highest METRIC.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go and why, and change nothing.")
@click.option("--yes", "is_agreed", is_flag=True, help="Do not ask.")
@with_common_options
@click.pass_context
def prune(ctx: click.Context, folder: Path, *, dry_run: bool, is_agreed: bool, **policy: Any) -> None:
    """Remove the snapshots in FOLDER that none of the options keeps.

    Whatever they say, a pinned snapshot stays, and one that is being read, the newest one that verifies, and the last
    one that a plugin state pointed to. Only directories with a manifest are looked at.
    """
    from holdfast.disk import Disk
    from holdfast.snapshots.removal import remove

    call: Call = ctx.obj
    keeper = _keeper(folder, **policy)
    if not (dry_run or is_agreed or (is_terminal(sys.stdin) and not call.is_json)):
        raise click.UsageError("nobody can be asked here: --yes removes, --dry-run says what that would do")
    decisions = keeper.plan()
    going = [each for each in decisions if each.is_removed]
    if not call.is_json and (dry_run or not is_agreed):
        words = {True: "goes", False: "stays"}
        draw(["name", "it", "reason"], [[[each.path.name, words[each.is_removed], each.reason] for each in decisions]])
    if not dry_run and not is_agreed and going:
        click.confirm(f"Remove {len(going)} of {len(decisions)} snapshots?", abort=True, err=True)
    removed: list[str] = []
    failed: list[HoldfastError] = []
    for each in () if dry_run else going:
        try:
            if remove(each):
                removed.append(each.path.name)
        except HoldfastError as exc:
            failed.append(exc)
    if not dry_run:
        Disk().sweep(folder)  # what an earlier one, killed, has left
    if failed:
        message = (
            f"{len(failed)} of {len(going)} snapshots could not be removed, the first because: {failed[0].message}"
        )
        raise UnavailableError(message, removed=removed, failed=[each.message for each in failed])
    document = {
        "folder": str(folder),
        "decisions": [
            {"name": each.path.name, "is_removed": each.is_removed, "reason": each.reason} for each in decisions
        ],
        "removed": removed,
    }
    said = f"{len(going)} of {len(decisions)} would go. Nothing was changed." if dry_run else None
    call.answer(document, said or f"Removed {len(removed)} of {len(decisions)} snapshots.")


@command.command()
@click.argument("folder", type=_FOLDER)
@click.argument("name")
@click.argument("target", type=_FOLDER)
@with_common_options
@click.pass_obj
def restore(call: Call, folder: Path, name: str, target: Path) -> None:
    """Copy a snapshot into a new folder, if it verifies.

    The copy shares nothing with the original and is a snapshot itself: load it with load_state(TARGET). Stopped or
    killed, there is no TARGET, and never half of one.
    """
    from holdfast.snapshots.copying import copy

    with progress("Copying", is_quiet=call.is_json, unit="bytes") as report:
        manifest = copy(_named(folder, [name])[0], target, on_progress=report)
    said = f"Copied {manifest.size_bytes:,} bytes into {str(target)!r}."
    call.answer({"name": name, "target": str(target), "size_bytes": manifest.size_bytes}, said)


@command.command()
@click.argument("folder", type=_FOLDER)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_common_options
@click.pass_obj
def pin(call: Call, folder: Path, names: tuple[str, ...]) -> None:
    """Let no cleanup remove these snapshots."""
    from holdfast.snapshots.removal import pin

    for path in _named(folder, names):
        pin(path)
    call.answer({"pinned": list(names)}, f"Pinned {len(names)}.")


@command.command()
@click.argument("folder", type=_FOLDER)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_common_options
@click.pass_obj
def unpin(call: Call, folder: Path, names: tuple[str, ...]) -> None:
    """Let cleanups remove these snapshots again."""
    from holdfast.snapshots.removal import unpin

    for path in _named(folder, names):
        unpin(path)
    call.answer({"unpinned": list(names)}, f"Unpinned {len(names)}.")


def _find(folder: Path) -> list[Candidate]:
    """Return what holds a manifest, or has the usual name without one; newest first."""
    from holdfast.snapshots.removal import find_candidates

    return [each for each in find_candidates(folder, "*") if each.has_manifest or each.path.suffix == ".state"]


def _named(folder: Path, names: Iterable[str]) -> list[Path]:
    from holdfast.snapshots.removal import look_at

    for name in names:
        if name in {"", ".."} or Path(name).name != name:
            raise InvalidError(f"{name!r} is no name in {str(folder)!r}: one directory in it is expected", name=name)
        if look_at(folder / name) is None:
            raise NotFoundError(f"there is no snapshot {name!r} in {str(folder)!r}", name=name)
    return [folder / name for name in names]


def _keeper(folder: Path, *, latest: int | None, best: Iterable[tuple[Any, str, int]], **spaced: int) -> StatesKeeper:
    from holdfast.snapshots import keepers
    from holdfast.snapshots.manifest import OURS
    from holdfast.snapshots.removal import find_candidates

    made: list[StatesKeeper] = [
        keepers.BestStatesKeeper(folder, metric, count, mode, state_name_pattern=None) for mode, metric, count in best
    ]
    if latest is not None:
        made.append(keepers.LatestStatesKeeper(folder, latest, None))
    if any(spaced.values()):
        made.append(keepers.SpacedStatesKeeper(folder, state_name_pattern=None, protected=None, **spaced))
    if not made:
        raise click.UsageError("say what to keep: --latest, --hourly, --daily, --weekly, --monthly or --best")
    # This one as well, for it keeps the newest that verifies: --latest alone would not.
    keeper: StatesKeeper = keepers.PinnedStatesKeeper(folder, state_name_pattern=None)
    for each in reversed(made):
        keeper = each | keeper
    # The Pod is not asked, so the last one that bears the mark of having been pointed to stands for the one that is.
    marked = [each.path.name for each in find_candidates(folder) if os.path.lexists(each.path / OURS / "pointed")]
    keeper.protected = lambda: marked[:1]
    return keeper


@dataclass(frozen=True, kw_only=True)
class _Usage:
    """What files take: by their length, on the disk, and what would be free without them."""

    size_bytes: int
    disk_bytes: int
    freed_bytes: int

    def document(self) -> dict[str, int]:
        shared = self.disk_bytes - self.freed_bytes
        return {
            "size_bytes": self.size_bytes,
            "disk_bytes": self.disk_bytes,
            "shared_bytes": shared,
            "freed_bytes": self.freed_bytes,
        }


def _measure(*paths: Path) -> _Usage:
    """Look at all that is below ``paths``; what goes meanwhile does not count."""
    size_bytes = 0
    inodes: dict[tuple[int, int], os.stat_result] = {}
    names: Counter[tuple[int, int]] = Counter()
    for path in paths:
        for folder, folders, files in os.walk(path):
            for place in (Path(folder, name) for name in ("", *folders, *files)):
                try:
                    found = os.lstat(place)
                except FileNotFoundError:
                    continue
                key = found.st_dev, found.st_ino
                is_folder = stat.S_ISDIR(found.st_mode)
                size_bytes += 0 if is_folder else found.st_size
                names[key] = 0 if is_folder else names[key] + 1
                inodes[key] = found
    blocks = {key: found.st_blocks * 512 for key, found in inodes.items()}
    freed = sum(each for key, each in blocks.items() if not names[key] or names[key] == inodes[key].st_nlink)
    return _Usage(size_bytes=size_bytes, disk_bytes=sum(blocks.values()), freed_bytes=freed)


def _number(count: int) -> str:
    return f"{count:,}" if is_terminal(sys.stdout) else str(count)
