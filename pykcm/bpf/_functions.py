"""What the kernel must know of a program's functions to verify each of them once.

A function that a program calls is walked through again at every call, unless it is "global": then
the verifier looks at it once, with arguments of which nothing is known (btf_prepare_func_args in
kernel/bpf/btf.c): numbers since Linux 5.6, pointers since 5.12.  That takes a description of its
type, BTF (Documentation/bpf/btf.rst).  Here all functions of a program have the same type.
"""

from __future__ import annotations

import struct

from pykcm.bpf import _instructions as isa

_ARGUMENTS = 5

# Documentation/bpf/btf.rst: the kinds of types, what a function's linkage can be, an int's flag.
_INT, _PTR, _ARRAY, _FUNC, _FUNC_PROTO = 1, 2, 3, 12, 13
_STATIC, _GLOBAL = 0, 1
_SIGNED = 1 << 24


def starts(code: bytes) -> list[int]:
    """The slots at which the program and the functions that it calls begin, in order."""
    program = isa.decode(code)
    called = {
        slot + 1 + instruction.imm
        for slot, instruction in enumerate(program)
        if instruction.opcode == isa.CALL_IMM and instruction.src == isa.CALL_LOCAL
    }
    return sorted({0} | called & set(range(len(program))))


def describe(slots: list[int], size: int) -> tuple[bytes, bytes]:
    """The BTF of a program, and its array of struct bpf_func_info; empty if it calls no function.

    Args:
        slots: as `starts` returns them.
        size: the functions take a pointer to so many bytes; or five numbers, for 0.
    """
    if len(slots) == 1:
        return b"", b""
    names = bytearray(b"\0")
    types: list[bytes] = []

    def name(text: str) -> int:
        at = len(names)
        names.extend(text.encode() + b"\0")
        return at

    def add(text: str, kind: int, more: int, *data: int) -> int:
        """The number of a type, from 1, of which the name and the kind come first."""
        words = (name(text) if text else 0, kind << 24 | more, *data)
        types.append(struct.pack(f"={len(words)}I", *words))
        return len(types)

    integer = add("int", _INT, 0, 4, _SIGNED | 32)
    argument = number = add("__u64", _INT, 0, 8, 64)
    count = _ARGUMENTS
    if size:
        byte = add("char", _INT, 0, 1, 8)
        argument, count = add("", _PTR, 0, add("", _ARRAY, 0, 0, byte, number, size)), 1
    arguments = (name("argument"), argument) * count
    program = add("program", _FUNC, _STATIC, add("", _FUNC_PROTO, 0, integer))
    prototype = add("", _FUNC_PROTO, count, number, *arguments)
    functions = [add(f"function_{slot}", _FUNC, _GLOBAL, prototype) for slot in slots[1:]]
    length = sum(map(len, types))
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, length, length, len(names))
    pairs = zip(slots, [program, *functions], strict=True)
    records = b"".join(struct.pack("=II", *pair) for pair in pairs)
    return b"".join([header, *types, names]), records
