"""Six kinds of error, sorted by what the caller can do about them.

```
HoldfastError
├── InvalidError      fix the value                 HTTP 422   exit 2
├── DeniedError       present another key or right  HTTP 403   exit 3
├── NotFoundError     look elsewhere                HTTP 404   exit 4
├── ConflictError     read again, then decide       HTTP 409   exit 5
│   └── FencedError   stop: another run took over
├── UnavailableError  try again later               HTTP 503   exit 6
│   └── DamagedError  bring back what it names
└── PluginError       mend the plugin               HTTP 502   exit 7
```

Every error carries one sentence for people and `HoldfastError.facts` for programs. This module knows no other.
"""

from __future__ import annotations

from typing import ClassVar


class HoldfastError(Exception):
    """What every error of Holdfast is.

    Args:
        message: One sentence: what happened, to which value, what is expected or allowed.
        **facts: The same for programs. Never a secret; values must be what JSON can hold.
    """

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts: dict[str, object] = facts

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling (errors cross process boundaries) with facts and notes."""
        return (_rebuild, (type(self), self.message, self.facts), {"__notes__": getattr(self, "__notes__", [])})


def _rebuild(kind: type[HoldfastError], message: str, facts: dict[str, object]) -> HoldfastError:
    return kind(message, **facts)


class InvalidError(HoldfastError, ValueError):
    """The value cannot be accepted as it is; the same call will fail again."""

    http_status = 422
    exit_code = 2


class DeniedError(HoldfastError, PermissionError):
    """The key or the rights presented do not open this."""

    http_status = 403
    exit_code = 3


class NotFoundError(HoldfastError, LookupError):
    """What was named does not exist here, or was deleted."""

    http_status = 404
    exit_code = 4


class ConflictError(HoldfastError):
    """Somebody else's write stands in the way; nothing was changed."""

    http_status = 409
    exit_code = 5


class FencedError(ConflictError):
    """Another run has taken over the plugin state; this one must stop without another write."""


class UnavailableError(HoldfastError, ConnectionError):
    """It cannot be done now: busy, full, read-only or unreachable; later it may."""

    http_status = 503
    exit_code = 6


class DamagedError(UnavailableError):
    """What is stored is not what was written. Nothing was changed; the message names what to bring back."""


class PluginError(HoldfastError):
    """The plugin's own code raised; its exception is the cause."""

    http_status = 502
    exit_code = 7
