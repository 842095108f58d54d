"""/proc/net/kcm and /proc/net/kcm_stats as dataclasses.

Both exist while the kcm module is loaded, for each network namespace.  Source: net/kcm/kcmproc.c.
"""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

from pykcm.errors import KCMOSError, UnavailableError

_MULTIPLEXORS = Path("/proc/net/kcm")
_TOTALS = Path("/proc/net/kcm_stats")


@dataclasses.dataclass(frozen=True)
class Socket:
    """A KCM socket of a multiplexor.

    Attributes:
        index: its number in the multiplexor.
        rx_messages, rx_bytes: received by the program.
        tx_messages, tx_bytes: sent by the program.
        receive_queue: messages waiting to be received.
        receive_memory: bytes of memory that they take.
        send_queue: messages waiting for a transport.
        status: free text: "Psck-N" (psock N is reserved for sending), "TxWait" (waits for a
            transport), "WMore" (holds a batch back), "RxWait" (has room for messages).
    """

    index: int
    rx_messages: int
    rx_bytes: int
    tx_messages: int
    tx_bytes: int
    receive_queue: int
    receive_memory: int
    send_queue: int
    status: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Psock:
    """A transport of a multiplexor.

    Attributes:
        index: its number in the multiplexor.
        rx_messages, rx_bytes: delineated, or taken off the TCP socket.
        tx_messages, tx_bytes: handed to TCP.
        receive_queue: segments waiting in the TCP socket.
        receive_memory: bytes of memory that they take.
        send_queue: segments that TCP has not sent.
        send_memory: the kernel's count of memory for them, 1 when there are none.
        status: free text: "RxStop" (a message was refused), "TxStop" (sending failed), "RxPause"
            (no KCM socket has room), "RdyRx" (holds a complete message), "RxWait" (waits for the
            rest of a message, with "=" for so many bytes), "Rsvd-N" (reserved by KCM socket N).
    """

    index: int
    rx_messages: int
    rx_bytes: int
    tx_messages: int
    tx_bytes: int
    receive_queue: int
    receive_memory: int
    send_queue: int
    send_memory: int
    status: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MultiplexorStatistics:
    """A multiplexor with its KCM sockets and psocks; what it counts of psocks can lag behind."""

    rx_messages: int
    rx_bytes: int
    tx_messages: int
    tx_bytes: int
    sockets: tuple[Socket, ...]
    psocks: tuple[Psock, ...]


@dataclasses.dataclass(frozen=True)
class Totals:
    """Counts over all multiplexors of the namespace, also those that are gone.

    Attributes:
        multiplexors: the columns of the line "MUX", by pykcm's names.
        psocks: the columns of the line "Psock".
    """

    multiplexors: dict[str, int]
    psocks: dict[str, int]


# In the order of the values.  The kernel writes "Unattach" over the count of reserved ones and
# "UnattchRsvd" over the other: kcm_stats_seq_show prints the two values the wrong way round.
_MULTIPLEXOR_COLUMNS = (
    "rx_messages",
    "rx_bytes",
    "tx_messages",
    "tx_bytes",
    "tx_retries",
    "attach",
    "unattach_reserved",
    "unattach",
    "rx_ready_drops",
)
_PSOCK_COLUMNS = (
    "rx_messages",
    "rx_bytes",
    "tx_messages",
    "tx_bytes",
    "reserved",
    "unreserved",
    "rx_aborts",
    "rx_interrupted",
    "rx_unrecoverable",
    "rx_memory_failures",
    "rx_need_more_header",
    "rx_bad_length",
    "rx_too_big",
    "rx_timeouts",
    "tx_aborts",
)


def multiplexors() -> list[MultiplexorStatistics]:
    """The multiplexors of this network namespace, now.

    Raises:
        UnavailableError: the kcm module is not loaded.
    """
    return parse_multiplexors(_read(_MULTIPLEXORS))


def totals() -> Totals:
    """The counts of this network namespace.

    Raises:
        UnavailableError: the kcm module is not loaded.
    """
    return parse_totals(_read(_TOTALS))


def parse_multiplexors(text: str) -> list[MultiplexorStatistics]:
    """What /proc/net/kcm says."""
    found: list[MultiplexorStatistics] = []
    for line in text.splitlines()[2:]:
        name, *words = line.split()
        if name == "mux":
            rx_messages, rx_bytes, tx_messages, tx_bytes = map(int, words[:4])
            found.append(
                MultiplexorStatistics(rx_messages, rx_bytes, tx_messages, tx_bytes, (), ())
            )
            continue
        kind, _, index = name.partition("-")
        values = [int(index), *(int(word) for word in words[:8] if word != "-")]
        status = tuple(words[8:])
        mux = found[-1]
        if kind == "kcm":
            socket = Socket(*values, status=status)  # type: ignore[misc, arg-type]
            found[-1] = dataclasses.replace(mux, sockets=(*mux.sockets, socket))
        elif kind == "psock":
            psock = Psock(*values, status=status)  # type: ignore[misc, arg-type]
            found[-1] = dataclasses.replace(mux, psocks=(*mux.psocks, psock))
        else:
            raise KCMOSError(errno.EBADMSG, f"/proc/net/kcm has a line of no known kind: {line!r}")
    return found


def parse_totals(text: str) -> Totals:
    """What /proc/net/kcm_stats says."""
    lines = text.splitlines()
    return Totals(
        multiplexors=_columns(_MULTIPLEXOR_COLUMNS, lines[1]),
        psocks=_columns(_PSOCK_COLUMNS, lines[3]),
    )


def _columns(names: tuple[str, ...], line: str) -> dict[str, int]:
    values = [int(word) for word in line.split()]
    if len(values) != len(names):
        raise KCMOSError(
            errno.EBADMSG, f"/proc/net/kcm_stats has {len(values)} columns, not {len(names)}"
        )
    return dict(zip(names, values, strict=True))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError as error:
        raise UnavailableError(
            errno.ENOENT, f"{path} does not exist: the kcm module is not loaded (modprobe kcm)"
        ) from error
