"""Threads that ask examples/server.py: each gets its own answer, and connections come back.

python examples/threads_client.py PORT [--connections N] [--requests N] [--threads N]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import socket
import struct

from pykcm import Delimiter, Exchange, Multiplexor, Pool, protocols

# An answer is told by the number behind a frame's length: offset 4, size 4.
KEY = (4, 4)


def connect(port: int) -> socket.socket:
    """Dial, and say who we are: all connections of one name are one peer."""
    tcp = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        tcp.sendall(b"HELLO threads-%d\n" % os.getpid())
        if Delimiter(b"\n").read_message(tcp, timeout=10) != b"OK\n":
            raise ConnectionError("the server does not know this protocol")
    except BaseException:
        tcp.close()
        raise
    return tcp


def frame(text: bytes) -> bytes:
    return struct.pack(">II", 4 + len(text), 0) + text  # the number is the Exchange's to choose


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the example server, from many threads.")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=8)
    arguments = parser.parse_args()
    texts = [b"request %d" % number for number in range(arguments.requests)]
    with (
        Multiplexor(protocols.THRIFT_FRAMED) as mux,
        Pool(mux, lambda: connect(arguments.port), arguments.connections),
        concurrent.futures.ThreadPoolExecutor(arguments.threads) as threads,
    ):
        exchange = Exchange(mux, KEY, renumber=True)
        answers = threads.map(lambda text: exchange.request(frame(text), timeout=60), texts)
        wrong = [
            text
            for text, answer in zip(texts, answers, strict=True)
            if answer != frame(text.upper())
        ]
    if wrong:
        raise SystemExit(f"{len(wrong)} answers are wrong")
    print(f"{arguments.requests} answers, each to its request")


if __name__ == "__main__":
    main()
