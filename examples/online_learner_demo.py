"""Train a model without interruption, and the same one killed again and again: the weights are equal, bit for bit.

The Pod lies in a temporary folder.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from holdfast import PodClient, StateStore
from holdfast.context import Settings, carry_out
from holdfast.plugins import source_of

PLUGIN = Path(__file__).resolve().parent / "online_learner" / "metadata.json"
KILLED_AFTER = (7_000, 6_000, 1)
"""After how many of its steps each of the first processes is killed."""


def carry_on(state: str, kill_after: int | None = None) -> None:
    """Do what ``holdfast run --state STATE`` does; after so many steps kill this process, as the kernel would."""

    def on_progress(done: int, _: int | None) -> None:
        if done == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    carry_out(Settings.read(), source_of(str(PLUGIN)), state=state, on_progress=on_progress)


def run(home: Path, state: str, kill_after: int | None = None) -> int:
    """Run the plugin in a process of its own, and return how that ended."""
    argv = [sys.executable, __file__, "--carry-on", json.dumps([state, kill_after])]
    return subprocess.run(argv, env={**os.environ, "HOLDFAST_HOME": str(home)}, check=False).returncode  # noqa: S603


class Kept:
    """Takes whatever a snapshot holds."""

    tree: Any = None

    def get_state(self) -> Any:
        """Return it."""
        return self.tree

    def set_state(self, tree: Any) -> None:
        """Keep it."""
        self.tree = tree


def find_state(client: PodClient, state: str) -> str:
    """Return the id of a plugin state."""
    return str(client.search({"type": "PersistentState", "name": state})[0].id)


def model_in(home: Path, state: str) -> Any:
    """Return the model in the snapshot that a plugin state points to; None if it points to none yet."""
    with PodClient(home=home) as client:
        id_ = find_state(client, state)
        name = client.find_snapshot(id_)
    if name is None:
        return None
    kept = Kept()
    with StateStore(home / "snapshots" / id_) as store:
        store.register("model", kept)
        store.load_state(home / "snapshots" / id_ / name)
    return kept.tree


def accuracy(home: Path, state: str) -> float:
    """Return how many of the digits that it never saw the model reads."""
    with PodClient(home=home) as client:
        return float(client.variables(find_state(client, state))["accuracy"])


def show(home: Path) -> bool:
    """Train both, say what became of them, and whether they are equal."""
    run(home, "calm")
    calm = model_in(home, "calm")
    print(f"without interruption: {calm['steps']} steps, reads {accuracy(home, 'calm'):.1%} of digits it never saw")
    for kill_after in KILLED_AFTER:
        code = run(home, "rough", kill_after)
        ended = "killed" if code == -signal.SIGKILL else f"ended with exit code {code}"
        model = model_in(home, "rough")
        at = "there is no snapshot yet" if model is None else f"the last snapshot is of step {model['steps']}"
        print(f"  {ended} after {kill_after} steps; {at}", flush=True)
    run(home, "rough")
    rough = model_in(home, "rough")
    print(f"killed {len(KILLED_AFTER)} times: {rough['steps']} steps, reads {accuracy(home, 'rough'):.1%}")
    first, second = (hashlib.sha256(each["weights"].tobytes()).hexdigest() for each in (calm, rough))
    print(f"weights: {first[:16]}… and {second[:16]}…: {'equal' if first == second else 'NOT equal'}, bit for bit")
    return first == second


def main() -> int:
    """Show it all; 0 if the weights are equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--carry-on", metavar="JSON", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.carry_on is not None:
        carry_on(*json.loads(options.carry_on))
        return 0
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        return 0 if show(Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
