"""What a test may rely on when it asks for a component."""

import pytest

from tests.components import require


def test_a_component_that_is_there_lets_the_test_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on a laptop nor under CI does an available component end the test."""
    for value in ("", "true"):
        monkeypatch.setenv("CI", value)
        require("strace", True, "install strace")


def test_a_missing_component_skips_on_a_laptop_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CI the test is skipped, and the reason names the component and how to get it."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"^strace is missing: install strace$"):
        require("strace", False, "install strace")


def test_a_missing_component_fails_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under CI=true nothing is skipped in silence: the test fails with the same reason."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"^strace is missing: install strace$"):
        require("strace", False, "install strace")
