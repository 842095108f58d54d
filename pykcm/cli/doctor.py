"""`kcm doctor`: whether KCM can be used here, and the command that puts right what is wrong."""

from __future__ import annotations

import json
import re
import textwrap
from typing import TYPE_CHECKING

import click

from pykcm.cli import _framings

if TYPE_CHECKING:
    from pykcm.doctor import Finding, Target

_WIDTH = 80
_WORD = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""")  # of a command: quotes stay whole
_NAME = 17  # columns for the name of what was looked at
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red", "unknown": "blue"}
_COUNTED = ("warning", "problem")
_SHOWN = {"unknown": "not known"}


_EXIT_STATUS = """\b
Exit status:
  0  all is well
  1  there is a warning
  2  there is a problem, or a mistake in the command line
What is not known does not count."""


@click.command(epilog=_EXIT_STATUS)
@_framings.takes_framing("NAME")
@click.option("--for", "target", metavar="UID|PID", help="Look as a user or a process sees it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write there what a bug report needs: the findings, and the kernel's state.",
)
@click.option("--mask", is_flag=True, help="Leave network addresses out of the report.")
def command(
    framing: _framings.Chosen | None,
    target: str | None,
    as_json: bool,
    report: str | None,
    mask: bool,
) -> int:
    """Say whether KCM can be used here, by trying.

    A socket is opened, programs are loaded, connections of the loopback interface are attached,
    messages are passed; with a framing, its program too.  Each line is ok, a warning, a problem or
    not known, with the command that puts it right.

    For another user or process it takes root.  A number below the largest PID that is a running
    process means that; uid:N and pid:N say which is meant.
    """
    from pykcm import doctor

    if mask and report is None:
        raise click.UsageError("--mask is about --report")
    chosen = framing.framing if framing else None
    if target is None:
        findings = doctor.examine(chosen)
    else:
        findings = doctor.examine_for(_target(target), chosen)
    status = doctor.exit_status(findings)
    if report is not None:
        doctor.write_report(report, findings, mask=mask)
    if as_json:
        data = {
            "status": ("ok", "warning", "problem")[status],
            "framing": framing.name if framing else None,
            "for": target,
            "findings": [finding.as_dict() for finding in findings],
        }
        click.echo(json.dumps(data))
        return status
    for finding in findings:
        _print(finding)
    _conclude(findings, status)
    return status


def _target(text: str) -> Target:
    from pykcm.doctor import Target

    try:
        return Target.parse(text)
    except ValueError as error:
        raise click.UsageError(f"--for: {error}") from error


def _print(finding: Finding) -> None:
    status = finding.status.value
    shown = click.style(f"{_SHOWN.get(status, status):<10}", fg=_COLOURS[status])
    margin = " " * (10 + _NAME)
    lines = textwrap.wrap(
        finding.text, _WIDTH - len(margin), break_long_words=True, break_on_hyphens=False
    )
    click.echo(f"{shown}{finding.name:<{_NAME}}{lines[0] if lines else ''}")
    for line in lines[1:]:
        click.echo(f"{margin}{line}")
    if finding.fix:
        click.echo(_command(finding.fix))
    if finding.advice:
        indent = " " * 12
        click.echo(
            textwrap.fill(finding.advice, _WIDTH, initial_indent=indent, subsequent_indent=indent)
        )


def _command(text: str) -> str:
    """A command that can be copied: what goes on in the next line has a backslash before that."""
    lines = [" " * 10 + "$"]
    for word in _WORD.findall(text):
        if len(lines[-1]) + 1 + len(word) > _WIDTH - 2 and lines[-1].strip() != "$":
            lines.append(" " * 13)
        lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _conclude(findings: list[Finding], status: int) -> None:
    counts = {name: sum(finding.status.value == name for finding in findings) for name in _COLOURS}
    said = ", ".join(
        f"{count} {_SHOWN.get(name, name)}{'s' if count > 1 and name in _COUNTED else ''}"
        for name, count in counts.items()
        if count
    )
    verdict = (
        "KCM can be used here",
        "KCM can be used here, but see the warnings",
        "KCM can't be used here as it is",
    )[status]
    click.echo(f"{verdict}: {said}.")
