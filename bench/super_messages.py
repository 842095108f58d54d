"""What super messages gain: beside C one message at a time, and a splitter on plain TCP.

    ci/vm --icount --cpus 1 -- env PYTHONPATH=. python bench/super_messages.py [SECTION...] [--json]

Unlike bench/core.py the clock runs from the first write to the last message, so that all that the
kernel does for a message is counted: its TCP, its parsing, its queues.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable

import pykcm
from bench.core import (
    FRAMING,
    KEEP,
    Row,
    c_send,
    clock,
    connected,
    in_turn,
    main,
    message,
)
from pykcm import _loopback
from pykcm._binding import ffi, lib

BATCH = 256
Receive = Callable[[int], int]


def c_receive(fd: int) -> Receive:
    """recvmmsg into memory that is used again, until so many bytes have come."""
    room = 1 << 17
    memory = ffi.new("char[]", room * 64)
    lengths, flags = ffi.new("unsigned int[]", 64), ffi.new("int[]", 64)

    def receive(size: int) -> int:
        while size > 0:
            count = lib.pykcm_recvmmsg(fd, memory, room * 64, room, 64, 0x40, lengths, flags)
            for i in range(max(count, 0)):
                size -= lengths[i]
        return size

    return receive


def many(mux: pykcm.Multiplexor) -> Receive:
    def receive(count: int) -> int:
        while count > 0:
            count -= len(mux.recv_many(1024))
        return count

    return receive


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """The tuned splitter: lengths by int.from_bytes, slices of bytes; and what is left."""
    from_bytes = int.from_bytes
    at, end = 0, len(data)
    messages = []
    while end - at >= 4:
        after = at + 4 + from_bytes(data[at : at + 4], "big")
        if after > end:
            break
        messages.append(data[at:after])
        at = after
    return messages, data[at:]


def splitter(tcp: socket.socket) -> Receive:
    """One recv of what is there at a time."""
    left = b""

    def receive(count: int) -> int:
        nonlocal left
        while count > 0:
            data = tcp.recv(1 << 18)
            messages, left = split(left + data if left else data)
            count -= len(messages)
        return count

    return receive


def reader(tcp: socket.socket) -> Receive:
    """Only read as many bytes, and divide nothing: what no way to divide a stream can go below."""

    def receive(size: int) -> int:
        while size > 0:
            size -= len(tcp.recv(1 << 18))
        return size

    return receive


def multiplexed(batch: int) -> tuple[pykcm.Multiplexor, socket.socket]:
    near, far = _loopback.connection()
    mux = pykcm.Multiplexor(FRAMING, batch=batch)
    mux.attach(near)
    for tcp in (near, far):
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return mux, far


def receiving_of(size: int, goals: tuple[str, str]) -> list[Row]:
    """A coalesced stream of messages of a size."""
    count = min(1024, 60_000 // size)
    data = message(size) * count
    kcm, one = connected()
    mux, far = multiplexed(BATCH)
    near, plain = _loopback.connection()
    undivided, other = _loopback.connection()

    def side(tcp: socket.socket, receive: Receive, expected: int) -> int:
        for _ in range(4):
            tcp.sendall(data)
            if receive(expected):
                raise AssertionError("more or less was received than sent")
        return 4 * count

    costs = in_turn(
        {
            "c": functools.partial(side, one.far, c_receive(kcm.fileno()), len(data)),
            "batch": functools.partial(side, far, many(mux), count),
            "split": functools.partial(side, plain, splitter(near), count),
            "read": functools.partial(side, other, reader(undivided), len(data)),
        },
        lambda: None,
    )
    one.plain.detach()
    KEEP.append((kcm, mux, near, undivided))
    return [
        (f"recv_many, batch, ÷ C's recvmmsg, {size} B", costs["batch"] / costs["c"], goals[0]),
        (f"the same ÷ a splitter on TCP, {size} B", costs["batch"] / costs["split"], goals[1]),
        (f"only read ÷ a splitter on TCP, {size} B", costs["read"] / costs["split"], "none"),
    ]


def receiving() -> list[Row]:
    """The same for each size."""
    return [
        *receiving_of(64, ("≤ 0.35", "≤ 0.30")),
        *receiving_of(1024, ("≤ 0.7", "≤ 0.5")),
        *receiving_of(16384, ("none", "none")),
    ]


def sending_of(size: int, goal: str) -> list[Row]:
    """Messages of a size: the calls alone, and with what the peer needs to read them."""
    data, count = message(size), 64
    kcm, one = connected()
    mux, far = multiplexed(BATCH)
    messages = [data] * count
    send = c_send(kcm.fileno(), data)
    memory = bytearray(1 << 18)

    def drain(tcp: socket.socket) -> int:
        left = size * count
        while left:
            left -= tcp.recv_into(memory)
        return count

    def by_c() -> int:
        return send(count)

    def batch() -> int:
        if mux.send_many(messages) != count:
            raise AssertionError("not all was sent")
        return count

    joined = b"".join(messages)

    def ready() -> int:
        """The same bytes, joined beforehand: what is left is the kernel's."""
        mux.send(joined)
        return count

    def sent_and_read(sending: Callable[[], int], tcp: socket.socket) -> int:
        sending()
        return drain(tcp)

    found: list[dict[str, float]] = []
    unread: list[socket.socket] = []

    def read() -> None:
        """Read what the side before this one sent, so that neither meets a full queue."""
        for tcp in unread:
            drain(tcp)
        unread.clear()

    def alone(sending: Callable[[], int], tcp: socket.socket) -> int:
        unread.append(tcp)
        return sending()

    for way in (alone, sent_and_read):
        sides: dict[str, Callable[[], int]] = {
            "c": functools.partial(way, by_c, one.far),
            "batch": functools.partial(way, batch, far),
            "ready": functools.partial(way, ready, far),
        }
        found.append(in_turn(sides, read))
        read()
    one.plain.detach()
    KEEP.append((kcm, mux, far))
    calls, both = (costs["batch"] / costs["c"] for costs in found)
    return [
        (f"send_many, batch, ÷ C's sendmmsg, {size} B", calls, goal),
        (f"joined beforehand ÷ C's sendmmsg, {size} B", found[0]["ready"] / found[0]["c"], "none"),
        (f"the same, the peer's reading included, {size} B", both, "none"),
    ]


def sending() -> list[Row]:
    """The same for each size."""
    return [*sending_of(64, "≤ 0.08"), *sending_of(1024, "≤ 0.5"), *sending_of(16384, "none")]


def one_by_one(batch: int) -> Callable[[], int]:
    """Each message in a segment of its own."""
    data, count = message(64), 300
    mux, far = multiplexed(batch)

    def side() -> int:
        for _ in range(count):
            far.send(data)
            mux.recv()
        return count

    return side


def singly() -> list[Row]:
    """One message at a time."""
    costs = in_turn({"batch": one_by_one(BATCH), "single": one_by_one(1)}, lambda: None)
    return [("a segment each: batch ÷ without", costs["batch"] / costs["single"], "≤ 1.05")]


def spread() -> list[Row]:
    """How much two runs of the same differ."""
    mux, far = multiplexed(BATCH)
    receive = many(mux)
    found = []
    for _ in range(3):
        start = clock()
        for _ in range(20):
            far.sendall(message(64) * 500)
            receive(500)
        found.append(clock() - start)
    return [("two runs of the same", max(found[1:]) / min(found[1:]), "≤ 1.05")]


SECTIONS: dict[str, Callable[[], list[Row]]] = {
    "receiving": receiving,
    "sending": sending,
    "singly": singly,
    "spread": spread,
}

if __name__ == "__main__":
    main(SECTIONS)
