"""Every launcher keeps the contract: of processes, of scripts, of containers, and the double that launches nothing."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.launchers.docker import DockerLauncher
from holdfast.launchers.process import ProcessLauncher
from holdfast.launchers.script import ScriptLauncher
from holdfast.runs import Launcher, LaunchSpec
from holdfast.testing.launching import PROGRAMS, FakeLauncher, LauncherContract, make_spec
from tests.components.docker import Engine, engine_of, missing_image


class TestFake(LauncherContract):
    """The double is held to what the real ones are held to."""

    @pytest.fixture
    def launcher(self) -> Launcher:
        """Return one that has launched nothing."""
        return FakeLauncher()

    def spec(self, does: str, epoch: int = 1) -> LaunchSpec:
        """Return a spec of what it does by itself."""
        return make_spec(epoch=epoch, command=[does])

    def another(self, launcher: Any) -> Launcher:
        """Return another one of the same place."""
        return FakeLauncher(launcher)


class TestProcess(LauncherContract):
    """Processes of this machine."""

    @pytest.fixture
    def launcher(self, tmp_path: Path) -> Iterator[Launcher]:
        """Return a launcher of an empty folder; what is left of its processes is ended with the test."""
        launcher = self.launcher_of(tmp_path)
        yield launcher
        for each in launcher.list():
            launcher.delete(each.name)

    def launcher_of(self, folder: Path) -> ProcessLauncher:
        """Return a launcher of what is in a folder."""
        return ProcessLauncher(folder / "launched")

    def spec(self, does: str, epoch: int = 1) -> LaunchSpec:
        """Return a spec of a Python program."""
        command = [sys.executable, "-c", PROGRAMS[does]] if does in PROGRAMS else ["/missing"]
        return make_spec(epoch=epoch, command=command)

    def another(self, launcher: Any) -> Launcher:
        """Return a launcher of the same folder."""
        return self.launcher_of(launcher._records.folder.parent)


class TestScript(TestProcess):
    """Programs that stand for images."""

    def launcher_of(self, folder: Path) -> ScriptLauncher:
        """Return a launcher of a script for each program."""
        for name, program in PROGRAMS.items():
            if not (folder / name).exists():
                (folder / name).write_text(f"#!{sys.executable}\n{program}\n", encoding="utf-8")
                (folder / name).chmod(0o700)
        return ScriptLauncher(folder / "launched", {name: folder / name for name in PROGRAMS})

    def spec(self, does: str, epoch: int = 1) -> LaunchSpec:
        """Return a spec of an image."""
        return make_spec(epoch=epoch, image=does)


@pytest.mark.component("container engine")
@pytest.mark.xdist_group("containers")
@pytest.mark.timeout(600)  # the engine's packages may have to be fetched
class TestDocker(LauncherContract):
    """Containers of a real engine."""

    engine: Engine

    @pytest.fixture
    def launcher(self, tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Launcher]:
        """Return a launcher with no containers; what is left of them goes with the test."""
        self.engine = engine_of(pytestconfig)
        launcher = DockerLauncher(tmp_path / "launched", pod=tmp_path.name, url=self.engine.url)
        self.opened = [launcher]
        yield launcher
        for each in launcher.list():
            launcher.delete(each.name)
        for each in self.opened:
            each.close()

    def spec(self, does: str, epoch: int = 1) -> LaunchSpec:
        """Return a spec of a Python program in a container."""
        if does == "missing":
            return make_spec(epoch=epoch, image=missing_image())
        return make_spec(epoch=epoch, image=self.engine.image, command=["python3", "-c", PROGRAMS[does]])

    def another(self, launcher: Any) -> Launcher:
        """Return a launcher of the same Pod's containers."""
        self.opened.append(DockerLauncher(launcher._records.folder, pod=launcher._pod, url=self.engine.url))
        return self.opened[-1]
