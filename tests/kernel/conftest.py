"""These tests need a kernel with KCM. Without one they fail: none is ever skipped for that."""

import pytest

from ci.probe import obstacle


def pytest_sessionstart() -> None:
    reason = obstacle()
    if reason:
        pytest.exit(
            f"the kernel tests can't run on this host: {reason}; use `make test`, "
            "or `ci/vm -- pytest tests/kernel`",
            returncode=1,
        )
