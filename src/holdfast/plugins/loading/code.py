"""The code of one plugin, loaded under names of its own, so that new code can stand beside the old.

A plugin ``hello`` in a folder becomes the module ``hello-1.hello``; its submodules, and what it imports from beside
it with a dot, are below ``hello-1`` as well. No import statement can say such a name, so that no plugin hides another
module, whatever it is called. No number is given twice: what goes on of older code finds its own modules, or none.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import cache_from_source, find_spec, module_from_spec, spec_from_file_location
from itertools import count
from operator import attrgetter
from pathlib import Path
from types import AsyncGeneratorType, CodeType, CoroutineType, GeneratorType, ModuleType
from typing import Any, Final

from holdfast.errors import InvalidError
from holdfast.plugins.base import PluginBase
from holdfast.plugins.loading.finding import Found
from holdfast.plugins.source import find_runnable

_LATER: Final[tuple[type, ...]] = (CoroutineType, GeneratorType, AsyncGeneratorType)
_seen: Final[set[tuple[str, str]]] = set()
"""What this process has loaded once, by folder and name: its compiled file may be older than it looks."""
_numbers: Final[dict[str, Iterator[int]]] = {}
"""For each plugin the numbers that are left."""


class Code:
    """A plugin's code in this process.

    Attributes:
        prefix: What the names of its modules begin with.
        module: Its module, which may have a class with run().
        setup: Its function; one that does nothing if it is there to be run only.
        version: Its ``__version__``, or "unknown".
        dump: Its function that returns a state, if it has one; restore likewise.
        users: How many runs have it; the loader counts them, and until there are none it is not forgotten.
        is_left: Whether it was unloaded, so that nobody is given it any more.
    """

    __slots__ = ("dump", "is_left", "module", "prefix", "restore", "setup", "users", "version")

    def __init__(self, found: Found, *, is_first: bool) -> None:
        """Load it; raises whatever the code raises, and leaves nothing then.

        An installed plugin is imported as usual the first time, as the same module for all. From then on, and what is
        in a folder always, code is loaded under names of its own; compiled files count the first time only.
        """
        self.users, self.is_left = 0, False
        name, folders, attribute = found.name, [found.folder], ""
        if found.entry is not None:
            name, attribute = found.entry.module, found.entry.attr
            folders = [] if is_first else _folders_of(name)
        is_trusted = is_first and (found.folder, name) not in _seen
        _seen.add((found.folder, name))
        self.prefix = _reserve(found.name, folders, is_trusted=is_trusted) if folders else name
        try:
            if found.entry is None:
                self.module = _load(f"{self.prefix}.{name}", folders, found.file if is_trusted else None)
            else:
                self.module = import_module(f"{self.prefix}.{name}" if folders else name)
            named: Any = attrgetter(attribute)(self.module) if attribute else self.module
            # What a class calls setup() is for one run, and so are its other methods.
            plugin: Any = None if _is_class(named) else named
            self.setup = _setup_of(plugin, found.name)
            version = getattr(self.module, "__version__", None)
            self.version: str = version if isinstance(version, str) else "unknown"
            self.dump: Callable[[], object] | None = getattr(plugin, "dump", None)
            self.restore: Callable[[object], object] | None = getattr(plugin, "restore", None)
        except BaseException:
            self.forget()
            raise

    def begin(self, plugin: str) -> None:
        """Call setup() for the first time.

        Raises:
            InvalidError: It has only made what would have to be awaited or iterated.
        """
        made: Any = self.setup()
        if isinstance(made, _LATER):
            if isinstance(made, CoroutineType):
                made.close()  # else Python warns that nobody has awaited it
            message = (
                f"setup() of plugin {plugin!r} is async or a generator, and would do nothing: a function is expected"
            )
            raise InvalidError(message, plugin=plugin)

    def forget(self) -> None:
        """Free the names; what somebody still holds lives on."""
        if _own.pop(self.prefix, None) is not None:
            for name in self._names():
                sys.modules.pop(name, None)

    def threads(self) -> list[str]:
        """Return the names of the threads that are running this code now, but for the calling one."""
        modules = [sys.modules.get(name) for name in self._names()]
        owned = {id(module.__dict__) for module in modules if isinstance(module, ModuleType)}
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
        return [name for name in list(sys.modules) if f"{name}.".startswith(f"{self.prefix}.")]


def _is_class(named: Any) -> bool:
    return isinstance(named, type) and issubclass(named, PluginBase)


def _setup_of(plugin: Any, name: str) -> Callable[[], object]:
    setup = getattr(plugin, "setup", None)
    if callable(setup):
        return setup
    if setup is None and (plugin is None or (isinstance(plugin, ModuleType) and find_runnable(plugin))):
        return _no_setup
    message = f"plugin {name!r} has no function setup(): it must have one, or a class with run()"
    raise InvalidError(message, plugin=name)


def _no_setup() -> None:
    """Do nothing, in each cycle, for a plugin that is there to be run."""


def _reserve(name: str, folders: list[str], *, is_trusted: bool) -> str:
    """Put an empty package that leads to ``folders`` under the next name, and return that."""
    prefix = f"{name}-{next(_numbers.setdefault(name, count(1)))}"  # one step for all threads
    package = sys.modules[prefix] = ModuleType(prefix)
    package.__path__ = folders
    _own[prefix] = _KINDS if is_trusted else _KINDS_ANEW
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    return prefix


def _load(name: str, folders: list[str], file: str | None) -> ModuleType:
    """Do what import does for a name that nobody else can know, without its locks, and its search if that was done."""
    spec = _spec(name, SourceFileLoader(name, file), file) if file else _Finder.find_spec(name, folders)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return sys.modules[name]  # it may have put something else there


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


_Kinds = tuple[tuple[str, Callable[[str, str], Any]], ...]


def _kinds(source: type[SourceFileLoader]) -> _Kinds:
    kinds = ((EXTENSION_SUFFIXES, ExtensionFileLoader), (SOURCE_SUFFIXES, source))
    return tuple(
        (suffix, kind) for suffixes, kind in (*kinds, (BYTECODE_SUFFIXES, SourcelessFileLoader)) for suffix in suffixes
    )


_KINDS: Final = _kinds(SourceFileLoader)
_KINDS_ANEW: Final = _kinds(_Source)
_own: Final[dict[str, _Kinds]] = {}
"""The prefixes below which modules are loaded, also those that a function imports much later; and by what."""


class _Finder:
    """Finds modules below `_own` by what is there now; all others are none of its business."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del target
        first, _, rest = fullname.partition(".")
        kinds = _own.get(first, ())
        for folder in (path or ()) if kinds else ():
            base = f"{folder}/{rest.rpartition('.')[2]}"
            for stem, places in ((f"{base}/__init__", [base]), (base, None)):
                for suffix, kind in kinds:
                    if os.path.isfile(file := stem + suffix):  # noqa: PTH113
                        return _spec(fullname, kind(fullname, file), file, places)
        return None


def _spec(fullname: str, loader: Any, file: str, places: list[str] | None = None) -> ModuleSpec | None:
    return spec_from_file_location(fullname, file, loader=loader, submodule_search_locations=places)
