"""A service that answers Thrift frames in capitals, without a privilege of its own.

    python examples/service.py [--port PORT] [--pinned PATH]

systemd may hand over the listening socket (sd_listen_fds(3)); otherwise the service makes one.  The
program that finds the messages is the one that is pinned at PATH; without a PATH the service loads
it, which requires CAP_BPF and CAP_PERFMON, or a BPF token.  examples/systemd and
examples/containers run it in all these ways.

Each connection has a Multiplexor of its own, and so each answer goes to who asked.  SIGTERM ends
it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import threading
from types import FrameType

from pykcm import Disconnected, KCMError, Multiplexor, bpf, protocols

FIRST_HANDED_OVER = 3  # SD_LISTEN_FDS_START


def listening(port: int) -> socket.socket:
    """The socket that systemd hands over, or one of our own."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return socket.create_server(("", port))
    if os.environ.get("LISTEN_FDS") != "1":
        raise SystemExit(f"one socket is expected, not {os.environ.get('LISTEN_FDS')}")
    os.set_inheritable(FIRST_HANDED_OVER, False)
    return socket.socket(fileno=FIRST_HANDED_OVER)


def serve(tcp: socket.socket, program: bpf.Program) -> None:
    """Answer one connection's messages until it ends."""
    try:
        with Multiplexor(program) as mux, contextlib.suppress(Disconnected):
            mux.attach(tcp, hand_over=True)
            for message in mux:
                mux.send(message[:4] + message[4:].upper())
    except KCMError as error:
        print(f"a connection was given up: {error}", flush=True)


def stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer Thrift frames in capitals.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pinned", metavar="PATH")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    with (
        listening(arguments.port) as listener,
        bpf.Program.from_pin(arguments.pinned)
        if arguments.pinned
        else protocols.THRIFT_FRAMED.load() as program,
    ):
        print(f"port {listener.getsockname()[1]}", flush=True)
        while True:
            tcp, _ = listener.accept()
            threading.Thread(target=serve, args=(tcp, program), daemon=True).start()


if __name__ == "__main__":
    main()
