"""What a check is: a statement about the kernel, its source, and how to try it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykcm.selftest.lab import Lab

#: Seconds that a check may take before it is ended.
TIME_LIMIT = 60.0


class Failure(Exception):  # noqa: N818 - it is an outcome, not a fault of the program
    """The kernel did not do what the check says; the text has a line for each thing to know."""


class Skip(Exception):  # noqa: N818
    """The check can't be made here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement about the kernel.

    Attributes:
        name: "group.statement", such as "attach.listening_socket_is_eopnotsupp".
        summary: the statement in words.
        source: the sentence of the documentation or the function of the kernel it comes from.
        body: makes the check; raises Failure if the statement is false, Skip if it can't be tried.
        limit: seconds after which it is ended.
        alone: it can be made only while no other one is.
    """

    name: str
    summary: str
    source: str
    body: Callable[[Lab], None]
    limit: float = TIME_LIMIT
    alone: bool = False


class Group:
    """Checks of one part of the interface, in the order of their definition.

    Args:
        name: a word; the first part of its checks' names.
        title: what they are about.
    """

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title
        self.checks: list[Check] = []

    def check(
        self, source: str, limit: float = TIME_LIMIT, *, alone: bool = False
    ) -> Callable[[Callable[[Lab], None]], Callable[[Lab], None]]:
        """Make a check of a function; its name and docstring become the check's."""

        def add(body: Callable[[Lab], None]) -> Callable[[Lab], None]:
            summary = inspect.cleandoc(body.__doc__ or "")
            name = f"{self.name}.{body.__name__}"
            self.checks.append(Check(name, " ".join(summary.split()), source, body, limit, alone))
            return body

        return add


def every(groups: Iterable[Group]) -> dict[str, Check]:
    """All checks of some groups by their names."""
    return {check.name: check for group in groups for check in group.checks}


def rst(section: str, sentence: str) -> str:
    """The source that is a sentence of the kernel's documentation of KCM."""
    return f'Documentation/networking/kcm.rst, {section}: "{sentence}"'


def code(function: str, file: str = "net/kcm/kcmsock.c") -> str:
    """The source that is a function of the kernel's, with a place in it after a comma or colon."""
    name = re.match(r"\w+", function)
    end = name.end() if name else 0
    return f"{file}, {function[:end]}(){function[end:]}"
