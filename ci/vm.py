"""Run a command on a kernel with KCM, in a guest whose root is the host's file system."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType

from ci import qemu, uml
from ci.guest import GUEST_FAILED, TIMED_OUT, Guest, new_run
from ci.kernels import DEFAULT_SERIES, SERIES, KernelUnavailableError, fetch


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/vm",
        description="Run COMMAND on one of Debian's stock kernels, from the project's root, with "
        "the project's .venv first in PATH. The exit status is COMMAND's; "
        f"{TIMED_OUT} if it took too long, {GUEST_FAILED} if the guest failed. "
        "What COMMAND writes stays if it lies in the project, else it is gone with the guest.",
    )
    parser.add_argument("--kernel", metavar="SERIES", default=DEFAULT_SERIES, choices=SERIES)
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
    if SERIES[parsed.kernel].uml and (parsed.icount or (parsed.cpus or 1) > 1):
        parser.error(f"kernel {parsed.kernel} is a process: one CPU, and no --icount")
    return parsed


def stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    arguments = parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        kernel = fetch(arguments.kernel)
    except KernelUnavailableError as reason:
        say(f"no kernel {arguments.kernel}: {reason}")
        return GUEST_FAILED
    guest = Guest(
        command=arguments.command,
        cpus=1 if arguments.icount else arguments.cpus or min(os.cpu_count() or 1, 4),
        memory=arguments.memory,
        timeout=arguments.timeout,
        icount=arguments.icount,
        interactive=os.isatty(0) and os.isatty(1),
    )
    with new_run() as run:
        run.write_script(guest.command)
        say(f"booting {kernel.release}")
        boot = uml.boot if SERIES[arguments.kernel].uml else qemu.boot
        in_time = boot(kernel, guest, run)
        status = run.status()
        for line in run.kernel_complaints():
            say(f"the kernel said: {line}")
        if status is not None:
            return status
        if not in_time:
            say(f"ended: not done after {arguments.timeout:g} s")
        else:
            say("the guest ended before the command did; the kernel's last words:")
        print(run.last_words(), file=sys.stderr)
        return GUEST_FAILED if in_time else TIMED_OUT


if __name__ == "__main__":
    sys.exit(main())
