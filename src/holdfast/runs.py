"""One run of a plugin: its statuses and the only moves between them; and the lease that lets it write.

Rules only, as a table and as functions of values: who stores a run or a lease, and who drives one, is told elsewhere;
as is how a launcher does what is said here that it must. Times are milliseconds since 1970 on the clock of the
database, the only clock that two machines share.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from holdfast.errors import ConflictError, FencedError, InvalidError
from holdfast.values import item_id, shown


class Clock(Protocol):
    """What time it is; handed in, so that tests move it."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970 (UTC)."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970 (UTC)."""
        return time.time_ns() // 1_000_000


class Status(StrEnum):
    """Where a run is; the exact strings of the Pod's API."""

    IDLE = "idle"
    INITIALIZED = "initialized"
    READY = "ready"
    STARTED = "started"
    AUTHENTICATED = "authenticated"
    USER_ACTION_NEEDED = "userActionNeeded"
    DAEMON = "daemon"
    DONE = "done"
    ERROR = "error"
    ABORTED = "aborted"


RUN_IDLE: Final = Status.IDLE
RUN_INITIALIZED: Final = Status.INITIALIZED
RUN_READY: Final = Status.READY
RUN_STARTED: Final = Status.STARTED
RUN_AUTHENTICATED: Final = Status.AUTHENTICATED
RUN_USER_ACTION_NEEDED: Final = Status.USER_ACTION_NEEDED
RUN_DAEMON: Final = Status.DAEMON
RUN_DONE: Final = Status.DONE
RUN_ERROR: Final = Status.ERROR
RUN_ABORTED: Final = Status.ABORTED

_S = Status
MOVES: Final[Mapping[Status, frozenset[Status]]] = MappingProxyType(
    {
        _S.IDLE: frozenset({_S.INITIALIZED, _S.READY, _S.STARTED, _S.ERROR, _S.ABORTED}),
        _S.INITIALIZED: frozenset({_S.READY, _S.STARTED, _S.USER_ACTION_NEEDED, _S.ERROR, _S.ABORTED}),
        _S.READY: frozenset({_S.STARTED, _S.USER_ACTION_NEEDED, _S.ERROR, _S.ABORTED}),
        _S.STARTED: frozenset(
            {_S.AUTHENTICATED, _S.USER_ACTION_NEEDED, _S.DAEMON, _S.READY, _S.DONE, _S.ERROR, _S.ABORTED}
        ),
        _S.AUTHENTICATED: frozenset(
            {_S.STARTED, _S.USER_ACTION_NEEDED, _S.DAEMON, _S.READY, _S.DONE, _S.ERROR, _S.ABORTED}
        ),
        _S.USER_ACTION_NEEDED: frozenset({_S.READY, _S.ERROR, _S.ABORTED}),
        _S.DAEMON: frozenset({_S.USER_ACTION_NEEDED, _S.READY, _S.DONE, _S.ERROR, _S.ABORTED}),
        _S.ERROR: frozenset({_S.READY}),
        _S.ABORTED: frozenset({_S.READY}),
        _S.DONE: frozenset(),
    }
)
"""Every legal move; repeating a status is not a move and always allowed."""


def status_of(text: object) -> Status:
    """Return ``text`` as a status; what an item without a status has, and an unknown one, is idle."""
    try:
        return Status(text)
    except ValueError:
        return Status.IDLE


def move(run: str, status: Status, to: object) -> Status:
    """Return the status that ``run`` has after moving from ``status`` to ``to``.

    Raises:
        InvalidError: ``to`` is not a status.
        ConflictError: The move is not in `MOVES`.

    >>> move("r1", Status.DONE, "started")
    Traceback (most recent call last):
    holdfast.errors.ConflictError: run 'r1' is done and cannot become started; it can become nothing else
    """
    try:
        wanted = Status(to)
    except ValueError as exc:
        message = f"run {run!r} cannot become {shown(to)}: a status is one of {', '.join(Status)}"
        raise InvalidError(message, run=run, status=shown(to)) from exc
    if wanted is status or wanted in MOVES[status]:
        return wanted
    allowed = ", ".join(sorted(MOVES[status])) or "nothing else"
    message = f"run {run!r} is {status} and cannot become {wanted}; it can become {allowed}"
    raise ConflictError(message, run=run, status=str(status), wanted=str(wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an attempt to carry a run on.

    Attributes:
        status: Where the run is now; None: it is somebody else's, and was left alone.
        error: Why, for the user.
        exit_code: What the process ends with.
        retry_after_s: The plugin asked to be tried again after so many seconds.
        run: The id of the run; "" where only the runner that was given it is asked.
    """

    status: Status | None
    exit_code: int
    error: str | None = None
    retry_after_s: float | None = None
    run: str = ""


def path_to_started(run: str, status: Status) -> tuple[Status, ...]:
    """Return the moves that bring a run that is carried on from ``status`` to started.

    Raises:
        ConflictError: It has ended, or waits for its user.

    >>> path_to_started("r1", Status.DAEMON)
    (<Status.READY: 'ready'>, <Status.STARTED: 'started'>)
    """
    if status is Status.STARTED:
        return ()
    if status is Status.DAEMON:
        return (Status.READY, Status.STARTED)
    return (move(run, status, Status.STARTED),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """What a write of a run carries: the right it was given, checked where the write is applied."""

    state: str
    epoch: int
    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The time-limited right to one plugin state.

    ``epoch`` grows with every claim and never shrinks; ``holder`` is the claimer's own random id, so that two claims
    of one run differ; both are None-like (0, "") before the first claim, and ``holder`` is "" after a release.
    """

    state: str
    epoch: int = 0
    holder: str = ""
    run: str = ""
    expires_ms: int = 0
    is_cancelled: bool = False

    def is_held(self, now_ms: int) -> bool:
        """Say whether somebody holds the plugin state now."""
        return self.holder != "" and now_ms < self.expires_ms

    @property
    def fence(self) -> Fence:
        """What the holder's writes must carry."""
        return Fence(state=self.state, epoch=self.epoch, holder=self.holder)

    def claimed(self, *, run: str, holder: str, now_ms: int, duration_ms: int, dead_holder: str = "") -> Lease:
        """Return the lease after a claim.

        Claiming again with the holder that has it is answered with the lease as it is, renewed: a claim whose reply
        was lost may be repeated.

        Args:
            run: The run that claims.
            holder: A random id of this attempt, 1 to 64 letters, digits, ``-`` and ``_``.
            now_ms: The database's clock.
            duration_ms: How long the claim lasts without renewal.
            dead_holder: A holder whose process is proven dead; its lease does not stand in the way.

        Raises:
            ConflictError: Somebody else holds it; the message names the run that does.
        """
        if self.holder == holder != "":
            return replace(self, expires_ms=now_ms + duration_ms)
        if self.is_held(now_ms) and self.holder != dead_holder:
            raise self.held_by_other(now_ms)
        return Lease(state=self.state, epoch=self.epoch + 1, holder=holder, run=run, expires_ms=now_ms + duration_ms)

    def renewed(self, fence: Fence, *, now_ms: int, duration_ms: int) -> Lease:
        """Return the lease after a renewal; one that expired but that nobody claimed may still be renewed.

        Raises:
            FencedError: Another claim was made since.
        """
        self.check(fence)
        return replace(self, expires_ms=now_ms + duration_ms)

    def released(self, fence: Fence) -> Lease:
        """Return the lease after its holder gave it back; doing so again, after a lost reply, changes nothing.

        Raises:
            FencedError: Another claim was made since.
        """
        if not self.holder and self.epoch == fence.epoch:  # an epoch has one holder, and that one gave it back
            return self
        self.check(fence)
        return Lease(state=self.state, epoch=self.epoch)

    def ended(self) -> Lease:
        """Return the lease after its owner took it away: every write of the former holder is refused from now on."""
        return Lease(state=self.state, epoch=self.epoch + 1) if self.holder else self

    def cancelled(self) -> Lease:
        """Return the lease with the request to its holder to stop; without a holder, the lease as it is."""
        return replace(self, is_cancelled=True) if self.holder else self

    def check(self, fence: Fence) -> None:
        """Accept ``fence`` as that of the last claim.

        Raises:
            FencedError: It is not.
        """
        if not fence.holder or (self.epoch, self.holder) != (fence.epoch, fence.holder):
            taken = f"taken over by run {self.run!r}" if self.holder else "taken from it"
            message = f"plugin state {fence.state!r} was {taken} (epoch {self.epoch}, not {fence.epoch})"
            raise FencedError(message, state=fence.state, epoch=self.epoch, fenced_epoch=fence.epoch, run=self.run)

    def held_by_other(self, now_ms: int) -> ConflictError:
        """Return the error that names who holds the plugin state."""
        left_s = max(1, -(-(self.expires_ms - now_ms) // 1000))  # rounded up
        message = f"plugin state {self.state!r} is held by run {self.run!r} for another {left_s} s"
        return ConflictError(message, state=self.state, run=self.run, expires_ms=self.expires_ms)


launch_name: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""How a launch is called: as a host is (RFC 1123), so that any engine takes it; and no path leads anywhere by it."""

_MAX_SLUG: Final = 23
"""What 63 characters leave for the plugin, beside "hf", 16 of a hash, an epoch of 63 bits, and what is between."""


_LIMITS: Final = (
    ("memory_bytes", 1, 2**62),
    ("processes", 1, 2**31),
    ("cpus", 0.001, 10_000),
    ("file_bytes", 1, 2**62),
    ("nice", 0, 19),
)
"""What each limit can be, from the first number to the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a launched run may use at most; None: as much as there is. What a launcher cannot limit, it does not.

    Attributes:
        memory_bytes: Of memory; in a process of address space, which is more.
        processes: How many processes and threads; in a process all those of its user count.
        cpus: How many processors' time; only in a container.
        file_bytes: Of any one file that it writes, its log included; only in a process.
        nice: How far it stands back for others, 0 to 19; only in a process.

    Raises:
        InvalidError: One is no such limit. Systems and engines take 0 for "none", and would not limit at all.
    """

    memory_bytes: int | None = None
    processes: int | None = None
    cpus: float | None = None
    file_bytes: int | None = None
    nice: int = 0

    def __post_init__(self) -> None:
        for name, least, most in _LIMITS:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # what is no number is neither
                message = f"{name} cannot be limited to {shown(value)}: {least} to {most} is expected"
                raise InvalidError(message, limit=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What a launcher is told of a run.

    Attributes:
        owner: Whose Pod it works on.
        plugin: The id of its plugin, ``module:name``.
        state: The id of its plugin state.
        run: The id of the run.
        epoch: That of the lease that was claimed for it.
        address: The URL of the Pod.
        auth: What opens the Pod, as JSON text: ``{"type": "PluginAuth", "data": {"token": "hft1.…"}}``.
        image: What is launched: an image of containers, or a name that stands for a script; "" where it is always one.
        command: What is started there; empty: what the image, or the launcher, starts by itself.
        environment: What it finds in its environment besides.
        snapshots: The folder with the snapshots of its plugin state; None: it has none here.
        limits: What it may use.
    """

    owner: str
    plugin: str
    state: str
    run: str
    epoch: int
    address: str
    auth: str = field(repr=False)
    image: str = ""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    snapshots: Path | None = None
    limits: Limits = Limits()

    @property
    def name(self) -> str:
        """What the launch is called, at most 63 characters: the same for one owner, plugin, plugin state and epoch.

        >>> LaunchSpec(owner="o", plugin="my_bot:Bot", state="s", run="r", epoch=3, address="", auth="").name
        'hf-my-bot-bot-37e4e9cdb19dc5cb-3'
        """
        from hashlib import sha256  # start-up: for those who launch

        told = json.dumps([self.owner, self.plugin, self.state])
        slug = re.sub("[^a-z0-9]+", "-", self.plugin.lower())[:_MAX_SLUG].strip("-")
        return "-".join(["hf", *([slug] if slug else []), sha256(told.encode()).hexdigest()[:16], str(self.epoch)])


class Phase(StrEnum):
    """What became of a launch."""

    RUNNING = "running"
    """It was begun and has not ended; it may be paused."""
    GONE = "gone"
    """Nothing runs under the name: it was never launched, has ended well, or was deleted."""
    FAILED = "failed"
    """Nothing runs: it could not be started, or has not ended well."""
    UNKNOWN = "unknown"
    """It could not be found out."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What became of a launch, and why it failed or cannot be told, in words for the user."""

    phase: Phase
    reason: str = ""


class Logs(NamedTuple):
    """A part of what a launch wrote, and what is passed as ``after`` to have what comes after it."""

    data: bytes
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A launch that a launcher knows: what it is called, and what for it was made."""

    name: str
    owner: str
    state: str
    run: str
    epoch: int


class Launcher(Protocol):
    """What starts runs somewhere, and says what became of them.

    A launch is called by `LaunchSpec.name`, which is known before it is made: who dies within `launch` asks for it
    afterwards. What one launcher has launched, another one of the same place knows, in any process: nothing is kept in
    memory that matters. All of it may be called by several threads at once.

    A launcher explains and never decides: whether a run goes on is said by its lease.

    Besides what each method says, all raise InvalidError for what cannot be the name of a launch, and all but `probe`
    UnavailableError if it could not be found out or done now; it may have been done, and may be asked for again.
    """

    def launch(self, spec: LaunchSpec) -> str:
        """Start a run, and return its name; to be called from a thread of its own, as to fetch an image takes minutes.

        A name is started once: what was started already, and may have ended since, is left as it is. Of two that
        launch one name at the same time one starts it. What could not be started may be launched again. Until this
        returns, or if the process dies within, it may have been started or not.

        It finds ``POD_FULL_ADDRESS``, ``POD_OWNER``, ``POD_PLUGINRUN_ID``, ``POD_TARGET_ITEM`` (``{"id": "…"}``) and
        ``POD_AUTH_FILE`` (a file that only it can read) or ``POD_AUTH_JSON`` in its environment, and of this process's
        own nothing that was not listed.

        Raises:
            NotFoundError: There is no such image or program. `probe` answers failed, and says so. A program that an
                image does not have may also be found out later: it has then ended with exit code 127.
            InvalidError: It cannot be started like this. As above.
        """
        ...

    def probe(self, name: str) -> Probe:
        """Return what became of a launch; unknown rather than an error, and rather than anything that is not sure."""
        ...

    def stop(self, name: str, grace_s: float) -> None:
        """Let a launch have ended, with all the processes that it began; what it wrote stays.

        It is asked to end (SIGTERM) and killed ``grace_s`` seconds later; what it began may be killed as soon as it has
        ended. When this returns nothing of it runs, and `probe` says so. Nothing happens if it has ended already, or
        was never launched. While it is being launched this raises UnavailableError, after a while.
        """
        ...

    def delete(self, name: str) -> None:
        """Let nothing be left of a launch: it is killed if it runs, and what it wrote goes; silent if there is none.

        The name is then one that was never launched.
        """
        ...

    def logs(self, name: str, after: str = "") -> Logs:
        """Return what a launch wrote to its standard output and standard error, from the beginning or after a part.

        At most about 1 MiB at once; no bytes: there are no more, yet. Of what was never launched there are none.
        """
        ...

    def list(self) -> Sequence[Launched]:
        """Return all that was launched here and not deleted, sorted by name.

        What has ended is there too, and what could not be started. What it says of one that has changed its own notes
        cannot be relied upon; what it says of others can.
        """
        ...


def check_launch_name(name: str) -> str:
    """Return ``name`` if a launch can be called so.

    Raises:
        InvalidError: It cannot.
    """
    if not isinstance(name, str) or launch_name.fullmatch(name) is None:  # pyright: ignore[reportUnnecessaryIsInstance] -- untyped callers
        message = f"{shown(name)} names no launch: 1 to 63 lower-case letters, digits and '-' are expected"
        raise InvalidError(message, name=shown(name))
    return name


def check_launch_spec(spec: LaunchSpec) -> None:
    """Accept what a process, or a container, can be told.

    Raises:
        InvalidError: A text holds a NUL, or what no encoding has; an id, or a name in the environment, is none.
    """
    for what, id_ in (("run", spec.run), ("plugin state", spec.state)):
        if item_id.fullmatch(id_) is None:
            raise _unlaunchable(spec, f"{shown(id_)} is the id of no {what}")
    told = {"auth": spec.auth, "address": spec.address, "owner": spec.owner}
    told |= {f"part {number} of the command": text for number, text in enumerate(spec.command, 1)}
    for name, value in spec.environment.items():
        if not name or "=" in name:
            raise _unlaunchable(spec, f"{shown(name)} is no name in an environment")
        told |= {f"the name {shown(name)} in the environment": name, f"{shown(name)} in the environment": value}
    for what, text in told.items():
        try:
            is_text = b"\0" not in text.encode("utf-8", "surrogateescape")  # which the names of files may need
        except UnicodeEncodeError:
            is_text = False
        if not is_text:  # not shown: it may be what opens the Pod
            raise _unlaunchable(spec, f"{what} holds a NUL, or what is no text")


def _unlaunchable(spec: LaunchSpec, reason: str) -> InvalidError:
    return InvalidError(f"{spec.name!r} cannot be launched: {reason}", name=spec.name)
