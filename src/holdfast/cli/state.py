"""``holdfast state``: the variables in a folder, or of plugins, read and changed while programs use them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING, Any

import click

from holdfast.cli.drawing import draw, escaped
from holdfast.cli.invocation import Call, with_common_options
from holdfast.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from holdfast.cli.plugin_state import PluginStates
    from holdfast.state import State


def _in_folder(function: Any) -> Any:
    """Give a command ``--dir``, and what says which plugin states are meant without it."""

    def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        ctx.meta[str(param.name)] = value

    options: dict[str, Any] = {"expose_value": False, "callback": remember}
    forced = click.option("--force", is_flag=True, help="Take the plugin state from the run that has it.", **options)
    named = click.option("--state", default="default", metavar="NAME", help="The plugin state.", **options)
    place = click.Path(file_okay=False)
    return click.option("--dir", "folder", type=place, help="The folder with the files.")(named(forced(function)))


def _open(folder: str | None) -> State | PluginStates:
    if folder is None:
        from holdfast.cli.plugin_state import PluginStates  # start-up, as below

        ctx = click.get_current_context()
        return PluginStates(ctx.obj.settings(), ctx.meta["state"], is_forced=ctx.meta["force"])
    if not folder:  # an unset variable of a script, most likely
        raise InvalidError("--dir is empty: a folder is expected")
    from holdfast.state import State  # start-up: help and completion need no disk

    return State(folder, save_delay=0)


@click.group()
@with_common_options
def command() -> None:
    """Look at variables, and change them.

    With --dir they lie in the files of that folder. Without, a NAMESPACE is a plugin, such as MODULE:CLASS (or
    MODULE, if it has run), and the variables are those of its plugin state; while a run has that, they can only be
    read.
    """


@command.command("list")
@click.argument("namespaces", nargs=-1, metavar="[NAMESPACE]...")
@_in_folder
@with_common_options
@click.pass_obj
def list_(call: Call, namespaces: tuple[str, ...], folder: str | None) -> None:
    """List the variables of these namespaces, or of all."""
    found = _read(_open(folder), namespaces)
    if call.is_json:
        call.answer(found, "")
        return
    rows = [[namespace, name, _word(value)] for namespace, names in found.items() for name, value in names.items()]
    draw(["namespace", "variable", "value"], [rows])


@command.command()
@click.argument("namespace")
@click.argument("name")
@_in_folder
@with_common_options
@click.pass_obj
def get(call: Call, namespace: str, name: str, folder: str | None) -> None:
    """Print the value of one variable; exit with 4 if there is none."""
    value = _open(folder).get(namespace)[name]
    call.answer({"namespace": namespace, "name": name, "value": value}, _word(value))


@command.command("set")
@click.argument("namespace")
@click.argument("name")
@click.argument("value")
@click.option("--text", "is_text", is_flag=True, help="The value is text, whatever it looks like.")
@_in_folder
@with_common_options
@click.pass_obj
def set_(call: Call, namespace: str, name: str, value: str, folder: str | None, *, is_text: bool) -> None:
    """Give a variable a value; it is durable when this ends.

    A number, true and false are what they look like; everything else is text.
    """
    meant = value if is_text else _meant(value)
    _open(folder).get(namespace)[name] = meant
    call.answer({"namespace": namespace, "name": name, "value": meant}, f"{escaped(name)} is {_word(meant)} now.")


@command.command()
@click.argument("namespace")
@click.argument("names", nargs=-1, metavar="[VARIABLE]...")
@_in_folder
@with_common_options
@click.pass_obj
def delete(call: Call, namespace: str, names: tuple[str, ...], folder: str | None) -> None:
    """Delete these variables together, or the whole namespace; nothing happens to what is not there."""
    state = _open(folder)
    with state.transaction() if folder is None or os.path.lexists(folder) else nullcontext():  # it would be made
        ns = state.get(namespace)
        gone = [name for name in names or list(ns) if name in ns]
        for name in gone:
            del ns[name]
    call.answer({"namespace": namespace, "deleted": gone}, f"Deleted {len(gone)} variables of {namespace!r}.")


@command.command()
@click.argument("namespaces", nargs=-1, metavar="[NAMESPACE]...")
@_in_folder
@with_common_options
def export(namespaces: tuple[str, ...], folder: str | None) -> None:
    """Print these namespaces, or all, as they are at one moment: one JSON document, for "import"."""
    state = _open(folder)
    is_lockable = folder is not None and os.access(folder, os.W_OK)  # one that is not can be read all the same
    with state.transaction() if is_lockable else nullcontext():
        found = _read(state, namespaces)
    click.echo(json.dumps(found, indent=4))


class _Document(click.File):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-" and sys.stdin is None:
            self.fail("standard input is closed", param, ctx)
        return super().convert(value, param, ctx)


@command.command("import")
@click.argument("file", type=_Document(encoding="utf-8-sig"))
@_in_folder
@with_common_options
@click.pass_obj
def import_(call: Call, file: IO[str], folder: str | None) -> None:
    """Set all variables that FILE holds (- for standard input), or none; others stay as they are."""
    try:
        found: Any = json.load(file)
        variables: dict[str, dict[str, Any]] = {name: {**each} for name, each in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        expected = '{"namespace": {"variable": value}} is expected'
        raise InvalidError(f"{file.name!r} is no export: {exc}; {expected}", path=file.name) from exc
    state = _open(folder)
    with state.transaction():
        for namespace, each in variables.items():
            ns = state.get(namespace)
            ns |= each
    counts = {namespace: len(each) for namespace, each in variables.items()}
    call.answer({"imported": counts}, f"Imported {sum(counts.values())} variables of {len(counts)} namespaces.")


@command.command()
@click.argument("namespace")
@_in_folder
@with_common_options
@click.pass_obj
def watch(call: Call, namespace: str, folder: str | None) -> None:
    """Print each change of a namespace that programs store, a line for each, until Ctrl-C."""
    import queue  # start-up, as above

    # Printed in this thread, where a reader that has gone ends the command.
    seen: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    with _open(folder).watch(namespace, seen.put):
        while True:
            changes = seen.get()
            lines = [escaped(name) + "\t" + ("" if value is None else _word(value)) for name, value in changes.items()]
            click.echo(json.dumps({"changes": changes}) if call.is_json else "\n".join(lines))
            sys.stdout.flush()


def _read(state: State | PluginStates, namespaces: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the variables of some namespaces, or of all that have any."""
    wanted = list(namespaces)
    found = {name: {each: state.get(name)[each] for each in state.get(name)} for name in wanted or list(state)}
    if missing := [name for name in wanted if not found[name]]:
        raise NotFoundError(f"there is no namespace {missing[0]!r}: it has no variables", namespace=missing[0])
    return {name: variables for name, variables in found.items() if variables}


def _meant(word: str) -> Any:
    try:
        # Python refuses thousands of digits as it does a word; the first thirty are too many for a variable as well.
        # NaN and Infinity are no numbers of JSON, though Python reads them: they are words, as "nan" is.
        value: Any = json.loads(word, parse_int=lambda digits: int(digits[:30]), parse_constant=str)
    except (ValueError, RecursionError):
        return word
    return value if isinstance(value, int | float) else word


def _word(value: Any) -> str:
    return escaped(value) if isinstance(value, str) else json.dumps(value)
