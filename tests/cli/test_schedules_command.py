"""``holdfast runs schedule``: sets, lists and ends schedules, and refuses what would never begin a run."""

import json
import time
from pathlib import Path

import pytest

from holdfast import PersistentState, PluginRun, PodClient, Schedule, Settings
from holdfast.engine.schedules import run_schedules
from holdfast.keys import read_identity
from holdfast.sql import Agenda
from tests.cli.conftest import Call

PLUGIN = """
from holdfast import StatefulPlugin

class Nightly(StatefulPlugin):
    def __init__(self, *args, depth: int = 1, **kwargs):
        super().__init__(*args, **kwargs)

    def run(self):
        pass
"""


@pytest.fixture
def plugin(home: Path) -> str:
    """The name of a plugin in the plugins' folder."""
    folder = home / "plugins"
    folder.mkdir(parents=True)
    (folder / "nightly.py").write_text(PLUGIN, encoding="utf-8")
    return "nightly"


def schedules() -> list[Schedule]:
    """Return the schedules of the Pod."""
    with PodClient() as client:
        return [each for each in client.search({"type": "Schedule", "[[edges]]": {}}) if isinstance(each, Schedule)]


def test_a_plugin_is_scheduled_and_its_run_begins(call: Call, plugin: str) -> None:
    """It has the configuration that was said, and an image, without which nobody would start it."""
    answer = call("runs", "schedule", plugin, "--every", 60, "--config", '{"depth": 2}', "--overlap", "queue", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.document["when"] == "every 60 s"
    assert (answer.document["plugin"], answer.document["state"]) == ("nightly:Nightly", "default")

    [schedule] = schedules()
    assert (schedule.interval, schedule.overlap, schedule.containerImage) == (60, "queue", "holdfast")
    with PodClient() as client:
        created = schedule.dateCreated
        assert created is not None
        run_schedules(client._store, round(created.timestamp() * 1000) + 60_000)
        [run] = client.search({"type": "PluginRun", "[[edges]]": {}})
        assert isinstance(run, PluginRun)
        assert json.loads(run.config or "") == {"depth": 2}
        assert [(each.pluginId, each.name) for each in run.pluginState] == [("nightly:Nightly", "default")]


def test_a_server_that_shares_the_home_is_told(call: Call, plugin: str) -> None:
    """It looks at the Pod at once, and then when the schedule says so."""
    call("runs", "schedule", plugin, "--every", 60)
    settings = Settings.read()
    agenda = Agenda(settings.keyring_path)
    owner = read_identity(settings.home).owner_key
    agenda.put(owner, None, 0)
    assert agenda.next_ms() is None
    call("runs", "schedule", plugin, "--every", 30)
    assert list(agenda.list_due(time.time_ns() // 1_000_000)) == [owner]


def test_said_again_it_is_replaced(call: Call, plugin: str) -> None:
    """By cron then, in a time zone; another plugin state has its own."""
    call("runs", "schedule", plugin, "--every", 60, "--catch-up", "all")
    call("runs", "schedule", plugin, "--every", 60, "--state", "other")
    answer = call("runs", "schedule", plugin, "--cron", "30 4 * * mon-fri", "--timezone", "Europe/Amsterdam")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(
        "Runs of nightly:Nightly begin at 30 4 * * mon-fri (Europe/Amsterdam), the next one at 2"
    )

    listed = call("runs", "schedule", "--list", "--json").document["schedules"]
    assert [(each["state"], each["when"], each["catch_up"], each["error"]) for each in listed] == [
        ("default", "at 30 4 * * mon-fri (Europe/Amsterdam)", "latest", None),
        ("other", "every 60 s", "latest", None),
    ]
    assert listed[0]["last"] is not None  # what the new rule has before now was not missed


def test_metadata_may_say_when_and_with_what(call: Call, home: Path, tmp_path: Path) -> None:
    """With an image the plugin need not be here; the account is made once, for all runs."""
    metadata = {
        "pluginModule": "elsewhere", "pluginName": "Bot", "cron": "0 4 * * *", "config": {"a": 1},
        "writes": ["Person"], "account": {"service": "s"}, "containerImage": "other",
    }  # fmt: skip
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(metadata), encoding="utf-8")
    for _ in range(2):
        answer = call("runs", "schedule", path, "--image", "bot:1", "--timezone", "Asia/Tokyo")
        assert (answer.code, answer.err) == (0, "")
    [schedule] = schedules()
    assert (schedule.cron, schedule.timezone, schedule.containerImage) == ("0 4 * * *", "Asia/Tokyo", "bot:1")
    assert (schedule.config, schedule.writes) == ('{"a": 1}', '["Person"]')
    assert [each.service for each in schedule.account] == ["s"]
    with PodClient() as client:
        assert len(client.search({"type": "Account"})) == 1
    assert call("runs", "schedule", path, "--image", "bot:1", "--every", 60).code == 0
    [schedule] = schedules()
    assert (schedule.interval, schedule.cron, schedule.timezone) == (60, None, None)
    assert call("runs", "schedule", path, "--off").code == 0
    assert schedules() == []


def test_a_schedule_is_ended(call: Call, plugin: str, home: Path) -> None:
    """That of one plugin state, even when the plugin is gone; ended again there is none."""
    for state in ("default", "other"):
        call("runs", "schedule", plugin, "--every", 60, "--state", state)
    (home / "plugins" / "nightly.py").unlink()
    answer = call("runs", "schedule", "nightly:Nightly", "--off")
    assert (answer.code, answer.out) == (0, "Runs of nightly:Nightly begin by themselves no more.\n")
    assert [each.pluginState[0].name for each in schedules()] == ["other"]

    assert call("runs", "schedule", "nightly", "--off", "--state", "other").code == 0
    assert schedules() == []
    again = call("runs", "schedule", "nightly", "--off", "--json")
    assert again.code == 4
    assert again.error["message"] == (
        "plugin 'nightly' has no schedule on plugin state 'default': --list shows which there are"
    )


def test_the_list_shows_what_is_wrong_and_what_is_paused(call: Call, home: Path) -> None:
    """Also with what was written past the command, whose plugin state may be gone; and nothing of other plugins."""
    with PodClient() as client:
        state = client.create(PersistentState(name="s"))
        client.create(Schedule("m", "P", cron="daily", pluginState=[state]))
        client.create(Schedule("m", "Q", interval=60, isPaused=True))
    rows = call("runs", "schedule", "--list").rows
    assert rows[0] == ["plugin", "state", "when", "overlap", "catch_up", "last", "next", "error"]
    assert rows[1][:5] == ["m:P", "s", "at daily (UTC)", "skip", "latest"]
    assert rows[1][7].startswith("'daily' is no cron expression")
    assert rows[2] == ["m:Q", "", "paused", "skip", "latest", "", "", ""]
    assert [row[0] for row in call("runs", "schedule", "m:Q", "--list").rows[1:]] == ["m:Q"]
    assert [row[0] for row in call("runs", "schedule", "--list", "--state", "s").rows[1:]] == ["m:P"]


@pytest.mark.parametrize(
    "words,message",
    [
        (["nightly"], "a schedule has an 'interval' in seconds or a 'cron' expression: one of the two"),
        (["nightly", "--every", "60", "--cron", "* * * * *"], "one of the two"),
        (["nightly", "--every", "0"], "the interval of a schedule cannot be 0"),
        (["nightly", "--cron", "nightly"], "'nightly' is no cron expression"),
        (["nightly", "--cron", "* * * * *", "--timezone", "Mars"], "there is no time zone 'Mars'"),
        (["nightly", "--every", "5", "--overlap", "kill"], "'overlap' of a schedule cannot be 'kill'"),
        (["nightly", "--every", "5", "--catch-up", "some"], "'catchUp' of a schedule cannot be 'some'"),
        (["nightly", "--every", "5", "--config", '{"height": 1}'], "Nightly has no setting 'height'; it has depth"),
        (["nightly", "--every", "5", "--off"], "a schedule is set, ended (--off) or listed (--list): one of the three"),
        (["--off", "--list"], "a schedule is set, ended (--off) or listed (--list): one of the three"),
        (["--every", "5"], "no plugin was named: say whose runs are meant, or --list"),
        (["--off"], "no plugin was named: say whose runs are meant, or --list"),
    ],
)
def test_what_is_no_schedule_is_refused(call: Call, plugin: str, words: list[str], message: str) -> None:
    """It ends with 2, and nothing is written."""
    answer = call("runs", "schedule", *words, "--json")
    assert answer.code == 2
    assert message in answer.error["message"]
    assert schedules() == []
