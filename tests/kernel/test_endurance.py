"""Many messages, connections and worker processes at once, with transports that die."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

import pykcm
from pykcm import Multiplexor, Reason, _loopback
from pykcm.selftest import traffic
from tests import children

from .connections import PATIENCE, reset

CONNECTIONS = 16
WORKERS = 8
MAX_BODY = 64 << 10
COUNTER = struct.Struct("=Q")


@contextlib.contextmanager
def process(run: Callable[[], None]) -> Iterator[int]:
    """A forked process, killed when the block is left."""
    pid = children.begin(run, limit=3600)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def write(tcp: socket.socket, stream: traffic.Stream, cut_after: int | None) -> None:
    """Write a stream; or a part of it, the beginning of a message, and then reset."""
    if cut_after is None:
        for piece in stream.pieces():
            tcp.sendall(piece)
        return
    messages = stream.messages()
    for _ in range(cut_after):
        tcp.sendall(next(messages))
    tcp.sendall(next(messages)[:-1])
    time.sleep(1)
    reset(tcp)


def receive(kcm: pykcm.KCMSocket, seen: mmap.mmap, streams: list[traffic.Stream]) -> None:
    """Count every message at its place; damaged ones at the end."""
    starts = [
        COUNTER.size + sum(stream.count for stream in streams[:i]) for i in range(len(streams))
    ]
    while True:
        messages = kcm.recv_many()
        for message in messages:
            identity = traffic.decode(message)
            place = -1 if identity is None else starts[identity[0]] + identity[1]
            seen[place] = min(255, seen[place] + 1)
        (total,) = COUNTER.unpack_from(seen)
        COUNTER.pack_into(seen, 0, total + len(messages))


@pytest.mark.timeout(100 * PATIENCE)
def test_many_messages_while_transports_die(request: pytest.FixtureRequest) -> None:
    """A hundred thousand of them; a million in the matrix."""
    count: int = request.config.getoption("--messages")
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    # The first two are reset in mid-message, and the last two come in their place.
    streams = [
        traffic.Stream(seed, sender, count // CONNECTIONS, MAX_BODY, mostly_short=True)
        for sender in range(CONNECTIONS + 2)
    ]
    survivors = range(2, CONNECTIONS + 2)
    expected = sum(streams[sender].count for sender in survivors)
    size = COUNTER.size + sum(stream.count for stream in streams) + 1
    tallies = [mmap.mmap(-1, size) for _ in range(WORKERS)]
    reports: dict[object, pykcm.Disconnection] = {}

    def total() -> int:
        return sum(COUNTER.unpack_from(tally)[0] for tally in tallies)

    def count_each() -> tuple[bytes, bytes]:
        """How often each message was received; and of those, the surviving streams'."""
        each = bytes(map(sum, zip(*(t[COUNTER.size :] for t in tallies), strict=True)))
        return each, each[2 * streams[0].count : -1]

    with contextlib.ExitStack() as stack:
        mux = stack.enter_context(Multiplexor(traffic.FRAMING))
        mux.socket.recv_disabled = True

        def begin(sender: int, cut_after: int | None) -> socket.socket:
            near, far = _loopback.connection()
            stack.enter_context(near)
            mux.attach(near)
            stack.enter_context(process(lambda: write(far, streams[sender], cut_after)))
            # Else the connection would stay open when the writer has reset it.
            far.close()
            return near

        for tally in tallies:
            with mux.clone() as clone:
                stack.enter_context(process(lambda c=clone, t=tally: receive(c, t, streams)))  # type: ignore[misc]
        cut = [begin(sender, 500) for sender in range(2)]
        for sender in range(2, CONNECTIONS):
            begin(sender, None)

        def look() -> None:
            for report in mux.disconnections():
                reports[report.tcp] = report
                if report.tcp in cut:
                    begin(CONNECTIONS + cut.index(report.tcp), None)

        end = time.monotonic() + 8 * PATIENCE * count / 100_000
        while time.monotonic() < end:
            look()
            # In this order: counting takes as long as receiving thousands of messages.
            if total() >= expected and len(reports) == CONNECTIONS + 2 and all(count_each()[1]):
                break
            time.sleep(0.5)
        seen, arrived = count_each()
        assert total() >= expected
    assert seen[-1] == 0, "damaged messages"
    assert arrived.count(1) == expected, "lost or doubled messages of the surviving streams"
    assert max(seen[: 2 * streams[0].count]) == 1, "doubled messages of the streams that were cut"
    assert [reports[tcp].reason for tcp in cut] == [Reason.RESET] * 2
    others = [error.reason for tcp, error in reports.items() if tcp not in cut]
    assert others == [Reason.PEER_CLOSED] * CONNECTIONS
