"""A power cut, modelled: what a disk may hold of a folder if the power goes after any call of a program.

What was flushed is there. Of what was written since, each write is there, or not, or only its first sectors, in any
order. Of the names that were made or removed since the folder was flushed, the first few are as they should be: file
systems with a journal keep that order. Writes through shared memory are not seen; SQLite needs none of its own after
a cut.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.components.strace import require_strace

_SECTOR_BYTES = 512
_TEXT = r"((?:\\x[0-9a-f]{2})*)"
_LINE = re.compile(
    rf"\d+ +(?:"
    rf"(?P<write>pwrite64|write)\(\d+<{_TEXT}>, \"{_TEXT}\", \d+(?:, (?P<offset>\d+))?\)"
    rf"|(?P<sync>fdatasync|fsync)\(\d+<{_TEXT}>\)"
    rf"|(?P<truncate>ftruncate)\(\d+<{_TEXT}>, (?P<size>\d+)\)"
    rf"|(?P<unlink>unlink)\(\"{_TEXT}\"\)"
    rf"|(?P<create>openat)\([^,]+, \"{_TEXT}\", [A-Z_|]*O_CREAT[A-Z_|]*(?:, \d+)?\)"
    rf") += \d+"
)


@dataclass(frozen=True)
class Step:
    """One call that changes a disk: "write", "truncate", "sync", "create", "unlink"; a folder's name is ``"."``."""

    what: str
    name: str
    data: bytes = b""
    at: int = 0


def record(argv: Sequence[str], folder: Path, *, env: Mapping[str, str]) -> list[Step]:
    """Run a program to its end and return what it did to the files in ``folder``, in order."""
    require_strace()
    with tempfile.TemporaryDirectory(prefix="holdfast-power-") as place:
        log = Path(place, "log")
        calls = "trace=openat,write,pwrite64,fsync,fdatasync,ftruncate,unlink"
        options = ["-f", "-qq", "-y", "-xx", "-s", "1000000", "-e", calls, "-o", str(log)]
        subprocess.run(["strace", *options, *argv], env=dict(env), check=True, timeout=60)
        lines = log.read_text().splitlines()
    found: list[Step] = []
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        texts = [_bytes(text) for text in match.groups() if text is not None and text.startswith("\\x")]
        path = Path(os.fsdecode(texts[0]))
        if folder not in (path, path.parent):
            continue
        name = "." if path == folder else path.name
        if match["write"]:
            found.append(Step("write", name, texts[1], -1 if match["offset"] is None else int(match["offset"])))
        elif match["truncate"]:
            found.append(Step("truncate", name, at=int(match["size"])))
        else:
            found.append(Step("sync" if match["sync"] else "unlink" if match["unlink"] else "create", name))
    return found


def after_cut(steps: Sequence[Step], before: Mapping[str, bytes], random: Random) -> dict[str, bytes]:
    """Return what may be in the folder if the power goes after ``steps``, by file name.

    Args:
        steps: What was done until then.
        before: What was durably there at the beginning.
        random: Decides what of it all is there.
    """
    contents = {name: _content(steps, name, data, random) for name, data in before.items()}
    names = dict.fromkeys(before)
    renamings: list[Step] = []
    live = set(before)
    for step in steps:
        if step.what == "sync" and step.name == ".":
            _rename(names, renamings)
            renamings = []
        elif step.what == "create" and step.name not in live:
            live.add(step.name)
            renamings.append(step)
        elif step.what == "unlink" and step.name in live:
            live.discard(step.name)
            renamings.append(step)
    _rename(names, renamings[: random.randint(0, len(renamings))])
    for name in names:
        if name not in contents:
            contents[name] = _content(steps, name, b"", random)
    return {name: contents[name] for name in names}


def _rename(names: dict[str, None], steps: Sequence[Step]) -> None:
    for step in steps:
        if step.what == "create":
            names[step.name] = None
        else:
            names.pop(step.name, None)


def _content(steps: Sequence[Step], name: str, data: bytes, random: Random) -> bytes:
    mine = [step for step in steps if step.name == name and step.what in ("write", "truncate", "sync")]
    flushed = max((number for number, step in enumerate(mine) if step.what == "sync"), default=-1)
    content = bytearray(data)
    for number, step in enumerate(mine):
        share = "all" if number <= flushed else random.choice(("all", "nothing", "sectors"))
        if step.what == "truncate" and share == "all":
            content = content[: step.at].ljust(step.at, b"\0")
        elif step.what == "write" and share != "nothing":
            at = len(content) if step.at < 0 else step.at
            sectors = random.randint(0, len(step.data) // _SECTOR_BYTES)
            written = step.data if share == "all" else step.data[: sectors * _SECTOR_BYTES]
            if written:
                content = content.ljust(at, b"\0")
                content[at : at + len(written)] = written
    return bytes(content)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
