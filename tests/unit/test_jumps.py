"""A signal handler's exception meets the `finally` that encloses a loop.

Some jumps from the end of a loop to its beginning lie outside of the `try` or `with` around it, and
CPython looks for signals there: what the handler raises passes by the `finally`, and a lock stays
locked.  On 3.13 that is so for `while condition:` (python/cpython issue 130279), on 3.12 for
comprehensions with an `if`.  `while True:` with a `break`, `for`, and a loop that is a function of
its own are not affected.  On other Pythons nothing is found.
"""

from __future__ import annotations

import dis
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pykcm

PACKAGE = Path(pykcm.__file__).parent


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def unprotected(code: CodeType) -> Iterator[int]:
    """The lines with a jump back that leaves out a handler of what surrounds it."""
    bytecode: Any = dis.Bytecode(code)  # whose tables of 3.11 and later have no types yet
    instructions: list[Any] = list(bytecode)
    opname = {instruction.offset: instruction.opname for instruction in instructions}

    def handler(offset: int) -> int | None:
        for entry in getattr(bytecode, "exception_entries", ()):
            if entry.start <= offset < entry.end:
                target: int = entry.target
                if opname[target] == "SWAP":  # a comprehension's, which restores its variable
                    return handler(target)
                if opname[target] == "CALL_INTRINSIC_1":  # for a generator's StopIteration
                    return None
                return target
        return None

    for before, jump in itertools.pairwise(instructions):
        # Without a line: behind an await to which something was thrown, and which went on.
        if jump.opname == "JUMP_BACKWARD" and jump.positions.lineno:
            around = handler(before.offset)
            if around == handler(jump.argval) and around not in (None, handler(jump.offset)):
                yield jump.positions.lineno


def test_no_loop_jumps_outside_of_its_try() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        # The command ends with what is raised, and so do the processes of the selftest.
        if not {"cli", "doctor", "selftest", "_joining"} & {*path.parts}:
            module = compile(path.read_bytes(), path, "exec")
            for code in codes(module):
                found += [f"{path.name}:{line} in {code.co_name}" for line in unprotected(code)]
    assert not found, "\n".join(found)
