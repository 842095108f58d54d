"""`kcm connect` and `kcm frame --pin` on a real kernel, as an operator types them."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

KCM = [sys.executable, "-m", "pykcm"]
PATIENCE = 90
QUERIES = 200
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
PIN = Path("/sys/fs/bpf/kcm_connect")


def read_message(tcp: socket.socket) -> bytes:
    header = tcp.recv(2, socket.MSG_WAITALL)
    if len(header) < 2:
        return b""
    return header + tcp.recv(struct.unpack(">H", header)[0], socket.MSG_WAITALL)


class NameServer:
    """Answers DNS over TCP as RFC 7766 allows it: in any order, cut anywhere."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            tcp, _ = self.listener.accept()
            self.accepted += 1
            threading.Thread(target=self._serve, args=(tcp,), daemon=True).start()

    def _serve(self, tcp: socket.socket) -> None:
        random_ = random.Random(self.accepted)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting: list[bytes] = []
        with tcp:
            while query := read_message(tcp):
                waiting.append(query[:4] + bytes([query[4] | 0x80]) + query[5:])
                random_.shuffle(waiting)
                tcp.settimeout(0.2)
                try:
                    more = bool(tcp.recv(1, socket.MSG_PEEK))
                except TimeoutError:
                    more = False
                tcp.settimeout(None)
                if len(waiting) < 5 and more:
                    continue
                stream = b"".join(waiting)
                waiting.clear()
                cut = random_.randrange(len(stream))
                tcp.sendall(stream[:cut])
                tcp.sendall(stream[cut:])


def query(number: int) -> str:
    """The message of a question for n<number>.example, without its length, in hex."""
    name = b"".join(bytes([len(part)]) + part for part in (b"n%d" % number, b"example", b""))
    return (struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + name + b"\0\1\0\1").hex()


def ask(server: NameServer, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
    """Ask it all the queries over four connections, and check the answers."""
    queries = [query(number) for number in range(QUERIES)]
    options = ["--format", "hex", "--body", "--id", "2:2", "--rtt", "--json", "-n", "4"]
    result = subprocess.run(
        [*prefix, *KCM, "connect", "127.0.0.1", str(server.port), "dns", *options, *arguments],
        input="".join(f"{each}\n" for each in queries),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers = [each[:4] + "81" + each[6:] for each in queries]
    assert sorted(result.stdout.split()) == sorted(answers)
    report = json.loads(result.stderr)
    assert (report["sent"], report["received"], report["unanswered"]) == (QUERIES, QUERIES, 0)
    assert 0 < report["rtt_ms"]["p50"] <= report["rtt_ms"]["max"]
    assert server.accepted == 4


def test_a_name_server_answers_what_is_typed() -> None:
    ask(NameServer())


def test_a_pinned_program_needs_no_privilege() -> None:
    """An administrator types one command; who has no capability uses what it leaves."""
    command = [*KCM, "frame", "dns", "--pin", str(PIN), "--mode", "640", "--json"]
    pinned = json.loads(subprocess.check_output(command, timeout=PATIENCE))
    try:
        shown = subprocess.check_output([*KCM, "disasm", "--id", str(pinned["id"])], text=True)
        assert "if r8 s> 65537 goto " in shown  # the longest message, as the kernel has it
        # Before Linux 5.19 opening a pin needs what loading needs.
        old = int(os.uname().release.split(".")[0]) < 6
        ask(NameServer(), "--pinned", str(PIN), prefix=() if old else WITHOUT_CAPABILITIES)
    finally:
        PIN.unlink()


def test_a_connection_that_is_reset() -> None:
    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as tcp:
            tcp.sendall(read_message(tcp))
            time.sleep(1)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        port = str(listener.getsockname()[1])
        options = ["--format", "hex", "--body", "--wait", "60"]
        result = subprocess.run(
            [*KCM, "connect", "127.0.0.1", port, "dns", *options],
            input=query(1),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (result.returncode, result.stdout) == (4, query(1) + "\n"), result.stderr
    assert f"connection lost: 127.0.0.1:{port}: the connection was reset" in result.stderr


def test_listening_with_a_command() -> None:
    """Each of two clients gets the answers to its own messages."""
    command = ["connect", "--listen", "127.0.0.1", "0", "--length-field", "size=2", "--body"]
    with subprocess.Popen(
        [*KCM, *command, "--exec", "tr a-z A-Z"], stderr=subprocess.PIPE, text=True
    ) as served:
        assert served.stderr is not None
        port = int(served.stderr.readline().rsplit(":", 1)[1])
        clients = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(2)]
        for client, text in zip(clients, (b"\0\3one", b"\0\5three"), strict=True):
            client.sendall(text)
        assert [read_message(client) for client in clients] == [b"\0\3ONE", b"\0\5THREE"]
        for client in clients:
            client.close()
        served.send_signal(2)
        assert served.wait(PATIENCE) == 130
        assert served.stderr.read() == ""
