"""What a property or a variable may hold, and its JSON form.

A value is text, a 64-bit integer, a finite float or a boolean; a property may also be an instant, which travels as
whole milliseconds since 1970 (UTC). Every store holds exactly these, so what is accepted here is read back equal
everywhere: a database that cannot keep NUL, NaN or a lone surrogate never meets one. No I/O and no state.
"""

from __future__ import annotations

import math
import re
import reprlib
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from holdfast.errors import InvalidError

type_name = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
"""Names of item types, properties and edges: they become part of SQL, of paths and of URLs."""

item_id = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Ids of items. Holdfast's own are 32 hexadecimal digits; clients may bring theirs."""

MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**63 - 1
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MIN_MS: Final = -62_135_596_800_000
"""The first instant that `datetime` holds, 0001-01-01; MAX_MS is the last millisecond of 9999."""
MAX_MS: Final = 253_402_300_799_999

Value = str | int | float | bool
"""What a store holds."""


class Kind(StrEnum):
    """What one property holds; the words are those of the Pod's API."""

    TEXT = "Text"
    INTEGER = "Integer"
    REAL = "Real"
    BOOL = "Bool"
    DATETIME = "DateTime"


class _Short(reprlib.Repr):
    """The beginning of what a value holds, at every level: never the repr of a gigabyte."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.fillvalue = "…"

    def repr_str(self, x: str, level: int) -> str:  # noqa: ARG002 -- reprlib's signature, here and below
        return repr(x) if len(x) <= 200 else f"{x[:48]!r}… ({len(x)} characters)"

    def repr_bytes(self, x: bytes | bytearray, level: int) -> str:  # noqa: ARG002
        return repr(x) if len(x) <= 60 else f"{x[:48]!r}… ({len(x)} bytes)"

    repr_bytearray = repr_bytes

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002
        # int -> str is quadratic and refused past 4,300 digits
        return repr(x) if x.bit_length() <= 256 else f"an integer of {x.bit_length()} bits"

    def repr_instance(self, x: object, level: int) -> str:  # noqa: ARG002
        for kind, show in ((str, self.repr_str), (bytes, self.repr_bytes), (bytearray, self.repr_bytes)):
            if isinstance(x, kind):  # a subclass of it
                return show(x, 0)  # pyright: ignore[reportArgumentType] -- it is of that kind
        return repr(x)


_short: Final = _Short()


def shown(value: object) -> str:
    """Return ``repr(value)`` short enough for an error message, and printable whatever it holds.

    Never raises: what cannot be shown is shown as its type, ``<Dog>``.

    >>> shown("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… (102 characters)"
    >>> shown([1, 2, 3, 4, 5, 6, 7])
    '[1, 2, 3, 4, 5, 6, …]'
    """
    try:
        text = _short.repr(value)
    except Exception:  # noqa: BLE001 -- a repr is anybody's code, and an error message must not fail on it
        text = f"<{type(value).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:50]}… ({len(text)} characters)"


def check(value: object, what: str) -> None:
    """Accept ``value`` as one that every store holds.

    Args:
        value: Any object.
        what: What it was meant for, as in "property 'age' of Dog"; the message begins with it.

    Raises:
        InvalidError: It is not text, integer, float or boolean; or an integer beyond 64 bits; or NaN or infinite;
            or text with NUL or a lone surrogate.

    >>> check(float("nan"), "variable 'x'")
    Traceback (most recent call last):
    holdfast.errors.InvalidError: variable 'x' cannot be nan: a float must be finite
    """
    reason = refusal(value)
    if reason is not None:
        message = f"{what} cannot be {shown(value)}: {reason}"
        raise InvalidError(message, value=shown(value))


def refusal(value: object) -> str | None:
    """Return why no store can hold ``value``, or None if every store can."""
    if isinstance(value, str):
        return _text_refusal(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if MIN_INTEGER <= value <= MAX_INTEGER else "an integer must fit in 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else "a float must be finite"
    return f"it is {type(value).__name__}, not text, integer, float or boolean"


def _text_refusal(text: str) -> str | None:
    if "\0" in text:
        return "text must not hold NUL"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            return f"text must not hold a lone surrogate (at character {exc.start})"
    return None


def to_ms(instant: datetime, what: str) -> int:
    """Return milliseconds since 1970 (UTC), rounded down.

    Raises:
        InvalidError: ``instant`` has no time zone.
    """
    if instant.tzinfo is None or instant.utcoffset() is None:
        message = f"{what} cannot be {instant!r}: a datetime needs a time zone (datetime.now(UTC), say)"
        raise InvalidError(message, value=repr(instant))
    return (instant - EPOCH) // timedelta(milliseconds=1)


def from_ms(ms: int) -> datetime:
    """Return the aware UTC datetime of ``ms`` milliseconds since 1970.

    Raises:
        InvalidError: Outside the years 1 to 9999.
    """
    if not MIN_MS <= ms <= MAX_MS:
        message = f"{shown(ms)} is not a date: milliseconds since 1970 must lie in the years 1 to 9999"
        raise InvalidError(message, value=shown(ms))
    return EPOCH + timedelta(milliseconds=ms)


_NATIVE: Final = {Kind.TEXT: str, Kind.INTEGER: int, Kind.REAL: float, Kind.BOOL: bool, Kind.DATETIME: int}


_TEXT, _INTEGER, _REAL, _BOOL = Kind.TEXT, Kind.INTEGER, Kind.REAL, Kind.BOOL


def is_plain(kind: Kind, value: Any) -> bool:
    """Say quickly whether `fit` would return ``value`` as it is; False means: ask `fit`.

    Compares and looks nothing up: this runs for every value of a bulk write, and the hash of an Enum is slow.
    """
    cls = value.__class__
    if cls is str:
        return kind is _TEXT and value.isascii() and "\0" not in value
    if cls is int:
        return kind is _INTEGER and MIN_INTEGER <= value <= MAX_INTEGER
    if cls is float:
        return kind is _REAL and math.isfinite(value)
    return cls is bool and kind is _BOOL


def fit(kind: Kind, value: object, what: str) -> Value:
    """Return ``value`` as a property of ``kind`` stores it.

    An integer becomes a float where the kind is Real (JSON writers drop the ``.0``); nothing else is converted.

    Raises:
        InvalidError: It is of another kind, or no store can hold it (see `check`).
    """
    native = _NATIVE[kind]
    if type(value) is not native:
        if native is float and type(value) is int and -(2**53) <= value <= 2**53:
            return float(value)
        message = f"{what} cannot be {shown(value)}: it is declared {kind}"
        raise InvalidError(message, value=shown(value), declared=str(kind))
    check(value, what)
    if kind is Kind.DATETIME:
        from_ms(value)  # pyright: ignore[reportArgumentType] -- _NATIVE says int
    return value
