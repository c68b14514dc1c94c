"""Context: what an application holds, who sees it, how a plugin is named, and how it ends."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast import PersistentState, PluginRun
from holdfast.context import Context, PodClient, Settings, carry_out
from holdfast.errors import ConflictError, InvalidError, NotFoundError, PluginError, UnavailableError
from holdfast.plugins.current import NoCycleError, current
from holdfast.plugins.loader import PluginLoader
from holdfast.plugins.named import find_named
from holdfast.snapshots.saving import StateStore
from holdfast.state import State

COUNTS = """
from holdfast import StatefulPlugin

class Counts(StatefulPlugin):
    def __init__(self, *args, by: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self.by = by

    def run(self):
        self.state.count = self.state.get("count", 0) + self.by
"""
SETS_UP = (
    "from holdfast import current\n\ndef setup():\n    current.settings.ups = getattr(current.settings, 'ups', 0) + 1\n"
)
LEAVES = """
from holdfast import current

def setup():
    current.on_unload(left)

def left():
    current.state.said.word = "bye"
"""


@pytest.fixture
def app(home: Path) -> Iterator[Context]:
    """A context that is not entered: what it does, it does without a block around it."""
    context = Context(home)
    yield context
    context.close()


def write(app: Context, **plugins: str) -> None:
    """Write plugins, as modules."""
    app.settings.plugins_dir.mkdir(parents=True, exist_ok=True)
    for name, text in plugins.items():
        (app.settings.plugins_dir / f"{name}.py").write_text(text, encoding="utf-8")


def count(client: PodClient, plugin: str, name: str = "default") -> Any:
    """Return the variable that `COUNTS` writes; None if no run of this plugin has ended."""
    [state] = client.search({"type": "PersistentState", "pluginId": plugin, "name": name})
    assert isinstance(state, PersistentState)
    return client.variables(state.id or "").get("count")


# -- parts --


def test_a_context_makes_and_opens_nothing_before_it_is_asked_for(home: Path) -> None:
    """Not even its home; and closing it changes nothing."""
    with Context(home) as app:
        assert app.settings.home == home
    assert not home.exists()


def test_each_part_lies_in_the_home_and_is_the_same_each_time(app: Context, home: Path) -> None:
    """State, plugins, snapshots and client; the snapshots where no plugin state can have its own."""
    assert isinstance(app.state, State)
    assert isinstance(app.plugins, PluginLoader)
    assert isinstance(app.client, PodClient)
    assert isinstance(app.snapshots, StateStore)
    assert (app.state, app.plugins, app.client, app.snapshots) == (app.state, app.plugins, app.client, app.snapshots)
    app.state.ui.theme = "dark"
    app.state.save_all()
    assert json.loads((home / "state" / "ui.json").read_text()) == {"theme": "dark"}
    app.snapshots.register("part", SimpleNamespace(get_state=lambda: 1, set_state=print))
    assert app.snapshots.save_state().parent == home / "snapshots" / "@application"
    with pytest.raises(InvalidError):
        app.client.create(PersistentState(id="@application"))


def test_threads_that_come_at_once_share_each_part(home: Path) -> None:
    """The client is opened once, by the first."""
    with Context(home) as app, ThreadPoolExecutor(8) as pool:
        start = threading.Barrier(8)

        def part(_: int) -> tuple[int, int]:
            start.wait()
            return id(app.client), id(app.plugins)

        assert len(set(pool.map(part, range(8)))) == 1


def test_settings_decide_where_each_part_is(tmp_path: Path) -> None:
    """And for how long a change of a variable may wait."""
    settings = Settings.read(home=tmp_path / "h", state_dir=tmp_path / "s", plugins_dir=tmp_path / "p", save_delay=0)
    with Context(settings=settings) as app:
        app.state.ui.theme = "dark"
        assert (tmp_path / "s" / "ui.json").is_file()
        write(app, plain="def setup(): pass\n")
        app.plugins.setup_all()
        assert app.plugins.registry == {"plain": ("unknown", True)}
    with pytest.raises(InvalidError, match="cannot have both a home and settings"):
        Context(tmp_path, settings=settings)


def test_two_homes_in_one_process_have_nothing_in_common(tmp_path: Path) -> None:
    """Plugins of one name are two, and so are variables and Pods."""
    with Context(tmp_path / "a") as a, Context(tmp_path / "b") as b:
        for app, word in ((a, "one"), (b, "two")):
            write(app, says=f"from holdfast import current\n\ndef setup():\n    current.state.said.word = {word!r}\n")
        for app in (a, b):
            with app.cycle():
                assert current.state is app.state
        assert (a.state.said.word, b.state.said.word) == ("one", "two")
        write(a, counts=COUNTS)
        a.run("counts")
        assert count(a.client, "counts:Counts") == 1
        assert b.client.search({"type": "PluginRun"}) == []


def test_a_forked_child_has_parts_of_its_own(home: Path) -> None:
    """Even if another thread was opening one meanwhile; what it closes is open in its parent."""
    with Context(home) as app:
        app.client.create(PersistentState(id="mine"))
        app.state.ui.theme = "dark"
        is_held, is_done = threading.Event(), threading.Event()

        def hold() -> None:
            with app._turn():
                is_held.set()
                is_done.wait()

        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        is_held.wait()
        pid = os.fork()
        if not pid:
            code = 1
            signal.alarm(30)  # what waits for ever for a thread of its parent ends as a failure
            with ExitStack() as stack:
                stack.callback(lambda: os._exit(code))
                theme = app.plugins and app.state.ui.theme
                found = app.client.exists("mine")
                app.close()
                code = 0 if (theme, found) == ("dark", True) else 2
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        is_done.set()
        thread.join()
        assert app.client.exists("mine")


# -- who sees what --


def test_the_block_provides_settings_state_and_log_and_ends(home: Path) -> None:
    """So plugins that are set up in it find them; after it there is nothing."""
    log = logging.getLogger("application")
    mine = SimpleNamespace(ups=5)
    with Context(home, deployment_settings=mine, log=log) as app:
        write(app, up=SETS_UP)
        app.plugins.setup_all()
        assert mine.ups == 6
        assert (current.settings, current.deployment_settings, current.state, current.log) == (
            (mine, mine, app.state, log)
        )
        with pytest.raises(NoCycleError):
            _ = current.session
    with pytest.raises(NoCycleError):
        _ = current.settings


def test_a_cycle_sets_each_plugin_up_and_has_the_session(app: Context) -> None:
    """It yields `current`; a plugin that raises is deactivated, and the cycle goes on."""
    write(app, up=SETS_UP, bad="def setup():\n    1 / 0\n")
    for number in (1, 2):
        with app.cycle(session={"user": number}) as here:
            assert here is current
            assert current.session == {"user": number}
            assert current.settings is app.deployment_settings
        assert app.deployment_settings.ups == number
    assert app.plugins.registry == {"bad": ("unknown", False), "up": ("unknown", True)}
    with pytest.raises(NoCycleError):
        _ = current.settings


def test_the_registry_may_be_in_the_session(home: Path) -> None:
    """Each cycle tells its own session."""
    app = Context(home, registry=lambda: current.session)
    write(app, up=SETS_UP)
    for session in ({}, {}):
        with app.cycle(session=session):
            assert session == {"up": ("unknown", True)}


def test_threads_and_tasks_see_their_own_cycle(app: Context) -> None:
    """Also those that come at the same time; a thread without one sees none."""
    write(app, up=SETS_UP)
    with ThreadPoolExecutor(4) as pool:
        start = threading.Barrier(4)

        def serve(number: int) -> bool:
            with app.cycle(session=number):
                start.wait()
                return current.session == number and current.state is app.state

        with app:
            assert all(pool.map(serve, range(4)))
            assert pool.submit(lambda: getattr(current, "settings", None)).result() is None


def test_tasks_see_their_own_cycle(app: Context) -> None:
    """All of them begin before the first one ends."""
    write(app, up=SETS_UP)

    async def serve(number: int, start: asyncio.Barrier) -> bool:
        with app.cycle(session=number):
            await start.wait()
            return bool(current.session == number)

    async def all_at_once() -> list[bool]:
        start = asyncio.Barrier(3)
        return await asyncio.gather(*(serve(number, start) for number in range(3)))

    assert asyncio.run(all_at_once()) == [True, True, True]


# -- plugins by name --


def test_a_plugin_is_the_same_however_it_is_named(app: Context, tmp_path: Path) -> None:
    """NAME, NAME:CLASS, FILE.py:CLASS and metadata share one plugin state: that of its module and class."""
    write(app, counts=COUNTS)
    file = app.settings.plugins_dir / "counts.py"
    metadata = file.with_name("counts.json")
    metadata.write_text(json.dumps({"pluginModule": "counts", "pluginName": "Counts"}), encoding="utf-8")
    program = (
        "import sys\nfrom holdfast.context import Context\n"
        "with Context() as app:\n    print(app.run(sys.argv[1], config={'by': 10}).status)\n"
    )
    for name in ("counts", "counts:Counts", f"{file}:Counts", str(metadata)):
        done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("done\n", "")
    assert count(app.client, "counts:Counts") == 40
    runs = [run for run in app.client.search({"type": "PluginRun"}) if isinstance(run, PluginRun)]
    assert {(run.pluginModule, run.pluginName) for run in runs} == {("counts", "Counts")}


def test_a_run_takes_configuration_state_and_progress(app: Context) -> None:
    """And its outcome says how it ended; an error of the plugin is one, and is not raised."""
    write(
        app,
        counts=COUNTS + "        [None for _ in self.track([1, 2])]\n        if self.by == 7: raise ValueError('no')\n",
    )
    seen: list[tuple[int, int | None]] = []
    outcome = app.run("counts", config={"by": 3}, state="other", on_progress=lambda *step: seen.append(step))
    assert (outcome.status, outcome.exit_code) == ("done", 0)
    assert seen[-1] == (2, 2)
    assert count(app.client, "counts:Counts", "other") == 3
    failed = app.run("counts", config={"by": 7})
    assert (failed.status, failed.error, failed.exit_code) == ("error", "ValueError: no", 7)
    begun = app.client.search({"type": "PluginRun", "[[edges]]": True})
    app.run("counts", is_new=True)
    assert len(app.client.search({"type": "PluginRun"})) == len(begun) + 1
    with pytest.raises(InvalidError, match="Counts has no setting 'bye'"):
        app.run("counts", config={"bye": 1})


def test_a_run_has_the_code_that_serves_now(app: Context) -> None:
    """After a reload the new one; until the next cycle does that, or if the new one does not load, the old one."""
    write(app, counts=COUNTS)
    app.run("counts")
    write(app, counts=COUNTS.replace("self.by = by", "self.by = 100"))
    app.plugins.detect(reset_all=True)
    app.run("counts")
    assert count(app.client, "counts:Counts") == 2
    assert app.plugins.load("counts", force=True)
    app.run("counts")
    assert count(app.client, "counts:Counts") == 102
    write(app, counts="1 / 0")
    assert not app.plugins.load("counts", force=True)
    app.run("counts:Counts")
    assert count(app.client, "counts:Counts") == 202


def test_a_plugin_may_have_setup_and_a_class(app: Context) -> None:
    """It is set up before its first run, also without a cycle, and in each cycle after that."""
    write(app, both=SETS_UP + COUNTS)
    assert app.run("both").status == "done"
    assert app.deployment_settings.ups == 1
    with app.cycle():
        pass
    assert app.deployment_settings.ups == 2


def test_a_class_alone_is_a_plugin_that_serves(app: Context) -> None:
    """There is nothing to call in a cycle; also if it is in a module of its package, and has a setup() of its own."""
    write(app, counts=COUNTS + "\n    def setup(self):\n        self.state.is_set_up = True\n")
    package = app.settings.plugins_dir / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from .deep import Counts\n")
    (package / "deep.py").write_text(COUNTS)
    with app.cycle():
        assert app.plugins.registry == {"counts": ("unknown", True), "package": ("unknown", True)}
    app.run("package")
    assert count(app.client, "package:Counts") == 1


@pytest.mark.parametrize(
    "text, said",
    [
        (SETS_UP, "plugin 'odd' cannot be run: it has no class with run()"),
        ("from holdfast import StatefulPlugin\n" + SETS_UP, "it has no class with run()"),
        ("from counts_of_others import Counts\n" + SETS_UP, "it has no class with run()"),
        (
            COUNTS + "class More(Counts): pass\n",
            "it has several classes with run(); name one: 'odd:Counts' or 'odd:More'",
        ),
    ],
)
def test_a_module_without_a_class_or_with_several_is_refused_and_says_what_to_do(
    text: str, said: str, app: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it imports does not count; nothing is written, not even a Pod."""
    (tmp_path / "counts_of_others.py").write_text(COUNTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    write(app, odd=text)
    with pytest.raises(InvalidError) as caught:
        app.run("odd")
    assert said in str(caught.value)
    assert not (app.settings.home / "pods").exists()


def test_what_is_private_or_has_no_run_is_no_plugin_to_be_run(app: Context) -> None:
    """So a module may have bases; one name for the same class is enough. By its name each class can be run."""
    text = COUNTS.replace("Counts(", "_Counts(") + "\nclass Counts(_Counts):\n    pass\n\nAlias = Counts\n"
    write(app, odd=text.replace("\nclass _Counts(", "\nclass Base(StatefulPlugin): pass\nclass _Counts(", 1))
    assert app.run("odd").status == "done"
    assert app.run("odd:_Counts").status == "done"


@pytest.mark.parametrize(
    "name, kind, said",
    [
        ("absent", InvalidError, "there is no plugin 'absent': the NAME of one in the plugins' folder"),
        ("absent:Counts", NotFoundError, "there is no module 'absent'"),
        ("counts:Absent", NotFoundError, "module 'counts' has no class 'Absent'"),
        ("counts:", InvalidError, "there is no plugin 'counts:'"),
        ("", InvalidError, "there is no plugin ''"),
        ("_private", InvalidError, "there is no plugin '_private'"),
        ("bad", PluginError, "plugin 'bad' failed: ZeroDivisionError"),
        ("needs", PluginError, "it needs 'not_installed_here', which is not there"),
        ("fails", PluginError, "plugin 'fails' failed: ValueError: in setup"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(name: str, kind: type[Exception], said: str, app: Context) -> None:
    """One that fails to be set up is deactivated, and is not run either."""
    write(
        app,
        counts=COUNTS,
        _private=COUNTS,
        bad="1 / 0",
        needs="import not_installed_here\n" + COUNTS,
        fails=COUNTS + "\ndef setup():\n    raise ValueError('in setup')\n",
    )
    for _ in range(2):
        with pytest.raises(kind) as caught:
            app.run(name)
        assert said in str(caught.value)


def test_a_plugin_that_was_deactivated_in_a_cycle_is_not_run(app: Context) -> None:
    """Until it is loaded again."""
    write(app, tires=COUNTS + SETS_UP + "    if current.settings.ups == 2: raise ValueError('tired')\n")
    with app:
        app.run("tires")
        app.plugins.setup_all()
        with pytest.raises(PluginError, match="plugin 'tires' failed: ValueError: tired"):
            app.run("tires")
        assert app.plugins.load("tires", force=True)
        assert app.run("tires").status == "done"


def test_a_plugin_that_was_installed_later_is_found(app: Context) -> None:
    """Without a detect() in between."""
    write(app, one=COUNTS)
    app.run("one")
    write(app, two=COUNTS)
    assert app.run("two").status == "done"


DISTRIBUTION = "installed_for_context"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a distribution that has plugins as entry points."""
    folder = tmp_path / "site"
    info = folder / f"{DISTRIBUTION}-1.dist-info"
    info.mkdir(parents=True)
    (folder / f"{DISTRIBUTION}.py").write_text(COUNTS + "\nclass Others(Counts):\n    pass\n" + SETS_UP)
    (folder / f"{DISTRIBUTION}_alone.py").write_text(COUNTS)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[holdfast.plugins]\n"
        f"by-class = {DISTRIBUTION}:Others\n"
        f"by-module = {DISTRIBUTION}_alone\n"
        f"of-several = {DISTRIBUTION}\n"
        f"{DISTRIBUTION}_alone = {DISTRIBUTION}:Others\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.startswith(DISTRIBUTION)]:
        del sys.modules[name]


def test_an_entry_point_names_a_class_or_a_module_with_one(app: Context, installed: Path) -> None:
    """Its id is that of module and class, as if these were named; what is in the folder comes first."""
    assert app.run("by-class").status == "done"
    assert app.run(f"{DISTRIBUTION}:Others").status == "done"
    assert count(app.client, f"{DISTRIBUTION}:Others") == 2
    assert app.run("by-module").status == "done"
    assert count(app.client, f"{DISTRIBUTION}_alone:Counts") == 1
    app.run(f"{DISTRIBUTION}_alone:Counts")  # a module and a class, whatever an entry point is called
    assert count(app.client, f"{DISTRIBUTION}_alone:Counts") == 2
    with pytest.raises(InvalidError, match=f"name one: '{DISTRIBUTION}:Counts' or '{DISTRIBUTION}:Others'"):
        app.run("of-several")
    assert app.plugins.registry["by-class"] == ("unknown", True)
    assert app.plugins.load("by-class", force=True)
    app.run("by-class")
    assert count(app.client, f"{DISTRIBUTION}:Others") == 3


def test_a_folder_without_code_and_a_private_module_are_no_plugins_by_name(app: Context) -> None:
    """For a command as for an application."""
    write(app, _private=COUNTS)
    (app.settings.plugins_dir / "data").mkdir()
    for name in ("data", "data:Counts", "_private"):
        assert find_named(name, app.settings.plugins_dir) is None
        with pytest.raises((InvalidError, NotFoundError)):
            app.run(name)


def test_a_run_is_found_again_by_its_id_wherever_it_was_begun(app: Context) -> None:
    """A launcher knows nothing but the id; the plugin is looked for in the plugins' folder of the home as well."""
    write(app, counts=COUNTS + "        if self.by == 7: raise RetryLater\n" + "from holdfast import RetryLater\n")
    outcome = app.run("counts", config={"by": 7})
    assert outcome.status == "ready"
    assert carry_out(app.settings, None, run_id=outcome.run, config={"by": 3}).status == "done"
    assert count(app.client, "counts:Counts") == 10


# -- the end --


def test_closing_ends_everything_and_does_so_once(home: Path) -> None:
    """Plugins are unloaded while the variables can still be written; then nothing can be asked for any more."""
    app = Context(home)
    write(app, leaves=LEAVES)
    with app:
        app.plugins.setup_all()
        client = app.client
    assert json.loads((home / "state" / "said.json").read_text()) == {"word": "bye"}
    with pytest.raises(UnavailableError):
        client.exists("any")
    app.close()
    for use in (lambda: app.client, lambda: app.plugins, lambda: app.snapshots, app.__enter__, lambda: app.run("any")):
        with pytest.raises(ConflictError, match="is closed: make another one"):
            use()


def test_a_part_that_fails_to_close_keeps_none_of_the_others_open(home: Path) -> None:
    """Its error is raised when all is done; a variable that could not be saved is kept, and can be saved later."""
    app = Context(home)
    client = app.client
    app.state.ui.theme = "dark"
    app.settings.state_dir.write_text("in the way")
    with pytest.raises(InvalidError, match="no folder"), app:
        pass
    with pytest.raises(UnavailableError):
        client.exists("any")
    app.close()
    app.settings.state_dir.unlink()
    app.state.save_all()
    assert json.loads((home / "state" / "ui.json").read_text()) == {"theme": "dark"}


def test_an_exception_ends_the_block_as_it_is_and_closes_all(home: Path) -> None:
    """With what was changed before it saved."""
    app = Context(home)
    app.state.ui.theme = "dark"
    with pytest.raises(ZeroDivisionError), app:
        raise ZeroDivisionError
    assert json.loads((home / "state" / "ui.json").read_text()) == {"theme": "dark"}
    assert getattr(current, "settings", None) is None


def test_a_context_is_entered_once(app: Context) -> None:
    """Other threads and tasks enter a cycle: the block belongs to who entered it."""
    with app, pytest.raises(ConflictError, match=r"is entered: use cycle\(\) elsewhere"), app:
        pass
