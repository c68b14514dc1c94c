"""Keys: how they are made, kept in files, and wrapped in one another.

```
keys.json      the identity: owner_key, a name, and database_key, a secret     the owner's
  └─ <name>.json   the envelope: the data key, sealed under database_key       beside the Pod's file
       └─ <name>   the Pod's file, encrypted with the data key                 the database's matter
pod.key        wraps the same data key for unattended use                      the operator's
```

Hides the ciphers, the layout of the three files, and what happens when two processes make one at once or one dies
halfway. Where wrapped keys are kept beside the envelope, and how a file is encrypted, is the database's matter. No
secret is ever part of an error, of an error's cause, of a repr or of a log line.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import shlex
import stat
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeGuard, TypeVar, cast

from holdfast.disk import Disk, translate
from holdfast.errors import ConflictError, DamagedError, DeniedError, InvalidError, NotFoundError
from holdfast.values import shown

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

T = TypeVar("T")

FORMAT: Final = 1
"""Of `keys.json` and of envelopes; a file with a higher one is refused by name."""

KEY_BYTES: Final = 32
WRAPPED_BYTES: Final = 16 + KEY_BYTES + 16
"""Salt, encrypted key, tag."""

IDENTITY_FILE: Final = "keys.json"
POD_FOLDER: Final = "pods"
"""Beside `keys.json`: where the Pods lie whose keys it may hold."""

POD_KEY_FILE: Final = "pod.key"
POD_KEY_VARIABLE: Final = "HOLDFAST_POD_KEY"
POD_KEY_FILE_VARIABLE: Final = "HOLDFAST_POD_KEY_FILE"

_LOCK_FILE: Final = "keys.lock"
_LOCK_WAIT_S: Final = 30.0
_KEY_TEXT: Final = re.compile(r"[0-9a-fA-F]{64}")  # bytes.fromhex() alone would let blanks pass
_DISK: Final = Disk()
_log: Final = logging.getLogger(__name__)


# -- one key ----------------------------------------------------------------------------------------------------------


def new_key() -> bytes:
    """Return 32 new random bytes from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def key_id(key: bytes) -> str:
    """Return 16 hexadecimal digits that tell one key from another and say nothing else about it.

    A keyed hash with a label of its own, so that it equals nothing else that is made of the same key. It may be shown,
    logged and stored.

    >>> key_id(bytes(32))
    '9ec55933be8d5a88'
    """
    return hmac.digest(key, b"holdfast key id 1", "sha256")[:8].hex()


def wrap(key: bytes, under: bytes, *, purpose: str, owner: str) -> bytes:
    """Return ``key`` encrypted and authenticated under another key, as 64 bytes.

    Each call draws a new salt and derives from it (HKDF-SHA256, RFC 5869) a cipher key *and* a nonce that are used
    this once, so the 96-bit nonce of ChaCha20-Poly1305 (RFC 8439) cannot repeat under one key, however many keys one
    Pod key wraps. Two calls never answer the same.

    Args:
        key: The 32 bytes to protect.
        under: The 32 bytes that protect them.
        purpose: What the result is for, its format included; it unwraps for this purpose only.
        owner: Whose it is; it unwraps for this owner only.

    Raises:
        InvalidError: A key is not 32 bytes long.
    """
    _require_length(key, "the key to wrap")
    return encrypt(key, under, purpose=purpose, owner=owner)


def unwrap(wrapped: bytes, under: bytes, *, purpose: str, owner: str) -> bytes:
    """Return the 32 bytes that `wrap` was given with the same ``under``, ``purpose`` and ``owner``.

    Raises:
        DeniedError: Another key, purpose or owner; or the bytes were altered (no cipher can tell these apart).
        DamagedError: It is not what `wrap` returns: the length is wrong.
        InvalidError: ``under`` is not 32 bytes long.
    """
    if len(wrapped) != WRAPPED_BYTES:
        raise _damaged(f"the wrapped key of owner {owner!r}", f"it has {len(wrapped)} bytes, not {WRAPPED_BYTES}")
    key = decrypt(wrapped, under, purpose=purpose, owner=owner)
    if key is None:
        presented = key_id(under)
        raise DeniedError(
            f"the wrapped key of owner {owner!r} does not open for {purpose!r} with key {presented!r}: "
            f"another key wrapped it, or it was altered",
            owner=owner,
            purpose=purpose,
            presented=presented,
        )
    return key


def encrypt(data: bytes, under: bytes, *, purpose: str, owner: str) -> bytes:
    """Return ``data`` encrypted and authenticated under a key, 32 bytes longer, as `wrap` does it."""
    salt = secrets.token_bytes(16)
    cipher, nonce, bound = _cipher(under, salt, purpose, owner)
    return salt + cipher.encrypt(nonce, data, bound)


def decrypt(sealed: bytes, under: bytes, *, purpose: str, owner: str) -> bytes | None:
    """Return what `encrypt` was given; None if another key, purpose or owner sealed it, or if it was altered."""
    cipher, nonce, bound = _cipher(under, sealed[:16], purpose, owner)
    from cryptography.exceptions import InvalidTag  # lazy for the reason in _cipher

    try:
        return cipher.decrypt(nonce, sealed[16:], bound)
    except InvalidTag:
        return None


def _cipher(under: bytes, salt: bytes, purpose: str, owner: str) -> tuple[ChaCha20Poly1305, bytes, bytes]:
    """Return the cipher for one wrapped key, its nonce, and what it is bound to."""
    # Lazy: cryptography takes some 20 ms of start-up, and only an opened Pod needs it, not `holdfast --help`.
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    _require_length(under, "the wrapping key")
    # JSON, not a joining character: no purpose and owner can be read as another purpose and owner.
    bound = json.dumps(["holdfast wrap 1", purpose, owner]).encode("ascii")
    derived = HKDF(algorithm=SHA256(), length=KEY_BYTES + 12, salt=salt, info=bound).derive(under)
    return ChaCha20Poly1305(derived[:KEY_BYTES]), derived[KEY_BYTES:], bound


def _require_length(key: bytes, what: str) -> None:
    if len(key) != KEY_BYTES:
        raise InvalidError(f"{what} has {len(key)} bytes; a key has {KEY_BYTES}", length_bytes=len(key))


# -- the identity -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """What an owner presents: a public name and the secret that opens the owner's file.

    Both are 64 hexadecimal digits, kept in lower case. ``previous_database_key`` is there only while a rotation is
    under way: an envelope may still be sealed under it. The repr shows the name and nothing else; comparing two takes
    the same time wherever their secrets differ.

    Raises:
        InvalidError: A key is not 64 hexadecimal digits; or two of them are the same, which would publish the secret
            as a name, or rotate nothing.

    >>> Identity(owner_key="a" * 64, database_key="b" * 64)
    Identity(owner_key='aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')
    """

    owner_key: str
    database_key: str = field(repr=False)
    previous_database_key: str | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        keys = self._keys()
        for name, value in keys.items():
            if not _is_key_text(value):
                # The value is not shown, not even the name's: what was put in the wrong place may be the secret.
                raise InvalidError(f"{name} is no key: it must be text of 64 hexadecimal digits", key=name)
            object.__setattr__(self, name, value.lower())
        if len(set(self._keys().values())) < len(keys):
            raise InvalidError(f"{', '.join(keys)} must differ from each other, and two are the same", keys=[*keys])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        return hmac.compare_digest(self.to_json(), other.to_json())

    def __hash__(self) -> int:
        return hash(self.owner_key)

    @classmethod
    def new(cls) -> Self:
        """Return a new random identity. It is stored nowhere yet."""
        return cls(new_key().hex(), new_key().hex())

    @property
    def key_id(self) -> str:
        """Which database key this is (see `key_id`); an envelope names the one that opens it."""
        return key_id(bytes.fromhex(self.database_key))

    def to_json(self) -> bytes:
        """Return the content of `keys.json`, which is secret.

        ``{"format": 1, "owner_key": "…", "database_key": "…", "check": "…"}``; while a rotation is under way it has
        ``"previous_database_key"`` as well. The check value, 16 hexadecimal digits over all the rest, finds a wrong
        digit: in ``owner_key`` it would else name another owner, who has no Pod yet.
        """
        members: dict[str, object] = {"format": FORMAT, **self._keys()}
        return _to_json({**members, "check": _check_of_identity(members)})

    @classmethod
    def from_json(cls, data: bytes, *, what: str = "the key file") -> Self:
        """Return the identity that `to_json` wrote; messages call ``data`` by ``what``.

        Blanks, order and capital letters do not matter: it may have been typed from paper.

        Raises:
            DamagedError: It is not such an object; the message says what is wrong and shows no value.
            InvalidError: It has a newer format; the message names both.
        """
        members = _parse(data, what)
        check = members.pop("check", None)
        # Before the format, as in an envelope.
        if not isinstance(check, str) or check.lower() != _check_of_identity(members):
            raise _damaged(what, "its check value is missing, or does not fit the rest")
        _require_format(members, what)
        keys = {name: value for name, value in members.items() if name != "format"}
        if not {"owner_key", "database_key"} <= keys.keys() <= {"owner_key", "database_key", "previous_database_key"}:
            raise _damaged(what, "its members are not format, owner_key, database_key and check")
        try:
            return cls(**cast("dict[str, str]", keys))  # which looks at the types itself
        except InvalidError as exc:
            raise _damaged(what, exc.message) from exc

    def _keys(self) -> dict[str, object]:
        keys: dict[str, object] = {"owner_key": self.owner_key, "database_key": self.database_key}
        if self.previous_database_key is not None:
            keys["previous_database_key"] = self.previous_database_key
        return keys


def _check_of_identity(members: Mapping[str, object]) -> str:
    """Return the check value of an identity's other members, in whatever order and case they were typed."""
    typed = {name: value.lower() if isinstance(value, str) else value for name, value in sorted(members.items())}
    return hashlib.sha256(b"holdfast identity\n" + _to_json(typed)).hexdigest()[:16]


def read_identity(home: Path, *, disk: Disk = _DISK) -> Identity:
    """Return the identity in ``home``.

    Raises:
        NotFoundError: There is none.
        DeniedError: `keys.json` can be read or written by others than its owner; the message says how to mend it.
        InvalidError: It is a symbolic link or no file; or it has a newer format.
        DamagedError: It is not what was written.
    """
    return _read_identity_file(home / IDENTITY_FILE, disk)


def _read_identity_file(path: Path, disk: Disk) -> Identity:
    return Identity.from_json(_read_private(path, disk), what=f"key file {str(path)!r}")


def load_or_create_identity(home: Path, *, disk: Disk = _DISK) -> Identity:
    """Return the identity in ``home``, or make one there, and the folder too.

    Processes that come at once get the same one. One that dies here, or meets a full disk, leaves a whole file or none.
    A file that is there and cannot be used is never replaced.

    Raises:
        NotFoundError: There is none, but a Pod: new keys would not open it and would begin an empty one beside it.
        DeniedError, InvalidError, DamagedError: As `read_identity` says.
    """
    path = home / IDENTITY_FILE

    def make() -> bytes:
        # In this order: whoever made a Pod at this very moment had made the keys before.
        if any((home / POD_FOLDER).glob("*.db*")) and not os.path.lexists(path):
            raise NotFoundError(
                f"there is no key file {str(path)!r}, but there is a Pod, which new keys would not open: bring its "
                f"keys from where you keep them with 'store_keys --from-file'",
                path=str(path),
            )
        return Identity.new().to_json()

    return _load_or_create(path, _read_identity_file, make, disk)


@contextmanager
def open_identity(home: Path, *, disk: Disk = _DISK) -> Generator[Identity]:
    """Load or create the identity in ``home`` and keep it as it is until the block ends.

    Inside, read or create an envelope with it: `rotate` and `store_identity` wait for the block's end, so neither can
    leave an envelope whose key is nowhere. Any number may be inside at once. Leave it once the data key is at hand, not
    when the Pod is closed; calling those two from inside fails after 30 s, for they wait for their own caller.

    Raises:
        NotFoundError: As `load_or_create_identity` says.
        DeniedError, InvalidError, DamagedError: As `read_identity` says.
        BusyError: One of those two was at work for 30 s.
    """
    disk.put_folder(home)
    with disk.lock(home / _LOCK_FILE, shared=True, wait_s=_LOCK_WAIT_S):
        yield load_or_create_identity(home, disk=disk)


def store_identity(
    home: Path, identity: Identity, *, is_in_use: Callable[[Identity], bool], disk: Disk = _DISK
) -> None:
    """Put an identity made elsewhere into ``home``; do nothing if it is there already.

    The identity that it replaces is kept as ``keys.<its key id>.json``: no key is destroyed here. A process that dies
    here leaves the old file or the new one.

    Args:
        home: The folder; made if absent.
        identity: What to put there.
        is_in_use: Asked about the identity to be replaced: does a Pod's file need it? It is asked while nobody is
            inside `open_identity`, so the answer stays true until the file is replaced.
        disk: Where.

    Raises:
        ConflictError: The identity there is in use, or is being rotated; nothing was changed.
        BusyError: Somebody was inside `open_identity` for 30 s; nothing was changed.
        DeniedError, InvalidError, DamagedError: What is there cannot be read (see `read_identity`), so nobody knows
            whether it is in use; nothing was changed.
    """
    path = home / IDENTITY_FILE
    disk.put_folder(home)
    with disk.lock(home / _LOCK_FILE, wait_s=_LOCK_WAIT_S):
        present = _load_or_create(path, _read_identity_file, identity.to_json, disk)
        if present == identity:
            return
        if present.previous_database_key is not None or is_in_use(present):
            raise ConflictError(
                f"key file {str(path)!r} was not replaced: a Pod of owner {present.owner_key!r} needs its database "
                f"key {present.key_id!r}; put the new keys into another folder",
                path=str(path),
                owner=present.owner_key,
                key_id=present.key_id,
            )
        disk.sweep(home)
        _keep_aside(home, present, disk)
        disk.replace(path, identity.to_json(), mode=0o600)
    _log.info("identity.replaced", extra={"home": str(home), "key_id": identity.key_id, "kept": present.key_id})


def _keep_aside(home: Path, identity: Identity, disk: Disk) -> None:
    """Store ``identity`` under its key id, durably, before `keys.json` forgets it."""
    path = home / f"keys.{identity.key_id}.json"
    if _load_or_create(path, _read_identity_file, identity.to_json, disk) != identity:
        raise ConflictError(f"key file {str(path)!r} holds other keys than its name says; move it away", path=str(path))


# -- the envelope -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What lies beside a Pod's file: the key of that file, for nobody but its owner.

    The owner's identity opens the pair anywhere. An envelope is no secret.

    Attributes:
        owner: The owner's public name, 64 hexadecimal digits.
        key_id: Which database key opens it.
        data_key_id: Which data key is inside: tells whether a data key from elsewhere is this file's, before the file
            is opened with it.
        wrapped_key: The data key as `wrap` returns it, bound to the owner, to ``data_key_id`` and to this format.
    """

    owner: str
    key_id: str
    data_key_id: str
    wrapped_key: bytes = field(repr=False)

    @classmethod
    def seal(cls, data_key: bytes, identity: Identity) -> Self:
        """Return an envelope that ``identity`` opens and that holds ``data_key``.

        Raises:
            InvalidError: ``data_key`` is not 32 bytes long.
        """
        under, inside = bytes.fromhex(identity.database_key), key_id(data_key)
        wrapped_key = wrap(data_key, under, purpose=_purpose(inside), owner=identity.owner_key)
        return cls(owner=identity.owner_key, key_id=key_id(under), data_key_id=inside, wrapped_key=wrapped_key)

    @classmethod
    def bare(cls, data_key: bytes) -> Self:
        """Return an envelope that only names ``data_key``: for a file whose key is kept elsewhere; nobody opens it."""
        return cls(owner="", key_id="", data_key_id=key_id(data_key), wrapped_key=b"")

    def open(self, identity: Identity) -> bytes:
        """Return the data key.

        The identity's previous database key opens it as well: a rotation may have died before it sealed it anew.

        Raises:
            DeniedError: It is another owner's, or needs a database key that ``identity`` does not hold; the message
                names both keys by their ids.
            DamagedError: The key is the right one and does not open it: somebody without the key wrote it.
        """
        if self.owner != identity.owner_key:
            raise DeniedError(
                f"the envelope of owner {self.owner!r} does not open for owner {identity.owner_key!r}",
                owner=self.owner,
                presented=identity.owner_key,
            )
        presented = [identity.database_key, identity.previous_database_key or identity.database_key]
        under = next((key for key in map(bytes.fromhex, presented) if key_id(key) == self.key_id), None)
        if under is None:
            raise DeniedError(
                f"the envelope of owner {self.owner!r} does not open with database key {identity.key_id!r}: it needs "
                f"the database key {self.key_id!r}",
                owner=self.owner,
                key_id=self.key_id,
                presented=identity.key_id,
            )
        try:
            return unwrap(self.wrapped_key, under, purpose=_purpose(self.data_key_id), owner=self.owner)
        except DeniedError as exc:
            reason = f"its own key {self.key_id!r} does not open it"
            raise _damaged(f"the envelope of owner {self.owner!r}", reason) from exc

    def rekey(self, identity: Identity) -> Self:
        """Return an envelope of the same data key, sealed under ``identity``'s database key.

        Raises:
            DeniedError, DamagedError: Neither that key nor the previous one opens this envelope (see `open`).
        """
        return self.seal(self.open(identity), identity)

    def to_json(self) -> bytes:
        """Return the content of the file, which ends with a check value over all the rest.

        ``{"format": 1, "owner": "…", "key_id": "…", "data_key_id": "…", "wrapped_key": "…", "check": "…"}``, each text
        in hexadecimal digits.
        """
        members: dict[str, object] = {"format": FORMAT}
        for name in _MEMBERS:
            value = getattr(self, name)
            members[name] = value.hex() if isinstance(value, bytes) else value
        return _to_json({**members, "check": _check_of(members)})

    @classmethod
    def from_json(cls, data: bytes, *, what: str = "the envelope") -> Self:
        """Return the envelope that `to_json` wrote, byte for byte; messages call ``data`` by ``what``.

        Raises:
            DamagedError: It is not what was written; the message says what is wrong.
            InvalidError: It has a newer format; the message names both.
        """
        members = _parse(data, what)
        check = members.pop("check", None)
        # Before the format: in every format to come the check stays the last member and is made like this, so that a
        # flipped format number is damage and not "a newer Holdfast".
        if check != _check_of(members) or data != _to_json({**members, "check": check}):
            raise _damaged(what, "its check value does not fit the rest")
        _require_format(members, what)
        if list(members) != ["format", *_MEMBERS]:
            raise _damaged(what, f"its members are not format, {', '.join(_MEMBERS)}, check")
        for name, pattern in _MEMBERS.items():
            value = members[name]
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise _damaged(what, f"{name} cannot be {shown(value)}")
        owner, key, data_key, wrapped = (cast("str", members[name]) for name in _MEMBERS)
        return cls(owner=owner, key_id=key, data_key_id=data_key, wrapped_key=bytes.fromhex(wrapped))


_MEMBERS: Final = {
    "owner": re.compile(r"(?:[0-9a-f]{64})?"),
    "key_id": re.compile(r"(?:[0-9a-f]{16})?"),
    "data_key_id": re.compile(r"[0-9a-f]{16}"),
    "wrapped_key": re.compile(rf"(?:[0-9a-f]{{{2 * WRAPPED_BYTES}}})?"),
}
"""The members of an envelope between format and check, in their order; those that may be empty are so in a bare one."""


def _purpose(data_key_id: str) -> str:
    """Return what an envelope's key is wrapped for: bound are the format and the name of what is inside, too."""
    return f"envelope {FORMAT} {data_key_id}"


def _check_of(members: Mapping[str, object]) -> str:
    """Return the check value of an envelope's other members: it finds damage; forgery is the cipher's matter."""
    return hashlib.sha256(b"holdfast envelope\n" + _to_json(members)).hexdigest()


def read_envelope(path: Path, *, disk: Disk = _DISK) -> Envelope:
    """Return the envelope in file ``path``.

    Raises:
        NotFoundError: There is none.
        InvalidError: It is a symbolic link or no file; or it has a newer format.
        DamagedError: It is not what was written.
    """
    return Envelope.from_json(disk.read(path), what=f"envelope {str(path)!r}")


def load_or_create_envelope(path: Path, identity: Identity, *, disk: Disk = _DISK) -> Envelope:
    """Return the envelope in file ``path``, or seal a new data key there.

    Only for a Pod whose own file does not exist yet. The envelope is durable before this returns, and so before that
    file's first byte: a process that dies between the two leaves an envelope that the next start uses. Processes that
    come at once get the same one. Call it inside `open_identity` if the identity is a folder's.

    Raises:
        DamagedError, InvalidError: As `read_envelope` says; nothing was replaced.
    """
    return _load_or_create(
        path,
        lambda path, disk: read_envelope(path, disk=disk),
        lambda: Envelope.seal(new_key(), identity).to_json(),
        disk,
    )


def rotate(home: Path, envelope: Path, *, disk: Disk = _DISK) -> Identity:
    """Give the identity in ``home`` a new database key, and seal the envelope in file ``envelope`` under it.

    The data key stays, so the Pod may be open meanwhile, and whoever else keeps it wrapped notices nothing. The
    retired identity is kept as ``keys.<its key id>.json``: backups made before need it.

    Two files change, and no file system changes two at once. What the next start finds if the process dies after:

    | step | keys.json holds | the envelope needs |
    | --- | --- | --- |
    | 1 the old identity is kept aside | old | old |
    | 2 keys.json is replaced | new, previous = old | old |
    | 3 the envelope is replaced | new, previous = old | new |
    | 4 keys.json is replaced | new | new |

    In each row the one opens the other, for `Envelope.open` tries both keys. Called again in row 2 or 3 this finishes
    that rotation and begins no other; until then the old key stays valid. Nobody inside `open_identity` sees a row
    change, for this waits for them and they for this.

    Raises:
        NotFoundError: There is no identity, or no envelope: then nothing is to be rotated.
        DeniedError, InvalidError, DamagedError: One of them cannot be read, or the one does not open the other.
            Nothing was changed.
        BusyError: Somebody was inside `open_identity` for 30 s. Nothing was changed.
        UnavailableError: The disk is full, failing or read-only. One of the rows is there; call it again.
    """
    path = home / IDENTITY_FILE
    with disk.lock(home / _LOCK_FILE, wait_s=_LOCK_WAIT_S):
        identity = read_identity(home, disk=disk)
        sealed = read_envelope(envelope, disk=disk)
        sealed.open(identity)  # before the first write: what does not open now must not be rotated
        disk.sweep(home)
        if identity.previous_database_key is None:
            _keep_aside(home, identity, disk)
            identity = Identity(identity.owner_key, new_key().hex(), previous_database_key=identity.database_key)
            disk.replace(path, identity.to_json(), mode=0o600)
        disk.replace(envelope, sealed.rekey(identity).to_json())
        identity = replace(identity, previous_database_key=None)
        disk.replace(path, identity.to_json(), mode=0o600)
    _log.info("identity.rotated", extra={"home": str(home), "key_id": identity.key_id})
    return identity


# -- the Pod's own key ------------------------------------------------------------------------------------------------


def load_or_create_pod_key(home: Path, environ: Mapping[str, str], *, disk: Disk = _DISK) -> bytes:
    """Return the Pod key, 32 bytes: from the environment, else from `pod.key` in ``home``, which is made if absent.

    Processes that come at once get the same one. One that dies here, or meets a full disk, leaves a whole file or none.
    A file that is there and cannot be used is never replaced.

    Args:
        home: The folder; made if needed, and not looked at if the environment gives the key.
        environ: ``HOLDFAST_POD_KEY`` holds 64 hexadecimal digits, or ``HOLDFAST_POD_KEY_FILE`` names a file with such
            digits (a line end may follow) or with 32 raw bytes. That file is an orchestrator's, and these mount links
            and files that everybody in a container can read: neither is refused there.
        disk: Where.

    Raises:
        InvalidError: Both variables are set; or what one gives is no key; or `pod.key` is a symbolic link or no file.
        NotFoundError: The file that the environment names does not exist.
        DeniedError: `pod.key` can be read or written by others than its owner; the message says how to mend it.
        DamagedError: `pod.key` does not hold 32 bytes.
    """
    given = [name for name in (POD_KEY_VARIABLE, POD_KEY_FILE_VARIABLE) if name in environ]
    if len(given) > 1:
        raise InvalidError(f"{' and '.join(given)} are both set: only one may say what the Pod key is", variables=given)
    if POD_KEY_VARIABLE in environ:
        return _key_of(environ[POD_KEY_VARIABLE], POD_KEY_VARIABLE)
    if POD_KEY_FILE_VARIABLE in environ:
        path = Path(environ[POD_KEY_FILE_VARIABLE])
        data = disk.read(os.path.realpath(path))  # Kubernetes mounts each entry of a Secret as a link
        if len(data) == KEY_BYTES:
            return data
        return _key_of(data.decode("latin-1").rstrip("\r\n"), f"{POD_KEY_FILE_VARIABLE}={str(path)!r}")
    return _load_or_create(home / POD_KEY_FILE, _read_pod_key, new_key, disk)


def _read_pod_key(path: Path, disk: Disk) -> bytes:
    key = _read_private(path, disk)
    if len(key) != KEY_BYTES:
        raise _damaged(f"key file {str(path)!r}", f"it has {len(key)} bytes, not {KEY_BYTES}")
    return key


def _key_of(text: str, where: str) -> bytes:
    if not _is_key_text(text):
        raise InvalidError(
            f"{where} gives no key: {len(text)} characters that are not 64 hexadecimal digits", source=where
        )
    return bytes.fromhex(text)


# -- what the files have in common ------------------------------------------------------------------------------------


def _load_or_create(path: Path, read: Callable[[Path, Disk], T], make: Callable[[], bytes], disk: Disk) -> T:
    """Read the file, or create it with what ``make`` returns and read that.

    `Disk.create` shows the file whole or not at all, and to one process only: whoever comes second reads the first
    one's. Only absence leads to creating; a file that is damaged or open to others is an error, for replacing it would
    destroy what may be the one copy of a key.
    """
    try:
        return read(path, disk)
    except NotFoundError:
        disk.put_folder(path.parent)
        disk.sweep(path.parent)  # a key that a killed process had half written must not lie about
    with suppress(ConflictError):
        disk.create(path, make(), mode=0o600)
        _log.info("key_file.created", extra={"path": str(path)})
    return read(path, disk)


def _read_private(path: Path, disk: Disk) -> bytes:
    """Return the content of a key file of ours, unless others can read or write it."""
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError) as exc:
        raise translate(exc, path, "read") from exc
    # Windows has no such bits; there the access list of the user's profile guards the file. A link has them all, but
    # means nothing by them: `Disk.read` refuses it, like all that is no plain file.
    if sys.platform != "win32" and stat.S_ISREG(mode) and mode & 0o077:
        shown_mode = f"{stat.S_IMODE(mode):04o}"
        raise DeniedError(
            f"key file {str(path)!r} has mode {shown_mode} and others than its owner can reach it: "
            f"close it with 'chmod 600 {shlex.quote(str(path))}'",
            path=str(path),
            mode=shown_mode,
        )
    return disk.read(path)


def _is_key_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _KEY_TEXT.fullmatch(value) is not None


def _to_json(members: Mapping[str, object]) -> bytes:
    return (json.dumps(members, indent=4) + "\n").encode("ascii")


def _parse(data: bytes, what: str) -> dict[str, object]:
    """Return the members of the flat JSON object in ``data``.

    The error has no cause: a decoder's exception carries the text that it failed on, which may be secret.
    """
    parsed: object = None
    with suppress(ValueError, RecursionError):
        parsed = json.loads(data.decode("ascii"))
    members = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else None
    # Flat in every format, so that whatever was read can be written again, whatever the interpreter's limit is.
    if members is None or any(isinstance(value, dict | list) for value in members.values()):
        raise _damaged(what, "it is no JSON object of texts and numbers")
    return members


def _require_format(members: Mapping[str, object], what: str) -> None:
    found = members.get("format")
    if type(found) is not int or found < 1:
        raise _damaged(what, f"its format is not a number from 1 to {FORMAT}")
    if found > FORMAT:
        raise InvalidError(
            f"{what} has format {shown(found)}; this Holdfast reads formats up to {FORMAT}: install a newer one",
            what=what,
            format=found,
            supported=FORMAT,
        )


def _damaged(what: str, reason: str) -> DamagedError:
    return DamagedError(f"{what} was damaged: {reason}; restore it from a backup", what=what, reason=reason)
