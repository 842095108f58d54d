"""splice and sendfile."""

from __future__ import annotations

import errno
import os
import select
import socket
import tempfile
import time

from pykcm._binding import lib
from pykcm.selftest import versions
from pykcm.selftest.check import Failure, Group, Skip, code
from pykcm.selftest.lab import DGRAM, FRAGMENTS, SEQPACKET, SOON, Lab, patterned, timeval

_SPLICE_F_NONBLOCK = 2  # include/linux/splice.h

GROUP = Group("splice", "splice and sendfile, from and to a KCM socket")

_READ = code("kcm_splice_read")


def _waiting(lab: Lab) -> socket.socket:
    """A SOCK_SEQPACKET socket on which two messages of ten bytes wait."""
    kcm, _, far = lab.attached(lab.fixed(10), SEQPACKET)
    lab.calls.tcp_send(far, b"0123456789abcdefghij")
    if not lab.calls.poll(kcm.fileno(), select.POLLIN, lab.patience):
        raise Failure("poll of the KCM socket\nexpected: a message\nseen: none")
    return kcm


@GROUP.check(_READ)
def message_goes_into_a_pipe(lab: Lab) -> None:
    """splice moves a message of a SOCK_SEQPACKET socket into a pipe."""
    kcm = _waiting(lab)
    reading, writing = lab.pipe()
    lab.expect("what splice returned", lab.calls.splice(kcm.fileno(), writing, 10), 10)
    lab.expect("the pipe", os.read(reading, 100), b"0123456789")


@GROUP.check(_READ)
def splice_ends_at_the_message(lab: Lab) -> None:
    """splice of more than a message's length moves one message."""
    kcm = _waiting(lab)
    reading, writing = lab.pipe()
    lab.calls.splice(kcm.fileno(), writing, 20)
    lab.expect("the pipe", os.read(reading, 100), b"0123456789")


@GROUP.check(code("kcm_splice_read, stm->offset += copied"))
def short_splice_keeps_the_rest(lab: Lab) -> None:
    """After a splice of a part, the rest of the message is still there."""
    kcm = _waiting(lab)
    _, writing = lab.pipe()
    lab.calls.splice(kcm.fileno(), writing, 4)
    lab.expect("the rest", lab.receive(kcm), b"456789")


@GROUP.check(
    code(
        'kcm_splice_read: "A subsequent recvmsg needs to be done to return MSG_EOR and finish '
        'reading the message."'
    )
)
def receive_after_splice_tells_the_end(lab: Lab) -> None:
    """After a splice of the whole message, a receive of no bytes has MSG_EOR."""
    kcm = _waiting(lab)
    _, writing = lab.pipe()
    lab.calls.splice(kcm.fileno(), writing, 10)
    lab.expect("data and msg_flags", lab.receive_flags(kcm), (b"", int(socket.MSG_EOR)))


@GROUP.check(code("kcm_splice_read, flags") + "; splice(2), SPLICE_F_NONBLOCK")
def splice_that_may_not_wait_takes_the_message(lab: Lab) -> None:
    """After a splice with SPLICE_F_NONBLOCK the next receive gives the next message."""
    kcm = _waiting(lab)
    reading, writing = lab.pipe()
    lab.calls.splice_flags(kcm.fileno(), writing, 10, _SPLICE_F_NONBLOCK)
    lab.expect("the pipe", os.read(reading, 100), b"0123456789")
    lab.received(kcm, [b"abcdefghij"])


@GROUP.check(code("kcm_splice_read, flags") + "; splice(2), SPLICE_F_NONBLOCK")
def splice_that_may_not_wait_is_eagain(lab: Lab) -> None:
    """Without a message, a splice with SPLICE_F_NONBLOCK is EAGAIN at once."""
    kcm, _, _ = lab.attached(kind=SEQPACKET)
    _, writing = lab.pipe()
    kcm.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(1))
    arguments = kcm.fileno(), writing, 10, _SPLICE_F_NONBLOCK
    start = time.monotonic()
    lab.refused("splice", errno.EAGAIN, lab.calls.splice_flags, *arguments)
    lab.expect("it waited", time.monotonic() - start >= 1, False)


def _from_pipe(lab: Lab, kind: int) -> None:
    kcm, _, far = lab.attached(kind=kind)
    reading, writing = lab.pipe()
    os.write(writing, b"through a pipe")
    lab.expect("what splice returned", lab.calls.splice(reading, kcm.fileno(), 14), 14)
    lab.patience = min(lab.patience, SOON)
    lab.streamed(far, b"through a pipe")


def _from_file(lab: Lab, kind: int, more: int = 0) -> None:
    """Send a file of 13 bytes, asking for so many more than it has."""
    kcm, _, far = lab.attached(kind=kind)
    with tempfile.TemporaryFile() as file:
        file.write(b"out of a file")
        file.flush()
        lab.expect("sendfile", lab.calls.send_file(kcm.fileno(), file.fileno(), 13 + more), 13)
    lab.patience = min(lab.patience, SOON)
    lab.streamed(far, b"out of a file")


_WRITE = code('kcm_sendpage: "No MSG_EOR from splice, only look at MSG_MORE"') + " (up to 6.4)"


@GROUP.check(_WRITE)
def pipe_goes_out_of_a_dgram_socket(lab: Lab) -> None:
    """splice from a pipe sends a message on a SOCK_DGRAM socket."""
    _from_pipe(lab, DGRAM)


@GROUP.check(_WRITE)
def pipe_goes_out_of_a_seqpacket_socket(lab: Lab) -> None:
    """splice from a pipe sends a message on a SOCK_SEQPACKET socket."""
    _from_pipe(lab, SEQPACKET)


@GROUP.check(_WRITE)
def file_goes_out_of_a_dgram_socket(lab: Lab) -> None:
    """sendfile sends a message on a SOCK_DGRAM socket."""
    _from_file(lab, DGRAM)


@GROUP.check(_WRITE)
def file_goes_out_of_a_seqpacket_socket(lab: Lab) -> None:
    """sendfile sends a message on a SOCK_SEQPACKET socket."""
    _from_file(lab, SEQPACKET)


@GROUP.check(_WRITE)
def file_goes_out_whose_end_comes_early(lab: Lab) -> None:
    """sendfile of more than a file has sends what it has as a message on a SOCK_DGRAM socket."""
    _from_file(lab, DGRAM, 100)


@GROUP.check(code("kcm_splice_eof"))
def end_of_a_file_sends_those_held_back(lab: Lab) -> None:
    """sendfile of more than a file has sends what MSG_BATCH held back before."""
    if versions.running() < (6, 5):
        raise Skip("kcm_splice_eof() came with 6.5")
    kcm, _, far = lab.attached()
    lab.calls.send(kcm.fileno(), [b"held back"], lib.MSG_BATCH)
    with tempfile.TemporaryFile() as file:
        file.write(b"a file")
        file.flush()
        lab.expect("sendfile", lab.calls.send_file(kcm.fileno(), file.fileno(), 100), 6)
    lab.streamed(far, b"held back")


@GROUP.check(code("kcm_sendmsg, skb_splice_from_iter, head->truesize"))
def long_file_goes_out(lab: Lab) -> None:
    """sendfile of more pages than a socket buffer holds sends them as one message."""
    kcm, _, far = lab.attached()
    content = patterned(40 << 12)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        seen = lab.calls.send_file(kcm.fileno(), file.fileno(), len(content))
        lab.expect("sendfile", seen, len(content))
    lab.streamed(far, content)


@GROUP.check(code("kcm_sendmsg, skb_splice_from_iter, EMSGSIZE"))
def splice_goes_on_with_a_full_buffer(lab: Lab) -> None:
    """splice into a message whose socket buffer is just full does not wait for ever."""
    kcm, _, far = lab.attached()
    # This process has sent nothing before, so that its fragments are whole.
    begun = patterned(FRAGMENTS - 1000)
    lab.calls.send(kcm.fileno(), [begun], socket.MSG_MORE)
    kcm.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(1))
    reading, writing = lab.pipe()
    os.write(writing, b"through a pipe")
    try:
        lab.expect("splice", lab.calls.splice(reading, kcm.fileno(), 14), 14)
    except BlockingIOError:
        raise Failure("splice\nexpected: 14\nseen: nothing in 1 s") from None
    lab.streamed(far, begun + b"through a pipe")
