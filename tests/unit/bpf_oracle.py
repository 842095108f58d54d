"""What the BPF tests compare with: LLVM's assembler, and the table of RFC 9669's instructions.

And where they can be run: what needs bpf(2) is skipped, with the reason, where a process may not
use it (a container, say).  In a guest, the kernel tests run the semantics.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from elftools.elf.elffile import ELFFile

from pykcm import _explain, _kernel

_VERSIONS = ("22", "19")
_TABLE = Path(__file__).with_name("rfc9669.tsv")


@functools.cache
def _load(code: str) -> OSError | None:
    """What loading a program raises, given in hexadecimal so that no assembler is trusted."""
    try:
        os.close(_kernel.bpf_load(bytes.fromhex(code), b"GPL", b""))
    except OSError as error:
        return error
    return None


def _is_refused(*codes: str) -> bool:
    """Whether the verifier does not know one of the instructions."""
    errors = [_load(_SET_R0 + code + _EXIT) for code in codes]
    return sys.byteorder == "little" and errno.EINVAL in [error and error.errno for error in errors]


def _obstacle() -> str:
    """Why this process can't load the programs that the tests load; "" if it can."""
    held = _explain.capabilities()
    if "CAP_SYS_ADMIN" not in held and not {"CAP_BPF", "CAP_PERFMON"} <= held:
        return "loading the programs requires root, or CAP_BPF and CAP_PERFMON"
    error = _load(_SET_R0 + _EXIT) if sys.byteorder == "little" else None
    if error is None or error.errno not in (errno.EPERM, errno.ENOSYS):
        return ""
    return str(_explain.explain(error, _explain.LOAD, what="loading a program", count=2))


_SET_R0, _EXIT = "b700000000000000", "9500000000000000"
# gotol +0; r0 = (s8)r0: Linux 6.1's stable releases have the first but not the second.
_V4 = ("0600000000000000", "bf00080000000000")
# *(u64 *)(r10 - 8) = 0; r0 = xchg_64(r10 - 8, r0): what is older has the atomic addition alone.
_ATOMIC = "7a0af8ff00000000" + "db0af8ffe1000000"

needs_bpf = pytest.mark.skipif(_obstacle() != "", reason=_obstacle())
needs_v4 = pytest.mark.skipif(
    _is_refused(*_V4),
    reason="this kernel lacks the instructions of -mcpu=v4: it is older than 6.6",
)
needs_atomics = pytest.mark.skipif(
    _is_refused(_ATOMIC),
    reason="this kernel lacks the atomic instructions: it is older than 5.12",
)


@functools.cache
def tool(name: str) -> str:
    """The newest of Debian's versions of a program of LLVM's that this machine has."""
    for version in _VERSIONS:
        if path := shutil.which(f"{name}-{version}"):
            return path
    raise AssertionError(f"{name}-19 is missing: install Debian's packages llvm-19 and clang-19")


def llvm_version() -> int:
    """The major version of the LLVM that is asked."""
    return int(tool("llvm-mc").rpartition("-")[2])


def llvm_assemble(lines: list[str], byteorder: Literal["little", "big"] = "little") -> bytes:
    """What LLVM assembles the lines to, all in one run."""
    result = subprocess.run(
        [
            tool("llvm-mc"),
            *("-triple", "bpfel" if byteorder == "little" else "bpfeb"),
            *("-mcpu=v4", "-filetype=obj", "-o", "-"),
        ],
        input="\n".join(lines).encode() + b"\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    section = ELFFile(io.BytesIO(result.stdout)).get_section_by_name(".text")
    assert section is not None
    return bytes(section.data())


@dataclass(frozen=True)
class Row:
    """An instruction of the table.  A field that is None is free ("any")."""

    opcode: int
    src: int | None
    offset: int | None
    imm: int | None
    group: str
    llvm: int | None
    text: str
    llvm_text: str

    @property
    def slots(self) -> int:
        return 2 if self.opcode in (0x00, 0x18) else 1


@functools.cache
def table() -> tuple[Row, ...]:
    """rfc9669.tsv."""
    rows = []
    for line in _TABLE.read_text(encoding="ascii").splitlines():
        if line.startswith("#"):
            continue
        opcode, src, offset, imm, group, llvm, text, *rest = line.split("\t")
        fields = [None if field == "any" else int(field, 16) for field in (src, offset, imm)]
        rows.append(
            Row(
                opcode=int(opcode, 16),
                src=fields[0],
                offset=fields[1],
                imm=fields[2],
                group=group,
                llvm=None if llvm == "-" else int(llvm),
                text=text,
                llvm_text=rest[0] if rest else text,
            )
        )
    return tuple(rows)
