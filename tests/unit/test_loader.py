"""The plugin loader: what it finds, what it calls, what it says, and that what one plugin does wrong is its own."""

import asyncio
import json
import logging
import os
import py_compile
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from holdfast.plugins.current import current
from holdfast.plugins.loader import PluginLoader
from holdfast.plugins.loading import finding

GOOD = """
from holdfast.plugins.current import current

def setup():
    current.settings.append(__name__.split('.')[-1])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for plugins."""
    path = tmp_path / "plugins"
    path.mkdir()
    return path


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """What plugins in this test find as ``current.settings``: a list for them to write to."""
    found: list[str] = []
    with current.using(settings=found):
        yield found


def write(folder: Path, **plugins: str) -> None:
    """Write plugins, as modules."""
    for name, text in plugins.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def test_setup_is_called_in_every_cycle(folder: Path, calls: list[str]) -> None:
    """Of every plugin, once each time."""
    write(folder, a=GOOD, b=GOOD)
    with PluginLoader(folder) as loader:
        for _ in range(3):
            loader.setup_all()
            assert sorted(calls) == ["a", "b"]
            calls.clear()


def test_the_registry_says_version_and_status(folder: Path, calls: list[str]) -> None:
    """None for detected, True for set up, False for failed; the version as the plugin says it, or "unknown"."""
    write(folder, a="__version__ = '1.2'\n" + GOOD, b=GOOD, c="__version__ = '3'\ndef setup():\n    1 / 0\n", d="1 / 0")
    with PluginLoader(folder) as loader:
        loader.detect()
        assert loader.registry == dict.fromkeys("abcd", ("unknown", None))
        assert calls == []
        loader.setup_all()
        expected = {"a": ("1.2", True), "b": ("unknown", True), "c": ("3", False), "d": ("unknown", False)}
        assert loader.registry == expected


def test_what_is_no_plugin_is_not_one(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Private and hidden names, other files, folders without code; of a name that none can have the log tells."""
    write(folder, good="def setup(): pass", _private="1 / 0", __init__="1 / 0", two_words="def setup(): pass")
    (folder / "two_words.py").rename(folder / "two-words.py")
    (folder / ".hidden.py").write_text("1 / 0")
    (folder / "notes.txt").write_text("")
    (folder / "data").mkdir()
    (folder / "odd.py").mkdir()
    with PluginLoader(folder) as loader:
        loader.setup_all()
        assert loader.registry == {"good": ("unknown", True)}
    assert [record.message.partition(":")[0] for record in caplog.records] == ["plugin.skipped"]


def test_a_package_is_a_plugin_and_its_relative_imports_work(folder: Path, calls: list[str]) -> None:
    """A package counts before a module of the same name; a module may use a private one beside it."""
    package = folder / "pack"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("from .deep.word import WORD\nfrom .. import _shared\n" + GOOD)
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "word.py").write_text("from ..other import WORD\n")
    (package / "other.py").write_text("WORD = 'w'\n")
    write(folder, pack="1 / 0", _shared="X = 1\n", user="from ._shared import X\n" + GOOD)
    with PluginLoader(folder) as loader:
        loader.setup_all()
        assert sorted(calls) == ["pack", "user"]


def test_a_compiled_module_without_its_source_is_a_plugin(folder: Path, calls: list[str]) -> None:
    """Also when it is reloaded; beside its source, the source counts."""
    for name in ("both", "only"):
        write(folder, **{name: "__version__ = 'compiled'\n" + GOOD})
        py_compile.compile(str(folder / f"{name}.py"), cfile=str(folder / f"{name}.pyc"))
    (folder / "only.py").unlink()
    write(folder, both="__version__ = 'source'\n" + GOOD)
    with PluginLoader(folder) as loader:
        for _ in range(2):
            loader.setup_all(reload_all=True)
            assert loader.registry == {"both": ("source", True), "only": ("compiled", True)}


def test_a_plugin_that_takes_its_modules_place_is_reloaded_like_others(folder: Path) -> None:
    """An object that answers only for what it knows."""
    text = "import sys\nclass Odd:\n    __slots__ = ()\n    __version__ = '1'\n    dump = restore = None\n"
    text += "    def setup(self): pass\n    def __getattr__(self, name): raise RuntimeError(name)\n"
    write(folder, a=text + "sys.modules[__name__] = Odd()\n")
    with PluginLoader(folder) as loader:
        loader.setup_all()
        assert loader.load("a", force=True) is True
        assert loader.registry == {"a": ("1", True)}


def test_a_class_with_run_needs_no_setup(folder: Path, calls: list[str]) -> None:
    """One that is defined there: what it imports from elsewhere makes no plugin of a module."""
    text = "from holdfast import PluginBase\nfrom holdfast.plugins.base import PluginBase as Other\n"
    write(folder, a=text + "class Work(PluginBase):\n    def run(self): pass\n", b=text)
    with PluginLoader(folder) as loader:
        loader.setup_all()
        loader.setup_all()
        assert loader.registry == {"a": ("unknown", True), "b": ("unknown", False)}
        assert "plugin 'b' has no function setup(): it must have one, or a class with run()" in str(loader.failure("b"))


def test_a_name_of_the_standard_library_hides_nothing(folder: Path) -> None:
    """A plugin called json may itself import json, and so may others."""
    text = "import json\n\ndef setup():\n    assert json.dumps([1]) == '[1]'\n"
    write(folder, json=text, logging=text, sys=text, other=text)
    with PluginLoader(folder) as loader:
        loader.setup_all()
        assert set(loader.registry.values()) == {("unknown", True)}
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    "text, reason",
    [
        ("def setup():\n    raise ValueError('of its own')\n", "ValueError: of its own"),
        ("raise ValueError('at once')", "ValueError: at once"),
        ("def setup(:", "SyntaxError: "),
        ("x = '\0'", "null bytes"),
        ("import not_installed_here", "it needs 'not_installed_here', which is not there"),
        ("from . import absent", "ImportError: "),
        ("from .absent import x", "it has no module 'absent' that can be read"),
        ("x = 1", "plugin 'bad' has no function setup(): it must have one"),
        ("setup = 3", "plugin 'bad' has no function setup(): it must have one"),
        ("async def setup(): pass", "setup() of plugin 'bad' is async or a generator"),
        ("def setup():\n    yield\n", "setup() of plugin 'bad' is async or a generator"),
        ("def setup(argument): pass", "TypeError: setup() missing 1 required positional argument"),
        ("import sys\ndef setup():\n    sys.exit(3)\n", "SystemExit: 3"),
        ("class Redirect(BaseException): pass\ndef setup():\n    raise Redirect(303)\n", "Redirect: 303"),
        ("def setup():\n    setup()\n", "RecursionError: "),
        ("import asyncio\ndef setup():\n    raise asyncio.CancelledError\n", "CancelledError: "),
        ("class E(Exception):\n    def __str__(self): 1 / 0\ndef setup(): raise E\n", "E: (its text cannot be had"),
        ("class E(Exception):\n    def __str__(self): raise SystemExit\ndef setup(): raise E\n", "E: (its text cannot"),
        ("def setup(): raise ModuleNotFoundError(name=7)", "ModuleNotFoundError: (its text cannot be had"),
        (
            "from holdfast.errors import InvalidError\nclass E(InvalidError):\n    def __init__(self): pass\nraise E",
            "E: (its text cannot be had: AttributeError)",
        ),
        ("async def work(): pass\nsetup = lambda: work()", "setup() of plugin 'bad' is async or a generator"),
        ("def __getattr__(name): raise RuntimeError(name)", "RuntimeError: "),
    ],
)
def test_what_a_plugin_raises_is_its_own_failure(
    text: str, reason: str, folder: Path, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is: the others are set up, the reason is kept and logged once, and it is not called again."""
    write(folder, bad=text, good=GOOD)
    with PluginLoader(folder) as loader:
        loader.setup_all()
        loader.setup_all()
        assert calls == ["good", "good"]
        assert loader.registry == {"bad": ("unknown", False), "good": ("unknown", True)}
        failure = loader.failure("bad")
        assert str(failure).startswith("plugin 'bad' failed: ")
        assert reason in str(failure)
        assert "Traceback" in str(failure.facts["traceback"]) if failure else False
        assert loader.failure("good") is None
        assert loader.failure("absent") is None
    [record] = caplog.records
    assert (record.levelname, vars(record)["plugin"]) == ("ERROR", "bad")
    assert record.exc_info
    assert [name for name in sys.modules if name.startswith("bad-")] == []


def test_a_plugin_that_fails_in_a_later_cycle_is_deactivated_and_unloaded(folder: Path, calls: list[str]) -> None:
    """From then on it is not called, and what it has had started is stopped."""
    text = """
from holdfast.plugins.current import current
def setup():
    current.on_unload(lambda: settings.append("unloaded")) if not settings else 1 / 0
    settings.append("set up")
settings = current.settings
"""
    write(folder, a=text)
    with PluginLoader(folder) as loader:
        for _ in range(3):
            loader.setup_all()
        assert calls == ["set up", "unloaded"]
        assert loader.registry == {"a": ("unknown", False)}


def test_ctrl_c_is_the_users_and_the_plugin_is_set_up_next_time(folder: Path, calls: list[str]) -> None:
    """It ends the cycle; nobody is blamed, and a first set-up that it interrupted is done again."""
    write(folder, a=GOOD + "    if len(current.settings) in (1, 3): raise KeyboardInterrupt\n")
    with PluginLoader(folder) as loader:
        with pytest.raises(KeyboardInterrupt):
            loader.setup_all()
        assert loader.registry == {"a": ("unknown", None)}
        loader.setup_all()
        with pytest.raises(KeyboardInterrupt):
            loader.setup_all()
        assert loader.registry == {"a": ("unknown", True)}
        assert loader.failure("a") is None


@pytest.mark.parametrize("is_partial", [True, False])
def test_what_a_handler_of_a_signal_raises_is_not_the_plugins(is_partial: bool, folder: Path) -> None:
    """A server that ends by sys.exit in its handler ends, whoever was being set up."""
    write(
        folder, a="import os, signal\ndef setup():\n    os.kill(os.getpid(), signal.SIGUSR1)\n    list(range(1000))\n"
    )

    def leave(number: int, frame: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGUSR1, partial(leave) if is_partial else leave)
    try:
        with PluginLoader(folder) as loader:
            with pytest.raises(SystemExit):
                loader.setup_all()
            assert loader.failure("a") is None
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- the registry -----------------------------------------------------------------------------------------------------


def test_none_in_the_registry_reloads_in_the_next_cycle(folder: Path, calls: list[str]) -> None:
    """Also a plugin that failed; setup() is called once in that cycle."""
    write(folder, a="1 / 0", b=GOOD)
    with PluginLoader(folder) as loader:
        loader.setup_all()
        write(folder, a="__version__ = '2'\n" + GOOD)
        loader.setup_all()
        assert calls == ["b", "b"]
        loader.registry["a"] = None
        loader.setup_all()
        assert sorted(calls) == ["a", "b", "b", "b"]
        assert loader.registry == {"a": ("2", True), "b": ("unknown", True)}
        assert loader.failure("a") is None


def test_none_that_a_plugin_puts_there_counts_in_the_next_cycle(folder: Path, calls: list[str]) -> None:
    """Whoever it is put there for, and by whom: it is not lost, and does not count in the same cycle."""
    text = "from holdfast.plugins.current import current\ncurrent.settings.append('loaded')\ndef setup():\n"
    write(folder, a=text + "    if current.settings.count('loaded') == 1: current.session['a'] = None\n")
    registry: dict[str, Any] = {}
    with current.using(session=registry), PluginLoader(folder, registry=registry) as loader:
        loader.setup_all()
        assert calls == ["loaded"]
        for _ in range(2):
            loader.setup_all()
            assert calls == ["loaded", "loaded"]
        assert registry == {"a": ("unknown", True)}


def test_the_registry_is_not_believed(folder: Path, calls: list[str]) -> None:
    """What it said before a restart, or what a plugin writes, changes nothing and is put right."""
    write(folder, a=GOOD)
    registry: dict[str, Any] = {"a": ("1.0", False), "gone": ("2", True), "odd": object()}
    with PluginLoader(folder, registry=registry) as loader:
        loader.setup_all()
        assert registry == {"a": ("unknown", True)}
        registry.update(a=("9", False), b=[1, 2, 3])
        loader.setup_all()
        registry.clear()
        loader.setup_all()
        assert registry == {"a": ("unknown", True)}
        assert calls == ["a", "a", "a"]


class Shared(dict[str, Any]):
    """A session from which another request takes a name while this one looks at it."""

    def __iter__(self) -> Iterator[str]:
        names = [*super().__iter__()]
        self.pop("odd", None)
        return iter(names)


def test_a_name_may_go_from_the_registry_at_any_time(folder: Path, calls: list[str]) -> None:
    """It is put right all the same."""
    write(folder, a=GOOD)
    with PluginLoader(folder, registry=Shared(odd=(1, 2), old=(1, 2))) as loader:
        loader.setup_all()
        assert dict(loader.registry.items()) == {"a": ("unknown", True)}


def test_none_for_an_unknown_name_looks_for_the_plugin(
    folder: Path, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One that is new is found; one that is not there, or leads elsewhere, goes from the registry."""
    with PluginLoader(folder) as loader:
        loader.setup_all()
        write(folder, new=GOOD)
        loader.registry.update({"new": None, "../new": None, "absent": None})
        loader.setup_all()
        assert loader.registry == {"new": ("unknown", True)}
        assert calls == ["new"]
    assert [record.message for record in caplog.records] == ["plugin.absent", "plugin.absent"]


class Session(dict[str, Any]):
    """A web session that is kept as JSON between requests, and notes whether it was written to."""

    writes = 0

    def __setitem__(self, name: str, value: Any) -> None:
        self.writes += 1
        super().__setitem__(name, value)


def test_a_session_of_each_request_is_told_and_not_written_without_need(folder: Path, calls: list[str]) -> None:
    """A list read back counts as the tuple; a session that is new is filled."""
    write(folder, a=GOOD, b="1 / 0")
    with PluginLoader(folder, registry=lambda: current.session.plugins) as loader:
        kept = "{}"
        for number in range(3):
            session = Session(json.loads(kept))
            with current.using(session=SimpleNamespace(plugins=session)):
                loader.setup_all()
            kept = json.dumps(session)
            assert json.loads(kept) == {"a": ["unknown", True], "b": ["unknown", False]}
            assert bool(session.writes) == (number == 0)
        assert calls == ["a", "a", "a"]


class Broken(dict[str, Any]):
    """A session whose store is down now and then."""

    is_down = False

    def __setitem__(self, name: str, value: Any) -> None:
        if self.is_down:
            raise ConnectionError
        super().__setitem__(name, value)


def test_a_registry_that_raises_leaves_no_plugin_half_way(folder: Path, calls: list[str]) -> None:
    """It is the application's error; new code takes over, what fails is unloaded, and the registry catches up."""
    text = "from holdfast.plugins.current import current\ntold = current.settings\n__version__ = '{}'\n"
    text += "current.on_unload(lambda: told.append('unloaded ' + __version__))\ndef setup(): {}\n"
    write(folder, a=text.format(1, "pass"))
    registry = Broken()
    with PluginLoader(folder, registry=registry) as loader:
        loader.setup_all()
        registry.is_down = True
        write(folder, a=text.format(2, "'fail' not in told or 1 / 0"))
        with pytest.raises(ConnectionError):
            loader.load("a", force=True)
        registry.is_down = False
        loader.setup_all()
        assert (registry, calls) == ({"a": ("2", True)}, ["unloaded 1"])
        registry.is_down = True
        calls.append("fail")
        for _ in range(2):
            with pytest.raises(ConnectionError):
                loader.setup_all()
        assert calls == ["unloaded 1", "fail", "unloaded 2"]
        registry.is_down = False
        loader.setup_all()
        assert registry == {"a": ("2", False)}


def test_plugins_see_each_other_in_the_registry(folder: Path) -> None:
    """All are there from the beginning, and each has its status before the next one is called."""
    text = """
from holdfast.plugins.current import current
def setup():
    current.settings.append(sorted(map(str, current.session.values())))
"""
    seen: list[list[str]] = []
    registry: dict[str, Any] = {}
    write(folder, a=text, b=text)
    with current.using(settings=seen, session=registry), PluginLoader(folder, registry=registry) as loader:
        loader.setup_all()
    none, true = "('unknown', None)", "('unknown', True)"
    assert seen == [[none, none], [none, true]]


# -- load, detect, setup_all ------------------------------------------------------------------------------------------


def test_load_sets_one_plugin_up(folder: Path, calls: list[str]) -> None:
    """Not the others; what is set up already, or failed, stays as it is unless it is forced."""
    write(folder, a=GOOD, b=GOOD, c="1 / 0")
    with PluginLoader(folder) as loader:
        assert loader.load("a") is True
        assert loader.load("a") is True
        assert loader.load("c") is False
        assert loader.load("c") is False
        assert calls == ["a"]
        write(folder, c=GOOD)
        assert loader.load("c", force=True) is True
        assert loader.load("a", force=True) is True
        assert calls == ["a", "c", "a"]
        assert loader.registry == {"a": ("unknown", True), "b": ("unknown", None), "c": ("unknown", True)}


@pytest.mark.parametrize("name", ["../a", "a/b", "", "_a", "__init__", "a.b", "a\0", "a b", 7])
def test_a_name_that_no_plugin_can_have_is_refused(name: Any, folder: Path) -> None:
    """It leads nowhere."""
    with PluginLoader(folder) as loader, pytest.raises(InvalidError, match=r"^no plugin can be called "):
        loader.load(name, force=True)


def test_a_plugin_that_is_not_there_is_not_found(folder: Path, calls: list[str]) -> None:
    """One that came after the first look is."""
    with PluginLoader(folder) as loader:
        with pytest.raises(NotFoundError, match=r"^there is no plugin 'a' in "):
            loader.load("a")
        write(folder, a=GOOD)
        assert loader.load("a") is True


def test_detect_finds_what_came_and_unloads_what_went(folder: Path, calls: list[str]) -> None:
    """Without running anything; a cycle alone does not look."""
    write(folder, a=GOOD)
    with PluginLoader(folder) as loader:
        loader.setup_all()
        write(folder, b=GOOD)
        (folder / "a.py").unlink()
        loader.setup_all()
        assert calls == ["a", "a"]
        loader.detect()
        assert loader.registry == {"b": ("unknown", None)}
        assert calls == ["a", "a"]
        loader.setup_all()
        assert calls == ["a", "a", "b"]
        assert [name for name in sys.modules if name.startswith("a-")] == []


def test_reset_all_reloads_all_in_the_next_cycle(folder: Path, calls: list[str]) -> None:
    """`detect` runs nothing, `setup_all` runs all; failed ones get another chance."""
    write(folder, a="__version__ = '1'\n" + GOOD, b="1 / 0")
    with PluginLoader(folder) as loader:
        loader.setup_all()
        write(folder, a="__version__ = '2'\n" + GOOD, b=GOOD)
        loader.detect(reset_all=True)
        assert loader.registry == {"a": ("1", None), "b": ("unknown", None)}
        assert calls == ["a"]
        loader.setup_all()
        assert loader.registry == {"a": ("2", True), "b": ("unknown", True)}
        write(folder, a="__version__ = '3'\n" + GOOD, c=GOOD)
        loader.setup_all(reload_all=True)
        assert loader.registry == {"a": ("3", True), "b": ("unknown", True), "c": ("unknown", True)}
        assert sorted(calls) == ["a", "a", "a", "b", "b", "c"]


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    """As on a fresh machine; and nothing is made."""
    with PluginLoader(tmp_path / "absent") as loader:
        loader.setup_all()
        assert loader.registry == {}
    with PluginLoader(Path(__file__)) as loader, pytest.raises(InvalidError, match="a part of the path is no folder"):
        loader.setup_all()
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_read_are_failures_of_their_names(folder: Path, calls: list[str]) -> None:
    """A link to nowhere, one in a circle, a pipe, and what this user may not read: none hides, none hangs."""
    write(folder, good=GOOD, secret=GOOD)
    (folder / "nowhere.py").symlink_to("absent.py")
    (folder / "circle.py").symlink_to("circle.py")
    os.mkfifo(folder / "pipe.py")
    with tempfile.TemporaryDirectory() as name:  # a user without rights cannot reach tmp_path
        place = Path(name) / "plugins"
        folder.rename(place)
        for each in (place.parent, place):
            each.chmod(0o777)
        (place / "secret.py").chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            loader = PluginLoader(place)
            loader.setup_all()
        finally:
            if is_root:
                os.seteuid(0)
        bad = ["circle", "nowhere", "pipe", "secret"]
        assert loader.registry == {"good": ("unknown", True), **dict.fromkeys(bad, ("unknown", False))}
        assert "it has no module 'nowhere' that can be read" in str(loader.failure("nowhere"))
        assert "PermissionError" in str(loader.failure("secret"))
        loader.close()
        place.rename(folder)


def test_a_thousand_plugins_are_a_thousand_plugins(folder: Path, calls: list[str]) -> None:
    """None is left out and none called twice."""
    write(folder, **{f"p{number}": GOOD for number in range(1000)})
    with PluginLoader(folder) as loader:
        loader.setup_all()
        assert sorted(calls) == sorted(f"p{number}" for number in range(1000))
        assert len(loader.registry) == 1000


def test_installed_plugins_are_found_and_those_in_the_folder_come_first(
    folder: Path, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An entry point names a module, or an object in one; a reload loads the package anew, beside the first."""
    package = tmp_path / "site" / "installed_for_test"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("from . import __name__ as parent\n__version__ = '1'\n" + GOOD)
    (package / "both.py").write_text("class Tool:\n    @staticmethod\n    def setup(): pass\n")
    entries = [
        EntryPoint("in-part", "installed_for_test.part", finding.GROUP),
        EntryPoint("tool", "installed_for_test.both:Tool", finding.GROUP),
        EntryPoint("a", "installed_for_test.part", finding.GROUP),
        EntryPoint("malformed", "no such value!", finding.GROUP),
        EntryPoint("../x", "installed_for_test.part", finding.GROUP),
    ]
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(finding, "entry_points", lambda group: entries)
    write(folder, a=GOOD)
    with PluginLoader(folder) as loader:
        loader.setup_all()
        bad = loader.registry.pop("malformed")
        assert (bad, sorted(calls)) == (("unknown", False), ["a", "part"])
        assert loader.registry == {"a": ("unknown", True), "in-part": ("1", True), "tool": ("unknown", True)}
        first = sys.modules["installed_for_test.part"]
        (package / "part.py").write_text("from . import __name__ as parent\n__version__ = '2'\n" + GOOD)
        assert loader.load("in-part", force=True) is True
        assert loader.registry["in-part"] == ("2", True)
        assert sys.modules["installed_for_test.part"] is first
    told = [record.message.partition(":")[0] for record in caplog.records]
    assert told[:2] == ["plugin.hidden", "plugin.skipped"]


# -- several at once, and one that hangs ------------------------------------------------------------------------------


def test_two_threads_load_a_plugin_once_and_both_have_it_set_up(folder: Path) -> None:
    """The one that comes second waits for the first; each cycle has its own call of setup()."""
    text = """
from holdfast.plugins.current import current
current.settings.loaded.append(1)
current.settings.together.set()
def setup():
    assert current.settings.may_go.wait(10)
    current.settings.calls.append(1)
"""
    settings = SimpleNamespace(loaded=[], calls=[], together=threading.Event(), may_go=threading.Event())
    write(folder, a=text)
    with PluginLoader(folder) as loader:

        def request() -> None:
            with current.using(settings=settings):
                loader.setup_all()

        threads = [threading.Thread(target=request) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert settings.together.wait(10)
        settings.may_go.set()
        for thread in threads:
            thread.join(10)
        assert (settings.loaded, settings.calls) == ([1], [1, 1, 1, 1])


def test_one_that_hangs_is_told_and_holds_up_its_own_thread_only(
    folder: Path, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The log says who and where; others go on without it, and what cannot be done meanwhile is refused."""
    hanging, told = SimpleNamespace(may_go=threading.Event()), threading.Event()
    write(
        folder,
        hangs="from holdfast.plugins.current import current\ndef setup():\n    current.settings.may_go.wait(20)\n",
    )

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("plugin.late"):
                told.set()

    teller = Teller()
    logging.getLogger("holdfast.plugins").addHandler(teller)
    loader = PluginLoader(folder, late_after_s=0.05)

    def request() -> None:
        with current.using(settings=hanging):
            loader.setup_all()

    thread = threading.Thread(target=request)
    thread.start()
    try:
        assert told.wait(10)
        loader.setup_all()
        assert loader.registry == {"hangs": ("unknown", None)}
        with pytest.raises(UnavailableError, match="while plugin 'hangs' hangs in its setup"):
            loader.load("hangs", force=True)
    finally:
        hanging.may_go.set()
        thread.join(10)
        logging.getLogger("holdfast.plugins").removeHandler(teller)
    assert loader.registry == {"hangs": ("unknown", True)}
    [record] = [record for record in caplog.records if record.msg.startswith("plugin.late")]
    assert "current.settings.may_go.wait(20)" in record.getMessage()
    loader.close()


def test_one_that_hangs_when_it_is_unloaded_holds_up_its_own_thread_only(folder: Path, calls: list[str]) -> None:
    """Cycles go on with what is set up; what cannot be done meanwhile is refused, and done afterwards."""
    text = "from holdfast.plugins.current import current\nmine = current.session\ndef setup(): pass\n"
    text += "@current.on_unload\ndef hang():\n    mine.hangs.set()\n    mine.may_go.wait(20)\n"
    write(folder, a=text, b=GOOD)
    hanging = SimpleNamespace(hangs=threading.Event(), may_go=threading.Event())
    loader = PluginLoader(folder, late_after_s=0.05)
    with current.using(session=hanging):
        loader.setup_all()
    (folder / "a.py").unlink()
    thread = threading.Thread(target=loader.detect)
    thread.start()
    try:
        assert hanging.hangs.wait(10)
        loader.registry["b"] = None
        loader.setup_all()
        assert calls == ["b", "b"]
        with pytest.raises(UnavailableError, match="while another thread unloads plugins or looks for them"):
            loader.load("b", force=True)
    finally:
        hanging.may_go.set()
        thread.join(10)
    loader.setup_all()
    assert loader.registry == {"b": ("unknown", True)}
    loader.close()


def test_a_task_that_the_first_setup_made_may_call_the_loader_later(folder: Path) -> None:
    """It inherits what the plugin sees, but not that the plugin is being set up."""
    text = "import asyncio\nfrom holdfast.plugins.current import current\nasync def later(loader):\n"
    text += "    loader.detect()\n    loader.setup_all()\n    return current.log.name\n"
    text += "def setup():\n    if not current.settings:\n"
    text += "        current.settings.append(asyncio.ensure_future(later(current.session)))\n"
    write(folder, a=text)

    async def request() -> None:
        tasks: list[asyncio.Task[bool]] = []
        with PluginLoader(folder) as loader, current.using(settings=tasks, session=loader):
            loader.setup_all()
            assert await tasks[0] == "holdfast.app"

    asyncio.run(request())


@pytest.mark.parametrize("call", ["setup_all()", "load('b', force=True)", "detect()", "close()"])
def test_a_plugin_cannot_call_the_loader_that_is_setting_it_up(call: str, folder: Path, calls: list[str]) -> None:
    """It is told to put None into the registry instead; it may catch that, and is set up."""
    text = f"""
from holdfast.plugins.current import current
from holdfast.errors import ConflictError
def setup():
    try:
        current.session.{call}
    except ConflictError as exc:
        current.settings.append(str(exc))
"""
    write(folder, a=text, b="def setup(): pass")
    loader = PluginLoader(folder)
    with current.using(session=loader):
        loader.setup_all()
        loader.setup_all()
    assert loader.registry["a"] == ("unknown", True)
    assert len(calls) == 2
    assert calls[1].startswith("plugin 'a' cannot call ")
    loader.close()


def test_after_close_nothing_is_left_and_a_new_cycle_begins_anew(folder: Path, calls: list[str]) -> None:
    """Twice is fine."""
    write(folder, a=GOOD)
    loader = PluginLoader(folder)
    loader.setup_all()
    loader.close()
    loader.close()
    assert [name for name in sys.modules if name.startswith("a-")] == []
    loader.setup_all()
    assert calls == ["a", "a"]
    loader.close()


def test_a_plugin_that_removes_itself_serves_until_the_next_look(folder: Path, calls: list[str]) -> None:
    """Forced meanwhile, it fails, and its older code serves on."""
    write(folder, a=GOOD + "    __import__('os').path.exists(__file__) and __import__('os').unlink(__file__)\n")
    with PluginLoader(folder) as loader:
        loader.setup_all()
        assert loader.load("a", force=True) is False
        assert str(loader.failure("a")).endswith("its older code serves on")
        loader.setup_all()
        assert calls == ["a", "a"]
        loader.detect()
        assert loader.registry == {}


def test_conflict_is_what_a_plugin_gets_who_was_unloaded(folder: Path) -> None:
    """Old code that runs on can start nothing any more."""
    errors: list[type[BaseException]] = []
    text = """
from holdfast.plugins.current import current
def work(stop):
    stop.wait(10)
    try:
        current.on_unload(print)
    except Exception as exc:
        current.settings.append(type(exc))
def setup():
    current.start_thread(work)
"""
    write(folder, a=text)
    with current.using(settings=errors), PluginLoader(folder) as loader:
        loader.setup_all()
    assert errors == [ConflictError]
