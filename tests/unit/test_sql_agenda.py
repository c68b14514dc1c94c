"""The agenda of a home: who is due when, what becomes of a wake in the middle of a look, and what no mishap loses."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import DamagedError, InvalidError, NotFoundError
from holdfast.keys import key_id, wrap
from holdfast.sql import Agenda, Keyring
from tests.components.pods import ENVIRONMENT, PYTHON, acknowledged
from tests.components.strace import MARKERS, Call, sweep

ADA, BOB, EVE = "a" * 64, "b" * 64, "e" * 64
POD_KEY, DATA_KEY = bytes(range(32)), bytes(range(1, 33))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the agenda is; nothing is there yet."""
    return tmp_path / "pod.db"


@pytest.fixture
def agenda(path: Path) -> Agenda:
    """The agenda of a new home."""
    return Agenda(path)


def make_format_1(path: Path) -> None:
    """Write the file as the first format was: with the keys of Ada and Bob, and without an agenda."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "CREATE TABLE keyring (owner TEXT, pod_key_id TEXT NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY (owner)) "
            "STRICT, WITHOUT ROWID"
        )
        for owner in (ADA, BOB):
            wrapped = wrap(DATA_KEY, POD_KEY, purpose="keyring 1", owner=owner)
            db.execute("INSERT INTO keyring VALUES (?, ?, ?)", (owner, key_id(POD_KEY), wrapped))
        db.execute("PRAGMA user_version = 1")


def format_of(path: Path) -> int:
    """Return the format of the file."""
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


# -- who is due -------------------------------------------------------------------------------------------------------


def test_who_is_due_is_listed_and_stays_so_until_it_is_put_again(agenda: Agenda) -> None:
    """At the very millisecond; who has been due for longest comes first, so that nobody waits for ever."""
    agenda.put(ADA, 3_000, 0)
    agenda.put(BOB, 2_000, 0)
    agenda.put(EVE, None, 0)
    assert [list(agenda.list_due(now_ms)) for now_ms in (1_999, 2_000, 2_999, 3_000)] == [[], [BOB], [BOB], [BOB, ADA]]
    assert agenda.next_ms() == 2_000
    agenda.put(BOB, 4_000, 0)
    assert (list(agenda.list_due(3_999)), agenda.next_ms()) == ([ADA], 3_000)


def test_nobody_is_due_where_nothing_is_and_nothing_is_made_by_asking(agenda: Agenda, path: Path) -> None:
    """As on a machine where no Pod was ever opened."""
    assert (agenda.list_due(2**62), agenda.next_ms(), agenda.live_of_others(ADA)) == ({}, None, 0)
    assert not path.exists()


def test_who_is_not_to_be_looked_at_is_due_only_after_a_wake(agenda: Agenda) -> None:
    """As one whose runs have all ended."""
    agenda.put(ADA, None, 0)
    assert (agenda.list_due(2**62), agenda.next_ms()) == ({}, None)
    agenda.wake(ADA, 500)
    assert (list(agenda.list_due(500)), agenda.next_ms()) == ([ADA], 500)


@pytest.mark.parametrize("before, at, due", [(1_000, 400, 400), (400, 1_000, 400), (None, 700, 700)])
def test_a_wake_makes_nobody_wait_longer(before: int | None, at: int, due: int, agenda: Agenda) -> None:
    """It is no later than it says, and no later than was noted; how many runs work it leaves alone."""
    agenda.put(ADA, before, 3)
    agenda.wake(ADA, at)
    assert (agenda.next_ms(), agenda.live_of_others(BOB)) == (due, 3)


def test_a_wake_of_a_stranger_brings_it_onto_the_agenda(agenda: Agenda) -> None:
    """An owner whose key is kept nowhere has called."""
    agenda.wake(EVE, 10)
    assert (list(agenda.list_due(10)), agenda.live_of_others(ADA)) == ([EVE], 0)


def test_the_runs_of_all_others_are_counted_together(agenda: Agenda) -> None:
    """As they were last put; whoever asks is not among them."""
    for owner, live in ((ADA, 1), (BOB, 20), (EVE, 300), (BOB, 40)):
        agenda.put(owner, None, live)
    assert [agenda.live_of_others(each) for each in (ADA, BOB, EVE, "f" * 64)] == [340, 301, 41, 341]


def test_an_instant_that_no_file_can_hold_is_refused(agenda: Agenda) -> None:
    """And nothing is written."""
    for write in (lambda: agenda.wake(ADA, 2**63), lambda: agenda.put(ADA, 2**63, 0)):
        with pytest.raises(InvalidError, match="cannot be asked about that"):
            write()
    assert agenda.next_ms() is None


# -- a wake in the middle of a look -----------------------------------------------------------------------------------


@pytest.mark.parametrize("look_ms", [None, 90_000])
def test_who_is_woken_while_it_is_looked_at_stays_due(look_ms: int | None, agenda: Agenda) -> None:
    """The look may have been over before there was anything to see; the next one starts from the new count."""
    agenda.put(ADA, 1_000, 0)
    wakes = agenda.list_due(1_000)[ADA]
    agenda.wake(ADA, 5_000)
    agenda.put(ADA, look_ms, 2, wakes=wakes)
    assert (agenda.next_ms(), agenda.live_of_others(BOB)) == (1_000, 2)
    agenda.put(ADA, look_ms, 2, wakes=agenda.list_due(1_000)[ADA])
    assert agenda.next_ms() == look_ms


def test_a_look_that_was_not_due_begins_with_the_wakes_so_far(agenda: Agenda) -> None:
    """As one that something in this very process asked for; also of an owner who was not on the agenda."""
    for look in (1, 2):
        wakes = agenda.wakes_of(ADA)
        assert wakes == look - 1
        agenda.wake(ADA, 5_000)
        agenda.put(ADA, None, 0, wakes=wakes)
        assert agenda.next_ms() == 5_000
        agenda.put(ADA, None, 0, wakes=agenda.wakes_of(ADA))
        assert agenda.next_ms() is None


def test_a_slow_look_does_not_undo_what_a_wake_brought(agenda: Agenda) -> None:
    """Of two that look at once, the one that saw the wake says "never", and then the other says when."""
    agenda.put(ADA, 1_000, 0)
    slow = agenda.list_due(1_000)[ADA]
    agenda.wake(ADA, 1_000)
    agenda.put(ADA, None, 0, wakes=agenda.list_due(1_000)[ADA])
    agenda.put(ADA, 90_000, 0, wakes=slow)
    assert agenda.next_ms() == 90_000


def test_a_look_may_say_that_wakes_do_not_matter(agenda: Agenda) -> None:
    """Then what it says stands."""
    agenda.wake(ADA, 1_000)
    agenda.put(ADA, 90_000, 0)
    assert agenda.next_ms() == 90_000


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["look", "put", "wake"]), st.integers(0, 9)), max_size=12))
def test_no_wake_is_ever_lost(tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]]) -> None:
    """However looks and wakes fall together: after a wake that no look has begun after, somebody is due by then."""
    agenda, at_latest = Agenda(tmp_path_factory.mktemp("home") / "pod.db"), list[int]()
    seen, looked_at = 0, 0
    agenda.put(ADA, 0, 0)
    for what, number in operations:
        if what == "look":
            due = agenda.list_due(number)
            if ADA in due:
                seen, looked_at = due[ADA], len(at_latest)
        elif what == "put":
            agenda.put(ADA, 100 + number, 0, wakes=seen)
            at_latest, looked_at = at_latest[looked_at:], 0
        else:
            agenda.wake(ADA, number)
            at_latest.append(number)
        next_ms = agenda.next_ms()
        assert next_ms is not None
        assert all(next_ms <= each for each in at_latest)


# -- the keyring beside it --------------------------------------------------------------------------------------------


def test_an_owner_whose_key_comes_is_due_at_once(agenda: Agenda, path: Path) -> None:
    """As after a damaged file was set aside: whoever calls is looked at again."""
    Keyring(path, POD_KEY).put(ADA, DATA_KEY)
    assert (list(agenda.list_due(0)), agenda.next_ms()) == ([ADA], 0)


def test_a_key_that_is_put_again_or_goes_changes_nothing_of_its_owner(agenda: Agenda, path: Path) -> None:
    """Neither when it is due, nor how many of its runs work."""
    keyring = Keyring(path, POD_KEY)
    for change in (lambda: keyring.put(ADA, DATA_KEY), lambda: keyring.put(ADA, POD_KEY), lambda: keyring.delete(ADA)):
        agenda.put(ADA, 7_000, 2)
        change()
        assert (agenda.next_ms(), agenda.live_of_others(BOB)) == (7_000, 2)


# -- other formats, and damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["agenda", "keyring"])
def test_a_file_of_the_first_format_gets_an_agenda_with_all_its_owners_due(first: str, path: Path) -> None:
    """Whoever opens it first; the keys are as they were."""
    make_format_1(path)
    agenda, keyring = Agenda(path), Keyring(path, POD_KEY)
    if first == "keyring":
        assert keyring.get(ADA) == DATA_KEY
    assert list(agenda.list_due(0)) == [ADA, BOB]
    assert (keyring.get(ADA), keyring.get(BOB), format_of(path)) == (DATA_KEY, DATA_KEY, 2)
    agenda.put(ADA, 1_000, 1)
    assert (list(agenda.list_due(0)), agenda.live_of_others(BOB)) == ([BOB], 1)


def test_a_newer_format_is_refused_by_name_and_left_as_it_is(agenda: Agenda, path: Path) -> None:
    """Also by what sets a damaged file aside."""
    agenda.put(ADA, 1_000, 1)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 3")
    before = path.read_bytes()
    for call in (lambda: agenda.list_due(0), lambda: agenda.put(ADA, None, 0), lambda: agenda.wake(ADA, 0)):
        with pytest.raises(InvalidError, match=r"pod\.db' has format 3, .* reads formats up to 2: upgrade Holdfast"):
            call()
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["garbage", "cut", "no table"])
@pytest.mark.parametrize("write", [lambda agenda: agenda.put(BOB, 5, 1), lambda agenda: agenda.wake(BOB, 5)])
def test_a_damaged_file_is_set_aside_by_the_next_write_and_owners_come_again(
    write: Callable[[Agenda], None], how: str, agenda: Agenda, path: Path
) -> None:
    """Asking raises and leaves it where it is; nothing that a write says is lost."""
    Keyring(path, POD_KEY).put(ADA, DATA_KEY)
    if how == "garbage":
        path.write_bytes(b"no database" * 1_000)
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 2_048)  # within its last page, which then reads as empty
    else:
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE agenda")
    damaged = path.read_bytes()
    for ask in (lambda: agenda.list_due(0), agenda.next_ms, lambda: agenda.live_of_others(ADA)):
        with pytest.raises(DamagedError):
            ask()
    assert path.read_bytes() == damaged
    write(agenda)
    assert [each.read_bytes() for each in path.parent.glob("pod.db.corrupt-*")] == [damaged]
    assert list(agenda.list_due(5)) == [BOB]
    with pytest.raises(NotFoundError):
        Keyring(path, POD_KEY).get(ADA)
    Keyring(path, POD_KEY).put(ADA, DATA_KEY)
    assert list(agenda.list_due(5)) == [ADA, BOB]


# -- processes --------------------------------------------------------------------------------------------------------

WAKES = """
import sys
from pathlib import Path
from holdfast.sql import Agenda

agenda = Agenda(Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
for number in range(15):
    agenda.wake(sys.argv[2], 1_000 - number)
    agenda.put(sys.argv[3], number, number, wakes=None)
    agenda.list_due(number)
"""


@pytest.mark.parametrize("is_old", [False, True])
def test_processes_that_write_at_once_lose_nothing_of_each_other(path: Path, *, is_old: bool) -> None:
    """Not even if all of them find the file missing, or in the first format, and make one at the same time."""
    if is_old:
        make_format_1(path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": ENVIRONMENT}
    programs = [
        subprocess.Popen([sys.executable, "-c", WAKES, path, EVE, own], **pipes)
        for own in ("c" * 64, "d" * 64, "f" * 64)
    ]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == b"\n"
    for program in programs:
        program.communicate(timeout=60)
    assert [program.returncode for program in programs] == [0, 0, 0]
    agenda = Agenda(path)
    assert agenda.list_due(1_000)[EVE] == 45
    assert agenda.live_of_others(EVE) == 42
    assert list(agenda.list_due(986)) == [*([ADA, BOB] if is_old else []), "c" * 64, "d" * 64, "f" * 64, EVE]


@pytest.mark.parametrize("is_old", [False, True])
def test_of_several_that_make_the_file_at_once_one_does(tmp_path: Path, *, is_old: bool) -> None:
    """The others find it made; none takes it for damaged."""
    everybody = threading.Barrier(4)

    def write(path: Path, owner: str) -> None:
        everybody.wait(60)
        Agenda(path).put(owner, 5, 1)

    with ThreadPoolExecutor(4) as pool:
        for number in range(8):
            path = tmp_path / str(number) / "pod.db"
            path.parent.mkdir()
            if is_old:
                make_format_1(path)
            writes = [pool.submit(write, path, each * 64) for each in "1234"]
            assert [each.result(60) for each in writes] == [None] * 4
            assert Agenda(path).live_of_others(ADA) == 4
            assert list(path.parent.iterdir()) == [path]


MIGRATES = f"""
{MARKERS}
import sys
from pathlib import Path
from holdfast.sql import Agenda

agenda = Agenda(Path(sys.argv[1]) / "pod.db")
with open(Path(sys.argv[1]) / "acknowledged", "a") as file:
    begin()
    for owner in ("a" * 64, "e" * 64):
        agenda.put(owner, 9_000, 1)
        file.write(owner + " ")
        file.flush()
    end()
"""


def test_killed_at_any_call_nothing_that_was_acknowledged_is_lost(tmp_path: Path, is_full: bool) -> None:
    """From the first format on: the keys stay, each owner is due as before or as it was put, and nothing is damaged."""
    template, folder = tmp_path / "template", tmp_path / "folder"
    template.mkdir()
    make_format_1(template / "pod.db")
    seen = set[int]()

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)

    def check(call: Call) -> None:
        seen.add(format_of(folder / "pod.db"))
        said, agenda = acknowledged(folder), Agenda(folder / "pod.db")
        assert agenda.live_of_others(BOB) in (len(said), len(said) + 1), call
        late = 2 - len(set(agenda.list_due(0)) & {ADA, BOB})
        assert list(agenda.list_due(0)) == [ADA, BOB][late:], call
        assert late >= (ADA in said), call
        assert (EVE in agenda.list_due(9_000)) >= (EVE in said), call
        assert Keyring(folder / "pod.db", POD_KEY).get(ADA) == DATA_KEY, call

    sweep(
        [*PYTHON[:2], "-c", MIGRATES, str(folder)],
        env=ENVIRONMENT,
        prepare=prepare,
        check=check,
        sample=None if is_full else 8,
    )
    assert seen == {1, 2}
