"""Seed 002, state persistence: every name, signature, error and rule that it states."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from holdfast.snapshots.conditions import PeriodicSaveCondition
from holdfast.snapshots.keepers import LatestStatesKeeper, StatesKeeper
from holdfast.snapshots.saving import PersistentStateMixin, StateStore


class Counter(PersistentStateMixin):
    """An object as the seed's users write them."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def save_state(self, path: Path) -> None:
        """Write a file of its own, with a suffix."""
        path.with_suffix(".txt").write_text(str(self.count))

    def load_state(self, path: Path) -> None:
        """Read it."""
        self.count = int(path.with_suffix(".txt").read_text())


class Tree(PersistentStateMixin):
    """An object that writes a folder."""

    def __init__(self) -> None:
        self.leaves = {"a": "1", "b": "2"}

    def save_state(self, path: Path) -> None:
        """Write a file for each leaf."""
        path.mkdir()
        for name, text in self.leaves.items():
            (path / name).write_text(text)

    def load_state(self, path: Path) -> None:
        """Read them."""
        self.leaves = {file.name: file.read_text() for file in sorted(path.iterdir())}


def test_what_is_saved_is_restored_from_the_directory_that_was_returned(tmp_path: Path) -> None:
    """Several objects at once, into a subdirectory that has the default name, a time."""
    counter, tree = Counter(3), Tree()
    store = StateStore(tmp_path / "states")
    store.register("counter", counter)
    store.register("tree", tree)
    path = store.save_state()
    assert path.parent == tmp_path / "states"
    assert path.name.endswith(".state")
    assert (path / "counter.txt").read_text() == "3"
    assert (path / "tree" / "b").read_text() == "2"
    counter.count, tree.leaves = 0, {}
    store.load_state(path)
    assert (counter.count, tree.leaves) == (3, {"a": "1", "b": "2"})


def test_a_mixin_must_implement_both(tmp_path: Path) -> None:
    """It cannot be made without."""

    class Half(PersistentStateMixin):
        def save_state(self, path: Path) -> None:
            """Do nothing."""

    with pytest.raises(TypeError, match="load_state"):
        Half()  # pyright: ignore[reportAbstractUsage]


def test_a_name_is_registered_once(tmp_path: Path) -> None:
    """KeyError for the second."""
    store = StateStore(str(tmp_path))
    store.register("a", Counter())
    with pytest.raises(KeyError, match="'a' is registered already"):
        store.register("a", Counter())


def test_saving_to_a_directory_that_exists_is_an_error(tmp_path: Path) -> None:
    """FileExistsError, and it is as it was."""
    store = StateStore(tmp_path, "always-the-same")
    store.register("a", Counter(1))
    (tmp_path / "always-the-same").mkdir()
    with pytest.raises(FileExistsError, match="always-the-same"):
        store.save_state()
    assert [path.name for path in tmp_path.iterdir()] == ["always-the-same"]
    assert list((tmp_path / "always-the-same").iterdir()) == []


def test_loading_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    """FileNotFoundError."""
    store = StateStore(tmp_path)
    store.register("a", Counter())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        store.load_state(tmp_path / "nowhere")


def test_a_periodic_condition_is_due_when_its_interval_has_elapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per interval."""
    now = [100.0]
    condition = PeriodicSaveCondition(60.0, clock=lambda: now[0])
    found: list[bool] = []
    for now[0] in (100.0, 159.0, 160.0, 161.0, 219.0, 220.0):
        found.append(condition())
    assert found == [False, False, True, False, False, True]


def test_the_latest_are_kept_and_older_ones_removed(tmp_path: Path) -> None:
    """By modification time; what went is returned."""
    store = StateStore(tmp_path, "%H-%M-%S,%f.state")
    store.register("a", Counter())
    keeper = LatestStatesKeeper(tmp_path, 2)
    paths = [store.save_state() for _ in range(4)]
    for path in paths:
        keeper.append(path)
    assert sorted(keeper.select_removal_states()) == paths[:2]
    assert sorted(keeper.cleanup()) == paths[:2]
    assert sorted(tmp_path.glob("*.state")) == paths[2:]


def test_a_keeper_of_ones_own_selects_and_the_base_class_removes(tmp_path: Path) -> None:
    """`StatesKeeper` is abstract, and has a logger."""

    class Odd(StatesKeeper):
        def __init__(self) -> None:
            super().__init__()
            self.known: list[Path] = []

        def append(self, path: Path) -> None:
            super().append(path)
            self.known.append(path)

        def select_removal_states(self) -> Iterable[Path]:
            self.logger.info("selecting")
            return self.known[::2]

    with pytest.raises(TypeError, match="select_removal_states"):
        StatesKeeper()  # pyright: ignore[reportAbstractUsage]
    store = StateStore(tmp_path)
    store.register("a", Counter())
    keeper = Odd()
    paths = [store.save_state() for _ in range(4)]
    for path in paths:
        keeper.append(path)
    assert sorted(keeper.cleanup()) == [paths[0], paths[2]]
