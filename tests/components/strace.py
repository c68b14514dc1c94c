"""strace: kill a program at each of its system calls, or let one of them fail.

A program says which of its calls matter with two that do nothing: it looks at the file `BEGIN` before them and at `END`
after them (``os.stat`` in Python; neither exists). It must do the same each time it is run; what is random may not
change which calls it makes.
"""

import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.components import require

BEGIN = "/holdfast-begin"
END = "/holdfast-end"

MARKERS = f"""
import os

def look(path):
    try:
        os.stat(path)
    except FileNotFoundError:
        pass

def begin():
    look({BEGIN!r})

def end():
    look({END!r})
"""
"""What a Python program needs to say ``begin()`` and ``end()``."""

# They change no file, and how often they are made depends on where memory happened to lie.
# fmt: off
_NOISE = frozenset((
    "brk", "clock_gettime", "clock_nanosleep", "futex", "getpid", "getrandom", "gettid", "madvise", "mmap", "mprotect",
    "mremap", "munmap", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_yield",
))
# fmt: on
_TRIES = 5
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Call:
    """One system call of a program."""

    name: str
    number: int
    """How many of this name its thread had made with it, since the program began."""
    text: str
    """The call as strace writes it."""


@functools.cache
def _is_working() -> bool:
    if shutil.which("strace") is None:
        return False
    # Some containers have it and forbid what it does.
    return subprocess.run(["strace", "-o", os.devnull, "true"], check=False, capture_output=True).returncode == 0


def require_strace() -> None:
    """End the test if there is no strace that works."""
    require("strace", _is_working(), "install the package strace; a container needs the capability SYS_PTRACE")


def fail(argv: Sequence[str], fault: str, *, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with a fault, and return what it printed and how it ended.

    Args:
        argv: The program and its arguments.
        fault: What strace shall inject, as ``"fsync:error=EIO:when=1"``. Calls of each name are counted by thread.
        env: All of its environment.
    """
    require_strace()
    done, _ = _trace(argv, env, "-e", f"inject={fault}")
    return done


def measure(argv: Sequence[str], *, env: Mapping[str, str]) -> list[Call]:
    """Run a program to its end and return its calls after `BEGIN`, up to and with `END`; memory and clocks left out."""
    require_strace()
    done, calls = _trace(argv, env)
    assert done.returncode == 0, f"the program itself fails: {done.stderr}"
    assert calls, f"the program never looks at {BEGIN}"
    assert END in calls[-1].text, f"the program never looks at {END}"
    return calls


def sweep(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    prepare: Callable[[], object],
    check: Callable[[Call], object],
    sample: int | None = None,
) -> list[Call]:
    """Kill a program just before each of its calls between `BEGIN` and `END`, and before `END` itself.

    So each state that a kill can leave between two calls is there once. A run that was killed elsewhere,
    because the program did something else than when it was measured, is measured and done again.

    Args:
        argv: The program and its arguments.
        env: All of its environment.
        prepare: Called before each run; puts everything back to where it was.
        check: Called after each kill, with the call that did not happen any more; fails if what is there is wrong.
        sample: Kill at so many of them at most, evenly spread, the first and the last among them; None: at all.

    Returns:
        The calls that it was killed at, in their order.
    """
    prepare()
    calls = measure(argv, env=env)
    killed: list[Call] = []
    for index in _spread(len(calls), sample):
        for _ in range(_TRIES):
            call = calls[index]
            prepare()
            done, made = _trace(argv, env, "-e", f"inject={call.name}:signal=SIGKILL:when={call.number}")
            if done.returncode == -signal.SIGKILL and len(made) == index + 1 and made[-1].name == call.name:
                break
            prepare()
            calls = measure(argv, env=env)
        else:
            raise AssertionError(f"the program could not be killed at {call.text}: it is not the same each time")
        check(call)
        killed.append(call)
    return killed


def _spread(count: int, sample: int | None) -> list[int]:
    if sample is None or sample >= count:
        return list(range(count))
    return sorted({round(step * (count - 1) / max(sample - 1, 1)) for step in range(sample)})


def _trace(
    argv: Sequence[str], env: Mapping[str, str], *options: str
) -> tuple[subprocess.CompletedProcess[str], list[Call]]:
    with tempfile.TemporaryDirectory(prefix="holdfast-strace-") as folder:
        log = Path(folder, "log")
        # Not --seccomp-bpf: with it the injected signals do not arrive.
        done = subprocess.run(
            ["strace", "-f", "-qq", "-s", "16", "-o", str(log), *options, *argv],
            env={**env, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        return done, _window(log.read_text(errors="replace"))


def _window(log: str) -> list[Call]:
    numbers: dict[tuple[str, str], int] = {}
    inside: list[Call] = []
    thread = None
    for line in log.splitlines():
        if entry := re.match(r"(\d+) +(\w+)\(", line):
            number = numbers[entry[1], entry[2]] = numbers.get((entry[1], entry[2]), 0) + 1
            if thread == entry[1] and entry[2] not in _NOISE:
                inside.append(Call(entry[2], number, line[entry.start(2) :]))
            if thread is None and BEGIN in line:
                thread = entry[1]
            if thread == entry[1] and END in line:
                break
    return inside
