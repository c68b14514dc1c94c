"""Seed 001, the base of plugins: its example, its commands and each rule that it states."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from holdfast import InvalidError, PluginBase, PluginRun, PodClient
from holdfast.testing import Dog
from tests.components.servers import Process

EXAMPLE = """
from holdfast import PluginBase
from holdfast.testing import Dog


class ExamplePlugin(PluginBase):
    schema_classes = [Dog]

    def __init__(self, dog_name: str = "Bob", **kwargs):
        super().__init__(**kwargs)
        self.dog_name = dog_name

    def run(self):
        print("Started plugin run...")
        dog = Dog(self.dog_name, 10)
        self.client.create(dog)
        print("Run success!")
"""

METADATA = {"pluginModule": "example_plugin", "pluginName": "ExamplePlugin"}


def example() -> Any:
    """Return the class of the example."""
    names: dict[str, Any] = {"__name__": "example_plugin"}
    exec(EXAMPLE, names)
    return names["ExamplePlugin"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the example, its metadata and, a folder below, a place to call it from."""
    (tmp_path / "example_plugin.py").write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "example_plugin.json").write_text(json.dumps(METADATA), encoding="utf-8")
    (tmp_path / "below").mkdir()
    return tmp_path


def run_plugin(
    folder: Path, home: Path, *words: str, program: str = "run_plugin", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run ``run_plugin WORDS``, or another program, in the folder below, as the seed does."""
    return subprocess.run(
        [Path(sys.executable).with_name(program), *words],
        cwd=folder / "below",
        env={**os.environ, "HOLDFAST_HOME": str(home), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def dogs() -> list[str | None]:
    """Return the names of the dogs in the Pod."""
    with PodClient() as client:
        client.add_to_schema(Dog)
        return [dog.name for dog in client.search({"type": "Dog"}) if isinstance(dog, Dog)]


def statuses() -> list[str | None]:
    """Return the status of each run in the Pod."""
    with PodClient() as client:
        return [run.status for run in client.search({"type": "PluginRun"}) if isinstance(run, PluginRun)]


def test_run_plugin_with_metadata_runs_the_example(folder: Path, home: Path) -> None:
    """`run_plugin --metadata "../example_plugin.json"`: client, run and schema are handled; stdout is the plugin's."""
    ran = run_plugin(folder, home, "--metadata", "../example_plugin.json")

    assert (ran.returncode, ran.stdout) == (0, "Started plugin run...\nRun success!\n"), ran.stderr
    assert dogs() == ["Bob"]
    assert statuses() == ["done"]


def test_simulate_run_plugin_from_frontend_lets_a_server_run_the_example(folder: Path, home: Path) -> None:
    """`simulate_run_plugin_from_frontend --metadata "../example_plugin.json"`: a new process in turn calls run_plugin.

    The server stands at another port than its own, so the environment says where; what the run prints is in its log.
    """
    with Process(home, words=["--launcher", "process", "--plugins", str(folder)]) as server:
        program, words = "simulate_run_plugin_from_frontend", ["--metadata", "../example_plugin.json"]
        asked = run_plugin(folder, home, *words, program=program, POD_FULL_ADDRESS=server.url)
        assert (asked.returncode, asked.stderr) == (0, "")
        run = asked.stdout.strip()
        said = run_plugin(folder, home, "runs", "logs", "--follow", run, program="holdfast")

        assert said.returncode == 0, said.stderr
        lines = said.stdout.splitlines()
        assert [line for line in lines if line.startswith(("Started", "Run s"))] == [
            "Started plugin run...",
            "Run success!",
        ]
        assert dogs() == ["Bob"]
        with PodClient() as client:
            done = client.get(run)
        assert isinstance(done, PluginRun)
        assert (done.status, done.containerImage) == ("done", "holdfast")


def test_the_config_of_the_run_becomes_arguments(folder: Path, home: Path) -> None:
    """A JSON serialised dictionary in the run's `config`."""
    with PodClient() as client:
        run = client.create(PluginRun(**METADATA, config='{"dog_name": "Alice"}'))

    ran = run_plugin(folder, home, "--plugin_run_id", str(run.id), "--metadata", "../example_plugin.json")

    assert ran.returncode == 0, ran.stderr
    assert dogs() == ["Alice"]


def test_a_config_file_replaces_the_config_of_the_run(folder: Path, home: Path) -> None:
    """With --config_file the `config` of the run is ignored, malformed or not."""
    (folder / "config.json").write_text('{"dog_name": "Carol"}', encoding="utf-8")
    with PodClient() as client:
        run = client.create(PluginRun(**METADATA, config="no JSON"))

    words = ["--plugin_run_id", str(run.id), "--metadata", "../example_plugin.json", "--config_file", "../config.json"]
    ran = run_plugin(folder, home, *words)

    assert ran.returncode == 0, ran.stderr
    assert dogs() == ["Carol"]


@pytest.mark.parametrize("form", ["POD_PLUGINRUN_ID", "POD_TARGET_ITEM"])
def test_a_run_can_be_named_in_the_environment(form: str, folder: Path, home: Path) -> None:
    """With owner and key beside it, as a launcher hands them over."""
    with PodClient(owner_key="a" * 64, database_key="b" * 64) as client:
        run = client.create(PluginRun(**METADATA, config='{"dog_name": "Env"}'))
    env = {
        form: str(run.id) if form == "POD_PLUGINRUN_ID" else json.dumps({"id": run.id}),
        "POD_OWNER": "a" * 64,
        "POD_AUTH_JSON": json.dumps({"type": "ClientAuth", "databaseKey": "b" * 64}),
        "PYTHONPATH": str(folder),
    }

    ran = run_plugin(folder, home, "--read_args_from_env", **env)

    assert ran.returncode == 0, ran.stderr
    with PodClient(owner_key="a" * 64, database_key="b" * 64) as client:
        assert [type(item).__name__ for item in client.search({"type": "Dog"})] == ["Dog"]
        assert client.get(str(run.id)).status == "done"  # pyright: ignore[reportAttributeAccessIssue]


def test_the_module_of_a_named_run_is_looked_for_where_it_is_said(folder: Path, home: Path) -> None:
    """--plugin_path counts before the metadata's folder; without either, it is the current one."""
    with PodClient() as client:
        ids = [str(client.create(PluginRun(**METADATA)).id) for _ in range(2)]
    (folder / "below" / "example_plugin.json").write_text("{}", encoding="utf-8")

    absent = run_plugin(folder, home, "--plugin_run_id", ids[0], "--metadata", "example_plugin.json")
    words = ["--metadata", "example_plugin.json", "--plugin_path", ".."]
    found = run_plugin(folder, home, "--plugin_run_id", ids[0], *words)
    from_env = run_plugin(folder, home, "--read_args_from_env", "--plugin_path", str(folder), POD_PLUGINRUN_ID=ids[1])

    assert (absent.returncode, "there is no module 'example_plugin'" in absent.stderr) == (4, True)
    assert (found.returncode, from_env.returncode) == (0, 0), (found.stderr, from_env.stderr)
    assert dogs() == ["Bob", "Bob"]


def test_passed_arguments_win_over_the_environment(folder: Path, home: Path) -> None:
    """If both are set, the command uses what was passed."""
    words = ["--metadata", "../example_plugin.json"]
    ran = run_plugin(folder, home, *words, POD_PLUGINRUN_ID="another")

    assert ran.returncode == 0, ran.stderr
    assert statuses() == ["done"]


@pytest.mark.parametrize(
    "words, env, end",
    [
        ([], {}, (2, "no run is named")),
        (["--read_args_from_env"], {}, (2, "no run is named")),
        (["--plugin_run_id", "absent"], {}, (4, "there is no item 'absent'")),
        (["--metadata", "absent.json"], {}, (4, "there is no file 'absent.json'")),
        (["--metadata", "absent.json", "--plugin_path", "."], {}, (2, "--plugin_path is for a run that is named")),
        (["--metadata", "../example_plugin.json", "--config_file", "absent.json"], {}, (2, "'absent.json'")),
        (["--pod_full_address", "http://pod.example:3030", "--plugin_run_id", "x"], {}, (6, "http://pod.example:3030")),
        (["--plugin_run_id", "x"], {"POD_FULL_ADDRESS": "http://pod.example:3030"}, (6, "http://pod.example:3030")),
        (["--plugin_run_id", "x", "--owner_key", "a" * 64], {}, (2, "must come together")),
        (["--plugin_run_id", "x"], {"POD_AUTH_JSON": "s3cret"}, (2, "POD_AUTH_JSON must hold a JSON object")),
        ([], {"POD_TARGET_ITEM": "{broken"}, (2, "POD_TARGET_ITEM must hold a JSON object")),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_run(
    words: list[str], env: dict[str, str], end: tuple[int, str], folder: Path, home: Path
) -> None:
    """The exit code names the kind, one line says why, and no secret is repeated."""
    ran = run_plugin(folder, home, *words, **env)

    code, said = end
    assert (ran.returncode, ran.stdout) == (code, "")
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "s3cret" not in ran.stderr


def test_a_client_alone_is_a_runtime_warning(home: Path) -> None:
    """For development a plugin may be made with just a client; it says that nothing is recorded."""
    with PodClient() as client:
        with pytest.warns(RuntimeWarning, match="ExamplePlugin was made without a run"):
            plugin = example()(client=client)
        plugin.add_to_schema()
        plugin.run()
    assert dogs() == ["Bob"]


def test_run_and_client_together_warn_of_nothing(home: Path) -> None:
    """Both arguments are there; the constructor does no I/O."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugin = example()(pluginRun=PluginRun(), client=None, dog_name="Zed")
    assert plugin.dog_name == "Zed"
    with pytest.raises(InvalidError, match="ExamplePlugin has no client"):
        _ = plugin.client


def test_the_schema_can_be_added_by_hand(home: Path) -> None:
    """`add_to_schema` may be overridden, and then decides alone."""

    class Own(PluginBase):
        schema_classes = ()

        def add_to_schema(self) -> None:
            self.client.add_to_schema(Dog)

    with PodClient() as client:
        Own(pluginRun=PluginRun(), client=client).add_to_schema()
        client.create(Dog("Bob", 10))
    assert dogs() == ["Bob"]
