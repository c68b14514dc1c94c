"""What callers may rely on when something fails."""

import copy
import pickle

import pytest

from holdfast.errors import (
    ConflictError,
    DamagedError,
    DeniedError,
    FencedError,
    HoldfastError,
    InvalidError,
    NotFoundError,
    PluginError,
    UnavailableError,
)

KINDS = [
    (HoldfastError, Exception, 500, 1),
    (InvalidError, ValueError, 422, 2),
    (DeniedError, PermissionError, 403, 3),
    (NotFoundError, LookupError, 404, 4),
    (ConflictError, HoldfastError, 409, 5),
    (FencedError, ConflictError, 409, 5),
    (UnavailableError, ConnectionError, 503, 6),
    (DamagedError, UnavailableError, 503, 6),
    (PluginError, HoldfastError, 502, 7),
]


@pytest.mark.parametrize("kind, base, http_status, exit_code", KINDS)
def test_each_kind_has_its_base_its_status_and_its_exit_code(
    kind: type[HoldfastError], base: type[Exception], http_status: int, exit_code: int
) -> None:
    """What the docs say of each kind: caught as what Python calls it, told apart by a server and by a shell."""
    assert issubclass(kind, (HoldfastError, base))
    assert issubclass(kind, HoldfastError)
    assert issubclass(kind, base)
    assert (kind.http_status, kind.exit_code) == (http_status, exit_code)


@pytest.mark.parametrize("kind", [kind for kind, *_ in KINDS])
def test_an_error_is_its_message_and_keeps_its_facts(kind: type[HoldfastError]) -> None:
    """The text is the sentence alone, also where Python's own errors would show a number or a tuple."""
    error = kind("'x' is taken", id="x", version=3)
    assert str(error) == error.message == "'x' is taken"
    assert error.facts == {"id": "x", "version": 3}


@pytest.mark.parametrize("kind", [kind for kind, *_ in KINDS])
def test_an_error_survives_the_way_to_another_process(kind: type[HoldfastError]) -> None:
    """Pickled or copied, it is of the same kind with the same message, facts and notes."""
    error = kind("'x' is taken", id="x")
    error.add_note("while importing")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is kind
        assert (other.message, other.facts, other.__notes__) == ("'x' is taken", {"id": "x"}, ["while importing"])


def test_an_error_without_notes_gets_none_on_the_way() -> None:
    """What was never annotated is shown as before."""
    assert getattr(pickle.loads(pickle.dumps(InvalidError("no"))), "__notes__", []) == []
