"""What a look finds: the kernel's counts, and what belongs to them."""

from __future__ import annotations

from dataclasses import dataclass

from pykcm import statistics
from pykcm._joining.connections import Connection
from pykcm._joining.processes import Holder

Rates = dict[str, float]
"""Per second, by the names of the counts."""

FLOW = ("rx_messages", "rx_bytes", "tx_messages", "tx_bytes")


@dataclass(frozen=True)
class Socket:
    """A KCM socket.

    Attributes:
        counts: its line of /proc/net/kcm.
        inode: its number, as in /proc/PID/fd; None if it can't be told.
        processes: who holds it.
        reason: why nothing is joined; "" if something is.
        rates: since the look before; None if there was none.
    """

    counts: statistics.Socket
    inode: int | None
    processes: tuple[Holder, ...]
    reason: str
    rates: Rates | None = None


@dataclass(frozen=True)
class Transport:
    """A transport.

    Attributes:
        counts: its line of /proc/net/kcm.
        connection: its TCP connection; None if it can't be told.
        processes: who holds that.
        join: how the connection was found: "kernel" (the kernel's own lists), "only" (no other
            connection of this namespace can have these counts), "likely" (no other has the same
            counts), "" (it was not).
        reason: why it was not; "" if it was.
        rates: since the look before; None if there was none.
        program: the id of the BPF program that finds its messages; None if that can't be told.
    """

    counts: statistics.Psock
    connection: Connection | None
    processes: tuple[Holder, ...]
    join: str
    reason: str
    rates: Rates | None = None
    program: int | None = None


@dataclass(frozen=True)
class Multiplexor:
    """A multiplexor.

    Attributes:
        number: 1 is the oldest that there is.
        counts: its line of /proc/net/kcm, with its sockets' and psocks'.
        sockets, transports: those, joined.
        processes: who holds one of its KCM sockets, each once.
        reason: why the processes are not, or not all, known; "" if they are.
        rates: since the look before; None if there was none.
        identity: tells it from others between looks; None if that can't be told.
    """

    number: int
    counts: statistics.MultiplexorStatistics
    sockets: tuple[Socket, ...]
    transports: tuple[Transport, ...]
    processes: tuple[Holder, ...]
    reason: str
    rates: Rates | None = None
    identity: int | None = None


@dataclass(frozen=True)
class Look:
    """A look at KCM.

    Attributes:
        time: when, in seconds since 1970.
        clock: the same by a clock that never jumps, to count rates with.
        totals: /proc/net/kcm_stats.
        multiplexors: the newest first.
        notes: what could not be joined, and why; what would make it possible.
        rates: of the transports' totals since the look before; None if there was none.
    """

    time: float
    clock: float
    totals: statistics.Totals
    multiplexors: tuple[Multiplexor, ...]
    notes: tuple[str, ...]
    rates: Rates | None = None
