"""`kcm demo`: many messages, several connections and worker processes, every message checked."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import mmap
import multiprocessing
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pykcm import _loopback, bpf
from pykcm._offset import find_strategy
from pykcm.cli import _output
from pykcm.framing import Framing
from pykcm.selftest import traffic
from pykcm.socket import KCMSocket

# Without progress for this long, in seconds, the messages that are missing will not come.
STALL = 60.0
# The same for the documented program, which loses its place for good.
NAIVE_STALL = 5.0

# What Documentation/networking/kcm.rst shows, for a length of 4 bytes: it reads the first bytes of
# the segment for every message in it.
DOCUMENTED = """
    r6 = r1
    r0 = *(u32 *)skb[0]
    r0 += 4
    exit
"""

_fork = multiprocessing.get_context("fork")
_COUNTERS = struct.Struct("=QQQ")  # messages, bytes, damaged


class _Tally:
    """What one worker received, in memory that it shares with the parent."""

    def __init__(self, streams: list[traffic.Stream]) -> None:
        self._counts = [stream.count for stream in streams]
        self._memory = mmap.mmap(-1, _COUNTERS.size + sum(self._counts))

    def add(self, messages: list[bytes]) -> None:
        received, size, damaged = _COUNTERS.unpack_from(self._memory)
        for message in messages:
            size += len(message)
            identity = traffic.decode(message)
            if identity is None:
                damaged += 1
                continue
            sender, number = identity
            place = _COUNTERS.size + sum(self._counts[:sender]) + number
            self._memory[place] = min(255, self._memory[place] + 1)
        _COUNTERS.pack_into(self._memory, 0, received + len(messages), size, damaged)

    @property
    def counters(self) -> tuple[int, int, int]:
        """Messages, bytes, and messages that were damaged."""
        received, size, damaged = _COUNTERS.unpack_from(self._memory)
        return received, size, damaged

    @property
    def seen(self) -> bytes:
        """How often each message of each stream arrived intact."""
        return self._memory[_COUNTERS.size :]


@dataclasses.dataclass(frozen=True)
class Result:
    """What arrived of `sent` messages.

    Attributes:
        workers: messages, bytes and damaged messages of each worker.
        intact: messages that arrived exactly once and intact.
        doubled: messages that arrived intact more than once.
        seconds: from the first byte written to the last message received.
        errors: what the kernel posted on the TCP sockets, by connection.
    """

    sent: int
    sent_bytes: int
    workers: list[tuple[int, int, int]]
    intact: int
    doubled: int
    seconds: float
    errors: dict[int, str]

    @property
    def delivered(self) -> int:
        """Messages that KCM delivered, right or wrong."""
        return sum(worker[0] for worker in self.workers)

    @property
    def complete(self) -> bool:
        """Whether each message arrived exactly once and intact, and nothing else did."""
        return self.delivered == self.sent == self.intact


def _write(tcp: socket.socket, stream: traffic.Stream) -> None:
    # A peer that gave up is seen by what does not arrive.
    with contextlib.suppress(ConnectionError):
        for piece in stream.pieces():
            tcp.sendall(piece)


def _work(kcm: KCMSocket, tally: _Tally, stop: int) -> None:
    poll = select.poll()
    poll.register(kcm, select.POLLIN)
    poll.register(stop, select.POLLIN)
    while stop not in dict(poll.poll()):
        with contextlib.suppress(BlockingIOError):
            tally.add(kcm.recv_many(flags=socket.MSG_DONTWAIT))


@contextlib.contextmanager
def _processes(
    target: Callable[..., None], arguments: Sequence[tuple[object, ...]]
) -> Iterator[list[BaseProcess]]:
    """A process for each tuple of arguments; all have ended when the block is left."""
    processes: list[BaseProcess] = []
    try:
        for args in arguments:
            process: BaseProcess = _fork.Process(target=target, args=args, daemon=True)
            process.start()
            processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.terminate()
            process.join()


def run(
    streams: list[traffic.Stream],
    delineation: Framing | bpf.Program,
    workers: int,
    stall: float,
    progress: Callable[[int], None],
) -> Result:
    """Send each stream over a connection of its own through one multiplexor.

    Args:
        streams: what to send.
        delineation: what finds the messages.
        workers: how many processes receive, each on a clone.
        stall: seconds without a message after which nothing more is waited for.
        progress: called with the number of messages received so far.
    """
    with contextlib.ExitStack() as stack:
        kcm = stack.enter_context(KCMSocket())
        writers: list[socket.socket] = []
        readers: list[socket.socket] = []
        for _ in streams:
            writer, reader = _loopback.connection()
            writers.append(stack.enter_context(writer))
            readers.append(stack.enter_context(reader))
        for reader in readers:
            kcm.attach(reader, delineation)
        # The workers do the receiving; the parent takes no part.
        kcm.recv_disabled = True
        clones = [stack.enter_context(kcm.clone()) for _ in range(workers)]
        tallies = [_Tally(streams) for _ in clones]
        stop_read, stop_write = os.pipe()
        stack.callback(os.close, stop_read)
        stack.callback(os.close, stop_write)
        receiving = stack.enter_context(
            _processes(
                _work,
                [(clone, tally, stop_read) for clone, tally in zip(clones, tallies, strict=True)],
            )
        )
        started = time.monotonic()
        stack.enter_context(_processes(_write, list(zip(writers, streams, strict=True))))
        errors = _watch(readers, tallies, streams, stall, progress, receiving)
        seconds = time.monotonic() - started
        os.write(stop_write, b"!")
        for process in receiving:
            process.join(STALL)
    seen = [sum(counts) for counts in zip(*(tally.seen for tally in tallies), strict=True)]
    return Result(
        sent=sum(stream.count for stream in streams),
        sent_bytes=sum(stream.total_bytes for stream in streams),
        workers=[tally.counters for tally in tallies],
        intact=seen.count(1),
        doubled=sum(count > 1 for count in seen),
        seconds=seconds,
        errors=errors,
    )


def _watch(
    readers: list[socket.socket],
    tallies: list[_Tally],
    streams: list[traffic.Stream],
    stall: float,
    progress: Callable[[int], None],
    workers: list[BaseProcess],
) -> dict[int, str]:
    """Wait until all has arrived, or nothing more will; the errors of the connections."""
    sent = sum(stream.count for stream in streams)
    errors: dict[int, str] = {}
    received = -1
    deadline = 0.0
    while received < sent and all(worker.is_alive() for worker in workers):
        now = sum(tally.counters[0] for tally in tallies)
        if now != received:
            received, deadline = now, time.monotonic() + stall
            progress(received)
        if time.monotonic() >= deadline:
            break
        for index, reader in enumerate(readers):
            number = reader.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                errors[index] = _name(number)
        if len(errors) == len(readers):
            # Nothing more will be parsed; what is queued still arrives.
            stall = min(stall, 1.0)
            deadline = min(deadline, time.monotonic() + stall)
        time.sleep(0.05)
    return errors


def _name(number: int) -> str:
    """An errno's name.

    Where the documented program takes bytes of a message for a length and that is negative, the
    kernel posts it as an errno that does not exist.
    """
    return errno.errorcode.get(number, "garbage")


@contextlib.contextmanager
def _progress(title: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, a line for each tenth elsewhere."""
    if not console.is_terminal:
        shown = 0

        def line(count: int) -> None:
            nonlocal shown
            if count * 10 // total > shown or count == total:
                shown = count * 10 // total
                console.print(f"{title}: {count:,} of {total:,} messages", highlight=False)

        yield line
        return
    # Without a thread of its own, since the processes are forked while it is shown.
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.update(task, completed=count, refresh=True)


def _report(seed: int, right: Result, naive: Result, strategy: str) -> dict[str, Any]:
    return {
        "kernel": os.uname().release,
        "strategy": strategy,
        "seed": seed,
        "messages": right.sent,
        "bytes": right.sent_bytes,
        "intact": right.intact,
        "doubled": right.doubled,
        "workers": [
            {"messages": messages, "bytes": size, "damaged": damaged}
            for messages, size, damaged in right.workers
        ],
        "seconds": round(right.seconds, 3),
        "messages_per_second": round(right.delivered / right.seconds, 1),
        "errors": right.errors,
        "naive": {
            "delivered": naive.delivered,
            "intact": naive.intact,
            "wrong": naive.delivered - naive.intact,
            "missing": naive.sent - naive.intact,
            "errors": naive.errors,
        },
        "passed": right.complete,
    }


def _table(report: dict[str, Any]) -> Table:
    table = Table(
        title=f"Linux {report['kernel']}, offset by {report['strategy']}, seed {report['seed']}"
    )
    table.add_column("")
    for name in ("messages", "bytes", "intact", "wrong"):
        table.add_column(name, justify="right")
    for number, worker in enumerate(report["workers"], 1):
        table.add_row(
            f"worker {number}",
            f"{worker['messages']:,}",
            f"{worker['bytes']:,}",
            f"{worker['messages'] - worker['damaged']:,}",
            f"{worker['damaged']:,}",
        )
    table.add_section()
    table.add_row(
        "all workers",
        f"{sum(worker['messages'] for worker in report['workers']):,}",
        f"{sum(worker['bytes'] for worker in report['workers']):,}",
        f"{report['intact']:,}",
        f"{sum(worker['damaged'] for worker in report['workers']):,}",
    )
    naive = report["naive"]
    table.add_row(
        "documented program",
        f"{naive['delivered']:,}",
        "",
        f"{naive['intact']:,}",
        f"{naive['wrong']:,}",
        style=None if naive["intact"] == report["messages"] else "yellow",
    )
    return table


def _print(console: Console, report: dict[str, Any]) -> None:
    console.print(_table(report))
    naive = report["naive"]
    console.print(
        f"{report['intact']:,} of {report['messages']:,} messages intact in "
        f"{report['seconds']:.1f} s, {report['messages_per_second']:,.0f} messages/s",
        highlight=False,
    )
    lines = [
        f"The program of the kernel's documentation, run on the same streams: "
        f"{naive['missing']:,} of {report['messages']:,} messages lost or wrong"
    ]
    if naive["errors"]:
        names = ", ".join(sorted(set(naive["errors"].values())))
        lines.append(f"; {len(naive['errors'])} connections ended by {names}")
    console.print("".join(lines), highlight=False)
    for index, name in report["errors"].items():
        console.print(f"connection {index}: {name}", style="red")
    console.print(
        "[green]passed[/]: each message arrived exactly once and intact"
        if report["passed"]
        else "[red]FAILED[/]: not every message arrived exactly once and intact"
    )


@click.command()
@click.option("--seed", type=int, help="The random seed; printed, and random by default.")
@click.option("--messages", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--connections", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(seed: int | None, messages: int, connections: int, workers: int, as_json: bool) -> None:
    """Send messages through a real KCM and count what arrives.

    Messages of 0 to 20,000 bytes and a header are written in random pieces over several TCP
    connections, and received by worker processes on clones of one KCM socket.  The exit status is
    0 only if each arrived exactly once and intact.  The same streams are then sent again with the
    program of the kernel's documentation, which measures every message from the segment's first
    byte.
    """
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    console = _output.console(stderr=True)
    console.print(f"seed {seed}", highlight=False)
    strategy = find_strategy()
    share, rest = divmod(messages, connections)
    streams = [
        traffic.Stream(seed, sender, share + (sender < rest)) for sender in range(connections)
    ]
    with _progress("messages", messages, console) as progress:
        right = run(streams, traffic.FRAMING, workers, STALL, progress)
    with bpf.Program.load(DOCUMENTED, name="documented") as program:
        with _progress("documented program", messages, console) as progress:
            naive = run(streams, program, workers, NAIVE_STALL, progress)
    report = _report(seed, right, naive, strategy.name)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(_output.console(), report)
    sys.exit(0 if report["passed"] else 1)
