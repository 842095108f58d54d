"""A server with many peers: a Multiplexor for each, handshakes that hold nobody up, workers.

    python examples/server.py [--port PORT] [--workers N]

A connection begins with a line, "HELLO" and the peer's name, which is answered by "OK"; then come
Thrift frames.  The connections of one name belong to one peer, and share a Multiplexor: an answer
goes out on whichever of them is free, so a frame begins with a number that its answer repeats.

SIGTERM and SIGINT stop it: it takes no more requests, finishes those that it has, and hands their
answers to TCP.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import resource
import signal
import socket
from collections.abc import Coroutine
from typing import Any

from pykcm import Delimiter, Disconnected, KCMError, Multiplexor, protocols

HELLO = Delimiter(b"\n", max_length=256)
# How long a handshake may take, and finishing, in seconds.
PATIENCE = 10.0
# How many requests of one peer are worked on at a time; the others wait in the kernel.
WINDOW = 64


def work(request: bytes) -> bytes:
    """What the workers do: the text in capitals, behind its length and number."""
    return request[:8] + request[8:].upper()


class Peer:
    """One peer, its connections, and what it has asked."""

    def __init__(self, server: Server) -> None:
        self.mux = Multiplexor(protocols.THRIFT_FRAMED, linger=PATIENCE)
        self.open = True
        self._server = server
        self._room = asyncio.Semaphore(WINDOW)

    async def serve(self) -> None:
        """Answer until its last connection has gone, or the server stops."""
        answers: set[asyncio.Task[None]] = set()
        try:
            async for request in self.mux:
                await self._room.acquire()
                task = asyncio.ensure_future(self._answer(request))
                answers.add(task)
                task.add_done_callback(answers.discard)
        finally:
            self.open = False
            if answers:
                await asyncio.wait(answers, timeout=PATIENCE)
            await self.mux.aclose()

    async def _answer(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._server.workers, work, request)
            with contextlib.suppress(Disconnected):  # nobody is left to have it
                await self.mux.asend(answer)
                self._server.answered += 1
        finally:
            self._room.release()


class Server:
    """Accepts connections, and has a task for each peer."""

    def __init__(self, workers: int) -> None:
        self.workers = concurrent.futures.ThreadPoolExecutor(workers)
        self.answered = 0
        self._peers: dict[bytes, Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket) -> None:
        """Accept for ever; each connection has a task of its own for its handshake."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                tcp, _ = await loop.sock_accept(listener)
            except OSError as error:  # there is no descriptor left; some may be closed soon
                print(f"a connection is not accepted: {error}", flush=True)
                await asyncio.sleep(0.1)
            else:
                self._start(self._begin(tcp))

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self, tcp: socket.socket) -> None:
        try:
            line = await asyncio.wait_for(HELLO.aread_message(tcp), PATIENCE)
            greeting, name = line.split()
            if greeting != b"HELLO":
                raise ValueError("this is another protocol")
            await asyncio.get_running_loop().sock_sendall(tcp, b"OK\n")
            # Without an await between these, so that the peer cannot end meanwhile.
            peer = self._peers.get(name)
            if peer is None or not peer.open:
                peer = self._peers[name] = Peer(self)
                self._start(self._serve(name, peer))
            peer.mux.attach(tcp, hand_over=True)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            print(f"a connection is refused: {error!r}", flush=True)
            tcp.close()

    async def _serve(self, name: bytes, peer: Peer) -> None:
        try:
            await peer.serve()
        except KCMError as error:
            print(f"{name.decode()}: {error}", flush=True)
        finally:
            if self._peers.get(name) is peer:
                del self._peers[name]

    async def stop(self) -> None:
        """Take no more requests, and wait until those that were taken are answered."""
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self.workers.shutdown()


async def run(listener: socket.socket, workers: int) -> None:
    server = Server(workers)
    accepting = asyncio.ensure_future(server.accept(listener))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, accepting.cancel)
    print(f"port {listener.getsockname()[1]}", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await accepting
    listener.close()
    await server.stop()
    print(f"stopped after {server.answered} answers", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer Thrift-framed requests of many peers.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    # A Multiplexor has 7 descriptors, and each of its connections 2; `ulimit -Hn` is the most.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with socket.create_server(("127.0.0.1", arguments.port), backlog=1024) as listener:
        asyncio.run(run(listener, arguments.workers))


if __name__ == "__main__":
    main()
