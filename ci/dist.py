"""A release in dist/: the source distribution, and the wheel for this machine, built from that.

    python -m ci.dist

Both are built twice, each time elsewhere, and must be the same to the byte; the source distribution
must hold what the repository holds; then twine, abi3audit and check-wheel-contents look at them.
SOURCE_DATE_EPOCH is the time of the last commit unless it is set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from ci import output, release
from ci.kernels import ROOT
from ci.output import say

DIST = ROOT / "dist"


class DistError(Exception):
    """A release that is not as it should be; the text says what is wrong."""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """A command's output.

    Raises:
        DistError: it failed; with what it printed.
    """
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        raise DistError(f"{' '.join(map(str, command))}:\n{result.stdout.strip()}")
    return result.stdout.strip()


def python(*arguments: str | Path, cwd: Path = ROOT) -> str:
    return run(sys.executable, *arguments, cwd=cwd)


def tracked() -> list[str]:
    """The files of the repository, of which none may differ from the last commit."""
    if changed := run("git", "status", "--porcelain"):
        raise DistError(f"commit or remove this first:\n{changed}")
    return run("git", "ls-files").splitlines()


def copied(names: Iterable[str], directory: Path) -> Path:
    """The repository's files alone: nothing else that lies here may get into a release."""
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, directory / name)
    return directory


def built(names: Iterable[str], directory: Path) -> list[Path]:
    """Build in a directory; the source distribution, and the wheel with its platform's tag."""
    source, raw, made = (directory / name for name in ("source", "raw", "made"))
    # Not isolated: what the build requires is in .venv, and a second run needs no network.
    copied(names, source)
    python("-m", "build", "--no-isolation", "--outdir", raw, source)
    (wheel,) = raw.glob("*.whl")
    python("-m", "auditwheel", "repair", "--strip", "--wheel-dir", made, wheel)
    (sdist,) = raw.glob("*.tar.gz")
    shutil.copy(sdist, made)
    return sorted(made.iterdir())


def digests(files: Iterable[Path]) -> dict[str, str]:
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in files}


def check_equal(first: dict[str, str], second: dict[str, str]) -> None:
    """Two builds gave the same.

    Raises:
        DistError: not so; with the names of what differs.
    """
    if differ := sorted({name for name, _ in first.items() ^ second.items()}):
        raise DistError(f"building twice gave different bytes: {', '.join(differ)}")


def check_contents(sdist: Path, names: Iterable[str]) -> None:
    """The source distribution holds the repository's files, and beside them what setuptools adds.

    Raises:
        DistError: not so; with the names.
    """
    with tarfile.open(sdist) as archive:
        files = [member.name for member in archive.getmembers() if not member.isdir()]
    held = {name.partition("/")[2] for name in files}
    added = {name for name in held if name.startswith("pykcm.egg-info/")}
    added |= {"PKG-INFO", "setup.cfg"}
    wrong = [f"lacks {name}" for name in sorted(set(names) - held)]
    wrong += [f"has {name} too" for name in sorted(held - added - set(names))]
    if wrong:
        raise DistError(f"{sdist.name} " + ", ".join(wrong))


def main() -> int:
    try:
        names = tracked()
        os.environ.setdefault("SOURCE_DATE_EPOCH", run("git", "log", "-1", "--format=%ct"))
        with TemporaryDirectory() as one, TemporaryDirectory() as other:
            files = built(names, Path(one))
            check_equal(digests(files), digests(built(names, Path(other))))
            shutil.rmtree(DIST, ignore_errors=True)
            DIST.mkdir()
            files = [Path(shutil.copy(file, DIST)) for file in files]
        wheel, sdist = sorted(files, key=lambda file: file.suffix != ".whl")
        check_contents(sdist, names)
        python("-m", "twine", "check", "--strict", *files)
        python("-m", "abi3audit", "--strict", wheel)
        python("-m", "check_wheel_contents", wheel)
    except DistError as error:
        print(f"dist: {error}", file=sys.stderr)
        return 1
    for file in files:
        say(f"{sha256(file.read_bytes()).hexdigest()}  dist/{file.name}")
    for fault in release.faults(f"v{sdist.name.removesuffix('.tar.gz').partition('-')[2]}"):
        say(f"dist: before this is published: {fault}")
    return 0


if __name__ == "__main__":
    output.run(main)
