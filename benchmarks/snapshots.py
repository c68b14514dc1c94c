"""Snapshots, beside what they cannot beat (a copy in memory, the disk itself, three flushes) and beside their peers."""

from __future__ import annotations

import importlib
import itertools
import mmap
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.measure import Cost, Row, compare, cost, counted
from holdfast.snapshots.saving import StateStore

BLOCK_BYTES: Final = 8 * 2**20
TINY_SAVES: Final = 20
UNCHANGED_SAVES: Final = 200


class Held:
    """An object whose state is one tree."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree

    def get_state(self) -> dict[str, Any]:
        """Return it."""
        return self.tree

    def set_state(self, tree: dict[str, Any]) -> None:
        """Take it."""
        self.tree = tree


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how much to measure; see `benchmarks.pods.Bench`.

    Attributes:
        mib: How large the state is, in arrays of 16 MiB.
    """

    folder: Path
    rounds: int
    mib: int = 256

    def rows(self) -> Iterator[Row]:
        """Measure one row after the other."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            yield from self.large(Path(name))
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            yield from self.tiny(Path(name))
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            yield from unchanged(Path(name))

    def large(self, place: Path) -> Iterator[Row]:
        """Save and load arrays."""
        random = np.random.default_rng(0)
        arrays = {f"w{number}": random.integers(0, 256, 2**24, dtype="u1") for number in range(self.mib // 16)}
        state, copy, file = Held(arrays), {name: array.copy() for name, array in arrays.items()}, place / "raw"
        size = self.mib * 2**20
        with StateStore(place / "states", "%s.%f") as store:
            store.register("model", state)
            store.save_state()
            change = itertools.cycle(range(1, 256))

            def dense() -> None:
                for array in arrays.values():
                    np.add(array, np.uint8(next(change)), out=array)

            def sparse() -> None:
                for array in itertools.islice(arrays.values(), None, None, 4):  # in one place of every fourth array
                    array[: len(array) // 25] += np.uint8(next(change))

            def stall(touch: Callable[[], None]) -> Cost:
                touch()
                forget(place / "states")
                cpu_s = time.process_time()
                save = store.save_state_async()
                taken = Cost(save.stall_s, time.process_time() - cpu_s)
                save.result()
                return taken

            def whole(touch: Callable[[], None]) -> Cost:
                touch()
                forget(place / "states")
                return cost(store.save_state)

            def raw() -> Cost:
                file.unlink(missing_ok=True)
                return cost(partial(write_raw, file, memory))

            def copy_all() -> None:
                for name, array in arrays.items():
                    np.copyto(copy[name], array)

            memory = page_aligned(size)
            compared = partial(compare, rounds=self.rounds)
            shown = f"{self.mib} MiB of arrays"
            yield compared(
                f"stall of a snapshot: {shown}, all changed",
                "one copy in memory",
                measure=partial(stall, dense),
                measure_limit=partial(cost, copy_all),
                goal=1.1,
            )
            yield compared(
                f"stall of a snapshot: {shown}, 1 % changed",
                "one copy in memory",
                measure=partial(stall, sparse),
                measure_limit=partial(cost, copy_all),
                goal=0.85,
            )
            yield compared(
                f"durable snapshot: {shown}, all changed",
                "raw write around the cache",
                measure=partial(whole, dense),
                measure_limit=raw,
                goal=1.25,
            )
            yield compared(
                f"durable snapshot: {shown}, 1 % changed",
                "all changed",
                measure=partial(whole, sparse),
                measure_limit=partial(whole, dense),
                goal=0.2,
            )
            path = store.save_state()
            raw()
            yield compared(
                f"load and verify: {shown}",
                "raw read around the cache",
                measure=partial(cost, partial(store.load_state, path)),
                measure_limit=partial(cost, partial(read_raw, file, size)),
                goal=1.1,
            )
            for peer, save_there in peers(place, arrays):
                yield compared(
                    f"durable snapshot: {shown}, all changed",
                    peer,
                    measure=partial(whole, dense),
                    measure_limit=partial(cost, save_there),
                )

    def tiny(self, place: Path) -> Iterator[Row]:
        """Save a few values."""
        state = Held({"step": 0, "name": "tiny"})
        with StateStore(place / "states", "%s.%f") as store:
            store.register("state", state)
            numbers = itertools.count()

            def save() -> None:
                for state.tree["step"] in itertools.islice(numbers, TINY_SAVES):
                    store.save_state()

            def measured() -> Cost:
                forget(place / "states")
                return cost(save)

            yield compare(
                "durable snapshot: a few values",
                "three flushes: two new files, a folder",
                rounds=self.rounds,
                measure=measured,
                measure_limit=partial(cost, partial(flush_three, place, numbers)),
                goal=1.3,
            )
            orbax = find("orbax.checkpoint")
            if orbax is not None:
                checkpointer = orbax.PyTreeCheckpointer()

                def save_there() -> None:
                    for number in itertools.islice(numbers, TINY_SAVES):
                        checkpointer.save(place / f"orbax{number}", {"step": np.int64(number)})

                yield compare(
                    "durable snapshot: a few values",
                    "Orbax",
                    rounds=self.rounds,
                    measure=measured,
                    measure_limit=partial(cost, save_there),
                    goal=0.067,
                )


def unchanged(place: Path) -> Iterator[Row]:
    """Save the same megabyte again and again."""
    tree = {"w": np.random.default_rng(0).integers(0, 256, 2**20, dtype="u1")}
    ours, theirs = place / "ours", place / "theirs"

    def save() -> None:
        with StateStore(ours, "%s.%f") as store:
            store.register("model", Held(tree))
            for _ in range(UNCHANGED_SAVES):
                store.save_state()

    def save_there() -> None:
        for number in range(UNCHANGED_SAVES):
            (theirs / str(number)).mkdir(parents=True)
            with (theirs / str(number) / "model").open("wb") as file:
                pickle.dump(tree, file)

    work = f"{UNCHANGED_SAVES} snapshots of an unchanged MiB"
    taken, taken_there = cost(save), cost(save_there)
    yield counted(f"{work}: time", "mkdir and pickle, not durable", taken.wall_s / taken_there.wall_s)
    yield counted(f"{work}: room on the disk", "mkdir and pickle", used(ours) / used(theirs))


def peers(place: Path, arrays: dict[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield other ways to have arrays durably in a file, and their names."""
    target = place / "peer"

    def durable(write: Callable[[Path], object]) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        write(target / "it")
        for path in (*target.rglob("*"), target, place):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    def pickled(path: Path) -> None:
        with path.open("wb") as file:
            pickle.dump(arrays, file, protocol=5)

    yield "mkdir, pickle, flush", partial(durable, pickled)
    yield "numpy.savez, flush", partial(durable, lambda path: np.savez(path, **arrays))
    safetensors = find("safetensors.numpy")
    if safetensors is not None:
        yield "safetensors, flush", partial(durable, lambda path: safetensors.save_file(arrays, path))
    shutil.rmtree(target, ignore_errors=True)


def find(name: str) -> Any:
    """Return a peer's module; None if it is not installed."""
    with suppress(ImportError):
        return importlib.import_module(name)
    print(f"{name} is not installed: its rows are left out", file=sys.stderr)
    return None


def forget(states: Path) -> None:
    """Remove all snapshots but the newest one."""
    for path in sorted(path for path in states.glob("*") if not path.name.startswith("."))[:-1]:
        shutil.rmtree(path)


def used(folder: Path) -> int:
    """Return how many bytes of the disk a folder takes; a file with several names is one."""
    found = {status.st_ino: status.st_blocks * 512 for status in (path.lstat() for path in folder.rglob("*"))}
    return sum(found.values())


def page_aligned(size: int) -> memoryview:
    """Return memory that can be written around the cache, and is there."""
    memory = mmap.mmap(-1, size)
    for start in range(0, size, mmap.PAGESIZE):
        memory[start] = start // mmap.PAGESIZE % 251
    return memoryview(memory)


def write_raw(path: Path, memory: memoryview) -> None:
    """Write memory to a new file, around the cache, and flush it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    for start in range(0, len(memory), BLOCK_BYTES):
        os.pwrite(fd, memory[start : start + BLOCK_BYTES], start)
    os.fsync(fd)
    os.close(fd)


def read_raw(path: Path, size: int) -> None:
    """Read a file around the cache, into new memory: whoever loads needs some."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    for start in range(0, size, BLOCK_BYTES):
        os.preadv(fd, [view[start : start + BLOCK_BYTES]], start)
    os.close(fd)


def flush_three(place: Path, numbers: Iterator[int]) -> None:
    """Make two new files durable, and their names, as often as tiny snapshots are saved."""
    for number in itertools.islice(numbers, TINY_SAVES):
        for name in ("a", "b"):
            fd = os.open(place / f"{name}{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(fd, bytes(300))
            os.fsync(fd)
            os.close(fd)
        fd = os.open(place, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
