"""What is handed to a guest and what comes back, whichever way its kernel is run.

A guest has the host's file system as its root. It is given a directory, inside the project's
cache, which it can write: there lies the script that it runs, and there it leaves the command's
exit status. So a status that is absent always means that the guest did not get so far.
"""

from __future__ import annotations

import os
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

from ci.kernels import CACHE, ROOT, Kernel
from pykcm import _faults

# Exit statuses when it is not the command's own. `git bisect run` takes the last one for a kernel
# that can't be tested, and the others for a bad one.
KERNEL_FAULTED = 123  # the command succeeded but the kernel told of a fault, or the kernel died
TIMED_OUT = 124
GUEST_FAILED = 125  # the guest did not get as far as the command

# Emulated. Lockups and stalls are told of (docs/test-my-kernel.md), but a busy host is no
# reason. There is no performance counter for the one that an NMI finds.
PATIENCE_OPTIONS = (
    "nmi_watchdog=0",
    "watchdog_thresh=30",
    "rcupdate.rcu_cpu_stall_timeout=60",
)

# Written to the guest's kernel log when the command begins.
BEGIN = "pykcm: the command begins"

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
{ports}
export HOME=/root {environment}
export PATH={first}{root}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t bpf bpf /sys/fs/bpf
[ ! -d /sys/kernel/tracing ] || grep -q ' /sys/kernel/tracing ' /proc/mounts ||
    mount -t tracefs tracefs /sys/kernel/tracing
# A task that hangs in the kernel is told of before a test's time is over.
for setting in timeout_secs=60 check_interval_secs=10; do
    file=/proc/sys/kernel/hung_task_${{setting%=*}}
    [ ! -e $file ] || echo ${{setting#*=}} >$file
done
cd {root}
{clock}
cat /proc/sys/kernel/tainted >{run}/taint
echo "{begin}" >/dev/kmsg
(exec {command})
status=$?
dmesg >{run}/dmesg
cat /proc/sys/kernel/tainted >>{run}/taint
echo $status >{run}/status
exit $status
"""

# Where virtio-serial is late, as on a busy host, virtme-ng runs the script on the kernel's console,
# and nobody would see what the command says.
PORTS = """\
port() {
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat $name 2>/dev/null)" != virtme.$1 ] || basename ${name%/name}
    done
}
case $(readlink /proc/self/fd/2) in
*/vport*) ;;
*)
    left=60
    until [ "$(port stdin)" ] && [ "$(port stdout)" ] && [ "$(port stderr)" ]; do
        if [ $left = 0 ]; then
            echo "pykcm: after 60 s there are no virtio-serial ports for the command's output"
            exit
        fi
        left=$((left - 1))
        sleep 1
    done
    exec </dev/$(port stdin) >/dev/$(port stdout) 2>/dev/$(port stderr)
    ;;
esac"""

# A file that the guest writes has the host's time. A short look is enough unless it seems wrong; on
# a busy host it may be a little wrong in either direction.
CLOCK = """\
look() {{
    echo >{run}/time
    read -r guest _ </proc/uptime
    host=$(stat -c %.3Y {run}/time)
}}
percent() {{
    look
    before="$guest $host"
    sleep $1
    look
    echo "$before $guest $host" | awk '{{ printf "%d", 100 * ($3 - $1) / ($4 - $2 + 1e-3) }}'
}}
right() {{ [ $percent -ge 70 ] && [ $percent -le 140 ]; }}
percent=$(percent 0.3)
right || percent=$(percent 3)
right || {{ echo $percent >{run}/clock; exit; }}"""


@dataclass(frozen=True)
class Guest:
    """What to run and with what means.

    append: options for the kernel's command line. memory: megabytes. timeout: seconds from the
    start of the boot, None for as long as it takes.
    icount: the guest's clock counts instructions (see ci/vm --help).
    interactive: the command's terminal is ours.
    """

    command: list[str]
    append: list[str]
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

    def write_script(self, guest: Guest, kernel: Kernel) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
        }
        run = shlex.quote(str(self.directory))
        self.script.write_text(
            SCRIPT.format(
                # A terminal's output does go to a console, and other machines' init is ours.
                ports="" if guest.interactive or kernel.arch or kernel.uml else PORTS,
                environment=" ".join(f"{n}={shlex.quote(v)}" for n, v in environment.items()),
                root=shlex.quote(str(ROOT)),
                first="/usr/local/bin:" if kernel.arch else "",
                # A clock that counts instructions has nothing to do with the host's; only x86's has
                # to be measured before it is right.
                clock="" if guest.icount or kernel.arch else CLOCK.format(run=run),
                begin=BEGIN,
                command=shlex.join(guest.command),
                run=run,
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

    def wrong_clock(self) -> str:
        """At how many per cent of its speed the guest's clock runs; empty if it runs right."""
        try:
            return (self.directory / "clock").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def began(self) -> bool:
        """Whether the guest got as far as the command."""
        return (self.directory / "taint").exists()

    def faults(self) -> tuple[list[str], list[str]]:
        """What the kernel told of faults of its own, before the command and since it began."""
        log = self.directory / "dmesg"
        if not log.exists():
            log = self.console
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        begin = next((n for n, line in enumerate(lines) if line.endswith(BEGIN)), 0)
        try:
            taint = (self.directory / "taint").read_text(encoding="ascii").split()
        except FileNotFoundError:
            taint = []
        new = _faults.new_taints(int(taint[0]), int(taint[-1])) if taint else []
        return (
            _faults.faults(lines[:begin]),
            _faults.faults(lines[begin:]) + [f"it became tainted: {name}" for name in new],
        )

    def last_check(self) -> str:
        """The selftest's check that began last before the console ends; empty if none ran then."""
        if not self.console.exists():
            return ""
        text = self.console.read_text(encoding="utf-8", errors="replace")
        check = text.rpartition(_faults.NOTE)[2].split() if _faults.NOTE in text else []
        return check[0] if check and check[0] != _faults.NONE else ""

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


class Pump(threading.Thread):
    """Copies from a pipe of a process until its end, without waiting for a buffer to be full.

    Attributes:
        error: what kept it from writing; the process was ended then.
    """

    def __init__(self, process: subprocess.Popen[bytes], source: IO[bytes], target: int) -> None:
        super().__init__(daemon=True)
        self.error: OSError | None = None
        self._process = process
        self._source = source
        self._target = target
        self.start()

    def run(self) -> None:
        while data := os.read(self._source.fileno(), 65536):
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(self._target, view) :]
            except OSError as error:
                self.error = error
                end(self._process)
                return


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

    Raises:
        OSError: its output could not be written.
    """
    pumps = []
    if guest.interactive:
        with run.console.open("wb") as console:
            process = subprocess.Popen(arguments, cwd=ROOT, stderr=console)
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
        pumps = [Pump(process, process.stdout, 1), Pump(process, process.stderr, 2)]
    try:
        process.wait(guest.timeout)
    except subprocess.TimeoutExpired:
        return False
    finally:
        end(process)
        for pump in pumps:
            pump.join(10)
        sys.stdout.flush()
    for pump in pumps:
        if pump.error:
            raise pump.error
    return True
