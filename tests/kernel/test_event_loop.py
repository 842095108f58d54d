"""An event loop beside a flooded multiplexor whose connections end: no call blocks it."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from pykcm import Multiplexor, _loopback

from .connections import FRAMING, PATIENCE, message
from .test_draining import flood

# How often the ticker ticks, and how late a tick may come, in seconds on a machine of its own.
TICK = 0.005
LATE = 0.05

# An emulated guest is ten times slower than its host.
EMULATED = 10


async def lateness(seconds: float) -> float:
    """By how much the latest tick of some seconds came too late."""
    latest = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        due = time.monotonic() + TICK
        await asyncio.sleep(TICK)
        latest = max(latest, time.monotonic() - due)
    return latest


async def receive(mux: Multiplexor) -> None:
    async for _ in mux:
        pass


async def end_connections(mux: Multiplexor) -> int:
    """Attach connections that end, some of them in the middle of a message."""
    count = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            near, far = _loopback.connection()
            mux.attach(near, hand_over=True)
            far.sendall(message(b"short") + message(bytes(100))[: 50 * (count % 2)])
            far.close()
            count += 1
            await asyncio.sleep(0.05)
    return count


@pytest.mark.timeout(4 * PATIENCE)
def test_no_tick_is_late() -> None:
    async def main() -> tuple[float, float, int]:
        jitter = await lateness(2)
        with flood() as busy:
            async with Multiplexor(FRAMING) as mux:
                mux.attach(busy)
                receiver = asyncio.create_task(receive(mux))
                ending = asyncio.create_task(end_connections(mux))
                latest = await lateness(5)
                ending.cancel()
                count = await ending
                receiver.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await receiver
        return jitter, latest, count

    jitter, latest, count = asyncio.run(main())
    print(f"latest tick {latest * 1000:.0f} ms, without pykcm {jitter * 1000:.0f} ms, {count} ends")
    assert count > 3
    assert latest < jitter + EMULATED * LATE
