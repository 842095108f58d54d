"""Known bugs put back into KCM, one at a time, and what sees them.

Each of ci/bugs.py is built into a module against the kernel's headers and loaded in a guest. `kcm
selftest` runs there, the checks that are nearest to the bug first, and if none sees it `kcm
selftest --stress`. The module as it is comes before: what that fails tells nothing.

What was found stays in reports/; `--only` does one of them again. Once all have been tried, the
table goes to docs/mutants.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci import built, modules, output
from ci.bugs import BUGS, KCM, PlaceMissingError
from ci.guest import KERNEL_FAULTED, TIMED_OUT
from ci.jobs import end_with_parent
from ci.kernels import CACHE, NAME, ROOT, Kernel, KernelUnavailableError
from ci.output import say
from ci.testing import REPORTS
from pykcm import _faults
from pykcm.selftest.check import every
from pykcm.selftest.checks import GROUPS

DOCUMENT = ROOT / "docs" / "mutants.md"
KERNEL = "6.12"
UNCHANGED = "unchanged"
STRESS = "stress"
TIMEOUT = 3000  # seconds for one boot with all that is done in it

# A fault that is not only a warning ends the kernel: what comes after it tells nothing. Freed
# memory is overwritten, so that its use is seen.
OPTIONS = ("oops=panic", "slub_debug=FZP")

Event = dict[str, Any]
NAMES = (UNCHANGED, *(bug.name for bug in BUGS))


@dataclass
class Finding:
    """What came of one bug.

    name: the bug's. by: "selftest", "stress", "removal" (of the module), or empty if nothing saw
    it. seen: what saw it, each with a line of what it said. problem: why it was not tried.
    """

    name: str
    by: str = ""
    seen: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def in_short(fault: str) -> str:
    """A line of the kernel's log without what is another one each time: CPU, process, directory."""
    return re.sub(r"CPU: \d+ PID: \d+ at (?:\S*/)?(?=\w+\.[ch]:)", "", fault)


def in_a_line(lines: list[str]) -> str:
    """The line of a check's report that says most."""
    faults = _faults.faults(lines)
    for line in faults:
        if "cut here" not in line and not line.startswith("the kernel"):
            return in_short(_faults.message(line))
    words = [line for line in lines if line.startswith(("expected: ", "seen: "))]
    return ", ".join(words) or next(iter(faults or lines[-1:]), "")


def build(kernel: Kernel, names: list[str]) -> tuple[dict[str, Path], list[Finding]]:
    """The modules by the bugs' names, and why there is none of some.

    Raises:
        KernelUnavailableError: none can be built for this kernel.
    """
    where = modules.tree(kernel)
    home = CACHE / "mutants" / kernel.release
    made, problems = {}, []
    for bug in (None, *BUGS):
        name = bug.name if bug else UNCHANGED
        if name not in names:
            continue
        parser = bug is None or bug.file != KCM
        try:
            made[name] = modules.build(where, bug, parser, home / name)
        except PlaceMissingError as reason:
            problems.append(Finding(name, problem=str(reason)))
    return made, problems


class Guest:
    """A guest that is given modules, and what it tells.

    Attributes:
        status: its exit status, once it has ended.
    """

    def __init__(self, asked: argparse.Namespace, todo: dict[str, Path], keep: Path) -> None:
        near = {bug.name: bug.near for bug in BUGS}
        given = [[name, near.get(name, ""), str(module)] for name, module in todo.items()]
        command = ["ci/vm", "--kernel", asked.kernel, "--memory", str(asked.memory)]
        command += ["--timeout", str(TIMEOUT), "--keep", str(keep)]
        for option in OPTIONS:
            command += ["--append", option]
        command += ["--", "python", "-m", "ci.mutants_guest", str(asked.stress), json.dumps(given)]
        self.status = 0
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent(),  # noqa: PLW1509  # no other thread is here
        )

    def events(self) -> Iterator[Event]:
        assert self._process.stdout
        try:
            for line in self._process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
                else:
                    print(line, end="", file=sys.stderr)
        finally:
            self._process.terminate()
            self.status = self._process.wait()


def last_words(keep: Path) -> str:
    """Why a kernel died, in a line."""
    console = keep / "console"
    text = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
    lines = text.splitlines()
    fatal = [line for line in _faults.faults(lines) if "cut here" not in line]
    telling = [line for line in fatal if not re.search(r"Kernel panic|WARNING:", line)]
    return _faults.message((telling or fatal or ["it told nothing"])[0])


def try_all(
    asked: argparse.Namespace, todo: dict[str, Path], found: Callable[[Finding], None]
) -> None:
    """Boot as often as it takes, and hand on what came of each module.

    Raises:
        KernelUnavailableError: a guest ended without having tried a module.
    """
    left = dict(todo)
    while left:
        with tempfile.TemporaryDirectory() as scratch:
            guest = Guest(asked, left, Path(scratch))
            current, checks, before = "", list[str](), len(left)
            for event in guest.events():
                current = event["bug"]
                if event["event"] == "began":
                    checks = ["loading"]
                elif event["event"] == "checks":
                    checks = [name for name in every(GROUPS) if re.search(event["near"], name)]
                elif event["event"] == "check":
                    # Several are made at once, but told of in their order.
                    checks = checks[checks.index(event["name"]) + 1 :]
                else:
                    seen = {name: in_a_line(lines) for name, lines in event["seen"].items()}
                    found(Finding(current, event["by"], seen))
                    del left[current]
                    current = ""
            if current and guest.status in (KERNEL_FAULTED, TIMED_OUT):
                died = guest.status == KERNEL_FAULTED
                words = last_words(Path(scratch)) if died else f"not done after {TIMEOUT} s"
                by, what = ("selftest", checks[0]) if checks else (STRESS, STRESS)
                found(Finding(current, by, {what: f"the kernel died: {words}"}))
                del left[current]
            elif len(left) == before:
                raise KernelUnavailableError(f"a guest ended early, with status {guest.status}")


class Findings:
    """What came of each bug on a kernel, kept in a file."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._file = REPORTS / f"mutants-{kernel.release}.json"
        self.found: dict[str, Finding] = {}

    def load(self) -> None:
        """Take those of earlier runs."""
        if self._file.exists():
            found = json.loads(self._file.read_text(encoding="utf-8"))
            self.found = {each["name"]: Finding(**each) for each in found}

    def add(self, finding: Finding) -> None:
        self.found[finding.name] = finding
        self._file.parent.mkdir(exist_ok=True)
        self._file.write_text(json.dumps(self.as_json(), indent=2), encoding="utf-8")
        what = finding.problem or f"seen by {'; '.join(finding.seen) or 'nothing'}"
        print(f"mutants: {finding.name}: {what}", file=sys.stderr, flush=True)

    def as_json(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(self.found[name]) for name in NAMES if name in self.found]

    def count(self, file: str = "") -> str:
        """How many of the bugs, or of those of a file, are seen."""
        bugs = [bug for bug in BUGS if bug.name in self.found and file in ("", bug.file)]
        tried = [found for bug in bugs if not (found := self.found[bug.name]).problem]
        return f"{sum(bool(finding.seen) for finding in tried)} of {len(tried)}"

    def markdown(self) -> str:
        """The table as a document."""
        lines = [
            "# Bugs put back, and what sees them",
            "",
            "Written by `make mutants`. Each bug is one that KCM or the stream parser has had. A",
            "small change ([`ci/bugs.py`](../ci/bugs.py)) puts it back into Debian's source. The",
            "module is built against Debian's headers and loaded in a guest, and `kcm selftest`",
            "runs there, the checks nearest to the bug first, until some fail. Where none does,",
            "`kcm selftest --stress` follows. A check that fails is made again, and counts if it",
            "fails again or if the kernel told of a fault of its own. Where the kernel died, what",
            "is named is the first of the three that were made just then. Its command line",
            f"has `{' '.join(OPTIONS)}`, so that the use of freed memory is seen.",
            "",
            "The stream parser is built into Debian's kernels. For its bugs a changed copy is",
            "linked into the module, which then uses that one.",
            "",
            f"On {self.kernel.release}, {self.count()} are seen, of KCM's own {self.count(KCM)}.",
            "",
            "| bug | what it does | fixed | seen by |",
            "|---|---|---|---|",
        ]
        for bug in BUGS:
            finding = self.found[bug.name]
            seen = "<br>".join(finding.seen) or finding.problem or "nothing"
            fixed = f"{bug.year}: {bug.fix}"
            lines.append(f"| `{bug.name}` in {bug.function}() | {bug.does} | {fixed} | {seen} |")
        lines += ["", "## What was seen", ""]
        for bug in BUGS:
            for what, said in self.found[bug.name].seen.items():
                lines.append(f"- `{bug.name}`, {what}: {said}")
        left = [bug for bug in BUGS if not self.found[bug.name].seen]
        unseen = [bug for bug in left if not self.found[bug.name].problem]
        if unseen:
            lines += ["", "## What is not seen, and why", ""]
            lines += [f"- `{bug.name}`: {bug.unseen or 'not known'}" for bug in unseen]
        return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ci/mutants", description=__doc__)
    parser.add_argument(
        "--kernel",
        default=KERNEL,
        help="a series, or the directory in which a kernel was built (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=NAMES,
        help="only this bug (see --list); may be repeated",
    )
    parser.add_argument("--stress", type=float, default=12.0, metavar="SECONDS")
    parser.add_argument("--memory", type=int, default=1024, metavar="MB", help="of the guest")
    parser.add_argument("--list", action="store_true", help="the bugs' names")
    parser.add_argument("--json", action="store_true", help="what was found as a JSON document")
    parsed = parser.parse_args()
    parsed.kernel = built.meant(parsed.kernel)
    return parsed


def main() -> int:
    arguments = parse()
    if arguments.list:
        for bug in BUGS:
            say(f"{bug.name}: {bug.does}")
        return 0
    names = arguments.only or list(NAMES)
    try:
        kernel = built.kernel(arguments.kernel)
        findings = Findings(kernel)
        if arguments.only:
            findings.load()
        made, problems = build(kernel, names)
        for finding in problems:
            findings.add(finding)
        try_all(arguments, made, findings.add)
    except KernelUnavailableError as reason:
        print(f"mutants: {arguments.kernel}: {reason}", file=sys.stderr)
        return 1
    return report(findings, names, arguments)


def report(findings: Findings, names: list[str], arguments: argparse.Namespace) -> int:
    """Say what was found; the exit status."""
    if arguments.json:
        document = {"kernel": findings.kernel.release, "bugs": findings.as_json()}
        say(json.dumps(document, indent=2))
    else:
        for name in names:
            finding = findings.found[name]
            say(f"{name}: {finding.problem or finding.by or 'not seen'}")
            for what, said in finding.seen.items():
                say(f"    {what}: {said}")
        say(f"{findings.count()} bugs are seen on {findings.kernel.release}")
    if {*NAMES} <= {*findings.found} and NAME.fullmatch(arguments.kernel):
        DOCUMENT.write_text(findings.markdown(), encoding="utf-8")
        print(f"mutants: written to {DOCUMENT.relative_to(ROOT)}", file=sys.stderr)
    unchanged = findings.found.get(UNCHANGED)
    if unchanged and unchanged.seen:
        print(f"mutants: the module as it is fails {'; '.join(unchanged.seen)}", file=sys.stderr)
        return 1
    return int(any(findings.found[name].problem for name in names))


if __name__ == "__main__":
    output.run(main)
