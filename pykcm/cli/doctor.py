"""`kcm doctor`: whether KCM can be used here, and the command that puts right what is wrong."""

from __future__ import annotations

import json
import textwrap

import click

_WIDTH = 80
_NAME = 17  # columns for the name of what was looked at
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red", "unknown": "blue"}
_SHOWN = {"unknown": "not known"}


@click.command()
@click.option("--framing", metavar="NAME", help="Try this framing of pykcm.protocols too.")
@click.option("--for", "target", metavar="UID|PID", help="Look as a user, or as a process, sees it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True),
    help="Write there all that a bug report needs; it has no secrets.",
)
@click.option("--mask", is_flag=True, help="Leave addresses out of the report.")
def command(
    framing: str | None, target: str | None, as_json: bool, report: str | None, mask: bool
) -> int:
    """Say whether KCM can be used here, by trying.

    A socket is opened, programs are loaded, connections of the loopback interface are attached and
    messages passed.  Each line is ok, a warning, a problem, or not known, with the command that
    puts it right.  The exit status is 0 if all is well, 1 with a warning, 2 with a problem.
    """
    from pykcm import doctor
    from pykcm.doctor import report as reports
    from pykcm.doctor.others import examine_for

    if mask and report is None:
        raise click.UsageError("--mask is about --report")
    chosen = _framing(framing)
    try:
        findings = doctor.examine(chosen) if target is None else examine_for(target, chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    status = doctor.exit_status(findings)
    if report is not None:
        reports.write(report, findings, mask=mask)
    if as_json:
        data = {
            "status": ("ok", "warning", "problem")[status],
            "framing": framing,
            "for": target,
            "findings": [finding.as_dict() for finding in findings],
        }
        click.echo(json.dumps(data))
    else:
        for finding in findings:
            _print(finding)
        _conclude(findings, status)
    return status


def _framing(name: str | None) -> Framing | None:
    if name is None:
        return None
    from pykcm import protocols
    from pykcm.cli._nearest import nearest

    names = protocols.catalogue()
    wanted = name.upper().replace("-", "_")
    if wanted not in names:
        raise click.UsageError(f"there is no framing {name!r}{nearest(name, names)}")
    return names[wanted].framing


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
        click.echo(textwrap.fill(finding.advice, _WIDTH, initial_indent=indent, subsequent_indent=indent))


def _command(text: str) -> str:
    """A command that can be copied: what goes on in the next line has a backslash before that."""
    first, rest = " " * 10 + "$ ", " " * 14
    lines = textwrap.wrap(
        text,
        _WIDTH - 2,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(lines)


def _conclude(findings: list[Finding], status: int) -> None:
    counts = {
        name: sum(finding.status.value == name for finding in findings) for name in _COLOURS
    }
    said = ", ".join(f"{count} {_SHOWN.get(name, name)}" for name, count in counts.items() if count)
    verdict = ("KCM can be used here", "KCM can be used here, but see the warnings",
               "KCM can't be used here as it is")[status]
    click.echo(f"{verdict}: {said}.")
