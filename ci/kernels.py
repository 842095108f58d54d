"""Debian's stock kernels, fetched by apt (ci/apt.py) into the project's cache and unpacked there.

A series is named after its version, as 6.12; one with PREEMPT_RT has "-rt" behind it, and one for
another architecture than this machine's has that, as 6.12-arm64. Which there are is found in the
archive, and of each the newest is taken. "stock" is the newest series of the Debian release that
this machine runs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ci import apt, output
from ci.apt import Apt, make_once, release, run, up_to_date

ROOT = apt.ROOT
CACHE = apt.CACHE
# A kernel could not be had; the text says why and what to do.
KernelUnavailableError = apt.UnavailableError

DEFAULT_SERIES = "6.1"
# What `make matrix` tests; ARGS=--all tests all that there are.
MATRIX = ("5.10", "6.1", "6.12", "7.2")
STOCK = "stock"

# A User-Mode Linux kernel: a process of the host. It is the one that shows the older behaviour;
# Debian's 5.10 for machines has no KCM.
UML = "5.10"
UML_PACKAGE = "user-mode-linux"
UML_SUITES = ("bullseye",)
SUITES = ("bookworm", "bookworm-security", "bookworm-backports", "trixie-backports", "sid")

# Architectures that ci/foreign.py can emulate, by Debian's names.
FOREIGN = ("arm64", "armhf", "s390x")
NAME = re.compile(rf"(\d+\.\d+(?:-rt)?)(?:-({'|'.join(FOREIGN)}))?")
# The cloud images have no 9p, so a guest could not have the host's files as its root.
IMAGE = r"linux-image-(\d+\.\d+)\.[^-]+(?:-\d+)?(-rt)?-{flavour}"
FLAVOURS = {"armhf": "armmp"}  # where it is not called as the architecture is


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted.

    name: what it is asked for by. release: what its `uname -r` says. image: the file that is
    booted. modules: the directory that holds its modules' directory, None if it has none.
    uml: it is a program, User-Mode Linux. arch: by Debian's name, if not this machine's.
    lacks: options of its configuration that are missing.
    """

    name: str
    release: str
    image: Path
    modules: Path | None
    uml: bool = False
    arch: str = ""
    lacks: tuple[str, ...] = ()


def say(text: str) -> None:
    print(f"kernel: {text}", file=sys.stderr, flush=True)


def older(left: str, right: str) -> int:
    """Compare two versions by Debian's rules."""
    compared = subprocess.run(["dpkg", "--compare-versions", left, "lt", right], check=False)
    return -1 if compared.returncode == 0 else int(left != right)


def parts(image: str, depends: list[str]) -> list[str]:
    """The packages over which a kernel is spread: they carry its release in their names."""
    release = image.removeprefix("linux-image")
    return [name for name in depends if name.endswith(release)]


def indispensable(package: str) -> bool:
    """Whether a kernel can't be booted without a package of it, as it can without linux-base."""
    return package.startswith(("linux-binary-", "linux-modules-"))


class Archive:
    """What kernels the Debian archive has for an architecture; asked when first wanted, once."""

    def __init__(self, arch: str = "", suites: tuple[str, ...] = SUITES) -> None:
        """
        arch: by Debian's name; this machine's by default. suites: where to look.
        """
        self._foreign = arch
        self._suites = suites
        self._found: dict[str, str] = {}
        self._absent: dict[str, str] = {}
        self._apts: dict[tuple[str, ...], Apt] = {}

    @property
    def arch(self) -> str:
        return self._foreign or run("dpkg", "--print-architecture").strip()

    def apt(self, suites: tuple[str, ...]) -> Apt:
        """apt for some suites, its lists up to date."""
        if suites not in self._apts:
            say(f"asking the Debian archive what there is in {', '.join(suites)}")
            self._apts[suites] = up_to_date(suites, self.arch, say)
        return self._apts[suites]

    def series(self) -> dict[str, str]:
        """Every series, oldest first, and the package that is the newest of it.

        Raises:
            KernelUnavailableError: the archive does not answer.
        """
        if not self._found:
            apt = self.apt(self._suites)
            flavour = FLAVOURS.get(self.arch, self.arch)
            pattern = re.compile(IMAGE.format(flavour=flavour))
            names = apt.names("linux-")
            images = [name for name in names if pattern.fullmatch(name)]
            newest: dict[str, tuple[str, str]] = {}
            for package, (version, depends) in apt.show(images).items():
                found = pattern.fullmatch(package)
                assert found
                name = found[1] + (found[2] or "")
                # The archive may still have a kernel but no longer its modules.
                absent = {*filter(indispensable, parts(package, depends))} - {*names}
                if absent:
                    self._absent[name] = min(absent)
                elif name not in newest or older(newest[name][0], version) < 0:
                    newest[name] = version, package
            found_uml = {UML: UML_PACKAGE} if self.arch == "amd64" else {}
            self._found = found_uml | {name: newest[name][1] for name in sorted(newest, key=order)}
        return self._found

    def packages(self, series: str) -> tuple[Apt, dict[str, str]]:
        """The packages, with versions, that together hold the newest kernel of a series."""
        if series == UML and not self._foreign:
            apt = self.apt(UML_SUITES)
            return apt, {
                name: version for name, (version, _) in apt.show(["user-mode-linux"]).items()
            }
        found = self.series()
        if series not in found:
            why = f" (no {self._absent[series]})" if series in self._absent else ""
            raise KernelUnavailableError(
                f"the Debian archive has {', '.join(found)}, not {series}{why}"
            )
        apt = self.apt(self._suites)
        image = found[series]
        (_, depends) = apt.show([image])[image]
        there = {*apt.names("linux-")}
        shown = apt.show([image, *(name for name in parts(image, depends) if name in there)])
        return apt, {name: version for name, (version, _) in shown.items()}


ARCHIVES = {arch: Archive(arch) for arch in ("", *FOREIGN)}


def split(name: str) -> tuple[str, str]:
    """A kernel's name as a series and an architecture; no architecture is this machine's."""
    found = NAME.fullmatch(name)
    assert found
    return found[1], found[2] or ""


def is_series(name: str) -> bool:
    """Whether a kernel is asked for by a name, and not by a path."""
    return name == STOCK or bool(NAME.fullmatch(name))


def order(name: str) -> tuple[list[int], str]:
    """A key to sort series by: 6.9 before 6.12, and that before 6.12-rt."""
    version, _, flavour = name.partition("-")
    return [int(number) for number in version.split(".")], flavour


def unpack(name: str, directory: Path, archive: Archive) -> None:
    apt, packages = archive.packages(split(name)[0])
    say("fetching " + " ".join(f"{name} ({version})" for name, version in packages.items()))
    debs = directory / "debs"
    debs.mkdir()
    for deb in apt.download(packages, debs):
        run("dpkg-deb", "--extract", deb, directory)
    shutil.rmtree(debs)
    # The modules lie in different places; bring them to the one where depmod looks.
    if not (directory / "lib").exists():
        (directory / "lib").symlink_to("usr/lib")
    if name == UML:
        (directory / "lib" / "modules").symlink_to("uml/modules")


def locate(name: str, directory: Path) -> Kernel:
    modules = directory / "lib" / "modules"
    (release,) = (path.name for path in modules.iterdir())
    images = [
        directory / "boot" / f"vmlinuz-{release}",
        modules / release / "vmlinuz",
        directory / "usr" / "bin" / "linux.uml",
    ]
    image = next(image for image in images if image.exists())
    return Kernel(name, release, image, modules, uml=name == UML, arch=split(name)[1])


def cached() -> list[str]:
    """The series that can be had without the archive."""
    found = (path.name for path in (CACHE / "kernels").glob("*") if path.is_dir())
    return sorted(filter(NAME.fullmatch, found), key=order)


def stock(update: bool = False) -> Kernel:
    """The newest kernel of the Debian release that this machine runs; as of `fetch`.

    Only that release's lists are fetched. Elsewhere it is the default series.
    """
    suite = release()
    if not suite:
        return fetch(DEFAULT_SERIES, update)
    memory = CACHE / "kernels" / f"{STOCK}-{suite}"
    archive = Archive(suites=(suite, f"{suite}-security"))
    if update or not memory.exists():
        (*_, series) = (name for name in archive.series() if not name.endswith("-rt"))
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(series, encoding="ascii")
    return fetch(memory.read_text(encoding="ascii"), update, archive)


def fetch(name: str, update: bool = False, archive: Archive | None = None) -> Kernel:
    """The newest kernel of a series, from the cache or else from the archive.

    update: ask the archive even when the cache has one. archive: by default that for the name.
    Raises KernelUnavailableError, with the reason.
    """
    if name == STOCK:
        return stock(update)
    home = CACHE / "kernels" / name
    if not update and home.exists():
        return locate(name, home)

    def make(directory: Path) -> None:
        unpack(name, directory, archive or ARCHIVES[split(name)[1]])
        run("depmod", "--basedir", directory, locate(name, directory).release)

    try:
        made = make_once(home, make, again=update)
    except KernelUnavailableError as error:
        there = f"; in the cache there are {', '.join(cached())}" if cached() else ""
        raise KernelUnavailableError(f"{error}{there}") from None
    kernel = locate(name, home)
    if made:
        say(f"{name}: {kernel.release} is ready")
    return kernel


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ci/kernel", description="Fetch Debian's stock kernels into the project's cache."
    )
    parser.add_argument(
        "series",
        nargs="*",
        default=[DEFAULT_SERIES],
        help="such as 6.12, 7.3-rt, 6.12-arm64 or stock",
    )
    parser.add_argument("--update", action="store_true", help="look for a newer one")
    parser.add_argument("--list", action="store_true", help="which series the archive has")
    arguments = parser.parse_args()
    try:
        if arguments.list:
            for name, package in ARCHIVES[""].series().items():
                output.say(f"{name} {package}")
            return 0
        for series in arguments.series:
            if not is_series(series):
                parser.error(f"{series} is not the name of a series, such as 6.12 or 7.3-rt")
            kernel = fetch(series, arguments.update)
            output.say(f"{series} {kernel.release} {kernel.image.relative_to(ROOT)}")
    except KernelUnavailableError as reason:
        say(str(reason))
        return 1
    return 0


if __name__ == "__main__":
    output.run(main)
