"""``holdfast snapshots`` shows what is in a folder, and removes nothing that was not agreed to."""

import array
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from holdfast.snapshots.manifest import File, Manifest, Stored
from holdfast.snapshots.reading import verify
from holdfast.snapshots.removal import is_pinned
from holdfast.snapshots.saving import StateStore

Call = Callable[..., Any]

HOUR_NS = 3600 * 10**9


def make(folder: Path, name: str, hour: int, data: bytes = b"data", **metrics: float) -> Path:
    """Put a snapshot of one file there that was saved so many hours after 1970."""
    path = folder / name
    manifest = Manifest(
        id=f"{hour:032x}",
        created_at_ns=hour * HOUR_NS,
        objects={"data": Stored(entries=("data",))},
        files=(File("data", len(data), blake3(data).hexdigest()),),
        metrics=metrics,
    )
    (path / ".snap").mkdir(parents=True)
    (path / "data").write_bytes(data)
    (path / ".snap" / "manifest.json").write_bytes(manifest.to_bytes())
    os.utime(path, ns=(hour * HOUR_NS,) * 2)
    return path


def names(folder: Path) -> list[str]:
    """The names in a folder that do not begin with a dot, sorted."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


@pytest.fixture
def states(tmp_path: Path) -> Path:
    """A folder with three snapshots, an hour apart."""
    for hour, (name, loss) in enumerate({"a.state": 1.0, "b.state": 3.0, "c.state": 2.0}.items()):
        make(tmp_path / "states", name, hour, loss=loss)
    return tmp_path / "states"


def test_list_shows_the_newest_first(call: Call, states: Path) -> None:
    """A line each, with what is wrong with a manifest, and what has none."""
    (states / "c.state" / ".snap" / "manifest.json").write_bytes(b"{}")
    (states / "d.state").mkdir()
    (states / "notes").mkdir()
    os.utime(states / "c.state", (0, 0)), os.utime(states / "d.state", (-1, -1))
    call("snapshots", "pin", states, "b.state")
    answer = call("snapshots", "list", states)

    assert answer.code == 0
    assert answer.rows[0] == ["name", "created", "bytes", "shared", "metrics", "pinned", "problem"]
    assert [[row[0], row[1], *row[4:6]] for row in answer.rows[1:]] == [
        ["b.state", "1970-01-01T01:00:00.000Z", "loss 3", "yes"],
        ["c.state", "1970-01-01T00:00:00.000Z", "", ""],
        ["a.state", "1970-01-01T00:00:00.000Z", "loss 1", ""],
        ["d.state", "1969-12-31T23:59:59.000Z", "", ""],
    ]
    assert [bool(row[6]) for row in answer.rows[1:]] == [False, True, False, True]
    assert answer.rows[4][6] == "it has no manifest"


def test_list_with_json_is_one_document(call: Call, states: Path) -> None:
    """For programs."""
    (states / "b.state" / "data").unlink()
    os.link(states / "a.state" / "data", states / "b.state" / "data")
    size = sum(path.stat().st_size for path in (states / "a.state").rglob("*") if path.is_file())
    blocks = (states / "a.state" / "data").stat().st_blocks * 512

    document = call("snapshots", "list", states, "--json").document

    assert document["folder"] == str(states)
    assert document["snapshots"][-1] == {
        "name": "a.state",
        "created": "1970-01-01T00:00:00.000Z",
        "size_bytes": size,
        "shared_bytes": blocks,
        "metrics": {"loss": 1.0},
        "is_pinned": False,
        "problem": None,
    }


def test_verify_reads_all_or_what_is_named(call: Call, states: Path) -> None:
    """The exit code says that one is damaged, and the lines which and where."""
    assert call("snapshots", "verify", states).code == 0
    (states / "b.state" / "data").write_bytes(b"else")
    answer = call("snapshots", "verify", states)

    assert answer.code == 6
    assert [row[:3] for row in answer.rows] == [
        ["name", "is", "entry"],
        ["c.state", "valid", ""],
        ["b.state", "damaged", "data"],
        ["a.state", "valid", ""],
    ]
    assert call("snapshots", "verify", states, "a.state", "c.state").code == 0
    document = call("snapshots", "verify", states, "b.state", "--json")
    assert document.code == 6
    assert document.document["is_valid"] is False
    assert [fault["entry"] for fault in document.document["snapshots"][0]["faults"]] == ["data"]


def test_one_that_cannot_be_read_does_not_keep_the_others_from_being_verified(call: Call, states: Path) -> None:
    """As one of a newer release."""
    rest = b'"format": 9}'
    newer = b'{"blake3": "' + blake3(rest).hexdigest().encode() + b'",\n' + rest
    (states / "c.state" / ".snap" / "manifest.json").write_bytes(newer)
    answer = call("snapshots", "verify", states)

    assert answer.code == 6
    assert {row[0]: row[1] for row in answer.rows[1:]} == {
        "a.state": "valid",
        "b.state": "valid",
        "c.state": "damaged",
    }
    assert "format 9" in answer.out


def test_du_counts_shared_files_once(call: Call, tmp_path: Path) -> None:
    """What a directory frees is what no other has; the whole is less than the sum."""
    big = os.urandom(100_000)
    one, two = make(tmp_path, "1.state", 1, big), make(tmp_path, "2.state", 2, big)
    (two / "data").unlink()
    os.link(one / "data", two / "data")
    (tmp_path / ".tmp-0123456789abcdef").mkdir()
    blocks = (one / "data").stat().st_blocks * 512
    document = call("snapshots", "du", tmp_path, "--json").document

    rows = {each["name"]: each for each in document["directories"]}
    assert sorted(rows) == [".tmp-0123456789abcdef", "1.state", "2.state"]
    assert rows["1.state"]["shared_bytes"] == rows["2.state"]["shared_bytes"] == blocks
    assert rows["1.state"]["freed_bytes"] == rows["1.state"]["disk_bytes"] - blocks
    total = document["total"]
    assert total["disk_bytes"] == sum(each["disk_bytes"] for each in rows.values()) - blocks
    assert total["freed_bytes"] == total["disk_bytes"]
    assert total["size_bytes"] == sum(each["size_bytes"] for each in rows.values()) > 200_000
    assert [row[0] for row in call("snapshots", "du", tmp_path).rows] == ["name", *sorted(rows), "all"]


def test_prune_with_dry_run_says_why_and_removes_nothing(call: Call, states: Path) -> None:
    """Each directory, the newest first."""
    answer = call("snapshots", "prune", states, "--latest", 1, "--best", "min", "loss", 1, "--dry-run")

    assert answer.code == 0
    assert answer.rows == [
        ["name", "it", "reason"],
        ["c.state", "stays", "one of the 1 newest"],
        ["b.state", "goes", "not one of the 1 best by 'loss'; not one of the 1 newest; not pinned"],
        ["a.state", "stays", "one of the 1 best by 'loss'"],
        ["1 of 3 would go. Nothing was changed."],
    ]
    assert names(states) == ["a.state", "b.state", "c.state"]
    document = call("snapshots", "prune", states, "--hourly", 2, "--dry-run", "--json").document
    assert document["removed"] == []
    assert [each["name"] for each in document["decisions"] if each["is_removed"]] == ["a.state"]


def test_prune_removes_what_no_option_keeps(call: Call, states: Path) -> None:
    """And sweeps up what an earlier one, killed, has left."""
    (states / ".tmp-0123456789abcdef").mkdir()
    (states / "notes.state").mkdir()
    call("snapshots", "pin", states, "a.state")

    document = call("snapshots", "prune", states, "--daily", 1, "--yes", "--json").document

    assert document["removed"] == ["b.state"]
    assert names(states) == ["a.state", "c.state", "notes.state"]
    assert not (states / ".tmp-0123456789abcdef").exists()
    assert call("snapshots", "unpin", states, "a.state").out == "Unpinned 1.\n"
    assert call("snapshots", "prune", states, "--latest", 0, "--yes").out == "Removed 1 of 2 snapshots.\n"


def test_prune_never_removes_the_newest_that_verifies(call: Call, states: Path) -> None:
    """Nor is a newer one that is damaged taken for it."""
    (states / "c.state" / "data").write_bytes(b"else")

    assert call("snapshots", "prune", states, "--latest", 1, "--yes").code == 0
    assert names(states) == ["b.state", "c.state"]
    assert call("snapshots", "prune", states, "--latest", 0, "--yes").code == 0
    assert names(states) == ["b.state"]


def test_prune_leaves_what_a_plugin_state_last_pointed_to(call: Call, states: Path) -> None:
    """A plugin will want it when it runs again; what it pointed to before may go."""
    make(states, "d.state", 9)
    for name in ("a.state", "b.state"):
        (states / name / ".snap" / "pointed").write_text("3")

    answer = call("snapshots", "prune", states, "--latest", 1, "--yes", "--json").document

    assert answer["removed"] == ["c.state", "a.state"]
    assert [each["reason"] for each in answer["decisions"] if each["name"] == "b.state"] == [
        "a plugin state points to it"
    ]


def test_prune_in_a_pipe_needs_a_word(call: Call, states: Path) -> None:
    """Nobody can be asked there; nor is anything removed if nothing is said to be kept."""
    for words in (["--latest", 1], ["--latest", 1, "--json"], ["--yes"], ["--hourly", 0, "--yes"]):
        answer = call("snapshots", "prune", states, *words)
        assert answer.code == 2
        assert "--yes removes" in answer.err or "say what to keep" in answer.err
    assert names(states) == ["a.state", "b.state", "c.state"]


@pytest.mark.parametrize("reply, code, left", [("y", 0, ["c.state"]), ("n", 130, ["a.state", "b.state", "c.state"])])
def test_on_a_terminal_prune_shows_the_plan_and_asks(states: Path, reply: str, code: int, left: list[str]) -> None:
    """The answer no changes nothing."""
    program = "import sys; from holdfast.cli import command; from holdfast.cli.invocation import run; "
    program += "sys.exit(run(command, 'holdfast', sys.argv[1:]))"
    ours, theirs = pty.openpty()
    asking = subprocess.Popen(
        [sys.executable, "-c", program, "snapshots", "prune", str(states), "--latest", "1"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, f"{reply}\n".encode())
    out, err = asking.communicate(timeout=60)
    os.close(ours), os.close(theirs)

    assert asking.returncode == code
    assert "b.state\tgoes\tnot one of the 1 newest; not pinned\n" in out
    assert "Remove 2 of 3 snapshots?" in err
    assert names(states) == left


def test_restore_copies_what_verifies(call: Call, states: Path, tmp_path: Path) -> None:
    """Whole and by itself, with its time, without its pin; a damaged one, and a name that is taken, are refused."""
    call("snapshots", "pin", states, "a.state")
    answer = call("snapshots", "restore", states, "a.state", tmp_path / "copy", "--json")

    assert answer.document == {"name": "a.state", "target": str(tmp_path / "copy"), "size_bytes": 4}
    assert verify(tmp_path / "copy") == []
    assert (tmp_path / "copy").stat().st_mtime_ns == 0
    assert not is_pinned(tmp_path / "copy")
    assert (tmp_path / "copy" / "data").stat().st_nlink == 1
    taken = call("snapshots", "restore", states, "b.state", tmp_path / "copy")
    assert (taken.code, taken.err.count("\n")) == (5, 1)
    (states / "b.state" / "data").write_bytes(b"else")
    damaged = call("snapshots", "restore", states, "b.state", tmp_path / "other")
    assert damaged.code == 6
    assert "'data' does not hold what was written" in damaged.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".tmp", "other"))) == []


class Weights:
    """Half a megabyte of which little changes."""

    def __init__(self) -> None:
        self.values = array.array("d", range(65536))

    def get_state(self) -> dict[str, object]:
        """The array itself."""
        return {"values": self.values}

    def set_state(self, tree: dict[str, Any]) -> None:
        """Take it back."""
        self.values = tree["values"]


def test_what_shares_chunks_is_pruned_and_restored_by_itself(call: Call, tmp_path: Path) -> None:
    """The others verify when one is gone, and a copy is loaded like the original."""
    weights = Weights()
    with StateStore(tmp_path / "states", "%f.state") as store:
        store.register("weights", weights)
        paths = []
        for number in range(3):
            weights.values[number] = -1.0
            paths.append(store.save_state())
    du = call("snapshots", "du", tmp_path / "states", "--json").document
    assert du["total"]["disk_bytes"] < 2 * 524_288 < 3 * 524_288 < du["total"]["size_bytes"]

    assert call("snapshots", "prune", tmp_path / "states", "--latest", 1, "--yes").code == 0
    assert names(tmp_path / "states") == [paths[2].name]
    assert call("snapshots", "verify", tmp_path / "states").code == 0
    assert call("snapshots", "restore", tmp_path / "states", paths[2].name, tmp_path / "copy").code == 0
    shutil.rmtree(tmp_path / "states")
    restored = Weights()
    with StateStore(tmp_path / "states") as store:
        store.register("weights", restored)
        store.load_state(tmp_path / "copy")
    assert list(restored.values[:4]) == [-1.0, -1.0, -1.0, 3.0]
    assert len(restored.values) == 65536


@pytest.mark.parametrize("name", ["../a.state", "", ".", "..", "a.state/data", "a.state/"])
@pytest.mark.parametrize("words", [["verify"], ["pin"], ["unpin"], ["restore"]])
def test_a_name_that_leads_elsewhere_is_refused(call: Call, states: Path, words: list[str], name: str) -> None:
    """It is one of a directory in the folder."""
    answer = call("snapshots", *words, states, name, *(["out"] if words == ["restore"] else []))

    assert answer.code == 2
    assert "one directory in it is expected" in answer.err
    assert not is_pinned(states / "a.state")


@pytest.mark.parametrize(
    "words",
    [
        ["list", "F"],
        ["verify", "F"],
        ["verify", "F", "x"],
        ["du", "F"],
        ["prune", "F", "--latest", "1", "--yes"],
        ["prune", "F", "--best", "max", "loss", "1", "--dry-run"],
        ["restore", "F", "x", "y"],
        ["pin", "F", "x"],
        ["unpin", "F", "x"],
    ],
)
@pytest.mark.parametrize("folder", ["absent", "file", "file/below", "x" * 300])
def test_a_folder_that_is_none_is_one_clear_sentence(
    call: Call, states: Path, words: list[str], folder: str, tmp_path: Path
) -> None:
    """No traceback, and nothing is made."""
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    answer = call("snapshots", *[str(tmp_path / folder) if word == "F" else word for word in words])

    assert answer.code in {2, 4}
    assert answer.out == ""
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_hostile_names_cannot_command_a_terminal(call: Call, tmp_path: Path) -> None:
    """Control characters are shown as escapes, in tables as in errors; bytes that are no text break nothing."""
    hostile = "\x1b[2J\t\n\u202e.state"
    path = make(tmp_path, hostile, 1, **{"\x1b]0;owned\x07": 1.0})
    make(tmp_path, os.fsdecode(b"\xff\xfe.state"), 2)
    (path / "data").write_bytes(b"else")

    for words in (
        ["list", tmp_path],
        ["verify", tmp_path],
        ["du", tmp_path],
        ["prune", tmp_path, "--latest", 1, "--dry-run"],
        ["restore", tmp_path, hostile, tmp_path / "out"],
        ["verify", tmp_path, "\x1b[2Jabsent"],
        ["pin", tmp_path, hostile],
        ["list", tmp_path, "--json"],
    ):
        answer = call("snapshots", *words)
        assert not {"\x1b", "\x07", "\u202e"} & set(answer.out + answer.err), words
        assert "Traceback" not in answer.err


def test_from_a_folder_that_has_gone_there_is_no_traceback(states: Path, tmp_path: Path) -> None:
    """Absolute paths still work, relative ones are not there."""
    gone = tmp_path / "gone"
    program = (
        f"mkdir {gone} && cd {gone} && rmdir {gone} && exec {Path(sys.executable).with_name('holdfast')} snapshots"
    )
    for words, code in (
        (f"list {states}", 0),
        (f"verify {states}", 0),
        (f"prune {states} --latest 2 --yes", 0),
        ("list states", 4),
        ("restore . a.state b", 4),
    ):
        done = subprocess.run(["sh", "-c", f"{program} {words}"], capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
