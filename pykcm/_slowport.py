"""The Port of _fastpath.c, in Python; see _slowpath.py."""

from __future__ import annotations

import collections
import contextlib
import errno
import mmap
import os
import socket as _socket
from _thread import RLock
from collections.abc import Iterator
from typing import Any

from pykcm import _kernel

_BATCH = 64
_MOST_EVENTS = 4096
# Plain numbers: an operation on socket's flags makes an enum member each time.
_DONTWAIT, _PEEK, _MORE, _EOR = 0x40, 0x2, 0x8000, 0x80
_MSG_BATCH = 0x40000

_forks = [0, 0]  # seen in the parent, and in the child


def _count(which: int) -> None:
    _forks[which] += 1


os.register_at_fork(before=lambda: _count(0), after_in_child=lambda: _count(1))

make: dict[str, Any] = {}


def setup(*functions: Any) -> None:
    """What makes errors, argument errors and bytes; the exceptions for a cut and for the end."""
    make.update(
        zip(("error", "argument", "bytes", "truncated", "disconnected"), functions, strict=True)
    )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise make["error"]("receive", error.errno) from error


class Cut(bytes):
    """A message that was longer than the room for it."""


class Port:
    """One KCM descriptor, and what was received from it and is being sent on it."""

    def __init__(self, fd: int, seqpacket: bool, room: int) -> None:
        self.fd, self.seqpacket, self.room = fd, bool(seqpacket), room
        self.keeps_rest = self.ahead = self.taken = self.begun = self.empty = 0
        self._receiving = RLock()  # others would overtake what is on its way to the inbox
        self.inbox: collections.deque[bytes] = collections.deque()
        self.events: collections.deque[Any] = collections.deque(maxlen=_MOST_EVENTS)
        self._memory: mmap.mmap | None = None
        self._part = b""
        self._rest: memoryview = memoryview(b"")
        self._rest_flags = 0
        self._sending = RLock()  # nobody may send between the parts of a message
        self.open = self.batched = self.shared = self.sent_many = 0
        self.watch = self.told = -1
        self.bound = self.watched = self.attached = self.queueing = self.over = 0
        self.observed = self.waiting = self.patience = self.holding = 0
        self.telling = False
        self.rule: bytes | None = None
        self.most = 0
        self._each = 1
        self._delineator: Any = None
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
            if self.inherited:
                self._receiving = RLock()  # another thread may have held it
        if self.inherited and not self.bound:
            self._made[1] = _forks[1]
            self.inbox.clear()
            self._part, self._rest = b"", memoryview(b"")
            self.open = self.batched = 0
            self.told = -1  # it is the parent's too; the owner makes another
            self.telling, self.waiting, self.observed = False, 0, 0
            self._sending = RLock()  # another thread may have held it

    def tell(self) -> None:
        """Set or clear what tells of messages in the Port."""
        self.inherit()
        wanted = bool(self.inbox or self.over)
        if self.told >= 0 and wanted != self.telling and (self.observed or self.waiting):
            _kernel.set_event(self.told, wanted)
            self.telling = wanted

    def report(self, report: Any) -> None:
        """Keep a report, once."""
        if not any(event is report for event in list(self.events)):
            self.events.append(report)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self.events.popleft()
        except IndexError:
            raise StopIteration from None

    def set_rule(self, rule: bytes | None, most: int) -> None:
        """From now on super messages of up to so many messages come, and are sent; or none."""
        from pykcm.framing.delineate import Delineator

        self._delineator = None if rule is None else Delineator(rule)
        self.rule, self.most, self._each = rule, most, most

    def _divide(self, message: bytes) -> list[bytes]:
        """The messages of a super message; what the rule does not divide is as if it were cut."""
        messages, at = [], 0
        for length in self._delineator.divide(message):
            messages.append(message[at : at + length])
            at += length
        self._each = max(1, len(messages))
        return messages if at == len(message) else [*messages, Cut(message[at:])]

    def pull(self) -> bool:
        """Receive into the Port; whether there was a message."""
        received = self.receive(_BATCH, self.room)
        self.tell()
        return received

    def make_room(self, room: int) -> None:
        """Have room for so many bytes, if there is less."""
        with self._receiving:
            self.room = max(self.room, room)

    def disable(self, disabled: bool) -> None:
        """Disable receiving, or enable it."""
        self.inherit()
        with self._receiving, _explained():
            _kernel.set_disabled(self.fd, disabled)

    def serve(self) -> None:
        """Have what waits for a socket given to this one."""
        with self._receiving, _explained():
            if not self.held and not _kernel.is_readable(self.fd):
                _kernel.serve_again(self.fd)

    def receive(self, count: int, room: int) -> bool:
        """Receive up to count messages; whether there were any."""
        with self._receiving:
            return self._receive(count, room)

    def _receive(self, count: int, room: int) -> bool:
        if self.fd < 0:
            raise make["error"]("receive", errno.EBADF)
        room = max(room, self.room)  # which may have become more while the call waited
        if self.rule is not None:  # not many more than are asked for
            count //= self._each
        count = max(1, min(count, _BATCH, (64 << 20) // room))
        memory = self._room_for(room * count)
        self.begun = begun = self.begun + 1
        try:
            received = _kernel.receive_many(self.fd, memory, room, count, _DONTWAIT)
        except (BlockingIOError, InterruptedError) as error:
            if isinstance(error, BlockingIOError):
                self.empty = begun
            return False
        except OSError as error:
            raise make["error"]("receive", error.errno) from error
        self.taken += len(received)
        if len(received) < count:
            self.empty = begun
        view = memoryview(memory)
        parts = self.keeps_rest and self.seqpacket
        for i, (length, flags) in enumerate(received):
            message = self._part + bytes(view[i * room : i * room + length])
            self._part = b""
            if parts and not flags & _EOR:
                self._part = message
            elif self.rule is not None and (parts or length < room):
                self.inbox += self._divide(message)
            else:
                self.inbox.append(message if parts or length < room else Cut(message))
        return True

    def _room_for(self, size: int) -> mmap.mmap:
        """Memory of which only what is written to is used, unlike a bytearray's; made once."""
        if self._memory is None or len(self._memory) < size:
            # Not shared: after a fork both may receive at once.
            self._memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(AttributeError, OSError):
                self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        return self._memory

    def _write(self, data: bytes | memoryview, flags: int) -> int | None:
        """One send; the bytes that the kernel took, None if it has no room."""
        if self.fd < 0:
            raise make["error"]("send", errno.EBADF)
        try:
            return _kernel.send_message(self.fd, [data], flags | _DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError as error:
            if self.open and not self.seqpacket and not self._rest:
                self.open = 0
                raise make["error"]("continue", error.errno) from error
            if not isinstance(error, (BlockingIOError, InterruptedError)):
                raise make["error"]("send", error.errno) from error
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

    def peek(self, room: int) -> bytes | None:
        """The next message, which stays where it is; None if there is none."""
        room = max(room, self.room)  # which may have become more while the call waited
        memory = bytearray(room)
        try:
            length, _ = _kernel.receive_message(self.fd, [memory], _DONTWAIT | _PEEK)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise make["error"]("receive", error.errno) from error
        return (bytes if length < room else Cut)(memory[:length])

    def send(self, message: bytes, flags: int, *, goes_on: bool = True) -> bool:
        """Send one message; whether there was room.

        Args:
            goes_on: it may belong to one that was begun with MSG_MORE.
        """
        with self._sending:
            if not goes_on and self._finish() and self.open:
                raise make["error"]("open", errno.EBUSY)
            return self._send(message, flags)

    def _send(self, message: bytes, flags: int) -> bool:
        if not self._finish():
            return False
        if not message and not (self.open and not flags & _MORE):
            raise make["error"]("empty", errno.EINVAL)
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
        with self._sending:
            if self._finish() and self.batched and not self.open and not self.shared:
                self._write(b"", self._flags(0))
                self.batched = 0
