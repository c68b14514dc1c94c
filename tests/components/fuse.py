"""An empty folder that a real FUSE mount shows under any type of file system, as ``fuse.sshfs`` does for a server's."""

import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.components import require

# Numbers of the kernel's protocol (linux/fuse.h); what is not answered is refused.
_GETATTR, _INIT, _FORGET, _BATCH_FORGET = 3, 26, 2, 42
_ENOENT, _ENOSYS = 2, 38
_LOOKUP = 1


@contextmanager
def fuse(folder: Path, kind: str) -> Iterator[Path]:
    """Yield ``folder``, made if it is not there, as an empty FUSE file system that the mount table calls ``kind``."""
    require("FUSE", os.path.exists("/dev/fuse") and os.geteuid() == 0, "needs /dev/fuse, and root to mount")
    folder.mkdir(exist_ok=True)
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    server = threading.Thread(target=_serve, args=(fd,), daemon=True)
    done = subprocess.run(
        ["mount", "-i", "-t", kind, "-o", options, kind, str(folder)],
        pass_fds=[fd],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        os.close(fd)
    require("FUSE", done.returncode == 0, f"mount -t {kind}: {done.stderr.strip()}")
    server.start()
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        server.join(timeout=10)
        os.close(fd)


def _serve(fd: int) -> None:
    """Answer the kernel until the file system is unmounted."""
    while True:
        try:
            request = os.read(fd, 1 << 17)
        except OSError:  # ENODEV: unmounted
            return
        _, opcode, unique = struct.unpack_from("<IIQ", request)
        if opcode in (_FORGET, _BATCH_FORGET):
            continue
        error, body = 0, b""
        if opcode == _INIT:
            major, minor = struct.unpack_from("<II", request, 40)
            body = struct.pack("<IIIIHHIIHHI28x", major, min(minor, 31), 0, 0, 1, 1, 4096, 1, 1, 0, 0)
        elif opcode == _GETATTR:
            # How long it is valid; then inode, size, blocks, times, mode of a folder, links, owner, group.
            attributes = struct.pack("<QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
            body = struct.pack("<QII", 1, 0, 0) + attributes
        else:
            error = _ENOENT if opcode == _LOOKUP else _ENOSYS
        os.write(fd, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)
