"""How a KCM socket is closed: what is lost with it is said."""

from __future__ import annotations

import contextlib
import errno
import socket as _socket
import warnings
import weakref
from typing import TYPE_CHECKING

from pykcm._messages import Messages, unread_text
from pykcm._standard import StandardCalls
from pykcm._tasks import closing
from pykcm.errors import KCMOSError, UnreadWarning, UnsentWarning

if TYPE_CHECKING:
    from pykcm import _kernel
    from pykcm._attaching import Attaching
    from pykcm._wait import Readable


class Closing(Messages, StandardCalls):
    """The part of a KCMSocket that ends it."""

    _end: _kernel.Descriptor | None
    _told: _kernel.Descriptor | None
    _all: Readable | None
    _attaching: Attaching
    _same: list[weakref.ref[Closing]]  # it and its duplicates, of which none is closed

    def _flushes(self) -> bool:
        """Whether closing has to wait for what would be lost."""
        with contextlib.suppress(ValueError):  # so that of two that are closed at once one waits
            self._same.remove(weakref.ref(self))
        return bool(self._left_behind()) and not self._port.open

    def _others(self) -> list[Closing]:
        others = [each() for each in list(self._same)]
        return [other for other in others if other is not None and other is not self]

    def _count_in(self, other: Closing) -> None:
        """Another object has become a duplicate of this one."""
        if not self._same:
            self._same.append(weakref.ref(self))
        # The dead are let go of, but not by a new list, of which others would not know.
        for each in [each for each in self._same if each() is None]:
            self._same.remove(each)
        self._same.append(weakref.ref(other))
        other._same = self._same

    def detach(self) -> int:
        """As for `socket.socket`: the descriptor, which is the caller's to close.

        Raises:
            KCMOSError: EBUSY, the kernel has taken a message in part; `flush` hands over the rest.
        """
        port = self._port
        if port.fd >= 0 and port.rest and not port.inherited:
            raise KCMOSError(
                errno.EBUSY,
                f"the kernel has taken a message but for {port.rest} bytes, which this object "
                "keeps, and what is sent without it would go on with that message; flush first",
            )
        if unread := self._unread():
            # First: where it is raised, the number would be lost with what was returned.
            warnings.warn(unread_text(repr(self), unread), UnreadWarning, stacklevel=2)
        port.fd = -1
        port.shared = True
        self._let_go()
        return super().detach()

    def _close(self) -> None:
        left, rest, unread = self._left_behind(), self._port.rest, self._unread()
        described = repr(self)
        self._note_forks()
        fd, self._port.fd = self._port.fd, -1
        closing(fd)
        _socket.socket.close(self)  # not Messages.close, which has called this
        self._let_go()
        _warn(described, unread, left, rest)

    def _unread(self) -> int:
        """Messages in hand that the multiplexor's other sockets would have got otherwise."""
        port = self._port
        mine = port.fd >= 0 and not port.bound and not port.inherited
        shared = self._attaching.has_siblings or port.shared or port.forked
        return port.held if mine and shared else 0

    def _let_go(self) -> None:
        self._port.told = self._port.watch = -1  # before others may have these numbers
        self._attaching.close()
        for descriptor in (self._end, self._told, self._all):
            if descriptor is not None:
                descriptor.close()

    def _disown(self) -> None:
        """Let go of a descriptor that stays its giver's, also where the object is half made."""
        if hasattr(self, "_port"):
            self._port.fd = -1
        _socket.socket.detach(self)

    def _note_forks(self) -> None:
        """Another process may have this socket after it is closed here: who forks later has not."""
        if self._port.forked:
            self._port.shared = True

    def _left_behind(self) -> int:
        """Bytes that are lost when this object's descriptor is closed.

        What is queued in the kernel stays while a duplicate has the socket open.  The rest of a
        message that the kernel took in part is this object's alone.
        """
        port = self._port
        if port.fd < 0 or port.inherited:
            return 0
        if any(other._port.fd >= 0 for other in self._others()):
            return port.rest
        with contextlib.suppress(OSError):
            return self.unsent
        return port.rest

    def __del__(self) -> None:
        # The interpreter closes it, with a warning that it hides by default.
        if not hasattr(self, "_port"):
            return
        try:
            left, rest, unread = self._left_behind(), self._port.rest, self._unread()
            described = repr(self)
            self._note_forks()
            self._let_go()
        finally:
            # Whatever is raised, and before the warnings, which may be errors: nobody finalizes it
            # once more.  PyPy's socket has none: it is closed by what Python does not see.
            if finish := getattr(super(), "__del__", None):
                finish()
        _warn(described, unread, left, rest, self)


def _warn(
    described: str, unread: int, unsent: int, rest: int, garbage: Closing | None = None
) -> None:
    """Say what is lost with a socket: both, also where the first warning is an error.

    Args:
        rest: how many of the unsent bytes are of a message that the kernel took in part.
        garbage: the socket, if nobody closed it.
    """
    level = 4 if garbage is None else 3  # who called `close`, or what let go of it
    try:
        if unread:
            warnings.warn(unread_text(described, unread), UnreadWarning, level, garbage)
    finally:
        if unsent:
            text = f"is closed with {unsent} bytes that no transport has taken; they are lost"
            if garbage is not None:
                text = f"was not closed, and {unsent} bytes that no transport has taken are lost"
            if rest:
                text += f", and with {rest} of them a message is cut"
            else:
                text += " unless another process has this socket open"
            warnings.warn(f"{described} {text}", UnsentWarning, level, garbage)
