"""Context: what an application holds. Each part is made when it is first used, and closed with the context."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from holdfast.context.pods import PodClient
from holdfast.context.running import carry_out
from holdfast.context.settings import Settings
from holdfast.disk import StrPath
from holdfast.engine import DEFAULT_STATE
from holdfast.errors import ConflictError, InvalidError
from holdfast.plugins.current import Current, current, providing
from holdfast.runs import Outcome
from holdfast.state import State

if TYPE_CHECKING:  # start-up: who only runs plugins needs neither
    from holdfast.plugins.loader import PluginLoader, Registry
    from holdfast.snapshots.saving import StateStore

_Part = TypeVar("_Part")


class Context:
    """What an application holds: variables, plugins, snapshots and the client of a Pod, all in one home.

    A context manager: for the block, `holdfast.current` has the settings, the state and the log in the thread or task
    that entered it; all others enter a `cycle`. Threads may share one context. Nothing but the settings file is read
    before it is asked for. Several contexts may be there at once, also of one home.

    Args:
        home: The folder with everything; None: as `Settings.read` says.
        settings: All settings together, instead of ``home``.
        deployment_settings: The application's own settings, which plugins find and may change as
            ``current.settings``; None: an object without attributes, for anybody to give it some.
        registry: As `PluginLoader` takes it.
        log: What plugins find as ``current.log``; None: a logger of their own, and "holdfast.app" for all others.

    Attributes:
        settings: Where everything is.
        deployment_settings: What was given as such.
        state: The application's variables.

    Raises:
        InvalidError: Both ``home`` and ``settings`` are given, or a setting cannot be; see `Settings.read`.
    """

    def __init__(
        self,
        home: StrPath | None = None,
        *,
        settings: Settings | None = None,
        deployment_settings: Any = None,
        registry: Registry | Callable[[], Registry] | None = None,
        log: Any = None,
    ) -> None:
        if home is not None and settings is not None:
            raise InvalidError("a context cannot have both a home and settings: the settings name the home")
        self.settings = settings or Settings.read(home=home)
        self.deployment_settings = SimpleNamespace() if deployment_settings is None else deployment_settings
        # Now: here is the main thread, perhaps, where alone SIGTERM can be waited for; a first request is elsewhere.
        self.state = State(self.settings.state_dir, save_delay=self.settings.save_delay)
        self._registry, self._log = registry, log
        self._parts: dict[str, Any] = {}
        self._opening, self._pid = threading.RLock(), os.getpid()
        self._block: ExitStack | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Context {str(self.settings.home)!r}>"

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def plugins(self) -> PluginLoader:
        """The loader of the plugins in the folder ``plugins_dir``."""

        def make() -> PluginLoader:
            from holdfast.plugins.loader import PluginLoader  # start-up

            marks = self.settings.suspects_path  # not in the plugins' folder: installed plugins need none
            return PluginLoader(self.settings.plugins_dir, registry=self._registry, suspects=marks)

        return self._part("plugins", make)

    @property
    def client(self) -> PodClient:
        """The client of the Pod in the home, which is made with its keys if there is none."""
        return self._part("client", lambda: PodClient(settings=self.settings))

    @property
    def snapshots(self) -> StateStore:
        """The application's own snapshots; those of plugins are none of them."""

        def make() -> StateStore:
            from holdfast.snapshots.saving import StateStore  # start-up

            return StateStore(self.settings.own_snapshots_path)

        return self._part("snapshots", make)

    def _part(self, name: str, make: Callable[[], _Part]) -> _Part:
        """Return a part, made once.

        Raises:
            ConflictError: The context is closed.
        """
        found: _Part | None = self._parts.get(name)
        if found is not None:
            return found
        with self._turn():
            if self._is_closed:
                raise ConflictError(f"the context of {str(self.settings.home)!r} is closed: make another one")
            return self._parts[name] if name in self._parts else self._parts.setdefault(name, make())

    def _turn(self) -> threading.RLock:
        if self._pid != os.getpid():  # in the parent another thread may have held it, and is not here to let go
            self._opening, self._pid = threading.RLock(), os.getpid()
        return self._opening

    # -- what an application does -------------------------------------------------------------------------------------

    @contextmanager
    def cycle(self, *, session: Any = None) -> Generator[Current]:
        """Do one request cycle: call ``setup()`` of each plugin, and yield `holdfast.current` for the controller.

        `current` has the settings, the state, the log and the session in this thread or task until the block ends, and
        nothing of a block or cycle around: without a session there is none.
        What a plugin raises is its own failure and ends nothing; see `PluginLoader`.

        Args:
            session: The session of the user whose request it is.

        Raises:
            ConflictError, DeniedError, InvalidError, UnavailableError: As ``plugins.setup_all`` says.
        """
        with self._provided(session):
            self.plugins.setup_all()
            yield current

    def _provided(self, session: Any = None, log: Any = None) -> AbstractContextManager[None]:
        log = self._log if log is None else log
        given = {"settings": self.deployment_settings, "session": session, "log": log, "state": self.state}
        return providing({name: value for name, value in given.items() if value is not None})

    def run(
        self,
        name: str,
        *,
        config: Mapping[str, Any] | None = None,
        state: str = DEFAULT_STATE,
        is_new: bool = False,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> Outcome:
        """Carry a plugin on to the end of its run in this thread, and say what became of it, also if that is an error.

        An unfinished run of the plugin state is carried on, else a new one begins. A plugin of `plugins` runs with the
        code that serves now, and keeps that to its end; it is set up first, if it never was. Meanwhile `current` is as
        in a cycle without a session, whoever called it.

        Args:
            name: NAME of a plugin in the plugins' folder, or of an entry point ``holdfast.plugins``, where it has one
                class with ``run()``; else NAME:CLASS, MODULE:CLASS, FILE.py:CLASS or the path of a metadata file.
            config: Used instead of the configuration that the run has; a new run keeps it, as JSON, and each attempt
                has what that gives back: for a tuple a list.
            state: The name of the plugin state.
            is_new: Begin a run even if there is an unfinished one.
            on_progress: Told how many steps of how many (None: unknown) are done.

        Raises:
            NotFoundError, InvalidError, PluginError: There is no such plugin, its configuration is wrong, or its code
                cannot be loaded. Nothing was written.
            ConflictError: Another run holds the plugin state.
            DeniedError, DamagedError, UnavailableError: As `PodClient`.
        """
        with ExitStack() as stack:
            # What may be set up now, and where its registry is, sees the session around it, as in that cycle.
            stack.enter_context(self._provided(getattr(current, "session", None)))
            source = stack.enter_context(self.plugins.lending(name))
            log = self._log or logging.getLogger(f"plugin.{source.module}")
            stack.enter_context(self._provided(log=log))
            return carry_out(self.settings, source, config=config, state=state, is_new=is_new, on_progress=on_progress)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unload the plugins, end the snapshot in flight, save the variables and close the client.

        Nothing happens the second time. If one of them fails, the others are closed all the same, and its error is
        raised after that; variables that could not be saved are kept, and ``state.save_all`` tries again.
        """
        with self._turn():
            was_closed, self._is_closed = self._is_closed, True
            parts, self._parts = self._parts, {}
        if was_closed:
            return
        with ExitStack() as ending:  # calls the last one first, and all of them whatever one raises
            for name in ("client", "state", "snapshots", "plugins"):
                if name == "state":
                    ending.callback(self.state.save_all)
                elif name in parts:
                    ending.callback(parts[name].close)

    def __enter__(self) -> Self:
        with self._turn():
            if self._is_closed or self._block is not None:
                how = "is closed: make another one" if self._is_closed else "is entered: use cycle() elsewhere"
                raise ConflictError(f"the context of {str(self.settings.home)!r} {how}")
            self._block = ExitStack()
        self._block.enter_context(self._provided())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._block or ExitStack():
            self.close()
