"""Debian's stock kernels, fetched by apt into the project's own cache and unpacked there.

apt checks the archive's signatures and the packages' hashes with the installed
debian-archive-keyring. It works in a private configuration: the machine's sources, lists and
installed packages stay as they are, and no root is needed. The archive's address is the one that
the machine itself uses, or that of the variable PYKCM_DEBIAN_MIRROR.

A series is named after its version, as 6.12; one with PREEMPT_RT has "-rt" behind it, and one for
another architecture than this machine's has that, as 6.12-arm64. Which there are is found in the
archive, and of each the newest is taken.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ci import output

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

DEFAULT_SERIES = "6.1"
# What `make matrix` tests; ARGS=--all tests all that there are.
MATRIX = ("5.10", "6.1", "6.12", "7.2")

# A User-Mode Linux kernel: a process of the host. It is the one that shows the older behaviour;
# Debian's 5.10 for machines has no KCM.
UML = "5.10"
UML_PACKAGE = "user-mode-linux"
UML_SUITES = ("bullseye",)
SUITES = ("bookworm", "bookworm-security", "bookworm-backports", "trixie-backports", "sid")

# Architectures that ci/foreign.py can emulate, by Debian's names.
FOREIGN = ("arm64", "s390x")
NAME = re.compile(rf"(\d+\.\d+(?:-rt)?)(?:-({'|'.join(FOREIGN)}))?")
# The cloud images have no 9p, so a guest could not have the host's files as its root.
IMAGE = r"linux-image-(\d+\.\d+)\.[^-]+(?:-\d+)?(-rt)?-{arch}"


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
        said = (result.stderr or result.stdout).strip().splitlines()
        # apt's errors begin with E; a line is enough, and the others lead to it.
        why = next((line for line in said if line.startswith("E: ")), "\n".join(said))
        raise KernelUnavailableError(
            f"`{Path(command[0]).name} {command[-1]}` failed with status {result.returncode}: {why}"
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

    def __init__(self, suites: tuple[str, ...], arch: str) -> None:
        if not KEYRING.exists():
            raise KernelUnavailableError(f"no {KEYRING.name}: install debian-archive-keyring")
        home = CACHE / "apt" / "_".join((*suites, arch))
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
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "Acquire::Languages": "none",
            # A snapshot of an archive is older than it may be; its signatures are checked.
            "Acquire::Check-Valid-Until": "false",
            # apt's own unprivileged user may not enter the project's directory.
            "APT::Sandbox::User": "",
            # apt-get update forgives a source that it cannot reach, unless told otherwise.
            "APT::Update::Error-Mode": "any",
        }
        self.options = [f"-o{name}={value}" for name, value in settings.items()]
        self.archives = home / "archives"

    def update(self) -> None:
        run("apt-get", *self.options, "--quiet=2", "update")

    def names(self, prefix: str) -> list[str]:
        return run("apt-cache", *self.options, "pkgnames", prefix).split()

    def show(self, names: list[str]) -> dict[str, tuple[str, list[str]]]:
        """Each package's newest version and its dependencies' names."""
        shown = run("apt-cache", *self.options, "--no-all-versions", "show", *names)
        packages = {}
        for paragraph in shown.split("\n\n"):
            fields = dict(re.findall(r"^(Package|Version|Depends): (.*)$", paragraph, re.MULTILINE))
            if fields:
                depends = re.findall(r"(?:^|[,|] )([a-z0-9.+-]+)", fields.get("Depends", ""))
                packages[fields["Package"]] = fields["Version"], depends
        return packages

    def closure(self, names: Sequence[str]) -> list[Path]:
        """Fetch packages and all that they depend on."""
        command = ["apt-get", *self.options, "--quiet=2", "--yes", "--download-only"]
        command += ["--option=Debug::NoLocking=1", "--no-install-recommends", "install", *names]
        run(*command)
        return sorted(self.archives.glob("*.deb"))

    def download(self, packages: dict[str, str], directory: Path) -> list[Path]:
        wanted = [f"{name}={version}" for name, version in packages.items()]
        run("apt-get", *self.options, "--quiet=2", "download", *wanted, cwd=directory)
        return sorted(directory.glob("*.deb"))


def older(left: str, right: str) -> int:
    """Compare two versions by Debian's rules."""
    compared = subprocess.run(["dpkg", "--compare-versions", left, "lt", right], check=False)
    return -1 if compared.returncode == 0 else int(left != right)


def parts(image: str, depends: list[str]) -> list[str]:
    """The packages over which a kernel is spread: they carry its release in their names."""
    release = image.removeprefix("linux-image")
    return [name for name in depends if name.endswith(release)]


class Archive:
    """What kernels the Debian archive has for an architecture; asked when first wanted, once."""

    def __init__(self, arch: str = "") -> None:
        """
        arch: by Debian's name; this machine's by default.
        """
        self._foreign = arch
        self._found: dict[str, str] = {}
        self._absent: dict[str, str] = {}
        self._apts: dict[tuple[str, ...], Apt] = {}

    @property
    def arch(self) -> str:
        return self._foreign or run("dpkg", "--print-architecture").strip()

    def apt(self, suites: tuple[str, ...]) -> Apt:
        """apt for some suites, its lists up to date."""
        if suites not in self._apts:
            apt = Apt(suites, self.arch)
            say(f"asking the Debian archive what there is in {', '.join(suites)}")
            apt.update()
            self._apts[suites] = apt
        return self._apts[suites]

    def series(self) -> dict[str, str]:
        """Every series, oldest first, and the package that is the newest of it.

        Raises:
            KernelUnavailableError: the archive does not answer.
        """
        if not self._found:
            apt = self.apt(SUITES)
            pattern = re.compile(IMAGE.format(arch=self.arch))
            names = apt.names("linux-")
            images = [name for name in names if pattern.fullmatch(name)]
            newest: dict[str, tuple[str, str]] = {}
            for package, (version, depends) in apt.show(images).items():
                found = pattern.fullmatch(package)
                assert found
                name = found[1] + (found[2] or "")
                # The archive may still have a kernel but no longer its modules.
                absent = {*parts(package, depends)} - {*names}
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
        apt = self.apt(SUITES)
        image = found[series]
        (_, depends) = apt.show([image])[image]
        shown = apt.show([image, *parts(image, depends)])
        return apt, {name: version for name, (version, _) in shown.items()}


ARCHIVES = {arch: Archive(arch) for arch in ("", *FOREIGN)}


def split(name: str) -> tuple[str, str]:
    """A kernel's name as a series and an architecture; no architecture is this machine's."""
    found = NAME.fullmatch(name)
    assert found
    return found[1], found[2] or ""


def order(name: str) -> tuple[list[int], str]:
    """A key to sort series by: 6.9 before 6.12, and that before 6.12-rt."""
    version, _, flavour = name.partition("-")
    return [int(number) for number in version.split(".")], flavour


def unpack(name: str, directory: Path) -> None:
    series, arch = split(name)
    apt, packages = ARCHIVES[arch].packages(series)
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


def fetch(name: str, update: bool = False) -> Kernel:
    """The newest kernel of a series, from the cache or else from the archive.

    update: ask the archive even when the cache has one.
    Raises KernelUnavailableError, with the reason.
    """
    home = CACHE / "kernels" / name
    if not update and home.exists():
        return locate(name, home)
    with lock(CACHE / "kernels" / f"{name}.lock"):
        if update or not home.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=home.parent))
            try:
                unpack(name, scratch)
                kernel = locate(name, scratch)
                run("depmod", "--basedir", scratch, kernel.release)
                scratch.chmod(0o755)
                shutil.rmtree(home, ignore_errors=True)
                scratch.rename(home)
            except KernelUnavailableError as error:
                there = f"; in the cache there are {', '.join(cached())}" if cached() else ""
                raise KernelUnavailableError(f"{error}{there}") from None
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            say(f"{name}: {kernel.release} is ready")
    return locate(name, home)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ci/kernel", description="Fetch Debian's stock kernels into the project's cache."
    )
    parser.add_argument(
        "series", nargs="*", default=[DEFAULT_SERIES], help="such as 6.12, 7.3-rt or 6.12-arm64"
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
            if not NAME.fullmatch(series):
                parser.error(f"{series} is not the name of a series, such as 6.12 or 7.3-rt")
            kernel = fetch(series, arguments.update)
            output.say(f"{series} {kernel.release} {kernel.image.relative_to(ROOT)}")
    except KernelUnavailableError as reason:
        say(str(reason))
        return 1
    return 0


if __name__ == "__main__":
    output.run(main)
