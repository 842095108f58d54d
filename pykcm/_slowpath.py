"""What _fastpath.c does, in Python: for PyPy, and where its C can't be compiled.

The names and the order of things are _fastpath.c's, which says why.  Two things are less here.  It
is slower.  And between a system call and what it has done being written down there are lines of
Python: an exception that strikes there, as a signal's handler's does, takes along what was just
received, up to 64 messages; `sent_many` may be one too low, and the rest of a message that the
kernel took in part may be lost.  Receive with no such handlers where that matters.
"""

from __future__ import annotations

import errno
import operator
from collections.abc import Callable, Iterable
from typing import Any

from pykcm._slowcall import LARGEST_INT, OWN, Call, Operation
from pykcm._slowport import Port, make, setup

__all__ = ["MultiplexorCalls", "Port", "SocketCalls", "setup"]

_MORE = 0x8000
_LONGEST = 0x7FFFF000
_JOINED, _WORTH_JOINING = 1 << 16, 4096


def _at_least(name: str, value: int, least: int) -> int:
    number = operator.index(value)
    if number < least:
        raise make["argument"](name, value)
    return number


def _one(owner: Any, bufsize: int | None = None, flags: int = 0) -> Call:
    size = 0 if bufsize is None else _at_least("bufsize", bufsize, 0)
    room = max(owner._port.room, min(size, LARGEST_INT) + 1)
    return Call(owner, "one", flags, room=room)


def _many(owner: Any, limit: int, flags: int = 0) -> Call:
    limit = _at_least("limit", limit, 1)
    return Call(owner, "many", flags, limit=limit, room=owner._port.room)


def _bytes(data: Any) -> bytes:
    message: bytes = data if type(data) is bytes else make["bytes"](data)
    if len(message) > _LONGEST:
        raise make["error"]("send", errno.EMSGSIZE)
    return message


def _sends(owner: Any, messages: Iterable[Any], flags: int) -> Call:
    owner._port.sent_many = 0
    data = [_bytes(message) for message in messages]
    call = Call(owner, "send", flags, data=data)
    if not all(data):
        raise make["error"]("empty", errno.EINVAL)
    if call.flags & _MORE:
        raise make["error"]("more", errno.EINVAL)
    if call.port.open:
        raise make["error"]("open", errno.EBUSY)
    call.data, call.ends = _join(data, max(1, call.port.most))
    return call


def _join(messages: list[bytes], most: int) -> tuple[list[bytes], list[int]]:
    """Super messages of up to so many messages, and how many messages each of them ends with."""
    joined, ends, first = [], [], 0
    while first < len(messages):
        end, size = first + 1, len(messages[first])
        longest = size if size > _WORTH_JOINING else _JOINED
        while end < min(len(messages), first + most):
            more = len(messages[end])
            if more > _WORTH_JOINING or size + more > longest:
                break
            size += more
            end += 1
        joined.append(b"".join(messages[first:end]))
        ends.append(end)
        first = end
    return joined, ends


class _Calls:
    def arecv(self) -> Any:
        return Operation(_one(self))

    def arecv_many(self, limit: int = 64) -> Any:
        return Operation(_many(self, limit))

    def asend(self, data: Any, flags: int = 0) -> Any:
        return Operation(Call(self, "send", flags, data=_bytes(data)))

    def asend_many(self, messages: Iterable[Any], flags: int = 0) -> Any:
        return Operation(_sends(self, messages, flags))

    def __aiter__(self) -> Any:
        return self

    def __anext__(self) -> Any:
        return Operation(_one(self), iterating=True)

    _default: Any = OWN

    def recv_many(self, limit: int = 64, flags: int = 0, *, timeout: Any = ...) -> Any:
        return _many(self, limit, flags).drive(self._default if timeout is ... else timeout)

    def send(self, data: Any, flags: int = 0, *, timeout: Any = ...) -> Any:
        call = Call(self, "send", flags, data=_bytes(data))
        return call.drive(self._default if timeout is ... else timeout)

    def send_many(self, messages: Iterable[Any], flags: int = 0, *, timeout: Any = ...) -> Any:
        return _sends(self, messages, flags).drive(self._default if timeout is ... else timeout)


def _through(name: str, flags_at: int) -> Callable[..., Any]:
    def receive(self: Any, *arguments: Any, **named: Any) -> Any:
        make = getattr(self, f"_{name}")
        make(None, *arguments, **named)
        flags = named.get("flags", arguments[flags_at] if len(arguments) > flags_at else 0)
        call = Call(self, "through", flags, room=self._port.room)
        call.through = lambda message: make(message, *arguments, **named)
        return call.drive(OWN)

    receive.__name__ = name
    return receive


class SocketCalls(_Calls):
    """The calls of a KCMSocket."""

    def recv(self, bufsize: int | None = None, flags: int = 0, *, timeout: Any = OWN) -> Any:
        return _one(self, bufsize, flags).drive(self._default if timeout is ... else timeout)

    recv_into = _through("recv_into", 2)
    recvfrom = _through("recvfrom", 1)
    recvfrom_into = _through("recvfrom_into", 2)
    recvmsg = _through("recvmsg", 2)
    recvmsg_into = _through("recvmsg_into", 2)


class MultiplexorCalls(_Calls):
    """The calls of a Multiplexor."""

    _default = None

    def recv(self, *, timeout: Any = None) -> Any:
        return _one(self).drive(None if timeout is ... else timeout)

    def wait_disconnection(self, timeout: Any = None) -> Any:
        return Call(self, "event").drive(None if timeout is ... else timeout)

    def await_disconnection(self) -> Any:
        return Operation(Call(self, "event"))

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        try:
            return self.recv()
        except make["disconnected"]:
            raise StopIteration from None
