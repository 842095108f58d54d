"""What a clone that a Multiplexor made knows of it: whether a transport is left."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable
from typing import TypeAlias

from pykcm import _kernel
from pykcm._messages import Messages, Port
from pykcm._wait import explained
from pykcm.errors import Disconnected

#: The clones of a Multiplexor, and their Ports, which outlive them.
Made: TypeAlias = "list[tuple[weakref.ref[Following], Port]]"


class Following(Messages):
    """The part of a KCMSocket that learns of the end."""

    _end: _kernel.Descriptor | None
    # Of a Multiplexor's own socket: how it looks after its transports.
    _watcher: weakref.WeakMethod[Callable[[], None]] | None = None

    # Where a Multiplexor writes down its clones, and these their own.
    _made: Made | None = None

    def _follow(self, end: _kernel.Descriptor, made: Made | None = None) -> None:
        """Learn from an event that a Multiplexor's last transport has gone.

        Args:
            made: its clones, to be counted among them; None in another process.
        """
        self._end = end
        self._port.watch = end.fileno()
        self._port.attached = self._port.watched = True
        self._made = made
        if made is not None:
            made.append((weakref.ref(self), self._port))

    def _end_again(self) -> _kernel.Descriptor | None:
        """The event's descriptor once more, for another socket; None where there is no event."""
        if self._end is None:
            return None
        with explained():
            return _kernel.Descriptor.duplicate(self._end.fileno())

    def _look(self) -> None:
        """Whether a transport is left.

        What was given back when the last one went may wait for any socket: it is received before
        the end is believed.
        """
        if self._end is None:
            if self._watcher is not None and (look := self._watcher()) is not None:
                look()
            return
        ended = _kernel.is_readable(self._end.fileno())
        if ended:
            self._serve_again()
        self._port.attached = not ended
        if ended:
            self._port.pull()

    def _unattached(self) -> Disconnected:
        return Disconnected(
            errno.EPIPE,
            "the multiplexor's last transport is gone, and all messages for this socket were read",
        )
