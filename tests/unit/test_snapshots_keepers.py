"""Which snapshots a keeper lets go, and what no keeper can take."""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.disk import Disk
from holdfast.errors import InvalidError, NotFoundError, UnavailableError
from holdfast.snapshots.keepers import (
    BestStatesKeeper,
    LatestStatesKeeper,
    PinnedStatesKeeper,
    SpacedStatesKeeper,
    StatesKeeper,
)
from holdfast.snapshots.manifest import File, Manifest, Stored
from holdfast.snapshots.reading import reading
from holdfast.snapshots.removal import find_candidates, is_pinned, is_valid, pin, remember_valid, remove, unpin

SECOND = 10**9
_ids = count(1)


def make(folder: Path, name: str, at_s: float = 0, **metrics: float) -> Path:
    """Put a snapshot of one file there that was saved so many seconds after 1970."""
    path, at_ns, data = folder / name, int(at_s * SECOND), name.encode()
    manifest = Manifest(
        id=f"{next(_ids):032x}",
        created_at_ns=at_ns,
        objects={"data": Stored(entries=("data",))},
        files=(File("data", len(data), blake3(data).hexdigest()),),
        metrics=metrics,
    )
    (path / ".snap").mkdir(parents=True)
    (path / "data").write_bytes(data)
    (path / ".snap" / "manifest.json").write_bytes(manifest.to_bytes())
    os.utime(path, ns=(at_ns, at_ns))
    return path


def make_plain(folder: Path, name: str, at_s: float = 0) -> Path:
    """Put a directory there as older programs save it: without a manifest."""
    (folder / name).mkdir(parents=True)
    (folder / name / "data").write_text(name)
    os.utime(folder / name, ns=(int(at_s * SECOND),) * 2)
    return folder / name


def damage(path: Path) -> None:
    """Change a byte of what was saved."""
    (path / "data").write_bytes(b"x" + (path / "data").read_bytes()[1:])


def names(folder: Path) -> list[str]:
    """The names in a folder that do not begin with a dot, sorted."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def removed(keeper: StatesKeeper) -> list[str]:
    """The names of what a keeper removes, sorted."""
    return sorted(path.name for path in keeper.cleanup())


class Chosen(StatesKeeper):
    """A policy by somebody else: selects what it is told to."""

    def __init__(self, *paths: Path) -> None:
        super().__init__()
        self.paths = paths

    def select_removal_states(self) -> Iterable[Path]:
        """Whatever they are."""
        return iter(self.paths)


# -- latest --


def test_the_latest_by_modification_time_are_kept(tmp_path: Path) -> None:
    """Whatever their names say."""
    for name, at_s in {"a.state": 4, "b.state": 1, "c.state": 3, "d.state": 2}.items():
        make(tmp_path, name, at_s)

    assert LatestStatesKeeper(tmp_path, 2).cleanup() == [tmp_path / "d.state", tmp_path / "b.state"]
    assert names(tmp_path) == ["a.state", "c.state"]


def test_not_the_manifest_but_the_modification_time_says_which_are_the_latest(tmp_path: Path) -> None:
    """As whoever looks at the folder sees it."""
    make(tmp_path, "a.state", 1)
    make(tmp_path, "b.state", 2)
    os.utime(tmp_path / "a.state", (3, 3))

    assert removed(LatestStatesKeeper(tmp_path, 1)) == ["b.state"]


def test_what_is_unfinished_or_set_aside_takes_no_place(tmp_path: Path) -> None:
    """Whatever the pattern, and even if somebody has appended it."""
    make(tmp_path, "a.state", 1)
    make(tmp_path, ".tmp-0123456789abcdef", 2)
    keeper = LatestStatesKeeper(tmp_path, 1, None)
    keeper.append(make(tmp_path, ".bad-b.state", 3))

    assert keeper.cleanup() == LatestStatesKeeper(tmp_path, 1, "*").cleanup() == []
    assert names(tmp_path) == ["a.state"]


def test_of_equal_times_the_later_name_is_the_newer(tmp_path: Path) -> None:
    """A coarse clock, or one that was set back, changes nothing in the order."""
    for name in ("c.state", "a.state", "b.state"):
        make(tmp_path, name, 7)

    assert removed(LatestStatesKeeper(tmp_path, 1)) == ["a.state", "b.state"]


def test_a_time_in_the_future_is_a_time_like_any_other(tmp_path: Path) -> None:
    """No clock is asked what is new."""
    make(tmp_path, "future.state", datetime(2200, 1, 1, tzinfo=UTC).timestamp())
    make(tmp_path, "now.state", datetime(2026, 1, 1, tzinfo=UTC).timestamp())

    assert removed(LatestStatesKeeper(tmp_path, 1)) == ["now.state"]


@pytest.mark.parametrize("max_keep, left", [(0, []), (1, ["c.state"]), (9, 3), (-1, 3)])
def test_max_keep_does_what_its_number_says(tmp_path: Path, max_keep: int, left: list[str] | int) -> None:
    """0 keeps none, not even the only valid one; a negative number keeps all."""
    for at_s, name in enumerate(("a.state", "b.state", "c.state")):
        make(tmp_path, name, at_s)

    LatestStatesKeeper(tmp_path, max_keep).cleanup()

    assert names(tmp_path) == (["a.state", "b.state", "c.state"] if left == 3 else left)


def test_directories_of_older_programs_count_if_their_name_matches(tmp_path: Path) -> None:
    """What does not match, and files, are left alone; so is a folder that holds snapshots."""
    for at_s, name in enumerate(("a.state", "b.state", "notes")):
        make_plain(tmp_path, name, at_s)
    (tmp_path / "file.state").write_text("not a directory")
    make(tmp_path / "backup.state", "inside.state")
    os.utime(tmp_path / "backup.state", (0, 0))

    assert removed(LatestStatesKeeper(tmp_path, 1)) == ["a.state"]
    assert names(tmp_path) == ["b.state", "backup.state", "file.state", "notes"]


@pytest.mark.parametrize(
    "make_keeper, left",
    [
        (lambda folder: LatestStatesKeeper(folder, 1), ["a.state"]),
        (lambda folder: LatestStatesKeeper(folder, 2), ["a.state", "b.state"]),
        (lambda folder: LatestStatesKeeper(folder, -1), ["a.state", "b.state", "left.state"]),
        (lambda folder: SpacedStatesKeeper(folder, hourly=1), ["a.state"]),
    ],
)
def test_what_a_kill_left_empty_takes_no_snapshots_place(
    tmp_path: Path, make_keeper: Callable[[Path], StatesKeeper], left: list[str]
) -> None:
    """Where no rename spares what is there, the name is claimed by an empty folder; it goes, and not the good one."""
    make(tmp_path, "a.state", 2)
    make_plain(tmp_path, "b.state", 1)
    (tmp_path / "left.state").mkdir()

    make_keeper(tmp_path).cleanup()
    assert names(tmp_path) == left


def test_where_no_state_has_a_manifest_empty_ones_count(tmp_path: Path) -> None:
    """Older programs write none, and their objects may have nothing to save."""
    for at_s in range(3):
        (tmp_path / f"{at_s}.state").mkdir()
        os.utime(tmp_path / f"{at_s}.state", (at_s, at_s))
    (tmp_path / "1.state" / "data").touch()
    os.utime(tmp_path / "1.state", (1, 1))

    assert removed(LatestStatesKeeper(tmp_path, 1)) == ["0.state", "1.state"]


def test_another_pattern_leaves_others_alone(tmp_path: Path) -> None:
    """Two programs may share a folder; without a pattern whatever has a manifest counts."""
    for name in ("a-1", "a-2", "b-1"):
        make(tmp_path, name)
    make_plain(tmp_path, "a-3")

    assert removed(LatestStatesKeeper(tmp_path, 0, "b-*")) == ["b-1"]
    assert removed(LatestStatesKeeper(tmp_path, 0, None)) == ["a-1", "a-2"]
    assert names(tmp_path) == ["a-3"]


@pytest.mark.parametrize("pattern", ["", "../*", "a/*.state", "/tmp"])
def test_a_pattern_that_leads_elsewhere_is_refused(tmp_path: Path, pattern: str) -> None:
    """It is one for names."""
    with pytest.raises(InvalidError, match="pattern of names"):
        LatestStatesKeeper(tmp_path, 1, pattern)


def test_without_a_folder_nothing_is_selected(tmp_path: Path) -> None:
    """It may be made later; what is no folder is an error."""
    (tmp_path / "file").touch()

    assert LatestStatesKeeper(tmp_path / "absent", 1).cleanup() == []
    with pytest.raises(InvalidError, match="no folder"):
        LatestStatesKeeper(tmp_path / "file", 1).cleanup()


def test_an_appended_directory_counts_whatever_its_name(tmp_path: Path) -> None:
    """Once, also if it is written in another way."""
    old, new = make_plain(tmp_path, "old", 1), make(tmp_path, "new.state", 2)
    keeper = LatestStatesKeeper(tmp_path, 1)
    keeper.append(old)
    keeper.append(new)
    keeper.append(tmp_path / "old" / ".." / "new.state")

    assert keeper.cleanup() == [old]
    assert names(tmp_path) == ["new.state"]


# -- spaced --


def at(text: str) -> float:
    """Seconds since 1970."""
    return datetime.fromisoformat(f"{text}+00:00").timestamp()


def test_the_newest_of_each_period_is_kept(tmp_path: Path) -> None:
    """A worked example: two hours, three days, two weeks; one snapshot may stand for several of them."""
    saved = {
        "a": "2026-01-31T12:40",  # Saturday: the newest of its hour, its day and its week
        "b": "2026-01-31T12:10",
        "c": "2026-01-31T11:59",  # the hour before
        "d": "2026-01-31T10:00",  # a third hour
        "e": "2026-01-30T23:00",  # the day before
        "f": "2026-01-28T09:00",  # no snapshot is of the 29th, so this is the third day
        "g": "2026-01-27T09:00",
        "h": "2026-01-25T09:00",  # Sunday: the week before
        "i": "2026-01-24T09:00",
        "j": "2026-01-17T09:00",  # a third week
    }
    for name, text in saved.items():
        make(tmp_path, f"{name}.state", at(text))

    SpacedStatesKeeper(tmp_path, hourly=2, daily=3, weekly=2).cleanup()

    assert names(tmp_path) == ["a.state", "c.state", "e.state", "f.state", "h.state"]


def test_the_same_hour_of_another_day_is_another_hour(tmp_path: Path) -> None:
    """And the same week of another year another week."""
    make(tmp_path, "a.state", at("2026-01-02T12:00"))
    make(tmp_path, "b.state", at("2026-01-01T12:30"))
    make(tmp_path, "c.state", at("2025-01-01T12:30"))

    assert removed(SpacedStatesKeeper(tmp_path, hourly=2)) == ["c.state"]
    make(tmp_path, "c.state", at("2025-01-01T12:30"))
    assert removed(SpacedStatesKeeper(tmp_path, weekly=2)) == ["b.state"]


def test_months_are_those_of_the_calendar(tmp_path: Path) -> None:
    """In UTC."""
    saved = {"a": "2026-02-01T00:00", "b": "2026-01-31T23:59", "c": "2026-01-01T00:00", "d": "2025-12-31T23:59"}
    for name, text in saved.items():
        make(tmp_path, f"{name}.state", at(text))

    assert removed(SpacedStatesKeeper(tmp_path, monthly=2)) == ["c.state", "d.state"]


def test_a_copied_folder_is_thinned_out_by_when_it_was_saved(tmp_path: Path) -> None:
    """A copy has new times; the manifests have those that count."""
    for day in range(1, 5):
        path = make(tmp_path, f"{day}.state", at(f"2026-01-0{day}T12:00"))
        os.utime(path, (10**9, 10**9))

    assert removed(SpacedStatesKeeper(tmp_path, daily=3)) == ["1.state"]


def test_times_that_no_calendar_has_are_counted_all_the_same(tmp_path: Path) -> None:
    """File systems know them."""
    make_plain(tmp_path, "early.state", -(2**33))
    make_plain(tmp_path, "late.state", 2**33)

    assert [path.name for path in SpacedStatesKeeper(tmp_path, monthly=1).select_removal_states()] == ["early.state"]


@pytest.mark.parametrize("counts", [{}, {"hourly": 0}, {"daily": -1}, {"hourly": 3, "weekly": -1}])
def test_counts_that_keep_nothing_are_refused(tmp_path: Path, counts: dict[str, int]) -> None:
    """As is less than nothing."""
    with pytest.raises(InvalidError, match="at least one count"):
        SpacedStatesKeeper(tmp_path, **counts)


def test_what_cannot_be_read_is_kept_and_stands_for_nothing(tmp_path: Path) -> None:
    """A damaged manifest, and one of a newer release, take no other's place."""
    make(tmp_path, "good.state", 1)
    (make(tmp_path, "torn.state", 2) / ".snap" / "manifest.json").write_bytes(b"{")
    rest = b'"format": 9}'
    newer = b'{"blake3": "' + blake3(rest).hexdigest().encode() + b'",\n' + rest
    (make(tmp_path, "newer.state", 3) / ".snap" / "manifest.json").write_bytes(newer)

    assert removed(SpacedStatesKeeper(tmp_path, hourly=1)) == []
    assert removed(BestStatesKeeper(tmp_path, "loss", 0)) == []
    make(tmp_path, "rated.state", 0, loss=1.0)
    assert removed(BestStatesKeeper(tmp_path, "loss", 0)) == ["rated.state"]
    reasons = {each.path.name: each.reason for each in SpacedStatesKeeper(tmp_path, hourly=1).plan()}
    assert reasons["good.state"] == "the newest of its hour"
    assert "damaged" in reasons["torn.state"]
    assert "format 9" in reasons["newer.state"]


# -- best --


@pytest.mark.parametrize("mode, left", [("min", ["b", "c"]), ("max", ["a", "d"])])
def test_the_best_by_a_metric_are_kept(tmp_path: Path, mode: str, left: list[str]) -> None:
    """Low is good unless it is said that high is; of equal values the newer one."""
    for at_s, (name, loss) in enumerate({"a": 3.0, "b": 1.0, "c": 2.0, "d": 3.0, "e": 2.0}.items()):
        make(tmp_path, name, 5 - at_s, loss=loss)
    newest = make(tmp_path, "newest", 9, loss=2.5)

    BestStatesKeeper(tmp_path, "loss", 2, mode, state_name_pattern=None).cleanup()

    assert names(tmp_path) == [*left, newest.name]


def test_without_the_metric_a_snapshot_is_worse_than_all_others(tmp_path: Path) -> None:
    """An older program's as well."""
    make(tmp_path, "good.state", 1, loss=5.0)
    make(tmp_path, "other.state", 2, accuracy=5.0)
    make_plain(tmp_path, "plain.state", 3)
    make(tmp_path, "newest.state", 4, loss=6.0)

    assert removed(BestStatesKeeper(tmp_path, "loss", 1)) == ["other.state", "plain.state"]


def test_a_metric_that_no_snapshot_has_selects_nothing(tmp_path: Path) -> None:
    """It is a mistake, and not the end of all snapshots."""
    for number in range(3):
        make(tmp_path, f"{number}.state", number, loss=1.0)

    plan = BestStatesKeeper(tmp_path, "los", 1).plan()

    assert [each.is_removed for each in plan] == [False, False, False]
    assert {each.reason for each in plan} == {"no snapshot here has the metric 'los'"}


@pytest.mark.parametrize("max_keep, mode", [(1, "best"), (-1, "min")])
def test_another_mode_is_refused(tmp_path: Path, max_keep: int, mode: str) -> None:
    """And a negative number."""
    with pytest.raises(InvalidError, match="'min' or 'max' is expected"):
        BestStatesKeeper(tmp_path, "loss", max_keep, mode)


# -- pins --


def test_a_pinned_snapshot_stays_until_it_is_unpinned(tmp_path: Path) -> None:
    """Twice is as good as once; the time and the validity of the snapshot stay what they are."""
    path = make(tmp_path, "a.state", 5)

    assert not is_pinned(path)
    pin(path)
    pin(path)
    assert is_pinned(path)
    assert path.stat().st_mtime_ns == 5 * SECOND
    assert is_valid(path)
    assert sorted(os.listdir(path / ".snap")) == ["manifest.json", "pin"]
    assert removed(LatestStatesKeeper(tmp_path, 0)) == []
    unpin(path)
    unpin(path)
    assert removed(LatestStatesKeeper(tmp_path, 0)) == ["a.state"]


def test_only_a_snapshot_with_a_manifest_can_be_pinned(tmp_path: Path) -> None:
    """Nothing is made in other directories, nor through links."""
    make_plain(tmp_path, "plain.state")
    make(tmp_path, "real.state")
    (tmp_path / "link.state").symlink_to("real.state")

    for name in ("plain.state", "link.state", "absent.state", "nul\0"):
        for mark in (pin, unpin):
            with pytest.raises(NotFoundError, match="a directory with a manifest is expected"):
                mark(tmp_path / name)
        assert not is_pinned(tmp_path / "plain.state")


def test_a_pin_that_is_a_link_counts_and_is_not_followed(tmp_path: Path) -> None:
    """Whatever has the name keeps the snapshot."""
    path = make(tmp_path, "a.state")
    (path / ".snap" / "pin").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(InvalidError):
        pin(path)
    assert is_pinned(path)
    assert not (tmp_path / "elsewhere").exists()


def test_the_keeper_of_pinned_ones_keeps_nothing_else(tmp_path: Path) -> None:
    """But the newest that verifies."""
    for at_s, name in enumerate(("a.state", "b.state", "c.state")):
        make(tmp_path, name, at_s)
    pin(tmp_path / "a.state")

    assert removed(PinnedStatesKeeper(tmp_path)) == ["b.state"]


# -- together --


def test_or_keeps_what_either_keeps_and_and_what_both_do(tmp_path: Path) -> None:
    """Written out: the two newest are d and e, the two best are a and d."""
    for at_s, (name, loss) in enumerate({"a": 1.0, "b": 8.0, "c": 9.0, "d": 2.0, "e": 3.0}.items()):
        make(tmp_path, name, at_s, loss=loss)
    latest, best = LatestStatesKeeper(tmp_path, 2, None), BestStatesKeeper(tmp_path, "loss", 2, state_name_pattern=None)

    either, both = latest | best, latest & best

    assert sorted(path.name for path in either.select_removal_states()) == ["b", "c"]
    assert sorted(path.name for path in both.select_removal_states()) == ["a", "b", "c", "e"]
    assert removed(either) == ["b", "c"]
    assert removed(both) == ["a"], "e is the newest that verifies, and the best keeps that"


def test_a_plan_says_why_for_each_directory_once(tmp_path: Path) -> None:
    """The newest first."""
    for at_s, (name, loss) in enumerate({"a": 1.0, "b": 8.0, "c": 9.0, "d": 7.0}.items()):
        make(tmp_path, f"{name}.state", at_s, loss=loss)
    pin(tmp_path / "b.state")

    plan = (LatestStatesKeeper(tmp_path, 1) | BestStatesKeeper(tmp_path, "loss", 1)).plan()

    assert [(each.path.name, each.is_removed, each.reason) for each in plan] == [
        ("d.state", False, "one of the 1 newest"),
        ("c.state", True, "not one of the 1 newest; not one of the 1 best by 'loss'"),
        ("b.state", False, "pinned"),
        ("a.state", False, "one of the 1 best by 'loss'"),
    ]
    assert names(tmp_path) == ["a.state", "b.state", "c.state", "d.state"]


def test_what_one_policy_does_not_look_at_it_keeps(tmp_path: Path) -> None:
    """Of two folders or patterns, "or" removes nothing; "and" removes what each of them would."""
    make(tmp_path, "1.a"), make(tmp_path, "2.b")
    a, b = LatestStatesKeeper(tmp_path, 0, "*.a"), LatestStatesKeeper(tmp_path, 0, "*.b")

    assert removed(a | b) == []
    assert removed(a & b) == ["1.a", "2.b"]


@pytest.mark.parametrize("is_latest_alone, left", [(True, []), (False, ["b.state"])])
def test_only_latest_ones_alone_give_up_the_newest_valid_one(
    tmp_path: Path, is_latest_alone: bool, left: list[str]
) -> None:
    """A combination with any other policy keeps it."""
    make(tmp_path, "a.state", 1), make(tmp_path, "b.state", 2)
    latest = LatestStatesKeeper(tmp_path, 0)
    other = latest if is_latest_alone else Chosen(tmp_path / "a.state")

    (latest & other).cleanup()

    assert names(tmp_path) == left


def test_a_combination_passes_on_what_is_appended_and_what_is_protected(tmp_path: Path) -> None:
    """To all of its parts, and from them."""
    paths = [make_plain(tmp_path, name) for name in ("a", "b", "c")]
    one, other = LatestStatesKeeper(tmp_path, 0, protected=lambda: ["a"]), LatestStatesKeeper(tmp_path, 0)
    keeper = one & other
    keeper.protected = lambda: {"b"}
    for path in paths:
        keeper.append(path)

    assert removed(keeper) == ["c"]
    assert keeper.appended == one.appended == other.appended == paths[:2]


def test_a_combination_removes_what_matches_a_pattern_of_its_parts(tmp_path: Path) -> None:
    """As each of them would, without a manifest as well."""
    make_plain(tmp_path, "a.state"), make_plain(tmp_path, "b")

    assert removed(LatestStatesKeeper(tmp_path, 0) & LatestStatesKeeper(tmp_path, 0, "*.other")) == ["a.state"]
    assert names(tmp_path) == ["b"]


# -- what must never go --


def test_the_newest_that_verifies_stays_and_not_a_damaged_one(tmp_path: Path) -> None:
    """Newer ones that are damaged protect nothing, and go if they are selected."""
    paths = [make(tmp_path, f"{number}.state", number) for number in range(4)]
    damage(paths[3])
    (paths[2] / ".snap" / "manifest.json").write_bytes(b"{")

    assert set(Chosen(*paths).cleanup()) == {paths[0], paths[2], paths[3]}
    assert names(tmp_path) == ["1.state"]


def test_the_newest_is_that_of_the_manifests(tmp_path: Path) -> None:
    """A copy's own time says nothing."""
    old, new = make(tmp_path, "a.state", 1), make(tmp_path, "b.state", 2)
    os.utime(old, (99, 99))

    assert Chosen(old, new).cleanup() == [old]


def test_what_is_being_read_stays_until_it_is_not(tmp_path: Path) -> None:
    """A reader need not fear a cleanup."""
    path = make(tmp_path, "a.state")
    keeper = LatestStatesKeeper(tmp_path, 0)

    with reading(path):
        [decision] = keeper.plan()
        assert (decision.is_removed, decision.reason) == (False, "being read")
        assert keeper.cleanup() == []
    assert keeper.cleanup() == [path]
    assert os.listdir(tmp_path / ".locks") == []


def test_what_a_plugin_state_points_to_stays(tmp_path: Path) -> None:
    """It is asked anew each time."""
    paths = [make(tmp_path, f"{number}.state", number) for number in range(3)]
    pointed = ["0.state"]
    keeper = LatestStatesKeeper(tmp_path, 0, protected=lambda: pointed)

    assert keeper.cleanup() == [paths[2], paths[1]]
    pointed.clear()
    assert keeper.cleanup() == [paths[0]]


def test_if_it_cannot_be_told_what_is_pointed_to_nothing_goes(tmp_path: Path) -> None:
    """The error is the caller's to see; so is a function that returns one name for many."""
    make(tmp_path, "a.state")

    def fail() -> Sequence[str]:
        raise UnavailableError("the Pod is away")

    with pytest.raises(UnavailableError, match="the Pod is away"):
        LatestStatesKeeper(tmp_path, 0, protected=fail).cleanup()
    with pytest.raises(InvalidError, match="a collection of names"):
        LatestStatesKeeper(tmp_path, 0, protected=lambda: "a.state").cleanup()
    with pytest.raises(InvalidError, match="a collection of names"):
        LatestStatesKeeper(tmp_path, 0, protected=lambda: [tmp_path / "a.state"]).cleanup()
    assert names(tmp_path) == ["a.state"]


def test_a_policy_that_selects_anything_removes_only_snapshots(tmp_path: Path) -> None:
    """Paths outside, links, files, what is missing, unfinished or set aside, the folder itself, and one twice."""
    states, elsewhere = tmp_path / "states", tmp_path / "elsewhere"
    old, new = make(states, "old.state", 1), make(states, "new.state", 2)
    make_plain(tmp_path, "elsewhere")
    make(states, ".tmp-0123456789abcdef"), make(states, ".bad-a.state-20260131T000000Z")
    (states / "link.state").symlink_to(elsewhere)
    (states / "file.state").touch()
    keeper = Chosen(
        elsewhere,
        states / "link.state",
        states / "link.state" / "data",
        states / "file.state",
        states / "absent.state",
        states / "nul\0",
        states / ".tmp-0123456789abcdef",
        states / ".bad-a.state-20260131T000000Z",
        states,
        states / "old.state" / "..",
        Path(),
        Path("/"),
        old,
        states / "new.state" / ".." / "old.state",
        old,
        new,
    )
    keeper.append(states)
    keeper.append(states / "link.state")

    assert keeper.cleanup() == [old]
    assert sorted(os.listdir(states)) == [
        ".bad-a.state-20260131T000000Z",
        ".locks",
        ".tmp-0123456789abcdef",
        "file.state",
        "link.state",
        "new.state",
    ]
    assert names(elsewhere) == ["data"]
    assert names(tmp_path) == ["elsewhere", "states"]


@pytest.mark.parametrize("junk", [None, 3, b"a.state", object()])
def test_a_policy_that_selects_what_is_no_path_removes_nothing(tmp_path: Path, junk: Path) -> None:
    """Not even what it named before."""
    old, _ = make(tmp_path, "a.state", 1), make(tmp_path, "b.state", 2)

    with pytest.raises(InvalidError, match="a path is expected"):
        Chosen(old, junk).cleanup()
    assert names(tmp_path) == ["a.state", "b.state"]


def test_a_plain_directory_goes_only_if_it_was_appended(tmp_path: Path) -> None:
    """Of older programs, or of those that write no manifest."""
    saved, other = make_plain(tmp_path, "saved"), make_plain(tmp_path, "other")
    keeper = Chosen(saved, other)
    keeper.append(saved)

    assert keeper.cleanup() == [saved]
    assert names(tmp_path) == ["other"]


# -- selecting and removing --


def test_selecting_changes_nothing_and_says_the_same_again(tmp_path: Path) -> None:
    """What was appended is remembered until it is gone, whoever removes it."""
    a, b = make_plain(tmp_path, "a", 1), make(tmp_path, "b.state", 2)
    keeper = LatestStatesKeeper(tmp_path, 1)
    keeper.append(a)
    keeper.append(b)

    assert keeper.select_removal_states() == keeper.select_removal_states() == [a]
    assert keeper.plan() == keeper.plan()
    assert keeper.appended == [a, b]
    with reading(a):
        assert keeper.cleanup() == []
    assert keeper.appended == [a, b]
    assert keeper.cleanup() == [a]
    assert keeper.appended == [b]
    shutil.rmtree(b)
    assert keeper.cleanup() == []
    assert keeper.appended == []


class Failing(Disk):
    """Cannot rename what has this name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _rename(self, source: Path, target: Path) -> None:
        if source.name == self.name:
            raise OSError(5, "Input/output error")
        super()._rename(source, target)


def test_what_cannot_be_removed_is_logged_and_the_others_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It stays whole, and appended, and goes another time."""
    paths = [make(tmp_path, f"{number}.state", number) for number in range(4)]
    keeper = LatestStatesKeeper(tmp_path, 1)
    keeper.append(paths[1])
    keeper.disk = Failing("1.state")
    with caplog.at_level(logging.INFO):
        assert keeper.cleanup() == [paths[2], paths[0]]

    assert is_valid(paths[1])
    assert keeper.appended == [paths[1]]
    told = {record.message: record for record in caplog.records}
    assert told["snapshot.not_removed"].__dict__["path"] == str(paths[1])
    assert "the disk failed" in told["snapshot.not_removed"].__dict__["error"]
    assert told["snapshot.removed"].__dict__["path"] == str(paths[0])
    assert told["snapshot.removed"].__dict__["reason"] == "not one of the 1 newest"
    keeper.disk = Disk()
    assert keeper.cleanup() == [paths[1]]


def replace_by_link(path: Path) -> None:
    """Leave a link where the snapshot was."""
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def replace_by_another(path: Path) -> None:
    """Leave a snapshot of the same name and time where this one was."""
    path.rename(path.with_name("moved"))
    make(path.parent, path.name, 1)


def change_time(path: Path) -> None:
    """Make the directory newer, as somebody does who writes into it."""
    os.utime(path, (77, 77))


@pytest.mark.parametrize("change", [replace_by_link, replace_by_another, change_time, pin])
def test_what_changed_since_it_was_decided_stays(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """A link in its place leads nowhere, a new snapshot under its name is another, and a pin comes in time."""
    path = make(tmp_path, "a.state", 1)
    [decision] = LatestStatesKeeper(tmp_path, 0).plan()
    assert decision.is_removed
    change(path)
    before = names(tmp_path)

    assert remove(decision) is False
    assert names(tmp_path) == before
    assert (path / "data").read_text() == "a.state"


class Hasty(StatesKeeper):
    """A policy in whose hands the directory changes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def select_removal_states(self) -> Iterable[Path]:
        """One, that is another one afterwards."""
        yield self.path
        if not self.path.with_name("moved").exists():
            replace_by_another(self.path)


def test_what_changed_since_it_was_selected_stays(tmp_path: Path) -> None:
    """The new snapshot is not the one that was meant."""
    path = make(tmp_path, "a.state", 1)
    make(tmp_path, "b.state", 2)

    assert Hasty(path).cleanup() == []
    assert names(tmp_path) == ["a.state", "b.state", "moved"]


def test_two_cleanups_at_once_share_the_work(tmp_path: Path) -> None:
    """Each directory is removed by one of them, none by both, and nothing else goes."""
    for turn in range(10):
        folder = tmp_path / str(turn)
        for number in range(6):
            make(folder, f"{number}.state", number)
        start = threading.Barrier(3)
        found: list[list[Path]] = []

        def clean(folder: Path = folder, start: threading.Barrier = start, found: list[list[Path]] = found) -> None:
            keeper = SpacedStatesKeeper(folder, hourly=1)
            start.wait()
            found.append(keeper.cleanup())

        threads = [threading.Thread(target=clean) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(path.name for each in found for path in each) == [f"{number}.state" for number in range(5)]
        assert sorted(os.listdir(folder)) == [".locks", "5.state"]


# -- what is remembered --


def test_what_was_verified_is_not_read_again_until_its_files_change(tmp_path: Path) -> None:
    """A cleanup after each save does not read gigabytes; a pin and another name of a file are no change."""
    path = make(tmp_path, "a.state")
    assert is_valid(path)
    before = (path / "data").stat()

    damage(path)
    os.utime(path / "data", ns=(before.st_atime_ns, before.st_mtime_ns))
    pin(path)
    os.link(path / "data", tmp_path / "shared")
    assert is_valid(path), "it was read again: nothing tells it from what was verified"
    (path / "data").touch()
    assert not is_valid(path)


def test_what_this_process_has_just_committed_counts_as_verified(tmp_path: Path) -> None:
    """As long as its files look as they did then."""
    path = make(tmp_path, "a.state")
    damage(path)
    remember_valid(path)

    assert is_valid(path), "it was read: it is taken at its word"
    assert is_valid(os.path.relpath(path)), "another way to write the path is no other snapshot"
    (path / "more").touch()
    assert not is_valid(path)


def test_a_manifest_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    """It is read once, as long as it is the same file."""
    path, other = make(tmp_path, "a", 1, loss=1.0), make(tmp_path, "b", 1, loss=2.0)
    assert [each.metrics["loss"] for each in find_candidates(tmp_path)] == [2.0, 1.0]

    (other / ".snap" / "manifest.json").replace(path / ".snap" / "manifest.json")

    assert [dict(each.metrics) for each in find_candidates(tmp_path)] == [{"loss": 2.0}]


# -- any folder, any policy --

FLAVOURS = (
    *("good", "good", "good", "damaged", "torn", "plain", "empty"),
    *("pinned", "pointed", "read", "read", "link", "file", "unfinished"),
)
snapshots = st.lists(
    st.tuples(st.sampled_from(FLAVOURS), st.integers(0, 4), st.sampled_from((None, 0.0, 1.0, 2.0))), max_size=7
)


@st.composite
def policies(draw: st.DrawFn) -> Callable[[Path, list[Path]], StatesKeeper]:
    """Return what makes a keeper for a folder, given all paths that are there."""
    kind = draw(st.sampled_from(("latest", "spaced", "best", "pinned", "chosen", "chosen", "and", "or")))
    number, mode = draw(st.integers(0, 3)), draw(st.sampled_from(("min", "max")))
    if kind in {"and", "or"}:
        first, second = draw(policies()), draw(policies())
        return lambda folder, paths: (
            first(folder, paths) | second(folder, paths)
            if kind == "or"
            else first(folder, paths) & second(folder, paths)
        )
    chosen = draw(st.lists(st.integers(0, 9), max_size=9))
    makers: dict[str, Callable[[Path, list[Path]], StatesKeeper]] = {
        "latest": lambda folder, _: LatestStatesKeeper(folder, number + 1),
        "spaced": lambda folder, _: SpacedStatesKeeper(folder, hourly=number + 1),
        "best": lambda folder, _: BestStatesKeeper(folder, "loss", number, mode),
        "pinned": lambda folder, _: PinnedStatesKeeper(folder),
        "chosen": lambda _, paths: Chosen(*(paths[each % len(paths)] for each in chosen)),
    }
    return makers[kind]


def put(folder: Path, number: int, flavour: str, at_s: int, loss: float | None) -> Path:
    """Put one directory of a kind there, or something that looks like one."""
    name = f"{number}.state"
    if flavour == "link":
        (folder / name).symlink_to(folder.parent / "outside.state")
    elif flavour == "file":
        (folder / name).write_text(name)
    elif flavour == "plain":
        make_plain(folder, name, at_s)
    elif flavour == "empty":
        (folder / name).mkdir()
        os.utime(folder / name, (at_s, at_s))
    elif flavour == "unfinished":
        return make(folder, f".tmp-{number:016x}", at_s)
    else:
        path = make(folder, name, at_s, **({} if loss is None else {"loss": loss}))
        if flavour == "damaged":
            damage(path)
        elif flavour == "torn":
            (path / ".snap" / "manifest.json").write_bytes(b"{")
            os.utime(path, (at_s, at_s))
        elif flavour == "pinned":
            (path / ".snap" / "pin").touch()
    return folder / name


@settings(max_examples=50)
@given(content=snapshots, policy=policies())
def test_no_policy_takes_what_must_never_go(
    content: list[tuple[str, int, float | None]], policy: Callable[[Path, list[Path]], StatesKeeper]
) -> None:
    """And each does what its plan said, says the same twice, and keeps at it until there is nothing left to do."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "states")
        folder.mkdir()
        outside = make_plain(Path(place), "outside.state")
        paths = [put(folder, number, *each) for number, each in enumerate(content)]
        keeper = policy(folder, [*paths, outside, folder, folder / "absent", Path(place)])
        keeper.protected = lambda: [
            path.name for path, each in zip(paths, content, strict=True) if each[0] == "pointed"
        ]
        before = set(os.listdir(folder))
        valid = [
            (each[1], path.name)
            for path, each in zip(paths, content, strict=True)
            if each[0] in {"good", "pinned", "pointed", "read"}
        ]
        untouchable = {
            path.name
            for path, each in zip(paths, content, strict=True)
            if each[0] in {"pinned", "pointed", "read", "link", "file", "unfinished"}
        }
        if valid and not _is_latest(keeper):
            untouchable.add(max(valid)[1])

        with ExitStack() as readers:
            for path, each in zip(paths, content, strict=True):
                if each[0] == "read":
                    readers.enter_context(reading(path))
            assert keeper.plan() == (plan := keeper.plan())
            gone = keeper.cleanup()

        before, after = (each - {".locks"} for each in (before, set(os.listdir(folder))))
        assert untouchable <= after
        assert {path.name for path in gone} == before - after
        assert [each.path for each in plan if each.is_removed] == gone
        assert names(outside) == ["data"]


def _is_latest(keeper: StatesKeeper) -> bool:
    """Whether it is made of keepers that do what their number says, and of nothing else."""
    parts = getattr(keeper, "_parts", None)
    return isinstance(keeper, LatestStatesKeeper) if parts is None else all(map(_is_latest, parts))
