"""What a message costs among many: clones of a multiplexor, transports of it.

    ci/vm --icount --cpus 1 -- env PYTHONPATH=. python bench/many.py [SECTION...] [--json]

Counted from the first write to the last message; every message is a segment of its own.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
from collections.abc import Callable

import pykcm
from bench.core import FRAMING, KEEP, Row, in_turn, main, message
from pykcm import _loopback

SIZE = 64


def with_clones(number: int) -> Callable[[], int]:
    """Receive with so many clones, those that have a message."""
    near, far = _loopback.connection()
    mux = pykcm.Multiplexor(FRAMING)
    mux.attach(near)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sockets = {each.fileno(): each for each in (mux.clone() for _ in range(number))}
    mux.socket.recv_disabled = True
    waiting = select.epoll()
    for fd in sockets:
        waiting.register(fd, select.EPOLLIN)
    KEEP.append((mux, sockets))
    data, count = message(SIZE), 256

    def side() -> int:
        for _ in range(count):
            far.send(data)
        done = 0
        while done < count:
            for fd, _ in waiting.poll(5):
                with contextlib.suppress(BlockingIOError):
                    sockets[fd].recv(timeout=0)
                    done += 1
        return done

    return side


def clones() -> list[Row]:
    """64 clones beside one."""
    costs = in_turn({"64": with_clones(64), "1": with_clones(1)}, lambda: None)
    return [("a message received: 64 clones ÷ 1", costs["64"] / costs["1"], "≤ 1.2")]


def with_connections(
    number: int,
) -> tuple[Callable[[], int], Callable[[], int], Callable[[], None]]:
    """Receive from and send over so many connections."""
    mux = pykcm.Multiplexor(FRAMING)
    fars = []
    for _ in range(number):
        near, far = _loopback.connection()
        mux.attach(near)
        for tcp in (near, far):
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fars.append(far)
    KEEP.append((mux, fars))
    data, count = message(SIZE), 1000

    def receive() -> int:
        done = 0
        for i in range(count):
            fars[i % number].send(data)
            if i % 50 == 49:
                done += len(mux.recv_many(50))
        while done < count:
            done += len(mux.recv_many(50))
        return done

    def send() -> int:
        for _ in range(count):
            mux.send(data)
        return count

    return receive, send, functools.partial(empty, fars)


def over_tcp(number: int) -> tuple[Callable[[], int], Callable[[], None]]:
    """Send over so many connections in turn, without KCM."""
    pairs = [_loopback.connection() for _ in range(number)]
    for pair in pairs:
        for tcp in pair:
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data, count = message(SIZE), 1000

    def send() -> int:
        for i in range(count):
            pairs[i % number][0].send(data)
        return count

    return send, functools.partial(empty, [far for _, far in pairs])


def empty(fars: list[socket.socket]) -> None:
    """Read at the peers what was sent."""
    for far in fars:
        with contextlib.suppress(BlockingIOError):
            while far.recv(1 << 16, socket.MSG_DONTWAIT):
                pass


def connections() -> list[Row]:
    """1,000 connections beside one."""
    receive_many, send_many, empty_many = with_connections(1000)
    receive_one, send_one, empty_one = with_connections(1)
    tcp_many, read_many = over_tcp(1000)
    tcp_one, read_one = over_tcp(1)

    def before() -> None:
        for each in (empty_many, empty_one, read_many, read_one):
            each()

    received = in_turn({"many": receive_many, "one": receive_one}, lambda: None)
    sent = in_turn(
        {"many": send_many, "one": send_one, "tcp many": tcp_many, "tcp one": tcp_one}, before
    )
    return [
        ("received: 1,000 connections ÷ 1", received["many"] / received["one"], "≤ 1.2"),
        ("sent: 1,000 connections ÷ 1", sent["many"] / sent["one"], "≤ 1.2"),
        ("sent by plain TCP: 1,000 connections ÷ 1", sent["tcp many"] / sent["tcp one"], "none"),
        ("sent over 1,000 connections ÷ plain TCP", sent["many"] / sent["tcp many"], "none"),
        ("sent over 1 connection ÷ plain TCP", sent["one"] / sent["tcp one"], "none"),
    ]


SECTIONS: dict[str, Callable[[], list[Row]]] = {"clones": clones, "connections": connections}

if __name__ == "__main__":
    main(SECTIONS)
