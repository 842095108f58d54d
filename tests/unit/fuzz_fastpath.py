"""Random calls of _fastpath.c, for a build under the sanitizers; test_sanitizers.py runs it.

python -m tests.unit.fuzz_fastpath [SECONDS [SEED [_fastpath.so [_native.so]]]]
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import random
import socket
import sys
import threading
import time
from typing import Any


def use(name: str, file: str) -> None:
    """Have a module be imported from this file."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


class StruckError(Exception):
    pass


def odd(random: random.Random, *usual: Any) -> Any:
    """An argument, now and then one that cannot be."""
    strange: tuple[Any, ...] = (None, -1, 0, 1, 1 << 31, 1 << 70, "x", b"y", 1.5, [], -(1 << 63))
    return random.choice(strange) if random.random() < 0.15 else random.choice(usual)


def payload(random: random.Random) -> Any:
    size = random.choice((0, 1, 5, 99, 100, 101, 500, 8191, 8192, 8193, 9000, 9000, 20000))
    kind = random.choice((bytes, bytes, bytes, bytearray, memoryview))
    # Now and then of messages that RULES divide.
    return kind(random.choice((random.randbytes(size), b"\0\1x" * (size // 3))))


def one_call(random: random.Random, owner: Any, peer: socket.socket) -> None:
    flags = random.choice((0, 0x40, 0x40, 0x2 | 0x40, 0x8000 | 0x40, 0x40000 | 0x40, 0x20 | 0x40))
    timeout: Any = random.choice((0, 0, 0, 0.0001, 0.001, "x", -1, float("nan"), []))
    port = owner._port
    sizes = (0, 1, 10, 100, 20000)
    match random.randrange(20):
        case 0 | 1 | 2:
            for _ in range(random.randrange(10)):
                peer.send(payload(random))
        case 3:
            owner.recv(odd(random, *sizes), odd(random, flags), timeout=timeout)
        case 4:
            owner.recv_many(odd(random, 1, 2, 64, 100), odd(random, flags), timeout=timeout)
        case 5:
            owner.send(odd(random, payload(random)), odd(random, flags), timeout=timeout)
        case 6:
            many = [odd(random, payload(random)) for _ in range(random.randrange(150))]
            owner.send_many(random.choice((many, iter(many))), flags & ~0x8000, timeout=timeout)
        case 7:
            owner.recv_into(odd(random, bytearray(100)), odd(random, *sizes), 0x40)
        case 8:
            owner.recvfrom(odd(random, *sizes), 0x40 | flags)
        case 9:
            owner.recvmsg(odd(random, *sizes), 0, 0x40 | flags)
        case 10:
            owner.recvmsg_into(odd(random, [bytearray(50), bytearray(7)]), 0, 0x40 | flags)
        case 11:
            for _ in range(random.randrange(20)):
                peer.recv(30000)
        case 12:
            port.room = random.choice((1, 2, 100, 9000, 9001, 20000, 1 << 20))
        case 13:
            port.ahead = random.choice((0, 1, 3, 64))
            port.keeps_rest = random.random() < 0.1
            if random.random() < 0.3:
                port.set_rule(odd(random, *RULES), odd(random, 1, 7, 64))
        case 14:
            port.pull()
            port.push()
        case 15:
            port.report(object())
            next(port, None)
        case 16:
            operation = random.choice((owner.arecv, owner.arecv_many, owner.__anext__))()
            with contextlib.suppress(StopIteration):
                operation.send(None)
                for _ in range(3):
                    random.choice(
                        (
                            lambda: operation.send(None),
                            lambda: operation.throw(StruckError()),
                            lambda: operation.throw(StruckError),
                            operation.close,
                        )
                    )()
        case 17:
            random.choice((owner.asend, owner.asend_many))(odd(random, [b"x"], b"y"))
        case 18:
            owner.recv(*[odd(random, 1)] * random.randrange(4), **{random.choice("ab"): 1})
        case 19:
            if random.random() < 0.05 and threading.active_count() == 1:
                child = os.fork()
                if not child:
                    with contextlib.suppress(BaseException):
                        for _ in range(20):
                            one_call(random, owner, peer)
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
            gc.collect(0)


def round_of(random: random.Random, own: Any, path: Any) -> int:
    kind = random.choice((socket.SOCK_SEQPACKET, socket.SOCK_DGRAM))
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    calls = 0

    def go(seed: int) -> None:
        nonlocal calls
        mine = type(random)(seed)
        for _ in range(300):
            calls += 1
            # All that these arguments lead to; a crash is what this is to find.
            with contextlib.suppress(
                OSError, TypeError, ValueError, OverflowError, RuntimeError, BufferError,
                AttributeError, StopAsyncIteration, MemoryError, StruckError,
            ):  # fmt: skip
                one_call(mine, owner, theirs)

    with ours, theirs:
        theirs.setblocking(False)
        owner = own(path, ours, random.choice((1, 100, 10000, 30000)))
        owner.timeout = 0.001
        seeds = [random.randrange(1 << 30) for _ in range(random.choice((1, 1, 1, 4)))]
        threads = [threading.Thread(target=go, args=(seed,)) for seed in seeds[1:]]
        for thread in threads:
            thread.start()

        async def in_loop() -> None:
            go(seeds[0])

        asyncio.run(in_loop())
        for thread in threads:
            thread.join()
    return calls


# What divides super messages; made when pykcm can be imported.
RULES: list[bytes] = []


def main(seconds: float = 10, seed: int | None = None, *files: str) -> None:
    for name, file in zip(("pykcm._fastpath", "pykcm._native"), files, strict=False):
        use(name, file)
    from pykcm import _fastpath
    from pykcm.framing import Delimiter, FixedLength, LengthField
    from tests.unit.port_owner import own

    framings = (LengthField(size=2), FixedLength(3), Delimiter(b"x"))
    RULES[:] = [framing.memory_program() for framing in framings]
    seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    print(f"seed {seed}", flush=True)
    sys.setswitchinterval(1e-4)
    chance, end, calls = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        calls += round_of(chance, own, _fastpath)
    print(f"{calls} calls")


if __name__ == "__main__":
    main(*(kind(given) for kind, given in zip((float, int, str, str), sys.argv[1:], strict=False)))
