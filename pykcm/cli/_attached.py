"""Which programs are attached to connections, as far as the kernel tells.

No call of bpf(2) and no file of /proc says so: a program's descriptor is not needed once it is
attached.  It is read in the kernel's memory, as `kcm stat` does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import click

from pykcm.errors import UnavailableError


class UntoldError(Exception):
    """It can't be told; the text says why."""


class Attached(NamedTuple):
    """A transport and its program.

    Attributes:
        program: the program's id; None if it can't be told.
        multiplexor: the number of its multiplexor, as in `kcm stat`.
        psock: its index there.
        local, peer: its addresses; None if they can't be told.
    """

    program: int | None
    multiplexor: int
    psock: int
    local: str | None
    peer: str | None

    def plain(self) -> dict[str, Any]:
        values = self._asdict()
        del values["program"]
        return values


def transports() -> list[Attached]:
    """All transports of this network namespace.

    Raises:
        UntoldError: of none can the program be told.
        OSError: /proc can't be read.
    """
    from pykcm._joining.look import Observer

    try:
        with Observer() as observer:
            look = observer.look()
    except UnavailableError:
        return []  # without the module nothing is attached
    rows = [
        Attached(
            row.program,
            mux.number,
            row.counts.index,
            row.connection.local if row.connection else None,
            row.connection.peer if row.connection else None,
        )
        for mux in look.multiplexors
        for row in mux.transports
    ]
    if rows and all(row.program is None for row in rows):
        why = look.notes[0] if look.notes else "connections came and went; try again"
        raise UntoldError(f"which are attached can't be told: {why}")
    return rows


def to(address: str) -> int:
    """The id of the program that is attached to the connection with this address.

    Raises:
        ClickException: there is none, or there are several, or it can't be told.
    """
    try:
        rows = [row for row in transports() if address in (row.local, row.peer)]
    except UntoldError as error:
        raise click.ClickException(str(error)) from error
    if not rows:
        raise click.ClickException(f"no transport has the address {address}; see kcm stat")
    found = {row.program for row in rows if row.program is not None}
    if not found:
        raise click.ClickException(f"the program of {address} can't be told just now; try again")
    if len(found) > 1:
        ends = ", ".join(f"{row.local} - {row.peer}" for row in rows)
        raise click.ClickException(f"transports with several programs have this address: {ends}")
    return found.pop()
