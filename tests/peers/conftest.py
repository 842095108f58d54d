"""These tests need KCM, and Debian's servers: `make peers` provides both.

They run in a network and a mount namespace of their own (ci/peers.py), so all ports are free, and
nothing that is mounted stays.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.probe import obstacle
from ci.servers import VERSIONS
from tests.peers.servers import Root

# An address that a document uses for a server.
DOCUMENTED = "192.0.2.53/32"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--servers", type=Path, help="the directory with Debian's servers")


def pytest_sessionstart(session: pytest.Session) -> None:
    if not session.config.getoption("--servers"):
        pytest.exit("these tests are run by `make peers`, which fetches the servers", returncode=1)
    if reason := obstacle():
        pytest.exit(f"these tests can't run on this host: {reason}; use `make peers`", returncode=1)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", DOCUMENTED, "dev", "lo"], check=True)
    # The servers run as nobody.
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0", encoding="ascii")


@pytest.fixture(scope="session")
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Root:
    return Root(request.config.getoption("--servers"), tmp_path_factory.mktemp("servers"))


@pytest.fixture(scope="session")
def versions(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The version of each of Debian's packages."""
    directory: Path = request.config.getoption("--servers")
    yield json.loads((directory / VERSIONS).read_text(encoding="utf-8"))
