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


def index_is_reached(download: list[str], directory: Path) -> bool:
    command = [*download, "--no-deps", "--no-cache-dir", "--dest", str(directory), "cffi"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


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
    pip = [str(python), "-m", "pip", "--quiet"]
    # The build's requirements come from a package index: its isolation is what is tested.
    installed = subprocess.run([*pip, "install", source], check=False)
    if installed.returncode and not index_is_reached([*pip, "download"], tmp_path):
        pytest.skip("no package index is reached, which `pip install` needs")
    assert installed.returncode == 0
    subprocess.run([python, "-c", LOOK], cwd=tmp_path, check=True)
    # The extras' packages are not there, and importing does not need them.
    missing = subprocess.run([python, "-c", "import click"], capture_output=True, check=False)
    assert missing.returncode != 0
