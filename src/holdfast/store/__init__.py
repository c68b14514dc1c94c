"""What a Pod must offer: one atomic write, `Store.apply`, and consistent reads.

A transaction is a value: a `Batch` of operations with preconditions, evaluated by the store that applies it. What a
store is made of (SQLite in this process, PostgreSQL, HTTP to a Pod far away) is not noticeable through this protocol,
and one contract suite, in `holdfast.testing`, holds every store to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from holdfast.items import Schema
from holdfast.runs import Lease
from holdfast.store.evaluation import (
    Changes,
    EdgeKey,
    ItemRow,
    LogEnd,
    LogKey,
    LogPart,
    Needs,
    Question,
    Result,
    Rows,
    VariableKey,
    Written,
    evaluate,
    exists_already,
    first_parts,
    guards,
    needs,
)
from holdfast.store.operations import (
    KEY_KEPT_MS,
    MAX_BYTES,
    MAX_LOG_BYTES,
    MAX_LOG_PART_BYTES,
    MAX_OPERATIONS,
    SWEPT_KEYS,
    AnswerQuestion,
    AppendLog,
    AskQuestion,
    Batch,
    CancelLease,
    ClaimLease,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    DeleteEdge,
    DeleteItem,
    DeleteQuestion,
    DeleteVariable,
    EndLease,
    Expected,
    ExpireLogs,
    IncrementVariable,
    MoveRun,
    Operation,
    PointSnapshot,
    ReleaseLease,
    RenewLease,
    SetProgress,
    SetVariable,
    UpdateItem,
    size_bytes,
)
from holdfast.store.query import Comparison, Condition, Direction, EdgeRow, Found, Query, query_from, refuse_secrets
from holdfast.values import Value

__all__ = [
    "KEY_KEPT_MS",
    "MAX_BYTES",
    "MAX_LOG_BYTES",
    "MAX_LOG_PART_BYTES",
    "MAX_OPERATIONS",
    "SWEPT_KEYS",
    "AnswerQuestion",
    "AppendLog",
    "AskQuestion",
    "Batch",
    "CancelLease",
    "Changes",
    "ClaimLease",
    "Comparison",
    "Condition",
    "CreateEdge",
    "CreateItem",
    "DeclareTypes",
    "DeleteEdge",
    "DeleteItem",
    "DeleteQuestion",
    "DeleteVariable",
    "Direction",
    "EdgeKey",
    "EdgeRow",
    "EndLease",
    "Expected",
    "ExpireLogs",
    "Found",
    "IncrementVariable",
    "ItemRow",
    "LogEnd",
    "LogKey",
    "LogPart",
    "MoveRun",
    "Needs",
    "Operation",
    "PointSnapshot",
    "Query",
    "Question",
    "ReleaseLease",
    "RenewLease",
    "Result",
    "Rows",
    "SetProgress",
    "SetVariable",
    "Store",
    "UpdateItem",
    "VariableKey",
    "Written",
    "evaluate",
    "exists_already",
    "first_parts",
    "guards",
    "needs",
    "query_from",
    "refuse_secrets",
    "size_bytes",
]


class Store(Protocol):
    """What a Pod must offer. All methods may be called from any thread.

    Each raises UnavailableError when the Pod cannot be reached or is busy for too long, and DamagedError when what it
    holds cannot be read.
    """

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Apply all operations of ``batch``, in order, or none; return the result of each.

        When this returns, the batch survives the death of any process and the loss of power. When it raises one of
        the errors below, nothing was changed. When it raises UnavailableError, or the process dies, the batch is
        there whole or not at all.

        Operations see the effects of those before them in the batch; nobody else sees any before all are done.

        A batch that was applied under its key is answered what it was answered then, and changes nothing: also if its
        fence was superseded since, or the store opened anew. One that was refused has left no key behind. A key is
        forgotten after `KEY_KEPT_MS`.

        Raises:
            FencedError: The batch's fence was superseded.
            ConflictError: A precondition does not hold, an id is taken, or somebody holds the plugin state; or other
                operations, or with another fence, were applied under the key.
            NotFoundError: A row that is written to does not exist.
            InvalidError: The schema, or the nature of a value, says no.
            DeniedError: A run writes to what it does not hold.
        """
        ...

    def schema(self) -> Schema:
        """Return every type that is declared, the built-in ones included."""
        ...

    def find_items(self, ids: Sequence[str]) -> Mapping[str, ItemRow]:
        """Return the items with these ids, deleted ones included; absent ones are left out."""
        ...

    def search(self, query: Query) -> list[Found]:
        """Return what ``query`` describes, as of one moment."""
        ...

    def list_edges(
        self, ids: Sequence[str], direction: Direction, *, with_deleted: bool = False
    ) -> Mapping[str, list[EdgeRow]]:
        """Return the edges of each of these items in the order of creation, as of one moment.

        Edges to or from deleted items are left out unless ``with_deleted``, and so are items without edges.
        """
        ...

    def list_variables(self, state: str, namespace: str = "") -> Mapping[str, Value]:
        """Return the variables of one namespace of a plugin state, by name, in the order of their names."""
        ...

    def find_lease(self, state: str) -> Lease | None:
        """Return the lease of a plugin state as last written, expired or not; None if it was never claimed."""
        ...

    def find_snapshot(self, state: str) -> str | None:
        """Return the snapshot that a plugin state resumes from."""
        ...

    def list_questions(self, state: str) -> list[Question]:
        """Return the questions of a plugin state, in the order they were asked."""
        ...

    def list_log(self, run: str, after: int = 0) -> list[LogPart]:
        """Return what the launches of a run wrote, in the order in which it was kept, from after a part's number on.

        At most 1 MiB, or one part that is larger: ask again after the last one. Empty: there is no more, yet. Nothing
        that is kept later comes before what was read.
        """
        ...

    def find_log_end(self, run: str, source: str) -> str:
        """Return where the last part of a source ends that was kept in the log of a run; "" if there was none."""
        ...

    def now_ms(self) -> int:
        """Return the clock of the store, milliseconds since 1970: the one that leases are measured on."""
        ...

    def close(self) -> None:
        """Let go of files and connections; calling it twice is harmless, using the store afterwards reopens it not."""
        ...
