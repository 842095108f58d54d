"""The documents' blocks that need a server, run as typed against it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.documents import Block, all_blocks
from tests.peers.conversations import exactly
from tests.peers.servers import PATIENCE, SERVERS, Root

BLOCKS = [block for block in all_blocks() if block.server]


@contextlib.contextmanager
def debian(name: str, root: Root, log: Path) -> Iterator[None]:
    SERVERS[name].prepare(root)
    with SERVERS[name].run(root, log):
        yield


@contextlib.contextmanager
def cassandra(root: Root, log: Path) -> Iterator[None]:
    """Debian has none: a stand-in that answers OPTIONS on each connection."""

    def answer(tcp: socket.socket) -> None:
        with tcp:
            head = exactly(tcp)(9)
            assert head[:5] == b"\4\0\0\0\5"
            tcp.sendall(b"\x84\0\0\0\6" + (2).to_bytes(4, "big") + bytes(2))  # SUPPORTED: nothing
            with contextlib.suppress(ConnectionResetError):
                assert tcp.recv(1) == b""

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=[listener.accept()[0]]).start()

    with socket.create_server(("127.0.0.1", 9042)) as listener:
        thread = threading.Thread(target=accept, args=[listener])
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)


def thrift_answer(names: dict[str, Any]) -> None:
    assert names["answer"][4:8] == b"\x80\1\0\2"  # a reply


def dns_answer(names: dict[str, Any]) -> None:
    for answer in names.get("answers", [names.get("answer")]):
        assert answer[4:6] == b"\x85\0"  # authoritative, no error
        assert answer.endswith(bytes([0, 4, 192, 0, 2, 1]))


def cassandra_answer(names: dict[str, Any]) -> None:
    assert names["answer"][4] == 6


NEEDS: dict[str, tuple[Any, Callable[[dict[str, Any]], None]]] = {
    "a Thrift server": (lambda *where: debian("Thrift", *where), thrift_answer),
    "a DNS server": (lambda *where: debian("Knot DNS", *where), dns_answer),
    "a Cassandra server": (cassandra, cassandra_answer),
}


@pytest.mark.parametrize("block", [pytest.param(block, id=block.where) for block in BLOCKS])
def test_block(block: Block, root: Root, tmp_path: Path) -> None:
    server, check = NEEDS[block.server]
    names: dict[str, Any] = {"__name__": "block"}
    with server(root, tmp_path / "log"):
        exec(compile(block.text, block.where, "exec"), names)
    check(names)


def test_there_are_such_blocks() -> None:
    assert {block.server for block in BLOCKS} == {*NEEDS}
