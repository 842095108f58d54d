"""A stock kernel in QEMU, with the host's file system as its root: by virtme-ng."""

from __future__ import annotations

import ctypes
import mmap
import shlex
import subprocess
import sys
import time
from pathlib import Path

from ci.guest import PATIENCE_OPTIONS, Guest, Run, execute
from ci.kernels import CACHE, ROOT, Kernel

# Directories where programs expect to write. What a guest writes there is gone with it.
SCRATCH = ("/etc", "/home", "/lib", "/opt", "/root", "/srv", "/tmp", "/usr", "/var")
PROBE_SECONDS = 10
# Under emulation, what costs is what leaves the translated code: without the first two each look at
# the clock goes to an emulated HPET. The others save work that tells nothing about KCM.
EMULATION_OPTIONS = (
    "clocksource=tsc",
    "tsc=reliable",
    "mitigations=off",
    "init_on_alloc=0",
    "randomize_kstack_offset=0",
    "kfence.sample_interval=0",
    "apparmor=0",
    *PATIENCE_OPTIONS,
    # udev loads a driver for each device that the emulated machine has; no test uses these.
    "modprobe.blacklist=ahci,bochs,button,ccp,evdev,i2c_i801,i6300esb,iTCO_wdt,kvm_amd,kvm_intel,"
    "lpc_ich,pcspkr,powernow_k8,psmouse,qemu_fw_cfg,serio_raw,sg,sr_mod",
)
COUNTED_TSC_KHZ = 1_000_000  # a tick is an instruction, and that takes 2**0 ns
# rdtsc; shl rdx, 32; or rax, rdx; ret
READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def kvm_works(kernel: Kernel) -> bool:
    """Whether a guest starts with hardware virtualization.

    That /dev/kvm exists proves nothing, and a guest on a broken one may hang for ever. So a kernel
    without a root is booted once: it works if that gets as far as the panic. The answer is kept
    until the host boots again.
    """
    device = Path("/dev/kvm")
    try:
        device.open("r+b").close()
    except OSError:
        return False
    memory = CACHE / "kvm"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    if memory.exists():
        known_boot, _, answer = memory.read_text(encoding="ascii").partition(" ")
        if known_boot == boot:
            return answer == "works"
    say(f"trying hardware virtualization (at most {PROBE_SECONDS} s)")
    command = ["qemu-system-x86_64", "-machine", "q35,accel=kvm", "-cpu", "host", "-m", "256"]
    command += ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
    command += ["-kernel", str(kernel.image), "-append", "console=ttyS0 panic=-1"]
    try:
        probe = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        works = b"Kernel panic" in probe.stdout
    except subprocess.TimeoutExpired:
        works = False
    memory.write_text(f"{boot} {'works' if works else 'fails'}", encoding="ascii")
    if not works:
        say("/dev/kvm is there but no guest starts on it; emulating instead")
    return works


def tsc_khz() -> int:
    """The frequency of this host's time stamp counter in kHz: an emulated guest reads that counter.

    A guest on a busy host may measure it wrongly, and then its clock runs at several times the
    speed. So it is measured here, between looks that took the shortest time, and told.
    """
    code = mmap.mmap(-1, len(READ_TSC), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(READ_TSC)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def look() -> tuple[int, int]:
        looks = ((time.monotonic_ns(), read(), time.monotonic_ns()) for _ in range(50))
        before, ticks, after = min(looks, key=lambda look: look[2] - look[0])
        return (before + after) // 2, ticks

    start, first = look()
    time.sleep(0.02)
    end, last = look()
    return round((last - first) * 1e6 / (end - start))


def boot(kernel: Kernel, guest: Guest, run: Run) -> bool:
    """Boot, run the guest's command and shut down; False if that took too long."""
    kvm = not guest.icount and kvm_works(kernel)
    arguments = [str(ROOT / ".venv/bin/virtme-run")]
    modules = "auto" if kernel.modules else "none"
    arguments += ["--kimg", str(kernel.image), "--mods", modules, "--user", "root"]
    arguments += ["--force-9p", "--disable-microvm", "--rwdir", str(ROOT)]
    arguments += ["--memory", f"{guest.memory}M", "--cpus", str(guest.cpus)]
    for directory in SCRATCH:
        if Path(directory).is_dir():
            arguments += ["--overlay-rwdir", directory]
    if not kvm:
        arguments += ["--disable-kvm"]
    # A kernel that panics ends QEMU.
    options = ["panic=-1", "loglevel=5"]
    if not kvm:
        khz = COUNTED_TSC_KHZ if guest.icount else tsc_khz()
        options += [*EMULATION_OPTIONS, f"tsc_early_khz={khz}"]
    for option in options + guest.append:
        arguments += ["--kopt", option]
    if guest.interactive:
        # The kernel's messages go to standard error, by a console of virtme-ng's.
        arguments += ["--kopt", "console=hvc0", "--shell", str(run.script)]
    else:
        arguments += ["--script-sh", f"sh {shlex.quote(str(run.script))}"]
    arguments += ["--qemu-opts", "-no-reboot"]
    if not guest.interactive:
        # virtme-ng throws away what comes by the serial line. A kernel says there what is wrong
        # without virtio too, and from its beginning.
        arguments += ["-set", f"chardev.console.path={run.console}"]
    if guest.icount:
        arguments += ["-icount", "shift=0,sleep=off"]
    elif not kvm:
        # Code translated once is kept; the default is too little for Python.
        arguments += ["-accel", "tcg,thread=multi,tb-size=512"]
    return execute(arguments, guest, run)
