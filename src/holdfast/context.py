"""What an application holds, and the only place that opens doors: where things are, and the client of a Pod.

Hides where a Pod lies, which keys open it and what is made on first use. Nothing here is global: two clients in one
process may have two homes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from holdfast.disk import Disk
from holdfast.engine import (
    DEFAULT_STATE,
    FINISHED,
    Runner,
    Timing,
    begin_run,
    check_state,
    continue_run,
    find_unfinished,
    get_unfinished,
    logging_to,
    plan_state,
)
from holdfast.engine.owning import check_free
from holdfast.errors import ConflictError, DamagedError, DeniedError, HoldfastError, InvalidError, NotFoundError
from holdfast.items import PersistentState, PluginRun
from holdfast.keys import (
    Envelope,
    Identity,
    key_id,
    load_or_create_envelope,
    load_or_create_identity,
    load_or_create_pod_key,
    open_identity,
    read_envelope,
    read_identity,
)
from holdfast.plugins import PluginBase, Source, arguments_from
from holdfast.pod import Pod
from holdfast.runs import Outcome, Status
from holdfast.sql import Backup, Keyring, SqliteStore, back_up, restore, sharing_pod
from holdfast.sql.backup import ENVELOPE, Progress, examine, inspect
from holdfast.values import shown

_log: Final = logging.getLogger(__name__)

HOME_VARIABLE: Final = "HOLDFAST_HOME"

_MAX_LOOKS: Final = 10
"""How often another process may end the run that was found, before it could be claimed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are, and how each value was decided.

    Attributes:
        home: The folder with keys and Pods.
        sources: For each value, who decided it: "argument", "environment" or "default".
        environ: What the environment said, for keys that an orchestrator hands in.
    """

    home: Path
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    environ: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @classmethod
    def read(cls, *, home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
        """Return the settings: an argument counts before the environment, and that before the default.

        The default home is the platform's folder for a user's data, ``~/.local/share/holdfast`` on Linux.

        Raises:
            InvalidError: The home is a relative path in the environment: each program would find another one. Or it
                begins with ``~`` and the name of a user that there is not.
        """
        environ = os.environ if environ is None else environ
        if home is not None:
            return cls(home=_expanded(home).absolute(), sources={"home": "argument"}, environ=environ)
        if text := environ.get(HOME_VARIABLE):
            found = _expanded(text)
            if not found.is_absolute():
                message = f"{HOME_VARIABLE} cannot be {shown(text)}: it must be an absolute path"
                raise InvalidError(message, value=shown(text))
            return cls(home=found, sources={"home": "environment"}, environ=environ)
        from platformdirs import user_data_path

        return cls(home=user_data_path("holdfast", appauthor=False), sources={"home": "default"}, environ=environ)

    def pod_path(self, owner_key: str) -> Path:
        """Return the file of an owner's Pod; its companions lie beside it."""
        return self.home / "pods" / f"{owner_key}.db"

    def run_log_path(self, run_id: str) -> Path:
        """Return the file with what a run logged, in all its attempts."""
        return self.home / "runs" / f"{run_id}.log"

    @property
    def locks_path(self) -> Path:
        """The folder with the lock files of the plugin states that are held on this machine."""
        return self.home / "locks"

    @property
    def snapshots_path(self) -> Path:
        """The folder with the snapshots of plugin states, each in a folder that is called by its id."""
        return self.home / "snapshots"

    @property
    def keyring_path(self) -> Path:
        """The file with the wrapped keys of all owners."""
        return self.home / "pod.db"


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as exc:
        message = f"the home cannot be {shown(os.fspath(path))}: '~' and a name that no user here has lead nowhere"
        raise InvalidError(message, value=shown(os.fspath(path))) from exc


class PodClient(Pod):
    """The client of a Pod: on a fresh machine ``PodClient()`` makes keys and file, and just works.

    Without a URL the Pod is a file in this process's reach; see `holdfast.pod.Pod` for what a client can do. It is a
    context manager; one that is not closed is closed when the process ends.

    Args:
        owner_key: Whose Pod, 64 hexadecimal digits; None: the owner in ``keys.json``.
        database_key: What opens it, 64 hexadecimal digits; comes with ``owner_key`` or not at all.
        home: The folder with keys and Pods; None: as `Settings.read` says.
        settings: All settings together, instead of ``home``.

    Raises:
        DeniedError: The keys do not open the Pod, or a key file can be read by others.
        DamagedError, InvalidError, UnavailableError: As `SqliteStore` and `holdfast.keys` say.
    """

    def __init__(
        self,
        *,
        owner_key: str | None = None,
        database_key: str | None = None,
        home: str | os.PathLike[str] | None = None,
        settings: Settings | None = None,
    ) -> None:
        if (owner_key is None) != (database_key is None):
            raise InvalidError("owner_key and database_key must come together: one names the Pod, the other opens it")
        given = None if owner_key is None or database_key is None else Identity(owner_key, database_key)
        self.settings = settings or Settings.read(home=home)
        path, key = unlock(self.settings, given)
        super().__init__(SqliteStore(path, key))

    def __repr__(self) -> str:
        return f"<PodClient {str(self.settings.home)!r}>"


def unlock(settings: Settings, given: Identity | None = None, *, disk: Disk | None = None) -> tuple[Path, bytes]:
    """Return the file of a Pod and its data key; on a fresh machine make the folder, the keys and the envelope.

    The process may die on any line: each file is there whole or not, and each is made only after what it needs.

    Args:
        settings: Where everything lies.
        given: The owner; None: the one in ``keys.json``, which is made if there is none.
        disk: Where the home lies.
    """
    disk = disk or Disk()
    home = settings.home
    disk.put_folder(home)
    if given is None:
        load_or_create_identity(home, disk=disk)
        presented: AbstractContextManager[Identity] = open_identity(home, disk=disk)
    else:
        presented = nullcontext(given)
    with presented as identity:
        path = settings.pod_path(identity.owner_key)
        envelope_path = path.with_suffix(".json")
        if not path.parent.is_dir():
            disk.put_folder(path.parent)
        with sharing_pod(path, disk=disk):  # else the middle of a restore would look like a fresh machine
            is_new = not envelope_path.exists()
            if is_new and path.exists():
                return path, bytes(32)  # no key opens it; the door says what is missing
            envelope = load_or_create_envelope(envelope_path, identity, disk=disk)
        key, owner = envelope.open(identity), identity.owner_key
    keyring = Keyring(settings.keyring_path, load_or_create_pod_key(home, settings.environ, disk=disk), disk=disk)
    try:
        is_kept = keyring.has(owner) and keyring.get(owner) == key  # a restored Pod may have another key than before
        was_made = is_kept
    except (DamagedError, DeniedError) as exc:
        # The owner's key opens the file without it. Who can tell whether it was made once is the envelope alone.
        _log.warning("keyring.damaged", extra={"path": str(keyring.path), "reason": str(exc)})
        is_kept, was_made = False, not is_new
    with sharing_pod(path, disk=disk):
        is_missing = not path.exists() or not path.stat().st_size
    if is_missing:
        if was_made:
            message = (
                f"the Pod {str(path)!r} is gone, though it was there: bring the file back or restore a backup "
                f"(holdfast pod restore); to begin anew with an empty one, remove {envelope_path.name!r} beside it"
            )
            raise DamagedError(message, path=str(path))
        SqliteStore(path, key, disk=disk).close()
    if not is_kept:  # only now, so that a key in the keyring says: this file was made once
        keyring.put(owner, key)
    return path, key


def pod_key_id(settings: Settings) -> str:
    """Return which Pod key this home has; it is made if there is none."""
    return key_id(load_or_create_pod_key(settings.home, settings.environ))


# -- runs -------------------------------------------------------------------------------------------------------------


def carry_out(
    settings: Settings,
    source: Source | None,
    *,
    config: Mapping[str, Any] | None = None,
    state: str = DEFAULT_STATE,
    is_new: bool = False,
    run_id: str | None = None,
    identity: Identity | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
    owns_process: bool = False,
    timing: Timing | None = None,
) -> Outcome:
    """Carry a run on to its end in this process: the unfinished one of a plugin state, else a new one.

    None is begun while another run holds the plugin state; one that is begun and cannot be started all the same, since
    another came first, is deleted again. If the run that was found ends before it is claimed, there is another look.

    Args:
        settings: Where the Pod lies.
        source: The plugin; with ``run_id`` only where its module is looked for.
        config: Used instead of the configuration that the run or the metadata has; a new run keeps it.
        state: The name of the plugin state.
        is_new: Begin a run even if there is an unfinished one.
        run_id: Carry on this run.
        identity: The owner; None: the one in ``keys.json``.
        on_progress: As `Runner` says.
        owns_process: As `Runner` says.
        timing: As `Runner` says.

    Raises:
        NotFoundError, InvalidError, PluginError: There is no such run or plugin, its configuration is wrong, or its
            module raises. Nothing was written.
        ConflictError: Another run holds the plugin state, or this one is carried out elsewhere or has ended.
    """
    path, key = unlock(settings, identity)
    store = SqliteStore(path, key)

    def drive(cls: type[PluginBase], run: PluginRun, plugin_state: PersistentState) -> Outcome:
        id_ = run.id or ""
        runner = Runner(
            lambda: SqliteStore(path, key),
            locks=settings.locks_path,
            snapshots=settings.snapshots_path,
            owns_process=owns_process,
            on_progress=on_progress,
            timing=timing,
        )
        used = _config_of(run.config, f"run {id_!r}") if config is None else config
        with logging_to(settings.run_log_path(id_), id_, owns_process=owns_process):
            return replace(runner.drive(cls, run, plugin_state, used), run=id_)

    with Pod(store) as client:
        if run_id is not None:
            check_state(store, run_id)
            run = get_unfinished(client, run_id)
            folder = _current_folder() if source is None else source.folder
            cls = Source(module=run.pluginModule or "", name=run.pluginName or "", folder=folder).load()
            arguments_from(cls, _config_of(run.config, f"run {run_id!r}") if config is None else config)
            return drive(cls, *continue_run(client, run_id))
        if source is None:
            raise InvalidError("neither a run nor a plugin was named: one of them is expected")
        cls = source.load()
        text = source.properties.get("config")
        config_of_new = _config_of(text, "the metadata") if config is None else config
        for looks_left in reversed(range(_MAX_LOOKS)):
            plugin_state = plan_state(client, source.plugin_id, state)
            found = None if is_new else find_unfinished(client, plugin_state)
            is_fresh = found is None
            if found is None:
                arguments_from(cls, config_of_new)
                check_free(store, plugin_state.id or "", locks=settings.locks_path)
                properties = {**source.properties, "config": json.dumps(config_of_new)}
                found = begin_run(client, plugin_state, properties, source.account)
            try:
                run = cast("PluginRun", client.get(found.id or ""))
                if plugin_state.dateServerModified is None:  # another process has made it meanwhile
                    plugin_state = run.pluginState[0]
                return drive(cls, run, plugin_state)
            except HoldfastError as exc:
                now = client.find(found.id or "", expanded=False)
                if is_fresh and isinstance(now, PluginRun) and now.status == found.status:
                    client.delete_items([found, *found.account])
                if not looks_left or not _came_late(exc, found.id):
                    raise
    raise AssertionError  # the last look returns or raises


def _came_late(exc: HoldfastError, run: str | None) -> bool:
    """Say whether a run that was found could not be claimed because it has ended, or was deleted, meanwhile."""
    facts = exc.facts
    has_ended = facts.get("wanted") == Status.STARTED and facts.get("status") in FINISHED
    return has_ended or (isinstance(exc, NotFoundError) and facts.get("id") == run)


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as exc:
        raise NotFoundError("the current folder is gone: change to one that is there") from exc


def _config_of(text: object, what: str) -> dict[str, Any]:
    """Return a configuration that is kept as JSON text; an empty one if there is none."""
    try:
        found: object = json.loads(text) if isinstance(text, str) and text else {}
    except (ValueError, RecursionError) as exc:
        raise InvalidError(f"the configuration of {what} is no JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise InvalidError(f"the configuration of {what} cannot be {shown(found)}: an object is expected")
    return cast("dict[str, Any]", found)


# -- what operators do to a Pod that is there -------------------------------------------------------------------------


def get_pod(settings: Settings) -> tuple[Path, bytes]:
    """Return the file of the owner's Pod and its data key, as `unlock` does; but make nothing where nothing is.

    Raises:
        NotFoundError: There is no Pod yet.
        DeniedError, DamagedError, InvalidError: As `holdfast.keys` says.
    """
    path = settings.pod_path(_get_identity(settings).owner_key)
    disk = Disk()
    if path.exists() or path.with_suffix(".lock").exists():  # a restore that has moved the file has made the lock
        with open_identity(settings.home, disk=disk) as identity, sharing_pod(path, disk=disk):
            if path.exists() and path.stat().st_size:  # empty: whoever was about to make it died
                return path, read_envelope(path.with_suffix(".json"), disk=disk).open(identity)
    raise NotFoundError(f"there is no Pod {str(path)!r} yet: the first PodClient() makes it", path=str(path))


def open_store(settings: Settings) -> SqliteStore:
    """Open the owner's Pod, if it is there (see `get_pod`)."""
    return SqliteStore(*get_pod(settings), create=False)


def back_up_pod(settings: Settings, target: Path, *, on_progress: Progress | None = None) -> Backup:
    """Copy the owner's Pod into a new folder, as `holdfast.sql.back_up` does.

    Raises:
        ConflictError: The folder exists; this is said before anything is copied.
    """
    source, key = get_pod(settings)
    if os.path.lexists(target):
        raise ConflictError(f"{str(target)!r} exists already: name a folder that does not", path=str(target))
    return back_up(source, key, target.absolute(), on_progress=on_progress)


def inspect_backup(settings: Settings, backup: Path) -> Backup:
    """Say what a backup holds that the owner's keys open, those from before a rotation included.

    Raises:
        NotFoundError: There is no backup, or no key.
        DeniedError: It is another owner's, or was sealed with a key that is not here.
        DamagedError, InvalidError: As `holdfast.sql.backup.inspect` says.
    """
    return inspect(backup, _identity_for(backup, _get_identity(settings), settings.home))


def restore_pod(settings: Settings, backup: Path, *, on_progress: Progress | None = None) -> Path | None:
    """Put a backup in the place of the owner's Pod, as `holdfast.sql.restore` does; it opens with today's keys.

    Returns:
        The folder where the Pod that was there is kept now; None if there was none.
    """
    _get_identity(settings)
    disk = Disk()
    with open_identity(settings.home, disk=disk) as identity:
        path = settings.pod_path(identity.owner_key)
        aside = restore(backup, _identity_for(backup, identity, settings.home), path, on_progress=on_progress)
        key = read_envelope(path.with_suffix(".json"), disk=disk).open(identity)
    # It may be the key of another file than before.
    keyring = Keyring(settings.keyring_path, load_or_create_pod_key(settings.home, settings.environ))
    keyring.put(identity.owner_key, key)
    return aside


def examine_pod(path: Path, key: bytes, envelope: Envelope) -> Backup:
    """Check every page of a Pod's file, which others may use meanwhile, and say what it holds; nothing is migrated.

    Raises:
        DamagedError, DeniedError, InvalidError, UnavailableError: As opening it would.
    """
    with sharing_pod(path, disk=Disk()):
        return examine(path, key, envelope, path)


def _get_identity(settings: Settings) -> Identity:
    try:
        return read_identity(settings.home)
    except NotFoundError as exc:
        message = f"there are no keys in {str(settings.home)!r} yet: store_keys brings yours, or makes new ones"
        raise NotFoundError(message, path=str(settings.home)) from exc


def _identity_for(backup: Path, identity: Identity, home: Path) -> Identity:
    """Return ``identity``, with the key kept in ``home`` that a backup from before a rotation needs."""
    disk = Disk()
    try:
        needed = read_envelope(backup / ENVELOPE, disk=disk).key_id
        kept = Identity.from_json(disk.read(home / f"keys.{needed}.json"), what=f"the kept key {needed!r}")
    except NotFoundError:
        return identity
    if kept.owner_key != identity.owner_key or identity.previous_database_key is not None:
        return identity
    return replace(identity, previous_database_key=kept.database_key)
