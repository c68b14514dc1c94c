"""What a run has logged, line by line, as it comes: the files of this home, then what its launches wrote in the Pod."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self

from holdfast.store import Store

_BLOCK: Final = 2**20
LOOK_S: Final = 0.5
"""How often there is a look at what goes on elsewhere."""
_QUIET: Final = 6
"""So many looks in a row nothing comes of a run that has ended, until it counts as all: what a launch wrote last is
brought to the Pod when that is cleaned up."""


class RunLog:
    """The log of one run; `look` reads on from where the one before came to. A context manager.

    Args:
        store: The Pod.
        run: The id of the run.
        path: The file of its attempts in this home, beside which an older one may lie; None: none is read.
    """

    def __init__(self, store: Store, run: str, path: Path | None) -> None:
        self._store, self._run = store, run
        self._files = [] if path is None else [_File(path.with_name(f"{path.name}.1")), _File(path)]
        self._lines = _Lines()
        self._source, self._after = "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._files:
            file.close()

    def look(self) -> Iterator[str]:
        """Yield the lines that are whole now; closed before its end, those that it did not yield are lost."""
        for file in self._files:
            yield from file.look()
        for file in self._files[:-1]:  # what is set aside from now on was read before
            yield from file.end()
            file.close()
        self._files = self._files[-1:]
        while parts := self._store.list_log(self._run, self._after):
            for part in parts:
                if part.source != self._source:  # another launch does not go on where one broke off
                    yield from self._lines.end()
                self._source, self._after = part.source, part.number
                yield from self._lines.add(part.text)

    def end(self) -> Iterator[str]:
        """Yield the last lines, which nobody has ended."""
        for file in self._files:
            yield from file.end()
        yield from self._lines.end()

    def follow(self, has_ended: Callable[[], bool], *, wait: Callable[[float], object] = time.sleep) -> Iterator[str]:
        """Yield what comes, until the run has ended and no more has come for a moment.

        Args:
            has_ended: Says whether the run has; asked before each look.
            wait: How to pause, in seconds.
        """
        quiet = 0
        while quiet < _QUIET:
            wait(LOOK_S)
            quiet = quiet + 1 if has_ended() else 0
            for line in self.look():
                quiet = 0
                yield line
        yield from self.end()


class _Lines:
    """Makes lines of text that comes in parts."""

    def __init__(self) -> None:
        self._rest = ""

    def add(self, text: str) -> Iterator[str]:
        *lines, self._rest = (self._rest + text).split("\n")
        return (line.removesuffix("\r") for line in lines)

    def end(self) -> Iterator[str]:
        rest, self._rest = self._rest, ""
        return iter([rest] if rest else [])


class _File:
    """A file that grows, and is set aside for a new one when it is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._lines = _Lines()

    def look(self) -> Generator[str]:
        is_last = False
        while not is_last:
            try:
                if self._stream is None:
                    self._stream = self._path.open("rb")
                there = self._path.stat()
            except FileNotFoundError:
                return
            # Asked before it is read: whoever sets a file aside writes no more to it.
            is_last = os.path.samestat(there, os.fstat(self._stream.fileno()))
            while data := self._stream.read(_BLOCK):
                yield from self._lines.add(self._decode(data))
            if not is_last:
                self.close()

    def end(self) -> Iterator[str]:
        return self._lines.end()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
