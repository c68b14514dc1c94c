"""StatefulPlugin: a plugin whose variables, views and accounts outlive its runs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast

from pydantic import Field
from pydantic_core import from_json, to_json

from holdfast.errors import ConflictError, DamagedError, InvalidError, NotFoundError
from holdfast.items import Account, CVUStoredDefinition, Edge, PersistentState, PluginRun
from holdfast.plugins.base import PluginBase, PluginConfig
from holdfast.plugins.variables import PodVariables
from holdfast.pod import Pod
from holdfast.runs import Status, status_of
from holdfast.snapshots.conditions import PeriodicSaveCondition, SaveCondition
from holdfast.state import StateNamespace
from holdfast.store import MoveRun
from holdfast.store.evaluation import MAX_NAME
from holdfast.values import Value, check, shown

if TYPE_CHECKING:  # start-up time: most plugins have no snapshots
    from holdfast.snapshots.keepers import StatesKeeper

T = TypeVar("T")

ONCE = "once"
"""The namespace of a plugin state in which results of `StatefulPlugin.once` are kept."""


class Runner(Protocol):
    """What a plugin may ask of the runner that drives it."""

    def safe_point(self) -> None:
        """Raise Cancelled or Released if the run is to stop here."""
        ...

    def report(self, done: int, total: int | None) -> None:
        """Note that ``done`` steps of ``total`` (None: unknown how many) are behind us."""
        ...


class Snapshots:
    """What the snapshots of a plugin hold: `register` its objects in `StatefulPlugin.setup`."""

    def __init__(self) -> None:
        self.registered: dict[str, object] = {}
        self._is_closed = False

    def close(self) -> None:
        """Take no more: what is restored has been restored."""
        self._is_closed = True

    def register(self, name: str, state: object) -> None:
        """Have ``state`` saved in each snapshot under ``name``, and restored from it when a run resumes.

        It is of either protocol that `holdfast.StateStore.register` takes: ``get_state`` and ``set_state``, or
        ``save_state`` and ``load_state``. The runner refuses what is of neither.

        Raises:
            KeyError: The name is used already.
            ConflictError: `StatefulPlugin.setup` is over; what is registered later could not be restored.
        """
        if self._is_closed:
            raise ConflictError(f"{name!r} cannot be registered any more: do that in setup()")
        if name in self.registered:
            raise KeyError(f"{name!r} is registered already")
        self.registered[name] = state


class SnapshotConfig(PluginConfig):
    """Settings for a plugin with snapshots: derive its ``Config`` from this, and they win over the class's own."""

    snapshot_interval_s: float | None = Field(default=None, gt=0, description="Seconds between two snapshots")
    max_snapshots: int | None = Field(default=None, ge=1, description="How many snapshots are kept")


class StatefulPlugin(PluginBase):
    """A plugin that carries on from where it was.

    ``self.state`` holds its variables, ``with self.transaction()`` makes items and variables one event, `track` shows
    progress and `safe_point` is where it may be stopped and moved.

    Args:
        runId: The id of the run; may come instead of ``pluginRun``, or agree with it.
        pluginState: The plugin state that the run works on; None: the one that the run leads to.
        pluginRun: The run.
        client: What reaches the Pod. Methods of this class that take one prefer theirs.
        **kwargs: As `PluginBase` says.

    Raises:
        InvalidError: ``runId`` and ``pluginRun`` name two runs; or as `PluginBase` says.
    """

    state_version: ClassVar[int] = 1
    """Of the variables and snapshots that this class works with; see `migrate_state`."""

    condition: ClassVar[SaveCondition] = PeriodicSaveCondition(60)
    """Asked at each safe point whether to take a snapshot; each run has a copy of its own."""

    max_snapshots: ClassVar[int] = 3
    """How many snapshots are kept; see `snapshot_keeper`."""

    def __init__(
        self,
        runId: str | None = None,  # noqa: N803
        pluginState: PersistentState | None = None,  # noqa: N803
        *,
        pluginRun: PluginRun | None = None,  # noqa: N803
        client: Pod | None = None,
        **kwargs: Any,
    ) -> None:
        if runId is not None and pluginRun is not None and runId != pluginRun.id:
            raise InvalidError(f"runId {runId!r} and pluginRun {pluginRun.id!r} name two different runs")
        self.runId = runId if pluginRun is None else pluginRun.id
        self.pluginState = pluginState
        self.snapshots = Snapshots()
        self._runner: Runner | None = None
        self._variables: PodVariables | None = None
        # One call at a time for each key; what it calls may call `once` in its turn.
        self._once: weakref.WeakValueDictionary[str, threading.RLock] = weakref.WeakValueDictionary()
        self._choosing = threading.Lock()
        super().__init__(pluginRun=pluginRun, client=client, **kwargs)

    def _warn_without_run(self) -> None:
        if self.runId is None:
            super()._warn_without_run()

    def driven_by(self, runner: Runner) -> None:
        """Take the runner that drives this plugin; it calls this before `setup`."""
        self._runner = runner

    def setup(self) -> None:
        """Prepare before `run`, in every run, also when it resumes; register here what snapshots hold."""

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def snapshot_condition(self) -> SaveCondition:
        """Return what is asked at each safe point: the class's ``condition``, unless the configuration has another."""
        interval = getattr(getattr(self, "config", None), "snapshot_interval_s", None)
        return self.condition if interval is None else PeriodicSaveCondition(interval)

    def snapshot_keeper(self, folder: Path) -> StatesKeeper:
        """Return what decides which snapshots in ``folder`` go: all but the latest few, unless overridden.

        The one that the plugin state points to always stays.
        """
        from holdfast.snapshots.keepers import LatestStatesKeeper  # as above

        kept = getattr(getattr(self, "config", None), "max_snapshots", None)
        return LatestStatesKeeper(folder, kept or self.max_snapshots)

    def migrate_state(self, variables: dict[str, Value], from_version: int) -> Mapping[str, Value] | None:
        """Return the variables of version ``from_version`` as those of ``state_version``, or change them in place.

        Called before `setup`, in a transaction: items that are written here are migrated with the variables, or not
        at all. What the variables were is kept in the namespace ``before-v<from_version>``.
        """
        message = (
            f"the variables are of version {from_version}, and {type(self).__name__} works with {self.state_version}: "
            "implement migrate_state(variables, from_version)"
        )
        raise NotImplementedError(message)

    # -- what outlives runs -------------------------------------------------------------------------------------------

    @property
    def state(self) -> StateNamespace:
        """The variables of the plugin state: ``self.state.cursor = 7``, ``self.state.cursor`` (None if absent).

        A write outside a transaction is durable when it returns; inside one, when the block ends, or never.
        """
        return StateNamespace(self._backend, "")

    @property
    def _backend(self) -> PodVariables:
        if self._variables is None:
            self._variables = PodVariables(self.client, self._state_id())
        return self._variables

    def _state_id(self) -> str:
        if self.pluginState is None:
            states = [edge.target for edge in self.client.get_edges(self._run_id()) if edge.name == "pluginState"]
            found = next((each for each in states if isinstance(each, PersistentState)), None)
            if found is None:
                raise NotFoundError(f"run {self._run_id()!r} leads to no plugin state", run=self._run_id())
            self.pluginState = found
        if self.pluginState.id is None:
            raise InvalidError("the plugin state is not in the Pod yet: create it first")
        return self.pluginState.id

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Make everything that the block writes, items and variables alike, one event: all of it happens, or none.

        Raises:
            FencedError: Another run has taken over; nothing was written.
        """
        with self.client.transaction():
            yield

    def once(self, key: str, function: Callable[[], T]) -> T:
        """Return what ``function`` returned when it was first called under ``key``, by whichever run.

        Threads that ask for one key at the same time wait for the one that calls; for other keys nobody waits.
        What is returned is what JSON makes of the result, the first time too. If the process dies after the function
        did its work and before the result is stored, the next run calls it again: make the effect one that may happen
        twice, or a transaction.

        Raises:
            InvalidError: The result is not what JSON can hold, and was not kept; or no result can be kept under
                ``key``, and the function was not called.
            DamagedError: What is kept under ``key`` is no result, because somebody else wrote it.
        """
        check(key, "the key of a result")
        if not 0 < len(key) <= MAX_NAME:
            raise InvalidError(f"{shown(key)} cannot be the key of a result: 1 to {MAX_NAME} characters are allowed")
        with self._choosing:
            lock = self._once.setdefault(key, threading.RLock())  # gone with its last user
        with lock:
            known = self._backend.find(ONCE, key)
            if known is None:
                result = function()
                try:
                    known = to_json(result, inf_nan_mode="constants").decode()
                except ValueError as exc:
                    message = f"the result of once({key!r}) cannot be kept, and its work will be done again: {exc}"
                    raise InvalidError(message, key=key) from exc
                self._backend.put(ONCE, key, known)
            try:
                return from_json(cast("str", known))
            except (TypeError, ValueError) as exc:
                message = (
                    f"what is kept for once({key!r}) is no result: delete the variable to have the work done again"
                )
                raise DamagedError(message, key=key) from exc

    # -- on the way ---------------------------------------------------------------------------------------------------

    def safe_point(self) -> None:
        """Say that this is a good place to be stopped, moved or snapshotted; returns at once if nobody wants that.

        Raises:
            Cancelled: The run was aborted, or another run has taken over the plugin state.
            Released: The process is to end; the run goes on from here in another.
        """
        if self._runner is not None:
            self._runner.safe_point()

    def track(self, steps: Iterable[T], total: int | None = None) -> Iterator[T]:
        """Yield each of ``steps``, showing progress; before each of them is a safe point.

        Args:
            steps: Any iterable.
            total: How many there are; None: its length if it has one, else unknown.
        """
        if total is None and hasattr(steps, "__len__"):
            total = len(cast("Sized", steps))
        self.safe_point()
        for done, step in enumerate(steps, 1):
            yield step
            if self._runner is not None:
                self._runner.report(done, total)
            self.safe_point()

    # -- the run, as its owner sees it --------------------------------------------------------------------------------

    def get_run(self, client: Pod | None = None, *, expanded: bool = False) -> PluginRun:
        """Return the run as the Pod has it."""
        run = (client or self.client).get(self._run_id(), expanded=expanded)
        if not isinstance(run, PluginRun):
            raise NotFoundError(f"item {run.id!r} is no run", id=run.id)
        return run

    def get_account(self, client: Pod | None = None) -> Account | None:
        """Return the account of the run, or of its plugin state; None if it has none."""
        client = client or self.client
        run = self.get_run(client, expanded=True)
        places = (run.id, *(state.id for state in run.pluginState))
        edges = (edge for place in places for edge in client.get_edges(place or "") if edge.name == "account")
        return next((edge.target for edge in edges if isinstance(edge.target, Account)), None)

    def _run_id(self) -> str:
        if self.runId is None:
            raise InvalidError(f"{type(self).__name__} has no run: give it one")
        return self.runId

    def _get_run_state(self, client: Pod | None = None) -> str:
        return str(status_of(self.get_run(client).status))

    def _set_run_state(self, client: Pod | None, status: Status, error: str | None = None) -> None:
        (client or self.client).add(MoveRun(self._run_id(), status, error))

    def initialized(self, client: Pod | None = None) -> None:
        """Say that the run is prepared; each of these moves raises ConflictError if it is not a legal one."""
        self._set_run_state(client, Status.INITIALIZED)

    def ready(self, client: Pod | None = None) -> None:
        """Say that the run may be started."""
        self._set_run_state(client, Status.READY)

    def started(self, client: Pod | None = None) -> None:
        """Say that the run works."""
        self._set_run_state(client, Status.STARTED)

    def authenticated(self, client: Pod | None = None) -> None:
        """Say that the run has signed in."""
        self._set_run_state(client, Status.AUTHENTICATED)

    def action_required(self, client: Pod | None = None) -> None:
        """Say that the run waits for its user."""
        self._set_run_state(client, Status.USER_ACTION_NEEDED)

    def daemon(self, client: Pod | None = None) -> None:
        """Say that the run has no end."""
        self._set_run_state(client, Status.DAEMON)

    def completed(self, client: Pod | None = None) -> None:
        """Say that the run is done."""
        self._set_run_state(client, Status.DONE)

    def failed(self, error: str, client: Pod | None = None) -> None:
        """Say that the run failed, and why."""
        self._set_run_state(client, Status.ERROR, error)

    def aborted(self, client: Pod | None = None) -> None:
        """Say that the run was given up."""
        self._set_run_state(client, Status.ABORTED)

    # -- views --------------------------------------------------------------------------------------------------------

    def set_run_view(self, name: str, client: Pod | None = None) -> None:
        """Show the view with this name to the user of the run.

        Raises:
            NotFoundError: There is no such view.
        """
        if not self._set_run_view(client or self.client, name):
            raise NotFoundError(f"there is no view {name!r}", view=name)

    def get_run_view(self, client: Pod | None = None) -> CVUStoredDefinition | None:
        """Return the view that the user of the run is shown."""
        client = client or self.client
        return self._get_run_view(client, self.get_run(client))

    def _set_run_view(self, client: Pod, name: str) -> bool:
        views = client.search({"type": "CVUStoredDefinition", "name": name, "_limit": 1})
        if not views:
            return False
        run = self._run_id()
        with client.transaction() if client.block is None else nullcontext():
            old = [edge for edge in client.get_edges(run) if edge.name == "view"]
            client.delete_edges([Edge(run, edge.target, "view") for edge in old])
            client.create_edge(Edge(run, views[0], "view"))
        return True

    def _get_run_view(self, client: Pod, run: PluginRun) -> CVUStoredDefinition | None:
        if run.id is None:
            raise ConflictError("the run is not in the Pod yet")
        views = [edge.target for edge in client.get_edges(run.id) if edge.name == "view"]
        # The last one: a transaction that sets two views does not see the first when it sets the second.
        return next((view for view in reversed(views) if isinstance(view, CVUStoredDefinition)), None)
