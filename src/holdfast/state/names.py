"""Which file a namespace has: always one in the folder, and never that of another."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from holdfast.errors import ConflictError
from holdfast.state.namespaces import StateError, is_text
from holdfast.values import shown

MAX_STEM: Final = 200
"""Characters in the name of a file, so that what is added to it (``.corrupt-…``) still fits in 255."""

# Windows takes such a file for a device, whatever follows the first dot.
_DEVICES: Final = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def path_of(folder: Path, namespace: object) -> Path:
    """Return the file of a namespace: always in ``folder``, and another one for each name.

    What is no ASCII letter, digit or one of ``_.-~`` is written as in a URL, as are a dot at the beginning and what
    Windows takes for a device.

    Raises:
        StateError: The name is empty, no text, holds a lone surrogate, or has more than `MAX_STEM` characters so.

    >>> path_of(Path("state"), "../a b").name
    '%2E.%2Fa%20b.json'
    """
    if type(namespace) is not str or not namespace or not is_text(namespace):
        raise StateError(f"a namespace cannot be called {shown(namespace)}: text of one character or more is expected")
    stem = quote(namespace, safe="")
    if stem[0] == "." or stem.partition(".")[0].lower() in _DEVICES:
        stem = f"%{ord(stem[0]):02X}{stem[1:]}"
    if len(stem) > MAX_STEM:
        message = (
            f"namespace {shown(namespace)} has too long a name: it would need {len(stem)} of {MAX_STEM} characters"
        )
        raise StateError(message, namespace=shown(namespace))
    return folder / f"{stem}.json"


def file_of(folder: Path, namespace: str) -> Path:
    """Return the file that a namespace has: `path_of`, unless another program gave it one that bears its name.

    Such as ``my ns.json``: it is the namespace's as long as it is there and the other is not. Not on Windows, where a
    name may mean more than a file.
    """
    path = path_of(folder, namespace)
    if path.name == f"{namespace}.json" or not _is_plain(namespace) or os.path.lexists(path):
        return path
    plain = folder / f"{namespace}.json"
    return plain if os.path.lexists(plain) else path


def namespace_of(entry: str) -> str | None:
    """Return the namespace whose file this is, or would be without another one; None if it is no namespace's."""
    namespace = unquote(entry.removesuffix(".json"), errors="replace")
    try:
        own = path_of(Path(), namespace).name
    except StateError:
        return None
    return namespace if entry == own or (entry == f"{namespace}.json" and _is_plain(namespace)) else None


def _is_plain(namespace: str) -> bool:
    """Say whether it names a file in the folder that all see, and that no other namespace can have."""
    return os.name == "posix" and namespace[0] != "." and not set("/%\0") & set(namespace)


def previous_of(path: Path) -> Path:
    """Return the name of the generation before a file."""
    return path.with_name(f".{path.name}.prev")


def aside_of(path: Path) -> Path:
    """Return a free name for a damaged file; whoever asks has locked the folder."""
    first = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    aside, number = first, 1
    while os.path.lexists(aside):
        number += 1
        aside = first.with_name(f"{first.name}-{number}")
    return aside


def check_case(path: Path) -> None:
    """Refuse a file that was found under a name which only ignores the case of its own."""
    try:
        if path.samefile(path.with_name(path.name.swapcase())) and path not in path.parent.iterdir():
            message = (
                f"namespace {path.stem!r} cannot be told from one in {str(path.parent)!r} that differs only in case: "
                "this file system ignores it; choose another name"
            )
            raise ConflictError(message, path=str(path))
    except OSError:
        return  # there is no such file, as nearly everywhere
