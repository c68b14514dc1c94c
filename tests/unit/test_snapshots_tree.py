"""What an object's state may be made of, and that it comes back equal."""

import array
import ctypes
import json
import math
import mmap
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidError
from holdfast.snapshots.tree import decode, encode


def back(tree: object) -> Any:
    """Take a tree apart and put it together again."""
    encoded = encode(tree, name="it")
    chunks = bytearray(b"\xaa" * encoded.size)  # gaps hold anything
    for at, data in encoded.leaves:
        chunks[at : at + len(data)] = data
    return decode(encoded.skeleton, memoryview(chunks))


def same(one: Any, other: Any) -> bool:  # noqa: PLR0911 – one line for each type
    """Say whether two trees are equal, types and all."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and one.dtype.names is not None:  # what lies between fields is nobody's
        is_like = one.dtype == other.dtype and one.shape == other.shape
        return is_like and all(same(one[name], other[name]) for name in one.dtype.names)
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, memoryview):
        return (one.format, one.shape, one.tobytes()) == (other.format, other.shape, other.tobytes())
    return bool(one == other)


plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.binary().map(bytearray)
)
arrays = st.one_of(
    st.lists(st.floats(width=32), max_size=20).map(lambda found: np.array(found, "f4")),
    st.lists(st.integers(0, 255), min_size=12, max_size=12).map(lambda found: np.array(found, "u1").reshape(3, 4).T),
    st.lists(st.integers(-100, 100), max_size=9).map(lambda found: array.array("i", found)),
    st.integers(-100, 100).map(np.int64),
    st.sampled_from([np.zeros((0, 3)), np.arange(99_999, dtype="i8"), np.array(3.5), np.array(["a", "bc"])]),
)
names = st.one_of(st.text(), st.sampled_from(["$tuple", "$", "$$x", "$ndarray"]))
trees = st.recursive(
    st.one_of(plain, arrays),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(names, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(trees)
def test_a_tree_comes_back_equal_and_of_the_same_types(tree: object) -> None:
    """Whatever it is made of, however its names look."""
    assert same(tree, back(tree))


@pytest.mark.parametrize(
    "fields",
    [
        [("a", "<i4"), ("b", ">f8", (2, 3)), ("s", "S5")],
        [("inner", [("x", "f4"), ("y", "M8[ns]")]), ("é", "i1")],
        np.dtype([("a", "i1"), ("padded", "f8")], align=True),
    ],
    ids=["flat", "nested", "padded"],
)
def test_arrays_with_named_fields_come_back(fields: Any) -> None:
    """And one element of one."""
    found = np.zeros((10, 10), fields)
    found.view("u1").reshape(100, -1)[:, 0] = np.arange(100)  # the first byte of the first field
    assert same([found, found.T], back([found, found.T]))
    one = back(found[1, 2])
    assert (type(one), one.dtype, one) == (np.void, found.dtype, found[1, 2])  # what lies between fields is nobody's


@pytest.mark.parametrize(
    "value",
    [
        10**5000,
        -(2**64),
        math.nan,
        -math.inf,
        -0.0,
        "\ud800",
        b"x" * 70_000,
        OrderedDict(b=1, a=OrderedDict()),
        memoryview(array.array("d", [1.0, 2.0])),
        memoryview(b"abcdef").cast("B", (2, 3)),
        memoryview(b""),
        np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
        np.arange(60_000.0).reshape(200, 300)[::-2, ::3],
        np.array(["2020-02-29", "NaT"], "M8[D]"),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.float16(1.5),
        np.bool_(1),
        np.str_(""),
        np.bytes_(b""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_rare_comes_back_as_well(value: object) -> None:
    """Large numbers, no numbers, memory of any shape and order, dates."""
    assert same({"it": value}, back({"it": value}))


def test_arrays_that_come_back_can_be_written_to() -> None:
    """Small ones and large ones, as those that were saved."""
    tree = back({"small": np.zeros(3), "large": np.zeros(99_999), "view": memoryview(bytearray(9))})
    tree["small"][0] = tree["large"][0] = 1.0
    tree["view"][0] = 1
    assert (tree["small"][0], tree["large"][0], tree["view"][0]) == (1.0, 1.0, 1)


class MoreBytes(bytes):
    """Bytes, and something else."""


class MoreBytearray(bytearray):
    """A bytearray, and something else."""


class MoreArray(array.array):  # type: ignore[type-arg]
    """An array, and something else."""


class Strange:
    """Nothing that could be stored."""

    def __repr__(self) -> str:
        return "Strange()"


def contains_itself() -> object:
    """Return a list that does."""
    found: list[object] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a": [Strange()]}, r"state\['a'\]\[0\] is Strange\(\), a Strange"),
        ({"a": {1: 2}}, r"state\['a'\] has the key 1; text is expected"),
        ({"a": np.array([Strange()])}, r"state\['a'\] is a ndarray of object"),
        (np.ma.masked_array([1], [True]), "state is a MaskedArray"),
        (np.zeros(3, [("a", "i4"), ("b", "O")]), "state is a ndarray of .*; an array of plain numbers is expected"),
        (np.zeros(3, np.dtype((np.record, [("a", "i4")]))), "state is a ndarray of .*record"),
        (np.zeros(3, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]}), "state is a ndarray of"),
        (np.zeros(3, [(("title", "a"), "i4")]), "state is a ndarray of"),
        ({"a": {1, 2}}, r"state\['a'\] is \{1, 2\}, a set"),
        ([MoreBytes(b"x")], r"state\[0\] is b'x', a MoreBytes"),
        ([MoreBytearray(b"x")], r"state\[0\] is .*, a MoreBytearray"),
        ([MoreArray("d")], r"state\[0\] is .*, a MoreArray"),
        ([(ctypes.c_int * 3)(1, 2, 3)], r"state\[0\] is .*, a c_int_Array_3"),
        ([mmap.mmap(-1, 10)], r"state\[0\] is .*, a mmap"),
        ([np.str_("a\0")], r"state\[0\] is a str_ of <U2"),
        ([np.bytes_(b"a\0")], r"state\[0\] is a bytes_ of \|S2"),
        ([memoryview(np.zeros(3, "f2"))], r"state\[0\] is memory of the format 'e'; single numbers are expected"),
        ([memoryview(np.zeros((0, 3)))], r"state\[0\] is memory of the shape \(0, 3\)"),
        (contains_itself(), "is more than 200 levels deep, or contains itself"),
    ],
    ids=[
        "object",
        "key",
        "objects",
        "masked",
        "fields of objects",
        "records",
        "overlapping",
        "titles",
        "set",
        "bytes",
        "bytearray",
        "array",
        "ctypes",
        "mmap",
        "text",
        "zeros",
        "half",
        "empty",
        "cycle",
    ],
)
def test_what_is_no_part_of_a_tree_is_refused_and_its_place_named(tree: object, message: str) -> None:
    """So that nothing is saved that would come back as something else, or run code."""
    with pytest.raises(InvalidError, match=message):
        encode(tree, name="it")


def test_the_skeleton_is_json_that_a_person_can_read() -> None:
    """Plain values stand for themselves; a leaf says what it is and where."""
    encoded = encode({"n": 1, "t": (1, None), "$x": "y", "w": np.zeros(20_000, "f4")}, name="it")
    assert json.loads(encoded.skeleton) == {
        "n": 1,
        "t": {"$tuple": [1, None]},
        "$$x": "y",
        "w": {"$ndarray": {"dtype": "<f4", "shape": [20000], "size": 80000, "at": 0}},
    }
    assert encoded.size == 131_072


def test_large_leaves_begin_a_chunk_and_small_ones_share_them() -> None:
    """So that a change of one shifts no other, and a thousand small ones need no thousand chunks."""
    small, large = b"s" * 5000, b"l" * 65_537
    encoded = encode({"a": small, "b": large, "c": small, "d": large}, name="it")
    assert [(at, len(data)) for at, data in encoded.leaves] == [
        (0, 65_537),
        (131_072, 65_537),
        (262_144, 5000),
        (267_200, 5000),
    ]
    assert encoded.size == 327_680


@pytest.mark.parametrize(
    "skeleton",
    [
        b"",
        b"{",
        b"NaN",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a": 1, "a": 2}',
        b'{"$unknown": 1}',
        b'{"$tuple": 1}',
        b'{"$int": [1]}',
        b'{"$bytes": {"base64": "?"}}',
        b'{"$bytes": {"at": 0, "size": 65537}}',
        b'{"$bytes": {"at": -1, "size": 2}}',
        b'{"$bytes": {"at": 1e400, "size": 2}}',
        b'{"$bytes": {"at": 9223372036854775807, "size": 9223372036854775807}}',
        b'{"$bytes": []}',
        b'{"$memoryview": {"at": 0, "size": 8, "code": "O", "shape": [1]}}',
        b'{"$memoryview": {"at": 0, "size": 8, "code": "d", "shape": [2]}}',
        b'{"$array": {"at": 0, "size": 8, "code": "?"}}',
        b'{"$ndarray": {"at": 0, "size": 8, "dtype": "O", "shape": [1]}}',
        b'{"$ndarray": {"at": 0, "size": 8, "dtype": [["a", "O"]], "shape": [1]}}',
        b'{"$ndarray": {"at": 0, "size": 8, "dtype": [["a"]], "shape": [1]}}',
        b'{"$ndarray": {"at": 0, "size": 8, "dtype": "f8", "shape": [2]}}',
        b'{"$ndarray": {"at": 0, "size": 8, "dtype": "f8", "shape": [-1]}}',
        b'{"$ndarray": {"at": 0, "size": 8, "dtype": "f8", "shape": [4611686018427387904, 4]}}',
        b'{"$ndarray": {"at": 0, "size": 8, "dtype": {"names": []}, "shape": [1]}}',
        b'{"$ndarray": {"at": 0, "size": 8, "dtype": "f8", "shape": "1"}}',
        b'{"$ndarray": {"at": 0, "size": 8, "dtype": "nonsense", "shape": [1]}}',
    ],
)
def test_a_hostile_skeleton_is_refused_as_a_value(skeleton: bytes) -> None:
    """One kind of error, no code run, no memory beyond what is stored."""
    with pytest.raises(ValueError, match=r"\w"):
        decode(skeleton, memoryview(bytearray(65_536)))
