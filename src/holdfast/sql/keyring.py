"""`pod.db`: the data key of each owner's file, wrapped by the Pod's own key, so that a Pod can run unattended.

Nothing in it is readable without `pod.key`; losing it loses nothing, for every owner's key opens the owner's file. So
one that is damaged is set aside by the next `put` or `delete`, and a new one begun.
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
from holdfast.keys import key_id, unwrap, wrap
from holdfast.sql.faults import translated
from holdfast.sql.forks import inside_sqlite
from holdfast.sql.migration import check_format, format_of

_log: Final = logging.getLogger(__name__)

KEYRING_FORMAT: Final = 1
"""The format that this version writes; a file with a higher one is refused by name."""

_PURPOSE: Final = "keyring 1"
_WAIT_MS: Final = 30_000


class Keyring:
    """The wrapped keys of one Pod; each call opens and closes the file, so there is nothing to close.

    Args:
        path: ``pod.db``; made on the first `put`.
        pod_key: The 32 bytes of ``pod.key``.
        disk: Where the file lies.

    Raises:
        DamagedError: `get` and `has`: the file is not what was written.
        InvalidError: Each call: it has a newer format.
    """

    def __init__(self, path: Path, pod_key: bytes, *, disk: Disk | None = None) -> None:
        self.path = path
        self._pod_key = pod_key
        self._disk = disk or Disk()

    def put(self, owner: str, data_key: bytes) -> None:
        """Keep the data key of ``owner``'s file; whatever was kept before is replaced, and a damaged file set aside."""
        wrapped = wrap(data_key, self._pod_key, purpose=_PURPOSE, owner=owner)
        try:
            self._put(owner, wrapped)
        except DamagedError:
            self._set_aside()
            self._put(owner, wrapped)

    def _put(self, owner: str, wrapped: bytes) -> None:
        with self._opened() as db:
            db.execute("INSERT OR REPLACE INTO keyring VALUES (?, ?, ?)", (owner, key_id(self._pod_key), wrapped))

    def _set_aside(self) -> None:
        with suppress(NotFoundError):  # somebody else was faster; what that one had put, its next start puts again
            aside = self._disk.quarantine(self.path)
            _log.warning("keyring.set_aside", extra={"path": str(self.path), "aside": str(aside)})

    def get(self, owner: str) -> bytes:
        """Return the data key of ``owner``'s file.

        Raises:
            NotFoundError: None is kept for this owner under this Pod key.
            DeniedError, DamagedError: What is kept does not open.
        """
        wrapped = self._find(owner)
        if wrapped is None:
            raise NotFoundError(f"no key of owner {owner!r} is kept in {str(self.path)!r}", owner=owner)
        return unwrap(wrapped, self._pod_key, purpose=_PURPOSE, owner=owner)

    def has(self, owner: str) -> bool:
        """Say whether a key of ``owner`` is kept under this Pod key."""
        return self._find(owner) is not None

    def delete(self, owner: str) -> None:
        """Keep it no longer, not even in what is free of the file; nothing happens if it is absent.

        A damaged file is set aside: from there nothing opens a Pod, but for who has ``pod.key`` and mends it.
        """
        if not self.path.exists():
            return
        try:
            with self._opened() as db:
                db.pragma("secure_delete", "on")  # not every build of SQLite does so by itself
                db.execute("DELETE FROM keyring WHERE owner = ?", (owner,))
        except DamagedError:
            self._set_aside()

    def _find(self, owner: str) -> bytes | None:
        if not self.path.exists():
            return None
        with self._opened() as db:
            sql = "SELECT wrapped FROM keyring WHERE owner = ? AND pod_key_id = ?"
            return cast("bytes | None", db.execute(sql, (owner, key_id(self._pod_key))).get)

    @contextmanager
    def _opened(self) -> Generator[apsw.Connection]:
        with inside_sqlite, translated(self.path):
            if not self.path.exists():
                self.path.touch(mode=0o600)
            db = apsw.Connection(str(self.path))
            try:
                db.set_busy_timeout(_WAIT_MS)
                db.pragma("synchronous", "full")
                self._prepare(db)
                yield db
            except apsw.SQLError as exc:  # sound SQLite with other tables than ours
                raise DamagedError(f"{str(self.path)!r} is no keyring: {exc}", path=str(self.path)) from exc
            finally:
                db.close()

    def _prepare(self, db: apsw.Connection) -> None:
        found = format_of(db)
        check_format(found, self.path, KEYRING_FORMAT)
        # It is small; and SQLite takes a page that was cut off for one that holds nothing.
        verdict = [text for (text,) in db.execute("PRAGMA quick_check(1)")]
        if verdict != ["ok"]:
            what = " ".join(verdict[0].split())  # SQLite's answer has several lines
            raise DamagedError(f"the keyring {str(self.path)!r} is damaged: {what}", path=str(self.path))
        if found == KEYRING_FORMAT:
            return
        db.execute("BEGIN IMMEDIATE")  # of several that make it at once, the others wait
        db.execute(
            "CREATE TABLE IF NOT EXISTS keyring (owner TEXT, pod_key_id TEXT NOT NULL, wrapped BLOB NOT NULL, "
            "PRIMARY KEY (owner)) STRICT, WITHOUT ROWID"
        )
        db.pragma("user_version", KEYRING_FORMAT)
        db.execute("COMMIT")
