"""Servers of Pods on a free port of this machine: in a thread of the test, and in a process that can be killed."""

import asyncio
import datetime as dt
import http.client
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from holdfast.context import Settings
from holdfast.context.serving import LocalPods
from holdfast.keys import Identity
from holdfast.remote import Connection, RemoteFiles, RemoteStore, make_pod
from holdfast.server.app import Application
from holdfast.server.limits import Limits
from holdfast.server.listening import Server, bind
from holdfast.server.pods import Opener, OpenPods

OWNER = Identity("a" * 64, "b" * 64)
STRANGER = Identity("c" * 64, "d" * 64)


@dataclass
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Served:
    """A server that answers."""

    url: str
    pods: OpenPods
    settings: Settings
    opened: list[Connection] = field(default_factory=list[Connection])
    """What is closed at the end."""

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, key: str | None = OWNER.database_key, **headers: str
    ) -> Answer:
        """Send one request as it is said, and return the answer; ``{owner}`` stands for the owner."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            given["Authorization"] = f"Bearer {key}"
        with closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request(method, path.replace("{owner}", OWNER.owner_key), body, given)
            response = connection.getresponse()
            return Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )

    def raw(self, *parts: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port)) as opened:
            for part in parts:
                opened.sendall(part)
            found = b""
            while part := opened.recv(65_536):
                found += part
            return found

    def connect(self, identity: Identity = OWNER, **how: Any) -> Connection:
        """Return what presents an owner's key, or ``token=``."""
        key = None if "token" in how else identity.database_key
        opened = Connection(self.url, identity.owner_key, database_key=key, **how)
        self.opened.append(opened)
        return opened

    def store(self, identity: Identity = OWNER, **how: Any) -> RemoteStore:
        """Return the store of an owner, whose Pod is made if there is none."""
        connection = self.connect(identity, **how)
        if "token" not in how:
            make_pod(connection)
        return RemoteStore(connection)

    def files(self, **how: Any) -> RemoteFiles:
        """Return the files of the owner."""
        return RemoteFiles(self.connect(**how))


@contextmanager
def serving(
    home: Path,
    *,
    opener: Opener | None = None,
    limits: Limits | None = None,
    max_open: int = 8,
    lease_s: float = 60,
    certificate: tuple[Path, Path] | None = None,
    hosts: Sequence[str] = (),
    **how: Any,
) -> Generator[Served]:
    """Answer in a thread, for the Pods in ``home``; ``how`` is what `LocalPods` takes."""
    settings = Settings(home=home)
    home.mkdir(parents=True, exist_ok=True)
    pods = OpenPods(opener or LocalPods(settings, **how), max_open=max_open)
    limits = limits or Limits()
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = Server(
        Application(pods, limits, version="0", lease_s=lease_s, hosts=hosts), limits, certificate=certificate
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    served = Served(f"http://127.0.0.1:{port}", pods, settings)
    try:
        yield served
    finally:
        for connection in served.opened:
            connection.close()
        server.end()
        thread.join()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a certificate for this machine and of its key, made by hand."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pod")])
    now = dt.datetime.now(dt.UTC)
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(addresses, critical=False)
        .sign(key, hashes.SHA256())
    )
    kind = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(kind))
    private = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(kind, private, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


SERVE = [sys.executable, "-m", "holdfast", "serve", "--json"]


@dataclass
class Process:
    """``holdfast serve`` in a process of its own, which can be killed and begun again at the same port."""

    home: Path
    words: Sequence[str] = ()
    """What is said to it besides."""
    before: Sequence[str] = ()
    """What runs it, such as strace."""
    program: Sequence[str] = tuple(SERVE)
    port: int = 0
    url: str = ""
    pid: int = 0
    launcher: str = ""
    opened: list[Connection] = field(default_factory=list[Connection])
    """What is closed at the end."""
    _popen: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Begin, and wait until it listens."""
        if self._popen is not None:
            self.wait()
        command = [*self.before, *self.program, "--home", str(self.home), "--port", str(self.port), *self.words]
        log = (self.home.with_name(f"{self.home.name}.log")).open("ab")
        with log:
            self._popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._popen.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            line = self._popen.stdout.readline()
            assert line, f"the server has ended with {self._popen.wait()}: {self.said()}"
            said += line
        found = json.loads(said)
        self.url, self.port, self.pid = found["url"], found["port"], found["pid"]
        self.launcher = found["launcher"]
        return self

    def said(self) -> str:
        """Return what it has logged."""
        return self.home.with_name(f"{self.home.name}.log").read_text()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def end(self, number: int = signal.SIGKILL) -> int:
        """End it with a signal, and return its exit code."""
        if self.is_running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)  # not what runs it: strace would leave it behind
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended."""
        assert self._popen is not None
        with self._popen as popen:
            return popen.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        for connection in self.opened:
            connection.close()
        if self._popen is not None:
            self.end()  # nothing happens to one that has ended

    def connect(self, **how: Any) -> Connection:
        """Return what presents the owner's key, or ``token=``."""
        key = None if "token" in how else OWNER.database_key
        opened = Connection(self.url, OWNER.owner_key, database_key=key, **how)
        self.opened.append(opened)
        return opened

    def store(self, **how: Any) -> RemoteStore:
        """Return the store of the owner, whose Pod is made if there is none."""
        connection = self.connect(**how)
        if "token" not in how:
            make_pod(connection)
        return RemoteStore(connection)
