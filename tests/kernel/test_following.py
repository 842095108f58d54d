"""A worker on a clone gets all there was before it learns of the end."""

from __future__ import annotations

import os
import socket
import struct
from typing import NoReturn

import pykcm
from pykcm import LengthField, Multiplexor, _loopback

FRAMING = LengthField(offset=0, size=4, adjustment=4)
COUNT = 5000
ROUNDS = 20
PATIENCE = 15.0  # seconds; a round takes a fraction of one


def receive(clone: pykcm.KCMSocket, result: int) -> NoReturn:
    """In a worker: write how many messages came before the end."""
    count = 0
    try:
        while True:
            count += len(clone.recv_many(timeout=PATIENCE))
    except pykcm.Disconnected:
        os.write(result, struct.pack("q", count))
    finally:
        os._exit(0)


def feed(far: socket.socket) -> NoReturn:
    try:
        message = struct.pack(">I", 60) + bytes(60)
        for _ in range(COUNT // 1000):
            far.sendall(message * 1000)
    finally:
        os._exit(0)


def test_a_worker_that_linux_passes_by_is_served() -> None:
    """Of small messages that came in one segment a socket holds one.

    So those that a drain gives back find the worker without room, and while that reads, Linux may
    forget that it could be given more.
    """
    for number in range(ROUNDS):
        near, far = _loopback.connection()
        reading, writing = os.pipe()
        with Multiplexor(FRAMING) as mux:
            mux.attach(near)
            clone = mux.clone()
            mux.socket.recv_disabled = True
            children = []
            for is_worker in (True, False):
                if (pid := os.fork()) == 0:
                    os.close(reading)
                    if is_worker:
                        far.close()
                        receive(clone, writing)
                    os.close(writing)
                    clone.close()
                    feed(far)
                children.append(pid)
            clone.close()
            far.close()
            os.close(writing)
            mux.wait_disconnection(PATIENCE)
            with os.fdopen(reading, "rb") as results:
                told = results.read()
        for pid in children:
            os.waitpid(pid, 0)
        near.close()
        assert told, f"round {number}: the worker was passed by"
        assert struct.unpack("q", told) == (COUNT,), f"round {number}"
