"""The examples and the documents' blocks, run as a newcomer would run them."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import Block, all_blocks, blocks

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("client", ["balancing_client.py", "async_client.py"])
def test_echo(client: str) -> None:
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "echo_server.py"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split()[1]
            answered = subprocess.run(
                [sys.executable, EXAMPLES / client, port, "--requests", "500"],
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            assert answered.stderr == ""
            assert answered.stdout == "500 answers, each to its request\n"
            output, _ = server.communicate(timeout=60)
            assert output.count(": the peer closed the connection\n") == 4
            assert server.returncode == 0
        finally:
            server.kill()


def test_a_server_with_many_peers() -> None:
    """Clients in threads and on Trio; one that says nothing, one of another protocol; SIGTERM."""
    command = [sys.executable, str(EXAMPLES / "server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split()[1]
            with socket.create_connection(("127.0.0.1", int(port))):  # whose handshake never comes
                with socket.create_connection(("127.0.0.1", int(port))) as other:
                    other.sendall(b"GET / HTTP/1.1\n")
                    assert other.recv(1) == b""
                clients = [
                    subprocess.Popen(
                        [sys.executable, EXAMPLES / name, port, "--requests", "60"],
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                    for name in ("threads_client.py", "trio_client.py")
                ]
                for client in clients:
                    output, errors = client.communicate(timeout=90)
                    assert errors == ""
                    assert output == "60 answers, each to its request\n"
                server.terminate()
                output, _ = server.communicate(timeout=60)
            assert output.splitlines()[-1] == "stopped after 120 answers"
            assert "a connection is refused: ValueError" in output
            assert server.returncode == 0
        finally:
            server.kill()


def test_a_service_without_capabilities() -> None:
    """As docs/how-to/deploy.md has it: its program was pinned by who may; tests of systemd have it
    as another user."""
    pin = Path("/sys/fs/bpf/kcm-thrift")
    kcm = [sys.executable, "-m", "pykcm", "frame", "THRIFT_FRAMED", "--pin", str(pin)]
    subprocess.run(kcm, stdout=subprocess.DEVNULL, timeout=60, check=True)
    # Before Linux 5.19 opening a pin needs what loading needs.
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    old = int(os.uname().release.split(".")[0]) < 6
    command = [sys.executable, str(EXAMPLES / "service.py"), "--pinned", str(pin)]
    try:
        with subprocess.Popen(
            command if old else drop + command, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline().split()[1])
            for text in (b"one", b"other"):  # each connection has its own answers
                with socket.create_connection(("127.0.0.1", port)) as tcp:
                    tcp.sendall(struct.pack(">I", len(text)) + text)
                    answer = tcp.recv(4 + len(text), socket.MSG_WAITALL)
                    assert answer[4:] == text.upper()
            server.terminate()
            assert server.wait(60) == 0
    finally:
        pin.unlink()


def test_a_server_with_a_thousand_peers() -> None:
    """Each has a connection and an answer of its own; what was taken when it stops is answered."""
    count, asked_last = 1000, 100
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = max(most, 10 * count)  # the server has 9 for each
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, enough))
    command = [sys.executable, str(EXAMPLES / "server.py")]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, enough))
        stack.callback(server.kill)
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[1])
        peers = []
        for n in range(count):
            peers.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)))
            peers[-1].sendall(b"HELLO peer-%d\n" % n)
        for peer in peers:
            assert peer.recv(3, socket.MSG_WAITALL) == b"OK\n"

        def ask(peers: list[socket.socket]) -> None:
            for n, peer in enumerate(peers):
                peer.sendall(struct.pack(">II", 4 + 5, n) + b"hello")

        def answers(peers: list[socket.socket]) -> int:
            right = 0
            for n, peer in enumerate(peers):
                with contextlib.suppress(ConnectionResetError):
                    answer = peer.recv(13, socket.MSG_WAITALL)
                    assert answer in (struct.pack(">II", 9, n) + b"HELLO", b"")
                    right += answer != b""
            return right

        ask(peers)
        assert answers(peers) == count
        ask(peers[:asked_last])
        server.terminate()
        output, _ = server.communicate(timeout=60)
        assert int(output.split()[-2]) - count == answers(peers[:asked_last])
        assert server.returncode == 0


def test_the_tutorial(tmp_path: Path) -> None:
    for block in blocks("docs/tutorial.md"):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "server.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split()[1]
            client = subprocess.run(
                [sys.executable, "client.py", port],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            assert (client.stdout, client.stderr) == ("500 right answers\n", "")
            for _ in range(4):
                assert server.stdout.readline().endswith(": the peer closed the connection\n")
            with socket.create_connection(("127.0.0.1", int(port))) as other:
                other.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert ": the framing refused a header" in server.stdout.readline()
        finally:
            server.kill()


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.where)
        for block in all_blocks()
        if block.needs == "KCM" and not block.server
    ],
)
def test_block(block: Block) -> None:
    exec(compile(block.text, block.where, "exec"), {"__name__": "block"})
