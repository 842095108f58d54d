"""A root with a systemd that knows BPF tokens, and the tests that boot it in a guest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ci import output
from ci.apt import machine_archives, make_once, run
from ci.jobs import end_with_parent
from ci.kernels import CACHE, ROOT, KernelUnavailableError, say

HOME = CACHE / "systemd"
KERNEL = "6.12"
# Debian's stable release has systemd 257, and tokens came with 258.
SUITE = "sid"
PACKAGES = ("systemd", "python3", "python3-cffi-backend", "python3-click", "python3-rich", "kmod")
TEST = "tests/kernel/test_systemd.py"


def root() -> Path:
    """A directory with Debian's systemd and what pykcm needs; made once.

    Raises:
        KernelUnavailableError: it can't be made; the text says why.
    """
    made = HOME / "root"
    make_once(made, unpack)
    return made


def unpack(directory: Path) -> None:
    say("making a root with systemd")
    archive, _ = machine_archives()
    include = f"--include={','.join(PACKAGES)}"
    run("debootstrap", "--variant=minbase", include, SUITE, directory, archive)
    shutil.rmtree(directory / "var" / "cache" / "apt", ignore_errors=True)


def main() -> int:
    try:
        where = root()
    except KernelUnavailableError as reason:
        say(str(reason))
        return 1
    command = ["ci/vm", "--kernel", os.environ.get("KERNEL") or KERNEL, "--"]
    command += ["env", f"PYKCM_SYSTEMD_ROOT={where}", "pytest"]
    command += ["-p", "no:hypothesispytest", "-p", "no:xdist", TEST, *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, preexec_fn=end_with_parent(), check=False).returncode


if __name__ == "__main__":
    output.run(main)
