"""Plugins set up in every cycle beside calls of nothing, and plugins loaded beside importing them, and beside peers."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

from benchmarks.measure import Cost, Row, compare, cost
from holdfast.plugins.loader import PluginLoader

CYCLES: Final = 2_000
SET_UP: Final = 100
LOADED: Final = 1_000
PLUGIN: Final = (
    "__version__ = '1'\n\n\nclass Thing:\n    def work(self):\n        return 1\n\n\ndef setup():\n    pass\n"
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how much to measure; see `benchmarks.pods.Bench`."""

    folder: Path
    rounds: int

    def rows(self) -> Iterator[Row]:
        """Measure one row after the other."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            place = Path(name) / "few"
            fill(place, SET_UP)
            with PluginLoader(place) as loader:
                loader.setup_all()
                nothings = [FunctionType(nothing.__code__, {}) for _ in range(SET_UP)]
                limit = partial(cost, partial(cycles, partial(call, nothings)))
                yield self.compare(
                    f"setup_all(), {SET_UP} plugins", "as many calls of nothing", loader.setup_all, limit, goal=3
                )
                for work, peer in (("one hook of pluggy", pluggy), ("map() of stevedore", stevedore)):
                    if (cycle := peer(nothings)) is not None:
                        yield self.compare(f"{work}, {SET_UP} plugins", "the same", cycle, limit)
            original = Path(name) / "many"
            fill(original, LOADED)
            # As installed: with compiled modules beside the sources.
            before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
            try:
                import_all(original)
                yield compare(
                    f"detect and set up {LOADED:,} plugins",
                    "importing them",
                    rounds=self.rounds,
                    measure=partial(in_copy, original, load_all),
                    measure_limit=partial(in_copy, original, import_all),
                    goal=1.2,
                )
            finally:
                sys.dont_write_bytecode = before

    def compare(
        self,
        work: str,
        limit: str,
        cycle: Callable[[], Any],
        measure_limit: Callable[[], Cost],
        goal: float | None = None,
    ) -> Row:
        """Measure many cycles."""
        measure = partial(cost, partial(cycles, cycle))
        return compare(work, limit, rounds=self.rounds, measure=measure, measure_limit=measure_limit, goal=goal)


def nothing() -> None:
    """Do nothing."""


def fill(folder: Path, count: int) -> None:
    """Write plugins."""
    folder.mkdir()
    for number in range(count):
        (folder / f"bench_plugin_{number}.py").write_text(PLUGIN)


def cycles(cycle: Callable[[], object]) -> None:
    """Do one cycle after the other."""
    for _ in range(CYCLES):
        cycle()


def call(functions: list[FunctionType]) -> None:
    """Call each once."""
    for function in functions:
        function()


def pluggy(functions: list[FunctionType]) -> Callable[[], object] | None:
    """Return what calls a hook of as many plugins, if pluggy is installed."""
    with suppress(ImportError):
        peer = importlib.import_module("pluggy")
        specification = ModuleType("specification")
        vars(specification)["setup"] = peer.HookspecMarker("bench")(FunctionType(nothing.__code__, {}, "setup"))
        manager = peer.PluginManager("bench")
        manager.add_hookspecs(specification)
        for number, function in enumerate(functions):
            plugin = ModuleType(f"plugin_{number}")
            vars(plugin)["setup"] = peer.HookimplMarker("bench")(FunctionType(function.__code__, {}, "setup"))
            manager.register(plugin)
        return manager.hook.setup
    return None


def stevedore(functions: list[FunctionType]) -> Callable[[], object] | None:
    """Return what calls as many plugins, if stevedore is installed."""
    with suppress(ImportError):
        peer = importlib.import_module("stevedore.extension")
        extensions = [peer.Extension(f"plugin_{n}", None, each, None) for n, each in enumerate(functions)]
        manager = peer.ExtensionManager.make_test_instance(extensions, propagate_map_exceptions=False)
        return partial(manager.map, call_plugin)
    return None


def call_plugin(extension: Any) -> None:
    """Call one."""
    extension.plugin()


def in_copy(original: Path, work: Callable[[Path], object]) -> Cost:
    """Do some work with a copy of a folder: what was loaded once is looked at more closely the second time."""
    with tempfile.TemporaryDirectory(dir=original.parent) as name:
        place = Path(name) / "plugins"
        shutil.copytree(original, place)
        try:
            return cost(partial(work, place))
        finally:
            for module in [module for module in sys.modules if module.startswith("bench_plugin_")]:
                del sys.modules[module]


def load_all(folder: Path) -> None:
    """Detect the plugins and set them up."""
    loader = PluginLoader(folder)
    loader.setup_all()
    assert set(loader.registry.values()) == {("1", True)}


def import_all(folder: Path) -> None:
    """Import them and call their function."""
    sys.path.insert(0, str(folder))
    for path in folder.glob("*.py"):
        importlib.import_module(path.stem).setup()
    sys.path.remove(str(folder))
