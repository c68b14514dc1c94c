"""Chunks of staging become a pack: hashed, written around the cache, in this process or in a worker beside it.

A thread that hashes a gigabyte in chunks asks for the interpreter lock 16,000 times, and an application that computes
lets it wait each time. So much state goes to a worker process. That reads staging where it is, writes to a file that
was opened for it, and knows no path: if this process dies it has nothing left to do and ends, and whoever sweeps finds
nobody who still writes by a name.
"""

from __future__ import annotations

import marshal
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from blake3 import blake3

from holdfast.disk import Blocks, Disk, translate
from holdfast.errors import HoldfastError, UnavailableError
from holdfast.snapshots.capture import Staging, Tagger
from holdfast.snapshots.manifest import CHUNK_BYTES, Pack

WORKER_BYTES: Final = 16 * 2**20
"""From how much that is to be hashed a worker process does it: starting one takes some time, keeping it some memory."""

_WRITE_CHUNKS: Final = 128
_MAX_WAITING: Final = 4
_PROGRAM: Final = """
import sys
sys.path[:] = sys.argv[3:]
from holdfast.snapshots.packs import serve
serve(int(sys.argv[1]), int(sys.argv[2]))
"""


class Work(NamedTuple):
    """What is to be done with staging.

    Attributes:
        chunks: Those that are to be hashed, and stored unless they are already.
        known: The BLAKE3 of chunks that are stored already, each as often as it is and nobody needs it yet.
        blocks: Memory that is to be tagged: first bytes and lengths.
        key: What it is to be tagged with.
    """

    chunks: Sequence[int]
    known: Sequence[bytes]
    blocks: Sequence[tuple[int, int]]
    key: bytes


class Done(NamedTuple):
    """What became of it.

    Attributes:
        digests: The BLAKE3 of each of the chunks.
        slots: Which slot of the pack each of them has; -1: none, it is known.
        tags: Those of the blocks.
        digest: The pack's; see `Pack`.
    """

    digests: list[bytes]
    slots: list[int]
    tags: list[bytes]
    digest: str


def write_pack(
    memory: memoryview,
    work: Work,
    blocks: Blocks,
    advance: Callable[[int], object],
    await_copied: Callable[[int], object] = int,
) -> Done:
    """Do the work; the file is not flushed.

    Args:
        memory: Staging.
        work: What is to be done with it.
        blocks: The file.
        advance: Called with how many bytes are through.
        await_copied: Called with up to which byte staging has to be complete; returns when it is.
    """
    known, digests, slots, batch = Counter(work.known), list[bytes](), list[int](), list[int]()
    tagger, tags = Tagger(work.key), list[bytes]()
    count = 0

    def tag(blocks: Sequence[tuple[int, int]]) -> None:
        for start, length in blocks:
            await_copied(start + length)
            tags.append(tagger.tag(memory[start : start + length]))

    with _Writer(memory, blocks, advance) as writer:
        for number, chunk in enumerate(work.chunks):
            await_copied((chunk + 1) * CHUNK_BYTES)
            digest = blake3(memory[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]).digest()
            digests.append(digest)
            if known.get(digest, 0):
                known[digest] -= 1
                slots.append(-1)
            else:
                slots.append(count)
                batch.append(chunk)
                count += 1
            if len(batch) == _WRITE_CHUNKS:
                writer.put(batch, is_last=number + 1 == len(work.chunks))
                batch = []
                # As many as fit to what is hashed: the disk is the slowest of the three, and has not to wait for it.
                end = len(work.blocks) * number // len(work.chunks)
                tag(work.blocks[len(tags) : end])
        writer.put(batch, is_last=True)
        tag(work.blocks[len(tags) :])
    table = b"".join(digest for digest, slot in zip(digests, slots, strict=True) if slot >= 0)
    pack = Pack("", count, blake3(table).hexdigest())
    if count:
        tail = memoryview(mmap.mmap(-1, pack.size - pack.digests_at))  # it begins a page
        tail[: len(table)] = table
        blocks.write([tail], pack.digests_at)
    return Done(digests, slots, tags, pack.digest)


class _Writer:
    """Writes chunks one after the other, from a thread of its own if there are many: then hashing goes on meanwhile."""

    def __init__(self, memory: memoryview, blocks: Blocks, advance: Callable[[int], object]) -> None:
        self._memory = memory
        self._blocks = blocks
        self._advance = advance
        self._at = 0
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[int]] = deque()

    def put(self, chunks: Sequence[int], *, is_last: bool) -> None:
        parts: list[tuple[int, int]] = []
        for chunk in chunks:
            if parts and parts[-1][1] == chunk:
                parts[-1] = (parts[-1][0], chunk + 1)
            else:
                parts.append((chunk, chunk + 1))
        views = [self._memory[first * CHUNK_BYTES : end * CHUNK_BYTES] for first, end in parts]
        at, size = self._at, len(chunks) * CHUNK_BYTES
        self._at += size
        if is_last and self._pool is None:
            self._advance(self._write(views, at, size))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1)
        try:
            self._waiting.append(self._pool.submit(self._write, views, at, size))
        except RuntimeError:  # Python is ending and starts no more threads
            self._advance(self._write(views, at, size))
        self._settle(_MAX_WAITING)

    def _write(self, views: list[memoryview], at: int, size: int) -> int:
        self._blocks.write(views, at)
        return size

    def _settle(self, left: int) -> None:
        while len(self._waiting) > left:
            self._advance(self._waiting.popleft().result())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._settle(0)
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


class Worker:
    """A process that writes packs until this object, or this process, is gone."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            OSError: No process can be started.
        """
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as stack:
            stack.enter_context(ours)
            self._process = subprocess.Popen(  # noqa: S603 – this very Python
                [sys.executable, "-I", "-S", "-c", _PROGRAM, str(theirs.fileno()), str(os.getpid()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which decides
            )
            stack.pop_all()
        self._socket = ours
        self.close = weakref.finalize(self, _stop, self._process, ours, os.getpid())
        """End it; nothing happens the second time."""

    @property
    def pid(self) -> int:
        """Which process it is."""
        return self._process.pid

    @staticmethod
    def is_possible(staging: Staging) -> bool:
        """Say whether a worker could read this staging, and this Python be started again."""
        return staging.fd >= 0 and bool(sys.executable) and not getattr(sys, "frozen", False)

    def write_pack(
        self, staging: Staging, work: Work, blocks: Blocks, advance: Callable[[int], object], copied: Iterator[int]
    ) -> Done:
        """Let it do what the function of this name does; ``copied`` is what `Staging.copy_left` returns.

        If this is left by an exception that the worker did not send, it has ended: it might still be at work.

        Raises:
            UnavailableError: It died.
        """
        what: str = ""
        value: Any = None
        try:
            _send(self._socket, (len(staging.memory), *work), [staging.fd, blocks.fd])
            for end in copied:
                _send(self._socket, end)
            _send(self._socket, len(staging.memory))
            while what not in {"done", "error"}:
                (what, value), _ = _receive(self._socket)
                if what == "through":
                    advance(value)
        except (OSError, EOFError) as exc:
            raise UnavailableError(f"the process that writes snapshots, {self.pid}, died; save again") from exc
        finally:
            if what not in {"done", "error"}:
                self.close()
        if what == "error":
            raise translate(OSError(*value), blocks.path, "write")
        return Done(*value)


def _stop(process: subprocess.Popen[bytes], connection: socket.socket, owner: int) -> None:
    if os.getpid() == owner:
        with suppress(OSError):  # it is gone already
            connection.shutdown(socket.SHUT_RDWR)  # closing alone says nothing as long as a forked child has it open
    connection.close()
    process.wait()  # a forked child has nothing to wait for


def _end_with(owner: int) -> None:
    """End this process with another one, which is its parent unless that has died."""
    with suppress(OSError, AttributeError):  # it has died already; or the system cannot tell
        select.select([os.pidfd_open(owner)], [], [])
    if os.getppid() != owner:
        os._exit(0)


def serve(number: int, owner: int) -> None:
    """Be the worker at a socket, until nobody is at its other end, or the process ``owner`` has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A child that it forked has the other end too, and may have it for long.
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    with socket.socket(fileno=number) as connection, suppress(EOFError, ConnectionError):
        _serve(connection)


def _serve(connection: socket.socket) -> None:
    memory, inode, copied = memoryview(b""), (0, 0), 0

    def await_copied(end: int) -> None:
        nonlocal copied
        while copied < end:
            copied, _ = _receive(connection)

    while True:
        (size, *work), (staging, pack) = _receive(connection)
        copied = 0
        if inode != (os.fstat(staging).st_ino, size):
            memory = memoryview(mmap.mmap(staging, size, prot=mmap.PROT_READ))
            inode = (os.fstat(staging).st_ino, size)
        os.close(staging)
        try:
            with Disk().open_blocks(Path("pack"), fd=pack) as blocks:
                done = write_pack(
                    memory, Work(*work), blocks, lambda size: _send(connection, ("through", size)), await_copied
                )
            answer = ("done", tuple(done))
        except HoldfastError as exc:
            # What the system said: only at the other end it is known which file that is, and on which disk.
            cause = exc.__cause__
            answer = ("error", (cause.errno, cause.strerror) if isinstance(cause, OSError) else (None, str(exc)))
        await_copied(size)
        _send(connection, answer)


def _send(connection: socket.socket, message: Any, fds: Sequence[int] = ()) -> None:
    data = marshal.dumps(message)
    head = len(data).to_bytes(8, "big")
    if fds:
        socket.send_fds(connection, [head], list(fds))
    else:
        connection.sendall(head)
    connection.sendall(data)


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    head, fds, _, _ = socket.recv_fds(connection, 8, 2)
    data = _read(connection, int.from_bytes(head + _read(connection, 8 - len(head)), "big"))
    return marshal.loads(data), fds  # noqa: S302 – of our own process


def _read(connection: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = connection.recv(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
