"""What the next process finds of a run when one was killed: at each of its writes, and at any instant."""

import os
import random
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from tests.components.histories import (
    FORTY,
    PYTHON,
    Repository,
    acknowledged,
    content,
    forty_commits,
    import_history,
    totals,
)

pytestmark = pytest.mark.timeout(3600)  # for --full; a sample takes seconds

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), sysconfig.get_path("purelib")]),
}
KILLED = -9


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with 40 commits; nothing here changes it."""
    return forty_commits(tmp_path_factory.mktemp("forty") / "repository")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with an empty Pod, to be copied: making keys is another test's subject."""
    home = tmp_path_factory.mktemp("template") / "home"
    assert import_history(home, Repository(home.parent / "empty").path).exit_code == 0
    return home


def start(home: Path, repository: Repository, batch_size: int, *deadly: object) -> subprocess.Popen[str]:
    """Start a process that carries the run on."""
    argv = [*PYTHON, *map(str, (home, repository.path, batch_size, *deadly))]
    return subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_whole(home: Path, repository: Repository) -> int:
    """See that a Pod holds whole batches, no commit twice, and all that was acknowledged; return how many commits."""
    found, parents = content(home), repository.parents()
    shas = found["shas"]
    assert len(set(shas)) == len(shas)
    assert set(acknowledged(home)) <= set(shas)
    assert found["variables"].get("commits", 0) == len(shas)
    edges = {"author": len(shas), "parent": 0, "changed": 0}
    for sha in shas:
        assert set(parents[sha]) <= set(shas)
        edges["parent"] += len(parents[sha])
        edges["changed"] += 0 if len(parents[sha]) == 2 else 2
    assert found["edges"] == {name: count for name, count in edges.items() if count}
    return len(shas)


def test_killed_before_or_after_any_write_a_run_carries_on_to_its_end(
    tmp_path: Path, repository: Repository, template: Path, is_full: bool
) -> None:
    """From the claim to the last move: whole batches are there, and after the next attempt all of it, once."""
    batch_size = 1 if is_full else 9
    seen = set[int]()
    for moment in ("before", "after"):
        number, code = 0, KILLED
        while code == KILLED:
            number += 1
            home = tmp_path / f"{moment}-{number}"
            shutil.copytree(template, home)
            process = start(home, repository, batch_size, number, moment)
            said = process.communicate()
            code = process.returncode
            assert code in (0, KILLED), said
            seen.add(check_whole(home, repository))

            is_done = content(home)["runs"][-1] == "done"
            assert import_history(home, repository.path, batch_size=batch_size).exit_code == 0
            check_whole(home, repository)
            assert totals(home) == FORTY
            # The run that was killed is the one that was carried on; only one that had ended is followed by another.
            assert content(home)["runs"] == ["done", "done", "done"][: 3 if is_done else 2]
            shutil.rmtree(home)
        assert number > 40 // batch_size + 2
    assert seen == {min(40, batch_size * batches) for batches in range(-(-40 // batch_size) + 1)}


def test_killed_at_any_instant_again_and_again_a_run_comes_to_its_end(
    tmp_path: Path, repository: Repository, template: Path, is_full: bool
) -> None:
    """Each process carries on where the one before it was killed; nothing acknowledged is lost, nothing is twice."""
    begun = start_fresh(tmp_path / "measured", template, repository)
    began = time.monotonic()
    assert begun.communicate() == ("", "")
    whole_s = time.monotonic() - began
    assert totals(tmp_path / "measured") == FORTY

    kills = kills_halfway = lives = 0
    while kills < (100 if is_full else 15):
        lives += 1
        home = tmp_path / f"life-{lives}"
        process = start_fresh(home, template, repository)
        there = 0
        while True:
            try:
                process.wait(random.uniform(0, whole_s * 0.7))
            except subprocess.TimeoutExpired:
                process.kill()
            said = process.communicate()
            assert process.returncode in (0, KILLED), said
            kills += process.returncode == KILLED
            before, there = there, check_whole(home, repository)
            assert there >= before
            kills_halfway += process.returncode == KILLED and 0 < there < 40
            runs = content(home)["runs"]
            if runs == ["done", "done"]:  # or it was killed after its end, on its way out
                break
            assert process.returncode == KILLED
            process = start_again(home, repository)
        assert totals(home) == FORTY
        shutil.rmtree(home)
    assert kills_halfway > 0


def start_fresh(home: Path, template: Path, repository: Repository) -> subprocess.Popen[str]:
    """Start a process on a new Pod, and return it when its run begins."""
    shutil.copytree(template, home)
    return start_again(home, repository)


def start_again(home: Path, repository: Repository) -> subprocess.Popen[str]:
    """Start a process, and return it when its run begins or is carried on."""
    process = start(home, repository, 1)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process
