"""What callers write, for the type checkers alone: test_typing.py has them read it.

Each line stands for one that an earlier interface made them refuse, or could.
"""

from __future__ import annotations

import socket
from typing import Any

from typing_extensions import assert_type

import pykcm
from pykcm import Disconnection, KCMSocket, Multiplexor, Reason


def report(disconnection: Disconnection) -> None:
    assert_type(disconnection.tcp, socket.socket)
    assert_type(disconnection.reason, Reason)
    assert_type(disconnection.errno, int)
    assert_type(disconnection.cut, int)
    disconnection.tcp.close()
    tcp, _peer, _reason, _errno, _cut = disconnection
    tcp.close()


class Peers:
    """A method, and one that returns something, are callbacks too."""

    def __init__(self, mux: Multiplexor) -> None:
        self.gone: list[Disconnection] = []
        mux.on_disconnect = self.gone.append
        mux.on_disconnect = self.count
        mux.on_disconnect = lambda disconnection: disconnection.tcp.fileno()
        mux.on_disconnect = report
        mux.on_disconnect = None

    def count(self, disconnection: Disconnection) -> int:
        self.gone.append(disconnection)
        return len(self.gone)


def multiplexor(mux: Multiplexor, tcp: socket.socket) -> None:
    mux.attach(tcp, hand_over=True, allow_small_buffer=True)
    assert_type(mux.transports[0].fileno(), int)
    assert_type(mux.unattach(tcp, timeout=1.0), Disconnection)
    assert_type(mux.recv(timeout=None), bytes)
    assert_type(mux.recv_many(10, timeout=0.5), list[bytes])
    assert_type(mux.send(bytearray(b"x"), socket.MSG_DONTWAIT, timeout=1), int)
    assert_type(mux.send_many([b"x", memoryview(b"y")]), int)
    assert_type(mux.sent_many, int)
    assert_type(mux.unsent, int)
    assert_type(mux.wait_disconnection(1), Disconnection)
    assert_type([end.peer for end in mux.disconnections()], list[Any])
    assert_type([message for message in mux], list[bytes])  # noqa: C416
    assert_type(mux.clone(), KCMSocket)
    assert_type(mux.socket, KCMSocket)
    with mux as entered:
        assert_type(entered, Multiplexor)


def standard(kcm: KCMSocket, tcp: socket.socket, framing: pykcm.Framing) -> None:
    kcm.attach(tcp, framing)
    kcm.attach(tcp.fileno(), framing)
    assert_type(kcm.recv(4096), bytes)
    assert_type(kcm.recv(4096, socket.MSG_PEEK), bytes)
    assert_type(kcm.recv(timeout=1), bytes)
    assert_type(kcm.recv_into(bytearray(10)), int)
    assert_type(kcm.recvmsg(10)[0], bytes)
    plain: socket.socket = kcm
    plain.send(b"x")
    kcm.close(linger=0)
    with kcm.clone() as clone, kcm.dup() as duplicate:
        assert_type(clone, KCMSocket)
        assert_type(duplicate, KCMSocket)


async def in_a_task(mux: Multiplexor, kcm: KCMSocket, tcp: socket.socket) -> None:
    assert_type(await mux.arecv(), bytes)
    assert_type(await mux.arecv_many(10), list[bytes])
    assert_type(await mux.asend(b"x"), int)
    assert_type(await mux.asend_many([b"x"]), int)
    assert_type(await mux.aunattach(tcp), Disconnection)
    await mux.aflush()
    assert_type(await kcm.arecv(), bytes)
    assert_type([message async for message in mux], list[bytes])
    async with mux as entered, kcm as socket_:
        assert_type(entered, Multiplexor)
        assert_type(socket_, KCMSocket)
    await mux.aclose(linger=0)
    await kcm.aclose(0)
