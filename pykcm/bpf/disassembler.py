"""The disassembler: instructions to BPF text that assembles to the same instructions again."""

from __future__ import annotations

from pykcm.bpf import _helpers
from pykcm.bpf import _instructions as isa
from pykcm.bpf._instructions import HOST, ByteOrder, Instruction
from pykcm.errors import AssemblyError

_SIZES = {code: name for name, code in isa.SIZE_CODES.items()}
_SIGNED_SIZES = {code: name for name, code in isa.SIGNED_SIZE_CODES.items()}
_ALU = {found: name for name, found in isa.ALU_OPERATORS.items()}
_COMPARISONS = {code: name for name, code in isa.COMPARISONS.items()}
_SWAPS = {found: name for name, found in isa.SWAPS.items()}
_ATOMIC_OPERATORS = {code: name for name, code in isa.ATOMIC_OPERATORS.items()}
_FETCHES = {code | isa.FETCH: name for name, code in isa.ATOMICS.items()}
_U32 = (1 << 32) - 1


def disassemble(code: bytes, byteorder: ByteOrder = HOST) -> str:
    """Instructions as text, one on a line, with a label wherever a jump or a call goes.

    Args:
        code: a program, eight bytes for each instruction, and sixteen for a 64-bit load.
        byteorder: "little" or "big"; the host's unless said otherwise.

    Returns:
        Text that `assemble` turns into the same bytes.

    Raises:
        AssemblyError: the code is not a program: its length, an unknown opcode, a field that must
            be zero, a register over r10, a jump out of the program or into a 64-bit load.  The
            error names the instruction's index, counted in slots of eight bytes as the kernel
            does.
    """
    return _Disassembler(isa.decode(bytes(code), byteorder)).run()


def disassemble_slot(code: bytes, slot: int) -> str:
    """The one instruction at a slot, with numbers for jump targets; "(malformed)" if it is that."""
    try:
        return _Disassembler(isa.decode(code)).statement(slot)[0]
    except AssemblyError:
        return "(malformed)"


class _Disassembler:
    def __init__(self, code: list[Instruction]) -> None:
        self.code = code
        self.jumps: list[tuple[int, int, bool]] = []  # from, to, whether it is a call
        self.labels: dict[int, str] = {}

    def run(self) -> str:
        starts = []
        slot = 0
        while slot < len(self.code):
            starts.append(slot)
            slot += self.statement(slot)[1]
        self.name_targets(set(starts))
        lines = []
        for slot in starts:
            if slot in self.labels:
                lines.append(f"{self.labels[slot]}:")
            lines.append(f"    {self.statement(slot)[0]}")
        return "\n".join(lines) + "\n"

    def name_targets(self, starts: set[int]) -> None:
        called = set()
        for slot, target, is_call in self.jumps:
            if not 0 <= target < len(self.code):
                raise _malformed(slot, "it jumps out of the program")
            if target not in starts:
                raise _malformed(slot, "it jumps into the middle of a 64-bit load")
            if is_call:
                called.add(target)
        self.labels = {
            target: f"function_{target}" if target in called else f"L{target}"
            for _, target, _ in self.jumps
        }

    def statement(self, slot: int) -> tuple[str, int]:
        """The text of the instruction at a slot, and how many slots it takes."""
        code = self.code[slot]
        if code.dst > 10:
            raise _malformed(slot, f"there is no register r{code.dst}")
        kind = code.opcode & 7
        if kind in (isa.ALU, isa.ALU64):
            return self.arithmetic(slot, code, kind == isa.ALU64), 1
        if kind in (isa.JMP, isa.JMP32):
            return self.jump(slot, code, kind == isa.JMP), 1
        if code.opcode == isa.LOAD_IMM64:
            return self.load_imm64(slot, code), 2
        return self.memory(slot, code, kind), 1

    def arithmetic(self, slot: int, code: Instruction, wide: bool) -> str:
        operation, from_register = code.opcode & 0xF0, bool(code.opcode & isa.REGISTER)
        r = "r" if wide else "w"
        if operation == isa.END:
            name = _SWAPS.get((code.opcode, code.imm))
            if name is None:
                raise _malformed(slot, "no such byte swap")
            _zero(slot, src=code.src, offset=code.offset)
            return f"r{code.dst} = {name} r{code.dst}"
        if operation == isa.NEG:
            if from_register:
                raise _unknown(slot, code)
            _zero(slot, src=code.src, offset=code.offset, imm=code.imm)
            return f"{r}{code.dst} = -{r}{code.dst}"
        operand = self.operand(slot, code, wide, from_register)
        if operation == isa.MOV:
            if from_register and code.offset in ((8, 16, 32) if wide else (8, 16)):
                return f"{r}{code.dst} = (s{code.offset}){operand}"
            _zero(slot, offset=code.offset)
            return f"{r}{code.dst} = {operand}"
        operator = _ALU.get((operation, code.offset))
        if operator is None:
            if (operation, 0) in _ALU:
                raise _malformed(slot, f"the offset {code.offset} has no meaning here")
            raise _unknown(slot, code)
        return f"{r}{code.dst} {operator} {operand}"

    def operand(self, slot: int, code: Instruction, wide: bool, from_register: bool) -> str:
        if not from_register:
            _zero(slot, src=code.src)
            return str(code.imm)
        _zero(slot, imm=code.imm)
        _source(slot, code)
        return f"{'r' if wide else 'w'}{code.src}"

    def jump(self, slot: int, code: Instruction, wide: bool) -> str:
        if code.opcode == isa.GOTO:
            _zero(slot, dst=code.dst, src=code.src, imm=code.imm)
            return f"goto {self.target(slot, code.offset)}"
        if code.opcode == isa.GOTOL:
            _zero(slot, dst=code.dst, src=code.src, offset=code.offset)
            return f"gotol {self.target(slot, code.imm)}"
        if code.opcode == isa.CALL_IMM:
            return self.call(slot, code)
        if code.opcode == isa.CALL_REGISTER:
            _zero(slot, src=code.src, offset=code.offset, imm=code.imm)
            return f"callx r{code.dst}"
        if code.opcode == isa.RETURN:
            _zero(slot, dst=code.dst, src=code.src, offset=code.offset, imm=code.imm)
            return "exit"
        operator = _COMPARISONS.get(code.opcode & 0xF0)
        if operator is None:
            raise _unknown(slot, code)
        operand = self.operand(slot, code, wide, bool(code.opcode & isa.REGISTER))
        target = self.target(slot, code.offset)
        return f"if {'r' if wide else 'w'}{code.dst} {operator} {operand} goto {target}"

    def call(self, slot: int, code: Instruction) -> str:
        _zero(slot, dst=code.dst, offset=code.offset)
        if code.src == isa.CALL_LOCAL:
            return f"call {self.target(slot, code.imm, is_call=True)}"
        if code.src not in (isa.CALL_HELPER, isa.CALL_BTF):
            raise _malformed(slot, f"no such kind of call: {code.src}")
        if code.src == isa.CALL_BTF:
            if code.imm < 0:
                raise _malformed(slot, f"no such function: {code.imm}")
            return f"call kernel-function#{code.imm}"
        name = _helpers.by_number().get(code.imm)
        if code.imm < 0:
            # In translated code it is a distance, which the kernel's own listings write so.
            name = "unknown"
        return f"call {name}#{code.imm}" if name else f"call {code.imm}"

    def target(self, slot: int, distance: int, is_call: bool = False) -> str:
        """The target's label, or the distance as long as there is none."""
        target = slot + 1 + distance
        self.jumps.append((slot, target, is_call))
        return self.labels.get(target, f"pc{distance:+d}")

    def load_imm64(self, slot: int, code: Instruction) -> str:
        _zero(slot, offset=code.offset)
        if slot + 1 == len(self.code):
            raise _malformed(slot, "the second half of the 64-bit load is missing")
        second = self.code[slot + 1]
        if second[:4] != (0, 0, 0, 0):
            raise _malformed(slot + 1, "not the second half of the 64-bit load before it")
        low, high = code.imm & _U32, second.imm & _U32
        dst = f"r{code.dst}"
        if code.src == isa.IMM64_VALUE:
            return f"{dst} = {high << 32 | low:#x} ll"
        if code.src == isa.IMM64_MAP_VALUE:
            return f"{dst} = map_val(map_by_fd({code.imm})) + {second.imm}"
        if code.src == isa.IMM64_MAP_INDEX_VALUE:
            return f"{dst} = map_val(map_by_idx({code.imm})) + {second.imm}"
        if code.src == isa.IMM64_CODE and not high:
            return f"{dst} = code_addr({self.target(slot, code.imm, is_call=True)})"
        name = {
            isa.IMM64_MAP_FD: "map_by_fd",
            isa.IMM64_MAP_INDEX: "map_by_idx",
            isa.IMM64_VARIABLE: "var_addr",
        }.get(code.src)
        if name and not high:
            return f"{dst} = {name}({code.imm})"
        if code.src == isa.IMM64_VARIABLE:  # the kernel takes a module's BTF in the second half
            return f"ld_pseudo {dst}, {code.src}, {high << 32 | low:#x}"
        raise _malformed(slot, f"no such 64-bit load: source {code.src}, second half {high}")

    def memory(self, slot: int, code: Instruction, kind: int) -> str:
        mode, size = code.opcode & 0xE0, _SIZES[code.opcode & 0x18]
        address = f"(r{code.dst} {'-' if code.offset < 0 else '+'} {abs(code.offset)})"
        if kind == isa.LDX and mode in (isa.MODE_MEM, isa.MODE_MEMSX):
            _zero(slot, imm=code.imm)
            _source(slot, code)
            if mode == isa.MODE_MEMSX:
                signed = _SIGNED_SIZES.get(code.opcode & 0x18)
                if signed is None:
                    raise _unknown(slot, code)
                size = signed
            address = f"(r{code.src} {'-' if code.offset < 0 else '+'} {abs(code.offset)})"
            return f"r{code.dst} = *({size} *){address}"
        if kind == isa.STX and mode == isa.MODE_MEM:
            _zero(slot, imm=code.imm)
            _source(slot, code)
            return f"*({size} *){address} = r{code.src}"
        if kind == isa.STX and mode == isa.MODE_ATOMIC and size in ("u32", "u64"):
            _source(slot, code)
            return self.atomic(slot, code, size, address)
        if kind == isa.ST and mode == isa.MODE_MEM:
            _zero(slot, src=code.src)
            bits = isa.BITS[size]
            if -(1 << bits - 1) <= code.imm < 1 << bits:
                return f"*({size} *){address} = {code.imm}"
            # The machine cuts the number off; the assembler would refuse to.
            return f".quad {int.from_bytes(isa.encode([code], 'little'), 'little'):#x}"
        if kind == isa.LD and mode in (isa.MODE_ABS, isa.MODE_IND) and size != "u64":
            _zero(slot, dst=code.dst, offset=code.offset)
            if mode == isa.MODE_ABS:
                _zero(slot, src=code.src)
                return f"r0 = *({size} *)skb[{code.imm}]"
            _source(slot, code)
            sign = "-" if code.imm < 0 else "+"
            return f"r0 = *({size} *)skb[r{code.src} {sign} {abs(code.imm)}]"
        raise _unknown(slot, code)

    def atomic(self, slot: int, code: Instruction, size: str, address: str) -> str:
        r = "r" if size == "u64" else "w"
        source = f"{r}{code.src}"
        bare = address.strip("()")
        suffix = "_64" if size == "u64" else "32_32"
        if code.imm in _ATOMIC_OPERATORS:
            return f"lock *({size} *){address} {_ATOMIC_OPERATORS[code.imm]} {source}"
        if code.imm in _FETCHES:
            return f"{source} = atomic_fetch_{_FETCHES[code.imm]}(({size} *){address}, {source})"
        if code.imm == isa.XCHG:
            return f"{source} = xchg{suffix}({bare}, {source})"
        if code.imm == isa.CMPXCHG:
            return f"{r}0 = cmpxchg{suffix}({bare}, {r}0, {source})"
        raise _malformed(slot, f"no such atomic operation: {code.imm:#x}")


def _malformed(slot: int, reason: str) -> AssemblyError:
    return AssemblyError(f"instruction {slot}: {reason}")


def _unknown(slot: int, code: Instruction) -> AssemblyError:
    return _malformed(slot, f"unknown opcode {code.opcode:#04x}")


def _source(slot: int, code: Instruction) -> None:
    if code.src > 10:
        raise _malformed(slot, f"there is no register r{code.src}")


def _zero(slot: int, **fields: int) -> None:
    """Fields that the instruction does not use must be zero."""
    for name, value in fields.items():
        if value:
            raise _malformed(slot, f"the {name} field is {value} and must be 0")
