"""Which plugins there are: modules and packages in a folder, and entry points of installed distributions.

Runs no code of a plugin, and opens no file of it: what a name stands for shows when it is loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from holdfast.disk import translate

_log: Final = logging.getLogger(__name__)

GROUP: Final = "holdfast.plugins"
"""The group of entry points."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where the plugin of this name is: in a folder, or installed.

    Attributes:
        file: Its source, where that is a plain file, and the only one of this name in the folder.
    """

    name: str
    folder: str
    entry: EntryPoint | None = None
    file: str | None = None


def is_name(name: object) -> bool:
    """Say whether a plugin can have this name: letters, digits, ``_`` and, of entry points, ``-``; no ``_`` first."""
    return isinstance(name, str) and name.replace("-", "_").isidentifier() and name[0] not in "_-"


def find_plugins(folder: Path) -> dict[str, Found]:
    """Return the plugins by name, those in the folder first; a folder that is not there is empty.

    Of several with one name the log tells, and the first counts: a package, a compiled module, a source, an entry
    point. Names that begin with ``_`` or ``.`` are not plugins; of others that no plugin can have, the log tells.

    Raises:
        DeniedError, InvalidError, UnavailableError: The folder cannot be listed.
    """
    found: dict[str, Found] = {}
    for name, file in _names(folder):
        if name in found:
            extra = {"plugin": name, "by": str(folder)}
            _log.warning(
                "plugin.hidden: one %r in %r by another, which import finds first", *extra.values(), extra=extra
            )
        found[name] = Found(name, str(folder), file=None if name in found else file)
    for entry in entry_points(group=GROUP):
        if first := found.get(entry.name):
            by = str(folder) if first.entry is None else first.entry.value
            extra = {"plugin": entry.name, "hidden": entry.value, "by": by}
            _log.warning("plugin.hidden: %r of %r by that of %r", entry.name, entry.value, by, extra=extra)
        elif is_name(entry.name):
            found[entry.name] = Found(entry.name, str(folder), entry)
        elif not entry.name.startswith("_"):
            _log.warning("plugin.skipped: no plugin can be called %r", entry.name, extra={"entry": entry.name})
    return found


def find_in_folder(name: str, folder: Path) -> Found | None:
    """Return the plugin of this name in the folder, and look at no other: what is wrong with those is not said."""
    files = (f"{folder}/{name}{rest}{suffix}" for rest in ("/__init__", "") for suffix in all_suffixes())
    return Found(name, str(folder)) if any(map(os.path.isfile, files)) else None


def _names(folder: Path) -> Iterator[tuple[str, str | None]]:
    suffixes = all_suffixes()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] in "._":
                    continue
                # Not entry.is_dir() alone: it raises for links that lead in a circle.
                if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):  # noqa: PTH112
                    name = entry.name
                    if not any(os.path.isfile(f"{entry.path}/__init__{suffix}") for suffix in suffixes):  # noqa: PTH113
                        continue
                else:
                    name, dot, rest = entry.name.partition(".")
                    if dot + rest not in suffixes:
                        continue
                if name.isidentifier():
                    is_source = entry.name.endswith(".py") and entry.is_file(follow_symlinks=False)
                    yield name, entry.path if is_source else None
                else:
                    _log.warning(
                        "plugin.skipped: no plugin can be called as %r is", entry.path, extra={"path": entry.path}
                    )
    except FileNotFoundError:
        return
    except OSError as exc:
        raise translate(exc, folder, "list") from exc
