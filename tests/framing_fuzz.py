"""Random framings on random data: the kernel, C and Python must say the same.

    python -m tests.framing_fuzz [--cases N] [--seed N]

A case is a framing and some data.  Of each, the delineation program is run by the kernel
(BPF_PROG_TEST_RUN) and by pykcm/_delineate.c, and followed step by step in Python; so is a program
for several messages, against Python's sum; and the data is divided in C and in Python.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time

from pykcm import bpf, protocols
from pykcm._offset import NONE, Strategy
from pykcm.errors import FramingDefinitionError, FramingError
from pykcm.framing import Delimiter, FixedLength, Framing, Layout, LengthField, Varint
from pykcm.framing.base import SteppedFraming
from pykcm.framing.delineate import Delineator
from pykcm.framing.field import Field
from pykcm.framing.search import Find
from pykcm.framing.steps import (
    Add,
    Case,
    Divisible,
    Match,
    RoundUp,
    Step,
    Switch,
    Times,
    Within,
)

NEAR = NONE._replace(far_loads=False)
BATCHES = (2, 3, 7, 64)
DATA_EACH = 100
# What the kernel takes for a run is a page less some headroom.
ROOM = 3000


def batch_code(framing: Framing, batch: int, strategy: Strategy) -> Delineator:
    """A program for several messages, run in C."""
    return Delineator(bpf.assemble(framing.assembly(strategy, batch)))


def field(rng: random.Random, near: int = 12) -> Field:
    size = rng.choice((1, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8))
    bits = 8 * size
    mask = rng.choice((None, None, rng.getrandbits(bits), (1 << rng.randint(1, bits)) - 1))
    shift = rng.choice((0, 0, 0, rng.randrange(bits)))
    return Field(rng.randrange(near), size, rng.choice(("big", "little")), mask, shift)


def cases(rng: random.Random, what: Field, depth: int) -> Switch:
    """A Switch of up to three cases."""
    found: list[Case] = []
    for _ in range(rng.randint(1, 3)):
        low = rng.choice((0, 1, rng.randint(0, min(what.largest, 255))))
        high = rng.choice((low, what.largest, min(what.largest, low + rng.randrange(200))))
        found.append(Case((rng.choice((low, (low, high))),), steps(rng, depth)))
    return Switch(what, tuple(found))


def steps(rng: random.Random, depth: int = 2) -> tuple[Step, ...]:
    rule: list[Step] = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.randrange(9)
        if kind == 0:
            rule.append(Match(rng.choice((b"\0", b"\x01\x02", b"abc", bytes(7))), rng.randrange(9)))
        elif kind == 1:
            rule.append(Times(rng.choice((2, 10))))
        elif kind == 2:
            rule.append(RoundUp(rng.choice((2, 4, 8))))
        elif kind == 3:
            rule.append(Within(rng.choice((0, 3)), rng.choice((100, 1000, 1 << 20))))
        elif kind == 4 and depth:
            rule.append(cases(rng, field(rng), depth - 1))
        elif kind == 5:
            rule.append(Add(rng.randint(-5, 20)))
        elif kind == 6:
            rule.append(Divisible(rng.choice((2, 3, 4))))
        else:
            rule.append(Add(field(rng), rng.choice((1, 1, 2, 3, 4))))
    return tuple(rule)


def delimiter(rng: random.Random) -> bytes:
    return bytes(
        rng.choice(b"ab\0\x01\x80\xff\r\n") for _ in range(rng.choice((1, 1, 2, 2, 3, 5, 8)))
    )


def propose(rng: random.Random) -> Framing:
    """A random framing; many are impossible."""
    kind = rng.randrange(10)
    most = rng.choice((1 << 20, 1 << 20, 65536, 1000, rng.randint(20, 3000)))
    if kind == 0:
        return FixedLength(rng.choice((1, rng.randint(1, 60), rng.randint(1, 100_000))))
    if kind == 1:
        return Varint(most, rng.randint(1, 9), rng.randrange(4))
    if kind == 2:
        return Delimiter(delimiter(rng), min(most, 1 << 16))
    if kind == 3:
        return rng.choice([entry.framing for entry in protocols.ALL.values()])
    if kind == 4:
        search = (Find(delimiter(rng), rng.choice((8, 40, 1000, 65536))),)
        rest = Case((rng.randint(0, 255),), (Add(field(rng)), Add(20)))
        return Layout("search", (Switch(Field(0), (Case(((0, 127),), search), rest)),), 1, most)
    if kind <= 6:
        head = (Add(rng.choice((8, 20, 40))),) if rng.random() < 0.8 else ()
        return Layout("steps", (*steps(rng), *head), rng.choice((1, 8, 20)), most)
    what = field(rng)
    return LengthField(
        what.offset,
        what.size,
        what.byteorder,
        mask=what.mask,  # type: ignore[arg-type]
        shift=what.shift,
        adjustment=rng.choice((None, None, 0, rng.randint(-5, 30))),  # type: ignore[arg-type]
        multiplier=rng.choice((1, 1, 1, 2, 4, 10)),
        max_length=most,
        magic=rng.choice((b"", b"", b"\0", b"ab\0")),
        magic_offset=rng.randrange(14),
        multiple_of=rng.choice((1, 1, 1, 2, 4)),
    )


def make(rng: random.Random) -> Framing:
    while True:
        try:
            return propose(rng)
        except FramingDefinitionError:
            continue


def make_data(rng: random.Random, framing: Framing) -> bytes:
    """Bytes of which many are headers of something."""
    size = rng.choice((1, 2, 3, 5, 9, 17, 40, 100, 600, ROOM))
    alphabet = rng.choice(
        (
            bytes(12) + b"\x01\x02\x05",
            bytes(6) + b"ab\r\n\x01\x03\x08\x10\x20\x80\xff",
            b"0123456789:\r\n$+*-",
            bytes(range(256)),
        )
    )
    data = bytearray(rng.choices(alphabet, k=rng.randint(1, size)))
    if rng.random() < 0.5 and isinstance(framing, Delimiter):
        for _ in range(rng.randrange(9)):
            at = rng.randrange(len(data))
            data[at : at + len(framing.delimiter)] = framing.delimiter
    if rng.random() < 0.3 and isinstance(framing, LengthField) and framing.magic:
        data[framing.magic_offset : framing.magic_offset + len(framing.magic)] = framing.magic
    return bytes(data[:ROOM])


def in_kernel(code: bytes, data: bytes) -> int:
    with bpf.Program.load(code) as program:
        return program.run(data)


def follow(framing: Framing, data: bytes) -> int:
    """Python's word, negative for a refusal."""
    if not isinstance(framing, SteppedFraming):
        return framing.measure(data)
    try:
        return framing._follow(data)
    except FramingError as error:
        return -(error.errno or 0)


def sums(framing: Framing, data: bytes, batch: int) -> list[int]:
    """What a program for a batch may return; the last is what it returns where it searches not."""
    found = [follow(framing, data)]
    end = min(len(data), framing.batch_bytes(batch))
    while 0 < found[-1] < end and len(found) < batch:
        length = follow(framing, data[found[-1] :])
        if length <= 0 or found[-1] + length > end:
            break
        found.append(found[-1] + length)
    return found


def divide(framing: Framing, data: bytes) -> list[int]:
    found: list[int] = []
    while data:
        length = follow(framing, data)
        if not 0 < length <= len(data):
            break
        found.append(length)
        data = data[length:]
    return found


def run(cases: int, seed: int) -> collections.Counter[str]:
    """So many cases.

    Returns:
        What came out, and how often.

    Raises:
        AssertionError: with all that is needed to see it again.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    number = 0
    while outcomes["cases"] < cases:
        rng = random.Random(f"{seed} {number}")
        framing, strategy = make(rng), rng.choice((NONE, NONE, NONE, NEAR))
        batch = rng.choice(BATCHES)
        text = framing.assembly(strategy, batch)
        searches = "find_" in text
        try:
            one, many = framing.load(strategy), framing.load(strategy, batch)
        except FramingDefinitionError as error:
            # The verifier may not take so many of a rule with hundreds of ways through it.
            assert error.argument == "batch", (seed, number, framing, error)
            outcomes["batches too large"] += 1
            number += 1
            continue
        in_c, many_in_c = Delineator(framing), batch_code(framing, batch, strategy)
        with one, many:
            for _ in range(DATA_EACH):
                data = make_data(rng, framing)
                where = (f"seed {seed}, framing {number}", repr(framing), strategy, data.hex())
                said = follow(framing, data)
                assert one.run(data) == in_c.measure(data) == said, where
                possible = sums(framing, data, batch)
                result = many.run(data)
                assert result == many_in_c.measure(data), where
                assert result in possible if searches else result == possible[-1], where
                assert in_c.divide(data) == divide(framing, data), where
                outcomes["cases"] += 1
                outcomes["lengths" if said > 0 else "refusals" if said else "too little"] += 1
                outcomes["super messages"] += result > 0 and result != said
        number += 1
    outcomes["framings"] = number
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    started = time.monotonic()
    outcomes = run(arguments.cases, arguments.seed)
    for name, count in outcomes.items():
        print(f"{count:>12,} {name}")
    print(f"none different, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
