"""What a bug report needs: the findings, and the state of kernel and system that they rest on.

Nothing that is not listed here gets into the report: no environment, no host name, no user's name,
of the kernel's command line only options that bear on KCM.
"""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence

from pykcm import _faults, _module
from pykcm.doctor.finding import Finding
from pykcm.doctor.system import System
from pykcm.selftest import facts, versions

_SYSCTLS = (
    "kernel/unprivileged_bpf_disabled",
    "kernel/modules_disabled",
    "kernel/tainted",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_mem",
    "net/ipv4/tcp_available_ulp",
)
_STATUS = ("CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters")
_OPTIONS = re.compile(
    r"(?:lockdown|module_blacklist|modprobe\.blacklist|lsm|security|selinux|apparmor|mitigations"
    r"|sysctl\.[\w./]+|init_on_alloc|slub_debug|kasan[\w.]*)(?:=\S*)?"
)
_STATISTICS = ("/proc/net/kcm", "/proc/net/kcm_stats")
_MASK = "<address>"
_LAST_FAULTS = 40  # lines of the kernel's log

_ADDRESS = re.compile(r"(?<![\w.:])[0-9a-fA-F.:]{2,}(?![\w])")
_MAC = re.compile(r"(?<![\w:])[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}(?![\w:])")
_PORT = re.compile(r"^([\d.]+)(:\d*)$")


def write(path: str, findings: Sequence[Finding], *, mask: bool = False) -> None:
    """Write a report, as text, for its owner alone to read; one that is there is replaced.

    Args:
        path: the file.
        findings: what was found.
        mask: write <address> for network addresses.

    Raises:
        OSError: it can't be written.
    """
    text = make(findings, mask=mask)
    # Not through a link, nor for others to read: the directory may be one that all may write to.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)


def make(findings: Sequence[Finding], *, mask: bool = False, system: System | None = None) -> str:
    """A report's text."""
    parts = [f"# {name}\n{text}\n" for name, text in _sections(findings, system or System())]
    text = "\n".join(parts).replace(os.path.expanduser("~") + "/", "~/")  # noqa: PTH111
    return masked(text) if mask else text


def masked(text: str) -> str:
    """A text without its network addresses."""
    return _ADDRESS.sub(_mask, _MAC.sub(_MASK, text))


def _mask(found: re.Match[str]) -> str:
    """What is put in the place of what may be an IPv4 or IPv6 address."""
    address = found[0].rstrip(".")
    rest = found[0][len(address) :]
    if port := _PORT.match(address):
        address, rest = port[1], port[2] + rest
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return found[0]
    return _MASK + rest


def _sections(findings: Sequence[Finding], system: System) -> Iterator[tuple[str, str]]:
    name = os.uname()
    distribution = system.distribution()
    collected = facts.collect(["kcm", "doctor"])
    yield (
        "pykcm",
        f"{collected['pykcm']} ({platform.python_implementation()})\n"
        f"click {_version('click')}, cffi {_version('cffi')}",
    )
    yield (
        "kernel",
        f"{name.release} {name.version} {name.machine}\n"
        f"version {'.'.join(map(str, versions.running()))}\n"
        f"taint {collected.get('taint', 'not known')}\n"
        f"{collected.get('config', '')}".rstrip(),
    )
    yield "system", f"{distribution.get('PRETTY_NAME', 'not known')}\n{collected['machine']}"
    options = (system.read("/proc/cmdline") or "").split()
    kept = [option for option in options if _OPTIONS.fullmatch(option)]
    yield "command line, as far as it bears on KCM", " ".join(kept)
    yield "findings", "\n".join(json.dumps(finding.as_dict()) for finding in findings)
    module = _module.look(system.root)
    yield (
        "module",
        f"kcm.ko {module.state.value}\nforbidden by {module.forbidden or 'nothing'}\n"
        f"CONFIG_AF_KCM {module.option or 'not shown'}",
    )
    yield (
        "settings",
        "\n".join(
            f"{setting.replace('/', '.')} = {system.read(f'/proc/sys/{setting}')}"
            for setting in _SYSCTLS
        ),
    )
    yield (
        "process",
        "\n".join(
            [
                f"uid {os.geteuid()}, gid {os.getegid()}",
                *(f"{key} {system.status(key)}" for key in _STATUS),
                f"uid_map {' '.join((system.read('/proc/self/uid_map') or '').split())}",
                f"lockdown {system.lockdown() or 'not shown'}",
                f"lsm {system.read('/sys/kernel/security/lsm') or 'not shown'}",
            ]
        ),
    )
    mounts = (system.read("/proc/self/mountinfo") or "").splitlines()
    yield "BPF file systems", "\n".join(line for line in mounts if " - bpf " in line)
    for path in _STATISTICS:
        yield path, system.read(path) or "not there"
    yield "faults that the kernel told of", _kernel_log()


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _kernel_log() -> str:
    """The lines of the kernel's log that tell of a fault of its own."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return f"not known: the kernel's log can't be read ({error.strerror})"
    lines: list[str] = []
    try:
        while True:
            try:
                lines.append(os.read(fd, 8192).decode("utf-8", "replace").rstrip("\n"))
            except BrokenPipeError:  # what was there was overwritten meanwhile
                continue
            except OSError:
                break
    finally:
        os.close(fd)
    told = _faults.faults(lines)
    return "\n".join(told[-_LAST_FAULTS:]) or "none"
