"""The formats of a Pod's file: numbered SQL, applied once each, in order, never edited after a release."""

# apsw's stubs speak of a Buffer that Python 3.11 does not know.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final, cast

import apsw

from holdfast.errors import InvalidError

_log: Final = logging.getLogger(__name__)
_file_name: Final = re.compile(r"(\d{4})_\w+\.sql")


@cache
def migrations() -> Mapping[int, Traversable]:
    """Return the SQL that leads to each format, by its number, from 1 on without a gap."""
    found = {
        int(match[1]): file
        for file in (resources.files("holdfast.sql") / "migrations").iterdir()
        if (match := _file_name.fullmatch(file.name))
    }
    return dict(sorted(found.items()))


FORMAT: Final = max(migrations())
"""The format that this version writes."""


def format_of(db: apsw.Connection) -> int:
    """Return the format of a file; 0: nothing is in it yet."""
    return cast("int", db.pragma("user_version"))


def check_format(found: int, path: object, newest: int = FORMAT) -> None:
    """Accept the formats up to ours.

    Raises:
        InvalidError: It is newer: a later version of Holdfast wrote it.
    """
    if found > newest:
        message = (
            f"the Pod {str(path)!r} has format {found}, and this version of Holdfast reads formats up to {newest}: "
            "upgrade Holdfast"
        )
        raise InvalidError(message, path=str(path), format=found, newest=newest)


def migrate(
    db: apsw.Connection,
    *,
    before: Callable[[int], None],
    steps: Mapping[int, Traversable] | None = None,
) -> None:
    """Bring a file to the newest format, each step in a transaction of its own.

    The process may die on any line: the next start finds one format or the next, whole, and goes on from there.

    Args:
        db: A connection that nobody else's stands beside (the caller holds the lock).
        before: Called with the old format before the first step on a file that holds something: make a copy.
        steps: SQL by the format that it leads to.
    """
    steps = migrations() if steps is None else steps
    found = format_of(db)
    pending = [number for number in steps if number > found]
    if found and pending:
        before(found)
    for number in pending:
        with db:
            db.execute(steps[number].read_text(encoding="utf-8"))
            db.pragma("user_version", number)
        _log.info("pod.migrated", extra={"format": number})
