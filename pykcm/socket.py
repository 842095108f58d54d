"""`KCMSocket`: one AF_KCM descriptor, whole messages in and out, nothing lost in silence."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import socket as _socket
import sys
import warnings
import weakref
from typing import TYPE_CHECKING

from pykcm import _kernel, _tcp
from pykcm._attaching import LARGEST_MESSAGE, Attaching, Delineation, descriptor_of
from pykcm._binding import lib
from pykcm._messages import Messages, Port, late_with
from pykcm._standard import StandardCalls
from pykcm._wait import SendSpace, Steps, Wait
from pykcm.errors import (
    ArgumentError,
    Disconnected,
    KCMOSError,
    UnavailableError,
    UnsentWarning,
)

if TYPE_CHECKING:
    from typing_extensions import Self


DEFAULT_MAX_MESSAGE_SIZE = 1 << 20


class KCMSocket(Messages, StandardCalls):
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
        self._same: weakref.WeakSet[KCMSocket] | None = None
        self._port = Port(-1, type == _socket.SOCK_SEQPACKET, room)
        try:
            super().__init__(lib.AF_KCM, type, lib.KCMPROTO_CONNECTED, _fileno)
        except UnavailableError:
            raise
        except OSError as error:
            from pykcm import _explain

            raise _explain.explain(error, _explain.OPEN) from error
        self._port.fd = self.fileno()
        if "multiprocessing.reduction" in sys.modules:
            from pykcm import _pickling

            _pickling.register(KCMSocket)

    @classmethod
    def from_fd(cls, fd: int, *, max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE) -> Self:
        """Take up a descriptor of a KCM socket, such as one received over a Unix socket.

        Args:
            fd: the descriptor; it belongs to the new object, unless this call raises.
            max_message_size: the longest message of the framings in use.

        Raises:
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
        if type_ == _socket.SOCK_SEQPACKET:
            from pykcm import _trials

            keeps = _trials.seqpacket_keeps_the_rest()
        else:
            keeps = False
        self = cls(type_, max_message_size=max_message_size, _fileno=number)
        self._port.shared = True
        self._port.keeps_rest = keeps
        return self

    def __repr__(self) -> str:
        type_ = getattr(self.type, "name", self.type)
        state = "closed" if self.fileno() < 0 else f"fd={self.fileno()}"
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
            allow_small_buffer: attach also when the receive buffer cannot be made large enough.

        Raises:
            AttachError: ENOENT (not a socket), EBADF or EINVAL (not a socket filter program),
                EOPNOTSUPP (not a connected TCP socket, or one with TLS that this kernel would not
                decrypt), ENOTCONN (still connecting), EALREADY (attached already, to any
                multiplexor), ENOBUFS (the receive buffer is too small for the framing's maximum).
            CapabilityError, UnavailableError, VerifierError: the framing's program could not be
                loaded; see `Framing.load`.
        """
        self._fd()
        tcp_fd = descriptor_of(tcp)
        program_fd, max_length = self._attaching.delineate(framing)
        cookie = None
        with contextlib.suppress(OSError):
            cookie = _tcp.cookie(tcp_fd)
        options, done = _tcp.Options(), _kernel.integer()
        try:
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
        tcp_fd = descriptor_of(tcp)
        try:
            _kernel.unattach(self._fd(), tcp_fd)
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            from pykcm import _explain

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
        other = KCMSocket(self.type, max_message_size=self.max_message_size)
        try:
            # In the place of a descriptor that has its owner already.
            _kernel.clone_onto(self._fd(), other.fileno())
        except OSError as error:
            from pykcm import _explain

            other.close()
            raise _explain.explain(error, _explain.CLONE) from error
        other._port.keeps_rest = self._port.keeps_rest
        return other

    def dup(self) -> Self:
        """The same socket through another descriptor, close-on-exec."""
        self._fd()
        other = type(self)(self.type, max_message_size=self.max_message_size)
        os.dup2(self._fd(), other.fileno(), inheritable=False)
        other.settimeout(self.gettimeout())
        other._port.keeps_rest = self._port.keeps_rest
        self._port.shared = other._port.shared = True
        if self._same is None:
            self._same = weakref.WeakSet([self])
        self._same.add(other)
        other._same = self._same
        return other

    def detach(self) -> int:
        """As for `socket.socket`: the descriptor, which is the caller's to close."""
        self._port.fd = -1
        self._port.shared = True
        self._let_go()
        return super().detach()

    @property
    def recv_disabled(self) -> bool:
        """Whether the multiplexor gives this socket no messages (KCM_RECV_DISABLE).

        Setting it to True hands what is queued here to the multiplexor's other sockets.
        """
        return bool(_kernel.get_integer(self._fd(), lib.SOL_KCM, lib.KCM_RECV_DISABLE))

    @recv_disabled.setter
    def recv_disabled(self, value: bool) -> None:
        _kernel.set_option(self._fd(), lib.SOL_KCM, lib.KCM_RECV_DISABLE, int(value))

    def _receive_steps(self) -> Steps[None]:
        while True:
            yield Wait(self._fd())

    def _send_steps(self) -> Steps[None]:
        space = SendSpace(self._fd())  # goes with this generator
        while True:
            yield Wait(space.fileno())
            space.clear()

    def _follow(self, end: _kernel.Descriptor) -> None:
        """Learn from an event that a Multiplexor's last transport has gone."""
        self._end = end
        self._port.watch = end.fileno()
        self._port.attached = self._port.watched = True

    def _look(self) -> None:
        """Whether the Multiplexor that this is a clone of still has transports."""
        if self._end is not None:
            self._port.attached = not _kernel.is_readable(self._end.fileno())

    def _unattached(self) -> Disconnected:
        return Disconnected(
            errno.EPIPE,
            "the multiplexor's last transport is gone, and all messages for this socket were read",
        )

    def _flush_steps(self) -> Steps[None]:
        if not self._push():
            return
        with SendSpace(self._fd()) as space:
            left = 0
            try:
                while left := self._push():
                    yield Wait(space.fileno())
                    space.clear()
            except TimeoutError:
                raise late_with(left) from None

    # ---- closing ----

    def _flushes(self) -> bool:
        """Whether closing has to wait for what is queued: nobody else has this socket open."""
        port = self._port
        if port.fd < 0 or port.inherited or any(o._port.fd >= 0 for o in self._others()):
            return False
        with contextlib.suppress(OSError):
            return bool(self.unsent) and not port.open
        return False

    def _others(self) -> list[KCMSocket]:
        return [other for other in self._same or () if other is not self]

    def _close(self) -> None:
        left = self._left_behind()
        described = repr(self)
        self._note_forks()
        self._port.fd = -1
        _socket.socket.close(self)  # not Messages.close, which has called this
        self._let_go()
        if left:
            warnings.warn(
                f"{described} is closed with {left} bytes that no transport has taken; they are "
                "lost unless another process has this socket open",
                UnsentWarning,
                stacklevel=3,
            )

    def _let_go(self) -> None:
        self._attaching.close()
        if self._end is not None:
            self._end.close()

    def _note_forks(self) -> None:
        """Another process may have this socket after it is closed here: who forks later has not."""
        if self._port.forked:
            self._port.shared = True

    def _left_behind(self) -> int:
        """Bytes that are lost when this object's descriptor is closed."""
        port = self._port
        if port.fd >= 0 and not port.inherited and not any(o._port.fd >= 0 for o in self._others()):
            with contextlib.suppress(OSError):
                return self.unsent
        return 0

    def __del__(self) -> None:
        # The interpreter closes it, with a warning that it hides by default.
        if not hasattr(self, "_port"):
            return
        left = self._left_behind()
        self._note_forks()
        self._let_go()
        if left:
            warnings.warn(
                f"{self!r} was not closed, and {left} bytes that no transport has taken are lost",
                UnsentWarning,
                source=self,
                stacklevel=2,
            )
        super().__del__()  # type: ignore[misc]


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
