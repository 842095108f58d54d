"""The peers of a stress: each makes connections, sends messages and looks at what arrives."""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
import threading
from typing import Any

from pykcm.selftest.messages import LENGTH, decode, encode
from pykcm.selftest.stress.shared import (
    BODIES,
    CONNECTED,
    MAX_BODY,
    ROOM,
    TICK,
    Shared,
    Work,
    threads,
)

#: The first bytes on a connection, which the other end reads before it attaches it: its number,
#: and the index in BODIES of its messages' length.
HELLO = struct.Struct(">IB")

#: What ends a connection: the peer's FIN after all was written, its RST at any time, or the
#: unattaching at any time.
ENDS = ("fin", "reset", "unattach")


def messages(shared: Shared, connection: int) -> list[bytes]:
    """What the peer of a connection has to send; the same at every call."""
    rng = shared.random(connection)
    body = BODIES[rng.choice(shared.bodies)]
    pool = rng.randbytes(MAX_BODY)
    return [
        encode(
            connection,
            number,
            pool[: rng.randint(0, MAX_BODY >> rng.randrange(10)) if body is None else body],
        )
        for number in range(rng.randint(1, 150))
    ]


def body_of(shared: Shared, connection: int) -> int:
    """The index in BODIES that `messages` took."""
    return shared.random(connection).choice(shared.bodies)


def peer(number: int, slots: int) -> Work:
    """Makes connections, sends messages over them, and looks at what arrives."""

    def work(shared: Shared) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def connect(slot: int) -> None:
            made = 0
            while shared.until(CONNECTED):
                name = (number << 24) | (slot << 16) | made
                found.append(_Connection(shared, name).run())
                made += 1

        threads(*(functools.partial(connect, slot) for slot in range(slots)))
        return {"connections": found}

    return work


class _Connection:
    """One connection, seen from the peer."""

    def __init__(self, shared: Shared, name: int) -> None:
        self._shared = shared
        self._name = name
        self._rng = shared.random(name, "peer")
        self._received = bytearray()
        self._ended = False

    def run(self) -> dict[str, Any]:
        """Write all, read until the end, and say how much was written, and which messages read."""
        end = self._rng.choice(ENDS if self._shared.rough else ("fin", "unattach"))
        data = b"".join(messages(self._shared, self._name))
        written = 0
        with socket.create_connection(self._shared.address, 10) as tcp:
            tcp.sendall(HELLO.pack(self._name, body_of(self._shared, self._name)))
            tcp.settimeout(TICK)
            reader = threading.Thread(target=self._read, args=(tcp,))
            reader.start()
            stop = self._rng.randrange(len(data)) if end == "reset" else len(data)
            while written < stop and not self._ended:
                size = self._rng.randint(1, 1 << self._rng.randint(1, 17))
                with contextlib.suppress(TimeoutError, ConnectionError):
                    written += tcp.send(data[written : min(stop, written + size)])
            if end == "reset":
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._ended = True
            elif end == "fin":
                with contextlib.suppress(OSError):
                    tcp.shutdown(socket.SHUT_WR)
            reader.join()
        read, wrong = self._parsed()
        return {"name": self._name, "end": end, "written": written, "read": read, "wrong": wrong}

    def _read(self, tcp: socket.socket) -> None:
        """Until the other end closes."""
        while not self._ended:
            try:
                piece = tcp.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionError:
                piece = b""
            self._received += piece
            self._ended = self._ended or not piece

    def _parsed(self) -> tuple[list[tuple[int, int]], int]:
        """Senders and numbers of what arrived, and how many messages are damaged.

        The last one may lack its end: the transport that it began on was taken from KCM.
        """
        read: list[tuple[int, int]] = []
        wrong = place = 0
        while place + LENGTH.size <= len(self._received):
            size = LENGTH.unpack_from(self._received, place)[0] + LENGTH.size
            if size > ROOM or place + size > len(self._received):
                return read, wrong + (size > ROOM)
            identity = decode(bytes(self._received[place : place + size]))
            if identity:
                read.append(identity)
            wrong += identity is None
            place += size
        return read, wrong
