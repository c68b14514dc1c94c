"""What tests of the command line share: a home with a few items, and two ways to call a command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Optional

import pytest

from holdfast import Field, Item, Person, PodClient, Secret
from holdfast.cli import command, store_keys
from holdfast.cli.invocation import run

OWNER = "a" * 64
DATABASE_KEY = "b" * 64


class Dog(Item):
    """One property of each kind, and a secret."""

    name: Optional[str] = Field(index=True)
    age: Optional[int] = None
    weight: Optional[float] = None
    good: Optional[bool] = None
    born: Optional[datetime] = None
    chip: Optional[Secret[str]] = None
    owner: list[Person] = []


@dataclass
class Answer:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document of an answer."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The JSON object of an error."""
        return json.loads(self.err)["error"]

    @property
    def rows(self) -> list[list[str]]:
        """The cells of each line in a pipe."""
        return [line.split("\t") for line in self.out.splitlines()]


Call = Callable[..., Answer]


@pytest.fixture
def call(home: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``holdfast WORDS`` in this process, as its entry point does."""

    def call(*words: object) -> Answer:
        capsys.readouterr()
        code = run(command, "holdfast", [str(word) for word in words])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture
def call_store_keys(home: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``store_keys WORDS`` in this process, as its entry point does."""

    def call(*words: object) -> Answer:
        capsys.readouterr()
        code = run(store_keys.command, "store_keys", [str(word) for word in words])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture
def shell(home: Path) -> Call:
    """Run a command as a process of its own, under the name that is installed."""

    def shell(*words: object, env: dict[str, str] | None = None, **options: Any) -> Answer:
        program, *rest = map(str, words)
        ran = subprocess.run(
            [Path(sys.executable).with_name(program), *rest],
            env={**os.environ, "HOLDFAST_HOME": str(home), **(env or {})},
            capture_output=True,
            encoding="utf-8",
            check=False,
            **{"stdin": None if "input" in options else subprocess.DEVNULL, **options},
        )
        return Answer(ran.returncode, ran.stdout, ran.stderr)

    return shell


@pytest.fixture
def dogs(home: Path) -> Path:
    """A home with two dogs, of which one has an owner."""
    with PodClient() as client:
        client.add_to_schema(Dog)
        ada = client.create(Person(firstName="Ada", id="ada"))
        born = datetime(2020, 1, 2, tzinfo=UTC)
        bob = Dog("Bob", 10, 7.5, good=True, born=born, chip="s3cret", owner=[ada], id="bob")
        client.create(bob)
        client.create(Dog("Rex", 3, id="rex"))
    return home
