"""The bytes of files, on disk: named by what they hold, encrypted, written whole or not at all.

Hides the cipher, the names on disk and what a writer that died left behind. Which items describe the files, and who
may have them, is not its matter.

A file is a header (format, salt) and chunks of 64 KiB, each sealed with ChaCha20-Poly1305 (RFC 8439) under a key of
this file's own (HKDF-SHA256 of the Pod's key, the salt and the name). The nonce of a chunk is its number and whether it
is the last one, as in the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015): chunks that were changed,
exchanged, left out or cut off are found before they are handed out. A file's name on disk is a keyed hash, so that who
reads the disk cannot tell which known file lies there.

A file that is found damaged gets another name, so that its own is free for whoever has the bytes. Until somebody brings
them it is still read from there: it may be the disk that errs, and not for ever.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from holdfast.disk import Blocks, Disk, ExistsError, MissingError, StrPath
from holdfast.errors import ConflictError, DamagedError, HoldfastError, InvalidError, NotFoundError
from holdfast.values import shown

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

CHUNK_BYTES: Final = 64 * 2**10
_TAG_BYTES: Final = 16
_SEALED_BYTES: Final = CHUNK_BYTES + _TAG_BYTES
_MAGIC: Final = b"HFB1"
_HEADER_BYTES: Final = len(_MAGIC) + 16
_WRITE_BYTES: Final = 4 * 2**20
"""How much is read, or gathered before it is written, at once."""

_LOCK: Final = "files.lock"
_WAIT_S: Final = 30.0

_hash_text: Final = re.compile(r"[0-9a-f]{64}")
_stored_name: Final = _hash_text
_DAMAGED: Final = ".damaged"


class DiskBlobs:
    """Files in a folder, for any number of threads and processes.

    Args:
        folder: Where they lie; made with the first one.
        key: The 32 bytes of the Pod's file, of which all keys here are derived.
        disk: The file system.
    """

    def __init__(self, folder: StrPath, key: bytes, *, disk: Disk | None = None) -> None:
        self.folder = Path(folder)
        self._key = key
        self._disk = disk or Disk()

    def put(self, sha256: str, chunks: Iterable[bytes]) -> int:
        """Keep a file, and return its size in bytes; once this returns it is durable.

        Raises:
            ConflictError: It is there already, as far as `exists` knows.
            InvalidError: ``sha256`` is no such hash in 64 hexadecimal digits, or not that of the bytes; nothing is
                kept then.
        """
        with self.writing(sha256) as writing:
            for chunk in chunks:
                writing.write(chunk)
            return writing.commit()

    @contextmanager
    def writing(self, sha256: str) -> Generator[Writing]:
        """Yield what takes the bytes of a file one after the other; without its ``commit()`` nothing is kept.

        Raises:
            ConflictError, InvalidError: As `put`; at once if the file is there, else with ``commit()``.
        """
        target = self._path(sha256)
        if target.exists():
            raise _taken(sha256)
        self._disk.put_folder(target.parent)
        self._disk.sweep(self.folder)
        with self._disk.temporary_folder(self.folder) as place:
            part = place / "part"
            with self._disk.open_blocks(part, create=True, is_cached=True) as blocks:
                yield Writing(self._disk, blocks, self._key, sha256, target)

    def open(self, sha256: str) -> tuple[int, Iterator[bytes]]:
        """Return the size of a file in bytes, and its bytes; each part is known to be right before it is handed out.

        Close the iterator (it is a generator), or read it to its end.

        Raises:
            NotFoundError: There is none.
            DamagedError: It is not what was kept; maybe only found after some of its bytes were handed out. From then
                on it can be `put` again, which replaces it.
        """
        blocks = self._open(sha256)
        try:
            sealed = os.fstat(blocks.fd).st_size - _HEADER_BYTES
            header = bytearray(_HEADER_BYTES)
            is_whole = blocks.read(memoryview(header), 0) == _HEADER_BYTES and header.startswith(_MAGIC)
            if not is_whole or sealed < _TAG_BYTES or 0 < sealed % _SEALED_BYTES < _TAG_BYTES:
                raise self._set_aside(blocks, sha256)  # noqa: TRY301 -- what closes the file is here
            cipher = _cipher(self._key, bytes(header[len(_MAGIC) :]), sha256)
        except BaseException:
            blocks.close()
            raise
        chunks = -(-sealed // _SEALED_BYTES)
        size = sealed - chunks * _TAG_BYTES
        return size, self._unsealed(blocks, cipher, chunks, sha256)

    def _unsealed(self, blocks: Blocks, cipher: ChaCha20Poly1305, chunks: int, sha256: str) -> Generator[bytes]:
        from cryptography.exceptions import InvalidTag  # start-up, as below

        with closing(blocks):
            buffer = memoryview(bytearray(_WRITE_BYTES // CHUNK_BYTES * _SEALED_BYTES))
            number, at = 0, _HEADER_BYTES
            while number < chunks:
                found = blocks.read(buffer, at)
                at += found
                for begin in range(0, found, _SEALED_BYTES):
                    number += 1
                    sealed = buffer[begin : min(begin + _SEALED_BYTES, found)]
                    try:
                        plain = cipher.decrypt(_nonce(number, is_last=number == chunks), sealed, None)
                    except InvalidTag as exc:
                        raise self._set_aside(blocks, sha256) from exc
                    if plain:
                        yield plain
                if not found:
                    raise self._set_aside(blocks, sha256)  # it became shorter since

    def _open(self, sha256: str) -> Blocks:
        path = self._path(sha256)
        for each in (path, _aside(path), path):  # twice: it may be brought between the first two looks
            with suppress(MissingError):
                return self._disk.open_blocks(each, is_cached=True)
        raise NotFoundError(f"the bytes of file {sha256!r} are not there: upload them", sha256=sha256)

    def _set_aside(self, blocks: Blocks, sha256: str) -> DamagedError:
        """Take its name from a file that is damaged, if it can be, and return the error."""
        path = self._path(sha256)
        # Where nothing can be written it keeps its name. Under the lock, so that no other file comes between.
        with suppress(HoldfastError, OSError), self._disk.lock(self.folder / _LOCK, wait_s=_WAIT_S):
            if os.path.samestat(os.fstat(blocks.fd), path.stat()):
                self._disk.delete(_aside(path))
                self._disk.rename(path, _aside(path))
        message = (
            f"the file {str(path)!r} with the bytes of {sha256!r} is damaged: restore a backup, or upload them again"
        )
        return DamagedError(message, path=str(path), sha256=sha256)

    def exists(self, sha256: str) -> bool:
        """Say whether the bytes of a file are there, and were not found damaged by who read them."""
        path = self._path(sha256)
        if not path.exists():
            return False
        with self._disk.lock(self.folder / _LOCK, shared=True, wait_s=_WAIT_S):
            return path.exists()

    def delete(self, sha256: str, *, is_needed: Callable[[], bool] = lambda: False) -> None:
        """Let the bytes of a file be gone, durably, unless ``is_needed``; nothing happens if they are.

        Whoever reads them reads on. Who describes a file in the Pod, and then asks `exists`, is not told yes by a file
        that goes: either ``is_needed`` finds the description, or `exists` waits and answers no.
        """
        path = self._path(sha256)
        if not path.exists() and not _aside(path).exists():
            return
        with self._disk.lock(self.folder / _LOCK, wait_s=_WAIT_S):
            if not is_needed():
                for each in (path, _aside(path)):
                    self._disk.delete(each)

    def sweep(self) -> None:
        """Remove what writers that died have left; the next writer does it as well."""
        if self.folder.exists():
            self._disk.sweep(self.folder)

    def copy_to(self, folder: StrPath) -> None:
        """Let another folder have every file that is here, as it is; durably, and what is there already stays.

        A process that dies leaves whole files and temporary ones; doing it again does the rest.
        """
        target = Path(folder)
        for source in sorted(self.folder.glob("??/*")):
            copy = target / source.parent.name / source.name
            if _stored_name.fullmatch(source.name) is None or copy.exists():
                continue
            try:
                old = self._disk.open_blocks(source, is_cached=True)
            except MissingError:
                continue  # deleted meanwhile
            with closing(old), ExitStack() as stack:
                self._disk.put_folder(copy.parent)
                place = stack.enter_context(self._disk.temporary_folder(target))
                new = stack.enter_context(self._disk.open_blocks(place / "part", create=True, is_cached=True))
                buffer, at = memoryview(bytearray(_WRITE_BYTES)), 0
                while found := old.read(buffer, at):
                    new.write([buffer[:found]], at)
                    at += found
                new.flush()
                with suppress(ExistsError):  # somebody else has brought it meanwhile
                    self._disk.rename(new.path, copy)

    def _path(self, sha256: str) -> Path:
        if not isinstance(sha256, str) or _hash_text.fullmatch(sha256) is None:  # pyright: ignore[reportUnnecessaryIsInstance] -- untyped callers
            message = f"{shown(sha256)} names no file: a SHA-256 in 64 hexadecimal digits, in lower case, is expected"
            raise InvalidError(message, sha256=shown(sha256))
        name = hmac.digest(self._key, b"holdfast blob name 1" + sha256.encode(), "sha256").hex()
        return self.folder / name[:2] / name


class Writing:
    """A file that is being written, see `DiskBlobs.writing`; for one thread at a time."""

    def __init__(self, disk: Disk, blocks: Blocks, key: bytes, sha256: str, target: Path) -> None:
        salt = secrets.token_bytes(16)
        self._disk = disk
        self._blocks = blocks
        self._cipher = _cipher(key, salt, sha256)
        self._sha256 = sha256
        self._target = target
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self._number = 0
        self._at = 0
        self.size_bytes = 0
        """How many bytes were written so far."""
        self._append([_MAGIC + salt])

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._hash.update(data)
        self.size_bytes += len(data)
        self._waiting += data
        if len(self._waiting) > _WRITE_BYTES:
            self._seal(is_last=False)

    def commit(self) -> int:
        """Keep the file, durably, and return its size in bytes.

        Raises:
            ConflictError: Another writer has kept it meanwhile.
            InvalidError: The bytes do not have the hash that they were announced with.
        """
        found = self._hash.hexdigest()
        if not hmac.compare_digest(found, self._sha256):
            message = f"these {self.size_bytes} bytes are not file {self._sha256!r}: their SHA-256 is {found!r}"
            raise InvalidError(message, sha256=self._sha256, found=found)
        self._seal(is_last=True)
        self._blocks.flush()
        try:
            self._disk.rename(self._blocks.path, self._target)
        except ExistsError as exc:
            raise _taken(self._sha256) from exc
        self._disk.delete(_aside(self._target))
        return self.size_bytes

    def _seal(self, *, is_last: bool) -> None:
        """Write whole chunks; one is kept back, as the last one is sealed as such, even if it is whole or empty."""
        plain = memoryview(bytes(self._waiting))
        count = -(-len(plain) // CHUNK_BYTES) or 1
        if not is_last:
            count -= 1
        sealed: list[bytes] = []
        for at in range(count):
            self._number += 1
            nonce = _nonce(self._number, is_last=is_last and at == count - 1)
            sealed.append(self._cipher.encrypt(nonce, plain[at * CHUNK_BYTES : (at + 1) * CHUNK_BYTES], None))
        self._append(sealed)
        del self._waiting[: count * CHUNK_BYTES]

    def _append(self, parts: list[bytes]) -> None:
        self._blocks.write([memoryview(part) for part in parts], self._at)
        self._at += sum(map(len, parts))


def _cipher(key: bytes, salt: bytes, sha256: str) -> ChaCha20Poly1305:
    # Start-up: cryptography takes some 20 ms, and only files need it.
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    bound = json.dumps(["holdfast blob 1", sha256]).encode("ascii")
    return ChaCha20Poly1305(HKDF(algorithm=SHA256(), length=32, salt=salt, info=bound).derive(key))


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


def _taken(sha256: str) -> ConflictError:
    return ConflictError(f"the bytes of file {sha256!r} are there already", sha256=sha256)


def _aside(path: Path) -> Path:
    return path.with_suffix(_DAMAGED)
