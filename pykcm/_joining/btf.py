"""Where the members of the kernel's structs lie, by the kernel's own description of its types.

Source: Documentation/bpf/btf.rst.  Only what is asked for is looked up, by searching the bytes:
parsing all types of a kernel would take longer than everything else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_DIRECTORY = "/sys/kernel/btf/"
_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_STRUCT_KIND = 4


class Types:
    """The types of the kernel, and of a module that builds on them.

    Raises:
        OSError: the kernel tells nothing of its types.
        ValueError: what it tells is not understood.
    """

    def __init__(self, module: str) -> None:
        self._sections = [_sections(_read("vmlinux"))]
        try:
            raw = _read(module)
        except FileNotFoundError:
            return  # it is built in, or LookupError will say that its structs are unknown
        self._sections.append(_sections(raw))

    def offset(self, name: str, member: str) -> int:
        """Bytes from the beginning of a struct to a member.

        Raises:
            LookupError: this kernel has no such struct, or no such member in it.
        """
        for types, fields in self._structs(name):
            wanted = set(self._numbers(member))
            for field in fields:
                number, _, bits = struct.unpack_from("=III", types, field)
                if number in wanted:
                    return int(bits & 0xFFFFFF) // 8
        raise LookupError(f"this kernel has no struct {name} with a member {member}")

    def _numbers(self, name: str) -> Iterator[int]:
        """The numbers under which a name is referred to."""
        base = 0
        for _, strings in self._sections:
            place = strings.find(b"\0" + name.encode() + b"\0")
            if place >= 0:
                yield base + place
            base += len(strings) - 1

    def _structs(self, name: str) -> Iterator[tuple[bytes, range]]:
        """The types' bytes, and where the members of a struct of this name begin."""
        for number in self._numbers(name):
            for types, _ in self._sections:
                place, wanted = -1, struct.pack("=I", number)
                while (place := types.find(wanted, place + 1)) >= 0:
                    if place % 4 or place + 12 > len(types):
                        continue
                    (info,) = struct.unpack_from("=I", types, place + 4)
                    end = place + 12 + 12 * (info & 0xFFFF)
                    if info >> 24 & 31 == _STRUCT_KIND and end <= len(types):
                        yield types, range(place + 12, end, 12)


def _read(name: str) -> bytes:
    with open(_DIRECTORY + name, "rb") as file:  # noqa: PTH123 - no pathlib
        return file.read()


def _sections(raw: bytes) -> tuple[bytes, bytes]:
    """The bytes of the types, and of the strings with a zero before the first."""
    if len(raw) < _HEADER.size:
        raise ValueError("the kernel's description of its types is cut short")
    magic, version, _, header, types, types_size, strings, strings_size = _HEADER.unpack_from(raw)
    if magic != _MAGIC or version != 1:
        raise ValueError("the kernel's description of its types is of an unknown form")
    types, strings = header + types, header + strings
    return raw[types : types + types_size], b"\0" + raw[strings : strings + strings_size]
