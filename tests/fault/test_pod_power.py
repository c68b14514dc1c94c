"""What a Pod holds after a power cut at any moment: each batch whole or not at all, and what was acknowledged."""

from pathlib import Path
from random import Random

import pytest

from tests.components.pods import ENVIRONMENT, PYTHON, content, make_pod, open_store
from tests.components.power import Step, after_cut, record

STATES = [(["run1"], None), (["first", "run1"], 1), (["d1", "d2", "first", "run1"], 7)]
"""The items and the variable ``head`` before both batches, between them and after them."""


def test_the_model_keeps_what_was_flushed_and_gives_no_more_than_was_written() -> None:
    """A flushed file is whole under its name once its folder is flushed; else it may be there, torn or absent."""
    steps = [Step("create", "a"), Step("write", "a", b"x" * 1024), Step("sync", "a"), Step("sync", ".")]
    later = [*steps, Step("write", "a", b"y" * 1024, 512), Step("create", "b"), Step("unlink", "old")]
    for seed in range(50):
        assert after_cut(steps, {}, Random(seed)) == {"a": b"x" * 1024}
    seen = [after_cut(later, {"old": b"o"}, Random(seed)) for seed in range(200)]
    y, x = b"y" * 512, b"x" * 512
    assert {found["a"] for found in seen} == {x + x, x + y, x + y + y}
    assert {tuple(sorted(found)) for found in seen} == {("a", "old"), ("a", "b", "old"), ("a", "b")}
    for seed in range(50):
        assert set(after_cut(steps[:2], {}, Random(seed)).values()) <= {b"", b"x" * 512, b"x" * 1024}


@pytest.mark.timeout(3600)
def test_after_a_power_cut_each_batch_is_there_whole_or_not_and_an_acknowledged_one_is(
    tmp_path: Path, is_full: bool
) -> None:
    """Cut after every call of two batches and of the closing that moves the log into the file."""
    make_pod(tmp_path / "pod" / "pod.db")
    before = {path.name: path.read_bytes() for path in (tmp_path / "pod").iterdir()}
    steps = record([*PYTHON, "apply", str(tmp_path / "pod")], tmp_path / "pod", env=ENVIRONMENT)
    assert {step.what for step in steps} == {"create", "write", "sync", "truncate", "unlink"}
    seen = set[int]()
    for cut in range(len(steps) + 1):
        done = steps[:cut]
        promised = sum(step.name == "acknowledged" and step.what == "write" for step in done)
        for seed in range(50 if is_full else 3):
            folder = tmp_path / f"cut-{cut}-{seed}"
            folder.mkdir()
            for name, data in after_cut(done, before, Random(1000 * cut + seed)).items():
                if name != "pod.db-shm":
                    (folder / name).write_bytes(data)
            with open_store(folder) as store:
                found = content(store)
            items, variables = found["items"], found["variables"]
            assert isinstance(items, dict)
            assert isinstance(variables, dict)
            state = STATES.index((sorted(items), variables.get("head")))
            assert state >= promised, (cut, seed, steps[cut - 1])
            assert found["edges"] == ([("d1", "friend", "d2")] if state == 2 else [])
            assert found["snapshot"] == ("snapshot-7" if state == 2 else None)
            seen.add(state)
    assert seen == {0, 1, 2}
