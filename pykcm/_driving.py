"""Driving a Multiplexor for all who wait for answers: sending what had no room, receiving."""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import select
from _thread import RLock
from typing import TYPE_CHECKING

from pykcm import _kernel
from pykcm._wait import SendSpace, Wait, apause, checkpoint, explained
from pykcm.errors import Disconnected, KCMOSError

if TYPE_CHECKING:
    from pykcm._requests import Book, Request
    from pykcm.multiplexor import Multiplexor

# How often one receives, up to 64 messages each time, before others have a turn.
_ROUNDS = 16

# How often to look, in seconds, though nothing was told: of a Multiplexor's being closed by another
# thread, nothing is.
_LOOK = 1.0


class Driver:
    """What is done by one at a time: `drive`, then `wait`.  The others `send` at most.

    Args:
        mux: the Multiplexor.
        book: where answers go.
    """

    def __init__(self, mux: Multiplexor, book: Book) -> None:
        self._mux = mux
        self._transports = mux._transports
        self._book = book
        self._gone = 0
        self._lock = RLock()
        self._unsent: collections.OrderedDict[Request, None] = collections.OrderedDict()
        self._received: collections.deque[bytes] = collections.deque()
        self._space: SendSpace | None = None
        self._again = _LOOK
        with explained():
            self._nudge = _kernel.Descriptor.event()  # readable when there is something to send
            self._events = select.epoll()
            self._events.register(mux.fileno(), select.EPOLLIN)
            self._events.register(self._nudge.fileno(), select.EPOLLIN)

    def wait(self) -> Wait:
        """What to wait for before `drive` is called again."""
        return Wait(self._events.fileno(), self._again)

    def forget(self, request: Request) -> None:
        """Its call ends: if it was not sent, it is not."""
        with self._lock:
            self._unsent.pop(request, None)

    def drive(self, request: Request) -> bool:
        """Do what can be done now; whether its call has to wait then."""
        self._nudge.set_event(False)
        self._mux._look()
        # Before receiving: what had arrived on those that are gone by now is received then.
        gone, attached = self._transports.gone, len(self._transports) > 0
        self._send_unsent()
        with contextlib.suppress(TimeoutError, Disconnected):
            for _ in range(_ROUNDS):
                # C alone lies between receiving and keeping: so nothing is lost on the way.
                receive = functools.partial(self._mux.recv_many, timeout=0)
                next(map(self._received.extend, iter(receive, None)))
                self._hand_over()
            self._again = 0.0  # there may be more
            return request.result is None
        self._hand_over()
        if gone != self._gone:
            # With none left, none can answer; but what the kernel keeps, it sends on the next.
            self._book.lose(gone, at_once=not attached and not self._mux._port.queueing)
        self._gone = gone
        left = self._book.expire()
        self._again = _LOOK if left is None else min(left, _LOOK)
        if self._transports.gone != gone:  # meanwhile, by another's look
            self._again = 0.0
        return request.result is None

    def _hand_over(self) -> None:
        while self._received:
            self._book.answer(self._received[0])
            self._received.popleft()

    def send(self, request: Request) -> None:
        """Send a request now, or have it sent when there is room."""
        if self._unsent or not self._sends(request):
            with self._lock:
                self._unsent[request] = None
            self._nudge.set_event(True)

    def _sends(self, request: Request) -> bool:
        request.gone = self._transports.gone
        request.sent = True  # before it is, so that no exception can hide it
        try:
            self._mux.send(request.message, timeout=0)
        except TimeoutError:
            request.sent = False
        except Exception:
            request.sent = False
            raise
        return request.sent

    def _send_unsent(self) -> None:
        if self._space:
            self._space.clear()
        while self._unsent:
            with self._lock:
                request = next(iter(self._unsent), None)
                if request is None:
                    break
                # Its call may end meanwhile, and must not say that it is not sent.
                request.gone = self._transports.gone
                request.sent = True
            try:
                if not self._sends(request):
                    break
            except OSError as error:
                self._book.fail(request, error)
            with self._lock:
                self._unsent.pop(request, None)
        self._watch_space()

    def _watch_space(self) -> None:
        """Be woken by room to send while something is to be sent."""
        if self._unsent and not self._space:
            space = SendSpace(self._mux._fd())
            if space.fileno() >= 0:  # without, it is tried at each look
                self._events.register(space.fileno(), select.EPOLLIN)
                self._space = space
        elif self._space and not self._unsent:
            self._space.close()  # and so is taken out of the epoll
            self._space = None


async def apause_in_turn(wait: Wait) -> None:
    """Wait in a task; at once, if a task of the same loop that drove before waits still.

    Its loop stood still, and so it lost the lead.  Its time is over, but it has not run yet: it
    does while this one looks again.
    """
    try:
        await apause(wait)
    except KCMOSError as error:
        if error.errno != errno.EBUSY:
            raise
        await checkpoint()
