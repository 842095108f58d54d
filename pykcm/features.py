"""What this kernel and this process can do, and if not, why not.

Everything is asked of the running kernel; nothing is concluded from its version.
"""

from __future__ import annotations

import errno

from pykcm.bpf import system
from pykcm.errors import CapabilityError, KCMOSError, UnavailableError


def may_read_kernel_memory() -> bool:
    """Whether this process has what bpf_probe_read_kernel asks of a program's loader."""
    have = system.capabilities()
    return "CAP_SYS_ADMIN" in have or {"CAP_BPF", "CAP_PERFMON"} <= have


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
