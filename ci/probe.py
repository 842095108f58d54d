"""Say whether KCM's tests can run on the running kernel: exit status 0, or 1 and the reason."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

from pykcm import _kernel
from pykcm._native import lib

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 12, 21, 38, 39
RETURN_ZERO = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])


def obstacle() -> str | None:
    """What keeps KCM from being tested here; None if nothing does."""
    try:
        socket.socket(lib.AF_KCM, socket.SOCK_DGRAM, lib.KCMPROTO_CONNECTED).close()
    except OSError as error:
        return f"its kernel has no AF_KCM ({error.strerror})"
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    capabilities = int(held[1], 16) if held else 0

    def has(*numbers: int) -> bool:
        return all(capabilities >> number & 1 for number in numbers)

    if not has(CAP_NET_ADMIN) or not (has(CAP_SYS_ADMIN) or has(CAP_BPF, CAP_PERFMON)):
        return "its kernel has AF_KCM, but loading BPF programs takes root"
    try:
        os.close(_kernel.bpf_load(RETURN_ZERO, b"GPL", b"probe"))
    except OSError:
        return "its kernel has AF_KCM, but refuses to load a BPF program"
    return None


if __name__ == "__main__":
    reason = obstacle()
    if reason:
        print(reason)
        sys.exit(1)
