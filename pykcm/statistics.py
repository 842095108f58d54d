"""/proc/net/kcm and /proc/net/kcm_stats, read by the names of their columns.

Both exist while the kcm module is loaded, for each network namespace.  A kernel may have fewer
columns than are known here, or more: none of that is an error.  Source: net/kcm/kcmproc.c.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import NamedTuple

from pykcm.errors import KCMOSError, UnavailableError

_MULTIPLEXORS = "/proc/net/kcm"
_TOTALS = "/proc/net/kcm_stats"


class Socket(NamedTuple):
    """A KCM socket of a multiplexor.

    A count is None where the kernel does not show it.

    Attributes:
        index: its number in the multiplexor.
        rx_messages, rx_bytes: received by the program.
        tx_messages, tx_bytes: sent by the program.
        receive_queue: messages waiting to be received.
        receive_memory: bytes of memory that they take.
        send_queue: messages waiting for a transport.
        status: free text: "Psck-N" (psock N is reserved for sending), "TxWait" (waits for a
            transport), "WMore" (holds a batch back), "RxWait" (has room for messages).
        unknown: the columns that are not listed here: the kernel's name, and the text as it is.
    """

    index: int  # type: ignore[assignment]  # in place of tuple's method
    rx_messages: int | None
    rx_bytes: int | None
    tx_messages: int | None
    tx_bytes: int | None
    receive_queue: int | None
    receive_memory: int | None
    send_queue: int | None
    status: tuple[str, ...]
    unknown: dict[str, str]


class Psock(NamedTuple):
    """A transport of a multiplexor.

    A count is None where the kernel does not show it.

    Attributes:
        index: its number in the multiplexor.
        rx_messages, rx_bytes: delineated, or taken off the TCP socket.
        tx_messages, tx_bytes: handed to TCP.
        receive_queue: segments waiting in the TCP socket.
        receive_memory: bytes of memory that they take.
        send_queue: segments that TCP has not sent.
        send_memory: the kernel's count of memory for them, 1 when there are none.
        status: free text: "Done" (unattached, but still reserved), "RxStop" (a message was
            refused), "TxStop" (sending failed), "RxPause" (no KCM socket has room), "RdyRx" (holds
            a complete message), "RxWait" (waits for the rest of a message, with "=" for so many
            bytes), "Rsvd-N" (reserved by KCM socket N).
        unknown: the columns that are not listed here: the kernel's name, and the text as it is.
    """

    index: int  # type: ignore[assignment]  # in place of tuple's method
    rx_messages: int | None
    rx_bytes: int | None
    tx_messages: int | None
    tx_bytes: int | None
    receive_queue: int | None
    receive_memory: int | None
    send_queue: int | None
    send_memory: int | None
    status: tuple[str, ...]
    unknown: dict[str, str]


class MultiplexorStatistics(NamedTuple):
    """A multiplexor with its KCM sockets and psocks; what it counts of psocks can lag behind.

    A count is None where the kernel does not show it.

    Attributes:
        rx_messages, rx_bytes: received over all its transports.
        tx_messages, tx_bytes: sent over them.
        sockets: its KCM sockets.
        psocks: its transports.
        unknown: the columns that are not listed here: the kernel's name, and the text as it is.
    """

    rx_messages: int | None
    rx_bytes: int | None
    tx_messages: int | None
    tx_bytes: int | None
    sockets: tuple[Socket, ...]
    psocks: tuple[Psock, ...]
    unknown: dict[str, str]


class Totals(NamedTuple):
    """Counts over all multiplexors of the namespace, also those that are gone.

    A column that the kernel lacks is not in the dictionaries; one that is not known here has the
    kernel's name.

    Attributes:
        multiplexors: the columns of the line "MUX", by pykcm's names.
        psocks: the columns of the line "Psock".
    """

    multiplexors: dict[str, int]
    psocks: dict[str, int]


# The kernel's names of columns, and pykcm's.
_FLOW = {
    "RX-Msgs": "rx_messages",
    "RX-Bytes": "rx_bytes",
    "TX-Msgs": "tx_messages",
    "TX-Bytes": "tx_bytes",
}
_SOCKET = _FLOW | {"Recv-Q": "receive_queue", "Rmem": "receive_memory", "Send-Q": "send_queue"}
_PSOCK = _SOCKET | {"Smem": "send_memory"}
_MULTIPLEXOR_TOTALS = _FLOW | {
    "TX-Retries": "tx_retries",
    "Attach": "attach",
    "Unattach": "unattach",
    "UnattchRsvd": "unattach_reserved",
    "RX-RdyDrops": "rx_ready_drops",
}
_PSOCK_TOTALS = _FLOW | {
    "Reserved": "reserved",
    "Unreserved": "unreserved",
    "RX-Aborts": "rx_aborts",
    "RX-Intr": "rx_interrupted",
    "RX-Unrecov": "rx_unrecoverable",
    "RX-MemFail": "rx_memory_failures",
    "RX-NeedMor": "rx_need_more_header",
    "RX-BadLen": "rx_bad_length",
    "RX-TooBig": "rx_too_big",
    "RX-Timeout": "rx_timeouts",
    "TX-Aborts": "tx_aborts",
}

_OBJECT = re.compile(r"(kcm|psock)-([0-9]{1,10})")
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_NOTHING = "-"  # what the kernel writes where a column does not apply


def multiplexors() -> list[MultiplexorStatistics]:
    """The multiplexors of this network namespace, the newest first.

    Raises:
        UnavailableError: the kcm module is not loaded.
        KCMOSError: the file can't be read, or its text is damaged (EBADMSG).
    """
    return parse_multiplexors(_read(_MULTIPLEXORS))


def totals() -> Totals:
    """The counts of this network namespace.

    Raises:
        UnavailableError: the kcm module is not loaded.
        KCMOSError: the file can't be read, or its text is damaged (EBADMSG).
    """
    return parse_totals(_read(_TOTALS))


def parse_multiplexors(text: str) -> list[MultiplexorStatistics]:
    """What a text of /proc/net/kcm says.

    Raises:
        KCMOSError: the text is damaged, or is no such text; errno is EBADMSG.
    """
    # The title, the columns' names, and a line for each object.
    lines = _lines(_MULTIPLEXORS, text)
    names = lines[1].split() if len(lines) > 1 else []
    if names[:1] != ["Object"]:
        raise _damaged(_MULTIPLEXORS, "its second line does not name the columns")
    found: list[MultiplexorStatistics] = []
    for line in lines[2:]:
        name, *words = line.split() or [""]
        kind = _OBJECT.fullmatch(name)
        if name != "mux" and not (kind and found):
            raise _damaged(_MULTIPLEXORS, f"it has an object of no known kind: {line!r}")
        columns, status = _columns(line, names[1:], words)
        if kind is None:
            found.append(
                MultiplexorStatistics(
                    **_known(columns, _FLOW), sockets=(), psocks=(), unknown=columns
                )
            )
            continue
        mux, index = found[-1], int(kind[2])
        if kind[1] == "kcm":
            socket = Socket(index, **_known(columns, _SOCKET), status=status, unknown=columns)
            found[-1] = mux._replace(sockets=(*mux.sockets, socket))
        else:
            psock = Psock(index, **_known(columns, _PSOCK), status=status, unknown=columns)
            found[-1] = mux._replace(psocks=(*mux.psocks, psock))
    return found


def parse_totals(text: str) -> Totals:
    """What a text of /proc/net/kcm_stats says.

    Raises:
        KCMOSError: the text is damaged, or is no such text; errno is EBADMSG.
    """
    sections = dict(raw_totals(text))
    for name in ("MUX", "Psock"):
        if name not in sections:
            raise _damaged(_TOTALS, f"it lacks the line {name}")
    multiplexors = _renamed(sections["MUX"], _MULTIPLEXOR_TOTALS)
    # kcm_stats_seq_show writes each of these two counts below the other's name.  The reserved ones
    # are among all that were unattached: so it is right also where the kernel is put right.
    if {"unattach", "unattach_reserved"} <= multiplexors.keys():
        counts = sorted([multiplexors["unattach"], multiplexors["unattach_reserved"]])
        multiplexors["unattach_reserved"], multiplexors["unattach"] = counts
    return Totals(multiplexors, _renamed(sections["Psock"], _PSOCK_TOTALS))


def raw_totals(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """The sections of a text of /proc/net/kcm_stats: "MUX" and "Psock", and their columns.

    All has the kernel's names; nothing is put right.

    Raises:
        KCMOSError: the text is damaged, or is no such text; errno is EBADMSG.
    """
    lines = _lines(_TOTALS, text)
    if len(lines) % 2:
        raise _damaged(_TOTALS, "it has names of columns without counts")
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        section, *columns = names.split() or [""]
        numbers = values.split()
        if not section or len(columns) != len(numbers):
            raise _damaged(_TOTALS, f"the columns and the counts of {section!r} do not match")
        counts = [_number(_TOTALS, number) for number in numbers]
        yield section, dict(zip(columns, counts, strict=True))


def _lines(path: str, text: str) -> list[str]:
    """The lines of a text that is not cut short."""
    if not text.endswith("\n"):
        raise _damaged(path, "its last line is cut short")
    return text[:-1].split("\n")


def _columns(
    line: str, names: list[str], words: list[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The texts of an object's columns by the kernel's names, and the words of its status."""
    # The status is the last column and may have any number of words, all others have one.
    count = names.index("Status") if "Status" in names else len(names)
    if len(words) < count or (len(words) > count and count == len(names)):
        raise _damaged(_MULTIPLEXORS, f"the columns and this line do not match: {line!r}")
    shown = zip(names[:count], words[:count], strict=True)
    return {name: word for name, word in shown if word != _NOTHING}, tuple(words[count:])


def _known(columns: dict[str, str], names: dict[str, str]) -> dict[str, int | None]:
    """Take the columns of known names out of the others."""
    return {
        own: _number(_MULTIPLEXORS, columns.pop(name)) if name in columns else None
        for name, own in names.items()
    }


def _renamed(columns: dict[str, int], names: dict[str, str]) -> dict[str, int]:
    return {names.get(name, name): count for name, count in columns.items()}


def _number(path: str, word: str) -> int:
    if not _NUMBER.fullmatch(word):
        raise _damaged(path, f"{word!r} is not a count")
    return int(word)


def _damaged(path: str, what: str) -> KCMOSError:
    return KCMOSError(errno.EBADMSG, f"this is not what a kernel writes to {path}: {what}")


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - no pathlib
            return file.read()
    except FileNotFoundError as error:
        raise UnavailableError(
            errno.ENOENT, f"{path} does not exist: the kcm module is not loaded (modprobe kcm)"
        ) from error
    except OSError as error:
        raise KCMOSError(error.errno or errno.EIO, f"{path} can't be read") from error
