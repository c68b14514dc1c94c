"""Files and folders, made durable: `Disk`."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from holdfast.disk import mounts
from holdfast.disk.blocks import Blocks
from holdfast.disk.calls import DIRECTORY, FOLDER, NO_FOLDER_FLUSH, PLAIN
from holdfast.disk.faults import ExistsError, StrPath, check_plain, error, translated
from holdfast.disk.forks import drop
from holdfast.disk.locks import Locks, is_at
from holdfast.errors import InvalidError
from holdfast.interrupts import uninterrupted

temporary_pattern: Final = re.compile(r"\.tmp-[0-9a-f]{16}")
"""Names of what is not finished: 64 random bits, so that a name is never used twice."""

_ATTEMPTS: Final = 16
_CHUNK_BYTES: Final = 65536
_MAX_OPEN: Final = 64  # at once, of what is written together; a process may have 1024 or 256
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_NO_RENAME_NEW: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


class Disk(Locks):
    """Durable files, folders and locks. Without state of its own: hand one instance to all who need it.

    What it does to the world goes through the methods of `Calls`.

    Besides what each method says, all raise MissingError if what is named, or the folder for it, is not there;
    DeniedError if this user may not; UnavailableError if the disk is full, failing, read-only, or cannot do it;
    InvalidError if no path can be like this. Nothing was changed then, unless the method says more.
    """

    def read(self, path: StrPath) -> bytes:
        """Return all that the plain file at ``path`` holds; while it is being replaced, all of the old or the new.

        Raises:
            MissingError: There is none (FileNotFoundError as well).
            InvalidError: It is a link, folder, pipe or device. A link is refused, because a plugin could have put it
                there to be shown what it may not read itself.
        """
        path = Path(path)
        with translated(path, "read"):
            fd = self._open(path, os.O_RDONLY | PLAIN)
            try:
                size = check_plain(os.fstat(fd)).st_size
                chunks: list[bytes] = []
                while chunk := self._read(fd, max(size, _CHUNK_BYTES)):
                    chunks.append(chunk)
                return b"".join(chunks)
            finally:
                os.close(fd)

    def create(self, path: StrPath, data: bytes | bytearray | memoryview, *, mode: int = 0o600) -> None:
        """Put a new file with ``data`` at ``path``; once this returns it is durable. At any time it is absent or whole.

        Its permissions are ``mode``, whatever the umask. Of several that create one name at once, one succeeds. Two
        flushes: file and folder. If the flush of the folder fails, the file is there, but may not outlive a power cut.

        Raises:
            ExistsError: Something has the name, be it a link to nowhere (ConflictError, and FileExistsError as well).
        """
        path = Path(path)
        with translated(path, "create"), self._flushed_after(path.parent):
            if _find(path) is not None:  # so that a full disk is not blamed where the name is taken
                raise error(errno.EEXIST)
            with self._temporary_file(path.parent, data, mode=mode, like=None) as temporary:
                try:
                    self._link(temporary, path)
                except OSError as exc:
                    if exc.errno not in _NO_LINKS:
                        raise
                    self._move(temporary, path)

    def replace(
        self,
        path: StrPath,
        data: bytes | bytearray | memoryview,
        *,
        mode: int | None = None,
        keep_previous: StrPath | None = None,
    ) -> None:
        """Put a file with ``data`` at ``path`` in place of what is there, if anything; once this returns it is durable.

        At any time, and after any failure, ``path`` is all of the old or all of the new. Whoever has the old one open
        keeps it. Two flushes: file and folder. If the flush of the folder fails, the new content is in place, but
        after a power cut it may be the old one.

        Without ``mode`` the new file has the permissions and owner of the old one (0600 and this user, if there was
        none), as far as this user may give it away; with ``mode``, exactly that and this user, which is what a secret
        needs. Access lists and extended attributes are not carried over.

        ``keep_previous`` is a name in the same folder that then stands for the old file: a hard link, or a copy where
        there are none (two more flushes). It is made before the new one takes its place and replaces what had the
        name; if it cannot be made, nothing changes. After a kill it may be the same file as ``path``.

        Raises:
            InvalidError: ``path`` is a link, a folder, or anything but a plain file. A link is refused and not
                resolved: a plugin could have put it there to have another file overwritten. Or ``keep_previous`` is
                in another folder.
        """
        path = Path(path)
        previous = None if keep_previous is None else Path(keep_previous)
        if previous is not None and (previous.parent != path.parent or previous == path):
            raise InvalidError(
                f"the old {str(path)!r} cannot be kept as {str(previous)!r}: another name in its folder is expected",
                path=str(path),
            )
        with translated(path, "replace"), self._flushed_after(path.parent):
            # A link that appears after this look is replaced itself: rename does not follow it.
            old = _find(path)
            if old is not None:
                check_plain(old)
            with self._temporary_file(path.parent, data, mode=mode, like=old) as temporary:
                if previous is not None and old is not None:
                    self._keep(path, previous)
                self._rename(temporary, path)

    def rename(self, source: StrPath, target: StrPath) -> None:
        """Give the file or folder ``source`` the name ``target`` if that is free; once this returns it is durable.

        Flushes the names only, not what the file or folder holds: use `sync_file` before. At any time it has one of
        the names, never none; after a kill a file may have both where renameat2(2) is missing (NFS). There a folder's
        target may be seen as an empty folder for a moment, or after a kill. If the flush of a folder fails, it has the
        new name already, but after a power cut it may have the old one.

        Raises:
            ExistsError: ``target`` is taken. Neither was touched.
            MissingError: There is no ``source``, or no folder to put it in.
            InvalidError: They are on two file systems, or ``target`` is inside ``source``.
        """
        source, target = Path(source), Path(target)
        with translated(source, "rename"):
            os.lstat(source)  # blames the source; what fails from here on is the target's matter
        with translated(target, "rename to"), ExitStack() as folders:
            # Left in reverse: the new name is durable before the old one is durably gone.
            if source.parent != target.parent:
                folders.enter_context(self._flushed_after(source.parent))
            folders.enter_context(self._flushed_after(target.parent))
            self._move(source, target)

    def delete(self, path: StrPath) -> None:
        """Let the file or folder at ``path`` be gone, durably; nothing happens if it is.

        A folder goes in one step, by a temporary name: at no time it is there in part. What of it cannot be removed,
        or is left by a kill, is for `sweep`. Of a link only the link goes.
        """
        path = Path(path)
        with translated(path, "delete"):
            found = _find(path)
            leftover = _temporary_name(path.parent)
            if found is None:
                return
            with suppress(FileNotFoundError), self._flushed_after(path.parent):  # somebody else may be faster
                if stat.S_ISDIR(found.st_mode):
                    self._rename(path, leftover)
                else:
                    self._unlink(path)
            if stat.S_ISDIR(found.st_mode):
                self._remove_tree(leftover)

    def put_folder(self, path: StrPath, *, mode: int = 0o700) -> None:
        """Let there be a folder at ``path``, and all those above it; those that this makes are durable.

        They get ``mode`` less the umask. Two that make one at once both succeed. One that is there stays as it is.

        Raises:
            InvalidError: Something else than a folder has one of the names.
        """
        path = Path(path)
        with translated(path, "make"):
            if os.path.isdir(path):
                return
            if path.parent != path:
                self.put_folder(path.parent, mode=mode)
            is_new = False
            try:
                with self._flushed_after(path.parent):
                    try:
                        self._mkdir(path, mode)
                        is_new = True
                    except FileExistsError:
                        if not os.path.isdir(path):
                            raise error(errno.ENOTDIR) from None
            except BaseException:
                if is_new:  # left there, the next call would take it for durable
                    with suppress(OSError):
                        self._rmdir(path)
                raise

    @contextmanager
    def temporary_folder(self, parent: StrPath) -> Generator[Path]:
        """Yield a new empty folder in ``parent`` for something to be built in; give it its name with `rename`.

        If it is still there at the end of the block, it goes. No `sweep` takes it as long as the block lasts, in any
        process; after a kill the next one does.
        """
        parent, owner = Path(parent), os.getpid()
        with translated(parent, "make a folder in"):
            folder, fd = self._create_temporary(parent, is_folder=True)
        try:
            yield folder
        finally:
            if os.getpid() == owner:  # a forked child leaves by here too
                if os.path.lexists(folder):
                    self._remove_tree(folder)
                drop(fd)

    def write(
        self, files: Mapping[Path, bytes], *, folders: Iterable[Path] = (), stamps: Mapping[Path, int] | None = None
    ) -> None:
        """Put new files into folders that are being built, and flush them, and the ``folders``.

        Up to 64 at a time, of which all are written before the first flush, and flushed at the same time, so that the
        system may make them durable together. Not for a place that others see: there files may be half there. Their
        permissions are 0600. ``stamps`` are the times of the last change that some of ``folders`` get, in nanoseconds
        since 1970.

        Raises:
            ExistsError: Something has one of the names.
        """
        # Folders last: a file that is made changes the time of its folder.
        entries: list[tuple[Path, bytes | None]] = [*files.items(), *((path, None) for path in folders)]
        for start in range(0, len(entries), _MAX_OPEN):
            with ExitStack() as stack:
                flushes: list[Callable[[], object]] = []
                for path, data in entries[start : start + _MAX_OPEN]:
                    fd = self._stamped(path, (stamps or {}).get(path)) if data is None else self._written(path, data)
                    if fd is not None:
                        stack.callback(os.close, fd)
                        flushes.append(partial(self._flush_one, path, fd, is_folder=data is None))
                # Without leaving early: what was begun goes on, and its descriptor may be another file's by then.
                with uninterrupted():
                    self._at_once(flushes)

    def _written(self, path: Path, data: bytes) -> int:
        """Return the descriptor of a new file that has all of ``data``."""
        with translated(path, "write"), ExitStack() as stack:
            fd = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN)
            stack.callback(os.close, fd)
            view = memoryview(data)
            while view:
                view = view[self._write(fd, view) :]
            with suppress(OSError, AttributeError):  # begins to write back, where that can be asked for
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            stack.pop_all()
            return fd

    def _stamped(self, path: Path, time_ns: int | None) -> int | None:
        """Give a folder a time, and return its descriptor; None where there is none."""
        if time_ns is not None:
            with translated(path, "stamp"):
                os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
        with translated(path, "flush"):
            return None if sys.platform == "win32" else self._open(path, os.O_RDONLY | DIRECTORY)

    def _flush_one(self, path: Path, fd: int, *, is_folder: bool) -> None:
        with translated(path, "flush"):
            (self._flush_folder if is_folder else self._flush)(fd)

    def make_folder(self, path: StrPath) -> None:
        """Make a new folder in one that is being built; neither is flushed.

        Raises:
            ExistsError: Something has the name.
        """
        with translated(path, "make"):
            self._mkdir(Path(path), 0o700)

    def open_blocks(
        self, path: StrPath, *, create: bool = False, is_cached: bool = False, fd: int | None = None
    ) -> Blocks:
        """Open a plain file to read it, or a new one of mode 0600 to write it, as `Blocks`.

        A descriptor that is open already may be given as ``fd``; it belongs to what is returned then.

        Raises:
            ExistsError: It shall be new, and something has the name.
            InvalidError: It is no plain file.
        """
        path = Path(path)
        with translated(path, "open"):
            if fd is None:
                fd = self._open(path, (os.O_RDWR | os.O_CREAT | os.O_EXCL if create else os.O_RDONLY) | PLAIN)
            try:
                check_plain(os.fstat(fd))
            except OSError:
                os.close(fd)
                raise
        blocks = Blocks(path, fd, read=self._read_at, write=self._write_at, flush=self._flush)
        if not is_cached:
            blocks.go_direct(is_on=True)
        return blocks

    def link(self, source: StrPath, target: StrPath) -> bool:
        """Let ``target`` be the file ``source`` too, instead of what it is; return whether that could be done.

        It cannot if there is no ``source`` (any more), it has as many names as the file system allows, lies on
        another one, or is not this user's to link; then ``target`` is as it was. Not durable; for a folder that is
        being built.
        """
        target = Path(target)
        spare = _temporary_name(target.parent)
        with translated(target, "link"):
            try:
                self._link(Path(source), spare)
            except OSError as exc:
                if exc.errno not in _NO_LINKS | {errno.ENOENT, errno.EXDEV, errno.EACCES}:
                    raise
                return False
            try:
                self._rename(spare, target)
            finally:
                # rename(2) does nothing if both are names of one file already.
                with suppress(OSError):
                    self._unlink(spare)
            return True

    def sweep(self, folder: StrPath) -> list[Path]:
        """Remove from ``folder`` the temporary files and folders whose owner is dead; return them, sorted.

        An owner holds a lock as long as it lives. Where there are no locks nobody can be shown to be dead and all
        stays, as does what this user may not remove and what only looks like ours (links; another pattern of name).
        """
        folder = Path(folder)
        with translated(folder, "sweep"):
            names = sorted(name for name in os.listdir(folder) if temporary_pattern.fullmatch(name))
        return [folder / name for name in names if self._sweep_one(folder / name)]

    def quarantine(self, path: StrPath, *, label: str = "corrupt") -> Path:
        """Set the file or folder aside as ``<name>.<label>-<UTC time>`` beside it, durably; return its new path.

        Never takes the place of anything: a second one in the same second gets ``-2`` at its end. The time is written
        ``20250131T235959Z``. Of two at once one finds nothing any more.
        """
        path = Path(path)
        aside = f"{path.name}.{label}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(self._now()))}"
        number = 1
        while True:
            target = path.parent / (aside if number == 1 else f"{aside}-{number}")
            try:
                self.rename(path, target)
            except ExistsError:
                number += 1
            else:
                return target

    def sync_file(self, path: StrPath) -> None:
        """Make durable what the file at ``path`` holds. After an error write all of it again, to another file.

        Raises:
            InvalidError: It is not a plain file.
        """
        path = Path(path)
        with translated(path, "flush"):
            # Windows flushes only what is open for writing.
            opened = self._open(path, (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY) | PLAIN)
            try:
                check_plain(os.fstat(opened))
                self._flush(opened)
            finally:
                os.close(opened)

    def sync_folder(self, path: StrPath) -> None:
        """Make durable which names the folder at ``path`` holds; not what is in those files."""
        with translated(path, "flush"), self._flushed_after(Path(path)):
            pass

    def free_bytes(self, path: StrPath) -> int:
        """Return how many bytes this user may still write where ``path`` is, or will be: it need not exist yet."""
        with translated(path, "measure"):
            return mounts.free_bytes(path)

    def filesystem(self, path: StrPath) -> str:
        """Return the type of the file system where ``path`` is, or will be (``"ext4"``, ``"nfs4"``, ``"fuse.sshfs"``).

        Links are followed. A bind mount has the type of what is bound; an overlay is ``"overlay"``, whatever is
        below. Empty where it cannot be told.
        """
        with translated(path, "look up the file system of"):
            return mounts.filesystem(path)

    def is_network(self, path: StrPath) -> bool:
        """Return whether another machine, or the host of this virtual one, may have the files at ``path`` open.

        Decided by `NETWORK_FILESYSTEMS`; what is not in it, and what cannot be told, is taken for local.
        """
        return self.filesystem(path) in mounts.NETWORK_FILESYSTEMS

    @contextmanager
    def _flushed_after(self, folder: Path) -> Generator[None]:
        """Flush ``folder`` after the block, if that succeeds; opened before, so that a missing one fails at once."""
        if sys.platform == "win32":
            yield
            return
        fd = self._open(folder, os.O_RDONLY | DIRECTORY)
        try:
            yield
            self._flush_folder(fd)
        finally:
            os.close(fd)

    def _flush_folder(self, fd: int) -> None:
        try:
            self._flush(fd)
        except OSError as exc:
            # Some file systems (of FUSE, old SMB) have no flush for folders: it does not get more durable there.
            if exc.errno not in NO_FOLDER_FLUSH:
                raise

    @contextmanager
    def _temporary_file(
        self, folder: Path, data: bytes | bytearray | memoryview, *, mode: int | None, like: os.stat_result | None
    ) -> Generator[Path]:
        """Yield the name of a flushed file with ``data``; at the end that name is gone."""
        path, fd = self._create_temporary(folder)
        is_open = True
        try:
            view = memoryview(data).cast("B")
            while view:
                view = view[self._write(fd, view) :]
            _set_permissions(fd, mode, like)
            self._flush(fd)
            if sys.platform == "win32":  # which renames nothing that is open
                is_open = False
                drop(fd)
            yield path
        finally:
            # Also after a rename, when the name is free and stays so: one call more, and one path less.
            with suppress(OSError):
                self._unlink(path)
            if is_open:
                drop(fd)

    def _create_temporary(self, folder: Path, *, is_folder: bool = False) -> tuple[Path, int]:
        """Make an empty file or folder that no sweep takes while its descriptor is open, and return both."""
        for _ in range(_ATTEMPTS):
            path = _temporary_name(folder)
            if is_folder:
                self._mkdir(path, 0o700)
            # A sweep may lock it, and remove it, before the claim. Then it is made again.
            try:
                fd = self._open_held(path, FOLDER if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL | PLAIN)
            except FileNotFoundError:
                if not is_folder:
                    raise
                continue
            is_ours = False
            try:
                is_ours = self._claim(fd) and is_at(fd, path)
            finally:
                if not is_ours:
                    with suppress(OSError):
                        (self._rmdir if is_folder else self._unlink)(path)
                    drop(fd)
            if is_ours:
                return path, fd
        raise error(errno.EAGAIN)

    def _keep(self, path: Path, previous: Path) -> None:
        for _ in range(_ATTEMPTS):
            spare = _temporary_name(path.parent)
            try:
                self._link(path, spare)
            except FileNotFoundError:
                return  # deleted since; there is nothing to keep
            except OSError as exc:
                if exc.errno not in _NO_LINKS:
                    raise
                self.replace(previous, self.read(path))
                return
            try:
                self._rename(spare, previous)
            except FileNotFoundError:
                continue  # a sweep found its lock free: it is a second name of a file that nobody locks
            finally:
                # rename(2) does nothing if both are names of one file already, as after a kill between here and there.
                with suppress(OSError):
                    self._unlink(spare)
            return
        raise error(errno.EAGAIN)

    def _move(self, source: Path, target: Path) -> None:
        try:
            self._rename_new(source, target)
        except OSError as exc:
            if exc.errno not in _NO_RENAME_NEW:
                raise
            if stat.S_ISDIR(os.lstat(source).st_mode):
                # Making the folder claims the name; rename(2) then takes the place of that one only if it is empty.
                self._mkdir(target, 0o700)
                try:
                    self._rename(source, target)
                except BaseException:
                    with suppress(OSError):
                        self._rmdir(target)
                    raise
            else:
                try:
                    self._link(source, target)
                except OSError as exc:
                    if exc.errno in _NO_LINKS:
                        raise error(errno.ENOTSUP) from exc
                    raise
                self._unlink(source)

    def _sweep_one(self, path: Path) -> bool:
        if sys.platform == "win32":
            return False  # what is open there cannot be removed, and what is closed cannot be locked
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                fd = self._open_held(path, FOLDER)
            elif stat.S_ISREG(mode):
                # NFS locks exclusively only what is open for writing.
                fd = self._open_held(path, (os.O_RDWR if mode & stat.S_IWUSR else os.O_RDONLY) | PLAIN)
            else:
                return False
            try:
                # Unlinked under the lock: an owner that comes just now finds it locked, or finds it gone.
                if not self._try_lock(fd, shared=False) or not is_at(fd, path):
                    return False
                if stat.S_ISDIR(mode):
                    self._remove_tree(path)
                else:
                    self._unlink(path)
                return not os.path.lexists(path)
            finally:
                drop(fd)
        except OSError:
            return False  # somebody else was faster, or it cannot be shown to be dead, or this user may not


def _temporary_name(folder: Path) -> Path:
    return folder / f".tmp-{os.urandom(8).hex()}"


def _find(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _set_permissions(fd: int, mode: int | None, like: os.stat_result | None) -> None:
    if sys.platform == "win32":
        return
    now = os.fstat(fd)
    if mode is None:
        mode = 0o600 if like is None else like.st_mode & 0o777
        if like is not None and (now.st_uid, now.st_gid) != (like.st_uid, like.st_gid):
            try:
                os.fchown(fd, like.st_uid, like.st_gid)
            except OSError:
                mode &= 0o700  # the old permissions were given to another group; they are not this one's
    if stat.S_IMODE(now.st_mode) != mode:
        os.fchmod(fd, mode)
