"""`Exchange`: requests and their answers over a Multiplexor, from any number of threads and tasks.

Whoever waits for an answer, and finds that nobody drives the Multiplexor, drives it: sends what had
no room before, receives, and hands answers to those who wait for them.  With its own answer it
leaves, and wakes another one to go on.  So there is no thread of the Exchange's own.
"""

from __future__ import annotations

import collections
import math
import time
from _thread import RLock
from typing import TYPE_CHECKING

from pykcm._driving import Driver, apause_in_turn
from pykcm._requests import Book, Key, Request, Stray, in_task, in_thread
from pykcm._wait import IDLE, Wait, checkpoint, deadline_after, pause
from pykcm.errors import Disconnected, KCMOSError, OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pykcm.multiplexor import Multiplexor

# In seconds: who waits longer until it drives again is a task whose loop stands still.
_STALLED = 2 * IDLE


class Exchange:
    """Requests over a Multiplexor, each with the answer that has its key.

    Nothing else may receive on the Multiplexor, and no clone of it.  Any number of threads, and of
    tasks of several event loops, may call at the same time.

    A message does not say which connection it went by.  So when one is lost, any request that was
    in flight may have been on it.  Those that are not answered by what had arrived, nor by the
    other connections within `grace` seconds, end with `OutcomeUnknown`: they may have been carried
    out or not, and are sent again only if `retry` says so.  With the last connection there is no
    grace, unless the Multiplexor queues what is sent while it has none.

    Args:
        mux: where to send and receive.
        key: what pairs an answer with its request: a `Field` such as `protocols.ALL["DNS"].id`, its
            (offset, size), or a function that is given the message, and raises ValueError,
            LookupError or struct.error of one that has none.
        answer_key: the same for answers, where it differs.
        renumber: write a free number into each request instead of its own, which its answer is
            given back; so callers need not agree on numbers.  They count up from the first
            request's own.  For keys that are Fields.
        grace: seconds, 0 or more.
        hold: for how many seconds the key of a request that was given up is not used again, since
            its answer may come late.

    Attributes:
        strays: the newest 4,096 messages that answer no request that waits, a deque of `Stray`.

    Raises:
        ArgumentError: key, answer_key, grace or hold cannot be.
    """

    def __init__(
        self,
        mux: Multiplexor,
        key: Key,
        answer_key: Key | None = None,
        *,
        renumber: bool = False,
        grace: float = 1.0,
        hold: float = 60.0,
    ) -> None:
        self._book = Book(key, answer_key, renumber, grace, hold)
        self.strays: collections.deque[Stray] = self._book.strays
        self._driver = Driver(mux, self._book)
        self._lock = RLock()
        self._leader: Request | None = None
        self._waits_since = math.inf  # since when the leader does
        self._followers: collections.OrderedDict[Request, None] = collections.OrderedDict()

    def request(self, message: bytes, *, timeout: float | None = None, retry: int = 0) -> bytes:
        """Send a request and wait for its answer.

        Args:
            message: one whole message.
            timeout: seconds for all of it; None for no limit.
            retry: how often to send it again if its outcome is unknown; only for requests that may
                be carried out twice.

        Raises:
            TimeoutError: no answer came in time; the text says whether the request was sent.
            OutcomeUnknown: a connection was lost while it was in flight, the Multiplexor was
                closed or could not receive, and no answer came; the text says which.
            Disconnected: no connection is left; it was not sent.
            ArgumentError: it has no key, or that of one that is in flight or was given up.
            KCMOSError: EBUSY (renumber: no number is free); or as of `Multiplexor.send` and `recv`.
        """
        deadline = deadline_after(timeout)
        request = Request(message)
        steps = self._steps(request, retry, in_thread)
        try:
            wait = next(steps)
            while True:
                if isinstance(wait, Wait):
                    in_time = pause(wait, deadline)
                else:
                    # Not for longer: whoever was woken to drive may be of a loop that stands still.
                    wait.event.wait(max(0, min(deadline - time.monotonic(), IDLE)))
                    in_time = wait.event.is_set() or time.monotonic() < deadline
                wait = next(steps) if in_time else steps.throw(TimeoutError())
        except StopIteration as end:
            answer: bytes = end.value
            return answer
        finally:
            steps.close()
            self._leave(request)  # again, should an exception have struck there

    async def arequest(self, message: bytes, *, retry: int = 0) -> bytes:
        """As `request`, on asyncio or Trio, without a limit; use the event loop's own."""
        await checkpoint()
        request = Request(message)
        steps = self._steps(request, retry, in_task)
        try:
            while True:
                wait = next(steps)
                await (apause_in_turn(wait) if isinstance(wait, Wait) else wait.event.wait())
        except StopIteration as end:
            answer: bytes = end.value
            return answer
        finally:
            steps.close()
            self._leave(request)

    def _steps(
        self, request: Request, retry: int, arm: Callable[[Request], None]
    ) -> Generator[Wait | Request, None, bytes]:
        try:
            self._book.enter(request)
            self._driver.send(request)
            while True:
                if request.result is None:
                    if not self._leads(request, arm):
                        yield request
                    elif self._driver.drive(request):
                        self._waits_since = time.monotonic()
                        yield self._driver.wait()
                    continue
                if not (retry > 0 and isinstance(request.result, OutcomeUnknown)):
                    break
                retry -= 1
                self._book.enter(request, again=True)
                self._driver.send(request)
        except TimeoutError:
            self._driver.forget(request)  # before it is told whether it was sent
            raise request.late() from None
        except Disconnected as error:
            if request.again:  # it was not sent again, but before
                raise request.unknown() from error
            raise
        except KCMOSError as error:
            if request.result is None:  # else it was answered before
                if request.sent or request.again:
                    raise request.unknown(error) from error
                raise
        finally:
            self._leave(request)
        if isinstance(request.result, Disconnected) and request.again:
            raise request.unknown() from request.result
        if isinstance(request.result, Exception):
            raise request.result
        return request.result

    def _leads(self, request: Request, arm: Callable[[Request], None]) -> bool:
        """Whether a request's call is the one to drive; if not, it is woken when it is to look."""
        with self._lock:
            if self._leader is None or time.monotonic() - self._waits_since > _STALLED:
                self._leader = request
            if self._leader is request:
                self._waits_since = math.inf  # it drives
                self._followers.pop(request, None)
                return True
            arm(request)
            self._followers[request] = None
            if request.result is not None:  # it came before there was an event
                request.wake()
            return False

    def _leave(self, request: Request) -> None:
        """Its call ends; may be done twice."""
        if request.left:
            return
        self._driver.forget(request)
        self._book.leave(request)
        with self._lock:
            self._followers.pop(request, None)
            if self._leader is request:
                self._leader = None
            if self._leader is None:
                next((True for follower in list(self._followers) if follower.wake()), False)
        request.left = True
