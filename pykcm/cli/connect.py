"""`kcm connect`: netcat for messages."""

from __future__ import annotations

import contextlib
import shlex
import sys
from typing import Any

import click

from pykcm import bpf
from pykcm.cli import _bodies, _framings, _input
from pykcm.cli._answers import Identity
from pykcm.cli._lines import FORMATS, Lines
from pykcm.cli._outcome import Options
from pykcm.cli._session import Session

_EXIT_STATUS = """\b
Exit status:
  0  done: every message that went out has its answer
  1  it failed, or a line was not a message
  2  a mistake in the command line
  3  messages are unanswered
  4  a connection was lost
  5  a connection was lost, and messages are unanswered"""


def _identity(ctx: click.Context, param: click.Parameter, value: str | None) -> Identity | None:
    if value is None:
        return None
    offset, _, size = value.partition(":")
    if not (offset.isdecimal() and size.isdecimal() and int(size)):
        raise click.BadParameter(f"{value!r} is not OFFSET:SIZE in bytes", ctx, param)
    return Identity(int(offset), int(size))


def _words(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(value or ""))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    if value is not None and not words:
        raise click.BadParameter("is empty", ctx, param)
    return words


@click.command(epilog=_EXIT_STATUS)
@click.argument("host")
@click.argument("port", type=click.IntRange(0, 65535))
@_framings.takes_framing("FRAMING")
@click.option(
    "--pinned",
    type=click.Path(),
    metavar="PATH",
    help="Have the program that is pinned there find the messages: needs no privilege.",
)
@click.option(
    "-n",
    "--connections",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="How many connections, to share the messages.",
)
@click.option("--listen", is_flag=True, help="Wait for the connections instead of making them.")
@click.option(
    "--format",
    "format_",
    type=click.Choice([*FORMATS]),
    default="text",
    show_default=True,
    help=r"How a line is a message: text has \n, \x00 and so on; json is a JSON string.",
)
@click.option(
    "--body",
    is_flag=True,
    help="Lines are messages without their header, which is put on and taken off.",
)
@click.option(
    "--file",
    "files",
    type=click.Path(),
    multiple=True,
    help="A file that is a message, to be sent before the lines; several times for several.",
)
@click.option(
    "--exec",
    "execute",
    callback=_words,
    metavar="COMMAND",
    help="Run for each message that comes in: it is the input, the output is the answer.  No "
    "lines are read then.  With --listen any number of peers is served.",
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Messages a second at most.")
@click.option("--count", type=click.IntRange(1), help="End after so many messages came in.")
@click.option("-1", "once", is_flag=True, help="The same as --count 1.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="End when the input has ended and nothing came for so long; 0 expects no answers.  By "
    "default the end comes with the last answer, or 10 seconds without one.",
)
@click.option("--times", is_flag=True, help="Print the time before each message.")
@click.option("--rtt", is_flag=True, help="Tell at the end how long answers took.")
@click.option(
    "--id",
    "identity",
    callback=_identity,
    metavar="OFFSET:SIZE",
    help="The bytes by which an answer is known; without it answers come in order.",
)
@click.option("--reconnect", is_flag=True, help="Make lost connections again, with back-off.")
@click.option("--json", "as_json", is_flag=True, help="Report at the end, on standard error.")
def command(
    framing: _framings.Chosen | None,
    pinned: str | None,
    format_: str,
    files: tuple[str, ...],
    once: bool,
    count: int | None,
    **rest: Any,
) -> int:
    """Send and receive whole messages: netcat for KCM.

    Each line of standard input is a message, header included, and goes out over whichever
    connection is free; what comes in is printed alike.  It ends when the input has ended and each
    message has its answer.
    """
    options = Options(format=format_, limit=1 if once else count, **rest)
    _check(options, framing, pinned)
    with contextlib.ExitStack() as stack:
        if pinned is not None:
            delineation: Any = stack.enter_context(bpf.Program.from_pin(pinned))
        else:
            delineation = _framings.require(framing).framing
        known = framing.framing if framing is not None else None
        lines = Lines(None if sys.stdin is None or options.execute else sys.stdin.fileno())
        messages = [_message(path, known, options.body) for path in files]
        return Session(options, known, delineation, lines, messages).run()


def _check(options: Options, framing: _framings.Chosen | None, pinned: str | None) -> None:
    if pinned is None:
        _framings.require(framing)
    if options.body and (framing is None or not _bodies.can_wrap(framing.framing)):
        what = "a program" if framing is None else framing.name
        raise click.UsageError(f"--body: the headers of {what} can't be made here")
    if options.rtt and options.identity is None and options.connections > 1:
        raise click.UsageError("--rtt: over several connections answers are known by --id alone")
    if options.reconnect and options.listen:
        raise click.UsageError("--reconnect is not for --listen, which waits for the peer's")


def _message(path: str, framing: Any, body: bool) -> bytes:
    content = _input.read(path)
    try:
        if body:
            return _bodies.wrap(framing, content)
        return content if framing is None else _bodies.whole(framing, content)
    except NotImplementedError:  # a program by hand, which only the kernel can run
        return content
    except ValueError as error:
        raise click.ClickException(f"{path}: {error}") from error
