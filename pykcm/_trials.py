"""What a kernel does with a connection, found by trying on the loopback interface.

The kernel is asked, never its version, and before messages are at stake: when a connection is
attached.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable

from pykcm import _explain, _kernel, _loopback, _tcp, bpf
from pykcm.errors import AttachError

# How long to wait for a message on the loopback interface, in seconds.
_TIMEOUT = 20.0

# include/uapi/linux/tls.h
_SOL_TLS = 282
_TLS_TX, _TLS_RX = 1, 2
_TLS_1_2 = 0x0303
_TLS_CIPHER_AES_GCM_128 = 51


def may_read_kernel_memory() -> bool:
    """Whether this process has what bpf_probe_read_kernel asks of a program's loader."""
    have = _explain.capabilities()
    return "CAP_SYS_ADMIN" in have or {"CAP_BPF", "CAP_PERFMON"} <= have


def refuse_unfit(tcp_fd: int) -> None:
    """Refuse a TCP socket that the kernel would attach, and then not do right by.

    Raises:
        AttachError: ENOTCONN, EOPNOTSUPP; see `KCMSocket.attach`.
        OSError: what SIOCKCMATTACH says of a descriptor that is not a TCP socket.
    """
    number = _tcp.is_unattachable(tcp_fd)
    if number:
        raise OSError(number, os.strerror(number))
    if _tcp.is_connecting(tcp_fd):
        raise AttachError(
            errno.ENOTCONN,
            f"TCP socket {tcp_fd} is still connecting, and KCM would take its success for its "
            "end; attach it when it is connected",
        )
    upper = _tcp.upper_protocol(tcp_fd)
    if upper and not (upper == "tls" and kernel_decrypts_tls()):
        raise AttachError(
            errno.EOPNOTSUPP,
            f"TCP socket {tcp_fd} carries {upper!r} in the kernel, and this kernel hands KCM what "
            "lies below it, ciphertext; for TLS use Linux 6.6 or later",
        )


# What was found out, by the name of the trial; what could not be tried is tried again.
_found: dict[str, bool] = {}


def _try(trial: Callable[[], bool]) -> bool:
    """What a trial says; False where it can't be made, for want of a right or a descriptor."""
    name = trial.__name__
    if name not in _found:
        try:
            _found[name] = trial()
        except OSError:
            return False
    return _found[name]


def seqpacket_keeps_the_rest() -> bool:
    """Whether what does not fit into a receive from a SOCK_SEQPACKET socket comes with the next.

    So it was at first (5.10.46 for one); on later kernels it is lost.  False also where this can't
    be tried.
    """
    return _try(_keeps_the_rest)


def kernel_decrypts_tls() -> bool:
    """Whether KCM sees the plain text of a connection with kernel TLS.

    So it is since Linux 6.6; False also where this can't be tried.
    """
    return _try(_decrypts_tls)


def _keeps_the_rest() -> bool:
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(bpf.Program.load("r0 = 2\nexit", name="pykcm_rest"))
        near, far = _loopback.connection()
        stack.enter_context(near)
        stack.enter_context(far)
        kcm = stack.enter_context(_kernel.open_socket(socket.SOCK_SEQPACKET))
        _kernel.attach(kcm.fileno(), near.fileno(), program.fd)
        far.sendall(b"ab")
        kcm.settimeout(_TIMEOUT)
        kcm.recv(1)
        kcm.setblocking(False)
        try:
            return kcm.recv(1) == b"b"
        except BlockingIOError:
            return False


def _decrypts_tls() -> bool:
    # struct tls12_crypto_info_aes_gcm_128: iv, key, salt, rec_seq.
    keys = struct.pack("=HH8s16s4s8s", _TLS_1_2, _TLS_CIPHER_AES_GCM_128, *[b""] * 4)
    message = b"plain"
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(
            bpf.Program.load(f"r0 = {len(message)}\nexit", name="pykcm_tls")
        )
        near, far = _loopback.connection()
        stack.enter_context(near)
        stack.enter_context(far)
        for tcp, direction in ((far, _TLS_TX), (near, _TLS_RX)):
            tcp.setsockopt(socket.IPPROTO_TCP, _tcp.TCP_ULP, b"tls")
            tcp.setsockopt(_SOL_TLS, direction, keys)
        kcm = stack.enter_context(_kernel.open_socket())
        far.sendall(message)
        _kernel.attach(kcm.fileno(), near.fileno(), program.fd)
        kcm.settimeout(_TIMEOUT)
        return kcm.recv(len(message)) == message
