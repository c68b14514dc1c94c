"""Copies of snapshots that share nothing with the original: to keep elsewhere, to carry to another machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from holdfast.disk import Disk, ExistsError, StrPath, translate
from holdfast.errors import DamagedError
from holdfast.snapshots.manifest import MANIFEST, OURS, PACKS, Manifest, read_manifest
from holdfast.snapshots.reading import Progress, reading, verify


def copy(path: StrPath, target: StrPath, *, on_progress: Progress | None = None, disk: Disk | None = None) -> Manifest:
    """Copy the snapshot at ``path`` to the new folder ``target``, verified and durable; return its manifest.

    No cleanup removes it meanwhile. Killed at any moment there is no ``target``, and what is left is swept. What the
    manifest does not name, such as a pin, is not copied.

    Args:
        path: The snapshot.
        target: Where the copy goes; the folder for it must be there.
        on_progress: Called with how many bytes were copied or verified, and how many there are to copy and verify.
        disk: Another one, for tests.

    Raises:
        NotFoundError: There is no manifest at ``path``, a file of it is missing, or there is no folder for ``target``.
        ExistsError: ``target`` is there (ConflictError, FileExistsError).
        DamagedError: What was copied is not what was saved.
    """
    path, target, disk = Path(path), Path(target), disk or Disk()
    if os.path.lexists(target):
        raise ExistsError(f"{str(target)!r} is there: a name that is free is expected", path=str(target))
    with reading(path), disk.temporary_folder(target.parent) as folder:
        manifest = read_manifest(path)
        copied = folder / "snapshot"  # one level down, so that the lock that verifying takes goes with the folder
        files = {file.path: file.size for file in manifest.files} | {pack.path: pack.size for pack in manifest.packs}
        folders = ["", *manifest.folders, OURS, PACKS]
        total, done = sum(files.values()), 0

        def report(size: int) -> None:
            if on_progress is not None:
                on_progress(size, 2 * total)

        try:
            for place in folders:
                (copied / place).mkdir(mode=0o700)
            for place, size in (*files.items(), (MANIFEST, 0)):
                shutil.copy(path / place, copied / place, follow_symlinks=False)
                disk.sync_file(copied / place)
                done += size
                report(done)
        except OSError as exc:
            raise translate(exc, os.fsdecode(exc.filename or target), "copy") from exc
        faults = verify(copied, on_progress=lambda done, _: report(total + done))
        if faults:
            message = f"the snapshot {str(path)!r} is damaged: {faults[0]}; copy another one"
            raise DamagedError(message, path=str(path), faults=[str(fault) for fault in faults])
        os.utime(copied, ns=(manifest.created_at_ns, manifest.created_at_ns))
        for place in reversed(folders):
            disk.sync_folder(copied / place)
        disk.rename(copied, target)
    return manifest
