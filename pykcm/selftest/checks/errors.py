"""What a call that failed leaves behind."""

from __future__ import annotations

import errno
import socket

from pykcm._binding import lib
from pykcm.selftest import versions
from pykcm.selftest.check import Group, Skip, code
from pykcm.selftest.lab import FRAGMENTS, SEQPACKET, Lab, framed, patterned

GROUP = Group("errors", "What a call that failed leaves behind")

# Of this many bytes some lie in a fragment that is full, and so were taken before the fault.
_TWO_FRAGMENTS = 40_000
_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h


@GROUP.check(code("kcm_sendmsg, out_error"))
def message_that_faults_is_not_sent(lab: Lab) -> None:
    """Nothing of a SOCK_DGRAM message whose end can't be read is sent, and the next one is."""
    kcm, _, far = lab.attached()
    for size in (10, _TWO_FRAGMENTS):
        arguments = kcm.fileno(), bytes(size)
        lab.refused("send", errno.EFAULT, lab.calls.send_and_fault, *arguments)
    lab.calls.send(kcm.fileno(), [b"the next one"])
    lab.streamed(far, b"the next one")
    lab.unsent(far)


@GROUP.check(code("kcm_sendmsg, out_error, frag_list"))
def long_message_that_faults_is_not_sent(lab: Lab) -> None:
    """The same of a message of more than a socket buffer's fragments hold, and of just so many."""
    kcm, _, far = lab.attached()
    try:  # what failed stays counted on many kernels, and must not fill the socket
        kcm.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 16 << 20)
    except PermissionError:
        raise Skip("no large send buffer can be set; it requires root") from None
    for size in (FRAGMENTS, FRAGMENTS + _TWO_FRAGMENTS, 2 * FRAGMENTS):
        arguments = kcm.fileno(), bytes(size)
        lab.refused("send", errno.EFAULT, lab.calls.send_and_fault, *arguments)
    message = patterned(FRAGMENTS + _TWO_FRAGMENTS)
    lab.calls.send(kcm.fileno(), [message])
    lab.streamed(far, message)


@GROUP.check(code("kcm_sendmsg, out_error"))
def part_that_faults_drops_a_dgram(lab: Lab) -> None:
    """A part that can't be read drops the SOCK_DGRAM message that it belongs to, not the next."""
    if versions.running() < (6, 1):
        raise Skip("5.10 is known to put the next message behind what was begun")
    kcm, _, far = lab.attached()
    lab.calls.send(kcm.fileno(), [b"begun, "], socket.MSG_MORE)
    arguments = kcm.fileno(), b"gone on, ", socket.MSG_MORE
    lab.refused("send", errno.EFAULT, lab.calls.send_and_fault, *arguments)
    lab.calls.send(kcm.fileno(), [b"the next one"])
    lab.streamed(far, b"the next one")
    lab.unsent(far)


@GROUP.check(code('kcm_sendmsg: "Wrote some bytes before encountering an error"'))
def part_that_faults_leaves_a_seqpacket_open(lab: Lab) -> None:
    """What was taken of a SOCK_SEQPACKET part before a fault belongs to its message, still open."""
    kcm, _, far = lab.attached(kind=SEQPACKET)
    lab.calls.send(kcm.fileno(), [b"begun, "])
    lab.refused("send", errno.EFAULT, lab.calls.send_and_fault, kcm.fileno(), b"not taken")
    part = patterned(_TWO_FRAGMENTS)
    size = lab.calls.send_and_fault(kcm.fileno(), part, socket.MSG_EOR)
    lab.expect("some of the part was taken", 0 < size <= len(part), True)
    lab.unsent(far)
    lab.calls.send(kcm.fileno(), [b"ended"], socket.MSG_EOR)
    lab.streamed(far, b"begun, " + part[:size] + b"ended")


@GROUP.check(code("kcm_sendmsg, out_error: head != kcm->seq_skb"))
def first_part_that_faults_opens_no_seqpacket(lab: Lab) -> None:
    """A SOCK_SEQPACKET part that can't be read begins no message."""
    kcm, _, far = lab.attached(kind=SEQPACKET)
    for size in (0, 10):
        arguments = kcm.fileno(), bytes(size), socket.MSG_EOR
        lab.refused("send", errno.EFAULT, lab.calls.send_and_fault, *arguments)
    lab.calls.send(kcm.fileno(), [b"the next one"], socket.MSG_EOR)
    lab.streamed(far, b"the next one")
    lab.unsent(far)


@GROUP.check(code("kcm_write_msgs, nr_frags; kcm_sendmsg, frag_prev"))
def message_that_faulted_at_its_last_fragment_can_be_ended(lab: Lab) -> None:
    """A SOCK_SEQPACKET message can be ended after a fault just where another fragment began."""
    if versions.running() < (6, 1):
        raise Skip("5.10 is known to warn of itself here (kcm_write_msgs), and is tainted then")
    kcm, _, far = lab.attached(kind=SEQPACKET)
    # This process has sent nothing before, so that its fragments are whole.
    message = patterned(FRAGMENTS)
    size = lab.calls.send_and_fault(kcm.fileno(), message)
    lab.expect("what send returned", size, len(message))
    lab.calls.send(kcm.fileno(), [b""], socket.MSG_EOR)
    lab.streamed(far, message)
    lab.calls.send(kcm.fileno(), [b"the next one"], socket.MSG_EOR)
    lab.streamed(far, b"the next one")


@GROUP.check(code("kcm_sendmsg, out_error, sk_wmem_queued"))
def message_that_faults_is_not_counted(lab: Lab) -> None:
    """Of a SOCK_DGRAM message that failed, nothing is counted as waiting to be sent."""
    kcm, _, _ = lab.attached()
    lab.refused("send", errno.EFAULT, lab.calls.send_and_fault, kcm.fileno(), bytes(_TWO_FRAGMENTS))
    lab.expect("SK_MEMINFO_WMEM_QUEUED", lab.unsent_bytes(kcm), 0)


@GROUP.check(code("kcm_sendmsg, out_error, sk_wmem_queued"))
def messages_that_fault_leave_room(lab: Lab) -> None:
    """A SOCK_DGRAM socket takes a message however often others have failed."""
    kcm, _, far = lab.attached()
    arguments = kcm.fileno(), bytes(_TWO_FRAGMENTS), socket.MSG_DONTWAIT
    for _ in range(20):
        lab.refused("send", errno.EFAULT, lab.calls.send_and_fault, *arguments)
    lab.calls.send(kcm.fileno(), [b"taken"], socket.MSG_DONTWAIT)
    lab.streamed(far, b"taken")


@GROUP.check(code("kcm_sendmsg, out_error; kcm_push"))
def message_that_faults_sends_those_held_back(lab: Lab) -> None:
    """What MSG_BATCH held back is sent when the message that would have sent it fails."""
    kcm, _, far = lab.attached()
    for message in (b"held ", b"back"):
        lab.calls.send(kcm.fileno(), [message], lib.MSG_BATCH)
    lab.refused("send", errno.EFAULT, lab.calls.send_and_fault, kcm.fileno(), b"failed")
    lab.streamed(far, b"held back")
    lab.unsent(far)


@GROUP.check(code("kcm_recvmsg, skb_copy_datagram_msg"))
def failed_receive_leaves_the_message(lab: Lab) -> None:
    """After a receive that could not be written, the message is still there."""
    kcm, _, far = lab.attached()
    lab.calls.tcp_send(far, framed(b"still there"))
    lab.expect("a peek", lab.peek(kcm), framed(b"still there"))
    lab.refused("recv", errno.EFAULT, lab.calls.libc, "recv", kcm.fileno(), 8, 10, 0)
    lab.received(kcm, [framed(b"still there")])
