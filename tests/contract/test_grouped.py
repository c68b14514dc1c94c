"""Writes that are committed in groups keep the contract, each of them beside two others."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from holdfast.errors import HoldfastError
from holdfast.sql import SqliteStore
from holdfast.sql.grouping import GroupedStore
from holdfast.store import Batch, IncrementVariable, Result, Store
from holdfast.testing import FakeClock, StoreContract, StoreMachine

NEIGHBOUR = Batch((IncrementVariable("neighbour", "n"),))


class Crowded(SqliteStore):
    """A file in which no batch is ever alone in its transaction."""

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Apply a batch between two neighbours, who are always told that they did well."""
        before, answer, after = self.apply_all([NEIGHBOUR, batch, NEIGHBOUR])
        assert not isinstance(before, HoldfastError)
        assert not isinstance(after, HoldfastError)
        if isinstance(answer, HoldfastError):
            raise answer
        return answer


def open_grouped(path: Path, clock: FakeClock) -> Store:
    """Open an empty file."""
    return GroupedStore(Crowded(path, secrets.token_bytes(32), clock=clock))


class TestGrouped(StoreContract):
    """Whatever a batch does, and however it is refused, it does so in the middle of a group."""

    @pytest.fixture
    def store(self, tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
        """Return an empty file."""
        store = open_grouped(tmp_path / "pod.db", clock)
        yield store
        store.close()


class GroupedMachine(StoreMachine):
    """Any history, in groups."""

    def open_store(self, clock: FakeClock) -> Store:
        """Return an empty file."""
        self.folder = tempfile.mkdtemp()
        return open_grouped(Path(self.folder) / "pod.db", clock)

    def teardown(self) -> None:
        """Close and remove the file."""
        super().teardown()
        shutil.rmtree(self.folder)


TestGroupedMachine = GroupedMachine.TestCase
TestGroupedMachine.settings = hypothesis.settings(max_examples=15)  # each write is a flush
