"""Keys: what opens what, what is found when a byte or a process is lost, and that no secret is ever told."""

import errno
import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast import keys
from holdfast.disk import BusyError, Disk, Lock, StrPath
from holdfast.errors import (
    ConflictError,
    DamagedError,
    DeniedError,
    HoldfastError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from holdfast.keys import Envelope, Identity

OWNER = "0a" * 32
OTHER_OWNER = "0b" * 32
DATABASE_KEY = "b7" * 32
OTHER_DATABASE_KEY = "c8" * 32
DATA_KEY = bytes(range(32))

# Written by a program of its own: HMAC-SHA256 by hand for the derivation, json and hashlib for the file.
KEYRING_ENTRY = bytes.fromhex(
    "6465666768696a6b6c6d6e6f70717273"
    "96e10e868ef261049dfb045401e75676df9091ac509dbd380a6e586735d608e264e30e98bf3b3d96c56528df13898233"
)
ENVELOPE = b"""\
{
    "format": 1,
    "owner": "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
    "key_id": "c68fd77a4e88048c",
    "data_key_id": "2964be92ffc0d9ec",
    "wrapped_key": "000102030405060708090a0b0c0d0e0f41cf2ec4af4404e0c5085c7c1b39c58f\
ac06d80a947c96553a1f1fd6e2c4e4f559a5cdbb94137eeab7acb7e22cb86591",
    "check": "7390b67f247a8c072952111e94ffc2effe4a11c71bba84b5f6bc17e272560373"
}
"""
IDENTITY = b"""\
{
    "format": 1,
    "owner_key": "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
    "database_key": "b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7",
    "check": "10c34568e3fcd1e7"
}
"""


@pytest.fixture
def owner() -> Identity:
    """The identity that all envelopes here are sealed under."""
    return Identity(OWNER, DATABASE_KEY)


def told(error: BaseException | None) -> str:
    """Everything that an error and its causes could put into a log, a report or an answer."""
    texts: list[str] = []
    while error is not None:
        texts += [str(error), repr(error), repr(error.args), repr(vars(error))]
        texts += [repr(getattr(error, name, "")) for name in ("doc", "object", "filename", "filename2")]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def checked(**members: object) -> bytes:
    """An envelope file with these members and a check value that fits them: what a forger can make."""
    text = (json.dumps(members, indent=4) + "\n").encode()
    check = hashlib.sha256(b"holdfast envelope\n" + text).hexdigest()
    return (json.dumps({**members, "check": check}, indent=4) + "\n").encode()


def keys_of(**change: object) -> bytes:
    """A key file with the members of `IDENTITY`, changed or added (None: left out), and a check value that fits."""
    members = {**members_of(IDENTITY), **change}
    members = {name: value for name, value in sorted(members.items()) if value is not None}
    text = (json.dumps(members, indent=4) + "\n").encode()
    check = hashlib.sha256(b"holdfast identity\n" + text).hexdigest()[:16]
    return json.dumps({**members, "check": check}).encode()


def members_of(data: bytes) -> dict[str, object]:
    """The members of an envelope or a key file, without its check value."""
    members = json.loads(data)
    del members["check"]
    return members


class TestOneKey:
    """Wrapping, unwrapping and naming a single key."""

    def test_a_new_key_is_32_bytes_and_no_other_one(self) -> None:
        """Keys come from the operating system's generator and never repeat."""
        made = {keys.new_key() for _ in range(100)}
        assert len(made) == 100
        assert {len(key) for key in made} == {32}

    def test_a_key_id_stays_what_it_was_in_the_first_release(self) -> None:
        """Files name keys by their ids, so the id of a key is part of the format."""
        assert keys.key_id(DATA_KEY) == "2964be92ffc0d9ec"

    def test_a_key_wrapped_by_the_first_release_unwraps(self) -> None:
        """The layout of a wrapped key (salt, ciphertext, tag) and its derivation are part of the format."""
        assert keys.unwrap(KEYRING_ENTRY, b"\x44" * 32, purpose="keyring 1", owner=OWNER) == DATA_KEY

    @given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.text(), st.text())
    def test_what_was_wrapped_unwraps(self, key: bytes, under: bytes, purpose: str, owner: str) -> None:
        """Any key under any key, for any purpose and owner, comes back; as 64 bytes that never repeat."""
        wrapped = keys.wrap(key, under, purpose=purpose, owner=owner)
        assert len(wrapped) == 64
        assert keys.wrap(key, under, purpose=purpose, owner=owner) != wrapped
        assert keys.unwrap(wrapped, under, purpose=purpose, owner=owner) == key

    @pytest.mark.parametrize(
        "under,purpose,owner",
        [
            (b"\x45" * 32, "keyring 1", OWNER),
            (b"\x44" * 32, "envelope 1", OWNER),
            (b"\x44" * 32, "keyring 1", OTHER_OWNER),
            (b"\x44" * 32, "keyring 1" + OWNER, ""),
        ],
        ids=["key", "purpose", "owner", "border between purpose and owner"],
    )
    def test_a_wrapped_key_opens_for_its_key_purpose_and_owner_only(
        self, under: bytes, purpose: str, owner: str
    ) -> None:
        """A wrapped key cannot be moved to another owner or be taken for something else."""
        with pytest.raises(DeniedError, match=r"does not open for .* another key wrapped it, or it was altered"):
            keys.unwrap(KEYRING_ENTRY, under, purpose=purpose, owner=owner)

    @given(st.integers(0, 64 * 8 - 1))
    def test_a_wrapped_key_with_any_bit_flipped_does_not_open(self, bit: int) -> None:
        """Salt, ciphertext and tag are all authenticated."""
        altered = bytearray(KEYRING_ENTRY)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DeniedError):
            keys.unwrap(bytes(altered), b"\x44" * 32, purpose="keyring 1", owner=OWNER)

    @given(st.binary(max_size=200).filter(lambda data: len(data) != 64))
    def test_what_cannot_be_a_wrapped_key_is_damaged(self, data: bytes) -> None:
        """A wrong length is damage, and told from a wrong key."""
        with pytest.raises(DamagedError, match=rf"it has {len(data)} bytes, not 64"):
            keys.unwrap(data, b"\x44" * 32, purpose="keyring 1", owner=OWNER)

    @pytest.mark.parametrize("length", [0, 16, 31, 33])
    def test_a_key_of_another_length_is_refused(self, length: int, owner: Identity) -> None:
        """A short key is never padded and a long one never cut."""
        with pytest.raises(InvalidError, match=rf"the key to wrap has {length} bytes; a key has 32"):
            keys.wrap(bytes(length), bytes(32), purpose="keyring 1", owner=OWNER)
        with pytest.raises(InvalidError, match=rf"the wrapping key has {length} bytes; a key has 32"):
            keys.unwrap(KEYRING_ENTRY, bytes(length), purpose="keyring 1", owner=OWNER)
        with pytest.raises(InvalidError, match=rf"has {length} bytes; a key has 32"):
            Envelope.seal(bytes(length), owner)

    def test_importing_keys_does_not_import_a_cipher(self) -> None:
        """A command that opens no Pod does not pay for the cipher's start-up."""
        program = "import sys, holdfast.keys; print('cryptography' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


class TestIdentity:
    """What an owner presents, as a value and as JSON."""

    def test_its_repr_shows_the_name_and_no_secret(self) -> None:
        """An identity may appear in a traceback or a debugger; its secrets do not."""
        identity = Identity(OWNER, DATABASE_KEY, previous_database_key=OTHER_DATABASE_KEY)
        assert repr(identity) == f"Identity(owner_key='{OWNER}')"

    def test_keys_are_kept_in_lower_case(self) -> None:
        """One owner has one name, also on a file system that folds case."""
        assert Identity("0A" * 32, "B7" * 32) == Identity(OWNER, DATABASE_KEY)

    def test_two_are_equal_if_every_key_is(self, owner: Identity) -> None:
        """Equality looks at the secrets too, and an identity may be a dictionary's key."""
        assert owner == Identity(OWNER, DATABASE_KEY)
        assert len({owner, Identity(OWNER, DATABASE_KEY)}) == 1
        assert owner != Identity(OWNER, OTHER_DATABASE_KEY)
        assert owner != Identity(OTHER_OWNER, DATABASE_KEY)
        assert owner != Identity(OWNER, DATABASE_KEY, previous_database_key=OTHER_DATABASE_KEY)
        assert owner != OWNER

    @pytest.mark.parametrize(
        "bad",
        [
            "",
            "b7",
            "b7" * 33,
            "g7" * 32,
            "b7 " * 21 + "b",
            "\N{ARABIC-INDIC DIGIT SEVEN}" * 64,
            "b7" * 32 + "\n",
            None,
            7,
        ],
    )
    def test_what_is_no_key_is_refused_and_not_shown(self, bad: str) -> None:
        """Blanks, other digits, other lengths and other types are named by the field, never by the value."""
        with pytest.raises(InvalidError, match=r"^database_key is no key: it must be text of 64 hexadecimal digits$"):
            Identity(OWNER, bad)
        with pytest.raises(InvalidError, match=r"^owner_key is no key: it must be text of 64 hexadecimal digits$"):
            Identity(bad, DATABASE_KEY)

    def test_a_secret_that_is_also_the_name_is_refused(self) -> None:
        """The name is public: it stands in URLs and in envelopes."""
        with pytest.raises(InvalidError, match=r"^owner_key, database_key must differ from each other, and two are"):
            Identity(OWNER, OWNER.upper())

    def test_a_new_one_differs_from_every_other(self) -> None:
        """Both keys are random."""
        made = [Identity.new() for _ in range(50)]
        assert len({text for identity in made for text in (identity.owner_key, identity.database_key)}) == 100

    def test_its_file_is_what_the_first_release_wrote(self, owner: Identity) -> None:
        """Yesterday's file is read, today's is the same."""
        assert owner.to_json() == IDENTITY
        assert Identity.from_json(IDENTITY) == owner
        assert owner.key_id == "c68fd77a4e88048c"

    def test_its_file_may_be_written_by_hand(self, owner: Identity) -> None:
        """Keys that were copied from paper need not have our blanks and order."""
        check = "10C34568E3FCD1E7"
        text = f'{{"check":"{check}","database_key":"{DATABASE_KEY}","owner_key":"{OWNER.upper()}","format":1}}'
        assert Identity.from_json(text.encode()) == owner

    def test_a_wrong_digit_anywhere_in_its_file_is_noticed(self) -> None:
        """One in the name as well, which would else be another owner's, whose Pod is not made yet."""
        for at in (index for index, byte in enumerate(IDENTITY) if chr(byte) in "0123456789"):
            typed = bytearray(IDENTITY)
            typed[at] = ord("8") if typed[at] != ord("8") else ord("3")
            with pytest.raises(DamagedError, match=r"its check value is missing, or does not fit the rest"):
                Identity.from_json(bytes(typed))

    def test_a_newer_format_is_refused_and_both_are_named(self) -> None:
        """Guessing at a later format could lose what it holds."""
        with pytest.raises(
            InvalidError, match=r"key file '.*' has format 3; this Holdfast reads formats up to 1: inst"
        ):
            Identity.from_json(keys_of(format=3, more="later"), what="key file 'keys.json'")

    @pytest.mark.parametrize(
        "data,reason",
        [
            (b"", "it is no JSON object of texts and numbers"),
            (IDENTITY[:-3], "it is no JSON object of texts and numbers"),
            (b"\xff" + IDENTITY, "it is no JSON object of texts and numbers"),
            (IDENTITY.decode().encode("utf-16"), "it is no JSON object of texts and numbers"),
            (b"[" * 50_000, "it is no JSON object of texts and numbers"),
            (b"[]", "it is no JSON object of texts and numbers"),
            (b"{}", "its check value is missing, or does not fit the rest"),
            (IDENTITY.replace(b"check", b"chekc"), "its check value is missing, or does not fit the rest"),
            (IDENTITY.replace(b'"format": 1', b'"format": 3'), "its check value is missing, or does not fit the rest"),
            (keys_of(format=None), "its format is not a number from 1 to 1"),
            (keys_of(format=True), "its format is not a number from 1 to 1"),
            (keys_of(format=0), "its format is not a number from 1 to 1"),
            (keys_of(database_key=None), "its members are not format, owner_key, database_key and check"),
            (keys_of(more=1), "its members are not format, owner_key, database_key and check"),
            (keys_of(database_key="b7"), "database_key is no key"),
            (keys_of(database_key=OWNER), "must differ from each other"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_damaged_file_is_named_and_its_content_is_not_told(self, data: bytes, reason: str) -> None:
        """The error says what is wrong; neither it nor any cause carries the text, which holds a secret."""
        with pytest.raises(DamagedError, match=reason) as caught:
            Identity.from_json(data, what="key file 'keys.json'")
        assert str(caught.value).startswith("key file 'keys.json' was damaged: ")
        assert str(caught.value).endswith("; restore it from a backup")
        assert DATABASE_KEY[:8] not in told(caught.value)

    @given(
        st.binary()
        | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
    )
    def test_any_bytes_are_an_identity_or_one_of_our_errors(self, data: bytes) -> None:
        """No input makes it raise anything else."""
        with pytest.raises((DamagedError, InvalidError)):
            Identity.from_json(data)


class TestEnvelope:
    """What lies beside a Pod's file, as a value and as JSON."""

    def test_it_opens_for_its_owner_only_with_the_right_key(self, owner: Identity) -> None:
        """The pair of name and secret opens it; neither alone does."""
        envelope = Envelope.seal(DATA_KEY, owner)
        assert envelope.open(owner) == DATA_KEY
        with pytest.raises(DeniedError, match=rf"envelope of owner '{OWNER}' does not open for owner '{OTHER_OWNER}'"):
            envelope.open(Identity(OTHER_OWNER, DATABASE_KEY))
        with pytest.raises(
            DeniedError,
            match=r"does not open with database key '[0-9a-f]{16}': it needs the database key 'c68fd77a4e88",
        ) as caught:
            envelope.open(Identity(OWNER, OTHER_DATABASE_KEY))
        assert OTHER_DATABASE_KEY not in told(caught.value)

    def test_an_envelope_of_the_first_release_opens(self, owner: Identity) -> None:
        """Format 1 is read for ever, from a file that this code did not write."""
        assert Envelope.from_json(ENVELOPE).open(owner) == DATA_KEY

    def test_its_file_comes_back_as_it_was(self) -> None:
        """Reading and writing again changes no byte."""
        assert Envelope.from_json(ENVELOPE).to_json() == ENVELOPE

    def test_it_names_the_key_inside_without_opening(self, owner: Identity) -> None:
        """A data key from elsewhere can be told to be this file's, before it is tried on the file."""
        assert Envelope.seal(DATA_KEY, owner).data_key_id == keys.key_id(DATA_KEY) == "2964be92ffc0d9ec"

    def test_it_tells_no_secret(self, owner: Identity) -> None:
        """Whoever has the file and not the database key learns nothing from it."""
        envelope = Envelope.seal(DATA_KEY, owner)
        for secret in (DATA_KEY.hex(), DATABASE_KEY):
            assert secret.encode() not in envelope.to_json()
            assert secret not in repr(envelope)

    def test_the_previous_key_opens_it_as_well(self, owner: Identity) -> None:
        """While a rotation is under way the envelope may need either."""
        rotating = Identity(OWNER, OTHER_DATABASE_KEY, previous_database_key=DATABASE_KEY)
        assert Envelope.seal(DATA_KEY, owner).open(rotating) == DATA_KEY
        assert Envelope.seal(DATA_KEY, rotating).open(rotating) == DATA_KEY

    def test_sealed_anew_it_holds_the_same_and_the_old_key_is_out(self, owner: Identity) -> None:
        """The data key stays; who has only the old database key opens the new envelope no more."""
        rotating = Identity(OWNER, OTHER_DATABASE_KEY, previous_database_key=DATABASE_KEY)
        anew = Envelope.seal(DATA_KEY, owner).rekey(rotating)
        assert anew.open(Identity(OWNER, OTHER_DATABASE_KEY)) == DATA_KEY
        with pytest.raises(DeniedError):
            anew.open(owner)

    def test_it_is_not_sealed_anew_without_a_key_that_opens_it(self, owner: Identity) -> None:
        """Nobody takes over an envelope by sealing it."""
        with pytest.raises(DeniedError):
            Envelope.seal(DATA_KEY, owner).rekey(Identity(OWNER, OTHER_DATABASE_KEY))

    def test_any_flipped_bit_of_the_file_is_found(self) -> None:
        """Not one bit may differ: not in a blank, not in the format, not in the check itself."""
        for bit in range(len(ENVELOPE) * 8):
            altered = bytearray(ENVELOPE)
            altered[bit // 8] ^= 1 << bit % 8
            with pytest.raises(DamagedError, match=r"^envelope 'a\.json' was damaged: .*; restore it from a backup$"):
                Envelope.from_json(bytes(altered), what="envelope 'a.json'")

    def test_a_file_cut_anywhere_is_found(self) -> None:
        """Every beginning of the file is damage, the empty one too."""
        for length in range(len(ENVELOPE)):
            with pytest.raises(DamagedError):
                Envelope.from_json(ENVELOPE[:length])

    @given(
        st.binary() | st.dictionaries(st.text(), st.text() | st.integers() | st.floats()).map(lambda x: checked(**x))
    )
    @example(b"[" * 50_000)
    @example(b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}")
    @example(b'{"check": ' + b"9" * 5_000 + b"}")
    def test_any_bytes_are_an_envelope_or_one_of_our_errors(self, data: bytes) -> None:
        """No input makes it raise anything else."""
        with pytest.raises((DamagedError, InvalidError)):
            Envelope.from_json(data)

    def test_a_newer_format_is_refused_and_both_are_named(self) -> None:
        """It is told from damage by its check, whatever its members are."""
        newer = checked(format=2, owner=OWNER, slot_1="c68fd77a4e88048c")
        with pytest.raises(
            InvalidError, match=r"envelope 'a\.json' has format 2; this Holdfast reads formats up to 1"
        ) as caught:
            Envelope.from_json(newer, what="envelope 'a.json'")
        assert caught.value.facts == {"format": 2, "supported": 1, "what": "envelope 'a.json'"}

    @pytest.mark.parametrize(
        "change,reason",
        [
            ({"format": 0}, "its format is not a number from 1 to 1"),
            ({"format": "1"}, "its format is not a number from 1 to 1"),
            ({"format": [1]}, "it is no JSON object of texts and numbers"),
            ({"more": 1}, "its members are not format, owner, key_id, data_key_id, wrapped_key, check"),
            ({"owner": "../../x"}, r"owner cannot be '\.\./\.\./x'"),
            ({"owner": None}, "owner cannot be None"),
            ({"wrapped_key": "00"}, "wrapped_key cannot be '00'"),
        ],
        ids=["format 0", "format as text", "a list", "one member more", "a path as owner", "no owner", "a short key"],
    )
    def test_a_file_made_up_with_a_fitting_check_is_damaged(self, change: dict[str, object], reason: str) -> None:
        """The check stops accidents; a strict form stops what somebody thought up."""
        with pytest.raises(DamagedError, match=reason):
            Envelope.from_json(checked(**{**members_of(ENVELOPE), **change}))

    @pytest.mark.parametrize(
        "change",
        [{"wrapped_key": "00" * 64}, {"data_key_id": "0" * 16}],
        ids=["another key inside", "another name for the key inside"],
    )
    def test_a_forged_envelope_is_damage_and_not_a_wrong_key(self, change: dict[str, object], owner: Identity) -> None:
        """Who rewrites it without its key is found out, and the owner is not sent to look for another key."""
        forged = Envelope.from_json(checked(**{**members_of(ENVELOPE), **change}))
        with pytest.raises(DamagedError, match=r"its own key 'c68fd77a4e88048c' does not open it"):
            forged.open(owner)

    def test_an_envelope_cannot_be_given_to_another_owner(self) -> None:
        """Even with the same database key: the owner is bound into what is encrypted."""
        moved = Envelope.from_json(checked(**{**members_of(ENVELOPE), "owner": OTHER_OWNER}))
        with pytest.raises(DamagedError):
            moved.open(Identity(OTHER_OWNER, DATABASE_KEY))


class FullDisk(Disk):
    """Has no room for a single byte."""

    def _write(self, fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class ImpatientDisk(Disk):
    """Waits for no lock."""

    def lock(self, path: StrPath, *, shared: bool = False, wait_s: float | None = 0) -> Lock:
        """Ask once."""
        return super().lock(path, shared=shared, wait_s=0)


class OvertakenDisk(Disk):
    """Another process creates each file in the moment before this one does."""

    def __init__(self, other: Callable[[], object]) -> None:
        self.other = other

    def create(self, path: StrPath, data: bytes | bytearray | memoryview, *, mode: int = 0o600) -> None:
        """Be second."""
        self.other()
        super().create(path, data, mode=mode)


# Makes a copy of folder argv[1] per attempt, in folder argv[2], and forks a child there whose attempt number k does
# what argv[3] says and is killed before its k-th call to the disk. Ends with the first child that comes through.
KILLER = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from holdfast import keys
from holdfast.disk import BusyError, Disk, Lock, StrPath

calls_left = 0

def dying(real):
    def call(*args, **kwargs):
        global calls_left
        if calls_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        calls_left -= 1
        return real(*args, **kwargs)
    return call

names = "_open _read _write _flush _link _rename _rename_new _unlink _mkdir _try_lock".split()
disk = type("DyingDisk", (Disk,), {name: dying(getattr(Disk, name)) for name in names})()
template, folder, action = Path(sys.argv[1]), Path(sys.argv[2]), compile(sys.argv[3], "action", "exec")
for number in itertools.count():
    home = folder / str(number)
    shutil.copytree(template, home)
    child = os.fork()
    if child == 0:
        calls_left = number
        exec(action)
        os._exit(0)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        break
"""


@pytest.fixture
def killed(home: Path, tmp_path: Path) -> Callable[[str], list[Path]]:
    """Return what copies of ``home`` look like after a process that did something there was killed, at each call."""

    def killed(action: str) -> list[Path]:
        home.mkdir(exist_ok=True)
        folder = tmp_path / "killed"
        folder.mkdir()
        subprocess.run([sys.executable, "-c", KILLER, home, folder, action], check=True)
        return sorted(folder.iterdir(), key=lambda copy: int(copy.name))

    return killed


def mode_of(path: Path) -> str:
    """The permission bits as `ls` would be asked for them, in octal."""
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def names_in(folder: Path) -> set[str]:
    """What is in a folder, the lock file aside."""
    return {path.name for path in folder.iterdir()} - {"keys.lock"}


def race(action: str, home: Path) -> set[str]:
    """What several processes print that do the same at once."""
    program = (
        "import sys; from pathlib import Path; from holdfast import keys; home = Path(sys.argv[1]);"
        f"print('ready', flush=True); sys.stdin.read(); print({action})"
    )
    command = [sys.executable, "-c", program, home]
    with ExitStack() as stack:
        racers = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(5)
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.close()
        printed = {racer.stdout.read() for racer in racers if racer.stdout is not None}
    assert {racer.returncode for racer in racers} == {0}
    return printed


class TestIdentityFile:
    """`keys.json` on a disk: made once, whole or absent, private, never lost."""

    def test_a_fresh_machine_gets_an_identity_of_its_own(self, home: Path) -> None:
        """Folder and file are made, closed to others, and the next call reads them."""
        made = keys.load_or_create_identity(home)
        assert keys.load_or_create_identity(home) == keys.read_identity(home) == made
        assert (home / "keys.json").read_bytes() == made.to_json()
        assert mode_of(home / "keys.json") == "0600"
        assert mode_of(home) == "0700"

    def test_without_one_reading_says_so_and_makes_none(self, home: Path) -> None:
        """Reading is not creating."""
        with pytest.raises(NotFoundError, match=r"could not read '.*keys\.json'"):
            keys.read_identity(home)
        assert not home.exists()

    def test_processes_that_make_one_at_once_get_the_same(self, home: Path) -> None:
        """One wins, the others read the winner's."""
        assert race("keys.load_or_create_identity(home).database_key", home) == {
            keys.read_identity(home).database_key + "\n"
        }

    def test_a_process_that_is_overtaken_reads_what_was_made(self, home: Path) -> None:
        """The one moment that a race seldom meets."""
        winners: list[Identity] = []
        disk = OvertakenDisk(lambda: winners.append(keys.load_or_create_identity(home)))
        assert keys.load_or_create_identity(home, disk=disk) == winners[0]

    @pytest.mark.parametrize("name", [f"{OWNER}.db", f"{OWNER}.db.restoring"])
    def test_none_is_made_beside_a_pod_that_it_would_not_open(self, home: Path, owner: Identity, name: str) -> None:
        """Its keys were lost: that is said, with the way back, instead of beginning an empty Pod in silence."""
        (home / "pods").mkdir(parents=True)
        (home / "pods" / name).touch()
        with pytest.raises(NotFoundError, match=r"there is a Pod, .* with 'store_keys --from-file'$"):
            keys.load_or_create_identity(home)
        with pytest.raises(NotFoundError), keys.open_identity(home):
            pass
        assert not (home / "keys.json").exists()
        keys.store_identity(home, owner, is_in_use=lambda _: True)
        assert keys.load_or_create_identity(home) == owner

    def test_a_process_killed_while_making_one_leaves_all_or_nothing(self, killed: Callable[[str], list[Path]]) -> None:
        """Whatever it was killed at, the next start has one identity and keeps it, and no half key lies about."""
        copies = killed("keys.load_or_create_identity(home / 'sub', disk=disk)")
        assert len(copies) > 10
        for copy in copies:
            found = keys.load_or_create_identity(copy / "sub")
            assert keys.read_identity(copy / "sub") == found
            # At most a second name of the same file stays: that process was killed between giving it the two.
            assert {path.read_bytes() for path in (copy / "sub").iterdir()} == {found.to_json()}

    def test_a_full_disk_is_said_and_leaves_nothing(self, home: Path) -> None:
        """Then there is room for the next attempt."""
        with pytest.raises(UnavailableError, match=r"could not create '.*keys\.json': the disk is full"):
            keys.load_or_create_identity(home, disk=FullDisk())
        assert names_in(home) == set()

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
    def test_a_file_open_to_others_is_refused_with_the_remedy(self, home: Path, mode: int) -> None:
        """A secret that others can read, or replace, is none."""
        made = keys.load_or_create_identity(home)
        path = home / "keys.json"
        path.chmod(mode)
        with pytest.raises(DeniedError) as caught:
            keys.load_or_create_identity(home)
        assert str(caught.value) == (
            f"key file '{path}' has mode {mode:04o} and others than its owner can reach it: "
            f"close it with 'chmod 600 {path}'"
        )
        assert caught.value.facts == {"path": str(path), "mode": f"{mode:04o}"}
        path.chmod(0o600)
        assert keys.read_identity(home) == made

    def test_a_path_that_no_system_can_have_is_refused(self, home: Path) -> None:
        """It comes from a setting; the error is ours."""
        with pytest.raises(InvalidError, match=r"a path holds text without NUL"):
            keys.load_or_create_identity(home / "a\0b")

    def test_a_link_a_folder_and_a_pipe_are_refused(self, home: Path, owner: Identity, tmp_path: Path) -> None:
        """They are not followed, not waited for, and not replaced."""
        home.mkdir()
        path = home / "keys.json"
        (tmp_path / "elsewhere").write_bytes(owner.to_json())
        (tmp_path / "elsewhere").chmod(0o600)
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InvalidError, match=r"keys\.json': it is a symbolic link"):
            keys.load_or_create_identity(home)
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(InvalidError, match=r"keys\.json': it is a symbolic link"):
            keys.load_or_create_identity(home)
        path.unlink()
        path.mkdir(mode=0o700)
        with pytest.raises(InvalidError, match=r"keys\.json': it is a folder"):
            keys.load_or_create_identity(home)
        path.rmdir()
        os.mkfifo(path, 0o600)
        with pytest.raises(InvalidError, match=r"keys\.json': it is a pipe"):
            keys.load_or_create_identity(home)
        assert not (tmp_path / "nowhere").exists()

    @pytest.mark.parametrize("data", [b"", IDENTITY[:100], b"\0" * 200])
    def test_a_damaged_file_is_never_taken_for_a_new_machine(self, home: Path, data: bytes) -> None:
        """Replacing it would destroy what may be the one copy of a key; it stays as it is."""
        keys.load_or_create_identity(home)
        (home / "keys.json").write_bytes(data)
        for attempt in (keys.load_or_create_identity, keys.read_identity):
            with pytest.raises(DamagedError, match=r"key file '.*keys\.json' was damaged"):
                attempt(home)
        with pytest.raises(DamagedError):
            keys.store_identity(home, Identity.new(), is_in_use=lambda _: False)
        assert (home / "keys.json").read_bytes() == data


class TestStoreIdentity:
    """Putting keys from elsewhere into a folder."""

    def test_keys_can_be_brought_to_a_fresh_machine(self, home: Path, owner: Identity) -> None:
        """Nothing is replaced, so nobody is asked."""
        keys.store_identity(home, owner, is_in_use=_not_asked)
        assert keys.read_identity(home) == owner
        assert mode_of(home / "keys.json") == "0600"

    def test_bringing_the_same_keys_again_changes_nothing(self, home: Path, owner: Identity) -> None:
        """An import that was done twice is one import."""
        keys.store_identity(home, owner, is_in_use=_not_asked)
        before = (home / "keys.json").stat()
        keys.store_identity(home, owner, is_in_use=_not_asked)
        assert (home / "keys.json").stat() == before

    def test_keys_in_use_are_never_replaced(self, home: Path, owner: Identity) -> None:
        """A Pod that they open would be lost; the error names owner and key, and nothing changed."""
        keys.store_identity(home, owner, is_in_use=_not_asked)
        asked: list[Identity] = []
        with pytest.raises(
            ConflictError, match=r"a Pod of owner '0a0a.*' needs its database key 'c68fd77a4e88048c'"
        ) as caught:
            keys.store_identity(home, Identity.new(), is_in_use=lambda present: asked.append(present) is None)
        assert asked == [owner]
        assert keys.read_identity(home) == owner
        assert names_in(home) == {"keys.json"}
        assert DATABASE_KEY not in told(caught.value)

    def test_replaced_keys_are_kept_under_their_id(self, home: Path, owner: Identity) -> None:
        """No key is destroyed: an envelope names the id, and the id names the file."""
        keys.store_identity(home, owner, is_in_use=_not_asked)
        other = Identity(OTHER_OWNER, OTHER_DATABASE_KEY)
        keys.store_identity(home, other, is_in_use=lambda _: False)
        assert keys.read_identity(home) == other
        kept = home / "keys.c68fd77a4e88048c.json"
        assert Identity.from_json(kept.read_bytes()) == owner
        assert mode_of(kept) == "0600"

    def test_keys_may_go_and_come_back(self, home: Path, owner: Identity) -> None:
        """What was kept aside before is kept once."""
        other = Identity(OTHER_OWNER, OTHER_DATABASE_KEY)
        for identity in (owner, other, owner, other):
            keys.store_identity(home, identity, is_in_use=lambda _: False)
        assert keys.read_identity(home) == other
        assert names_in(home) == {"keys.json", "keys.c68fd77a4e88048c.json", f"keys.{other.key_id}.json"}

    def test_a_kept_file_that_is_not_what_its_name_says_stops_it(self, home: Path, owner: Identity) -> None:
        """Before the keys are replaced, not after."""
        keys.store_identity(home, owner, is_in_use=_not_asked)
        planted = home / "keys.c68fd77a4e88048c.json"
        planted.write_bytes(Identity.new().to_json())
        planted.chmod(0o600)
        with pytest.raises(ConflictError, match=r"holds other keys than its name says"):
            keys.store_identity(home, Identity.new(), is_in_use=lambda _: False)
        assert keys.read_identity(home) == owner

    def test_keys_are_not_replaced_while_somebody_relies_on_them(self, home: Path) -> None:
        """An envelope that is being created in that moment would be lost."""
        with keys.open_identity(home) as held:
            with pytest.raises(BusyError):
                keys.store_identity(home, Identity.new(), is_in_use=lambda _: False, disk=ImpatientDisk())
            assert keys.read_identity(home) == held

    def test_keys_under_rotation_are_not_replaced(self, home: Path, owner: Identity) -> None:
        """One of the two keys opens an envelope, so they are in use whatever the caller knows."""
        rotating = Identity(OWNER, OTHER_DATABASE_KEY, previous_database_key=DATABASE_KEY)
        keys.store_identity(home, rotating, is_in_use=_not_asked)
        with pytest.raises(ConflictError):
            keys.store_identity(home, owner, is_in_use=lambda _: False)
        assert keys.read_identity(home) == rotating

    def test_a_process_killed_while_replacing_leaves_the_old_or_the_new(
        self, home: Path, owner: Identity, killed: Callable[[str], list[Path]]
    ) -> None:
        """And from the moment that the new one is there, the old one is kept."""
        keys.store_identity(home, owner, is_in_use=_not_asked)
        other = Identity(OTHER_OWNER, OTHER_DATABASE_KEY)
        copies = killed(
            f"keys.store_identity(home, keys.Identity({OTHER_OWNER!r}, {OTHER_DATABASE_KEY!r}),"
            " is_in_use=lambda _: False, disk=disk)"
        )
        found = [keys.read_identity(copy) for copy in copies]
        turn = found.index(other)
        assert found == [owner] * turn + [other] * (len(copies) - turn)
        assert turn > 10
        for copy in copies[turn:]:
            assert Identity.from_json((copy / "keys.c68fd77a4e88048c.json").read_bytes()) == owner
        for copy in copies[:turn]:
            keys.store_identity(copy, other, is_in_use=lambda _: False)
            assert keys.read_identity(copy) == other
            assert not list(copy.glob(".tmp-*"))


class TestEnvelopeFile:
    """The envelope on a disk."""

    def test_the_first_call_seals_a_new_data_key_and_the_next_one_reads_it(self, home: Path, owner: Identity) -> None:
        """So a Pod whose file was not made yet has one data key, however often its making was begun."""
        path = home / "pods" / "pod.db.json"
        made = keys.load_or_create_envelope(path, owner)
        assert len(made.open(owner)) == 32
        assert keys.load_or_create_envelope(path, owner) == keys.read_envelope(path) == made
        assert keys.load_or_create_envelope(home / "other.json", owner).data_key_id != made.data_key_id

    def test_file_and_envelope_open_elsewhere_with_the_owners_keys_alone(
        self, home: Path, owner: Identity, tmp_path: Path
    ) -> None:
        """Everything but the owner's keys lies beside the file."""
        made = keys.load_or_create_envelope(home / "pod.db.json", owner)
        (tmp_path / "copy.json").write_bytes((home / "pod.db.json").read_bytes())
        assert keys.read_envelope(tmp_path / "copy.json").open(Identity(OWNER, DATABASE_KEY)) == made.open(owner)

    def test_without_one_reading_says_so(self, home: Path) -> None:
        """A Pod's file without its envelope is not given a new one by reading."""
        with pytest.raises(NotFoundError, match=r"could not read '.*pod\.db\.json'"):
            keys.read_envelope(home / "pod.db.json")
        assert not home.exists()

    def test_a_damaged_one_is_never_replaced(self, home: Path, owner: Identity) -> None:
        """A new data key would not open the file beside it."""
        home.mkdir()
        path = home / "pod.db.json"
        path.write_bytes(ENVELOPE[:-1])
        with pytest.raises(DamagedError, match=r"envelope '.*pod\.db\.json' was damaged"):
            keys.load_or_create_envelope(path, owner)
        assert path.read_bytes() == ENVELOPE[:-1]

    def test_a_process_that_is_overtaken_reads_what_was_made(self, home: Path, owner: Identity) -> None:
        """Two data keys for one file would lose what one of them wrote."""
        winners: list[Envelope] = []
        path = home / "pod.db.json"
        disk = OvertakenDisk(lambda: winners.append(keys.load_or_create_envelope(path, owner)))
        assert keys.load_or_create_envelope(path, owner, disk=disk) == winners[0]

    def test_a_full_disk_is_said_and_leaves_nothing(self, home: Path, owner: Identity) -> None:
        """No data key is used that was not stored."""
        with pytest.raises(UnavailableError, match=r"the disk is full"):
            keys.load_or_create_envelope(home / "pod.db.json", owner, disk=FullDisk())
        assert names_in(home) == set()


class TestRotate:
    """A new database key for a Pod that stays readable, whatever happens on the way."""

    @pytest.fixture
    def pod(self, home: Path) -> Path:
        """The envelope of a Pod whose identity is in ``home``: the worked example."""
        keys.store_identity(home, Identity(OWNER, DATABASE_KEY), is_in_use=_not_asked)
        (home / "pod.db.json").write_bytes(ENVELOPE)
        return home / "pod.db.json"

    def test_the_new_key_opens_the_same_data_key_and_the_old_one_opens_nothing(
        self, home: Path, pod: Path, owner: Identity
    ) -> None:
        """That is what it is for; the owner's name stays."""
        rotated = keys.rotate(home, pod)
        assert keys.read_identity(home) == rotated
        assert rotated.owner_key == OWNER
        assert rotated.previous_database_key is None
        assert keys.read_envelope(pod).open(rotated) == DATA_KEY
        with pytest.raises(DeniedError, match=r"does not open with database key 'c68fd77a4e88048c'"):
            keys.read_envelope(pod).open(owner)

    def test_a_backup_made_before_opens_with_the_kept_keys(self, home: Path, pod: Path) -> None:
        """Its envelope needs the old key, and names the file that holds it."""
        backup = Envelope.from_json(ENVELOPE)
        keys.rotate(home, pod)
        kept = home / f"keys.{backup.key_id}.json"
        assert backup.open(Identity.from_json(kept.read_bytes())) == DATA_KEY
        assert mode_of(kept) == "0600"

    def test_each_rotation_makes_a_new_key(self, home: Path, pod: Path) -> None:
        """And keeps each retired one."""
        first, second = keys.rotate(home, pod), keys.rotate(home, pod)
        assert len({DATABASE_KEY, first.database_key, second.database_key}) == 3
        assert keys.read_envelope(pod).open(second) == DATA_KEY
        assert names_in(home) == {
            "keys.json",
            "keys.c68fd77a4e88048c.json",
            f"keys.{first.key_id}.json",
            "pod.db.json",
        }

    def test_a_process_killed_anywhere_leaves_a_pod_that_opens(
        self, pod: Path, killed: Callable[[str], list[Path]]
    ) -> None:
        """At each call to the disk: the next start opens it, and rotating again ends with one new key."""
        copies = killed(f"keys.rotate(home, home / {pod.name!r}, disk=disk)")
        assert len(copies) > 40
        rows: list[tuple[bool, bool]] = []
        for copy in copies:
            with keys.open_identity(copy) as identity:
                envelope = keys.read_envelope(copy / pod.name)
                assert envelope.open(identity) == DATA_KEY
            rows.append((identity.previous_database_key is not None, envelope.key_id != "c68fd77a4e88048c"))
            finished = keys.rotate(copy, copy / pod.name)
            assert keys.read_envelope(copy / pod.name).open(finished) == DATA_KEY
            assert keys.read_identity(copy) == finished
            assert finished.previous_database_key is None
            if identity.previous_database_key is not None:
                assert finished.database_key == identity.database_key
            assert not list(copy.glob(".tmp-*"))
        # Old and old; new with previous and old; new with previous and new; new and new; in this order, each seen.
        assert list(dict.fromkeys(rows)) == [(False, False), (True, False), (True, True), (False, True)]

    @pytest.mark.parametrize("is_sealed_anew", [False, True], ids=["before the envelope", "after the envelope"])
    def test_an_unfinished_rotation_opens_and_is_finished_by_the_next(
        self, home: Path, pod: Path, is_sealed_anew: bool
    ) -> None:
        """Both sides of the one moment in which the two files disagree: no third key is made."""
        rotating = Identity(OWNER, OTHER_DATABASE_KEY, previous_database_key=DATABASE_KEY)
        (home / "keys.json").write_bytes(rotating.to_json())
        if is_sealed_anew:
            pod.write_bytes(Envelope.seal(DATA_KEY, rotating).to_json())
        assert keys.read_envelope(pod).open(keys.read_identity(home)) == DATA_KEY
        assert keys.rotate(home, pod) == Identity(OWNER, OTHER_DATABASE_KEY)
        assert keys.read_envelope(pod).open(Identity(OWNER, OTHER_DATABASE_KEY)) == DATA_KEY

    def test_a_full_disk_changes_nothing(self, home: Path, pod: Path) -> None:
        """The old key opens the Pod as before."""
        with pytest.raises(UnavailableError, match=r"the disk is full"):
            keys.rotate(home, pod, disk=FullDisk())
        assert (home / "keys.json").read_bytes() == IDENTITY
        assert pod.read_bytes() == ENVELOPE
        assert names_in(home) == {"keys.json", "pod.db.json"}

    @pytest.mark.parametrize(
        "envelope,error",
        [
            (None, NotFoundError),
            (ENVELOPE[:-1], DamagedError),
            (Envelope.seal(DATA_KEY, Identity(OWNER, OTHER_DATABASE_KEY)).to_json(), DeniedError),
            (Envelope.seal(DATA_KEY, Identity(OTHER_OWNER, DATABASE_KEY)).to_json(), DeniedError),
        ],
        ids=["absent", "damaged", "another key's", "another owner's"],
    )
    def test_what_does_not_open_is_not_rotated(
        self, home: Path, pod: Path, envelope: bytes | None, error: type[HoldfastError]
    ) -> None:
        """Else the new key would open nothing and the old one be gone from its place."""
        pod.unlink()
        if envelope is not None:
            pod.write_bytes(envelope)
        with pytest.raises(error):
            keys.rotate(home, pod)
        assert (home / "keys.json").read_bytes() == IDENTITY
        assert names_in(home) - {pod.name} == {"keys.json"}

    def test_it_waits_for_those_who_rely_on_the_identity(self, home: Path, pod: Path, owner: Identity) -> None:
        """Inside the block, what was read of keys and envelope stays true, for any number of readers."""
        with keys.open_identity(home) as one, keys.open_identity(home) as two:
            with pytest.raises(BusyError):
                keys.rotate(home, pod, disk=ImpatientDisk())
            assert one == two == keys.read_identity(home) == owner
        assert keys.rotate(home, pod, disk=ImpatientDisk()) != owner


class TestPodKey:
    """The operator's key: from the environment, or a file that is made once."""

    def test_a_fresh_machine_gets_a_pod_key_of_its_own(self, home: Path) -> None:
        """Folder and file are made, closed to others, and the next call reads them."""
        key = keys.load_or_create_pod_key(home, {})
        assert (home / "pod.key").read_bytes() == key
        assert len(key) == 32
        assert keys.load_or_create_pod_key(home, {"PATH": "/bin"}) == key
        assert mode_of(home / "pod.key") == "0600"
        assert mode_of(home) == "0700"

    def test_processes_that_make_one_at_once_get_the_same(self, home: Path) -> None:
        """One wins, the others read the winner's."""
        printed = race("keys.load_or_create_pod_key(home, {}).hex()", home)
        assert printed == {(home / "pod.key").read_bytes().hex() + "\n"}

    def test_a_process_that_is_overtaken_reads_what_was_made(self, home: Path) -> None:
        """The one moment that a race seldom meets."""
        winners: list[bytes] = []
        disk = OvertakenDisk(lambda: winners.append(keys.load_or_create_pod_key(home, {})))
        assert keys.load_or_create_pod_key(home, {}, disk=disk) == winners[0]

    def test_a_process_killed_while_making_one_leaves_all_or_nothing(self, killed: Callable[[str], list[Path]]) -> None:
        """Whatever it was killed at, the next start has one whole key and keeps it."""
        copies = killed("keys.load_or_create_pod_key(home, {}, disk=disk)")
        assert len(copies) > 10
        for copy in copies:
            assert not (copy / "pod.key").exists() or (copy / "pod.key").stat().st_size == 32
            assert keys.load_or_create_pod_key(copy, {}) == keys.load_or_create_pod_key(copy, {})

    def test_a_full_disk_is_said_and_leaves_nothing(self, home: Path) -> None:
        """No key is used that was not stored."""
        with pytest.raises(UnavailableError, match=r"could not create '.*pod\.key': the disk is full"):
            keys.load_or_create_pod_key(home, {}, disk=FullDisk())
        assert names_in(home) == set()

    def test_a_file_open_to_others_is_refused_with_the_remedy(self, home: Path) -> None:
        """It protects the keys of all owners."""
        keys.load_or_create_pod_key(home, {})
        (home / "pod.key").chmod(0o640)
        with pytest.raises(
            DeniedError, match=r"has mode 0640 and others than its owner can reach it: close it with 'chmod 600"
        ):
            keys.load_or_create_pod_key(home, {})

    def test_a_link_is_refused(self, home: Path, tmp_path: Path) -> None:
        """Somebody else could have put it there, to a key that they know."""
        home.mkdir()
        (tmp_path / "known").write_bytes(bytes(32))
        (home / "pod.key").symlink_to(tmp_path / "known")
        with pytest.raises(InvalidError, match=r"pod\.key': it is a symbolic link"):
            keys.load_or_create_pod_key(home, {})

    @pytest.mark.parametrize("length", [0, 31, 33, 64])
    def test_a_file_of_another_length_is_damaged_and_stays(self, home: Path, length: int) -> None:
        """It was cut, or written by something else; a new key would open nothing of what the old one wrapped."""
        home.mkdir()
        path = home / "pod.key"
        path.write_bytes(b"k" * length)
        path.chmod(0o600)
        with pytest.raises(
            DamagedError, match=rf"key file '.*pod\.key' was damaged: it has {length} bytes, not 32; restore"
        ):
            keys.load_or_create_pod_key(home, {})
        assert path.read_bytes() == b"k" * length

    def test_the_environment_gives_the_key_and_no_file_is_made(self, home: Path) -> None:
        """A container has nowhere to keep one."""
        assert keys.load_or_create_pod_key(home, {"HOLDFAST_POD_KEY": "B7" * 32}) == b"\xb7" * 32
        assert not home.exists()

    @pytest.mark.parametrize("data", [b"\xb7" * 32, b"b7" * 32, b"b7" * 32 + b"\n", b"b7" * 32 + b"\r\n"])
    def test_an_orchestrators_file_gives_the_key(self, home: Path, tmp_path: Path, data: bytes) -> None:
        """Raw or in digits, as a link and readable in the whole container, which is how they are mounted."""
        (tmp_path / "data").write_bytes(data)
        (tmp_path / "data").chmod(0o444)
        (tmp_path / "mounted").symlink_to("data")
        assert keys.load_or_create_pod_key(home, {"HOLDFAST_POD_KEY_FILE": str(tmp_path / "mounted")}) == b"\xb7" * 32
        assert not home.exists()

    @pytest.mark.parametrize("bad", ["", "b7", "b7" * 31 + "zz", "b7 " * 32, "0x" + "b7" * 31, "b7" * 33, "ß" * 64])
    def test_what_is_no_key_is_refused_and_not_told(self, home: Path, tmp_path: Path, bad: str) -> None:
        """An empty value as well: making a key instead would hide that the operator's is missing."""
        (tmp_path / "mounted").write_bytes(bad.encode("latin-1"))
        for environ, where in (
            ({"HOLDFAST_POD_KEY": bad}, "HOLDFAST_POD_KEY"),
            ({"HOLDFAST_POD_KEY_FILE": str(tmp_path / "mounted")}, f"HOLDFAST_POD_KEY_FILE='{tmp_path}/mounted'"),
        ):
            with pytest.raises(InvalidError) as caught:
                keys.load_or_create_pod_key(home, environ)
            assert str(caught.value) == (
                f"{where} gives no key: {len(bad)} characters that are not 64 hexadecimal digits"
            )
            assert "b7" not in told(caught.value)
        assert not home.exists()

    def test_a_missing_orchestrators_file_is_said(self, home: Path, tmp_path: Path) -> None:
        """No key is made in its place."""
        with pytest.raises(NotFoundError, match=r"could not read '.*absent'"):
            keys.load_or_create_pod_key(home, {"HOLDFAST_POD_KEY_FILE": str(tmp_path / "absent")})
        assert not home.exists()

    def test_what_is_no_file_is_refused(self, home: Path, tmp_path: Path) -> None:
        """A folder, a pipe that nobody writes, links in a circle, nothing: each ends, and makes no key."""
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "circle").symlink_to("circle")
        for value in (tmp_path / "folder", tmp_path / "pipe", tmp_path / "circle", ""):
            with pytest.raises(InvalidError):
                keys.load_or_create_pod_key(home, {"HOLDFAST_POD_KEY_FILE": str(value)})
        assert not home.exists()

    def test_two_sources_in_the_environment_are_refused(self, home: Path) -> None:
        """Which of them wins would be a guess, even if they agree."""
        environ = {"HOLDFAST_POD_KEY": "b7" * 32, "HOLDFAST_POD_KEY_FILE": "/run/secrets/pod"}
        with pytest.raises(
            InvalidError,
            match=r"^HOLDFAST_POD_KEY and HOLDFAST_POD_KEY_FILE are both set: only one may say what the Pod key is$",
        ):
            keys.load_or_create_pod_key(home, environ)


def test_the_log_names_keys_by_their_ids_only(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A journey through everything that is logged: which key, never the key."""
    caplog.set_level(logging.DEBUG)
    with keys.open_identity(home) as first:
        data_key = keys.load_or_create_envelope(home / "pod.db.json", first).open(first)
    second = keys.rotate(home, home / "pod.db.json")
    third = Identity.new()
    keys.store_identity(home, third, is_in_use=lambda _: False)
    pod_key = keys.load_or_create_pod_key(home, {})
    logged = "\n".join(repr(vars(record)) for record in caplog.records)
    assert [record.message for record in caplog.records] == [
        "key_file.created",
        "key_file.created",
        "key_file.created",
        "identity.rotated",
        "key_file.created",
        "identity.replaced",
        "key_file.created",
    ]
    assert second.key_id in logged
    for secret in (first.database_key, second.database_key, third.database_key, data_key.hex(), pod_key.hex()):
        assert secret not in logged
    for raw in (data_key, pod_key):
        assert repr(raw)[2:-1] not in logged


def _not_asked(_: Identity) -> bool:
    pytest.fail("nothing is replaced, so there is nothing to ask")
