"""45. A callback `(tcp: socket.socket, ...)` and `mux.transports[0].fileno()` were refused."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CALLERS = Path(__file__).parent / "typed_callers.py"
ROOT = Path(__file__).parents[2]

WRONG = """\
import pykcm
def run(mux: pykcm.Multiplexor) -> None:
    mux.recv(1.0)
    mux.attach(3)
    mux.on_disconnect = lambda tcp, reason: None
    mux.transports[0].no_such_method()
    pykcm.Multiplexor("DNS")
"""


@pytest.fixture(params=["mypy", "basedpyright"])
def checker(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def check(checker: str, file: Path, tmp_path: Path) -> tuple[int, str]:
    # basedpyright is Pyright with all that it needs; what its own rules say are warnings.  mypy's
    # cache is not for several at a time.
    cache = ["--cache-dir", str(tmp_path / "cache")]
    options = ["--level", "error"] if checker == "basedpyright" else cache
    result = subprocess.run(
        [sys.executable, "-m", checker, *options, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    return result.returncode, result.stdout + result.stderr


def test_45_what_callers_write(checker: str, tmp_path: Path) -> None:
    status, output = check(checker, CALLERS, tmp_path)
    assert status == 0, output


def test_45_what_they_must_not(checker: str, tmp_path: Path) -> None:
    """A checker that takes everything would say nothing by the test above."""
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    status, output = check(checker, file, tmp_path)
    lines = {int(number) for number in re.findall(r"wrong\.py:(\d+):.*error", output)}
    assert (status, lines) == (1, {3, 4, 5, 6, 7}), output


def test_every_public_type_is_known() -> None:
    """What `pyright --verifytypes` says of the package as it is imported from here."""
    pytest.importorskip("basedpyright")
    result = subprocess.run(
        [*(sys.executable, "-m", "basedpyright", "--ignoreexternal", "--verifytypes", "pykcm")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    [score] = re.findall(r"Type completeness score: ([\d.]+)%", result.stdout)
    assert float(score) == 100, result.stdout
