"""A launcher of containers, through the interface of Docker: of Docker's own engine, or podman's.

Hides the engine, its images and its errors. A container can write to memory and to the snapshots of its plugin state,
and to nothing else; it has no capabilities and cannot gain any. It runs as this process's own user, for the snapshots
are that one's, whoever made them.

The failure argument. *The process dies on any line of `launch`*: the container is not there, there and not started, or
started; it has the name of the launch, so the next call goes on from where that was. *Two launch at once*: one of them
at a time on this machine; from two machines, the engine has one container of each name, and starting it twice is once.
*The engine goes away*: `probe` answers unknown until it is back, and then what it says. *The disk is full*: of this
machine: what opens the Pod cannot be noted, and no container is made; of the engine: it says so, as it does of others.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from calendar import timegm
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from importlib import import_module
from typing import Any, Final

from holdfast.disk import Disk, StrPath
from holdfast.errors import ConflictError, HoldfastError, InvalidError, NotFoundError, UnavailableError
from holdfast.launchers import ENDED, LAUNCHING
from holdfast.launchers.records import Records, environment_of, launched, probe_of
from holdfast.runs import Launched, LaunchSpec, Logs, Phase, Probe, check_launch_name
from holdfast.values import shown

HOME: Final = "/run/holdfast"
"""The home of Holdfast in a container: in memory, but for the snapshots of the plugin state."""

_AUTH: Final = "/run/secrets/holdfast.json"
_MEMORY: Final = f"rw,nosuid,nodev,noexec,mode=1777,size={64 * 2**20}"
_LOGGING: Final = {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "2"}}
_LABEL: Final = "holdfast."
_FACTS: Final = ("owner", "state", "run", "epoch")
_ATTEMPTS: Final = 4
_LOG_BYTES: Final = 2**20
_ORDER_MS: Final = 2_000
"""How much later something may come into the log than something with a later time: it has two sources."""


class DockerLauncher:
    """A `Launcher` of containers; close it to give its connections back, it opens new ones when it is used again.

    Args:
        folder: Where it keeps what it knows, and what opens a Pod for each container, on the machine of the engine.
        pod: What tells the containers of this Pod from those of others on one engine.
        url: Where the engine is, ``unix:///run/docker.sock``; None: as the environment says (``DOCKER_HOST``), else
            where it is by default.
        network: The network of the containers; None: that of the machine on Linux, else the engine's own choice.
        is_pulled: Whether an image that is not here is fetched.
        is_auth_in_file: Whether a run finds what opens the Pod in a file; else in its environment.
        timeout_s: How long the engine may take to answer.
        disk: The file system.
    """

    def __init__(
        self,
        folder: StrPath,
        *,
        pod: str,
        url: str | None = None,
        network: str | None = None,
        is_pulled: bool = True,
        is_auth_in_file: bool = True,
        timeout_s: float = 10.0,
        disk: Disk | None = None,
    ) -> None:
        self._records = Records(folder, disk)
        self._pod = pod
        self._url = url
        self._network = network or ("host" if sys.platform == "linux" else None)
        self._is_pulled = is_pulled
        self._is_auth_in_file = is_auth_in_file
        self._timeout_s = timeout_s
        self._opening = threading.Lock()
        self._opened: Any = None

    def close(self) -> None:
        """Give the connections back."""
        with self._opening:
            engine, self._opened = self._opened, None
        if engine is not None:
            engine.close()

    def launch(self, spec: LaunchSpec) -> str:
        """As `Launcher` says."""
        name = spec.name
        with self._records.launching(spec) as folder, self._engine(f"{name!r} cannot be launched") as engine:
            for _ in range(_ATTEMPTS):
                found = self._find(engine, name)
                if found is not None and found["State"]["Status"] != "created":
                    return name
                self._get_image(engine, spec.image)
                self._records.disk.delete(folder / ENDED)
                with suppress(ConflictError), _translated(f"container {name!r} cannot be made"):
                    if found is not None:  # by one who died, or was refused, before it was started
                        engine.remove_container(name, v=True)
                    self._create(engine, spec)
                    engine.start(name)
                    return name
        message = f"container {name!r} cannot be made: another has the name, that is not this Pod's or is on its way"
        raise UnavailableError(message, name=name)

    def _get_image(self, engine: Any, image: str) -> None:
        """Let an image be here, from where it may be."""
        if not image:
            raise InvalidError("a container has an image: the run, in its containerImage, names none")
        with suppress(NotFoundError), _translated(f"image {shown(image)} cannot be used"):
            engine.inspect_image(image)
            return
        if not self._is_pulled:
            raise NotFoundError(f"image {image!r} is not here: build it, or fetch it", image=image)
        with _translated(f"image {image!r} is not here, and cannot be fetched"):
            for line in engine.pull(image, stream=True, decode=True):
                if "error" in line:
                    message = f"image {image!r} is not here, and could not be fetched to its end: {line['error']}"
                    raise UnavailableError(message, image=image)

    def _create(self, engine: Any, spec: LaunchSpec) -> None:
        auth = self._records.put_auth(self._records.path(spec.name), spec) if self._is_auth_in_file else None
        mounts = [] if auth is None else [_mount(auth, _AUTH, is_read_only=True)]
        if spec.snapshots is not None:
            self._records.disk.put_folder(spec.snapshots)
            mounts.append(_mount(str(spec.snapshots.absolute()), f"{HOME}/snapshots/{spec.state}"))
        limits = spec.limits
        engine.create_container(
            spec.image,
            list(spec.command) or None,
            name=spec.name,
            user=f"{os.getuid()}:{os.getgid()}",
            environment={
                "HOME": HOME,
                **environment_of(spec, (), None if auth is None else _AUTH),
                "HOLDFAST_HOME": HOME,
            },
            labels={
                f"{_LABEL}pod": self._pod,
                **{_LABEL + each: str(getattr(spec, each)) for each in _FACTS},
            },
            stop_signal="SIGTERM",
            host_config=engine.create_host_config(
                init=True,
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                network_mode=self._network,
                mounts=mounts,
                tmpfs={"/tmp": _MEMORY, HOME: _MEMORY},  # noqa: S108 -- in the container
                mem_limit=limits.memory_bytes,
                memswap_limit=limits.memory_bytes,
                pids_limit=limits.processes,
                nano_cpus=None if limits.cpus is None else round(limits.cpus * 10**9),
                log_config=_LOGGING,
            ),
        )

    def probe(self, name: str) -> Probe:
        """As `Launcher` says."""
        folder = self._records.path(name)
        try:
            is_launching = folder.is_dir() and self._records.is_locked(folder / LAUNCHING)
            with self._engine(f"{name!r} cannot be looked for") as engine:
                found = self._find(engine, name)
            status = "created" if found is None else found["State"]["Status"]
            if is_launching and status == "created":
                return Probe(Phase.RUNNING)
            ended = self._records.read(folder / ENDED)
        except HoldfastError as exc:
            return Probe(Phase.UNKNOWN, str(exc))
        if found is None or status == "created":
            return probe_of(ended) if ended else Probe(Phase.GONE)
        if status in {"running", "paused", "restarting"}:
            return Probe(Phase.RUNNING)
        return _probe_of_ended(found)

    def stop(self, name: str, grace_s: float) -> None:
        """As `Launcher` says."""
        self._records.wait_for_launch(name)
        with self._engine(f"{name!r} cannot be stopped") as engine:
            if self._find(engine, name) is not None:
                with suppress(_sdk("docker").errors.NotFound):
                    engine.stop(name, timeout=math.ceil(grace_s))  # it wakes a paused one

    def delete(self, name: str) -> None:
        """As `Launcher` says."""
        self._records.wait_for_launch(name)
        with self._engine(f"{name!r} cannot be deleted") as engine:
            if self._find(engine, name) is not None:
                try:
                    with suppress(NotFoundError), _translated(f"{name!r} cannot be deleted"):
                        engine.remove_container(name, force=True, v=True)
                except ConflictError:  # it is on its way
                    engine.wait(name, timeout=self._timeout_s, condition="removed")
        self._records.delete(name)

    def logs(self, name: str, after: str = "") -> Logs:
        """As `Launcher` says, as far as the engine has it: it keeps the last 16 to 32 MiB."""
        check_launch_name(name)
        since_ms, skipped = _place(name, after)
        parts: list[bytes] = []
        times: list[int] = []
        with self._engine(f"what {name!r} wrote cannot be read") as engine:
            if self._find(engine, name) is None:
                return Logs(b"", after)
            since = since_ms / 1000 if since_ms else None
            with closing(engine.logs(name, stream=True, follow=False, timestamps=True, since=since)) as entries:
                size = 0
                for entry in entries:  # to the end: the package leaves a connection open that it is not done with
                    if size >= _LOG_BYTES:
                        continue
                    stamp, _, text = entry.partition(b" ")
                    times.append(_milliseconds(stamp.decode("ascii")))
                    if len(times) > skipped:
                        parts.append(text)
                        size += len(text)
        if not parts:
            return Logs(b"", after)
        since_ms = max(since_ms, max(times) - _ORDER_MS)
        return Logs(b"".join(parts), f"{since_ms}+{sum(each >= since_ms for each in times)}")

    def list(self) -> Sequence[Launched]:
        """As `Launcher` says."""
        found = {each.name: each for each in self._records.list()}
        with self._engine("the containers of this Pod cannot be listed") as engine:
            for each in engine.containers(all=True, filters={"label": f"{_LABEL}pod={self._pod}"}):
                name = each["Names"][0].removeprefix("/")
                facts = {fact: each["Labels"].get(_LABEL + fact, "") for fact in _FACTS}
                found.setdefault(name, launched(name, facts))
        return [found[name] for name in sorted(found)]

    def _find(self, engine: Any, name: str) -> dict[str, Any] | None:
        """Return what the engine says of a container; None: there is none, or it is not this Pod's."""
        try:
            found = engine.inspect_container(name)
        except _sdk("docker").errors.NotFound:
            return None
        return found if found["Config"]["Labels"].get(f"{_LABEL}pod") == self._pod else None

    @contextmanager
    def _engine(self, what: str) -> Generator[Any]:
        """Yield what speaks to the engine; what that raises in the block is said of ``what``."""
        with _translated(what):
            with self._opening:
                if self._opened is None:
                    docker = _sdk("docker")
                    where: Any = {"base_url": self._url} if self._url else docker.utils.kwargs_from_env()
                    self._opened = docker.APIClient(**where, version="auto", timeout=self._timeout_s)
                engine = self._opened
            yield engine


def _sdk(module: str) -> Any:
    """Return a module of Docker's package, which only those have who launch containers; and it takes 0.3 s."""
    try:
        return import_module(module)
    except ImportError as exc:
        message = "containers cannot be launched: Docker's package is not installed; install holdfast[docker]"
        raise UnavailableError(message) from exc


@contextmanager
def _translated(what: str) -> Generator[None]:
    """In the block, raise for what the engine answers, or does not answer, what that is to a caller of Holdfast."""
    try:
        yield
    except HoldfastError:  # some of ours are an OSError as well
        raise
    except _engine_errors() as exc:
        status: int | None = getattr(exc, "status_code", None)
        kind: type[HoldfastError] = UnavailableError
        if status is not None and status < 500:
            kind = _KINDS.get(status, InvalidError)
        reason = str(getattr(exc, "explanation", None) or exc).strip()
        raise kind(f"{what}: {reason}", status=status) from exc


def _engine_errors() -> tuple[type[Exception], ...]:
    """Return what Docker's package raises, and what it speaks through."""
    return OSError, _sdk("docker").errors.DockerException, _sdk("urllib3").exceptions.HTTPError


_KINDS: Final[dict[int, type[HoldfastError]]] = {
    401: NotFoundError,  # who may not see an image is not told whether there is one
    403: NotFoundError,
    404: NotFoundError,
    408: UnavailableError,
    409: ConflictError,
    429: UnavailableError,
}


def _mount(source: str, target: str, *, is_read_only: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": is_read_only}


def _probe_of_ended(found: dict[str, Any]) -> Probe:
    state = found["State"]
    code = int(state["ExitCode"])
    if code and state["OOMKilled"]:
        return Probe(
            Phase.FAILED, f"it was killed: it needed more than its {found['HostConfig']['Memory']} bytes of memory"
        )
    if state["Error"]:
        return Probe(Phase.FAILED, f"it ended with exit code {code}: {state['Error']}")
    return probe_of({"signal": code - 128} if 128 < code < 128 + 65 else {"code": code})


def _place(name: str, after: str) -> tuple[int, int]:
    """Return what `logs` said last: a time, and how many entries since then are known."""
    since, _, count = (after or "0+0").partition("+")
    if not (since.isascii() and since.isdecimal() and count.isascii() and count.isdecimal()):
        message = f"the log of {name!r} has nothing after {shown(after)}: what its last part said is expected"
        raise InvalidError(message, name=name)
    return int(since), int(count)


def _milliseconds(stamp: str) -> int:
    """Return an instant (RFC 3339) as milliseconds since 1970, rounded down."""
    instant = datetime.fromisoformat(stamp)
    return timegm(instant.utctimetuple()) * 1000 + instant.microsecond // 1000
