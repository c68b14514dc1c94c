"""Memri's own Python client, as its users have it, in an environment of its own: it wants older libraries than ours."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.components import environments

PINS = """
    pymemri==0.1.2 anyio==4.16.0 certifi==2026.10.18 charset-normalizer==3.5.2 click==8.5.1 fastapi==0.78.0
    fastscript==0.0.0.1 gitdb==4.0.12 GitPython==3.2.1 giturlparse==0.16.0 h11==0.16.0 idna==3.20 Jinja2==3.1.6
    loguru==0.6.0 MarkupSafe==3.0.4 numpy==2.4.6 pillow==13.0.0 pydantic==1.10.27 requests==2.34.2 smmap==5.0.3
    starlette==0.19.1 typing_extensions==4.16.0 urllib3==2.8.0 uvicorn==0.54.0
"""
"""The client, and what it needs: where its own pins have nothing for a Python of today, the next that has."""


@dataclass(frozen=True)
class Client:
    """An environment with the client.

    Attributes:
        python: Its interpreter.
        home: The home of whoever runs programs in it.
    """

    python: Path
    home: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run a program, and return what it prints; what it complains of is shown with the test that fails."""
        environ = {"HOME": str(self.home), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [self.python, "-W", "ignore", "-c", program, *arguments],
            env=environ,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def install(folder: Path) -> Client:
    """Return the client, installed into ``folder``."""
    home = folder / "home"
    home.mkdir()
    return Client(environments.install("Memri's client", PINS, folder / "venv"), home)
