"""The SQLite door keeps the contract, and so does the same door behind the JSON form of batches."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.sql import SqliteStore
from holdfast.sql.migration import migrations
from holdfast.store import KEY_KEPT_MS, Batch, CreateItem, IncrementVariable, Store, Written
from holdfast.testing import FakeClock, JsonStore, StoreContract, StoreMachine


class TestSqlite(StoreContract):
    """A file passes the whole contract."""

    @pytest.fixture
    def store(self, tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
        """Return an empty file."""
        with SqliteStore(tmp_path / "pod.db", secrets.token_bytes(32), clock=clock) as store:
            yield store


class TestSqliteThroughJson(StoreContract):
    """A file behind the JSON form of batches passes the whole contract."""

    @pytest.fixture
    def store(self, tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
        """Return an empty file behind JSON."""
        with SqliteStore(tmp_path / "pod.db", secrets.token_bytes(32), clock=clock) as store:
            yield JsonStore(store)


class SqliteMachine(StoreMachine):
    """Any history, in a file."""

    def open_store(self, clock: FakeClock) -> Store:
        """Return an empty file."""
        self.folder = tempfile.mkdtemp()
        return SqliteStore(Path(self.folder) / "pod.db", secrets.token_bytes(32), clock=clock)

    def teardown(self) -> None:
        """Close and remove the file."""
        super().teardown()
        shutil.rmtree(self.folder)


TestSqliteMachine = SqliteMachine.TestCase


# -- keys of batches in a file ----------------------------------------------------------------------------------------

KEY = bytes(32)
COUNTED = Batch((IncrementVariable("s", "n"), CreateItem("a", "Person")), None, "k")


def structure(path: Path) -> list[object]:
    """Return the definitions in a file."""
    with SqliteStore(path, KEY) as store, store._reading() as db:
        return list(db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2"))


def test_a_batch_is_answered_again_after_the_file_was_opened_anew(tmp_path: Path) -> None:
    """Who lost the answer of a process that died asks the next one, and through whichever form."""
    clock = FakeClock(5)
    with SqliteStore(tmp_path / "pod.db", KEY, clock=clock) as store:
        assert store.apply(COUNTED) == (1, Written("a", 1, 5))
    clock.advance(1)
    with SqliteStore(tmp_path / "pod.db", KEY, clock=clock) as store:
        assert JsonStore(store).apply(COUNTED) == (1, Written("a", 1, 5))
        assert store.apply_all([COUNTED, COUNTED]) == [(1, Written("a", 1, 5))] * 2
        assert store.list_variables("s") == {"n": 1}


def test_what_was_answered_is_kept_as_the_documented_json(tmp_path: Path) -> None:
    """A later version reads what this one wrote."""
    with SqliteStore(tmp_path / "pod.db", KEY, clock=FakeClock(5)) as store:
        store.apply(COUNTED)
        with store._reading() as db:
            assert list(db.execute("SELECT * FROM applied")) == [("k", COUNTED.digest(), '[1,["a",1,5]]', 5)]


def test_keys_that_nobody_asks_for_any_more_go_a_few_with_each_that_comes(tmp_path: Path) -> None:
    """The oldest first, eight at a time: they become fewer, and no write pays for all; one without a key for none."""
    clock = FakeClock()

    def keys(store: SqliteStore) -> list[str]:
        with store._reading() as db:
            return [key for (key,) in db.execute("SELECT key FROM applied ORDER BY at")]

    with SqliteStore(tmp_path / "pod.db", KEY, clock=clock) as store:
        store.apply_all([Batch((), None, f"old{number}") for number in range(20)])
        clock.advance(KEY_KEPT_MS)
        store.apply(Batch((IncrementVariable("s", "n"),)))
        assert len(keys(store)) == 20
        for number, left in enumerate([12, 4, 0, 0]):
            store.apply(Batch((), None, f"new{number}"))
            assert [len([key for key in keys(store) if key.startswith(word)]) for word in ("old", "new")] == [
                left,
                number + 1,
            ]


def test_a_file_of_format_1_is_migrated_and_is_then_like_a_fresh_one(tmp_path: Path) -> None:
    """With what it held; from then on it knows which batches were applied."""
    (tmp_path / "old").mkdir()
    with SqliteStore(tmp_path / "old" / "pod.db", KEY, steps={1: migrations()[1]}) as store:
        store.apply(Batch((IncrementVariable("s", "n"), CreateItem("a", "Person"))))
    with SqliteStore(tmp_path / "old" / "pod.db", KEY, clock=FakeClock(5)) as store:
        assert store.find_items(["a"]).keys() == {"a"}
        batch = Batch((IncrementVariable("s", "n"),), None, "k")
        assert store.apply(batch) == store.apply(batch) == (2,)
    assert structure(tmp_path / "old" / "pod.db") == structure(tmp_path / "fresh.db")
    assert (tmp_path / "old" / "pod.db.format-1").exists()
