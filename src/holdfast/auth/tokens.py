"""Sealed tokens: what a run presents to its Pod, and what it has a right to there.

Hides how a token is made into text that nobody but the Pod can read, make or change. What a right opens is
`holdfast.auth.permissions`'s matter; whether the run still holds its plugin state, that of the lease in the store.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from holdfast.errors import DeniedError, InvalidError
from holdfast.keys import decrypt, encrypt
from holdfast.runs import Fence
from holdfast.values import Value, shown, type_name

PREFIX: Final = "hft1."
"""What every token begins with; the digit is its format."""

MAX_LENGTH: Final = 7_000
"""Characters of a token: it travels as a header of HTTP, and servers commonly take 8 KiB of one."""

_PURPOSE: Final = "token 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the owner granted a run, beyond its own things.

    Attributes:
        reads: The item types that it may read.
        writes: The item types that it may write; to write is not to read.
        secrets: It is shown the secret properties of what it reads.
    """

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    secrets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The right of one run to its plugin state, and to what its owner granted it; of no use once another has it."""

    owner: str
    state: str
    run: str
    epoch: int
    holder: str
    rights: Rights
    expires_ms: int

    @property
    def fence(self) -> Fence:
        """What every write with this token carries."""
        return Fence(state=self.state, epoch=self.epoch, holder=self.holder)


def rights_of(run: Mapping[str, Value]) -> Rights:
    """Return what the properties of a PluginRun grant: ``{"reads": '["Person"]', "writes": "[]"}``; absent: nothing.

    Raises:
        InvalidError: One of them is no JSON list of item types.
    """
    return Rights(reads=_types(run, "reads"), writes=_types(run, "writes"))


def _types(run: Mapping[str, Value], name: str) -> frozenset[str]:
    text = run.get(name)
    found: object = []
    try:
        found = json.loads(text) if isinstance(text, str) else [] if text is None else text
    except (ValueError, RecursionError):
        found = text
    if not isinstance(found, list) or not all(
        isinstance(each, str) and type_name.fullmatch(each) for each in cast("list[Any]", found)
    ):
        message = f"{name!r} of a run cannot be {shown(text)}: it is a JSON list of item types"
        raise InvalidError(message, property=name)
    return frozenset(cast("list[str]", found))


def seal(token: Token, pod_key: bytes) -> str:
    """Return a token as text: ``hft1.`` and letters, digits, ``-`` and ``_``; each call answers another one.

    Raises:
        InvalidError: It would be longer than `MAX_LENGTH`: the rights name too many types. Or ``pod_key`` is not 32
            bytes long.
    """
    rights = token.rights
    members = {
        **{name: getattr(token, name) for name in ("owner", "state", "run", "epoch", "holder", "expires_ms")},
        "reads": sorted(rights.reads),
        "writes": sorted(rights.writes),
        "secrets": rights.secrets,
    }
    data = json.dumps(members, separators=(",", ":")).encode("ascii")
    text = PREFIX + _encode(encrypt(data, pod_key, purpose=_PURPOSE, owner=""))
    if len(text) > MAX_LENGTH:
        message = f"run {token.run!r} cannot be given a token for {len(rights.reads) + len(rights.writes)} item types"
        raise InvalidError(message + f": it would have {len(text)} characters, and {MAX_LENGTH} are allowed")
    return text


def unseal(text: str, pod_key: bytes, now_ms: int) -> Token:
    """Return the token that `seal` made into ``text`` under the same key; ``now_ms`` is milliseconds since 1970.

    Nothing before the cipher depends on a secret, and the cipher takes the same time whatever is wrong.

    Raises:
        DeniedError: It has expired; or it is not of this key or was altered, in a single bit or letter. The text is
            part of no error.
        InvalidError: ``pod_key`` is not 32 bytes long.
    """
    body = text.removeprefix(PREFIX)
    sealed = _decode(body) if len(text) <= MAX_LENGTH else b""
    data = decrypt(sealed, pod_key, purpose=_PURPOSE, owner="")
    # The last letter may stand for bits that are of no byte: without the comparison several texts were one token.
    if data is None or text != PREFIX + _encode(sealed):
        raise DeniedError("the token does not open here: it is not of this Pod, or it was altered")
    members = cast("dict[str, Any]", json.loads(data))
    reads, writes, secrets = (members.pop(name) for name in ("reads", "writes", "secrets"))
    rights = Rights(reads=frozenset(reads), writes=frozenset(writes), secrets=secrets)
    token = Token(**members, rights=rights)
    if now_ms >= token.expires_ms:
        raise DeniedError(f"the token of run {token.run!r} has expired: start the run again", run=token.run)
    return token


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except ValueError:
        return b""
