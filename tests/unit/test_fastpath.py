"""The calls of _fastpath.c and of _slowpath.py, over Unix sockets: the same tests and results."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import math
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import trio

import pykcm
from pykcm.errors import ArgumentError, Disconnected, KCMOSError, MessageTruncated
from tests import turns
from tests.children import in_child
from tests.strikes import alarms
from tests.unit.port_owner import PATHS, own
from tests.unit.starving import Case, each_allocation_fails

ROOM = 1000
FAST = [path for path in PATHS if path.__name__.endswith("_fastpath")]


class StruckError(Exception):
    """What a signal's handler raises."""


@pytest.fixture(params=PATHS, ids=lambda path: path.__name__.rpartition(".")[2])
def path(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture(params=[socket.SOCK_SEQPACKET, socket.SOCK_DGRAM], ids=["seqpacket", "dgram"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, request.param)
    with ours, theirs:
        theirs.settimeout(5)
        yield ours, theirs


@pytest.fixture
def owner(path: ModuleType, pair: tuple[socket.socket, socket.socket]) -> Any:
    return own(path, pair[0])


@pytest.fixture
def peer(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    return pair[1]


def fill(owner: Any, message: bytes = b"x" * 900) -> int:
    """Send until there is no room; how many messages that took."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            owner.send(message, socket.MSG_DONTWAIT)
            sent += 1
    return sent


def later(seconds: float, what: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, what)
    timer.start()
    return timer


# ---- receiving ----


def test_a_closed_one_hands_out_no_message(owner: Any, peer: socket.socket) -> None:
    """Closing told that they are lost."""
    owner._port.ahead = 64
    for _ in range(5):
        peer.send(b"message")
    assert owner.recv() == b"message"
    assert owner._port.held == 4
    owner._port.fd = -1
    with pytest.raises(KCMOSError, match="EBADF"):
        owner.recv(timeout=0)
    with pytest.raises(KCMOSError, match="EBADF"):
        owner.recv_many(timeout=0)
    assert owner._port.held == 4


def test_recv(owner: Any, peer: socket.socket) -> None:
    for message in (b"a", b"b" * (ROOM - 1), b"\0" * 7):
        peer.send(message)
        assert owner.recv() == message
    peer.send(b"more than asked for")
    assert owner.recv(4) == b"more than asked for"
    assert owner._port.taken == 4


def test_recv_an_empty_message(owner: Any, peer: socket.socket) -> None:
    peer.send(b"")
    assert owner.recv(timeout=1) == b""


@pytest.mark.parametrize("bufsize", [None, 0, 1, ROOM, 1 << 20, 1 << 31, 1 << 62])
def test_recv_of_any_bufsize(owner: Any, peer: socket.socket, bufsize: int | None) -> None:
    if owner.path.__name__.endswith("_slowpath") and (bufsize or 0) > 1 << 20:
        pytest.skip("the slow path allocates what is asked for")
    peer.send(b"message")
    assert owner.recv(bufsize) == b"message"


def test_a_larger_bufsize_makes_room(owner: Any, peer: socket.socket) -> None:
    peer.send(b"x" * 3 * ROOM)
    assert owner.recv(4 * ROOM) == b"x" * 3 * ROOM


def test_a_message_that_is_cut_is_an_error_once(owner: Any, peer: socket.socket) -> None:
    peer.send(b"x" * ROOM)
    peer.send(b"next")
    with pytest.raises(MessageTruncated) as caught:
        owner.recv()
    assert caught.value.message == b"x" * ROOM
    assert owner.recv(timeout=1) == b"next"


def test_recv_many(owner: Any, peer: socket.socket) -> None:
    sent = [b"%d" % i for i in range(8)]
    for message in sent:
        peer.send(message)
    assert owner.recv_many(3) == sent[:3]
    assert owner.recv_many() == sent[3:]
    with pytest.raises(BlockingIOError):
        owner.recv_many(1 << 62, socket.MSG_DONTWAIT)


def test_recv_many_stops_before_a_message_that_is_cut(owner: Any, peer: socket.socket) -> None:
    for message in (b"1", b"2", b"x" * ROOM, b"3"):
        peer.send(message)
    assert owner.recv_many() == [b"1", b"2"]
    with pytest.raises(MessageTruncated):
        owner.recv_many()
    assert owner.recv_many(timeout=1) == [b"3"]


def test_large_messages_of_one_length(path: ModuleType, pair: Any) -> None:
    # These are received straight into their objects, once two were alike.
    owner, lengths = own(path, pair[0], 1 << 16), [9000, 9000, 9000, 9000, 8999, 9001, 30000, 9000]
    for turn in range(3):
        for at in range(0, len(lengths), 2):
            sent = [bytes([turn + at + i]) * lengths[at + i] for i in range(2)]
            for message in sent:
                pair[1].send(message)
            got: list[bytes] = []
            while len(got) < 2:  # the slow path's batches are smaller
                got += owner.recv_many(timeout=1)
            assert got == sent
    for length in lengths:
        pair[1].send(b"y" * length)
        assert owner.recv() == b"y" * length


def test_ahead_receives_more_than_is_asked_for(owner: Any, peer: socket.socket) -> None:
    owner._port.ahead = 64
    for i in range(5):
        peer.send(b"%d" % i)
    assert owner.recv() == b"0"
    assert owner._port.held == 4
    assert owner._port.pull() is False
    peer.send(b"5")
    assert owner._port.pull() is True
    assert owner.recv_many() == [b"1", b"2", b"3", b"4", b"5"]


def test_recv_into_and_its_relatives(owner: Any, peer: socket.socket) -> None:
    buffer = bytearray(10)
    for _ in range(5):
        peer.send(b"abcdef")
    assert owner.recv_into(buffer) == 6
    assert buffer[:6] == b"abcdef"
    assert owner.recvfrom(3) == (b"abcdef", None)
    assert owner.recvfrom_into(buffer, 8) == (6, None)
    assert owner.recvmsg(4)[0] == b"abcd"
    parts = [bytearray(2), bytearray(3)]
    assert owner.recvmsg_into(parts)[0] == 5
    assert parts == [b"ab", b"cde"]


def test_a_message_that_does_not_fit_into_the_buffer(owner: Any, peer: socket.socket) -> None:
    peer.send(b"abcdef")
    peer.send(b"next")
    with pytest.raises(MessageTruncated) as caught:
        owner.recv_into(bytearray(2))
    assert caught.value.message == b"abcdef"
    assert owner.recv() == b"next"


def test_wrong_arguments_take_no_message(owner: Any, peer: socket.socket) -> None:
    peer.send(b"message")
    for call in (
        lambda: owner.recv(-1),
        lambda: owner.recv("x"),
        lambda: owner.recv(1, 2, 3),
        lambda: owner.recv(flags_="x"),
        lambda: owner.recv(1, "x"),
        lambda: owner.recv(1, 1 << 40),
        lambda: owner.recv_many(0),
        lambda: owner.recv_many(-1),
        lambda: owner.recv_many(1.5),
        lambda: owner.recv_into(b"read-only"),
        owner.recv_into,
        lambda: owner.recv_into(bytearray(3), 4),
        lambda: owner.recvfrom(-1),
        lambda: owner.recvmsg("x"),
        lambda: owner.recvmsg_into(5),
        lambda: owner.recv(timeout=-1),
    ):
        with pytest.raises((TypeError, ValueError, OverflowError, ArgumentError)):
            call()
    assert owner.recv(timeout=1) == b"message"


def test_peek(owner: Any, peer: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        owner.recv(None, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    peer.send(b"abc")
    buffer = bytearray(5)
    for ahead in (1, 64):
        assert owner.recv(None, socket.MSG_PEEK) == b"abc"
        assert owner.recv_many(5, socket.MSG_PEEK) == [b"abc"]
        assert owner.recvfrom(10, socket.MSG_PEEK) == (b"abc", None)
        assert owner.recv_into(buffer, 0, socket.MSG_PEEK) == 3
        assert buffer[:3] == b"abc"
        owner._port.ahead = ahead
        owner._port.pull()
    assert owner.recv() == b"abc"


def test_peek_at_a_message_that_is_cut(owner: Any, peer: socket.socket) -> None:
    peer.send(b"x" * ROOM)
    for _ in range(2):
        with pytest.raises(MessageTruncated):
            owner.recv(None, socket.MSG_PEEK)
    owner._port.pull()
    for flags in (socket.MSG_PEEK, 0):
        with pytest.raises(MessageTruncated):
            owner.recv(None, flags)
    assert owner._port.held == 0


# ---- sending ----


def test_send(owner: Any, peer: socket.socket) -> None:
    for data in (b"bytes", bytearray(b"array"), memoryview(b"view")[1:]):
        assert owner.send(data) == len(data)
        assert peer.recv(100) == bytes(data)
    for wrong in ("text", None, 5):
        with pytest.raises(TypeError):
            owner.send(wrong)
    with pytest.raises(KCMOSError) as caught:
        owner.send(b"")
    assert caught.value.errno == errno.EINVAL


def test_send_many(owner: Any, peer: socket.socket) -> None:
    assert owner.send_many([]) == 0
    assert owner.send_many([b"1", bytearray(b"2"), b"3"]) == 3
    assert owner.send_many(iter([b"4"])) == 1
    assert owner.sent_many == 1
    assert [peer.recv(10) for _ in range(4)] == [b"1", b"2", b"3", b"4"]
    for wrong, error in (
        ([b"1", b""], KCMOSError),
        ([b"1", "2"], TypeError),
        (5, TypeError),
    ):
        with pytest.raises(error):
            owner.send_many(wrong)
    with pytest.raises(KCMOSError):
        owner.send_many([b"1"], socket.MSG_MORE)
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(10)


def test_send_many_returns_what_there_was_room_for(owner: Any, peer: socket.socket) -> None:
    messages = [b"%04d" % i + b"x" * 900 for i in range(1000)]
    count = owner.send_many(messages, timeout=0)
    assert 0 < count < 1000
    assert owner.sent_many == count
    assert [peer.recv(2000) for _ in range(count)] == messages[:count]


def test_send_waits_for_room(owner: Any, peer: socket.socket) -> None:
    sent = fill(owner)
    with pytest.raises(BlockingIOError):
        owner.send(b"y", socket.MSG_DONTWAIT)
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError):
            owner.send(b"y", timeout=timeout)
    timer = later(0.1, lambda: [peer.recv(1000) for _ in range(sent)])
    assert owner.send(b"last", timeout=5) == 4
    timer.join()
    assert peer.recv(1000) == b"last"


def test_what_flags_leave_behind(owner: Any) -> None:
    port = owner._port
    owner.send(b"a", pykcm.MSG_BATCH)
    assert (port.open, port.batched) == (0, 1)
    owner.send(b"b")
    assert (port.open, port.batched) == (0, 0)
    owner.send(b"c", socket.MSG_MORE)
    assert port.open == 1
    with pytest.raises(KCMOSError) as caught:
        owner.send_many([b"1"])
    assert caught.value.errno == errno.EBUSY
    owner.send(b"")
    assert port.open == 0
    port.shared = True
    owner.send(b"d", pykcm.MSG_BATCH)
    assert port.batched == 0


# ---- time-outs, closed descriptors ----


@pytest.mark.parametrize("timeout", [-1, -math.inf, math.nan, "x", b"1", [], 1j])
def test_a_timeout_that_cannot_be(owner: Any, peer: socket.socket, timeout: Any) -> None:
    peer.send(b"a")
    calls: tuple[Callable[[], object], ...] = (
        lambda: owner.recv(timeout=timeout),
        lambda: owner.recv_many(timeout=timeout),
        lambda: owner.send(b"b", timeout=timeout),
        lambda: owner.send_many([b"b"], timeout=timeout),
    )
    for call in calls:
        with pytest.raises(ArgumentError, match="timeout"):
            call()
    assert owner.recv() == b"a"


@pytest.mark.parametrize("timeout", [None, math.inf, 1e10, 1e300, 10**6, 5])
def test_a_long_timeout(owner: Any, peer: socket.socket, timeout: float | None) -> None:
    for own_timeout in (False, True):
        timer = later(0.05, lambda: peer.send(b"a"))
        owner.timeout = timeout if own_timeout else 0
        assert (owner.recv() if own_timeout else owner.recv(timeout=timeout)) == b"a"
        timer.join()


def test_a_short_timeout(owner: Any) -> None:
    def took(timeout: float) -> float:
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            owner.recv(timeout=timeout)
        return time.monotonic() - begin

    for timeout in (0, 0.05):
        # The shortest of several: a busy host may make any longer, but not all.
        assert timeout <= min(took(timeout) for _ in range(5)) < timeout + 1
    owner.timeout = 0
    with pytest.raises(BlockingIOError):
        owner.recv()
    owner.timeout = 0.05
    with pytest.raises(TimeoutError):
        owner.recv_many()


def test_a_closed_descriptor(owner: Any, pair: Any) -> None:
    calls: list[Callable[[], object]] = [
        owner.recv,
        owner.recv_many,
        lambda: owner.recv(None, socket.MSG_PEEK),
        lambda: owner.send(b"a"),
        lambda: owner.send_many([b"a"]),
        lambda: owner.recv_into(bytearray(5)),
    ]
    fd = os.dup(pair[0].fileno())
    for number in (-1, fd):
        owner._port.fd = number
        if number == fd:
            os.close(fd)
        for call in calls:
            with pytest.raises(KCMOSError) as caught:
                call()
            assert caught.value.errno == errno.EBADF


def test_a_descriptor_that_is_closed_while_a_call_waits(owner: Any, peer: socket.socket) -> None:
    def close() -> None:
        owner._port.fd = -1
        peer.send(b"wakes it")

    timer = later(0.1, close)
    with pytest.raises(KCMOSError) as caught:
        owner.recv(timeout=5)
    assert caught.value.errno == errno.EBADF
    timer.join()


# ---- threads ----


def run_threads(count: int, what: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            what()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    with turns.often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not failures


@pytest.mark.parametrize("how", ["recv", "recv_many", "recv_into", "recvfrom"])
def test_each_message_goes_to_one_thread(path: ModuleType, pair: Any, how: str) -> None:
    owner, count = own(path, pair[0]), 3000
    got: list[bytes] = []
    owner._port.ahead = 8

    def receive() -> None:
        buffer = bytearray(100)
        while len(got) < count:
            try:
                if how == "recv":
                    got.append(owner.recv(timeout=0.05))
                elif how == "recv_many":
                    got.extend(owner.recv_many(7, timeout=0.05))
                elif how == "recvfrom":
                    got.append(owner.recvfrom(100, socket.MSG_DONTWAIT)[0])
                else:
                    got.append(bytes(buffer[: owner.recv_into(buffer, 0, socket.MSG_DONTWAIT)]))
            except (TimeoutError, BlockingIOError):
                pass

    def send() -> None:
        for i in range(count):
            pair[1].send(b"%d" % i)

    sender = threading.Thread(target=send)
    sender.start()
    run_threads(4, receive)
    sender.join()
    assert sorted(map(int, got)) == list(range(count))


def test_threads_meet_a_cut_message_once(path: ModuleType, pair: Any) -> None:
    owner, count = own(path, pair[0], 10), 500
    cut: list[bytes] = []
    whole: list[bytes] = []
    owner._port.ahead = 8

    def receive() -> None:
        while len(cut) + len(whole) < 2 * count:
            try:
                whole.append(owner.recv(timeout=0.05))
            except MessageTruncated as error:
                cut.append(error.message)
            except TimeoutError:
                pass

    def send() -> None:
        for i in range(count):
            pair[1].send(b"%06d" % i)
            pair[1].send(b"%010d" % i)

    sender = threading.Thread(target=send)
    sender.start()
    run_threads(4, receive)
    sender.join()
    assert (sorted(map(int, whole)), sorted(map(int, cut))) == (list(range(count)),) * 2


def test_threads_send(owner: Any, peer: socket.socket) -> None:
    got: list[bytes] = []
    receiver = threading.Thread(target=lambda: got.extend(peer.recv(10) for _ in range(1200)))
    receiver.start()

    def send() -> None:
        for _ in range(100):
            owner.send(b"one", timeout=10)
            left = [b"two", b"two"]
            while left:
                del left[: owner.send_many(left, timeout=10)]

    run_threads(4, send)
    receiver.join(10)
    assert sorted(got) == [b"one"] * 400 + [b"two"] * 800


# ---- fork ----


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_has_none_of_its_parents_messages(owner: Any, peer: socket.socket) -> None:
    for i in range(5):
        peer.send(b"%d" % i)
    owner._port.ahead = 64
    assert owner.recv() == b"0"
    assert owner._port.held == 4

    def look() -> None:
        with pytest.raises(BlockingIOError):
            owner.recv(None, socket.MSG_DONTWAIT)
        peer.send(b"child's")
        assert owner.recv() == b"child's"
        assert owner._port.shared == 1

    in_child(look)
    assert owner.recv_many() == [b"1", b"2", b"3", b"4"]
    assert owner._port.shared == 1


# ---- signals ----


@contextlib.contextmanager
def struck_after(seconds: float, before: Callable[[], object] = lambda: None) -> Iterator[None]:
    def strike(*_: object) -> None:
        before()
        raise StruckError

    with alarms(strike, seconds):
        yield


@pytest.mark.parametrize("how", ["recv", "recv_many", "recv_into"])
def test_a_handler_that_raises_loses_no_message(
    owner: Any, peer: socket.socket, path: ModuleType, how: str
) -> None:
    """The signal comes while the message does."""
    if path.__name__.endswith("_slowpath"):
        pytest.skip("the slow path has lines of Python between a message and its caller; see there")
    buffer, lost, struck = bytearray(10), 0, 0
    owner.timeout = 9.0  # a signal just before poll(2) waits for a second
    for i in range(200):
        try:
            with struck_after(1e-5 + i % 40 * 5e-6):
                peer.send(b"%d" % i)
                if how == "recv":
                    owner.recv(timeout=9)
                    owner.recv(timeout=9)
                elif how == "recv_many":
                    owner.recv_many(1, timeout=9)
                    owner.recv_many(1, timeout=9)
                else:
                    owner.recv_into(buffer)
                    owner.recv_into(buffer)
        except StruckError:
            struck += 1
        with contextlib.suppress(BlockingIOError):
            owner.recv(None, socket.MSG_DONTWAIT)
        lost += owner._port.held
    assert struck == 200
    assert lost == 0


def test_a_handler_that_raises_as_a_message_arrives(
    owner: Any, peer: socket.socket, path: ModuleType
) -> None:
    if path.__name__.endswith("_slowpath"):
        pytest.skip("the slow path has lines of Python between a message and its caller; see there")
    for i in range(50):
        with pytest.raises(StruckError), struck_after(0.002, lambda: peer.send(b"arrives")):
            owner.recv(timeout=5)
        assert owner.recv(timeout=0) == b"arrives", i


# ---- tasks ----


@pytest.fixture(params=[asyncio.run, trio.run], ids=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def run(call: Callable[[], Any]) -> Any:
        return request.param(call if request.param is trio.run else call())

    return run


def test_tasks_receive_and_send(owner: Any, peer: socket.socket, run: Callable[..., Any]) -> None:
    async def main() -> None:
        assert await owner.asend(b"a") == 1
        assert await owner.asend_many([b"b", b"c"]) == 2
        assert [peer.recv(5) for _ in range(3)] == [b"a", b"b", b"c"]
        timer = later(0.05, lambda: peer.send(b"1"))
        assert await owner.arecv() == b"1"
        timer.join()
        for i in range(4):
            peer.send(b"%d" % i)
        assert await owner.arecv_many(2) == [b"0", b"1"]
        got = []
        async for message in owner:
            got.append(message)
            if len(got) == 2:
                break
        assert got == [b"2", b"3"]
        sent = fill(owner)
        timer = later(0.1, lambda: [peer.recv(1000) for _ in range(sent)])
        assert await owner.asend(b"last") == 4
        timer.join()
        assert peer.recv(1000) == b"last"

    run(main)


def test_a_call_that_is_forgotten_is_warned_of(owner: Any, peer: socket.socket) -> None:
    def forget(call: Callable[[], Any]) -> str:
        with pytest.warns(RuntimeWarning) as warned:
            call()
            gc.collect()
        assert len(warned) == 1
        return str(warned[0].message)

    assert forget(lambda: owner.asend(b"lost")) == "a send was never awaited: nothing was sent"
    assert forget(lambda: owner.asend_many([b"lost"])) == forget(lambda: owner.asend(b"lost"))
    assert forget(owner.arecv) == "a call that receives was never awaited"
    assert forget(owner.arecv_many) == forget(owner.arecv)
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(10)

    async def cancelled_before_it_began() -> None:  # and so the caller was told
        task = asyncio.ensure_future(owner.asend(b"lost"))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    owner.asend(b"given up").close()
    asyncio.run(cancelled_before_it_began())


def test_a_cancelled_receive_loses_nothing(path: ModuleType, pair: Any) -> None:
    async def on_asyncio() -> None:
        owner = own(path, pair[0])
        for i in range(100):
            task = asyncio.create_task(owner.arecv())
            for _ in range(i % 4):
                await asyncio.sleep(0)
            pair[1].send(b"%d" % i)
            for _ in range(i // 4 % 4):
                await asyncio.sleep(0)
            task.cancel()
            try:
                assert await task == b"%d" % i
            except asyncio.CancelledError:
                assert await asyncio.wait_for(owner.arecv(), 5) == b"%d" % i

    async def on_trio() -> None:
        owner = own(path, pair[0])
        for i in range(100):
            got: list[bytes] = []

            async def receive() -> None:
                got.append(await owner.arecv())  # noqa: B023

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                for _ in range(i % 3):
                    await trio.lowlevel.checkpoint()
                pair[1].send(b"%d" % i)
                for _ in range(i // 3 % 3):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            if not got:
                with trio.fail_after(5):
                    await receive()
            assert got == [b"%d" % i]

    asyncio.run(on_asyncio())
    trio.run(on_trio)


def test_gather_and_a_second_task(owner: Any, peer: socket.socket) -> None:
    async def main() -> None:
        for i in range(3):
            peer.send(b"%d" % i)
        got = await asyncio.gather(*(owner.arecv() for _ in range(3)))
        assert sorted(got) == [b"0", b"1", b"2"]
        first = asyncio.create_task(owner.arecv())
        await asyncio.sleep(0.01)
        with pytest.raises(KCMOSError) as caught:
            await owner.arecv()
        assert caught.value.errno == errno.EBUSY
        peer.send(b"4")
        assert await first == b"4"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(owner.arecv(), 0.02)

    asyncio.run(main())


def test_what_await_gets(owner: Any, peer: socket.socket) -> None:
    owner._port.ahead = 1
    asyncio.run(_advance(owner, peer))


async def _advance(owner: Any, peer: socket.socket) -> None:
    await owner.asend(b"turn")  # so that no checkpoint comes first
    peer.send(b"1")
    steps = owner.arecv().__await__()
    while True:
        try:
            steps.send(None)
        except StopIteration as end:
            assert end.value == b"1"
            break
    with pytest.raises((RuntimeError, StopIteration)):
        steps.send(None)
    # Not begun: what is thrown comes back.
    peer.send(b"2")
    steps = owner.arecv().__await__()
    with pytest.raises(StruckError):
        steps.throw(StruckError())
    steps = owner.arecv().__await__()
    steps.close()
    with pytest.raises((RuntimeError, StopIteration)):
        steps.send(None)
    assert await owner.arecv() == b"2"


def test_the_end_ends_an_iteration(
    owner: Any, peer: socket.socket, run: Callable[..., Any]
) -> None:
    owner._port.watched = True  # and nothing is attached
    owner._port.watch = peer.fileno()

    async def main() -> None:
        async for _ in owner:
            raise AssertionError
        with pytest.raises(Disconnected):
            await owner.arecv()

    run(main)
    with pytest.raises(Disconnected):
        owner.recv(timeout=5)


# ---- memory ----


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="this Python counts no references")
def test_calls_leak_nothing(owner: Any, peer: socket.socket) -> None:
    payload = b"p" * 500
    buffer = bytearray(600)

    def once() -> None:
        for _ in range(3):
            peer.send(payload)
        owner.recv(timeout=1)
        owner.recv_many(1)
        owner.recv_into(buffer)
        owner.send(payload)
        owner.send_many([payload, bytearray(payload)])
        for _ in range(3):
            peer.recv(600)
        for wrong in ({"timeout": -1}, {"flags": "x"}):
            with contextlib.suppress(TypeError, ArgumentError):
                owner.recv_many(**wrong)
        with contextlib.suppress(BlockingIOError):
            owner.recv(None, socket.MSG_DONTWAIT)
        owner.arecv().close()
        owner.asend(payload).close()

    for _ in range(50):
        once()
    gc.collect()
    counts = [sys.getrefcount(thing) for thing in (owner, payload, buffer, owner._port, None)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3000):
        once()
    gc.collect()
    after = [sys.getrefcount(thing) for thing in (owner, payload, buffer, owner._port, None)]
    assert [b - a for a, b in zip(counts[:4], after[:4], strict=True)] == [0] * 4
    # From Python 3.12 on None is immortal, and code that was compiled against an older Python's
    # headers is the only one that counts it.
    if sys.version_info < (3, 12):
        assert abs(after[4] - counts[4]) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 4096


@pytest.mark.parametrize("how", ["recv", "recv_many", "recvfrom", "peek", "await"])
@pytest.mark.parametrize("size", [300, 9000])
def test_no_message_is_lost_for_want_of_memory(pair: Any, how: str, size: int) -> None:
    """Each allocation of a call fails in turn."""
    if not FAST:
        pytest.skip("the fast path is not compiled here")

    async def go_on() -> None:
        pass

    def case() -> Case:
        owner = own(FAST[0], pair[0], 20000)
        owner._checkpoint = go_on
        messages = [bytes([65 + i]) * size for i in range(3)]
        for message in messages:
            pair[1].send(message)
        operation = owner.arecv()
        kept: list[Any] = [None]

        async def wait() -> None:
            kept[0] = await operation

        awaiting = wait()

        def by_hand() -> None:  # an event loop that runs out of memory forgets its tasks
            with contextlib.suppress(StopIteration):
                awaiting.send(None)

        calls = {
            "recv": owner.recv,
            "recv_many": owner.recv_many,
            "recvfrom": lambda: owner.recvfrom(1),
            "peek": lambda: owner.recv(None, 2) and None,  # MSG_PEEK
            "await": by_hand,
        }
        result = (yield calls[how]) or kept[0]
        awaiting.close()
        operation.close()
        got = [*result[:1]] if isinstance(result, tuple) else result or []
        got = [got] if isinstance(got, bytes) else got
        while len(got) < 3:
            got += owner.recv_many(timeout=0)
        assert got == messages
        assert not owner._port.held

    each_allocation_fails(80, case)


def test_room_that_comes_between_a_try_and_the_wait_is_not_missed(pair: Any) -> None:
    """The event of it was taken, and then the next one waited for, which never came."""
    owner = own(PATHS[0], pair[0])
    sent = fill(owner)
    steps = owner._send_steps()
    for _ in range(4):
        wait = next(steps)  # what a call does that found no room
        while wait.again != 0 and select.select([wait.fd], [], [], 0)[0]:
            wait = next(steps)
    for _ in range(sent):  # and now there is some, before it waits
        pair[1].recv(1000)
    wait = next(steps)
    assert wait.again == 0 or select.select([wait.fd], [], [], 0)[0]


def test_what_is_raised_while_a_call_ends_leaves_the_message(
    owner: Any, peer: socket.socket
) -> None:
    def struck() -> None:
        owner._port.holding = 0
        raise StruckError

    owner._let_clones_go = struck
    for receive in (owner.recv, owner.recv_many, lambda: asyncio.run(one(owner.arecv()))):
        owner._port.holding = 1
        peer.send(b"message")
        with pytest.raises(StruckError):
            receive()
        assert owner.recv(timeout=0) == b"message"


async def one(operation: Any) -> Any:
    return await operation


def test_ctrl_c_while_a_send_ends(owner: Any, peer: socket.socket) -> None:
    def interrupted() -> None:
        owner._port.holding = 0
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)

    owner._let_clones_go = interrupted
    owner._port.holding = 1
    with pytest.raises(KeyboardInterrupt):
        owner.send(b"message")
        time.sleep(0)
    assert peer.recv(100) == b"message"
