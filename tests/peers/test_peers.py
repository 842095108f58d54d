"""Real servers: KCM delivers what a plain reader reads, and what a crash leaves open has a name."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import filter as matching
from functools import partial
from pathlib import Path

import pytest

from pykcm import Disconnected, Exchange, Multiplexor, OutcomeUnknown, protocols
from pykcm._tcp import bytes_received
from tests.peers.conversations import CONVERSATIONS, Conversation, exactly
from tests.peers.servers import PATIENCE, SERVERS, Root, Running

Answers = dict[Hashable, list[bytes]]

# As many connections as share a Multiplexor, where the protocol lets several do so.
MANY = 4
# How often all requests are made, each time on new connections.
ROUNDS = 3
# How many requests are in flight when the server is killed.
IN_FLIGHT = 16


def plain(running: Running, conversation: Conversation) -> list[list[bytes]]:
    """The answers to each request, by the reader that shares nothing with pykcm."""
    answers = []
    with running.connect() as tcp:
        take = exactly(tcp)
        conversation.greet(tcp, lambda: conversation.read(take))
        for request in conversation.prepare:
            tcp.sendall(request)
            conversation.read(take)
        for number, request in enumerate(conversation.requests):
            tcp.sendall(request)
            messages = [conversation.read(take)]
            while not conversation.last(messages[-1]):
                messages.append(conversation.read(take))
            assert any(conversation.holds(number) in message for message in messages)
            answers.append(messages)
    return answers


@contextlib.contextmanager
def connected(
    running: Running, conversation: Conversation, count: int
) -> Iterator[tuple[Multiplexor, list[socket.socket]]]:
    """A Multiplexor with so many connections, which have been greeted."""
    framing = protocols.ALL[conversation.protocol].framing
    with contextlib.ExitStack() as stack:
        mux = stack.enter_context(Multiplexor(framing))
        tcps = []
        for _ in range(count):
            tcp = running.connect()
            conversation.greet(tcp, partial(framing.read_message, tcp, timeout=PATIENCE))
            mux.attach(tcp)
            stack.callback(tcp.close)
            tcps.append(tcp)
        yield mux, tcps


def pipelined(mux: Multiplexor, conversation: Conversation) -> Answers:
    """The answers to all requests, which are sent without waiting for any.

    One by one: what is sent together goes out on one connection.
    """

    def send() -> None:
        for request in conversation.requests:
            mux.send(request)

    sender = threading.Thread(target=send)
    sender.start()
    messages: list[bytes] = []
    ended = 0
    while ended < len(conversation.requests):
        messages.append(mux.recv(timeout=PATIENCE))
        ended += conversation.last(messages[-1])
    sender.join()
    return grouped(messages, conversation)


def grouped(messages: Iterable[bytes], conversation: Conversation) -> Answers:
    """The messages by their request's key, or by its place where the order pairs them."""
    answers: Answers = {}
    place = 0
    for message in messages:
        key = conversation.key(message) if conversation.key else place
        answers.setdefault(key, []).append(conversation.same(message))
        place += conversation.last(message)
    return answers


def acknowledged(tcps: Iterable[socket.socket]) -> int:
    """How many bytes the other ends' kernels have taken: tcpi_bytes_acked."""
    information = (tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128) for tcp in tcps)
    return sum(struct.unpack_from("=Q", data, 120)[0] for data in information)


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s"
        time.sleep(0.01)


def killed_with_ids(
    mux: Multiplexor, tcps: list[socket.socket], running: Running, c: Conversation
) -> int:
    """Kill the server while it has requests; how many ended with OutcomeUnknown."""
    assert c.key
    exchange = Exchange(mux, c.key)
    before, asked = c.requests[:IN_FLIGHT], c.requests[IN_FLIGHT : 2 * IN_FLIGHT]
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        for request, answer in zip(before, threads.map(exchange.request, before), strict=True):
            assert c.key(answer) == c.key(request)
        running.signal(signal.SIGSTOP)
        sent = acknowledged(tcps)
        outcomes = [
            threads.submit(exchange.request, request, timeout=PATIENCE) for request in asked
        ]
        eventually(lambda: acknowledged(tcps) == sent + sum(map(len, asked)))
        running.kill()
        errors = [outcome.exception(PATIENCE) for outcome in outcomes]
    assert {type(error) for error in errors} == {OutcomeUnknown}, errors
    return len(errors)


def killed_in_order(
    mux: Multiplexor, tcps: list[socket.socket], running: Running, c: Conversation
) -> int:
    """As `killed_with_ids`, of a protocol without ids: what was asked after the last answer."""
    before, asked = c.requests[:IN_FLIGHT], c.requests[IN_FLIGHT : 2 * IN_FLIGHT]
    mux.send_many(before)
    ended = 0
    while ended < len(before):
        ended += c.last(mux.recv(timeout=PATIENCE))
    running.signal(signal.SIGSTOP)
    sent = acknowledged(tcps)
    mux.send_many(asked)
    eventually(lambda: acknowledged(tcps) == sent + sum(map(len, asked)))
    running.kill()
    with pytest.raises(Disconnected):
        while True:
            ended += c.last(mux.recv(timeout=PATIENCE))
    return len(before) + len(asked) - ended


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SERVERS)
def test_server(
    name: str,
    root: Root,
    versions: dict[str, str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    server, conversation = SERVERS[name], CONVERSATIONS[name]
    protocol = protocols.ALL[conversation.protocol]
    many = protocol.connections == "many"
    (package,) = matching(versions, server.package)
    record_property("title", name)
    record_property("package", package)
    record_property("version", versions[package])
    record_property("protocol", protocol.name)
    server.prepare(root)
    with server.run(root, tmp_path / "log") as running:
        answers = plain(running, conversation)
        expected = grouped([message for messages in answers for message in messages], conversation)
        assert len(expected) == len(conversation.requests)
        for _ in range(ROUNDS):
            with connected(running, conversation, MANY if many else 1) as (mux, tcps):
                greeted = [bytes_received(tcp.fileno()) for tcp in tcps]
                assert pipelined(mux, conversation) == expected
                for tcp, before in zip(tcps, greeted, strict=True):
                    assert bytes_received(tcp.fileno()) > before, "a connection carried no answer"
        with connected(running, conversation, MANY if many else 1) as (mux, tcps):
            kill = killed_with_ids if many else killed_in_order
            unknown = kill(mux, tcps, running, conversation)
            reported = [disconnection.reason for disconnection in mux.disconnections()]
    assert unknown == IN_FLIGHT
    assert len(reported) == len(tcps), reported
    record_property("connections", len(tcps))
    record_property("requests", ROUNDS * len(conversation.requests))
    record_property("answers", ROUNDS * sum(map(len, answers)))
    record_property("unknown", unknown)
