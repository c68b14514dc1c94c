"""What helps to test: fakes that behave like the real thing, and the contract suites that hold both to one behaviour.

The fakes need nothing besides Holdfast. The suites need pytest and hypothesis and are loaded when they are first named:

```python
from holdfast.testing import FakeClock, StoreContract, StoreMachine


class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self, clock):
        return MyStore(clock=clock)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.testing.fakes import Dog, FakeClock, JsonStore, MemoryStore

if TYPE_CHECKING:
    from holdfast.testing.contract import StoreContract, StoreMachine

__all__ = ["Dog", "FakeClock", "JsonStore", "MemoryStore", "StoreContract", "StoreMachine"]


def __getattr__(name: str) -> object:
    """Load the contract suites on first use, with pytest's explanation of failed assertions."""
    if name not in ("StoreContract", "StoreMachine"):
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name)
    import pytest  # an optional extra: an application that only uses the fakes has no need of it

    pytest.register_assert_rewrite(f"{__name__}.contract")
    from holdfast.testing import contract

    return getattr(contract, name)
