"""The client of a Pod, and what its owner does to it: where it lies, which keys open it, what is made on first use."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast.blobs import DiskBlobs
from holdfast.context.addresses import Address
from holdfast.context.settings import Settings
from holdfast.disk import Disk
from holdfast.engine.stirring import is_stirring
from holdfast.errors import ConflictError, DamagedError, DeniedError, HoldfastError, InvalidError, NotFoundError
from holdfast.keys import (
    Envelope,
    Identity,
    key_id,
    load_or_create_envelope,
    load_or_create_identity,
    load_or_create_pod_key,
    open_identity,
    read_envelope,
    read_identity,
)
from holdfast.pod import Pod
from holdfast.sql import Agenda, Backup, Keyring, SqliteStore, back_up, restore, sharing_pod
from holdfast.sql.backup import ENVELOPE, FILES, Progress, examine, inspect
from holdfast.store import Batch, Result

_log: Final = logging.getLogger(__name__)


class _NotingStore(SqliteStore):
    """Tells a server of this home, if there is one, what it has to look at in this Pod.

    On the agenda that is noted twice: before, as this process may die when it has written, and afterwards, as a server
    may have looked in between.
    """

    def __init__(self, path: Path, key: bytes, agenda: Agenda, *, create: bool = True) -> None:
        self._agenda = agenda
        super().__init__(path, key, create=create)

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        if not any(map(is_stirring, batch.operations)):
            return super().apply(batch)
        self._note()
        try:
            return super().apply(batch)
        finally:
            self._note()

    def _note(self) -> None:
        with suppress(HoldfastError):  # what is written counts for more
            self._agenda.wake(self.path.stem, self.now_ms())


class PodClient(Pod):
    """The client of a Pod: on a fresh machine ``PodClient()`` makes keys and file, and just works.

    Without a URL the Pod is a file in this process's reach, unless nothing at all is said and the environment is that
    of a run that was given a Pod elsewhere; see `holdfast.pod.Pod` for what a client can do. It is a context manager;
    one that is not closed is closed when the process ends.

    Args:
        url: The server with the Pod, as in ``https://pod.example``; None: see above. The owner's Pod is made there, if
            there is none.
        owner_key: Whose Pod, 64 hexadecimal digits; None: the owner in ``keys.json``.
        database_key: What opens it, 64 hexadecimal digits; comes with ``owner_key`` or not at all.
        token: What opens it for a run, instead of ``database_key``; only with ``url``.
        home: The folder with keys and Pods; None: as `Settings.read` says.
        settings: All settings together, instead of ``home``.

    Raises:
        DeniedError: The keys do not open the Pod, or a key file can be read by others.
        DamagedError, InvalidError, UnavailableError: As `SqliteStore`, `holdfast.keys` and `holdfast.remote` say.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        owner_key: str | None = None,
        database_key: str | None = None,
        token: str | None = None,
        home: str | os.PathLike[str] | None = None,
        settings: Settings | None = None,
    ) -> None:
        if (owner_key is None) != (database_key is None and token is None) or (database_key and token):
            raise InvalidError("owner_key and database_key must come together: one names the Pod, the other opens it")
        if token is not None and url is None:
            raise InvalidError("a token opens a Pod on a server: say its url as well")
        says_nothing = url is None and owner_key is None and home is None and settings is None
        self.settings = settings or Settings.read(home=home)
        given = None if owner_key is None or database_key is None else Identity(owner_key, database_key)
        if url is not None and token is not None and owner_key is not None:
            address = Address(url=url, owner_key=owner_key, token=token)
        else:
            environ = self.settings.environ if says_nothing else dict[str, str]()
            keys = {} if given is None else {"owner_key": given.owner_key, "database_key": given.database_key}
            address = Address.find(environ, url=url, **keys, identity=self._own_identity)
        if address is None:
            path, key = unlock(self.settings, given)
            self._where = str(self.settings.home)
            store = _NotingStore(path, key, Agenda(self.settings.keyring_path))
            super().__init__(store, files=files_of(self.settings, path.stem, key))
            return
        from holdfast.remote import RemoteFiles, RemoteStore, make_pod  # start-up: for those whose Pod is elsewhere

        connection = address.connect()
        if address.token is None:
            try:
                make_pod(connection)
            except BaseException:
                connection.close()
                raise
        self._where = connection.url
        super().__init__(RemoteStore(connection), files=RemoteFiles(connection))

    def _own_identity(self) -> Identity:
        return load_or_create_identity(self.settings.home)

    def __repr__(self) -> str:
        return f"<PodClient {self._where!r}>"


def unlock(
    settings: Settings, given: Identity | None = None, *, keeps_key: bool = True, disk: Disk | None = None
) -> tuple[Path, bytes]:
    """Return the file of a Pod and its data key; on a fresh machine make the folder, the keys and the envelope.

    The process may die on any line: each file is there whole or not, and each is made only after what it needs.

    Args:
        settings: Where everything lies.
        given: The owner; None: the one in ``keys.json``, which is made if there is none.
        keeps_key: Keep the data key in the keyring, for the times when the owner is away.
        disk: Where the home lies.
    """
    disk = disk or Disk()
    home = settings.home
    disk.put_folder(home)
    if given is None:
        load_or_create_identity(home, disk=disk)
        presented: AbstractContextManager[Identity] = open_identity(home, disk=disk)
    else:
        presented = nullcontext(given)
    with presented as identity:
        path = settings.pod_path(identity.owner_key)
        envelope_path = path.with_suffix(".json")
        if not path.parent.is_dir():
            disk.put_folder(path.parent)
        with sharing_pod(path, disk=disk):  # else the middle of a restore would look like a fresh machine
            is_new = not envelope_path.exists()
            if is_new and path.exists():
                return path, bytes(32)  # no key opens it; the door says what is missing
            envelope = load_or_create_envelope(envelope_path, identity, disk=disk)
        key, owner = envelope.open(identity), identity.owner_key
    keyring = Keyring(settings.keyring_path, load_or_create_pod_key(home, settings.environ, disk=disk), disk=disk)
    try:
        is_kept = keyring.has(owner) and keyring.get(owner) == key  # a restored Pod may have another key than before
        is_known = is_kept
    except (DamagedError, DeniedError) as exc:
        # The owner's key opens the file without it. Whoever has an envelope is taken to have had a file.
        _log.warning("keyring.damaged", extra={"path": str(keyring.path), "reason": str(exc)})
        is_kept, is_known = False, not is_new
    is_marked = was_made(path, disk=disk)
    with sharing_pod(path, disk=disk):
        is_missing = not path.exists() or not path.stat().st_size
    if is_missing:
        if is_known or is_marked:
            message = (
                f"the Pod {str(path)!r} is gone, though it was there: bring the file back or restore a backup "
                f"(holdfast pod restore); to begin anew with an empty one, remove {envelope_path.name!r} beside it"
            )
            raise DamagedError(message, path=str(path))
        SqliteStore(path, key, disk=disk).close()
    # Only now, so that each of them says: this file was made once.
    if not is_marked:
        disk.replace(_mark(path), envelope.data_key_id.encode())
    if not is_kept and keeps_key:
        keyring.put(owner, key)
    return path, key


def was_made(path: Path, *, disk: Disk | None = None) -> bool:
    """Say whether a mark tells that a Pod's file was made with the envelope that is there; beside older files is none.

    The mark is not in the envelope, for a rotation may replace that at the same time.
    """
    disk = disk or Disk()
    with suppress(NotFoundError):
        return disk.read(_mark(path)) == read_envelope(path.with_suffix(".json"), disk=disk).data_key_id.encode()
    return False


def _mark(path: Path) -> Path:
    return path.with_suffix(".made")


def files_of(settings: Settings, owner: str, key: bytes, *, disk: Disk | None = None) -> DiskBlobs:
    """Return what keeps the bytes of an owner's files."""
    return DiskBlobs(settings.home / "files" / owner, key, disk=disk)


def pod_key_id(settings: Settings) -> str:
    """Return which Pod key this home has; it is made if there is none."""
    return key_id(load_or_create_pod_key(settings.home, settings.environ))


# -- what operators do to a Pod that is there -------------------------------------------------------------------------


def get_pod(settings: Settings) -> tuple[Path, bytes]:
    """Return the file of the owner's Pod and its data key, as `unlock` does; but make nothing where nothing is.

    Raises:
        NotFoundError: There is no Pod yet.
        DeniedError, DamagedError, InvalidError: As `holdfast.keys` says.
    """
    path = settings.pod_path(_get_identity(settings).owner_key)
    disk = Disk()
    if path.exists() or path.with_suffix(".lock").exists():  # a restore that has moved the file has made the lock
        with open_identity(settings.home, disk=disk) as identity, sharing_pod(path, disk=disk):
            if path.exists() and path.stat().st_size:  # empty: whoever was about to make it died
                return path, read_envelope(path.with_suffix(".json"), disk=disk).open(identity)
    raise NotFoundError(f"there is no Pod {str(path)!r} yet: the first PodClient() makes it", path=str(path))


def open_store(settings: Settings) -> SqliteStore:
    """Open the owner's Pod, if it is there (see `get_pod`)."""
    return _NotingStore(*get_pod(settings), Agenda(settings.keyring_path), create=False)


def back_up_pod(settings: Settings, target: Path, *, on_progress: Progress | None = None) -> Backup:
    """Copy the owner's Pod into a new folder, as `holdfast.sql.back_up` does.

    Raises:
        ConflictError: The folder exists; this is said before anything is copied.
    """
    source, key = get_pod(settings)
    if os.path.lexists(target):
        raise ConflictError(f"{str(target)!r} exists already: name a folder that does not", path=str(target))
    files = files_of(settings, source.stem, key)
    return back_up(source, key, target.absolute(), on_progress=on_progress, copy_files=files.copy_to)


def inspect_backup(settings: Settings, backup: Path) -> Backup:
    """Say what a backup holds that the owner's keys open, those from before a rotation included.

    Raises:
        NotFoundError: There is no backup, or no key.
        DeniedError: It is another owner's, or was sealed with a key that is not here.
        DamagedError, InvalidError: As `holdfast.sql.backup.inspect` says.
    """
    return inspect(backup, _identity_for(backup, _get_identity(settings), settings.home))


def restore_pod(settings: Settings, backup: Path, *, on_progress: Progress | None = None) -> Path | None:
    """Put a backup in the place of the owner's Pod, as `holdfast.sql.restore` does; it opens with today's keys.

    Returns:
        The folder where the Pod that was there is kept now; None if there was none.
    """
    _get_identity(settings)
    disk = Disk()
    with open_identity(settings.home, disk=disk) as identity:
        path = settings.pod_path(identity.owner_key)
        aside = restore(backup, _identity_for(backup, identity, settings.home), path, on_progress=on_progress)
        key = read_envelope(path.with_suffix(".json"), disk=disk).open(identity)
    # After the Pod: bytes without items would be found by nobody. Who dies here restores once more.
    DiskBlobs(backup / FILES, key).copy_to(files_of(settings, path.stem, key).folder)
    # It may be the key of another file than before.
    keyring = Keyring(settings.keyring_path, load_or_create_pod_key(settings.home, settings.environ))
    keyring.put(identity.owner_key, key)
    return aside


def examine_pod(path: Path, key: bytes, envelope: Envelope) -> Backup:
    """Check every page of a Pod's file, which others may use meanwhile, and say what it holds; nothing is migrated.

    Raises:
        DamagedError, DeniedError, InvalidError, UnavailableError: As opening it would.
    """
    with sharing_pod(path, disk=Disk()):
        return examine(path, key, envelope, path)


def _get_identity(settings: Settings) -> Identity:
    try:
        return read_identity(settings.home)
    except NotFoundError as exc:
        message = f"there are no keys in {str(settings.home)!r} yet: store_keys brings yours, or makes new ones"
        raise NotFoundError(message, path=str(settings.home)) from exc


def _identity_for(backup: Path, identity: Identity, home: Path) -> Identity:
    """Return ``identity``, with the key kept in ``home`` that a backup from before a rotation needs."""
    disk = Disk()
    try:
        needed = read_envelope(backup / ENVELOPE, disk=disk).key_id
        kept = Identity.from_json(disk.read(home / f"keys.{needed}.json"), what=f"the kept key {needed!r}")
    except NotFoundError:
        return identity
    if kept.owner_key != identity.owner_key or identity.previous_database_key is not None:
        return identity
    return replace(identity, previous_database_key=kept.database_key)
