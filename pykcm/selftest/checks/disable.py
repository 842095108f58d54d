"""KCM_RECV_DISABLE."""

from __future__ import annotations

import socket

from pykcm.selftest.check import Group, code, rst
from pykcm.selftest.lab import NUMBERED, Lab, framed

GROUP = Group("disable", "KCM_RECV_DISABLE turns receiving on one socket off")

_DISABLE = rst(
    "Disabling receive on KCM socket",
    "A setsockopt is used to disable or enable receiving on a KCM socket.",
)
_REQUEUE = rst(
    "Disabling receive on KCM socket",
    "When receive is disabled, any pending messages in the socket's receive buffer are moved to "
    "other sockets.",
)


@GROUP.check(_DISABLE)
def is_off_at_first(lab: Lab) -> None:
    """A new socket receives."""
    lab.expect("KCM_RECV_DISABLE", lab.receive_disabled(lab.kcm()), 0)


@GROUP.check(_DISABLE)
def can_be_set_and_read(lab: Lab) -> None:
    """What is set is what is read, also when it is set twice."""
    kcm = lab.kcm()
    for value in (0, 1, 1, 0, 0, 1):
        lab.set_receive_disabled(kcm, value)
        lab.expect("KCM_RECV_DISABLE", lab.receive_disabled(kcm), value)


@GROUP.check(code("kcm_setsockopt, valbool"))
def any_other_value_is_1(lab: Lab) -> None:
    """Every value but 0 disables receiving, and reads as 1."""
    kcm = lab.kcm()
    for value in (2, -1, 256):
        lab.set_receive_disabled(kcm, value)
        lab.expect(f"KCM_RECV_DISABLE set to {value}", lab.receive_disabled(kcm), 1)
        lab.set_receive_disabled(kcm, 0)


@GROUP.check(_DISABLE)
def is_of_one_socket(lab: Lab) -> None:
    """A clone made before or after is not disabled."""
    kcm = lab.kcm()
    before = lab.clone(kcm)
    lab.set_receive_disabled(kcm, 1)
    after = lab.clone(kcm)
    lab.expect("of the older clone", lab.receive_disabled(before), 0)
    lab.expect("of the newer clone", lab.receive_disabled(after), 0)


@GROUP.check(_DISABLE)
def disabled_socket_gets_nothing(lab: Lab) -> None:
    """Messages go to the other socket only."""
    kcm, _, far = lab.attached()
    clone = lab.clone(kcm)
    lab.set_receive_disabled(kcm, 1)
    for number in range(4):
        lab.calls.tcp_send(far, framed(b"%d" % number))
        lab.received(clone, [framed(b"%d" % number)])
    lab.silent(kcm)


@GROUP.check(_REQUEUE)
def pending_messages_are_moved(lab: Lab) -> None:
    """What the socket had queued goes to another one, in order."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(5))
    clone = lab.clone(kcm)
    lab.set_receive_disabled(clone, 1)
    lab.calls.tcp_send(far, b"first12345third")
    lab.eventually("messages queued", lambda: lab.queued(kcm), 3)
    lab.set_receive_disabled(clone, 0)
    lab.set_receive_disabled(kcm, 1)
    lab.received(clone, [b"first", b"12345", b"third"])


@GROUP.check(_REQUEUE)
def pending_messages_wait_for_a_socket(lab: Lab) -> None:
    """With no other socket, what was queued is there again when receiving is enabled."""
    kcm, _, far = lab.attached()
    lab.calls.tcp_send(far, framed(b"waits"))
    lab.expect("a peek", lab.peek(kcm), framed(b"waits"))
    lab.set_receive_disabled(kcm, 1)
    lab.silent(kcm)
    lab.set_receive_disabled(kcm, 0)
    lab.received(kcm, [framed(b"waits")])


@GROUP.check(code('kcm_recv_disable: "If a psock is reserved we\'ll do cleanup in unreserve"'))
def disabling_while_a_connection_delivers(lab: Lab) -> None:
    """Messages that arrive while receiving is turned off and on are received once each."""
    kcm, _, far = lab.attached(lab.fixed(100))
    sockets = [kcm, lab.clone(kcm)]
    with lab.arriving(far, NUMBERED):
        received = []
        for turn in range(200):
            lab.set_receive_disabled(sockets[turn % 2], 1)
            received += lab.receive_all(sockets[turn % 2 - 1])
            lab.set_receive_disabled(sockets[turn % 2], 0)
    received += lab.receive_rest(sockets, len(NUMBERED) - len(received))
    lab.expect("the messages, sorted", sorted(received), NUMBERED)


@GROUP.check(code("kcm_recv_enable, kcm_rcv_ready"))
def enabling_delivers_what_came_meanwhile(lab: Lab) -> None:
    """Messages that arrive while all sockets are disabled are delivered afterwards."""
    kcm, _, far = lab.attached(lab.fixed(5))
    lab.set_receive_disabled(kcm, 1)
    lab.calls.tcp_send(far, b"first12345third")
    lab.silent(kcm)
    lab.set_receive_disabled(kcm, 0)
    lab.received(kcm, [b"first", b"12345", b"third"])


def _filled(lab: Lab, room: int) -> tuple[list[socket.socket], list[bytes]]:
    """Two sockets with room for a few messages, the second disabled; and what the first one has."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(100))
    sockets = [kcm, lab.clone(kcm)]
    lab.set_receive_disabled(sockets[1], 1)
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    messages = NUMBERED[:100]
    lab.calls.tcp_send(far, b"".join(messages))
    wanted: tuple[str, ...] = ("RxPause", "RdyRx")
    lab.eventually("the connection's status", lambda: lab.multiplexor().psocks[0].status, wanted)
    return sockets, messages


@GROUP.check(code('requeue_rx_msgs: "Should mean socket buffer full"'))
def pending_messages_fill_another_socket(lab: Lab) -> None:
    """What another socket has no room for waits, and is received once, when there is."""
    (kcm, clone), messages = _filled(lab, 16_384)
    clone.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    lab.set_receive_disabled(clone, 0)
    lab.set_receive_disabled(kcm, 1)
    lab.expect("messages of the first socket", lab.queued(kcm), 0)
    queued = lab.queued(clone)
    lab.expect("messages of the second socket", 0 < queued < 20, True)
    lab.expect("all", sorted(lab.receive_rest([clone], len(messages))), messages)


@GROUP.check(code("kcm_recv_enable, kcm_rcv_ready, rx_hold_queue"))
def held_messages_fill_a_socket(lab: Lab) -> None:
    """What an enabled socket has no room for goes on waiting, and comes in its order."""
    (kcm, _), messages = _filled(lab, 16_384)
    lab.set_receive_disabled(kcm, 1)
    kcm.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    lab.set_receive_disabled(kcm, 0)
    lab.expect("messages that it has at once", 0 < lab.queued(kcm) < 20, True)
    lab.expect("all", lab.receive_rest([kcm], len(messages)), messages)


@GROUP.check(code('kcm_rcv_ready: "Assuming buffer limit has been reached"'))
def ready_connections_fill_a_socket(lab: Lab) -> None:
    """Of many connections with a message ready, the rest are asked when there is room."""
    lab.isolate()
    program = lab.fixed(100)
    kcm = lab.kcm()
    kcm.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    lab.set_receive_disabled(kcm, 1)
    messages = NUMBERED[:20]
    for message in messages:
        near, far = lab.tcp()
        lab.attach(kcm, near, program)
        lab.calls.tcp_send(far, message)
    lab.eventually(
        "connections with a message ready",
        lambda: sum("RdyRx" in psock.status for psock in lab.multiplexor().psocks),
        len(messages),
    )
    lab.set_receive_disabled(kcm, 0)
    lab.expect("messages that it has at once", 0 < lab.queued(kcm) < len(messages), True)
    lab.expect("all, sorted", sorted(lab.receive_rest([kcm], len(messages))), messages)
