"""Settings: each value from each place, which place counts, who decided, and what no place may say."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, astuple
from pathlib import Path
from typing import Any

import pytest

from holdfast.context import Settings
from holdfast.errors import DeniedError, InvalidError, NotFoundError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A home, which is there."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def write(folder: Path, text: str) -> None:
    """Write the settings file."""
    (folder / "holdfast.toml").write_text(text, encoding="utf-8")


def read(folder: Path, environ: dict[str, str] | None = None, **given: Any) -> Settings:
    """Read settings of a home, with an environment of this test alone."""
    return Settings.read(home=folder, environ=environ or {}, **given)


def test_by_default_everything_lies_in_the_home(folder: Path) -> None:
    """A change of a variable waits for a second; and this is how runs are launched."""
    settings = read(folder)
    assert settings.state_dir == folder / "state"
    assert settings.plugins_dir == folder / "plugins"
    assert settings.save_delay == 1.0
    assert (settings.lease_s, settings.logs_kept_days) == (60, 30)
    assert (settings.max_runs, settings.max_runs_per_owner) == (8, 4)
    assert settings == Settings(home=folder, sources={"home": "argument"})


@pytest.mark.parametrize("name", ["state_dir", "plugins_dir"])
def test_a_folder_is_named_by_argument_environment_or_file_in_this_order(name: str, folder: Path) -> None:
    """Each is said to have decided; without any of them it is the default."""
    variable = f"HOLDFAST_{name.upper()}"
    write(folder, f"{name} = '/file'")
    environ = {variable: "/environment"}
    told = [
        read(folder, environ, **{name: "/argument"}),
        read(folder, environ),
        read(folder),
    ]
    assert [(str(getattr(each, name)), each.sources[name]) for each in told] == [
        ("/argument", "argument"),
        ("/environment", "environment"),
        ("/file", "file"),
    ]
    write(folder, "")
    assert read(folder, {variable: ""}).sources[name] == "default"


@pytest.mark.parametrize("text, seconds", [("0", 0.0), ("0.25", 0.25), ("none", None)])
def test_the_delay_is_seconds_or_none_wherever_it_is_said(text: str, seconds: float | None, folder: Path) -> None:
    """A number in the file and as an argument, text in the environment, "none" in all three."""
    write(folder, f"save_delay = {text if text[0].isdigit() else repr(text)}")
    assert read(folder).save_delay == seconds
    assert read(folder, {"HOLDFAST_SAVE_DELAY": text}).save_delay == seconds
    assert read(folder, {"HOLDFAST_SAVE_DELAY": "9"}, save_delay="none" if seconds is None else seconds).save_delay == (
        seconds
    )


@pytest.mark.parametrize(
    "name, texts",
    [
        ("lease_s", ("3", "3600", "7.5")),
        ("logs_kept_days", ("0", "36500", "0.5")),
        ("max_runs", ("1", "10000", "2")),
        ("max_runs_per_owner", ("1", "10000", "2")),
    ],
)
def test_a_number_is_said_by_argument_environment_or_file_in_this_order(
    name: str, texts: tuple[str, str, str], folder: Path
) -> None:
    """The least, the most, and one between; each is said to have decided, and is of its kind."""
    kind = type(getattr(Settings(home=folder), name))
    argument, variable, file = texts
    write(folder, f"{name} = {file}")
    environ = {f"HOLDFAST_{name.upper()}": variable}
    found = [read(folder, environ, **{name: kind(argument)}), read(folder, environ), read(folder)]
    assert [getattr(each, name) for each in found] == [kind(text) for text in texts]
    assert [each.sources[name] for each in found] == ["argument", "environment", "file"]
    assert {type(getattr(each, name)) for each in found} == {kind}


def test_settings_that_are_made_by_hand_have_an_absolute_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be another one wherever the process goes; all in it moves with it."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=Path("mine"))
    assert (settings.home, settings.state_dir) == (tmp_path / "mine", tmp_path / "mine" / "state")


def test_each_value_is_explained_with_the_very_place(folder: Path) -> None:
    """For a file its path, for the environment the variable."""
    write(folder, "plugins_dir = 'mine'")
    told = read(folder, {"HOLDFAST_STATE_DIR": "/s"}, save_delay="none").explain()
    assert [astuple(each) for each in told] == [
        ("home", str(folder), "argument", "argument"),
        ("state_dir", "/s", "environment", "HOLDFAST_STATE_DIR"),
        ("plugins_dir", str(folder / "mine"), "file", str(folder / "holdfast.toml")),
        ("save_delay", "none", "argument", "argument"),
        ("lease_s", "60.0", "default", "default"),
        ("logs_kept_days", "30.0", "default", "default"),
        ("max_runs", "8", "default", "default"),
        ("max_runs_per_owner", "4", "default", "default"),
    ]
    by_variable = Settings.read(environ={"HOLDFAST_HOME": str(folder)}).explain()
    assert astuple(by_variable[0]) == ("home", str(folder), "environment", "HOLDFAST_HOME")
    assert astuple(by_variable[3]) == ("save_delay", "1.0", "default", "default")


def test_relative_paths_begin_where_they_are_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file at its folder, as an argument at the current one; ``~`` is the user's home in all three places."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder / "user"))
    write(folder, "state_dir = 'deep/../s'\nplugins_dir = '~/p'")
    settings = Settings.read(home="home", environ={})
    assert settings.home == folder
    assert settings.state_dir == folder / "deep" / ".." / "s"
    assert settings.plugins_dir == folder / "user" / "p"
    assert read(folder, state_dir="s", plugins_dir="~/q").explain()[1].value == str(folder.parent / "s")
    assert read(folder, {"HOLDFAST_STATE_DIR": "~/e"}).state_dir == folder / "user" / "e"


@pytest.mark.parametrize(
    "text, said",
    [
        ("state_dir = ", "cannot be read as TOML"),
        ("a = \x00", "cannot be read as TOML"),
        ("a = " + "[" * 100_000, "cannot be read as TOML"),
        ("colour = 1", "have no 'colour': state_dir, .*, max_runs_per_owner can be set there"),
        ("home = '/elsewhere'", "have no 'home': .* the home is named by HOLDFAST_HOME"),
        ("[state_dir]\na = 1", "'state_dir' in '.*holdfast.toml' cannot be .*: the path of a folder is expected"),
        ("plugins_dir = 3", "'plugins_dir' in '.*' cannot be 3: the path of a folder is expected"),
        ("plugins_dir = ''", "cannot be '': the path of a folder is expected"),
        ('state_dir = "a\\u0000b"', "'state_dir' in '.*' cannot be .*: the path of a folder is expected"),
        ("state_dir = '~nobody-here/x'", "'~' and a name that no user here has lead nowhere"),
        ("save_delay = -1", "'save_delay' in '.*' cannot be -1: seconds, 0 or more, or 'none' are expected"),
        ("save_delay = '1'", "cannot be '1': seconds, 0 or more"),
        ("save_delay = true", "cannot be True: seconds, 0 or more"),
        ("save_delay = nan", "cannot be nan: seconds, 0 or more"),
        ("save_delay = inf", "cannot be inf: seconds, 0 or more"),
        ("save_delay = 1" + "0" * 400, "cannot be an integer of 1329 bits: seconds, 0 or more"),
        ("lease_s = 2.99", "'lease_s' in '.*' cannot be 2.99: a number of seconds from 3 to 3600 is expected"),
        ("lease_s = 3601", "cannot be 3601: a number of seconds"),
        ("lease_s = nan", "cannot be nan: a number of seconds"),
        ("lease_s = '60'", "cannot be '60': a number of seconds"),
        ("logs_kept_days = -1", "cannot be -1: a number of days from 0 to 36500 is expected"),
        ("logs_kept_days = 36501", "cannot be 36501: a number of days"),
        ("max_runs = 0", "cannot be 0: a whole number of runs from 1 to 10000 is expected"),
        ("max_runs = 10001", "cannot be 10001: a whole number of runs"),
        ("max_runs = true", "cannot be True: a whole number of runs"),
        ("max_runs_per_owner = 1.5", "'max_runs_per_owner' in '.*' cannot be 1.5: a whole number of runs"),
        ("max_runs_per_owner = inf", "cannot be inf: a whole number of runs"),
    ],
)
def test_a_file_with_anything_else_is_refused_and_names_what_and_where(text: str, said: str, folder: Path) -> None:
    """Nothing in it is ignored, as a misspelt setting would be."""
    write(folder, text)
    with pytest.raises(InvalidError, match=said) as caught:
        read(folder)
    assert "holdfast.toml" in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(folder: Path) -> None:
    """With its name."""
    (folder / "holdfast.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(InvalidError, match=r"holdfast\.toml' cannot be read as TOML: 'utf-8'"):
        read(folder)


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A home of a user that a mode of 0 stops, as whom the test runs."""
    with tempfile.TemporaryDirectory() as home:
        before = os.geteuid()
        if before == 0:
            os.chown(home, 65534, 65534)
            os.seteuid(65534)
        yield Path(home)
        os.seteuid(before)


def test_a_file_that_cannot_be_read_is_an_error_and_not_absent(nobodys: Path) -> None:
    """A folder in its place, one that this user may not read, or a link that leads nowhere."""
    path = nobodys / "holdfast.toml"
    path.mkdir()
    with pytest.raises(InvalidError, match=r"holdfast\.toml': it is a folder"):
        read(nobodys)
    path.rmdir()
    path.touch(mode=0o000)
    with pytest.raises(DeniedError, match=r"holdfast\.toml': this user may not"):
        read(nobodys)
    path.unlink()
    path.symlink_to("absent")
    with pytest.raises(NotFoundError, match=r"holdfast\.toml'"):
        read(nobodys)


def test_a_file_may_be_a_link(folder: Path) -> None:
    """As whatever manages files puts it there."""
    (folder / "real").write_text("save_delay = 7", encoding="utf-8")
    (folder / "holdfast.toml").symlink_to("real")
    assert read(folder).save_delay == 7


@pytest.mark.parametrize("name", ["home", "state_dir", "plugins_dir"])
def test_the_environment_cannot_name_a_relative_folder(name: str, folder: Path) -> None:
    """Each program would find another one."""
    variable = f"HOLDFAST_{name.upper()}"
    with pytest.raises(InvalidError, match=f"^{variable} cannot be 'here': it must be an absolute path$"):
        Settings.read(environ={"HOLDFAST_HOME": str(folder), variable: "here"})


@pytest.mark.parametrize(
    "environ, given, said",
    [
        ({"HOLDFAST_SAVE_DELAY": "soon"}, {}, "HOLDFAST_SAVE_DELAY cannot be 'soon': seconds, 0 or more"),
        ({"HOLDFAST_SAVE_DELAY": "nan"}, {}, "HOLDFAST_SAVE_DELAY cannot be 'nan'"),
        ({}, {"save_delay": "1"}, "the argument save_delay cannot be '1'"),
        ({"HOLDFAST_LEASE_S": "soon"}, {}, "HOLDFAST_LEASE_S cannot be 'soon': a number of seconds from 3 to 3600"),
        ({}, {"max_runs": "2"}, "the argument max_runs cannot be '2': a whole number"),
        ({}, {"state_dir": ""}, "the argument state_dir cannot be ''"),
        ({}, {"state_dir": "a\0b"}, "the argument state_dir cannot be"),
        ({}, {"plugins_dir": 3}, "the argument plugins_dir cannot be 3"),
        ({}, {"home": "a\0b"}, "the home cannot be"),
        ({}, {"home": "/tmp/\ud800"}, "the home cannot be .*: the path of a folder is expected"),
        ({"HOLDFAST_STATE_DIR": "/\ud800"}, {}, "HOLDFAST_STATE_DIR cannot be .*: the path of a folder is expected"),
    ],
)
def test_no_other_place_can_say_what_the_file_cannot(
    environ: dict[str, str], given: dict[str, Any], said: str, folder: Path
) -> None:
    """The error says which place it was."""
    with pytest.raises(InvalidError, match=said):
        Settings.read(environ=environ, **{"home": folder, **given})


def test_settings_cannot_change(folder: Path) -> None:
    """Whoever holds them may rely on them."""
    with pytest.raises(FrozenInstanceError):
        read(folder).home = Path("/")  # pyright: ignore[reportAttributeAccessIssue]
