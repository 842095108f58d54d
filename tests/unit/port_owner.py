"""An owner of a Port over any descriptor: what KCMSocket is to the compiled calls, without KCM."""

from __future__ import annotations

import errno
import socket
from types import ModuleType
from typing import Any

from pykcm import _kernel, _messages, _slowpath
from pykcm._messages import Messages
from pykcm._standard import StandardCalls
from pykcm._wait import SendSpace, Steps, Wait
from pykcm.errors import Disconnected, MessageTruncated

try:
    from pykcm import _fastpath
except ImportError:
    PATHS: list[ModuleType] = [_slowpath]
else:
    PATHS = [_fastpath, _slowpath]

_slowpath.setup(
    _messages._make_error,
    _messages._make_argument_error,
    _kernel.copy_of,
    MessageTruncated,
    Disconnected,
)


class Hooks(Messages):
    """What the calls of either path make use of."""

    type: int
    timeout: float | None = None

    def gettimeout(self) -> float | None:
        return self.timeout

    def _receive_steps(self) -> Steps[None]:
        while True:
            yield Wait(self._fd())

    def _send_steps(self) -> Steps[None]:
        yield from SendSpace(self._fd()).waits()

    def _look(self) -> None:
        pass

    def _serve_again(self) -> None:
        pass

    def _unattached(self) -> Disconnected:
        return Disconnected(errno.EPIPE, "the end")

    _recv_into = StandardCalls._recv_into
    _recvfrom = StandardCalls._recvfrom
    _recvfrom_into = StandardCalls._recvfrom_into
    _recvmsg = StandardCalls._recvmsg
    _recvmsg_into = StandardCalls._recvmsg_into
    _message_flags = StandardCalls._message_flags


def own(path: ModuleType, pair: socket.socket, room: int = 1000) -> Any:
    """A new owner of a socket's descriptor, with the calls of one path."""
    owner = type("Owner", (Hooks, path.SocketCalls), {})()
    owner.type = pair.type
    owner._port = path.Port(pair.fileno(), pair.type == socket.SOCK_SEQPACKET, room)
    owner.path = path
    return owner
