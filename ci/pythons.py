"""The unit tests on every other Python from 3.10 on that this machine has: ci/pythons [VERSION...]

pykcm's compiled part uses the limited API: the one that was built for .venv serves them all, and is
what these runs import. The packages that the tests need go to a virtual environment for each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from ci import jobs, output
from ci.jobs import Job
from ci.kernels import CACHE, ROOT
from ci.output import say
from ci.testing import REPORTS, UNIT_TESTS, executed

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

# What does not depend on who runs it: how the code is formatted, typed, documented and built, and
# what the kernel makes of programs.
ALIKE = (
    *("build", "built", "documents", "framing_batch", "framing_fuzz"),
    *("quality", "release", "typing"),
)


def interpreter(version: str) -> str | None:
    """A working python of this version, from PATH or pyenv's collection."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}")]
    candidates += [str(path) for path in pyenv.glob(f"{version}.*/bin/python")]
    look = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        # pyenv puts commands into PATH that only say that they are not chosen.
        answer = subprocess.run(
            [candidate, "-c", look], capture_output=True, text=True, check=False
        )
        if answer.stdout.strip() == version:
            return candidate
    return None


def environment(version: str, python: str) -> Path:
    """A virtual environment with the packages that the tests need; its python."""
    home = CACHE / "pythons" / version
    stamp = home / "set-up"
    wanted = sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="ascii") != wanted:
        subprocess.run([python, "-m", "venv", "--clear", home], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"{ROOT}[dev]"], check=True)
        stamp.write_text(wanted, encoding="ascii")
    return home / "bin" / "python"


def job(version: str, python: str) -> Job:
    """The unit tests on one Python, with no report of an earlier run."""
    report(version).unlink(missing_ok=True)
    command = [str(environment(version, python)), "-m", *UNIT_TESTS, "--quiet"]
    command += [f"--ignore=tests/unit/test_{name}.py" for name in ALIKE]
    command += [f"--junitxml={report(version)}"]
    return Job(f"Python {version}", tuple(command))


def report(version: str) -> Path:
    return REPORTS / f"unit-{version}.xml"


def main() -> int:
    REPORTS.mkdir(exist_ok=True)
    mine = "{}.{}".format(*sys.version_info)  # that is the one of `make test`
    asked = sys.argv[1:] or [version for version in VERSIONS if version != mine]
    if unknown := {*asked} - {*VERSIONS}:
        print(f"pythons: no {' '.join(unknown)}: {', '.join(VERSIONS)}", file=sys.stderr)
        return 2
    found = {version: interpreter(version) for version in asked}
    there = {version: python for version, python in found.items() if python}
    statuses = jobs.run([job(*pair) for pair in there.items()], os.cpu_count() or 1)
    summary = [
        f"Python {version}: not on this machine" for version in found if version not in there
    ]
    failed = False
    for version, status in zip(there, statuses, strict=True):
        tests = executed(report(version)) if report(version).exists() else 0
        good = status == 0 and tests > 0
        failed = failed or not good
        result = "passed" if good else f"failed with exit status {status}"
        summary.append(f"Python {version}: {result}, {tests} tests were run")
    say("\n" + "\n".join(summary))
    return int(failed)


if __name__ == "__main__":
    output.run(main)
