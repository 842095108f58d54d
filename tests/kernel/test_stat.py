"""`kcm stat` beside traffic: what it joins is right, and what it can't join it does not guess."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any

import pytest
from click.testing import CliRunner

import pykcm
from pykcm import statistics
from pykcm._joining import kernel, look
from pykcm._joining.views import Look, Transport
from pykcm.cli import disasm, stat
from tests.kernel.connections import FRAMING, PATIENCE, Pair, message

PR_SET_DUMPABLE = 4  # linux/prctl.h
FORK = multiprocessing.get_context("fork")
SHARES = (13, 13, 14)  # transports of each process: 40 in all
CHURN = 1000
STABLE = 2
LOOKS = 10

# What a child tells of itself: its pid, and of each connection local and peer address, bytes each
# way.
Truth = tuple[int, dict[str, tuple[str, int, int]]]


def pair(family: socket.AddressFamily = socket.AF_INET) -> Pair:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        near = socket.create_connection(listener.getsockname()[:2])
        far, _ = listener.accept()
    return near, far


def address(name: tuple[Any, ...]) -> str:
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def serve(pipe: Pipe, number: int, count: int) -> None:
    """Have a multiplexor with so many transports and some traffic, until told to end."""
    family = socket.AF_INET6 if number == 2 else socket.AF_INET
    pairs = [pair(family) for _ in range(count)]
    with pykcm.Multiplexor(FRAMING, linger=0) as mux, mux.clone() as clone:
        clone.recv_disabled = True  # the other one receives
        for near, _ in pairs:
            mux.attach(near)
        received = {}
        for place, (near, far) in enumerate(pairs):
            # Half of them have counts of their own, the others' are alike.
            size = 100 * (number + 1) + place if place % 2 else 7
            far.sendall(message(bytes(size)) * 2)
            received[near] = 2 * (size + 4)
            for _ in range(2):
                mux.recv(timeout=PATIENCE)
        mux.send_many([message(bytes(50))] * 10)
        mux.flush()
        truth = {}
        for near, far in pairs:
            far.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while data := far.recv(1 << 16):
                    sent += len(data)
            truth[address(near.getsockname())] = address(near.getpeername()), received[near], sent
        pipe.send((os.getpid(), truth))
        pipe.recv()


@pytest.fixture
def described() -> None:
    """The kernel tells where the members of KCM's structs lie."""
    pykcm.KCMSocket().close()  # loads the module
    if not os.path.exists("/sys/kernel/btf/kcm"):  # noqa: PTH110
        pytest.skip("this kernel does not describe the types of its module kcm (/sys/kernel/btf)")


def churn(pipe: Pipe) -> None:
    """Attach and unattach until told to end, and receive over connection N 100 + N bytes."""
    pairs = [pair() for _ in range(8 + STABLE)]
    local = [address(near.getsockname()) for near, _ in pairs]
    with pykcm.Multiplexor(FRAMING, linger=0) as mux:
        stable = [pairs.pop() for _ in range(STABLE)]
        for near, _ in stable:
            mux.attach(near)
        pipe.send((os.getpid(), local))
        attached: list[int] = []
        turn = 0
        while turn < CHURN or not pipe.poll(0):
            place = turn * 5 % len(pairs)
            near, far = pairs[place]
            mux.attach(near)
            attached.append(place)
            far.sendall(message(bytes(96 + place)))
            mux.recv(timeout=PATIENCE)
            if len(attached) == len(pairs) - 2:
                # Lower numbers get free, which the next ones take.
                for place in (attached.pop(turn % 4), attached.pop(0)):
                    mux.unattach(pairs[place][0])
            turn += 1
            time.sleep(0.002)  # on one CPU the other process would see nothing
        pipe.send(turn)


def test_churn(described: None) -> None:
    """While connections come and go all the time: no failure, and never another's address."""
    mine, its = FORK.Pipe()
    child = FORK.Process(target=churn, args=(its,), daemon=True)
    child.start()
    pid, local = mine.recv()
    joined, stable, reasons = 0, 0, Counter[str]()
    with look.Observer() as observer:
        for _ in range(LOOKS):
            found = observer.look()
            reasons.update(found.notes)
            rows = [
                row
                for mux in found.multiplexors
                if pid in [holder.pid for holder in mux.processes]
                for row in mux.transports
            ]
            names = [row.connection.local for row in rows if row.connection]
            assert len(names) == len(set(names))
            for row in rows:
                if row.connection is None:
                    assert row.reason
                    reasons[row.reason] += 1
                elif row.join == "kernel":
                    place = local.index(row.connection.local)
                    stable += place >= len(local) - STABLE
                    assert row.counts.rx_bytes in (0, 100 + place)
                    assert {holder.pid for holder in row.processes} == {pid}
                    joined += 1
        mine.send(None)
        count = mine.recv()
        print(f"{count} attached, {joined} joined, {stable} stable; others: {dict(reasons)}")
    assert count >= CHURN
    child.join(30)
    assert child.exitcode == 0
    assert stable == STABLE * LOOKS


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Truth]]:
    """Three processes with 40 transports in all, one over IPv6."""
    near, far = pair()
    with far, pykcm.Multiplexor(FRAMING) as mux:
        mux.attach(near, hand_over=True)  # so that the messages of pykcm's trials are counted now
    before = statistics.totals().psocks
    children, pipes = [], []
    for number, count in enumerate(SHARES):
        mine, its = FORK.Pipe()
        child = FORK.Process(target=serve, args=(its, number, count), daemon=True)
        child.start()
        its.close()
        children.append(child)
        pipes.append(mine)
    truths = [pipe.recv() for pipe in pipes]
    after = statistics.totals().psocks
    assert after["rx_messages"] - before["rx_messages"] == 2 * sum(SHARES)
    yield truths
    for pipe, child in zip(pipes, children, strict=True):
        with contextlib.suppress(BrokenPipeError):
            pipe.send(None)
        child.join(30)
        assert child.exitcode == 0


def transports(found: Look) -> list[Transport]:
    return [row for mux in found.multiplexors for row in mux.transports]


def test_addresses_pids_and_sums(described: None, processes: list[Truth]) -> None:
    """All of it is right: 3 processes, 40 transports, and what went over each."""
    output = CliRunner().invoke(stat.command, ["--json"]).output
    told = json.loads(output)
    muxes = {mux["processes"][0]["pid"]: mux for mux in told["multiplexors"]}
    assert len(muxes) == len(told["multiplexors"]) == len(SHARES)
    for pid, truth in processes:
        mux = muxes[pid]
        assert [process["pid"] for process in mux["processes"]] == [pid]
        assert [len(row["processes"]) for row in mux["sockets"]] == [1, 1]
        joined = {
            row["connection"]["local"]: (
                row["connection"]["peer"],
                row["rx_bytes"],
                row["tx_bytes"],
            )
            for row in mux["transports"]
        }
        assert joined == truth
        assert {row["join"] for row in mux["transports"]} == {"kernel"}
        assert {holder["pid"] for row in mux["transports"] for holder in row["processes"]} == {pid}
        assert sum(row["tx_messages"] for row in mux["transports"]) == 10
    assert told["notes"] == []
    programs = {
        mux["number"]: {row["program"] for row in mux["transports"]} for mux in muxes.values()
    }
    listed = json.loads(CliRunner().invoke(disasm.command, ["--list", "--json"]).output)["programs"]
    for mux in muxes.values():
        (program,) = programs[mux["number"]]  # each process has loaded its own
        (found,) = [each["transports"] for each in listed if each["id"] == program]
        assert [row["multiplexor"] for row in found] == [mux["number"]] * len(mux["transports"])
        local = mux["transports"][0]["connection"]["local"]
        shown = CliRunner().invoke(disasm.command, ["--attached", local, "--json"]).output
        assert json.loads(shown)["id"] == program


def test_counts_alone_never_guess(
    described: None, processes: list[Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernel's lists less is joined; all that is is right, the rest has a reason."""

    def shut() -> kernel.Lists:
        raise kernel.Obstacle("this is a test")

    with look.Observer() as observer:
        right = [row.connection for row in transports(observer.look())]
    monkeypatch.setattr(kernel, "Lists", shut)
    with look.Observer() as observer:
        found = observer.look()
    rows = transports(found)
    joined = [row for row in rows if row.connection]
    assert len(joined) >= sum(share // 2 for share in SHARES)
    for row, connection in zip(rows, right, strict=True):
        assert connection
        if row.connection:
            assert row.join in ("only", "likely")
            assert row.connection.inode == connection.inode
        else:
            assert row.reason.endswith("connections may be it")
    pids = {tuple(holder.pid for holder in mux.processes) for mux in found.multiplexors}
    assert pids == {(pid,) for pid, _ in processes}
    assert found.notes == ("joined by counts alone: this is a test",)


def looked_as_nobody() -> tuple[int, str]:
    """What `kcm stat --json` ends with and prints in a process of another user's.

    That need not be able to run this Python, which may lie in somebody's home: the process is
    forked, and everything that it needs is imported before.
    """
    CliRunner().invoke(stat.command, ["--json"])
    for name in ("_functions", "_token", "_verifier"):  # where a load is refused
        importlib.import_module(f"pykcm.bpf.{name}")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            sys.meta_path.clear()
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            # As of a program that was just started: else its own /proc/self would be root's.
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
            result = CliRunner().invoke(stat.command, ["--json"])
            status = result.exit_code
            text = result.output or repr(result.exception)
            with open(writing, "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write(text)
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8") as file:  # noqa: PTH123
        text = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def test_an_ordinary_user(processes: list[Truth]) -> None:
    """Without privileges it is told what could not be joined, and what it takes."""
    status, text = looked_as_nobody()
    assert status == 0, text
    told = json.loads(text)
    assert len(told["multiplexors"]) == len(SHARES)
    reason = "root, or CAP_BPF and CAP_PERFMON"
    if not os.path.exists("/sys/kernel/btf/kcm"):  # noqa: PTH110
        reason = "the kernel does not describe its types"
    assert reason in told["notes"][0]
    assert "could not be looked into" in told["notes"][1]
    local = {own for _, truth in processes for own in truth}
    rows = [row for mux in told["multiplexors"] for row in mux["transports"]]
    assert all(row["processes"] == [] for row in rows)
    assert {row["connection"]["local"] for row in rows if row["connection"]} <= local


def test_lines_and_rates(described: None, processes: list[Truth]) -> None:
    """--jsonl goes on until it is interrupted, and has rates from the second line on."""
    command = [sys.executable, "-m", "pykcm", "stat", "--jsonl", "--watch", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 128 + signal.SIGINT
    assert first["rates"] is None
    assert second["rates"]["rx_messages"] == 0
    assert {mux["rates"]["tx_bytes"] for mux in second["multiplexors"]} == {0}
    rows = [row for mux in second["multiplexors"] for row in mux["transports"]]
    assert {row["rates"]["rx_bytes"] for row in rows} == {0}
