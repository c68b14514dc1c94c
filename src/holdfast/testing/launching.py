"""Launchers in tests: what every one must do, as tests, and a double that launches nothing and does as it is told.

Each sentence of `holdfast.runs.Launcher` is a test of `LauncherContract`, to which a launcher is held by a subclass.
What is only true of processes or of containers is for each of them to show by itself.
"""

# ruff: noqa: S101 -- these are tests

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from holdfast.errors import HoldfastError, InvalidError, NotFoundError
from holdfast.runs import (
    Launched,
    Launcher,
    LaunchSpec,
    Logs,
    Phase,
    Probe,
    check_launch_name,
    check_launch_spec,
)

PROGRAMS: Final[Mapping[str, str]] = {
    "waits": "import signal; print('begun', flush=True); signal.pause()",
    "stubborn": "import signal; signal.signal(15, signal.SIG_IGN); print('begun', flush=True)\nwhile 1: signal.pause()",
    "ends": "print('begun'); print('ended')",
    "fails": "print('begun'); raise SystemExit(3)",
}
"""What a launch may do in the contract: by what it is called, as Python."""


def make_spec(*, epoch: int = 1, image: str = "", command: Sequence[str] = (), run: str = "r1") -> LaunchSpec:
    """Return what a launcher is told of a run of no Pod."""
    return LaunchSpec(
        owner="o" * 64,
        plugin="my_bot:Bot",
        state="s1",
        run=run,
        epoch=epoch,
        address="http://127.0.0.1:1",
        auth='{"type": "PluginAuth", "data": {"token": "hft1.secret"}}',
        image=image,
        command=tuple(command),
    )


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return when something is so; it is for the test's own timeout to say that it never was."""
    while not is_so():
        threading.Event().wait(0.01)


class LauncherContract:
    """A subclass overrides the fixture ``launcher``, and the methods; each test begins with nothing launched."""

    @abstractmethod
    def spec(self, does: str, epoch: int = 1) -> LaunchSpec:
        """Return the spec of what does as one of `PROGRAMS` says; "missing": of what is not there."""

    @abstractmethod
    def another(self, launcher: Launcher) -> Launcher:
        """Return another launcher of the same place, as the next process has it."""

    def test_what_is_launched_runs_and_is_known(self, launcher: Launcher) -> None:
        """Under the name that was known before, with what it was made for, and to every launcher of the place."""
        spec = self.spec("waits")
        assert launcher.launch(spec) == spec.name
        for each in (launcher, self.another(launcher)):
            assert each.probe(spec.name) == Probe(Phase.RUNNING)
            assert each.list() == [Launched(name=spec.name, owner="o" * 64, state="s1", run="r1", epoch=1)]

    def test_a_name_is_started_once(self, launcher: Launcher) -> None:
        """Whoever does not know whether it was done launches again; also when it has ended."""
        spec = self.spec("waits")
        for _ in range(2):
            assert launcher.launch(spec) == self.another(launcher).launch(spec) == spec.name
            _wait_for(launcher, spec.name, b"begun")
        launcher.stop(spec.name, 60)
        assert launcher.launch(spec) == spec.name
        assert launcher.probe(spec.name).phase is Phase.FAILED
        assert launcher.logs(spec.name).data == b"begun\n"

    def test_of_two_at_once_one_starts_it(self, launcher: Launcher) -> None:
        """Both return its name, and it runs once."""
        spec, other = self.spec("waits"), self.another(launcher)
        with ThreadPoolExecutor(4) as pool:
            launching = [pool.submit(each.launch, spec) for each in (launcher, other, launcher, other)]
            names = [each.result() for each in launching]
        assert names == [spec.name] * 4
        _wait_for(launcher, spec.name, b"begun")
        assert launcher.logs(spec.name).data.count(b"begun") == 1
        assert len(launcher.list()) == 1

    def test_what_ended_well_is_gone_and_still_known(self, launcher: Launcher) -> None:
        """It is listed, and what it wrote is there, until it is deleted."""
        name = launcher.launch(self.spec("ends"))
        wait_until(lambda: launcher.probe(name).phase is not Phase.RUNNING)
        assert launcher.probe(name) == self.another(launcher).probe(name) == Probe(Phase.GONE)
        assert [each.name for each in launcher.list()] == [name]
        assert launcher.logs(name).data == b"begun\nended\n"

    def test_what_ended_badly_has_failed_and_says_how(self, launcher: Launcher) -> None:
        """The reason is for the user."""
        name = launcher.launch(self.spec("fails"))
        wait_until(lambda: launcher.probe(name).phase is not Phase.RUNNING)
        assert launcher.probe(name) == Probe(Phase.FAILED, "it ended with exit code 3")
        assert launcher.logs(name).data == b"begun\n"

    def test_what_is_not_there_is_not_launched(self, launcher: Launcher) -> None:
        """It is an error that names it, `probe` says the same, it is listed, and may be launched when it has come."""
        import pytest  # here, for the double beside this needs none

        spec = self.spec("missing")
        for _ in range(2):
            with pytest.raises(NotFoundError, match="missing") as caught:
                launcher.launch(spec)
            assert launcher.probe(spec.name) == Probe(Phase.FAILED, str(caught.value))
            assert [each.name for each in launcher.list()] == [spec.name]
        assert launcher.launch(self.spec("waits")) == spec.name
        assert launcher.probe(spec.name) == Probe(Phase.RUNNING)

    def test_what_was_never_launched_is_gone_and_may_be_stopped_and_deleted(self, launcher: Launcher) -> None:
        """Nothing happens."""
        name = self.spec("waits").name
        assert launcher.probe(name) == Probe(Phase.GONE)
        assert launcher.logs(name).data == b""
        launcher.stop(name, 0)
        launcher.delete(name)
        assert launcher.list() == []

    def test_stop_asks_first(self, launcher: Launcher) -> None:
        """What ends when it is asked needs no grace; when this returns it does not run, and what it wrote is there."""
        name = launcher.launch(self.spec("waits"))
        _wait_for(launcher, name, b"begun")
        for _ in range(2):
            launcher.stop(name, 60)
            assert launcher.probe(name).phase is Phase.FAILED
            assert "signal 15" in launcher.probe(name).reason
        assert launcher.logs(name).data == b"begun\n"

    def test_stop_kills_what_does_not_end(self, launcher: Launcher) -> None:
        """After the grace that it was given; another launcher does as well."""
        name = launcher.launch(self.spec("stubborn"))
        _wait_for(launcher, name, b"begun")
        self.another(launcher).stop(name, 0.1)
        assert launcher.probe(name).phase is Phase.FAILED
        assert "signal 9" in launcher.probe(name).reason

    def test_nothing_is_left_of_what_was_deleted(self, launcher: Launcher) -> None:
        """It is killed if it runs; then the name is one that was never launched."""
        kept = launcher.launch(self.spec("ends", epoch=2))
        for does in ("waits", "stubborn", "ends"):
            name = launcher.launch(self.spec(does))
            _wait_for(launcher, name, b"begun")
            launcher.delete(name)
            launcher.delete(name)
            assert launcher.probe(name) == Probe(Phase.GONE)
            assert launcher.logs(name).data == b""
            assert [each.name for each in launcher.list()] == [kept]
        assert launcher.list() == self.another(launcher).list()

    def test_what_is_written_is_read_on_from_where_one_was(self, launcher: Launcher) -> None:
        """Nothing twice, nothing left out, while it runs and when it has ended."""
        name = launcher.launch(self.spec("waits"))
        found, after = _wait_for(launcher, name, b"begun"), launcher.logs(name).after
        assert found == b"begun\n"
        assert launcher.logs(name, after) == self.another(launcher).logs(name, after) == Logs(b"", after)
        launcher.stop(name, 60)
        assert launcher.logs(name, after) == Logs(b"", after)

    def test_what_cannot_be_the_name_of_a_launch_is_refused(self, launcher: Launcher) -> None:
        """By each method, and nothing outside is reached by it."""
        import pytest  # as above

        for name in ("", ".", "..", "../x", "a/b", "A", "-a", "a-", "1a", "a" * 64, "a\n", "é"):
            for call in (launcher.probe, launcher.logs, launcher.delete, partial(launcher.stop, grace_s=0)):
                with pytest.raises(InvalidError, match="names no launch"):
                    call(name)

    def test_what_cannot_be_told_a_run_is_refused(self, launcher: Launcher) -> None:
        """It is an error that says what it is, and does not show what opens the Pod; nothing is launched."""
        import pytest  # as above

        spec = self.spec("waits")
        for wrong, message in (
            (replace(spec, environment={"A": "\0"}), "'A' in the environment holds a NUL"),
            (replace(spec, environment={"A": "\ud800"}), "'A' in the environment holds"),
            (replace(spec, environment={"A=B": "C"}), "'A=B' is no name in an environment"),
            (replace(spec, auth="secret\ud800"), "auth holds a NUL, or what is no text$"),
            (replace(spec, command=("a", "\0")), "part 2 of the command holds a NUL"),
            (replace(spec, run="../r"), "'../r' is the id of no run"),
        ):
            with pytest.raises(InvalidError, match=message) as caught:
                launcher.launch(wrong)
            assert launcher.probe(spec.name) == Probe(Phase.FAILED, str(caught.value))
        launcher.launch(spec)
        assert launcher.probe(spec.name) == Probe(Phase.RUNNING)

    def test_nobody_reads_on_from_where_nobody_was(self, launcher: Launcher) -> None:
        """What was not said by an earlier part is refused."""
        import pytest  # as above

        name = launcher.launch(self.spec("waits"))
        for after in ("x", "-1", "1.5", "²", "9" * 25, "9" * 5000, "1/\n/1"):
            with pytest.raises(InvalidError, match="has nothing after"):
                launcher.logs(name, after)


def _wait_for(launcher: Launcher, name: str, text: bytes) -> bytes:
    """Return what a launch wrote when there is a text in it."""
    wait_until(lambda: text in launcher.logs(name).data)
    return launcher.logs(name).data


class FakeLauncher:
    """A `Launcher` that launches nothing: what it was told to launch does as ``spec.command[0]`` says, by `PROGRAMS`.

    It ends, fails and lies when it is told to. Without a command a launch waits to be ended.

    Args:
        of: Another one, of the same place.
    """

    def __init__(self, of: FakeLauncher | None = None) -> None:
        self._lock = threading.RLock() if of is None else of._lock
        self.launched: dict[str, LaunchSpec] = {} if of is None else of.launched
        """What was started and not deleted, by name."""
        self._refused: dict[str, LaunchSpec] = {} if of is None else of._refused
        self.calls: list[tuple[str, str]] = [] if of is None else of.calls
        """Which method was called for which name, ``("launch", "hf-…")``, in order."""
        self._probes: dict[str, Probe] = {} if of is None else of._probes
        self._written: dict[str, bytes] = {} if of is None else of._written
        self._faults: dict[str, list[tuple[HoldfastError, bool]]] = {} if of is None else of._faults
        self._lies: dict[str, Probe] = {} if of is None else of._lies

    def end(self, name: str, probe: Probe = Probe(Phase.GONE)) -> None:  # noqa: B008 -- frozen
        """Let a launch have ended, and be found so."""
        with self._lock:
            self._probes[name] = probe

    def write(self, name: str, data: bytes) -> None:
        """Let a launch write something."""
        with self._lock:
            self._written[name] = self._written.get(name, b"") + data

    def fail(self, method: str, error: HoldfastError, *, is_done: bool = False) -> None:
        """Let the next call of a method raise: before anything is done, or when it was done and nobody is told."""
        with self._lock:
            self._faults.setdefault(method, []).append((error, is_done))

    def lie(self, name: str, probe: Probe | None) -> None:
        """Let `probe` answer this of a name, whatever is so; None: the truth again."""
        with self._lock:
            if probe is None:
                self._lies.pop(name, None)
            else:
                self._lies[name] = probe

    def launch(self, spec: LaunchSpec) -> str:
        """As `Launcher` says."""
        with self._called("launch", spec.name):
            does = spec.command[0] if spec.command else "waits"
            if spec.name in self.launched:
                return spec.name
            try:
                check_launch_spec(spec)
                if does == "missing":
                    raise NotFoundError("image 'missing' is not here", image="missing")
            except HoldfastError as exc:
                self._refused[spec.name] = spec
                self._probes[spec.name] = Probe(Phase.FAILED, str(exc))
                raise
            self._refused.pop(spec.name, None)
            self.launched[spec.name] = spec
            self._written[spec.name] = b"begun\nended\n" if does == "ends" else b"begun\n"
            failed = Probe(Phase.FAILED, "it ended with exit code 3")
            self._probes[spec.name] = {"ends": Probe(Phase.GONE), "fails": failed}.get(does, Probe(Phase.RUNNING))
            return spec.name

    def probe(self, name: str) -> Probe:
        """As `Launcher` says, but for lies."""
        with self._called("probe", name):
            return self._lies.get(name, self._probes.get(name, Probe(Phase.GONE)))

    def stop(self, name: str, grace_s: float) -> None:  # noqa: ARG002 -- nothing here takes time
        """As `Launcher` says."""
        with self._called("stop", name):
            if self._probes.get(name) == Probe(Phase.RUNNING):
                number = 9 if self.launched[name].command[:1] == ("stubborn",) else 15
                self._probes[name] = Probe(Phase.FAILED, f"it was ended by signal {number}")

    def delete(self, name: str) -> None:
        """As `Launcher` says."""
        with self._called("delete", name):
            for each in (self.launched, self._refused, self._probes, self._written):
                each.pop(name, None)

    def logs(self, name: str, after: str = "") -> Logs:
        """As `Launcher` says."""
        with self._called("logs", name):
            written = self._written.get(name, b"")
            if after and not (after.isascii() and after.isdecimal() and len(after) < 19):
                raise InvalidError(f"the log of {name!r} has nothing after {after!r}", name=name)
            return Logs(written[int(after or "0") :], str(len(written)) if written else after)

    def list(self) -> Sequence[Launched]:
        """As `Launcher` says."""
        with self._called("list"):
            return [
                Launched(name=name, owner=spec.owner, state=spec.state, run=spec.run, epoch=spec.epoch)
                for name, spec in sorted({**self.launched, **self._refused}.items())
            ]

    @contextmanager
    def _called(self, method: str, name: str | None = None) -> Generator[None]:
        if name is not None:
            check_launch_name(name)
        with self._lock:
            self.calls.append((method, name or ""))
            error, is_done = self._faults[method].pop(0) if self._faults.get(method) else (None, False)
            if error is not None and not is_done:
                raise error
            yield
            if error is not None:
                raise error
