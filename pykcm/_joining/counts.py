"""Which connection a psock may be, by what both have counted: for whom the kernel's lists are shut.

A connection counts from its beginning, a psock from attaching; and a connection that is read after
the psock can't have less.  The kernel holds a connection that is attached once more than one that
is not.  So many can be ruled out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pykcm._joining.connections import Connection
from pykcm.statistics import Psock

# What a SYN and a FIN add to TCP's counts.
_MARKS = 2


class Guess(NamedTuple):
    """What is known of a psock's connection.

    Attributes:
        inode: the one connection that it can be, or that alone has the same counts; else None.
        sure: whether there is no other that it can be.
        candidates: how many connections it can be.
    """

    inode: int | None
    sure: bool
    candidates: int


def guess(
    psocks: Sequence[Psock], connections: Mapping[int, Connection], references: Mapping[int, int]
) -> list[Guess]:
    """What the counts say of each psock.

    Args:
        psocks: of all multiplexors.
        connections: by inode numbers, read after the psocks.
        references: the kernel's references to them.
    """
    attachable = [c for c in connections.values() if references.get(c.inode, 2) > 1]
    possible = [[c for c in attachable if _can_be(psock, c)] for psock in psocks]
    likely = [
        [c.inode for c in found if _is_like(psock, c)]
        for psock, found in zip(psocks, possible, strict=True)
    ]
    wanted = Counter(inode for inodes in likely for inode in inodes)
    only = Counter(found[0].inode for found in possible if len(found) == 1)
    guesses = []
    for found, inodes in zip(possible, likely, strict=True):
        if len(found) == 1 and only[found[0].inode] == 1:
            guesses.append(Guess(found[0].inode, True, 1))
        elif len(inodes) == 1 and wanted[inodes[0]] == 1:
            guesses.append(Guess(inodes[0], False, len(found)))
        else:
            guesses.append(Guess(None, False, len(found)))
    return guesses


def _can_be(psock: Psock, connection: Connection) -> bool:
    return all(
        counted is None or in_all is None or counted <= in_all
        for counted, in_all in (
            (psock.rx_bytes, connection.received),
            (psock.tx_bytes, connection.sent),
        )
    )


def _is_like(psock: Psock, connection: Connection) -> bool:
    """Whether the counts are the same, and of something."""
    received, sent = connection.received, connection.sent
    if received is None or sent is None or not (psock.rx_bytes or psock.tx_bytes):
        return False
    unparsed = received - connection.receive_queue - (psock.rx_bytes or 0)
    return abs(unparsed) <= _MARKS and 0 <= sent - (psock.tx_bytes or 0) <= _MARKS
