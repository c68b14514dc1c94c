"""What SQLite's errors mean to a caller; translated once, here."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw
from pydantic_core import PydanticSerializationError

from holdfast.disk import translate as translate_os_error
from holdfast.errors import ConflictError, DamagedError, DeniedError, HoldfastError, InvalidError, UnavailableError

_Kind = type[HoldfastError]

MEANING: Final[Mapping[type[apsw.Error], tuple[_Kind, str]]] = {
    apsw.BusyError: (UnavailableError, "is busy: another process has been writing to it for too long; try again"),
    apsw.LockedError: (UnavailableError, "is locked by this process itself; try again"),
    apsw.FullError: (UnavailableError, "cannot grow: the disk is full; make room and try again"),
    apsw.IOError: (UnavailableError, "cannot be read or written: the disk reports an error"),
    apsw.NoMemError: (UnavailableError, "needs more memory than there is"),
    apsw.InterruptError: (UnavailableError, "was interrupted"),
    apsw.AbortError: (UnavailableError, "was interrupted"),
    apsw.CantOpenError: (UnavailableError, "cannot be opened; see that its folder exists and can be written to"),
    apsw.ProtocolError: (UnavailableError, "cannot be locked; see that its file system is a local one"),
    apsw.NoLFSError: (UnavailableError, "is larger than this machine's files can be"),
    apsw.ReadOnlyError: (DeniedError, "cannot be written to: the file, its folder or its file system is read-only"),
    apsw.PermissionsError: (DeniedError, "cannot be accessed with the rights of this process"),
    apsw.AuthError: (DeniedError, "refuses that"),
    apsw.CorruptError: (DamagedError, "is damaged; restore a backup (holdfast pod restore)"),
    apsw.NotADBError: (DamagedError, "is damaged; restore a backup (holdfast pod restore)"),
    apsw.FormatError: (DamagedError, "is damaged; restore a backup (holdfast pod restore)"),
    apsw.SchemaChangeError: (UnavailableError, "was changed in the middle of a read; try again"),
    apsw.ConstraintError: (ConflictError, "holds something that contradicts this write"),
    apsw.TooBigError: (InvalidError, "cannot hold a value that large"),
    apsw.RangeError: (InvalidError, "cannot answer that: too many values in one request"),
}
"""Every error of SQLite that a caller can meet and what it is to them; `DEFECTS` are the rest."""

DEFECTS: Final[frozenset[type[apsw.Error]]] = frozenset(
    {
        apsw.BindingsError,
        apsw.ConnectionClosedError,
        apsw.ConnectionNotClosedError,
        apsw.CursorClosedError,
        apsw.EmptyError,
        apsw.ExecTraceAbort,
        apsw.ExecutionCompleteError,
        apsw.ExtensionLoadingError,
        apsw.ForkingViolationError,
        apsw.IncompleteExecutionError,
        apsw.InternalError,
        apsw.InvalidContextError,
        apsw.MismatchError,
        apsw.MisuseError,
        apsw.NotFoundError,
        apsw.NoFTS5Error,
        apsw.SQLError,
        apsw.ThreadingViolationError,
        apsw.VFSFileClosedError,
        apsw.VFSNotImplementedError,
    }
)
"""Errors that no data and no disk can cause: they are raised as they are."""


def translate(exc: apsw.Error, path: Path) -> HoldfastError | None:
    """Return what ``exc`` means for the Pod in ``path``; None if it is a defect of ours."""
    meaning = next((found for kind, found in MEANING.items() if isinstance(exc, kind)), None)
    if meaning is None:
        return None
    kind, text = meaning
    code: object = apsw.mapping_extended_result_codes.get(getattr(exc, "extendedresult", 0), type(exc).__name__)
    return kind(f"the Pod {str(path)!r} {text} ({code})", path=str(path), code=str(code))


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Raise errors of SQLite, and of the system, inside the block as errors of Holdfast."""
    try:
        yield
    except HoldfastError:  # some of ours are an OSError as well
        raise
    except (UnicodeEncodeError, PydanticSerializationError, OverflowError) as exc:
        # Names and numbers in a question are bound as they come: what no Pod can hold, no Pod can be asked about.
        raise InvalidError(f"the Pod {str(path)!r} cannot be asked about that: {exc}", path=str(path)) from exc
    except OSError as exc:
        raise translate_os_error(exc, path, "use") from exc
    except apsw.Error as exc:
        found = translate(exc, path)
        if found is None:
            raise
        raise found from exc
