"""Whether a delineation program can be loaded, by what right, and how it finds the message."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator

from pykcm import _explain, _kernel, _offset, _trials, bpf
from pykcm.bpf import _token
from pykcm.bpf._load import retried
from pykcm.doctor._attempt import attempt, outcome
from pykcm.doctor._errors import refused, want
from pykcm.doctor.finding import Finding, Status, ok, problem, unknown, warning
from pykcm.doctor.situation import Situation
from pykcm.errors import CapabilityError, KCMError, KCMOSError

_RETURN = "r0 = 0\nexit"
# As a framing's program reads the offset, from some word of the sk_buff.
_READ_KERNEL = """
r1 = r10; r1 += -8; r2 = 4; r3 = r6; r3 += 40
call bpf_probe_read_kernel
r0 = 0; exit
"""
DOCKER = "docker run --cap-add BPF --cap-add PERFMON IMAGE"


def call(situation: Situation) -> Iterator[Finding]:
    """Whether bpf(2) reaches the kernel: asked about a descriptor that is none, which any may."""
    name = "bpf call"
    code = attempt(lambda: _kernel.bpf_info(-1))
    filtered = situation.system.has_seccomp_filter()
    if code in (errno.EBADF, errno.EBADFD):
        situation.calls = True
        yield ok(name, "bpf(2) reaches the kernel: no seccomp filter forbids it")
    elif code == errno.ENOSYS and not filtered:
        situation.calls = False
        yield problem(
            name, "this kernel has no bpf(2)", advice="boot one built with CONFIG_BPF_SYSCALL"
        )
    elif code == errno.EPERM and filtered is False:
        yield ok(name, "no seccomp filter is set; before Linux 5.19 bpf(2) asks for CAP_BPF first")
    elif code == errno.EPERM and not _explain.may_load():
        yield unknown(
            name,
            "bpf(2) fails with EPERM: by a seccomp filter, or, before Linux 5.19, since this "
            "process has not CAP_BPF",
        )
    else:
        situation.calls = False
        yield problem(
            name,
            f"bpf(2) {outcome(code)}: a seccomp filter or a security module forbids it; Docker's "
            "default profile lets it pass with CAP_BPF only",
            DOCKER,
        )


def program(situation: Situation) -> Iterator[Finding]:
    """Load one: as it is, then as pykcm does."""
    name = "program"
    if situation.calls is False:
        situation.refused = "bpf(2) does not reach the kernel"
        yield unknown(name, "not tried: bpf(2) does not reach the kernel")
        return
    code = bpf.assemble(_RETURN)
    with contextlib.suppress(OSError):
        os.close(retried(_kernel.bpf_load, code, b"GPL", b"pykcm_doctor"))
        situation.plain = True
    try:
        bpf.Program.load(code, name="pykcm_doctor").close()
    except KCMOSError as error:
        situation.refused = _explain.reason(error)
        yield refused(name, error, *_way(situation))
        return
    situation.loads = True
    yield ok(name, f"a BPF program loads{_by_what(situation)}")


def _by_what(situation: Situation) -> str:
    if not situation.plain:
        return " with a BPF token" if _explain.in_own_user_namespace() else ""
    if situation.system.read("/proc/self/status") is None:
        return ""
    held = _explain.capabilities() & {"CAP_BPF", "CAP_SYS_ADMIN"}
    if held and not _explain.in_own_user_namespace():
        return f" by {' and '.join(sorted(held))}"
    return ", as any process may here (kernel.unprivileged_bpf_disabled is 0)"


def _way(situation: Situation) -> tuple[str, str]:
    """The command by which a program can be loaded, and advice."""
    pinned = "or attach a program that a privileged process pinned (Program.from_pin)"
    if _explain.in_own_user_namespace():
        return _explain.RUN_WITH_TOKEN, pinned
    if situation.system.exists("/.dockerenv"):
        return DOCKER, pinned
    if situation.calls is False or (situation.refused and _explain.may_load()):
        return "", f"allow bpf(2) to this process in its sandbox or policy, {pinned}"
    return _explain.RUN_WITH_CAPABILITIES, f"or run it as root, {pinned}"


def token(situation: Situation) -> Iterator[Finding]:
    """What the BPF file system delegates, where that counts."""
    name = "token"
    where, told = _token.path(), _kernel.token_state()
    if situation.plain:
        yield ok(name, "no BPF token is needed: a program loads without")
        return
    if situation.calls is False:
        yield unknown(name, "not tried: bpf(2) does not reach the kernel")
        return
    if not where:
        yield ok(name, f"none is looked for, since {_token.VARIABLE} is empty")
        return
    code = bpf.assemble(_RETURN)
    try:
        os.close(
            retried(
                *(_kernel.bpf_load, code, b"GPL", b"pykcm_doctor", None, None),
                *(b"", b"", os.fsencode(where), told),
            )
        )
    except OSError as error:
        said = _token.explain(where, told).removeprefix("; ")
        if told[0]:
            yield ok(name, said)
            return
        if error.errno != errno.EPERM:
            yield unknown(name, f"with a token loading fails otherwise: {error.strerror}")
            return
        lacking = _token.missing(where, told) or []
        yield problem(
            name,
            said,
            advice=f"who makes the user namespace must mount it with {','.join(lacking)} too"
            if lacking
            else "",
        )
        return
    situation.by_token = True
    functions = _token.missing(where, told, functions=True)
    text = f"the BPF file system {where} delegates loading socket filters"
    if functions:
        yield ok(name, f"{text}; framings with functions of their own need {functions[0]} too")
    else:
        yield ok(name, text)


def capabilities(situation: Situation) -> Iterator[Finding]:
    """What this process has, and in which user namespace."""
    name = "capabilities"
    if situation.system.read("/proc/self/status") is None:
        yield unknown(name, "/proc is not mounted", "sudo mount -t proc proc /proc")
        return
    held = _explain.capabilities()
    text = f"it has {', '.join(sorted(held)) or 'neither CAP_BPF nor CAP_PERFMON'}"
    if _explain.in_own_user_namespace():
        text += " in a user namespace of its own, where they count with a BPF token only"
    setting = situation.system.read("/proc/sys/kernel/unprivileged_bpf_disabled")
    text += f"; kernel.unprivileged_bpf_disabled is {setting or 'not shown'}"
    yield ok(name, text)


def lockdown(situation: Situation) -> Iterator[Finding]:
    """Whether the kernel is locked down so far that no program may read its memory."""
    name = "lockdown"
    found = situation.system.lockdown()
    if found == "confidentiality" and situation.strategy:
        yield ok(name, "the kernel's lockdown is 'confidentiality', and the offset is found still")
    elif found == "confidentiality":
        yield (problem if situation.needs_offset else warning)(
            name,
            "the kernel is locked down for confidentiality: no program may read its memory, and so "
            "not find a message's offset",
            advice="boot with lockdown=integrity on the kernel's command line",
        )
    elif found:
        yield ok(name, f"the kernel's lockdown is {found!r}, which forbids nothing that is needed")
    elif situation.system.exists("/sys/kernel/security/lockdown"):
        yield unknown(name, "/sys/kernel/security/lockdown can't be read by this process")
    elif situation.system.exists("/sys/kernel/security/lsm"):
        yield ok(name, "this kernel has no lockdown")
    else:
        yield unknown(
            name,
            "the file system that shows it is not mounted",
            "sudo mount -t securityfs securityfs /sys/kernel/security",
        )


def offset(situation: Situation) -> Iterator[Finding]:
    """How a program finds the message's offset: KCM is asked with three messages in a segment."""
    name = "offset"
    if situation.obstacle:
        yield unknown(name, situation.obstacle)
        return
    situation.tries_offset = True
    try:
        situation.strategy = _offset.find_strategy()
    except KCMOSError as error:
        found = _no_offset(situation, error)
        if not situation.needs_offset:
            found = dataclasses.replace(
                found, status=Status.WARNING, text=f"only fixed lengths can be framed: {found.text}"
            )
        yield found
        return
    far = "" if situation.strategy.far_loads else ", with loads up to byte 65,535 of a segment"
    yield ok(name, f"a program finds the message's offset by {situation.strategy.name!r}{far}")


def _no_offset(situation: Situation, error: KCMOSError) -> Finding:
    name = "offset"
    if found := want(name, error.errno):
        return found
    if isinstance(error, CapabilityError) or not _trials.may_read_kernel_memory():
        text = (
            "on this kernel a program must read the message's offset with bpf_probe_read_kernel, "
            "which needs CAP_PERFMON"
        )
        if _explain.in_own_user_namespace():
            return problem(
                name,
                f"{text} in this user namespace; this process has it not",
                advice="leave it CAP_PERFMON where its capabilities are bounded",
            )
        return problem(name, f"{text}; this process has it not", *_way(situation))
    try:
        bpf.Program.load(f"r6 = r1\n{_READ_KERNEL}", name="pykcm_doctor").close()
    except KCMError:
        text = "this kernel lets no program call bpf_probe_read_kernel"
        if situation.system.lockdown() == "confidentiality":
            return problem(name, f"{text}, by its lockdown", advice="boot with lockdown=integrity")
        return problem(name, text, advice="boot a kernel built with CONFIG_BPF_EVENTS")
    return problem(name, str(error), "kcm doctor --report FILE", "and report it with the file")


def jit(situation: Situation) -> Iterator[Finding]:
    """Whether programs run as machine code, and whether their constants are blinded."""
    name = "jit"
    enabled = situation.system.read("/proc/sys/net/core/bpf_jit_enable")
    if situation.plain and _explain.capabilities() & {"CAP_BPF", "CAP_SYS_ADMIN"}:
        with bpf.Program.load(_RETURN, name="pykcm_doctor") as loaded:
            compiled = loaded.info.jited_size > 0 if loaded.info.translated_size else None
    else:
        compiled = None if enabled is None else enabled != "0"
    if compiled is None:
        yield unknown(name, "neither the sysctl nor a program's size tells whether it is compiled")
    elif not compiled:
        yield warning(
            name,
            "programs are interpreted, not compiled: every message takes longer",
            "sudo sysctl -w net.core.bpf_jit_enable=1" if enabled else "",
            "" if enabled else "boot a kernel built with CONFIG_BPF_JIT",
        )
    else:
        yield ok(name, "programs are compiled to machine code")
    name = "jit hardening"
    hardening = situation.system.read("/proc/sys/net/core/bpf_jit_harden")
    privileged = situation.plain and _explain.may_load() and bool(_explain.capabilities())
    if enabled is None and not situation.system.exists("/proc/sys/net/core/bpf_jit_enable"):
        yield unknown(
            name,
            "there is no compiler, or its settings are not shown: only the first network "
            "namespace has them",
        )
    elif hardening is None:
        yield unknown(name, "net.core.bpf_jit_harden can be read by root alone")
    elif hardening == "2" or (hardening == "1" and not privileged):
        who = "all" if hardening == "2" else "unprivileged"
        yield warning(
            name,
            f"constants of {who} programs are blinded (net.core.bpf_jit_harden is {hardening}): "
            "every message takes a little longer",
            f"sudo sysctl -w net.core.bpf_jit_harden={1 if privileged else 0}",
        )
    else:
        yield ok(name, f"no constants are blinded (net.core.bpf_jit_harden is {hardening})")


def file_system(situation: Situation) -> Iterator[Finding]:
    """Whether a program can be pinned, for processes that may load none."""
    name, where = "bpf file system", _token.DEFAULT_PATH
    try:
        mounted = _kernel.is_bpf_file_system(os.fsencode(where))
    except FileNotFoundError:
        mounted = False
    if not mounted:
        yield warning(
            name,
            f"no BPF file system is mounted at {where}: no program can be pinned there",
            f"sudo mount -t bpf bpf {where}",
        )
        return
    if not situation.loads:
        yield ok(name, f"one is mounted at {where}; pinning was not tried, with no program to pin")
        return
    path = f"{where}/pykcm_doctor_{os.getpid()}"
    with bpf.Program.load(_RETURN, name="pykcm_doctor") as loaded:
        try:
            loaded.pin(path)
        except KCMOSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            yield ok(name, f"one is mounted at {where}; this process may not pin there")
            return
        os.unlink(path)  # noqa: PTH108 - a path like any other
    yield ok(name, f"programs can be pinned below {where}")
