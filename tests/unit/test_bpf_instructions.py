"""Every instruction of RFC 9669: its fields, its bytes according to LLVM, and the way back."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Literal

import pytest

from pykcm.bpf import _helpers, disassemble
from pykcm.bpf.assembler import translate
from tests.unit.bpf_oracle import Row, llvm_assemble, llvm_version, table

# Whatever a jump of the table may reach.
PADDING = "\nexit" * 5
BYTE_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")


def assembled(row: Row, byteorder: Literal["little", "big"] = "little") -> bytes:
    return translate(row.text + PADDING, {}, byteorder).code[: row.slots * 8]


def test_the_table_is_the_whole_appendix() -> None:
    appendix = [row for row in table() if row.group not in ("section-5.2", "reserved")]
    assert len(appendix) == 168
    assert len({(row.opcode, row.src, row.offset, row.imm) for row in appendix}) == 168
    assert Counter(row.group for row in appendix) == {
        "base32": 65,
        "base64": 57,
        "divmul32": 10,
        "divmul64": 10,
        "atomic32": 10,
        "atomic64": 10,
        "packet": 6,
    }
    # Debian's newest LLVM knows all but the two calls whose number only a linker can tell.
    assert [row.text for row in table() if row.llvm is None] == [
        "call pc+3",
        "call kernel-function#4711",
    ]


@pytest.mark.parametrize("row", table(), ids=lambda row: row.text)
def test_the_fields_are_those_of_the_appendix(row: Row) -> None:
    code = assembled(row)
    at = 8 if row.opcode == 0 else 0  # the appendix lists the second half of a 64-bit load
    opcode, registers, offset, imm = struct.unpack_from("<BBhi", code, at)
    assert opcode == row.opcode
    assert row.src in (None, registers >> 4)
    assert row.offset in (None, offset)
    assert row.imm in (None, imm)


@pytest.mark.parametrize("byteorder", BYTE_ORDERS)
def test_the_bytes_are_those_of_llvm(byteorder: Literal["little", "big"]) -> None:
    rows = [row for row in table() if row.llvm is not None and row.llvm <= llvm_version()]
    assert len(rows) == len(table()) - 2
    expected = llvm_assemble([row.llvm_text for row in rows], byteorder)
    at = 0
    for row in rows:
        code = assembled(row, byteorder)
        assert code.hex() == expected[at : at + len(code)].hex(), row.text
        at += len(code)
    assert at == len(expected)


@pytest.mark.parametrize("byteorder", BYTE_ORDERS)
@pytest.mark.parametrize("row", table(), ids=lambda row: row.text)
def test_the_disassembler_leads_back(row: Row, byteorder: Literal["little", "big"]) -> None:
    code = translate(row.text + PADDING, {}, byteorder).code
    assert translate(disassemble(code, byteorder), {}, byteorder).code == code


def test_the_offset_into_a_maps_value_is_the_second_immediate() -> None:
    # LLVM's ld_pseudo drops it, so that RFC 9669, section 5.4, has to be the oracle.
    code = translate("r1 = map_val(map_by_fd(5)) + 8", {}, "little").code
    assert code == struct.pack("<BBhiBBhi", 0x18, 0x21, 0, 5, 0, 0, 0, 8)
    assert disassemble(code, "little") == "    r1 = map_val(map_by_fd(5)) + 8\n"


def test_the_helpers_are_those_of_the_kernels_headers() -> None:
    # Numbers are part of the kernel's interface: these were given in 3.18, 4.10, 5.5 and 5.5.
    names = _helpers.by_name()
    assert names["bpf_map_lookup_elem"] == 1
    assert names["bpf_skb_load_bytes"] == 26
    assert names["bpf_probe_read_user"] == 112
    assert names["bpf_probe_read_kernel"] == 113
    assert len(names) > 150
    assert sorted(names.values()) == list(range(len(names)))
