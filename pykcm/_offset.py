"""Where a delineation program finds the message's offset, and how the running kernel is asked.

KCM runs the program on the TCP segment's skb from its first byte, also for the second and later
messages in it (net/strparser/strparser.c, __strp_recv).  A program that ignores `strp_msg.offset`
therefore measures the first message again and again.  The offset lies in `skb->cb`; where depends
on the kernel, and so does the way to read it: a `Strategy`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from typing import NamedTuple

from pykcm import _explain, _kernel, _loopback, _trials, bpf
from pykcm.errors import CapabilityError, UnavailableError, VerifierError

# struct __sk_buff of include/uapi/linux/bpf.h: where the context shows bytes 8 to 27 of skb->cb.
_CONTEXT_CB = 48
# The context's cb[0] is byte 8 of skb->cb (bpf_convert_ctx_access, net/core/filter.c).
_CONTEXT_CB_START = 8

_NO_PERFMON = (
    "it lacks CAP_PERFMON, or CAP_BPF; a process that has them must load the program, pin it "
    "(Program.pin) and let this one attach by path (Program.from_pin), or hand on a socket to "
    "which the transports are attached"
)

# How long the experiment waits for the kernel, in seconds.  The kernel answers a wrong guess at
# once (see `_experiment`), so that this bounds only a machine that is stuck.
_EXPERIMENT_TIMEOUT = 20.0

# The first byte that bpf_skb_load_bytes refused to load in older kernels, 5.10.46 for one
# (net/core/filter.c); since 5.19 its limit is INT_MAX.
_FAR = 1 << 16

# include/uapi/asm-generic/socket.h; Python's socket module does not have it.
_SO_ATTACH_BPF = 50

# Each begins with its length.  None is longer than all that follow it and itself, so that no guess
# makes the kernel wait for more than there is; what is no length here is no length in the program.
_EXPERIMENT_MESSAGES = (b"\x02A", b"\x03BC", b"\x05DEFG")


class Strategy(NamedTuple):
    """A way to read the offset of the message inside the skb.

    Attributes:
        name: "none" (the offset is taken as 0), "cb1" or "cb4" (a field of the context), or
            "probe" (bpf_probe_read_kernel, for which the loader needs CAP_BPF and CAP_PERFMON).
        cb_byte: where in skb->cb the offset lies; None for "none".
        cb_offset: offsetof(struct sk_buff, cb), used by "probe" alone.
        far_loads: whether bpf_skb_load_bytes reaches past byte 65,535 of the skb.  Packet loads
            (`r0 = *(u8 *)skb[r7]`) do on every kernel.
    """

    name: str
    cb_byte: int | None
    cb_offset: int = 40
    far_loads: bool = True

    def lines(self, register: str = "$dst") -> str:
        """The assembly that puts the message's offset into a register.

        The context is expected in r1, and left in r6.  r0 to r5 are clobbered, and 8 bytes of
        the stack below r10.

        Args:
            register: r7, r8 or r9; by default the assembler's placeholder, which makes of the
                text the macro that `bpf.assemble(text, message_offset=strategy.lines())` takes.
        """
        if self.cb_byte is None:
            return f"r6 = r1\n{register} = 0"
        if self.name != "probe":
            field = _CONTEXT_CB + self.cb_byte - _CONTEXT_CB_START
            return f"r6 = r1\n{register} = *(u32 *)(r6 + {field})"
        return "\n".join(
            [
                "r6 = r1",
                "r1 = r10",
                "r1 += -8",
                "r2 = 4",
                "r3 = r6",
                f"r3 += {self.cb_offset + self.cb_byte}",
                "call bpf_probe_read_kernel",
                # A failed read ends the program with its errno: a guessed offset would misframe.
                "if r0 == 0 goto +1",
                "exit",
                f"{register} = *(u32 *)(r10 - 8)",
            ]
        )


# strp_msg is {int full_len; int offset;}.  It follows bytes 8 to 27 of skb->cb since 5.16, and
# lay at byte 20, before that at byte 8, in older kernels (include/net/strparser.h).
NONE = Strategy("none", None)
PROBE = Strategy("probe", 24 + 4)
CB4 = Strategy("cb4", 20 + 4)
CB1 = Strategy("cb1", 8 + 4)

STRATEGIES = {strategy.name: strategy for strategy in (NONE, CB1, CB4, PROBE)}

_found: Strategy | None = None


def find_strategy() -> Strategy:
    """The strategy that is right on the running kernel, found by trying.

    Each candidate's program is attached to a connection of the loopback interface on which three
    messages arrive in one segment.  The answer is kept for the process.

    Raises:
        CapabilityError: the one that is right needs a capability that this process lacks.
        UnavailableError: there is no AF_KCM, or no candidate works.
    """
    # Without a lock, which a fork could leave held: two threads may ask at once.
    global _found  # noqa: PLW0603 - the kernel does not change under a process
    if _found is None:
        _found = _ask_kernel()
    return _found


def _ask_kernel() -> Strategy:
    refused: CapabilityError | None = None
    for candidate in (PROBE, CB4, CB1):
        try:
            strategy = candidate
            if candidate is PROBE:
                strategy = candidate._replace(cb_offset=_cb_offset())
            with bpf.Program.load(_experiment(strategy), name="pykcm_offset") as program:
                if _delineates(program):
                    return strategy._replace(far_loads=_loads_far())
        except CapabilityError as error:
            # An older kernel may still do it without the capability.
            refused = refused or error
        except VerifierError as error:
            # This kernel lacks the helper, or its context the field; unless it is that the
            # verifier hides the helper from a process without the capability.
            if candidate is PROBE and not _trials.may_read_kernel_memory():
                refused = CapabilityError(error.errno or errno.EPERM, _NO_PERFMON)
                refused.__cause__ = error
    if refused is not None:
        raise CapabilityError(
            refused.errno or errno.EPERM,
            "on this kernel a delineation program must read the message's offset with "
            f"bpf_probe_read_kernel, and this process may not load such a program: "
            f"{refused.strerror}",
        ) from refused
    raise UnavailableError(
        errno.EOPNOTSUPP,
        "no known way to read the message's offset works on this kernel "
        f"({os.uname().release}); bpf_probe_read_kernel may be missing (CONFIG_BPF_EVENTS), or "
        "forbidden by kernel lockdown (see /sys/kernel/security/lockdown)",
    )


def _cb_offset() -> int:
    """offsetof(struct sk_buff, cb), read off what the kernel makes of a load of cb[0].

    The kernel does not show that to a process without CAP_BPF in the initial user namespace, one
    with a BPF token say: then it is what it is on 64-bit machines, which the experiment proves.
    """
    with bpf.Program.load(f"r0 = *(u32 *)(r1 + {_CONTEXT_CB})\nexit", name="pykcm_cb") as program:
        code = program.translated()
    if len(code) < 8:
        return PROBE.cb_offset
    return int.from_bytes(code[2:4], sys.byteorder) - _CONTEXT_CB_START


def _loads_far() -> bool:
    """Whether bpf_skb_load_bytes reaches past byte 65,535: asked with a datagram that long."""
    text = f"""
    r6 = r1
    r2 = {_FAR}
    r3 = r10
    r3 += -8
    r4 = 1
    call bpf_skb_load_bytes
    if r0 == 0 goto whole
    r0 = 1                          # how much of the datagram is kept
    exit
whole:
    r0 = {_FAR + 1}
    exit
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far, bpf.Program.load(text, name="pykcm_far") as program:
        near.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program.fd)
        far.setblocking(False)
        try:
            far.send(bytes(_FAR + 1))
        except OSError:
            return False  # not to be found out here: what works on every kernel is right
        return len(near.recv(_FAR + 1)) > 1


def _experiment(strategy: Strategy) -> str:
    """A program for messages whose first byte is their length.

    A wrong offset must be an error or a wrong message and never "incomplete", or the experiment
    would have to wait for nothing to happen: hence the helper instead of a packet load, and an
    error for a byte that is no length.
    """
    longest = max(map(len, _EXPERIMENT_MESSAGES))
    return f"""
    {strategy.lines("r7")}
    r1 = r6
    r2 = r7
    r3 = r10
    r3 += -16
    r4 = 1
    call bpf_skb_load_bytes
    if r0 != 0 goto wrong
    r0 = *(u8 *)(r10 - 16)
    if r0 == 0 goto wrong
    if r0 > {longest} goto wrong
    exit
wrong:
    r0 = {-errno.EBADMSG}
    exit
    """


def _delineates(program: bpf.Program) -> bool:
    try:
        kcm = _kernel.open_socket()
    except OSError as error:
        raise _explain.explain(error, _explain.OPEN) from error
    with kcm:
        try:
            near, far = _loopback.connection()
        except OSError as error:
            raise _explain.explain(error, _explain.LOOPBACK) from error
        with near, far:
            far.sendall(b"".join(_EXPERIMENT_MESSAGES))
            _kernel.attach(kcm.fileno(), near.fileno(), program.fd)
            poll = select.poll()
            poll.register(kcm, select.POLLIN)
            poll.register(near, 0)  # POLLERR: the kernel refused what the program returned
            return all(_receives(kcm, poll, message) for message in _EXPERIMENT_MESSAGES)


def _receives(kcm: socket.socket, poll: select.poll, message: bytes) -> bool:
    ready = dict(poll.poll(_EXPERIMENT_TIMEOUT * 1000))
    return kcm.fileno() in ready and kcm.recv(64) == message
