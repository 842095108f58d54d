"""Taking a transport off a multiplexor without losing the messages that it has received.

SIOCKCMUNATTACH drops a message that is complete but waits for a KCM socket with room (kcm_unattach,
net/kcm/kcmsock.c), and what TCP has received but the kernel has not looked at yet is no message at
all.  `drain` sees to it that neither is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import struct
import termios
from collections.abc import Callable, Iterator

from pykcm import bpf, loopback
from pykcm.socket import KCMSocket

# include/uapi/linux/sock_diag.h
_SK_MEMINFO_RMEM_ALLOC = 0
_SK_MEMINFO_RCVBUF = 1

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


def drain(kcm: KCMSocket, tcp_fd: int, take: Callable[[], int] | None = None) -> int:
    """Have all complete messages that a transport has received queued on KCM sockets, or taken.

    For a connection that receives no more, since the peer has closed it or the kernel has given up
    on it; a live one can receive more at any moment.

    Args:
        kcm: a socket of the transport's multiplexor.
        tcp_fd: the transport.
        take: receives what is queued on kcm, without waiting, and returns how many messages that
            were.  It keeps a connection's messages in order.  None if this socket does not
            receive: clones of it then take the messages and hand them on to the sockets that do.

    Returns:
        Bytes that are left: they belong to a message whose end has not come.  A short beginning
        that the kernel has already taken off the TCP socket is not counted, since nothing shows it.

    Raises:
        OSError: no descriptors or no memory are left.
    """
    while True:
        with contextlib.ExitStack() as stack:
            clone = None if take else stack.enter_context(_roomy_clone(kcm))
            left = unparsed(tcp_fd)
            if take:
                take()
            if left:
                # Either the kernel has not come round to the bytes yet, or they are no message.
                _barrier()
                moved = unparsed(tcp_fd) != left
                if moved or (take and take()) or (clone and not _has_room(clone)):
                    continue
        # Whatever became complete while all sockets were busy.
        with _roomy_clone(kcm):
            return left


@contextlib.contextmanager
def _roomy_clone(kcm: KCMSocket) -> Iterator[KCMSocket]:
    """A clone that waits for messages: so no complete message waits for a socket with room.

    A fresh clone takes what waits.  One that has room left shows that there was no more.  When the
    clones are closed, the kernel gives what they took to other sockets, or keeps it for them.
    """
    with contextlib.ExitStack() as stack:
        clone = stack.enter_context(kcm.clone())
        while not _has_room(clone):
            clone = stack.enter_context(kcm.clone())
        yield clone


def _has_room(kcm: KCMSocket) -> bool:
    memory = kcm.memory()
    return memory[_SK_MEMINFO_RMEM_ALLOC] < memory[_SK_MEMINFO_RCVBUF]


def _barrier() -> None:
    """Wait until the kernel has done the work on received data that was pending before.

    That work is done in order by one worker (kstrp, net/strparser/strparser.c).  Attaching a
    connection with data in it puts an item of our own at the end of its queue.
    """
    with contextlib.ExitStack() as stack:
        kcm = stack.enter_context(KCMSocket())
        kcm.settimeout(_BARRIER_TIMEOUT)
        near, far = loopback.connection()
        stack.enter_context(near)
        stack.enter_context(far)
        program = stack.enter_context(bpf.Program.load("r0 = 1\nexit", name="pykcm_barrier"))
        far.sendall(b"!")
        kcm.attach(near, program)
        kcm.recv()
