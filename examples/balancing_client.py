"""A client that balances its requests over several connections to an echo server.

    python examples/balancing_client.py PORT [--connections N] [--requests N]

KCM gives each request to a connection that is free, and hands answers over from all of them.
"""

from __future__ import annotations

import argparse
import socket
import struct

from pykcm import Multiplexor, protocols

# How many requests may wait for their answers.
WINDOW = 64


def request(number: int) -> bytes:
    """A Thrift frame: its length, then the request's number and some text."""
    body = struct.pack(">I", number) + b"hello " * (number % 50)
    return struct.pack(">I", len(body)) + body


def main() -> None:
    parser = argparse.ArgumentParser(description="Send Thrift-framed requests to an echo server.")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1000)
    arguments = parser.parse_args()
    with Multiplexor(protocols.THRIFT_FRAMED) as mux:
        for _ in range(arguments.connections):
            mux.attach(socket.create_connection(("127.0.0.1", arguments.port)), hand_over=True)
        waiting: dict[int, bytes] = {}
        next_number = 0
        while waiting or next_number < arguments.requests:
            while len(waiting) < WINDOW and next_number < arguments.requests:
                waiting[next_number] = request(next_number)
                mux.send(waiting[next_number])
                next_number += 1
            for answer in mux.recv_many(timeout=60):
                (number,) = struct.unpack_from(">I", answer, 4)
                if waiting.pop(number) != answer:
                    raise SystemExit(f"answer {number} is not what was sent")
    print(f"{arguments.requests} answers, each to its request")


if __name__ == "__main__":
    main()
