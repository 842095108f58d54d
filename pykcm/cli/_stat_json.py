"""A look as JSON."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from pykcm._joining.processes import Holder
from pykcm._joining.views import Look, Multiplexor, Socket, Transport


def plain(look: Look) -> dict[str, Any]:
    """The look in dictionaries, lists, numbers and text."""
    when = datetime.fromtimestamp(look.time, timezone.utc)
    return {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "totals": look.totals._asdict(),
        "rates": look.rates,
        "multiplexors": [_multiplexor(mux) for mux in look.multiplexors],
        "notes": list(look.notes),
    }


def _multiplexor(mux: Multiplexor) -> dict[str, Any]:
    counts = mux.counts._asdict()
    del counts["sockets"], counts["psocks"]
    return {
        "number": mux.number,
        **counts,
        "rates": mux.rates,
        "processes": [{"pid": holder.pid, "name": holder.name} for holder in mux.processes],
        "reason": mux.reason or None,
        "sockets": [_socket(row) for row in mux.sockets],
        "transports": [_transport(row) for row in mux.transports],
    }


def _socket(row: Socket) -> dict[str, Any]:
    return {
        **row.counts._asdict(),
        "rates": row.rates,
        "inode": row.inode,
        "processes": _holders(row.processes),
        "reason": row.reason or None,
    }


def _transport(row: Transport) -> dict[str, Any]:
    return {
        **row.counts._asdict(),
        "rates": row.rates,
        "connection": row.connection._asdict() if row.connection else None,
        "join": row.join or None,
        "program": row.program,
        "processes": _holders(row.processes),
        "reason": row.reason or None,
    }


def _holders(holders: tuple[Holder, ...]) -> list[dict[str, Any]]:
    return [holder._asdict() for holder in holders]
