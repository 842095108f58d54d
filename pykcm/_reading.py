"""Reading one message off a TCP connection that is not attached, and never a byte more.

The bytes are looked at (MSG_PEEK) until the message is whole, and only then taken.  So whatever
ends the call before, a time-out, a cancellation, a refused header, the stream is as it was.

Bytes that are looked at stay, and a socket that has some stays readable: to wait for more by poll
would spin.  An edge-triggered epoll tells of what has come since.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pykcm import _kernel, _tcp
from pykcm._attaching import number_of
from pykcm._wait import Steps, Wait, explained
from pykcm.errors import ArgumentError, Disconnected, FramingError, KCMOSError, MessageCut
from pykcm.framing.field import LARGEST_HEADER

if TYPE_CHECKING:
    from pykcm.framing import Framing

_LOOK = socket.MSG_PEEK | socket.MSG_DONTWAIT


def steps(framing: Framing, tcp: socket.socket, begun: bytes) -> Steps[bytes]:
    """See `Framing.read_message`."""
    length = framing.measure(begun) if begun else 0
    if 0 < length <= len(begun):
        if length < len(begun):
            raise ArgumentError("begun", f"goes on for {len(begun) - length} bytes after a message")
        return bytes(begun)
    fd = number_of(tcp)
    if hasattr(tcp, "pending"):  # ssl.SSLSocket, which has bytes of its own
        raise KCMOSError(errno.EOPNOTSUPP, "a message cannot be read off a TLS socket")
    have = len(begun)
    with explained():
        more = select.epoll()
    with _explained(fd), more, _waking_for_any_byte(fd):
        more.register(fd, select.EPOLLIN | select.EPOLLPRI | _kernel.EPOLLRDHUP | select.EPOLLET)
        try:
            while True:
                # In this order: what had come when it ended is there to be looked at.
                ended = _tcp.has_ended(fd)
                there = _kernel.unread(fd)
                have = len(begun) + there
                if not length and there:
                    length = _measure(framing, begun, fd, there)
                if 0 < length <= have:
                    return bytes(begun) + _take(fd, length - len(begun))
                if ended:
                    raise _cut(fd, begun, there, length)
                _make_room(fd, there, length - len(begun) if length else there + LARGEST_HEADER)
                if _tcp.has_urgent_data(fd):
                    raise KCMOSError(
                        errno.EPROTO, "urgent data came in the message, which no framing allows for"
                    )
                yield Wait(more.fileno())
                more.poll(0)
        except TimeoutError:
            whole = length or "a message that does not tell its length yet"
            raise TimeoutError(f"timed out: {have} bytes of {whole} have come") from None


def _measure(framing: Framing, begun: bytes, fd: int, there: int) -> int:
    """The length of the message, 0 while too little has come to tell."""
    room = LARGEST_HEADER
    while True:
        seen = bytes(begun) + _receive(fd, min(there, room), _LOOK)
        length = framing.measure(seen)
        if length or there <= room:
            break
        room *= 4  # a delimiter may be far away
    if not length and len(seen) >= framing.max_length:
        raise FramingError(errno.EMSGSIZE, f"{len(seen)} bytes do not tell the message's length")
    return length


def _take(fd: int, size: int) -> bytes:
    data = _receive(fd, size, socket.MSG_DONTWAIT)
    assert len(data) == size  # they were there, and nobody else reads
    return data


def _receive(fd: int, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    received, _ = _kernel.receive_message(fd, [buffer], flags) if size else (0, 0)
    return bytes(buffer[:received])


def _make_room(fd: int, there: int, size: int) -> None:
    """Have a receive buffer that bytes fit into of which some are there.

    What is charged for these may be the whole of a segment of which all else was read; and TCP
    opens its window by whole segments only (__tcp_select_window, net/ipv4/tcp_output.c).
    """
    charged = _kernel.memory(fd)[_kernel.RMEM_ALLOC]
    room = charged // 2 + (size - there) + _tcp.segment_received(fd)
    if _tcp.make_room(fd, room) < room:
        raise KCMOSError(
            errno.ENOBUFS,
            f"the receive buffer of TCP socket {fd} cannot take the message's {size} bytes; raise "
            "net.ipv4.tcp_rmem, or leave SO_RCVBUF as it was",
        )


def _cut(fd: int, begun: bytes, there: int, length: int) -> Disconnected:
    number = _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_ERROR) or errno.EPIPE
    message = bytes(begun) + _receive(fd, there, _LOOK)
    if not message:
        return Disconnected(number, "the connection ended before a message came")
    return MessageCut(
        number,
        f"the connection ended after {len(message)} bytes of a message"
        + (f" of {length}" if length else ""),
        message,
    )


@contextlib.contextmanager
def _explained(fd: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, (KCMOSError, TimeoutError)):
            raise
        raise KCMOSError(
            error.errno or errno.EIO,
            f"no message can be read off descriptor {fd}; it must be a connected TCP socket",
        ) from error


@contextlib.contextmanager
def _waking_for_any_byte(fd: int) -> Iterator[None]:
    """Where the caller has set SO_RCVLOWAT, a shorter message would wake nobody."""
    mark = _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    if mark > 1:
        _kernel.set_option(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    try:
        yield
    finally:
        if mark > 1:
            _kernel.set_option(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
