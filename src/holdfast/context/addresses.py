"""Where a Pod is that is not in this home: said by arguments, or in the environment of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from holdfast.disk import Disk
from holdfast.errors import InvalidError
from holdfast.keys import Identity

if TYPE_CHECKING:
    from holdfast.remote import Connection

URL_VARIABLE = "POD_FULL_ADDRESS"
OWNER_VARIABLE = "POD_OWNER"
AUTH_VARIABLE = "POD_AUTH_JSON"
AUTH_FILE_VARIABLE = "POD_AUTH_FILE"
_MAX_AUTH_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server, whose Pod there, and what opens it: the owner's database key, or a run's token."""

    url: str
    owner_key: str
    database_key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def find(
        cls,
        environ: Mapping[str, str],
        *,
        url: str | None = None,
        owner_key: str | None = None,
        database_key: str | None = None,
        identity: Callable[[], Identity],
    ) -> Self | None:
        """Return what arguments say, and where they do not, the environment of a run; None if no server is named.

        Args:
            environ: The environment.
            url: The server.
            owner_key: Whose Pod.
            database_key: What opens it.
            identity: Returns the owner if nobody says who that is.

        Raises:
            InvalidError: Of an owner and what opens the Pod only one is said; or the environment does not hold what it
                should. What it holds is not shown, for it may be a key.
        """
        url = url or environ.get(URL_VARIABLE)
        if not url:
            return None
        owner_key, token = owner_key or environ.get(OWNER_VARIABLE), None
        if database_key is None:
            database_key, token = read_auth(environ)
        if owner_key is None and database_key is None and token is None:
            found = identity()
            owner_key, database_key = found.owner_key, found.database_key
        if not owner_key or (database_key is None and token is None):
            message = (
                f"the Pod at {url!r} cannot be opened: an owner's key ({OWNER_VARIABLE}) and a database key or a token "
                f"({AUTH_VARIABLE} or {AUTH_FILE_VARIABLE}) must come together"
            )
            raise InvalidError(message, url=url)
        return cls(url=url, owner_key=owner_key, database_key=database_key, token=token)

    def connect(self) -> Connection:
        """Return what reaches the Pod; nothing is sent yet."""
        from holdfast.remote import Connection  # start-up: for those whose Pod is elsewhere

        return Connection(self.url, self.owner_key, database_key=self.database_key, token=self.token)


def read_auth(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the database key or the token that the environment gives.

    ``{"type": "ClientAuth", "databaseKey": "…"}`` or ``{"type": "PluginAuth", "data": {"token": "hft1.…"}}``, itself or
    in a file; both None: neither is there.

    Raises:
        InvalidError: It is something else, or both variables are set.
    """
    given = [name for name in (AUTH_VARIABLE, AUTH_FILE_VARIABLE) if environ.get(name)]
    if len(given) > 1:
        raise InvalidError(f"{' and '.join(given)} are both set: only one may say what opens the Pod", variables=given)
    if not given:
        return None, None
    text = environ[given[0]]
    if given[0] == AUTH_FILE_VARIABLE:
        text = Disk().read(Path(text).resolve()).decode("utf-8", "replace")[:_MAX_AUTH_BYTES]
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidError(f"{given[0]} must hold a JSON object")
    auth = cast("dict[str, Any]", found)
    data = cast("dict[str, Any]", auth["data"]) if isinstance(auth.get("data"), dict) else {}
    values = auth.get("databaseKey"), data.get("token")
    if [*map(type, values)].count(str) != 1:
        raise InvalidError(
            f"{given[0]} must hold a JSON object with a 'databaseKey', or with 'data' that has a 'token'"
        )
    return values
