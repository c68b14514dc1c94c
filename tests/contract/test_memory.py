"""The store in memory behaves as every store, also when all that it is told and says travels as JSON."""

import pytest

from holdfast.store import Store
from holdfast.testing import FakeClock, JsonStore, MemoryStore, StoreContract, StoreMachine


class TestMemoryStore(StoreContract):
    """The fake is held to what the real ones are held to."""

    @pytest.fixture
    def store(self, clock: FakeClock) -> Store:
        """Return an empty store."""
        return MemoryStore(clock=clock)


class TestJsonStore(StoreContract):
    """The JSON forms lose and change nothing."""

    @pytest.fixture
    def store(self, clock: FakeClock) -> Store:
        """Return an empty store behind JSON."""
        return JsonStore(MemoryStore(clock=clock))


class MemoryMachine(StoreMachine):
    """Any history, on the fake."""

    def open_store(self, clock: FakeClock) -> Store:
        """Return an empty store."""
        return MemoryStore(clock=clock)


class JsonMachine(StoreMachine):
    """Any history, behind JSON."""

    def open_store(self, clock: FakeClock) -> Store:
        """Return an empty store behind JSON."""
        return JsonStore(MemoryStore(clock=clock))


TestMemoryMachine = MemoryMachine.TestCase
TestJsonMachine = JsonMachine.TestCase
