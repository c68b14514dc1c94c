"""What helps to test: fakes that behave like the real thing, and the contract suites that hold both to one behaviour.

The fakes need nothing besides Holdfast. The suites need pytest and hypothesis. Everything is loaded when it is first
named:

```python
from holdfast.testing import FakeClock, StoreContract, StoreMachine


class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self, clock):
        return MyStore(clock=clock)
```
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from holdfast.testing.contract import StoreContract
    from holdfast.testing.fakes import Dog, FakeClock, JsonStore, MemoryStore
    from holdfast.testing.launching import FakeLauncher, LauncherContract
    from holdfast.testing.machine import StoreMachine

__all__ = [
    "Dog",
    "FakeClock",
    "FakeLauncher",
    "JsonStore",
    "LauncherContract",
    "MemoryStore",
    "StoreContract",
    "StoreMachine",
]


_SUITES: Final = {"LauncherContract": "launching", "StoreContract": "contract", "StoreMachine": "machine"}
"""The module of this package that each suite is in."""

_FAKES: Final = {"FakeLauncher": "launching"}
"""The module that a fake is in which is not where the others are."""


def __getattr__(name: str) -> object:
    """Load a name on first use, a suite with pytest's explanation of failed assertions.

    Not before: pytest imports this package wherever Holdfast is installed, for the fixtures in `pytest_plugin`.
    """
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name)
    if name in _SUITES:
        import pytest  # not needed by who only uses the fakes, and not installed with Holdfast

        suites = [f"{__name__}.{module}" for module in _SUITES.values()]
        pytest.register_assert_rewrite(*(suite for suite in suites if suite not in sys.modules))
    return getattr(import_module(f"{__name__}.{(_SUITES | _FAKES).get(name, 'fakes')}"), name)
