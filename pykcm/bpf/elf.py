"""Objects that `clang -target bpf` writes: the program in them, its licence and its name.

Source: the ELF format, EM_BPF's relocations as LLVM documents them (bpf/llvm_reloc.rst in the
kernel's documentation).
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pykcm.bpf import _instructions as isa
from pykcm.errors import BPFError, UnavailableError

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

_SECTIONS = ("socket", "socket_kcm")
_LIMIT = 1 << 26  # bytes; the longest program has 8 MB of instructions
_EXECUTABLE = 0x4  # SHF_EXECINSTR
_R_BPF_64_64, _R_BPF_64_32 = 1, 10  # a 64-bit load's immediate; a call's


class ObjectProgram(NamedTuple):
    """A program as it lies in an object.

    Attributes:
        section: the section's name.
        name: its function's name, fit for the kernel: 15 letters, digits, '_' or '.'.
        license: what the section "license" holds.
        code: the instructions, of the host's byte order.
    """

    section: str
    name: str
    license: str
    code: bytes


def read(path: str | os.PathLike[str], section: str | None) -> ObjectProgram:
    """Read the program of an object.

    Args:
        path: the object file.
        section: the program's section; by default the one that is called "socket" or
            "socket_kcm", or starts with "socket/".

    Raises:
        BPFError: the file can't be read (its errno), is not a BPF object for this host (ENOEXEC),
            has no such section or more than one (ENOENT, EINVAL), or has something in it that
            pykcm does not support (EOPNOTSUPP): maps, global variables, functions elsewhere.
        UnavailableError: pyelftools is missing (ENOPKG).
    """
    where = os.fspath(path)
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise UnavailableError(
            errno.ENOPKG, "reading an object needs pyelftools: pip install 'pykcm[elf]'"
        ) from error
    content = _content(where)
    try:
        return _Object(where, ELFFile(io.BytesIO(content))).program(section)
    except BPFError:
        raise
    except Exception as error:
        # pyelftools trusts what it reads: a damaged file makes it raise almost anything.
        raise BPFError(
            errno.ENOEXEC, f"{where} is not an ELF object, or a damaged one ({error})"
        ) from error


def _content(where: str) -> bytes:
    try:
        if not stat.S_ISREG(Path(where).stat().st_mode):
            raise BPFError(errno.EINVAL, f"{where} is not a regular file")
        with Path(where).open("rb") as stream:
            content = stream.read(_LIMIT + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, BPFError):
            raise
        number = getattr(error, "errno", None) or errno.EINVAL
        raise BPFError(number, f"{where!r} can't be read") from error
    if len(content) > _LIMIT:
        raise BPFError(
            errno.EFBIG, f"{where} is longer than {_LIMIT} bytes, too long for an object"
        )
    return content


class _Object:
    def __init__(self, where: str, elf: ELFFile) -> None:
        self.where = where
        self.elf = elf
        header = elf.header
        if header["e_machine"] != "EM_BPF":
            raise self.error(errno.ENOEXEC, f"is for the machine {header['e_machine']}, not EM_BPF")
        if elf.elfclass != 64 or header["e_type"] != "ET_REL":
            raise self.error(errno.ENOEXEC, "is not a 64-bit relocatable object")
        if elf.little_endian != (isa.HOST == "little"):
            order = "little" if elf.little_endian else "big"
            raise self.error(
                errno.ENOEXEC, f"is {order}-endian, and this host is {isa.HOST}-endian"
            )

    def error(self, number: int, what: str) -> BPFError:
        return BPFError(number, f"{self.where} {what}")

    def program(self, wanted: str | None) -> ObjectProgram:
        index, section = self.section(wanted)
        code = bytearray(section.data())
        if not code or len(code) % isa.SIZE:
            raise self.error(
                errno.ENOEXEC, f"has {len(code)} bytes of code in section {section.name!r}"
            )
        symbols: Any = self.elf.get_section_by_name(".symtab")
        if symbols is None:
            raise self.error(errno.ENOEXEC, "has no symbols")
        called = set()
        sections: Any = self.elf.iter_sections()
        for other in sections:
            if other["sh_type"] in ("SHT_REL", "SHT_RELA") and other["sh_info"] == index:
                for relocation in other.iter_relocations():
                    symbol = symbols.get_symbol(relocation["r_info_sym"])
                    called.add(self.relocate(code, index, relocation, symbol))
        name = self.function(index, section.name, symbols, called)
        return ObjectProgram(section.name, name, self.license(), bytes(code))

    def section(self, wanted: str | None) -> tuple[int, Any]:
        """The program's section and its index."""
        found = {
            section.name: (index, section)
            for index, section in enumerate(self.elf.iter_sections())
            if section["sh_type"] == "SHT_PROGBITS"
            and section["sh_flags"] & _EXECUTABLE
            and section["sh_size"]
        }
        names = ", ".join(found) or "none"
        if wanted is not None:
            if wanted not in found:
                raise self.error(
                    errno.ENOENT, f"has no section {wanted!r} with a program; there are: {names}"
                )
            return found[wanted]
        fitting = [name for name in found if name in _SECTIONS or name.startswith("socket/")]
        if not fitting:
            raise self.error(
                errno.ENOENT,
                "has no section 'socket' or 'socket_kcm' with a program; name one of these: "
                + names,
            )
        if len(fitting) > 1:
            raise self.error(
                errno.EINVAL,
                f"has several programs; name one of these sections: {', '.join(fitting)}",
            )
        return found[fitting[0]]

    def function(self, index: int, section: str, symbols: Any, called: set[int]) -> str:
        """The name of the section's program: its first function, if the others are its own."""
        functions = {
            symbol["st_value"]: str(symbol.name)
            for symbol in symbols.iter_symbols()
            if symbol["st_shndx"] == index
            and symbol["st_info"]["type"] == "STT_FUNC"
            and symbol["st_info"]["bind"] != "STB_LOCAL"
        }
        if 0 not in functions or functions.keys() - called - {0}:
            names = ", ".join(functions.values()) or "none"
            raise self.error(
                errno.EOPNOTSUPP,
                f"must have one program at the start of section {section!r}, and other functions "
                f"in it only if that calls them; there are: {names}",
            )
        return re.sub(r"[^A-Za-z0-9_.]", "_", functions[0])[:15]

    def license(self) -> str:
        section = self.elf.get_section_by_name("license")
        if section is None:
            raise self.error(
                errno.EINVAL,
                'has no section \'license\': char _license[] SEC("license") = "Dual MIT/GPL";',
            )
        return str(section.data().split(b"\0")[0].decode("utf-8", "replace"))

    def relocate(self, code: bytearray, index: int, relocation: Any, symbol: Any) -> int:
        """Resolve a call inside the section; everything else is refused by its name.

        Returns where in the section the called function starts.
        """
        at, kind = relocation["r_offset"], relocation["r_info_type"]
        home = symbol["st_shndx"]
        name = str(symbol.name)
        if home == "SHN_UNDEF":
            raise self.error(errno.EOPNOTSUPP, f"refers to {name!r}, which is not in it")
        if kind == _R_BPF_64_32 and home == index:
            # The linker's rule (libbpf's): the symbol's place, and what the immediate says plus 1.
            slot = at // isa.SIZE
            (imm,) = struct.unpack_from("=i", code, at + 4)
            target: int = symbol["st_value"] // isa.SIZE + imm + 1
            struct.pack_into("=i", code, at + 4, target - slot - 1)
            return target * isa.SIZE
        place = self.elf.get_section(home).name if isinstance(home, int) else str(home)
        if kind == _R_BPF_64_32:
            raise self.error(
                errno.EOPNOTSUPP,
                f"calls {name or 'a function'!r} in section {place!r}: pykcm does not link; "
                "make it static and __attribute__((always_inline))",
            )
        if kind == _R_BPF_64_64:
            what = "the map" if "maps" in place else "the global variable"
            raise self.error(
                errno.EOPNOTSUPP,
                f"uses {what} {name or place!r} (section {place!r}), which pykcm does not support",
            )
        raise self.error(errno.EOPNOTSUPP, f"has a relocation of type {kind} to {name or place!r}")
