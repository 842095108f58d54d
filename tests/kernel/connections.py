"""What the kernel tests share: connections, and messages of one framing."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

import pykcm

Pair = tuple[socket.socket, socket.socket]

FRAMING = pykcm.LengthField(offset=0, size=4, adjustment=4, min_length=4)

# Seconds that anything may take here: the guest is emulated, and its host may be busy.
PATIENCE = 30.0


def message(body: bytes) -> bytes:
    """A message of `FRAMING`."""
    return struct.pack(">I", len(body)) + body


def reset(tcp: socket.socket) -> None:
    """Close a connection with a RST."""
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.close()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for a condition, and fail if it does not come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s"
        time.sleep(0.01)
