"""Reads commits from a git repository, oldest first, as bytes and without holding more than one of them.

It knows nothing of Holdfast. Names and messages may be in any encoding, or in none: that is for others to decide.
"""

import os
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

MAX_PATHS = 5_000
"""Paths in one piece of a commit."""

FORMAT = "tformat:%x00%H%x00%P%x00%at%x00%ae%x00%an%x00%B"
"""An empty field, which no path is, says that a commit begins; six more follow, and then its paths."""

# Not "git log", which does what the user's configuration says: these two always say the same.
LIST = ("rev-list", "--reverse", "--topo-order")
TELL = ("diff-tree", "--stdin", "--root", "--always", "-r", "-z", "--name-only", "--no-renames")
TELL += ("--ignore-submodules=none", "--encoding=UTF-8", f"--format={FORMAT}")


class RepositoryError(Exception):
    """Git cannot do what it was asked for, and says why."""


class Change(NamedTuple):
    """A commit, or one piece of a commit with more than `MAX_PATHS` paths."""

    sha: bytes
    parents: bytes
    time: bytes
    email: bytes
    name: bytes
    message: bytes
    paths: list[bytes]
    is_last: bool = True


class Repository:
    """The git repository that a folder lies in, bare or not; git must be installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.expanduser())
        # Inside a hook GIT_DIR names another repository. Replaced commits are not what their names stand for. A
        # partial clone would reach for the network.
        ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.environment = {**ours, "GIT_NO_REPLACE_OBJECTS": "1", "GIT_NO_LAZY_FETCH": "1"}

    def find_head(self) -> str | None:
        """Return the commit that is checked out; None if there is no commit yet."""
        if self._ask("rev-parse", "--is-shallow-repository") == "true":
            raise RepositoryError(f"{self.folder!r} is a shallow clone: git fetch --unshallow brings the rest")
        return self._ask("rev-parse", "--revs-only", "HEAD") or None

    def find_lost(self, known: list[str], head: str) -> str | None:
        """Return one of the known commits that ``head`` does not lead to; None if it leads to all of them."""
        try:
            return self._ask("rev-list", "--max-count=1", *known, f"^{head}") or None if known else None
        except RepositoryError:  # one of them is not even there
            return known[0]

    def count(self, known: list[str], head: str) -> int:
        """Return how many commits ``head`` leads to and the known ones do not."""
        return int(self._ask("rev-list", "--count", *_between(known, head)))

    def changes(self, known: list[str], head: str) -> Iterator[Change]:
        """Yield the commits that ``head`` leads to and the known ones do not, parents first."""
        told = self._read(_between(known, head))
        change, lead = None, b""
        for field in told:
            if not field:
                if change:
                    yield change
                change, lead = Change(*islice(told, 6), []), b"\n"  # git puts it before the first path of a commit
                continue
            if len(change.paths) == MAX_PATHS:
                yield change._replace(is_last=False)
                change = change._replace(paths=[])
            change.paths.append(field.removeprefix(lead))
            lead = b""
        if change:
            yield change

    def _read(self, revisions: list[str]) -> Iterator[bytes]:
        with self._start(*LIST, *revisions) as lister, self._start(*TELL, stdin=lister.stdout) as teller:
            lister.stdout.close()  # the teller's now: if that one ends early, the lister is told
            rest = b""
            while read := teller.stdout.read(1 << 16):
                *whole, rest = (rest + read).split(b"\0")
                yield from whole
        if lister.returncode or teller.returncode:  # before anybody takes the last commit for a whole one
            raise RepositoryError(f"git cannot read all of {self.folder!r}: git fsck says why")

    def _start(self, *arguments: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        argv = ["git", "-C", self.folder, *arguments]
        return subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, env=self.environment)  # noqa: S603 -- no shell

    def _ask(self, *arguments: str) -> str:
        argv = ["git", "-C", self.folder, *arguments]
        try:
            done = subprocess.run(argv, capture_output=True, check=False, env=self.environment)  # noqa: S603 -- no shell
        except OSError as exc:
            raise RepositoryError(f"git cannot be started: {exc}") from exc
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise RepositoryError(f"git cannot read {self.folder!r}: {said}")
        return done.stdout.decode().strip()


def _between(known: list[str], head: str) -> list[str]:
    return [head, *(f"^{sha}" for sha in known)]
