"""The balancing client with asyncio: one task sends, another receives.

python examples/async_client.py PORT [--connections N] [--requests N]
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import struct

from pykcm import Multiplexor, protocols


def request(number: int) -> bytes:
    body = struct.pack(">I", number) + b"hello " * (number % 50)
    return struct.pack(">I", len(body)) + body


async def send(mux: Multiplexor, requests: list[bytes]) -> None:
    for message in requests:
        await mux.asend(message)


async def receive(mux: Multiplexor, count: int) -> list[bytes]:
    answers: list[bytes] = []
    while len(answers) < count:
        answers += await mux.arecv_many()
    return answers


async def talk(port: int, connections: int, count: int) -> None:
    async with Multiplexor(protocols.THRIFT_FRAMED) as mux:
        for _ in range(connections):
            tcp = socket.socket()
            tcp.setblocking(False)
            await asyncio.get_running_loop().sock_connect(tcp, ("127.0.0.1", port))
            mux.attach(tcp, hand_over=True)
        requests = [request(number) for number in range(count)]
        answers, _ = await asyncio.gather(receive(mux, count), send(mux, requests))
    if sorted(answers) != sorted(requests):
        raise SystemExit("the answers are not what was sent")
    print(f"{count} answers, each to its request")


def main() -> None:
    parser = argparse.ArgumentParser(description="Send requests to an echo server, with asyncio.")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1000)
    arguments = parser.parse_args()
    asyncio.run(talk(arguments.port, arguments.connections, arguments.requests))


if __name__ == "__main__":
    main()
