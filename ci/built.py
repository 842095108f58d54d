"""Kernels of one's own: an image, or the directory in which one was built.

What can be seen wrong with it before it is booted is said in a line: an image of another
architecture, a directory that was built half, an option that pykcm's tests need.
"""

from __future__ import annotations

import os
import re
import shutil
from hashlib import sha256
from pathlib import Path

from ci.apt import lock, run
from ci.kernels import CACHE, ROOT, Kernel, KernelUnavailableError, fetch, is_series

FRAGMENT = ROOT / "ci" / "kconfig.fragment"
HERE = os.uname().machine

# Where a build leaves the image, below the directory.
IMAGES = {
    "x86_64": "arch/x86/boot/bzImage",
    "aarch64": "arch/arm64/boot/Image",
    "s390x": "arch/s390/boot/bzImage",
}
# How images of each architecture are known: a place and what is there (their boot protocols), and
# for ELF the machine's number.
MAGICS = {
    "x86_64": (0x202, b"HdrS"),
    "aarch64": (56, b"ARM\x64"),
    "s390x": (0x10008, b"S390EP"),
    "riscv64": (56, b"RSC\x05"),
    "arm": (0x24, b"\x18\x28\x6f\x01"),
}
# In which images for other machines may be.
PACKED = {"gzip": (0, b"\x1f\x8b"), "EFI zboot": (4, b"zimg")}
ELF_MACHINES = {62: "x86_64", 183: "aarch64", 22: "s390x", 243: "riscv64", 40: "arm", 3: "i386"}


def from_caller(path: Path) -> Path:
    """A path as it was meant where a script was called, which has gone to the project's root."""
    return Path(os.environ.get("CALLED_FROM", "."), path)


def meant(named: str) -> str:
    """A series' name or a path, the latter as of from_caller()."""
    path = from_caller(Path(named))
    return str(path.resolve()) if named and path.exists() else named


def kernel(named: str) -> Kernel:
    """A kernel by a series' name or a path.

    Raises:
        KernelUnavailableError: it can't be had, or can't be booted; says what to do.
    """
    path = Path(named).resolve()
    if named and path.exists():
        return of_directory(path) if path.is_dir() else of_image(path)
    if is_series(named):
        return fetch(named)
    raise KernelUnavailableError(
        "there is no such file; name a series such as 6.12 or 7.3-rt (`ci/kernel --list`), "
        "a bzImage, or the directory in which a kernel was built"
    )


def of_image(image: Path) -> Kernel:
    """A kernel by its image, with the modules that were built or installed with it."""
    release = release_of(image)
    built_in = IMAGES.get(HERE, "")
    if str(image).endswith("/" + built_in):
        return of_directory(Path(str(image).removesuffix("/" + built_in)))
    # As it is installed: boot/vmlinuz-RELEASE beside lib/modules/RELEASE.
    root = image.parent.parent
    modules = root / "lib" / "modules"
    has_modules = (modules / release / "modules.dep").exists()
    config = image.parent / f"config-{release}"
    return Kernel(
        str(image),
        release,
        image,
        modules if has_modules else None,
        lacks=lacking(config, has_modules) if config.exists() else (),
    )


def of_directory(directory: Path) -> Kernel:
    """A kernel by the directory in which it was built, with the modules that were built there."""
    config = directory / ".config"
    image = directory / IMAGES.get(HERE, "vmlinux")
    make = f"run `make -C {directory}`"
    if not config.exists():
        raise KernelUnavailableError(f"no kernel was built there: no {config}")
    if not image.exists():
        others = [arch for arch, path in IMAGES.items() if (directory / path).exists()]
        if others:
            raise KernelUnavailableError(f"it was built for {others[0]}; this host boots {HERE}")
        raise KernelUnavailableError(f"it is not built: no {image}; {make}")
    release = release_of(image)
    expected = directory / "include" / "config" / "kernel.release"
    if expected.exists() and (now := expected.read_text(encoding="utf-8").strip()) != release:
        raise KernelUnavailableError(f"its image is {release}, the rest {now}; {make}")
    text = config.read_text(encoding="utf-8", errors="replace")
    names = modules_of(directory, make) if "\nCONFIG_MODULES=y\n" in text else []
    home = install(directory, release, image, names)
    return Kernel(
        str(directory),
        release,
        home / "boot" / f"vmlinuz-{release}",
        home / "lib" / "modules" if names else None,
        lacks=lacking(config, bool(names)),
    )


def release_of(image: Path) -> str:
    """The release of an image for this host's architecture."""
    if not image.is_file():  # a pipe would be waited for
        raise KernelUnavailableError("it is no regular file; give a bzImage")
    try:
        content = image.read_bytes()
    except OSError as error:
        raise KernelUnavailableError(f"it can't be read: {error.strerror}") from None
    arch = named_by(MAGICS, content)
    if content.startswith(b"\x7fELF"):
        machines = [int.from_bytes(content[18:20], order) for order in ("little", "big")]
        names = [ELF_MACHINES[machine] for machine in machines if machine in ELF_MACHINES]
        arch = names[0] if names else "another machine"
        if arch == HERE == "x86_64":
            raise KernelUnavailableError(
                f"it is no image that boots but an ELF file; give {IMAGES[HERE]}"
            )
    if not arch and (packed := named_by(PACKED, content)):
        raise KernelUnavailableError(
            f"it is packed by {packed}, as kernels for arm64 are; this host boots {HERE}"
        )
    if not arch:
        raise KernelUnavailableError("it is no kernel's image; give a bzImage")
    if arch == "x86_64":
        return release_of_bzimage(content)
    if arch != HERE:
        raise KernelUnavailableError(f"it is a kernel for {arch}; this host boots {HERE}")
    found = re.search(rb"Linux version (\S+) ", content)
    return found[1].decode("ascii", "replace") if found else "unknown"


def named_by(magics: dict[str, tuple[int, bytes]], content: bytes) -> str:
    """What has its magic number in a file; empty if nothing has."""
    return next((name for name, (at, m) in magics.items() if content[at : at + len(m)] == m), "")


def release_of_bzimage(content: bytes) -> str:
    """The release that is in the header of an image for x86: Documentation/arch/x86/boot.rst."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], "little")

    whole = ((number(0x1F1, 1) or 4) + 1) * 512 + number(0x1F4, 4) * 16  # setup_sects, syssize
    if len(content) < whole:
        raise KernelUnavailableError(f"it is cut off: {len(content)} bytes of {whole}")
    arch = "x86_64" if number(0x236, 1) & 1 else "i386"  # XLF_KERNEL_64
    if arch != HERE:
        raise KernelUnavailableError(f"it is a kernel for {arch}; this host boots {HERE}")
    version = content[number(0x20E, 2) + 0x200 :][:256].split(b"\0")[0].decode("ascii", "replace")
    release = version.partition(" ")[0]
    if not release or "/" in release:  # directories are named by it
        raise KernelUnavailableError("it does not say its release; give a bzImage")
    return release


def lacking(config: Path, has_modules: bool) -> tuple[str, ...]:
    """The options of ci/kconfig.fragment that a configuration does not have."""
    good = ("y", "m") if has_modules else ("y",)
    lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    there = {name for name, _, value in (line.partition("=") for line in lines) if value in good}
    asked = re.findall(r"^(CONFIG_\w+)=y$", FRAGMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return tuple(name for name in asked if name not in there)


def modules_of(directory: Path, make: str) -> list[str]:
    """The files of the modules that were built in a directory."""
    listed = directory / "modules.order"
    if not listed.exists():
        raise KernelUnavailableError(f"its modules are not built: no {listed}; {make}")
    # Before 6.2 the list has the installed files' names, since then those of objects.
    lines = listed.read_text(encoding="utf-8").split()
    names = [re.sub(r"\.o$", ".ko", line.removeprefix("kernel/")) for line in lines]
    absent = [name for name in names if not (directory / name).exists()]
    if absent:
        raise KernelUnavailableError(
            f"{len(absent)} of its {len(names)} modules are not built, such as {absent[0]}; {make}"
        )
    return names


def install(directory: Path, release: str, image: Path, names: list[str]) -> Path:
    """A build laid out as it would be installed, by links: boot and lib/modules in a directory.

    Made anew only for another build, since a guest may be using it.
    """
    times = [(name, (directory / name).stat().st_mtime_ns) for name in names]
    home = CACHE / "built" / sha256(str(directory).encode()).hexdigest()[:16]
    whole = home / sha256(repr((release, times)).encode()).hexdigest()[:16]
    with lock(home.with_suffix(".lock")):
        if whole.exists():
            return whole
        shutil.rmtree(home, ignore_errors=True)
        scratch = home / "scratch"
        own = scratch / "lib" / "modules" / release
        for name in names:
            link = own / "kernel" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(directory / name)
        own.mkdir(parents=True, exist_ok=True)
        (own / "modules.order").write_text("".join(f"kernel/{name}\n" for name in names))
        for name in ("modules.builtin", "modules.builtin.modinfo"):
            if (directory / name).exists():
                shutil.copy(directory / name, own)
        (scratch / "boot").mkdir()
        (scratch / "boot" / f"vmlinuz-{release}").symlink_to(image)
        run("depmod", "--basedir", scratch, release)
        scratch.rename(whole)
    return whole
