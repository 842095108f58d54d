"""Which socket stands behind each line of /proc/net/kcm, as the kernel's memory has it.

The lines have no inode numbers.  The kernel's lists, which the file is made of, lead to them.
Source: include/net/kcm.h, net/kcm/kcmproc.c.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from pykcm import _kernel
from pykcm._joining.btf import Types
from pykcm._joining.memory import Memory
from pykcm.errors import KCMError

_ATTEMPTS = 3


class Socket(NamedTuple):
    """A KCM socket: where it lies in memory, its index, its inode number.

    The number is 0 for one that is just being closed; no other ever has the same.
    """

    address: int
    index: int  # type: ignore[assignment]  # in place of tuple's method
    inode: int


class Psock(NamedTuple):
    """A transport: where it lies in memory, its index, the TCP socket's inode number, its bytes.

    And the id of the program that finds its messages.  A connection that is unattached and attached
    again can have the same address and index.
    """

    address: int
    index: int  # type: ignore[assignment]  # in place of tuple's method
    inode: int
    received: int
    sent: int
    program: int = 0


class Multiplexor(NamedTuple):
    """A multiplexor, with what it has, and how often a connection was attached to it."""

    address: int
    attached: int
    sockets: tuple[Socket, ...]
    psocks: tuple[Psock, ...]


M = TypeVar("M", Socket, Psock)


class Obstacle(Exception):  # noqa: N818 - not an error, but a fact to tell
    """Why the kernel's memory does not tell; the text says what would have to be done."""


class Lists:
    """The kernel's lists of this network namespace.

    Raises:
        Obstacle: this process may not follow them, or the kernel does not describe its types.
    """

    def __init__(self) -> None:
        try:
            types = Types("kcm")
            self._offsets = {name: types.offset(*name.split()) for name in _OFFSETS}
            self._attached, *self._bytes = (
                sum(types.offset(*name.split()) for name in path) for path in _COUNTS
            )
        except (OSError, ValueError, LookupError) as error:
            raise Obstacle(f"the kernel does not describe its types ({error})") from error
        try:
            self._memory = Memory()
        except KCMError as error:
            raise Obstacle(
                "reading the kernel's lists takes root, or CAP_BPF and CAP_PERFMON, "
                f"and no lockdown ({str(error).splitlines()[0]})"
            ) from error
        try:
            self._head = self._find()
        except OSError as error:
            self.close()
            raise Obstacle(f"the kernel's lists can't be found ({error})") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._memory.close()

    def multiplexors(self) -> list[Multiplexor]:
        """All multiplexors, in the order of /proc/net/kcm.

        Of what a multiplexor has some may be missing, while others come and go.

        Raises:
            BlockingIOError: the list of multiplexors was changed while it was followed.
        """
        return [
            Multiplexor(
                mux,
                self._memory.word(mux + self._attached),
                _longest(self._sockets, mux),
                _longest(self._psocks, mux),
            )
            for mux in self._list(self._head, "kcm_mux kcm_mux_list")
        ]

    def _sockets(self, mux: int) -> Iterator[Socket]:
        head = mux + self._offsets["kcm_mux kcm_socks"]
        for kcm in self._list(head, "kcm_sock kcm_sock_list"):
            self._expect(kcm + self._offsets["kcm_sock mux"], mux)
            index = self._memory.word(kcm + self._offsets["kcm_sock index"])
            yield Socket(kcm, index, self._inode(kcm + self._offsets["kcm_sock sk"]))

    def _psocks(self, mux: int) -> Iterator[Psock]:
        head = mux + self._offsets["kcm_mux psocks"]
        for psock in self._list(head, "kcm_psock psock_list"):
            self._expect(psock + self._offsets["kcm_psock mux"], mux)
            index = self._memory.word(psock + self._offsets["kcm_psock index"])
            sk = self._memory.long(psock + self._offsets["kcm_psock sk"])
            received, sent = (self._memory.long(psock + at) for at in self._bytes)
            program = self._program(psock)
            found = Psock(psock, index, self._inode(sk), received, sent, program)
            self._expect(psock + self._offsets["kcm_psock sk"], sk)  # still the same
            yield found

    def _list(self, head: int, link: str) -> Iterator[int]:
        """The objects of a list, by where its links lie in them."""
        seen: set[int] = set()
        at = self._memory.long(head)
        while at and at not in seen:
            if at == head:
                return
            seen.add(at)
            yield at - self._offsets[link]
            at = self._memory.long(at)
        raise BlockingIOError(errno.EAGAIN, "a list of the kernel was changed while it was read")

    def _expect(self, address: int, value: int) -> None:
        if self._memory.long(address) != value:
            raise BlockingIOError(errno.EAGAIN, "an object of the kernel went while it was read")

    def _program(self, psock: int) -> int:
        peek = self._memory.long
        program = peek(psock + self._offsets["kcm_psock bpf_prog"])
        aux = peek(program + self._offsets["bpf_prog aux"])
        return self._memory.word(aux + self._offsets["bpf_prog_aux id"])

    def _inode(self, sk: int) -> int:
        socket = self._memory.long(sk + self._offsets["sock sk_socket"])
        if not socket:
            return 0
        inode = socket + self._offsets["socket_alloc vfs_inode"]
        return self._memory.long(inode + self._offsets["inode i_ino"])

    def _find(self) -> int:
        """The head of the list of multiplexors, by a KCM socket of our own.

        That is made once, and closed again: its multiplexor is seen by others for a moment.
        """
        with _kernel.open_socket() as kcm:
            peek, at = self._memory.long, self._offsets
            files = peek(at["task_struct files"])  # a small address: of the running task
            table = peek(peek(files + at["files_struct fdt"]) + at["fdtable fd"])
            file = peek(table + 8 * kcm.fileno())
            socket = peek(file + at["file private_data"])
            mux = peek(peek(socket + at["socket sk"]) + at["kcm_sock mux"])
            head = peek(mux + at["kcm_mux knet"]) + at["kcm_net mux_list"]
            try:
                found = mux in self._list(head, "kcm_mux kcm_mux_list")
            except BlockingIOError:
                found = False
            if not found:
                raise Obstacle("the kernel's lists are not where its types say")
        return head


def _longest(follow: Callable[[int], Iterator[M]], mux: int) -> tuple[M, ...]:
    """The whole list, or the most that was found of it in some attempts."""
    longest: list[M] = []
    for _ in range(_ATTEMPTS):
        found = []
        try:
            for member in follow(mux):
                found.append(member)
            return tuple(found)
        except BlockingIOError:
            longest = max(found, longest, key=len)
    return tuple(longest)


# What is looked up: a struct and a member of it.
_OFFSETS = (
    "task_struct files",
    "files_struct fdt",
    "fdtable fd",
    "file private_data",
    "socket sk",
    "sock sk_socket",
    "socket_alloc vfs_inode",
    "inode i_ino",
    "kcm_net mux_list",
    "kcm_mux kcm_mux_list",
    "kcm_mux knet",
    "kcm_mux kcm_socks",
    "kcm_mux psocks",
    "kcm_sock sk",
    "kcm_sock mux",
    "kcm_sock index",
    "kcm_sock kcm_sock_list",
    "kcm_psock sk",
    "kcm_psock mux",
    "kcm_psock index",
    "kcm_psock psock_list",
    "kcm_psock bpf_prog",
    "bpf_prog aux",
    "bpf_prog_aux id",
)
# The members that counts are in, from the outermost: of a multiplexor how often a connection was
# attached, of a psock the bytes received and sent.
_COUNTS = (
    ("kcm_mux stats", "kcm_mux_stats psock_attach"),
    ("kcm_psock strp", "strparser stats", "strp_stats bytes"),
    ("kcm_psock stats", "kcm_psock_stats tx_bytes"),
)
