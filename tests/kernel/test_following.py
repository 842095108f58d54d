"""A worker on a clone gets all there was before it learns of the end."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pykcm
from pykcm import LengthField, Multiplexor, _loopback
from tests.children import begin

FRAMING = LengthField(offset=0, size=4, adjustment=4)
COUNT = 5000
ROUNDS = 20
PATIENCE = 15.0  # seconds; a round takes a fraction of one


def receive(clone: pykcm.KCMSocket, result: int) -> None:
    """In a worker: write how many messages came before the end."""
    count = 0
    with contextlib.suppress(pykcm.Disconnected):
        while True:
            count += len(clone.recv_many(timeout=PATIENCE))
    os.write(result, struct.pack("q", count))


def feed(far: socket.socket) -> None:
    message = struct.pack(">I", 60) + bytes(60)
    for _ in range(COUNT // 1000):
        far.sendall(message * 1000)


def told_by_a_worker() -> bytes:
    """What a worker told while another process sent all there was, and closed."""
    near, far = _loopback.connection()
    reading, writing = os.pipe()
    with near, Multiplexor(FRAMING) as mux:
        mux.attach(near)
        clone = mux.clone()
        mux.socket.recv_disabled = True

        def work() -> None:
            os.close(reading)
            far.close()
            receive(clone, writing)

        def send() -> None:
            os.close(reading)
            os.close(writing)
            clone.close()
            feed(far)

        children = [begin(work), begin(send)]
        clone.close()
        far.close()
        os.close(writing)
        mux.wait_disconnection(PATIENCE)
        with os.fdopen(reading, "rb") as results:
            told = results.read()
    for pid in children:
        os.waitpid(pid, 0)  # the worker says on standard error what it raised
    return told


def test_a_worker_that_linux_passes_by_is_served() -> None:
    """Of small messages that came in one segment a socket holds one.

    So those that a drain gives back find the worker without room, and while that reads, Linux may
    forget that it could be given more.
    """
    for number in range(ROUNDS):
        told = told_by_a_worker()
        assert told, f"round {number}: the worker was passed by"
        assert struct.unpack("q", told) == (COUNT,), f"round {number}"
