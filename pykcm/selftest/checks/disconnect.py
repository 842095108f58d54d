"""What is told when a connection ends."""

from __future__ import annotations

import errno
import select
import socket
import struct

from pykcm.selftest.check import Failure, Group, code, rst
from pykcm.selftest.lab import SEQPACKET, SOON, Lab, framed

GROUP = Group("disconnect", "A connection that ends")

_POSTED = rst(
    "Error handling",
    "If an error occurs on an attached TCP socket, KCM sets an EPIPE on the socket thus waking up "
    "the application thread.",
)
_STATES = {"established": 1, "closed": 7, "close wait": 8}  # include/net/tcp_states.h


def _reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _state(lab: Lab, sock: socket.socket) -> str:
    number = lab.calls.get_option(sock, socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return next((name for name, value in _STATES.items() if value == number), str(number))


@GROUP.check(_POSTED)
def close_is_epipe(lab: Lab) -> None:
    """The peer's close posts EPIPE on the TCP socket."""
    _, near, far = lab.attached()
    far.close()
    lab.posted(near, errno.EPIPE)


@GROUP.check(_POSTED)
def reset_is_epipe(lab: Lab) -> None:
    """The peer's reset posts EPIPE too."""
    _, near, far = lab.attached()
    _reset(far)
    lab.posted(near, errno.EPIPE)


@GROUP.check(_POSTED)
def half_close_is_epipe(lab: Lab) -> None:
    """A peer that will only read from now on posts EPIPE too."""
    _, near, far = lab.attached()
    far.shutdown(socket.SHUT_WR)
    lab.posted(near, errno.EPIPE)


@GROUP.check(
    rst(
        "TCP connection monitoring",
        "the application does retain an open file descriptor to the socket so it will be able to "
        "get statistics from the socket",
    )
)
def tcp_info_tells_close_from_reset(lab: Lab) -> None:
    """TCP_INFO of an attached socket tells its state."""
    _, closing, far = lab.attached()
    lab.expect("a connection's state", _state(lab, closing), "established")
    far.close()
    lab.posted(closing, errno.EPIPE)
    lab.expect("a closed connection's state", _state(lab, closing), "close wait")
    _, resetting, far = lab.attached()
    _reset(far)
    lab.posted(resetting, errno.EPIPE)
    lab.expect("a reset connection's state", _state(lab, resetting), "closed")


@GROUP.check(code("psock_data_ready"))
def messages_before_the_end_arrive(lab: Lab) -> None:
    """What the peer sent before it closed is delivered."""
    kcm, _, far = lab.attached(lab.fixed(5))
    lab.calls.tcp_send(far, b"first12345third")
    far.close()
    lab.received(kcm, [b"first", b"12345", b"third"])


@GROUP.check(
    'recv(2): "When a stream socket peer has performed an orderly shutdown, the return '
    'value will be 0"; ' + code("psock_state_change")
)
def reader_learns_of_the_end(lab: Lab) -> None:
    """A reader of the KCM socket is told when the last connection has ended."""
    kcm, near, far = lab.attached(kind=SEQPACKET)
    far.close()
    lab.posted(near, errno.EPIPE)
    if not lab.calls.poll(kcm.fileno(), select.POLLIN, min(lab.patience, SOON)):
        raise Failure("poll of the KCM socket\nexpected: an event\nseen: none")


@GROUP.check(
    rst(
        "TCP socket management",
        "When the application gets the error notification for a TCP socket, it should unattach the "
        "socket from KCM",
    )
)
def broken_connection_can_be_unattached(lab: Lab) -> None:
    """After the error, the connection can be unattached and its end be read."""
    kcm, near, far = lab.attached()
    far.close()
    lab.posted(near, errno.EPIPE)
    lab.unattach(kcm, near)
    lab.expect("poll of the TCP socket", lab.calls.poll(near.fileno(), 1, lab.patience) & 1, 1)
    lab.expect("a read of the TCP socket", lab.calls.tcp_receive(near, 10), b"")


@GROUP.check(
    rst(
        "TCP socket management",
        "If there is a state change (disconnection) or other error on a TCP socket",
    )
)
def other_connections_go_on(lab: Lab) -> None:
    """The end of one connection does not touch another one's messages."""
    program = lab.documented()
    kcm, near, far = lab.attached(program)
    other, peer = lab.tcp()
    lab.attach(kcm, other, program)
    _reset(far)
    lab.posted(near, errno.EPIPE)
    lab.calls.tcp_send(peer, framed(b"alive"))
    lab.received(kcm, [framed(b"alive")])


@GROUP.check(rst("TCP socket management", "KCM discontinues using the socket"))
def nothing_is_sent_after_the_end(lab: Lab) -> None:
    """No message is sent over a connection whose end was told."""
    kcm, near, far = lab.attached()
    far.shutdown(socket.SHUT_WR)
    lab.posted(near, errno.EPIPE)
    lab.calls.send(kcm.fileno(), [b"for another connection"])
    lab.unsent(far)


@GROUP.check("close(2); " + code("release_mux, kcm_unattach"))
def closing_the_last_socket_gives_connections_back(lab: Lab) -> None:
    """When a multiplexor's last socket is closed, its TCP sockets read for themselves again."""
    kcm, near, far = lab.attached()
    lab.calls.close(kcm)
    # Were it still attached, this would be a message to KCM.
    lab.calls.tcp_send(far, framed(b"bytes"))
    lab.expect("a read of the TCP socket", lab.stream(near, 9), framed(b"bytes"))
