"""A kernel's source and headers, and a KCM module built from a changed source."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ci.apt import make_once, run
from ci.bugs import KCM, STRPARSER, Bug
from ci.kernels import ARCHIVES, CACHE, NAME, SUITES, Kernel, KernelUnavailableError, say

WANTED = ("net/kcm", "net/strparser")
MAKEFILE = "obj-m := kcm.o\nkcm-y := {}\n"


@dataclass(frozen=True)
class Tree:
    """Where a kernel's source is, and where modules for it are built."""

    source: Path
    build: Path


def tree(kernel: Kernel) -> Tree:
    """Source and headers of a kernel: of Debian's packages, or of the directory it was built in.

    Raises:
        KernelUnavailableError: there are none for just this kernel.
    """
    if not NAME.fullmatch(kernel.name):
        return of_directory(Path(kernel.name))
    if kernel.uml or kernel.arch:
        raise KernelUnavailableError("modules are built for this machine's own kernels alone")
    home = CACHE / "headers" / kernel.release
    make_once(home, lambda directory: unpack(kernel, directory, home))
    return Tree(home / "source", home / "usr" / "src" / f"linux-headers-{kernel.release}")


def of_directory(directory: Path) -> Tree:
    """The same for a kernel of one's own, in whose directory modules can be built."""
    config = directory / ".config"
    if not config.exists():
        raise KernelUnavailableError("it is no directory in which a kernel was built")
    if "\nCONFIG_AF_KCM=m\n" not in config.read_text(encoding="utf-8"):
        raise KernelUnavailableError("a changed module takes a kernel with CONFIG_AF_KCM=m")
    # A build outside of the source has a link to that.
    source = directory / "source"
    return Tree(source if source.exists() else directory, directory)


def unpack(kernel: Kernel, scratch: Path, home: Path) -> None:
    """Fetch Debian's headers and source of just this release; no root is needed."""
    archive = ARCHIVES[""]
    apt = archive.apt(SUITES)
    headers = f"linux-headers-{kernel.release}"
    series = kernel.name.removesuffix("-rt")
    shown = apt.show([headers]) if headers in apt.names(headers) else {}
    if headers not in shown:
        raise KernelUnavailableError(
            f"the Debian archive has no {headers} any more; get a newer kernel with "
            f"`ci/kernel --update {kernel.name}`"
        )
    version, depends = shown[headers]
    names = [headers, f"linux-source-{series}"]
    names += [name for name in depends if re.match(r"linux-(headers|kbuild)-", name)]
    say(f"fetching {' '.join(names)} ({version})")
    debs = scratch / "debs"
    debs.mkdir()
    for deb in apt.download(dict.fromkeys(names, version), debs):
        run("dpkg-deb", "--extract", deb, scratch)
    shutil.rmtree(debs)
    # The headers' makefile names the common part by where it would be installed.
    makefile = scratch / "usr" / "src" / headers / "Makefile"
    text = makefile.read_text(encoding="utf-8")
    makefile.write_text(text.replace("/usr/src/", f"{home}/usr/src/"), encoding="utf-8")
    (packed,) = (scratch / "usr" / "src").glob("linux-source-*.tar.xz")
    top = packed.name.removesuffix(".tar.xz")
    source = scratch / "source"
    source.mkdir()
    folders = [f"{top}/{path}" for path in WANTED]
    run("tar", "-C", source, "--strip-components=1", "-xf", packed, *folders)
    packed.unlink()


def without_exports(source: str) -> str:
    """The stream parser as a part of another module: nothing exported, the system's work queue."""
    source = re.sub(r"^EXPORT_SYMBOL_GPL\(.*\n", "", source, flags=re.MULTILINE)
    source, queues = re.subn(
        r"^static struct workqueue_struct \*strp_wq;$",
        "#define strp_wq system_wq",
        source,
        flags=re.MULTILINE,
    )
    source, begins = re.subn(
        r"^static int __init strp_\w+\(void\)\n.*?^}\n.*?_initcall\(strp_\w+\);\n",
        "",
        source,
        flags=re.MULTILINE | re.DOTALL,
    )
    if (queues, begins) != (1, 1):
        raise KernelUnavailableError(f"{STRPARSER} is not one that can be a part of a module")
    return source


def build(where: Tree, bug: Bug | None, parser: bool, directory: Path) -> Path:
    """Build the module, with a bug in it or as it is; a few seconds, none if it is there already.

    Args:
        where: the kernel's source and headers.
        bug: what is put back; None for nothing.
        parser: a copy of the stream parser is a part of the module, which takes it instead of the
            kernel's own. A bug of the stream parser takes that.
        directory: where to build.

    Raises:
        KernelUnavailableError: it does not compile; says the compiler's words.
        PlaceMissingError: the source is another one than the change is for.
    """
    files = {path.name: path for path in (where.source / "net/kcm").glob("*.[ch]")}
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    if parser:
        texts["strparser.c"] = (where.source / STRPARSER).read_text(encoding="utf-8")
    if bug:
        name = Path(bug.file).name
        texts[name] = bug.put_back(texts[name])
    if parser:
        texts["strparser.c"] = without_exports(texts["strparser.c"])
    objects = " ".join(sorted(name.replace(".c", ".o") for name in texts if name.endswith(".c")))
    texts["Makefile"] = MAKEFILE.format(objects)
    of = sha256(repr((sorted(texts.items()), str(where.build))).encode()).hexdigest()
    module, done = directory / "kcm.ko", directory / "built-of"
    if module.exists() and done.exists() and done.read_text(encoding="ascii") == of:
        return module
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    # Type information takes a program that Debian's headers do not have.
    command = ["make", "-C", str(where.build), f"M={directory}", "CONFIG_DEBUG_INFO_BTF_MODULES="]
    made = subprocess.run(
        [*command, "modules"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if made.returncode or not module.exists():
        raise KernelUnavailableError(f"{KCM} does not compile:\n{made.stdout}")
    done.write_text(of, encoding="ascii")
    return module
