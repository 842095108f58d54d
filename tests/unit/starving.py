"""Want of memory: one after another of a call's allocations fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

import pytest

from tests.children import in_child

#: Yields a call, is sent what that returned, None if it raised MemoryError, and sees what it left.
Case: TypeAlias = Generator[Callable[[], Any], Any, None]


def each_allocation_fails(count: int, case: Callable[[], Case]) -> None:
    """Have the first allocation of a call fail, in another the second, and so on.

    In a process that has no other thread: one of pytest-xdist's would want for memory as well, and
    the process be lost.
    """
    nomemory = getattr(pytest.importorskip("_testcapi"), "set_nomemory", None)
    if nomemory is None:
        pytest.skip("this Python's _testcapi has no set_nomemory")
    enough = pytest.importorskip("_testcapi").remove_mem_hooks

    def starve() -> None:
        failed = 0
        for start in range(count):
            running = case()
            call = next(running)
            result = None
            nomemory(start, start + 1)
            try:
                result = call()
                enough()
            except MemoryError:
                enough()
                failed += 1
            try:
                running.send(result)
            except StopIteration:
                continue
            except BaseException:
                print(f"after allocation {start} failed:", file=sys.stderr)
                raise
            raise AssertionError("a case yields once")
        assert failed

    in_child(starve)
