"""ci/pythons: which Python is taken for which, and that one which was named is not left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci import interpreters, jobs, pythons
from ci.apt import UnavailableError
from ci.interpreters import Interpreter
from ci.jobs import Job


def pretend(path: Path, says: str) -> str:
    """A program that answers as the Python of that version does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {says}\n", encoding="ascii")
    path.chmod(0o755)
    return str(path)


def test_a_python_is_what_it_says_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands, pyenv = tmp_path / "bin", tmp_path / "pyenv"
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(pyenv))
    first = pretend(commands / "python3.98", "3.98")
    pretend(commands / "python3.99", "pyenv: which one?")
    assert interpreters.find("3.98") == Interpreter("3.98", first)
    assert interpreters.find("3.99") is None
    assert interpreters.find("3.99t") is None
    plain = pretend(pyenv / "versions" / "3.99.1" / "bin" / "python", "3.99")
    free = pretend(pyenv / "versions" / "3.99.1t" / "bin" / "python", "3.99t")
    other = pretend(pyenv / "versions" / "pypy3.99-8.0.1" / "bin" / "python", "pypy3.99")
    assert interpreters.find("3.99") == Interpreter("3.99", plain)
    assert interpreters.find("3.99t") == Interpreter("3.99t", free)
    assert interpreters.find("pypy3.99") == Interpreter("pypy3.99", other)


@pytest.mark.parametrize(
    ("version", "stable"), [("3.10", True), ("3.15", True), ("3.14t", False), ("pypy3.11", False)]
)
def test_which_share_the_wheel(version: str, stable: bool) -> None:
    assert Interpreter(version, "python").stable_abi is stable


def test_there_is_no_free_threaded_one_to_fetch() -> None:
    with pytest.raises(UnavailableError, match="Debian has no free-threaded one"):
        interpreters.fetch("3.14t")


def test_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(command: str, directory: Path) -> None:
        raise UnavailableError(f"E: Unable to locate package {command}-dev")

    monkeypatch.setattr(interpreters, "CACHE", tmp_path)
    monkeypatch.setattr(interpreters, "unpack", unpack)
    with pytest.raises(UnavailableError, match=r"nor to be had: .* package python3\.15-dev"):
        interpreters.fetch("3.15")
    assert [path.name for path in (tmp_path / "pythons").iterdir()] == ["debian-3.15.lock"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["3.14t"], 1, "Python 3.14t: not on this machine, and Debian has no"),
        ([], 0, "Python 3.14t: not on this machine; name it"),
        (["3.9"], 2, ""),
    ],
)
def test_one_that_is_not_here(
    arguments: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(todo: list[Job], at_once: int) -> list[int]:
        assert not todo
        return []

    monkeypatch.setattr(pythons, "REPORTS", tmp_path)
    monkeypatch.setattr(pythons, "PYTHONS", tmp_path)
    monkeypatch.setattr(pythons, "find", lambda version: None)
    monkeypatch.setattr(jobs, "run", run)
    monkeypatch.setattr("sys.argv", ["ci/pythons", *arguments])
    assert pythons.main() == status
    assert said in capsys.readouterr().out
