"""What is handed to a guest and what comes back, whichever way its kernel is run.

A guest has the host's file system as its root. It is given a directory, inside the project's
cache, which it can write: there lies the script that it runs, and there it leaves the command's
exit status. So a status that is absent always means that the guest did not get so far.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ci.kernels import CACHE, ROOT

# Exit statuses when it is not the command's own; as coreutils' timeout and container engines do.
TIMED_OUT = 124
GUEST_FAILED = 125

# What a kernel logs of a fault of its own.
KERNEL_FAULT = re.compile(r"BUG: |WARNING: (CPU|possible)|Oops|general protection|refcount_t: ")

# A guest has no environment of its own; these say how a command is to talk and to test.
PASSED_ON = (
    "CI",
    "COLUMNS",
    "FORCE_COLOR",
    "LANG",
    "LC_ALL",
    "LINES",
    "NO_COLOR",
    "TERM",
)
PASSED_ON_PREFIXES = ("PYKCM_", "PYTEST_", "PYTHON", "HYPOTHESIS_")

SCRIPT = """\
#!/bin/sh
export HOME=/root {environment}
export PATH={root}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t bpf bpf /sys/fs/bpf
[ ! -d /sys/kernel/tracing ] || mountpoint -q /sys/kernel/tracing ||
    mount -t tracefs tracefs /sys/kernel/tracing
cd {root}
(exec {command})
status=$?
dmesg >{run}/dmesg
echo $status >{run}/status
exit $status
"""


@dataclass(frozen=True)
class Guest:
    """What to run and with what means.

    memory: megabytes. timeout: seconds from the start of the boot, None for as long as it takes.
    icount: the guest's clock counts instructions (see ci/vm --help).
    interactive: the command's terminal is ours.
    """

    command: list[str]
    cpus: int
    memory: int
    timeout: float | None
    icount: bool
    interactive: bool


class Run:
    """The directory shared with one guest."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.script = directory / "script"
        self.console = directory / "console"

    def write_script(self, command: list[str]) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
        }
        self.script.write_text(
            SCRIPT.format(
                environment=" ".join(f"{n}={shlex.quote(v)}" for n, v in environment.items()),
                root=shlex.quote(str(ROOT)),
                command=shlex.join(command),
                run=shlex.quote(str(self.directory)),
            ),
            encoding="utf-8",
        )
        self.script.chmod(0o755)

    def status(self) -> int | None:
        """The command's exit status; None if the guest did not get so far."""
        try:
            return int((self.directory / "status").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def kernel_complaints(self) -> list[str]:
        """Lines of the guest's kernel log that tell of a fault in the kernel."""
        log = self.directory / "dmesg"
        if not log.exists():
            return []
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if KERNEL_FAULT.search(line)]

    def last_words(self) -> str:
        """The end of what the kernel wrote on its console."""
        if not self.console.exists():
            return ""
        lines = self.console.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line for line in lines[-60:] if line.strip())


@contextmanager
def new_run() -> Iterator[Run]:
    parent = CACHE / "runs"
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield Run(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def copy(source: IO[bytes], target: int) -> None:
    """Copy until the end of a pipe, without waiting for a buffer to be full."""
    while data := os.read(source.fileno(), 65536):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, children.read_text(encoding="ascii").split())
            except OSError:  # it ended meanwhile
                continue
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all its descendants; they are none but the guest's."""
    if process.poll() is None:
        for pid in reversed(tree(process.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.wait()


def execute(arguments: list[str], guest: Guest, run: Run) -> bool:
    """Run the program that is the guest; False if it was ended for having run too long.

    Its output goes through pipes of ours: a guest may open its standard output anew, which
    would truncate a file there.
    """
    if guest.interactive:
        with run.console.open("wb") as console:
            process = subprocess.Popen(arguments, cwd=ROOT, stderr=console)
        pumps = []
    else:
        try:
            stdin = subprocess.DEVNULL if os.isatty(0) else 0
            os.fstat(0)
        except OSError:
            stdin = subprocess.DEVNULL
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout and process.stderr
        pumps = [
            threading.Thread(target=copy, args=(process.stdout, 1), daemon=True),
            threading.Thread(target=copy, args=(process.stderr, 2), daemon=True),
        ]
    for pump in pumps:
        pump.start()
    try:
        process.wait(guest.timeout)
    except subprocess.TimeoutExpired:
        return False
    finally:
        end(process)
        for pump in pumps:
            pump.join(10)
        sys.stdout.flush()
    return True
