"""Which Pods of a server are open, with which keys, and until when."""

import socket
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast.context import Settings
from holdfast.context.serving import LocalPods, _Turns
from holdfast.errors import DamagedError, DeniedError, InvalidError, UnavailableError
from holdfast.keys import rotate
from holdfast.server.pods import OpenPods
from holdfast.store import Batch, CreateItem, SetVariable
from tests.components.servers import OWNER, STRANGER, serving


@dataclass
class FakePod:
    """A Pod that any key opens."""

    owner: str
    closed: list[str]
    store = renewals = files = None

    def is_opened_by(self, database_key: str) -> bool:
        """Say yes."""
        return True

    def admit(self, database_key: str) -> None:
        """Admit it."""

    def close(self) -> None:
        """Note it."""
        self.closed.append(self.owner)


@dataclass
class FakeOpener:
    """Opens Pods of nothing."""

    opened: list[str] = field(default_factory=list[str])
    closed: list[str] = field(default_factory=list[str])
    pod_key = bytes(32)

    def now_ms(self) -> int:
        """Return no time."""
        return 0

    def open(self, owner: str, database_key: str | None) -> FakePod:
        """Note it."""
        self.opened.append(owner)
        return FakePod(owner, self.closed)

    def create(self, owner: str, database_key: str) -> None:
        """Do nothing."""


def test_a_pod_is_opened_once_and_closed_for_another_when_it_was_not_used_for_longest() -> None:
    """Those that are used stay, and are never too many."""
    opener = FakeOpener()
    pods = OpenPods(opener, max_open=2)
    assert pods.find("a", "k") is None
    with pods.open("a", "k"), pods.open("a", "k"):
        pass
    with pods.open("b", "k"):
        pass
    used = pods.find("a", "k")
    assert used is not None
    used.end()
    used.end()  # twice is harmless
    pods.open("c", "k")
    assert (opener.opened, opener.closed) == (["a", "b", "c"], ["b"])
    pods.open("a", "k")
    with pytest.raises(UnavailableError, match="2 others are in use"):
        pods.open("b", "k")


def test_closing_waits_for_who_uses_a_pod_and_opens_no_more() -> None:
    """The last use closes it."""
    opener = FakeOpener()
    pods = OpenPods(opener)
    used, _ = pods.open("a", "k"), pods.open("b", "k").end()
    pods.close()
    assert opener.closed == ["b"]
    for owner in ("a", "c"):
        with pytest.raises(UnavailableError, match="going down"):
            pods.open(owner, "k")
    used.end()
    assert opener.closed == ["b", "a", "c", "a"]


def is_found(pods: OpenPods, owner: str, key: str | None) -> bool:
    """Say whether the Pod is open for this key."""
    use = pods.find(owner, key)
    if use is not None:
        use.end()
    return use is not None


def opened(home: Path, **how: bool) -> tuple[LocalPods, OpenPods]:
    """Return the Pods of a home."""
    home.mkdir(exist_ok=True)
    opener = LocalPods(Settings(home=home), **how)
    return opener, OpenPods(opener)


def test_a_key_that_was_replaced_opens_an_open_pod_no_more(tmp_path: Path) -> None:
    """And the new one does at once, while runs go on."""
    opener, pods = opened(tmp_path)
    (tmp_path / "keys.json").write_bytes(OWNER.to_json())
    (tmp_path / "keys.json").chmod(0o600)
    opener.create(OWNER.owner_key, OWNER.database_key)
    with pods.open(OWNER.owner_key, OWNER.database_key) as use:
        use.pod.store.apply(Batch((SetVariable("s", "n", 1),)))
        new = rotate(tmp_path, Settings(home=tmp_path).pod_path(OWNER.owner_key).with_suffix(".json"))
        assert not is_found(pods, OWNER.owner_key, OWNER.database_key)
        with pytest.raises(DeniedError, match=r"no Pod of owner '.*' opens with what was presented"):
            pods.open(OWNER.owner_key, OWNER.database_key)
        with pods.open(OWNER.owner_key, new.database_key) as again:
            assert again.pod is use.pod
            assert again.pod.store.list_variables("s") == {"n": 1}
        assert is_found(pods, OWNER.owner_key, new.database_key)
    pods.close()


def test_who_follows_with_a_key_that_was_replaced_hears_no_more(tmp_path: Path) -> None:
    """Nothing that is written from then on, and the answer ends."""
    (tmp_path / "keys.json").write_bytes(OWNER.to_json())
    (tmp_path / "keys.json").chmod(0o600)
    with serving(tmp_path) as served, socket.create_connection(("127.0.0.1", served.port)) as following:
        served.store().now_ms()
        head = f"GET /api/{OWNER.owner_key}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        following.sendall(f"{head}Authorization: Bearer {OWNER.database_key}\r\n\r\n".encode())
        heard = b""

        def hear(words: bytes) -> None:
            nonlocal heard
            while words not in heard:
                part = following.recv(65_536)
                assert part, heard
                heard += part

        hear(b": here")
        served.store().apply(Batch((CreateItem("before", "PluginRun"),)))
        hear(b"before")
        new = rotate(tmp_path, served.settings.pod_path(OWNER.owner_key).with_suffix(".json"))
        served.store(new).apply(Batch((CreateItem("after", "PluginRun"),)))
        while part := following.recv(65_536):
            heard += part
        assert b"after" not in heard


@pytest.mark.parametrize("owner", [OWNER.owner_key, STRANGER.owner_key])
@pytest.mark.parametrize("key", [STRANGER.database_key, OWNER.owner_key, "x", ""])
def test_a_wrong_key_and_an_unknown_owner_are_one_error(tmp_path: Path, owner: str, key: str) -> None:
    """Whether the Pod is open or not; nothing is made for who asks."""
    opener, pods = opened(tmp_path)
    opener.create(OWNER.owner_key, OWNER.database_key)
    for _ in range(2):
        with pytest.raises(DeniedError) as refused:
            pods.open(owner, key)
        assert refused.value.message == f"no Pod of owner {owner!r} opens with what was presented"
        pods.open(OWNER.owner_key, OWNER.database_key).end()
    assert [each.stem for each in (tmp_path / "pods").glob("*.db")] == [OWNER.owner_key]
    pods.close()


def test_a_kept_key_opens_a_pod_for_tokens_after_a_restart(tmp_path: Path) -> None:
    """Its owner need not call."""
    opener, pods = opened(tmp_path)
    opener.create(OWNER.owner_key, OWNER.database_key)
    with pytest.raises(UnavailableError, match=f"{STRANGER.owner_key}' is locked: its owner has to call first"):
        pods.open(STRANGER.owner_key, None)
    for _ in range(2):
        with pods.open(OWNER.owner_key, None) as use:
            assert is_found(pods, OWNER.owner_key, None)
            assert not is_found(pods, OWNER.owner_key, OWNER.database_key)  # nobody has presented one yet
            assert use.pod.store.list_variables("s") == {}
        with pytest.raises(DeniedError):
            pods.open(OWNER.owner_key, STRANGER.database_key)
        pods.open(OWNER.owner_key, OWNER.database_key).end()
        pods.close()
        pods = opened(tmp_path)[1]
    pods.close()


def test_where_no_key_is_kept_the_owner_has_to_call_after_each_restart(tmp_path: Path) -> None:
    """Once is enough until then, also if the Pod is closed meanwhile; a key that was kept before is not used."""
    opener, pods = opened(tmp_path)
    opener.create(OWNER.owner_key, OWNER.database_key)
    pods.close()
    opener, _ = opened(tmp_path, is_attended=True)
    pods = OpenPods(opener, max_open=1)
    opener.create(STRANGER.owner_key, STRANGER.database_key)
    with pytest.raises(UnavailableError, match="its owner has to call first"):
        pods.open(OWNER.owner_key, None)
    for identity in (OWNER, STRANGER):
        pods.open(identity.owner_key, identity.database_key).end()
    for identity in (OWNER, STRANGER):
        pods.open(identity.owner_key, None).end()
    pods.close()
    with pytest.raises(UnavailableError, match="its owner has to call first"):
        opened(tmp_path)[1].open(STRANGER.owner_key, None)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_where_no_key_is_kept_one_from_before_goes_when_its_owner_calls(tmp_path: Path, *, is_damaged: bool) -> None:
    """Not a byte of it is left; others' stay until they call."""
    opener, _ = opened(tmp_path)
    for identity in (OWNER, STRANGER):
        opener.create(identity.owner_key, identity.database_key)
    keyring = tmp_path / "pod.db"
    with closing(sqlite3.connect(keyring)) as db:
        kept = dict(db.execute("SELECT owner, wrapped FROM keyring"))
    assert kept[OWNER.owner_key] in keyring.read_bytes()
    if is_damaged:
        keyring.write_bytes(b"x" * 5_000)
    _, pods = opened(tmp_path, is_attended=True)
    pods.open(OWNER.owner_key, OWNER.database_key).end()
    pods.close()
    found = keyring.read_bytes() if keyring.exists() else b""
    assert kept[OWNER.owner_key] not in found
    assert (kept[STRANGER.owner_key] in found) == (not is_damaged)
    with pytest.raises(UnavailableError, match="its owner has to call first"):
        opened(tmp_path)[1].open(OWNER.owner_key, None)


@pytest.mark.parametrize("is_attended", [False, True])
def test_a_pod_that_is_gone_is_not_made_anew_though_no_key_of_it_is_kept(tmp_path: Path, *, is_attended: bool) -> None:
    """Its owner is told, until the file is back or the envelope is gone too; one that was never finished is made."""
    opener, pods = opened(tmp_path, is_attended=is_attended)
    opener.create(OWNER.owner_key, OWNER.database_key)
    path = Settings(home=tmp_path).pod_path(OWNER.owner_key)
    with pods.open(OWNER.owner_key, OWNER.database_key) as use:
        use.pod.store.apply(Batch((SetVariable("s", "n", 1),)))
    pods.close()
    (tmp_path / "pod.db").unlink(missing_ok=True)  # the keys that were kept
    kept = path.read_bytes()
    for damage in (path.unlink, path.touch):
        damage()
        opener, pods = opened(tmp_path, is_attended=is_attended)
        for ask in (pods.open, opener.create):
            with pytest.raises(DamagedError, match="is gone, though it was there"):
                ask(OWNER.owner_key, OWNER.database_key)
    path.write_bytes(kept)
    with pods.open(OWNER.owner_key, OWNER.database_key) as use:
        assert use.pod.store.list_variables("s") == {"n": 1}
    pods.close()
    path.unlink()
    path.with_suffix(".json").unlink()
    opener, pods = opened(tmp_path, is_attended=True)
    opener.create(OWNER.owner_key, OWNER.database_key)
    path.write_bytes(b"")
    path.with_suffix(".made").unlink()  # as whoever dies leaves it, or a former version
    with pods.open(OWNER.owner_key, OWNER.database_key) as use:
        assert use.pod.store.list_variables("s") == {}
    assert path.with_suffix(".made").exists()
    pods.close()


def test_what_a_killed_server_left_of_an_upload_goes_when_the_pod_is_opened(tmp_path: Path) -> None:
    """Its owner may never upload again."""
    opener, pods = opened(tmp_path)
    opener.create(OWNER.owner_key, OWNER.database_key)
    dead = tmp_path / "files" / OWNER.owner_key / ".tmp-0123456789abcdef"
    dead.mkdir(parents=True)
    (dead / "part").write_bytes(b"x")
    pods.open(OWNER.owner_key, OWNER.database_key).end()
    assert not dead.exists()
    pods.close()


def test_owners_are_made_once_and_by_their_own_keys_and_not_where_new_ones_are_not_wanted(tmp_path: Path) -> None:
    """Asking again is harmless."""
    opener, _ = opened(tmp_path)
    for _ in range(2):
        opener.create(OWNER.owner_key, OWNER.database_key)
    with pytest.raises(DeniedError):
        opener.create(OWNER.owner_key, STRANGER.database_key)
    for key in ("x", OWNER.owner_key):
        with pytest.raises(InvalidError, match="database_key"):
            opener.create(OWNER.owner_key, key)
    closed, _ = opened(tmp_path, can_create=False)
    closed.create(OWNER.owner_key, OWNER.database_key)
    for owner in (OWNER.owner_key, STRANGER.owner_key):  # who has a Pod here is not told
        with pytest.raises(DeniedError) as refused:
            closed.create(owner, STRANGER.database_key)
        assert refused.value.message == (
            f"no Pod of owner {owner!r} opens with what was presented, and this server makes no Pods for new owners"
        )


def test_writers_let_one_renewal_pass_and_are_not_kept_waiting_by_the_next() -> None:
    """So neither ever waits for more than one of the others."""
    turns, wants, may_end, passed = _Turns(), threading.Event(), threading.Event(), threading.Event()

    def renew() -> None:
        with turns.renewal():
            wants.set()
            may_end.wait()
        with turns.renewal():  # the next is there at once
            passed.wait()

    renewing = threading.Thread(target=renew)
    renewing.start()
    wants.wait()
    writing = threading.Thread(target=lambda: (turns.let_pass(), passed.set()))
    writing.start()
    assert not passed.wait(0.05)
    may_end.set()
    writing.join()
    renewing.join()
    turns.let_pass()  # nobody wants to
