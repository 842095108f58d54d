"""Requests and answers, with a Unix socket of packets in the place of the KCM socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import pickle
import random
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from pykcm import (
    ArgumentError,
    Disconnected,
    Exchange,
    KCMOSError,
    OutcomeUnknown,
    StrayReason,
    protocols,
)
from tests.strikes import Case, strike_everywhere
from tests.unit.stand_in import PATIENCE, World, eventually


def message(number: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", number) + body


def number_of(data: bytes) -> int:
    return int(struct.unpack_from(">I", data)[0])


@contextlib.contextmanager
def server(world: World, answer: Callable[[bytes], list[bytes]]) -> Iterator[list[bytes]]:
    """What the other end does with each request; yields those that came."""
    came: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while request := world.wire.recv(1 << 16):
                came.append(request)
                for each in answer(request):
                    world.wire.send(each)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield came
    finally:
        world.wire.shutdown(socket.SHUT_RD)
        thread.join()


def echo(request: bytes) -> list[bytes]:
    return [request]


async def in_flight(exchange: Exchange, count: int) -> None:
    """Wait until there are so many requests, each of them sent if there was room."""
    while len(exchange._book.waiting) < count:
        await asyncio.sleep(0.001)


class Clock:
    """The time by which a Book reckons, which stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("pykcm._requests.time", self)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_one(world: World) -> None:
    exchange = Exchange(world.mux, (0, 4))
    with server(world, lambda r: [r + b"!"]):
        assert exchange.request(message(7, b"hello"), timeout=PATIENCE) == message(7, b"hello!")
    assert not exchange.strays


def test_threads_and_an_order_of_the_servers(world: World) -> None:
    """Each thread gets its own answer, though they come shuffled."""
    exchange = Exchange(world.mux, lambda m: m[:4])
    held: list[bytes] = []

    def shuffled(request: bytes) -> list[bytes]:
        held.append(request)
        if len(held) < 8:
            return []
        out = random.sample(held, len(held))
        held.clear()
        return out

    wrong: list[object] = []

    def ask(first: int) -> None:
        for number in range(first, first + 50):
            try:
                answer = exchange.request(message(number), timeout=PATIENCE)
            except Exception as error:
                wrong.append(error)
                return
            if answer != message(number):
                wrong.append((number, answer))

    with server(world, shuffled):
        threads = [threading.Thread(target=ask, args=[1000 * n]) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_ten_thousand_in_flight_with_one_time_out(world: World) -> None:
    """All but those that the server answers time out, in little time; the rest are late."""
    exchange = Exchange(world.mux, (0, 4))
    count, answered = 10_000, set(range(0, 10_000, 100))
    late: list[bytes] = []

    def some(request: bytes) -> list[bytes]:
        if number_of(request) in answered or number_of(request) > count:
            return [request]
        late.append(request)
        return []

    async def ask(number: int) -> bool:
        try:
            return await exchange.arequest(message(number)) == message(number)
        except asyncio.CancelledError:
            return False

    async def all_of_them() -> list[bool]:
        tasks = [asyncio.ensure_future(ask(number)) for number in range(count)]
        while len(late) < count - len(answered):
            await asyncio.sleep(0.05)
        while sum(task.done() for task in tasks) < len(answered):
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        return list(await asyncio.gather(*tasks))

    with server(world, some):
        before = time.process_time()
        results = asyncio.run(all_of_them())
        assert time.process_time() - before < 20  # and not as the square of their number
        assert {number for number, got in enumerate(results) if got} == answered
        assert len(late) == count - len(answered)
        for request in late[:5]:
            world.wire.send(request)
        exchange.request(message(count + 1), timeout=PATIENCE)  # whose answer comes behind them
    assert [stray.why for stray in exchange.strays] == [StrayReason.LATE] * 5
    with pytest.raises(ArgumentError, match="its answer may still come"):
        exchange.request(message(11))


def test_threads_in_flight_with_one_time_out(world: World) -> None:
    exchange = Exchange(world.mux, (0, 4))
    with server(world, lambda _: []) as came:
        errors: list[BaseException] = []
        usual: list[float] = []

        def wait() -> None:
            threading.Event().wait(0.5)
            usual.append(time.monotonic() - start)

        def ask(number: int) -> None:
            with pytest.raises(TimeoutError, match=f"no answer to request {number} came") as caught:
                exchange.request(message(number), timeout=0.5)
            errors.append(caught.value)

        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        threads = [threading.Thread(target=ask, args=[number]) for number in range(100)]
        others = [threading.Thread(target=wait) for _ in threads]
        for pair in zip(threads, others, strict=True):
            for thread in pair:
                thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - start
        for thread in others:
            thread.join()
        # One after the other, they would take a hundred times as long as those that just wait.
        assert 0.5 <= took < 10 * max(usual)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before < 5000  # nobody spins
    assert len(errors) == len(came) == 100


def test_answers_nobody_asked_for(world: World) -> None:
    exchange = Exchange(world.mux, (0, 4))
    with server(world, lambda r: [b"", b"\1", message(99), r, r][1:]):
        assert exchange.request(message(1), timeout=PATIENCE) == message(1)
        assert exchange.request(message(2), timeout=PATIENCE) == message(2)
    reasons = [(stray.message, stray.why) for stray in exchange.strays]
    assert reasons[:5] == [
        (b"\1", StrayReason.NO_KEY),
        (message(99), StrayReason.UNASKED),
        (message(1), StrayReason.REPEATED),
        (b"\1", StrayReason.NO_KEY),
        (message(99), StrayReason.UNASKED),
    ]


@pytest.mark.parametrize("poison", [b"[]", b"{}", b"\xff", b'{"id": []}', b"1"])
def test_an_answer_that_the_key_is_not_made_for(world: World, poison: bytes) -> None:
    """Whatever the function raises or returns, the Exchange goes on."""
    exchange = Exchange(world.mux, lambda data: json.loads(data)["id"])
    with server(world, lambda request: [poison, request]):
        for number in range(2):
            request = json.dumps({"id": number}).encode()
            assert exchange.request(request, timeout=PATIENCE) == request
    assert list(exchange.strays) == [(poison, StrayReason.NO_KEY)] * 2


def test_an_interrupt_in_the_key_keeps_the_answer(world: World) -> None:
    interrupts = [KeyboardInterrupt()]

    def key(data: bytes) -> bytes:
        if data.endswith(b"!") and interrupts:
            raise interrupts.pop()
        return data[:4]

    exchange = Exchange(world.mux, key)
    with server(world, lambda request: [request + b"!"]):
        with pytest.raises(KeyboardInterrupt):
            exchange.request(message(1), timeout=PATIENCE)
        assert exchange.request(message(2), timeout=PATIENCE) == message(2, b"!")
    assert list(exchange.strays) == [(message(1, b"!"), StrayReason.LATE)]


def test_a_late_answer_is_not_that_of_the_next(world: World, clock: Clock) -> None:
    exchange = Exchange(world.mux, (0, 4), hold=0.2)
    with server(world, lambda r: [r] if number_of(r) == 2 else []):
        with pytest.raises(TimeoutError):
            exchange.request(message(1, b"old"), timeout=0.01)
        with pytest.raises(ArgumentError, match="given up"):
            exchange.request(message(1, b"new"), timeout=PATIENCE)
        world.wire.send(message(1, b"old"))
        exchange.request(message(2), timeout=PATIENCE)
        assert [stray.why for stray in exchange.strays] == [StrayReason.LATE]
        # It has come: the key is free again.
        with pytest.raises(TimeoutError):
            exchange.request(message(1, b"new"), timeout=0.05)
        clock.now += 0.2
        with pytest.raises(TimeoutError):
            exchange.request(message(1, b"newer"), timeout=0)


def test_a_key_in_flight(world: World) -> None:
    exchange = Exchange(world.mux, (0, 4))
    answers: list[bytes] = []
    with server(world, lambda r: []) as came:

        def ask() -> None:
            answers.append(exchange.request(message(1), timeout=PATIENCE))

        thread = threading.Thread(target=ask)
        thread.start()
        eventually(lambda: len(came) == 1)
        with pytest.raises(ArgumentError, match="in flight"):
            exchange.request(message(1), timeout=PATIENCE)
        world.wire.send(message(1, b"!"))
        thread.join()
    assert answers == [message(1, b"!")]
    with pytest.raises(ArgumentError, match="no key"):
        exchange.request(b"\1", timeout=PATIENCE)


def test_renumbered(world: World) -> None:
    """Callers that all use the same number each get their own answer, with their number in it."""
    exchange = Exchange(world.mux, protocols.ALL["DNS"].id, renumber=True)  # type: ignore[arg-type]

    async def ask(body: bytes) -> None:
        question = b"\0\2" + b"\x12\x34" + body
        assert await exchange.arequest(question) == question

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(ask(b"%d" % n) for n in range(500))), PATIENCE)

    with server(world, echo) as came:
        asyncio.run(main())
    assert len({request[2:4] for request in came}) == 500
    assert not exchange.strays


def test_numbers_run_out(world: World) -> None:
    exchange = Exchange(world.mux, (0, 1), renumber=True)

    async def main() -> None:
        tasks = [asyncio.ensure_future(exchange.arequest(b"\xfe")) for _ in range(256)]
        await in_flight(exchange, 256)
        with pytest.raises(KCMOSError, match="all 256 numbers") as caught:
            await exchange.arequest(b"\0")
        assert caught.value.errno == errno.EBUSY
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with server(world, lambda r: []) as came:
        asyncio.run(main())
    assert sorted(request[0] for request in came) == list(range(256))


@pytest.mark.parametrize(
    ("key", "answer_key", "argument"),
    [(5, None, "key"), (len, None, "key"), ((0, 4), (0, 2), "answer_key")],
)
def test_what_cannot_be(world: World, key: object, answer_key: object, argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Exchange(world.mux, key, answer_key, renumber=True)  # type: ignore[arg-type]
    assert caught.value.argument == argument
    with pytest.raises(ArgumentError, match="grace"):
        Exchange(world.mux, (0, 4), grace=-1)
    with pytest.raises(ArgumentError, match="hold"):
        Exchange(world.mux, (0, 4), hold=float("nan"))


def test_keys_that_differ(world: World) -> None:
    entry = protocols.ALL["KAFKA"]
    assert entry.id
    exchange = Exchange(world.mux, entry.id, entry.answer_id)
    with server(world, lambda r: [b"\0\0\0\4" + r[8:12]]):
        request = bytes.fromhex("0000000c 0012 0000 00000007 0002 6162")
        assert exchange.request(request, timeout=PATIENCE) == b"\0\0\0\4\0\0\0\7"


# ---- lost connections ----


def test_the_last_connection_is_lost(world: World) -> None:
    """What was answered before the end is answered; the rest is unknown, at once."""
    exchange = Exchange(world.mux, (0, 4), grace=PATIENCE)

    def half(request: bytes) -> list[bytes]:
        if number_of(request) == 9:
            world.far.close()
        return [request] if number_of(request) < 5 else []

    async def main() -> list[bytes | BaseException]:
        calls = [exchange.arequest(message(number)) for number in range(10)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE / 2)

    with server(world, half) as came:
        results = asyncio.run(main())
        assert results[:5] == [message(number) for number in range(5)]
        for number, error in enumerate(results[5:], 5):
            assert isinstance(error, OutcomeUnknown)
            assert error.request == message(number)
            assert isinstance(error, ConnectionError)
            copy = pickle.loads(pickle.dumps(error))
            assert (str(copy), copy.request) == (str(error), error.request)
        assert len(came) == 10
        # Nothing is attached now: this one is known not to have been sent.
        with pytest.raises(Disconnected):
            exchange.request(message(10), timeout=PATIENCE)
        assert len(came) == 10


def test_the_last_connection_is_lost_and_another_comes(world: World) -> None:
    """Where the kernel keeps what is sent meanwhile, the grace holds for it too."""
    world.mux._port.queueing = True
    exchange = Exchange(world.mux, (0, 4), grace=PATIENCE)

    async def main() -> None:
        first = asyncio.ensure_future(exchange.arequest(message(1)))
        await in_flight(exchange, 1)
        world.far.close()
        while world.mux.transports:
            await asyncio.sleep(0.01)
        second = asyncio.ensure_future(exchange.arequest(message(2)))
        await in_flight(exchange, 2)
        near, far = attach_another(world)
        with near, far:
            world.wire.send(message(1))
            world.wire.send(message(2))
            assert await asyncio.wait_for(first, PATIENCE) == message(1)
            assert await asyncio.wait_for(second, PATIENCE) == message(2)

    asyncio.run(main())


def test_an_answer_that_another_has_received_meanwhile(world: World) -> None:
    """While one receives, another thread's look takes the last connection off, with its answer."""
    exchange = Exchange(world.mux, (0, 4))
    driver, receive = exchange._driver, world.mux.recv_many

    class Mux:
        def __getattr__(self, name: str) -> Any:
            return getattr(world.mux, name)

        def recv_many(self, timeout: float) -> list[bytes]:
            try:
                return receive(timeout=timeout)
            except TimeoutError:
                if world.mux.transports and len(came) == 1:
                    world.far.close()
                    while world.mux.transports:
                        list(world.mux.disconnections())
                    world.wire.send(message(1))
                raise

    driver._mux = Mux()  # type: ignore[assignment]
    with server(world, lambda _: []) as came:
        assert exchange.request(message(1), timeout=PATIENCE) == message(1)


def attach_another(world: World) -> tuple[socket.socket, socket.socket]:
    near, far = world.connections.new()
    world.mux.attach(near)
    return near, far


@pytest.mark.parametrize("how", ["request", "unattached"])
def test_one_of_two_is_lost(world: World, clock: Clock, how: str) -> None:
    """The other connection's answers still come, within the grace."""
    exchange = Exchange(world.mux, (0, 4), grace=0.5)
    near, far = attach_another(world)

    def ask(number: int) -> None:
        try:
            results[number] = exchange.request(message(number), timeout=PATIENCE)
        except OSError as error:
            results[number] = error

    results: dict[int, bytes | OSError] = {}
    with near, far, server(world, lambda r: [r] if number_of(r) == 4 else []) as came:
        threads = [threading.Thread(target=ask, args=[number]) for number in (1, 2)]
        for count, thread in enumerate(threads, 1):
            thread.start()
            eventually(lambda n=count: len(came) == n)  # type: ignore[misc]
        if how == "request":
            far.close()
        else:
            world.mux.unattach(near)
        eventually(lambda: len(exchange._book._suspects) == 1)
        clock.now += 0.25
        world.wire.send(message(1))
        threads[0].join()
        assert results == {1: message(1)}
        clock.now += 0.25
        threads[1].join()
        assert isinstance(results[2], OutcomeUnknown)
        # Its answer is named, should it come.
        world.wire.send(message(2))
        with pytest.raises(TimeoutError):  # and what is sent since is no suspect
            exchange.request(message(3), timeout=0.05)
        exchange.request(message(4), timeout=PATIENCE)
        assert [stray.why for stray in exchange.strays] == [StrayReason.LATE]


def test_nothing_is_sent_twice_unasked(world: World) -> None:
    exchange = Exchange(world.mux, (0, 4), grace=0.05)
    near, far = attach_another(world)

    def once(request: bytes) -> list[bytes]:
        if len(came) == 1:
            far.close()
            return []
        return [request]

    with near, far, server(world, once) as came:
        with pytest.raises(OutcomeUnknown):
            exchange.request(message(1), timeout=PATIENCE)
        assert came == [message(1)]
        came.clear()
        near, far = attach_another(world)
        with near, far:
            assert exchange.request(message(2), timeout=PATIENCE, retry=1) == message(2)
        assert came == [message(2), message(2)]


def test_what_was_sent_once_is_never_called_unsent(world: World) -> None:
    """The last connection is lost: it cannot be sent again, and is unknown all the same."""
    exchange = Exchange(world.mux, (0, 4))

    def close(request: bytes) -> list[bytes]:
        world.far.close()
        return []

    with server(world, close) as came:
        with pytest.raises(OutcomeUnknown):
            exchange.request(message(1), timeout=PATIENCE, retry=3)
    assert came == [message(1)]


def test_a_loss_while_nobody_asked(world: World) -> None:
    """A connection that was lost before does not make a request suspect."""
    exchange = Exchange(world.mux, (0, 4), grace=0.0)
    near, far = attach_another(world)
    with near, far, server(world, echo):
        exchange.request(message(1), timeout=PATIENCE)
        far.close()
        assert world.mux.wait_disconnection is not None
        while len(world.mux.transports) > 1:
            list(world.mux.disconnections())
        assert exchange.request(message(2), timeout=PATIENCE) == message(2)


# ---- who waits ----


def test_a_leader_that_is_cancelled_hands_on(world: World) -> None:
    exchange = Exchange(world.mux, (0, 4))

    async def main() -> None:
        first = asyncio.ensure_future(exchange.arequest(message(1)))
        await in_flight(exchange, 1)
        second = asyncio.ensure_future(exchange.arequest(message(2)))
        await in_flight(exchange, 2)
        first.cancel()
        await asyncio.wait([first])
        world.wire.send(message(2))
        assert await asyncio.wait_for(second, PATIENCE) == message(2)

    asyncio.run(main())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("thread", [False, True])
def test_a_loop_that_stood_still(
    world: World, monkeypatch: pytest.MonkeyPatch, backend: str, thread: bool
) -> None:
    """A task takes the lead while the loop still waits for the one that had it before."""
    monkeypatch.setattr("pykcm.exchange._STALLED", 0.1)
    monkeypatch.setattr("pykcm._driving._LOOK", 0.05)
    exchange = Exchange(world.mux, (0, 4))
    between = threading.Thread(target=lambda: exchange.request(message(2), timeout=PATIENCE))

    def stand_still() -> None:
        if thread:  # which leads meanwhile, and leaves
            between.start()
            between.join()
        else:
            time.sleep(0.2)

    async def on_asyncio() -> None:
        first = asyncio.ensure_future(exchange.arequest(message(1)))
        await in_flight(exchange, 1)
        stand_still()
        assert await asyncio.wait_for(exchange.arequest(message(3)), PATIENCE) == message(3)
        world.wire.send(message(1))
        assert await asyncio.wait_for(first, PATIENCE) == message(1)

    async def on_trio() -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange.arequest, message(1))
                while not exchange._book.waiting:
                    await trio.sleep(0.001)
                await trio.sleep(0.01)  # until it waits
                stand_still()
                assert await exchange.arequest(message(3)) == message(3)
                world.wire.send(message(1))

    def slowly(request: bytes) -> list[bytes]:
        time.sleep(0.02)  # so that it is waited for
        return [request] if number_of(request) > 1 else []

    with server(world, slowly):
        asyncio.run(on_asyncio()) if backend == "asyncio" else trio.run(on_trio)
    assert not exchange.strays


def test_threads_and_loops_together(world: World) -> None:
    exchange = Exchange(world.mux, (0, 4), renumber=True)
    wrong: list[object] = []
    each = 100

    def check(answer: bytes, body: bytes) -> None:
        if answer != message(7, body):
            wrong.append((answer, body))

    def in_threads(name: bytes) -> None:
        for number in range(each):
            body = b"%s %d" % (name, number)
            check(exchange.request(message(7, body), timeout=PATIENCE), body)

    async def ask(body: bytes) -> None:
        check(await exchange.arequest(message(7, body)), body)

    async def in_asyncio() -> None:
        for number in range(each // 10):
            await asyncio.gather(*(ask(b"a %d %d" % (number, n)) for n in range(10)))

    async def in_trio() -> None:
        for number in range(each // 10):
            async with trio.open_nursery() as nursery:
                for n in range(10):
                    nursery.start_soon(ask, b"t %d %d" % (number, n))

    runs: list[Callable[[], object]] = [
        lambda: in_threads(b"x"),
        lambda: in_threads(b"y"),
        lambda: asyncio.run(in_asyncio()),
        lambda: trio.run(in_trio),
    ]
    with server(world, echo) as came:
        threads = [threading.Thread(target=run, daemon=True) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert not wrong
    assert len(came) == 4 * each


def test_a_server_that_does_not_read(world: World) -> None:
    """Requests that have no room wait for it, without a descriptor each; the text tells them."""
    exchange = Exchange(world.mux, (0, 4))
    world.wire.settimeout(PATIENCE)

    async def main() -> list[bytes | BaseException]:
        calls = [
            asyncio.ensure_future(exchange.arequest(message(n, bytes(20_000)))) for n in range(300)
        ]
        await in_flight(exchange, 300)
        with pytest.raises(TimeoutError, match="request 300 was not sent"):
            exchange.request(message(300), timeout=0)
        thread.start()
        return await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)

    def serve() -> None:
        for _ in range(300):
            came.append(world.wire.recv(1 << 16))
            world.wire.send(came[-1][:4])

    came: list[bytes] = []
    thread = threading.Thread(target=serve)
    answers = asyncio.run(main())
    thread.join()
    assert answers == [message(n) for n in range(300)]
    assert [number_of(request) for request in came] == list(range(300))


def test_a_closed_multiplexor(world: World) -> None:
    exchange = Exchange(world.mux, (0, 4))
    world.mux.close(0)
    with pytest.raises(KCMOSError) as caught:
        exchange.request(message(1), timeout=PATIENCE)
    assert caught.value.errno == errno.EBADF


def test_an_answer_that_came_before_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange(world.mux, (0, 4))

    def drive(_: object) -> bool:
        exchange._book.answer(message(1, b"!"))
        raise KCMOSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(exchange._driver, "drive", drive)
    assert exchange.request(message(1), timeout=PATIENCE) == message(1, b"!")


def test_a_multiplexor_that_is_closed_meanwhile(world: World) -> None:
    """All who wait without a limit are told."""
    exchange = Exchange(world.mux, (0, 4))
    errors: list[KCMOSError] = []

    def ask(number: int) -> None:
        with pytest.raises(KCMOSError) as caught:
            exchange.request(message(number))
        errors.append(caught.value)

    threads = [threading.Thread(target=ask, args=[number], daemon=True) for number in range(5)]
    for thread in threads:
        thread.start()
    world.wire.settimeout(PATIENCE)
    for _ in threads:
        world.wire.recv(1 << 16)
    world.mux.close(0)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert [error.errno for error in errors] == [errno.EBADF] * 5
    assert [type(error) for error in errors] == [OutcomeUnknown] * 5
    assert "is closed while request" in str(errors[0])


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11),
    reason="strikes at every line were seen to pass on Python 3.11 alone",
)
@pytest.mark.timeout(300)
def test_a_strike_leaves_nobody_waiting(world: World) -> None:
    """An exception at any line of a call: the next ones go on, and nothing is sent twice."""
    exchange = Exchange(world.mux, (0, 4), hold=0.0)
    numbers = iter(range(1 << 30))

    with server(world, echo):

        def case() -> Case:
            number, after = next(numbers), next(numbers)
            yield lambda: exchange.request(message(number), timeout=PATIENCE)
            assert exchange.request(message(after), timeout=PATIENCE) == message(after)
            assert exchange._leader is None
            assert not exchange._book.waiting
            assert not exchange._followers

        gc.collect()  # what earlier tests have left
        assert strike_everywhere(case, lines=True) > 20
