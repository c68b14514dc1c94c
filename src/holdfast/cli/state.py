"""``holdfast state``: the variables in a folder, or of plugins, read and changed while programs use them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
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
    place = click.Path(path_type=Path, file_okay=False)
    return click.option("--dir", "folder", type=place, help="The folder with the files.")(named(forced(function)))


def _open(folder: Path | None) -> State | PluginStates:
    if folder is None:
        from holdfast.cli.plugin_state import PluginStates  # start-up, as below

        ctx = click.get_current_context()
        return PluginStates(ctx.obj.settings(), ctx.meta["state"], is_forced=ctx.meta["force"])
    from holdfast.state import State  # start-up: help and completion need no disk

    return State(folder, save_delay=0)


@click.group()
@with_common_options
def command() -> None:
    """Look at variables, and change them.

    With --dir they lie in the files of that folder. Without, a NAMESPACE is a plugin, such as MODULE:CLASS, and the
    variables are those of its plugin state; while a run has that, they can only be read.
    """


@command.command("list")
@click.argument("namespaces", nargs=-1, metavar="[NAMESPACE]...")
@_in_folder
@with_common_options
@click.pass_obj
def list_(call: Call, namespaces: tuple[str, ...], folder: Path | None) -> None:
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
def get(call: Call, namespace: str, name: str, folder: Path | None) -> None:
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
def set_(call: Call, namespace: str, name: str, value: str, folder: Path | None, *, is_text: bool) -> None:
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
def delete(call: Call, namespace: str, names: tuple[str, ...], folder: Path | None) -> None:
    """Delete these variables together, or the whole namespace; nothing happens to what is not there."""
    state = _open(folder)
    with state.transaction():
        ns = state.get(namespace)
        gone = [name for name in names or list(ns) if name in ns]
        for name in gone:
            del ns[name]
    call.answer({"namespace": namespace, "deleted": gone}, f"Deleted {len(gone)} variables of {namespace!r}.")


@command.command()
@click.argument("namespaces", nargs=-1, metavar="[NAMESPACE]...")
@_in_folder
@with_common_options
def export(namespaces: tuple[str, ...], folder: Path | None) -> None:
    """Print these namespaces, or all, as they are at one moment: one JSON document, for "import"."""
    click.echo(json.dumps(_read(_open(folder), namespaces), indent=4))


@command.command("import")
@click.argument("file", type=click.File(encoding="utf-8"))
@_in_folder
@with_common_options
@click.pass_obj
def import_(call: Call, file: IO[str], folder: Path | None) -> None:
    """Set all variables that FILE holds (- for standard input), or none; others stay as they are."""
    try:
        found: Any = json.load(file)
        variables: dict[str, dict[str, Any]] = {str(name): dict(each) for name, each in found.items()}
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
def watch(call: Call, namespace: str, folder: Path | None) -> None:
    """Print each change of a namespace that programs store, a line for each, until Ctrl-C."""
    import threading

    def show(changes: dict[str, Any]) -> None:
        lines = [escaped(name) + "\t" + ("" if value is None else _word(value)) for name, value in changes.items()]
        click.echo(json.dumps({"changes": changes}) if call.is_json else "\n".join(lines))
        sys.stdout.flush()

    with _open(folder).watch(namespace, show):
        threading.Event().wait()


def _read(state: State | PluginStates, namespaces: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the variables of some namespaces, or of all; all of one moment if the folder can be locked."""
    names = list(namespaces) or list(state)
    found = {name: {each: state.get(name)[each] for each in state.get(name)} for name in names}
    if missing := [name for name, variables in found.items() if not variables]:
        raise NotFoundError(f"there is no namespace {missing[0]!r}: it has no variables", namespace=missing[0])
    return found


def _meant(word: str) -> Any:
    try:
        value: Any = json.loads(word)
    except ValueError:
        return word
    return value if isinstance(value, int | float) else word


def _word(value: Any) -> str:
    return escaped(value) if isinstance(value, str) else json.dumps(value)
