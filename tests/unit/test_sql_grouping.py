"""Batches that are written together: what they mean to each other, and to those who wait for them."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from holdfast.errors import ConflictError, FencedError, HoldfastError, InvalidError, NotFoundError, UnavailableError
from holdfast.interrupts import uninterrupted
from holdfast.items import PropertyDefinition, TypeDefinition
from holdfast.runs import Fence
from holdfast.sql import SqliteStore
from holdfast.sql.grouping import GroupedStore
from holdfast.store import (
    Batch,
    Comparison,
    Condition,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    DeleteItem,
    IncrementVariable,
    Query,
    RenewLease,
    Result,
    SetVariable,
    UpdateItem,
    Written,
)
from holdfast.testing import FakeClock
from holdfast.values import Kind

KEY = bytes(32)
DOG = DeclareTypes(
    (TypeDefinition("Dog", {"age": PropertyDefinition(Kind.INTEGER, is_indexed=True)}, {"e": ("Dog",)}),)
)
CAT = DeclareTypes((TypeDefinition("Cat", {"name": PropertyDefinition(Kind.TEXT, is_indexed=True)}),))
REFUSED = UpdateItem("absent", {})


class Gated(SqliteStore):
    """A file whose writes stand at a gate until it is opened, and that notes how many batches came together."""

    def __init__(self, path: Path, *, clock: FakeClock | None = None) -> None:
        super().__init__(path, KEY, clock=clock or FakeClock(5))
        self.gate = threading.Event()
        self.groups: list[int] = []
        self.failure: BaseException | None = None

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Wait, and apply."""
        self.stand(1)
        return super().apply(batch)

    def apply_all(self, batches: Sequence[Batch]) -> list[tuple[Result, ...] | HoldfastError]:
        """Wait, and apply; or fail."""
        self.stand(len(batches))
        if self.failure is not None:
            raise self.failure
        return super().apply_all(batches)

    def stand(self, count: int) -> None:
        """Wait at the gate."""
        self.groups.append(count)
        assert self.gate.wait(60)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Gated]:
    """Return an empty file with a closed gate."""
    with Gated(tmp_path / "pod.db") as store:
        yield store


@pytest.fixture
def store(file: Gated) -> Iterator[GroupedStore]:
    """Return that file, written to in groups."""
    grouped = GroupedStore(file)
    yield grouped
    file.gate.set()
    grouped.close()


def until(condition: Callable[[], object]) -> None:
    """Wait until something holds that a thread is about to do."""
    pause = threading.Event()
    for _ in range(60_000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError(condition)


@contextmanager
def writing(store: GroupedStore, file: Gated, *batches: Batch) -> Generator[list[Future[tuple[Result, ...]]]]:
    """Let a thread wait for each batch: the first alone at the gate, the others behind it, in order.

    At the end of the block the gate is opened.
    """
    with ThreadPoolExecutor(len(batches)) as pool:
        futures: list[Future[tuple[Result, ...]]] = []
        for number, batch in enumerate(batches, 1):
            futures.append(pool.submit(store.apply, batch))
            until(lambda number=number: file.groups and len(store._queue) == number)
        try:
            yield futures
        finally:
            file.gate.set()


def put(name: str) -> Batch:
    """Return a batch that sets a variable."""
    return Batch((SetVariable("s", name, True),))


# -- in one transaction -----------------------------------------------------------------------------------------------


def test_a_refused_batch_leaves_nothing_and_its_neighbours_are_there(file: Gated) -> None:
    """No row of any table, none of an index either; those after it see what those before it wrote."""
    file.gate.set()
    file.apply(Batch((DOG, CreateItem("a", "Dog", {"age": 1}), CreateItem("b", "Dog", {"age": 1}))))
    file.apply(Batch((CreateItem("taken", "Dog"),)))
    answers = file.apply_all(
        [
            Batch((UpdateItem("a", {"age": 2}),), None, "k1"),
            Batch(
                (
                    UpdateItem("a", {"age": 3}),
                    DeleteItem("b"),
                    CreateItem("c", "Dog", {"age": 1}),
                    CreateEdge("a", "e", "c"),
                    SetVariable("s", "x", 1),
                    CAT,
                    CreateItem("taken", "Dog"),  # which is only found out when the others are written
                ),
                None,
                "k2",
            ),
            Batch((UpdateItem("a", {}, 2), CreateItem("c", "Dog", {"age": 2})), None, "k3"),
        ]
    )
    assert answers[0] == (Written("a", 2, 5),)
    assert isinstance(answers[1], ConflictError)
    assert answers[2] == (Written("a", 3, 5), Written("c", 1, 5))
    for age, ids in ((1, ["b"]), (2, ["a", "c"]), (3, [])):
        query = Query(type="Dog", conditions=(Condition("age", Comparison.EQUAL, age),))
        assert [found.item.id for found in file.search(query)] == ids
    assert file.list_variables("s") == {}
    assert "Cat" not in file.schema()
    with file._reading() as db:
        assert list(db.execute("SELECT value, item FROM indexed ORDER BY 1, 2")) == [(1, 2), (2, 1), (2, 4)]
        assert [key for (key,) in db.execute("SELECT key FROM applied ORDER BY 1")] == ["k1", "k3"]
        assert db.execute("PRAGMA integrity_check").get == "ok"


def test_a_type_is_known_to_those_after_it_and_a_refused_one_to_nobody(file: Gated) -> None:
    """In the same transaction and after it, also when another type takes the place of the refused one."""
    file.gate.set()
    taken = CreateItem("taken", "Person")
    answers = file.apply_all(
        [
            Batch((taken,)),
            Batch((DOG, taken)),
            Batch((CreateItem("a", "Dog"),)),
            Batch((CAT,)),
            Batch((CreateItem("b", "Cat", {"name": "Tom"}),)),
            Batch((DOG, taken)),
            Batch((CreateItem("c", "Cat", {"name": "Tom"}),)),
        ]
    )
    kinds = [tuple, ConflictError, InvalidError, tuple, tuple, ConflictError, tuple]
    assert [type(answer) for answer in answers] == kinds
    assert {"Dog", "Cat"} & file.schema().keys() == {"Cat"}
    query = Query(type="Cat", conditions=(Condition("name", Comparison.EQUAL, "Tom"),))
    assert [found.item.id for found in file.search(query)] == ["b", "c"]


def test_a_batch_that_comes_twice_in_a_group_is_done_once(file: Gated) -> None:
    """And another one under its key is refused, as if it had come later."""
    file.gate.set()
    batch = Batch((IncrementVariable("s", "n"),), None, "k")
    answers = file.apply_all([batch, batch, Batch((), None, "k")])
    assert answers[:2] == [(1,), (1,)]
    assert isinstance(answers[2], ConflictError)
    assert file.apply_all([]) == []


@pytest.mark.parametrize("kind", [SystemExit, UnavailableError])
def test_an_exception_in_the_middle_undoes_all(tmp_path: Path, kind: type[BaseException]) -> None:
    """Unless it says that a batch is refused. The same store goes on afterwards, and takes no type for known."""

    class Bomb(FakeClock):
        left = 10

        def now_ms(self) -> int:
            self.left -= 1
            if not self.left:
                raise kind("the clock stands still")
            return 5

    clock = Bomb()
    with SqliteStore(tmp_path / "pod.db", KEY, clock=clock) as store:
        clock.left = 3
        with pytest.raises(kind):
            store.apply_all([Batch((DOG,)), Batch((CreateItem("a", "Dog"),)), put("x")])
        assert store.list_variables("s") == store.find_items(["a"]) == {}
        with SqliteStore(tmp_path / "pod.db", KEY) as other:
            other.apply(Batch((CAT,)))
        assert {"Dog", "Cat"} & store.schema().keys() == {"Cat"}


# -- in groups --------------------------------------------------------------------------------------------------------


def test_what_comes_during_a_write_is_written_together(store: GroupedStore, file: Gated) -> None:
    """Each thread is told what became of its own batch; nobody is told before the commit."""
    refused = Batch((SetVariable("s", "x", 1), REFUSED))
    counting = [Batch((IncrementVariable("s", "n"),)) for _ in range(3)]
    with writing(store, file, put("first"), counting[0], refused, *counting[1:]) as futures:
        assert store.list_variables("s") == {}
        assert not any(future.done() for future in futures)
    assert file.groups == [1, 4]
    assert isinstance(futures.pop(2).exception(), NotFoundError)
    assert [future.result() for future in futures] == [(None,), (1,), (2,), (3,)]
    assert store.list_variables("s") == {"first": True, "n": 3}


@pytest.mark.parametrize(
    "batches, groups",
    [
        ([Batch(())] * 300, [1, 256, 43]),
        ([Batch((DeleteItem("a"),) * count) for count in (1, 10_000, 10_000, 1, 20_001, 1)], [1, 2, 1, 1, 1]),
        ([Batch((SetVariable("s", "n", "x" * 2**25),))] * 4, [1, 1, 1, 1]),
        ([Batch((SetVariable("s", "n", "x" * (2**25 - 200)),))] * 4, [1, 2, 1]),
    ],
    ids=["256 batches", "20,000 operations", "64 MiB and more", "64 MiB"],
)
def test_a_group_is_bounded(tmp_path: Path, batches: list[Batch], groups: list[int]) -> None:
    """In batches, operations and bytes, so that other writers come to their turn; only one alone may be larger."""

    class Counting(Gated):
        def apply(self, batch: Batch) -> tuple[Result, ...]:
            self.stand(1)
            return ()

        def apply_all(self, batches: Sequence[Batch]) -> list[tuple[Result, ...] | HoldfastError]:
            self.stand(len(batches))
            return [()] * len(batches)

    with Counting(tmp_path / "pod.db") as file:
        store = GroupedStore(file)
        with writing(store, file, *batches) as futures:
            pass
        store.close()
        assert [future.result() for future in futures] == [()] * len(batches)
        assert file.groups == groups


def test_a_defect_that_one_batch_meets_is_its_own(store: GroupedStore, file: Gated) -> None:
    """The others are written without it, and the thread goes on."""

    class Unheard(DeleteItem):
        """An operation that nobody can evaluate."""

    with writing(store, file, put("a"), put("b"), Batch((Unheard("x"),)), put("c")) as futures:
        pass
    assert type(futures.pop(2).exception()) is KeyError
    assert [future.result() for future in futures] == [(None,)] * 3
    assert store.apply(put("d")) == (None,)
    assert store.list_variables("s").keys() == {"a", "b", "c", "d"}


def test_a_disk_that_fails_fails_all_of_a_group_and_each_hears_of_it(store: GroupedStore, file: Gated) -> None:
    """As an error of its own, for each thread adds to it where it was raised; the next group may do better."""
    file.failure = UnavailableError("the disk is full", path="x")
    with writing(store, file, put("a"), put("b"), put("c")) as futures:
        pass
    errors = [future.exception() for future in futures[1:]]
    assert [(type(error), str(error)) for error in errors] == [(UnavailableError, "the disk is full")] * 2
    assert errors[0] is not errors[1]
    assert [error.__cause__ for error in errors if error] == [file.failure] * 2
    assert [error.facts for error in errors if isinstance(error, HoldfastError)] == [{"path": "x"}] * 2
    assert store.list_variables("s") == {"a": True}
    assert store.apply(put("d")) == (None,)


def test_closing_carries_out_what_waits_and_refuses_what_comes(store: GroupedStore, file: Gated) -> None:
    """Whoever was let in is answered. The file is free afterwards."""
    with writing(store, file, put("a"), put("b"), put("c")) as futures:
        closing = threading.Thread(target=store.close)
        closing.start()
        until(lambda: store._is_closed)
        with pytest.raises(UnavailableError, match="was closed") as refused:
            store.apply(put("d"))
        assert refused.value.facts == {"path": str(file.path)}
        assert closing.is_alive()
    closing.join()
    store.close()
    assert [future.result() for future in futures] == [(None,)] * 3
    with SqliteStore(file.path, KEY) as other:
        assert other.list_variables("s").keys() == {"a", "b", "c"}


# -- company ----------------------------------------------------------------------------------------------------------

FOR_EVER_S = 3600.0
"""Longer than a test may take: who waits that long waits for something else."""


@contextmanager
def crowded(file: Gated, count: int) -> Generator[GroupedStore]:
    """Yield a store that waits for company for ever, after one batch alone and so many together."""
    store = GroupedStore(file, patience_s=FOR_EVER_S)
    try:
        with writing(store, file, *[put("x")] * (count + 1)):
            pass
        until(lambda: not store._queue)
        assert file.groups == [1, count]
        yield store
    finally:
        file.gate.set()
        store.close()


def come(store: GroupedStore, pool: ThreadPoolExecutor, count: int) -> None:
    """Let so many more wait, one after the other."""
    for number in range(len(store._queue) + 1, len(store._queue) + count + 1):
        pool.submit(store.apply, put("y"))
        until(lambda number=number: len(store._queue) == number)


def test_who_writes_alone_or_with_one_other_waits_for_nobody(file: Gated) -> None:
    """However patient the store is, and after a pair has met by chance."""
    with crowded(file, 2) as store:
        assert [store.apply(put(name)) for name in "abc"] == [(None,)] * 3
        assert file.groups == [1, 2, 1, 1, 1]


@pytest.mark.parametrize("count, company", [(3, 2), (5, 4), (17, 16), (40, 16)])
def test_a_group_waits_for_as_many_as_lately_but_one(file: Gated, count: int, company: int) -> None:
    """But for sixteen at most; the last of them are enough to let the next ones wait for as many."""
    with ThreadPoolExecutor(company) as pool, crowded(file, count) as store:
        for _ in range(2):
            futures = [pool.submit(store.apply, put("y")) for _ in range(company)]
            assert [future.result() for future in futures] == [(None,)] * company
        assert file.groups == [1, count, company, company]


def test_what_is_looked_at_is_the_last_eight_groups(file: Gated) -> None:
    """Of which one that was larger counts, and one before them does not."""
    with ThreadPoolExecutor(3) as pool, crowded(file, 4) as store:
        for company in (*[3] * 8, 2):
            file.gate.clear()
            come(store, pool, company)
            file.gate.set()
            until(lambda: not store._queue)
        assert file.groups == [1, 4, *[3] * 8, 2]


def test_who_was_left_behind_waits_in_vain_once(file: Gated) -> None:
    """Then is written alone, and so are those after it."""
    with crowded(file, 5) as store:
        store._patience_s = 0
        assert store.apply(put("a")) == (None,)
        store._patience_s = FOR_EVER_S
        assert store.apply(put("b")) == (None,)
        assert file.groups == [1, 5, 1, 1]


def test_a_group_that_was_less_than_expected_changes_nothing(file: Gated) -> None:
    """Unless it is one alone: the others may have been late."""
    with ThreadPoolExecutor(6) as pool, crowded(file, 5) as store:
        file.gate.clear()
        come(store, pool, 4)
        until(lambda: len(file.groups) == 3)
        store._patience_s = 0
        come(store, pool, 2)
        file.gate.set()
        until(lambda: not store._queue)
        store._patience_s = FOR_EVER_S
        file.gate.clear()
        come(store, pool, 4)
        file.gate.set()
        until(lambda: not store._queue)
        assert file.groups == [1, 5, 4, 2, 4]


def test_a_renewal_waits_for_no_company_and_takes_those_along_who_do(file: Gated) -> None:
    """A lease runs while it waits. Here there is none to be renewed."""
    with ThreadPoolExecutor(1) as pool, crowded(file, 5) as store:
        waiting = pool.submit(store.apply, put("a"))
        until(lambda: store._queue)
        with pytest.raises(FencedError):
            store.apply(Batch((RenewLease(Fence(state="absent", epoch=1, holder="h"), 1_000),)))
        assert waiting.result() == (None,)
        assert file.groups == [1, 5, 2]


def test_closing_ends_the_wait_for_company(file: Gated) -> None:
    """Whoever was let in is answered."""
    with ThreadPoolExecutor(1) as pool, crowded(file, 5) as store:
        waiting = pool.submit(store.apply, put("a"))
        until(lambda: store._queue)
        store.close()
        assert waiting.result() == (None,)


def test_who_waits_for_company_is_not_answered_and_takes_its_batch_back_at_ctrl_c(file: Gated) -> None:
    """The thread that writes goes on without it, also when nobody else came in time."""
    with crowded(file, 3) as store:
        writer = store._writer
        assert writer is not None
        pressing = interrupted(lambda: store._queue)
        with pytest.raises(KeyboardInterrupt):
            store.apply(put("a"))
        pressing.join()
        with store._changed:  # as when its patience has ended
            store._lately.clear()
            store._changed.notify()
        writer.join(0.1)  # one that took nothing for the end would end now
        assert store.apply(put("b")) == (None,)
        assert store._writer is writer
        assert store.list_variables("s").keys() == {"x", "b"}


# -- interrupted ------------------------------------------------------------------------------------------------------


def interrupted(condition: Callable[[], object]) -> threading.Thread:
    """Start a thread that presses Ctrl-C once something holds."""

    def press() -> None:
        until(condition)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@pytest.mark.parametrize("is_inside", [False, True], ids=["at once", "inside a block that waits"])
def test_ctrl_c_takes_back_a_batch_that_waits(store: GroupedStore, file: Gated, is_inside: bool) -> None:
    """It is raised while others are still being written, and the batch was not done."""
    with writing(store, file, put("a")) as futures:
        pressing = interrupted(lambda: len(store._queue) == 2)
        with pytest.raises(KeyboardInterrupt), uninterrupted() if is_inside else nullcontext():
            store.apply(put("b"))
        pressing.join()
        assert not futures[0].done()
    assert futures[0].result() == store.apply(put("c")) == (None,)
    assert store.list_variables("s").keys() == {"a", "c"}


def test_ctrl_c_while_a_batch_is_written_leaves_it_whole(store: GroupedStore, file: Gated) -> None:
    """The caller is not kept waiting; the thread is, and goes on."""
    pressing = interrupted(lambda: file.groups)
    with pytest.raises(KeyboardInterrupt):
        store.apply(Batch((SetVariable("s", "x", 1), SetVariable("s", "y", 1))))
    pressing.join()
    file.gate.set()
    assert store.apply(put("z")) == (None,)
    assert store.list_variables("s").keys() == {"x", "y", "z"}


def test_ctrl_c_inside_a_block_waits_for_a_batch_that_is_written(store: GroupedStore, file: Gated) -> None:
    """Such a block is for those who must know whether it was."""
    pressing = interrupted(lambda: file.groups)
    opening = threading.Timer(0.3, file.gate.set)
    opening.start()
    results: list[object] = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        results.append(store.apply(put("x")))
    pressing.join()
    assert results == [(None,)]


# -- the thread -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_tells_those_who_wait_and_the_next_write_has_another(
    store: GroupedStore, file: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of a store that answers fewer than it was asked; Python prints of what a thread died."""
    with writing(store, file, put("a"), put("b"), put("c"), put("d")) as futures:
        monkeypatch.setattr(file, "apply_all", lambda _: [(None,)])
    assert [future.result() for future in futures[:2]] == [(None,)] * 2
    for future in futures[2:]:
        with pytest.raises(
            UnavailableError, match=r"the thread that writes to the Pod .*pod\.db' has ended"
        ) as refused:
            future.result()
        assert refused.value.facts == {"path": str(file.path)}
    assert store.apply(put("e")) == (None,)
    assert store.list_variables("s").keys() == {"a", "e"}


def test_without_a_thread_a_write_is_refused_and_a_later_one_is_not(store: GroupedStore, file: Gated) -> None:
    """A machine may have no more of them, or no memory for one."""
    file.gate.set()
    threading.stack_size(2**50)
    try:
        with pytest.raises(UnavailableError, match=r"pod\.db' cannot be written to: can't start new thread") as refused:
            store.apply(put("a"))
        assert refused.value.facts == {"path": str(file.path)}
    finally:
        threading.stack_size(0)
    assert store.apply(put("b")) == (None,)
    assert store.list_variables("s").keys() == {"b"}
