"""Taking transports off a multiplexor without losing the messages that they have received.

SIOCKCMUNATTACH drops a message that is complete but waits for a KCM socket with room (kcm_unattach,
net/kcm/kcmsock.c), and what TCP has received but the kernel has not looked at yet is no message at
all.  A `Drain` sees to it that neither is left.  It never waits: `advance` does what can be done
now and says when to come again.  Its work is the same for each transport, however many there are.

A transport may go when all of these hold:

1. Its bytes are parsed: TCP has none left (`_tcp.unparsed`).  Then each of its messages was given
   to a KCM socket, or one waits for a KCM socket with room.
2. After that, none waits.  Transports with a complete message wait in a queue, first come, first
   served (psocks_ready).  While one waits, no other gets hold of a KCM socket, and a KCM socket
   that becomes empty, or a new one, serves the queue until it is full (kcm_rcv_ready).  So none
   waits when

   - our own KCM socket was found empty, and nobody who had hold of it before has it still: a
     transport has, while its TCP socket is locked; or
   - so many messages were received from it that all who waited must have had their turn; or
   - a new clone has room left.

Bytes that stay, though none waits, are the beginning of a message, or lie behind what stopped the
parser.  The kernel's worker may also be late: it is made to look at them (`_tcp.parse_again`),
which takes the beginning of a message off TCP, and so shows that it did; not where the connection
lives, and the caller is to have them.  What it does not take in _SETTLED seconds lies behind what
stopped it, or is such a beginning.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import weakref
from typing import TYPE_CHECKING

from pykcm import _explain, _kernel, _tcp
from pykcm.errors import KCMOSError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pykcm._messages import Port
    from pykcm._transports import Transport
    from pykcm.socket import KCMSocket

# How long bytes may stay where they are before the worker is made to look at them, and until they
# are given up, in seconds.
_UNMOVED = 0.005
_SETTLED = 1.0

# No message takes less of a receive buffer, in bytes: its struct sk_buff and skb_shared_info.
_SMALLEST_CHARGE = 256

# Up to how many transports are locked to see that none has hold of our KCM socket.
_FEW = 64

# How many messages may wait in our own object while the owner receives none and waits for no
# unattach, and how many receives one look makes at most.
_INBOX = 4096
_RECEIVES = 16

# How many messages a receive brings at most.
_AT_ONCE = 64

# How many clones one look makes at most, how many are kept, and how often before a pause.  Where
# others fill them, each round comes a little later: who has slept is not interrupted at once by the
# kernel's worker, which on one CPU would fill each clone before it could be looked at.
_CLONES = 4
_MOST_CLONES = 256
_ROUNDS = 64
_SOON = 0.002

# How long to let the clones' owners receive before it is tried again: at first, and at most.
_RETRY = 0.01
_LONGEST_RETRY = 0.5


_drains: weakref.WeakSet[Drain] = weakref.WeakSet()


class Drain:
    """Brings the transports of a multiplexor that are to go to where they can.

    Args:
        kcm: the multiplexor's own KCM socket.
    """

    def __init__(self, kcm: KCMSocket) -> None:
        self._kcm = kcm
        self._port: Port = kcm._port
        self._all: Collection[int] = ()
        self._clones: list[_kernel.Descriptor] = []
        self._rounds = 0
        self._retry = _RETRY
        self._not_before = 0.0
        self._bound = 0
        _drains.add(self)

    def advance(
        self, transports: Sequence[Transport], all_fds: Collection[int], by_clones: bool
    ) -> tuple[list[Transport], float]:
        """Do what can be done now.

        Args:
            transports: those that are to go.
            all_fds: the descriptors of all of the multiplexor's transports.
            by_clones: whether others receive, so that messages are left to them.

        Returns:
            Those that may be taken off now; and in how many seconds to come again for the others.

        Raises:
            OSError: no descriptors or no memory are left.
        """
        self._all = all_fds
        ready = [transport for transport in transports if not transport.attached[0]]
        transports = [transport for transport in transports if transport.attached[0]]
        if not transports:
            return ready, _SOON
        for transport in transports:
            self._observe(transport)
        nobody_waits = self._serve_by_clones(transports) if by_clones else None
        if nobody_waits is None:
            self._receive(transports)
        soon = _SOON
        for transport in transports:
            proven = self._has_served(transport.mark) if nobody_waits is None else nobody_waits
            if transport.left == 0 and proven:
                # If no message came of what the worker was made to take, it was none.
                if transport.kicked is not None and transport.kicked[1] == self._port.taken:
                    transport.cut = transport.kicked[0]
                ready.append(transport)
            elif not proven:
                transport.looked = 0.0
            elif transport.left and self._is_given_up(transport):
                transport.cut = transport.left
                ready.append(transport)
        if nobody_waits is False:
            soon = max(_SOON, self._not_before - time.monotonic())
        return ready, soon

    def _observe(self, transport: Transport) -> None:
        """See how many of a transport's bytes KCM has not taken yet."""
        if transport.target is None:
            left = _tcp.unparsed(transport.fd)
        else:  # what came later is not waited for; a FIN counts as a byte received
            received = _tcp.bytes_received(transport.fd)  # first: what comes between is not parsed
            left = _tcp.unparsed(transport.fd)
            left = max(0, min(left, transport.target + 1 - (received - left)))
        if left != transport.left:
            if left:  # more than the beginning of a message
                transport.kicked = None
            transport.left = left
            transport.mark = None
            transport.stalls = 0
            transport.unmoved = transport.looked = 0.0
        if left and not transport.urgent:
            transport.urgent = _tcp.has_urgent_data(transport.fd)

    def _is_given_up(self, transport: Transport) -> bool:
        """Whether bytes that stay, though no message waits, will stay for ever."""
        if transport.stopped:
            return True
        # While nobody looks, the worker may not have run either.
        now = time.monotonic()
        if transport.looked:
            transport.unmoved += min(now - transport.looked, 5 * _SOON)
        transport.looked = now
        # Not of one that lives: what the worker takes off TCP then would be lost.
        if transport.target is None and transport.unmoved > _UNMOVED * (1 + transport.stalls):
            transport.kicked = transport.left, self._port.taken
            transport.stalls += 1
            _tcp.parse_again(transport.fd)
        return transport.unmoved > _SETTLED

    # ---- where our own KCM socket receives ----

    def _receive(self, transports: Sequence[Transport]) -> None:
        """Receive into the Port until our socket was empty once after all was parsed."""
        port = self._port
        unmarked = [transport for transport in transports if transport.mark is None]
        if unmarked and len(self._all) <= _FEW:
            for fd in list(self._all):  # which an attach may change
                _tcp.unparsed(fd)
        for transport in unmarked:
            transport.mark = port.taken, port.begun
        newest = max(transport.mark for transport in transports if transport.mark is not None)
        capacity = _kernel.memory(self._kcm._fd())[_kernel.RCVBUF] // _SMALLEST_CHARGE + 2
        # Others may have taken some before the mark that are counted behind it.
        self._bound = (len(self._all) + 2) * capacity + _AT_ONCE
        # Who waits for an unattach may be the only one to receive, and what had come before may be
        # more.
        most = _INBOX if all(transport.target is None for transport in transports) else math.inf
        for _ in range(_RECEIVES):
            if port.held >= most or self._has_served(newest):
                break
            port.pull()
        if len(self._all) > _FEW and port.empty > newest[1]:
            self._make_sure(transports)

    def _has_served(self, mark: tuple[int, int] | None) -> bool:
        port = self._port
        return mark is not None and (port.empty > mark[1] or port.taken - mark[0] >= self._bound)

    def _make_sure(self, transports: Sequence[Transport]) -> None:
        """Among many transports: a clone with room shows that none waits, with one look for all."""
        with contextlib.closing(self._clone()) as clone:
            has_room = _has_room(clone)
        if not has_room:
            for fd in list(self._all):  # which an attach may change
                _tcp.unparsed(fd)
            for transport in transports:
                transport.mark = None

    def _clone(self) -> _kernel.Descriptor:
        try:
            return _kernel.Descriptor.clone(self._kcm._fd())
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            raise _explain.explain(error, _explain.CLONE) from error

    # ---- where others receive ----

    def _serve_by_clones(self, transports: Sequence[Transport]) -> bool:
        """Have all who wait served by new clones; whether none waits any more.

        A clone is first given what closed ones had taken, then serves who waits until it is full.
        Later it may fill up all the same: if others do that, more clones would soon hold more than
        can be received in time.
        """
        if time.monotonic() < self._not_before:
            return False
        for _ in range(_CLONES):
            self._port.holding = 1
            clone = self._clone()
            self._clones.append(clone)
            if _has_room(clone):
                self.close()
                self._retry = _RETRY
                return True
        self._rounds += 1
        self._not_before = time.monotonic() + _SOON
        if self._rounds >= _ROUNDS or len(self._clones) >= _MOST_CLONES:
            self.close()
            self._not_before = time.monotonic() + self._retry
            self._retry = min(2 * self._retry, _LONGEST_RETRY)
        return False

    def close(self) -> None:
        """Give back what the clones hold: no call waits for them any more."""
        for clone in self._clones:
            clone.close()
        self._clones.clear()
        self._rounds = self._port.holding = 0  # last: until then the next call's end comes here


def _has_room(clone: _kernel.Descriptor) -> bool:
    memory = _kernel.memory(clone.fileno())
    return memory[_kernel.RMEM_ALLOC] < memory[_kernel.RCVBUF]


def _close_in_child() -> None:
    """What clones hold would wait in the child for ever."""
    for drain in list(_drains):
        drain.close()


os.register_at_fork(after_in_child=_close_in_child)
