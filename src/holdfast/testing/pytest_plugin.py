"""Fixtures for those who write plugins; pytest has them wherever Holdfast is installed.

Nothing of Holdfast is loaded before a test asks for one of them. A project's own fixture of the same name wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # start-up, as said above
    from holdfast.pod import Pod
    from holdfast.runs import Outcome
    from holdfast.testing.fakes import FakeClock
    from holdfast.testing.trials import Trial


@pytest.fixture
def _holdfast_trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    from holdfast.testing.trials import Trial  # start-up, as above

    return Trial(tmp_path_factory.mktemp("holdfast"))


@pytest.fixture
def pod(_holdfast_trial: Trial) -> Pod:
    """Return a client of an empty Pod in memory, which this test has to itself."""
    return _holdfast_trial.pod


@pytest.fixture
def clock(_holdfast_trial: Trial) -> FakeClock:
    """Return the clock of the Pod: it stands still until ``clock.advance(ms)``."""
    return _holdfast_trial.clock


@pytest.fixture
def run_plugin(_holdfast_trial: Trial) -> Callable[..., Outcome]:
    """Return what carries a plugin out in this process: ``run_plugin(MyPlugin, config={...}, state="default")``.

    It works on `pod`, as ``holdfast run`` on a real one: an unfinished run is carried on, else a new one begins. The
    answer has ``status``, ``error``, ``exit_code`` and ``retry_after_s``. Instead of the class there may be
    "MODULE:CLASS", "FILE.py:CLASS" or the path of a metadata file.
    """
    return _holdfast_trial.run_plugin


@pytest.fixture
def kill_at_every_write(_holdfast_trial: Trial) -> Callable[..., int]:
    """Return what proves that a plugin carries on: ``kill_at_every_write(MyPlugin, config={...}, check=check)``.

    A run is killed before and after each of its writes, each time a new one on a Pod of its own; it is then carried
    on to its end, and ``check(pod)`` is called. ``prepare(pod)``, if given, is called before. The answer is how many
    were killed.
    """
    return _holdfast_trial.kill_at_every_write
