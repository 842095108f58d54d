"""What is reported of a transport that ended."""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, Any, NamedTuple

from pykcm import _tcp

if TYPE_CHECKING:
    import socket


class Reason(enum.Enum):
    """Why a transport ended, as far as the kernel lets one tell.

    KCM posts every end of a connection as EPIPE, and so can hide an error that came before it.
    """

    PEER_CLOSED = "the peer closed the connection"
    RESET = "the connection was reset, or given up by TCP"
    OVERSIZE = "a message was longer than the framing's maximum or the receive buffer"
    BAD_HEADER = "the framing refused a header"
    ASSEMBLY_TIMEOUT = "the rest of a message did not come within SO_RCVTIMEO"
    URGENT = "urgent data came, at which the kernel's parser stops for ever"
    SENDING_FAILED = "the kernel gave up sending on the connection"
    PROGRAM = "the delineation program returned an error"
    UNATTACHED = "it was unattached"


class Disconnection(NamedTuple):
    """What is reported of a transport that ended.

    Nothing may be written to the TCP socket any more, unless the reason is UNATTACHED and errno 0:
    a message may have been cut where the kernel stopped sending.

    Attributes:
        tcp: the TCP socket, as it was given to `attach`.
        peer: the peer's address, as `socket.getpeername` gave it at the attach; None if unknown.
        reason: why it ended.
        errno: what the kernel posted on the TCP socket; 0 for nothing.
        cut: bytes that are left unread, of a message whose end did not come or behind the reason's
            cause.  0 does not prove that none was cut: a beginning that the kernel had taken off
            the TCP socket is not shown by anything.
    """

    tcp: socket.socket
    peer: Any
    reason: Reason
    errno: int
    cut: int

    def __str__(self) -> str:
        text = self.reason.value
        if self.cut:
            text += f"; {self.cut} bytes are left unread"
        if self.reason is Reason.UNATTACHED and self.errno:
            text += "; a message was being sent on it and is cut there, so nothing may be written"
        return text if self.peer is None else f"{_address(self.peer)}: {text}"


def _address(peer: Any) -> str:
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = f"[{peer[0]}]" if ":" in str(peer[0]) else peer[0]
        return f"{host}:{peer[1]}"
    return str(peer)


_REASONS = {
    errno.EMSGSIZE: Reason.OVERSIZE,
    errno.EBADMSG: Reason.BAD_HEADER,
    errno.EPROTO: Reason.BAD_HEADER,
    errno.ECONNRESET: Reason.RESET,
}


def reason_of(number: int, state: int) -> Reason:
    """Why a connection ended.

    Args:
        number: what the kernel had posted on it, an errno.
        state: its state by include/net/tcp_states.h.
    """
    ended = state == _tcp.CLOSE
    if number == errno.ETIMEDOUT:
        return Reason.RESET if ended else Reason.ASSEMBLY_TIMEOUT
    if number in _REASONS:
        return _REASONS[number]
    if number not in (0, errno.EPIPE):
        return Reason.PROGRAM
    if ended:
        return Reason.RESET
    return Reason.SENDING_FAILED if state == _tcp.ESTABLISHED else Reason.PEER_CLOSED
