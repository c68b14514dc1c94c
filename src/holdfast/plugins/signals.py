"""What a plugin says to its runner by raising, and the runner to its plugin."""

from __future__ import annotations

from datetime import timedelta

from holdfast.errors import InvalidError


class RetryLater(Exception):  # noqa: N818 -- it is no error, and the author's word
    """Raised by a plugin: what it needs is not there now; start the run again later, from where it is.

    Args:
        after: How long to wait at least, in seconds or as a timedelta; None: a minute, if it is launched.
        reason: What is missing, for the user: a text, or the exception that says it.
    """

    reason = ""
    after_s: float | None = None

    def __init__(self, reason: object = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(reason)
        seconds = after.total_seconds() if isinstance(after, timedelta) else after
        if seconds is not None and not 0 <= seconds <= 366 * 24 * 3600:
            raise InvalidError(f"a run cannot be retried after {seconds!r} s: 0 s to a year are allowed")
        self.reason = str(reason)
        self.after_s = seconds


class GiveUp(Exception):  # noqa: N818 -- as above
    """Raised by a plugin: this run will not succeed, however often it is tried."""


class Cancelled(BaseException):
    """Raised in a plugin at a safe point: its run was asked to stop, or was taken from it.

    Not an Exception, so that code that shrugs off errors does not shrug this off.
    """


class Released(BaseException):
    """Raised in a plugin at a safe point: its process is to end (SIGTERM, SIGINT); the run goes on elsewhere."""
