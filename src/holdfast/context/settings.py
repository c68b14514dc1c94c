"""Where things are, and who decided it: an argument, the environment, the file in the home, or nobody."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from holdfast.disk import StrPath, translate
from holdfast.errors import InvalidError
from holdfast.values import shown

HOME_VARIABLE: Final = "HOLDFAST_HOME"
FILE: Final = "holdfast.toml"
"""The settings file, in the home."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting, and who decided it.

    Attributes:
        name: What it is called.
        value: What it is, as text.
        source: "argument", "environment", "file" or "default".
        where: The variable, or the path of the file; else the same as ``source``.
    """

    name: str
    value: str
    source: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are, and how each value was decided.

    Attributes:
        home: The folder with keys and Pods; a relative one begins where the process is now.
        state_dir: The folder with the application's variables; a relative one lies in the home.
        plugins_dir: The folder with plugins; likewise.
        save_delay: For how many seconds at most a change of a variable may be in memory only; None: until the end.
        lease_s: For how many seconds a run holds its plugin state without a renewal: so long a dead machine, or one
            that cannot be reached, goes unnoticed.
        logs_kept_days: For how many days the log of a launched run is kept in its Pod.
        max_runs: How many launched runs work at once at most.
        max_runs_per_owner: How many of them for one owner.
        sources: For each value, who decided it: "argument", "environment", "file" or "default".
        environ: What the environment said, for keys that an orchestrator hands in.
    """

    home: Path
    state_dir: Path = Path("state")
    plugins_dir: Path = Path("plugins")
    save_delay: float | None = 1.0
    lease_s: float = 60.0
    logs_kept_days: float = 30.0
    max_runs: int = 8
    max_runs_per_owner: int = 4
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    environ: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", self.home.absolute())
        for name in ("state_dir", "plugins_dir"):
            object.__setattr__(self, name, self.home / getattr(self, name))
        object.__setattr__(self, "sources", {**dict.fromkeys(("home", *_READERS), "default"), **self.sources})

    @classmethod
    def read(
        cls,
        *,
        home: StrPath | None = None,
        environ: Mapping[str, str] | None = None,
        state_dir: StrPath | None = None,
        plugins_dir: StrPath | None = None,
        save_delay: float | Literal["none"] | None = None,
        lease_s: float | None = None,
        logs_kept_days: float | None = None,
        max_runs: int | None = None,
        max_runs_per_owner: int | None = None,
    ) -> Settings:
        """Return the settings: arguments count before the environment, that before the file, and that before defaults.

        The default home is the platform's folder for a user's data, ``~/.local/share/holdfast`` on Linux. The file is
        ``holdfast.toml`` in the home; a relative path in it begins there. An empty variable counts as none.

        Args:
            home: The folder with keys and Pods; None: `HOLDFAST_HOME` decides.
            environ: The environment; None: that of this process.
            state_dir: None: ``HOLDFAST_STATE_DIR`` or ``state_dir`` in the file decides; else ``state`` in the home.
            plugins_dir: None: ``HOLDFAST_PLUGINS_DIR`` or ``plugins_dir``; else ``plugins`` in the home.
            save_delay: "none": at the end and by ``save_all`` only; None: ``HOLDFAST_SAVE_DELAY`` or ``save_delay``;
                else 1 second.
            lease_s: 3 to 3600 seconds; None: ``HOLDFAST_LEASE_S`` or ``lease_s``; else 60.
            logs_kept_days: 0 to 36500 days; None: ``HOLDFAST_LOGS_KEPT_DAYS`` or ``logs_kept_days``; else 30.
            max_runs: 1 to 10000; None: ``HOLDFAST_MAX_RUNS`` or ``max_runs``; else 8.
            max_runs_per_owner: 1 to 10000; None: ``HOLDFAST_MAX_RUNS_PER_OWNER`` or ``max_runs_per_owner``; else 4.

        Raises:
            InvalidError: A path in the environment is relative: each program would find another one. Or one begins
                with ``~`` and the name of a user that there is not, or is none at all. Or the file is no TOML, or has
                a key that is unknown, or a value that cannot be.
            DeniedError, UnavailableError: The file cannot be read.
        """
        environ = os.environ if environ is None else environ
        given = {
            "state_dir": state_dir,
            "plugins_dir": plugins_dir,
            "save_delay": save_delay,
            "lease_s": lease_s,
            "logs_kept_days": logs_kept_days,
            "max_runs": max_runs,
            "max_runs_per_owner": max_runs_per_owner,
        }
        found, source = _home(home, environ)
        values: dict[str, Any] = {"home": found}
        sources = {"home": source}
        in_file = _read_file(found / FILE)
        for name, reader in _READERS.items():
            said = (
                ("argument", given[name], f"the argument {name}"),
                ("environment", environ.get(_variable(name)) or None, _variable(name)),
                ("file", in_file.get(name), f"{name!r} in {str(found / FILE)!r}"),
            )
            for source, value, what in said:
                if value is not None:
                    values[name], sources[name] = reader(value, what, source, found), source
                    break
        return cls(**values, sources=sources, environ=environ)

    def explain(self) -> list[Explained]:
        """Return each value with who decided it, the home first."""
        explained: list[Explained] = []
        for name, source in self.sources.items():
            places = {"environment": _variable(name), "file": str(self.home / FILE)}
            value = getattr(self, name)
            explained.append(
                Explained(name, "none" if value is None else str(value), source, places.get(source, source))
            )
        return explained

    def pod_path(self, owner_key: str) -> Path:
        """Return the file of an owner's Pod; its companions lie beside it."""
        return self.home / "pods" / f"{owner_key}.db"

    def run_log_path(self, run_id: str) -> Path:
        """Return the file with what a run logged, in all its attempts."""
        return self.home / "runs" / f"{run_id}.log"

    @property
    def suspects_path(self) -> Path:
        """The file that notes which plugin is being set up, for when the process dies."""
        return self.home / ".suspects"

    @property
    def locks_path(self) -> Path:
        """The folder with the lock files of the plugin states that are held on this machine."""
        return self.home / "locks"

    @property
    def snapshots_path(self) -> Path:
        """The folder with the snapshots of plugin states, each in a folder that is called by its id."""
        return self.home / "snapshots"

    @property
    def own_snapshots_path(self) -> Path:
        """The folder with the application's own snapshots, called as no plugin state can be."""
        return self.snapshots_path / "@application"

    @property
    def keyring_path(self) -> Path:
        """The file with the wrapped keys of all owners."""
        return self.home / "pod.db"


def _home(given: StrPath | None, environ: Mapping[str, str]) -> tuple[Path, str]:
    if given is not None:
        return _folder(given, "the home", "argument"), "argument"
    if text := environ.get(HOME_VARIABLE):
        return _folder(text, HOME_VARIABLE, "environment"), "environment"
    from platformdirs import user_data_path  # start-up: most are told where their home is

    return user_data_path("holdfast", appauthor=False), "default"


def _variable(name: str) -> str:
    return f"HOLDFAST_{name.upper()}"


def _folder(value: object, what: str, source: str, home: Path | None = None) -> Path:
    """Return a folder as an absolute path; in the file a relative one begins at the home, in the environment none may.

    An argument begins where the process is.
    """
    try:
        text = os.fsdecode(cast("StrPath", value))
        os.fsencode(text)
    except (TypeError, UnicodeError):
        text = ""
    if not text or "\0" in text:
        raise InvalidError(f"{what} cannot be {shown(value)}: the path of a folder is expected", value=shown(value))
    try:
        found = Path(text).expanduser()
    except RuntimeError as exc:
        message = f"{what} cannot be {shown(text)}: '~' and a name that no user here has lead nowhere"
        raise InvalidError(message, value=shown(text)) from exc
    if found.is_absolute():
        return found
    if source == "environment":
        raise InvalidError(f"{what} cannot be {shown(text)}: it must be an absolute path", value=shown(text))
    return (home if source == "file" and home is not None else Path.cwd()) / found


def _delay(value: object, what: str, source: str, home: Path) -> float | None:
    del home
    if value == "none":
        return None
    seconds = _number(value, source)
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        message = f"{what} cannot be {shown(value)}: seconds, 0 or more, or 'none' are expected"
        raise InvalidError(message, value=shown(value))
    return seconds


def _within(lowest: int, highest: int, unit: str, *, is_whole: bool = False) -> _Reader:
    """Return what reads numbers from ``lowest`` to ``highest``."""

    def read(value: object, what: str, source: str, home: Path) -> float:
        del home
        number = _number(value, source)
        if not lowest <= number <= highest or (is_whole and not number.is_integer()):
            expected = (
                f"{'a whole number' if is_whole else 'a number'} of {unit} from {lowest} to {highest} is expected"
            )
            raise InvalidError(f"{what} cannot be {shown(value)}: {expected}", value=shown(value))
        return int(number) if is_whole else number

    return read


def _number(value: object, source: str) -> float:
    """Return a number, which is text only in the environment, where everything is; NaN for what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(cast("float", value)) if is_number or source == "environment" else math.nan
    except (ValueError, OverflowError):
        return math.nan


_Reader = Callable[[object, str, str, Path], Any]
_READERS: Final[Mapping[str, _Reader]] = {
    "state_dir": _folder,
    "plugins_dir": _folder,
    "save_delay": _delay,
    "lease_s": _within(3, 3_600, "seconds"),
    "logs_kept_days": _within(0, 36_500, "days"),
    "max_runs": _within(1, 10_000, "runs", is_whole=True),
    "max_runs_per_owner": _within(1, 10_000, "runs", is_whole=True),
}
"""What else than the home can be set, and what makes a value of what is given for it."""


def _read_file(path: Path) -> Mapping[str, object]:
    """Return what the settings file says; nothing if there is none."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        if not os.path.lexists(path):  # that a home cannot be entered, or is no folder, is for whoever uses it to say
            return {}
        raise translate(exc, path, "read") from exc
    import tomllib  # start-up: most homes have no such file

    try:
        found = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"the settings {str(path)!r} cannot be read as TOML: {exc}", path=str(path)) from exc
    for name in found:
        if name not in _READERS:
            known = ", ".join(_READERS)
            hint = f"; the home is named by {HOME_VARIABLE}" if name == "home" else ""
            message = f"the settings {str(path)!r} have no {name!r}: {known} can be set there{hint}"
            raise InvalidError(message, path=str(path), setting=name)
    return found
