"""What may be a snapshot in a folder, what marks it, and how one goes.

The failure argument of `remove`: a snapshot goes by one rename to a temporary name, then its files. Killed before the
rename it is there, whole; killed after it is gone, and what is left is swept like any unfinished work. The rename
happens under the lock that readers share, and only if the directory is still the one that was looked at when it was
decided: of two cleanups one removes it, a new directory under an old name stays, and no link is followed.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Final

from holdfast.disk import BusyError, Disk, StrPath, translate
from holdfast.errors import HoldfastError, NotFoundError
from holdfast.snapshots.manifest import MANIFEST, OURS, read_manifest
from holdfast.snapshots.reading import lock_path, reading, verify
from holdfast.values import MAX_MS, MIN_MS, from_ms

_PIN: Final = f"{OURS}/pin"
_MARKS: Final = frozenset(("pin", "pointed"))
"""What stands beside a manifest and may change."""
_MAX_REMEMBERED: Final = 1_000
_WAIT_S: Final = 0.1
"""How long a removal waits for a lock: long enough for `is_being_read` elsewhere, which takes it for a moment."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A directory that may be a snapshot, as it was when it was looked at.

    ``created_at_ns`` is the manifest's, and that of the last change where there is none. ``problem`` says why the
    manifest cannot be read, if there is one and it cannot.
    """

    path: Path
    identity: tuple[int, int]
    modified_at_ns: int
    created_at_ns: int
    metrics: Mapping[str, float]
    has_manifest: bool
    problem: str | None

    @property
    def seen(self) -> tuple[int, ...]:
        """What no other directory has: its time as well, because a new one may get the number of one that has gone."""
        return (*self.identity, self.modified_at_ns)

    @property
    def created_at(self) -> datetime:
        """When, as far as `datetime` goes: file systems know years beyond 9999."""
        return from_ms(min(max(self.created_at_ns // 1_000_000, MIN_MS), MAX_MS))


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of one directory, and why."""

    path: Path
    is_removed: bool
    reason: str
    seen: tuple[int, ...] = field(default=(), repr=False)
    """What told this directory from all others when it was decided; empty if there was none."""


def find_candidates(folder: StrPath, pattern: str | None = None) -> list[Candidate]:
    """Return the directories in ``folder`` whose names match ``pattern``, the newest first.

    Without a pattern: those that hold a manifest. Links and names that begin with a dot, which are unfinished or set
    aside, are none.

    Raises:
        MissingError: There is no such folder (NotFoundError, and FileNotFoundError as well).
    """
    try:
        paths = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    except (OSError, ValueError) as exc:
        raise translate(exc, folder, "list") from exc
    wanted = [path for path in paths if pattern is None or fnmatch.fnmatchcase(path.name, pattern)]
    found = [candidate for path in wanted if (candidate := look_at(path))]
    return newest_first(each for each in found if pattern is not None or each.has_manifest)


def look_at(path: Path) -> Candidate | None:
    """Return the directory at ``path``, None if there is none; a link is none."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    created_at_ns, metrics, has_manifest, problem = found.st_mtime_ns, dict[str, float](), False, None
    with suppress(OSError):  # there is none
        if stat.S_ISDIR(os.lstat(path / OURS).st_mode):
            inside = os.lstat(path / MANIFEST)
            has_manifest = True
            try:
                created_at_ns, metrics = _facts(path, (inside.st_ino, inside.st_size, inside.st_mtime_ns))
            except HoldfastError as exc:
                problem = exc.message
    identity = found.st_dev, found.st_ino
    return Candidate(path, identity, found.st_mtime_ns, created_at_ns, metrics, has_manifest, problem)


@lru_cache(maxsize=_MAX_REMEMBERED)
def _facts(path: Path, stamp: tuple[int, int, int]) -> tuple[int, dict[str, float]]:
    """Read a manifest once, as long as its file is the same: it can be long, and cleanups are frequent."""
    del stamp
    manifest = read_manifest(path)
    return manifest.created_at_ns, dict(manifest.metrics)


def newest_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return them by the time of their manifests; of equal times the later name is the newer."""
    return sorted(candidates, key=lambda each: age(each.path, each), reverse=True)


def age(path: Path, candidate: Candidate | None) -> tuple[int, str]:
    """Return what orders directories by their time, and by name where it is the same; what is none is the oldest."""
    return (-(2**63) if candidate is None else candidate.created_at_ns, path.name)


_verified: Final[dict[tuple[int, int], tuple[int, bool]]] = {}
"""What came of verifying a directory, and the stamp of its files then; the oldest entries make room for new ones."""


def is_valid(path: StrPath) -> bool:
    """Return whether the snapshot verifies, reading all of it; not again as long as its files look the same."""
    candidate = look_at(Path(path))
    if candidate is None:
        return False
    stamp = _stamp(candidate.path)
    known = _verified.get(candidate.identity)
    if known is not None and known[0] == stamp:
        return known[1]
    try:
        is_whole = not verify(path)
    except HoldfastError:
        is_whole = False
    if _stamp(candidate.path) == stamp:
        _remember(candidate, stamp, is_whole=is_whole)
    return is_whole


def remember_valid(path: StrPath) -> None:
    """Take a snapshot that this process has just committed for valid, as long as its files look as they do now."""
    candidate = look_at(Path(path))
    if candidate is not None:
        _remember(candidate, _stamp(candidate.path), is_whole=True)


def _remember(candidate: Candidate, stamp: int, *, is_whole: bool) -> None:
    _verified.pop(candidate.identity, None)
    while len(_verified) >= _MAX_REMEMBERED:
        _verified.pop(next(iter(_verified)), None)
    _verified[candidate.identity] = stamp, is_whole


def _stamp(path: Path) -> int:
    """Return a number that changes with the files of a snapshot, but not with its marks.

    Without the time at which an inode was changed: a link to a shared pack, made by the next snapshot, sets it.
    """
    files: list[tuple[object, ...]] = []
    for folder, folders, names in os.walk(path):
        for place in (Path(folder, name) for name in (*folders, *names)):
            if place.parent.name == OURS and place.name in _MARKS:
                continue
            with suppress(OSError):  # it has gone meanwhile, and so will the next stamp be another
                found = os.lstat(place)
                is_file = not stat.S_ISDIR(found.st_mode)
                content = is_file and (found.st_size, found.st_mtime_ns)
                files.append((str(place.relative_to(path)), found.st_ino, content))
    return hash(tuple(sorted(files, key=str)))


def pin(path: StrPath) -> None:
    """Let no cleanup remove this snapshot, durably, until `unpin`; nothing happens if it is pinned.

    Raises:
        NotFoundError: There is no snapshot with a manifest at ``path``, or it has just been removed.
        UnavailableError: It is being removed.
    """
    with reading(_snapshot(path)):
        mark = _snapshot(path) / _PIN
        try:
            # An empty file needs no temporary one, and a kill must leave no other name than this in the snapshot.
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600))
        except OSError as exc:
            raise translate(exc, mark, "pin") from exc
        Disk().sync_folder(mark.parent)


def unpin(path: StrPath) -> None:
    """Let cleanups remove this snapshot again; nothing happens if it is not pinned.

    Raises:
        NotFoundError: There is no snapshot with a manifest at ``path``.
    """
    Disk().delete(_snapshot(path) / _PIN)


def is_pinned(path: StrPath) -> bool:
    """Return whether there is such a snapshot and it is pinned."""
    mark = Path(path, _PIN)
    try:
        mark.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as exc:
        raise translate(exc, mark, "look at") from exc
    return True


def _snapshot(path: StrPath) -> Path:
    candidate = look_at(Path(path))
    if candidate is None or not candidate.has_manifest:
        raise NotFoundError(f"there is no snapshot {os.fspath(path)!r}: a directory with a manifest is expected")
    return candidate.path


def remove(decision: Decision, *, disk: Disk | None = None) -> bool:
    """Remove the directory of a decision for good, and return whether this call did.

    It did not if somebody reads it, has removed, replaced or pinned it since the decision.

    Raises:
        HoldfastError: It could not be removed; as long as it has its name, it is whole.
    """
    path, disk = decision.path, disk or Disk()
    is_ours = False
    disk.put_folder(lock_path(path).parent)
    try:
        lock = disk.lock(lock_path(path), wait_s=_WAIT_S)
    except BusyError:
        return False
    with lock:
        now = look_at(path)
        if now is not None and now.seen == decision.seen and not is_pinned(path):
            disk.delete(path)
            is_ours = True
        if now is None or is_ours:
            with suppress(HoldfastError):  # it would do no harm
                disk.delete(lock.path)  # held: whoever waits for it looks again, and makes a new one
    return is_ours
