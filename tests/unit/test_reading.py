"""One message off a TCP connection that is not attached, and never a byte more."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from pykcm import (
    ArgumentError,
    CustomFraming,
    Delimiter,
    Disconnected,
    FixedLength,
    FramingError,
    KCMOSError,
    LengthField,
    MessageCut,
    protocols,
)
from tests.documents import blocks
from tests.protocol_streams import STREAMS, messages
from tests.strikes import no_descriptor_left

PATIENCE = 20.0
FRAMING = LengthField(size=4)
MESSAGE = b"\0\0\0\5hello"

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with near, far:
        yield near, far


def left(near: socket.socket, far: socket.socket) -> bytes:
    """What is left in the stream."""
    far.shutdown(socket.SHUT_WR)
    near.settimeout(PATIENCE)
    return b"".join(iter(lambda: near.recv(1 << 16), b""))


@pytest.mark.parametrize("mode", [None, 0.0, 5.0])
def test_never_a_byte_more(pair: Pair, mode: float | None) -> None:
    near, far = pair
    near.settimeout(mode)
    far.sendall(MESSAGE + b"\0\0\0\1!rest")
    assert FRAMING.read_message(near, timeout=PATIENCE) == MESSAGE
    assert FRAMING.read_message(near, timeout=PATIENCE) == b"\0\0\0\1!"
    assert near.gettimeout() == mode
    assert left(near, far) == b"rest"


@pytest.mark.parametrize("name", STREAMS)
def test_every_framing(pair: Pair, name: str) -> None:
    import random

    near, far = pair
    framing = STREAMS[name][0]
    sent = messages(name, random.Random(name), 8, 60_000)
    stream = b"".join(sent)
    cut = len(stream) // 2
    far.sendall(stream[:cut])
    rest = threading.Timer(0.02, far.sendall, [stream[cut:]])
    rest.start()
    assert [framing.read_message(near, timeout=PATIENCE) for _ in sent] == sent
    rest.join()
    assert left(near, far) == b""


@pytest.mark.skipif(
    not hasattr(resource, "RUSAGE_THREAD"), reason="this Python does not tell what a thread uses"
)
def test_a_slow_peer_costs_no_time(pair: Pair) -> None:
    near, far = pair

    def drip() -> None:
        for byte in MESSAGE:
            time.sleep(0.05)
            far.send(bytes([byte]))

    far.send(MESSAGE)
    assert FRAMING.read_message(near, timeout=PATIENCE) == MESSAGE  # the first one imports
    thread = threading.Thread(target=drip)
    thread.start()
    before = resource.getrusage(resource.RUSAGE_THREAD)
    assert FRAMING.read_message(near, timeout=PATIENCE) == MESSAGE
    after = resource.getrusage(resource.RUSAGE_THREAD)
    thread.join()
    # Once for each byte; one who spins does not sleep at all and burns the time.
    assert after.ru_nvcsw - before.ru_nvcsw <= 2 * len(MESSAGE)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.2


def test_a_message_as_large_as_the_buffer_allows(pair: Pair) -> None:
    near, far = pair
    message = struct.pack(">I", 1 << 20) + bytes(1 << 20)
    thread = threading.Thread(target=far.sendall, args=[message + b"x"])
    thread.start()
    assert FRAMING.replace(max_length=1 << 21).read_message(near, timeout=PATIENCE) == message
    thread.join()
    assert left(near, far) == b"x"


def test_a_buffer_that_cannot_take_it(pair: Pair) -> None:
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    far.sendall(struct.pack(">I", 500_000))
    with pytest.raises(KCMOSError, match="receive buffer") as caught:
        FRAMING.read_message(near, timeout=PATIENCE)
    assert caught.value.errno == errno.ENOBUFS


def test_a_time_out_takes_nothing(pair: Pair) -> None:
    near, far = pair
    with pytest.raises(TimeoutError, match="0 bytes of a message"):
        FRAMING.read_message(near, timeout=0)
    far.sendall(MESSAGE[:6])
    with pytest.raises(TimeoutError, match="timed out: 6 bytes of 9 have come"):
        FRAMING.read_message(near, timeout=0.05)
    far.sendall(MESSAGE[6:])
    assert FRAMING.read_message(near, timeout=PATIENCE) == MESSAGE


def test_refused_headers_take_nothing(pair: Pair) -> None:
    near, far = pair
    far.sendall(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(FramingError) as caught:
        FRAMING.read_message(near, timeout=PATIENCE)
    assert caught.value.errno == errno.EMSGSIZE
    assert Delimiter(b"\r\n").read_message(near, timeout=0) == b"HTTP/1.1 400 Bad Request\r\n"
    far.sendall(b"\0" * 4096)
    with pytest.raises(FramingError) as caught:
        Delimiter(b"\n", 4096).read_message(near, timeout=PATIENCE)
    assert caught.value.errno == errno.EMSGSIZE
    undecided = CustomFraming("r0 = 0\nexit", max_length=100, measure=lambda _: 0)
    with pytest.raises(FramingError, match="do not tell"):
        undecided.read_message(near, timeout=PATIENCE)


@pytest.mark.parametrize("reset", [False, True])
def test_an_end_in_the_middle(pair: Pair, reset: bool) -> None:
    near, far = pair
    far.sendall(MESSAGE[:7])
    if reset:
        near.recv(7, socket.MSG_PEEK | socket.MSG_WAITALL)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(MessageCut, match="after 7 bytes of a message of 9") as caught:
        FRAMING.read_message(near, timeout=PATIENCE)
    assert caught.value.message == MESSAGE[:7]
    assert caught.value.errno == (errno.ECONNRESET if reset else errno.EPIPE)


def test_an_end_while_it_waits(pair: Pair) -> None:
    near, far = pair
    far.sendall(MESSAGE + b"\0\0")
    threading.Timer(0.1, far.shutdown, [socket.SHUT_RDWR]).start()
    assert FRAMING.read_message(near) == MESSAGE
    with pytest.raises(MessageCut, match="after 2 bytes of a message") as caught:
        FRAMING.read_message(near)
    assert caught.value.message == b"\0\0"


def test_an_end_before_a_message(pair: Pair) -> None:
    near, far = pair
    far.close()
    with pytest.raises(Disconnected, match="before a message") as caught:
        FRAMING.read_message(near, timeout=PATIENCE)
    assert not isinstance(caught.value, MessageCut)


def test_the_whole_message_may_come_with_the_end(pair: Pair) -> None:
    near, far = pair
    far.sendall(MESSAGE)
    far.close()
    assert FRAMING.read_message(near, timeout=PATIENCE) == MESSAGE


def test_a_low_water_mark_of_the_callers(pair: Pair) -> None:
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    threading.Timer(0.1, far.sendall, [MESSAGE]).start()
    assert FRAMING.read_message(near, timeout=PATIENCE) == MESSAGE
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1000


def test_urgent_data(pair: Pair) -> None:
    near, far = pair
    far.sendall(MESSAGE[:6])
    far.send(b"!", socket.MSG_OOB)
    with pytest.raises(KCMOSError, match="urgent"):
        FRAMING.read_message(near, timeout=PATIENCE)


def test_what_is_not_a_connection(pair: Pair) -> None:
    near, _ = pair
    near.close()
    with pytest.raises(KCMOSError):
        FRAMING.read_message(near, timeout=PATIENCE)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(KCMOSError, match="connected TCP socket"):
        FRAMING.read_message(ours, timeout=PATIENCE)


def test_what_was_begun(pair: Pair) -> None:
    near, far = pair
    far.sendall(MESSAGE[3:] + b"rest")
    assert FRAMING.read_message(near, begun=MESSAGE[:3], timeout=PATIENCE) == MESSAGE
    assert FRAMING.read_message(near, begun=MESSAGE, timeout=PATIENCE) == MESSAGE
    with pytest.raises(ArgumentError, match="1 bytes after a message"):
        FRAMING.read_message(near, begun=MESSAGE + b"!")
    assert left(near, far) == b"rest"


def test_no_descriptor_is_left(pair: Pair) -> None:
    near, far = pair
    with no_descriptor_left():
        with pytest.raises(TimeoutError):
            FRAMING.read_message(near, timeout=0)
        far.sendall(MESSAGE)
        FRAMING.read_message(near, timeout=PATIENCE)


def test_asyncio(pair: Pair) -> None:
    near, far = pair

    async def read() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(FRAMING.aread_message(near), 0.05)
        far.sendall(MESSAGE[:6])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(FRAMING.aread_message(near), 0.05)
        reading = asyncio.ensure_future(FRAMING.aread_message(near))
        await asyncio.sleep(0.01)
        far.sendall(MESSAGE[6:] + b"rest")
        assert await asyncio.wait_for(reading, PATIENCE) == MESSAGE

    near.setblocking(False)
    asyncio.run(read())
    assert left(near, far) == b"rest"


def test_trio(pair: Pair) -> None:
    near, far = pair

    async def read() -> None:
        with trio.move_on_after(0.05):
            await FRAMING.aread_message(near)
        far.sendall(MESSAGE + b"rest")
        with trio.fail_after(PATIENCE):
            assert await FRAMING.aread_message(near) == MESSAGE

    trio.run(read)
    assert left(near, far) == b"rest"


def shown(name: str) -> Any:
    """A function of docs/handshakes.md."""
    (block,) = (b for b in blocks("docs/handshakes.md") if f"def {name}(" in b.text)
    names: dict[str, Any] = {}
    exec(block.text, names)
    return names[name]


def test_what_a_buffered_reader_has(pair: Pair) -> None:
    """As docs/handshakes.md shows it."""
    near, far = pair
    far.sendall(b"220 welcome\n" + MESSAGE + MESSAGE[:6])
    reader = near.makefile("rb")
    assert reader.readline() == b"220 welcome\n"
    far.sendall(MESSAGE[6:] + b"\0")
    assert shown("take_over")(reader, near, FRAMING) == [MESSAGE, MESSAGE]
    assert left(near, far) == b"\0"


def test_fixed_lengths(pair: Pair) -> None:
    near, far = pair
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    far.sendall(preface + bytes.fromhex("000000 04 00 00000000"))
    assert FixedLength(len(preface)).read_message(near, timeout=PATIENCE) == preface
    assert len(protocols.HTTP2.read_message(near, timeout=PATIENCE)) == 9


def test_what_asyncio_streams_have(pair: Pair) -> None:
    """As docs/handshakes.md shows it."""
    near, far = pair

    async def read() -> bytes:
        reader, writer = await asyncio.open_connection(sock=near.dup())
        far.sendall(b"220 welcome\n" + MESSAGE[:6])
        assert await reader.readline() == b"220 welcome\n"
        tcp, rest = await shown("take_back")(reader, writer)
        far.sendall(MESSAGE[6:] + b"\0")
        with tcp:
            message = await FRAMING.aread_message(tcp, begun=rest)
            writer.close()
            assert tcp.recv(9) == b"\0"
        return message

    assert asyncio.run(read()) == MESSAGE
