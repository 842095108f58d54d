"""`kcm selftest`: the kernel's KCM, checked against its documentation and source."""

from __future__ import annotations

import sys

import click

from pykcm.selftest import report


@click.command()
@click.option("--list", "list_only", is_flag=True, help="List the checks and run none.")
@click.option(
    "--filter",
    "pattern",
    metavar="PATTERN",
    help="Only checks whose name matches: a shell pattern (attach.*), or a regular expression "
    "between slashes (/efault|enoent/).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of KTAP.")
@click.option(
    "--expect-known",
    is_flag=True,
    help="Pass only if the kernel behaves exactly as the table of known deviations says: one that "
    "is gone is a failure too.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Checks at once."
)
def command(
    list_only: bool, pattern: str | None, as_json: bool, expect_known: bool, jobs: int
) -> None:
    """Check the kernel's KCM: a report in KTAP, the format of the kernel's own tests.

    Exit status: 0, all is as it should be or as the table of known deviations says; 1, something
    is not; 4, this kernel or this process can't be tested, and the report says why.
    """
    try:
        groups = report.select(pattern)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--filter") from None
    if list_only:
        report.list_checks(groups, as_json)
        return
    sys.exit(report.run(groups, as_json=as_json, expect_known=expect_known, parallel=jobs))
