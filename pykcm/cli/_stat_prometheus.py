"""A look as metrics, in Prometheus' text format.

No label has a value for each process, connection or multiplexor: there could be any number.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pykcm._joining.connections import STATES
from pykcm._joining.views import Look


class _Metric(NamedTuple):
    name: str
    kind: str
    help: str
    samples: list[tuple[dict[str, str], int]]


# pykcm's names of columns of kcm_stats, and the metrics' names and what they mean.
_PSOCK_COUNTERS = {
    "rx_messages": ("kcm_received_messages", "Messages delineated (super messages if batched)."),
    "rx_bytes": ("kcm_received_bytes", "Bytes that KCM took off its TCP connections."),
    "tx_messages": ("kcm_sent_messages", "Messages handed to TCP."),
    "tx_bytes": ("kcm_sent_bytes", "Bytes handed to TCP."),
    "reserved": ("kcm_transport_reservations", "Times a socket reserved a transport to send."),
    "unreserved": ("kcm_transport_releases", "Times a socket gave a transport back."),
    "rx_need_more_header": (
        "kcm_receive_incomplete_headers",
        "Times that a message's length could not be told yet.",
    ),
    "tx_aborts": ("kcm_send_aborts", "Transports that a failed send stopped."),
}
_MULTIPLEXOR_COUNTERS = {
    "attach": ("kcm_attached_transports", "Connections attached."),
    "unattach": ("kcm_unattached_transports", "Connections unattached."),
    "unattach_reserved": (
        "kcm_unattached_reserved_transports",
        "Connections unattached while a socket had them reserved.",
    ),
    "rx_ready_drops": (
        "kcm_dropped_messages",
        "Complete messages lost since their transport was unattached.",
    ),
    "tx_retries": ("kcm_send_retries", "Messages sent again on another transport."),
}
_RECEIVE_ERRORS = {
    "rx_aborts": "aborted",
    "rx_interrupted": "refused_header",
    "rx_unrecoverable": "unrecoverable",
    "rx_memory_failures": "no_memory",
    "rx_bad_length": "bad_length",
    "rx_too_big": "too_big",
    "rx_timeouts": "timeout",
}
# The flow of all multiplexors is that of all transports, which lags less.
_LEFT_OUT = {"rx_messages", "rx_bytes", "tx_messages", "tx_bytes"}

_SOCKET_STATUS = ("Psck", "TxWait", "WMore", "RxWait")
_PSOCK_STATUS = ("Done", "RxStop", "TxStop", "RxPause", "RdyRx", "RxWait", "Rsvd")


def text(look: Look) -> str:
    """The metrics, each with its help and type; those that this kernel does not count are left out.

    Returns:
        Lines, the last with its newline.
    """
    lines = []
    for metric in (*_counters(look), *_gauges(look), *_unknown(look)):
        if metric.samples:
            lines.append(f"# HELP {metric.name} {metric.help}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines += [f"{metric.name}{_labels(labels)} {n}" for labels, n in metric.samples]
    return "\n".join(lines) + "\n"


def _counters(look: Look) -> Iterator[_Metric]:
    for columns, names in (
        (look.totals.psocks, _PSOCK_COUNTERS),
        (look.totals.multiplexors, _MULTIPLEXOR_COUNTERS),
    ):
        for column, (name, meaning) in names.items():
            if column in columns:
                yield _Metric(f"{name}_total", "counter", meaning, [({}, columns[column])])
    yield _Metric(
        "kcm_receive_errors_total",
        "counter",
        "Streams that KCM stopped to parse, by reason.",
        [
            ({"reason": reason}, look.totals.psocks[column])
            for column, reason in _RECEIVE_ERRORS.items()
            if column in look.totals.psocks
        ],
    )


def _gauges(look: Look) -> Iterator[_Metric]:
    sockets = [row for mux in look.multiplexors for row in mux.sockets]
    transports = [row for mux in look.multiplexors for row in mux.transports]
    yield _gauge("kcm_multiplexors", "Multiplexors.", len(look.multiplexors))
    yield _gauge("kcm_sockets", "KCM sockets.", len(sockets))
    known = [row.connection for row in transports if row.connection]
    states = Counter({name.lower(): 0 for name in STATES.values()} | {"unknown": 0})
    states.update(connection.state.lower() for connection in known)
    states["unknown"] += len(transports) - len(known)
    yield _by_label(
        "kcm_transports", "Transports, by their TCP connection's state.", "state", states
    )
    for objects, kinds, rows in (
        ("socket", _SOCKET_STATUS, (word for row in sockets for word in row.counts.status)),
        ("transport", _PSOCK_STATUS, (word for row in transports for word in row.counts.status)),
    ):
        found = Counter(dict.fromkeys(kinds, 0))
        found.update(kind for word in rows if (kind := word.partition("-")[0].partition("=")[0]))
        name = f"kcm_{objects}s_with_status"
        yield _by_label(name, "How many have a word of the kernel's as status.", "status", found)
    of_sockets, of_psocks = [row.counts for row in sockets], [row.counts for row in transports]
    for name, meaning, counts in (
        (
            "kcm_socket_receive_queue_messages",
            "Messages that programs have not received yet.",
            [row.receive_queue for row in of_sockets],
        ),
        (
            "kcm_socket_receive_memory_bytes",
            "Memory that they take.",
            [row.receive_memory for row in of_sockets],
        ),
        (
            "kcm_socket_send_queue_messages",
            "Messages that wait for a transport.",
            [row.send_queue for row in of_sockets],
        ),
        (
            "kcm_transport_receive_queue_segments",
            "Segments that KCM has not taken off TCP.",
            [row.receive_queue for row in of_psocks],
        ),
        (
            "kcm_transport_send_queue_segments",
            "Segments that TCP has not sent, or the peer not acknowledged.",
            [row.send_queue for row in of_psocks],
        ),
        (
            "kcm_transport_receive_queue_bytes",
            "Bytes that KCM has not taken off TCP, of the known connections.",
            [connection.receive_queue for connection in known],
        ),
        (
            "kcm_transport_send_queue_bytes",
            "Bytes that the peers have not acknowledged, of the known connections.",
            [connection.send_queue for connection in known],
        ),
    ):
        yield _gauge(name, meaning, sum(count or 0 for count in counts))


def _unknown(look: Look) -> Iterator[_Metric]:
    """The columns of kcm_stats that are not known here, by the kernel's names."""
    multiplexors = look.totals.multiplexors.keys() - _MULTIPLEXOR_COUNTERS.keys() - _LEFT_OUT
    psocks = look.totals.psocks.keys() - _PSOCK_COUNTERS.keys() - _RECEIVE_ERRORS.keys()
    samples = [
        ({"line": line, "column": column}, columns[column])
        for line, columns, names in (
            ("MUX", look.totals.multiplexors, multiplexors),
            ("Psock", look.totals.psocks, psocks),
        )
        for column in sorted(names)
    ]
    yield _Metric("kcm_other_column", "untyped", "Other columns of kcm_stats.", samples)


def _gauge(name: str, meaning: str, value: int) -> _Metric:
    return _Metric(name, "gauge", meaning, [({}, value)])


def _by_label(name: str, meaning: str, label: str, values: Mapping[str, int]) -> _Metric:
    return _Metric(name, "gauge", meaning, [({label: key}, n) for key, n in values.items()])


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(_label(*item) for item in labels.items()) + "}"


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{name}="{escaped}"'
