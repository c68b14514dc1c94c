"""Import the history of this repository, kill the import on its way, and run it again: nothing is lost, nothing twice.

Beside it stands what git counts. The Pod lies in a temporary folder. ``--repository`` names another repository; a
checkout that is none, or has only a part of its history, has a small one made for it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from holdfast import PodClient

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "examples" / "git_history" / "metadata.json"
BATCHES, KILLED_AFTER = 6, 3


def git(repository: Path, *arguments: str, stdin: str | None = None) -> str | None:
    """Return what git answers; None if it cannot."""
    argv = ["git", "-C", str(repository), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, input=stdin)  # noqa: S603 -- no shell
    return None if done.returncode else done.stdout.strip()


def is_enough(repository: Path) -> bool:
    """Say whether a folder is a repository with all of its history and some commits; not one around the folder."""
    if not (repository / ".git").exists() or git(repository, "rev-parse", "--is-shallow-repository") != "false":
        return False
    return int(git(repository, "rev-list", "--count", "HEAD") or 0) >= BATCHES


def make_repository(folder: Path, commits: int = 60) -> Path:
    """Make a repository with so many commits."""
    head = "commit refs/heads/main\ncommitter Ada <ada@example.org>"
    told = [f"{head} {n} +0000\ndata {len(str(n))}\n{n}\nM 100644 inline {n % 7}.txt\ndata 0\n" for n in range(commits)]
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "fast-import", "--quiet", stdin="".join(told))
    return folder


def run(home: Path, repository: Path, batch_size: int, *, kill_after: int | None = None) -> int:
    """Run the plugin in a process of its own, and return how that ended; it shows its progress on a terminal."""
    config = json.dumps({"repository": str(repository), "batch_size": batch_size})
    argv = ["-m", "holdfast", "run", str(PLUGIN), "--config", config]
    if kill_after is not None:
        argv = [__file__, "--carry-on", config, "--kill-after", str(kill_after)]
    env = {**os.environ, "HOLDFAST_HOME": str(home)}
    return subprocess.run([sys.executable, *argv], env=env, check=False).returncode  # noqa: S603 -- no shell


def carry_on(config: str, kill_after: int) -> None:
    """Do what ``holdfast run`` does, in this process; after so many batches kill it, as the kernel would."""
    from holdfast.context import Settings, carry_out
    from holdfast.plugins import source_of

    def on_progress(done: int, total: int | None) -> None:
        if done == kill_after:
            print(f"  SIGKILL after batch {done} of {total}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    carry_out(Settings.read(), source_of(str(PLUGIN)), config=json.loads(config), on_progress=on_progress)


def shas_in(home: Path) -> list[str]:
    """Return the commits in the Pod."""
    with PodClient(home=home) as client:
        return [commit.sha for page in client.search_paginate({"type": "Commit"}, limit=1000) for commit in page]


def show(repository: Path, home: Path) -> bool:
    """Run the plugin three times, say what is in the Pod after each, and whether it is what git says."""
    count = git(repository, "rev-list", "--count", "HEAD") or "0"
    batch_size = min(500, -(-int(count) // BATCHES))
    print(f"{repository.name}: git rev-list --count says {count} commits; {batch_size} at once")
    before = 0
    for name, kill_after in (("first", KILLED_AFTER), ("second", None), ("third", None)):
        print(f"{name} run", flush=True)
        code = run(home, repository, batch_size, kill_after=kill_after)
        ended = "killed" if code == -signal.SIGKILL else f"ended with exit code {code}"
        there = shas_in(home)
        print(f"  began behind {before}, imported {len(there) - before}, {ended}: {len(there)} commits in the Pod")
        before = len(there)
    is_equal = sorted(there) == sorted((git(repository, "rev-list", "HEAD") or "").split())
    print(f"{len(there)} commits, {len(set(there))} different ones, {'the same' if is_equal else 'NOT those'} as git's")
    return is_equal


def main() -> int:
    """Show it all; 0 if the Pod holds what git says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=ROOT)
    parser.add_argument("--carry-on", metavar="CONFIG", help=argparse.SUPPRESS)
    parser.add_argument("--kill-after", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.carry_on is not None:
        carry_on(options.carry_on, options.kill_after)
        return 1  # it was to be killed
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        repository = options.repository.resolve()
        if not is_enough(repository):
            print(f"{repository.name} has no whole history of {BATCHES} commits or more: a small one is made")
            (Path(folder) / "small").mkdir()
            repository = make_repository(Path(folder) / "small")
        return 0 if show(repository, Path(folder) / "home") else 1


if __name__ == "__main__":
    sys.exit(main())
