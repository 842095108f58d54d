"""What the kernel tests share: connections, and messages of one framing."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pykcm
from pykcm._tcp import bytes_received, unparsed

Pair = tuple[socket.socket, socket.socket]

FRAMING = pykcm.LengthField(offset=0, size=4, adjustment=4, min_length=4)

TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8  # include/net/tcp_states.h

# Seconds that anything may take here: the guest is emulated, and its host may be busy.
PATIENCE = 30.0


def message(body: bytes) -> bytes:
    """A message of `FRAMING`."""
    return struct.pack(">I", len(body)) + body


def fill(kcm: socket.socket, size: int = 50_000) -> int:
    """Send until the queue is full, and stays so; how many messages.

    TCP goes on taking some for a while, as the peer's kernel makes its buffer larger.
    """
    count = 0
    still = 0
    while still < 5:
        still += 1
        with contextlib.suppress(BlockingIOError):
            while True:
                kcm.send(message(bytes(size)), socket.MSG_DONTWAIT)
                count += 1
                still = 0
        time.sleep(0.1)
    return count


def deliver(far: socket.socket, near: socket.socket, data: bytes) -> None:
    """Send, and wait until the other end's TCP has it, which may be later than the send returns."""
    before = bytes_received(near.fileno())
    far.sendall(data)
    eventually(lambda: bytes_received(near.fileno()) == before + len(data))


def parsed(near: socket.socket) -> bool:
    """Whether KCM has looked at all that TCP has received."""
    return unparsed(near.fileno()) == 0


def ended(near: socket.socket) -> bool:
    """Whether TCP has received the connection's end, also that by a reset."""
    return near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in (TCP_CLOSE, TCP_CLOSE_WAIT)


@contextlib.contextmanager
def mostly_waiting(share: float = 0.1, who: int = resource.RUSAGE_THREAD) -> Iterator[None]:
    """Fail if the block uses more than a share of the CPU, or wakes up all the time.

    The share has to be loose: what a busy host takes from an emulated guest counts as the guest's.
    How often somebody woke is a sharp bound, which spinning does not exceed.
    """
    start, before = time.monotonic(), resource.getrusage(who)
    yield
    seconds, after = time.monotonic() - start, resource.getrusage(who)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    woken = after.ru_nvcsw - before.ru_nvcsw
    print(f"{used:.2f} s of CPU time in {seconds:.2f} s, woken {woken} times")
    assert used < share * seconds
    assert woken < 10 + 10 * seconds


def number_of_bytes(error: BaseException | str) -> int:
    """The number of bytes that an error or a warning speaks of."""
    match = re.search(r"(\d+) bytes", str(error))
    assert match, f"no number of bytes in {error}"
    return int(match[1])


def received_in_all(tcp: socket.socket) -> int:
    """How many bytes come until the connection ends, also by a reset."""
    tcp.settimeout(PATIENCE)
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while data := tcp.recv(1 << 20):
            count += len(data)
    return count


def reset(tcp: socket.socket) -> None:
    """Close a connection with a RST."""
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.close()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for a condition, and fail if it does not come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s"
        time.sleep(0.01)


def hold_up(mux: pykcm.Multiplexor, pair: Pair) -> pykcm.KCMSocket:
    """End a transport whose messages fill all KCM sockets, so that it can't be taken off.

    Returns:
        The clone that has to receive them first; the multiplexor's own socket does not.
    """
    near, far = pair
    worker = mux.clone()
    mux.socket.recv_disabled = True
    deliver(far, near, message(b"") * 20_000)
    far.close()
    eventually(lambda: ended(near))
    return worker


def is_contained() -> bool:
    """Whether this is a container: then the kernel loads modules as its host says, not as this."""
    thread = Path("/proc/2/comm")
    return not thread.exists() or thread.read_text(encoding="utf-8") != "kthreadd\n"
