"""What an earlier core got wrong and no kernel with KCM is needed to see.

The numbers are those of the list by which they were fixed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading

import pytest

import pykcm
from pykcm import _kernel, _loopback, _offset
from tests.children import in_child
from tests.unit.stand_in import World, stand_in


def test_49_importing_changes_no_warning_filter() -> None:
    """49. It did, since warnings of lost data were ResourceWarnings, which Python hides."""
    code = (
        "import warnings; before = list(warnings.filters)\n"
        "import pykcm\n"
        "for name in pykcm.__all__: getattr(pykcm, name)\n"
        "assert warnings.filters == before, warnings.filters"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("warning", [pykcm.UnsentWarning, pykcm.UnreadWarning])
def test_49_lost_data_is_shown_by_default(warning: type[Warning]) -> None:
    code = f"import warnings, pykcm; warnings.warn('lost', pykcm.{warning.__name__})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "lost" in result.stderr


@pytest.mark.parametrize("framing", ["DNS", None, 1.5, b"", object()])
def test_55_what_is_not_a_framing(framing: object) -> None:
    """55. `Multiplexor("DNS")` was accepted, and the wrong framing showed at attach."""
    with pytest.raises(pykcm.ArgumentError, match="framing"):
        pykcm.Multiplexor(framing)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1.5, 0, -1, 2**31, "1", None])
def test_36_a_size_that_cannot_be(size: object) -> None:
    """36. `max_message_size=1.5` was taken."""
    with pytest.raises(pykcm.ArgumentError, match="max_message_size"):
        pykcm.KCMSocket(max_message_size=size)  # type: ignore[arg-type]


def test_11_an_experiment_is_made_before_messages_are_at_stake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """11. An OSError of the one for SOCK_SEQPACKET, made inside `recv`, lost a batch."""
    stand_in(monkeypatch)
    tried = []

    def fails() -> bool:
        tried.append(True)
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("pykcm._trials.seqpacket_keeps_the_rest", fails)
    near, far = _loopback.connection()
    with near, far:
        with pykcm.KCMSocket(socket.SOCK_SEQPACKET) as kcm:
            with pytest.raises(pykcm.KCMOSError, match="EMFILE"):
                kcm.attach(near, pykcm.FixedLength(3))
            assert tried.pop()
            ours, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, wire:
                os.dup2(ours.fileno(), kcm.fileno(), inheritable=False)
                wire.send(bytes(5000))
                wire.send(b"next")
                assert kcm.recv(1, timeout=1) == bytes(5000)
                assert kcm.recv_many(timeout=1) == [b"next"]
    assert not tried


def test_17_an_event_loop_goes_on_while_a_multiplexor_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """17. aflush and leaving the block waited in the loop's thread, for seconds."""
    stand_in(monkeypatch)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    async def main(world: World) -> None:
        ticking = asyncio.create_task(tick())
        with contextlib.suppress(TimeoutError):
            while True:
                world.mux.send(bytes(1000), timeout=0)
        mux = world.mux
        calls: dict[str, tuple[object, ...]] = {
            "asend": (b"no room",),
            "aflush": (),
            "arecv": (),
            "aunattach": (world.near,),
        }
        for name, arguments in calls.items():
            before = ticks
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(getattr(mux, name)(*arguments), 0.3)
            assert ticks - before > 10, name
        ticking.cancel()

    with contextlib.closing(World()) as world:
        with monkeypatch.context() as patch:  # as if much were queued in the kernel
            patch.setattr(_kernel, "memory", lambda _: [1000] * 9)
            asyncio.run(main(world))


def test_23_a_fork_while_another_thread_asks_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """23. The child's attach waited for ever for a lock that the other thread had held."""
    asking, go_on = threading.Event(), threading.Event()

    def ask() -> _offset.Strategy:
        asking.set()
        assert go_on.wait(30)
        return _offset.NONE

    monkeypatch.setattr(_offset, "_found", None)
    monkeypatch.setattr(_offset, "_ask_kernel", ask)
    thread = threading.Thread(target=_offset.find_strategy)
    thread.start()
    assert asking.wait(30)

    def find() -> None:
        monkeypatch.setattr(_offset, "_ask_kernel", lambda: _offset.PROBE)
        assert _offset.find_strategy() is _offset.PROBE

    try:
        in_child(find)
    finally:
        go_on.set()
        thread.join()
