"""Where a path lies: on which file system, whether that is another machine's, and how much room there is."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

# fmt: off
NETWORK_FILESYSTEMS: Final = frozenset((
    # Files of a server, or of a disk that several machines write.
    "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
    "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "webdav",
    # The same through FUSE. macOS has one name for all of FUSE, and what people mount there is mostly remote.
    "fuse.beegfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.curlftpfs", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs",
    "fuse.goofys", "fuse.juicefs", "fuse.moosefs", "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.s3ql",
    "fuse.seaweedfs", "fuse.smbnetfs", "fuse.sshfs", "macfuse", "osxfuse",
    # Folders that a virtual machine shares with its host (9p does that as well). No network is in between, but a
    # second kernel is, and neither locks nor shared memory reach it: to a database that is the same danger.
    "drvfs", "fakeowner", "fuse.grpcfuse", "fuse.osxfs", "fuse.vmhgfs-fuse", "prl_fs", "vboxsf", "virtiofs", "vmhgfs",
))
# fmt: on
"""File system types whose files another kernel may hold open at the same time."""


class Mount(NamedTuple):
    """One line of the mount table."""

    id: int
    parent: int
    point: str
    kind: str


def parse_mounts(table: str) -> list[Mount]:
    r"""Return the mounts of ``table``, the text of ``/proc/<pid>/mountinfo`` (man 5 proc), in its order.

    Lines that are none are left out. Blanks and backslashes stand there as three octal digits.

    >>> parse_mounts(r"36 25 8:1 /sub /mnt/my\040disk rw shared:1 - ext4 /dev/sda1 rw")
    [Mount(id=36, parent=25, point='/mnt/my disk', kind='ext4')]
    """
    mounts: list[Mount] = []
    for line in table.split("\n"):
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and len(fields) >= 6 and fields[0].isdecimal() and fields[1].isdecimal():
            mounts.append(Mount(int(fields[0]), int(fields[1]), _unescape(fields[4]), _unescape(after.split(" ")[0])))
    return mounts


def find_mount(mounts: list[Mount], path: str) -> Mount | None:
    """Return the mount that ``path`` (absolute, without links) lies on, None if the table does not reach it.

    It is found as the kernel finds it, from the root down: the longest mount point alone would name a mount that a
    later one, made over a folder above it, hides.
    """
    left = [mount for mount in mounts if (path + "/").startswith(mount.point.rstrip("/") + "/")]
    ids = {mount.id for mount in mounts}
    here = None
    reachable = [mount for mount in left if mount.parent not in ids or mount.parent == mount.id]
    while reachable:
        # The nearest one hides the others; of several on one folder, the last.
        here = min(reversed(reachable), key=lambda mount: len(mount.point))
        left.remove(here)
        reachable = [mount for mount in left if mount.parent == here.id]
    return here


def filesystem(path: str | os.PathLike[str]) -> str:
    """Do what `Disk.filesystem` promises; raises what the system raises."""
    place = existing(path)
    if sys.platform == "darwin":
        return _statfs_type(place)
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return ""
    mount = find_mount(parse_mounts(os.fsdecode(table)), place)
    return "" if mount is None else mount.kind


def existing(path: str | os.PathLike[str]) -> str:
    """Return the real path of ``path``, or of the nearest folder above it that is there."""
    place = os.path.realpath(path)
    while not os.path.lexists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    return place


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Do what `Disk.free_bytes` promises; raises what the system raises."""
    place = existing(path)
    if sys.platform == "win32":
        import shutil  # here for start-up: it brings every compression module along

        return shutil.disk_usage(place).free
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _statfs_type(path: str) -> str:
    """Return f_fstypename of macOS's statfs(2): 16 bytes, 72 from the start of its struct."""
    import ctypes  # here for start-up

    library = ctypes.CDLL(None, use_errno=True)
    # On Intel the plain name is that of an older struct.
    statfs = getattr(library, "statfs$INODE64", None) or library.statfs
    buffer = ctypes.create_string_buffer(4096)
    if statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return buffer.raw[72:88].split(b"\0", 1)[0].decode("ascii", "replace")
