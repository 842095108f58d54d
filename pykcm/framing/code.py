"""The assembly of a delineation program while it is written.

Registers of the program: r6 is the skb, r7 the message's offset in it, r8 the length so far, and
where it measures one message after the other, r9 is how many bytes there are from r7 on.  r0 to r5
are clobbered by every packet load (`r0 = *(u32 *)skb[r7 + K]`).  Such a load yields the bytes as a
big-endian number, and past the end of the data it ends the program with 0, which KCM takes as "wait
for more" (bpf_gen_ld_abs in net/core/filter.c).

The stack: at r10 - 8 what `Strategy.lines` needs, then where the first message begins; at r10 - 16
how many messages may follow; at r10 - 24 what a step keeps for itself; at r10 - 32 where the last
message may end; at r10 - 40 what is to be forgotten; below that the buffer of a search.
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
        batch: how many messages the program measures at most.

    Attributes:
        following: whether what is written measures a message that follows another one.  Such a
            message must be whole, and whatever is said against it is for the next call to say.
        there: how many bytes from r7 on are known to be there, if it follows another.
    """

    def __init__(self, far_loads: bool = True, batch: int = 1) -> None:
        self.far_loads = far_loads
        self.batch = batch
        self.following = False
        self.there: int = 0
        self._start: list[str] = []
        self._lines: list[str] = []
        self._functions: dict[str, list[str]] = {}
        self._labels: dict[str, int] = {}
        self._wanted: set[str] = set()

    def add(self, *lines: str) -> None:
        """Statements, one a line, at the end of what is written."""
        self._lines += [f"    {line}" for line in lines]

    def comment(self, text: str) -> None:
        """A comment on a line of its own."""
        self._lines.append(f"    # {text}")

    def label(self, stem: str) -> str:
        """A label's name that is new in this program."""
        number = self._labels[stem] = self._labels.get(stem, 0) + 1
        return f"{stem}_{number}"

    def place(self, label: str) -> None:
        """Defines a label here."""
        self._lines.append(f"{label}:")

    def wants(self, label: str) -> bool:
        """Whether something jumps to a label; the kernel refuses code that can't be reached."""
        return label in self._wanted

    def jump(self, label: str, condition: str = "") -> None:
        """A jump to a label, if the condition holds; without one, always."""
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

    def load(self, bits: int, offset: int) -> None:
        """A packet load to r0 from so many bytes behind r7."""
        end = offset + bits // 8
        if self.following and end > self.there:
            self.compare("r9", "<", end, "stop")
            self.there = end
        self.add(f"r0 = *(u{bits} *)skb[r7 + {offset}]")

    def bad(self) -> str:
        """The label to jump to with a header that is refused (EBADMSG)."""
        return "stop" if self.following else "bad_header"

    def oversize(self) -> str:
        """The label to jump to with a message over the maximum (EMSGSIZE)."""
        return "stop" if self.following else "too_long"

    def unreadable(self) -> str:
        """The label to jump to if the kernel does not show bytes that are there (EFAULT)."""
        return "stop" if self.following else "unreadable"

    def bytes_there(self) -> None:
        """Leaves in r9 how many bytes there are from r7 on, for a message that follows another.

        They are counted anew for each message: had the verifier seen the last one's length
        taken off, it would look at each way through the rule with each way through the last.
        """
        self.add("r9 = *(u64 *)(r10 - 32)", "r9 -= r7")

    def minimum(self, register: str, limit: int) -> None:
        """The smaller of a register and a number, without a branch: one would double the walk."""
        self.add(f"{register} -= {limit}", f"r0 = {register}", "r0 s>>= 63")
        self.add(f"{register} &= r0", f"{register} += {limit}")

    def forget(self, *registers: str) -> None:
        """Makes the verifier forget what it knows of numbers of 32 bits.

        Older ones (Linux 5.10's) walk on anew for each number that they know.  What is stored in
        8 bytes they keep track of, but not of what is stored in 4.
        """
        for register in registers:
            self.add(f"*(u32 *)(r10 - 36) = {register}", f"{register} = *(u32 *)(r10 - 36)")

    def once(self, *lines: str) -> None:
        """Lines for here, if this is all that may need them; else for the program's beginning."""
        if self.batch == 1:
            self.add(*lines)
        elif not set(lines) <= set(self._start):
            self._start += lines

    def function(self, label: str, lines: Iterable[str]) -> None:
        """A function for the program to call: five numbers in r1 to r5, one in r0."""
        self._functions[label] = [
            f"{label}:",
            *(line if line.endswith(":") else f"    {line}" for line in lines),
        ]

    def text(self) -> str:
        """The whole program, functions last."""
        start = [f"    {line}" for line in self._start]
        functions = [line for lines in self._functions.values() for line in lines]
        return "\n".join([*start, *self._lines, *functions]) + "\n"
