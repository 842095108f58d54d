"""What a clone that a Multiplexor made knows of it: whether a transport is left."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable

from pykcm import _kernel
from pykcm._messages import Messages
from pykcm.errors import Disconnected


class Following(Messages):
    """The part of a KCMSocket that learns of the end."""

    _end: _kernel.Descriptor | None
    # Of a Multiplexor's own socket: how it looks after its transports.
    _watcher: weakref.WeakMethod[Callable[[], None]] | None = None

    def _follow(self, end: _kernel.Descriptor) -> None:
        """Learn from an event that a Multiplexor's last transport has gone."""
        self._end = end
        self._port.watch = end.fileno()
        self._port.attached = self._port.watched = True

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
