"""What a Multiplexor does beside what it is asked for: it looks after its transports, and waits."""

from __future__ import annotations

import errno
import functools
import warnings
from typing import TYPE_CHECKING

from pykcm._disconnection import Disconnection, Reason
from pykcm._forking import lock
from pykcm._messages import Messages, MultiplexorCalls, late_with, unread_text
from pykcm._wait import IDLE, Readable, SendSpace, Steps, Wait
from pykcm.errors import Disconnected, KCMOSError, UnreadWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykcm import _kernel
    from pykcm._clones import Clones
    from pykcm._transports import Transport, Transports
    from pykcm.socket import KCMSocket

# How many messages one system call brings; those that were not asked for wait here.
AHEAD = 64


class Upkeep(Messages, MultiplexorCalls):
    """The part of a Multiplexor that its callers do not see."""

    if TYPE_CHECKING:

        def fileno(self) -> int: ...

    socket: KCMSocket
    on_disconnect: Callable[[Disconnection], object] | None
    _closed: bool
    _done = False  # whether closing has come to its end
    _transports: Transports
    _clones: Clones
    _told: _kernel.Descriptor
    _all: Readable | None
    _untold: dict[int, Disconnection]  # by their id()

    # ---- the life of a transport ----

    def _look(self) -> None:
        """Drain, take off and report the transports that have ended, as far as can be done now.

        Where something is raised on the way, the next look goes on.
        """
        if self._closed:  # meanwhile, by another thread or task
            self._check()
        try:
            self._transports.look(self._leaves_messages, self._told_of)
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            raise KCMOSError(
                error.errno or errno.EIO,
                "transports that have ended could not be taken off; the next call goes on "
                f"({error.strerror or error})",
            ) from error
        finally:
            self._settle()
        if not self._port.attached:
            # What a socket gave back when it was closed may wait for any other.
            self._serve_again()
            self._port.pull()
        for number in list(self._untold):
            if self.on_disconnect is None:
                break
            # C alone lies between taking one and calling: so each is told of once, also where
            # another thread tells too.
            untold = iter(functools.partial(self._untold.pop, number, None), None)
            next(map(self.on_disconnect, untold), None)

    def _leaves_messages(self) -> bool:
        return self._clones.may_receive() or self.socket.recv_disabled

    def _told_of(self, transport: Transport, disconnection: Disconnection) -> None:
        if disconnection.reason is not Reason.UNATTACHED:
            if self.on_disconnect is not None:
                self._untold[id(disconnection)] = disconnection
            self._port.report(disconnection)
        self._port.over = len(self._transports) == 1

    def _settle(self) -> None:
        """Have what depends on the transports and clones follow them."""
        port = self._port
        with lock:
            if self._transports.closed:
                return
            attached = len(self._transports) > 0
            if attached:
                port.over = False
            if port.attached != attached:
                self._clones.tell(not attached)
                port.attached = attached
            if self._transports.draining:
                port.patience = 0  # the next call asks whether there is something to do
            port.ahead = 1 if self._clones.may_receive() else AHEAD
            port.tell()

    def _let_clones_go(self) -> None:
        self._transports.let_clones_go()

    def _look_for_ends(self) -> None:
        if not self.socket.recv_disabled:
            raise KCMOSError(
                errno.EBUSY,
                "messages that are queued here would never be read; set socket.recv_disabled, and "
                "receive on clones",
            )
        if self._port.held:
            raise KCMOSError(
                errno.EBUSY,
                f"{self._port.held} messages that have been received here would never be read; "
                "receive them first",
            )
        self._look()

    def _unattached(self) -> Disconnected:
        self._port.over = False
        self._port.tell()
        if self._transports.last is None:
            return Disconnected(
                errno.ENOTCONN, "no transport is attached; attach a connected TCP socket first"
            )
        return Disconnected(
            self._transports.last.errno or errno.EPIPE,
            f"the last transport is gone, and all its messages were read: {self._transports.last}",
        )

    def _check(self) -> None:
        if self._closed:
            raise KCMOSError(errno.EBADF, "the multiplexor is closed")
        if self._port.inherited:
            raise self._not_after_fork()

    # ---- waiting ----

    def _receive_steps(self) -> Steps[None]:
        yield from self._until_readable(self.fileno())

    def _send_steps(self) -> Steps[None]:
        for wait in SendSpace(self._fd(), self._port.watch).waits():
            yield wait
            # The call looks after the transports itself, before it is tried again: looked after
            # here, the last one's end would be waited through.
            self._port.patience = 0

    def _event_steps(self) -> Steps[None]:
        while True:
            yield Wait(self._port.watch, IDLE)  # another call's look may have been told

    def _flush_steps(self) -> Steps[None]:
        self._check()
        if not self._push():
            return
        with SendSpace(self._fd(), self._port.watch) as space:
            left = 0
            try:
                while True:
                    if not (left := self._push()):
                        return
                    self._look()
                    if not (self._transports or self._port.queueing):
                        self._check()
                        raise Disconnected(
                            errno.EPIPE, f"{left} bytes were not sent, and no transport is left"
                        )
                    yield Wait(space.fileno(), IDLE)
                    space.clear()
            except TimeoutError:
                raise late_with(left) from None
            finally:
                self._transports.let_clones_go()

    def _flushes(self) -> bool:
        return not (self._closed or self._port.inherited)

    def _close(self) -> None:
        if self._done:
            return
        own, shared, described = not self._port.inherited, self._clones.may_receive(), repr(self)
        unread = self._port.held if own and shared else 0
        self._closed = True
        try:
            with lock:
                self._port.told = self._port.watch = -1  # before others may have these numbers
                if self._all is not None:
                    self._all.close()
                self._transports.close(restore=own and not shared, hand_over=own)
                self._told.close()
                self._clones.close()
        finally:
            self.socket._close()
        self._done = True  # before a warning, which may be an exception
        if unread:
            warnings.warn(unread_text(described, unread), UnreadWarning, stacklevel=3)

    def __del__(self) -> None:
        if not hasattr(self, "_port") or self._done:
            return
        closed, described = self._closed, repr(self)
        self._close()  # first: a warning may be an exception
        if not closed:
            warnings.warn(f"{described} was not closed", ResourceWarning, source=self, stacklevel=2)
