"""Taking a transport off a multiplexor without losing the messages that it has received.

SIOCKCMUNATTACH drops a message that is complete but waits for a KCM socket with room (kcm_unattach,
net/kcm/kcmsock.c), and what TCP has received but the kernel has not looked at yet is no message at
all.  `drain` sees to it that neither is left, also while the other transports are flooded.

What it relies on, all of it in net/kcm/kcmsock.c and net/strparser/strparser.c:

- A transport with a complete message that no KCM socket has room for looks at no further byte, and
  waits in a queue, first come, first served (psocks_ready).
- While one waits there, no other transport gets hold of a KCM socket (kcm_rx_waiters is empty).
- A KCM socket that becomes empty, and a new one, serve that queue until they are full, and one
  transport at least (kcm_rcv_ready).
- A transport looks at its bytes with the TCP socket locked, or in the work queue kstrp.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence

from pykcm import _kernel, _loopback, bpf
from pykcm._wait import Deadline
from pykcm.errors import CapabilityError
from pykcm.socket import KCMSocket, borrowed

# include/uapi/linux/sock_diag.h
_SK_MEMINFO_RMEM_ALLOC = 0
_SK_MEMINFO_RCVBUF = 1

# Where tcpi_bytes_received lies in struct tcp_info; include/uapi/linux/tcp.h.
_BYTES_RECEIVED = 128

# No message takes less of a receive buffer, in bytes: its struct sk_buff and skb_shared_info.
_SMALLEST_CHARGE = 256

# How many clones are made at most to find out that no transport waits.
_CLONES = 256

# Where other transports fill them, how long to sleep before each, in seconds, and how often at
# most.  Who has slept is not interrupted at once by the kernel's worker, which on one CPU would
# fill each clone before it could be looked at.
_BREATH = 0.002
_BREATHS = 64

# How long the kernel's own worker may take to come by, in seconds.  It bounds only a machine that
# is stuck.
_BARRIER_TIMEOUT = 60.0


def unparsed(tcp_fd: int) -> int:
    """Bytes that TCP has received and KCM has not taken yet (SIOCINQ).

    The kernel answers with the socket locked, and takes messages off a socket with it locked: when
    this is 0, every complete message was given to a KCM socket or waits for one.
    """
    answer = fcntl.ioctl(tcp_fd, termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("=i", answer)[0])


def bytes_received(tcp_fd: int) -> int:
    """Bytes that TCP has received in all."""
    with borrowed(tcp_fd) as tcp:
        info = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
    return int.from_bytes(info[_BYTES_RECEIVED:], sys.byteorder)


def _position(tcp_fd: int) -> int:
    """Bytes that KCM has taken in all; too many, never too few, while more are coming."""
    left = unparsed(tcp_fd)
    return bytes_received(tcp_fd) - left


def drain(
    kcm: KCMSocket,
    tcp_fd: int,
    *,
    others: Sequence[int] = (),
    take: Callable[[int], object] | None = None,
    program_fd: int | None = None,
) -> int | None:
    """Have all complete messages that a transport has received queued on KCM sockets, or taken.

    What arrives after the call has begun may be left.

    Args:
        kcm: a socket of the transport's multiplexor.
        tcp_fd: the transport.
        others: the multiplexor's other transports.
        take: receives what is queued on kcm, without waiting, until nothing is or it has received
            as many messages as it is told.  With this every connection's messages keep their
            order; kcm must then be the only socket that receives.  None otherwise: clones take
            the messages and hand them on to the sockets that receive.
        program_fd: a delineation program, for a process that may not load one.

    Returns:
        Bytes that are left: they belong to a message whose end has not come.  A short beginning
        that the kernel has already taken off the TCP socket is not counted, since nothing shows it.
        None if it could not be made sure of, since more is coming in for the clones than they
        take; so call again.

    Raises:
        OSError: no descriptors or no memory are left.
    """
    arrived = bytes_received(tcp_fd)
    left = iter(range(_CLONES))
    with contextlib.ExitStack() as clones:
        while True:
            position = _position(tcp_fd)
            if take:
                # Who holds the KCM socket now is done with it when its TCP socket's lock was had.
                # From then on the waiting are served each time the KCM socket becomes empty.
                for fd in others:
                    unparsed(fd)
                capacity = kcm.memory()[_SK_MEMINFO_RCVBUF] // _SMALLEST_CHARGE + 2
                take((len(others) + 2) * capacity)
            elif not _served_by_clones(kcm, clones, left, others):
                return None
            if position >= arrived:
                return unparsed(tcp_fd)
            # Now it waits no longer.  Once the work that was pending is done, it has gone on to
            # what follows; or there is nothing that it can do.
            _barrier(program_fd)
            if _position(tcp_fd) == position:
                return unparsed(tcp_fd)


def _served_by_clones(
    kcm: KCMSocket, clones: contextlib.ExitStack, left: Iterator[int], others: Sequence[int]
) -> bool:
    """Have all waiting transports served by new clones; whether that could be made sure of.

    A clone is first given what closed ones had taken, then serves who waits until it is full.  So
    one that has room left shows that none waits any more.  Later it may fill up all the same: if
    others do that, more clones would soon hold more than can be received in time.
    """
    breaths = iter(range(_BREATHS))
    before: list[int] | None = None  # asked for only when a clone is full, which few are
    for _ in left:
        fd = _kernel.clone(kcm.fileno())  # not kcm.clone(), which would call kcm shared
        memory = clones.enter_context(KCMSocket(kcm.type, _fileno=fd)).memory()
        if memory[_SK_MEMINFO_RMEM_ALLOC] < memory[_SK_MEMINFO_RCVBUF]:
            return True
        now = [_position(fd) for fd in others]
        if now != before:
            if next(breaths, None) is None:
                break
            before = now
            time.sleep(_BREATH)
    return False


def _barrier(program_fd: int | None) -> None:
    """Wait until the kernel has done the work on received data that was pending before.

    That work is done in order by one worker.  Attaching a connection with data in it puts an item
    of our own at the end of its queue, whatever the program makes of the data.
    """
    with contextlib.ExitStack() as stack:
        kcm = stack.enter_context(KCMSocket())
        near, far = _loopback.connection()
        stack.enter_context(near)
        stack.enter_context(far)
        far.sendall(b"!")
        with _any_program(program_fd) as fd:
            _kernel.attach(kcm.fileno(), near.fileno(), fd)
        poll = select.poll()
        poll.register(near, 0)  # POLLERR: the program refused the data
        poll.register(kcm, select.POLLIN)
        deadline = Deadline(_BARRIER_TIMEOUT)
        # A program that waits for more shows by nothing that it was run, except that the data is
        # taken.
        while unparsed(near.fileno()) and not poll.poll(1):
            if deadline.passed():
                raise TimeoutError("the kernel did not look at received data in time")


@contextlib.contextmanager
def _any_program(program_fd: int | None) -> Iterator[int]:
    try:
        program = bpf.Program.load("r0 = 1\nexit", name="pykcm_barrier")
    except CapabilityError:
        if program_fd is None:
            raise
        yield program_fd
        return
    with program:
        yield program.fd
