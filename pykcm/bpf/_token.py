"""BPF tokens: what a BPF file system delegates to the user namespace that it was made for.

Linux 6.9 and later.  A process with CAP_BPF in a user namespace of its own takes a token from the
BPF file system that a privileged one has mounted for it with delegate_cmds and the like, and loads
programs with it (kernel/bpf/token.c).  libbpf's environment variable says where it is looked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from pykcm import _explain, _kernel

VARIABLE = "LIBBPF_BPF_TOKEN_PATH"
DEFAULT_PATH = "/sys/fs/bpf"

# The mount options, what loading a socket filter needs of each, its bit in the mask (enum bpf_cmd,
# bpf_prog_type and bpf_attach_type of include/uapi/linux/bpf.h), and where that is in what
# `_kernel.bpf_load` told.  A socket filter is attached by no attach type; the kernel takes the 0 in
# its place for the first.
NEEDED = (
    ("delegate_cmds", "prog_load", 5, 2),
    ("delegate_progs", "socket_filter", 1, 3),
    ("delegate_attachs", "cgroup_inet_ingress", 0, 4),
)
_FOR_FUNCTIONS = ("delegate_cmds", "btf_load", 18, 2)

OPTIONS = ",".join(f"{option}={name}" for option, name, *_ in NEEDED)
"""The mount options with which all framings can be loaded that call no function."""

_WHY = {
    errno.ENOENT: "there is no {path}, or it delegates nothing",
    errno.ENOTDIR: "{path} is not a directory",
    errno.EACCES: "{path} may not be opened",
    errno.EINVAL: (
        "this kernel has no tokens (Linux 6.9 has), or {path} is not the root of a BPF file system"
    ),
    errno.EPERM: (
        "this process lacks CAP_BPF, or {path} was mounted for another user namespace than its own"
    ),
    errno.EOPNOTSUPP: "{path} was mounted for the initial user namespace, where there are none",
    errno.ENOSYS: "it can't be asked for from here",
}


def path() -> str:
    """Where a token is looked for; empty to look nowhere."""
    return os.environ.get(VARIABLE, DEFAULT_PATH)


def missing(where: str, told: Sequence[int], functions: bool = False) -> list[str] | None:
    """What a BPF file system does not delegate of what loading a socket filter needs.

    Args:
        where: the path at which it is mounted.
        told: what `_kernel.bpf_load` said of its token.
        functions: whether the program calls functions of its own.

    Returns:
        Mount options, such as "delegate_cmds=prog_load"; None if it can't be found out.
    """
    needed = (*NEEDED, _FOR_FUNCTIONS) if functions else NEEDED
    if told[1]:
        return [f"{option}={name}" for option, name, bit, at in needed if not told[at] >> bit & 1]
    # Only then: on Linux 7.2 the kernel makes a fault of its own when it shows these options.
    found = _explain.mounted(where)
    if found is None or found[0] != "bpf":
        return None
    options = dict(option.partition("=")[::2] for option in found[1].split(","))
    return [
        f"{option}={name}"
        for option, name, bit, _ in needed
        if not _delegates(options.get(option, ""), name, bit)
    ]


def _delegates(value: str, name: str, bit: int) -> bool:
    """Whether the value of a delegate_* option has something: by its name, or in a mask."""
    for part in value.split(":"):
        if part.startswith("0x"):
            if int(part, 16) >> bit & 1:
                return True
        elif part in ("any", name):
            return True
    return False


def explain(where: str, told: Sequence[int], functions: bool = False) -> str:
    """For the text of a refused load: what is the matter with the token.

    Args:
        where: the path at which it was looked for; empty for nowhere.
        told, functions: as of `missing`.
    """
    if not where:
        return f"; it has no BPF token ({VARIABLE} is empty)"
    if number := told[0]:
        if number == errno.EINVAL and not _kernel.is_bpf_file_system(os.fsencode(where)):
            return f"; it has no BPF token ({where} is not in a BPF file system)"
        why = _WHY.get(number, "{path}: {reason}").format(path=where, reason=os.strerror(number))
        return f"; it has no BPF token ({why})"
    lacking = missing(where, told, functions)
    if lacking is None:
        return f"; the BPF token of {where} was not enough"
    if lacking:
        return f"; the BPF token of {where} does not delegate {', '.join(lacking)}"
    return f"; the BPF token of {where} delegates it"
