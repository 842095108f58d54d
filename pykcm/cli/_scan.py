"""Measuring a stream from its first byte to its last, as KCM would.

A `Scan` is fed the stream in pieces; what a capture has lost of it is given as a number of bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pykcm.errors import FramingError

if TYPE_CHECKING:
    from pykcm.framing import Framing

# How many bytes are kept of a header that is refused, to be shown.
_SHOWN = 64


class Message(NamedTuple):
    """A message of the stream.

    Attributes:
        offset: where it begins in the stream, in bytes.
        length: its length in bytes, header included.
        lost: how many of these bytes the capture does not have.
    """

    offset: int
    length: int
    lost: int = 0


class Problem(NamedTuple):
    """Why no more messages were found.

    Attributes:
        kind: "refused", a header that the framing refuses; "cut", the stream ends within a
            message; "lost", the capture does not have a message's header.
        offset: where the message begins, in bytes.
        text: what is wrong with it.
        data: the bytes there.
    """

    kind: str
    offset: int
    text: str
    data: bytes = b""


class Scan:
    """The messages of one stream.

    Attributes:
        messages: what was found so far.
        problem: why no more are found; None for no reason.
        size: bytes of the stream so far, lost ones included.
        lost: how many of them the capture does not have.
    """

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self.messages: list[Message] = []
        self.problem: Problem | None = None
        self.size = 0
        self.lost = 0
        self._start = 0  # where the message that is not complete yet begins
        self._length = 0  # its length, 0 while its header is not complete
        self._lost = 0  # what of it is lost
        self._header = b""  # what of it was seen, until its length is known

    def feed(self, data: bytes) -> None:
        """The stream goes on with these bytes."""
        self.size += len(data)
        if self.problem is not None:
            if self.problem.kind == "refused":
                shown = (self.problem.data + data)[:_SHOWN]
                self.problem = self.problem._replace(data=shown)
            return
        if self._length:
            if self._start + self._length > self.size:
                return
            data = data[len(data) - (self.size - self._start - self._length) :]
            self._end_message()
        view = memoryview(self._header + data if self._header else data)
        at = 0
        while at < len(view):
            try:
                length = self._framing.measure(view[at:])
            except FramingError as error:
                self.problem = Problem(
                    "refused", self._start, str(error), bytes(view[at : at + _SHOWN])
                )
                return
            if not length:
                break
            at += length
            self._length = length
            if at > len(view):
                break
            self._end_message()
        self._header = b"" if self._length else bytes(view[at:])

    def lose(self, count: int) -> None:
        """The stream goes on with so many bytes that the capture does not have."""
        self.size += count
        self.lost += count
        if self.problem is not None:
            return
        if not self._length:
            self._lose_header(count)
            return
        left = self._start + self._length - (self.size - count)
        self._lost += min(count, left)
        if count >= left:
            self._end_message()
        if count > left:
            self._lose_header(count - left)

    def finish(self) -> None:
        """The stream has ended."""
        if self.problem is not None:
            return
        seen = self.size - self._start
        if self._length:
            text = f"the stream ends after {seen} of this message's {self._length} bytes"
            self.problem = Problem("cut", self._start, text)
        elif seen:
            text = f"the stream ends within a header, {seen} bytes after its first"
            self.problem = Problem("cut", self._start, text, self._header[:_SHOWN])

    def _end_message(self) -> None:
        self.messages.append(Message(self._start, self._length, self._lost))
        self._start += self._length
        self._length = self._lost = 0

    def _lose_header(self, count: int) -> None:
        text = f"the capture lacks {count} bytes here, a header among them"
        self.problem = Problem("lost", self._start, text, self._header[:_SHOWN])
