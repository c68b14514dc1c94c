"""Programs of others in environments of their own: they want other libraries than ours, or must not meet our tests."""

import subprocess
import sys
import venv
from pathlib import Path

from tests.components import require


def install(name: str, pins: str, folder: Path) -> Path:
    """Return the Python of a new environment in ``folder`` that has just what ``pins`` says.

    Args:
        name: What it is, as a person would call it.
        pins: Every distribution with its version, in words.
        folder: Where the environment is to be.
    """
    venv.create(folder)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-input"]
    done = subprocess.run([*command, *pins.split()], capture_output=True, text=True, check=False)
    require(name, done.returncode == 0, f"pip: {done.stderr.strip()[-500:]}")
    return python
