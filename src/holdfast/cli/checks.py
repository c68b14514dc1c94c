"""What can be wrong with what a Pod stands on: each check stands alone, and mends nothing."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw  # for its version alone

from holdfast import keys
from holdfast.context import Settings, examine_pod, pod_key_id, was_made
from holdfast.disk import BusyError, Disk, translate
from holdfast.errors import HoldfastError, NotFoundError
from holdfast.sql import Keyring

_SQLITE: Final = (3, 51, 3)
"""Older ones can damage a database that several processes write to."""
_LITTLE_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: ``verdict`` is ok, warn or fail; ``advice`` is empty if there is nothing to do."""

    check: str
    verdict: str
    found: str
    advice: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield what each check finds, one after the other; damage of any kind is found and not raised."""
    for name, check in {
        "versions": _versions,
        "home": _home,
        "disk": _disk,
        "keys": _keys,
        "Pod key": _pod_key,
    }.items():
        yield from _guarded(name, check(settings))
    for owner in _find_owners(settings):
        yield from _guarded(f"Pod {owner[:8]}", _pod(settings, owner))


def _guarded(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    try:
        yield from findings
    except HoldfastError as exc:  # which says itself what to do
        yield Finding(name, "fail", exc.message)
    except OSError as exc:  # a folder that this user may not enter, or a name that no file can have
        if exc.filename is None:
            raise
        yield Finding(name, "fail", translate(exc, os.fsdecode(exc.filename), "look at").message)


def _versions(_: Settings) -> Iterator[Finding]:
    yield Finding("Python", "ok", platform.python_version())
    found = apsw.sqlite_lib_version()
    if tuple(map(int, found.split("."))) >= _SQLITE:
        yield Finding("SQLite", "ok", found)
    else:
        yield Finding("SQLite", "fail", f"{found} can damage a Pod", "upgrade the package apsw-sqlite3mc")


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.home
    if not _is_there(home):
        yield Finding("home", "ok", f"{home}: nothing here yet", "the first PodClient() makes all it needs")
    elif not home.is_dir():
        yield Finding("home", "fail", f"{home} is no folder", "name another with HOLDFAST_HOME")
    elif home.stat().st_mode & 0o077:
        yield Finding("home", "warn", f"{home} can be entered by other users", f"chmod 700 {shlex.quote(str(home))}")
    else:
        yield Finding("home", "ok", str(home))


def _disk(settings: Settings) -> Iterator[Finding]:
    disk, home = Disk(), settings.home
    kind = disk.filesystem(home) or "unknown"
    if disk.is_network(home):
        advice = "move the home to a local disk: processes cannot share a Pod's log over a network"
        yield Finding("file system", "fail", f"{kind}, which is a network's", advice)
    else:
        yield Finding("file system", "ok", kind)
    free_bytes = disk.free_bytes(home)
    verdict, advice = ("ok", "") if free_bytes >= _LITTLE_BYTES else ("warn", "make room before writes fail")
    yield Finding("free space", verdict, f"{free_bytes / 2**20:,.0f} MiB", advice)
    if _is_there(home):
        with disk.temporary_folder(home) as folder:
            disk.create(folder / "probe", b"probe")
        yield Finding("disk", "ok", "a file can be made and flushed")


def _keys(settings: Settings) -> Iterator[Finding]:
    try:
        identity = keys.read_identity(settings.home)
    except NotFoundError:
        if any((settings.home / "pods").glob("*.db")):
            advice = "bring them from where you keep them: store_keys --from-file"
            yield Finding("keys", "fail", "there are none, and nothing here opens without them", advice)
        else:
            yield Finding("keys", "ok", "none yet", "store_keys brings yours; else the first PodClient() makes some")
        return
    others = sorted((settings.home / "pods").glob("*.db"))
    if others and not _is_there(settings.pod_path(identity.owner_key)):
        found = (
            f"they are those of owner {identity.owner_key[:8]}, whose Pod is not here; there is {others[0].stem[:8]}'s"
        )
        advice = "if that one is yours, bring its keys: store_keys --from-file; else PodClient() begins an empty Pod"
        yield Finding("keys", "warn", found, advice)
    if identity.previous_database_key is None:
        yield Finding("keys", "ok", f"owner {identity.owner_key[:8]}, key {identity.key_id}")
    else:
        yield Finding(
            "keys", "warn", "a rotation was interrupted, and the old key is still valid", "holdfast keys rotate"
        )


def _pod_key(settings: Settings) -> Iterator[Finding]:
    keyring, owner = _find_keyring(settings), _find_owner(settings)
    if keyring is None:
        yield Finding("Pod key", "ok", "none yet", "it is made when a Pod is opened")
    elif owner is None or not _is_there(settings.pod_path(owner)) or keyring.has(owner):
        yield Finding("Pod key", "ok", pod_key_id(settings))
    else:
        advice = "open the Pod once as its owner, with PodClient(); until then no run starts while the owner is away"
        yield Finding("Pod key", "warn", f"{pod_key_id(settings)} does not open the owner's Pod", advice)


def _pod(settings: Settings, owner: str) -> Iterator[Finding]:
    name, path = f"Pod {owner[:8]}", settings.pod_path(owner)
    wal = path.with_name(f"{path.name}-wal")
    if _is_there(path.with_name(f"{path.name}.restoring")):
        yield Finding(name, "warn", "a restore was interrupted", "whatever opens the Pod next carries it to its end")
        return
    keyring = _find_keyring(settings)
    if not _is_there(path) or not path.stat().st_size:
        if _has(keyring, owner) or was_made(path):
            found = f"{path} is gone or empty, and once held a Pod"
            advice = "bring the file back with its -wal, or restore a backup: holdfast pod restore"
            yield Finding(name, "fail", found, advice)
        else:
            yield Finding(name, "warn", f"{path} was never finished", "the next PodClient() makes it")
        return
    if not _is_there(path.with_suffix(".json")):
        found = f"{path.with_suffix('.json')} is gone, and nothing opens the Pod without this envelope"
        advice = "bring it from a copy or a backup, where it is called pod.json; or holdfast pod restore"
        yield Finding(name, "fail", found, advice)
        return
    envelope = keys.read_envelope(path.with_suffix(".json"))
    if owner == _find_owner(settings):
        key = envelope.open(keys.read_identity(settings.home))
    elif keyring is not None and keyring.has(owner):
        key = keyring.get(owner)
    else:
        yield Finding(name, "warn", "not looked into: the keys of its owner are not here")
        return
    is_open = _is_open(path)
    if not is_open and _is_there(wal) and wal.stat().st_size:
        yield Finding(name, "warn", "a process died while it had it open", "nothing, if all pages are sound")
    found = examine_pod(path, key, envelope)
    state = "open in a process" if is_open else "not open"
    text = f"{found.items:,} items, {found.size_bytes:,} bytes, format {found.format}, all pages sound, {state}"
    yield Finding(name, "ok", text)


def _find_owner(settings: Settings) -> str | None:
    """Return who the owner is, if that can be told; why it cannot is another check's finding."""
    try:
        return keys.read_identity(settings.home).owner_key
    except HoldfastError:
        return None


def _find_owners(settings: Settings) -> list[str]:
    """Return whose Pods are to be looked at: of all that anything is here of, if only a key in the keyring."""
    found: set[str] = set()
    with suppress(HoldfastError, OSError):  # which are other checks' findings
        found.update(path.name.partition(".")[0] for path in (settings.home / "pods").glob("*.*"))
        owner = _find_owner(settings)
        if owner is not None and _has(_find_keyring(settings), owner):
            found.add(owner)
    return sorted(found)


def _has(keyring: Keyring | None, owner: str) -> bool:
    """Say whether the keyring knows a Pod; one that cannot be read knows none, which is another check's finding."""
    try:
        return keyring is not None and keyring.has(owner)
    except HoldfastError:
        return False


def _find_keyring(settings: Settings) -> Keyring | None:
    """Return the keyring, if there is a Pod key: reading it must not make one."""
    is_given = {keys.POD_KEY_VARIABLE, keys.POD_KEY_FILE_VARIABLE} & settings.environ.keys()
    if not is_given and not _is_there(settings.home / keys.POD_KEY_FILE):
        return None
    return Keyring(settings.keyring_path, keys.load_or_create_pod_key(settings.home, settings.environ))


def _is_open(path: Path) -> bool:
    lock = path.with_suffix(".lock")
    try:
        if _is_there(lock):
            Disk().lock(lock).release()
    except BusyError:
        return True
    return False


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise translate(exc, path, "look at") from exc
    return True
