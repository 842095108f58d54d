"""A call of _slowpath.py: how it is tried, and how it waits."""

from __future__ import annotations

import errno
import math
import operator
import select
import time
import warnings
from collections.abc import Callable
from typing import Any

from pykcm import _kernel
from pykcm._slowport import Cut, Port, make

LARGEST_INT = (1 << 31) - 1
OWN: Any = object()  # the socket's own time-out

_PATIENCE_MESSAGES, _PATIENCE_SECONDS, _TURN = 512, 0.05, 0.002
# Plain numbers: an operation on socket's flags makes an enum member each time.
_DONTWAIT, _PEEK = 0x40, 0x2
_MSG_BATCH = 0x40000
_NEVER_AWAITED = (
    "a call that receives was never awaited",
    "a send was never awaited: nothing was sent",
)


class Call:
    """One call: how it is tried, and what it waits for."""

    def __init__(self, owner: Any, kind: str, flags: int = 0, **more: Any) -> None:
        self.owner, self.kind, self.flags = owner, kind, operator.index(flags)
        if not ~LARGEST_INT <= self.flags <= LARGEST_INT:
            raise make["argument"]("flags", flags)
        self.port: Port = owner._port
        self.at = 0
        self.waiter: Any = None
        self.__dict__.update(more)

    limit: int
    room: int
    data: Any
    ends: list[int]
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
                if port.watch >= 0 and _kernel.is_readable(port.watch):
                    self.owner._look()
                    port.inherit()  # should other code have forked

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
            event = next(port, None)
            return None if event is None else (event,)
        if self.kind == "send":
            if not port.queueing:
                self.refuse_if_over()
            return self.attempt_send()
        if port.fd < 0:
            raise make["error"]("receive", errno.EBADF)
        count = self.limit if self.kind == "many" else 1
        if not port.inbox and (port.rule is not None or not self.flags & _PEEK):
            port.receive(count if port.waiting else max(count, port.ahead), self.room)
        try:
            if self.flags & _PEEK:
                front = port.inbox[0] if port.inbox else None
                if front is None and port.rule is None:
                    front = port.peek(self.room)
                return None if front is None else (self.made_of(front),)
            self.let_go()
            return (self.take(count),)
        except IndexError:  # another thread has taken it
            return None
        finally:
            port.tell()

    def made_of(self, message: bytes) -> Any:
        """What the call returns for a message."""
        if isinstance(message, Cut):
            raise self.owner._truncated(bytes(message))
        if self.kind == "through":
            return self.through(message)
        return [message] if self.kind == "many" else message

    def take(self, count: int) -> Any:
        inbox = self.port.inbox
        message = inbox.popleft()
        try:
            result = self.made_of(message)
        except make["truncated"]:
            raise
        except BaseException:
            inbox.appendleft(message)
            raise
        while self.kind == "many" and len(result) < count:
            try:
                message = inbox.popleft()
            except IndexError:  # no more, or another thread has taken it
                break
            if isinstance(message, Cut):
                inbox.appendleft(message)
                break
            result.append(message)
        return result

    def attempt_send(self) -> tuple[int] | None:
        port = self.port
        if isinstance(self.data, bytes):
            return (len(self.data),) if port.send(self.data, self.flags) else None
        last = len(self.data) - 1
        while self.at <= last:
            # All but the last are held back, as sendmmsg(2) does.
            held = 0 if self.at == last else _MSG_BATCH
            try:
                if not port.send(self.data[self.at], self.flags | held, goes_on=False):
                    return None
            except OSError:
                if not self.at:
                    raise
                break
            self.at += 1
            port.sent_many = self.sent
        return (self.sent,)

    @property
    def sent(self) -> int:
        """How many messages were sent, of those that may have been joined."""
        return self.ends[self.at - 1] if self.at else 0

    def late(self, blocking: bool) -> int:
        if self.at:
            return self.sent
        if not blocking:
            raise make["error"]("send" if self.kind == "send" else "receive", errno.EAGAIN)
        what = {"event": "no transport ended", "send": "no transport took the message"}
        raise TimeoutError(f"timed out: {what.get(self.kind, 'no message came')}")

    def wait_to_receive(self, deadline: float) -> bool:
        port = self.port
        poll = select.poll()
        others = (port.fd, port.told) if self.kind != "event" else ()
        for fd in (port.watch if port.watched else -1, *others):
            if fd >= 0:  # else another thread has closed it, or it was never made
                poll.register(fd, select.POLLIN)
        port.waiting += 1
        try:
            port.tell()
            left = deadline - time.monotonic()
            # No longer: a signal that comes just before poll(2) does not end it.
            ready = poll.poll(max(0, math.ceil(min(left, 1.0) * 1000)))
        finally:
            port.waiting -= 1
        if port.fd < 0:
            raise make["error"]("receive", errno.EBADF)
        if self.kind != "event":
            if not ready:
                self.owner._idle()
            elif port.watched and port.watch in dict(ready):
                self.owner._look()
        return time.monotonic() < deadline

    def drive(self, timeout: Any) -> Any:
        """Make the call in a thread."""
        try:
            return self._drive(timeout)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Let go of what was kept for a call: before it takes a message, or as it ends."""
        if self.port.holding:
            self.owner._let_clones_go()

    def _drive(self, timeout: Any) -> Any:
        seconds = None if timeout is OWN else _seconds(timeout)
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


class Operation:
    """A call that can be awaited once."""

    _call: Call | None = None
    _begun: Any = None

    def __init__(self, call: Call, iterating: bool = False) -> None:
        self._call, self._iterating = call, iterating

    @property
    def _steps(self) -> Any:
        if self._begun is None:
            self._begun = self._run()
        return self._begun

    def __del__(self) -> None:
        if self._begun is None and self._call is not None:
            warnings.warn(_NEVER_AWAITED[self._call.kind == "send"], RuntimeWarning, stacklevel=2)

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Go on, as a coroutine."""
        return self._steps.send(value)

    def throw(self, *exception: Any) -> Any:
        """Raise an exception where it waits."""
        return self._steps.throw(*exception)

    def close(self) -> None:
        """Give it up."""
        self._steps.close()

    async def _run(self) -> Any:
        call = self._call
        assert call is not None
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
        except make["disconnected"]:
            if self._iterating:
                raise StopAsyncIteration from None
            raise
        finally:
            call.let_go()


def _seconds(timeout: Any) -> float:
    if timeout is None:
        return math.inf
    try:
        seconds = math.ldexp(timeout, 0)  # as float(), of numbers only
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not seconds >= 0:
        raise make["argument"]("timeout", timeout)
    return seconds
