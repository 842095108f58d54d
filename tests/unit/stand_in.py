"""A Multiplexor where there is no AF_KCM: all of it but the kernel."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pykcm import Multiplexor, _kernel
from pykcm._binding import lib
from pykcm._messages import Messages
from tests.strikes import Connections

PATIENCE = 20.0


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for a condition, and fail if it does not come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s"
        time.sleep(0.005)


class World:
    """A Multiplexor with one live transport; `wire` is the other end of its socket."""

    def __init__(self) -> None:
        self.connections = Connections()
        self.mux = Multiplexor(0)
        ours, self.wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.dup2(ours.fileno(), self.mux.socket.fileno(), inheritable=False)
        ours.close()
        self.near, self.far = self.connections.new()
        self.mux.attach(self.near)
        self.count = 0

    def close(self) -> None:
        self.mux.close(0)
        self.wire.close()
        for tcp in (self.near, self.far):
            tcp.close()
        self.connections.close()

    def arrive(self, count: int) -> list[bytes]:
        """Messages that wait in the kernel."""
        self.count += count
        messages = [b"%d" % number for number in range(self.count - count, self.count)]
        for message in messages:
            self.wire.send(message)
        self.mux._port.patience = 0
        return messages

    def true(self) -> None:
        """The object's own books are right."""
        mux = self.mux
        assert not mux._transports.lock._is_owned(), "the lock is held"  # type: ignore[attr-defined]
        assert mux.transports == [self.near]
        assert list(mux.disconnections()) == []
        assert not mux._transports.draining
        assert not _kernel.is_readable(mux._port.watch), "it is readable for ever"
        assert not mux._transports._drain._clones
        assert not mux._port.holding
        assert mux._port.attached
        assert mux._transports._by_fd.keys() == {t.fd for t in mux._transports}
        assert set(mux._transports._by_tcp) == {id(self.near)}

    def rest(self, got: list[bytes], expected: list[bytes]) -> None:
        """What was not received is received now, in order, and nothing else."""
        while len(got) < len(expected):
            got += self.mux.recv_many(timeout=PATIENCE)
        assert got == expected
        with contextlib.suppress(TimeoutError):
            raise AssertionError(self.mux.recv(timeout=0))
        self.true()


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a Unix socket of packets stand in for a KCM socket, whose own calls do nothing."""

    def attach(kcm_fd: int, tcp_fd: int, program_fd: int, done: Any = None) -> None:
        done[0] = 1

    def unattach(kcm_fd: int, tcp_fd: int, attached: Any = None) -> None:
        attached[0] = 0

    def get(fd: int, level: int, *arguments: Any) -> int:
        return 0 if level == lib.SOL_KCM else get_integer(fd, level, *arguments)

    def clone_onto(kcm_fd: int, fd: int) -> None:
        os.dup2(kcm_fd, fd, inheritable=False)

    get_integer = _kernel.get_integer
    unix = SimpleNamespace(AF_KCM=socket.AF_UNIX, KCMPROTO_CONNECTED=0)
    unix.SOL_KCM, unix.KCM_RECV_DISABLE = lib.SOL_KCM, lib.KCM_RECV_DISABLE
    monkeypatch.setattr("pykcm.socket.lib", unix)
    monkeypatch.setattr(_kernel, "attach", attach)
    monkeypatch.setattr(_kernel, "unattach", unattach)
    monkeypatch.setattr(_kernel, "get_integer", get)
    monkeypatch.setattr(Messages, "_serve_again", lambda self: None)
    monkeypatch.setattr(_kernel, "clone_onto", clone_onto)
    monkeypatch.setattr(_kernel.Descriptor, "clone", _kernel.Descriptor.duplicate)
