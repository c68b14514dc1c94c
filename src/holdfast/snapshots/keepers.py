"""Which snapshots go: policies that say what is not needed, and what stays whatever they say.

A keeper only selects. What must never go is decided here and not by it, so that no policy, however wrong or hostile,
can take it: see `StatesKeeper.plan`. Selecting changes nothing; asked twice, it says the same. `removal` does the rest.
"""

from __future__ import annotations

import fnmatch
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from holdfast.disk import Disk, MissingError, StrPath
from holdfast.errors import HoldfastError, InvalidError
from holdfast.snapshots.reading import LOCKS, is_being_read
from holdfast.snapshots.removal import (
    Candidate,
    Decision,
    age,
    find_candidates,
    is_pinned,
    is_valid,
    look_at,
    newest_first,
    remove,
)
from holdfast.values import shown

Protected = Callable[[], Collection[str]]
"""Returns the names of the directories that a plugin state points to, asked anew each time."""

_PERIODS: Final[Mapping[str, Callable[[datetime], object]]] = {
    "hour": lambda at: (at.date(), at.hour),
    "day": lambda at: at.date(),
    "week": lambda at: at.isocalendar()[:2],
    "month": lambda at: (at.year, at.month),
}


class StatesKeeper(ABC):
    """Decides which snapshots go, and removes them.

    A subclass says what it has no use for, in `select_removal_states`; that may be anything. `append` tells it of a
    new snapshot. ``keeper_a | keeper_b`` keeps what either of them keeps, ``keeper_a & keeper_b`` what both do; what a
    keeper does not select it keeps.

    ``logger`` is told of each removal, and of what could not be removed. ``protected`` may be set to a function that
    returns the names of the directories that a plugin state points to, and ``disk`` to another one for tests.
    """

    def __init__(self) -> None:
        self.logger = logging.getLogger(f"{type(self).__module__}.{type(self).__qualname__}")
        self.protected: Protected = tuple[str]
        self.disk = Disk()
        self._appended: list[Path] = []

    @property
    def appended(self) -> list[Path]:
        """What was appended and is not known to be gone, in this order."""
        return list(self._appended)

    def append(self, path: StrPath) -> None:
        """Take note of a snapshot that was saved; it then may be removed even if it has no manifest."""
        if Path(path) not in self._appended:
            self._appended.append(Path(path))

    @abstractmethod
    def select_removal_states(self) -> Iterable[Path]:
        """Return the directories that this policy has no use for, in any order; must change nothing."""

    def plan(self) -> list[Decision]:
        """Return what `cleanup` would do now with each directory that the policy knows or selects; newest first.

        Whatever is selected, this stays:

        - what is no directory, a link to one among it, or has a name that begins with a dot: unfinished, or set aside;
        - what holds no manifest, was not appended, and does not match the policy's pattern; and a folder of snapshots;
        - a pinned snapshot, one that a plugin state points to, and one that somebody reads;
        - the newest that verifies, of those that the policy looks at: for a policy without a folder, of those beside
          what it selects. `LatestStatesKeeper` does what its number says instead, and so do several of them combined.

        Raises:
            InvalidError: The policy selected what is no path, or ``protected`` returned what is no collection of names.
            HoldfastError: What ``protected`` raises. Nothing can be removed then.
        """
        judged = self._judge()
        selected = [each.path for each in judged.values() if each.is_removed]
        newest = self._find_newest_valid(selected) if selected else set[object]()
        names = self._protected_names() if selected else frozenset[str]()
        decisions: list[tuple[tuple[int, str], Decision]] = []
        for key, each in judged.items():
            candidate = look_at(each.path)
            if candidate is not None and candidate.identity != key:
                candidate = None  # what was selected has gone, and this is another
            why = None
            if each.is_removed:
                why = self._refusal(each.path, candidate)
                why = why or ("a plugin state points to it" if each.path.name in names else _need(each.path))
                why = why or ("the newest one that verifies" if key in newest else None)
            seen = () if candidate is None else candidate.seen
            decision = Decision(each.path, each.is_removed and why is None, why or each.reason, seen)
            decisions.append((age(each.path, candidate), decision))
        return [decision for _, decision in sorted(decisions, key=lambda each: each[0], reverse=True)]

    def cleanup(self) -> list[Path]:
        """Remove what `plan` says, and return what this call removed, in the order of the plan.

        What cannot be removed is logged (``snapshot.not_removed``) and stays, and the others go. Of two cleanups at
        once, in any processes, each directory is removed and returned by one.

        Raises:
            HoldfastError: As `plan`. Nothing was removed.
        """
        removed: list[Path] = []
        for decision in self.plan():
            if not decision.is_removed:
                continue
            facts = {"path": str(decision.path), "reason": decision.reason}
            try:
                if remove(decision, disk=self.disk):
                    removed.append(decision.path)
                    self.logger.info("snapshot.removed", extra=facts)
            except HoldfastError as exc:
                self.logger.warning("snapshot.not_removed", extra=facts | {"error": exc.message})
        self._forget()
        return removed

    def __or__(self, other: StatesKeeper) -> StatesKeeper:
        return _CombinedKeeper(self, other, is_union=True)

    def __and__(self, other: StatesKeeper) -> StatesKeeper:
        return _CombinedKeeper(self, other, is_union=False)

    def _forget(self) -> None:
        """Forget what is gone, whoever removed it; only after a cleanup, since selecting changes nothing."""
        self._appended = [path for path in self._appended if os.path.lexists(path)]

    def _judge(self) -> dict[object, Decision]:
        """Return what the policy says, before what must never go is left out; each directory once."""
        known = self._explain()
        judged: dict[object, Decision] = {}
        for path in self.select_removal_states():
            key = _key(path)
            _, reason = known.get(key, (path, f"selected by {type(self).__name__}"))
            judged.setdefault(key, Decision(Path(path), True, reason))
        for key, (path, reason) in known.items():
            judged.setdefault(key, Decision(path, False, reason))
        return judged

    def _explain(self) -> dict[object, tuple[Path, str]]:
        """Return the directories that the policy knows, and what it says of each."""
        return {_key(path): (path, f"not selected by {type(self).__name__}") for path in self._appended}

    def _is_expected(self, path: Path) -> bool:
        """Return whether a directory without a manifest is known to be a saved state all the same."""
        return any(_key(each) == _key(path) for each in self._appended)

    def _protected_names(self) -> frozenset[str]:
        names: Any = self.protected()
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InvalidError(f"'protected' returned {shown(names)}: a collection of names of directories is expected")
        return frozenset(names)

    def _find_newest_valid(self, selected: Sequence[Path]) -> set[object]:
        found: set[object] = set()
        for folder in {path.parent for path in selected}:
            with suppress(MissingError):  # then nothing in it is removed
                found |= _newest_valid(find_candidates(folder))
        return found

    def _refusal(self, path: Path, candidate: Candidate | None) -> str | None:
        if candidate is None:
            return "no directory: a link, a file, or nothing"
        if path.name in {"", ".."} or path.name.startswith("."):
            return "not the name of a snapshot"
        if not candidate.has_manifest and (not self._is_expected(path) or _holds_snapshots(path)):
            return "not known to be a snapshot: it has no manifest"
        return None


def _need(path: Path) -> str | None:
    try:
        if is_pinned(path):
            return "pinned"
        return "being read" if is_being_read(path) else None
    except HoldfastError as exc:  # who may not look may not remove
        return exc.message


def _key(path: Any) -> object:
    """Return what tells one directory from another, however it is written; a path to anything else is itself."""
    try:
        candidate = look_at(Path(path))
    except TypeError as exc:
        raise InvalidError(f"a keeper cannot select {shown(path)}: a path is expected") from exc
    return str(path) if candidate is None else candidate.identity


def _newest_valid(candidates: Iterable[Candidate]) -> set[object]:
    saved = (each for each in newest_first(candidates) if each.has_manifest)
    return set(islice((each.identity for each in saved if is_valid(each.path)), 1))


def _holds_snapshots(path: Path) -> bool:
    try:
        return (path / LOCKS).exists() or bool(find_candidates(path))
    except (OSError, HoldfastError):
        return True  # who knows


class _FolderKeeper(StatesKeeper):
    """A policy on what one folder holds: of all candidates, `_keep` says which are kept and why."""

    _otherwise = "not kept"
    """Why the others are not kept."""

    def __init__(
        self, states_dir: StrPath, *, state_name_pattern: str | None = "*.state", protected: Protected | None = None
    ) -> None:
        super().__init__()
        if state_name_pattern is not None and (not state_name_pattern or "/" in state_name_pattern):
            message = f"{state_name_pattern!r} is no pattern of names: a name with * and ? is expected, without '/'"
            raise InvalidError(message, pattern=state_name_pattern)
        self.states_dir = Path(states_dir)
        self.state_name_pattern = state_name_pattern
        if protected is not None:
            self.protected = protected

    def select_removal_states(self) -> list[Path]:
        """Return what the policy does not keep, the newest first."""
        candidates = self._candidates()
        kept = self._keep(candidates)
        return [each.path for each in candidates if each.path not in kept]

    @abstractmethod
    def _keep(self, candidates: Sequence[Candidate]) -> Mapping[Path, str]:
        """Return what is kept of ``candidates``, the newest first, and why; changes nothing."""

    def _candidates(self) -> list[Candidate]:
        found: dict[object, Candidate] = {}
        with suppress(MissingError):
            found = {each.identity: each for each in find_candidates(self.states_dir, self.state_name_pattern)}
        for path in self._appended:
            if not path.name.startswith(".") and (candidate := look_at(path)):
                found.setdefault(candidate.identity, candidate)
        return newest_first(found.values())

    def _explain(self) -> dict[object, tuple[Path, str]]:
        candidates = self._candidates()
        kept = self._keep(candidates)
        return {each.identity: (each.path, kept.get(each.path, self._otherwise)) for each in candidates}

    def _is_expected(self, path: Path) -> bool:
        pattern = self.state_name_pattern
        is_here = pattern is not None and _key(path.parent) == _key(self.states_dir)
        return (is_here and fnmatch.fnmatchcase(path.name, pattern or "")) or super()._is_expected(path)

    def _find_newest_valid(self, selected: Sequence[Path]) -> set[object]:  # noqa: ARG002 -- all that it looks at count
        return _newest_valid(self._candidates())


class LatestStatesKeeper(_FolderKeeper):
    """Keeps the ``max_keep`` directories that were modified last, and pinned ones besides.

    Saving sets the time of a directory to that of its manifest, so the newest is the one that was saved last. Of equal
    times the later name is the newer. With 0 it keeps none, with a negative number all. It looks at names and times
    alone: a damaged snapshot counts, and even the only valid one goes if the number says so. Only an empty directory
    takes no place beside snapshots with a manifest.

    Args:
        states_dir: The folder with the snapshots; if it is not there, nothing is selected.
        max_keep: How many to keep.
        state_name_pattern: Which directories count, as for `fnmatch.fnmatchcase`; None: those that hold a manifest.
            What was appended counts as well.
        protected: Returns the names of the directories that a plugin state points to.
    """

    def __init__(
        self,
        states_dir: StrPath,
        max_keep: int,
        state_name_pattern: str | None = "*.state",
        *,
        protected: Protected | None = None,
    ) -> None:
        super().__init__(states_dir, state_name_pattern=state_name_pattern, protected=protected)
        self.max_keep = max_keep
        self._otherwise = f"not one of the {max_keep} newest"

    def _keep(self, candidates: Sequence[Candidate]) -> Mapping[Path, str]:
        counted = candidates if self.max_keep < 0 else _without_leftovers(candidates)
        ordered = sorted(counted, key=lambda each: (each.modified_at_ns, each.path.name), reverse=True)
        kept = ordered if self.max_keep < 0 else ordered[: self.max_keep]
        return {each.path: f"one of the {len(kept)} newest" for each in kept}

    def _find_newest_valid(self, selected: Sequence[Path]) -> set[object]:  # noqa: ARG002 -- it does what its number says
        return set()


class SpacedStatesKeeper(_FolderKeeper):
    """Keeps the newest snapshot of each of the last hours, days, weeks and months that have any.

    Periods are those of UTC by the manifests, weeks begin on Monday, and only periods with a snapshot are counted: what
    is kept depends on no clock, and a time without snapshots costs nothing. One snapshot may stand for several periods.
    What has a manifest that cannot be read, as that of a newer format, is kept and stands for none; nor does an empty
    directory beside snapshots with a manifest.

    Args:
        states_dir: As for `LatestStatesKeeper`, and so are ``state_name_pattern`` and ``protected``.
        hourly: For how many hours to keep one.
        daily: For how many days, and so on.

    Raises:
        InvalidError: No number is given, or one is negative.
    """

    _otherwise = "not the newest of a period that is kept"

    def __init__(
        self,
        states_dir: StrPath,
        *,
        hourly: int = 0,
        daily: int = 0,
        weekly: int = 0,
        monthly: int = 0,
        state_name_pattern: str | None = "*.state",
        protected: Protected | None = None,
    ) -> None:
        super().__init__(states_dir, state_name_pattern=state_name_pattern, protected=protected)
        self.counts = dict(zip(_PERIODS, (hourly, daily, weekly, monthly), strict=True))
        if min(self.counts.values()) < 0 or not any(self.counts.values()):
            raise InvalidError(f"a keeper cannot keep {self.counts}: at least one count, and none below 0, is expected")

    def _keep(self, candidates: Sequence[Candidate]) -> Mapping[Path, str]:
        kept = _unreadable(candidates)
        for name, count in self.counts.items():
            seen: set[object] = set()
            for each in _without_leftovers(candidates):
                period = _PERIODS[name](each.created_at)
                if not each.problem and period not in seen and len(seen) < count:
                    seen.add(period)
                    kept.setdefault(each.path, f"the newest of its {name}")
        return kept


class BestStatesKeeper(_FolderKeeper):
    """Keeps the ``max_keep`` snapshots with the lowest, or the highest, value of a metric; of equal ones the newer.

    A snapshot without this metric counts as worse than all others. If none has it, the name is taken for a mistake and
    nothing is selected. What has a manifest that cannot be read is kept.

    Args:
        states_dir: As for `LatestStatesKeeper`, and so are ``state_name_pattern`` and ``protected``.
        metric: Which of the ``metrics`` that were given to `StateStore.save_state`.
        max_keep: How many to keep.
        mode: "min" if low is good, "max" if high is.

    Raises:
        InvalidError: ``mode`` is another word, or ``max_keep`` is negative.
    """

    def __init__(
        self,
        states_dir: StrPath,
        metric: str,
        max_keep: int,
        mode: Literal["min", "max"] = "min",
        *,
        state_name_pattern: str | None = "*.state",
        protected: Protected | None = None,
    ) -> None:
        super().__init__(states_dir, state_name_pattern=state_name_pattern, protected=protected)
        if mode not in {"min", "max"} or max_keep < 0:
            message = f"cannot keep {max_keep!r} with mode {mode!r}: a count from 0, 'min' or 'max' is expected"
            raise InvalidError(message)
        self.metric, self.max_keep, self.mode = metric, max_keep, mode
        self._otherwise = f"not one of the {max_keep} best by {metric!r}"

    def _keep(self, candidates: Sequence[Candidate]) -> Mapping[Path, str]:
        kept = _unreadable(candidates)
        rated = [each for each in candidates if self.metric in each.metrics]
        if not rated:
            return kept | {each.path: f"no snapshot here has the metric {self.metric!r}" for each in candidates}
        sign = 1 if self.mode == "min" else -1
        rated.sort(key=lambda each: sign * each.metrics[self.metric])  # stable: the newest came first
        return kept | {each.path: self._otherwise.removeprefix("not ") for each in rated[: self.max_keep]}


class PinnedStatesKeeper(_FolderKeeper):
    """Keeps what is pinned, and nothing else but what must never go.

    Args:
        states_dir: As for `LatestStatesKeeper`, and so are ``state_name_pattern`` and ``protected``.
    """

    _otherwise = "not pinned"

    def _keep(self, candidates: Sequence[Candidate]) -> Mapping[Path, str]:
        return {each.path: "pinned" for each in candidates if is_pinned(each.path)}


def _unreadable(candidates: Sequence[Candidate]) -> dict[Path, str]:
    return {each.path: f"cannot be judged: {each.problem}" for each in candidates if each.problem}


def _without_leftovers(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Leave out what is empty if anything has a manifest: where no rename spares what is there, a kill leaves that."""
    if not any(each.has_manifest for each in candidates):
        return candidates  # of older programs, whose objects may have saved nothing
    return [each for each in candidates if each.has_manifest or not _is_empty(each.path)]


def _is_empty(path: Path) -> bool:
    try:
        return not any(path.iterdir())
    except OSError:
        return False  # who knows


class _CombinedKeeper(StatesKeeper):
    """Two policies as one: what both select goes, or what either does."""

    def __init__(self, first: StatesKeeper, second: StatesKeeper, *, is_union: bool) -> None:
        super().__init__()
        self._parts = (first, second)
        self._is_union = is_union

    def append(self, path: StrPath) -> None:
        super().append(path)
        for part in self._parts:
            part.append(path)

    def select_removal_states(self) -> list[Path]:
        return [each.path for each in self._judge().values() if each.is_removed]

    def _forget(self) -> None:
        super()._forget()
        for part in self._parts:
            part._forget()

    def _judge(self) -> dict[object, Decision]:
        first, second = (part._judge() for part in self._parts)
        judged: dict[object, Decision] = {}
        for key in first | second:
            said = [each[key] for each in (first, second) if key in each]
            removing = [each for each in said if each.is_removed]
            is_removed = bool(removing) and (not self._is_union or len(removing) == len(self._parts))
            reasons = [each.reason for each in said if each.is_removed == is_removed]
            if not reasons:  # one selects it, and the other does not know it
                reasons = ["not selected by both"]
            judged[key] = Decision(said[0].path, is_removed, "; ".join(dict.fromkeys(reasons)))
        return judged

    def _is_expected(self, path: Path) -> bool:
        return any(part._is_expected(path) for part in self._parts)

    def _protected_names(self) -> frozenset[str]:
        return super()._protected_names().union(*(part._protected_names() for part in self._parts))

    def _find_newest_valid(self, selected: Sequence[Path]) -> set[object]:
        return set[object]().union(*(part._find_newest_valid(selected) for part in self._parts))
