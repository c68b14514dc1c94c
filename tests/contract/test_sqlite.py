"""The SQLite door keeps the contract, and so does the same door behind the JSON form of batches."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from holdfast.sql import SqliteStore, back_up
from holdfast.sql.migration import migrations
from holdfast.store import (
    KEY_KEPT_MS,
    AppendLog,
    Batch,
    CreateItem,
    ExpireLogs,
    IncrementVariable,
    Store,
    Written,
)
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


@pytest.mark.parametrize("format_", [1, 2])
def test_a_file_of_an_older_format_is_migrated_and_is_then_like_a_fresh_one(tmp_path: Path, format_: int) -> None:
    """With what it held; from then on it knows which batches were applied, and keeps logs."""
    (tmp_path / "old").mkdir()
    steps = {number: step for number, step in migrations().items() if number <= format_}
    with SqliteStore(tmp_path / "old" / "pod.db", KEY, steps=steps) as store:
        store.apply(Batch((IncrementVariable("s", "n"), CreateItem("a", "Person"), CreateItem("r", "PluginRun"))))
    with SqliteStore(tmp_path / "old" / "pod.db", KEY, clock=FakeClock(5)) as store:
        assert store.find_items(["a"]).keys() == {"a"}
        batch = Batch((IncrementVariable("s", "n"),), None, "k")
        assert store.apply(batch) == store.apply(batch) == (2,)
        store.apply(Batch((AppendLog("r", "l", "", "1", "x"),)))
        assert [part.text for part in store.list_log("r")] == ["x"]
    assert structure(tmp_path / "old" / "pod.db") == structure(tmp_path / "fresh.db")
    assert (tmp_path / "old" / f"pod.db.format-{format_}").exists()


# -- logs in a file ---------------------------------------------------------------------------------------------------


def test_a_log_and_how_far_it_goes_are_there_when_the_file_is_opened_anew_and_in_a_backup(tmp_path: Path) -> None:
    """Who ships it may have died, or the machine: what comes after is appended wherever the Pod is opened."""
    clock = FakeClock(5)
    with SqliteStore(tmp_path / "pod.db", KEY, clock=clock) as store:
        store.apply(Batch((CreateItem("r", "PluginRun"), AppendLog("r", "l", "", "1", "a"))))
    back_up(tmp_path / "pod.db", KEY, tmp_path / "backup")
    for folder in (tmp_path, tmp_path / "backup"):
        with SqliteStore(folder / "pod.db", KEY, clock=clock) as store:
            assert store.find_log_end("r", "l") == "1"
            store.apply(Batch((AppendLog("r", "l", "", "1", "a"), AppendLog("r", "l", "1", "2", "b"))))
            assert [(part.number, part.at_ms, part.text) for part in store.list_log("r")] == [(1, 5, "a"), (2, 5, "b")]


def test_what_is_done_to_a_log_does_not_depend_on_how_long_it_is(tmp_path: Path) -> None:
    """The database takes no more steps to append, to let the oldest go, and to read what is new, than at first."""
    text = "x" * 8_000
    with SqliteStore(tmp_path / "pod.db", KEY, clock=FakeClock(5)) as store:

        def ship(start: int, stop: int, *more: ExpireLogs) -> None:
            parts = [AppendLog("r", "l", str(at or ""), str(at + 1), text) for at in range(start, stop)]
            store.apply(Batch((*parts, *more)))

        def ship_others(start: int, stop: int) -> None:
            store.apply(Batch(tuple(AppendLog("q", f"l{at}", "", "1", "x") for at in range(start, stop))))

        def steps(at: int, number: int) -> int:
            """Append one part, expire none, and read that part, by its number; return in how many steps."""
            taken = list[int]()
            used = [each for each in (store._writer, *store._readers) if each is not None]
            for connection in used:
                connection.trace_v2(
                    apsw.SQLITE_TRACE_PROFILE,
                    lambda event: taken.append(event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]),
                )
            ship(at, at + 1, ExpireLogs(5))
            assert store.find_log_end("r", "l") == str(at + 1)
            assert [part.end for part in store.list_log("r", number - 1)] == [str(at + 1)]
            assert used == [store._writer, *store._readers]
            for connection in used:
                connection.trace_v2(0)
            return sum(taken)

        store.apply(Batch((CreateItem("r", "PluginRun"), CreateItem("q", "PluginRun"))))
        ship(0, 2)
        assert [part.number for part in store.list_log("r")] == [1, 2]
        short = steps(2, 3)
        ship_others(0, 1_000)
        ship(3, 3_000)
        ship_others(1_000, 1_500)
        assert store.list_log("r")[0].number > 900  # so each that comes lets one go
        assert steps(3_000, 4_501) < short + 50
