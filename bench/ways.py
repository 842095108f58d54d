"""Ways to hand the messages of one connection to worker processes, for bench/fan_out.py.

Two are KCM's clones, without and with a batch.  In the others a process divides the stream and
hands messages to the workers in turn: through multiprocessing's pipes, Unix sockets of sequenced
packets, ZeroMQ; one message at a time or many.  Every way takes the same messages from the same
kind of peer, and each worker returns what its work returned.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from typing import Protocol

import zmq

import pykcm
from bench.core import FRAMING, message
from bench.super_messages import split
from pykcm import _loopback

SIZE = 64
BATCH = 64
DATA = message(SIZE)

# What is done with some messages; returns numbers for the worker to return: how many there were, or
# how long each had waited.
Work = Callable[[list[bytes]], Sequence[int]]


class Processes:
    """Processes that each return numbers."""

    def __init__(self) -> None:
        self._pipes: list[int] = []

    def start(self, body: Callable[[], Sequence[int]]) -> None:
        reading, writing = os.pipe()
        if os.fork() == 0:
            status = 1
            try:
                numbers = body()
                with os.fdopen(writing, "wb") as stream:
                    stream.write(struct.pack(f"{len(numbers)}q", *numbers))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)
        self._pipes.append(reading)

    def numbers(self) -> list[int]:
        """What they returned, in order of their start; raises if one of them failed."""
        found: list[int] = []
        for reading in self._pipes:
            with os.fdopen(reading, "rb") as stream:
                found += [number for (number,) in struct.iter_unpack("q", stream.read())]
            _, status = os.wait()
            if status:
                raise AssertionError(f"a process ended with status {status}")
        self._pipes.clear()
        return found


def write(far: socket.socket, count: int) -> list[int]:
    """Be a peer that has so many messages and writes them as fast as they are taken."""
    for left in range(count, 0, -1000):
        far.sendall(DATA * min(1000, left))
    far.close()
    return []


Peer = Callable[[socket.socket, int], list[int]]
Way = Callable[[int, int, Work, Peer], list[int]]


def worked(batches: Iterator[list[bytes]], work: Work) -> list[int]:
    """Work on all there is; all numbers."""
    numbers: list[int] = []
    for messages in batches:
        numbers += work(messages)
    return numbers


def by_clones(batch: int, workers: int, count: int, work: Work, peer: Peer) -> list[int]:
    """Each worker receives on a clone of one multiplexor."""
    processes = Processes()
    near, far = _loopback.connection()
    with pykcm.Multiplexor(FRAMING, batch=batch) as mux:
        mux.attach(near, hand_over=True)
        clones = [mux.clone() for _ in range(workers)]
        mux.socket.recv_disabled = True

        def received(own: pykcm.KCMSocket) -> Iterator[list[bytes]]:
            with contextlib.suppress(pykcm.Disconnected):
                while True:
                    yield own.recv_many()

        def worker(own: pykcm.KCMSocket) -> list[int]:
            for other in (far, *clones):
                if other is not own:
                    other.close()
            return worked(received(own), work)

        for clone in clones:
            processes.start(functools.partial(worker, clone))
        for clone in clones:
            clone.close()
        processes.start(lambda: peer(far, count))
        far.close()
        mux.wait_disconnection()
    return processes.numbers()


class Channel(Protocol):
    """From the dispatcher to one worker."""

    def put(self, messages: list[bytes], /) -> None: ...
    def taken(self) -> Iterator[list[bytes]]: ...
    def close_reading(self) -> None: ...
    def close_writing(self) -> None: ...


class PipeChannel:
    """multiprocessing.Pipe, with lists of messages."""

    def __init__(self) -> None:
        self.reading, self.writing = Pipe(duplex=False)
        self.close_reading, self.close_writing = self.reading.close, self.writing.close

    def put(self, messages: list[bytes], /) -> None:
        self.writing.send(messages)

    def taken(self) -> Iterator[list[bytes]]:
        with contextlib.suppress(EOFError):
            while True:
                yield self.reading.recv()


class PacketChannel:
    """A Unix socket pair of type SOCK_SEQPACKET: messages joined into a packet."""

    def __init__(self) -> None:
        self.reading, self.writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.close_reading, self.close_writing = self.reading.close, self.writing.close

    def put(self, messages: list[bytes], /) -> None:
        self.writing.send(messages[0] if len(messages) == 1 else b"".join(messages))

    def taken(self) -> Iterator[list[bytes]]:
        while data := self.reading.recv(1 << 16):
            yield [data] if len(data) == SIZE else split(data)[0]


class PushChannel:
    """ZeroMQ's PUSH and PULL, a frame for each message."""

    def __init__(self) -> None:
        self.address = f"ipc://@pykcm-bench-{os.getpid()}-{id(self)}"
        self.ready, self.tell_ready = os.pipe()  # the worker has its address

    def close_reading(self) -> None:
        os.close(self.tell_ready)

    def close_writing(self) -> None:
        os.close(self.ready)

    @functools.cached_property
    def writer(self) -> Callable[[list[bytes]], object]:
        os.read(self.ready, 1)
        pushing: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        pushing.connect(self.address)
        return functools.partial(pushing.send_multipart, copy=True)

    def put(self, messages: list[bytes], /) -> None:
        self.writer(messages)

    def taken(self) -> Iterator[list[bytes]]:
        pulling: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        # With a limit, what is behind it is lost when the other side has closed.
        pulling.set(zmq.RCVHWM, 0)
        pulling.bind(self.address)
        os.write(self.tell_ready, b".")
        while (messages := pulling.recv_multipart()) != [b""]:
            yield messages


def by_dispatcher(
    channel: Callable[[], Channel], batch: int, workers: int, count: int, work: Work, peer: Peer
) -> list[int]:
    """One process divides the stream, and gives each worker in turn up to a batch of messages."""
    processes = Processes()
    near, far = _loopback.connection()
    channels = [channel() for _ in range(workers)]

    def worker(own: Channel) -> list[int]:
        near.close()
        far.close()
        for other in channels:
            other.close_writing()
            if other is not own:
                other.close_reading()
        return worked(own.taken(), work)

    def dispatch() -> list[int]:
        far.close()
        left, turn = b"", 0
        while data := near.recv(1 << 18):
            messages, left = split(left + data)
            for first in range(0, len(messages), batch):
                channels[turn % workers].put(messages[first : first + batch])
                turn += 1
        if channel is PushChannel:
            for each in channels:
                each.put([b""])
            zmq.Context.instance().destroy(linger=10_000)
        return []

    for own in channels:
        processes.start(functools.partial(worker, own))
    processes.start(dispatch)
    for each in channels:
        each.close_reading()
        each.close_writing()
    near.close()
    processes.start(lambda: peer(far, count))
    far.close()
    return processes.numbers()


WAYS: dict[str, Way] = {
    "clones": functools.partial(by_clones, 1),
    "clones, batch": functools.partial(by_clones, BATCH),
    "pipes": functools.partial(by_dispatcher, PipeChannel, 1),
    "pipes, batch": functools.partial(by_dispatcher, PipeChannel, BATCH),
    "packets": functools.partial(by_dispatcher, PacketChannel, 1),
    "packets, batch": functools.partial(by_dispatcher, PacketChannel, BATCH),
    "ZeroMQ": functools.partial(by_dispatcher, PushChannel, 1),
    "ZeroMQ, batch": functools.partial(by_dispatcher, PushChannel, BATCH),
}


def rate(way: Way, workers: int, count: int, work: Work) -> float:
    """Messages a second, from the start of the processes to their end."""
    start = time.monotonic()
    got = sum(way(workers, count, work, write))
    seconds = time.monotonic() - start
    if got != count:
        raise AssertionError(f"{got} of {count} messages arrived")
    return count / seconds
