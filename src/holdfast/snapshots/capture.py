"""The state of objects, copied at one moment into memory that is there already: staging.

Staging outlives a save. So the next one finds its memory warm, and copies only what changed since, if little did. That
is told by a keyed hash of each block (GMAC), which reads once what a comparison would read twice. The key is random and
stays in memory, as do the tags, so two contents share a tag with a probability of about 2 to the power of -112.

Where the system has memory with a descriptor (Linux), another process can read staging: see `holdfast.snapshots.packs`.
Copying holds the interpreter lock. That is the point: nobody changes state meanwhile who is not native code, and nobody
takes the processor in the middle. For whoever waits until all is written anyway, large leaves can be copied in pieces,
and what is there written meanwhile.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast.errors import UnavailableError
from holdfast.snapshots.manifest import CHUNK_BYTES
from holdfast.snapshots.reading import populate
from holdfast.snapshots.tree import Encoded

BLOCK_BYTES: Final = 16 * CHUNK_BYTES
"""What is compared, and copied, at once."""

_FIRST_BYTES: Final = 8 * 2**20
_NONCE: Final = bytes(12)
_TRIED_BLOCKS: Final = 2


class Place(NamedTuple):
    """A chunk that is stored: its BLAKE3, and where in which pack it is."""

    digest: bytes
    pack: str
    slot: int


@dataclass
class Span:
    """The chunks of one object in staging.

    Attributes:
        first: The first of them.
        layout: Where its leaves begin, and their lengths.
        stored: Where each chunk was stored last, at its position; None: nowhere.
        is_dirty: For each chunk 1 if it may hold something else than what was stored.
        tags: The tag of each whole block that was copied, by its first byte in staging.
        untagged: The blocks that were copied and have no tag yet.
    """

    first: int = 0
    layout: tuple[tuple[int, int], ...] = ()
    stored: list[Place | None] = field(default_factory=list["Place | None"])
    is_dirty: bytearray = field(default_factory=bytearray)
    tags: dict[int, bytes] = field(default_factory=dict[int, bytes])
    untagged: dict[int, int] = field(default_factory=dict[int, int])


class Tagger:
    """Tells by 16 bytes whether memory changed; the key is its own."""

    def __init__(self, key: bytes | None = None) -> None:
        self.key = key or os.urandom(16)
        self._cipher = AESGCM(self.key)

    def tag(self, data: memoryview) -> bytes:
        """Return the tag of some memory."""
        return self._cipher.encrypt(_NONCE, b"", data)


class Staging:
    """Memory for what was captured; belongs to the process that made it.

    ``spans`` has what was captured last of each object. Whoever changes it, or stores it, excludes others. ``left`` is
    what `copy_left` has still to copy: first bytes in staging, and leaves.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("holdfast-staging") if hasattr(os, "memfd_create") else -1
        if self.fd >= 0:
            weakref.finalize(self, os.close, self.fd)
        self.memory = memoryview(b"")
        self.spans: dict[str, Span] = {}
        self.left: list[tuple[int, memoryview]] = []
        self.tagger = Tagger()

    def believe(self, stored: Mapping[str, Sequence[Place]]) -> None:
        """Take over where the chunks of objects are stored that this process has not captured: it loaded them."""
        for name, places in stored.items():
            span = self.spans.setdefault(name, Span())
            span.stored = list(places)
            if span.is_dirty:
                span.stored = _fitted(span.stored, len(span.is_dirty))
                span.is_dirty = bytearray(b"\1" * len(span.is_dirty))

    def make_room(self, trees: Mapping[str, Encoded]) -> None:
        """Have memory for these trees that the system need not find any more; moves nothing if they fit.

        If this is left by an exception, nothing counts as captured, and what is known to be stored still does.

        Raises:
            UnavailableError: There is not so much memory.
        """
        counts = {name: tree.size // CHUNK_BYTES for name, tree in trees.items()}
        old = {name: self.spans.get(name, Span()) for name in trees}
        # What was loaded has been stored, and has no memory yet.
        is_known = trees.keys() <= self.spans.keys()
        if is_known and all(
            len(old[name].is_dirty) == len(old[name].stored) == count for name, count in counts.items()
        ):
            return
        spans, first = dict[str, Span](), 0
        for name, count in counts.items():
            spans[name] = Span(first, (), _fitted(old[name].stored, count), bytearray(b"\1" * count))
            first += count
        self.spans = {name: Span(stored=span.stored) for name, span in old.items()}
        self._have(first * CHUNK_BYTES)
        self.spans = spans  # all at once: half of them, beside half of the old ones, would lie in one place

    def capture(self, trees: Mapping[str, Encoded]) -> None:
        """Copy of the leaves of all trees what changed; of those that changed everywhere, `copy_left` does.

        If either is left by an exception, what was copied, or should have been, counts as changed when it is captured
        next.
        """
        self.make_room(trees)
        self.left.clear()
        for name, tree in trees.items():
            span = self.spans[name]
            layout = tuple((at, len(data)) for at, data in tree.leaves)
            if layout != span.layout:
                self._lay_out(span, layout)
            for at, data in tree.leaves:
                self._copy_changed(span, at, data)

    @property
    def left_bytes(self) -> int:
        """How much `copy_left` has still to copy."""
        return sum(len(data) for _, data in self.left)

    def copy_left(self) -> Iterator[int]:
        """Copy the rest, and yield now and then up to which byte staging is complete; never all of it.

        Once this is exhausted it is, and the leaves may change.
        """
        copied, told, total = 0, _FIRST_BYTES, self.left_bytes
        for start, data in sorted(self.left, key=itemgetter(0)):
            at = 0
            while at < len(data):
                size = min(len(data) - at, told - copied)
                self.memory[start + at : start + at + size] = data[at : at + size]
                at, copied = at + size, copied + size
                if copied == told < total:
                    yield start + at
                    told *= 2  # copying is faster than what comes after it: telling so more often would not help
        self.left.clear()

    def settle(self, stored: Mapping[str, list[Place]]) -> None:
        """Note where all that was captured is stored now."""
        for name, places in stored.items():
            span = self.spans[name]
            span.stored = list(places)
            span.is_dirty = bytearray(len(places))

    def _have(self, size: int) -> None:
        if size <= len(self.memory):
            return
        size = -(-size // BLOCK_BYTES) * BLOCK_BYTES
        self.memory = memoryview(b"")  # the old one goes when nobody looks at it any more
        try:
            if self.fd >= 0:
                os.ftruncate(self.fd, size)
            memory = mmap.mmap(self.fd, size)
        except OSError as exc:
            raise UnavailableError(
                f"there is no memory for a copy of {size} bytes of state: make room, or save less, and try again"
            ) from exc
        self.memory = memoryview(memory)
        populate(self.memory, 0, size)

    def _lay_out(self, span: Span, layout: tuple[tuple[int, int], ...]) -> None:
        """Let a span hold nothing that was captured, and zeros wherever its leaves will not be."""
        size, start, end = len(span.is_dirty) * CHUNK_BYTES, span.first * CHUNK_BYTES, 0
        span.is_dirty, span.tags, span.untagged = bytearray(b"\1" * len(span.is_dirty)), {}, {}
        for at, length in (*layout, (size, 0)):
            self.memory[start + end : start + at] = bytes(at - end)
            end = at + length
        span.layout = layout

    def _leave(self, span: Span, at: int, data: memoryview) -> None:
        """Let a leaf, or the end of one, be copied by `copy_left`."""
        start = span.first * CHUNK_BYTES + at
        self._touch(span, at, len(data))
        if len(data) >= CHUNK_BYTES:
            for offset in range(0, len(data), BLOCK_BYTES):
                span.tags.pop(start + offset, None)
                span.untagged[start + offset] = min(BLOCK_BYTES, len(data) - offset)
        self.left.append((start, data))

    def _copy_changed(self, span: Span, at: int, data: memoryview) -> None:
        """Copy the blocks of one leaf that changed, and all from where most did."""
        if span.first * CHUNK_BYTES + at not in span.tags:  # it is new, or small
            self._leave(span, at, data)
            return
        changed = 0
        start = span.first * CHUNK_BYTES + at
        for number, offset in enumerate(range(0, len(data), BLOCK_BYTES)):
            block = data[offset : offset + BLOCK_BYTES]
            if span.tags.get(start + offset) != self.tagger.tag(block):
                changed += 1
                self._touch(span, at + offset, len(block))
                span.tags.pop(start + offset, None)
                copy = self.memory[start + offset : start + offset + len(block)]
                copy[:] = block
                # Of the copy: native code may have changed the block since, and the next save has to see that.
                span.tags[start + offset] = self.tagger.tag(copy)
                if changed >= _TRIED_BLOCKS and 2 * changed > number + 1:
                    self._leave(span, at + offset + len(block), data[offset + len(block) :])
                    return

    @staticmethod
    def _touch(span: Span, at: int, size: int) -> None:
        """Note that bytes of a span will be other ones, before they are."""
        first, end = at // CHUNK_BYTES, -(-(at + size) // CHUNK_BYTES)
        span.is_dirty[first:end] = b"\1" * (end - first)


def _fitted(stored: Sequence[Place | None], count: int) -> list[Place | None]:
    return [*stored[:count], *[None] * (count - len(stored))]
