"""Bytes as text on a command line, there and back."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|[nrt0\\])|\\")
_BYTES = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}
_SHOWN = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "\0": r"\x00", "\\": r"\\"}


def to_bytes(text: str) -> bytes:
    r"""The bytes of a text in UTF-8 with the escapes \n, \r, \t, \0, \\ and \xNN.

    Raises:
        ValueError: a backslash that begins none of these.
    """
    parts: list[bytes] = []
    at = 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[at : match.start()].encode("utf-8", "surrogateescape"))
        at = match.end()
        escape = match[1]
        if escape is None:
            wrong = text[match.start() : match.start() + 2]
            raise ValueError(rf"'{wrong}' is not \n, \r, \t, \0, \\ or \xNN")
        parts.append(bytes.fromhex(escape[1:]) if escape[0] == "x" else _BYTES[escape])
    return b"".join([*parts, text[at:].encode("utf-8", "surrogateescape")])


def to_text(data: bytes) -> str:
    """Bytes as one printable line, of which `to_bytes` makes the same bytes again."""
    return "".join(map(_show, data.decode("utf-8", "surrogateescape")))


def _show(character: str) -> str:
    if character in _SHOWN:
        return _SHOWN[character]
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
