"""A Thrift-framed echo server: worker processes share the messages of all connections.

    python examples/echo_server.py [--port PORT] [--workers N]

All connections belong to one peer, which may open as many as it likes: whichever worker is free
takes the next message, and its answer goes out on whichever connection is free.  The peer tells
answers apart by what is in them.  The server ends when the peer has closed its last connection.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import socket

from pykcm import KCMSocket, Multiplexor, protocols


def work(kcm: KCMSocket) -> None:
    """Send every message back."""
    while True:
        kcm.send_many(kcm.recv_many())


def start(workers: int, mux: Multiplexor) -> list[int]:
    """Fork the workers, each with a clone; their process ids."""
    pids = []
    for _ in range(workers):
        with mux.clone() as clone:
            pid = os.fork()
            if pid == 0:
                try:
                    work(clone)
                finally:
                    os._exit(1)
            pids.append(pid)
    return pids


def serve(listener: socket.socket, mux: Multiplexor) -> None:
    """Attach every connection that comes, until the last one has gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(mux, selectors.EVENT_READ)
        served = False
        while mux.transports or not served:
            if any(key.fileobj is listener for key, _ in selector.select()):
                tcp, _ = listener.accept()
                mux.attach(tcp, hand_over=True)
                served = True
            for disconnection in mux.disconnections():
                print(f"a connection ended: {disconnection}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Echo Thrift-framed messages.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with (
        socket.create_server(("127.0.0.1", arguments.port)) as listener,
        Multiplexor(protocols.THRIFT_FRAMED) as mux,
    ):
        workers = start(arguments.workers, mux)
        # The workers receive; this process looks after the connections.
        mux.socket.recv_disabled = True
        print(f"port {listener.getsockname()[1]}", flush=True)
        try:
            serve(listener, mux)
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGTERM)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
