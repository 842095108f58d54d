"""A kernel that tells of its own mistakes, built from Debian's source in the project's cache.

Its configuration is tinyconfig with ci/kconfig.fragment, with which it boots, and ci/kconfig.debug:
KASAN, lockdep, kmemleak, UBSAN, fault injection, and coverage of KCM and of the stream parser. The
second one has KCSAN instead. A kernel is built once for a source and a configuration.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ci import output
from ci.apt import Apt, lock, run
from ci.built import IMAGES
from ci.kernels import CACHE, ROOT, SUITES, KernelUnavailableError

SERIES = "6.12"
SOURCE = CACHE / "linux-src"
VERSION = ".debian-version"  # a file in the source's directory

# Objects of which the kernel counts what was executed: kbuild looks at a variable for each.
COVERED = ("net/kcm/kcmsock", "net/kcm/kcmproc", "net/strparser/strparser")
EVERY = 30  # seconds from one line about the progress to the next


@dataclass(frozen=True)
class Flavour:
    """A kernel to build: the directory in the cache, and what is merged into tinyconfig."""

    directory: Path
    fragments: tuple[Path, ...]

    @property
    def stamp(self) -> Path:
        """A file that says of what the kernel in the directory was built; none while it is not."""
        return self.directory / ".built-of"


_BASE = (ROOT / "ci" / "kconfig.fragment", ROOT / "ci" / "kconfig.debug")
DEBUG = Flavour(CACHE / "kernel-debug", _BASE)
KCSAN = Flavour(CACHE / "kernel-kcsan", (*_BASE, ROOT / "ci" / "kconfig.kcsan"))


def say(text: str) -> None:
    print(f"kernel: {text}", file=sys.stderr, flush=True)


def source(update: bool = False) -> str:
    """Have Debian's source of the kernel in SOURCE; its version.

    Args:
        update: look whether the archive has a newer one.

    Raises:
        KernelUnavailableError: it is not in the cache, and can't be had.
    """
    stamp = SOURCE / VERSION
    there = stamp.read_text(encoding="ascii") if stamp.exists() else ""
    if there and not update:
        return there
    package = f"linux-source-{SERIES}"
    apt = Apt(SUITES, run("dpkg", "--print-architecture").strip())
    say(f"asking the Debian archive for {package}")
    apt.update()
    version, _ = apt.show([package])[package]
    if version == there:
        return version
    scratch = SOURCE.with_suffix(".new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    say(f"fetching and unpacking {package} ({version}): 150 MB, and 1.6 GB unpacked")
    (deb,) = apt.download({package: version}, scratch)
    run("dpkg-deb", "--extract", deb, scratch / "deb")
    (archive,) = (scratch / "deb" / "usr" / "src").glob("*.tar.xz")
    tree = scratch / "tree"
    tree.mkdir()
    run("tar", "--strip-components=1", f"--directory={tree}", "--extract", "--file", archive)
    (tree / VERSION).write_text(version, encoding="ascii")
    shutil.rmtree(SOURCE, ignore_errors=True)
    tree.rename(SOURCE)
    shutil.rmtree(scratch)
    return version


def wanted(flavour: Flavour, version: str) -> str:
    """Of what a kernel would be built now: a line for each thing."""
    texts = "".join(path.read_text(encoding="utf-8") for path in flavour.fragments)
    digest = hashlib.sha256((texts + repr(COVERED)).encode()).hexdigest()[:16]
    compiler = run("gcc", "-dumpfullversion").strip()
    return f"source {version}\nconfiguration {digest}\ncompiler {compiler}\n"


def asked(fragments: tuple[Path, ...]) -> dict[str, str]:
    """The options that fragments ask for; where they differ, the last one's word."""
    found: dict[str, str] = {}
    for path in fragments:
        text = path.read_text(encoding="utf-8")
        for line in re.findall(r"^(?:CONFIG_\w+=.*|# CONFIG_\w+ is not set)$", text, re.MULTILINE):
            name, _, value = line.strip("# ").replace(" is not set", "=n").partition("=")
            found[name] = value
    return found


def dropped(config: str, options: dict[str, str]) -> list[str]:
    """Options that a configuration does not have as they were asked for."""
    lines = {*config.splitlines()}
    return [
        f"{name}={value}"
        for name, value in options.items()
        if (
            any(line.startswith(f"{name}=") for line in lines)
            if value == "n"
            else f"{name}={value}" not in lines
        )
    ]


def configure(flavour: Flavour) -> None:
    """Write a kernel's configuration.

    Raises:
        KernelUnavailableError: it would lack an option that was asked for.
    """
    directory = flavour.directory
    make = ("make", "-s", f"--directory={SOURCE}", f"O={directory}")
    before = directory / ".config"
    old = before.read_bytes() if before.exists() else b""
    run(*make, "tinyconfig")
    merge = SOURCE / "scripts" / "kconfig" / "merge_config.sh"
    run(merge, "-m", "-O", directory, before, *flavour.fragments, cwd=SOURCE)
    run(*make, "olddefconfig")
    if lost := dropped(before.read_text(encoding="utf-8"), asked(flavour.fragments)):
        raise KernelUnavailableError(f"the configuration lost {', '.join(lost)}")
    if before.read_bytes() == old:
        say("the configuration is as it was: the build goes on where it was")


def compile_kernel(flavour: Flavour, jobs: int) -> None:
    """Compile, with a line about the progress now and then.

    Raises:
        KernelUnavailableError: it failed; says how, and where the compiler's words are.
    """
    log = flavour.directory.with_suffix(".log")
    command = ["make", f"-j{jobs}", f"--directory={SOURCE}", f"O={flavour.directory}"]
    command += [f"GCOV_PROFILE_{Path(name).name}.o=y" for name in COVERED]
    start = last = time.monotonic()
    files = 0
    with log.open("w", encoding="utf-8") as file:
        with subprocess.Popen(
            [*command, "bzImage", "modules"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        ) as process:
            for line in process.stdout or ():
                file.write(line)
                files += line.startswith("  CC ")
                if time.monotonic() - last >= EVERY:
                    last = time.monotonic()
                    say(f"{files} files compiled in {last - start:.0f} s; now {line.split()[-1]}")
    if process.returncode:
        text = log.read_text(encoding="utf-8")
        errors = re.findall(r"^.*(?:error:|\*\*\* ).*$", text, re.MULTILINE)
        why = errors[0] if errors else (text.splitlines() or ["it said nothing"])[-1]
        raise KernelUnavailableError(f"the build failed: {why.strip()} (all of it is in {log})")
    say(f"built in {time.monotonic() - start:.0f} s")


def build(flavour: Flavour, jobs: int = 0, update: bool = False) -> Path:
    """The directory of a kernel of a flavour, which is built unless it is there.

    Args:
        jobs: compilers at once; by default one for each CPU.
        update: look for a newer source.

    Raises:
        KernelUnavailableError: it can't be had.
    """
    if os.uname().machine not in IMAGES or os.uname().machine != "x86_64":
        raise KernelUnavailableError("a debug kernel is built on x86-64 only")
    directory = flavour.directory
    with lock(CACHE / "building.lock"):
        version = source(update)
        of = wanted(flavour, version)
        stamp = flavour.stamp
        if stamp.exists() and stamp.read_text(encoding="ascii") == of:
            return directory
        begun = directory / ".source"
        if begun.exists() and begun.read_text(encoding="ascii") != version:
            # Files of another source may be older than what was made of the last one.
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        begun.write_text(version, encoding="ascii")
        stamp.unlink(missing_ok=True)
        say(f"building {directory.name} of {version}: some 18 minutes of one CPU")
        configure(flavour)
        compile_kernel(flavour, jobs or os.cpu_count() or 1)
        stamp.write_text(of, encoding="ascii")
    return directory


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/build-kernel", description=__doc__)
    parser.add_argument("--kcsan", action="store_true", help="the one that finds data races")
    parser.add_argument("--update", action="store_true", help="look for a newer source")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="compilers at once")
    arguments = parser.parse_args()
    flavour = KCSAN if arguments.kcsan else DEBUG
    try:
        directory = build(flavour, arguments.jobs, arguments.update)
    except KernelUnavailableError as reason:
        say(str(reason))
        return 1
    output.say(f"{directory.relative_to(ROOT)}")
    output.say(f"    ci/vm --memory 2048 --kernel {directory.relative_to(ROOT)} -- COMMAND")
    return 0


if __name__ == "__main__":
    output.run(main)
