"""The code of one plugin, loaded under names of its own, so that new code can stand beside the old.

A plugin ``hello`` in a folder becomes the module ``hello-1.hello``; its submodules, and what it imports from beside
it with a dot, are below ``hello-1`` as well. No import statement can say such a name, so that no plugin hides another
module, whatever it is called. The number is the smallest that is free: loading again and again makes no more names.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import cache_from_source, find_spec
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from itertools import count
from operator import attrgetter
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from holdfast.errors import InvalidError
from holdfast.plugins.loading.finding import Found

_LATER: Final = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR
_seen: Final[set[tuple[str, str]]] = set()
"""What this process has loaded once, by folder and name: its compiled file may be older than it looks."""


class Code:
    """A plugin's code in this process.

    Attributes:
        prefix: What the names of its modules begin with.
        setup: Its function.
        version: Its ``__version__``, or "unknown".
        dump: Its function that returns a state, if it has one; restore likewise.
    """

    __slots__ = ("_is_own", "dump", "prefix", "restore", "setup", "version")

    def __init__(self, found: Found, *, is_first: bool) -> None:
        """Load it; raises whatever the code raises, and leaves nothing then.

        An installed plugin is imported as usual the first time, as the same module for all. From then on, and what is
        in a folder always, code is loaded under names of its own; compiled files count the first time only.
        """
        name, folders, attribute = found.name, [found.folder], ""
        if found.entry is not None:
            name, attribute = found.entry.module, found.entry.attr
            if not is_first:
                folders = _folders_of(name)
        self._is_own = found.entry is None or not is_first
        self.prefix = _reserve(found.name, folders) if self._is_own else name
        try:
            if self._is_own and (not is_first or (found.folder, name) in _seen):
                _load_anew(self.prefix)
            _seen.add((found.folder, name))
            module = import_module(f"{self.prefix}.{name}" if self._is_own else name)
            plugin: Any = attrgetter(attribute)(module) if attribute else module
            self.setup = _setup_of(plugin, found.name)
            version = getattr(module, "__version__", None)
            self.version: str = version if isinstance(version, str) else "unknown"
            self.dump: Callable[[], object] | None = getattr(plugin, "dump", None)
            self.restore: Callable[[object], object] | None = getattr(plugin, "restore", None)
        except BaseException:
            self.forget()
            raise

    def forget(self) -> None:
        """Free the names; what somebody still holds lives on."""
        if self._is_own:
            for name in self._names():
                sys.modules.pop(name, None)
            _anew.discard(self.prefix)

    def threads(self) -> list[str]:
        """Return the names of the threads that are running this code now, but for the calling one."""
        owned = {id(getattr(sys.modules.get(name), "__dict__", None)) for name in self._names()}
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        running: list[str] = []
        for ident, top in sys._current_frames().items():  # pyright: ignore[reportPrivateUsage] -- its documented name
            frame = None if ident == threading.get_ident() else top
            while frame is not None and id(frame.f_globals) not in owned:
                frame = frame.f_back
            if frame is not None:
                running.append(names.get(ident, str(ident)))
        return running

    def _names(self) -> list[str]:
        below = f"{self.prefix}."
        return [name for name in list(sys.modules) if name == self.prefix or name.startswith(below)]


def _setup_of(plugin: Any, name: str) -> Callable[[], object]:
    setup = getattr(plugin, "setup", None)
    if not callable(setup):
        raise InvalidError(f"plugin {name!r} has no function setup(): it must have one", plugin=name)
    if getattr(getattr(setup, "__code__", None), "co_flags", 0) & _LATER:
        message = f"setup() of plugin {name!r} is async or a generator, and would do nothing: a function is expected"
        raise InvalidError(message, plugin=name)
    return setup


def _reserve(name: str, folders: list[str]) -> str:
    """Put an empty package that leads to ``folders`` under the first free name, and return that."""
    for number in count(1):
        prefix = f"{name}-{number}"
        if prefix not in sys.modules:
            package = ModuleType(prefix)
            package.__path__ = folders
            if sys.modules.setdefault(prefix, package) is package:  # else another thread was faster
                return prefix
    raise AssertionError  # numbers do not end


def _folders_of(module: str) -> list[str]:
    """Return where the outermost package of an installed module lies."""
    spec = find_spec(module.partition(".")[0])
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    places = [*(spec.submodule_search_locations or [spec.origin or ""])]
    return [str(Path(place).parent) for place in places]


class _Source(SourceFileLoader):
    """Compiles what the file holds now: a compiled one is told from another by seconds and size, too coarse here."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        with suppress(OSError, NotImplementedError):
            os.unlink(cache_from_source(path))  # noqa: PTH108 -- nor shall the next process take it for this one's
        return self.source_to_code(self.get_data(path), path)


_KINDS: Final = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (_Source, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)
_anew: Final[set[str]] = set()
"""The prefixes below which modules are loaded from source, also those that a function imports much later."""


class _Finder:
    """Finds modules below `_anew`, and looks into their folders each time; all others are none of its business."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del target
        if fullname.partition(".")[0] in _anew:
            for folder in path or ():
                spec = FileFinder(folder, *_KINDS).find_spec(fullname) if os.path.isdir(folder) else None  # noqa: PTH112
                if spec is not None and spec.loader is not None:
                    return spec
        return None


def _load_anew(prefix: str) -> None:
    _anew.add(prefix)
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
