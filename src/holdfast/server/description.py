"""What the API says of itself: the part of its OpenAPI description that the routes cannot tell, made from the types.

The forms of arguments and answers are those of `holdfast.store.wire`; whatever an address answers is listed with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, Literal, get_type_hints

from pydantic import TypeAdapter

from holdfast.items import TypeDefinition
from holdfast.runs import Fence, Lease
from holdfast.server.problems import PROBLEM_TYPE
from holdfast.store import MAX_OPERATIONS, Store
from holdfast.store.operations import OPERATIONS
from holdfast.store.wire import METHODS

_REFERENCE: Final = "#/components/schemas/{model}"
_Json = dict[str, Any]
_Mode = Literal["validation", "serialization"]

_PROBLEM: Final[_Json] = {
    "type": "object",
    "description": "A problem document (RFC 9457); `kind` is the name of the error, `facts` are for programs.",
    "required": ["type", "title", "status", "detail", "kind", "facts"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "kind": {"type": "string"},
        "facts": {"type": "object"},
    },
}

_COMMON: Final[Mapping[int, str]] = {
    400: "The request was not understood.",
    401: "What was presented opens nothing here.",
    403: "A page of another site calls, or the rights presented do not suffice.",
    421: "The server does not answer to this name.",
    422: "A value cannot be accepted; the same request will fail again.",
    429: "There were too many requests, or sign-ins that failed.",
    500: "A defect of the server, whose log has more under the id in the facts.",
    503: "It cannot be done now; later it may.",
}
_OF_BODIES: Final[Mapping[int, str]] = {
    408: "The body came too slowly.",
    413: "The body is too large; the facts name the limit.",
    415: "The body is compressed.",
}
_OF_STORES: Final[Mapping[int, str]] = {
    403: "The rights presented do not suffice.",
    404: "What was named does not exist.",
    409: "Somebody else's write stands in the way; nothing was changed.",
}


def _reference(name: str) -> _Json:
    return {"$ref": _REFERENCE.format(model=name)}


def _json(schema: _Json) -> _Json:
    return {"content": {"application/json": {"schema": schema}}}


def _problems(*tables: Mapping[int, str]) -> dict[int | str, _Json]:
    content = {PROBLEM_TYPE: {"schema": _reference("Problem")}}
    return {code: {"description": text, "content": content} for each in tables for code, text in each.items()}


def _route(
    summary: str, status: int, answer: _Json, *tables: Mapping[int, str], body: _Json | None = None
) -> dict[str, Any]:
    """Return what `APIRouter` is told of a route."""
    extra: _Json = {"security": [{"Bearer": []}]}
    if body is not None:
        extra["requestBody"] = {"required": True, **body}
    return {
        "summary": summary,
        "status_code": status,
        "response_model": None,
        "responses": {status: answer, **_problems(_COMMON, *tables)},
        "openapi_extra": extra,
    }


def _object(properties: Mapping[str, _Json], required: list[str]) -> _Json:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


class _Forms:
    """Collects the schemas that others refer to."""

    def __init__(self) -> None:
        self.components: _Json = {"Problem": _PROBLEM}

    def of(self, kind: Any, mode: _Mode) -> _Json:
        schema = TypeAdapter(kind).json_schema(ref_template=_REFERENCE, mode=mode)
        self.components.update(schema.pop("$defs", {}))
        return schema

    def arguments(self, method: str) -> _Json:
        if method == "apply":
            return self.batch()
        takes = get_type_hints(getattr(Store, method))
        parameters = {
            name: each for name, each in inspect.signature(getattr(Store, method)).parameters.items() if name in takes
        }
        return _object(
            {name: self.of(takes[name], "validation") for name in parameters},
            [name for name, each in parameters.items() if each.default is inspect.Parameter.empty],
        )

    def batch(self) -> _Json:
        operations: list[_Json] = []
        for name, kind in OPERATIONS.items():
            schema = self.of(kind, "validation")
            schema["properties"] = {"op": {"const": name}, **schema["properties"]}
            schema["required"] = ["op", *schema.get("required", ())]
            schema["additionalProperties"] = False
            self.components[kind.__name__] = schema
            operations.append(_reference(kind.__name__))
        return _object(
            {
                "operations": {"type": "array", "maxItems": MAX_OPERATIONS, "items": {"oneOf": operations}},
                "fence": {"anyOf": [self.of(Fence, "validation"), {"type": "null"}]},
                "key": {"anyOf": [{"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}, {"type": "null"}]},
            },
            ["operations"],
        )

    def answer(self, method: str) -> _Json:
        found = list[TypeDefinition] if method == "schema" else get_type_hints(getattr(Store, method))["return"]
        return self.of(found, "serialization")


_forms: Final = _Forms()


def _first_line(method: str) -> str:
    return (inspect.getdoc(getattr(Store, method)) or "").splitlines()[0].replace("``", "`")


STORE: Final[Mapping[str, dict[str, Any]]] = {
    name: _route(
        _first_line(name),
        200,
        {"description": "Done.", **_json(_forms.answer(name))},
        _OF_BODIES,
        _OF_STORES,
        body=_json(_forms.arguments(name)),
    )
    for name in METHODS
}
"""Of each method of a store."""

_BYTES: Final = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}

MAKE: Final = _route("Make a Pod; nothing happens if it is there and the key opens it.", 204, {"description": "Done."})

CLAIM: Final = _route(
    "Claim a plugin state for a run, and seal a token for it.",
    201,
    {
        "description": "The lease, and what the run presents from now on.",
        **_json(_object({"lease": _forms.of(Lease, "serialization"), "token": {"type": "string"}}, ["lease", "token"])),
    },
    _OF_BODIES,
    _OF_STORES,
    body=_json(_object({"run": {"type": "string"}, "holder": {"type": "string"}}, ["run"])),
)

UPLOAD: Final = _route(
    "Keep the bytes of a file that a File item describes.",
    201,
    {"description": "Kept, durably.", **_json(_object({"size": {"type": "integer"}}, ["size"]))},
    _OF_BODIES,
    _OF_STORES,
    body=_BYTES,
)

FILE: Final[Mapping[str, dict[str, Any]]] = {
    "get": _route("Read the bytes of a file.", 200, {"description": "All of them.", **_BYTES}, _OF_STORES),
    "head": _route("Say whether the bytes of a file are there.", 200, {"description": "They are."}, _OF_STORES),
    "delete": _route(
        "Let the bytes of a file be gone, if no File item describes them any more.",
        204,
        {"description": "They are not there, or they are still described, and stay."},
        _OF_STORES,
    ),
}

EVENTS: Final = _route(
    "Follow what changes: runs and questions.",
    200,
    {"description": "Events, without end.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
    _OF_STORES,
)

HEALTH: Final = _route(
    "Say that the server is there.",
    200,
    {"description": "It is.", **_json(_object({"status": {"const": "ok"}}, ["status"]))},
)


def described(document: _Json) -> _Json:
    """Return an OpenAPI document with what its parts refer to."""
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **_forms.components}
    components["securitySchemes"] = {
        "Bearer": {"type": "http", "scheme": "bearer", "description": "A database key or a token."}
    }
    return document
