"""Runs of an application: whose code they have until their end, under which name, and what they are given."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from holdfast import PersistentState, PluginBase
from holdfast.context import Context, Settings, carry_out
from holdfast.context.pods import open_store
from holdfast.errors import InvalidError, UnavailableError
from holdfast.plugins import Source, source_of
from holdfast.plugins.current import NoCycleError, current
from holdfast.plugins.loader import PluginLoader
from holdfast.plugins.named import find_named

COUNTS = """
from holdfast import StatefulPlugin

class Counts(StatefulPlugin):
    def run(self):
        self.state.count = self.state.get("count", 0) + 1
"""
TELLS = """
from holdfast import StatefulPlugin, current

class Tells(StatefulPlugin):
    def __init__(self, *args, given: object = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.given = given

    def run(self):
        current.settings.tell(self)
"""
WAITS = """
import asyncio
from holdfast import StatefulPlugin, current

class Waits(StatefulPlugin):
    async def run(self):
        current.settings.is_in.set()
        await asyncio.to_thread(current.settings.may_go.wait, 20)
        self.finish()
"""
BASE = WAITS.replace("async def", "def").replace("await asyncio.to_thread(", "(lambda wait, s: wait(s))(")
FINISHES = """
    def finish(self):
        from .late import WORD
        self.state.word = WORD
"""
BASES = "base_of_late_plugins"


@pytest.fixture
def app(home: Path) -> Iterator[Context]:
    """A context that is not entered."""
    context = Context(home)
    yield context
    context.close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from; what this test imported from it is forgotten."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def write(app: Context, **plugins: str) -> None:
    """Write plugins, as modules."""
    app.settings.plugins_dir.mkdir(parents=True, exist_ok=True)
    for name, text in plugins.items():
        (app.settings.plugins_dir / f"{name}.py").write_text(text, encoding="utf-8")


def write_package(folder: Path, **modules: str) -> None:
    """Write a package; ``init`` is what it says itself."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in modules.items():
        (folder / f"{'__init__' if name == 'init' else name}.py").write_text(text, encoding="utf-8")


def variables(app: Context) -> dict[str, dict[str, Any]]:
    """Return the variables of each plugin state, by the plugin's id."""
    found = app.client.search({"type": "PersistentState"})
    states = [state for state in found if isinstance(state, PersistentState)]
    return {state.pluginId or "": dict(app.client.variables(state.id or "")) for state in states}


def modules(plugin: str) -> list[str]:
    """Return the names that code of a plugin has in this process."""
    return [name for name in sys.modules if name.startswith(f"{plugin}-")]


# -- its code, to the end --


@pytest.mark.parametrize("head", [WAITS, f"from {BASES} import Waits as Base\n\nclass Waits(Base):\n    pass\n"])
@pytest.mark.parametrize("is_closed", [False, True])
def test_a_run_has_its_own_code_to_its_end_whoever_unloads_it(
    head: str, is_closed: bool, app: Context, site: Path
) -> None:
    """Also while none of it is on any stack, as it awaits something or is in a method of an installed base."""
    (site / f"{BASES}.py").write_text(BASE)
    folder = app.settings.plugins_dir / "late"
    app.deployment_settings = SimpleNamespace(is_in=threading.Event(), may_go=threading.Event())
    write_package(folder, init="MARK = 1\n" + head + FINISHES, late="from . import MARK as WORD\n")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(app.run, "late")
        assert app.deployment_settings.is_in.wait(20)
        with app:
            for number in (2, 3):
                write_package(folder, init=f"MARK = {number}\n" + head + FINISHES)
                app.plugins.setup_all(reload_all=not is_closed)
                if is_closed:
                    app.plugins.close()
        app.deployment_settings.may_go.set()
        outcome = running.result(20)
    assert (outcome.status, outcome.error) == ("done", None)
    assert modules("late") == []
    with Context(app.settings.home) as other:
        assert variables(other) == {"late:Waits": {"word": 1}}


def test_code_is_forgotten_with_the_last_run_that_has_it(app: Context) -> None:
    """Not with the first, and not before one has begun to work."""
    write(app, lent=COUNTS)
    with app.plugins.lending("lent") as source:
        with app.plugins.lending("lent:Counts") as other:
            assert other == source
            app.plugins.close()
            assert source.load().__module__ in modules("lent")
        assert source.load().__module__ in modules("lent")
    assert modules("lent") == []


def test_no_name_of_code_is_given_twice(app: Context) -> None:
    """What goes on of older code, unseen, cannot take newer modules for its own."""
    write(app, renamed=COUNTS)
    names: set[str] = set()
    for _ in range(3):
        with app.plugins.lending("renamed") as source:
            names.add(source.load().__module__)
        app.plugins.close()
    assert len(names) == 3


def test_a_forked_child_can_be_lent_what_its_parent_was_lending(app: Context) -> None:
    """In that moment: who held the lock is not there any more."""
    write(app, forked=COUNTS)
    assert app.plugins.load("forked")
    with app.plugins._changing:
        pid = os.fork()
        if not pid:
            code = 1
            signal.alarm(30)  # what waits for ever for a thread of its parent ends as a failure
            with ExitStack() as stack:
                stack.callback(lambda: os._exit(code))
                stack.enter_context(app.plugins.lending("forked"))
                code = 0
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_nobody_waits_for_a_run_to_load_newer_code(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is it told that the old still runs, as that is as it should be: the limit of this test would end a wait."""
    home.mkdir()
    (home / "works.py").write_text(COUNTS + "def work(is_in, may_end):\n    is_in.set()\n    may_end.wait(20)\n")
    is_in, may_end = threading.Event(), threading.Event()
    with PluginLoader(home, stop_s=300) as loader, ThreadPoolExecutor(1) as pool:

        def work() -> None:
            with loader.lending("works") as source:
                sys.modules[source.load().__module__].__dict__["work"](is_in, may_end)

        working = pool.submit(work)
        assert is_in.wait(20)
        assert loader.load("works", force=True)
        assert len(modules("works")) == 4
        may_end.set()
        working.result(20)
        assert len(modules("works")) == 2
    assert caplog.records == []


def test_what_a_run_leaves_behind_is_named_and_keeps_its_modules(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once the code was unloaded, and by the last run: before that it may be what the run works with."""
    home.mkdir()
    (home / "stays.py").write_text(COUNTS + "def stay(is_in, may_end):\n    is_in.set()\n    may_end.wait(20)\n")
    is_in, may_end = threading.Event(), threading.Event()
    with PluginLoader(home, stop_s=0) as loader, loader.lending("stays") as source:
        stay = sys.modules[source.load().__module__].__dict__["stay"]
        thread = threading.Thread(target=stay, args=(is_in, may_end), name="its own")
        thread.start()
        assert is_in.wait(20)
        loader.close()
        assert caplog.records == []
    assert [record.getMessage() for record in caplog.records] == ["plugin.stays: 'stays' still runs in its own"]
    assert len(modules("stays")) == 2
    may_end.set()
    thread.join(20)
    for name in modules("stays"):
        del sys.modules[name]


def test_a_plugin_that_is_unloaded_before_it_could_be_lent_is_not_run(home: Path) -> None:
    """It is an error that says so; to try again is what helps."""

    class Closing(PluginLoader):
        def load(self, name: str, *, force: bool = False) -> bool:
            is_set_up = super().load(name, force=force)
            self.close()
            return is_set_up

    home.mkdir()
    (home / "counts.py").write_text(COUNTS)
    with Closing(home) as loader:
        loader.detect()
        with pytest.raises(UnavailableError, match="it was unloaded just now"), loader.lending("counts"):
            pass


# -- its name --


def test_another_name_for_a_class_leads_to_the_same_plugin_state(app: Context) -> None:
    """Whichever of them is used, and whichever comes last in the module."""
    write(app, aliased=COUNTS + "\nImporter = Counts\n")
    for name in ("aliased", "aliased:Importer", "aliased:Counts", f"{app.settings.plugins_dir}/aliased.py:Importer"):
        assert app.run(name).status == "done"
    assert variables(app) == {"aliased:Counts": {"count": 4}}


@pytest.mark.parametrize(
    "init",
    [
        "from .deep.impl import Counts\nSecond = Counts\n",
        "from . import deep\n\ndef __getattr__(name):\n    return getattr(deep, name.replace('Second', 'Counts'))\n",
    ],
)
def test_an_installed_class_has_one_plugin_state_wherever_it_is_offered(app: Context, site: Path, init: str) -> None:
    """That of the outermost package that has it under its own name; also one that makes it when it is asked for it."""
    write_package(site / "acme_one", init=init)
    write_package(site / "acme_one" / "deep", init="from .impl import Counts\n", impl=COUNTS)
    info = site / "acme_one-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-one\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[holdfast.plugins]\nby-second = acme_one:Second\n")
    for name in ("acme_one.deep.impl:Counts", "acme_one.deep:Counts", "acme_one:Second", "acme_one:Counts"):
        assert app.run(name).status == "done"
    for _ in range(2):
        assert app.run("by-second").status == "done"
        assert app.plugins.load("by-second", force=True)
    assert carry_out(app.settings, source_of("acme_one:Second")).status == "done"
    assert variables(app) == {"acme_one:Counts": {"count": 7}}


def test_what_has_its_own_name_nowhere_is_known_by_the_first_that_it_has(app: Context, site: Path) -> None:
    """In the module that was named; what a package offers under another name alone by where it is defined."""
    made = COUNTS + "\nFirst = Again = type('Made', (Counts,), {'__module__': 'elsewhere'})\ndel Counts\n"
    write_package(site / "acme_two", init="from .impl import Counts as Only\n", impl=COUNTS, made=made)
    for name in ("acme_two:Only", "acme_two.impl:Counts", "acme_two.made:Again", "acme_two.made:First"):
        assert app.run(name).status == "done"
    assert variables(app) == {"acme_two.impl:Counts": {"count": 2}, "acme_two.made:First": {"count": 2}}


def test_plugins_of_the_folder_are_known_by_their_own_name_whatever_they_are_made_of(app: Context, site: Path) -> None:
    """Two that share a class beside them are two; one that offers an installed class is that one."""
    (site / "acme_three.py").write_text(COUNTS)
    shared = "from ._shared import Counts\n\ndef setup(): pass\n"
    write(app, _shared=COUNTS, one=shared, two=shared, three="from acme_three import Counts\n\ndef setup(): pass\n")
    write_package(app.settings.plugins_dir / "four", init="from .impl import Counts as Only\n", impl=COUNTS)
    for name in ("one:Counts", "two:Counts", "three:Counts", "four"):
        assert app.run(name).status == "done"
    once = {"count": 1}
    assert variables(app) == {"one:Counts": once, "two:Counts": once, "acme_three:Counts": once, "four:Only": once}


def test_a_class_of_a_script_is_known_as_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All scripts are one module; and a module that raises when it is asked for a name has none."""

    class Mine(PluginBase):
        __module__ = "__main__"

    monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    assert Source(module="m", name="Mine").known(Mine).plugin_id == "m:Mine"
    broken = ModuleType("broken_by_its_names")
    broken.__dict__["__getattr__"] = lambda name: 1 / 0
    monkeypatch.setitem(sys.modules, broken.__name__, broken)
    Mine.__module__ = broken.__name__
    assert Source(module="m", name="Mine").known(Mine).plugin_id == "m:Mine"


def test_a_plugin_that_was_written_a_moment_ago_is_found_by_its_name(app: Context) -> None:
    """Even if the folder has the time that it had when it was looked at before."""
    write(app, one=COUNTS)
    folder = app.settings.plugins_dir
    times = (1_000_000_000, 1_000_000_000)
    os.utime(folder, times)
    assert find_named("two", folder) is None
    write(app, two=COUNTS)
    (folder / "by-dash.py").write_text(COUNTS)
    os.utime(folder, times)
    assert find_named("by-dash", folder) is None
    found = find_named("two", folder)
    assert found is not None
    assert found.plugin_id == "two:Counts"


@pytest.mark.parametrize("name", [None, 5, b"counts", Path("counts")])
def test_what_is_no_text_names_no_plugin(name: Any, app: Context) -> None:
    """It is refused as any other name of nothing."""
    with pytest.raises(InvalidError, match=r"^there is no plugin "):
        app.run(name)


# -- what it is given --


def tell(app: Context, what: Callable[[Any], Any], **how: Any) -> Any:
    """Return what is so in a run of `TELLS`, and how that ends."""
    told: list[Any] = []
    app.deployment_settings.tell = lambda plugin: told.append(what(plugin))
    write(app, tells=TELLS)
    outcome = app.run("tells", **how)
    assert (outcome.status, outcome.error) == ("done", None)
    return told[0]


def test_a_run_holds_its_plugin_state_for_as_long_as_the_settings_say(home: Path) -> None:
    """Unless it is renewed: so soon another machine can take over."""
    left_ms: list[int] = []

    def tell(plugin: Any) -> None:
        with open_store(app.settings) as store:
            lease = store.find_lease(plugin.pluginState.id)
            assert lease is not None
            left_ms.append(lease.expires_ms - store.now_ms())

    told = SimpleNamespace(tell=tell)
    with Context(settings=Settings.read(home=home, lease_s=20), deployment_settings=told) as app:
        write(app, tells=TELLS)
        assert app.run("tells").status == "done"
    assert left_ms[0] <= 20_000


def test_a_session_is_for_its_own_cycle_alone(app: Context) -> None:
    """Neither a run that is begun in it, nor a cycle without one, nor one of another application has it."""
    other = Context(app.settings.home, log=logging.getLogger("other"))
    with app.cycle(session="user's"):
        assert tell(app, lambda plugin: getattr(current, "session", None)) is None
        with other.cycle():
            assert (getattr(current, "session", None), current.log.name) == (None, "other")
            with app.cycle():
                assert current.log.name == "holdfast.app"
        assert current.session == "user's"
    with app:
        assert tell(app, lambda plugin: current.settings is app.deployment_settings)


def test_a_registry_in_the_session_serves_the_run_that_is_begun_there(home: Path) -> None:
    """Its plugin is looked for, and set up, as in that cycle."""
    app = Context(home, registry=lambda: current.session)
    session: dict[str, Any] = {}
    with app.cycle(session=session):
        assert tell(app, lambda plugin: hasattr(current, "session")) is False
    assert session == {"tells": ("unknown", True)}
    app.close()


def test_there_is_a_log_for_controllers_plugins_and_runs(app: Context) -> None:
    """Each has one by its name, if the application gives none."""
    write(app, logs="from holdfast import current\n\ndef setup():\n    current.settings.log = current.log.name\n")
    with app.cycle():
        assert current.log.name == "holdfast.app"
    assert app.deployment_settings.log == "plugin.logs"
    assert tell(app, lambda plugin: current.log.name) == "plugin.tells"
    mine = logging.getLogger("mine")
    with Context(app.settings.home, log=mine, deployment_settings=app.deployment_settings) as other:
        assert tell(other, lambda plugin: current.log) is mine
    with pytest.raises(NoCycleError):
        _ = current.log


def test_the_first_attempt_has_what_json_gives_back(app: Context) -> None:
    """As all that carry it on have: a list for a tuple, text for a number that is a key."""
    config = {"given": {"words": ("a", "b"), 1: 2}}
    assert tell(app, lambda plugin: plugin.given, config=config) == {"words": ["a", "b"], "1": 2}


@pytest.mark.parametrize("value", [Path("/x"), float("nan"), {"in": {1, 2}}, [b"x"], {("a",): 1}])
def test_a_setting_that_json_cannot_hold_is_refused_by_its_name(value: Any, app: Context) -> None:
    """And not with what it is, as that may be secret; nothing was written, a new run or not."""
    write(app, tells=TELLS)
    app.client.close()
    with pytest.raises(
        InvalidError, match=r"^setting 'given' must be what JSON can hold, such as str\(path\)"
    ) as caught:
        app.run("tells", config={"given": value})
    assert "/x" not in str(caught.value)
    with Context(app.settings.home) as other:
        assert other.client.search({"type": "PluginRun"}) == []


@pytest.mark.parametrize("config", [["given"], "given", 5])
def test_a_configuration_is_a_dict(config: Any, app: Context) -> None:
    """Anything else is refused."""
    write(app, tells=TELLS)
    with pytest.raises(InvalidError, match=r"^the configuration of the metadata cannot be "):
        app.run("tells", config=config)
