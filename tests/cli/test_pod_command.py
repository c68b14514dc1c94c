"""``holdfast pod``: copies while others write, restores only what was agreed to, and loses nothing on the way."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from holdfast import Person, PodClient
from holdfast.cli.drawing import lines_of_progress
from holdfast.sql import backup
from tests.cli.conftest import Call

WRITER = """
from holdfast import Person, PodClient
client = PodClient()
for number in range(100_000):
    with client.transaction():
        client.create(Person(displayName="left"))
        client.create(Person(displayName="right"))
    if number == 20:
        print("writing", flush=True)
"""


class Terminal:
    """A command on a terminal of its own, and all that it has shown."""

    def __init__(self, home: Path, *words: str) -> None:
        self._descriptor, theirs = pty.openpty()
        program = Path(sys.executable).with_name(words[0])
        env = {**os.environ, "HOLDFAST_HOME": str(home), "TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [program, *words[1:]], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def read(self, until: str | None = None) -> str:
        """Read until a text is shown, or to the end."""
        while until is None or until not in self.shown:
            assert select.select([self._descriptor], [], [], 60)[0], self.shown
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:  # Linux says so when the other side is closed
                data = b""
            if not data:
                break
            self.shown += data.decode()
        return self.shown

    def write(self, text: str) -> None:
        """Type ``text``."""
        os.write(self._descriptor, text.encode())

    def end(self) -> int:
        """Read the rest and return the exit code."""
        self.read()
        os.close(self._descriptor)
        return self.process.wait(60)


@contextmanager
def writer(home: Path) -> Iterator[None]:
    """Have another process write pairs of items, each in one transaction, as long as the block lasts."""
    env = {**os.environ, "HOLDFAST_HOME": str(home)}
    with subprocess.Popen([sys.executable, "-c", WRITER], env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            yield
            assert process.poll() is None
        finally:
            process.kill()


def test_a_backup_made_while_another_process_writes_is_one_moment_and_opens_elsewhere(
    shell: Call, home: Path, tmp_path: Path
) -> None:
    """Brought to another machine with the keys, it holds every pair whole."""
    target, copy, elsewhere = tmp_path / "backup", tmp_path / "keys.json", tmp_path / "elsewhere"
    with writer(home):
        assert shell("holdfast", "pod", "backup", target).code == 0
    assert shell("store_keys", "--export", copy).code == 0
    assert shell("store_keys", "--home", elsewhere, "--from-file", copy).code == 0

    restored = shell("holdfast", "--home", elsewhere, "pod", "restore", target, "--yes")

    assert (restored.code, restored.err) == (0, "")
    with PodClient(home=elsewhere) as client:
        left = client.search({"displayName": "left"})
        right = client.search({"displayName": "right"})
    assert len(left) == len(right) >= 20
    assert sorted(path.name for path in target.iterdir()) == ["pod.db", "pod.json"]


def test_a_backup_says_what_it_holds_and_does_not_take_the_place_of_anything(
    call: Call, dogs: Path, tmp_path: Path
) -> None:
    """A folder that exists ends with 5 and is untouched."""
    answer = call("pod", "backup", tmp_path / "backup", "--json")

    assert answer.code == 0
    assert answer.err == ""
    assert {name: answer.document[name] for name in ("path", "format", "items")} == {
        "path": str(tmp_path / "backup"),
        "format": 3,
        "items": 3,
    }
    assert call("pod", "backup", tmp_path / "backup").code == 5
    assert call("pod", "restore", tmp_path / "backup", "--dry-run").code == 0


def test_a_backup_that_is_stopped_leaves_nothing(
    call: Call, dogs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle ends with 130, and neither the folder nor a part of it is there."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.cli.drawing.lines_of_progress", lambda *_: stop)
    before = sorted(tmp_path.iterdir())

    answer = call("pod", "backup", tmp_path / "backup")

    assert (answer.code, answer.out, answer.err) == (130, "", "Stopped.\n")
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_says_what_would_happen_and_changes_nothing(call: Call, dogs: Path, tmp_path: Path) -> None:
    """It checks the backup, names the Pod that would be set aside, and every file stays as it was."""
    call("pod", "backup", tmp_path / "backup")
    pod = next(dogs.glob("pods/*.db"))
    before = {path: path.stat().st_mtime_ns for path in dogs.rglob("*") if path.is_file()}

    lines = call("pod", "restore", tmp_path / "backup", "--dry-run")
    document = call("pod", "restore", tmp_path / "backup", "--dry-run", "--json").document

    assert lines.code == 0
    assert lines.out.endswith("would be set aside. Nothing was changed.\n")
    assert document["items"] == 3
    assert document["replaces"] == str(pod)
    assert document["is_changed"] is False
    assert {path: path.stat().st_mtime_ns for path in dogs.rglob("*") if path.is_file()} == before


def test_a_restore_brings_back_what_was_there_and_sets_aside_what_is(call: Call, dogs: Path, tmp_path: Path) -> None:
    """Items of the backup are back, items that were written since are kept beside it."""
    call("pod", "backup", tmp_path / "backup")
    with PodClient() as client:
        client.delete_items(["rex"])
        client.create(Person(id="later"))

    answer = call("pod", "restore", tmp_path / "backup", "--yes", "--json")

    assert answer.code == 0
    aside = Path(answer.document["replaced"])
    assert sorted(path.suffix for path in aside.iterdir()) == [".db", ".json"]
    with PodClient() as client:
        assert client.exists("rex")
        assert not client.exists("later")
    assert call("doctor").code == 0


def test_a_backup_from_before_a_rotation_opens_with_the_kept_keys(call: Call, dogs: Path, tmp_path: Path) -> None:
    """And is sealed with today's key again: the kept one is not needed a second time."""
    call("pod", "backup", tmp_path / "backup")
    call("keys", "rotate")
    [kept] = dogs.glob("keys.*.json")

    assert call("pod", "restore", tmp_path / "backup", "--yes").code == 0
    kept.unlink()

    with PodClient() as client:
        assert client.exists("bob")
    assert call("pod", "restore", tmp_path / "backup", "--yes").code == 3


@pytest.mark.parametrize("words", [["{}"], ["{}", "--json"]])
def test_where_nobody_can_be_asked_a_restore_must_be_agreed_to_beforehand(
    words: list[str], shell: Call, dogs: Path, tmp_path: Path
) -> None:
    """It ends with 2 before it looks at anything."""
    answer = shell("holdfast", "pod", "restore", *(word.format(tmp_path / "none") for word in words))

    assert answer.code == 2
    assert "--yes" in answer.err


@pytest.mark.parametrize("is_open", [False, True])
def test_a_restore_that_cannot_be_changes_nothing(is_open: bool, call: Call, dogs: Path, tmp_path: Path) -> None:
    """A damaged backup, and a Pod that a process has open, end with 6; what is no backup ends with 4."""
    call("pod", "backup", tmp_path / "backup")
    assert call("pod", "restore", tmp_path, "--yes").code == 4
    (tmp_path / "pod.db").touch()
    no_envelope = call("pod", "restore", tmp_path, "--yes")
    assert no_envelope.code == 4
    assert f"there is no backup in '{tmp_path}': it holds no 'pod.json'" in no_envelope.err
    if is_open:
        with PodClient():
            assert call("pod", "restore", tmp_path / "backup", "--yes").code == 6
    else:
        with (tmp_path / "backup" / "pod.db").open("r+b") as file:
            file.seek(5 * 4096 + 100)
            file.write(b"damage")
        assert call("pod", "restore", tmp_path / "backup", "--yes").code == 6

    with PodClient() as client:
        assert client.exists("rex")
    assert list((dogs / "pods").glob("*replaced*")) == []


def test_on_a_terminal_a_restore_asks_and_shows_a_bar(dogs: Path, call: Call, tmp_path: Path) -> None:
    """It says what the backup holds, waits for a yes, and restores."""
    call("pod", "backup", tmp_path / "backup")
    terminal = Terminal(dogs, "holdfast", "pod", "restore", str(tmp_path / "backup"))

    assert "would be set aside" in terminal.read(until="[y/N]")
    terminal.write("y\n")

    assert terminal.end() == 0, terminal.shown
    assert "100%" in terminal.shown
    assert "Restored 3 items" in terminal.shown
    assert len(list((dogs / "pods").glob("*.replaced-1"))) == 1


@pytest.mark.parametrize("how", ["no", "Ctrl-C"])
def test_a_no_and_ctrl_c_end_with_130_without_a_traceback_and_change_nothing(
    how: str, dogs: Path, call: Call, tmp_path: Path
) -> None:
    """What was asked about did not happen."""
    call("pod", "backup", tmp_path / "backup")
    terminal = Terminal(dogs, "holdfast", "pod", "restore", str(tmp_path / "backup"))
    terminal.read(until="[y/N]")

    if how == "no":
        terminal.write("n\n")
    else:
        terminal.process.send_signal(signal.SIGINT)
        terminal.write("y\n")  # too late; it only wakes a read that was about to begin when the signal came

    assert terminal.end() == 130, terminal.shown
    assert "Stopped." in terminal.shown
    assert "Traceback" not in terminal.shown
    assert list((dogs / "pods").glob("*replaced*")) == []


def test_on_a_terminal_a_search_is_a_table_of_the_columns_that_hold_something(dogs: Path) -> None:
    """Ids are whole, the secret is hidden, columns that are empty for all are left out."""
    terminal = Terminal(dogs, "holdfast", "items", "search", "Dog", "name=Rex")

    assert terminal.end() == 0
    assert "rex" in terminal.shown
    assert "age" in terminal.shown
    assert "weight" not in terminal.shown
    assert "\t" not in terminal.shown
    assert "At most 100 are shown" in terminal.shown


def test_progress_in_a_pipe_is_at_most_one_line_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the number of reports: none in the first second, then one for each second in which there is one."""
    now = [0.0]
    report = lines_of_progress("Backing up", clock=lambda: now[0])

    for quarter in range(11):
        now[0] = quarter / 4
        report(quarter * 512, 5120)

    assert capsys.readouterr() == ("", "Backing up: 2,048 of 5,120 pages\nBacking up: 4,096 of 5,120 pages\n")


def test_a_backup_leaves_alone_what_is_beside_it(call: Call, dogs: Path, tmp_path: Path) -> None:
    """Not even a folder that is called like something unfinished of ours: the place is the user's."""
    theirs = tmp_path / ".tmp-0123456789abcdef" / "file"
    theirs.parent.mkdir()
    theirs.write_text("theirs")

    assert call("pod", "backup", tmp_path / "backup").code == 0

    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("word", ["backup", "restore"])
def test_a_full_disk_is_said_of_the_copy_and_not_of_what_is_copied(
    word: str, call: Call, dogs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with 6 and names where there is no room; nothing is left of the copy."""
    call("pod", "backup", tmp_path / "backup")
    pod = next(dogs.glob("pods/*.db"))
    connect = backup._connect

    def connect_to_full(path: Path, key: bytes, flags: int) -> apsw.Connection:
        found = connect(path, key, flags)
        if ".tmp-" in str(path):
            found.pragma("max_page_count", 2)
        return found

    monkeypatch.setattr(backup, "_connect", connect_to_full)
    source, target = (pod, tmp_path / "second") if word == "backup" else (tmp_path / "backup" / "pod.db", pod)

    answer = call("pod", "backup", target) if word == "backup" else call("pod", "restore", tmp_path / "backup", "--yes")

    assert answer.code == 6
    assert f"'{target}' cannot grow: the disk is full" in answer.err
    assert str(source) not in answer.err
    assert [path.name for path in tmp_path.rglob(".tmp-*")] == []
