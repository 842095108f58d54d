"""/proc/net/kcm and /proc/net/kcm_stats."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from pathlib import Path

from pykcm._binding import lib
from pykcm.selftest.check import Group, code
from pykcm.selftest.lab import SOON, Lab, framed, timeval

GROUP = Group("statistics", "/proc/net/kcm and /proc/net/kcm_stats")

_PROC = "net/kcm/kcmproc.c"
_SOCKET = code("kcm_format_sock", _PROC)
_PSOCK = code("kcm_format_psock", _PROC)
_STATS = code("kcm_stats_seq_show", _PROC)


def _total(lab: Lab, name: str, wanted: int) -> None:
    """Fail unless a column of kcm_stats becomes what is wanted."""
    lab.eventually(f"/proc/net/kcm_stats, {name}", lambda: lab.total(name), wanted)


@GROUP.check(code("kcm_format_mux_header", _PROC))
def multiplexors_are_counted(lab: Lab) -> None:
    """The first line tells how many multiplexors there are."""
    lab.isolate()
    sockets = [lab.kcm(), lab.kcm()]
    lab.clone(sockets[0])
    first = lab.calls.proc("kcm").splitlines()[0]
    lab.expect("the first line", first, "*** KCM statistics (2 MUX) ****")


@GROUP.check(code("kcm_format_mux", _PROC))
def sockets_and_connections_are_listed(lab: Lab) -> None:
    """A multiplexor has a line for each of its sockets and connections."""
    lab.isolate()
    program = lab.documented()
    kcm, _, _ = lab.attached(program)
    lab.clone(kcm)
    near, _ = lab.tcp()
    lab.attach(kcm, near, program)
    names = [line.split()[0] for line in lab.calls.proc("kcm").splitlines()[2:]]
    # A clone takes the first number that is free.
    lab.expect("objects", sorted(names), ["kcm-0", "kcm-1", "mux", "psock-0", "psock-1"])


@GROUP.check(_SOCKET)
def received_messages_are_counted(lab: Lab) -> None:
    """A socket's line counts the messages and bytes that were received."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(10))
    lab.calls.tcp_send(far, bytes(30))
    lab.received(kcm, [bytes(10)] * 2)
    line = lab.multiplexor().sockets[0]
    lab.expect("RX-Msgs, RX-Bytes", lab.shown(line.rx_messages, line.rx_bytes), (2, 20))


@GROUP.check(_SOCKET)
def sent_messages_are_counted(lab: Lab) -> None:
    """A socket's line counts the messages and bytes that were sent."""
    lab.isolate()
    kcm, _, _ = lab.attached()
    for _ in range(3):
        lab.calls.send(kcm.fileno(), [bytes(7)])
    line = lab.multiplexor().sockets[0]
    lab.expect("TX-Msgs, TX-Bytes", lab.shown(line.tx_messages, line.tx_bytes), (3, 21))


@GROUP.check(_SOCKET)
def queued_messages_are_counted(lab: Lab) -> None:
    """A socket's line tells how many messages wait to be received."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(10))
    lab.calls.tcp_send(far, bytes(30))
    lab.eventually("Recv-Q", lambda: lab.queued(kcm), 3)


@GROUP.check(_SOCKET)
def unsent_messages_are_counted(lab: Lab) -> None:
    """A socket's line tells how many messages wait to be sent, and for what."""
    lab.isolate()
    kcm = lab.kcm()
    for _ in range(3):
        lab.calls.send(kcm.fileno(), [bytes(7)])
    line = lab.multiplexor().sockets[0]
    seen = *lab.shown(line.send_queue), "TxWait" in line.status
    lab.expect("Send-Q, TxWait in the status", seen, (3, True))


@GROUP.check(_SOCKET)
def batch_is_shown(lab: Lab) -> None:
    """A socket that holds a batch back has the status WMore."""
    lab.isolate()
    kcm, _, _ = lab.attached()
    lab.calls.send(kcm.fileno(), [b"held back"], lib.MSG_BATCH)
    lab.expect("WMore in the status", "WMore" in lab.multiplexor().sockets[0].status, True)


@GROUP.check(_SOCKET + "; " + _PSOCK)
def waiting_sender_is_shown(lab: Lab) -> None:
    """While a send waits for room, the files can be read, and show whom it waits for."""
    lab.isolate()
    kcm, near, _ = lab.attached()
    lab.reserve(kcm, near)
    pid = os.fork()
    if pid == 0:
        try:
            while True:  # until one waits, and it is ended
                lab.calls.send(kcm.fileno(), [bytes(20_000)])
        finally:
            os._exit(0)
    try:
        asleep = "state of the process that sends"
        lab.eventually(asleep, lambda: _state(pid), "S")
        mux = lab.multiplexor()
        seen = "Psck-0" in mux.sockets[0].status, "Rsvd-0" in mux.psocks[0].status
        lab.expect("Psck-0 and Rsvd-0 in the statuses", seen, (True, True))
        _total(lab, "MUX Attach", 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _state(pid: int) -> str:
    """A process's state: "S" if it waits."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


@GROUP.check(code("init_kcm_sock, index") + "; " + code("kcm_attach, index"))
def free_number_is_taken_again(lab: Lab) -> None:
    """A new socket or connection takes the first number that is free, also between others."""
    lab.isolate()
    program = lab.documented()
    kcm = lab.kcm()
    clones = [lab.clone(kcm) for _ in range(3)]
    connections = [lab.tcp()[0] for _ in range(4)]
    for near in connections[:3]:
        lab.attach(kcm, near, program)
    lab.calls.close(clones[0])
    lab.unattach(kcm, connections[1])

    def numbers() -> tuple[list[int], list[int]]:
        mux = lab.multiplexor()
        return [line.index for line in mux.sockets], [line.index for line in mux.psocks]

    lab.eventually("numbers with one free", numbers, ([0, 2, 3], [0, 2]))
    lab.clone(kcm)
    lab.attach(kcm, connections[3], program)
    lab.expect("numbers with it taken", numbers(), ([0, 1, 2, 3], [0, 1, 2]))


@GROUP.check(_PSOCK)
def connection_counts_what_arrives(lab: Lab) -> None:
    """A connection's line counts the messages and bytes that arrived."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(10))
    lab.calls.tcp_send(far, bytes(30))
    lab.received(kcm, [bytes(10)] * 3)
    line = lab.multiplexor().psocks[0]
    lab.expect("RX-Msgs, RX-Bytes", lab.shown(line.rx_messages, line.rx_bytes), (3, 30))


@GROUP.check(_PSOCK)
def connection_counts_what_is_sent(lab: Lab) -> None:
    """A connection's line counts the messages and bytes that were sent over it."""
    lab.isolate()
    kcm, _, _ = lab.attached()
    for _ in range(3):
        lab.calls.send(kcm.fileno(), [bytes(7)])

    def counts() -> tuple[int, ...]:
        line = lab.multiplexor().psocks[0]
        return lab.shown(line.tx_messages, line.tx_bytes)

    wanted: tuple[int, ...] = (3, 21)
    lab.eventually("TX-Msgs, TX-Bytes", counts, wanted)


@GROUP.check(_PSOCK)
def held_message_is_shown(lab: Lab) -> None:
    """A connection whose message no socket has room for has the status RxPause RdyRx."""
    lab.isolate()
    kcm, _, far = lab.attached()
    lab.set_receive_disabled(kcm, 1)
    lab.calls.tcp_send(far, framed(b"ready"))
    wanted: tuple[str, ...] = ("RxPause", "RdyRx")
    lab.eventually("the status", lambda: lab.multiplexor().psocks[0].status, wanted)


@GROUP.check(_PSOCK)
def stopped_connection_is_shown(lab: Lab) -> None:
    """A connection on which an error was posted has the status RxStop."""
    lab.isolate()
    _, _, far = lab.attached(lab.program(f"r0 = {-errno.EBADMSG}\nexit"))
    lab.calls.tcp_send(far, b"anything")
    shown = "RxStop in the status"
    lab.eventually(shown, lambda: "RxStop" in lab.multiplexor().psocks[0].status, True)


@GROUP.check(_STATS)
def attach_is_counted(lab: Lab) -> None:
    """Attach counts the connections that were attached."""
    lab.isolate()
    program = lab.documented()
    kcm, _, _ = lab.attached(program)
    near, _ = lab.tcp()
    lab.attach(kcm, near, program)
    _total(lab, "MUX Attach", 2)


@GROUP.check(_STATS)
def unattach_is_counted(lab: Lab) -> None:
    """Unattach counts the connections that were unattached."""
    lab.patience = min(lab.patience, SOON)
    lab.isolate()
    kcm, near, _ = lab.attached()
    lab.unattach(kcm, near)
    _total(lab, "MUX Unattach", 1)


@GROUP.check(_STATS)
def unattach_of_a_reserved_connection_is_counted(lab: Lab) -> None:
    """UnattchRsvd counts those that were unattached while a message was half written."""
    lab.patience = min(lab.patience, SOON)
    lab.isolate()
    kcm, near, _ = lab.attached()
    lab.unattach(kcm, near)
    other, _ = lab.tcp()
    lab.attach(kcm, other, lab.documented())
    lab.reserve(kcm, other)
    lab.unattach(kcm, other)
    _total(lab, "MUX UnattchRsvd", 1)


@GROUP.check(_STATS)
def dropped_message_is_counted(lab: Lab) -> None:
    """RX-RdyDrops counts the complete messages that unattaching threw away."""
    lab.isolate()
    kcm, near, far = lab.attached()
    lab.set_receive_disabled(kcm, 1)
    lab.calls.tcp_send(far, framed(b"ready"))
    wanted: tuple[str, ...] = ("RxPause", "RdyRx")
    lab.eventually("the status", lambda: lab.multiplexor().psocks[0].status, wanted)
    lab.unattach(kcm, near)
    _total(lab, "MUX RX-RdyDrops", 1)


@GROUP.check(_STATS)
def incomplete_header_is_counted(lab: Lab) -> None:
    """RX-NeedMor counts how often a program asked for more of a header."""
    lab.isolate()
    _, _, far = lab.attached()
    lab.calls.tcp_send(far, b"\0\0")
    _total(lab, "Psock RX-NeedMor", 1)


@GROUP.check(_STATS)
def bad_length_is_counted(lab: Lab) -> None:
    """RX-BadLen counts lengths that end before the header does."""
    lab.isolate()
    program = lab.program(
        "r6 = r1\nr0 = *(u32 *)(r6 + 0)\nif r0 > 3 goto +2\nr0 = 0\nexit\nr0 = 2\nexit"
    )
    _, near, far = lab.attached(program)
    lab.calls.tcp_send(far, b"abc")
    lab.consumed(near, far)
    lab.calls.tcp_send(far, b"defg")
    _total(lab, "Psock RX-BadLen", 1)


@GROUP.check(_STATS)
def too_big_message_is_counted(lab: Lab) -> None:
    """RX-TooBig counts lengths over the receive buffer."""
    lab.isolate()
    _, _, far = lab.attached()
    lab.calls.tcp_send(far, struct.pack(">I", 1 << 30))
    _total(lab, "Psock RX-TooBig", 1)


@GROUP.check(_STATS)
def timeout_is_counted(lab: Lab) -> None:
    """RX-Timeout counts messages whose assembly took too long."""
    lab.isolate()
    kcm = lab.kcm()
    near, far = lab.tcp()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.1))
    lab.attach(kcm, near, lab.documented())
    lab.calls.tcp_send(far, framed(b"whole")[:6])
    _total(lab, "Psock RX-Timeout", 1)


@GROUP.check(_STATS + "; include/net/strparser.h, save_strp_stats()")
def abort_is_counted(lab: Lab) -> None:
    """RX-Aborts counts the connections on which receiving was given up."""
    lab.isolate()
    _, near, far = lab.attached(lab.program(f"r0 = {-errno.EBADMSG}\nexit"))
    lab.calls.tcp_send(far, b"anything")
    lab.posted(near, errno.EBADMSG)
    lab.patience = min(lab.patience, SOON)
    _total(lab, "Psock RX-Aborts", 1)


@GROUP.check(_STATS)
def refused_header_is_counted(lab: Lab) -> None:
    """RX-Intr counts the connections whose program refused a header."""
    lab.isolate()
    _, near, far = lab.attached(lab.program(f"r0 = {-errno.EBADMSG}\nexit"))
    lab.calls.tcp_send(far, b"anything")
    lab.posted(near, errno.EBADMSG)
    _total(lab, "Psock RX-Intr", 1)


def _send_over_a_broken_connection(lab: Lab) -> None:
    program = lab.documented()
    kcm, near, far = lab.attached(program)
    other, peer = lab.tcp()
    lab.attach(kcm, other, program)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    lab.posted(near, errno.EPIPE)
    lab.calls.send(kcm.fileno(), [b"over the other one"])
    lab.streamed(peer, b"over the other one")


@GROUP.check(_STATS)
def failed_sending_is_counted(lab: Lab) -> None:
    """TX-Aborts counts the connections on which sending failed."""
    lab.isolate()
    _send_over_a_broken_connection(lab)
    _total(lab, "Psock TX-Aborts", 1)


@GROUP.check(_STATS)
def sending_again_is_counted(lab: Lab) -> None:
    """TX-Retries counts the messages that had to be sent over another connection."""
    lab.patience = min(lab.patience, SOON)
    lab.isolate()
    _send_over_a_broken_connection(lab)
    _total(lab, "MUX TX-Retries", 1)


@GROUP.check(_STATS)
def totals_outlive_the_multiplexor(lab: Lab) -> None:
    """What a multiplexor counted stays in the totals when it is gone."""
    lab.isolate()
    kcm, _, far = lab.attached(lab.fixed(10))
    lab.calls.tcp_send(far, bytes(30))
    lab.received(kcm, [bytes(10)] * 3)
    lab.calls.close(kcm)
    _total(lab, "Psock RX-Msgs", 3)
