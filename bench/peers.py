"""pykcm beside what else reads framed messages from a TCP connection in Python.

    ci/vm --icount --cpus 1 -- env PYTHONPATH=. python bench/peers.py [SECTION...] [--json]

A stream: counted from the first write to the last message.  Round trips: one request at a time, to
a process that sends back what comes.
"""

from __future__ import annotations

import asyncio
import functools
import io
import socket
from collections.abc import Awaitable, Callable

import uvloop

import pykcm
from bench.core import FRAMING, Row, clock, echo, main, message
from bench.super_messages import BATCH, many, multiplexed, splitter
from pykcm import _loopback

ROUNDS = 5
Costs = dict[str, list[float]]


def middle(costs: Costs) -> dict[str, float]:
    return {name: sorted(each)[len(each) // 2] for name, each in costs.items()}


def by_makefile(stream: io.BufferedIOBase, count: int) -> None:
    """Read what says the length, then the rest, from a buffered file."""
    read = stream.read
    for _ in range(count):
        head = read(4)
        head + read(int.from_bytes(head, "big"))


async def by_streams(reader: asyncio.StreamReader, count: int) -> None:
    """The same from asyncio's reader."""
    readexactly = reader.readexactly
    for _ in range(count):
        head = await readexactly(4)
        head + await readexactly(int.from_bytes(head, "big"))


def on_loop(
    new_loop: Callable[[], asyncio.AbstractEventLoop], size: int, count: int
) -> list[float]:
    """What asyncio's streams need a message, on such a loop."""

    async def run() -> list[float]:
        near, far = _loopback.connection()
        near.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=near, limit=1 << 20)
        data = message(size) * count
        costs = []
        for _ in range(ROUNDS):
            start = clock()
            far.sendall(data)
            await by_streams(reader, count)
            costs.append((clock() - start) / count)
        writer.close()
        far.close()
        return costs

    loop = new_loop()
    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def stream_of(size: int) -> list[Row]:
    count = min(1000, 60_000 // size)
    data = message(size) * count
    mux, far = multiplexed(BATCH)
    receive = many(mux)
    plain, other = _loopback.connection()
    buffered, third = _loopback.connection()
    file = buffered.makefile("rb")
    costs: Costs = {"pykcm": [], "splitter": [], "makefile": []}
    sides: dict[str, tuple[socket.socket, Callable[[], object]]] = {
        "pykcm": (far, functools.partial(receive, count)),
        "splitter": (other, functools.partial(splitter(plain), count)),
        "makefile": (third, functools.partial(by_makefile, file, count)),
    }
    for _ in range(ROUNDS):
        for name, (writing, read) in sides.items():
            start = clock()
            writing.sendall(data)
            read()
            costs[name].append((clock() - start) / count)
    costs["asyncio streams"] = on_loop(asyncio.new_event_loop, size, count)
    costs["uvloop streams"] = on_loop(uvloop.new_event_loop, size, count)
    mux.close()
    found = middle(costs)
    return [
        (f"recv_many, batch, ÷ {name}, {size} B", found["pykcm"] / cost, "none")
        for name, cost in found.items()
        if name != "pykcm"
    ]


def stream() -> list[Row]:
    """A coalesced stream by size."""
    return [row for size in (64, 1024, 16384) for row in stream_of(size)]


def connected() -> socket.socket:
    """A connection to a process that answers."""
    near, far = _loopback.connection()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    echo(far)
    return near


def asynchronous_trips(
    new_loop: Callable[[], asyncio.AbstractEventLoop], data: bytes, count: int
) -> dict[str, float]:
    """Round trips in a task: asyncio's streams, and pykcm."""

    async def timed(trip: Callable[[], Awaitable[object]]) -> float:
        costs = []
        for _ in range(count):
            start = clock()
            await trip()
            costs.append(float(clock() - start))
        return sorted(costs)[count // 2]

    async def run() -> dict[str, float]:
        reader, writer = await asyncio.open_connection(sock=connected())
        async with pykcm.Multiplexor(FRAMING) as mux:
            mux.attach(connected())

            async def by_stream() -> None:
                writer.write(data)
                head = await reader.readexactly(4)
                head + await reader.readexactly(int.from_bytes(head, "big"))

            async def by_kcm() -> None:
                await mux.asend(data)
                await mux.arecv()

            found = {"streams": await timed(by_stream), "pykcm": await timed(by_kcm)}
        writer.close()
        return found

    loop = new_loop()
    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def tasks() -> list[Row]:
    """Round trips in asyncio."""
    found: list[Row] = []
    for name, new_loop in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
        costs = asynchronous_trips(new_loop, message(64), 200)
        what = f"round trip in {name}: asend, arecv ÷ streams, 64 B"
        found.append((what, costs["pykcm"] / costs["streams"], "none"))
    return found


SECTIONS: dict[str, Callable[[], list[Row]]] = {"stream": stream, "tasks": tasks}

if __name__ == "__main__":
    main(SECTIONS)
