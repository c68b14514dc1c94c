"""Files of a Pod: a File item describes each, and its bytes are kept apart, under their SHA-256.

What must be offered to keep the bytes is `Files`: on the disk of this machine, or in a Pod far away. What is promised
to whoever uploads and reads is said at `holdfast.pod.Pod`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, cast

from holdfast.errors import ConflictError, InvalidError, NotFoundError
from holdfast.items import File, Item
from holdfast.values import shown

_PART_BYTES: Final = 2**20


class Files(Protocol):
    """What keeps the bytes of files, each under the SHA-256 of all of them, 64 hexadecimal digits in lower case."""

    def put(self, sha256: str, chunks: Iterator[bytes]) -> int:
        """Keep a file, and return its size in bytes; when this returns it is durable, and until then it is absent.

        Raises:
            ConflictError: It is there already.
            InvalidError: ``sha256`` is no such hash, or not that of the bytes.
            NotFoundError: No File item has this hash, where this is looked at.
        """
        ...

    def open(self, sha256: str) -> tuple[int, Iterator[bytes]]:
        """Return the size of a file in bytes, and a generator of its bytes.

        Raises:
            NotFoundError: They are not there.
            DamagedError: They are not what was kept; maybe only raised by the generator.
        """
        ...

    def exists(self, sha256: str) -> bool:
        """Say whether the bytes of a file are there."""
        ...

    def delete(self, sha256: str, *, is_needed: Callable[[], bool]) -> None:
        """Let the bytes of a file be gone, unless ``is_needed`` says otherwise; nothing happens if they are.

        It is asked at a moment at which nobody is told by `exists` that they are there.
        """
        ...


class _Items(Protocol):
    """What is needed of a Pod."""

    def create(self, item: File, /) -> File: ...
    def get(self, id: str, *, expanded: bool = True) -> Item: ...  # noqa: A002 -- as `Pod.get`
    def search(self, fields: Mapping[str, Any], /) -> list[Item]: ...
    def delete_items(self, items: Iterable[Item | str], /) -> None: ...


def upload(pod: _Items, files: Files, source: bytes | str | os.PathLike[str], filename: str | None) -> File:
    """Keep bytes, as `Pod.upload_file` says."""
    if isinstance(source, bytes):
        parts = partial(_in_parts, source)
    else:
        parts = partial(_read_in_parts, Path(source))
        filename = Path(source).name if filename is None else filename
    hashing, size = hashlib.sha256(), 0
    for part in parts():
        hashing.update(part)
        size += len(part)
    sha256 = hashing.hexdigest()
    # The item first: bytes without an item could be found by nobody, and would stay for ever.
    item = _find(pod, sha256) or pod.create(File(sha256=sha256, filename=filename, size=size))
    if not files.exists(sha256):
        with suppress(ConflictError):  # somebody else has brought them meanwhile
            files.put(sha256, parts())
    return item


def iterate(files: Files, file: File | str) -> Generator[bytes]:
    """Yield bytes, as `Pod.iter_file` says."""
    sha256 = file if isinstance(file, str) else file.sha256
    if sha256 is None:
        raise InvalidError(f"{shown(file)} has no sha256, so nobody knows its bytes")
    parts = files.open(sha256)[1]
    with closing(cast("Generator[bytes]", parts)):
        yield from parts


def delete(pod: _Items, files: Files, file: File | str) -> None:
    """Delete an item and its bytes, as `Pod.delete_file` says."""
    id_ = file if isinstance(file, str) else file.id
    if id_ is None:
        raise InvalidError(f"{shown(file)} cannot be deleted: it has no id, for it was never created")
    item = pod.get(id_, expanded=False)
    if not isinstance(item, File):
        raise InvalidError(f"item {id_!r} is no File: delete it with delete_items", id=id_)
    pod.delete_items([item])
    if (sha256 := item.sha256) is not None:
        files.delete(sha256, is_needed=lambda: _find(pod, sha256) is not None)


def _find(pod: _Items, sha256: str) -> File | None:
    found = pod.search({"type": "File", "sha256": sha256, "_limit": 1})
    return cast("File", found[0]) if found else None


def _in_parts(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    return (bytes(view[at : at + _PART_BYTES]) for at in range(0, len(view), _PART_BYTES))


def _read_in_parts(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as opened:
            while part := opened.read(_PART_BYTES):
                yield part
    except FileNotFoundError as exc:
        raise NotFoundError(f"there is no file {str(path)!r}", path=str(path)) from exc
    except OSError as exc:
        raise InvalidError(f"file {str(path)!r} cannot be read: {exc.strerror}", path=str(path)) from exc
