"""The receivers of a stress, on clones that they make and close meanwhile."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from typing import Any

from pykcm.selftest.calls import Calls
from pykcm.selftest.messages import HEADER, decode
from pykcm.selftest.stress.shared import DRAINING, ROOM, TICK, Shared, Work, clone, threads


def receiver(number: int) -> Work:
    """Receives on clones, two threads at once, and makes and closes the clones meanwhile."""

    def work(shared: Shared) -> dict[str, Any]:
        rng = shared.random("receiver", number)
        received: list[tuple[int, int]] = []
        wrong: list[str] = []
        clones = 0
        while shared.until(DRAINING):
            clones += 1
            with clone(shared) as kcm:
                until = time.monotonic() + rng.uniform(0.02, 1.0)

                def receive(kcm: socket.socket = kcm, until: float = until) -> None:
                    own = random.Random(threading.get_ident())
                    while time.monotonic() < until and shared.until(DRAINING):
                        _receive(shared, kcm, own, received, wrong)

                threads(receive, receive)
        # The last sockets hand on to the first one what they have queued.
        return {"received": received, "wrong": wrong, "clones": clones}

    return work


def _receive(
    shared: Shared,
    kcm: socket.socket,
    rng: random.Random,
    received: list[tuple[int, int]],
    wrong: list[str],
) -> None:
    """One of the things that a receiver does."""
    calls, fd = shared.lab.calls, kcm.fileno()
    what = rng.randrange(20)
    if what == 0:
        shared.lab.set_receive_disabled(kcm, 1)
        time.sleep(rng.uniform(0, TICK))
        shared.lab.set_receive_disabled(kcm, 0)
        return
    calls.poll(fd, select.POLLIN, TICK)
    with contextlib.suppress(BlockingIOError):
        if what == 1:
            found = [_one(calls, fd, socket.MSG_PEEK)]
        elif what < 8:
            kcm.settimeout(0)
            found = calls.receive_many(fd, ROOM, rng.randint(1, 8))
        else:
            found = [_one(calls, fd)]
        for message, flags in found:
            identity = decode(message)
            if identity is None:
                wrong.append(f"{len(message)} bytes, {message[: HEADER.size]!r}...")
            elif what != 1:
                received.append(identity)
                if not flags & socket.MSG_EOR:
                    wrong.append(f"message {identity} without MSG_EOR")


def _one(calls: Calls, fd: int, flags: int = 0) -> tuple[bytes, int]:
    buffer = bytearray(ROOM)
    size, seen = calls.receive(fd, [buffer], flags | socket.MSG_DONTWAIT)
    return bytes(buffer[:size]), seen


def drain(shared: Shared, received: list[tuple[int, int]], wrong: list[str]) -> None:
    """Take all that is left, with the only socket that is left."""
    rng = random.Random(0)
    shared.lab.set_receive_disabled(shared.kcm, 0)
    while shared.lab.calls.poll(shared.kcm.fileno(), select.POLLIN, shared.lab.quiet):
        _receive(shared, shared.kcm, rng, received, wrong)
