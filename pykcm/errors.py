"""The exceptions that pykcm raises.

`KCMError` is the root.  Those that stand for an errno are `OSError`s too: they keep the errno, and
their text says what to do about it.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Any


class KCMError(Exception):
    """The root of all exceptions of pykcm's own."""


class KCMOSError(KCMError, OSError):
    """An error that stands for an errno.

    Args:
        errno: the error number, as in the module `errno`.
        message: what failed, and what to do about it.
    """

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(errno, message)

    def __reduce__(self) -> tuple[type[KCMOSError], tuple[Any, ...]]:
        return type(self), (self.errno or 0, self.strerror or "")

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno or 0, str(self.errno))
        return f"{self.strerror} [{name}: {os.strerror(self.errno or 0)}]"


class ArgumentError(KCMError, ValueError):
    """An impossible argument: a time-out that is not a number of seconds, a limit of 0.

    Attributes:
        argument: its name.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(f"{argument}: {message}")
        self.argument = argument
        self._message = message

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, str]]:
        return type(self), (self.argument, self._message)


class UnsentWarning(RuntimeWarning):
    """A KCM socket was closed with bytes that had not been handed to TCP; they are lost."""


class UnreadWarning(RuntimeWarning):
    """A multiplexor was closed with messages that its clones would have received; they are lost."""


class UnavailableError(KCMOSError):
    """This kernel or platform has no AF_KCM, or not what the call needs of it."""


class CapabilityError(KCMOSError, PermissionError):
    """This process lacks a capability, or a setting of the system forbids the call."""


class AttachError(KCMOSError):
    """A TCP socket could not be attached to the multiplexor, or not be unattached."""


class MessageTruncated(KCMOSError):  # noqa: N818 - the name says what happened, as in the design
    """A message was longer than the room for it: errno EMSGSIZE.

    Or bytes came that the framing by which super messages are divided does not divide: EBADMSG.

    Attributes:
        message: what was received of it.
    """

    def __init__(self, errno: int, message: str, data: bytes = b"") -> None:
        super().__init__(errno, message)
        self.message = data

    def __reduce__(self) -> tuple[type[KCMOSError], tuple[Any, ...]]:
        return type(self), (self.errno or 0, self.strerror or "", self.message)


class Disconnected(KCMOSError, ConnectionError):  # noqa: N818
    """The last transport is gone, and all its messages were read."""


class ConnectFailed(KCMOSError, ConnectionError):  # noqa: N818
    """A Pool has given up dialling.  Its `__cause__` is the last failure.

    Attributes:
        attempts: how many in a row have failed.
    """

    def __init__(self, errno: int, message: str, attempts: int = 0) -> None:
        super().__init__(errno, message)
        self.attempts = attempts

    def __reduce__(self) -> tuple[type[KCMOSError], tuple[Any, ...]]:
        return type(self), (self.errno or 0, self.strerror or "", self.attempts)

    @classmethod
    def after(cls, attempts: int, error: Exception) -> ConnectFailed:
        """The error for so many attempts, the last of which failed so."""
        number = getattr(error, "errno", None) or 0
        if number not in _errno.errorcode:  # of getaddrinfo's errors, for one
            number = _errno.EHOSTUNREACH
        last = str(error) or repr(error)
        text = f"{attempts} attempts to connect have failed, the last with: {last}"
        return cls(number, text, attempts)


class OutcomeUnknown(KCMOSError, ConnectionError):  # noqa: N818
    """A connection was lost while a request was in flight, or the Multiplexor was closed, and no
    answer came.

    It may have been carried out or not; a message does not say which connection it went by.

    Attributes:
        request: the request as it was sent.
    """

    def __init__(self, errno: int, message: str, request: bytes = b"") -> None:
        super().__init__(errno, message)
        self.request = request

    def __reduce__(self) -> tuple[type[KCMOSError], tuple[Any, ...]]:
        return type(self), (self.errno or 0, self.strerror or "", self.request)


class MessageCut(Disconnected):
    """A connection that is not attached ended in the middle of a message.

    Attributes:
        message: what came of it; it is still in the TCP socket.
    """

    def __init__(self, errno: int, message: str, data: bytes = b"") -> None:
        super().__init__(errno, message)
        self.message = data

    def __reduce__(self) -> tuple[type[KCMOSError], tuple[Any, ...]]:
        return type(self), (self.errno or 0, self.strerror or "", self.message)


class FramingError(KCMOSError, ValueError):
    """A header that its framing refuses.

    errno is EMSGSIZE for a message over the maximum, EBADMSG for a header that is not one of this
    framing.
    """


class FramingDefinitionError(KCMError, ValueError):
    """A framing whose description is impossible.

    Attributes:
        argument: the name of the argument that is wrong.
        why: what is wrong with it.
    """

    def __init__(self, argument: str, why: str) -> None:
        super().__init__(f"{argument}: {why}")
        self.argument = argument
        self.why = why

    def __reduce__(self) -> tuple[type[FramingDefinitionError], tuple[str, str]]:
        return type(self), (self.argument, self.why)


class BPFError(KCMOSError):
    """bpf(2) failed."""


class VerifierError(BPFError):
    """The kernel's verifier refused a program.

    Attributes:
        log: the verifier's whole log.
    """

    def __init__(self, errno: int, message: str, log: str = "") -> None:
        super().__init__(errno, message)
        self.log = log

    def __reduce__(self) -> tuple[type[KCMOSError], tuple[Any, ...]]:
        return type(self), (self.errno or 0, self.strerror or "", self.log)


class AssemblyError(KCMError, ValueError):
    """A text that is not BPF assembly, or code that is not a BPF program.

    Attributes:
        line: the line's number from 1, or None where the error is not in a text.
        column: the column's number from 1, or None.
    """

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column

    def __reduce__(self) -> tuple[type[AssemblyError], tuple[str, int | None, int | None]]:
        return type(self), (str(self.args[0]), self.line, self.column)
