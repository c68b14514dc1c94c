"""What the next process finds in a Pod when one was killed at any system call."""

import json
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.context import PodClient, Settings, unlock
from holdfast.keys import load_or_create_pod_key, read_envelope
from holdfast.sql import Keyring, SqliteStore
from holdfast.store import Batch, SetVariable, Store
from holdfast.testing import FakeClock
from tests.components.pods import (
    ENVIRONMENT,
    FENCE,
    FIRST,
    KEY,
    LARGE,
    OWNER,
    PYTHON,
    SECOND,
    acknowledged,
    content,
    make_pod,
    open_store,
    owners_pod,
)
from tests.components.strace import Call, sweep

pytestmark = pytest.mark.timeout(7200)  # for --full; a sample takes seconds

OTHER_KEY = bytes(range(1, 33))

WITH_FIRST = {
    "items": {"run1": {"pluginName": "kill", "status": "idle"}, "first": {"name": "first"}},
    "versions": {"run1": 1, "first": 1},
    "edges": [],
    "variables": {"head": 1, "keep": "me"},
    "lease": (1, "holder1", "run1", 1_000_003_600_000),
    "snapshot": None,
    "questions": [],
}
WITH_SECOND = {
    "items": {
        "run1": {"pluginName": "kill", "status": "started"},
        "first": {"name": "first"},
        "d1": {"name": "Bob"},
        "d2": {"name": "Rex"},
    },
    "versions": {"run1": 2, "first": 1, "d1": 1, "d2": 1},
    "edges": [("d1", "friend", "d2")],
    "variables": {"head": 7, "keep": "me"},
    "lease": (1, "holder1", "run1", 1_000_007_200_000),
    "snapshot": "snapshot-7",
    "questions": [],
}


def kill_everywhere(
    word: str, folder: Path, template: Path, check: Callable[[Call], object], *, sample: int | None
) -> list[Call]:
    """Kill a program at its calls, each time on a fresh copy of ``template``."""

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)

    return sweep([*PYTHON, word, str(folder)], env=ENVIRONMENT, prepare=prepare, check=check, sample=sample)


def held(store: Store) -> dict[str, object]:
    """What a Pod holds besides its schema; and see that it can be written to."""
    found = content(store)
    del found["types"]
    store.apply(Batch((SetVariable("s1", "after", True),), FENCE if found["lease"] else None))
    assert store.list_variables("s1")["after"] is True
    return found


def test_killed_at_any_call_of_a_batch_the_pod_has_all_of_it_or_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_full: bool
) -> None:
    """Items, edge, variable, snapshot, status: together. What was acknowledged is there, and the file was checked."""
    make_pod(tmp_path / "template" / "pod.db")
    caplog.set_level(logging.INFO, "holdfast")
    folder, seen = tmp_path / "pod", set[str]()

    def check(call: Call) -> None:
        caplog.clear()
        with open_store(folder) as store:
            assert [record.found for record in caplog.records if record.message == "pod.checked"] == [["ok"]], call
            found = held(store)
        words = acknowledged(folder)
        assert "first" in words
        assert found == WITH_SECOND or (found == WITH_FIRST and "second" not in words), call
        seen.add("second" if found == WITH_SECOND else "first")

    kill_everywhere("apply", folder, tmp_path / "template", check, sample=None if is_full else 14)
    assert seen == {"first", "second"}


def test_killed_at_any_call_while_the_log_is_copied_back_nothing_is_lost(tmp_path: Path, is_full: bool) -> None:
    """A batch so large that SQLite moves the log into the file: there as a whole, and the one before it anyway."""
    make_pod(tmp_path / "template" / "pod.db")
    folder, seen = tmp_path / "pod", set[bool]()

    def check(call: Call) -> None:
        with open_store(folder) as store:
            found = held(store)
        items = found["items"]
        assert isinstance(items, dict)
        is_there = len(items) == 2 + len(LARGE.operations)
        assert len(items) == 2 or is_there, call
        assert is_there or "second" not in acknowledged(folder)
        assert found["variables"] == {"head": 1, "keep": "me"}
        seen.add(is_there)

    kill_everywhere("checkpoint", folder, tmp_path / "template", check, sample=300 if is_full else 7)
    assert seen == {True, False}


def test_killed_at_any_call_of_the_first_start_the_next_one_just_works(tmp_path: Path, is_full: bool) -> None:
    """On a machine without keys, folder and file; what was acknowledged is there."""
    (tmp_path / "template").mkdir()
    folder = tmp_path / "folder"

    def check(call: Call) -> None:
        with PodClient(home=folder / "home") as pod:
            is_there = pod.exists("ada")
            assert is_there or "ada" not in acknowledged(folder), call
            pod.delete_items(["ada"])
            assert not pod.exists("ada")
        leftovers = [str(path) for path in (folder / "home").rglob(".tmp-*") if path.name.startswith(".tmp-")]
        with PodClient(home=folder / "home") as pod:
            assert pod.search({"type": "Person"}) == []
        assert len(leftovers) <= 1, call  # at most what the killed one was about; the next write there removes it

    kill_everywhere("create", folder, tmp_path / "template", check, sample=None if is_full else 10)


def test_killed_at_any_call_of_a_backup_there_is_a_whole_one_or_none(tmp_path: Path, is_full: bool) -> None:
    """And the Pod itself is as it was."""
    make_pod(tmp_path / "template" / "pod.db", FIRST, is_left_open=True)
    folder, seen = tmp_path / "pod", set[bool]()

    def check(call: Call) -> None:
        is_there = (folder / "backup").exists()
        seen.add(is_there)
        assert is_there or "backup" not in acknowledged(folder), call
        if is_there:
            assert sorted(path.name for path in (folder / "backup").iterdir()) == ["pod.db", "pod.json"]
            with SqliteStore(folder / "backup" / "pod.db", KEY, clock=FakeClock()) as store:
                assert held(store) == WITH_FIRST
        with open_store(folder) as store:
            assert held(store) == WITH_FIRST

    kill_everywhere("back_up", folder, tmp_path / "template", check, sample=None if is_full else 8)
    assert seen == {True, False}


def test_killed_at_any_call_of_a_restore_the_pod_is_the_old_or_the_restored_one(tmp_path: Path, is_full: bool) -> None:
    """Never an empty one, never one with the log or the key of the other; the old one is kept, its log included."""
    template, folder = tmp_path / "template", tmp_path / "folder"
    make_pod(owners_pod(template), FIRST, is_left_open=True)
    make_pod(template / "backup" / "pod.db", FIRST, SECOND, key=OTHER_KEY)
    (template / "backup" / "pod.lock").unlink()
    assert unlock(Settings(home=template / "home"), OWNER) == (owners_pod(template), KEY)
    seen = set[str]()

    def check(call: Call) -> None:
        settings = Settings(home=folder / "home")
        path, key = unlock(settings, OWNER)
        kept_key = Keyring(settings.keyring_path, load_or_create_pod_key(settings.home, {})).get(OWNER.owner_key)
        assert kept_key == key, call
        with SqliteStore(path, key, clock=FakeClock(), create=False) as store:
            found = held(store)
        assert found == WITH_SECOND or (found == WITH_FIRST and "restored" not in acknowledged(folder)), call
        # What was being built or removed when the process died has a temporary name, and the next backup sweeps it.
        kept = [name for name in path.parent.iterdir() if name.is_dir() and not name.name.startswith(".tmp-")]
        if found == WITH_SECOND:
            seen.add("restored")
            assert key == OTHER_KEY
            assert [name.name for name in kept] == [f"{path.stem}.replaced-1"], call
            old = kept[0] / path.name
            assert read_envelope(old.with_suffix(".json")).open(OWNER) == KEY
            with SqliteStore(old, KEY, clock=FakeClock(), create=False) as store:
                assert held(store) == WITH_FIRST
        else:
            seen.add("old")
            assert key == KEY
            assert kept == [], call

    kill_everywhere("restore", folder, template, check, sample=None if is_full else 14)
    assert seen == {"old", "restored"}


RESTORER = """
import sys
from pathlib import Path
from holdfast.disk import Disk
from holdfast.sql import restore
from tests.components.pods import OWNER, owners_pod

class Standing(Disk):
    renames = 0
    def rename(self, source, target):
        super().rename(source, target)
        self.renames += 1
        if self.renames == int(sys.argv[2]):
            print(Path(target).name, flush=True)
            sys.stdin.readline()

folder = Path(sys.argv[1])
restore(folder / "backup", OWNER, owners_pod(folder), disk=Standing())
"""
"""A restore that stands still after one of its renames, and says which."""

OPENER = """
import json, sys
from pathlib import Path
from holdfast.context import Settings, unlock
from holdfast.sql import SqliteStore
from holdfast.testing import FakeClock
from tests.components.pods import OWNER, content, owners_pod

folder, key = Path(sys.argv[1]), bytes.fromhex(sys.argv[2])
if not key:
    _, key = unlock(Settings(home=folder / "home"), OWNER)
with SqliteStore(owners_pod(folder), key, clock=FakeClock()) as store:
    print(json.dumps([key.hex(), sorted(content(store)["items"])]), flush=True)
    sys.stdin.readline()
"""
"""Opens the Pod, says what it holds, and keeps it open; without a key, as on a machine that may be fresh."""

STEPS = {1: ".db.restoring", 4: ".json", 5: ".db", 6: ".json", 7: ".db"}
"""The renames after which a restore stands still, and the end of the name that was given: 2 to 5 empty the place."""


@contextmanager
def started(program: str, *words: str) -> Generator[subprocess.Popen[str]]:
    """Start Python code; it is killed if it has not ended by the end of the block."""
    process = subprocess.Popen(
        [*PYTHON[:-1], program, *words],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that a program prints; fail with what it said instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return line.strip()


def wait_at(lock: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a program has opened a lock file, which somebody else holds."""
    pause = threading.Event()
    descriptors = Path(f"/proc/{process.pid}/fd")
    while process.poll() is None:
        for descriptor in descriptors.iterdir():
            try:
                if os.readlink(descriptor) == str(lock):
                    return
            except FileNotFoundError:  # closed meanwhile
                continue
        pause.wait(0.005)
    raise AssertionError(process.communicate())


@pytest.fixture
def home_and_backup(tmp_path: Path) -> Path:
    """Return a folder with a home, whose Pod has a log, and a backup with another key and more in it."""
    make_pod(owners_pod(tmp_path), FIRST, is_left_open=True)
    make_pod(tmp_path / "backup" / "pod.db", FIRST, SECOND, key=OTHER_KEY)
    (tmp_path / "backup" / "pod.lock").unlink()
    assert unlock(Settings(home=tmp_path / "home"), OWNER) == (owners_pod(tmp_path), KEY)
    return tmp_path


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "goes-on"])
@pytest.mark.parametrize("step", STEPS)
def test_whoever_waits_during_a_restore_finds_the_restored_pod(
    home_and_backup: Path, step: int, is_killed: bool
) -> None:
    """Several at once, with the key and without; if the restoring process is killed, one of them finishes its work."""
    folder, path = home_and_backup, owners_pod(home_and_backup)
    restored = json.dumps([OTHER_KEY.hex(), ["d1", "d2", "first", "run1"]])
    with started(RESTORER, str(folder), str(step)) as restorer:
        assert line_of(restorer).endswith(STEPS[step])
        with (
            started(OPENER, str(folder), OTHER_KEY.hex()) as first,
            started(OPENER, str(folder), OTHER_KEY.hex()) as second,
            started(OPENER, str(folder), "") as third,
        ):
            openers = (first, second, third)
            for opener in openers:
                wait_at(path.with_suffix(".lock"), opener)
            if is_killed:
                restorer.kill()
            else:
                assert restorer.communicate("\n") == ("", "")
            assert [line_of(opener) for opener in openers] == [restored] * 3
            assert [opener.communicate("\n") for opener in openers] == [("", "")] * 3
    old = path.with_name(f"{path.stem}.replaced-1") / path.name
    with SqliteStore(old, KEY, clock=FakeClock(), create=False) as store:
        assert held(store) == WITH_FIRST


@pytest.mark.parametrize("step", [5, 6])
def test_files_made_in_the_middle_of_a_restore_are_set_aside_when_it_is_finished(
    home_and_backup: Path, step: int
) -> None:
    """Whoever made them: the names are the restored Pod's, and nothing of the three is destroyed."""
    folder, path = home_and_backup, owners_pod(home_and_backup)
    with started(RESTORER, str(folder), str(step)) as restorer:
        line_of(restorer)
    make_pod(folder / "made" / path.name, key=bytes(32))
    for name in (path.name, f"{path.stem}.json"):
        shutil.copy(folder / "made" / name, path.with_name(name))
    if step == 6:  # its own envelope was in place by then
        shutil.copy(folder / "backup" / "pod.json", path.with_suffix(".json"))
    with SqliteStore(path, OTHER_KEY, clock=FakeClock(), create=False) as store:
        assert held(store) == WITH_SECOND
    old = path.with_name(f"{path.stem}.replaced-1") / path.name
    with SqliteStore(old, KEY, clock=FakeClock(), create=False) as store:
        assert held(store) == WITH_FIRST
    (made,) = path.parent.glob("*.db.replaced-*")
    assert made.read_bytes() == (folder / "made" / path.name).read_bytes()
