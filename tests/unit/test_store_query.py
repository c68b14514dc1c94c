"""How the fields of a search are read."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from holdfast.errors import DeniedError, HoldfastError, InvalidError
from holdfast.items import PropertyDefinition, Schema, TypeDefinition
from holdfast.store import Comparison, Condition, Query, query_from
from holdfast.store.wire import METHODS
from holdfast.values import Kind

SCHEMA = Schema(
    [
        TypeDefinition(
            "Dog",
            {
                "name": PropertyDefinition(Kind.TEXT),
                "age": PropertyDefinition(Kind.INTEGER),
                "weight": PropertyDefinition(Kind.REAL),
                "good": PropertyDefinition(Kind.BOOL),
                "born": PropertyDefinition(Kind.DATETIME),
                "pin": PropertyDefinition(Kind.TEXT, is_secret=True),
            },
        ),
        TypeDefinition("Cat", {"age": PropertyDefinition(Kind.TEXT), "pin": PropertyDefinition(Kind.INTEGER)}),
    ]
)


def where(property_: str, comparison: str, value: Any) -> Condition:
    """Return a condition."""
    return Condition(property_, Comparison(comparison), value)


@pytest.mark.parametrize(
    "fields, query",
    [
        ({}, Query()),
        ({"type": "Dog"}, Query(type="Dog")),
        ({"type": None}, Query()),
        ({"type": "Dog", "name": "Bob"}, Query(type="Dog", conditions=(where("name", "==", "Bob"),))),
        ({"name==": ""}, Query(conditions=(where("name", "==", ""),))),
        ({"type": "Dog", "age>=": 3, "age<": 9},
         Query(type="Dog", conditions=(where("age", ">=", 3), where("age", "<", 9)))),
        ({"weight": 3}, Query(conditions=(where("weight", "==", 3.0),))),
        ({"good": False}, Query(conditions=(where("good", "==", False),))),
        ({"born<": -1}, Query(conditions=(where("born", "<", -1),))),
        ({"born": datetime(1970, 1, 1, 0, 0, 1, 999, tzinfo=UTC)}, Query(conditions=(where("born", "==", 1000),))),
        ({"type": "Dog", "born>=": datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))},
         Query(type="Dog", conditions=(where("born", ">=", 0),))),
        ({"dateCreated<": datetime(1969, 12, 31, 23, 59, 59, 999_500, tzinfo=UTC)},
         Query(conditions=(where("dateCreated", "<", -1),))),
        ({"name": None}, Query(conditions=(where("name", "==", None),))),
        ({"age": 3}, Query(conditions=(where("age", "==", 3),))),
        ({"age": "old"}, Query(conditions=(where("age", "==", "old"),))),
        ({"id": "a"}, Query(conditions=(where("id", "==", "a"),))),
        ({"dateServerModified>=": 5}, Query(conditions=(where("dateServerModified", ">=", 5),))),
        ({"ids": ["a", "b"]}, Query(ids=("a", "b"))),
        ({"ids": []}, Query(ids=())),
        ({"_limit": 5, "_offset": 2, "_sortOrder": "Desc"}, Query(limit=5, offset=2, is_descending=True)),
        ({"_limit": None, "_offset": 0, "_sortOrder": "Asc"}, Query()),
        ({"deleted": True}, Query(is_deleted=True)),
        ({"deleted": None}, Query(is_deleted=None)),
        ({"[[edges]]": {}, "~[[edges]]": {}}, Query(outgoing=True, incoming=True)),
    ],
)  # fmt: skip
def test_fields_are_read_as_the_pods_api_means_them(fields: dict[str, Any], query: Query) -> None:
    """Properties by name and comparison, the rest by its own name."""
    assert repr(query_from(fields, SCHEMA)) == repr(query)


@pytest.mark.parametrize(
    "fields, error, words",
    [
        ({5: 1}, InvalidError, "5 is no field of a search: a field is named by text"),
        ({None: 1}, InvalidError, "None is no field of a search"),
        (
            {"born": datetime(2020, 1, 1, tzinfo=UTC).replace(tzinfo=None)},
            InvalidError,
            "'born' in a search cannot be .*a datetime needs a time zone",
        ),
        ({"age": datetime(2020, 1, 1, tzinfo=UTC)}, InvalidError, "'age' in a search cannot be datetime"),
        ({"born": [10**5000]}, InvalidError, r"'born' in a search cannot be \[an integer of 16610 bits\]"),
        ({"type": "Bird"}, InvalidError, "type 'Bird' is not declared"),
        ({"type": 1}, InvalidError, "'type' of a search cannot be 1: it must be the name of a type"),
        ({"type": "Dog", "colour": "red"}, InvalidError, "Dog has no property 'colour'; it has age, born"),
        ({"colour": "red"}, InvalidError, "no type in this Pod has a property 'colour'"),
        ({"_limti": 1}, InvalidError, "no type in this Pod has a property '_limti', and it is no field of a search"),
        ({"type": "Dog", "age": "3"}, InvalidError, "'age' in a search cannot be '3': it is declared Integer"),
        ({"type": "Dog", "age": True}, InvalidError, "'age' in a search cannot be True"),
        ({"type": "Dog", "age>": 1}, InvalidError, "Dog has no property 'age>'"),
        ({"type": "Dog", "age>=": None}, InvalidError, "'age>=' of a search cannot be None"),
        ({"weight": math.nan}, InvalidError, "'weight' in a search cannot be nan"),
        ({"name": "\0"}, InvalidError, "'name' in a search cannot be .*NUL"),
        ({"name": ["a"]}, InvalidError, r"'name' in a search cannot be \['a'\]"),
        ({"type": "Dog", "pin": "1234"}, DeniedError, "property 'pin' cannot be searched for: it is secret"),
        ({"type": "Dog", "pin>=": ""}, DeniedError, "'pin' cannot be searched for"),
        ({"type": "Dog", "pin": None}, DeniedError, "'pin' cannot be searched for"),
        ({"pin": 1}, DeniedError, "'pin' cannot be searched for"),
        ({"ids": "ab"}, InvalidError, "'ids' of a search cannot be 'ab': it must be a list of ids"),
        ({"ids": ["a", "a/b"]}, InvalidError, "'ids' of a search cannot be"),
        ({"ids": [1]}, InvalidError, "'ids' of a search cannot be"),
        ({"_limit": -1}, InvalidError, "'_limit' of a search cannot be -1: it must be a whole number from 0 on"),
        ({"_limit": True}, InvalidError, "'_limit' of a search cannot be True"),
        ({"_limit": 2**63}, InvalidError, "'_limit' of a search cannot be 9223372036854775808"),
        ({"_offset": None}, InvalidError, "'_offset' of a search cannot be None"),
        ({"_offset": 1.0}, InvalidError, "'_offset' of a search cannot be 1.0"),
        ({"_sortOrder": "desc"}, InvalidError, "'_sortOrder' of a search cannot be 'desc': it must be 'Asc' or 'Desc'"),
        ({"_sortOrder": []}, InvalidError, r"'_sortOrder' of a search cannot be \[\]"),
        ({"deleted": 1}, InvalidError, "'deleted' of a search cannot be 1: it must be true, false or null"),
        ({"[[edges]]": {"depth": 2}}, InvalidError, r"'\[\[edges\]\]' of a search cannot be .*an empty object"),
    ],
)
def test_what_is_no_search_is_refused_by_name(fields: dict[str, Any], error: type[HoldfastError], words: str) -> None:
    """A typing mistake is an error, not a search that finds everything; a secret can be probed in no way."""
    with pytest.raises(error, match=words):
        query_from(fields, SCHEMA)


@pytest.mark.parametrize(
    "named, words",
    [
        ({"limit": -1}, "'limit' of a search cannot be -1: it must be a whole number from 0 on"),
        ({"limit": 2**63}, "'limit' of a search cannot be 9223372036854775808"),
        ({"limit": True}, "'limit' of a search cannot be True"),
        ({"offset": -1}, "'offset' of a search cannot be -1"),
        ({"offset": 2**63}, "'offset' of a search cannot be 9223372036854775808"),
        ({"after": (2**63, 0)}, "the position in a search cannot be 9223372036854775808"),
        ({"after": (0, -(2**63) - 1)}, "the position in a search cannot be -9223372036854775809"),
    ],
)
def test_a_query_that_no_store_can_answer_is_none(named: dict[str, Any], words: str) -> None:
    """However it is made, and also when it comes as JSON: else each store would take it for something else."""
    with pytest.raises(InvalidError, match=words):
        Query(**named)
    text = json.dumps({"query": named})
    with pytest.raises(InvalidError, match="what search is asked has a wrong 'query"):
        METHODS["search"].load_arguments(text)
    Query(limit=0, offset=2**63 - 1, after=(-(2**63), 2**63 - 1))
