"""Supervising the Pods of a home: who is looked at when, in which threads, and what opens a Pod for a launched run.

The failure argument. *The process dies*: the agenda says who was to be looked at; who was being looked at still is due.
*Two servers share a home*: both look, and what each of them may do is decided in the Pod. *A Pod cannot be opened*, as
one that waits for its owner: it is looked at later, and when its owner calls. *Many Pods*: only those that the agenda
names are opened; what another process writes to one, such as ``holdfast runs retry``, it notes on the agenda. *It dies
between what a client wrote and the look at it*: that was noted on the agenda before it was written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from pydantic_core import to_json

from holdfast.auth import seal
from holdfast.context.settings import Settings
from holdfast.engine.supervising import Supervisor
from holdfast.errors import HoldfastError, NotFoundError
from holdfast.keys import read_identity
from holdfast.launchers.docker import DockerLauncher
from holdfast.launchers.process import RUN_PLUGIN, ProcessLauncher
from holdfast.launchers.script import ScriptLauncher
from holdfast.runs import Launcher, LaunchSpec, Lease, Limits
from holdfast.server.pods import OpenPods
from holdfast.sql import Agenda
from holdfast.store import ItemRow, Store

_log: Final = logging.getLogger(__name__)

_POLL_S: Final = 1.0
"""How often the agenda is asked what other processes have noted there."""
_PAUSE_S: Final = 0.25
"""Between two looks at least, however much is written; less, if the last ones took little: see `_PAUSES`."""
_PAUSES: Final = 9
"""How many times as long as it looks the supervisor rests, so that it takes a tenth of a processor at most."""
_LATER_MS: Final = 60_000
"""When a Pod that could not be looked at is tried again."""
_THREADS: Final = 16
_CLOSE_S: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class Launching:
    """How runs are launched.

    Attributes:
        kind: "process", "docker", or "none": only `scripts` are.
        scripts: The program for each image that is not launched as ``kind`` says.
        is_for_all: Processes are launched for every owner, and not only for the one whose keys lie in the home: whoever
            can make a Pod here can then start any installed module as this user.
        plugins: Where processes find modules that are not installed; None: in the home's folder of plugins alone.
        network: Of containers; None: as `DockerLauncher` says.
        address: Where a launched run finds the server; None: where it listens.
        limits: What each run may use.
    """

    kind: str = "process"
    scripts: Mapping[str, Path] = field(default_factory=dict[str, Path])
    is_for_all: bool = False
    plugins: Path | None = None
    network: str | None = None
    address: str | None = None
    limits: Limits = field(default_factory=Limits)


class Supervision:
    """Looks at the Pods of a home as long as a server runs; one thread looks, others launch and end.

    Args:
        settings: Where the home is, and how much may run.
        pods: The Pods.
        pod: What tells the containers of this home from those of others.
        launching: How runs are launched.
    """

    def __init__(self, settings: Settings, pods: OpenPods, *, pod: str, launching: Launching) -> None:
        self._settings, self._pods, self._launching = settings, pods, launching
        self._agenda = Agenda(settings.keyring_path)
        self._address = ""
        self._launchers = _launchers(settings, pod, launching)
        self._supervisors: dict[str, Supervisor] = {}
        self._places = threading.BoundedSemaphore(_THREADS)
        self._threads: set[threading.Thread] = set()
        self._loop = threading.Thread(target=self._look_on, name="supervisor", daemon=True)
        self._changed = threading.Condition()
        self._woken: set[str] = set()
        self._noted: set[str] = set()
        self._stirring = Counter[str]()
        self._is_over = False

    def start(self, address: str) -> None:
        """Begin to look; ``address`` is where runs find the server."""
        self._address = self._launching.address or address
        for launcher in self._launchers.values():
            with suppress(HoldfastError):  # it is asked again with each look
                self._woken.update(each.owner for each in launcher.list())
        self._loop.start()

    def wake(self, owner: str) -> None:
        """Look at a Pod soon: something was written to it. From any thread; quick."""
        with self._changed:
            self._woken.add(owner)
            self._changed.notify_all()

    @contextmanager
    def stirring(self, owner: str) -> Generator[None]:
        """Look at a Pod soon after what is written in the block; if this process dies in between, the next one does.

        That is noted on the agenda before, once between two looks. From any thread.
        """
        with self._changed:
            self._stirring[owner] += 1
            is_noted = owner in self._noted
        try:
            if not is_noted:
                try:
                    self._agenda.wake(owner, self._pods.opener.now_ms())
                except HoldfastError as exc:  # what is written counts for more
                    _log.warning("wake.not_noted", extra={"owner": owner, "reason": str(exc)})
                else:
                    with self._changed:
                        self._noted.add(owner)
            yield
        finally:
            with self._changed:
                self._stirring[owner] -= 1
                self._woken.add(owner)
                self._changed.notify_all()

    def close(self) -> None:
        """Look no more. What is launched goes on, and what was begun is found by the next server."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        if self._loop.ident is not None:
            self._loop.join()
        until = time.monotonic() + _CLOSE_S
        with self._changed:
            threads = [*self._threads]
        for thread in threads:  # who fetches an image is not waited for
            thread.join(max(0.0, until - time.monotonic()))
        for launcher in self._launchers.values():
            if isinstance(launcher, DockerLauncher):
                launcher.close()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        while not self._is_over:
            with self._changed:
                woken, self._woken = self._woken, set()
            began = time.monotonic()
            now_ms = self._pods.opener.now_ms()
            due = dict[str, int]()
            next_ms: int | None = None
            try:
                due = dict(self._agenda.list_due(now_ms))
                for owner in {*due, *woken}:
                    if self._is_over:
                        return
                    self._look_at(owner, due[owner] if owner in due else self._agenda.wakes_of(owner))
                next_ms = self._agenda.next_ms()
            except HoldfastError as exc:
                _log.error("supervision.failed", extra={"reason": str(exc)})
            except Exception:  # noqa: BLE001 -- the supervisor's loop: whatever it was, other Pods are looked at
                _log.exception("supervision.failed")
            pause_s = min(_PAUSE_S, _PAUSES * (time.monotonic() - began))
            wait_s = _POLL_S
            if next_ms is not None:
                wait_s = min(_POLL_S, max(_PAUSE_S, (next_ms - self._pods.opener.now_ms()) / 1000))
            with self._changed:
                if due or woken:
                    self._changed.wait_for(lambda: self._is_over, pause_s)
                self._changed.wait_for(lambda: self._is_over or self._woken, wait_s)

    def _look_at(self, owner: str, wakes: int) -> None:
        try:
            with self._pods.open(owner, None) as use:
                supervisor = self._supervisors.get(owner)
                if supervisor is None:
                    supervisor = self._supervisors[owner] = self._supervisor(owner)
                look = supervisor.look(use.pod.store)
            next_ms, live = look.next_ms, look.live
        except HoldfastError as exc:
            _log.warning("pod.not_looked_at", extra={"owner": owner, "reason": str(exc)})
            next_ms, live = self._pods.opener.now_ms() + _LATER_MS, 0
        with self._changed:
            # What is being written, or was since the look began, may not have been seen: it stays noted.
            is_stirring = self._stirring[owner] > 0 or owner in self._woken
            if not is_stirring:
                self._noted.discard(owner)
        self._agenda.put(owner, self._pods.opener.now_ms() if is_stirring else next_ms, live, wakes=wakes)

    def _supervisor(self, owner: str) -> Supervisor:
        opener = self._pods.opener
        return Supervisor(
            owner,
            _Places(self, owner),
            sealing=partial(seal, pod_key=opener.pod_key),
            now_ms=opener.now_ms,
            lease_ms=round(self._settings.lease_s * 1000),
            log_kept_ms=round(self._settings.logs_kept_days * 24 * 3_600_000),
        )

    # -- what a supervisor asks for -----------------------------------------------------------------------------------

    def launchers(self) -> Sequence[Launcher]:
        """Return all that may have launched something."""
        return [*self._launchers.values()]

    def launcher_for(self, owner: str, image: str) -> Launcher:
        """Return what launches runs with this image for an owner.

        Raises:
            NotFoundError: Nothing here does.
        """
        kind = "script" if image in self._launching.scripts else self._launching.kind
        if kind == "none":
            message = f"image {image!r} is not launched here: the server was started without a launcher for it"
            raise NotFoundError(message, image=image)
        if kind != "docker" and not self._launching.is_for_all and owner != self._own_owner():
            message = (
                "runs become processes of this machine for the owner whose keys lie there alone: launch containers"
            )
            raise NotFoundError(message, image=image)
        return self._launchers[kind]

    def _own_owner(self) -> str:
        try:
            return read_identity(self._settings.home).owner_key
        except HoldfastError:  # there is none, or it cannot be read
            return ""

    def spec(self, owner: str, run: ItemRow, lease: Lease, token: str) -> LaunchSpec:
        """Return what a launcher is told of a run."""
        properties = run.properties
        image = str(properties.get("containerImage") or "")
        is_container = image not in self._launching.scripts and self._launching.kind == "docker"
        # Unbuffered: what is printed is read while the run goes on.
        environment = {"HOLDFAST_LEASE_S": f"{self._settings.lease_s:g}", "PYTHONUNBUFFERED": "1"}
        if not is_container:
            environment["HOLDFAST_HOME"] = str(self._settings.home)
        return LaunchSpec(
            owner=owner,
            plugin=f"{properties.get('pluginModule')}:{properties.get('pluginName')}",
            state=lease.state,
            run=run.id,
            epoch=lease.epoch,
            address=self._address,
            auth=to_json({"type": "PluginAuth", "data": {"token": token}}).decode(),
            image=image,
            environment=environment,
            snapshots=self._settings.snapshots_path / lease.state,
            limits=self._launching.limits,
        )

    def free(self, owner: str, live: int) -> int:
        """Return how many runs may be launched for an owner who has ``live`` ones."""
        others = self._agenda.live_of_others(owner)
        return min(self._settings.max_runs_per_owner - live, self._settings.max_runs - live - others)

    @contextmanager
    def open(self, owner: str) -> Generator[Store]:
        """Yield a Pod."""
        with self._pods.open(owner, None) as use:
            yield use.pod.store

    def submit(self, work: Callable[[], None]) -> None:
        """Do ``work`` in a thread of its own; nothing once the server ends: the next one finds what is to be done."""
        thread = threading.Thread(target=self._work, args=(work,), name="launching", daemon=True)
        with self._changed:
            if not self._is_over:
                self._threads.add(thread)
                thread.start()

    def _work(self, work: Callable[[], None]) -> None:
        try:
            with self._places:
                if not self._is_over:
                    work()
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())


@dataclass(frozen=True)
class _Places:
    """What the supervisor of one Pod asks for (see `holdfast.engine.supervising.Places`)."""

    of: Supervision
    owner: str

    def launchers(self) -> Sequence[Launcher]:
        return self.of.launchers()

    def launcher_for(self, image: str) -> Launcher:
        return self.of.launcher_for(self.owner, image)

    def spec(self, run: ItemRow, lease: Lease, token: str) -> LaunchSpec:
        return self.of.spec(self.owner, run, lease, token)

    def free(self, live: int) -> int:
        return self.of.free(self.owner, live)

    def open(self) -> AbstractContextManager[Store]:
        return self.of.open(self.owner)

    def submit(self, work: Callable[[], None]) -> None:
        self.of.submit(work)

    def wake(self) -> None:
        self.of.wake(self.owner)


def _launchers(settings: Settings, pod: str, launching: Launching) -> dict[str, Launcher]:
    """Return the launchers by their kind: those that are used, and those that have launched something before."""
    folders = {kind: settings.home / "launches" / kind for kind in ("process", "script", "docker")}
    command = (*RUN_PLUGIN, *(() if launching.plugins is None else ("--plugin_path", str(launching.plugins))))
    found: dict[str, Launcher] = {
        "process": ProcessLauncher(folders["process"], command=command),
        "script": ScriptLauncher(folders["script"], launching.scripts),
    }
    if launching.kind == "docker" or folders["docker"].is_dir():
        found["docker"] = DockerLauncher(folders["docker"], pod=pod, network=launching.network)
    return found
