"""`KCMSocket`: one AF_KCM descriptor, whole messages in and out, nothing lost in silence."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import socket as _socket
import sys
import weakref
from typing import TYPE_CHECKING

from pykcm import _explain, _kernel, _tcp, _trials
from pykcm._attaching import LARGEST_MESSAGE, Attaching, Delineation, descriptor_of, number_of
from pykcm._binding import lib
from pykcm._closing import Closing
from pykcm._following import Following
from pykcm._forking import lock
from pykcm._messages import Port, late_with
from pykcm._wait import IDLE, Readable, SendSpace, Steps, Wait, explained
from pykcm.errors import (
    ArgumentError,
    KCMOSError,
    UnavailableError,
)

if TYPE_CHECKING:
    from typing_extensions import Self


DEFAULT_MAX_MESSAGE_SIZE = 1 << 20


class KCMSocket(Closing, Following):
    """A KCM socket: a `socket.socket` on which every send and receive is one whole message.

    Time-outs, blocking mode, selectors, `fileno` and `with` work as for any socket; `async with`
    and `async for` too.  One socket may be used by several threads: each message goes to one of
    them, whole.  Of tasks, one at a time can wait.

    Args:
        type: SOCK_DGRAM or SOCK_SEQPACKET; with pykcm both carry whole messages.
        max_message_size: the longest message in bytes that a receive has room for.  Attaching
            raises it to the framing's maximum.

    Raises:
        UnavailableError: this kernel has no AF_KCM, or this platform is not Linux.
        KCMOSError: the type is another, or the kernel refused.
        ArgumentError: max_message_size is not an integer from 1 to 2**31 - 2.

    Source: net/kcm/kcmsock.c, Documentation/networking/kcm.rst.
    """

    def __init__(
        self,
        type: int = _socket.SOCK_DGRAM,
        *,
        max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
        _fileno: int | None = None,
    ) -> None:
        room = _room_for(max_message_size)
        # A socket that `clone` makes of this Multiplexor's is told of the end by this descriptor.
        self._end: _kernel.Descriptor | None = None
        self._attaching = Attaching()
        self._options: dict[int, _tcp.Options] = {}
        self._same: list[weakref.ref[Closing]] = []
        # Readable while messages wait in this object, which super messages bring.
        self._told: _kernel.Descriptor | None = None
        self._all: Readable | None = None
        self._port = Port(-1, type == _socket.SOCK_SEQPACKET, room)
        try:
            super().__init__(lib.AF_KCM, type, lib.KCMPROTO_CONNECTED, _fileno)
        except UnavailableError:
            raise
        except OSError as error:
            raise _explain.explain(error, _explain.OPEN) from error
        self._port.fd = self.fileno()
        if "multiprocessing.reduction" in sys.modules:
            from pykcm import _pickling

            _pickling.register(KCMSocket)

    @classmethod
    def from_fd(
        cls,
        fd: int,
        *,
        max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
        framing: Delineation | None = None,
        batch: int = 1,
    ) -> Self:
        """Take up a descriptor of a KCM socket, such as one received over a Unix socket.

        Args:
            fd: the descriptor; it belongs to the new object, unless this call raises.
            max_message_size: the longest message of the framings in use.
            framing, batch: with what transports were attached, if in batches.  Without them super
                messages come undivided.

        Raises:
            ArgumentError: batch is not 1 and there is no framing, or it is a program.
            KCMOSError: it is not a descriptor (EBADF), or not a KCM socket (ENOTSOCK,
                EAFNOSUPPORT).
        """
        try:
            number = operator.index(fd)
            family = _kernel.get_integer(number, _socket.SOL_SOCKET, _socket.SO_DOMAIN)
            type_ = _kernel.get_integer(number, _socket.SOL_SOCKET, _socket.SO_TYPE)
        except (OSError, TypeError, OverflowError) as error:
            raise KCMOSError(
                getattr(error, "errno", None) or errno.EBADF,
                f"descriptor {fd!r} is not an open socket",
            ) from error
        if family != lib.AF_KCM:
            raise KCMOSError(
                errno.EAFNOSUPPORT, f"descriptor {fd} is not a KCM socket (its family is {family})"
            )
        keeps = type_ == _socket.SOCK_SEQPACKET and _trials.seqpacket_keeps_the_rest()
        self = cls.__new__(cls)  # before it has the descriptor, so that it can let go of it
        try:
            self.__init__(type_, max_message_size=max_message_size, _fileno=number)  # type: ignore[misc]
            self._port.keeps_rest = keeps
            if framing is not None or batch != 1:
                self._attaching.divide(self._port, framing, batch)  # type: ignore[arg-type]
                self._have_told()
            self._port.shared = self._attaching.has_siblings = True
            return self
        except BaseException:
            self._disown()
            raise

    def __repr__(self) -> str:
        type_ = getattr(self.type, "name", self.type)
        state = "closed" if self._port.fd < 0 else f"fd={self._port.fd}"
        return f"<{type(self).__module__}.{type(self).__name__} {state} type={type_}>"

    @property
    def max_message_size(self) -> int:
        """The longest message in bytes that a receive has room for; may be set."""
        return self._port.room - 1

    @max_message_size.setter
    def max_message_size(self, value: int) -> None:
        self._port.room = _room_for(value)

    # ---- the multiplexor ----

    def attach(
        self,
        tcp: _socket.socket | int,
        framing: Delineation,
        *,
        batch: int = 1,
        allow_small_buffer: bool = False,
    ) -> None:
        """Make a TCP connection a transport of this socket's multiplexor (SIOCKCMATTACH).

        The TCP socket stays open and the caller's; nothing else may read from or write to it
        while it is attached.  Its receive buffer is made large enough for the framing's longest
        message, since the kernel refuses a longer one than the buffer, and stalls on one that
        does not fit into the window.  SO_RCVLOWAT and SO_OOBINLINE are set to 1, and put back by
        `unattach`.

        Args:
            tcp: a connected TCP socket, or its descriptor.
            framing: a `Framing`, a loaded `bpf.Program`, or a program's descriptor.
            batch: how many messages the kernel may hand over as one, a super message, which is
                divided here; and how many `send_many` joins.  All transports then have one
                framing, and the first is attached before the first clone.
            allow_small_buffer: attach also when the receive buffer cannot be made large enough.

        Raises:
            AttachError: ENOENT (not a socket), EBADF or EINVAL (not a socket filter program),
                EOPNOTSUPP (not a connected TCP socket, or one with TLS that this kernel would not
                decrypt, or with Python's ssl), ENOTCONN (still connecting), EALREADY (attached
                already, to any multiplexor), ENOBUFS (the receive buffer is too small for the
                framing's maximum).
            CapabilityError, UnavailableError, VerifierError: the framing's program could not be
                loaded; see `Framing.load`.
            FramingDefinitionError: the framing has no such batch, or the verifier takes none.
            ArgumentError: the multiplexor's messages could not all be divided alike.
        """
        self._fd()
        tcp_fd = descriptor_of(tcp)
        self._attaching.get_ready(self.type, framing, batch)
        with lock:
            self._attach(tcp_fd, framing, batch, allow_small_buffer)

    def _attach(
        self, tcp_fd: int, framing: Delineation, batch: int, allow_small_buffer: bool
    ) -> None:
        program_fd, max_length = self._attaching.delineate(framing, batch)
        cookie = None
        with contextlib.suppress(OSError):
            cookie = _tcp.cookie(tcp_fd)
        options, done = _tcp.Options(), _kernel.integer()
        try:
            with self._attaching.dividing(self._port, framing, batch, done):
                self._have_told()
                self._attaching.attach(
                    self, tcp_fd, program_fd, max_length, allow_small_buffer, options, done
                )
        finally:
            if done[0] and cookie is not None:
                self._options[cookie] = options

    def unattach(self, tcp: _socket.socket | int) -> None:
        """Take a TCP connection off the multiplexor (SIOCKCMUNATTACH).

        The kernel drops a message that is complete but waits for a KCM socket with room, and one
        that is partly received; and a message that is being sent on the connection is cut there.
        `Multiplexor.unattach` waits for the one and sees to the other.

        Raises:
            AttachError: ENOENT (not a socket, or not attached to this multiplexor), EALREADY (being
                unattached by somebody else).
        """
        tcp_fd = number_of(tcp)
        try:
            _kernel.unattach(self._fd(), tcp_fd)
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            raise _explain.explain(error, _explain.UNATTACH, tcp=tcp_fd) from error
        with contextlib.suppress(OSError):
            before = self._options.pop(_tcp.cookie(tcp_fd), None)
            if before is not None:
                before.restore(tcp_fd)

    def clone(self) -> KCMSocket:
        """A new socket on the same multiplexor (SIOCKCMCLONE), close-on-exec.

        Messages that arrive are shared out between the multiplexor's sockets.

        Raises:
            KCMOSError: EMFILE or ENFILE (too many descriptors).
        """
        self._fd()
        end = self._end_again()
        other = KCMSocket(self.type, max_message_size=self.max_message_size)
        try:
            # In the place of a descriptor that has its owner already.
            _kernel.clone_onto(self._fd(), other.fileno())
        except OSError as error:
            other.close()
            raise _explain.explain(error, _explain.CLONE) from error
        other._port.keeps_rest = self._port.keeps_rest
        self._have_divided_by(other)
        if end is not None:
            other._follow(end, self._made)
        return other

    def dup(self) -> Self:
        """The same socket through another descriptor, close-on-exec."""
        self._fd()
        end = self._end_again()
        other = type(self)(self.type, max_message_size=self.max_message_size)
        os.dup2(self._fd(), other.fileno(), inheritable=False)
        other.settimeout(self.gettimeout())
        other._port.keeps_rest = self._port.keeps_rest
        self._have_divided_by(other)
        if end is not None:
            other._follow(end, self._made)
        self._port.shared = other._port.shared = True
        with lock:
            self._count_in(other)
        return other

    def fileno(self) -> int:
        """The descriptor, -1 when the socket is closed.

        Where super messages are divided it is not the KCM socket's own, but one for `select` and
        event loops, which is readable also while messages wait in this object, and never writable.
        The own one is what `dup().detach()` returns.
        """
        port = self._port
        if port.rule is None or port.bound or port.fd < 0:
            return super().fileno()
        port.tell()
        with lock:
            self._have_told()
            if self._all is None:
                self._all = Readable(port.fd, port.told)
        port.observed = True
        port.tell()
        return self._all.fileno()

    def get_inheritable(self) -> bool:
        """As for `socket.socket`."""
        return os.get_inheritable(self._fd())

    def set_inheritable(self, inheritable: bool) -> None:
        """As for `socket.socket`."""
        os.set_inheritable(self._fd(), inheritable)

    def _have_told(self) -> None:
        """Have a descriptor that tells of messages in this object, where super messages bring some.

        After a fork it is another: the inherited one is the parent's too.
        """
        if self._port.rule is not None and self._port.told < 0:
            with explained():
                self._told = _kernel.Descriptor.event()
            self._all = None
            self._port.told = self._told.fileno()

    def _have_divided_by(self, other: KCMSocket) -> None:
        """Another socket of the multiplexor divides as this one does."""
        other._divide_by(self._port.rule, self._port.most)
        self._attaching.has_siblings = True

    def _divide_by(self, rule: bytes | None, most: int) -> None:
        """Divide super messages as a sibling does, or as none does."""
        if rule is not None:
            self._port.set_rule(rule, most)
            self._have_told()
        self._attaching.has_siblings = True

    @property
    def recv_disabled(self) -> bool:
        """Whether the multiplexor gives this socket no messages (KCM_RECV_DISABLE).

        Setting it to True hands what is queued here to the multiplexor's other sockets.
        """
        return bool(_kernel.get_integer(self._fd(), lib.SOL_KCM, lib.KCM_RECV_DISABLE))

    @recv_disabled.setter
    def recv_disabled(self, value: bool) -> None:
        self._port.disable(value)

    def _receive_steps(self) -> Steps[None]:
        port = self._port
        others = [fd for fd in (port.told, port.watch) if fd >= 0]
        if not others:
            yield from self._until_readable(self._fd())
        port.observed = True
        port.tell()
        readable = Readable(self._fd(), *others)  # goes with this generator
        yield from self._until_readable(readable.fileno())

    def _send_steps(self) -> Steps[None]:
        end = () if self._end is None else (self._end.fileno(),)
        for wait in SendSpace(self._fd(), *end).waits():
            yield wait
            self._look()

    def _flush_steps(self) -> Steps[None]:
        if not self._push():
            return
        with SendSpace(self._fd()) as space:
            left = 0
            try:
                while True:
                    if not (left := self._push()):
                        return
                    yield Wait(space.fileno(), IDLE)
                    space.clear()
            except TimeoutError:
                raise late_with(left) from None


def _room_for(size: int) -> int:
    try:
        number = operator.index(size)
    except TypeError:
        number = 0
    if not 1 <= number <= LARGEST_MESSAGE:
        raise ArgumentError(
            "max_message_size", f"must be an integer from 1 to {LARGEST_MESSAGE}, not {size!r}"
        )
    return number + 1
