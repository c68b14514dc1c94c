"""A namespace of variables, and what it needs of the place where they are kept: no more than `Variables` says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Protocol, Self

from holdfast.errors import InvalidError, NotFoundError
from holdfast.values import MAX_INTEGER, MIN_INTEGER, Value, refusal, shown

Changes = Mapping[str, Value | None]
"""New values by the name of the variable; None: it goes."""

_METHODS: Final = frozenset({"get", "set", "load", "store"})


class StateError(InvalidError):
    """No variable can hold this value, or have this name; or a file has such a one, which nothing changes then."""


class AbsentError(NotFoundError, KeyError, AttributeError):
    """There is no variable of this name."""


class Variables(Protocol):
    """What a place for variables must offer: namespaces of named values.

    Names and values were checked before they come here (see `StateNamespace.set`); a place may refuse more of them
    with an InvalidError. A namespace is there as long as it has variables.
    """

    def read(self, namespace: str) -> Mapping[str, Value]:
        """Return the variables of a namespace by name; empty if there is no such namespace.

        Includes all that this object wrote, durable or not, and in a transaction what its block wrote. What other
        processes wrote since may be missing until `load`. The caller changes nothing in it and does not keep it.

        Raises:
            DamagedError: What is stored is not what was written, and there is nothing to restore it from.
            StateError: Somebody stored there what no variable can hold.
        """
        ...

    def find(self, namespace: str, name: str) -> Value | None:
        """Return one variable of what `read` returns, None if it is absent."""
        ...

    def put(self, namespace: str, name: str, value: Value) -> None:
        """Give one variable a value; what `write` does with it alone."""
        ...

    def write(self, namespace: str, changes: Changes) -> None:
        """Change some variables together: all of them, or none if an error is raised.

        The others keep the values that they have where they are stored, which other processes may have changed. Each
        place says when this is durable; in a transaction it is with the block, or never.
        """
        ...

    def load(self, namespace: str) -> None:
        """Let the next `read` see what is stored now; what was written here and is not stored yet stays on top."""
        ...

    def store(self, namespace: str) -> None:
        """Return when all that was written to the namespace is durable; nothing happens inside a transaction."""
        ...


class Known:
    """What a namespace answers without asking the place for its variables: ``shown``, as far as that goes."""

    __slots__ = ("shown",)

    def __init__(self) -> None:
        self.shown: Mapping[str, Value] = {}


_UNKNOWN: Final = Known()


class StateNamespace:
    """A named set of variables: ``ns.cursor = 7``, ``ns.cursor`` (None if absent).

    A value is text, a 64-bit integer, a finite float or a boolean. Any name is a variable, except `get`, `set`, `load`
    and `store` and Python's own, which begin and end with two underscores: those are reached as ``ns["get"]``. Beside
    them there is what Python has for it: ``ns["x"]`` and ``del ns.x`` (both raise if absent), ``in``, ``len``,
    iteration over the names, ``ns |= {…}`` (all of it or nothing), ``dict(ns)``.

    To make ``dict(ns)`` Python asks for ``ns.keys``: without a variable of this name that is a method and not None.

    Args:
        variables: Where they are kept.
        namespace: The name; whether it is allowed is for ``variables`` to say.
        known: Values that a place keeps at hand, true for whoever reads; what is not there is asked for.
    """

    # Names that no variable can have as an attribute, so that there is no other that one could collide with.
    __slots__ = ("__known__", "__namespace__", "__variables__")
    __known__: Known
    __namespace__: str
    __variables__: Variables

    def __init__(self, variables: Variables, namespace: str, known: Known = _UNKNOWN) -> None:
        object.__setattr__(self, "__variables__", variables)
        object.__setattr__(self, "__known__", known)
        object.__setattr__(self, "__namespace__", namespace)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a variable, or ``default`` if it is absent."""
        value = self.__variables__.find(self.__namespace__, name)
        return default if value is None else value

    def set(self, name: str, value: Value) -> None:
        """Give a variable a value; what a subclass of ``str``, ``int`` or ``float`` adds to it is not kept.

        Raises:
            StateError: The value is of another type ("Value of type list is not supported"), NaN or infinite, beyond
                64 bits, or text that no store can hold; or the name is no text or holds a lone surrogate.
        """
        self.__variables__.put(self.__namespace__, name, checked(name, value))

    def load(self) -> None:
        """Read what is stored now, by whomever; changes that are not stored yet stay on top of it."""
        self.__variables__.load(self.__namespace__)

    def store(self) -> None:
        """Return when all changes are durable; without changes nothing is written."""
        self.__variables__.store(self.__namespace__)

    def __getattr__(self, name: str) -> Any:
        if name in _attributes:  # quickly: this is as often as an attribute of any object
            value = self.__known__.shown.get(name)
            if value is not None:
                return value
        elif name[:2] == "__" == name[-2:]:
            raise AttributeError(f"a namespace has no attribute {name!r}; a variable of this name is ns[{name!r}]")
        value = self.__variables__.find(self.__namespace__, name)
        if value is not None:
            _accept(name)
        if value is None and name == "keys":
            return self.__iter__
        return value

    def __setattr__(self, name: str, value: Value) -> None:
        if name not in _attributes:
            _check_attribute(name)
        if type(value) is not int or not MIN_INTEGER <= value <= MAX_INTEGER:  # the usual one quickly
            value = checked(name, value)
        self.__variables__.put(self.__namespace__, name, value)

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __getitem__(self, name: str) -> Any:
        value = self.__variables__.find(self.__namespace__, name)
        if value is None:
            raise _absent(self.__namespace__, name)
        return value

    def __setitem__(self, name: str, value: Value) -> None:
        self.set(name, value)

    def __delitem__(self, name: str) -> None:
        if self.__variables__.find(self.__namespace__, name) is None:
            raise _absent(self.__namespace__, name)
        self.__variables__.write(self.__namespace__, {name: None})

    def __ior__(self, other: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> Self:
        changes = {name: checked(name, value) for name, value in dict(other).items()}
        if changes:
            self.__variables__.write(self.__namespace__, changes)
        return self

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.__variables__.find(self.__namespace__, name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(list(self.__variables__.read(self.__namespace__)))  # another thread may change it meanwhile

    def __len__(self) -> int:
        return len(self.__variables__.read(self.__namespace__))

    def __repr__(self) -> str:
        return f"<StateNamespace {self.__namespace__!r}>"


_attributes: Final[set[str]] = set()
"""Names of variables that are attributes: to look one up costs a tenth of looking into it. Never many."""


def _check_attribute(name: str) -> None:
    if name in _METHODS or name[:2] == "__" == name[-2:]:
        raise StateError(f"{name!r} is no variable of a namespace by this way; write ns[{name!r}]", variable=name)
    checked(name, 0)
    _accept(name)


def _accept(name: str) -> None:
    if len(_attributes) < 10_000:
        _attributes.add(name)


def _absent(namespace: str, name: object) -> AbsentError:
    message = (
        f"there is no variable {shown(name)} in namespace {shown(namespace)}: set it first, or use get with a default"
    )
    return AbsentError(message, namespace=shown(namespace), variable=shown(name))


def checked(name: object, value: object) -> Value:
    """Return ``value`` as one of the four types themselves, if both it and the name can be kept."""
    if type(name) is not str or not (name.isascii() or is_text(name)):
        raise StateError(f"a variable cannot be called {shown(name)}: text without lone surrogates is expected")
    if type(value) is bool:
        return value
    kind = type(value)
    if not isinstance(value, str | int | float):
        raise StateError(f"Value of type {kind.__name__} is not supported", variable=shown(name), type=kind.__name__)
    reason = refusal(value)
    if reason is not None:
        message = f"variable {shown(name)} cannot be {shown(value)}: {reason}"
        raise StateError(message, variable=shown(name), value=shown(value))
    # An IntEnum, say: what is read back is plain, so it is plain from the beginning.
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def is_text(name: str) -> bool:
    """Say whether JSON in UTF-8 can hold it: there is no lone surrogate in it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
