"""Seed 004, template plugins: its snippets, with an import added, in an application that has a folder ``plugins``."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

APPLICATION = """
from pathlib import Path

import holdfast
from holdfast import current

PluginLoader = holdfast.PluginLoader(Path(__file__).parent, registry=lambda: current.session.s3.plugins)
"""

PLUGIN = """
from holdfast import current

# Example plugin
__version__ = "0.0.0"

def setup():

    # The plugin can access and alter deployment settings
    settings = current.deployment_settings
    settings.altered = settings.get("altered", 0) + 1
"""

ASK = """
from holdfast import current

# The session holds the registry of current plugins
registry = current.session.s3.plugins

# The registry is a dict of tuples {plugin_name: (version, status)}
plugin_info = registry.get(plugin_name)

# - version is the __version__ string defined by the plugin or "unknown"
# - status is True if the plugin's setup function was successful, otherwise False
if plugin_info:
    version, status = plugin_info
else:
    # Plugin has not been loaded yet
    version, status = None, None
"""

FORCE = """
# Enforce immediate reload of a plugin
from plugins import PluginLoader
PluginLoader.load(plugin_name, force=True)
"""

PUT_NONE = """
from holdfast import current

# Setting the registry entry to None triggers a reload in the next request cycle
registry = current.session.s3.plugins
registry[plugin_name] = None
"""

RELOAD_ALL = """
# Re-run plugin detection and run all setups:
from plugins import PluginLoader
PluginLoader.setup_all(reload_all=True)
"""

DETECT = """
# Re-run plugin detection, but without running setups:
from plugins import PluginLoader
PluginLoader.detect(reset_all=True)
"""


class Settings(dict[str, int]):
    """Deployment settings with attributes."""

    def __setattr__(self, name: str, value: int) -> None:
        self[name] = value


class Application:
    """A web application with one user."""

    def __init__(self, loader: Any, folder: Path) -> None:
        self.loader, self.folder = loader, folder
        self.settings = Settings()
        self.session = SimpleNamespace(s3=SimpleNamespace(plugins={}))

    def run(self, snippet: str, plugin_name: str = "example") -> dict[str, Any]:
        """Run a snippet where a controller would, and return its names."""
        from holdfast import current

        names: dict[str, Any] = {"plugin_name": plugin_name}
        with current.using(settings=self.settings, session=self.session):
            exec(snippet, names)
        return names

    def cycle(self) -> None:
        """Do what comes before a controller."""
        self.run("from plugins import PluginLoader\nPluginLoader.setup_all()\n")

    def write(self, name: str, text: str) -> None:
        """Install a plugin, by placing it into the folder."""
        (self.folder / f"{name}.py").write_text(text)

    @property
    def altered(self) -> int:
        """How often the example was set up."""
        return self.settings.get("altered", 0)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """An application whose folder has the example, and whose package makes the loader."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "__init__.py").write_text(APPLICATION)
    (folder / "example.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugins", raising=False)
    application = Application(importlib.import_module("plugins").PluginLoader, folder)
    yield application
    application.run("from plugins import PluginLoader\nPluginLoader.close()\n")
    monkeypatch.delitem(sys.modules, "plugins")


def test_setup_is_called_during_every_request_cycle(app: Application) -> None:
    """And alters the deployment settings."""
    assert (app.run(ASK)["version"], app.run(ASK)["status"]) == (None, None)
    for number in (1, 2, 3):
        app.cycle()
        assert app.altered == number
    assert (app.run(ASK)["version"], app.run(ASK)["status"]) == ("0.0.0", True)


def test_a_package_is_a_plugin_of_its_name(app: Application) -> None:
    """Without a version it is "unknown"."""
    (app.folder / "package").mkdir()
    (app.folder / "package" / "__init__.py").write_text("def setup(): pass\n")
    app.cycle()
    assert app.run(ASK, "package")["plugin_info"] == ("unknown", True)


@pytest.mark.parametrize("again", [FORCE, PUT_NONE, RELOAD_ALL, DETECT])
def test_a_plugin_that_raises_deactivates_itself_until_it_is_reloaded(again: str, app: Application) -> None:
    """It is not reloaded automatically, but by each way that the page tells; the other plugin never notices."""
    app.write("bad", "__version__ = '1'\ndef setup(): raise RuntimeError\n")
    app.cycle()
    assert app.run(ASK, "bad")["plugin_info"] == ("1", False)
    app.write("bad", "__version__ = '2'\ndef setup(): pass\n")
    app.cycle()
    assert app.run(ASK, "bad")["plugin_info"] == ("1", False)
    assert app.altered == 2
    app.run(again, "bad")
    app.cycle()
    assert app.run(ASK, "bad")["plugin_info"] == ("2", True)
    assert app.run(ASK)["plugin_info"] == ("0.0.0", True)


def test_a_forced_load_is_immediate(app: Application) -> None:
    """And of that plugin alone."""
    app.cycle()
    app.write("other", "1 / 0\n")
    app.write("example", PLUGIN.replace("0.0.0", "0.0.1"))
    app.run(FORCE)
    assert app.run(ASK)["plugin_info"] == ("0.0.1", True)
    assert app.altered == 2
    assert app.run(ASK, "other")["plugin_info"] is None


def test_setup_all_detects_and_runs_and_detect_runs_nothing(app: Application) -> None:
    """A plugin that is new is in the registry after either."""
    app.cycle()
    app.write("new", PLUGIN)
    app.run(DETECT)
    assert app.run(ASK, "new")["plugin_info"] == ("unknown", None)
    assert app.altered == 1
    app.run(RELOAD_ALL)
    assert app.run(ASK, "new")["plugin_info"] == ("0.0.0", True)
    assert app.altered == 3


def test_a_redirect_is_a_failure_and_goes_no_further(app: Application) -> None:
    """So that there is no redirection loop."""
    app.write("bad", "class HTTP(BaseException): pass\ndef setup(): raise HTTP(303, '/elsewhere')\n")
    app.cycle()
    assert app.run(ASK, "bad")["status"] is False
    assert app.altered == 1


def test_plugins_with_conflicts_detect_each_other(app: Application) -> None:
    """In whichever order: one finds the other in the registry, logs that, raises, and is out of its way."""
    text = """
from holdfast import current
def setup():
    if current.session.s3.plugins.get("OTHER", (None, False))[1]:
        current.log.error("conflict with OTHER")
        raise RuntimeError
"""
    app.write("one", text.replace("OTHER", "two"))
    app.write("two", text.replace("OTHER", "one"))
    for _ in range(2):
        app.cycle()
        assert {app.run(ASK, name)["status"] for name in ("one", "two")} == {True, False}


def test_restarting_reloads(app: Application) -> None:
    """A new loader begins with every plugin detected, whatever the session still says."""
    app.write("bad", "def setup(): raise RuntimeError\n")
    app.cycle()
    app.write("bad", "def setup(): pass\n")
    app.run("from plugins import PluginLoader\nPluginLoader.close()\n")
    app.cycle()
    assert app.run(ASK, "bad")["status"] is True
