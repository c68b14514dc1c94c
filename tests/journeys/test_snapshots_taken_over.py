"""A run that sleeps while its snapshot is written, and wakes when another has taken over: with real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from holdfast import PodClient, verify

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}

PROGRAM = """
import sys, threading
from pathlib import Path
from holdfast import EverySteps, StatefulPlugin
from holdfast.context import Settings, carry_out
from holdfast.disk import Disk
from holdfast.engine import Timing
from holdfast.plugins import Source

home, asleep = Path(sys.argv[1]), sys.argv[2]
rename, names = Disk._rename_new, []

def stand():
    print(names[-1], flush=True)
    sys.stdin.readline()

def rename_new(self, source, target):
    if target.suffix == ".state":
        names.append(target.name)
        if (asleep, len(names)) == ("before", 3):
            stand()
    rename(self, source, target)
    if target.suffix == ".state" and (asleep, len(names)) == ("after", 3):
        stand()

Disk._rename_new = rename_new

class Counter:
    n = 0

    def get_state(self):
        return {"n": self.n, "data": bytes([self.n]) * 200_000}

    def set_state(self, tree):
        self.n = tree["n"]
        assert tree["data"] == bytes([self.n]) * 200_000

class Steps(StatefulPlugin):
    condition = EverySteps(1)
    max_snapshots = 9

    def setup(self):
        self.counter = Counter()
        self.snapshots.register("counter", self.counter)

    def run(self):
        self.state.restored = self.counter.n
        while self.counter.n < 5:
            for thread in threading.enumerate():  # a step takes longer than what is written in the background
                if thread.name == "snapshot":
                    thread.join()
            self.state.head = self.counter.n
            self.counter.n += 1
            self.safe_point()

class Here(Source):
    def load(self):
        return Steps

timing = Timing(lease_s=0.3, renew_s=0.1, fence_after_s=20, look_s=0.05)
outcome = carry_out(Settings(home=home), Here(module="m", name="Steps", folder=home), timing=timing)
sys.exit(outcome.exit_code)
"""

WORDS = [sys.executable, "-c", PROGRAM]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where all of these processes have their Pod."""
    return tmp_path / "home"


@pytest.fixture
def moment(request: pytest.FixtureRequest) -> str:
    """Whether the sleeper stands before or after its snapshot gets its name."""
    return str(request.param)


@pytest.fixture
def sleeper(home: Path, moment: str) -> Iterator[subprocess.Popen[str]]:
    """A run that stands while its third snapshot is saved; the one before, of step 1, is pointed to."""
    pipe = subprocess.PIPE
    words = [*WORDS, str(home), moment]
    process = subprocess.Popen(words, env=ENVIRONMENT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    yield process
    process.kill()
    process.communicate()


def carry_on(home: Path) -> None:
    """Begin, or take over, and carry on to the end; while somebody has the lease, again."""
    code = 5
    while code == 5:
        done = subprocess.run([*WORDS, str(home), ""], env=ENVIRONMENT, capture_output=True, text=True, check=False)
        code = done.returncode
    assert code == 0, done.stderr


def found(home: Path) -> tuple[str, Mapping[str, object], Path]:
    """Return which snapshot is pointed to, the variables, and the folder with the snapshots."""
    with PodClient(home=home) as client:
        (state,) = client.search({"type": "PersistentState"})
        pointed = client.find_snapshot(str(state.id))
        return str(pointed), dict(client.variables(str(state.id))), home / "snapshots" / str(state.id)


@pytest.mark.parametrize("moment", ["before", "after"], indirect=True)
def test_a_snapshot_that_is_completed_after_another_run_took_over_is_never_restored(
    home: Path, moment: str, sleeper: subprocess.Popen[str]
) -> None:
    """SIGSTOP while it is written, a run that takes over from the snapshot before, SIGCONT: nobody ever points to it.

    What is pointed to, and the variables, stay those of the run that took over. It deletes what has its name by then,
    and the next run what got it later.
    """
    assert sleeper.stdout is not None
    name = sleeper.stdout.readline().strip()
    sleeper.send_signal(signal.SIGSTOP)
    carry_on(home)
    pointed, variables, folder = found(home)
    assert (variables, pointed > name) == ({"restored": 1, "head": 4}, True)

    sleeper.send_signal(signal.SIGCONT)
    _, said = sleeper.communicate("\n", timeout=60)
    assert sleeper.returncode == 5, said
    assert found(home) == (pointed, variables, folder)
    assert verify(folder / pointed) == []
    assert (folder / name).exists() is (moment == "before")
    assert not (folder / name / ".snap" / "pointed").exists()

    carry_on(home)
    assert found(home)[1] == {"restored": 5, "head": 4}
    assert not (folder / name).exists()
