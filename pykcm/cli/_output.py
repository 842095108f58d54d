"""Writing for people: a rich console that fits 80 columns, and colours only on a terminal."""

from __future__ import annotations

from rich.console import Console

_WIDTH = 80


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `_ending`, which knows the exit status."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A console; NO_COLOR is honoured.

    Args:
        stderr: whether it writes to standard error instead of standard output.
    """
    made = _Console(stderr=stderr, highlight=False)
    made.width = min(_WIDTH, made.width)
    return made
