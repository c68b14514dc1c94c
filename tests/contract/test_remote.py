"""A store on a server keeps the contract, through HTTP and back."""

from collections.abc import Iterator

import hypothesis
import pytest

from holdfast.keys import Identity
from holdfast.runs import Clock
from holdfast.store import Store
from holdfast.testing import FakeClock, StoreContract, StoreMachine
from tests.components.servers import Served, serving


class LentClock:
    """The clock of a server that is asked by one test after the other: that of the test."""

    clock: Clock = FakeClock()

    def now_ms(self) -> int:
        """Return milliseconds since 1970."""
        return self.clock.now_ms()


LENT = LentClock()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a server."""
    with serving(tmp_path_factory.mktemp("server"), clock=LENT) as served:
        yield served


class TestRemote(StoreContract):
    """Whether a Pod is in this process or elsewhere is not noticeable."""

    @pytest.fixture
    def store(self, served: Served, clock: FakeClock) -> Iterator[Store]:
        """Return the empty Pod of a new owner."""
        LENT.clock = clock
        store = served.store(Identity.new())
        yield store
        store.close()


@pytest.fixture(scope="module", autouse=True)
def _machine_served(served: Served) -> None:
    RemoteMachine.served = served


class RemoteMachine(StoreMachine):
    """Any history, over HTTP."""

    served: Served

    def open_store(self, clock: FakeClock) -> Store:
        """Return the empty Pod of a new owner."""
        LENT.clock = clock
        return self.served.store(Identity.new())


TestRemoteMachine = RemoteMachine.TestCase
TestRemoteMachine.settings = hypothesis.settings(max_examples=10)
