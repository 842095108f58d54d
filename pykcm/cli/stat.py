"""`kcm stat`: what the kernel counts of KCM, joined with connections and processes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import click

from pykcm._files import put
from pykcm._joining.views import Look

_SECONDS = 2.0

Write = Callable[[Look], None]


@click.command()
@click.option(
    "--watch",
    "seconds",
    is_flag=False,
    flag_value=_SECONDS,
    type=click.FloatRange(0.1, 86_400),
    metavar="[SECONDS]",
    help="Look again and again, every 2 seconds by default.  On a terminal: q quits, s sorts.",
)
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--jsonl", "form", flag_value="jsonl", help="Print a line of JSON for every look.")
@click.option("--prometheus", "form", flag_value="prometheus", help="Print Prometheus metrics.")
@click.option("--once", is_flag=True, help="Look once, and end.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Replace FILE at once by what would be printed; metrics by default.",
)
@click.option(
    "--sort",
    type=click.Choice(["number", "received", "sent", "queue"]),
    default="number",
    show_default=True,
    help="What transports are sorted by.",
)
def command(
    seconds: float | None, form: str | None, once: bool, output: str | None, sort: str
) -> None:
    """Show multiplexors, their sockets, transports, and the processes that hold them.

    As root, the kernel's own lists tell what belongs together.  Otherwise it is told by counts, or
    not at all; what could not be joined is said, with the reason.

    Rates need two looks: --watch and --jsonl have them from the second on.
    """
    if once and seconds:
        raise click.UsageError("--once looks once, --watch again and again")
    if output and form == "jsonl":
        raise click.UsageError("--jsonl prints line by line, --output replaces the file")
    from pykcm._joining.look import Observer

    if form == "jsonl" and not once:
        seconds = seconds or _SECONDS
    with Observer() as observer:
        if seconds and not form and not output and sys.stdin.isatty() and sys.stdout.isatty():
            from pykcm.cli import _stat_watch

            _stat_watch.watch(observer, seconds, sort)
            return
        write = _writer(form, output, sort)
        for look in _looks(observer.look, seconds):
            write(look)


def _looks(look: Callable[[], Look], seconds: float | None) -> Iterator[Look]:
    """One look, or one every so many seconds."""
    due = time.monotonic()
    while True:
        yield look()
        if seconds is None:
            return
        # Not at once if the last took longer than it may: the CPU is for others.
        due = max(due + seconds, time.monotonic() + seconds / 10)
        time.sleep(max(0.0, due - time.monotonic()))


def _writer(form: str | None, output: str | None, sort: str) -> Write:
    if output:
        return lambda look: put(
            _text(look, form or "prometheus").encode(),
            output,
            0o644,  # node_exporter is another user
        )
    if form:
        return lambda look: click.echo(_text(look, form), nl=False)
    from pykcm.cli import _output, _stat_screen

    console = _output.console()
    return lambda look: console.print(_stat_screen.render(look, console.width, sort))


def _text(look: Look, form: str) -> str:
    if form == "prometheus":
        from pykcm.cli import _stat_prometheus

        return _stat_prometheus.text(look)
    from pykcm.cli import _stat_json

    return json.dumps(_stat_json.plain(look), indent=2 if form == "json" else None) + "\n"
