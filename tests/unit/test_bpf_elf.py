"""Objects from clang: what they load as, and what is refused by name."""

from __future__ import annotations

import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pykcm import bpf
from pykcm.bpf import Program, elf
from pykcm.errors import BPFError, UnavailableError, VerifierError
from tests.unit.bpf_oracle import llvm_version, needs_bpf, needs_v4, tool

pytestmark = needs_bpf

SOURCES = Path(__file__).with_name("c")
LICENSE = 'char _license[] SEC("license") = "GPL";\n'


def compiled(source: str | Path, directory: Path, *options: str, target: str = "bpf") -> Path:
    """Compile a file of tests/unit/c, or a text that follows `#include "bpf.h"`."""
    if isinstance(source, str):
        text = f'#include "bpf.h"\n{source}'
        source = directory / "program.c"
        source.write_text(text, encoding="ascii")
    output = directory / f"{source.stem}.o"
    multiarch = sysconfig.get_config_var("MULTIARCH")
    subprocess.run(
        [
            *(tool("clang"), "-target", target, "-O2", "-g", "-Wall", "-Werror", *options),
            *("-I", str(SOURCES), "-I", f"/usr/include/{multiarch}"),
            *("-c", str(source), "-o", str(output)),
        ],
        check=True,
        timeout=60,
    )
    return output


def test_the_kernels_own_example_loads_and_measures_the_first_message(tmp_path: Path) -> None:
    with Program.from_elf(compiled(SOURCES / "kcm_rst.c", tmp_path)) as program:
        assert program.info.name == "bpf_prog1"
        assert program.run((1000).to_bytes(4, "big") + b"x" * 20) == 1004


def test_the_version_with_the_messages_offset_loads_and_reads_it(tmp_path: Path) -> None:
    path = compiled(SOURCES / "message_offset.c", tmp_path)
    found = elf.read(path, None)
    assert (found.section, found.name, found.license) == ("socket", "thrift_framed", "Dual MIT/GPL")
    assert "call bpf_probe_read_kernel#113" in bpf.disassemble(found.code)
    assert "r0 = *(u32 *)skb[r" in bpf.disassemble(found.code)
    with Program.from_elf(path) as program:
        # A test run's skb->cb is zero: the offset of the first message.
        assert program.run((1000).to_bytes(4, "big") + b"x" * 20) == 1004


def test_the_kernel_tests_run_what_clang_makes_of_it(tmp_path: Path) -> None:
    """They have no time for clang: in an emulated guest it takes minutes."""
    code = elf.read(compiled(SOURCES / "message_offset.c", tmp_path), None).code
    text = (SOURCES / "message_offset.clang-19.bpf").read_text(encoding="ascii")
    if llvm_version() == 19:
        assert bpf.disassemble(code) in text
    with Program.load(code) as made, Program.load(text) as written:
        for data in (b"\0\0\0\5", b"\0\0\0", bytes(10), b"\0\1\2\3\4"):
            assert made.run(data) == written.run(data)


@pytest.mark.parametrize("cpu", ["v1", "v2", "v3", pytest.param("v4", marks=needs_v4)])
def test_every_instruction_set_of_clang_loads_and_disassembles(tmp_path: Path, cpu: str) -> None:
    source = """
    SEC("socket")
    int measure(struct __sk_buff *skb)
    {
        unsigned char copy[16] = {1, 2, 3};
        int sum = 0;
        for (int i = 0; i < 16; i++) {
            copy[i & 15] += load_byte(skb, i);
            sum += (signed char)copy[i] / 3 + (copy[i] % 7);
        }
        return sum;
    }
    """
    data = bytes(range(200, 216))
    copy = [(byte + add) & 255 for byte, add in zip(data, [1, 2, 3] + [0] * 13, strict=True)]
    quotients = [int((byte - 256 if byte > 127 else byte) / 3) for byte in copy]
    expected = sum(quotients) + sum(byte % 7 for byte in copy)
    if cpu in ("v1", "v2", "v3"):  # these have no signed division
        source = source.replace("(signed char)copy[i] / 3", "copy[i] / 3")
        expected = sum(byte // 3 + byte % 7 for byte in copy)
    path = compiled(source + LICENSE, tmp_path, f"-mcpu={cpu}")
    code = elf.read(path, None).code
    assert bpf.assemble(bpf.disassemble(code)) == code
    with Program.from_elf(path) as program:
        assert program.run(data) == expected


@pytest.mark.parametrize("linkage", ["static", ""], ids=["static", "global"])
def test_a_call_inside_the_section_is_resolved(tmp_path: Path, linkage: str) -> None:
    source = f"""
    {linkage} int thrice(int value);
    SEC("socket") int entry(struct __sk_buff *skb)
    {{
        return thrice(load_byte(skb, 0)) + thrice(load_byte(skb, 1));
    }}
    {linkage} __attribute__((noinline)) SEC("socket") int thrice(int value) {{ return value * 3; }}
    """
    with Program.from_elf(compiled(source + LICENSE, tmp_path)) as program:
        assert program.run(b"\x05\x09") == 42


def test_a_section_can_be_named(tmp_path: Path) -> None:
    source = """
    SEC("socket/one") int one(struct __sk_buff *skb) { return 1; }
    SEC("socket/two") int two_with_a_long_name(struct __sk_buff *skb) { return 2; }
    SEC("mine") int three(struct __sk_buff *skb) { return 3; }
    """
    path = compiled(source + LICENSE, tmp_path)
    with pytest.raises(BPFError, match=r"several programs; name one of .*: socket/one, socket/two"):
        Program.from_elf(path)
    with pytest.raises(BPFError, match=r"no section 'four' .* socket/one, socket/two, mine"):
        Program.from_elf(path, "four")
    with Program.from_elf(path, "socket/two") as two, Program.from_elf(str(path), "mine") as three:
        assert (two.run(b"x"), three.run(b"x")) == (2, 3)
        assert two.info.name == "two_with_a_long"


REFUSED = {
    "has no section 'socket' or 'socket_kcm' with a program; name one of these: xdp": (
        'SEC("xdp") int other(void *skb) { return 1; }' + LICENSE
    ),
    "has no section 'license'": 'SEC("socket") int entry(void *skb) { return 1; }',
    "uses the map 'counters' (section '.maps')": """
        struct { int (*type)[1]; } counters SEC(".maps");
        static void *(*const lookup)(void *, void *) = (void *)1;
        SEC("socket") int entry(void *skb) { int key = 0; return !lookup(&counters, &key); }
    """
    + LICENSE,
    "uses the global variable 'seen' (section '.bss')": """
        int seen;
        SEC("socket") int entry(void *skb) { return ++seen; }
    """
    + LICENSE,
    "refers to 'elsewhere', which is not in it": """
        int elsewhere(int value);
        SEC("socket") int entry(void *skb) { return elsewhere(3); }
    """
    + LICENSE,
    "in section '.text': pykcm does not link": """
        __attribute__((noinline)) int helper(int value) { return value * 3; }
        SEC("socket") int entry(void *skb) { return helper(load_byte(skb, 0)); }
    """
    + LICENSE,
    "in it only if that calls them; there are: a, b": """
        SEC("socket") int a(void *skb) { return 1; }
        SEC("socket") int b(void *skb) { return 2; }
    """
    + LICENSE,
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, words: str) -> None:
    path = compiled(REFUSED[words], tmp_path)
    with pytest.raises(BPFError) as caught:
        Program.from_elf(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_other_machines_and_other_files_are_refused(tmp_path: Path) -> None:
    host = compiled("int main(void) { return 0; }", tmp_path, target="x86_64-linux-gnu")
    with pytest.raises(BPFError, match="is for the machine EM_X86_64, not EM_BPF"):
        Program.from_elf(host)
    other = "bpfeb" if sys.byteorder == "little" else "bpfel"
    path = compiled('SEC("socket") int f(void *s) { return 1; }' + LICENSE, tmp_path, target=other)
    with pytest.raises(BPFError, match="-endian, and this host is"):
        Program.from_elf(path)
    path.write_bytes(b"no ELF at all")
    with pytest.raises(BPFError, match="is not an ELF object"):
        Program.from_elf(path)
    path.write_bytes(b"")
    with pytest.raises(BPFError, match="is not an ELF object"):
        Program.from_elf(path)
    with pytest.raises(BPFError, match=r"can't be read .*ENOENT"):
        Program.from_elf(tmp_path / "missing.o")
    with pytest.raises(BPFError, match=r"is not a regular file"):
        Program.from_elf(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_object_is_an_error_of_pykcms(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    whole = compiled(SOURCES / "message_offset.c", tmp_path).read_bytes()
    path = tmp_path / "damaged.o"
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(generator.randrange(1, 8)):
            # The file header, or the section headers at the end, half of the time.
            area = generator.choice([range(64), range(len(whole) - 1500, len(whole)), None])
            damaged[generator.choice(area or range(len(whole)))] = generator.randrange(256)
        path.write_bytes(damaged[: generator.choice([None, generator.randrange(len(whole))])])
        try:
            Program.from_elf(path).close()
        except (BPFError, UnavailableError):
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert refused > 50


def test_the_verifiers_refusal_shows_the_instruction(tmp_path: Path) -> None:
    source = 'SEC("socket") int entry(void *skb) { return *(int *)(skb + 1000); }' + LICENSE
    with pytest.raises(VerifierError, match=r"at instruction \d+:\n    r0 = \*\(u32 \*\)\(r1"):
        Program.from_elf(compiled(source, tmp_path))
