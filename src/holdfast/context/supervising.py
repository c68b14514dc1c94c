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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic_core import to_json

from holdfast.auth import seal
from holdfast.context.serving import LockedError
from holdfast.context.settings import Settings
from holdfast.engine.supervising import Supervisor
from holdfast.errors import DamagedError, HoldfastError, NotFoundError, UnavailableError
from holdfast.keys import read_identity
from holdfast.launchers.docker import DockerLauncher
from holdfast.launchers.process import RUN_PLUGIN, ProcessLauncher
from holdfast.launchers.script import ScriptLauncher
from holdfast.runs import Launched, Launcher, LaunchSpec, Lease, Limits
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
_LATER_MS: Final = 5_000
_MUCH_LATER_MS: Final = 60_000
"""When a Pod that could not be looked at is tried again: one that was busy, and one that is locked or damaged."""
_ANSWER_S: Final = 1.0
"""How long all wait for what a launcher says that it has launched; then they go by what it said before."""
_SILENT_S: Final = 30.0
"""How long a launcher that did not answer is not asked for what it has launched."""
_ENGINE_S: Final = 5.0
"""How long a container engine may take to answer."""
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
        launchers: What launches them, by kind; None: what ``launching`` says.
    """

    def __init__(
        self,
        settings: Settings,
        pods: OpenPods,
        *,
        pod: str,
        launching: Launching,
        launchers: Mapping[str, Launcher] | None = None,
    ) -> None:
        self._settings, self._pods, self._launching = settings, pods, launching
        self._agenda = Agenda(settings.keyring_path)
        self._address = ""
        self._launchers = _launchers(settings, pod, launching) if launchers is None else launchers
        self._supervisors: dict[str, Supervisor] = {}
        self._listed: tuple[Sequence[tuple[Launcher, Launched]], bool] = ((), False)
        self._answers: dict[str, Sequence[Launched]] = {}
        self._asking: dict[str, threading.Thread] = {}
        self._silent_until: dict[str, float] = {}
        self._live: dict[str, int] = {}
        self._looked_at: dict[str, float] = {}
        self._begun_at: dict[str, float] = {}
        self._waiting: set[str] = set()
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
        until = time.monotonic() + _CLOSE_S
        with self._changed:
            threads = [self._loop, *self._threads]
        for thread in threads:  # who fetches an image, or asks an engine that does not answer, is not waited for
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        for launcher in self._launchers.values():
            if isinstance(launcher, DockerLauncher):
                launcher.close()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        while not self._is_over:
            began = time.monotonic()
            next_ms, pause_s = None, _POLL_S  # whoever was woken was not looked at, and is woken still
            try:
                next_ms, has_looked = self._look_around()
                pause_s = min(_PAUSE_S, _PAUSES * (time.monotonic() - began)) if has_looked else 0
            except HoldfastError as exc:
                _log.error("supervision.failed", extra={"reason": str(exc)})
            except Exception:  # noqa: BLE001 -- the supervisor's loop
                _log.exception("supervision.failed")
            wait_s = _POLL_S
            if next_ms is not None:
                wait_s = min(_POLL_S, max(_PAUSE_S, (next_ms - self._pods.opener.now_ms()) / 1000))
            with self._changed:
                self._changed.wait_for(lambda: self._is_over, pause_s)
                self._changed.wait_for(lambda: self._is_over or self._woken, wait_s)

    def _look_around(self) -> tuple[int | None, bool]:
        """Look at all Pods that are due; return when the next one is, and whether there were any."""
        with self._changed:
            woken, self._woken = self._woken, set()
        try:
            due = self._agenda.list_due(self._pods.opener.now_ms())
            # Who has waited for a place for longest comes first; then who is due, the one that was so for longest.
            waiting = sorted(self._waiting, key=lambda each: self._begun_at.get(each, 0)) if due or woken else []
            owners = [*dict.fromkeys((*waiting, *due, *woken))]
            if owners or not self._asking:
                self._list()
            for owner in owners:
                if self._is_over:
                    break
                self._look_at(owner, due[owner] if owner in due else self._agenda.wakes_of(owner))
            return self._agenda.next_ms(), bool(owners)
        except BaseException:
            with self._changed:
                self._woken |= woken
            raise

    def _list(self) -> None:
        """Ask all launchers what they have launched; what one of them says late is heard the next time."""
        asked: list[threading.Thread] = []
        for kind, launcher in self._launchers.items():
            is_asked = kind in self._asking and self._asking[kind].is_alive()
            if not is_asked and time.monotonic() >= self._silent_until.get(kind, 0):
                asking = threading.Thread(target=self._ask, args=(kind, launcher), name="asking", daemon=True)
                asking.start()
                self._asking[kind] = asking
                asked.append(asking)
        until = time.monotonic() + _ANSWER_S
        for asking in asked:
            asking.join(max(0.0, until - time.monotonic()))
        answers = {kind: self._answers.get(kind) for kind in self._launchers}
        found = [(self._launchers[kind], each) for kind, answer in answers.items() for each in answer or ()]
        is_late = any(each.is_alive() for each in self._asking.values())
        self._listed = found, None not in answers.values() and not is_late

    def _ask(self, kind: str, launcher: Launcher) -> None:
        try:
            found = launcher.list()
        except Exception as exc:  # noqa: BLE001 -- a launcher may be anybody's code
            self._answers.pop(kind, None)
            self._silent_until[kind] = time.monotonic() + _SILENT_S
            facts = {"launcher": kind, "reason": str(exc)}
            _log.warning("launches.not_listed", extra=facts, exc_info=not isinstance(exc, HoldfastError))
            return
        is_news = kind not in self._answers
        self._answers[kind] = found
        if is_news:  # what was launched for them may be left over
            with self._changed:
                self._woken.update(each.owner for each in found if each.owner)
                self._changed.notify_all()

    def _look_at(self, owner: str, wakes: int) -> None:
        try:
            with self._pods.open(owner, None) as use:
                supervisor = self._supervisors.get(owner)
                if supervisor is None:
                    supervisor = self._supervisors[owner] = self._supervisor(owner)
                look = supervisor.look(use.pod.store)
        except Exception as exc:  # noqa: BLE001 -- whatever is in one Pod, others are looked at
            is_ours = isinstance(exc, HoldfastError)
            _log.warning("pod.not_looked_at", extra={"owner": owner, "reason": str(exc)}, exc_info=not is_ours)
            is_busy = isinstance(exc, UnavailableError) and not isinstance(exc, DamagedError)
            next_ms: int | None = self._pods.opener.now_ms() + (_LATER_MS if is_busy else _MUCH_LATER_MS)
            if isinstance(exc, LockedError):
                next_ms = None  # its owner's call wakes it
            if time.monotonic() - self._looked_at.get(owner, 0) > self._settings.lease_s:
                self._live.pop(owner, None)  # so long no run of it has been seen to hold a lease
            self._waiting.discard(owner)
        else:
            next_ms, self._live[owner] = look.next_ms, look.live
            self._looked_at[owner] = time.monotonic()
            if look.begun:
                self._begun_at[owner] = time.monotonic()
            # Who has as many as it may have waits for its own ones, and is in nobody's way.
            is_waiting = look.is_waiting and look.live < self._settings.max_runs_per_owner
            (self._waiting.add if is_waiting else self._waiting.discard)(owner)
        with self._changed:
            # What is being written, or was since the look began, may not have been seen: it stays noted.
            is_stirring = self._stirring[owner] > 0 or owner in self._woken
            if not is_stirring:
                self._noted.discard(owner)
                del self._stirring[owner]
        next_ms = self._pods.opener.now_ms() if is_stirring else next_ms
        self._agenda.put(owner, next_ms, self._live.get(owner, 0), wakes=wakes)

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

    def listed(self) -> tuple[Sequence[tuple[Launcher, Launched]], bool]:
        """Return what all launchers have launched, as of the beginning of this look around."""
        return self._listed

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
        """Return how many runs may be launched for an owner who has ``live`` ones.

        A place is for who has waited for one for longer, if somebody has: for whom none was begun since.
        """
        room = self._settings.max_runs - live - self._agenda.live_of_others(owner)
        begun_at = self._begun_at.get(owner, 0)
        before = [each for each in self._waiting if each != owner and self._begun_at.get(each, 0) < begun_at]
        if 0 < room <= len(before):
            with self._changed:  # in the next look around they come before this one
                self._woken.update(before)
        return min(self._settings.max_runs_per_owner - live, room - len(before))

    @contextmanager
    def open(self, owner: str) -> Generator[Store]:
        """Yield a Pod."""
        with self._pods.open(owner, None) as use:
            yield use.pod.store

    def submit(self, work: Callable[[], None], *, is_launch: bool) -> None:
        """Do ``work`` in a thread of its own; nothing once the server ends: the next one finds what is to be done.

        There are as many launches as there may be runs; all else waits for one of a few places.
        """
        places = nullcontext() if is_launch else self._places
        thread = threading.Thread(target=self._work, args=(work, places), name="launching", daemon=True)
        with self._changed:
            if not self._is_over:
                self._threads.add(thread)
                thread.start()

    def _work(self, work: Callable[[], None], places: AbstractContextManager[Any]) -> None:
        try:
            with places:
                if not self._is_over:
                    work()
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())


@dataclass(frozen=True)
class _Places:
    """What the supervisor of one Pod asks for (see `holdfast.engine.supervising.Outside`)."""

    of: Supervision
    owner: str

    def listed(self) -> tuple[Sequence[tuple[Launcher, Launched]], bool]:
        return self.of.listed()

    def launcher_for(self, image: str) -> Launcher:
        return self.of.launcher_for(self.owner, image)

    def spec(self, run: ItemRow, lease: Lease, token: str) -> LaunchSpec:
        return self.of.spec(self.owner, run, lease, token)

    def free(self, live: int) -> int:
        return self.of.free(self.owner, live)

    def open(self) -> AbstractContextManager[Store]:
        return self.of.open(self.owner)

    def submit(self, work: Callable[[], None], *, is_launch: bool) -> None:
        self.of.submit(work, is_launch=is_launch)

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
        network = launching.network
        found["docker"] = DockerLauncher(folders["docker"], pod=pod, network=network, timeout_s=_ENGINE_S)
    return found
