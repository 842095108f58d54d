"""`kcm selftest --export`: one file that needs nothing but Python."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

import pykcm
from pykcm import _explain, _kernel
from pykcm._binding import lib
from pykcm.selftest import command
from pykcm.selftest.check import every
from pykcm.selftest.checks import GROUPS
from pykcm.selftest.portable import binding, helpers, kernel


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "kcm.pyz"
    assert command.main(["--export", str(path)]) == 0
    return path


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without the directory's modules, the user's and those that were installed."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(path), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def test_it_has_every_check(exported: Path) -> None:
    result = run(exported, "--list")
    assert result.stderr == ""
    assert result.stdout.split() == list(every(GROUPS))


def test_it_is_small_and_executable(exported: Path) -> None:
    assert exported.stat().st_size < 200_000
    assert os.access(exported, os.X_OK)
    assert exported.read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_the_same_modules_make_the_same_file(exported: Path, tmp_path: Path) -> None:
    command.main(["--export", str(tmp_path / "again.pyz")])
    assert (tmp_path / "again.pyz").read_bytes() == exported.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.pyz"]


@pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="this Python does not list its own modules whole"
)
def test_it_loads_nothing_but_the_standard_library(exported: Path) -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--list']\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(exported)],
        capture_output=True,
        text=True,
        check=True,
    ).stderr.split()
    # The last is the standard library's, but in no list of it (Python 3.15).
    own = {"pykcm", "__main__", "__mp_main__", "_missing_stdlib_info"}
    assert set(loaded) - own - set(sys.stdlib_module_names) == set()


def test_its_report(exported: Path) -> None:
    result = run(exported, "--filter", "options.*")
    assert result.returncode in (0, 4), result.stdout + result.stderr
    assert result.stderr == ""
    assert f"# pykcm: {pykcm.__version__}" in result.stdout
    assert f"# command: python3 {exported} --filter 'options.*'\n" in result.stdout


def test_all_modules_of_it_can_be_imported(exported: Path) -> None:
    with zipfile.ZipFile(exported) as archive:
        names = [
            name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            for name in archive.namelist()
            if not name.startswith("__main__")
        ]
    script = (
        "import importlib, sys\n"
        "sys.path[:0] = [sys.argv[1]]\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
    )
    arguments = [sys.executable, "-I", "-S", "-c", script, str(exported), *names]
    subprocess.run(arguments, check=True, cwd="/")


@pytest.mark.parametrize("path", ["/nowhere/kcm.pyz", "/"])
def test_a_place_that_can_not_be_written(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--export", path]) == 1
    assert f"kcm selftest: {path} can't be written: " in capsys.readouterr().err


def test_what_is_no_file_is_written_to_and_stays(exported: Path, tmp_path: Path) -> None:
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_bytes(b"what was there")
    link.symlink_to(file)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    for path in (pipe, link):
        assert command.main(["--export", str(path)]) == 0
    assert pipe.is_fifo()
    assert link.is_symlink()
    reader.join(20)
    assert [*read, file.read_bytes()] == [exported.read_bytes()] * 2


def test_an_empty_name_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--list", "--export", ""])
    assert "--export: the name of a file is empty" in capsys.readouterr().err


def test_an_exported_file_does_not_export(exported: Path, tmp_path: Path) -> None:
    result = run(exported, "--export", str(tmp_path / "x.pyz"))
    assert result.returncode == 1
    assert "copy it" in result.stderr


class TestPortable:
    """What stands for the compiled part is the same to its users."""

    def test_constants(self) -> None:
        for name, value in vars(binding.lib).items():
            if not name.startswith("__"):
                assert getattr(lib, name) == value, name

    @pytest.mark.parametrize(
        "name",
        [
            name
            for name, value in vars(kernel).items()
            if inspect.isfunction(value) and name[0] != "_"
        ],
    )
    def test_signatures(self, name: str) -> None:
        """Arguments that the selftest does not give are left away."""
        own = list(inspect.signature(getattr(kernel, name)).parameters.values())
        compiled = list(inspect.signature(getattr(_kernel, name)).parameters.values())
        assert own == compiled[: len(own)]
        assert all(more.default is not more.empty for more in compiled[len(own) :])

    def test_helpers(self) -> None:
        from pykcm.bpf._helpers import by_name

        assert helpers.by_name().items() <= by_name().items()

    @pytest.mark.skipif(not _explain.may_load(), reason="this process may load no BPF program")
    def test_program(self, exported: Path) -> None:
        script = """
import sys
sys.path[:0] = [sys.argv[1]]
from pykcm import bpf, errors
with bpf.Program.load("r0 = *(u32 *)(r1 + 48)\\nexit", name="unit") as program:
    print(program.info.name, program.info.id > 0, program.translated().hex())
try:
    bpf.Program.load("r0 = r5\\nexit")
except errors.VerifierError as error:
    print(error.log.count("R5 !read_ok"))
"""
        said = subprocess.run(
            [sys.executable, "-I", "-S", "-c", script, str(exported)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        with pykcm.bpf.Program.load("r0 = *(u32 *)(r1 + 48)\nexit") as program:
            assert said == ["unit", "True", program.translated().hex(), "1"]
