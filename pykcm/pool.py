"""`Pool`: keeps a Multiplexor in connections: dials, hand-shakes, attaches, and dials again."""

from __future__ import annotations

import contextlib
import inspect
import math
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pykcm._keeping import Full, Keeping, Steps
from pykcm._wait import apause, checkpoint, deadline_after, pause
from pykcm.errors import ArgumentError

if TYPE_CHECKING:
    from typing_extensions import Self

    from pykcm.multiplexor import Multiplexor


class Pool:
    """Keeps `size` connections attached to a Multiplexor.

    `with pool:` fills it, and a thread of its own keeps it full until the block is left; `async
    with pool:` has a task do so, on asyncio or Trio.  `fill` and `run`, `afill` and `arun` are for
    those who have a thread or task for it.  Connections are dialled one after the other.

    A dial that fails is tried again after a pause, which doubles each time, and of which a random
    half is left out.  So is one whose connection ends before anything is received on it, as of a
    server that closes at once.  After a connection that served, the next is dialled without one.

    Args:
        mux: what the connections are for; they are handed over to it.
        connect: dials, hand-shakes and returns a connected `socket.socket`.  An OSError of it (a
            name that does not resolve, a refusal, a handshake that was cut or timed out) has it
            tried again; any other exception ends the trying.  It should have a time-out.  The
            asynchronous calls await it if it is a coroutine function, and else use a thread.
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
            self._drive(steps, deadline_after(timeout), forever=False)

    def run(self) -> None:
        """As `fill`, and go on until `stop`."""
        with contextlib.closing(self._keeping.steps()) as steps:
            self._drive(steps, math.inf, forever=True)

    async def afill(self) -> None:
        """As `fill`, on asyncio or Trio, without a limit; use the event loop's own."""
        with contextlib.closing(self._keeping.begin()) as steps:
            await self._adrive(steps, forever=False)

    async def arun(self) -> None:
        """As `run`, on asyncio or Trio; it may be cancelled."""
        with contextlib.closing(self._keeping.steps()) as steps:
            await self._adrive(steps, forever=True)

    def stop(self) -> None:
        """End `run` and `arun`, from any thread; the connections stay."""
        self._keeping.stop()

    def _fail(self, error: BaseException | None) -> None:
        if self.failure and (error is None or isinstance(error, OSError)):
            raise self.failure

    # ---- in threads ----

    def _drive(self, steps: Steps, deadline: float, *, forever: bool) -> None:
        with contextlib.suppress(StopIteration):
            wait = next(steps)
            while True:
                if isinstance(wait, Full) and not forever:
                    return
                if wait is not None:
                    wait = next(steps) if pause(wait, deadline) else steps.throw(_late())
                    continue
                try:
                    tcp = self._connect()
                except OSError as error:
                    wait = steps.throw(error)
                else:
                    wait = steps.send(tcp)

    def __enter__(self) -> Self:
        steps = self._keeping.begin()
        try:
            self._drive(steps, math.inf, forever=False)
        except BaseException:
            steps.close()
            raise
        self._keeper = threading.Thread(
            target=self._keep, args=[steps], name="pykcm.Pool", daemon=True
        )
        self._keeper.start()
        return self

    def _keep(self, steps: Steps) -> None:
        with contextlib.closing(steps):
            try:
                self._drive(steps, math.inf, forever=True)
            except Exception as error:
                self.failure = error

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.stop()
        self._keeper.join()
        self._fail(error)

    # ---- in tasks ----

    async def _adrive(self, steps: Steps, *, forever: bool) -> None:
        await checkpoint()
        with contextlib.suppress(StopIteration):
            wait = next(steps)
            while True:
                if isinstance(wait, Full) and not forever:
                    return
                if wait is not None:
                    await apause(wait)
                    wait = next(steps)
                    continue
                try:
                    tcp = await self._aconnect()
                except OSError as error:
                    wait = steps.throw(error)
                else:
                    wait = steps.send(tcp)

    async def _aconnect(self) -> Any:
        import anyio.to_thread

        if inspect.iscoroutinefunction(self._connect):
            return await self._connect()
        return await anyio.to_thread.run_sync(self._connect)

    async def __aenter__(self) -> Self:
        import anyio

        steps = self._keeping.begin()
        try:
            await self._adrive(steps, forever=False)
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
                await self._adrive(steps, forever=True)
            except Exception as error:
                self.failure = error

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.stop()
        self._keeper.cancel_scope.cancel()
        await self._keeper.__aexit__(None, None, None)
        self._fail(error)


def _late() -> TimeoutError:
    return TimeoutError("timed out: there are fewer connections than the pool's size")
