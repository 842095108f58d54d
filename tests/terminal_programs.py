"""What runs in the terminal of tests/terminal.py: `kcm`, where kernel and system are made up.

So its screens are the same on every machine.  tests/kernel has the commands on a real kernel.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

from pykcm import cli, doctor, statistics
from pykcm._joining import connections, kernel, look
from pykcm.cli import _session
from pykcm.doctor import Finding, Status
from tests.unit.stat_machine import TCP, Machine
from tests.unit.test_statistics import KCM, STATS
from tests.unit.user_space_multiplexor import Multiplexor

FINDINGS = [
    Finding("socket", Status.OK, "a KCM socket opens"),
    Finding("bpf call", Status.OK, "bpf(2) reaches the kernel: no seccomp filter forbids it"),
    Finding(
        "program",
        Status.PROBLEM,
        "loading the program 'pykcm_doctor' of 2 instructions was refused: this process has "
        "neither CAP_BPF nor CAP_SYS_ADMIN, and kernel.unprivileged_bpf_disabled is 2",
        "docker run --cap-add BPF --cap-add PERFMON IMAGE",
        "or attach a program that a privileged process pinned (Program.from_pin)",
    ),
    Finding("lockdown", Status.OK, "none"),
    Finding("loopback", Status.OK, "a connection of the loopback interface is made"),
    Finding("offset", Status.UNKNOWN, "not tried, since no program can be loaded"),
    Finding(
        "descriptors",
        Status.WARNING,
        "RLIMIT_NOFILE is 256: room for 120 connections",
        "ulimit -n 4096",
    ),
    Finding("taint", Status.OK, "the kernel has had no fault"),
]


def run_doctor() -> None:
    print("$ kcm doctor", flush=True)
    doctor.examine = lambda *_: FINDINGS
    cli.main(["doctor"])


def run_stat() -> None:
    machine = Machine()
    machine.texts = {"/proc/net/kcm": KCM, "/proc/net/kcm_stats": STATS}
    for module, name, replaced in (
        (statistics, "_read", machine.read),
        (kernel, "Lists", machine.open_lists),
        (connections, "connections", lambda: TCP),
        (look, "Holders", machine.find_holders),
        (time, "strftime", lambda *_: "13:20:11"),
    ):
        setattr(module, name, replaced)
    cli.main(["stat", "--watch", "60"])


def run_connect() -> None:
    """With a server that answers in capitals."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(tcp: socket.socket) -> None:
        while header := tcp.recv(2, socket.MSG_WAITALL):
            tcp.sendall(
                header + tcp.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL).upper()
            )

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    setattr(_session, "Multiplexor", Multiplexor)  # noqa: B010 - which it does not export
    print("$ kcm connect localhost 7000 --length-field size=2 --body -n 4", flush=True)
    port = str(listener.getsockname()[1])
    cli.main(["connect", "127.0.0.1", port, "--length-field", "size=2", "--body", "-n", "4"])


if __name__ == "__main__":
    {"doctor": run_doctor, "stat": run_stat, "connect": run_connect}[sys.argv[1]]()
