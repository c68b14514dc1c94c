"""What errors of the system are to a caller of Holdfast."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

from holdfast.disk.mounts import free_bytes
from holdfast.errors import ConflictError, DeniedError, HoldfastError, InvalidError, NotFoundError, UnavailableError

StrPath = str | os.PathLike[str]


class ExistsError(ConflictError, FileExistsError):
    """The name is taken; what has it was not touched."""


class MissingError(NotFoundError, FileNotFoundError):
    """No file or folder has this name."""


class BusyError(UnavailableError):
    """Somebody else held the lock for as long as was waited."""


_REASONS: Final[dict[str, tuple[type[HoldfastError], str]]] = {
    "EACCES": (DeniedError, "this user may not; give it the right, or use another"),
    "EBUSY": (UnavailableError, "it is in use, or something is mounted on it"),
    "EDQUOT": (UnavailableError, "the user's share of the disk is used up; make room and try again"),
    "EEXIST": (ExistsError, "the name is taken; use another, or delete what has it"),
    "EINVAL": (InvalidError, "the system refuses the name, or the place is inside what is to go there"),
    "EIO": (UnavailableError, "the disk failed; look at it before trying again"),
    "EISDIR": (InvalidError, "it is a folder; a plain file is expected"),
    "ELOOP": (InvalidError, "it is a symbolic link; a plain file or folder is expected"),
    "EMLINK": (InvalidError, "the file has as many names as the file system allows"),
    "ENAMETOOLONG": (InvalidError, "the name is too long; most file systems allow 255 bytes"),
    "ENOENT": (MissingError, "there is no such file or folder"),
    "ENOSPC": (UnavailableError, "the disk is full; make room and try again"),
    "ENOTDIR": (InvalidError, "a part of the path is no folder"),
    "ENOTEMPTY": (ExistsError, "the name is taken by a folder that is not empty"),
    "ENOTSUP": (UnavailableError, "this file system cannot do that; choose a folder on another"),
    "EOPNOTSUPP": (UnavailableError, "this file system cannot do that; choose a folder on another"),
    "ENXIO": (InvalidError, "it is a pipe, a socket or a device; a plain file is expected"),
    "EPERM": (DeniedError, "the system forbids it to this user, or to everybody"),
    "EROFS": (UnavailableError, "the file system is read-only; mount it for writing, or choose a folder on another"),
    "EXDEV": (InvalidError, "both places must be on one file system"),
}
"""What an error of the system means to the caller. EROFS is no question of rights: no other user could write either."""


def translate(exc: OSError | ValueError, path: StrPath, doing: str) -> HoldfastError:
    """Return what ``exc``, raised by the system while ``doing`` something to ``path``, is to a caller of Holdfast.

    ``doing`` is a bare verb (``"read"``). The facts are ``path``, ``errno`` (its name, ``"ENOSPC"``; absent for a
    ValueError, which Python raises for a path that no system can have) and, for a full disk, ``free_bytes`` if it can
    be told. An errno that is not in the table is an UnavailableError with the system's own words. Raise it
    ``from exc``.

    >>> translate(OSError(errno.EXDEV, "…"), "/a/b", "rename")
    InvalidError("could not rename '/a/b': both places must be on one file system")
    """
    shown = os.fspath(path)
    if isinstance(exc, HoldfastError):
        return exc
    if isinstance(exc, ValueError):
        return InvalidError(f"could not {doing} {shown!r}: {exc}; a path holds text without NUL", path=shown)
    name = errno.errorcode.get(exc.errno or 0, "unknown")
    kind, why = _REASONS.get(name, (UnavailableError, f"{exc.strerror or exc} ({name})"))
    facts: dict[str, object] = {"path": shown, "errno": name}
    if name in {"ENOSPC", "EDQUOT"}:
        with suppress(OSError, ValueError):
            facts["free_bytes"] = free_bytes(path)
            why = f"{why} ({facts['free_bytes']} bytes are free)"
    return kind(f"could not {doing} {shown!r}: {why}", **facts)


@contextmanager
def translated(path: StrPath, doing: str) -> Generator[None]:
    """In the block raise what `translate` returns."""
    try:
        yield
    except HoldfastError:  # some of ours are an OSError or a ValueError as well
        raise
    except (OSError, ValueError) as exc:
        raise translate(exc, path, doing) from exc


def error(code: int) -> OSError:
    """Return the error of the system that has a number."""
    return OSError(code, os.strerror(code))


def check_plain(found: os.stat_result, *, or_folder: bool = False) -> os.stat_result:
    """Return what was found if that is a plain file."""
    if stat.S_ISLNK(found.st_mode):
        raise error(errno.ELOOP)
    if stat.S_ISDIR(found.st_mode) and not or_folder:
        raise error(errno.EISDIR)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise error(errno.ENXIO)
    return found
