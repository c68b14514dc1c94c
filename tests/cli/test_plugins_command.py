"""``holdfast plugins``: lists without loading, checks what may hang or die, begins one, removes only what may go."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast import Account, PersistentState, PluginRun, PodClient
from holdfast.disk import Disk
from tests.cli.conftest import Call

GOOD = '''
from holdfast import Item, StatefulPlugin

__version__ = "1.2"

class Note(Item):
    number: int | None = None

class Model:
    def get_state(self):
        return {"a": 1}

    def set_state(self, tree):
        pass

class Good(StatefulPlugin):
    """Keeps a variable, a result, a snapshot and an item."""

    schema_classes = [Note]

    def setup(self):
        self.snapshots.register("model", Model())

    def run(self):
        self.state.a = 1
        self.once("key", lambda: 2)
        self.client.create(Note(3))

def setup():
    pass
'''

DEADLY = "import os\ndef setup():\n    os._exit(3)\n"
SPOILS = "import os\nopen(os.environ['HOLDFAST_HOME'].removesuffix('home') + 'notes', 'w').write('{}')\n"
SETUP = "def setup():\n    pass\n"
WAITS = """
from holdfast import StatefulPlugin

class Waits(StatefulPlugin):
    def run(self):
        self.state.a = 1
        print("waiting", flush=True)
        input()
"""
LOADER = "import sys, holdfast\nholdfast.Context(sys.argv[1]).plugins.setup_all()"
"""What an application does; it dies of `DEADLY`."""


@pytest.fixture
def plugins(home: Path) -> Path:
    """The folder of the plugins, where there are none yet."""
    folder = home / "plugins"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a distribution "some-notes", whose plugin is called notes."""
    folder = tmp_path / "installed"
    info = folder / "some_notes-4.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-notes\nVersion: 4.5\n")
    (info / "entry_points.txt").write_text("[holdfast.plugins]\nnotes = some_notes.main\n")
    (folder / "some_notes").mkdir()
    (folder / "some_notes" / "__init__.py").touch()
    (folder / "some_notes" / "main.py").write_text(GOOD)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return folder


STARTS = """
import os

def setup():
    ready, done = os.pipe()
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        with open({fifo!r}, "w") as file:
            file.write("here\\n")
            file.flush()
            os.write(done, b"x")
            while True:
                pass
    os.read(ready, 1)
    {then}
"""
"""Has a process that is nobody's child, in a session of its own, and goes on; then does something."""


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A named pipe, which reads as ended when nobody holds its other end any more."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


# -- list ------------------------------------------------------------------------------------------------------------


def test_plugins_of_folder_and_distributions_are_listed_and_none_is_loaded(
    call: Call, plugins: Path, installed: Path
) -> None:
    """One that would hang does not; nothing is written into the folder, nor the home."""
    (plugins / "hangs.py").write_text("import time\ntime.sleep(1000)\n")
    (plugins / "_private.py").touch()

    answer = call("plugins", "list")

    assert (answer.code, answer.err) == (0, "")
    assert answer.rows == [
        ["name", "version", "kind", "status", "where", "reason"],
        ["hangs", "", "", "found", str(plugins), ""],
        ["notes", "4.5", "", "found", "some_notes.main of some-notes 4.5", ""],
    ]
    assert sorted(path.name for path in plugins.iterdir()) == ["_private.py", "hangs.py"]
    assert [path.name for path in plugins.parent.iterdir()] == ["plugins"]


def test_a_home_without_plugins_has_none_and_nothing_is_made(call: Call, home: Path) -> None:
    """Reading makes nothing."""
    answer = call("plugins", "list", "--json")

    assert (answer.code, answer.document) == (0, {"folder": str(home / "plugins"), "plugins": []})
    assert not home.exists()


def test_with_check_a_list_says_versions_kinds_and_what_fails(call: Call, plugins: Path, installed: Path) -> None:
    """The version of a module counts before that of its distribution."""
    (plugins / "broken.py").write_text("1 / 0\n")
    (plugins / "only_setup.py").write_text(SETUP)
    (plugins / "only_run.py").write_text(GOOD.partition("def setup():\n    pass")[0])

    listed = call("plugins", "list", "--check", "--json").document["plugins"]

    assert {each["name"]: (each["version"], each["kind"], each["status"]) for each in listed} == {
        "broken": ("unknown", None, "failed"),
        "notes": ("1.2", "both", "works"),
        "only_run": ("1.2", "run", "works"),
        "only_setup": ("unknown", "setup", "works"),
    }
    assert "ZeroDivisionError" in listed[0]["reason"]


def test_that_one_hides_another_is_told_by_name(shell: Call, plugins: Path, installed: Path) -> None:
    """In words on standard error; the answer is none the less one."""
    (plugins / "notes.py").write_text(SETUP)
    (plugins / "two-words.py").write_text(SETUP)

    answer = shell("holdfast", "plugins", "list", "--json")

    assert (answer.code, [each["name"] for each in answer.document["plugins"]]) == (0, ["notes"])
    assert answer.err.splitlines() == [
        f"plugin.skipped: no plugin can be called as {str(plugins / 'two-words.py')!r} is",
        f"plugin.hidden: 'notes' of 'some_notes.main' by that of {str(plugins)!r}",
    ]


# -- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, exit_code, found",
    [
        ("1 / 0", 7, "plugin 'plug' failed: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('bye')", 7, "plugin 'plug' failed: SystemExit: bye"),
        ("def setup():\n  raise OSError('no')", 7, "plugin 'plug' failed: OSError: no"),
        ("def setup(:", 7, "SyntaxError"),
        ("import not_there", 7, "it needs 'not_there', which is not there"),
        (DEADLY, 7, "it ended its process: exit code 3"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", 7, "it ended its process: SIGSEGV"),
        ("import os\nos.kill(os.getpid(), 40)", 7, "it ended its process: signal 40"),
        ("import os\nos.fork()\n1 / 0", 7, "ZeroDivisionError"),
        ("raise ValueError('half a character: \\ud800')", 7, "half a character: ?"),
        (SPOILS.format('{"check": "load", "ver'), 7, "the notes of this check are not what it wrote"),
        (SPOILS.format('{"foreign": 1}\\n'), 7, "the notes of this check are not what it wrote"),
        ("x = 1", 2, "it must have one, or a class with run()"),
        ("async def setup(): pass", 2, "is async or a generator"),
    ],
)
def test_a_plugin_that_does_not_work_is_said_to_be_so_by_kind(
    code: str, exit_code: int, found: str, call: Call, plugins: Path
) -> None:
    """Whatever it does to its process."""
    (plugins / "plug.py").write_text(code)

    answer = call("plugins", "check", "plug", "--json")

    assert answer.code == exit_code
    [plugin] = answer.document["plugins"]
    [failure] = plugin["findings"]
    assert (failure["verdict"], failure["exit_code"]) == ("fail", exit_code)
    assert found in failure["found"]


def test_a_plugin_that_hangs_is_ended_with_all_it_has_started_and_is_said_to_hang_where(
    call: Call, plugins: Path, tmp_path: Path
) -> None:
    """It ends with 6; of what it forked nothing runs on."""
    lock = tmp_path / "lock"
    (plugins / "plug.py").write_text(
        f"import fcntl, os, time\nfile = open({str(lock)!r}, 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "os.fork()\ndef setup():\n    time.sleep(1000)\n"
    )

    answer = call("plugins", "check", "plug", "--timeout", "4", "--json")

    assert answer.code == 6
    [plugin] = answer.document["plugins"]
    assert [each["found"] for each in plugin["findings"]] == [
        "it was not done after 4 s; the output shows where it was"
    ]
    assert 'plug.py", line 6 in setup' in plugin["output"]
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for ever, if anybody is left who has it


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose descendant a process is")
@pytest.mark.parametrize("then", ["pass", "os._exit(0)", "1 / 0"])
def test_what_a_plugin_has_started_ends_with_its_check_wherever_it_went(
    then: str, call: Call, plugins: Path, fifo: Path
) -> None:
    """However the plugin itself ends."""
    (plugins / "plug.py").write_text(STARTS.format(fifo=str(fifo), then=then))
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)) as said:
        answer = call("plugins", "check", "plug")

        os.set_blocking(said.fileno(), True)
        assert said.read() == "here\n"  # waits for ever, if it goes on
    assert answer.code == (0 if then == "pass" else 7)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose descendant a process is")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_check_that_is_stopped_leaves_no_process_and_no_folder(
    number: signal.Signals, plugins: Path, tmp_path: Path, fifo: Path
) -> None:
    """While the plugin hangs, and has started something that does."""
    (plugins / "plug.py").write_text(STARTS.format(fifo=str(fifo), then="while True: pass"))
    (tmp_path / "tmp").mkdir()
    command = [Path(sys.executable).with_name("holdfast"), "plugins", "check", "plug"]
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path / "tmp")}) as process, fifo.open() as said:
        assert said.readline() == "here\n"
        process.send_signal(number)
        assert said.read() == ""  # waits for ever, if it goes on
    while list((tmp_path / "tmp").iterdir()):
        time.sleep(0.01)

    assert process.returncode == (130 if number == signal.SIGINT else -number)


def test_a_flood_of_output_fails_and_only_its_end_is_read(shell: Call, plugins: Path) -> None:
    """In a process that may not have as much memory as was printed."""
    (plugins / "plug.py").write_text(
        "import os\nos.ftruncate(1, (1 << 30) - 20)\nos.write(1, b'last words')\n"
        "def setup():\n    os.ftruncate(1, 8 << 30)\n"
    )
    command = f"ulimit -v 1000000; exec {Path(sys.executable).with_name('holdfast')} plugins check plug --json"

    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stderr) == (7, "")
    [plugin] = json.loads(ended.stdout)["plugins"]
    assert "File too large" in plugin["findings"][0]["found"]
    assert "last words" in plugin["output"]


@pytest.mark.parametrize(
    "code, what, found",
    [
        ("class P(StatefulPlugin):\n  def run(self): yield", "P: methods", "run() would not run: it cannot yield"),
        (
            "class P(StatefulPlugin):\n  async def setup(self): pass\n  def run(self): pass",
            "P: methods",
            "setup() would not run: it cannot yield, nor be async",
        ),
        (
            "class P(StatefulPlugin):\n  class Config: pass\n  def run(self): pass",
            "P: Config",
            "Config must be a subclass of holdfast.PluginConfig",
        ),
        ("class P(StatefulPlugin):\n  state_version = 0\n  def run(self): pass", "P: state_version", "cannot be 0"),
        (
            """class Person(Item): firstName: int | None = None
class P(StatefulPlugin):
  schema_classes = [Person]
  def run(self): pass""",
            "P: schema_classes",
            "firstName",
        ),
    ],
)
def test_what_is_wrong_with_a_class_is_found_before_it_is_run(
    code: str, what: str, found: str, call: Call, plugins: Path
) -> None:
    """All else about it is looked at as well; it ends with 2 where the value is to be mended."""
    (plugins / "plug.py").write_text(f"from holdfast import Item, StatefulPlugin\n{code}\n")

    answer = call("plugins", "check", "plug", "--json")

    [failure] = [each for each in answer.document["plugins"][0]["findings"] if each["verdict"] == "fail"]
    assert failure["check"] == what
    assert found in failure["found"]
    assert answer.code == failure["exit_code"] == 2


def test_a_version_that_cannot_be_migrated_is_a_warning_and_metadata_must_name_a_class(
    call: Call, plugins: Path
) -> None:
    """A warning ends with 0."""
    (plugins / "plug").mkdir()
    (plugins / "plug" / "__init__.py").write_text(
        "from holdfast import StatefulPlugin\nclass P(StatefulPlugin):\n  state_version = 2\n  def run(self): pass\n"
    )
    warned = call("plugins", "check", "plug")
    (plugins / "plug" / "metadata.json").write_text('{"pluginModule": "plug", "pluginName": "Q"}')
    failed = call("plugins", "check", "plug")

    assert (warned.code, failed.code) == (0, 2)
    assert "warn plug: P: state_version: it is 2, but without migrate_state()" in warned.out
    assert "ok   plug: metadata: there is none" in warned.out
    assert "names 'Q', which is none of P" in failed.out


def test_metadata_that_would_not_lead_to_the_plugin_fails_as_its_run_does(
    call: Call, shell: Call, plugins: Path
) -> None:
    """In the package itself, which is not looked for there; beside it all is well."""
    (plugins / "plug").mkdir()
    (plugins / "plug" / "__init__.py").write_text(
        "from holdfast import PluginBase\nclass P(PluginBase):\n  def run(self): pass\n"
    )
    (plugins / "plug" / "metadata.json").write_text('{"pluginModule": "plug", "pluginName": "P"}')
    failed, not_run = call("plugins", "check", "plug"), shell("holdfast", "run", plugins / "plug" / "metadata.json")
    (plugins / "plug" / "metadata.json").rename(plugins / "metadata.json")
    well, run = call("plugins", "check", "plug"), shell("holdfast", "run", plugins / "metadata.json")

    assert (failed.code, not_run.code) == (2, 4)
    assert "does not lead to 'plug'" in failed.out
    assert (well.code, run.code) == (0, 0)


def test_a_class_that_cannot_be_run_fails_as_its_run_does(call: Call, shell: Call, installed: Path) -> None:
    """An entry point may name what only Python finds."""
    (installed / "some_notes" / "main.py").write_text(
        "from holdfast import PluginBase\nclass Outer:\n  class Inner(PluginBase):\n    def run(self): pass\n"
    )
    entry = "[holdfast.plugins]\nnotes = some_notes.main:Outer.Inner\n"
    (installed / "some_notes-4.5.dist-info" / "entry_points.txt").write_text(entry)

    answer, run = call("plugins", "check", "notes"), shell("holdfast", "run", "notes")

    assert (answer.code, run.code) == (2, 4)
    assert "fail notes: run: module 'some_notes.main' has no class 'Outer.Inner'" in answer.out


def test_a_check_is_given_what_an_application_would_give_and_touches_neither_home_nor_output(
    call: Call, plugins: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings and session are there, and empty; variables go elsewhere; standard output stays one document.

    So it is with all that the environment says of where things are: the user's variables, his Pod on a server.
    """
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(tmp_path / "variables"))
    monkeypatch.setenv("POD_FULL_ADDRESS", "http://127.0.0.1:1")
    (plugins / "plug.py").write_text(
        "from holdfast import Context, PodClient, current\n"
        "def setup():\n"
        "    current.settings['a'] = current.deployment_settings.b = 1\n"
        "    current.session.c = 1\n"
        "    current.state.plug.d = 1\n"
        "    PodClient().close()\n"
        "    with Context() as app:\n"
        "        app.state.plug.e = 1\n"
        "    print('printed')\n"
    )

    answer = call("plugins", "check", "all", "--json")

    assert answer.code == 0
    assert answer.document["plugins"][0]["output"] == "printed\n"
    assert [path.name for path in home.iterdir()] == ["plugins"]
    assert not (tmp_path / "variables").exists()


def test_of_several_that_fail_the_first_decides_and_one_that_there_is_not_is_named(call: Call, plugins: Path) -> None:
    """People see the traceback of each on standard error."""
    (plugins / "a.py").write_text(SETUP)
    (plugins / "b.py").write_text("x = 1\n")
    (plugins / "c.py").write_text("1 / 0\n")

    answer, absent = call("plugins", "check", "all"), call("plugins", "check", "a", "d")

    assert [line.split()[0] for line in answer.out.splitlines()] == ["ok", "fail", "fail"]
    assert answer.code == 2
    assert "1 / 0" in answer.err
    assert (absent.code, absent.out) == (4, "")
    assert "there is no plugin 'd'" in absent.err


# -- new -------------------------------------------------------------------------------------------------------------


def test_a_new_project_is_written_and_never_over_something(
    call: Call, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it works is shown where it is installed (tests/packaging)."""
    (tmp_path / "taken").mkdir()
    answer = call("plugins", "new", "my_notes", "--dir", tmp_path, "--json")

    assert answer.code == 0
    written = [Path(path).relative_to(tmp_path / "my_notes").as_posix() for path in answer.document["written"]]
    assert sorted(written) == [
        "README.md",
        "metadata.json",
        "my_notes/__init__.py",
        "pyproject.toml",
        "tests/test_my_notes.py",
    ]
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert (modes["my_notes"], modes["my_notes/tests"], modes["my_notes/README.md"]) == (0o755, 0o755, 0o644)
    assert call("plugins", "new", "my_notes", "--dir", tmp_path).code == 5
    assert call("plugins", "new", "taken", "--dir", tmp_path).code == 5
    absent = call("plugins", "new", "other", "--dir", tmp_path / "absent")
    assert (absent.code, f"there is no folder {str(tmp_path / 'absent')!r}" in absent.err) == (4, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_notes", "taken"]


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "a-b", "_a", "a_", "é", "a.b", "../a", "class", "none", "true", "holdfast", "tests"]
)
def test_a_name_that_no_module_or_no_distribution_can_have_is_refused(name: str, call: Call, tmp_path: Path) -> None:
    """Nothing is written."""
    answer = call("plugins", "new", name, "--dir", tmp_path)

    assert answer.code == 2
    assert f"a new plugin cannot be called {name!r}" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["json", "pydantic", "there"])
def test_a_name_that_leads_elsewhere_already_is_refused(name: str, call: Call, plugins: Path, tmp_path: Path) -> None:
    """A module of Python's own, an installed one, another plugin."""
    (plugins / "there.py").write_text(SETUP)

    assert call("plugins", "new", name, "--dir", tmp_path).code == 5
    assert call("plugins", "new", name, "--single-file").code == 5
    assert [path.name for path in plugins.iterdir()] == ["there.py"]


def test_a_project_that_cannot_be_written_whole_is_not_there(shell: Call, home: Path, tmp_path: Path) -> None:
    """On a disk that takes 512 bytes of a file."""
    command = f"ulimit -f 1; exec {shlex.quote(str(Path(sys.executable).with_name('holdfast')))} plugins new a_plugin"

    ended = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, check=False
    )

    assert ended.returncode == 6
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_project_left_that_was_killed_goes(call: Call, tmp_path: Path) -> None:
    """When the next one is written."""
    code = "import os, sys\nfrom holdfast.disk import Disk\nwith Disk().temporary_folder(sys.argv[1]): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1

    assert call("plugins", "new", "a_plugin", "--dir", tmp_path).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a_plugin"]


def test_a_single_file_goes_into_the_plugins_folder_and_works(call: Call, shell: Call, home: Path) -> None:
    """It is found, checked and run by its name; the folder is made if there is none."""
    assert call("plugins", "new", "counter", "--single-file").code == 0

    assert call("plugins", "check", "counter").code == 0
    assert shell("holdfast", "run", "counter").code == 0
    assert shell("holdfast", "state", "get", "counter:Counter", "counted").out == "10\n"


# -- reload ----------------------------------------------------------------------------------------------------------


def test_a_plugin_that_processes_died_of_is_deactivated_until_it_is_reloaded(call: Call, plugins: Path) -> None:
    """After two deaths; what else the folder has is untouched."""
    (plugins / "deadly.py").write_text(DEADLY)
    (plugins / "other.py").write_text(SETUP)
    died = [subprocess.run([sys.executable, "-c", LOADER, plugins.parent], check=False).returncode for _ in range(3)]

    before = [row[3] for row in call("plugins", "list").rows]
    reloaded = [call("plugins", "reload", "deadly", "--json").document["was_deactivated"] for _ in range(2)]
    after = [row[3] for row in call("plugins", "list").rows]

    assert died == [3, 3, 0]
    assert before == ["status", "deactivated", "found"]
    assert reloaded == [True, False]
    assert after == ["status", "found", "found"]
    assert subprocess.run([sys.executable, "-c", LOADER, plugins.parent], check=False).returncode == 3
    assert call("plugins", "reload", "absent").code == 4


def test_nothing_is_let_in_while_an_application_loads(call: Call, plugins: Path) -> None:
    """The file that notes deaths is then its own: the answer is to try again."""
    (plugins / "deadly.py").write_text(DEADLY)
    (plugins.parent / ".suspects").write_text("xdeadly\nxdeadly\n")

    with Disk().lock(plugins.parent / ".suspects"):
        assert call("plugins", "reload", "deadly").code == 6
        assert call("plugins", "remove", "deadly", "--yes").code == 6
    assert (plugins / "deadly.py").exists()
    assert [row[3] for row in call("plugins", "list").rows] == ["status", "deactivated"]


# -- remove ----------------------------------------------------------------------------------------------------------


def test_a_plugin_goes_and_what_it_has_kept_stays(call: Call, shell: Call, plugins: Path, home: Path) -> None:
    """By default; a dry run changes nothing, and in a pipe somebody must have agreed."""
    (plugins / "good.py").write_text(GOOD)
    (plugins / "good").mkdir()  # no package: a folder of its data, say
    (plugins / "good" / "data.txt").touch()
    assert shell("holdfast", "run", "good").code == 0

    assert call("plugins", "remove", "good").code == 2
    dry = call("plugins", "remove", "good", "--dry-run")
    assert (dry.code, (plugins / "good.py").exists()) == (0, True)
    removed = call("plugins", "remove", "good", "--yes", "--json")

    assert ["stays", "plugin state good:Good default"] in dry.rows
    assert (removed.code, removed.document["code"]) == (0, [str(plugins / "good.py")])
    assert [path.name for path in plugins.iterdir() if path.name != "__pycache__"] == ["good"]
    assert shell("holdfast", "state", "get", "good:Good", "a").out == "1\n"
    assert call("plugins", "remove", "good", "--yes").code == 4


def test_with_erase_data_all_that_it_has_kept_goes_and_items_and_accounts_stay(
    call: Call, shell: Call, plugins: Path, home: Path
) -> None:
    """States, variables, results, snapshots, runs and their logs, of each plugin state; none of another plugin's."""
    (plugins / "good.py").write_text(GOOD)
    (plugins / "good_too.py").write_text(GOOD)
    (plugins / "good.json").write_text(
        '{"pluginModule": "good", "pluginName": "Good", "account": {"service": "kennel"}}'
    )
    assert shell("holdfast", "run", "good_too").code == 0
    others = {path for path in home.rglob("*") if "snapshots" in path.parts or "runs" in path.parts}
    assert shell("holdfast", "run", "good").code == 0
    assert shell("holdfast", "run", plugins / "good.json", "--state", "other").code == 0

    answer = call("plugins", "remove", "good", "--erase-data", "--yes", "--json")

    assert answer.code == 0, answer.err
    data = answer.document["data"]
    assert (sorted(data["states"]), data["runs"]) == (["good:Good default", "good:Good other"], 2)
    assert data["variables"] >= 2 * 2
    assert len(data["paths"]) == 4
    with PodClient() as client:
        states = [each for each in client.search({"type": "PersistentState"}) if isinstance(each, PersistentState)]
        runs = [each for each in client.search({"type": "PluginRun"}) if isinstance(each, PluginRun)]
        gone = [each.id for each in client.search({"type": "PersistentState", "deleted": True})]
        assert [state.pluginId for state in states] == ["good_too:Good"]
        assert [run.pluginModule for run in runs] == ["good_too"]
        assert [dict(client.variables(str(id_), space)) for id_ in gone for space in ("", "once")] == [{}] * 4
        assert [client.find_snapshot(str(id_)) for id_ in gone] == [None, None]
        assert len(client.search({"type": "Note"})) == 3
        [account] = client.search({"type": "Account"})
        assert isinstance(account, Account)
    assert {path for path in home.rglob("*") if "snapshots" in path.parts or "runs" in path.parts} == others


def test_nothing_is_removed_while_a_run_works_and_what_a_dead_one_held_can_be_erased(
    call: Call, plugins: Path, home: Path
) -> None:
    """The refusal names the run. Code that was removed before does not keep its data from being erased."""
    (plugins / "waits.py").write_text(WAITS)
    program = Path(sys.executable).with_name("holdfast")
    env = os.environ | {"HOLDFAST_HOME": str(home)}
    words = [program, "run", "waits"]
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        refused = [call("plugins", "remove", "waits", "--yes", *more) for more in ([], ["--erase-data"])]
        process.send_signal(signal.SIGKILL)

    assert [answer.code for answer in refused] == [5, 5]
    assert all("is held by run" in answer.err for answer in refused)
    assert (plugins / "waits.py").exists()
    assert call("plugins", "remove", "waits", "--yes").code == 0
    assert call("plugins", "remove", "waits", "--erase-data", "--yes").code == 0
    assert call("plugins", "remove", "waits", "--erase-data", "--yes").code == 4
    with PodClient() as client:
        assert client.search({"type": "PluginRun"}) == []


def test_what_is_installed_is_not_removed_and_the_command_that_does_is_named(call: Call, installed: Path) -> None:
    """By its distribution, whatever the plugin is called."""
    answer = call("plugins", "remove", "notes", "--yes")

    assert answer.code == 2
    assert "pip uninstall some-notes removes it" in answer.err


def test_nothing_is_erased_that_may_be_of_an_installed_plugin(
    call: Call, shell: Call, plugins: Path, installed: Path
) -> None:
    """Whether the file of the same name is there or has gone; that has no modules, so its own data is what it names."""
    (plugins / "some_notes.py").write_text(GOOD)
    assert [shell("holdfast", "run", name).code for name in ("some_notes", "notes")] == [0, 0]
    erase = ["plugins", "remove", "some_notes", "--erase-data", "--yes"]

    refused = call(*erase)
    removed = call("plugins", "remove", "some_notes", "--yes", "--json")
    refused_too = call(*erase)
    (installed / "some_notes-4.5.dist-info" / "entry_points.txt").unlink()
    erased = call(*erase, "--json")

    assert [refused.code, removed.code, refused_too.code, erased.code] == [2, 0, 2, 0]
    assert refused.err == refused_too.err
    assert "plugin 'notes' of the module 'some_notes.main' is installed: uninstall it first" in refused.err
    assert removed.document["data"]["states"] == ["some_notes:Good default"]
    assert sorted(erased.document["data"]["states"]) == ["some_notes.main:Good default", "some_notes:Good default"]


def test_of_a_link_only_the_link_goes_and_a_package_goes_whole(call: Call, plugins: Path, tmp_path: Path) -> None:
    """What a link leads to is somebody's work."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "__init__.py").write_text(SETUP)
    (plugins / "linked").symlink_to(tmp_path / "work")
    (plugins / "whole").mkdir()
    (plugins / "whole" / "__init__.py").write_text(SETUP)
    (plugins.parent / ".suspects").write_text("xwhole\nxwhole\n")

    assert call("plugins", "remove", "linked", "--yes").code == 0
    assert call("plugins", "remove", "whole", "--yes").code == 0

    assert list(plugins.iterdir()) == []
    assert (plugins.parent / ".suspects").read_text() == ""  # what comes under this name begins anew
    assert (tmp_path / "work" / "__init__.py").exists()
