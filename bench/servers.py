"""A server of several processes on several connections: epoll beside a multiplexor's clones.

    ci/vm --cpus 2 -- env PYTHONPATH=. python bench/servers.py [SECTION...] [--json]

The three loads that KCM was presented with in 2016 (the merge 9531ab65f4ec of Linux 4.6), whose
ratios to epoll were 1.0 for large messages, 1.62 for work that blocks now and then, and 0.72 for
small pipelined ones.  By epoll each process has its share of the connections; by KCM each has a
clone, and whoever is free takes the next message.  Wall clock, on two CPUs with nothing beside it.
"""

from __future__ import annotations

import contextlib
import functools
import random
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pykcm
from bench.core import FRAMING, SPREAD, Row, apart, main, message
from bench.super_messages import split
from bench.ways import Processes
from pykcm import _loopback

WORKERS = 4
CONNECTIONS = 16
ROUNDS = 3
ANSWER = message(64)


@dataclass(frozen=True)
class Load:
    """What clients ask: so many requests of a size, some at a time on each connection."""

    name: str
    size: int
    requests: int
    depth: int
    blocking: float = 0  # the share of requests whose work sleeps
    then: float = 0.05  # for so many seconds
    ratio: float = 0  # of 2016

    def work(self, count: int) -> None:
        for _ in range(count):
            if self.blocking and random.random() < self.blocking:
                time.sleep(self.then)


LOADS = (
    Load("large messages", 32768, 1500, 1, ratio=1.0),
    Load("work that blocks", 64, 2000, 4, blocking=0.05, ratio=1.62),
    Load("small, pipelined", 64, 12000, 16, ratio=0.72),
)


def client(connections: list[socket.socket], load: Load) -> float:
    """Ask and read answers, which may come on any connection; how long it took, in seconds."""
    request = message(load.size)
    waiting = select.epoll()
    by_fd = {each.fileno(): each for each in connections}
    for fd in by_fd:
        waiting.register(fd, select.EPOLLIN)
    start = time.monotonic()
    asked = 0
    for each in connections:
        some = min(load.depth, load.requests - asked)
        each.sendall(request * some)
        asked += some
    answered = 0
    rest = 0  # bytes of answers that have not come whole
    while answered < load.requests:
        for fd, _ in waiting.poll(30):
            rest += len(by_fd[fd].recv(1 << 16))
            got, rest = divmod(rest, len(ANSWER))
            answered += got
            some = min(got, load.requests - asked)
            if some:
                by_fd[fd].sendall(request * some)
                asked += some
    return time.monotonic() - start


@contextlib.contextmanager
def by_epoll(processes: Processes, nears: list[socket.socket], load: Load) -> Iterator[None]:
    """Each worker serves its share of the connections."""

    def worker(own: list[socket.socket]) -> list[int]:
        waiting = select.epoll()
        by_fd = {each.fileno(): each for each in own}
        left = dict.fromkeys(by_fd, b"")
        for fd in by_fd:
            waiting.register(fd, select.EPOLLIN)
        while by_fd:
            for fd, _ in waiting.poll():
                data = by_fd[fd].recv(1 << 18)
                if not data:
                    waiting.unregister(fd)
                    del by_fd[fd]
                    continue
                messages, left[fd] = split(left[fd] + data)
                for _ in messages:
                    load.work(1)
                    by_fd[fd].sendall(ANSWER)
        return []

    for n in range(WORKERS):
        processes.start(functools.partial(worker, nears[n::WORKERS]))
    for near in nears:
        near.close()
    yield


@contextlib.contextmanager
def by_clones(
    batch: int, processes: Processes, nears: list[socket.socket], load: Load
) -> Iterator[None]:
    """Each worker serves a clone."""
    with pykcm.Multiplexor(FRAMING, batch=batch) as mux:
        for near in nears:
            mux.attach(near, hand_over=True)

        def worker(own: pykcm.KCMSocket) -> list[int]:
            with contextlib.suppress(pykcm.Disconnected):
                while True:
                    messages = own.recv_many() if batch > 1 else [own.recv()]
                    load.work(len(messages))
                    own.send_many([ANSWER] * len(messages))
            return []

        clones = [mux.clone() for _ in range(WORKERS)]
        mux.socket.recv_disabled = True
        for clone in clones:
            processes.start(functools.partial(worker, clone))
            clone.close()
        yield
        for _ in range(CONNECTIONS):  # which tells the clones, at last
            mux.wait_disconnection()


class Workers(Processes):
    """Processes that first close the clients' sockets, or these would never see an end."""

    def __init__(self, clients: list[socket.socket]) -> None:
        super().__init__()
        self._clients = clients

    def start(self, body: Callable[[], Sequence[int]]) -> None:
        def alone() -> Sequence[int]:
            for each in self._clients:
                each.close()
            return body()

        super().start(alone)


Side = Callable[[Processes, list[socket.socket], Load], contextlib.AbstractContextManager[None]]


def rate(side: Side, load: Load) -> float:
    """Requests a second."""
    pairs = [_loopback.connection() for _ in range(CONNECTIONS)]
    for pair in pairs:
        for tcp in pair:
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    fars = [far for _, far in pairs]
    processes = Workers(fars)
    with side(processes, [near for near, _ in pairs], load):
        seconds = client(fars, load)
        for far in fars:
            far.close()
    processes.numbers()
    return load.requests / seconds


def compare(load: Load) -> list[Row]:
    sides: dict[str, Side] = {
        "epoll": by_epoll,
        "clones": functools.partial(by_clones, 1),
        "clones, batch": functools.partial(by_clones, 64),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            found[name].append(rate(side, load))
    for name, rates in found.items():
        print(f"  {name:<16} {min(rates):.0f} to {max(rates):.0f} a second", file=sys.stderr)
    middle = {name: statistics.median(rates) for name, rates in found.items()}
    return [
        (f"clones: {load.name}", middle["clones"] / middle["epoll"], f"2016: {load.ratio}"),
        (f"clones, batch: {load.name}", middle["clones, batch"] / middle["epoll"], "none"),
        *(
            (f"{name}{SPREAD}: {load.name}", apart(found[name]), "none")
            for name in ("clones", "clones, batch")
        ),
    ]


def loads() -> list[Row]:
    """The three loads in turn."""
    found: list[Row] = []
    for load in LOADS:
        print(f" {load.name}", file=sys.stderr)
        found += compare(load)
    return found


SECTIONS: dict[str, Callable[[], list[Row]]] = {"loads": loads}

if __name__ == "__main__":
    main(SECTIONS)
