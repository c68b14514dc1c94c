"""Puts up a notice."""

from holdfast import current

__version__ = "1.0"


def setup() -> None:
    """Say it anew in each request: settings are the application's, and somebody may have changed them."""
    current.settings.notice = "Closed on Sunday"
