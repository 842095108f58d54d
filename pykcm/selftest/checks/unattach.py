"""SIOCKCMUNATTACH."""

from __future__ import annotations

import errno
import select
import socket
import threading

from pykcm._binding import lib
from pykcm.selftest.calls import name_of
from pykcm.selftest.check import Group, code, rst
from pykcm.selftest.holding import held
from pykcm.selftest.lab import SOON, Lab, framed, patterned

GROUP = Group("unattach", "SIOCKCMUNATTACH gives a TCP connection back")

_UNATTACH = rst(
    "Unattach transport sockets",
    'An "unattach" ioctl is done with the kcm_unattach structure as the argument',
)


@GROUP.check(_UNATTACH)
def connection_is_given_back(lab: Lab) -> None:
    """After unattaching, the TCP socket reads the stream itself."""
    kcm, near, far = lab.attached()
    lab.unattach(kcm, near)
    # Were it still attached, this would be a message to KCM.
    lab.calls.tcp_send(far, framed(b"bytes"))
    lab.expect("a read of the TCP socket", lab.stream(near, 9), framed(b"bytes"))


@GROUP.check(_UNATTACH)
def nothing_more_is_delivered(lab: Lab) -> None:
    """What arrives after unattaching does not go to the KCM socket."""
    kcm, near, far = lab.attached()
    lab.calls.tcp_send(far, framed(b"before"))
    lab.received(kcm, [framed(b"before")])
    lab.unattach(kcm, near)
    lab.calls.tcp_send(far, framed(b"after"))
    lab.silent(kcm)


@GROUP.check(_UNATTACH)
def connection_can_be_attached_again(lab: Lab) -> None:
    """A connection that was unattached can be attached anew."""
    program = lab.documented()
    kcm, near, far = lab.attached(program)
    lab.unattach(kcm, near)
    lab.attach(kcm, near, program)
    lab.calls.tcp_send(far, framed(b"again"))
    lab.received(kcm, [framed(b"again")])


@GROUP.check(_UNATTACH)
def delivered_messages_stay(lab: Lab) -> None:
    """Messages that a KCM socket has queued can be received after unattaching."""
    kcm, near, far = lab.attached()
    lab.calls.tcp_send(far, framed(b"queued"))
    lab.expect("a peek", lab.peek(kcm), framed(b"queued"))
    lab.unattach(kcm, near)
    lab.received(kcm, [framed(b"queued")])


@GROUP.check(_UNATTACH)
def other_connections_go_on(lab: Lab) -> None:
    """Messages are sent over the connections that are left."""
    program = lab.documented()
    kcm, near, _ = lab.attached(program)
    other, far = lab.tcp()
    lab.attach(kcm, other, program)
    lab.unattach(kcm, near)
    for number in range(3):
        lab.calls.send(kcm.fileno(), [b"message %d" % number])
        lab.streamed(far, b"message %d" % number)


@GROUP.check(code("kcm_unattach, ready_rx_msg"))
def complete_message_is_kept(lab: Lab) -> None:
    """A complete message that no KCM socket had room for is not lost by unattaching."""
    lab.isolate()
    kcm, near, far = lab.attached()
    lab.set_receive_disabled(kcm, 1)
    lab.calls.tcp_send(far, framed(b"ready"))
    shown = "RdyRx in the connection's status"
    lab.eventually(shown, lambda: "RdyRx" in lab.multiplexor().psocks[0].status, True)
    lab.unattach(kcm, near)
    lab.set_receive_disabled(kcm, 0)
    lab.either_end_has(kcm, near, framed(b"ready"))


@GROUP.check(code("kcm_unattach, strp_done"))
def partial_message_is_kept(lab: Lab) -> None:
    """The first bytes of a message that is not complete go back to the TCP socket."""
    lab.patience = min(lab.patience, SOON)
    kcm, near, far = lab.attached()
    whole = framed(bytes(range(100)))
    lab.calls.tcp_send(far, framed(b"one") + whole[:2])
    lab.received(kcm, [framed(b"one")])
    lab.unattach(kcm, near)
    lab.calls.tcp_send(far, whole[2:])
    lab.expect("a read of the TCP socket", lab.stream(near, len(whole)), whole)


@GROUP.check(code('kcm_unattach: "We are unattaching a socket that is reserved"'))
def reserved_connection_can_be_unattached(lab: Lab) -> None:
    """A connection on which a message is half written can be unattached, and is told EPIPE."""
    kcm, near, _ = lab.attached()
    lab.reserve(kcm, near)
    lab.unattach(kcm, near)
    lab.posted(near, errno.EPIPE)


@GROUP.check(code("kcm_write_msgs, tx_stopped"))
def half_written_message_goes_over_another_connection(lab: Lab) -> None:
    """The message that was half written when its connection was unattached is sent again, whole."""
    program = lab.documented()
    kcm, near, far = lab.attached(program)
    message = lab.reserve(kcm, near)
    lab.unattach(kcm, near)
    other, peer = lab.tcp()
    lab.attach(kcm, other, program)
    lab.calls.send(kcm.fileno(), [b"and the next one"])
    lab.streamed(peer, message + b"and the next one")
    near.close()
    begun = lab.stream(far, len(message))
    lab.expect("the other end has its beginning", 0 < len(begun) < len(message), True)
    lab.expect("that beginning", message.startswith(begun), True)


@GROUP.check(code("kcm_unattach_ioctl, sockfd_lookup"))
def bad_descriptor_is_enoent(lab: Lab) -> None:
    """A descriptor that is not open is ENOENT."""
    lab.refused("unattach", errno.ENOENT, lab.calls.unattach, lab.kcm().fileno(), 987_654)


@GROUP.check(code("kcm_unattach_ioctl"))
def not_attached_is_enoent(lab: Lab) -> None:
    """A connection that is not attached is ENOENT."""
    near, _ = lab.tcp()
    lab.refused("unattach", errno.ENOENT, lab.unattach, lab.kcm(), near)


@GROUP.check(code("kcm_unattach_ioctl"))
def second_time_is_enoent(lab: Lab) -> None:
    """Unattaching twice is ENOENT."""
    kcm, near, _ = lab.attached()
    lab.unattach(kcm, near)
    lab.refused("unattach", errno.ENOENT, lab.unattach, kcm, near)


@GROUP.check(code("kcm_ioctl, copy_from_user"))
def bad_pointer_is_efault(lab: Lab) -> None:
    """SIOCKCMUNATTACH with an address that can't be read is EFAULT."""
    arguments = lab.kcm().fileno(), lib.SIOCKCMUNATTACH, 0
    lab.refused("unattach", errno.EFAULT, lab.calls.ioctl, *arguments)


@GROUP.check(code("kcm_unattach_ioctl, EALREADY"))
def second_at_the_same_time_is_ealready(lab: Lab) -> None:
    """Of two that unattach a connection at the same time, the second one has EALREADY."""
    kcm, near, _ = lab.attached()
    seen: list[str] = []

    def unattach() -> None:
        try:
            lab.unattach(kcm, near)
            seen.append(name_of(0))
        except OSError as error:
            seen.append(name_of(error.errno))

    both = [threading.Thread(target=unattach, daemon=True) for _ in range(2)]
    with held(near.fileno(), 10, 0, lab.patience):
        for thread in both:
            thread.start()
        lab.eventually("errno of the second unattach", lambda: [*seen], [name_of(errno.EALREADY)])
    for thread in both:
        thread.join(lab.patience)
    lab.expect("errno of both", seen, [name_of(errno.EALREADY), name_of(0)])


@GROUP.check(code("kcm_write_msgs, tx_stopped; kcm_release, disable_work_sync"))
def reserved_connection_is_let_go_by_a_closed_socket(lab: Lab) -> None:
    """A connection unattached in the middle of a message whose socket is closed then is let go."""
    kcm, near, far = lab.attached()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    kcm.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    lab.calls.send(kcm.fileno(), [patterned(200_000)])
    lab.expect("some of the message is unsent", lab.unsent_bytes(kcm) > 0, True)
    # What goes on with the message waits for the socket's lock, and may come after the closing.
    with held(kcm.fileno(), 10, 0, lab.patience):
        lab.unattach(kcm, near)
        lab.calls.close(kcm)
    lab.calls.close(near)
    lab.stream(far, 1 << 20)
    ended = lab.calls.poll(far.fileno(), select.POLLRDHUP, 0) & select.POLLRDHUP
    lab.expect("the connection has ended", bool(ended), True)
