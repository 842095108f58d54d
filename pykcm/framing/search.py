"""The step that looks for a delimiter."""

from __future__ import annotations

import errno
import sys

from pykcm.errors import FramingDefinitionError, FramingError
from pykcm.framing.code import Code
from pykcm.framing.field import IncompleteError, check_integer
from pykcm.framing.steps import Path, Step
from pykcm.framing.value import Value

#: The longest message of a Find, in bytes: what the kernel's verifier can follow (it walks through
#: every turn of the loop, and stops at a million instructions).
LARGEST_SEARCH = 1 << 16

# The stack is 512 bytes.  A chunk is scanned in words of 8 bytes; the word after its last one holds
# what follows of a delimiter that begins in it.
_WORD = 8
_BUFFER = 512
_CHUNK = _BUFFER - _WORD


class Find(Value, Step):
    """The length is that up to the end of the first delimiter; nothing may be added before it.

    Args:
        delimiter: 1 to 8 bytes.
        limit: in how many bytes from the message's first it must lie, up to LARGEST_SEARCH.
    """

    delimiter: bytes
    limit: int

    def __post_init__(self) -> None:
        if not isinstance(self.delimiter, bytes) or not 1 <= len(self.delimiter) <= _WORD:
            raise FramingDefinitionError(
                "delimiter", f"must be 1 to {_WORD} bytes, not {self.delimiter!r}"
            )
        check_integer("limit", self.limit, len(self.delimiter), LARGEST_SEARCH)

    def emit(self, code: Code) -> None:
        end = code.label("found")
        if code.far_loads:
            self._emit_chunks(code, end)
        else:
            self._emit_places(code, end)
        code.place(end)
        code.add("r8 = *(u32 *)(r10 - 4)")

    @staticmethod
    def _emit_found(code: Code) -> None:
        """Puts r8, the length, where it is found at the end.

        A 4-byte store beside an 8-byte slot makes the verifier forget what it knows of a number.
        Otherwise a comparison with it would make each place of the delimiter a case of its own,
        over which the 6.1 kernel's verifier sits for seconds.
        """
        code.add("*(u32 *)(r10 - 4) = r8")

    def _emit_places(self, code: Code, end: str) -> None:
        """Looks at one place after the other, by packet loads; r9 is the place in the skb.

        A load past the end of the data ends the program with 0, which is the right answer here: a
        delimiter that begins at this place is not complete yet.
        """
        size = len(self.delimiter)
        width = max(w for w in (1, 2, 4) if w <= size)
        # Two loads may overlap: so two are enough for any size.
        loads = [(at, self.delimiter[at : at + width]) for at in sorted({0, size - width})]
        turns, rest = divmod(self.limit - size + 1, _WORD)
        turn = code.label("turn")
        code.add("r8 = 0", f"*(u64 *)(r10 - {_WORD}) = r8", "r9 = r7")

        def look(at: int) -> None:
            after = code.label("after")
            for number, (offset, wanted) in enumerate(loads):
                code.add(f"r0 = *(u{8 * width} *)skb[r9 + {at + offset}]")
                value = int.from_bytes(wanted, "big", signed=width == 4)  # an immediate is signed
                code.add(f"w0 ^= {value}")
                if number < len(loads) - 1:
                    code.add(f"*(u64 *)(r10 - {2 * _WORD}) = r0")
            if len(loads) > 1:
                code.add(f"r1 = *(u64 *)(r10 - {2 * _WORD})", "r0 |= r1")
            # One comparison: as in the other search, only one way is left to come back to.
            code.jump(after, "r0 != 0")
            code.add(f"r8 += {at + size}")
            self._emit_found(code)
            code.jump(end)
            code.place(after)

        if turns:
            code.place(turn)
            for at in range(_WORD):
                look(at)
            code.add(f"r8 += {_WORD}", f"r9 += {_WORD}")
            code.compare("r8", "<", turns * _WORD, turn)
        for at in range(rest):
            look(at)
        code.jump(code.oversize())

    def _emit_chunks(self, code: Code, end: str) -> None:
        """Scans 8 bytes at a time; r9 is how many bytes of the message may be looked at."""
        size = len(self.delimiter)
        chunk, word = code.label("chunk"), code.label("word")
        following, none = code.label("following"), code.label("none")
        # The smaller of what is there and the limit, here and below without a branch: each would
        # double what the verifier has to walk through.
        code.add("r9 = *(u32 *)(r6 + 0)", "r9 -= r7", f"r9 -= {self.limit}")  # __sk_buff.len
        code.add("r0 = r9", "r0 s>>= 63", "r9 &= r0", f"r9 += {self.limit}")
        # The verifier wants the buffer initialised, as the last chunk may not fill it.
        code.add("r0 = 0", *(f"*(u64 *)(r10 - {at}) = r0" for at in range(_BUFFER, 0, -_WORD)))
        code.add("r8 = 0")

        code.place(chunk)
        code.compare("r8", ">=", self.limit, none)
        code.add("r4 = r9", "r4 -= r8", f"r4 -= {_BUFFER}")
        code.add("r0 = r4", "r0 s>>= 63", "r4 &= r0", f"r4 += {_BUFFER}")
        code.compare("r4", "s<", size, none)
        code.compare("r4", "s>", _BUFFER, none)  # never; the verifier wants to be told
        code.add("r1 = r6", "r2 = r7", "r2 += r8", "r3 = r10", f"r3 += -{_BUFFER}")
        code.add("call bpf_skb_load_bytes")
        # The bytes are there.  To wait for more of them would be to wait for ever.
        code.compare("r0", "!=", 0, code.unreadable())
        code.add("r1 = r10", f"r1 += -{_BUFFER}", "r2 = 0")

        code.place(word)
        self._emit_differences(code)
        # The lowest byte of r0 that is zero becomes the lowest bit of r3 that is set.
        code.add("r3 = r0", "r4 = 0x0101010101010101 ll", "r3 -= r4", "r0 ^= -1", "r3 &= r0")
        code.add("r4 = 0x8080808080808080 ll", "r3 &= r4")
        # The way that ends is the one that goes straight on: the verifier walks it first, and so
        # never has more than one way left to come back to for each chunk.
        code.compare("r3", "==", 0, following)
        code.add("r0 = r3", "r0 = -r0", "r3 &= r0", "r3 >>= 7")  # 1 << 8 * index
        code.add("r4 = 0x0001020304050607 ll", "r3 *= r4", "r3 >>= 56")
        code.add("r8 += r2", "r8 += r3", f"r8 += {size}")
        self._emit_found(code)
        # Past the end of the data lie bytes of the chunk before.
        code.jump(end, "r8 <= r9")
        code.place(none)
        code.compare("r9", "==", self.limit, code.oversize())
        code.add("r0 = 0", "exit")

        code.place(following)
        code.add(f"r1 += {_WORD}", f"r2 += {_WORD}")
        code.compare("r2", "<", _CHUNK, word)
        code.add(f"r8 += {_CHUNK}")
        code.jump(chunk)

    def _emit_differences(self, code: Code) -> None:
        """Leaves in r0, a byte for each of the 8 places from r1 on, 0 where the delimiter is."""
        # Places count from the lowest byte: a conversion to little-endian does nothing on a
        # little-endian host.
        little = ["le64"] if sys.byteorder == "big" else []
        code.add("r5 = *(u64 *)(r1 + 0)", *(f"r5 = {swap} r5" for swap in little))
        for number, byte in enumerate(self.delimiter):
            if number == 0:
                code.add(f"r0 = {byte * 0x0101010101010101:#x} ll", "r0 ^= r5")
                continue
            # Stack loads must be aligned: a word that begins within one is made of two.
            code.add(f"r3 = *(u64 *)(r1 + {_WORD})", *(f"r3 = {swap} r3" for swap in little))
            code.add(f"r3 <<= {8 * (_WORD - number)}", "r4 = r5", f"r4 >>= {8 * number}")
            code.add("r3 |= r4", f"r4 = {byte * 0x0101010101010101:#x} ll", "r3 ^= r4")
            code.add("r0 |= r3")

    def follow(self, data: memoryview, length: int) -> int:
        seen = bytes(data[: self.limit])
        at = seen.find(self.delimiter)
        if at >= 0:
            return at + len(self.delimiter)
        if len(seen) == self.limit:
            raise FramingError(errno.EMSGSIZE, f"no {self.delimiter!r} within {self.limit} bytes")
        raise IncompleteError

    def limited(self, high: int) -> Step:
        # Not to wait for more than the longest message before it is refused.
        return Find(self.delimiter, min(self.limit, max(high, len(self.delimiter))))

    def explore(self, path: Path) -> list[Path]:
        if path.high or path.low:
            raise FramingDefinitionError("steps", "nothing may be added before a Find")
        return [path.plus(len(self.delimiter), self.limit)]
