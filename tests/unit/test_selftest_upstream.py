"""contrib/selftests-net-kcm: what would be sent to the kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pykcm.selftest import deviations
from tests.kernel_source import selftests_library

ROOT = Path(__file__).parents[2]


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    target = tmp_path / "net/kcm"
    generate = ROOT / "contrib/selftests-net-kcm/generate"
    subprocess.run([sys.executable, str(generate), str(target)], check=True)
    return target


def test_every_file_has_its_licence(generated: Path) -> None:
    files = [path for path in generated.rglob("*") if path.is_file()]
    assert len(files) > 40
    for path in files:
        if path.name not in ("config", "settings"):
            head = path.read_text(encoding="utf-8").splitlines()[:2]
            assert "# SPDX-License-Identifier: GPL-2.0 OR MIT" in head, path


def test_the_directory_is_complete(generated: Path) -> None:
    assert {path.name for path in generated.iterdir()} == {
        *("Makefile", "config", "kcm.py", "pykcm", "settings")
    }
    assert (generated / "kcm.py").stat().st_mode & 0o111
    assert (generated / "settings").read_text(encoding="ascii") == "timeout=600\n"


def test_it_runs_on_the_kernels_library(generated: Path, tmp_path: Path) -> None:
    """Where there is no KCM it says so, as the kernel's selftests do."""
    selftests_library(tmp_path)
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(generated / "kcm.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    if result.returncode == 4:
        assert "\n1..0 # SKIP socket(AF_KCM) fails with " in result.stdout
    else:
        assert "\nok 1 kcm.sockets.dgram_opens\n" in result.stdout


def test_without_a_directory_it_says_how(tmp_path: Path) -> None:
    generate = ROOT / "contrib/selftests-net-kcm/generate"
    result = subprocess.run(
        [sys.executable, str(generate)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "tools/testing/selftests/net/kcm" in result.stderr


def test_every_deviation_is_in_the_list_of_patches() -> None:
    text = (ROOT / "docs/upstream.md").read_text(encoding="utf-8")
    missing = [each.check for each in deviations.DEVIATIONS if f"`{each.check}`" not in text]
    assert missing == []
