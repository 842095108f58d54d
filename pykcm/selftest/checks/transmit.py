"""Sending on a KCM socket."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import time

from pykcm._binding import lib
from pykcm.selftest.check import Failure, Group, code, rst
from pykcm.selftest.lab import DGRAM, FRAGMENTS, SEQPACKET, SOON, Lab, framed, patterned, timeval

GROUP = Group("transmit", "send, sendmsg, sendmmsg, write, poll of a KCM socket")

_CALLS = rst(
    "Connected mode semantics",
    "The normal send and recv calls (include sendmmsg and recvmmsg) can be used to send and "
    "receive messages from the KCM socket.",
)
_SENDMSG = code("kcm_sendmsg")


def _two_connections(lab: Lab) -> tuple[socket.socket, list[socket.socket], list[socket.socket]]:
    """A KCM socket, its two transports, and their other ends."""
    program = lab.documented()
    kcm = lab.kcm()
    pairs = [lab.tcp(), lab.tcp()]
    for near, _ in pairs:
        lab.attach(kcm, near, program)
    return kcm, [near for near, _ in pairs], [far for _, far in pairs]


def _fill(lab: Lab, kcm: socket.socket, piece: bytes = bytes(1000)) -> int:
    """Send without waiting until the kernel takes no more; returns how many messages it took."""
    for count in range(100_000):
        try:
            lab.calls.send(kcm.fileno(), [piece], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return count
    raise Failure("send that may not wait\nexpected: EAGAIN at last\nseen: 100000 messages taken")


@GROUP.check(_CALLS)
def message_is_written(lab: Lab) -> None:
    """What is sent is what the other end reads."""
    kcm, _, far = lab.attached()
    size = lab.calls.send(kcm.fileno(), [b"one message"])
    lab.expect("what send returned", size, 11)
    lab.streamed(far, b"one message")
    lab.unsent(far)


@GROUP.check(_CALLS)
def several_buffers_are_gathered(lab: Lab) -> None:
    """sendmsg makes one message of its buffers."""
    kcm, _, far = lab.attached()
    lab.calls.send(kcm.fileno(), [b"one", b"", b" mess", b"age"])
    lab.streamed(far, b"one message")


@GROUP.check(rst("Message batching", "Send multiple messages in a single sendmmsg."))
def sendmmsg_sends_several(lab: Lab) -> None:
    """sendmmsg sends each of its messages, in their order."""
    kcm, _, far = lab.attached()
    messages = [b"number %d;" % number for number in range(20)]
    lab.expect("what sendmmsg returned", lab.calls.send_many(kcm.fileno(), messages), 20)
    lab.streamed(far, b"".join(messages))


_BATCH = rst(
    "Message batching",
    "Send a group of messages each with a sendmsg call, where all messages except the last have "
    "MSG_BATCH in the flags of sendmsg call.",
)


@GROUP.check(_BATCH)
def msg_batch_holds_messages_back(lab: Lab) -> None:
    """Messages with MSG_BATCH are not sent by themselves."""
    kcm, _, far = lab.attached()
    for number in range(3):
        lab.calls.send(kcm.fileno(), [b"%d" % number], lib.MSG_BATCH)
    lab.unsent(far)


@GROUP.check(_BATCH)
def last_of_a_batch_sends_all(lab: Lab) -> None:
    """A message without MSG_BATCH sends those held back before it."""
    kcm, _, far = lab.attached()
    for number in range(3):
        lab.calls.send(kcm.fileno(), [b"%d" % number], lib.MSG_BATCH)
    lab.calls.send(kcm.fileno(), [b"3"])
    lab.streamed(far, b"0123")


@GROUP.check(
    rst(
        "Message batching",
        'Create "super message" composed of multiple messages and send this with a single sendmsg.',
    )
)
def super_message_arrives_as_its_messages(lab: Lab) -> None:
    """Several protocol messages in one send are several messages for a KCM socket of the peer."""
    program = lab.fixed(6)
    kcm, _, far = lab.attached(program)
    peer = lab.kcm()
    lab.attach(peer, far, program)
    lab.calls.send(kcm.fileno(), [b"first.second|third!"[:18]])
    lab.received(peer, [b"first.", b"second", b"|third"])


@GROUP.check(code("kcm_sendmsg, MSG_MORE"))
def msg_more_continues_a_dgram(lab: Lab) -> None:
    """A SOCK_DGRAM message is sent when a part comes without MSG_MORE."""
    kcm, _, far = lab.attached()
    lab.calls.send(kcm.fileno(), [b"one "], socket.MSG_MORE)
    lab.unsent(far)
    lab.calls.send(kcm.fileno(), [b"message"])
    lab.streamed(far, b"one message")


@GROUP.check(code("kcm_sendmsg, MSG_EOR"))
def msg_eor_ends_a_seqpacket(lab: Lab) -> None:
    """A SOCK_SEQPACKET message is sent when a part comes with MSG_EOR."""
    kcm, _, far = lab.attached(kind=SEQPACKET)
    lab.calls.send(kcm.fileno(), [b"one "])
    lab.unsent(far)
    lab.calls.send(kcm.fileno(), [b"message"], socket.MSG_EOR)
    lab.streamed(far, b"one message")


@GROUP.check(code("sock_write_iter", "net/socket.c"))
def write_ends_a_seqpacket(lab: Lab) -> None:
    """write(2) on a SOCK_SEQPACKET socket sends a whole message."""
    kcm, _, far = lab.attached(kind=SEQPACKET)
    lab.calls.write(kcm.fileno(), b"written")
    lab.streamed(far, b"written")


@GROUP.check(_SENDMSG)
def empty_message_is_nothing(lab: Lab) -> None:
    """A message or a part of no bytes is taken, and nothing is sent."""
    for kind, end in ((DGRAM, 0), (SEQPACKET, socket.MSG_EOR)):
        kcm, _, far = lab.attached(kind=kind)
        lab.expect("what send returned", lab.calls.send(kcm.fileno(), [b""]), 0)
        lab.calls.send(kcm.fileno(), [b"next"], end)
        lab.streamed(far, b"next")


@GROUP.check(code("reserve_psock, tx_wait"))
def batch_waits_for_a_connection(lab: Lab) -> None:
    """A batch that is ended while a message before it waits for a connection is sent after it."""
    kcm = lab.kcm()
    lab.calls.send(kcm.fileno(), [b"0"])
    lab.calls.send(kcm.fileno(), [b"1"], lib.MSG_BATCH)
    lab.calls.send(kcm.fileno(), [b"2"])
    near, far = lab.tcp()
    lab.attach(kcm, near, lab.documented())
    lab.streamed(far, b"012")


@GROUP.check(
    rst(
        "Multiplexor",
        "messages written on a KCM socket are sent atomically on an appropriate TCP socket",
    )
)
def messages_are_atomic(lab: Lab) -> None:
    """Long messages of two sockets on one connection are not mixed."""
    size = 30_000
    kcm, near, far = lab.attached()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    senders = [kcm, lab.clone(kcm)]
    children = []
    for index, sender in enumerate(senders):
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(4):
                    lab.calls.send(sender.fileno(), [bytes([65 + index]) * size])
                end = time.monotonic() + lab.patience
                while lab.unsent_bytes(sender) and time.monotonic() < end:
                    time.sleep(0.002)
            finally:
                os._exit(0)
        children.append(pid)
    data = lab.stream(far, 8 * size)
    for pid in children:
        os.waitpid(pid, 0)
    lab.expect("bytes read", len(data), 8 * size)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    lab.expect("different bytes in each message", [len(set(piece)) for piece in pieces], [1] * 8)
    lab.expect(
        "messages of each sender", sorted(piece[:1] for piece in pieces), [b"A"] * 4 + [b"B"] * 4
    )


@GROUP.check(code("kcm_sendmsg, frag_list; kcm_write_msgs, frag_list"))
def long_messages_are_written(lab: Lab) -> None:
    """Messages of more than a socket buffer's fragments hold are sent whole, others between."""
    kcm, _, far = lab.attached()
    messages = [patterned(FRAGMENTS + 4), b"a short one", patterned(1 << 20), b"another"]
    for message in messages:
        lab.expect("what send returned", lab.calls.send(kcm.fileno(), [message]), len(message))
    lab.streamed(far, b"".join(messages))
    lab.unsent(far)


@GROUP.check(code("kcm_write_msgs, EAGAIN; psock_write_space"))
def message_goes_on_when_there_is_room(lab: Lab) -> None:
    """What a full connection did not take at once is written when its peer reads."""
    kcm, near, far = lab.attached()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    message = patterned(1 << 18)
    lab.calls.send(kcm.fileno(), [message])
    for end in range(0, len(message), 1 << 16):
        # The connection becomes full again and again.
        lab.expect("bytes unsent", bool(lab.unsent_bytes(kcm)) or end > 0, True)
        lab.streamed(far, message[end : end + (1 << 16)])
        time.sleep(0.02)
    lab.eventually("bytes unsent", lambda: lab.unsent_bytes(kcm), 0)


@GROUP.check(code("reserve_psock, tx_wait; psock_now_avail"))
def second_socket_waits_for_the_connection(lab: Lab) -> None:
    """While one socket's message fills the only connection, another one's waits, and follows."""
    lab.isolate()
    kcm, near, far = lab.attached()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    clone = lab.clone(kcm)
    message = patterned(1 << 19)
    lab.calls.send(kcm.fileno(), [message])
    lab.calls.send(clone.fileno(), [b"the other one's"])
    first, second = (line.status for line in lab.multiplexor().sockets)
    seen = "Psck-0" in first, "TxWait" in second
    lab.expect("Psck-0 and TxWait in their statuses", seen, (True, True))
    lab.streamed(far, message + b"the other one's")


@GROUP.check(
    rst(
        "Configurations",
        "In a MxN configuration, multiple connections are established to the same destination. "
        "These are used for simple load balancing.",
    )
)
def connections_take_turns(lab: Lab) -> None:
    """Messages sent one after the other go over one connection, then the other."""
    kcm, _, far = _two_connections(lab)
    for number in range(4):
        lab.calls.send(kcm.fileno(), [b"%d" % number])
    lab.expect("both ends", [lab.stream(end, 2) for end in far], [b"02", b"13"])


@GROUP.check(
    rst(
        "Connected mode semantics",
        "can use the different connections for load balancing when transmitting",
    )
)
def blocked_connection_is_passed_by(lab: Lab) -> None:
    """While one connection is full, another socket's messages go over the other one."""
    program = lab.documented()
    kcm, near, _ = lab.attached(program)
    clone = lab.clone(kcm)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    _fill(lab, kcm, bytes(20_000))
    other, far = lab.tcp()
    lab.attach(kcm, other, program)
    lab.calls.send(clone.fileno(), [b"passed by"])
    lab.streamed(far, b"passed by")


@GROUP.check(
    rst(
        "Configurations",
        "In an Nx1 configuration, KCM logically provides multiple socket handles to the same TCP "
        "connection.",
    )
)
def several_sockets_share_a_connection(lab: Lab) -> None:
    """Messages of three sockets arrive over one connection."""
    kcm, _, far = lab.attached()
    for number, sender in enumerate([kcm, lab.clone(kcm), lab.clone(kcm)]):
        lab.calls.send(sender.fileno(), [b"%d" % number])
    lab.streamed(far, b"012")


@GROUP.check(code("reserve_psock"))
def message_waits_for_a_connection(lab: Lab) -> None:
    """A message sent with no connection attached is sent when one is."""
    kcm = lab.kcm()
    lab.calls.send(kcm.fileno(), [b"early"])
    near, far = lab.tcp()
    lab.attach(kcm, near, lab.documented())
    lab.streamed(far, b"early")


@GROUP.check(code("kcm_write_msgs, kcm_report_tx_retry"))
def message_is_sent_again_over_another_connection(lab: Lab) -> None:
    """A message that a broken connection refuses goes over another one."""
    kcm, near, far = _two_connections(lab)
    far[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far[0].close()
    lab.posted(near[0], errno.EPIPE)
    lab.calls.send(kcm.fileno(), [b"once "])
    lab.calls.send(kcm.fileno(), [b"each"])
    lab.streamed(far[1], b"once each")


@GROUP.check("send(2), MSG_DONTWAIT; " + _SENDMSG)
def full_is_eagain(lab: Lab) -> None:
    """A send that may not wait is EAGAIN when the socket's buffer is full."""
    kcm = lab.kcm()
    lab.expect("messages taken before EAGAIN", 0 < _fill(lab, kcm) < 10_000, True)


@GROUP.check("socket(7), SO_SNDTIMEO; " + _SENDMSG)
def timeout_is_eagain(lab: Lab) -> None:
    """SO_SNDTIMEO ends a send with EAGAIN, and not before its time."""
    kcm = lab.kcm()
    _fill(lab, kcm)
    kcm.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(0.2))
    arguments = kcm.fileno(), [bytes(1000)]
    lab.refused_after("sendmsg", errno.EAGAIN, 0.2, lab.calls.send, *arguments)


@GROUP.check("signal(7), sendmsg; " + _SENDMSG)
def interrupted_is_eintr(lab: Lab) -> None:
    """A signal ends a send that waits with EINTR."""
    kcm = lab.kcm()
    _fill(lab, kcm)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        lab.refused("sendmsg", errno.EINTR, lab.calls.send, kcm.fileno(), [bytes(1000)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@GROUP.check(code("kcm_sendmsg, skb_copy_to_page_nocache"))
def bad_buffer_is_efault(lab: Lab) -> None:
    """A send from an address that can't be read is EFAULT."""
    arguments = "send", lab.kcm().fileno(), 8, 10, 0
    lab.refused("send", errno.EFAULT, lab.calls.libc, *arguments)


@GROUP.check("poll(2), POLLOUT; " + code("datagram_poll", "net/core/datagram.c"))
def poll_tells_of_a_full_buffer(lab: Lab) -> None:
    """poll does not report POLLOUT while a send would be EAGAIN."""
    kcm = lab.kcm()
    _fill(lab, kcm)
    lab.expect("POLLOUT", lab.calls.poll(kcm.fileno(), select.POLLOUT, 0), 0)


@GROUP.check("epoll(7), EPOLLET; " + code("kcm_write_msgs, sk_write_space"))
def epoll_tells_of_new_room(lab: Lab) -> None:
    """Edge-triggered epoll has no event while the buffer is full, and one when there is room."""
    kcm = lab.kcm()
    _fill(lab, kcm)
    with lab.calls.epoll() as epoll:
        epoll.register(kcm.fileno(), select.EPOLLOUT | select.EPOLLET)
        epoll.poll(0)  # the registering itself is an edge
        lab.expect("events while full", epoll.poll(lab.quiet), [])
        near, far = lab.tcp()
        lab.attach(kcm, near, lab.documented())
        lab.stream(far, 10_000)
        events = [mask for _, mask in epoll.poll(lab.patience)]
        lab.expect("events with room", events, [int(select.EPOLLOUT)])


@GROUP.check("net/core/sock.c, sk_get_meminfo()")
def unsent_bytes_can_be_asked_for(lab: Lab) -> None:
    """SO_MEMINFO tells what waits in a KCM socket, and falls to 0 when TCP has all of it."""
    kcm = lab.kcm()
    lab.calls.send(kcm.fileno(), [bytes(5000)])
    lab.expect("SK_MEMINFO_WMEM_QUEUED", lab.unsent_bytes(kcm), 5000)
    near, _ = lab.tcp()
    lab.attach(kcm, near, lab.documented())
    lab.eventually("SK_MEMINFO_WMEM_QUEUED", lambda: lab.unsent_bytes(kcm), 0)


@GROUP.check("close(2); " + code("kcm_release, __skb_queue_purge"))
def closing_sends_the_rest(lab: Lab) -> None:
    """What was accepted before the last KCM socket was closed reaches the peer, as with TCP."""
    kcm, near, far = lab.attached()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    count = _fill(lab, kcm, framed(bytes(996)))
    lab.calls.close(kcm)
    lab.patience = min(lab.patience, SOON)
    lab.expect("bytes that reached the peer", len(lab.stream(far, 1000 * count)), 1000 * count)
