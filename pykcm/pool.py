"""`Pool`: keeps a Multiplexor in connections: dials, hand-shakes, attaches, and dials again."""

from __future__ import annotations

import contextlib
import math
import threading
from typing import TYPE_CHECKING, Any

from pykcm._dialling import adrive, drive
from pykcm._keeping import Keeping, Steps
from pykcm._wait import deadline_after
from pykcm.errors import ArgumentError

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from typing_extensions import Self

    from pykcm.multiplexor import Multiplexor


class Pool:
    """Keeps `size` connections attached to a Multiplexor.

    `with pool:` fills it, and a thread of its own keeps it full until the block is left; `async
    with pool:` has a task do so, on asyncio or Trio.  `fill` and `run`, `afill` and `arun` are for
    those who have a thread or task for it.  Connections are dialled one after the other.

    A dial that fails is tried again after a pause, which doubles each time, each shortened at
    random by up to half.  The same goes for a connection that ends before anything is received, as
    with a server that closes at once.  One that served is replaced without a pause; or, if it lived
    for less than a second, after the first.

    Leaving a block waits for a `connect` under way.

    Args:
        mux: what the connections are for; they are handed over to it.
        connect: dials, hand-shakes and returns a connected `socket.socket`.  An OSError of it (a
            name that does not resolve, a refusal, a handshake that was cut or timed out), an
            EOFError, or what streams of asyncio, Trio and anyio raise in the place of these, has it
            tried again; any other exception ends the trying.  It should have a time-out; that of
            `socket.create_connection` does not cover the lookup of a name.  The asynchronous calls
            call it in a thread if it is no coroutine function, and await an awaitable it returns.
        size: how many connections.
        attempts: how many failures in a row end the trying; None for never.
        backoff: the first pause and the longest, in seconds.

    Attributes:
        failure: what has ended the trying in a `with` block; leaving the block raises it.

    Raises:
        ArgumentError: size, attempts or backoff cannot be.
    """

    def __init__(
        self,
        mux: Multiplexor,
        connect: Callable[[], socket.socket | Awaitable[socket.socket]],
        size: int,
        *,
        attempts: int | None = 10,
        backoff: tuple[float, float] = (0.1, 30.0),
    ) -> None:
        for name, value in (("size", size), ("attempts", 1 if attempts is None else attempts)):
            if value < 1:
                raise ArgumentError(name, f"must be 1 or more, not {value!r}")
        if not 0 < backoff[0] <= backoff[1]:
            raise ArgumentError("backoff", f"must be two times in seconds, not {backoff!r}")
        self._connect = connect
        self._keeping = Keeping(mux, size, attempts, backoff)
        self.failure: Exception | None = None
        self._keeper: Any = None

    def fill(self, timeout: float | None = None) -> None:
        """Dial until there are `size` connections.

        Raises:
            ConnectFailed: so many attempts in a row have failed; its cause is the last failure.
            TimeoutError: the time, in seconds, is over; a `connect` under way is waited for.
            CapabilityError and others: as of `Multiplexor.attach`; they are not tried again.
            KCMOSError: EBUSY, the pool is kept already, by a `with` block or another call.
        """
        with contextlib.closing(self._keeping.begin()) as steps:
            drive(steps, self._connect, deadline_after(timeout), forever=False)

    def run(self) -> None:
        """As `fill`, and go on until `stop`."""
        with contextlib.closing(self._keeping.steps()) as steps:
            drive(steps, self._connect, math.inf, forever=True)

    async def afill(self) -> None:
        """As `fill`, on asyncio or Trio, without a limit; use the event loop's own."""
        with contextlib.closing(self._keeping.begin()) as steps:
            await adrive(steps, self._connect, forever=False)

    async def arun(self) -> None:
        """As `run`, on asyncio or Trio; it may be cancelled."""
        with contextlib.closing(self._keeping.steps()) as steps:
            await adrive(steps, self._connect, forever=True)

    def stop(self) -> None:
        """End `run` and `arun`, from any thread; the connections stay.

        With none under way, the next one ends at once; `fill`, `afill` and `with` do not.
        """
        self._keeping.stop()

    def _leave(self, error: BaseException | None) -> None:
        self._keeping.stopped()
        if self.failure and (error is None or isinstance(error, OSError)):
            raise self.failure

    # ---- in threads ----

    def __enter__(self) -> Self:
        steps = self._keeping.begin()
        try:
            drive(steps, self._connect, math.inf, forever=False)
        except BaseException:
            steps.close()
            raise
        self.failure = None  # of the block before
        self._keeper = threading.Thread(
            target=self._keep, args=[steps], name="pykcm.Pool", daemon=True
        )
        self._keeper.start()
        return self

    def _keep(self, steps: Steps) -> None:
        with contextlib.closing(steps):
            try:
                drive(steps, self._connect, math.inf, forever=True)
            except Exception as error:
                self.failure = error

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.stop()
        self._keeper.join()
        self._leave(error)

    # ---- in tasks ----

    async def __aenter__(self) -> Self:
        import anyio

        steps = self._keeping.begin()
        try:
            await adrive(steps, self._connect, forever=False)
            self.failure = None
            self._keeper = anyio.create_task_group()
            await self._keeper.__aenter__()
        except BaseException:
            steps.close()
            raise
        self._keeper.start_soon(self._akeep, steps)
        return self

    async def _akeep(self, steps: Steps) -> None:
        with contextlib.closing(steps):
            try:
                await adrive(steps, self._connect, forever=True)
            except Exception as error:
                self.failure = error

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.stop()
        self._keeper.cancel_scope.cancel()
        await self._keeper.__aexit__(None, None, None)
        self._leave(error)
