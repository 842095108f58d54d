"""Inside the guest: load one changed module after another, and tell what the selftest sees.

    python -m ci.mutants_guest SECONDS [[NAME, NEAR, MODULE], ...]

SECONDS is how long the stress lasts; NEAR is a regular expression for the checks to begin with.

Each line of the output is a JSON object: {"bug": name, "event": ...}. By "checks", of which names
match, and "check", one that has ended, it can be seen how far a kernel came that died. "done" has
what was seen.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pykcm import _faults

# What the kernel runs to load a module: the changed one instead of its own.
LOADER = """\
#!/bin/sh
case "$*" in
*net-pf-41* | *kcm*) exec insmod {module} ;;
esac
exec modprobe "$@"
"""
LOADER_PATH = Path("/run/pykcm-modprobe")

RESULT = re.compile(r"(ok|not ok) \d+ (\S+)(?: # (\S*))?")
ENOUGH = 3  # checks that failed; more only take time
LIMIT = 300.0  # seconds for all checks; beyond that something hangs
SEEDS = (1, 2)
JOBS = "3"
REMOVING = 10.0  # seconds


def tell(bug: str, event: str, **more: object) -> None:
    sys.stdout.write(json.dumps({"bug": bug, "event": event, **more}) + "\n")
    sys.stdout.flush()


@dataclass
class Run:
    """A run of `kcm selftest`: the checks that failed, what they said, and whether it hung."""

    bug: str
    failed: dict[str, list[str]] = field(default_factory=dict)
    faulted: set[str] = field(default_factory=set)
    checks: int = 0
    hung: bool = False

    def make(self, *arguments: str, limit: float = LIMIT, told: bool = False) -> Run:
        """
        limit: seconds until it is ended. told: each check's end is told of, as it comes.
        """
        command = ["kcm", "selftest", "--format", "tap", "--expect-known", *arguments]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        timer = threading.Timer(limit, self._give_up, [process])
        timer.start()
        said: list[str] = []
        assert process.stdout
        for line in process.stdout:
            found = RESULT.match(line)
            if not found:
                said.append(line.removeprefix("#").strip())
                continue
            verdict, check, directive = found.groups()
            self.checks += 1
            if told:
                tell(self.bug, "check", name=check)
            if verdict != "ok":
                self.failed[check] = said
                if directive == "ERROR":
                    self.faulted.add(check)
                if len(self.failed) == ENOUGH:
                    process.send_signal(signal.SIGTERM)
            said = []
        process.wait()
        timer.cancel()
        return self

    def _give_up(self, process: subprocess.Popen[str]) -> None:
        self.hung = True
        process.kill()


def look(bug: str, near: str, module: str, stress: float) -> bool:
    """Test with one module; whether the next one can be loaded into this kernel."""
    tell(bug, "began")
    LOADER_PATH.write_text(LOADER.format(module=module), encoding="ascii")
    watch = _faults.Watch()
    subprocess.run(["insmod", module], check=True)
    own = Path("/sys/module/kcm/taint").read_text(encoding="ascii").strip()
    if "O" not in own:
        raise SystemExit("the module that was loaded is not the one that was built")
    seen = (near and checked(bug, near)) or checked(bug)
    by = "selftest"
    if not seen:
        by = "stress"
        for seed in SEEDS:
            run = Run(bug).make("--stress", str(stress), "--seed", str(seed), limit=stress + 150)
            seen |= {f"stress, seed {seed}": lines for lines in run.failed.values()}
            if run.hung:
                seen[f"stress, seed {seed}"] = ["it did not end"]
            if seen:
                break
    removed = remove()
    # What the checks did not see themselves, as of the module's removal.
    faults = watch.faults()
    watch.close()
    if faults and not seen:
        by, seen = "removal", {"the kernel's log": faults}
    elif not removed and not seen:
        by, seen = "removal", {"rmmod": ["the module is still in use after all sockets are closed"]}
    usable = removed and not faults
    tell(bug, "done", by=by if seen else "", seen=seen)
    return usable


def checked(bug: str, near: str = "") -> dict[str, list[str]]:
    """What the checks see: those whose names match, or all.

    One that failed is made again, unless the kernel told of a fault.
    """
    tell(bug, "checks", near=near)
    some = ["--filter", f"/{near}/"] if near else []
    first = Run(bug).make("--jobs", JOBS, *some, told=True)
    if first.hung:
        return {"selftest": [f"it did not end in {LIMIT:g} s"], **first.failed}
    doubtful = [check for check in first.failed if check not in first.faulted]
    if not doubtful or first.faulted:
        return first.failed
    pattern = "/^(" + "|".join(map(re.escape, doubtful)) + ")$/"
    return Run(bug).make("--filter", pattern).failed


def remove() -> bool:
    """Remove the module; what was closed is given up a little later."""
    end = time.monotonic() + REMOVING
    while True:
        try:
            os.close(os.open("/sys/module/kcm/refcnt", os.O_RDONLY))
        except FileNotFoundError:
            return True
        if not subprocess.run(["rmmod", "kcm"], check=False, stderr=subprocess.DEVNULL).returncode:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def main() -> int:
    stress, modules = float(sys.argv[1]), json.loads(sys.argv[2])
    LOADER_PATH.touch(0o755)
    Path("/proc/sys/kernel/modprobe").write_text(str(LOADER_PATH), encoding="ascii")
    for bug, near, module in modules:
        if not look(bug, near, module, stress):
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
