"""The log of one run: a file with what was logged in its attempts, tracebacks included.

Standard logging, so that a plugin logs as it does anywhere. What goes wrong with the file, or with what
is to be logged, never reaches the plugin.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from holdfast.disk import Disk
from holdfast.values import shown

_MAX_BYTES: Final = 64 * 2**20
"""Of one file. One that is full gets ``.1`` behind its name, in the place of the one that had it."""

_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class FactsFormatter(logging.Formatter):
    """Writes what a record's ``extra`` holds behind its message, as in ``run.ended run='r1' status='done'``.

    What cannot be shown, because its own code raises or its arguments do not fit the message, is named instead.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one record with its traceback; never raises an Exception."""
        try:
            return super().format(record)
        except Exception as exc:  # noqa: BLE001 -- arguments and exceptions are anybody's code
            message = f"{shown(record.msg)} with {shown(record.args)} cannot be formatted: {type(exc).__name__}"
            plain = {"msg": message, "args": None, "exc_info": None, "exc_text": None, "stack_info": None}
            return super().format(logging.makeLogRecord({**vars(record), **plain}))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- the name in logging
        """Return one record, without its traceback."""
        facts = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return " ".join([super().formatMessage(record), *(f"{name}={_said(value)}" for name, value in facts.items())])


def _said(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 -- as above
        return shown(value)


class _RunLog(RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        # No link is followed: a plugin could have put one here.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return open(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8", errors="replace")  # noqa: PTH123

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- as above
        """Do nothing: a full disk is the run's trouble where it saves, not where it logs."""


def _handler(path: Path | None) -> logging.Handler:
    if path is None:
        return logging.StreamHandler()
    if not path.parent.is_dir():
        Disk().put_folder(path.parent)
    return _RunLog(path, maxBytes=_MAX_BYTES, backupCount=1, delay=True)


def _names(record: logging.LogRecord, run: str) -> bool:
    fact = getattr(record, "run", None)
    return isinstance(fact, str) and fact == run  # anything else may raise when it is compared


@contextmanager
def logging_to(path: Path | None, run: str, *, owns_process: bool) -> Generator[None]:
    """Append what is logged in the block to the file at ``path``, which only its owner can read.

    None: write it to standard error, for whoever has launched this process keeps that.

    In a process that is there for the run alone, all of it from INFO up; else what the block's own thread logs and
    what names the run, as far as the application's levels let it through.
    """
    root, thread = logging.getLogger(), threading.get_ident()
    handler, level = _handler(path), root.level
    handler.setFormatter(FactsFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(lambda each: owns_process or each.thread == thread or _names(each, run))
    root.addHandler(handler)
    if owns_process:
        root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
