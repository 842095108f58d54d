"""The assembly of a delineation program while it is written.

Registers of the program: r6 is the skb, r7 the message's offset in it, r8 the length so far, r9 a
value that outlives a packet load; r0 to r5 are clobbered by every packet load
(`r0 = *(u32 *)skb[r7 + K]`).  Such a load yields the bytes as a big-endian number, and past the end
of the data it ends the program with 0, which KCM takes as "wait for more"
(bpf_gen_ld_abs in net/core/filter.c).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def _show(value: int) -> str:
    return str(value) if value < 256 else f"{value:#x}"


class Code:
    """The assembly of one program while it is written.

    Args:
        far_loads: as `pykcm._offset.Strategy` has it.
    """

    def __init__(self, far_loads: bool = True) -> None:
        self.far_loads = far_loads
        self._start: list[str] = []
        self._lines: list[str] = []
        self._functions: dict[str, list[str]] = {}
        self._labels: dict[str, int] = {}
        self._wanted: set[str] = set()

    def add(self, *lines: str) -> None:
        self._lines += [f"    {line}" for line in lines]

    def comment(self, text: str) -> None:
        self._lines.append(f"    # {text}")

    def label(self, stem: str) -> str:
        """A label's name that is new in this program."""
        number = self._labels[stem] = self._labels.get(stem, 0) + 1
        return f"{stem}_{number}"

    def place(self, label: str) -> None:
        self._lines.append(f"{label}:")

    def wants(self, label: str) -> bool:
        """Whether something jumps to a label; the kernel refuses code that can't be reached."""
        return label in self._wanted

    def jump(self, label: str, condition: str = "") -> None:
        self._wanted.add(label)
        self.add(f"if {condition} goto {label}" if condition else f"goto {label}")

    def compare(self, register: str, operator: str, value: int, label: str) -> None:
        """A jump if the register compares so with a number from -2**31 to 2**64 - 1."""
        if -(1 << 31) <= value < 1 << 31:
            self.jump(label, f"{register} {operator} {_show(value)}")
        else:  # an immediate is 32 bits, sign-extended
            self.add(f"r1 = {value:#x} ll")
            self.jump(label, f"{register} {operator} r1")

    def apply(self, register: str, operator: str, value: int) -> None:
        """`register operator= value` for a number from -2**31 to 2**64 - 1."""
        if -(1 << 31) <= value < 1 << 31:
            self.add(f"{register} {operator}= {_show(value)}")
        else:
            self.add(f"r1 = {value:#x} ll", f"{register} {operator}= r1")

    def bad(self) -> str:
        return "bad_header"

    def oversize(self) -> str:
        return "too_long"

    def unreadable(self) -> str:
        return "unreadable"

    def at_start(self, *lines: str) -> None:
        """Lines for the program's beginning, once however often they are asked for."""
        if not set(lines) <= set(self._start):
            self._start += lines

    def function(self, label: str, lines: Iterable[str]) -> None:
        """A function for the program to call: five numbers in r1 to r5, one in r0."""
        self._functions[label] = [
            f"{label}:",
            *(line if line.endswith(":") else f"    {line}" for line in lines),
        ]

    def text(self) -> str:
        start = [f"    {line}" for line in self._start]
        functions = [line for lines in self._functions.values() for line in lines]
        return "\n".join([*start, *self._lines, *functions]) + "\n"
