"""``holdfast keys`` and ``store_keys``: keys are made, brought, taken away and replaced, and never lost or printed."""

import json
import os
import stat
from pathlib import Path

import pytest

from holdfast import PodClient
from tests.cli.conftest import DATABASE_KEY, OWNER, Call

KEYS = {"format": 1, "owner_key": OWNER, "database_key": DATABASE_KEY, "check": "b9dc6f70b3efa659"}


def secret_of(home: Path) -> str:
    """Return the secret in ``home``."""
    return str(json.loads((home / "keys.json").read_text())["database_key"])


def test_show_names_each_key_and_prints_no_secret(call: Call, dogs: Path) -> None:
    """Ids, modes and paths of identity, envelope, kept identities and Pod key."""
    secret, pod_key = secret_of(dogs), (dogs / "pod.key").read_bytes().hex()
    assert call("keys", "rotate").code == 0

    lines, document = call("keys", "show"), call("keys", "show", "--json")

    found = document.document["keys"]
    assert [each["what"] for each in found] == ["identity", "envelope", "kept identity", "Pod key"]
    assert {each["mode"] for each in found} == {"0600"}
    assert found[0]["path"] == str(dogs / "keys.json")
    assert found[0]["key_id"] == found[1]["key_id"] != found[2]["key_id"]
    assert [row[0] for row in lines.rows] == ["what", "identity", "envelope", "kept identity", "Pod key"]
    for hidden in (secret, secret_of(dogs), pod_key):
        assert hidden not in lines.out + document.out


def test_show_on_a_fresh_machine_makes_nothing(call: Call, home: Path) -> None:
    """It says that there is nothing, and that stays so."""
    answer = call("keys", "show")

    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"There are no keys in '{home}' yet")
    assert not home.exists()


def test_show_names_the_variable_that_the_pod_key_comes_from(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key in the environment is named by its id and not printed."""
    monkeypatch.setenv("HOLDFAST_POD_KEY", "00" * 32)

    answer = call("keys", "show", "--json")

    assert answer.document["keys"] == [{"what": "Pod key", "key_id": "9ec55933be8d5a88", "path": "HOLDFAST_POD_KEY"}]
    assert not home.exists()


def test_rotate_replaces_the_secret_and_keeps_the_pod_and_the_old_keys(call: Call, dogs: Path) -> None:
    """The Pod opens with the new keys, while it is open in another client too; the old ones are kept aside."""
    old = secret_of(dogs)
    with PodClient() as client:
        answer = call("keys", "rotate", "--json")
        assert client.get("bob").id == "bob"

    assert answer.code == 0
    assert secret_of(dogs) != old
    assert old not in answer.out
    assert json.loads(Path(answer.document["kept"]).read_text())["database_key"] == old
    with PodClient() as client:
        assert client.get("bob").id == "bob"


def test_store_keys_makes_keys_once(call_store_keys: Call, home: Path) -> None:
    """The first call makes them, readable by the owner alone; the second finds them."""
    first, second = call_store_keys("--json"), call_store_keys("--json")

    assert first.code == second.code == 0
    assert first.document == second.document
    assert secret_of(home) not in first.out
    assert stat.S_IMODE((home / "keys.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("way", ["file", "stdin", "options", "underscores"])
def test_store_keys_brings_keys(way: str, shell: Call, home: Path, tmp_path: Path) -> None:
    """From a copy of keys.json, from standard input, or as options in either spelling."""
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(KEYS))
    words, options = {
        "file": (["--from-file", copy], {}),
        "stdin": (["--from-file", "-"], {"input": json.dumps(KEYS)}),
        "options": (["--owner-key", OWNER, "--database-key", DATABASE_KEY], {}),
        "underscores": (["--owner_key", OWNER, "--database_key", DATABASE_KEY], {}),
    }[way]

    answer = shell("store_keys", *words, **options)

    assert (answer.code, answer.err) == (0, "")
    assert DATABASE_KEY not in answer.out
    assert json.loads((home / "keys.json").read_text()) == KEYS


def test_store_keys_replaces_keys_that_no_pod_needs_and_keeps_them(call_store_keys: Call, home: Path) -> None:
    """New keys that were made too early are set aside and not lost."""
    call_store_keys()
    early = (home / "keys.json").read_text()

    assert call_store_keys("--owner-key", OWNER, "--database-key", DATABASE_KEY).code == 0

    [kept] = home.glob("keys.*.json")
    assert kept.read_text() == early


@pytest.mark.parametrize("is_moved", [False, True])
def test_store_keys_does_not_replace_keys_that_a_pod_needs(
    is_moved: bool, call_store_keys: Call, dogs: Path, tmp_path: Path
) -> None:
    """It ends with 5 and changes nothing; once the Pod is somewhere else, nothing stands in the way."""
    before = (dogs / "keys.json").read_text()
    if is_moved:
        for path in (dogs / "pods").glob("*.[dj]*"):
            path.rename(tmp_path / path.name)

    answer = call_store_keys("--owner-key", OWNER, "--database-key", DATABASE_KEY)

    assert answer.code == (0 if is_moved else 5)
    assert ((dogs / "keys.json").read_text() == before) is not is_moved


def test_store_keys_takes_keys_away_into_a_file_or_to_standard_output(
    call_store_keys: Call, home: Path, tmp_path: Path
) -> None:
    """A new file that the owner alone can read; one that exists is not overwritten; ``-`` prints them."""
    copy = tmp_path / "copy.json"
    assert call_store_keys("--export", copy).code == 4  # there are none: none are made just to be taken away
    call_store_keys("--owner-key", OWNER, "--database-key", DATABASE_KEY)

    answer = call_store_keys("--export", copy)

    assert answer.code == 0
    assert DATABASE_KEY not in answer.out
    assert json.loads(copy.read_text()) == KEYS
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert call_store_keys("--export", copy).code == 5
    assert call_store_keys("--export", "-").document == KEYS


@pytest.mark.parametrize(
    "words",
    [
        ["--owner-key", OWNER],
        ["--database-key", DATABASE_KEY],
        ["--owner-key", OWNER, "--database-key", "short"],
        ["--owner-key", OWNER, "--database-key", OWNER],
        ["--from-file", "there is no such file"],
        ["--from-file", os.devnull],
        ["--export", ""],
    ],
)
def test_keys_that_are_none_are_refused_and_not_printed(words: list[str], call_store_keys: Call, home: Path) -> None:
    """Half a pair, a wrong length, twice the same, no file: 2, and nothing is made."""
    answer = call_store_keys(*words)

    assert answer.code == 2
    assert DATABASE_KEY not in answer.err
    assert not home.exists()


def test_store_keys_makes_none_beside_a_pod_that_they_would_not_open(call_store_keys: Call, dogs: Path) -> None:
    """The keys were lost: 4, and the way back; a copy of them brings the Pod back."""
    copy = (dogs / "keys.json").rename(dogs.with_name("copy.json"))

    answer = call_store_keys()

    assert answer.code == 4
    assert "store_keys --from-file" in answer.err
    assert not (dogs / "keys.json").exists()
    assert call_store_keys("--from-file", copy).code == 0
    with PodClient() as client:
        assert client.exists("bob")
