"""Every framing on a real TCP connection: KCM delivers just the messages that were written."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

import pykcm
from pykcm import _loopback, bpf, protocols
from pykcm._offset import find_strategy
from pykcm.framing import (
    CustomFraming,
    Delimiter,
    FixedLength,
    Framing,
    Layout,
    LengthField,
    Varint,
)
from pykcm.framing.field import Field
from pykcm.framing.search import LARGEST_SEARCH, Find
from pykcm.framing.steps import Case, Switch
from tests.protocol_streams import EDGES, STREAMS, messages

SEED = 20240607
STREAMS_EACH = 200
# Seconds; the guest may be emulated, on a machine that does other things too.
TIMEOUT = 60


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, bpf.Program]]:
    """Each framing's program, loaded once: the verifier takes its time over the longest."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(framing.load()) for name, (framing, _) in STREAMS.items()}


@contextlib.contextmanager
def joined(program: bpf.Program) -> Iterator[tuple[pykcm.KCMSocket, socket.socket, socket.socket]]:
    near, far = _loopback.connection()
    with near, far, pykcm.KCMSocket() as kcm:
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        kcm.settimeout(TIMEOUT)
        kcm.attach(near, program)
        # Room for the messages of these tests; for the framing's longest, each receive would
        # need a buffer of megabytes.
        kcm.max_message_size = 100_000
        yield kcm, near, far


def receive(kcm: pykcm.KCMSocket, count: int) -> list[bytes]:
    received: list[bytes] = []
    while len(received) < count:
        received += kcm.recv_many(count - len(received))
    return received


def split(framing: Framing, stream: bytes) -> list[bytes]:
    found = []
    while stream:
        length = framing.measure(stream)
        assert 0 < length <= len(stream)
        found.append(stream[:length])
        stream = stream[length:]
    return found


def pieces(rng: random.Random, sent: list[bytes]) -> list[bytes]:
    """The stream cut at random, most often within a header."""
    stream = b"".join(sent)
    starts = [0]
    for message in sent:
        starts.append(starts[-1] + len(message))
    cuts = {0, len(stream)}
    for _ in range(rng.randrange(6)):
        near_header = min(rng.choice(starts) + rng.randrange(12), len(stream))
        cuts.add(rng.choice((near_header, near_header, rng.randrange(len(stream)))))
    ordered = sorted(cuts)
    return [stream[start:end] for start, end in itertools.pairwise(ordered)]


@pytest.mark.parametrize("name", STREAMS)
def test_random_pieces(name: str, programs: dict[str, bpf.Program]) -> None:
    framing, _ = STREAMS[name]
    rng = random.Random(f"{SEED} {name}")
    with joined(programs[name]) as (kcm, _, far):
        for number in range(STREAMS_EACH):
            sent = messages(name, rng, rng.randint(1, 4), 3000 if number % 10 == 0 else 0)
            written = pieces(rng, sent)
            where = f"seed {SEED}, stream {number}, pieces of {[len(p) for p in written]}"
            assert split(framing, b"".join(sent)) == sent, where
            for piece in written:
                far.sendall(piece)
            try:
                assert receive(kcm, len(sent)) == sent, where
            except OSError as error:
                pytest.fail(f"{where}: {error}")
        with pytest.raises(BlockingIOError):
            kcm.recv(None, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("name", STREAMS)
def test_one_byte_per_segment(name: str, programs: dict[str, bpf.Program]) -> None:
    _, encode = STREAMS[name]
    rng = random.Random(f"{SEED} {name}")
    sent = [encode(rng, size) for size in (0, 1, 20, 0, 130, 3)]
    with joined(programs[name]) as (kcm, _, far):
        for byte in b"".join(sent):
            far.sendall(bytes([byte]))
        assert receive(kcm, len(sent)) == sent, f"seed {SEED}"
        with pytest.raises(BlockingIOError):
            kcm.recv(None, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("name", STREAMS)
def test_all_in_one_write(name: str, programs: dict[str, bpf.Program]) -> None:
    _, encode = STREAMS[name]
    rng = random.Random(f"{SEED} {name}")
    sent = [encode(rng, rng.choice(EDGES)) for _ in range(100)]
    sent += [encode(rng, 60_000), encode(rng, 5)]
    with joined(programs[name]) as (kcm, _, far):
        writer = threading.Thread(target=far.sendall, args=(b"".join(sent),))
        writer.start()
        try:
            assert receive(kcm, len(sent)) == sent, f"seed {SEED}"
        finally:
            kcm.close()
            writer.join(TIMEOUT)


def test_the_longest_websocket_length(programs: dict[str, bpf.Program]) -> None:
    _, encode = STREAMS["WEBSOCKET"]
    sent = [encode(random.Random(SEED), size) for size in (65535, 65536, 70_000)]
    with joined(programs["WEBSOCKET"]) as (kcm, _, far):
        writer = threading.Thread(target=far.sendall, args=(b"".join(sent),))
        writer.start()
        assert [kcm.recv() for _ in sent] == sent
        writer.join(TIMEOUT)


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"end", b"\xff" * 8])
def test_a_delimiter_past_the_first_64_kib_of_the_data(delimiter: bytes) -> None:
    """Where bpf_skb_load_bytes does not reach in kernels older than 5.19."""
    sent = [b"x" * size + delimiter for size in (60_000, 60_000, 0, 9)]
    with Delimiter(delimiter, LARGEST_SEARCH).load() as program, joined(program) as (kcm, _, far):
        writer = threading.Thread(target=far.sendall, args=(b"".join(sent),))
        writer.start()
        assert [kcm.recv() for _ in sent] == sent
        writer.join(TIMEOUT)


def test_the_postgresql_start_then_the_rest() -> None:
    startup = struct.pack(">IHH", 8 + 14, 3, 0) + b"user\0postgres\0"
    query = b"Q" + struct.pack(">I", 4 + 9) + b"SELECT 1\0"
    near, far = _loopback.connection()
    with near, far, pykcm.KCMSocket() as kcm:
        kcm.settimeout(TIMEOUT)
        kcm.attach(near, protocols.POSTGRESQL_CLIENT.replace(max_length=20_000))
        far.sendall(startup + query + query)
        assert [kcm.recv() for _ in range(3)] == [startup, query, query]


WEBSOCKET_SMALL = protocols.WEBSOCKET.replace(max_length=2000)

# What is refused: the framing, a good message, what comes after it, the errno.
BAD: dict[str, tuple[Framing, bytes, bytes, int]] = {
    "oversize": (LengthField(max_length=1000), b"\0\0\0\5hello", b"\0\0\x03\xe5", errno.EMSGSIZE),
    "oversize, 64 bits, wraps": (
        LengthField(size=8, multiplier=8),
        bytes(8),
        b"\x20" + bytes(7),
        errno.EMSGSIZE,
    ),
    "oversize, negative": (LengthField(), b"\0\0\0\0", b"\xff\xff\xff\xff", errno.EMSGSIZE),
    "shorter than the header": (
        LengthField(adjustment=0),
        b"\0\0\0\5x",
        b"\0\0\0\3",
        errno.EBADMSG,
    ),
    "length 0": (LengthField(adjustment=0), b"\0\0\0\4", b"\0\0\0\0", errno.EBADMSG),
    "magic": (
        protocols.BGP,
        b"\xff" * 16 + b"\0\x13\x04",
        b"\xff" * 15 + b"\xfe\0\x13\x04",
        errno.EBADMSG,
    ),
    "endless varint": (Varint(), b"\3abc", b"\x80" * 20, errno.EBADMSG),
    "endless remaining length": (protocols.MQTT, b"\xc0\0", b"\x30" + b"\xff" * 9, errno.EBADMSG),
    "indefinite length": (protocols.LDAP, b"\x30\1x", b"\x30\x80\2\1\1\0\0", errno.EBADMSG),
    "leading zero": (protocols.NETSTRING, b"1:x,", b"01:x,", errno.EBADMSG),
    "long form of a short length": (
        WEBSOCKET_SMALL,
        b"\x81\1x",
        b"\x81\x7e\0\x7dxx",
        errno.EBADMSG,
    ),
    "oversize websocket": (
        WEBSOCKET_SMALL,
        b"\x81\1x",
        b"\x82\x7f\x80\0\0\0\0\0\0\0",
        errno.EMSGSIZE,
    ),
    "no delimiter": (Delimiter(b"\r\n", 100), b"line\r\n", b"x" * 100, errno.EMSGSIZE),
    "delimiter too late": (Delimiter(b"\r\n", 9), b"\r\n", b"12345678\r\n", errno.EMSGSIZE),
    "version": (protocols.TLS, b"\x17\3\3\0\1x", b"\x17\2\3\0\1x", errno.EBADMSG),
    "unaligned": (
        protocols.DIAMETER,
        b"\1\0\0\x14" + bytes(16),
        b"\1\0\0\x15" + bytes(17),
        errno.EBADMSG,
    ),
    "by hand": (
        CustomFraming(f"r7 = message_offset\nr0 = *(u8 *)skb[r7 + 0]\nif r0 != 0 goto +1\n"
                      f"r0 = -{errno.EPROTO}\nexit", max_length=255),
        b"\2x",
        b"\0",
        errno.EPROTO,
    ),
}  # fmt: skip


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("name", BAD)
def test_bad_stream(name: str, apart: bool) -> None:
    framing, good, bad, error = BAD[name]
    near, far = _loopback.connection()
    with near, far, pykcm.KCMSocket() as kcm:
        kcm.settimeout(TIMEOUT)
        kcm.attach(near, framing)
        if apart:
            far.sendall(good * 3)
            assert [kcm.recv() for _ in range(3)] == [good] * 3
            far.sendall(bad + good * 2)
        else:
            far.sendall(good * 3 + bad + good * 2)
            assert [kcm.recv() for _ in range(3)] == [good] * 3
        poll = select.poll()
        poll.register(near, 0)
        assert poll.poll(TIMEOUT * 1000), "the kernel told of no error"
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == error
        with pytest.raises(BlockingIOError):
            kcm.recv(None, socket.MSG_DONTWAIT)


def test_fixed_length_needs_no_strategy() -> None:
    near, far = _loopback.connection()
    with near, far, pykcm.KCMSocket() as kcm, FixedLength(3).load() as program:
        kcm.settimeout(TIMEOUT)
        assert program.info.verified_instructions in {0, 2}  # 0: a kernel that does not count
        kcm.attach(near, program)
        far.sendall(b"abcdefgh")
        far.sendall(b"i")
        assert [kcm.recv() for _ in range(3)] == [b"abc", b"def", b"ghi"]


def test_the_longest_search_is_cheap_to_verify() -> None:
    """The most that any framing here asks of the verifier; its counts are in docs/framing.md."""
    rule = (Switch(Field(0), (Case(((0, 9),), (Find(b"12345678", LARGEST_SEARCH),)),)),)
    with Layout("search", rule, min_length=100).load() as program:
        most = 10_000 if find_strategy().far_loads else 120_000
        assert program.info.verified_instructions < most
