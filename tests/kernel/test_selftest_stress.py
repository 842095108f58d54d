"""`kcm selftest --stress`: it passes here, and fails where a message is lost, doubled or torn."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pykcm.selftest import runner, stress
from pykcm.selftest.calls import Calls
from pykcm.selftest.environment import survey
from tests.kernel.test_selftest import run

if TYPE_CHECKING:
    from typing_extensions import Buffer

pytestmark = pytest.mark.timeout(300)

EVERY = 50  # messages


class Torn(Calls):
    """A received message lacks its last byte, now and then."""

    count = 0

    def receive(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> tuple[int, int]:
        size, seen = super().receive(fd, buffers, flags)
        self.count += 1
        return size - (self.count % EVERY == 0), seen


class Doubled(Calls):
    """A message is received again, now and then."""

    count = 0
    last = b""

    def receive(self, fd: int, buffers: Sequence[Any], flags: int = 0) -> tuple[int, int]:
        self.count += 1
        if self.count % EVERY == 0 and self.last:
            buffers[0][: len(self.last)] = self.last
            return len(self.last), int(socket.MSG_EOR)
        size, seen = super().receive(fd, buffers, flags)
        if not flags & socket.MSG_PEEK:
            self.last = bytes(buffers[0][:size])
        return size, seen


class LosesReceived(Calls):
    """A received message is lost, now and then."""

    count = 0

    def receive(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> tuple[int, int]:
        self.count += 1
        if self.count % EVERY == 0:
            super().receive(fd, buffers, flags & ~socket.MSG_PEEK)
        return super().receive(fd, buffers, flags)


class LosesSent(Calls):
    """A message that send takes is lost, now and then."""

    count = 0

    def send(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
        self.count += 1
        if self.count % EVERY == 0 and flags & ~socket.MSG_DONTWAIT in (0, socket.MSG_EOR):
            return len(b"".join(buffers))
        return super().send(fd, buffers, flags)


class LosesTheRest(Calls):
    """What was in the TCP socket when it was unattached is lost."""

    def unattach(self, kcm: int, tcp: int) -> None:
        super().unattach(kcm, tcp)
        with socket.socket(fileno=os.dup(tcp)) as copy:
            copy.settimeout(0)
            try:
                while copy.recv(1 << 16):
                    pass
            except OSError:
                return


def test_it_passes_here() -> None:
    result = run("--stress", "6", "--seed", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"# seed 1: \d+ rounds, ", result.stdout)  # as many as the host is fast


@pytest.mark.parametrize("calls", [Torn, Doubled, LosesReceived, LosesSent, LosesTheRest])
def test_it_sees(calls: type[Calls]) -> None:
    """Within some rounds: on a busy host two seconds are one."""
    for seed in range(1, 9):
        [check] = stress.group(2.0, seed).checks
        [outcome] = runner.run([runner.Job(check, calls())], survey())
        if outcome.status == "fail":
            return
    raise AssertionError(f"not with seeds 1 to {seed}: {outcome}")
