"""Messages to worker processes: KCM's clones beside a process that dispatches.

    ci/vm --cpus 2 -- env PYTHONPATH=. python bench/fan_out.py [SECTION...] [--json]

Wall clock, on two CPUs with nothing beside it: the median of some rounds, all ways in turn.  Every
worker counts what it gets, and the sum is checked.
"""

from __future__ import annotations

import random
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable

from bench.core import SPREAD, Row, apart, main, message
from bench.ways import SIZE, WAYS, Work, rate

ROUNDS = 3
SECONDS = 0.7  # of the work in one run, if the CPUs did nothing else

MICROSECOND = 1e-6


def spin(seconds: float) -> None:
    """Use the CPU for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def none(messages: list[bytes]) -> list[int]:
    """No work."""
    return [len(messages)]


def even(seconds: float) -> Work:
    """The same work for each message."""

    def work(messages: list[bytes]) -> list[int]:
        for _ in messages:
            spin(seconds)
        return [len(messages)]

    return work


def mixed(messages: list[bytes]) -> list[int]:
    """50 microseconds a message on average, most of it in one of ten."""
    for _ in messages:
        spin(230 * MICROSECOND if random.random() < 0.1 else 30 * MICROSECOND)
    return [len(messages)]


def compare(workers: int, count: int, work: Work, ways: tuple[str, ...]) -> dict[str, list[float]]:
    """Messages a second of each way, in each round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name in ways:
            # Without a batch a dispatcher is so much slower that fewer messages will do.
            some = count if "batch" in name else max(count // 20, 1000)
            found[name].append(rate(WAYS[name], workers, some, work))
            print(f"  {name}: {found[name][-1]:.0f}", file=sys.stderr, flush=True)
    for name, rates in found.items():
        low, middle, high = min(rates), statistics.median(rates), max(rates)
        print(f"  {name:<16} {middle:9.0f} a second, {low:.0f} to {high:.0f}", file=sys.stderr)
    return found


def rows(case: str, found: dict[str, list[float]], goal: str) -> list[Row]:
    """Each way beside the best dispatcher."""
    rates = {name: statistics.median(each) for name, each in found.items()}
    best = max(rate for name, rate in rates.items() if not name.startswith("clones"))
    return [
        *(
            (f"{name}: {case}", rate / best, goal if name == "clones, batch" else "none")
            for name, rate in rates.items()
        ),
        *((f"{name}{SPREAD}: {case}", apart(each), "none") for name, each in found.items()),
    ]


def idle() -> list[Row]:
    """Workers that only count."""
    found: list[Row] = []
    for workers in (1, 2, 4, 8):
        print(f" {workers} workers, no work", file=sys.stderr)
        what = f"{workers} worker{'s' * (workers > 1)}"
        goal = "≥ 4" if workers == 4 else "none"
        found += rows(what, compare(workers, 100_000, none, tuple(WAYS)), goal)
    return found


def working() -> list[Row]:
    """Workers that work on each message."""
    found: list[Row] = []
    ways = tuple(name for name in WAYS if name.startswith("clones") or name.endswith("batch"))
    for what, seconds, work, workers in (
        ("50 µs, 4 workers", 50 * MICROSECOND, even(50 * MICROSECOND), 4),
        ("500 µs, 4 workers", 500 * MICROSECOND, even(500 * MICROSECOND), 4),
        ("50 µs mixed, 4 workers", 50 * MICROSECOND, mixed, 4),
        ("50 µs mixed, 8 workers", 50 * MICROSECOND, mixed, 8),
    ):
        print(f" {what}", file=sys.stderr)
        count = round(2 * SECONDS / seconds)
        goal = "≥ 1.3" if what == "50 µs mixed, 4 workers" else "none"
        found += rows(what, compare(workers, count, work, ways), goal)
    return found


def paced(seconds: float) -> Callable[[socket.socket, int], list[int]]:
    """A peer whose messages come at random times, on average one in so many seconds."""

    def peer(far: socket.socket, count: int) -> list[int]:
        rest = message(SIZE)[12:]
        due = time.monotonic()
        for _ in range(count):
            due += random.expovariate(1 / seconds)
            while time.monotonic() < due:
                time.sleep(max(0.0, due - time.monotonic()))
            far.sendall(struct.pack(">Iq", SIZE - 4, time.monotonic_ns()) + rest)
        far.close()
        return []

    return peer


def waits(messages: list[bytes]) -> list[int]:
    """Mixed work; how long each message had waited for its own, in nanoseconds."""
    found = []
    for each in messages:
        (sent,) = struct.unpack_from(">q", each, 4)
        found.append(time.monotonic_ns() - sent)
        mixed([each])
    return found


def waiting() -> list[Row]:
    """How long messages wait for a worker when there are fewer than the workers can do."""
    found: dict[str, list[float]] = {}
    count, between = 2000, 500 * MICROSECOND
    for _ in range(ROUNDS):
        for name in ("clones", "clones, batch", "pipes", "pipes, batch"):
            numbers = sorted(WAYS[name](4, count, waits, paced(between)))
            if len(numbers) != count:
                raise AssertionError(f"{len(numbers)} of {count} messages arrived")
            found.setdefault(name, []).append(numbers[count * 99 // 100] / 1e6)
    for name, times in found.items():
        print(f"  {name:<16} {min(times):.2f} to {max(times):.2f} ms", file=sys.stderr)
    middle = {name: statistics.median(times) for name, times in found.items()}
    alone = middle["clones"]
    return [
        (
            "clones, batch: ÷ clones",
            middle["clones, batch"] / alone,
            "≤ 1.5",
        ),
        ("pipes: ÷ clones", middle["pipes"] / alone, "none"),
        ("pipes, batch: ÷ clones", middle["pipes, batch"] / alone, "none"),
        *((f"{name}{SPREAD}: ÷ clones", apart(each), "none") for name, each in found.items()),
    ]


SECTIONS: dict[str, Callable[[], list[Row]]] = {
    "idle": idle,
    "working": working,
    "waiting": waiting,
}


if __name__ == "__main__":
    main(SECTIONS)
