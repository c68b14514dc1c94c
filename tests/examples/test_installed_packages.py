"""The example that `make demo` runs tells the truth about what is installed."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

EXAMPLE = Path(__file__).parents[2] / "examples" / "installed_packages.py"


def run(home: Path, *options: str, path: Path | None = None) -> str:
    """Return what the example prints, with what is installed in ``path`` besides."""
    env = {**os.environ, "PYTHONPATH": str(path or "")}
    argv = [sys.executable, str(EXAMPLE), "--home", str(home), *options]
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=env).stdout


def told(home: Path, path: Path | None = None) -> dict[str, Any]:
    """Return what it tells programs."""
    return json.loads(run(home, "--json", path=path))


def install(site: Path, name: str, version: str, *, requires: str = "") -> Path:
    """Lay a package as pip would, with one file of ten bytes besides its metadata and its list of files."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text("x = 12345\n")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nAuthor-email: Ada <ada@example.org>\n"
        + (f"Requires-Dist: {requires}\nRequires-Dist: sphinx; extra == 'docs'\n" if requires else "")
    )
    (info / "RECORD").write_text(f"{name}.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    return info


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with two packages, one of which requires the other."""
    folder = tmp_path / "site"
    install(folder, "holdfast_demo_app", "1.0", requires="Holdfast.Demo-Lib>=1")
    install(folder, "holdfast_demo_lib", "1.0")
    return folder


def test_it_counts_what_importlib_metadata_counts(home: Path) -> None:
    """Packages, files and requirements among them are as many as importlib.metadata lists."""
    installed = {}
    for each in distributions():
        installed.setdefault(re.sub(r"[-_.]+", "-", each.name).lower(), each)
    requirements = {
        (name, re.sub(r"[-_.]+", "-", Requirement(text).name).lower())
        for name, each in installed.items()
        for text in each.requires or ()
        if "extra" not in text.partition(";")[2]
    }

    found = told(home)

    assert found["packages"] == found["packages read"] == len(installed)
    assert found["files"] == sum(len(each.files or ()) for each in installed.values())
    assert found["requirements"] == len([name for _, name in requirements if name in installed])


def test_it_follows_what_was_installed_changed_and_removed(home: Path, site: Path) -> None:
    """A second run reads only what changed, and what is gone is gone from the Pod, with its edges."""
    first = told(home, site)
    assert "holdfast-demo-app" in first["required by none"]
    assert "holdfast-demo-lib" not in first["required by none"]

    assert told(home, site)["packages read"] == 0

    (site / "holdfast_demo_lib-1.0.dist-info").rename(site / "aside")
    install(site, "holdfast_demo_lib", "2.0")
    changed = told(home, site)
    assert (changed["packages read"], changed["packages gone"]) == (1, 0)
    assert (changed["packages"], changed["requirements"]) == (first["packages"], first["requirements"])

    for name in ("METADATA", "RECORD"):
        (site / "holdfast_demo_app-1.0.dist-info" / name).unlink()
    (site / "holdfast_demo_app-1.0.dist-info").rmdir()
    removed = told(home, site)
    assert (removed["packages read"], removed["packages gone"]) == (0, 1)
    assert removed["packages"] == first["packages"] - 1
    assert removed["requirements"] == first["requirements"] - 1
    assert removed["people"] == first["people"]
    assert "holdfast-demo-lib" in removed["required by none"]


def test_a_transaction_that_raises_leaves_every_package(home: Path) -> None:
    """The example deletes all packages in a transaction that fails, and all are there."""
    found = told(home)
    assert found["packages left by a transaction that failed"] == found["packages"]


def test_it_prints_plain_lines_into_a_pipe(home: Path) -> None:
    """Without a terminal there is no progress bar and no escape sequence, and one line for each answer."""
    printed = run(home)
    assert "\x1b" not in printed
    assert [line.partition(":")[0] for line in printed.splitlines()] == [
        "packages read",
        "packages gone",
        "packages left by a transaction that failed",
        "packages",
        "people",
        "files",
        "requirements",
        "first on a page",
        "largest",
        "most required",
        "required by none",
        "rich is required by",
    ]
