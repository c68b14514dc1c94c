"""The log of one run: a file with what was logged in its attempts, tracebacks included.

Standard logging, so that a plugin logs as it does anywhere. What goes wrong with the file never reaches the plugin.
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

_MAX_BYTES: Final = 64 * 2**20
"""Of one file; there are two of them at most."""

_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class FactsFormatter(logging.Formatter):
    """Writes what a record's ``extra`` holds behind its message, as in ``run.ended run='r1' status='done'``."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- the name in logging
        """Return one record, without its traceback."""
        facts = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return " ".join([super().formatMessage(record), *(f"{name}={value!r}" for name, value in facts.items())])


class _RunLog(RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        # No link is followed: a plugin could have put one here.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return open(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8", errors="replace")  # noqa: PTH123

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- as above
        """Do nothing: a full disk is the run's trouble where it saves, not where it logs."""


@contextmanager
def logging_to(path: Path, run: str, *, owns_process: bool) -> Generator[None]:
    """Append what is logged in the block to the file at ``path``, which only its owner can read.

    In a process that is there for the run alone, all of it from INFO up; else what the block's own thread logs and
    what names the run, as far as the application's levels let it through.
    """
    disk = Disk()
    if not path.parent.is_dir():
        disk.put_folder(path.parent)
    root, thread = logging.getLogger(), threading.get_ident()
    handler, level = _RunLog(path, maxBytes=_MAX_BYTES, backupCount=1, delay=True), root.level
    handler.setFormatter(FactsFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(lambda each: owns_process or each.thread == thread or getattr(each, "run", None) == run)
    root.addHandler(handler)
    if owns_process:
        root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
