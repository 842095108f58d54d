"""The unit tests are for everybody: what needs a capability is skipped, with its reason."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LOADERS = re.compile(r"\.load\(|from_pin|needs_bpf")


@pytest.mark.timeout(600)  # it is many tests, each of which has its own limit
@pytest.mark.skipif(os.geteuid() != 0, reason="requires root, to drop its capabilities")
def test_without_capabilities_no_test_fails() -> None:
    """Of all files that load programs, this one left out."""
    files = [
        path
        for path in Path(__file__).parent.glob("test_*.py")
        if LOADERS.search(path.read_text(encoding="utf-8")) and path != Path(__file__)
    ]
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    result = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *pytest_],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert re.search(r"^SKIPPED .*requires root, or CAP_BPF", result.stdout, re.MULTILINE)
