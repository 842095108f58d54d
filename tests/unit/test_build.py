"""`pip install .` gives a package that works by itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOOK = """
import importlib.resources, importlib.util, sys
import pykcm, pykcm._native
files = importlib.resources.files("pykcm")
assert sys.prefix in str(files), files
assert (files / "py.typed").is_file()
assert (files / "_native.pyi").is_file()
assert pykcm._native.__file__.endswith(".abi3.so")
assert pykcm._native.lib.AF_KCM == 41
"""


@pytest.mark.timeout(300)
def test_pip_install(tmp_path: Path) -> None:
    # Only what the project holds: a build must not need anything else, nor leave it behind.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "build_ffi.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "pykcm", source / "pykcm", ignore=shutil.ignore_patterns("_native.*o", "_native.c")
    )
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", source], check=True)
    subprocess.run([python, "-c", LOOK], cwd=tmp_path, check=True)
    # The extras' packages are not there, and importing does not need them.
    missing = subprocess.run([python, "-c", "import click"], capture_output=True, check=False)
    assert missing.returncode != 0
