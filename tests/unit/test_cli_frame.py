"""`kcm frame`: what it prints of a framing, and what it finds in a capture."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import dpkt
import pytest

from pykcm import bpf, cli, protocols
from pykcm.cli import _capture, _check
from pykcm.cli._scan import Message, Scan

ROOT = Path(__file__).parents[2]
KCM = [sys.executable, "-m", "pykcm", "frame"]
FRAMES = [b"\0\5hello", b"\0\3abc", b"\0\0", b"\1\0" + bytes(256)]
STREAM = b"".join(FRAMES)
SIZE = "size=2,max_length=1000"


def kcm(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*KCM, *arguments], cwd=ROOT, input=data, capture_output=True, check=False, timeout=60
    )


def checked(data: bytes, *arguments: str, fields: str = SIZE) -> tuple[int, dict[str, Any]]:
    """The exit status of --check on a capture, and its report."""
    result = kcm("--length-field", fields, "--check", "-", "--json", *arguments, data=data)
    assert result.stderr == b""
    return result.returncode, json.loads(result.stdout)


def messages(frames: list[bytes]) -> list[dict[str, int]]:
    offsets = [sum(map(len, frames[:i])) for i in range(len(frames))]
    return [
        {"offset": offset, "length": len(frame), "lost": 0}
        for offset, frame in zip(offsets, frames, strict=True)
    ]


# ---- programs ----


def test_the_formats_are_the_same_program(tmp_path: Path) -> None:
    code = bpf.assemble(protocols.DNS.assembly())
    assert kcm("dns", "--format", "text").stdout.decode() == protocols.DNS.assembly()
    assert kcm("dns", "--format", "bytes").stdout == code
    described = json.loads(kcm("dns", "--json").stdout)
    assert described["bytes"] == code.hex()
    assert described["max_length"] == 65537
    array = kcm("dns", "--format", "c-array").stdout.decode()
    # The compiler is asked what the array holds.
    (tmp_path / "dump.c").write_text(
        f"#include <linux/bpf.h>\n#include <stdio.h>\nstruct bpf_insn a[] = {{\n{array}}};\n"
        "int main(void) { return fwrite(a, sizeof(a), 1, stdout) != 1; }\n"
    )
    compile_c(tmp_path / "dump.c", tmp_path / "dump")
    assert subprocess.check_output([tmp_path / "dump"]) == code


def compile_c(source: Path, program: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)]
    subprocess.run(command, check=True)


@pytest.mark.parametrize(
    "arguments", [["dns"], ["resp", "--batch", "4"], ["--delimiter", r"\r\n"], ["--varint", ""]]
)
def test_the_c_source_compiles(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "pin.c").write_bytes(kcm(*arguments, "--format", "c").stdout)
    compile_c(tmp_path / "pin.c", tmp_path / "pin")
    assert subprocess.run([tmp_path / "pin"], capture_output=True, check=False).returncode == 2


def test_a_title_does_not_end_the_comment(tmp_path: Path) -> None:
    file = tmp_path / "x*-.toml"
    file.write_text('protocol = "DNS"')
    text = kcm("--framing-file", str(file), "--format", "c").stdout.decode()
    assert text.startswith("/*\n * A delineation program for KCM: x*-.toml\n")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["frame", "--list"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    with pytest.raises(SystemExit):
        cli.main(["frame", "--list", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed["framings"]] == list(protocols.ALL)
    assert all(f"\n{name} " in f"\n{shown}" for name in protocols.ALL)
    assert listed["left_out"] == dict(protocols.LEFT_OUT)
    assert {(each["name"], each["connections"]) for each in listed["framings"]} == {
        (each.name, each.connections) for each in protocols.ALL.values()
    }


def test_bytes_are_not_for_a_terminal() -> None:
    controller, terminal = os.openpty()
    try:
        result = subprocess.run(
            [*KCM, "dns", "--format", "bytes"],
            cwd=ROOT,
            stdout=terminal,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(controller)
    assert result.returncode == 1
    assert b"bytes are not for a terminal" in result.stderr


@pytest.mark.parametrize("mode", ["999", "1000", "rw"])
def test_an_impossible_mode(mode: str) -> None:
    result = kcm("dns", "--pin", "/sys/fs/bpf/x", "--mode", mode)
    assert result.returncode == 2
    assert result.stderr.startswith(b"kcm frame: Invalid value for '--mode'")


# ---- raw streams ----


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 300])
def test_a_scan_in_pieces(piece: int) -> None:
    scan = Scan(protocols.THRIFT_FRAMED)
    stream = b"\0\0\0\5hello\0\0\0\0\0\0\1\0" + bytes(256)
    for at in range(0, len(stream), piece):
        scan.feed(stream[at : at + piece])
    scan.finish()
    assert scan.messages == [Message(0, 9), Message(9, 4), Message(13, 260)]
    assert scan.problem is None


def test_a_whole_stream() -> None:
    status, report = checked(STREAM)
    (stream,) = report["streams"]
    assert (status, report["whole"], stream["problem"]) == (0, True, None)
    assert stream["messages"] == messages(FRAMES)
    assert checked(b"")[0] == 0


@pytest.mark.parametrize(
    ("cut", "said"),
    [(1, "ends after 257 of this message's 258"), (257, "within a header, 1 bytes after")],
)
def test_a_stream_that_ends_in_a_message(cut: int, said: str) -> None:
    status, report = checked(STREAM[:-cut])
    (stream,) = report["streams"]
    assert (status, report["whole"]) == (3, False)
    assert stream["messages"] == messages(FRAMES[:-1])
    assert (stream["problem"]["kind"], stream["problem"]["offset"]) == ("cut", 14)
    assert said in stream["problem"]["text"]


def test_a_bad_header_is_shown(tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    capture.write_bytes(b"\0\5hello" + b"\xff\xffGET / HTTP/1.1\r\n" + bytes(100))
    result = kcm("--length-field", SIZE, "--check", str(capture))
    assert result.returncode == 3
    lines = result.stdout.decode().splitlines()
    assert lines[1].split() == ["0", "7"]
    assert lines[2].split() == ["7", "refused"]
    assert "over the maximum" in lines[3]
    assert "ff ff 47 45 54 20 2f 20 48 54 54 50 2f 31 2e 31  |..GET / HTTP/1.1|" in lines[4]
    assert max(map(len, lines)) <= 80
    assert len(lines) == 2 + 2 + 4 + 1


def test_a_framing_that_only_the_kernel_can_run(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('kind = "assembly"\ntext = "r0 = 8; exit"')
    result = kcm("--framing-file", str(file), "--check", "-", data=b"x" * 8)
    assert result.returncode == 1
    assert b"only the kernel can run" in result.stderr


# ---- captures ----


def packet(sequence: int, data: bytes, flags: int = dpkt.tcp.TH_ACK) -> bytes:
    tcp = dpkt.tcp.TCP(sport=40000, dport=53, seq=sequence % (1 << 32), flags=flags, data=data)
    ip = dpkt.ip.IP(
        src=socket.inet_aton("10.0.0.1"), dst=socket.inet_aton("10.0.0.2"), p=6, data=tcp
    )
    ip.len = len(ip)
    return bytes(dpkt.ethernet.Ethernet(type=dpkt.ethernet.ETH_TYPE_IP, data=ip))


def packet6(sequence: int, data: bytes, flags: int = dpkt.tcp.TH_ACK) -> bytes:
    tcp = dpkt.tcp.TCP(sport=40000, dport=53, seq=sequence % (1 << 32), flags=flags, data=data)
    address = socket.inet_pton(socket.AF_INET6, "fe80::1")
    ip = dpkt.ip6.IP6(src=address, dst=address, nxt=6, plen=len(tcp), data=tcp)
    ip.extension_hdrs = {}
    return bytes(dpkt.ethernet.Ethernet(type=dpkt.ethernet.ETH_TYPE_IP6, data=ip))


def pcap(*packets: bytes, writer: Any = dpkt.pcap.Writer, snaplen: int = 65535) -> bytes:
    file = io.BytesIO()
    made = writer(file)
    for number, each in enumerate(packets):
        made.writepkt(each[:snaplen], ts=1.5 + number)
    return file.getvalue()


FIRST = (1 << 32) - 6  # the numbers wrap in the middle
SYN = packet(FIRST - 1, b"", dpkt.tcp.TH_SYN)


def split(*sizes: int) -> list[bytes]:
    """The stream in segments of these sizes, and the rest."""
    packets, at = [], 0
    for size in (*sizes, len(STREAM)):
        packets.append(packet(FIRST + at, STREAM[at : at + size]))
        at = min(len(STREAM), at + size)
    return packets


@pytest.mark.parametrize("writer", [dpkt.pcap.Writer, dpkt.pcapng.Writer])
@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3], [3, 1, 0, 2], [0, 1, 0, 1, 2, 3, 3]], ids=["in order", "not", "twice"]
)
def test_segments_in_any_order(writer: Any, order: list[int]) -> None:
    packets = split(3, 5, 8)
    status, report = checked(pcap(SYN, *(packets[i] for i in order), writer=writer))
    (stream,) = report["streams"]
    assert stream["messages"] == messages(FRAMES)
    assert (stream["source"], stream["destination"]) == ("10.0.0.1:40000", "10.0.0.2:53")
    assert (status, report["whole"], stream["begun"]) == (0, True, True)


def test_ipv6_and_segments_that_overlap() -> None:
    syn = packet6(9, b"", dpkt.tcp.TH_SYN)
    overlapping = [packet6(10 + at, STREAM[at : at + 100]) for at in range(0, len(STREAM), 60)]
    status, report = checked(pcap(syn, *overlapping))
    assert report["streams"][0]["messages"] == messages(FRAMES)
    assert (status, report["streams"][0]["source"]) == (0, "[fe80::1]:40000")


def test_a_lost_packet_in_a_body_is_named_and_stepped_over() -> None:
    packets = split(20, 100)
    follows = packet(FIRST + len(STREAM), b"\0\1x")
    status, report = checked(pcap(SYN, packets[0], packets[2], follows))
    (stream,) = report["streams"]
    assert (status, stream["lost"], stream["problem"]) == (3, 100, None)
    assert stream["messages"][3] == {"offset": 14, "length": 258, "lost": 100}
    assert stream["messages"][4] == {"offset": 272, "length": 3, "lost": 0}


def test_a_lost_header_ends_it() -> None:
    packets = split(6, 10)
    status, report = checked(pcap(SYN, packets[0], packets[2]))
    (stream,) = report["streams"]
    assert (status, stream["lost"], stream["bytes"]) == (3, 10, len(STREAM))
    assert (stream["problem"]["kind"], stream["problem"]["offset"]) == ("lost", 7)
    assert stream["messages"] == [{"offset": 0, "length": 7, "lost": 1}]


def test_a_capture_of_packets_beginnings() -> None:
    status, report = checked(pcap(SYN, *split(14), snaplen=14 + 20 + 20 + 20))
    (stream,) = report["streams"]
    assert (status, stream["lost"]) == (3, 238)
    assert stream["messages"][3] == {"offset": 14, "length": 258, "lost": 238}


def test_a_capture_that_began_too_late() -> None:
    status, report = checked(pcap(*split(7)[1:]))
    assert (status, report["whole"], report["streams"][0]["begun"]) == (3, False, False)
    assert len(report["streams"][0]["messages"]) == 3


def test_a_connection_with_the_same_ports_is_another_stream() -> None:
    again = [packet(99, b"", dpkt.tcp.TH_SYN), packet(100, b"\0\1x")]
    _, report = checked(pcap(SYN, *split(), *again))
    assert [len(stream["messages"]) for stream in report["streams"]] == [4, 1]


def test_the_streams_of_a_port() -> None:
    assert len(checked(pcap(SYN, *split()), "--port", "53")[1]["streams"]) == 1
    assert checked(pcap(SYN, *split()), "--port", "54")[1]["streams"] == []
    refused = kcm("--length-field", SIZE, "--check", "-", "--port", "53", data=STREAM)
    assert refused.returncode == 2


@pytest.mark.parametrize("writer", [dpkt.pcap.Writer, dpkt.pcapng.Writer])
def test_a_capture_that_is_cut(writer: Any) -> None:
    """Wherever it is cut there is a status and no traceback."""
    content = pcap(SYN, *split(20), writer=writer)
    for size in range(4, len(content), 7):
        try:
            streams, damaged = _capture.read(
                io.BytesIO(content[:size]), lambda: Scan(protocols.THRIFT_FRAMED), None
            )
        except _capture.CaptureError:
            continue
        assert isinstance(damaged, str)
        assert len(streams) <= 1
    status, report = checked(content[:-3])
    assert (status, report["whole"]) == (_check.NOT_WHOLE, False)


@pytest.mark.parametrize("writer", [dpkt.pcap.Writer, dpkt.pcapng.Writer])
def test_a_damaged_capture(writer: Any) -> None:
    random_ = random.Random(7)
    content = pcap(SYN, *split(20, 3), packet6(9, b"\0\1x"), writer=writer)
    for _ in range(500):
        damaged = bytearray(content)
        for _ in range(random_.choice((1, 2, 8))):
            value = random_.choice((0, 6, 44, 60, 255, random_.randrange(256)))
            damaged[random_.randrange(4, len(damaged))] = value
        with contextlib.suppress(_capture.CaptureError):
            _capture.read(io.BytesIO(damaged), lambda: Scan(protocols.THRIFT_FRAMED), None)


def test_a_link_type_that_is_not_known() -> None:
    file = io.BytesIO()
    dpkt.pcap.Writer(file, linktype=127)
    result = kcm("dns", "--check", "-", data=file.getvalue())
    assert (result.returncode, result.stdout) == (1, b"")
    assert (
        result.stderr == b"kcm frame: -: its link type, 127, is none of those that are known here\n"
    )


def test_no_dpkt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "x.pcap").write_bytes(pcap(SYN))
    monkeypatch.setitem(sys.modules, "dpkt", None)
    with pytest.raises(SystemExit):
        cli.main(["frame", "dns", "--check", str(tmp_path / "x.pcap")])
    assert capsys.readouterr().err == (
        "kcm frame: dpkt is missing; install pykcm with its extra: pykcm[capture]\n"
    )
