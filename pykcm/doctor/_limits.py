"""What limits messages and connections: buffers, locked memory, descriptors."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from pykcm import _loopback, _tcp
from pykcm.doctor._errors import more_descriptors
from pykcm.doctor.finding import Finding, ok, problem, unknown, warning
from pykcm.doctor.situation import Situation

# A multiplexor's connection has the caller's descriptor and pykcm's.
_PER_CONNECTION = 2
_FEW_DESCRIPTORS = 256
_MUCH = 1 << 30  # bytes; more than any buffer


def longest_message(situation: Situation) -> Iterator[Finding]:
    """Make a connection's receive buffer as large as the system allows, as attaching does."""
    name = "longest message"
    wanted = situation.framing.max_length if situation.framing else 0
    if not situation.connects:
        yield unknown(name, "not tried: no TCP connection to 127.0.0.1 can be made")
        return
    near, far = _loopback.connection()
    with near, far:
        room = _tcp.make_room(near.fileno(), wanted or _MUCH)
    settings = ", ".join(
        f"{key} {' '.join(value.split())}"
        for key in ("net.ipv4.tcp_rmem", "net.core.rmem_max")
        if (value := situation.system.read(f"/proc/sys/{key.replace('.', '/')}"))
    )
    if room < wanted:
        yield problem(
            name,
            f"messages of up to {room:,} bytes are sure to get through, and the framing's may have "
            f"{wanted:,}: attaching would be refused ({settings})",
            f"sudo sysctl -w net.ipv4.tcp_rmem='4096 131072 {4 * wanted}'",
            "or lower the framing's max_length",
        )
    elif wanted:
        yield ok(name, f"the framing's longest message, {wanted:,} bytes, gets through")
    else:
        yield ok(name, f"messages of up to {room:,} bytes get through ({settings})")


def locked_memory(situation: Situation) -> Iterator[Finding]:
    """Whether the limit on locked memory keeps programs from being loaded: before Linux 5.11."""
    name = "locked memory"
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        yield ok(name, "it is not limited (RLIMIT_MEMLOCK)")
    elif situation.plain or situation.by_token:
        yield ok(name, f"a program loads with the limit of {soft:,} bytes (RLIMIT_MEMLOCK)")
    elif not situation.loads:
        yield unknown(
            name,
            f"not tried: no program can be loaded; the limit is {soft:,} bytes (RLIMIT_MEMLOCK), "
            "which counts before Linux 5.11",
        )
    else:
        yield ok(name, f"pykcm lifts the limit of {soft:,} bytes while it loads (RLIMIT_MEMLOCK)")


def descriptors(situation: Situation) -> Iterator[Finding]:
    """How many connections the limit on descriptors leaves room for."""
    name = "descriptors"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        yield ok(name, "they are not limited (RLIMIT_NOFILE)")
        return
    text = (
        f"the limit of {soft:,} (RLIMIT_NOFILE) leaves room for some "
        f"{max(0, soft - 16) // _PER_CONNECTION:,} connections of a Multiplexor"
    )
    if soft < _FEW_DESCRIPTORS:
        yield warning(name, text, more_descriptors())
    else:
        yield ok(name, text)
