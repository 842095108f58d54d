"""docs/upstream.md: the program that kcm.rst should show separates messages on this kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pykcm import bpf
from pykcm.selftest.calls import Calls
from pykcm.selftest.environment import Environment
from pykcm.selftest.lab import Lab, framed
from pykcm.selftest.versions import running

DOCUMENT = Path(__file__).parents[2] / "docs/upstream.md"

# What <bpf/bpf_helpers.h> of libbpf has.
HELPERS = """\
#define SEC(name) __attribute__((section(name), used))
static long (*bpf_probe_read_kernel)(void *, __u32, const void *) = (void *)113;
"""


@pytest.mark.skipif(not shutil.which("clang-19"), reason="clang-19 is not installed")
@pytest.mark.skipif(running() < (5, 16), reason="the numbers are those of later kernels")
def test_the_program(tmp_path: Path) -> None:
    [text] = re.findall(r"```c\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    source, code = tmp_path / "thrift.c", tmp_path / "thrift.o"
    source.write_text(text.replace("#include <bpf/bpf_helpers.h>\n", HELPERS), encoding="utf-8")
    command = ["clang-19", "-O2", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu"]
    subprocess.run([*command, "-c", str(source), "-o", str(code)], check=True)
    with bpf.Program.from_elf(code) as program, Lab(Calls(), Environment()) as lab:
        kcm = lab.kcm()
        near, far = lab.tcp()
        messages = [framed(bytes([number]) * number) for number in range(50)]
        lab.calls.tcp_send(far, b"".join(messages))
        lab.attach(kcm, near, program)
        lab.received(kcm, messages)
