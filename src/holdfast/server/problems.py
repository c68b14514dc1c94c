"""What went wrong, as an answer: a problem document (RFC 9457) under ``/api``, a sentence of text elsewhere.

Hides which status an error has and how little is told of one that is ours: an id, under which the log has the rest.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from holdfast.errors import DamagedError, HoldfastError, InvalidError, NotFoundError, UnavailableError

_log: Final = logging.getLogger(__name__)

PROBLEM_TYPE: Final = "application/problem+json"
RETRY_S: Final = 1
"""After how many seconds to try again, where nothing else is known."""


class Refused(Exception):  # noqa: N818 -- it is a decision, and what is wrong is in it
    """A request that HTTP has a status of its own for; ``error`` says the rest."""

    def __init__(self, status: HTTPStatus, error: HoldfastError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error.message)
        self.status, self.error, self.headers = status, error, dict(headers or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An answer to what could not be done.

    Attributes:
        status: Of HTTP.
        kind: The name of the error in `holdfast.errors`, which a client raises again.
        detail: One sentence.
        facts: The same for programs.
        headers: What the answer has besides.
    """

    status: int
    kind: str
    detail: str
    facts: Mapping[str, object] = field(default_factory=dict[str, object])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def document(self) -> bytes:
        """Return the problem document: ``{"type": "about:blank", "title": "Conflict", "status": 409, "detail": …}``."""
        members = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "kind": self.kind,
            "facts": self.facts,
        }
        return to_json(members, fallback=str, inf_nan_mode="constants")

    def response(self, path: str) -> Response:
        """Return the answer to a request for ``path``."""
        if path.startswith(("/v4/", "/v5/")):
            return Response(self.detail, self.status, self.headers, "text/plain; charset=utf-8")
        return Response(self.document(), self.status, self.headers, PROBLEM_TYPE)


def problem_of(exc: Exception) -> Problem:
    """Return what is answered if ``exc`` is raised; what nobody foresaw is logged here, and not told."""
    if isinstance(exc, Refused):
        return _told(exc.error, exc.status, exc.headers)
    if isinstance(exc, HoldfastError) and type(exc) is not HoldfastError:
        may_pass = isinstance(exc, UnavailableError) and not isinstance(exc, DamagedError)
        return _told(exc, exc.http_status, {"Retry-After": str(RETRY_S)} if may_pass else {})
    if isinstance(exc, RequestValidationError):
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return _told(InvalidError(f"{where} is wrong: {first['msg']}", field=where), HTTPStatus.UNPROCESSABLE_ENTITY)
    if isinstance(exc, HTTPException):
        kind = NotFoundError if exc.status_code == HTTPStatus.NOT_FOUND else InvalidError
        return _told(kind(_why(exc)), exc.status_code, exc.headers or {})
    if isinstance(exc, ClientDisconnect):
        return _told(InvalidError("the client has gone"), HTTPStatus.BAD_REQUEST)
    id_ = secrets.token_hex(8)
    _log.error("request.failed", extra={"id": id_}, exc_info=exc)
    message = f"the server has a defect and could not answer; its log has the reason under {id_!r}"
    return Problem(status=500, kind=HoldfastError.__name__, detail=message, facts={"id": id_})


def _told(error: HoldfastError, status: int, headers: Mapping[str, str] | None = None) -> Problem:
    kind = next(each for each in type(error).__mro__ if each.__module__ == HoldfastError.__module__)
    facts, detail = dict(error.facts), error.message
    if "path" in facts:  # where the server keeps things is nobody else's business
        detail = detail.replace(repr(facts.pop("path")), "on this server")
    return Problem(status=status, kind=kind.__name__, detail=detail, facts=facts, headers=dict(headers or {}))


def _why(exc: HTTPException) -> str:
    if exc.status_code == HTTPStatus.NOT_FOUND:
        return "there is nothing at this address"
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed: Any = (exc.headers or {}).get("Allow")
        return f"this address takes another method: {allowed}"
    return f"the request was not understood: {exc.detail}"
