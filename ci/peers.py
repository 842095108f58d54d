"""Tests against real servers, Debian's, fetched on demand, on a kernel with KCM.

They run where KCM is, this host or a guest, in a network and a mount namespace of their own. A
server that could not be had or was not tested is a failure that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from rich import box
from rich.console import Console
from rich.table import Table

from ci import output
from ci.apt import ROOT, UnavailableError
from ci.built import meant
from ci.columns import WIDTH, why
from ci.output import say
from ci.servers import root
from ci.testing import KERNEL_TESTS, REPORTS

Rows: TypeAlias = list[dict[str, str]]


@dataclass(frozen=True)
class Part:
    """Tests, and the table of what they record: each property's name, and its column's title."""

    name: str
    columns: dict[str, str]

    @property
    def report(self) -> Path:
        return REPORTS / f"{self.name}.xml"


COUNTS = {"requests": "requests", "answers": "messages", "unknown": "unknown"}
PEERS = Part("peers", {"title": "server", "version": "version", "connections": "conns", **COUNTS})
HOSTS = Part("hosts", {"title": "replicas", "shares": "answered by", **COUNTS, "seconds": "s"})


def command(part: Part, servers: Path, arguments: list[str]) -> list[str]:
    """What runs the tests where KCM is."""
    return ["ci/run-kcm", *inside(part, servers, arguments)]


def inside(part: Part, servers: Path, arguments: list[str]) -> list[str]:
    """What runs the tests, as root, on a kernel with KCM."""
    tests = [*KERNEL_TESTS[:-1], f"tests/{part.name}", f"--servers={servers.relative_to(ROOT)}"]
    # The other family of such files has no properties of a test.
    report = [f"--junitxml={part.report.relative_to(ROOT)}", "--override-ini=junit_family=xunit1"]
    return ["unshare", "--mount", "--net", *tests, *report, *arguments]


def rows(report: Path) -> Rows:
    """What each test recorded, and how it ended."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = [*case.iter("failure"), *case.iter("error")]
        row = {"test": case.get("name", "")}
        row |= {one.get("name", ""): one.get("value", "") for one in case.iter("property")}
        skipped = case.find("skipped")
        if skipped is not None:
            found.append(row | {"result": "FAIL", "reason": f"skipped: {skipped.get('message')}"})
        elif bad:
            found.append(row | {"result": "FAIL", "reason": why(bad[0])})
        else:
            found.append(row | {"result": "pass"})
    return found


def show(part: Part, found: Rows) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for name, title in part.columns.items():
        text = name in ("title", "version", "shares")
        table.add_column(title, justify="left" if text else "right", overflow="fold")
    table.add_column("result")
    others = [row for row in found if "title" not in row]
    for row in found:
        if row not in others:
            style = "red" if row["result"] != "pass" else None
            table.add_row(*(row.get(name, "") for name in part.columns), row["result"], style=style)
    console.print(table)
    passed = sum(row["result"] == "pass" for row in others)
    if others:
        console.print(f"{passed} of {len(others)} other tests passed", highlight=False)
    for row in found:
        if "reason" in row:
            console.print(f"{row['test']}: {row['reason']}", highlight=False, markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/peers", description=__doc__)
    parser.add_argument(
        "--hosts", action="store_true", help="the tests with replicas on several hosts instead"
    )
    parser.add_argument("--json", action="store_true", help="the table as JSON, and nothing else")
    parser.add_argument(
        "--kernel", help="one of Debian's series, an image, or the directory of a build"
    )
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    part = HOSTS if arguments.hosts else PEERS
    REPORTS.mkdir(exist_ok=True)
    part.report.unlink(missing_ok=True)
    try:
        servers = root()
    except UnavailableError as reason:
        print(f"peers: the servers could not be had: {reason}", file=sys.stderr)
        return 1
    kernel = {"KERNEL": meant(arguments.kernel)} if arguments.kernel else {}
    status = subprocess.run(
        command(part, servers, arguments.pytest),
        cwd=ROOT,
        env={**os.environ, **kernel},
        stdout=2 if arguments.json else None,
        check=False,
    ).returncode
    found = rows(part.report) if part.report.exists() else []
    if arguments.json:
        say(json.dumps({"status": status, "tests": found}, indent=2))
    else:
        show(part, found)
    if not found:
        print(f"peers: nothing was tested (exit status {status})", file=sys.stderr)
    return int(status != 0 or not found or any(row["result"] != "pass" for row in found))


if __name__ == "__main__":
    output.run(main)
