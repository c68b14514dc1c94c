"""What is on the disk when a program that writes is killed at any system call, or the disk fails it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.disk import Disk, MissingError
from holdfast.errors import UnavailableError
from tests.components.mounts import bound, read_only, tmpfs
from tests.components.strace import MARKERS, Call, fail, sweep

OLD, NEW = b"old " * 5_000, b"new " * 5_000

# -S: without the site's packages it starts twice as fast, and it makes half as many calls.
PYTHON = [sys.executable, "-S", "-c"]
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__, "../../../src").resolve())}

PROGRAM = (
    MARKERS
    + """
import ctypes, json, shutil, sys  # the first and the third so that they are not loaded in the window
from holdfast.disk import Disk
from holdfast.errors import HoldfastError

class Linkless(Disk):
    def _link(self, source, target):
        raise PermissionError(1, "Operation not permitted")

class Renameless(Disk):
    def _rename_new(self, source, target):
        raise OSError(22, "Invalid argument")

what, folder = sys.argv[1:]
disk = {"linkless": Linkless, "renameless": Renameless}.get(what.partition(" ")[0], Disk)()
file, new = folder + "/file", b"new " * 5_000
begin()
try:
    if what.endswith("create"):
        disk.create(file, new)
    elif what.endswith("replace"):
        disk.replace(file, new)
    elif what.endswith("keep"):
        disk.replace(file, new, keep_previous=folder + "/previous")
    elif what.endswith("rename"):
        disk.rename(folder + "/built", folder + "/snapshot")
    elif what.endswith("delete"):
        disk.delete(folder + "/built")
except HoldfastError as exc:
    print(json.dumps({"kind": type(exc).__name__, "text": str(exc), **exc.facts}))
end()
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a program writes."""
    return tmp_path / "folder"


def prepare(folder: Path, *, with_file: bool) -> None:
    """Put back all that a program may have changed."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "built" / "inner").mkdir(parents=True)
    (folder / "built" / "inner" / "file").write_bytes(OLD)
    if with_file:
        (folder / "file").write_bytes(OLD)
        (folder / "previous").write_bytes(b"older")


def kill_everywhere(what: str, folder: Path, check: Callable[[], object], *, sample: int | None) -> list[Call]:
    """Kill a program at each call of one operation; after each, ``check`` and see that a sweep finds all leftovers."""

    def check_one(call: Call) -> None:
        check()
        before = {name for name in os.listdir(folder) if name.startswith(".tmp-")}
        assert {path.name for path in Disk().sweep(folder)} == before, call
        check()
        assert not any(name.startswith(".tmp-") for name in os.listdir(folder)), call

    return sweep(
        [*PYTHON, PROGRAM, what, str(folder)],
        env=ENVIRONMENT,
        prepare=lambda: prepare(folder, with_file=not what.endswith("create")),
        check=check_one,
        sample=sample,
    )


def test_the_sweep_kills_before_the_first_call_and_after_the_last(folder: Path) -> None:
    """With nothing done at the one, all at the other: the window is where the operation is."""
    seen: list[bytes] = []
    calls = kill_everywhere("replace", folder, lambda: seen.append((folder / "file").read_bytes()), sample=2)
    assert [content[:4] for content in seen] == [b"old ", b"old ", b"new ", b"new "]
    assert calls[0].name == "openat"
    assert "/holdfast-end" in calls[1].text


@pytest.mark.parametrize("what, sample", [("replace", None), ("keep", None), ("linkless keep", 12)])
def test_killed_at_any_call_of_a_replace_the_file_is_old_or_new(
    folder: Path, what: str, sample: int | None, is_full: bool
) -> None:
    """Whole, and so is the generation before it; nothing else stays after a sweep."""
    seen: set[bytes] = set()

    def check() -> None:
        content, previous = (folder / "file").read_bytes(), (folder / "previous").read_bytes()
        seen.add(content)
        assert content in {OLD, NEW}
        assert previous in ({b"older", OLD} if "keep" in what else {b"older"})
        assert (content, previous) != (NEW, b"older") or "keep" not in what

    calls = kill_everywhere(what, folder, check, sample=None if is_full else sample)
    assert seen == {OLD, NEW}
    assert sample is not None or {"fsync", "rename", "write"} <= {call.name for call in calls}


@pytest.mark.parametrize("what, sample", [("create", None), ("linkless create", 12)])
def test_killed_at_any_call_of_a_create_the_file_is_absent_or_whole(
    folder: Path, what: str, sample: int | None, is_full: bool
) -> None:
    """Nothing else stays after a sweep."""
    seen: set[bytes | None] = set()

    def check() -> None:
        content = (folder / "file").read_bytes() if (folder / "file").exists() else None
        seen.add(content)
        assert content in {None, NEW}

    kill_everywhere(what, folder, check, sample=None if is_full else sample)
    assert seen == {None, NEW}


@pytest.mark.parametrize("what", ["rename", "renameless rename"])
def test_killed_at_any_call_of_a_rename_a_folder_has_one_of_the_names(folder: Path, what: str, is_full: bool) -> None:
    """With all it holds. Where the system cannot rename exclusively the other one may be there, but empty."""
    seen: set[str] = set()

    def check() -> None:
        whole = [name for name in ("built", "snapshot") if (folder / name / "inner" / "file").exists()]
        seen.update(whole)
        assert len(whole) == 1
        assert (folder / whole[0] / "inner" / "file").read_bytes() == OLD
        there = [name for name in ("built", "snapshot") if (folder / name).exists()]
        assert there == whole or (what != "rename" and os.listdir(folder / "snapshot") == [])

    kill_everywhere(what, folder, check, sample=None if is_full else 12)
    assert seen == {"built", "snapshot"}


def test_killed_at_any_call_of_a_delete_a_folder_is_whole_or_gone(folder: Path, is_full: bool) -> None:
    """What is left of it has a temporary name and goes with a sweep."""
    seen: set[bool] = set()

    def check() -> None:
        is_there = (folder / "built").exists()
        seen.add(is_there)
        assert (folder / "built" / "inner" / "file").exists() is is_there

    kill_everywhere("delete", folder, check, sample=None if is_full else 12)
    assert seen == {True, False}


def failed(what: str, folder: Path, fault: str) -> dict[str, object]:
    """What the error was of an operation with a fault."""
    prepare(folder, with_file=not what.endswith("create"))
    done = fail([*PYTHON, PROGRAM, what, str(folder)], fault, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", ["replace", "keep", "create"])
@pytest.mark.parametrize(
    "fault, text",
    [
        ("fsync:error=EIO:when=1", "the disk failed"),
        ("fsync:error=ENOSPC:when=1", "the disk is full"),
        ("fsync:error=EDQUOT:when=1", "share of the disk is used up"),
        ("flock:error=ENOLCK:when=1", "No locks available"),
    ],
)
def test_a_fault_before_the_name_changes_leaves_the_old(folder: Path, what: str, fault: str, text: str) -> None:
    """A failing flush of the file, above all: no temporary file stays, and the error says what it was."""
    found = failed(what, folder, fault)
    assert found["kind"] == "UnavailableError"
    assert text in str(found["text"])
    assert found["path"] == f"{folder}/file"
    there = {"built"} if what == "create" else {"built", "file", "previous"}
    assert set(os.listdir(folder)) == there
    assert what == "create" or (folder / "file").read_bytes() == OLD


def test_a_failing_flush_of_the_folder_is_an_error(folder: Path) -> None:
    """The new file is whole; that it stays so through a power cut is not promised, and the caller knows."""
    found = failed("replace", folder, "fsync:error=EIO:when=2")
    assert (found["kind"], found["errno"]) == ("UnavailableError", "EIO")
    assert (folder / "file").read_bytes() == NEW
    assert sorted(os.listdir(folder)) == ["built", "file", "previous"]


@pytest.mark.parametrize(
    "what, fault, errno, kind",
    [
        ("replace", "rename:error=EBUSY:when=1", "EBUSY", "UnavailableError"),
        ("replace", "rename:error=EROFS:when=1", "EROFS", "UnavailableError"),
        ("keep", "linkat:error=ENOSPC:when=1", "ENOSPC", "UnavailableError"),
        ("create", "linkat:error=EACCES:when=1", "EACCES", "DeniedError"),
    ],
)
def test_a_fault_while_the_name_changes_leaves_the_old(
    folder: Path, what: str, fault: str, errno: str, kind: str
) -> None:
    """Link and rename happen or do not happen."""
    found = failed(what, folder, fault)
    assert (found["errno"], found["kind"]) == (errno, kind)
    assert not any(name.startswith(".tmp-") for name in os.listdir(folder))
    assert what == "create" or (folder / "file").read_bytes() == OLD


def test_too_many_links_are_a_copy(folder: Path) -> None:
    """EMLINK costs the previous generation two flushes, not its life."""
    prepare(folder, with_file=True)
    done = fail([*PYTHON, PROGRAM, "keep", str(folder)], "linkat:error=EMLINK:when=1", env=ENVIRONMENT)
    assert done.stdout == ""
    assert ((folder / "file").read_bytes(), (folder / "previous").read_bytes()) == (NEW, OLD)


@pytest.mark.parametrize(
    "fault, errno, kind",
    [("renameat2:error=EXDEV", "EXDEV", "InvalidError"), ("renameat2:error=EMLINK", "EMLINK", "InvalidError")],
)
def test_a_rename_that_fails_leaves_the_source(folder: Path, fault: str, errno: str, kind: str) -> None:
    """Under its name, with all it holds."""
    found = failed("rename", folder, f"{fault}:when=1")
    assert (found["errno"], found["kind"]) == (errno, kind)
    assert sorted(os.listdir(folder)) == ["built", "file", "previous"]
    assert (folder / "built" / "inner" / "file").read_bytes() == OLD


def test_a_full_disk_keeps_the_old_file(folder: Path) -> None:
    """The error says how little is free; once there is room the same call succeeds."""
    disk = Disk()
    with tmpfs(folder, size_bytes=65_536):
        assert disk.free_bytes(folder / "not" / "yet") == 65_536
        assert disk.filesystem(folder / "not" / "yet") == "tmpfs"
        disk.replace(folder / "file", OLD)
        disk.create(folder / "ballast", b"0" * 40_000)
        for write in (disk.replace, disk.create):
            with pytest.raises(UnavailableError, match="the disk is full") as caught:
                write(folder / ("file" if write == disk.replace else "other"), NEW)
            assert caught.value.facts["free_bytes"] == 4_096
        assert disk.read(folder / "file") == OLD
        assert sorted(os.listdir(folder)) == ["ballast", "file"]
        disk.delete(folder / "ballast")
        disk.replace(folder / "file", NEW)
        assert disk.read(folder / "file") == NEW


def test_a_read_only_disk_is_read_and_shared(folder: Path) -> None:
    """Writing is unavailable, whoever asks; a lock that is there can be held by readers."""
    disk = Disk()
    with tmpfs(folder, size_bytes=65_536):
        disk.create(folder / "file", OLD)
        disk.lock(folder / "lock").release()
        with read_only(folder):
            assert disk.read(folder / "file") == OLD
            with disk.lock(folder / "lock", shared=True):
                pass
            with pytest.raises(MissingError):
                disk.lock(folder / "absent", shared=True)
            for write in (
                lambda: disk.replace(folder / "file", NEW),
                lambda: disk.create(folder / "new", NEW),
                lambda: disk.rename(folder / "file", folder / "new"),
                lambda: disk.delete(folder / "file"),
                lambda: disk.quarantine(folder / "file"),
                lambda: disk.put_folder(folder / "new"),
                lambda: disk.lock(folder / "lock"),
            ):
                with pytest.raises(UnavailableError, match="the file system is read-only"):
                    write()
        assert sorted(os.listdir(folder)) == ["file", "lock"]


def test_the_type_of_a_file_system_is_seen_through_a_bind_mount(folder: Path, tmp_path: Path) -> None:
    """And by the kernel's own escapes: a blank and a backslash in the name."""
    disk = Disk()
    with tmpfs(folder, size_bytes=65_536), bound(tmp_path / "a b\\c", folder):
        assert disk.filesystem(tmp_path / "a b\\c" / "file") == "tmpfs"
        assert disk.filesystem(tmp_path) != "tmpfs"


def test_nothing_is_renamed_or_kept_across_file_systems(folder: Path, tmp_path: Path) -> None:
    """EXDEV says so; a copy would not be one step."""
    disk = Disk()
    with tmpfs(folder, size_bytes=65_536):
        disk.create(folder / "file", OLD)
        with pytest.raises(Exception, match="both places must be on one file system") as caught:
            disk.rename(folder / "file", tmp_path / "file")
        assert type(caught.value).__name__ == "InvalidError"
        assert disk.read(folder / "file") == OLD


def test_a_mount_point_is_not_replaced_or_deleted(folder: Path, tmp_path: Path) -> None:
    """As a file that a container has bound: it says that something is mounted on it."""
    disk = Disk()
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "place").write_bytes(b"")
    with tmpfs(folder, size_bytes=65_536):
        with pytest.raises(UnavailableError, match="something is mounted on it"):
            disk.delete(folder)
        with bound(tmp_path / "place", tmp_path / "file"):
            with pytest.raises(UnavailableError, match="something is mounted on it"):
                disk.replace(tmp_path / "place", NEW)
            assert disk.read(tmp_path / "place") == OLD


AS_NOBODY = """
import ctypes, json, os, sys  # the first while it may still be read
from holdfast.disk import Disk
from holdfast.errors import DeniedError

os.chdir(sys.argv[1])
if not os.geteuid():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
disk, kinds = Disk(), []
for call in (
    lambda: disk.read("file"),
    lambda: disk.create("new", b""),
    lambda: disk.replace("file", b"new"),
    lambda: disk.rename("file", "new"),
    lambda: disk.delete("file"),
    lambda: disk.put_folder("new"),
    lambda: disk.lock("file"),
    lambda: disk.lock("file", shared=True),
    lambda: disk.sweep("closed"),
):
    try:
        call()
    except DeniedError as exc:
        kinds.append(exc.facts["errno"])
print(json.dumps(kinds))
"""


def test_a_user_without_the_right_is_denied(folder: Path) -> None:
    """Whatever is asked; nothing is changed."""
    prepare(folder, with_file=True)
    (folder / "closed").mkdir(mode=0)
    (folder / "file").chmod(0)
    folder.chmod(0o555)
    done = subprocess.run(
        [*PYTHON, AS_NOBODY, str(folder)], env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    folder.chmod(0o700)
    (folder / "file").chmod(0o600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["EACCES"] * 9
    assert (folder / "file").read_bytes() == OLD
    assert sorted(os.listdir(folder)) == ["built", "closed", "file", "previous"]
