"""`kcm connect`, over a multiplexor of user space; tests/kernel has it over the kernel's."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pykcm import cli
from pykcm.cli import _session
from tests.unit.test_unavailable import has_kcm
from tests.unit.user_space_multiplexor import Multiplexor

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
FRAMING = ["--length-field", "size=2"]


@pytest.fixture(autouse=True)
def user_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session, "Multiplexor", Multiplexor)


def framed(body: bytes) -> bytes:
    return struct.pack(">H", len(body)) + body


class Server:
    """Accepts connections, and has a handler for each, in a thread of its own."""

    def __init__(self, handle: Callable[[socket.socket], object]) -> None:
        self._handle = handle
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))  # until it listens, connections are refused
        self.port = self._listener.getsockname()[1]
        self.accepted = 0
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._listener.listen()
        self._begin(self._accept)

    def close(self) -> None:
        """End it all, whatever its threads are doing."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:  # the first is the one that adds others
            for tcp in self._connections:
                with contextlib.suppress(OSError):
                    tcp.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self._listener.close()

    def _begin(self, run: Callable[[], object]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                tcp, _ = self._listener.accept()
                self.accepted += 1
                self._connections.append(tcp)
                self._begin(functools.partial(self._serve, tcp))

    def _serve(self, tcp: socket.socket) -> None:
        with tcp, contextlib.suppress(OSError):
            self._handle(tcp)


def read_message(tcp: socket.socket) -> bytes:
    """One message, b"" at the end."""
    header = tcp.recv(2, socket.MSG_WAITALL)
    if len(header) < 2:
        return b""
    return header + tcp.recv(struct.unpack(">H", header)[0], socket.MSG_WAITALL)


def echo(tcp: socket.socket) -> None:
    while message := read_message(tcp):
        tcp.sendall(message)


def answer_the_first(tcp: socket.socket) -> None:
    tcp.sendall(read_message(tcp))
    while tcp.recv(100):
        pass


def ask(tcp: socket.socket) -> None:
    tcp.sendall(framed(b"x"))
    tcp.recv(1)


Serve = Callable[[Callable[[socket.socket], object]], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Makes servers, which are gone with the test."""
    with contextlib.ExitStack() as stack:

        def serve(handle: Callable[[socket.socket], object]) -> Server:
            server = stack.enter_context(contextlib.closing(Server(handle)))
            server.start()
            return server

        yield serve


@pytest.fixture
def echo_server(serve: Serve) -> Server:
    return serve(echo)


class Clock:
    """The session's time: it stands still until something has happened, then goes on by steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.until: Callable[[], bool] = lambda: True
        monkeypatch.setattr(_session, "time", SimpleNamespace(monotonic=self._monotonic))

    def _monotonic(self) -> float:
        if self.until():
            self.now += 0.05
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the session has received."""
    messages: list[bytes] = []
    recv_many = Multiplexor.recv_many

    def noting(self: Multiplexor, *, timeout: float) -> list[bytes]:
        got = recv_many(self, timeout=timeout)
        messages.extend(got)
        return got

    monkeypatch.setattr(Multiplexor, "recv_many", noting)
    return messages


class Run:
    """A command line run in this process, its input in a pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, *arguments: object, text: str = "") -> tuple[int, str, str]:
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        with os.fdopen(reading) as stdin:
            self._monkeypatch.setattr(sys, "stdin", stdin)
            with pytest.raises(SystemExit) as exit_:
                cli.main(["connect", *map(str, arguments)])
        assert isinstance(exit_.value.code, int)
        return (exit_.value.code, *self._capfd.readouterr())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capfd)


@pytest.mark.skipif(has_kcm(), reason="this kernel has KCM")
def test_a_kernel_without_kcm() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pykcm", "connect", "localhost", "1", "dns"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("kcm connect: this kernel has no AF_KCM; load the module")


@pytest.mark.parametrize("connections", [1, 4])
def test_what_is_said_comes_back(connections: int, echo_server: Server, run: Run) -> None:
    lines = [f"message {number}" for number in range(100)]
    status, out, err = run(
        *("127.0.0.1", echo_server.port, *FRAMING, "--body", "-n", connections),
        text="".join(f"{line}\n" for line in lines),
    )
    assert (status, err) == (0, "")
    assert sorted(out.splitlines()) == sorted(lines)
    assert echo_server.accepted == connections


@pytest.mark.parametrize(
    ("format_", "line"),
    [
        ("text", r"\x00\x02h\xff"),
        ("hex", "000268ff"),
        ("base64", "AAJo/w=="),
        ("json", r'"\u0000\u0002h\udcff"'),
    ],
)
def test_the_formats(format_: str, line: str, echo_server: Server, run: Run) -> None:
    address = "127.0.0.1", echo_server.port
    # The last line needs no end.
    assert run(*address, *FRAMING, "--format", format_, text=line) == (0, f"{line}\n", "")


def test_files_and_times(echo_server: Server, run: Run, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(framed(b"1"))
    arguments = ["--file", tmp_path / "one", "--file", tmp_path / "one", "--times"]
    status, out, _ = run("127.0.0.1", echo_server.port, *FRAMING, *arguments)
    assert status == 0
    assert re.fullmatch(r"(\d\d:\d\d:\d\d\.\d{6} \\x00\\x011\n){2}", out)
    (tmp_path / "one").write_bytes(b"\0\2x")
    status, _, err = run("127.0.0.1", echo_server.port, *FRAMING, *arguments)
    assert (status, "one: it has 3 bytes, and by its header 4" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "line", "said"),
    [
        ([], r"\x00\x05abc", "it has 5 bytes, and by its header 7"),
        ([], "", "a message has at least one byte"),
        ([], r"\x00", "1 bytes are not a whole header"),
        ([], r"\q", r"'\q' is not \n"),
        (["--format", "hex"], "0", "not hexadecimal"),
        (["--format", "base64"], "!", "not base64"),
        (["--format", "json"], "3", "not a JSON string"),
        (["--format", "json"], "{", ""),  # in the words of the Python at hand
        (["--body", "--max-length", "8"], "abcdefg", "a length of 9 is over the maximum, 8"),
    ],
)
def test_a_line_that_is_no_message_is_told_and_the_others_sent(
    arguments: list[str], line: str, said: str, echo_server: Server, run: Run
) -> None:
    good = {"hex": "000161", "base64": "AAFh", "json": r'"\u0000\u0001a"'}.get(
        arguments[-1] if arguments else "", "a" if "--body" in arguments else r"\x00\x01a"
    )
    address = "127.0.0.1", echo_server.port
    status, out, err = run(*address, *FRAMING, *arguments, text=f"{line}\n{good}\n")
    assert (status, out) == (1, f"{good}\n")
    assert err.startswith(f"kcm connect: line 1: {said}")


def test_unanswered_messages(run: Run, serve: Serve, clock: Clock, came: list[bytes]) -> None:
    server = serve(answer_the_first)
    clock.until = lambda: len(came) == 1
    arguments = ["--wait", "0.3", "--json", "--body"]
    status, out, err = run("127.0.0.1", server.port, *FRAMING, *arguments, text="a\nb\n")
    assert (status, out) == (3, "a\n")
    assert 0.3 <= clock.now < 1.0
    report = {"sent": 2, "received": 1, "unanswered": 1, "ended": [], "lost": False}
    assert json.loads(err) == report


def test_no_answers_are_expected(run: Run, serve: Serve) -> None:
    got: list[bytes] = []
    done = threading.Event()

    def collect(tcp: socket.socket) -> None:
        while message := read_message(tcp):
            got.append(message)
        done.set()

    server = serve(collect)
    arguments = ["--wait", "0", "--body"]
    assert run("127.0.0.1", server.port, *FRAMING, *arguments, text="a\nb\n") == (0, "", "")
    assert done.wait(PATIENCE)
    assert got == [framed(b"a"), framed(b"b")]


def test_a_connection_that_is_lost(run: Run, serve: Serve) -> None:
    def half(tcp: socket.socket) -> None:
        tcp.sendall(read_message(tcp) + b"\0\5cut")

    waiting = [*FRAMING, "--body", "--wait", PATIENCE]
    status, out, err = run("127.0.0.1", serve(half).port, *waiting, text="a\n")
    assert (status, out) == (4, "a\n")
    assert "connection lost: 127.0.0.1:1: the peer closed the connection; 5 bytes" in err
    status, out, err = run("127.0.0.1", serve(read_message).port, *FRAMING, "--body", text="a\n")
    assert (status, out) == (5, "")
    assert err == "kcm connect: 1 sent, 0 received, 1 unanswered\n"


@pytest.mark.usefixtures("no_resolver")
def test_nobody_is_there(run: Run) -> None:
    with contextlib.closing(Server(echo)) as server:  # which does not listen
        port = server.port
        status, out, err = run("127.0.0.1", port, *FRAMING)
    assert (status, out, err) == (1, "", f"kcm connect: 127.0.0.1:{port}: Connection refused\n")
    status, _, err = run("no.such.host.invalid", 1, *FRAMING)
    assert (status, err.count("\n")) == (1, 1)


def test_reconnecting(run: Run, serve: Serve, clock: Clock) -> None:
    """Each connection answers once; what is sent later goes over the next one."""

    def once(tcp: socket.socket) -> None:
        tcp.sendall(read_message(tcp))

    server = serve(once)
    clock.until = lambda: server.accepted >= 2
    arguments = ["--body", "--reconnect", "--rate", "2"]
    status, out, err = run("127.0.0.1", server.port, *FRAMING, *arguments, text="a\nb\n")
    assert (status, out, err) == (0, "a\nb\n", "")
    assert server.accepted >= 2


def test_a_server_that_comes_later(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent before is kept until there is a connection."""
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        if len(told) == 2:
            server.start()

    monkeypatch.setattr(_session, "say", say)
    with contextlib.closing(Server(echo)) as server:
        options = "--body", "--reconnect"
        status, out, err = run("127.0.0.1", server.port, *FRAMING, *options, text="a\nb\n")
    assert (status, out, err) == (0, "a\nb\n", "")
    refused = f"127.0.0.1:{server.port}: Connection refused; again in"
    assert told == [f"{refused} 0.2 s", f"{refused} 0.4 s"]


def test_answers_by_their_id(run: Run, serve: Serve, clock: Clock, came: list[bytes]) -> None:
    """They come in the wrong order, and one does not come."""

    def backwards(tcp: socket.socket) -> None:
        messages = [read_message(tcp) for _ in range(4)]
        time.sleep(0.05)
        tcp.sendall(b"".join(reversed(messages[1:])))
        tcp.recv(1)

    arguments = ["--body", "--id", "2:1", "--rtt", "--json", "--wait", "0.5"]
    server = serve(backwards)
    clock.until = lambda: len(came) == 3
    status, out, err = run("127.0.0.1", server.port, *FRAMING, *arguments, text="1\n2\n3\n4\n")
    report = json.loads(err)
    assert (status, out, report["unanswered"]) == (3, "4\n3\n2\n", 1)
    assert 40 < report["rtt_ms"]["min"] <= report["rtt_ms"]["p50"] <= report["rtt_ms"]["max"]


def listening(*arguments: str) -> subprocess.Popen[str]:
    """`kcm connect --listen` in a process of its own, with no input."""
    script = (
        "import sys; from pykcm import cli; from pykcm.cli import _session\n"
        "from tests.unit.user_space_multiplexor import Multiplexor\n"
        "_session.Multiplexor = Multiplexor; cli.main()"
    )
    command = ["connect", "--listen", "127.0.0.1", "0", *FRAMING, "--body", *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", script, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def port_of(served: subprocess.Popen[str]) -> int:
    assert served.stderr is not None
    return int(served.stderr.readline().rsplit(":", 1)[1])


def test_listening_ends_with_the_peer() -> None:
    with listening("-n", "2") as served:
        address = "127.0.0.1", port_of(served)
        for text in (b"one", b"two"):
            with socket.create_connection(address, PATIENCE) as client:
                client.sendall(framed(text))
        out, err = served.communicate(timeout=PATIENCE)
    assert (served.returncode, sorted(out.split()), err) == (0, ["one", "two"], "")


def test_listening_and_a_command() -> None:
    """Two clients, each of which gets its own answers; then SIGINT."""
    with listening("--exec", "tr a-z A-Z") as served:
        address = "127.0.0.1", port_of(served)
        clients = [socket.create_connection(address, PATIENCE) for _ in range(2)]
        for client, text in zip(clients, (b"one", b"two"), strict=True):
            client.sendall(framed(text))
        assert [read_message(each) for each in clients] == [framed(b"ONE"), framed(b"TWO")]
        for client in clients:
            client.close()
        served.send_signal(signal.SIGINT)
        assert served.communicate(timeout=PATIENCE) == ("", "")
        assert served.returncode == 130


def test_a_command_that_fails(run: Run, serve: Serve) -> None:
    server = serve(ask)
    status, out, err = run("127.0.0.1", server.port, *FRAMING, "-1", "--exec", "sh -c 'exit 7'")
    assert (status, out) == (1, "")
    assert err == "kcm connect: sh: exit status 7; nothing is answered\n"
    status, _, err = run("127.0.0.1", server.port, *FRAMING, "-1", "--exec", "/no/such/command")
    assert (status, err) == (1, "kcm connect: /no/such/command: No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["localhost", "1"], "which framing?"),
        (["localhost", "1", "dsn"], "there is no framing 'dsn'; did you mean 'DNS'?"),
        (["localhost", "70000", "dns"], "Invalid value for 'PORT'"),
        (["localhost", "1", "mqtt", "--body"], "--body: the headers of MQTT can't be made here"),
        (["localhost", "1", "dns", "--rtt", "-n", "2"], "--rtt: over several connections"),
        (["localhost", "1", "dns", "--id", "2"], "Invalid value for '--id': '2' is not OFFSET"),
        (["localhost", "1", "dns", "--exec", "'"], "Invalid value for '--exec'"),
        (["localhost", "1", "dns", "--listen", "--reconnect"], "--reconnect is not for --listen"),
        (["localhost", "1", "dns", "--recconect"], "there is no option --recconect; did you mean"),
    ],
)
def test_a_mistake_in_the_command_line(arguments: list[str], said: str, run: Run) -> None:
    status, out, err = run(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"kcm connect: {said}")
