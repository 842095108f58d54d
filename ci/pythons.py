"""The unit tests on other Pythons than that of .venv: ci/pythons [VERSION...]

Without a version: on all that this machine has. One that is named and is not here is fetched from
Debian, if it has that. pykcm's compiled part uses the limited API: the wheel is installed and
imported on each CPython, and what was built for .venv is what the tests import. PyPy and
free-threaded Pythons build their own from the source distribution. The packages that the tests need
go to a virtual environment for each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from ci import jobs, output
from ci.apt import UnavailableError, run
from ci.interpreters import VERSIONS, Interpreter, fetch, find
from ci.jobs import Job
from ci.kernels import CACHE, ROOT
from ci.output import say
from ci.testing import REPORTS, UNIT_TESTS, executed

PYTHONS = CACHE / "pythons"

# What does not depend on who runs it: how the code is formatted, typed, documented and built, and
# what the kernel makes of programs.
ALIKE = (
    *("build", "built", "documents", "framing_batch", "framing_fuzz"),
    *("quality", "release", "typing"),
)

LOOK = """
import sys, pykcm, pykcm._native
assert pykcm.__file__.startswith(sys.prefix), pykcm.__file__
assert pykcm._native.lib.AF_KCM == 41
"""
LOOK_FAST = LOOK + "import pykcm._fastpath\n"


def build(kind: str, source: Path) -> Path:
    """The source distribution or the wheel of a directory, built by .venv's Python."""
    directory = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=PYTHONS))
    call = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    run(sys.executable, "-c", call, directory, cwd=source)
    (file,) = directory.iterdir()
    made = PYTHONS / file.name
    file.rename(made)
    directory.rmdir()
    return made


def unpacked(version: str) -> Path:
    """The source distribution of what lies here, unpacked: nothing else gets into a test."""
    source = PYTHONS / f"source-{version}"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    run("tar", "-xf", build("sdist", ROOT), "-C", source, "--strip-components=1")
    return source


def environment(chosen: Interpreter, package: Path) -> Path:
    """A virtual environment with the package and what the tests need; its python.

    Raises:
        CalledProcessError: the package could not be installed or imported.
    """
    home = PYTHONS / chosen.version
    python = home / "bin" / "python"
    pip = [str(python), *([str(chosen.pip / "pip")] if chosen.pip else ["-m", "pip"])]
    pip += ["install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]
    stamp = home / "set-up"
    wanted = sha256((ROOT / "pyproject.toml").read_bytes() + chosen.python.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="ascii") != wanted:
        bare = ["--without-pip"] if chosen.pip else []
        subprocess.run([chosen.python, "-m", "venv", "--clear", *bare, home], check=True)
        subprocess.run([*pip, "setuptools", f"{package}[dev]"], check=True)
        stamp.write_text(wanted, encoding="ascii")
    own = [*pip, "--force-reinstall", "--no-deps", "--no-build-isolation", str(package)]
    subprocess.run(own, check=True)
    look = LOOK_FAST if chosen.stable_abi else LOOK
    subprocess.run([python, "-I", "-c", look], check=True)
    return python


def job(chosen: Interpreter) -> Job:
    """The unit tests on one Python, with no report of an earlier run."""
    report(chosen.version).unlink(missing_ok=True)
    source = unpacked(chosen.version)
    if chosen.stable_abi:
        command = [str(environment(chosen, build("wheel", source)))]
    else:
        python = str(environment(chosen, source))
        # The tests import what lies where they do, and here that is another Python's.
        run(python, "setup.py", "--quiet", "build_ext", "--inplace", cwd=source)
        command = ["env", "-C", str(source), python]
        if chosen.version.endswith("t"):
            # Importing pykcm turns the GIL on there, with a warning, which fails a test.
            command[-1:-1] = ["PYTHON_GIL=1"]
    command += ["-m", *UNIT_TESTS, "--quiet"]
    command += [f"--ignore=tests/unit/test_{name}.py" for name in ALIKE]
    command += [f"--junitxml={report(chosen.version)}"]
    return Job(f"Python {chosen.version}", tuple(command))


def report(version: str) -> Path:
    return REPORTS / f"unit-{version}.xml"


def main() -> int:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & {*arguments}:
        say(f"{(__doc__ or '').strip()}\n\nVersions: {', '.join(VERSIONS)}")
        return 0
    REPORTS.mkdir(exist_ok=True)
    PYTHONS.mkdir(parents=True, exist_ok=True)
    mine = "{}.{}".format(*sys.version_info)  # that is the one of `make test`
    asked = arguments or [version for version in VERSIONS if version != mine]
    if unknown := {*asked} - {*VERSIONS}:
        print(f"pythons: no {' '.join(sorted(unknown))}: {', '.join(VERSIONS)}", file=sys.stderr)
        return 2
    todo: dict[str, Job] = {}
    summary = []
    failed = False
    for version in asked:
        try:
            chosen = find(version)
            if chosen or arguments:
                todo[version] = job(chosen or fetch(version))
            else:
                summary.append(f"Python {version}: not on this machine; name it to have it fetched")
        except (UnavailableError, subprocess.CalledProcessError) as reason:
            summary.append(f"Python {version}: {reason}")
            failed = True
    statuses = jobs.run(list(todo.values()), os.cpu_count() or 1)
    for version, status in zip(todo, statuses, strict=True):
        tests = executed(report(version)) if report(version).exists() else 0
        good = status == 0 and tests > 0
        failed = failed or not good
        result = "passed" if good else f"failed with exit status {status}"
        summary.append(f"Python {version}: {result}, {tests} tests were run")
    say("\n" + "\n".join(summary))
    return int(failed)


if __name__ == "__main__":
    output.run(main)
