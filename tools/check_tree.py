"""Look at the files of the repository themselves: what they must not name, and how many lines they have.

Names no file may hold: a package index, a folder of somebody's machine. The patterns below are written so that they
do not match their own text.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "holdfast"

LOCK_FILES = {"Pipfile.lock", "package-lock.json", "pdm.lock", "poetry.lock", "uv.lock", "yarn.lock"}
"""Files in which tools write down where they fetched each package."""

FORBIDDEN = {
    "names a package index": re.compile(
        r"https?://[^ \"']+/(simple|packages)/|--(extra-)?index-url|\"resolved\": *\"http"
        r"|\bpy(pi|thonhosted)\.org\b|\bnpm(js)?\.(org|com)\b"
    ),
    "names a folder of one machine": re.compile(
        r"(?<![\w.~-])(/(home|opt|root|work|Users)/\w"
        + "".join(f"|{re.escape(str(path))}/" for path in (ROOT, Path.home()) if len(path.parts) > 1)
        + ")"
    ),
}

SHARES = {
    "doors": (5_500, {"blobs", "context", "disk", "launchers", "remote", "server", "sql", "web"}),
    "command line": (900, {"__main__", "cli"}),
    "testing": (900, {"testing"}),
    "inside": (4_500, set[str]()),  # all others
}
"""How many lines each part of the package may have, and the modules that belong to it."""

MAX_TOTAL = 12_000


def repository_files() -> list[Path]:
    """Return the files that git tracks or would track, sorted; those deleted but not yet committed are left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = {ROOT / name for name in listed.stdout.split("\0") if name}
    return sorted(path for path in paths if path.is_file())


def complaints(path: Path) -> list[str]:
    """Return what is wrong with the file at ``path``, one sentence each; nothing, if it is not text."""
    name = path.relative_to(ROOT)
    if path.name in LOCK_FILES:
        return [f"{name}: a lock file says where packages came from; requirements/dev.txt pins them without"]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []
    return [
        f"{name}:{number}: {what}: {found[0]!r}"
        for number, line in enumerate(lines, 1)
        for what, pattern in FORBIDDEN.items()
        if (found := pattern.search(line))
    ]


def line_counts() -> dict[str, int]:
    """Return how many lines of Python each part of the package has."""
    counts = dict.fromkeys(SHARES, 0)
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        part = next((part for part, (_, modules) in SHARES.items() if module in modules), "inside")
        counts[part] += len(path.read_text(encoding="utf-8").splitlines())
    return counts


def code_lines() -> int:
    """Return how many lines of the package are neither docstring nor comment nor blank."""
    total = 0
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        prose = {
            line
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        code = {
            line
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type not in _NO_CODE
            for line in range(token.start[0], token.end[0] + 1)
        }
        total += len(code - prose)
    return total


_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def main() -> int:
    """Print complaints and counts; return 1 if there is a complaint. Sizes are shown, not enforced: docs/adr/0005."""
    found = [complaint for path in repository_files() for complaint in complaints(path)]
    for complaint in found:
        print(complaint)
    counts = line_counts()
    for part, (share, _) in SHARES.items():
        print(f"{part:<14}{counts[part]:>7,} of {share:>6,} lines{'  <- past its share' * (counts[part] > share)}")
    total = sum(counts.values())
    over = "  <- past what should be readable in an afternoon or two" * (total > MAX_TOTAL)
    print(f"{'src':<14}{total:>7,} of {MAX_TOTAL:>6,} lines, {code_lines():,} of them code{over}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
