"""Files through a Pod: items that describe bytes, and the bytes."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.blobs import DiskBlobs
from holdfast.context import PodClient, Settings, back_up_pod, restore_pod
from holdfast.errors import InvalidError, NotFoundError, UnavailableError
from holdfast.items import File, Person
from holdfast.pod import Pod
from holdfast.testing import MemoryStore

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@pytest.fixture
def blobs(tmp_path: Path) -> DiskBlobs:
    """Where the bytes lie."""
    return DiskBlobs(tmp_path / "files", bytes(range(32)))


@pytest.fixture
def pod(blobs: DiskBlobs) -> Iterator[Pod]:
    """A Pod that keeps files."""
    with Pod(MemoryStore(), files=blobs) as pod:
        yield pod


def test_bytes_that_are_uploaded_are_described_by_an_item_and_read_again(pod: Pod) -> None:
    """By the item, and by the hash alone."""
    file = pod.upload_file(b"hello", filename="hello.txt")
    assert (file.sha256, file.size, file.filename) == (HELLO, 5, "hello.txt")
    assert pod.get(file.id or "") == file
    assert pod.get_file(file) == pod.get_file(HELLO) == b"hello"


def test_a_file_of_this_machine_brings_its_name_and_need_not_fit_into_memory(pod: Pod, tmp_path: Path) -> None:
    """It comes back in parts."""
    data = os.urandom(5 * 2**20)
    (tmp_path / "large.bin").write_bytes(data)
    file = pod.upload_file(tmp_path / "large.bin")
    assert (file.filename, file.size) == ("large.bin", 5 * 2**20)
    parts = list(pod.iter_file(file))
    assert len(parts) > 10
    assert b"".join(parts) == data


def test_uploading_again_brings_the_same_item_and_the_bytes_if_they_are_missing(pod: Pod, blobs: DiskBlobs) -> None:
    """As after a process that died between the two."""
    file = pod.upload_file(b"hello", filename="one")
    assert pod.upload_file(b"hello", filename="two") == file
    assert len(pod.search({"type": "File"})) == 1
    blobs.delete(HELLO)
    with pytest.raises(NotFoundError, match="upload them"):
        pod.get_file(file)
    pod.upload_file(b"hello")
    assert pod.get_file(file) == b"hello"


def test_a_deleted_file_takes_its_bytes_with_it_unless_another_item_has_the_same(pod: Pod, blobs: DiskBlobs) -> None:
    """Given as an item and by its id."""
    file = pod.upload_file(b"hello")
    other = pod.create(File(sha256=HELLO))
    pod.delete_file(file)
    assert pod.get_file(other) == b"hello"
    pod.delete_file(other.id or "")
    assert not blobs.exists(HELLO)
    assert pod.search({"type": "File"}) == []


@pytest.mark.parametrize(
    "act, error, text",
    [
        (lambda pod: pod.upload_file("/nowhere/at/all"), NotFoundError, "there is no file '/nowhere/at/all'"),
        (lambda pod: pod.upload_file("/"), InvalidError, "cannot be read: Is a directory"),
        (lambda pod: pod.get_file(HELLO), NotFoundError, "upload them"),
        (lambda pod: pod.get_file("hello"), InvalidError, "names no file"),
        (lambda pod: pod.get_file(File()), InvalidError, "nobody knows its bytes"),
        (lambda pod: pod.delete_file(File()), InvalidError, "it was never created"),
        (lambda pod: pod.delete_file("x"), NotFoundError, "there is no item 'x'"),
        (lambda pod: pod.delete_file(pod.create(Person("Ann")).id), InvalidError, "is no File"),
    ],
)
def test_what_is_no_file_is_refused(pod: Pod, act: Callable[[Pod], object], error: type[Exception], text: str) -> None:
    """The message says which one, and what to do."""
    with pytest.raises(error, match=text):
        act(pod)


def test_inside_a_transaction_files_are_refused_and_the_block_goes_on(pod: Pod) -> None:
    """Bytes could not be taken back with it."""
    with pod.transaction():
        pod.create(Person("Ann"))
        for act in (lambda: pod.upload_file(b"hello"), lambda: pod.get_file(HELLO), lambda: pod.delete_file("x")):
            with pytest.raises(InvalidError, match="inside a transaction"):
                act()
    assert len(pod.search({"type": "Person"})) == 1


def test_a_pod_without_a_place_for_files_says_so() -> None:
    """Not that the file is missing."""
    with Pod(MemoryStore()) as pod, pytest.raises(UnavailableError, match="keeps no files"):
        pod.upload_file(b"hello")


def test_a_backup_has_the_bytes_of_files_and_a_restore_brings_back_those_that_are_missing(tmp_path: Path) -> None:
    """Encrypted as they were; those that were uploaded since stay."""
    settings = Settings.read(home=tmp_path / "home")
    data = os.urandom(5 * 2**20)
    with PodClient(settings=settings) as client:
        file = client.upload_file(data)
        back_up_pod(settings, tmp_path / "backup")
        other = client.upload_file(b"hello")
        client.delete_file(file)
    kept = [path for path in (tmp_path / "backup" / "files").rglob("*") if path.is_file()]
    assert len(kept) == 1
    assert data[:64] not in kept[0].read_bytes()

    restore_pod(settings, tmp_path / "backup")

    with PodClient(settings=settings) as client:
        assert client.get_file(file.sha256 or "") == data
        assert client.get_file(other.sha256 or "") == b"hello"
        assert [each.id for each in client.search({"type": "File"})] == [file.id]


def test_whoever_uploads_while_others_delete_has_the_bytes_in_the_end(pod: Pod, blobs: DiskBlobs) -> None:
    """The item that `upload_file` returned is not one whose bytes somebody takes away with another item."""
    data = b"contested" * 1000
    sha256 = hashlib.sha256(data).hexdigest()
    stop = threading.Event()
    failures: list[Exception] = []

    def delete_others() -> None:
        while not stop.is_set():
            try:
                pod.delete_file(pod.create(File(sha256=sha256)))
            except Exception as exc:  # noqa: BLE001 -- whatever it is, the test shows it
                failures.append(exc)

    deleting = [threading.Thread(target=delete_others) for _ in range(2)]
    for thread in deleting:
        thread.start()
    mine = pod.create(File(sha256=sha256))
    for _ in range(20):
        pod.upload_file(data)
        assert pod.get_file(mine) == data
    stop.set()
    for thread in deleting:
        thread.join()
    assert failures == []
    assert blobs.exists(sha256)
