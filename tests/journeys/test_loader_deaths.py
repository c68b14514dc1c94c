"""A plugin that kills its process while it is set up does so twice; then the others start without it."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from holdfast.plugins.current import current
from holdfast.plugins.loader import PluginLoader

loader = PluginLoader("plugins", suspects=sys.argv[2] if sys.argv[2:] else None)
exec(sys.argv[1])
print(sorted((name, status) for name, (_, status) in loader.registry.items()))
"""
DIES = "import os, signal\ndef setup():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
SET_UP = "loader.setup_all()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a plugin that kills, between two that do not."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for name in ("a", "the_last_one"):
        (plugins / f"{name}.py").write_text("def setup(): pass\n")
    (plugins / "kills.py").write_text(DIES)
    return tmp_path


def start(folder: Path, code: str = SET_UP, *more: str) -> subprocess.CompletedProcess[str]:
    """Run an application that does ``code`` with its loader."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, code, *more],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("text", [DIES, DIES.replace("def setup():", "if True:"), "import os; os._exit(0)"])
def test_after_two_deaths_it_starts_deactivated_and_the_others_start(text: str, folder: Path) -> None:
    """Whether its setup() kills or its import; the registry and `failure` say so, in each process from then on."""
    (folder / "plugins" / "kills.py").write_text(text)
    assert [start(folder).stdout for _ in range(2)] == ["", ""]
    for _ in range(2):
        third = start(folder, SET_UP + "; print(loader.failure('kills'))")
        assert third.stdout == (
            "plugin 'kills' failed: it was being set up when the process died, 2 times; "
            "load('kills', force=True) tries again\n"
            "[('a', True), ('kills', False), ('the_last_one', True)]\n"
        )


def test_a_suspect_is_not_tried_again_by_a_session_that_asks_for_it(folder: Path) -> None:
    """A None that was kept in a session, or a reload of all at each start, would kill every process."""
    for _ in range(2):
        start(folder)
    asked = start(folder, "loader.registry['kills'] = None; loader.setup_all(reload_all=True); loader.setup_all()")
    assert "('kills', False)" in asked.stdout


def test_forced_it_is_tried_again_and_forgiven_when_it_goes_well(folder: Path) -> None:
    """One more death keeps it out; once it was set up, it has two deaths before it again."""
    for _ in range(2):
        start(folder)
    assert start(folder, "loader.load('kills', force=True)").returncode == -9
    assert "('kills', False)" in start(folder).stdout
    (folder / "plugins" / "kills.py").write_text("def setup(): pass\n")
    assert "('kills', False)" in start(folder).stdout
    assert "('kills', True)" in start(folder, "loader.load('kills', force=True)").stdout
    assert "('kills', True)" in start(folder).stdout
    (folder / "plugins" / "kills.py").write_text(DIES)
    assert [start(folder).stdout for _ in range(2)] == ["", ""]
    assert "('kills', False)" in start(folder).stdout


def test_one_death_and_a_good_start_are_forgotten(folder: Path) -> None:
    """A machine that was switched off in the wrong moment now and then makes nobody a suspect."""
    plugin = folder / "plugins" / "kills.py"
    for _ in range(3):
        plugin.write_text(DIES)
        assert start(folder).returncode == -9
        plugin.write_text("def setup(): pass\n")
        assert "('kills', True)" in start(folder).stdout


@pytest.mark.parametrize("ends", ["raise KeyboardInterrupt", "raise SystemExit", "1 / 0"])
def test_an_end_that_is_no_death_is_not_counted(ends: str, folder: Path) -> None:
    """Ctrl-C and exceptions are no deaths, however often."""
    (folder / "plugins" / "kills.py").write_text(f"def setup(): {ends}\n")
    for _ in range(3):
        start(folder)
    (folder / "plugins" / "kills.py").write_text("def setup(): pass\n")
    assert "('kills', True)" in start(folder).stdout


def test_a_death_later_than_the_first_set_up_makes_no_suspect(folder: Path) -> None:
    """Which plugin it was nobody knows then, and a cycle is not slowed to note it."""
    text = "def setup(n=[]):\n    n.append(1)\n    if len(n) == 2: __import__('os')._exit(9)\n"
    (folder / "plugins" / "kills.py").write_text(text)
    for _ in range(3):
        assert start(folder, "loader.setup_all(); loader.setup_all()").returncode == 9
    assert "('kills', True)" in start(folder).stdout


def test_a_forked_child_does_not_speak_for_its_parent(folder: Path) -> None:
    """A child that returns from setup() leaves the note that its parent needs."""
    forks = "import os, signal\ndef setup():\n    if os.fork():\n"
    forks += "        os.wait()\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    (folder / "plugins" / "kills.py").write_text(forks)
    for _ in range(2):
        assert start(folder).returncode == -9
    assert "('kills', False)" in start(folder).stdout


def test_two_processes_that_start_together_count_as_one(folder: Path) -> None:
    """The one that finds the file taken goes without, and takes nobody who is being set up for dead."""
    waits = "import sys\ndef setup():\n    print('in', flush=True)\n    sys.stdin.readline()\n"
    (folder / "plugins" / "kills.py").write_text(DIES)
    start(folder)
    (folder / "plugins" / "kills.py").write_text(waits)
    command = [sys.executable, "-c", PROGRAM, SET_UP]
    with subprocess.Popen(command, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in\n"
        (folder / "plugins" / "kills.py").write_text("def setup(): pass\n")
        assert "('kills', True)" in start(folder).stdout
        assert "('kills', True)" in first.communicate("\n", timeout=60)[0]


@pytest.mark.parametrize("content", [b"", b"xkills\nxki", b"\xff\xfe\0\n\n", b">kills", b"xkills\n>a\nxkills\n"])
def test_a_file_that_is_odd_harms_nobody(content: bytes, folder: Path) -> None:
    """Half a line, somebody else's bytes, what a longer name left behind a shorter: at most one death counts."""
    (folder / "plugins" / ".suspects").write_bytes(content)
    (folder / "plugins" / "kills.py").write_text("def setup(): pass\n")
    assert start(folder).stdout == "[('a', True), ('kills', True), ('the_last_one', True)]\n"


def test_where_it_cannot_be_noted_plugins_are_set_up_all_the_same(folder: Path) -> None:
    """The log says once that nobody becomes a suspect."""
    (folder / "plugins" / "kills.py").write_text("def setup(): pass\n")
    (folder / "link").symlink_to("elsewhere")
    for place in ("absent/file", "link"):
        ran = start(folder, "loader.setup_all(); loader.load('a', force=True)", place)
        assert ran.stdout == "[('a', True), ('kills', True), ('the_last_one', True)]\n"
        assert ran.stderr.count("suspects.unknown: ") == 1


def test_a_process_forked_while_another_thread_loads_sets_its_plugins_up(folder: Path) -> None:
    """Nobody is left in it who would ever give the loader back."""
    text = "import __main__ as app\ndef setup(): pass\napp.is_in.set()\napp.may_go.wait(20)\n"
    (folder / "plugins" / "kills.py").write_text(text)
    forks = """
import os, signal, threading
is_in, may_go = threading.Event(), threading.Event()
thread = threading.Thread(target=loader.setup_all)
thread.start()
is_in.wait(20)
pid = os.fork()
may_go.set()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
    thread.join()
else:
    signal.alarm(30)
    loader.setup_all()
    assert loader.registry["kills"] == ("unknown", True)
    os._exit(0)
"""
    ran = start(folder, forks)
    assert ran.stdout == "[('a', True), ('kills', True), ('the_last_one', True)]\n", ran.stderr


def test_a_plugin_that_closes_all_files_harms_no_other(folder: Path) -> None:
    """As one does that wants to be a daemon."""
    (folder / "plugins" / "kills.py").write_text("import os\ndef setup(): os.closerange(3, 256)\n")
    ran = start(folder, "loader.setup_all(); loader.load('a', force=True)")
    assert ran.stdout == "[('a', True), ('kills', True), ('the_last_one', True)]\n", ran.stderr


def test_a_reload_of_all_lists_the_folder_once(folder: Path) -> None:
    """Listing it for each plugin would take seconds where much lies in it."""
    (folder / "plugins" / "kills.py").write_text("def setup(): pass\n")
    counts = "loader.setup_all(); listed = []\n"
    counts += "sys.addaudithook(lambda event, args: event in ('os.listdir', 'os.scandir') and listed.append(args[0]))\n"
    counts += "loader.setup_all(reload_all=True); print([str(path).endswith('plugins') for path in listed].count(True))"
    assert start(folder, counts).stdout.splitlines()[0] == "1"


def test_an_error_that_python_cannot_show_is_a_failure_like_others(folder: Path) -> None:
    """Here and not among the others, as it would end pytest, too."""
    text = "def setup(): raise SyntaxError('odd', ('f', 1, 'no number', 'text'))\n"
    (folder / "plugins" / "kills.py").write_text(text)
    ran = start(folder, "loader.setup_all(); print(loader.failure('kills'))")
    assert ran.stdout == (
        "plugin 'kills' failed: SyntaxError: odd (f, line 1); load('kills', force=True) tries again\n"
        "[('a', True), ('kills', False), ('the_last_one', True)]\n"
    ), ran.stderr
