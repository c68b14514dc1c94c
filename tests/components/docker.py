"""A container engine of the tests' own, with an image of Python that is made of the one that runs them.

Nothing is fetched but the engine itself, from the system's packages and under ``CI=true`` only: there is no registry
besides one on loopback, which has nothing. All containers have the network of the machine.
"""

import functools
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
from contextlib import AbstractContextManager, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.components import require

PACKAGES = ("docker.io", "containerd")
IMAGE = f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
"""What the image is called: as a Dockerfile asks for it."""

_LEFT_OUT = {"__pycache__", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tkinter", "turtledemo"}


class Engine:
    """An engine that answers on a socket in a folder of its own."""

    image = IMAGE

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hf-docker-"))  # short: so must the path of a socket be
        self.url = f"unix://{self.folder}/docker.sock"
        self.lacks = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers; what it had is there again."""
        places = [f"--{each}={self.folder}/{each}" for each in ("data-root", "exec-root", "pidfile")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", *places, "-H", self.url, "--bridge=none", "--iptables=false", "--shutdown-timeout=1"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(600):
            if self._process.poll() is not None:
                break
            with closing(socket.socket(socket.AF_UNIX)) as connection:  # the client would leave it open if it fails
                if connection.connect_ex(f"{self.folder}/docker.sock") == 0:
                    return
            threading.Event().wait(0.05)
        self.stop()
        text = (self.folder / "log").read_text(errors="replace")
        self.lacks = f"dockerd does not start: {text[-1000:]}"

    def stop(self) -> None:
        """End it with its containers; afterwards nobody answers."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def client(self) -> AbstractContextManager[Any]:
        """Return what speaks to it, to be closed."""
        return closing(docker.APIClient(base_url=self.url, version="auto"))

    def remove(self) -> None:
        """End it, and let nothing be left of it."""
        self.stop()
        for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
            if (place := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", place], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


_engines: list[Engine] = []


def engine_of(config: pytest.Config) -> Engine:
    """Return the engine of this session of tests, which ends with it; started, and with its image, on first use."""
    if not _engines:
        require("container engine", os.geteuid() == 0, "only root may start one; run the tests in a container as root")
        if shutil.which("dockerd") is None and os.environ.get("CI") == "true":
            _install()
        require("container engine", shutil.which("dockerd") is not None, f"install {' and '.join(PACKAGES)}")
        _engines.append(engine := Engine())
        config.add_cleanup(engine.remove)
        engine.start()
        if not engine.lacks:
            with engine.client() as client:
                client.import_image_from_data(
                    _python(),
                    *IMAGE.split(":"),
                    changes=["ENV PATH=/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH=/usr/local/lib", 'CMD ["python3"]'],
                )
    require("container engine", not _engines[0].lacks, _engines[0].lacks)
    return _engines[0]


def _install() -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "--quiet=2", "-o", "DPkg::Lock::Timeout=120", *words],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        require("container engine", done.returncode == 0, f"apt-get {words[0]}: {done.stderr.strip()[-500:]}")


def _python() -> bytes:
    """Return an archive with a shell and this Python, in the places of Python's official images."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    files = {f"usr/local/bin/{each}": Path(sys.executable) for each in (version, "python3", "python")}
    files["bin/sh"] = Path("/bin/sh")
    for top, where in (
        (library, f"usr/local/lib/{version}"),
        (packages / "pip", f"usr/local/lib/{version}/site-packages/pip"),
    ):
        for folder, folders, names in os.walk(top):
            folders[:] = [each for each in folders if each not in _LEFT_OUT and not each.startswith("config-")]
            inside = os.path.join(where, os.path.relpath(folder, top))
            files |= {os.path.normpath(os.path.join(inside, name)): Path(folder, name) for name in names}
    programs = [str(path) for name, path in files.items() if name.startswith("usr/local/bin") or path.suffix == ".so"]
    wheels = [f"lib{each}.so.?" for each in ("gcc_s", "stdc++", "rt", "pthread", "dl", "util")]  # may count on these
    more = [str(path) for each in wheels for path in Path("/lib").glob(f"*-linux-gnu/{each}")]
    listed = subprocess.run(["ldd", "/bin/sh", *programs], capture_output=True, text=True, check=False).stdout
    for name in {*re.findall(r"(/\S+) \(0x", listed), *more}:
        inside = f"usr/local/lib/{Path(name).name}" if "python" in Path(name).name else name.lstrip("/")
        files[inside] = Path(name)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", dereference=True) as archive:
        for inside, path in sorted(files.items()):
            archive.add(path.resolve(), inside, recursive=False)
    return data.getvalue()


class _Nothing(BaseHTTPRequestHandler):
    """A registry that has no image."""

    def do_GET(self) -> None:
        """Say that it is one, and that it does not have what is asked for."""
        body = b"{}" if self.path == "/v2/" else b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}'
        self.send_response(200 if self.path == "/v2/" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@functools.cache
def missing_image() -> str:
    """Return the name of an image that a registry on loopback does not have."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}/missing:1"
