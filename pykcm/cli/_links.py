"""The TCP connections of `kcm connect`: made, made again with back-off, or accepted."""

from __future__ import annotations

import socket
import time

import click

# Seconds.
_CONNECT = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0


def named(host: str, port: int) -> str:
    """An address as people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dial(host: str, port: int) -> socket.socket:
    """A connection.

    Raises:
        ClickException: there is none; the reason is in the text.
    """
    try:
        return socket.create_connection((host, port), timeout=_CONNECT)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that can't be one
        reason = getattr(error, "strerror", None) or str(error)
        raise click.ClickException(f"{named(host, port)}: {reason}") from error


def listener(host: str, port: int) -> socket.socket:
    """A listening socket that does not wait.

    Raises:
        ClickException: there is none; the reason is in the text.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise click.ClickException(f"{named(host, port)}: {reason}") from error
    made.setblocking(False)
    return made


class BackOff:
    """When to try again: after a pause that doubles with each failure.

    Attributes:
        due: the monotonic time of the next try.
        pause: the seconds until then, as they were at the last failure.
    """

    def __init__(self) -> None:
        self.due = 0.0
        self.pause = 0.0

    def failed(self) -> None:
        """It did not work."""
        self.pause = min(_LONGEST_PAUSE, 2 * self.pause or _FIRST_PAUSE)
        self.due = time.monotonic() + self.pause

    def worked(self) -> None:
        """It did."""
        self.due = self.pause = 0.0
