"""A Pod's file copied while others write to it, and put back.

A backup is a folder with the encrypted file and its envelope: the owner's key opens it, anywhere.

The failure argument. A backup is built in a temporary folder, checked, flushed and renamed: a process that dies leaves
that folder, ``.tmp-`` and 16 digits, never half a backup under its name. Nothing sweeps it away: the place is the
user's, and what is called like that there need not be ours. A restore checks the backup first, holds the
Pod's lock alone, and builds all of it in a folder `NAME.restoring`, which appears with one rename: before, nothing is
changed; from then on whoever gets the Pod's lock first carries the restore to its end, and nobody sees a Pod with
another's log, or none where one was. For this everybody takes the lock with `lock_pod` or `sharing_pod`, and looks at
the Pod's files only inside: what was seen before says nothing, for a restore may have moved them while one waited.
"""

# apsw's stubs speak of a Buffer that Python 3.11 does not know.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from holdfast.disk import BusyError, Disk, Lock
from holdfast.errors import DamagedError, NotFoundError, UnavailableError
from holdfast.keys import Envelope, Identity, read_envelope
from holdfast.sql.faults import translate, translated
from holdfast.sql.forks import inside_sqlite
from holdfast.sql.migration import check_format, format_of

_log: Final = logging.getLogger(__name__)

FILE: Final = "pod.db"
ENVELOPE: Final = "pod.json"
FILES: Final = "files"
_REPLACED: Final = "replaced"
WAIT_S: Final = 30.0
"""How long a Pod's lock is waited for."""

PAUSE_S: Final = 0.2
"""How long the lock is waited for alone, before looking whether somebody else did what needs it."""

_WRITING: Final = frozenset({apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_TRUNCATE})
"""Errors of a disk that nobody meets who reads."""

_PAGES: Final = 512
"""Copied between two reports of progress: 2 MiB."""

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is, in any unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What a backup holds, as found by opening it."""

    path: Path
    owner: str
    format: int
    size_bytes: int
    items: int


def back_up(
    source: Path,
    key: bytes,
    target: Path,
    *,
    disk: Disk | None = None,
    on_progress: Progress | None = None,
    copy_files: Callable[[Path], object] = lambda _: None,
) -> Backup:
    """Copy the Pod in ``source`` as it is at one moment into a new folder ``target``; writers go on meanwhile.

    Args:
        source: A Pod's file.
        key: Its data key.
        target: Where the backup shall be; must not exist.
        disk: Where both lie.
        on_progress: Told how many of how many pages are copied.
        copy_files: Copies the bytes of the Pod's files into a folder, those that are not there yet; called before the
            Pod is copied and after it, so that none is missing that was there at its moment.

    Raises:
        ConflictError: ``target`` exists.
        DamagedError: The copy does not check; nothing is left of it.
        UnavailableError: The disk is full, or the Pod is being restored or migrated; nothing is left of it.
    """
    disk = disk or Disk()
    disk.put_folder(target.parent)
    with sharing_pod(source, disk=disk), disk.temporary_folder(target.parent) as folder:
        envelope = read_envelope(source.with_suffix(".json"), disk=disk)
        copy_files(folder / FILES)
        copy_file(source, key, folder / FILE, disk=disk, shown_path=target, on_progress=on_progress)
        copy_files(folder / FILES)
        disk.create(folder / ENVELOPE, envelope.to_json())
        found = examine(folder / FILE, key, envelope, target)
        disk.sync_folder(folder)
        disk.rename(folder, target)
    return found


def copy_file(
    source: Path,
    key: bytes,
    target: Path,
    *,
    disk: Disk,
    shown_path: Path | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Copy a database, encrypted as it is, to a file that does not exist yet, and flush it.

    Messages call the copy ``shown_path``, if ``target`` is not to be its name.
    """
    target.unlink(missing_ok=True)  # what a copy that died left behind
    shown_path = shown_path or target
    with inside_sqlite, translated(source):
        reader = _connect(source, key, apsw.SQLITE_OPEN_READWRITE)
        with translated(shown_path):
            writer = _connect(target, key, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        try:
            writer.pragma("synchronous", "off")  # flushed once, below
            # Inside a transaction of its own the reader stays at one moment; outside, each write of somebody else
            # would make the copy begin anew.
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_master").fetchall()
            with _blamed_on(shown_path), writer.backup("main", reader, "main") as copying:
                while not copying.done:
                    copying.step(_PAGES)
                    if on_progress is not None:
                        on_progress(copying.page_count - copying.remaining, copying.page_count)
            reader.execute("COMMIT")
            with translated(shown_path):
                writer.pragma("journal_mode", "delete")  # one file, without companions
        finally:
            close_unchanged(reader, source)
            writer.close()
    disk.sync_file(target)


@contextmanager
def _blamed_on(target: Path) -> Generator[None]:
    """Raise what only a writer can meet, while a file is read and its copy ``target`` is written, as the copy's."""
    try:
        yield
    except apsw.Error as exc:
        code = getattr(exc, "extendedresult", 0)
        is_target = isinstance(exc, apsw.FullError | apsw.ReadOnlyError | apsw.CantOpenError) or code in _WRITING
        found = translate(exc, target) if is_target else None
        if found is None:
            raise
        raise found from exc


def inspect(path: Path, identity: Identity, *, disk: Disk | None = None) -> Backup:
    """Open the backup in folder ``path``, check every page of it, and say what it holds.

    Raises:
        NotFoundError: There is no backup.
        DeniedError: It is not this owner's, or needs another key.
        DamagedError, InvalidError: It is damaged, or of a newer format.
    """
    for name in (FILE, ENVELOPE):
        if not (path / name).is_file():
            raise NotFoundError(f"there is no backup in {str(path)!r}: it holds no {name!r}", path=str(path))
    envelope = read_envelope(path / ENVELOPE, disk=disk or Disk())
    return examine(path / FILE, envelope.open(identity), envelope, path)


def restore(
    backup: Path,
    identity: Identity,
    target: Path,
    *,
    disk: Disk | None = None,
    on_progress: Progress | None = None,
) -> Path | None:
    """Put the backup in folder ``backup`` in place of the Pod in ``target``.

    Returns:
        The folder where the Pod that was there is kept now; None if there was none.

    Raises:
        NotFoundError, DeniedError, DamagedError, InvalidError: As `inspect` says; nothing was changed.
        UnavailableError: The Pod is open in a process, or the disk is full; nothing was changed.
    """
    disk = disk or Disk()
    inspect(backup, identity, disk=disk)
    envelope = read_envelope(backup / ENVELOPE, disk=disk)
    key = envelope.open(identity)
    disk.put_folder(target.parent)
    disk.sweep(target.parent)
    try:
        lock = disk.lock(target.with_suffix(".lock"))
    except BusyError as exc:
        message = f"the Pod {str(target)!r} is open: end what uses it, then restore"
        raise UnavailableError(message, path=str(target)) from exc
    with lock:
        _finish(target, disk)  # one that was begun before
        with disk.temporary_folder(target.parent) as folder:
            copy_file(backup / FILE, key, folder / FILE, disk=disk, shown_path=target, on_progress=on_progress)
            disk.create(folder / ENVELOPE, envelope.rekey(identity).to_json())
            disk.put_folder(folder / _REPLACED)
            disk.rename(folder, _restoring(target))
        return _finish(target, disk)


def lock_pod(target: Path, *, disk: Disk, alone_s: float = 0) -> Lock:
    """Return the lock of the Pod in ``target``, with no restore half done: one whose process died is finished first.

    Args:
        target: The Pod's file, which need not be there; its folder must.
        disk: Where it lies.
        alone_s: How long to wait for a lock that nobody shares; after that it is a shared one.

    Raises:
        BusyError: Somebody had it alone for `WAIT_S`.
        UnavailableError: The disk is full or failing.
    """
    path = target.with_suffix(".lock")
    for _ in range(round(WAIT_S / PAUSE_S)):
        try:
            lock = disk.lock(path, wait_s=alone_s)
        except BusyError:
            lock = disk.lock(path, shared=True, wait_s=WAIT_S)
        try:
            if not _restoring(target).exists():
                return lock
            if not lock.is_shared:
                _finish(target, disk)
                return lock
        except BaseException:
            lock.release()
            raise
        # Several waited for the process that died, and one of them must be alone. An upgrade would not do: whoever
        # finishes the restore shares the lock from then on, for as long as it uses the Pod.
        lock.release()
        alone_s = PAUSE_S
    message = f"the lock on {str(path)!r} was shared by others for {WAIT_S:.0f} s while a restore is to be finished"
    raise BusyError(message, path=str(path))


@contextmanager
def sharing_pod(target: Path, *, disk: Disk) -> Generator[None]:
    """Keep the Pod in ``target`` from being restored or migrated inside the block; others use it meanwhile.

    Do not open a Pod that is still to be made inside: that needs the lock alone.

    Raises:
        BusyError, UnavailableError: As `lock_pod` says.
    """
    # Never alone, not even for a moment: an opener that cannot have it alone would not check the file.
    with disk.lock(target.with_suffix(".lock"), shared=True, wait_s=WAIT_S):
        if not _restoring(target).exists():
            yield
            return
    with lock_pod(target, disk=disk) as lock:
        lock.downgrade()
        yield


def _restoring(target: Path) -> Path:
    return target.with_name(f"{target.name}.restoring")


def _finish(target: Path, disk: Disk) -> Path | None:
    """Put what is in the folder of a restore into its place, under the lock; return where the former Pod is kept.

    Each step is one rename, and what is left to do can be seen from what is left in the folder. Files that somebody
    made meanwhile under the Pod's names are in nobody's way: they are set aside.
    """
    restoring = _restoring(target)
    if not restoring.exists():
        return None
    replaced = restoring / _REPLACED
    envelope_path = target.with_suffix(".json")
    if (restoring / ENVELOPE).exists():
        # Until the new envelope is in place all files under the Pod's names are the former one's.
        for name in (f"{target.name}-wal", f"{target.name}-shm", envelope_path.name, target.name):
            _set_aside(target.with_name(name), replaced, disk)
        disk.rename(restoring / ENVELOPE, envelope_path)
    if (restoring / FILE).exists():
        _set_aside(target, replaced, disk)
        disk.rename(restoring / FILE, target)
    aside = _keep_replaced(target, replaced, disk)
    disk.delete(restoring)
    _log.info("pod.restored", extra={"path": str(target), "replaced": None if aside is None else str(aside)})
    return aside


def _set_aside(path: Path, replaced: Path, disk: Disk) -> None:
    if not path.exists():
        return
    if not (replaced / path.name).exists():
        disk.rename(path, replaced / path.name)
        return
    aside = disk.quarantine(path, label="replaced")
    _log.warning("pod.set_aside", extra={"path": str(path), "aside": str(aside)})


def _keep_replaced(target: Path, replaced: Path, disk: Disk) -> Path | None:
    if not replaced.exists() or not any(replaced.iterdir()):
        return None
    number = 1
    while (aside := target.with_name(f"{target.stem}.replaced-{number}")).exists():
        number += 1
    disk.rename(replaced, aside)
    return aside


def _connect(path: Path, key: bytes, flags: int) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=flags)
    connection.set_busy_timeout(30_000)
    connection.pragma("cipher", "chacha20")
    connection.pragma("key", f"raw:{key.hex()}")
    return connection


def close_unchanged(connection: apsw.Connection, path: Path) -> None:
    """Close a connection that wrote nothing to the file ``path``, and leave the log as it is if there is one.

    Copying it back would hide from the next opener that a process died and the file is to be checked.
    """
    try:
        if path.with_name(f"{path.name}-wal").stat().st_size:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    except FileNotFoundError:
        pass
    connection.close(True)


def examine(path: Path, key: bytes, envelope: Envelope, shown_path: Path) -> Backup:
    """Check every page of a Pod's file, which messages call ``shown_path``, and say what it holds.

    Nothing is changed, nor is a log copied back. If others may use the file, call it inside `sharing_pod`.

    Raises:
        DamagedError: A page is not what was written, or the file was never finished.
        InvalidError: It has a newer format.
    """
    with inside_sqlite, translated(path):
        db = _connect(path, key, apsw.SQLITE_OPEN_READWRITE)
        try:
            found = format_of(db)
            check_format(found, shown_path)
            if not found:
                raise DamagedError(f"the Pod in {str(shown_path)!r} was never finished", path=str(shown_path))
            verdict = [text for (text,) in db.execute("PRAGMA quick_check(3)")]
            if verdict != ["ok"]:
                what = " ".join(verdict[0].split())  # SQLite's answer has several lines
                raise DamagedError(f"the Pod in {str(shown_path)!r} is damaged: {what}", path=str(shown_path))
            items = db.execute("SELECT count(*) FROM item").get
        finally:
            close_unchanged(db, path)
    return Backup(path=shown_path, owner=envelope.owner, format=found, size_bytes=path.stat().st_size, items=items)
