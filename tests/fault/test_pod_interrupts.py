"""Ctrl-C at any moment: nobody stays locked out, and an item knows what became of it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast.context import PodClient
from holdfast.errors import NotFoundError
from holdfast.interrupts import uninterrupted
from holdfast.items import Person
from holdfast.store import Batch

_WRITER = """
import sys
from holdfast.context import PodClient
from holdfast.items import Person
client = PodClient(home=sys.argv[1])
with client._store._transaction() as db:
    print("holding", flush=True)
    sys.stdin.readline()
"""


def test_an_interrupted_wait_leaves_the_pod_free(home: Path) -> None:
    """A write that waits for another process gives up at Ctrl-C; then both can write, and so can everybody."""
    with PodClient(home=home) as client:
        other = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with other:
            assert other.stdout is not None
            assert other.stdin is not None
            assert other.stdout.readline() == "holding\n"
            timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            ann = Person("Ann")
            with pytest.raises(KeyboardInterrupt):
                client.create(ann)
            timer.join()
            assert ann.id is None
            other.stdin.write("\n")
        client.create(ann)
        assert [person.firstName for person in client.search({"type": "Person"})] == ["Ann"]


def test_an_interrupt_during_a_commit_is_raised_after_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is there, the item has its id, and a fork works afterwards: nothing was left half-way."""
    with PodClient(home=home) as client:
        apply = client._store.apply

        def interrupted(batch: Batch) -> object:
            results = apply(batch)
            signal.raise_signal(signal.SIGINT)
            return results

        monkeypatch.setattr(client._store, "apply", interrupted)
        ann = Person("Ann")
        with pytest.raises(KeyboardInterrupt):
            client.create(ann)
        monkeypatch.undo()
        assert ann.id is not None
        assert client.get(ann.id) == ann
        child = os.fork()
        if not child:
            os._exit(0 if client.exists(ann.id) else 1)
        assert os.waitpid(child, 0)[1] == 0


_STORM = """
import os, signal, sys
from holdfast.context import PodClient
from holdfast.items import Person
from holdfast.store import Batch, CreateItem

signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
interrupts = 0
with PodClient(home=sys.argv[1]) as client:
    people = [Person(f"p{number}") for number in range(200)]
    for number, person in enumerate(people):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.00005 * (number % 20 + 1))
            client.create(person)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.getitimer(signal.ITIMER_REAL)  # what was under way arrives before this returns
        except KeyboardInterrupt:
            interrupts += 1
    there = {person.firstName for person in client.search({"type": "Person"})}
    told = {person.firstName for person in people if person.id is not None}
    client._store.apply(Batch((CreateItem("last", "Person", {}),)))
    print(sorted(there ^ told), interrupts > 0, client.exists("last"))
"""


def test_a_storm_of_interrupts_loses_nothing_and_locks_nobody_out(home: Path) -> None:
    """Whatever instruction a signal meets: what has an id is there, what has none is not, and the next write works."""
    done = subprocess.run([sys.executable, "-c", _STORM, str(home)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[] True True\n", "")


def test_handlers_are_back_after_a_block_that_one_of_them_left() -> None:
    """A handler that raises at the end of a block leaves the next block as good as new."""
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_missing_is_still_said_at_once(home: Path) -> None:
    """An error inside an uninterrupted block is raised as ever."""
    with PodClient(home=home) as client, pytest.raises(NotFoundError):
        client.get("nobody")
