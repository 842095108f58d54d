"""A round of a stress: one multiplexor, from its first socket to its last, and what came of it."""

from __future__ import annotations

import errno
import mmap
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from pykcm import bpf
from pykcm import statistics as stat
from pykcm.selftest.check import Failure
from pykcm.selftest.lab import DGRAM, SEQPACKET, Lab
from pykcm.selftest.stress import peers, receivers, senders
from pykcm.selftest.stress.shared import CONNECTED, DRAINING, RUNNING, SENT, TICK, Process, Shared

#: Seconds that each part of a round's end may take.
ENDING = 60.0

_NO_DESCRIPTOR = 987_654


class Round:
    """One multiplexor, from its first socket to its last."""

    def __init__(self, lab: Lab, seed: str, rough: bool, programs: dict[int, bpf.Program]) -> None:
        self._lab = lab
        self._seed = seed
        self._programs = programs
        self._rng = random.Random(seed)
        self._kcm = lab.kcm(self._rng.choice([DGRAM, SEQPACKET]))
        self._listener = lab.keep(socket.create_server(("127.0.0.1", 0), backlog=64))
        self._listener.settimeout(TICK)
        self._phase = lab.keep(mmap.mmap(-1, 1))
        self._shared = Shared(
            lab,
            self._kcm,
            self._listener.getsockname(),
            seed,
            tuple(sorted(programs)),
            rough,
            self._phase,
        )
        # What the TCP socket still had after the unattaching; None if it was reset.
        self._tails: dict[int, bytes | None] = {}
        self._wrong: list[str] = []
        self._accepting = True

    def run(self, seconds: float) -> Counter[str]:
        """Do it, and count what was done."""
        shared = self._shared
        self._phase[0] = RUNNING
        self._lab.set_receive_disabled(self._kcm, self._rng.randrange(2))
        sending = [Process(shared, f"sender {n}", senders.sender(n)) for n in range(2)]
        connecting = [Process(shared, f"peer {n}", peers.peer(n, 3)) for n in range(2)]
        receiving = [Process(shared, f"receiver {n}", receivers.receiver(n)) for n in range(2)]
        threads = [threading.Thread(target=work) for work in (self._accept, self._disturb)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self._phase[0] = SENT
        sent = self._results(sending)
        self._phase[0] = CONNECTED
        connected = self._results(connecting)
        self._accepting = False
        for thread in threads:
            thread.join()
        self._phase[0] = DRAINING
        received = self._results(receiving)
        messages = [tuple(message) for found in received for message in found["received"]]
        self._wrong += [text for found in received for text in found["wrong"]]
        if not self._wrong:
            receivers.drain(shared, messages, self._wrong)
        connections = [each for found in connected for each in found["connections"]]
        accepted = {int(n): c for found in sent for n, c in found["accepted"].items()}
        self._compare_incoming(connections, Counter(messages))
        self._compare_outgoing(connections, accepted)
        if self._wrong:
            many = f"\nand {len(self._wrong) - 8} more" if len(self._wrong) > 8 else ""
            raise Failure(f"round {self._seed}\n" + "\n".join(self._wrong[:8]) + many)
        return Counter(
            connections=len(connections),
            clones=sum(found["clones"] for found in (*sent, *received)),
            received=len(messages),
            sent=sum(accepted.values()),
        )

    def _results(self, processes: Iterable[Process]) -> list[dict[str, Any]]:
        found = []
        for process in processes:
            result = process.result(ENDING)
            if "broken" in result:
                self._wrong.append(f"{process.name}: {result['broken']}")
            else:
                found.append(result)
        return found

    # --- what the process with the multiplexor does

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            self._wrong.append(f"{work.__name__}: {type(error).__name__}: {error}")

    def _accept(self) -> None:
        """Take connections, each in a thread of its own."""
        threads = []
        while self._accepting:
            try:
                near = self._listener.accept()[0]
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._guarded, args=(self._serve, near))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def _serve(self, near: socket.socket) -> None:
        """Attach a connection, unattach it some time later, and read what is left of its stream."""
        calls = self._lab.calls
        with near:
            hello = self._lab.stream(near, peers.HELLO.size)
            if len(hello) < peers.HELLO.size:
                return  # it was reset before
            name, body = peers.HELLO.unpack(hello)
            rng = self._shared.random(name, "near")
            self._tails[name] = None
            try:
                self._lab.attach(self._kcm, near, self._programs[body])
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                return  # it was reset meanwhile
            end = time.monotonic() + rng.uniform(0, 1.0)
            while time.monotonic() < end and self._shared.until(CONNECTED):
                if calls.poll(near.fileno(), 0, TICK) & select.POLLERR:
                    break
            time.sleep(rng.uniform(0, TICK))
            self._lab.unattach(self._kcm, near)
            self._tails[name] = self._tail(near)

    def _tail(self, near: socket.socket) -> bytes | None:
        """What the TCP stream still has, until its end."""
        self._lab.calls.tcp_error(near)  # KCM has left EPIPE there
        tail = bytearray()
        near.settimeout(self._lab.patience)
        try:
            near.shutdown(socket.SHUT_WR)
            while piece := near.recv(1 << 16):
                tail += piece
        except TimeoutError:
            raise
        except OSError:
            return None
        return bytes(tail)

    def _disturb(self) -> None:
        """What must not change anything: wrong calls, looks into /proc, clones that do nothing."""
        rng = self._shared.random("disturb")
        while self._shared.until(CONNECTED):
            self._guarded(rng.choice((self._look, self._refused_calls, self._idle_clone)))
            time.sleep(rng.uniform(0, TICK))

    def _look(self) -> None:
        stat.parse_multiplexors(self._lab.calls.proc("kcm"))
        stat.parse_totals(self._lab.calls.proc("kcm_stats"))

    def _refused_calls(self) -> None:
        calls, kcm = self._lab.calls, self._kcm.fileno()
        self._lab.refused("attach", errno.ENOENT, calls.attach, kcm, _NO_DESCRIPTOR, 0)
        self._lab.refused("unattach", errno.ENOENT, calls.unattach, kcm, self._listener.fileno())

    def _idle_clone(self) -> None:
        with self._lab.clone(self._kcm) as clone:
            self._lab.set_receive_disabled(clone, 1)

    # --- what must come of it

    def _compare_incoming(
        self, connections: list[dict[str, Any]], received: Counter[tuple[int, ...]]
    ) -> None:
        """Each connection's messages came once, the first ones of its stream and no others."""
        counts: dict[int, int] = {}
        for (name, number), times in sorted(received.items()):
            if times != 1 or number != counts.get(name, 0):
                self._wrong.append(
                    f"connection {name:#x}: message {number} came {times} times, after "
                    f"{counts.get(name, 0)} others"
                )
                return
            counts[name] = number + 1
        for connection in connections:
            name, written = connection["name"], connection["written"]
            if connection["wrong"]:
                self._wrong.append(f"connection {name:#x}: its peer read damaged messages")
            sizes = list(map(len, peers.messages(self._shared, name)))
            count = counts.pop(name, 0)
            delivered = sum(sizes[:count])
            tail = self._tails.get(name)
            if delivered > written:
                self._wrong.append(f"connection {name:#x}: {delivered} bytes of {written} came")
            elif tail is not None and connection["end"] != "reset":
                data = b"".join(peers.messages(self._shared, name))[:written]
                lost = written - delivered - len(tail)
                # One message, or a part of it, that no socket had room for.
                most = sizes[count] if count < len(sizes) else 0
                if not (0 <= lost <= most and data.endswith(tail)):
                    self._wrong.append(
                        f"connection {name:#x}: of {written} bytes {delivered} were delivered and "
                        f"{len(tail)} left; {lost} are lost, where up to {most} may be"
                    )
            elif not self._shared.rough:
                self._wrong.append(f"connection {name:#x} was reset")
        if counts:
            self._wrong.append(f"messages came of connections that nobody made: {counts}")

    def _compare_outgoing(
        self, connections: list[dict[str, Any]], accepted: dict[int, int]
    ) -> None:
        """Each message that was taken came to one peer, once."""
        read = Counter(tuple(message) for each in connections for message in each["read"])
        doubled = [message for message, times in read.items() if times > 1]
        strange = [message for message in read if message[1] >= accepted.get(message[0], 0)]
        if doubled or strange:
            self._wrong.append(
                f"peers read messages twice: {doubled[:5]}, or such as nobody sent: {strange[:5]}"
            )
        missing = sum(accepted.values()) - len(read)
        if missing and not self._shared.rough:
            self._wrong.append(
                f"{missing} of {sum(accepted.values())} sent messages came to nobody"
            )
