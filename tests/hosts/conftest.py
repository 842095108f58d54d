"""These tests need KCM, and Debian's HAProxy: `make hosts` provides both.

They run in a network and a mount namespace of their own (ci/peers.py).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.probe import obstacle
from tests.hosts.network import Host, Replica, add_switch
from tests.peers.servers import Root

REPLICAS = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--servers", type=Path, help="the directory with Debian's servers")


def pytest_sessionstart(session: pytest.Session) -> None:
    if not session.config.getoption("--servers"):
        pytest.exit("these tests are run by `make hosts`, which fetches HAProxy", returncode=1)
    if reason := obstacle():
        pytest.exit(f"these tests can't run on this host: {reason}; use `make hosts`", returncode=1)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    add_switch()


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    """Three hosts with a replica each."""
    directory = tmp_path_factory.mktemp("hosts")
    replicas = [Replica(Host(f"r{n}", n), directory) for n in range(1, REPLICAS + 1)]
    yield replicas
    for replica in replicas:
        replica.kill()


@pytest.fixture
def replicas(hosts: list[Replica]) -> list[Replica]:
    """The replicas, which all run, and have carried out nothing yet."""
    for replica in hosts:
        if not replica.running:
            replica.start()
        replica.host.link("up")
        replica.forget()
    return hosts


@pytest.fixture(scope="session")
def balancer() -> Host:
    """The host that HAProxy runs on."""
    return Host("balancer", 50)


@pytest.fixture(scope="session")
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Root:
    return Root(request.config.getoption("--servers"), tmp_path_factory.mktemp("servers"))
