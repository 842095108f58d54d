"""apt, in a configuration of the project's own: what it fetches goes to the project's cache.

It checks the archive's signatures and the packages' hashes with the installed
debian-archive-keyring. The machine's sources, lists and installed packages stay as they are, and no
root is needed. The archive's address is the one that the machine itself uses, or that of the
variable PYKCM_DEBIAN_MIRROR.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# What apt says where an archive's files are of two versions.
_REPLACED = re.compile("Hash Sum mismatch|unexpected size|Mirror sync in progress")


class UnavailableError(Exception):
    """Something could not be had; the text says why and what to do."""


class BeingReplacedError(UnavailableError):
    """An archive's lists are about to be replaced by newer ones."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; two runs may want the same kernel at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_once(home: Path, make: Callable[[Path], object], *, again: bool = False) -> bool:
    """Have a directory in the cache: it is there whole, or not at all.

    Args:
        home: the directory.
        make: fills another one, which then gets this name.
        again: even if it is there.

    Returns:
        Whether it was made now.
    """
    with lock(home.with_name(f"{home.name}.lock")):
        if home.exists() and not again:
            return False
        scratch = Path(tempfile.mkdtemp(prefix=f"{home.name}.", dir=home.parent))
        try:
            make(scratch)
            scratch.chmod(0o755)
            shutil.rmtree(home, ignore_errors=True)
            scratch.rename(home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return True


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
        raise UnavailableError(
            f"`{Path(command[0]).name} {command[-1]}` failed with status {result.returncode}: {why}"
        )
    return result.stdout


def release() -> str:
    """The Debian release that this machine runs, by its name; empty if it runs none."""
    found = platform.freedesktop_os_release()
    return found.get("VERSION_CODENAME", "") if found["ID"] == "debian" else ""


def machine_archives() -> tuple[str, str]:
    """The addresses of Debian's main and security archives, from this machine's apt sources."""
    mirror = os.environ.get("PYKCM_DEBIAN_MIRROR")
    if not mirror:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
        if not re.search(r"^ID=debian$", release, re.MULTILINE):
            raise UnavailableError(
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
        raise UnavailableError(
            "this machine's apt sources name no Debian suite; "
            "set PYKCM_DEBIAN_MIRROR to the address of a Debian archive"
        )
    return mirror, security or mirror.rstrip("/") + "-security"


class Apt:
    """apt with sources, lists and cache of its own."""

    def __init__(self, suites: tuple[str, ...], arch: str) -> None:
        if not KEYRING.exists():
            raise UnavailableError(f"no {KEYRING.name}: install debian-archive-keyring")
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
        """Fetch the archive's lists; again, if they were about to be replaced by newer ones."""
        for pause in (5, 30, 60, None):
            try:
                run("apt-get", *self.options, "--quiet=2", "update")
                return
            except UnavailableError as error:
                if not _REPLACED.search(str(error)):
                    raise
                if pause is None:
                    raise BeingReplacedError(str(error)) from None
                time.sleep(pause)

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


def up_to_date(suites: tuple[str, ...], arch: str, say: Callable[[str], object]) -> Apt:
    """apt with the newest lists of those suites whose lists fit together.

    Raises:
        UnavailableError: the archive does not answer, or none do.
    """
    while True:
        apt = Apt(suites, arch)
        try:
            apt.update()
        except BeingReplacedError as error:
            rest = tuple(suite for suite in suites if f"/dists/{suite}/" not in str(error))
            if rest in {(), suites}:
                raise
            say(f"{error}; looking in {', '.join(rest)} alone")
            suites = rest
        else:
            return apt
