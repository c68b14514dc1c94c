"""Serving the Pods of a home: what opens each, with its owner's key or the kept one, and the server that answers.

The failure argument. *The process dies*: nobody was answered before the commit, and what comes again under its key is
answered again. *It starts again*: unattended, each Pod opens with the key in the keyring when a run calls; attended,
its owner has to call first. *The owner rotates the key*: the envelope is another file then, which is looked at with
each request. *Others write without end*: SQLite lets whoever waits for the file look for it now and then only, so
groups of writes and of renewals take turns.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from holdfast.context.pods import files_of, unlock
from holdfast.context.settings import Settings
from holdfast.disk import Disk
from holdfast.engine.stirring import is_stirring
from holdfast.errors import DamagedError, DeniedError, HoldfastError, InvalidError, NotFoundError, UnavailableError
from holdfast.keys import Identity, load_or_create_pod_key, read_envelope
from holdfast.runs import Clock, SystemClock
from holdfast.server.pods import Opener, OpenPod
from holdfast.sql import Keyring, SqliteStore
from holdfast.sql.grouping import GroupedStore
from holdfast.store import Batch, Result

_log: Final = logging.getLogger(__name__)

_TURN_S: Final = 5.0
"""How long writers wait for renewals at most, which have a flush to wait for."""


class LockedError(UnavailableError):
    """A Pod opens for its owner first: no key of it is kept."""


class LocalPods(Opener):
    """The Pods of a home.

    Args:
        settings: Where they lie.
        is_attended: Open a Pod for tokens only after its owner has called: no key is kept on this machine, and one
            that was kept before goes when its owner calls.
        can_create: Whether owners may come who have no Pod yet.
        stirring: Entered with an owner, in any thread, while something is written that may let a run begin or end, and
            when the owner opens the Pod.
        clock: What leases and tokens are measured on.
        disk: Where the home lies.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        is_attended: bool = False,
        can_create: bool = True,
        stirring: Callable[[str], AbstractContextManager[None]] = lambda _owner: nullcontext(),
        clock: Clock | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._settings = settings
        self._is_attended = is_attended
        self._can_create = can_create
        self.stirring = stirring
        self._clock = clock or SystemClock()
        self._disk = disk or Disk()
        self._pod_key = load_or_create_pod_key(settings.home, settings.environ, disk=self._disk)
        self._kept: dict[str, bytes] = {}
        """The data keys of owners who have called, if they are kept nowhere else."""

    @property
    def pod_key(self) -> bytes:
        """What tokens are sealed with."""
        return self._pod_key

    def now_ms(self) -> int:
        """Return milliseconds since 1970."""
        return self._clock.now_ms()

    def open(self, owner: str, database_key: str | None) -> OpenPod:  # noqa: D102 -- as `Opener`
        path = self._settings.pod_path(owner)
        digest = None
        if database_key is None:
            key = self._find_key(owner)
        else:
            if not path.with_suffix(".json").exists():
                raise _denied(owner)
            seen, identity = _look(path), _identity(owner, database_key)
            path, key = self._unlock(identity)
            digest = (_digest(database_key), seen)
        if self._is_attended:
            self._kept[owner] = key
        stir = partial(self._stirring, owner)
        if database_key is not None:
            with stir():
                pass
        return _ServedPod(self._settings, owner, key, digest, stir=stir, clock=self._clock, disk=self._disk)

    def _stirring(self, owner: str) -> AbstractContextManager[None]:
        return self.stirring(owner)

    def create(self, owner: str, database_key: str) -> None:  # noqa: D102 -- as `Opener`
        identity = Identity(owner, database_key)
        try:
            if not self._can_create and not self._settings.pod_path(identity.owner_key).with_suffix(".json").exists():
                raise _denied(identity.owner_key)
            self._unlock(identity)
        except DeniedError as exc:
            if self._can_create:
                raise
            # The same for an owner that is here: who asks learns of no owner.
            raise DeniedError(f"{exc.message}, and this server makes no Pods for new owners") from exc

    def _unlock(self, identity: Identity) -> tuple[Path, bytes]:
        try:
            opened = unlock(self._settings, identity, keeps_key=not self._is_attended, disk=self._disk)
        except DeniedError as exc:
            raise _denied(identity.owner_key) from exc
        if self._is_attended:
            Keyring(self._settings.keyring_path, self._pod_key, disk=self._disk).delete(identity.owner_key)
        return opened

    def _find_key(self, owner: str) -> bytes:
        kept = self._kept.get(owner)
        if not self._is_attended:
            with suppress(NotFoundError, DamagedError, DeniedError):
                kept = Keyring(self._settings.keyring_path, self._pod_key, disk=self._disk).get(owner)
        if kept is None:
            message = f"the Pod of owner {owner!r} is locked: its owner has to call first"
            raise LockedError(message, owner=owner)
        return kept


class _ServedPod:
    """One Pod that is open."""

    def __init__(
        self,
        settings: Settings,
        owner: str,
        key: bytes,
        presented: tuple[bytes, object] | None,
        *,
        stir: Callable[[], AbstractContextManager[None]],
        clock: Clock,
        disk: Disk,
    ) -> None:
        self.owner = owner
        self._path, self._key, self._presented, self._disk = settings.pod_path(owner), key, presented, disk
        self.files = files_of(settings, owner, key, disk=disk)
        self.files.sweep()
        turns = _Turns()
        self.store = _grouped(_Writing(self._path, key, turns, stir, clock=clock, disk=disk))
        try:
            self.renewals = _grouped(_Renewing(self._path, key, turns, clock=clock, disk=disk))
        except BaseException:
            self.store.close()
            raise

    def is_opened_by(self, database_key: str) -> bool:
        if self._presented is None:
            return False
        digest, seen = self._presented
        return hmac.compare_digest(digest, _digest(database_key)) and seen == _look(self._path)

    def admit(self, database_key: str) -> None:
        seen = _look(self._path)
        identity = _identity(self.owner, database_key)
        try:
            key = read_envelope(self._path.with_suffix(".json"), disk=self._disk).open(identity)
        except (DeniedError, NotFoundError) as exc:
            raise _denied(self.owner) from exc
        if not hmac.compare_digest(key, self._key):
            raise UnavailableError(f"the Pod of owner {self.owner!r} was replaced: try again")
        self._presented = (_digest(database_key), seen)

    def close(self) -> None:
        self.renewals.close()
        self.store.close()


def _grouped(store: SqliteStore) -> GroupedStore:
    return GroupedStore(store)  # pyright: ignore[reportAbstractUsage] -- its reads are those of the store that it is given


class _Turns:
    """Lets renewals go between two groups of writes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_wanted = False
        self._done = 0

    @contextmanager
    def renewal(self) -> Generator[None]:
        """Go first."""
        with self._changed:
            self._is_wanted = True
        try:
            yield
        finally:
            with self._changed:
                self._is_wanted = False
                self._done += 1
                self._changed.notify_all()

    def let_pass(self) -> None:
        """Wait for a renewal that wants to go; for one only."""
        with self._changed:
            seen = self._done
            self._changed.wait_for(lambda: not self._is_wanted or self._done != seen, _TURN_S)


class _Writing(SqliteStore):
    """Lets renewals pass, and says so while something is written that concerns a supervisor."""

    def __init__(
        self, path: Path, key: bytes, turns: _Turns, stir: Callable[[], AbstractContextManager[None]], **how: Any
    ) -> None:
        self._turns, self._stir = turns, stir
        super().__init__(path, key, create=False, **how)

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        self._turns.let_pass()
        with self._stirred([batch]):
            return super().apply(batch)

    def apply_all(self, batches: Sequence[Batch]) -> list[tuple[Result, ...] | HoldfastError]:
        self._turns.let_pass()
        with self._stirred(batches):
            return super().apply_all(batches)

    def _stirred(self, batches: Sequence[Batch]) -> AbstractContextManager[None]:
        stirs = any(is_stirring(operation) for batch in batches for operation in batch.operations)
        return self._stir() if stirs else nullcontext()


class _Renewing(SqliteStore):
    """Passes writers."""

    def __init__(self, path: Path, key: bytes, turns: _Turns, **how: Any) -> None:
        self._turns = turns
        super().__init__(path, key, create=False, **how)

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        with self._turns.renewal():
            return super().apply(batch)

    def apply_all(self, batches: Sequence[Batch]) -> list[tuple[Result, ...] | HoldfastError]:
        with self._turns.renewal():
            return super().apply_all(batches)


def _identity(owner: str, database_key: str) -> Identity:
    try:
        return Identity(owner, database_key)
    except InvalidError as exc:
        raise _denied(owner) from exc


def _denied(owner: str) -> DeniedError:
    """Return one error for an owner that is not here and for a key that does not fit: who asks learns of no owner."""
    return DeniedError(f"no Pod of owner {owner!r} opens with what was presented")


def _digest(database_key: str) -> bytes:
    return hashlib.sha256(database_key.lower().encode("utf-8", "replace")).digest()


def _look(path: Path) -> object:
    """Return what an envelope's file is like, to see whether it is another one; None if it is not there."""
    try:
        found = path.with_suffix(".json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns
