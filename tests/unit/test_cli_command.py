"""What all subcommands of `kcm` share: options, errors in a line, exit statuses, signals, pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest

import pykcm
from pykcm import cli

ROOT = Path(__file__).parents[2]
KCM = [sys.executable, "-m", "pykcm"]


def kcm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KCM, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def in_process(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | int]:
    """A subcommand `raise` that raises, or returns, the first of the list."""
    what: list[BaseException | int] = []

    @click.command()
    def command() -> int:
        if isinstance(what[0], BaseException):
            raise what[0]
        return what[0]

    module = types.ModuleType("pykcm.cli.raise")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pykcm.cli.raise", module)
    monkeypatch.setitem(cli.COMMANDS, "raise", "Raise.")
    return what


def test_version_and_help() -> None:
    assert kcm("--version").stdout == f"kcm {pykcm.__version__}\n"
    helped = kcm("--help")
    assert helped.returncode == 0
    assert all(name in helped.stdout for name in cli.COMMANDS)
    assert max(map(len, helped.stdout.splitlines())) <= 80
    assert kcm().stdout == helped.stdout


def test_help_imports_neither_rich_nor_the_library() -> None:
    script = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "try:\n    from pykcm.cli import main; main()\n"
        "finally:\n    print(*sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = shown.stdout.splitlines()[-1].split()
    assert "click" in modules
    own = {name for name in modules if name.startswith("pykcm")}
    assert own <= {"pykcm", "pykcm.cli", *(f"pykcm.cli._{n}" for n in ("ending", "group"))} | {
        "pykcm.cli._nearest"
    }
    assert not {"rich", "asyncio", "socket", "cffi", "difflib"} & set(modules)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sefltest"], "kcm: there is no command 'sefltest'; did you mean 'selftest'?"),
        (["quux"], "kcm: there is no command 'quux' (kcm --help)"),
        (["--versoin"], "kcm: there is no option --versoin; did you mean '--version'?"),
        (["demo", "--sede=1"], "kcm demo: there is no option --sede; did you mean '--seed'?"),
        (["demo", "--seed", "x"], "kcm demo: Invalid value for '--seed': 'x' is not a valid int"),
        (["--debug"], "kcm: Missing command"),
    ],
)
def test_a_mistake_in_the_command_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(said)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (pykcm.KCMError("no luck"), 1, "kcm raise: no luck\n"),
        (FileNotFoundError(2, "No such file", "/a"), 1, "kcm raise: /a: No such file\n"),
        (OSError(28, "No space left"), 1, "kcm raise: the output can't be written: No space left"),
        (ZeroDivisionError("x\ny"), 1, "kcm raise: this is a mistake in pykcm: ZeroDivisionError"),
        (ModuleNotFoundError(name="rich"), 1, "kcm raise: rich is missing; install"),
        (SystemExit("kcm raise: why"), 1, "kcm raise: why\n"),
        (SystemExit(7), 7, ""),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (3, 3, ""),
    ],
)
def test_what_a_command_ends_with(
    error: BaseException | int,
    status: int,
    said: str,
    raising: list[BaseException | int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising.append(error)
    assert in_process("raise") == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1 if said else 0)
    assert err.startswith(said)


@pytest.mark.parametrize("arguments", [["--debug", "raise"], ["raise", "--debug"]])
def test_debug_shows_where(
    arguments: list[str],
    raising: list[BaseException | int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising.append(ZeroDivisionError("over"))
    assert in_process(*arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "raise what[0]" in err
    assert err.endswith("kcm raise: this is a mistake in pykcm: ZeroDivisionError: over\n")


def test_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*KCM, "--help"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (result.returncode, result.stderr) == (
        1,
        "kcm: the output can't be written: No space left on device\n",
    )


@pytest.mark.parametrize("arguments", [["--help"], ["selftest", "--list"]])
def test_a_reader_that_has_gone(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        result = subprocess.run(
            [*KCM, *arguments], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, check=False
        )
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_console_leaves_a_reader_that_has_gone_to_the_frame() -> None:
    """Rich would end the process itself, with another exit status."""
    script = (
        "import sys; from pykcm.cli._output import console\n"
        "try:\n    console().print('x' * 100_000)\n"
        "except BrokenPipeError:\n    sys.exit(77)"
    )
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=pipe, check=False)
    assert result.returncode == 77


@pytest.mark.parametrize("arguments", [["--help"], ["frame", "--help"], ["frame", "--list"]])
def test_a_narrow_terminal(arguments: list[str]) -> None:
    result = subprocess.run(
        [*KCM, *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "20"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
