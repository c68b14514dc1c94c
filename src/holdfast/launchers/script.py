"""A launcher of local programs by the name of an image, so that what will be containers is tried without an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from holdfast.disk import Disk, StrPath
from holdfast.errors import NotFoundError
from holdfast.launchers.process import PASSED, ProcessLauncher
from holdfast.runs import LaunchSpec


class ScriptLauncher(ProcessLauncher):
    """A `Launcher` of processes: of the program that stands for the image of a run.

    Args:
        folder: As `ProcessLauncher` says.
        scripts: The program for each name of an image; what the run says is to be started becomes its arguments.
        passed: As `ProcessLauncher` says.
        is_auth_in_file: As `ProcessLauncher` says.
        cwd: As `ProcessLauncher` says.
        disk: As `ProcessLauncher` says.
    """

    def __init__(
        self,
        folder: StrPath,
        scripts: Mapping[str, StrPath],
        *,
        passed: Sequence[str] = PASSED,
        is_auth_in_file: bool = True,
        cwd: StrPath | None = None,
        disk: Disk | None = None,
    ) -> None:
        super().__init__(folder, passed=passed, is_auth_in_file=is_auth_in_file, cwd=cwd, disk=disk)
        self._scripts = {image: str(Path(path).absolute()) for image, path in scripts.items()}

    def command(self, spec: LaunchSpec) -> Sequence[str]:
        """Return the program for the image, and its arguments.

        Raises:
            NotFoundError: There is none for it.
        """
        if spec.image not in self._scripts:
            known = ", ".join(sorted(self._scripts)) or "none"
            message = f"image {spec.image!r} is not here: no script stands for it; there is one for: {known}"
            raise NotFoundError(message, image=spec.image)
        return (self._scripts[spec.image], *spec.command)
