"""Calls that lack memory, one allocation after the other: where the kernel has fail-nth.

Source of what fails how: the kernel's Documentation/fault-injection/fault-injection.rst.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import TypeVar

from pykcm.selftest.calls import name_of
from pykcm.selftest.check import Failure, Group, code
from pykcm.selftest.checks.delineation import sent_again
from pykcm.selftest.lab import FRAGMENTS, NUMBERED, Lab, patterned

T = TypeVar("T")

GROUP = Group("faults", "Calls that lack memory, where the kernel has /proc/self/fail-nth")

# Copying from and to the process can be made to fail as well.
_ALLOWED = frozenset({errno.ENOMEM, errno.EFAULT, errno.ENFILE, errno.ENOBUFS, errno.EAGAIN})

_MOST = 200
_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h


class _Attempt:
    """A call of which one allocation fails.

    Attributes:
        injected: whether the call came to that allocation.
        failed: whether the call failed.
    """

    def __init__(self, lab: Lab, what: str, nth: int) -> None:
        self._lab, self._what, self._nth = lab, what, nth
        self.injected = self.failed = False

    def __call__(self, made: Callable[..., T], *arguments: object) -> T | None:
        """Make it; None if it failed in a way in which it may."""
        self.injected, result = self._lab.calls.failing(self._nth, made, *arguments)
        if not isinstance(result, OSError):
            return result
        self.failed = True
        if result.errno not in _ALLOWED:
            raise Failure(
                f"errno of {self._what} whose allocation {self._nth} fails\n"
                f"expected: {', '.join(sorted(map(name_of, _ALLOWED)))}\n"
                f"seen: {name_of(result.errno)}"
            )
        return None


def _each_allocation(lab: Lab, what: str, turn: Callable[[_Attempt], None]) -> None:
    """Have a turn for each allocation of a call, which makes the attempt and looks what follows."""
    failed = 0
    with lab.calls.fault_injection():
        for nth in range(1, _MOST):
            attempt = _Attempt(lab, what, nth)
            turn(attempt)
            failed += attempt.failed
            if not attempt.injected:
                lab.notes.append(f"{what} failed for {failed} of {nth - 1} allocations")
                return
    raise Failure(f"allocations of {what}\nexpected: fewer than {_MOST}\nseen: more")


@GROUP.check(code("kcm_create, ENOMEM"), alone=True)
def socket_without_memory(lab: Lab) -> None:
    """A socket that can't be made for want of memory leaves nothing behind."""
    lab.isolate()

    def turn(attempt: _Attempt) -> None:
        with lab.descriptors_unchanged():
            kcm = attempt(lab.calls.open_socket)
            if kcm:
                lab.calls.close(kcm)

    _each_allocation(lab, "socket", turn)
    wanted = "*** KCM statistics (0 MUX) ****"
    lab.eventually("the first line", lambda: lab.calls.proc("kcm").splitlines()[0], wanted)


@GROUP.check(code("kcm_clone, ENFILE, ENOMEM"), alone=True)
def clone_without_memory(lab: Lab) -> None:
    """A clone that can't be made for want of memory leaves nothing behind."""
    lab.isolate()
    kcm = lab.kcm()

    def turn(attempt: _Attempt) -> None:
        with lab.descriptors_unchanged():
            fd = attempt(lab.calls.clone, kcm.fileno())
            if fd is not None:
                os.close(fd)

    _each_allocation(lab, "clone", turn)
    lab.eventually("sockets", lambda: len(lab.multiplexor().sockets), 1)


@GROUP.check(code("kcm_attach, ENOMEM"), alone=True)
def attach_without_memory(lab: Lab) -> None:
    """A connection that can't be attached for want of memory can be attached afterwards."""
    program = lab.fixed(4)
    kcm = lab.kcm()

    def turn(attempt: _Attempt) -> None:
        with lab.another() as own:
            near, far = own.tcp()
            attempt(lab.calls.attach, kcm.fileno(), near.fileno(), program.fd)
            if attempt.failed:
                lab.attach(kcm, near, program)
            lab.calls.tcp_send(far, b"four")
            lab.received(kcm, [b"four"])
            lab.unattach(kcm, near)

    _each_allocation(lab, "attach", turn)


@GROUP.check(code("kcm_unattach_ioctl"), alone=True)
def unattach_without_memory(lab: Lab) -> None:
    """A connection is unattached, or it is not and can be afterwards."""
    program = lab.fixed(4)
    kcm = lab.kcm()

    def turn(attempt: _Attempt) -> None:
        with lab.another() as own:
            near, far = own.tcp()
            lab.attach(kcm, near, program)
            attempt(lab.calls.unattach, kcm.fileno(), near.fileno())
            if attempt.failed:
                lab.unattach(kcm, near)
            lab.calls.tcp_send(far, b"four")
            lab.expect("a read of the TCP socket", lab.stream(near, 4), b"four")

    _each_allocation(lab, "unattach", turn)


@GROUP.check(code("kcm_sendmsg, wait_for_memory; kcm_write_msgs"), alone=True)
def send_without_memory(lab: Lab) -> None:
    """What send takes arrives whole, or the connection is told an error; what fails is not sent."""
    program = lab.fixed(4)

    def turn(attempt: _Attempt) -> None:
        with lab.another() as own:
            kcm, near, far = own.attached(program)
            message = b"taken" * 2000
            attempt(lab.calls.send, kcm.fileno(), [message], socket.MSG_DONTWAIT)
            if own.calls.poll(near.fileno(), 0, 0) & select.POLLERR:
                return
            own.calls.send(kcm.fileno(), [b"next"])
            own.streamed(far, b"next" if attempt.failed else message + b"next")

    _each_allocation(lab, "send", turn)


@GROUP.check(code("kcm_sendmsg, sk_stream_wait_memory"), alone=True)
def send_that_waits_for_memory(lab: Lab) -> None:
    """A send that may wait goes on when there is memory again: nothing is missing or doubled."""
    message = patterned(40_000)

    def turn(attempt: _Attempt) -> None:
        with lab.another() as own:
            kcm = own.kcm()
            attempt(lab.calls.send, kcm.fileno(), [message])
            own.expect("the send failed", attempt.failed, False)
            near, far = own.tcp()
            own.attach(kcm, near, own.fixed(4))
            own.streamed(far, message)

    _each_allocation(lab, "send that waits", turn)


@GROUP.check(code("kcm_sendmsg, frag_list, wait_for_memory"), alone=True)
def long_send_without_memory(lab: Lab) -> None:
    """A message for whose second socket buffer there is no memory at first is sent whole."""
    kcm, _, far = lab.attached(lab.fixed(4))
    # Where the message is longer than this, it would wait until it was sent itself: for ever.
    kcm.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 16 << 20)
    # This process has sent nothing before, so that its fragments are whole and the buffer is full.
    begun = patterned(FRAGMENTS)
    lab.calls.send(kcm.fileno(), [begun], socket.MSG_MORE)
    with lab.calls.failing_inside("kcm_sendmsg") as failed:
        lab.calls.send(kcm.fileno(), [b"ended"])
        lab.expect("the allocation has failed", failed(), True)
    lab.streamed(far, begun + b"ended")


@GROUP.check(code("kcm_sendmsg, sk_page_frag_refill; sk_stream_wait_memory"), alone=True)
def send_without_pages(lab: Lab) -> None:
    """A send that may wait and gets no page at first, neither many nor one, is made whole."""
    kcm, _, far = lab.attached(lab.fixed(4))
    message = patterned(200_000)
    # Those of the buffers themselves are among them.
    with lab.calls.failing_inside("kcm_sendmsg", 8, pages=True) as failed:
        lab.calls.send(kcm.fileno(), [message])
        lab.expect("all these allocations have failed", failed(), True)
    lab.streamed(far, message)


_STRPARSER = "net/strparser/strparser.c"


def _lacking(lab: Lab, function: str, send: Callable[[], None]) -> None:
    """Have a function that the parser calls lack memory once while something is sent."""
    with lab.calls.failing_inside(function) as failed:
        send()
        lab.eventually("the allocation has failed", failed, True)


def _counted(lab: Lab, kcm: socket.socket, near: socket.socket) -> None:
    """Fail unless just one want of the parser's was counted."""
    lab.unattach(kcm, near)
    lab.expect("RX-MemFail", lab.total("Psock RX-MemFail"), 1)


@GROUP.check(code("strp_data_ready, ENOMEM; __strp_recv, skb_clone", _STRPARSER), alone=True)
def message_without_parser_memory(lab: Lab) -> None:
    """A message for which the stream parser lacks memory comes when there is some."""
    lab.isolate()
    kcm, near, far = lab.attached(lab.fixed(100))
    _lacking(lab, "__strp_recv", lambda: lab.calls.tcp_send(far, NUMBERED[1]))
    lab.received(kcm, [NUMBERED[1]])
    _counted(lab, kcm, near)


@GROUP.check(code("do_strp_work, ENOMEM", _STRPARSER), alone=True)
def early_message_without_parser_memory(lab: Lab) -> None:
    """So does one that was there before the connection was attached."""
    lab.isolate()
    program = lab.fixed(100)
    kcm = lab.kcm()
    near, far = lab.tcp()
    lab.calls.tcp_send(far, NUMBERED[1])
    _lacking(lab, "__strp_recv", lambda: lab.attach(kcm, near, program))
    lab.received(kcm, [NUMBERED[1]])
    _counted(lab, kcm, near)


@GROUP.check(code("__strp_recv, skb_unclone", _STRPARSER), alone=True)
def rest_of_a_message_without_parser_memory(lab: Lab) -> None:
    """So does one whose beginning came in the same segment as the end of another one."""
    lab.isolate()
    kcm, near, far = lab.attached(lab.fixed(100))
    lab.calls.tcp_send(far, NUMBERED[1] + NUMBERED[2][:50])
    lab.consumed(near, far)
    _lacking(lab, "__strp_recv", lambda: lab.calls.tcp_send(far, NUMBERED[2][50:]))
    lab.received(kcm, NUMBERED[1:3])
    _counted(lab, kcm, near)


def _again_without_memory(lab: Lab, function: str) -> None:
    lab.isolate()
    kcm, near, far = lab.attached(lab.fixed(100))
    message = NUMBERED[1]
    lab.calls.tcp_send(far, message[:40])
    lab.consumed(near, far)
    again = sent_again(lab, far, 15)
    _lacking(lab, function, lambda: lab.calls.tcp_send(again, message[25:]))
    lab.received(kcm, [message])
    _counted(lab, kcm, near)


@GROUP.check(code("__strp_recv, skb_clone of a non-zero offset", _STRPARSER), alone=True)
def bytes_sent_again_without_parser_memory(lab: Lab) -> None:
    """So does one of which bytes come twice, if there is no memory for their segment."""
    _again_without_memory(lab, "__strp_recv")


@GROUP.check(code("__strp_recv, pskb_pull", _STRPARSER), alone=True)
def bytes_sent_again_without_memory_to_move(lab: Lab) -> None:
    """So does one of which bytes come twice, if there is no memory to take them off."""
    _again_without_memory(lab, "__pskb_pull_tail")
