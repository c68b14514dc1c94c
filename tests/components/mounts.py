"""Small file systems of their own: in memory, of any size, read-only or bound elsewhere. Only root may make them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.components import require


@contextmanager
def tmpfs(folder: Path, *, size_bytes: int) -> Iterator[Path]:
    """Yield ``folder``, made if it is not there, as an empty file system of ``size_bytes`` (whole pages) in memory."""
    folder.mkdir(exist_ok=True)
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(folder)):
        yield folder


@contextmanager
def bound(place: Path, source: Path) -> Iterator[Path]:
    """Yield ``place``, made if it is not there, as another place of the file or folder ``source``."""
    if source.is_dir():
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    with _mounted(place, "--bind", str(source), str(place)):
        yield place


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Let nothing be written to the file system mounted at ``folder``, until the end of the block."""
    _mount("-o", "remount,ro", str(folder))
    try:
        yield folder
    finally:
        _mount("-o", "remount,rw", str(folder))


@contextmanager
def _mounted(folder: Path, *arguments: str) -> Iterator[None]:
    require("mounting file systems", os.geteuid() == 0, "only root may mount; run the tests in a container as root")
    _mount(*arguments)
    try:
        yield
    finally:
        # Lazily: a file that a failed test left open would keep it mounted for good.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    require("mounting file systems", done.returncode == 0, f"mount {' '.join(arguments)}: {done.stderr.strip()}")
