"""Keeping a Multiplexor in connections: when to dial, when to pause, when to give up."""

from __future__ import annotations

import contextlib
import errno
import functools
import random
import select
import socket
import time
from _thread import allocate_lock
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pykcm import _kernel, _tcp
from pykcm._attaching import descriptor_of
from pykcm._wait import Wait, explained
from pykcm.errors import AttachError, ConnectFailed, Disconnected, KCMOSError

if TYPE_CHECKING:
    from pykcm._disconnection import Disconnection
    from pykcm.multiplexor import Multiplexor


class Full(Wait):
    """What to wait for while there are as many connections as there should be."""


#: Yields what to wait for; or None, to be sent a connection or thrown why there is none.
Steps: TypeAlias = Generator[Wait | None, Any, None]

# How often to look, in seconds, though nothing was told: nothing is of an `unattach`.
_LOOK = 1.0


class _Member(NamedTuple):
    tcp: socket.socket
    fd: _kernel.Descriptor  # ours, to ask it by when the other is closed
    received: int


class Keeping:
    """See `Pool`, whose arguments these are."""

    def __init__(
        self, mux: Multiplexor, size: int, attempts: int | None, backoff: tuple[float, float]
    ) -> None:
        self._mux, self._size = mux, size
        self._attempts, self._backoff, self._failures = attempts, backoff, 0
        self._members: list[_Member] = []
        self._kept = allocate_lock()  # held while somebody does
        with explained():
            self._told, self._stopped = _kernel.Descriptor.event(), _kernel.Descriptor.event()
            self._events = select.epoll()
            for event in (self._told, self._stopped):
                self._events.register(event.fileno(), select.EPOLLIN)
            # By its edges, since another thread may be the one who looks.
            self._events.register(mux._port.watch, select.EPOLLIN | select.EPOLLET)
        mux.on_disconnect = functools.partial(self._tell, mux.on_disconnect)

    def _tell(
        self, then: Callable[[Disconnection], object] | None, disconnection: Disconnection
    ) -> None:
        self._told.set_event(True)
        if then is not None:
            then(disconnection)

    def stop(self) -> None:
        """End the steps."""
        self._stopped.set_event(True)

    def begin(self) -> Steps:
        """The steps, though they were stopped before."""
        self._stopped.set_event(False)
        return self.steps()

    def steps(self) -> Steps:
        """Go on until stopped.

        Raises:
            KCMOSError: EBUSY, another call keeps them.
        """
        if not self._kept.acquire(blocking=False):
            raise KCMOSError(errno.EBUSY, "the pool is kept already, by a `with` block or a call")
        try:
            while True:
                if _kernel.is_readable(self._stopped.fileno()):
                    return
                self._told.set_event(False)
                self._mux._check()
                self._mux._look()
                error = self._count_the_dead()
                if len(self._mux.transports) >= self._size:
                    since = time.monotonic()
                    yield Full(self._events.fileno(), _LOOK)
                    if not self._events.poll(0) and time.monotonic() - since >= _LOOK:
                        self._failures = 0  # they have all lived that long
                    continue
                if error is None:
                    try:
                        tcp = yield None
                    except OSError as failed:
                        error = failed
                    else:
                        error = self._attach(tcp)
                if error is not None:
                    yield Wait(self._stopped.fileno(), self._pause_after(error))
        finally:
            # Or our descriptors would keep connections open that the Multiplexor has closed.
            for member in self._members:
                member.fd.close()
            self._members.clear()
            self._kept.release()

    def _pause_after(self, error: OSError) -> float:
        self._failures += 1
        if self._attempts is not None and self._failures >= self._attempts:
            raise ConnectFailed.after(self._failures, error) from error
        first, longest = self._backoff
        pause: float = min(first * 2.0 ** min(self._failures - 1, 64), longest)
        return pause * random.uniform(0.5, 1)

    def _attach(self, tcp: socket.socket) -> OSError | None:
        received = 0
        try:
            with explained():
                fd = _kernel.Descriptor.duplicate(descriptor_of(tcp))
        except BaseException:
            with contextlib.suppress(AttributeError):  # of what is no socket
                tcp.close()
            raise
        with contextlib.suppress(OSError):  # of what is no TCP socket, which `attach` names
            received = _tcp.bytes_received(fd.fileno())
        try:
            self._mux.attach(tcp, hand_over=True)
        except BaseException as error:
            if tcp not in self._mux.transports:
                tcp.close()
            with contextlib.closing(fd):  # else it lives as long as the error's traceback
                number = fd.fileno()
                if (
                    isinstance(error, AttachError)
                    and _tcp.is_tcp(number)
                    and _tcp.has_ended(number)
                ):
                    return error
            raise
        self._members.append(_Member(tcp, fd, received))
        return None

    def _count_the_dead(self) -> OSError | None:
        """Whether one has ended that was of no use."""
        attached = {id(tcp) for tcp in self._mux.transports}
        error = None
        for member in [member for member in self._members if id(member.tcp) not in attached]:
            # A FIN counts as a byte.
            if _tcp.bytes_received(member.fd.fileno()) > member.received + 1:
                self._failures = 0
            else:
                text = "a connection ended before anything was received on it"
                error = Disconnected(errno.ECONNRESET, text)
            self._members.remove(member)
            member.fd.close()
        return error
