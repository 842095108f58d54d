"""Trio tasks that ask examples/server.py: each gets its own answer, and connections come back.

python examples/trio_client.py PORT [--connections N] [--requests N] [--tasks N]
"""

from __future__ import annotations

import argparse
import functools
import os
import socket
import struct
from collections.abc import Iterator

import trio

from pykcm import Delimiter, Exchange, Multiplexor, Pool, protocols


async def connect(port: int) -> socket.socket:
    """Dial, and say who we are, without holding up other tasks."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    # Trio reads nothing unless it is asked, so the stream's socket can be used as it is.
    tcp = socket.socket(fileno=os.dup(stream.socket.fileno()))
    try:
        async with stream:
            await stream.send_all(b"HELLO trio-%d\n" % os.getpid())
        with trio.fail_after(10):
            if await Delimiter(b"\n").aread_message(tcp) != b"OK\n":
                raise ConnectionError("the server does not know this protocol")
    except BaseException:
        tcp.close()
        raise
    return tcp


def frame(text: bytes) -> bytes:
    return struct.pack(">II", 4 + len(text), 0) + text  # the number is the Exchange's to choose


async def ask(exchange: Exchange, texts: Iterator[bytes], wrong: list[bytes]) -> None:
    for text in texts:
        with trio.fail_after(60):
            if await exchange.arequest(frame(text)) != frame(text.upper()):
                wrong.append(text)


async def talk(port: int, connections: int, count: int, tasks: int) -> None:
    texts = (b"request %d" % number for number in range(count))
    wrong: list[bytes] = []
    async with (
        Multiplexor(protocols.THRIFT_FRAMED) as mux,
        Pool(mux, functools.partial(connect, port), connections),
        trio.open_nursery() as nursery,
    ):
        exchange = Exchange(mux, (4, 4), renumber=True)
        for _ in range(tasks):
            nursery.start_soon(ask, exchange, texts, wrong)
    if wrong:
        raise SystemExit(f"{len(wrong)} answers are wrong")
    print(f"{count} answers, each to its request")


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the example server, with Trio.")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=32)
    arguments = parser.parse_args()
    trio.run(talk, arguments.port, arguments.connections, arguments.requests, arguments.tasks)


if __name__ == "__main__":
    main()
