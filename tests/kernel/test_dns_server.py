"""A real DNS server answers what is typed into `kcm connect`, over four connections."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 90
QUESTIONS = 100


def knot() -> list[str]:
    """The command of Debian's Knot DNS: this machine's, or the one that `make peers` has fetched.

    Empty if there is neither.
    """
    if installed := shutil.which("knotd", path=f"{os.environ['PATH']}:/usr/sbin"):
        return [installed]
    for program in ROOT.glob(".cache/servers/*/usr/sbin/knotd"):
        root = program.parents[2]
        # With all libraries from there: they may be another release's.
        homes = [*root.glob("lib*/*-linux-gnu"), *root.glob("usr/lib*/*-linux-gnu")]
        loader = next(path for home in homes for path in home.glob("ld-linux*.so.*"))
        libraries = ":".join(map(str, homes))
        return [str(loader), "--library-path", libraries, str(program)]
    return []


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Knot DNS with n0.example to n99.example, each with a text of its own."""
    command = knot()
    if not command:
        pytest.skip("no knotd: install Debian's package knot, or have `make peers` fetch it")
    with socket.create_server(("127.0.0.1", 0)) as found:
        free: int = found.getsockname()[1]
    zone = ["@ 3600 SOA ns hostmaster 1 3600 600 86400 60", "@ NS ns", "ns A 192.0.2.53"]
    zone += [f'n{number} TXT "{text(number)}"' for number in range(QUESTIONS)]
    (tmp_path / "zone").write_text("\n".join(zone) + "\n", "ascii")
    (tmp_path / "knot.conf").write_text(
        f"server:\n  rundir: {tmp_path}\n  listen: 127.0.0.1@{free}\n  tcp-workers: 2\n"
        f"database:\n  storage: {tmp_path}\n"
        f"zone:\n  - domain: example\n    file: {tmp_path}/zone\n",
        "ascii",
    )
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([*command, "-c", tmp_path / "knot.conf"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", free), PATIENCE).close()
                break
            alive = server.poll() is None
            assert alive and time.monotonic() < deadline, (tmp_path / "log").read_text("utf-8")
            time.sleep(0.1)
        yield free
    finally:
        server.terminate()
        server.wait(PATIENCE)


def text(number: int) -> str:
    return f"{number}:" + "abcdefghij"[number % 10] * (number * 2)


def question(number: int) -> str:
    """A query for the text of a name, without its length, in hexadecimal digits."""
    name = b"".join(bytes([len(part)]) + part for part in (b"n%d" % number, b"example", b""))
    return (struct.pack(">6H", 5000 + number, 0, 1, 0, 0, 0) + name + b"\0\x10\0\1").hex()


def test_kcm_connect(port: int) -> None:
    kcm = [sys.executable, "-m", "pykcm", "connect", "127.0.0.1", str(port), "--framing", "dns"]
    done = subprocess.run(
        [*kcm, "-n", "4", "--format", "hex", "--body", "--id", "2:2", "--rtt", "--json"],
        input="".join(f"{question(number)}\n" for number in range(QUESTIONS)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stderr)
    assert (report["sent"], report["received"], report["unanswered"]) == (QUESTIONS, QUESTIONS, 0)
    answers = {bytes.fromhex(line)[:2]: bytes.fromhex(line) for line in done.stdout.split()}
    assert len(answers) == QUESTIONS
    for number in range(QUESTIONS):
        answer = answers[struct.pack(">H", 5000 + number)]
        assert answer[2] & 0x80  # it is an answer
        assert answer[3] & 0x0F == 0  # without error
        assert text(number).encode() in answer
