"""Run all benchmarks and write docs/performance.md and its plots.

    make bench                                  runs all of it
    .venv/bin/python -m bench.performance       the same, once ci/setup bench has run
    … --from reports/bench.json                 writes the page again from what was measured

Costs are counted in a guest whose clock counts instructions; what needs several CPUs is timed in
one that has two.  Everything is measured in a run of its own program, with both sides in turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import page
from ci.jobs import end_with_parent

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "reports" / "bench.json"
TIMEOUT = 1200  # seconds for one program, boot included

COUNTED = ("--icount", "--cpus", "1")
TIMED = ("--cpus", "2")
#: Each program, its sections where not all are meant, and its guest; None is this machine.
PROGRAMS: tuple[tuple[str, tuple[str, ...], tuple[str, ...] | None], ...] = (
    ("super_messages", (), COUNTED),
    (
        "core",
        ("messages", "asynchronous", "round_trips", "transports", "memory", "attaching"),
        COUNTED,
    ),
    ("many", (), COUNTED),
    ("peers", (), COUNTED),
    ("fan_out", (), TIMED),
    ("servers", (), TIMED),
    ("core", ("imports",), None),
    ("assembler", (), None),
)


def measure(
    program: str, sections: tuple[str, ...], guest: tuple[str, ...] | None, kernel: str
) -> dict[str, Any]:
    """What a program printed with --json."""
    python = "python" if guest else sys.executable
    command = ["env", "PYTHONPATH=.", python, f"bench/{program}.py", "--json", *sections]
    if guest:
        command = ["ci/vm", *guest, "--kernel", kernel, "--", *command]
    print(f"bench: {program} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        preexec_fn=end_with_parent,
        check=False,
    )
    if done.returncode:
        sys.exit(f"bench: {program} ended with status {done.returncode}")
    print(f"bench: {program} took {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="given", type=Path, help="a report of an earlier run")
    parser.add_argument("--kernel", default="6.1", help="a series; default: %(default)s")
    parser.add_argument(
        "--only",
        action="append",
        choices=sorted({name for name, _, _ in PROGRAMS}),
        help="measure just this again; all else is as in the last report",
    )
    parser.add_argument("--json", action="store_true", help="also print the report")
    arguments = parser.parse_args()
    given = arguments.given or (REPORT if arguments.only else None)
    report = (
        json.loads(given.read_text(encoding="utf-8")) if given else {"kernel": "", "sections": {}}
    )
    if not arguments.given:
        for program, sections, guest in PROGRAMS:
            if arguments.only and program not in arguments.only:
                continue
            found = measure(program, sections, guest, arguments.kernel)
            report["sections"] |= found["sections"]
            if guest:
                report["kernel"] = found["kernel"]
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    for path in page.write(report):
        print(f"written: {path.relative_to(ROOT)}")
    if arguments.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
