"""``holdfast runs``: logs that come from two places, and runs that are made ready again for whoever is to have them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from holdfast import PersistentState, PluginRun, PodClient
from holdfast.cli.logs import RunLog
from holdfast.context import Settings, open_store
from holdfast.keys import read_identity
from holdfast.runs import Status
from holdfast.sql import Agenda
from holdfast.store import AppendLog, Batch, ClaimLease, CreateItem, EndLease, MoveRun, Operation, UpdateItem
from holdfast.testing import FakeClock, MemoryStore
from tests.cli.conftest import Call

PLUGIN = {"pluginModule": "m", "pluginName": "P"}


@pytest.fixture
def run(home: Path) -> str:
    """A run that works, of which nobody has logged anything."""
    with PodClient() as client:
        state = client.create(PersistentState(name="default"))
        run = client.create(PluginRun(**PLUGIN, pluginState=[state]))
    do(ClaimLease(str(state.id), str(run.id), "h", 60_000), MoveRun(str(run.id), Status.STARTED))
    return str(run.id)


def do(*operations: Operation) -> None:
    """Apply a batch to the Pod of this home."""
    with open_store(Settings.read()) as store:
        store.apply(Batch(operations))


def end(run: str, to: Status = Status.ERROR) -> None:
    """Let a run that works end."""
    with PodClient() as client:
        [state] = client.search({"type": "PersistentState"})
    do(EndLease(str(state.id)), MoveRun(run, to))


def wrote(run: str, *parts: str, source: str = "hf-1") -> None:
    """Let a launch have written these parts, after what it had."""
    with open_store(Settings.read()) as store:
        for part in parts:
            start = store.find_log_end(run, source)
            store.apply(Batch((AppendLog(run, source, start, str(int(start or 0) + len(part)), part),)))


def log_file(home: Path, run: str, text: str, name: str = "") -> None:
    """Let an attempt by hand have logged something."""
    (home / "runs").mkdir(exist_ok=True)
    (home / "runs" / f"{run}.log{name}").write_bytes(text.encode())


# -- logs -------------------------------------------------------------------------------------------------------------


def test_logs_of_this_home_come_before_those_of_the_pod(call: Call, home: Path, run: str) -> None:
    """Lines are whole, however the parts were cut; the last one need not be ended."""
    log_file(home, run, "older\n", ".1")
    log_file(home, run, "newer\r\nbroken off")
    wrote(run, "one\nt", "wo\r", "\n\nthr")
    wrote(run, "second launch\n", source="hf-2")
    lines = ["older", "newer", "one", "two", "", "thr", "second launch", "broken off"]

    assert call("runs", "logs", run).out.splitlines() == lines
    assert call("runs", "logs", run, "--json").document == {"log": str(home / "runs" / f"{run}.log"), "lines": lines}
    assert call("runs", "logs", run, "--lines", "2").out == "second launch\nbroken off\n"
    assert call("runs", "logs", "../keys").code == 4


def test_a_run_that_has_logged_nothing_is_said_to(call: Call, run: str) -> None:
    """In neither place."""
    answer = call("runs", "logs", run)

    assert (answer.code, answer.out) == (4, "")
    assert "has logged nothing" in answer.err


def test_a_log_that_is_larger_than_one_answer_is_printed_whole(call: Call, run: str) -> None:
    """The Pod gives a mebibyte at once."""
    wrote(run, *(f"{number}\n" + "x" * 700_000 + "\n" for number in range(4)))

    xs = "x" * 700_000
    assert call("runs", "logs", run).out.split() == ["0", xs, "1", xs, "2", xs, "3", xs]


def test_what_a_log_holds_commands_no_terminal(call: Call, home: Path, run: str) -> None:
    """From either place, followed or not, escapes stand for it; a program gets it as it is."""
    log_file(home, run, "\x1b[2Jfile\n")
    wrote(run, "\x1b]0;pod\x07\rover\n")
    end(run)
    shown = ["\\x1b[2Jfile", "\\x1b]0;pod\\x07\\rover"]

    assert call("runs", "logs", run).out.splitlines() == shown
    assert call("runs", "logs", run, "--json").document["lines"] == ["\x1b[2Jfile", "\x1b]0;pod\x07\rover"]
    assert call("runs", "logs", run, "-f").out.splitlines() == shown


def test_a_log_is_followed_with_an_object_for_each_line(call: Call, home: Path, run: str) -> None:
    """The last lines of what is there, and what comes; a run that has ended is followed for a moment."""
    log_file(home, run, "a\nb\n")
    wrote(run, "c\nd")
    end(run, Status.ABORTED)

    answer = call("runs", "logs", run, "--follow", "--lines", "2", "--json")

    assert answer.code == 0
    assert [json.loads(line) for line in answer.out.splitlines()] == [{"line": "b"}, {"line": "c"}, {"line": "d"}]


def test_following_a_log_ends_with_ctrl_c(home: Path, run: str) -> None:
    """While the run works; each line comes as soon as it is there, also in a pipe."""
    wrote(run, "first\n")
    program = Path(sys.executable).with_name("holdfast")
    with subprocess.Popen(
        [program, "runs", "logs", "-f", run],
        env={**os.environ, "HOLDFAST_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        wrote(run, "second\n")
        assert process.stdout.readline() == "second\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "Stopped.\n")


class Waiting:
    """What lets one thing happen with each pause."""

    def __init__(self, *events: Callable[[], object]) -> None:
        self.events = [*events]
        self.pauses: list[float] = []

    def __call__(self, seconds: float) -> None:
        """Pause."""
        self.pauses.append(seconds)
        if self.events:
            self.events.pop(0)()


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A Pod in memory."""
    with closing(MemoryStore(clock=FakeClock(1_000_000))) as store:
        yield store


def test_a_file_is_followed_when_it_grows_and_when_it_is_set_aside(store: MemoryStore, tmp_path: Path) -> None:
    """No line twice, none left out, no character cut in two; and it need not be there at first."""
    path, events = tmp_path / "r.log", list[str]()

    def write(data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    def set_aside() -> None:
        write(b"last of the first\n")
        path.replace(tmp_path / "r.log.1")
        write(b"first of the second\n")

    wait = Waiting(
        *(lambda: None for _ in range(7)),
        lambda: write("one\nz\N{LATIN SMALL LETTER E WITH DIAERESIS}".encode()[:-1]),
        lambda: write("\N{LATIN SMALL LETTER E WITH DIAERESIS}".encode()[-1:] + b"\n"),
        set_aside,
        lambda: write(b"\xff\n"),
    )
    with RunLog(store, "r", path) as log:
        for line in log.follow(lambda: not wait.events, wait=wait):
            events.append(line)

    assert events == ["one", "zë", "last of the first", "first of the second", "�"]
    assert wait.pauses == [0.5] * (11 + 6)


def test_what_comes_after_the_end_is_waited_for_again(store: MemoryStore) -> None:
    """A launch is cleaned up after its run has ended: until nothing has come for six looks in a row."""
    store.apply(Batch((CreateItem("r", "PluginRun"),)))

    def wrote(text: str) -> Callable[[], object]:
        return lambda: store.apply(Batch((AppendLog("r", "hf-1", store.find_log_end("r", "hf-1"), text, f"{text}\n"),)))

    wait = Waiting(*(lambda: None for _ in range(5)), wrote("late"), *(lambda: None for _ in range(5)), wrote("later"))
    with RunLog(store, "r", None) as log:
        assert [*log.follow(lambda: True, wait=wait)] == ["late", "later"]
    assert len(wait.pauses) == 12 + 6


# -- seen, and made ready again ---------------------------------------------------------------------------------------


def test_a_run_is_shown_with_what_it_is_launched_from_and_when(call: Call, run: str) -> None:
    """How often it died in vain, and until when it waits; nothing of that in a list."""
    end(run)
    do(UpdateItem(run, {"containerImage": "holdfast", "deaths": 2, "retryAt": 1_700_000_000_000}))

    shown = call("runs", "show", run, "--json").document

    assert (shown["image"], shown["deaths"], shown["retry_at"]) == ("holdfast", 2, "2023-11-14T22:13:20Z")
    assert ["retry_at", "2023-11-14T22:13:20Z"] in call("runs", "show", run).rows
    [listed] = call("runs", "list", "--json").document["runs"]
    assert [*listed] == ["id", "plugin", "state", "status", "progress", "written", "error"]


@pytest.mark.parametrize(
    "words, image, said",
    [
        ([], None, 'the next "holdfast run" of its plugin state carries it on'),
        (["--image", "holdfast"], "holdfast", "the server launches it"),
        (["--image", "none"], "none", 'the next "holdfast run" of its plugin state carries it on'),
    ],
)
def test_a_retry_says_who_carries_the_run_on(
    words: list[str], image: str | None, said: str, call: Call, run: str
) -> None:
    """A server does, if the run has an image."""
    end(run)

    answer = call("runs", "retry", run, *words)

    assert (answer.code, answer.out) == (0, f"Run {run} is ready; {said}.\n")
    assert call("runs", "show", run, "--json").document["image"] == image


def test_a_run_that_nobody_has_any_more_is_retried(call: Call, run: str) -> None:
    """Not while it is held."""
    assert call("runs", "retry", run).code == 5
    with PodClient() as client:
        [state] = client.search({"type": "PersistentState"})
    do(EndLease(str(state.id)))

    assert call("runs", "retry", run).code == 0
    assert call("runs", "show", run, "--json").document["status"] == "ready"


@pytest.mark.parametrize("words", [["abort", "--now"], ["retry"]])
def test_a_server_that_shares_the_home_is_told(words: list[str], call: Call, home: Path, run: str) -> None:
    """It looks at the Pod again; a note that cannot be made undoes nothing."""
    if words == ["retry"]:
        end(run)
    agenda, owner = Agenda(home / "pod.db"), read_identity(home).owner_key
    agenda.put(owner, None, 0)
    assert agenda.next_ms() is None

    assert call("runs", *words, run).code == 0

    assert agenda.next_ms() is not None
    assert [*agenda.list_due(2**62)] == [owner]
    (home / "pod.db").unlink()
    (home / "pod.db").mkdir()
    do(MoveRun(run, Status.ABORTED))
    assert call("runs", "retry", run).code == 0


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_begun_by_hand_is_not_launched(call: Call, home: Path, tmp_path: Path) -> None:
    """Though its metadata name an image: a server that shares the home would begin it as well."""
    (tmp_path / "by_hand.py").write_text(
        "from holdfast import PluginBase\nclass P(PluginBase):\n    def run(self):\n        pass\n"
    )
    metadata = {"pluginModule": "by_hand", "pluginName": "P", "containerImage": "holdfast"}
    (tmp_path / "by_hand.json").write_text(json.dumps(metadata))

    program = Path(sys.executable).with_name("holdfast")
    subprocess.run([program, "run", str(tmp_path / "by_hand.json")], check=True, capture_output=True)

    [run] = call("runs", "list", "--json").document["runs"]
    assert (run["status"], call("runs", "show", run["id"], "--json").document["image"]) == ("done", "none")
