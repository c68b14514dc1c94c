"""A Pod in one encrypted SQLite file.

Hides how the file is opened, checked, locked and shared. Beside `NAME.db` lie `NAME.json` (the envelope: which key,
which format), `NAME.lock` (held shared by every process that has the file open) and SQLite's own `-wal` and `-shm`.

The failure argument. *The process dies on any line of `apply`*: SQLite's transaction is in the log whole or is not;
the next opener is alone (the lock of the dead is free), finds a log that was left behind, and checks the file. *Two
write at once*: `BEGIN IMMEDIATE` queues them, for at most 30 s. *The disk is full, or a flush fails*: the transaction
is rolled back and the connection is not used again, so that nothing depends on what the kernel made of the failed
flush. *A forked child* closes the connections that it inherited and opens its own, because SQLite's locks belong to the
process that took them (see `holdfast.sql.forks`).
"""

# apsw's stubs speak of a Buffer that Python 3.11 does not know.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
import time
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Self

import apsw

from holdfast.disk import Disk, Lock
from holdfast.errors import (
    DamagedError,
    DeniedError,
    HoldfastError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from holdfast.interrupts import is_interrupted, uninterrupted
from holdfast.items import Schema
from holdfast.keys import Envelope, key_id, read_envelope
from holdfast.runs import Clock, Lease, SystemClock
from holdfast.sql import rows as sql_rows
from holdfast.sql.backup import PAUSE_S, WAIT_S, close_unchanged, copy_file, lock_pod
from holdfast.sql.faults import translated
from holdfast.sql.forks import inside_sqlite
from holdfast.sql.migration import check_format, format_of, migrate, migrations
from holdfast.sql.rows import Known
from holdfast.sql.search import compile_query
from holdfast.store import (
    Batch,
    Direction,
    EdgeRow,
    Found,
    ItemRow,
    LogPart,
    Query,
    Question,
    Result,
    evaluate,
    needs,
    refuse_secrets,
)
from holdfast.values import Value

_log: Final = logging.getLogger(__name__)

_FIRST_WAITS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.025)
_WAIT_STEP_S: Final = 0.03

_PLAIN: Final = b"SQLite format 3\0"
_IDLE_READERS: Final = 8
_READER_CACHE_KIB: Final = 8_192
_WRITER_CACHE_KIB: Final = 65_536
"""SQLite's own 2 MiB make a large batch write pages twice; taken only as it is needed."""

_inherited: list[Any] = []
"""Connections that a child, forked in the middle of using them, must neither use nor close."""

_open_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()


class SqliteStore:
    """A `holdfast.store.Store` in one file, for any number of threads and processes.

    Args:
        path: The file; it and its companions are made if ``create``, its folder must exist.
        key: The 32 bytes that the file is, or will be, encrypted with.
        clock: What dates and leases are measured on; None: the machine's clock.
        disk: Where the file lies.
        create: Make the file if there is none.
        steps: The migrations; only tests have others than those that ship.

    Raises:
        DeniedError: ``key`` is another file's, or the rights of this process do not suffice.
        DamagedError: The file is not what was written; also if a check finds so after an unclean end.
        InvalidError: It is a plain SQLite file, or has a newer format.
        NotFoundError: There is none, and it is not to be made; or its folder does not exist.
        UnavailableError: It lies on a network file system, where SQLite's log cannot be shared; or the disk is full;
            or another process is changing its format.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        key: bytes,
        *,
        clock: Clock | None = None,
        disk: Disk | None = None,
        create: bool = True,
        steps: Mapping[int, Traversable] | None = None,
    ) -> None:
        self.path = Path(path).absolute()
        self._key = key
        self._clock = clock or SystemClock()
        self._disk = disk or Disk()
        self._create = create
        self._steps = migrations() if steps is None else steps
        self._known: Known | None = None
        self._is_closed = False
        self._forget()
        with uninterrupted(), inside_sqlite, translated(self.path):
            self._open()
        _open_stores.add(self)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Begin without connections and locks: a new store, or one that a forked child inherited."""
        self._writing = threading.Lock()
        self._pooling = threading.Condition()
        self._reads = 0
        self._writer: apsw.Connection | None = None
        self._readers: list[apsw.Connection] = []
        self._lock: Lock | None = None

    def _abandon(self, *, can_close: bool) -> None:
        """In a forked child: use nothing that was inherited."""
        for connection in (self._writer, *self._readers):
            if connection is None:
                continue
            if can_close:
                # The log stays, for it is the parent's: closing must not even look whether it was the last to use it.
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                connection.close(True)
            else:
                _inherited.append(connection)
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # not even when the interpreter ends
        self._forget()

    def _open(self) -> None:
        """Lock the file, see that it is what it should be, make or migrate it where that is needed."""
        inside_sqlite.check_usable(str(self.path))
        folder = self.path.parent
        if not folder.is_dir():
            raise NotFoundError(f"the folder {str(folder)!r} of the Pod does not exist", path=str(folder))
        if self._disk.is_network(folder):
            kind = self._disk.filesystem(folder)
            message = (
                f"the Pod {str(self.path)!r} cannot be opened: it lies on a network file system ({kind}), where "
                "processes cannot share SQLite's write-ahead log; move it to a local disk"
            )
            raise UnavailableError(message, path=str(self.path), filesystem=kind)
        self._lock, self._writer = self._open_locked()

    def _open_locked(self) -> tuple[Lock, apsw.Connection]:
        alone_s = 0.0
        for _ in range(round(WAIT_S / PAUSE_S)):
            lock = lock_pod(self.path, disk=self._disk, alone_s=alone_s)
            try:
                writer = self._open_with(lock)
            except BaseException:
                lock.release()
                raise
            if writer is not None:
                return lock, writer
            # Several wait to make or migrate the file: one does, and shares the lock from then on. So the others look
            # at everything anew; a restore may have been in between, too.
            lock.release()
            alone_s = PAUSE_S
        message = f"the Pod {str(self.path)!r} cannot be made or migrated: others have been using it for {WAIT_S:.0f} s"
        raise UnavailableError(message, path=str(self.path))

    def _open_with(self, lock: Lock) -> apsw.Connection | None:
        """Return the connection that writes; None if the file is to be made or migrated and others share the lock."""
        if self._check_files():
            if lock.is_shared:
                return None
            if not self._envelope_path.exists():
                self._disk.create(self._envelope_path, Envelope.bare(self._key).to_json())
            self.path.touch(mode=0o600)  # its companions take their rights from it
        was_left_behind = not lock.is_shared and _size(self._wal_path) > 0  # else the log is that of others at work
        try:
            writer = self._connect(_WRITER_CACHE_KIB, is_first=True)
        except apsw.NotADBError:
            self._check_encrypted()
            raise
        try:
            found = format_of(writer)
            check_format(found, self.path, max(self._steps))
            if was_left_behind:
                self._check_pages(writer)
            if found < max(self._steps):
                if lock.is_shared:
                    close_unchanged(writer, self.path)
                    return None
                migrate(writer, before=self._copy_before, steps=self._steps)
                with writer:
                    sql_rows.index_properties(writer, sql_rows.read_known(writer).schema)
            lock.downgrade()
        except BaseException:
            close_unchanged(writer, self.path)  # so that damage which was found now is looked for the next time, too
            raise
        return writer

    def _check_files(self) -> bool:
        """Return whether the file is still to be made, and refuse one that the key does not belong to."""
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            # Through a link the file would have two locks and two logs, which know nothing of each other.
            message = f"{str(self.path)!r} cannot be a Pod: it is a link, a folder or a device, not a plain file"
            raise InvalidError(message, path=str(self.path))
        size = _size(self.path)
        if size == 0 and _size(self._wal_path) > 0:
            message = (
                f"the Pod {str(self.path)!r} lost its content: the file is gone or empty and its log is still there; "
                "bring the file back, or restore a backup"
            )
            raise DamagedError(message, path=str(self.path))
        if size == 0 and not self._create:
            raise NotFoundError(f"there is no Pod {str(self.path)!r}", path=str(self.path))
        if self._envelope_path.exists():
            envelope = read_envelope(self._envelope_path, disk=self._disk)
            if envelope.data_key_id != key_id(self._key):
                message = (
                    f"the key {key_id(self._key)!r} does not open the Pod {str(self.path)!r}: its key is "
                    f"{envelope.data_key_id!r}"
                )
                raise DeniedError(message, path=str(self.path), key_id=envelope.data_key_id)
        elif size > 0:
            self._check_encrypted()
            message = (
                f"the Pod {str(self.path)!r} cannot be opened without its envelope {self._envelope_path.name!r}, "
                "which says what key it has; bring that back from where the file was copied, or restore a backup"
            )
            raise DamagedError(message, path=str(self.path))
        return size == 0

    def _check_encrypted(self) -> None:
        """Refuse a file that is plain SQLite.

        Only called when the file cannot be opened anyway: this process must not have it open, because SQLite's locks
        would go with the descriptor that is closed here.
        """
        if any(store.path == self.path for store in list(_open_stores)):
            return
        with self.path.open("rb") as file:
            head = file.read(len(_PLAIN))
        if head == _PLAIN:
            message = f"{str(self.path)!r} is a plain SQLite file and not an encrypted Pod"
            raise InvalidError(message, path=str(self.path))

    @property
    def _envelope_path(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def _wal_path(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def _connect(self, cache_kib: int, *, is_first: bool = False) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if is_first else 0)
        connection = apsw.Connection(str(self.path), flags=flags)
        try:
            connection.set_busy_handler(_wait_again)
            connection.pragma("cipher", "chacha20")
            connection.pragma("key", f"raw:{self._key.hex()}")
            if is_first:
                connection.pragma("journal_mode", "wal")  # kept in the file; raises where it cannot be
            connection.pragma("synchronous", "full")
            connection.pragma("cache_size", -cache_kib)
        except BaseException:
            connection.close(True)
            raise
        return connection

    def _check_pages(self, connection: apsw.Connection) -> None:
        found = [text for (text,) in connection.execute("PRAGMA quick_check(3)")]
        _log.info("pod.checked", extra={"path": str(self.path), "found": found})
        if found != ["ok"]:
            what = " ".join(found[0].split())  # SQLite's answer has several lines
            message = f"the Pod {str(self.path)!r} is damaged since an unclean end: {what}; restore a backup"
            raise DamagedError(message, path=str(self.path))

    def _copy_before(self, found: int) -> None:
        copy = self.path.with_name(f"{self.path.name}.format-{found}")
        copy_file(self.path, self._key, copy, disk=self._disk)

    # -- connections --------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        self._check_not_closed()
        if self._lock is None:
            with self._writing:
                self._check_not_closed()
                if self._lock is None:
                    self._open()  # in a forked child

    def _check_not_closed(self) -> None:
        if self._is_closed:
            raise UnavailableError(f"the Pod {str(self.path)!r} was closed", path=str(self.path))

    @contextmanager
    def _transaction(self) -> Generator[apsw.Connection]:
        """One write transaction on the one connection that writes."""
        with uninterrupted(), inside_sqlite, translated(self.path):
            self._check_open()
            if not self._writing.acquire(timeout=WAIT_S):
                message = (
                    f"the Pod {str(self.path)!r} is busy: another thread has been writing to it for {WAIT_S:.0f} s"
                )
                raise UnavailableError(message, path=str(self.path))
            try:
                self._check_not_closed()  # again, for it may have been while this waited
                if self._writer is None:
                    self._writer = self._connect(_WRITER_CACHE_KIB)
                writer = self._writer
                try:
                    writer.execute("BEGIN IMMEDIATE")
                    yield writer
                    writer.execute("COMMIT")
                except BaseException as exc:
                    self._roll_back(writer, exc)
                    raise
            finally:
                self._writing.release()

    def _roll_back(self, writer: apsw.Connection, exc: BaseException) -> None:
        """Undo; and after an error of SQLite's own, use the connection no more."""
        try:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
        except apsw.Error as second:
            exc.add_note(f"rolling back failed too: {second}")
            self._drop_writer(writer)
        else:
            if isinstance(exc, apsw.Error):
                self._drop_writer(writer)

    def _drop_writer(self, writer: apsw.Connection) -> None:
        self._writer = None
        writer.close(True)

    @contextmanager
    def _reading(self) -> Generator[apsw.Connection]:
        """One moment of the Pod, which no write waits for and which waits for none."""
        with uninterrupted(), inside_sqlite, translated(self.path):
            self._check_open()
            with self._pooling:
                self._check_not_closed()  # again: from here on whoever closes waits for this read
                reader = self._readers.pop() if self._readers else None
                self._reads += 1
            try:
                if reader is None:
                    reader = self._connect(_READER_CACHE_KIB)
                try:
                    reader.execute("BEGIN")
                    try:
                        yield reader
                    finally:
                        if reader.in_transaction:
                            reader.execute("ROLLBACK")
                except BaseException:
                    reader.close(True)
                    raise
                with self._pooling:
                    if not self._is_closed and len(self._readers) < _IDLE_READERS:
                        self._readers.append(reader)
                        return
                reader.close()
            finally:
                with self._pooling:
                    self._reads -= 1
                    self._pooling.notify_all()
                    if self._is_closed:
                        self._release_if_unused()

    def close(self) -> None:
        """Let go of the file. Twice is harmless; using the store afterwards raises UnavailableError.

        It waits for the reads and the write of other threads. A read that takes longer than 30 s is not waited for:
        then the file stays locked until that read has ended.
        """
        if self._is_closed:
            return
        with uninterrupted(), inside_sqlite, self._writing, self._pooling:
            self._is_closed = True
            self._close_connections()
            self._pooling.wait_for(lambda: not self._reads, WAIT_S)
            self._release_if_unused()
        _open_stores.discard(self)

    def _release_if_unused(self) -> None:
        if self._lock is not None and not self._reads:
            self._lock.release()
            self._lock = None

    def _close_connections(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SqliteStore {str(self.path)!r}>"

    # -- the protocol -------------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> tuple[Result, ...]:  # noqa: D102 -- said at `Store`, as is all below
        if batch.key is not None:
            batch.digest()  # now, and not while others wait to write
        with self._transaction() as db:
            return self._carry_out(db, batch, self._current(db))[0]

    def apply_all(self, batches: Sequence[Batch]) -> list[tuple[Result, ...] | HoldfastError]:
        """Apply each batch in its turn, as `apply` would, and make them durable together: one flush for all.

        Returns:
            For each batch, in order, its results, or the error that refused it. One that was refused left nothing
            and does its neighbours no harm; each sees what those before it changed.

        Raises:
            UnavailableError, DamagedError: As `apply` says, about all of them: none was told to be there.
        """
        answers: list[tuple[Result, ...] | HoldfastError] = []
        with self._transaction() as db:
            known = self._current(db)
            for batch in batches:
                db.execute("SAVEPOINT batch")
                try:
                    with translated(self.path):
                        results, known = self._carry_out(db, batch, known)
                    answers.append(results)
                except UnavailableError:  # not the batch is to blame, and what became of the transaction is not known
                    raise
                except HoldfastError as exc:
                    db.execute("ROLLBACK TO batch")
                    answers.append(exc)
                db.execute("RELEASE batch")
        return answers

    def _carry_out(self, db: apsw.Connection, batch: Batch, known: Known) -> tuple[tuple[Result, ...], Known]:
        """Do what a batch says, within a transaction; return its results and the schema after it.

        That schema may be undone with the transaction, and its version given to another: it is for nobody else yet.
        """
        now_ms = self.now_ms()
        if batch.key is not None and (answer := sql_rows.find_answer(db, batch, now_ms)) is not None:
            return answer, known
        loaded = sql_rows.load(db, needs(batch), known)
        results, changes = evaluate(batch, loaded.rows, now_ms=now_ms)
        known = sql_rows.write(db, changes, loaded)
        if batch.key is not None:
            sql_rows.write_answer(db, batch, results, now_ms)
        return results, known

    def schema(self) -> Schema:  # noqa: D102
        with self._reading() as db:
            return self._current(db).schema

    def _current(self, db: apsw.Connection) -> Known:
        known = self._known
        if known is None or known.version != sql_rows.schema_version(db):
            self._known = known = sql_rows.read_known(db)
        return known

    def find_items(self, ids: Sequence[str]) -> Mapping[str, ItemRow]:  # noqa: D102
        with self._reading() as db:
            return sql_rows.find_items(db, ids)

    def search(self, query: Query) -> list[Found]:  # noqa: D102
        with self._reading() as db:
            known = self._current(db)
            refuse_secrets(query, known.schema)
            statement, values = compile_query(query, known)
            found = [(seq, sql_rows.item_from(tuple(row))) for seq, *row in db.execute(statement, values)]
            edges: dict[str, list[EdgeRow]] = {}
            for direction, is_wanted in ((Direction.OUTGOING, query.outgoing), (Direction.INCOMING, query.incoming)):
                if is_wanted:
                    for id_, each in sql_rows.list_edges(db, [item.id for _, item in found], direction).items():
                        edges.setdefault(id_, []).extend(each)
        return [
            Found(item=item, position=(item.server_modified_ms, seq), edges=tuple(edges.get(item.id, ())))
            for seq, item in found
        ]

    def list_edges(  # noqa: D102
        self, ids: Sequence[str], direction: Direction, *, with_deleted: bool = False
    ) -> Mapping[str, list[EdgeRow]]:
        with self._reading() as db:
            return sql_rows.list_edges(db, ids, direction, with_deleted=with_deleted)

    def list_variables(self, state: str, namespace: str = "") -> Mapping[str, Value]:  # noqa: D102
        with self._reading() as db:
            return sql_rows.list_variables(db, state, namespace)

    def find_lease(self, state: str) -> Lease | None:  # noqa: D102
        with self._reading() as db:
            return sql_rows.find_lease(db, state)

    def find_snapshot(self, state: str) -> str | None:  # noqa: D102
        with self._reading() as db:
            return sql_rows.find_snapshot(db, state)

    def list_questions(self, state: str) -> list[Question]:  # noqa: D102
        with self._reading() as db:
            return sql_rows.list_questions(db, state)

    def list_log(self, run: str, after: int = 0) -> list[LogPart]:  # noqa: D102
        with self._reading() as db:
            return sql_rows.list_log(db, run, after)

    def find_log_end(self, run: str, source: str) -> str:  # noqa: D102
        with self._reading() as db:
            return sql_rows.find_log_end(db, run, source)

    def now_ms(self) -> int:  # noqa: D102
        return self._clock.now_ms()


def _wait_again(tries: int) -> bool:
    """Wait a little for another process, in all for `WAIT_S`; give up at once if a signal asks this one to stop."""
    if is_interrupted() or tries >= len(_FIRST_WAITS_S) + (WAIT_S - sum(_FIRST_WAITS_S)) / _WAIT_STEP_S:
        return False
    time.sleep(_FIRST_WAITS_S[tries] if tries < len(_FIRST_WAITS_S) else _WAIT_STEP_S)
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _abandon_all() -> None:
    can_close = inside_sqlite.open_in_child()
    for store in list(_open_stores):
        store._abandon(can_close=can_close)  # pyright: ignore[reportPrivateUsage] -- this module's own


def _close_all() -> None:
    """End cleanly even where nobody closed: the next opener then finds no log and has nothing to check."""
    for store in list(_open_stores):
        store.close()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
