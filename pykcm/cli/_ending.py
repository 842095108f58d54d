"""How a command ends: its exit status, and what is said on standard error.

| status | |
|---|---|
| 0 | done |
| 1 | it failed; the line on standard error says why |
| 2 | a mistake in the command line |
| 130 | interrupted (SIGINT) |
| 141 | nobody reads its output any more (SIGPIPE); nothing is said |

Each command may have others of its own, from 3 on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence

import click

from pykcm.cli._group import State
from pykcm.cli._nearest import nearest

FAILED = 1
MISUSED = 2
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE

# The extra of pykcm that brings a module, where it is not "cli".
_EXTRAS = {"dpkt": "capture"}


def run(group: click.Group, arguments: Sequence[str]) -> int:
    """Run the command and flush its output.

    Args:
        group: what `_group.make` made.
        arguments: the words behind `kcm`.

    Returns:
        The exit status.
    """
    _prepare_output()
    instruction = os.environ.get("_KCM_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, "kcm", "_KCM_COMPLETE", instruction)
    state = State()
    with _warnings_in_a_line(state):
        status = _attempt(state, group, list(arguments) or ["--help"])
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except OSError as error:
            status = _tell(state, error)
            _give_output_up()
    return status


def _prepare_output() -> None:
    """Have names that are not text printed with escapes instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _attempt(state: State, group: click.Group, arguments: list[str]) -> int:
    try:
        with group.make_context("kcm", arguments, obj=state) as ctx:
            status = group.invoke(ctx)
            return status if isinstance(status, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except SystemExit as exit_:
        if isinstance(exit_.code, str):
            _say(state.name, exit_.code.removeprefix(f"{state.name}: "))
            return FAILED
        return exit_.code or 0
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except Exception as error:
        return _tell(state, error)


def _tell(state: State, error: Exception) -> int:
    """Say in a line what was raised; the exit status."""
    from pykcm.errors import KCMError

    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else state.name
        _say(where, f"{_mistake(error)} ({where} --help)")
        return MISUSED
    if state.debug:
        import traceback

        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        _say(state.name, _in_a_line(error.format_message()))
    elif isinstance(error, KCMError):
        _say(state.name, str(error))
    elif isinstance(error, BrokenPipeError):
        return UNREAD
    elif isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get(error.name or "", "cli")
        _say(state.name, f"{error.name} is missing; install pykcm with its extra: pykcm[{extra}]")
    elif isinstance(error, OSError):
        what = error.strerror or str(error)
        if error.filename is not None:
            what = f"{_printable(error.filename)}: {what}"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"the output can't be written: {what}"
        _say(state.name, what)
    else:
        hint = "" if state.debug else "; --debug shows where"
        what = f"{type(error).__name__}: {error}"
        _say(state.name, _in_a_line(f"this is a mistake in pykcm: {what}{hint}"))
    return FAILED


def _mistake(error: click.UsageError) -> str:
    """What is wrong with a command line, in a line."""
    if isinstance(error, click.NoSuchOption):
        options = [
            name
            for param in (error.ctx.command.params if error.ctx else ())
            for name in (*param.opts, *param.secondary_opts)
            if name.startswith("-")
        ]
        name = error.option_name
        return f"there is no option {name}{nearest(name, options)}"
    return _in_a_line(error.format_message()).rstrip(".")


def _in_a_line(text: str) -> str:
    return " ".join(text.split())


def _printable(filename: object) -> str:
    return os.fsdecode(filename) if isinstance(filename, (bytes, str)) else str(filename)


def _say(name: str, text: str) -> None:
    with contextlib.suppress(OSError):  # nobody is there to be told
        print(f"{name}: {text}", file=sys.stderr, flush=True)


def _give_output_up() -> None:
    """Have what could not be written thrown away, so that Python does not try again at its exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(null, stream.fileno())
    os.close(null)


@contextlib.contextmanager
def _warnings_in_a_line(state: State) -> Iterator[None]:
    """Show warnings without the place in the code, which says nothing to who runs a command."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        _say(state.name, f"warning: {_in_a_line(str(message))}")

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
