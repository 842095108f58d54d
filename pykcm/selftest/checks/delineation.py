"""How messages are found in the TCP stream."""

from __future__ import annotations

import errno
import socket
import struct

from pykcm.selftest.check import Group, Skip, code, rst
from pykcm.selftest.lab import SOON, Lab, framed, patterned, timeval

GROUP = Group("delineation", "The BPF program finds the messages in the TCP stream")

_RETURNS = rst(
    "Message delineation", "It parses the message header and returns the length of the message."
)
_CONSTRUCTS = rst(
    "Message delineation",
    "KCM will construct the message of the stated length and deliver it to a KCM socket",
)
_STRPARSER = "net/strparser/strparser.c"


@GROUP.check(_RETURNS)
def program_gives_the_length(lab: Lab) -> None:
    """A message is as long as the program says."""
    kcm, _, far = lab.attached()
    for size in (0, 1, 2, 100, 1000):
        lab.calls.tcp_send(far, framed(bytes(size)))
        lab.received(kcm, [framed(bytes(size))])


@GROUP.check(_CONSTRUCTS)
def body_in_pieces_is_assembled(lab: Lab) -> None:
    """A message that arrives in many segments is delivered once, whole."""
    kcm, _, far = lab.attached()
    message = framed(bytes(range(50)))
    for start in range(0, len(message), 9):
        lab.calls.tcp_send(far, message[start : start + 9])
        if start == 36:
            lab.silent(kcm, "the KCM socket after 45 of 54 bytes")
    lab.received(kcm, [message])


@GROUP.check(
    rst(
        "Message delineation",
        "The program is called at the start of receiving a new message and is given an skbuff that "
        "contains the bytes received so far.",
    )
)
def header_in_pieces_is_waited_for(lab: Lab) -> None:
    """A program that returns 0 is asked again when more bytes are there."""
    kcm, _, far = lab.attached()
    message = framed(b"abc")
    for position in range(4):
        lab.calls.tcp_send(far, message[position : position + 1])
    lab.silent(kcm, "the KCM socket with a header but no body")
    lab.calls.tcp_send(far, message[4:])
    lab.received(kcm, [message])


@GROUP.check(code("__strp_recv: need_bytes", _STRPARSER))
def beginning_of_a_message_makes_room(lab: Lab) -> None:
    """What is there of a message is taken off the TCP socket, so that the rest has room."""
    kcm, near, far = lab.attached()
    message = framed(bytes(range(250)) * 4)
    for part in (message[:500], message[500:]):
        lab.calls.tcp_send(far, part)
        lab.consumed(near, far)
    lab.received(kcm, [message])


@GROUP.check(code("__strp_recv: need_bytes", _STRPARSER))
def rest_of_a_message_behind_another_is_waited_for(lab: Lab) -> None:
    """A message that begins at the end of a segment is delivered when the next has its rest."""
    kcm = lab.kcm()
    near, far = lab.tcp()
    first, second = bytes(1000), patterned(1000)
    lab.calls.tcp_send(far, first + second[:100])
    lab.eventually("bytes in the TCP socket", lambda: lab.unread_bytes(near), 1100)
    lab.attach(kcm, near, lab.fixed(1000))
    lab.consumed(near, far)
    lab.calls.tcp_send(far, second[100:])
    lab.received(kcm, [first, second])


# Freeing a list of so many socket buffers by recursion overflows the kernel's stack.
_CHAIN = 250


@GROUP.check(code("__strp_recv, skb_unclone", _STRPARSER))
def segments_of_messages_are_not_chained(lab: Lab) -> None:
    """Of many messages, each in two segments, the first is read last: it holds no other."""
    first = lab.kcm()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # one message fills it
    near, far = lab.tcp()
    message = patterned(4000)
    lab.calls.tcp_send(far, message + message[:2000])
    lab.attach(first, near, lab.fixed(4000))
    lab.consumed(near, far)
    others = lab.clone(first)
    for _ in range(_CHAIN):
        lab.calls.tcp_send(far, message[2000:] + message[:2000])
        lab.consumed(near, far)
        lab.received(others, [message])
    lab.received(first, [message])


@GROUP.check(_CONSTRUCTS)
def coalesced_messages_are_separated(lab: Lab) -> None:
    """Messages of one size that arrive in one segment are delivered one by one."""
    kcm = lab.kcm()
    near, far = lab.tcp()
    messages = [bytes([number]) * 10 for number in range(20)]
    lab.calls.tcp_send(far, b"".join(messages))
    lab.attach(kcm, near, lab.fixed(10))
    lab.received(kcm, messages)


@GROUP.check(_CONSTRUCTS)
def many_segments_make_one_message(lab: Lab) -> None:
    """A message much longer than a segment is delivered whole."""
    kcm, _, far = lab.attached()
    message = framed(bytes(range(256)) * 150)
    lab.calls.tcp_send(far, message)
    lab.received(kcm, [message])


_SIZES = (10, 20, 5, 300, 7, 1000, 4)


def _coalesced() -> list[bytes]:
    return [framed(bytes([number]) * (size - 4)) for number, size in enumerate(_SIZES)]


@GROUP.check(
    rst(
        "BFP programs for message delineation",
        "return load_word(skb, 0) + 4;",
    )
)
def documented_program_separates_messages(lab: Lab) -> None:
    """The documented program is right for messages that arrive in one segment."""
    kcm = lab.kcm()
    near, far = lab.tcp()
    lab.calls.tcp_send(far, b"".join(_coalesced()))
    lab.attach(kcm, near, lab.documented())
    lab.received(kcm, _coalesced())


@GROUP.check("include/net/strparser.h, struct strp_msg: offset")
def message_offset_can_be_read(lab: Lab) -> None:
    """A program can find out where in the segment its message begins."""
    program = lab.separating()
    kcm = lab.kcm()
    near, far = lab.tcp()
    lab.calls.tcp_send(far, b"".join(_coalesced()))
    lab.attach(kcm, near, program)
    lab.received(kcm, _coalesced())


@GROUP.check(code("__strp_recv", _STRPARSER))
def negative_result_is_posted(lab: Lab) -> None:
    """A program's negative result becomes the TCP socket's error."""
    _, near, far = lab.attached(lab.program(f"r0 = {-errno.EBADMSG}\nexit"))
    lab.calls.tcp_send(far, b"anything")
    lab.posted(near, errno.EBADMSG)


_LIMITED = f"""
    r6 = r1
    r0 = *(u32 *)skb[0]
    r0 += 4
    if r0 > 100 goto +1
    exit
    r0 = {-errno.EMSGSIZE}
    exit
"""


@GROUP.check(
    rst(
        "TCP socket management",
        "The BPF program may also enforce a maximum messages size and report an error when it is "
        "exceeded.",
    )
)
def program_may_limit_the_size(lab: Lab) -> None:
    """A program lets a short message through and refuses a long one."""
    kcm, near, far = lab.attached(lab.program(_LIMITED))
    lab.calls.tcp_send(far, framed(bytes(96)))
    lab.received(kcm, [framed(bytes(96))])
    lab.calls.tcp_send(far, framed(bytes(97)))
    lab.posted(near, errno.EMSGSIZE)


_TOO_BIG = rst(
    "TCP socket management",
    "If the length of a new message reported by the BPF program is greater than this limit a "
    "corresponding error (EMSGSIZE) is posted on the TCP socket.",
)


@GROUP.check(_TOO_BIG)
def length_over_the_receive_buffer_is_emsgsize(lab: Lab) -> None:
    """A length of one byte more than SO_RCVBUF is refused."""
    _, near, far = lab.attached()
    size = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    lab.calls.tcp_send(far, struct.pack(">I", size + 1 - 4) + b"the beginning")
    lab.posted(near, errno.EMSGSIZE)


@GROUP.check(rst("TCP socket management", "the socket buffer size can be set by SO_RCVBUF"))
def limit_is_set_by_so_rcvbuf(lab: Lab) -> None:
    """A smaller SO_RCVBUF refuses a smaller message."""
    kcm = lab.kcm()
    near, far = lab.tcp()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 5000)
    lab.attach(kcm, near, lab.documented())
    lab.calls.tcp_send(far, struct.pack(">I", 10_001 - 4) + b"the beginning")
    lab.posted(near, errno.EMSGSIZE)


@GROUP.check(
    rst(
        "TCP socket management",
        "KCM limits the maximum receive message size to be the size of the receive socket buffer "
        "on the attached TCP socket",
    )
)
def message_of_the_limit_is_delivered(lab: Lab) -> None:
    """A message as long as SO_RCVBUF arrives."""
    kcm = lab.kcm()
    near, far = lab.tcp()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    limit = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    message = framed(bytes(limit - 4))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limit)
    far.setblocking(False)
    # Attaching has a worker of the kernel look at the TCP socket once. Unlike what is done for each
    # segment that arrives, it takes what is there even if that is less than what is missing, which
    # makes room. So the header alone is there before: as only the worker takes it, its look is over
    # once it is gone, and never comes between the segments of the rest.
    lab.calls.tcp_send(far, message[:4])
    lab.eventually("bytes in the TCP socket", lambda: lab.unread_bytes(near), 4)
    lab.attach(kcm, near, lab.documented())
    lab.eventually("bytes in the TCP socket", lambda: lab.unread_bytes(near), 0)
    sent = far.send(message[4:])
    lab.expect("bytes that the sender's TCP took", sent, len(message) - 4)
    lab.patience = min(lab.patience, SOON)
    lab.received(kcm, [message])


# The first bytes come without the rest; the second part makes the program say 2, which is less
# than what it had been shown before.
_SHRINKING = """
    r6 = r1
    r0 = *(u32 *)(r6 + 0)
    if r0 > 3 goto +2
    r0 = 0
    exit
    r0 = 2
    exit
"""


@GROUP.check(code('__strp_recv: "Length must be into new skb"', _STRPARSER))
def length_below_the_header_is_eproto(lab: Lab) -> None:
    """A length that ends before the bytes that were already looked at is refused."""
    _, near, far = lab.attached(lab.program(_SHRINKING))
    lab.calls.tcp_send(far, b"abc")
    lab.consumed(near, far)
    lab.calls.tcp_send(far, b"defg")
    lab.posted(near, errno.EPROTO)


_TIMEOUT = rst(
    "TCP socket management",
    "If the timer expires before assembly is complete an error (ETIMEDOUT) is posted on the "
    "socket.",
)


def _with_timeout(lab: Lab, seconds: float) -> tuple[socket.socket, socket.socket, socket.socket]:
    kcm = lab.kcm()
    near, far = lab.tcp()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(seconds))
    lab.attach(kcm, near, lab.documented())
    return kcm, near, far


@GROUP.check(_TIMEOUT)
def assembly_timeout_is_etimedout(lab: Lab) -> None:
    """A message whose end does not come in time is an error."""
    _, near, far = _with_timeout(lab, 0.2)
    lab.calls.tcp_send(far, framed(b"whole")[:6])
    lab.posted(near, errno.ETIMEDOUT)


@GROUP.check(
    rst(
        "TCP socket management",
        "The timeout value is taken from the receive timeout of the attached TCP socket",
    )
)
def no_timeout_between_messages(lab: Lab) -> None:
    """The timeout is for a message begun: none runs after a complete one."""
    kcm, near, far = _with_timeout(lab, 0.1)
    lab.calls.tcp_send(far, framed(b"complete"))
    lab.received(kcm, [framed(b"complete")])
    lab.expect("poll of the TCP socket", lab.calls.poll(near.fileno(), 0, 0.3), 0)


@GROUP.check(rst("TCP socket management", "KCM discontinues using the socket"))
def nothing_is_delivered_after_an_error(lab: Lab) -> None:
    """After an error no more messages of that connection are delivered."""
    kcm, near, far = lab.attached(lab.program(_LIMITED))
    lab.calls.tcp_send(far, framed(bytes(97)))
    lab.posted(near, errno.EMSGSIZE)
    lab.calls.tcp_send(far, framed(b"good"))
    lab.silent(kcm)


@GROUP.check(rst("TCP socket management", "KCM discontinues using the socket"))
def nothing_is_sent_after_an_error(lab: Lab) -> None:
    """After an error that was seen, no more messages are sent over that connection."""
    kcm, near, far = lab.attached(lab.program(_LIMITED))
    lab.calls.tcp_send(far, framed(bytes(97)))
    lab.posted(near, errno.EMSGSIZE)
    lab.calls.send(kcm.fileno(), [b"for another connection"])
    lab.unsent(far)


# include/uapi/linux/tcp.h
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ, _TCP_REPAIR_WINDOW = 19, 20, 21, 29
_RECV_QUEUE, _SEND_QUEUE = 1, 2


def sent_again(lab: Lab, far: socket.socket, back: int) -> socket.socket:
    """The end of a connection made anew, which has so many bytes fewer sent than it had."""
    again = socket.socket(far.family, socket.SOCK_STREAM)
    lab.keep(again)

    def repair(tcp: socket.socket, option: int, value: int | bytes) -> None:
        tcp.setsockopt(socket.IPPROTO_TCP, option, value)

    def number(queue: int) -> int:
        repair(far, _TCP_REPAIR_QUEUE, queue)
        return far.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ) & 0xFFFFFFFF

    try:
        repair(far, _TCP_REPAIR, 1)
    except PermissionError:
        raise Skip("no end of a connection can be made anew; it requires root") from None
    own, peer = far.getsockname(), far.getpeername()
    received = number(_RECV_QUEUE)
    numbers = {_SEND_QUEUE: number(_SEND_QUEUE) - back & 0xFFFFFFFF, _RECV_QUEUE: received}
    far.close()
    repair(again, _TCP_REPAIR, 1)
    again.bind(own)
    for queue, value in numbers.items():
        repair(again, _TCP_REPAIR_QUEUE, queue)
        repair(again, _TCP_QUEUE_SEQ, struct.pack("I", value))
    again.connect(peer)
    # It would not believe the other end, which has received more than it has sent.
    window = struct.pack("5I", received, 0xFFFF, 0xFFFF, 0xFFFF, received)
    repair(again, _TCP_REPAIR_WINDOW, window)
    repair(again, _TCP_REPAIR, 0)
    repair(again, socket.TCP_NODELAY, 1)
    return again


@GROUP.check(code('__strp_recv: "Getting data with a non-zero offset"', _STRPARSER))
def bytes_sent_again_are_taken_once(lab: Lab) -> None:
    """A segment that begins with bytes that came before is taken from the first new one on."""
    kcm, near, far = lab.attached()
    message = framed(bytes(range(100)))
    lab.calls.tcp_send(far, message[:40])
    lab.consumed(near, far)
    again = sent_again(lab, far, 15)
    lab.calls.tcp_send(again, message[25:])
    lab.received(kcm, [message])


# It asks for more than two bytes, by the segment's length.
_STRPIPE = f"""
    r0 = *(u32 *)(r1 + 0)
    if r0 > 2 goto +2
    r0 = 0
    exit
    r0 = {-errno.ESTRPIPE}
    exit
"""


@GROUP.check(code("__strp_recv, ESTRPIPE: unrecov_intr", _STRPARSER))
def estrpipe_in_a_message_is_enodata(lab: Lab) -> None:
    """-ESTRPIPE of a program is posted, but in a message that was begun it is ENODATA."""
    program = lab.program(_STRPIPE)
    kcm, near, far = lab.attached(program)
    lab.calls.tcp_send(far, b"begun")
    lab.posted(near, errno.ESTRPIPE)
    near, far = lab.tcp()
    lab.attach(kcm, near, program)
    lab.calls.tcp_send(far, b"be")
    lab.consumed(near, far)
    lab.calls.tcp_send(far, b"gun")
    lab.posted(near, errno.ENODATA)
