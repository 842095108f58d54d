"""The clones of a multiplexor: whether any may receive, and how they learn of the end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pykcm import _kernel
from pykcm._wait import explained

if TYPE_CHECKING:
    from pykcm._following import Made
    from pykcm.socket import KCMSocket


class Clones:
    """The clones of one KCM socket.

    Args:
        kcm: the multiplexor's own KCM socket.
    """

    def __init__(self, kcm: KCMSocket) -> None:
        self._kcm = kcm
        self._made: Made = []  # with the clones that these have made
        # Readable while no transport is left; each clone has a descriptor of it, in whatever
        # process it is.
        self._end = _kernel.Descriptor.event()

    def make(self) -> KCMSocket:
        """A new one, which is told of the end."""
        clone = self._kcm.clone()
        try:
            with explained():
                end = _kernel.Descriptor.duplicate(self._end.fileno())
        except BaseException:
            clone.close(0)
            raise
        clone._follow(end, self._made)
        return clone

    def may_receive(self) -> bool:
        """Whether another socket may receive some of the messages.

        A clone that was closed before any other process could have it does not count, whoever forks
        afterwards.
        """
        for made in list(self._made):
            clone, port = made
            if not port.shared and (clone() is None or port.fd < 0):
                with contextlib.suppress(ValueError):  # another thread has removed it
                    self._made.remove(made)
        return bool(self._made)

    def tell(self, ended: bool) -> None:
        """Tell the clones whether the last transport has gone."""
        self._end.set_event(ended)

    def close(self) -> None:
        """Tell no more; the clones go on."""
        self._end.close()
