"""What holds for every test: no test touches the user's own Pod, and no test is judged by a clock."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("holdfast", deadline=None, print_blob=True)
hypothesis.settings.load_profile("holdfast")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--full``."""
    parser.addoption("--full", action="store_true", help="run every kill point and every fault, not a sample of them")


@pytest.fixture(scope="session")
def is_full(pytestconfig: pytest.Config) -> bool:
    """Whether to go through all of what is otherwise sampled."""
    return bool(pytestconfig.getoption("--full"))


@pytest.fixture(scope="session", autouse=True)
def _no_real_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("HOLDFAST_", "POD_"))]:
            patch.delenv(name)
        patch.setenv("HOLDFAST_HOME", str(tmp_path_factory.mktemp("holdfast-home")))
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for Holdfast that this test has to itself; it does not exist yet, as on a fresh machine."""
    path = tmp_path / "home"
    monkeypatch.setenv("HOLDFAST_HOME", str(path))
    return path
