"""Whether a KCM socket can be opened; why not, and which package or setting puts it right."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from pykcm import _kernel, _module
from pykcm.doctor._attempt import attempt, outcome
from pykcm.doctor._errors import failed
from pykcm.doctor.finding import Finding, ok, problem, warning
from pykcm.doctor.situation import Situation
from pykcm.doctor.system import System

NAME = "socket"

# By ID or ID_LIKE of os-release(5): how to get a kernel that has the module, and how the module's
# file where the kernel was built with it but the file is not there.  dnf finds out the package.
_KERNEL = {
    "debian": "apt install linux-image-{architecture}",
    "ubuntu": "apt install linux-image-generic",
    "fedora": "dnf install kernel",
    "suse": "zypper install kernel-default",
}
_FILE = {
    "debian": "apt install --reinstall linux-image-{release}",
    "ubuntu": "apt install linux-modules-extra-{release}",
    "fedora": "dnf install '*/lib/modules/{release}/kernel/net/kcm/kcm.ko*'",
    "suse": "zypper install --force kernel-default",
}
# Those whose kernels have it not.
_WITHOUT = {
    "rhel": "RHEL and its clones build their kernels without it",
    "centos": "RHEL and its clones build their kernels without it",
    "alpine": "Alpine's virt kernel is built without it",
    "cos": "Container-Optimized OS builds its kernel without it",
    "talos": "Talos builds its kernel without it",
}
_OTHER_KERNEL = "boot a kernel built with CONFIG_AF_KCM, such as Debian's stock ones"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "s390x": "s390x"}


def socket(situation: Situation) -> Iterator[Finding]:
    """Open one."""
    if code := attempt(lambda: _kernel.open_socket().close()):
        yield _explain(code, situation.system)
        return
    situation.opens = True
    forbidden = _module.look(situation.system.root).forbidden
    if forbidden and situation.system.exists("/sys/module/kcm"):
        yield warning(
            NAME,
            f"a KCM socket opens, since the module is loaded; {forbidden} forbids that it loads by "
            "itself after the next boot",
            *_allow(forbidden),
        )
    else:
        yield ok(NAME, "a KCM socket opens")


def _explain(code: int, system: System) -> Finding:
    what = f"socket(AF_KCM) {outcome(code)}"
    if code != errno.EAFNOSUPPORT:
        if code < 0 or code in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            return problem(
                NAME,
                f"{what}: a seccomp filter or a security module forbids it",
                advice="allow the address family 41, AF_KCM, there",
            )
        return failed(NAME, code, what)
    if "\nKCM " in f"\n{system.read('/proc/net/protocols') or ''}":
        return problem(
            NAME,
            f"{what}, though the kernel has it (/proc/net/protocols): a seccomp filter forbids it, "
            "such as systemd's RestrictAddressFamilies=",
            "sudo systemctl edit UNIT",
            "and write there: [Service] RestrictAddressFamilies=AF_KCM",
        )
    found = _module.look(system.root)
    if found.forbidden:
        return _forbidden(what, found.forbidden)
    return _absent(what, found, system)


def _forbidden(what: str, where: str) -> Finding:
    return problem(NAME, f"{what}: {where} forbids that the module kcm is loaded", *_allow(where))


def _allow(where: str) -> tuple[str, str]:
    """The command, or the advice, that lets the module be loaded."""
    if not where.startswith("/"):
        return "", "remove the option from the boot loader's configuration"
    path, _, line = where.rpartition(":")
    return f"sudo sed -i {line}d {path}", ""


def _absent(what: str, found: _module.Look, system: System) -> Finding:
    release = os.uname().release
    if found.state is _module.State.THERE:
        return _not_loaded(what, system)
    if found.option == "n":
        return problem(
            NAME,
            f"{what}: this kernel was built without it (CONFIG_AF_KCM is not set){_known(system)}",
            *_package(system, other_kernel=True),
        )
    if found.state is _module.State.NO_MODULES:
        return problem(
            NAME,
            f"{what}: it is not built into this kernel, and there is no /lib/modules/{release} "
            f"here{_known(system)}",
            "sudo modprobe kcm",
            "outside of this container or guest",
        )
    if found.state is _module.State.MISSING:
        return problem(
            NAME, f"{what}: {found.state.value}, kcm.ko of {release}", *_package(system, False)
        )
    if found.option == "m":
        return problem(
            NAME,
            f"{what}: this kernel was built with the module kcm, which is not installed",
            *_package(system, False),
        )
    return problem(
        NAME,
        f"{what}: kcm is not among the modules of kernel {release}{_known(system)}",
        *_package(system, other_kernel=True),
    )


def _not_loaded(what: str, system: System) -> Finding:
    if system.read("/proc/sys/kernel/modules_disabled") == "1":
        return problem(
            NAME,
            f"{what}: the module kcm is there, but no module can be loaded any more "
            "(kernel.modules_disabled is 1)",
            "echo kcm | sudo tee /etc/modules-load.d/kcm.conf",
            "and reboot: it is loaded before that is set",
        )
    why = "the module kcm is there but was not loaded"
    if os.geteuid():
        why += " for this user"
    helper = system.read("/proc/sys/kernel/modprobe")
    if helper is not None and not (helper and system.exists(helper)):
        why += f" (kernel.modprobe, {helper!r}, is not a program here)"
    return problem(NAME, f"{what}: {why}", "sudo modprobe kcm")


def _kinds(system: System) -> list[str]:
    found = system.distribution()
    return [found.get("ID", ""), *found.get("ID_LIKE", "").split()]


def _known(system: System) -> str:
    """What is known of this kernel's maker, for the end of a sentence."""
    release = os.uname().release
    if "microsoft" in release:
        return "; WSL2's kernel has it not"
    if "-cloud-" in release:
        return "; Debian's cloud kernels have it not"
    return next((f"; {_WITHOUT[kind]}" for kind in _kinds(system) if kind in _WITHOUT), "")


def _package(system: System, other_kernel: bool) -> tuple[str, str]:
    """The command and the advice by which to get the module, or a kernel that has it."""
    machine = os.uname().machine
    release = os.uname().release
    if "microsoft" in release:
        return "", "build WSL2's kernel with CONFIG_AF_KCM=m, and name it in .wslconfig"
    commands = _KERNEL if other_kernel else _FILE
    for kind in _kinds(system):
        if kind in _WITHOUT:
            break
        if kind in commands and (kind != "debian" or machine in _ARCHITECTURES):
            command = commands[kind].format(
                release=release, architecture=_ARCHITECTURES.get(machine, "")
            )
            return f"sudo {command}", "and boot that kernel" if other_kernel else ""
    return "", _OTHER_KERNEL
