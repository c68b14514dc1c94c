"""An application from its first start: the few lines that it takes, killed in between and started again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import Context
from tests.components.histories import FORTY, forty_commits, totals

EXAMPLES = Path(__file__).parents[2] / "examples" / "git_history"
FIVE_LINES = """
import holdfast

with holdfast.Context("~/.myapp") as app:
    app.plugins.setup_all()                                  # plugins/ in that folder
    app.run("git_history", config={"repository": "."})       # continues where it was
    print(app.state.ui.theme)
"""
THEME = """
from holdfast import current

def setup():
    if current.state.ui.theme is None:
        current.state.ui.theme = "dark"
"""
DIES = """        import os, signal
        if self.state.get("commits", 0) >= int(os.environ.get("DIE_AT", "1000")):
            os.kill(os.getpid(), signal.SIGKILL)
"""
COUNTS = """
from holdfast import StatefulPlugin

class Counts(StatefulPlugin):
    def run(self):
        self.state.count = self.state.get("count", 0) + 1
        print(self.state.count)
"""
PAGE = Path(__file__).parents[2] / "docs" / "application.md"
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A user's home whose application has two plugins: the example, which has a private module, and one with setup().

    The example imports a few commits at a time, and dies where the environment says.
    """
    plugins = tmp_path / ".myapp" / "plugins"
    plugins.mkdir(parents=True)
    text = (EXAMPLES / "git_history.py").read_text(encoding="utf-8")
    for old, new in (
        ("from git_repository import", "from ._git_repository import"),
        ("default=500", "default=7"),
        ("        items: dict[str, Item] = {}\n", DIES + "        items: dict[str, Item] = {}\n"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (plugins / "git_history.py").write_text(text, encoding="utf-8")
    (plugins / "_git_repository.py").write_text((EXAMPLES / "git_repository.py").read_text(encoding="utf-8"))
    (plugins / "theme.py").write_text(THEME)
    return tmp_path


def start(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these words, as a user who is in ``folder``."""
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | environ, capture_output=True, text=True, check=False
    )


def test_five_lines_run_a_plugin_that_is_killed_and_carries_on(user: Path, tmp_path: Path) -> None:
    """Literally. Killed twice, each start goes on behind what was committed; the last one has all, each commit once."""
    repository = forty_commits(tmp_path / "repository")
    application = ("-W", "error", "-c", FIVE_LINES)
    for imported in (14, 28):
        killed = start(repository.path, *application, HOME=str(user), DIE_AT=str(imported))
        assert (killed.returncode, killed.stdout) == (-9, "")
        with Context(user / ".myapp") as app:
            assert len(app.client.search({"type": "Commit"})) == imported
    done = start(repository.path, *application, HOME=str(user))
    assert (done.returncode, done.stdout, done.stderr) == (0, "dark\n", "")
    assert totals(user / ".myapp") == FORTY
    with Context(user / ".myapp") as app:
        assert len(app.client.search({"type": "PluginRun"})) == 1
    assert json.loads((user / ".myapp" / "state" / "ui.json").read_text()) == {"theme": "dark"}


def test_the_command_runs_a_plugin_of_the_folder_by_its_name(home: Path, tmp_path: Path) -> None:
    """The folder that the settings name; it is the plugin that the application runs, in the same plugin state."""
    (home / "mine").mkdir(parents=True)
    (home / "holdfast.toml").write_text("plugins_dir = 'mine'")
    (home / "mine" / "_shared.py").write_text(COUNTS)
    (home / "mine" / "counts.py").write_text("from ._shared import Counts as Base\n\nclass Counts(Base):\n    pass\n")
    runs = [start(tmp_path, "-m", "holdfast", "run", "counts") for _ in range(2)]
    assert [(each.returncode, each.stdout) for each in runs] == [(0, "1\n"), (0, "2\n")]
    with Context() as app:
        app.run("counts")
        [state] = app.client.search({"type": "PersistentState"})
        assert app.client.variables(state.id or "")["count"] == 3


def test_the_command_runs_an_installed_plugin_by_its_name(home: Path, tmp_path: Path) -> None:
    """That of its entry point."""
    info = tmp_path / "site" / "counting-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[holdfast.plugins]\ncount-up = counting_plugin\n")
    (tmp_path / "site" / "counting_plugin.py").write_text(COUNTS)
    done = start(tmp_path, "-m", "holdfast", "run", "count-up", PYTHONPATH=str(tmp_path / "site"))
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.parametrize(
    "text, code, said",
    [
        ("def setup(): pass\n", 2, "plugin 'odd' cannot be run: it has no class with run()"),
        (COUNTS + "\nclass More(Counts):\n    pass\n", 2, "name one: 'odd:Counts' or 'odd:More'"),
        ("import not_installed_here\n" + COUNTS, 7, "No module named 'not_installed_here'"),
        ("raise SystemExit(0)", 7, "module 'odd' cannot be imported: SystemExit: 0"),
    ],
)
def test_the_command_refuses_what_has_not_one_class_to_run(
    text: str, code: int, said: str, home: Path, tmp_path: Path
) -> None:
    """In one line; nothing is written."""
    (home / "plugins").mkdir(parents=True)
    (home / "plugins" / "odd.py").write_text(text)
    refused = start(tmp_path, "-m", "holdfast", "run", "odd")
    assert refused.returncode == code
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (home / "pods").exists()


def test_the_doctor_says_who_decided_each_setting(home: Path, tmp_path: Path) -> None:
    """For people and for programs."""
    home.mkdir()
    (home / "holdfast.toml").write_text("save_delay = 'none'")
    environ = {"HOLDFAST_STATE_DIR": str(tmp_path / "elsewhere")}
    told = start(tmp_path, "-m", "holdfast", "doctor", **environ).stdout.splitlines()
    assert told[:4] == [
        f"set  home: {home} (HOLDFAST_HOME)",
        f"set  state_dir: {tmp_path / 'elsewhere'} (HOLDFAST_STATE_DIR)",
        f"set  plugins_dir: {home / 'plugins'} (default)",
        f"set  save_delay: none ({home / 'holdfast.toml'})",
    ]
    document = json.loads(start(tmp_path, "-m", "holdfast", "doctor", "--json", **environ).stdout)
    assert document["settings"][3] == {
        "name": "save_delay",
        "value": "none",
        "source": "file",
        "where": str(home / "holdfast.toml"),
    }


def test_the_application_of_the_page_prints_what_its_comment_says(tmp_path: Path) -> None:
    """Each block is the file that its first line names; a second start carries its variables on."""
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [name for name, _ in blocks] == ["application.py", ".myapp/plugins/theme.py", ".myapp/plugins/counter.py"]
    for name, text in blocks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for counted in (2, 4):
        ran = start(tmp_path, "-W", "error", "application.py", HOME=str(tmp_path))
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "dark\n", "")
        with Context(tmp_path / ".myapp") as app:
            [state] = app.client.search({"type": "PersistentState"})
            assert app.client.variables(state.id or "")["count"] == counted


def test_the_settings_of_the_page_are_explained_as_it_says(home: Path) -> None:
    """The file, then what the doctor prints of it."""
    page = PAGE.read_text(encoding="utf-8")
    [file] = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    [told] = re.findall(r"^```\n(set .*?)^```$", page, re.MULTILINE | re.DOTALL)
    home.mkdir()
    (home / "holdfast.toml").write_text(file, encoding="utf-8")
    printed = start(home, "-m", "holdfast", "doctor").stdout
    assert printed.startswith(told.replace("/srv/app", str(home)))
