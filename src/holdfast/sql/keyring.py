"""The keyring in `pod.db`: the data key of each owner's file, wrapped by the Pod's own key, for when the owner is away.

Nothing in it is readable without `pod.key`; losing it loses nothing, for every owner's key opens the owner's file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

from holdfast.disk import Disk
from holdfast.errors import NotFoundError
from holdfast.keys import key_id, unwrap, wrap
from holdfast.sql.podfile import PodFile

_PURPOSE: Final = "keyring 1"


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
        self._file = PodFile(path, disk=disk)

    def put(self, owner: str, data_key: bytes) -> None:
        """Keep the data key of ``owner``'s file; whatever was kept before is replaced, and a damaged file set aside."""
        wrapped = wrap(data_key, self._pod_key, purpose=_PURPOSE, owner=owner)
        values = (owner, key_id(self._pod_key), wrapped)
        self._file.change("INSERT OR REPLACE INTO keyring VALUES (?, ?, ?)", values)

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
        if self.path.exists():
            self._file.change("DELETE FROM keyring WHERE owner = ?", (owner,))

    def _find(self, owner: str) -> bytes | None:
        sql = "SELECT wrapped FROM keyring WHERE owner = ? AND pod_key_id = ?"
        rows = self._file.find(sql, (owner, key_id(self._pod_key)))
        return cast("bytes", rows[0][0]) if rows else None
