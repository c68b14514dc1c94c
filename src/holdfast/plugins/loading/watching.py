"""Who is being set up for the first time now: told by the log if it takes too long, and by a file if it kills us.

The file has one line for each plugin that was being set up when its process died. The last line is that of whoever is
set up now: each overwrites the one before, without a flush, as it must outlive the process and no more; when all are
done it is cut off. A process holds a lock on the file meanwhile. One that finds it taken goes without: if several die
of one plugin together, that is one death, and whoever is started next finds the lock free.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

from holdfast.disk import BusyError, Disk, Lock
from holdfast.errors import HoldfastError, PluginError, UnavailableError

_log: Final = logging.getLogger(__name__)

MAX_DEATHS: Final = 2
"""How often a process may die while a plugin is being set up, before that plugin is started no more."""

_NOW, _DIED = b">", b"x"
"""How a line begins: the plugin is being set up by whoever holds the lock, or was when its process died."""


class Watch:
    """Watches the first set-ups of one loader, one at a time.

    Args:
        path: The file. Where it cannot be written, the log says so once, and nobody becomes a suspect.
        late_after_s: After how many seconds a set-up is late.
        disk: Where the file lies.

    Attributes:
        late: The plugin that is late now, if one is.
    """

    def __init__(self, path: Path, late_after_s: float, disk: Disk) -> None:
        self._path, self._late_after_s, self._disk = path, late_after_s, disk
        self.late: str | None = None
        self._now: tuple[str, float] | None = None
        self._lock: Lock | None = None
        self._file: FileIO | None = None
        self._lines: list[bytes] = []
        self._was_warned = False

    @property
    def is_busy(self) -> bool:
        """Whether somebody is being set up now."""
        return self._now is not None

    def start_over(self) -> None:
        """Forget what the process does that this one was forked from."""
        self._close()
        self._now = self.late = None

    @contextmanager
    def watching(self) -> Generator[None]:
        """Watch what begins in the block, and know who has died before."""
        done, thread = threading.Event(), threading.get_ident()
        watchdog = threading.Thread(target=self._watch, args=(done, thread), name="holdfast: set-ups", daemon=True)
        self._open()
        try:
            watchdog.start()
            yield
        finally:
            done.set()
            if watchdog.is_alive():
                watchdog.join()
            self._close()

    def deaths(self) -> Counter[str]:
        """Return how many processes died while each plugin was being set up, since that last went well.

        For whoever sets nothing up: where no file is, none is made.
        """
        with self._reading():
            return Counter(line[1:-1].decode(errors="replace") for line in self._lines)

    def forgive(self, plugin: str) -> None:
        """Forget, outside of any set-up, that processes died of a plugin; nothing happens if none did.

        Raises:
            UnavailableError: Another process sets plugins up now, and the file is its own.
        """
        with self._reading():
            if self._lock is None and _died(plugin) in self._lines:
                message = (
                    f"plugin {plugin!r} cannot be forgiven while an application loads its plugins: try again later"
                )
                raise UnavailableError(message, plugin=plugin)
            self._forget(plugin)

    def check(self, plugin: str) -> None:
        """Refuse a suspect.

        Raises:
            PluginError: As many processes as `MAX_DEATHS` died while it was being set up, since that last went well.
        """
        deaths = self._lines.count(_died(plugin))
        if deaths >= MAX_DEATHS:
            raise PluginError(f"it was being set up when the process died, {deaths} times", plugin=plugin)

    @contextmanager
    def during(self, plugin: str) -> Generator[None]:
        """Say who it is until the block ends, however it ends; if that is well, forget that it has died before."""
        self._write([_NOW + plugin.encode() + b"\n"])
        self._now = (plugin, time.monotonic())
        try:
            yield
            self._forget(plugin)
        finally:
            self._now = self.late = None

    def _watch(self, done: threading.Event, thread: int) -> None:
        """Tell once of each plugin that is late, and where it is."""
        told, wait_s = None, self._late_after_s
        while not done.wait(wait_s):
            now, wait_s = self._now, self._late_after_s
            if now is None or now is told:
                continue
            plugin, since = now
            left_s = since + self._late_after_s - time.monotonic()
            if left_s > 0:
                wait_s = left_s
                continue
            told, self.late = now, plugin
            frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage] -- its documented name
            stack = "".join(traceback.format_stack(frame))
            extra = {"plugin": plugin, "seconds": self._late_after_s}
            _log.error("plugin.late: %r is still being set up:\n%s", plugin, stack, extra=extra)

    # -- the file -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Generator[None]:
        if self._path.exists():
            self._open()
        try:
            yield
        finally:
            self._close()
            self._lines = []

    def _forget(self, plugin: str) -> None:
        if (died := _died(plugin)) in self._lines:
            self._rewrite([line for line in self._lines if line != died])

    def _open(self) -> None:
        self._lines = []
        try:
            with suppress(BusyError):
                self._lock = self._disk.lock(self._path)
            self._file = FileIO(self._path, "rb" if self._lock is None else "r+b")
            for line in self._file.read().split(b"\n")[:-1]:  # whole ones
                self._lines.append(_DIED + line[1:] + b"\n")
                if line.startswith(_NOW):  # what is behind it, longer names have left
                    if self._lock is None:
                        self._lines.pop()
                    break
        except (HoldfastError, OSError) as exc:
            if not self._was_warned:
                _log.warning("suspects.unknown: %s", exc, extra={"path": str(self._path)})
            self._was_warned = True
        if self._lines:
            self._rewrite(self._lines)

    def _rewrite(self, lines: list[bytes]) -> None:
        """Let the file hold these deaths and nothing else; a kill in here may lose the last of them."""
        self._lines = []
        self._write(lines)
        self._lines = lines
        self._cut()

    def _write(self, lines: list[bytes]) -> None:
        if self._file is not None and self._lock is not None and self._lock.is_held:  # a forked child has lost it
            with suppress(OSError):  # a full disk: one death may go unnoticed
                os.pwrite(self._file.fileno(), b"".join(lines), sum(map(len, self._lines)))

    def _cut(self) -> None:
        if self._file is not None and self._lock is not None and self._lock.is_held:
            with suppress(OSError):
                self._file.truncate(sum(map(len, self._lines)))

    def _close(self) -> None:
        self._cut()
        if self._file is not None:
            with suppress(OSError):  # a plugin may have closed all there is
                self._file.close()
        if self._lock is not None:
            self._lock.release()
        self._file = self._lock = None


def _died(plugin: str) -> bytes:
    return _DIED + plugin.encode() + b"\n"
