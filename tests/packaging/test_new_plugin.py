"""What ``holdfast plugins new`` writes works where only the wheel is installed: built, found, run, and tested there."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# With the other builds: they take turns.
pytestmark = [pytest.mark.xdist_group("wheel"), pytest.mark.timeout(600)]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a fresh environment with the wheel in it; packages it needs are those of this one.

    They come last on its path, so that the wheel hides the checkout, and nothing has to be fetched.
    """
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "wheel", ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    [packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install(python, *(tmp_path / "wheel").iterdir())
    return python


def install(python: Path, *what: Path) -> None:
    """Install into an environment what needs nothing more."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps"]
    installed = subprocess.run(
        [*pip, "--no-build-isolation", *what], capture_output=True, text=True, check=False, env=environment(python)
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr


def environment(python: Path) -> dict[str, str]:
    """Return an environment without anything of this checkout or of the user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HOLDFAST", "PYTEST"))}
    return kept | {"HOLDFAST_HOME": str(python.parents[2] / "home"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def call(python: Path, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of an environment in a folder."""
    return subprocess.run(
        [python.with_name(words[0]), *words[1:]],
        cwd=folder,
        env=environment(python),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_new_project_is_built_installed_found_checked_run_and_tested(python: Path, tmp_path: Path) -> None:
    """As its README says, from a folder where nothing of it lies."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    made = call(python, "holdfast", "plugins", "new", "git_notes", "--dir", str(tmp_path), folder=folder)
    assert made.returncode == 0, made.stderr
    by_metadata = call(python, "holdfast", "run", "metadata.json", folder=tmp_path / "git_notes")
    assert by_metadata.returncode == 0, by_metadata.stderr  # before anything of it is installed
    install(python, tmp_path / "git_notes")

    listed = call(python, "holdfast", "plugins", "list", "--check", "--json", folder=folder)
    checked = call(python, "holdfast", "plugins", "check", "git_notes", folder=folder)
    ran = call(python, "holdfast", "run", "git_notes", "--config", '{"to": 12}', folder=folder)
    counted = call(python, "holdfast", "state", "get", "git_notes:GitNotes", "counted", folder=folder)

    assert (listed.returncode, listed.stderr) == (0, "")
    assert [
        (each["name"], each["kind"], each["status"], each["where"]) for each in json.loads(listed.stdout)["plugins"]
    ] == [("git_notes", "both", "works", "git_notes of git-notes 0.1.0")]
    assert checked.returncode == 0, checked.stdout
    assert ran.returncode == 0, ran.stderr
    assert counted.stdout == "12\n"

    # What else this checkout has installed for pytest is none of a project's business, but for Holdfast's own.
    quiet = ["-q", "-W", "error", "-p", "no:randomly", "-p", "no:xdist", "-p", "no:cacheprovider"]
    tested = call(python, "python", "-m", "pytest", *quiet, folder=tmp_path / "git_notes")
    where = call(python, "python", "-c", "import holdfast; print(holdfast.__file__)", folder=folder)

    assert (tested.returncode, "2 passed" in tested.stdout) == (0, True), tested.stdout + tested.stderr
    assert Path(where.stdout.strip()).is_relative_to(tmp_path / "venv")
