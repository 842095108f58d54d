"""A machine as the tests of `kcm stat` say it is: texts of /proc, connections, processes."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from pykcm import UnavailableError, statistics
from pykcm._joining import connections, kernel, look
from pykcm._joining.connections import Connection
from pykcm._joining.processes import Holder
from pykcm._joining.views import Look
from tests.unit.test_statistics import KCM, STATS

# As Linux 4.6 wrote them.
OLD_KCM = """\
*** KCM statistics (1 MUX) ****
Object         RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         Recv-Q   Rmem     Send-Q   \
Smem     Status
mux            7          70               3          30               -        -        -        \
-        KCMs: 1, Psocks 1
   kcm-0       2          20               3          30               4        3072     5        \
-        Psck-0 
   psock-0     8          81               3          30               1        2304     6        \
9        RxStop Rsvd-0 
"""  # noqa: W291 - the kernel ends a status with a blank
OLD_STATS = """\
MUX      RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         TX-Retries Attach     Unattach   \
UnattchRsvd RX-RdyDrops
         7          70               3          30               0          1          0          \
0        0         
Psock    RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         Reserved   Unreserved RX-Aborts  \
RX-MemFail RX-NeedMor RX-BadLen  RX-TooBig  RX-Timeout TX-Aborts 
         8          81               3          30               1          0          0          \
0          0          1          0          0          0         
"""  # noqa: W291
# As a kernel to come may.
NEW_KCM = (
    OLD_KCM.replace("Smem  ", "Smem     Age   ")
    .replace("9        RxStop", "9        77     RxStop NewWord")
    .replace("-        KCMs", "-        -      KCMs")
    .replace("-        Psck", "-        5      Psck")
)
NEW_STATS = OLD_STATS.replace("TX-Aborts \n", "TX-Aborts TX-New\n").replace(
    "0          0         \n", "0          0         12\n"
)

TCP = {
    501: Connection(501, "10.0.0.1:40001", "10.0.0.2:9090", "ESTABLISHED", 0, 0, 0, 81, 31, 0, 55),
    502: Connection(502, "[2001:db8::1]:443", "[2001:db8::2]:50000", "CLOSE_WAIT", 0, 12, 4000),
}
HOLDERS = {
    401: (Holder(812, "server", 5),),
    402: (Holder(812, "server", 6), Holder(813, "worker", 3)),
    403: (Holder(900, "other", 4),),
    501: (Holder(812, "server", 7),),
}
MEMBERS = [
    kernel.Multiplexor(
        0x2000,
        9,
        (kernel.Socket(0x21, 0, 401), kernel.Socket(0x22, 1, 402)),
        (kernel.Psock(0x23, 0, 501, 81, 30, 77),),
    ),
    kernel.Multiplexor(0x1000, 0, (kernel.Socket(0x11, 0, 403),), ()),
]


class Lists:
    """The kernel's lists, as the test says they are; each look takes two of them."""

    def __init__(self, told: list[Any]) -> None:
        self.told = told
        self.closed = False

    def multiplexors(self) -> list[kernel.Multiplexor]:
        members = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        if isinstance(members, Exception):
            raise members
        assert isinstance(members, list)
        return members

    def close(self) -> None:
        self.closed = True


class Machine:
    """What /proc and the kernel tell; a test changes it."""

    def __init__(self) -> None:
        self.texts = {"/proc/net/kcm": KCM, "/proc/net/kcm_stats": STATS}
        self.tcp = dict(TCP)
        self.references: dict[int, int] = {}
        self.holders = dict(HOLDERS)
        self.unseen = 0
        self.lists: Lists | None = Lists([MEMBERS])

    def read(self, path: str) -> str:
        if path not in self.texts:
            raise UnavailableError(errno.ENOENT, f"{path} does not exist")
        return self.texts[path]

    def open_lists(self) -> Lists:
        if self.lists is None:
            raise kernel.Obstacle("not this one")
        return self.lists

    def find_holders(self) -> Any:
        machine = self

        class Known:
            unseen = machine.unseen

            def of(self, inode: int) -> tuple[Holder, ...]:
                return machine.holders.get(inode, ())

            def of_kcm(self) -> dict[int, tuple[Holder, ...]]:
                return {n: held for n, held in machine.holders.items() if n < 500}

        return Known()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(statistics, "_read", machine.read)
    monkeypatch.setattr(kernel, "Lists", machine.open_lists)
    monkeypatch.setattr(connections, "connections", lambda: machine.tcp)
    monkeypatch.setattr(connections, "references", lambda: machine.references)
    monkeypatch.setattr(look, "Holders", machine.find_holders)
    return machine


def observe() -> Look:
    with look.Observer() as observer:
        return observer.look()
