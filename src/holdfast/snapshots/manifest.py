"""What a snapshot directory says of itself: its manifest, and the bounds that a hostile one is held to.

A manifest is JSON. Its first member is the BLAKE3 of all bytes after that line, so no bit of it changes unnoticed,
whatever the format of the rest::

    {"blake3": "<64 digits>",
    "format": 1, "id": "<32 digits>", "created_at_ns": 1767225600000000000,
    "objects": {"model": {"version": 1, "entries": ["model"], "chunks": [[0, 0, 16384]]}, "old": …},
    "files": [["model", 512, "<64 digits>"]], "folders": [], "packs": [["<32 digits>", 16384, "<64 digits>"]],
    "metrics": {"loss": 0.5}, "attached": {}}

Values and pure functions, but for `read_manifest`. A hash proves that bytes are what their writer meant, not that the
writer meant well: every path, count and size is checked here, before anybody uses it. What is to be written goes
through the same checks, so nothing is saved that could not be loaded.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from blake3 import blake3

from holdfast.disk import Disk, StrPath, translate
from holdfast.errors import DamagedError, InvalidError, UnavailableError
from holdfast.values import shown

FORMAT: Final = 1
"""The format that this release writes; it reads all up to it."""

CHUNK_BYTES: Final = 65536
"""The unit in which state is compared, hashed and shared between snapshots."""

DIGEST_BYTES: Final = 32
"""Of a BLAKE3."""

OURS: Final = ".snap"
"""The folder of a snapshot that holds what is not an object's."""

MANIFEST: Final = f"{OURS}/manifest.json"
PACKS: Final = f"{OURS}/packs"

MAX_MANIFEST_BYTES: Final = 32 * 2**20
MAX_SLOTS: Final = 2**24
"""How many chunks a pack may have: 1 TiB."""

_HEAD: Final = re.compile(rb'\{"blake3": "([0-9a-f]{64})",\n')
_HEX: Final = re.compile(r"[0-9a-f]+")
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_BLOCK_BYTES: Final = 4096
_MAX_SIZE: Final = 2**63 - 1
_MAX_TIME_NS: Final = 7_258_118_400 * 10**9
"""The year 2200. What is saved after a snapshot is later than it, and has to have a time as well."""
_MAX_FOLDERS: Final = 100
_MAX_DEPTH: Final = 200


class File(NamedTuple):
    """A file of a snapshot: where it is in there, and what it holds."""

    path: str
    size: int
    digest: str


class Pack(NamedTuple):
    """A file of chunks, shared between snapshots: its slots, then the BLAKE3 of each, then zeros to whole blocks.

    ``digest`` is the BLAKE3 of the digests.
    """

    name: str
    slots: int
    digest: str

    @property
    def path(self) -> str:
        """Where it is in a snapshot."""
        return f"{PACKS}/{self.name}"

    @property
    def digests_at(self) -> int:
        """Where the slots end."""
        return self.slots * CHUNK_BYTES

    @property
    def size(self) -> int:
        """How long the file is, in bytes: whole blocks of a disk."""
        return self.digests_at + -(-self.slots * DIGEST_BYTES // _BLOCK_BYTES) * _BLOCK_BYTES


class Run(NamedTuple):
    """Chunks of an object that follow each other in a pack, the ``pack``-th of the manifest."""

    pack: int
    slot: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One object of a snapshot.

    Attributes:
        version: The object's ``state_version``; None: it wrote its own files.
        entries: What it has in the snapshot's folder; for a tree the one file with its skeleton.
        chunks: Where its leaves are, in the order of its chunks.
    """

    version: int | None = None
    entries: tuple[str, ...] = ()
    chunks: tuple[Run, ...] = ()

    @property
    def is_tree(self) -> bool:
        """Whether Holdfast wrote it, from what ``get_state`` returned."""
        return self.version is not None

    @property
    def chunk_count(self) -> int:
        """How many chunks its leaves take."""
        return sum(run.length for run in self.chunks)


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a snapshot holds. Two saves are never the same ``id``.

    Attributes:
        created_at_ns: Nanoseconds since 1970 (UTC), when its state was captured; the folder's mtime is the same.
        metrics: Finite numbers that the application gave, by name.
        attached: JSON that the application gave, by name.
        folders: Every folder that an object wrote, those above before those in them.
    """

    id: str
    created_at_ns: int
    objects: Mapping[str, Stored] = field(default_factory=_nothing)
    files: tuple[File, ...] = ()
    folders: tuple[str, ...] = ()
    packs: tuple[Pack, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=_nothing)
    attached: Mapping[str, Any] = field(default_factory=_nothing)

    @property
    def size_bytes(self) -> int:
        """How much was saved: what a snapshot would take that shares nothing with others, without the manifest."""
        chunks = sum(stored.chunk_count for stored in self.objects.values())
        return sum(file.size for file in self.files) + chunks * CHUNK_BYTES

    def to_bytes(self) -> bytes:
        """Return the content of its file.

        Raises:
            InvalidError: ``attached`` is no JSON, or deeper than 200 levels, a metric no finite number, all of it more
                than 32 MiB; or whatever else no reader would accept.
        """
        document = {
            "format": FORMAT,
            "id": self.id,
            "created_at_ns": self.created_at_ns,
            "objects": {
                name: {"version": stored.version, "entries": stored.entries, "chunks": stored.chunks}
                for name, stored in self.objects.items()
            },
            "files": self.files,
            "folders": self.folders,
            "packs": self.packs,
            "metrics": dict(self.metrics),
            "attached": dict(self.attached),
        }
        try:
            rest = json.dumps(document, allow_nan=False)[1:].encode()
            data = f'{{"blake3": "{blake3(rest).hexdigest()}",\n'.encode() + rest
            if len(data) <= MAX_MANIFEST_BYTES:
                _check_readable(self, data)
        except (TypeError, ValueError, RecursionError) as exc:
            expected = "finite numbers by name, and JSON by name, are expected"
            raise InvalidError(f"this cannot be stored with a snapshot: {exc}; {expected}") from exc
        if len(data) > MAX_MANIFEST_BYTES:
            raise InvalidError(
                f"a manifest of {len(data)} bytes is too large: attach less to the snapshot, or save fewer files; at "
                f"most {MAX_MANIFEST_BYTES} bytes are allowed"
            )
        return data


def read_manifest(path: StrPath, *, disk: Disk | None = None) -> Manifest:
    """Return the manifest of the snapshot at ``path``; nothing else of it is looked at.

    Raises:
        NotFoundError: There is none, or no such folder (FileNotFoundError as well).
        DamagedError: It is not what was written, or lies about what can be; or a link, a folder or a pipe has its name.
        InvalidError: A newer release wrote it; or ``path`` is no folder.
        RecursionError: It was called so deep that Python has no room left to parse it.
    """
    place, disk = Path(path) / MANIFEST, disk or Disk()
    try:
        above = place.parent.lstat()
        found = place.lstat() if stat.S_ISDIR(above.st_mode) else above
    except (OSError, ValueError) as exc:
        raise translate(exc, place, "read") from exc
    if not stat.S_ISREG(found.st_mode) or found is above:
        raise _damaged(place, "it is no plain file in a folder of the snapshot")
    if found.st_size > MAX_MANIFEST_BYTES:
        raise _damaged(place, f"it has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        data = disk.read(place)
    except UnavailableError as exc:
        if exc.facts.get("errno") != "EIO":
            raise
        raise _damaged(place, "the disk failed to read it") from exc
    try:
        return _parse(data)
    except RecursionError as exc:
        if depth_of(data) <= _MAX_DEPTH:  # so it is as deep as they are: too deep is who called this
            raise
        raise _damaged(place, "it is too deep") from exc
    except (ValueError, KeyError) as exc:
        if isinstance(exc, InvalidError):
            raise InvalidError(f"the snapshot {str(path)!r} cannot be read: {exc}", path=str(path)) from exc
        raise _damaged(place, str(exc)) from exc


def is_snapshot(path: StrPath) -> bool:
    """Say whether the folder has a manifest, whole or not."""
    return os.path.lexists(Path(path) / MANIFEST)


def check_entry(name: object) -> str:
    """Return the name if it is one of a plain entry of a folder.

    Raises:
        ValueError: It could lead elsewhere, or no file system has such names.
    """
    if type(name) is not str or not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"{shown(name)} is not the name of an entry")
    os.fsencode(name)  # its UnicodeEncodeError is a ValueError
    return name


def depth_of(data: bytes) -> int:
    """Return how many levels of lists and objects JSON has, valid or not; without recursion."""
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKETS)
    return max(accumulate(1 if each in b"[{" else -1 for each in brackets), default=0)


def parse_json(data: bytes) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: It is none; it has a name twice in one object, of which two readers might take two values; or NaN.
        RecursionError: It is too deep, or who called this.
    """
    return json.loads(data, object_pairs_hook=unique, parse_constant=_refuse)


def _damaged(place: Path, reason: str) -> DamagedError:
    message = f"the manifest {str(place)!r} is damaged: {reason}; use another snapshot"
    return DamagedError(message, path=str(place), entry=MANIFEST)


def _parse(data: bytes) -> Manifest:
    head = _HEAD.match(data)
    if head is None:
        raise ValueError("it does not begin with its hash")
    if blake3(memoryview(data)[head.end() :]).hexdigest().encode() != head[1]:
        raise ValueError("its bytes do not have the hash that it begins with")
    document = _object(parse_json(data))
    written = _count(document.get("format"))
    if written > FORMAT:
        raise InvalidError(f"it has format {written}, and this release reads formats up to {FORMAT}: update Holdfast")
    packs = tuple(
        Pack(_digits(name, 32), _count(slots, at_least=1), _digits(digest, 64))
        for name, slots, digest in _rows(document["packs"], 3)
    )
    files = tuple(
        File(_path(path), _count(size), _digits(digest, 64)) for path, size, digest in _rows(document["files"], 3)
    )
    objects = _object(document["objects"])
    manifest = Manifest(
        id=_digits(document["id"], 32),
        created_at_ns=_count(document["created_at_ns"], at_most=_MAX_TIME_NS),
        objects=MappingProxyType({check_entry(name): _stored(each) for name, each in objects.items()}),
        files=files,
        folders=tuple(_path(path) for path in _list(document["folders"])),
        packs=packs,
        metrics=MappingProxyType({_text(name): _number(each) for name, each in _object(document["metrics"]).items()}),
        attached=MappingProxyType(_object(document["attached"])),
    )
    if any(pack.slots > MAX_SLOTS for pack in packs):
        raise ValueError(f"it has a pack of more than {MAX_SLOTS} slots")
    _check_paths(manifest)
    _check_chunks(manifest)
    return manifest


def _check_paths(manifest: Manifest) -> None:
    paths = [*manifest.folders, *(file.path for file in manifest.files)]
    folders = set(manifest.folders)
    if len(set(paths)) != len(paths) or len({pack.name for pack in manifest.packs}) != len(manifest.packs):
        raise ValueError("it names something twice")
    for path in paths:
        above, slash, _ = path.rpartition("/")
        if slash and above not in folders:
            raise ValueError(f"{shown(path)} is in no folder that it names")
    tops = [path for path in paths if "/" not in path]
    owned = [entry for stored in manifest.objects.values() for entry in stored.entries]
    if sorted(tops) != sorted(owned):
        raise ValueError("not each entry belongs to one object")
    plain = {file.path for file in manifest.files}
    for name, stored in manifest.objects.items():
        if stored.is_tree and (len(stored.entries) != 1 or stored.entries[0] not in plain):
            raise ValueError(f"object {shown(name)} is a tree without the one file that holds its skeleton")


def _check_chunks(manifest: Manifest) -> None:
    """Refuse chunks that are in no pack, and two that are one: so what is stored is as large as what comes of it."""
    spans: list[tuple[int, int, int]] = []
    for stored in manifest.objects.values():
        for pack, slot, length in stored.chunks:
            end = slot + length
            if pack >= len(manifest.packs) or end > manifest.packs[pack].slots:
                raise ValueError(f"it has chunks in slots {slot} to {end} of pack {pack}, which has none there")
            spans.append((pack, slot, end))
    spans.sort()
    for before, after in pairwise(spans):
        if before[0] == after[0] and after[1] < before[2]:
            raise ValueError(f"two chunks are slot {after[1]} of pack {after[0]}")


def _check_readable(manifest: Manifest, data: bytes) -> None:
    """Refuse what would not be read back as it is."""
    read = _parse(data)
    for given, found in ((manifest.metrics, read.metrics), (manifest.attached, read.attached)):
        if given != found:
            raise ValueError(f"JSON would not give back {shown(dict(given))}")
    if depth_of(data) > _MAX_DEPTH:
        raise ValueError(f"what is attached is more than {_MAX_DEPTH} levels deep")


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, for ``json.loads(object_pairs_hook=…)``.

    Raises:
        ValueError: It has a name twice: two readers might take two values for it.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has the name {shown(name)} twice")
        found[name] = value
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _stored(value: object) -> Stored:
    found = _object(value)
    version = found["version"]
    return Stored(
        version=None if version is None else _count(version),
        entries=tuple(check_entry(_path(entry)) for entry in _list(found["entries"])),
        chunks=tuple(
            Run(_count(pack), _count(slot), _count(length, at_least=1))
            for pack, slot, length in _rows(found["chunks"], 3)
        ),
    )


def _expect(value: Any, expected: str, *, is_there: object) -> Any:
    if not is_there:
        raise ValueError(f"{shown(value)} stands where {expected} is expected")
    return value


def _object(value: object) -> dict[str, Any]:
    return _expect(value, "an object", is_there=isinstance(value, dict))


def _list(value: object) -> list[Any]:
    return _expect(value, "a list", is_there=isinstance(value, list))


def _rows(value: object, width: int) -> Iterable[list[Any]]:
    for row in _list(value):
        yield _expect(row, f"a list of {width} values", is_there=len(_list(row)) == width)


def _count(value: object, *, at_least: int = 0, at_most: int = _MAX_SIZE) -> int:
    is_there = type(value) is int and at_least <= value <= at_most
    return _expect(value, f"a count from {at_least} to {at_most}", is_there=is_there)


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _expect(value, "a finite number", is_there=is_number and abs(value) <= sys.float_info.max)


def _text(value: str) -> str:
    value.encode()  # a lone surrogate, which cannot be printed, is a ValueError
    return value


def _digits(value: object, length: int) -> str:
    is_there = type(value) is str and len(value) == length and _HEX.fullmatch(value)
    return _expect(value, f"a number of {length} hexadecimal digits", is_there=is_there)


def _path(value: object) -> str:
    parts = value.split("/") if type(value) is str else [""]
    for part in parts:
        check_entry(part)
    if parts[0].startswith(".") or len(parts) > _MAX_FOLDERS:
        expected = f"no dot to begin with, and at most {_MAX_FOLDERS} parts, are expected"
        raise ValueError(f"{shown(value)} is no place for an object's files: {expected}")
    return "/".join(parts)
