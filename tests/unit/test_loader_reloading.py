"""New code of a plugin stands beside the old until it is set up; and nothing of what went is left."""

import contextvars
import gc
import os
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.plugins.current import current
from holdfast.plugins.loader import PluginLoader


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """What plugins in this test find as ``current.settings``: a list for them to write to."""
    found: list[Any] = []
    with current.using(settings=found):
        yield found


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[PluginLoader]:
    """A loader of a folder that has nothing in it yet."""
    with PluginLoader(tmp_path, stop_s=0) as found:
        yield found


def version(path: Path, number: int, body: str = "") -> None:
    """Write a version of a plugin: all have the same size, and may have the same time."""
    path.write_text(
        "from holdfast.plugins.current import current\n"
        f"__version__ = '{number}'\n{body}\n"
        "def setup():\n    current.settings.append(__version__)\n"
    )


def modules(plugin: str) -> list[str]:
    """Return the names that code of a plugin has in this process."""
    return [name for name in sys.modules if name.startswith(f"{plugin}-")]


@pytest.mark.parametrize("bytecode", [True, False])
def test_new_code_is_what_the_file_holds_now(
    bytecode: bool, tmp_path: Path, loader: PluginLoader, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if size and time are those of the old: what was compiled is not trusted, by this loader or another."""
    monkeypatch.setattr(sys, "dont_write_bytecode", not bytecode)
    for number in range(5):
        version(tmp_path / "a.py", number)
        os.utime(tmp_path / "a.py", (1_000_000_000, 1_000_000_000))
        assert loader.load("a", force=True)
    version(tmp_path / "a.py", 5)
    os.utime(tmp_path / "a.py", (1_000_000_000, 1_000_000_000))
    with PluginLoader(tmp_path, suspects=tmp_path / "other") as other:
        other.setup_all()
    assert told == ["0", "1", "2", "3", "4", "5"]


def test_another_loader_and_the_next_process_see_new_code_too(tmp_path: Path, told: list[Any]) -> None:
    """A compiled file is trusted by the first load of a process alone, and none is left by a reload."""
    for number in range(2):
        version(tmp_path / "a.py", number)
        os.utime(tmp_path / "a.py", (1_000_000_000, 1_000_000_000))
        with pytest.MonkeyPatch.context() as patch, PluginLoader(tmp_path) as each:
            patch.setattr(sys, "dont_write_bytecode", False)
            each.setup_all()
    assert told == ["0", "1"]
    assert list(tmp_path.glob("__pycache__/*")) == []


def test_submodules_are_new_too(tmp_path: Path, loader: PluginLoader, told: list[Any]) -> None:
    """Also one that was not there before, and one that is imported only later, by a function."""
    package = tmp_path / "pack"
    package.mkdir()
    text = "from holdfast.plugins.current import current\ndef setup():\n    from .word import WORD\n"
    text += "    current.settings.append(WORD)\n"
    (package / "__init__.py").write_text(text)
    (package / "word.py").write_text("WORD = 1\n")
    loader.setup_all()
    (package / "word.py").write_text("from .more import WORD\n")
    (package / "more.py").write_text("WORD = 2\n")
    assert loader.load("pack", force=True)
    (package / "more.py").write_text("WORD = 3\n")
    assert loader.load("pack", force=True)
    assert told == [1, 2, 3]


@pytest.mark.parametrize("bad", ["def setup(): 1 / 0", "1 / 0", "def setup(:", "x = 1"])
def test_the_old_code_serves_on_if_the_new_fails(
    bad: str, tmp_path: Path, loader: PluginLoader, told: list[Any]
) -> None:
    """In the same cycle, and in all after it; the registry says which version, and `failure` why it is not the new."""
    version(tmp_path / "a.py", 1)
    loader.setup_all()
    (tmp_path / "a.py").write_text("__version__ = '2'\n" + bad)
    loader.registry["a"] = None
    loader.setup_all()
    loader.setup_all()
    assert told == ["1", "1", "1"]
    assert loader.registry == {"a": ("1", True)}
    assert str(loader.failure("a")).endswith("; its older code serves on")
    version(tmp_path / "a.py", 3)
    assert loader.load("a", force=True)
    assert loader.registry == {"a": ("3", True)}
    assert loader.failure("a") is None


def test_what_the_old_dumps_the_new_restores_before_it_is_set_up(
    tmp_path: Path, loader: PluginLoader, told: list[Any]
) -> None:
    """Only from one that was set up to one that takes it; a plugin that failed later still dumps."""
    version(tmp_path / "a.py", 1, "def restore(state): current.settings.append(state)\ndef dump(): return 'from 1'\n")
    loader.setup_all()
    assert told == ["1"]
    version(tmp_path / "a.py", 2, "def restore(state): current.settings.append(state)\n")
    assert loader.load("a", force=True)
    assert told == ["1", "from 1", "2"]
    version(tmp_path / "a.py", 3, "def restore(state): current.settings.append(state)\n")
    assert loader.load("a", force=True)
    assert told == ["1", "from 1", "2", "3"]


@pytest.mark.parametrize("old, new", [("1 / 0", "pass"), ("return 1", "1 / 0")])
def test_a_hand_over_that_fails_leaves_the_old_serving(
    old: str, new: str, tmp_path: Path, loader: PluginLoader, told: list[Any]
) -> None:
    """Whether the old cannot dump or the new cannot restore."""
    version(tmp_path / "a.py", 1, f"def dump(): {old}\n")
    loader.setup_all()
    version(tmp_path / "a.py", 2, f"def restore(state): {new}\n")
    assert not loader.load("a", force=True)
    assert "ZeroDivisionError" in str(loader.failure("a"))
    assert loader.registry == {"a": ("1", True)}


def test_what_failed_new_code_had_started_is_stopped(tmp_path: Path, loader: PluginLoader, told: list[Any]) -> None:
    """The old code's is not."""
    body = "settings = current.settings\nclose = current.on_unload(lambda: settings.append('closed ' + __version__))\n"
    version(tmp_path / "a.py", 1, body)
    loader.setup_all()
    version(tmp_path / "a.py", 2, body + "1 / 0\n")
    assert not loader.load("a", force=True)
    assert told == ["1", "closed 2"]
    version(tmp_path / "a.py", 3, body)
    assert loader.load("a", force=True)
    assert told == ["1", "closed 2", "3", "closed 1"]


def test_what_still_runs_is_named_and_keeps_its_modules(
    tmp_path: Path, loader: PluginLoader, told: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Threads that do not stop, whoever's code they are in, and one that the plugin made by itself."""
    text = """
import threading
from holdfast.plugins.current import current
def work(stop, may_end=current.settings.may_end, runs=current.settings.runs):
    runs.release()
    may_end.wait(20)
def setup():
    current.start_thread(work)
    current.start_thread(current.settings.foreign, name="foreign")
    threading.Thread(target=work, args=(None,), name="its own").start()
"""
    settings = SimpleNamespace(may_end=threading.Event(), runs=threading.Semaphore(0))
    settings.foreign = lambda stop: settings.may_end.wait(20)
    (tmp_path / "a.py").write_text(text)
    with current.using(settings=settings):
        loader.setup_all()
    for _ in range(2):
        assert settings.runs.acquire(timeout=10)
    (tmp_path / "a.py").unlink()
    loader.detect()
    [record] = caplog.records
    assert record.getMessage() == "plugin.stays: 'a' still runs in a: foreign, a: work, its own"
    assert modules("a")
    settings.may_end.set()
    for thread in threading.enumerate():
        if thread.name in {"a: foreign", "a: work", "its own"}:
            thread.join(10)
    for name in modules("a"):
        del sys.modules[name]


def descriptors() -> int:
    """Return how many files are open."""
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def test_two_hundred_reloads_leave_nothing_behind(tmp_path: Path, told: list[Any]) -> None:
    """No thread, no module, no file, no path finder; and of 20 MB that the plugin holds, only the last."""
    package = tmp_path / "grows"
    package.mkdir()
    (package / "part.py").write_text("DATA = bytearray(100_000)\nclass Thing: pass\n")
    body = "from .part import DATA\nimport logging\nlog = logging.getLogger(__name__)\n"
    body += "current.start_thread(lambda stop: stop.wait(20), name='t')\ncurrent.on_unload(DATA.clear)\n"
    version(package / "__init__.py", 1, body)
    with PluginLoader(tmp_path) as loader:
        tracemalloc.start()
        try:
            for number in range(200):
                assert loader.load("grows", force=True)
                if number == 20:
                    gc.collect()
                    before = (threading.active_count(), len(sys.modules), descriptors(), len(sys.meta_path))
                    memory = tracemalloc.get_traced_memory()[0]
            gc.collect()
            after = (threading.active_count(), len(sys.modules), descriptors(), len(sys.meta_path))
            assert after == before
            assert tracemalloc.get_traced_memory()[0] - memory < 1_000_000
        finally:
            tracemalloc.stop()
    assert modules("grows") == []


def test_no_cycle_calls_code_that_is_being_unloaded(
    tmp_path: Path, loader: PluginLoader, told: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither where newer code has taken over, nor where the file is gone: it could start nothing any more."""
    unloads, may_go = threading.Event(), threading.Semaphore(0)
    with current.using(session=SimpleNamespace(unloads=unloads, may_go=may_go)):
        body = "mine = current.session\n@current.on_unload\ndef wait():\n"
        body += "    mine.unloads.set()\n    mine.may_go.acquire(timeout=20)\n"
        for number in range(2):
            version(tmp_path / "a.py", number, body)
            if number == 0:
                loader.setup_all()
        ways = [
            (lambda: loader.load("a", force=True), ["1"]),
            (lambda: ((tmp_path / "a.py").unlink(), loader.detect()), []),
        ]
        for way, expected in ways:
            thread = threading.Thread(target=contextvars.copy_context().run, args=(way,))
            thread.start()
            assert unloads.wait(10)
            told.clear()
            loader.setup_all()
            assert told == expected
            may_go.release()
            thread.join(10)
            unloads.clear()
    assert caplog.records == []


def test_old_code_that_raises_after_it_was_replaced_deactivates_nobody(
    tmp_path: Path, loader: PluginLoader, caplog: pytest.LogCaptureFixture
) -> None:
    """A cycle of another thread may still be in it; the log is silent, as this is nobody's failure."""
    text = """
from holdfast.plugins.current import current
def setup():
    if hasattr(current, "session"):
        current.session.entered.set()
        current.session.may_raise.wait(20)
        raise ValueError
"""
    session = SimpleNamespace(entered=threading.Event(), may_raise=threading.Event())
    (tmp_path / "a.py").write_text(text)
    loader.setup_all()

    def request() -> None:
        with current.using(session=session):
            loader.setup_all()

    thread = threading.Thread(target=request)
    thread.start()
    assert session.entered.wait(10)
    (tmp_path / "a.py").write_text("__version__ = '2'\ndef setup(): pass\n")
    assert loader.load("a", force=True)
    session.may_raise.set()
    thread.join(10)
    loader.setup_all()
    assert loader.registry == {"a": ("2", True)}
    assert loader.failure("a") is None
    assert {record.msg.partition(":")[0] for record in caplog.records} == {"plugin.stays"}
    for name in modules("a"):
        del sys.modules[name]
