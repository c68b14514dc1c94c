"""What the tests of a Pod's failures run in processes of their own: ``python pod_program.py WORD FOLDER``.

It makes the same system calls each time: ids, dates and holders are written out. What it acknowledges it notes in the
file ``acknowledged`` after the call that promised it has returned.
"""

from __future__ import annotations

import sys
from pathlib import Path

from holdfast.context import PodClient
from holdfast.disk import Disk
from holdfast.errors import HoldfastError
from holdfast.items import Person, PropertyDefinition, TypeDefinition
from holdfast.keys import Identity
from holdfast.runs import Fence, Status
from holdfast.sql import SqliteStore, back_up, restore
from holdfast.store import (
    Batch,
    ClaimLease,
    CreateEdge,
    CreateItem,
    DeclareTypes,
    MoveRun,
    PointSnapshot,
    SetVariable,
)
from holdfast.testing import FakeClock
from holdfast.values import Kind
from tests.components.strace import BEGIN, END

KEY = bytes(range(32))
OWNER = Identity("a" * 64, "b" * 64)

SETUP = Batch(
    (
        DeclareTypes((TypeDefinition("Dog", {"name": PropertyDefinition(Kind.TEXT)}, {"friend": "Dog"}),)),
        CreateItem("run1", "PluginRun", {"pluginName": "kill"}),
        ClaimLease("s1", "run1", "holder1", 3_600_000),
        SetVariable("s1", "head", 0),
    )
)
BEFORE = Batch((CreateItem("before", "Dog", {"name": "before"}),))
FENCE = Fence(state="s1", epoch=1, holder="holder1")
BATCH = Batch(
    (
        CreateItem("d1", "Dog", {"name": "Bob"}),
        CreateItem("d2", "Dog", {"name": "Rex"}),
        CreateEdge("d1", "friend", "d2"),
        SetVariable("s1", "head", 7),
        PointSnapshot("s1", "snapshot-7"),
        MoveRun("run1", Status.STARTED),
    ),
    FENCE,
)
"""One of each kind; what it leads to is written out in the tests."""
