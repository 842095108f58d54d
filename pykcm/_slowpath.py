"""What _fastpath.c does, in Python: for where its C can't be compiled, as on PyPy.

The names and the order of things are _fastpath.c's, which says why.  Two things are less here: it
is slower, and an exception that strikes between a message's leaving the Port and its reaching the
caller takes the message along, since there are lines of Python between.
"""

from __future__ import annotations

import collections
import errno
import math
import operator
import os
import select
import socket as _socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from pykcm import _kernel

_BATCH = 64
_PATIENCE_MESSAGES, _PATIENCE_SECONDS, _TURN = 512, 0.05, 0.002
_MOST_EVENTS = 4096
_LARGEST_INT = (1 << 31) - 1
# Plain numbers: an operation on socket's flags makes an enum member each time.
_DONTWAIT, _PEEK, _MORE, _EOR = 0x40, 0x2, 0x8000, 0x80
_MSG_BATCH = 0x40000
_OWN = object()  # the socket's own time-out

_forks = [0, 0]  # seen in the parent, and in the child


def _count(which: int) -> None:
    _forks[which] += 1


os.register_at_fork(before=lambda: _count(0), after_in_child=lambda: _count(1))

_make: dict[str, Any] = {}


def setup(*functions: Any) -> None:
    """What makes errors, argument errors and bytes; the exceptions for a cut and for the end."""
    _make.update(
        zip(("error", "argument", "bytes", "truncated", "disconnected"), functions, strict=True)
    )


class _Cut(bytes):
    """A message that was longer than the room for it."""


class Port:
    """One KCM descriptor, and what was received from it and is being sent on it."""

    def __init__(self, fd: int, seqpacket: bool, room: int) -> None:
        self.fd, self.seqpacket, self.room = fd, bool(seqpacket), room
        self.keeps_rest = self.ahead = self.taken = self.empty = 0
        self.inbox: collections.deque[bytes] = collections.deque()
        self.events: collections.deque[Any] = collections.deque(maxlen=_MOST_EVENTS)
        self._part = b""
        self._rest: memoryview = memoryview(b"")
        self._rest_flags = 0
        self.open = self.batched = self.shared = self.sent_many = 0
        self.watch = self.told = -1
        self.bound = self.watched = self.attached = self.queueing = self.over = 0
        self.observed = self.waiting = self.patience = self.holding = 0
        self.telling = False
        self.look_at = self.turn = 0.0
        self._made = list(_forks)

    @property
    def held(self) -> int:
        """Messages received and not handed out."""
        return len(self.inbox)

    @property
    def rest(self) -> int:
        """Bytes of a message that the kernel took in part."""
        return len(self._rest)

    @property
    def inherited(self) -> bool:
        """Whether it was made by another process."""
        return self._made[1] != _forks[1]

    @property
    def forked(self) -> bool:
        """Whether a fork has come since it was made."""
        return self._made[0] != _forks[0]

    def inherit(self) -> None:
        """After a fork: others share the socket, and the child has none of the messages."""
        if self.forked:
            self._made[0] = _forks[0]
            self.shared = 1
        if self.inherited and not self.bound:
            self._made[1] = _forks[1]
            self.inbox.clear()
            self._part, self._rest = b"", memoryview(b"")
            self.open = self.batched = 0

    def tell(self) -> None:
        """Set or clear what tells of messages in the Port."""
        wanted = bool(self.inbox or self.over)
        if self.told >= 0 and wanted != self.telling and (self.observed or self.waiting):
            _kernel.set_event(self.told, wanted)
            self.telling = wanted

    def report(self, report: Any) -> None:
        """Keep a report, once."""
        if not any(event is report for event in self.events):
            self.events.append(report)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self.events.popleft()
        except IndexError:
            raise StopIteration from None

    def pull(self) -> bool:
        """Receive into the Port; whether there was a message."""
        received = self.receive(_BATCH, self.room)
        self.tell()
        return received

    def receive(self, count: int, room: int) -> bool:
        """Receive up to count messages; whether there were any."""
        if self.fd < 0:
            raise _make["error"]("receive", errno.EBADF)
        count = max(1, min(count, _BATCH, (64 << 20) // room))
        memory = bytearray(room * count)
        try:
            received = _kernel.receive_many(self.fd, memory, room, count, _DONTWAIT)
        except (BlockingIOError, InterruptedError):
            self.empty += 1
            return False
        except OSError as error:
            raise _make["error"]("receive", error.errno) from error
        self.taken += len(received)
        self.empty += len(received) < count
        view = memoryview(memory)
        parts = self.keeps_rest and self.seqpacket
        for i, (length, flags) in enumerate(received):
            message = self._part + bytes(view[i * room : i * room + length])
            self._part = b""
            if parts and not flags & _EOR:
                self._part = message
            else:
                self.inbox.append(message if parts or length < room else _Cut(message))
        return True

    def _write(self, data: bytes | memoryview, flags: int) -> int | None:
        """One send; the bytes that the kernel took, None if it has no room."""
        if self.fd < 0:
            raise _make["error"]("send", errno.EBADF)
        try:
            return _kernel.send_message(self.fd, [data], flags | _DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError as error:
            if self.open and not self.seqpacket and not self._rest:
                self.open = 0
                raise _make["error"]("continue", error.errno) from error
            if not isinstance(error, (BlockingIOError, InterruptedError)):
                raise _make["error"]("send", error.errno) from error
            return None

    def _finish(self) -> bool:
        while self._rest:
            sent = self._write(self._rest, self._rest_flags)
            if sent is None:
                return False
            self._rest = self._rest[sent:]
        return True

    def _flags(self, flags: int) -> int:
        if self.seqpacket and not flags & _MORE:
            flags |= _EOR
        return flags & ~_MSG_BATCH if self.shared else flags

    def send(self, message: bytes, flags: int) -> bool:
        """Send one message; whether there was room."""
        if not self._finish():
            return False
        if not message and not (self.open and not flags & _MORE):
            raise _make["error"]("empty", errno.EINVAL)
        flags = self._flags(flags)
        sent = self._write(message, flags)
        if sent is None:
            return False
        self.open = int(bool(flags & _MORE))
        if not self.open:
            self.batched = int(bool(flags & _MSG_BATCH))
        self._rest, self._rest_flags = memoryview(message)[sent:], flags
        return True

    def push(self) -> None:
        """Hand over what is held back, as far as there is room."""
        self.inherit()
        if self._finish() and self.batched and not self.open and not self.shared:
            self._write(b"", self._flags(0))
            self.batched = 0


class _Call:
    """One call: how it is tried, and what it waits for."""

    def __init__(self, owner: Any, kind: str, flags: int = 0, **more: Any) -> None:
        self.owner, self.kind, self.flags = owner, kind, operator.index(flags)
        self.port: Port = owner._port
        self.at = 0
        self.waiter: Any = None
        self.__dict__.update(more)

    limit: int
    room: int
    data: Any
    through: Callable[[bytes], Any]

    def look_now_and_then(self) -> None:
        port = self.port
        port.inherit()
        if port.inherited:
            raise self.owner._not_after_fork()
        if port.watched:
            port.patience -= 1
            if port.patience < 0 or time.monotonic() >= port.look_at:
                port.patience = _PATIENCE_MESSAGES
                port.look_at = time.monotonic() + _PATIENCE_SECONDS
                if _kernel.is_readable(port.watch):
                    self.owner._look()

    def refuse_if_over(self) -> None:
        port = self.port
        if port.watched and not port.attached:
            self.owner._look()
            if not (port.attached or (self.kind != "send" and port.inbox)):
                raise self.owner._unattached()

    def attempt(self) -> tuple[Any] | None:
        """The result in a tuple; None when the call has to wait."""
        self.look_now_and_then()
        port = self.port
        if self.kind == "event":
            self.owner._look_for_ends()
            return (port.events.popleft(),) if port.events else None
        if self.kind == "send":
            if not port.queueing:
                self.refuse_if_over()
            return self.attempt_send()
        count = self.limit if self.kind == "many" else 1
        if self.flags & _PEEK and not port.inbox:
            return self.peek()
        if not port.inbox:
            port.receive(count if port.waiting else max(count, port.ahead), self.room)
            if not port.inbox:
                return None
        front = port.inbox[0]
        if isinstance(front, _Cut):
            if not self.flags & _PEEK:
                port.inbox.popleft()
            raise self.owner._truncated(bytes(front))
        if self.flags & _PEEK:
            return ([front] if self.kind == "many" else front,)
        try:
            return (self.take(count),)
        finally:
            port.tell()

    def take(self, count: int) -> Any:
        inbox = self.port.inbox
        if self.kind == "through":
            try:
                result = self.through(inbox[0])
            except _make["truncated"]:
                inbox.popleft()
                raise
            inbox.popleft()
            return result
        if self.kind == "one":
            return inbox.popleft()
        whole: list[bytes] = []
        while inbox and len(whole) < count and not isinstance(inbox[0], _Cut):
            whole.append(inbox.popleft())
        return whole

    def peek(self) -> tuple[Any] | None:
        memory = bytearray(self.room)
        try:
            length, _ = _kernel.receive_message(self.port.fd, [memory], _DONTWAIT | _PEEK)
        except (BlockingIOError, InterruptedError):
            return None
        message = bytes(memory[:length])
        if length >= self.room:
            raise self.owner._truncated(message)
        return ([message] if self.kind == "many" else message,)

    def attempt_send(self) -> tuple[int] | None:
        port = self.port
        if isinstance(self.data, bytes):
            return (len(self.data),) if port.send(self.data, self.flags) else None
        last = len(self.data) - 1
        while self.at <= last:
            # All but the last are held back, as sendmmsg(2) does.
            held = 0 if self.at == last else _MSG_BATCH
            try:
                if not port.send(self.data[self.at], self.flags | held):
                    return None
            except OSError:
                if not self.at:
                    raise
                break
            self.at += 1
            port.sent_many = self.at
        return (self.at,)

    def late(self, blocking: bool) -> int:
        if self.at:
            return self.at
        if not blocking:
            raise _make["error"]("send" if self.kind == "send" else "receive", errno.EAGAIN)
        what = {"event": "no transport ended", "send": "no transport took the message"}
        raise TimeoutError(f"timed out: {what.get(self.kind, 'no message came')}")

    def wait_to_receive(self, deadline: float) -> bool:
        port = self.port
        poll = select.poll()
        if self.kind != "event":
            poll.register(port.fd, select.POLLIN)
        if port.watched:
            poll.register(port.watch, select.POLLIN)
            if self.kind != "event" and port.told >= 0:
                poll.register(port.told, select.POLLIN)
        port.waiting += 1
        try:
            port.tell()
            left = deadline - time.monotonic()
            ready = poll.poll(
                None if left == math.inf else max(0, math.ceil(min(left, 1e6) * 1000))
            )
        finally:
            port.waiting -= 1
        if port.fd < 0:
            raise _make["error"]("receive", errno.EBADF)
        if self.kind != "event" and any(fd == port.watch for fd, _ in ready):
            self.owner._look()
        return time.monotonic() < deadline

    def drive(self, timeout: Any) -> Any:
        """Make the call in a thread."""
        try:
            return self._drive(timeout)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """The call ends: what was kept for it is let go of."""
        if self.port.holding:
            self.owner._let_clones_go()

    def _drive(self, timeout: Any) -> Any:
        seconds = None if timeout is _OWN else _seconds(timeout)
        blocking, waited, deadline = not self.flags & _DONTWAIT, True, -1.0
        while True:
            result = self.attempt()
            if result:
                return result[0]
            if self.kind not in ("event", "send"):
                self.refuse_if_over()
                if self.port.inbox:
                    continue
            if seconds is None and blocking:
                seconds = _seconds(self.owner.gettimeout())
                blocking = seconds > 0
            if not (waited and blocking and seconds):
                return self.late(blocking)
            if deadline < 0:
                deadline = time.monotonic() + seconds
            if self.kind != "send":
                waited = self.wait_to_receive(deadline)
            else:
                self.waiter = self.waiter or self.owner._send_steps()
                waited = self.owner._wait(self.waiter, deadline)


class _Operation:
    """A call that can be awaited once."""

    def __init__(self, call: _Call, iterating: bool = False) -> None:
        self._call, self._iterating = call, iterating

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._run().__await__()

    async def _run(self) -> Any:
        call = self._call
        owner, port = call.owner, call.port
        if time.monotonic() - port.turn > _TURN:
            await owner._checkpoint()
            port.turn = time.monotonic()
        try:
            while True:
                result = call.attempt()
                if result:
                    return result[0]
                if call.kind not in ("event", "send"):
                    call.refuse_if_over()
                    if port.inbox:
                        continue
                if call.waiter is None:
                    names = {"event": "_event_steps", "send": "_send_steps"}
                    call.waiter = getattr(owner, names.get(call.kind, "_receive_steps"))()
                await owner._await(call.waiter)
                port.turn = time.monotonic()
        except _make["disconnected"]:
            if self._iterating:
                raise StopAsyncIteration from None
            raise
        finally:
            call.let_go()


def _seconds(timeout: Any) -> float:
    if timeout is None:
        return math.inf
    try:
        seconds = float(timeout)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not seconds >= 0:
        raise _make["argument"]("timeout", timeout)
    return seconds


def _at_least(name: str, value: int, least: int) -> int:
    number = operator.index(value)
    if number < least:
        raise _make["argument"](name, value)
    return number


def _one(owner: Any, bufsize: int | None = None, flags: int = 0) -> _Call:
    size = 0 if bufsize is None else _at_least("bufsize", bufsize, 0)
    room = max(owner._port.room, min(size, _LARGEST_INT) + 1)
    return _Call(owner, "one", flags, room=room)


def _many(owner: Any, limit: int, flags: int = 0) -> _Call:
    limit = _at_least("limit", limit, 1)
    return _Call(owner, "many", flags, limit=min(limit, _BATCH), room=owner._port.room)


def _bytes(data: Any) -> bytes:
    return data if type(data) is bytes else _make["bytes"](data)


def _sends(owner: Any, messages: Iterable[Any], flags: int) -> _Call:
    owner._port.sent_many = 0
    data = [_bytes(message) for message in messages]
    call = _Call(owner, "send", flags, data=data)
    if not all(data):
        raise _make["error"]("empty", errno.EINVAL)
    if call.flags & _MORE:
        raise _make["error"]("more", errno.EINVAL)
    if call.port.open:
        raise _make["error"]("open", errno.EBUSY)
    return call


class _Calls:
    def arecv(self) -> Any:
        return _Operation(_one(self))

    def arecv_many(self, limit: int = 64) -> Any:
        return _Operation(_many(self, limit))

    def asend(self, data: Any, flags: int = 0) -> Any:
        return _Operation(_Call(self, "send", flags, data=_bytes(data)))

    def asend_many(self, messages: Iterable[Any], flags: int = 0) -> Any:
        return _Operation(_sends(self, messages, flags))

    def __aiter__(self) -> Any:
        return self

    def __anext__(self) -> Any:
        return _Operation(_one(self), iterating=True)

    _default: Any = _OWN

    def recv_many(self, limit: int = 64, flags: int = 0, *, timeout: Any = ...) -> Any:
        return _many(self, limit, flags).drive(self._default if timeout is ... else timeout)

    def send(self, data: Any, flags: int = 0, *, timeout: Any = ...) -> Any:
        call = _Call(self, "send", flags, data=_bytes(data))
        return call.drive(self._default if timeout is ... else timeout)

    def send_many(self, messages: Iterable[Any], flags: int = 0, *, timeout: Any = ...) -> Any:
        return _sends(self, messages, flags).drive(self._default if timeout is ... else timeout)


def _through(name: str, flags_at: int) -> Callable[..., Any]:
    def receive(self: Any, *arguments: Any, **named: Any) -> Any:
        make = getattr(self, f"_{name}")
        make(None, *arguments, **named)
        flags = named.get("flags", arguments[flags_at] if len(arguments) > flags_at else 0)
        call = _Call(self, "through", flags, room=self._port.room)
        call.through = lambda message: make(message, *arguments, **named)
        return call.drive(_OWN)

    receive.__name__ = name
    return receive


class SocketCalls(_Calls):
    """The calls of a KCMSocket."""

    def recv(self, bufsize: int | None = None, flags: int = 0, /, *, timeout: Any = _OWN) -> Any:
        return _one(self, bufsize, flags).drive(timeout)

    recv_into = _through("recv_into", 2)
    recvfrom = _through("recvfrom", 1)
    recvfrom_into = _through("recvfrom_into", 2)
    recvmsg = _through("recvmsg", 2)
    recvmsg_into = _through("recvmsg_into", 2)


class MultiplexorCalls(_Calls):
    """The calls of a Multiplexor."""

    _default = None

    def recv(self, *, timeout: Any = None) -> Any:
        return _one(self).drive(timeout)

    def wait_disconnection(self, timeout: Any = None) -> Any:
        return _Call(self, "event").drive(timeout)

    def await_disconnection(self) -> Any:
        return _Operation(_Call(self, "event"))

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        try:
            return self.recv()
        except _make["disconnected"]:
            raise StopIteration from None
