"""Variables in files: what a namespace promises, and what each failure of writing in place must not do any more."""

import copy
import enum
import gc
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.disk import Disk
from holdfast.errors import ConflictError, DamagedError, InvalidError, NotFoundError, UnavailableError
from holdfast.state import State, StateError, StateNamespace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where variables are kept; it does not exist yet."""
    return tmp_path / "state"


class CountingDisk(Disk):
    """Counts what reaches the disk."""

    def __init__(self) -> None:
        self.flushes = 0
        self.renames: list[str] = []
        self.opened: list[str] = []

    def _flush(self, fd: int) -> None:
        self.flushes += 1
        super()._flush(fd)

    def _open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self.opened.append(path.name)
        return super()._open(path, flags, mode)

    def _rename(self, source: Path, target: Path) -> None:
        self.renames.append(target.name)
        super()._rename(source, target)


# -- the interface of the seed --


def test_variables_are_set_and_got_by_attribute_and_by_method(folder: Path) -> None:
    """Both ways are one; an absent variable is None, or the default that was asked for."""
    state = State(folder)
    assert state.my_tool.some_var is None
    assert state.my_tool.get("some_var", 5) == 5
    state.my_tool.some_var = 123
    state.my_tool.set("other", "123")
    assert state.my_tool.get("some_var") == 123
    assert state.my_tool.other == "123"
    assert state.get("my_tool") is state.my_tool
    assert isinstance(state.my_tool, StateNamespace)


def test_a_file_is_what_a_person_can_read_and_diff(folder: Path) -> None:
    """Indented JSON, one variable a line, in the order in which they were set, letters as they are."""
    state = State(folder)
    state.tool.b, state.tool.a, state.tool.name = 1.5, True, "Käse"
    state.save_all()
    assert (folder / "tool.json").read_text(encoding="utf-8") == (
        '{\n    "b": 1.5,\n    "a": true,\n    "name": "Käse"\n}'
    )


def test_what_was_stored_is_there_in_the_next_state(folder: Path) -> None:
    """With the same types."""
    first = State(folder, save_delay=0)
    first.tool |= {"i": 1, "f": 1.0, "b": True, "s": "1", "big": 2**63 - 1}
    second = State(folder).tool
    assert [(name, type(second[name]), second[name]) for name in second] == [
        ("i", int, 1),
        ("f", float, 1.0),
        ("b", bool, True),
        ("s", str, "1"),
        ("big", int, 9223372036854775807),
    ]


def test_nothing_is_read_before_it_is_asked_for_and_nothing_else_is_read(folder: Path) -> None:
    """Making a State or a namespace touches no file; reading one namespace reads its file alone."""
    writer = State(folder, save_delay=0)
    writer.a.x, writer.b.x = 1, 2
    disk = CountingDisk()
    state = State(folder, disk=disk)
    namespaces = state.a, state.b
    assert disk.opened == []
    assert namespaces[0].x == 1
    assert "a.json" in disk.opened
    assert "b.json" not in disk.opened
    assert namespaces[0].x == 1
    assert disk.opened.count("a.json") == 1


def test_a_folder_is_made_by_the_first_write_only(folder: Path) -> None:
    """Reading what is not there makes nothing."""
    state = State(folder)
    assert state.a.x is None
    assert list(state) == []
    state.save_all()
    assert not folder.exists()


def test_what_did_not_change_is_not_written(folder: Path) -> None:
    """The same value again, or another and back, leaves the file as it is."""
    disk = CountingDisk()
    state = State(folder, save_delay=None, disk=disk)
    state.tool.a = 1
    state.save_all()
    before = os.stat(folder / "tool.json")
    state.tool.a = 1
    state.save_all()
    state.tool.a = 2
    state.tool.a = 1
    state.tool.store()
    after = os.stat(folder / "tool.json")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("old, new", [(1, True), (True, 1), (1, 1.0), (0, False), (0.0, -0.0), ("1", 1)])
def test_a_value_of_another_type_is_a_change(folder: Path, old: float | str, new: float | str) -> None:
    """Even where Python calls the two equal."""
    state = State(folder, save_delay=0)
    state.tool.a = old
    state.tool.a = new
    assert repr(State(folder).tool.a) == repr(new)


@pytest.mark.parametrize(
    "value, text",
    [
        ([], "Value of type list is not supported"),
        ({}, "Value of type dict is not supported"),
        (None, "Value of type NoneType is not supported"),
        (b"", "Value of type bytes is not supported"),
        (float("nan"), "variable 'x' cannot be nan: a float must be finite"),
        (float("-inf"), "variable 'x' cannot be -inf: a float must be finite"),
        (2**63, "variable 'x' cannot be 9223372036854775808: an integer must fit in 64 bits"),
        ("\ud800", r"variable 'x' cannot be '\ud800': text must not hold a lone surrogate (at character 0)"),
        ("a\0", r"variable 'x' cannot be 'a\x00': text must not hold NUL"),
    ],
)
def test_what_no_variable_can_hold_is_refused(folder: Path, value: object, text: str) -> None:
    """By each way to set it, and nothing is changed."""
    tool = State(folder).tool
    tool.x = 1
    for change in (
        lambda: setattr(tool, "x", value),
        lambda: tool.set("x", value),  # type: ignore[arg-type]
        lambda: tool.__setitem__("x", value),
        lambda: tool.__ior__({"y": 1, "x": value}),  # type: ignore[dict-item]
    ):
        with pytest.raises(StateError) as caught:
            change()
        assert str(caught.value) == text
        assert isinstance(caught.value, InvalidError)
    assert dict(tool) == {"x": 1}


def test_a_subclass_is_kept_as_the_plain_type(folder: Path) -> None:
    """What is read back later is what can be read at once."""

    class Level(enum.IntEnum):
        HIGH = 3

    class Word(str):
        __slots__ = ()

    class Share(float):
        __slots__ = ()

    tool = State(folder).tool
    tool |= {"level": Level.HIGH, "word": Word("w"), "share": Share(0.5)}
    assert [(type(value), value) for value in dict(tool).values()] == [(int, 3), (str, "w"), (float, 0.5)]


# -- any name is a variable --


@pytest.mark.parametrize(
    "name", ["items", "values", "pop", "update", "clear", "copy", "name", "keys", "incr", "_x", "__x"]
)
def test_any_name_is_a_variable(folder: Path, name: str) -> None:
    """As an attribute and as a key; it is deleted by either."""
    tool = State(folder).tool
    setattr(tool, name, 1)
    assert getattr(tool, name) == tool[name] == 1
    delattr(tool, name)
    assert name not in tool
    tool[name] = "x"
    assert getattr(tool, name) == "x"
    del tool[name]
    assert list(tool) == []


@pytest.mark.parametrize("name", ["get", "set", "load", "store", "__class__", "__x__"])
def test_a_name_of_a_method_or_of_python_is_reached_as_a_key(folder: Path, name: str) -> None:
    """Setting the attribute is refused, and says so."""
    tool = State(folder).tool
    with pytest.raises(StateError) as caught:
        setattr(tool, name, 1)
    assert str(caught.value) == f"{name!r} is no variable of a namespace by this way; write ns[{name!r}]"
    tool[name] = 1
    assert tool[name] == 1
    assert dict(tool) == {name: 1}


def test_a_variable_with_a_name_of_pythons_own_is_no_attribute(folder: Path) -> None:
    """Else whoever asks an object what it can do, `copy` say, would get an answer from a file."""
    tool = State(folder).tool
    tool |= {"__deepcopy__": 1, "x": 1}
    for _ in range(2):
        assert tool.x == 1
        with pytest.raises(AttributeError, match=r"a variable of this name is ns\['__deepcopy__'\]"):
            _ = tool.__deepcopy__


def test_a_namespace_is_what_python_calls_a_mapping(folder: Path) -> None:
    """Length, membership, iteration, dict, ``|=`` and unpacking."""
    state = State(folder)
    state.tool |= {"a": 1, "b": 2}
    state.tool |= [("c", 3)]
    assert len(state.tool) == 3
    assert list(state.tool) == ["a", "b", "c"]
    assert "a" in state.tool
    assert 1 not in state.tool
    assert dict(state.tool) == {**state.tool} == {"a": 1, "b": 2, "c": 3}
    assert repr(state.tool) == "<StateNamespace 'tool'>"


def test_an_absent_variable_raises_where_python_would(folder: Path) -> None:
    """As the error that the way of asking leads one to expect, and always as ours."""
    tool = State(folder).tool
    with pytest.raises(KeyError, match="there is no variable 'x' in namespace 'tool'"):
        _ = tool["x"]
    with pytest.raises(AttributeError):
        del tool.x
    with pytest.raises(NotFoundError):
        del tool["x"]
    with pytest.raises(AttributeError, match="no attribute '__deepcopy__'"):
        _ = tool.__deepcopy__
    assert not hasattr(copy, "x")


def test_a_namespace_cannot_be_assigned_to(folder: Path) -> None:
    """The error shows how a variable is set."""
    state = State(folder)
    with pytest.raises(StateError, match=r"set a variable in it, as in state\.tool\.x = 1"):
        state.tool = 1


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.booleans(), st.integers(-(2**63), 2**63 - 1))))
def test_any_name_that_json_can_hold_is_read_back(variables: dict[str, object]) -> None:
    """As it was; what holds a lone surrogate is refused and leaves the others."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        state = State(folder, save_delay=None)
        for name, value in variables.items():
            if isinstance(value, str) and "\0" in value:
                with pytest.raises(StateError):
                    state.tool[name] = value
            else:
                state.tool[name] = value
        state.save_all()
        found = State(folder).tool
        expected = {name: value for name, value in variables.items() if not (isinstance(value, str) and "\0" in value)}
        assert {name: found[name] for name in found} == expected


# -- names of namespaces --


@pytest.mark.parametrize(
    "namespace, file",
    [
        ("../x", "%2E.%2Fx.json"),
        ("/etc/passwd", "%2Fetc%2Fpasswd.json"),
        ("..", "%2E..json"),
        (".hidden", "%2Ehidden.json"),
        ("a.b", "a.b.json"),
        ("a%2Fb", "a%252Fb.json"),
        ("Größe", "Gr%C3%B6%C3%9Fe.json"),
        ("nul", "%6Eul.json"),
        ("a\0b", "a%00b.json"),
        ("Tool", "Tool.json"),
    ],
)
def test_each_namespace_has_a_file_of_its_own_in_the_folder(folder: Path, namespace: str, file: str) -> None:
    """Never outside, and the name can be told from the file."""
    state = State(folder, save_delay=0)
    state.get(namespace).x = 1
    assert [name for name in os.listdir(folder) if not name.startswith(".")] == [file]
    assert list(State(folder)) == [namespace]
    assert os.listdir(folder.parent) == ["state"]


@pytest.mark.parametrize("namespace", ["", "\ud800", "x" * 201, "ß" * 40, 5, None, []])
def test_a_namespace_that_can_have_no_file_is_refused(folder: Path, namespace: str) -> None:
    """At once, and not when it is stored."""
    with pytest.raises(StateError):
        State(folder).get(namespace)


def test_other_files_in_the_folder_are_no_namespaces(folder: Path) -> None:
    """What has a name that no namespace would have been given is left alone."""
    state = State(folder, save_delay=0)
    state.tool.x = 1
    state.tool.x = 2
    for name in ("notes.txt", "a%b.json", ".hidden.json", "tool.json.corrupt-20250101T000000Z", "%zz.json"):
        (folder / name).write_text("{}")
    assert list(state) == ["tool"]


@pytest.mark.parametrize("namespace", ["my ns", "größe", "a+b", "c:d", "nul"])
def test_a_file_that_another_program_gave_the_name_of_a_namespace_is_that_of_the_namespace(
    folder: Path, namespace: str
) -> None:
    """It is listed, read, and written where it is, with its generations; once it is gone there is another one."""
    folder.mkdir()
    (folder / f"{namespace}.json").write_text('{"x": 1}')
    state = State(folder, save_delay=0)
    assert list(state) == [namespace]
    assert state.get(namespace).x == 1
    with state.transaction():
        state.get(namespace).y = 2
        state.tool.x = 1
    assert sorted(os.listdir(folder)) == sorted([f"{namespace}.json", f".{namespace}.json.prev", "tool.json", ".lock"])
    (folder / f"{namespace}.json").write_text("{")
    assert dict(State(folder).get(namespace)) == {"x": 1}
    state.delete(namespace)
    state.delete("tool")
    (aside,) = folder.glob("*.corrupt-*")
    assert sorted(os.listdir(folder)) == [".lock", aside.name]
    state.get(namespace).z = 3
    assert f"{namespace}.json" not in os.listdir(folder)
    assert dict(State(folder).get(namespace)) == {"z": 3}


def test_of_two_files_of_a_namespace_our_own_is_the_one(folder: Path) -> None:
    """And the other is left alone."""
    state = State(folder, save_delay=0)
    state.get("a b").x = 1
    (folder / "a b.json").write_text('{"x": 2}')
    state.get("a b").y = 1
    assert list(state) == ["a b"]
    assert dict(State(folder).get("a b")) == {"x": 1, "y": 1}
    assert (folder / "a b.json").read_text() == '{"x": 2}'


# -- several at once --


def test_two_processes_do_not_erase_each_others_variables(folder: Path) -> None:
    """Each changes what it set, and sees the rest after it stored something or loaded."""
    one, other = State(folder, save_delay=None), State(folder, save_delay=None)
    assert (one.tool.a, other.tool.a) == (None, None)
    one.tool.a, one.tool.both = 1, "one"
    other.tool.b, other.tool.both = 2, "other"
    one.save_all()
    other.save_all()
    assert dict(other.tool) == {"a": 1, "both": "other", "b": 2}
    assert one.tool.b is None
    one.tool.load()
    assert dict(one.tool) == {"a": 1, "both": "other", "b": 2}


def test_a_variable_deleted_here_stays_deleted_and_the_others_stay(folder: Path) -> None:
    """A deletion is a change like others."""
    one, other = State(folder, save_delay=None), State(folder, save_delay=None)
    one.tool |= {"a": 1, "b": 2}
    one.save_all()
    del other.tool.a
    one.tool.c = 3
    one.save_all()
    other.save_all()
    assert json.loads((folder / "tool.json").read_text()) == {"b": 2, "c": 3}


def test_loading_keeps_what_is_not_stored_yet(folder: Path) -> None:
    """A change is never forgotten by looking at what others did."""
    one, other = State(folder, save_delay=None), State(folder, save_delay=0)
    one.tool.a = 1
    other.tool |= {"a": 2, "b": 2}
    one.tool.load()
    assert dict(one.tool) == {"a": 1, "b": 2}


def test_a_counter_loses_nothing_between_threads(folder: Path) -> None:
    """Of `State.incr`; it returns the sum each time."""
    state = State(folder)
    sums: list[float] = []
    threads = [
        threading.Thread(target=lambda: sums.extend(state.incr("tool", "n") for _ in range(10))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == list(range(1, 41))
    assert State(folder).tool.n == 40


def test_a_thread_that_sets_while_another_saves_loses_nothing(folder: Path) -> None:
    """All values are there at the end, whichever save took them."""
    state = State(folder, save_delay=None)
    is_done = threading.Event()

    def save() -> None:
        while not is_done.is_set():
            state.save_all()

    saver = threading.Thread(target=save)
    saver.start()
    for number in range(3_000):
        state.tool[f"v{number % 500}"] = number
        assert state.tool[f"v{number % 500}"] == number
    is_done.set()
    saver.join()
    state.save_all()
    assert dict(State(folder).tool) == {f"v{number}": 2_500 + number for number in range(500)}


@contextmanager
def switching_at_once() -> Generator[None]:
    """Let Python change between threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_a_thread_reads_what_it_wrote_whatever_others_do(folder: Path) -> None:
    """While others save, load, add, and change several namespaces together; and all of it is there at the end."""
    state, other = State(folder, save_delay=0.001), State(folder, save_delay=0)
    is_done, wrong, last = threading.Event(), list[object](), dict[str, int]()

    def write(me: int) -> None:
        for number in range(1_500):
            name = f"v{me}{number % 3}"
            if number % 7 == 6:
                del state.tool[name]
                assert (getattr(state.tool, name), state.tool.get(name)) == (None, None)
            if number % 5 == 4:
                state.tool |= {name: number}
            else:
                setattr(state.tool, name, number)
            if (getattr(state.tool, name), state.tool.get(name)) != (number, number):
                wrong.append((name, number))
            last[name] = number

    def change() -> None:
        with state.transaction():
            state.tool.both = state.stats.both = (state.stats.both or 0) + 1

    def repeat(what: object) -> None:
        while not is_done.is_set():
            what()  # type: ignore[operator]

    others = [
        threading.Thread(target=repeat, args=(what,))
        for what in (state.save_all, state.tool.load, change, lambda: other.incr("tool", "n"), lambda: list(state.tool))
    ]
    writers = [threading.Thread(target=write, args=(me,)) for me in range(2)]
    with switching_at_once():
        for thread in (*others, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        is_done.set()
        for thread in others:
            thread.join()
    state.save_all()
    assert wrong == []
    found = State(folder)
    assert {name: found.tool[name] for name in last} == last
    assert found.tool.both == found.stats.both


def test_what_is_loaded_late_takes_the_place_of_nothing_newer(folder: Path) -> None:
    """A thread that reads slowly, while what it reads is changed and stored, does not bring back the old."""

    class Slow(Disk):
        has_read = False

        def read(self, path: os.PathLike[str] | str) -> bytes:
            found = super().read(path)
            if Path(path).name == "tool.json" and not self.has_read:
                self.has_read = True
                state.tool.x = 2  # as if by another thread
                state.save_all()
            return found

    State(folder, save_delay=0).tool.x = 1
    state = State(folder, save_delay=None, disk=Slow())
    state.tool.load()
    assert state.tool.x == 2


def test_incr_begins_at_zero_and_refuses_what_cannot_be_added(folder: Path) -> None:
    """Text, booleans, and sums beyond 64 bits; nothing is changed then."""
    state = State(folder, save_delay=0)
    assert state.incr("tool", "n") == 1
    assert state.incr("tool", "n", 1.5) == 2.5
    state.tool |= {"text": "1", "flag": True, "max": 2**63 - 1}
    for name, by in (("text", 1), ("flag", 1), ("max", 1), ("n", True), ("n", float("inf")), ("n", 10**400)):
        with pytest.raises(StateError):
            state.incr("tool", name, by)
    assert dict(State(folder).tool) == {"n": 2.5, "text": "1", "flag": True, "max": 2**63 - 1}


def test_compare_and_set_changes_exactly_what_was_expected(folder: Path) -> None:
    """None stands for absent; the type counts."""
    state, other = State(folder), State(folder, save_delay=0)
    assert state.compare_and_set("tool", "owner", None, "me")
    assert not other.compare_and_set("tool", "owner", None, "you")
    other.tool.n = 1
    assert not state.compare_and_set("tool", "n", True, 2)
    assert state.compare_and_set("tool", "n", 1, None)
    assert json.loads((folder / "tool.json").read_text()) == {"owner": "me"}
    with pytest.raises(StateError):
        state.compare_and_set("tool", "n", None, [])  # type: ignore[arg-type]


def test_delete_leaves_no_variable_and_no_generation_to_restore(folder: Path) -> None:
    """What another process stored is gone too; deleting again does nothing."""
    state, other = State(folder), State(folder, save_delay=0)
    state.tool.a = 1
    other.tool.b = 1
    other.tool.b = 2
    state.delete("tool")
    assert os.listdir(folder) == [".lock"]
    assert dict(state.tool) == {}
    state.delete("tool")
    assert list(state) == []


@pytest.mark.parametrize("left", ["tool.json", ".tool.json.prev"])
def test_delete_takes_a_file_without_variables_too(folder: Path, left: str) -> None:
    """And a generation whose file somebody removed; what only looks takes nothing."""
    folder.mkdir()
    (folder / left).write_text("{}")
    state = State(folder, save_delay=0)
    with state.transaction():
        assert dict(state.tool) == {}
    assert left in os.listdir(folder)
    state.delete("tool")
    assert os.listdir(folder) == [".lock"]


# -- transactions --


def test_a_transaction_changes_several_namespaces_or_none(folder: Path) -> None:
    """Durable at its end; an exception leaves no trace, neither in memory nor on the disk."""
    state = State(folder, save_delay=None)
    with state.transaction():
        state.a.x, state.b.x = 1, 1
        assert state.a.x == 1
        assert State(folder).a.x is None
    assert (State(folder).a.x, State(folder).b.x) == (1, 1)
    with pytest.raises(RuntimeError), state.transaction():  # noqa: PT012 -- the block is what is tested
        state.a.x, state.b.y = 2, 2
        state.delete("b")
        raise RuntimeError
    assert (dict(state.a), dict(state.b)) == ({"x": 1}, {"x": 1})
    assert (dict(State(folder).a), dict(State(folder).b)) == ({"x": 1}, {"x": 1})


def test_a_transaction_sees_what_others_stored_and_what_was_set_before_it(folder: Path) -> None:
    """Both, and `incr` and `delete` in it are parts of it."""
    state, other = State(folder, save_delay=None), State(folder, save_delay=0)
    assert state.a.x is None
    state.a.mine = 1
    other.a.x = 10
    with state.transaction():
        assert dict(state.a) == {"x": 10, "mine": 1}
        state.a.x += 1
        assert state.incr("a", "x") == 12
        state.delete("b")
    assert dict(State(folder).a) == {"x": 12, "mine": 1}


def test_a_transaction_sees_what_is_stored_of_variables_that_were_known_before_it(folder: Path) -> None:
    """By each way to get one; another thread sees meanwhile what it saw before."""
    state, other = State(folder, save_delay=None), State(folder, save_delay=0)
    state.a.x = 1
    state.save_all()
    assert (state.a.x, state.a.x) == (1, 1)
    other.a.x = 10
    seen: list[object] = []
    with state.transaction():
        assert (state.a.x, state.a.get("x"), state.a["x"]) == (10, 10, 10)
        state.a.x = 11
        assert (state.a.x, state.a.get("x"), state.a["x"]) == (11, 11, 11)
        thread = threading.Thread(target=lambda: seen.extend((state.a.x, state.a.get("x"))))
        thread.start()
        thread.join()
        state.new.x = 1
        assert list(state) == ["a", "new"]
    assert seen == [1, 1]
    assert (state.a.x, State(folder).a.x) == (11, 11)


def test_a_transaction_that_is_discarded_leaves_what_another_thread_set_and_nothing_of_its_own(folder: Path) -> None:
    """Also where the other thread was the first to set something in that namespace."""
    state = State(folder, save_delay=None)

    def discard() -> None:
        with state.transaction():
            thread = threading.Thread(target=lambda: setattr(state.a, "theirs", 1))
            thread.start()
            thread.join()
            state.a.x = 1
            raise UnavailableError("as if")

    with pytest.raises(UnavailableError):
        discard()
    state.save_all()
    assert dict(state.a) == dict(State(folder).a) == {"theirs": 1}


def test_transactions_do_not_nest(folder: Path) -> None:
    """The inner one is an error, which ends the outer one too."""
    state = State(folder)
    with pytest.raises(ConflictError, match="end that first"), state.transaction():  # noqa: PT012 -- as above
        state.a.x = 1
        with state.transaction():
            pass
    assert state.a.x is None


def test_who_waits_too_long_for_a_folder_is_told_who_has_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, or a transaction of another thread; what was to be stored is kept."""
    monkeypatch.setattr("holdfast.state.files.WAIT_S", 0.5)
    state = State(folder, save_delay=None)
    state.a.x = 1
    folder.mkdir()
    with (
        Disk().lock(folder / ".lock"),
        pytest.raises(UnavailableError, match=r"^another process holds .*, and did so for"),
    ):
        state.save_all()
    told: list[str] = []

    def save() -> None:
        try:
            state.save_all()
        except UnavailableError as exc:
            told.append(str(exc))

    with state.transaction():
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
    assert told == [f"a transaction of another thread holds {str(folder)!r}, and did so for 0.5 s; try again"]
    state.save_all()
    assert State(folder).a.x == 1


def test_a_transaction_belongs_to_its_thread(folder: Path) -> None:
    """What another thread sets meanwhile is no part of it, and comes after it."""
    state = State(folder, save_delay=None)
    with state.transaction():
        state.a.x = 1
        thread = threading.Thread(target=lambda: setattr(state.a, "x", 2))
        thread.start()
        thread.join()
        assert state.a.x == 1
    assert State(folder).a.x == 1
    assert state.a.x == 2
    state.save_all()
    assert State(folder).a.x == 2


# -- in the middle of a write --


class Signalling(Disk):
    """A signal comes in the middle of the first rename, or with ``is_full`` the rename fails then."""

    def __init__(self, *, is_full: bool = False) -> None:
        self.has_come = False
        self.is_full = is_full

    def _rename(self, source: Path, target: Path) -> None:
        if not self.has_come:
            self.has_come = True
            signal.raise_signal(signal.SIGUSR1)
            if self.is_full:
                raise OSError(28, "No space left on device")
        super()._rename(source, target)


@contextmanager
def handling(handle: Callable[[], object]) -> Generator[None]:
    """Let something be done when the signal comes."""
    before = signal.signal(signal.SIGUSR1, lambda number, frame: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def transact(state: State) -> None:
    """Change two namespaces in a transaction."""
    with state.transaction():
        state.tool.n, state.more.x = 1, 1


@pytest.mark.parametrize(
    "save_delay, write",
    [
        pytest.param(0, lambda state: setattr(state.tool, "n", 1), id="set"),
        pytest.param(None, lambda state: state.incr("tool", "n"), id="incr"),
        pytest.param(None, lambda state: setattr(state.tool, "n", 1) or state.save_all(), id="save"),
        pytest.param(0, transact, id="transaction"),
        pytest.param(None, transact, id="transaction without delay"),
    ],
)
def test_what_a_signal_handler_writes_in_the_middle_of_a_write_is_stored_with_it(
    folder: Path, save_delay: float | None, write: Callable[[State], object]
) -> None:
    """By each way to write; it sees what it interrupts, and what it wrote itself."""
    state = State(folder, save_delay=save_delay, disk=Signalling())
    seen: list[object] = []

    def handle() -> None:
        state.incr("tool", "n")
        state.tool.x = 5
        state.other.x = 6
        with state.transaction():
            state.tool.y = state.tool.x
        with pytest.raises(UnavailableError), state.transaction():  # noqa: PT012 -- the block is what is tested
            state.tool.z = state.other.z = 1
            raise UnavailableError("as if")
        seen.extend((state.tool.n, state.tool.x, state.tool.y, state.tool.z, state.other.x))

    with handling(handle):
        write(state)
    assert seen == [2, 5, 5, None, 6]
    for found in (State(folder), state):
        assert dict(found.tool) == {"n": 2, "x": 5, "y": 5}
    state.save_all()
    assert dict(State(folder).other) == {"x": 6}


@pytest.mark.parametrize("save_delay", [0, None])
def test_what_a_signal_handler_adds_in_the_middle_of_adding_is_not_lost(
    folder: Path, save_delay: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what it expects: the outer one looks again."""
    import holdfast.state as module

    state = State(folder, save_delay=save_delay)
    state.incr("tool", "n")
    calls = 0

    def checked(name: object, value: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:  # between the look at the sum's parts and the sum
            signal.raise_signal(signal.SIGUSR1)
        return as_ever(name, value)

    as_ever = module.checked
    monkeypatch.setattr(module, "checked", checked)
    with handling(lambda: state.incr("tool", "n", 10)):
        assert state.incr("tool", "n") == 12
    assert State(folder).tool.n == 12


def test_what_a_signal_handler_sets_while_a_save_fails_is_kept_like_the_rest(folder: Path) -> None:
    """And stored when there is room."""
    state = State(folder, save_delay=None, disk=Signalling(is_full=True))
    state.tool.x = 1
    with handling(lambda: setattr(state.tool, "y", 2)), pytest.raises(UnavailableError, match="the disk is full"):
        state.save_all()
    assert dict(state.tool) == {"x": 1, "y": 2}
    state.save_all()
    assert dict(State(folder).tool) == {"x": 1, "y": 2}


# -- when --


@pytest.mark.parametrize("save_delay", [-1, float("nan"), float("inf"), 1e300, True, "1", []])
def test_a_delay_that_is_no_time_is_refused(folder: Path, save_delay: float) -> None:
    """None means at the end; infinity would too, and is not said so."""
    with pytest.raises(InvalidError, match="seconds, 0 or more, or None are expected"):
        State(folder, save_delay=save_delay)


def test_no_folder_is_not_the_current_one() -> None:
    """It is an unset variable, most likely."""
    with pytest.raises(InvalidError, match=r"^location is empty: a folder is expected$"):
        State("")


@pytest.mark.parametrize("location, why", [("~nobody-is-called-so/state", "nobody knows whose home that is")])
def test_a_folder_that_leads_nowhere_is_refused(location: str, why: str) -> None:
    """At once, and not when something is stored."""
    with pytest.raises(InvalidError, match=f"^'{location}' leads nowhere: {why}; name an absolute path$"):
        State(location)


def test_a_folder_that_is_a_file_or_can_have_no_name_is_an_error_of_ours(folder: Path) -> None:
    """Of each way to ask."""
    folder.write_text("")
    for place in (folder, f"{folder}\0"):
        state = State(place, save_delay=0)
        for use in (lambda: state.a.x, lambda: setattr(state.a, "x", 1), lambda: list(state)):  # noqa: B023 -- called here
            with pytest.raises(InvalidError):
                use()


def test_a_folder_deleted_under_a_running_program_is_made_anew(folder: Path) -> None:
    """What is set from then on is there; what somebody deleted stays deleted."""
    state = State(folder, save_delay=0)
    state.a.x = 1
    shutil.rmtree(folder)
    state.a.y = 2
    assert dict(State(folder).a) == {"y": 2}


def test_without_delay_a_set_is_durable_when_it_returns(folder: Path) -> None:
    """At most three flushes, for one variable or many; a set that changes nothing needs one."""
    disk = CountingDisk()
    state = State(folder, save_delay=0, disk=disk)
    state.tool.a = 0
    for change in (lambda: setattr(state.tool, "a", 1), lambda: state.tool.__ior__({"a": 2, "b": 3})):
        before = disk.flushes
        change()
        assert disk.flushes - before == 2
    assert json.loads((folder / "tool.json").read_text()) == {"a": 2, "b": 3}
    before = disk.flushes
    state.tool.a = 2
    assert disk.flushes - before == 1


def test_what_is_set_is_stored_after_the_delay(folder: Path) -> None:
    """Without any further call; many changes are one write."""
    is_renamed = threading.Event()

    class Telling(CountingDisk):
        def _rename(self, source: Path, target: Path) -> None:
            super()._rename(source, target)
            is_renamed.set()

    disk = Telling()
    state = State(folder, save_delay=0.05, disk=disk)
    for number in range(50):
        state.tool.a = number
    assert is_renamed.wait(60)
    state.save_all()
    assert disk.renames == ["tool.json"]
    assert State(folder).tool.a == 49


def test_without_a_clock_nothing_is_stored_before_it_is_asked_for(folder: Path) -> None:
    """``save_delay=None``; `StateNamespace.store` stores its own namespace only."""
    state = State(folder, save_delay=None)
    state.a.x, state.b.x = 1, 1
    assert not folder.exists()
    state.a.store()
    assert sorted(os.listdir(folder)) == [".lock", "a.json"]
    state.save_all()
    assert sorted(os.listdir(folder)) == [".lock", "a.json", "b.json"]


def test_a_failed_write_behind_is_logged_and_tried_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The value stays; when there is room it is stored."""
    is_stored = threading.Event()

    class Full(Disk):
        tries = 0

        def _rename(self, source: Path, target: Path) -> None:
            self.tries += 1
            if self.tries == 1:
                raise OSError(28, "No space left on device")
            super()._rename(source, target)
            is_stored.set()

    state = State(folder, save_delay=0.01, disk=Full())
    state.tool.a = 1
    assert is_stored.wait(60)
    assert "variables.not_saved" in caplog.text
    assert "the disk is full" in caplog.text
    state.save_all()
    assert State(folder).tool.a == 1


def test_what_cannot_be_stored_is_complained_of_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried; it is stored when it can be."""
    tried = threading.Semaphore(0)

    class Counting(Disk):
        def read(self, path: os.PathLike[str] | str) -> bytes:
            tried.release()
            return super().read(path)

    folder.mkdir()
    (folder / "tool.json").write_text("[]")
    state = State(folder, save_delay=0.01, disk=Counting())
    state.tool.a = 1
    for _ in range(20):
        assert tried.acquire(timeout=60)
    assert caplog.text.count("variables.not_saved") == 1
    (folder / "tool.json").unlink()
    state.save_all()
    assert State(folder).tool.a == 1


@contextmanager
def without_threads() -> Generator[None]:
    """Let no thread start: none could have so large a stack."""
    before = threading.stack_size(1 << 45)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_a_thread_that_could_not_start_once_ends_no_saving(folder: Path) -> None:
    """What is set then is stored at once; what is set later after the delay, as ever."""
    is_stored = threading.Event()

    class Telling(Disk):
        def _rename(self, source: Path, target: Path) -> None:
            super()._rename(source, target)
            is_stored.set()

    state = State(folder, save_delay=0.01, disk=Telling())
    with without_threads():
        state.tool.x = 1
        assert State(folder).tool.x == 1
    is_stored.clear()
    state.tool.x = 2
    assert is_stored.wait(60)


def test_a_failed_save_whose_next_try_cannot_be_started_is_tried_with_the_next_change(folder: Path) -> None:
    """Nothing that was set before it is lost."""
    is_stored = threading.Event()

    class Full(Disk):
        tries = 0

        def _rename(self, source: Path, target: Path) -> None:
            self.tries += 1
            if self.tries == 1:
                threading.stack_size(1 << 45)
                raise OSError(28, "No space left on device")
            super()._rename(source, target)
            is_stored.set()

    before, others = threading.stack_size(), threading.enumerate()
    state = State(folder, save_delay=0.01, disk=Full())
    try:
        state.tool.x = 1
        for thread in threading.enumerate():
            if thread not in others:
                thread.join()
    finally:
        threading.stack_size(before)
    assert not is_stored.is_set()
    state.tool.y = 2
    assert is_stored.wait(60)
    state.save_all()
    assert dict(State(folder).tool) == {"x": 1, "y": 2}


def test_a_state_without_changes_is_forgotten(folder: Path) -> None:
    """What was saved needs nobody to remember it until the process ends."""
    state = State(folder, save_delay=None)
    state.tool.a = 1
    files = ref(state.__files__)
    state.save_all()
    del state
    gc.collect()
    assert files() is None


# -- damage --


@pytest.mark.parametrize(
    "damage", [b"", b'{\n    "a": 1', b"\0" * 20, b"\xff\xfe", b'{"a": "\xff"}', b"{" * 5_000, b'{"a": 1}}']
)
def test_a_damaged_file_is_kept_aside_and_the_generation_before_it_restored(
    folder: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning that names all three; what is set next comes on top of what was restored."""
    State(folder, save_delay=0).tool.a = 1
    State(folder, save_delay=0).tool.b = 2
    (folder / "tool.json").write_bytes(damage)
    state = State(folder, save_delay=0)
    with caplog.at_level(logging.WARNING):
        assert dict(state.tool) == {"a": 1}
    assert "was damaged and is now" in caplog.text
    (aside,) = folder.glob("tool.json.corrupt-*")
    assert aside.read_bytes() == damage
    state.tool.c = 3
    assert dict(State(folder).tool) == {"a": 1, "c": 3}


def test_a_file_damaged_before_a_transaction_was_carried_out_is_kept_aside(folder: Path) -> None:
    """What was committed takes its place, and it is no generation to restore."""
    State(folder, save_delay=0).tool.a = 1
    (folder / "tool.json").write_text("{")
    (folder / ".transaction.json").write_text('{"tool": {"a": 2}, "other": {"x": 1}}')
    state = State(folder, save_delay=0)
    state.other.y = 1
    (aside,) = folder.glob("tool.json.corrupt-*")
    assert aside.read_text() == "{"
    assert dict(state.tool) == {"a": 2}
    assert not (folder / ".tool.json.prev").exists()


def test_a_file_damaged_under_a_running_program_does_not_erase_it(folder: Path) -> None:
    """What is set is merged into what was restored."""
    state = State(folder, save_delay=None)
    state.tool.a = 1
    state.save_all()
    state.tool.b = 2
    state.save_all()
    (folder / "tool.json").write_bytes(b"{")
    state.tool.c = 3
    state.save_all()
    assert dict(State(folder).tool) == {"a": 1, "c": 3}


@pytest.mark.parametrize("previous", [None, b"", b"{", b"[]"])
def test_damage_without_a_good_generation_is_an_error_and_never_a_new_file(
    folder: Path, previous: bytes | None
) -> None:
    """Reading and writing say so; nothing is changed, so that it can still be mended by hand."""
    folder.mkdir()
    (folder / "tool.json").write_bytes(b'{"a": 1')
    if previous is not None:
        (folder / ".tool.json.prev").write_bytes(previous)
    state = State(folder, save_delay=0)
    for use in (lambda: state.tool.a, lambda: setattr(state.tool, "b", 1), lambda: state.delete("tool")):
        with pytest.raises(DamagedError, match="correct it, or delete it"):
            use()
    assert (folder / "tool.json").read_bytes() == b'{"a": 1'
    (folder / "tool.json").write_bytes(b'{"a": 1}')
    assert state.tool.a == 1


def test_a_second_damage_in_the_same_second_keeps_both(folder: Path) -> None:
    """What is set aside never takes the place of anything."""
    state = State(folder, save_delay=0)
    state.tool.a = 1
    state.tool.a = 2
    for _ in range(3):
        (folder / "tool.json").write_bytes(b"")
        state.tool.load()
    assert len(list(folder.glob("tool.json.corrupt-*"))) == 3


def test_an_editor_that_is_in_the_middle_of_writing_is_waited_for(folder: Path) -> None:
    """A file that still changes is not damaged."""

    class Editor(Disk):
        steps = [b'{"a": 2', b'{"a": 2}']

        def read(self, path: os.PathLike[str] | str) -> bytes:
            found = super().read(path)
            if Path(path).name == "tool.json" and self.steps:
                Path(path).write_bytes(self.steps.pop(0))
            return found

    folder.mkdir()
    (folder / "tool.json").write_bytes(b"")
    assert State(folder, disk=Editor()).tool.a == 2
    assert list(folder.glob("*.corrupt-*")) == []


@pytest.mark.parametrize(
    "text, variables",
    [
        ('{"a": 123}', {"a": 123}),
        ('\ufeff{"a": "ü"}\n', {"a": "ü"}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ("{}", {}),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_file_written_by_hand_or_by_an_older_program_is_read(
    folder: Path, text: str, variables: dict[str, object], encoding: str
) -> None:
    """However it is indented, and as some editors save it: with a mark first, or two bytes a letter."""
    folder.mkdir()
    (folder / "tool.json").write_text(text.removeprefix("\ufeff") if encoding == "utf-16" else text, encoding=encoding)
    assert dict(State(folder).tool) == variables
    State(folder, save_delay=0).tool.new = 1
    assert json.loads((folder / "tool.json").read_text(encoding="utf-8")) == {**variables, "new": 1}


@pytest.mark.parametrize(
    "text, why",
    [
        ('{"a": [1]}', "of 'a': Value of type list is not supported"),
        ('{"a": null}', "of 'a': Value of type NoneType is not supported"),
        ('{"a": NaN}', "of 'a': variable 'a' cannot be nan: a float must be finite"),
        ('{"a": 1e999}', "of 'a': variable 'a' cannot be inf: a float must be finite"),
        (
            '{"a": 9223372036854775808}',
            "of 'a': variable 'a' cannot be 9223372036854775808: an integer must fit in 64 bits",
        ),
        (
            f'{{"a": {"9" * 5_000}}}',
            "of 'a': variable 'a' cannot be an integer of 16610 bits: an integer must fit in 64 bits",
        ),
        (
            '{"a": "\\ud800"}',
            "of 'a': variable 'a' cannot be '\\ud800': text must not hold a lone surrogate (at character 0)",
        ),
        (
            '{"\\ud800": 1}',
            "of '\\ud800': a variable cannot be called '\\ud800': text without lone surrogates is expected",
        ),
        ("[]", '[] is no object such as {"name": value}'),
        ("null", 'None is no object such as {"name": value}'),
        ("7", '7 is no object such as {"name": value}'),
    ],
)
def test_a_file_with_what_no_variable_can_hold_is_refused_by_name_and_kept(folder: Path, text: str, why: str) -> None:
    """A person or a newer program wrote it: it is neither changed nor set aside, whatever is done and saved."""
    state = State(folder, save_delay=None)
    state.tool.x = 1
    state.save_all()
    state.tool.x = 2
    state.save_all()
    (folder / "tool.json").write_text(text)
    path = folder / "tool.json"
    fresh, immediate = State(folder, save_delay=None), State(folder, save_delay=0)
    for use in (
        lambda: fresh.tool.a,
        lambda: setattr(immediate.tool, "b", 1),
        lambda: immediate.delete("tool"),
        lambda: immediate.incr("tool", "n"),
        state.tool.load,
        lambda: setattr(state.tool, "x", 3) or state.save_all(),
    ):
        with pytest.raises(StateError) as caught:
            use()
        assert str(caught.value) == (
            f"{str(path)!r} holds no variables, because {why}; correct the file: it was left as it is"
        )
    assert path.read_text() == text
    path.write_text('{"y": 1}')  # corrected
    state.save_all()
    assert json.loads(path.read_text()) == {"y": 1, "x": 3}


def test_a_file_that_is_nested_too_deeply_is_refused_and_kept(folder: Path) -> None:
    """Whether this Python can read so many levels or not."""
    folder.mkdir()
    text = f'{{"a": {"[" * 100_000}{"]" * 100_000}}}'
    (folder / "tool.json").write_text(text)
    with pytest.raises(StateError, match=r"tool\.json' holds no variables, because .*correct the file"):
        _ = State(folder).tool.a
    assert (folder / "tool.json").read_text() == text


def test_a_file_that_cannot_be_saved_keeps_no_other_from_it(folder: Path) -> None:
    """The error is raised when the rest is stored."""
    state = State(folder, save_delay=None)
    state.a.x = state.b.x = state.c.x = 1
    folder.mkdir()
    (folder / "b.json").write_text("[]")
    with pytest.raises(StateError, match=r"b\.json' holds no variables"):
        state.save_all()
    assert (State(folder).a.x, State(folder).c.x) == (1, 1)
    (folder / "b.json").unlink()
    state.save_all()
    assert State(folder).b.x == 1


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"x": [1]}}'])
def test_a_journal_that_nobody_can_have_committed_is_an_error_and_nothing_is_changed(folder: Path, text: str) -> None:
    """Reading and writing say what to do."""
    State(folder, save_delay=0).a.x = 1
    (folder / ".transaction.json").write_text(text)
    state = State(folder, save_delay=0)
    for use in (lambda: state.a.x, lambda: setattr(state.a, "x", 2)):
        with pytest.raises(DamagedError, match="delete it to go on with what the files hold"):
            use()
    (folder / ".transaction.json").unlink()
    assert state.a.x == 1


def test_a_link_in_the_place_of_a_file_is_refused_and_not_followed(folder: Path, tmp_path: Path) -> None:
    """A plugin could have put it there to have another file overwritten."""
    (tmp_path / "secret.json").write_text('{"a": 1}')
    folder.mkdir()
    (folder / "tool.json").symlink_to(tmp_path / "secret.json")
    state = State(folder, save_delay=0)
    for use in (lambda: state.tool.a, lambda: setattr(state.tool, "b", 1)):
        with pytest.raises(InvalidError, match="symbolic link"):
            use()
    assert (tmp_path / "secret.json").read_text() == '{"a": 1}'


def test_a_file_found_under_the_name_of_another_case_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that ignores case one of the two would get the variables of the other."""

    class Folding(Disk):
        def _open(self, path: Path, flags: int, mode: int = 0o600) -> int:
            return super()._open(path.with_name(path.name.lower()), flags, mode)

    def is_same(self: Path, other: Path) -> bool:
        return self.name.lower() == other.name.lower()

    monkeypatch.setattr(Path, "samefile", is_same)
    state = State(folder, save_delay=0, disk=Folding())
    state.tool.a = 1
    for use in (lambda: state.Tool.a, lambda: setattr(state.Tool, "a", 2), lambda: state.delete("Tool")):
        with pytest.raises(ConflictError, match=r"'Tool' cannot be told from one in .* that differs only in case"):
            use()
    assert State(folder, disk=Folding()).tool.a == 1


# -- watching --


def test_a_watch_tells_what_others_changed(folder: Path) -> None:
    """New values by name, None for what is gone; the variables are loaded by then."""
    state, other = State(folder), State(folder, save_delay=0)
    other.tool |= {"a": 1, "b": 1}
    assert state.tool.a == 1
    seen: list[tuple[dict[str, object], object]] = []
    is_seen = threading.Semaphore(0)

    def callback(changes: dict[str, object]) -> None:
        seen.append((changes, state.tool.a))
        is_seen.release()

    with state.watch("tool", callback, interval_s=0.01) as watch:
        with other.transaction():
            other.tool.a = True
            del other.tool.b
        assert is_seen.acquire(timeout=60)
        other.delete("tool")
        assert is_seen.acquire(timeout=60)
    watch.close()
    other.tool.a = 5
    assert seen == [({"a": True, "b": None}, True), ({"a": None}, None)]


@pytest.mark.parametrize("interval_s", [0, -1, float("nan"), float("inf"), True, "1", None])
def test_an_interval_that_is_no_time_is_refused(folder: Path, interval_s: float) -> None:
    """At once, and not in the thread of the watch."""
    with pytest.raises(InvalidError, match="seconds, more than 0, are expected"):
        State(folder).watch("tool", print, interval_s=interval_s)


def test_a_callback_may_set_variables_and_close_its_watch(folder: Path) -> None:
    """What it sets is a change like others."""
    state, is_seen = State(folder, save_delay=0), threading.Event()

    def callback(changes: dict[str, object]) -> None:
        if state.incr("tool", "n") == 3:
            watch.close()
            is_seen.set()

    with state.watch("tool", callback, interval_s=0.01) as watch:
        state.tool.n = 1
        assert is_seen.wait(60)
    assert State(folder).tool.n == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_of_the_callback_ends_the_watch_and_nothing_else(folder: Path) -> None:
    """It goes where those of threads go."""
    state, seen = State(folder, save_delay=0), list[dict[str, object]]()

    def callback(changes: dict[str, object]) -> None:
        seen.append(changes)
        raise RuntimeError("as if")

    with state.watch("tool", callback, interval_s=0.01) as watch:
        state.tool.a = 1
        watch._thread.join(60)
        state.tool.a = 2
    assert seen == [{"a": 1}]


def test_a_watch_goes_on_when_what_could_not_be_read_can(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so once."""
    seen, tries, is_seen = list[dict[str, object]](), threading.Semaphore(0), threading.Event()

    class Counting(Disk):
        def read(self, path: os.PathLike[str] | str) -> bytes:
            if Path(path).name == "tool.json":
                tries.release()
            return super().read(path)

    def callback(changes: dict[str, object]) -> None:
        seen.append(changes)
        is_seen.set()

    with State(folder, disk=Counting()).watch("tool", callback, interval_s=0.01):
        folder.mkdir()
        (folder / "new").write_text("[]")
        os.replace(folder / "new", folder / "tool.json")
        for _ in range(10):
            assert tries.acquire(timeout=60)
        (folder / "new").write_text('{"a": 1}')
        os.replace(folder / "new", folder / "tool.json")
        assert is_seen.wait(60)
    assert seen == [{"a": 1}]
    assert caplog.text.count("variables.not_read") == 1


# -- against a dict --

names = st.sampled_from(["a", "b", "get", "keys", ""])
values = st.sampled_from([0, 1, True, False, 1.0, -0.0, "", "x"])
operation = st.one_of(
    st.tuples(st.just("set"), names, values),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("update"), st.dictionaries(names, values)),
    st.tuples(st.just("save")),
    st.tuples(st.just("load")),
    st.tuples(st.just("new")),
    st.tuples(st.just("erase")),
    st.tuples(st.just("swap"), names, values, values),
    st.tuples(st.just("discard"), names, values),
)


@given(st.lists(operation, max_size=12), st.sampled_from([0, None]))
def test_any_sequence_of_operations_does_what_it_does_to_a_dict(
    operations: list[tuple[object, ...]], save_delay: float | None
) -> None:
    """Types and order included, whenever it is stored and read again."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        state, model = State(folder, save_delay=save_delay), dict[str, object]()
        for what, *arguments in operations:
            perform(str(what), arguments, state, model)
            if what == "new":
                state.save_all()
                state = State(folder, save_delay=save_delay)
            assert repr(sorted(dict_of(state).items())) == repr(sorted(model.items()))
        state.save_all()
        assert repr(sorted(dict_of(State(folder)).items())) == repr(sorted(model.items()))


def dict_of(state: State) -> dict[str, object]:
    """All variables; not by ``dict``, because one of them may be called ``keys``."""
    return {name: state.tool[name] for name in state.tool}


def perform(what: str, arguments: list[object], state: State, model: dict[str, object]) -> None:
    """Do the same to both."""
    if what == "set":
        state.tool[arguments[0]] = model[arguments[0]] = arguments[1]  # type: ignore[index]
    elif what == "delete" and arguments[0] in model:
        del state.tool[arguments[0]], model[arguments[0]]  # type: ignore[arg-type]
    elif what == "update":
        state.tool |= arguments[0]  # type: ignore[operator]
        model |= arguments[0]  # type: ignore[operator]
    elif what == "save":
        state.save_all()
    elif what == "load":
        state.tool.load()
    elif what == "erase":
        state.delete("tool")
        model.clear()
    elif what == "swap":
        name, old, new = arguments
        is_expected = repr(model.get(name)) == repr(old)  # type: ignore[arg-type]
        assert state.compare_and_set("tool", name, old, new) is is_expected  # type: ignore[arg-type]
        if is_expected:
            model[name] = new  # type: ignore[index]
    elif what == "discard":
        with pytest.raises(UnavailableError), state.transaction():  # noqa: PT012 -- as above
            state.tool[arguments[0]] = arguments[1]  # type: ignore[index]
            raise UnavailableError("as if")
