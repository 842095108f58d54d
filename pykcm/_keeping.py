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
from pykcm._failures import failures
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

# In seconds: one that served, but not for longer, is not replaced at once, or a server that says a
# word and closes would be dialled without end.
_BRIEF = 1.0


class _Member(NamedTuple):
    tcp: socket.socket
    fd: _kernel.Descriptor  # ours, to ask it by when the other is closed
    received: int
    since: float


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

    def stopped(self) -> None:
        """They have ended: those that come next are not stopped."""
        self._stopped.set_event(False)

    def begin(self) -> Steps:
        """The steps, though they were stopped before."""
        return self.steps(anew=True)

    def steps(self, anew: bool = False) -> Steps:
        """Go on until stopped, which counts for no others then.

        Raises:
            KCMOSError: EBUSY, another call keeps them.
        """
        if not self._kept.acquire(blocking=False):
            raise KCMOSError(errno.EBUSY, "the pool is kept already, by a `with` block or a call")
        try:
            self._failures = 0
            if anew:
                self.stopped()
            while True:
                if _kernel.is_readable(self._stopped.fileno()):
                    return
                self._told.set_event(False)
                self._mux._check()
                self._mux._look()
                error, brief = self._count_the_dead()
                if len(self._mux.transports) >= self._size:
                    since = time.monotonic()
                    yield Full(self._events.fileno(), _LOOK)
                    if not self._events.poll(0) and time.monotonic() - since >= _LOOK:
                        self._failures = 0  # they have all lived that long
                    continue
                if error is None and not brief:
                    try:
                        tcp = yield None
                    except failures() as failed:
                        error = failed
                    else:
                        error = self._attach(tcp)
                if error is not None:
                    yield Wait(self._stopped.fileno(), self._pause_after(error))
                elif brief:
                    yield Wait(self._stopped.fileno(), _shortened(self._backoff[0]))
        finally:
            # Or our descriptors would keep connections open that the Multiplexor has closed.
            for member in self._members:
                member.fd.close()
            self._members.clear()
            self.stopped()
            self._kept.release()

    def _pause_after(self, error: Exception) -> float:
        self._failures += 1
        if self._attempts is not None and self._failures >= self._attempts:
            raise ConnectFailed.after(self._failures, error) from error
        first, longest = self._backoff
        pause: float = min(first * 2.0 ** min(self._failures - 1, 64), longest)
        return _shortened(pause)

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
        self._members.append(_Member(tcp, fd, received, time.monotonic()))
        return None

    def _count_the_dead(self) -> tuple[Exception | None, bool]:
        """Whether one has ended that was of no use, and whether one has that served briefly."""
        attached = {id(tcp) for tcp in self._mux.transports}
        error: Exception | None = None
        brief = False
        for member in [member for member in self._members if id(member.tcp) not in attached]:
            # A FIN counts as a byte.
            if _tcp.bytes_received(member.fd.fileno()) > member.received + 1:
                self._failures = 0
                brief |= time.monotonic() - member.since < _BRIEF
            else:
                text = "a connection ended before anything was received on it"
                error = Disconnected(errno.ECONNRESET, text)
            self._members.remove(member)
            member.fd.close()
        return error, brief


def _shortened(pause: float) -> float:
    """At random, so that those who lost a server together do not all dial it together."""
    return pause * random.uniform(0.5, 1)
