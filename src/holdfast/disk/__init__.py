"""The door to the file system: how bytes become durable, and who may touch a file now.

Hides temporary files, flushes and their order, links, locks, the mount table, what differs between systems, and
`OSError`. Knows nothing of what the files hold, and keeps nothing between two calls but threads that wait for flushes.

The failure argument, once for all of `Disk`; each method adds what is its own:

- *The process dies on any line.* What it writes has a temporary name until the bytes are flushed; one system call (link
  or rename) then gives it the real name. Before that call the old state is there, after it the new one. What may stay
  behind is temporary, and `Disk.sweep` knows that its owner is dead, because the lock on it is free.
- *The power goes.* The file is flushed before it is named, and its folder before the call returns: what was named is
  whole, and what returned is there.
- *Two do it at once.* Temporary names are random and created exclusively; link and rename are atomic. `Disk.create` and
  `Disk.rename` have one winner; of two `Disk.replace` the later one stays, whole. Who reads, changes and replaces needs
  `Disk.lock` around the three.
- *The disk is full, or fails.* Until then only the temporary file was touched; it is removed and the error raised. A
  failed flush is never tried again on the same file: the system may have dropped the pages and would report success.
- *A hostile plugin was here first.* No call follows a symbolic link in the last part of a path, waits on a pipe, or
  takes anything but a plain file for one. The folders above are the caller's choice and are followed.

On Windows folders can be neither flushed nor locked, every lock is exclusive, and `Disk.sweep` removes nothing.
"""

from holdfast.disk.blocks import Blocks
from holdfast.disk.faults import BusyError, ExistsError, MissingError, StrPath, translate
from holdfast.disk.files import Disk, temporary_pattern
from holdfast.disk.locks import Lock
from holdfast.disk.mounts import NETWORK_FILESYSTEMS, Mount, find_mount, parse_mounts

__all__ = [
    "NETWORK_FILESYSTEMS",
    "Blocks",
    "BusyError",
    "Disk",
    "ExistsError",
    "Lock",
    "MissingError",
    "Mount",
    "StrPath",
    "find_mount",
    "parse_mounts",
    "temporary_pattern",
    "translate",
]
