"""`current`: each thread and task has what was provided around it, and a plugin's threads go with the plugin."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.errors import ConflictError, InvalidError, NotFoundError
from holdfast.plugins.current import Belongings, Cycle, NoCycleError, current, cycle


def test_what_is_provided_is_there_until_the_end_of_the_block() -> None:
    """An inner block provides more, or something else, and the outer one is back after it."""
    log = logging.getLogger("app")
    with current.using(settings="s", log=log):
        with current.using(session="one", settings="inner"):
            assert (current.settings, current.session, current.log) == ("inner", "one", log)
        assert (current.settings, current.deployment_settings) == ("s", "s")
        assert getattr(current, "session", None) is None
    with current.using(state="v"):
        assert current.state == "v"


def test_whoever_has_anything_has_a_log() -> None:
    """That of plugins and applications in general, if theirs provides none."""
    with current.using(state="v"):
        assert current.log is logging.getLogger("holdfast.app")


@pytest.mark.parametrize("name", ["settings", "deployment_settings", "session", "state", "log"])
def test_what_nobody_provides_is_an_error_that_says_so(name: str) -> None:
    """An AttributeError, so that hasattr answers, and one of Holdfast's kinds."""
    wanted = "settings" if name == "deployment_settings" else name
    with pytest.raises(
        NoCycleError, match=rf"^current\.{wanted} is not there: it needs `with current\.using"
    ) as raised:
        getattr(current, name)
    assert isinstance(raised.value, NotFoundError)
    assert not hasattr(current, name)


@pytest.mark.parametrize("name", ["settings", "session", "other"])
def test_nothing_is_set_by_assignment(name: str) -> None:
    """A plugin cannot leave anything for the next request."""
    with pytest.raises(AttributeError):
        setattr(current, name, 1)


def test_threads_and_tasks_do_not_see_each_others_session() -> None:
    """However they take turns."""
    seen: list[tuple[int, int]] = []
    together = threading.Barrier(3)

    def request(number: int) -> None:
        with current.using(session=number):
            together.wait(10)
            seen.append((number, current.session))
            together.wait(10)

    threads = [threading.Thread(target=request, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    async def task(number: int) -> None:
        with current.using(session=number):
            await asyncio.sleep(0)
            seen.append((number, current.session))

    async def tasks() -> None:
        await asyncio.gather(*map(task, range(3, 6)))

    asyncio.run(tasks())
    assert sorted(seen) == [(number, number) for number in range(6)]


def called_by(belongings: Belongings, code: Callable[[], Any]) -> Any:
    """Call code as a loader would."""
    token = cycle.set(Cycle(None, belongings))
    try:
        return code()
    finally:
        cycle.reset(token)


def test_log_is_the_plugins_own_if_the_application_provides_none() -> None:
    """By name, so that an application can set its level."""
    assert called_by(Belongings("p"), lambda: current.log).name == "plugin.p"


@pytest.mark.parametrize(
    "call",
    [lambda: current.on_unload(print), lambda: current.start_thread(print), lambda: current.start_timer(1, print)],
)
def test_only_a_plugin_can_leave_something_to_be_stopped(call: Callable[[], Any]) -> None:
    """Outside, in a thread that inherited a cycle, and after unloading, it is refused."""
    with pytest.raises(NoCycleError, match=r"it needs code of a plugin that is being loaded or set up, or its thread$"):
        call()
    belongings = Belongings("p")
    found: list[BaseException] = []

    async def elsewhere() -> None:
        try:
            await asyncio.to_thread(call)
        except NoCycleError as exc:
            found.append(exc)

    called_by(belongings, lambda: asyncio.run(elsewhere()))
    assert len(found) == 1
    belongings.close()
    with pytest.raises(ConflictError, match=r"^plugin 'p' was unloaded: "):
        called_by(belongings, call)


def test_callbacks_are_called_once_and_the_last_one_first(caplog: pytest.LogCaptureFixture) -> None:
    """One that raises is logged; it keeps no other from being called."""
    done: list[str] = []
    belongings = Belongings("p")

    def first() -> None:
        done.append("first")

    def leave() -> None:
        raise SystemExit

    for _ in range(3):
        for callback in (first, leave):
            assert called_by(belongings, lambda callback=callback: current.on_unload(callback)) is callback
    called_by(belongings, lambda: current.on_unload(lambda: done.append("last")))
    assert belongings.close() is True
    assert belongings.close() is False
    assert done == ["last", "first"]
    [record] = caplog.records
    assert (record.message, vars(record)["plugin"]) == ("plugin.raised", "p")


def test_a_thread_is_started_once_and_stopped(caplog: pytest.LogCaptureFixture) -> None:
    """It sees what is for longer than a request, may start others, and what it raises is logged."""
    seen: list[Any] = []

    def work(stop: threading.Event) -> None:
        seen.extend((current.settings, current.state, hasattr(current, "session")))
        current.on_unload(lambda: seen.append("unloaded"))
        ready.set()
        stop.wait(20)
        raise ValueError

    ready = threading.Event()
    with current.using(settings="s", session="one user's", state="v"):
        belongings = Belongings("p")
    threads = {called_by(belongings, lambda: current.start_thread(work, name="w")) for _ in range(3)}
    [thread] = threads
    assert ready.wait(10)
    assert (thread.name, thread.daemon) == ("p: w", True)
    belongings.close()
    thread.join(10)
    assert belongings.join(0) == []
    assert seen == ["s", "v", False, "unloaded"]
    assert [record.message for record in caplog.records] == ["plugin.raised"]


def test_a_thread_that_has_ended_is_started_again() -> None:
    """So that a plugin whose thread died has one again in the next cycle."""
    belongings = Belongings("p")
    threads: list[threading.Thread] = []
    for _ in range(2):
        threads.append(called_by(belongings, lambda: current.start_thread(lambda stop: None, name="w")))
        threads[-1].join(10)
    assert threads[0] is not threads[1]
    belongings.close()


def test_a_timer_goes_on_after_an_error_and_ends_with_its_plugin(caplog: pytest.LogCaptureFixture) -> None:
    """Each error is logged."""
    belongings = Belongings("p")
    beats = threading.Semaphore(0)

    def beat() -> None:
        beats.release()
        raise ValueError

    timer = called_by(belongings, lambda: current.start_timer(0.001, beat))
    for _ in range(3):
        assert beats.acquire(timeout=10)
    belongings.close()
    timer.join(10)
    assert not timer.is_alive()
    assert {record.message for record in caplog.records} == {"plugin.raised"}


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf")])
def test_a_timer_has_a_positive_interval(interval: float) -> None:
    """Anything else would never or always beat."""
    with pytest.raises(InvalidError, match=r"^a timer cannot have an interval of "):
        called_by(Belongings("p"), lambda: current.start_timer(interval, print))
