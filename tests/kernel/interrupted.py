"""A Multiplexor that is to live on, whatever strikes a call on it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable

import pykcm
from pykcm import Multiplexor
from tests.strikes import Case, Connections, Strike, strike_everywhere

from .connections import FRAMING, PATIENCE, eventually, message

TYPES = [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]


class World:
    """A Multiplexor with one live transport, which all strikes of a test have to leave alive."""

    def __init__(self, type: int = socket.SOCK_DGRAM) -> None:
        self.connections = Connections()
        self.type = type
        self.program = FRAMING.load()
        self.mux = Multiplexor(self.program, type=type)
        self.near, self.far = self.connections.new()
        self.far.settimeout(PATIENCE)
        self.mux.attach(self.near)
        self.count = itertools.count()
        self.told: list[socket.socket] = []

    def close(self) -> None:
        self.mux.close()
        self.program.close()
        for tcp in (self.near, self.far):
            tcp.close()
        self.connections.close()

    def messages(self, count: int) -> list[bytes]:
        """Messages that never were before."""
        return [message(b"%d" % next(self.count)) for _ in range(count)]

    def arrive(self, count: int, far: socket.socket | None = None) -> list[bytes]:
        """Messages that wait in the kernel."""
        messages = self.messages(count)
        (far or self.far).sendall(b"".join(messages))
        eventually(lambda: pykcm._kernel.is_readable(self.mux.socket.fileno()))
        return messages

    def look(self) -> None:
        """Have the next call look after the transports."""
        self.mux._port.patience = 0

    def rest(self, got: list[bytes], expected: list[bytes]) -> None:
        """What was not received is received now, in order, and nothing else."""
        assert not self.mux._transports.lock._is_owned(), "the lock is held"  # type: ignore[attr-defined]
        while len(got) < len(expected):
            got += self.mux.recv_many(timeout=PATIENCE)
        assert got == expected
        with contextlib.suppress(TimeoutError):
            raise AssertionError(self.mux.recv(timeout=0))
        self.true()

    def true(self) -> None:
        """The object's own books are right."""
        assert not self.mux._transports.lock._is_owned(), "the lock is held"  # type: ignore[attr-defined]
        assert self.mux.transports == [self.near]
        assert list(self.mux.disconnections()) == []
        assert not self.mux._transports.draining
        assert not self.mux._transports._drain._clones
        assert not self.mux._port.holding
        assert self.mux._port.attached


def strike(case: Callable[[], Case], at_least: int) -> None:
    start = time.monotonic()
    count = strike_everywhere(case, lines=True)
    print(f"{count} strikes in {time.monotonic() - start:.1f} s")
    assert count >= at_least, "was the call traced?"


def passed(outcome: object, *allowed: type[BaseException]) -> None:
    """The call returned, was struck, or raised what it may."""
    if isinstance(outcome, BaseException) and not isinstance(outcome, (Strike, *allowed)):
        raise outcome


class Full:
    """A Multiplexor whose queue is full."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        world.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.sent: list[bytes] = []
        still = 0
        while still < 3:
            still += 1
            with contextlib.suppress(TimeoutError):
                while True:
                    one = message(b"%d" % next(world.count) + bytes(20_000))
                    world.mux.send(one, timeout=0.05)
                    self.sent.append(one)
                    still = 0

    def read(self, extra: list[bytes]) -> None:
        # Through a small window each few messages wait for a delayed acknowledgement.
        self.world.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        data = b"".join(self.sent + extra)
        came = bytearray()
        while len(came) < len(data):
            came += self.world.far.recv(1 << 20)
        assert came == data
