"""Whether messages get through: a connection of the loopback interface is attached."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from pykcm import _loopback, _trials
from pykcm.doctor._errors import refused, want
from pykcm.doctor.finding import Finding, ok, problem, unknown, warning
from pykcm.doctor.situation import Situation
from pykcm.errors import AttachError, KCMOSError
from pykcm.framing import LengthField
from pykcm.multiplexor import Multiplexor
from pykcm.socket import KCMSocket

_TIMEOUT = 20.0  # seconds, for a machine that is busy
_FRAMING = LengthField(size=2)
# Of different lengths, in one segment: a program that measures the first again is found out.
_MESSAGES = (b"\0\1a", b"\0\3bcd", b"\0\2ef")

_TAKEN = "are taken by another part of the kernel, or this kernel has a defect"
_AGENT = (
    "sudo bpftool cgroup tree",
    "which shows the programs of an agent that puts connections into a sockmap (a service mesh, a "
    "load balancer); exclude this process's connections there",
)


@contextlib.contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = _loopback.connection(_TIMEOUT)
    with near, far:
        yield near, far


def loopback(situation: Situation) -> Iterator[Finding]:
    """Make a TCP connection, which all that follows is tried with."""
    name = "loopback"
    try:
        with _pair():
            situation.connects = True
    except OSError as error:
        yield want(name, error.errno) or problem(
            name,
            f"no TCP connection to 127.0.0.1 can be made ({error.strerror or error})",
            "sudo ip link set lo up",
        )
        return
    yield ok(name, "a TCP connection to 127.0.0.1 can be made")


def messages(situation: Situation) -> Iterator[Finding]:
    """Receive messages that came in one segment, and send one."""
    name = "messages"
    if situation.obstacle:
        yield unknown(name, situation.obstacle)
        return
    with _pair() as (near, far):
        try:
            yield _pass(situation, near, far)
        except KCMOSError as error:
            yield _not_attached(error)
        except TimeoutError:
            yield problem(name, f"messages do not arrive: their bytes {_TAKEN}", *_AGENT)


def _pass(situation: Situation, near: socket.socket, far: socket.socket) -> Finding:
    with Multiplexor(_FRAMING) as mux:
        mux.attach(near)
        far.sendall(b"".join(_MESSAGES))
        received = [mux.recv(timeout=_TIMEOUT) for _ in _MESSAGES]
        mux.send(_MESSAGES[0])
        far.settimeout(_TIMEOUT)
        sent = far.recv(len(_MESSAGES[0]), socket.MSG_WAITALL)
    if received != list(_MESSAGES) or sent != _MESSAGES[0]:
        return problem("messages", f"wrong messages came ({received!r}): bytes {_TAKEN}", *_AGENT)
    situation.passes = True
    return ok("messages", "a connection is attached, and messages pass both ways, whole")


def _not_attached(error: KCMOSError) -> Finding:
    if error.errno == errno.EALREADY:
        return problem(
            "messages", "a new connection is held by another part of the kernel already", *_AGENT
        )
    return refused("messages", error)


def framing(situation: Situation) -> Iterator[Finding]:
    """Load the program of the framing that is asked for, and attach a connection with it."""
    if situation.framing is None:
        return
    name = "framing"
    if situation.obstacle and (situation.needs_offset or not situation.tries_offset):
        yield unknown(name, situation.obstacle)
        return
    try:
        with _pair() as (near, _), KCMSocket() as kcm:
            kcm.attach(near, situation.framing, allow_small_buffer=True)
    except KCMOSError as error:
        yield refused(name, error)
        return
    yield ok(name, "its program is loaded, and a connection is attached with it")


def clone(situation: Situation) -> Iterator[Finding]:
    """Attach through a clone, which SELinux forbids since a clone has no label."""
    name = "clone"
    if not situation.passes:
        yield unknown(name, situation.obstacle or "not tried: no messages pass")
        return
    try:
        with _pair() as (near, _), KCMSocket() as kcm, kcm.clone() as cloned:
            cloned.attach(near, _FRAMING)
    except AttachError as error:
        if error.errno != errno.EACCES:
            raise
        yield warning(
            name,
            "SELinux forbids that connections are attached through a clone, which has no label",
            advice="attach through the multiplexor's first socket, as Multiplexor.attach does",
        )
        return
    yield ok(name, "connections can be attached through a clone too")


def kernel_tls(situation: Situation) -> Iterator[Finding]:
    """Whether KCM sees the plain text of a connection with kernel TLS."""
    name = "kernel tls"
    if not situation.passes:
        yield unknown(name, situation.obstacle or "not tried: no messages pass")
        return
    layers = situation.system.read("/proc/sys/net/ipv4/tcp_available_ulp")
    if layers is None or "tls" not in layers.split():
        yield unknown(
            name,
            "not tried: the module tls is not loaded, and trying would load it",
            "sudo modprobe tls",
        )
    elif _trials.kernel_decrypts_tls():
        yield ok(name, "the messages of a connection with kernel TLS come decrypted")
    else:
        yield ok(
            name,
            "a connection with kernel TLS is refused when it is attached: this kernel would hand "
            "KCM its ciphertext",
        )
