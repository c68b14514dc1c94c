"""What a store may hold, and how it is shown and travels."""

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidError
from holdfast.values import Kind, check, fit, from_ms, is_plain, item_id, refusal, shown, to_ms, type_name

ACCEPTED = ["", "é", "\U0001f600", "\ufffe", 0, True, False, -(2**63), 2**63 - 1, -0.0, 5e-324, 1.7976931348623157e308]
REFUSED = [
    (2**63, "an integer must fit in 64 bits"),
    (-(2**63) - 1, "an integer must fit in 64 bits"),
    (math.nan, "a float must be finite"),
    (math.inf, "a float must be finite"),
    (-math.inf, "a float must be finite"),
    ("a\0", "text must not hold NUL"),
    ("é\0", "text must not hold NUL"),
    ("ab\ud800", "text must not hold a lone surrogate (at character 2)"),
    ("\udfff", "text must not hold a lone surrogate (at character 0)"),
    (None, "it is NoneType, not text, integer, float or boolean"),
    ([1], "it is list, not text, integer, float or boolean"),
    (b"x", "it is bytes, not text, integer, float or boolean"),
    (1j, "it is complex, not text, integer, float or boolean"),
    (datetime(2020, 1, 1, tzinfo=UTC), "it is datetime, not text, integer, float or boolean"),
]


@pytest.mark.parametrize("value", ACCEPTED)
def test_what_every_store_holds_is_accepted(value: Any) -> None:
    """Text, 64-bit integers, finite floats and booleans, to their limits."""
    check(value, "it")
    assert refusal(value) is None


@pytest.mark.parametrize("value, reason", REFUSED)
def test_what_some_store_cannot_hold_is_refused_with_its_reason(value: Any, reason: str) -> None:
    """The message names what it was for, the value, and why not."""
    with pytest.raises(InvalidError) as caught:
        check(value, "variable 'x'")
    assert str(caught.value) == f"variable 'x' cannot be {shown(value)}: {reason}"
    assert caught.value.facts == {"value": shown(value)}


def test_a_value_is_shown_short_and_printable() -> None:
    """A message stays readable and can be encoded, whatever the value is; a gigabyte is not spelled out."""
    assert shown("it's") == '"it\'s"'
    assert shown(1.5) == "1.5"
    assert shown("\ud800\0") == r"'\ud800\x00'"
    assert shown("x" * 201) == "'" + "x" * 48 + "'… (201 characters)"
    assert shown([1] * 100) == "[1, 1, 1, 1, 1, 1, …]"
    assert shown(["x" * 40] * 3) == "['" + "x" * 40 + "', 'xxxx… (132 characters)"
    assert shown(b"x" * 10**6) == "b'" + "x" * 48 + "'… (1000000 bytes)"
    assert shown({"a": [b"x" * 100]}) == "{'a': [b'" + "x" * 48 + "'… (100 bytes)]}"
    assert shown(2**63) == "9223372036854775808"
    assert shown(10**5000) == "an integer of 16610 bits"
    assert shown([10**5000]) == "[an integer of 16610 bits]"


def test_what_cannot_be_shown_is_shown_as_its_type() -> None:
    """An error message is made whatever the value does when it is asked for its repr, itself or inside another."""

    class Shy:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    class Numbers(list[int]):
        pass

    class Odd:
        def __repr__(self) -> Any:
            return 5

    assert shown(Shy()) == "<Shy>"
    assert shown([Shy()]) == "<list>"
    assert shown(Odd()) == "<Odd>"
    assert shown(Numbers([10**5000])) == "<Numbers>"
    with pytest.raises(InvalidError, match="it cannot be <Shy>: it is Shy, not text"):
        check(Shy(), "it")


def test_what_a_class_calls_itself_is_not_what_it_is() -> None:
    """A class named as a built-in one, or derived from one, is shown as far as it can be."""
    impostor = type("int", (), {})
    text = type("Text", (str,), {})("x" * 10**6)
    assert shown(impostor()) == "<int>"
    assert shown(text) == "'" + "x" * 48 + "'… (1000000 characters)"


@pytest.mark.parametrize(
    "text, is_name",
    [("Dog", True), ("a_1", True), ("D" * 64, True), ("D" * 65, False), ("", False), ("1a", False), ("_a", False),
     ("a-b", False), ("é", False), ("a\n", False)],
)  # fmt: skip
def test_a_type_name_is_a_letter_and_at_most_63_more_characters(text: str, is_name: bool) -> None:
    """Names become part of SQL, paths and URLs: nothing in them needs escaping."""
    assert (type_name.fullmatch(text) is not None) is is_name


@pytest.mark.parametrize(
    "text, is_id",
    [("0", True), ("-_aZ9", True), ("x" * 64, True), ("x" * 65, False), ("", False), ("a/b", False), ("a.b", False),
     ("a\n", False), ("é", False)],
)  # fmt: skip
def test_an_id_is_1_to_64_safe_characters(text: str, is_id: bool) -> None:
    """Clients may bring their own ids; nothing in them needs escaping."""
    assert (item_id.fullmatch(text) is not None) is is_id


def test_instants_travel_as_milliseconds_rounded_down() -> None:
    """Before 1970 as after it; the zone does not matter, a missing one does."""
    east = timezone(timedelta(hours=2))
    assert to_ms(datetime(1970, 1, 1, 2, 0, 1, 999, tzinfo=east), "it") == 1000
    assert to_ms(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "it") == -1
    assert from_ms(-1) == datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    assert from_ms(-62_135_596_800_000) == datetime(1, 1, 1, tzinfo=UTC)
    assert from_ms(253_402_300_799_999) == datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    with pytest.raises(InvalidError, match=r"^it cannot be datetime\.datetime\(2020, 1, 1, 0, 0\): .* time zone"):
        to_ms(datetime(2020, 1, 1), "it")  # noqa: DTZ001 -- a datetime without a zone is the case
    for ms in (-62_135_596_800_001, 253_402_300_800_000, 2**63):
        with pytest.raises(InvalidError, match=rf"^{ms} is not a date"):
            from_ms(ms)


@given(st.datetimes(timezones=st.just(UTC)))
def test_an_instant_is_read_back_to_the_millisecond(instant: datetime) -> None:
    """Whatever year it is."""
    read = from_ms(to_ms(instant, "it"))
    assert read == instant.replace(microsecond=instant.microsecond // 1000 * 1000)
    assert read.tzinfo is UTC


@pytest.mark.parametrize(
    "kind, value, stored",
    [
        (Kind.TEXT, "é", "é"),
        (Kind.INTEGER, 2**63 - 1, 2**63 - 1),
        (Kind.REAL, 0.1, 0.1),
        (Kind.REAL, 3, 3.0),
        (Kind.REAL, -(2**53), -9007199254740992.0),
        (Kind.BOOL, False, False),
        (Kind.DATETIME, -1, -1),
    ],
)
def test_a_value_fits_its_kind_and_a_whole_number_fits_a_real(kind: Kind, value: Any, stored: Any) -> None:
    """Nothing is converted but an integer that a float holds exactly, because JSON writers drop the ``.0``."""
    assert (type(fit(kind, value, "it")), fit(kind, value, "it")) == (type(stored), stored)


@pytest.mark.parametrize(
    "kind, value, words",
    [
        (Kind.TEXT, 1, "it is declared Text"),
        (Kind.TEXT, None, "it is declared Text"),
        (Kind.TEXT, "\0", "text must not hold NUL"),
        (Kind.INTEGER, True, "it is declared Integer"),
        (Kind.INTEGER, 1.0, "it is declared Integer"),
        (Kind.INTEGER, 2**63, "an integer must fit in 64 bits"),
        (Kind.REAL, True, "it is declared Real"),
        (Kind.REAL, 2**53 + 1, "it is declared Real"),
        (Kind.REAL, "1.0", "it is declared Real"),
        (Kind.REAL, math.nan, "a float must be finite"),
        (Kind.BOOL, 1, "it is declared Bool"),
        (Kind.DATETIME, 1.5, "it is declared DateTime"),
        (Kind.DATETIME, 2**60, "is not a date"),
        (Kind.DATETIME, datetime(2020, 1, 1, tzinfo=UTC), "it is declared DateTime"),
    ],
)
def test_a_value_of_another_kind_is_refused(kind: Kind, value: Any, words: str) -> None:
    """The message says what was declared; 1 is not True, and no float is an integer."""
    assert not is_plain(kind, value)
    with pytest.raises(InvalidError, match=words):
        fit(kind, value, "it")


@given(
    st.sampled_from(Kind),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\0", "\ud800"]),
)
def test_what_is_plain_fits_as_it_is(kind: Kind, value: Any) -> None:
    """The quick answer never contradicts the thorough one."""
    if is_plain(kind, value):
        assert fit(kind, value, "it") is value
