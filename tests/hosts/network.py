"""Hosts: network namespaces on one switch, with replicas of a server in them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ci.guest import tree
from tests.peers.servers import PATIENCE

PORT = 9000
SWITCH = "10.9.0.100"
REPLICA = Path(__file__).with_name("replica.py")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def add_switch() -> None:
    """What the hosts are connected to; the tests themselves are on it too."""
    ip("link", "add", "switch", "type", "bridge")
    ip("address", "add", f"{SWITCH}/24", "dev", "switch")
    ip("link", "set", "switch", "up")


class Host:
    """A network namespace with a link to the switch."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"10.9.0.{number}"
        self._port = f"to-{name}"
        ip("netns", "add", name)
        ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", self._port, "master", "switch", "up")
        ip("-n", name, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs a command on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def link(self, state: str) -> None:
        """Have the link "up" or "down", at the switch's end: this host sees no carrier."""
        ip("link", "set", self._port, state)

    @contextlib.contextmanager
    def disturbed(self, *netem: str) -> Iterator[None]:
        """What netem does with packets, in both directions."""
        ends = (["tc"], self._port), (["tc", "-n", self.name], "eth0")
        for tc, device in ends:
            add = [*tc, "qdisc", "add", "dev", device, "root", "netem", *netem]
            subprocess.run(add, check=True)
        try:
            yield
        finally:
            for tc, device in ends:
                subprocess.run([*tc, "qdisc", "delete", "dev", device, "root"], check=True)


class Replica:
    """A server on a host, which writes down what it carries out."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self._log = directory / f"{host.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        words = [sys.executable, "-S", str(REPLICA), self.name, str(PORT), str(self._log)]
        self._process = subprocess.Popen(self.host.command(words), stdout=subprocess.PIPE)
        assert self._process.stdout
        assert self._process.stdout.readline() == b"ready\n"

    def signal(self, number: int) -> None:
        assert self._process
        for pid in tree(self._process.pid):
            os.kill(pid, number)

    def kill(self) -> None:
        if self._process:
            self.signal(signal.SIGKILL)
            self._process.communicate()
            self._process = None

    def carried_out(self) -> Counter[int]:
        """How often it carried out the request of each number, since the log was emptied."""
        data = self._log.read_bytes()
        return Counter(int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4))

    def forget(self) -> None:
        """Empty the log, which the replica appends to."""
        with self._log.open("wb"):
            pass


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.05)
