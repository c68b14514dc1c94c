"""Plugins by their names, for whoever runs one: those in the plugins' folder, then those that are installed.

What sets plugins up in every cycle is `PluginLoader`; here none is set up, and each call loads anew.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from holdfast.errors import InvalidError
from holdfast.plugins.loading.code import Code
from holdfast.plugins.loading.finding import GROUP, Found, find_in_folder, is_name
from holdfast.plugins.source import Source, class_in, failed_import, find_runnable, known_as, name_in, properties_of


def find_named(text: str, folder: Path) -> Source | None:
    """Return the plugin called NAME, or NAME:CLASS for one in ``folder``; None if there is none.

    It is loaded as `PluginLoader` loads it, under a module name of its own.

    Raises:
        InvalidError: It has no class with run(), or several, and none was named.
        NotFoundError: It has no such class.
        PluginError: Its code raises when it is loaded.
    """
    name, class_name = split_name(text)
    found = find_in_folder(name, folder) if name.isidentifier() else None
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


def split_name(text: object) -> tuple[str, str]:
    """Return the two parts of NAME:CLASS, the second empty for NAME alone; and both for what is neither."""
    name, colon, class_name = text.partition(":") if isinstance(text, str) else ("", "", "")
    return (name, class_name) if is_name(name) and class_name.isidentifier() == bool(colon) else ("", "")


def source_in(code: Code, found: Found, name: str = "") -> Source:
    """Return the plugin that can be run in loaded code.

    What a plugin in a folder defines has the name of that plugin as its module: it is one thing, and its own affair
    what it is made of. All else is known as `known_as` says.

    Args:
        code: The code.
        found: What it was loaded from.
        name: The class; empty: the one that the entry point names, else the only one that `find_runnable` returns.

    Raises:
        InvalidError: There is none, or several; or what was named is no plugin.
        NotFoundError: What was named is not there.
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
    cls = class_in(code.module, module, name)
    if found.entry is None and f"{cls.__module__}".startswith(f"{code.prefix}."):
        name = name_in(code.module, cls) or name
    else:
        module, name = known_as(cls, code.module, module, name)
    return Source(module=module, name=name, loaded=cls, properties=properties_of(module, name))
