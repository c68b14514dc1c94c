"""What a server says of itself in its OpenAPI description."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.store.operations import OPERATIONS
from holdfast.store.wire import METHODS
from tests.components.servers import serving


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the description."""
    with serving(tmp_path_factory.mktemp("home")) as served:
        answer = served.ask("GET", "/api/openapi.json", key=None)
        assert answer.status == 200
        return answer.document


def routes(description: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield the routes under /api."""
    for path, methods in description["paths"].items():
        if path.startswith("/api/"):
            for method, route in methods.items():
                yield path, method, route


def test_whatever_is_referred_to_is_there(description: Any) -> None:
    """A generator of clients finds every form."""
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(description)))
    assert names <= description["components"]["schemas"].keys()
    assert {"Problem", "CreateItem", "ClaimLease", "Condition"} <= names


def test_each_route_says_what_it_answers_and_that_problems_have_one_form(description: Any) -> None:
    """Every status that a server can answer is listed; those of bodies where there is one."""
    found = list(routes(description))
    assert len(found) == 19
    for path, method, route in found:
        responses = route["responses"]
        expected = {"400", "401", "422", "429", "500", "503"} | (
            {"408", "413", "415"} if "requestBody" in route else set()
        )
        assert expected <= responses.keys(), (path, method)
        for status, response in responses.items():
            if int(status) >= 400:
                content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
                assert response["content"] == content, (path, method, status)
        assert route["security"] == [{"Bearer": []}]


def test_each_method_of_a_store_and_each_operation_is_described(description: Any) -> None:
    """As they are in the tables that decide what is understood."""
    ids = {route["operationId"] for _, _, route in routes(description)}
    assert ids == {*METHODS, "create", "claim", "follow", "put_file", "get_file", "find_file", "delete_file"}
    apply = description["paths"]["/api/{owner}/store/apply"]["post"]["requestBody"]["content"]["application/json"]
    listed = apply["schema"]["properties"]["operations"]["items"]["oneOf"]
    schemas = [description["components"]["schemas"][each["$ref"].rpartition("/")[2]] for each in listed]
    assert [each["properties"]["op"]["const"] for each in schemas] == [*OPERATIONS]
    assert all(each["additionalProperties"] is False for each in schemas)
