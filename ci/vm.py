"""Run a command on a kernel with KCM, in a guest whose root is the host's file system."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ci import built, foreign, output, qemu, uml
from ci.guest import GUEST_FAILED, KERNEL_FAULTED, TIMED_OUT, Guest, Run, new_run
from ci.kernels import DEFAULT_SERIES, Kernel, KernelUnavailableError

TELL_SECONDS = 10


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/vm",
        description="Run COMMAND on a kernel in a guest, from the project's root, with the "
        "project's .venv first in PATH. The exit status is COMMAND's; "
        f"{KERNEL_FAULTED} if it succeeded but the kernel told of a fault, or if the kernel died; "
        f"{TIMED_OUT} if it took too long; {GUEST_FAILED} if the guest did not get so far. "
        "What COMMAND writes stays if it lies in the project, else it is gone with the guest.",
    )
    parser.add_argument(
        "--kernel",
        default=DEFAULT_SERIES,
        help="one of Debian's series, such as 6.12, 7.3-rt or 6.12-arm64 (ci/kernel --list; "
        "default: %(default)s), stock for the newest of this machine's Debian, a bzImage, or the "
        "directory in which a kernel was built, with its modules",
    )
    parser.add_argument(
        "--append",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option for the kernel's command line; may be repeated",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="leave there what the kernel said: dmesg, console; and which it was: kernel",
    )
    parser.add_argument(
        "--icount",
        action="store_true",
        help="the guest's clock counts instructions, on one CPU: times repeat within a few per "
        "cent whatever else the host does (a sleep still counts as time)",
    )
    parser.add_argument("--cpus", type=int, help="default: the host's, at most 4")
    parser.add_argument("--memory", type=int, default=1024, metavar="MB")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="from the boot's start")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    # What follows COMMAND belongs to COMMAND, even without a "--" before it.
    arguments = sys.argv[1:]
    for option in parser._actions:
        if option.dest == "command":
            option.nargs = argparse.REMAINDER
    parsed = parser.parse_args(arguments)
    if parsed.command[:1] == ["--"]:
        del parsed.command[0]
    if not parsed.command:
        parser.error("no COMMAND")
    parsed.kernel = built.meant(parsed.kernel)
    if parsed.keep:
        parsed.keep = built.from_caller(parsed.keep)
        try:
            parsed.keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--keep: {error}")
    return parsed


def stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    arguments = parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        kernel = built.kernel(arguments.kernel)
    except KernelUnavailableError as reason:
        say(f"no kernel {arguments.kernel}: {reason}")
        return GUEST_FAILED
    if kernel.uml and (arguments.icount or (arguments.cpus or 1) > 1):
        say(f"kernel {kernel.name} is a process: one CPU, and no --icount")
        return GUEST_FAILED
    if kernel.lacks:
        say(f"it was built without {' '.join(kernel.lacks)}; see ci/kconfig.fragment")
    guest = Guest(
        command=arguments.command,
        append=arguments.append,
        cpus=1 if arguments.icount else arguments.cpus or min(os.cpu_count() or 1, 4),
        memory=arguments.memory,
        timeout=arguments.timeout,
        icount=arguments.icount,
        interactive=os.isatty(0) and os.isatty(1),
    )
    with new_run() as run:
        run.write_script(guest, kernel)
        say(f"booting {kernel.release}")
        try:
            boot = uml.boot if kernel.uml else foreign.boot if kernel.arch else qemu.boot
            with telling(run):
                in_time = boot(kernel, guest, run)
        finally:
            if arguments.keep:
                keep(run, kernel, arguments.keep)
        return judge(run, None if in_time else f"not done after {arguments.timeout:g} s")


@contextmanager
def telling(run: Run) -> Iterator[None]:
    """Say now and then that a boot goes on, and when it is over: emulated it takes a while."""
    over = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        said = 0
        while not over.wait(0.5):
            seconds = round(time.monotonic() - start)
            if run.began():
                say(f"booted in {seconds} s")
                return
            if seconds >= said + TELL_SECONDS:
                said = seconds
                say(f"still booting, after {seconds} s")

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def keep(run: Run, kernel: Kernel, directory: Path) -> None:
    """Leave what a run said where it stays."""
    (directory / "kernel").write_text(f"{kernel.release} {kernel.image}\n", encoding="utf-8")
    for file in (run.directory / "dmesg", run.console):
        (directory / file.name).unlink(missing_ok=True)
        if file.exists():
            shutil.copy(file, directory)


def judge(run: Run, ended: str | None) -> int:
    """Say what a guest left that was not the command's own, and choose the exit status.

    ended: why it was ended before it ended by itself.
    """
    at_boot, faults = run.faults()
    for line in at_boot:
        say(f"the kernel said before the command began: {line}")
    for line in faults:
        say(f"the kernel said: {line}")
    status = run.status()
    if status is not None:
        if faults and status == 0:
            say("the command succeeded, but its kernel told of a fault")
            return KERNEL_FAULTED
        return status
    if percent := run.wrong_clock():
        say(f"the guest's clock runs at {percent} % of the host's; the command was not run")
        return GUEST_FAILED
    if ended:
        say(f"ended: {ended}; the kernel's last words:")
    elif run.began():
        say("the kernel died while the command ran; its last words:")
    else:
        say("the guest did not get as far as the command; the kernel's last words:")
    print(run.last_words(), file=sys.stderr)
    if check := run.last_check():
        say(f"the last check that began: {check}")
    if ended:
        return TIMED_OUT
    return KERNEL_FAULTED if run.began() else GUEST_FAILED


if __name__ == "__main__":
    output.run(main)
