"""A look for people, from 20 columns on."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pykcm._joining.processes import Holder
from pykcm._joining.views import Look, Multiplexor, Rates, Socket, Transport

# Narrower screens have a line for each fact instead of a column.
_NARROW = 70

# The keys by which transports are sorted.
SORTS = ("number", "received", "sent", "queue")

_TROUBLES = {
    "rx_interrupted": "refused header",
    "rx_unrecoverable": "unrecoverable",
    "rx_memory_failures": "without memory",
    "rx_bad_length": "bad length",
    "rx_too_big": "too big",
    "rx_timeouts": "timeout",
    "rx_aborts": "aborted",
    "tx_aborts": "send failed",
    "rx_ready_drops": "dropped message",
}
_BAD = {"RxStop", "TxStop", "Done", "CLOSE", "CLOSE_WAIT", "FIN_WAIT1", "FIN_WAIT2", "LAST_ACK"}
_SHORT = {"ESTABLISHED": "ESTAB", "CLOSE_WAIT": "CLOSE-W"}


def render(look: Look, width: int, sort: str = "number") -> Group:
    """What is shown of a look.

    Args:
        look: it.
        width: of the screen, in columns.
        sort: one of `SORTS`; what is more comes first, but for the numbers.
    """
    parts: list[RenderableType] = [_title(look), _flow(look.totals.psocks, look.rates)]
    parts.append(_troubles(look))
    for mux in look.multiplexors:
        parts += [Text(), _heading(mux)]
        rows = sorted(mux.transports, key=lambda row: _key(row, sort))
        if width < _NARROW:
            parts += [_narrow_socket(socket) for socket in mux.sockets]
            parts += [_narrow_transport(row) for row in rows]
        else:
            parts.append(_sockets(mux.sockets))
            if rows:
                parts.append(_transports(rows))
    if look.notes:
        parts.append(Text())
        parts += [Text(f"note: {note}", "dim") for note in look.notes]
    return Group(*parts)


def number(value: float | None) -> str:
    """A count in five characters at most: 12345, 1.2M; "-" if there is none."""
    if value is None:
        return "-"
    if value < 10 and value != int(value):
        return f"{value:.1f}"
    if value < 99_999.5:
        return f"{value:.0f}"
    for unit in "kMGTPE":
        value /= 1000
        if value < 999.5:
            return f"{value:.1f}{unit}" if value < 99.95 else f"{value:.0f}{unit}"
    return "huge"


def _octets(value: float | None) -> str:
    text = number(value)
    return f"{text} B" if text[-1] in "-0123456789" else f"{text[:-1]} {text[-1]}B"


def _key(row: Transport, sort: str) -> tuple[float, int]:
    if sort == "received":
        value = row.rates["rx_bytes"] if row.rates else row.counts.rx_bytes or 0
    elif sort == "sent":
        value = row.rates["tx_bytes"] if row.rates else row.counts.tx_bytes or 0
    elif sort == "queue" and row.connection:
        value = row.connection.receive_queue + row.connection.send_queue
    else:
        value = 0
    return -value, row.counts.index


def _title(look: Look) -> Text:
    counts = (
        (len(look.multiplexors), "multiplexor"),
        (sum(len(mux.sockets) for mux in look.multiplexors), "socket"),
        (sum(len(mux.transports) for mux in look.multiplexors), "transport"),
    )
    when = time.strftime("%H:%M:%S", time.localtime(look.time))
    return Text(f"KCM: {', '.join(_many(*count) for count in counts)}; {when}", "bold")


def _flow(counts: dict[str, int], rates: Rates | None) -> Text:
    """How much was received and sent."""
    words = []
    for verb, side in (("received", "rx"), ("sent", "tx")):
        messages, octets = counts.get(f"{side}_messages"), counts.get(f"{side}_bytes")
        text = f"{verb} {number(messages)} messages, {_octets(octets)}"
        if rates:
            text += f" ({number(rates.get(f'{side}_messages'))}/s, "
            text += f"{_octets(rates.get(f'{side}_bytes'))}/s)"
        words.append(text)
    return Text("; ".join(words))


def _troubles(look: Look) -> Text:
    counts = look.totals.multiplexors | look.totals.psocks
    found = [f"{counts[key]} {word}" for key, word in _TROUBLES.items() if counts.get(key)]
    if found:
        return Text(f"errors so far: {', '.join(found)}", "red")
    return Text("no errors so far")


def _heading(mux: Multiplexor) -> Text:
    text = Text(f"multiplexor {mux.number}", "bold")
    text.append(f": {_many(len(mux.sockets), 'socket')}", "not bold")
    text.append(f", {_many(len(mux.transports), 'transport')}", "not bold")
    if mux.rates:
        rx, tx = (number(mux.rates.get(f"{side}_messages")) for side in ("rx", "tx"))
        text.append(f", {rx}/s in, {tx}/s out", "not bold")
    held = ", ".join(_names(mux.processes)) or "unknown processes"
    text.append(f"; held by {held}", "not bold")
    if mux.reason:
        text.append(f" ({mux.reason})", "not bold dim")
    unknown = _others(mux.counts.unknown)
    return text.append(f" {unknown}", "not bold") if unknown else text


def _sockets(rows: Iterable[Socket]) -> Table:
    table = _table("SOCKET", ">RECEIVED", ">SENT", ">TO READ", ">TO SEND", "STATUS", "HELD BY")
    for row in rows:
        counts = row.counts
        table.add_row(
            f"kcm-{counts.index}",
            _count(row.rates, "rx_messages", counts.rx_messages),
            _count(row.rates, "tx_messages", counts.tx_messages),
            number(counts.receive_queue),
            number(counts.send_queue),
            _status(counts.status, counts.unknown),
            ", ".join(_names(row.processes)) or "-",
        )
    return table


def _transports(rows: Iterable[Transport]) -> Table:
    table = _table("PSOCK", "LOCAL", "PEER", "TCP", ">RECEIVED", ">SENT", ">QUEUES", "STATUS")
    for row in rows:
        counts, tcp = row.counts, row.connection
        queues = f"{number(tcp.receive_queue)}/{number(tcp.send_queue)}" if tcp else "-"
        table.add_row(
            f"{counts.index}",
            _local(row),
            tcp.peer if tcp else row.reason,
            Text(_SHORT.get(tcp.state, tcp.state), _style(tcp.state)) if tcp else "-",
            _count(row.rates, "rx_messages", counts.rx_messages),
            _count(row.rates, "tx_messages", counts.tx_messages),
            queues,
            _status(counts.status, counts.unknown),
        )
    return table


def _local(row: Transport) -> str:
    if not row.connection:
        return "?"
    return ("~" if row.join == "likely" else "") + row.connection.local


def _narrow_socket(row: Socket) -> Text:
    counts = row.counts
    text = Text(f"kcm-{counts.index}", "bold")
    text.append(
        f" rx {_count(row.rates, 'rx_messages', counts.rx_messages)}"
        f" tx {_count(row.rates, 'tx_messages', counts.tx_messages)}"
        f"\n to read {number(counts.receive_queue)}, to send {number(counts.send_queue)}\n ",
        "not bold",
    )
    text.append_text(_status(counts.status, counts.unknown))
    return text


def _narrow_transport(row: Transport) -> Text:
    counts, tcp = row.counts, row.connection
    text = Text(f"psock-{counts.index}", "bold", overflow="fold")
    if tcp:
        text.append(f" {_SHORT.get(tcp.state, tcp.state)}", _style(tcp.state))
        text.append(f"\n {_local(row)}\n >{tcp.peer}", "not bold")
    else:
        text.append(f"\n {row.reason}", "not bold")
    text.append(
        f"\n rx {_count(row.rates, 'rx_messages', counts.rx_messages)}"
        f" tx {_count(row.rates, 'tx_messages', counts.tx_messages)} ",
        "not bold",
    )
    return text.append_text(_status(counts.status, counts.unknown))


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for title in titles:
        side = "right" if title.startswith(">") else "left"
        wraps = title in ("LOCAL", "PEER", "STATUS", "HELD BY")
        table.add_column(
            title.lstrip(">"),
            justify=side,  # type: ignore[arg-type]
            no_wrap=not wraps,
            overflow="fold",
        )
    return table


def _count(rates: Rates | None, name: str, count: int | None) -> str:
    """A rate where there is one, else the count."""
    if rates and name in rates:
        return f"{number(rates[name])}/s"
    return number(count)


def _status(words: tuple[str, ...], unknown: dict[str, str]) -> Text:
    """The kernel's words, and the columns that are not known here."""
    text = Text()
    for word in words:
        text.append(f"{word} ", _style(word))
    text.append(_others(unknown))
    text.rstrip()
    return text


def _others(unknown: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in unknown.items())


def _style(word: str) -> str:
    return "red" if word in _BAD else "not bold"


def _names(holders: Iterable[Holder]) -> list[str]:
    return list(dict.fromkeys(f"{holder.name} ({holder.pid})" for holder in holders))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
