"""What this kernel and this process lack for the checks, found by trying."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

from pykcm import _kernel, _loopback, _module, bpf
from pykcm.errors import KCMError, UnavailableError

# Such as the checks load: what the assembler needs for it is then ready in each of their processes.
_PROGRAM = "r6 = r1\nr0 = *(u32 *)skb[0]\nr0 += 4\nexit"


@dataclasses.dataclass(frozen=True)
class Environment:
    """What can't be done here, each with its reason; empty texts where all is well.

    Attributes:
        no_sockets: why no KCM socket can be opened: then no check can be made.
        no_programs: why no delineation program can be loaded: then no connection can be attached.
        no_connections: why there is no TCP connection to attach.
    """

    no_sockets: str = ""
    no_programs: str = ""
    no_connections: str = ""

    @property
    def obstacles(self) -> list[str]:
        """The reasons why this is not a test of all that the kernel does."""
        reasons = self.no_sockets, self.no_programs, self.no_connections
        return [reason for reason in reasons if reason]


def survey() -> Environment:
    """Try what the checks need."""
    try:
        _kernel.open_socket().close()
    except UnavailableError as error:  # pykcm's compiled module is missing
        return Environment(no_sockets=str(error))
    except OSError as error:
        return Environment(no_sockets=_why_no_socket(error))
    return Environment(no_programs=_why_no_program(), no_connections=_why_no_connection())


def _why_no_program() -> str:
    try:
        bpf.Program.load(_PROGRAM, name="kcm_selftest").close()
    except (KCMError, OSError) as error:
        return f"no BPF program can be loaded{_who()}: {error}"
    return ""


def _why_no_connection() -> str:
    try:
        for end in _loopback.connection():
            end.close()
    except OSError as error:
        return (
            f"no TCP connection to 127.0.0.1 can be made ({error}): set the loopback interface up"
        )
    return ""


def _why_no_socket(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    what = f"socket(AF_KCM) fails with {name}{_who()}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{what}: a seccomp filter or a security module forbids it"
    if error.errno != errno.EAFNOSUPPORT:
        return f"{what}: {error.strerror}"
    found = _module.look()
    release = os.uname().release
    if found.forbidden:
        return (
            f"{what}: the module kcm is blacklisted by {found.forbidden}; remove that, or "
            "modprobe kcm"
        )
    if found.state is _module.State.NO_MODULES:
        return (
            f"{what}: this kernel has no AF_KCM built in, and no /lib/modules/{release} to load it "
            "from; load kcm outside of this container or guest, or boot a kernel that has it"
        )
    if found.state is _module.State.NOT_LISTED:
        return (
            f"{what}: kernel {release} was built without AF_KCM (CONFIG_AF_KCM); boot one that "
            "has it, such as Debian's stock kernels"
        )
    return f"{what}: the module kcm is there but was not loaded; run modprobe kcm as root"


def _who() -> str:
    """What is particular about this process, for a sentence."""
    try:
        mapping = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    except OSError:
        mapping = []
    if mapping and mapping != ["0", "0", "4294967295"]:
        return " in this user namespace"
    return " as an ordinary user" if os.geteuid() else ""
