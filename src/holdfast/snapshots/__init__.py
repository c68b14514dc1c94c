"""Snapshots: the saved state of all registered objects at one moment, in one directory.

A snapshot is plain. Each object has its entry under its own name: what it wrote itself, or the JSON skeleton of what it
returned; ``.snap`` has the manifest, and packs with the raw bytes of arrays. `StateStore` saves and loads, `verify`
reads all of one and says what is wrong, conditions say when to save, keepers what to keep.

The failure argument of a save, beside that of `holdfast.disk`:

- *The process dies on any line.* All is built in a folder with a temporary name, and flushed: files, the manifest,
  folders. One rename then gives the name. Before it there is nothing to see, after it the snapshot is whole. What was
  being built goes when the next store of that folder saves, because the lock on it is free.
- *The power goes.* Only what was flushed gets a name, and the name is durable before the path is returned.
- *Two do it at once.* Each builds in a folder of its own; of two that want one name, the later one fails.
- *The disk is full, or fails.* Then nothing gets a name, the error is raised, and the folder goes. What was written to
  it is never flushed a second time: the next save writes all that is not in a snapshot to new files. Only if the last
  flush fails, that of the name, the snapshot is there, whole, but may not outlive a power cut.
- *A file is damaged later.* The manifest has the hash of everything, and begins with its own. Loading gives nothing to
  any object before all is verified, and arrays are made of the very bytes that were hashed. Snapshots that share a file
  share its damage; a save shares only files that have the size and the time of change with which they were saved.
- *A snapshot is removed.* What it shared stays with those that it was shared with; what shall be shared with the next
  one, and is gone by then, is written again from memory.
"""
