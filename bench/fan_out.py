"""Messages to worker processes: KCM's clones beside a process that dispatches.

    ci/vm --cpus 2 -- env PYTHONPATH=. python bench/fan_out.py [SECTION...] [--json]

Wall clock, on two CPUs with nothing beside it: the median of some rounds.  Every worker counts what
it gets, and the sum is checked.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import socket
import statistics
import struct
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pykcm
from bench.core import FRAMING, Row, main, message
from bench.super_messages import split
from pykcm import _loopback

ROUNDS = 3
WORKERS = 4
BATCH = 64
DATA = message(64)

Work = Callable[[int], None]


def none(_: int) -> None:
    """No work."""


def mixed(count: int) -> None:
    """For each message 0 to 100 microseconds of CPU."""
    for _ in range(count):
        end = time.perf_counter() + random.random() * 1e-4
        while time.perf_counter() < end:
            pass


class Processes:
    """Processes that each return a number."""

    def __init__(self) -> None:
        self._pipes: list[int] = []

    def start(self, body: Callable[[], int]) -> None:
        reading, writing = os.pipe()
        if os.fork() == 0:
            status = 1
            try:
                os.write(writing, struct.pack("q", body()))
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        self._pipes.append(reading)

    def sum(self) -> int:
        total = 0
        for reading in self._pipes:
            with os.fdopen(reading, "rb") as stream:
                total += struct.unpack("q", stream.read())[0]
            os.wait()
        return total


def feed(far: socket.socket, count: int) -> int:
    """Write so many messages, as a peer does that has many."""
    for left in range(count, 0, -1000):
        far.sendall(DATA * min(1000, left))
    return 0


def rate(count: int, run: Callable[[Processes], None]) -> float:
    """Messages a second."""
    processes = Processes()
    start = time.monotonic()
    run(processes)
    got = processes.sum()
    seconds = time.monotonic() - start
    if got != count:
        raise AssertionError(f"{got} of {count} messages arrived")
    return count / seconds


def by_kcm(count: int, work: Work, batch: int) -> float:
    """Each worker receives on a clone."""

    def run(processes: Processes) -> None:
        near, far = _loopback.connection()
        with pykcm.Multiplexor(FRAMING, batch=batch) as mux:
            mux.attach(near, hand_over=True)
            clones = [mux.clone() for _ in range(WORKERS)]
            mux.socket.recv_disabled = True

            def worker(own: pykcm.KCMSocket) -> int:
                for other in (far, *clones):
                    if other is not own:
                        other.close()
                done = 0
                with contextlib.suppress(pykcm.Disconnected):
                    while True:
                        got = len(own.recv_many())
                        work(got)
                        done += got
                return done

            for clone in clones:
                processes.start(functools.partial(worker, clone))
            processes.start(lambda: feed(far, count))
            for other in (far, *clones):
                other.close()
            mux.wait_disconnection()

    return rate(count, run)


def by_pipes(count: int, work: Work, batch: int) -> float:
    """One process divides the stream, and gives each worker in turn a list of messages."""

    def run(processes: Processes) -> None:
        near, far = _loopback.connection()
        pipes = [Pipe(duplex=False) for _ in range(WORKERS)]

        def worker(own: Connection) -> int:
            for reading, writing in pipes:
                writing.close()
                if reading is not own:
                    reading.close()
            done = 0
            with contextlib.suppress(EOFError):
                while True:
                    got = len(own.recv())
                    work(got)
                    done += got
            return done

        def dispatch() -> int:
            far.close()
            left, turn = b"", 0
            while data := near.recv(1 << 18):
                messages, left = split(left + data)
                for first in range(0, len(messages), batch):
                    pipes[turn % WORKERS][1].send(messages[first : first + batch])
                    turn += 1
            return 0

        for reading, _ in pipes:
            processes.start(functools.partial(worker, reading))
        processes.start(dispatch)
        processes.start(lambda: feed(far, count))
        for tcp in (near, far):
            tcp.close()
        for ends in pipes:
            for end in ends:
                end.close()

    return rate(count, run)


def compare(count: int, work: Work) -> dict[str, float]:
    """Messages a second of each way, in turn."""
    sides: dict[str, Callable[[], float]] = {
        "clones": lambda: by_kcm(count, work, 1),
        "clones, batch": lambda: by_kcm(count, work, BATCH),
        "pipes": lambda: by_pipes(min(count, 20_000), work, 1),
        "pipes, batch": lambda: by_pipes(count, work, BATCH),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            found[name].append(side())
    for name, rates in found.items():
        print(f"  {name:<16} {statistics.median(rates):10.0f} a second, "
              f"{min(rates):.0f} to {max(rates):.0f}")  # fmt: skip
    return {name: statistics.median(rates) for name, rates in found.items()}


def rows(what: str, rates: dict[str, float], goal: str) -> list[Row]:
    best = max(rates["pipes"], rates["pipes, batch"])
    return [
        (f"clones, batch, ÷ the best dispatcher, {what}", rates["clones, batch"] / best, goal),
        (f"clones ÷ the best dispatcher, {what}", rates["clones"] / best, "none"),
    ]


def idle() -> list[Row]:
    """Workers that only count."""
    return rows("no work", compare(100_000, none), "≥ 4")


def working() -> list[Row]:
    """Workers that work 50 microseconds a message on average."""
    return rows("50 µs of work", compare(20_000, mixed), "≥ 1.3")


SECTIONS: dict[str, Callable[[], list[Row]]] = {"idle": idle, "working": working}

if __name__ == "__main__":
    main(SECTIONS)
