"""The SQLite door keeps the contract, and so does the same door behind the JSON form of batches."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.sql import SqliteStore
from holdfast.store import Store
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
