"""The step that looks for a delimiter.

The verifier walks through every turn of a loop, and a search of 64 KiB has many.  So each turn
reads as much as it can and hands it to a function, which the verifier looks at once, however
often it is called: see pykcm.bpf.functions.  Both are written twice: by bpf_skb_load_bytes, into a
buffer; and for kernels where that reaches no further than 64 KiB into the data, by packet loads,
with a function that takes numbers, as those kernels' functions may take no pointers.
"""

from __future__ import annotations

import errno
import sys

from pykcm.errors import FramingDefinitionError, FramingError
from pykcm.framing.code import Code
from pykcm.framing.field import IncompleteError, check_integer, pieces
from pykcm.framing.steps import Path, Step
from pykcm.framing.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: The longest message of a Find, in bytes.  By packet loads the verifier walks through more than
#: 80,000 instructions for it; and a peer can make the kernel search all of it for each byte sent.
LARGEST_SEARCH = 1 << 16

_WORD = 8
# What the function is given, and at how many places in it the delimiter may begin; the last word
# has what follows of one that begins in the word before.  The numbers are five words, as many as a
# function has arguments.  The buffer is what is left of the stack's 512 bytes: the function's
# frame takes 32, however little it needs, and the first five words are for other things (see Code).
_WORDS = 5
_NEAR = (_WORDS - 1) * _WORD
_OTHERS = 5 * _WORD
_BUFFER = 512 - 32 - _OTHERS
_FAR = _BUFFER - _WORD
# Where they begin, below r10.
_BUFFER_AT = _OTHERS + _BUFFER
_WORDS_AT = _OTHERS + _WORDS * _WORD


def function_argument(far_loads: bool) -> int:
    """What a program's functions take: a pointer to so many bytes, or with 0 five numbers."""
    return _BUFFER if far_loads else 0


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
        # The verifier wants all of it initialised, as there may be too little data to fill it.
        words = range(_BUFFER_AT if code.far_loads else _WORDS_AT, _OTHERS, -_WORD)
        code.once("r0 = 0", *(f"*(u64 *)(r10 - {at}) = r0" for at in words))
        if code.following:
            self._emit_one_turn(code)
        else:
            self._emit_turns(code)

    def _emit_turns(self, code: Code) -> None:
        """r7 moves over what was searched, r8 counts that, r9 what is left to search from r7 on."""
        turn, found, none = code.label("turn"), code.label("found"), code.label("none")
        code.add("r9 = *(u32 *)(r6 + 0)", "r9 -= r7")  # __sk_buff.len
        code.minimum("r9", self.limit)
        code.add("*(u64 *)(r10 - 24) = r9")
        code.place(turn)
        if code.far_loads:
            places = _FAR
            self._emit_helper(code, found, none)
        else:
            places = _NEAR
            tail = code.label("tail")
            self._emit_packet_loads(code, found, tail)
        code.add(f"r7 += {places}", f"r8 += {places}", f"r9 -= {places}")
        all_places = self.limit - len(self.delimiter) + 1
        code.compare("r8", "<", -(-all_places // places) * places, turn)
        if not code.far_loads:
            code.jump(none)
            code.place(tail)
            code.compare("r9", "s<=", 0, none)
            code.forget("r7", "r8")
            self._emit_tail(code, found, self._near - 1)
        code.place(none)
        code.add("r1 = *(u64 *)(r10 - 24)")
        code.compare("r1", "==", self.limit, code.oversize())
        code.add("r0 = 0", "exit")
        code.place(found)
        code.add(f"r0 += {len(self.delimiter)}")
        # Behind what is left lies what was read before.
        code.jump(none, "r0 s> r9")
        code.add("r7 -= r8", "r8 += r0")

    def _emit_one_turn(self, code: Code) -> None:
        """A message that follows another is looked for in what one turn can see."""
        found = code.label("found")
        code.minimum("r9", self.limit)
        if code.far_loads:
            self._emit_helper(code, found, "stop")
        else:
            self._emit_tail(code, found, self._near)
        code.jump("stop")
        code.place(found)
        code.add(f"r0 += {len(self.delimiter)}")
        code.jump("stop", "r0 s> r9")
        code.add("r8 = r0")
        code.bytes_there()

    def _emit_helper(self, code: Code, found: str, none: str) -> None:
        code.add("r4 = r9")
        code.minimum("r4", _BUFFER)
        # One comparison tells the verifier that it is 1 to _BUFFER.
        code.add("r4 += -1")
        code.compare("r4", ">", _BUFFER - 1, none)
        code.add("r4 += 1", "r1 = r6", "r2 = r7", "r3 = r10", f"r3 += -{_BUFFER_AT}")
        code.add("call bpf_skb_load_bytes")
        # The bytes are there.  To wait for more of them would be to wait for ever.
        code.compare("r0", "!=", 0, code.unreadable())
        code.add("r1 = r10", f"r1 += -{_BUFFER_AT}")
        self._emit_call(code, found)

    def _emit_packet_loads(self, code: Code, found: str, tail: str) -> None:
        code.compare("r9", "s<", self._near, tail)
        for at, width in pieces(self._near):
            code.add(f"r0 = *(u{8 * width} *)skb[r7 + {at}]")
            if width > 1:
                code.add(f"r0 = be{8 * width} r0")
            code.add(f"*(u{8 * width} *)(r10 - {_WORDS_AT - at}) = r0")
        self._emit_call(code, found)

    def _emit_tail(self, code: Code, found: str, most: int) -> None:
        """By packet loads of a byte, as many as there are: none may reach past the data's end."""
        look = code.label("look")
        for at in range(most):
            code.compare("r9", "s<=", at, look)
            code.add(f"r0 = *(u8 *)skb[r7 + {at}]", f"*(u8 *)(r10 - {_WORDS_AT - at}) = r0")
        code.place(look)
        self._emit_call(code, found)

    @property
    def _near(self) -> int:
        """How many bytes the delimiter may lie in, if it begins at one of so many places."""
        return _NEAR + len(self.delimiter) - 1

    def _emit_call(self, code: Code, found: str) -> None:
        """Looks at what was read, and jumps with the delimiter's place in r0."""
        name = f"find_{self.delimiter.hex()}"
        if code.far_loads:
            code.function(name, self._function_of_buffer(name))
            places = _FAR
        else:
            code.function(name, self._function_of_words(name))
            places = _NEAR
            for number in range(_WORDS):
                code.add(f"r{number + 1} = *(u64 *)(r10 - {_WORDS_AT - number * _WORD})")
        code.add(f"call {name}")
        code.compare("r0", "!=", places, found)

    def _function_of_buffer(self, name: str) -> Iterable[str]:
        """The function: the first place of the delimiter in the buffer at r1, or _FAR."""
        yield from ("r2 = 0", f"if r1 == 0 goto {name}_none")  # never; the verifier wants to know
        yield from ("r8 = 0x0101010101010101 ll", "r9 = 0x8080808080808080 ll")
        yield from ("r3 = *(u64 *)(r1 + 0)", *_swap("r3"))
        yield f"{name}_word:"
        yield from (f"r4 = *(u64 *)(r1 + {_WORD})", *_swap("r4"))
        yield from self._differences("r3", "r4")
        yield from _zero_byte(f"{name}_found")
        yield from ("r3 = r4", f"r1 += {_WORD}", f"r2 += {_WORD}")
        yield f"if r2 < {_FAR} goto {name}_word"
        yield f"{name}_none:"
        yield from (f"r0 = {_FAR}", "exit")
        yield f"{name}_found:"
        yield from (*_lowest_byte(), "r0 += r2", "exit")

    def _function_of_words(self, name: str) -> Iterable[str]:
        """The function: the first place of the delimiter in the words r1 to r5, or _NEAR."""
        for number in range(1, _WORDS + 1):
            yield from _swap(f"r{number}")
        yield from ("r8 = 0x0101010101010101 ll", "r9 = 0x8080808080808080 ll")
        for number in range(1, _WORDS):
            yield from self._differences(f"r{number}", f"r{number + 1}")
            yield from _zero_byte(f"{name}_{number}")
        yield from (f"r0 = {_NEAR}", "exit")
        for number in range(1, _WORDS):
            yield f"{name}_{number}:"
            yield from (*_lowest_byte(), f"r0 += {(number - 1) * _WORD}", "exit")

    def _differences(self, word: str, following: str) -> Iterable[str]:
        """Leaves in r0, a byte for each place in the word, 0 where the delimiter is."""
        for at, byte in enumerate(self.delimiter):
            pattern = f"{byte * 0x0101010101010101:#x} ll"
            if at == 0:
                yield from (f"r0 = {pattern}", f"r0 ^= {word}")
                continue
            yield from (f"r6 = {word}", f"r6 >>= {8 * at}")
            yield from (f"r7 = {following}", f"r7 <<= {8 * (_WORD - at)}", "r6 |= r7")
            yield from (f"r7 = {pattern}", "r6 ^= r7", "r0 |= r6")

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


def _swap(register: str) -> Iterable[str]:
    """Makes the first byte of a word that was read from memory its lowest."""
    return (f"{register} = le64 {register}",) if sys.byteorder == "big" else ()


def _zero_byte(found: str) -> Iterable[str]:
    """Jumps if a byte of r0 is zero: the lowest bit of r6 that is set is then in the first such."""
    return (
        *("r6 = r0", "r6 -= r8", "r0 ^= -1", "r6 &= r0", "r6 &= r9"),
        f"if r6 != 0 goto {found}",
    )


def _lowest_byte() -> Iterable[str]:
    """Leaves in r0 the index of the byte that has the lowest bit of r6 that is set."""
    return (
        *("r0 = r6", "r0 = -r0", "r0 &= r6", "r0 >>= 7"),  # 1 << 8 * index
        *("r6 = 0x0001020304050607 ll", "r0 *= r6", "r0 >>= 56"),
    )
