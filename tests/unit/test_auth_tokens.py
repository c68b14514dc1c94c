"""Sealed tokens: what was sealed comes back, and nobody without the key reads, makes or changes one."""

import base64
import json
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import keys
from holdfast.auth import Rights, Token, rights_of, seal, unseal
from holdfast.errors import DeniedError, InvalidError
from holdfast.plugins.source import source_of
from holdfast.runs import Fence

KEY = b"\x51" * 32
OWNER = "0a" * 32
TOKEN = Token(
    owner=OWNER,
    state="s1",
    run="r1",
    epoch=3,
    holder="h-1",
    rights=Rights(reads=frozenset({"Person", "Book"}), writes=frozenset({"Book"}), secrets=True),
    expires_ms=2_000,
)
SEALED = (
    "hft1.z2LsEOMEIlMhqjW4C0Cw2XMcBld5wZSOnXQRK95YRP-i_s2MmPbF4JZDGcbUi9Xifq8gS_UjmtWCOWnkTOprZM-nt68dF-9"
    "1dcV8ueVetxKx_8i0D7hrhoyxEdYZm-QUp92bN4jJN8qEGXF2_X94ldDSxXjCRrUbvKJFKm5XJH5CSLn8zX9l0grWOFM_S82rNae"
    "79k-CTr6gPKKKuKXBpyCDIU9BSJGKCvDFGR6W-f_UcmRWOZCBnbuek16E-oFYMMTw_PcP7imS4FC9D83HNRkR-O1gkD8EQ0pby1N"
    "rhhz0FVI5LqgSIrCy"
)
"""`TOKEN` as the first release sealed it."""

types = st.frozensets(st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True), max_size=5)
tokens = st.builds(
    Token,
    owner=st.text(max_size=64),
    state=st.text(max_size=64),
    run=st.text(max_size=64),
    epoch=st.integers(0, 2**63),
    holder=st.text(max_size=64),
    rights=st.builds(Rights, reads=types, writes=types, secrets=st.booleans()),
    expires_ms=st.integers(1, 2**53),
)


@given(tokens)
def test_what_was_sealed_comes_back(token: Token) -> None:
    """As text that fits into a header, and that is another one each time."""
    text = seal(token, KEY)

    assert unseal(text, KEY, 0) == token
    assert seal(token, KEY) != text
    assert text.startswith("hft1.")
    assert text[5:].replace("-", "").replace("_", "").isalnum()
    assert text.isascii()


def test_a_token_of_the_first_release_opens() -> None:
    """Its form and the derivation of its key stay: runs outlive the server that gave them their token."""
    assert unseal(SEALED, KEY, 0) == TOKEN


def test_a_token_carries_the_fence_of_its_claim() -> None:
    """State, epoch and holder, which every write is checked for."""
    assert TOKEN.fence == Fence(state="s1", epoch=3, holder="h-1")


def test_a_token_expires_at_its_millisecond() -> None:
    """Up to it the token opens; the error names the run."""
    assert unseal(SEALED, KEY, 1_999) == TOKEN
    for now_ms in (2_000, 2**60):
        with pytest.raises(DeniedError, match=r"^the token of run 'r1' has expired: start the run again$"):
            unseal(SEALED, KEY, now_ms)


@given(st.integers(0, len(SEALED) - 1), st.characters(max_codepoint=0x17F))
def test_a_token_with_any_letter_changed_is_denied(at: int, letter: str) -> None:
    """Also the last one, of whose bits not all are of a byte: one token is one text."""
    if letter != SEALED[at]:
        assert refused(SEALED[:at] + letter + SEALED[at + 1 :])


@given(st.integers(0, len(SEALED) - 1), st.text(max_size=3))
def test_a_token_that_was_cut_or_added_to_is_denied(at: int, more: str) -> None:
    """At any letter."""
    assert refused(SEALED[:at] + more)
    if more:
        assert refused(SEALED + more)
        assert refused(more + SEALED)


@pytest.mark.parametrize(
    "text",
    ["", "hft1.", SEALED[5:], "hft2." + SEALED[5:], "hft1.hft1." + SEALED[5:], SEALED + "=", "x" * 10**6, "\ud800"],
)
def test_what_is_no_token_is_denied(text: str) -> None:
    """With the same words, whatever is wrong."""
    assert refused(text)


def test_a_token_of_another_pod_is_denied() -> None:
    """With the same words."""
    assert refused(seal(TOKEN, b"\x52" * 32))


def test_what_else_was_sealed_under_the_same_key_is_no_token() -> None:
    """An entry of the keyring, or anything else for another purpose or owner."""
    content = json.dumps({"owner": OWNER}).encode()
    for purpose, owner in (("keyring 1", ""), ("token 1", OWNER), ("token 2", "")):
        sealed = keys.encrypt(content, KEY, purpose=purpose, owner=owner)
        assert keys.decrypt(sealed, KEY, purpose=purpose, owner=owner) == content
        text = "hft1." + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
        assert refused(text)


def refused(text: str) -> bool:
    """Say that a text is denied, and that the error, with its causes, shows nothing of it."""
    with pytest.raises(DeniedError) as caught:
        unseal(text, KEY, 0)
    assert str(caught.value) == "the token does not open here: it is not of this Pod, or it was altered"
    assert caught.value.facts == {}
    told = "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__cause__ is caught.value.__context__ is None
    return len(text) < 12 or text not in told


def test_a_token_tells_nothing_to_who_has_no_key() -> None:
    """Neither types nor owner stand in it."""
    padded = SEALED[5:] + "=" * (-len(SEALED[5:]) % 4)
    content = base64.urlsafe_b64decode(padded)
    for word in (b"Person", b"Book", OWNER.encode(), b"r1", b"reads"):
        assert word not in content


def test_a_token_that_is_too_long_for_a_header_is_not_made() -> None:
    """A few hundred types fit; the error says how many were too many."""
    rights = Rights(reads=frozenset(f"Type{number:06}" for number in range(300)))
    assert len(seal(replace(TOKEN, rights=rights), KEY)) < 7_000
    rights = Rights(reads=rights.reads, writes=rights.reads)
    with pytest.raises(InvalidError, match=r"^run 'r1' cannot be given a token for 600 item types: it would have "):
        seal(replace(TOKEN, rights=rights), KEY)


def test_a_token_that_is_longer_than_any_is_not_looked_at() -> None:
    """Be it sealed with the right key."""
    data = base64.urlsafe_b64decode(SEALED[5:] + "=" * (-len(SEALED[5:]) % 4))
    content = keys.decrypt(data, KEY, purpose="token 1", owner="")
    assert content is not None
    for spaces, is_opened in ((4_000, True), (6_000, False)):
        sealed = keys.encrypt(content + b" " * spaces, KEY, purpose="token 1", owner="")
        text = "hft1." + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
        assert unseal(text, KEY, 0) == TOKEN if is_opened else refused(text)


def test_a_key_of_another_length_is_refused() -> None:
    """It is never padded or cut."""
    for call in (lambda: seal(TOKEN, bytes(31)), lambda: unseal(SEALED, bytes(33), 0)):
        with pytest.raises(InvalidError, match="a key has 32"):
            call()


@pytest.mark.parametrize(
    "properties, rights",
    [
        ({}, Rights()),
        ({"reads": "[]", "writes": '["Book", "Book"]'}, Rights(writes=frozenset({"Book"}))),
        ({"reads": ' ["Person","Book"] ', "status": "idle"}, Rights(reads=frozenset({"Person", "Book"}))),
    ],
)
def test_the_rights_of_a_run_are_two_lists_of_types(properties: dict[str, str], rights: Rights) -> None:
    """An absent one is empty; secrets are never among them."""
    assert rights_of(properties) == rights


@pytest.mark.parametrize(
    "text", ["", "Person", "null", '"Person"', '{"Person": 1}', "[1]", "[null]", '["Per son"]', '["*"]', "[" * 10**5, 7]
)
def test_rights_that_are_no_list_of_types_are_refused(text: str) -> None:
    """Never taken for none or for all; the error names the property."""
    for name in ("reads", "writes"):
        with pytest.raises(InvalidError, match=f"^'{name}' of a run cannot be .*: it is a JSON list of item types$"):
            rights_of({name: text})


def test_metadata_grants_rights_as_lists(tmp_path: Path) -> None:
    """They become what a PluginRun holds; what is no list of types is refused with the place."""
    path = tmp_path / "metadata.json"
    metadata = {"pluginModule": "m", "pluginName": "P", "reads": ["Person"], "writes": []}
    path.write_text(json.dumps(metadata))
    properties = source_of(str(path)).properties
    assert (properties["reads"], properties["writes"]) == ('["Person"]', "[]")
    assert rights_of(properties) == Rights(reads=frozenset({"Person"}))

    for wrong in (["Per son"], "Person", {"Person": True}, [1], 7):
        path.write_text(json.dumps({**metadata, "writes": wrong}))
        with pytest.raises(InvalidError, match="writes"):
            source_of(str(path))
