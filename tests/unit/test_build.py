"""`pip install .` gives a package that works by itself, and so does the source distribution."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOOK = """
import importlib.metadata, importlib.resources, importlib.util, sys
import pykcm, pykcm._native
assert importlib.metadata.version("pykcm") == pykcm.__version__
files = importlib.resources.files("pykcm")
assert sys.argv[1] in str(files), files
assert (files / "py.typed").is_file()
assert (files / "_native.pyi").is_file()
assert pykcm._native.__file__.endswith(".abi3.so")
assert pykcm._native.lib.AF_KCM == 41
"""

FILES = ("pyproject.toml", "setup.py", "build_ffi.py", "MANIFEST.in", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; build_meta.{}(sys.argv[1])"

# setup.py and build_ffi.py as a free-threaded Python runs them.
FREE_THREADED = """
import runpy, sysconfig
import setuptools
ask = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: 1 if name == "Py_GIL_DISABLED" else ask(name)
given = {}
setuptools.setup = given.update
runpy.run_path("setup.py")
assert "py_limited_api" not in str(given), given
_, _, _, arguments = runpy.run_path("build_ffi.py")["ffibuilder"]._assigned_source
assert "Py_LIMITED_API" not in str(arguments["define_macros"]), arguments
"""


def copied(directory: Path) -> Path:
    """Only what the project holds: a build must not need anything else, nor leave it behind."""
    source = directory / "source"
    left_out = shutil.ignore_patterns("*.so", "*.o", "_native.c", "__pycache__")
    shutil.copytree(ROOT / "pykcm", source / "pykcm", ignore=left_out)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    return source


def build(kind: str, source: Path, directory: Path) -> Path:
    """What a hook of the build backend makes of a source directory, without a package index."""
    command = [sys.executable, "-c", BUILD.format(f"build_{kind}"), str(directory)]
    result = subprocess.run(
        command,
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (made,) = directory.iterdir()
    return made


def test_the_source_distribution_can_be_built_and_its_wheel_imported(tmp_path: Path) -> None:
    for name in ("sdist", "unpacked", "wheel", "installed"):
        (tmp_path / name).mkdir()
    sdist = build("sdist", copied(tmp_path), tmp_path / "sdist")
    subprocess.run(["tar", "-xf", sdist, "-C", tmp_path / "unpacked"], check=True)
    (source,) = (tmp_path / "unpacked").iterdir()
    wheel = build("wheel", source, tmp_path / "wheel")
    shutil.unpack_archive(wheel, tmp_path / "installed", format="zip")
    subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        check=True,
    )


def test_the_bytes_depend_on_the_files_alone(tmp_path: Path) -> None:
    made: list[bytes] = []
    for place in ("here", "there"):
        source = copied(tmp_path / place)
        for path in source.rglob("*"):
            os.utime(path, (len(made), len(made)))
        (tmp_path / place / "made").mkdir()
        made.append(build("sdist", source, tmp_path / place / "made").read_bytes())
    assert made[0] == made[1]


def test_the_wheel_holds_the_package_and_no_c_source(tmp_path: Path) -> None:
    source = copied(tmp_path)
    (tmp_path / "made").mkdir()
    with zipfile.ZipFile(build("wheel", source, tmp_path / "made")) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(source)) for path in source.glob("pykcm/**/*.py*")}
    extensions = {"pykcm/_native.abi3.so", "pykcm/_fastpath.abi3.so"}
    assert held == package | extensions | {"pykcm/py.typed"}


def test_a_free_threaded_python_is_given_no_limited_api(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FREE_THREADED], cwd=copied(tmp_path), check=True)


def index_is_reached(download: list[str], directory: Path) -> bool:
    command = [*download, "--no-deps", "--no-cache-dir", "--dest", str(directory), "cffi"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.timeout(300)
def test_pip_install(tmp_path: Path) -> None:
    source = copied(tmp_path)
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet"]
    # The build's requirements come from a package index: its isolation is what is tested.
    installed = subprocess.run([*pip, "install", source], check=False)
    if installed.returncode and not index_is_reached([*pip, "download"], tmp_path):
        pytest.skip("no package index is reached, which `pip install` needs")
    assert installed.returncode == 0
    subprocess.run([python, "-c", LOOK, str(environment)], cwd=tmp_path, check=True)
    # The extras' packages are not there, and importing does not need them.
    missing = subprocess.run([python, "-c", "import click"], capture_output=True, check=False)
    assert missing.returncode != 0
