"""The public names: said once, said the same to type checkers, and loaded only when they are used."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import holdfast

ROOT = Path(__file__).resolve().parents[2]

HEAVY = {
    "apsw",
    "asyncio",
    "click",
    "cryptography",
    "httpx",
    "logging",
    "platformdirs",
    "pydantic",
    "rich",
    "structlog",
}
"""What `import holdfast` must not bring along."""


def names_for_type_checkers() -> dict[str, str]:
    """Return the names that the stub file re-exports, each with its module."""
    stub = ast.parse((ROOT / "src" / "holdfast" / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.asname: statement.module.removeprefix("holdfast.")
        for statement in stub.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
        if alias.asname == alias.name
    }


def test_table_stub_and_all_name_the_same() -> None:
    """What is loaded on first use, what type checkers see, and what a star import takes are one list."""
    assert names_for_type_checkers() == holdfast._PUBLIC
    assert sorted(holdfast.__all__) == sorted(holdfast._PUBLIC)


def test_the_table_is_sorted_and_names_nothing_private() -> None:
    """Names stand in order, so that a reader finds one, and none begins with an underscore."""
    assert list(holdfast._PUBLIC) == sorted(holdfast._PUBLIC)
    assert [name for name in holdfast._PUBLIC if name.startswith("_")] == []


@pytest.mark.parametrize("name", sorted(holdfast._PUBLIC))
def test_each_public_name_is_what_its_module_defines(name: str) -> None:
    """`holdfast.NAME` is the very object of the module that the table names."""
    module = importlib.import_module(f"holdfast.{holdfast._PUBLIC[name]}")

    assert getattr(holdfast, name) is getattr(module, name)


def test_dir_lists_every_public_name_and_the_version() -> None:
    """Completion in an editor or a shell finds names that were not loaded yet."""
    assert {*holdfast._PUBLIC, "__version__"} - set(dir(holdfast)) == set()


def test_a_name_that_is_not_public_is_an_attribute_error_that_names_it() -> None:
    """A misspelt name fails as in any module, so that hasattr and friends work."""
    with pytest.raises(AttributeError, match=r"^module 'holdfast' has no attribute 'PodCleint'$"):
        _ = holdfast.PodCleint  # pyright: ignore[reportAttributeAccessIssue]


def test_the_version_is_that_of_the_project() -> None:
    """`holdfast.__version__` is the version in pyproject.toml, the only place where it is written."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert holdfast.__version__ == project["version"]


def test_importing_holdfast_imports_nothing_heavy() -> None:
    """An application that may never use Holdfast pays next to nothing for the import."""
    program = "import sys, holdfast; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    bare = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert set(bare.stdout.split()) & HEAVY == set()
