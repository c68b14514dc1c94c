"""How a Pod finds an item among many: by an index, in its order, without looking at the rest."""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.items import PropertyDefinition, TypeDefinition
from holdfast.sql import SqliteStore
from holdfast.store import Batch, Comparison, Condition, CreateItem, DeclareTypes, Query, UpdateItem
from holdfast.testing import FakeClock
from holdfast.values import Kind

BOOK = TypeDefinition(
    "Book",
    {
        "isbn": PropertyDefinition(Kind.TEXT, is_indexed=True),
        "pages": PropertyDefinition(Kind.INTEGER, is_indexed=True),
        "title": PropertyDefinition(Kind.TEXT),
    },
)

SCANS = ("SCAN item", "SCAN indexed")
"""How SQLite says that it looks at all items, or at all that is indexed."""

pytestmark = [pytest.mark.xdist_group("many-items"), pytest.mark.timeout(1200)]  # they are made once; --full: a million


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, is_full: bool) -> Iterator[SqliteStore]:
    """Return a Pod with 100,000 books; with ``--full`` with a million."""
    with SqliteStore(tmp_path_factory.mktemp("plans") / "pod.db", secrets.token_bytes(32), clock=FakeClock()) as store:
        store.apply(Batch((DeclareTypes((BOOK,)),)))
        for first in range(0, 1_000_000 if is_full else 100_000, 50_000):
            numbers = range(first, first + 50_000)
            store.apply(
                Batch(
                    tuple(
                        CreateItem(f"b{n}", "Book", {"isbn": f"978-{n}", "pages": n % 1000, "title": f"Book {n}"})
                        for n in numbers
                    )
                )
            )
        yield store


def plan(store: SqliteStore, query: Query) -> list[str]:
    """Return the steps by which SQLite answers a search, as it says itself."""
    store.search(query)  # there is an idle reader from now on, and the next search takes it
    reader = store._readers[-1]
    asked: list[tuple[str, Any]] = []

    def note(_: Any, sql: str, values: Any) -> bool:
        asked.append((sql, values))
        return True

    reader.exec_trace = note
    try:
        store.search(query)
    finally:
        reader.exec_trace = None
    sql, values = next(each for each in asked if each[0].lstrip().startswith("SELECT item.seq"))
    return [str(row[3]) for row in reader.execute(f"EXPLAIN QUERY PLAN {sql}", values)]


def where(name: str, value: Any, comparison: Comparison = Comparison.EQUAL) -> Query:
    """Return a search for the books with this property."""
    return Query(type="Book", conditions=(Condition(name, comparison, value),))


@pytest.mark.parametrize(
    "query, ids",
    [
        (where("isbn", "978-77777"), ["b77777"]),
        (where("isbn", "no"), []),
        (Query(type="Book", ids=("b5", "b3")), ["b3", "b5"]),
        (Query(ids=("b99999",)), ["b99999"]),
        (Query(type="Book", limit=2), ["b0", "b1"]),
        (Query(type="Book", conditions=(Condition("pages", Comparison.EQUAL, 7),), limit=3), ["b7", "b1007", "b2007"]),
    ],
)
def test_an_item_is_found_by_an_index_and_in_order_without_sorting(
    store: SqliteStore, query: Query, ids: list[str]
) -> None:
    """Equality on an indexed property, an id, a type: no scan of the items, and none sorted but those few with ids."""
    steps = plan(store, query)
    assert [found.item.id for found in store.search(query)] == ids
    assert not any(step.startswith(SCANS) for step in steps), steps
    assert any(step.startswith("SEARCH item USING") for step in steps), steps
    if query.ids is None:
        assert not any("TEMP B-TREE" in step for step in steps), steps


def test_a_range_of_an_indexed_property_is_found_by_its_index(store: SqliteStore) -> None:
    """Only what is in the range is looked at."""
    steps = plan(store, where("pages", 998, Comparison.AT_LEAST))
    assert not any(step.startswith(SCANS) for step in steps), steps
    found = store.search(where("pages", 998, Comparison.AT_LEAST))
    assert {found.item.properties["pages"] for found in found} == {998, 999}


def test_what_was_written_is_found_under_its_new_value_only(store: SqliteStore) -> None:
    """The index follows."""
    store.apply(Batch((UpdateItem("b42", {"isbn": "new"}),)))
    assert [found.item.id for found in store.search(where("isbn", "new"))] == ["b42"]
    assert store.search(where("isbn", "978-42")) == []
