"""Any history: what is done to a store in whatever order, compared with a model that is too plain to be wrong.

A store is held to it by the ``TestCase`` of a subclass of `StoreMachine` that overrides ``open_store``.
"""

# ruff: noqa: FBT001, S101 -- these are tests

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import holdfast.store.operations as op
from holdfast.errors import HoldfastError
from holdfast.runs import Fence, Lease
from holdfast.store import Direction, Operation, Query, Result, Store, Written
from holdfast.testing.contract import T0, THING, apply, found_ids, where
from holdfast.testing.fakes import FakeClock
from holdfast.values import MAX_INTEGER, Value

_items, _states, _holders, _names = (st.sampled_from(each) for each in ("abc", "st", "gh", "xy"))
_numbers: Final = st.sampled_from([0, 1, 1.0, -0.5, MAX_INTEGER])
_values: Final = st.sampled_from(["", "\u00e9", True]) | _numbers
_expected: Final = st.none() | st.builds(op.Expected, st.none() | _values)
_properties: Final[Any] = st.fixed_dictionaries(
    {}, optional={"text": st.sampled_from(["", "x"]), "indexed": st.integers(0, 1), "deleted": st.booleans()}
)
_fences: Final = st.builds(Fence, state=_states, epoch=st.integers(1, 3), holder=_holders)
_operations: Final[Any] = st.one_of(
    st.builds(op.CreateItem, _items, st.just("Thing"), _properties),
    st.builds(op.UpdateItem, _items, _properties, st.sampled_from([None, 1, 2])),
    st.builds(op.DeleteItem, _items),
    st.builds(op.CreateEdge, _items, st.just("friend"), _items),
    st.builds(op.DeleteEdge, _items, st.just("friend"), _items),
    st.builds(op.SetVariable, _states, _names, _values, expected=_expected),
    st.builds(op.DeleteVariable, _states, _names, expected=_expected),
    st.builds(op.IncrementVariable, _states, _names, _numbers),
    st.builds(op.ClaimLease, _states, st.just("r"), _holders, st.integers(5, 15)),
    st.builds(op.RenewLease, _fences, st.integers(5, 15)),
    st.builds(op.EndLease, _states),
)


class _Refused(Exception):  # noqa: N818 -- no error, an outcome
    pass


def _need(holds: bool) -> None:
    if not holds:
        raise _Refused


class _Model:
    """What a Pod must hold, said a second time and as plainly as possible."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.edges: set[tuple[str, str]] = set()
        self.variables: dict[tuple[str, str], Any] = {}
        self.leases: dict[str, Lease] = {}

    def lease(self, state: str) -> Lease:
        return self.leases.get(state, Lease(state=state))

    def apply(self, operations: list[Operation], fence: Fence | None, now_ms: int) -> list[Result]:
        _need(fence is None or (fence.holder != "" and self.lease(fence.state).fence == fence))
        results: list[Result] = []
        for operation in operations:
            result = self.do(operation, fence, now_ms)
            fence = result.fence if isinstance(operation, op.ClaimLease) and isinstance(result, Lease) else fence
            results.append(result)
        return results

    def do(self, operation: Operation, fence: Fence | None, now_ms: int) -> Result:  # noqa: PLR0911 -- a list
        match operation:
            case op.CreateItem(id_, _, properties):
                _need(id_ not in self.items)
                return self.write(id_, properties, now_ms)
            case op.UpdateItem(id_, properties, version):
                _need(id_ in self.items and version in (None, self.items[id_]["version"]))
                return self.write(id_, properties, now_ms)
            case op.DeleteItem(id_):
                if self.is_there(id_):
                    return self.write(id_, {"deleted": True}, now_ms)
                return Written(id_, self.items.get(id_, {"version": 0})["version"], now_ms)
            case op.CreateEdge(source, _, target):
                _need(self.is_there(source) and self.is_there(target))
                self.edges.add((source, target))
            case op.DeleteEdge(source, _, target):
                self.edges.discard((source, target))
            case op.SetVariable(state, name) | op.DeleteVariable(state, name) | op.IncrementVariable(state, name):
                lease, there = self.lease(state), self.variables.pop((state, name), None)
                _need(fence.state == state if fence else not lease.holder or lease.expires_ms <= now_ms)
                if fence is None and lease.holder:
                    self.put(Lease(state=state, epoch=lease.epoch + 1))
                if isinstance(operation, op.IncrementVariable):
                    _need(not isinstance(there, str | bool))
                    total = self.variables[state, name] = (there or 0) + operation.by
                    _need(isinstance(total, float) or total <= MAX_INTEGER)
                    return total
                _need(operation.expected is None or repr(operation.expected.value) == repr(there))
                if isinstance(operation, op.SetVariable):
                    self.variables[state, name] = operation.value
            case op.ClaimLease(state, run, holder, duration_ms):
                lease = self.lease(state)
                _need(fence is None)
                _need(lease.holder in ("", holder) or lease.expires_ms <= now_ms)
                epoch = lease.epoch + (lease.holder != holder)
                lease = Lease(state=state, epoch=epoch, holder=holder, run=run, expires_ms=now_ms + duration_ms)
                return self.put(lease)
            case op.RenewLease(right, duration_ms):
                lease = self.lease(right.state)
                _need(lease.fence == right)
                return self.put(replace(lease, expires_ms=now_ms + duration_ms))
            case op.EndLease(state):
                lease = self.lease(state)
                _need(fence is None)
                return self.put(Lease(state=state, epoch=lease.epoch + 1)) if lease.holder else lease
            case _:
                raise AssertionError(operation)
        return None

    def is_there(self, id_: str) -> bool:
        return id_ in self.items and not self.items[id_]["deleted"]

    def write(self, id_: str, properties: Mapping[str, Value | None], now_ms: int) -> Written:
        item = self.items.setdefault(id_, {"deleted": False, "version": 0})
        item.update(properties, version=item["version"] + 1, written_ms=now_ms)
        return Written(id_, item["version"], now_ms)

    def put(self, lease: Lease) -> Lease:
        self.leases[lease.state] = lease
        return lease


class StoreMachine(RuleBasedStateMachine):
    """Whatever is done to a store, in whatever order: it answers as a plain model does, and holds the same."""

    def open_store(self, clock: FakeClock) -> Store:
        """Open the store under test, empty; it is closed at the end."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(T0)
        self.store = self.open_store(self.clock)
        self.model = _Model()
        apply(self.store, op.DeclareTypes((THING,)))

    def teardown(self) -> None:
        """Close the store."""
        self.store.close()

    @rule(ms=st.integers(1, 20))
    def advance(self, ms: int) -> None:
        """Let leases lapse."""
        self.clock.advance(ms)

    @rule(operations=st.lists(_operations, max_size=4), holds=st.none() | _states)
    def write(self, operations: list[Operation], holds: str | None) -> None:
        """Apply a batch of the owner, or of the run that holds a plugin state."""
        fence = self.model.lease(holds).fence if holds else None
        model, expected = copy.deepcopy(self.model), None
        with suppress(_Refused):
            expected = model.apply(operations, fence, self.clock.now_ms())
            self.model = model
        answer = None
        with suppress(HoldfastError):
            answer = [*apply(self.store, *operations, fence=fence)]
        assert repr(answer) == repr(expected)

    @invariant()
    def they_hold_the_same(self) -> None:
        """Every way of reading gives what the model holds."""
        model, store = self.model, self.store
        rows = store.find_items(["a", "b", "c"])
        assert model.items == {
            row.id: {"version": row.version, "deleted": row.is_deleted, "written_ms": row.server_modified_ms}
            | dict(row.properties)
            for row in rows.values()
        }
        order = sorted(model.items, key=lambda id_: model.items[id_]["written_ms"])  # stable: in order of creation
        there = list(filter(model.is_there, order))
        assert [found.item for found in store.search(Query(is_deleted=None))] == [rows[id_] for id_ in order]
        assert found_ids(store, type="Thing", is_descending=True) == "".join(reversed(there))
        ones = [id_ for id_ in there if model.items[id_].get("indexed") == 1]
        assert found_ids(store, type="Thing", conditions=where("indexed", "==", 1)) == "".join(ones)
        edges = {(source, target) for source, target in model.edges if {source, target} <= {*there}}
        outgoing, incoming = (
            store.list_edges(list(rows), direction).items() for direction in (Direction.OUTGOING, Direction.INCOMING)
        )
        assert {(id_, row.item.id) for id_, listed in outgoing for row in listed} == edges
        assert {(row.item.id, id_) for id_, listed in incoming for row in listed} == edges
        for state in "st":
            assert store.find_lease(state) == model.leases.get(state)
            variables = {name: value for (of, name), value in sorted(model.variables.items()) if of == state}
            assert repr(dict(store.list_variables(state))) == repr(variables)
