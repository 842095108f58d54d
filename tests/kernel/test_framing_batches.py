"""Super messages on a real TCP connection: what the kernel makes of a batch, divided in C."""

from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from pykcm import _kernel, _loopback, protocols
from pykcm._offset import find_strategy
from pykcm.framing import CustomFraming, FixedLength, Framing, LengthField
from pykcm.framing.base import LARGEST_BATCH
from pykcm.framing.delineate import Delineator
from tests.protocol_streams import STREAMS, messages

SEED = 20240607
BATCHES = (1, 7, 64)
# Seconds; the guest may be emulated, on a machine that does other things too.
TIMEOUT = 60

BATCHED = [name for name, (framing, _) in STREAMS.items() if not isinstance(framing, CustomFraming)]
SEARCHES = {"Delimiter-1", "Delimiter-3", "Delimiter-8", "REDIS_LINES", "RESP"}


class Joined:
    """A KCM socket and the far end of the connection that is attached to it."""

    def __init__(self, kcm: socket.socket, near: socket.socket, far: socket.socket) -> None:
        self.kcm, self.near, self.far = kcm, near, far

    def receive(self, size: int) -> list[bytes]:
        """Super messages, until they are so many bytes together."""
        found: list[bytes] = []
        while sum(map(len, found)) < size:
            found.append(self.kcm.recv(1 << 21))
        return found


@contextlib.contextmanager
def joined(framing: Framing, batch: int, before: bytes = b"") -> Iterator[Joined]:
    """Attached by the kernel's own calls.

    Args:
        framing: it.
        batch: how many messages the program measures.
        before: what is written before the connection is attached.
    """
    near, far = _loopback.connection()
    with near, far, _kernel.open_socket() as kcm, framing.load(batch=batch) as program:
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Half of what the kernel makes of it is the window.
        near.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, max(framing.batch_bytes(batch), 1 << 19)
        )
        kcm.settimeout(TIMEOUT)
        if before:
            far.sendall(before)
        _kernel.attach(kcm.fileno(), near.fileno(), program.fd)
        yield Joined(kcm, near, far)


def divide(framing: Framing, received: list[bytes]) -> list[bytes]:
    delineator = Delineator(framing)
    found = []
    for data in received:
        at = 0
        for length in delineator.divide(data):
            found.append(data[at : at + length])
            at += length
        assert at == len(data), data[at:].hex()
    return found


@pytest.mark.parametrize("name", BATCHED)
def test_every_byte_is_a_segments_end(name: str) -> None:
    framing, encode = STREAMS[name]
    rng = random.Random(f"{SEED} {name}")
    sent = [encode(rng, size) for size in (0, 1, 9, 0, 2, 4, 0, 1)]
    stream = b"".join(sent)
    for batch in BATCHES:
        with joined(framing, batch) as ends:
            for cut in range(1, len(stream)) if batch == 7 else ():  # more and fewer in a segment
                ends.far.sendall(stream[:cut])
                ends.far.sendall(stream[cut:])
                received = ends.receive(len(stream))
                assert divide(framing, received) == sent, (SEED, batch, cut)
            for byte in stream:
                ends.far.sendall(bytes([byte]))
            assert divide(framing, ends.receive(len(stream))) == sent, (SEED, batch)
            # In one segment, so much is a super message as the batch allows.
            ends.far.sendall(stream)
            received = ends.receive(len(stream))
            assert divide(framing, received) == sent
            if name not in SEARCHES or find_strategy().far_loads:
                assert len(received) == -(-len(sent) // batch)
            ends.kcm.setblocking(False)
            with pytest.raises(BlockingIOError):
                ends.kcm.recv(1)


@pytest.mark.parametrize("batch", BATCHES)
def test_random_streams(batch: int) -> None:
    """Messages of all sizes in random pieces, of some framings that are unlike each other."""
    for name in ("LengthField-3-little", "FixedLength", "WEBSOCKET", "RESP", "NETSTRING"):
        framing, _ = STREAMS[name]
        rng = random.Random(f"{SEED} {name} {batch}")
        sent = messages(name, rng, 400) + messages(name, rng, 40, 60_000)
        rng.shuffle(sent)
        stream = b"".join(sent)

        def write(far: socket.socket, data: bytes, rng: random.Random) -> None:
            while data:
                size = rng.choice((1, 2, 3, 100, 5000, 70_000, 200_000))
                far.sendall(data[:size])
                data = data[size:]

        with joined(framing, batch) as ends:
            writer = threading.Thread(target=write, args=(ends.far, stream, rng))
            writer.start()
            received = ends.receive(len(stream))
            writer.join(TIMEOUT)
        assert divide(framing, received) == sent, (SEED, name)
        assert max(map(len, received)) <= framing.batch_bytes(batch)
        if batch > 1:
            assert len(received) < len(sent)


@pytest.mark.parametrize("size", [0, 60, 1000, 5000])
def test_no_longer_than_batch_bytes(size: int) -> None:
    """Of data that waited in TCP, where one segment may hold hundreds of kilobytes."""
    framing = LengthField(size=2, max_length=8192)
    message = size.to_bytes(2, "big") + bytes(size)
    # What fits into the window of a receive buffer that is not set yet.
    count = 50_000 // len(message)
    with joined(framing, 64, message * count) as ends:
        received = ends.receive(len(message) * count)
        ends.far.sendall(message * count)
        received += ends.receive(len(message) * count)
    longest = max(map(len, received))
    assert longest <= framing.batch_bytes(64) == 1 << 16
    assert longest <= 64 * len(message)
    assert divide(framing, received) == [message] * (2 * count)


def test_a_receive_buffer_of_just_batch_bytes() -> None:
    """A super message over the receive buffer would be EMSGSIZE."""
    framing = LengthField(size=2, max_length=4096)
    message = (1000).to_bytes(2, "big") + bytes(1000)
    near, far = _loopback.connection()
    with near, far, _kernel.open_socket() as kcm, framing.load(batch=64) as program:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, framing.batch_bytes(64) // 2)
        kcm.settimeout(TIMEOUT)
        _kernel.attach(kcm.fileno(), near.fileno(), program.fd)
        ends = Joined(kcm, near, far)
        writer = threading.Thread(target=far.sendall, args=(message * 1000,))
        writer.start()
        received = ends.receive(len(message) * 1000)
        writer.join(TIMEOUT)
        assert divide(framing, received) == [message] * 1000
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


# A framing, a good message, what comes behind it, the errno.
BOMBS: list[tuple[Framing, bytes, bytes, int]] = [
    (LengthField(max_length=1000), b"\0\0\0\5hello", b"\0\0\x03\xe5", errno.EMSGSIZE),
    (LengthField(adjustment=0), b"\0\0\0\5x", b"\0\0\0\3", errno.EBADMSG),
    (protocols.RESP, b"+OK\r\n", b"$99999999\r\n", errno.EMSGSIZE),
    (protocols.NETSTRING, b"1:x,", b"01:x,", errno.EBADMSG),
]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("framing", "good", "bad", "error"), BOMBS)
def test_a_bad_header_after_good_ones(
    framing: Framing, good: bytes, bad: bytes, error: int, batch: int
) -> None:
    with joined(framing, batch) as ends:
        ends.far.sendall(good * 5 + bad + good)
        assert divide(framing, ends.receive(len(good) * 5)) == [good] * 5
        poll = select.poll()
        poll.register(ends.near, 0)
        assert poll.poll(TIMEOUT * 1000), "the kernel told of no error"
        assert ends.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == error
        ends.kcm.setblocking(False)
        with pytest.raises(BlockingIOError):
            ends.kcm.recv(1)


def test_messages_of_the_longest_length() -> None:
    framing = LengthField(size=4, max_length=100_000)
    longest, short = (99_996).to_bytes(4, "big") + bytes(99_996), bytes(4)
    sent = [short, short, longest, short, longest, longest, short]
    with joined(framing, 64) as ends:
        writer = threading.Thread(target=ends.far.sendall, args=(b"".join(sent),))
        writer.start()
        received = ends.receive(sum(map(len, sent)))
        writer.join(TIMEOUT)
    assert divide(framing, received) == sent
    assert max(map(len, received)) <= framing.batch_bytes(64) == 100_000


@pytest.mark.parametrize("name", BATCHED)
def test_the_verifier_takes(name: str) -> None:
    """What docs/framing.md promises; where less than LARGEST_BATCH is possible, the table says."""
    framing, _ = STREAMS[name]
    framing.load(batch=64).close()
    if find_strategy().far_loads:
        framing.load(batch=LARGEST_BATCH).close()


def test_fixed_length_asks_where_the_message_begins() -> None:
    """Its program for one message does not."""
    with joined(FixedLength(3), 2) as ends:
        ends.far.sendall(b"aaabbbccc")
        assert ends.receive(9) == [b"aaabbb", b"ccc"]
