"""PluginLoader: finds the plugins of an application, and sets each up in every request cycle.

Hides how code is loaded, swapped and unloaded, and what a plugin does wrong: that is this plugin's failure, and the
cycle goes on. What one cycle provides for plugins is `holdfast.current`; starting runs is not done here.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, NamedTuple, Self

from holdfast.disk import Disk, StrPath
from holdfast.errors import ConflictError, HoldfastError, InvalidError, NotFoundError, PluginError, UnavailableError
from holdfast.plugins.current import Belongings, Cycle, cycle
from holdfast.plugins.loading.code import Code
from holdfast.plugins.loading.finding import Found, find_plugins, is_name
from holdfast.plugins.loading.watching import Watch
from holdfast.plugins.named import source_in, split_name
from holdfast.plugins.source import Source, source_of
from holdfast.values import shown

_log: Final = logging.getLogger(__name__)

Registry = MutableMapping[str, Any]
"""``{name: (version, status)}``: status None for detected, True for set up, False for deactivated."""

_POLL_S: Final = 0.01


class _Loaded(NamedTuple):
    """Code that was set up, and what it has had started. What `PluginLoader.setup_all` needs each time is first."""

    belongings: Belongings
    setup: Callable[[], object]
    code: Code


class _Place:
    """One plugin, by its name."""

    __slots__ = ("failure", "found", "is_due", "is_serving", "loaded", "status", "version", "was_tried")

    def __init__(self, found: Found) -> None:
        self.found = found
        self.is_due = True
        self.was_tried = False
        self.loaded: _Loaded | None = None
        self.is_serving = False
        self.status: bool | None = None
        self.version = "unknown"
        self.failure: PluginError | None = None


class PluginLoader:
    """The plugins of one application: modules and packages in a folder, and entry points ``holdfast.plugins``.

    A plugin has a function ``setup()``, which is called in every cycle, in no particular order, and may have a
    ``__version__``. Whatever it raises deactivates it, and nobody else, until it is loaded again: an exception, a
    redirect, `sys.exit`. Only KeyboardInterrupt, and what a handler of a signal raises, ends the cycle.

    Threads may share one loader, and call `setup_all` at the same time. Each plugin is loaded once; who comes
    meanwhile waits, but not for one that hangs. A hanging setup() cannot be stopped: the log says which one it is and
    where, and if the process is killed for it twice, the next one starts without that plugin.

    Args:
        folder: Where plugins are; it need not be there.
        registry: What holds ``{name: (version, status)}``, or a function that returns it, such as ``lambda:
            current.session.s3.plugins``. It is told, and not believed: only None, put there by anybody, means
            something, a reload in the next cycle. Names that are no plugins' are removed. None: a dict.
        suspects: The file that notes who is being set up, for when the process dies; None: in ``folder``.
        late_after_s: After how many seconds the log tells of a first setup() that is not done.
        stop_s: For how many seconds at most to wait for the threads of a plugin that is unloaded.
        disk: Where ``suspects`` lies.
    """

    def __init__(
        self,
        folder: StrPath,
        *,
        registry: Registry | Callable[[], Registry] | None = None,
        suspects: StrPath | None = None,
        late_after_s: float = 10.0,
        stop_s: float = 2.0,
        disk: Disk | None = None,
    ) -> None:
        self._folder = Path(folder).absolute()
        self._given: Registry | Callable[[], Registry] = {} if registry is None else registry
        marks = self._folder / ".suspects" if suspects is None else Path(suspects).absolute()
        self._watch = Watch(marks, late_after_s, disk or Disk())
        self._late_after_s, self._stop_s = late_after_s, stop_s
        self._places: dict[str, _Place] | None = None
        self._entries: dict[str, tuple[str, bool | None]] = {}
        """What the registry should say."""
        self._active: tuple[_Loaded, ...] = ()
        self._is_due = False
        self._loading = threading.Lock()
        """Held by whoever detects, loads or unloads; a plugin's code may run meanwhile, and last."""
        self._changing = threading.Lock()
        """Held for moments, by whoever changes what is active."""
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def registry(self) -> Registry:
        """What was given as ``registry``, or what the function given returns now."""
        return self._given() if callable(self._given) else self._given

    def failure(self, name: str) -> PluginError | None:
        """Return why a plugin was deactivated, or why its newest code does not serve; None, if neither is so.

        Its ``facts`` hold the traceback as text; the exception itself is not kept, and nothing that it refers to.
        """
        place = (self._places or {}).get(name)
        return None if place is None else place.failure

    def module(self, name: str) -> ModuleType | None:
        """Return the module of a plugin that was loaded, under whatever name; None if there is no such plugin."""
        place = (self._places or {}).get(name)
        return None if place is None or place.loaded is None else place.loaded.code.module

    def detect(self, *, reset_all: bool = False) -> None:
        """Look which plugins there are, and run none: new ones are set up in the next cycle, absent ones unloaded now.

        Args:
            reset_all: Let the next cycle reload all of them; until then they serve as they are.

        Raises:
            ConflictError: It is called by a plugin's setup().
            DeniedError, InvalidError, UnavailableError: The folder cannot be listed, or a plugin hangs.
        """
        with self._alone("detect()"):
            self._detect(self.registry, reset_all=reset_all)

    def load(self, name: str, *, force: bool = False) -> bool:
        """Set one plugin up, as the next cycle would, and return whether it is set up.

        Args:
            name: The plugin; if it is unknown, it is looked for.
            force: Load its code anew, also if it serves, was deactivated, or has killed the process. If the new code
                fails, the answer is False, and the old serves on.

        Raises:
            NotFoundError: There is no plugin of this name.
            InvalidError: There can be none.
            ConflictError, UnavailableError: As `detect`.
        """
        if not is_name(name):
            raise InvalidError(f"no plugin can be called {shown(name)}: the name of a module is expected", plugin=name)
        with self._alone("load()"):
            registry = self.registry
            if self._places is None or name not in self._places:
                self._detect(registry)
            place = (self._places or {}).get(name)
            if place is None:
                raise NotFoundError(f"there is no plugin {name!r} in {str(self._folder)!r}", plugin=name)
            if not force and not place.is_due:
                return place.status is True
            return bool(self._bring_up([place], registry, is_forced=force))

    def setup_all(self, *, reload_all: bool = False) -> None:
        """Call setup() of every plugin, in a new cycle; first load those that are new or are to be reloaded.

        It looks at no folder, but for the first time; new plugins are found by `detect`.

        Args:
            reload_all: Look which plugins there are, and load the code of all of them anew.

        Raises:
            ConflictError, DeniedError, InvalidError, UnavailableError: As `detect`.
        """
        self._refuse_inside("setup_all()")
        if reload_all or self._places is None:
            self.detect(reset_all=reload_all)
        registry, active = self.registry, self._active
        if self._is_due or registry != self._entries:
            active = self._catch_up(registry)
        now = Cycle(self)
        token = cycle.set(now)
        try:
            for loaded in active:  # the hot path: nothing else happens for a plugin in a cycle
                now.belongings = loaded[0]
                try:
                    loaded[1]()
                except BaseException as exc:
                    if not _is_its_own(exc):
                        raise
                    self._deactivate(loaded, exc, registry)
        finally:
            now.belongings = None
            cycle.reset(token)

    @contextmanager
    def lending(self, text: str) -> Generator[Source]:
        """Yield a plugin to be run: NAME or NAME:CLASS with the code that serves now; any other as `source_of` does.

        What was not loaded yet is set up first, as `load` does. Whatever happens to the plugin in the block, its
        modules stay until the end, also for what the run imports late.

        Raises:
            InvalidError: It has no class with run(), or several, and none was named; or as `source_of`.
            NotFoundError: It has no such class; or as `source_of`.
            PluginError: It is deactivated.
            ConflictError, DeniedError, UnavailableError: As `load`; or it was unloaded in this very moment.
        """
        name, class_name = split_name(text)
        if name and name not in (self._places or {}):
            self.detect()
        place = (self._places or {}).get(name)
        if place is None or (class_name and place.found.entry is not None):  # an entry point has one class, or a module
            yield source_of(text)
            return
        if place.is_due and not place.is_serving:
            self.load(name)
        self._renew_locks_if_forked()
        with self._changing:
            loaded = place.loaded if place.is_serving else None
            if loaded is not None:
                loaded.code.users += 1
        if loaded is None:
            if (failure := place.failure) is not None:
                raise PluginError(failure.message, **failure.facts)
            raise UnavailableError(f"plugin {name!r} cannot be run: it was unloaded just now", plugin=name)
        try:
            yield source_in(loaded.code, place.found, class_name)
        finally:
            with self._changing:
                loaded.code.users -= 1
                is_last = loaded.code.is_left and not loaded.code.users
            if is_last:
                self._see_off(loaded.belongings, loaded.code)

    def close(self) -> None:
        """Unload all plugins; a later cycle begins anew. Nothing happens the second time.

        Raises:
            ConflictError, UnavailableError: As `detect`.
        """
        with self._alone("close()"):
            places, self._places = self._places or {}, None
            self._retire([*places.values()])

    # -- who may, and when --------------------------------------------------------------------------------------------

    def _refuse_inside(self, doing: str) -> None:
        now = cycle.get()
        if now is not None and now.loader is self and now.belongings is not None:
            name = now.belongings.plugin
            message = f"plugin {name!r} cannot call {doing} while it is set up: put None into the registry instead"
            raise ConflictError(message, plugin=name)

    def _is_free(self) -> bool:
        """Wait until nobody else loads, and begin; but not while a plugin hangs."""
        self._renew_locks_if_forked()
        while not self._loading.acquire(timeout=0 if self._watch.late else self._late_after_s):
            if self._watch.late or not self._watch.is_busy:  # or what hangs is an unload, or the folder
                return False
        return True

    def _renew_locks_if_forked(self) -> None:
        if self._pid != os.getpid():  # whoever had them when this process was forked is not in it
            self._pid, self._loading, self._changing = os.getpid(), threading.Lock(), threading.Lock()
            self._watch.start_over()

    @contextmanager
    def _alone(self, doing: str) -> Generator[None]:
        self._refuse_inside(doing)
        if not self._is_free():
            late = self._watch.late
            what = (
                f"plugin {late!r} hangs in its setup()" if late else "another thread unloads plugins or looks for them"
            )
            raise UnavailableError(f"{doing} cannot be done while {what}", plugin=late)
        try:
            yield
        finally:
            self._refresh()
            self._loading.release()

    def _refresh(self) -> None:
        with self._changing:
            places = list((self._places or {}).values())
            self._active = tuple(place.loaded for place in places if place.is_serving and place.loaded is not None)
            self._is_due = any(place.is_due for place in places)

    # -- what is known ------------------------------------------------------------------------------------------------

    def _detect(self, registry: Registry, *, reset_all: bool = False) -> None:
        found = find_plugins(self._folder)
        places = self._places or {}
        gone = [name for name in places if name not in found]
        self._retire([places.pop(name) for name in gone])
        for name in gone:
            self._entries.pop(name, None)
            registry.pop(name, None)
        for name, each in found.items():
            place = places.setdefault(name, _Place(each))
            place.found = each
            if reset_all:
                place.is_due, place.status = True, None
        self._places = places
        for place in places.values():
            self._record(place, registry)

    def _record(self, place: _Place, registry: Registry) -> None:
        """Tell the registry about one plugin; a None that was put there since the cycle began stays for the next."""
        name, entry = place.found.name, (place.version, place.status)
        self._entries[name] = entry
        if registry.get(name, entry) is not None:
            registry[name] = entry

    def _settle(self, registry: Registry) -> list[str]:
        """Let a registry that says something else say what is so; return the names with None."""
        asked: list[str] = []
        for name in list(registry):
            if registry.get(name, 0) is None:
                asked.append(name)
            if name not in self._entries:
                registry.pop(name, None)
        for name, entry in list(self._entries.items()):
            said = registry.get(name)
            if said != entry and not (isinstance(said, list) and tuple(said) == entry):  # pyright: ignore[reportUnknownArgumentType]
                registry[name] = entry
        return asked

    # -- what is loaded -----------------------------------------------------------------------------------------------

    def _catch_up(self, registry: Registry) -> Iterable[_Loaded]:
        """Load what is due and what the registry asks for; return those whose setup() is still to be called."""
        if not self._is_free():
            self._refresh()
            return self._active
        try:
            asked = self._settle(registry)
            if any(name not in self._entries for name in asked):
                self._detect(registry)
            places = self._places or {}
            for name in asked:
                if name in places:
                    places[name].is_due = True
                else:
                    _log.warning("plugin.absent", extra={"plugin": name})
            due = [place for place in places.values() if place.is_due]
            begun = {id(loaded) for loaded in self._bring_up(due, registry)} if due else set[int]()
        finally:
            self._refresh()
            self._loading.release()
        return [loaded for loaded in self._active if id(loaded) not in begun]

    def _bring_up(self, places: list[_Place], registry: Registry, *, is_forced: bool = False) -> list[_Loaded]:
        """Load plugins and set them up, and return what succeeded; of each the registry is told at once."""
        begun: list[_Loaded] = []
        with self._watch.watching():
            for place in places:
                name, old = place.found.name, place.loaded
                try:
                    if not is_forced:
                        self._watch.check(name)
                    with self._watch.during(name):
                        new = self._set_up_anew(place)
                except BaseException as exc:
                    if not _is_its_own(exc):
                        raise
                    place.failure = _told(name, exc, is_served=place.is_serving)
                    place.status = place.is_serving
                else:
                    begun.append(new)
                    place.loaded, place.is_serving, place.status, place.failure = new, True, True, None
                    place.version = new.code.version
                place.is_due, place.was_tried = False, True
                if old is not None and place.loaded is not old:
                    self._refresh()  # no cycle that begins from now on calls it
                    self._unload(old.belongings, old.code)
                self._record(place, registry)  # last: it is the application's code, and may raise
        return begun

    def _set_up_anew(self, place: _Place) -> _Loaded:
        """Load a plugin's code, hand over what the old has dumped, and call setup(); or leave nothing and raise."""
        belongings = Belongings(place.found.name)
        now = Cycle(self, belongings)
        token = cycle.set(now)
        code: Code | None = None
        try:
            code = Code(place.found, is_first=not place.was_tried)
            dump = None if place.loaded is None else place.loaded.code.dump
            if dump is not None and code.restore is not None:
                code.restore(dump())
            code.begin(place.found.name)
        except BaseException:
            if code is not None and not place.is_serving:
                place.version = code.version
            self._unload(belongings, code)
            raise
        finally:
            now.belongings = None  # a task that it has made inherits the cycle
            cycle.reset(token)
        return _Loaded(belongings, code.setup, code)

    def _deactivate(self, loaded: _Loaded, exc: BaseException, registry: Registry) -> None:
        """Let a plugin that raised in a cycle serve no more, unless another thread has reloaded it meanwhile."""
        name = loaded.belongings.plugin
        with self._changing:
            place = (self._places or {}).get(name)
            if place is None or place.loaded is not loaded or not place.is_serving:
                return
            place.is_serving, place.status, place.failure = False, False, _told(name, exc)
        self._refresh()
        self._unload(loaded.belongings, loaded.code)
        self._record(place, registry)

    def _retire(self, places: list[_Place]) -> None:
        for place in places:
            place.is_serving = False
        self._refresh()
        for place in places:
            if place.loaded is not None:
                self._unload(place.loaded.belongings, place.loaded.code)

    def _unload(self, belongings: Belongings, code: Code | None) -> None:
        """Stop what a plugin has had started; runs go on, and the last of them sees its code off."""
        if belongings.close():
            with self._changing:
                is_lent = code is not None and code.users > 0
                if code is not None:
                    code.is_left = True
            self._see_off(belongings, None if is_lent else code)

    def _see_off(self, belongings: Belongings, code: Code | None) -> None:
        """Wait for what was told to stop, and forget the code; what goes on is named, and keeps its modules."""
        deadline = time.monotonic() + self._stop_s
        staying = belongings.join(deadline)
        if code is not None:
            # Another thread may be in the last setup() of its cycle, and nothing tells when that is done.
            while (running := code.threads()) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            staying = sorted({*staying, *running})
            if not staying:
                code.forget()
        if staying:
            extra = {"plugin": belongings.plugin, "threads": staying}
            _log.warning("plugin.stays: %r still runs in %s", belongings.plugin, ", ".join(staying), extra=extra)


def _is_its_own(exc: BaseException) -> bool:
    """Say whether a plugin is to blame for what its code has raised: not for Ctrl-C, nor for a handler of a signal."""
    if isinstance(exc, KeyboardInterrupt):
        return False
    found = [signal.getsignal(number) for number in signal.valid_signals()]
    handlers = {getattr(getattr(each, "func", each), "__code__", None) for each in found}  # .func: of a partial
    return all(frame.f_code not in handlers for frame, _ in traceback.walk_tb(exc.__traceback__))


def _told(name: str, exc: BaseException, *, is_served: bool = False) -> PluginError:
    """Log a failure, and return what is kept of it: text, as frames would keep alive whatever the request had."""
    kind, told = type(exc).__name__, exc
    try:
        reason = _reason(name, exc)
    except BaseException as broken:  # noqa: BLE001 -- it is the plugin's code that answers, and may even ask to end
        reason = f"{kind}: (its text cannot be had: {type(broken).__name__})"
    try:
        trace = "".join(traceback.format_exception(exc))
    except BaseException:  # noqa: BLE001 -- likewise; nor could a handler of the log do it
        told, trace = None, "".join(["Traceback (most recent call last):\n", *traceback.format_tb(exc.__traceback__)])
    then = "its older code serves on" if is_served else f"load({name!r}, force=True) tries again"
    failure = PluginError(f"plugin {name!r} failed: {reason}; {then}", plugin=name, exception=kind, traceback=trace)
    _log.error("plugin.failed: %s", failure, exc_info=told, extra={"plugin": name, "exception": kind})
    return failure


def _reason(name: str, exc: BaseException) -> str:
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        prefix, _, own = exc.name.partition(".")
        is_own = prefix.startswith(f"{name}-")
        return f"it has no module {own!r} that can be read" if is_own else f"it needs {exc.name!r}, which is not there"
    return exc.message if isinstance(exc, HoldfastError) else f"{type(exc).__name__}: {exc}"
