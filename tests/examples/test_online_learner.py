"""The example OnlineLearner has the same weights, bit for bit, however often and however it was stopped."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "online_learner_demo.py"


@pytest.fixture(scope="module")
def demo() -> Any:
    """Return the program as a module."""
    spec = importlib.util.spec_from_file_location("online_learner_demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_shows_equal_weights(tmp_path: Path) -> None:
    """Its last line says so, and its exit code."""
    ran = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("  killed after") == 3
    assert ran.stdout.rstrip().endswith("…: equal, bit for bit")


def test_a_model_that_was_told_to_stop_goes_on_from_that_very_step(demo: Any, home: Path) -> None:
    """SIGTERM takes a snapshot at the next safe point, whatever the condition says."""
    demo.run(home, "calm")
    config = json.dumps({"snapshot_interval_s": 3600})
    argv = [sys.executable, "-m", "holdfast", "run", str(demo.PLUGIN), "--state", "told", "--config", config]
    with subprocess.Popen(argv, env=os.environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Running: ")  # which step that is depends on the machine
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert process.returncode == 143
    stopped = demo.model_in(home, "told")
    assert 0 < stopped["steps"] < 20_000

    demo.run(home, "told")
    calm, told = (demo.model_in(home, state) for state in ("calm", "told"))

    assert (calm["steps"], told["steps"]) == (20_000, 20_000)
    assert calm["weights"].tobytes() == told["weights"].tobytes()
    assert calm["velocity"].tobytes() == told["velocity"].tobytes()
