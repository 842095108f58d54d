"""The connections of a multiplexor, from attach to their end.

What is written down is always true: each change is an order of steps of which every beginning is a
true state, and each step may be taken twice.  What the kernel did is written by the call that did
it.  So an exception between any two lines leaves nothing to repair, and the next look goes on.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from typing import TYPE_CHECKING, Any

from pykcm import _forking, _kernel, _tcp
from pykcm._disconnection import Disconnection, Reason, reason_of
from pykcm._draining import Drain
from pykcm._tasks import closing
from pykcm._wait import IDLE, Readable, Wait
from pykcm.errors import KCMOSError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pykcm._wait import Steps
    from pykcm.socket import KCMSocket

# The shortest time that a timer takes, in seconds.
_AT_ONCE = 1e-9


class Transport:
    """One attached connection.

    Attributes:
        tcp: as it was given to `attach`.
        hand_over: whether it is closed with its end.
        fd: our own descriptor of it, so that it can be taken off also when the caller has closed
            theirs: the kernel keeps an attached connection open.
        attached: an `int[1]`, 1 from when the kernel has it until it has not.
        error: an `int[1]`: what the kernel had posted on it; asking clears it.
        options: what was set on it before.
        peer: the peer's address when it was attached.
        ended: whether it was seen to have ended; it is not watched any more then.
        target: bytes that have to be parsed before it can be unattached, which is asked for; None
            if it is not.
        left: bytes that TCP had and KCM had not taken, when last looked at.
        cut: as `Disconnection` has it.
        mark: how many messages had been received, and how many receives begun, when all of its
            bytes were parsed; None while they are not.
        unmoved: for how long its bytes have stayed what they were, though no message waited, in
            seconds that were looked at.
        looked: when last; 0 if they have not stayed.
        stalls: how often the kernel was made to look at them since.
        kicked: how many they were when it was last, and how many messages had been received.
        urgent: whether urgent data is among them.
        disconnection: what is reported of it, once it is off.
    """

    def __init__(self, tcp: socket.socket, fd: int, hand_over: bool) -> None:
        self.tcp = tcp
        self.hand_over = hand_over
        self.descriptor = _kernel.Descriptor.duplicate(fd)
        self.fd = self.descriptor.fileno()
        self.attached = _kernel.integer()
        self.error = _kernel.integer()
        self.options = _tcp.Options()
        self.peer: Any = None
        with contextlib.suppress(OSError, AttributeError):  # attaching names what is no socket
            self.peer = tcp.getpeername()
        self.target: int | None = None
        self.left = -1
        self.cut = 0
        self.ended = False
        self.mark: tuple[int, int] | None = None
        self.unmoved = self.looked = 0.0
        self.stalls = 0
        self.kicked: tuple[int, int] | None = None
        self.urgent = False
        self.disconnection: Disconnection | None = None

    @property
    def stopped(self) -> bool:
        """Whether the kernel's parser is known to have stopped."""
        return self.urgent or self.error[0] not in (0, errno.EPIPE)

    def take_off(self, kcm_fd: int) -> Disconnection:
        """Unattach the connection and give it back; what is to be reported of it."""
        if self.disconnection is None:
            fd = self.fd
            # One that somebody else took off has nothing left to do.
            with contextlib.suppress(OSError):
                _kernel.unattach(kcm_fd, fd, self.attached)
            state = _tcp.CLOSE
            with contextlib.suppress(OSError):
                state = _tcp.state(fd)
                self.cut = max(self.cut, _tcp.unparsed(fd))
            if not self.error[0]:
                with contextlib.suppress(OSError):
                    _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_ERROR, self.error)
            self.options.restore(fd)
            number = self.error[0]
            if self.target is not None:
                reason = Reason.UNATTACHED
            else:
                reason = Reason.URGENT if self.urgent else reason_of(number, state)
            self.disconnection = Disconnection(self.tcp, self.peer, reason, number, self.cut)
        return self.disconnection


class Transports:
    """The transports of one multiplexor: their list, watch, draining, removal and reports.

    Args:
        kcm: the multiplexor's own KCM socket.

    Attributes:
        watch: an epoll; readable when one has ended, or has to be looked at again.
        draining: those that have ended or are to be unattached, by our descriptor.  While there
            are any, the timer is set; where it expires and there are none, the next look stops it.
        last: what was reported last.
        lock: held while they change.
        closed: whether they are looked after no more.
        gone: how many there were that are not any more.
    """

    def __init__(self, kcm: KCMSocket) -> None:
        self._kcm = kcm
        self.watch = select.epoll()
        # Expires when they have to be looked at though nothing happened.
        self._timer = _kernel.Descriptor.timer()
        self.watch.register(self._timer.fileno(), select.EPOLLIN)
        self._drain = Drain(kcm)
        self._by_fd: dict[int, Transport] = {}
        # Only a short way to find them; what is in the other is true.
        self._by_tcp: dict[int, Transport] = {}
        self.draining: dict[int, Transport] = {}
        # Healthy ones whose error queue is not empty: each of its entries is told once.
        self._with_error_queue: set[int] = set()
        self._interrupted = False
        self.last: Disconnection | None = None
        self.lock = _forking.lock
        self.closed = False
        self.gone = 0

    def __iter__(self) -> Iterator[Transport]:
        return iter(list(self._by_fd.values()))

    def __len__(self) -> int:
        return len(self._by_fd)

    def find(self, tcp: socket.socket) -> Transport | None:
        """The transport that a TCP socket was given for."""
        transport = self._by_tcp.get(id(tcp))
        if transport is not None and self._by_fd.get(transport.fd) is transport:
            return transport
        return next((transport for transport in self if transport.tcp is tcp), None)

    def attach(
        self,
        transport: Transport,
        program_fd: int,
        max_length: int | None,
        allow_small_buffer: bool,
    ) -> None:
        """Have a connection watched and attached; once the kernel has it, it stays.

        The lock is held, so that none looks at what is not attached yet.
        """
        try:
            self._by_fd[transport.fd] = transport
            self._by_tcp[id(transport.tcp)] = transport
            # First, since a connection that could not be watched would have to be taken off, and
            # what the kernel has parsed would be lost to the caller.
            self.watch.register(transport.fd, _kernel.EPOLLRDHUP)
            self._kcm._attaching.attach(
                self._kcm,
                transport.fd,
                program_fd,
                max_length,
                allow_small_buffer,
                transport.options,
                transport.attached,
            )
        except BaseException:
            if not transport.attached[0]:
                self._forget(transport)
            raise

    # ---- their end ----

    def look(
        self, by_clones: Callable[[], bool], told: Callable[[Transport, Disconnection], None]
    ) -> None:
        """Drain, take off and report those that have ended, as far as can be done now.

        Args:
            by_clones: whether others receive, so that messages are left to them.
            told: is given each that was taken off, perhaps twice.
        """
        # By `with`, which no signal's handler can leave with the lock held; for other threads it is
        # short, since a look never waits.
        with self.lock:
            if self.closed:
                return
            self._let_stay()
            self._notice()
            if not self.draining:
                return
            # First, for what may be raised on the way: the next call looks again at once.
            self._timer.set_timer(_AT_ONCE)
            ready, soon = self._drain.advance(
                list(self.draining.values()), self._by_fd, by_clones()
            )
            for transport in ready:
                disconnection = transport.take_off(self._kcm._fd())
                if disconnection.reason is not Reason.UNATTACHED:
                    self.last = disconnection
                told(transport, disconnection)
                self.forget(transport)
            self._timer.set_timer(soon if self.draining else 0)
            if not self.draining:
                self._drain.close()

    def _notice(self) -> None:
        """Note which have ended."""
        interrupted, self._interrupted = self._interrupted, True
        if interrupted:  # an edge or an error, which are told once, may have been told to nobody
            for fd in list(self._with_error_queue):
                self.watch.modify(fd, _kernel.EPOLLRDHUP | select.EPOLLET)
            for failed in self:
                if failed.error[0]:
                    self._drain_ended(failed)
        for fd, events in self.watch.poll(0):
            transport = self._by_fd.get(fd)
            if transport is None:  # the timer
                if not self.draining:
                    self._timer.set_timer(0)
                continue
            ended = events & (_kernel.EPOLLRDHUP | select.EPOLLHUP)
            if ended or self._has_failed(transport):
                self._drain_ended(transport)
            elif fd not in self._with_error_queue:
                # What is in a socket's error queue (time stamps, zero-copy notices) looks like an
                # error, and stays until the caller takes it.  Once only: each change of what is
                # watched tells the edge anew.
                self._with_error_queue.add(fd)
                self.watch.modify(fd, _kernel.EPOLLRDHUP | select.EPOLLET)
        self._interrupted = False

    def _has_failed(self, transport: Transport) -> bool:
        """Whether an error was posted on a connection that goes on.

        Asking clears the error, after which KCM would send on the connection again.  While it
        stands, that does no harm; once it has ended, KCM would send into the void, and so it is
        asked only when it is off.
        """
        if _tcp.has_ended(transport.fd):
            return True
        if not transport.error[0]:
            self._timer.set_timer(_AT_ONCE)  # for what may be raised then: the error tells no more
            _kernel.get_integer(transport.fd, socket.SOL_SOCKET, socket.SO_ERROR, transport.error)
        return bool(transport.error[0])

    def _drain_ended(self, transport: Transport) -> None:
        transport.ended = True
        self._begin_draining(transport)
        self._unwatch(transport)

    def _begin_draining(self, transport: Transport) -> None:
        if not self.draining:
            self._timer.set_timer(_AT_ONCE)
        self.draining[transport.fd] = transport

    def _let_stay(self) -> None:
        """Drain those no more that live, and of which an unattach was given up."""
        for transport in list(self.draining.values()):
            if transport.target is None and not transport.ended:
                self.draining.pop(transport.fd, None)

    def unattach_steps(
        self, transport: Transport, look: Callable[[], None]
    ) -> Steps[Disconnection]:
        """Take one off once all that has come is received; if something is raised, it stays."""
        changed = Readable(self.watch.fileno())  # so that others may wait for the same
        try:
            self._begin_unattaching(transport)
            look()
            while True:
                if self._by_fd.get(transport.fd) is not transport:
                    break
                yield Wait(changed.fileno(), IDLE)  # another call's look may have been told
                if transport.target is None:  # another call has given it up
                    self._begin_unattaching(transport)
                look()
        except BaseException as error:
            with self.lock:
                self._go_on_with(transport)
                if not (isinstance(error, TimeoutError) and transport.disconnection):
                    raise
        finally:
            changed.close()
            self.let_clones_go()
        if transport.disconnection is None:
            raise KCMOSError(errno.EBADF, "the multiplexor was closed, and has taken it off")
        return transport.disconnection

    def _begin_unattaching(self, transport: Transport) -> None:
        with self.lock:
            if transport.attached[0] and not self.closed:
                received = _tcp.bytes_received(transport.fd)
                self._begin_draining(transport)
                transport.left = -1  # what one that was given up has seen is not true any more
                transport.target = received

    def _go_on_with(self, transport: Transport) -> None:
        """It was to be unattached; if it still is attached, it stays."""
        if self.closed:
            return
        if transport.attached[0]:
            transport.left = -1
            transport.target = None  # with that it stays, whatever comes then
            self._let_stay()
            if not self.draining:
                self._timer.set_timer(0)
        elif self.draining.get(transport.fd) is transport:
            self._timer.set_timer(_AT_ONCE)  # the next look goes on

    def let_clones_go(self) -> None:
        """Give back what the drain's clones hold: a call that has kept some waits no more."""
        with self.lock:
            self._drain.close()

    def forget(self, transport: Transport) -> None:
        """Let go of a transport that was taken off and reported."""
        self.gone += transport.fd in self._by_fd
        if transport.hand_over:
            transport.tcp.close()
        self._forget(transport)

    def _forget(self, transport: Transport) -> None:
        self._unwatch(transport)
        self._by_tcp.pop(id(transport.tcp), None)
        self._by_fd.pop(transport.fd, None)
        # After that, so that whoever is still attached or listed is also looked at again.
        self.draining.pop(transport.fd, None)
        transport.descriptor.close()

    def _unwatch(self, transport: Transport) -> None:
        self._with_error_queue.discard(transport.fd)
        with contextlib.suppress(OSError, ValueError):
            self.watch.unregister(transport.fd)

    def close(self, restore: bool, hand_over: bool) -> None:
        """Let go of all; the kernel has taken them off, or clones go on with them.

        What was struck is finished by the next.  Where other threads may look, the lock is held.

        Args:
            restore: whether nobody goes on with them, so that they are as they were.
            hand_over: whether to close those that were handed over.
        """
        self.closed = True
        self._drain.close()
        for transport in self:
            if restore:  # by a number that is -1 once it is closed, and nobody else's then
                transport.options.restore(transport.descriptor.fileno())
            if hand_over and transport.hand_over:
                transport.tcp.close()
            transport.descriptor.close()
            self._by_fd.pop(transport.fd, None)
        self._by_tcp.clear()
        if not self.watch.closed:
            closing(self.watch.fileno())
        self.watch.close()
        self._timer.close()
