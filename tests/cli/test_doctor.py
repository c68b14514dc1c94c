"""``holdfast doctor``: it finds each kind of damage, crashes at none, and changes nothing."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast import PodClient
from holdfast.disk import Disk
from holdfast.keys import Identity, read_identity
from tests.cli.conftest import Answer, Call


def verdicts(answer: Answer) -> dict[str, str]:
    """Return the worst verdict of each check that is not ok; all Pods count as one check."""
    found = [(each["check"].partition(" ")[0], each["verdict"]) for each in answer.document["findings"]]
    return {
        check: verdict for check, verdict in sorted(found, key=lambda pair: pair[1], reverse=True) if verdict != "ok"
    }


def files(folder: Path) -> dict[Path, int]:
    """Return every file below ``folder`` with its mode."""
    return {path: path.stat().st_mode for path in folder.rglob("*")}


def test_on_a_fresh_machine_nothing_is_wrong_and_nothing_is_made(call: Call, home: Path) -> None:
    """It says that nothing is here yet, and that stays so."""
    answer = call("doctor")

    assert (answer.code, answer.err) == (0, "")
    assert f"home: {home}: nothing here yet" in answer.out
    assert not home.exists()


def test_a_sound_pod_is_all_ok(call: Call, dogs: Path) -> None:
    """Each check says what it found; nothing is made but what SQLite and locks need for a look."""
    before = files(dogs)

    lines, document = call("doctor"), call("doctor", "--json")

    assert lines.code == document.code == 0
    assert document.document["is_well"] is True
    assert verdicts(document) == {}
    assert "3 items" in lines.out
    assert "all pages sound, not open" in lines.out
    assert files(dogs) == before


def test_a_pod_that_is_open_is_said_to_be(call: Call, dogs: Path) -> None:
    """The log of a Pod in use is no sign of damage."""
    with PodClient() as client:
        client.delete_items(["rex"])
        answer = call("doctor")

    assert answer.code == 0
    assert "all pages sound, open in a process" in answer.out
    assert "died" not in answer.out


def test_a_process_that_died_with_the_pod_open_is_noticed(call: Call, dogs: Path) -> None:
    """A warning, and the check of all pages."""
    program = (
        "import os, signal\nfrom holdfast import Person, PodClient\n"
        "client = PodClient()\nclient.create(Person(id='last'))\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "HOLDFAST_HOME": str(dogs)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL

    answer = call("doctor", "--json")

    assert answer.code == 0
    assert verdicts(answer) == {"Pod": "warn"}
    assert answer.document["findings"][-1]["found"].startswith("4 items")


def overwrite(pattern: str, data: bytes) -> Callable[[Path], object]:
    """Return what writes ``data`` over the file that ``pattern`` finds."""
    return lambda home: next(home.glob(pattern)).write_bytes(data)


def flip(home: Path) -> None:
    """Damage one page in the middle of the Pod's file."""
    path = next(home.glob("pods/*.db"))
    data = bytearray(path.read_bytes())
    data[5 * 4096 + 100] ^= 1
    path.write_bytes(data)


def never_finish(home: Path) -> None:
    """Leave what a process leaves that dies before a Pod's first byte."""
    (home / "pod.db").unlink()
    for pattern in ("pods/*.db", "pods/*.made"):
        next(home.glob(pattern)).unlink()


def bring_other_keys(home: Path) -> None:
    """Put an owner's keys there whose Pod is somewhere else."""
    (home / "keys.json").write_bytes(Identity("d" * 64, "e" * 64).to_json())


@pytest.mark.parametrize(
    "damage,code,found",
    [
        (flip, 6, {"Pod": "fail"}),
        (overwrite("pods/*.db", b"SQLite format 3\0" + bytes(4096)), 6, {"Pod": "fail"}),
        (overwrite("pods/*.db", b""), 6, {"Pod": "fail"}),
        (overwrite("pods/*.json", b"{}"), 6, {"Pod": "fail"}),
        (lambda home: next(home.glob("pods/*.json")).unlink(), 6, {"Pod": "fail"}),
        (lambda home: next(home.glob("pods/*.db")).unlink(), 6, {"Pod": "fail"}),
        (lambda home: shutil.rmtree(home / "pods"), 6, {"Pod": "fail"}),
        (never_finish, 0, {"Pod": "warn"}),
        (bring_other_keys, 0, {"keys": "warn"}),
        (overwrite("keys.json", b"\xff"), 6, {"keys": "fail"}),
        (lambda home: (home / "keys.json").chmod(0o644), 6, {"keys": "fail"}),
        (lambda home: (home / "keys.json").unlink(), 6, {"keys": "fail"}),
        (overwrite("pod.key", b"short"), 6, {"Pod": "fail"}),
        (overwrite("pod.db", b"x" * 4096), 6, {"Pod": "fail"}),
        (lambda home: (home / "pod.db").unlink(), 0, {"Pod": "warn"}),
        (lambda home: home.chmod(0o755), 0, {"home": "warn"}),
        (lambda home: (home / "pods" / f"{'c' * 64}.db").write_bytes(b"?"), 6, {"Pod": "fail"}),
    ],
)
def test_each_damage_is_found_and_none_is_a_crash(
    damage: Callable[[Path], object], code: int, found: dict[str, str], call: Call, dogs: Path
) -> None:
    """A failure ends with 6 and says what is wrong; what only needs attention is a warning and ends with 0."""
    damage(dogs)

    answer = call("doctor", "--json")

    assert answer.code == code
    assert found.items() <= verdicts(answer).items()
    assert answer.document["is_well"] is (code == 0)
    assert call("doctor").code == code


@pytest.mark.parametrize(
    "pattern,advice",
    [
        ("pods/*.db", "bring the file back with its -wal, or restore a backup: holdfast pod restore"),
        ("pods/*.json", "bring it from a copy or a backup, where it is called pod.json; or holdfast pod restore"),
        ("keys.json", "bring them from where you keep them: store_keys --from-file"),
    ],
)
def test_a_file_that_is_gone_is_a_failure_with_the_way_back(pattern: str, advice: str, call: Call, dogs: Path) -> None:
    """The finding says where each of them is to be had."""
    next(dogs.glob(pattern)).unlink()

    answer = call("doctor", "--json")

    assert answer.code == 6
    assert advice in [each["advice"] for each in answer.document["findings"]]


def test_a_pod_that_is_gone_is_a_failure_where_no_key_of_it_is_kept(call: Call, dogs: Path) -> None:
    """One that was never finished is none: whoever made it was killed."""
    next(dogs.glob("pods/*.db")).unlink()
    (dogs / "pod.db").unlink()
    assert verdicts(call("doctor", "--json"))["Pod"] == "fail"
    next(dogs.glob("pods/*.made")).unlink()
    assert verdicts(call("doctor", "--json"))["Pod"] == "warn"


def test_a_home_that_is_a_file_is_a_failure(call: Call, home: Path) -> None:
    """And no check crashes on it."""
    home.write_text("not a folder")

    assert verdicts(call("doctor", "--json"))["home"] == "fail"


def test_a_home_on_a_network_and_a_full_disk_are_found(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is a failure, for SQLite's log cannot be shared there; the second a warning while there is room."""
    monkeypatch.setattr(Disk, "filesystem", lambda self, path: "nfs4")
    monkeypatch.setattr(Disk, "free_bytes", lambda self, path: 1)

    answer = call("doctor", "--json")

    assert verdicts(answer) == {"file": "fail", "free": "warn"}


def test_an_interrupted_rotation_or_restore_is_a_warning_with_what_to_do(call: Call, dogs: Path) -> None:
    """Both can be finished, and the finding says how."""
    old = read_identity(dogs)
    rotating = Identity(old.owner_key, "d" * 64, previous_database_key=old.database_key)
    (dogs / "keys.json").write_bytes(rotating.to_json())
    next(dogs.glob("pods/*.db")).with_suffix(".db.restoring").mkdir()

    answer = call("doctor", "--json")

    assert verdicts(answer) == {"keys": "warn", "Pod": "warn"}
    assert "holdfast keys rotate" in answer.out
