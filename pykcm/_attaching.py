"""Making a TCP connection a transport: its program, what is set on it, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import socket as _socket
from typing import TYPE_CHECKING, Any, TypeAlias

from pykcm import _explain, _kernel, _tcp, _trials
from pykcm._forking import lock
from pykcm._wait import explained
from pykcm.errors import ArgumentError, AttachError, KCMOSError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykcm import bpf
    from pykcm._messages import Port
    from pykcm.framing import Framing
    from pykcm.socket import KCMSocket

#: What tells where messages end: a framing, a loaded program, or its descriptor.
Delineation: TypeAlias = "Framing | bpf.Program | int"

#: The kernel's messages are no longer (an int); Python's recv takes no larger bufsize either.
LARGEST_MESSAGE = (1 << 31) - 2


class Attaching:
    """How a KCM socket attaches connections."""

    def __init__(self) -> None:
        self._program: tuple[Framing, int, bpf.Program] | None = None
        # What transports were attached with, each once; unused once super messages are divided.
        self._delineations: list[Delineation] = []
        #: Whether the multiplexor has other sockets, which do not know what is divided here.
        self.has_siblings = False

    def delineate(self, framing: Delineation, batch: int = 1) -> tuple[int, int | None]:
        """A program's descriptor, and the longest message if it is known.

        A framing's program is loaded once: the verifier takes long over some.  Another thread may
        close it, unless the lock is held.
        """
        from pykcm.framing.base import check_batch

        max_length = longest_message(framing)
        check_batch(batch)
        if isinstance(framing, int):
            return framing, max_length
        from pykcm import bpf

        if isinstance(framing, bpf.Program):
            return framing.fd, max_length
        if self._program is None or self._program[:2] != (framing, batch):
            program = framing.load(batch=batch)
            with lock:
                self.close()
                self._program = framing, batch, program
        return self._program[2].fd, max_length

    def get_ready(self, type: int, framing: Delineation, batch: int) -> None:
        """Do what takes long, before the lock is taken to attach."""
        with explained():
            self.delineate(framing, batch)
            if type == _socket.SOCK_SEQPACKET:
                _trials.seqpacket_keeps_the_rest()

    @contextlib.contextmanager
    def dividing(self, port: Port, framing: Delineation, batch: int, done: Any) -> Iterator[None]:
        """As `divide`, for an attach: nothing is changed if that fails."""
        before, delineations = (port.rule, port.most), list(self._delineations)
        self.divide(port, framing, batch)
        try:
            yield
        finally:
            if not done[0]:
                port.set_rule(*before)
                self._delineations = delineations

    def divide(self, port: Port, framing: Delineation, batch: int) -> None:
        """Have a Port divide the super messages that transports bring, if any do.

        A message tells no connection, so that all transports must be divided alike, and by each
        socket of the multiplexor.

        Raises:
            ArgumentError: they would not be.
            FramingDefinitionError: the framing has no such batch.
        """
        from pykcm.framing import Framing

        if batch == 1 and port.rule is None:
            if framing not in self._delineations:
                self._delineations.append(framing)
            return
        if not isinstance(framing, Framing):
            raise ArgumentError(
                "framing",
                "must be a Framing where super messages are divided, not a program",
            )
        longest = framing.batch_bytes(batch)
        rule = framing.memory_program()
        if port.rule is not None and port.rule != rule:
            raise ArgumentError(
                "framing",
                f"this socket divides super messages of another framing than {framing!r}; attach "
                "the connection to a multiplexor of its own",
            )
        if batch <= port.most:
            return
        if self.has_siblings or port.shared or port.forked:
            raise ArgumentError(
                "batch",
                "other sockets or processes have this multiplexor, and would not divide super "
                "messages; attach with the largest batch before the first clone, duplicate or "
                "fork, or name it to from_fd",
            )
        if any(other != framing for other in self._delineations):
            raise ArgumentError(
                "batch", "a transport was attached with another framing, which is not divided alike"
            )
        port.make_room(min(longest, LARGEST_MESSAGE) + 1)
        port.set_rule(rule, batch)

    def attach(
        self,
        kcm: KCMSocket,
        tcp_fd: int,
        program_fd: int,
        max_length: int | None,
        allow_small_buffer: bool,
        options: _tcp.Options,
        done: Any,
    ) -> None:
        """Attach a descriptor.

        Args:
            options: they are set on it, and set back if it is not attached.
            done: an `int[1]`, set to 1 when it is attached, whatever exception comes then.
        """
        try:
            _trials.refuse_unfit(tcp_fd)
            try:
                options.prepare(tcp_fd)
                if max_length is None:
                    # The kernel refuses a message longer than the buffer, so that this is a bound
                    # also for a program that states none.
                    longest = _tcp.longest_message(tcp_fd)
                else:
                    longest = max_length
                    room = _tcp.make_room(tcp_fd, max_length)
                    if room < max_length and not allow_small_buffer:
                        raise AttachError(
                            errno.ENOBUFS,
                            f"the receive buffer of TCP socket {tcp_fd} cannot take the framing's "
                            f"longest message, {max_length} bytes, but only {room}; lower the "
                            "framing's max_length, raise net.ipv4.tcp_rmem or net.core.rmem_max, "
                            "or pass allow_small_buffer=True",
                        )
                if kcm.type == _socket.SOCK_SEQPACKET:
                    kcm._port.keeps_rest = _trials.seqpacket_keeps_the_rest()
                kcm._port.make_room(min(longest, LARGEST_MESSAGE) + 1)
                _kernel.attach(kcm._fd(), tcp_fd, program_fd, done)
            except BaseException:
                if not done[0]:
                    options.restore(tcp_fd)
                raise
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            raise _explain.explain(
                error, _explain.ATTACH, tcp=tcp_fd, program=program_fd
            ) from error

    def close(self) -> None:
        """Close the program that was loaded; the transports keep it."""
        if self._program is not None:
            self._program[2].close()


def longest_message(framing: Delineation) -> int | None:
    """The longest message in bytes, as a framing has it; None for a program, which does not tell.

    Raises:
        ArgumentError: it is neither.
    """
    from pykcm.framing import Framing

    if isinstance(framing, Framing):
        return framing.max_length
    from pykcm import bpf

    if isinstance(framing, (bpf.Program, int)):
        return None
    raise ArgumentError(
        "framing",
        f"must be a Framing, a bpf.Program or a program's descriptor, not {framing!r}; "
        "pykcm.protocols has framings by name",
    )


def number_of(tcp: _socket.socket | int) -> int:
    """A TCP socket's descriptor.

    Raises:
        AttachError: ENOENT, it is closed, or cannot be a descriptor.
    """
    fd = -1
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        fd = tcp if isinstance(tcp, int) else tcp.fileno()
    if not 0 <= fd < 1 << 31:
        raise AttachError(errno.ENOENT, f"{tcp!r} is not an open socket")
    return fd


def descriptor_of(tcp: _socket.socket | int) -> int:
    """A TCP socket's descriptor, by which it is attached.

    Raises:
        AttachError: ENOENT, see `number_of`; EOPNOTSUPP, it has TLS that is not the kernel's.
    """
    fd = number_of(tcp)
    # ssl.SSLSocket and its like, whose plain text the kernel never sees.
    if hasattr(tcp, "pending") and _tcp.upper_protocol(fd) != "tls":
        raise AttachError(
            errno.EOPNOTSUPP,
            f"TCP socket {fd} has TLS in user space, and KCM would take its ciphertext for "
            "messages; attach a connection with kernel TLS (Linux 6.6 or later), or one to a "
            "proxy that ends the TLS",
        )
    return fd
