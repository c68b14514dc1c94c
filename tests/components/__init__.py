"""Real components that tests run against, one module per component, each a context manager on loopback.

A component may be missing on a laptop, where its tests then say so and skip. Under ``CI=true`` it may not.
"""

import os

import pytest


def require(name: str, available: bool, reason: str) -> None:
    """Return if component ``name`` is available; otherwise end the test that asks.

    Args:
        name: What is needed, as a person would call it: ``"strace"``.
        available: Whether it is there.
        reason: Why it is not, or how to get it; shown with the test.

    Raises:
        pytest.skip.Exception: It is missing, on a laptop.
        pytest.fail.Exception: It is missing, and the environment says ``CI=true``.
    """
    if available:
        return
    message = f"{name} is missing: {reason}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
