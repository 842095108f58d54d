"""Super messages through Multiplexor and KCMSocket, on a real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

import pykcm
from pykcm import KCMSocket, Multiplexor, _kernel, _loopback, protocols, statistics
from pykcm.errors import ArgumentError, FramingDefinitionError
from tests.children import begin, ends_well

from .connections import FRAMING, PATIENCE, Pair, message, reset

SEED = 20261126
BATCHES = pytest.mark.parametrize("batch", [1, 7, 64])
SENT = [message(b"%d" % n * (n % 4)) for n in range(9)]
Connect = Callable[[], Pair]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with contextlib.ExitStack() as opened:

        def new() -> Pair:
            near, far = _loopback.connection()
            for tcp in (near, far):
                opened.enter_context(tcp)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far.settimeout(PATIENCE)
            return near, far

        yield new


def received(mux: Multiplexor | KCMSocket, count: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < count:
        got += mux.recv_many(timeout=PATIENCE)
    return got


@BATCHES
@pytest.mark.parametrize("type", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=["dgram", "seq"])
def test_every_byte_is_a_segments_end(connect: Connect, batch: int, type: int) -> None:
    near, far = connect()
    stream = b"".join(SENT)
    with Multiplexor(FRAMING, batch=batch, type=type) as mux:
        mux.attach(near)
        for byte in stream:
            far.sendall(bytes([byte]))
        assert received(mux, len(SENT)) == SENT
        for cut in range(1, len(stream), 1 if batch == 7 else 5):
            far.sendall(stream[:cut])
            far.sendall(stream[cut:])
            assert received(mux, len(SENT)) == SENT, cut
        with pytest.raises(TimeoutError):
            mux.recv(timeout=0)


def test_a_long_message_comes_alone(connect: Connect) -> None:
    near, far = connect()
    long, short = message(b"x" * 9000), message(b"y")
    with Multiplexor(FRAMING, batch=64) as mux:
        mux.attach(near)

        def came() -> int:
            (counted,) = statistics.multiplexors()
            return counted.sockets[0].rx_messages or 0

        counts = []
        for sent in ([short] * 5, [long] * 5, [short, long]):
            before = came()
            far.sendall(b"".join(sent))
            assert received(mux, len(sent)) == sent
            counts.append(came() - before)
        assert counts == [1, 5, 1]


@BATCHES
def test_messages_of_all_sizes_both_ways(connect: Connect, batch: int) -> None:
    """Random sizes in random pieces, over three connections, and back."""
    rng = random.Random(f"{SEED} {batch}")
    pairs = [connect() for _ in range(3)]
    with Multiplexor(FRAMING.replace(max_length=1 << 17), batch=batch) as mux:
        for near, _ in pairs:
            mux.attach(near)
        sizes = [0, 1, 60, 1000, 5000, 70_000]
        sent = [message(rng.randbytes(rng.choice(sizes))) for _ in range(300)]

        def write(far: socket.socket, data: bytes) -> None:
            while data:
                size = rng.choice([1, 9, 4000, 100_000])
                far.sendall(data[:size])
                data = data[size:]

        writers = [
            threading.Thread(target=write, args=(far, b"".join(sent[i::3])))
            for i, (_, far) in enumerate(pairs)
        ]
        for writer in writers:
            writer.start()
        assert sorted(received(mux, len(sent))) == sorted(sent), SEED
        for writer in writers:
            writer.join(PATIENCE)

        came: list[list[bytes]] = [[], [], []]

        def read(far: socket.socket, messages: list[bytes]) -> None:
            with far.makefile("rb") as stream:
                while head := stream.read(4):
                    messages.append(head + stream.read(int.from_bytes(head, "big")))

        readers = [
            threading.Thread(target=read, args=(far, messages))
            for (_, far), messages in zip(pairs, came, strict=True)
        ]
        for reader in readers:
            reader.start()
        for first in range(0, len(sent), 70):
            some = sent[first : first + 70]
            assert mux.send_many(some, timeout=PATIENCE) == len(some)
        mux.flush(PATIENCE)
        for near, _ in pairs:
            mux.unattach(near, timeout=PATIENCE)
            near.close()
        for reader in readers:
            reader.join(PATIENCE)
        assert sorted(one for messages in came for one in messages) == sorted(sent), SEED


def test_clones_and_forked_workers_divide(connect: Connect) -> None:
    pairs = [connect() for _ in range(3)]
    reading, writing = os.pipe()
    with Multiplexor(FRAMING, batch=7) as mux:
        for near, _ in pairs:
            mux.attach(near)
        clones = [mux.clone() for _ in range(2)]
        mux.socket.recv_disabled = True
        children = []
        for clone in clones:

            def receive(clone: pykcm.KCMSocket = clone) -> None:
                for _, far in pairs:
                    far.close()
                for other in clones:
                    if other is not clone:
                        other.close()
                with contextlib.suppress(pykcm.Disconnected):
                    while True:
                        for one in clone.recv_many(timeout=PATIENCE):
                            os.write(writing, one[4:8])

            children.append(begin(receive))
        os.close(writing)
        for clone in clones:
            clone.close()
        numbers = [b"%04d" % n for n in range(600)]
        for i, (_, far) in enumerate(pairs):
            far.sendall(b"".join(message(number) for number in numbers[i::3]))
        for _, far in pairs:
            far.close()
        for _ in pairs:
            mux.wait_disconnection(timeout=PATIENCE)
        for pid in children:
            ends_well(pid)
        with open(reading, "rb") as stream:  # noqa: PTH123
            data = stream.read()
    assert sorted(data[i : i + 4] for i in range(0, len(data), 4)) == numbers


def test_select_and_event_loops_see_what_waits_here(connect: Connect) -> None:
    near, far = connect()
    with KCMSocket() as kcm:
        own = kcm.fileno()
        kcm.attach(near, FRAMING, batch=7)
        assert kcm.fileno() != own
        far.sendall(b"".join(SENT[:5]))
        assert select.select([kcm], [], [], PATIENCE)[0]
        assert kcm.recv() == SENT[0]
        assert not select.select([own], [], [], 0)[0], "the kernel has no more"
        for expected in SENT[1:5]:
            assert select.select([kcm], [], [], PATIENCE)[0]
            assert kcm.recv() == expected
        assert not select.select([kcm], [], [], 0)[0]

        async def main() -> list[bytes]:
            got: list[bytes] = []
            done = asyncio.Event()

            def readable() -> None:
                got.append(kcm.recv(1, socket.MSG_DONTWAIT))
                if len(got) == 5:
                    done.set()

            asyncio.get_running_loop().add_reader(kcm, readable)
            far.sendall(b"".join(SENT[:5]))
            await asyncio.wait_for(done.wait(), PATIENCE)
            asyncio.get_running_loop().remove_reader(kcm)
            return got

        assert asyncio.run(main()) == SENT[:5]
        kcm.unattach(near)


def test_from_fd_takes_the_framing(connect: Connect) -> None:
    near, far = connect()
    with Multiplexor(FRAMING, batch=7) as mux:
        mux.attach(near)
        mux.socket.recv_disabled = True
        fd = _kernel.clone(mux.socket.fileno())
        with pytest.raises(ArgumentError, match="framing"):
            KCMSocket.from_fd(fd, batch=7)
        with KCMSocket.from_fd(fd, framing=FRAMING, batch=7) as other:
            far.sendall(b"".join(SENT))
            assert received(other, len(SENT)) == SENT


def test_what_would_not_be_divided_alike_is_refused(connect: Connect) -> None:
    pairs = [connect() for _ in range(2)]
    other = FRAMING.replace(max_length=999)
    with KCMSocket() as kcm:
        kcm.attach(pairs[0][0], FRAMING, batch=7)
        for framing in (other, protocols.NETSTRING):
            with pytest.raises(ArgumentError, match="another framing"):
                kcm.attach(pairs[1][0], framing)
        with FRAMING.load() as program, pytest.raises(ArgumentError, match="program"):
            kcm.attach(pairs[1][0], program)
        kcm.clone().close()
        kcm.attach(pairs[1][0], FRAMING, batch=3)
        with pytest.raises(ArgumentError, match="first clone"):
            kcm.attach(connect()[0], FRAMING, batch=8)
    with KCMSocket() as kcm:
        kcm.attach(connect()[0], protocols.NETSTRING)
        with pytest.raises(ArgumentError, match="another framing"):
            kcm.attach(connect()[0], FRAMING, batch=2)
    with KCMSocket() as kcm, kcm.clone(), pytest.raises(ArgumentError, match="first clone"):
        kcm.attach(connect()[0], FRAMING, batch=2)


@pytest.mark.parametrize("batch", [0, -1, 257, 1.5])
def test_no_such_batch(connect: Connect, batch: int) -> None:
    near, _ = connect()
    with pytest.raises(FramingDefinitionError, match="batch"):
        Multiplexor(FRAMING, batch=batch)
    with KCMSocket() as kcm, pytest.raises(FramingDefinitionError, match="batch"):
        kcm.attach(near, FRAMING, batch=batch)
    with FRAMING.load() as program, pytest.raises(ArgumentError, match="program"):
        Multiplexor(program, batch=2)


def test_closing_and_unattaching_with_messages_in_hand(connect: Connect) -> None:
    pairs = [connect() for _ in range(2)]
    mux = Multiplexor(FRAMING, batch=64)
    for near, _ in pairs:
        mux.attach(near)
    clone = mux.clone()
    clone.recv_disabled = True
    pairs[0][1].sendall(b"".join(SENT))
    assert mux.recv(timeout=PATIENCE) == SENT[0]
    mux.unattach(pairs[0][0], timeout=PATIENCE)
    assert mux.recv(timeout=PATIENCE) == SENT[1]
    with pytest.warns(pykcm.UnreadWarning, match="7 messages"):
        mux.close()
    clone.close()
    near, far = connect()
    kcm = KCMSocket()
    kcm.attach(near, FRAMING, batch=64)
    with kcm.clone() as other:
        other.recv_disabled = True
        far.sendall(b"".join(SENT))
        assert kcm.recv(timeout=PATIENCE) == SENT[0]
        with pytest.warns(pykcm.UnreadWarning, match="8 messages"):
            kcm.close()


def test_a_refused_header_after_good_messages(connect: Connect) -> None:
    """What came before it is delivered; the transport ends with its reason."""
    near, far = connect()
    with Multiplexor(FRAMING.replace(max_length=1000), batch=7) as mux:
        mux.attach(near)
        far.sendall(b"".join(SENT[:3]) + b"\xff\xff\xff\xff" + b"more")
        assert received(mux, 3) == SENT[:3]
        with pytest.raises(pykcm.Disconnected):
            mux.recv(timeout=PATIENCE)
        [report] = mux.disconnections()
        assert (report.reason, report.errno) == (pykcm.Reason.OVERSIZE, errno.EMSGSIZE)


@pytest.mark.parametrize("batch", [1, 64])
def test_send_many_while_transports_die(connect: Connect, batch: int) -> None:
    """Of what a live connection received, each message is whole and none is there twice."""
    pairs = [connect() for _ in range(4)]
    came: list[list[bytes]] = [[] for _ in pairs]

    def read(far: socket.socket, messages: list[bytes]) -> None:
        with contextlib.suppress(OSError), far.makefile("rb") as stream:
            while head := stream.read(4):
                messages.append(stream.read(int.from_bytes(head, "big")))

    with Multiplexor(FRAMING, batch=batch) as mux:
        for near, _ in pairs:
            mux.attach(near)
        readers = [
            threading.Thread(target=read, args=(far, messages))
            for (_, far), messages in zip(pairs[1:], came[1:], strict=True)
        ]
        for reader in readers:
            reader.start()
        sent = 0
        for n in range(40):
            if n == 20:
                reset(pairs[0][1])
            some = [message(b"%06d" % (50 * n + i) + bytes(200)) for i in range(50)]
            sent += mux.send_many(some, timeout=PATIENCE)
        assert sent == 2000
        mux.flush(PATIENCE)
        for near, _ in pairs[1:]:
            mux.unattach(near, timeout=PATIENCE)
            near.close()
        for reader in readers:
            reader.join(PATIENCE)
    alive = [one for messages in came[1:] for one in messages]
    assert all(len(one) == 206 for one in alive)
    assert len(set(alive)) == len(alive)
    assert 1000 <= len(alive) <= 2000
