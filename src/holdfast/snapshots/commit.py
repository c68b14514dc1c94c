"""From what was captured to a directory that everybody sees: built aside, made durable, then named.

What is equal to what the snapshot before holds is shared with it, by hard link: whole files that objects wrote, and
packs of chunks. A link needs nobody's leave to stay, so each directory is whole by itself. Packs are kept few and at
least half needed, as of the save before: what is needed of the others is written again, for it is in staging.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast

from blake3 import blake3

from holdfast.disk import Disk, translate
from holdfast.errors import InvalidError
from holdfast.snapshots.capture import Place, Staging
from holdfast.snapshots.manifest import MANIFEST, OURS, PACKS, File, Manifest, Pack, Run, Stored
from holdfast.snapshots.packs import Done, Work
from holdfast.snapshots.reading import hash_file

MAX_PACKS: Final = 24
"""How many packs a snapshot shares with others; a longer chain would make each save link more than it writes."""

_SCRATCH_BYTES: Final = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Captured:
    """One object at the moment of the capture: the skeleton of a tree, with its version; or the entries it wrote.

    Its leaves are in staging, and nobody's memory is held on to.
    """

    skeleton: bytes | None = None
    version: int | None = None
    entries: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a commit makes a snapshot of.

    Attributes:
        folder: Where it is built; objects of the old protocol have written there.
        target: Its name-to-be.
    """

    folder: Path
    target: Path
    created_at_ns: int
    objects: Mapping[str, Captured]
    metrics: Mapping[str, float]
    attached: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Base:
    """The snapshot that the next one may share files with: which, and when each of them was last changed."""

    path: Path = Path()
    files: Mapping[str, tuple[File, int]] = field(default_factory=dict[str, tuple[File, int]])
    packs: Mapping[str, tuple[Pack, int]] = field(default_factory=dict[str, tuple[Pack, int]])

    @property
    def size_bytes(self) -> int:
        """How much there is to be read of it."""
        return sum(each.size for each, _ in (*self.files.values(), *self.packs.values()))


def base_of(path: Path, place: Path, manifest: Manifest) -> Base:
    """Return what can be shared of the snapshot that lies at ``place``, and will be at ``path``."""
    return Base(
        path=path,
        files={file.path: (file, _changed_at(place / file.path)) for file in manifest.files},
        packs={pack.name: (pack, _changed_at(place / pack.path)) for pack in manifest.packs},
    )


def places_of(manifest: Manifest, digests: Mapping[str, Sequence[bytes]]) -> dict[str, list[Place]]:
    """Return where each chunk of each object is, given the BLAKE3 of all."""
    found: dict[str, list[Place]] = {}
    for name, hashed in digests.items():
        runs = manifest.objects[name].chunks
        slots = [(manifest.packs[run.pack].name, run.slot + at) for run in runs for at in range(run.length)]
        found[name] = [Place(digest, *slot) for digest, slot in zip(hashed, slots, strict=True)]
    return found


class Commit:
    """One snapshot on its way from ``job`` to its name.

    Args:
        job: What it is made of.
        disk: What it is made on.
        staging: Has what was captured of trees.
        base: What it may share files with.
        write_pack: Hashes and writes chunks, as the function of this name does.
        advance: Called with how many bytes are through.
    """

    def __init__(
        self,
        job: Job,
        *,
        disk: Disk,
        staging: Staging,
        base: Base,
        write_pack: Callable[[Work, Path, Callable[[int], object]], Done],
        advance: Callable[[int], object],
    ) -> None:
        self._job = job
        self._disk = disk
        self._staging = staging
        self._base = base
        self._write_pack = write_pack
        self._advance = advance
        self._files: list[File] = []
        self._folders: list[str] = []
        self._packs: dict[str, Pack] = {}

    def run(self) -> Base:
        """Make the snapshot, durably, and return what the next one may share with it; staging knows where all is.

        Raises:
            ExistsError: The name is taken (FileExistsError as well).
            InvalidError: An object wrote something else than files and folders; or the attachments are no JSON.
            UnavailableError: The disk is full, or fails. Nothing can be seen of the snapshot then, but for one case:
                if the flush of its name failed, which is the last call, it is there, whole, and may not outlive a
                power cut.
        """
        job, disk = self._job, self._disk
        disk.make_folder(job.folder / OURS)
        skeletons: dict[Path, bytes] = {}
        for name, captured in job.objects.items():
            for entry in captured.entries:
                self._keep(entry)
            if captured.skeleton is not None and not self._share_skeleton(name, captured.skeleton):
                skeletons[job.folder / name] = captured.skeleton
        places = self._store_chunks()
        manifest = self._manifest(places)
        disk.write(
            {**skeletons, job.folder / MANIFEST: manifest.to_bytes()},
            folders=[job.folder / folder for folder in (*self._folders, *([PACKS] if self._packs else []), OURS, "")],
            stamps={job.folder: job.created_at_ns},
        )
        base = base_of(job.target, job.folder, manifest)
        disk.rename(job.folder, job.target)
        self._staging.settle(places)
        return base

    def _keep(self, top: str) -> None:
        """Make durable, and list, what an object wrote; share what was there before."""
        left = [top]
        while left:
            entry = left.pop()
            place = self._job.folder / entry
            try:
                mode = place.lstat().st_mode
                names = sorted(os.listdir(place)) if stat.S_ISDIR(mode) else []  # noqa: PTH208 – names are what is needed
            except OSError as exc:
                raise translate(exc, place, "read") from exc
            if stat.S_ISDIR(mode):
                self._folders.append(entry)
                left += [f"{entry}/{name}" for name in reversed(names)]
                continue
            if not stat.S_ISREG(mode):
                raise InvalidError(f"{str(place)!r} cannot be saved: it is no plain file or folder", path=str(place))
            with self._disk.open_blocks(place, is_cached=True) as blocks:
                file = File(entry, *hash_file(blocks, self._scratch))
                self._files.append(file)
                if not self._share(file):
                    blocks.flush()
            self._advance(file.size)

    def _share_skeleton(self, name: str, skeleton: bytes) -> bool:
        file = File(name, len(skeleton), blake3(skeleton).hexdigest())
        self._files.append(file)
        return self._share(file)

    @cached_property
    def _scratch(self) -> memoryview:
        return memoryview(mmap.mmap(-1, _SCRATCH_BYTES))

    def _share(self, file: File) -> bool:
        """Let a file be the one of the snapshot before if that holds the same; return whether it does."""
        before, changed_at = self._base.files.get(file.path, (None, 0))
        if before != file or _status(self._base.path / file.path) != (file.size, changed_at):
            return False
        return self._disk.link(self._base.path / file.path, self._job.folder / file.path)

    def _store_chunks(self) -> dict[str, list[Place]]:
        """See that each chunk of each tree is in a pack of the folder; return where."""
        spans = {
            name: self._staging.spans[name]
            for name, captured in self._job.objects.items()
            if captured.skeleton is not None
        }
        stored = {name: list(span.stored) for name, span in spans.items()}
        needed = Counter(place.pack for places in stored.values() for place in places if place is not None)
        if any(spans[name].is_dirty for name in spans):
            self._disk.make_folder(self._job.folder / PACKS)
        shared = self._share_packs(needed)
        todo: dict[str, list[int]] = {}
        for name, span in spans.items():
            places = stored[name]
            if len(shared) < len(needed):
                places[:] = [place if place is not None and place.pack in shared else None for place in places]
            todo[name] = [number for number, is_dirty in enumerate(span.is_dirty) if is_dirty or places[number] is None]
        if any(todo.values()):
            self._write(todo, stored)
        used = {place.pack for places in stored.values() for place in places if place is not None}
        for name in self._packs.keys() - used:
            self._disk.delete(self._job.folder / PACKS / name)
        self._packs = {name: pack for name, pack in self._packs.items() if name in used}
        return cast("dict[str, list[Place]]", stored)

    def _share_packs(self, needed: Mapping[str, int]) -> set[str]:
        """Link the packs of the snapshot before that are worth it, and return their names."""
        names = sorted(needed, key=lambda name: needed[name], reverse=True)
        # Far fewer at once, not one less each time: then most saves rewrite nothing.
        names = names if len(names) < MAX_PACKS else names[: MAX_PACKS // 2]
        for name in names:
            pack, changed_at = self._base.packs.get(name, (None, 0))
            if pack is None or 2 * needed[name] < pack.slots:
                continue
            place = self._base.path / pack.path
            if _status(place) == (pack.size, changed_at) and self._disk.link(place, self._job.folder / pack.path):
                self._packs[name] = pack
        return set(self._packs)

    def _write(self, todo: Mapping[str, Sequence[int]], stored: Mapping[str, list[Place | None]]) -> None:
        spans = self._staging.spans
        before = [stored[name][number] for name, numbers in todo.items() for number in numbers]
        spare = [place for place in before if place is not None]
        tagged = [(name, block) for name in stored for block in spans[name].untagged.items()]
        work = Work(
            chunks=[spans[name].first + number for name, numbers in todo.items() for number in numbers],
            known=[place.digest for place in spare],
            blocks=[block for _, block in tagged],
            key=self._staging.tagger.key,
        )
        pack = os.urandom(16).hex()
        path = self._job.folder / PACKS / pack
        done = self._write_pack(work, path, self._advance)
        placed = [Place(digest, pack, slot) for digest, slot in zip(done.digests, done.slots, strict=True)]
        if -1 in done.slots:
            known: defaultdict[bytes, list[Place]] = defaultdict(list)
            for place in spare:
                known[place.digest].append(place)
            placed = [known[place.digest].pop() if place.slot < 0 else place for place in placed]
        missing = ((stored[name], number) for name, numbers in todo.items() for number in numbers)
        for (places, number), place in zip(missing, placed, strict=True):
            places[number] = place
        for (name, (start, _)), tag in zip(tagged, done.tags, strict=True):
            spans[name].tags[start] = tag
            del spans[name].untagged[start]
        count = max(done.slots, default=-1) + 1
        if count:
            self._packs[pack] = Pack(pack, count, done.digest)
        else:
            self._disk.delete(path)

    def _manifest(self, places: Mapping[str, Sequence[Place]]) -> Manifest:
        numbers = {name: number for number, name in enumerate(self._packs)}
        objects: dict[str, Stored] = {}
        for name, captured in self._job.objects.items():
            starts: list[tuple[int, Place]] = []
            pack, after = "", 0
            for number, (_, in_pack, slot) in enumerate(placed := places.get(name, ())):
                if slot != after or in_pack != pack:
                    starts.append((number, placed[number]))
                    pack = in_pack
                after = slot + 1
            ends = [*(number for number, _ in starts[1:]), len(placed)]
            runs = [
                Run(numbers[at.pack], at.slot, end - number) for (number, at), end in zip(starts, ends, strict=False)
            ]
            entries = captured.entries if captured.skeleton is None else (name,)
            objects[name] = Stored(version=captured.version, entries=entries, chunks=tuple(runs))
        return Manifest(
            id=os.urandom(16).hex(),
            created_at_ns=self._job.created_at_ns,
            objects=objects,
            files=tuple(self._files),
            folders=tuple(self._folders),
            packs=tuple(self._packs.values()),
            metrics=self._job.metrics,
            attached=self._job.attached,
        )


def _status(place: Path) -> tuple[int, int]:
    """Return size and time of the last change of a file; what nobody has if it cannot be told."""
    try:
        found = place.lstat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _changed_at(place: Path) -> int:
    return _status(place)[1]
