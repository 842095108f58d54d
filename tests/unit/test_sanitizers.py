"""The compiled parts under AddressSanitizer and UndefinedBehaviorSanitizer, given random calls.

Longer: FUZZ_SECONDS=600 pytest tests/unit/test_sanitizers.py; FUZZ_SEED has a seed again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = os.environ.get("FUZZ_SECONDS", "8")


def runtime() -> str:
    """The sanitizer's library, which has to be loaded before Python."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("gcc has no AddressSanitizer here (libasan)")
    return library


@pytest.mark.skipif(
    sys.implementation.name != "cpython",
    reason="on this Python nothing of the fast path is compiled",
)
@pytest.mark.timeout(60 + 2 * float(SECONDS))
def test_random_calls_under_the_sanitizers(tmp_path: Path) -> None:
    library = runtime()
    target = tmp_path / "_fastpath.so"
    compiled = subprocess.run(
        [
            *("gcc", "-shared", "-fPIC", "-O1", "-g", "-D_GNU_SOURCE"),
            *("-fsanitize=address,undefined", "-fno-omit-frame-pointer"),
            *("-I", sysconfig.get_path("include"), "-DPy_LIMITED_API=0x030A0000"),
            *(str(ROOT / "pykcm" / file) for file in ("_fastpath.c", "_delineate.c")),
            *("-o", str(target)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    command = [sys.executable, "-m", "tests.unit.fuzz_fastpath", SECONDS]
    seed = os.environ.get("FUZZ_SEED") or str(int.from_bytes(os.urandom(4), "big"))
    result = subprocess.run(
        [*command, seed, str(target)],
        cwd=ROOT,
        env={
            **os.environ,
            "LD_PRELOAD": library,
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=30 + 2 * float(SECONDS),
    )
    assert result.returncode == 0, f"FUZZ_SEED={seed}\n{result.stdout}{result.stderr[-8000:]}"
    assert "runtime error" not in result.stderr, f"FUZZ_SEED={seed}\n{result.stderr}"
    assert " calls" in result.stdout
