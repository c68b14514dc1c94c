"""What an object's ``get_state`` may return, as a JSON skeleton and raw leaves, and back.

A tree is dictionaries with text as keys, lists, tuples, None, booleans, integers, floats, text, bytes, and arrays:
bytearrays, those of `array`, memoryviews, and NumPy's arrays and scalars of plain numbers. Loading gives back what is
equal and of the same type, and runs no code: a skeleton names no class, and what is no part of a tree is refused when
saving, subclasses of these types included.

In the skeleton plain values stand for themselves. What JSON has not is an object with one name that begins with one
``$``; a name of the user's own that begins so gets a second one. Small leaves stand in the skeleton as base64. The
others follow each other in the object's chunks: large ones begin a chunk, so that what changes in one shifts no other.

Pure: no I/O. NumPy is imported only to bring back an array that was NumPy's.
"""

from __future__ import annotations

import array
import base64
import json
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, cast

from holdfast.errors import InvalidError, UnavailableError
from holdfast.snapshots.manifest import CHUNK_BYTES, depth_of, parse_json
from holdfast.values import shown

MAX_DEPTH: Final = 200
"""How deep a tree may be: one that contains itself is deeper."""

_INLINE_BYTES: Final = 4096
_ALL_INLINE_BYTES: Final = 8 * _INLINE_BYTES
_ALIGNED_BYTES: Final = 64
_MAX_JSON_BITS: Final = 64
_MAX_JSON_DEPTH: Final = 2 * MAX_DEPTH + 10
"""A tuple is a list in an object, and an array an object with a list in an object."""
_SINGLE: Final = frozenset("bBhHiIlLqQnNfd?c")
"""The formats of the struct module that a memoryview can be cast to."""


class Encoded(NamedTuple):
    """A tree, taken apart.

    Attributes:
        skeleton: JSON.
        leaves: What is to go into the chunks, each with its first byte; still the memory of whoever owns the tree.
        size: How many bytes of chunks that takes; a whole number of chunks.
    """

    skeleton: bytes
    leaves: list[tuple[int, memoryview]]
    size: int


def encode(tree: object, *, name: str) -> Encoded:
    """Take apart the state of the object ``name``.

    Raises:
        InvalidError: Something in it is no part of a tree; the message says where.
    """
    encoder = _Encoder(name)
    skeleton = encoder.value(tree, ())
    leaves, size = encoder.place()
    return Encoded(json.dumps(skeleton, separators=(",", ":")).encode(), leaves, size)


def decode(skeleton: bytes, chunks: memoryview) -> Any:
    """Return the tree; its arrays lie in ``chunks`` and can be written to.

    Raises:
        ValueError: No tree is written like this.
        UnavailableError: It has an array of NumPy's, and NumPy cannot be imported.
        RecursionError: It was called so deep that Python has no room left for the tree.
    """
    try:
        return _decode(parse_json(skeleton), chunks)
    except RecursionError as exc:
        if depth_of(skeleton) <= _MAX_JSON_DEPTH:
            raise
        raise ValueError("it is too deep") from exc
    except (KeyError, TypeError, OverflowError, AttributeError) as exc:  # what Python says to parts of the wrong type
        raise ValueError(f"it is not written as trees are: {type(exc).__name__}: {exc}") from exc


class _Encoder:
    def __init__(self, name: str) -> None:
        self.name = name
        self.inline = 0
        self.leaves: list[tuple[dict[str, Any], memoryview]] = []

    def value(self, value: object, path: tuple[object, ...]) -> Any:  # noqa: PLR0911 – one line for each type
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            number = cast("int", value)
            return number if number.bit_length() <= _MAX_JSON_BITS else {"$int": hex(number)}
        if kind is float:
            return value if math.isfinite(cast("float", value)) else {"$float": repr(value)}
        if len(path) > MAX_DEPTH:
            raise self.refusal(path[:4], f"is more than {MAX_DEPTH} levels deep, or contains itself")
        if kind is dict or kind is OrderedDict:
            found = self.mapping(cast("dict[object, object]", value), path)
            return found if kind is dict else {"$ordered": found}
        if kind is list or kind is tuple:
            items = [self.value(item, (*path, at)) for at, item in enumerate(cast("Iterable[object]", value))]
            return items if kind is list else {"$tuple": items}
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
            return self.numpy_array(numpy, value, path)
        return self.buffer(value, path)

    def mapping(self, value: Mapping[object, object], path: tuple[object, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in value.items():
            if type(key) is not str:
                raise self.refusal(path, f"has the key {shown(key)}; text is expected")
            found["$" + key if key.startswith("$") else key] = self.value(item, (*path, key))
        return found

    def numpy_array(self, numpy: Any, value: Any, path: tuple[object, ...]) -> dict[str, Any]:
        is_scalar = not isinstance(value, numpy.ndarray)
        given, value = value, numpy.asarray(value)  # an empty text of NumPy's has a type without room, but in an array
        written = _describe(value.dtype)
        # NumPy takes zeros at the end of a text for no part of it, but lets one have them that it has not made itself.
        is_changed = value.dtype.kind in "SU" and is_scalar and len(value[()]) != len(given)
        if written is None or is_changed or not (is_scalar or type(given) in {numpy.ndarray, numpy.memmap}):
            expected = "an array of plain numbers is expected"
            raise self.refusal(path, f"is a {type(given).__name__} of {value.dtype}; {expected}")
        described: dict[str, Any] = {"dtype": written, "shape": value.shape}
        if is_scalar:
            described["scalar"] = True
        if value.flags.f_contiguous and not value.flags.c_contiguous:
            described["order"] = "F"
            value = value.T
        flat = numpy.ascontiguousarray(value).reshape(-1)
        return self.leaf("ndarray", described, memoryview(flat.view("u1")) if value.nbytes else memoryview(b""))

    def buffer(self, value: object, path: tuple[object, ...]) -> dict[str, Any]:
        kind = type(value)
        if kind not in {bytes, bytearray, array.array, memoryview}:
            expected = "plain values, lists, dictionaries and arrays can be stored"
            raise self.refusal(path, f"is {shown(value)}, a {kind.__name__}: {expected}")
        view = memoryview(cast("bytes", value))
        flat = view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())
        if kind in {bytes, bytearray}:
            return self.leaf(kind.__name__, {}, flat)
        if kind is array.array:
            return self.leaf("array", {"code": cast("array.array[Any]", value).typecode}, flat)
        code = view.format.removeprefix("@").removeprefix("<" if sys.byteorder == "little" else ">")
        if code not in _SINGLE:
            raise self.refusal(path, f"is memory of the format {view.format!r}; single numbers are expected")
        if not view.nbytes and view.ndim != 1:  # none can be made
            raise self.refusal(path, f"is memory of the shape {view.shape!r}; one that has something in it is expected")
        return self.leaf("memoryview", {"code": code, "shape": view.shape}, flat)

    def leaf(self, kind: str, described: dict[str, Any], data: memoryview) -> dict[str, Any]:
        found = {f"${kind}": described}
        if len(data) <= _INLINE_BYTES and self.inline + len(data) <= _ALL_INLINE_BYTES:
            self.inline += len(data)
            described["base64"] = base64.b64encode(data).decode()
        else:
            described["size"] = len(data)
            self.leaves.append((described, data))
        return found

    def place(self) -> tuple[list[tuple[int, memoryview]], int]:
        """Give each leaf its place: large ones first, each from the beginning of a chunk, then the small ones."""
        placed: list[tuple[int, memoryview]] = []
        end = 0
        for is_large in (True, False):
            unit = CHUNK_BYTES if is_large else _ALIGNED_BYTES
            end = _up(end, CHUNK_BYTES)
            for described, data in self.leaves:
                if (len(data) >= CHUNK_BYTES) is is_large:
                    end = described["at"] = _up(end, unit)
                    placed.append((end, data))
                    end += len(data)
        return placed, _up(end, CHUNK_BYTES)

    def refusal(self, path: tuple[object, ...], reason: str) -> InvalidError:
        where = "".join(f"[{shown(part)}]" for part in path)
        return InvalidError(f"the state of {self.name!r} cannot be saved: state{where} {reason}", object=self.name)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _decode(value: Any, chunks: memoryview) -> Any:
    if isinstance(value, list):
        return [_decode(item, chunks) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    found = cast("dict[str, Any]", value)
    if len(found) == 1:
        ((name, inner),) = found.items()
        if name.startswith("$") and not name.startswith("$$"):
            return _KINDS[name](inner, chunks)
    return {name.removeprefix("$"): _decode(item, chunks) for name, item in found.items()}


def _leaf(described: Mapping[str, Any], chunks: memoryview) -> memoryview:
    if "base64" in described:
        return memoryview(bytearray(base64.b64decode(described["base64"], validate=True)))
    at, size = described["at"], described["size"]
    if type(at) is not int or type(size) is not int or not 0 <= at <= at + size <= len(chunks):
        raise ValueError(f"a leaf of {shown(size)} bytes at {shown(at)} is not among its {len(chunks)} bytes")
    return chunks[at : at + size]


def _tuple(items: Any, chunks: memoryview) -> tuple[Any, ...]:
    return tuple(_decode(list(items), chunks))


def _ordered(items: Any, chunks: memoryview) -> OrderedDict[str, Any]:
    return OrderedDict((name.removeprefix("$"), _decode(item, chunks)) for name, item in items.items())


def _int(text: Any, _chunks: memoryview) -> int:
    return int(text, 16)


def _float(text: Any, _chunks: memoryview) -> float:
    return float(text)


def _bytes(described: Any, chunks: memoryview) -> bytes:
    return bytes(_leaf(described, chunks))


def _bytearray(described: Any, chunks: memoryview) -> bytearray:
    return bytearray(_leaf(described, chunks))


def _array(described: Any, chunks: memoryview) -> Any:
    found: Any = cast("Any", array.array)(described["code"])
    found.frombytes(_leaf(described, chunks))
    return found


def _memoryview(described: Any, chunks: memoryview) -> Any:
    shape: tuple[int, ...] = tuple(described["shape"])
    data: Any = _leaf(described, chunks)
    # No view of nothing can be cast to a shape.
    return data.cast(described["code"], shape) if math.prod(shape) else data.cast(described["code"])


def _describe(dtype: Any) -> Any:
    """Return the JSON that `_dtype` makes this type of NumPy's of; None if it is another one, or has objects in it."""
    numpy = sys.modules["numpy"]
    try:
        written = dtype.str if dtype.names is None else json.loads(json.dumps(dtype.descr))
        is_same = not dtype.hasobject and dtype.type is not numpy.record and _dtype(numpy, written) == dtype
    except (ValueError, TypeError):  # it has fields that overlap, or that have two names
        return None
    return written if is_same else None


def _dtype(numpy: Any, written: Any) -> Any:
    return numpy.lib.format.descr_to_dtype(written) if isinstance(written, list) else numpy.dtype(written)


def _ndarray(described: Any, chunks: memoryview) -> Any:
    try:
        import numpy as np  # only now: whoever has no arrays of NumPy's needs no NumPy
    except ImportError as exc:
        raise UnavailableError("this state has arrays of NumPy's, and there is no NumPy: install it") from exc
    shape, data = tuple(described["shape"]), _leaf(described, chunks)
    dtype = _dtype(np, described["dtype"])
    if dtype.hasobject or any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes are no array of the shape {shown(shape)} of {dtype}")
    order = "F" if described.get("order") == "F" else "C"
    # Not frombuffer, which takes no memory of length 0.
    found = np.ndarray(shape, dtype, buffer=data or bytearray(dtype.itemsize), order=order)
    return found[()].copy() if described.get("scalar") else found


_KINDS: Final[Mapping[str, Callable[[Any, memoryview], Any]]] = {
    "$tuple": _tuple,
    "$ordered": _ordered,
    "$int": _int,
    "$float": _float,
    "$bytes": _bytes,
    "$bytearray": _bytearray,
    "$array": _array,
    "$memoryview": _memoryview,
    "$ndarray": _ndarray,
}
