"""``holdfast doctor``: it finds each kind of damage, crashes at none, and changes nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast import PodClient
from holdfast.disk import Disk
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


@pytest.mark.parametrize(
    "damage,code,found",
    [
        (flip, 6, {"Pod": "fail"}),
        (overwrite("pods/*.db", b"SQLite format 3\0" + bytes(4096)), 6, {"Pod": "fail"}),
        (overwrite("pods/*.db", b""), 0, {"Pod": "warn"}),
        (overwrite("pods/*.json", b"{}"), 6, {"Pod": "fail"}),
        (lambda home: next(home.glob("pods/*.json")).unlink(), 6, {"Pod": "fail"}),
        (lambda home: next(home.glob("pods/*.db")).unlink(), 0, {"Pod": "warn"}),
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
    keys = dogs / "keys.json"
    old: Any = keys.read_text()
    keys.write_text(
        old.replace('"database_key"', '"previous_database_key"').replace("{", f'{{"database_key": "{"d" * 64}",')
    )
    next(dogs.glob("pods/*.db")).with_suffix(".db.restoring").mkdir()

    answer = call("doctor", "--json")

    assert verdicts(answer) == {"keys": "warn", "Pod": "warn"}
    assert "holdfast keys rotate" in answer.out
