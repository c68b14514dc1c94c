"""A filter that makes text loud."""

from holdfast import current

__version__ = "1.0"


def make_loud(text: str) -> str:
    """Return the text as it is shouted."""
    return text.upper()


def setup() -> None:
    """Offer the filter."""
    current.settings.filters["loud"] = make_loud
