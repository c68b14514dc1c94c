"""`pod.db`: the file that all owners of a home share. Each call opens, checks and closes it.

Hides its format, how an older one becomes ours, and what becomes of one that is damaged; what its tables say is known
to `keyring` and `agenda`. What is in it comes again by itself: whoever loses it loses nothing.
"""

# apsw's stubs speak of a Buffer that Python 3.11 does not know.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, cast

import apsw

from holdfast.disk import Disk
from holdfast.errors import DamagedError, NotFoundError
from holdfast.sql.faults import translated
from holdfast.sql.forks import inside_sqlite
from holdfast.sql.migration import check_format, format_of

_log: Final = logging.getLogger(__name__)

_WAIT_MS: Final = 30_000

_STEPS: Final = (
    """
    CREATE TABLE keyring (
        owner TEXT, pod_key_id TEXT NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY (owner)
    ) STRICT, WITHOUT ROWID;
    """,
    # An owner whose key comes is looked at; not by an OR IGNORE in the trigger, which an OR REPLACE outside overrides.
    """
    CREATE TABLE agenda (
        owner TEXT, look_ms INTEGER, live INTEGER NOT NULL, wakes INTEGER NOT NULL, PRIMARY KEY (owner)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX agenda_due ON agenda (look_ms);
    CREATE TRIGGER agenda_of_keyring AFTER INSERT ON keyring
    WHEN NOT EXISTS (SELECT 1 FROM agenda WHERE owner = new.owner)
    BEGIN INSERT INTO agenda VALUES (new.owner, 0, 0, 0); END;
    INSERT INTO agenda SELECT owner, 0, 0, 0 FROM keyring;
    """,
)
"""What leads to each format, from 1 on; never edited after a release."""

PODFILE_FORMAT: Final = len(_STEPS)
"""The format that this version writes; a file with a higher one is refused by name."""


class PodFile:
    """The file ``pod.db`` of one home.

    Args:
        path: It; made on the first `change`.
        disk: Where it lies.
    """

    def __init__(self, path: Path, *, disk: Disk | None = None) -> None:
        self.path = path
        self._disk = disk or Disk()

    def find(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        """Return the rows that a query finds; none if there is no file.

        Raises:
            DamagedError: The file is not what was written; it stays where it is.
            InvalidError: It has a newer format.
            UnavailableError: Somebody else has been writing to it for half a minute.
        """
        if not self.path.exists():
            return []
        with self._opened() as db:
            return cast("list[tuple[object, ...]]", db.execute(sql, values).fetchall())

    def change(self, sql: str, values: tuple[object, ...]) -> None:
        """Carry one statement out, durably; on a new file, if there is none, or if the one that there is is damaged.

        A damaged file is set aside, and what it held comes again with its owners. Of what a statement deletes nothing
        is left in the file, not even in what is free of it.

        Raises:
            InvalidError, UnavailableError: As `find` says.
        """
        try:
            self._change(sql, values)
        except DamagedError:
            with suppress(NotFoundError):  # somebody else was faster; what that one has put, its next start puts again
                aside = self._disk.quarantine(self.path)
                _log.warning("pod_file.set_aside", extra={"path": str(self.path), "aside": str(aside)})
            self._change(sql, values)

    def _change(self, sql: str, values: tuple[object, ...]) -> None:
        with self._opened() as db:
            db.execute(sql, values)

    @contextmanager
    def _opened(self) -> Generator[apsw.Connection]:
        with inside_sqlite, translated(self.path):
            if not self.path.exists():
                self.path.touch(mode=0o600)
            db = apsw.Connection(str(self.path))
            try:
                db.set_busy_timeout(_WAIT_MS)
                db.pragma("synchronous", "full")
                db.pragma("secure_delete", "on")  # not every build of SQLite does so by itself
                self._prepare(db)
                yield db
            except apsw.SQLError as exc:  # sound SQLite with other tables than ours
                raise DamagedError(f"{str(self.path)!r} is not what was written: {exc}", path=str(self.path)) from exc
            finally:
                db.close()

    def _prepare(self, db: apsw.Connection) -> None:
        check_format(format_of(db), self.path, PODFILE_FORMAT)
        # It is small; and SQLite takes a page that was cut off for one that holds nothing.
        verdict = [text for (text,) in db.execute("PRAGMA quick_check(1)")]
        if verdict != ["ok"]:
            what = " ".join(verdict[0].split())  # SQLite's answer has several lines
            raise DamagedError(f"{str(self.path)!r} is damaged: {what}", path=str(self.path))
        if format_of(db) == PODFILE_FORMAT:
            return
        db.execute("BEGIN IMMEDIATE")  # of several that make or migrate it at once, the others wait
        found = format_of(db)  # and then find it done, by a later version perhaps
        check_format(found, self.path, PODFILE_FORMAT)
        for step in _STEPS[found:]:
            db.execute(step)
        db.pragma("user_version", PODFILE_FORMAT)
        db.execute("COMMIT")
