"""These tests need a kernel with KCM. Without one they fail: none is ever skipped for that."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure, what the kernel had then: a stall can't be told from its test alone."""
    report = yield
    if call.when == "call" and report.failed:
        report.sections.append(("the kernel's connections and workers", kernel_state()))
    return report


def kernel_state() -> str:
    """KCM's and TCP's tables, and where the kernel's threads that move messages are."""
    shown = [path.read_text(encoding="ascii") for path in Path("/proc/net").glob("kcm*")]
    command = ["ss", "--tcp", "--numeric", "--memory", "--info", "--options"]
    if shutil.which("ss"):
        shown.append(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (directory / "comm").read_text(encoding="utf-8").strip()
            if any(word in name for word in ("kkcmd", "kstrp", "kworker")):
                stack = (directory / "stack").read_text(encoding="ascii").split("\n")
                if "worker_thread" not in stack[0]:
                    shown.append("\n".join([name, *stack]))
    return "\n".join(shown)
