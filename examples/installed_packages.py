"""Read which Python packages are installed into a Pod, and ask it about them; a second run reads only what changed.

The Pod lies in a folder of its own, ``build/demo``; ``--home`` names another one. ``--json`` is for programs.
"""

import argparse
import json
import re
from collections import Counter
from datetime import UTC, datetime
from email.utils import getaddresses
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Optional

from rich.console import Console
from rich.progress import track

from holdfast import Field, Item, Person, PodClient


class Package(Item):
    """One installed package. The class is the whole declaration: scalars are properties, lists of items are edges."""

    name: Optional[str] = Field(index=True)
    version: Optional[str] = None
    summary: Optional[str] = None
    license: Optional[str] = None
    installed: Optional[datetime] = None
    files: Optional[int] = None
    size: Optional[int] = None
    author: list[Person] = []
    requires: list["Package"] = []


def canonical(name: str) -> str:
    """Return the one spelling that stands for all: ``Ruamel.YAML`` is ``ruamel-yaml``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_installed() -> dict[str, Distribution]:
    """Return what is installed, by name; of two with one name the first counts, as it does when Python imports."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        found.setdefault(canonical(distribution.name), distribution)
    return found


def state_of(distribution: Distribution) -> dict[str, Any]:
    """Return what tells whether a package was changed: its version, and when its metadata was written."""
    paths = [file.locate() for file in distribution.files or () if file.name in ("METADATA", "PKG-INFO")]
    times = [datetime.fromtimestamp(int(Path(str(path)).stat().st_mtime), UTC) for path in paths]
    return {"version": distribution.version, "installed": max(times, default=None)}


def read_properties(distribution: Distribution) -> dict[str, Any]:
    """Return the other properties of a package; this looks at each of its files."""
    said = distribution.metadata
    paths = [Path(str(file.locate())) for file in distribution.files or ()]
    return {
        "summary": said.get("Summary"),
        "license": said.get("License-Expression") or (said.get("License") or "").partition("\n")[0] or None,
        "files": len(paths),
        "size": sum(path.stat().st_size for path in paths if path.is_file()),
    }


def read_authors(distribution: Distribution) -> dict[str, str | None]:
    """Return who wrote a package, each with an address where there is one."""
    said = distribution.metadata
    found = {said.get("Author"): None} | {name or at: at for name, at in getaddresses([said.get("Author-email") or ""])}
    return {name: at or None for name, at in found.items() if name}


def read_required(distribution: Distribution) -> set[str]:
    """Return the names of what a package needs, without what only its extras need."""
    needed = [text.partition(";") for text in distribution.requires or ()]
    return {canonical(re.split(r"[^\w.-]", text.strip())[0]) for text, _, marker in needed if "extra" not in marker}


def read_pod(client: PodClient) -> dict[str, Package]:
    """Return the packages in the Pod with their edges, by name: page by page, as one reads a million."""
    pages = client.search_paginate({"type": "Package", "[[edges]]": {}}, limit=500)
    return {each.name: each for page in pages for each in page}


def update(client: PodClient) -> dict[str, Any]:
    """Bring the Pod to what is installed now, all of it or none, and return what that took."""
    found, known = find_installed(), read_pod(client)
    people = {each.displayName: each for each in client.search({"type": "Person"})}
    packages = {name: known.get(name) or Package(name=name) for name in found}
    states = {name: state_of(distribution) for name, distribution in found.items()}
    changed = [name for name in found if any(getattr(packages[name], key) != now for key, now in states[name].items())]
    console = Console(stderr=True)
    for name in track(changed, "Reading packages", console=console, disable=not console.is_terminal, transient=True):
        for key, value in {**states[name], **read_properties(found[name])}.items():
            setattr(packages[name], key, value)
        writers = read_authors(found[name])
        packages[name].author = [people.setdefault(who, Person(displayName=who, email=writers[who])) for who in writers]
    for name, package in packages.items():  # of all: what a package requires may have come or gone
        package.requires = [packages[each] for each in sorted(read_required(found[name])) if each in packages]
    gone = [package for name, package in known.items() if name not in found]
    with client.transaction():
        client.bulk_action(
            create_items=[each for each in (*people.values(), *packages.values()) if each.id is None],
            update_items=[packages[name] for name in known if name in found],  # only what differs is written
            delete_items=gone,
        )
    return {"packages read": len(changed), "packages gone": len(gone)}


def fail_halfway(client: PodClient) -> dict[str, Any]:
    """Delete everything and fail before the end: a transaction that raises has done nothing."""
    try:
        with client.transaction():
            client.delete_items(client.search({"type": "Package"}))
            raise InterruptedError  # noqa: TRY301 -- this stands for whatever may go wrong
    except InterruptedError:
        return {"packages left by a transaction that failed": len(client.search({"type": "Package"}))}


def report(client: PodClient) -> dict[str, Any]:
    """Return what the Pod says about the packages."""
    packages = read_pod(client)
    required = Counter(each.name for package in packages.values() for each in package.requires)
    largest = sorted(packages.values(), key=lambda each: each.size, reverse=True)
    (rich,) = client.search({"type": "Package", "name": "rich"})  # by its index, as fast among a million
    return {
        "packages": len(packages),
        "people": len(client.search({"type": "Person"})),
        "files": sum(each.files for each in packages.values()),
        "requirements": required.total(),
        "first on a page": [each.name for each in next(client.search_paginate({"type": "Package"}, limit=5))],
        "largest": [f"{each.name} ({each.size:,} bytes)" for each in largest[:5]],
        "most required": [f"{name} ({times} times)" for name, times in required.most_common(5)],
        "required by none": sorted(packages.keys() - required),
        "rich is required by": sorted(edge.source.name for edge in client.get_edges(rich, "Incoming")),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Read which Python packages are installed into a Pod, and ask it.")
    parser.add_argument("--home", type=Path, default=Path(__file__).parent.parent / "build" / "demo")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with PodClient(home=options.home) as client:
        client.add_to_schema(Package)
        told = {**update(client), **fail_halfway(client), **report(client)}
    lines = [f"{what}: {', '.join(value) if isinstance(value, list) else value}" for what, value in told.items()]
    print(json.dumps(told, indent=2) if options.json else "\n".join(lines))
