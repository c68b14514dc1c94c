"""Signals wait for a block, in the process and the thread that is in it, and nowhere else."""

import signal
import subprocess
import sys
from pathlib import Path

from holdfast.interrupts import handler_of, uninterrupted

SOURCES = str(Path(__file__, "../../../src").resolve())

FORKING = """
import os, signal, threading
from holdfast.interrupts import uninterrupted

def fork():
    child = os.fork()
    if not child:
        code = 1
        try:
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            with uninterrupted():  # and here they wait as ever
                assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            code = 0
        os._exit(code)
    codes.append(os.waitpid(child, 0)[1])

def fork_inside():
    with uninterrupted():
        fork()

codes = []
for target in (fork, fork_inside):
    thread = threading.Thread(target=target)
    with uninterrupted():
        thread.start()
        thread.join()
assert codes == [0, 0]
"""


def test_a_child_that_another_thread_forks_is_in_no_block() -> None:
    """Ctrl-C ends it: the thread that would leave the block, and run the handlers, is not there."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", FORKING], env={"PYTHONPATH": SOURCES}, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


LEAVING = """
import os, signal, threading
from holdfast.interrupts import uninterrupted

def fork():
    with uninterrupted():  # no block in this thread, which is the main one of the child
        child = os.fork()
    if child:
        codes.append(os.waitpid(child, 0)[1])
        return
    code = 1
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            code = 2
        code = 3
    except KeyboardInterrupt:
        code -= 2
    os._exit(code)

codes = []
thread = threading.Thread(target=fork)
thread.start()
thread.join()
assert codes == [0]
"""


def test_a_child_leaves_no_block_that_its_thread_was_not_in() -> None:
    """So its next block is one: Ctrl-C waits for the end of that, and is raised then."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LEAVING], env={"PYTHONPATH": SOURCES}, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_handler_of_a_signal_is_the_same_in_a_block() -> None:
    """Whatever stands in for it."""
    assert handler_of(signal.SIGINT) is signal.default_int_handler
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert handler_of(signal.SIGINT) is signal.default_int_handler
        assert handler_of(signal.SIGHUP) is signal.SIG_DFL
