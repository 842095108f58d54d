"""What this kernel and this process can do, and if not, why not.

Everything is asked of the running kernel; nothing is concluded from its version.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket

from pykcm import _explain, _kernel, _loopback, bpf
from pykcm.errors import CapabilityError, KCMOSError, UnavailableError

# How long to wait for a message on the loopback interface, in seconds.
_TIMEOUT = 20.0


def may_read_kernel_memory() -> bool:
    """Whether this process has what bpf_probe_read_kernel asks of a program's loader."""
    have = _explain.capabilities()
    return "CAP_SYS_ADMIN" in have or {"CAP_BPF", "CAP_PERFMON"} <= have


@functools.cache
def seqpacket_keeps_the_rest() -> bool:
    """Whether what does not fit into a receive from a SOCK_SEQPACKET socket comes with the next.

    So it was at first (5.10.46 for one); on later kernels it is lost.  False also where this
    process may load no program to try it with.
    """
    with contextlib.ExitStack() as stack:
        try:
            program = stack.enter_context(bpf.Program.load("r0 = 2\nexit", name="pykcm_rest"))
        except CapabilityError:
            return False
        kcm = stack.enter_context(_kernel.open_socket(socket.SOCK_SEQPACKET))
        near, far = _loopback.connection()
        stack.enter_context(near)
        stack.enter_context(far)
        _kernel.attach(kcm.fileno(), near.fileno(), program.fd)
        far.sendall(b"ab")
        kcm.settimeout(_TIMEOUT)
        kcm.recv(1)
        kcm.setblocking(False)
        try:
            return kcm.recv(1) == b"b"
        except BlockingIOError:
            return False


def explain_open(error: OSError) -> KCMOSError:
    """pykcm's error for a socket(AF_KCM) that failed with an OSError."""
    number = error.errno or errno.EAFNOSUPPORT
    if number == errno.EAFNOSUPPORT:
        return UnavailableError(
            number,
            "this kernel has no AF_KCM; load the module (modprobe kcm), or boot a kernel built "
            "with CONFIG_AF_KCM (Debian's stock kernels have it, its cloud kernels do not)",
        )
    if number == errno.ESOCKTNOSUPPORT:
        return KCMOSError(number, "a KCM socket's type is SOCK_DGRAM or SOCK_SEQPACKET")
    if number in (errno.EPERM, errno.EACCES):
        return CapabilityError(
            number, "this process may not open a KCM socket; allow it in its sandbox or policy"
        )
    return KCMOSError(number, f"the KCM socket could not be opened ({error.strerror})")
