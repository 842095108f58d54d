"""What a message costs: pykcm beside the standard library's socket and a loop in C.

    ci/vm --icount --cpus 1 -- env PYTHONPATH=. python bench/core.py [SECTION...] [--json]

Both sides run in turn on the same descriptor or side by side, with streams queued before the clock
is read; the medians of seven rounds are compared.  With --icount the guest's clock counts
instructions, so that ratios repeat within a few per cent whatever else the host does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import json
import os
import platform
import resource
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pykcm
from pykcm import _loopback
from pykcm._binding import ffi, lib

ROUNDS = 7
FRAMING = pykcm.LengthField(offset=0, size=4, adjustment=4)
SIZES = (64, 1024, 4096, 16384)
SO_RCVBUFFORCE = 33

# What was measured, the figure, its goal.
Row = tuple[str, float, str]

# What stands behind a row's first word where another row says how far its rounds lay apart.
SPREAD = ", spread"


def message(size: int) -> bytes:
    return struct.pack(">I", size - 4) + bytes(size - 4)


def clock() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class Connection:
    """A KCM socket with one transport, and the same descriptor as the standard library has it."""

    def __init__(self, kcm: pykcm.KCMSocket, far: socket.socket) -> None:
        self.kcm, self.far = kcm, far
        kcm.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.plain = socket.socket(lib.AF_KCM, socket.SOCK_DGRAM, 0, kcm.fileno())
        self.plain.setblocking(False)

    def queue(self, data: bytes, count: int) -> None:
        self.far.sendall(data * count)
        time.sleep(0.05)

    def drain(self, size: int) -> None:
        while size:
            size -= len(self.far.recv(min(size, 1 << 20)))


def connected() -> tuple[pykcm.KCMSocket, Connection]:
    near, far = _loopback.connection()
    kcm = pykcm.KCMSocket()
    kcm.attach(near, FRAMING)
    KEEP.append(near)
    return kcm, Connection(kcm, far)


def multiplexed() -> tuple[pykcm.Multiplexor, Connection]:
    near, far = _loopback.connection()
    mux = pykcm.Multiplexor(FRAMING)
    mux.attach(near)
    return mux, Connection(mux.socket, far)


# What has to live as long as the benchmark.
KEEP: list[object] = []


def in_turn(sides: dict[str, Callable[[], int]], before: Callable[[], None]) -> dict[str, float]:
    """The median cost a message of each side; each returns how many it did."""
    costs: dict[str, list[float]] = {name: [] for name in sides}
    gc.disable()
    for _ in range(ROUNDS):
        for name, side in sides.items():
            before()
            start = clock()
            count = side()
            costs[name].append((clock() - start) / count)
    gc.enable()
    return {name: statistics.median(cost) for name, cost in costs.items()}


def c_receive(fd: int) -> Callable[[int], int]:
    room = 1 << 16
    memory = ffi.new("char[]", room * 64)
    lengths, flags = ffi.new("unsigned int[]", 64), ffi.new("int[]", 64)

    def receive(count: int) -> int:
        done = 0
        while done < count:
            done += lib.pykcm_recvmmsg(fd, memory, room * 64, room, 64, 0x40, lengths, flags)
        return done

    return receive


def c_send(fd: int, data: bytes) -> Callable[[int], int]:
    memory = ffi.from_buffer("char[]", data)
    messages, lengths = ffi.new("void *[]", [memory] * 64), ffi.new("size_t[]", [len(data)] * 64)

    def send(count: int) -> int:
        done = 0
        while done < count:
            done += lib.pykcm_sendmmsg(fd, messages, lengths, min(64, count - done), 0x40)
        return done

    return send


def repeat(call: Callable[[], object]) -> Callable[[int], int]:
    def run(count: int) -> int:
        for _ in range(count):
            call()
        return count

    return run


def repeat_with(call: Callable[[Any], object], argument: object) -> Callable[[int], int]:
    def run(count: int) -> int:
        for _ in range(count):
            call(argument)
        return count

    return run


def in_batches(call: Callable[[int], int]) -> Callable[[int], int]:
    """A call that is told how many are left, and returns how many it did."""

    def run(count: int) -> int:
        done = 0
        while done < count:
            done += call(count - done)
        return done

    return run


def messages_of(size: int) -> list[Row]:
    """recv, send and their batches beside socket and C; Multiplexor beside socket."""
    data = message(size)
    count = min(256, max(8, 200_000 // size))
    kcm, one = connected()
    mux, other = multiplexed()
    batch = [data] * 64

    def receive(connection: Connection, sides: dict[str, Callable[[int], int]]) -> dict[str, float]:
        return in_turn(
            {name: functools.partial(side, count) for name, side in sides.items()},
            lambda: connection.queue(data, count),
        )

    def send(connection: Connection, sides: dict[str, Callable[[int], int]]) -> dict[str, float]:
        unread = [0]

        def clear() -> None:
            connection.drain(unread[0])
            unread[0] = count * size

        return in_turn(
            {name: functools.partial(side, count) for name, side in sides.items()}, clear
        )

    got = receive(
        one,
        {
            "socket": repeat_with(one.plain.recv, 1 << 16),
            "kcm": repeat_with(kcm.recv, 1 << 16),
            "many": in_batches(lambda _: len(kcm.recv_many())),
            "c": c_receive(kcm.fileno()),
        },
    )
    sent = send(
        one,
        {
            "socket": repeat_with(one.plain.send, data),
            "kcm": repeat_with(kcm.send, data),
            "many": in_batches(lambda left: kcm.send_many(batch[:left])),
            "c": c_send(kcm.fileno(), data),
        },
    )
    mux_got = receive(
        other, {"socket": repeat_with(other.plain.recv, 1 << 16), "mux": repeat(mux.recv)}
    )
    mux_sent = send(
        other, {"socket": repeat_with(other.plain.send, data), "mux": repeat_with(mux.send, data)}
    )
    for connection in (one, other):
        connection.plain.detach()
    return [
        (f"recv ÷ socket.recv, {size} B", got["kcm"] / got["socket"], "≤ 1.0"),
        (f"send ÷ socket.send, {size} B", sent["kcm"] / sent["socket"], "≤ 1.0"),
        (f"recv_many ÷ C's recvmmsg, {size} B", got["many"] / got["c"], "≤ 1.15"),
        (f"send_many ÷ C's sendmmsg, {size} B", sent["many"] / sent["c"], "≤ 1.15"),
        (f"Multiplexor.recv ÷ socket's, {size} B", mux_got["mux"] / mux_got["socket"], "≤ 1.3"),
        (f"Multiplexor.send ÷ socket's, {size} B", mux_sent["mux"] / mux_sent["socket"], "≤ 1.3"),
    ]


def messages() -> list[Row]:
    """The same for each size."""
    return [row for size in SIZES for row in messages_of(size)]


def asynchronous() -> list[Row]:
    """arecv and asend while messages wait beside recv and send."""
    rows: list[Row] = []
    data, count = message(64), 200
    kcm, connection = connected()

    async def main() -> None:
        async def receive() -> int:
            for _ in range(count):
                await kcm.arecv()
            return count

        async def send() -> int:
            for _ in range(count):
                await kcm.asend(data)
            return count

        for name, later, now in (
            ("arecv ÷ recv", receive, repeat(kcm.recv)),
            ("asend ÷ send", send, repeat_with(kcm.send, data)),
        ):
            costs: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(ROUNDS):
                for is_later in (True, False):
                    if later is receive:
                        connection.queue(data, count)
                    start = clock()
                    if is_later:
                        await later()
                    else:
                        now(count)
                    costs[is_later].append((clock() - start) / count)
                    if later is send:
                        connection.drain(count * len(data))
            ratio = statistics.median(costs[True]) / statistics.median(costs[False])
            rows.append((f"{name}, 64 B", ratio, "≤ 1.3"))

    asyncio.run(main())
    connection.plain.detach()
    return rows


def echo(tcp: socket.socket) -> None:
    """A process that sends back what comes."""
    if os.fork() == 0:
        try:
            while data := tcp.recv(1 << 16):
                tcp.sendall(data)
        finally:
            os._exit(0)
    tcp.close()


def round_trips() -> list[Row]:
    """A question and its answer, beside sendall and recv over TCP."""
    data, count = message(64), 300
    times: dict[str, list[int]] = {"tcp": [], "kcm": [], "mux": []}
    tcp, far = _loopback.connection()
    echo(far)
    near, far = _loopback.connection()
    echo(far)
    kcm = pykcm.KCMSocket()
    kcm.attach(near, FRAMING)
    other, far = _loopback.connection()
    echo(far)
    mux = pykcm.Multiplexor(FRAMING)
    mux.attach(other)
    for one in (tcp, near, other):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(count):
        start = clock()
        tcp.sendall(data)
        tcp.recv(1 << 16)
        times["tcp"].append(clock() - start)
        start = clock()
        kcm.send(data)
        kcm.recv()
        times["kcm"].append(clock() - start)
        start = clock()
        mux.send(data)
        mux.recv()
        times["mux"].append(clock() - start)
    rows: list[Row] = []
    for name, text, goal in (
        ("kcm", "KCMSocket", "≤ 1.1"),
        ("mux", "Multiplexor", "≤ 1.25"),
    ):
        for percent in (50, 99):
            at = count * percent // 100
            ratio = sorted(times[name])[at] / sorted(times["tcp"])[at]
            rows.append((f"round trip ÷ TCP's, {text}, {percent} %", ratio, goal))
    return rows


def transports() -> list[Row]:
    """unattach, one end, and all ends at once, among many transports."""
    costs: dict[tuple[str, int], float] = {}
    for number in (10, 1000):
        mux = pykcm.Multiplexor(FRAMING)
        pairs = [_loopback.connection() for _ in range(number)]
        for near, _ in pairs:
            mux.attach(near)
        unattach, end = [], []
        for _ in range(ROUNDS):
            near, _far = pairs.pop()
            start = clock()
            mux.unattach(near)
            unattach.append(clock() - start)
            mux.attach(near)
            pairs.insert(0, (near, _far))
            near, far = _loopback.connection()
            mux.attach(near)
            far.close()
            time.sleep(0.05)
            start = clock()
            while not list(mux.disconnections()):
                time.sleep(0.0005)
            end.append(clock() - start)
        costs["unattach", number] = statistics.median(unattach)
        costs["end", number] = statistics.median(end)
        if number == 1000:
            for _, far in pairs:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                far.close()
            start = clock()
            with contextlib.suppress(pykcm.Disconnected):
                mux.recv(timeout=60)
            costs["all", number] = (clock() - start) / 1e9
            KEEP.append(list(mux.disconnections()))
        KEEP.append(mux)
    return [
        (
            "unattach among 1,000 ÷ among 10",
            costs["unattach", 1000] / costs["unattach", 10],
            "≤ 1.2",
        ),
        ("one end among 1,000 ÷ among 10", costs["end", 1000] / costs["end", 10], "≤ 1.2"),
        ("1,000 ends at once, seconds", costs["all", 1000], "≤ 0.4"),
    ]


def memory() -> list[Row]:
    """What the first recv_many of 64 messages adds to the process."""
    kcm, connection = connected()
    connection.queue(message(64), 64)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    kcm.recv_many()
    connection.plain.detach()
    return [("growth at the first recv_many, MiB", (resident() - before) / (1 << 20), "≤ 1")]


def imports() -> list[Row]:
    """Import times beside that of socket."""

    # Compiled once, as they are wherever the package is installed.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}

    def cost(code: str) -> float:
        times = []
        for _ in range(3 * ROUNDS):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return statistics.median(times)

    nothing = cost("pass")
    base = cost("import socket") - nothing
    used = "from pykcm import Multiplexor, LengthField; LengthField(offset=0, size=4)"
    shown = cost("import sys; sys.argv[1:] = ['--help']; from pykcm.cli import main; main()")
    return [
        ("kcm --help ÷ python -c 'import click'", shown / cost("import click"), "≤ 1.5"),
        ("import pykcm ÷ import socket", (cost("import pykcm") - nothing) / base, "≤ 3"),
        ("with Multiplexor and LengthField ÷ socket", (cost(used) - nothing) / base, "≤ 10"),
    ]


def attaching() -> list[Row]:
    """Attaching the second and later connection, RESP beside THRIFT_FRAMED."""
    costs = {}
    for name in ("RESP", "THRIFT_FRAMED"):
        mux = pykcm.Multiplexor(getattr(pykcm.protocols, name))
        mux.attach(_loopback.connection()[0])
        times = []
        for _ in range(ROUNDS):
            near, far = _loopback.connection()
            start = clock()
            mux.attach(near)
            times.append(clock() - start)
            KEEP.append(far)
        costs[name] = statistics.median(times)
        KEEP.append(mux)
    return [("attach again, RESP ÷ THRIFT_FRAMED", costs["RESP"] / costs["THRIFT_FRAMED"], "≤ 1.2")]


SECTIONS: dict[str, Callable[[], list[Row]]] = {
    "messages": messages,
    "asynchronous": asynchronous,
    "round_trips": round_trips,
    "transports": transports,
    "memory": memory,
    "imports": imports,
    "attaching": attaching,
}


def print_rows(rows: list[Row], to: TextIO) -> None:
    """Each on a line, for people."""
    for what, value, goal in rows:
        print(f"{what:<58} {value:8.2f}   goal {goal}", file=to, flush=True)


def print_json(sections: dict[str, list[Row]]) -> None:
    """All on one line, for bench/performance.py."""
    print(json.dumps({"kernel": platform.release(), "sections": sections}, ensure_ascii=False))


def apart(values: list[float]) -> float:
    """How far the rounds of a measurement lie apart: largest less smallest, by the middle one."""
    return (max(values) - min(values)) / statistics.median(values)


def raise_descriptor_limit() -> None:
    """Have room for thousands of connections, as far as one may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (16384, hard):
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), max(hard, limit)))
            return


def main(sections: dict[str, Callable[[], list[Row]]]) -> None:
    parser = argparse.ArgumentParser(description="What a message costs, in ratios.")
    parser.add_argument("sections", nargs="*", choices=[*sections, []], metavar="SECTION")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    raise_descriptor_limit()
    found: dict[str, list[Row]] = {}
    for name in arguments.sections or sections:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = sections[name]()
        # With --json, too, the lines show that it goes on.
        print_rows(found[name], sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print_json(found)
    sys.stdout.flush()
    os._exit(0)  # the connections that are left are of no interest


if __name__ == "__main__":
    main(SECTIONS)
