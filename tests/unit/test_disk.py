"""The door to the file system: what is durable, who holds what, and what every refusal says."""

import errno
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.disk import (
    BusyError,
    Disk,
    ExistsError,
    Lock,
    MissingError,
    Mount,
    find_mount,
    parse_mounts,
    temporary_pattern,
    translate,
)
from holdfast.errors import ConflictError, DeniedError, InvalidError, NotFoundError, UnavailableError

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")

DEAD = ".tmp-0123456789abcdef"


@pytest.fixture
def disk() -> Disk:
    """The real one."""
    return Disk()


def names(folder: Path) -> list[str]:
    """All names in a folder, sorted."""
    return sorted(os.listdir(folder))


class Counting(Disk):
    """Remembers how often it flushed."""

    def __init__(self) -> None:
        self.flushes = 0

    def _flush(self, fd: int) -> None:
        self.flushes += 1
        super()._flush(fd)


class Failing(Counting):
    """Fails its ``number``-th flush."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def _flush(self, fd: int) -> None:
        super()._flush(fd)
        if self.flushes == self.number:
            raise OSError(errno.EIO, "Input/output error")


class Linkless(Disk):
    """A file system without hard links, as FAT is."""

    def _link(self, source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")


class Renameless(Disk):
    """A file system that cannot rename without replacing, as NFS cannot."""

    def _rename_new(self, source: Path, target: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


class Timed(Disk):
    """Has a clock of its own, in which time passes only by waiting."""

    def __init__(self, on_wait: Callable[[], object] = lambda: None) -> None:
        self.now = 1_738_367_999.9  # 2025-01-31T23:59:59.9Z
        self.pauses: list[float] = []
        self.on_wait = on_wait

    def _now(self) -> float:
        return self.now

    def _monotonic(self) -> float:
        return self.now

    def _wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self.on_wait()


# Reading


@given(data=st.binary(max_size=1000))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Any bytes, by either way of writing them."""
    disk, folder = Disk(), tmp_path_factory.mktemp("any")
    disk.create(folder / "created", data)
    disk.replace(folder / "replaced", data)
    assert (disk.read(folder / "created"), disk.read(folder / "replaced")) == (data, data)


def test_a_large_file_is_read_whole(disk: Disk, tmp_path: Path) -> None:
    """More than one read takes."""
    disk.create(tmp_path / "large", b"0123456789abcdef" * 65_536)
    assert disk.read(str(tmp_path / "large")) == b"0123456789abcdef" * 65_536


def test_reading_what_is_absent_is_both_kinds_of_not_found(disk: Disk, tmp_path: Path) -> None:
    """Ours, and Python's own; the message names the path."""
    with pytest.raises(MissingError) as caught:
        disk.read(tmp_path / "absent")
    assert isinstance(caught.value, NotFoundError)
    assert isinstance(caught.value, FileNotFoundError)
    assert str(caught.value) == f"could not read '{tmp_path}/absent': there is no such file or folder"
    assert caught.value.facts == {"path": f"{tmp_path}/absent", "errno": "ENOENT"}
    assert isinstance(caught.value.__cause__, OSError)


def test_links_folders_and_pipes_are_not_read(disk: Disk, tmp_path: Path) -> None:
    """A link that a plugin planted shows nothing, and a pipe keeps nobody waiting."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(InvalidError):
            disk.read(tmp_path / name)


def test_a_path_that_no_system_has_is_invalid(disk: Disk, tmp_path: Path) -> None:
    """NUL ends names in C; nothing may be done to the shorter name."""
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "source").write_bytes(b"")
    for call in (
        lambda: disk.read(tmp_path / "a\0b"),
        lambda: disk.create(tmp_path / "a\0b", b""),
        lambda: disk.replace(tmp_path / "a\0b", b""),
        lambda: disk.rename(tmp_path / "source", tmp_path / "new\0b"),
        lambda: disk.delete(tmp_path / "a\0b"),
        lambda: disk.lock(tmp_path / "a\0b"),
        lambda: disk.free_bytes(tmp_path / "a\0b"),
        lambda: disk.filesystem(tmp_path / "a\0b"),
    ):
        with pytest.raises(InvalidError, match="null"):
            call()
    assert names(tmp_path) == ["a", "source"]


# Creating


def test_creating_never_replaces(tmp_path: Path) -> None:
    """A taken name is a conflict, and Python's own error for it, before anything is written; what is there stays."""
    (tmp_path / "file").write_bytes(b"first")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    disk = Counting()
    for name in ("file", "folder", "link"):
        with pytest.raises(ExistsError) as caught:
            disk.create(tmp_path / name, b"second")
        assert isinstance(caught.value, ConflictError)
        assert isinstance(caught.value, FileExistsError)
    assert disk.flushes == 0
    assert (tmp_path / "file").read_bytes() == b"first"
    assert names(tmp_path) == ["file", "folder", "link"]
    assert str(caught.value) == (
        f"could not create '{tmp_path}/link': the name is taken; use another, or delete what has it"
    )


@pytest.mark.parametrize("kind", [Disk, Linkless])
def test_of_many_that_create_one_name_one_wins(kind: type[Disk], tmp_path: Path) -> None:
    """All at once: one succeeds, its content is there whole, and nothing else is left."""
    start, outcomes = threading.Barrier(8), []

    def create(number: int) -> None:
        start.wait()
        try:
            kind().create(tmp_path / "file", b"%d" % number * 1000)
        except ExistsError:
            return
        outcomes.append(b"%d" % number * 1000)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [(tmp_path / "file").read_bytes()]
    assert names(tmp_path) == ["file"]


def test_a_name_that_is_taken_while_the_file_is_written_stays(tmp_path: Path) -> None:
    """The look before is only for the message: the link or rename itself refuses."""

    class Raced(Disk):
        def _flush(self, fd: int) -> None:
            with suppress(FileExistsError), open(tmp_path / "file", "xb") as other:
                other.write(b"first")

    class RacedLinkless(Raced, Linkless):
        pass

    for disk in (Raced(), RacedLinkless()):
        with pytest.raises(ExistsError):
            disk.create(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_a_created_file_has_exactly_its_mode(disk: Disk, tmp_path: Path, mode: int) -> None:
    """Whatever the umask of the process is."""
    before = os.umask(0o077)
    try:
        disk.create(tmp_path / "file", b"", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == mode


def test_creating_in_no_folder_says_so(disk: Disk, tmp_path: Path) -> None:
    """And makes none; a file in place of the folder is another error."""
    with pytest.raises(MissingError):
        disk.create(tmp_path / "absent" / "file", b"")
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(InvalidError, match="no folder"):
        disk.create(tmp_path / "plain" / "file", b"")
    assert names(tmp_path) == ["plain"]


# Replacing


def test_replacing_makes_or_replaces(disk: Disk, tmp_path: Path) -> None:
    """A new file is for its user alone."""
    disk.replace(tmp_path / "file", b"old and longer")
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o600
    disk.replace(str(tmp_path / "file"), bytearray(b"new"))
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_durable_write_is_two_flushes(tmp_path: Path) -> None:
    """File and folder; not more with a previous generation. A rename between two folders flushes both."""
    disk = Counting()
    disk.create(tmp_path / "file", b"1")
    assert disk.flushes == 2
    disk.replace(tmp_path / "file", b"2", keep_previous=tmp_path / "previous")
    assert disk.flushes == 4
    disk.rename(tmp_path / "file", tmp_path / "other")
    assert disk.flushes == 5
    (tmp_path / "folder").mkdir()
    disk.rename(tmp_path / "other", tmp_path / "folder" / "file")
    assert disk.flushes == 7
    disk.sync_file(tmp_path / "folder" / "file")
    disk.sync_folder(tmp_path)
    assert disk.flushes == 9


def test_whoever_has_the_old_file_open_keeps_it(disk: Disk, tmp_path: Path) -> None:
    """A reader sees one generation to its end."""
    (tmp_path / "file").write_bytes(b"old")
    with open(tmp_path / "file", "rb") as reader:
        disk.replace(tmp_path / "file", b"new")
        assert reader.read() == b"old"


def test_permissions_stay_unless_they_are_given(disk: Disk, tmp_path: Path) -> None:
    """What a person opened to a group stays open; special bits are dropped; ``mode`` is exact."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(0o4664)
    disk.replace(tmp_path / "file", b"1")
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o664
    disk.replace(tmp_path / "file", b"2", mode=0o600)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o600


@as_root
def test_root_leaves_a_users_file_to_the_user(disk: Disk, tmp_path: Path) -> None:
    """Unless the mode is given, as for a secret: then the file is of whoever wrote it."""
    (tmp_path / "file").write_bytes(b"")
    os.chown(tmp_path / "file", 12345, 23456)
    disk.replace(tmp_path / "file", b"1")
    found = (tmp_path / "file").stat()
    assert (found.st_uid, found.st_gid) == (12345, 23456)
    disk.replace(tmp_path / "file", b"2", mode=0o640)
    found = (tmp_path / "file").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (os.geteuid(), os.getegid(), 0o640)


@as_root
def test_permissions_for_a_group_are_not_given_to_another(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not give the file to its group keeps it to itself."""

    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (tmp_path / "file").write_bytes(b"")
    os.chown(tmp_path / "file", 12345, 23456)
    (tmp_path / "file").chmod(0o664)
    monkeypatch.setattr(os, "fchown", refuse)
    disk.replace(tmp_path / "file", b"1")
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("kind", [Disk, Linkless])
def test_the_previous_generation_is_kept(kind: type[Disk], tmp_path: Path) -> None:
    """One, under the name given; none before there was a file; a copy where there are no links."""
    disk, file, previous = kind(), tmp_path / "file", tmp_path / ".file.prev"
    disk.replace(file, b"1", keep_previous=previous)
    assert names(tmp_path) == ["file"]
    disk.replace(file, b"2", keep_previous=previous)
    assert (file.read_bytes(), previous.read_bytes()) == (b"2", b"1")
    disk.replace(file, b"3", keep_previous=str(previous))
    assert (file.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert names(tmp_path) == [".file.prev", "file"]


def test_a_previous_generation_from_a_killed_replace_is_no_obstacle(disk: Disk, tmp_path: Path) -> None:
    """After a kill both names may be one file, where rename does nothing; no third name stays."""
    (tmp_path / "file").write_bytes(b"1")
    os.link(tmp_path / "file", tmp_path / "previous")
    disk.replace(tmp_path / "file", b"2", keep_previous=tmp_path / "previous")
    assert (tmp_path / "file").read_bytes() == b"2"
    assert (tmp_path / "previous").read_bytes() == b"1"
    assert names(tmp_path) == ["file", "previous"]


def test_a_sweep_in_the_middle_does_not_cost_the_previous_generation(tmp_path: Path) -> None:
    """Its second name is nobody's lock: a sweep takes it, and it is made again."""

    class Swept(Disk):
        def __init__(self) -> None:
            self.swept: list[list[Path]] = []

        def _rename(self, source: Path, target: Path) -> None:
            if not self.swept:
                self.swept.append(Disk().sweep(tmp_path))
            super()._rename(source, target)

    (tmp_path / "file").write_bytes(b"1")
    disk = Swept()
    disk.replace(tmp_path / "file", b"2", keep_previous=tmp_path / "previous")
    assert len(disk.swept[0]) == 1
    assert (tmp_path / "file").read_bytes() == b"2"
    assert (tmp_path / "previous").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["other/previous", "file"])
def test_the_previous_generation_lies_beside_the_file(disk: Disk, tmp_path: Path, name: str) -> None:
    """In another folder it would not be durable with it; under the same name it would be nothing."""
    (tmp_path / "other").mkdir()
    with pytest.raises(InvalidError, match="another name in its folder"):
        disk.replace(tmp_path / "file", b"1", keep_previous=tmp_path / name)
    assert names(tmp_path) == ["other"]


def test_only_a_plain_file_is_replaced(disk: Disk, tmp_path: Path) -> None:
    """A link in the way could have another file overwritten: refused, not followed, not replaced."""
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(InvalidError):
            disk.replace(tmp_path / name, b"hostile")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["folder", "link", "pipe", "victim"]


def test_a_link_planted_in_the_last_moment_is_not_followed(tmp_path: Path) -> None:
    """It is replaced itself."""

    class Raced(Disk):
        def _rename(self, source: Path, target: Path) -> None:
            target.symlink_to("victim")
            super()._rename(source, target)

    (tmp_path / "victim").write_bytes(b"precious")
    Raced().replace(tmp_path / "file", b"ours")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"ours"


def test_short_writes_are_carried_on(tmp_path: Path) -> None:
    """The system may take less than it is given."""

    class Short(Disk):
        def _write(self, fd: int, data: memoryview) -> int:
            return super()._write(fd, data[:3])

    Short().replace(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_failed_flush_of_the_file_is_not_tried_again(tmp_path: Path) -> None:
    """The old file stays, the temporary one goes, and there was one flush."""
    (tmp_path / "file").write_bytes(b"old")
    for write in (Disk.replace, Disk.create):
        disk = Failing(1)
        with pytest.raises(UnavailableError) as caught:
            write(disk, tmp_path / ("file" if write is Disk.replace else "new"), b"new")
        assert disk.flushes == 1
        assert caught.value.facts["errno"] == "EIO"
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_failed_flush_of_the_folder_is_reported(tmp_path: Path) -> None:
    """The new file is in place by then, and whole."""
    (tmp_path / "file").write_bytes(b"old")
    disk = Failing(2)
    with pytest.raises(UnavailableError):
        disk.replace(tmp_path / "file", b"new")
    assert disk.flushes == 2
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_file_system_without_flushes_for_folders_is_enough(tmp_path: Path) -> None:
    """Some of FUSE say EINVAL: there is nothing more to be done."""

    class Fuse(Counting):
        def _flush(self, fd: int) -> None:
            super()._flush(fd)
            if self.flushes == 2:
                raise OSError(errno.EINVAL, "Invalid argument")

    Fuse().replace(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    """Whatever ends the call: the old file, and no temporary one."""

    class Interrupted(Disk):
        def _flush(self, fd: int) -> None:
            raise KeyboardInterrupt

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        Interrupted().replace(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


# The power goes


class Recording(Disk):
    """Writes down what it did to files and names, in order, as a model of a disk can replay it."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.paths: dict[int, str] = {}

    def _open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        fd = super()._open(path, flags, mode)
        self.paths[fd] = path.name
        if flags & os.O_EXCL:
            self.log.append(("make", path.name))
        return fd

    def _write(self, fd: int, data: memoryview) -> int:
        self.log.append(("write", self.paths[fd], bytes(data).decode()))
        return super()._write(fd, data)

    def _flush(self, fd: int) -> None:
        super()._flush(fd)
        self.log.append(("flush", self.paths[fd]))

    def _link(self, source: Path, target: Path) -> None:
        super()._link(source, target)
        self.log.append(("link", source.name, target.name))

    def _rename(self, source: Path, target: Path) -> None:
        super()._rename(source, target)
        self.log.append(("rename", source.name, target.name))

    def _rename_new(self, source: Path, target: Path) -> None:
        super()._rename_new(source, target)
        self.log.append(("rename", source.name, target.name))

    def _unlink(self, path: Path) -> None:
        super()._unlink(path)
        self.log.append(("unlink", path.name))


TORN = "torn"


def after_power_cuts(log: list[tuple[str, ...]], folder: str, before: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield all that may be on the disk if the power goes somewhere in ``log``: name to content.

    A file that was written and not flushed is `TORN`. Of the changes to names since the last flush of the folder any
    part may have arrived; a rename arrives whole.
    """
    for cut in range(len(log) + 1):
        files = {f"before {name}": content for name, content in before.items()}
        durable = {name: f"before {name}" for name in before}
        names_now = dict(durable)
        pending: list[dict[str, str | None]] = []
        for number, (what, name, *rest) in enumerate(log[:cut]):
            if what == "make":
                files[f"file {number}"] = ""
                change: dict[str, str | None] = {name: f"file {number}"}
            elif what == "write":
                files[names_now[name]] = TORN + files[names_now[name]].removeprefix(TORN) + rest[0]
                continue
            elif what == "flush" and name != folder:
                files[names_now[name]] = files[names_now[name]].removeprefix(TORN)
                continue
            elif what == "flush":
                durable, pending = dict(names_now), []
                continue
            elif what == "link":
                change = {rest[0]: names_now[name]}
            elif what == "rename":
                change = {rest[0]: names_now[name], name: None}
            else:
                change = {name: None}
            pending.append(change)
            names_now = {key: file for key, file in {**names_now, **change}.items() if file}
        for arrived in itertools.product([False, True], repeat=len(pending)):
            there: dict[str, str | None] = dict(durable)
            for change, is_there in zip(pending, arrived, strict=True):
                there.update(change if is_there else {})
            yield {key: files[file] for key, file in there.items() if file}


@pytest.mark.parametrize("keep_previous", [None, "previous"])
def test_after_a_power_cut_the_file_is_old_or_new(tmp_path: Path, keep_previous: str | None) -> None:
    """At any moment, with any part of what was not flushed; new once the call returned. So is the one before it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("old")
    (folder / "previous").write_text("older")
    disk = Recording()
    disk.replace(folder / "file", b"new", keep_previous=keep_previous and folder / keep_previous)
    before = {"file": "old", "previous": "older"}
    states = list(after_power_cuts(disk.log, "folder", before))
    assert {state["file"] for state in states} == {"old", "new"}
    assert {state["previous"] for state in states} == ({"older", "old"} if keep_previous else {"older"})
    done = {"file": "new", "previous": "old" if keep_previous else "older"}
    assert states[-1] == done
    assert disk.log[-1] == ("flush", "folder")


@pytest.mark.parametrize("base", [Disk, Linkless])
def test_after_a_power_cut_a_created_file_is_absent_or_whole(tmp_path: Path, base: type[Disk]) -> None:
    """And there once the call returned."""

    class Recorded(Recording, base):  # type: ignore[misc, valid-type]
        pass

    folder = tmp_path / "folder"
    folder.mkdir()
    disk = Recorded()
    disk.create(folder / "file", b"new")
    states = list(after_power_cuts(disk.log, "folder", {}))
    assert {state.get("file") for state in states} == {None, "new"}
    assert states[-1] == {"file": "new"}
    assert disk.log[-1] == ("flush", "folder")


def test_after_a_power_cut_a_renamed_file_has_one_of_its_names(tmp_path: Path) -> None:
    """The new one once the call returned."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old name").write_text("content")
    disk = Recording()
    disk.rename(folder / "old name", folder / "new name")
    states = list(after_power_cuts(disk.log, "folder", {"old name": "content"}))
    assert states == [
        {"old name": "content"},
        {"old name": "content"},
        {"new name": "content"},
        {"new name": "content"},
    ]


def test_between_two_folders_the_new_name_is_durable_before_the_old_one_goes(tmp_path: Path) -> None:
    """The folders are flushed in that order: at no time neither name is sure."""
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from" / "file").write_text("content")
    disk = Recording()
    disk.rename(tmp_path / "from" / "file", tmp_path / "to" / "file")
    assert disk.log == [("rename", "file", "file"), ("flush", "to"), ("flush", "from")]


def test_the_power_cut_model_finds_a_missing_flush() -> None:
    """Of the file: it may be torn. Of the folder: the new one may not be there."""
    good = [("make", "t"), ("write", "t", "new"), ("flush", "t"), ("rename", "t", "file"), ("flush", "folder")]
    without_file = [entry for entry in good if entry != ("flush", "t")]
    before = {"file": "old"}
    assert {state["file"] for state in after_power_cuts(good, "folder", before)} == {"old", "new"}
    assert {state["file"] for state in after_power_cuts(without_file, "folder", before)} == {"old", "tornnew"}
    assert list(after_power_cuts(good, "folder", before))[-1] == {"file": "new"}
    assert {"file": "old"} in list(after_power_cuts(good[:-1], "folder", before))[-4:]


# Renaming


@pytest.mark.parametrize("kind", [Disk, Renameless])
def test_renaming_moves_files_and_folders(kind: type[Disk], tmp_path: Path) -> None:
    """With all they hold, within a folder and to another."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"1")
    kind().rename(tmp_path / "folder", tmp_path / "new")
    kind().rename(str(tmp_path / "new" / "file"), str(tmp_path / "file"))
    assert names(tmp_path) == ["file", "new"]
    assert names(tmp_path / "new") == []
    assert (tmp_path / "file").read_bytes() == b"1"


@pytest.mark.parametrize("kind", [Disk, Renameless])
def test_renaming_never_replaces(kind: type[Disk], tmp_path: Path) -> None:
    """Not even an empty folder by a folder, which rename(2) would do."""
    for name in ("file", "taken"):
        (tmp_path / name).write_bytes(name.encode())
    for name in ("folder", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for source, target in itertools.product(["file", "folder"], ["taken", "empty", "link"]):
        with pytest.raises(ExistsError):
            kind().rename(tmp_path / source, tmp_path / target)
    assert names(tmp_path) == ["empty", "file", "folder", "link", "taken"]
    assert (tmp_path / "taken").read_bytes() == b"taken"


@pytest.mark.parametrize("kind", [Disk, Renameless])
def test_a_folder_cannot_be_renamed_into_itself(kind: type[Disk], tmp_path: Path) -> None:
    """And nothing is left in it of the attempt."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidError):
        kind().rename(tmp_path / "folder", tmp_path / "folder" / "inside")
    assert names(tmp_path / "folder") == []


def test_a_python_without_ctypes_renames_as_well(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And replaces as little."""
    monkeypatch.setitem(sys.modules, "ctypes", None)
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    disk.rename(tmp_path / "file", tmp_path / "new")
    for name in ("new", "folder"):
        with pytest.raises(ExistsError):
            disk.rename(tmp_path / ("folder" if name == "new" else "new"), tmp_path / name)
    assert names(tmp_path) == ["folder", "new"]


def test_renaming_names_what_is_missing(disk: Disk, tmp_path: Path) -> None:
    """The source, or the folder for the target."""
    with pytest.raises(MissingError) as caught:
        disk.rename(tmp_path / "absent", tmp_path / "new")
    assert str(caught.value) == f"could not rename '{tmp_path}/absent': there is no such file or folder"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MissingError) as caught:
        disk.rename(tmp_path / "file", tmp_path / "absent" / "file")
    assert str(caught.value) == f"could not rename to '{tmp_path}/absent/file': there is no such file or folder"


def test_a_file_system_that_can_neither_link_nor_rename_exclusively_is_named(tmp_path: Path) -> None:
    """Nothing is replaced by mistake there; folders still can be renamed."""

    class Poor(Linkless, Renameless):
        pass

    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for call in (
        lambda: Poor().rename(tmp_path / "file", tmp_path / "new"),
        lambda: Poor().create(tmp_path / "new", b""),
    ):
        with pytest.raises(UnavailableError, match="this file system cannot do that"):
            call()
    Poor().rename(tmp_path / "folder", tmp_path / "renamed")
    assert names(tmp_path) == ["file", "renamed"]


# Deleting, folders


def test_deleting_is_silent_about_what_is_gone(disk: Disk, tmp_path: Path) -> None:
    """A file, a folder with all it holds, a link but not what it points to; then nothing, then nothing."""
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "file").write_bytes(b"")
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "file").write_bytes(b"")
    for name in ("folder", "link", "file", "folder", "absent", "absent/file"):
        disk.delete(tmp_path / name)
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["file"]


def test_a_folder_is_never_there_in_part_while_it_is_deleted(tmp_path: Path) -> None:
    """When the first of its files goes, it has no name any more that anybody uses."""

    class Watched(Disk):
        def _remove_tree(self, path: Path) -> None:
            assert names(tmp_path) == [path.name]
            assert temporary_pattern.fullmatch(path.name)
            assert names(path) == ["file"]
            super()._remove_tree(path)

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"")
    Watched().delete(tmp_path / "folder")
    assert names(tmp_path) == []


def test_folders_are_made_with_all_above_them(tmp_path: Path) -> None:
    """Each is flushed in the one above it; those that are there cost nothing and stay."""
    disk = Counting()
    disk.put_folder(tmp_path / "a" / "b" / "c")
    assert disk.flushes == 3
    assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o700
    (tmp_path / "a").chmod(0o755)
    disk.put_folder(tmp_path / "a" / "b" / "c")
    disk.put_folder("")
    assert disk.flushes == 3
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755


def test_a_folder_is_not_made_where_something_else_is(disk: Disk, tmp_path: Path) -> None:
    """Above it, or in its place."""
    (tmp_path / "file").write_bytes(b"")
    for name in ("file", "file/folder", "file/folder/folder"):
        with pytest.raises(InvalidError, match="no folder"):
            disk.put_folder(tmp_path / name)


@pytest.mark.parametrize("kind", [Disk, Renameless])
def test_a_temporary_folder_becomes_what_it_is_renamed_to(kind: type[Disk], tmp_path: Path) -> None:
    """No sweep takes it in the meantime."""
    disk = kind()
    with disk.temporary_folder(tmp_path) as folder:
        (folder / "file").write_bytes(b"1")
        assert folder.stat().st_mode & 0o7777 == 0o700
        assert disk.sweep(tmp_path) == []
        disk.rename(folder, tmp_path / "snapshot")
    assert names(tmp_path) == ["snapshot"]
    assert names(tmp_path / "snapshot") == ["file"]


def test_a_temporary_folder_goes_if_it_was_not_renamed(disk: Disk, tmp_path: Path) -> None:
    """However the block ends; all the locks and descriptors go with it."""
    before = names(Path("/dev/fd")) if os.path.isdir("/dev/fd") else []
    with suppress(ZeroDivisionError), disk.temporary_folder(tmp_path) as folder:
        (folder / "file").write_bytes(b"1")
        raise ZeroDivisionError
    assert names(tmp_path) == []
    assert (names(Path("/dev/fd")) if os.path.isdir("/dev/fd") else []) == before


# Sweeping


def test_a_sweep_takes_what_the_dead_left(disk: Disk, tmp_path: Path) -> None:
    """Files and folders by the pattern of their names, and nothing else."""
    (tmp_path / DEAD).write_bytes(b"half")
    (tmp_path / DEAD.replace("0", "1")).mkdir()
    (tmp_path / DEAD.replace("0", "1") / "file").write_bytes(b"half")
    (tmp_path / DEAD.replace("0", "2")).write_bytes(b"half")
    (tmp_path / DEAD.replace("0", "2")).chmod(0o400)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    (tmp_path / DEAD.replace("0", "3")).symlink_to("kept")
    os.mkfifo(tmp_path / DEAD.replace("0", "4"))
    for name in (".tmp-mine", ".tmp-0123456789ABCDEF", ".tmp-0123456789abcdef0", "tmp-0123456789abcdef"):
        (tmp_path / name).write_bytes(b"somebody else's")
    assert disk.sweep(tmp_path) == [tmp_path / DEAD.replace("0", digit) for digit in "012"]
    assert names(tmp_path) == [
        ".tmp-0123456789ABCDEF",
        ".tmp-0123456789abcdef0",
        ".tmp-3123456789abcdef",
        ".tmp-4123456789abcdef",
        ".tmp-mine",
        "kept",
        "tmp-0123456789abcdef",
    ]
    assert names(tmp_path / "kept") == ["file"]
    assert disk.sweep(tmp_path) == []


def test_a_sweep_leaves_what_the_living_write(tmp_path: Path) -> None:
    """By any other object in any process, until the file has its name."""

    class Swept(Disk):
        def __init__(self) -> None:
            self.swept: list[Path] = []

        def _flush(self, fd: int) -> None:
            self.swept += Disk().sweep(tmp_path)
            super()._flush(fd)

    disk = Swept()
    disk.create(tmp_path / "file", b"1")
    disk.replace(tmp_path / "file", b"2")
    assert disk.swept == []
    assert (tmp_path / "file").read_bytes() == b"2"


def test_a_sweep_before_the_lock_only_costs_a_name(tmp_path: Path) -> None:
    """Between making the file and locking it a sweep may take it: then another is made."""

    class Swept(Disk):
        def __init__(self) -> None:
            self.swept: list[Path] = []

        def _try_lock(self, fd: int, *, shared: bool) -> bool:
            if len(self.swept) < 2:
                self.swept += Disk().sweep(tmp_path)
            return super()._try_lock(fd, shared=shared)

    disk = Swept()
    disk.create(tmp_path / "file", b"1")
    assert len(disk.swept) == 2
    assert names(tmp_path) == ["file"]
    disk = Swept()
    with disk.temporary_folder(tmp_path) as folder:
        assert len(disk.swept) == 2
        assert names(tmp_path) == [folder.name, "file"]


def test_where_there_are_no_locks_files_are_written_and_nothing_is_swept(tmp_path: Path) -> None:
    """Nobody can be shown to be dead there."""

    class Lockless(Disk):
        def _try_lock(self, fd: int, *, shared: bool) -> bool:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    disk = Lockless()
    disk.replace(tmp_path / "file", b"1")
    (tmp_path / DEAD).write_bytes(b"")
    assert disk.sweep(tmp_path) == []
    assert names(tmp_path) == [DEAD, "file"]
    with pytest.raises(UnavailableError, match="this file system cannot do that"):
        disk.lock(tmp_path / "lock")


def test_if_the_locks_fail_no_temporary_file_stays(tmp_path: Path) -> None:
    """NFS without its lock service, for one."""

    class Broken(Disk):
        def _try_lock(self, fd: int, *, shared: bool) -> bool:
            raise OSError(errno.ENOLCK, "No locks available")

    with pytest.raises(UnavailableError, match=r"No locks available \(ENOLCK\)"):
        Broken().replace(tmp_path / "file", b"1")
    assert names(tmp_path) == []


# Setting aside


def test_what_is_set_aside_gets_the_time_to_its_name(tmp_path: Path) -> None:
    """UTC; a second one in the same second gets a number; folders as well; nothing is overwritten."""
    disk = Timed()
    aside: list[Path] = []
    for content in (b"1", b"2", b"3"):
        (tmp_path / "ns.json").write_bytes(content)
        aside.append(disk.quarantine(tmp_path / "ns.json"))
    (tmp_path / "snapshot").mkdir()
    aside.append(disk.quarantine(tmp_path / "snapshot", label="bad"))
    assert aside == [
        tmp_path / "ns.json.corrupt-20250131T235959Z",
        tmp_path / "ns.json.corrupt-20250131T235959Z-2",
        tmp_path / "ns.json.corrupt-20250131T235959Z-3",
        tmp_path / "snapshot.bad-20250131T235959Z",
    ]
    assert [path.read_bytes() for path in aside[:3]] == [b"1", b"2", b"3"]
    assert names(tmp_path) == sorted(path.name for path in aside)


def test_a_link_is_set_aside_itself(tmp_path: Path) -> None:
    """What it points to stays."""
    (tmp_path / "target").write_bytes(b"1")
    (tmp_path / "link").symlink_to("target")
    Timed().quarantine(tmp_path / "link")
    assert names(tmp_path) == ["link.corrupt-20250131T235959Z", "target"]


def test_what_is_gone_cannot_be_set_aside(disk: Disk, tmp_path: Path) -> None:
    """Of two at once, the second learns it so."""
    with pytest.raises(MissingError):
        disk.quarantine(tmp_path / "absent")
    with pytest.raises(InvalidError):
        disk.quarantine(tmp_path / "absent\0")


# Locks


def test_an_exclusive_lock_excludes_within_one_process(disk: Disk, tmp_path: Path) -> None:
    """Exclusive and shared ones of the same object or another; released, it is free. Twice is once."""
    with disk.lock(tmp_path / "lock") as lock:
        assert lock.is_held
        assert not lock.is_shared
        for shared in (False, True):
            with pytest.raises(BusyError) as caught:
                Disk().lock(tmp_path / "lock", shared=shared)
    assert str(caught.value) == (
        f"could not lock '{tmp_path}/lock': another holds it, and kept it for 0 s; try again, or wait longer"
    )
    assert isinstance(caught.value, UnavailableError)
    lock.release()
    assert not lock.is_held
    with disk.lock(tmp_path / "lock") as again:
        lock.release()
        assert again.is_held
    assert repr(lock) == f"<Lock on '{tmp_path}/lock', released>"


def test_a_shared_lock_is_held_by_many(disk: Disk, tmp_path: Path) -> None:
    """And by no one exclusively at that time."""
    with disk.lock(tmp_path / "lock", shared=True) as one, disk.lock(tmp_path / "lock", shared=True) as two:
        assert one.is_shared
        assert two.is_shared
        with pytest.raises(BusyError):
            disk.lock(tmp_path / "lock")
    disk.lock(tmp_path / "lock").release()


def test_waiting_is_bounded_and_looks_ever_more_rarely(tmp_path: Path) -> None:
    """1, 2, 4 … 50 milliseconds apart; the last pause ends at the limit."""
    disk = Timed()
    with disk.lock(tmp_path / "lock"), pytest.raises(BusyError) as caught:
        disk.lock(tmp_path / "lock", wait_s=0.2)
    assert [round(pause, 3) for pause in disk.pauses] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05, 0.037]
    assert caught.value.facts == {"path": f"{tmp_path}/lock", "waited_s": 0.2}


@pytest.mark.parametrize("wait_s", [1.0, None])
def test_waiting_ends_when_the_lock_is_free(tmp_path: Path, wait_s: float | None) -> None:
    """At the next look; None waits as long as it takes."""
    holder = Disk().lock(tmp_path / "lock")
    disk = Timed(on_wait=lambda: holder.release() if len(disk.pauses) == 8 else None)
    with disk.lock(tmp_path / "lock", wait_s=wait_s) as lock:
        assert lock.is_held
    assert len(disk.pauses) == 8


def test_a_lock_is_not_free_for_a_moment_while_it_is_shared(disk: Disk, tmp_path: Path) -> None:
    """Somebody who tries all the time never gets it exclusively; before and after, that is allowed."""
    tried, stop, is_kept, intrusions = threading.Semaphore(0), threading.Event(), [False], []

    def intrude() -> None:
        while not stop.is_set():
            with suppress(BusyError), Disk().lock(tmp_path / "lock"):
                intrusions.append(is_kept[0])
            tried.release()

    thread = threading.Thread(target=intrude)
    thread.start()
    try:
        for _ in range(50):
            with disk.lock(tmp_path / "lock", wait_s=None) as lock:
                is_kept[0] = True
                tried.acquire()
                lock.downgrade()
                tried.acquire()
                tried.acquire()
                is_kept[0] = False
    finally:
        stop.set()
        thread.join()
    assert True not in intrusions


def test_a_released_lock_cannot_be_shared(disk: Disk, tmp_path: Path) -> None:
    """It says so, and what the state is."""
    lock = disk.lock(tmp_path / "lock")
    lock.release()
    with pytest.raises(ConflictError, match="it was released"):
        lock.downgrade()


def test_a_folder_can_be_locked(disk: Disk, tmp_path: Path) -> None:
    """Under any name that it has, and through a rename."""
    (tmp_path / "folder").mkdir()
    with disk.lock(tmp_path / "folder"):
        disk.rename(tmp_path / "folder", tmp_path / "renamed")
        with pytest.raises(BusyError):
            disk.lock(tmp_path / "renamed")
    assert names(tmp_path / "renamed") == []


def test_only_plain_files_and_folders_are_locked(disk: Disk, tmp_path: Path) -> None:
    """A link is not followed, and makes no file elsewhere; a pipe keeps nobody waiting."""
    (tmp_path / "link").symlink_to("elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(InvalidError):
            disk.lock(tmp_path / name)
    with pytest.raises(MissingError):
        disk.lock(tmp_path / "absent" / "lock")
    assert names(tmp_path) == ["link", "pipe"]


def test_a_lock_on_a_file_that_was_deleted_meanwhile_is_taken_on_the_new_one(tmp_path: Path) -> None:
    """Else two would hold the lock of one name."""

    class Raced(Disk):
        def __init__(self) -> None:
            self.locked: list[Lock] = []

        def _try_lock(self, fd: int, *, shared: bool) -> bool:
            if not self.locked:
                (tmp_path / "lock").unlink()
                self.locked.append(Disk().lock(tmp_path / "lock"))
            return super()._try_lock(fd, shared=shared)

    disk = Raced()
    with pytest.raises(BusyError):
        disk.lock(tmp_path / "lock")
    disk.locked[0].release()
    disk.lock(tmp_path / "lock").release()


@pytest.mark.filterwarnings("ignore:the lock on:ResourceWarning")
def test_an_interrupt_at_any_call_leaves_no_lock_behind(tmp_path: Path) -> None:
    """Neither while it is taken nor while it is released, nor between the two."""

    def is_interrupted(at: int) -> bool:
        count = 0

        def look(frame: FrameType, event: str, argument: object) -> None:
            nonlocal count
            count += event in {"call", "c_return"}
            if count == at:
                sys.setprofile(None)
                raise KeyboardInterrupt

        sys.setprofile(look)
        try:
            lock = Disk().lock(tmp_path / "it")
            lock.release()
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    at = 0
    while is_interrupted(at := at + 1):
        Disk().lock(tmp_path / "it").release()
    assert at > 40


def test_a_lock_that_is_dropped_warns_and_is_free(disk: Disk, tmp_path: Path) -> None:
    """Like a file that was not closed."""
    lock = disk.lock(tmp_path / "lock")
    with pytest.warns(ResourceWarning, match="was dropped, not released"):
        del lock
    disk.lock(tmp_path / "lock").release()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists open files there")
def test_no_call_leaves_a_file_open(disk: Disk, tmp_path: Path) -> None:
    """Neither those that succeed nor those that fail, at whatever point."""

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for number in (0, 1, 2):
        with suppress(UnavailableError):
            Failing(number).replace(tmp_path / "file", b"1", keep_previous=tmp_path / "previous")
        with suppress(UnavailableError):
            Failing(number).create(tmp_path / f"{number}", b"1")
    disk.read(tmp_path / "file")
    with suppress(InvalidError):
        disk.read(tmp_path)
    with suppress(InvalidError):
        disk.replace(tmp_path, b"")
    for kind in (Disk, Renameless):
        with suppress(ExistsError):
            kind().rename(tmp_path / "file", tmp_path / "previous")
    os.mkfifo(tmp_path / "pipe")
    with suppress(InvalidError):
        disk.lock(tmp_path / "pipe")
    with disk.lock(tmp_path / "lock"), suppress(BusyError):
        disk.lock(tmp_path / "lock")
    with disk.lock(tmp_path / "lock") as lock:
        lock.downgrade()
    (tmp_path / DEAD).mkdir()
    disk.sweep(tmp_path)
    disk.sync_file(tmp_path / "file")
    disk.put_folder(tmp_path / "folder")
    disk.delete(tmp_path / "folder")
    assert open_files() == before


class Program:
    """A Python program that holds locks; it prints lines and waits for its input to end."""

    def __init__(self, text: str, *arguments: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", text, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Wait for its next line; empty when all that could print one are dead."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        while self.line():
            pass
        self.process.wait()
        self.process.stdout.close()


HOLD = """
import sys
from holdfast.disk import BusyError, Disk
try:
    lock = Disk().lock(sys.argv[1])
except BusyError:
    print("busy", flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
    lock.release()
"""


def test_of_two_processes_one_holds_the_lock_and_its_death_frees_it(disk: Disk, tmp_path: Path) -> None:
    """A kill is enough: nobody has to clean up."""
    with Program(HOLD, tmp_path / "lock") as first:
        assert first.line() == "held"
        with Program(HOLD, tmp_path / "lock") as second:
            assert second.line() == "busy"
        with pytest.raises(BusyError):
            disk.lock(tmp_path / "lock")
        first.process.kill()
        assert first.process.wait() == -signal.SIGKILL
        disk.lock(tmp_path / "lock").release()


FORK = """
import os, sys
from holdfast.disk import Disk
from holdfast.errors import ConflictError
disk = Disk()
lock = disk.lock(sys.argv[1])
with disk.temporary_folder(sys.argv[2]) as folder:
    if os.fork():
        sys.stdin.read()
    else:
        lock.release()
        try:
            lock.downgrade()
        except ConflictError:
            pass
print(lock.is_held, flush=True)
sys.stdin.read()
"""


def test_a_forked_child_neither_holds_nor_releases_its_parents_locks(disk: Disk, tmp_path: Path) -> None:
    """While the parent lives they are its own, and so is what they guard, though the child has left its blocks.

    When the parent is killed they are free, though the child lives on.
    """
    with Program(FORK, tmp_path / "lock", tmp_path) as program:
        assert program.line() == "False"
        with pytest.raises(BusyError):
            disk.lock(tmp_path / "lock")
        assert disk.sweep(tmp_path) == []
        assert len(names(tmp_path)) == 2
        program.process.kill()
        program.process.wait()
        disk.lock(tmp_path / "lock").release()
        assert len(disk.sweep(tmp_path)) == 1
    assert names(tmp_path) == ["lock"]


SILENT_FORK = """
import ctypes, os, sys
from holdfast.disk import Disk
lock = Disk().lock(sys.argv[1])
if ctypes.PyDLL(None).fork():
    lock.release()
    print("released", flush=True)
os.read(0, 1)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS allows little after a fork that Python does not know of")
def test_release_frees_a_lock_that_a_child_has_a_share_in(disk: Disk, tmp_path: Path) -> None:
    """C code may fork without Python's knowledge: letting go must be more than closing."""
    with Program(SILENT_FORK, tmp_path / "lock") as program:
        assert program.line() == "released"
        disk.lock(tmp_path / "lock").release()


def test_a_program_that_is_started_does_not_keep_the_lock(disk: Disk, tmp_path: Path) -> None:
    """Not even one that was started with all descriptors."""
    lock = disk.lock(tmp_path / "lock")
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    ) as child:
        assert child.stdout
        assert child.stdin
        child.stdout.readline()
        lock.release()
        disk.lock(tmp_path / "lock").release()
        child.stdin.write(b"\n")


# Where a path lies

TABLE = r"""22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
23 22 0:21 / /proc rw,nosuid shared:12 - proc proc rw
31 22 0:44 / /mnt/nas rw,relatime shared:20 - nfs4 server:/export rw,vers=4.2
32 22 0:45 / /mnt/nas2 rw - cifs //server/share rw
33 31 8:17 / /mnt/nas/local rw master:3 propagate_from:2 - xfs /dev/sdb1 rw
34 22 8:2 /srv/data /data/me/my\040data rw - ext4 /dev/sda2 rw
35 22 0:50 / /back\134slash rw - fuse.sshfs me@host:/ rw
40 22 0:60 / /data/me/desk rw - vfat /dev/sdc1 rw
41 22 0:61 / /data/me rw - tmpfs tmpfs rw
42 41 0:62 / /data/me rw - btrfs /dev/sdd1 rw
a line that is none
"""


def test_the_mount_table_is_read() -> None:
    """Optional fields, octal escapes, bind mounts; lines that are none are left out."""
    assert parse_mounts(TABLE) == [
        Mount(22, 1, "/", "ext4"),
        Mount(23, 22, "/proc", "proc"),
        Mount(31, 22, "/mnt/nas", "nfs4"),
        Mount(32, 22, "/mnt/nas2", "cifs"),
        Mount(33, 31, "/mnt/nas/local", "xfs"),
        Mount(34, 22, "/data/me/my data", "ext4"),
        Mount(35, 22, "/back\\slash", "fuse.sshfs"),
        Mount(40, 22, "/data/me/desk", "vfat"),
        Mount(41, 22, "/data/me", "tmpfs"),
        Mount(42, 41, "/data/me", "btrfs"),
    ]


@pytest.mark.parametrize(
    "path, kind",
    [
        ("/", "ext4"),
        ("/mnt", "ext4"),
        ("/mnt/nas", "nfs4"),
        ("/mnt/nas/folder/file", "nfs4"),
        ("/mnt/nas3", "ext4"),
        ("/mnt/nas2/file", "cifs"),
        ("/mnt/nas/local/file", "xfs"),
        ("/back\\slash/file", "fuse.sshfs"),
        ("/data/me/file", "btrfs"),
        ("/data/me/desk/file", "btrfs"),
        ("/data/me/my data/file", "btrfs"),
        ("/data/you", "ext4"),
    ],
)
def test_a_path_lies_on_the_mount_that_the_kernel_would_reach(path: str, kind: str) -> None:
    """The innermost one; a later mount over a folder hides what was mounted below it."""
    mount = find_mount(parse_mounts(TABLE), path)
    assert mount is not None
    assert mount.kind == kind


def test_a_table_that_does_not_reach_a_path_says_nothing() -> None:
    """As in a changed root; a table that goes in circles ends, too."""
    assert find_mount(parse_mounts("23 22 0:21 / /proc rw - proc proc rw"), "/data") is None
    assert find_mount([], "/") is None
    circle = [Mount(1, 0, "/", "a"), Mount(2, 1, "/", "b"), Mount(1, 2, "/", "c"), Mount(3, 3, "/", "d")]
    assert find_mount(circle, "/data") is not None


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_name_of_a_mount_point_is_read_back(name: str) -> None:
    """Escaped as the kernel does: blanks, line ends, backslashes and number signs."""
    escaped = "".join(rf"\{ord(letter):03o}" if letter in " \t\n\\#" else letter for letter in name)
    assert parse_mounts(f"1 0 8:1 / /{escaped} rw shared:1 - ext4 dev rw\n") == [Mount(1, 0, f"/{name}", "ext4")]


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("ext4", False),
        ("xfs", False),
        ("btrfs", False),
        ("apfs", False),
        ("tmpfs", False),
        ("overlay", False),
        ("fuseblk", False),
        ("fuse.gocryptfs", False),
        ("", False),
        ("nfs", True),
        ("nfs4", True),
        ("cifs", True),
        ("smb3", True),
        ("smbfs", True),
        ("9p", True),
        ("afs", True),
        ("ceph", True),
        ("lustre", True),
        ("gpfs", True),
        ("glusterfs", True),
        ("fuse.sshfs", True),
        ("fuse.glusterfs", True),
        ("fuse.s3fs", True),
        ("fuse.rclone", True),
        ("virtiofs", True),
        ("vboxsf", True),
    ],
)
def test_a_file_system_that_others_share_is_known_by_its_type(kind: str, expected: bool, tmp_path: Path) -> None:
    """Other machines', and those between a virtual machine and its host."""

    class Mounted(Disk):
        def filesystem(self, path: str | os.PathLike[str]) -> str:
            return kind

    assert Mounted().is_network(tmp_path) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="these are mounts of Linux")
def test_the_type_of_a_file_system_is_that_of_its_real_place(disk: Disk, tmp_path: Path) -> None:
    """Through links, and for what is not there yet."""
    (tmp_path / "link").symlink_to("/proc/self")
    assert disk.filesystem("/proc/self/no/such/file") == "proc"
    assert disk.filesystem(tmp_path / "link" / "status") == "proc"
    assert disk.is_network("/proc") is False


# What an error of the system means


@pytest.mark.parametrize(
    "code, kind, text",
    [
        (errno.ENOENT, MissingError, "there is no such file or folder"),
        (errno.EEXIST, ExistsError, "the name is taken"),
        (errno.ENOTEMPTY, ExistsError, "the name is taken by a folder that is not empty"),
        (errno.EACCES, DeniedError, "this user may not"),
        (errno.EPERM, DeniedError, "the system forbids it"),
        (errno.EROFS, UnavailableError, "the file system is read-only"),
        (errno.ENOSPC, UnavailableError, "the disk is full"),
        (errno.EDQUOT, UnavailableError, "share of the disk is used up"),
        (errno.EIO, UnavailableError, "the disk failed"),
        (errno.EBUSY, UnavailableError, "it is in use"),
        (errno.EXDEV, InvalidError, "both places must be on one file system"),
        (errno.EMLINK, InvalidError, "as many names"),
        (errno.ELOOP, InvalidError, "it is a symbolic link"),
        (errno.ENAMETOOLONG, InvalidError, "the name is too long"),
        (errno.ENOTDIR, InvalidError, "a part of the path is no folder"),
        (errno.EISDIR, InvalidError, "it is a folder"),
        (errno.EMFILE, UnavailableError, "Too many open files"),
    ],
)
def test_an_error_of_the_system_is_one_of_ours(code: int, kind: type[Exception], text: str) -> None:
    """Its kind says what to do, its sentence which path, its facts which errno."""
    found = translate(OSError(code, os.strerror(code)), "/no/such/place", "read")
    assert type(found) is kind
    assert str(found).startswith("could not read '/no/such/place': ")
    assert text in str(found)
    assert found.facts["path"] == "/no/such/place"
    assert found.facts["errno"] == errno.errorcode[code]


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_no_error_of_the_system_is_left_untranslated(code: int) -> None:
    """One that has no sentence of its own keeps the system's, and its name; all survive pickling."""
    found = translate(OSError(code, "what the system says"), Path("/"), "read")
    again = pickle.loads(pickle.dumps(found))
    assert isinstance(found, InvalidError | DeniedError | NotFoundError | ConflictError | UnavailableError)
    assert (type(again), str(again), again.facts) == (type(found), str(found), found.facts)


def test_a_full_disk_says_how_much_is_free(tmp_path: Path) -> None:
    """In bytes, for people and for programs."""
    found = translate(OSError(errno.ENOSPC, ""), tmp_path / "file", "write")
    assert isinstance(found.facts["free_bytes"], int)
    assert str(found) == (
        f"could not write '{tmp_path}/file': the disk is full; make room and try again"
        f" ({found.facts['free_bytes']} bytes are free)"
    )


def test_an_error_of_ours_stays_itself() -> None:
    """Some are an OSError as well."""
    ours = DeniedError("no")
    assert translate(ours, "/", "read") is ours


# What comes along


def python(text: str, *arguments: str) -> str:
    """What a new Python prints."""
    done = subprocess.run([sys.executable, "-c", text, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_is_cheap() -> None:
    """What takes long to import, and is needed rarely, waits until it is."""
    assert (
        python("""
import sys
import holdfast.disk
print(sorted({"ctypes", "dataclasses", "inspect", "logging", "shutil", "subprocess", "tempfile"} & set(sys.modules)))
""")
        == "[]"
    )


def test_it_works_with_what_windows_has(tmp_path: Path) -> None:
    """No fcntl, no way to open a folder, locks by msvcrt: files and locks do as elsewhere."""
    text = """
import fcntl, os, sys, types

def locking(fd, how, size):
    try:
        fcntl.flock(fd, fcntl.LOCK_UN if how == 0 else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise PermissionError(13, "Permission denied") from exc

sys.modules["msvcrt"] = types.SimpleNamespace(LK_UNLCK=0, LK_NBLCK=2, locking=locking)
sys.modules["fcntl"] = None
for name in ("register_at_fork", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "fchmod", "fchown"):
    delattr(os, name)
import pathlib, shutil
sys.platform = "win32"

from holdfast.disk import BusyError, Disk, ExistsError
disk, folder = Disk(), pathlib.Path(sys.argv[1])
disk.put_folder(folder / "state")
disk.create(folder / "state" / "file", b"1")
disk.replace(folder / "state" / "file", b"2", keep_previous=folder / "state" / "previous")
try:
    disk.create(folder / "state" / "file", b"3")
except ExistsError:
    print(disk.read(folder / "state" / "file"), disk.read(folder / "state" / "previous"))
with disk.lock(folder / "lock") as lock:
    lock.downgrade()
    try:
        disk.lock(folder / "lock", shared=True)
    except BusyError:
        print("busy")
disk.lock(folder / "lock").release()
disk.delete(folder / "lock")
disk.quarantine(folder / "state" / "file")
print(disk.sweep(folder), len(os.listdir(folder / "state")), disk.free_bytes(folder) > 0, disk.is_network(folder))
"""
    assert python(text, str(tmp_path)).splitlines() == ["b'2' b'1'", "busy", "[] 2 True False"]
