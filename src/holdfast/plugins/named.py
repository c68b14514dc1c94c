"""Plugins by their names, for whoever runs one: those in the plugins' folder, then those that are installed.

What sets plugins up in every cycle is `PluginLoader`; here none is set up, and each call loads anew.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

from holdfast.errors import InvalidError
from holdfast.plugins.loading.code import Code
from holdfast.plugins.loading.finding import GROUP, Found, is_name
from holdfast.plugins.source import Source, failed_import, find_runnable, properties_of


def find_named(text: str, folder: Path) -> Source | None:
    """Return the plugin called NAME, or NAME:CLASS for one in ``folder``; None if there is none.

    It is loaded as `PluginLoader` loads it, under a module name of its own.

    Raises:
        InvalidError: It has no class with run(), or several, and none was named.
        PluginError: Its code raises when it is loaded.
    """
    name, class_name = split_name(text)
    found = _find(name, folder) if name.isidentifier() else None
    if found is None and name == text:
        found = next((Found(name, str(folder), each) for each in entry_points(group=GROUP, name=name)), None)
    if found is None:
        return None
    try:
        code = Code(found, is_first=True)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # the plugin's code: it may even end the process
        raise failed_import(name, exc) from exc
    return source_in(code, found, class_name)


def split_name(text: str) -> tuple[str, str]:
    """Return the two parts of NAME:CLASS, the second empty for NAME alone; and both for what is neither."""
    name, colon, class_name = text.partition(":")
    return (name, class_name) if is_name(name) and class_name.isidentifier() == bool(colon) else ("", "")


def source_in(code: Code, found: Found, name: str = "") -> Source:
    """Return the plugin that can be run in loaded code; its id is that of the module, whatever that was loaded as.

    Args:
        code: The code.
        found: What it was loaded from.
        name: The class; empty: the one that the entry point names, else the only one that `find_runnable` returns.

    Raises:
        InvalidError: There is none, or several.
    """
    module = found.name if found.entry is None else found.entry.module
    name = name or (found.entry.attr if found.entry is not None else "")
    if not name:
        names = find_runnable(code.module)
        if len(names) != 1:
            classes = " or ".join(repr(f"{module}:{each}") for each in names)
            why = f"it has several classes with run(); name one: {classes}" if names else "it has no class with run()"
            raise InvalidError(f"plugin {found.name!r} cannot be run: {why}", plugin=found.name, classes=names)
        [name] = names
    return Source(module=module, name=name, loaded=code.module, properties=properties_of(module, name))


def _find(name: str, folder: Path) -> Found | None:
    """Return the module or package of this name in ``folder``; a folder that happens to be called so is none."""
    spec = PathFinder.find_spec(name, [str(folder)])
    return None if spec is None or spec.origin is None else Found(name, str(folder))
