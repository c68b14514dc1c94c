"""One call from a shell: what every command is told, how it answers, and how it ends.

Hides exit codes, closed pipes, Ctrl-C, and the form of answers and errors for people and for programs.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from holdfast.errors import HoldfastError, InvalidError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from holdfast.context import Settings

F = TypeVar("F", bound=Callable[..., object])

STOPPED: Final = 130
"""How a shell names the end by Ctrl-C; also the answer "no" to a question."""
CLOSED_PIPE: Final = 141
"""How a shell names the end by a reader that has gone, as in ``holdfast items search | head``."""
_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
"""What an answer that is written to a file or a device can meet."""
_MAX_EXIT_S: Final = 5.0
"""How long what is to be done at exit may take, before the process ends without it."""


class Call:
    """What was said to whichever command it is: the home, if it was named, and whether a program is to be answered."""

    def __init__(self) -> None:
        self.home: str | None = None
        self.is_json = False

    def settings(self) -> Settings:
        """Return where everything lies."""
        from holdfast.context import Settings  # start-up: it brings the database and pydantic, and help needs neither

        return Settings.read(home=self.home)

    def answer(self, document: Mapping[str, object], text: str) -> None:
        """Print the one answer: ``document`` for programs, ``text`` for people."""
        click.echo(to_json(document, indent=2) if self.is_json else text)


def with_common_options(function: F) -> F:
    """Give a command ``--home`` and ``--json``; they may stand behind any word of a line, and the last one counts."""

    def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        call = ctx.ensure_object(Call)
        if value == "":  # an unset variable of a script, most likely; another home than the one meant would be used
            raise click.BadParameter("it is empty: a folder is expected", ctx=ctx, param=param)
        if value and param.name == "home":
            call.home = value
        elif value:
            call.is_json = True

    options: dict[str, Any] = {"expose_value": False, "callback": remember}
    function = click.option("--json", is_flag=True, help="Answer with JSON.", **options)(function)
    return click.option("--home", metavar="DIR", help="Use this home, not HOLDFAST_HOME.", **options)(function)


def run(command: click.Command, name: str, args: Sequence[str] | None = None) -> int:
    """Run ``command``, called ``name`` by the user, and return the exit code of the process.

    It is 0, 2 to 7 by kind of error (see `holdfast.errors`), `STOPPED` or `CLOSED_PIPE`. Any other exception is a
    defect and is raised. ``args`` are those of this process if None.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that this terminal cannot show must not be the end
            stream.reconfigure(errors="backslashreplace")
    args = list(sys.argv[1:] if args is None else args)
    if f"_{name.upper()}_COMPLETE" in os.environ:
        command.main(args, prog_name=name)  # answers the shell that asks how a word goes on, and ends
    try:
        code = _run(command, name, args)
        click.echo(nl=False)  # flushes: a closed pipe is to be noticed here and not when Python ends
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):  # what is still to be flushed must not fail a second time
            os.dup2(nowhere, descriptor)
        return CLOSED_PIPE
    except OSError as exc:
        if exc.errno not in _UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # as above
        message = f"the answer could not be written to standard output: {exc.strerror}"
        return _complain(UnavailableError(message, errno=errno.errorcode[exc.errno]), is_json="--json" in args)
    return code


def say(text: str) -> None:
    """Write a line to standard error; if that is closed or full, or its reader has gone, nobody is told of it."""
    with suppress(OSError, ValueError):
        click.echo(text, err=True)


def _run(command: click.Command, name: str, args: list[str]) -> int:
    is_json = "--json" in args  # from the words themselves: a line that cannot be understood is answered as well
    try:
        with command.make_context(name, args) as ctx:
            command.invoke(ctx)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("Stopped.")
        return STOPPED
    except click.ClickException as exc:
        if not is_json:
            exc.show()
            return exc.exit_code
        return _complain(InvalidError(exc.format_message()), is_json=True)
    except (HoldfastError, OSError) as exc:
        return _complain(_ours(exc), is_json=is_json)
    return 0


def _ours(exc: HoldfastError | OSError) -> HoldfastError:
    """Return what a file's error means, which nobody translated; one without a file is raised: a stream's."""
    if isinstance(exc, HoldfastError):
        return exc
    from holdfast.disk import translate  # start-up: help needs no disk

    if exc.filename is None and isinstance(exc, FileNotFoundError):  # only getcwd(2) names none
        return NotFoundError("the current folder is gone: change to one that is there")
    if exc.filename is None:
        raise exc
    return translate(exc, os.fsdecode(exc.filename), "use")


def _complain(exc: HoldfastError, *, is_json: bool) -> int:
    kind = next(each for each in type(exc).__mro__ if each.__module__ == HoldfastError.__module__)
    error = {"kind": kind.__name__, "message": exc.message, "facts": exc.facts}
    say(to_json({"error": error}) if is_json else f"Error: {exc.message}")
    return exc.exit_code


def end(code: int) -> NoReturn:
    """End the process with ``code`` after what is to be done at its exit, whatever a plugin has left running in it."""
    watch = threading.Timer(_MAX_EXIT_S, os._exit, (code,))
    watch.daemon = True
    watch.start()
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage] -- the only way to them past threads that do not end
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # the plugin has closed it, or whoever read it has gone
            stream.flush()
    os._exit(code)


@contextmanager
def lent_streams() -> Generator[None]:
    """Lend the standard streams to a plugin: whatever it closes or puts in their place, messages can be written after.

    What it closed leads nowhere from then on.
    """
    streams = sys.stdout, sys.stderr
    try:
        yield
    finally:
        for descriptor in (0, 1, 2):
            try:
                os.fstat(descriptor)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        # None is what Python itself has for a stream that was closed before the program began.
        sys.stdout, sys.stderr = (None if stream is None or stream.closed else stream for stream in streams)


def to_json(document: Mapping[str, object], *, indent: int | None = None) -> str:
    """Return ``document`` for programs, in ASCII, so that no encoding of a pipe can spoil it."""
    import json  # start-up, of which it is a part that can be seen

    return json.dumps(document, indent=indent, default=str)
