"""These tests need a kernel with KCM. Without one they fail: none is ever skipped for that."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ci.guest import KERNEL_FAULT
from ci.probe import obstacle


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cycles",
        type=int,
        default=10_000,
        help="how often a connection is attached, used and detached to see that nothing is left",
    )


def pytest_sessionstart() -> None:
    reason = obstacle()
    if reason:
        pytest.exit(
            f"the kernel tests can't run on this host: {reason}; use `make test`, "
            "or `ci/vm -- pytest tests/kernel`",
            returncode=1,
        )


@pytest.fixture(scope="session", autouse=True)
def kernel_log() -> Iterator[None]:
    """Fail if the kernel complains of itself while the tests run."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(fd, 0, os.SEEK_END)
        yield
        lines = []
        while True:
            try:
                lines.append(os.read(fd, 8192).decode("utf-8", "replace"))
            except BlockingIOError:
                break
            except BrokenPipeError:  # lines were overwritten before they were read
                continue
        faults = [line for line in lines if KERNEL_FAULT.search(line)]
        assert not faults, "the kernel complained:\n" + "".join(faults)
    finally:
        os.close(fd)
