"""Known bugs put back into KCM, one at a time, and what sees them.

Each of ci/bugs.py is built into a module against the kernel's headers and loaded in a guest; then
`kcm selftest` runs there, and if that sees nothing `kcm selftest --stress`. The module as it is comes
first: what fails with that tells nothing. The table goes to the screen, and that of all
bugs to docs/mutants.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci import built, modules, output
from ci.bugs import BUGS, KCM, Bug, PlaceMissingError
from ci.kernels import CACHE, NAME, ROOT, Kernel, KernelUnavailableError
from ci.output import say
from pykcm import _faults
from pykcm.selftest.check import every
from pykcm.selftest.checks import GROUPS

DOCUMENT = ROOT / "docs" / "mutants.md"
KERNEL = "6.12"
UNCHANGED = "unchanged"
TIMEOUT = 3000  # seconds for one boot with all that is done in it

# A fault that is not only a warning ends the kernel: what comes after it tells nothing. Freed
# memory is overwritten, so that its use is seen.
OPTIONS = ("oops=panic", "slub_debug=FZP")

Event = dict[str, Any]


@dataclass
class Finding:
    """What came of one bug.

    name: the bug's. by: "selftest", "stress", "removal" (of the module), or empty if nothing saw
    it. seen: what saw it, each with a line of what it said. problem: why it was not tried.
    """

    name: str
    by: str = ""
    seen: dict[str, str] = dataclasses.field(default_factory=dict)
    problem: str = ""


def said_in_a_line(lines: list[str]) -> str:
    """The line of a check's report that says most."""
    faults = _faults.faults(lines)
    for line in faults:
        if "cut here" not in line and not line.startswith("the kernel"):
            return _faults.message(line)
    words = [line for line in lines if line.startswith(("expected: ", "seen: "))]
    return ", ".join(words) or next(iter(faults or lines[-1:]), "")


def build(kernel: Kernel, bugs: list[Bug]) -> tuple[dict[str, Path], dict[str, str]]:
    """The modules by the bugs' names, and why there is none of some.

    Raises:
        KernelUnavailableError: none can be built for this kernel.
    """
    where = modules.tree(kernel)
    home = CACHE / "mutants" / kernel.release
    made = {UNCHANGED: modules.build(where, None, True, home / UNCHANGED)}
    problems = {}
    for bug in bugs:
        try:
            made[bug.name] = modules.build(where, bug, bug.file != KCM, home / bug.name)
        except (PlaceMissingError, KernelUnavailableError) as reason:
            problems[bug.name] = str(reason)
    return made, problems


def boot(kernel: str, stress: float, todo: dict[str, Path], keep: Path) -> Iterator[Event]:
    """Boot a guest and yield what it tells, until it ends."""
    command = ["ci/vm", "--kernel", kernel, "--timeout", str(TIMEOUT), "--keep", str(keep)]
    for option in OPTIONS:
        command += ["--append", option]
    command += ["--", "python", "-m", "ci.mutants_guest", str(stress)]
    command += [f"{name}={module}" for name, module in todo.items()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
            else:
                print(line, end="", file=sys.stderr)
    finally:
        process.terminate()
        process.wait()


def last_words(keep: Path) -> str:
    """Why a kernel died, in a line."""
    console = keep / "console"
    text = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
    lines = text.splitlines()
    fatal = [line for line in _faults.faults(lines) if "cut here" not in line]
    telling = [line for line in fatal if not re.search(r"Kernel panic|WARNING:", line)]
    return _faults.message((telling or fatal or ["it told nothing"])[0])


def next_check(last: str) -> str:
    """The check that was made when a kernel died, by the last one whose result came."""
    names = list(every(GROUPS))
    if last not in names:
        return names[0] if not last else "stress"
    at = names.index(last) + 1
    return names[at] if at < len(names) else "stress"


def try_all(kernel: str, stress: float, todo: dict[str, Path]) -> list[Finding]:
    """Boot as often as it takes; a finding for each module.

    Raises:
        KernelUnavailableError: a guest did not get as far as a module.
    """
    findings = []
    left = dict(todo)
    while left:
        with tempfile.TemporaryDirectory() as scratch:
            keep = Path(scratch)
            current, last = "", ""
            for event in boot(kernel, stress, left, keep):
                current = event["bug"]
                if event["event"] == "began":
                    last = ""
                elif event["event"] == "check":
                    last = event["name"]
                else:
                    found = {name: said_in_a_line(lines) for name, lines in event["seen"].items()}
                    findings.append(Finding(current, event["by"], found))
                    tell(findings[-1])
                    del left[current]
                    current = ""
            if current:
                check = next_check(last)
                by = "stress" if check == "stress" else "selftest"
                words = last_words(keep)
                findings.append(Finding(current, by, {check: f"the kernel died: {words}"}))
                tell(findings[-1])
                del left[current]
            elif len(left) == len(todo) - len(findings) and not findings:
                raise KernelUnavailableError("the guest did not get as far as a module")
    return findings


def tell(finding: Finding) -> None:
    what = "; ".join(finding.seen) or "nothing"
    print(f"mutants: {finding.name}: seen by {what}", file=sys.stderr, flush=True)


def markdown(kernel: Kernel, findings: list[Finding]) -> str:
    """The table as a document."""
    bugs = {bug.name: bug for bug in BUGS}
    tried = [finding for finding in findings if finding.name in bugs and not finding.problem]
    own = [finding for finding in tried if bugs[finding.name].file == KCM]
    lines = [
        "# Bugs put back, and what sees them",
        "",
        "Written by `make mutants`. Each bug is one that KCM or the stream parser has had. A small",
        "change ([`ci/bugs.py`](../ci/bugs.py)) puts it back into Debian's source; the module is",
        "built against Debian's headers and loaded in a guest, and `kcm selftest` runs there; where",
        "that sees nothing, `kcm selftest --stress`. A check that fails is made again and counts if",
        "it fails again, or if the kernel told of a fault of its own. The kernel's",
        f"command line has `{' '.join(OPTIONS)}`.",
        "",
        "The stream parser is built into Debian's kernels. For its bugs a changed copy of it is",
        "linked into the module, which then uses that one.",
        "",
        f"On {kernel.release}, {count(tried)} are seen; of KCM's own, {count(own)}.",
        "",
        "| bug | what it does | fixed | seen by |",
        "|---|---|---|---|",
    ]
    for finding in findings:
        if finding.name not in bugs:
            continue
        bug = bugs[finding.name]
        seen = (
            "<br>".join(f"`{name}`" for name in finding.seen) or f"{finding.problem or 'nothing'}"
        )
        place = f"`{bug.name}` ({bug.function})"
        lines.append(f"| {place} | {bug.does} | {bug.year}: {bug.fix} | {seen} |")
    said = [
        f"- `{finding.name}`: {name}: {text}"
        for finding in findings
        for name, text in finding.seen.items()
    ]
    lines += ["", "## What they said", "", *said]
    unseen = [bugs[finding.name] for finding in tried if not finding.seen]
    if unseen:
        lines += ["", "## What is not seen, and why", ""]
        lines += [f"- `{bug.name}`: {bug.unseen or 'the reason is not known'}" for bug in unseen]
    return "\n".join(lines) + "\n"


def count(findings: list[Finding]) -> str:
    return f"{sum(bool(finding.seen) for finding in findings)} of {len(findings)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/mutants", description=__doc__)
    parser.add_argument(
        "--kernel",
        default=KERNEL,
        help="a series, or the directory in which a kernel was built (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        choices=[bug.name for bug in BUGS],
        help="only this bug; may be repeated",
    )
    parser.add_argument("--stress", type=float, default=12.0, metavar="SECONDS")
    parser.add_argument("--list", action="store_true", help="the bugs' names")
    parser.add_argument("--json", action="store_true", help="the findings as a JSON document")
    arguments = parser.parse_args()
    if arguments.list:
        for bug in BUGS:
            say(f"{bug.name}: {bug.does}")
        return 0
    bugs = [bug for bug in BUGS if not arguments.only or bug.name in arguments.only]
    try:
        kernel = built.kernel(arguments.kernel)
        made, problems = build(kernel, bugs)
        findings = try_all(arguments.kernel, arguments.stress, made)
    except KernelUnavailableError as reason:
        print(f"mutants: {arguments.kernel}: {reason}", file=sys.stderr)
        return 1
    findings += [Finding(name, problem=reason) for name, reason in problems.items()]
    order = [UNCHANGED, *(bug.name for bug in BUGS)]
    findings.sort(key=lambda finding: order.index(finding.name))
    report(kernel, findings, arguments)
    unsound = [f for f in findings if f.name == UNCHANGED and f.seen]
    if unsound:
        print(f"mutants: the unchanged module fails {', '.join(unsound[0].seen)}", file=sys.stderr)
    return 1 if unsound or problems else 0


def report(kernel: Kernel, findings: list[Finding], arguments: argparse.Namespace) -> None:
    if arguments.json:
        document = {"kernel": kernel.release, "bugs": [dataclasses.asdict(f) for f in findings]}
        say(json.dumps(document, indent=2))
    else:
        for finding in findings:
            say(f"{finding.name}: {finding.problem or finding.by or 'not seen'}")
            for name, text in finding.seen.items():
                say(f"    {name}: {text}")
        tried = [f for f in findings if f.name != UNCHANGED and not f.problem]
        say(f"{count(tried)} are seen on {kernel.release}")
    if not arguments.only and NAME.fullmatch(arguments.kernel):
        DOCUMENT.write_text(markdown(kernel, findings), encoding="utf-8")
        print(f"mutants: written to {DOCUMENT.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    output.run(main)
