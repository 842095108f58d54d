"""Debian's stock kernels, fetched by apt into the project's own cache and unpacked there.

apt checks the archive's signatures and the packages' hashes with the installed
debian-archive-keyring. It works in a private configuration: the machine's sources, lists and
installed packages stay as they are, and no root is needed. The archive's address is the one that
the machine itself uses, or that of the variable PYKCM_DEBIAN_MIRROR.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from ci import output

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEFAULT_SERIES = "6.1"


@dataclass(frozen=True)
class Series:
    """Where a kernel series comes from.

    suites: Debian suites searched together; the newest version of all wins.
    package: regular expression of the package that holds or depends on the kernel.
    uml: a User-Mode Linux kernel, run as a process, instead of one that QEMU boots.
    """

    suites: tuple[str, ...]
    package: str
    uml: bool = False


# The cloud images have no 9p, so a guest could not have the host's files as its root.
SERIES = {
    "5.10": Series(("bullseye",), r"user-mode-linux", uml=True),
    "6.1": Series(("bookworm", "bookworm-security"), r"linux-image-6\.1\.[^-]+-\d+-{arch}"),
    "6.12": Series(("bookworm", "bookworm-security"), r"linux-image-6\.12\.[^-]+\+deb12-{arch}"),
    "7.2": Series(("sid",), r"linux-image-7\.2\.[^-]+\+deb\d+-{arch}"),
}


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache: its image, the root of its lib/modules, and what `uname -r` says."""

    image: Path
    modules: Path
    release: str


class KernelUnavailableError(Exception):
    """A kernel could not be had; the text says why and what to do."""


def say(text: str) -> None:
    print(f"kernel: {text}", file=sys.stderr, flush=True)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; two runs may want the same kernel at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(*command: str | Path, cwd: Path | None = None) -> str:
    result = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C", "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    )
    if result.returncode:
        raise KernelUnavailableError(
            f"`{Path(command[0]).name} {command[-1]}` failed with status {result.returncode}:\n"
            + (result.stderr or result.stdout).strip()
        )
    return result.stdout


def machine_archives() -> tuple[str, str]:
    """The addresses of Debian's main and security archives, from this machine's apt sources."""
    mirror = os.environ.get("PYKCM_DEBIAN_MIRROR")
    if not mirror:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
        if not re.search(r"^ID=debian$", release, re.MULTILINE):
            raise KernelUnavailableError(
                "this machine's apt sources are not Debian's; "
                "set PYKCM_DEBIAN_MIRROR to the address of a Debian archive"
            )
    security = None
    # This fetches nothing. It tells the addresses whichever of its formats the sources are in.
    listing = run("apt-get", "--print-uris", "update")
    for address, suite in re.findall(r"^'(.+?)/dists/(.+)/InRelease'", listing, re.MULTILINE):
        if address.startswith("cdrom:"):
            continue
        if suite.endswith(("-security", "/updates")):
            security = security or address
        elif "-" not in suite:
            mirror = mirror or address
    if not mirror:
        raise KernelUnavailableError(
            "this machine's apt sources name no Debian suite; "
            "set PYKCM_DEBIAN_MIRROR to the address of a Debian archive"
        )
    return mirror, security or mirror.rstrip("/") + "-security"


class Apt:
    """apt with sources, lists and cache of its own."""

    def __init__(self, suites: tuple[str, ...]) -> None:
        if not KEYRING.exists():
            raise KernelUnavailableError(f"no {KEYRING.name}: install debian-archive-keyring")
        home = CACHE / "apt" / "_".join(suites)
        (home / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (home / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        main, security = machine_archives()
        sources = home / "sources.list"
        sources.write_text(
            "".join(
                f"deb [signed-by={KEYRING}] "
                f"{security if suite.endswith('-security') else main} {suite} main\n"
                for suite in suites
            ),
            encoding="utf-8",
        )
        settings = {
            "Dir::State": home,
            "Dir::State::Lists": home / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": home,
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Acquire::Languages": "none",
            # apt's own unprivileged user may not enter the project's directory.
            "APT::Sandbox::User": "",
            # apt-get update forgives a source that it cannot reach, unless told otherwise.
            "APT::Update::Error-Mode": "any",
        }
        self.options = [f"-o{name}={value}" for name, value in settings.items()]

    def update(self) -> None:
        run("apt-get", *self.options, "--quiet=2", "update")

    def matching(self, pattern: str) -> list[str]:
        prefix = pattern.partition("\\")[0]
        names = run("apt-cache", *self.options, "pkgnames", prefix)
        return [name for name in names.split() if re.fullmatch(pattern, name)]

    def newest(self, name: str) -> tuple[str, str]:
        """A package's newest version and its dependencies' names, separated by blanks."""
        shown = run("apt-cache", *self.options, "--no-all-versions", "show", name)
        fields = dict(re.findall(r"^(Version|Depends): (.*)$", shown, re.MULTILINE))
        names = re.findall(r"(?:^|[,|] )([a-z0-9.+-]+)", fields.get("Depends", ""))
        return fields["Version"], " ".join(names)

    def download(self, packages: dict[str, str], directory: Path) -> list[Path]:
        wanted = [f"{name}={version}" for name, version in packages.items()]
        run("apt-get", *self.options, "--quiet=2", "download", *wanted, cwd=directory)
        return sorted(directory.glob("*.deb"))


def older(left: tuple[str, str], right: tuple[str, str]) -> int:
    """Compare two (version, package) pairs by Debian's rules."""
    compared = subprocess.run(["dpkg", "--compare-versions", left[0], "lt", right[0]], check=False)
    return -1 if compared.returncode == 0 else int(left[0] != right[0])


def choose(apt: Apt, series: str) -> dict[str, str]:
    """The packages, with versions, that together hold the newest kernel of a series."""
    arch = run("dpkg", "--print-architecture").strip()
    pattern = SERIES[series].package.replace("{arch}", arch)
    names = apt.matching(pattern)
    if not names:
        suites = " and ".join(SERIES[series].suites)
        raise KernelUnavailableError(
            f"{suites} of the Debian archive have no package {pattern} (any more)"
        )
    _, newest = max(((apt.newest(name)[0], name) for name in names), key=cmp_to_key(older))
    release = newest.removeprefix("linux-image-")
    packages: dict[str, str] = {}
    pending = [newest]
    # A kernel may be spread over packages that all carry its release in their names.
    while pending:
        name = pending.pop()
        packages[name], depends = apt.newest(name)
        pending += [
            other
            for other in depends.split()
            if other.endswith("-" + release) and other not in packages
        ]
    return packages


def unpack(series: str, directory: Path) -> None:
    apt = Apt(SERIES[series].suites)
    say(f"{series}: asking the Debian archive for the newest version")
    apt.update()
    packages = choose(apt, series)
    say("fetching " + " ".join(f"{name} ({version})" for name, version in packages.items()))
    debs = directory / "debs"
    debs.mkdir()
    for deb in apt.download(packages, debs):
        run("dpkg-deb", "--extract", deb, directory)
    shutil.rmtree(debs)
    # The modules lie in different places; bring them to the one where depmod looks.
    if not (directory / "lib").exists():
        (directory / "lib").symlink_to("usr/lib")
    if SERIES[series].uml:
        (directory / "lib" / "modules").symlink_to("uml/modules")


def locate(directory: Path) -> Kernel:
    modules = directory / "lib" / "modules"
    (release,) = (path.name for path in modules.iterdir())
    images = [
        directory / "boot" / f"vmlinuz-{release}",
        modules / release / "vmlinuz",
        directory / "usr" / "bin" / "linux.uml",
    ]
    return Kernel(next(image for image in images if image.exists()), modules, release)


def fetch(series: str, update: bool = False) -> Kernel:
    """The newest kernel of a series, from the cache or else from the archive.

    update: ask the archive even when the cache has one.
    Raises KernelUnavailableError, with the reason.
    """
    if series not in SERIES:
        raise KernelUnavailableError(f"no kernel series {series!r}; there are {', '.join(SERIES)}")
    home = CACHE / "kernels" / series
    if not update and home.exists():
        return locate(home)
    with lock(CACHE / "kernels" / f"{series}.lock"):
        if update or not home.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f"{series}.", dir=home.parent))
            try:
                unpack(series, scratch)
                kernel = locate(scratch)
                run("depmod", "--basedir", scratch, kernel.release)
                scratch.chmod(0o755)
                shutil.rmtree(home, ignore_errors=True)
                scratch.rename(home)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            say(f"{series}: {kernel.release} is ready")
    return locate(home)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ci/kernel", description="Fetch Debian's stock kernels into the project's cache."
    )
    parser.add_argument("series", nargs="*", default=[DEFAULT_SERIES], help=", ".join(SERIES))
    parser.add_argument("--update", action="store_true", help="look for a newer one")
    arguments = parser.parse_args()
    for series in arguments.series:
        try:
            kernel = fetch(series, arguments.update)
        except KernelUnavailableError as reason:
            say(f"{series}: {reason}")
            return 1
        print(f"{series} {kernel.release} {kernel.image.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    output.run(main)
