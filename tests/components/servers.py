"""Servers of Pods on a free port of this machine: in a thread of the test, and in a process that can be killed."""

import asyncio
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.context import Settings
from holdfast.context.serving import LocalPods
from holdfast.keys import Identity
from holdfast.remote import Connection, RemoteFiles, RemoteStore, make_pod
from holdfast.server.app import Application
from holdfast.server.limits import Limits
from holdfast.server.listening import Server, bind
from holdfast.server.pods import OpenPods

OWNER = Identity("a" * 64, "b" * 64)
STRANGER = Identity("c" * 64, "d" * 64)


@dataclass
class Served:
    """A server that answers."""

    url: str
    pods: OpenPods
    settings: Settings

    def connect(self, identity: Identity = OWNER, **how: Any) -> Connection:
        """Return what presents an owner's key, or ``token=``."""
        key = None if "token" in how else identity.database_key
        return Connection(self.url, identity.owner_key, database_key=key, **how)

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
def serving(home: Path, *, limits: Limits | None = None, max_open: int = 8, **how: Any) -> Generator[Served]:
    """Answer in a thread, for the Pods in ``home``; ``how`` is what `LocalPods` takes."""
    settings = Settings(home=home)
    home.mkdir(parents=True, exist_ok=True)
    pods = OpenPods(LocalPods(settings, **how), max_open=max_open)
    limits = limits or Limits()
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = Server(Application(pods, limits, version="0"), limits)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{port}", pods, settings)
    finally:
        server.end()
        thread.join()
