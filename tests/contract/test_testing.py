"""What those who test their own plugins and stores may rely on."""

import subprocess
import sys

import pytest

import holdfast.testing
from holdfast.runs import SystemClock
from holdfast.store import Batch, CreateItem, Written
from holdfast.testing import Dog, FakeClock, MemoryStore

WITHOUT = """
import sys
sys.modules.update(pytest=None, hypothesis=None)
from holdfast.testing import Dog, FakeClock, FakeLauncher, JsonStore, MemoryStore
JsonStore(MemoryStore(clock=FakeClock())).close()
FakeLauncher().list()
import holdfast.testing
try:
    holdfast.testing.StoreContract
except ImportError as exc:
    print(exc.name)
"""


def test_the_fakes_need_neither_pytest_nor_hypothesis() -> None:
    """An application may use them where no test tools are installed; only the suites ask for them."""
    ended = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "pytest\n"


def test_what_is_not_there_is_an_attribute_error() -> None:
    """Every public name is there, and nothing else pretends to be."""
    assert sorted(holdfast.testing.__all__) == [
        "Dog", "FakeClock", "FakeLauncher", "JsonStore", "LauncherContract", "MemoryStore", "StoreContract",
        "StoreMachine",
    ]  # fmt: skip
    for name in holdfast.testing.__all__:
        assert getattr(holdfast.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="'StoreContrakt'"):
        _ = holdfast.testing.StoreContrakt


def test_a_fake_clock_stands_still_until_it_is_advanced() -> None:
    """Two clocks do not share their time."""
    clock = FakeClock(5)
    clock.advance(2)
    assert (clock.now_ms(), clock.now_ms(), FakeClock(5).now_ms()) == (7, 7, 5)


def test_a_store_without_a_clock_takes_the_machines() -> None:
    """An item is dated when it was written."""
    store, clock = MemoryStore(), SystemClock()
    before = clock.now_ms()
    (written,) = store.apply(Batch((CreateItem("a", "Person"),)))
    assert isinstance(written, Written)
    assert before <= written.at_ms <= store.now_ms() <= clock.now_ms()


def test_the_seeds_dog_has_a_name_and_an_age() -> None:
    """``Dog("Bob", 10)``, as in the documentation of plugins."""
    dog = Dog("Bob", 10)
    assert (dog.name, dog.age) == ("Bob", 10)
