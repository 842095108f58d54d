"""Threads that do everything at once on one Multiplexor: each message arrives, and arrives once."""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pykcm import Disconnected, Disconnection, KCMSocket, LengthField, Multiplexor, _loopback, _tcp
from tests import turns

FRAMING = LengthField(offset=0, size=4, adjustment=4)
SECONDS = 4.0
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    with turns.often():
        yield


class Crowd:
    """One Multiplexor with a connection that stays, and what its threads do."""

    def __init__(self, seed: int, clones_receive: bool) -> None:
        self._seed = seed
        self._clones_receive = clones_receive
        self._stop = time.monotonic() + SECONDS
        self._numbers = itertools.count()
        self.sent: set[int] = set()
        self.received: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()
        self.ended: set[int] = set()
        self._connections: list[object] = []  # so that no id() comes again
        self.told: list[int] = []
        self.reported: list[Disconnection] = []
        self.taken_off: dict[int, Disconnection] = {}
        # What was sent on each connection: the first number and the one after the last.
        self._streams: dict[int, tuple[int, int]] = {}
        self.errors: list[BaseException] = []
        self.mux = Multiplexor(FRAMING)
        self.mux.on_disconnect = lambda end: self.told.append(id(end.tcp))
        self._staying, self._far = _loopback.connection()
        self.mux.attach(self._staying)

    def run(self) -> None:
        jobs = [self.receive, self.receive, self.end, self.end, self.unattach, self.clone, self.ask]
        threads = [
            threading.Thread(target=self._repeat, args=(job, random.Random(f"{self._seed} {i}")))
            for i, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and (
            len(self.mux.transports) > 1 or self.received.total() < len(self.sent)
        ):
            self.receive(random.Random(self._seed))
        self.ask(random.Random(self._seed))

    def close(self) -> None:
        self.mux.close()
        self._staying.close()
        self._far.close()

    def missing(self) -> set[int]:
        return self.sent - set(self.received)

    def state(self) -> str:
        """What was missing, what comes late, and where the kernel has the rest."""
        missing = self.missing()
        table = Path("/proc/net/kcm").read_text(encoding="ascii")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.missing():
            self.receive(random.Random(self._seed))
        ends = {id(end.tcp): end for end in self.reported} | self.taken_off
        streams = [
            f"{first} to {end}: {ends.get(tcp)}"
            for tcp, (first, end) in self._streams.items()
            if missing & set(range(first, end))
        ]
        return (
            f"missing after {PATIENCE:.0f} s {sorted(missing)}, later {sorted(self.missing())}; "
            f"of {streams}; {self.mux!r}, told {len(self.told)} of {len(self.ended)}\n{table}"
        )

    def _repeat(self, job: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            while time.monotonic() < self._stop and not self.errors:
                job(rng)
        except BaseException as error:
            self.errors.append(error)

    def _receive_from(self, kcm: Multiplexor | KCMSocket, most: int, timeout: float) -> bool:
        try:
            messages = kcm.recv_many(most, timeout=timeout)
        except (TimeoutError, BlockingIOError):
            return False
        self._count(messages)
        return True

    def _count(self, messages: list[bytes]) -> None:
        with self._lock:
            self.received.update(struct.unpack_from(">Q", message, 4)[0] for message in messages)

    def _stream(self, near: socket.socket, count: int) -> bytes:
        with self._lock:
            numbers = list(itertools.islice(self._numbers, count))
        self.sent.update(numbers)
        if numbers:
            self._streams[id(near)] = numbers[0], numbers[-1] + 1
        return b"".join(struct.pack(">IQ", 8, number) for number in numbers)

    # ---- what the threads do ----

    def receive(self, rng: random.Random) -> None:
        self._receive_from(self.mux, rng.choice([1, 3, 50]), 0.02)

    def end(self, rng: random.Random) -> None:
        near, far = _loopback.connection()
        with far:
            self.mux.attach(near, hand_over=True)
            self._connections.append(near)
            self.ended.add(id(near))
            cut = rng.choice([b"", b"\0\0"])
            far.sendall(self._stream(near, rng.choice([0, 1, 5, 200])) + cut)

    def unattach(self, rng: random.Random) -> None:
        near, far = _loopback.connection()
        with near, far:
            self.mux.attach(near)
            self._connections.append(near)
            data = self._stream(near, rng.choice([0, 1, 20]))
            far.sendall(data)
            while _tcp.bytes_received(near.fileno()) < len(data):
                time.sleep(0.001)  # what comes later than it is taken off is the caller's
            self.taken_off[id(near)] = self.mux.unattach(near, timeout=PATIENCE)

    def clone(self, rng: random.Random) -> None:
        with self.mux.clone() as clone:
            clone.recv_disabled = not self._clones_receive
            if self._clones_receive:
                self._receive_from(clone, 50, rng.random() / 20)
            # It gives away what is queued for it; only what it has received is read.
            clone.recv_disabled = True
            while clone._port.held:
                self._receive_from(clone, 50, 0)

    def ask(self, rng: random.Random) -> None:
        self.reported += self.mux.disconnections()
        assert self.mux.fileno() >= 0
        assert self._staying in self.mux.transports
        time.sleep(rng.random() / 100)


@pytest.mark.parametrize("clones_receive", [False, True], ids=["alone", "with clones"])
def test_everything_at_once(clones_receive: bool) -> None:
    seed = random.randrange(1 << 32)
    with contextlib.closing(Crowd(seed, clones_receive)) as crowd:
        crowd.run()
        assert not crowd.errors, f"seed {seed}"
        assert not crowd.missing(), f"seed {seed}: {crowd.state()}"
        assert set(crowd.received) == crowd.sent, f"seed {seed}: some were not sent"
        assert crowd.received.total() == len(crowd.sent), f"seed {seed}: some came twice"
        assert sorted(crowd.told) == sorted(crowd.ended), f"seed {seed}"
        assert sorted(id(end.tcp) for end in crowd.reported) == sorted(crowd.ended), f"seed {seed}"


def test_two_receive_until_the_end() -> None:
    for number in range(5):
        near, far = _loopback.connection()
        received = [0, 0]
        ends: list[BaseException | None] = [None, None]
        with Multiplexor(FRAMING) as mux:

            def receive(which: int, mux: Multiplexor = mux) -> None:
                try:
                    while True:
                        received[which] += len(mux.recv_many(3, timeout=PATIENCE))  # noqa: B023
                except BaseException as error:
                    ends[which] = error  # noqa: B023

            mux.attach(near, hand_over=True)
            with mux.clone() as clone:  # so that messages which are drained are given back
                clone.recv_disabled = True
                threads = [threading.Thread(target=receive, args=(which,)) for which in (0, 1)]
                for thread in threads:
                    thread.start()
                with far:
                    far.sendall((struct.pack(">I", 60) + bytes(60)) * 2000)
                for thread in threads:
                    thread.join()
        assert [type(end) for end in ends] == [Disconnected] * 2, f"round {number}: {ends}"
        assert sum(received) == 2000, f"round {number}"
