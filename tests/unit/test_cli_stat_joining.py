"""`kcm stat`: what it joins, of what is told by /proc and the kernel."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pykcm import statistics
from pykcm._joining import connections, counts, kernel, look, processes, rates
from pykcm._joining.btf import Types
from pykcm._joining.connections import Connection
from pykcm._joining.processes import Holders
from pykcm._joining.views import FLOW
from tests.unit.stat_machine import (
    HOLDERS,
    MEMBERS,
    OLD_KCM,
    OLD_STATS,
    TCP,
    Lists,
    Machine,
    machine,
    observe,
)
from tests.unit.test_statistics import KCM, STATS

__all__ = ["machine"]  # a fixture


def test_joined_by_the_kernels_lists(machine: Machine) -> None:
    newest, oldest = observe().multiplexors
    assert [holder.pid for holder in newest.processes] == [812, 813]
    assert [row.processes for row in newest.sockets] == [HOLDERS[401], HOLDERS[402]]
    assert (newest.number, oldest.number) == (2, 1)
    (transport,) = newest.transports
    assert (transport.connection, transport.join) == (TCP[501], "kernel")
    assert transport.processes == HOLDERS[501]
    assert transport.program == 77


@pytest.mark.parametrize(
    ("psock", "attached", "joined"),
    [
        # Nothing was attached meanwhile: it is the same one, whatever it has received.
        (kernel.Psock(0x23, 0, 501, 99, 30), 9, True),
        # Other connections were.
        (kernel.Psock(0x23, 0, 501, 81, 30), 10, True),
        # It may have been taken off and put back, with another in its place meanwhile.
        (kernel.Psock(0x23, 0, 501, 99, 30), 10, False),
        # It is another.
        (kernel.Psock(0x99, 0, 501, 81, 30), 10, False),
        (kernel.Psock(0x23, 1, 501, 81, 30), 10, False),
        (kernel.Psock(0x23, 0, 502, 81, 30), 10, False),
        (None, 10, False),
    ],
)
def test_what_may_have_changed_during_the_look_is_not_joined(
    machine: Machine, psock: kernel.Psock | None, attached: int, joined: bool
) -> None:
    psocks = (psock,) if psock else ()
    changed = [MEMBERS[0]._replace(attached=attached, psocks=psocks), MEMBERS[1]]
    machine.lists = Lists([MEMBERS, changed] * 5)
    (transport,) = observe().multiplexors[0].transports
    assert (transport.connection is not None) == joined
    reason = "connections were attached or unattached during the look"
    assert transport.reason == ("" if joined else reason)
    assert transport.processes == (HOLDERS[501] if joined else ())


def test_a_line_of_another_connection(machine: Machine) -> None:
    """The lists say the same before and after, but the line has the counts of something else."""
    changed = [MEMBERS[0]._replace(attached=11), MEMBERS[1]]
    machine.lists = Lists([MEMBERS, changed] * 5)
    machine.texts["/proc/net/kcm"] = KCM.replace("8          81 ", "8          80 ")
    (transport,) = observe().multiplexors[0].transports
    assert transport.connection is None


def test_a_connection_that_is_not_among_this_namespaces(machine: Machine) -> None:
    del machine.tcp[501]
    (transport,) = observe().multiplexors[0].transports
    assert transport.connection is None
    assert transport.join == ""
    assert "another network namespace" in transport.reason


def test_lists_that_change_are_read_again(machine: Machine) -> None:
    machine.lists = Lists([BlockingIOError(), MEMBERS[1:], MEMBERS, MEMBERS, MEMBERS])
    found = observe()
    assert found.notes == ()
    assert found.multiplexors[0].transports[0].join == "kernel"


def test_multiplexors_that_come_and_go_all_the_time(machine: Machine) -> None:
    machine.lists = Lists([BlockingIOError()])
    assert observe().notes == (
        "joined by counts alone: multiplexors came and went during the look",
    )


def test_lists_are_given_back(machine: Machine) -> None:
    lists = machine.lists
    observe()
    assert lists
    assert lists.closed


def test_by_counts(machine: Machine) -> None:
    machine.lists = None
    machine.unseen = 3
    machine.texts = {"/proc/net/kcm": OLD_KCM, "/proc/net/kcm_stats": OLD_STATS}
    found = observe()
    (mux,) = found.multiplexors
    assert (mux.transports[0].connection, mux.transports[0].join) == (TCP[501], "likely")
    assert [holder.pid for holder in mux.processes] == [812, 813, 900]
    assert found.notes[0] == "joined by counts alone: not this one"
    assert found.notes[1].startswith("3 processes could not be looked into")


def psock(index: int, received: int, sent: int) -> statistics.Psock:
    return statistics.Psock(index, 1, received, 1, sent, 0, 0, 0, 1, (), {})


def tcp(inode: int, received: int, sent: int, queued: int = 0) -> Connection:
    return Connection(inode, "", "", "ESTABLISHED", 0, queued, 0, received, sent)


@pytest.mark.parametrize(
    ("psocks", "found", "guesses"),
    [
        # Idle ones are all alike.
        ([psock(0, 0, 0)], [tcp(1, 0, 0), tcp(2, 0, 0)], [(None, False, 2)]),
        # One that is alone in having the same counts; a SYN counts as one.
        ([psock(0, 9, 5)], [tcp(1, 9, 6), tcp(2, 20, 5)], [(1, False, 2)]),
        # What waits in TCP, KCM has not counted.
        ([psock(0, 9, 5)], [tcp(1, 19, 5, queued=10), tcp(2, 20, 5)], [(1, False, 2)]),
        # No other can have so many.
        ([psock(0, 9, 5)], [tcp(1, 99, 99), tcp(2, 8, 5)], [(1, True, 1)]),
        # Two lines want the same connection, and one of them is wrong.
        ([psock(0, 9, 5), psock(1, 9, 5)], [tcp(1, 9, 5), tcp(2, 99, 99)], [(None, False, 2)] * 2),
        ([psock(0, 9, 5), psock(1, 9, 5)], [tcp(1, 9, 5)], [(None, False, 1)] * 2),
        # It has gone.
        ([psock(0, 9, 5)], [tcp(1, 0, 0)], [(None, False, 0)]),
    ],
)
def test_guesses(
    psocks: list[statistics.Psock],
    found: list[Connection],
    guesses: list[tuple[int | None, bool, int]],
) -> None:
    by_inode = {connection.inode: connection for connection in found}
    assert counts.guess(psocks, by_inode, {}) == guesses


def test_a_connection_without_a_reference_of_kcms() -> None:
    by_inode = {1: tcp(1, 9, 5), 2: tcp(2, 9, 5)}
    assert counts.guess([psock(0, 9, 5)], by_inode, {1: 1, 2: 2}) == [(2, True, 1)]


# ---- what is read ----


def test_connections_of_this_host() -> None:
    """Ours are among them, by sock_diag and by /proc alike."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as near, listener.accept()[0] as far:
            near.send(b"12345")
            select.select([far], [], [], 5)
            found = connections.connections()[os.fstat(far.fileno()).st_ino]
            listed = {own.inode: (own, count) for own, count in connections._table()}
            local, peer = far.getsockname(), far.getpeername()
            assert found[1:4] == (
                f"127.0.0.1:{local[1]}",
                f"127.0.0.1:{peer[1]}",
                "ESTABLISHED",
            )
            assert found.receive_queue == 5
            assert listed[found.inode][0] == found[:7] + (None,) * 4
            assert os.fstat(listener.fileno()).st_ino not in connections.connections()
            if found.received is not None:
                assert (found.received, found.sent) == (5, 0)


def test_connections_without_sock_diag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without inet_diag, or a seccomp filter, is no failure."""

    def refuse(*_: object) -> socket.socket:
        raise PermissionError(errno.EPERM, "no netlink here")

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        with socket.create_connection(listener.getsockname()[:2]) as near:
            monkeypatch.setattr("pykcm._joining.connections.socket.socket", refuse)
            found = connections.connections()[os.fstat(near.fileno()).st_ino]
            assert found.peer == f"[::1]:{listener.getsockname()[1]}"
            assert found.received is None


def test_an_answer_that_is_cut_short() -> None:
    with pytest.raises(OSError, match="cut short"):
        connections.parse(bytes(71))
    assert connections.parse(b"\x02\x01" + bytes(70) + struct.pack("=HH", 0, 2)).received is None


def test_holders_of_this_process() -> None:
    near, far = socket.socketpair()
    with near, far:
        inode, again = os.fstat(near.fileno()).st_ino, os.dup(near.fileno())
        held = Holders().of(inode)
        os.close(again)
    assert {holder.fd for holder in held} == {near.fileno(), again} or len(held) == 2
    assert {holder.pid for holder in held} == {os.getpid()}
    assert Holders().of(inode) == ()


def test_processes_that_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file of /proc may be gone when it is looked at."""
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*real(path), "99999999"])
    monkeypatch.setattr(os, "readlink", lambda path: (_ for _ in ()).throw(FileNotFoundError()))
    found = processes.Holders()
    assert found._found == {}


def test_processes_that_may_not_be_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(path: str) -> list[str]:
        if path == "/proc":
            return ["self", str(os.getpid()), "2"]
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(processes, "_text", lambda path: "" if path == "/proc/2/cmdline" else "x")
    assert processes.Holders().unseen == 1  # 2 is a thread of the kernel


def btf(strings: bytes, types: bytes) -> bytes:
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


def struct_type(name: int, *members: tuple[int, int]) -> bytes:
    head = struct.pack("=III", name, 4 << 24 | len(members), 64)
    return head + b"".join(struct.pack("=III", number, 1, 8 * at) for number, at in members)


def test_where_members_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    base = b"\0sock\0sk\0mux\0"
    own = b"kcm_sock\0index\0"
    found = {
        "vmlinux": btf(base, struct_type(1, (6, 4), (9, 24))),
        "kcm": btf(own, struct_type(len(base), (9, 800), (len(base) + 9, 808))),
    }
    monkeypatch.setattr("pykcm._joining.btf._read", found.__getitem__)
    types = Types("kcm")
    assert types.offset("sock", "mux") == 24
    assert types.offset("kcm_sock", "mux") == 800
    # The first string of a module has no zero before it.
    assert types.offset("kcm_sock", "index") == 808
    for name, member in (("sock", "index"), ("none", "mux"), ("sock", "none")):
        with pytest.raises(LookupError, match=member):
            types.offset(name, member)


@pytest.mark.parametrize(
    ("memory", "found"),
    [
        ({1000: 1000}, []),
        ({1000: 1108, 1108: 1208, 1208: 1000}, [1100, 1200]),
        # An object was put into another list, or let go.
        ({1000: 1108, 1108: 1208, 1208: 1108}, None),
        ({1000: 1108, 1108: 0}, None),
    ],
)
def test_following_a_list(memory: dict[int, int], found: list[int] | None) -> None:
    lists = kernel.Lists.__new__(kernel.Lists)
    lists._memory = SimpleNamespace(long=memory.__getitem__)  # type: ignore[assignment]
    lists._offsets = {"link": 8}
    if found is None:
        with pytest.raises(BlockingIOError):
            list(lists._list(1000, "link"))
    else:
        assert list(lists._list(1000, "link")) == found


def test_what_was_found_before_a_list_was_changed() -> None:
    """The others are looked for once more; what was found stays found."""
    lengths = [1, 3, 2]

    def follow(mux: int) -> Iterator[kernel.Socket]:
        for index in range(lengths.pop()):
            yield kernel.Socket(mux, index, 500 + index)
        raise BlockingIOError

    assert [member.index for member in kernel._longest(follow, 7)] == [0, 1, 2]
    assert lengths == []


@pytest.mark.parametrize("raw", [b"", bytes(24), bytes(1000)])
def test_types_that_are_not_understood(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr("pykcm._joining.btf._read", lambda name: raw)
    with pytest.raises(kernel.Obstacle, match="does not describe its types"):
        kernel.Lists()


# ---- rates ----


def test_rates(machine: Machine) -> None:
    with look.Observer() as observer:
        before = observer.look()
    assert before.rates is None
    machine.texts["/proc/net/kcm"] = KCM.replace("8          81 ", "28         281")
    machine.texts["/proc/net/kcm_stats"] = STATS.replace("683 ", "703 ")
    with look.Observer() as observer:
        after = observer.look()
    after = rates.with_rates(
        after.__class__(**{**vars(after), "clock": before.clock + 2.0}), before
    )
    assert after.rates == {"rx_messages": 10, "rx_bytes": 0, "tx_messages": 0, "tx_bytes": 0}
    transport = after.multiplexors[0].transports[0]
    assert transport.rates
    assert (transport.rates["rx_messages"], transport.rates["rx_bytes"]) == (10, 100)
    assert after.multiplexors[0].sockets[1].rates == dict.fromkeys(FLOW, 0)


def test_no_rate_of_something_else(machine: Machine) -> None:
    """A smaller count is that of another object."""
    before = observe()
    machine.texts["/proc/net/kcm"] = KCM.replace("8          81 ", "7          81 ")
    after = observe()
    after = rates.with_rates(after, before)
    assert after.multiplexors[0].transports[0].rates is None
