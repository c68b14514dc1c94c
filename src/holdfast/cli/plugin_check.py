"""Looking at one plugin by loading it, for ``holdfast plugins check``: in a process that may hang, exit or die of it.

`check` starts that process and judges how it ended; `main` is what the process does. It notes each finding in a file
as soon as it is made, so that what a plugin does to its process leaves the findings before it.
"""

from __future__ import annotations

import faulthandler
import inspect
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final, NoReturn

from holdfast.errors import HoldfastError, InvalidError, PluginError, UnavailableError
from holdfast.plugins import PluginBase, PluginConfig, StatefulPlugin, read_metadata
from holdfast.plugins.current import current
from holdfast.plugins.loader import PluginLoader
from holdfast.plugins.loading.finding import Found, find_plugins
from holdfast.plugins.source import find_runnable
from holdfast.pod import Pod
from holdfast.sql import SqliteStore
from holdfast.state import State

_MAX_SAID: Final = 4_000
"""Characters of what a plugin printed that are shown, the last ones."""

_LATER: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        verdict: "ok", "warn" for what is to be mended some day, or "fail".
        found: What is so, in words.
        exit_code: What a command ends with that found it; 0 if it is no failure.
        traceback: Of what the plugin raised.
    """

    check: str
    verdict: str
    found: str
    exit_code: int = 0
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is known of a plugin that was loaded: ``kind`` is "setup", "run" or "both"; "" if it could not be."""

    name: str
    version: str
    kind: str
    findings: tuple[Finding, ...]
    output: str

    @property
    def failure(self) -> Finding | None:
        """The first finding that is a failure."""
        return next((each for each in self.findings if each.verdict == "fail"), None)


def check(found: Found, *, timeout_s: float) -> Checked:
    """Load a plugin in a process of its own, call its setup(), look at its classes, and say what is so.

    The process has a home of its own, and is ended after ``timeout_s`` seconds, with all that it has started.
    """
    with TemporaryDirectory(prefix="holdfast-check-") as folder:
        notes, output = Path(folder, "notes"), Path(folder, "output")
        command = [sys.executable, "-P", "-c", "from holdfast.cli.plugin_check import main; main()"]
        ours = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        with output.open("wb") as said:
            process = subprocess.Popen(  # noqa: S603 -- this interpreter; no shell reads the words
                [*command, found.name, found.folder, str(notes), str(time.monotonic() + timeout_s * 0.8)],
                env={**ours, "HOLDFAST_HOME": str(Path(folder, "home"))},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        code: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = [json.loads(line) for line in notes.read_bytes().splitlines()] if notes.exists() else []
        printed = output.read_text(encoding="utf-8", errors="replace")[-_MAX_SAID:]
    facts: Mapping[str, str] = next((line for line in lines if "kind" in line), {"version": "unknown", "kind": ""})
    findings = [Finding(**line) for line in lines if "check" in line]
    if code is None:
        message = f"it was not done after {timeout_s:g} s; the output shows where it was"
        findings.append(Finding("process", "fail", message, UnavailableError.exit_code))
    elif not lines or lines[-1] != {}:  # what `main` notes last
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        findings.append(Finding("process", "fail", f"it ended its process: {how}", PluginError.exit_code))
    return Checked(name=found.name, **facts, findings=tuple(findings), output=printed)


# -- in the process ---------------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Check the plugin that the arguments of this process name, and end it whatever the plugin has left running."""
    name, folder, notes, late_at = sys.argv[1:]
    faulthandler.dump_traceback_later(max(0.1, float(late_at) - time.monotonic()))
    pid, path = os.getpid(), Path(notes)
    for finding in _look(name, Path(folder), path.parent):
        if os.getpid() != pid:  # a child that the plugin forked, and that came back
            break
        with path.open("a", encoding="utf-8") as file:  # each time anew: the plugin may close what it did not open
            file.write(json.dumps(asdict(finding) if isinstance(finding, Finding) else finding) + "\n")
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # as above
            stream.flush()
    os._exit(0)


class _Given(dict[str, Any]):
    """The settings or the session of an application that nobody knows here: empty, and with items as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as exc:
            raise AttributeError(name) from exc

    def __setattr__(self, name: str, value: object) -> None:
        self[name] = value


def _look(name: str, folder: Path, own: Path) -> Generator[Finding | dict[str, str]]:
    """Yield findings, and in between, once it is known, which version and kind the plugin is; at the end nothing."""
    loader = PluginLoader(folder, suspects=own / "suspects")
    with current.using(settings=_Given(), session=_Given(), state=State(own / "state")):
        is_up = loader.load(name, force=True)
    failure = loader.failure(name)
    if not is_up and failure is not None:
        reason = failure.message.removesuffix(f"; load({name!r}, force=True) tries again")
        kind = InvalidError if failure.facts["exception"] == "InvalidError" else PluginError
        yield Finding("load", "fail", reason, kind.exit_code, str(failure.facts["traceback"]))
    else:
        module, classes = _loaded(name, folder)
        has_setup = callable(vars(module).get("setup"))
        kind = "both" if has_setup and classes else "run" if classes else "setup"
        yield {"version": loader.registry[name][0], "kind": kind}
        yield Finding("load", "ok", "it is loaded, and setup() was called" if has_setup else "it is loaded")
        for cls in classes:
            for what, look in _LOOKS.items():
                yield _looked(f"{cls.__name__}: {what}", look, cls, own)
        if classes:
            yield _looked("metadata", _look_at_metadata, module, [cls.__name__ for cls in classes])
    yield {}


def _loaded(name: str, folder: Path) -> tuple[ModuleType, list[type[PluginBase]]]:
    """Return the module of a plugin that was just loaded, and those of its classes that can be run."""
    found = find_plugins(folder)[name]
    if found.entry is None:
        module = sys.modules[f"{name}-1.{name}"]  # as the loader calls it
    else:
        module = sys.modules[found.entry.module]
        if isinstance(cls := found.entry.load(), type):
            return module, [cls]
    return module, [getattr(module, each) for each in find_runnable(module)]


def _looked(what: str, look: Callable[..., str | Finding], *about: object) -> Finding:
    """Return what a look at the plugin's code found; that code may raise anything."""
    try:
        found = look(*about)
    except HoldfastError as exc:
        return Finding(what, "fail", exc.message, exc.exit_code)
    except BaseException as exc:  # noqa: BLE001 -- as above
        trace = "".join(traceback.format_exception(exc))
        return Finding(what, "fail", f"{type(exc).__name__}: {exc}", PluginError.exit_code, trace)
    return Finding(what, "ok", found) if isinstance(found, str) else replace(found, check=what)


def _look_at_methods(cls: type[PluginBase], own: Path) -> str:
    del own
    names = ["run", "setup"] if issubclass(cls, StatefulPlugin) else ["run"]
    for name in names:
        flags = getattr(getattr(getattr(cls, name), "__code__", None), "co_flags", 0)
        if flags & _LATER or (name == "setup" and flags & inspect.CO_COROUTINE):
            raise InvalidError(f"{name}() would not run: it cannot yield" + ", nor be async" * (name == "setup"))
    return " and ".join(f"{name}()" for name in names) + " can be called"


def _look_at_config(cls: type[PluginBase], own: Path) -> str:
    del own
    if cls.Config is None:
        return "its settings are the arguments of its constructor"
    if not (isinstance(cls.Config, type) and issubclass(cls.Config, PluginConfig)):  # pyright: ignore[reportUnnecessaryIsInstance] -- the plugin's
        raise InvalidError("Config must be a subclass of holdfast.PluginConfig")
    properties = cls.Config.model_json_schema().get("properties", {})
    needed = [name for name, each in cls.Config.model_fields.items() if each.is_required()]
    return f"settings: {', '.join(properties) or 'none'}; needed: {', '.join(needed) or 'none'}"


def _look_at_schema(cls: type[PluginBase], own: Path) -> str:
    if not cls.schema_classes:
        return "it adds no item types"
    path = own / f"{secrets.token_hex(8)}.db"
    with Pod(SqliteStore(path, secrets.token_bytes(32))) as client:
        client.add_to_schema(*cls.schema_classes)
    return f"item types: {', '.join(each.__name__ for each in cls.schema_classes)}"


def _look_at_version(cls: type[PluginBase], own: Path) -> str | Finding:
    del own
    if not issubclass(cls, StatefulPlugin):
        return "it has no variables"
    version: object = cls.state_version
    if type(version) is not int or version < 1:
        raise InvalidError(f"state_version cannot be {version!r}: a whole number is expected, 1 at least")
    if version > 1 and cls.migrate_state is StatefulPlugin.migrate_state:
        return Finding("", "warn", f"it is {version}, but without migrate_state() it does not run on older variables")
    return f"it is {version}"


_LOOKS: Final[Mapping[str, Callable[[type[PluginBase], Path], str | Finding]]] = {
    "methods": _look_at_methods,
    "Config": _look_at_config,
    "schema_classes": _look_at_schema,
    "state_version": _look_at_version,
}


def _look_at_metadata(module: ModuleType, classes: Sequence[str]) -> str:
    """Read the metadata beside a module, or beside a package or in it, if it is there and about this plugin."""
    name, file = module.__name__.rpartition("-1.")[2], Path(module.__file__ or "")
    for folder in [file.parent, file.parent.parent] if hasattr(module, "__path__") else [file.parent]:
        path = folder / "metadata.json"
        source = read_metadata(path) if path.is_file() else None
        if source is not None and source.module == name:
            if source.name not in classes:
                raise InvalidError(f"{str(path)!r} names {source.name!r}, which is none of {', '.join(classes)}")
            return f"{str(path)!r} names {source.name}"
    return "there is none"
