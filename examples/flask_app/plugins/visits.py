"""Counts visits: those of this user in the session, and all of them in a variable."""

from holdfast import current


def setup() -> None:
    """Count one request."""
    current.session["visits"] = current.session.get("visits", 0) + 1
    current.state.incr("visits", "total")
