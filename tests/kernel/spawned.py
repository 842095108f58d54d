"""What a spawned process of the tests does; it imports little, since a guest is slow."""

from __future__ import annotations

from multiprocessing.connection import Connection

from pykcm import Disconnected, KCMSocket


def work(clone: KCMSocket, done: Connection) -> None:
    """Send every message back until the last connection has gone; then tell how many."""
    count = 0
    try:
        while True:
            clone.send(clone.recv(timeout=60))
            count += 1
    except Disconnected:
        done.send(count)
