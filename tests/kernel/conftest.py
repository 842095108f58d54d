"""These tests need a kernel with KCM. Without one they fail: none is ever skipped for that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ci.probe import obstacle
from pykcm._faults import Watch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cycles",
        type=int,
        default=1000,
        help="how often a connection is attached, used and detached to see that nothing is left",
    )
    parser.addoption(
        "--messages",
        type=int,
        default=100_000,
        help="how many messages the test of endurance counts",
    )


def pytest_sessionstart() -> None:
    reason = obstacle()
    if reason:
        pytest.exit(
            f"the kernel tests can't run on this host: {reason}; use `make test`, "
            "or `ci/vm -- pytest tests/kernel`",
            returncode=1,
        )


@pytest.fixture(scope="session")
def kernel() -> Iterator[Watch]:
    watch = Watch()
    assert not watch.blind, watch.blind
    yield watch
    watch.close()


@pytest.fixture(autouse=True)
def no_fault_of_the_kernel(kernel: Watch) -> Iterator[None]:
    """Fail the test in which the kernel tells of a fault of its own."""
    yield
    told = kernel.faults()
    assert not told, "the kernel told of a fault:\n" + "\n".join(told)
