"""A Multiplexor of user space, for tests of what is built on one where there is no KCM.

It has what `kcm connect` uses: messages are found by the framing's `measure`, and connections take
turns in sending.
"""

from __future__ import annotations

import errno
import select
import socket
from collections import deque
from collections.abc import Callable

from pykcm import Disconnected, Disconnection, Framing, Reason


class Multiplexor:
    def __init__(self, framing: Framing, *, queue_unattached: bool = False) -> None:
        self._framing = framing
        self._queueing = queue_unattached
        self._epoll = select.epoll()
        self._buffers: dict[socket.socket, bytes] = {}
        self._inbox: deque[bytes] = deque()
        self._queue: deque[bytes] = deque()
        self._over = False
        self.on_disconnect: Callable[[Disconnection], object] | None = None

    @property
    def transports(self) -> list[socket.socket]:
        return list(self._buffers)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def attach(self, tcp: socket.socket, *, hand_over: bool = False) -> None:
        self._buffers[tcp] = b""
        self._epoll.register(tcp, select.EPOLLIN)
        self._over = False
        while self._queue:
            tcp.sendall(self._queue.popleft())

    def send(self, message: bytes, *, timeout: float | None = None) -> None:
        if not self._buffers:
            if not self._queueing:
                raise Disconnected(errno.EPIPE, "no transport")
            self._queue.append(message)
            return
        tcp = next(iter(self._buffers))
        self._buffers[tcp] = self._buffers.pop(tcp)  # the next one's turn
        tcp.sendall(message)

    def recv_many(self, *, timeout: float) -> list[bytes]:
        assert timeout == 0
        for tcp in [tcp for tcp in self._buffers if select.select([tcp], [], [], 0)[0]]:
            self._read(tcp)
        if self._inbox:
            messages, self._inbox = list(self._inbox), deque()
            return messages
        if self._over:
            self._over = False
            raise Disconnected(errno.EPIPE, "the last transport is gone")
        raise TimeoutError

    def _read(self, tcp: socket.socket) -> None:
        try:
            data = tcp.recv(1 << 16)
            reason = Reason.PEER_CLOSED
        except ConnectionResetError:
            data, reason = b"", Reason.RESET
        buffer = self._buffers[tcp] + data
        while (length := self._framing.measure(buffer)) and length <= len(buffer):
            self._inbox.append(buffer[:length])
            buffer = buffer[length:]
        self._buffers[tcp] = buffer
        if not data:
            self._epoll.unregister(tcp)
            del self._buffers[tcp]
            peer = ("127.0.0.1", 1)
            tcp.close()
            self._over = not self._buffers
            if self.on_disconnect is not None:
                self.on_disconnect(Disconnection(tcp, peer, reason, 0, len(buffer)))

    def close(self) -> None:
        for tcp in self._buffers:
            tcp.close()
        self._epoll.close()
