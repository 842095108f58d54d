"""Reading a file that was named on the command line, or standard input for "-"."""

from __future__ import annotations

import sys
from pathlib import Path

import click

_LIMIT = 1 << 26  # bytes; the longest program has 8 MB of instructions


def read(path: str) -> bytes:
    """All of a file.

    Raises:
        OSError: it can't be read.
        ClickException: it is too long to be a program.
    """
    if path == "-":
        content = sys.stdin.buffer.read(_LIMIT + 1)
    else:
        with Path(path).open("rb") as file:
            content = file.read(_LIMIT + 1)
    if len(content) > _LIMIT:
        raise click.ClickException(f"{path}: longer than {_LIMIT} bytes, too long for a program")
    return content


def read_text(path: str) -> str:
    """All of a text file in UTF-8.

    Raises:
        OSError, ClickException: as of `read`; it is not text.
    """
    try:
        return read(path).decode()
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path}: not text in UTF-8") from error
