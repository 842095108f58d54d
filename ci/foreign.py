"""Debian's kernels for other architectures, emulated, without installing anything for them.

A guest's root is an initramfs: Python, busybox and kmod of that architecture, unpacked from
Debian's packages, and the modules for 9p. The project comes by 9p, with a compiled part of its own
over the host's. All pure Python that the tests need is the host's.
"""

from __future__ import annotations

import lzma
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ci.apt import lock, make_once, run, up_to_date
from ci.guest import PATIENCE_OPTIONS, Guest, Run, execute
from ci.kernels import CACHE, ROOT, Kernel, say

# What the guest needs, and with it what these depend on.
PACKAGES = ("python3", "python3-cffi-backend", "busybox-static", "kmod")
HEADERS = "libpython3.11-dev"
MODULES = ("9p", "9pnet_virtio", "virtio_pci", "virtio_console")
SUITES = ("bookworm", "bookworm-security")


@dataclass(frozen=True)
class Machine:
    """How an architecture is emulated and compiled for.

    target: for zig. bus: of virtio's devices. console: the kernel's.
    """

    qemu: tuple[str, ...]
    target: str
    bus: str
    console: str


MACHINES = {
    "arm64": Machine(
        ("qemu-system-aarch64", "-machine", "virt", "-cpu", "max,pauth-impdef=on"),
        "aarch64-linux-gnu",
        "pci",
        "ttyAMA0",
    ),
    "armhf": Machine(
        ("qemu-system-arm", "-machine", "virt,highmem=off", "-cpu", "cortex-a15"),
        "arm-linux-gnueabihf",
        "pci",
        "ttyAMA0",
    ),
    "s390x": Machine(
        ("qemu-system-s390x", "-machine", "s390-ccw-virtio", "-cpu", "max"),
        "s390x-linux-gnu",
        "ccw",
        "ttysclp0",
    ),
}

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s 2>/dev/null
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp /root
mount -t devpts devpts /dev/pts
mount -t debugfs debug /sys/kernel/debug
for directory in /dev/shm /run /tmp /var/tmp; do mount -t tmpfs tmpfs $directory; done
ln -sf /proc/self/fd /dev/fd
for module in {names}; do modprobe $module; done
mkdir -p {root} # which may lie in /tmp
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,access=any project {root} || poweroff -f
for part in {parts}; do mount --bind {compiled}/$part {root}/pykcm/$part; done
ip link set lo up
hostname kcm
mount --bind {modules} /lib/modules/{release}
# Through pipes: a port is opened once, and waits for whoever reads.
for output in /dev/vport*p1; do :; done
mkfifo /run/errors
cat </run/errors >${{output%1}}2 &
sh {script} </dev/null 2>/run/errors | cat >$output
wait
poweroff -f
"""

# pykcm's compiled parts, as they are called here; the guest has its own in their places.
PARTS = ("_native.abi3.so", "_fastpath.abi3.so")

# Where the guest's shell looks first: the commands of the project's .venv are the host's.
COMMANDS = {
    "kcm": "-c 'from pykcm.cli import main; main()'",
    "pytest": "-m pytest",
    "python": "",
}
COMMAND = """\
#!/bin/sh
export PYTHONPATH={root}:{packages}
exec python3 {arguments} "$@"
"""


def boot(kernel: Kernel, guest: Guest, run_of: Run) -> bool:
    """Boot, run the guest's command and shut down; False if that took too long."""
    machine = MACHINES[kernel.arch]
    subprocess.run([ROOT / "ci" / "setup", "vm", "machines"], check=True)
    initramfs = run_of.directory / "initramfs"
    with initramfs.open("wb") as file:
        # The kernel takes one archive after another.
        file.write(root(kernel.arch).read_bytes())
        file.write(own_part(kernel, run_of))
    arguments = [*machine.qemu, "-m", f"{guest.memory}M", "-smp", str(guest.cpus)]
    arguments += ["-nodefaults", "-display", "none", "-no-reboot"]
    arguments += ["-kernel", str(kernel.image), "-initrd", str(initramfs)]
    options = ["panic=-1", f"console={machine.console}", "loglevel=5", "mitigations=off"]
    options += PATIENCE_OPTIONS
    arguments += ["-append", " ".join(options + guest.append)]
    arguments += [
        "-chardev",
        f"file,id=console,path={run_of.console}",
        "-serial",
        "chardev:console",
    ]
    arguments += ["-fsdev", f"local,id=project,path={ROOT},security_model=none,multidevs=remap"]
    arguments += ["-device", f"virtio-9p-{machine.bus},fsdev=project,mount_tag=project"]
    arguments += ["-device", f"virtio-serial-{machine.bus},id=output"]
    for number in (1, 2):
        arguments += ["-chardev", f"file,id=fd{number},path=/proc/self/fd/{number}"]
        arguments += ["-device", f"virtserialport,bus=output.0,nr={number},chardev=fd{number}"]
    if guest.icount:
        arguments += ["-icount", "shift=0,sleep=off"]
    else:
        arguments += ["-accel", "tcg,thread=multi,tb-size=512"]
    return execute(arguments, guest, run_of)


def root(arch: str) -> Path:
    """The archive with what does not depend on the kernel; made once."""
    home = CACHE / "machines" / arch
    archive = home / "root.cpio"
    with lock(home / "lock"), tempfile.TemporaryDirectory(dir=home) as scratch:
        if not archive.exists():
            say(f"fetching Python for {arch}")
            apt = up_to_date(SUITES, arch, say)
            tree = Path(scratch, "root")
            for deb in apt.closure(PACKAGES):
                run("dpkg-deb", "--extract", deb, tree)
            for unused in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl"):
                shutil.rmtree(tree / unused, ignore_errors=True)
            for directory in ("proc", "sys", "dev", "run", "tmp", "var/tmp", "root"):
                (tree / directory).mkdir(parents=True, exist_ok=True)
            new = Path(scratch, "root.cpio")
            new.write_bytes(pack(tree))
            new.rename(archive)
    return archive


def headers(arch: str) -> Path:
    """Debian's header files of Python for an architecture."""
    home = CACHE / "machines" / arch / "headers"

    def make(directory: Path) -> None:
        apt = up_to_date(SUITES, arch, say)
        version, _ = apt.show([HEADERS])[HEADERS]
        for deb in apt.download({HEADERS: version}, directory):
            run("dpkg-deb", "--extract", deb, directory)
            deb.unlink()

    make_once(home, make)
    return home / "usr" / "include"


def write_commands(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name, arguments in COMMANDS.items():
        command = directory / name
        packages = shlex.quote(sysconfig.get_path("purelib"))
        text = COMMAND.format(root=shlex.quote(str(ROOT)), packages=packages, arguments=arguments)
        command.write_text(text, encoding="utf-8")
        command.chmod(0o755)


def own_part(kernel: Kernel, run_of: Run) -> bytes:
    """The archive with what belongs to this kernel and run: modules and the first program."""
    assert kernel.modules
    with tempfile.TemporaryDirectory(dir=run_of.directory) as scratch:
        tree = Path(scratch)
        tree.chmod(0o755)  # it becomes the guest's root, which all may enter
        write_commands(tree / "usr" / "local" / "bin")
        installed = kernel.modules / kernel.release
        own = tree / "lib" / "modules" / kernel.release
        own.mkdir(parents=True)
        for name in modules(installed):
            content = (installed / name).read_bytes()
            if name.endswith(".xz"):
                content = lzma.decompress(content)
            (own / Path(name.removesuffix(".xz")).name).write_bytes(content)
        for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            if (installed / name).exists():
                shutil.copy(installed / name, own)
        run("depmod", "--basedir", tree, kernel.release)
        init = tree / "init"
        init.write_text(
            INIT.format(
                root=shlex.quote(str(ROOT)),
                names=" ".join(MODULES),
                parts=" ".join(PARTS),
                compiled=shlex.quote(str(compiled(kernel.arch))),
                modules=shlex.quote(str(installed)),
                release=kernel.release,
                script=shlex.quote(str(run_of.script)),
            ),
            encoding="utf-8",
        )
        init.chmod(0o755)
        return pack(tree)


def modules(installed: Path) -> list[str]:
    """The files of the modules by which the project is reached, below the modules' directory."""
    needed: dict[str, None] = {}
    for line in (installed / "modules.dep").read_text(encoding="utf-8").splitlines():
        file, _, others = line.partition(":")
        if Path(file).name.partition(".")[0].replace("-", "_") in MODULES:
            needed |= dict.fromkeys([file, *others.split()])
    return list(needed)


def compiled(arch: str) -> Path:
    """The directory with pykcm's compiled parts for an architecture."""
    home = CACHE / "machines" / arch
    generated = home / "_native.c"
    emit = "import sys; from build_ffi import ffibuilder; ffibuilder.emit_c_code(sys.argv[1])"
    run(sys.executable, "-c", emit, generated, cwd=ROOT)
    package = ROOT / "pykcm"
    sources = [generated, *sorted(package.glob("*.[ch]"))]
    text = b"".join(source.read_bytes() for source in sources if source != package / "_native.c")
    directory = home / sha256(text).hexdigest()[:16]

    def make(new: Path) -> None:
        say(f"compiling pykcm for {arch}")
        command = [sys.executable, "-m", "ziglang", "cc", "-target", MACHINES[arch].target]
        command += ["-O2", "-shared", "-fPIC", "-DPy_LIMITED_API=0x030A0000", "-D_GNU_SOURCE"]
        include = headers(arch)
        command += [f"-I{include}", f"-I{next(include.glob('python3.*'))}", f"-I{package}"]
        for part, source in zip(PARTS, (generated, package / "_fastpath.c"), strict=True):
            own = ["-o", str(new / part), str(source), str(package / "_delineate.c")]
            subprocess.run([*command, *own], check=True)

    make_once(directory, make)
    return directory


def pack(tree: Path) -> bytes:
    """A directory as an archive for an initramfs."""
    names = subprocess.run(["find", "."], cwd=tree, capture_output=True, check=True).stdout
    return subprocess.run(
        ["busybox", "cpio", "-o", "-H", "newc"],
        cwd=tree,
        input=names,
        capture_output=True,
        check=True,
    ).stdout
