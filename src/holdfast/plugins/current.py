"""`current`: what an application hands its plugins for one request cycle, and what a plugin leaves to be stopped.

Hides how threads and tasks are told apart, and who owns a thread. Knows no loader: whoever calls a plugin's code
enters a `Cycle`, and closes its `Belongings` when the plugin goes.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, Final, NoReturn, TypeVar

from holdfast.errors import ConflictError, InvalidError, NotFoundError

_log: Final = logging.getLogger(__name__)
_Callback = TypeVar("_Callback", bound=Callable[[], object])

_values: Final[ContextVar[Mapping[str, Any]]] = ContextVar("holdfast.current", default={})  # noqa: B039 -- never changed


class NoCycleError(NotFoundError, AttributeError):
    """`current` has nothing of this name here: no request cycle provides it."""


class Belongings:
    """What one plugin has had started: it stops with the plugin.

    Its callbacks and threads see what `current` held when the plugin was loaded, but for the session: that belongs to
    whoever happened to ask first.
    """

    def __init__(self, plugin: str) -> None:
        self.plugin = plugin
        self._values = {name: value for name, value in _values.get().items() if name != "session"}
        self._changing = threading.Lock()
        self._stop: threading.Event | None = None  # made for those who have threads: most have none
        self._callbacks: list[Callable[[], object]] = []
        self._threads: dict[str, threading.Thread] = {}
        self._is_closed = False

    def add(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` on unload; once, however often it is added."""
        with self._changing:
            self._refuse_closed()
            if callback not in self._callbacks:
                self._callbacks.append(callback)

    def start(self, work: Callable[[threading.Event], object], name: str) -> threading.Thread:
        """Start a thread, unless one of this name runs already; return it."""
        with self._changing:
            self._refuse_closed()
            running = self._threads.get(name)
            if running is not None and running.is_alive():
                return running
            self._stop = self._stop or threading.Event()
            # In a context of its own: what others put into theirs for one request is not for a thread that goes on.
            thread = threading.Thread(
                target=Context().run, args=(self._call, work, self._stop), name=f"{self.plugin}: {name}", daemon=True
            )
            self._threads[name] = thread
            thread.start()
        return thread

    def close(self) -> bool:
        """Ask the threads to stop and call the callbacks, the last one first; return False if that was done before.

        A callback that raises is logged, and the others are called.
        """
        with self._changing:
            was_closed, self._is_closed = self._is_closed, True
        if was_closed:
            return False
        if self._stop is not None:
            self._stop.set()
        for callback in reversed(self._callbacks):
            Context().run(self._call, callback)
        return True

    def join(self, deadline: float) -> list[str]:
        """Wait for the threads until ``deadline``, on the monotonic clock; return the names of those that still run."""
        others = [thread for thread in self._threads.values() if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0, deadline - time.monotonic()))
        return [thread.name for thread in self._threads.values() if thread.is_alive()]

    def _call(self, code: Callable[..., object], *args: object) -> None:
        _values.set(self._values)
        cycle.set(Cycle(None, self))
        try:
            code(*args)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 -- the plugin's code, which may even ask the process to end
            _log.error("plugin.raised", exc_info=exc, extra={"plugin": self.plugin, "code": _name_of(code)})

    def _refuse_closed(self) -> None:
        if self._is_closed:
            message = f"plugin {self.plugin!r} was unloaded: its old code can neither start nor register anything"
            raise ConflictError(message, plugin=self.plugin)


class Cycle:
    """Which plugin's code is being called, by which loader; it counts in the thread that made it."""

    __slots__ = ("belongings", "loader", "thread")

    def __init__(self, loader: object, belongings: Belongings | None = None) -> None:
        self.loader = loader
        self.belongings = belongings
        self.thread = threading.get_ident()


cycle: Final[ContextVar[Cycle | None]] = ContextVar("holdfast.cycle", default=None)


@contextmanager
def providing(values: Mapping[str, Any]) -> Generator[None]:
    """Let `current` have this until the end of the block, and nothing that a block around provides."""
    token = _values.set(values)
    try:
        yield
    finally:
        _values.reset(token)


class Current:
    """What an application provides for one request cycle; one object, `holdfast.current`, for everybody.

    Each thread and each asyncio task sees what was provided around it, and a task what was there when it was made.
    A thread that was not made with `start_thread` sees nothing. What nobody provides is a `NoCycleError`, which is
    an AttributeError as well, so that ``getattr(current, "session", None)`` asks without raising.
    """

    __slots__ = ()

    @contextmanager
    def using(
        self, *, settings: Any = None, session: Any = None, log: Any = None, state: Any = None
    ) -> Generator[Current]:
        """Provide what is given, and what a block around provides, until the end of the block."""
        given = {"settings": settings, "session": session, "log": log, "state": state}
        with providing({**_values.get(), **{name: value for name, value in given.items() if value is not None}}):
            yield self

    @property
    def settings(self) -> Any:
        """The application's settings; a plugin may change them."""
        return self._get("settings")

    @property
    def deployment_settings(self) -> Any:
        """The same as `settings`."""
        return self._get("settings")

    @property
    def session(self) -> Any:
        """The session of the user whose request it is; threads of a plugin have none."""
        return self._get("session")

    @property
    def state(self) -> Any:
        """The application's variables, a `State`."""
        return self._get("state")

    @property
    def log(self) -> Any:
        """The application's logger; if it provides none, that called ``plugin.NAME`` in the code of a plugin.

        And "holdfast.app" elsewhere, such as in a controller, where the application provides anything at all.
        """
        values, here = _values.get(), self._belongings()
        if "log" in values:
            return values["log"]
        if here is None and not values:
            _fail("log")
        return logging.getLogger("holdfast.app" if here is None else f"plugin.{here.plugin}")

    def on_unload(self, callback: _Callback) -> _Callback:
        """Call ``callback`` without arguments when the calling plugin is unloaded, the last one first; return it.

        `setup` is called in every cycle: the same callback counts once, but a lambda is another one each time. A
        plugin is unloaded when newer code of it has been set up, when it fails, when its file is gone, and by
        ``PluginLoader.close``.

        Raises:
            NoCycleError: No plugin's code is being called in this thread.
            ConflictError: The plugin was unloaded.
        """
        self._owner("on_unload").add(callback)
        return callback

    def start_thread(self, work: Callable[[threading.Event], object], *, name: str | None = None) -> threading.Thread:
        """Start ``work(stop)`` in a thread of the calling plugin, and return the thread.

        If one of this name (None: that of the function) runs already, that is returned instead, so that `setup` may
        ask in every cycle. On unload ``stop`` is set; a thread that ends soon after is a good one, of any other the
        log has the name. It never keeps the process from ending. What ``work`` raises is logged.

        Raises:
            NoCycleError, ConflictError: As `on_unload`.
        """
        return self._owner("start_thread").start(work, name or _name_of(work))

    def start_timer(
        self, interval_s: float, callback: Callable[[], object], *, name: str | None = None
    ) -> threading.Thread:
        """Call ``callback`` every ``interval_s`` seconds in a thread as `start_thread` makes it.

        The first time after one interval; never twice at once. If it raises, that is logged and the timer goes on.

        Raises:
            InvalidError: ``interval_s`` is no positive number.
            NoCycleError, ConflictError: As `on_unload`.
        """
        if not (math.isfinite(interval_s) and interval_s > 0):
            raise InvalidError(f"a timer cannot have an interval of {interval_s!r} s: a positive number is expected")
        owner = self._owner("start_timer")

        def beat(stop: threading.Event) -> None:
            while not stop.wait(interval_s):
                owner._call(callback)  # pyright: ignore[reportPrivateUsage] -- one concept in two classes

        return owner.start(beat, name or _name_of(callback))

    def _get(self, name: str) -> Any:
        values = _values.get()
        return values[name] if name in values else _fail(name)

    def _belongings(self) -> Belongings | None:
        now = cycle.get()
        # A task or thread that inherited the cycle would take the plugin that happens to be called now for its own.
        return None if now is None or now.thread != threading.get_ident() else now.belongings

    def _owner(self, doing: str) -> Belongings:
        return self._belongings() or _fail(doing, "code of a plugin that is being loaded or set up, or its thread")


def _fail(name: str, where: str = "`with current.using(...)` around it") -> NoReturn:
    raise NoCycleError(f"current.{name} is not there: it needs {where}", attribute=name)


def _name_of(code: object) -> str:
    return str(getattr(code, "__qualname__", type(code).__name__))


current: Final = Current()
