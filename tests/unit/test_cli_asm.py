"""`kcm asm` and `kcm disasm`: files there and back, pins, programs in the kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykcm import bpf, protocols
from tests.unit.bpf_oracle import needs_bpf, tool

ROOT = Path(__file__).parents[2]
TEXT = "r7 = message_offset\nr0 = *(u32 *)skb[r7 + 0]\nr0 += HEADER\nexit\n"
FRAMING = protocols.DNS.assembly()


def kcm(*arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "pykcm", *map(str, arguments)],
        cwd=ROOT,
        input=data,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_there_and_back(tmp_path: Path) -> None:
    source, code = tmp_path / "framing.s", tmp_path / "framing.bin"
    source.write_text(FRAMING)
    code.write_bytes(kcm("asm", source).stdout)
    assert code.read_bytes() == bpf.assemble(FRAMING)
    text = kcm("disasm", code).stdout
    assert kcm("asm", data=text).stdout == code.read_bytes()
    assert kcm("asm", source, "--format", "text").stdout == text
    assert json.loads(kcm("disasm", "-", "--json", data=code.read_bytes()).stdout) == {
        "assembly": text.decode(),
        "bytes": code.read_bytes().hex(),
    }


def test_symbols_and_the_offset() -> None:
    from pykcm._offset import CB4

    made = kcm("asm", "-D", "HEADER=0x4", "--strategy", "cb4", data=TEXT.encode())
    assert made.stdout == bpf.assemble(TEXT, HEADER=4, message_offset=CB4.lines())
    described = json.loads(kcm("asm", "-D", "HEADER=4", "--json", data=TEXT.encode()).stdout)
    assert described["instructions"] == len(described["bytes"]) // 16


def test_the_other_byte_order() -> None:
    code = bytes.fromhex("b700000001020304")
    shown = kcm("disasm", "-", "--byteorder", "big", data=code + bytes.fromhex("95") + bytes(7))
    assert shown.stdout == b"    r0 = 16909060\n    exit\n"


@pytest.mark.parametrize(
    ("arguments", "data", "status", "said"),
    [
        (["asm"], b"r0 = 0\nr0 = r11\n", 1, "kcm asm: -: line 2, column 6: "),
        (["asm"], b"\x7fELF\xff", 1, "kcm asm: -: not text in UTF-8"),
        (["asm", "-D", "X"], b"exit", 2, "kcm asm: Invalid value for '--define'"),
        (["asm", "/nothing/there"], b"", 1, "kcm asm: /nothing/there: No such file"),
        (["asm", "--formt", "c"], b"", 2, "kcm asm: there is no option --formt; did you mean"),
        (["disasm", "-"], b"\0" * 9, 1, "kcm disasm: -: the code has 9 bytes"),
        (["disasm", "-"], b"\xff" * 8, 1, "kcm disasm: -: instruction 0: there is no register"),
        (["disasm", "-"], b"\x7fELF", 1, "kcm disasm: an object must be a file"),
        (["disasm", "-", "--section", "x"], b"\0" * 8, 1, "kcm disasm: -: not an object"),
        (["disasm"], b"", 2, "kcm disasm: one of FILE, --pinned, --id, --attac"),
        (["disasm", "--pinned", "/none"], b"", 1, "kcm disasm: opening the pinned program"),
    ],
)
def test_bad_input(arguments: list[str], data: bytes, status: int, said: str) -> None:
    result = kcm(*arguments, data=data)
    assert (result.returncode, result.stdout) == (status, b"")
    assert result.stderr.decode().startswith(said)


def test_an_object(tmp_path: Path) -> None:
    source, compiled = tmp_path / "x.c", tmp_path / "x.o"
    source.write_text(
        '__attribute__((section("socket"), used)) int f(void *skb) { return 77; }\n'
        'char _license[] __attribute__((section("license"), used)) = "GPL";\n'
    )
    command = [
        tool("clang"),
        "-target",
        "bpf",
        "-mcpu=v2",
        "-O2",
        "-c",
        str(source),
        "-o",
        str(compiled),
    ]
    subprocess.run(command, check=True)
    assert kcm("disasm", compiled).stdout == b"    r0 = 77\n    exit\n"
    refused = kcm("disasm", compiled, "--section", "sokcet")
    assert (refused.returncode, b"there are: socket" in refused.stderr) == (1, True)
    compiled.write_bytes(compiled.read_bytes()[:200])
    refused = kcm("disasm", compiled)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1)


# ---- the kernel's programs ----


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of the test's own."""
    directory = tmp_path / "bpffs"
    directory.mkdir()
    command = ["mount", "-t", "bpf", "bpf", str(directory)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no BPF file system can be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@needs_bpf
def test_a_pin_and_its_mode(bpffs: Path) -> None:
    pin = bpffs / "counted"
    told = kcm("asm", "--pin", pin, "--mode", "640", "--json", data=b"r0 = 77; exit")
    assert told.stderr == b""
    described = json.loads(told.stdout)
    assert (described["pin"], described["mode"]) == (str(pin), "640")
    assert pin.stat().st_mode & 0o777 == 0o640
    shown = b"    r0 = 77\n    exit\n"
    assert kcm("disasm", "--pinned", pin).stdout == shown
    assert kcm("disasm", "--id", str(described["id"])).stdout == shown
    listed = json.loads(kcm("disasm", "--list", "--json").stdout)["programs"]
    (found,) = [each for each in listed if each["id"] == described["id"]]
    assert (found["tag"], found["name"], found["type"]) == (described["tag"], "pykcm", 1)
    assert found["transports"] == []
    again = kcm("asm", "--pin", pin, data=b"r0 = 77; exit")
    assert (again.returncode, b"remove it first" in again.stderr) == (1, True)


@needs_bpf
@pytest.mark.parametrize(
    "framing", [["--fixed-length", "16"], ["--length-field", "size=2", "--strategy", "cb4"]]
)
def test_a_framing_is_pinned(framing: list[str], bpffs: Path) -> None:
    pin = bpffs / "framing"
    told = kcm("frame", *framing, "--pin", pin, "--mode", "660")
    assert (told.returncode, told.stderr) == (0, b"")
    assert pin.stat().st_mode & 0o777 == 0o660
    with bpf.Program.from_pin(pin) as program:
        assert program.run(bytes(32)) == (16 if "16" in framing else 2)


@needs_bpf
def test_the_c_source_pins_the_same_program(bpffs: Path, tmp_path: Path) -> None:
    """Also one with functions, which without their types is too complex for the verifier."""
    arguments = ["--delimiter", r"\r\n", "--strategy", "none"]
    (tmp_path / "pin.c").write_bytes(kcm("frame", *arguments, "--format", "c").stdout)
    subprocess.run(["cc", "-o", tmp_path / "pin", tmp_path / "pin.c"], check=True)
    subprocess.run([tmp_path / "pin", bpffs / "framing", "600"], check=True)
    with bpf.Program.from_pin(bpffs / "framing") as program:
        assert program.run(b"GET x\r\nmore") == 7
        assert program.run(b"GET x\r") == 0


@needs_bpf
def test_a_program_that_the_verifier_refuses() -> None:
    result = kcm("asm", "--pin", "/sys/fs/bpf/x", data=b"r0 = r5\nexit")
    assert result.returncode == 1
    assert result.stderr.startswith(b"kcm asm: the verifier refused the program: ")
