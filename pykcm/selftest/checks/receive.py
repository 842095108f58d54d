"""Receiving from a KCM socket."""

from __future__ import annotations

import contextlib
import errno
import select
import signal
import socket
import struct
import sys
import termios

from pykcm.selftest.check import Group, Skip, code, rst
from pykcm.selftest.lab import SEQPACKET, Lab, framed, timeval

GROUP = Group("receive", "recv, recvmsg, recvmmsg, poll of a KCM socket")

_CALLS = rst(
    "Connected mode semantics",
    "The normal send and recv calls (include sendmmsg and recvmmsg) can be used to send and "
    "receive messages from the KCM socket.",
)
_RECVMSG = code("kcm_recvmsg")
_TEN = b"0123456789"
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h


def _two_messages(lab: Lab, kind: int) -> socket.socket:
    """A socket on which ten bytes wait, and ten others."""
    kcm, _, far = lab.attached(lab.fixed(10), kind)
    lab.calls.tcp_send(far, _TEN + b"abcdefghij")
    return kcm


@GROUP.check(_CALLS)
def each_call_gives_one_message(lab: Lab) -> None:
    """With two messages there, a receive with room for both gives one."""
    kcm = _two_messages(lab, socket.SOCK_DGRAM)
    lab.received(kcm, [_TEN, b"abcdefghij"])


@GROUP.check(_CALLS)
def order_is_that_of_the_stream(lab: Lab) -> None:
    """Messages of one connection come in their order."""
    kcm, _, far = lab.attached(lab.fixed(4))
    messages = [struct.pack(">I", number) for number in range(500)]
    lab.calls.tcp_send(far, b"".join(messages))
    lab.received(kcm, messages)


@GROUP.check(_RECVMSG)
def whole_dgram_has_msg_eor(lab: Lab) -> None:
    """A message that fits has MSG_EOR in msg_flags, and no MSG_TRUNC."""
    kcm = _two_messages(lab, socket.SOCK_DGRAM)
    lab.expect("msg_flags", lab.receive_flags(kcm)[1], int(socket.MSG_EOR))


@GROUP.check(_RECVMSG)
def whole_seqpacket_has_msg_eor(lab: Lab) -> None:
    """A message that fits has MSG_EOR in msg_flags."""
    kcm = _two_messages(lab, SEQPACKET)
    lab.expect("msg_flags", lab.receive_flags(kcm)[1], int(socket.MSG_EOR))


@GROUP.check(code('kcm_recvmsg: "Truncated message"'))
def short_dgram_has_msg_trunc(lab: Lab) -> None:
    """A message that does not fit has MSG_TRUNC in msg_flags."""
    kcm = _two_messages(lab, socket.SOCK_DGRAM)
    data, flags = lab.receive_flags(kcm, 4)
    lab.expect("data", data, _TEN[:4])
    lab.expect("msg_flags", flags & socket.MSG_TRUNC, int(socket.MSG_TRUNC))


@GROUP.check(code('kcm_recvmsg: "Truncated message"'))
def short_dgram_drops_the_rest(lab: Lab) -> None:
    """After a short receive the next one gives the next message."""
    kcm = _two_messages(lab, socket.SOCK_DGRAM)
    lab.receive(kcm, 4)
    lab.received(kcm, [b"abcdefghij"])


@GROUP.check(_RECVMSG)
def short_seqpacket_has_no_msg_eor(lab: Lab) -> None:
    """A part of a message has neither MSG_EOR nor MSG_TRUNC."""
    kcm = _two_messages(lab, SEQPACKET)
    lab.expect("data and msg_flags", lab.receive_flags(kcm, 4), (_TEN[:4], 0))


@GROUP.check(code("kcm_recvmsg, stm->offset += copied"))
def short_seqpacket_keeps_the_rest(lab: Lab) -> None:
    """After a short receive the next one gives the rest of the message."""
    kcm = _two_messages(lab, SEQPACKET)
    lab.expect("the first part", lab.receive(kcm, 4), _TEN[:4])
    lab.expect("the rest", lab.receive(kcm), _TEN[4:])


@GROUP.check("recv(2), MSG_PEEK; " + _RECVMSG)
def peek_leaves_the_message(lab: Lab) -> None:
    """MSG_PEEK gives a message and leaves it."""
    kcm = _two_messages(lab, socket.SOCK_DGRAM)
    lab.expect("a peek", lab.peek(kcm), _TEN)
    lab.received(kcm, [_TEN, b"abcdefghij"])


@GROUP.check("recv(2), MSG_TRUNC")
def msg_trunc_tells_the_real_length(lab: Lab) -> None:
    """The flag MSG_TRUNC makes a receive return the message's length, even if it does not fit."""
    kcm = _two_messages(lab, socket.SOCK_DGRAM)
    lab.expect("a peek", lab.peek(kcm), _TEN)
    size, _ = lab.calls.receive(kcm.fileno(), [bytearray(4)], socket.MSG_TRUNC)
    lab.expect("what the receive returned", size, 10)


@GROUP.check("udp(7), FIONREAD (SIOCINQ)")
def fionread_tells_the_length(lab: Lab) -> None:
    """FIONREAD tells how long the next message is."""
    kcm = _two_messages(lab, socket.SOCK_DGRAM)
    lab.expect("a peek", lab.peek(kcm), _TEN)
    request = bytearray(4)
    lab.calls.ioctl(kcm.fileno(), termios.FIONREAD, request)
    lab.expect("FIONREAD", int.from_bytes(request, sys.byteorder), 10)


@GROUP.check(_CALLS)
def several_buffers_are_filled(lab: Lab) -> None:
    """recvmsg fills its buffers one after the other."""
    kcm = _two_messages(lab, socket.SOCK_DGRAM)
    lab.expect("a peek", lab.peek(kcm), _TEN)
    buffers = [bytearray(3), bytearray(1), bytearray(20)]
    lab.calls.receive(kcm.fileno(), buffers)
    seen = [bytes(buffer) for buffer in buffers]
    lab.expect("the buffers", seen, [b"012", b"3", b"456789" + bytes(14)])


@GROUP.check(_CALLS)
def recvmmsg_gives_several_messages(lab: Lab) -> None:
    """recvmmsg gives what is there, each message in its buffer."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(10))
    lab.calls.tcp_send(far, b"".join(bytes([number]) * 10 for number in range(5)))
    queue = "messages in the socket's queue"
    lab.eventually(queue, lambda: lab.queued(kcm), 5)
    wanted = [(bytes([number]) * 10, int(socket.MSG_EOR)) for number in range(5)]
    lab.expect("the messages", lab.calls.receive_many(kcm.fileno(), 100, 8), wanted)


@GROUP.check("recv(2), MSG_DONTWAIT; " + _RECVMSG)
def empty_is_eagain(lab: Lab) -> None:
    """Without a message, a receive that may not wait is EAGAIN."""
    kcm, _, _ = lab.attached()
    arguments = kcm.fileno(), [bytearray(10)], socket.MSG_DONTWAIT
    lab.refused("recvmsg", errno.EAGAIN, lab.calls.receive, *arguments)


@GROUP.check("socket(7), SO_RCVTIMEO; " + _RECVMSG)
def timeout_is_eagain(lab: Lab) -> None:
    """SO_RCVTIMEO ends a receive with EAGAIN, and not before its time."""
    kcm, _, _ = lab.attached()
    kcm.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.2))
    arguments = kcm.fileno(), [bytearray(10)]
    lab.refused_after("recvmsg", errno.EAGAIN, 0.2, lab.calls.receive, *arguments)


@GROUP.check("signal(7), recvmsg; " + _RECVMSG)
def interrupted_is_eintr(lab: Lab) -> None:
    """A signal ends a receive with EINTR."""
    kcm, _, _ = lab.attached()
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        arguments = kcm.fileno(), [bytearray(10)]
        lab.refused("recvmsg", errno.EINTR, lab.calls.receive, *arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@GROUP.check(code("kcm_recvmsg, skb_copy_datagram_msg"))
def bad_buffer_is_efault(lab: Lab) -> None:
    """A receive to an address that can't be written is EFAULT."""
    kcm = _two_messages(lab, socket.SOCK_DGRAM)
    lab.expect("a peek", lab.peek(kcm), _TEN)
    lab.refused("recv", errno.EFAULT, lab.calls.libc, "recv", kcm.fileno(), 8, 10, 0)


@GROUP.check(code("__strp_recv, frag_list", "net/strparser/strparser.c"))
def long_message_is_received(lab: Lab) -> None:
    """A message of a MiB, which is in many socket buffers, is received whole, and another after."""
    kcm = lab.kcm()
    near, far = lab.tcp()
    try:
        near.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
    except PermissionError:
        raise Skip("no large receive buffer can be set; it requires root") from None
    lab.attach(kcm, near, lab.documented())
    body = b"".join(struct.pack(">I", number) for number in range(1 << 18))
    for message in (framed(body), framed(b"short"), framed(body[::-1])):
        lab.calls.tcp_send(far, message)
        lab.expect("the message", lab.receive(kcm, 1 << 21), message)


_NUMBERS = [struct.pack(">I", number) * 250 for number in range(2000)]


@GROUP.check(code("reserve_rx_kcm, strp_pause; kcm_rfree"))
def full_socket_holds_the_stream_back(lab: Lab) -> None:
    """What a full socket has no room for waits in the connection, and comes later, in order."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(1000))
    far.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        far.sendall(b"".join(_NUMBERS))
    wanted: tuple[str, ...] = ("RxPause", "RdyRx")
    lab.eventually("the connection's status", lambda: lab.multiplexor().psocks[0].status, wanted)
    queued = lab.queued(kcm)
    lab.expect("messages queued", 1 < queued < len(_NUMBERS), True)
    lab.received(kcm, _NUMBERS[: queued + 100])


@GROUP.check(code("kcm_rcv_strparser, try_queue"))
def full_socket_passes_on_to_another(lab: Lab) -> None:
    """When one socket becomes full while a connection delivers, another one gets the rest."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(1000))
    clone = lab.clone(kcm)
    for sock in (kcm, clone):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    far.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        far.sendall(b"".join(_NUMBERS))
    wanted: tuple[str, ...] = ("RxPause", "RdyRx")
    lab.eventually("the connection's status", lambda: lab.multiplexor().psocks[0].status, wanted)
    counts = [lab.queued(kcm), lab.queued(clone)]
    lab.expect("messages on each socket", all(counts), True)
    both = [lab.receive(sock) for sock in (kcm, clone) for _ in range(lab.queued(sock))]
    lab.expect("messages of both sockets, sorted", sorted(both), _NUMBERS[: sum(counts)])


@GROUP.check(code("datagram_poll", "net/core/datagram.c"))
def poll_tells_of_a_message(lab: Lab) -> None:
    """poll reports POLLIN when a message is there, and not before nor after."""
    kcm, _, far = lab.attached()
    lab.expect("POLLIN before", lab.calls.poll(kcm.fileno(), select.POLLIN, 0), 0)
    lab.calls.tcp_send(far, framed(b"now"))
    events = lab.calls.poll(kcm.fileno(), select.POLLIN, lab.patience)
    lab.expect("POLLIN with a message", events, int(select.POLLIN))
    lab.calls.receive(kcm.fileno(), [bytearray(100)])
    lab.expect("POLLIN after", lab.calls.poll(kcm.fileno(), select.POLLIN, 0), 0)


def _bursts(lab: Lab) -> tuple[socket.socket, socket.socket, list[int], list[int]]:
    """Two sockets, and how many messages each had queued after each of two bursts of three."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(10))
    clone = lab.clone(kcm)
    counts = []
    for total in (3, 6):
        lab.calls.tcp_send(far, bytes(30))
        lab.eventually(
            "messages queued in both sockets",
            lambda: lab.queued(kcm) + lab.queued(clone),
            total,
        )
        counts.append([lab.queued(kcm), lab.queued(clone)])
    return kcm, clone, counts[0], counts[1]


@GROUP.check(
    rst(
        "Message batching",
        "On receive, the KCM module attempts to queue messages received on the same KCM socket "
        "during each TCP ready callback.",
    )
)
def burst_goes_to_one_socket(lab: Lab) -> None:
    """Messages that arrive together are queued on one of the sockets."""
    _, _, first, _ = _bursts(lab)
    lab.expect("messages on the sockets after a burst", sorted(first), [0, 3])


@GROUP.check(
    rst(
        "Message batching",
        "The targeted KCM socket changes at each receive ready callback on the KCM socket.",
    )
)
def next_burst_goes_to_the_next_socket(lab: Lab) -> None:
    """Messages that arrive together later are queued on the other socket."""
    _, _, _, second = _bursts(lab)
    lab.expect("messages on the sockets after two bursts", second, [3, 3])


@GROUP.check(
    rst(
        "Multiplexor",
        "messages are constructed on each TCP socket (Psock) and complete messages are steered to "
        "a KCM socket",
    )
)
def several_connections_to_several_sockets(lab: Lab) -> None:
    """With three connections and three sockets, each message is received once, by one of them."""
    lab.isolate()
    program = lab.fixed(8)
    kcm = lab.kcm()
    sockets = [kcm, lab.clone(kcm), lab.clone(kcm)]
    sent = []
    for connection in range(3):
        near, far = lab.tcp()
        lab.attach(kcm, near, program)
        messages = [struct.pack(">II", connection, number) for number in range(40)]
        lab.calls.tcp_send(far, b"".join(messages))
        sent += messages
    lab.eventually("messages queued", lambda: sum(map(lab.queued, sockets)), len(sent))
    received = [lab.receive(sock) for sock in sockets for _ in range(lab.queued(sock))]
    lab.expect("the messages, sorted", sorted(received), sorted(sent))
