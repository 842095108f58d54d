"""What this kernel and this process can do, and if not, why not.

Everything is asked of the running kernel; nothing is concluded from its version.
"""

from __future__ import annotations

import errno
from pathlib import Path

from pykcm.errors import CapabilityError, KCMOSError, UnavailableError

# include/uapi/linux/capability.h
CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


def effective_capabilities() -> frozenset[str]:
    """Those of `CAPABILITIES` that this process has in its effective set (proc(5), CapEff)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)
    return frozenset()


def may_read_kernel_memory() -> bool:
    """Whether this process has what bpf_probe_read_kernel asks of a program's loader."""
    have = effective_capabilities()
    return "CAP_SYS_ADMIN" in have or {"CAP_BPF", "CAP_PERFMON"} <= have


def lockdown() -> str | None:
    """The kernel's lockdown level ("none", "integrity", "confidentiality"), None if it has none.

    In "confidentiality" no program may read kernel memory (security/lockdown).
    """
    try:
        levels = Path("/sys/kernel/security/lockdown").read_text(encoding="ascii")
    except OSError:
        return None
    return levels.partition("[")[2].partition("]")[0] or None


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
