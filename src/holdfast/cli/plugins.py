"""``holdfast plugins``: which plugins there are, whether they work, begin one, try one again, remove one."""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from collections.abc import Mapping
from importlib.machinery import all_suffixes
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.cli.drawing import draw, escaped, is_terminal
from holdfast.cli.invocation import Call, say, with_common_options
from holdfast.errors import ConflictError, InvalidError, NotFoundError

# Start-up: help and completion need neither the disk nor pydantic, so each command imports them itself.
if TYPE_CHECKING:
    from holdfast.cli.plugin_check import Checked
    from holdfast.plugins.loading.finding import Found
    from holdfast.plugins.loading.watching import Watch

_COLUMNS: Final = ["name", "version", "kind", "status", "where"]
_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}
_NAME: Final = re.compile(r"[a-z]([a-z0-9_]*[a-z0-9])?")
"""What the name of a module and that of a distribution can both be."""
_TIMEOUT_S: Final = 30.0
"""How long a plugin may take to be loaded and set up."""


@click.group()
@with_common_options
def command() -> None:
    """See which plugins there are and whether they work; begin one, remove one.

    Plugins are modules and packages in the folder "plugins" of the home, or wherever the settings say, and what is
    installed with an entry point of the group holdfast.plugins.
    """


@command.command("list")
@click.option(
    "--check", "is_checked", is_flag=True, help="Load each, in a process of its own, and say whether it works."
)
@with_common_options
@click.pass_obj
def list_(call: Call, *, is_checked: bool) -> None:
    """List the plugins.

    None is loaded without --check: version and kind (setup, run, or both) are then unknown, but for the version of
    what is installed. Deactivated is one that two processes died of; see "reload".
    """
    from holdfast.cli.plugin_check import check

    listed: list[dict[str, Any]] = []
    found = _find(call)
    deactivated = _deactivated(_watch(call))
    for name, each in sorted(found.items()):
        checked = check(each, timeout_s=_TIMEOUT_S) if is_checked else None
        failure = None if checked is None else checked.failure
        status = "found" if checked is None else "works" if failure is None else "failed"
        version = None if checked is None else checked.version
        if version in (None, "unknown") and each.entry is not None and each.entry.dist is not None:
            version = each.entry.dist.version
        listed.append(
            {
                "name": name,
                "version": version,
                "kind": (checked.kind or None) if checked is not None else None,
                "status": "deactivated" if name in deactivated and failure is None else status,
                "where": _where(each),
                "reason": None if failure is None else failure.found,
            }
        )
    if call.is_json:
        call.answer({"folder": str(call.settings().plugins_dir), "plugins": listed}, "")
    else:
        draw([*_COLUMNS, "reason"], [[[str(each[name] or "") for name in (*_COLUMNS, "reason")] for each in listed]])


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(1), default=_TIMEOUT_S, show_default=True, help="Seconds for each."
)
@with_common_options
@click.pass_context
def check(ctx: click.Context, names: tuple[str, ...], *, timeout_s: float) -> None:
    """Load plugins, each in a process of its own, and say what is wrong with them.

    NAME may be "all". Its setup() is called, with settings and a session that are empty, and its classes are looked
    at: their methods, Config, schema_classes, state_version, and metadata.json. Nothing is run, and the home is not
    touched. Ends with the code of the first that failed: 7 if it raised or ended its process, 6 if it took too long, 2
    if something else is wrong with it.
    """
    from holdfast.cli.plugin_check import check

    call: Call = ctx.obj
    found = _find(call)
    wanted = sorted(found) if "all" in names else list(dict.fromkeys(names))
    plugins = [_get(call, found, name) for name in wanted]
    done: list[Checked] = []
    for each in plugins:
        done.append(check(each, timeout_s=timeout_s))
        if not call.is_json:
            _show(done[-1])
    failures = [each.failure for each in done if each.failure is not None]
    if call.is_json:
        call.answer({"is_well": not failures, "plugins": [_document(each) for each in done]}, "")
    if failures:
        ctx.exit(failures[0].exit_code)


@command.command()
@click.argument("name")
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=".", help="Where, if not here.")
@click.option("--single-file", is_flag=True, help="Write one module into the plugins' folder, and no project.")
@with_common_options
@click.pass_obj
def new(call: Call, name: str, *, folder: Path, single_file: bool) -> None:
    """Begin a plugin: a project that works, with its tests.

    The folder NAME is made, with a package, tests, metadata.json, pyproject.toml and a README; it is written whole or
    not at all, and nothing is overwritten. NAME consists of small letters, digits and "_".
    """
    from holdfast.disk import Disk

    _check_new(call, name)
    files = _filled(name)
    if single_file:
        home = call.settings().plugins_dir
        Disk().put_folder(home)
        written = [home / f"{name}.py"]
        Disk().create(written[0], files[Path(name, "__init__.py")], mode=0o644)
        hint = f"holdfast run {name}"
    else:
        target = folder.absolute() / name
        written = [target / path for path in files]
        _write_project(target, files)
        hint = f"pip install -e {shlex.quote(str(target))} && holdfast run {name}"
    document = {"name": name, "written": [str(path) for path in written]}
    said = "\n".join([*(f"Wrote {escaped(str(path))}" for path in written), f"Try it: {escaped(hint)}"])
    call.answer(document, said)


@command.command()
@click.argument("name")
@with_common_options
@click.pass_obj
def reload(call: Call, name: str) -> None:
    """Let a plugin be tried again that was deactivated because processes died of it.

    An application tries it when it is started next. One that runs is not reached from here: it keeps the code that it
    has until it is started again, or calls load(NAME, force=True) itself.
    """
    _get(call, _find(call), name)
    watch = _watch(call)
    was_deactivated = name in _deactivated(watch)
    watch.forgive(name)
    before = "was deactivated" if was_deactivated else "was not deactivated"
    said = f"Plugin {name} {before}. Applications load it when they are started next."
    call.answer({"name": name, "was_deactivated": was_deactivated}, said)


@command.command()
@click.argument("name")
@click.option("--keep-data/--erase-data", "is_kept", default=True, help="What it has kept stays (default), or goes.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--yes", "is_agreed", is_flag=True, help="Do not ask.")
@with_common_options
@click.pass_obj
def remove(call: Call, name: str, *, is_kept: bool, dry_run: bool, is_agreed: bool) -> None:
    """Remove a plugin from the plugins' folder, and with --erase-data what it has kept.

    That is its plugin states with their variables and snapshots, and its runs with their logs; items and accounts
    that it made stay. A run that works for it is not disturbed: nothing is removed then. With --erase-data NAME may
    be a plugin whose code has gone; if that was installed, the name of its module.
    """
    if not (dry_run or is_agreed or (is_terminal(sys.stdin) and not call.is_json)):
        raise click.UsageError("nobody can be asked here: --yes removes, --dry-run says what that would do")
    from holdfast.cli.plugin_data import Kept, check_free_to_remove, check_not_installed, erase, find_kept
    from holdfast.context import open_store
    from holdfast.disk import Disk

    settings, each = call.settings(), _find(call).get(name)
    if each is not None and each.entry is not None:
        distribution = each.entry.dist.name if each.entry.dist is not None else name
        message = f"plugin {name!r} is installed, with {distribution!r}: pip uninstall {distribution} removes it"
        raise InvalidError(message, plugin=name, distribution=distribution)
    code = [] if each is None else _paths(settings.plugins_dir, name)
    if not is_kept:
        check_not_installed(name)
    try:
        store = open_store(settings)
    except NotFoundError:  # no Pod, no data
        store, kept = None, Kept()
    else:
        # A file holds no modules: what is called so beside it is installed.
        kept = find_kept(store, settings, name, is_package=not code or code[0].is_dir())
    try:
        if not code and (is_kept or kept.is_nothing):
            raise _absent(call, name)
        if store is not None:
            check_free_to_remove(store, settings, kept)
        document = {
            "name": name,
            "code": [str(path) for path in code],
            "data": kept.document(),
            "is_data_erased": not is_kept,
            "is_removed": not dry_run,
        }
        if not call.is_json and (dry_run or not is_agreed):
            draw(["it", "what"], [_going(document)])
        if not dry_run:
            if not is_agreed:
                click.confirm(f"Remove plugin {name}?", abort=True, err=True)
            _watch(call).forgive(name)  # first, as it may be refused
            if store is not None and not is_kept:
                erase(store, settings, kept)
            for path in code:  # last, so that what was stopped half-way can be asked for again
                Disk().delete(path)
    finally:
        if store is not None:
            store.close()
    data = "stays" if is_kept else "is erased"
    call.answer(document, "Nothing was changed." if dry_run else f"Removed plugin {name}; what it has kept {data}.")


# -- which ------------------------------------------------------------------------------------------------------------


def _find(call: Call) -> dict[str, Found]:
    from holdfast.plugins.loading.finding import find_plugins

    return find_plugins(call.settings().plugins_dir)


def _get(call: Call, found: Mapping[str, Found], name: str) -> Found:
    if name not in found:
        raise _absent(call, name)
    return found[name]


def _absent(call: Call, name: str) -> NotFoundError:
    folder = str(call.settings().plugins_dir)
    message = f"there is no plugin {name!r} in {folder!r}, nor is one installed: holdfast plugins list shows them"
    return NotFoundError(message, plugin=name, folder=folder)


def _where(found: Found) -> str:
    if found.entry is None:
        return found.folder
    dist = found.entry.dist
    return found.entry.value if dist is None else f"{found.entry.value} of {dist.name} {dist.version}"


def _paths(folder: Path, name: str) -> list[Path]:
    """Return what makes this name a plugin in a folder; of a link only the link."""
    modules = [folder / f"{name}{suffix}" for suffix in all_suffixes()]
    is_package = any((folder / name / f"__init__{suffix}").is_file() for suffix in all_suffixes())
    return [folder / name] * is_package + [path for path in modules if path.is_file() or path.is_symlink()]


def _going(document: Mapping[str, Any]) -> list[list[str]]:
    data = document["data"]
    word = "goes" if document["is_data_erased"] else "stays"
    rows = [["goes", path] for path in document["code"]]
    rows += [[word, f"plugin state {state}"] for state in data["states"]]
    rows += [[word, f"{data[what]} {what}"] for what in ("variables", "runs") if data[what]]
    return rows + [[word, path] for path in data["paths"]]


# -- those that processes died of --------------------------------------------------------------------------------------


def _watch(call: Call) -> Watch:
    from holdfast.disk import Disk
    from holdfast.plugins.loading.watching import Watch

    return Watch(call.settings().suspects_path, 0, Disk())  # 0: nobody is set up here, so nobody is late


def _deactivated(watch: Watch) -> set[str]:
    """Return those that an application would not start with."""
    from holdfast.plugins.loading.watching import MAX_DEATHS

    return {name for name, deaths in watch.deaths().items() if deaths >= MAX_DEATHS}


# -- what was checked --------------------------------------------------------------------------------------------------


def _show(checked: Checked) -> None:
    for each in checked.findings:
        click.secho(f"{each.verdict:<5}", fg=_COLOURS[each.verdict], nl=False)
        click.echo(escaped(f"{checked.name}: {each.check}: {each.found}"))
    for text in (*(each.traceback for each in checked.findings), checked.output if checked.failure else ""):
        for line in text.splitlines():
            say(escaped(line))


def _document(checked: Checked) -> dict[str, Any]:
    from dataclasses import asdict

    return {"is_well": checked.failure is None, **asdict(checked)}


# -- a new one ---------------------------------------------------------------------------------------------------------


def _check_new(call: Call, name: str) -> None:
    """Accept a name that a module and a distribution can have, and that leads to nothing yet.

    Raises:
        InvalidError: It cannot be one.
        ConflictError: There is a plugin, or another module, of this name.
    """
    is_taken = keyword.iskeyword(name) or keyword.iskeyword(_class(name)) or name in {"holdfast", "tests"}
    if not _NAME.fullmatch(name) or is_taken:
        expected = "small letters, digits and '_' are expected, as in my_plugin, and no word of Python's own"
        message = f"a new plugin cannot be called {name!r}: {expected}"
        raise InvalidError(message, plugin=name)
    if name in _find(call):
        raise ConflictError(f"there is a plugin {name!r} already: choose another name", plugin=name)
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        raise ConflictError(f"there is a module {name!r} already: choose another name", plugin=name)


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _filled(name: str) -> dict[Path, bytes]:
    """Return the files of a project for a plugin of this name."""
    from importlib.metadata import version
    from importlib.resources import files
    from string import Template

    words = {
        "name": name,
        "class_": _class(name),
        "title": name.replace("_", " ").capitalize(),
        "distribution": re.sub("_+", "-", name),
        "version": version("holdfast"),
    }
    places = {
        "plugin.py": Path(name, "__init__.py"),
        "test_plugin.py": Path("tests", f"test_{name}.py"),
        "metadata.json": Path("metadata.json"),
        "pyproject.toml": Path("pyproject.toml"),
        "README.md": Path("README.md"),
    }
    templates = files("holdfast.cli") / "new_plugin"
    return {
        path: Template((templates / f"{template}.tmpl").read_text(encoding="utf-8")).substitute(words).encode()
        for template, path in places.items()
    }


def _write_project(target: Path, files: Mapping[Path, bytes]) -> None:
    """Write a project into a new folder: built under another name, so that there is never half of one.

    Raises:
        NotFoundError: There is no folder to write it into.
        ExistsError: Something has its name.
    """
    from holdfast.disk import Disk

    if not target.parent.is_dir():
        folder = str(target.parent)
        raise NotFoundError(f"there is no folder {folder!r} to write a project into: make it first", path=folder)
    disk = Disk()
    disk.sweep(target.parent)  # what an earlier one, killed, has left
    with disk.temporary_folder(target.parent) as building:
        folders = sorted({(building / path).parent for path in files})
        for folder in folders:
            if folder != building:
                disk.make_folder(folder)
        disk.write({building / path: data for path, data in files.items()}, folders=folders)
        for path in files:
            (building / path).chmod(0o644)  # a project is no secret
        for folder in folders:
            folder.chmod(0o755)
        disk.rename(building, target)
