"""Keep the tables in docs that say what the code says: check them, or write them anew with ``--write``.

A page holds such a table between ``<!-- generated: NAME -->`` and ``<!-- end -->``; a page is found by its marks alone.
"""

import ast
import builtins
import difflib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "holdfast"

BLOCK = re.compile(r"(?<=<!-- generated: )(?P<name>\w+)(?P<open> -->\n).*?(?=<!-- end -->)", re.DOTALL)


def errors() -> Iterator[str]:
    """Yield the table of all kinds of error, each below the one that it is a kind of."""
    from holdfast import errors as module

    def rows(kind: type[Exception], depth: int) -> Iterator[str]:
        also = [base.__name__ for base in kind.__bases__ if hasattr(builtins, base.__name__) and base is not Exception]
        code = "–" if kind is module.HoldfastError else str(kind.exit_code)
        status = "–" if kind is module.HoldfastError else str(kind.http_status)
        name = "&nbsp;&nbsp;" * depth + f"`{kind.__name__}`"
        yield f"| {name} | {', '.join(f'`{base}`' for base in also)} | {first_line(kind.__doc__)} | {status} | {code} |"
        for below in kind.__subclasses__():
            if below.__module__ == module.__name__:
                yield from rows(below, depth + 1)

    yield "| error | is also | what it says | HTTP status | exit code |"
    yield "| --- | --- | --- | --- | --- |"
    yield from rows(module.HoldfastError, 0)


def modules() -> Iterator[str]:
    """Yield the table of the modules that are there, highest layer first, each with what it hides."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [layers] = [one["layers"] for one in config["tool"]["importlinter"]["contracts"] if one["id"] == "layers"]
    yield "| layer | module | what it is |"
    yield "| --- | --- | --- |"
    there = [[name for name in re.findall(r"\w+", layer) if source_of(name).exists()] for layer in layers]
    filled = [layer for layer in there if layer]
    for number, layer in zip(range(len(filled), 0, -1), filled, strict=True):
        for name in layer:
            docstring = ast.get_docstring(ast.parse(source_of(name).read_text(encoding="utf-8")))
            yield f"| {number} | `{name}` | {first_line(docstring)} |"


TABLES: dict[str, Callable[[], Iterator[str]]] = {"errors": errors, "modules": modules}
"""What stands between the marks of each name."""


def source_of(module: str) -> Path:
    """Return the file of a module of the package, or of its ``__init__`` if it is a package."""
    package = SOURCE / module / "__init__.py"
    return package if package.exists() else SOURCE / f"{module}.py"


def first_line(docstring: str | None) -> str:
    """Return the first line of a docstring; empty, if there is none."""
    return (docstring or "").strip().partition("\n")[0].replace("``", "`")


def rendered(page: str) -> str:
    """Return the text of a page with each of its tables as the code has it now.

    Raises:
        KeyError: A mark names a table that there is not.
    """
    return BLOCK.sub(lambda block: "".join([block["name"], block["open"], *lines(block["name"])]), page)


def lines(table: str) -> Iterator[str]:
    """Yield the lines of a table, with an empty line around them: Markdown wants one."""
    yield "\n"
    for line in TABLES[table]():
        yield f"{line}\n"
    yield "\n"


def main(*, write: bool) -> int:
    """Check all pages, or write them; return 1 if a page says something else than the code."""
    stale = False
    for path in sorted((ROOT / "docs").rglob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = rendered(old)
        if old == new:
            continue
        if write:
            path.write_text(new, encoding="utf-8")
            continue
        stale = True
        where = str(path.relative_to(ROOT))
        print(*difflib.unified_diff(old.splitlines(), new.splitlines(), where, "the code", lineterm="", n=0), sep="\n")
        print(f"{where} does not say what the code says; `make tables` writes it anew")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main(write="--write" in sys.argv[1:]))
