"""What a person sees: tables on a terminal, lines in a pipe, and how far a long work is."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TextIO

import click

Progress = Callable[[int, int | None], None]

# Control characters, those that turn the direction of writing, and the backslash that stands for them.
_unsafe: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\\]")


def escaped(text: str) -> str:
    r"""Return ``text`` as one cell: what a hostile item holds must not command a terminal, nor break a line.

    >>> escaped("a\tb\x1b[2J")
    'a\\tb\\x1b[2J'
    """
    return _unsafe.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def is_terminal(stream: TextIO | None) -> bool:
    """Say whether a person is at the other end; None is a stream that was closed before the program began."""
    return stream is not None and stream.isatty()


def draw(columns: Sequence[str], pages: Iterable[Sequence[Sequence[str]]]) -> None:
    """Print rows of cells, escaping them: on a terminal a table of the columns that hold something.

    In a pipe a line for each row as soon as it is there, cells between tabs, the names of the columns first.
    """
    if not is_terminal(sys.stdout):
        click.echo("\t".join(columns))
        for page in pages:
            click.echo("".join("\t".join(map(escaped, row)) + "\n" for row in page), nl=False)
        return
    from rich.console import Console  # start-up: a pipe needs neither
    from rich.table import Table
    from rich.text import Text

    rows = [row for page in pages for row in page]
    table = Table()
    wanted = [at for at in range(len(columns)) if any(row[at] for row in rows)]
    for at in wanted:
        table.add_column(columns[at], no_wrap=columns[at] == "id", overflow="fold")
    for row in rows:
        table.add_row(*(Text(escaped(row[at])) for at in wanted))
    Console().print(table if rows else "Nothing.")


@contextmanager
def progress(label: str, *, is_quiet: bool, unit: str = "pages") -> Generator[Progress | None]:
    """Show on standard error how far a work is: a bar on a terminal, else `lines_of_progress`; None if quiet.

    The bar is there from the first report on, which may be told that nobody knows how much there is: None.
    """
    if is_quiet:
        yield None
    elif not is_terminal(sys.stderr):
        yield lines_of_progress(label, unit)
    else:
        from rich.console import Console  # start-up, as above
        from rich.progress import Progress as Bar

        # What goes to a file or a pipe must go there, and not through the bar to the terminal.
        bar = Bar(console=Console(stderr=True), redirect_stdout=is_terminal(sys.stdout))
        task = bar.add_task(label, total=None)

        def report(done: int, total: int | None) -> None:
            if not bar.live.is_started:
                bar.start()
            bar.update(task, completed=done, total=total)

        try:
            yield report
        finally:
            with suppress(OSError):  # the terminal may have gone; that is not how the work ended
                bar.stop()


def lines_of_progress(label: str, unit: str = "pages", *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Return what prints a line about the progress: at most one a second, none in the first."""
    last = clock()

    def report(done: int, total: int | None) -> None:
        nonlocal last
        if clock() - last >= 1:
            last = clock()
            click.echo(f"{label}: {done:,} {unit if total is None else f'of {total:,} {unit}'}", err=True)

    return report
