"""Looking at one plugin by loading it, for ``holdfast plugins check``: in a process that may hang, exit or die of it.

`check` starts `main`, which forks: the child looks at the plugin, the parent runs none of its code, ends whatever the
plugin has started, and reports how the child ended. The child notes each finding in a file as soon as it is made, so
that what a plugin does to its process leaves the findings before it.
"""

from __future__ import annotations

import faulthandler
import inspect
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final, Literal, NoReturn, cast

from pydantic import TypeAdapter

from holdfast.errors import HoldfastError, InvalidError, PluginError, UnavailableError
from holdfast.plugins import PluginBase, PluginConfig, StatefulPlugin, read_metadata
from holdfast.plugins.current import current
from holdfast.plugins.loader import PluginLoader
from holdfast.plugins.loading.finding import Found, find_plugins
from holdfast.plugins.source import Source
from holdfast.pod import Pod
from holdfast.sql import SqliteStore
from holdfast.state import State

_MAX_SAID: Final = 4_000
"""Bytes of what a plugin printed that are shown, the last ones."""
_MAX_FILE: Final = 1 << 30
"""Bytes that a file can have that a plugin writes, what it prints included: one that floods the disk fails."""
_POLL_S: Final = 0.02
_KILLING_S: Final = 5.0
"""How long to wait for what was killed; what this user may not kill is left."""
_PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>

_LATE: Final = 1_000
"""Reported instead of an exit code."""

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
    verdict: Literal["ok", "warn", "fail"]
    found: str
    exit_code: int = 0
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Which plugin it is that was loaded."""

    version: str
    kind: Literal["setup", "run", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is known of a plugin that was loaded: ``kind`` is that of its `Facts`; "" if it could not be."""

    name: str
    version: str
    kind: str
    findings: tuple[Finding, ...]
    output: str

    @property
    def failure(self) -> Finding | None:
        """The first finding that is a failure."""
        return next((each for each in self.findings if each.verdict == "fail"), None)


_Note: Final[TypeAdapter[Finding | Facts | None]] = TypeAdapter(Finding | Facts | None)
"""A line of the notes; the last one is None."""


def check(found: Found, *, timeout_s: float) -> Checked:
    """Load a plugin in a process of its own, call its setup(), look at its classes, and say what is so.

    The process has a home of its own, and is ended after ``timeout_s`` seconds; if the calling process ends before,
    however it does, at once. With it ends what it has started: on Linux all of it, elsewhere what is in its session.
    """
    with TemporaryDirectory(prefix="holdfast-check-") as folder:
        command = [sys.executable, "-P", "-c", "from holdfast.cli.plugin_check import main; main()"]
        # What would lead to what the user has: his home, his variables, his Pod on a server.
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "POD_"))}
        with (
            Path(folder, "output").open("a+b") as said,
            subprocess.Popen(  # noqa: S603 -- this interpreter; no shell reads the words
                [*command, found.name, found.folder, folder, str(time.monotonic()), str(timeout_s)],
                env={**ours, "HOLDFAST_HOME": str(Path(folder, "home"))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
            ) as process,
        ):
            assert process.stdout is not None  # noqa: S101 -- a pipe, as was said
            report = process.stdout.read()
            said.seek(max(0, said.seek(0, os.SEEK_END) - _MAX_SAID))
            printed = said.read().decode(errors="replace")
        facts, findings, is_done = _read_notes(Path(folder, "notes"))
    code = int(report or process.returncode)
    if code == _LATE:
        message = f"it was not done after {timeout_s:g} s; the output shows where it was"
        findings.append(Finding("process", "fail", message, UnavailableError.exit_code))
    elif not is_done:
        names = {each.value: each.name for each in signal.Signals}
        how = f"exit code {code}" if code >= 0 else names.get(-code, f"signal {-code}")
        findings.append(Finding("process", "fail", f"it ended its process: {how}", PluginError.exit_code))
    version, kind = ("unknown", "") if facts is None else (facts.version, facts.kind)
    return Checked(name=found.name, version=version, kind=kind, findings=tuple(findings), output=printed)


def _read_notes(path: Path) -> tuple[Facts | None, list[Finding], bool]:
    """Return what was noted, and whether it was all that there is to note."""
    facts, findings = None, list[Finding]()
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            note = _Note.validate_json(line, strict=True)
        except ValueError:
            message = "the notes of this check are not what it wrote: the plugin, or a full disk, has spoilt them"
            return facts, [*findings, Finding("process", "fail", message, PluginError.exit_code)], True
        if note is None:
            return facts, findings, True
        if isinstance(note, Facts):
            facts = note
        else:
            findings.append(note)
    return facts, findings, False


# -- in the process that no plugin's code runs in ---------------------------------------------------------------------


def main() -> NoReturn:
    """Check the plugin that the arguments of this process name, in a child, and report how that ended.

    Whoever waits for the report holds the other end of standard input: when that is closed, nobody does any more.
    """
    name, plugins, folder, began_at, timeout_s = sys.argv[1:]
    ends_at = float(began_at) + float(timeout_s)
    if sys.platform == "linux":
        import ctypes  # nobody else here needs it

        # What a plugin starts outlives it as our child, whatever sessions and parents it gives itself.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if not child:
        _look_and_note(name, Path(plugins), Path(folder), late_at=ends_at - 0.2 * float(timeout_s))
    code, is_asked = _LATE, True
    while is_asked and time.monotonic() < ends_at:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        is_asked = not select.select([0], [], [], _POLL_S)[0]
    _end_all(child)
    if is_asked:
        os.write(1, str(code).encode())
    else:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _end_all(child: int) -> None:
    """Kill the session of a child and whoever is a child of this process now, until there is none."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    until = time.monotonic() + _KILLING_S
    with suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
            for each in _children():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(each, signal.SIGKILL)
            time.sleep(_POLL_S)


def _children() -> list[int]:
    """Return the children of this process; elsewhere than on Linux none."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            # Its name comes first, in brackets, and may be anything.
            if int(path.read_bytes().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


# -- in the plugin's process ------------------------------------------------------------------------------------------


def _look_and_note(name: str, plugins: Path, folder: Path, *, late_at: float) -> NoReturn:
    """Note what is found in ``folder``, and end the process whatever the plugin has left running."""
    import resource  # not on Windows, where plugins can be listed

    os.setsid()
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    limits = [each for each in resource.getrlimit(resource.RLIMIT_FSIZE) if each != resource.RLIM_INFINITY]
    most = min([_MAX_FILE, *limits])
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    faulthandler.dump_traceback_later(max(0.1, late_at - time.monotonic()))
    pid = os.getpid()
    for note in _look(name, plugins, folder):
        if os.getpid() != pid:  # a child that the plugin forked, and that came back
            break
        with Path(folder, "notes").open("ab") as file:  # each time anew: the plugin may close what it did not open
            text = json.dumps(None if note is None else asdict(note), ensure_ascii=False)
            file.write(text.encode(errors="replace") + b"\n")  # half a character, which JSON could not tell again
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


def _look(name: str, folder: Path, own: Path) -> Generator[Finding | Facts | None]:
    """Yield findings, and in between, once it is known, which plugin it is; at the end None."""
    loader = PluginLoader(folder, suspects=own / "suspects")
    with current.using(settings=_Given(), session=_Given(), state=State(own / "state")):
        is_up = loader.load(name, force=True)
    failure = loader.failure(name)
    if not is_up and failure is not None:
        reason = failure.message.removesuffix(f"; load({name!r}, force=True) tries again")
        kind = InvalidError if failure.facts["exception"] == "InvalidError" else PluginError
        yield Finding("load", "fail", reason, kind.exit_code, str(failure.facts["traceback"]))
        yield None
        return
    found, module = find_plugins(folder)[name], loader.module(name)
    assert module is not None  # noqa: S101 -- it is up
    sources, refused = _sources(loader, found)
    is_run = bool(sources or refused)
    has_setup = not is_run or callable(getattr(module, "setup", None))
    yield Facts(loader.registry[name][0], "setup" if not is_run else "both" if has_setup else "run")
    yield Finding("load", "ok", "it is loaded, and setup() was called" if has_setup else "it is loaded")
    yield from refused
    for source in sources:
        for what, look in _LOOKS.items():
            yield _looked(f"{source.name}: {what}", look, source.load(), own)
    if sources:
        yield _looked("metadata", _look_at_metadata, module, _module_name(found), sources)
    yield None


def _sources(loader: PluginLoader, found: Found) -> tuple[list[Source], list[Finding]]:
    """Return what ``holdfast run`` would run of a plugin that was loaded, and why it would not, if so."""
    named = found.entry.load() if found.entry is not None and found.entry.attr else PluginBase
    if not (isinstance(named, type) and issubclass(named, PluginBase)):
        return [], []  # an object with setup()
    try:
        return [_source(loader, found.name)], []
    except HoldfastError as exc:
        classes = exc.facts.get("classes")  # it has several, or none
        if classes is None:
            return [], [_failed("run", exc)]
    return [_source(loader, f"{_module_name(found)}:{each}") for each in cast("list[str]", classes)], []


def _source(loader: PluginLoader, text: str) -> Source:
    with loader.lending(text) as source:
        return source


def _module_name(found: Found) -> str:
    return found.name if found.entry is None else found.entry.module


def _failed(what: str, exc: HoldfastError) -> Finding:
    kind = PluginError if isinstance(exc, PluginError) else InvalidError
    return Finding(what, "fail", exc.message, kind.exit_code)


def _looked(what: str, look: Callable[..., str | Finding], *about: object) -> Finding:
    """Return what a look at the plugin's code found; that code may raise anything."""
    try:
        found = look(*about)
    except HoldfastError as exc:
        return _failed(what, exc)
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


def _look_at_metadata(module: ModuleType, name: str, sources: Sequence[Source]) -> str:
    """Read the metadata beside a module, or beside a package or in it, if it is there and about this plugin."""
    file, classes = Path(module.__file__ or ""), {each.load(): each.name for each in sources}
    for folder in [file.parent, file.parent.parent] if hasattr(module, "__path__") else [file.parent]:
        path = folder / "metadata.json"
        source = read_metadata(path) if path.is_file() else None
        if source is not None and source.module == name:
            if getattr(module, source.name, None) not in classes:
                raise InvalidError(
                    f"{str(path)!r} names {source.name!r}, which is none of {', '.join(classes.values())}"
                )
            spec = find_spec(name) or PathFinder.find_spec(name, [str(folder)])  # as whoever runs it looks
            if spec is None or Path(spec.origin or "").resolve() != file.resolve():
                raise InvalidError(f"{str(path)!r} does not lead to {name!r}: it belongs into the folder that has that")
            return f"{str(path)!r} names {source.name}"
    return "there is none"
