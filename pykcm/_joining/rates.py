"""Rates: what two looks at the same objects differ by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from pykcm._joining.views import FLOW, Look, Multiplexor, Rates, Socket, Transport

Row = TypeVar("Row", Socket, Transport, Multiplexor)


def with_rates(look: Look, before: Look | None) -> Look:
    """The look with rates since the one before, for all that is certainly the same in both."""
    seconds = look.clock - before.clock if before else 0.0
    if before is None or seconds <= 0:
        return look

    def rates(old: object, new: object) -> Rates | None:
        """Of two objects' counts; None where one is smaller now, and so is another's."""
        found = {}
        for name in FLOW:
            first, second = (
                side.get(name) if isinstance(side, dict) else getattr(side, name)
                for side in (old, new)
            )
            if first is not None and second is not None:
                if second < first:
                    return None
                found[name] = (second - first) / seconds
        return found

    def each(
        rows: Iterable[Row], old: dict[int, Row], key: Callable[[Row], int | None]
    ) -> list[Row]:
        found = []
        for row in rows:
            match = old.get(key(row) or 0)
            found.append(replace(row, rates=rates(match.counts, row.counts)) if match else row)
        return found

    muxes = {mux.identity: mux for mux in before.multiplexors if mux.identity}
    sockets = {s.inode: s for mux in before.multiplexors for s in mux.sockets if s.inode}
    transports = {
        inode: t for mux in before.multiplexors for t in mux.transports if (inode := _inode(t))
    }
    joined = [
        replace(
            mux,
            sockets=tuple(each(mux.sockets, sockets, lambda row: row.inode)),
            transports=tuple(each(mux.transports, transports, _inode)),
        )
        for mux in each(look.multiplexors, muxes, lambda row: row.identity)
    ]
    return replace(
        look,
        multiplexors=tuple(joined),
        rates=rates(before.totals.psocks, look.totals.psocks),
    )


def _inode(transport: Transport) -> int | None:
    return transport.connection.inode if transport.connection else None
