"""`pod.db`: the data key of each owner's file, wrapped by the Pod's own key, so that a Pod can run unattended.

Nothing in it is readable without `pod.key`; losing it loses nothing, for every owner's key opens the owner's file.
"""

# apsw's stubs speak of a Buffer that Python 3.11 does not know.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

import apsw

from holdfast.errors import NotFoundError
from holdfast.keys import key_id, unwrap, wrap
from holdfast.sql.faults import translated
from holdfast.sql.forks import inside_sqlite

_PURPOSE: Final = "keyring 1"
_WAIT_MS: Final = 30_000


class Keyring:
    """The wrapped keys of one Pod; each call opens and closes the file, so there is nothing to close.

    Args:
        path: ``pod.db``; made on the first `put`.
        pod_key: The 32 bytes of ``pod.key``.
    """

    def __init__(self, path: Path, pod_key: bytes) -> None:
        self.path = path
        self._pod_key = pod_key

    def put(self, owner: str, data_key: bytes) -> None:
        """Keep the data key of ``owner``'s file; whatever was kept before is replaced."""
        wrapped = wrap(data_key, self._pod_key, purpose=_PURPOSE, owner=owner)
        with self._opened() as db:
            db.execute("INSERT OR REPLACE INTO keyring VALUES (?, ?, ?)", (owner, key_id(self._pod_key), wrapped))

    def get(self, owner: str) -> bytes:
        """Return the data key of ``owner``'s file.

        Raises:
            NotFoundError: None is kept for this owner under this Pod key.
            DeniedError: What is kept does not open.
        """
        wrapped = self._find(owner)
        if wrapped is None:
            raise NotFoundError(f"no key of owner {owner!r} is kept in {str(self.path)!r}", owner=owner)
        return unwrap(wrapped, self._pod_key, purpose=_PURPOSE, owner=owner)

    def has(self, owner: str) -> bool:
        """Say whether a key of ``owner`` is kept under this Pod key."""
        return self._find(owner) is not None

    def delete(self, owner: str) -> None:
        """Keep it no longer; nothing happens if it is absent."""
        with self._opened() as db:
            db.execute("DELETE FROM keyring WHERE owner = ?", (owner,))

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
                db.execute(
                    "CREATE TABLE IF NOT EXISTS keyring (owner TEXT, pod_key_id TEXT NOT NULL, wrapped BLOB NOT NULL, "
                    "PRIMARY KEY (owner)) STRICT, WITHOUT ROWID"
                )
                yield db
            finally:
                db.close()
