"""A launcher of containers, through the interface of Docker: of Docker's own engine, or podman's.

Hides the engine, its images and its errors. A container can write to memory and to the snapshots of its plugin state,
and to nothing else: an image that would have volumes is refused. It has no capabilities and cannot gain any. It runs as
this process's own user, for the snapshots are that one's, whoever made them.

The failure argument. *The process dies on any line of `launch`*: the container is not there, there and not started, or
started; it has the name of the launch, so the next call goes on from where that was. *Two launch at once*: one of them
at a time on this machine; from two machines, the engine has one container of each name, and starting it twice is once.
*The engine goes away*: `probe` answers unknown until it is back, and then what it says. *The disk is full*: of this
machine: what opens the Pod cannot be noted, and no container is made; of the engine: it says so, as it does of others.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from typing import Any, Final, NamedTuple

from holdfast.disk import Disk, StrPath
from holdfast.errors import ConflictError, HoldfastError, InvalidError, NotFoundError, UnavailableError
from holdfast.launchers import ENDED, LAUNCHING
from holdfast.launchers.records import Records, environment_of, launched, probe_of
from holdfast.runs import Launched, LaunchSpec, Logs, Phase, Probe, check_launch_name, launch_name
from holdfast.values import shown

HOME: Final = "/run/holdfast"
"""The home of Holdfast in a container: in memory, but for the snapshots of the plugin state."""

_AUTH: Final = "/run/secrets/holdfast.json"
_MEMORY_BYTES: Final = 64 * 2**20
_MEMORY: Final = f"rw,nosuid,nodev,noexec,mode=1777,size={_MEMORY_BYTES}"
_LOGGING: Final = {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "2"}}
_LABEL: Final = "holdfast."
_FACTS: Final = ("owner", "state", "run", "epoch")
_ATTEMPTS: Final = 4
_LOG_BYTES: Final = 2**20
_TAILS: Final = (2**6, 2**12, 2**18, None)
"""How much of the end of a log is looked at, in entries, for the one that was read last."""
_NO_PROGRAM: Final = 127  # as of a shell; from the first process that is put into each container


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
        timeout_s: How long the engine may take to answer; not to fetch an image.
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
        # By process: a forked one would read the answers of the other. No lock, which a fork would take along, and
        # which would let all wait for the one to whom the engine does not answer.
        self._opened: dict[int, Any] = {}

    def close(self) -> None:
        """Give the connections back."""
        engine = self._opened.pop(os.getpid(), None)
        if engine is not None:
            engine.close()

    def launch(self, spec: LaunchSpec) -> str:
        """As `Launcher` says."""
        name = spec.name
        with self._records.launching(spec) as folder, self._engine(f"{name!r} cannot be launched") as engine:
            for attempts_left in reversed(range(_ATTEMPTS)):
                found = self._find(engine, name)
                if found is not None and found["State"]["Status"] != "created":
                    return name
                self._get_image(engine, spec.image)
                self._records.disk.delete(folder / ENDED)
                try:
                    with suppress(ConflictError), _translated(f"container {name!r} cannot be made"):
                        if found is not None:  # by one who died, or was refused, before it was started
                            engine.remove_container(name, v=True)
                        self._create(engine, spec)
                        engine.start(name)
                        return name
                except NotFoundError:
                    if not attempts_left or self._find(engine, name) is not None:
                        raise  # it is not the container that is missing, which another has deleted meanwhile
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
        made = engine.create_container(
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
            use_config_proxy=False,  # with it this user's password for the proxy would go along
            host_config=engine.create_host_config(
                init=True,
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                network_mode=self._network,
                mounts=mounts,
                tmpfs={"/tmp": _MEMORY, HOME: _MEMORY},  # noqa: S108 -- in the container
                shm_size=_MEMORY_BYTES,
                mem_limit=limits.memory_bytes,
                memswap_limit=limits.memory_bytes,
                pids_limit=limits.processes,
                nano_cpus=None if limits.cpus is None else round(limits.cpus * 10**9),
                log_config=_LOGGING,
            ),
        )
        mounted = engine.inspect_container(made["Id"])["Mounts"]
        volumes = sorted(each["Destination"] for each in mounted if each["Type"] == "volume")
        if volumes:
            engine.remove_container(spec.name, v=True)
            message = f"image {spec.image!r} has volumes ({', '.join(volumes)}), and would write to the machine's disk"
            raise InvalidError(f"{message} without a limit: build it without VOLUME", image=spec.image)

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
                with suppress(_not_found()):
                    engine.stop(name, timeout=math.ceil(grace_s))  # it wakes a paused one

    def delete(self, name: str) -> None:
        """As `Launcher` says."""
        with self._records.deleting(name), self._engine(f"{name!r} cannot be deleted") as engine:
            if self._find(engine, name) is None:
                return
            with suppress(NotFoundError):  # another has deleted it meanwhile
                try:
                    with _translated(f"{name!r} cannot be deleted"):
                        engine.remove_container(name, force=True, v=True)
                except ConflictError:  # it is on its way
                    with _translated(f"{name!r} cannot be deleted"):
                        engine.wait(name, timeout=self._timeout_s, condition="removed")

    def logs(self, name: str, after: str = "") -> Logs:
        """As `Launcher` says, as far as the engine has it: it keeps the last 16 to 32 MiB.

        One reads on from the last entry, wherever that is now, and not from a time: the clock of the engine may be put
        back. If the engine keeps that entry no longer, all that it keeps comes, and what was between is lost. Of a line
        that is longer than what is kept, parts may come twice or be lost.
        """
        check_launch_name(name)
        last = _entry(name, after)
        with self._engine(f"what {name!r} wrote cannot be read") as engine:
            if self._find(engine, name) is None:
                return Logs(b"", after)
            for tail in _TAILS if last else ():
                found = _read(engine, name, tail, last)
                if found is not None:
                    return found
            found = _read(engine, name, None, None)
            return found if found is not None and found.data else Logs(b"", after)

    def list(self) -> Sequence[Launched]:
        """As `Launcher` says."""
        found = {each.name: each for each in self._records.list()}
        with self._engine("the containers of this Pod cannot be listed") as engine:
            for each in engine.containers(all=True, filters={"label": f"{_LABEL}pod={self._pod}"}):
                name = (each["Names"] or [""])[0].removeprefix("/")  # none, when it is being removed
                facts = {fact: each["Labels"].get(_LABEL + fact, "") for fact in _FACTS}
                if launch_name.fullmatch(name):
                    found.setdefault(name, launched(name, facts))
        return [found[name] for name in sorted(found)]

    def _find(self, engine: Any, name: str) -> dict[str, Any] | None:
        """Return what the engine says of a container; None: there is none, or it is not this Pod's."""
        try:
            found = engine.inspect_container(name)
        except _not_found():
            return None
        is_it = found["Name"].removeprefix("/") == name  # the engine takes the beginning of an id as well
        return found if is_it and found["Config"]["Labels"].get(f"{_LABEL}pod") == self._pod else None

    @contextmanager
    def _engine(self, what: str) -> Generator[Any]:
        """Yield what speaks to the engine; what that raises in the block is said of ``what``."""
        with _translated(what):
            engine = self._opened.get(os.getpid())
            if engine is None:
                made = self._connect()
                engine = self._opened.setdefault(os.getpid(), made)
                if engine is not made:  # another thread was faster
                    made.close()
            yield engine

    def _connect(self) -> Any:
        docker = _sdk("docker")
        try:
            where: Any = {"base_url": self._url} if self._url else docker.utils.kwargs_from_env()
            return docker.APIClient(**where, version="auto", timeout=self._timeout_s)
        except ValueError as exc:
            url = self._url or os.environ.get("DOCKER_HOST")
            message = f"{shown(url)} is not where an engine can be: {exc}; unix:///run/docker.sock is one such"
            raise InvalidError(message) from exc


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


def _not_found() -> type[Exception]:
    found: type[Exception] = _sdk("docker").errors.NotFound
    return found


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
    if code == _NO_PROGRAM:
        return Probe(Phase.FAILED, f"it ended with exit code {code}: its program is not in the image, perhaps")
    return probe_of({"signal": code - 128} if 128 < code < 128 + 65 else {"code": code})


class _Entry(NamedTuple):
    """Which entry of a log: of what a container wrote to one of its outputs at one time, the so manieth.

    All parts of a long line have the time of the first, and entries of the other output may come in between.
    """

    output: int
    time: str
    number: int


_entry_pattern: Final = re.compile(r"([12])/([0-9TZ:.+-]{1,40})/([1-9][0-9]{0,8})", re.ASCII)


def _entry(name: str, after: str) -> _Entry | None:
    """Return the entry that `logs` read last."""
    found = _entry_pattern.fullmatch(after)
    if found is None and after:
        message = f"the log of {name!r} has nothing after {shown(after)}: what its last part said is expected"
        raise InvalidError(message, name=name)
    return None if found is None else _Entry(int(found[1]), found[2], int(found[3]))


def _read(engine: Any, name: str, tail: int | None, last: _Entry | None) -> Logs | None:
    """Return what comes after an entry, or from the beginning on; None: it is not known where that is.

    Args:
        engine: What speaks to the engine.
        name: Of the container.
        tail: How many entries there are to be looked at, from the end; None: all.
        last: The entry; None: the beginning.
    """
    is_after, is_sure, size = last is None, True, 0
    parts: list[bytes] = []
    reached: dict[int, _Entry] = {}
    counted = dict[int, bool]()  # whether all of that time were seen
    with closing(_entries(engine, name, tail)) as entries:
        for output, time, text in entries:
            before = reached.get(output)
            if before is not None and before.time == time:
                entry = before._replace(number=before.number + 1)
            else:
                entry = _Entry(output, time, 1)
                counted[output] = tail is None or before is not None
            reached[output] = entry
            if is_after:
                parts.append(text)
                size += len(text)
                last, is_sure = entry, counted[output]
                if size >= _LOG_BYTES:
                    break
            else:
                is_after = entry == last and counted[output]
    if not is_after or not is_sure:
        return None
    return Logs(b"".join(parts), "" if last is None else f"{last.output}/{last.time}/{last.number}")


def _entries(engine: Any, name: str, tail: int | None) -> Generator[tuple[int, str, bytes]]:
    """Yield what a container wrote: to which output, when, and what.

    Not by Docker's package, which does not say which output it was, and takes ten times as long.
    """
    url = f"{engine.base_url}/v{engine.api_version}/containers/{name}/logs"
    asked = {"stdout": 1, "stderr": 1, "timestamps": 1, "tail": "all" if tail is None else tail}
    with closing(engine.get(url, params=asked, stream=True, timeout=engine.timeout)) as answer:
        if answer.status_code == 404:  # it was deleted meanwhile
            return
        answer.raise_for_status()
        data, at = b"", 0
        while more := answer.raw.read(2**16):
            data, at = data[at:] + more, 0
            # A header of 8 bytes: the output, three zeros, and how many bytes follow.
            while len(data) >= at + 8 and len(data) >= (end := at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")):
                time, _, text = data[at + 8 : end].partition(b" ")
                yield data[at], time.decode("ascii", "replace"), text
                at = end
