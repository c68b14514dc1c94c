"""What is shipped: it is complete, it works elsewhere, and both kinds of it are the same."""

import hashlib
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# One worker builds and installs for all tests here; packages may have to be fetched.
pytestmark = [pytest.mark.xdist_group("wheel"), pytest.mark.timeout(900)]


def build(what: str, source: Path, target: Path) -> Path:
    """Build ``what`` ("wheel" or "sdist") from the tree at ``source`` and return the file."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{what}", "--outdir", str(target), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = target.iterdir()
    return path


def contents(wheel: Path) -> dict[str, str]:
    """Return the names of the files in a wheel and the hash of each."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def run_elsewhere(python: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an interpreter in ``folder`` with nothing of this checkout or of the user in its way."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [python, "-I", *arguments],
        cwd=folder,
        env={**environment, "HOLDFAST_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment in which the wheel, and nothing of this checkout, is installed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pins = ROOT / "requirements" / "dev.txt"  # the same versions every time, and most are in pip's cache
    installed = run_elsewhere(python, "-m", "pip", "install", "-q", "-c", str(pins), str(wheel), folder=folder)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return python


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    """Modules, stub, typing marker and SQL are all inside; tests, tools and caches are not."""
    package = ROOT / "src" / "holdfast"
    expected = {
        f"holdfast/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    inside = {name for name in contents(wheel) if ".dist-info/" not in name}

    assert {"holdfast/__init__.pyi", "holdfast/py.typed"} <= inside
    assert [name for name in inside if name.endswith(".sql")]
    assert inside == expected


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    """Whoever has the wheel has the licence."""
    assert [name for name in contents(wheel) if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """A wheel built from the source distribution holds the same files with the same bytes."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [tree] = (tmp_path / "source").iterdir()

    assert contents(build("wheel", tree, tmp_path / "again")) == contents(wheel)


def test_every_public_name_can_be_had_from_the_installed_wheel(elsewhere: Path, tmp_path: Path) -> None:
    """All dependencies are declared: each public name loads where only the wheel and they are installed."""
    program = "import holdfast; [getattr(holdfast, name) for name in holdfast.__all__]; print(holdfast.__file__)"
    ran = run_elsewhere(elsewhere, "-W", "error", "-c", program, folder=tmp_path)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert Path(ran.stdout.strip()).is_relative_to(elsewhere.parent.parent)


def test_the_installed_command_line_says_how_it_is_used(elsewhere: Path, tmp_path: Path) -> None:
    """`python -m holdfast --help` works where only the wheel is installed, and so does the script."""
    as_module = run_elsewhere(elsewhere, "-m", "holdfast", "--help", folder=tmp_path)
    as_script = run_elsewhere(elsewhere, str(elsewhere.with_name("holdfast")), "--help", folder=tmp_path)

    assert (as_module.returncode, as_module.stderr) == (0, "")
    assert (as_script.returncode, as_script.stderr) == (0, "")
    assert as_module.stdout.startswith("Usage: ")


def test_an_author_of_plugins_gets_types_from_the_installed_wheel(elsewhere: Path, tmp_path: Path) -> None:
    """The typing program passes a strict checker against the wheel, as it does against the checkout."""
    program = tmp_path / "authors.py"
    program.write_bytes((ROOT / "tests" / "typing" / "authors.py").read_bytes())
    checked = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", elsewhere, program],
        cwd=tmp_path,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
