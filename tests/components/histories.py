"""Git repositories that are the same each time, and what the example GitHistory leaves of them in a Pod.

``python -c RUN HOME REPOSITORY BATCH_SIZE [WRITE MOMENT]`` carries its run on in a process of its own, which kills
itself before or after that write, if it is told to. Each commit that it was told is saved it notes beside the home.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast.context import PodClient, Settings, unlock
from holdfast.engine import Runner, begin_run, find_unfinished, get_state
from holdfast.plugins.source import source_of
from holdfast.runs import Outcome
from holdfast.sql import SqliteStore
from holdfast.store import Batch, CreateItem, Query, Result, Store
from tests.components import require

METADATA = Path(__file__).resolve().parents[2] / "examples" / "git_history" / "metadata.json"
PYTHON = [sys.executable, "-c", "from tests.components.histories import main; main()"]
ADA, BOB, EVE = "Ada <ada@example.org>", "Bob <bob@example.org>", "Ève <eve@example.org>"
START = 1_700_000_000


class Repository:
    """A repository in ``path``: each commit is a minute after the one before it, and nobody's configuration counts."""

    def __init__(self, path: Path, *options: str) -> None:
        require("git", shutil.which("git") is not None, "install git")
        self.path = path
        self.minutes = 0
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main", *options)

    def git(self, *arguments: str | bytes, stdin: bytes = b"", author: str = ADA) -> str:
        """Run git there, and return what it prints."""
        name, _, email = author.removesuffix(">").partition(" <")
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        for who in ("AUTHOR", "COMMITTER"):
            env[f"GIT_{who}_NAME"], env[f"GIT_{who}_EMAIL"] = name, email
            env[f"GIT_{who}_DATE"] = f"{START + 60 * self.minutes} +0100"
        argv = ["git", "-c", "protocol.file.allow=always", "-c", "gc.auto=0", *arguments]
        done = subprocess.run(argv, cwd=self.path, input=stdin, env=env, capture_output=True, check=False)
        assert done.returncode == 0, (argv, done.stderr)
        return done.stdout.decode(errors="replace").strip()

    def commit(self, message: str, files: Mapping[str | bytes, str | None], *, author: str = ADA) -> str:
        """Write files (None: delete), commit them, and return the commit."""
        for name, content in files.items():
            path = os.path.join(os.fsencode(self.path), os.fsencode(name))
            if content is None:
                os.unlink(path)
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                Path(os.fsdecode(path)).write_text(content)
        self.minutes += 1
        self.git("add", "--all")
        options = ("--quiet", "--allow-empty", "--allow-empty-message", "--cleanup=verbatim", "--file=-")
        self.git("commit", *options, stdin=message.encode(), author=author)
        return self.git("rev-parse", "HEAD")

    def merge(self, branch: str) -> str:
        """Merge a branch with a commit of its own, and return that."""
        self.minutes += 1
        self.git("merge", "--quiet", "--no-ff", "-m", f"Merge {branch}", branch)
        return self.git("rev-parse", "HEAD")

    def parents(self) -> dict[str, list[str]]:
        """Return the parents of each commit that HEAD leads to."""
        lines = self.git("rev-list", "--parents", "HEAD").splitlines()
        return {sha: parents for sha, *parents in map(str.split, lines)}


FORTY = {"commits": 40, "authors": 3, "files": 11, "edges": {"author": 40, "parent": 43, "changed": 72}}
"""What a Pod holds of `forty_commits`."""


def forty_commits(path: Path) -> Repository:
    """Make a repository with 40 commits, four of them merges of branches that went on while main did."""
    repository = Repository(path)
    number = 0

    def commit(place: str, files: int, beside: str, author: str) -> None:
        nonlocal number
        number += 1
        written = {f"{place}-{number % files}.txt": f"{number}\n", beside: f"{number}\n"}
        repository.commit(f"Change {number}\n\nWhy: {number}", written, author=author)

    for round_ in range(4):
        for _ in range(4):
            commit("main", 5, f"docs/é {number % 2}.txt", ADA if number % 3 else BOB)
        repository.git("checkout", "--quiet", "-b", f"side-{round_}")
        for _ in range(3):
            commit("side", 3, "side\nlist.txt", EVE)
        repository.git("checkout", "--quiet", "main")
        for _ in range(2):
            commit("main", 5, f"docs/é {number % 2}.txt", BOB)
        repository.merge(f"side-{round_}")
    return repository


def import_history(
    home: Path,
    repository: Path,
    *,
    batch_size: int = 500,
    wrap: Callable[[Store], Store] = lambda store: store,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Outcome:
    """Carry the unfinished run of GitHistory on, or begin one, in this process."""
    settings = Settings.read(home=home)
    path, key = unlock(settings)
    source = source_of(str(METADATA))
    with PodClient(settings=settings) as client:
        state = get_state(client, source.plugin_id)
        run = find_unfinished(client, state) or begin_run(client, state, source.properties)
        runner = Runner(lambda: wrap(SqliteStore(path, key)), locks=home / "locks", on_progress=on_progress)
        config = {"repository": str(repository), "batch_size": batch_size}
        return runner.drive(source.load(), run, state, config)


def content(home: Path) -> dict[str, Any]:
    """Return what is in a Pod: the shas as a list, how many of all else, the variables, and how each run ended."""
    with SqliteStore(*unlock(Settings.read(home=home))) as store:
        found = store.search(Query(outgoing=True))
        by_type = Counter(each.item.type for each in found)
        states = [each.item.id for each in found if each.item.type == "PersistentState"]
        return {
            "shas": [each.item.properties["sha"] for each in found if each.item.type == "Commit"],
            "authors": by_type["Author"],
            "files": by_type["ChangedFile"],
            "edges": dict(Counter(edge.name for each in found if each.item.type == "Commit" for edge in each.edges)),
            "variables": dict(store.list_variables(states[0])) if states else {},
            "runs": [each.item.properties["status"] for each in found if each.item.type == "PluginRun"],
        }


def totals(home: Path) -> dict[str, Any]:
    """Return what can be compared with `FORTY`; the variables agree with it."""
    found = content(home)
    assert len(set(found["shas"])) == len(found["shas"])
    assert found["variables"].get("commits", 0) == len(found["shas"])
    return {"commits": len(found["shas"]), **{name: found[name] for name in ("authors", "files", "edges")}}


def acknowledged(home: Path) -> list[str]:
    """Return the shas that a process was told are saved."""
    path = home.with_suffix(".acknowledged")
    return path.read_text().split() if path.exists() else []


class DeadlyStore:
    """A store whose process dies of one of its writes: before it is applied, or before anybody hears that it was."""

    def __init__(self, store: Store, home: Path, *, write: int, moment: str) -> None:
        self._store = store
        self._write = write
        self._moment = moment
        self._writes = 0
        self._notes = os.open(home.with_suffix(".acknowledged"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Apply the batch, and note which commits it was told are saved; or die."""
        self._writes += 1
        if self._writes == self._write and self._moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        results = self._store.apply(batch)
        if self._writes == self._write:
            os.kill(os.getpid(), signal.SIGKILL)
        created = [each for each in batch.operations if isinstance(each, CreateItem) and each.type == "Commit"]
        os.write(self._notes, "".join(f"{each.properties['sha']}\n" for each in created).encode())
        return results


def main() -> None:
    """Carry a run on, as the arguments say; the first line says that it begins."""
    home, repository, batch_size, *deadly = sys.argv[1:]
    write, moment = (int(deadly[0]), deadly[1]) if deadly else (0, "")
    os.write(1, b"begins\n")
    outcome = import_history(
        Path(home),
        Path(repository),
        batch_size=int(batch_size),
        wrap=lambda store: DeadlyStore(store, Path(home), write=write, moment=moment),  # pyright: ignore[reportArgumentType]
    )
    sys.exit(outcome.exit_code)
