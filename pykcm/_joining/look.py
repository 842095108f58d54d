"""A look at KCM: /proc/net/kcm and kcm_stats, joined with TCP connections and processes.

Where it can't be told what belongs together, nothing is joined, and the look says why.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from pykcm import statistics
from pykcm._joining import connections, counts, kernel
from pykcm._joining.connections import Connection
from pykcm._joining.processes import Holder, Holders
from pykcm._joining.rates import with_rates
from pykcm._joining.views import Look, Multiplexor, Socket, Transport
from pykcm.errors import UnavailableError

_ATTEMPTS = 5
_UNSTEADY = "multiplexors came and went during the look"
_CHANGED = "connections were attached or unattached during the look"
_MANY = -1  # in place of a count of attachments that has changed


class Observer:
    """Looks again and again."""

    def __init__(self) -> None:
        self._lists: kernel.Lists | None = None
        self._obstacle = ""
        self._before: Look | None = None

    def close(self) -> None:
        if self._lists:
            self._lists.close()
            self._lists = None

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def look(self) -> Look:
        """Look, and count rates from the look before.

        Raises:
            UnavailableError: the kcm module is not loaded.  Where it was at an earlier look, there
                is one that finds nothing instead.
            KCMOSError: a file of /proc can't be read, or is damaged.
            OSError: /proc is not mounted, or shows no TCP connections.
        """
        clock, now = time.monotonic(), time.time()
        try:
            totals = statistics.totals()
            muxes, members, notes = self._read()
        except UnavailableError as error:
            if self._before is None:
                raise
            self.close()
            self._before = Look(now, clock, statistics.Totals({}, {}), (), (str(error),))
            return self._before
        tcp = connections.connections() if any(mux.psocks for mux in muxes) else {}
        holders = Holders()
        if members:
            joined = [
                _by_kernel(len(muxes) - place, mux, own, tcp, holders)
                for place, (mux, own) in enumerate(zip(muxes, members, strict=True))
            ]
        else:
            joined = _by_counts(muxes, tcp, holders)
        if holders.unseen:
            notes.append(
                f"{holders.unseen} processes could not be looked into: whether they hold a socket "
                "takes root, or CAP_SYS_PTRACE"
            )
        look = Look(now, clock, totals, tuple(joined), tuple(notes))
        self._before = with_rates(look, self._before)
        return self._before

    def _read(
        self,
    ) -> tuple[list[statistics.MultiplexorStatistics], list[kernel.Multiplexor] | None, list[str]]:
        """The file's text, what the kernel's lists say of it if they do, and notes."""
        muxes = statistics.multiplexors()
        if not muxes:
            return muxes, None, []
        if not self._lists and not self._obstacle:
            try:
                self._lists = kernel.Lists()
            except kernel.Obstacle as error:
                self._obstacle = str(error)
        if not self._lists:
            return muxes, None, [f"joined by counts alone: {self._obstacle}"]
        settled: list[kernel.Multiplexor] | None = None
        for _ in range(_ATTEMPTS):
            try:
                before = self._lists.multiplexors()
                text = statistics.multiplexors()
                after = self._lists.multiplexors()
            except BlockingIOError:
                continue
            addresses = [mux.address for mux in before]
            if addresses == [mux.address for mux in after] and len(text) == len(addresses):
                again = settled is None
                muxes = text
                settled = [_settled(*pair) for pair in zip(before, after, strict=True)]
                if not again or [mux.attached for mux in before] == [mux.attached for mux in after]:
                    break
        if settled is None:
            return muxes, None, [f"joined by counts alone: {_UNSTEADY}"]
        return muxes, settled, []


def _settled(before: kernel.Multiplexor, after: kernel.Multiplexor) -> kernel.Multiplexor:
    """What is the same before the text was read and after it.

    While connections were attached to it, one may have been taken off and put back, with another in
    its place when the text was read.  So psocks must also have the same counts, and the text's line
    too; else they are left out.
    """
    steady = before.attached == after.attached
    width = 3 if steady else 5  # with the counts
    sockets, psocks = set(after.sockets), {psock[:width] for psock in after.psocks}
    return after._replace(
        attached=before.attached if steady else _MANY,
        sockets=tuple(socket for socket in before.sockets if socket in sockets),
        psocks=tuple(psock for psock in before.psocks if psock[:width] in psocks),
    )


def _by_kernel(
    number: int,
    mux: statistics.MultiplexorStatistics,
    members: kernel.Multiplexor,
    tcp: dict[int, Connection],
    holders: Holders,
) -> Multiplexor:
    inodes = {member.index: member.inode for member in members.sockets}
    sockets = tuple(
        Socket(
            line,
            inodes.get(line.index) or None,
            held := holders.of(inodes.get(line.index, 0)),
            _why_unheld(inodes.get(line.index), held),
        )
        for line in mux.sockets
    )
    psocks = {member.index: member for member in members.psocks}
    transports = []
    for line in mux.psocks:
        psock = psocks.get(line.index)
        if psock and members.attached == _MANY:
            proved = (psock.received, psock.sent) == (line.rx_bytes, line.tx_bytes)
            psock = psock if proved else None
        inode = psock.inode if psock else None
        connection = tcp.get(inode or 0)
        reason = _CHANGED
        if inode is not None:
            reason = "" if connection else _GONE
        how = "kernel" if connection else ""
        held, program = holders.of(inode or 0), psock.program if psock else None
        transports.append(Transport(line, connection, held, how, reason, None, program))
    processes = _once(holder for socket in sockets for holder in socket.processes)
    reasons = sorted({socket.reason for socket in sockets if socket.reason})
    return Multiplexor(
        number,
        mux,
        sockets,
        tuple(transports),
        processes,
        "; ".join(reasons),
        None,
        members.address,
    )


_GONE = "its connection has ended, or is of another network namespace"


def _why_unheld(inode: int | None, held: tuple[Holder, ...]) -> str:
    if held:
        return ""
    if inode is None:
        return "it was made or closed during the look"
    return "no process that can be looked into holds it"


def _by_counts(
    muxes: list[statistics.MultiplexorStatistics], tcp: dict[int, Connection], holders: Holders
) -> list[Multiplexor]:
    psocks = [psock for mux in muxes for psock in mux.psocks]
    guesses = iter(counts.guess(psocks, tcp, connections.references() if psocks else {}))
    kcm = holders.of_kcm()
    users = {holder.pid for held in kcm.values() for holder in held}
    everyone = _once(holder for held in kcm.values() for holder in held)
    joined = []
    for place, mux in enumerate(muxes):
        transports = tuple(_guessed(psock, next(guesses), tcp, holders) for psock in mux.psocks)
        if len(muxes) == 1:
            processes, reason = everyone, ""
            if len(kcm) < len(mux.sockets):
                missing = len(mux.sockets) - len(kcm)
                reason = f"{missing} of its sockets are held by what can't be looked into"
        else:
            # A process may hold a transport of one multiplexor and a socket of another.
            processes = _once(
                holder for t in transports for holder in t.processes if holder.pid in users
            )
            reason = "several multiplexors, and the kernel does not tell whose is which"
            if processes:
                reason = "likely: they hold KCM sockets, and connections of this multiplexor"
        why = "the kernel does not tell which descriptor it is"
        sockets = tuple(Socket(line, None, (), why) for line in mux.sockets)
        joined.append(Multiplexor(len(muxes) - place, mux, sockets, transports, processes, reason))
    return joined


def _guessed(
    psock: statistics.Psock, guess: counts.Guess, tcp: dict[int, Connection], holders: Holders
) -> Transport:
    if guess.inode is None:
        reason = f"{guess.candidates} connections may be it" if guess.candidates else _GONE
        return Transport(psock, None, (), "", reason)
    how = "only" if guess.sure else "likely"
    return Transport(psock, tcp[guess.inode], holders.of(guess.inode), how, "")


def _once(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    """Each process once."""
    return tuple({holder.pid: holder for holder in holders}.values())
