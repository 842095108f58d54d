"""What `kcm connect` does between its first connection and its exit status."""

from __future__ import annotations

import collections
import contextlib
import datetime
import math
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable

import click

from pykcm import Multiplexor, bpf
from pykcm.cli import _bodies, _links
from pykcm.cli._answers import Answers
from pykcm.cli._lines import FORMATS, Lines
from pykcm.cli._outcome import Options, Outcome, say
from pykcm.errors import Disconnected
from pykcm.framing import Framing

# Seconds.
_PATIENCE = 10.0  # how long answers may take after the end of the input, if nothing is said
_FULL = 0.1  # how long a send waits for room before what has come in is looked at

_LONGEST_POLL = 1.0  # in seconds
_AHEAD = 64  # lines that are read before those ahead of them are sent


class Session:
    """The messages of one `kcm connect`.

    Args:
        options: the command line.
        framing: what tells the messages, where it is known in Python.
        delineation: what tells them in the kernel.
        lines: the messages to be sent, as lines.
        messages: messages to be sent before these.
    """

    def __init__(
        self,
        options: Options,
        framing: Framing | None,
        delineation: Framing | bpf.Program,
        lines: Lines,
        messages: Iterable[bytes],
    ) -> None:
        self._options = options
        self._framing = framing
        self._delineation = delineation
        self._lines = lines
        self._line = 0
        self._outbox = collections.deque(messages)
        self._decode, self._encode = FORMATS[options.format]
        self._answers = Answers(options.identity)
        self._listener: socket.socket | None = None
        self._peers: list[Multiplexor] = []
        self._back_off = _links.BackOff()
        self._accepted = 0
        self._over = False
        self._outcome = Outcome(options, self._answers)
        self._next_send = 0.0
        self._active = 0.0

    def run(self) -> int:
        """Send and receive until there is nothing more to do; the exit status."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            self._open()
            self._active = time.monotonic()
            stack.callback(lambda: self._outcome.report(self._unfinished()))
            self._work()
        return self._outcome.status(self._unfinished())

    def _work(self) -> None:
        while not self._done():
            self._step()

    # ---- connections ----

    def _open(self) -> None:
        options = self._options
        peer = self._new_peer()
        if options.listen:
            self._listener = _links.listener(options.host, options.port)
            say(f"listening on {_links.named(*self._listener.getsockname()[:2])}")
        elif not options.reconnect:
            for _ in range(options.connections):
                peer.attach(_links.dial(options.host, options.port), hand_over=True)
        if self._serves:
            peer.close()  # it has shown that a Multiplexor can be made
            self._peers.remove(peer)

    @property
    def _serves(self) -> bool:
        """Whether each connection is another peer, to which its own answers go."""
        return self._options.listen and bool(self._options.execute)

    def _new_peer(self) -> Multiplexor:
        peer = Multiplexor(self._delineation, queue_unattached=self._options.reconnect)
        peer.on_disconnect = self._outcome.ended
        self._peers.append(peer)
        return peer

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            tcp, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        self._accepted += 1
        peer = self._new_peer() if self._serves else self._peers[0]
        peer.attach(tcp, hand_over=True)
        if not self._serves and self._accepted == self._options.connections:
            self._listener.close()
            self._listener = None

    def _connect_again(self) -> None:
        (peer,) = self._peers
        try:
            for _ in range(self._options.connections - len(peer.transports)):
                tcp = _links.dial(self._options.host, self._options.port)
                peer.attach(tcp, hand_over=True)
        except click.ClickException as error:
            self._back_off.failed()
            say(f"{error.message}; again in {self._back_off.pause:.1f} s")
        else:
            self._back_off.worked()

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for peer in self._peers:
            peer.close()

    # ---- the loop ----

    def _done(self) -> bool:
        options = self._options
        if self._over or (options.limit is not None and self._answers.received >= options.limit):
            return True
        if options.execute or not self._lines.ended or self._outbox:
            return False
        if options.listen and options.wait is None:
            return False  # it is the peer that ends it
        if options.wait is None and options.limit is None and not self._answers.outstanding:
            return True
        return time.monotonic() >= self._deadline()

    def _unfinished(self) -> bool:
        """Whether something was still to be sent."""
        return bool(self._outbox or not self._lines.ended)

    def _deadline(self) -> float:
        """When the wait for answers ends."""
        options = self._options
        if options.wait is None:
            endless = options.listen or options.limit is not None
            return math.inf if endless else self._active + _PATIENCE
        return self._active + options.wait

    def _step(self) -> None:
        poll = select.poll()
        by_fd = {peer.fileno(): peer for peer in self._peers}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        if self._listener is not None:
            poll.register(self._listener, select.POLLIN)
        if self._reads_input():
            assert self._lines.fd is not None
            poll.register(self._lines.fd, select.POLLIN)
        # A signal that comes just before poll(2) does not end it: so it never lasts long.
        left = min(self._again() - time.monotonic(), _LONGEST_POLL)
        ready = dict(poll.poll(max(0, math.ceil(1000 * left))))
        for fd, peer in by_fd.items():
            if fd in ready:
                self._receive(peer)
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept()
        if self._lines.fd in ready and self._reads_input():
            self._read_input()
        if self._options.reconnect and time.monotonic() >= self._back_off.due:
            self._connect_again()
        self._send()

    def _again(self) -> float:
        """When there is something to do though nothing came in."""
        times = [math.inf]
        if self._outbox and self._can_send():
            times.append(self._next_send)
        if self._options.reconnect:
            lacking = self._options.connections - len(self._peers[0].transports)
            times.append(self._back_off.due if lacking else math.inf)
        if self._lines.ended and not self._outbox and not self._options.execute:
            times.append(self._deadline())
        return min(times)

    def _can_send(self) -> bool:
        return bool(self._options.reconnect or (self._peers and self._peers[0].transports))

    def _reads_input(self) -> bool:
        return (
            not self._options.execute
            and not self._lines.ended
            and len(self._outbox) < _AHEAD
            and self._can_send()
        )

    def _read_input(self) -> None:
        for line in self._lines.read():
            self._line += 1
            try:
                self._outbox.append(self._message(self._decode(line)))
            except ValueError as error:
                self._outcome.wrong(f"line {self._line}: {error}")

    def _message(self, data: bytes) -> bytes:
        """The message that is to be sent for what was given.

        Raises:
            ValueError: it is none.
        """
        if self._framing is None:
            return data
        if self._options.body:
            return _bodies.wrap(self._framing, data)
        try:
            return _bodies.whole(self._framing, data)
        except NotImplementedError:  # a program by hand, which only the kernel can run
            return data

    def _send(self) -> None:
        while self._outbox and self._can_send() and time.monotonic() >= self._next_send:
            message = self._outbox[0]
            self._answers.going(message)
            try:
                self._peers[0].send(message, timeout=_FULL)
            except TimeoutError:  # no room: what came in meanwhile first
                self._answers.not_gone(message)
                return
            except Disconnected:
                self._answers.not_gone(message)
                self._over = True
                return
            self._outbox.popleft()
            self._active = time.monotonic()
            if self._options.rate:
                self._next_send = max(self._next_send, self._active) + 1 / self._options.rate

    def _receive(self, peer: Multiplexor) -> None:
        try:
            messages = peer.recv_many(timeout=0)
        except TimeoutError:
            return  # only a connection's end was there to be seen
        except Disconnected:
            self._gone(peer)
            return
        self._active = time.monotonic()
        limit = self._options.limit
        for message in messages:
            if limit is not None and self._answers.received >= limit:
                break
            self._answers.came(message)
            if self._options.execute:
                self._answer(peer, message)
            else:
                self._print(message)
        sys.stdout.flush()

    def _gone(self, peer: Multiplexor) -> None:
        if self._serves:
            self._peers.remove(peer)
            peer.close()
        elif not self._options.reconnect and self._listener is None:
            self._over = True

    def _print(self, message: bytes) -> None:
        stamp = f"{datetime.datetime.now():%H:%M:%S.%f} " if self._options.times else ""
        sys.stdout.write(f"{stamp}{self._encode(self._shown(message))}\n")

    def _shown(self, message: bytes) -> bytes:
        if self._options.body and self._framing is not None:
            return _bodies.unwrap(self._framing, message)
        return message

    def _answer(self, peer: Multiplexor, message: bytes) -> None:
        """Run the command on a message, and send what it writes back."""
        command = self._options.execute
        result = subprocess.run(
            command, input=self._shown(message), stdout=subprocess.PIPE, check=False
        )
        if result.returncode:
            self._outcome.wrong(
                f"{command[0]}: exit status {result.returncode}; nothing is answered"
            )
        elif result.stdout:
            try:
                answer = self._message(result.stdout)
            except ValueError as error:
                self._outcome.wrong(f"{command[0]}: its answer is no message: {error}")
                return
            try:
                peer.send(answer, timeout=_PATIENCE)
            except TimeoutError:
                self._outcome.wrong("a peer does not read its answers; one is dropped")
            except Disconnected:
                pass  # which the next receive tells
