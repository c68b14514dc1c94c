"""Imports the history of a git repository: its commits, who wrote them, and which files they changed.

Run it again and only what is new is read; kill it at any instruction and it carries on behind the last batch. What may
surprise: a merge has no files of its own; a rename is two changed files; a submodule is one; text that is not UTF-8,
and that git cannot recode, has U+FFFD in its place; long messages are cut; a repository without a commit is done at
once. What its owner deleted from the Pod stays deleted.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Optional

import pydantic
from git_repository import MAX_PATHS, Change, Repository, RepositoryError

from holdfast import Edge, Field, Item
from holdfast.plugins import GiveUp, PluginConfig, StatefulPlugin

MAX_MESSAGE = 10_000
"""Characters of a message that are kept: a batch of the longest ones still is one transaction."""


class Author(Item):
    """Who wrote commits, by address; the name is that of the first one."""

    email: Optional[str] = Field(index=True)
    name: Optional[str] = None


class ChangedFile(Item):
    """A path that a commit changed; it may be gone by now."""

    path: Optional[str] = Field(index=True)


class Commit(Item):
    """One commit; its date is that of its author."""

    sha: Optional[str] = Field(index=True)
    message: Optional[str] = None
    date: Optional[datetime] = None
    author: list[Author] = []
    parent: list["Commit"] = []
    changed: list[ChangedFile] = []


class GitHistory(StatefulPlugin):
    """Imports what HEAD leads to.

    ``self.state.frontier`` names the imported commits that are no other one's parent: what leads up to them is in the
    Pod. Unlike a position in a list, that stays true whatever is committed, merged or repacked meanwhile.
    """

    schema_classes = (Author, ChangedFile, Commit)

    class Config(PluginConfig):
        """Which repository, and how many commits become one transaction."""

        repository: Path
        batch_size: int = pydantic.Field(default=500, ge=1, le=1_000)

    def run(self) -> None:
        """Import batch after batch, parents first."""
        repository, known = Repository(self.config.repository), self.state.get("frontier", "").split()
        try:
            head = repository.find_head()
            if head is None:
                return
            if lost := repository.find_lost(known, head):
                raise GiveUp(
                    f"commit {lost!r} was imported and HEAD of {repository.folder!r} does not lead to it any more: "
                    "check out what does, or import the rewritten history into another plugin state"
                )
            batches = -(-repository.count(known, head) // self.config.batch_size)
            with closing(repository.changes(known, head)) as changes:
                for batch in self.track(batched(changes, self.config.batch_size), batches):
                    self.write(batch)
        except RepositoryError as exc:
            raise GiveUp(str(exc)) from exc

    def write(self, batch: list[Change]) -> None:
        """Write what of a batch is not in the Pod yet, and that it is there now: both, or neither."""
        items: dict[str, Item] = {}
        edges: list[Edge] = []
        frontier = set(self.state.get("frontier", "").split())
        for change in batch:
            sha, parents, message = text(change.sha), text(change.parents).split(), text(change.message).strip()
            commit, author = self.id_for(Commit, change.sha), self.id_for(Author, change.email or change.name)
            items[commit] = Commit(sha, message[:MAX_MESSAGE], date_of(change.time), id=commit)
            items.setdefault(author, Author(text(change.email), text(change.name), id=author))
            edges.append(Edge(commit, author, "author"))
            edges += [Edge(commit, self.id_for(Commit, parent.encode()), "parent") for parent in parents]
            for path in change.paths:
                file = self.id_for(ChangedFile, path)
                items.setdefault(file, ChangedFile(text(path), id=file))
                edges.append(Edge(commit, file, "changed"))
            if change.is_last:
                frontier = frontier.difference(parents) | {sha}
        ids = [*(items.keys() | {edge.target for edge in edges})]
        there = {item.id: item for item in self.client.search({"ids": ids, "deleted": None})}
        gone = {id_ for id_, item in there.items() if item.deleted}
        with self.transaction():
            self.client.bulk_action(
                create_items=[item for id_, item in items.items() if id_ not in there],
                create_edges=[edge for edge in edges if not gone & {edge.source, edge.target}],
            )
            self.state.frontier = " ".join(sorted(frontier))
            self.state.commits = self.state.get("commits", 0) + sum(change.is_last for change in batch)

    def id_for(self, kind: type[Item], key: bytes) -> str:
        """Return the id that follows from what an item is: it is the same one, whoever writes it and how often."""
        parts = (self.pluginState.id.encode(), kind.__name__.encode(), key)
        return blake2b(b"\0".join(parts), digest_size=16).hexdigest()


def batched(changes: Iterable[Change], size: int) -> Iterator[list[Change]]:
    """Yield lists of at most ``size`` changes, and fewer where they have so many paths that one must not grow more."""
    batch, paths = [], 0
    for change in changes:
        batch.append(change)
        paths += len(change.paths)
        if len(batch) == size or paths >= MAX_PATHS:
            yield batch
            batch, paths = [], 0
    if batch:
        yield batch


def text(raw: bytes) -> str:
    """Return text that a Pod can hold; git's fields have no NUL in them."""
    return raw.decode(errors="replace")


def date_of(seconds: bytes) -> datetime | None:
    """Return the date; None where a commit has one that no calendar has."""
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        return None
