"""Seed 003, state: its examples, and every name, error and rule that it states."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import Context, StateError, StateNamespace

# Its second example sets by `set` on the value; here on the namespace, because a variable is a plain value.
BY_ATTRIBUTE = """
# Reading a value
existing = context.state.my_tool.some_var
if existing is not None:
    print(f"An existing value was already set: {existing}")
# Writing a value
context.state.my_tool.some_var = 123
"""
BY_METHOD = """
# Reading a value
existing = context.state.my_tool.get("some_var")
if existing is not None:
    print(f"An existing value was already set: {existing}")
# Writing a value
context.state.my_tool.set("some_var", "123")
"""


def invoke(example: str, folder: Path) -> str:
    """Run an example as an invocation of a tool, in a process of its own; return what it printed."""
    program = f"from holdfast import Context\ncontext = Context({str(folder)!r})\n{example}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "example, printed, stored",
    [
        (BY_ATTRIBUTE, "An existing value was already set: 123\n", 123),
        (BY_METHOD, "An existing value was already set: 123\n", "123"),
    ],
)
def test_an_example_finds_in_a_later_invocation_what_it_set_in_an_earlier_one(
    tmp_path: Path, example: str, printed: str, stored: object
) -> None:
    """The first time there is nothing to print; saving is nobody's task."""
    assert invoke(example, tmp_path) == ""
    assert json.loads((tmp_path / "state" / "my_tool.json").read_text()) == {"some_var": stored}
    assert invoke(example, tmp_path) == printed


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """What is handed to the routines of an application; the configuration says where its state is."""
    (tmp_path / "holdfast.toml").write_text("state_dir = 'variables'")
    return Context(tmp_path)


def test_a_namespace_is_opened_by_the_dot_or_by_get_and_need_not_exist(context: Context) -> None:
    """Both give the same `StateNamespace`."""
    assert isinstance(context.state.tool_a, StateNamespace)
    assert context.state.get("tool_a") is context.state.tool_a
    assert context.state.tool_a.anything is None


def test_namespaces_are_separate_and_each_is_one_json_file_in_the_directory(context: Context, tmp_path: Path) -> None:
    """One variable of the same name in each of two."""
    context.state.bootstrap.done = True
    context.state.tool_a.done = False
    context.state.save_all()
    assert json.loads((tmp_path / "variables" / "bootstrap.json").read_text()) == {"done": True}
    assert json.loads((tmp_path / "variables" / "tool_a.json").read_text()) == {"done": False}


def test_only_the_state_that_is_required_is_read(context: Context, tmp_path: Path) -> None:
    """Another namespace may even be unreadable: nobody looks."""
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "wanted.json").write_text('{"a": 1}')
    (tmp_path / "variables" / "unwanted.json").write_text("{")
    assert context.state.wanted.a == 1


@pytest.mark.parametrize("value", ["text", 7, 0.5, True])
def test_a_variable_is_a_string_an_integer_a_float_or_a_boolean(context: Context, value: object) -> None:
    """It is the very value and no proxy of it."""
    context.state.my_tool.some_var = value
    assert type(context.state.my_tool.some_var) is type(value)
    assert context.state.my_tool.get("some_var") == value


@pytest.mark.parametrize(
    "value, kind", [([], "list"), ({}, "dict"), ((), "tuple"), (None, "NoneType"), (1j, "complex")]
)
def test_any_other_type_raises(context: Context, value: object, kind: str) -> None:
    """By the dot and by `set`."""
    for change in (
        lambda: setattr(context.state.my_tool, "some_var", value),
        lambda: context.state.my_tool.set("some_var", value),
    ):
        with pytest.raises(StateError, match=f"^Value of type {kind} is not supported$"):
            change()


def test_namespaces_are_shallow(context: Context) -> None:
    """`lvl_one` is a variable that is not there, and no namespace."""
    with pytest.raises(AttributeError):
        context.state.my_tool.lvl_one.lvl_two.some_var = 1
    with pytest.raises(StateError):
        context.state.my_tool.lvl_one = context.state.my_tool
