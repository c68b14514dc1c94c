"""What is read back: any state, whatever else was removed meanwhile."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.snapshots.reading import verify
from holdfast.snapshots.saving import PersistentStateMixin, StateStore

NAMES = ("a", "b", "c")


class Held:
    """An object of the new protocol that holds one tree."""

    tree: Any = None

    def get_state(self) -> Any:
        """Return it."""
        return self.tree

    def set_state(self, tree: Any) -> None:
        """Take it."""
        self.tree = tree


class Written(PersistentStateMixin):
    """An object of the old protocol: a file for each name, in folders if the name has a slash."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def save_state(self, path: Path) -> None:
        """Write them."""
        path.mkdir()
        for name, data in self.files.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(data)

    def load_state(self, path: Path) -> None:
        """Read them."""
        found = (file for file in path.rglob("*") if file.is_file())
        self.files = {str(file.relative_to(path)): file.read_bytes() for file in found}


arrays = st.builds(
    np.full,
    st.sampled_from((0, 1, 100, 20_000, 150_000)),
    st.integers(0, 100),
    st.sampled_from(("u1", "f4", ">i2")),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), arrays)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)
files = st.dictionaries(st.sampled_from(("x", "y", "in/z")), st.binary(max_size=9), max_size=3)
states = st.tuples(st.fixed_dictionaries(dict.fromkeys(NAMES, trees)), files)


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal and of the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@settings(max_examples=25)
@given(data=st.data(), saved=st.lists(st.tuples(states, st.booleans()), min_size=1, max_size=6))
def test_any_states_of_several_objects_come_back_whichever_snapshots_are_gone(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    saved: Sequence[tuple[tuple[dict[str, Any], dict[str, bytes]], bool]],
) -> None:
    """Nested, of both protocols; after any of them a new store may begin, and any of them be removed at any time."""
    folder = tmp_path_factory.mktemp("states")
    expected: dict[Path, tuple[dict[str, Any], dict[str, bytes]]] = {}

    def begin() -> tuple[StateStore, dict[str, Held], Written]:
        store, held, written = StateStore(folder), {name: Held() for name in NAMES}, Written()
        for name, each in held.items():
            store.register(name, each)
        store.register("written", written)
        return store, held, written

    store, held, written = begin()
    for (of_trees, of_files), is_new in saved:
        if is_new:
            store.close()
            store, held, written = begin()
            assert store.load_latest() == (max(expected) if expected else None)
        for name, tree in of_trees.items():
            held[name].tree = tree
        written.files = of_files
        expected[store.save_state()] = of_trees, of_files
        for gone in data.draw(st.sets(st.sampled_from(sorted(expected)))):
            shutil.rmtree(gone)
            del expected[gone]
    store.close()
    for path, (of_trees, of_files) in expected.items():
        assert verify(path) == []
        store, held, written = begin()
        store.load_state(path)
        assert all(same(held[name].tree, of_trees[name]) for name in NAMES)
        assert written.files == of_files
