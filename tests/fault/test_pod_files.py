"""What a Pod says of its file and its disk when they are not what they should be, and what it holds afterwards."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from importlib.resources.abc import Traversable
from pathlib import Path

import apsw
import pytest

from holdfast.context import PodClient, Settings, examine_pod
from holdfast.disk import BusyError, Disk
from holdfast.errors import DamagedError, DeniedError, InvalidError, NotFoundError, UnavailableError
from holdfast.items import Person
from holdfast.keys import Envelope, load_or_create_pod_key, read_envelope
from holdfast.sql import FORMAT, Keyring, SqliteStore, back_up, restore
from holdfast.sql.faults import DEFECTS, MEANING
from holdfast.sql.migration import migrations
from holdfast.store import Batch, CreateItem, SetVariable
from holdfast.testing import FakeClock
from tests.components.fuse import fuse
from tests.components.mounts import read_only, tmpfs
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
)
from tests.components.strace import Call, fail, measure, sweep

PAGE = 4096


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """Return the folder of a Pod that was closed and fills many pages."""
    make_pod(tmp_path / "pod" / "pod.db", FIRST, LARGE)
    return tmp_path / "pod"


def flip(path: Path, at: int) -> None:
    """Turn one bit over."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def files(folder: Path) -> dict[str, bytes]:
    """Return all that lies in a folder, without locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


# -- what the file is -------------------------------------------------------------------------------------------------


def test_every_error_of_sqlite_has_a_meaning_or_is_a_defect() -> None:
    """None is forgotten when the library grows a new one, and none is both."""
    there = {
        found
        for found in vars(apsw).values()
        if isinstance(found, type) and issubclass(found, apsw.Error) and found is not apsw.Error
    }
    assert set(MEANING) | DEFECTS == there
    assert set(MEANING) & DEFECTS == set()


def test_another_files_key_is_denied_by_name(pod: Path) -> None:
    """Both keys are named by their ids, and nothing is changed."""
    before = files(pod)
    with pytest.raises(
        DeniedError, match=r"the key '[0-9a-f]{16}' does not open the Pod .*: its key is '[0-9a-f]{16}'"
    ):
        SqliteStore(pod / "pod.db", bytes(32))
    assert files(pod) == before


def test_a_flipped_bit_in_the_first_page_is_damage(pod: Path) -> None:
    """Not a wrong key, and not a plain file: the envelope knows the key."""
    for at in (0, 24, 100, PAGE - 1):
        flip(pod / "pod.db", at)
        with pytest.raises(DamagedError, match=r"is damaged; restore a backup") as caught:
            open_store(pod)
        assert caught.value.facts["path"] == str(pod / "pod.db")
        flip(pod / "pod.db", at)
    open_store(pod).close()


def test_a_flipped_bit_in_any_other_page_is_damage_when_it_is_read(pod: Path) -> None:
    """The rest can be read; nothing wrong is ever answered."""
    flip(pod / "pod.db", (pod / "pod.db").stat().st_size // PAGE // 2 * PAGE + 77)
    with open_store(pod) as store:
        assert dict(store.list_variables("s1")) == {"head": 1, "keep": "me"}
        with pytest.raises(DamagedError, match="is damaged; restore a backup"):
            content(store)


def test_damage_is_found_at_the_first_start_after_an_unclean_end(pod: Path, tmp_path: Path) -> None:
    """Every page is looked at before the Pod is handed out, each time until it is mended."""
    with open_store(pod) as store:
        store.apply(Batch((SetVariable("s1", "head", 2),), FENCE))
        shutil.copytree(pod, tmp_path / "left")
    left = tmp_path / "left"
    flip(left / "pod.db", (left / "pod.db").stat().st_size // PAGE // 2 * PAGE + 77)
    for _ in range(2):
        with pytest.raises(DamagedError, match="is damaged"):
            open_store(left)


def test_the_doctor_finds_a_damaged_page_that_nobody_has_read_yet(home: Path) -> None:
    """And names the Pod; the exit code is that of what is unavailable."""
    with PodClient() as client:
        client.bulk_action(create_items=[Person(firstName="x" * 2_000) for _ in range(200)])
    path = next((home / "pods").glob("*.db"))
    flip(path, path.stat().st_size // PAGE // 2 * PAGE + 77)
    PodClient().close()
    done = subprocess.run([sys.executable, "-m", "holdfast", "doctor"], check=False, capture_output=True, text=True)
    assert done.returncode == 6
    assert [line for line in done.stdout.splitlines() if line.startswith("fail") and "is damaged" in line] != []


def test_a_shortened_file_is_damage(pod: Path) -> None:
    """Whether a page is cut, or many are missing."""
    for size in (PAGE + 900, 3 * PAGE):
        os.truncate(pod / "pod.db", size)
        with pytest.raises(DamagedError):
            open_store(pod)


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_file_that_went_while_its_log_stayed_is_no_new_pod(tmp_path: Path, is_gone: bool) -> None:
    """An empty Pod in its place would hide that the content is lost."""
    make_pod(tmp_path / "pod" / "pod.db", FIRST, is_left_open=True)
    (tmp_path / "pod" / "pod.db").unlink()
    if not is_gone:
        (tmp_path / "pod" / "pod.db").touch()
    with pytest.raises(DamagedError, match="lost its content: the file is gone or empty and its log is still there"):
        open_store(tmp_path / "pod")


@pytest.mark.parametrize("with_envelope", [True, False])
def test_a_plain_sqlite_file_is_called_that(tmp_path: Path, with_envelope: bool) -> None:
    """And is not touched."""
    db = apsw.Connection(str(tmp_path / "pod.db"))
    db.execute("CREATE TABLE t (x)")
    db.close()
    if with_envelope:
        (tmp_path / "pod.json").write_bytes(Envelope.seal(KEY, OWNER).to_json())
    before = files(tmp_path)
    with pytest.raises(InvalidError, match="is a plain SQLite file and not an encrypted Pod"):
        open_store(tmp_path)
    assert files(tmp_path) == before


def test_a_pod_without_its_envelope_is_damaged_and_is_not_given_a_new_one(pod: Path) -> None:
    """The message says which file to bring back."""
    (pod / "pod.json").unlink()
    with pytest.raises(DamagedError, match=r"cannot be opened without its envelope 'pod\.json'"):
        open_store(pod)
    assert not (pod / "pod.json").exists()


def test_an_envelope_that_was_missing_opens_the_pod_once_it_is_back(home: Path) -> None:
    """Meanwhile nothing was made or kept in its place, wherever the keys are kept besides."""
    with PodClient() as client:
        client.create(Person(firstName="Ada", id="ada"))
    settings = Settings.read()
    envelope = next((home / "pods").glob("*.json"))
    settings.keyring_path.unlink()
    envelope.rename(home / "aside")
    with pytest.raises(DamagedError, match="cannot be opened without its envelope"):
        PodClient()
    (home / "aside").rename(envelope)
    with PodClient() as client:
        assert client.exists("ada")
    key = Keyring(settings.keyring_path, load_or_create_pod_key(home, {})).get(envelope.stem)
    with SqliteStore(envelope.with_suffix(".db"), key) as store:
        assert list(store.find_items(["ada"])) == ["ada"]


def test_a_damaged_envelope_is_damage(pod: Path) -> None:
    """Whichever character it is."""
    for at in range(0, (pod / "pod.json").stat().st_size, 37):
        flip(pod / "pod.json", at)
        with pytest.raises(DamagedError, match="envelope"):
            open_store(pod)
        flip(pod / "pod.json", at)


def test_an_envelope_of_a_newer_format_is_refused_by_name(pod: Path) -> None:
    """Not taken for damage."""
    members = json.loads((pod / "pod.json").read_bytes())
    del members["check"]
    members["format"] = 99
    text = json.dumps(members, indent=4) + "\n"
    members["check"] = hashlib.sha256(b"holdfast envelope\n" + text.encode()).hexdigest()
    (pod / "pod.json").write_text(json.dumps(members, indent=4) + "\n")
    with pytest.raises(InvalidError, match="99"):
        open_store(pod)


def test_there_is_no_pod_to_open_where_none_may_be_made(tmp_path: Path) -> None:
    """Nor in a folder that does not exist; nothing is made."""
    with pytest.raises(NotFoundError, match="there is no Pod"):
        SqliteStore(tmp_path / "pod.db", KEY, create=False)
    with pytest.raises(NotFoundError, match=r"the folder .* does not exist"):
        SqliteStore(tmp_path / "no" / "pod.db", KEY)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    "name", ["a b", "ü-日本", "q?mode=ro&cipher=none", "p%41%00", "h#x", "file:x", "quote'\"", "n\nl", ":memory:"]
)
def test_a_pod_lies_where_it_is_told_whatever_the_name(tmp_path: Path, name: str) -> None:
    """No character of the path means anything to SQLite."""
    folder = tmp_path / name
    path = folder / f"{name}.db"
    make_pod(path, FIRST)
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(
        [f"{name}.{end}" for end in ("db", "json", "lock")]
    )
    assert not path.read_bytes().startswith(b"SQLite format 3")
    with SqliteStore(path, KEY, clock=FakeClock()) as store:
        assert store.list_variables("s1")["head"] == 1


def test_a_name_of_the_kernels_own_is_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``:memory:`` in the current folder is no database in memory."""
    monkeypatch.chdir(tmp_path)
    with SqliteStore(":memory:", KEY) as store:
        store.apply(Batch((SetVariable("s1", "a", 1),)))
    assert (tmp_path / ":memory:").stat().st_size > 0


def test_a_link_or_a_folder_in_the_files_place_is_refused(pod: Path, tmp_path: Path) -> None:
    """Two names would mean two locks and two logs. The folder may be a link."""
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "pod.db").symlink_to(pod / "pod.db")
    (tmp_path / "folder" / "pod.db").mkdir(parents=True)
    for name in ("link", "folder"):
        with pytest.raises(InvalidError, match="it is a link, a folder or a device, not a plain file"):
            open_store(tmp_path / name)
    (tmp_path / "other").symlink_to(pod)
    with open_store(tmp_path / "other") as store, open_store(pod) as same:
        store.apply(Batch((SetVariable("s1", "head", 2),), FENCE))
        assert same.list_variables("s1")["head"] == 2


def test_a_folder_in_the_locks_place_locks_as_well(pod: Path) -> None:
    """It is in nobody's way."""
    (pod / "pod.lock").unlink()
    (pod / "pod.lock").mkdir()
    with open_store(pod) as store:
        assert store.list_variables("s1")["head"] == 1


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(tmp_path: Path) -> dict[int, Traversable]:
    """Return the shipped migrations and two more that change what is there, in ``pod/steps``."""
    folder = tmp_path / "pod" / "steps"
    folder.mkdir(parents=True)
    for number, step in migrations().items():
        (folder / f"{number:04}_shipped.sql").write_text(step.read_text())
    (folder / f"{FORMAT + 1:04}_note.sql").write_text("CREATE TABLE note (x TEXT NOT NULL) STRICT;")
    (folder / f"{FORMAT + 2:04}_more.sql").write_text(
        "ALTER TABLE note ADD COLUMN y INTEGER; INSERT INTO note SELECT id, seq FROM item;"
    )
    return {int(path.name[:4]): path for path in sorted(folder.iterdir())}


def structure(folder: Path) -> tuple[object, list[object]]:
    """Return the format of a Pod's file and the definitions in it."""
    db = apsw.Connection(str(folder / "pod.db"))
    try:
        db.pragma("cipher", "chacha20")
        db.pragma("key", f"raw:{KEY.hex()}")
        return db.pragma("user_version"), list(db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2"))
    finally:
        db.close()


def test_a_newer_format_is_refused_by_name(tmp_path: Path, steps: dict[int, Traversable]) -> None:
    """Both formats are named; the file stays as it is."""
    open_store(tmp_path / "pod", steps=steps).close()
    before = structure(tmp_path / "pod")
    message = f"has format {FORMAT + 2}, and this version of Holdfast reads formats up to {FORMAT}: upgrade Holdfast"
    with pytest.raises(InvalidError, match=message):
        open_store(tmp_path / "pod")
    assert structure(tmp_path / "pod") == before


def test_an_older_format_is_migrated_after_a_copy_and_is_then_like_a_fresh_one(
    tmp_path: Path, steps: dict[int, Traversable]
) -> None:
    """With all that it held. The copy opens with the version that wrote it."""
    pod = tmp_path / "pod"
    make_pod(pod / "pod.db", FIRST)
    with open_store(pod) as store:
        before = content(store)
    with open_store(pod, steps=steps) as store:
        assert content(store) == before
    (tmp_path / "fresh").mkdir()
    open_store(tmp_path / "fresh", steps=steps).close()
    assert structure(pod) == structure(tmp_path / "fresh")

    (tmp_path / "copy").mkdir()
    shutil.copy(pod / f"pod.db.format-{FORMAT}", tmp_path / "copy" / "pod.db")
    shutil.copy(pod / "pod.json", tmp_path / "copy")
    with open_store(tmp_path / "copy") as store:
        assert content(store) == before


@pytest.mark.timeout(3600)
def test_killed_at_any_call_of_a_migration_the_next_start_finishes_it(
    tmp_path: Path, steps: dict[int, Traversable], is_full: bool
) -> None:
    """Nothing is lost, and each step was done once."""
    template, folder = tmp_path / "pod", tmp_path / "killed"
    make_pod(template / "pod.db", FIRST)
    steps = {number: folder / "steps" / Path(str(path)).name for number, path in steps.items()}

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)

    def check(call: Call) -> None:
        with open_store(folder, steps=steps) as store:
            assert dict(store.list_variables("s1")) == {"head": 1, "keep": "me"}, call
        assert structure(folder)[0] == FORMAT + 2

    sample = None if is_full else 8
    sweep([*PYTHON, "migrate", str(folder)], env=ENVIRONMENT, prepare=prepare, check=check, sample=sample)


def test_of_several_that_migrate_at_once_one_does(tmp_path: Path, steps: dict[int, Traversable]) -> None:
    """The others wait and then just open it; a second run of a step would fail."""
    make_pod(tmp_path / "pod" / "pod.db", FIRST)
    programs = [
        subprocess.Popen([*PYTHON, "migrate", str(tmp_path / "pod")], env=ENVIRONMENT, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [program.communicate()[0] for program in programs] == [b""] * 3
    assert [program.returncode for program in programs] == [0] * 3
    assert structure(tmp_path / "pod")[0] == FORMAT + 2
    with open_store(tmp_path / "pod", steps=steps) as store:
        assert store.list_variables("s1")["head"] == 1


# -- the disk ---------------------------------------------------------------------------------------------------------


def pair(number: int) -> Batch:
    """Return a batch of two items of which the first is large."""
    return Batch((CreateItem(f"a{number}", "Dog", {"name": "x" * 20_000}), CreateItem(f"b{number}", "Dog", {})))


def test_a_full_disk_refuses_a_batch_whole_and_takes_it_once_there_is_room(tmp_path: Path) -> None:
    """Reads go on meanwhile, and a second process can open the Pod."""
    with tmpfs(tmp_path / "disk", size_bytes=2 * 2**20) as folder:
        make_pod(folder / "pod.db", FIRST)
        with open_store(folder) as store:
            (folder / "ballast").write_bytes(bytes(2**19))
            count, batch = 0, pair(0)

            def fill() -> None:
                nonlocal count, batch
                while True:
                    store.apply(batch)
                    count += 1
                    batch = pair(count)

            with pytest.raises(UnavailableError, match="cannot grow: the disk is full; make room and try again"):
                fill()
            assert count > 5
            assert [f"{kind}{count - 1}" in store.find_items([f"{kind}{count - 1}"]) for kind in "ab"] == [True, True]
            assert store.find_items([f"a{count}", f"b{count}"]) == {}
            with open_store(folder) as other:
                assert other.list_variables("s1")["head"] == 1
            (folder / "ballast").unlink()
            store.apply(batch)
            assert sorted(store.find_items([f"a{count}", f"b{count}"])) == [f"a{count}", f"b{count}"]


def test_a_disk_without_room_for_a_new_pod_takes_one_later(tmp_path: Path) -> None:
    """What the failed start left is used by the next."""
    with tmpfs(tmp_path / "disk", size_bytes=16 * PAGE) as folder:
        (folder / "ballast").write_bytes(bytes(10 * PAGE))
        with pytest.raises(UnavailableError, match="disk"):
            open_store(folder)
        (folder / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
        with open_store(folder) as store:
            store.apply(Batch((SetVariable("s1", "a", 1),)))


def test_a_read_only_disk_is_unavailable_and_says_so(tmp_path: Path) -> None:
    """It can be opened once it can be written to."""
    with tmpfs(tmp_path / "disk", size_bytes=2**20) as folder:
        make_pod(folder / "pod.db", FIRST)
        with read_only(folder), pytest.raises(UnavailableError, match="the file system is read-only"):
            open_store(folder)
        with open_store(folder) as store:
            assert store.list_variables("s1")["head"] == 1


@pytest.mark.parametrize(
    "name, at, error, text",
    [
        ("fdatasync", 0, "EIO", "SQLITE_IOERR_FSYNC"),
        ("pwrite64", 0, "EIO", "SQLITE_IOERR_WRITE"),
        ("pwrite64", -1, "ENOSPC", "the disk is full"),
        ("pwrite64", 0, "EROFS", "SQLITE_IOERR_WRITE"),
    ],
)
def test_a_disk_that_fails_a_batch_fails_that_batch_only(
    tmp_path: Path, name: str, at: int, error: str, text: str
) -> None:
    """Flush failing, write failing, full, or read-only all of a sudden: the same process reads on and may try again."""
    folder = tmp_path / "pod"
    make_pod(folder / "pod.db")
    shutil.copytree(folder, tmp_path / "fresh")
    argv = [*PYTHON, "apply_again"]
    calls = [call for call in measure([*argv, str(tmp_path / "fresh")], env=ENVIRONMENT) if call.name == name]
    done = fail([*argv, str(folder)], f"{name}:error={error}:when={calls[at].number}", env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["kind"] == "UnavailableError"
    assert text in said["text"]
    assert said["between"] == 1
    assert acknowledged(folder) == ["second"]
    with open_store(folder) as store:
        found = content(store)
    assert found["variables"] == {"head": 7, "keep": "me"}
    assert found["edges"] == [("d1", "friend", "d2")]
    assert found["snapshot"] == "snapshot-7"
    assert found["versions"] == {"run1": 2, "first": 1, "d1": 1, "d2": 1}


def test_a_network_file_system_is_refused_by_name(tmp_path: Path) -> None:
    """A real mount of one, before anything is written there."""
    with fuse(tmp_path / "remote", "fuse.sshfs") as folder:
        with pytest.raises(UnavailableError, match=r"it lies on a network file system \(fuse\.sshfs\)") as caught:
            open_store(folder)
        assert caught.value.facts["filesystem"] == "fuse.sshfs"
        with fuse(tmp_path / "local", "fuse.ext4") as local:
            assert not Disk().is_network(local)


def test_no_descriptor_of_anybody_else_drops_the_locks_of_a_pod_that_is_open(pod: Path) -> None:
    """A failed open, a plain check, or a second store that is closed: another process stays shut out."""
    with open_store(pod) as store:
        store.apply(SECOND)
        open_store(pod).close()
        with pytest.raises(DeniedError):
            SqliteStore(pod / "pod.db", bytes(32))
        (pod / "pod.json").rename(pod / "aside")
        with pytest.raises(DamagedError):
            open_store(pod)
        (pod / "aside").rename(pod / "pod.json")
        db = (pod / "pod.db").stat()
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        ours = [fields for fields in held if fields[4] == str(os.getpid()) and fields[5].endswith(f":{db.st_ino}")]
        assert [fields[1:4] for fields in ours] == [["POSIX", "ADVISORY", "READ"]]


def test_a_clean_end_is_not_checked_and_an_unclean_one_is(pod: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reading a whole large file at each start would cost minutes; after a death it is worth them."""
    caplog.set_level(logging.INFO, "holdfast")
    open_store(pod).close()
    assert "pod.checked" not in caplog.messages
    make_pod(pod.parent / "left" / "pod.db", FIRST, is_left_open=True)
    open_store(pod.parent / "left").close()
    assert caplog.messages.count("pod.checked") == 1


def test_a_pod_whose_file_is_gone_is_no_fresh_machine(home: Path) -> None:
    """An empty Pod in the place of a lost one would be a lie: it is said, with the way to begin anew."""
    with PodClient(home=home) as client:
        client.create(Person("Ann"))
    (file,) = (home / "pods").glob("*.db")
    file.unlink()
    with pytest.raises(DamagedError, match="is gone, though it was there") as caught:
        PodClient(home=home)
    assert file.with_suffix(".json").name in str(caught.value)
    assert not file.exists()
    file.with_suffix(".json").unlink()
    with PodClient(home=home) as client:
        assert client.search({"type": "Person"}) == []


# -- beside others ----------------------------------------------------------------------------------------------------


def test_examining_a_pod_leaves_its_log_and_the_next_opener_checks_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So does a backup: both only look, and what a dead process left is for the next one to open it."""
    caplog.set_level(logging.INFO, "holdfast")
    pod = tmp_path / "pod"
    make_pod(pod / "pod.db", FIRST, is_left_open=True)
    log = (pod / "pod.db-wal").read_bytes()
    assert examine_pod(pod / "pod.db", KEY, read_envelope(pod / "pod.json")).items == 2
    assert back_up(pod / "pod.db", KEY, tmp_path / "backup").items == 2
    assert (pod / "pod.db-wal").read_bytes() == log != b""
    open_store(pod).close()
    assert caplog.messages.count("pod.checked") == 1


def test_a_pod_that_was_closed_has_no_more_files_after_it_was_examined(pod: Path) -> None:
    """Its folder is as it was, byte for byte."""
    before = files(pod)
    examine_pod(pod / "pod.db", KEY, read_envelope(pod / "pod.json"))
    assert files(pod) == before


def test_nothing_is_restored_while_a_backup_is_made(pod: Path, tmp_path: Path) -> None:
    """The one who restores is told; the backup is whole."""
    back_up(pod / "pod.db", KEY, tmp_path / "first")
    refused: list[str] = []

    def interfere(done: int, total: int) -> None:
        with pytest.raises(UnavailableError, match="is open: end what uses it, then restore") as caught:
            restore(tmp_path / "first", OWNER, pod / "pod.db")
        refused.append(f"{type(caught.value).__name__} {0 < done <= total}")

    assert back_up(pod / "pod.db", KEY, tmp_path / "second", on_progress=interfere).items == 2 + len(LARGE.operations)
    assert set(refused) == {"UnavailableError True"}


def test_a_pod_that_somebody_has_alone_is_neither_examined_nor_copied(
    pod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is being restored or migrated; nothing is left of the backup."""
    monkeypatch.setattr("holdfast.sql.backup.WAIT_S", 0)
    with Disk().lock(pod / "pod.lock"):
        with pytest.raises(BusyError):
            examine_pod(pod / "pod.db", KEY, read_envelope(pod / "pod.json"))
        with pytest.raises(BusyError):
            back_up(pod / "pod.db", KEY, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


# -- the keyring ------------------------------------------------------------------------------------------------------


def change_keyring(path: Path, *statements: str) -> None:
    """Run SQL on a keyring."""
    db = apsw.Connection(str(path))
    try:
        for statement in statements:
            db.execute(statement)
    finally:
        db.close()


KEYRING_DAMAGE = {
    "garbage": lambda path: path.write_bytes(b"no database" * 1_000),
    "cut": lambda path: os.truncate(path, PAGE + 100),
    "page": lambda path: path.write_bytes(path.read_bytes()[:PAGE] + b"\xff" * (path.stat().st_size - PAGE)),
    "tables": lambda path: change_keyring(path, "DROP TABLE keyring"),
    "altered": lambda path: change_keyring(path, "UPDATE keyring SET wrapped = zeroblob(64)"),
    "short": lambda path: change_keyring(path, "UPDATE keyring SET wrapped = x'00'"),
}


@pytest.mark.parametrize("kind", KEYRING_DAMAGE)
def test_a_damaged_keyring_locks_no_owner_out_and_is_kept_anew(
    home: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner's key opens the file. A file that is no keyring is set aside; a key that does not open is replaced."""
    with PodClient() as client:
        client.create(Person(firstName="Ada", id="ada"))
    path = Settings.read().keyring_path
    owner = next((home / "pods").glob("*.json")).stem
    KEYRING_DAMAGE[kind](path)
    damaged = path.read_bytes()
    caplog.clear()
    with PodClient() as client:
        assert client.exists("ada")
    assert [record.levelname for record in caplog.records if record.message == "keyring.damaged"] == ["WARNING"]
    aside = [found.read_bytes() for found in home.glob("pod.db.corrupt-*")]
    assert aside == ([] if kind in {"altered", "short"} else [damaged])
    key = Keyring(path, load_or_create_pod_key(home, {})).get(owner)
    with SqliteStore((home / "pods" / f"{owner}.db"), key, create=False) as store:
        assert list(store.find_items(["ada"])) == ["ada"]
    caplog.clear()
    PodClient().close()
    assert "keyring.damaged" not in caplog.messages


@pytest.mark.parametrize("kind", KEYRING_DAMAGE)
def test_no_pod_is_made_in_place_of_a_lost_one_because_the_keyring_is_damaged(home: Path, kind: str) -> None:
    """Who cannot know whether there was one assumes that there was. Without the envelope too, it is a beginning."""
    PodClient().close()
    (file,) = (home / "pods").glob("*.db")
    file.unlink()
    KEYRING_DAMAGE[kind](Settings.read().keyring_path)
    for _ in range(2):
        with pytest.raises(DamagedError, match="is gone, though it was there"):
            PodClient()
    assert not file.exists()
    file.with_suffix(".json").unlink()
    PodClient().close()
    PodClient().close()


def test_a_keyring_of_a_newer_format_is_refused_by_name(home: Path) -> None:
    """And is not touched, not even by what mends a damaged one."""
    PodClient().close()
    path = Settings.read().keyring_path
    change_keyring(path, "PRAGMA user_version = 3")
    before = path.read_bytes()
    with pytest.raises(
        InvalidError, match=r"pod\.db' has format 3, and this version of Holdfast reads formats up to 2"
    ):
        PodClient()
    with pytest.raises(InvalidError, match="has format 3"):
        Keyring(path, KEY).put("a" * 64, bytes(32))
    assert path.read_bytes() == before
