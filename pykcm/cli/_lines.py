"""Messages as lines: what is typed or piped in, and what comes in printed alike."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Iterator

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
        number: the number of the last line, from 1.
    """

    def __init__(self, fd: int | None) -> None:
        self.fd = fd
        self.ended = fd is None
        self.number = 0
        self._rest = b""

    def read(self) -> Iterator[str]:
        """What one read(2) brings; to be called when the descriptor is readable.

        Raises:
            ValueError: a line is longer than any message.
        """
        assert self.fd is not None
        data = os.read(self.fd, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data:
            self.ended = True
            if self._rest:
                lines.append(self._rest)
        elif len(self._rest) > _LONGEST:
            raise ValueError(f"line {self.number + len(lines) + 1} is too long")
        for line in lines:
            self.number += 1
            yield line.decode("utf-8", "surrogateescape")
