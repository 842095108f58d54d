"""What a command says, and an orderly end where nobody listens any more."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def say(text: str) -> None:
    """Write whole lines at once, also beside other threads."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command's main function and exit with the status that it returns.

    A standard output that was closed, as by `| head`, or that has no room ends the command with a
    status of its own and no trace.
    """
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE  # as if the signal had ended it
        _silence()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        status = 1
        _silence()
        print(f"can't write to standard output: {error.strerror}", file=sys.stderr)
    sys.exit(status)


def _silence() -> None:
    """Throw away what is still to be written: Python tries that once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
