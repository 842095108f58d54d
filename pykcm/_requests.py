"""The book that an Exchange keeps: which requests wait for which answers, and what became of them.

Each change is an order of steps of which every beginning is a true state.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import errno
import struct
import sys
import time
from _thread import RLock
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

from pykcm.errors import ArgumentError, KCMOSError, OutcomeUnknown
from pykcm.framing.field import Field, IncompleteError

#: A Field, its offset and size, or a function of a message.
Key: TypeAlias = Field | tuple[int, int] | Callable[[bytes], Hashable]

# What a reader of keys raises of a message that has none.
_NO_KEY = (IncompleteError, ValueError, LookupError, struct.error)

# How many strays are kept, and how many answered requests are remembered.
REMEMBERED = 4096


class StrayReason(enum.Enum):
    """Why a message answers no request that waits."""

    LATE = "its request was given up: timed out, cancelled or unknown"
    REPEATED = "its request was answered already"
    UNASKED = "no request had its key"
    NO_KEY = "it has no key"


class Stray(NamedTuple):
    """A message that answers no request that waits.

    Attributes:
        message: as it came.
        why: what is known of it.
    """

    message: bytes
    why: StrayReason


class Request:
    """One call's request.

    Attributes:
        message: what is sent.
        own: the number that it had before it was renumbered.
        key: what pairs its answer with it.
        sent: whether it may have been sent.
        gone: how many connections had gone before it was.
        suspect: whether a connection was lost since.
        again: whether it is sent again, its outcome being unknown.
        left: whether its call has ended.
        result: its answer, or what the call raises; None while there is neither.
        event: what the call waits for while another one receives.
        wake: sets the event, from whatever thread; False if nobody can wait for it any more.
    """

    own = b""
    key: Hashable = None
    sent = suspect = again = left = False
    gone = 0
    result: bytes | Exception | None = None
    event: Any = None

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.wake: Callable[[], bool] = lambda: False

    def late(self) -> Exception:
        """What is raised when its time is over."""
        if self.suspect or self.again:
            return self.unknown()
        if not self.sent:
            return TimeoutError(f"timed out: request {self.key!r} was not sent")
        return TimeoutError(f"timed out: no answer to request {self.key!r} came")

    def unknown(self, error: OSError | None = None) -> OutcomeUnknown:
        """What is raised when it may have been on a connection that was lost, or that an error
        keeps the answer from."""
        number, what = errno.ECONNRESET, "a connection was lost"
        if error is not None:
            number, what = error.errno or number, error.strerror or what
        return OutcomeUnknown(
            number,
            f"{what} while request {self.key!r} was in flight, and no answer came: it may have "
            "been carried out or not",
            self.message,
        )


class Book:
    """The requests that wait, by key.

    Args:
        key, answer_key, renumber, grace, hold: as of `Exchange`.
    """

    def __init__(
        self, key: Key, answer_key: Key | None, renumber: bool, grace: float, hold: float
    ) -> None:
        for name, seconds in (("grace", grace), ("hold", hold)):
            if not seconds >= 0:
                raise ArgumentError(name, f"must be seconds, 0 or more, not {seconds!r}")
        self._key = _reader("key", key)
        self._answer_key = self._key if answer_key is None else _reader("answer_key", answer_key)
        # What a function says of a message is the peer's to choose: whatever it raises, or returns
        # that can't be hashed, must not keep the message for ever.
        self._no_key: tuple[type[Exception], ...] = (
            _NO_KEY if isinstance(self._answer_key, _FieldReader) else (Exception,)
        )
        self._fields = self._whole_fields() if renumber else None
        self._number = -1
        self._grace, self._hold = grace, hold
        self._lock = RLock()
        self.waiting: dict[Hashable, Request] = {}
        self.strays: collections.deque[Stray] = collections.deque(maxlen=REMEMBERED)
        # Until when the keys of those that were given up are not used again.
        self._given_up: collections.OrderedDict[Hashable, float] = collections.OrderedDict()
        self._answered: collections.OrderedDict[Hashable, None] = collections.OrderedDict()
        self._suspects: collections.deque[tuple[float, list[Request]]] = collections.deque()

    def enter(self, request: Request, again: bool = False) -> None:
        """Have a request wait; `again` for one that had been entered before."""
        with self._lock:
            now = time.monotonic()
            self._forget(now)
            if again:
                request.again = True
                request.result, request.sent, request.suspect = None, False, False
                self._given_up.pop(request.key, None)
            elif self._fields:
                self._renumber(request, self._fields[0])
            else:
                request.key = _key_of(self._key, request.message)
            if request.key in self.waiting:
                raise ArgumentError("message", f"request {request.key!r} is in flight already")
            if request.key in self._given_up:
                raise ArgumentError(
                    "message",
                    f"request {request.key!r} was given up, and its answer may still come; use "
                    f"another key, or wait for {self._given_up[request.key] - now:.0f} s",
                )
            self.waiting[request.key] = request

    def _forget(self, now: float) -> None:
        """Have the keys used again whose late answers need not be expected any more."""
        while self._given_up and next(iter(self._given_up.values())) <= now:
            self._given_up.popitem(last=False)

    def _renumber(self, request: Request, field: Field) -> None:
        own = _key_of(self._key, request.message)
        count = field.largest + 1
        number = own if self._number < 0 else self._number
        for _ in range(min(count, len(self.waiting) + len(self._given_up)) + 1):
            number = (number + (self._number >= 0)) % count
            self._number = number
            if number not in self.waiting and number not in self._given_up:
                break
        else:
            raise KCMOSError(
                errno.EBUSY, f"all {count} numbers belong to requests in flight or given up"
            )
        request.key = number
        request.own = request.message[field.offset : field.end]
        request.message = _with(
            request.message, field, number.to_bytes(field.size, field.byteorder)
        )

    def answer(self, message: bytes) -> None:
        """Hand a message to the request that it answers."""
        with self._lock:
            try:
                key = self._answer_key(message)
                request = self.waiting.get(key)
            except self._no_key:
                self.strays.append(Stray(message, StrayReason.NO_KEY))
                return
            if request is None:
                self.strays.append(Stray(message, self._why(key)))
                return
            if self._fields:
                message = _with(message, self._fields[1], request.own)
            self._end(request, message)
            self._answered[key] = None
            if len(self._answered) > REMEMBERED:
                self._answered.popitem(last=False)

    def _why(self, key: Hashable) -> StrayReason:
        if self._given_up.pop(key, None) is not None:
            self._answered[key] = None
            return StrayReason.LATE
        return StrayReason.REPEATED if key in self._answered else StrayReason.UNASKED

    def _end(self, request: Request, result: bytes | Exception) -> None:
        request.result = result
        request.wake()
        self.waiting.pop(request.key, None)

    def fail(self, request: Request, error: Exception) -> None:
        """End a request that was not sent."""
        with self._lock:
            request.sent = False
            self._end(request, error)

    def leave(self, request: Request) -> None:
        """Its call ends: if it still waits, it is given up."""
        with self._lock:
            if self.waiting.get(request.key) is request:
                self._give_up(request)
                del self.waiting[request.key]

    def _give_up(self, request: Request) -> None:
        if request.sent:
            self._answered.pop(request.key, None)
            self._given_up[request.key] = time.monotonic() + self._hold

    def lose(self, gone: int, at_once: bool) -> None:
        """Connections were lost, and all that had arrived on them was handed over.

        Args:
            gone: how many have gone by now.
            at_once: there is no grace.
        """
        with self._lock:
            self._suspect(gone)
            self._expire(at_once)

    def _suspect(self, gone: int) -> None:
        requests = [r for r in self.waiting.values() if r.sent and not r.suspect and r.gone < gone]
        self._suspects.append((time.monotonic() + self._grace, requests))
        for request in requests:
            request.suspect = True

    def expire(self) -> float | None:
        """End the suspects whose time is over; in how many seconds the next one's is."""
        with self._lock:
            return self._expire()

    def _expire(self, at_once: bool = False) -> float | None:
        while self._suspects:
            deadline, requests = self._suspects[0]
            left = deadline - time.monotonic()
            if left > 0 and not at_once:
                return left
            for request in requests:
                if self.waiting.get(request.key) is request and request.suspect:
                    self._give_up(request)
                    self._end(request, request.unknown())
            self._suspects.popleft()
        return None

    def _whole_fields(self) -> tuple[Field, Field]:
        fields = []
        for name, reader in (("key", self._key), ("answer_key", self._answer_key)):
            field = reader.field if isinstance(reader, _FieldReader) else None
            if field is None or field.largest != (1 << 8 * field.size) - 1:
                raise ArgumentError(name, "must be a Field with all its bits, to be renumbered")
            fields.append(field)
        if fields[0].size != fields[1].size:
            raise ArgumentError("answer_key", "must be as large as key, to be renumbered")
        return fields[0], fields[1]


class _FieldReader:
    def __init__(self, field: Field) -> None:
        self.field = field

    def __call__(self, message: bytes) -> int:
        return self.field.read(memoryview(message))


def _reader(name: str, key: Key) -> Callable[[bytes], Hashable]:
    if isinstance(key, tuple):
        key = Field(*key)
    if isinstance(key, Field):
        return _FieldReader(key)
    if not callable(key):
        raise ArgumentError(name, f"must be a Field, its (offset, size) or a function, not {key!r}")
    return key


def _key_of(reader: Callable[[bytes], Any], message: bytes) -> Any:
    try:
        return reader(message)
    except _NO_KEY as error:
        raise ArgumentError("message", f"{len(message)} bytes have no key") from error


def _with(message: bytes, field: Field, number: bytes) -> bytes:
    return message[: field.offset] + number + message[field.end :]


# ---- how a call waits while another one receives ----


def in_thread(request: Request) -> None:
    """Give a request an event for a thread."""
    import threading

    event = request.event = threading.Event()

    def wake() -> bool:
        event.set()
        return True

    request.wake = wake


def in_task(request: Request) -> None:
    """Give a request an event for the task that runs."""
    call: Callable[[Callable[[], object]], object]
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        event = trio.Event()
        call = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        import asyncio

        event = asyncio.Event()
        call = asyncio.get_running_loop().call_soon_threadsafe
    request.event = event

    def wake() -> bool:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            call(event.set)
            return True
        return False

    request.wake = wake
