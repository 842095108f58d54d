"""Messages as lines: what is typed or piped in, and what comes in printed alike."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable

import click

from pykcm.cli import _escapes

_LONGEST = 1 << 28  # characters; a message of 64 MiB in any of the formats


def _from_json(line: str) -> bytes:
    value = json.loads(line)
    if not isinstance(value, str):
        raise ValueError("not a JSON string")
    return value.encode("utf-8", "surrogateescape")


def _to_json(data: bytes) -> str:
    return json.dumps(data.decode("utf-8", "surrogateescape"))


def _from_base64(line: str) -> bytes:
    try:
        return base64.b64decode(line.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from error


def _from_hex(line: str) -> bytes:
    try:
        return bytes.fromhex(line)
    except ValueError as error:
        raise ValueError("not hexadecimal digits in pairs") from error


#: How a line becomes bytes, which raises ValueError, and how bytes become a line.
FORMATS: dict[str, tuple[Callable[[str], bytes], Callable[[bytes], str]]] = {
    "text": (_escapes.to_bytes, _escapes.to_text),
    "hex": (_from_hex, bytes.hex),
    "base64": (_from_base64, lambda data: base64.b64encode(data).decode()),
    "json": (_from_json, _to_json),
}


class Lines:
    """The lines of a descriptor, which need not be there yet.

    Attributes:
        ended: whether all were read.
    """

    def __init__(self, fd: int | None) -> None:
        self.fd = fd
        self.ended = fd is None
        self._rest: list[bytes] = []  # of a line whose end has not come
        self._size = 0

    def read(self) -> list[str]:
        """The lines that one read(2) completes; to be called when the descriptor is readable.

        Raises:
            ClickException: a line is longer than any message.
        """
        assert self.fd is not None
        data = os.read(self.fd, 1 << 16)
        self._rest.append(data)
        self._size += len(data)
        lines: list[bytes] = []
        if b"\n" in data or not data:
            *lines, rest = b"".join(self._rest).split(b"\n")
            self._rest, self._size = [rest], len(rest)
        if not data:
            self.ended = True
            if self._size:
                lines += self._rest
        elif self._size > _LONGEST:
            raise click.ClickException("a line of the input is longer than any message")
        return [line.decode("utf-8", "surrogateescape") for line in lines]
