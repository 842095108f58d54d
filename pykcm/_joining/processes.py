"""The processes that hold sockets, as far as this one may look into them."""

from __future__ import annotations

import os
from typing import NamedTuple

_PREFIX = "socket:["


class Holder(NamedTuple):
    """A process that holds a socket, by one of its descriptors."""

    pid: int
    name: str
    fd: int


class Holders:
    """Who holds which socket, read when this is made.

    Attributes:
        unseen: how many processes could not be looked into.
    """

    def __init__(self) -> None:
        self.unseen = 0
        self._found: dict[int, list[Holder]] = {}
        for name in os.listdir("/proc"):  # noqa: PTH208 - no pathlib
            if name.isdecimal():
                self._add(int(name))

    def of(self, inode: int) -> tuple[Holder, ...]:
        """Those of a socket; none if it is held by the kernel, or by what is not seen."""
        return tuple(sorted(self._found.get(inode, ())))

    def of_kcm(self) -> dict[int, tuple[Holder, ...]]:
        """Those of all KCM sockets, by the sockets' inode numbers."""
        return {inode: self.of(inode) for inode, found in self._found.items() if _is_kcm(found)}

    def _add(self, pid: int) -> None:
        directory = f"/proc/{pid}/fd"
        command = ""
        try:
            for fd in os.listdir(directory):  # noqa: PTH208
                try:
                    target = os.readlink(f"{directory}/{fd}")  # noqa: PTH115
                except FileNotFoundError:
                    continue  # closed meanwhile
                if target.startswith(_PREFIX):
                    command = command or _text(f"/proc/{pid}/comm").rstrip("\n") or "?"
                    inode = int(target[len(_PREFIX) : -1])
                    self._found.setdefault(inode, []).append(Holder(pid, command, int(fd)))
        except PermissionError:
            # A thread of the kernel has no command line, and no sockets.
            self.unseen += bool(_text(f"/proc/{pid}/cmdline"))
        except (FileNotFoundError, ProcessLookupError):
            return  # it has ended


def _is_kcm(found: list[Holder]) -> bool:
    for holder in found:
        try:
            path = f"/proc/{holder.pid}/fd/{holder.fd}"
            return os.getxattr(path, "system.sockprotoname").rstrip(b"\0") == b"KCM"
        except OSError:
            continue  # closed meanwhile
    return False


def _text(path: str) -> str:
    """What a file of a process says; "" if the process has ended."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - no pathlib
            return file.read()
    except OSError:
        return ""
