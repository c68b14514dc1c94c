"""What the next process finds of a run with snapshots that was killed at any of its writes, to disk or to the Pod."""

import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from holdfast import PodClient, verify

pytestmark = pytest.mark.timeout(3600)  # for --full; a sample takes seconds

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), sysconfig.get_path("purelib")]),
}
KILLED = -9
STEPS = 9

PROGRAM = """
import itertools, os, signal, sys, threading
from pathlib import Path
from holdfast import EverySteps, StatefulPlugin
from holdfast.context import Settings, carry_out
from holdfast.disk import Disk
from holdfast.plugins import Source
from holdfast.sql import SqliteStore

home, deadly, moment = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
counter, counting, is_working = itertools.count(1), threading.Lock(), False

def counted(cls, name):
    original = getattr(cls, name)
    def wrapped(*args, **kwargs):
        with counting:
            number = next(counter) if is_working else 0
        if number == deadly and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if number == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(cls, name, wrapped)

for name in ("_flush", "_link", "_rename", "_rename_new", "_unlink", "_mkdir", "_write"):
    counted(Disk, name)
counted(SqliteStore, "apply")

class Power:
    def __init__(self):
        self.n = 0

    def get_state(self):
        return {"n": self.n, "power": 3**self.n, "data": bytes([self.n]) * 200_000}

    def set_state(self, tree):
        self.n = tree["n"]
        assert tree["power"] == 3**self.n and tree["data"] == bytes([self.n]) * 200_000

class Powers(StatefulPlugin):
    condition = EverySteps(2)
    max_snapshots = 2

    def setup(self):
        self.power = Power()
        self.snapshots.register("power", self.power)

    def run(self):
        self.state.restored = self.power.n
        for _ in self.track(range(self.power.n, int(sys.argv[4]))):
            self.power.n += 1
            for thread in threading.enumerate():  # a step takes longer than what is written in the background
                if thread.name == "snapshot":
                    thread.join()

class Here(Source):
    def load(self):
        return Powers

is_working = True
outcome = carry_out(Settings(home=home), Here(module="m", name="Powers", folder=home))
print(outcome.status, next(counter))
"""


def run(home: Path, deadly: int = 0, moment: str = "before") -> subprocess.CompletedProcess[str]:
    """Carry the run on, and kill the process at its write of this number."""
    argv = [sys.executable, "-c", PROGRAM, str(home), str(deadly), moment, str(STEPS)]
    return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def check(home: Path) -> Path | None:
    """See that all snapshots that can be seen are whole, and return the one that is pointed to."""
    with PodClient(home=home) as client:
        states = client.search({"type": "PersistentState"})
        if not states:
            return None
        folder = home / "snapshots" / str(states[0].id)
        pointed = client.find_snapshot(str(states[0].id))
    for path in folder.glob("[!.]*"):
        assert verify(path) == []
    if pointed is None:
        return None
    assert (folder / pointed / ".snap" / "manifest.json").is_file()
    return folder / pointed


def test_killed_before_or_after_any_write_a_run_with_snapshots_carries_on(tmp_path: Path, is_full: bool) -> None:
    """What is visible is whole, what is pointed to is there, and the next attempts come to the same end."""
    whole = run(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    status, writes_made = whole.stdout.split()
    assert status == "done"
    writes = int(writes_made)
    assert writes > 60
    numbers = range(1, writes + 1)
    has_restored = 0
    for moment in ("before", "after"):
        for number in numbers if is_full else sorted(random.sample(numbers, 10)):
            home = tmp_path / f"{moment}-{number}"
            killed = run(home, number, moment)
            assert killed.returncode in (0, KILLED), killed.stderr
            check(home)

            again = run(home)
            assert again.stdout.startswith("done "), again.stderr
            assert list(home.glob("snapshots/*/.bad-*")) == []
            pointed = check(home)
            assert pointed is not None
            assert f'"power":{3**STEPS}' in (pointed / "power").read_text()
            assert len(list(pointed.parent.glob("[!.]*"))) <= 2
            assert list(pointed.parent.glob(".tmp-*")) == []
            with PodClient(home=home) as client:
                has_restored += client.variables(pointed.parent.name)["restored"] not in (0, STEPS)
    assert has_restored > 0
