"""Replicas on several hosts behind one Multiplexor: each request is answered once, or named."""

from __future__ import annotations

import itertools
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pykcm import Disconnected, Exchange, LengthField, Multiplexor, OutcomeUnknown, Pool
from tests.hosts.network import PORT, Host, Replica, wait_until
from tests.peers.servers import PATIENCE, Root

FRAMING = LengthField(size=4, min_length=8, max_length=1 << 16)
KEY = (4, 4)
THREADS = 8
# Connections to each replica.
EACH = 2
# Milliseconds after which TCP gives up a connection on which nothing is acknowledged.
USER_TIMEOUT = 3000

Record = Callable[[str, object], None]

_numbers = itertools.count(1)


def request(size: int = 100) -> bytes:
    """A request with a number that no other has."""
    return struct.pack(">II", 4 + size, next(_numbers)) + bytes(size)


def number(message: bytes) -> int:
    return int.from_bytes(message[4:8], "big")


def dialler(mux: Multiplexor, addresses: list[str], each: int) -> Callable[[], socket.socket]:
    """What dials, in turn, the addresses to which there are fewer connections than `each`."""
    turn = itertools.cycle(addresses)

    def connect() -> socket.socket:
        there = Counter(peer(tcp) for tcp in mux.transports)
        lacking = (address for address in turn if there[address] < each)
        tcp = socket.create_connection((next(lacking), PORT), timeout=2)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
        return tcp

    return connect


def peer(tcp: socket.socket) -> str:
    """The address that a connection leads to; none once it was reset."""
    try:
        address: str = tcp.getpeername()[0]
    except OSError:
        return ""
    return address


def connected(mux: Multiplexor, addresses: list[str], each: int) -> Pool:
    """Keeps so many connections to each address, for as long as it takes."""
    size = each * len(addresses)
    return Pool(mux, dialler(mux, addresses, each), size, attempts=None, backoff=(0.1, 0.5))


@dataclass
class Tally:
    """How requests ended: who answered those that were, and the numbers of the others."""

    answered: dict[int, str] = field(default_factory=dict)
    unknown: set[int] = field(default_factory=set)
    unsent: set[int] = field(default_factory=set)

    def ask(self, exchange: Exchange) -> None:
        message = request()
        try:
            answer = exchange.request(message, timeout=PATIENCE / 4)
        except OutcomeUnknown:
            self.unknown.add(number(message))
        except Disconnected:
            self.unsent.add(number(message))
            time.sleep(0.05)
        else:
            assert number(answer) == number(message)
            self.answered[number(message)] = answer[8:].decode()

    @property
    def shares(self) -> Counter[str]:
        return Counter(list(self.answered.values()))  # threads add to it meanwhile

    def check(self, asked: int, replicas: list[Replica]) -> None:
        """Each was answered once, or is named; and none was carried out twice."""
        assert len(self.answered) + len(self.unknown) + len(self.unsent) == asked
        done: Counter[int] = Counter()
        for replica in replicas:
            done += replica.carried_out()
        assert set(done.values()) == {1}
        assert self.answered.keys() <= done.keys()
        assert done.keys() <= self.answered.keys() | self.unknown
        for replica in replicas:
            mine = {one for one, name in self.answered.items() if name == replica.name}
            assert mine <= replica.carried_out().keys()

    def record(self, record: Record, title: str, asked: int, start: float) -> None:
        record("title", title)
        record("shares", " ".join(f"{name} {count}" for name, count in sorted(self.shares.items())))
        record("requests", asked)
        record("answers", len(self.answered))
        record("unknown", len(self.unknown))
        record("unsent", len(self.unsent))
        record("seconds", f"{time.monotonic() - start:.1f}")


def ask_many(exchange: Exchange, tally: Tally, count: int) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        for outcome in [threads.submit(tally.ask, exchange) for _ in range(count)]:
            outcome.result()


@pytest.fixture
def ask_until() -> Iterator[Callable[[Exchange, Tally], Callable[[], int]]]:
    """Starts threads that ask until the function that it returns is called: how many they asked."""
    stopping = threading.Event()
    threads: list[threading.Thread] = []

    def start(exchange: Exchange, tally: Tally) -> Callable[[], int]:
        counts = [0] * THREADS

        def work(place: int) -> None:
            while not stopping.is_set():
                counts[place] += 1
                tally.ask(exchange)

        def stop() -> int:
            stopping.set()
            for thread in threads:
                thread.join(PATIENCE)
            return sum(counts)

        threads.extend(threading.Thread(target=work, args=[n]) for n in range(THREADS))
        for thread in threads:
            thread.start()
        return stop

    yield start
    stopping.set()


def hang_and_kill(replica: Replica) -> None:
    """Kill it, with requests that it has not answered."""
    replica.signal(signal.SIGSTOP)
    time.sleep(1)
    replica.kill()


def addresses(replicas: list[Replica]) -> list[str]:
    return [replica.host.address for replica in replicas]


@pytest.mark.parametrize(
    ("title", "netem"),
    [
        ("as they are", None),
        ("r3: delay 100 ms", ("delay", "100ms")),
        ("r3: loss 10 %, delay 20±10 ms", ("delay", "20ms", "10ms", "loss", "10%")),
    ],
)
def test_shares(
    title: str, netem: tuple[str, ...] | None, replicas: list[Replica], record_property: Record
) -> None:
    start = time.monotonic()
    tally, asked = Tally(), 300
    with Multiplexor(FRAMING) as mux, connected(mux, addresses(replicas), EACH):
        exchange = Exchange(mux, KEY)
        if netem:
            with replicas[2].host.disturbed(*netem):
                ask_many(exchange, tally, asked)
        else:
            ask_many(exchange, tally, asked)
    tally.check(asked, replicas)
    assert len(tally.answered) == asked
    assert tally.shares.keys() == {"r1", "r2", "r3"}
    tally.record(record_property, title, asked, start)


@pytest.mark.parametrize("end", ["killed", "link down"])
def test_a_replica_that_leaves_and_comes_back(
    end: str,
    replicas: list[Replica],
    record_property: Record,
    ask_until: Callable[[Exchange, Tally], Callable[[], int]],
) -> None:
    start = time.monotonic()
    leaver, tally = replicas[1], Tally()
    with Multiplexor(FRAMING) as mux, connected(mux, addresses(replicas), EACH):
        exchange = Exchange(mux, KEY)
        stop = ask_until(exchange, tally)
        wait_until(lambda: tally.shares.keys() == {"r1", "r2", "r3"}, "an answer of each")
        if end == "killed":
            hang_and_kill(leaver)
        else:
            leaver.host.link("down")
        wait_until(lambda: tally.unknown, "a request of unknown outcome")
        before = tally.shares["r2"]
        if end == "killed":
            leaver.start()
        else:
            leaver.host.link("up")
        wait_until(lambda: tally.shares["r2"] > before + 5, "that it serves again")
        asked = stop()
        reasons = Counter(d.reason.name for d in mux.disconnections())
    tally.check(asked, replicas)
    tally.record(record_property, f"r2: {end}, back", asked, start)
    record_property("ends", ", ".join(sorted(reasons)))
    assert sum(reasons.values()) >= EACH


HAPROXY = """\
global
  maxconn 200
defaults
  mode tcp
  retries 0
  timeout connect 2s
  timeout client 60s
  timeout server 60s
listen replicas
  bind :{port}
  balance roundrobin
  default-server check inter 500ms fall 1 rise 1 on-marked-down shutdown-sessions
{servers}
"""


def test_behind_haproxy(
    replicas: list[Replica],
    balancer: Host,
    root: Root,
    tmp_path: Path,
    record_property: Record,
    ask_until: Callable[[Exchange, Tally], Callable[[], int]],
) -> None:
    """A Pool dials one address: HAProxy chooses the replica, and leaves out a dead one."""
    start = time.monotonic()
    lines = [f"  server {r.name} {r.host.address}:{PORT}" for r in replicas]
    root.write("/tmp/haproxy.cfg", HAPROXY.format(port=PORT, servers="\n".join(lines)))
    words = root.command(["/usr/sbin/haproxy", "-db", "-f", "/tmp/haproxy.cfg"], 0)
    tally = Tally()
    with (tmp_path / "log").open("wb") as log:
        haproxy = subprocess.Popen(balancer.command(words), stdout=log, stderr=log)
    try:
        with Multiplexor(FRAMING) as mux, connected(mux, [balancer.address], 3 * EACH):
            exchange = Exchange(mux, KEY)
            stop = ask_until(exchange, tally)
            wait_until(lambda: tally.shares.keys() == {"r1", "r2", "r3"}, "an answer of each")
            hang_and_kill(replicas[1])
            wait_until(lambda: len(mux.transports) == 3 * EACH and tally.unknown, "redialling")
            before = len(tally.answered)
            wait_until(lambda: len(tally.answered) > before + 50, "that the others serve")
            replicas[1].start()
            asked = stop()
    finally:
        haproxy.terminate()
        haproxy.wait()
        print((tmp_path / "log").read_text())
    tally.check(asked, replicas)
    tally.record(record_property, "HAProxy, r2: killed", asked, start)


def fill(send: Callable[[bytes], object], most: int) -> int:
    """How many requests of 16 KiB can be sent until sending times out."""
    for count in range(most):
        try:
            send(request(16384))
        except TimeoutError:
            return count
    return most


def test_one_that_does_not_read(replicas: list[Replica], record_property: Record) -> None:
    """It stops a socket's sending, also to those that do; other sockets' go on."""
    start = time.monotonic()
    most = 2000
    with Multiplexor(FRAMING) as mux:
        connect = dialler(mux, addresses(replicas), 1)
        for _ in replicas:
            mux.attach(connect(), hand_over=True)
        receiving = threading.Event()

        def receive() -> None:
            while not receiving.is_set():
                try:
                    mux.recv(timeout=0.2)
                except TimeoutError:
                    continue

        receiver = threading.Thread(target=receive)
        receiver.start()
        try:
            replicas[2].signal(signal.SIGSTOP)
            first = fill(lambda message: mux.send(message, timeout=1.0), most)
            with mux.clone() as other:
                other.recv_disabled = True
                second = 0
                for _ in range(100):
                    other.send(request(16384), timeout=5.0)
                    second += 1
        finally:
            replicas[2].signal(signal.SIGCONT)
            receiving.set()
            receiver.join()
    assert 0 < first < most
    assert second == 100
    done = sum(replica.carried_out().total() for replica in replicas[:2])
    record_property("title", "r3 does not read")
    record_property("shares", f"1 socket: stopped after {first}; a clone: {second} more")
    record_property("requests", first + second)
    record_property("answers", done)
    record_property("seconds", f"{time.monotonic() - start:.1f}")
