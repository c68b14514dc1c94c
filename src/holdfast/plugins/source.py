"""Where a plugin comes from: ``MODULE:CLASS``, ``FILE.py:CLASS``, or a file of metadata that names both."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from holdfast.auth import rights_of
from holdfast.errors import InvalidError, NotFoundError, PluginError
from holdfast.items import Account, PluginRun, definition_of
from holdfast.plugins.base import PluginBase
from holdfast.runs import Status
from holdfast.values import Kind, shown

_log: Final = logging.getLogger(__name__)

_BEGINNINGS: Final = (Status.IDLE, Status.INITIALIZED, Status.READY)
"""The statuses that metadata may give a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which class is the plugin, and what its runs are to have.

    Attributes:
        module: Its module, as it is imported.
        name: Its class.
        folder: Where the module is looked for besides installed packages.
        file: The very file that the module must be, if one was named.
        loaded: The class itself, if somebody has loaded it; it is known as this module and name then.
        properties: Of its PluginRun.
        account: The properties of its Account, if it has one.
    """

    module: str
    name: str
    folder: Path | None = None
    file: Path | None = None
    loaded: type[PluginBase] | None = None
    properties: Mapping[str, Any] = field(default_factory=dict[str, Any])
    account: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, plugin: type[PluginBase]) -> Source:
        """Return where a class comes from that is there already."""
        module, name = known_as(plugin, sys.modules.get(plugin.__module__), plugin.__module__, plugin.__name__)
        return cls(module=module, name=name, loaded=plugin, properties=properties_of(module, name))

    @property
    def plugin_id(self) -> str:
        """What its plugin states are found by."""
        return f"{self.module}:{self.name}"

    def load(self) -> type[PluginBase]:
        """Import the module and return the class.

        Raises:
            NotFoundError: There is no such module, or no such class in it.
            InvalidError: The class is no plugin.
            PluginError: The module raises when it is imported.
        """
        return self.loaded or class_in(_import(self.module, self.folder, self.file), self.module, self.name)

    def known(self, cls: type[PluginBase]) -> Source:
        """Return this source with what ``cls``, which `load` returned, is known as, however it was named."""
        if self.loaded is not None:
            return self
        module, name = known_as(cls, sys.modules.get(self.module), self.module, self.name)
        properties = {**self.properties, **properties_of(module, name)}
        return replace(self, module=module, name=name, loaded=cls, properties=properties)


def source_of(text: str) -> Source:
    """Read ``MODULE:CLASS``, ``FILE.py:CLASS`` or the path of a metadata file.

    Raises:
        InvalidError: It is none of the three; a NAME alone is for `holdfast.plugins.named`. Or the metadata is
            malformed.
        NotFoundError: There is no such file.
    """
    is_text = isinstance(text, str)  # pyright: ignore[reportUnnecessaryIsInstance] -- callers may be untyped
    if is_text and text.endswith(".json"):
        return read_metadata(Path(text))
    place, colon, name = text.rpartition(":") if is_text else ("", "", "")
    if not colon or not name.isidentifier() or not place:
        message = (
            f"there is no plugin {shown(text)}: the NAME of one in the plugins' folder or of an installed one, "
            "MODULE:CLASS, FILE.py:CLASS or metadata.json is expected"
        )
        raise InvalidError(message, plugin=shown(text))
    if not place.endswith(".py"):
        return Source(module=place, name=name, folder=Path.cwd(), properties=properties_of(place, name))
    path = Path(place).absolute()
    if not path.is_file():
        raise NotFoundError(f"there is no file {place!r}", path=place)
    if not path.stem.isidentifier():
        message = f"a plugin cannot be in a file {path.name!r}: its name must be that of a module, as in my_plugin.py"
        raise InvalidError(message, path=place)
    properties = properties_of(path.stem, name)
    return Source(module=path.stem, name=name, folder=path.parent, file=path, properties=properties)


def class_in(module: ModuleType, named: str, name: str) -> type[PluginBase]:
    """Return the plugin that a module has under this name.

    Raises:
        NotFoundError: It has none.
        InvalidError: It is no plugin.
    """
    found = getattr(module, name, None)
    if found is None:
        raise NotFoundError(f"module {named!r} has no class {name!r}", module=named)
    if not (isinstance(found, type) and issubclass(found, PluginBase)):
        plugin = f"{named}:{name}"
        raise InvalidError(f"{plugin!r} is no plugin: it must be a subclass of holdfast.PluginBase", plugin=plugin)
    return found


def known_as(cls: type[PluginBase], found_in: ModuleType | None, module: str, name: str) -> tuple[str, str]:
    """Return the module and the name that a plugin is known by, under whichever of its names it was found.

    That is its own name, in the outermost package around the module that defines it which has it under this name: an
    author may let `acme` have what `acme.importers` defines, and then move it there. What has its own name nowhere
    keeps the module that was named, and so does what a script defines, as all scripts are one module.
    """
    around = f"{cls.__module__}".split(".")
    first = 0 if around[0].isidentifier() else 1  # the name under which a reload has put the code is no one's
    for last in range(first + 1, len(around) + 1 if around != ["__main__"] else 0):
        if name_in(sys.modules.get(".".join(around[:last])), cls) == cls.__name__:
            return ".".join(around[first:last]), cls.__name__
    return module, name_in(found_in, cls) or name


def name_in(module: ModuleType | None, cls: type[PluginBase]) -> str | None:
    """Return the name of a class in a module: its own if it has that there, else its first one, if it has any."""
    try:
        if getattr(module, cls.__name__, None) is cls:
            return cls.__name__
    except Exception:  # noqa: BLE001 -- a module that makes its names when they are asked for is the plugin's code
        return None
    return None if module is None else next((name for name, each in vars(module).items() if each is cls), None)


def find_runnable(module: ModuleType) -> list[str]:
    """Return the names of the plugins that can be run, and that a module, or a package in its modules, defines itself.

    What it imports from elsewhere is not its own, what has no run() cannot be run, and what begins with ``_`` is not
    meant to be.
    """
    found = dict.fromkeys(
        each
        for name, each in vars(module).items()
        if isinstance(each, type)
        and issubclass(each, PluginBase)
        and each.run is not PluginBase.run
        and f"{each.__module__}.".startswith(f"{module.__name__}.")
        and not name.startswith("_")
    )
    return [name for each in found if (name := name_in(module, each)) is not None]


def properties_of(module: str, name: str) -> dict[str, str]:
    """Return what every run of a plugin has."""
    return {"pluginModule": module, "pluginName": name}


def read_metadata(path: Path) -> Source:
    """Read a plugin's metadata: one JSON object with ``pluginModule`` and ``pluginName`` at least.

    Other properties of a PluginRun may be there; ``account`` is an object that becomes an Account; ``config`` may be
    an object as well as JSON text, ``reads`` and ``writes`` lists. What is unknown is warned of and left out.

    Raises:
        NotFoundError: There is no such file.
        InvalidError: It is no JSON object, lacks one of the two, or has a value of the wrong type; its status is not
            one that a run begins with, or its progress not between 0 and 1.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise NotFoundError(f"there is no file {str(path)!r}", path=str(path)) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise InvalidError(f"the metadata {str(path)!r} cannot be read as JSON: {exc}", path=str(path)) from exc
    if not isinstance(document, dict):
        raise InvalidError(f"the metadata {str(path)!r} must be an object, not {shown(document)}", path=str(path))
    given = cast("dict[str, Any]", document)
    for name in ("pluginModule", "pluginName"):
        if not isinstance(given.get(name), str) or not given[name]:
            message = f"the metadata {str(path)!r} needs a text {name!r}, not {shown(given.get(name))}"
            raise InvalidError(message, path=str(path), property=name)
    account = given.pop("account", None)
    if account is not None and not isinstance(account, dict):
        raise InvalidError(f"'account' in {str(path)!r} must be an object, not {shown(account)}", path=str(path))
    if isinstance(given.get("config"), dict):
        given["config"] = json.dumps(given["config"])
    for name in ("reads", "writes"):
        if isinstance(given.get(name), list):
            given[name] = json.dumps(given[name])
    properties = _known(PluginRun, given, path)
    rights_of(properties)  # refuses what is no list of types
    if properties.get("status", Status.IDLE) not in _BEGINNINGS:
        message = (
            f"'status' in {str(path)!r} cannot be {shown(given['status'])}: a run begins as {', '.join(_BEGINNINGS)}"
        )
        raise InvalidError(message, path=str(path), property="status")
    if not 0 <= properties.get("progress", 0) <= 1:
        message = f"'progress' in {str(path)!r} cannot be {shown(given['progress'])}: it lies between 0 and 1"
        raise InvalidError(message, path=str(path), property="progress")
    if account is not None:
        account = _known(Account, cast("dict[str, Any]", account), path)
    return Source(
        module=given["pluginModule"],
        name=given["pluginName"],
        folder=path.absolute().parent,
        properties=properties,
        account=account,
    )


def _known(cls: type[PluginRun | Account], given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    declared = definition_of(cls).properties
    known = {name: value for name, value in given.items() if name in declared and value is not None}
    for name in given:
        if name not in declared:
            _log.warning("metadata.unknown", extra={"path": str(path), "property": name})
    for name, value in known.items():
        if declared[name].kind is Kind.REAL and type(value) is int:
            known[name] = float(value)
    cls(**known)  # refuses what is of the wrong type, by name
    return known


def _import(name: str, folder: Path | None, file: Path | None) -> ModuleType:
    """Import an installed module, else one in ``folder``; a file there never hides an installed package."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise NotFoundError(f"there is no module {shown(name)}: that is no name of one", module=shown(name))
    try:
        spec = _find(name)
        # A folder that happens to be called so, a namespace package without a file, hides nothing either.
        if (spec is None or spec.origin is None) and folder is not None and str(folder) not in sys.path:
            sys.path.append(str(folder))
            importlib.invalidate_caches()
            spec = _find(name)
        is_other = file is not None and spec is not None and Path(spec.origin or "").resolve() != file.resolve()
        if spec is not None and not is_other:
            return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # the plugin's code, or that of a package around it: it may even end the process
        raise failed_import(name, exc) from exc
    if is_other:
        message = f"file {str(file)!r} cannot be a plugin: {name!r} is a module elsewhere already; rename the file"
        raise InvalidError(message, path=str(file), module=name)
    where = "" if folder is None else f", nor in {str(folder)!r}"
    raise NotFoundError(f"there is no module {name!r} among the installed packages{where}", module=name)


def failed_import(module: str, exc: BaseException) -> PluginError:
    """Return what it means that the code of a module has raised."""
    message = f"module {module!r} cannot be imported: {type(exc).__name__}: {_text(exc)}"
    return PluginError(message, module=module)


def _text(exc: BaseException) -> str:
    """Return what an exception of a plugin says, in one line, if it can say anything."""
    try:
        return " ".join(str(exc).split())
    except BaseException as broken:  # noqa: BLE001 -- it is the plugin's code that answers, and it may even end the process
        return f"(its text cannot be had: {type(broken).__name__})"


def _find(name: str) -> ModuleSpec | None:
    """Return where a module is; importing the packages around it runs code that may raise anything."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            return None  # a package around it is what is missing, and not something that this package needs
        raise
